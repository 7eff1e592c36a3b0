/* One round of attempts to connect to one of several NATS servers: names looked up, addresses in turn,
 * passwords kept out of error texts. It waits, so it is for a thread of its own.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DIAL_H
#define DIAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>
#include <nats/nats.h>

#include "servers.h"
#include "text.h"
#include "url.h"

/* What dial() needs; it changes nothing of it but *outcome and, when it has reached a server, *named. */
struct dial {
    const json_t *settings;      /* cluster_uris, credentials, TLS; no text may have a piece of its secrets */
    struct servers *named;       /* those of them that INFO named, on a connection before */
    const atomic_bool *unwanted; /* no further attempt is worth while */
    const char *name; /* of the connection, in the server's list of them: at most 2 * ID_MAX + 24 bytes */
    /* Sets what is neither about the server nor about its user: the event loop, say. */
    natsStatus (*options)(natsOptions *o, void *user);
    void *user;
    char *outcome; /* the server that was reached, or why none was: of each, with its address */
    size_t outcome_size;
};

/* Tries each server in turn, and of each its addresses: from any of them on, so that those of a cluster get
 * their share and a dead one hides no other for long. Those that INFO named come behind the configured ones,
 * from any of them on, too, unless ignore_discovered=true. Returns a connection that the caller owns, or
 * NULL. */
natsConnection *dial(const struct dial *d);

/* Takes a server of a list apart; the caller wipes *url. Returns NULL, or what is wrong with it, as the
 * rest of a sentence that holds nothing of it. */
const char *server_read(struct span server, struct url *url);

/* Where a server of a list is, for people: "host:port". Returns `address`. */
const char *server_address(struct span server, char address[URL_ADDRESS_MAX]);

/* A text of a library, or of a server, for log and health: as it is, unless a piece of a secret of these
 * settings stands in it. NULL stays NULL. */
const char *without_secrets(const json_t *settings, const char *text);

/* nats.c's error text without its file and line. NULL stays NULL. */
const char *without_place(const char *text);

#endif
