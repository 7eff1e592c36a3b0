/* unit_jwt - deps/jwt.c: when a JWT ends, and that nothing else in one matters.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "unit.h"

#include "../../../deps/jwt.c"

enum { NOW = 1700000000 }; /* 2023-11-14 22:13:20 UTC */

/* A JWT with this payload. */
static const char *with_payload(const char *payload) {
    static char jwt[512];
    size_t head = (size_t)sprintf(jwt, "e30.");
    sodium_bin2base64(jwt + head, sizeof(jwt) - head, (const unsigned char *)payload, strlen(payload),
                      sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    return strcat(jwt, ".c2ln");
}

static bool ends(const char *payload) {
    char out[120] = "";
    bool soon = jwt_ends_soon(with_payload(payload), NOW, out);
    CHECK(soon == (*out != 0));
    return soon;
}

static void test_ends(void) {
    char payload[64], out[120];
    for (int days = -2; days < 20; days++) {
        (void)snprintf(payload, sizeof(payload), "{\"sub\":\"U\",\"exp\":%ld}", (long)NOW + 86400L * days);
        CHECK(ends(payload) == (days <= 7));
    }
    CHECK(jwt_ends_soon(with_payload("{\"exp\":1700259200}"), NOW, out));
    CHECK(strcmp(out, "the JWT of its user expires on 2023-11-17 22:13 UTC, in 3 days: give it a new one") == 0);
    CHECK(jwt_ends_soon(with_payload("{\"exp\":1699999999}"), NOW, out));
    CHECK(strcmp(out, "the JWT of its user has expired, on 2023-11-14 22:13 UTC: give it a new one") == 0);
}

static void test_others(void) {
    static const char *const payloads[] = {"{}", "", "[]", "{\"exp\":0}", "{\"exp\":-1}", "{\"exp\":1e9}", "{\"exp\":\"1\"}",
                                           "{\"exp\":null}", "{\"exp\":9223372036854775807}", "{\"exp\":253402300800}",
                                           "{\"exp\":-9223372036854775808}", "{\"exp\":", "{\"nats\":{\"exp\":1}}"};
    static const char *const jwts[] = {"", ".", "..", "a", "a.b.c", ".....", "a.!!.c", "a.eyJleHAiOjF9", "a.eyJleHAiOjF9=.c"};
    char out[120];
    for (size_t i = 0; i < sizeof(payloads) / sizeof(*payloads); i++) VERIFY(!ends(payloads[i]), payloads[i]);
    for (size_t i = 0; i < 7; i++) VERIFY(!jwt_ends_soon(jwts[i], NOW, out), jwts[i]);
    for (size_t i = 7; i < 9; i++) VERIFY(jwt_ends_soon(jwts[i], NOW, out), jwts[i]); /* as a server may take it */
    CHECK(!jwt_ends_soon(NULL, NOW, out));
    char *large = calloc(1, PAYLOAD_MOST + 16);
    memset(large, 'e', PAYLOAD_MOST + 8);
    memcpy(large, "a.", 2);
    CHECK(!jwt_ends_soon(large, NOW, out));
    large[PAYLOAD_MOST] = 0;
    CHECK(!jwt_ends_soon(large, NOW, out));
    free(large);
}

int main(void) {
    static const struct group groups[] = {
        {"JWTs that end",    test_ends  },
        {"what is no expiry", test_others},
    };
    json_set_alloc_funcs(json_alloc, json_free);
    if (sodium_init() < 0) return 1;
    return run_groups(groups, sizeof(groups) / sizeof(groups[0]));
}
