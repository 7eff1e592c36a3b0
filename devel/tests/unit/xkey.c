/* unit_xkey - deps/xkey.c: nkeys and sealed boxes.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "unit.h"
#include "keys.h"

#include "../../../deps/xkey.c"

static void test_keys(void) {
    uint8_t raw[36], again[36];
    char text[64];
    CHECK(nkey_decode(span_of(HOST_PUBLIC), raw, 35) && raw[0] == X_PUBLIC && nkey_decode(span_of(OUR_SEED), again, 36));
    nkey_encode(X_PUBLIC, raw + 1, text);
    CHECK(strcmp(text, HOST_PUBLIC) == 0);
    CHECK(!nkey_decode(span_of(""), raw, 35) && !nkey_decode(span_of(OUR_SEED), raw, 35) && !nkey_decode(span_of(OUR_PUBLIC), raw, 36));
    for (size_t i = 0; i < NKEY_PUBLIC_LEN; i++)
        for (const char *c = "AQ7x0=\xff "; *c; c++) {
            strcpy(text, OUR_PUBLIC);
            if (text[i] == *c) continue;
            text[i] = *c;
            CHECK(!nkey_decode(span_of(text), raw, 35)); /* the CRC, or no digit */
        }
    ROUNDS(200) {
        uint8_t key[32];
        fill(key, sizeof(key));
        nkey_encode(X_PUBLIC, key, text);
        CHECK(strlen(text) == 56 && text[0] == 'X' && nkey_decode(span_of(text), raw, 35) && memcmp(raw + 1, key, 32) == 0);
    }
    uint8_t secret[32];
    CHECK(nkey_seed(span_of(OUR_SEED), SEED_OF_X, secret) && !nkey_seed(span_of(OUR_SEED), SEED_OF_USER, secret) && !nkey_seed(span_of(OUR_PUBLIC), SEED_OF_X, secret));
    CHECK(!nkey_seed(span_of(OUR_SEED), SEED_OF_USER, NULL) && !nkey_seed(span_of(""), SEED_OF_USER, NULL));
    CHECK(nkey_is_user_seed(span_of("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY")));
    char public_key[NKEY_PUBLIC_LEN + 1]; /* as the Python package nkeys computes it */
    CHECK(nkey_user_public(span_of("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"), public_key));
    CHECK(strcmp(public_key, "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4") == 0);
    CHECK(!nkey_user_public(span_of(OUR_SEED), public_key));
    CHECK(!nkey_is_user_seed(span_of(OUR_SEED)) && !nkey_is_user_seed(span_of(NULL)));
    CHECK(crc16((const uint8_t *)"123456789", 9) == 0x31c3);
}

/* Whether xkey_open() opens a box that lies in memory of exactly its size, as does what is in it. */
static const char *opened(const uint8_t *sealed, size_t len, char out[256]) {
    uint8_t *box = exactly(sealed, len), *plain = malloc(len + !len);
    size_t plain_len = 0;
    const char *why = xkey_open(box, len, plain, &plain_len);
    if (!why) (void)text_of((struct span){(const char *)plain, plain_len}, out, 256);
    CHECK(!why || strlen(why) > 10);
    free(plain);
    free(box);
    return why;
}

static void test_boxes(void) {
    struct span none = {0}, host = span_of(HOST_PUBLIC), ours = span_of(OUR_SEED);
    uint8_t sealed[256];
    char plain[256] = "";
    size_t len = 0;
    sodium_hex2bin(sealed, sizeof(sealed), sealed_hex, sizeof(sealed_hex) - 1, NULL, &len, NULL);
    CHECK(!xkey_public() && strstr(opened(sealed, len, plain), "no xkeys"));
    CHECK(!xkey_start(none, none) && !xkey_start(ours, host) && !xkey_start(host, host) && !xkey_public());
    CHECK(xkey_start(host, ours) && strcmp(xkey_public(), OUR_PUBLIC) == 0);
    CHECK(!opened(sealed, len, plain) && *plain == '{' && strstr(plain, "client_jwt"));
    for (size_t i = 0; i < len; i++) {
        const char *why;
        sealed[i] ^= (uint8_t)(1 << random_below(8));
        why = opened(sealed, len, plain);
        CHECK(why && strstr(why, i < 4 ? "xkv1" : "changed on the way"));
        (void)sodium_hex2bin(sealed, sizeof(sealed), sealed_hex, sizeof(sealed_hex) - 1, NULL, &len, NULL);
        CHECK(opened(sealed, i, plain));
    }
    CHECK(!opened(sealed, len, plain));
    CHECK(!xkey_start(host, host) && !xkey_public() && opened(sealed, len, plain)); /* the last one counts */
}

int main(void) {
    static const struct group groups[] = {{"nkeys", test_keys}, {"boxes", test_boxes}};
    if (sodium_init() < 0) return 1;
    return run_groups(groups, COUNT_OF(groups));
}
