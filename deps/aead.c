/* The ciphers of TLS for mbedTLS, by OpenSSL's assembler: AES-GCM and ChaCha20-Poly1305.
 *
 * mbedTLS computes both in C, one block at a time. OpenSSL has them for the vectors and the AES instructions
 * of each processor, in objects of libcrypto.a that stand alone: the linker takes those, and no more of
 * OpenSSL. deps/README.md says why names that are OpenSSL's own are used, and what would replace them.
 *
 * What follows takes the place of mbedTLS's cipher.c: those of its functions that TLS calls, for three
 * ciphers, and for a record as a whole. So the linker does not take cipher.c, nor what it leads to: a dozen
 * other ciphers.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "aead.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MBEDTLS_ALLOW_PRIVATE_ACCESS /* to the fields of its structs */
#include <mbedtls/aes.h>
#include <mbedtls/cipher.h>
#include <sodium.h>

enum { NONCE = 12, TAG = 16 };

/* mbedTLS's functions have parameters that mean nothing here. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* ==== libcrypto.a ================================================================================
 * What is called there, as OpenSSL 3.5 declares it: in openssl/modes.h, and from ChaCha20_ctr32() on in no
 * public header. All numbers are little-endian, as these machines are. */

typedef struct gcm128_context GCM128_CONTEXT;
typedef void block_cipher(const unsigned char in[16], unsigned char out[16], const void *key);
typedef void counter_cipher(const unsigned char *in, unsigned char *out, size_t blocks, const void *key,
                            const unsigned char counter[16]);

GCM128_CONTEXT *CRYPTO_gcm128_new(void *key, block_cipher *block);
void CRYPTO_gcm128_release(GCM128_CONTEXT *gcm);
void CRYPTO_gcm128_setiv(GCM128_CONTEXT *gcm, const unsigned char *nonce, size_t length);
int CRYPTO_gcm128_aad(GCM128_CONTEXT *gcm, const unsigned char *aad, size_t length);
int CRYPTO_gcm128_encrypt(GCM128_CONTEXT *gcm, const unsigned char *in, unsigned char *out, size_t length);
int CRYPTO_gcm128_decrypt(GCM128_CONTEXT *gcm, const unsigned char *in, unsigned char *out, size_t length);
int CRYPTO_gcm128_encrypt_ctr32(GCM128_CONTEXT *gcm, const unsigned char *in, unsigned char *out,
                                size_t length, counter_cipher *cipher);
int CRYPTO_gcm128_decrypt_ctr32(GCM128_CONTEXT *gcm, const unsigned char *in, unsigned char *out,
                                size_t length, counter_cipher *cipher);
void CRYPTO_gcm128_tag(GCM128_CONTEXT *gcm, unsigned char *tag, size_t length);
int CRYPTO_gcm128_finish(GCM128_CONTEXT *gcm, const unsigned char *tag, size_t length); /* 0: it is right */

void ChaCha20_ctr32(unsigned char *out, const unsigned char *in, size_t length, const uint32_t key[8],
                    const uint32_t counter[4]);
size_t Poly1305_ctx_size(void);
void Poly1305_Init(void *poly, const unsigned char key[32]);
void Poly1305_Update(void *poly, const unsigned char *data, size_t length);
void Poly1305_Final(void *poly, unsigned char tag[TAG]); /* wipes it, too */

/* What it takes its memory by. Its own functions would bring in a part of OpenSSL that nothing else needs. */
void *CRYPTO_malloc(size_t size, const char *file, int line);
void *CRYPTO_malloc(size_t size, const char *file, int line) { return malloc(size); }
void CRYPTO_clear_free(void *block, size_t size, const char *file, int line);
void CRYPTO_clear_free(void *block, size_t size, const char *file, int line) {
    if (block != NULL) sodium_memzero(block, size);
    free(block);
}

