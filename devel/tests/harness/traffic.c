/* traffic - one flow of messages that goes on through faults, and an account of each message.
 *
 *     build/traffic --flow handle|stream|publish|request --lattice URLS --link URLS --prefix P --component ID
 *                   --subject S [--key KEY] [--count N] [--rate N] [--handles N] [--error N] [--trap N]
 *                   [--mute N] [--in-flight N] [--body BYTES] [--hang SECONDS] [--creds FILE]
 *
 * handle   somebody outside publishes to S, to which a handler link of the component is subscribed
 * stream   the same, but S belongs to a JetStream stream, and each publish waits for the stream's
 *          acknowledgement
 * publish  the component publishes to S, and somebody outside counts what arrives
 * request  the component asks S, and somebody outside echoes
 *
 * --count messages are sent, --rate a second at most; the component handles --handles a second. Of 1,000
 * messages that the component sees for the first time it answers --error with an error result, --trap with a
 * trap, --mute never, the others, and whatever comes again, with ok. Where load.c measures, this counts: it
 * connects again when a server went away, and the first 8 bytes of each body are the message's number, so
 * that each is known to have been acknowledged, handled, handled twice, or lost. Lists of URLs are tried in
 * order; TLS it does not speak.
 *
 * Lines on standard input are commands: "rate N", "handles N", "more N" (so many messages are sent, and no
 * others), "leave" and "join" (nobody runs the component, and somebody does again), "mark", "report". A
 * report is one line of JSON; its latencies are those since the last mark. At the end of the input comes a
 * last one. Exit code 2: wrong usage.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <fcntl.h>

#define PROGRAM "traffic"
#include "load_common.h"

enum { RING = 8192, UNWRITTEN_MAX = 4 << 20, RETRY_NS = 50000000, WORDS_MAX = 12 };
enum flow { HANDLE, STREAM, PUBLISH, REQUEST, FLOWS };
static const char *const flow_names[FLOWS] = {"handle", "stream", "publish", "request"};

static struct {
    enum flow flow;
    uint64_t count, rate, handles, error, trap, mute, in_flight, body, hang_s;
    const char *lattice, *link, *prefix, *key, *component, *subject, *creds;
} want = {.flow = FLOWS,
          .count = UINT64_MAX,
          .rate = 1000,
          .handles = 1000000,
          .in_flight = 64,
          .body = 128,
          .hang_s = 30,
          .key = "messaging-nats"};

static struct conn lattice, outside;

/* What is known of a message, by its number. */
enum { ACKED = 1, SEEN = 2, OK = 4, TWICE = 8 };
static uint8_t *known;
static uint64_t known_room, sent, handled_ok, acked_ok;

/* A call of the component, or a publish that waits for the stream's acknowledgement. */
struct pending {
    uint64_t number, began_ns;
    size_t len;
    bool open;
};
static struct pending pending[RING];
static uint64_t open_now;

/* A message that the component was given. Those from `shaken` on wait for their turn. */
struct invocation {
    char caller[SUBJECT_MAX];
    uint64_t number, count;
    bool open;
};
static struct invocation ring[RING];
static uint64_t invoked, shaken;
static bool away; /* nobody runs the component */

static struct {
    uint64_t seen, twice, error, trap, mute, overrun;               /* the component */
    uint64_t acked, refused, unacked;                               /* the stream */
    uint64_t ok, words, trapped, nobody, hung, cut, arrived, wrong; /* calls */
} count;
static struct {
    char text[96];
    uint64_t times;
} words[WORDS_MAX]; /* of error results */

static uint64_t now, began_ns;
static double send_tokens, handle_tokens;
static char function_subject[SUBJECT_MAX];

/* Latencies in µs, in 16 steps for each power of two. */
enum { STEPS = 16, BUCKETS = 32 * STEPS };
static uint64_t latency[BUCKETS], latencies, latency_max;

/* ---- the account --------------------------------------------------------------------------------------- */

