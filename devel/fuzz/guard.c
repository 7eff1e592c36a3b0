/* The target "guard" of fuzz.c: deps/guard.c, before a model of the parser that it guards. The model reads as nats.c does
 * (parser.c of 3.10.1), with its ways at the end of a read, with carriage returns, and behind a payload; but its numbers do
 * not overflow, and instead of memory it has MUST(): it knows what would have harmed nats.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD_SMALL 6000 /* small, so that an input has room for many messages */
#include "../../deps/guard.c"

#define MUST(condition) ((condition) ? (void)0 : (fprintf(stderr, "devel/fuzz/guard.c:%d: not true: %s\n", __LINE__, #condition), abort()))

void fuzz_guard(const uint8_t *data, size_t len);

enum { TAKEN = 9000, STREAM_MAX = 40000 }; /* bytes of the largest message that may come; of a server's input */

/* ---- the model ----------------------------------------------------------------------------------------------------------------- */

static struct model {
    enum { AT_VERB, AT_GAP, AT_SPACE, AT_ARGS, AT_REST, AT_PAYLOAD, AT_TAIL } at;
    char verb[8], args[LINE_MAX_BYTES + 1];
    size_t verb_len, args_len, line;
    int64_t size, have;  /* bytes of the payload, and those that came */
    bool split, drop;    /* the arguments were copied at the end of a read; a '\r' was among them */
    bool block, dead;    /* the message came in two reads: nats.c has a block for it; nats.c gave up */
    unsigned messages;
} model;

static bool takes(void *user, size_t bytes) { return (void)user, bytes <= TAKEN; }

/* nats_ParseInt64() */
static int64_t number_in(const char *word) {
    int64_t n = *word ? 0 : -1;
    for (int64_t before = 0; *word; word++, before = n) {
        if (*word < '0' || *word > '9') return -1;
        n = (int64_t)((uint64_t)n * 10 + (uint64_t)(*word - '0'));
        if (n < before) return -1;
    }
    return n;
}

/* _processMsgArgs(). False: it refuses them. */
static bool message_begins(struct model *m) {
    char *word[6] = {0}, *rest = m->args, *token;
    size_t count = 0, least = *m->verb == 'h' ? 4 : 3;
    m->args[m->args_len] = 0;
    for (size_t i = 0; i < m->args_len; i++) if (!m->args[i]) m->args[i] = '?';
    while ((token = strsep(&rest, " \t\r\n"))) if (*token && count < 6) word[count++] = token;
    if (count != least && count != least + 1) return false;
    int64_t size = (int32_t)number_in(word[count - 1]), head = *m->verb == 'h' ? (int32_t)number_in(word[count - 2]) : 0;
    if (number_in(word[1]) < 0 || size < 0 || head < 0 || head > size) return false;
    MUST(size <= TAKEN);
    m->at = AT_PAYLOAD;
    m->size = size;
    m->have = 0;
    return true;
}

static bool verb_goes_on(struct model *m, char c) {
    static const char *const verbs[] = {"msg", "hmsg", "-err", "info", "ping", "pong", "+ok"};
    m->verb[m->verb_len++] = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
    for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++) {
        if (strncmp(verbs[i], m->verb, m->verb_len) != 0) continue;
        if (!verbs[i][m->verb_len]) m->at = i < 4 ? AT_GAP : AT_REST;
        return true;
    }
    return false;
}

static bool args_go_on(struct model *m, char c) {
    if (c == '\r') m->drop = true;
    if (c != '\n') {
        if ((c != '\r' || !m->split) && m->args_len < LINE_MAX_BYTES) m->args[m->args_len++] = c; /* INFO may be longer: it is not read here */
        return true;
    }
    if (!m->split && m->drop) m->args_len--;
    m->at = AT_VERB;
    return (*m->verb != 'm' && *m->verb != 'h') || message_begins(m);
}

static bool payload_goes_on(struct model *m) {
    if (m->have++ < m->size) return true;
    m->messages++;
    m->block = false;
    m->at = AT_TAIL;
    return true;
}

/* What stands before the arguments: the first byte behind the space belongs to them, whatever it is. */
static bool space_goes_on(struct model *m, char c) {
    bool space = c == ' ' || c == '\t', gap = m->at == AT_GAP;
    m->at = space ? AT_SPACE : AT_ARGS;
    m->args[0] = c;
    m->args_len = 1;
    m->split = m->drop = false;
    return space || !gap;
}

/* A byte for the model. False: nats.c gives up. */
static bool model_byte(struct model *m, char c) {
    if (m->at == AT_PAYLOAD) return payload_goes_on(m);
    if (m->at == AT_VERB && m->line == 0) m->verb_len = 0;
    m->line++;
    bool ok = m->at == AT_VERB ? verb_goes_on(m, c) : m->at == AT_ARGS ? args_go_on(m, c) : m->at < AT_ARGS ? space_goes_on(m, c) : true;
    MUST(m->line <= (*m->verb == 'i' ? GUARD_SMALL : LINE_MAX_BYTES) || m->at == AT_TAIL);
    if (c == '\n' && m->at >= AT_REST && m->at != AT_PAYLOAD) m->at = AT_VERB;
    if (c == '\n' && m->at != AT_ARGS) m->line = 0;
    return ok;
}

