/* Host data and secrets: see host_data.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "host_data.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sodium.h>

#include "../provider.h"
#include "json.h"
#include "log.h"
#include "text.h"
#include "xkey.h"

static const char no_memory[] = "memory is short";

/* Reads to the end of a line, or of the file. Returns how many bytes stand before it. */
static size_t input_read(int fd, bool line, uint8_t *buffer) {
    const uint8_t *end = NULL;
    size_t have = 0;
    for (ssize_t n = 1; n > 0 && !end; have += (size_t)n) {
        if (have == HOST_DATA_MAX)
            die("host data: longer than %d bytes, the most that this build reads", HOST_DATA_MAX);
        do n = read(fd, buffer + have, HOST_DATA_MAX - have);
        while (n < 0 && errno == EINTR);
        if (n < 0)
            die("cannot read %s: %s", fd == STDIN_FILENO ? "standard input" : "the file", strerror(errno));
        if (line) end = memchr(buffer + have, '\n', (size_t)n);
    }
    if (!line) return have;
    if (have == 0)
        die("host data: standard input is empty; a wasmCloud host writes one line of base64 to it");
    if (!end) die("host data: the line has no end after %zu bytes; the host must have been cut off", have);
    return (size_t)(end - buffer);
}

json_t *host_data_read(int fd, bool line, uint8_t *buffer, size_t size) {
    const char *text = (const char *)buffer, *end = NULL;
    json_error_t error;
    const size_t input = input_read(fd, line, buffer);
    size_t len = input, blank = 0;
    while (len > 0 && isspace(buffer[len - 1])) len--;
    if (len == 0) die("host data: the line is empty");
    while (isspace(buffer[blank])) blank++;
    if (line || buffer[blank] != '{') {
        size_t decoded = 0;
        int failed = sodium_base642bin(buffer, size, text, len, NULL, &decoded, &end,
                                       sodium_base64_VARIANT_ORIGINAL);
        if (failed || end != text + len)
            die("host data: no base64 at byte %td of %zu", end ? end - text + 1 : 1, len);
        len = decoded;
    }
    json_begin();
    json_t *json = json_read(text, len, &error);
    sodium_memzero(buffer, input);
    if (json_is_short()) die(no_memory);
    if (!json) die("host data: no JSON: error in line %d, column %d", error.line, error.column);
    return json;
}

const char *host_text(const json_t *host, const char *key) {
    const json_t *v = json_object_get(host, key);
    if (v && !json_is_string(v) && !json_is_null(v)) die("host data: %s is no string", key);
    return v && json_is_string(v) ? json_string_value(v) : "";
}

json_t *host_part(const json_t *host, const char *key, json_t *empty) {
    json_t *v = json_object_get(host, key);
    if (!empty) die(no_memory);
    if (!v || json_is_null(v)) return empty;
    if (json_typeof(v) != json_typeof(empty))
        die("host data: %s is no %s", key, json_is_array(empty) ? "list" : "object");
    json_decref(empty);
    return json_incref(v);
}

void host_token(const json_t *host, const char *key, const char *missing, char out[ID_MAX]) {
    const char *text = host_text(host, key);
    if (!*text && missing) text = missing;
    if (!*text) die("host data: %s is missing; is this the line that a wasmCloud host writes?", key);
    if (!is_token(text))
        die("host data: %s must be one token of a subject: no dot, space, * or >, fewer than %d bytes", key,
            ID_MAX);
    (void)snprintf(out, ID_MAX, "%s", text);
}

/* The bytes of a JSON array of numbers from 0 to 255. Returns memory that the caller gives to json_free(),
 * or NULL. */
static uint8_t *bytes_of_json(const json_t *array, size_t *len) {
    size_t i;
    const json_t *v;
    *len = json_array_size(array);
    uint8_t *bytes = *len ? json_alloc(*len) : NULL;
    json_array_foreach(array, i, v) {
        if (bytes && json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= 255) {
            bytes[i] = (uint8_t)json_integer_value(v);
            continue;
        }
        json_free(bytes);
        return NULL;
    }
    return bytes;
}

json_t *secrets_open(const json_t *sealed, const char **why) {
    json_t *secrets = NULL;
    size_t len = 0, plain_len = 0;
    *why = "";
    if (!sealed || json_is_null(sealed) || (json_is_array(sealed) && json_array_size(sealed) == 0))
        return json_object();
    uint8_t *bytes = bytes_of_json(sealed, &len);
    uint8_t *plain = bytes ? json_alloc(len) : NULL;
    *why = "its secrets are no list of bytes";
    if (plain) *why = xkey_open(bytes, len, plain, &plain_len);
    if (plain && !*why) {
        secrets = json_read((const char *)plain, plain_len, NULL);
        *why = json_is_object(secrets) ? "" : "its secrets are no JSON object";
    }
    json_free(plain);
    json_free(bytes);
    if (json_is_object(secrets)) return secrets;
    json_decref(secrets);
    return json_object();
}

json_t *secret_text(const json_t *secret) {
    const json_t *value = json_object_get(secret, "value");
    size_t len = 0;
    if (json_is_string(value)) return json_incref((json_t *)value);
    uint8_t *bytes = bytes_of_json(value, &len);
    json_t *text = bytes ? json_stringn((const char *)bytes, len) : NULL;
    json_free(bytes);
    return text;
}
