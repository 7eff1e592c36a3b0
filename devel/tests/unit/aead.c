/* unit_aead - deps/aead.c: the ciphers of TLS, against published vectors, libsodium, and digests of what
 * pycryptodome computes, which has code of its own (see expected()); each with the processor's features masked.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include <mbedtls/cipher.h>
#include <sodium.h>

#include "../../../deps/aead.h"
#include "../../../deps/text.h"

enum { NONCE = 12, TAG = 16, MOST = 16384 + 256, GUARD = 32 };

static const mbedtls_cipher_type_t ciphers[] = {MBEDTLS_CIPHER_AES_128_GCM, MBEDTLS_CIPHER_AES_256_GCM,
                                                MBEDTLS_CIPHER_CHACHA20_POLY1305};
enum { AES_128, AES_256, CHACHA20, CIPHERS };

/* ---- the processor, with fewer and fewer features ------------------------------------------------------ */

#if defined(__x86_64__)
extern unsigned OPENSSL_ia32cap_P[];
enum { CLMUL = 1 << 1, SSSE3 = 1 << 9, XOP = 1 << 11, MOVBE = 1 << 22, AESNI = 1 << 25, AVX = 1 << 28 };
static const struct {
    unsigned less_of_1, less_of_7; /* what is taken out of CPUID 1, ECX, and 7, EBX */
    bool aes;
} processors[] = {
    {0,                                           0,                    true },
    {0,                                           1u << 16 | 1u << 31,  true }, /* no AVX-512 */
    {0,                                           ~0u,                  true }, /* no AVX2 */
    {XOP | MOVBE | AVX,                           ~0u,                  true },
    {XOP | MOVBE | AVX | CLMUL,                   ~0u,                  false},
    {CLMUL | AESNI,                               0,                    false},
    {XOP | MOVBE | AVX | CLMUL | AESNI | SSSE3,   ~0u,                  false},
};

static bool becomes(size_t i) {
    static unsigned whole[3];
    if (i == 0) {
        (void)aead_has_aes();
        memcpy(whole, OPENSSL_ia32cap_P, sizeof(whole));
    }
    OPENSSL_ia32cap_P[1] = whole[1] & ~processors[i].less_of_1;
    OPENSSL_ia32cap_P[2] = whole[2] & ~processors[i].less_of_7;
    return processors[i].aes && (whole[1] & AESNI) && (whole[1] & CLMUL);
}

#elif defined(__aarch64__) || defined(__arm__)
extern unsigned OPENSSL_armcap_P;
enum { NEON = 1 << 0, AESE = 1 << 2, PMULL = 1 << 5 };
static const unsigned processors[] = {0, AESE, AESE | PMULL, AESE | PMULL | NEON}; /* what is taken away */

static bool becomes(size_t i) {
    static unsigned whole;
    if (i == 0) {
        (void)aead_has_aes();
        whole = OPENSSL_armcap_P;
    }
    OPENSSL_armcap_P = whole & ~processors[i];
    return (whole & AESE) && (whole & PMULL) && i == 0;
}

#else
static const bool processors[1];
static bool becomes(size_t i) { return processors[i]; }
#endif

/* ---- one text ------------------------------------------------------------------------------------------ */

struct text {
    size_t length, aad_length;
    uint8_t key[32], nonce[NONCE], aad[64], plain[MOST], sealed[MOST + TAG];
};

static void begin(mbedtls_cipher_context_t *ctx, int cipher, const uint8_t *key) {
    const mbedtls_cipher_info_t *info = mbedtls_cipher_info_from_type(ciphers[cipher]);
    mbedtls_cipher_init(ctx);
    CHECK(mbedtls_cipher_setup(ctx, info) == 0);
    CHECK(mbedtls_cipher_setkey(ctx, key, (int)mbedtls_cipher_info_get_key_bitlen(info), MBEDTLS_ENCRYPT) == 0);
}

static int seal(mbedtls_cipher_context_t *ctx, const struct text *t, const uint8_t *in, uint8_t *out) {
    size_t length = 0;
    int rc = mbedtls_cipher_auth_encrypt_ext(ctx, t->nonce, NONCE, t->aad, t->aad_length, in, t->length, out,
                                             t->length + TAG, &length, TAG);
    CHECK(rc != 0 || length == t->length + TAG);
    return rc;
}

