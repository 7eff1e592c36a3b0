/* load - plays a host, a component and the outside world against a running provider, as fast as it can.
 *
 *     build/load --flow publish|request|handle --calls N --in-flight K --body BYTES --lattice URL --link URL
 *                --prefix P --key KEY --component ID [--subject S] [--links N | --subjects N] [--warm N]
 *                [--burst] [--pid PID] [--trace MS] [--ca FILE] [--wait SECONDS]
 *
 * publish  the component publishes to S; somebody outside listens, and has to get every message
 * request  the component asks S; somebody outside echoes
 * handle   somebody outside publishes to S, which a handler link of the component must be subscribed to; the
 *          component answers "ok". With --burst all at once, and then what did not arrive is counted but
 *          is no failure
 *
 * --links N     calls go over N links in turn: the components are ID0, ID1 …, the subjects S0, S1 …
 * --subjects N  messages go to N subscriptions of one handler link in turn: S0, S1 …
 * --warm N      makes so many calls before those that are measured
 * --pid PID     the provider, whose CPU time, memory and context switches are looked at
 * --trace MS    looks at its memory so often
 *
 * Each call is the whole exchange of a 1.9 host. The first 8 bytes of each body are the call's number, so
 * what is lost, doubled or mixed up is noticed; a shorter body is only counted. One thread and one poll loop,
 * messages that are composed once, the clock read once a turn: it is the provider that is measured.
 *
 * Prints one JSON object; exit code 1 if a call failed or was lost, 2 on wrong usage or without a connection.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <glob.h>
#include <malloc.h>

#define PROGRAM "load"
#include "load_common.h"

#include "deps/openssl_shim.h"

/* Exported by nats.c, though not in its public header. natsMsg_Destroy() would wake another thread to free a
 * message. With the other two a message is made once, its header block as it goes over the wire, and
 * published often, with a reply subject of its own each time. */
void natsMsg_free(void *msg);
natsStatus natsMsg_create(natsMsg **msg, const char *subject, int subject_len, const char *reply,
                          int reply_len, const char *headers_and_data, int len, int headers_len);
natsStatus natsConn_publish(natsConnection *nc, natsMsg *msg, const char *reply, bool flush);

enum {
    INBOX_MAX = 128,
    TARGETS_MAX = 128,
    INVOCATIONS = 65536,
    SAMPLE_EVERY = 10000,
    SAMPLES_MAX = 4096,
    UNWRITTEN_MAX = 1 << 19,
    NUMBER_LEN = 8,
    FORGET_US = 300000
};
enum flow { PUBLISH, REQUEST, HANDLE, FLOWS };
static const char *const flow_names[FLOWS] = {"publish", "request", "handle"};

static struct {
    enum flow flow;
    uint64_t calls, warm, in_flight, body, links, subjects, pid, trace_ms, wait_s;
    const char *lattice, *link, *prefix, *key, *component, *subject, *ca;
    bool burst;
} want = {.flow = FLOWS,
          .calls = 10000,
          .in_flight = 64,
          .body = 128,
          .links = 1,
          .subjects = 1,
          .wait_s = 10,
          .key = "messaging-nats",
          .component = "echo",
          .subject = "load"};

static struct conn lattice, outside;

struct call {
    uint32_t began_us, took_us;
    uint32_t results, whole; /* bytes of the result so far, and of all of it */
    bool done, wrong, forgotten;
    bool ended;     /* so said the provider */
    bool delivered; /* the message has arrived on the other side */
};
static struct call *calls;

/* What a component is handling. */
struct invocation {
    char caller[INBOX_MAX];
    uint64_t number;
    size_t len, expected; /* bytes of its parameters: those that came, and how many there have to be */
    bool used;
};
static struct invocation invocations[INVOCATIONS];
static uint32_t idle[INVOCATIONS]; /* those that are not used; the last one that was is the next */
static uint32_t idle_count;

/* Where calls and messages go, in turn: a link with its component, or a subject. */
struct target {
    char component[INBOX_MAX], subject[INBOX_MAX], function[SUBJECT_MAX];
    uint8_t *params;            /* of a call: everything but its number */
    size_t params_len, body_at; /* where the body begins in them */
    natsMsg *call;              /* with as many bytes of the parameters as fit: what a component sends */
    size_t first;
};
static struct target targets[TARGETS_MAX];
static uint64_t target_count;

