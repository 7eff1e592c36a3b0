/* What stands before nats.c's parser (deps/parser_guard.c).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef PARSER_GUARD_H
#define PARSER_GUARD_H

#include <netdb.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <nats/nats.h>

#include "servers.h"

/* Where in the protocol a server's input is. All zeros for a new connection. */
struct guard {
    /* A message has come, on whatever subscription: it is the callee's, for natsMsg_free(). */
    void (*message)(void *user, natsMsg *msg);
    /* Whether one of so many bytes may come; asked for those over GUARD_SMALL. If not, or if there is no
     * memory for it, it is passed over, and so is one that has a byte in its line that C takes for the end
     * (`why`; else NULL). `skipped` is told what it was; there may be no reply. */
    bool (*takes)(void *user, size_t bytes);
    void (*skipped)(void *user, const char *subject, const char *reply, size_t bytes, const char *why);
    /* The server refuses something, a publish or a subscription, and the connection stands. */
    void (*refused)(void *user, const char *text);
    void *user;
    struct servers *named; /* what its INFO says of servers is taken over here */
    const char *wrong;     /* why nothing more was parsed, in words, or NULL */
    size_t wipe;           /* set while a message is taken: so much of its buffer is then wiped */
    size_t sid;            /* of that message, or of the one that is passed over; 0: none of ours */

    bool in_message;   /* the line of a message was read, and not yet the line end behind its payload */
    natsMsg *msg;      /* it; NULL: it is passed over */
    size_t head, body; /* bytes still to come of its headers, and of its body */
    size_t held;       /* bytes at the read buffer's beginning that wait for more */
    size_t line;       /* bytes so far of a line that is no message's, */
    unsigned words;    /* and its words */
    char first, last;  /* its first byte, in lower case; its last so far */
};

/* Bytes of a message that is always taken. */
#ifndef GUARD_SMALL
#define GUARD_SMALL (32 * 1024)
#endif

/* How long one that said nothing is listened to, after it was asked what it is. */
enum { GUARD_ASK_MS = 300 };

/* How often an attempt looks whether it is wanted still. */
enum { GUARD_LOOK_MS = 250 };

/* From here to guard_connected() this thread makes a connection: what it waits for comes within so many
 * milliseconds, and what the server says is a line of at most GUARD_SMALL bytes, then one of at most 4,096.
 * `tls_first`: TLS comes before them. What INFO says of servers comes to *said; a server that says that it
 * will close is not taken. It ends early when *unwanted is set. */
void guard_connecting(unsigned ms, bool tls_first, struct servers *said, const atomic_bool *unwanted);

/* Why the attempt ended, in words; or NULL, and nats.c knows. *line: what stood where INFO should be, cut, or
 * "": bytes of the server, which may repeat a password that an earlier attempt told it. */
const char *guard_connected(const char **line);

/* Why no connection to this address can even begin, or NULL: one did. nats.c forgets that. */
const char *guard_cannot_connect(const struct addrinfo *at);

/* Leaves of an INFO's JSON what nats.c needs and can be given, in its place; and reads what it says of
 * servers. Returns its length, or 0: it is no object. */
size_t guard_info(char *json, size_t len, struct servers *said);

/* What this thread reads next, by natsConnection_ProcessReadEvent, goes through this guard. NULL: through
 * none. */
void guard_watch(struct guard *g);

/* Forgets a message that was cut off, for a connection that is closed. */
void guard_end(struct guard *g);

#endif