static int unseal(mbedtls_cipher_context_t *ctx, const struct text *t, const uint8_t *in, uint8_t *out) {
    size_t length = 0;
    int rc = mbedtls_cipher_auth_decrypt_ext(ctx, t->nonce, NONCE, t->aad, t->aad_length, in, t->length + TAG,
                                             out, t->length, &length, TAG);
    CHECK(rc != 0 || length == t->length);
    return rc;
}

/* ---- published vectors --------------------------------------------------------------------------------- */

static const struct {
    int cipher;
    const char *key, *nonce, *aad, *plain, *sealed; /* the last with its tag */
} published[] = {
    /* McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 1, 2, 4, 13, 14 and 16 */
    {AES_128, "00000000000000000000000000000000", "000000000000000000000000", "", "",
     "58e2fccefa7e3061367f1d57a4e7455a"},
    {AES_128, "00000000000000000000000000000000", "000000000000000000000000", "",
     "00000000000000000000000000000000", "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf"},
    {AES_128, "feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
     "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aed"
     "f5aa0de657ba637b39",
     "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b"
     "396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47"},
    {AES_256, "0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000",
     "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
    {AES_256, "0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000",
     "", "00000000000000000000000000000000",
     "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"},
    {AES_256, "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
     "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aed"
     "f5aa0de657ba637b39",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e"
     "6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"},
    /* RFC 8439, 2.8.2 */
    {CHACHA20, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", "070000004041424344454647",
     "50515253c0c1c2c3c4c5c6c7",
     "4c616469657320616e642047656e746c656d656e206f662074686520636c617373206f66202739393a20496620492063"
     "6f756c64206f6666657220796f75206f6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73"
     "637265656e20776f756c642062652069742e",
     "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
     "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
     "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"},
};

static size_t unhex(uint8_t *out, size_t room, const char *hex) {
    size_t length = 0;
    CHECK(sodium_hex2bin(out, room, hex, strlen(hex), NULL, &length, NULL) == 0);
    return length;
}

static struct text t; /* for all tests */
static uint8_t out[MOST + TAG + GUARD];

static void test_published(void) {
    for (size_t p = 0; p < COUNT_OF(processors); p++) {
        bool aes = becomes(p);
        CHECK(aead_has_aes() == aes);
        for (size_t i = 0; i < COUNT_OF(published); i++) {
            mbedtls_cipher_context_t ctx;
            (void)unhex(t.key, sizeof(t.key), published[i].key);
            (void)unhex(t.nonce, NONCE, published[i].nonce);
            t.aad_length = unhex(t.aad, sizeof(t.aad), published[i].aad);
            t.length = unhex(t.plain, MOST, published[i].plain);
            CHECK(unhex(t.sealed, MOST, published[i].sealed) == t.length + TAG);
            begin(&ctx, published[i].cipher, t.key);
            CHECK(seal(&ctx, &t, t.plain, out) == 0 && memcmp(out, t.sealed, t.length + TAG) == 0);
            CHECK(unseal(&ctx, &t, t.sealed, out) == 0 && memcmp(out, t.plain, t.length) == 0);
            mbedtls_cipher_free(&ctx);
        }
    }
}

/* ---- all lengths --------------------------------------------------------------------------------------- */

/* A text that Python can make, too. */
static void make_text(size_t length) {
    t.length = length;
    t.aad_length = length % 41;
    for (size_t i = 0; i < sizeof(t.key); i++) t.key[i] = (uint8_t)(i * 5 + length);
    for (size_t i = 0; i < NONCE; i++) t.nonce[i] = (uint8_t)(i * 3 + (length >> 8));
    for (size_t i = 0; i < t.aad_length; i++) t.aad[i] = (uint8_t)(i * 11 + length);
    for (size_t i = 0; i < length; i++) t.plain[i] = (uint8_t)(i * 7 + (i >> 8) * 13 + length);
}

/* Behind 600 each length is of an odd distance; the last are those of whole records. */
static size_t next_length(size_t length) {
    return length < 600 ? length + 1 : length < 16000 ? length + 397 : length < 16372 ? 16372 : length + 1;
}

/* Behind each length: SHA-256 of all that was sealed so far, as pycryptodome 4.4 has it:
 *
 *     from Crypto.Cipher import AES, ChaCha20_Poly1305; from hashlib import sha256
 *     def step(n): return n + 1 if n < 600 else n + 397 if n < 16000 else 16372 if n < 16372 else n + 1
 *     for size in 16, 32, 0:
 *         all, n = sha256(), 0
 *         while n <= 16400:
 *             row = lambda count, f: bytes(f(i) & 255 for i in range(count))
 *             key, nonce = row(size or 32, lambda i: i * 5 + n), row(12, lambda i: i * 3 + (n >> 8))
 *             c = AES.new(key, AES.MODE_GCM, nonce) if size else ChaCha20_Poly1305.new(key=key, nonce=nonce)
 *             c.update(row(n % 41, lambda i: i * 11 + n))
 *             all.update(b"".join(c.encrypt_and_digest(row(n, lambda i: i * 7 + (i >> 8) * 13 + n))))
 *             n = step(n)
 *         print(all.hexdigest()) */
static const char *expected(int cipher) {
    static const char *const digests[CIPHERS] = {
        "724047f376776c4b61b1f2404f7424f98cb46bf6fddf433e58d0a02c5d0ac015",
        "1a94e5e82e03c111d5890c2290c4dcdd1d2ae32daf68a399a50ae26969c91eca",
        "591ad7e21a1f65740f3b941d61eadd03768aa8f8b668209644995244c702b324",
    };
    return digests[cipher];
}

/* What a changed text does: it is refused, and nothing of it is left. */
static void refused(mbedtls_cipher_context_t *ctx, const uint8_t *sealed) {
    memcpy(out, sealed, t.length + TAG);
    CHECK(unseal(ctx, &t, out, out) == MBEDTLS_ERR_CIPHER_AUTH_FAILED);
    CHECK(sodium_is_zero(out, t.length));
}

static void test_changes(mbedtls_cipher_context_t *ctx) {
    for (size_t bit = 0; bit < 8 * TAG; bit++) {
        t.sealed[t.length + bit / 8] ^= (uint8_t)(1 << bit % 8);
        refused(ctx, t.sealed);
        t.sealed[t.length + bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t i = 0; i < t.length; i += 1 + t.length / 5) {
        t.sealed[i] ^= (uint8_t)(1 << i % 8);
        refused(ctx, t.sealed);
        t.sealed[i] ^= (uint8_t)(1 << i % 8);
    }
    for (size_t i = 0; i < t.aad_length; i++) {
        t.aad[i] ^= (uint8_t)(1 << i % 8);
        refused(ctx, t.sealed);
        t.aad[i] ^= (uint8_t)(1 << i % 8);
    }
    t.nonce[NONCE - 1] ^= 1;
    refused(ctx, t.sealed);
    t.nonce[NONCE - 1] ^= 1;
}

static void test_lengths_of(int cipher) {
    crypto_hash_sha256_state all;
    uint8_t digest[32];
    char hex[65];
    (void)crypto_hash_sha256_init(&all);
    for (size_t length = 0; length <= 16400; length = next_length(length)) {
        mbedtls_cipher_context_t ctx;
        make_text(length);
        begin(&ctx, cipher, t.key);
        memset(out, 0x5a, sizeof(out));
        CHECK(seal(&ctx, &t, t.plain, out) == 0);
        CHECK(out[length + TAG] == 0x5a && memcmp(out + length + TAG, out + length + TAG + 1, GUARD - 1) == 0);
        memcpy(t.sealed, out, length + TAG);
        (void)crypto_hash_sha256_update(&all, t.sealed, length + TAG);
        memcpy(out, t.plain, length); /* in place, as TLS does */
        CHECK(seal(&ctx, &t, out, out) == 0 && memcmp(out, t.sealed, length + TAG) == 0);
        CHECK(unseal(&ctx, &t, out, out) == 0 && memcmp(out, t.plain, length) == 0);
        memset(out, 0x5a, sizeof(out));
        CHECK(unseal(&ctx, &t, t.sealed, out) == 0 && memcmp(out, t.plain, length) == 0);
        CHECK(out[length] == 0x5a && memcmp(out + length, out + length + 1, GUARD - 1) == 0);
        if (length < 40 || (length < 600 && length % 64 < 2) || length == 16384) test_changes(&ctx);
        mbedtls_cipher_free(&ctx);
    }
    (void)crypto_hash_sha256_final(&all, digest);
    CHECK(strcmp(sodium_bin2hex(hex, sizeof(hex), digest, sizeof(digest)), expected(cipher)) == 0);
}

static void test_lengths(void) {
    for (size_t p = 0; p < COUNT_OF(processors); p++) {
        (void)becomes(p);
        for (int cipher = 0; cipher < CIPHERS; cipher++) test_lengths_of(cipher);
    }
}

/* ---- chance, beside libsodium -------------------------------------------------------------------------- */

static void test_chance(void) {
    ROUNDS(300) {
        mbedtls_cipher_context_t ctx;
        (void)becomes((size_t)random_below(COUNT_OF(processors)));
        fill(&t.key, sizeof(t.key));
        fill(&t.nonce, sizeof(t.nonce));
        fill(&t.aad, sizeof(t.aad));
        t.aad_length = (size_t)random_below(sizeof(t.aad));
        t.length = (size_t)random_below(2000);
        fill(t.plain, t.length);
        begin(&ctx, CHACHA20, t.key);
        CHECK(seal(&ctx, &t, t.plain, out) == 0);
        (void)crypto_aead_chacha20poly1305_ietf_encrypt(t.sealed, NULL, t.plain, t.length, t.aad, t.aad_length, NULL,
                                                        t.nonce, t.key);
        CHECK(memcmp(out, t.sealed, t.length + TAG) == 0);
        mbedtls_cipher_free(&ctx);
        if (!crypto_aead_aes256gcm_is_available()) continue;
        begin(&ctx, AES_256, t.key);
        CHECK(seal(&ctx, &t, t.plain, out) == 0);
        (void)crypto_aead_aes256gcm_encrypt(t.sealed, NULL, t.plain, t.length, t.aad, t.aad_length, NULL, t.nonce,
                                            t.key);
        CHECK(memcmp(out, t.sealed, t.length + TAG) == 0);
        mbedtls_cipher_free(&ctx);
    }
}

/* ---- what TLS never asks for --------------------------------------------------------------------------- */

static void test_refusals(void) {
    static const mbedtls_cipher_type_t others[] = {MBEDTLS_CIPHER_NONE, MBEDTLS_CIPHER_AES_128_CBC,
                                                   MBEDTLS_CIPHER_AES_128_CCM, MBEDTLS_CIPHER_AES_192_GCM,
                                                   MBEDTLS_CIPHER_CHACHA20};
    for (size_t i = 0; i < COUNT_OF(others); i++) CHECK(!mbedtls_cipher_info_from_type(others[i]));
    mbedtls_cipher_context_t ctx;
    mbedtls_cipher_init(&ctx);
    mbedtls_cipher_free(&ctx); /* of one that was never set up */
    make_text(100);
    for (int cipher = 0; cipher < CIPHERS; cipher++) {
        size_t length = 0;
        begin(&ctx, cipher, t.key);
        CHECK(seal(&ctx, &t, t.plain, t.sealed) == 0);
        for (size_t in_length = 0; in_length < 100 + TAG; in_length++) /* cut short */
            CHECK(mbedtls_cipher_auth_decrypt_ext(&ctx, t.nonce, NONCE, t.aad, t.aad_length, t.sealed, in_length,
                                                  out, 100, &length, TAG) != 0);
        CHECK(mbedtls_cipher_auth_decrypt_ext(&ctx, t.nonce, NONCE, t.aad, t.aad_length, t.sealed, 100 + TAG, out,
                                              99, &length, TAG) == MBEDTLS_ERR_CIPHER_BAD_INPUT_DATA);
        CHECK(mbedtls_cipher_auth_decrypt_ext(&ctx, t.nonce, NONCE, t.aad, t.aad_length, t.sealed, 100 + TAG, out,
                                              100, &length, TAG - 1) == MBEDTLS_ERR_CIPHER_BAD_INPUT_DATA);
        CHECK(mbedtls_cipher_auth_encrypt_ext(&ctx, t.nonce, NONCE, t.aad, t.aad_length, t.plain, 100, out,
                                              99 + TAG, &length, TAG) == MBEDTLS_ERR_CIPHER_BAD_INPUT_DATA);
        CHECK(mbedtls_cipher_auth_encrypt_ext(&ctx, t.nonce, NONCE - 1, t.aad, t.aad_length, t.plain, 100, out,
                                              100 + TAG, &length, TAG) == MBEDTLS_ERR_CIPHER_BAD_INPUT_DATA);
        CHECK(length == 0);
        mbedtls_cipher_free(&ctx);
    }
}

int main(void) {
    static const struct group groups[] = {{"published vectors", test_published},
                                          {"all lengths", test_lengths},
                                          {"chance", test_chance},
                                          {"what is refused", test_refusals}};
    if (sodium_init() < 0) return 1;
    return run_groups(groups, COUNT_OF(groups));
}