/* ==== the processor ==============================================================================
 * libcrypto keeps what the processor has in a variable, which its constructor fills at the start of every
 * program, unless the environment says otherwise. In a virtual machine each CPUID may take 20 µs and more. So
 * that constructor is replaced: the processor is asked at the first cipher, and the environment is not. */

#if defined(__x86_64__)

#define AES(name) aesni_##name
extern unsigned OPENSSL_ia32cap_P[];
uint64_t OPENSSL_ia32_cpuid(unsigned *capabilities);
void OPENSSL_cpuid_setup(void);
void OPENSSL_cpuid_setup(void) {}

static void ask_processor(void) {
    uint64_t first = OPENSSL_ia32_cpuid(OPENSSL_ia32cap_P);
    OPENSSL_ia32cap_P[0] = (unsigned)first;
    OPENSSL_ia32cap_P[1] = (unsigned)(first >> 32);
}

static bool has_aes(void) {
    enum { CLMUL = 1 << 1, AESNI = 1 << 25 }; /* of CPUID 1, ECX */
    return (OPENSSL_ia32cap_P[1] & CLMUL) && (OPENSSL_ia32cap_P[1] & AESNI);
}

#elif defined(__aarch64__) || defined(__arm__)

#include <asm/hwcap.h>
#include <sys/auxv.h>

#define AES(name) aes_v8_##name
enum { NEON = 1 << 0, AESE = 1 << 2, PMULL = 1 << 5 }; /* of OpenSSL's crypto/arm_arch.h */
unsigned OPENSSL_armcap_P;

static void ask_processor(void) {
    unsigned long simd = getauxval(AT_HWCAP);
#ifdef __aarch64__
    OPENSSL_armcap_P |= simd & HWCAP_ASIMD ? NEON : 0;
    OPENSSL_armcap_P |= simd & HWCAP_AES ? AESE : 0;
    OPENSSL_armcap_P |= simd & HWCAP_PMULL ? PMULL : 0;
#else
    unsigned long more = getauxval(AT_HWCAP2);
    OPENSSL_armcap_P |= simd & HWCAP_NEON ? NEON : 0;
    OPENSSL_armcap_P |= more & HWCAP2_AES ? AESE : 0;
    OPENSSL_armcap_P |= more & HWCAP2_PMULL ? PMULL : 0;
#endif
}

static bool has_aes(void) { return (OPENSSL_armcap_P & AESE) && (OPENSSL_armcap_P & PMULL); }

#else /* riscv64: libcrypto's constructor asks the kernel. Its AES for that machine is not used. */

static void ask_processor(void) {}
static bool has_aes(void) { return false; }

#endif

bool aead_has_aes(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, ask_processor);
    return has_aes();
}

/* ==== AES-GCM ====================================================================================
 * Without instructions for it AES is mbedTLS's, block by block. */

struct cipher {
    union {
        uint32_t schedule[64]; /* libcrypto's AES_KEY takes 61 */
        mbedtls_aes_context aes;
        uint32_t chacha20_key[8];
    };
    GCM128_CONTEXT *gcm;     /* NULL: ChaCha20-Poly1305 */
    counter_cipher *counter; /* NULL: without AES instructions */
};

#ifdef AES
int AES(set_encrypt_key)(const unsigned char *key, int bits, void *schedule);
block_cipher AES(encrypt);
counter_cipher AES(ctr32_encrypt_blocks);
#endif

static void plain_block(const unsigned char in[16], unsigned char out[16], const void *key) {
    /* It is only read: NOLINTNEXTLINE(performance-no-int-to-ptr) */
    mbedtls_aes_context *aes = (mbedtls_aes_context *)(uintptr_t)key;
    (void)mbedtls_aes_crypt_ecb(aes, MBEDTLS_AES_ENCRYPT, in, out);
}

