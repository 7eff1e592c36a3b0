/* fuzz - hostile input for provider.c: libFuzzer targets that know what has to come out. Run by `make
 * fuzz`; see run.sh.
 *
 * It includes the source, and puts a world of its own under it: what nats.c and the system would do is
 * done by the functions under "the world", which check what they are given. So whole calls run without a
 * server, thousands a second. The name under which the program is started chooses the target
 * (build/fuzz/wire is a link to build/fuzz/fuzz); under any other it prints the names.
 *
 * To add a target: write `static void fuzz_NAME(const uint8_t *data, size_t len)` and a line {"NAME",
 * fuzz_NAME} in `targets`; run.sh finds it. Seeds, if it has any, are calls of seed("NAME", …) in
 * seeds.py. An input that found something goes into found/NAME/ and is replayed first in each run.
 *
 * MUST() is what has to be true whatever the input. A target that needs the world begins with
 * world_begin() and ends with world_end(), which sees to it that no slot, delivery, buffer, link,
 * connection, subscription or JSON value is left. A target that needs only a function, such as a parser,
 * calls it.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define PROVIDER_WITHOUT_MAIN
#define _GNU_SOURCE
/* limits so small that an input of a few hundred bytes meets them */
#define LINKS_MAX 6
#define LINKS_LEAVING_MAX 2
#define SUBSCRIPTIONS_MAX 16
#define CALLS_MAX 48
#define MESSAGE_MAX 16384
#define HOST_DATA_MAX 16384
#define BACKLOG_MAX (96 * 1024)
#include <fcntl.h>
#include <nats/nats.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#pragma clang diagnostic ignored "-Wunused-function" /* what only main needs */
#pragma clang diagnostic ignored "-Wunused-variable"
#define MUST(condition) ((condition) ? (void)0 : broken(#condition, __LINE__))

static void broken(const char *what, int line) {
    fprintf(stderr, "devel/fuzz/fuzz.c:%d: not true: %s\n", line, what);
    abort();
}

static natsStatus world_subscribe(natsSubscription **sub, natsConnection *nc, const char *subject,
                                  const char *queue);
static int world_buffered(natsConnection *nc);
static int64_t world_max_payload(natsConnection *nc);
static natsStatus world_write(natsConnection *nc);
static natsStatus world_last_error(const char **text);
static ssize_t world_read(void *out, size_t len);
static ssize_t world_log(const void *line, size_t len);
__attribute__((format(printf, 1, 2))) static void world_words(const char *format, ...);
static jmp_buf dead;
static bool may_die;
__attribute__((noreturn)) static void world_exit(void) {
    MUST(may_die);
    longjmp(dead, 1);
}

#define message_write world_send
#define natsConnection_ProcessReadEvent(nc) ((void)(nc))
#define natsConnection_SubscribeSync(sub, nc, subject) world_subscribe(sub, nc, subject, NULL)
#define natsConnection_QueueSubscribeSync(sub, nc, subject, queue) world_subscribe(sub, nc, subject, queue)
#define natsSubscription_GetSubject(sub) ((const char *)(sub))
#define natsSubscription_GetID(sub) 0
#define natsSubscription_Destroy(sub) free(sub)
#define natsConnection_Buffered(nc) world_buffered(nc)
#define natsConnection_GetMaxPayload(nc) world_max_payload(nc)
#define natsConnection_HasHeaderSupport(nc) ((void)(nc), NATS_OK)
#define natsConnection_GetConnectedServerId(nc, id, size) snprintf(id, size, "%d", (nc) != NULL)
#define natsConnection_ProcessWriteEvent(nc) world_write(nc)
#define natsConnection_GetLastError(nc, text) world_last_error(text)
#define natsConnection_Close(nc) (void)(nc)
#define natsConnection_Destroy(nc) (void)(nc)
#define natsConnection_ProcessCloseEvent(fd) (void)(fd)
#define shutdown(fd, how) 0
#define pthread_create(thread, attr, run, arg) (*(thread) = 0, (void)(run), 0)
#define pthread_detach(thread) (void)(thread)
#define poll(fds, count, ms) ((void)(count), (void)(ms), (fds)->revents = (fds)->events, 1)
#define read(fd, out, len) ((void)(fd), world_read(out, len))
#define write(fd, line, len) ((fd) == STDERR_FILENO ? world_log(line, len) : 0)
#define fprintf(file, ...) world_words(__VA_ARGS__)
#define printf(...) world_words(__VA_ARGS__)
#define exit(code) world_exit()
#define open(path, flags) ((void)(flags), (path) ? 99 : -1) /* a death would leave it open */
#define close(fd) (void)(fd)
#define now_ms log_now_ms
#include "../../deps/log.c"
#undef now_ms
#include "../../deps/xkey.c"
#define no_memory host_data_no_memory
#include "../../deps/host_data.c"
#undef no_memory
#include "../../provider.c"
#include "../../deps/settings.c"
#undef fprintf
#undef printf
#undef read
#undef write
#undef exit
#undef open
#undef close

/* ---- oracles: the same rules as in provider.c, written differently, and slowly ------------------------- */