static void latency_add(uint64_t ns) {
    uint64_t us = ns / 1000 + STEPS;
    unsigned top = 63 - (unsigned)__builtin_clzll(us);
    size_t bucket = (top - 4) * STEPS + ((us >> (top - 4)) - STEPS);
    latency[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    latencies++;
    if (us - STEPS > latency_max) latency_max = us - STEPS;
}

static uint64_t percentile(uint64_t percent) {
    uint64_t below = 0;
    for (size_t b = 0; b < BUCKETS; b++)
        if ((below += latency[b]) * 100 >= latencies * percent && latencies)
            return ((b % STEPS + STEPS + 1) << (b / STEPS)) - STEPS;
    return 0;
}

/* Takes the next number. */
static uint64_t number_new(void) {
    if (sent == known_room) {
        known_room = known_room ? 2 * known_room : 1 << 20;
        uint8_t *more = realloc(known, known_room);
        if (!more) die("out of memory");
        known = more;
    }
    known[sent] = 0;
    return sent++;
}

static void learn(uint64_t number, uint8_t flag) {
    if ((known[number] & (ACKED | OK)) != (ACKED | OK) &&
        ((known[number] | flag) & (ACKED | OK)) == (ACKED | OK))
        acked_ok++;
    known[number] |= flag;
}

static void print_words(void) {
    printf(", \"error_words\": {");
    for (size_t i = 0; i < WORDS_MAX && words[i].times; i++) {
        printf("%s\"", i ? ", " : "");
        for (const char *c = words[i].text; *c; c++)
            putchar(*c == '"' || *c == '\\' || *c < ' ' || *c > '~' ? '?' : *c);
        printf("\": %lu", words[i].times);
    }
    printf("}");
}

/* lost: acknowledged by the stream, or to the component, and it did not arrive (yet). missing: sent, and the
 * component never saw it. */
static void report(void) {
    bool calls = want.flow >= PUBLISH;
    uint64_t good = calls ? count.ok : count.acked,
             lost = want.flow == PUBLISH || want.flow == STREAM ? good - acked_ok : 0;
    printf("{\"flow\": \"%s\", \"seconds\": %.3f, \"sent\": %lu, \"open\": %lu, \"lost\": %lu, "
           "\"lattice_lost\": %lu, \"link_lost\": %lu, \"p50_us\": %lu, \"p99_us\": %lu, \"max_us\": %lu",
           flow_names[want.flow], (double)(now - began_ns) / 1e9, sent, open_now, lost, lattice.lost,
           outside.lost, percentile(50), percentile(99), latency_max);
    if (calls) {
        printf(", \"ok\": %lu, \"words\": %lu, \"trapped\": %lu, \"nobody\": %lu, \"hung\": %lu, "
               "\"cut\": %lu, \"arrived\": %lu, \"wrong\": %lu",
               count.ok, count.words, count.trapped, count.nobody, count.hung, count.cut, count.arrived,
               count.wrong);
        print_words();
    } else {
        printf(", \"acked\": %lu, \"refused\": %lu, \"unacked\": %lu", count.acked, count.refused,
               count.unacked);
        printf(", \"handled\": %lu, \"twice\": %lu, \"error\": %lu, \"trap\": %lu, \"mute\": %lu, "
               "\"missing\": %lu, \"waiting\": %lu, \"overrun\": %lu",
               handled_ok, count.twice, count.error, count.trap, count.mute, sent - count.seen,
               invoked - shaken, count.overrun);
    }
    printf("}\n");
    fflush(stdout);
}

/* ---- values -------------------------------------------------------------------------------------------- */

/* The body of message `number`: the number, the time, and letters. */
static uint8_t *body_of(uint64_t number) {
    static uint8_t *body;
    if (!body) {
        body = malloc(want.body);
        if (!body) die("out of memory");
        for (uint64_t i = 0; i < want.body; i++) body[i] = (uint8_t)('a' + i % 26);
    }
    memcpy(body, &number, 8);
    memcpy(body + 8, &now, 8);
    return body;
}

/* The number in a body that may be any, and when it was sent. UINT64_MAX: it is none of ours. */
static uint64_t number_in(const uint8_t *body, size_t len, uint64_t *sent_ns) {
    uint64_t number;
    if (len < 16) return UINT64_MAX;
    memcpy(&number, body, 8);
    memcpy(sent_ns, body + 8, 8);
    return number < sent && *sent_ns <= now && *sent_ns >= began_ns ? number : UINT64_MAX;
}

/* The body of a broker-message, or of the first piece of one. */
static const uint8_t *body_in(const uint8_t *bytes, size_t len, size_t at, size_t *body_len) {
    skip_subject(bytes, len, &at);
    *body_len = get_u32(bytes, len, &at);
    if (at > len) *body_len = 0;
    if (*body_len > len - at && at <= len) *body_len = len - at;
    return bytes + at;
}

/* ---- connections --------------------------------------------------------------------------------------- */

static void on_message(natsConnection *nc, natsMsg **msg, void *user);

static void send_to(struct conn *c, const char *inbox, const char *suffix, const char *reply,
                    const void *data, size_t len) {
    char subject[SUBJECT_MAX];
    (void)snprintf(subject, sizeof(subject), "%s%s", inbox, suffix);
    if (!c->nc) return; /* it went away: as if the message had been on its way */
    if (reply) (void)natsConnection_PublishRequest(c->nc, subject, reply, data, (int)len);
    else (void)natsConnection_Publish(c->nc, subject, data, (int)len);
}

static bool connect_to(struct conn *c, const char *url) {
    natsOptions *opts = NULL;
    natsStatus s = conn_options(&opts, c, url);
    if (s == NATS_OK) s = natsOptions_SetTimeout(opts, 2000);
    if (s == NATS_OK) s = natsOptions_SetPingInterval(opts, 0);
    if (s == NATS_OK && want.creds && c == &outside)
        s = natsOptions_SetUserCredentialsFromFiles(opts, want.creds, NULL);
    if (s == NATS_OK) s = natsConnection_Connect(&c->nc, opts);
    natsOptions_Destroy(opts);
    if (s != NATS_OK) c->nc = NULL;
    return s == NATS_OK;
}

static void subscribe(struct conn *c, size_t slot, const char *subject, const char *queue) {
    natsStatus s = queue ? natsConnection_QueueSubscribeSync(&c->subs[slot], c->nc, subject, queue)
                         : natsConnection_SubscribeSync(&c->subs[slot], c->nc, subject);
    if (s != NATS_OK) c->subs[slot] = NULL;
}

static void join(void) {
    char group[SUBJECT_MAX];
    (void)snprintf(group, sizeof(group), "%s.%s", want.prefix, want.component);
    if (lattice.nc && !away && want.flow <= STREAM) subscribe(&lattice, 1, function_subject, group);
}

/* Connects, subscribes, and sends itself a message: when it is back, the server knows all of it. */
static void conn_open(struct conn *c) {
    char url[SUBJECT_MAX], own[80];
    const char *at = c->url;
    atomic_store(&c->closed, false);
    atomic_store(&c->wants_write, false);
    c->ready = c->blocked = false;
    while (!c->nc && *at) {
        size_t len = strcspn(at, ",");
        (void)snprintf(url, sizeof(url), "%.*s", (int)len, at);
        (void)connect_to(c, url);
        at += len + (at[len] == ',');
    }
    c->due_ns = clock_ns(CLOCK_MONOTONIC) + RETRY_NS;
    if (!c->nc) return;
    natsConn_setFilterWithClosure(c->nc, on_message, c);
    (void)snprintf(own, sizeof(own), "%s>", c->inbox);
    subscribe(c, 0, own, NULL);
    if (c == &lattice) join();
    if (c == &outside && want.flow >= PUBLISH) subscribe(c, 2, want.subject, NULL);
    send_to(c, c->inbox, "echo", NULL, NULL, 0);
}

/* The connection went away: so did what was under way on it. */
static void conn_close(struct conn *c) {
    bool calls = want.flow >= PUBLISH && c == &lattice, acks = want.flow == STREAM && c == &outside;
    c->lost++;
    (void)natsConnection_Close(c->nc);
    for (size_t i = 0; i < 3; i++) natsSubscription_Destroy(c->subs[i]), c->subs[i] = NULL;
    natsConnection_Destroy(c->nc);
    natsConnection_ProcessCloseEvent(&c->fd);
    c->nc = NULL;
    for (struct pending *p = pending; (calls || acks) && p < pending + RING; p++) {
        if (!p->open) continue;
        if (calls) count.cut++;
        else count.unacked++;
        p->open = false;
        open_now--;
    }
}

/* ---- sending ------------------------------------------------------------------------------------------- */

/* The component calls the provider. */
static void call_start(uint64_t number, const char *inbox) {
    static uint8_t *params;
    size_t subject = strlen(want.subject), n;
    natsMsg *msg = NULL;
    if (!params) params = malloc(subject + want.body + 64);
    if (!params) die("out of memory");
    n = put_u32(params, subject);
    memcpy(params + n, want.subject, subject);
    n += subject;
    n += put_u32(params + n, want.body);
    memcpy(params + n, body_of(number), want.body);
    n += want.body;
    if (want.flow == REQUEST) n += put_u32(params + n, 5000);
    else params[n++] = 0;
    if (natsMsg_Create(&msg, function_subject, inbox, (const char *)params, (int)n) != NATS_OK)
        die("out of memory");
    if ((natsMsgHeader_Set(msg, "source-id", want.component)
             ?: natsMsgHeader_Set(msg, "link-name", "default")) == NATS_OK)
        (void)natsConnection_PublishMsg(lattice.nc, msg);
    natsMsg_Destroy(msg);
}

/* One more message. False: not now. */
static bool send_one(void) {
    struct conn *c = want.flow >= PUBLISH ? &lattice : &outside;
    struct pending *p = &pending[sent % RING];
    char inbox[SUBJECT_MAX];
    bool answered = want.flow != HANDLE;
    if (sent == 0 && !(lattice.ready && outside.ready))
        return false; /* the other end is there before the first message */
    if (!c->nc || !c->ready || natsConnection_Buffered(c->nc) > UNWRITTEN_MAX) return false;
    if (answered && (p->open || open_now >= want.in_flight)) return false;
    uint64_t number = number_new();
    (void)snprintf(inbox, sizeof(inbox), "%sc%lx", c->inbox, number);
    if (answered) *p = (struct pending){.number = number, .began_ns = now, .open = true};
    open_now += answered;
    if (c == &lattice) call_start(number, inbox);
    else send_to(c, want.subject, "", answered ? inbox : NULL, body_of(number), want.body);
    return true;
}

static void send_some(double seconds) {
    double most = (double)want.rate / 20 + 1;
    send_tokens += seconds * (double)want.rate;
    if (send_tokens > most) send_tokens = most;
    while (send_tokens >= 1 && sent < want.count && send_one()) send_tokens -= 1;
}

/* ---- answers to what was sent -------------------------------------------------------------------------- */

static void pending_end(struct pending *p, uint64_t *as) {
    (*as)++;
    p->open = false;
    open_now--;
    latency_add(now - p->began_ns);
}

static void expire(void) {
    static uint64_t next_ns;
    if (now < next_ns) return;
    next_ns = now + SECOND / 10;
    for (struct pending *p = pending; p < pending + RING; p++)
        if (p->open && now - p->began_ns > want.hang_s * SECOND)
            pending_end(p, want.flow == STREAM ? &count.unacked : &count.hung);
}

/* An error result: keeps its words. Returns what it counts as. */
static uint64_t *error_result(const uint8_t *result, size_t len) {
    size_t at = 1, i = 0;
    uint64_t n = get_u32(result, len, &at);
    char text[sizeof(words[0].text)];
    (void)snprintf(text, sizeof(text), "%.*s", (int)(at <= len && n <= len - at ? n : 0),
                   (const char *)result + at);
    while (i < WORDS_MAX - 1 && words[i].times && strcmp(words[i].text, text) != 0) i++;
    if (!words[i].times) memcpy(words[i].text, text, sizeof(text));
    words[i].times++;
    return *text ? &count.words : &count.wrong; /* an error without a word is wrong */
}

/* A piece of a result, or its end. */
static void on_results(struct pending *p, const uint8_t *bytes, size_t len) {
    uint64_t sent_ns;
    size_t body_len;
    if (len == 0 && p->len == 0) return pending_end(p, &count.trapped);
    if (len == 0) return;
    p->len += len;
    if (p->len > len) return; /* the first piece says it all */
    if (bytes[0] == 1) return pending_end(p, error_result(bytes, len));
    const uint8_t *body = want.flow == REQUEST ? body_in(bytes, len, 1, &body_len) : NULL;
    if (bytes[0] != 0 || (body && number_in(body, body_len, &sent_ns) != p->number))
        return pending_end(p, &count.wrong);
    if (want.flow == PUBLISH) learn(p->number, ACKED);
    pending_end(p, &count.ok);
}

/* What comes to the inbox of a call, or of a publish to a stream. */
static void on_answer(const char *token, natsMsg *msg) {
    char *suffix;
    uint64_t number = strtoull(token, &suffix, 16);
    struct pending *p = &pending[number % RING];
    const char *data = natsMsg_GetData(msg);
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    if (!p->open || p->number != number) return;
    if (natsMsg_IsNoResponders(msg))
        return pending_end(p, want.flow == STREAM ? &count.refused : &count.nobody);
    if (want.flow != STREAM) {
        if (strcmp(suffix, ".results") == 0) on_results(p, (const uint8_t *)data, len);
        else if (!*suffix && natsMsg_GetReply(msg))
            send_to(&lattice, natsMsg_GetReply(msg), ".params", NULL, NULL, 0);
        return;
    }
    bool refused = memmem(data, len, "\"error\"", 7) || !memmem(data, len, "\"seq\"", 5);
    if (!refused) learn(number, ACKED);
    pending_end(p, refused ? &count.refused : &count.acked);
}

/* ---- the component's side ------------------------------------------------------------------------------ */

static void on_invocation(natsMsg *msg) {
    const uint8_t *bytes = (const uint8_t *)natsMsg_GetData(msg);
    size_t body_len;
    uint64_t sent_ns = now;
    if (invoked - shaken == RING)
        shaken++, count.overrun++; /* more than any provider may have out: the oldest is given up */
    struct invocation *i = &ring[invoked % RING];
    *i = (struct invocation){.count = invoked++, .open = true};
    const uint8_t *body = body_in(bytes, (size_t)natsMsg_GetDataLength(msg), 0, &body_len);
    i->number = number_in(body, body_len, &sent_ns);
    (void)snprintf(i->caller, sizeof(i->caller), "%s", natsMsg_GetReply(msg));
    latency_add(now - sent_ns);
}

/* The component takes what waits, as fast as it may. */
static void handle_some(double seconds) {
    char inbox[SUBJECT_MAX];
    double most = (double)want.handles / 20 + 1;
    handle_tokens += seconds * (double)want.handles;
    if (handle_tokens > most) handle_tokens = most;
    for (; handle_tokens >= 1 && shaken < invoked; shaken++, handle_tokens -= 1) {
        (void)snprintf(inbox, sizeof(inbox), "%si%lx", lattice.inbox, shaken);
        send_to(&lattice, ring[shaken % RING].caller, "", inbox, NULL, 0);
    }
}

/* Its parameters are whole: the component answers. What came for the first time may get something else than
 * ok. */
static void answer(const struct invocation *i) {
    static const char no[] = "\1\2no";
    bool first = i->number != UINT64_MAX && !(known[i->number] & SEEN);
    uint64_t lot = first ? (i->number * 7919) % 1000 : 1000;
    if (first) learn(i->number, SEEN), count.seen++;
    if (lot < want.mute) return (void)count.mute++;
    if (lot < want.mute + want.trap) {
        count.trap++;
    } else if (lot < want.mute + want.trap + want.error) {
        count.error++;
        send_to(&lattice, i->caller, ".results", NULL, no, sizeof(no) - 1);
    } else {
        send_to(&lattice, i->caller, ".results", NULL, "", 1);
        if (i->number == UINT64_MAX) count.wrong++;
        else if (!(known[i->number] & OK)) handled_ok++, learn(i->number, OK);
        else if (!(known[i->number] & TWICE)) count.twice++, known[i->number] |= TWICE;
    }
    send_to(&lattice, i->caller, ".results", NULL, NULL, 0);
}

static void on_params(const char *token, natsMsg *msg) {
    uint64_t n = strtoull(token, NULL, 16);
    struct invocation *i = &ring[n % RING];
    if (natsMsg_GetDataLength(msg) > 0 || !i->open || i->count != n) return;
    i->open = false;
    answer(i);
}

/* ---- what arrives -------------------------------------------------------------------------------------- */

/* The world outside: a listener, or a responder. */
static void on_outside(natsMsg *msg) {
    uint64_t sent_ns, number = number_in((const uint8_t *)natsMsg_GetData(msg),
                                         (size_t)natsMsg_GetDataLength(msg), &sent_ns);
    count.arrived++;
    if (number == UINT64_MAX) count.wrong++;
    else if (want.flow == PUBLISH) learn(number, OK);
    if (want.flow == REQUEST && natsMsg_GetReply(msg))
        send_to(&outside, natsMsg_GetReply(msg), "", NULL, natsMsg_GetData(msg),
                (size_t)natsMsg_GetDataLength(msg));
}

static void on_message(natsConnection *nc, natsMsg **msg, void *user) {
    struct conn *c = user;
    const char *subject = natsMsg_GetSubject(*msg), *token = subject + c->inbox_len;
    (void)nc;
    if (strncmp(subject, c->inbox, c->inbox_len) != 0) {
        if (c == &lattice) on_invocation(*msg);
        else on_outside(*msg);
    } else if (strcmp(token, "echo") == 0) c->ready = true;
    else if (*token == 'i') on_params(token + 1, *msg);
    else if (*token == 'c') on_answer(token + 1, *msg);
    natsMsg_Destroy(*msg);
    *msg = NULL;
}

/* One command. */
static void obey(const char *line) {
    uint64_t more;
    if (sscanf(line, "rate %lu", &want.rate) == 1 || sscanf(line, "handles %lu", &want.handles) == 1) return;
    if (sscanf(line, "more %lu", &more) == 1) return (void)(want.count = sent + more);
    if (strcmp(line, "report") == 0) return report();
    if (strcmp(line, "mark") == 0)
        return (void)(memset(latency, 0, sizeof(latency)), latencies = latency_max = 0);
    away = strcmp(line, "leave") == 0;
    if (!away && strcmp(line, "join") != 0) die("no command: %s", line);
    natsSubscription_Destroy(lattice.subs[1]);
    lattice.subs[1] = NULL;
    join();
}

/* What came on standard input. False at its end. */
static bool read_commands(void) {
    static char text[1024];
    static size_t have;
    char *end;
    ssize_t n = read(STDIN_FILENO, text + have, sizeof(text) - 1 - have);
    if (n <= 0) return n < 0 && errno == EAGAIN;
    have += (size_t)n;
    text[have] = 0;
    while ((end = strchr(text, '\n'))) {
        *end = 0;
        obey(text);
        have -= (size_t)(end + 1 - text);
        memmove(text, end + 1, have + 1);
    }
    return true;
}

/* ---- the loop ------------------------------------------------------------------------------------------ */

/* Writes, waits, reads. Returns false when the commands have ended. */
static bool turn(void) {
    struct conn *both[] = {&lattice, &outside};
    struct pollfd fds[3] = {
        {.fd = -1},
        {.fd = -1},
        {.fd = STDIN_FILENO, .events = POLLIN}
    };
    bool waits = shaken < invoked && want.handles > 0, sends = sent < want.count && want.rate > 0;
    int timeout_ms = waits || sends ? 1 : 50;
    for (int i = 0; i < 2; i++) {
        if (!both[i]->nc && now >= both[i]->due_ns) conn_open(both[i]);
        conn_write(both[i]);
        if (!both[i]->nc) continue;
        fds[i] = (struct pollfd){.fd = both[i]->fd,
                                 .events = (short)(both[i]->blocked ? POLLIN | POLLOUT : POLLIN)};
        if (sends && send_tokens >= 1 && want.flow == HANDLE && !both[i]->blocked) timeout_ms = 0;
    }
    if (poll(fds, 3, timeout_ms) < 0 && errno != EINTR) die("poll: %s", strerror(errno));
    now = clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < 2; i++) {
        if (!both[i]->nc) continue;
        if (fds[i].revents & POLLOUT) both[i]->blocked = false;
        if (fds[i].revents & ~POLLOUT) natsConnection_ProcessReadEvent(both[i]->nc);
        if (atomic_load(&both[i]->closed)) conn_close(both[i]);
    }
    return !(fds[2].revents & (POLLIN | POLLHUP)) || read_commands();
}

