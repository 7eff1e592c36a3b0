/* One round of attempts to connect: see dial.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "dial.h"

#include <stdio.h>
#include <string.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <time.h>

#include <sodium.h>

#include "../provider.h"
#include "openssl_shim.h"
#include "parser_guard.h"
#include "settings.h"
#include "xkey.h"

const char *server_read(struct span server, struct url *url) {
    const char *wrong = url_parse(url, server.at, server.len);
    if (wrong) return wrong;
    if (is_utf8(span_of(url->user)) && is_utf8(span_of(url->password))) return NULL;
    return "has a user or password that is not UTF-8"; /* CONNECT is JSON */
}

const char *server_address(struct span server, char address[URL_ADDRESS_MAX]) {
    struct url url;
    address[0] = 0;
    if (!server_read(server, &url)) url_address(&url, address);
    sodium_memzero(&url, sizeof(url));
    return address;
}

/* Whether a piece of a secret stands in a text: all of it, eight bytes of it in a row, or fifteen of a long
 * one. A single byte stands in any sentence, which gives nothing away. */
static bool has_piece(const char *text, const char *secret) {
    size_t len = secret ? strlen(secret) : 0, piece = MIN(len, 8), step = len > 64 ? 8 : 1;
    for (size_t i = 0; len > 1 && i + piece <= len; i += step)
        if (memmem(text, strlen(text), secret + i, piece)) return true;
    return false;
}

/* Whether a text has a piece of a password or token in it, as it is or as CONNECT has it. */
static __attribute__((noinline)) bool has_password(const char *text, struct span server) {
    struct url url;
    char in_json[URL_ESCAPED(URL_MAX) + 1];
    (void)server_read(server, &url);
    const char *secret = url.has_password ? url.password : url.user;
    (void)url_json_escape(in_json, secret);
    bool found = has_piece(text, secret) || has_piece(text, in_json);
    sodium_memzero(&url, sizeof(url));
    sodium_memzero(in_json, sizeof(in_json));
    return found;
}

const char *without_secrets(const json_t *settings, const char *text) {
    static const char kept_back[] = "(words with a piece of a secret in them)";
    static const char *const keys[] = {"client_jwt", "client_seed"};
    const char *servers = json_string_value(json_object_get(settings, "cluster_uris"));
    struct span server;
    for (size_t i = 0; text && i < COUNT_OF(keys); i++)
        if (has_piece(text, json_string_value(json_object_get(settings, keys[i])))) return kept_back;
    while (text && list_next(&servers, &server))
        if (has_password(text, server)) return kept_back;
    return text;
}

const char *without_place(const char *text) {
    const char *place = text && *text == '(' ? strstr(text, "): ") : NULL;
    return place ? place + 3 : text;
}

/* User, password and token, as nats.c writes them into CONNECT: as it gets them. */
static __attribute__((noinline)) natsStatus set_user(natsOptions *opts, const struct url *url) {
    char user[URL_ESCAPED(URL_MAX) + 2]; /* both, which were one URL */
    char *password = user + url_json_escape(user, url->user) + 1;
    natsStatus s = NATS_OK;
    (void)url_json_escape(password, url->password);
    if (url->has_password) s = natsOptions_SetUserInfo(opts, user, password);
    else if (url->has_user) s = natsOptions_SetToken(opts, user);
    sodium_memzero(user, sizeof(user));
    return s;
}

/* The connection's name, too. */
static __attribute__((noinline)) natsStatus set_name(natsOptions *opts, const char *name) {
    char in_json[URL_ESCAPED(2 * ID_MAX + 24) + 1];
    (void)url_json_escape(in_json, name);
    return natsOptions_SetName(opts, in_json);
}

/* nats.c frees what these two return, so they return copies. */
static natsStatus on_jwt_wanted(char **jwt, char **error, void *settings) {
    (void)error;
    *jwt = strdup(text_at(settings, "client_jwt"));
    return *jwt ? NATS_OK : NATS_NO_MEMORY;
}

static natsStatus on_signature_wanted(char **error, unsigned char **signature, int *len, const char *nonce,
                                      void *settings) {
    (void)error;
    return nats_Sign(text_at(settings, "client_seed"), nonce, signature, len);
}

#define SET(call) s = s == NATS_OK ? (call) : s

/* A user with a JWT, or one that is an nkey. */
static natsStatus set_credentials(natsOptions *o, json_t *settings) {
    const char *seed = text_at(settings, "client_seed");
    char user_key[NKEY_PUBLIC_LEN + 1];
    if (text_at(settings, "client_jwt"))
        return natsOptions_SetUserCredentialsCallbacks(o, on_jwt_wanted, settings, on_signature_wanted,
                                                       settings);
    if (seed && nkey_user_public(span_of(seed), user_key))
        return natsOptions_SetNKey(o, user_key, on_signature_wanted, settings);
    return NATS_OK;
}

