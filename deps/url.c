/* url - see url.h: no part of a URL is used that was not checked, and none of a wrong one is said.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "url.h"

#include <ctype.h>
#include <errno.h>
#include <nss.h>
#include <pthread.h>
#include <resolv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

struct url_part {
    const char *at, *end;
};

static bool url_is_scheme(struct url_part p, const char *name) {
    return (size_t)(p.end - p.at) == strlen(name) && strncasecmp(p.at, name, strlen(name)) == 0;
}

static const char *url_take_scheme(struct url *url, struct url_part *rest) {
    const char *end = memmem(rest->at, (size_t)(rest->end - rest->at), "://", 3);
    if (!end) return NULL;
    struct url_part scheme = {rest->at, end};
    rest->at = end + 3;
    url->tls = url_is_scheme(scheme, "tls");
    return url->tls || url_is_scheme(scheme, "nats") ? NULL : "does not begin with nats:// or tls://";
}

static int url_hex_digit(char c) { return isdigit((unsigned char)c) ? c - '0' : (c | 0x20) - 'a' + 10; }

/* User or password; `out` has room for URL_MAX bytes and a NUL. */
static const char *url_decode(struct url_part p, char *out) {
    for (; p.at < p.end; p.at++) {
        char c = *p.at;
        if (c == '%') {
            if (p.end - p.at < 3 || !isxdigit((unsigned char)p.at[1]) || !isxdigit((unsigned char)p.at[2]))
                return "has a % in its user or password without two hex digits behind it: write %25 for a %";
            c = (char)(url_hex_digit(p.at[1]) << 4 | url_hex_digit(p.at[2]));
            if (!c) return "has %00 in its user or password, which NATS does not allow";
            p.at += 2;
        }
        *out++ = c;
    }
    *out = 0;
    return NULL;
}

static const char *url_take_user(struct url *url, struct url_part *rest) {
    const char *at = memrchr(rest->at, '@', (size_t)(rest->end - rest->at));
    if (!at) return NULL;
    const char *colon = memchr(rest->at, ':', (size_t)(at - rest->at));
    struct url_part user = {rest->at, colon ? colon : at}, password = {colon ? colon + 1 : at, at};
    url->has_user = rest->at < at;
    url->has_password = colon;
    rest->at = at + 1;
    const char *wrong = url_decode(user, url->user);
    return wrong ? wrong : url_decode(password, url->password);
}

static bool url_is_host(struct url_part host) {
    for (const char *c = host.at; c < host.end; c++)
        if (!isalnum((unsigned char)*c) && !strchr("-._", *c)) return false;
    return true;
}

/* An IPv6 address, perhaps with a zone: fe80::1%eth0. Whether it is one, the look-up tells. */
static bool url_is_ipv6(struct url_part host) {
    const char *zone = memchr(host.at, '%', (size_t)(host.end - host.at));
    for (const char *c = host.at; c < (zone ? zone : host.end); c++)
        if (!isxdigit((unsigned char)*c) && !strchr(":.", *c)) return false;
    bool has_colon = memchr(host.at, ':', (size_t)(host.end - host.at));
    return has_colon && (!zone || url_is_host((struct url_part){zone + 1, host.end}));
}

static const char *url_take_port(struct url *url, struct url_part port) {
    size_t len = (size_t)(port.end - port.at);
    bool ok = len < sizeof(url->port);
    for (const char *c = port.at; c < port.end; c++) ok &= isdigit((unsigned char)*c) != 0;
    if (ok && len > 0) memcpy(url->port, port.at, len);
    else strcpy(url->port, "4222");
    unsigned long number = strtoul(url->port, NULL, 10);
    if (ok && number >= 1 && number <= 65535) return NULL;
    return "has a port that is no number from 1 to 65535 (an IPv6 address stands in [ ])";
}