natsStatus __real_natsParser_Parse(natsConnection *nc, char *bytes, int len) {
    struct model *m = (struct model *)(void *)nc;
    MUST(!m->dead);
    for (int i = 0; i < len && !m->dead; i++) m->dead = !model_byte(m, bytes[i]);
    if (m->dead) return m->block = false, NATS_PROTOCOL_ERROR;
    if (m->at == AT_ARGS && !m->split) m->split = true, m->args_len -= m->drop;
    m->block |= m->at == AT_PAYLOAD;
    return NATS_OK;
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

/* A message, its line so long and its payload so large. Returns whether it may come. */
static bool put_message(bool headers, size_t line, size_t size) {
    static char text[2 * LINE_MAX_BYTES];
    int end = snprintf(text, 64, headers ? " 12 r.s 12 %zu\r\n" : " 1 %zu\r\n", size), begin = headers ? 5 : 4;
    size_t subject = line > (size_t)(begin + end) ? line - (size_t)(begin + end) : 1;
    put(headers ? "HMSG " : "MSG ", (size_t)begin);
    put(memset(text + 64, 's', subject), subject);
    put(text, (size_t)end);
    put_filler(size);
    put("\r\n", 2);
    return (size_t)(begin + end) + subject <= LINE_MAX_BYTES && size <= TAKEN;
}

/* One more thing that a server says; three bytes choose. Returns whether it may. */
static bool put_valid(const uint8_t *choice, unsigned *messages) {
    static const char *const lines[] = {"PING\r\n", "pong\r\n", "+OK\r\n", "-ERR 'Permissions Violation for Publish to \"a b\"'\r\n",
                                        "INFO {\"server_id\":\"1\",\"max_payload\":1048576}\r\n"};
    unsigned kind = choice[0] % 8, n = choice[1] | (unsigned)choice[2] << 8;
    if (kind < 5) return put(lines[kind], strlen(lines[kind])), true;
    ++*messages;
    if (kind == 5) return put_message(choice[0] & 8, n % (LINE_MAX_BYTES + 64), choice[0] / 16 + 12);
    return put_message(kind == 6, 0, n % (TAKEN + 64) + 12);
}

/* Bytes as they are, but those over 127 stand for filler: so that a short input can bring a large payload. */
static void put_raw(const uint8_t *data, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (data[i] > 127) put_filler((data[i] & 127u) * 100u);
        else put((const char *)data + i, 1);
    }
}

/* ---- the target ---------------------------------------------------------------------------------------------------------------- */

static size_t next_piece(const uint8_t cuts[4], size_t n, size_t at) {
    size_t len = cuts[n % 4] < 128 ? cuts[n % 4] + 1u : (cuts[n % 4] - 127u) * 111u;
    return len < stream_len - at ? len : stream_len - at;
}

/* The guard alone: in pieces it comes to the same as in one. */
static const char *look_at_it(const uint8_t cuts[4]) {
    struct guard whole = {.takes = takes}, cut = whole;
    look_over(&whole, stream, stream_len);
    for (size_t at = 0, n = 0, len; at < stream_len && !cut.wrong; at += len) {
        len = next_piece(cuts, n++, at);
        char *exact = memcpy(malloc(len), stream + at, len);
        look_over(&cut, exact, len);
        free(exact);
    }
    MUST(memcmp(&whole, &cut, sizeof(whole)) == 0);
    return whole.wrong;
}

/* With the parser behind it, and the end of the connection; nats.c reads on until something is wrong. */
static void let_it_pass(const uint8_t cuts[4], bool whole) {
    struct guard g = {.takes = takes};
    natsConnection *nc = (natsConnection *)(void *)&model;
    natsStatus s = NATS_OK;
    model = (struct model){0};
    guard_watch(&g);
    for (size_t at = 0, n = 0, len; at < stream_len && s == NATS_OK; at += len) {
        len = whole ? stream_len : next_piece(cuts, n++, at);
        s = __wrap_natsParser_Parse(nc, stream + at, (int)len);
        MUST((s == NATS_OK) == (!g.wrong && !model.dead));
        MUST(s != NATS_OK || (g.payload == (size_t)(model.at == AT_PAYLOAD ? model.size - model.have : 0)));
        MUST(s != NATS_OK || (g.line == 0) == (model.at == AT_VERB && model.line == 0) || model.at == AT_PAYLOAD);
    }
    guard_watch(NULL);
    guard_end(&g, nc);
    MUST(!model.block && g.payload == 0);
}

/* The first byte: raw, or made of valid lines; four more: where it is cut; then the bytes, or what chooses the lines. */
void fuzz_guard(const uint8_t *data, size_t len) {
    unsigned messages = 0;
    bool may = true;
    if (len < 5) return;
    const uint8_t *cuts = data + 1, *rest = data + 5;
    stream_len = 0;
    if (*data & 1) put_raw(rest, len - 5);
    for (size_t i = 5; !(*data & 1) && i + 2 < len && stream_len < STREAM_MAX / 2; i += 3) may &= put_valid(data + i, &messages);
    const char *wrong = look_at_it(cuts);
    if (!(*data & 1)) MUST(!wrong == may);
    for (int whole = 0; whole < 2; whole++) {
        let_it_pass(cuts, whole);
        if (!(*data & 1)) MUST(!model.dead && (!may || (model.messages == messages && model.at == AT_VERB && model.line == 0)));
    }
}
