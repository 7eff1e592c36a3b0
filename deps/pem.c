/* pem - see pem.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "pem.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <mbedtls/x509_crt.h>

/* Of OpenSSL's names those that nats.c reads certificates and keys with: deps/openssl_shim.c. */
typedef struct ssl_ctx_st SSL_CTX;
SSL_CTX *SSL_CTX_new(const void *method);
void SSL_CTX_free(SSL_CTX *ctx);
int X509_STORE_add_cert(SSL_CTX *ctx, const char *pem);
int SSL_CTX_load_verify_locations(SSL_CTX *ctx, const char *file, const char *directory);
int SSL_CTX_use_certificate(SSL_CTX *ctx, const char *pem);
int SSL_CTX_use_PrivateKey(SSL_CTX *ctx, const char *pem);
const char *ERR_reason_error_string(unsigned long code);

static size_t pem_tell(const struct listener *to, const char *key, const char *why) {
    char text[FAULT_MAX];
    (void)snprintf(text, sizeof(text), "%s: %s", key, why);
    to->tell(to->user, text);
    return 1;
}

static size_t pem_result(const struct listener *to, const char *key, int ok) {
    return ok ? 0 : pem_tell(to, key, ERR_reason_error_string(0));
}

/* The first certificate whose time is over, or has not come. */
static size_t pem_dates(const struct listener *to, const char *key, const mbedtls_x509_crt *chain) {
    for (const mbedtls_x509_crt *c = chain; c && c->raw.p; c = c->next) {
        char text[100];
        const mbedtls_x509_time *from = &c->valid_from, *until = &c->valid_to;
        if (mbedtls_x509_time_is_past(until))
            (void)snprintf(text, sizeof(text), "a certificate in it has expired on %04d-%02d-%02d",
                           until->year, until->mon, until->day);
        else if (mbedtls_x509_time_is_future(from))
            (void)snprintf(text, sizeof(text), "a certificate in it is valid only from %04d-%02d-%02d on",
                           from->year, from->mon, from->day);
        else continue;
        return pem_tell(to, key, text);
    }
    return 0;
}

static size_t text_dates(const struct listener *to, const char *key, const char *pem) {
    mbedtls_x509_crt chain;
    mbedtls_x509_crt_init(&chain);
    (void)mbedtls_x509_crt_parse(&chain, (const unsigned char *)pem, strlen(pem) + 1);
    size_t faults = pem_dates(to, key, &chain);
    mbedtls_x509_crt_free(&chain);
    return faults;
}

static size_t file_dates(const struct listener *to, const char *key, const char *path) {
    mbedtls_x509_crt chain;
    mbedtls_x509_crt_init(&chain);
    (void)mbedtls_x509_crt_parse_file(&chain, path);
    size_t faults = pem_dates(to, key, &chain);
    mbedtls_x509_crt_free(&chain);
    return faults;
}

/* A text of the settings, if it looks like PEM; else settings_faults() says that it does not. */
static const char *pem_at(const json_t *settings, const char *key) {
    const char *text = text_at(settings, key);
    return text && strstr(text, "-----BEGIN ") && !strstr(text, "\\n") ? text : NULL;
}

size_t pem_faults(const json_t *settings, const struct listener *to) {
    const char *ca = pem_at(settings, "tls_ca"), *ca_file = text_at(settings, "tls_ca_file");
    const char *cert = pem_at(settings, "tls_cert"), *key = pem_at(settings, "tls_key");
    SSL_CTX *ctx = SSL_CTX_new(NULL);
    size_t faults = 0;
    if (!ctx) return pem_tell(to, "tls_ca, tls_cert", ERR_reason_error_string(0));
    if (ca) { /* as the connecting thread has it: the text comes before the file */
        faults += pem_result(to, "tls_ca", X509_STORE_add_cert(ctx, ca)) + text_dates(to, "tls_ca", ca);
    } else if (ca_file && !text_at(settings, "tls_ca")) {
        size_t unread = pem_result(to, "tls_ca_file", SSL_CTX_load_verify_locations(ctx, ca_file, NULL));
        faults += unread ? unread : file_dates(to, "tls_ca_file", ca_file);
    }
    if (cert && key) {
        size_t unread = pem_result(to, "tls_cert", SSL_CTX_use_certificate(ctx, cert));
        faults += unread + text_dates(to, "tls_cert", cert);
        if (!unread) faults += pem_result(to, "tls_key", SSL_CTX_use_PrivateKey(ctx, key));
    }
    SSL_CTX_free(ctx);
    return faults;
}
