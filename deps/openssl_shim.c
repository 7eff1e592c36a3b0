/* OpenSSL's names on mbedTLS, for nats.c.
 *
 * Debian's libnats_static.a calls some sixty functions of OpenSSL. This file supplies them, and no
 * more of OpenSSL, over mbedTLS, which is a fraction of the size. Types that nats.c only passes
 * round are our own. Where nats.c on OpenSSL behaves badly this does better: the handshake has a
 * deadline, a failure is said in words, and the system's CAs are loaded only when needed.
 *
 * Threads: a context and its session are made on a connecting thread and the session is then used
 * by the loop. nats.c holds a lock per context during a handshake, so what handshakes of different
 * contexts share is the system's CAs (only read; mbedTLS locks the RSA keys in them) and PSA's
 * random numbers and key slots, which Debian's build locks as well (MBEDTLS_THREADING_PTHREAD).
 * helgrind finds only mbedTLS's self-test statistics (mul_count and the like) written unlocked.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "openssl_shim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <mbedtls/net_sockets.h>
#include <mbedtls/oid.h>
#include <mbedtls/pem.h>
#include <mbedtls/psa_util.h>
#include <mbedtls/sha256.h>
#include <mbedtls/ssl.h>
#include <mbedtls/x509_crt.h>

#include "aead.h"
#include "name_constraints.h"

#if !defined(MBEDTLS_THREADING_C) || !defined(MBEDTLS_SSL_PROTO_TLS1_3)
#error "deps/openssl_shim.c needs an mbedTLS with threads (MBEDTLS_THREADING_C) and TLS 1.3"
#endif

#define RNG mbedtls_psa_get_random, MBEDTLS_PSA_RANDOM_STATE

/* OpenSSL's functions have parameters that mean nothing here. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* ==== words ======================================================================================
 * nats.c builds its error text as "<what> error: " + ERR_reason_error_string(ERR_get_error()),
 * in 256 bytes. So the reason is kept per thread, short, the important part first. */

static _Thread_local char why_text[224] = "no reason known";

