/* servers - see servers.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "servers.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static bool is_address(const char *host) {
    struct in_addr a;
    return strchr(host, ':') || inet_pton(AF_INET, host, &a) == 1;
}

/* Takes "host:port" or "[address]:port" apart, which is all that a server writes: no user, no scheme, no
 * path, and no zone of an address, which means nothing on another machine. */
static bool entry_read(struct span entry, struct url *url) {
    for (size_t i = 0; i < entry.len; i++)
        if (!isalnum((unsigned char)entry.at[i]) && !strchr("-._:[]", entry.at[i])) return false;
    return entry.len > 0 && *entry.at != ':' && !url_parse(url, entry.at, entry.len);
}

static bool has(const char *list, const char *address) {
    struct span item;
    while (list_next(&list, &item))
        if (item.len == strlen(address) && strncasecmp(item.at, address, item.len) == 0) return true;
    return false;
}

/* The strings of a JSON array. What has an escape in it is no host, wherever it is taken to end. */
static void list_read(char list[SERVERS_BYTES], struct span array) {
    const char *end = array.at + array.len, *at = array.at, *close;
    char address[URL_ADDRESS_MAX];
    size_t len = 0, count = 0;
    struct url url;
    list[0] = 0;
    for (; count < SERVERS_MAX && (at = memchr(at, '"', (size_t)(end - at))); at = close + 1) {
        at++;
        close = memchr(at, '"', (size_t)(end - at));
        if (!close) return;
        if (!entry_read((struct span){at, (size_t)(close - at)}, &url)) continue;
        url_address(&url, address);
        if (len + 1 + strlen(address) >= SERVERS_BYTES || has(list, address)) continue;
        len += (size_t)sprintf(list + len, "%s%s", len ? "," : "", address);
        count++;
    }
}

void servers_read(struct servers *said, struct span name, struct span value) {
    if (span_is(name, "\"connect_urls\"") && value.len > 0 && *value.at == '[') list_read(said->list, value);
    else if (span_is(name, "\"tls_required\"")) said->tls = span_is(value, "true");
    else if (span_is(name, "\"ldm\"")) said->lame_duck = span_is(value, "true");
}

void servers_take(struct servers *s, const struct servers *said) {
    s->lame_duck |= said->lame_duck;
    if (!*said->list) return; /* one that says nothing of others takes nothing back */
    memcpy(s->list, said->list, sizeof(s->list));
    s->tls = said->tls;
    s->from = s->reached;
}

bool servers_url(const struct servers *s, struct span server, struct url *url) {
    struct url to;
    if (!entry_read(server, &to)) return false;
    if (!is_address(to.host) || is_address(url->name)) memcpy(url->name, to.host, sizeof(url->name));
    memcpy(url->host, to.host, sizeof(url->host));
    memcpy(url->port, to.port, sizeof(url->port));
    url->tls |= s->tls;
    return true;
}