static uint64_t started, done, ended, forgotten, delivered, errors, began_ns, ended_ns, progress_ns;
static uint64_t now;                       /* when poll() came back */
static uint64_t rss[SAMPLES_MAX], samples; /* kB, every SAMPLE_EVERY calls */
static struct {
    uint64_t us, kb;
} trace[SAMPLES_MAX];
static uint64_t traced, trace_due_ns;

/* What a number of calls cost: the provider's CPU time and ours, and the provider's context switches. */
struct cost {
    uint64_t cpu_ns, load_cpu_ns, switches;
};
static struct cost before, after;

#define failed(...) ((void)(errors++ < 5 && say(__VA_ARGS__))) /* the first few are enough */
#define must(s, url) ((void)((s) != NATS_OK && (die("%s: %s", url, nats_GetLastError(NULL)), 0)))

static uint32_t since_begin_us(void) { return (uint32_t)((now - began_ns) / 1000); }

/* ---- the provider's process ---------------------------------------------------------------------------- */

/* A number of a status file of /proc. */
static uint64_t number_of(const char *path, const char *field) {
    char text[4096];
    FILE *f = fopen(path, "r");
    text[f ? fread(text, 1, sizeof(text) - 1, f) : 0] = 0;
    if (f) fclose(f);
    const char *at = strstr(text, field);
    return at ? strtoull(at + strlen(field), NULL, 10) : 0;
}

/* One of the provider's process, such as "VmRSS:" in kB. */
static uint64_t process_status(const char *field) {
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%lu/status", want.pid);
    return want.pid ? number_of(path, field) : 0;
}

/* How often its threads went to sleep, or were put to sleep. */
static uint64_t context_switches(void) {
    char pattern[64];
    uint64_t sum = 0;
    glob_t threads = {0};
    (void)snprintf(pattern, sizeof(pattern), "/proc/%lu/task/*/status", want.pid);
    (void)glob(pattern, 0, NULL, &threads);
    for (size_t i = 0; i < threads.gl_pathc; i++)
        sum += number_of(threads.gl_pathv[i], "\nvoluntary_ctxt_switches:") +
               number_of(threads.gl_pathv[i], "\nnonvoluntary_ctxt_switches:");
    globfree(&threads);
    return sum;
}

static struct cost cost_so_far(void) {
    clockid_t clock;
    struct cost c = {.load_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID)};
    if (!want.pid) return c;
    if (clock_getcpuclockid((pid_t)want.pid, &clock) == 0) c.cpu_ns = clock_ns(clock);
    c.switches = context_switches();
    return c;
}

static void trace_memory(void) {
    if (!want.trace_ms || now < trace_due_ns || traced == SAMPLES_MAX) return;
    trace[traced].us = since_begin_us();
    trace[traced++].kb = process_status("VmRSS:");
    trace_due_ns = now + want.trace_ms * 1000000;
}

/* ---- values -------------------------------------------------------------------------------------------- */

/* Writes a number in hexadecimal, with so many digits that all inboxes are of one length. */
static void put_hex(char *out, uint64_t value) {
    for (size_t i = NUMBER_LEN; i-- > 0; value >>= 4) out[i] = "0123456789abcdef"[value & 15];
    out[NUMBER_LEN] = 0;
}

