/* fuzz - hostile input for provider.c: libFuzzer targets that know what has to come out. Run by `make fuzz`; see run.sh.
 *
 * It includes the source, and puts a world of its own under it: what nats.c and the system would do is done by the functions
 * under "the world", which check what they are given. So whole calls run without a server, thousands a second. The name under
 * which the program is started chooses the target (build/fuzz/wire is a link to build/fuzz/fuzz); under any other it prints
 * the names.
 *
 * To add a target: write `static void fuzz_NAME(const uint8_t *data, size_t len)` and a line {"NAME", fuzz_NAME} in
 * `targets`; run.sh finds it. Seeds, if it has any, are calls of seed("NAME", …) in seeds.py. An input that found something
 * goes into found/NAME/ and is replayed first in each run.
 *
 * MUST() is what has to be true whatever the input. A target that needs the world begins with world_begin() and ends with
 * world_end(), which sees to it that no slot, record, link, subscription or JSON value is left. A target that needs only a
 * function, such as a parser, calls it.
 */
#define PROVIDER_WITHOUT_MAIN
#define _GNU_SOURCE
/* limits so small that an input of a few hundred bytes meets them */
#define LINKS_MAX 6
#define LINKS_LEAVING_MAX 2
#define SUBSCRIPTIONS_MAX 16
#define CALLS_MAX 48
#define MESSAGE_MAX 16384
#define HOST_DATA_MAX 16384
#define HELD_MAX (96 * 1024)
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

static natsStatus world_send(natsConnection *nc, const char *subject, const char *reply, const void *data, int len);
static natsStatus world_send_msg(natsConnection *nc, natsMsg *msg);
static natsStatus world_subscribe(natsSubscription **sub, natsConnection *nc, const char *subject, const char *queue);
static int world_buffered(natsConnection *nc);
static int64_t world_max_payload(natsConnection *nc);
static natsStatus world_write(natsConnection *nc);
static natsStatus world_last_error(const char **text);
static ssize_t world_read(void *out, size_t len);
static ssize_t world_log(const void *line, size_t len);
__attribute__((format(printf, 1, 2))) static void world_words(const char *format, ...);
static jmp_buf dead;
static bool may_die;
__attribute__((noreturn)) static void world_exit(void) { MUST(may_die); longjmp(dead, 1); }

#define natsConnection_Publish(nc, subject, data, len) world_send(nc, subject, NULL, data, len)
#define natsConnection_PublishRequest(nc, subject, reply, data, len) world_send(nc, subject, reply, data, len)
#define natsConnection_PublishMsg(nc, msg) world_send_msg(nc, msg)
#define natsConnection_SubscribeSync(sub, nc, subject) world_subscribe(sub, nc, subject, NULL)
#define natsConnection_QueueSubscribeSync(sub, nc, subject, queue) world_subscribe(sub, nc, subject, queue)
#define natsSubscription_GetSubject(sub) ((const char *)(sub))
#define natsSubscription_Destroy(sub) free(sub)
#define natsConnection_Buffered(nc) world_buffered(nc)
#define natsConnection_GetMaxPayload(nc) world_max_payload(nc)
#define natsConnection_ProcessWriteEvent(nc) world_write(nc)
#define natsConnection_GetLastError(nc, text) world_last_error(text)
#define natsConnection_Close(nc) (void)(nc)
#define natsConnection_Destroy(nc) (void)(nc)
#define natsConnection_ProcessCloseEvent(fd) (void)(fd)
#define natsConn_setFilterWithClosure world_filter
#define shutdown(fd, how) 0
#define pthread_create(thread, attr, run, arg) (*(thread) = 0, (void)(run), 0)
#define pthread_detach(thread) (void)(thread)
#define poll(fds, count, ms) ((void)(count), (void)(ms), (fds)->revents = (fds)->events, 1)
#define read(fd, out, len) ((void)(fd), world_read(out, len))
#define write(fd, line, len) ((fd) == STDERR_FILENO ? world_log(line, len) : 0)
#define fprintf(file, ...) world_words(__VA_ARGS__)
#define printf(...) world_words(__VA_ARGS__)
#define exit(code) world_exit()
#include "../../provider.c"
#undef fprintf
#undef printf
#undef read
#undef write
#undef exit

/* ---- oracles: the same rules as in provider.c, written differently, and slowly ------------------------------------------ */

