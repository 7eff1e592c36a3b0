/* xkey - see xkey.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "xkey.h"

#include <string.h>

#include <sodium.h>

enum {
    X_PUBLIC = 0xb8,
    USER_PUBLIC = 0xa0,
    SEED = 0x95,
    SEED_OF_X = 0xc0,
    SEED_OF_USER = 0x00
}; /* the prefix bytes */

static const char nkey_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

static uint16_t crc16(const uint8_t *bytes, size_t len) { /* XMODEM's */
    uint16_t crc = 0;
    for (size_t i = 0; i < 8 * len; i++) {
        if (i % 8 == 0) crc = (uint16_t)(crc ^ bytes[i / 8] << 8);
        crc = (uint16_t)(crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1);
    }
    return crc;
}

/* Decodes base32 without padding into `want` bytes, of which the last two are the CRC of the others. */
static bool nkey_decode(struct span text, uint8_t *out, size_t want) {
    uint32_t bits = 0;
    size_t have = 0, n = 0;
    if (text.len != (want * 8 + 4) / 5) return false;
    for (size_t i = 0; i < text.len; i++) {
        const char *digit = text.at[i] ? strchr(nkey_digits, text.at[i]) : NULL;
        if (!digit) return false;
        bits = bits << 5 | (uint32_t)(digit - nkey_digits);
        have += 5;
        if (have < 8) continue;
        have -= 8;
        out[n++] = (uint8_t)(bits >> have);
    }
    return (bits & ((1u << have) - 1)) == 0 && crc16(out, want - 2) == (out[want - 2] | out[want - 1] << 8);
}

/* Whether this is a seed of this kind; its 32 secret bytes, if they are wanted. */
static bool nkey_seed(struct span text, uint8_t kind, uint8_t *secret) {
    uint8_t raw[36];
    bool ok = nkey_decode(text, raw, sizeof(raw)) && raw[0] == SEED && raw[1] == kind;
    if (ok && secret) memcpy(secret, raw + 2, 32);
    sodium_memzero(raw, sizeof(raw));
    return ok;
}

static void nkey_encode(uint8_t prefix, const uint8_t key[32], char text[NKEY_PUBLIC_LEN + 1]) {
    uint8_t raw[36] = {prefix};
    memcpy(raw + 1, key, 32);
    raw[33] = (uint8_t)crc16(raw, 33);
    raw[34] = (uint8_t)(crc16(raw, 33) >> 8);
    for (size_t i = 0, bit = 0; i < NKEY_PUBLIC_LEN; i++, bit += 5)
        text[i] = nkey_digits[(raw[bit / 8] << 8 | raw[bit / 8 + 1]) >> (11 - bit % 8) & 31];
    text[NKEY_PUBLIC_LEN] = 0;
}

bool nkey_is_user_seed(struct span text) { return nkey_seed(text, SEED_OF_USER, NULL); }

bool nkey_user_public(struct span seed, char text[NKEY_PUBLIC_LEN + 1]) {
    uint8_t secret[32], pair[crypto_sign_SECRETKEYBYTES], key[crypto_sign_PUBLICKEYBYTES];
    bool ok = nkey_seed(seed, SEED_OF_USER, secret) && crypto_sign_seed_keypair(key, pair, secret) == 0;
    sodium_memzero(secret, sizeof(secret));
    sodium_memzero(pair, sizeof(pair));
    if (ok) nkey_encode(USER_PUBLIC, key, text);
    return ok;
}

static struct {
    bool started;
    uint8_t shared[crypto_box_BEFORENMBYTES]; /* the key that the host's pair and ours have in common */
    char public_key[NKEY_PUBLIC_LEN + 1];     /* ours */
} xkey;

bool xkey_start(struct span host_public, struct span our_seed) {
    uint8_t secret[32], host[35], ours[32];
    bool ok = nkey_seed(our_seed, SEED_OF_X, secret) && nkey_decode(host_public, host, sizeof(host));
    ok = ok && host[0] == X_PUBLIC && crypto_scalarmult_base(ours, secret) == 0;
    ok = ok && crypto_box_beforenm(xkey.shared, host + 1, secret) == 0;
    sodium_memzero(secret, sizeof(secret));
    if (ok) nkey_encode(X_PUBLIC, ours, xkey.public_key);
    xkey.started = ok;
    return ok;
}

const char *xkey_public(void) { return xkey.started ? xkey.public_key : NULL; }

const char *xkey_open(const uint8_t *sealed, size_t len, uint8_t *plain, size_t *plain_len) {
    const size_t head = 4 + crypto_box_NONCEBYTES;
    if (!xkey.started) return "the host data has no xkeys to open its secrets with";
    if (len < head + crypto_box_MACBYTES || memcmp(sealed, "xkv1", 4) != 0)
        return "its secrets do not begin with xkv1, or are too short";
    if (crypto_box_open_easy_afternm(plain, sealed + head, len - head, sealed + 4, xkey.shared) != 0)
        return "its secrets were sealed for another provider, or changed on the way";
    *plain_len = len - head - crypto_box_MACBYTES;
    return NULL;
}

/* The kernel gives the first seed; from each seed come bytes for many calls and the next seed, since a
 * system call for each would cost as much as all else that is ours in a call of a component. */
void nkey_random(char *out, size_t len) {
    static struct {
        uint8_t seed[randombytes_SEEDBYTES], bytes[1536];
    } pool;
    static size_t left = SIZE_MAX;
    if (left == SIZE_MAX) {
        randombytes_buf(pool.seed, sizeof(pool.seed));
        left = 0;
    }
    if (left < len) {
        uint8_t seed[randombytes_SEEDBYTES];
        memcpy(seed, pool.seed, sizeof(seed));
        randombytes_buf_deterministic(&pool, sizeof(pool), seed);
        left = sizeof(pool.bytes);
    }
    for (size_t i = 0; i < len; i++) out[i] = nkey_digits[pool.bytes[--left] & 31];
}