/* Reads it, or UINT64_MAX. */
static uint64_t get_hex(const char *text) {
    uint64_t value = 0;
    for (size_t i = 0; i < NUMBER_LEN; i++) {
        char c = text[i];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return UINT64_MAX;
        value = value << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return value;
}

static struct target *target_of(uint64_t number) { return &targets[number % target_count]; }

/* The parameters of a call: (subject, body, no reply-to), or for request (subject, body, timeout). */
static void make_params(struct target *t) {
    size_t subject = strlen(t->subject), len = put_u32(t->params, subject);
    memcpy(t->params + len, t->subject, subject);
    len += subject;
    len += put_u32(t->params + len, want.body);
    t->body_at = len;
    for (uint64_t i = 0; i < want.body; i++) t->params[len++] = (uint8_t)('a' + i % 26);
    if (want.flow == REQUEST) len += put_u32(t->params + len, want.wait_s * 1000);
    else t->params[len++] = 0;
    t->params_len = len;
}

static void name_target(struct target *t, uint64_t i) {
    char link[24] = "", any[24] = "";
    if (want.links > 1) (void)snprintf(link, sizeof(link), "%lu", i);
    if (target_count > 1) (void)snprintf(any, sizeof(any), "%lu", i);
    (void)snprintf(t->component, sizeof(t->component), "%.90s%s", want.component, link);
    (void)snprintf(t->subject, sizeof(t->subject), "%.90s%s", want.subject, any);
    (void)snprintf(t->function, sizeof(t->function), "%.120s.%.120s." WRPC "%s@0.2.0.%s", want.prefix,
                   want.flow == HANDLE ? t->component : want.key,
                   want.flow == HANDLE ? "handler" : "consumer",
                   want.flow == HANDLE ? "handle-message" : flow_names[want.flow]);
}

/* What a component sends for a call: headers, and what a 1.9 host reckons to fit. */
static void make_call(struct target *t) {
    uint8_t *both = malloc(SUBJECT_MAX + t->params_len);
    if (!both) die("out of memory");
    int head = snprintf((char *)both, SUBJECT_MAX, "NATS/1.0\r\nsource-id: %s\r\nlink-name: default\r\n\r\n",
                        t->component);
    size_t room = lattice.max_payload - (size_t)head - lattice.inbox_len - NUMBER_LEN;
    t->first = t->params_len < room ? t->params_len : room;
    memcpy(both + head, t->params, t->first);
    must(natsMsg_create(&t->call, t->function, (int)strlen(t->function), NULL, 0, (char *)both,
                        head + (int)t->first, head),
         lattice.url);
    free(both);
}

static void make_targets(void) {
    target_count = want.links > want.subjects ? want.links : want.subjects;
    calls = calloc(want.warm + want.calls + 1, sizeof(*calls));
    for (uint64_t i = 0; i < target_count; i++) {
        struct target *t = &targets[i];
        name_target(t, i);
        t->params = malloc(SUBJECT_MAX + want.body);
        if (!t->params || !calls) die("out of memory");
        make_params(t);
    }
    for (idle_count = 0; idle_count < INVOCATIONS; idle_count++)
        idle[idle_count] = INVOCATIONS - 1 - idle_count;
}

/* Writes a call's number into its body, if that has room for one. */
static void put_number(uint8_t *body, uint64_t number) {
    if (want.body >= sizeof(number)) memcpy(body, &number, sizeof(number));
}

/* The number in a body of which at least the first bytes are there. A body without one has `otherwise`. */
static uint64_t number_in(const uint8_t *body, size_t have, uint64_t otherwise) {
    uint64_t number;
    if (want.body < sizeof(number) || have < sizeof(number)) return otherwise;
    memcpy(&number, body, sizeof(number));
    return number;
}

/* ---- sending ------------------------------------------------------------------------------------------- */

static void send_to(struct conn *c, const char *inbox, const char *suffix, const char *reply,
                    const void *data, size_t len) {
    char subject[SUBJECT_MAX];
    size_t n = strlen(inbox), m = strlen(suffix);
    if (n + m >= sizeof(subject)) return failed("a reply subject of %zu bytes", n);
    memcpy(subject, inbox, n);
    memcpy(subject + n, suffix, m + 1);
    natsStatus s = reply ? natsConnection_PublishRequest(c->nc, subject, reply, data, (int)len)
                         : natsConnection_Publish(c->nc, subject, data, (int)len);
    if (s != NATS_OK) failed("publishing to %s: %s", subject, natsStatus_GetText(s));
}

/* An inbox of ours: that of a call is its number, that of an invocation is i and its place. */
static void inbox_of(char out[INBOX_MAX], const char *kind, uint64_t number) {
    size_t n = lattice.inbox_len, m = strlen(kind);
    memcpy(out, lattice.inbox, n);
    memcpy(out + n, kind, m + 1);
    put_hex(out + n + m, number);
}

/* The component calls the provider. The message is the same each time but for its number, in its own copy of
 * the body. */
static void call_start(struct target *t, uint64_t number) {
    char inbox[INBOX_MAX];
    inbox_of(inbox, "", number);
    put_number((uint8_t *)(uintptr_t)natsMsg_GetData(t->call) + t->body_at, number);
    must(natsConn_publish(lattice.nc, t->call, inbox, false), lattice.url);
}

static void message_start(struct target *t, uint64_t number) {
    put_number(t->params + t->body_at, number);
    must(natsConnection_Publish(outside.nc, t->subject, t->params + t->body_at, (int)want.body), outside.url);
}

/* What has not ended within FORGET_US counts as in flight no longer, so that lost calls do not lighten the
 * load. */
static void forget_calls(void) {
    static uint64_t oldest;
    for (; oldest < started && (calls[oldest].done || since_begin_us() - calls[oldest].began_us > FORGET_US);
         oldest++)
        if (!calls[oldest].done) forgotten += calls[oldest].forgotten = true;
}

/* Starts as many calls as may be out, while the kernel takes what was written before. */
static void start_calls(uint64_t limit) {
    struct conn *c = want.flow == HANDLE ? &outside : &lattice;
    while (started < limit && (want.burst || started - done - forgotten < want.in_flight) &&
           natsConnection_Buffered(c->nc) < UNWRITTEN_MAX) {
        calls[started].began_us = since_begin_us();
        if (want.flow == HANDLE) message_start(target_of(started), started);
        else call_start(target_of(started), started);
        started++;
    }
}

static void call_done(uint64_t number) {
    if (number >= started || calls[number].done)
        return failed("call %lu ended twice, or never began", number);
    calls[number].done = true;
    forgotten -= calls[number].forgotten;
    calls[number].took_us = since_begin_us() - calls[number].began_us;
    done++;
    if (done > want.warm && (done - want.warm) % SAMPLE_EVERY == 0 && samples < SAMPLES_MAX)
        rss[samples++] = process_status("VmRSS:");
}

static void message_delivered(uint64_t number) {
    if (number >= started || calls[number].delivered)
        failed("message %lu came twice, or was never sent", number);
    else delivered += calls[number].delivered = true;
}

/* ---- what arrives -------------------------------------------------------------------------------------- */

/* The provider is ready for the rest of the parameters. */
static void on_handshake(uint64_t number, natsMsg *msg) {
    const char *rest = natsMsg_GetReply(msg);
    const struct target *t = target_of(number);
    if (!rest) {
        ended += calls[number].ended = true;
        call_done(number);
        return failed("call %lu: %s", number,
                      natsMsg_IsNoResponders(msg) ? "no provider serves it"
                                                  : "a handshake without a reply subject");
    }
    for (size_t at = t->first, size = lattice.max_payload; at < t->params_len; at += size)
        send_to(&lattice, rest, ".params", NULL, t->params + at,
                t->params_len - at < size ? t->params_len - at : size);
    send_to(&lattice, rest, ".params", NULL, NULL, 0);
}

/* Whether the beginning of a result is that of success, and of the length that it ought to have, which is
 * set. */
static bool result_is_right(uint64_t number, const uint8_t *bytes, size_t len) {
    size_t at = 1;
    calls[number].whole = 1;
    if (bytes[0] != 0 || want.flow == PUBLISH) return bytes[0] == 0 && len == 1;
    skip_subject(bytes, len, &at);
    if (get_u32(bytes, len, &at) != want.body || at > len) return false;
    calls[number].whole = (uint32_t)(at + want.body + 1); /* no reply subject */
    return number_in(bytes + at, len - at, number) == number;
}

/* Part of a result. As for a host, a call is done when that is whole (protocol: wrpc-transport,
 * invoke_values); its end follows. */
static void on_results(uint64_t number, natsMsg *msg) {
    struct call *c = &calls[number];
    const uint8_t *bytes = (const uint8_t *)natsMsg_GetData(msg);
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    if (len > 0) {
        if (c->results == 0 && (c->wrong = !result_is_right(number, bytes, len)))
            failed("call %lu: wrong result of %zu bytes: %.*s", number, len, (int)(len < 80 ? len : 80),
                   (const char *)bytes);
        c->results += (uint32_t)len;
        if (!c->done && c->results >= c->whole) call_done(number);
        return;
    }
    ended += c->ended = true;
    if (c->results == 0) failed("call %lu failed: no result", number);
    else if (c->results < c->whole) failed("call %lu: the result is cut", number);
    if (!c->done) call_done(number);
}

/* The provider calls the component: shakes hands, and looks at what there is of the parameters. */
static void on_invocation(natsMsg *msg) {
    static size_t invoked;
    const uint8_t *bytes = (const uint8_t *)natsMsg_GetData(msg);
    const char *caller = natsMsg_GetReply(msg);
    size_t at = 0, len = (size_t)natsMsg_GetDataLength(msg);
    skip_subject(bytes, len, &at);
    uint64_t body = get_u32(bytes, len, &at);
    if (at > len || body != want.body)
        return failed("a message of %lu bytes instead of %lu", body, want.body);
    if (!caller || strlen(caller) >= INBOX_MAX) return failed("an invocation without a usable reply subject");
    if (idle_count == 0) return failed("more than %d messages with the component at once", INVOCATIONS);
    struct invocation *i = &invocations[idle[--idle_count]];
    i->len = len;
    i->expected = at + body + 1;
    i->used = true;
    i->number = number_in(bytes + at, len - at, invoked++);
    memcpy(i->caller, caller, strlen(caller) + 1);
    char inbox[INBOX_MAX];
    inbox_of(inbox, "i", idle[idle_count]);
    send_to(&lattice, i->caller, "", inbox, NULL, 0);
}

/* The rest of the parameters of an invocation; after the empty message it is answered. */
static void on_params(struct invocation *i, natsMsg *msg) {
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    i->len += len;
    if (len > 0) return;
    if (i->len != i->expected) failed("parameters of %zu bytes instead of %zu", i->len, i->expected);
    send_to(&lattice, i->caller, ".results", NULL, "", 1);
    send_to(&lattice, i->caller, ".results", NULL, NULL, 0);
    i->used = false;
    idle[idle_count++] = (uint32_t)(i - invocations);
    call_done(i->number);
}

static void on_lattice(natsMsg *msg) {
    const char *subject = natsMsg_GetSubject(msg);
    if (strncmp(subject, lattice.inbox, lattice.inbox_len) != 0) return on_invocation(msg);
    const char *token = subject + lattice.inbox_len;
    struct invocation *i;
    if (strcmp(token, "echo") == 0) return (void)(lattice.ready = true);
    if (strcmp(token, "pad") == 0) return; /* no inbox of ours: see provider.c, on calls */
    uint64_t number = get_hex(token + (*token == 'i'));
    if (*token == 'i' && (i = &invocations[number % INVOCATIONS])->used) return on_params(i, msg);
    if (*token == 'i' || number >= started || calls[number].ended)
        return failed("a message for what is over: %s", subject);
    if (!token[NUMBER_LEN]) on_handshake(number, msg);
    else if (strcmp(token + NUMBER_LEN, ".results") == 0) on_results(number, msg);
    else failed("a message on %s", subject);
}

/* The world outside the lattice: a listener, or a responder. */
static void on_outside(natsMsg *msg) {
    const char *subject = natsMsg_GetSubject(msg), *reply = natsMsg_GetReply(msg);
    const uint8_t *body = (const uint8_t *)natsMsg_GetData(msg);
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    if (strncmp(subject, outside.inbox, outside.inbox_len) == 0) return (void)(outside.ready = true);
    if (len != want.body) return failed("outside: a message of %zu bytes instead of %lu", len, want.body);
    if (want.flow == PUBLISH) message_delivered(number_in(body, len, delivered));
    else if (reply) send_to(&outside, reply, "", NULL, body, len);
    else failed("outside: a request without a reply subject");
}

static void on_message(natsConnection *nc, natsMsg **msg, void *user) {
    (void)nc;
    progress_ns = now; /* not for each byte: nats-server sends a PING of its own after 2 s */
    if (user == &lattice) on_lattice(*msg);
    else on_outside(*msg);
    natsMsg_free(*msg);
    *msg = NULL;
}

/* ---- connections and the loop -------------------------------------------------------------------------- */

static void connect_to(struct conn *c, const char *url) {
    natsOptions *opts;
    c->url = url;
    must(conn_options(&opts, c, url), url);
    bool tls = strncmp(url, "tls://", 6) == 0;
    if (tls) must(natsOptions_SetSecure(opts, true), url);
    c->secure = tls || want.ca;
    if (want.ca) must(natsOptions_LoadCATrustedCertificates(opts, want.ca), url);
    must(natsConnection_Connect(&c->nc, opts), url);
    natsOptions_Destroy(opts);
    natsConn_setFilterWithClosure(c->nc, on_message, c);
    make_inbox(c);
    c->max_payload = (size_t)natsConnection_GetMaxPayload(c->nc);
}

/* Subscribes, to its own inbox as well, and sends itself a message: when it is back, the server knows all of
 * it. */
static void listen_on(struct conn *c) {
    natsSubscription *sub; /* for as long as the program runs */
    char own[80], group[SUBJECT_MAX];
    (void)snprintf(own, sizeof(own), "%s>", c->inbox);
    must(natsConnection_SubscribeSync(&sub, c->nc, own), c->url);
    for (const struct target *t = targets;
         t < targets + target_count && (want.flow == HANDLE) == (c == &lattice); t++) {
        if (want.flow == HANDLE && t > targets && want.links == 1) break; /* one component, many subjects */
        (void)snprintf(group, sizeof(group), "%.120s.%.120s", want.prefix, t->component);
        must(want.flow == HANDLE ? natsConnection_QueueSubscribeSync(&sub, c->nc, t->function, group)
                                 : natsConnection_QueueSubscribeSync(&sub, c->nc, t->subject, "load"),
             c->url);
    }
    send_to(c, c->inbox, "echo", NULL, NULL, 0);
}

/* What TLS has decrypted already, poll() does not know of. */
static bool has_input(const struct conn *c) { return c->secure && tls_has_input(c->fd); }

/* Writes, waits, reads; what was read may have put something into the buffers, which the next turn writes. */
static void turn(int timeout_ms) {
    struct conn *both[] = {&lattice, &outside};
    struct pollfd fds[2];
    for (int i = 0; i < 2; i++) {
        conn_write(both[i]);
        fds[i] = (struct pollfd){.fd = both[i]->fd, .events = POLLIN};
        if (both[i]->blocked) fds[i].events |= POLLOUT;
        if (has_input(both[i])) timeout_ms = 0;
    }
    if (poll(fds, 2, timeout_ms) < 0 && errno != EINTR) die("poll: %s", strerror(errno));
    now = clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < 2; i++) {
        if (fds[i].revents & POLLOUT) both[i]->blocked = false;
        if (fds[i].revents & ~POLLOUT || has_input(both[i])) natsConnection_ProcessReadEvent(both[i]->nc);
        if (atomic_load(&both[i]->closed)) die("%s: the connection was lost", both[i]->url);
    }
}