/* Reads code points, and writes each as UTF-8 is defined: what comes out must be what went in. */
static bool oracle_utf8(struct span s) {
    for (size_t i = 0; i < s.len;) {
        const uint8_t *c = (const uint8_t *)s.at + i;
        uint8_t out[4];
        unsigned n = *c < 0x80 ? 1 : (*c & 0xe0) == 0xc0 ? 2 : (*c & 0xf0) == 0xe0 ? 3 : (*c & 0xf8) == 0xf0 ? 4 : 0;
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

/* Fields by their letters: u number, b bytes, s string, o an optional string. Leaves what stands behind them. */
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
    for (size_t i = 0; i < s.len; i++) if ((uint8_t)s.at[i] <= 32 || s.at[i] == 127) return false;
    text[0] = '.';
    memcpy(text + 1, s.at, s.len);
    memcpy(text + 1 + s.len, ".", 2);
    if (strstr(text, "..") || (!wildcards && (strstr(text, ".*.") || strstr(text, ".>.")))) return false;
    const char *tail = strstr(text, ".>.");
    return !tail || tail[3] == 0;
}

/* ---- the world under provider.c -------------------------------------------------------------------------------------------- */

enum { CALLERS = 32, SERVERS = LINK_SLOTS + 1, DELIVERIES = 64, QUESTIONS = 16 };

static struct {
    struct server { int buffered; bool stuck; natsStatus next; int64_t max_payload; } servers[SERVERS];
    const uint8_t *input;                     /* what read() finds */
    size_t input_len, piece;
    struct caller {                           /* a component that called: what it has been told */
        bool used, is_request;
        unsigned shaken, failed, ended;
        char rs[INBOX_MAX + 16];
        uint64_t digest;                      /* of its result */
        uint8_t result[512];
        size_t len;
    } callers[CALLERS];
    struct start {                            /* a call to a component */
        char inbox[INBOX_MAX + 16];
        struct delivery *of;                  /* what a consumer delivered, or NULL */
        bool shaken, begun;                   /* its host shook hands; the result has begun */
    } started[CALLERS];
    char asked[CALLERS][INBOX_MAX + 16];      /* inboxes of requests */
    unsigned starts, asks;
    uint64_t digest;                          /* of what went to links */
    bool lossy;                               /* the lattice was not all that it should be */
    struct delivery {                         /* a message of a consumer, by the subject that acknowledges it */
        char ack[SUBJECT_MAX + 1];
        unsigned came, ok, acked, refused;    /* how often it was delivered, a component answered ok, and we did so */
        uint64_t body;
    } deliveries[DELIVERIES];
    unsigned delivered;
    struct question { char inbox[INBOX_MAX + 16]; bool is_pull; } questions[QUESTIONS];
    unsigned questioned, max_batch;           /* of JetStream; of its consumers */
    bool deaf;                                /* a link was not all that it should be: an answer may be lost */
    size_t blocks;                            /* of JSON */
    char error[256];                          /* what servers say */
    char words[1200];                         /* what was printed last */
} world;

static uint64_t digest(uint64_t sum, const void *bytes, size_t len) { /* FNV-1a, by 8 bytes */
    const uint8_t *c = bytes;
    for (uint64_t word = 0; len >= 8; c += 8, len -= 8) memcpy(&word, c, 8), sum = (sum ^ word) * 1099511628211u;
    for (; len > 0; c++, len--) sum = (sum ^ *c) * 1099511628211u;
    return sum;
}

void world_filter(natsConnection *nc, void (*filter)(natsConnection *, natsMsg **, void *), void *closure) { MUST(nc && filter == on_filter && closure); }

static struct conn *conn_of(natsConnection *nc) {
    size_t i = (size_t)((struct server *)(void *)nc - world.servers);
    return i < LINK_SLOTS ? &links[i].conn : &lattice;
}

static struct server *server_of(const struct conn *c) {
    return &world.servers[c == &lattice ? LINK_SLOTS : (size_t)((const struct link *)(const void *)c - links)];
}

static int world_buffered(natsConnection *nc) { return nc ? ((struct server *)(void *)nc)->buffered : -1; } /* as nats.c */
static int64_t world_max_payload(natsConnection *nc) { return ((struct server *)(void *)nc)->max_payload; }
static natsStatus world_last_error(const char **text) { return *text = world.error, NATS_ERR; }

/* The lattice's server says in an INFO how large a message may be. */
static void lattice_takes(int64_t bytes) {
    world.servers[LINK_SLOTS].max_payload = bytes;
    conn_learn(&lattice);
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
        MUST(c[i] >= ' ' && c[i] <= '~');
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

/* What comes to a caller: one handshake, then one end. */
static void to_caller(const char *subject, const char *reply, const void *data, size_t len) {
    char *suffix;
    struct caller *c = &world.callers[strtoul(subject + 2, &suffix, 10) % CALLERS];
    MUST(c->used && c->ended == 0);
    if (*suffix == 0) {
        MUST(reply && len == 0 && ++c->shaken == 1 && c->failed == 0 && c->len == 0);
        (void)snprintf(c->rs, sizeof(c->rs), "%s", reply);
    } else if (strcmp(suffix, ".error") == 0) {
        struct span words = {0};
        struct reader r = {data, data, (const uint8_t *)data + len, 0};
        MUST(!reply && ++c->failed == 1 && c->len == 0 && read_string(&r, &words) == WHOLE && r.at == r.end);
    } else {
        MUST(strcmp(suffix, ".results") == 0 && !reply && (len == 0 || c->failed == 0));
        if (len == 0) c->ended++;
        if (c->len < sizeof(c->result) && len) memcpy(c->result + c->len, data, MIN(len, sizeof(c->result) - c->len));
        if (len) c->digest = digest(c->digest, data, len);
        c->len += len;
    }
}

/* The whole result of a call: what its type says, and words that are UTF-8. */
static void check_result(struct caller *c) {
    struct message m = {0};
    if (c->failed > 0 || c->len > sizeof(c->result)) return;
    struct reader r = {c->result, c->result + 1, c->result + c->len, 0};
    MUST(c->len > 0 && *c->result <= 1);
    if (*c->result == 1) MUST(read_string(&r, &m.subject) == WHOLE && m.subject.len > 0);
    else if (c->is_request) MUST(read_publish(&r, &m) == WHOLE);
    MUST(r.at == r.end);
}

static struct delivery *delivery_of(const char *ack) {
    for (struct delivery *d = world.deliveries; d < world.deliveries + world.delivered; d++) if (strcmp(d->ack, ack) == 0) return d;
    return NULL;
}

/* A call to a component. Its slot says where it is acknowledged; the component must be given what was delivered there, and
 * no reply subject. */
static void to_component(const char *inbox, const void *data, size_t len) {
    struct start *s = &world.started[world.starts++ % CALLERS];
    struct reader r = {data, data, (const uint8_t *)data + len, 0};
    struct message m = {0};
    size_t slot = 0;
    for (size_t i = 0; i < SLOT_LEN; i++) slot = 16 * slot + (size_t)(inbox[lattice.inbox_len + i] - 'A');
    MUST(slot < CALLS_MAX);
    const struct call *c = &calls.slots[slot];
    *s = (struct start){.of = c->consumer ? delivery_of(c->reply) : NULL};
    (void)snprintf(s->inbox, sizeof(s->inbox), "%s", inbox);
    MUST(!c->consumer || (s->of && s->of->came > s->of->acked + s->of->refused));
    if (s->of && s->of->came == 1 && read_publish(&r, &m) == WHOLE) MUST(!m.has_reply && digest(0, m.body.at, m.body.len) == s->of->body);
}

/* One final answer for each delivery, and "done" only for what a component did. */
static void to_acknowledge(const char *ack, struct span word) {
    struct delivery *d = delivery_of(ack);
    unsigned long long delay = 0;
    char text[80], again[80];
    (void)snprintf(text, sizeof(text), "%.*s", (int)word.len, word.at);
    MUST(d && d->came > d->acked + d->refused);
    if (strcmp(text, "+WPI") == 0) return;
    if (strcmp(text, "+ACK") == 0) {
        MUST(++d->acked <= d->ok);
        return;
    }
    MUST(sscanf(text, "-NAK {\"delay\":%llu}", &delay) == 1 && delay >= 1000000000ull * NAK_MIN_MS / 1000 && delay <= 1000000000ull * NAK_MAX_MS / 1000);
    (void)snprintf(again, sizeof(again), "-NAK {\"delay\":%llu}", delay);
    MUST(strcmp(text, again) == 0);
    d->refused++;
}

/* A request for messages asks for what link and consumer allow, and the component can have. */
static void check_pull(const struct consumer *k, struct span json) {
    unsigned long long batch = 0, bytes = 0, expires = 0, heartbeat = 0;
    const struct link *l = k->link;
    char text[200];
    (void)snprintf(text, sizeof(text), "%.*s", (int)json.len, json.at);
    MUST(sscanf(text, "{\"batch\":%llu,\"max_bytes\":%llu,\"expires\":%llu,\"idle_heartbeat\":%llu}", &batch, &bytes, &expires, &heartbeat) == 4);
    MUST(batch > 0 && batch == k->wanted && batch + k->open <= MAX(l->max_in_flight / l->consumer_count, 1));
    MUST((!k->max_messages || batch <= k->max_messages) && (!world.max_batch || batch <= world.max_batch));
    MUST(bytes > 0 && bytes <= PULL_BYTES && (!k->max_bytes || bytes <= k->max_bytes));
    MUST(expires > 0 && expires <= PULL_EXPIRES_MS * 1000000ull && heartbeat * 2 < expires);
    MUST(!l->leaving && !self.stopping && lattice.state == CONN_UP && !l->kept);
}

/* What a handler link says to its server: acknowledgements, questions about its consumers, and to itself. */
static void to_jetstream(const struct link *l, const char *subject, const char *reply, struct span data) {
    static const char *const forms[] = {"$JS.API.CONSUMER.INFO.%s.%s", "$JS.API.CONSUMER.MSG.NEXT.%s.%s"};
    char wanted[INBOX_MAX + 64];
    if (strncmp(subject, "$JS.ACK.", 8) == 0) return to_acknowledge(subject, data);
    if (strncmp(subject, l->conn.inbox, l->conn.inbox_len) == 0) return;
    for (size_t i = 0; i < 2 * l->consumer_count; i++) {
        const struct consumer *k = &l->consumers[i / 2];
        (void)snprintf(wanted, sizeof(wanted), forms[i & 1], k->stream, k->name); /* NOLINT(clang-diagnostic-format-nonliteral): one of two */
        if (strcmp(subject, wanted) != 0) continue;
        struct question *q = &world.questions[world.questioned++ % QUESTIONS];
        q->is_pull = i & 1;
        (void)snprintf(q->inbox, sizeof(q->inbox), "%s", reply);
        if (q->is_pull) check_pull(k, data);
        return;
    }
    MUST(!"a subject that a handler link may use");
}

/* Who asks the service protocol's questions: the answer is whole, and has what its type has. */
static const char asker[] = "S.rv";
static void to_asker(const void *data, size_t len) {
    json_t *json = json_loadb(data, len, 0, NULL);
    const char *type = json_string_value(json_object_get(json, "type"));
    MUST(type && strncmp(type, "io.nats.micro.v1.", 17) == 0 && json_is_array(json_object_get(json, "endpoints")) == !strstr(type, "ping"));
    json_decref(json);
}

static natsStatus world_send(natsConnection *nc, const char *subject, const char *reply, const void *data, int len) {
    struct server *s = (struct server *)(void *)nc;
    struct conn *c = conn_of(nc);
    natsStatus status = s->next;
    MUST(c->state == CONN_UP && !c->io.broken && oracle_subject(span_of(subject), false) && len >= 0 && len <= s->max_payload);
    MUST(!reply || oracle_subject(span_of(reply), false));
    s->next = NATS_OK;
    world.deaf |= status != NATS_OK;
    if (status != NATS_OK) return status;
    const struct link *l = (const struct link *)(void *)c;
    if (c != &lattice && l->is_handler) to_jetstream(l, subject, reply, (struct span){data, (size_t)len});
    if (c == &lattice && strcmp(subject, asker) == 0) to_asker(data, (size_t)len);
    else if (c == &lattice && strncmp(subject, "C.", 2) == 0) to_caller(subject, reply, data, (size_t)len);
    else if (c == &lattice && reply) to_component(reply, data, (size_t)len);
    else if (c != &lattice && !l->is_handler && (reply || strncmp(subject, c->inbox, c->inbox_len) != 0)) { /* no echo */
        bool own = reply && strncmp(reply, c->inbox, c->inbox_len) == 0;
        if (own) (void)snprintf(world.asked[world.asks++ % CALLERS], INBOX_MAX + 16, "%s", reply);
        world.digest = digest(digest(world.digest, subject, strlen(subject) + 1), data, (size_t)len);
        if (reply && !own) world.digest = digest(world.digest, reply, strlen(reply) + 1);
    }
    s->buffered += len + 64;
    atomic_store(&c->wants_write, true);
    return NATS_OK;
}

static natsStatus world_send_msg(natsConnection *nc, natsMsg *msg) {
    return world_send(nc, natsMsg_GetSubject(msg), natsMsg_GetReply(msg), natsMsg_GetData(msg), natsMsg_GetDataLength(msg));
}

static natsStatus world_subscribe(natsSubscription **sub, natsConnection *nc, const char *subject, const char *queue) {
    MUST(conn_of(nc)->state == CONN_UP && oracle_subject(span_of(subject), true) && (!queue || oracle_subject(span_of(queue), false)));
    *sub = (natsSubscription *)(void *)strdup(subject);
    return NATS_OK;
}

/* The same "random" bytes each time, or an input would not be one. */
static uint32_t chance;
static const char *chance_name(void) { return "fuzz"; }
static uint32_t chance_next(void) { return chance = chance * 1664525 + 1013904223; }
static void chance_fill(void *const out, const size_t len) { for (size_t i = 0; i < len; i++) ((uint8_t *)out)[i] = (uint8_t)(chance_next() >> 24); }

/* jansson's memory is counted, and kept in a list: what a death of the provider leaves behind is given back. */
static struct piece { struct piece *next, **at; } *pieces;

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
    *s = (struct server){.max_payload = s->max_payload};
    c->nc = (natsConnection *)(void *)s;
    atomic_store(&c->report, REPORT_UP);
}

static json_t *defaults(void) { return json_pack("{s:s}", "cluster_uris", "nats://127.0.0.1:4222"); }

/* A provider on a lattice that is up, with xkeys if `keys`, and without links. */
static void world_begin(void) {
    memset(&world, 0, sizeof(world));
    for (size_t i = 0; i < SERVERS; i++) world.servers[i].max_payload = 1 << 20;
    (void)strcpy(world.error, "it said \r\n so");
    world.piece = SIZE_MAX;
    chance = 1;
    now = 100000;
    logger.level = LEVEL_DEBUG;
    logger.json = true;
    stop.state = RUNNING;
    self.stopping = false;
    *stop.reply = *self.refused = 0;
    calls.next_due_ms = UINT64_MAX;
    for (struct call *c = calls.slots; c < calls.slots + calls.fresh; c++) memset(c, 0, sizeof(*c));
    calls.fresh = 0;
    calls.free = NULL;
    memset(&lattice, 0, sizeof(lattice));
    memset(self.topic.gates, 0, sizeof(self.topic.gates));
    (void)strcpy(self.key, "messaging-nats");
    (void)strcpy(self.lattice, "default");
    (void)strcpy(self.host_id, "NHOST");
    subjects_start();
    service_start("fuzz");
    self.config = json_object();
    self.secrets = json_object();
    self.links = json_array();
    start_lattice(defaults());
    server_up(&lattice);
    conn_step(&lattice);
    MUST(lattice.state == CONN_UP);
}

/* What a link's messages and calls have become adds up, whatever has happened. */
static void check_counts(const struct link *l) {
    uint64_t ended = 0;
    for (enum count i = HANDLED; i < CALLS; i++) ended += l->counts[i];
    MUST(l->counts[RECEIVED] == ended + (l->is_handler ? l->calls + l->waiting : 0));
    MUST(l->counts[CALLS] == l->counts[OK] + l->counts[FAILED] + (l->is_handler ? 0 : l->calls));
}

/* A consumer asks and is asked only while its link is up; its slots are those that it counts. */
static void check_consumers(const struct link *l) {
    unsigned open = 0, of_consumers = 0;
    for (const struct call *c = calls.slots; c < calls.slots + calls.fresh; c++) of_consumers += c->kind != CALL_FREE && c->link == l && c->consumer;
    for (const struct consumer *k = l->consumers; k < l->consumers + l->consumer_count; k++) {
        unsigned own = 0;
        for (const struct call *c = calls.slots; c < calls.slots + calls.fresh; c++) own += c->kind != CALL_FREE && c->consumer == k;
        MUST(k->link == l && k->open == own && (k->wanted == 0 || (k->state == CONSUMER_READY && l->conn.state == CONN_UP)));
        MUST(k->wanted <= MAX(l->max_in_flight / l->consumer_count, 1));
        open += own;
    }
    MUST(open == of_consumers && l->consumer_count <= CONSUMERS_PER_LINK);
}

/* One slot: what its state needs is there. */
static void check_call(const struct call *c) {
    MUST(calls.next_due_ms <= c->deadline_ms && (!c->held || c->held->len <= c->held->room));
    MUST(!c->consumer || (calls.next_due_ms <= c->progress_ms && c->consumer->link == c->link));
    MUST(c->kind != CALL_KEPT || (c->consumer && c->whole && c->held));
    MUST(c->kind != CALL_UNTOLD || (c->consumer && (c->link->conn.state != CONN_UP || c->link->conn.io.broken)));
    MUST(c->link->is_handler == (c->kind == CALL_HANDLER || c->kind == CALL_KEPT || c->kind == CALL_UNTOLD));
}

/* What a link says that it holds is what its slots and its backlog hold. */
static void check_sums(const struct link *l) {
    unsigned own = 0, with_component = 0, unsettled = 0, kept = 0;
    size_t bytes = 0;
    const struct record *r = l->backlog;
    for (unsigned i = 0; i < l->waiting; i++, r = r->next) bytes += record_size(r);
    for (const struct call *c = calls.slots; c < calls.slots + calls.fresh; c++) {
        if (c->kind == CALL_FREE || c->link != l) continue;
        check_call(c);
        own++;
        with_component += c->kind == CALL_HANDLER;
        unsettled += c->kind == CALL_OUT || c->kind == CALL_HELD;
        kept += c->kind == CALL_KEPT;
        bytes += c->held ? record_size(c->held) : 0;
    }
    for (const struct call *c = l->kept; c; c = c->next, kept--) MUST(c->kind == CALL_KEPT && c->link == l && kept > 0);
    MUST(kept == 0 && l->calls == own && l->with_component == with_component && l->unsettled == unsettled && l->held == bytes);
    MUST(with_component <= l->max_in_flight && (l->leaving || !*l->wrong || l->conn.state == CONN_OFF));
    check_counts(l);
    check_consumers(l);
}

static void check_world(void) {
    unsigned used = 0, up = lattice.state == CONN_UP, staying = 0;
    size_t held = 0;
    EACH_LINK(l) {
        check_sums(l);
        used += l->calls;
        held += l->held;
        up += l->conn.state == CONN_UP;
        staying += !l->leaving;
    }
    MUST(calls.used == used && records_held == held && held <= HELD_MAX && net.up == up && staying <= LINKS_MAX);
}

static void world_end(void) {
    check_world();
    EACH_LINK(l) link_release(l);
    for (struct caller *c = world.callers; c < world.callers + CALLERS; c++) {
        if (!c->used || world.lossy) continue;
        MUST(c->shaken == 1 && c->ended == 1);
        check_result(c);
    }
    for (const struct delivery *d = world.deliveries; d < world.deliveries + world.delivered; d++)
        MUST(world.deaf || d->came == d->acked + d->refused);
    if (lattice.state == CONN_UP) conn_close(&lattice);
    json_decref(lattice.settings);
    json_decref(self.config);
    json_decref(self.secrets);
    json_decref(self.links);
    self.links = NULL;
    MUST(calls.used == 0 && records_held == 0 && net.up == 0 && world.blocks == 0);
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) MUST(!net.subs[i].of);
}

