/* floor - the least that a provider on nats.c can cost: it receives and sends the messages of provider.c,
 * through the same kind of loop, and does nothing else. No links, no checks, no queue, no end of a call that
 * nobody answers; a body has to fit into one message.
 *     build/bench/floor LATTICE-URL LINK-URL PREFIX KEY COMPONENT [SUBJECT…]
 * The subjects are what its link subscribes to.
 *
 * What it does beyond that, no provider can leave out: a caller hears its handshake again until it has
 * acknowledged one, and its result after each of them; the end of the result waits for that (provider.c,
 * section 8). And no more than MAX_IN_FLIGHT_DEFAULT messages are with the component.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <malloc.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <nats/nats.h>
#include "provider.h" /* IO_BUFFER, MESSAGE_MAX, MAX_IN_FLIGHT_DEFAULT, HANDSHAKE_PAUSE_MS */

/* exported by nats.c, though not in its public header; see devel/tests/harness/load.c */
void natsConn_setFilterWithClosure(natsConnection *nc, void (*filter)(natsConnection *, natsMsg **, void *),
                                   void *closure);
void natsMsg_free(void *msg);
natsStatus natsMsg_create(natsMsg **msg, const char *to, int to_len, const char *reply, int reply_len,
                          const char *bytes, int len, int headers);

#define WRPC "%s.%s.wrpc.0.0.1.wasmcloud:messaging/"
#define must(s) ((s) == NATS_OK ? (void)0 : (puts(nats_GetLastError(NULL)), exit(1)))

/* The inboxes here are as long as those of provider.c; their last three characters are the call's number. */
enum { DIGITS = 3, CALLS = 1024 };
#define FILLER "000000000000"

static struct conn {
    natsConnection *nc;
    int fd;
    atomic_bool writes;
    char inbox[64]; /* what all of its inboxes begin with */
    size_t inbox_len;
} lattice, out;

static struct call {
    char caller[128];
    natsMsg *reply;       /* of a request: what its result is made of */
    bool answered, heard; /* the result is there; the caller has acknowledged a handshake */
    uint64_t again_ms;    /* until it has: when the next one goes out */
} calls[CALLS];
static unsigned number, oldest;       /* calls so far; those before this one were all heard */
static unsigned delivered, in_flight; /* messages for the component so far; those that it has */
static uint64_t now_ms;
static char function[512], headers[512];
static char scratch[MESSAGE_MAX + 4096]; /* scratch[0] is that of a good result */

static natsStatus on_attach(void **user, void *c, natsConnection *nc, int fd) {
    (void)nc;
    *user = c;
    ((struct conn *)c)->fd = fd;
    return NATS_OK;
}

static natsStatus on_read(void *c, bool add) {
    (void)c;
    if (!add) exit(0); /* the connection is lost */
    return NATS_OK;
}

static natsStatus on_write(void *c, bool add) {
    atomic_store(&((struct conn *)c)->writes, add);
    return NATS_OK;
}

static natsStatus on_detach(void *c) {
    (void)c;
    return NATS_OK;
}

static void send_to(const char *inbox, const char *suffix, const char *reply, const void *data, long len) {
    char to[256];
    strcpy(mempcpy(to, inbox, strlen(inbox)), suffix);
    must(reply ? natsConnection_PublishRequest(lattice.nc, to, reply, data, (int)len)
               : natsConnection_Publish(lattice.nc, to, data, (int)len));
}

static void inbox_of(char *inbox, const struct conn *c, unsigned n) {
    char *at = mempcpy(inbox, c->inbox, c->inbox_len);
    for (int i = DIGITS; i-- > 0; n >>= 4) at[i] = "0123456789abcdef"[n & 15];
    at[DIGITS] = 0;
}

static struct call *call_of(const char *digits) {
    unsigned n = 0;
    for (int i = 0; i < DIGITS; i++)
        n = n << 4 | (unsigned)(digits[i] <= '9' ? digits[i] - '0' : digits[i] - 'a' + 10);
    return &calls[n % CALLS];
}