/* What stands behind the port, a path, is passed over, as nats.c does. */
static const char *url_take_host(struct url *url, struct url_part rest) {
    rest.end = rest.at + strcspn(rest.at, "/?#");
    if (rest.at == rest.end) return "has no host";
    size_t len = (size_t)(rest.end - rest.at);
    bool ipv6 = *rest.at == '[';
    const char *end = memchr(rest.at, ipv6 ? ']' : ':', len);
    struct url_part host = {rest.at + ipv6, end ? end : rest.end};
    struct url_part port = {end ? end + ipv6 : rest.end, rest.end};
    if ((ipv6 && !end) || (port.at < port.end && *port.at++ != ':'))
        return "has a host with a [ but no ] before the port";
    len = (size_t)(host.end - host.at);
    if (len >= sizeof(url->host)) return "has a host that is too long";
    if (ipv6 ? !url_is_ipv6(host) : !url_is_host(host))
        return "has a host that is neither a name nor an address (is there an @ before it?)";
    if (len > 0) memcpy(url->host, host.at, len);
    else strcpy(url->host, "localhost"); /* of :4222, as nats.c has it */
    return url_take_port(url, port);
}

const char *url_parse(struct url *url, const char *text, size_t len) {
    char copy[URL_MAX + 1]; /* with a NUL behind it */
    memset(url, 0, sizeof(*url));
    if (len > URL_MAX) return "is longer than 1,000 bytes";
    if (len == 0) return "is empty";
    memcpy(copy, text, len);
    copy[len] = 0;
    struct url_part rest = {copy, copy + len};
    const char *wrong = NULL;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)copy[i] <= ' ' || copy[i] == 0x7f)
            wrong = "has a space or a control character in it: write %20 for a space";
    wrong = wrong ?: url_take_scheme(url, &rest) ?: url_take_user(url, &rest) ?: url_take_host(url, rest);
    explicit_bzero(copy, sizeof(copy));
    memcpy(url->name, url->host, sizeof(url->name));
    return wrong;
}

void url_address(const struct url *url, char out[URL_ADDRESS_MAX]) {
    (void)snprintf(out, URL_ADDRESS_MAX, strchr(url->host, ':') ? "[%s]:%s" : "%s:%s", url->host, url->port);
}

size_t url_json_escape(char *out, const char *text) {
    const char *begin = out;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') *out++ = '\\';
        if (c >= ' ') *out++ = (char)c;
        else out += sprintf(out, "\\u%04x", c);
    }
    *out = 0;
    return (size_t)(out - begin);
}

/* Why a name was not found. */
static const char *look_up_words(int e) {
    int error = errno, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) return "no file descriptor is left: raise ulimit -n";
    if (fd >= 0) (void)close(fd);
    switch (e) {
    case EAI_SYSTEM:
        return strerror(error);
    case EAI_NONAME:
        return "no such name: is it right, and do the name servers of /etc/resolv.conf know it?";
    case EAI_NODATA:
        return "the name has no address";
    case EAI_AGAIN:
        return "no name server answers, or none that can (see /etc/resolv.conf): name resolution failed";
    case EAI_FAIL:
        return "the name server fails, or refuses to answer";
    case EAI_MEMORY:
        return "out of memory";
    default:
        return gai_strerror(e);
    }
}

/* Of a statically linked glibc, only what is linked in may be asked for names: else it would load modules. */
static void choose_sources(void) { __nss_configure_lookup("hosts", "files dns"); }

/* An answer that was cut short, though it may be longer than in 1983 (EDNS), is taken as it is, since
 * glibc would wait for the rest of it without an end. */
const char *url_look_up(const struct url *url, struct addrinfo **all) {
    static const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    static const struct addrinfo numbers = {.ai_socktype = SOCK_STREAM,
                                            .ai_flags = AI_NUMERICSERV | AI_NUMERICHOST};
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (getaddrinfo(url->host, url->port, &numbers, all) == 0) return NULL; /* an address: no file is read */
    (void)pthread_once(&once, choose_sources);
    if (res_init() == 0) { /* _res is this thread's alone */
        if (_res.retrans == RES_TIMEOUT) _res.retrans = URL_DNS_S;
        _res.options |= RES_USE_EDNS0 | RES_IGNTC;
    }
    int e = getaddrinfo(url->host, url->port, &hints, all);
    if (e && _res.options & RES_USE_EDNS0) { /* some name servers refuse it, or do not answer */
        _res.options &= ~(unsigned long)RES_USE_EDNS0;
        e = getaddrinfo(url->host, url->port, &hints, all);
    }
    if (!e) return NULL;
    *all = NULL;
    return look_up_words(e);
}
