/* floor - the least that a provider on nats.c can cost: it receives and sends the messages of provider.c, through the same kind
 * of loop, and does nothing else. No links, no slots, no checks, no deadlines; a body has to fit into one message.
 *     build/bench/floor LATTICE-URL LINK-URL PREFIX KEY COMPONENT [SUBJECT…]      subjects: what its link subscribes to */
#define _GNU_SOURCE
#include <malloc.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <nats/nats.h>
#include "provider.h" /* IO_BUFFER, MESSAGE_MAX */

/* exported by nats.c, though not in its public header; see devel/load.c */
void natsConn_setFilterWithClosure(natsConnection *nc, void (*filter)(natsConnection *, natsMsg **, void *), void *closure);
void natsMsg_free(void *msg);
natsStatus natsMsg_create(natsMsg **msg, const char *to, int to_len, const char *reply, int reply_len, const char *bytes, int len, int headers);

#define WRPC "%s.%s.wrpc.0.0.1.wasmcloud:messaging/"
#define must(s) ((s) == NATS_OK ? (void)0 : (puts(nats_GetLastError(NULL)), exit(1)))
enum { DIGITS = 15, CALLERS = 1024 }; /* the inboxes here are as long as those of provider.c: this is their end */
static struct conn { natsConnection *nc; int fd, inbox_len; atomic_bool writes; char inbox[64]; } lattice, out;
static char callers[CALLERS][128], function[512], headers[512], nobody[64], scratch[MESSAGE_MAX + 4096]; /* scratch[0] is that of a good result */
static unsigned number;
static natsStatus on_attach(void **user, void *c, natsConnection *nc, int fd) { return (void)nc, *user = c, ((struct conn *)c)->fd = fd, NATS_OK; }
static natsStatus on_read(void *c, bool add) { return (void)c, add ? NATS_OK : (exit(0), NATS_OK); } /* the connection is lost */
static natsStatus on_write(void *c, bool add) { return atomic_store(&((struct conn *)c)->writes, add), NATS_OK; }
static natsStatus on_detach(void *c) { return (void)c, NATS_OK; }
static void send_to(const char *inbox, const char *suffix, const char *reply, const void *data, long len) {
    char to[256];
    strcpy(mempcpy(to, inbox, strlen(inbox)), suffix);
    must(reply ? natsConnection_PublishRequest(lattice.nc, to, reply, data, (int)len) : natsConnection_Publish(lattice.nc, to, data, (int)len));
}
static void end_with(const char *to, const char *result, long len) { send_to(to, ".results", NULL, result, len), send_to(to, ".results", NULL, NULL, 0); }
static void inbox_of(char *inbox, const struct conn *c, unsigned n) {
    char *at = (char *)mempcpy(inbox, c->inbox, (size_t)c->inbox_len) + DIGITS;
    for (*at = 0; at-- > inbox + c->inbox_len; n >>= 4) *at = "0123456789abcdef"[n & 15];
}
static size_t get(const char **at) { unsigned char b = (unsigned char)*(*at)++; return b < 0x80 ? b : (b & 0x7f) | get(at) << 7; } /* LEB128 */
static char *put(char *at, const char *bytes, size_t len) {
    size_t n = len;
    for (; n > 0x7f; n >>= 7) *at++ = (char)(n | 0x80);
    *at++ = (char)n;
    return mempcpy(at, bytes, len);
}
static char *put_message(char *at, natsMsg *m) { /* subject, body, no reply subject */
    at = put(put(at, natsMsg_GetSubject(m), strlen(natsMsg_GetSubject(m))), natsMsg_GetData(m), (size_t)natsMsg_GetDataLength(m));
    return *at = 0, at + 1;
}
static void on_call(const char *at, const char *caller, bool is_request) {
    char to[256], inbox[128];
    size_t len = get(&at);
    *(char *)mempcpy(to, at, len) = 0, at += len, len = get(&at), send_to(caller, "", nobody, NULL, 0); /* the handshake */
    if (!is_request) return must(natsConnection_Publish(out.nc, to, at, (int)len)), end_with(caller, "", 1);
    memcpy(callers[number % CALLERS], caller, strlen(caller) + 1), inbox_of(inbox, &out, number++ % CALLERS);
    must(natsConnection_PublishRequest(out.nc, to, inbox, at, (int)len));
}
static void on_subscribed(natsMsg *m) {
    char inbox[128], *call = scratch + 1, *at = mempcpy(call, headers, strlen(headers)), *end = put_message(at, m);
    inbox_of(inbox, &lattice, number++);
    must(natsMsg_create(&m, function, (int)strlen(function), inbox, (int)strlen(inbox), call, (int)(end - call), (int)(at - call))
         ?: natsConnection_PublishMsg(lattice.nc, m));
    natsMsg_free(m);
}
static void on_message(natsConnection *nc, natsMsg **msg, void *c) {
    const char *subject = natsMsg_GetSubject(*msg), *reply = natsMsg_GetReply(*msg), *token = subject + ((struct conn *)c)->inbox_len;
    bool inbox = strncmp(subject, ((struct conn *)c)->inbox, (size_t)(token - subject)) == 0;
    if (c == &lattice && !inbox) on_call(natsMsg_GetData(*msg), reply, subject[strlen(subject) - 1] == 't');
    else if (c == &lattice && !token[DIGITS]) send_to(reply, ".params", NULL, NULL, 0); /* else a result */
    else if (c == &out && inbox) end_with(callers[strtoul(token, NULL, 16)], scratch, put_message(scratch + 1, *msg) - scratch);
    else if (c == &out) on_subscribed(*msg);
    (void)nc, natsMsg_free(*msg), *msg = NULL;
}
static void listen_on(const struct conn *c, const char *subject, const char *queue) {
    natsSubscription *s; /* for as long as it runs */
    must(queue ? natsConnection_QueueSubscribeSync(&s, c->nc, subject, queue) : natsConnection_SubscribeSync(&s, c->nc, subject));
}
static void connect_to(struct conn *c, const char *url) {
    natsOptions *o; natsInbox *inbox;
    must(natsOptions_Create(&o) ?: natsOptions_SetURL(o, url) ?: natsOptions_SetEventLoop(o, c, on_attach, on_read, on_write, on_detach)
         ?: natsOptions_SetSendAsap(o, true) ?: natsOptions_SetIOBufSize(o, IO_BUFFER) ?: natsConnection_Connect(&c->nc, o) ?: natsInbox_Create(&inbox));
    c->inbox_len = sprintf(c->inbox, "_INBOX.%s.c.", inbox + 17), sprintf(function, "%s>", c->inbox), sprintf(nobody, "_INBOX.nobody.%s", inbox + 17);
    natsConn_setFilterWithClosure(c->nc, on_message, c), listen_on(c, function, NULL);
}
int main(int argc, char **argv) {
    struct conn *const both[] = {&out, &lattice};
    if (argc < 6) return fputs("usage: see devel/bench/floor.c\n", stderr), 2;
    mallopt(M_MMAP_THRESHOLD, 1 << 30), mallopt(M_TRIM_THRESHOLD, 1 << 30); /* as with an arena, large blocks are no system calls */
    connect_to(&lattice, argv[1]), connect_to(&out, argv[2]);
    snprintf(function, sizeof(function), WRPC "consumer@0.2.0.*", argv[3], argv[4]), listen_on(&lattice, function, "floor");
    snprintf(function, sizeof(function), WRPC "handler@0.2.0.handle-message", argv[3], argv[5]);
    snprintf(headers, sizeof(headers), "NATS/1.0\r\nsource-id: %s\r\ntarget-id: %s\r\n\r\n", argv[4], argv[5]);
    for (int i = 6; i < argc; i++) listen_on(&out, argv[i], NULL);
    for (struct pollfd fds[2];;) { /* poll, read, write */
        for (int i = 0; i < 2; i++) fds[i] = (struct pollfd){both[i]->fd, both[i]->writes ? POLLIN | POLLOUT : POLLIN, 0};
        if (poll(fds, 2, -1) < 0) return perror("floor"), 1;
        for (int i = 0; i < 2; i++) if (fds[i].revents & ~POLLOUT) natsConnection_ProcessReadEvent(both[i]->nc);
        for (int i = 0; i < 2; i++) if (both[i]->writes) natsConnection_ProcessWriteEvent(both[i]->nc);
    }
}
