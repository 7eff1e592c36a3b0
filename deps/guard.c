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

enum { LINE_MAX_BYTES = 4096 }; /* nats.c's scratch, and nats-server's own limit for a line (max_control_line) */

static _Thread_local struct guard *watched;

void guard_watch(struct guard *g) { watched = g; }

/* At the end of a line. Follows the parser's ways: a line whose first word is its only one would go on in the next. */
static const char *line_ends(struct guard *g) {
    bool is_message = g->first == 'm' || g->first == 'h', has_words = is_message || g->first == '-' || g->first == 'i';
    if (has_words && g->words < (is_message ? 4 : 2)) return "a line of the server is too short";
    if (is_message && g->number > GUARD_SMALL && !g->takes(g->user, g->number)) return "memory is short for a message of the server";
    g->payload = is_message ? (size_t)g->number : 0;
    g->line = is_message; /* the line end behind the payload: what stands before that is passed over */
    g->first = 0;
    return NULL;
}

/* One byte of a line. */
static const char *line_goes_on(struct guard *g, unsigned char c) {
    if (g->line++ == 0) {
        g->first = (char)(c | 0x20);
        g->number = g->words = g->in_word = 0;
    }
    if (g->line > (g->first == 'i' ? GUARD_SMALL : LINE_MAX_BYTES)) return "a line of the server is too long";
    if (c == '\n') return line_ends(g);
    bool in_word = c != ' ' && c != '\t' && c != '\r';
    if (in_word && !g->in_word) g->words++, g->number = 0;
    g->in_word = in_word;
    if (isdigit(c)) g->number = 10 * g->number + (c - '0');
    if (g->number > UINT32_MAX) g->number = UINT32_MAX;
    return NULL;
}

static const char *look_over(struct guard *g, const char *at, size_t len) {
    const char *wrong = NULL;
    for (const char *end = at + len; at < end && !wrong; at++) {
        size_t left = (size_t)(end - at), n = g->payload < left ? g->payload : left;
        g->payload -= n;
        at += n;
        if (n == left) break;
        wrong = line_goes_on(g, (unsigned char)*at);
    }
    return wrong;
}

natsStatus __real_natsParser_Parse(natsConnection *nc, char *bytes, int len);
natsStatus __wrap_natsParser_Parse(natsConnection *nc, char *bytes, int len);

natsStatus __wrap_natsParser_Parse(natsConnection *nc, char *bytes, int len) {
    struct guard *g = watched;
    if (!g || len <= 0) return __real_natsParser_Parse(nc, bytes, len);
    if (!g->wrong) g->wrong = look_over(g, bytes, (size_t)len);
    if (g->wrong) return NATS_PROTOCOL_ERROR;
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
    if (s == NATS_OK && g->line > 0) (void)__real_natsParser_Parse(nc, nothing, 1);
}