/* ---- the input, taken bit by bit --------------------------------------------------------------------------------------------- */

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
    MUST(natsMsg_createWithPadding(&msg, subject, (int)strlen(subject), reply, reply ? (int)strlen(reply) : 0, all,
                                   (int)(head + data.len), 0, (int)head) == NATS_OK);
    free(all);
    return msg;
}

static natsMsg *message(const char *subject, const char *reply, struct span data) { return message_with("", subject, reply, data); }
static const char no_responders[] = "NATS/1.0 503\r\n\r\n";

/* What a component's host answers: whether it may count as done. */
static void note_answer(natsMsg *msg) {
    const char *subject = natsMsg_GetSubject(msg), *suffix;
    const struct call *c = inbox_kind(&lattice, subject) ? call_of_subject(&lattice, subject, &suffix) : NULL;
    for (struct start *s = world.started; s < world.started + CALLERS; s++) {
        size_t n = strlen(s->inbox);
        if (n == 0 || strncmp(subject, s->inbox, n) != 0 || !c || c->kind != CALL_HANDLER) continue;
        if (!subject[n] && !is_no_responders(msg)) s->shaken |= is_inbox(span_of(natsMsg_GetReply(msg)));
        if (strcmp(subject + n, ".results") != 0 || !s->shaken || s->begun || natsMsg_GetDataLength(msg) == 0) continue;
        s->begun = true;
        if (s->of && *natsMsg_GetData(msg) == 0) s->of->ok++;
    }
}

