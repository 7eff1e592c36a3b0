/* unit_host_data - tests of deps/host_data.c: the line of a host, and the secrets of links.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <sys/wait.h>

#include "unit.h"
#include "../../../deps/host_data.c"
#include "keys.h"

/* Sealed secrets as a link has them: a list of numbers. Takes them apart; NULL, and why, if they cannot be
 * opened. */
static json_t *box_open(const uint8_t *sealed, size_t len, const char **why) {
    json_t *list = json_array();
    for (size_t i = 0; i < len; i++) json_array_append_new(list, json_integer(sealed[i]));
    json_t *secrets = secrets_open(list, why);
    json_decref(list);
    CHECK(json_is_object(secrets) && *why && (!**why || json_object_size(secrets) == 0));
    if (!**why) return secrets;
    json_decref(secrets);
    return NULL;
}

static const char *secret_at(const json_t *secrets, const char *key) {
    static char text[128];
    json_t *value = secret_text(json_object_get(secrets, key));
    (void)snprintf(text, sizeof(text), "%s", value ? json_string_value(value) : "(none)");
    json_decref(value);
    return text;
}

static void test_secrets(void) {
    uint8_t sealed[256];
    size_t len;
    const char *why = NULL;
    sodium_hex2bin(sealed, sizeof(sealed), sealed_hex, sizeof(sealed_hex) - 1, NULL, &len, NULL);
    CHECK(!box_open(sealed, len, &why) && strstr(why, "no xkeys"));
    CHECK(!xkey_start(span_of(""), span_of("")) && !xkey_start(span_of(OUR_SEED), span_of(HOST_PUBLIC)));
    CHECK(!xkey_start(span_of(HOST_PUBLIC), span_of(HOST_PUBLIC)));
    CHECK(xkey_start(span_of(HOST_PUBLIC), span_of(OUR_SEED)) && strcmp(xkey_public(), OUR_PUBLIC) == 0);
    json_t *secrets = box_open(sealed, len, &why);
    CHECK(json_object_size(secrets) == 3);
    CHECK(strcmp(secret_at(secrets, "client_jwt"), "eyJ0eXAiOiJKV1QifQ.x.y") == 0);
    CHECK(strcmp(secret_at(secrets, "client_seed"), "SUAM") == 0);
    CHECK(strcmp(secret_at(secrets, "blob"), "(none)") == 0); /* no UTF-8 */
    json_decref(secrets);
    for (size_t i = 0; i < len; i++) {
        uint8_t *changed = exactly(sealed, len);
        changed[i] ^= (uint8_t)(1 << random_below(8));
        CHECK(!box_open(changed, len, &why));
        free(changed);
        uint8_t *cut = exactly(sealed, i);
        secrets = box_open(cut, i, &why);
        CHECK((i == 0) == (secrets != NULL)); /* an empty list is no secrets at all */
        json_decref(secrets);
        free(cut);
    }
    sealed[len - 1] = 0xf9; /* the tampered vector */
    CHECK(!box_open(sealed, len, &why) && strstr(why, "changed on the way"));
    (void)xkey_start(span_of(""), span_of(""));
}

/* What stands in place of sealed secrets: none, or something else. */
static void test_places(void) {
    static const struct {
        const char *json;
        bool none;
    } places[] = {
        {"[]",         true },
        {"[null]",     true },
        {"[[]]",       true },
        {"[\"x\"]",    false},
        {"[{}]",       false},
        {"[[256]]",    false},
        {"[[-1]]",     false},
        {"[[1,\"\"]]", false},
        {"[[1.5]]",    false},
        {"[[1,2]]",    false},
    };
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        const char *why = NULL;
        json_t *list = json_loads(places[i].json, 0, NULL),
               *secrets = secrets_open(json_array_get(list, 0), &why);
        VERIFY(json_is_object(secrets) && json_object_size(secrets) == 0, places[i].json);
        VERIFY(why && (*why == 0) == places[i].none, places[i].json);
        json_decref(secrets);
        json_decref(list);
    }
}

