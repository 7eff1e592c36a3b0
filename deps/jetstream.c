/* JetStream's words: see jetstream.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "jetstream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <time.h>

#include "headers.h"
#include "json.h"

#include "../provider.h"

static uint64_t number_at(const json_t *config, const char *key) {
    json_int_t n = json_integer_value(json_object_get(config, key));
    return n > 0 ? (uint64_t)n : 0; /* 0, -1 and nothing at all mean no limit */
}

static const char *config_read(const json_t *info, struct js_consumer *consumer) {
    const json_t *config = json_object_get(info, "config"), *step;
    const char *policy = json_string_value(json_object_get(config, "ack_policy"));
    const char *created = json_string_value(json_object_get(info, "created")), *fraction = NULL;
    struct tm made = {0};
    size_t i;
    if (!json_is_object(config)) return "JetStream's answer is no consumer's configuration";
    if (json_is_string(json_object_get(config, "deliver_subject")))
        return "it is a push consumer: make a pull consumer, without deliver_subject";
    if (!policy || strcmp(policy, "explicit") != 0)
        return "its ack_policy is not explicit: messages could not be acknowledged one by one";
    *consumer = (struct js_consumer){
        .ack_wait_ms = number_at(config, "ack_wait") / 1000000,
        .max_deliver = number_at(config, "max_deliver"),
        .batch = number_at(config, "max_batch"),
        .bytes = number_at(config, "max_bytes"),
        .expires_ms = number_at(config, "max_expires") / 1000000,
    };
    json_array_foreach(json_object_get(config, "backoff"), i, step) { /* takes the place of ack_wait */
        uint64_t ms = (uint64_t)MAX(json_integer_value(step), 0) / 1000000;
        if (ms > 0 && (consumer->ack_wait_ms == 0 || ms < consumer->ack_wait_ms)) consumer->ack_wait_ms = ms;
    }
    if (created) fraction = strptime(created, "%Y-%m-%dT%H:%M:%S", &made);
    if (fraction) /* ".123456789Z", without the zeros at its end, or "Z" */
        consumer->created_ns = (uint64_t)timegm(&made) * 1000000000 +
                               (uint64_t)(strtod(fraction, NULL) * 1e9);
    return NULL;
}

const char *js_info_read(natsMsg *msg, const struct js_name *name, struct js_consumer *consumer) {
    static char text[128];
    if (is_no_responders(msg) && (name->domain || name->api_prefix))
        return "no JetStream answers there: is the entry's domain or api_prefix right, and the way to it up?";
    if (is_no_responders(msg)) return "JetStream is not enabled for this account, or not running";
    json_t *info = json_read(natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg), NULL);
    const json_t *refusal = json_object_get(info, "error");
    const char *error = json_string_value(json_object_get(refusal, "description"));
    if (json_is_short()) error = "memory is short";
    else if (!refusal) error = config_read(info, consumer);
    else if (!error) error = "JetStream answers with an error without words";
    if (error) (void)snprintf(text, sizeof(text), "%s", error);
    json_decref(info);
    return error ? text : NULL;
}

enum js_status js_status_of(natsMsg *msg) {
    static const struct {
        const char *code, *text; /* one of the two */
        enum js_status status;
    } known[] = {
        {.code = "100",                           .status = JS_HEARTBEAT},
        {.code = "404",                           .status = JS_ENDED    },
        {.code = "408",                           .status = JS_ENDED    },
        {.text = "Batch Completed",               .status = JS_ENDED    },
        {.code = "423",                           .status = JS_UNPINNED },
        {.code = "503",                           .status = JS_MOVED    },
        {.text = "Leadership Change",             .status = JS_MOVED    },
        {.text = "Server Shutdown",               .status = JS_MOVED    },
        {.text = "Consumer Deleted",              .status = JS_MOVED    },
        {.text = "Message Size Exceeds MaxBytes", .status = JS_TOO_BIG  },
    };
    struct status line = status_of(msg);
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        if (known[i].code && span_is(line.code, known[i].code)) return known[i].status;
        if (known[i].text && span_is(line.text, known[i].text)) return known[i].status;
    }
    return JS_REFUSED;
}

void js_pin_read(natsMsg *msg, char pin[JS_PIN_MAX]) {
    struct header h[HEADERS_MAX] = {
        {"Nats-Pin-Id", NULL}
    };
    headers_read(msg, h);
    const char *id = h[0].value;
    if (!id || strlen(id) >= JS_PIN_MAX || !is_token(id) || strpbrk(id, "\"\\")) return;
    (void)snprintf(pin, JS_PIN_MAX, "%s", id);
}