/* Reads code points, and writes each as UTF-8 is defined: what comes out must be what went in. */
static bool oracle_utf8(struct span s) {
    for (size_t i = 0; i < s.len;) {
        const uint8_t *c = (const uint8_t *)s.at + i;
        uint8_t out[4];
        unsigned n = *c < 0x80             ? 1
                     : (*c & 0xe0) == 0xc0 ? 2
                     : (*c & 0xf0) == 0xe0 ? 3
                     : (*c & 0xf8) == 0xf0 ? 4
                                           : 0;
        if (n == 0 || n > s.len - i) return false;
        uint32_t point = n == 1 ? *c : *c & (0xffu >> (n + 1));
        for (unsigned k = 1; k < n; k++) point = point << 6 | (c[k] & 0x3f);
        if (point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
        unsigned m = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
        static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
        for (unsigned k = 0; k < m; k++) out[k] = (uint8_t)((point >> 6 * (m - 1 - k) & 0x3f) | 0x80);
        out[0] = m == 1 ? (uint8_t)point : (uint8_t)(point >> 6 * (m - 1) | lead[m]);
        if (m != n || memcmp(c, out, n) != 0) return false;
        i += n;
    }
    return true;
}

/* A number, from its last byte to its first. */
static enum decoded oracle_u32(struct span *s, uint64_t *number) {
    size_t last = 0;
    while (last < MIN(s->len, 5) && s->at[last] & 0x80) last++;
    if (last == 5) return MALFORMED;
    if (last == s->len) return NEEDS_MORE;
    *number = 0;
    for (size_t i = last + 1; i-- > 0;) *number = *number * 128 + (s->at[i] & 0x7f);
    *s = (struct span){s->at + last + 1, s->len - last - 1};
    return *number > UINT32_MAX ? MALFORMED : WHOLE;
}

/* Fields by their letters: u number, b bytes, s string, o an optional string. Leaves what stands behind
 * them. */
static enum decoded oracle_fields(const char *fields, struct span *s) {
    uint64_t number;
    for (; *fields; fields++) {
        enum decoded d = WHOLE;
        if (*fields == 'o') {
            if (s->len == 0 || (uint8_t)*s->at > 1) return s->len ? MALFORMED : NEEDS_MORE;
            bool none = *s->at == 0;
            *s = (struct span){s->at + 1, s->len - 1};
            if (none) continue;
        }
        if ((d = oracle_u32(s, &number)) != WHOLE) return d;
        if (*fields == 'u') continue;
        if (number > s->len) return NEEDS_MORE;
        if (*fields != 'b' && !oracle_utf8((struct span){s->at, number})) return MALFORMED;
        *s = (struct span){s->at + number, s->len - number};
    }
    return WHOLE;
}

/* NATS, "Subject-Based Messaging": tokens between dots. */
static bool oracle_subject(struct span s, bool wildcards) {
    char text[SUBJECT_MAX + 3];
    if (s.len == 0 || s.len > SUBJECT_MAX) return false;
    for (size_t i = 0; i < s.len; i++)
        if ((uint8_t)s.at[i] <= 32 || s.at[i] == 127) return false;
    text[0] = '.';
    memcpy(text + 1, s.at, s.len);
    memcpy(text + 1 + s.len, ".", 2);
    if (strstr(text, "..") || (!wildcards && (strstr(text, ".*.") || strstr(text, ".>.")))) return false;
    const char *tail = strstr(text, ".>.");
    return !tail || tail[3] == 0;
}

/* ---- the world under provider.c ------------------------------------------------------------------------ */

enum { CALLERS = 32, NOTED = 64, QUESTIONS = 16 };

/* The orders and questions among `subjects`. */
enum { PUT, PUT_SEALED, DELETE, CONFIG, SHUTDOWN, HEALTH };

static struct {
    struct server {
        int buffered, filler; /* bytes that nats.c has, and of those that are there when it gets stuck */
        bool stuck;           /* takes nothing */
        char probe[INBOX_MAX + 16]; /* the flush probe that it is to send back, or "" */
        bool fails;                 /* has no memory for the next message */
        int64_t max_payload;
    } servers[CONNS_MAX];
    const uint8_t *input; /* what read() finds */
    size_t input_len, piece;
    struct caller { /* a component that called: what it has been told */
        bool used, is_request;
        bool acknowledges; /* its host is of 1.9, and answers a handshake, or never does */
        bool late, was_late,
            lost_words; /* what comes to it is dropped; was so; also the words of a failed call */
        bool misled;    /* somebody else has answered its handshake */
        unsigned shaken, failed, ended, acknowledged, padding;
        char rs[INBOX_MAX + 16];
        uint64_t digest; /* of its result */
        uint8_t result[512];
        size_t len;
    } callers[CALLERS];
    struct start { /* a call to a component */
        char inbox[INBOX_MAX + 16];
        struct noted *of;   /* what a consumer delivered, or NULL */
        bool shaken, begun; /* its host shook hands; the result has begun */
    } started[CALLERS];
    char asked[CALLERS][INBOX_MAX + 16]; /* inboxes of requests */
    unsigned starts, asks;
    uint64_t digest; /* of what went to links */
    bool lossy;      /* the lattice was not all that it should be */
    struct noted {   /* a message of a consumer, by the subject that acknowledges it */
        char ack[SUBJECT_MAX + 1];
        unsigned came, ok, acked,
            refused; /* how often it was delivered, a component answered ok, and we did so */
        uint64_t body;
        bool never;    /* no component can be given it */
        bool deaf;     /* there was nobody to tell of it for a while, or it is of another epoch */
        uint8_t epoch; /* of its consumer, when it came last */
        unsigned open; /* deliveries, before the last message */
    } noted[NOTED];
    unsigned delivered;
    struct question {
        char inbox[INBOX_MAX + 16];
        struct conn *conn;
        bool is_pull;
    } questions[QUESTIONS];
    unsigned questioned, max_batch; /* of JetStream; of its consumers */
    bool moved;                     /* the lattice has another connection, or may have */
    bool deaf;                      /* a link was not all that it should be: an answer may be lost */
    unsigned in_flight[LINK_SLOTS]; /* of each link, after the last event */
    unsigned wanted[LINK_SLOTS][CONSUMERS_PER_LINK];
    size_t blocks;    /* of JSON */
    char error[256];  /* what servers say */
    char words[1200]; /* what was printed last */
} world;

static uint64_t digest(uint64_t sum, const void *bytes, size_t len) { /* FNV-1a, by 8 bytes */
    const uint8_t *c = bytes;
    for (uint64_t word = 0; len >= 8; c += 8, len -= 8)
        memcpy(&word, c, 8), sum = (sum ^ word) * 1099511628211u;
    for (; len > 0; c++, len--) sum = (sum ^ *c) * 1099511628211u;
    return sum;
}

static struct conn *conn_of(natsConnection *nc) {
    return &conns[(struct server *)(void *)nc - world.servers];
}

static struct server *server_of(const struct conn *c) { return &world.servers[c - conns]; }

static int world_buffered(natsConnection *nc) {
    return nc ? ((struct server *)(void *)nc)->buffered : -1;
} /* as nats.c */
static int64_t world_max_payload(natsConnection *nc) { return ((struct server *)(void *)nc)->max_payload; }
static natsStatus world_last_error(const char **text) { return *text = world.error, NATS_ERR; }

/* The lattice's server says in an INFO how large a message may be. */
static void lattice_takes(int64_t bytes) {
    server_of(lattice)->max_payload = bytes;
    conn_learn(lattice);
}

static natsStatus world_write(natsConnection *nc) {
    struct server *s = (struct server *)(void *)nc;
    MUST(s->buffered > 0 && atomic_load(&conn_of(nc)->wants_write));
    s->buffered = s->stuck ? s->buffered : 0;
    atomic_store(&conn_of(nc)->wants_write, s->buffered > 0);
    return NATS_OK;
}

static ssize_t world_read(void *out, size_t len) {
    size_t n = MIN(MIN(len, world.input_len), world.piece);
    memcpy(out, world.input, n);
    world.input += n;
    world.input_len -= n;
    return (ssize_t)n;
}

/* A line of the log is one line, and nothing in it is a command to a terminal. */
static ssize_t world_log(const void *line, size_t len) {
    const char *c = line;
    unsigned quotes = 0;
    MUST(len > 2 && c[len - 1] == '\n');
    for (size_t i = 0; i + 1 < len; i++) {
        MUST((unsigned char)c[i] >= ' ' && c[i] != 0x7f);
        quotes += c[i] == '"';
        if (c[i] == '\\' && logger.json) i++;
    }
    MUST(!logger.json || (quotes == 16 && c[0] == '{' && c[len - 2] == '}')); /* four pairs of strings */
    return (ssize_t)len;
}

static void world_words(const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(world.words, sizeof(world.words), format, args);
    va_end(args);
}

/* What comes to a caller: one handshake, then one end. On a host of 1.9 it may get the handshake again
 * until it has acknowledged it, and the result, too (of a failed call the end), always the same. So may any
 * when the lattice was away: what went out last may not have arrived. One that is late has nothing of what
 * came before. */
static void to_caller(const char *subject, const char *reply, const void *data, size_t len) {
    char *suffix;
    struct caller *c = &world.callers[strtoul(subject + 2, &suffix, 10) % CALLERS];
    bool again = c->acknowledges || world.lossy;
    MUST(c->used && (c->ended == 0 || (c->acknowledges && c->len == 0) || world.lossy));
    if (strcmp(suffix, ".pad") == 0) {
        MUST(!reply && len == 0);
        c->late &= ++c->padding % HANDSHAKE_PADDING != 0;
        return;
    }
    bool other_rs = world.moved || /* the lattice's connection is another, with another inbox */
                    (world.lossy && !c->acknowledges); /* nobody's, if nothing more comes from the caller */
    MUST(strncmp(suffix, ".i", 2) == 0);
    MUST(c->late || !*c->rs || suffix[2] || other_rs || strcmp(reply, c->rs) == 0);
    if (suffix[2] == 0 && reply) (void)snprintf(c->rs, sizeof(c->rs), "%s", reply);
    suffix += 2;
    c->lost_words |= c->late && strcmp(suffix, ".error") == 0;
    if (c->late) return;
    if (*suffix == 0) {
        MUST(reply && len == 0 && (++c->shaken == 1 || again) && (again || (c->failed == 0 && c->len == 0)));
    } else if (strcmp(suffix, ".error") == 0) {
        struct span words = {0};
        struct reader r = {data, data, (const uint8_t *)data + len, 0};
        MUST(!reply && ++c->failed == 1 && c->len == 0 && read_string(&r, &words) == WHOLE && r.at == r.end);
    } else {
        MUST(strcmp(suffix, ".results") == 0 && !reply && (len == 0 || c->failed == 0));
        MUST((c->shaken > 0 || c->was_late || world.lossy) && (len == 0 || c->ended == 0 || world.lossy));
        if (len == 0) c->ended = 1;
        if (again && c->len > 0 && len == c->len && digest(0, data, len) == c->digest)
            return; /* what went out early */
        if (c->len < sizeof(c->result) && len)
            memcpy(c->result + c->len, data, MIN(len, sizeof(c->result) - c->len));
        if (len) c->digest = digest(c->digest, data, len);
        c->len += len;
    }
}

/* The whole result of a call: what its type says, and words that are UTF-8. */
static void check_result(struct caller *c) {
    struct message m = {0};
    if (c->failed > 0 || (c->lost_words && c->len == 0)) return;
    struct reader r = {c->result, c->result + 1, c->result + MIN(c->len, sizeof(c->result)), 0};
    MUST(c->len > 0 && *c->result <= 1);
    if (*c->result == 1) MUST(read_string(&r, &m.subject) == WHOLE && m.subject.len > 0);
    else if (c->is_request) MUST(read_publish(&r, &m) == (c->len > sizeof(c->result) ? NEEDS_MORE : WHOLE));
    if (c->len > sizeof(c->result))
        MUST(r.needs <= c->len && c->len <= r.needs + 8); /* behind the body: no reply subject, or "a.b" */
    else MUST(r.at == r.end);
}

static struct noted *noted_of(const char *ack) {
    for (struct noted *d = world.noted; d < world.noted + world.delivered; d++)
        if (strcmp(d->ack, ack) == 0) return d;
    return NULL;
}

/* A call to a component. Its slot says where it is acknowledged; the component must be given what was
 * delivered there, and no reply subject. */
static void to_component(const char *inbox, const void *data, size_t len) {
    struct start *s = &world.started[world.starts++ % CALLERS];
    struct reader r = {data, data, (const uint8_t *)data + len, 0};
    struct message m = {0};
    size_t slot = 0;
    for (size_t i = 0; i < SLOT_LEN; i++)
        slot = 16 * slot + (size_t)((inbox[lattice->inbox_len + i] - 'A') & 15);
    MUST(slot < CALLS_MAX);
    const struct call *c = &calls.slots[slot];
    MUST(c->state == CALL_TAKEN && c->delivery);
    *s = (struct start){.of = c->delivery->ack ? noted_of(c->delivery->bytes) : NULL};
    (void)snprintf(s->inbox, sizeof(s->inbox), "%s", inbox);
    MUST(!c->delivery->ack || (s->of && s->of->came > s->of->acked + s->of->refused));
    if (s->of && s->of->came == 1 && read_publish(&r, &m) == WHOLE)
        MUST(!m.has_reply && digest(0, m.body.at, m.body.len) == s->of->body);
}

static const struct consumer *oracle_consumer(const struct link *l, const char *ack);

/* One final answer for each delivery, "done" only for what a component did, and the end of it only for
 * what no component can be given. Of a consumer that was made anew nothing older is said but on the
 * connection that brought it. */
static void to_acknowledge(const struct conn *c, const char *ack, struct span word) {
    struct noted *d = noted_of(ack);
    const struct consumer *k = oracle_consumer(c->link, ack);
    unsigned long long delay = 0;
    char text[80], again[80];
    (void)snprintf(text, sizeof(text), "%.*s", (int)word.len, word.at);
    MUST(d && k && d->came > d->acked + d->refused);
    MUST(d->came > 1 || d->epoch == k->epoch || c->state == CONN_DRAINING);
    if (strcmp(text, "+WPI") == 0) return;
    if (strcmp(text, "+ACK") == 0) {
        MUST(++d->acked <= d->ok);
        return;
    }
    d->refused++;
    if (strcmp(text, "+TERM") == 0) {
        MUST(d->never || lattice->io.max_payload < 4 * ID_MAX + 2 * TRACE_MAX);
        return;
    }
    MUST(sscanf(text, "-NAK {\"delay\":%llu}", &delay) == 1 && delay >= 1000000000ull * NAK_MIN_MS / 1000 &&
         delay <= 1000000000ull * NAK_MAX_MS / 1000);
    (void)snprintf(again, sizeof(again), "-NAK {\"delay\":%llu}", delay);
    MUST(strcmp(text, again) == 0);
}

/* Those of the link's settings. */
static unsigned consumers_of(const struct link *l) {
    unsigned count = 0;
    for (const struct consumer *k = l->consumers; k < l->consumers + CONSUMERS_PER_LINK; k++)
        count += k->state != CONSUMER_UNUSED && !k->removed;
    return count;
}

/* A request for messages asks for what link and consumer allow, and the component can have; and room for
 * it is kept. */
static void check_pull(const struct consumer *k, struct span json) {
    unsigned long long batch = 0, bytes = 0, expires = 0, heartbeat = 0;
    const struct link *l = k->link;
    char text[200];
    (void)snprintf(text, sizeof(text), "%.*s", (int)json.len, json.at);
    MUST(sscanf(text, "{\"batch\":%llu,\"max_bytes\":%llu,\"expires\":%llu,\"idle_heartbeat\":%llu}", &batch,
                &bytes, &expires, &heartbeat) == 4);
    MUST(batch > 0 && batch == k->wanted && batch + k->open <= MAX(l->max_in_flight / consumers_of(l), 1));
    MUST((!k->max_messages || batch <= k->max_messages) && (!world.max_batch || batch <= world.max_batch));
    MUST(bytes > 0 && bytes <= PULL_BYTES && (!k->max_bytes || bytes <= k->max_bytes) &&
         k->reserved >= bytes);
    MUST(expires > 0 && expires <= PULL_EXPIRES_MS * 1000000ull && heartbeat * 2 < expires);
    MUST(l->state == LINK_RUNNING && stop.state == RUNNING && lattice->state == CONN_UP &&
         now_ms >= l->absent_until_ms);
    MUST(!k->removed && k->state == CONSUMER_READY);
}

/* What a link that delivers says to its server: acknowledgements, questions about its consumers, and to
 * itself. */
static void to_jetstream(struct conn *c, const char *subject, const char *reply, struct span data) {
    static const char *const forms[] = {"$JS.API.CONSUMER.INFO.%s.%s", "$JS.API.CONSUMER.MSG.NEXT.%s.%s"};
    char wanted[INBOX_MAX + 64];
    struct link *l = c->link;
    if (strncmp(subject, "$JS.ACK.", 8) == 0) return to_acknowledge(c, subject, data);
    EACH_CONSUMER(k, l)
        for (size_t i = 0; i < 2; i++) {
            (void)snprintf(wanted, sizeof(wanted), forms[i], k->name.stream,
                           k->name.consumer); /* NOLINT(clang-diagnostic-format-nonliteral): one of two */
            if (strcmp(subject, wanted) != 0) continue;
            struct question *q = &world.questions[world.questioned++ % QUESTIONS];
            q->is_pull = i;
            q->conn = c;
            MUST(c == l->conn && c->state == CONN_UP);
            (void)snprintf(q->inbox, sizeof(q->inbox), "%s", reply);
            if (q->is_pull) check_pull(k, data);
            return;
        }
    MUST(!"a subject that a link that delivers may use");
}

/* Who asks the service protocol's questions: the answer is whole, and has what its type has. */
static const char asker[] = "S.rv";
static void to_asker(const void *data, size_t len) {
    json_t *json = json_loadb(data, len, 0, NULL);
    const char *type = json_string_value(json_object_get(json, "type"));
    MUST(type && strncmp(type, "io.nats.micro.v1.", 17) == 0 &&
         json_is_array(json_object_get(json, "endpoints")) == !strstr(type, "ping"));
    json_decref(json);
}

bool world_send(natsConnection *nc, struct span to, struct span from, const struct header *headers,
                const void *data, size_t len) {
    const char *subject = to.at, *reply = from.at;
    struct server *s = (struct server *)(void *)nc;
    struct conn *c = conn_of(nc);
    bool fails = s->fails;
    MUST(conn_is_open(c) && !c->io.error && oracle_subject(to, false) &&
         (int64_t)(headers_size(headers) + len) <= s->max_payload);
    MUST(!reply || oracle_subject(from, false));
    s->fails = false;
    world.deaf |= fails;
    if (fails) return false;
    struct link *l = c->link;
    MUST(c->is_lattice || (l ? l->state != LINK_FREE : c->state == CONN_DRAINING));
    if (strncmp(subject, c->inbox, c->inbox_len) == 0 && strncmp(subject + c->inbox_len, "probe", 5) == 0) {
        MUST(!reply && len == 0);
        (void)snprintf(s->probe, sizeof(s->probe), "%s", subject);
    } else if (c->is_lattice) {
        if (strcmp(subject, asker) == 0) to_asker(data, len);
        else if (strncmp(subject, "C.", 2) == 0) to_caller(subject, reply, data, len);
        else if (reply && strcmp(reply, self.nobody) != 0) to_component(reply, data, len);
    } else if (!l) {
        MUST(false); /* of a link that is gone, only what was written is drained */
    } else if (l->delivers) {
        to_jetstream(c, subject, reply, (struct span){data, len});
    } else {
        bool own = reply && strncmp(reply, c->inbox, c->inbox_len) == 0;
        MUST(c == l->conn);
        if (own) (void)snprintf(world.asked[world.asks++ % CALLERS], INBOX_MAX + 16, "%s", reply);
        world.digest = digest(digest(world.digest, subject, strlen(subject) + 1), data, len);
        if (reply && !own) world.digest = digest(world.digest, reply, strlen(reply) + 1);
    }
    s->buffered += (int)len + 64;
    atomic_store(&c->wants_write, true);
    return true;
}

static natsStatus world_subscribe(natsSubscription **sub, natsConnection *nc, const char *subject,
                                  const char *queue) {
    MUST(conn_of(nc)->state == CONN_UP && oracle_subject(span_of(subject), true) &&
         (!queue || oracle_subject(span_of(queue), false)));
    *sub = (natsSubscription *)(void *)strdup(subject);
    return NATS_OK;
}

/* The same "random" bytes each time, or an input would not be one. */
static uint32_t chance;
static const char *chance_name(void) { return "fuzz"; }
static uint32_t chance_next(void) { return chance = chance * 1664525 + 1013904223; }
static void chance_fill(void *const out, const size_t len) {
    for (size_t i = 0; i < len; i++) ((uint8_t *)out)[i] = (uint8_t)(chance_next() >> 24);
}

/* jansson's memory is counted, and kept in a list: what a death of the provider leaves behind is given
 * back. */
static struct piece {
    struct piece *next, **at;
} *pieces;

static void *json_take(size_t size) {
    struct piece *p = malloc(sizeof(*p) + size);
    *p = (struct piece){pieces, &pieces};
    if (pieces) pieces->at = &p->next;
    pieces = p;
    world.blocks++;
    return p + 1;
}

static void json_give(void *memory) {
    struct piece *p = memory;
    if (!memory) return;
    p--;
    if (p->next) p->next->at = p->at;
    *p->at = p->next;
    world.blocks--;
    free(p);
}

static void server_up(struct conn *c) {
    struct server *s = server_of(c);
    *s = (struct server){.max_payload = s->max_payload, .filler = s->filler};
    c->nc = (natsConnection *)(void *)s;
    atomic_store(&c->report, REPORT_UP);
}

static void arrive(struct conn *c, natsMsg *msg);
static natsMsg *message(const char *subject, const char *reply, struct span data);

/* A server that takes what was written sends the flush probe back. */
static void server_answers(struct conn *c) {
    struct server *s = server_of(c);
    if (!conn_is_open(c) || !*s->probe || s->stuck || s->buffered > 0) return;
    arrive(c, message(s->probe, NULL, (struct span){0}));
    *s->probe = 0;
}

static json_t *defaults(void) { return json_pack("{s:s}", "cluster_uris", "nats://127.0.0.1:4222"); }

/* A provider on a lattice that is up, with xkeys if `keys`, and without links. */
static void world_begin(void) {
    memset(&world, 0, sizeof(world));
    for (size_t i = 0; i < CONNS_MAX; i++) world.servers[i].max_payload = 1 << 20;
    (void)strcpy(world.error, "it said \r\n so");
    world.piece = SIZE_MAX;
    chance = 1;
    now_ms = 100000;
    now_us = 1000 * now_ms;
    memset(&stop, 0, sizeof(stop));
    memset(&orders, 0, sizeof(orders));
    memset(calls.slots, 0, calls.fresh * sizeof(*calls.slots));
    calls.free = NULL;
    calls.fresh = 0;
    calls.used = calls.answered = 0;
    calls.next_due_ms = UINT64_MAX;
    memset(conns, 0, conns_fresh * sizeof(*conns));
    memset(links, 0, links_fresh * sizeof(*links));
    conns_fresh = 1;
    links_fresh = 0;
    no_link.bytes = no_link.calls = 0;
    logger.json = true;
    memset(self.topic.limits, 0, sizeof(self.topic.limits));
    *self.refused = 0;
    self.links_put = 0;
    (void)strcpy(self.key, "messaging-nats");
    (void)strcpy(self.lattice, "default");
    (void)strcpy(self.host_id, "NHOST");
    self.defaults.config = json_object();
    self.defaults.secrets = json_object();
    self.links = json_array();
    service_start("fuzz");
    self.nobody[inbox_make(self.nobody, "_INBOX.nobody") - 1] = 0;
    lattice = conns;
    lattice_next = NULL;
    lattice->is_lattice = lattice->vital = true;
    conn_begin(lattice, defaults(), &no_link.topic);
    server_up(lattice);
    conn_step(lattice);
    MUST(lattice->state == CONN_UP && !self.links);
    MUST(subjects[SHUTDOWN].obey == on_shutdown && subjects[HEALTH].take == on_health &&
         subjects[PUT].obey == on_put);
    MUST(subjects[CONFIG].obey == on_config && subjects[DELETE].obey == on_delete);
}

/* What a walk over slots and queues finds of a link. */
struct found {
    unsigned calls, in_flight, settling, queued, outbox, open[CONSUMERS_PER_LINK];
    size_t bytes;
};

static size_t found_plain; /* bytes of deliveries of subscriptions */

/* A delivery: its consumer and its connection are of its link, or it has none. */
static void find_delivery(struct found *f, const struct link *l, const struct delivery *d,
                          unsigned users[CONNS_MAX]) {
    f->bytes += delivery_size(d);
    if (!d->ack) found_plain += delivery_size(d);
    if (!d->ack) return;
    MUST(d->consumer < CONSUMERS_PER_LINK && l->consumers[d->consumer].state != CONSUMER_UNUSED);
    const struct conn *from = d->conn ? &conns[d->conn] : NULL; /* or it is not wanted any more */
    MUST(d->conn < CONNS_MAX &&
         (!from || (from->state != CONN_FREE &&
                    (from->link == l || (!from->link && from->state == CONN_CONNECTING)))));
    f->open[d->consumer]++;
    if (d->conn) users[d->conn]++;
}

/* One slot: what its state needs is there, and it has a deadline. */
static void check_call(const struct call *c) {
    const struct link *l = c->link;
    bool to_component = c->state == CALL_INVOKED || c->state == CALL_SETTLING;
    const struct delivery *d = to_component ? c->delivery : NULL;
    const struct buffer *b = to_component ? NULL : c->buffer;
    MUST(c->state != CALL_TAKEN && (c->deadline_ms != UINT64_MAX || c->state >= CALL_WRITING) &&
         calls.next_due_ms <= c->deadline_ms);
    MUST(l == &no_link || l->state != LINK_FREE);
    MUST(!c->again_ms || calls.next_due_ms <= c->again_ms);
    MUST(l == &no_link ? c->state >= CALL_ANSWERED : l->delivers == to_component);
    MUST(!b || b->len <= b->room);
    MUST((c->state != CALL_PARAMS && c->state != CALL_OUTBOX) || b);
    MUST((c->state != CALL_WRITING && c->state != CALL_ASKED) ||
         (!b && conn_is_open(c->conn) && c->conn->link == l));
    MUST(c->state != CALL_ANSWERED || c->sent <= result_of(c).len);
    MUST(!to_component || d || c->state == CALL_INVOKED);
    MUST(!d || (c->first <= d->params_len && c->sent <= d->params_len));
    if (c->state != CALL_SETTLING) return;
    bool well = l->conn && l->conn->state == CONN_UP && conn_is_well(l->conn);
    MUST(d->ack && !(well && l->state == LINK_RUNNING && l->consumers[d->consumer].same));
}

/* A list of slots: its links are sound, and all of it is in this state. */
static unsigned check_list(const struct call_list *list, enum call_state state) {
    const struct call *before = NULL;
    unsigned count = 0;
    for (const struct call *c = list->first; c; before = c, c = c->next, count++) {
        MUST(c->before == before && c->state == state && count < CALLS_MAX);
        MUST(state != CALL_WRITING || !before || before->out_at <= c->out_at);
    }
    MUST(list->last == before);
    return count;
}

static void check_queue(struct found *f, const struct link *l, const struct queue *q,
                        unsigned users[CONNS_MAX]) {
    for (const struct delivery *d = q->first; d; d = d->next, f->queued++) {
        MUST(!d->ack == (q != &l->stored) && (d->next || q->last == d) && f->queued < 10000);
        MUST(!d->next || (int32_t)(d->next->number - d->number) > 0);
        find_delivery(f, l, d, users);
    }
}

/* A consumer asks and is asked only while its link is up; its deliveries are those that it counts. */
static void check_consumers(const struct link *l, const struct found *f) {
    for (size_t i = 0; i < CONSUMERS_PER_LINK; i++) {
        const struct consumer *k = &l->consumers[i];
        MUST(k->open == f->open[i] && (k->wanted > 0 || k->reserved == 0));
        if (k->state == CONSUMER_UNUSED) continue;
        MUST(k->link == l && k->entry);
        MUST(k->removed || k->wanted == 0 ||
             (k->state == CONSUMER_READY && l->conn && conn_is_open(l->conn)));
        unsigned *before = &world.wanted[l - links][i]; /* check_pull() has seen what was asked for */
        MUST(k->removed || k->wanted <= MAX(MAX(l->max_in_flight / consumers_of(l), 1), *before));
        *before = k->wanted;
    }
}

/* What a link's messages and calls have become adds up, whatever has happened; and what it says that it
 * holds is what its slots and its queues hold. */
static void check_link_sums(const struct link *l, unsigned users[CONNS_MAX]) {
    struct found f = {0};
    uint64_t ended = 0;
    check_queue(&f, l, &l->plain, users);
    check_queue(&f, l, &l->stored, users);
    check_queue(&f, l, &l->later, users);
    EACH_CALL(c) {
        if (c->link != l) continue;
        bool to_component = c->state == CALL_INVOKED || c->state == CALL_SETTLING;
        check_call(c);
        f.calls += c->state < CALL_ANSWERED;
        f.in_flight += c->state == CALL_INVOKED;
        f.settling += c->state == CALL_SETTLING;
        f.outbox += c->state == CALL_OUTBOX;
        if (c->state == CALL_WRITING || c->state == CALL_ASKED) users[c->conn - conns]++;
        if (to_component && c->delivery) find_delivery(&f, l, c->delivery, users);
        if (!to_component && c->buffer)
            f.bytes += sizeof(*c->buffer) + c->buffer->parent + c->buffer->state + c->buffer->room +
                       ARENA_HEAD;
    }
    MUST(l->calls == f.calls && l->in_flight == f.in_flight && l->queued == f.queued && l->bytes == f.bytes);
    MUST(check_list(&l->outbox, CALL_OUTBOX) == f.outbox);
    if (l == &no_link) return;
    unsigned *before = &world.in_flight[l - links]; /* fewer may be allowed than there are already */
    MUST(l->in_flight <= MAX(l->max_in_flight, *before));
    *before = l->in_flight;
    for (enum count i = HANDLED; i < CALLS; i++) ended += l->counts[i];
    MUST(l->counts[RECEIVED] == ended + f.in_flight + f.settling + f.queued);
    MUST(l->counts[CALLS] == l->counts[OK] + l->counts[FAILED] + (l->delivers ? 0 : l->calls));
    MUST(l->delivers || (l->queued == 0 && l->in_flight == 0));
    check_consumers(l, &f);
}

/* A link has what its state says: settings, and a connection for these settings. */
static void check_link_state(const struct link *l) {
    MUST(l->state != LINK_WRONG || (!l->settings && !l->conn && !l->next && *l->error));
    MUST(l->state != LINK_RUNNING || l->settings);
    MUST(!l->conn || (l->conn->link == l && l->conn->state != CONN_FREE &&
                      same_connection(l->conn->settings, l->settings)));
    MUST(!l->next || (l->next->link == l && l->next != l->conn && l->next->state != CONN_FREE));
    MUST(!l->next || l->next->state != CONN_DRAINING || stop.state != RUNNING);
}

static void check_conn(const struct conn *c, unsigned users) {
    unsigned writing = 0, found = 0;
    MUST(c->users == users && (c->nc != NULL) >= conn_is_open(c));
    MUST(c->is_lattice ? !c->link : !c->link || c->link->state != LINK_FREE);
    MUST(c != lattice_next || (c != lattice && c->is_lattice && c->state != CONN_DRAINING));
    EACH_CALL(call)
        writing += c->is_lattice ? call->state == CALL_SENT && call->home == c
                                 : call->state == CALL_WRITING && call->conn == c;
    MUST(check_list(&c->writing, c->is_lattice ? CALL_SENT : CALL_WRITING) == writing &&
         c->io.written <= c->io.given);
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) found += net.subs[i].conn == c;
    MUST(found == 0 || conn_is_open(c));
}

