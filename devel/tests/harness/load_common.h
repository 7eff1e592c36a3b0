/* load_common - what load.c and traffic.c have in common: connections of nats.c in the program's own poll
 * loop, lengths as wRPC writes them, and options. Each of the two includes it once, behind #define PROGRAM
 * with its name.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <nats/nats.h>

/* Exported by nats.c, though not in its public header: sees each message on the reading thread, before any
 * queue. */
void natsConn_setFilterWithClosure(natsConnection *nc, void (*filter)(natsConnection *, natsMsg **, void *),
                                   void *closure);

#define WRPC "wrpc.0.0.1.wasmcloud:messaging/"
#define SECOND 1000000000ull /* ns */

enum { SUBJECT_MAX = 512 };

#define say(...) (fputs(PROGRAM ": ", stderr), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))
#define die(...) (say(__VA_ARGS__), exit(2))
#define SEE "; see devel/tests/harness/" PROGRAM ".c"

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t = {0};
    (void)clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* ---- values ---- */

static size_t put_u32(uint8_t *out, uint64_t value) {
    size_t n = 0;
    for (; value > 0x7f; value >>= 7) out[n++] = (uint8_t)(value | 0x80);
    out[n++] = (uint8_t)value;
    return n;
}

/* Reads a length; moves `at` on, or sets it beyond the end if there is none. */
static uint64_t get_u32(const uint8_t *bytes, size_t len, size_t *at) {
    uint64_t value = 0;
    for (unsigned shift = 0; *at < len && shift < 35; shift += 7) {
        uint8_t byte = bytes[(*at)++];
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
    *at = len + 1;
    return 0;
}

/* Moves `at` behind the subject that a broker-message begins with, or beyond the end. */
static void skip_subject(const uint8_t *bytes, size_t len, size_t *at) {
    uint64_t subject = get_u32(bytes, len, at);
    *at = *at > len || subject > len - *at ? len + 1 : *at + subject;
}

/* ---- connections ---- */

struct conn {
    natsConnection *nc; /* traffic: NULL while it is down */
    const char *url;    /* traffic: a list of them */
    int fd;
    bool ready;   /* the server has read our subscriptions */
    bool blocked; /* the socket takes no more */
    atomic_bool wants_write, closed;
    char inbox[64]; /* ends with a dot */
    size_t inbox_len;

    /* load's */
    bool secure;
    size_t max_payload;

    /* traffic's */
    natsSubscription *subs[3];
    uint64_t due_ns, lost; /* when to connect again; how often it went away */
};

static natsStatus on_attach(void **user, void *c, natsConnection *nc, natsSock fd) {
    (void)nc;
    *user = c;
    ((struct conn *)c)->fd = fd;
    return NATS_OK;
}

static natsStatus on_read_wanted(void *user, bool add) {
    if (!add) atomic_store(&((struct conn *)user)->closed, true);
    return NATS_OK;
}

static natsStatus on_write_wanted(void *user, bool add) {
    atomic_store(&((struct conn *)user)->wants_write, add);
    return NATS_OK;
}

static natsStatus on_detach(void *user) {
    (void)user;
    return NATS_OK;
}

/* Options for a connection in our loop, which writes at once and does not connect again by itself. */
static natsStatus conn_options(natsOptions **opts, struct conn *c, const char *url) {
    natsStatus s = natsOptions_Create(opts);
    if (s == NATS_OK) s = natsOptions_SetURL(*opts, url);
    if (s == NATS_OK)
        s = natsOptions_SetEventLoop(*opts, c, on_attach, on_read_wanted, on_write_wanted, on_detach);
    if (s == NATS_OK) s = natsOptions_SetAllowReconnect(*opts, false);
    if (s == NATS_OK) s = natsOptions_SetSendAsap(*opts, true);
    if (s == NATS_OK) s = natsOptions_SetIOBufSize(*opts, 256 * 1024);
    return s;
}

static void make_inbox(struct conn *c) {
    natsInbox *inbox;
    if (natsInbox_Create(&inbox) != NATS_OK) die("no inbox");
    c->inbox_len = (size_t)snprintf(c->inbox, sizeof(c->inbox), "%s.", inbox);
    natsInbox_Destroy(inbox);
}

/* Writes what waits. Asks the flag first: with nothing to write nats.c would take the connection for
 * closed. */
static void conn_write(struct conn *c) {
    if (!c->nc || c->blocked || !atomic_load(&c->wants_write)) return;
    natsConnection_ProcessWriteEvent(c->nc);
    c->blocked = atomic_load(&c->wants_write);
}

/* ---- command line ---- */

/* An option with a value: a number or a text. */
struct option {
    const char *name;
    uint64_t *number;
    const char **text;
};

static void take_option(const struct option *options, size_t count, const char *name, const char *value) {
    size_t o = 0;
    while (o < count && strcmp(name, options[o].name) != 0) o++;
    if (o == count) die("there is no option %s" SEE, name);
    if (options[o].text) {
        *options[o].text = value;
    } else if (sscanf(value, "%lu", options[o].number) != 1) {
        die("%s wants a number", name);
    }
}

/* The place of a flow among the names, or their number if it is none of them. */
static unsigned find_flow(const char *const *names, unsigned count, const char *value) {
    unsigned flow = 0;
    while (flow < count && strcmp(value, names[flow]) != 0) flow++;
    return flow;
}
