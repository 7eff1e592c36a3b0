/* load - plays a host, a component and the outside world against a running provider, as fast as it can.
 *
 *     build/load --flow publish|request|handle --calls N --in-flight K --body BYTES --lattice URL --link URL
 *                --prefix P --key KEY --component ID [--subject S] [--burst] [--pid PID] [--ca FILE] [--wait SECONDS]
 *
 * publish  the component publishes to S; somebody outside listens, and has to get every message
 * request  the component asks S; somebody outside echoes
 * handle   somebody outside publishes to S, which a handler link of the component must be subscribed to; the component
 *          answers "ok". With --burst all at once, and then what did not arrive is counted but is no failure
 *
 * Each call is the whole exchange of a 1.9 host. The first 8 bytes of each body are the call's number, so what is lost,
 * doubled or mixed up is noticed; a shorter body is only counted. One thread and one poll loop, so that the provider is
 * what is measured.
 *
 * Prints one JSON object; exit code 1 if a call failed or was lost, 2 on wrong usage or without a connection.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <nats/nats.h>

#include "deps/tls.h"

/* exported by nats.c, though not in its public header: sees each message on the reading thread, before any queue */
void natsConn_setFilterWithClosure(natsConnection *nc, void (*filter)(natsConnection *, natsMsg **, void *), void *closure);

#define WRPC "wrpc.0.0.1.wasmcloud:messaging/"

enum { SUBJECT_MAX = 512, INVOCATIONS = 8192, SAMPLE_EVERY = 10000, SAMPLES_MAX = 1024, UNWRITTEN_MAX = 4 << 20 };
enum flow { PUBLISH, REQUEST, HANDLE, FLOWS };
static const char *const flow_names[FLOWS] = {"publish", "request", "handle"};

static struct {
    enum flow flow;
    uint64_t calls, in_flight, body, pid, wait_s;
    const char *lattice, *link, *prefix, *key, *component, *subject, *ca;
    bool burst;
} want = {.flow = FLOWS, .calls = 10000, .in_flight = 64, .body = 128, .wait_s = 10,
          .key = "messaging-nats", .component = "echo", .subject = "load"};

struct conn {
    natsConnection *nc;
    const char *url;
    int fd;
    bool ready, blocked;  /* ready: the server has read our subscriptions. blocked: the socket takes no more */
    atomic_bool wants_write, closed;
    char inbox[64];       /* ends with a dot */
    size_t inbox_len, max_payload;
};
static struct conn lattice, outside;

struct call {
    uint32_t began_us, took_us;
    uint32_t results;     /* bytes of the result so far */
    bool done, wrong, delivered; /* delivered: the message has arrived on the other side */
};
static struct call *calls;

/* What the component is handling. */
struct invocation {
    char caller[SUBJECT_MAX];
    uint64_t number;
    size_t len, expected; /* bytes of its parameters: those that came, and how many there have to be */
    bool used;
};
static struct invocation invocations[INVOCATIONS];

static uint64_t started, done, delivered, errors, began_ns, ended_ns, progress_ns;
static uint64_t rss[SAMPLES_MAX], samples, cpu_before, cpu_after; /* kB; µs */
static uint8_t *params;            /* of a call: everything but its number */
static size_t params_len, body_at; /* where the body begins in them */
static char function_subject[SUBJECT_MAX];

#define say(...) (fputs("load: ", stderr), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))
#define die(...) (say(__VA_ARGS__), exit(2))
#define failed(...) ((void)(errors++ < 5 && say(__VA_ARGS__))) /* the first few are enough */
#define must(s, url) ((void)((s) != NATS_OK && (die("%s: %s", url, nats_GetLastError(NULL)), 0)))

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint32_t since_begin_us(void) { return (uint32_t)((now_ns() - began_ns) / 1000); }

/* ---- the provider's process -------------------------------------------------------------------------------------- */

/* All of /proc/PID/NAME, or "". */
static const char *process_file(const char *name) {
    static char text[4096];
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%lu/%s", want.pid, name);
    FILE *f = want.pid ? fopen(path, "r") : NULL;
    text[f ? fread(text, 1, sizeof(text) - 1, f) : 0] = 0;
    if (f) fclose(f);
    return text;
}

/* A number of /proc/PID/status, such as "VmRSS:" in kB. */
static uint64_t process_status(const char *field) {
    const char *at = strstr(process_file("status"), field);
    return at ? strtoull(at + strlen(field), NULL, 10) : 0;
}