static void check_world(void) {
    unsigned used = calls.answered, answered = 0, up = 0, staying = 0, unused = 0, users[CONNS_MAX] = {0};
    size_t bytes = no_link.bytes, reserved = 0;
    found_plain = 0;
    check_link_sums(&no_link, users);
    EACH_LINK(l) {
        check_link_sums(l, users);
        check_link_state(l);
        used += l->calls;
        bytes += l->bytes;
        EACH_CONSUMER(k, l) reserved += k->reserved;
        staying += l->state != LINK_LEAVING;
    }
    EACH_CONN(c) {
        check_conn(c, users[c - conns]);
        up += conn_is_open(c);
    }
    for (size_t i = 0; i < COUNT_OF(net.subs); i++)
        MUST(!net.subs[i].conn || net.subs[i].conn->state != CONN_FREE);
    EACH_CALL(c) answered += c->state == CALL_ANSWERED;
    EACH_CALL(c) used += c->state == CALL_SENT;
    for (const struct call *c = calls.free; c; c = c->next, unused++)
        MUST(c->state == CALL_FREE && unused < CALLS_MAX);
    MUST(calls.used == used && calls.answered == answered && calls.used + unused == calls.fresh);
    MUST(backlog.bytes == bytes && backlog.reserved == reserved && bytes + reserved <= BACKLOG_MAX);
    MUST(backlog.plain == found_plain && backlog.kept <= BACKLOG_MAX / 4);
    MUST(net.up == up && staying <= LINKS_MAX);
}

