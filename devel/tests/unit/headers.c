/* unit_headers - deps/headers.c: header blocks, read and written.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "unit.h"

#define natsConn_bufferWrite note_bytes
#define natsConn_bufferFlush note_end
#include "../../../deps/headers.c"
#undef natsConn_bufferWrite
#undef natsConn_bufferFlush

/* What was written to a connection; and how many writes find memory. */
static struct { char bytes[256]; size_t len; unsigned ends, allowed; } noted;

natsStatus note_bytes(natsConnection *nc, const char *bytes, int len) {
    CHECK(!nc && noted.len + (size_t)len <= sizeof(noted.bytes));
    if (noted.allowed-- == 0) return NATS_NO_MEMORY;
    if (len) memcpy(noted.bytes + noted.len, bytes, (size_t)len);
    noted.len += (size_t)len;
    return NATS_OK;
}

natsStatus note_end(natsConnection *nc) {
    (void)nc;
    noted.ends++;
    return NATS_OK;
}

/* A message as nats.c's parser makes it. */
static natsMsg *message_with(const char *headers, const char *reply, const void *bytes, size_t len) {
    natsMsg *msg = NULL;
    size_t head = strlen(headers);
    char *all = malloc(head + len + 1);
    memcpy(mempcpy(all, headers, head), len ? bytes : "", len);
    CHECK(natsMsg_createWithPadding(&msg, "s", 1, reply, reply ? (int)strlen(reply) : 0, all, (int)(head + len), 0, (int)head) == NATS_OK);
    free(all);
    return msg;
}

static bool same_text(const char *a, const char *b) { return a && b ? strcmp(a, b) == 0 : a == b; }

static bool has_status(natsMsg *msg, const char *code, const char *words) {
    return span_is(status_of(msg).code, code) && span_is(status_of(msg).text, words);
}

static bool has_trace(natsMsg *msg, const char *parent, const char *state) {
    struct header h[HEADERS_MAX] = {{"tracestate", NULL}, {"traceparent", NULL}};
    headers_read(msg, h);
    return same_text(h[1].value, parent) && same_text(h[0].value, state);
}

static bool says_nobody(const char *headers, const char *data) {
    natsMsg *msg = message_with(headers, NULL, data, strlen(data));
    bool nobody = is_no_responders(msg);
    natsMsg_free(msg);
    return nobody;
}

static const struct { const char *headers, *parent, *state, *code, *words; } blocks[] = {
    {"", NULL, NULL, "", ""},
    {"NATS/1.0\r\n\r\n", NULL, NULL, "", ""},
    {"NATS/1.0\r\ntraceparent: a\r\ntracestate: b=c,d=e\r\n\r\n", "a", "b=c,d=e", "", ""},
    {"NATS/1.0\r\ntracestate:b\r\ntraceparent:\t a b\r\n\r\n", "a b", "b", "", ""},
    {"NATS/1.0\r\ntraceparent: first\r\ntraceparent: second\r\n\r\n", "first", NULL, "", ""},
    {"NATS/1.0\r\nx-traceparent: a\r\ntraceparents: b\r\nTraceparent: c\r\n\r\n", NULL, NULL, "", ""},
    {"NATS/1.0\r\ntraceparent:\r\ntracestate\r\n\r\n", "", NULL, "", ""},
    {"NATS/1.0\r\ntraceparent: a\rtracestate: b\r\n\r\n", "a\rtracestate: b", NULL, "", ""},
    {"NATS/1.0\r\ntraceparent: no end", NULL, NULL, "", ""},
    {"NATS/1.0\r\ntraceparent", NULL, NULL, "", ""},
    {"NATS/1.0 503\r\n\r\n", NULL, NULL, "503", ""},
    {"NATS/1.0 100 Idle Heartbeat\r\ntraceparent: a\r\n\r\n", "a", NULL, "100", "Idle Heartbeat"},
    {"NATS/1.0 409 \r\n\r\n", NULL, NULL, "409", ""},
    {"NATS/1.0 50\r\n\r\n", NULL, NULL, "", ""},
    {"NATS/1.0 503", NULL, NULL, "", ""},
    {"HTTP/1.1 503\r\n\r\n", NULL, NULL, "", ""},
    {"\r\n", NULL, NULL, "", ""},
    {"x", NULL, NULL, "", ""},
};

