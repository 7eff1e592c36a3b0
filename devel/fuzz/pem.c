/* The target "pem" of fuzz.c: what deps/openssl_shim.c reads from strangers. Certificates, keys and chains come from configuration,
 * as text or as a file; a certificate also comes from whoever answers as a server, and its names end in words for the log.
 * mbedTLS itself is not instrumented, only our side of it, so the fuzzer's own guidance ends where mbedTLS begins.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>

#include "../../deps/openssl_shim.c"

#define MUST(condition) ((condition) ? (void) 0 : abort())

void fuzz_pem(const uint8_t *data, size_t len);

/* Bytes as the PEM of such an object: so that what changes is what is inside. Returns memory for the caller to free. */
static char *pem_of(const char *kind, const uint8_t *bytes, size_t len)
{
    char begin[64], end[64];
    size_t size = 2 * len + 256, used = 0;
    unsigned char *text = malloc(size);
    (void) snprintf(begin, sizeof(begin), "-----BEGIN %s-----\n", kind);
    (void) snprintf(end, sizeof(end), "-----END %s-----\n", kind);
    MUST(mbedtls_pem_write_buffer(begin, end, bytes, len, text, size, &used) == 0);
    return (char *) text;
}

/* Every failure is said in words that may stand in a log line. */
static void check_words(void)
{
    MUST(strlen(why_text) > 3 && strlen(why_text) < sizeof(why_text));
    for (const char *c = why_text; *c != '\0'; c++)
        MUST((unsigned char) *c >= ' ' && *c != 0x7f);
}

/* A server's certificate, for each kind of fault. */
static void judge(mbedtls_x509_crt *crt, unsigned choice)
{
    static const char *const hosts[] = {"localhost", "127.0.0.1", "[::1]", "a.example"};
    static const uint32_t faults[] = {
        0, MBEDTLS_X509_BADCERT_EXPIRED, MBEDTLS_X509_BADCERT_FUTURE, MBEDTLS_X509_BADCERT_NOT_TRUSTED,
        MBEDTLS_X509_BADCERT_CN_MISMATCH, MBEDTLS_X509_BADCERT_BAD_MD, MBEDTLS_X509_BADCERT_OTHER,
    };
    SSL *s = calloc(1, sizeof(*s));
    uint32_t flags;
    MUST(SSL_set1_host(s, hosts[choice % 4]) == 1);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        for (int depth = 0; depth < 2; depth++) {
            flags = faults[i];
            s->certificate_told = false;
            why("none");
            MUST(certificate_check(s, crt, depth, &flags) == 0 && flags >= faults[i]);
            MUST(s->certificate_told == (flags != 0));
            check_words();
        }
    free(s);
}

/* Text by text, as nats.c does it; then the same from a file, which must come to the same. */
static void load(const char *text, unsigned choice)
{
    char path[64];
    SSL_CTX *ctx = SSL_CTX_new(NULL), *of_file = SSL_CTX_new(NULL);
    int fd = memfd_create("pem", MFD_CLOEXEC);
    MUST(ctx != NULL && of_file != NULL && fd >= 0 && write(fd, text, strlen(text)) == (ssize_t) strlen(text));
    (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (choice & 8) {
        int ok = SSL_CTX_use_certificate(ctx, PEM_read_bio_X509(BIO_new_mem_buf(text, -1), NULL, NULL, NULL));
        MUST(ok == SSL_CTX_use_certificate_chain_file(of_file, path) || strstr(text, "-----BEGIN CERTIFICATE-----") == NULL);
        if (ok && ctx->certificate.raw.p != NULL)
            judge(&ctx->certificate, choice);
    } else if (choice & 16) {
        X509_INFO *info = PEM_X509_INFO_read_bio(BIO_new_mem_buf(text, -1), NULL, NULL, NULL);
        MUST((info == NULL) == (strstr(text, "-----BEGIN X509 CRL-----") != NULL));
        int ok = info != NULL && X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx), OPENSSL_sk_value(info, 0)->x509);
        if (ok)
            MUST(SSL_CTX_load_verify_locations(of_file, path, NULL) == 1 && ctx->ca == of_file->ca);
    } else if (SSL_CTX_use_PrivateKey(ctx, text) == 1) { /* no certificate: no key can belong to it */
        MUST(mbedtls_pk_get_type(&ctx->key) == MBEDTLS_PK_NONE);
    } else {
        MUST(SSL_CTX_use_PrivateKey_file(of_file, path, 1) == 0);
    }
    check_words();
    close(fd);
    SSL_CTX_free(ctx);
    SSL_CTX_free(of_file);
}

/* The first byte chooses: how it is used, and whether the rest is text, or what stands inside of PEM. */
void fuzz_pem(const uint8_t *data, size_t len)
{
    static const char *const kinds[] = {
        "CERTIFICATE", "CERTIFICATE", "RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "X509 CRL",
    };
    if (len == 0)
        return;
    unsigned choice = *data++;
    char *text = choice & 7 ? pem_of(kinds[(choice & 7) - 1], data, --len) : strndup((const char *) data, --len);
    load(text, choice);
    free(text);
}