static void world_end(void) {
    check_world();
    EACH_LINK(l) {
        if (l->state != LINK_LEAVING) link_leave(l);
    }
    EACH_LINK(l) link_free(l);
    check_world();
    EACH_CONN(c) {
        if (c->is_lattice && c != lattice) conn_drain(c, 0);
    }
    EACH_CALL(c) {
        MUST(c->state >= CALL_ANSWERED && c->link == &no_link);
        if (c->state == CALL_ANSWERED) call_release(c);
        call_free(c); /* what the lattice does not take is lost */
    }
    for (struct caller *c = world.callers; c < world.callers + CALLERS; c++) {
        if (!c->used || c->misled || world.lossy) continue;
        MUST(c->shaken >= 1 && c->ended == 1);
        check_result(c);
    }
    for (const struct noted *d = world.noted; d < world.noted + world.delivered; d++)
        MUST(world.deaf || d->deaf || d->came == d->acked + d->refused);
    EACH_CONN(c) {
        if (c == lattice) continue;
        if (c->state == CONN_CONNECTING)
            atomic_store(&c->report, REPORT_FAILED); /* its attempt ends some time */
        conn_step(c);
    }
    for (int i = 0; i < 2; i++) { /* what a step asked for is taken before the next, and then nothing is */
        now_ms += STOP_DRAIN_MS;
        EACH_CONN(c) {
            if (c != lattice) conn_step(c);
        }
    }
    for (struct conn *c = conns; c < conns + conns_fresh; c++) MUST(c == lattice || c->state == CONN_FREE);
    if (lattice->state == CONN_UP) conn_close(lattice);
    json_decref(lattice->settings);
    json_decref(self.defaults.config);
    json_decref(self.defaults.secrets);
    json_decref(self.links);
    self.links = NULL;
    MUST(calls.used == 0 && calls.answered == 0 && backlog.bytes == 0 && backlog.reserved == 0 &&
         net.up == 0 && world.blocks == 0);
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) MUST(!net.subs[i].conn);
}

/* ---- the input, taken bit by bit ----------------------------------------------------------------------- */

static struct span in;

static unsigned take(void) { return in.len ? (in.len--, (uint8_t)*in.at++) : 0; }

static struct span take_bytes(size_t len) {
    struct span s = {in.at, MIN(len, in.len)};
    in.at += s.len;
    in.len -= s.len;
    return s;
}

static struct span take_span(void) { return take_bytes(take()); }

/* As a string in memory of exactly its size; the caller frees it. */
static char *taken_text(struct span s) { return strndup(s.len ? s.at : "", s.len); }

/* A message as nats.c's parser makes it, with this header block: see headers_of(). */
static natsMsg *message_with(const char *headers, const char *subject, const char *reply, struct span data) {
    natsMsg *msg = NULL;
    size_t head = strlen(headers);
    char *all = malloc(head + data.len + 1);
    memcpy(mempcpy(all, headers, head), data.len ? data.at : "", data.len);
    MUST(natsMsg_createWithPadding(&msg, subject, (int)strlen(subject), reply, reply ? (int)strlen(reply) : 0,
                                   all, (int)(head + data.len), 0, (int)head) == NATS_OK);
    free(all);
    return msg;
}

static natsMsg *message(const char *subject, const char *reply, struct span data) {
    return message_with("", subject, reply, data);
}
static const char no_responders[] = "NATS/1.0 503\r\n\r\n";

/* What a component's host answers: whether it may count as done. */
static void note_answer(natsMsg *msg) {
    const char *subject = natsMsg_GetSubject(msg), *suffix;
    const struct call *c = inbox_kind(lattice, subject) ? call_of_subject(lattice, subject, &suffix) : NULL;
    for (struct start *s = world.started; s < world.started + CALLERS; s++) {
        size_t n = strlen(s->inbox);
        if (n == 0 || strncmp(subject, s->inbox, n) != 0 || !c || c->state != CALL_INVOKED) continue;
        if (!subject[n] && !is_no_responders(msg)) s->shaken |= is_inbox(span_of(natsMsg_GetReply(msg)));
        if (strcmp(subject + n, ".results") != 0 || !s->shaken || s->begun || natsMsg_GetDataLength(msg) == 0)
            continue;
        s->begun = true;
        if (s->of && *natsMsg_GetData(msg) == 0) s->of->ok++;
    }
}

/* Whose handshake is answered, by whomever: then it is not repeated any more. */
static void note_acknowledgement(const char *subject) {
    for (struct caller *c = world.callers; c < world.callers + CALLERS; c++) {
        size_t n = strlen(c->rs);
        if (n == 0 || strncmp(subject, c->rs, n) != 0 || strcmp(subject + n, ".params") != 0) continue;
        c->acknowledged++;
        c->misled |= c->late;
    }
}

/* The tokens between dots, in place. Returns how many there are. */
static size_t split_dots(char *text, char *tokens[16]) {
    size_t n = 0;
    for (char *token; (token = strsep(&text, ".")); n++)
        if (n < 16) tokens[n] = token;
    return n;
}

/* protocol: ADR-15, written a second time. The consumer that a reply subject belongs to, or NULL. */
static const struct consumer *oracle_consumer(const struct link *l, const char *ack) {
    char copy[SUBJECT_MAX + 1], *token[16];
    const struct consumer *found = NULL;
    if (!ack || strlen(ack) >= sizeof(copy) || !oracle_subject(span_of(ack), false)) return NULL;
    size_t n = split_dots(strcpy(copy, ack), token), first = n == 9 ? 2 : 4;
    if ((n != 9 && n < 11) || strcmp(token[0], "$JS") != 0 || strcmp(token[1], "ACK") != 0) return NULL;
    for (const struct consumer *k = l->consumers; k < l->consumers + CONSUMERS_PER_LINK; k++) {
        const char *domain = k->name.domain;
        if (k->state == CONSUMER_UNUSED || strcmp(k->name.stream, token[first]) != 0) continue;
        if (strcmp(k->name.consumer, token[first + 1]) != 0) continue;
        if (n != 9 && *token[2] && domain && strcmp(domain, token[2]) != 0) continue;
        if (n == 9 ? k->wanted > 0 : domain != NULL) return k;
        if (!found) found = k;
    }
    return found;
}

static unsigned open_with(const char *ack) {
    unsigned count = 0;
    EACH_LINK(l) {
        for (const struct delivery *d = l->stored.first; d; d = d->next) count += strcmp(d->bytes, ack) == 0;
    }
    EACH_CALL(c) count += call_has_delivery(c) && c->delivery->ack && strcmp(c->delivery->bytes, ack) == 0;
    return count;
}

/* A message that was open has come again, and is not received once more: what was noted of it goes on under
 * the newer ack subject. */
static void note_again(struct noted *to) {
    struct noted *from = to;
    for (struct noted *d = world.noted; d < world.noted + world.delivered; d++)
        if (d != to && d->open > open_with(d->ack)) from = d;
    MUST(from->came > from->acked + from->refused && open_with(to->ack));
    from->came--;
    if (from == to) return;
    if (from->ok > from->acked) {
        from->ok--;
        to->ok++;
    }
    for (struct start *s = world.started; s < world.started + CALLERS; s++)
        if (s->of == from) s->of = to;
}

/* What comes to a link. Returns false if it is a delivery more than are noted here. */
static bool note_delivery(const struct conn *c, natsMsg *msg, struct noted **noted) {
    const char *ack = natsMsg_GetReply(msg), *subject = natsMsg_GetSubject(msg);
    struct span body = {natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg)};
    const struct consumer *k = c->link ? oracle_consumer(c->link, ack) : NULL;
    if (inbox_kind(c, subject) || !k) return true;
    struct js_ack a;
    if (js_ack_read(ack, &a) && a.number == k->last && a.time == k->last_time) return true; /* once more */
    struct noted *d = noted_of(ack);
    if (!d && world.delivered == NOTED) return false;
    if (!d) d = &world.noted[world.delivered++];
    (void)snprintf(d->ack, sizeof(d->ack), "%s", ack);
    d->came++;
    d->body = digest(0, body.at, body.len);
    d->never = body.len > MESSAGE_MAX || !oracle_utf8(span_of(subject));
    d->epoch = k->epoch;
    *noted = d;
    return true;
}

/* As the guard hands it over; to nobody, if there is no such connection. */
static void arrive(struct conn *c, natsMsg *msg) {
    struct noted *noted = NULL;
    bool up = c && conn_is_open(c) && (c->io.error || c == lattice || note_delivery(c, msg, &noted));
    uint64_t received = noted ? c->link->counts[RECEIVED] : 0;
    for (struct noted *d = world.noted; noted && d < world.noted + world.delivered; d++)
        d->open = open_with(d->ack);
    if (up && c == lattice && !c->io.error) note_answer(msg), note_acknowledgement(natsMsg_GetSubject(msg));
    if (c) c->io.heard_ms = now_ms;
    if (up) on_arrived(c, msg);
    else natsMsg_free(msg);
    if (noted && c->link->counts[RECEIVED] == received) note_again(noted);
}

/* What connects for a link comes up. */
static void bring_up(struct link *l) {
    EACH_CONN(c) {
        if (c->link != l || c->state != CONN_CONNECTING) continue;
        server_up(c);
        conn_step(c);
    }
    link_step(l);
}

/* A link, put as a host would: it delivers or serves, with configuration on its side. */
static struct link *put(bool delivers, const char *component, const char *key, const char *value) {
    json_t *json = json_pack("{s:s, s:s, s:s, s:{s:s}, s:{s:s}}", "source_id",
                             delivers ? self.key : component, "target", delivers ? component : self.key,
                             "name", "default", "source_config", key, value, "target_config", key, value);
    link_put(json);
    json_decref(json);
    EACH_LINK(l) {
        if (l->state == LINK_LEAVING || l->delivers != delivers || strcmp(l->component, component) != 0)
            continue;
        bring_up(l);
        return l;
    }
    return NULL;
}

/* n / CALLERS: 1, a caller on a host of 1.9; 2, one that is late, too; 3, one by a link that is none. */
static struct caller *call(const char *component, unsigned n, bool is_request, struct span params) {
    char rc[16], headers[80];
    struct caller *c = &world.callers[n % CALLERS];
    unsigned host = n / CALLERS;
    if (c->used) return c;
    *c = (struct caller){.used = true,
                         .is_request = is_request,
                         .acknowledges = host > 0,
                         .late = host > 1,
                         .was_late = host > 1};
    (void)snprintf(rc, sizeof(rc), "C.%u.i", n % CALLERS);
    (void)snprintf(headers, sizeof(headers), "NATS/1.0\r\nsource-id: %s\r\n%s\r\n", component,
                   host == 0   ? ""
                   : host == 3 ? "link-name: none\r\n"
                               : "link-name: default\r\n");
    arrive(lattice,
           message_with(headers, subjects[is_request ? SUBJECT_REQUEST : SUBJECT_PUBLISH].name, rc, params));
    return c;
}

/* More parameters, or their end. A caller that was late is so no more, and has not seen a handshake. */
static void more_params(struct caller *c, struct span piece) {
    char subject[INBOX_MAX + 32];
    (void)snprintf(subject, sizeof(subject), "%s.params", c->rs);
    c->late = false;
    if (c->shaken > 0) arrive(lattice, message(subject, NULL, piece));
}

/* A link's server takes what was written, unless it is stuck; what has ended so ends, what waited goes on. */
static void write_all(struct link *l) {
    EACH_CONN(c) {
        if (c->link != l) continue;
        c->io.blocked = false;
        conn_write(c);
        on_written(c);
        server_answers(c);
    }
    outbox_step(l);
}

/* It takes nothing any more. Others may have filled nats.c's write buffer before. */
static void server_sticks(struct conn *c) {
    struct server *s = server_of(c);
    s->stuck = true;
    if (s->filler == 0 || conn_waiting(c) > 0 || !conn_is_open(c)) return;
    s->buffered += s->filler;
    c->io.given += (uint64_t)s->filler;
    atomic_store(&c->wants_write, true);
}

/* ---- targets ------------------------------------------------------------------------------------------- */

enum kind { OF_PUBLISH, OF_REQUEST, OF_U32, OF_BYTES, OF_STRING, KINDS };

struct value {
    struct message m;
    uint32_t number;
    size_t used;
};

static enum decoded decode(enum kind kind, const uint8_t *bytes, size_t len, struct value *v) {
    struct reader r = {.start = bytes, .at = bytes, .end = bytes + len};
    *v = (struct value){0};
    enum decoded d = kind == OF_PUBLISH   ? read_publish(&r, &v->m)
                     : kind == OF_REQUEST ? read_request(&r, &v->m, &v->number)
                     : kind == OF_U32     ? read_u32(&r, &v->number)
                     : kind == OF_BYTES   ? read_bytes(&r, &v->m.body)
                                          : read_string(&r, &v->m.subject);
    v->used = d == NEEDS_MORE ? r.needs : (size_t)(r.at - r.start);
    return d;
}

