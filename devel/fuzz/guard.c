/* The target "guard" of fuzz.c: deps/parser_guard.c, before a model of nats.c's parser. No message may get to that; the model reads
 * other lines as nats.c does (parser.c of 3.10.1), with its ways at the end of a read and with carriage returns, but instead of
 * memory it has MUST(): it knows what would have harmed nats.c. Messages have to come as they were sent, however they are cut.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD_SMALL 6000 /* small, so that an input has room for many messages */
#define __real_natsSock_Read read_stream
#include "../../deps/parser_guard.c"
#undef __real_natsSock_Read
natsStatus __real_natsSock_Read(void *ctx, char *out, size_t room, int *n);

#define MUST(condition) ((condition) ? (void)0 : (fprintf(stderr, "devel/fuzz/guard.c:%d: not true: %s\n", __LINE__, #condition), abort()))

void fuzz_guard(const uint8_t *data, size_t len);

enum { TAKEN = 9000, STREAM_MAX = 40000 }; /* bytes of the largest message that may come; of a server's input */

/* ---- what gets out of it ------------------------------------------------------------------------------------------------------- */

/* Messages that came, and that were passed over, with a hash of all that is in them. */
struct account {
    unsigned taken, skipped;
    uint64_t hash;
};
static struct account account;

static void note(struct account *to, struct span s) {
    to->hash = (to->hash ^ hash_of(s) ^ s.len) * 1099511628211u;
}

static bool takes(void *user, size_t bytes) { return (void)user, bytes <= TAKEN; }

static void skipped(void *user, const char *subject, const char *reply, size_t bytes, const char *why) {
    (void)user;
    MUST(strlen(subject) < LINE_MAX_BYTES && (why || (*subject && (!reply || *reply) && bytes > TAKEN)));
    account.skipped++;
    note(&account, span_of(subject));
    note(&account, span_of(reply));
}

static void arrived(void *user, natsMsg *msg) {
    struct span body = {natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg)}, head = headers_of(msg);
    (void)user;
    MUST(*natsMsg_GetSubject(msg) && (!natsMsg_GetReply(msg) || *natsMsg_GetReply(msg)));
    MUST(body.len + head.len <= TAKEN && body.at[body.len] == 0 && head.at[head.len] == 0);
    account.taken++;
    note(&account, span_of(natsMsg_GetSubject(msg)));
    note(&account, span_of(natsMsg_GetReply(msg)));
    note(&account, head);
    note(&account, body);
    natsMsg_free(msg);
}

/* ---- the model ----------------------------------------------------------------------------------------------------------------- */

static struct model {
    enum { AT_VERB, AT_GAP, AT_SPACE, AT_ARGS, AT_REST } at;
    char verb[8];
    size_t verb_len, line;
    bool dead; /* nats.c gave up */
} model;

static bool verb_goes_on(struct model *m, char c) {
    static const char *const verbs[] = {"-err", "info", "ping", "pong", "+ok"};
    m->verb[m->verb_len++] = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
    MUST(*m->verb != 'm' && *m->verb != 'h');
    for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++) {
        if (strncmp(verbs[i], m->verb, m->verb_len) != 0) continue;
        if (!verbs[i][m->verb_len]) m->at = i < 2 ? AT_GAP : AT_REST;
        return true;
    }
    return false;
}

/* What stands before the arguments: the first byte behind the space belongs to them, whatever it is. */
static bool space_goes_on(struct model *m, char c) {
    bool space = c == ' ' || c == '\t', gap = m->at == AT_GAP;
    m->at = space ? AT_SPACE : AT_ARGS;
    return space || !gap;
}

/* A byte for the model. False: nats.c gives up. */
static bool model_byte(struct model *m, char c) {
    if (m->at == AT_VERB && m->line == 0) m->verb_len = 0;
    m->line++;
    MUST(m->line <= (*m->verb == 'i' ? GUARD_SMALL : LINE_MAX_BYTES) || m->at == AT_VERB);
    bool ok = m->at == AT_VERB ? verb_goes_on(m, c) : m->at < AT_ARGS ? space_goes_on(m, c) : true;
    if (c == '\n' && m->at >= AT_ARGS) m->at = AT_VERB, m->line = 0;
    return ok;
}