static bool finished(uint64_t limit) {
    return done == limit && (want.flow == HANDLE || ended == limit) &&
           (want.flow != PUBLISH || delivered + errors >= limit);
}

/* All calls up to this number, to their end or until nothing has come for --wait seconds. */
static void run_to(uint64_t limit) {
    progress_ns = now = clock_ns(CLOCK_MONOTONIC);
    while (!finished(limit) && now - progress_ns < want.wait_s * 1000000000u) {
        forget_calls();
        start_calls(limit);
        trace_memory();
        turn(started < limit && want.burst ? 0 : want.trace_ms ? (int)want.trace_ms : 100);
    }
    ended_ns = finished(limit) ? now : progress_ns;
    while (natsConnection_Buffered(lattice.nc) > 0) turn(100); /* the last answers */
}

static void run(void) {
    began_ns = clock_ns(CLOCK_MONOTONIC);
    run_to(want.warm);
    before = cost_so_far();
    rss[samples++] = process_status("VmRSS:");
    began_ns = now = clock_ns(CLOCK_MONOTONIC);
    run_to(want.warm + want.calls);
    after = cost_so_far();
}

/* ---- command line and report --------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b) {
    uint32_t x = ((const struct call *)a)->took_us, y = ((const struct call *)b)->took_us;
    return (x > y) - (x < y);
}

static double a_call(uint64_t from, uint64_t to, uint64_t count) {
    return count && to > from ? (double)(to - from) / (double)count : 0;
}

static void report_process(uint64_t count) {
    printf(", \"cpu_us_per_call\": %.3f, \"context_switches_per_call\": %.4f",
           a_call(before.cpu_ns, after.cpu_ns, count) / 1000, a_call(before.switches, after.switches, count));
    printf(", \"threads\": %lu, \"vmhwm_kb\": %lu, \"rss_kb\": [", process_status("Threads:"),
           process_status("VmHWM:"));
    for (size_t i = 0; i < samples; i++) printf("%s%lu", i ? ", " : "", rss[i]);
    printf("]");
    if (!want.trace_ms) return;
    printf(", \"trace_ms_kb\": [");
    for (size_t i = 0; i < traced; i++)
        printf("%s[%.1f, %lu]", i ? ", " : "", (double)trace[i].us / 1000, trace[i].kb);
    printf("]");
}

/* Calls that began and did not end: what there is to say about them. */
static void say_lost(uint64_t lost) {
    unsigned held = INVOCATIONS - idle_count;
    if (want.flow == HANDLE && lost)
        say("%lu messages were not handled; of these %u reached the component, and the rest of the "
            "call did not",
            lost, held);
    else if (lost) say("%lu calls were not answered", lost);
}