static size_t get(const char **at) { /* LEB128 */
    unsigned char b = (unsigned char)*(*at)++;
    return b < 0x80 ? b : (b & 0x7f) | get(at) << 7;
}

static char *put(char *at, const char *bytes, size_t len) {
    size_t n = len;
    for (; n > 0x7f; n >>= 7) *at++ = (char)(n | 0x80);
    *at++ = (char)n;
    return mempcpy(at, bytes, len);
}

static char *put_message(char *at, natsMsg *m) { /* subject, body, no reply subject */
    const char *subject = natsMsg_GetSubject(m);
    at = put(at, subject, strlen(subject));
    at = put(at, natsMsg_GetData(m), (size_t)natsMsg_GetDataLength(m));
    *at = 0;
    return at + 1;
}

static void send_handshake(struct call *c) {
    char inbox[128];
    inbox_of(inbox, &lattice, (unsigned)(c - calls));
    send_to(c->caller, "", inbox, NULL, 0);
    c->again_ms = now_ms + HANDSHAKE_PAUSE_MS;
}

static void send_result(struct call *c) {
    char *end = c->reply ? put_message(scratch + 1, c->reply) : scratch + 1;
    send_to(c->caller, ".results", NULL, scratch, end - scratch);
}

static void send_end(struct call *c) {
    if (!c->answered || !c->heard) return;
    send_to(c->caller, ".results", NULL, NULL, 0);
    natsMsg_free(c->reply);
    c->reply = NULL;
}

static void answer(struct call *c) {
    c->answered = true;
    send_result(c);
    send_end(c);
}

static void on_acknowledged(struct call *c) {
    if (c->heard) return; /* an earlier handshake was acknowledged, too */
    c->heard = true;
    send_end(c);
}

/* A call of publish or request: work begins at once. */
static void on_call(const char *at, const char *caller, bool is_request) {
    char to[256], inbox[128];
    struct call *c = &calls[number++ % CALLS];
    size_t len = get(&at);
    *(char *)mempcpy(to, at, len) = 0;
    at += len;
    len = get(&at);
    strcpy(c->caller, caller);
    c->answered = c->heard = false;
    send_handshake(c);
    if (is_request) {
        inbox_of(inbox, &out, (unsigned)(c - calls));
        must(natsConnection_PublishRequest(out.nc, to, inbox, at, (int)len));
    } else {
        must(natsConnection_Publish(out.nc, to, at, (int)len));
        answer(c);
    }
}