static size_t encode(enum kind kind, uint8_t *out, const struct value *v) {
    if (kind == OF_PUBLISH) return write_message(out, &v->m);
    if (kind == OF_U32) return write_u32(out, v->number);
    if (kind == OF_BYTES || kind == OF_STRING)
        return write_bytes(out, kind == OF_BYTES ? v->m.body : v->m.subject);
    size_t n = write_bytes(out, v->m.subject);
    n += write_bytes(out + n, v->m.body);
    return n + write_u32(out + n, v->number);
}

static bool same(struct span a, struct span b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}

/* A value decodes alike whatever stands behind it, needs exactly what it says, and survives being encoded. */
static void fuzz_wire(const uint8_t *data, size_t len) {
    static const char *const fields[] =
        {[OF_PUBLISH] = "sbo", [OF_REQUEST] = "sbu", [OF_U32] = "u", [OF_BYTES] = "b", [OF_STRING] = "s"};
    struct value v, again;
    if (len == 0) return;
    enum kind kind = *data++ % KINDS;
    enum decoded d = decode(kind, data, --len, &v);
    struct span rest = {(const char *)data, len};
    MUST(d == oracle_fields(fields[kind], &rest) && (d != WHOLE || v.used == len - rest.len));
    for (size_t cut = 0, needed = 0; cut <= len;
         cut++) { /* NEEDS_MORE until enough is there, then one verdict for good */
        uint8_t *exact = memcpy(malloc(cut + !cut), data, cut);
        enum decoded before = decode(kind, exact, cut, &again);
        MUST(before == NEEDS_MORE || (before == d && cut >= needed));
        if (before == NEEDS_MORE) MUST(again.used > cut && (d == NEEDS_MORE || again.used <= len));
        if (before == NEEDS_MORE) needed = again.used;
        if (before == WHOLE) MUST(again.used == v.used && v.used <= cut);
        free(exact);
        if (before == WHOLE && cut > v.used) break;
    }
    if (d != WHOLE) return;
    MUST(oracle_utf8(v.m.subject) && oracle_utf8(v.m.reply_to));
    uint8_t *out = malloc(message_size(&v.m) + 8), *exact;
    size_t n = encode(kind, out, &v);
    MUST(n <= v.used && (kind != OF_PUBLISH || n == message_size(&v.m)));
    exact = realloc(out, n);
    MUST(decode(kind, exact, n, &again) == WHOLE && again.used == n && again.number == v.number &&
         again.m.has_reply == v.m.has_reply);
    MUST(same(again.m.subject, v.m.subject) && same(again.m.body, v.m.body) &&
         same(again.m.reply_to, v.m.reply_to));
    free(exact);
}

/* The result of handle-message, cut where the first bytes say, against the same in one piece and against
 * the decoder. */
static void fuzz_result(const uint8_t *data, size_t len) {
    struct result whole = {0}, pieces_of = {0};
    in = (struct span){(const char *)data, len};
    uint32_t cuts = take();
    cuts |= take() << 8;
    cuts |= take() << 16;
    struct span bytes = in, text = {0};
    enum decoded d = read_result(&whole, (const uint8_t *)bytes.at, bytes.len), p = NEEDS_MORE;
    for (size_t n; in.len > 0 && p == NEEDS_MORE; cuts = cuts >> 3 | cuts << 21) {
        struct span piece = take_bytes(n = 1 + (cuts & 7) * (cuts & 7));
        uint8_t *exact = memcpy(malloc(piece.len), piece.at, piece.len);
        p = read_result(&pieces_of, exact, piece.len);
        free(exact);
    }
    MUST(p == d && (d == MALFORMED || memcmp(&whole, &pieces_of, sizeof(whole)) == 0));
    struct reader r = {(const uint8_t *)bytes.at, (const uint8_t *)bytes.at,
                       (const uint8_t *)bytes.at + bytes.len, 0};
    enum decoded expected = bytes.len == 0 ? NEEDS_MORE
                            : *r.at > 1    ? MALFORMED
                            : *r.at++ == 0 ? WHOLE
                                           : read_bytes(&r, &text);
    MUST(d == expected);
    size_t kept = MIN(text.len, sizeof(whole.text) - 1);
    if (d == WHOLE)
        MUST(whole.is_error == (bytes.at[0] == 1) && whole.kept == kept &&
             (!kept || memcmp(whole.text, text.at, kept) == 0) && whole.text[kept] == 0);
}

/* Lists and numbers, read a second time. */
static void tell_nobody(void *user, const char *text) { (void)user, (void)text; }

static char *oracle_trim(char *text) {
    static const char blanks[] = " \t\r\n\v\f";
    text += strspn(text, blanks);
    for (size_t len = strlen(text); len > 0 && strchr(blanks, text[len - 1]);) text[--len] = 0;
    return text;
}

static void check_lists(const char *text) {
    struct listener nobody = {tell_nobody, NULL};
    struct span item, subject, queue;
    size_t n = 0;
    bool good = true;
    char *copy = strdup(text), *rest = copy, *token;
    while ((token = strsep(&rest, ","))) {
        token = oracle_trim(token);
        if (!*token) continue;
        MUST(list_item(text, n++, &item) && same(item, span_of(token)));
        char *bar = strchr(token, '|');
        if (bar) *bar = 0;
        token = oracle_trim(token);
        good &= oracle_subject(span_of(token), true) && oracle_utf8(span_of(token)) &&
                (!bar || oracle_subject(span_of(oracle_trim(bar + 1)), false));
    }
    MUST(!list_item(text, n, &item) &&
         (subscription_faults(text, &nobody) == 0) == (good && n <= SUBSCRIPTIONS_MAX) &&
         count_items(text) == n);
    for (size_t i = 0; i < (good ? n : 0); i++)
        MUST(list_item(text, i, &item) && split_subscription(item, &subject, &queue));
    free(copy);
}

/* What goes into CONNECT, read as JSON, is what it was. */
static void check_escaped(const char *text) {
    char json[URL_ESCAPED(URL_MAX) + 5] = "[\"";
    size_t len = url_json_escape(json + 2, text);
    MUST(len <= URL_ESCAPED(strlen(text)) && len == strlen(json + 2));
    json_t *list = json_loads(strcat(json, "\"]"), 0, NULL);
    MUST(strcmp(json_string_value(json_array_get(list, 0)), text) == 0);
    json_decref(list);
}

/* A server that is taken: nats.c gets no more of it than a number, the host is a name or an address, and
 * what was not encoded is what it was. */
static void check_server(struct span server) {
    struct url url;
    char address[URL_ADDRESS_MAX];
    MUST(!server_read(server, &url) && server.len <= URL_MAX);
    url_address(&url, address);
    unsigned long port = strtoul(url.port, NULL, 10);
    MUST(port >= 1 && port <= 65535 && strspn(url.port, "0123456789") == strlen(url.port));
    for (const char *c = url.host; *c; c++) MUST(isalnum((uint8_t)*c) || strchr("-._:%", *c));
    MUST(*url.host && !strpbrk(address, "/@ \r\n\"\\") &&
         (strchr(url.host, ':') != NULL) == (*address == '['));
    MUST(oracle_utf8(span_of(url.user)) && oracle_utf8(span_of(url.password)) &&
         (url.has_user || !url.has_password));
    const char *user = memmem(server.at, server.len, "://", 3);
    user = user ? user + 3 : server.at;
    if (!memchr(server.at, '%', server.len) && url.has_user)
        MUST(memcmp(user, url.user, strlen(url.user)) == 0);
    check_escaped(url.user);
    check_escaped(url.password);
}

/* What goes into subjects, lists, numbers, log lines. */
static void fuzz_subjects(const uint8_t *data, size_t len) {
    struct span s = {(const char *)data, len = MIN(len, 1200)};
    char *text = taken_text(s), small[40];
    const char *suffix;
    for (int wildcards = 0; wildcards < 2; wildcards++)
        MUST(is_subject(s, wildcards) == oracle_subject(s, wildcards));
    MUST(is_utf8(s) == oracle_utf8(s));
    MUST(is_token(text) ==
         (oracle_subject(span_of(text), false) && strlen(text) < ID_MAX && !strpbrk(text, ".*>")));
    MUST(is_inbox(span_of(text)) ==
         (oracle_subject(span_of(text), false) && strlen(text) + TOKEN_LEN < INBOX_MAX));
    check_lists(text);
    struct url url;
    const char *wrong = server_read(s, &url);
    MUST(!wrong || strlen(wrong) < 100);
    if (!wrong) check_server(s);
    for (int json = 0; json < 2; json++) {
        const char *shown = log_escape(small, 4 + len % 36, text, json);
        MUST(oracle_utf8(span_of(shown)) && strlen(shown) < 4 + len % 36);
        for (const char *c = shown; *c; c++)
            MUST((unsigned char)*c >= ' ' && *c != 0x7f && memcmp(c, "\xc2\x9b", 2) != 0);
    }
    json_t *settings = json_object();
    uint64_t n = 0, value = 0;
    const struct key *key = link_keys;
    while (strcmp(key->name, "ping_interval_sec") != 0) key++;
    json_object_set_new(settings, key->name, json_stringn_nocheck(text, strlen(text)));
    bool number = *text && strlen(text) < 19 && strspn(text, "0123456789") == strlen(text);
    for (const char *c = text; number && *c; c++) value = value * 10 + (uint64_t)(*c - '0');
    if (strlen(text) < 19)
        MUST(number_read(settings, key, &n) == (number && value >= 1 && value <= 86400) &&
             (!number || n == value));
    json_decref(settings);
    lattice->inbox_len = 0; /* an inbox of a call, if anything: nobody has called */
    MUST(!call_of_subject(lattice, text, &suffix) && (!*suffix || suffix == text + TOKEN_LEN));
    free(text);
}

/* Where a message is acknowledged: what is taken for that has its tokens where ADR-15 puts them. */
static void check_ack(const char *text) {
    char *copy = strdup(text), *token[16];
    struct js_ack a = {0};
    size_t n = split_dots(copy, token), first = n == 9 ? 2 : 4;
    bool good = (n == 9 || n >= 11) && strcmp(token[0], "$JS") == 0 && strcmp(token[1], "ACK") == 0;
    MUST(js_ack_read(text, &a) == good);
    if (good) MUST(same(a.stream, span_of(token[first])) && same(a.consumer, span_of(token[first + 1])));
    for (size_t i = 2; good && i < 4; i++) {
        const char *digits = token[first + i];
        bool number = *digits && strlen(digits) < 19 && strspn(digits, "0123456789") == strlen(digits);
        if (number) MUST((i == 2 ? a.deliveries : a.sequence) == strtoull(digits, NULL, 10));
    }
    free(copy);
}

static bool oracle_name(const json_t *name) {
    const char *text = json_string_value(name);
    return text && strlen(text) < ID_MAX && oracle_subject(span_of(text), false) && !strpbrk(text, ".*>");
}

static bool oracle_limit(const json_t *limit) {
    return !limit || (json_is_integer(limit) && json_integer_value(limit) >= 1);
}

static bool same_or_none(const json_t *a, const json_t *b) { return a == b || json_equal(a, b); }

static bool oracle_entry(const json_t *list, size_t i) {
    const json_t *item = json_array_get(list, i), *stream = json_object_get(item, "stream"),
                 *name = json_object_get(item, "consumer");
    if (!oracle_name(stream) || !oracle_name(name) ||
        json_string_length(stream) + json_string_length(name) > INBOX_MAX / 2 - 1)
        return false;
    const json_t *domain = json_object_get(item, "domain"), *prefix = json_object_get(item, "api_prefix"),
                 *group = json_object_get(item, "group");
    size_t len = json_string_length(stream) + json_string_length(name) + json_string_length(domain) +
                 json_string_length(prefix);
    if ((domain && prefix) || (domain && !oracle_name(domain)) || len > INBOX_MAX / 2 - 1) return false;
    if (prefix &&
        (!json_is_string(prefix) || json_string_length(prefix) > ID_MAX ||
         !oracle_subject((struct span){json_string_value(prefix), json_string_length(prefix)}, false)))
        return false;
    const char *named = json_string_value(group);
    if (group && (!named || json_string_length(group) < 1 || json_string_length(group) > 16)) return false;
    for (; named && *named; named++)
        if (!isalnum((unsigned char)*named) && !strchr("/_=-", *named)) return false;
    for (size_t j = 0; j < i; j++) {
        const json_t *other = json_array_get(list, j);
        if (json_equal(stream, json_object_get(other, "stream")) &&
            json_equal(name, json_object_get(other, "consumer")) &&
            same_or_none(domain, json_object_get(other, "domain")) &&
            same_or_none(prefix, json_object_get(other, "api_prefix")))
            return false;
    }
    return oracle_limit(json_object_get(item, "max_messages")) &&
           oracle_limit(json_object_get(item, "max_bytes"));
}

