/* servers - the servers that a server's INFO names beside itself, for one connection.
 *
 * A cluster tells its clients where its other servers are, and that one of them will close ("lame duck
 * mode"): in the first INFO, and in others at any time. nats.c hears of neither, see deps/dial.h and
 * parser_guard.h. Whoever can write an INFO may write anything: so a list is short, and holds nothing but
 * hosts and ports. protocol: NATS, "Client Protocol", INFO: connect_urls, ldm.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SERVERS_H
#define SERVERS_H

#include <stdbool.h>
#include <stddef.h>

#include "text.h"
#include "url.h"

enum {
    SERVERS_MAX = 16,     /* of those that INFO names, the first so many */
    SERVERS_BYTES = 1024, /* of all of them together */
};

struct servers {
    char list[SERVERS_BYTES]; /* host:port, with commas between; or "" */
    bool tls;                 /* the server that named them demands TLS */
    unsigned from;            /* number of the configured server whose user and TLS they get */
    unsigned reached;         /* number of the configured server whose user and TLS the connection has */
    bool lame_duck;           /* the connection's server will close */
};

/* Reads one field of an INFO, with its quotes and as JSON: those of no interest are passed over. */
void servers_read(struct servers *said, struct span name, struct span value);

/* Takes over what a whole INFO has said: a list, unless that is empty; and whether the server will close. */
void servers_take(struct servers *s, const struct servers *said);

/* Makes of the URL of the configured server number `from` that of one of the list: with the same user, at
 * least the same TLS, and a certificate for its own name; or, if an address is all that is known of it, for
 * the same name. False: it is none. */
bool servers_url(const struct servers *s, struct span server, struct url *url);

#endif