bool js_push_status(natsMsg *msg, const char **answer) {
    struct status line = status_of(msg);
    struct header stalled[HEADERS_MAX] = {
        {"Nats-Consumer-Stalled", NULL}
    };
    *answer = NULL;
    if (!span_is(line.code, "100")) return false;
    if (span_is(line.text, "FlowControl Request")) {
        *answer = natsMsg_GetReply(msg);
        return true;
    }
    if (!span_is(line.text, "Idle Heartbeat")) return false;
    headers_read(msg, stalled);
    *answer = stalled[0].value;
    return true;
}

/* $JS.ACK.{stream}.{consumer}.{deliveries}.{sequence}.{number}.{time}.{pending}; since 2.11 with a domain and
 * the hash of an account before the stream, and perhaps more at the end. */
bool js_ack_read(const char *subject, struct js_ack *ack) {
    struct span token[13];
    size_t n = 0;
    if (strncmp(subject, "$JS.ACK.", 8) != 0) return false;
    for (const char *at = subject; n < COUNT_OF(token); at++) {
        token[n] = (struct span){at, strcspn(at, ".")};
        at += token[n++].len;
        if (!*at) break;
    }
    if (n != 9 && n < 11) return false;
    const struct span *t = token + (n == 9 ? 2 : 4), unsaid = {0};
    *ack = (struct js_ack){n == 9 ? unsaid : token[2],
                           t[0],
                           t[1],
                           strtoull(t[2].at, NULL, 10),
                           strtoull(t[3].at, NULL, 10),
                           strtoull(t[4].at, NULL, 10),
                           strtoull(t[5].at, NULL, 10)};
    return true;
}

bool js_ack_is_of(const struct js_ack *ack, const struct js_name *name) {
    bool elsewhere = name->domain && ack->domain.len && !span_is(ack->domain, name->domain);
    return !elsewhere && span_is(ack->stream, name->stream) && span_is(ack->consumer, name->consumer);
}

/* A stream that is made anew counts from 1 again, so the time counts as well. */
bool js_is_same(const char *a, const char *b) {
    struct js_ack x, y;
    return js_ack_read(a, &x) && js_ack_read(b, &y) && x.sequence == y.sequence && x.time == y.time;
}

struct js_name js_name_of(const json_t *entry) {
    return (struct js_name){json_string_value(json_object_get(entry, "stream")),
                            json_string_value(json_object_get(entry, "consumer")),
                            json_string_value(json_object_get(entry, "domain")),
                            json_string_value(json_object_get(entry, "api_prefix"))};
}

static bool same_text(const char *a, const char *b) { return a == b || (a && b && strcmp(a, b) == 0); }

bool js_is_named(const struct js_name *a, const struct js_name *b) {
    return same_text(a->stream, b->stream) && same_text(a->consumer, b->consumer) &&
           same_text(a->domain, b->domain) && same_text(a->api_prefix, b->api_prefix);
}

const char *js_api_subject(const struct js_name *name, const char *what, char *out, size_t size) {
    const char *domain = name->domain ? name->domain : "";
    if (name->api_prefix)
        (void)snprintf(out, size, "%s.CONSUMER.%s.%s.%s", name->api_prefix, what, name->stream,
                       name->consumer);
    else
        (void)snprintf(out, size, "$JS.%s%sAPI.CONSUMER.%s.%s.%s", domain, *domain ? "." : "", what,
                       name->stream, name->consumer);
    return out;
}

const char *js_label(const struct js_name *name, char out[300]) {
    const char *word = name->domain ? " in domain " : " behind ";
    const char *place = name->domain ? name->domain : name->api_prefix;
    (void)snprintf(out, 300, "consumer %s of stream %s%s%s", name->consumer, name->stream, place ? word : "",
                   place ? place : "");
    return out;
}

enum js_subject js_subject_of(const char *subject, const struct js_name *name) {
    char own[SUBJECT_MAX + 1];
    struct js_ack ack;
    if (strcmp(subject, js_api_subject(name, "INFO", own, sizeof(own))) == 0) return JS_INFO;
    if (strcmp(subject, js_api_subject(name, "MSG.NEXT", own, sizeof(own))) == 0) return JS_NEXT;
    return js_ack_read(subject, &ack) && js_ack_is_of(&ack, name) ? JS_ACKNOWLEDGEMENT : JS_NO_SUBJECT;
}