static void read_clock(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    now_ms = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Handshakes that were not acknowledged go out again. Returns how long none is due, for poll(). */
static int repeat(void) {
    while (oldest != number && calls[oldest % CALLS].heard) oldest++;
    if (oldest == number) return -1;
    uint64_t due_ms = calls[oldest % CALLS].again_ms;
    if (now_ms < due_ms) return (int)(due_ms - now_ms);
    for (unsigned n = oldest; n != number; n++) {
        struct call *c = &calls[n % CALLS];
        if (c->heard || now_ms < c->again_ms) continue;
        send_handshake(c);
        if (c->answered) send_result(c);
    }
    return 0;
}

/* A message for the component. */
static void on_subscribed(natsMsg *m) {
    char inbox[128], *call = scratch + 1, *at = mempcpy(call, headers, strlen(headers)),
                     *end = put_message(at, m);
    inbox_of(inbox, &lattice, delivered++);
    must(natsMsg_create(&m, function, (int)strlen(function), inbox, (int)strlen(inbox), call,
                        (int)(end - call), (int)(at - call))
             ?: natsConnection_PublishMsg(lattice.nc, m));
    natsMsg_free(m);
    in_flight++;
}

/* What comes to an inbox of the lattice's: the component's host has a call, or its result ends, which its
 * bytes came before; or a caller acknowledges a handshake. */
static void on_lattice_inbox(const char *digits, const char *reply, natsMsg *m) {
    char kind = digits[DIGITS] ? digits[DIGITS + 1] : 0; /* of .results, .params */
    if (!kind && reply) send_to(reply, ".params", NULL, NULL, 0);
    if (kind == 'r' && natsMsg_GetDataLength(m) == 0) in_flight--;
    if (kind == 'p') on_acknowledged(call_of(digits));
}

static void on_message(natsConnection *nc, natsMsg **msg, void *user) {
    struct conn *c = user;
    natsMsg *m = *msg;
    const char *subject = natsMsg_GetSubject(m), *reply = natsMsg_GetReply(m);
    bool inbox = strncmp(subject, c->inbox, c->inbox_len) == 0;
    (void)nc;
    *msg = NULL;
    if (inbox && c == &out) {
        struct call *call = call_of(subject + c->inbox_len);
        call->reply = m;
        answer(call);
        return;
    }
    if (inbox) on_lattice_inbox(subject + c->inbox_len, reply, m);
    else if (c == &out) on_subscribed(m);
    else on_call(natsMsg_GetData(m), reply, subject[strlen(subject) - 1] == 't');
    natsMsg_free(m);
}

static void listen_on(const struct conn *c, const char *subject, const char *queue) {
    natsSubscription *s; /* for as long as it runs */
    must(queue ? natsConnection_QueueSubscribeSync(&s, c->nc, subject, queue)
               : natsConnection_SubscribeSync(&s, c->nc, subject));
}

static void connect_to(struct conn *c, const char *url) {
    natsOptions *o;
    natsInbox *inbox;
    must(natsOptions_Create(&o));
    must(natsOptions_SetURL(o, url));
    must(natsOptions_SetEventLoop(o, c, on_attach, on_read, on_write, on_detach));
    must(natsOptions_SetSendAsap(o, true));
    must(natsOptions_SetIOBufSize(o, IO_BUFFER));
    must(natsConnection_Connect(&c->nc, o));
    must(natsInbox_Create(&inbox));
    natsConn_setFilterWithClosure(c->nc, on_message, c);
    (void)snprintf(function, sizeof(function), "_INBOX.%s.c.>", inbox + 17);
    listen_on(c, function, NULL);
    c->inbox_len = (size_t)snprintf(c->inbox, sizeof(c->inbox), "_INBOX.%s.c.%s", inbox + 17, FILLER);
}

int main(int argc, char **argv) {
    struct conn *const both[] = {&out, &lattice};
    if (argc < 6) return fputs("usage: see devel/bench/floor.c\n", stderr), 2;
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 30); /* as with an arena, large blocks are no system calls */
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
    connect_to(&lattice, argv[1]);
    connect_to(&out, argv[2]);
    (void)snprintf(function, sizeof(function), WRPC "consumer@0.2.0.*", argv[3], argv[4]);
    listen_on(&lattice, function, "floor");
    (void)snprintf(function, sizeof(function), WRPC "handler@0.2.0.handle-message", argv[3], argv[5]);
    (void)snprintf(headers, sizeof(headers), "NATS/1.0\r\nsource-id: %s\r\ntarget-id: %s\r\n\r\n", argv[4],
                   argv[5]);
    for (int i = 6; i < argc; i++) listen_on(&out, argv[i], NULL);
    for (struct pollfd fds[2];;) { /* poll, read, write */
        for (int i = 0; i < 2; i++) {
            bool reads = both[i] == &lattice || in_flight < MAX_IN_FLIGHT_DEFAULT;
            short events = (short)((reads ? POLLIN : 0) | (both[i]->writes ? POLLOUT : 0));
            fds[i] = (struct pollfd){both[i]->fd, events, 0};
        }
        if (poll(fds, 2, repeat()) < 0) {
            perror("floor");
            return 1;
        }
        read_clock();
        for (int i = 0; i < 2; i++)
            if (fds[i].revents & ~POLLOUT) natsConnection_ProcessReadEvent(both[i]->nc);
        for (int i = 0; i < 2; i++)
            if (both[i]->writes) natsConnection_ProcessWriteEvent(both[i]->nc);
    }
}