static int gcm_set_key(struct cipher *c, const unsigned char *key, int bits) {
#ifdef AES
    if (aead_has_aes()) {
        (void)AES(set_encrypt_key)(key, bits, c->schedule);
        c->counter = AES(ctr32_encrypt_blocks);
        c->gcm = CRYPTO_gcm128_new(c->schedule, AES(encrypt));
    } else
#endif
    {
        mbedtls_aes_init(&c->aes);
        int rc = mbedtls_aes_setkey_enc(&c->aes, key, (unsigned)bits);
        if (rc != 0) return rc;
        c->gcm = CRYPTO_gcm128_new(&c->aes, plain_block);
    }
    return c->gcm != NULL ? 0 : MBEDTLS_ERR_CIPHER_ALLOC_FAILED;
}

/* Of a text of any length that a record can have, which is far below what GCM takes: nothing fails. */
static void gcm_crypt(struct cipher *c, bool encrypt, size_t length, const unsigned char *nonce,
                      const unsigned char *aad, size_t aad_length, const unsigned char *in,
                      unsigned char *out) {
    CRYPTO_gcm128_setiv(c->gcm, nonce, NONCE);
    (void)CRYPTO_gcm128_aad(c->gcm, aad, aad_length);
    if (c->counter == NULL)
        (void)(encrypt ? CRYPTO_gcm128_encrypt : CRYPTO_gcm128_decrypt)(c->gcm, in, out, length);
    else
        (void)(encrypt ? CRYPTO_gcm128_encrypt_ctr32 : CRYPTO_gcm128_decrypt_ctr32)(c->gcm, in, out, length,
                                                                                    c->counter);
}

/* ==== ChaCha20-Poly1305 ==========================================================================
 * RFC 8439, 2.8. The first block of ChaCha20 is the key of Poly1305; the tag is of what is encrypted. */

static void chacha_crypt(const struct cipher *c, bool encrypt, size_t length, const unsigned char *nonce,
                         const unsigned char *aad, size_t aad_length, const unsigned char *in,
                         unsigned char *out, unsigned char tag[TAG]) {
    static const unsigned char zeros[64];
    _Alignas(16) unsigned char poly[512], block[64];
    uint32_t counter[4] = {0};
    uint64_t lengths[2] = {aad_length, length};

    if (Poly1305_ctx_size() > sizeof(poly)) abort();
    memcpy(counter + 1, nonce, NONCE);
    ChaCha20_ctr32(block, zeros, sizeof(block), c->chacha20_key, counter);
    Poly1305_Init(poly, block);
    Poly1305_Update(poly, aad, aad_length);
    Poly1305_Update(poly, zeros, -aad_length % TAG);
    counter[0] = 1;
    if (encrypt) ChaCha20_ctr32(out, in, length, c->chacha20_key, counter);
    Poly1305_Update(poly, encrypt ? out : in, length);
    if (!encrypt) ChaCha20_ctr32(out, in, length, c->chacha20_key, counter);
    Poly1305_Update(poly, zeros, -length % TAG);
    Poly1305_Update(poly, (const unsigned char *)lengths, sizeof(lengths));
    Poly1305_Final(poly, tag);
    sodium_memzero(block, sizeof(block));
}

/* ==== mbedTLS's cipher.c ======================================================================= */