/* Settings with this list of consumers: what is right makes subjects that are right, and its messages can
 * be acknowledged. */
static void check_consumer_list(const char *text) {
    struct link *l = &links[0];
    char subject[2 * INBOX_MAX];
    json_t *definition = json_pack("{s:{s:s}, s:{}}", "config", "cluster_uris", "h", "secrets");
    json_object_set_new(json_object_get(definition, "config"), "consumers",
                        json_stringn_nocheck(text, strlen(text)));
    json_t *settings = merge_settings(&self.defaults, definition, true);
    const json_t *list = json_object_get(settings, "consumers");
    MUST(list || text[strspn(text, " \t\r\n\v\f")] == 0 || !oracle_utf8(span_of(text)));
    bool good = !list || (json_is_array(list) && json_array_size(list) <= CONSUMERS_PER_LINK);
    for (size_t i = 0; good && i < json_array_size(list); i++) good = oracle_entry(list, i);
    MUST(good == !settings_error(settings));
    *l = (struct link){.settings = settings};
    if (good) consumers_apply(l);
    MUST(consumers_of(l) == (good ? json_array_size(list) : 0));
    EACH_CONSUMER(k, l) {
        struct js_ack a;
        (void)snprintf(subject, sizeof(subject),
                       "$JS.ACK.%s.%s.%" PRIu64 ".%" PRIu64 ".%" PRIu64 ".%" PRIu64 ".%" PRIu64,
                       k->name.stream, k->name.consumer, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX,
                       UINT64_MAX);
        k->wanted = 1; /* it, and none of its namesakes in other domains */
        MUST(oracle_subject(span_of(subject), false) && consumer_of(l, subject, &a) == k &&
             oracle_consumer(l, subject) == k);
        consumer_free(k);
    }
    json_decref(settings);
    json_decref(definition);
    memset(l, 0, sizeof(*l));
}

/* A reply subject, and a list of consumers: the same text is tried as both. */
static void fuzz_acks(const uint8_t *data, size_t len) {
    struct span s = {(const char *)data, len};
    char *text = taken_text(s);
    check_ack(text);
    check_consumer_list(text);
    MUST(world.blocks == 0);
    free(text);
}

/* A second nkey codec: the bits one by one, another form of the CRC. */
static uint16_t oracle_crc(const uint8_t *bytes, size_t len) {
    uint16_t crc = 0;
    while (len--) {
        crc = (uint16_t)(crc >> 8 | crc << 8);
        crc ^= *bytes++;
        crc ^= (crc & 0xff) >> 4;
        crc = (uint16_t)(crc ^ crc << 12);
        crc = (uint16_t)(crc ^ (crc & 0xff) << 5);
    }
    return crc;
}

static bool oracle_nkey(struct span text, uint8_t *out, size_t want) {
    memset(out, 0, want);
    if (text.len != (want * 8 + 4) / 5) return false;
    for (size_t bit = 0; bit < text.len * 5; bit++) {
        char c = text.at[bit / 5];
        unsigned digit = c >= 'A' && c <= 'Z'   ? (unsigned)(c - 'A')
                         : c >= '2' && c <= '7' ? (unsigned)(c - '2' + 26)
                                                : 32;
        bool set = digit >> (4 - bit % 5) & 1;
        if (digit == 32 || (set && bit >= want * 8)) return false;
        if (set) out[bit / 8] |= (uint8_t)(128 >> bit % 8);
    }
    uint16_t crc = oracle_crc(out, want - 2);
    return out[want - 2] == (crc & 0xff) && out[want - 1] == crc >> 8;
}

static void oracle_encode(uint8_t *raw, size_t len, char *text) {
    uint16_t crc = oracle_crc(raw, len - 2);
    raw[len - 2] = (uint8_t)crc;
    raw[len - 1] = (uint8_t)(crc >> 8);
    size_t n = (len * 8 + 4) / 5;
    memset(text, 0, n + 1);
    for (size_t bit = 0; bit < n * 5; bit++) {
        text[bit / 5] = (char)(text[bit / 5] << 1);
        if (bit < len * 8 && raw[bit / 8] >> (7 - bit % 8) & 1) text[bit / 5] |= 1;
    }
    for (size_t i = 0; i < n; i++) text[i] = nkey_digits[(unsigned)text[i]];
}

/* Keys as text, and keys of these raw bytes with a right CRC. */
static void fuzz_nkeys(const uint8_t *data, size_t len) {
    uint8_t raw[36] = {0}, a[36], b[36], secret[32];
    char text[60], own[60];
    struct span s = {(const char *)data, len};
    for (size_t want = 35; want <= 36; want++)
        MUST(nkey_decode(s, a, want) == oracle_nkey(s, b, want) &&
             (!oracle_nkey(s, b, want) || memcmp(a, b, want) == 0));
    memcpy(raw, data, MIN(len, 34));
    for (size_t want = 35; want <= 36; want++) {
        oracle_encode(raw, want, text);
        MUST(nkey_decode(span_of(text), a, want) && memcmp(a, raw, want) == 0);
        if (want == 35 && raw[0] == X_PUBLIC)
            MUST((nkey_encode(X_PUBLIC, raw + 1, own), strcmp(own, text) == 0));
        if (want == 36)
            MUST(nkey_seed(span_of(text), raw[1], secret) == (raw[0] == SEED) &&
                 (raw[0] != SEED || memcmp(secret, raw + 2, 32) == 0));
        if (len < 37) continue;
        text[data[35] % strlen(text)] = (char)data[36]; /* and with one digit changed */
        MUST(nkey_decode(span_of(text), a, want) == oracle_nkey(span_of(text), b, want));
    }
    uint8_t host[36] = {X_PUBLIC};
    memcpy(host + 1, data + (len > 32 ? len - 32 : 0), MIN(len, 32));
    raw[0] = SEED, raw[1] = SEED_OF_X;
    oracle_encode(raw, 36, text);
    oracle_encode(host, 35, own);
    if (len % 8 == 0 && xkey_start(span_of(own), span_of(text)))
        MUST(nkey_decode(span_of(xkey.public_key), a, 35) && a[0] == X_PUBLIC);
    xkey.started = false;
}

/* What the host and this provider have in common, and the host and another; made once, since that is slow. */
static uint8_t common_key[32], other_key[32];

static void make_keys(void) {
    static const uint8_t hosts[32] = "the host's, for tests only",
                         ours[32] = "the provider's, for tests only";
    uint8_t public_key[32];
    MUST(crypto_scalarmult_base(public_key, hosts) == 0);
    MUST(crypto_box_beforenm(common_key, public_key, ours) == 0 &&
         crypto_box_beforenm(other_key, public_key, hosts) == 0);
}

/* A box for us, as a host makes one; or what the input says is one. */
static void fuzz_secrets(const uint8_t *data, size_t len) {
    const char *why = NULL;
    in = (struct span){(const char *)data, len};
    unsigned how = take(), at = take();
    at |= take() << 8;
    world_begin();
    if (!*common_key) make_keys();
    memcpy(xkey.shared, common_key, sizeof(xkey.shared));
    xkey.started = true;
    uint8_t *sealed = malloc(in.len + 44);
    size_t sealed_len = how & 2 ? in.len : in.len + 44;
    memcpy(sealed, "xkv1and a nonce of 24 bytes", 28);
    if (how & 2) memcpy(sealed, in.at, in.len);
    else
        MUST(crypto_box_easy_afternm(sealed + 28, (const uint8_t *)in.at, in.len, sealed + 4,
                                     how & 1 ? other_key : common_key) == 0);
    if (how & 4 && sealed_len) sealed[at % sealed_len] ^= (uint8_t)(1 + how / 8); /* changed on the way */
    json_t *plain = json_loadb(in.at, in.len, 0, NULL), *list = json_array();
    for (size_t i = 0; i < sealed_len; i++) json_array_append_new(list, json_integer(sealed[i]));
    json_t *opened = secrets_open(list, &why);
    MUST(json_is_object(opened) && why && (!*why || (strlen(why) > 10 && json_object_size(opened) == 0)));
    if (how & 7 && !(how & 2)) MUST(*why);
    if (!(how & 7)) MUST(json_is_object(plain) ? json_equal(plain, opened) && !*why : *why);
    json_t *link = json_pack("{s:s,s:s,s:{s:s},s:O}", "source_id", "echo", "target", self.key,
                             "target_config", "cluster_uris", "h:1", "target_secrets", list);
    link_put(link);
    EACH_LINK(l) MUST((*l->error || !*why) && json_equal(json_object_get(l->definition, "secrets"), opened));
    json_decref(link);
    json_decref(list);
    json_decref(opened);
    json_decref(plain);
    free(sealed);
    world_end();
    xkey.started = false;
}

/* The same parameters in one piece and in many: the same goes out, the same comes back, and nothing is
 * held. */
static void fuzz_chunks(const uint8_t *data, size_t len) {
    uint64_t sent[2], answered[2];
    unsigned failed_[2], ended[2];
    in = (struct span){(const char *)data, len};
    unsigned flags = take();
    struct span cuts = take_bytes(flags >> 1 & 15), params = in;
    world_begin();
    if (flags & 32) lattice_takes(64 + (flags >> 6) * 40);
    struct link *l = put(false, "echo", "cluster_uris", "nats://127.0.0.1:4222");
    for (unsigned round = 0; round < 2; round++) {
        in = params;
        world.digest = 0;
        size_t i = 0;
        struct caller *c = call("echo", round, flags & 1,
                                round ? take_bytes(cuts.len ? (uint8_t)cuts.at[i++] : 1)
                                      : take_bytes(in.len));
        while (in.len > 0) {
            struct span piece = take_bytes(i < cuts.len    ? 1u + (uint8_t)cuts.at[i++]
                                           : i == cuts.len ? 1
                                                           : in.len);
            char *exact = memcpy(malloc(piece.len), piece.at, piece.len);
            more_params(c, (struct span){exact, piece.len});
            free(exact);
        }
        more_params(c, (struct span){0});
        write_all(l);
        check_world();
        if (l->calls > 0)
            arrive(l->conn, message(world.asked[(world.asks - 1) % CALLERS], NULL, span_of("reply")));
        conn_write(lattice);
        on_answers_written(lattice);
        MUST(l->calls == 0 && l->bytes == 0 && calls.used == 0 && backlog.bytes == 0);
        sent[round] = world.digest;
        answered[round] = flags & 1 && c->failed == 0 && c->result[0] == 0
                              ? 0
                              : c->digest; /* a reply names the inbox of its slot */
        failed_[round] = c->failed;
        ended[round] = c->ended;
    }
    MUST(sent[0] == sent[1] && answered[0] == answered[1] && failed_[0] == failed_[1] && ended[0] == 1 &&
         ended[1] == 1);
    world_end();
}

/* Time passes. */
static void pass(uint64_t ms) {
    now_ms += ms;
    now_us = 1000 * now_ms;
}