static void test_values(void) {
    json_t *values = json_pack("{s:{s:s,s:s}, s:{s:s,s:[i,i]}, s:{s:s,s:[i]}, s:{s:s,s:i}, s:s, s:{}}",
                               "string", "kind", "String", "value", "v", "bytes", "kind", "Bytes", "value",
                               104, 105, "wrong", "kind", "Bytes", "value", 256, "number", "kind", "Bytes",
                               "value", 1, "bare", "v", "empty");
    CHECK(strcmp(secret_at(values, "string"), "v") == 0 && strcmp(secret_at(values, "bytes"), "hi") == 0);
    CHECK(strcmp(secret_at(values, "wrong"), "(none)") == 0 &&
          strcmp(secret_at(values, "number"), "(none)") == 0);
    CHECK(strcmp(secret_at(values, "bare"), "(none)") == 0 &&
          strcmp(secret_at(values, "empty"), "(none)") == 0);
    CHECK(strcmp(secret_at(values, "missing"), "(none)") == 0);
    json_decref(values);
}

/* ---- the line of a host -------------------------------------------------------------------------------- */

static uint8_t buffer[HOST_DATA_MAX];

static json_t *read_text(const char *text, bool line) {
    FILE *file = tmpfile();
    (void)fputs(text, file);
    rewind(file);
    json_t *json = host_data_read(fileno(file), line, buffer, sizeof(buffer));
    (void)fclose(file);
    return json;
}

/* What is said of a text that ends the process, on standard error. */
static const char *death_of(const char *text, bool line) {
    int status = 0, ends[2];
    fflush(stdout);
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        (void)read_text(text, line);
        _exit(0);
    }
    close(ends[1]);
    ssize_t n = read(ends[0], logged, sizeof(logged) - 1);
    logged[n > 0 ? n : 0] = 0;
    close(ends[0]);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 1);
    return logged;
}

static void test_lines(void) {
    json_t *wanted = json_pack("{s:s}", "key", "a secret"), *json;
    static const struct {
        const char *text;
        bool line;
    } good[] = {
        {"eyJrZXkiOiJhIHNlY3JldCJ9\nmore", true }, /* a line ends where it ends */
        {"eyJrZXkiOiJhIHNlY3JldCJ9\r\n",   true },
        {"eyJrZXkiOiJhIHNlY3JldCJ9",       false},
        {" {\"key\":\"a secret\"} \n",     false},
    };
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        json = read_text(good[i].text, good[i].line);
        VERIFY(json_equal(json, wanted), good[i].text);
        VERIFY(!memmem(buffer, 100, "a secret", 8) && !memmem(buffer, 100, "eyJr", 4),
               good[i].text); /* wiped */
        json_decref(json);
    }
    json_decref(wanted);
    CHECK(strstr(death_of("", true), "standard input is empty"));
    CHECK(strstr(death_of("eyJrZXkiOiJhIHNlY3JldCJ9", true), "has no end after 24 bytes"));
    CHECK(strstr(death_of("\n", true), "the line is empty") &&
          strstr(death_of(" \n ", false), "the line is empty"));
    CHECK(strstr(death_of("eyJ!c2VjcmV0\n", true), "no base64 at byte 4 of 12") && !strstr(logged, "c2Vj"));
    CHECK(strstr(death_of("{\"key\":\"a secret\"", false), "no JSON: error in line 1") &&
          !strstr(logged, "secret"));
    CHECK(strstr(death_of("{\"key\":1}\n", true), "no base64 at byte 1 of 9"));
}

int main(void) {
    static const struct group groups[] = {
        {"secrets",             test_secrets},
        {"in place of secrets", test_places },
        {"values of secrets",   test_values },
        {"the line of a host",  test_lines  },
    };
    if (sodium_init() < 0) return 1;
    return run_groups(groups, COUNT_OF(groups));
}