static natsStatus set_tls(natsOptions *o, const struct url *url, const json_t *settings) {
    const char *ca = text_at(settings, "tls_ca"), *ca_file = text_at(settings, "tls_ca_file");
    const char *cert = text_at(settings, "tls_cert");
    /* if nobody demands it, the server decides */
    natsStatus s = natsOptions_SetSecure(o, url->tls || demands_tls(settings));
    if (is_true(settings, "tls_first")) SET(natsOptions_TLSHandshakeFirst(o));
    if (ca) SET(natsOptions_SetCATrustedCertificates(o, ca));
    else if (ca_file) SET(natsOptions_LoadCATrustedCertificates(o, ca_file));
    if (cert) SET(natsOptions_SetCertificatesChain(o, cert, text_at(settings, "tls_key")));
    /* last, since natsOptions_SetSecure(false) would take it away */
    SET(natsOptions_SetExpectedHostname(o, url->name));
    return s;
}

/* What to do about a refusal of the server's. protocol: nats-server, errors.go. */
static const char *refusal_hint(const struct dial *d, const struct url *url, const char *text) {
    static const struct {
        const char *said, *hint;
    } known[] = {
        {"maximum connections exceeded",                ": the server is full (its max_connections)"      },
        {"maximum account active connections exceeded", ": the account is full (its limit of connections)"},
        {"User Authentication Expired",                 ": client_jwt has expired, get a new one"         },
        {"User Authentication Revoked",                 ": client_jwt was revoked, get a new one"         },
        {"Account Authentication Expired",              ": the account's JWT on the server has expired"   },
    };
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (strcasestr(text, known[i].said)) return known[i].hint;
    if (!strcasestr(text, "Authorization Violation") && !strcasestr(text, "Authentication Violation"))
        return "";
    if (json_object_get(d->settings, "client_jwt"))
        return ": does the server know client_jwt's account, and is client_seed its seed?";
    if (json_object_get(d->settings, "client_seed")) return ": does the server know the nkey of client_seed?";
    if (url->has_password) return ": are user and password in the URL right?";
    if (url->has_user) return ": is the token in the URL right?";
    return ": it wants client_jwt and client_seed, or user:password@ in the URL";
}

/* Why an attempt failed: what the guard says of it, with the server's first line; else nats.c's text, which
 * may be the server's. */
static const char *attempt_error(const struct dial *d, const struct url *url, natsStatus s, const char *why,
                                 const char *line) {
    static _Thread_local char words[200];
    if (why && !*line) return why;
    if (why) {
        (void)snprintf(words, sizeof(words), "%s \"%s\"", why, without_secrets(d->settings, line));
        return words;
    }
    const char *text = without_place(nats_GetLastError(NULL));
    if (s == NATS_NO_SERVER) return "nobody answers there";
    if (s == NATS_SECURE_CONNECTION_WANTED)
        return "the server does not offer TLS, which tls:// or a key tls_… demands";
    if (!text || !*text) text = natsStatus_GetText(s);
    const char *hint = refusal_hint(d, url, text), *shown = without_secrets(d->settings, text);
    /* a short password is soon found in some word: then nats.c's name for it */
    if (shown != text && s != NATS_ERR) shown = natsStatus_GetText(s);
    (void)snprintf(words, sizeof(words), "%s%s", shown, hint);
    return words;
}

/* One attempt at one address of a server. Returns NULL, or why it failed; counts those where somebody is.
 * *said: what INFO says of servers. */
static const char *dial_address(const struct dial *d, const struct url *url, const struct addrinfo *at,
                                natsConnection **nc, unsigned *answered, struct servers *said) {
    char host[NI_MAXHOST], address[NI_MAXHOST + 10];
    natsOptions *opts = NULL;
    int e = getnameinfo(at->ai_addr, at->ai_addrlen, host, sizeof(host), NULL, 0, NI_NUMERICHOST);
    if (e) return gai_strerror(e);
    (void)snprintf(address, sizeof(address), at->ai_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
                   url->port);
    natsStatus s = natsOptions_Create(&opts);
    /* all of the URL that nats.c gets is a number: it looks no name up, and has the whole time for this one
     * */
    SET(natsOptions_SetURL(opts, address));
    SET(set_user(opts, url));
    SET(set_name(opts, d->name));
    SET(d->options(opts, d->user));
    SET(set_credentials(opts, (json_t *)d->settings));
    SET(set_tls(opts, url, d->settings));
    unsigned timeout_ms = 1000 * (unsigned)number_of(d->settings, "connect_timeout_sec");
    SET(natsOptions_SetTimeout(opts, timeout_ms));
    *said = (struct servers){0};
    guard_connecting(timeout_ms, is_true(d->settings, "tls_first"), said, d->unwanted);
    tls_connecting(timeout_ms, d->unwanted);
    if (s == NATS_OK) s = natsConnection_Connect(nc, opts);
    const char *line, *why = guard_connected(&line);
    natsOptions_Destroy(opts);
    *answered += s != NATS_NO_SERVER;
    if (s == NATS_OK) return NULL;
    if (s == NATS_NO_SERVER && !why) why = guard_cannot_connect(at);
    return attempt_error(d, url, s, why, line);
}