/* User and system time so far, in µs; in ticks of 10 ms, so measure over a second or more. */
static uint64_t process_cpu(void) {
    uint64_t user = 0, system = 0;
    const char *rest = strrchr(process_file("stat"), ')');
    if (!rest || sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2) return 0;
    return (user + system) * 1000000u / (uint64_t)sysconf(_SC_CLK_TCK);
}

/* ---- values -------------------------------------------------------------------------------------------------------- */

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

static void skip_subject(const uint8_t *bytes, size_t len, size_t *at) {
    uint64_t subject = get_u32(bytes, len, at);
    *at = *at > len || subject > len - *at ? len + 1 : *at + subject;
}

/* The table of calls, and the parameters of each: (subject, body, no reply-to), or for request (subject, body, timeout). */
static void make_calls(void) {
    size_t subject = strlen(want.subject);
    params = malloc(subject + want.body + 64);
    calls = calloc(want.calls + 1, sizeof(*calls));
    if (!params || !calls) die("out of memory");
    params_len = put_u32(params, subject);
    memcpy(params + params_len, want.subject, subject);
    params_len += subject;
    params_len += put_u32(params + params_len, want.body);
    body_at = params_len;
    for (uint64_t i = 0; i < want.body; i++) params[params_len++] = (uint8_t)('a' + i % 26);
    if (want.flow == REQUEST) params_len += put_u32(params + params_len, want.wait_s * 1000);
    else params[params_len++] = 0;
}

static const uint8_t *params_of(uint64_t number) {
    return want.body < sizeof(number) ? params : memcpy(params + body_at, &number, sizeof(number)), params;
}

/* The number in a body of which at least the first bytes are there. A body without one has `otherwise`. */
static uint64_t number_in(const uint8_t *body, size_t have, uint64_t otherwise) {
    uint64_t number;
    if (want.body < sizeof(number) || have < sizeof(number)) return otherwise;
    memcpy(&number, body, sizeof(number));
    return number;
}

/* ---- sending -------------------------------------------------------------------------------------------------------- */

static void send_to(struct conn *c, const char *inbox, const char *suffix, const char *reply, const void *data, size_t len) {
    char subject[SUBJECT_MAX];
    (void)snprintf(subject, sizeof(subject), "%s%s", inbox, suffix);
    natsStatus s = reply ? natsConnection_PublishRequest(c->nc, subject, reply, data, (int)len)
                         : natsConnection_Publish(c->nc, subject, data, (int)len);
    if (s != NATS_OK) failed("publishing to %s: %s", subject, natsStatus_GetText(s));
}

/* How many bytes of the parameters go with the first message: what a 1.9 host reckons. */
static size_t first_piece(size_t reply_len) {
    size_t head = 12 + strlen("source-id") + strlen(want.component) + 4 + strlen("link-name") + strlen("default") + 4;
    size_t room = lattice.max_payload - head - reply_len;
    return params_len < room ? params_len : room;
}

/* The component calls the provider; the call's inbox is its number in hexadecimal. */
static void call_start(uint64_t number) {
    char inbox[SUBJECT_MAX];
    natsMsg *msg = NULL;
    int n = snprintf(inbox, sizeof(inbox), "%s%lx", lattice.inbox, number);
    natsStatus s = natsMsg_Create(&msg, function_subject, inbox, (const char *)params_of(number), (int)first_piece((size_t)n));
    if (s == NATS_OK) s = natsMsgHeader_Set(msg, "source-id", want.component);
    if (s == NATS_OK) s = natsMsgHeader_Set(msg, "link-name", "default");
    if (s == NATS_OK) s = natsConnection_PublishMsg(lattice.nc, msg);
    natsMsg_Destroy(msg);
    must(s, lattice.url);
}

/* Starts as many calls as may be out, while the kernel takes what was written before. */
static void start_calls(void) {
    struct conn *c = want.flow == HANDLE ? &outside : &lattice;
    while (started < want.calls && (want.burst || started - done < want.in_flight) &&
           natsConnection_Buffered(c->nc) < UNWRITTEN_MAX) {
        calls[started].began_us = since_begin_us();
        if (want.flow == HANDLE) send_to(c, want.subject, "", NULL, params_of(started) + body_at, want.body);
        else call_start(started);
        started++;
    }
}

static void call_done(uint64_t number) {
    if (number >= started || calls[number].done) return failed("call %lu ended twice, or never began", number);
    calls[number].done = true;
    calls[number].took_us = since_begin_us() - calls[number].began_us;
    done++;
    if (done % SAMPLE_EVERY == 0 && samples < SAMPLES_MAX) rss[samples++] = process_status("VmRSS:");
}