/* Returns how many calls were lost. */
static uint64_t report(void) {
    struct call *measured = calls + want.warm;
    for (uint64_t i = 0; i < want.calls; i++)
        if (!measured[i].done) measured[i].took_us = UINT32_MAX; /* behind the others */
    qsort(measured, want.calls, sizeof(*measured), by_time);
    uint64_t all = want.warm + want.calls, count = done > want.warm ? done - want.warm : 0;
    if (want.flow != HANDLE && ended < done) failed("%lu results have no end", done - ended);
    uint64_t unsent = want.flow == PUBLISH && done > delivered + errors ? done - delivered - errors : 0,
             lost = all - done + unsent;
    double seconds = (double)(ended_ns - began_ns) / 1e9;
    printf("{\"flow\": \"%s\", \"calls\": %lu, \"done\": %lu, \"errors\": %lu, \"lost\": %lu, "
           "\"seconds\": %.3f, \"calls_per_second\": %.0f",
           flow_names[want.flow], want.calls, count, errors, lost, seconds,
           seconds > 0 ? (double)count / seconds : 0);
    printf(", \"p50_us\": %u, \"p99_us\": %u, \"p999_us\": %u", count ? measured[count / 2].took_us : 0,
           count ? measured[count * 99 / 100].took_us : 0, count ? measured[count * 999 / 1000].took_us : 0);
    printf(", \"load_cpu_us_per_call\": %.3f", a_call(before.load_cpu_ns, after.load_cpu_ns, count) / 1000);
    if (want.pid) report_process(count);
    printf("}\n");
    say_lost(lost);
    return want.burst ? 0 : lost;
}