/* Certificates and servers supply parts of the text: no control character reaches a log. */
__attribute__((format(printf, 1, 2))) static void why(const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(why_text, sizeof(why_text), format, args);
    va_end(args);
    for (char *c = why_text; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
}

const char *ERR_reason_error_string(unsigned long code) { return why_text; }

/* The alerts of RFC 8446, section 6, that a server ends a session with, and what to do about it. */
static void tell_alert(unsigned char alert) {
    static const char lost[] = ": no cipher in common, or a client certificate is missing";
    static const char cert[] = ": the server wants a client certificate from a CA that it knows";
    static const char late[] = ": the client certificate is no longer good";
    static const struct {
        unsigned char code;
        const char *name, *hint;
    } known[] = {
        {10,  "unexpected message",      ""                                 },
        {20,  "bad record MAC",          ""                                 },
        {22,  "record overflow",         ""                                 },
        {40,  "handshake failure",       lost                               },
        {42,  "bad certificate",         cert                               },
        {49,  "access denied",           ""                                 },
        {43,  "unsupported certificate", cert                               },
        {44,  "certificate revoked",     late                               },
        {45,  "certificate expired",     late                               },
        {46,  "certificate unknown",     cert                               },
        {47,  "illegal parameter",       ""                                 },
        {48,  "unknown CA",              cert                               },
        {50,  "decode error",            ""                                 },
        {51,  "decrypt error",           ""                                 },
        {70,  "protocol version",        ": it does not take TLS 1.2 or 1.3"},
        {71,  "insufficient security",   lost                               },
        {80,  "internal error",          ""                                 },
        {90,  "user canceled",           ""                                 },
        {109, "missing extension",       ""                                 },
        {110, "unsupported extension",   ""                                 },
        {112, "unrecognized name",       ""                                 },
        {116, "certificate required",    cert                               },
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (known[i].code == alert) {
            why("the server refused with TLS alert %u, %s%s", alert, known[i].name, known[i].hint);
            return;
        }
    why("the server refused with TLS alert %u", alert);
}

/* The words for other errors of mbedTLS, if there are any. */
static const char *error_words(int rc) {
    static const struct {
        int rc;
        const char *words;
    } known[] = {
        {MBEDTLS_ERR_SSL_CONN_EOF,             "the server closed the connection during the handshake"},
        {MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY,    "the server ended TLS during the handshake"            },
        {MBEDTLS_ERR_SSL_INVALID_RECORD,
         "the server's answer is not TLS (a plain-text port, or no handshake_first there?)"           },
        {MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION, "the server does not take TLS 1.2 or 1.3"              },
        {MBEDTLS_ERR_SSL_HANDSHAKE_FAILURE,    "no cipher, curve or signature in common"              },
        {MBEDTLS_ERR_SSL_BAD_CERTIFICATE,      "the server's certificate cannot be read"              },
        {MBEDTLS_ERR_SSL_UNEXPECTED_MESSAGE,   "the server broke the TLS protocol"                    },
        {MBEDTLS_ERR_SSL_DECODE_ERROR,         "the server broke the TLS protocol"                    },
        {MBEDTLS_ERR_SSL_ILLEGAL_PARAMETER,    "the server broke the TLS protocol"                    },
        {MBEDTLS_ERR_SSL_BAD_INPUT_DATA,       "the server broke the TLS protocol"                    },
        {MBEDTLS_ERR_SSL_INVALID_MAC,          "a TLS record was changed on its way"                  },
        {MBEDTLS_ERR_SSL_ALLOC_FAILED,         "out of memory"                                        },
        {MBEDTLS_ERR_X509_ALLOC_FAILED,        "out of memory"                                        },
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (known[i].rc == rc) return known[i].words;
    return NULL;
}

/* ==== clock and socket ===========================================================================
 * nats.c hands over a blocking socket for the handshake and a non-blocking one afterwards;
 * MSG_DONTWAIT makes them alike. */

typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_st SSL;

struct ssl_st {
    SSL *next;    /* in the list of live sessions, newest first */
    SSL_CTX *ctx; /* counted: nats.c frees the context before the session */
    mbedtls_ssl_context tls;
    mbedtls_ssl_config conf; /* one each, so that nothing that sessions share is written */
    pthread_mutex_t lock;    /* without an event loop, nats.c reads and writes on two threads */
    int fd;
    bool verify;
    char name[256];       /* whom the certificate must be for; also sent as SNI */
    unsigned char ip[16]; /* the name as an address, if it is one */
    size_t ip_length;     /* 4, 16, or 0 for a host name */
    enum { ALIVE, CLOSED, BROKEN } state;
    int64_t deadline;      /* of the handshake; 0 afterwards */
    bool certificate_told; /* why_text already says what is wrong with the certificate */
    const mbedtls_x509_crt
        *above[MBEDTLS_X509_MAX_INTERMEDIATE_CA + 2]; /* those that were checked, by depth */
    int socket_error;
    bool more;             /* the record that is sent is not the last of its SSL_write */
    size_t pending;        /* length of the record that mbedTLS could not send off yet */
    atomic_bool has_input; /* what tls_has_input answers */
    size_t budget;         /* bytes that this call may still take from the socket */
    size_t ahead_at, ahead_length;
    unsigned char ahead[TLS_READ_AHEAD];
};

static int64_t now_ms(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* A server that refuses sends an alert and closes, and our next write may meet the closed socket
 * before the alert was read. So in the handshake a failed write is passed over: the next read
 * tells the reason. */
static int socket_send(void *arg, const unsigned char *data, size_t length) {
    SSL *s = arg;
    ssize_t n = send(s->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL | (s->more ? MSG_MORE : 0));
    if (n >= 0) return (int)n;
    if (errno == EAGAIN || errno == EINTR) return MBEDTLS_ERR_SSL_WANT_WRITE;
    s->socket_error = errno;
    if (s->deadline != 0) return (int)length;
    return MBEDTLS_ERR_NET_SEND_FAILED;
}

/* Takes bytes from the socket and charges them to the call's budget. A read that came back short
 * has emptied the socket, so it uses the budget up: the next bytes wait for poll, which saves the
 * system call that would only say EAGAIN. The budget also ends a call that a server keeps busy
 * with records that carry no data. */
static int socket_take(SSL *s, unsigned char *data, size_t length) {
    if (s->budget == 0 || (s->deadline != 0 && now_ms() >= s->deadline)) return MBEDTLS_ERR_SSL_WANT_READ;
    ssize_t n = recv(s->fd, data, length, MSG_DONTWAIT);
    if (n < 0) {
        if (errno == EAGAIN || errno == EINTR) return MBEDTLS_ERR_SSL_WANT_READ;
        s->socket_error = errno;
        return MBEDTLS_ERR_NET_RECV_FAILED;
    }
    size_t taken = (size_t)n;
    s->budget = taken < length || taken > s->budget ? 0 : s->budget - taken;
    return (int)n;
}

static int socket_recv(void *arg, unsigned char *data, size_t length) {
    SSL *s = arg;
    if (s->ahead_length == 0) {
        if (length >= sizeof(s->ahead)) return socket_take(s, data, length);
        int n = socket_take(s, s->ahead, sizeof(s->ahead));
        if (n <= 0) return n;
        s->ahead_at = 0;
        s->ahead_length = (size_t)n;
    }
    if (length > s->ahead_length) length = s->ahead_length;
    memcpy(data, s->ahead + s->ahead_at, length);
    s->ahead_at += length;
    s->ahead_length -= length;
    return (int)length;
}

/* ==== files ======================================================================================
 * Paths come from configuration and environment, and what is there may be anything: a pipe that
 * nobody writes into would hold the thread that opens it, and with it a link's slot, for ever. */

enum { FILE_MOST = 2 << 20 };

/* All of a regular file, with a NUL behind it; or NULL, and why. The caller wipes and frees it. */
static char *read_file(const char *path, size_t *length) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat file = {0};
    char *text = NULL;
    ssize_t n = 1;

    if (fd < 0 || fstat(fd, &file) != 0) why("%s", strerror(errno));
    else if (!S_ISREG(file.st_mode)) why("it is no regular file");
    else if (file.st_size > FILE_MOST) why("it is longer than %d bytes", FILE_MOST);
    else if ((text = malloc((size_t)file.st_size + 1)) == NULL) why("out of memory");
    for (*length = 0; text != NULL && n > 0 && *length < (size_t)file.st_size; *length += (size_t)n)
        if ((n = read(fd, text + *length, (size_t)file.st_size - *length)) < 0)
            why("%s", strerror(errno)), n = 0, free(text), text = NULL;
    if (text != NULL) text[*length] = '\0';
    if (fd >= 0) close(fd);
    return text;
}

static void forget_file(char *text, size_t length) {
    if (text != NULL) mbedtls_platform_zeroize(text, length);
    free(text);
}

/* ==== certificates ===============================================================================
 * Parsed with what mbedTLS does not know by itself: name constraints, which certificate_check() sees to. The
 * linker (--wrap, in the Makefile) has the handshake do so with the certificates of a server. */

static int on_extension(void *arg, const mbedtls_x509_crt *crt, const mbedtls_x509_buf *oid, int critical,
                        const unsigned char *at, const unsigned char *end) {
    return is_name_constraints(oid) ? 0 : MBEDTLS_ERR_X509_FEATURE_UNAVAILABLE;
}

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): the linker's name */
int __wrap_mbedtls_x509_crt_parse_der(mbedtls_x509_crt *chain, const unsigned char *der, size_t length);
int __wrap_mbedtls_x509_crt_parse_der(mbedtls_x509_crt *chain, const unsigned char *der, size_t length) {
    /* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
    return mbedtls_x509_crt_parse_der_with_ext_cb(chain, der, length, 1, on_extension, NULL);
}

static const char pem_begin[] = "-----BEGIN CERTIFICATE-----";

/* Adds the certificates of a text to a chain: PEM, with a NUL behind its length; or DER, if there is no PEM
 * in it. What cannot be used is passed over, and counted; *rc is why the last of them cannot. Out of memory
 * is -1. */
static int parse_certificates(mbedtls_x509_crt *chain, const char *text, size_t length, int *rc) {
    int failed = 0;
    size_t used = 0;
    *rc = 0;
    if (strstr(text, pem_begin) == NULL) {
        *rc = __wrap_mbedtls_x509_crt_parse_der(chain, (const unsigned char *)text, length);
        return *rc != 0;
    }
    for (const char *at = strstr(text, pem_begin); at != NULL; at = strstr(at + used, pem_begin)) {
        mbedtls_pem_context pem;
        mbedtls_pem_init(&pem);
        int one = mbedtls_pem_read_buffer(&pem, pem_begin, "-----END CERTIFICATE-----",
                                          (const unsigned char *)at, NULL, 0, &used);
        if (one != 0) used = sizeof(pem_begin) - 1; /* it has no end, or is damaged: look behind it */
        else {
            size_t der_length;
            const unsigned char *der = mbedtls_pem_get_buffer(&pem, &der_length);
            one = __wrap_mbedtls_x509_crt_parse_der(chain, der, der_length);
        }
        mbedtls_pem_free(&pem);
        if (one == MBEDTLS_ERR_X509_ALLOC_FAILED || one == MBEDTLS_ERR_PEM_ALLOC_FAILED) return *rc = one, -1;
        failed += one != 0;
        if (one != 0) *rc = one;
    }
    return failed;
}

/* ==== trusted CAs ================================================================================
 * A link's own CAs replace the system's. Parsed they take twice their text, some 450 kB for the system's, so
 * they exist only while a handshake needs them, and once for all links that name the same text: a reconnect
 * then also sees an updated bundle. */

struct trust {
    struct trust *next;
    unsigned users;
    unsigned char key[32]; /* hash of the text; zeros: the system's */
    mbedtls_x509_crt chain;
};

static struct {
    pthread_mutex_t lock;
    struct trust *first;
} trusted = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Where the usual distributions keep the bundle. */
static const char *const system_bundles[] = {
    "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Alpine, Arch */
    "/etc/pki/tls/certs/ca-bundle.crt",                  /* Fedora, RHEL */
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* RHEL, newer */
    "/etc/ssl/ca-bundle.pem",                            /* SUSE */
    "/etc/ssl/cert.pem",                                 /* Alpine, the BSDs */
};

/* A bundle may hold a certificate that mbedTLS cannot use: one good one is enough. */
static bool system_load(mbedtls_x509_crt *chain) {
    const char *chosen = getenv("SSL_CERT_FILE");
    size_t count = chosen != NULL ? 1 : sizeof(system_bundles) / sizeof(system_bundles[0]);

    for (size_t i = 0; i < count; i++) {
        size_t length;
        int rc;
        char *text = read_file(chosen != NULL ? chosen : system_bundles[i], &length);
        bool good = text != NULL && parse_certificates(chain, text, length, &rc) >= 0 && chain->raw.p != NULL;
        free(text);
        if (good) return true;
        mbedtls_x509_crt_free(chain);
    }
    if (chosen != NULL)
        why("no CA certificates in SSL_CERT_FILE=%s: correct it, or set tls_ca or tls_ca_file", chosen);
    else why("this system has no CA bundle: set tls_ca or tls_ca_file, or SSL_CERT_FILE");
    return false;
}

static int add_certificates(mbedtls_x509_crt *chain, const char *text, size_t length, bool pem);

/* With trusted.lock held. */
static void trust_drop(struct trust *t) {
    struct trust **at = &trusted.first;
    if (--t->users > 0) return;
    while (*at != t) at = &(*at)->next;
    *at = t->next;
    mbedtls_x509_crt_free(&t->chain);
    free(t);
}

static void trust_give_back(struct trust *t) {
    if (t == NULL) return;
    pthread_mutex_lock(&trusted.lock);
    trust_drop(t);
    pthread_mutex_unlock(&trusted.lock);
}

/* The CAs of a text, or the system's (NULL); for trust_give_back(). NULL, and why. */
static struct trust *trust_take(const char *text, size_t length, bool pem) {
    unsigned char key[32] = {0};
    if (text != NULL) (void)mbedtls_sha256((const unsigned char *)text, length, key, 0);
    pthread_mutex_lock(&trusted.lock);
    struct trust *t = trusted.first;
    while (t != NULL && memcmp(t->key, key, sizeof(key)) != 0) t = t->next;
    if (t != NULL) t->users++;
    else if ((t = calloc(1, sizeof(*t))) == NULL) why("out of memory");
    else {
        memcpy(t->key, key, sizeof(key));
        t->users = 1;
        t->next = trusted.first;
        trusted.first = t;
        if (!(text != NULL ? add_certificates(&t->chain, text, length, pem) : system_load(&t->chain)))
            trust_drop(t), t = NULL;
    }
    pthread_mutex_unlock(&trusted.lock);
    return t;
}

/* ==== contexts ===================================================================================
 * What nats.c makes of natsOptions: CAs, certificate, key. It is its own X509_STORE, too. */

struct ssl_ctx_st {
    atomic_int references;
    struct trust *ca;             /* its own, until its handshake is over */
    bool has_ca;                  /* it has, or had, its own */
    mbedtls_x509_crt certificate; /* with its intermediates */
    mbedtls_pk_context key;
};

/* Starts mbedTLS's cryptography, unless it has been started. Where that finds no memory, the next call
 * tries again. */
static psa_status_t crypto_start(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static bool started;
    psa_status_t status = PSA_SUCCESS;
    pthread_mutex_lock(&lock);
    if (!started) {
        status = psa_crypto_init();            /* takes its seed from getrandom */
        (void)mbedtls_ssl_list_ciphersuites(); /* makes a static list at its first call, unlocked */
        started = status == PSA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

/* nats.c takes the beginning of its unique names from here. */
int RAND_bytes(unsigned char *bytes, int length) {
    if (crypto_start() != PSA_SUCCESS) return 0;
    return psa_generate_random(bytes, (size_t)length) == PSA_SUCCESS;
}

SSL_CTX *SSL_CTX_new(const void *method) {
    psa_status_t crypto_status = crypto_start();
    if (crypto_status != PSA_SUCCESS)
        return why("mbedTLS did not start (PSA status %d)", (int)crypto_status), NULL;
    SSL_CTX *ctx = calloc(1, sizeof(*ctx));
    if (ctx == NULL) return why("out of memory"), NULL;
    atomic_init(&ctx->references, 1);
    mbedtls_x509_crt_init(&ctx->certificate);
    mbedtls_pk_init(&ctx->key);
    return ctx;
}

void SSL_CTX_free(SSL_CTX *ctx) {
    if (ctx == NULL || atomic_fetch_sub(&ctx->references, 1) != 1) return;
    trust_give_back(ctx->ca);
    mbedtls_x509_crt_free(&ctx->certificate);
    mbedtls_pk_free(&ctx->key); /* wipes the key */
    free(ctx);
}

static int no_cipher_lists(void) {
    why("cipher lists cannot be set: the choice is TLS 1.3, or TLS 1.2 with ECDHE and AEAD");
    return 0;
}

int SSL_CTX_set_cipher_list(SSL_CTX *ctx, const char *list) { return no_cipher_lists(); }
int SSL_CTX_set_ciphersuites(SSL_CTX *ctx, const char *list) { return no_cipher_lists(); }

/* ==== PEM ========================================================================================
 * Certificates and keys, from memory or from files. For what is in memory, OpenSSL has an object
 * at each step: BIO, X509, EVP_PKEY, and a stack of X509_INFO. Here each of them is simply the
 * caller's text, which nats.c keeps until the last step reads it straight into the context: there
 * is no copy of a key to wipe. OpenSSL with nats.c takes only the first certificate of a chain in
 * memory; here the intermediates come along. A text in which one certificate cannot be used is
 * refused as a whole: half a trust store surprises. */

typedef const char PEM;
typedef struct {
    PEM *x509;          /* cppcheck-suppress unusedStructMember ; nats.c reads these, in OpenSSL's order */
    void *crl, *x_pkey; /* cppcheck-suppress unusedStructMember */
} X509_INFO;

/* What looks at revocation lists is not in Debian's mbedTLS as nats.c uses it: one that is given
 * is not to be passed over in silence. */
static bool has_revocations(const char *text) {
    if (strstr(text, "-----BEGIN X509 CRL-----") == NULL) return false;
    why("revocation lists are not supported: take BEGIN X509 CRL out of it");
    return true;
}

/* Why a certificate cannot be used, as far as mbedTLS says it. */
static const char *certificate_words(int rc) {
    if (error_words(rc) != NULL) return error_words(rc);
    if (rc == MBEDTLS_ERR_PEM_NO_HEADER_FOOTER_PRESENT)
        return "no END CERTIFICATE behind its BEGIN CERTIFICATE";
    if (rc <= MBEDTLS_ERR_PEM_NO_HEADER_FOOTER_PRESENT && rc >= MBEDTLS_ERR_PEM_BAD_INPUT_DATA)
        return "its base64 is damaged: is each line there, and each line end a line end?";
    if (rc == MBEDTLS_ERR_X509_FEATURE_UNAVAILABLE)
        return "it has a critical extension that is not supported";
    if (rc == MBEDTLS_ERR_X509_UNKNOWN_SIG_ALG || rc == MBEDTLS_ERR_PK_UNKNOWN_PK_ALG ||
        rc == MBEDTLS_ERR_PK_UNKNOWN_NAMED_CURVE || rc == MBEDTLS_ERR_X509_UNKNOWN_OID)
        return "it is signed, or has a key, neither by RSA nor by ECDSA (Ed25519 is not supported)";
    return "it is damaged";
}

/* `length` is without the NUL behind it. A file may also be DER. */
static int add_certificates(mbedtls_x509_crt *chain, PEM *text, size_t length, bool pem) {
    int rc, failed;
    if (has_revocations(text)) return 0;
    bool has_begin = strstr(text, pem_begin) != NULL;
    failed = has_begin || !pem ? parse_certificates(chain, text, length, &rc) : 1;
    if (failed < 0) why("out of memory");
    else if (failed > 0 && !has_begin) why("no BEGIN CERTIFICATE that can be read");
    else if (failed == 1 && chain->raw.p == NULL)
        why("its certificate cannot be used: %s", certificate_words(rc));
    else if (failed > 0) why("%d of its certificates cannot be used: %s", failed, certificate_words(rc));
    return failed == 0;
}

static int add_file(mbedtls_x509_crt *chain, const char *path) {
    size_t length;
    char *text = read_file(path, &length);
    int ok = text != NULL && add_certificates(chain, text, length, false);
    free(text);
    return ok;
}

static int set_trust(SSL_CTX *ctx, const char *text, size_t length, bool pem) {
    trust_give_back(ctx->ca);
    ctx->ca = trust_take(text, length, pem);
    ctx->has_ca = true;
    return ctx->ca != NULL;
}

/* nats.c always gives the certificate first. */
static int set_key(SSL_CTX *ctx, PEM *text) {
    mbedtls_pk_free(&ctx->key);
    if (has_revocations(text)) return 0;
    int rc = mbedtls_pk_parse_key(&ctx->key, (const unsigned char *)text, strlen(text) + 1, NULL, 0, RNG);
    if (rc == MBEDTLS_ERR_PK_PASSWORD_REQUIRED)
        why("the private key is encrypted: give it without a pass phrase");
    else if (rc == MBEDTLS_ERR_PK_UNKNOWN_PK_ALG || rc == MBEDTLS_ERR_PK_UNKNOWN_NAMED_CURVE)
        why("the private key is neither RSA nor ECDSA (Ed25519 is not supported)");
    else if (rc != 0) why("no private key that can be read");
    else if (mbedtls_pk_check_pair(&ctx->certificate.pk, &ctx->key, RNG) != 0)
        why("the private key does not belong to the certificate");
    else return 1;
    mbedtls_pk_free(&ctx->key);
    return 0;
}

/* One element, whatever the number of certificates. OpenSSL would take a revocation list and, as
 * nats.c sets it up, never look at it. */
X509_INFO *PEM_X509_INFO_read_bio(PEM *text, void *stack, void *password, void *arg) {
    static _Thread_local X509_INFO info;
    info.x509 = text;
    return has_revocations(text) ? NULL : &info;
}

/* From memory: text to BIO to X509 or EVP_PKEY to the context. A length of -1 means a string. */
PEM *BIO_new_mem_buf(PEM *text, int length) { return text; }
PEM *PEM_read_bio_X509(PEM *bio, void *out, void *password, void *arg) { return bio; }
PEM *PEM_read_bio_PrivateKey(PEM *bio, void *out, void *password, void *arg) { return bio; }
int OPENSSL_sk_num(const X509_INFO *stack) { return stack != NULL ? 1 : -1; }
X509_INFO *OPENSSL_sk_value(X509_INFO *stack, int index) { return stack; }
SSL_CTX *SSL_CTX_get_cert_store(SSL_CTX *ctx) { return ctx; }
int SSL_CTX_use_PrivateKey(SSL_CTX *ctx, PEM *key) { return set_key(ctx, key); }

int X509_STORE_add_cert(SSL_CTX *ctx, PEM *x) { return set_trust(ctx, x, strlen(x), true); }

/* The client's own, with its intermediates. */
int SSL_CTX_use_certificate(SSL_CTX *ctx, PEM *x) {
    mbedtls_x509_crt_free(&ctx->certificate);
    return add_certificates(&ctx->certificate, x, strlen(x), true);
}

/* From files. */
int SSL_CTX_load_verify_locations(SSL_CTX *ctx, const char *file, const char *directory) {
    size_t length;
    char *text = read_file(file, &length);
    int ok = text != NULL && set_trust(ctx, text, length, false);
    free(text);
    return ok;
}

int SSL_CTX_use_certificate_chain_file(SSL_CTX *ctx, const char *file) {
    mbedtls_x509_crt_free(&ctx->certificate);
    return add_file(&ctx->certificate, file);
}

int SSL_CTX_use_PrivateKey_file(SSL_CTX *ctx, const char *file, int type) {
    size_t length;
    char *text = read_file(file, &length);
    int ok = text != NULL && set_key(ctx, text);
    forget_file(text, length);
    return ok;
}

/* ==== the server's certificate ===================================================================
 * mbedTLS checks the chain, the dates and host names. Addresses are checked here, since mbedTLS
 * would send an address it is told to check as SNI as well, which RFC 6066 forbids. */

static bool is_for_address(const SSL *s, const mbedtls_x509_crt *crt) {
    for (const mbedtls_x509_sequence *n = &crt->subject_alt_names; n != NULL; n = n->next)
        if ((n->buf.tag & MBEDTLS_ASN1_TAG_VALUE_MASK) == MBEDTLS_X509_SAN_IP_ADDRESS &&
            n->buf.len == s->ip_length && memcmp(n->buf.p, s->ip, s->ip_length) == 0)
            return true;
    return false;
}

/* A name or an address that a certificate is for, in words; NULL for what is neither. */
static const char *name_words(const mbedtls_x509_buf *name, char address[INET6_ADDRSTRLEN], size_t *length) {
    int kind = name->tag & MBEDTLS_ASN1_TAG_VALUE_MASK;
    *length = name->len;
    if (kind == MBEDTLS_X509_SAN_DNS_NAME) return (const char *)name->p;
    if (kind != MBEDTLS_X509_SAN_IP_ADDRESS || (name->len != 4 && name->len != 16)) return NULL;
    (void)inet_ntop(name->len == 4 ? AF_INET : AF_INET6, name->p, address, INET6_ADDRSTRLEN);
    *length = strlen(address);
    return address;
}

/* The names and addresses a certificate is for, as many as fit. */
static void list_names(const mbedtls_x509_crt *crt, char *text, size_t size) {
    size_t at = 0, length;
    text[0] = '\0';
    for (const mbedtls_x509_sequence *n = &crt->subject_alt_names; n != NULL; n = n->next) {
        char address[INET6_ADDRSTRLEN];
        const char *name = name_words(&n->buf, address, &length);
        if (name == NULL) continue;
        if (at + length + 3 > size) return;
        at += (size_t)snprintf(text + at, size - at, "%s%.*s", at ? ", " : "", (int)length, name);
    }
    if (at == 0 && mbedtls_x509_dn_gets(text, size, &crt->subject) < 0) text[0] = '\0';
}

/* Why a certificate of that name, which is there, does not count as the issuer of `crt`; NULL: there is none,
 * or its signature is another. `below`: certificates between it and the server's. */
static const char *not_an_issuer(const mbedtls_x509_crt *all, const mbedtls_x509_crt *crt, int below) {
    for (const mbedtls_x509_crt *ca = all; ca != NULL; ca = ca->next) {
        if (ca == crt || ca->subject_raw.len != crt->issuer_raw.len ||
            memcmp(ca->subject_raw.p, crt->issuer_raw.p, crt->issuer_raw.len) != 0)
            continue;
        if (!mbedtls_x509_crt_get_ca_istrue(ca)) return "is no CA (basicConstraints)";
        if (mbedtls_x509_crt_check_key_usage(ca, MBEDTLS_X509_KU_KEY_CERT_SIGN) != 0)
            return "may not sign certificates (keyUsage)";
        int most = ca->MBEDTLS_PRIVATE(max_pathlen); /* one more than the certificate says; 0: any */
        if (most > 0 && most < 1 + below) return "allows fewer CAs below it (path length)";
        return "has another key than the one that signed it";
    }
    return NULL;
}

static void tell_untrusted(const SSL *s, const mbedtls_x509_crt *crt, int depth) {
    char issuer[80];
    bool self_signed = crt->issuer_raw.len == crt->subject_raw.len &&
                       memcmp(crt->issuer_raw.p, crt->subject_raw.p, crt->issuer_raw.len) == 0;
    const char *fault = not_an_issuer(s->conf.MBEDTLS_PRIVATE(ca_chain), crt, depth);

    if (fault == NULL) fault = not_an_issuer(crt->next, crt, depth);
    if (mbedtls_x509_dn_gets(issuer, sizeof(issuer), &crt->issuer) <= 0)
        (void)snprintf(issuer, sizeof(issuer), "a long name");
    if (self_signed && depth == 0)
        why("self-signed certificate (%s): give it as tls_ca or tls_ca_file to trust it", issuer);
    else if (fault != NULL) why("unknown CA of the certificate: %s %s", issuer, fault);
    else why("unknown CA of the certificate: %s is not among the trusted CAs (tls_ca, tls_ca_file)", issuer);
}

/* The flags of what mbedTLS looks at besides: see certificate_check() and tell_end(). */
enum { NOT_FOR_SERVERS = MBEDTLS_X509_BADCERT_KEY_USAGE | MBEDTLS_X509_BADCERT_EXT_KEY_USAGE };

static void tell_usage(uint32_t flags) {
    why("the server's certificate is not for servers: its %s lacks %s",
        flags & MBEDTLS_X509_BADCERT_KEY_USAGE ? "keyUsage" : "extendedKeyUsage",
        flags & MBEDTLS_X509_BADCERT_KEY_USAGE ? "digitalSignature" : "serverAuth");
}

/* mbedTLS takes a URI for the host whose name it is, byte for byte; constraints of names do not hold for it,
 * and nobody's certificate has one. */
static bool is_a_uri(const SSL *s, const mbedtls_x509_crt *crt) {
    for (const mbedtls_x509_sequence *n = &crt->subject_alt_names; n != NULL; n = n->next)
        if ((n->buf.tag & MBEDTLS_ASN1_TAG_VALUE_MASK) == MBEDTLS_X509_SAN_UNIFORM_RESOURCE_IDENTIFIER &&
            n->buf.len == strlen(s->name) && strncasecmp((const char *)n->buf.p, s->name, n->buf.len) == 0)
            return true;
    return false;
}

static bool has_names(const mbedtls_x509_crt *crt) {
    return mbedtls_x509_crt_has_ext_type(crt, MBEDTLS_X509_EXT_SUBJECT_ALT_NAME);
}

static void tell_certificate(const SSL *s, const mbedtls_x509_crt *crt, int depth, uint32_t flags) {
    const char *whose = depth == 0 ? "the server's certificate" : "a CA certificate of the server";
    const mbedtls_x509_time *from = &crt->valid_from, *to = &crt->valid_to;
    char names[100];

    if (flags & MBEDTLS_X509_BADCERT_EXPIRED)
        why("%s expired on %04d-%02d-%02d", whose, to->year, to->mon, to->day);
    else if (flags & MBEDTLS_X509_BADCERT_FUTURE)
        why("%s is not yet valid, only from %04d-%02d-%02d (is the clock right?)", whose, from->year,
            from->mon, from->day);
    else if (flags & MBEDTLS_X509_BADCERT_NOT_TRUSTED) tell_untrusted(s, crt, depth);
    else if (flags & MBEDTLS_X509_BADCERT_CN_MISMATCH) {
        list_names(crt, names, sizeof(names));
        if (has_names(crt)) why("wrong name: the certificate is not for '%.80s' but for %s", s->name, names);
        else
            why("wrong name: the certificate has only a common name (%.60s), which does not count: have "
                "'%.80s' put into its subjectAltName",
                names, s->name);
    } else if (flags &
               (MBEDTLS_X509_BADCERT_BAD_MD | MBEDTLS_X509_BADCERT_BAD_PK | MBEDTLS_X509_BADCERT_BAD_KEY))
        why("%s is too weak (SHA-1, RSA below 2048 bits or the like)", whose);
    else if (flags & NOT_FOR_SERVERS) tell_usage(flags);
    else why("%s is not good for a server (flags %#x)", whose, (unsigned)flags);
}

/* Whether the CAs above a certificate allow its names; else why. */
static bool is_within_constraints(SSL *s, const mbedtls_x509_crt *crt, int depth) {
    char name[100], ca[80];
    for (int i = depth + 1; i < (int)(sizeof(s->above) / sizeof(s->above[0])) && s->above[i] != NULL; i++) {
        if (name_constraints_hold(s->above[i], crt, name)) continue;
        if (mbedtls_x509_dn_gets(ca, sizeof(ca), &s->above[i]->subject) <= 0)
            (void)snprintf(ca, sizeof(ca), "a long name");
        why("the name constraints of the CA %s do not allow the certificate: %s", ca, name);
        return false;
    }
    return true;
}

/* mbedTLS calls this for each certificate, the server's own last; the first fault is told. It would take a
 * common name for the name of a host, where there are no others: clients have ceased to (RFC 9525, 6.3). */
static int certificate_check(void *arg, mbedtls_x509_crt *crt, int depth, uint32_t *flags) {
    SSL *s = arg;
    bool named = s->ip_length > 0 ? is_for_address(s, crt) : has_names(crt) && !is_a_uri(s, crt);
    if (depth == 0 && !named) *flags |= MBEDTLS_X509_BADCERT_CN_MISMATCH;
    if (*flags != 0 && !s->certificate_told) {
        tell_certificate(s, crt, depth, *flags);
        s->certificate_told = true;
    }
    if (depth < (int)(sizeof(s->above) / sizeof(s->above[0]))) s->above[depth] = crt;
    if (is_within_constraints(s, crt, depth)) return 0;
    *flags |= MBEDTLS_X509_BADCERT_OTHER;
    s->certificate_told = true;
    return 0;
}

/* ==== sessions ===================================================================================
 * In nats.c's order: SSL_new, SSL_set_ex_data, SSL_set_connect_state, SSL_set_fd, SSL_set1_host,
 * SSL_set_verify, SNI, SSL_do_handshake. */

static struct {
    pthread_mutex_t lock;
    SSL *first;
} live = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Newest first: nats.c closes a descriptor before it frees the session, so two may have one. */
SSL *SSL_new(SSL_CTX *ctx) {
    SSL *s = calloc(1, sizeof(*s));
    if (s == NULL) return why("out of memory"), NULL;
    atomic_fetch_add(&ctx->references, 1);
    s->ctx = ctx;
    s->fd = -1;
    s->verify = true;
    pthread_mutex_init(&s->lock, NULL);
    mbedtls_ssl_init(&s->tls);
    mbedtls_ssl_config_init(&s->conf);

    pthread_mutex_lock(&live.lock);
    s->next = live.first;
    live.first = s;
    pthread_mutex_unlock(&live.lock);
    return s;
}

/* Sends no close_notify: nats.c calls this when the descriptor may already be somebody else's. */
void SSL_free(SSL *s) {
    if (s == NULL) return;
    pthread_mutex_lock(&live.lock);
    SSL **at = &live.first;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    pthread_mutex_unlock(&live.lock);

    mbedtls_ssl_free(&s->tls);
    mbedtls_ssl_config_free(&s->conf);
    pthread_mutex_destroy(&s->lock);
    SSL_CTX_free(s->ctx);
    free(s);
}

int SSL_set_fd(SSL *s, int fd) {
    pthread_mutex_lock(&live.lock);
    s->fd = fd;
    pthread_mutex_unlock(&live.lock);
    return 1;
}

/* Takes the name without the brackets in which nats.c leaves an IPv6 address, and without the dot that ends
 * an absolute name: neither is in a certificate, or belongs into SNI (RFC 6066). */
int SSL_set1_host(SSL *s, const char *host) {
    size_t length = host != NULL ? strlen(host) : 0;
    if (length >= 2 && host[0] == '[' && host[length - 1] == ']') {
        host++;
        length -= 2;
    }
    if (length > 1 && host[length - 1] == '.') length--;
    if (length == 0 || length >= sizeof(s->name)) return why("the server's name is empty or too long"), 0;
    memcpy(s->name, host, length);
    s->name[length] = '\0';
    s->ip_length = inet_pton(AF_INET, s->name, s->ip) == 1    ? 4
                   : inet_pton(AF_INET6, s->name, s->ip) == 1 ? 16
                                                              : 0;
    return 1;
}

/* nats.c's callback only makes a text of its own out of OpenSSL's codes; ours says more. */
void SSL_set_verify(SSL *s, int mode, void *callback) { s->verify = mode != 0; }

/* 55 is SSL_CTRL_SET_TLSEXT_HOSTNAME. The name to verify, where there is one, is the one to ask
 * for as well: a server behind a tls_name of the user's choice is known by that. */
long SSL_ctrl(SSL *s, int command, long number, void *arg) {
    return command == 55 && s->name[0] == '\0' ? SSL_set1_host(s, arg) : 1;
}

/* ==== handshake =============================================================================== */

/* Go's servers, nats-server among them, follow this order as far as AES or ChaCha20 comes first: AES where
 * the processor has instructions for it (deps/aead.c). No CBC, no RSA key exchange. */
#define WITH_AES \
    MBEDTLS_TLS1_3_AES_128_GCM_SHA256, MBEDTLS_TLS1_3_AES_256_GCM_SHA384, \
        MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, MBEDTLS_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, \
        MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, MBEDTLS_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
#define WITH_CHACHA20 \
    MBEDTLS_TLS1_3_CHACHA20_POLY1305_SHA256, MBEDTLS_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, \
        MBEDTLS_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
static const int aes_first[] = {WITH_AES, WITH_CHACHA20, 0};
static const int chacha20_first[] = {WITH_CHACHA20, WITH_AES, 0};

/* mbedTLS's own list has RSA-PSS first, but with TLS 1.2 it cannot take a PSS signature, and most
 * servers follow this order: TLS 1.3 has only PSS for RSA and is not hurt. */
static const uint16_t signatures[] = {
    MBEDTLS_TLS1_3_SIG_ECDSA_SECP256R1_SHA256, MBEDTLS_TLS1_3_SIG_ECDSA_SECP384R1_SHA384,
    MBEDTLS_TLS1_3_SIG_ECDSA_SECP521R1_SHA512, MBEDTLS_TLS1_3_SIG_RSA_PKCS1_SHA256,
    MBEDTLS_TLS1_3_SIG_RSA_PKCS1_SHA384,       MBEDTLS_TLS1_3_SIG_RSA_PKCS1_SHA512,
    MBEDTLS_TLS1_3_SIG_RSA_PSS_RSAE_SHA256,    MBEDTLS_TLS1_3_SIG_RSA_PSS_RSAE_SHA384,
    MBEDTLS_TLS1_3_SIG_RSA_PSS_RSAE_SHA512,    MBEDTLS_TLS1_3_SIG_NONE,
};

/* mbedTLS puts a message of the handshake together in its input buffer, of 16 kB, and says "bad input" of one
 * that is longer. False: it is none. */
static bool tell_too_long(const mbedtls_ssl_context *tls) {
    enum {
        CERTIFICATE = 11,
        CERTIFICATE_REQUEST = 13,
        BEGIN = 8 + 5
    }; /* behind a number, and a record's head */
    size_t length = tls->MBEDTLS_PRIVATE(in_hslen);
    unsigned char kind = tls->MBEDTLS_PRIVATE(in_buf)[BEGIN];
    if (length <= MBEDTLS_SSL_IN_CONTENT_LEN || length > 1 << 20) return false;
    if (kind == CERTIFICATE)
        why("the server's certificates take %zu bytes, and mbedTLS takes no more than 16384: give it a "
            "shorter chain, or certificates with fewer names",
            length);
    else if (kind == CERTIFICATE_REQUEST)
        why("the names of the CAs that the server takes client certificates from take %zu bytes, and mbedTLS "
            "takes no more than 16384: leave in its ca_file only those",
            length);
    return kind == CERTIFICATE || kind == CERTIFICATE_REQUEST;
}

/* Whether it was a KeyUpdate (RFC 8446, 4.6.3) that ended an open session. mbedTLS has none. */
static bool is_key_update(const SSL *s, int rc) {
    return rc == MBEDTLS_ERR_SSL_UNEXPECTED_MESSAGE && s->deadline == 0 &&
           s->tls.MBEDTLS_PRIVATE(in_msgtype) == MBEDTLS_SSL_MSG_HANDSHAKE &&
           s->tls.MBEDTLS_PRIVATE(in_msg)[0] == 24;
}

/* Puts into words why a session ended. Needed after the handshake, too: with TLS 1.3 a server
 * refuses a client's certificate only then. */
static void tell_end(SSL *s, int rc) {
    uint32_t flags = mbedtls_ssl_get_verify_result(&s->tls);
    if (rc == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED && s->certificate_told) return;
    if (rc == MBEDTLS_ERR_SSL_BAD_CERTIFICATE && flags != UINT32_MAX && flags & NOT_FOR_SERVERS) {
        tell_usage(flags);
        return;
    }
    if (rc == MBEDTLS_ERR_SSL_BAD_INPUT_DATA && tell_too_long(&s->tls)) return;
    if (rc == MBEDTLS_ERR_NET_RECV_FAILED || rc == MBEDTLS_ERR_NET_SEND_FAILED)
        why("the connection broke: %s", strerror(s->socket_error));
    else if (rc == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE) tell_alert(s->tls.MBEDTLS_PRIVATE(in_msg)[1]);
    else if (rc == MBEDTLS_ERR_SSL_ILLEGAL_PARAMETER &&
             mbedtls_ssl_get_version_number(&s->tls) == MBEDTLS_SSL_VERSION_TLS1_2)
        why("the server signs TLS 1.2 with RSA-PSS, which is supported for TLS 1.3 only: "
            "enable TLS 1.3 there, or use an ECDSA certificate");
    else if (is_key_update(s, rc))
        why("the server changes its TLS keys (KeyUpdate), which mbedTLS does not follow");
    else if (error_words(rc) != NULL) why("%s", error_words(rc));
    else why("TLS failed (mbedTLS error -%#06x)", (unsigned)-rc);
}

static bool configure(SSL *s, mbedtls_x509_crt *ca) {
    mbedtls_ssl_config *conf = &s->conf;
    SSL_CTX *ctx = s->ctx;
    int rc = mbedtls_ssl_config_defaults(conf, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                         MBEDTLS_SSL_PRESET_DEFAULT);

    mbedtls_ssl_conf_rng(conf, RNG);
    mbedtls_ssl_conf_min_tls_version(conf, MBEDTLS_SSL_VERSION_TLS1_2);
    mbedtls_ssl_conf_max_tls_version(conf, MBEDTLS_SSL_VERSION_TLS1_3);
    mbedtls_ssl_conf_ciphersuites(conf, aead_has_aes() ? aes_first : chacha20_first);
    mbedtls_ssl_conf_sig_algs(conf, signatures);
    mbedtls_ssl_conf_renegotiation(conf, MBEDTLS_SSL_RENEGOTIATION_DISABLED);
    mbedtls_ssl_conf_session_tickets(conf, MBEDTLS_SSL_SESSION_TICKETS_DISABLED);
    mbedtls_ssl_conf_authmode(conf, s->verify ? MBEDTLS_SSL_VERIFY_REQUIRED : MBEDTLS_SSL_VERIFY_NONE);
    mbedtls_ssl_conf_verify(conf, certificate_check, s);
    mbedtls_ssl_conf_ca_chain(conf, ca, NULL);
    if (rc == 0 && mbedtls_pk_get_type(&ctx->key) != MBEDTLS_PK_NONE)
        rc = mbedtls_ssl_conf_own_cert(conf, &ctx->certificate, &ctx->key);
    if (rc == 0) rc = mbedtls_ssl_setup(&s->tls, conf);
    if (rc == 0) rc = mbedtls_ssl_set_hostname(&s->tls, s->ip_length > 0 ? NULL : s->name);
    mbedtls_ssl_set_bio(&s->tls, s, socket_send, socket_recv, NULL);
    if (rc != 0) tell_end(s, rc);
    return rc == 0;
}

/* When the attempt that this thread makes is over; for a program that does not say, 5 s. */
static _Thread_local int64_t attempt_ends, attempt_s = 5;
static _Thread_local const atomic_bool *unwanted; /* the attempt is to end, or NULL */
enum { LOOK_MS = 250 };                           /* how often it is looked at */

void tls_connecting(unsigned ms, const atomic_bool *nobody_waits) {
    unwanted = nobody_waits;
    attempt_s = ms / 1000;
    attempt_ends = now_ms() + ms;
}

/* A deadline for the whole, so that a server that sends a byte a second does not get round it. */
static bool shake_hands(SSL *s) {
    s->deadline = attempt_ends != 0 ? attempt_ends : now_ms() + 1000 * attempt_s;
    for (;;) {
        s->budget = SIZE_MAX;
        int rc = mbedtls_ssl_handshake(&s->tls);
        int64_t left = s->deadline - now_ms();
        if (rc == 0) break;
        if (rc != MBEDTLS_ERR_SSL_WANT_READ && rc != MBEDTLS_ERR_SSL_WANT_WRITE)
            return tell_end(s, rc), false;
        if (unwanted != NULL && atomic_load(unwanted)) return why("it is not wanted any more"), false;
        if (left <= 0) {
            why("the server did not finish the TLS handshake within %d s (connect_timeout_sec)",
                (int)attempt_s);
            return false;
        }
        struct pollfd p = {s->fd, rc == MBEDTLS_ERR_SSL_WANT_READ ? POLLIN : POLLOUT, 0};
        (void)poll(&p, 1, left < LOOK_MS ? (int)left : LOOK_MS);
    }
    s->deadline = 0;
    return true;
}

/* nothing verifies after the handshake: the CAs are given back then, whatever becomes of the session */
int SSL_do_handshake(SSL *s) {
    SSL_CTX *ctx = s->ctx;
    if (s->verify && s->name[0] == '\0')
        return why("there is no name to check the server's certificate against"), -1;
    if (s->verify && !ctx->has_ca) {
        ctx->ca = trust_take(NULL, 0, false);
        if (ctx->ca == NULL) return -1;
    } else if (s->verify && ctx->ca == NULL) return why("its CAs were for one handshake"), -1;
    bool ok = configure(s, ctx->ca != NULL ? &ctx->ca->chain : NULL) && shake_hands(s);
    mbedtls_ssl_conf_ca_chain(&s->conf, NULL, NULL);
    memset(s->above, 0, sizeof(s->above));
    trust_give_back(ctx->ca);
    ctx->ca = NULL;
    return ok ? 1 : -1;
}

/* ==== read and write =============================================================================
 * What nats.c expects of a call that would block: -1, SSL_ERROR_SYSCALL and errno EAGAIN. (At
 * SSL_ERROR_WANT_READ it would wait on the spot, in the middle of the event loop.) */

enum { ERROR_NONE = 0, ERROR_SSL = 1, ERROR_SYSCALL = 5, ERROR_ZERO_RETURN = 6 };
static _Thread_local int last_error; /* of this thread's last SSL_read or SSL_write */

int SSL_get_error(const SSL *s, int result) {
    if (result > 0) return ERROR_NONE;
    errno = last_error == ERROR_SYSCALL ? EAGAIN : EIO;
    return last_error;
}

/* The answer to nats.c: what was done is told first, an end at the next call. */
static int outcome(const SSL *s, size_t done) {
    last_error = s->state == BROKEN ? ERROR_SSL : s->state == CLOSED ? ERROR_ZERO_RETURN : ERROR_SYSCALL;
    if (done > 0) return (int)done;
    return s->state == CLOSED ? 0 : -1;
}

static void end_session(SSL *s, int rc) {
    unsigned char byte;
    if (rc == MBEDTLS_ERR_NET_SEND_FAILED) { /* an alert that is still unread says more */
        s->budget = sizeof(s->ahead);
        int unread = mbedtls_ssl_read(&s->tls, &byte, sizeof(byte));
        if (unread == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE) rc = unread;
    }
    bool closed = rc == 0 || rc == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY || rc == MBEDTLS_ERR_SSL_CONN_EOF;
    s->state = closed ? CLOSED : BROKEN;
    if (closed) why("the server closed the connection");
    else tell_end(s, rc);
}

static bool would_block(int rc) {
    return rc == MBEDTLS_ERR_SSL_WANT_READ || rc == MBEDTLS_ERR_SSL_WANT_WRITE;
}

/* Whether to read on after a read that brought nothing: while poll would not see what is left.
 * (mbedTLS also says WANT_READ after a session ticket, with data of the caller's behind it.) */
static bool read_on(SSL *s, int rc) {
    if (would_block(rc)) return rc == MBEDTLS_ERR_SSL_WANT_READ && s->ahead_length > 0;
    if (rc != MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET) end_session(s, rc);
    return s->state == ALIVE;
}

/* Goes on until the caller's buffer is full or nothing is left that poll would not see. */
int SSL_read(SSL *s, void *buffer, int size) {
    size_t got = 0, room = size > 0 ? (size_t)size : 0;

    pthread_mutex_lock(&s->lock);
    s->budget = room + sizeof(s->ahead);
    while (got < room && s->state == ALIVE) {
        int rc = mbedtls_ssl_read(&s->tls, (unsigned char *)buffer + got, room - got);
        if (rc > 0) got += (size_t)rc;
        else if (!read_on(s, rc)) break;
    }
    s->has_input = s->state != ALIVE ? got > 0 : s->ahead_length > 0 || mbedtls_ssl_get_bytes_avail(&s->tls);
    int result = outcome(s, got);
    pthread_mutex_unlock(&s->lock);
    return result;
}

/* One record. mbedTLS keeps a record that the socket did not take whole, and takes the next call
 * for its repetition: that must be given the length of that record, whatever the caller has by
 * now. It answers with the length written, 0 or an error. Two rarer cases: what it still has to
 * send is not ours (an answer to a renegotiation), or it sent our record off while reading.
 * While more follow, TCP is told so (MSG_MORE): it sends several records as one. */
static int write_record(SSL *s, const unsigned char *data, size_t length) {
    const size_t *unsent = &s->tls.MBEDTLS_PRIVATE(out_left);
    int most = mbedtls_ssl_get_max_out_record_payload(&s->tls);
    int rc = most;

    if (s->pending > 0) {
        if (*unsent == 0) return (int)s->pending;
        length = s->pending;
    } else if (*unsent > 0 && most >= 0)
        rc = mbedtls_ssl_write(&s->tls, data, 0); /* only sends off what is there */
    if (rc < 0) return rc;
    s->more = length > (size_t)most;
    if (length > (size_t)most) length = (size_t)most; /* what is pending has passed here before */
    rc = mbedtls_ssl_write(&s->tls, data, length);
    s->more = false;
    s->pending = rc < 0 && *unsent > 0 ? length : 0;
    return rc;
}

/* Goes on until all is taken or the socket is full: a partial answer makes nats.c move what is
 * left to the front of its buffer each time. */
int SSL_write(SSL *s, const void *data, int size) {
    size_t done = 0, length = size > 0 ? (size_t)size : 0;

    pthread_mutex_lock(&s->lock);
    while (done < length && s->state == ALIVE) {
        if (s->pending > length - done) {
            end_session(s, MBEDTLS_ERR_SSL_BAD_INPUT_DATA); /* nats.c never takes bytes back */
            break;
        }
        int rc = write_record(s, (const unsigned char *)data + done, length - done);
        if (would_block(rc)) break;
        s->pending = 0;
        if (rc > 0) done += (size_t)rc;
        else end_session(s, rc);
    }
    int result = outcome(s, done);
    pthread_mutex_unlock(&s->lock);
    return result;
}

/* ==== the loop's questions ==================================================================== */

const char *tls_version(void) { return MBEDTLS_VERSION_STRING; }

/* With live.lock held. */
static SSL *session_on(int fd) {
    SSL *s = live.first;
    while (s != NULL && s->fd != fd) s = s->next;
    return s;
}

bool tls_has_input(int fd) {
    pthread_mutex_lock(&live.lock);
    const SSL *s = session_on(fd);
    bool has_input = s != NULL && s->has_input;
    pthread_mutex_unlock(&live.lock);
    return has_input;
}

/* ==== names with nothing to do ================================================================ */

/* Set so in any case: a client, TLS 1.2 or later, no partial wildcards; see also "trusted CAs". */
const void *TLS_client_method(void) { return NULL; }
long SSL_CTX_ctrl(SSL_CTX *ctx, int command, long number, void *arg) { return 1; }
int SSL_CTX_set_default_verify_paths(SSL_CTX *ctx) { return 1; }
void SSL_set_connect_state(SSL *s) {}
void SSL_set_hostflags(SSL *s, unsigned flags) {}

/* What nats.c frees that was never made, and the error code that is only a key to why_text. */
int BIO_free(PEM *text) { return 1; }
void X509_free(PEM *text) {}
void EVP_PKEY_free(PEM *text) {}
void X509_INFO_free(X509_INFO *info) {}
void OPENSSL_sk_pop_free(X509_INFO *stack, void (*release)(X509_INFO *)) {}
void *SSL_COMP_get_compression_methods(void) { return NULL; }
void OPENSSL_sk_free(void *stack) {}
unsigned long ERR_get_error(void) { return 1; }

/* Only for a revocation list, which is refused, and for nats.c's verify callback, which is not
 * called here. */
int X509_STORE_add_crl(SSL_CTX *ctx, void *crl) { return 0; }
int SSL_set_ex_data(SSL *s, int index, void *data) { return 1; }
void *SSL_get_ex_data(const SSL *s, int index) { return NULL; }
int SSL_get_ex_data_X509_STORE_CTX_idx(void) { return 0; }
void *X509_STORE_CTX_get_ex_data(const void *store, int index) { return NULL; }
void *X509_STORE_CTX_get_current_cert(const void *store) { return NULL; }
int X509_STORE_CTX_get_error(const void *store) { return 0; }
int X509_STORE_CTX_get_error_depth(const void *store) { return 0; }
const char *X509_verify_cert_error_string(long code) { return ""; }
void *X509_get_subject_name(const void *certificate) { return NULL; }
void *X509_get_issuer_name(const void *certificate) { return NULL; }
char *X509_NAME_oneline(const void *name, char *text, int size) { return text; }