static void message_delivered(uint64_t number) {
    if (number >= started || calls[number].delivered) failed("message %lu came twice, or was never sent", number);
    else delivered += calls[number].delivered = true;
}

/* ---- what arrives ---------------------------------------------------------------------------------------------------- */

/* The provider is ready for the rest of the parameters. */
static void on_handshake(uint64_t number, const char *own_inbox, natsMsg *msg) {
    const char *rest = natsMsg_GetReply(msg);
    if (!rest) {
        call_done(number);
        return failed("call %lu: %s", number,
                      natsMsg_IsNoResponders(msg) ? "no provider serves it" : "a handshake without a reply subject");
    }
    size_t at = first_piece(strlen(own_inbox)), size = lattice.max_payload;
    for (const uint8_t *all = params_of(number); at < params_len; at += size)
        send_to(&lattice, rest, ".params", NULL, all + at, params_len - at < size ? params_len - at : size);
    send_to(&lattice, rest, ".params", NULL, NULL, 0);
}

/* Whether the beginning of a result is that of success, and of the length that it ought to have. */
static bool result_is_right(uint64_t number, const uint8_t *bytes, size_t len) {
    size_t at = 1;
    if (bytes[0] != 0 || want.flow == PUBLISH) return bytes[0] == 0 && len == 1;
    skip_subject(bytes, len, &at);
    if (get_u32(bytes, len, &at) != want.body || at > len) return false;
    return number_in(bytes + at, len - at, number) == number;
}

static void on_results(uint64_t number, natsMsg *msg) {
    struct call *c = &calls[number];
    const uint8_t *bytes = (const uint8_t *)natsMsg_GetData(msg);
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    if (len > 0) {
        if (c->results == 0 && (c->wrong = !result_is_right(number, bytes, len)))
            failed("call %lu: wrong result of %zu bytes: %.*s", number, len, (int)(len < 80 ? len : 80), (const char *)bytes);
        c->results += (uint32_t)len;
        return;
    }
    if (c->results == 0) failed("call %lu failed: no result", number);
    else if (want.flow == REQUEST && c->results <= want.body && !c->wrong) failed("call %lu: the result is cut", number);
    call_done(number);
}

/* The provider calls the component: shakes hands, and looks at what there is of the parameters. */
static void on_invocation(natsMsg *msg) {
    static size_t next, invoked;
    const uint8_t *bytes = (const uint8_t *)natsMsg_GetData(msg);
    size_t at = 0, len = (size_t)natsMsg_GetDataLength(msg), tried = 0;
    while (invocations[next].used && tried++ < INVOCATIONS) next = (next + 1) % INVOCATIONS;
    struct invocation *i = &invocations[next];
    if (i->used) return failed("more than %d messages with the component at once", INVOCATIONS);
    skip_subject(bytes, len, &at);
    uint64_t body = get_u32(bytes, len, &at);
    if (at > len || body != want.body) return failed("a message of %lu bytes instead of %lu", body, want.body);
    *i = (struct invocation){.len = len, .expected = at + body + 1, .used = true};
    i->number = number_in(bytes + at, len - at, invoked++);
    (void)snprintf(i->caller, sizeof(i->caller), "%s", natsMsg_GetReply(msg));
    char inbox[SUBJECT_MAX];
    (void)snprintf(inbox, sizeof(inbox), "%si%zx", lattice.inbox, next);
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
    call_done(i->number);
}

static void on_lattice(natsMsg *msg) {
    const char *subject = natsMsg_GetSubject(msg);
    if (strncmp(subject, lattice.inbox, lattice.inbox_len) != 0) return on_invocation(msg);
    const char *token = subject + lattice.inbox_len;
    char own[SUBJECT_MAX], *suffix;
    struct invocation *i;
    if (strcmp(token, "echo") == 0) return (void)(lattice.ready = true);
    uint64_t number = strtoull(token + (*token == 'i'), &suffix, 16);
    if (*token == 'i' && (i = &invocations[number % INVOCATIONS])->used) return on_params(i, msg);
    if (*token == 'i' || number >= started || calls[number].done) return failed("a message for what is over: %s", subject);
    (void)snprintf(own, sizeof(own), "%.*s", (int)(suffix - subject), subject);
    if (!*suffix) on_handshake(number, own, msg);
    else if (strcmp(suffix, ".results") == 0) on_results(number, msg);
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
    progress_ns = now_ns();
    if (user == &lattice) on_lattice(*msg);
    else on_outside(*msg);
    natsMsg_Destroy(*msg);
    *msg = NULL;
}

/* ---- connections and the loop ------------------------------------------------------------------------------------------ */