/* One thing that happens to a provider with a link that delivers and two that serve. */
static void happen(struct link *delivering, struct link *const serving[2]) {
    static const uint8_t big[12000];
    static const char *const suffixes[] = {"", ".results", ".params", ".error", ".x"};
    static const char *const verbs[] = {"PING", "INFO", "STATS"};
    static const char *const refusals[] =
        {"Permissions Violation for Publish to \"$JS.ACK.S.c.1.2.3.4.5\"",
         "Permissions Violation for Publish to \"$JS.API.CONSUMER.MSG.NEXT.S.c\"",
         "Permissions Violation for Publish to \"$JS.API.CONSUMER.INFO.S.c\""};
    unsigned op = take(), n = take();
    struct link *l = serving[n & 1];
    struct caller *c = &world.callers[n % CALLERS];
    char subject[INBOX_MAX + 40], *text;
    switch (op % 16) {
    case 0:
    case 1:
        call(n & 1 ? "echo" : "other", n & 127, op & 1, take_span());
        break;
    case 2:
        more_params(c, op & 128 ? (struct span){(const char *)big, sizeof(big)} : take_span());
        break;
    case 3:
    case 4: { /* a message of a subscription, or what is none */
        text = taken_text(take_span());
        struct span body = op & 128 ? (struct span){(const char *)big, 4000} : take_span();
        char *parent = taken_text(n & 2 ? take_span() : (struct span){0}), *headers = NULL;
        MUST(asprintf(&headers, n & 4 ? "%s" : "NATS/1.0\r\ntraceparent: %s\r\ntracestate: x=y\r\n\r\n",
                      parent) >= 0); /* or any bytes */
        arrive(delivering->conn,
               message_with(headers, *text ? text : "t.echo", n & 1 ? "r.eply" : NULL, body));
        free(headers);
        free(parent);
        free(text);
        break;
    }
    case 5:
    case 6:
    case 7: { /* from a component's host: handshake, result, failure */
        (void)snprintf(subject, sizeof(subject), "%s%s", world.started[n % CALLERS].inbox,
                       suffixes[op / 16 % COUNT_OF(suffixes)]);
        if (!*world.started[n % CALLERS].inbox) break;
        text = taken_text(take_span());
        const char *reply = *text && *text != 'C' && op / 16 % COUNT_OF(suffixes) == 0 ? text
                            : op & 128                                                 ? "H.rs"
                                                                                       : NULL;
        arrive(lattice, message_with(n & 128 ? no_responders : "", subject, reply, take_span()));
        free(text);
        break;
    }
    case 8: { /* a reply to a request */
        if (!*world.asked[n % CALLERS]) break;
        struct span body = op & 64 ? (struct span){(const char *)big, sizeof(big)} : take_span();
        natsMsg *msg = message_with(n & 128 ? no_responders : "", world.asked[n % CALLERS],
                                    op & 128 ? "a.b" : NULL, body);
        EACH_CONN(on) {
            if (!msg || strncmp(world.asked[n % CALLERS], on->inbox, on->inbox_len) != 0) continue;
            arrive(on, msg);
            msg = NULL;
        }
        natsMsg_free(msg);
        break;
    }
    case 9: { /* any subject, on any connection; or behind an inbox */
        struct conn *on = n & 1 ? lattice : n & 2 ? delivering->conn : l->conn;
        text = taken_text(take_span());
        (void)snprintf(subject, sizeof(subject), "%s%.200s", op & 128 && on ? on->inbox : "", text);
        if (*subject)
            arrive(on, message(subject, op & 64 && *text != 'C' ? text : NULL,
                               take_span())); /* C.n are the callers */
        free(text);
        break;
    }
    case 10:
        pass(n * (op & 128 ? 100 : 1));
        calls_step();
        break;
    case 11: /* a server takes what was written, or takes nothing any more */
        l = op & 128 ? delivering : l;
        if (l->conn) server_of(l->conn)->stuck = false;
        if (l->conn && op & 64) server_sticks(l->conn);
        write_all(l);
        dispatch(l);
        break;
    case 12: /* a connection breaks, and comes back; or the one that is to take its place */
        l = op & 128 ? delivering : l;
        if (n & 2)
            (void)snprintf(world.error, sizeof(world.error), "%s", text = taken_text(take_span())),
                free(text);
        struct conn *on = l->next && n & 8 ? l->next : l->conn;
        if (l->state == LINK_FREE || !on) break;
        if (op & 64 && conn_is_open(on))
            on_refused(on, n & 16 ? refusals[n & 1] : n & 32 ? refusals[2] : world.error);
        if (conn_is_open(on)) atomic_store(&on->closed, !(n & 4));
        else if (on->state == CONN_WAITING) pass(on->due_ms > now_ms ? on->due_ms - now_ms : 0);
        else server_up(on);
        conn_step(on);
        link_step(l);
        break;
    case 13: /* the lattice does */
        world.lossy = true;
        if (op & 32 && lattice_next) {
            if (n & 1) pass(OVERLAP_MS);
            if (lattice_next && lattice_next->state == CONN_CONNECTING) server_up(lattice_next);
            if (lattice_next) conn_step(lattice_next);
            if (lattice_next) server_answers(lattice_next);
            lattice_step();
            break;
        }
        if (op & 32) lattice_change(), world.moved = true;
        if (lattice->state == CONN_UP && op & 128) atomic_store(&lattice->closed, true);
        else if (lattice->state == CONN_UP)
            server_of(lattice)->stuck = op & 64, conn_write(lattice), lattice->io.blocked = n & 1;
        else if (lattice->state == CONN_WAITING)
            pass(lattice->due_ms > now_ms ? lattice->due_ms - now_ms : 0);
        else server_up(lattice);
        conn_step(lattice);
        break;
    case 14: { /* the next message does not go out: nats.c has no memory */
        struct conn *to = n & 1 ? lattice : n & 2 ? delivering->conn : l->conn;
        world.lossy |= n & 1;
        if (to) server_of(to)->fails = true;
        break;
    }
    default:
        if (n & 1)
            arrive(lattice, message(subjects[HEALTH].name, n & 2 ? "H.ealth" : NULL, (struct span){0}));
        else if (n & 8)
            (void)snprintf(subject, sizeof(subject), "$SRV.%s", verbs[n / 16 % 3]),
                arrive(lattice, message(subject, asker, (struct span){0}));
        else if (n & 4)
            arrive(lattice, message(subjects[SHUTDOWN].name, n & 2 ? "H.alt" : NULL,
                                    span_of("{\"host_id\":\"NHOST\"}")));
        else (void)link_may_be_read(delivering);
    }
}

/* Calls in both directions, in any order, with everything that can go wrong. */
static void fuzz_calls(const uint8_t *data, size_t len) {
    static const char *const in_flight[] = {"1", "2", "7", "24"};
    in = (struct span){(const char *)data, len};
    world_begin();
    unsigned flags = take();
    struct link *delivering = put(true, "echo", "max_in_flight", in_flight[flags & 3]);
    struct link *const serving[] = {put(false, "other", "cluster_uris", "h:1"),
                                    put(false, "echo", "cluster_uris", "h:1,h:2")};
    if (flags & 4) lattice_takes(256 + (flags >> 3));
    if (flags & 128) server_of(serving[0]->conn)->filler = WRITE_MAX - 30000;
    if (flags & 64) serving[1]->conn->io.capacity = MESSAGE_MAX;
    for (unsigned i = 0; in.len > 0 && i < 200; i++) {
        happen(delivering, serving);
        EACH_CONN(c) {
            if (c != lattice) conn_step(c);
        }
        EACH_LINK(l) link_step(l);
        check_world();
        if (stop_step()) break;
    }
    world_end();
}

/* A link that delivers, with consumers; some of them, as the flags say. With max_bytes: for what a request
 * brings without it there is no memory under the small limits of this file, and so no request. */
static json_t *consuming_link(unsigned flags) {
    static const char *const lists[] = {
        "[{\"stream\":\"S\",\"consumer\":\"c\",\"max_bytes\":5000}]",
        "[{\"stream\":\"S\",\"consumer\":\"c\",\"max_messages\":3,\"max_bytes\":2000},"
        "{\"stream\":\"S\",\"consumer\":\"d\",\"max_bytes\":9000}]",
        "[{\"stream\":\"S\",\"consumer\":\"c\",\"max_messages\":1,\"max_bytes\":100},"
        "{\"stream\":\"T\",\"consumer\":\"c\"},{\"stream\":\"c\",\"consumer\":\"S\"}]",
    };
    static const char *const in_flight[] = {"1", "2", "7", "24"}, *const timeouts[] = {"3000", "70000"};
    return json_pack("{s:s, s:s, s:s, s:{s:s, s:s, s:s, s:s, s:s, s:s}}", "source_id", self.key, "target",
                     "echo", "name", "default", "source_config", "consumers", lists[flags % 3],
                     "max_in_flight", in_flight[flags >> 2 & 3], "handler_timeout_ms",
                     timeouts[flags >> 4 & 1], "subscriptions", flags & 32 ? "t.>" : "", "ping_interval_sec",
                     "86400", "cluster_uris", flags & 64 ? "h:2" : "h:1");
}

/* The links that deliver: the one that stays, or else the one that leaves. */
static struct link *delivering_link(bool stays) {
    struct link *found = NULL;
    EACH_LINK(l) {
        if (l->delivers && (!found || (l->state == LINK_LEAVING) != stays)) found = l;
    }
    return found;
}

/* A consumer's configuration, as JetStream tells it. */
static json_t *consumer_info(unsigned choice) {
    json_t *config = json_pack("{s:s, s:I, s:I, s:I, s:I}", "ack_policy", choice & 1 ? "explicit" : "none",
                               "ack_wait", (json_int_t)1000000 << choice % 18, "max_deliver",
                               (json_int_t)(choice & 2 ? 3 : -1), "max_batch", (json_int_t)world.max_batch,
                               "max_expires", choice & 4 ? (json_int_t)2000000 << choice % 13 : 0);
    if (choice & 8)
        json_object_set_new(config, "backoff",
                            json_pack("[I,I]", (json_int_t)1000000000,
                                      (json_int_t)(choice & 2 ? -1 : 50000000)));
    if (choice == 255) json_object_set_new(config, "deliver_subject", json_string("d"));
    return json_pack("{s:o, s:s}", "config", config, "created",
                     choice / 16 % 4 == 3 ? "2026-02-02T01:00:00Z" : "2026-01-01T01:00:00.5Z");
}

/* JetStream answers a question: INFO, whole or cut, an error, or what is none; or a status line. */
static void jetstream_answers(struct link *l, const struct question *q, unsigned how) {
    static const char *const statuses[] = {"100", "404", "408", "409", "409", "409",
                                           "409", "409", "503", "400", "",    "x"};
    static const char *const words[] = {"",
                                        "Batch Completed",
                                        "Leadership Change",
                                        "Server Shutdown",
                                        "Message Size Exceeds MaxBytes",
                                        "Consumer Deleted",
                                        "Exceeded MaxWaiting",
                                        "Exceeded MaxRequestBatch of 1"};
    char *text = NULL, *own = NULL;
    unsigned choice = take();
    if (!*q->inbox) return;
    struct conn *on = q->conn->link == l && conn_is_open(q->conn) ? q->conn : l->conn;
    if (how & 1) {
        char headers[400];
        struct span body = how & 32 ? take_span() : (struct span){0};
        own = how & 64 ? taken_text(take_span()) : NULL;
        (void)snprintf(headers, sizeof(headers), "NATS/1.0 %s %.300s\r\nNats-Pending-Messages: 1\r\n\r\n",
                       statuses[choice % 12], own ? own : words[choice / 12 % 8]);
        arrive(on, message_with(headers, q->inbox, NULL, body));
    } else if (how & 2) {
        world.max_batch = 0; /* it may say anything */
        arrive(on, message(q->inbox, NULL, take_span()));
    } else {
        json_t *json = how & 4 ? json_pack("{s:{s:i, s:s}}", "error", "code", 404,
                                           choice & 1 ? "description" : "err", "consumer not found")
                               : consumer_info(choice);
        text = json_dumps(json, JSON_COMPACT);
        arrive(on,
               message(q->inbox, NULL, (struct span){text, how & 8 ? choice % strlen(text) : strlen(text)}));
        json_decref(json);
    }
    free(own);
    json_give(text);
}

/* JetStream delivers a message: a reply subject in one of its forms, with tokens of its own or of somebody
 * else. */
static void jetstream_delivers(struct link *l, unsigned how) {
    static const char *const forms[] = {"$JS.ACK.%s.%s.%s.%u.%u.1700000000.3",
                                        "$JS.ACK._.hAsH.%s.%s.%s.%u.%u.1700000000.3",
                                        "$JS.ACK.hub.hAsH.%s.%s.%s.%u.%u.1700000000.3.rnd"};
    static const char *const sent[] = {"1", "2", "3", "0", "40", "18446744073709551616", "-1", "x"};
    static const uint8_t big[MESSAGE_MAX + 1];
    static unsigned sequence, number;
    const struct consumer *k = &l->consumers[take() % MAX(consumers_of(l), 1)];
    struct conn *on = l->conn;
    char ack[SUBJECT_MAX], *own = how & 128 ? taken_text(take_span()) : NULL;
    if (!world.delivered) sequence = number = 0;
    sequence += !(how & 4) || sequence == 0;
    if (own) (void)snprintf(ack, sizeof(ack), "%s%.900s", how & 64 ? "" : "$JS.ACK.", own);
    else
        (void)snprintf(ack, sizeof(ack), forms[how % 3], k->name.stream ? k->name.stream : "S",
                       k->name.consumer ? k->name.consumer : "c", sent[how >> 3 & 7], sequence,
                       how & 64 ? number : ++number);
    struct span body = take_span();
    if (how & 64 && !own)
        body = (struct span){(const char *)big, body.len % 2 ? sizeof(big) : 4000 + body.len};
    EACH_CONN(c) { /* or on the one that drains */
        if (c->link == l && c->state == CONN_DRAINING && body.len % 2) on = c;
    }
    arrive(on, message_with(body.len % 4 == 1 ? "NATS/1.0\r\ntraceparent: 00-1-2-00\r\n\r\n" : "",
                            "t.delivered", ack, body));
    free(own);
}

/* A turn of the loop, but without reading: of what the servers send, only the flush probes. */
static void turn(void) {
    calls_step();
    conn_step(lattice);
    EACH_LINK(l) {
        dispatch(l);
        consumers_step(l);
    }
    EACH_CONN(c) {
        if (c == lattice) continue;
        conn_write(c);
        if (c->is_lattice) on_answers_written(c);
        else on_written(c);
        server_answers(c);
        conn_step(c);
    }
    EACH_LINK(l) link_step(l);
    conn_write(lattice);
    server_answers(lattice);
}