/* Headers and status lines, as they come and as they should not. Each is looked up twice, since looking changes the message. */
static void test_headers(void) {
    for (size_t i = 0; i < COUNT_OF(blocks); i++) {
        natsMsg *msg = message_with(blocks[i].headers, NULL, "data", 4);
        ROUNDS(2) {
            CHECK(has_status(msg, blocks[i].code, blocks[i].words));
            CHECK(has_trace(msg, blocks[i].parent, blocks[i].state));
        }
        CHECK(same_text(natsMsg_GetData(msg), "data"));
        natsMsg_free(msg);
        CHECK(!says_nobody(blocks[i].headers, "data"));
        CHECK(says_nobody(blocks[i].headers, "") == same_text(blocks[i].code, "503"));
    }
}

/* Whether a message is written as this, and wire_size() knows how long that is. */
static bool is_written(struct span reply, const struct header *headers, const char *body, const char *wanted) {
    size_t len = strlen(body);
    noted.len = noted.ends = 0;
    noted.allowed = 3;
    CHECK(message_write(NULL, SPAN("a.b"), reply, headers, len ? body : NULL, len) && noted.ends == 1);
    CHECK(noted.len == wire_size(3, reply.len, headers_size(headers), len));
    return noted.len == strlen(wanted) && memcmp(noted.bytes, wanted, noted.len) == 0;
}

/* What message_write() writes is the protocol's, and nats.c reads the same in its headers. */
static void test_written(void) {
    const struct header some[] = {{"source-id", "messaging-nats"}, {"left-out", NULL}, {"traceparent", "00-1"}, {NULL, NULL}};
    const struct header four[] = {{"a", "1"}, {"b", "2"}, {"c", "3"}, {"d", "4"}}, none[] = {{"a", NULL}, {NULL, NULL}};
    static const char block[] = "NATS/1.0\r\nsource-id: messaging-nats\r\ntraceparent: 00-1\r\n\r\n";
    const struct span no_reply = {0};
    const char *value = NULL;
    char wanted[256];
    CHECK(headers_size(none) == 0 && headers_size(NULL) == 0);
    CHECK(headers_size(four) == strlen("NATS/1.0\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n\r\n"));
    CHECK(is_written(no_reply, NULL, "", "PUB a.b 0\r\n\r\n") && is_written(no_reply, none, "data", "PUB a.b 4\r\ndata\r\n"));
    CHECK(is_written(SPAN("r"), NULL, "ten bytes!", "PUB a.b r 10\r\nten bytes!\r\n"));
    (void)snprintf(wanted, sizeof(wanted), "HPUB a.b r %zu %zu\r\n%sdata\r\n", strlen(block), strlen(block) + 4, block);
    CHECK(is_written(SPAN("r"), some, "data", wanted));
    natsMsg *msg = message_with(block, NULL, "data", 4);
    CHECK(natsMsgHeader_Get(msg, "source-id", &value) == NATS_OK && strcmp(value, "messaging-nats") == 0);
    CHECK(natsMsgHeader_Get(msg, "traceparent", &value) == NATS_OK && strcmp(value, "00-1") == 0);
    natsMsg_free(msg);
}

/* A message that cannot be written: no memory for one of its parts; a subject that leaves no room for the rest. */
static void test_not_written(void) {
    static char subject[MESSAGE_HEAD_MAX];
    memset(subject, 's', sizeof(subject));
    for (unsigned parts = 0; parts < 3; parts++) {
        noted.len = noted.ends = 0;
        noted.allowed = parts;
        CHECK(!message_write(NULL, SPAN("s"), SPAN("r"), NULL, "data", 4) && noted.ends == 0);
    }
    noted.allowed = 3;
    CHECK(!message_write(NULL, (struct span){subject, sizeof(subject) - 10}, SPAN("r"), NULL, NULL, 0) && noted.allowed == 3);
}

int main(void) {
    static const struct group groups[] = {{"headers", test_headers}, {"written", test_written}, {"not written", test_not_written}};
    return run_groups(groups, COUNT_OF(groups));
}