static natsStatus on_attach(void **user, void *c, natsConnection *nc, natsSock fd) {
    (void)nc;
    *user = c;
    return ((struct conn *)c)->fd = fd, NATS_OK;
}
static natsStatus on_read_wanted(void *user, bool add) {
    if (!add) atomic_store(&((struct conn *)user)->closed, true);
    return NATS_OK;
}
static natsStatus on_write_wanted(void *user, bool add) {
    return atomic_store(&((struct conn *)user)->wants_write, add), NATS_OK;
}
static natsStatus on_detach(void *user) { return (void)user, NATS_OK; }

static void connect_to(struct conn *c, const char *url) {
    natsOptions *opts;
    natsInbox *inbox;
    c->url = url;
    must(natsOptions_Create(&opts), url);
    must(natsOptions_SetURL(opts, url), url);
    must(natsOptions_SetEventLoop(opts, c, on_attach, on_read_wanted, on_write_wanted, on_detach), url);
    must(natsOptions_SetAllowReconnect(opts, false), url);
    must(natsOptions_SetSendAsap(opts, true), url);
    must(natsOptions_SetIOBufSize(opts, 256 * 1024), url);
    if (strncmp(url, "tls://", 6) == 0) must(natsOptions_SetSecure(opts, true), url);
    if (want.ca) must(natsOptions_LoadCATrustedCertificates(opts, want.ca), url);
    must(natsConnection_Connect(&c->nc, opts), url);
    natsOptions_Destroy(opts);
    natsConn_setFilterWithClosure(c->nc, on_message, c);
    must(natsInbox_Create(&inbox), url);
    c->inbox_len = (size_t)snprintf(c->inbox, sizeof(c->inbox), "%s.", inbox);
    natsInbox_Destroy(inbox);
    c->max_payload = (size_t)natsConnection_GetMaxPayload(c->nc);
}

/* Subscribes, to its own inbox as well, and sends itself a message: when it is back, the server knows all of it. */
static void listen_on(struct conn *c, const char *subject, const char *queue) {
    natsSubscription *sub; /* for as long as the program runs */
    char own[80];
    (void)snprintf(own, sizeof(own), "%s>", c->inbox);
    must(natsConnection_SubscribeSync(&sub, c->nc, own), c->url);
    if (subject) must(natsConnection_QueueSubscribeSync(&sub, c->nc, subject, queue), c->url);
    send_to(c, c->inbox, "echo", NULL, NULL, 0);
}

/* Writes what waits. Asks the flag first: with nothing to write nats.c would take the connection for closed. */
static void conn_write(struct conn *c) {
    if (c->blocked || !atomic_load(&c->wants_write)) return;
    natsConnection_ProcessWriteEvent(c->nc);
    c->blocked = atomic_load(&c->wants_write);
}

/* Writes, waits, reads; what was read may have put something into the buffers, which the next turn writes. */
static void turn(int timeout_ms) {
    struct conn *both[] = {&lattice, &outside};
    struct pollfd fds[2];
    for (int i = 0; i < 2; i++) {
        conn_write(both[i]);
        fds[i] = (struct pollfd){.fd = both[i]->fd, .events = POLLIN};
        if (both[i]->blocked) fds[i].events |= POLLOUT;
        if (tls_has_input(both[i]->fd)) timeout_ms = 0;
    }
    if (poll(fds, 2, timeout_ms) < 0 && errno != EINTR) die("poll: %s", strerror(errno));
    for (int i = 0; i < 2; i++) {
        if (fds[i].revents & POLLOUT) both[i]->blocked = false;
        if (fds[i].revents & ~POLLOUT || tls_has_input(both[i]->fd)) natsConnection_ProcessReadEvent(both[i]->nc);
        if (atomic_load(&both[i]->closed)) die("%s: the connection was lost", both[i]->url);
    }
}

static bool finished(void) { return done == want.calls && (want.flow != PUBLISH || delivered + errors >= want.calls); }

/* All calls, to their end or until nothing has come for --wait seconds. */
static void run(void) {
    progress_ns = began_ns = now_ns();
    cpu_before = process_cpu();
    rss[samples++] = process_status("VmRSS:");
    while (!finished() && now_ns() - progress_ns < want.wait_s * 1000000000u) {
        start_calls();
        turn(started < want.calls && want.burst ? 0 : 100);
    }
    ended_ns = finished() ? now_ns() : progress_ns;
    while (natsConnection_Buffered(lattice.nc) > 0) turn(100); /* the last answers */
    cpu_after = process_cpu();
}