/* The lattice may lose an answer while it is away, or about to be; JetStream cannot be told of a delivery
 * while the link's connection is, nor before the consumer has said that it still is the same. */
static void note_links(void) {
    world.lossy |= lattice->state != CONN_UP || lattice->io.error;
    for (struct noted *d = world.noted; d < world.noted + world.delivered; d++)
        EACH_LINK(l) {
            const struct consumer *k = oracle_consumer(l, d->ack);
            bool well = l->conn && conn_is_open(l->conn) && conn_is_well(l->conn);
            if (k && (!well || k->epoch != d->epoch || (l->state == LINK_RUNNING && !k->same)))
                d->deaf = true;
        }
}

/* One thing that happens to a link with consumers, or to its provider. */
static void happen_to_consumers(unsigned op, struct link *const consumers[2]) {
    struct link *l = delivering_link(op & 8);
    unsigned n = op / 16;
    switch (l ? op % 8 : 7) {
    case 0:
        jetstream_delivers(l, take());
        break;
    case 1:
        jetstream_answers(l, &world.questions[(world.questioned - 1 - n) % QUESTIONS], take());
        break;
    case 2:
        bring_up(l);
        break;
    case 3: {
        json_t *json = consuming_link(take());
        if (stop.state == RUNNING && n == 0) (void)on_delete(NULL, json);
        else if (stop.state == RUNNING) link_put(json);
        json_decref(json);
        break;
    }
    case 4:
        pass(1u << n);
        break;
    default:
        happen(l ? l : consumers[0], consumers);
    }
}

/* Messages of JetStream, their acknowledgements, and everything else. The first byte: the link; the
 * second: JetStream. */
static void fuzz_jetstream(const uint8_t *data, size_t len) {
    in = (struct span){(const char *)data, len};
    world_begin();
    json_t *json = consuming_link(take());
    unsigned flags = take();
    world.max_batch = flags & 3 ? (flags & 3) * 2 : 0;
    link_put(json);
    json_decref(json);
    struct link *const consumers[] = {put(false, "other", "cluster_uris", "h:1"),
                                      put(false, "echo", "cluster_uris", "h:1,h:2")};
    if (flags & 4) lattice_takes(256 + (flags >> 3));
    bring_up(delivering_link(true));
    for (unsigned i = 0; in.len > 0 && i < 200; i++) {
        happen_to_consumers(take(), consumers);
        note_links();
        turn();
        note_links();
        check_world();
        if (stop_step()) break;
    }
    note_links();
    world_end();
}

/* Orders of a host, one a line: p put, d delete, c config, s shutdown; m puts a link for each letter of
 * the line; u: some connections come up, b: they break or fail, t: time passes. */
static void fuzz_links(const uint8_t *data, size_t len) {
    static const char letters[] = "pdcs";
    static const size_t kinds[] = {PUT, DELETE, CONFIG, SHUTDOWN};
    char name[16];
    unsigned many = 0;
    in = (struct span){(const char *)data, len};
    world_begin();
    while (in.len > 0) {
        const char *end = memchr(in.at, '\n', in.len);
        struct span line = take_bytes(end ? (size_t)(end - in.at) : in.len);
        (void)take();
        const char *letter = line.len ? memchr(letters, *line.at, 4) : NULL;
        if (letter)
            arrive(lattice, message(subjects[kinds[letter - letters]].name, "H.ost",
                                    (struct span){line.at + 1, line.len - 1}));
        if (line.len && *line.at == 't') pass(1000 * line.len);
        for (size_t i = 0; line.len && *line.at == 'm' && i < MIN(line.len, LINKS_MAX + 2); i++, many++) {
            (void)snprintf(name, sizeof(name), "many%u", many);
            (void)put(many % 4 == 0, name, "subscriptions", "a.b,c.>");
        }
        size_t i = 0;
        EACH_CONN(c) {
            if (c == lattice) continue;
            bool meant = line.len > 1 && (uint8_t)line.at[1] % 4 == i++ % 4;
            if (meant && *line.at == 'u' && c->state == CONN_CONNECTING) server_up(c);
            if (meant && *line.at == 'b' && c->state == CONN_CONNECTING)
                atomic_store(&c->report, REPORT_FAILED);
            if (meant && *line.at == 'b' && c->state == CONN_UP) atomic_store(&c->closed, true);
        }
        turn();
        check_world();
        if (stop_step()) break;
    }
    EACH_LINK(l) { /* what is in the table is what was asked for */
        if (l->state == LINK_LEAVING) continue;
        MUST(link_with_id(l->definition) == l &&
             oracle_subject(span_of(l->subject), false) == is_token(l->component));
        json_t *settings = merge_settings(&self.defaults, l->definition, l->delivers);
        MUST(*l->error || l->renew || stop.state != RUNNING ||
             json_equal(settings, l->next ? l->next->settings : l->settings));
        struct span server;
        for (size_t i = 0; l->settings && list_item(text_at(l->settings, "cluster_uris"), i, &server); i++)
            check_server(server);
        MUST(l->state == LINK_WRONG ||
             (l->max_in_flight >= 1 && l->max_in_flight <= MAX(CALLS_MAX / 2, MAX_IN_FLIGHT_DEFAULT)));
        MUST(!l->conn || l->conn->ping_ms >= 1000);
        json_decref(settings);
    }
    arrive(lattice, message(subjects[HEALTH].name, "H.ealth", (struct span){0}));
    world_end();
}

/* What main() does with host data, up to the links. */
static void start_with(json_t *volatile *host, json_t *volatile *settings) {
    *host = host_data_read(STDIN_FILENO, true, scratch, sizeof(scratch));
    host_data_apply(*host);
    *settings = lattice_settings(*host);
    MUST(is_token(self.key) && is_token(self.lattice) && !settings_error(*settings));
    service_start("fuzz");
    conn_unsubscribe(lattice, true);
    lattice_up(lattice); /* and so the links */
    for (size_t i = 0; i < COUNT_OF(subjects); i++)
        MUST((subjects[i].sealed && !xkey_public()) || oracle_subject(span_of(subjects[i].name), false));
    MUST(!self.links);
    check_world();
}

/* A death is one sentence on a line, in which no key stands. */
static void check_death(const json_t *host) {
    const char *seed = text_at(host, "provider_xkey_private_key"), *end = strchr(world.words, '\n');
    MUST(strncmp(world.words, PROVIDER_NAME ": ", strlen(PROVIDER_NAME) + 2) == 0 && end && end[1] == 0 &&
         strlen(world.words) > 20);
    for (const char *c = world.words; c < end; c++) MUST((unsigned char)*c >= ' ' && *c != 0x7f);
    if (seed && strlen(seed) > 20 && strspn(seed, nkey_digits) == strlen(seed))
        MUST(!strstr(world.words, seed));
}

/* A line of host data ('j': JSON, of which the line is made; 'r': the line itself), or a file for --check
 * ('c'); and how many bytes of it come at a time. */
static void fuzz_host(const uint8_t *data, size_t len) {
    static char line[2 * 8192];
    volatile bool alive = false;
    json_t *volatile host = NULL, *volatile settings = NULL;
    if (len < 2 || len > 8192) return;
    world_begin();
    json_decref(self.defaults.config), json_decref(self.defaults.secrets), json_decref(self.links);
    self.defaults.config = self.defaults.secrets = self.links = NULL;
    world.piece = 1 + data[1] * 16u;
    world.input = data + 2;
    world.input_len = len - 2;
    if (*data == 'j') {
        sodium_bin2base64(line, sizeof(line), data + 2, len - 2, sodium_base64_VARIANT_ORIGINAL);
        world.input = (const uint8_t *)strcat(line, "\r\n");
        world.input_len = strlen(line);
    }
    may_die = true;
    if (setjmp(dead) == 0) {
        if (*data == 'c') check("/dev/null");
        else start_with(&host, &settings);
        alive = true;
    } else {
        check_death(host);
    }
    may_die = false;
    logger.json = true;
    if (alive) {
        json_decref(host);
        json_decref(settings);
        EACH_LINK(l) link_free(l);
    } else { /* a process that ends frees nothing */
        lattice->settings = self.defaults.config = self.defaults.secrets = self.links = NULL;
        memset(links, 0, sizeof(links));
        MUST(lattice == conns);
        memset(conns + 1, 0, sizeof(conns) - sizeof(*conns));
        memset(&backlog, 0, sizeof(backlog));
        while (pieces) json_give(pieces + 1);
    }
    xkey.started = false;
    world_end();
}

/* ---- a server while a connection to it is being made --------------------------------------------------- */

int connect_serve(const uint8_t *data, size_t len); /* connect.c */
void connect_served(void);

/* The connecting thread, with nats.c and our TLS as they are, against a server that says anything: it
 * ends, says how, and nothing that it says has eight bytes of the password in a row. The first byte
 * chooses the settings, the rest is for the server. */
static void fuzz_connect(const uint8_t *data, size_t len) {
    static const char *const users[] = {"", "user:p%22ssw%5crd%0aof%20mine@", "t0ken%e2%82%acof%22mine@",
                                        "user:@"};
    static const char *const secrets[] = {"", "p\"ssw\\rd\nof mine", "t0ken\xe2\x82\xacof\"mine", ""};
    static struct conn c;
    char url[200];
    if (len < 1) return;
    unsigned choice = *data;
    (void)snprintf(url, sizeof(url), "%s%s127.0.0.1:%d", choice & 4 ? "tls://" : "nats://", users[choice % 4],
                   connect_serve(data + 1, len - 1));
    (void)setenv("SSL_CERT_FILE", "seeds/ca.pem", 0);
    memset(&c, 0, sizeof(c));
    c.fd = -1;
    c.settings = json_pack("{s:s}", "cluster_uris", url);
    if (choice & 8) json_object_set_new(c.settings, "tls_first", json_string("true"));
    (void)connect_thread(&c);
    int told = atomic_load(&c.report);
    MUST(told == REPORT_UP || told == REPORT_FAILED);
    MUST(*c.outcome && strlen(c.outcome) < sizeof(c.outcome) && (told == REPORT_UP) == (c.nc != NULL));
    for (size_t i = 0; i + 8 <= strlen(secrets[choice % 4]); i++)
        MUST(!memmem(c.outcome, strlen(c.outcome), secrets[choice % 4] + i, 8));
    if (c.nc) { /* not by the functions of the world */
        (natsConnection_Close)(c.nc);
        (natsConnection_Destroy)(c.nc);
        (natsConnection_ProcessCloseEvent)(&c.fd);
    }
    connect_served();
    json_decref(c.settings);
    char *json =
        memcpy(malloc(len), data,
               len); /* and INFO by itself: what is left is left a second time, and is JSON if it was */
    struct servers said = {0}, none = {0};
    size_t left = guard_info(json, len, &said), again = guard_info(json, left, &none);
    MUST(left <= len && again == left && !*none.list && strlen(said.list) < sizeof(said.list));
    struct span named;
    for (size_t n = 0; list_item(said.list, n, &named); n++) {
        struct url url;
        MUST(n < SERVERS_MAX && servers_url(&said, named, &url));
    }
    json_t *before = json_loadb((const char *)data, len, 0, NULL), *after = json_loadb(json, left, 0, NULL);
    MUST(!json_is_object(before) || json_is_object(after));
    json_decref(before);
    json_decref(after);
    free(json);
}

void fuzz_pem(const uint8_t *data, size_t len);   /* pem.c */
void fuzz_guard(const uint8_t *data, size_t len); /* guard.c */

static const struct target {
    const char *name;
    void (*run)(const uint8_t *, size_t);
} targets[] = {
    {"wire",      fuzz_wire     },
    {"result",    fuzz_result   },
    {"subjects",  fuzz_subjects },
    {"nkeys",     fuzz_nkeys    },
    {"secrets",   fuzz_secrets  },
    {"chunks",    fuzz_chunks   },
    {"calls",     fuzz_calls    },
    {"jetstream", fuzz_jetstream},
    {"acks",      fuzz_acks     },
    {"links",     fuzz_links    },
    {"host",      fuzz_host     },
    {"pem",       fuzz_pem      },
    {"guard",     fuzz_guard    },
    {"connect",   fuzz_connect  },
};

static const struct target *chosen;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static randombytes_implementation same_each_time = {chance_name, chance_next, NULL,
                                                        NULL,        chance_fill, NULL};
    const char *slash = strrchr((*argv)[0], '/'), *name = slash ? slash + 1 : (*argv)[0];
    (void)argc;
    for (size_t i = 0; i < COUNT_OF(targets); i++)
        if (strcmp(targets[i].name, name) == 0) chosen = &targets[i];
    for (size_t i = 0; !chosen && i < COUNT_OF(targets); i++) puts(targets[i].name);
    if (!chosen) exit(0);
    json_set_alloc_funcs(json_take, json_give);
    randombytes_set_implementation(&same_each_time);
    return sodium_init() < 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    chosen->run(data, len);
    return 0;
}
