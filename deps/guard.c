/* A guard before the parser of nats.c 3.10.1, which trusts the server (nats.c, parser.c):
 *
 *   - it adds a message's length to an index, so that one near 2^31 makes it read far outside of its buffer;
 *   - it keeps subject and reply subject of a message that comes in two reads in 4,096 bytes, whatever their length;
 *   - a message that is larger than memory is asked for all the same;
 *   - of a large message that is cut off by the end of its connection it forgets the block.
 *
 * The linker puts __wrap_natsParser_Parse in the place of the parser (--wrap, in the Makefile), so that each byte passes
 * here before. Reading and writing are the loop's, so a guard needs no lock. */
#include "guard.h"

#include <ctype.h>
#include <string.h>

enum { LINE_MAX_BYTES = 4096 }; /* nats.c's scratch, and nats-server's own limit for a line (max_control_line) */

static _Thread_local struct guard *watched;

void guard_watch(struct guard *g) { watched = g; }

static bool is_message(char first) { return first == 'm' || first == 'h'; }

static void add_digit(uint64_t *number, char c) {
    *number = 10 * *number + (uint64_t)(c - '0');
    if (*number > UINT32_MAX) *number = UINT32_MAX;
}

/* A message of so many bytes is announced. */
static const char *announced(struct guard *g, uint64_t bytes) {
    g->number = g->words = 0;
    g->first = 0;
    g->last = ' ';
    if (bytes > GUARD_SMALL && !g->takes(g->user, (size_t)bytes)) return "memory is short for a message of the server";
    g->payload = (size_t)bytes;
    g->line = 1; /* the line end behind the payload: what stands before that is passed over */
    return NULL;
}

/* At the end of a line. Follows the parser's ways: a line whose first word is its only one would go on in the next. */
static const char *line_ends(struct guard *g) {
    bool has_words = is_message(g->first) || g->first == '-' || g->first == 'i';
    if (has_words && g->words < 2) return "a line of the server is too short";
    g->line = 0;
    return is_message(g->first) ? announced(g, g->number) : NULL;
}

static bool is_space(char c) { return c == ' ' || c == '\t'; }

static bool is_too_long(const struct guard *g) { return g->line > (g->first == 'i' ? GUARD_SMALL : LINE_MAX_BYTES); }

static void begin_line(struct guard *g, char c) {
    g->first = (char)(c | 0x20);
    g->number = g->words = 0;
    g->last = ' ';
}

static void count_word(struct guard *g, char c) {
    if (is_space(c) || c == '\r') return;
    if (is_space(g->last)) g->words++, g->number = 0;
    if (isdigit((unsigned char)c)) add_digit(&g->number, c);
}

/* One byte of a line. The parser takes the one behind a payload for its end, whatever it is; and a '\r' within a line either
 * for nothing or for the last byte but one, so that two lengths could be read from it: no server sends one. */
static const char *line_goes_on(struct guard *g, char c) {
    if (g->line++ == 0) begin_line(g, c);
    if (is_too_long(g)) return "a line of the server is too long";
    if (!g->first && g->line == 2) return NULL;
    if (c == '\n') return line_ends(g);
    if (g->first && g->last == '\r') return "a line of the server has a carriage return in it";
    count_word(g, c);
    g->last = c;
    return NULL;
}

/* The number at the end of a line. False: the line does not end in a word of one to nine digits. */
static bool last_number(const char *line, const char *end, uint64_t *number) {
    const char *last = end[-1] == '\r' ? end - 1 : end, *digit = last;
    *number = 0;
    for (uint64_t scale = 1; last - digit < 9 && digit > line && isdigit((unsigned char)digit[-1]); scale *= 10)
        *number += scale * (uint64_t)(*--digit - '0');
    return digit < last && digit > line && digit[-1] == ' ' && !memchr(line, '\r', (size_t)(last - line));
}

/* The quick way through most of what a server sends: a message's line that is all there, which ends in a number. Returns the
 * byte behind it, or NULL: byte by byte, then. */
static const char *message_line(struct guard *g, const char *at, size_t len) {
    uint64_t number = 0;
    if (g->line > 0 || !is_message((char)(*at | 0x20))) return NULL;
    const char *end = memchr(at, '\n', len < LINE_MAX_BYTES ? len : LINE_MAX_BYTES);
    if (!end || end == at || !last_number(at, end, &number)) return NULL;
    g->wrong = announced(g, number);
    return end + 1;
}

/* The quick way over the line end behind a payload, if it is all there. */
static bool line_end(struct guard *g, const char *at, size_t len) {
    if (g->line != 1 || g->first || len < 2 || at[1] != '\n') return false;
    g->line = 0;
    return true;
}

static void look_over(struct guard *g, const char *at, size_t len) {
    for (const char *end = at + len; at < end && !g->wrong;) {
        size_t left = (size_t)(end - at), n = g->payload < left ? g->payload : left;
        g->payload -= n;
        at += n;
        if (n == left) return;
        if (line_end(g, at, left - n)) {
            at += 2;
            continue;
        }
        const char *behind = message_line(g, at, left - n);
        if (!behind) g->wrong = line_goes_on(g, *at);
        at = behind ? behind : at + 1;
    }
}

/* The names are the linker's: NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
natsStatus __real_natsParser_Parse(natsConnection *nc, char *bytes, int len);
natsStatus __wrap_natsParser_Parse(natsConnection *nc, char *bytes, int len);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

natsStatus __wrap_natsParser_Parse(natsConnection *nc, char *bytes, int len) {
    struct guard *g = watched;
    if (!g || len <= 0) return __real_natsParser_Parse(nc, bytes, len);
    struct guard before = *g;
    if (!g->wrong) look_over(g, bytes, (size_t)len);
    before.wrong = g->wrong;
    if (g->wrong) return *g = before, NATS_PROTOCOL_ERROR; /* where the parser is, which does not see these bytes */
    natsStatus s = __real_natsParser_Parse(nc, bytes, len);
    if (s != NATS_OK) g->payload = g->line = 0; /* the parser has let go of its message itself */
    return s;
}

void guard_end(struct guard *g, natsConnection *nc) {
    static char nothing[4096];
    natsStatus s = NATS_OK;
    while (s == NATS_OK && g->payload > 0) {
        size_t n = g->payload < sizeof(nothing) ? g->payload : sizeof(nothing);
        s = __real_natsParser_Parse(nc, nothing, (int)n);
        g->payload -= n;
    }
    if (s == NATS_OK && g->line == 1 && !g->first) (void)__real_natsParser_Parse(nc, nothing, 1); /* it is whole: the byte behind it */
}