natsStatus __real_natsParser_Parse(natsConnection *nc, char *bytes, int len) {
    struct model *m = (struct model *)(void *)nc;
    MUST(!m->dead);
    for (int i = 0; i < len && !m->dead; i++) m->dead = !model_byte(m, bytes[i]);
    return m->dead ? NATS_PROTOCOL_ERROR : NATS_OK;
}

/* ---- a server's input ---------------------------------------------------------------------------------------------------------- */

static char stream[STREAM_MAX];
static size_t stream_len;

static void put(const char *bytes, size_t len) {
    len = len < STREAM_MAX - stream_len ? len : STREAM_MAX - stream_len;
    memcpy(stream + stream_len, bytes, len);
    stream_len += len;
}

/* What must not be read as the protocol, if it is a payload. */
static void put_filler(size_t len) {
    static const char filler[] = "\r\nMSG a 1 2147483600\r\n";
    for (size_t n; len > 0 && stream_len < STREAM_MAX; len -= n) put(filler, n = len < sizeof(filler) - 1 ? len : sizeof(filler) - 1);
}

/* A message, its line so long and its payload so large, and what has to become of it. Returns whether it may come. */
static bool put_message(bool headers, size_t line, size_t size, struct account *wanted) {
    static char subject[2 * LINE_MAX_BYTES];
    char text[64];
    int end = snprintf(text, sizeof(text), headers ? " 12 r.s 12 %zu\r\n" : " 1 %zu\r\n", size), begin = headers ? 5 : 4;
    size_t len = line > (size_t)(begin + end) ? line - (size_t)(begin + end) : 1;
    put(headers ? "HMSG " : "MSG ", (size_t)begin);
    put(memset(subject, 's', len), len);
    put(text, (size_t)end);
    struct span payload = {stream + stream_len, size}, name = {subject, len};
    put_filler(size);
    put("\r\n", 2);
    note(wanted, name);
    note(wanted, headers ? SPAN("r.s") : (struct span){0});
    if (size > TAKEN) {
        wanted->skipped++;
    } else {
        size_t head = headers ? 12 : 0;
        note(wanted, (struct span){payload.at, head});
        note(wanted, (struct span){payload.at + head, size - head});
        wanted->taken++;
    }
    return (size_t)(begin + end) + len <= LINE_MAX_BYTES;
}

/* One more thing that a server says; three bytes choose. Returns whether it may. */
static bool put_valid(const uint8_t *choice, struct account *wanted) {
    static const char *const lines[] = {"PING\r\n", "pong\r\n", "+OK\r\n", "-ERR 'Permissions Violation for Publish to \"a b\"'\r\n",
                                        "INFO {\"server_id\":\"1\",\"max_payload\":1048576}\r\n"};
    unsigned kind = choice[0] % 8, n = choice[1] | (unsigned)choice[2] << 8;
    if (kind < 5) return put(lines[kind], strlen(lines[kind])), true;
    if (kind == 5) return put_message(choice[0] & 8, n % (LINE_MAX_BYTES + 64), choice[0] / 16 + 12, wanted);
    return put_message(kind == 6, 0, n % (TAKEN + 64) + 12, wanted);
}

/* Bytes as they are, but those over 127 stand for filler: so that a short input can bring a large payload. */
static void put_raw(const uint8_t *data, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (data[i] > 127) put_filler((data[i] & 127u) * 100u);
        else put((const char *)data + i, 1);
    }
}

/* ---- the target ---------------------------------------------------------------------------------------------------------------- */

/* Where it is read, and how: cut as these bytes say; or NULL, and into a buffer that holds all of it. */
static struct {
    const uint8_t *cuts;
    size_t at, pieces;
} reading;

static size_t next_piece(void) {
    uint8_t cut = reading.cuts ? reading.cuts[reading.pieces++ % 4] : 255;
    return cut < 128 ? cut + 1u : reading.cuts ? (cut - 127u) * 111u : stream_len;
}

