/* mbedTLS's ChaCha20-Poly1305, done by libsodium.
 *
 * mbedTLS computes it in plain C, one block at a time; libsodium uses the processor's vectors. These
 * are all the functions of mbedTLS's chachapoly.c, so the linker does not take that. TLS encrypts a
 * record whole, and asks for nothing but the two at the end. The context holds the key, where
 * mbedTLS would have it. main() has called sodium_init(), which chooses what suits the processor. */
#include <string.h>

#include <mbedtls/chachapoly.h>
#include <sodium.h>

/* The functions that are not there have parameters all the same. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

static unsigned char *key_in(mbedtls_chachapoly_context *ctx)
{
    return (unsigned char *) &ctx->MBEDTLS_PRIVATE(chacha20_ctx).MBEDTLS_PRIVATE(state)[4];
}

void mbedtls_chachapoly_init(mbedtls_chachapoly_context *ctx) { memset(ctx, 0, sizeof(*ctx)); }

void mbedtls_chachapoly_free(mbedtls_chachapoly_context *ctx)
{
    if (ctx != NULL)
        sodium_memzero(ctx, sizeof(*ctx));
}

int mbedtls_chachapoly_setkey(mbedtls_chachapoly_context *ctx, const unsigned char key[32])
{
    memcpy(key_in(ctx), key, 32);
    return 0;
}

int mbedtls_chachapoly_encrypt_and_tag(mbedtls_chachapoly_context *ctx, size_t length,
                                       const unsigned char nonce[12], const unsigned char *aad,
                                       size_t aad_len, const unsigned char *input,
                                       unsigned char *output, unsigned char tag[16])
{
    return crypto_aead_chacha20poly1305_ietf_encrypt_detached(output, tag, NULL, input, length, aad,
                                                              aad_len, NULL, nonce, key_in(ctx));
}

int mbedtls_chachapoly_auth_decrypt(mbedtls_chachapoly_context *ctx, size_t length,
                                    const unsigned char nonce[12], const unsigned char *aad,
                                    size_t aad_len, const unsigned char tag[16],
                                    const unsigned char *input, unsigned char *output)
{
    int rc = crypto_aead_chacha20poly1305_ietf_decrypt_detached(output, NULL, input, length, tag,
                                                                aad, aad_len, nonce, key_in(ctx));
    return rc == 0 ? 0 : MBEDTLS_ERR_CHACHAPOLY_AUTH_FAILED;
}

/* In pieces: nobody asks for it. */
int mbedtls_chachapoly_starts(mbedtls_chachapoly_context *ctx, const unsigned char nonce[12],
                              mbedtls_chachapoly_mode_t mode)
{
    return MBEDTLS_ERR_CHACHAPOLY_BAD_STATE;
}
int mbedtls_chachapoly_update_aad(mbedtls_chachapoly_context *ctx, const unsigned char *aad,
                                  size_t aad_len)
{
    return MBEDTLS_ERR_CHACHAPOLY_BAD_STATE;
}
int mbedtls_chachapoly_update(mbedtls_chachapoly_context *ctx, size_t len,
                              const unsigned char *input, unsigned char *output)
{
    return MBEDTLS_ERR_CHACHAPOLY_BAD_STATE;
}
int mbedtls_chachapoly_finish(mbedtls_chachapoly_context *ctx, unsigned char mac[16])
{
    return MBEDTLS_ERR_CHACHAPOLY_BAD_STATE;
}
