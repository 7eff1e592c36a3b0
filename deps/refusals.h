/* refusals - what a server does not let a user do, on a connection that goes on: it says so some time later.
 *
 * protocol: nats-server, client.go: `Permissions Violation for Publish to "x"`, `… for Subscription to "x"`,
 * `… to "x" using queue "q"`; and after a change of the permissions `… to "x" (sid "7")` for each
 * subscription that it has ended.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef REFUSALS_H
#define REFUSALS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../provider.h"
#include "text.h"

/* A server's error text, read. */
struct refusal {
    bool subscription;              /* else a publish */
    char subject[SUBJECT_MAX + 1];  /* or, if the text names none, the text; cut if it is longer */
    char item[2 * SUBJECT_MAX + 2]; /* the subject, or "subject|queue" */
    int64_t sid;                    /* of the subscription that was ended; 0: it was refused when it came */
};
void refusal_read(const char *text, struct refusal *r);

/* Publishes of a connection that were refused. One is over when a later one to that subject was taken, or
 * REFUSAL_KEPT_MS after the last: many subjects have a number in them, and come but once. So long is enough
 * for a host, which asks for health each 30 s, and for a person who was called. All zeros: none. */
enum { REFUSALS_MAX = 8, REFUSAL_KEPT_MS = 300000 };
struct refusals {
    struct refused {
        enum { REFUSED_NONE, REFUSED, REFUSED_TRIED, REFUSED_PROBED } state;
        bool told;        /* the log has it */
        uint64_t hash;    /* of the whole subject */
        uint64_t over_ms; /* when it is forgotten */
        char subject[112];
    } of[REFUSALS_MAX];
    unsigned others; /* refusals of further subjects, which are only counted */
    bool others_told;
    uint64_t others_over_ms;
};

/* The server refuses a publish. */
void refusals_add(struct refusals *r, const char *subject, uint64_t now_ms);

/* It is published to once more. */
void refusals_try(struct refusals *r, struct span subject);

/* Whether what was tried since the last probe is to be proved by another, which is sent now. */
bool refusals_probe(struct refusals *r);

/* The last probe is back: what was tried before it, and not refused since, works. */
void refusals_proved(struct refusals *r);

/* The log has all of it. */
void refusals_told(struct refusals *r);

/* Forgets what is over. False: none is left. */
bool refusals_step(struct refusals *r, uint64_t now_ms);

/* When that is to be called again, at the latest. */
uint64_t refusals_next_ms(const struct refusals *r);

/* A list of names in a sentence: as many as fit, and how many do not; "" without any. */
struct names {
    char *text;
    size_t size, at;
    unsigned count, left_out;
};
/* `form` stands before the first, with `hint` in it. */
void names_begin(struct names *n, const char *form, const char *hint);
void names_add(struct names *n, const char *kind, const char *name);
void names_end(struct names *n, unsigned others);

#endif