/* The tokens between dots, in place. Returns how many there are. */
static size_t split_dots(char *text, char *tokens[16]) {
    size_t n = 0;
    for (char *token; (token = strsep(&text, ".")); n++) if (n < 16) tokens[n] = token;
    return n;
}

/* protocol: ADR-15, written a second time. The consumer that a reply subject belongs to, or NULL. */
static const struct consumer *oracle_consumer(const struct link *l, const char *ack) {
    char copy[INBOX_MAX], *token[16];
    const struct consumer *found = NULL;
    if (!ack || strlen(ack) >= sizeof(copy) || !oracle_subject(span_of(ack), false)) return NULL;
    size_t n = split_dots(strcpy(copy, ack), token), first = n == 9 ? 2 : 4;
    if ((n != 9 && n != 11 && n != 12) || strcmp(token[0], "$JS") != 0 || strcmp(token[1], "ACK") != 0) return NULL;
    for (const struct consumer *k = l->consumers; k < l->consumers + l->consumer_count && !found; k++)
        if (strcmp(k->stream, token[first]) == 0 && strcmp(k->name, token[first + 1]) == 0) found = k;
    return found;
}

/* What comes to a link. Returns false if it is a delivery more than are noted here. */
static bool note_delivery(const struct conn *c, natsMsg *msg) {
    const char *ack = natsMsg_GetReply(msg);
    if (inbox_kind(c, natsMsg_GetSubject(msg)) || !oracle_consumer((const struct link *)(const void *)c, ack)) return true;
    struct delivery *d = delivery_of(ack);
    if (!d && world.delivered == DELIVERIES) return false;
    if (!d) d = &world.deliveries[world.delivered++];
    (void)snprintf(d->ack, sizeof(d->ack), "%s", ack);
    d->came++;
    d->body = digest(0, natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg));
    return true;
}

/* As nats.c hands it over. */
static void arrive(struct conn *c, natsMsg *msg) {
    bool up = c->state == CONN_UP && (c->io.broken || c == &lattice || note_delivery(c, msg));
    if (up && c == &lattice && !c->io.broken) note_answer(msg);
    c->io.heard_ms = now;
    if (up) on_filter(c->nc, &msg, c);
    else natsMsg_free(msg);
}

static void link_up(struct link *l) {
    if (l->conn.state != CONN_CONNECTING) return;
    server_up(&l->conn);
    link_step(l);
}

/* A link, put as a host would: handler or consumer, with configuration on its side. */
static struct link *put(bool is_handler, const char *component, const char *key, const char *value) {
    json_t *json = json_pack("{s:s, s:s, s:s, s:{s:s}, s:{s:s}}", "source_id", is_handler ? self.key : component, "target", is_handler ? component : self.key,
                             "name", "default", "source_config", key, value, "target_config", key, value);
    link_put(json);
    json_decref(json);
    EACH_LINK(l) if (!l->leaving && l->is_handler == is_handler && strcmp(l->component, component) == 0) return link_up(l), l;
    return NULL;
}

static struct caller *call(const char *component, unsigned n, bool is_request, struct span params) {
    char rc[16], headers[64];
    struct caller *c = &world.callers[n % CALLERS];
    if (c->used) return c;
    *c = (struct caller){.used = true, .is_request = is_request};
    (void)snprintf(rc, sizeof(rc), "C.%u", n % CALLERS);
    (void)snprintf(headers, sizeof(headers), "NATS/1.0\r\nsource-id: %s\r\n\r\n", component);
    arrive(&lattice, message_with(headers, subjects[is_request ? SUB_REQUEST : SUB_PUBLISH], rc, params));
    return c;
}

static void more_params(struct caller *c, struct span piece) {
    char subject[INBOX_MAX + 32];
    (void)snprintf(subject, sizeof(subject), "%s.params", c->rs);
    if (*c->rs) arrive(&lattice, message(subject, NULL, piece));
}

static void write_and_settle(struct link *l) {
    l->conn.io.blocked = false;
    conn_write(&l->conn);
    if (l->unsettled > 0) settle(l);
}

/* ---- targets ------------------------------------------------------------------------------------------------------------------- */

enum kind { OF_PUBLISH, OF_REQUEST, OF_U32, OF_BYTES, OF_STRING, KINDS };

struct value { struct message m; uint32_t number; size_t used; };

static enum decoded decode(enum kind kind, const uint8_t *bytes, size_t len, struct value *v) {
    struct reader r = {.start = bytes, .at = bytes, .end = bytes + len};
    *v = (struct value){0};
    enum decoded d = kind == OF_PUBLISH ? read_publish(&r, &v->m) : kind == OF_REQUEST ? read_request(&r, &v->m, &v->number)
                   : kind == OF_U32 ? read_u32(&r, &v->number) : kind == OF_BYTES ? read_bytes(&r, &v->m.body) : read_string(&r, &v->m.subject);
    v->used = d == NEEDS_MORE ? r.needs : (size_t)(r.at - r.start);
    return d;
}

static size_t encode(enum kind kind, uint8_t *out, const struct value *v) {
    if (kind == OF_PUBLISH) return write_message(out, &v->m);
    if (kind == OF_U32) return write_u32(out, v->number);
    if (kind == OF_BYTES || kind == OF_STRING) return write_bytes(out, kind == OF_BYTES ? v->m.body : v->m.subject);
    size_t n = write_bytes(out, v->m.subject);
    n += write_bytes(out + n, v->m.body);
    return n + write_u32(out + n, v->number);
}

static bool same(struct span a, struct span b) { return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0); }

