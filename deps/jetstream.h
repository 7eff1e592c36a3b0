/* What JetStream says and is told about pull consumers, as far as it needs no connection: the answer to
 * CONSUMER.INFO, status lines, subjects of acknowledgements. protocol: NATS, "JetStream wire API
 * reference", ADR-13 and ADR-15; ADR-42; nats-server 2.9 to 2.15, consumer.go.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef JETSTREAM_H
#define JETSTREAM_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>
#include <nats/nats.h>

#include "text.h"

/* What a consumer allows. 0: no limit, or it says nothing. */
struct js_consumer {
    uint64_t ack_wait_ms, max_deliver;
    uint64_t batch, bytes, expires_ms; /* of one request */
    uint64_t created_ns;               /* when JetStream made it, since 1970 */
};

/* What a status line says of the request for messages. */
enum js_status {
    JS_HEARTBEAT, /* it stands */
    JS_ENDED,     /* it has brought what there was, or its time is over */
    JS_MOVED,     /* nobody has it any more, or the consumer is gone: ask anew */
    JS_TOO_BIG,   /* the next message is larger than what was asked for */
    JS_UNPINNED,  /* the priority group is pinned to somebody else by now */
    JS_REFUSED,   /* for another reason */
};
enum js_status js_status_of(natsMsg *msg);

/* What a consumer is called, and where: in a JetStream domain, or behind another prefix than $JS.API; or
 * neither (NULL). */
struct js_name {
    const char *stream, *consumer;
    const char *domain, *api_prefix;
};
struct js_name js_name_of(const json_t *entry); /* of `consumers`; what is no text is NULL */
bool js_is_named(const struct js_name *a, const struct js_name *b);

/* Reads the answer to CONSUMER.INFO. Returns NULL; or why it is no consumer for us, in words that the next
 * call may overwrite. The caller has called json_begin(). */
const char *js_info_read(natsMsg *msg, const struct js_name *name, struct js_consumer *consumer);

/* The subject of a question about it ("INFO", "MSG.NEXT"). */
const char *js_api_subject(const struct js_name *name, const char *what, char *out, size_t size);

/* The name in an error text. */
const char *js_label(const struct js_name *name, char out[300]);

/* With the policy pinned_client a group's messages go to whoever names this, which comes with a message, in
 * its next request. Where none came, it is left as it is. */
enum { JS_PIN_MAX = 32 };
void js_pin_read(natsMsg *msg, char pin[JS_PIN_MAX]);

/* Whether a message without a body is what a push consumer says beside its messages, and where an empty
 * message is to answer it, or NULL. */
bool js_push_status(natsMsg *msg, const char **answer);

/* What the subject of an acknowledgement says. Returns false if it is none. */
struct js_ack {
    struct span domain; /* "_": of none; empty: the subject does not say */
    struct span stream, consumer;
    uint64_t deliveries; /* of this message so far */
    uint64_t sequence;   /* its number in the stream */
    uint64_t number;     /* of this delivery, among all of the consumer */
    uint64_t time;       /* when the stream got the message, in ns */
};
bool js_ack_read(const char *subject, struct js_ack *ack);

/* Whether it may be of this consumer. Of two domains that have consumers of the same name, only a subject
 * with a domain tells which. */
bool js_ack_is_of(const struct js_ack *ack, const struct js_name *name);

/* Whether two such subjects are of the same message. */
bool js_is_same(const char *a, const char *b);

/* Which subject of a consumer's this is. */
enum js_subject { JS_NO_SUBJECT, JS_INFO, JS_NEXT, JS_ACKNOWLEDGEMENT };
enum js_subject js_subject_of(const char *subject, const struct js_name *name);

#endif