/* ---- command line and report -------------------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b) {
    uint32_t x = ((const struct call *)a)->took_us, y = ((const struct call *)b)->took_us;
    return (x > y) - (x < y);
}

static uint64_t report(void) {
    for (uint64_t i = 0; i < want.calls; i++)
        if (!calls[i].done) calls[i].took_us = UINT32_MAX; /* behind the others */
    qsort(calls, want.calls, sizeof(*calls), by_time);
    uint64_t unsent = want.flow == PUBLISH && done > delivered + errors ? done - delivered - errors : 0, lost = want.calls - done + unsent;
    double seconds = (double)(ended_ns - began_ns) / 1e9;
    printf("{\"flow\": \"%s\", \"calls\": %lu, \"done\": %lu, \"errors\": %lu, \"lost\": %lu, \"seconds\": %.3f, "
           "\"calls_per_second\": %.0f", flow_names[want.flow], want.calls, done, errors,
           lost, seconds, seconds > 0 ? (double)done / seconds : 0);
    printf(", \"p50_us\": %u, \"p99_us\": %u", done ? calls[done / 2].took_us : 0, done ? calls[done * 99 / 100].took_us : 0);
    if (want.pid) {
        printf(", \"cpu_us_per_call\": %.2f", done ? (double)(cpu_after - cpu_before) / (double)done : 0);
        printf(", \"threads\": %lu, \"vmhwm_kb\": %lu, \"rss_kb\": [", process_status("Threads:"), process_status("VmHWM:"));
        for (size_t i = 0; i < samples; i++) printf("%s%lu", i ? ", " : "", rss[i]);
        printf("]");
    }
    printf("}\n");
    return want.burst ? 0 : lost;
}

static void take_flow(const char *value) {
    for (want.flow = 0; want.flow < FLOWS && strcmp(value, flow_names[want.flow]) != 0;) want.flow++;
}

/* An option with a value: a number or a text. */
static void take_option(const char *name, const char *value) {
    static const struct { const char *name; uint64_t *number; const char **text; } options[] = {
        {"--calls", &want.calls, NULL}, {"--in-flight", &want.in_flight, NULL}, {"--body", &want.body, NULL},
        {"--pid", &want.pid, NULL}, {"--wait", &want.wait_s, NULL}, {"--lattice", NULL, &want.lattice},
        {"--link", NULL, &want.link}, {"--prefix", NULL, &want.prefix}, {"--key", NULL, &want.key},
        {"--component", NULL, &want.component}, {"--subject", NULL, &want.subject}, {"--ca", NULL, &want.ca},
    };
    for (size_t o = 0; o < sizeof(options) / sizeof(options[0]); o++) {
        if (strcmp(name, options[o].name) != 0) continue;
        if (options[o].text) *options[o].text = value;
        else if (sscanf(value, "%lu", options[o].number) != 1) die("%s wants a number", name);
        return;
    }
    die("there is no option %s; see devel/load.c", name);
}

static void read_options(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--burst") == 0 && (want.burst = true)) continue;
        if (i + 1 == argc) die("%s: what it is, or its value, is missing; see devel/load.c", argv[i]);
        if (strcmp(argv[i], "--flow") == 0) take_flow(argv[i + 1]);
        else take_option(argv[i], argv[i + 1]);
        i++;
    }
    if (want.flow == FLOWS) die("--flow is publish, request or handle");
    if (!want.lattice || !want.prefix) die("--lattice and --prefix are needed; see devel/load.c");
    if (want.burst && want.flow != HANDLE) die("--burst is for --flow handle");
    if (!want.link) want.link = want.lattice;
}

int main(int argc, char **argv) {
    char group[SUBJECT_MAX];
    read_options(argc, argv);
    (void)snprintf(function_subject, sizeof(function_subject), "%s.%s." WRPC "%s@0.2.0.%s", want.prefix,
                   want.flow == HANDLE ? want.component : want.key, want.flow == HANDLE ? "handler" : "consumer",
                   want.flow == HANDLE ? "handle-message" : flow_names[want.flow]);
    (void)snprintf(group, sizeof(group), "%s.%s", want.prefix, want.component);
    make_calls();
    connect_to(&lattice, want.lattice);
    connect_to(&outside, want.link);
    listen_on(&lattice, want.flow == HANDLE ? function_subject : NULL, group);
    listen_on(&outside, want.flow == HANDLE ? NULL : want.subject, "load");
    for (uint64_t since = now_ns(); !lattice.ready || !outside.ready; turn(100))
        if (now_ns() - since > want.wait_s * 1000000000u) die("the servers do not answer");
    run();
    return report() || errors ? 1 : 0;
}