/* A value decodes alike whatever stands behind it, needs exactly what it says, and survives being encoded. */
static void fuzz_wire(const uint8_t *data, size_t len) {
    static const char *const fields[] = {[OF_PUBLISH] = "sbo", [OF_REQUEST] = "sbu", [OF_U32] = "u", [OF_BYTES] = "b", [OF_STRING] = "s"};
    struct value v, again;
    if (len == 0) return;
    enum kind kind = *data++ % KINDS;
    enum decoded d = decode(kind, data, --len, &v);
    struct span rest = {(const char *)data, len};
    MUST(d == oracle_fields(fields[kind], &rest) && (d != WHOLE || v.used == len - rest.len));
    for (size_t cut = 0, needed = 0; cut <= len; cut++) { /* NEEDS_MORE until enough is there, then one verdict for good */
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
    uint8_t *out = malloc(message_room(&v.m)), *exact;
    size_t n = encode(kind, out, &v);
    MUST(n <= v.used && n <= message_room(&v.m));
    exact = realloc(out, n);
    MUST(decode(kind, exact, n, &again) == WHOLE && again.used == n && again.number == v.number && again.m.has_reply == v.m.has_reply);
    MUST(same(again.m.subject, v.m.subject) && same(again.m.body, v.m.body) && same(again.m.reply_to, v.m.reply_to));
    free(exact);
}

/* The result of handle-message, cut where the first bytes say, against the same in one piece and against the decoder. */
static void fuzz_result(const uint8_t *data, size_t len) {
    struct result whole = {0}, pieces_of = {0};
    in = (struct span){(const char *)data, len};
    uint32_t cuts = take();
    cuts |= take() << 8;
    cuts |= take() << 16;
    struct span bytes = in, words = {0};
    enum decoded d = read_result(&whole, (const uint8_t *)bytes.at, bytes.len), p = NEEDS_MORE;
    for (size_t n; in.len > 0 && p == NEEDS_MORE; cuts = cuts >> 3 | cuts << 21) {
        struct span piece = take_bytes(n = 1 + (cuts & 7) * (cuts & 7));
        uint8_t *exact = memcpy(malloc(piece.len), piece.at, piece.len);
        p = read_result(&pieces_of, exact, piece.len);
        free(exact);
    }
    MUST(p == d && (d == MALFORMED || memcmp(&whole, &pieces_of, sizeof(whole)) == 0));
    struct reader r = {(const uint8_t *)bytes.at, (const uint8_t *)bytes.at, (const uint8_t *)bytes.at + bytes.len, 0};
    enum decoded expected = bytes.len == 0 ? NEEDS_MORE : *r.at > 1 ? MALFORMED : *r.at++ == 0 ? WHOLE : read_bytes(&r, &words);
    MUST(d == expected);
    size_t kept = MIN(words.len, sizeof(whole.words) - 1);
    if (d == WHOLE) MUST(whole.is_error == (bytes.at[0] == 1) && whole.kept == kept && (!kept || memcmp(whole.words, words.at, kept) == 0) && whole.words[kept] == 0);
}

/* Lists and numbers, read a second time. */
static void check_lists(const char *text) {
    struct span item, subject, queue;
    size_t count = 0, n = 0;
    bool good = true;
    char *copy = strdup(text), *rest = copy, *token;
    while ((token = strsep(&rest, ","))) {
        token += strspn(token, " \t\r\n");
        size_t len = strlen(token);
        while (len && strchr(" \t\r\n\v\f", token[len - 1])) len--;
        if (len == 0) continue;
        MUST(list_item(text, n++, &item) && same(item, (struct span){token, len}));
        token[len] = 0;
        char *bar = strchr(token, '|');
        if (bar) *bar = 0;
        good &= oracle_subject(span_of(token), true) && oracle_utf8(span_of(token)) && (!bar || oracle_subject(span_of(bar + 1), false));
    }
    MUST(!list_item(text, n, &item) && are_subscriptions(text, &count) == (good && n <= SUBSCRIPTIONS_MAX) && (!good || count == n));
    for (size_t i = 0; i < (good ? n : 0); i++) MUST(list_item(text, i, &item) && split_subscription(item, &subject, &queue));
    free(copy);
}

/* A server that is taken: nothing in it ends the URL, or the JSON of nats.c's CONNECT. */
static void check_server(struct span url) {
    struct span address = url_address(url);
    MUST(address.at >= url.at && address.at + address.len == url.at + url.len);
    MUST(address.len > 0 && url.len <= 1000 && !memchr(address.at, '@', address.len));
    for (size_t i = 0; i < url.len; i++) MUST((uint8_t)url.at[i] > ' ' && !strchr("\"\\", url.at[i]));
}

/* What goes into subjects, lists, numbers, log lines. */
static void fuzz_subjects(const uint8_t *data, size_t len) {
    struct span s = {(const char *)data, len = MIN(len, 1200)};
    char *text = taken_text(s), small[40];
    const char *suffix;
    for (int wildcards = 0; wildcards < 2; wildcards++) MUST(is_subject(s, wildcards) == oracle_subject(s, wildcards));
    MUST(is_utf8(s) == oracle_utf8(s));
    MUST(is_token(text) == (oracle_subject(span_of(text), false) && strlen(text) < ID_MAX && !strpbrk(text, ".*>")));
    MUST(is_inbox(span_of(text)) == (oracle_subject(span_of(text), false) && strlen(text) + TOKEN_LEN < INBOX_MAX));
    check_lists(text);
    if (is_server(s)) check_server(s);
    for (int json = 0; json < 2; json++)
        for (const char *c = escaped(small, 4 + len % 36, text, json); *c; c++) MUST(*c >= ' ' && *c <= '~' && c < small + 3 + len % 36);
    json_t *settings = json_object();
    uint64_t n = 0, value = 0;
    json_object_set_new(settings, numbers[PING_INTERVAL_SEC].key, json_stringn_nocheck(text, strlen(text)));
    bool number = *text && strlen(text) < 19 && strspn(text, "0123456789") == strlen(text);
    for (const char *c = text; number && *c; c++) value = value * 10 + (uint64_t)(*c - '0');
    if (strlen(text) < 19) MUST(number_of(settings, &numbers[PING_INTERVAL_SEC], &n) == (number && value >= 1 && value <= 86400) && (!number || n == value));
    json_decref(settings);
    lattice.inbox_len = 0; /* an inbox of a call, if anything: nobody has called */
    MUST(!call_of_subject(&lattice, text, &suffix) && (!*suffix || suffix == text + TOKEN_LEN));
    free(text);
}

/* Where a message is acknowledged: what is taken for that has its tokens where ADR-15 puts them. */
static void check_ack(const char *text) {
    char *copy = strdup(text), *token[16];
    struct ack a = {0};
    size_t n = split_dots(copy, token), first = n == 9 ? 2 : 4;
    bool good = (n == 9 || n == 11 || n == 12) && strcmp(token[0], "$JS") == 0 && strcmp(token[1], "ACK") == 0;
    MUST(read_ack(text, &a) == good);
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

static bool oracle_limit(const json_t *limit) { return !limit || (json_is_integer(limit) && json_integer_value(limit) >= 1); }

static bool oracle_entry(const json_t *list, size_t i) {
    const json_t *item = json_array_get(list, i), *stream = json_object_get(item, "stream"), *name = json_object_get(item, "consumer");
    if (!oracle_name(stream) || !oracle_name(name) || json_string_length(stream) + json_string_length(name) > INBOX_MAX / 2 - 1) return false;
    for (size_t j = 0; j < i; j++) {
        const json_t *other = json_array_get(list, j);
        if (json_equal(stream, json_object_get(other, "stream")) && json_equal(name, json_object_get(other, "consumer"))) return false;
    }
    return oracle_limit(json_object_get(item, "max_messages")) && oracle_limit(json_object_get(item, "max_bytes"));
}

/* Settings with this list of consumers: what is right makes subjects that are right, and its messages can be acknowledged. */
static void check_consumer_list(const char *text) {
    struct link *l = &links[0];
    char subject[2 * INBOX_MAX];
    json_t *settings = json_object();
    json_object_set_new(settings, "consumers", json_stringn_nocheck(text, strlen(text)));
    json_t *list = read_consumers(settings);
    bool good = json_is_array(list) && json_array_size(list) <= CONSUMERS_PER_LINK;
    for (size_t i = 0; good && i < json_array_size(list); i++) good = oracle_entry(list, i);
    MUST(good == !wrong_consumers(list));
    *l = (struct link){.conn.settings = settings};
    if (good) link_fill_consumers(l);
    MUST(l->consumer_count == (good ? json_array_size(list) : 0));
    for (const struct consumer *k = l->consumers; k < l->consumers + l->consumer_count; k++) {
        (void)snprintf(subject, sizeof(subject), "$JS.ACK.%s.%s.%" PRIu64 ".%" PRIu64 ".%" PRIu64 ".%" PRIu64 ".%" PRIu64, k->stream, k->name,
                       UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX);
        MUST(oracle_subject(span_of(subject), false) && consumer_of(l, subject) == k && oracle_consumer(l, subject) == k);
    }
    json_decref(l->consumers_json);
    json_decref(list);
    json_decref(settings);
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
        unsigned digit = c >= 'A' && c <= 'Z' ? (unsigned)(c - 'A') : c >= '2' && c <= '7' ? (unsigned)(c - '2' + 26) : 32;
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
    for (size_t i = 0; i < n; i++) text[i] = base32_digits[(unsigned)text[i]];
}

/* Keys as text, and keys of these raw bytes with a right CRC. */
static void fuzz_nkeys(const uint8_t *data, size_t len) {
    uint8_t raw[36] = {0}, a[36], b[36], secret[32];
    char text[60], own[60];
    struct span s = {(const char *)data, len};
    for (size_t want = 35; want <= 36; want++) MUST(nkey_decode(s, a, want) == oracle_nkey(s, b, want) && (!oracle_nkey(s, b, want) || memcmp(a, b, want) == 0));
    memcpy(raw, data, MIN(len, 34));
    for (size_t want = 35; want <= 36; want++) {
        oracle_encode(raw, want, text);
        MUST(nkey_decode(span_of(text), a, want) && memcmp(a, raw, want) == 0);
        if (want == 35 && raw[0] == X_PUBLIC) MUST((nkey_x_encode(raw + 1, own), strcmp(own, text) == 0));
        if (want == 36) MUST(nkey_seed(span_of(text), raw[1], secret) == (raw[0] == SEED) && (raw[0] != SEED || memcmp(secret, raw + 2, 32) == 0));
        if (len < 37) continue;
        text[data[35] % strlen(text)] = (char)data[36]; /* and with one digit changed */
        MUST(nkey_decode(span_of(text), a, want) == oracle_nkey(span_of(text), b, want));
    }
    uint8_t host[36] = {X_PUBLIC};
    memcpy(host + 1, data + (len > 32 ? len - 32 : 0), MIN(len, 32));
    raw[0] = SEED, raw[1] = SEED_OF_X;
    oracle_encode(raw, 36, text);
    oracle_encode(host, 35, own);
    if (len % 8 == 0 && box_start(span_of(own), span_of(text))) MUST(nkey_decode(span_of(box.public_key), a, 35) && a[0] == X_PUBLIC);
    box.set = false;
}

/* What the host and this provider have in common, and the host and another; made once, since that is slow. */
static uint8_t common_key[32], other_key[32];

static void make_keys(void) {
    static const uint8_t hosts[32] = "the host's, for tests only", ours[32] = "the provider's, for tests only";
    uint8_t public_key[32];
    MUST(crypto_scalarmult_base(public_key, hosts) == 0);
    MUST(crypto_box_beforenm(common_key, public_key, ours) == 0 && crypto_box_beforenm(other_key, public_key, hosts) == 0);
}

/* A box for us, as a host makes one; or what the input says is one. */
static void fuzz_secrets(const uint8_t *data, size_t len) {
    const char *why = NULL;
    in = (struct span){(const char *)data, len};
    unsigned how = take(), at = take();
    at |= take() << 8;
    world_begin();
    if (!*common_key) make_keys();
    memcpy(box.shared, common_key, sizeof(box.shared));
    box.set = true;
    uint8_t *sealed = malloc(in.len + 44);
    size_t sealed_len = how & 2 ? in.len : in.len + 44;
    memcpy(sealed, "xkv1and a nonce of 24 bytes", 28);
    if (how & 2) memcpy(sealed, in.at, in.len);
    else MUST(crypto_box_easy_afternm(sealed + 28, (const uint8_t *)in.at, in.len, sealed + 4, how & 1 ? other_key : common_key) == 0);
    if (how & 4 && sealed_len) sealed[at % sealed_len] ^= (uint8_t)(1 + how / 8); /* changed on the way */
    json_t *plain = json_loadb(in.at, in.len, 0, NULL), *opened = box_open(sealed, sealed_len, &why), *list = json_array();
    if (how & 7 && !(how & 2)) MUST(!opened);
    if (!(how & 7)) MUST(json_is_object(plain) ? json_equal(plain, opened) : !opened);
    MUST(opened || strlen(why) > 10);
    for (size_t i = 0; i < sealed_len; i++) json_array_append_new(list, json_integer(sealed[i]));
    json_t *link = json_pack("{s:s,s:s,s:{s:s},s:O}", "source_id", "echo", "target", self.key, "target_config", "cluster_uris", "h:1", "target_secrets", list);
    link_put(link);
    EACH_LINK(l) MUST((*l->wrong || sealed_len == 0) >= !opened && json_equal(json_object_get(l->definition, "secrets"), opened) >= !!opened);
    json_decref(link);
    json_decref(list);
    json_decref(opened);
    json_decref(plain);
    free(sealed);
    world_end();
    box.set = false;
}

/* The same parameters in one piece and in many: the same goes out, the same comes back, and nothing is held. */
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
        struct caller *c = call("echo", round, flags & 1, round ? take_bytes(cuts.len ? (uint8_t)cuts.at[i++] : 1) : take_bytes(in.len));
        while (in.len > 0) {
            struct span piece = take_bytes(i < cuts.len ? 1u + (uint8_t)cuts.at[i++] : i == cuts.len ? 1 : in.len);
            char *exact = memcpy(malloc(piece.len), piece.at, piece.len);
            more_params(c, (struct span){exact, piece.len});
            free(exact);
        }
        more_params(c, (struct span){0});
        write_and_settle(l);
        check_world();
        if (l->calls > 0) arrive(&l->conn, message(world.asked[(world.asks - 1) % CALLERS], NULL, span_of("reply")));
        MUST(l->calls == 0 && l->held == 0 && calls.used == 0 && records_held == 0);
        sent[round] = world.digest;
        answered[round] = flags & 1 && c->failed == 0 && c->result[0] == 0 ? 0 : c->digest; /* a reply names the inbox of its slot */
        failed_[round] = c->failed;
        ended[round] = c->ended;
    }
    MUST(sent[0] == sent[1] && answered[0] == answered[1] && failed_[0] == failed_[1] && ended[0] == 1 && ended[1] == 1);
    world_end();
}