static void read_options(int argc, char **argv) {
    const struct option options[] = {
        {"--calls",     &want.calls,     NULL           },
        {"--warm",      &want.warm,      NULL           },
        {"--links",     &want.links,     NULL           },
        {"--subjects",  &want.subjects,  NULL           },
        {"--trace",     &want.trace_ms,  NULL           },
        {"--in-flight", &want.in_flight, NULL           },
        {"--body",      &want.body,      NULL           },
        {"--pid",       &want.pid,       NULL           },
        {"--wait",      &want.wait_s,    NULL           },
        {"--lattice",   NULL,            &want.lattice  },
        {"--link",      NULL,            &want.link     },
        {"--prefix",    NULL,            &want.prefix   },
        {"--key",       NULL,            &want.key      },
        {"--component", NULL,            &want.component},
        {"--subject",   NULL,            &want.subject  },
        {"--ca",        NULL,            &want.ca       },
    };
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--burst") == 0 && (want.burst = true)) continue;
        if (i + 1 == argc) die("%s: what it is, or its value, is missing" SEE, argv[i]);
        if (strcmp(argv[i], "--flow") == 0) want.flow = find_flow(flow_names, FLOWS, argv[i + 1]);
        else take_option(options, sizeof(options) / sizeof(options[0]), argv[i], argv[i + 1]);
        i++;
    }
    if (want.flow == FLOWS) die("--flow is publish, request or handle");
    if (!want.lattice || !want.prefix) die("--lattice and --prefix are needed" SEE);
    if (want.burst && want.flow != HANDLE) die("--burst is for --flow handle");
    if (want.subjects > 1 && (want.flow != HANDLE || want.links > 1))
        die("--subjects is for --flow handle, with one link");
    if (want.links < 1 || want.links > TARGETS_MAX || want.subjects < 1 || want.subjects > TARGETS_MAX)
        die("1 to %d links or subjects", TARGETS_MAX);
    if (!want.link) want.link = want.lattice;
}

int main(int argc, char **argv) {
    /* large messages would be mapped and unmapped one by one */
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 30);
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
    read_options(argc, argv);
    make_targets();
    connect_to(&lattice, want.lattice);
    connect_to(&outside, want.link);
    for (uint64_t i = 0; i < target_count && want.flow != HANDLE; i++) make_call(&targets[i]);
    listen_on(&lattice);
    listen_on(&outside);
    for (uint64_t since = now = clock_ns(CLOCK_MONOTONIC); !lattice.ready || !outside.ready; turn(100))
        if (now - since > want.wait_s * 1000000000u) die("the servers do not answer");
    run();
    return report() || errors ? 1 : 0;
}
