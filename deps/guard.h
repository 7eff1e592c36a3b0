/* What stands before nats.c's parser (deps/guard.c). */
#ifndef GUARD_H
#define GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <nats/nats.h>

/* Where in the protocol a server's input is. All zeros for a new connection. */
struct guard {
    /* Whether a message of so many bytes may come; asked for those over GUARD_SMALL. */
    bool (*takes)(void *user, size_t bytes);
    void *user;
    const char *wrong;    /* why nothing more was parsed, in words, or NULL */

    size_t payload, line; /* bytes of a payload still to come; of the line so far */
    uint64_t number;      /* the last word of the line */
    unsigned words;
    char first, last;     /* byte of the line: the first in lower case, 0 behind a payload; and the one before */
};

/* Bytes of a message that is always taken. */
#ifndef GUARD_SMALL
#define GUARD_SMALL (32 * 1024)
#endif

/* What this thread reads next, by natsConnection_ProcessReadEvent, is looked over by this guard. NULL: by none. */
void guard_watch(struct guard *g);

/* Lets nats.c finish with a message that was cut off: it would forget the block that it had for it. For a connection that
 * is closed, before it is destroyed; the message comes out of the parser with zeros at its end. */
void guard_end(struct guard *g, natsConnection *nc);

#endif