/* One thing that happens to a provider with a handler link and two consumer links. */
static void happen(struct link *handler, struct link *const consumers[2]) {
    static const uint8_t big[12000];
    static const char *const suffixes[] = {"", ".results", ".params", ".error", ".x"};
    unsigned op = take(), n = take();
    struct link *l = consumers[n & 1];
    struct caller *c = &world.callers[n % CALLERS];
    char subject[INBOX_MAX + 40], *text;
    switch (op % 16) {
    case 0: case 1: call(n & 1 ? "echo" : "other", n, op & 1, take_span()); break;
    case 2: more_params(c, op & 128 ? (struct span){(const char *)big, sizeof(big)} : take_span()); break;
    case 3: case 4: { /* a message of a subscription, or what is none */
        text = taken_text(take_span());
        struct span body = op & 128 ? (struct span){(const char *)big, 4000} : take_span();
        char *parent = taken_text(n & 2 ? take_span() : (struct span){0}), *headers = NULL;
        MUST(asprintf(&headers, n & 4 ? "%s" : "NATS/1.0\r\ntraceparent: %s\r\ntracestate: x=y\r\n\r\n", parent) >= 0); /* or any bytes */
        arrive(&handler->conn, message_with(headers, *text ? text : "t.echo", n & 1 ? "r.eply" : NULL, body));
        free(headers);
        free(parent);
        free(text);
        break;
    }
    case 5: case 6: case 7: { /* from a component's host: handshake, result, failure */
        (void)snprintf(subject, sizeof(subject), "%s%s", world.started[n % CALLERS].inbox, suffixes[op / 16 % COUNT_OF(suffixes)]);
        if (!*world.started[n % CALLERS].inbox) break;
        text = taken_text(take_span());
        const char *reply = *text && *text != 'C' && op / 16 % COUNT_OF(suffixes) == 0 ? text : op & 128 ? "H.rs" : NULL;
        arrive(&lattice, message_with(n & 128 ? no_responders : "", subject, reply, take_span()));
        free(text);
        break;
    }
    case 8: { /* a reply to a request */
        if (!*world.asked[n % CALLERS]) break;
        struct span body = op & 64 ? (struct span){(const char *)big, sizeof(big)} : take_span();
        natsMsg *msg = message_with(n & 128 ? no_responders : "", world.asked[n % CALLERS], op & 128 ? "a.b" : NULL, body);
        for (size_t i = 0; i < 2; i++)
            if (strncmp(world.asked[n % CALLERS], consumers[i]->conn.inbox, consumers[i]->conn.inbox_len) == 0) arrive(&consumers[i]->conn, msg), msg = NULL;
        natsMsg_free(msg);
        break;
    }
    case 9: { /* any subject, on any connection; or behind an inbox */
        struct conn *on = n & 1 ? &lattice : n & 2 ? &handler->conn : &l->conn;
        text = taken_text(take_span());
        (void)snprintf(subject, sizeof(subject), "%s%.200s", op & 128 ? on->inbox : "", text);
        if (*subject) arrive(on, message(subject, op & 64 && *text != 'C' ? text : NULL, take_span())); /* C.n are the callers */
        free(text);
        break;
    }
    case 10: now += n * (op & 128 ? 100 : 1); expire_calls(); break;
    case 11: l = op & 128 ? handler : l; server_of(&l->conn)->stuck = op & 64; write_and_settle(l); work_off(l); break;
    case 12: /* a connection breaks, and comes back */
        l = op & 128 ? handler : l;
        atomic_store(&l->conn.server_error, op & 64);
        if (n & 2) (void)snprintf(world.error, sizeof(world.error), "%s", text = taken_text(take_span())), free(text);
        if (l->conn.state == CONN_UP) atomic_store(&l->conn.closed, !(n & 4));
        else if (l->conn.state == CONN_WAITING) now = MAX(now, l->conn.due_ms);
        else server_up(&l->conn);
        if (l->used) link_step(l);
        break;
    case 13: /* the lattice does */
        world.lossy = true;
        if (lattice.state == CONN_UP && op & 128) atomic_store(&lattice.closed, true);
        else if (lattice.state == CONN_UP) server_of(&lattice)->stuck = op & 64, conn_write(&lattice), lattice.io.blocked = n & 1;
        else if (lattice.state == CONN_WAITING) now = MAX(now, lattice.due_ms);
        else server_up(&lattice);
        conn_step(&lattice);
        break;
    case 14: { /* the next message does not go out: nats.c has no memory, or says something else */
        struct conn *on = n & 1 ? &lattice : n & 2 ? &handler->conn : &l->conn;
        world.lossy |= n & 1;
        server_of(on)->next = op & 128 ? NATS_NO_MEMORY : op & 64 ? NATS_MAX_PAYLOAD : NATS_CONNECTION_CLOSED;
        break;
    }
    default:
        if (n & 1) arrive(&lattice, message(subjects[SUB_HEALTH], n & 2 ? "H.ealth" : NULL, (struct span){0}));
        else if (n & 8) (void)snprintf(subject, sizeof(subject), "$SRV.%s", service_verbs[n / 16 % 3]), arrive(&lattice, message(subject, asker, (struct span){0}));
        else if (n & 4) arrive(&lattice, message(subjects[SUB_SHUTDOWN], n & 2 ? "H.alt" : NULL, span_of("{\"host_id\":\"NHOST\"}")));
        else (void)may_read(handler);
    }
}