static time_t now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

/* The addresses of a server, from any of them on: in one round all that nobody is at, of those that are
 * silent as many as there is time for (three), and a few of those where somebody does not take us. */
static const char *dial_any(const struct dial *d, const struct url *url, const struct addrinfo *all,
                            natsConnection **nc, struct servers *said) {
    const struct addrinfo *at = all;
    time_t until_s = now_s() + 2 * (time_t)number_of(d->settings, "connect_timeout_sec");
    uint32_t count = 0;
    unsigned answered = 0;
    for (const struct addrinfo *a = all; a; a = a->ai_next) count++;
    for (uint32_t skip = randombytes_uniform(count); skip > 0; skip--) at = at->ai_next ? at->ai_next : all;
    const char *why = dial_address(d, url, at, nc, &answered, said);
    while (why && --count > 0 && answered < ADDRESSES_ANSWERED && !atomic_load(d->unwanted)) {
        if (now_s() > until_s) break;
        at = at->ai_next ? at->ai_next : all;
        why = dial_address(d, url, at, nc, &answered, said);
    }
    return why;
}

/* The configured server number `n`; or one that was named (else NOWHERE), with its user and TLS. On failure
 * NULL, and why, behind what the outcome says already. */
static natsConnection *dial_server(const struct dial *d, size_t n, struct span named) {
    const char *servers = json_string_value(json_object_get(d->settings, "cluster_uris"));
    struct url url;
    struct span server;
    struct servers said;
    struct addrinfo *all = NULL;
    natsConnection *nc = NULL;
    char address[URL_ADDRESS_MAX];
    size_t at = strlen(d->outcome);
    if (!list_item(servers, n, &server)) return NULL;
    const char *why = server_read(server, &url);
    if (!why && named.len && !servers_url(d->named, named, &url)) why = "is no server";
    url_address(&url, address);
    if (!why) why = url_look_up(&url, &all);
    if (!why) why = all ? dial_any(d, &url, all, &nc, &said) : "the name has no address";
    if (all) freeaddrinfo(all);
    sodium_memzero(&url, sizeof(url));
    if (!why) {
        d->named->reached = (unsigned)n;
        d->named->lame_duck = false;
        servers_take(d->named, &said);
        (void)snprintf(d->outcome, d->outcome_size, "%s", address);
        return nc;
    }
    int said_len = snprintf(d->outcome + at, d->outcome_size - at, "%s%s: %s", at ? "; " : "", address, why);
    char *blank = strrchr(d->outcome + at, ' ');
    if ((size_t)said_len >= d->outcome_size - at && blank) *blank = 0; /* cut, but not within a word */
    return NULL;
}

static bool is_configured(const char *servers, struct span named) {
    struct span server;
    char address[URL_ADDRESS_MAX];
    while (list_next(&servers, &server))
        if (strlen(server_address(server, address)) == named.len &&
            strncasecmp(address, named.at, named.len) == 0)
            return true;
    return false;
}

/* The servers that INFO named, as many as there is time for: the configured ones are to have their turn
 * again soon. */
static natsConnection *dial_named(const struct dial *d, const char *servers) {
    time_t until_s = now_s() + 2 * (time_t)number_of(d->settings, "connect_timeout_sec");
    size_t count = count_items(d->named->list);
    size_t first = randombytes_uniform((uint32_t)MAX(count, 1));
    natsConnection *nc = NULL;
    struct span named;
    for (size_t i = 0; !nc && i < count && !atomic_load(d->unwanted) && now_s() <= until_s; i++) {
        (void)list_item(d->named->list, (first + i) % count, &named);
        if (!is_configured(servers, named)) nc = dial_server(d, d->named->from, named);
    }
    return nc;
}

natsConnection *dial(const struct dial *d) {
    const char *servers = json_string_value(json_object_get(d->settings, "cluster_uris"));
    size_t count = count_items(servers);
    natsConnection *nc = NULL;
    d->outcome[0] = 0;
    for (size_t n = 0; !nc && n < count && !atomic_load(d->unwanted); n++)
        nc = dial_server(d, n, (struct span){0});
    if (!nc && !is_true(d->settings, "ignore_discovered")) nc = dial_named(d, servers);
    return nc;
}