const mbedtls_cipher_info_t *mbedtls_cipher_info_from_type(const mbedtls_cipher_type_t type) {
#define CIPHER(cipher, cipher_mode, bits) \
    { \
        .name = #cipher, .type = MBEDTLS_CIPHER_##cipher, .mode = MBEDTLS_MODE_##cipher_mode, \
        .key_bitlen = (bits) >> MBEDTLS_KEY_BITLEN_SHIFT, .iv_size = NONCE >> MBEDTLS_IV_SIZE_SHIFT \
    }
    static const mbedtls_cipher_info_t known[] = {
        CIPHER(AES_128_GCM, GCM, 128),
        CIPHER(AES_256_GCM, GCM, 256),
        CIPHER(CHACHA20_POLY1305, CHACHAPOLY, 256),
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (known[i].type == type) return &known[i];
    return NULL;
}

void mbedtls_cipher_init(mbedtls_cipher_context_t *ctx) { memset(ctx, 0, sizeof(*ctx)); }

void mbedtls_cipher_free(mbedtls_cipher_context_t *ctx) {
    struct cipher *c = ctx->cipher_ctx;
    if (c == NULL) return;
    CRYPTO_gcm128_release(c->gcm);
    CRYPTO_clear_free(c, sizeof(*c), NULL, 0);
    ctx->cipher_ctx = NULL;
}

int mbedtls_cipher_setup(mbedtls_cipher_context_t *ctx, const mbedtls_cipher_info_t *info) {
    ctx->cipher_info = info;
    ctx->cipher_ctx = calloc(1, sizeof(struct cipher));
    return ctx->cipher_ctx != NULL ? 0 : MBEDTLS_ERR_CIPHER_ALLOC_FAILED;
}

int mbedtls_cipher_setkey(mbedtls_cipher_context_t *ctx, const unsigned char *key, int bits,
                          const mbedtls_operation_t operation) {
    struct cipher *c = ctx->cipher_ctx;
    if (ctx->cipher_info->mode == MBEDTLS_MODE_GCM) return gcm_set_key(c, key, bits);
    (void)aead_has_aes(); /* asks the processor */
    memcpy(c->chacha20_key, key, sizeof(c->chacha20_key));
    return 0;
}

/* In place, or not: `in` and `out` are the same, or do not touch. The tag stands behind what is encrypted. */
int mbedtls_cipher_auth_encrypt_ext(mbedtls_cipher_context_t *ctx, const unsigned char *nonce,
                                    size_t nonce_length, const unsigned char *aad, size_t aad_length,
                                    const unsigned char *in, size_t length, unsigned char *out, size_t room,
                                    size_t *out_length, size_t tag_length) {
    struct cipher *c = ctx->cipher_ctx;
    if (nonce_length != NONCE || tag_length != TAG || room < TAG || length > room - TAG)
        return MBEDTLS_ERR_CIPHER_BAD_INPUT_DATA;
    if (c->gcm == NULL) chacha_crypt(c, true, length, nonce, aad, aad_length, in, out, out + length);
    else {
        gcm_crypt(c, true, length, nonce, aad, aad_length, in, out);
        CRYPTO_gcm128_tag(c->gcm, out + length, TAG);
    }
    *out_length = length + TAG;
    return 0;
}

/* A text whose tag is wrong is wiped, so that nobody reads what an attacker made of it. */
int mbedtls_cipher_auth_decrypt_ext(mbedtls_cipher_context_t *ctx, const unsigned char *nonce,
                                    size_t nonce_length, const unsigned char *aad, size_t aad_length,
                                    const unsigned char *in, size_t in_length, unsigned char *out,
                                    size_t room, size_t *out_length, size_t tag_length) {
    struct cipher *c = ctx->cipher_ctx;
    if (nonce_length != NONCE || tag_length != TAG || in_length < TAG || in_length - TAG > room)
        return MBEDTLS_ERR_CIPHER_BAD_INPUT_DATA;
    size_t length = in_length - TAG;
    bool right;
    if (c->gcm == NULL) {
        unsigned char tag[TAG];
        chacha_crypt(c, false, length, nonce, aad, aad_length, in, out, tag);
        right = sodium_memcmp(tag, in + length, TAG) == 0;
    } else {
        gcm_crypt(c, false, length, nonce, aad, aad_length, in, out);
        right = CRYPTO_gcm128_finish(c->gcm, in + length, TAG) == 0;
    }
    if (!right) {
        sodium_memzero(out, length);
        return MBEDTLS_ERR_CIPHER_AUTH_FAILED;
    }
    *out_length = length;
    return 0;
}