/* Calls in both directions, in any order, with everything that can go wrong. */
static void fuzz_calls(const uint8_t *data, size_t len) {
    static const char *const in_flight[] = {"1", "2", "7", "24"};
    in = (struct span){(const char *)data, len};
    world_begin();
    unsigned flags = take();
    struct link *handler = put(true, "echo", "max_in_flight", in_flight[flags & 3]);
    struct link *const consumers[] = {put(false, "other", "cluster_uris", "h:1"), put(false, "echo", "cluster_uris", "h:1,h:2")};
    if (flags & 4) lattice_takes(256 + (flags >> 3));
    if (flags & 128) consumers[0]->conn.write_max = 30000;
    if (flags & 64) consumers[1]->conn.io.capacity = MESSAGE_MAX;
    for (unsigned i = 0; in.len > 0 && i < 200; i++) {
        happen(handler, consumers);
        EACH_LINK(l) conn_step(&l->conn);
        check_world();
        if (stop_step()) break;
    }
    world_end();
}

/* A handler link with consumers; some of them, as the flags say. With max_bytes: for what a request brings without it there is
 * no memory under the small limits of this file, and so no request. */
static json_t *consuming_link(unsigned flags) {
    static const char *const lists[] = {
        "[{\"stream\":\"S\",\"consumer\":\"c\",\"max_bytes\":5000}]",
        "[{\"stream\":\"S\",\"consumer\":\"c\",\"max_messages\":3,\"max_bytes\":2000},{\"stream\":\"S\",\"consumer\":\"d\",\"max_bytes\":9000}]",
        "[{\"stream\":\"S\",\"consumer\":\"c\",\"max_messages\":1,\"max_bytes\":100},{\"stream\":\"T\",\"consumer\":\"c\"},{\"stream\":\"c\",\"consumer\":\"S\"}]",
    };
    static const char *const in_flight[] = {"1", "2", "7", "24"}, *const timeouts[] = {"3000", "70000"};
    return json_pack("{s:s, s:s, s:s, s:{s:s, s:s, s:s, s:s, s:s}}", "source_id", self.key, "target", "echo", "name", "default", "source_config",
                     "consumers", lists[flags % 3], "max_in_flight", in_flight[flags >> 2 & 3], "handler_timeout_ms", timeouts[flags >> 4 & 1],
                     "subscriptions", flags & 32 ? "t.>" : "", "ping_interval_sec", "86400");
}

/* The handler links: the one that stays, or else the one that leaves. */
static struct link *handler_link(bool stays) {
    struct link *found = NULL;
    EACH_LINK(l) if (l->is_handler && (!found || l->leaving != stays)) found = l;
    return found;
}

/* A consumer's configuration, as JetStream tells it. */
static json_t *consumer_info(unsigned choice) {
    json_t *config = json_pack("{s:s, s:I, s:I, s:I, s:I}", "ack_policy", choice & 1 ? "explicit" : "none", "ack_wait", (json_int_t)1000000 << choice % 18,
                               "max_deliver", (json_int_t)(choice & 2 ? 3 : -1), "max_batch", (json_int_t)world.max_batch,
                               "max_expires", choice & 4 ? (json_int_t)2000000 << choice % 13 : 0);
    if (choice & 8) json_object_set_new(config, "backoff", json_pack("[I,I]", (json_int_t)1000000000, (json_int_t)(choice & 2 ? -1 : 50000000)));
    if (choice == 255) json_object_set_new(config, "deliver_subject", json_string("d"));
    return json_pack("{s:o}", "config", config);
}

/* JetStream answers a question: INFO, whole or cut, an error, or what is none; or a status line. */
static void jetstream_answers(struct link *l, const struct question *q, unsigned how) {
    static const char *const statuses[] = {"100", "404", "408", "409", "409", "409", "409", "409", "503", "400", "", "x"};
    static const char *const words[] = {"", "Batch Completed", "Leadership Change", "Server Shutdown", "Message Size Exceeds MaxBytes", "Consumer Deleted",
                                        "Exceeded MaxWaiting", "Exceeded MaxRequestBatch of 1"};
    char *text = NULL, *own = NULL;
    unsigned choice = take();
    if (!*q->inbox) return;
    if (how & 1) {
        char headers[400];
        struct span body = how & 32 ? take_span() : (struct span){0};
        own = how & 64 ? taken_text(take_span()) : NULL;
        (void)snprintf(headers, sizeof(headers), "NATS/1.0 %s %.300s\r\nNats-Pending-Messages: 1\r\n\r\n", statuses[choice % 12], own ? own : words[choice / 12 % 8]);
        arrive(&l->conn, message_with(headers, q->inbox, NULL, body));
    } else if (how & 2) {
        world.max_batch = 0; /* it may say anything */
        arrive(&l->conn, message(q->inbox, NULL, take_span()));
    } else {
        json_t *json = how & 4 ? json_pack("{s:{s:i, s:s}}", "error", "code", 404, choice & 1 ? "description" : "err", "consumer not found") : consumer_info(choice);
        text = json_dumps(json, JSON_COMPACT);
        arrive(&l->conn, message(q->inbox, NULL, (struct span){text, how & 8 ? choice % strlen(text) : strlen(text)}));
        json_decref(json);
    }
    free(own);
    json_give(text);
}

/* JetStream delivers a message: a reply subject in one of its forms, with tokens of its own or of somebody else. */
static void jetstream_delivers(struct link *l, unsigned how) {
    static const char *const forms[] = {"$JS.ACK.%s.%s.%s.%u.7.1700000000.3", "$JS.ACK._.hAsH.%s.%s.%s.%u.7.1700000000.3", "$JS.ACK.hub.hAsH.%s.%s.%s.%u.7.1700000000.3.rnd"};
    static const char *const sent[] = {"1", "2", "3", "0", "40", "18446744073709551616", "-1", "x"};
    static const uint8_t big[MESSAGE_MAX + 1];
    static unsigned sequence;
    const struct consumer *k = &l->consumers[l->consumer_count ? take() % l->consumer_count : 0];
    char ack[SUBJECT_MAX], *own = how & 128 ? taken_text(take_span()) : NULL;
    sequence = world.delivered ? sequence + !(how & 4) : 1;
    if (own) (void)snprintf(ack, sizeof(ack), "%s%.900s", how & 64 ? "" : "$JS.ACK.", own);
    else (void)snprintf(ack, sizeof(ack), forms[how % 3], k->stream ? k->stream : "S", k->name ? k->name : "c", sent[how >> 3 & 7], sequence);
    struct span body = take_span();
    if (how & 64 && !own) body = (struct span){(const char *)big, body.len % 2 ? sizeof(big) : 4000 + body.len};
    arrive(&l->conn, message_with(body.len % 4 == 1 ? "NATS/1.0\r\ntraceparent: 00-1-2-00\r\n\r\n" : "", "t.delivered", ack, body));
    free(own);
}