/* nats.c's reading of a socket. Without one (another target has it) it is of the stream. */
natsStatus read_stream(void *ctx, char *out, size_t room, int *n) {
    if (ctx) return __real_natsSock_Read(ctx, out, room, n);
    size_t len = next_piece();
    len = MIN(MIN(len, room), stream_len - reading.at);
    memcpy(out, stream + reading.at, len);
    reading.at += len;
    *n = (int)len;
    return NATS_OK;
}

/* The guard with the parser behind it, and the end of the connection; nats.c reads on until something is wrong. Its buffer is the smallest
 * that provider.h allows, so that large bodies go past it. */
static struct guard let_it_pass(const uint8_t cuts[4], bool whole) {
    static char buffer[STREAM_MAX];
    struct guard g = {.message = arrived, .takes = takes, .skipped = skipped};
    natsConnection *nc = (natsConnection *)(void *)&model;
    natsStatus s = NATS_OK;
    model = (struct model){0};
    account = (struct account){0};
    reading.cuts = whole ? NULL : cuts;
    reading.at = reading.pieces = 0;
    guard_watch(&g);
    while (reading.at < stream_len && s == NATS_OK) {
        int len = 0;
        bool straight = g.msg && g.head == 0 && g.body >= LINE_MAX_BYTES;
        size_t before = g.held, at = reading.at, left = g.body;
        MUST(__wrap_natsSock_Read(NULL, buffer, whole ? sizeof(buffer) : LINE_MAX_BYTES, &len) == NATS_OK);
        MUST(whole || !straight || (size_t)len == before + (reading.at - at) - (left - g.body));
        MUST(whole || !straight || left > g.body);
        char *exact = malloc((size_t)len);
        memcpy(exact, buffer, (size_t)len);
        s = __wrap_natsParser_Parse(nc, exact, len);
        MUST(g.held < LINE_MAX_BYTES && g.held <= (size_t)len);
        memcpy(buffer, exact, g.held);
        free(exact);
        MUST((s == NATS_OK) == (!g.wrong && !model.dead));
        MUST(s != NATS_OK || (g.line == 0) == (model.at == AT_VERB && model.line == 0));
        MUST(g.in_message || (!g.msg && g.head + g.body == 0));
    }
    guard_watch(NULL);
    struct guard end = g;
    end.msg = NULL;
    guard_end(&g);
    return end;
}

/* The first byte: raw, or made of valid lines; four more: where it is cut; then the bytes, or what chooses the lines. */
void fuzz_guard(const uint8_t *data, size_t len) {
    struct account wanted = {0}, accounts[2];
    bool may = true, dead = false, made = len > 0 && !(*data & 1);
    if (len < 5) return;
    const uint8_t *cuts = data + 1, *rest = data + 5;
    stream_len = 0;
    if (!made) put_raw(rest, len - 5);
    for (size_t i = 5; made && i + 2 < len && stream_len < STREAM_MAX / 2; i += 3) may &= put_valid(data + i, &wanted);
    struct guard end[2];
    for (int whole = 0; whole < 2; whole++) {
        end[whole] = let_it_pass(cuts, whole);
        accounts[whole] = account;
        if (made) MUST(!model.dead && !end[whole].wrong == may);
        if (made && may) MUST(memcmp(&account, &wanted, sizeof(account)) == 0 && model.at == AT_VERB && model.line == 0);
        dead |= model.dead;
    }
    if (dead) return; /* nats.c may see more of a line that is wrong if that comes in pieces */
    MUST(end[0].wrong == end[1].wrong && memcmp(&accounts[0], &accounts[1], sizeof(account)) == 0);
    if (end[1].wrong) return;
    MUST(end[0].in_message == end[1].in_message && end[0].head == end[1].head && end[0].body == end[1].body);
    MUST(end[0].line == end[1].line && end[0].held == end[1].held && end[0].words == end[1].words);
    MUST(end[0].first == end[1].first && end[0].last == end[1].last);
}
