/* unit_dial - tests of deps/dial.c that need no server: servers of a list, and texts without secrets.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "unit.h"
#include "../../../deps/dial.c"

/* CONNECT is JSON, so what is not UTF-8 cannot be in it. What is wrong otherwise: devel/tests/unit/text.c. */
static void test_servers(void) {
    static const char *const bad[] = {"nats://u:s3cret%ff@h", "nats://u:s3cret\xff@h",
                                      "nats://u:s3cret%c0%80@h"};
    char address[URL_ADDRESS_MAX];
    struct url url;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        const char *wrong = server_read(span_of(bad[i]), &url);
        VERIFY(wrong && strstr(wrong, "UTF-8") && !strstr(wrong, "s3cret"), bad[i]);
        VERIFY(*server_address(span_of(bad[i]), address) == 0, bad[i]);
    }
    CHECK(!server_read(span_of("nats://%c3%a9:p@h"), &url) && strcmp(url.user, "\xc3\xa9") == 0);
    CHECK(server_read(span_of("u:s3cret@["), &url) && server_read(span_of(""), &url));
    CHECK(strcmp(server_address(span_of("tls://u:s3cret@[::1]:5"), address), "[::1]:5") == 0);
    CHECK(strcmp(server_address(span_of("h"), address), "h:4222") == 0);
}

/* Texts of libraries and servers: they do not repeat a secret, nor a large part of one. */
static void test_without_secrets(void) {
    static const char uris[] = "nats://user:pa%22ss%0Aword@h,tls://%74okenofsomebody@h,nats://u:pw@h,"
                               "nats://u:p@h";
    static const char *const passed_on[] =
        {"", "Authorization Violation", "user h tls", "pa\"ss\nw", "ofsomeb", "eyJ0eXA", "one letter: p"};
    static const char *const kept_back[] = {"pa\"ss\nword",      "CONNECT {\"pass\":\"pa\\\"ss\\u000aword\"",
                                            "pa\\\"ss\\u0",      "xtokenofs",
                                            "omebody pw",        "iOiJKV1Qi",
                                            "SUACSSL3 is no one"};
    json_t *settings = json_pack("{s:s,s:s,s:s}", "cluster_uris", uris, "client_jwt",
                                 "eyJ0eXAiOiJKV1Qi.eyJqdGkiOiJ.abcdefghijklmn", "client_seed",
                                 "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY");
    json_t *none = json_pack("{s:s}", "cluster_uris", "h");
    for (size_t i = 0; i < COUNT_OF(passed_on); i++)
        VERIFY(without_secrets(settings, passed_on[i]) == passed_on[i], passed_on[i]);
    for (size_t i = 0; i < COUNT_OF(kept_back); i++) {
        VERIFY(without_secrets(settings, kept_back[i]) != kept_back[i], kept_back[i]);
        VERIFY(without_secrets(none, kept_back[i]) == kept_back[i], kept_back[i]);
    }
    CHECK(!without_secrets(settings, NULL));
    json_decref(settings);
    json_decref(none);
}

static void test_without_place(void) {
    CHECK(strcmp(without_place("(conn.c:12): no memory"), "no memory") == 0);
    CHECK(strcmp(without_place("no (place): here"), "no (place): here") == 0);
    CHECK(strcmp(without_place("(no end"), "(no end") == 0 && !without_place(NULL));
}

/* An attempt that is not worth while any more is not made; an outcome names each server, and no password. */
static void test_outcomes(void) {
    char outcome[60];
    atomic_bool unwanted = true;
    json_t *settings = json_pack("{s:s}", "cluster_uris", "u:s3cret@[,u:s3cr%ffet@h2,h3:0");
    struct servers named = {.list = "h4:1,nowhere.invalid:2,H3:1"};
    struct dial d = {.settings = settings,
                     .named = &named,
                     .unwanted = &unwanted,
                     .outcome = outcome,
                     .outcome_size = sizeof(outcome)};
    CHECK(!dial(&d) && !*outcome);
    atomic_store(&unwanted, false);
    CHECK(!dial(&d) && strstr(outcome, "; ") && !strstr(outcome, "s3c") && strlen(outcome) < sizeof(outcome));
    json_decref(settings);
}

int main(void) {
    static const struct group groups[] = {
        {"servers",               test_servers        },
        {"texts without secrets", test_without_secrets},
        {"texts without places",  test_without_place  },
        {"outcomes",              test_outcomes       },
    };
    if (sodium_init() < 0) return 1;
    return run_groups(groups, COUNT_OF(groups));
}