/* A turn of the loop, but without reading. */
static void turn(void) {
    expire_calls();
    conn_step(&lattice);
    EACH_LINK(l) {
        work_off(l);
        consumers_step(l);
        conn_write(&l->conn);
        if (l->unsettled > 0) settle(l);
        link_step(l);
    }
}

/* A connection that is away, or about to be, may lose an answer. */
static void note_links(void) {
    world.lossy |= lattice.state != CONN_UP || lattice.io.broken;
    EACH_LINK(l) world.deaf |= l->is_handler && (l->conn.state == CONN_WAITING || l->conn.io.broken);
}

/* One thing that happens to a link with consumers, or to its provider. */
static void happen_to_consumers(unsigned op, struct link *const consumers[2]) {
    struct link *l = handler_link(op & 8);
    unsigned n = op / 16;
    switch (l ? op % 8 : 7) {
    case 0: jetstream_delivers(l, take()); break;
    case 1: jetstream_answers(l, &world.questions[(world.questioned - 1 - n) % QUESTIONS], take()); break;
    case 2: link_up(l); break;
    case 3: {
        json_t *json = consuming_link(take());
        if (n == 0) link_delete(json);
        else link_put(json);
        json_decref(json);
        break;
    }
    case 4: now += 1u << n; break;
    default: happen(l ? l : consumers[0], consumers);
    }
}

/* Messages of JetStream, their acknowledgements, and everything else. The first byte: the link; the second: JetStream. */
static void fuzz_jetstream(const uint8_t *data, size_t len) {
    in = (struct span){(const char *)data, len};
    world_begin();
    json_t *json = consuming_link(take());
    unsigned flags = take();
    world.max_batch = flags & 3 ? (flags & 3) * 2 : 0;
    link_put(json);
    json_decref(json);
    struct link *const consumers[] = {put(false, "other", "cluster_uris", "h:1"), put(false, "echo", "cluster_uris", "h:1,h:2")};
    if (flags & 4) lattice_takes(256 + (flags >> 3));
    link_up(handler_link(true));
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

/* Orders of a host, one a line: p put, d delete, c config, s shutdown; m puts a link for each letter of the line; u: some
 * connections come up, b: they break or fail, t: time passes. */
static void fuzz_links(const uint8_t *data, size_t len) {
    static const char letters[] = "pdcs";
    static const enum subject_kind kinds[] = {SUB_PUT, SUB_DELETE, SUB_CONFIG, SUB_SHUTDOWN};
    char name[16];
    unsigned many = 0;
    in = (struct span){(const char *)data, len};
    world_begin();
    while (in.len > 0) {
        const char *end = memchr(in.at, '\n', in.len);
        struct span line = take_bytes(end ? (size_t)(end - in.at) : in.len);
        (void)take();
        const char *letter = line.len ? memchr(letters, *line.at, 4) : NULL;
        if (letter) arrive(&lattice, message(subjects[kinds[letter - letters]], "H.ost", (struct span){line.at + 1, line.len - 1}));
        if (line.len && *line.at == 't') now += 1000 * line.len;
        for (size_t i = 0; line.len && *line.at == 'm' && i < MIN(line.len, LINKS_MAX + 2); i++, many++) {
            (void)snprintf(name, sizeof(name), "many%u", many);
            (void)put(many % 4 == 0, name, "subscriptions", "a.b,c.>");
        }
        size_t i = 0;
        EACH_LINK(l) {
            bool meant = line.len > 1 && (uint8_t)line.at[1] % 4 == i++ % 4;
            if (meant && *line.at == 'u' && l->conn.state == CONN_CONNECTING) server_up(&l->conn);
            if (meant && *line.at == 'b' && l->conn.state == CONN_CONNECTING) atomic_store(&l->conn.report, REPORT_FAILED);
            if (meant && *line.at == 'b' && l->conn.state == CONN_UP) atomic_store(&l->conn.closed, true);
            link_step(l);
        }
        check_world();
    }
    EACH_LINK(l) { /* what is in the table is what was asked for */
        MUST(l->leaving || link_with_id(l->definition) == l);
        json_t *settings = merge_settings(l->definition, l->is_handler);
        MUST(l->leaving || l->stale || json_equal(settings, l->conn.settings));
        struct span server;
        for (size_t i = 0; !*l->wrong && list_item(get(l->conn.settings, "cluster_uris"), i, &server); i++) check_server(server);
        MUST(*l->wrong || oracle_subject(span_of(l->subject), false));
        MUST(*l->wrong || (l->conn.ping_ms >= 1000 && l->max_in_flight >= 1 && l->max_in_flight <= MAX(CALLS_MAX / 2, MAX_IN_FLIGHT_DEFAULT)));
        json_decref(settings);
    }
    arrive(&lattice, message(subjects[SUB_HEALTH], "H.ealth", (struct span){0}));
    world_end();
}

/* What main() does with host data, up to the links. */
static void start_with(json_t *volatile *host, json_t *volatile *settings) {
    size_t i;
    json_t *link;
    *host = parse_input(read_input(STDIN_FILENO, true), true);
    read_host(*host);
    *settings = lattice_settings(*host);
    MUST(is_token(self.key) && is_token(self.lattice) && !wrong_settings(*settings));
    subjects_start();
    service_start("fuzz");
    for (i = 0; i < SUB_KINDS; i++) MUST(oracle_subject(span_of(subjects[i]), false) || (i == SUB_PUT_XKEY && !box.set));
    json_array_foreach(self.links, i, link) link_put(link);
    check_world();
}

/* A death is one sentence on a line, in which no key stands. */
static void check_death(const json_t *host) {
    const char *seed = get(host, "provider_xkey_private_key"), *end = strchr(world.words, '\n');
    MUST(strncmp(world.words, PROVIDER_NAME ": ", strlen(PROVIDER_NAME) + 2) == 0 && end && end[1] == 0 && strlen(world.words) > 20);
    for (const char *c = world.words; c < end; c++) MUST(*c >= ' ' && *c <= '~');
    if (seed && strlen(seed) > 20 && strspn(seed, base32_digits) == strlen(seed)) MUST(!strstr(world.words, seed));
}

/* A line of host data ('j': JSON, of which the line is made; 'r': the line itself), or a file for --check ('c'); and how many
 * bytes of it come at a time. */
static void fuzz_host(const uint8_t *data, size_t len) {
    static char line[2 * 8192];
    volatile bool alive = false;
    json_t *volatile host = NULL, *volatile settings = NULL;
    if (len < 2 || len > 8192) return;
    world_begin();
    json_decref(self.config), json_decref(self.secrets), json_decref(self.links);
    self.config = self.secrets = self.links = NULL;
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
        if (*data == 'c') MUST(check("/dev/null") == 0);
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
        EACH_LINK(l) link_release(l);
    } else { /* a process that ends frees nothing */
        json_decref(lattice.settings);
        lattice.settings = self.config = self.secrets = self.links = NULL;
        EACH_LINK(l) l->used = false;
        while (pieces) json_give(pieces + 1);
    }
    box.set = false;
    world_end();
}

void fuzz_pem(const uint8_t *data, size_t len);   /* pem.c */
void fuzz_guard(const uint8_t *data, size_t len); /* guard.c */

static const struct target { const char *name; void (*run)(const uint8_t *, size_t); } targets[] = {
    {"wire", fuzz_wire}, {"result", fuzz_result}, {"subjects", fuzz_subjects}, {"nkeys", fuzz_nkeys}, {"secrets", fuzz_secrets},
    {"chunks", fuzz_chunks}, {"calls", fuzz_calls}, {"jetstream", fuzz_jetstream}, {"acks", fuzz_acks},
    {"links", fuzz_links}, {"host", fuzz_host}, {"pem", fuzz_pem},
    {"guard", fuzz_guard},
};

static const struct target *chosen;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static randombytes_implementation same_each_time = {chance_name, chance_next, NULL, NULL, chance_fill, NULL};
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