static void run(void) {
    uint64_t last;
    began_ns = last = now = clock_ns(CLOCK_MONOTONIC);
    do {
        double seconds = (double)(now - last) / 1e9;
        last = now;
        send_some(seconds);
        handle_some(seconds);
        expire();
    } while (turn());
}

/* ---- command line -------------------------------------------------------------------------------------- */

static void read_options(int argc, char **argv) {
    const struct option options[] = {
        {"--count",     &want.count,     NULL           },
        {"--rate",      &want.rate,      NULL           },
        {"--handles",   &want.handles,   NULL           },
        {"--error",     &want.error,     NULL           },
        {"--trap",      &want.trap,      NULL           },
        {"--mute",      &want.mute,      NULL           },
        {"--in-flight", &want.in_flight, NULL           },
        {"--body",      &want.body,      NULL           },
        {"--hang",      &want.hang_s,    NULL           },
        {"--lattice",   NULL,            &want.lattice  },
        {"--link",      NULL,            &want.link     },
        {"--prefix",    NULL,            &want.prefix   },
        {"--key",       NULL,            &want.key      },
        {"--component", NULL,            &want.component},
        {"--subject",   NULL,            &want.subject  },
        {"--creds",     NULL,            &want.creds    },
    };
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc) die("%s: its value is missing" SEE, argv[i]);
        if (strcmp(argv[i], "--flow") == 0) want.flow = find_flow(flow_names, FLOWS, argv[i + 1]);
        else take_option(options, sizeof(options) / sizeof(options[0]), argv[i], argv[i + 1]);
    }
    if (want.flow == FLOWS) die("--flow is handle, stream, publish or request");
    if (!want.lattice || !want.link || !want.prefix || !want.component || !want.subject)
        die("--lattice, --link, --prefix, --component and --subject are needed" SEE);
    if (want.body < 16 || want.in_flight > RING) die("--body is 16 or more, --in-flight %d or less", RING);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    (void)snprintf(function_subject, sizeof(function_subject), "%s.%s." WRPC "%s@0.2.0.%s", want.prefix,
                   want.flow <= STREAM ? want.component : want.key,
                   want.flow <= STREAM ? "handler" : "consumer",
                   want.flow <= STREAM ? "handle-message" : flow_names[want.flow]);
    (void)fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    make_inbox(&lattice);
    make_inbox(&outside);
    lattice.url = want.lattice;
    outside.url = want.link;
    run();
    report();
    return 0;
}
