/* messaging-nats - a wasmCloud capability provider for wasmcloud:messaging@0.2.0 over NATS, in one file.
 *
 * A wasmCloud host runs WebAssembly components. A component that publishes messages, asks questions of a subject, or is
 * called for each message of a subscription is *linked* to a provider: this program. The host starts it, writes one line
 * of *host data* to its standard input, and from then on everything goes over NATS:
 *
 *     component ── publish, request ──▶ lattice ──▶ provider ──▶ the link's NATS server      (calls from components)
 *     component ◀── handle-message ─── lattice ◀── provider ◀── the link's NATS server       (calls to components)
 *
 * The *lattice* is the NATS server that hosts and providers share; calls on it are wRPC. Each link has a connection of its
 * own, to the server that its configuration names. The file is a house of twelve rooms; each uses only those before it:
 *
 *      1 memory                 the arena under every library
 *      2 log                    one line, one write; what would repeat a thousand times is counted
 *      3 wire values            how wRPC writes strings, lists, options and results
 *      4 keys and secrets       nkeys, and the secrets of links
 *      5 connections            connecting threads, and nats.c in our loop
 *      6 links                  what a host asks for, merged with the defaults
 *      7 calls                  slots, inboxes, answers
 *      8 calls from components  publish and request
 *      9 JetStream              pull consumers: what is asked for, and acknowledged
 *     10 calls to components    handle-message, its backlog and its pauses
 *     11 control                link put and delete, config update, health, shutdown
 *     12 the loop, and main     and the host data that starts it
 *
 * All of this runs on one thread, in the loop at the end. nats.c keeps three threads of its own, which do nothing here, and
 * each attempt to connect runs on a thread that lives as long as the attempt; what that may touch is said in room 5.
 * "protocol:" in a comment points to the public source of a fact about the wire: wasmCloud's host and provider-sdk (1.0.4,
 * 1.9.2), the crate wrpc-transport-nats, the component model's value encoding, the NATS client protocol.
 */
#define _GNU_SOURCE
#include "provider.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <nss.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>
#include <nats/nats.h>
#include <sodium.h>

#include "deps/guard.h"
#include "deps/tls.h"

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

struct span { const char *at; size_t len; }; /* bytes that belong to somebody else */

/* Milliseconds and microseconds since some moment in the past; never set back, unlike the time of day. The loop reads the clock
 * once a turn, and again when it has written, and keeps it here, where everybody reads it. */
static uint64_t now, now_us;

static void read_clock(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    now_us = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
    now = now_us / 1000;
}

/*
 * ---- 1 memory --------------------------------------------------------------------------------------------------------
 *
 * One static arena, and nothing else: no brk, no mmap, no surprise after three years. It is what malloc() means in this
 * program, for the libraries as well as for libc. Free blocks hang in lists by size, two for each power of two, and a bit
 * map says which lists are not empty: taking and giving back cost the same few instructions however long the program has
 * run. Neighbours that are free are joined. Our own code takes a block only for what must wait: see records, in room 7.
 *
 * nats.c takes and gives back a block or two for each message, always of the same few sizes. So the loop's thread keeps the
 * last block of each small size that it gave back, and takes it again without the lock.
 *
 * In:  sizes. Out: memory, or NULL. Touches: the arena. Any thread may use it.
 */
struct block;
static struct {
    pthread_mutex_t lock;
    size_t in_use, peak;  /* bytes, heads included */
    uint64_t taken;       /* how often a block was asked for, ever */
    bool ready;
    uint64_t some;        /* bit n: list n is not empty */
    struct block *list[64];
} arena = {.lock = PTHREAD_MUTEX_INITIALIZER};

#ifndef SYSTEM_MALLOC /* sanitizers bring their own */

struct block {
    struct block *before;      /* the block before this one in memory, or NULL */
    size_t size;               /* of the payload, in bytes; the lowest bit says that the block is free */
    struct block *next, **at;  /* only while it is free, in the payload: the next in its list, and what points to it */
};

enum { SPARES = 64 }; /* sizes of up to 1,008 bytes, in steps of ALIGN */
static struct block *spares[SPARES];  /* by size, one each; they count as in use. The loop's thread alone touches them */
static _Thread_local bool keeps_spares;

enum { ALIGN = 16, HEAD = offsetof(struct block, next) < ALIGN ? ALIGN : offsetof(struct block, next) };

static _Alignas(4096) uint8_t arena_bytes[ARENA_BYTES + sizeof(struct block)];

static void *payload(struct block *b) { return (uint8_t *)b + HEAD; }
/* The asm hides from gcc where the pointer came from: before what malloc() returns it expects no memory of ours. */
static struct block *block_of(void *p) { __asm__("" : "+r"(p)); return (struct block *)(void *)((uint8_t *)p - HEAD); }
static struct block *block_after(struct block *b) { return (struct block *)(void *)((uint8_t *)b + HEAD + b->size); }
static size_t rounded(size_t size) { return size < 2 * ALIGN ? 2 * ALIGN : (size + ALIGN - 1) & ~(size_t)(ALIGN - 1); }

static unsigned list_for(size_t size) {
    unsigned top = 31 - (unsigned)__builtin_clz((unsigned)size);
    return 2 * top + (size >> (top - 1) & 1);
}

static void block_list(struct block *b) {
    unsigned list = list_for(b->size);
    b->at = &arena.list[list];
    b->next = *b->at;
    if (b->next) b->next->at = &b->next;
    *b->at = b;
    b->size |= 1;
    arena.some |= 1ull << list;
}

static void block_unlist(struct block *b) {
    b->size &= ~(size_t)1;
    *b->at = b->next;
    if (b->next) b->next->at = b->at;
    if (!arena.list[list_for(b->size)]) arena.some &= ~(1ull << list_for(b->size));
}

/* A free block of at least this size, or NULL: the first of its own list if that fits, else one of a list where each does. */
static struct block *block_find(size_t size) {
    unsigned list = list_for(size);
    if (arena.list[list] && arena.list[list]->size >= size) return arena.list[list];
    uint64_t larger = arena.some & ~((2ull << list) - 1);
    return larger ? arena.list[__builtin_ctzll(larger)] : NULL;
}

/* Puts a block that is in no list back, joined with its neighbours if they are free. */
static void block_release(struct block *b) {
    struct block *after = block_after(b), *before = b->before;
    if (after->size & 1) {
        block_unlist(after);
        b->size += HEAD + after->size;
    }
    if (before && before->size & 1) {
        block_unlist(before);
        before->size += HEAD + b->size;
        b = before;
    }
    block_after(b)->before = b;
    block_list(b);
}

/* Cuts a block in use down to this size, and releases the rest if that is worth a block. */
static void block_trim(struct block *b, size_t size) {
    size_t rest = b->size - size;
    if (rest < HEAD + 2 * ALIGN) return;
    b->size = size;
    struct block *cut = block_after(b);
    cut->before = b;
    cut->size = rest - HEAD;
    block_release(cut);
}

/* Joins a block in use with the free one behind it, if that makes it large enough. */
static void block_grow(struct block *b, size_t size) {
    struct block *after = block_after(b);
    if (b->size >= size || !(after->size & 1) || b->size + HEAD + after->size <= size) return;
    block_unlist(after);
    b->size += HEAD + after->size;
    block_after(b)->before = b;
}

static void count_in(const struct block *b) {
    arena.taken++;
    arena.in_use += b->size + HEAD;
    if (arena.in_use > arena.peak) arena.peak = arena.in_use;
}

/* Gives the spare blocks back, which may lie between two free ones. */
static void spares_release(void) {
    for (size_t i = 0; keeps_spares && i < SPARES; i++) {
        if (!spares[i]) continue;
        arena.in_use -= spares[i]->size + HEAD;
        block_release(spares[i]);
        spares[i] = NULL;
    }
}

/* As block_find(); but before it finds none, the spare blocks are given up. */
static struct block *block_find_hard(size_t size) {
    struct block *b = block_find(size);
    if (b) return b;
    spares_release();
    return block_find(size);
}

/* One free block over the whole arena; behind it a block in use without payload, so that each has a neighbour. */
static void arena_start(void) {
    struct block *all = (struct block *)(void *)arena_bytes;
    all->size = ARENA_BYTES - HEAD;
    block_after(all)->before = all;
    block_list(all);
    arena.ready = true;
}

/* From now on this thread keeps spare blocks. */
static void arena_serves_loop(void) { keeps_spares = true; }

/* Takes a spare block of this size, or of one so little larger that block_trim() would leave it so; or NULL. */
static struct block *spare_take(size_t size) {
    for (size_t i = size / ALIGN; keeps_spares && i < SPARES && i * ALIGN < size + HEAD + 2 * ALIGN; i++) {
        struct block *b = spares[i];
        spares[i] = NULL;
        if (b) return b;
    }
    return NULL;
}

static bool spare_keep(struct block *b) {
    size_t i = b->size / ALIGN;
    if (!keeps_spares || i >= SPARES || spares[i]) return false;
    spares[i] = b;
    return true;
}

static void *malloc_from_lists(size_t size) {
    pthread_mutex_lock(&arena.lock);
    if (!arena.ready) arena_start();
    struct block *b = block_find_hard(size);
    if (b) {
        block_unlist(b);
        block_trim(b, size);
        count_in(b);
    }
    pthread_mutex_unlock(&arena.lock);
    if (b) return payload(b);
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t size) {
    if (size > BLOCK_MAX) return errno = ENOMEM, NULL;
    struct block *b = spare_take(rounded(size));
    return b ? payload(b) : malloc_from_lists(rounded(size));
}

void free(void *p) {
    if (!p) return;
    struct block *b = block_of(p);
    if (spare_keep(b)) return;
    pthread_mutex_lock(&arena.lock);
    arena.in_use -= b->size + HEAD;
    block_release(b);
    pthread_mutex_unlock(&arena.lock);
}

void *calloc(size_t count, size_t size) {
    size_t bytes;
    void *p = __builtin_mul_overflow(count, size, &bytes) ? NULL : malloc(bytes);
    return p ? memset(p, 0, bytes) : p;
}

/* Grows in place where the neighbour is free and large enough: nats.c's write buffers grow by tenths of a megabyte. */
void *realloc(void *p, size_t size) {
    if (!p || size > BLOCK_MAX) return p ? NULL : malloc(size);
    struct block *b = block_of(p);
    size_t old = b->size;
    pthread_mutex_lock(&arena.lock);
    block_grow(b, rounded(size));
    bool done = b->size >= rounded(size);
    if (done) {
        block_trim(b, rounded(size));
        arena.in_use -= old + HEAD;
        count_in(b);
    }
    pthread_mutex_unlock(&arena.lock);
    void *moved = done ? p : malloc(size);
    if (!done && moved) {
        memcpy(moved, p, old);
        free(p);
    }
    return moved;
}

size_t malloc_usable_size(void *p) { return p ? block_of(p)->size : 0; }

/* Whether a library may take this many bytes, the largest block of them so large, without touching what links to come and
 * large messages count on. */
static bool arena_spares(size_t bytes, size_t block, unsigned links_to_come) {
    pthread_mutex_lock(&arena.lock);
    bool enough = arena.in_use + bytes + ARENA_IN_TRANSIT + links_to_come * (size_t)ARENA_PER_LINK <= ARENA_BYTES && block_find_hard(block);
    pthread_mutex_unlock(&arena.lock);
    return enough;
}
#else
size_t malloc_usable_size(void *p);
static void arena_serves_loop(void) { }
static bool arena_spares(size_t bytes, size_t block, unsigned links_to_come) { return bytes + block + links_to_come > 0; }
#endif

/* jansson's free: configuration holds secrets, and all of it passes here. */
static void free_wiped(void *p) {
    if (p) sodium_memzero(p, malloc_usable_size(p));
    free(p);
}

/*
 * ---- 2 log -----------------------------------------------------------------------------------------------------------
 *
 * One line an event on standard error, text or JSON as the host asks, written whole by one write(2). The host reads the
 * other end of the pipe; if it stops reading, lines are dropped and counted, because the loop never waits.
 *
 * In:  words, and what they are about (a link, the lattice). Out: a line. Only the loop's thread logs.
 */
enum level { LEVEL_OFF, LEVEL_CRITICAL, LEVEL_ERROR, LEVEL_WARN, LEVEL_INFO, LEVEL_DEBUG, LEVEL_TRACE };
static const char *const level_names[] = {"OFF", "CRITICAL", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"};

static struct { enum level level; bool json; uint64_t lost; } logger = {.level = LEVEL_INFO}; /* lost: lines that nobody read */

/* Copies text for a terminal or a JSON string: printable ASCII, since it may be hostile, or cut within a character. */
static const char *escaped(char *out, size_t size, const char *text, bool json) {
    size_t n = 0;
    for (; *text && n + 3 < size; text++) {
        if (json && (*text == '"' || *text == '\\')) out[n++] = '\\';
        out[n++] = *text < ' ' || *text > '~' ? '?' : *text;
    }
    out[n] = 0;
    return out;
}

/* What the command line or the host got wrong: one sentence, and exit code 1. */
__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...) {
    char text[512], safe[512];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    (void)fprintf(stderr, PROVIDER_NAME ": %s\n", escaped(safe, sizeof(safe), text, false));
    exit(1);
}

/* What a line can be about, and which of its lines came lately: where one would repeat thousands of times, the first few
 * are written, the rest is counted, and the count is written when GATE_MS are over. */
enum { GATES = 8, GATE_LINES = 5, GATE_MS = 5000 };

struct topic {
    const char *kind;      /* "link", "lattice", "provider" */
    char name[256];
    struct gate {
        const char *format; /* tells one line from another */
        uint64_t until;
        unsigned lines, held;
        char last[96];
    } gates[GATES];
};

static void write_line(const struct topic *topic, enum level level, const char *words) {
    char safe[1200], who[300], when[32], line[1800];
    struct timespec t;
    struct tm tm;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    (void)strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", gmtime_r(&t.tv_sec, &tm));
    (void)snprintf(when + strlen(when), 8, ".%03dZ", (int)(t.tv_nsec / 1000000));
    (void)escaped(safe, sizeof(safe), words, logger.json);
    (void)escaped(who, sizeof(who), topic->name, logger.json);
    const char *form = logger.json ? "{\"timestamp\":\"%s\",\"level\":\"%s\",\"%s\":\"%s\",\"message\":\"%s\"}\n" : "%s %-5s %s %s: %s\n";
    int n = snprintf(line, sizeof(line), form, when, level_names[level], topic->kind, who, safe);
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&out, 1, 0) != 1 || !(out.revents & POLLOUT) || write(STDERR_FILENO, line, (size_t)n) < 0) logger.lost++;
}

/* Writes the count of what was held back, when its time has come. */
static void topic_tick(struct topic *topic, uint64_t at) {
    for (struct gate *g = topic->gates; g < topic->gates + GATES; g++) {
        char words[160];
        if (!g->held || at < g->until) continue;
        (void)snprintf(words, sizeof(words), "%u more lines like this in %d s: %s", g->held, GATE_MS / 1000, g->last);
        write_line(topic, LEVEL_WARN, words);
        g->until = now + GATE_MS;
        g->held = 0;
    }
}

/* The gate of a line: the one that had it last, or else one that is idle. */
static struct gate *gate_for(struct topic *topic, const char *format) {
    struct gate *idle = topic->gates + GATES - 1; /* if none is idle, the last one is shared */
    for (struct gate *g = topic->gates; g < topic->gates + GATES; g++) {
        if (g->format == format) return g;
        if (now >= g->until && !g->held) idle = g;
    }
    return idle;
}

__attribute__((format(printf, 3, 4))) static void say(struct topic *topic, enum level level, const char *format, ...) {
    char words[1024];
    va_list args;
    if (level > logger.level) return;
    struct gate *g = gate_for(topic, format);
    if (now >= g->until && !g->held) *g = (struct gate){.format = format, .until = now + GATE_MS};
    va_start(args, format);
    (void)vsnprintf(words, sizeof(words), format, args);
    va_end(args);
    (void)snprintf(g->last, sizeof(g->last), "%.95s", words);
    if (g->lines < GATE_LINES) write_line(topic, level, words);
    if (g->lines++ >= GATE_LINES) g->held++;
}

/* A level by its name. RUST_LOG may also name single modules ("info,async_nats=warn"): the part without "=" counts. */
static void set_level(const char *text) {
    for (size_t n; *text; text += n + (text[n] == ',')) {
        n = strcspn(text, ",");
        for (size_t i = 0; i < COUNT_OF(level_names); i++)
            if (strlen(level_names[i]) == n && strncasecmp(text, level_names[i], n) == 0) logger.level = (enum level)i;
    }
}

/*
 * ---- 3 wire values ---------------------------------------------------------------------------------------------------
 *
 * wRPC writes values as the component model does (protocol: its value encoding; wrpc-transport):
 *
 *     u32               unsigned LEB128, at most 5 bytes
 *     string, list<u8>  length as u32, then the bytes; strings are UTF-8
 *     option<T>         00, or 01 and T
 *     result<T, E>      00 and T, or 01 and E
 *     record, params    the fields in order, nothing between
 *
 * Nothing is framed: parameters that come in pieces are whole when they decode. So decoding has three outcomes, and says
 * how many bytes it takes at least before another try is worth while.
 *
 * In:  bytes of strangers. Out: spans that point into them, checked; or bytes in a buffer. Touches: nothing.
 */
enum decoded { WHOLE, NEEDS_MORE, MALFORMED };

struct reader {
    const uint8_t *start, *at, *end;
    size_t needs;  /* after NEEDS_MORE: bytes, counted from the start */
};

/* protocol: broker-message of wasmcloud:messaging/types@0.2.0 */
struct message {
    struct span subject, body, reply_to;
    bool has_reply;
};

static enum decoded needs(struct reader *r, size_t bytes) {
    r->needs = (size_t)(r->at - r->start) + bytes;
    return NEEDS_MORE;
}

static enum decoded read_u32(struct reader *r, uint32_t *value) {
    uint64_t v = 0;
    for (size_t i = 0; i < 5; i++) {
        if (i >= (size_t)(r->end - r->at)) return needs(r, i + 1);
        v |= (uint64_t)(r->at[i] & 0x7f) << (7 * i);
        if (r->at[i] & 0x80) continue;
        r->at += i + 1;
        *value = (uint32_t)v;
        return v > UINT32_MAX ? MALFORMED : WHOLE;
    }
    return MALFORMED;
}

static enum decoded read_bytes(struct reader *r, struct span *s) {
    uint32_t len = 0;
    enum decoded d = read_u32(r, &len);
    if (d != WHOLE) return d;
    if (len > (size_t)(r->end - r->at)) return needs(r, MIN(len, 2u * PARAMS_MAX)); /* no sum of a stranger's may wrap */
    *s = (struct span){(const char *)r->at, len};
    r->at += len;
    return WHOLE;
}

/* Whether these bytes are UTF-8: no overlong form, no surrogate, nothing beyond U+10FFFF (RFC 3629). */
static bool is_utf8(struct span s) {
    static const uint32_t first[] = {0, 0xc0, 0xe0, 0xf0}, least[] = {0, 0x80, 0x800, 0x10000}; /* by the bytes that follow */
    const uint8_t *c = (const uint8_t *)s.at;
    for (size_t left = s.len; left > 0; left--, c++) {
        if (*c < 0x80) continue;
        size_t more = 1 + (size_t)(*c > 0xdf) + (*c > 0xef);
        uint32_t code = *c - first[more]; /* of a byte that begins nothing: beyond everything */
        if (left <= more) return false;
        left -= more;
        for (size_t i = 0; i < more; i++) {
            if ((*++c & 0xc0) != 0x80) return false;
            code = code << 6 | (*c & 0x3f);
        }
        if (code < least[more] || code > 0x10ffff || code >> 11 == 0xd800 >> 11) return false;
    }
    return true;
}

static enum decoded read_string(struct reader *r, struct span *s) {
    enum decoded d = read_bytes(r, s);
    return d == WHOLE && !is_utf8(*s) ? MALFORMED : d;
}

/* The parameters of publish: (broker-message). */
static enum decoded read_publish(struct reader *r, struct message *m) {
    enum decoded d = read_string(r, &m->subject);
    if (d == WHOLE) d = read_bytes(r, &m->body);
    if (d != WHOLE) return d;
    if (r->at == r->end) return needs(r, 1);
    if (*r->at > 1) return MALFORMED;
    m->has_reply = *r->at++;
    return m->has_reply ? read_string(r, &m->reply_to) : WHOLE;
}

/* The parameters of request: (subject, body, timeout-ms). */
static enum decoded read_request(struct reader *r, struct message *m, uint32_t *timeout_ms) {
    enum decoded d = read_string(r, &m->subject);
    if (d == WHOLE) d = read_bytes(r, &m->body);
    return d == WHOLE ? read_u32(r, timeout_ms) : d;
}

static size_t write_u32(uint8_t *out, uint32_t value) {
    size_t n = 0;
    for (; value > 0x7f; value >>= 7) out[n++] = (uint8_t)(value | 0x80);
    out[n++] = (uint8_t)value;
    return n;
}

static size_t write_bytes(uint8_t *out, struct span s) {
    size_t n = write_u32(out, (uint32_t)s.len);
    if (s.len) memcpy(out + n, s.at, s.len);
    return n + s.len;
}

/* write_message() writes no more bytes than this. */
static size_t message_room(const struct message *m) { return m->subject.len + m->body.len + m->reply_to.len + 16; }

static size_t write_message(uint8_t *out, const struct message *m) {
    size_t n = write_bytes(out, m->subject);
    n += write_bytes(out + n, m->body);
    out[n++] = m->has_reply;
    return m->has_reply ? n + write_bytes(out + n, m->reply_to) : n;
}

/* The result of handle-message, result<_, string>, in any number of pieces: nothing is kept but the beginning of words. */
struct result {
    enum { AT_TAG, AT_LENGTH, AT_WORDS, AT_END } at;
    uint8_t shift, kept;  /* of the next byte of the length; bytes of words */
    bool is_error;
    uint64_t len;         /* of the words still to come */
    char words[120];
};

static void result_start(struct result *r) {
    memset(r, 0, offsetof(struct result, words));
    r->words[0] = 0;
}

/* The next byte of it. Returns false if that cannot stand there. */
static bool result_byte(struct result *r, uint8_t byte) {
    if (r->at == AT_TAG) {
        r->is_error = byte;
        r->at = byte ? AT_LENGTH : AT_END;
        return byte <= 1;
    }
    if (r->at == AT_LENGTH) {
        r->len |= (uint64_t)(byte & 0x7f) << r->shift;
        r->shift = (uint8_t)(r->shift + 7);
        if (byte & 0x80) return r->shift < 35;
        r->at = r->len ? AT_WORDS : AT_END;
        return r->len <= UINT32_MAX;
    }
    if (r->kept < sizeof(r->words) - 1) r->words[r->kept++] = (char)byte, r->words[r->kept] = 0;
    if (--r->len == 0) r->at = AT_END;
    return true;
}

static enum decoded read_result(struct result *r, const uint8_t *bytes, size_t len) {
    for (; len > 0 && r->at != AT_END; bytes++, len--)
        if (!result_byte(r, *bytes)) return MALFORMED;
    return r->at == AT_END ? WHOLE : NEEDS_MORE;
}

static struct span span_of(const char *text) { return (struct span){text, text ? strlen(text) : 0}; }
#define SPAN(literal) ((struct span){literal, sizeof(literal) - 1})

/* The same as text with a NUL at its end, cut if it is longer than `size` allows. */
static struct span text_of(struct span s, char *out, size_t size) {
    size_t len = MIN(s.len, size - 1);
    if (len) memcpy(out, s.at, len);
    out[len] = 0;
    return (struct span){out, len};
}

/* Whether a token may begin with the character at `i`. A `*` or `>` that is not alone in its token is no wildcard. */
static bool may_begin_token(struct span s, size_t i, bool wildcards) {
    char c = s.at[i];
    bool last = i + 1 == s.len, alone = last || s.at[i + 1] == '.';
    if (!alone || (c != '*' && c != '>')) return c != '.';
    return wildcards && (last || c == '*');
}

/* Whether a subject may go into the NATS protocol: a space or a control character in it would begin a command of somebody
 * else's choice. `wildcards`: `*` and `>` may be tokens. protocol: NATS, "Subject-Based Messaging". */
static bool is_subject(struct span s, bool wildcards) {
    unsigned char before = '.', c;
    for (size_t i = 0; i < s.len; i++, before = c) {
        c = (unsigned char)s.at[i];
        if (c <= ' ' || c == 0x7f || (before == '.' && !may_begin_token(s, i, wildcards))) return false;
    }
    return before != '.' && s.len <= SUBJECT_MAX;
}

/*
 * ---- 4 keys and secrets ----------------------------------------------------------------------------------------------
 *
 * nkeys are base32 of prefix bytes, 32 key bytes and a CRC. Two sorts meet us: the X25519 keys ("X…", seed "SX…") with
 * which a host seals the secrets of a link for this provider, and the seeds of NATS users ("SU…"). protocol: the crate
 * nkeys; wasmCloud's secrets-client and provider-sdk.
 *
 * In:  strings of the host. Out: keys, opened secrets. Touches: the box key below. Who holds a secret wipes it.
 */
enum { X_PUBLIC = 0xb8, SEED = 0x95, SEED_OF_X = 0xc0, SEED_OF_USER = 0x00, NKEY_PUBLIC_LEN = 56 };
static const char base32_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

static uint16_t crc16(const uint8_t *bytes, size_t len) { /* XMODEM's */
    uint16_t crc = 0;
    for (size_t i = 0; i < 8 * len; i++) {
        if (i % 8 == 0) crc = (uint16_t)(crc ^ bytes[i / 8] << 8);
        crc = (uint16_t)(crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1);
    }
    return crc;
}

/* Decodes base32 without padding into `want` bytes, of which the last two are the CRC of the others. */
static bool nkey_decode(struct span text, uint8_t *out, size_t want) {
    uint32_t bits = 0;
    size_t have = 0, n = 0;
    if (text.len != (want * 8 + 4) / 5) return false;
    for (size_t i = 0; i < text.len; i++) {
        const char *digit = text.at[i] ? strchr(base32_digits, text.at[i]) : NULL;
        if (!digit) return false;
        bits = bits << 5 | (uint32_t)(digit - base32_digits);
        have += 5;
        if (have < 8) continue;
        have -= 8;
        out[n++] = (uint8_t)(bits >> have);
    }
    return (bits & ((1u << have) - 1)) == 0 && crc16(out, want - 2) == (out[want - 2] | out[want - 1] << 8);
}

/* Whether this is a seed of this kind; its 32 secret bytes, if they are wanted. */
static bool nkey_seed(struct span text, uint8_t kind, uint8_t *secret) {
    uint8_t raw[36];
    bool ok = nkey_decode(text, raw, sizeof(raw)) && raw[0] == SEED && raw[1] == kind;
    if (ok && secret) memcpy(secret, raw + 2, 32);
    sodium_memzero(raw, sizeof(raw));
    return ok;
}

static void nkey_x_encode(const uint8_t key[32], char text[NKEY_PUBLIC_LEN + 1]) {
    uint8_t raw[36] = {X_PUBLIC};
    memcpy(raw + 1, key, 32);
    raw[33] = (uint8_t)crc16(raw, 33);
    raw[34] = (uint8_t)(crc16(raw, 33) >> 8);
    for (size_t i = 0, bit = 0; i < NKEY_PUBLIC_LEN; i++, bit += 5)
        text[i] = base32_digits[(raw[bit / 8] << 8 | raw[bit / 8 + 1]) >> (11 - bit % 8) & 31];
    text[NKEY_PUBLIC_LEN] = 0;
}

/* What opens the secrets of links: the key that the host's xkey and ours have in common. */
static struct {
    bool set;
    uint8_t shared[crypto_box_BEFORENMBYTES];
    char public_key[NKEY_PUBLIC_LEN + 1];  /* ours: the host puts new links to this name */
} box;

static bool box_start(struct span host_public, struct span our_seed) {
    uint8_t secret[32], host[35], ours[32];
    bool ok = nkey_seed(our_seed, SEED_OF_X, secret) && nkey_decode(host_public, host, sizeof(host)) && host[0] == X_PUBLIC &&
              crypto_scalarmult_base(ours, secret) == 0 && crypto_box_beforenm(box.shared, host + 1, secret) == 0;
    sodium_memzero(secret, sizeof(secret));
    if (ok) nkey_x_encode(ours, box.public_key);
    return box.set = ok;
}

/* Opens the sealed secrets of a link: "xkv1", a nonce, a NaCl box of a JSON object. Returns the object, or NULL and why.
 * protocol: the crate nkeys, xkeys.rs. */
static json_t *box_open(const uint8_t *sealed, size_t len, const char **why) {
    const size_t head = 4 + crypto_box_NONCEBYTES;
    json_t *secrets = NULL;
    *why = "the host data has no xkeys to open its secrets with";
    if (!box.set) return NULL;
    *why = "its secrets do not begin with xkv1, or are too short";
    if (len < head + crypto_box_MACBYTES || memcmp(sealed, "xkv1", 4) != 0) return NULL;
    size_t plain_len = len - head - crypto_box_MACBYTES;
    uint8_t *plain = malloc(plain_len + 1);
    *why = "out of memory";
    if (!plain) return NULL;
    *why = "its secrets were sealed for another provider, or changed on the way";
    if (crypto_box_open_easy_afternm(plain, sealed + head, len - head, sealed + 4, box.shared) == 0) {
        *why = "its secrets are no JSON object";
        secrets = json_loadb((const char *)plain, plain_len, 0, NULL);
    }
    sodium_memzero(plain, plain_len);
    free(plain);
    if (json_is_object(secrets)) return secrets;
    json_decref(secrets);
    return NULL;
}

/* The bytes of a JSON array of numbers from 0 to 255. Returns memory that the caller wipes and frees, or NULL. */
static uint8_t *bytes_of_json(const json_t *array, size_t *len) {
    size_t i;
    const json_t *v;
    *len = json_array_size(array);
    uint8_t *bytes = *len ? malloc(*len) : NULL;
    json_array_foreach(array, i, v) {
        if (bytes && json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= 255) {
            bytes[i] = (uint8_t)json_integer_value(v);
            continue;
        }
        free_wiped(bytes);
        return NULL;
    }
    return bytes;
}

/* A SecretValue as a string: {"kind":"String","value":"…"}, or {"kind":"Bytes","value":[…]} with UTF-8 in it. NULL if it is
 * neither. protocol: wasmCloud's secrets-client, types.rs. */
static json_t *secret_text(const json_t *secret) {
    const json_t *value = json_object_get(secret, "value");
    size_t len = 0;
    if (json_is_string(value)) return json_copy((json_t *)value);
    uint8_t *bytes = bytes_of_json(value, &len);
    json_t *text = bytes ? json_stringn((const char *)bytes, len) : NULL;
    free_wiped(bytes);
    return text;
}

/*
 * ---- 5 connections ---------------------------------------------------------------------------------------------------
 *
 * One connection to a NATS server: the lattice's, or a link's. nats.c does the protocol; the loop and the reconnecting are
 * ours. nats.c's own reconnect is off: with an event loop it is unsafe (its parser is not reset), and it holds a lock while
 * it resolves and connects. So every attempt makes a new natsConnection on a thread of its own, for the loop to take over:
 *
 *     OFF ─▶ CONNECTING ─▶ UP ─▶ WAITING ─▶ CONNECTING …      with a pause that doubles, and jitter
 *
 * A connecting thread may touch nats.c, the constant part of its connection, and the fields under "the attempt's", which
 * the loop leaves alone until the thread has reported. Nothing else.
 *
 * In:  settings. Out: on_up, on_message, on_down, called in the loop; and post(). Touches: connections.
 */
enum conn_state { CONN_OFF, CONN_CONNECTING, CONN_UP, CONN_WAITING };
enum report { REPORT_NONE, REPORT_UP, REPORT_FAILED };

struct conn {
    /* constant while the connection is not OFF */
    struct topic topic;    /* what its log lines are about */
    json_t *settings;      /* key → string: cluster_uris, client_jwt, tls_ca, …; see setting_keys */
    void (*on_up)(struct conn *);
    void (*on_message)(struct conn *, natsMsg *);  /* does not keep the message */
    void (*on_down)(struct conn *, const char *why);  /* or NULL */
    uint64_t ping_ms;
    size_t write_max;      /* bytes that may wait to be written */
    bool vital;            /* the lattice's: its messages may use what the arena keeps free */
    char inbox[INBOX_MAX]; /* what is sent to "{inbox}…" comes back to us; ends with ".c." */
    size_t inbox_len;
    bool pulls;            /* there is one more, which ends with ".p.": JetStream answers there, and sends what was asked for */

    /* the attempt's */
    natsConnection *nc;
    natsSock fd;
    char outcome[320];     /* the server that it reached, or why it reached none */

    /* written by nats.c's callbacks on any thread */
    atomic_int report;
    atomic_bool wants_write, closed, server_error;

    /* the loop's */
    enum conn_state state;
    char trouble[320];     /* why it is not UP, or "" */
    uint64_t due_ms;       /* WAITING: the next attempt */
    unsigned failures;     /* attempts since it last stood for a while */
    unsigned times_up;     /* how often it came up, ever */
    struct {               /* of this time that it is UP */
        uint64_t up_ms, heard_ms, asked_ms;  /* when it came up, was last heard, was last asked for a sign of life */
        uint64_t given, written; /* bytes of messages that nats.c got to write, and of them those that the kernel has taken */
        size_t capacity;   /* what nats.c's write buffer has grown to, about */
        size_t max_payload;/* the most bytes that a message may have, headers included: as many as the server takes */
        bool blocked;      /* the socket takes no more: wait for POLLOUT */
        bool echoed;       /* what conn_ask_echo() sent has come back */
        bool more;         /* there is input that poll does not see: TLS had read ahead */
        struct guard guard;/* looks over what the server says before nats.c parses it */
        const char *broken;/* why the loop wants it closed */
    } io;
};

static struct {
    int wake_fd;           /* an eventfd: other threads and signals wake the loop by writing to it */
    unsigned up;           /* connections that are up */
    struct { natsSubscription *sub; const struct conn *of; }
        subs[SUBSCRIPTIONS_MAX + 3 * (LINKS_MAX + LINKS_LEAVING_MAX) + 24]; /* with inboxes, and the lattice's own */
} net = {.wake_fd = -1};

/* Exported by libnats from 3.10 to today's main, though not in nats.h. The filter is called for each message on the thread
 * that is in natsConnection_ProcessReadEvent: the loop; before any queue, outside the connection's lock. Setting *msg to NULL
 * takes the message over. natsMsg_free frees at once; natsMsg_Destroy would trouble nats.c's garbage thread. The other two
 * know a message's header block as bytes, see headers_of(). */
void natsConn_setFilterWithClosure(natsConnection *nc, void (*filter)(natsConnection *, natsMsg **, void *), void *closure);
void natsMsg_free(void *msg);
natsStatus natsMsg_createWithPadding(natsMsg **msg, const char *subject, int subject_len, const char *reply, int reply_len,
                                     const char *headers_and_data, int len, int padding, int headers_len);
int natsMsgHeader_encodedLen(natsMsg *msg);

static void wake_loop(void) {
    uint64_t one = 1;
    if (write(net.wake_fd, &one, sizeof(one)) < 0) return; /* EAGAIN: it is awake already */
}

static const char *get(const json_t *settings, const char *key) { return json_string_value(json_object_get(settings, key)); }
static bool is_true(const json_t *settings, const char *key) { return get(settings, key) && strcasecmp(get(settings, key), "true") == 0; }

/* Number `n` of a list with commas, trimmed. Returns false behind the end; empty entries are skipped. */
static bool list_item(const char *list, size_t n, struct span *item) {
    while (*list) {
        list += strspn(list, ", \t\r\n");
        size_t len = strcspn(list, ",");
        *item = (struct span){list, len};
        while (item->len && isspace((unsigned char)item->at[item->len - 1])) item->len--;
        list += len;
        if (item->len && n-- == 0) return true;
    }
    return false;
}

/* The host and port of a URL: what stands behind the scheme and the password. */
static struct span url_address(struct span url) {
    const char *end = url.at + url.len, *from = memrchr(url.at, '@', url.len), *scheme = memmem(url.at, url.len, "://", 3);
    from = from ? from + 1 : scheme ? scheme + 3 : url.at;
    return (struct span){from, (size_t)(end - from)};
}

/* nats.c's callbacks for event loops; `c` came in by natsOptions_SetEventLoop. Called under the lock of the natsConnection,
 * perhaps on a thread of nats.c's: so a flag and a wake-up, nothing more. */
static natsStatus on_attach(void **user, void *c, natsConnection *nc, natsSock fd) {
    (void)nc;
    ((struct conn *)c)->fd = fd;
    /* nats.c sets a linger time of 0, with which the last bytes before an exit would be thrown away */
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){0}, sizeof(struct linger));
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    *user = c;
    return NATS_OK;
}

static natsStatus on_read_wanted(void *user, bool add) {
    if (add) return NATS_OK;
    atomic_store(&((struct conn *)user)->closed, true);
    return wake_loop(), NATS_OK;
}

static natsStatus on_write_wanted(void *user, bool add) { return atomic_store(&((struct conn *)user)->wants_write, add), NATS_OK; }
static natsStatus on_detach(void *user) { return (void)user, NATS_OK; }

/* "-ERR" lines that do not end the connection, such as permissions violations. */
static void on_server_error(natsConnection *nc, natsSubscription *sub, natsStatus err, void *user) {
    (void)nc, (void)sub, (void)err;
    atomic_store(&((struct conn *)user)->server_error, true);
    wake_loop();
}

/* nats.c frees what these two return, so they return copies. */
static natsStatus on_jwt_wanted(char **jwt, char **error, void *user) {
    (void)error;
    *jwt = strdup(get(((struct conn *)user)->settings, "client_jwt"));
    return *jwt ? NATS_OK : NATS_NO_MEMORY;
}

static natsStatus on_signature_wanted(char **error, unsigned char **signature, int *len, const char *nonce, void *user) {
    (void)error;
    return nats_Sign(get(((struct conn *)user)->settings, "client_seed"), nonce, signature, len);
}

static natsStatus set_trusted(const json_t *s, natsOptions *opts) {
    if (get(s, "tls_ca")) return natsOptions_SetCATrustedCertificates(opts, get(s, "tls_ca"));
    return get(s, "tls_ca_file") ? natsOptions_LoadCATrustedCertificates(opts, get(s, "tls_ca_file")) : NATS_OK;
}

/* The URL, tls_first, or the server decide whether there is TLS. NATS_OK is 0: a ?: b goes on with b if a succeeded. */
static natsStatus set_tls_options(const json_t *s, natsOptions *opts, const char *url) {
    bool first = is_true(s, "tls_first"), secure = first || strncasecmp(url, "tls://", 6) == 0;
    return (secure ? natsOptions_SetSecure(opts, true) : NATS_OK) ?: (first ? natsOptions_TLSHandshakeFirst(opts) : NATS_OK)
        ?: set_trusted(s, opts)
        ?: (get(s, "tls_cert") ? natsOptions_SetCertificatesChain(opts, get(s, "tls_cert"), get(s, "tls_key")) : NATS_OK);
}

/* What makes nats.c live in our loop, with one attempt at one server. */
static natsStatus set_loop_options(struct conn *c, natsOptions *opts) {
    return natsOptions_SetEventLoop(opts, c, on_attach, on_read_wanted, on_write_wanted, on_detach)
        ?: natsOptions_SetAllowReconnect(opts, false) ?: natsOptions_SetIgnoreDiscoveredServers(opts, true)
        ?: natsOptions_SetTimeout(opts, CONNECT_TIMEOUT_MS)
        ?: natsOptions_SetPingInterval(opts, 0) /* conn_check_life() asks instead */
        ?: natsOptions_SetSendAsap(opts, true) ?: natsOptions_SetIOBufSize(opts, IO_BUFFER)
        ?: natsOptions_SetErrorHandler(opts, on_server_error, c);
}

static natsStatus set_options(struct conn *c, natsOptions *opts, const char *url) {
    return natsOptions_SetURL(opts, url) ?: natsOptions_SetName(opts, PROVIDER_NAME) ?: set_loop_options(c, opts)
        ?: (get(c->settings, "client_jwt") ? natsOptions_SetUserCredentialsCallbacks(opts, on_jwt_wanted, c, on_signature_wanted, c) : NATS_OK)
        ?: set_tls_options(c->settings, opts, url);
}

/* nats.c begins its words with its file and line. */
static const char *without_place(const char *text) {
    const char *place = text && *text == '(' ? strstr(text, "): ") : NULL;
    return place ? place + 3 : text;
}

/* Why an attempt failed, in nats.c's words. */
static const char *connect_words(natsStatus s) {
    const char *text = without_place(nats_GetLastError(NULL));
    if (s == NATS_NO_SERVER) return "the name does not resolve, or nobody answers there";
    return text && *text ? text : natsStatus_GetText(s);
}

/* One attempt at one server. On failure says why, behind what c->outcome says already. */
static bool connect_to(struct conn *c, struct span server) {
    char url[1024];
    natsOptions *opts = NULL;
    struct span address = url_address(server);
    (void)snprintf(url, sizeof(url), "%.*s", (int)server.len, server.at);
    natsStatus s = natsOptions_Create(&opts) ?: set_options(c, opts, url) ?: natsConnection_Connect(&c->nc, opts);
    natsOptions_Destroy(opts);
    sodium_memzero(url, sizeof(url)); /* it may hold a password */
    if (s == NATS_OK) return snprintf(c->outcome, sizeof(c->outcome), "%.*s", (int)address.len, address.at) > 0;
    size_t at = strlen(c->outcome);
    (void)snprintf(c->outcome + at, sizeof(c->outcome) - at, "%s%.*s: %s", at ? "; " : "", (int)address.len, address.at, connect_words(s));
    c->nc = NULL;
    return false;
}

/* The connecting thread: each server in turn. */
static void *connect_thread(void *arg) {
    struct conn *c = arg;
    const char *servers = get(c->settings, "cluster_uris");
    struct span server;
    bool up = false;
    c->outcome[0] = 0;
    for (size_t n = 0; !up && list_item(servers, n, &server); n++) up = connect_to(c, server);
    nats_ReleaseThreadMemory();
    atomic_store(&c->report, up ? REPORT_UP : REPORT_FAILED);
    wake_loop();
    return NULL;
}

/* When to try again after so many failures in a row: the pause doubles, and is between half of that and all of it, so that
 * 10,000 gateways do not come back at once. */
static uint64_t retry_at(unsigned failures) {
    uint32_t pause = MIN((uint32_t)RETRY_MIN_MS << MIN(failures, 10), (uint32_t)RETRY_MAX_MS);
    return now + pause / 2 + randombytes_uniform(pause / 2 + 1);
}

static void conn_wait(struct conn *c) {
    c->state = CONN_WAITING;
    c->due_ms = retry_at(c->failures++);
}

/* A connection begins with small blocks that nats.c cannot do without: it would end the process (natsConn_create). */
static bool conn_may_start(struct conn *c) {
    if (c->vital || arena_spares(ARENA_PER_LINK, ARENA_PER_LINK / 2, 0)) return true;
    (void)snprintf(c->trouble, sizeof(c->trouble), "memory is short");
    conn_wait(c);
    say(&c->topic, LEVEL_WARN, "not connected yet: %s", c->trouble);
    return false;
}

static void conn_connect(struct conn *c) {
    pthread_t thread;
    if (!conn_may_start(c)) return;
    c->nc = NULL;
    c->fd = -1;
    c->state = CONN_CONNECTING;
    atomic_store(&c->report, REPORT_NONE);
    atomic_store(&c->closed, false);
    atomic_store(&c->wants_write, false);
    int e = pthread_create(&thread, NULL, connect_thread, c);
    if (e) return say(&c->topic, LEVEL_ERROR, "cannot start a thread to connect: %s", strerror(e)), conn_wait(c);
    pthread_detach(thread);
}

/* What makes inboxes one of a kind: 60 random bits in base32. Inboxes are short, because nats.c, each server on the way and the
 * host look at every byte of them in every message. */
enum { SECRET_LEN = 12 };

/* The kernel gives the first seed; from each seed come bytes for many secrets and the next seed, since a system call for each
 * secret would cost as much as all else that is ours in a call. */
static void secret_make(char out[SECRET_LEN]) {
    static struct { uint8_t seed[randombytes_SEEDBYTES], bytes[128 * SECRET_LEN]; } pool;
    static size_t left = SIZE_MAX;
    if (left == SIZE_MAX) randombytes_buf(pool.seed, sizeof(pool.seed)), left = 0;
    if (left == 0) {
        uint8_t seed[randombytes_SEEDBYTES];
        memcpy(seed, pool.seed, sizeof(seed));
        randombytes_buf_deterministic(&pool, sizeof(pool), seed);
        left = sizeof(pool.bytes);
    }
    for (size_t i = 0; i < SECRET_LEN; i++) out[i] = base32_digits[pool.bytes[--left] & 31];
}

/* An inbox that nobody else has. Returns its length. */
static size_t inbox_make(char out[INBOX_MAX], const char *prefix) {
    char secret[SECRET_LEN];
    secret_make(secret);
    return (size_t)snprintf(out, INBOX_MAX, "%s.%.*s.c.", prefix, SECRET_LEN, secret);
}

/* The kind of inbox of ours that a subject is in, 'c' or 'p'; or 0. */
static char inbox_kind(const struct conn *c, const char *subject) {
    return strncmp(subject, c->inbox, c->inbox_len - 2) == 0 && subject[c->inbox_len - 1] == '.' ? subject[c->inbox_len - 2] : 0;
}

/* Begins to connect, for good. The caller has set what is constant; settings now belong to the connection. */
static void conn_start(struct conn *c) {
    const char *prefix = get(c->settings, "custom_inbox_prefix"), *ping = get(c->settings, "ping_interval_sec");
    c->inbox_len = inbox_make(c->inbox, prefix ? prefix : "_INBOX");
    c->ping_ms = ping ? strtoull(ping, NULL, 10) * 1000 : PING_INTERVAL_S_DEFAULT * 1000;
    conn_connect(c);
}

/* Whether a large message may come; see deps/guard.h. Those of the lattice go before. */
static bool takes_message(void *user, size_t bytes) {
    return bytes <= BLOCK_MAX && (((struct conn *)user)->vital || arena_spares(2 * bytes, bytes, 0));
}

/* What an INFO of the server may have changed. (One that takes 0 bytes takes none.) */
static void conn_learn(struct conn *c) { c->io.max_payload = (size_t)MIN(MAX(natsConnection_GetMaxPayload(c->nc), 1), INT32_MAX); }

/* Reads what has come. If the connection ends so, what nats.c says of it on this thread tells more than what it keeps. */
static void conn_read(struct conn *c) {
    natsStatus s = NATS_OK;
    const char *text = NULL;
    guard_watch(&c->io.guard);
    natsConnection_ProcessReadEvent(c->nc);
    guard_watch(NULL);
    conn_learn(c);
    if (c->io.guard.wrong) c->io.broken = c->io.guard.wrong;
    c->io.heard_ms = now;
    c->io.more = !atomic_load(&c->closed) && tls_has_input(c->fd);
    if (!atomic_load(&c->closed) || natsConnection_GetLastError(c->nc, &text) != NATS_IO_ERROR) return;
    text = without_place(nats_GetLastError(&s));
    if (s == NATS_IO_ERROR && text) (void)snprintf(c->trouble, sizeof(c->trouble), "%s", text);
}

/* Every message of a connection comes through here, and is gone when this returns. */
static void on_filter(natsConnection *nc, natsMsg **msg, void *user) {
    struct conn *c = user;
    natsMsg *m = *msg;
    (void)nc;
    *msg = NULL;
    const char *subject = natsMsg_GetSubject(m);
    if (inbox_kind(c, subject) == 'c' && strcmp(subject + c->inbox_len, "echo") == 0) c->io.echoed = true;
    else if (!c->io.broken) c->on_message(c, m);
    natsMsg_free(m);
}

/* Ends subscriptions: all, or all but the one to the inbox of calls, which means no new work while answers still come. */
static void conn_unsubscribe(struct conn *c, bool all) {
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (net.subs[i].of != c) continue;
        const char *subject = natsSubscription_GetSubject(net.subs[i].sub); /* NULL: it ended with its connection */
        if (!all && (!subject || inbox_kind(c, subject) == 'c')) continue;
        natsSubscription_Destroy(net.subs[i].sub);
        net.subs[i].of = NULL;
    }
}

/* Closes without waiting: nats.c would flush for up to 500 ms, so the socket is shut down, and it finds that out first. */
static void conn_close(struct conn *c) {
    (void)shutdown(c->fd, SHUT_RDWR);
    if (natsConnection_Buffered(c->nc) > 0) natsConnection_ProcessWriteEvent(c->nc);
    natsConnection_Close(c->nc);
    if (!c->io.broken) c->io.broken = "closed"; /* no message counts from here on */
    guard_end(&c->io.guard, c->nc);
    conn_unsubscribe(c, true);
    natsConnection_Destroy(c->nc);
    natsConnection_ProcessCloseEvent(&c->fd);
    c->nc = NULL;
    c->state = CONN_OFF;
    net.up--;
}

static bool conn_subscribe(struct conn *c, const char *subject, const char *queue) {
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (net.subs[i].of) continue;
        natsStatus s = queue ? natsConnection_QueueSubscribeSync(&net.subs[i].sub, c->nc, subject, queue)
                             : natsConnection_SubscribeSync(&net.subs[i].sub, c->nc, subject);
        if (s != NATS_OK) {
            say(&c->topic, LEVEL_ERROR, "cannot subscribe to %s: %s", subject, natsStatus_GetText(s));
            c->io.broken = "it could not subscribe"; /* else it would stand, and hear nothing for ever */
            return false;
        }
        net.subs[i].of = c;
        return true;
    }
    return false;
}

static void conn_came_up(struct conn *c) {
    char inbox[INBOX_MAX + 2], pulled[INBOX_MAX];
    c->state = CONN_UP;
    c->times_up++;
    memset(&c->io, 0, sizeof(c->io));
    c->io.up_ms = c->io.heard_ms = now;
    c->io.capacity = IO_BUFFER;
    conn_learn(c);
    c->io.guard = (struct guard){.takes = takes_message, .user = c};
    c->trouble[0] = 0;
    net.up++;
    natsConn_setFilterWithClosure(c->nc, on_filter, c);
    say(&c->topic, LEVEL_INFO, "connected to %s", c->outcome);
    (void)snprintf(inbox, sizeof(inbox), "%s>", c->inbox);
    (void)conn_subscribe(c, inbox, NULL);
    (void)snprintf(pulled, sizeof(pulled), "%.*sp.>", (int)c->inbox_len - 2, c->inbox);
    if (c->pulls) (void)conn_subscribe(c, pulled, NULL);
    c->on_up(c);
}

static void conn_went_down(struct conn *c) {
    const char *text = NULL;
    (void)natsConnection_GetLastError(c->nc, &text);
    if (c->io.broken || !*c->trouble) /* else conn_read() has said it */
        (void)snprintf(c->trouble, sizeof(c->trouble), "%s", c->io.broken ? c->io.broken : text && *text ? text : "the server closed it");
    conn_close(c);
    if (now - c->io.up_ms >= RETRY_MAX_MS / 3) c->failures = 0;
    say(&c->topic, LEVEL_WARN, "connection lost: %s", c->trouble);
    conn_wait(c);
    if (c->on_down) c->on_down(c, c->trouble);
}

/* Bytes of messages that wait in nats.c's write buffer. To ask nats.c would take a lock each time. */
static size_t conn_waiting(const struct conn *c) { return (size_t)(c->io.given - c->io.written); }

/* Writes what waits, as much as the socket takes. Asks the flag first: with nothing to write, nats.c would send 0 bytes
 * and take the result for the end of the connection. In a loop that is not nats.c's, nothing else writes. */
static void conn_write(struct conn *c) {
    if (c->state != CONN_UP || c->io.blocked || c->io.broken || !atomic_load(&c->wants_write)) return;
    natsConnection_ProcessWriteEvent(c->nc);
    if (atomic_load(&c->closed)) return; /* what became of the bytes, nobody knows */
    c->io.blocked = atomic_load(&c->wants_write);
    uint64_t left = c->io.blocked ? (uint64_t)natsConnection_Buffered(c->nc) : 0; /* what nats.c wrote by itself (PONG) is in it, too */
    c->io.written = MAX(c->io.written, c->io.given - MIN(left, c->io.given));
}

enum posted { POSTED, POST_DOWN, POST_FULL, POST_TOO_LARGE, POST_FAILED };
static const char *const posted_words[] = {
    "", "the connection to the server is down", "the server reads too slowly, or memory is short",
    "maximum payload exceeded: the server takes no message of this size", "out of memory",
};

/* The header block of a message, as it goes over the wire: NATS/1.0, a status perhaps, and "key: value" lines; or nothing. It
 * stands before the data, with a NUL between (nats.c, msg.c: one block holds all of a message). nats.c's own functions would make
 * a hash table of it, which is 5 blocks and a fifth of all instructions of a publish. protocol: NATS, ADR-4. */
static struct span headers_of(natsMsg *msg) {
    size_t len = (size_t)natsMsgHeader_encodedLen(msg);
    return (struct span){natsMsg_GetData(msg) - 1 - len, len};
}

struct header { const char *key, *value; };  /* value NULL: there is none */
enum { HEADERS_MAX = 4 };

/* The value in a header's line if it has this key, or NULL. */
static char *value_in(char *line, const char *key) {
    while (*key && *line == *key) line++, key++;
    if (*key || *line++ != ':') return NULL;
    while (*line == ' ' || *line == '\t') line++;
    return line;
}

/* Fills in the values of the headers that are asked for. Their ends are marked in place: the message is ours, and gone soon. */
static void read_headers(natsMsg *msg, struct header wanted[HEADERS_MAX]) {
    struct span block = headers_of(msg);
    char *line = (char *)block.at, *past = line + block.len, *end;
    for (; line < past && *line != '\r' && (end = memchr(line, '\n', (size_t)(past - line))); line = end + 1) {
        for (struct header *h = wanted; h < wanted + HEADERS_MAX && h->key; h++) {
            char *value = h->value ? NULL : value_in(line, h->key);
            if (!value) continue;
            end[-(end[-1] == '\r')] = 0;
            h->value = value;
        }
    }
}

/* What the server itself says in place of a message, such as "503" with no words; all is empty in a message of anybody's. */
struct status { struct span code, words; };

static struct status status_of(natsMsg *msg) {
    struct span block = headers_of(msg);
    const char *code = block.at + strlen("NATS/1.0 "), *end = memchr(block.at, '\r', block.len);
    if (!end || end < code + 3 || strncmp(block.at, "NATS/1.0 ", 9) != 0) return (struct status){0};
    const char *words = code + 3 + (code[3] == ' ');
    return (struct status){{code, 3}, {words, (size_t)(end - words)}};
}

static bool span_is(struct span s, const char *text) { return strlen(text) == s.len && (s.len == 0 || memcmp(s.at, text, s.len) == 0); }

/* Nobody listens to the subject that a message of ours was sent to. */
static bool is_no_responders(natsMsg *msg) { return natsMsg_GetDataLength(msg) == 0 && span_is(status_of(msg).code, "503"); }

/* The size of a header block. protocol: NATS, ADR-4. */
static size_t headers_size(const struct header *headers) {
    size_t n = 0;
    for (size_t i = 0; headers && i < HEADERS_MAX && headers[i].key; i++)
        if (headers[i].value) n += strlen(headers[i].key) + strlen(headers[i].value) + 4;
    return n ? n + 12 : 0; /* NATS/1.0\r\n … \r\n */
}

/* Writes headers_size() bytes. */
static void headers_write(char *at, const struct header *headers) {
    at = mempcpy(at, "NATS/1.0\r\n", 10);
    for (size_t i = 0; i < HEADERS_MAX && headers[i].key; i++) {
        if (!headers[i].value) continue;
        at = mempcpy(at, headers[i].key, strlen(headers[i].key));
        at = mempcpy(at, ": ", 2);
        at = mempcpy(at, headers[i].value, strlen(headers[i].value));
        at = mempcpy(at, "\r\n", 2);
    }
    (void)mempcpy(at, "\r\n", 2);
}

/* A message with headers, of which `head` is headers_size(). NULL: no memory. */
static natsMsg *message_make(struct span subject, struct span reply, const struct header *headers, size_t head, const void *data, size_t len) {
    natsMsg *msg = NULL;
    natsStatus s = natsMsg_createWithPadding(&msg, subject.at, (int)subject.len, reply.at, (int)reply.len, NULL, (int)(head + len), 0, (int)head);
    if (s != NATS_OK) return NULL;
    headers_write((char *)headers_of(msg).at, headers);
    if (len) memcpy((char *)natsMsg_GetData(msg), data, len);
    return msg;
}

/* Whether nats.c's write buffer, which grows and never shrinks, may take this many bytes more. */
static bool conn_has_room(struct conn *c, size_t bytes) {
    size_t wanted = conn_waiting(c) + bytes;
    if (wanted > c->write_max + (bytes < 4096 ? 64 * 1024 : 0)) return false; /* small answers get through for longer */
    if (wanted <= c->io.capacity) return true;
    if (!arena_spares(wanted + wanted / 8, wanted + wanted / 8, net.up > LINKS_MAX ? 0 : LINKS_MAX + 1 - net.up)) return false;
    c->io.capacity = wanted + wanted / 10;
    return true;
}

/* Whether a connection takes a message of so many bytes, with `all` that goes with it in the protocol. */
static enum posted conn_takes(struct conn *c, size_t payload, size_t all) {
    if (c->state != CONN_UP || c->io.broken || atomic_load(&c->closed)) return POST_DOWN;
    if (payload > c->io.max_payload) return POST_TOO_LARGE;
    if (conn_has_room(c, all)) return POSTED;
    conn_write(c); /* the socket may take what is in the way */
    return conn_has_room(c, all) ? POSTED : POST_FULL;
}

static const struct span NOWHERE = {0}; /* a message that wants no reply */

static size_t digits_of(size_t n) {
    size_t digits = 1;
    for (size_t limit = 10; n >= limit; limit *= 10) digits++;
    return digits;
}

/* The bytes of a message in the protocol, from the lengths of its parts. protocol: NATS, PUB and HPUB. */
static size_t wire_size(size_t subject, size_t reply, size_t head, size_t len) {
    size_t line = strlen("PUB ") + subject + 1 + (reply ? reply + 1 : 0) + digits_of(head + len) + 2;
    return line + (head ? 1 + digits_of(head) + 1 : 0) + head + len + 2;
}

/* The last step of post(). */
static enum posted hand_over(struct conn *c, struct span subject, struct span reply, natsMsg *with_headers, const void *data, size_t len) {
    natsStatus s = with_headers ? natsConnection_PublishMsg(c->nc, with_headers)
                   : reply.at ? natsConnection_PublishRequest(c->nc, subject.at, reply.at, data, (int)len)
                              : natsConnection_Publish(c->nc, subject.at, data, (int)len);
    if (s == NATS_OK) return POSTED;
    if (s != NATS_NO_MEMORY) return s == NATS_MAX_PAYLOAD ? POST_TOO_LARGE : POST_DOWN;
    /* nats.c may have buffered half of a message, and the next bytes would be read as part of it: nothing of this
     * connection may be written any more (nats.c, pub.c) */
    c->io.broken = "out of memory in the middle of a message";
    return POST_FAILED;
}

/* Gives a message to nats.c, which writes it when the loop says so. Subjects were checked, and have a NUL behind them; there
 * may be no reply and no headers. For what finds no memory the connection is POST_FULL, and stands: nats.c has none of it. So
 * the copy with headers comes first, and then the question whether there is memory for the write buffer, too. */
static enum posted post(struct conn *c, struct span subject, struct span reply, const struct header *headers,
                        const void *data, size_t len) {
    size_t head = headers_size(headers);
    size_t all = wire_size(subject.len, reply.len, head, len);
    natsMsg *msg = head ? message_make(subject, reply, headers, head, data, len) : NULL;
    enum posted p = head && !msg ? POST_FULL : conn_takes(c, len + head, all);
    if (p == POSTED) p = hand_over(c, subject, reply, msg, data, len);
    natsMsg_free(msg);
    if (p == POSTED) c->io.given += all;
    return p;
}

/* Sends a message to ourselves: when it has come back (c->io.echoed), the server has read all that was written before. */
static void conn_ask_echo(struct conn *c) {
    char subject[INBOX_MAX + 8];
    (void)snprintf(subject, sizeof(subject), "%secho", c->inbox);
    c->io.echoed = false;
    (void)post(c, span_of(subject), NOWHERE, NULL, NULL, 0);
}

/* After ping_ms of silence asks for a sign of life, by a message to ourselves; after twice that gives the connection up.
 * Any byte counts, so a connection that is busy is never asked. */
static void conn_check_life(struct conn *c) {
    uint64_t silent = now - MIN(now, c->io.heard_ms);
    if (silent >= 2 * c->ping_ms) c->io.broken = "silent for two ping intervals, though it was asked for a sign of life";
    if (silent < c->ping_ms || c->io.asked_ms > c->io.heard_ms) return;
    c->io.asked_ms = now;
    conn_ask_echo(c);
}

static void conn_step_up(struct conn *c) {
    const char *text = NULL;
    if (atomic_exchange(&c->server_error, false) && natsConnection_GetLastError(c->nc, &text) && text && *text && !strstr(text, "\"$SRV."))
        say(&c->topic, LEVEL_ERROR, "the server says: %s", text);
    conn_check_life(c);
    if (c->io.broken || atomic_load(&c->closed)) conn_went_down(c);
}

static void conn_step_connecting(struct conn *c) {
    int told = atomic_load(&c->report);
    if (told == REPORT_UP) conn_came_up(c);
    if (told != REPORT_FAILED) return;
    memcpy(c->trouble, c->outcome, sizeof(c->trouble));
    conn_wait(c);
    say(&c->topic, c->failures > 6 ? LEVEL_DEBUG : LEVEL_WARN, "cannot connect to %s; next try in %" PRIu64 " ms", c->trouble, c->due_ms - now);
}

static unsigned conn_reconnects(const struct conn *c) { return c->times_up ? c->times_up - 1 : 0; }

/* When conn_step() has something to do by itself: to try again, to ask for a sign of life, to give up waiting for one. */
static uint64_t conn_next_ms(const struct conn *c) {
    if (c->state == CONN_WAITING) return c->due_ms;
    return c->state == CONN_UP ? c->io.heard_ms + (c->io.asked_ms > c->io.heard_ms ? 2 : 1) * c->ping_ms : UINT64_MAX;
}

/* One step of the state machine above; called on every turn of the loop. */
static void conn_step(struct conn *c) {
    if (c->state == CONN_UP) conn_step_up(c);
    else if (c->state == CONN_CONNECTING) conn_step_connecting(c);
    else if (c->state == CONN_WAITING && now >= c->due_ms) conn_connect(c);
}

/*
 * ---- 6 links ---------------------------------------------------------------------------------------------------------
 *
 * A link joins one component to this provider under a name. If the provider is its *source*, the component's handle-message
 * is called for each message of its subscriptions: a handler link. If the provider is its *target*, the component publishes
 * and requests: a consumer link. What it leaves out in its configuration and secrets stands in the provider's. The merged
 * settings are what a connection is made of, so a change is noticed by comparing them.
 *
 * In:  JSON of the host. Out: a table of links, found by identity or by component and name. Touches: the table.
 */
enum { ID_MAX = 128, LINK_SLOTS = LINKS_MAX + LINKS_LEAVING_MAX };

/* What became of messages and calls. Handler links: received = all of the others + those that are open. */
enum count { RECEIVED, HANDLED, ERROR, TRAP, TIMEOUT, DROPPED, RETURNED, /* consumer links: */ CALLS, OK, FAILED, COUNTS };
static const char *const count_names[] = {"received", "handled", "error", "trap", "timeout", "dropped", "returned", "calls", "ok", "failed"};

/* How calls of a function went: a handler link has handle-message, a consumer link the other two. */
enum function { PUBLISH, REQUEST, HANDLE_MESSAGE, FUNCTIONS };
static const char *const function_names[] = {"publish", "request", "handle-message"};
struct tally {
    uint64_t calls, errors, us;  /* that ended, that ended without success, their time in all */
    char last_error[120];        /* in words, printable ASCII */
};

/* A pull consumer of JetStream, from which a handler link takes messages: see room 9. */
struct consumer {
    struct link *link;
    const char *stream, *name;          /* in the link's `consumers` */
    uint64_t max_messages, max_bytes;   /* of one request, as the link wants it */
    enum { CONSUMER_UNKNOWN, CONSUMER_ASKED, CONSUMER_READY } state;
    uint64_t batch, bytes, expires_ms;  /* of one request, as the consumer allows it */
    uint64_t ack_wait_ms, max_deliver;  /* of the consumer; max_deliver 0: no limit */
    uint32_t question;                  /* number of the last question, in the inbox for its answers */
    unsigned wanted;                    /* messages that the request under way is still to bring; 0: none is under way */
    bool brought;                       /* it brought some */
    unsigned open;                      /* slots that its messages hold */
    uint64_t due_ms;                    /* UNKNOWN: when to ask; else: when to give up waiting for a sign of it */
    unsigned failures;                  /* in a row */
    char trouble[128];                  /* why it gives no messages, or "" */
};

struct link {
    struct conn conn;          /* first, so that a connection's callbacks find their link */
    bool used, is_handler;
    bool leaving, replaced;    /* leaving: deleted or replaced, until its calls have ended */
    bool stale;                /* its settings changed, but there was no slot to start it anew */
    bool subscribed;           /* it has subscriptions */
    bool overloaded;           /* its component had all that it may have, or messages waited */
    char component[ID_MAX], name[ID_MAX];
    json_t *definition;        /* normalised, see read_definition() */
    char wrong[256];           /* why it cannot be served as it is, or "" */
    uint64_t leave_by_ms;

    char subject[3 * ID_MAX];  /* handler links: where the component's host listens for our calls */
    uint64_t max_in_flight, handler_timeout_ms;

    json_t *consumers_json;    /* what `consumers` holds; the table's strings are in it */
    struct consumer consumers[CONSUMERS_PER_LINK];
    size_t consumer_count;

    /* kept by the rooms of calls */
    uint64_t counts[COUNTS];
    struct tally tallies[FUNCTIONS];
    unsigned calls;            /* slots it holds */
    unsigned with_component;   /* of them, messages that the component has */
    unsigned unsettled;        /* of them, CALL_OUT and CALL_HELD: writing may bring them on */
    struct record *backlog, *backlog_last;  /* messages that the component cannot have yet, oldest first */
    unsigned waiting;          /* how many those are */
    struct call *kept;         /* messages of consumers that the component cannot have yet: CALL_KEPT, the oldest first */
    unsigned absences;         /* how often in a row nobody ran the component */
    uint64_t absent_until_ms;  /* when to try it again */
    size_t held;               /* bytes of records: backlog, and parameters of its calls */
    uint64_t pause_until_ms, next_pause_ms;
};

static struct link links[LINK_SLOTS];
static size_t links_fresh; /* slots from this one on were never used: nobody looks at them, and their memory is not touched */
#define EACH_FUNCTION(f, l) for (enum function f = (l)->is_handler ? HANDLE_MESSAGE : PUBLISH; f <= ((l)->is_handler ? HANDLE_MESSAGE : REQUEST); f++)
#define EACH_LINK(l) for (struct link *l = links; l < links + links_fresh; l++) if (l->used)

/* What this provider was started as, from the host data. Config, links, refused and stopping change later, in room 11. */
static struct {
    char host_id[ID_MAX], lattice[ID_MAX], key[ID_MAX];
    json_t *config, *secrets;  /* defaults for every link; config may be updated */
    json_t *links;             /* of the host data, until the lattice is up */
    char refused[400];         /* the last link that found no place, in words, or "" */
    bool stopping;             /* no new work */
    struct topic topic;        /* for log lines about no link in particular */
} self = {.topic = {.kind = "provider"}};

static bool is_token(const char *text) { return text && strlen(text) < ID_MAX && is_subject(span_of(text), false) && !strpbrk(text, ".*>"); }

/* Which keys there are. Those for handler links only are not taken from the defaults by consumer links. */
static const struct { const char *key; bool handler_only; } setting_keys[] = {
    {"cluster_uris", false}, {"client_jwt", false}, {"client_seed", false}, {"tls_ca", false}, {"tls_ca_file", false},
    {"tls_cert", false}, {"tls_key", false}, {"tls_first", false}, {"ping_interval_sec", false},
    {"custom_inbox_prefix", false}, {"subscriptions", true}, {"consumers", true}, {"max_in_flight", true},
    {"handler_timeout_ms", true},
};

/* The value of a key: a secret comes before configuration, and the link's own before the defaults. New reference or NULL. */
static json_t *find_setting(const json_t *definition, const char *key) {
    const json_t *secrets[] = {json_object_get(definition, "secrets"), self.secrets};
    const json_t *configs[] = {json_object_get(definition, "config"), self.config};
    for (size_t i = 0; i < 2; i++) {
        json_t *value = secret_text(json_object_get(secrets[i], key));
        if (value) return value;
        value = json_object_get(configs[i], key);
        if (json_is_string(value)) return json_incref(value);
    }
    return NULL;
}

/* Puts the value of key `from` into the settings as `key`, unless it is empty. */
static void take_setting(json_t *settings, const char *key, const json_t *definition, const char *from) {
    json_t *value = find_setting(definition, from);
    size_t len = json_string_length(value);
    while (len > 0 && isspace((unsigned char)json_string_value(value)[len - 1])) len--; /* secrets often end with a newline */
    if (len > 0) json_object_set_new(settings, key, json_stringn(json_string_value(value), len));
    json_decref(value);
}

static json_t *merge_settings(const json_t *definition, bool is_handler) {
    json_t *settings = json_object();
    for (size_t i = 0; i < COUNT_OF(setting_keys); i++)
        if (is_handler || !setting_keys[i].handler_only)
            take_setting(settings, setting_keys[i].key, definition, setting_keys[i].key);
    const json_t *own = json_object_get(definition, "config"), *own_secrets = json_object_get(definition, "secrets");
    if (json_object_get(own, "tls_ca_file") && !json_object_get(own, "tls_ca") && !json_object_get(own_secrets, "tls_ca"))
        json_object_del(settings, "tls_ca"); /* the link's own file, not the text that others use */
    if (!get(settings, "cluster_uris")) json_object_set_new(settings, "cluster_uris", json_string("nats://127.0.0.1:4222"));
    return settings;
}

static bool has_pem(const json_t *settings, const char *key) { return !get(settings, key) || strstr(get(settings, key), "-----BEGIN "); }

/* Whether nats.c may write this into its CONNECT, where it stands as it is: nothing that could end a line or a JSON string. */
static bool is_plain(struct span text) {
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.at[i] <= ' ' || text.at[i] == '"' || text.at[i] == '\\') return false;
    return true;
}

/* One of cluster_uris: nats:// or tls://, or no scheme. */
static bool is_server(struct span url) {
    struct span address = url_address(url);
    const char *scheme = memmem(url.at, url.len, "://", 3), *port = memrchr(address.at, ':', address.len);
    if (url.len > 1000 || address.len == 0 || !is_plain(url)) return false;
    if (port && address.at[address.len - 1] != ']' && strtoul(port + 1, NULL, 10) > 65535) return false;
    return !scheme || strncasecmp(url.at, "nats://", 7) == 0 || strncasecmp(url.at, "tls://", 6) == 0;
}

static bool are_servers(const char *list) {
    size_t n = 0;
    for (struct span server; list_item(list, n, &server); n++)
        if (!is_server(server)) return false;
    return n > 0;
}

/* One of subscriptions, "subject" or "subject|queue". Returns false if it is neither. */
static bool split_subscription(struct span item, struct span *subject, struct span *queue) {
    const char *bar = memchr(item.at, '|', item.len);
    *subject = (struct span){item.at, bar ? (size_t)(bar - item.at) : item.len};
    *queue = bar ? (struct span){bar + 1, item.len - subject->len - 1} : (struct span){0};
    return is_subject(*subject, true) && is_utf8(*subject) && (!bar || is_subject(*queue, false));
}

static bool are_subscriptions(const char *list, size_t *count) {
    struct span item, subject, queue;
    for (*count = 0; list && list_item(list, *count, &item); ++*count)
        if (!split_subscription(item, &subject, &queue)) return false;
    return *count <= SUBSCRIPTIONS_MAX;
}

/* One of consumers. Names are tokens, short enough that the subject of an acknowledgement, which has both and five numbers,
 * is one that we keep (INBOX_MAX). */
static bool is_consumer(const json_t *item) {
    const char *stream = get(item, "stream"), *name = get(item, "consumer");
    const json_t *most = json_object_get(item, "max_messages"), *bytes = json_object_get(item, "max_bytes");
    if (!is_token(stream) || !is_token(name) || strlen(stream) + strlen(name) >= INBOX_MAX / 2) return false;
    return (!most || json_integer_value(most) > 0) && (!bytes || json_integer_value(bytes) > 0);
}

static bool same_consumer(const json_t *a, const json_t *b) {
    return strcmp(get(a, "stream"), get(b, "stream")) == 0 && strcmp(get(a, "consumer"), get(b, "consumer")) == 0;
}

/* What is wrong with a list of consumers, or NULL. */
static const char *wrong_consumers(const json_t *list) {
    size_t i;
    const json_t *item;
    if (!json_is_array(list)) return "consumers is no JSON list";
    if (json_array_size(list) > CONSUMERS_PER_LINK) return "consumers has more than CONSUMERS_PER_LINK entries";
    json_array_foreach(list, i, item) {
        if (!is_consumer(item)) return "consumers has an entry that is not like {\"stream\":\"…\",\"consumer\":\"…\",\"max_messages\":1,\"max_bytes\":1}";
        for (size_t j = 0; j < i; j++)
            if (same_consumer(item, json_array_get(list, j))) return "consumers names one twice";
    }
    return NULL;
}

static json_t *read_consumers(const json_t *settings) { return json_loads(get(settings, "consumers") ? get(settings, "consumers") : "[]", 0, NULL); }

/* The keys whose values are numbers, and their bounds. */
static const struct number { const char *key; uint64_t low, high, missing; const char *wrong; } numbers[] = {
    {"ping_interval_sec", 1, 86400, PING_INTERVAL_S_DEFAULT, "ping_interval_sec is no number from 1 to 86400"},
    {"max_in_flight", 1, CALLS_MAX / 2, MAX_IN_FLIGHT_DEFAULT, "max_in_flight is no number from 1 to half of CALLS_MAX"},
    {"handler_timeout_ms", 1, 86400000, HANDLER_TIMEOUT_MS_DEFAULT, "handler_timeout_ms is no number from 1 to 86400000"},
};
enum { PING_INTERVAL_SEC, MAX_IN_FLIGHT, HANDLER_TIMEOUT_MS };

/* A whole number of the settings, or the default where the key is missing. False: it is none, or out of its bounds. */
static bool number_of(const json_t *settings, const struct number *which, uint64_t *n) {
    const char *text = get(settings, which->key);
    char *end = NULL;
    *n = which->missing;
    if (!text) return true;
    errno = 0;
    *n = strtoull(text, &end, 10);
    return isdigit((unsigned char)*text) && *end == 0 && errno == 0 && *n >= which->low && *n <= which->high;
}

static const char *wrong_numbers(const json_t *s) {
    uint64_t n;
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (!number_of(s, &numbers[i], &n)) return numbers[i].wrong;
    return NULL;
}

static const char *wrong_credentials(const json_t *s) {
    const char *jwt = get(s, "client_jwt"), *seed = get(s, "client_seed");
    if (!jwt != !seed) return "client_jwt and client_seed belong together: give both or neither";
    if (seed && !nkey_seed(span_of(seed), SEED_OF_USER, NULL)) return "client_seed is no seed of a user (SU…)";
    return jwt && !is_plain(span_of(jwt)) ? "client_jwt is no JWT" : NULL;
}

static const char *wrong_tls(const json_t *s) {
    if (!has_pem(s, "tls_ca") || !has_pem(s, "tls_cert") || !has_pem(s, "tls_key")) return "tls_ca, tls_cert or tls_key is no PEM text";
    return !get(s, "tls_cert") != !get(s, "tls_key") ? "tls_cert and tls_key belong together: give both or neither" : NULL;
}

static const char *wrong_subjects(const json_t *s) {
    size_t count;
    const char *prefix = get(s, "custom_inbox_prefix");
    if (!are_servers(get(s, "cluster_uris"))) return "cluster_uris is no list of nats:// or tls:// URLs";
    if (prefix && (strlen(prefix) > ID_MAX || !is_subject(span_of(prefix), false))) return "custom_inbox_prefix is no subject";
    if (!are_subscriptions(get(s, "subscriptions"), &count)) return "subscriptions is no list of subject or subject|queue, or it is too long";
    return NULL;
}

/* What makes these settings unusable, as half a sentence; or NULL. */
static const char *wrong_settings(const json_t *s) {
    json_t *consumers = read_consumers(s);
    const char *why = wrong_subjects(s) ?: wrong_credentials(s) ?: wrong_tls(s) ?: wrong_numbers(s) ?: wrong_consumers(consumers);
    json_decref(consumers);
    return why;
}

static const char *const link_ids[] = {"source_id", "target", "name", "wit_namespace", "wit_package"};

/* What a link is identified by, in one form whatever the host's version. */
static json_t *read_identity(const json_t *link) {
    json_t *id = json_object();
    for (size_t i = 0; i < COUNT_OF(link_ids); i++) {
        const char *text = get(link, link_ids[i]);
        json_object_set_new(id, link_ids[i], json_string(text && *text ? text : i == 2 ? "default" : ""));
    }
    return id;
}

/* The secrets of our side of a link, opened: an object, empty if there are none or if they cannot be opened, and why. */
static json_t *read_secrets(const json_t *sealed, const char **why) {
    json_t *secrets = NULL;
    size_t len = 0;
    *why = "";
    if (!sealed || json_is_null(sealed) || (json_is_array(sealed) && json_array_size(sealed) == 0)) return json_object();
    uint8_t *bytes = json_is_array(sealed) ? bytes_of_json(sealed, &len) : NULL;
    *why = "its secrets are no list of bytes";
    if (bytes) secrets = box_open(bytes, len, why);
    if (secrets) *why = "";
    free(bytes);
    return secrets ? secrets : json_object();
}

static bool is_our_key(const char *text) { return text && strcmp(text, self.key) == 0; }

/* A host's link, as JSON: {"id": {source_id, target, name, wit_namespace, wit_package}, "config": {…}, "secrets": {…}}, with the
 * configuration and the opened secrets of our side. Returns NULL and why if it is no link of ours; if its secrets cannot be
 * opened, "wrong" says why. protocol: wasmCloud, crates/core, link.rs. */
static json_t *read_definition(const json_t *link, bool *is_handler, const char **why) {
    static const char *const config_keys[] = {"target_config", "source_config"}, *const secrets_keys[] = {"target_secrets", "source_secrets"};
    const char *source = get(link, "source_id"), *target = get(link, "target"), *name = get(link, "name");
    *is_handler = is_our_key(source);
    *why = "neither its source_id nor its target is this provider";
    if (!*is_handler && !is_our_key(target)) return NULL;
    *why = "its component or its name does not fit into a subject";
    if (!is_token(*is_handler ? target : source) || (name && strlen(name) >= ID_MAX)) return NULL;
    const json_t *config = json_object_get(link, config_keys[*is_handler]);
    json_t *secrets = read_secrets(json_object_get(link, secrets_keys[*is_handler]), why);
    return json_pack("{s:o, s:s, s:o, s:o}", "id", read_identity(link), "wrong", *why,
                     "config", json_is_object(config) ? json_deep_copy(config) : json_object(), "secrets", secrets);
}

static const char *link_id(const json_t *definition, const char *key) { return get(json_object_get(definition, "id"), key); }

static struct link *link_with_id(const json_t *definition) {
    EACH_LINK(l) if (!l->leaving && json_equal(json_object_get(l->definition, "id"), json_object_get(definition, "id"))) return l;
    return NULL;
}

/* The consumer link by which a component calls. */
static struct link *link_of(const char *component, const char *name) {
    EACH_LINK(l)
        if (!l->leaving && !l->is_handler && strcmp(l->component, component) == 0 && strcmp(l->name, name) == 0) return l;
    return NULL;
}

static const char *link_label(const json_t *json, char out[300]) {
    const char *source = get(json, "source_id"), *target = get(json, "target"), *name = get(json, "name");
    (void)snprintf(out, 300, "%.80s -> %.80s (%.80s)", source ? source : "?", target ? target : "?", name ? name : "default");
    return out;
}

/* The table of consumers, from settings that were found right. */
static void link_fill_consumers(struct link *l) {
    size_t i;
    const json_t *item;
    l->consumers_json = read_consumers(l->conn.settings);
    json_array_foreach(l->consumers_json, i, item)
        l->consumers[i] = (struct consumer){.link = l, .stream = get(item, "stream"), .name = get(item, "consumer"),
                                            .max_messages = (uint64_t)json_integer_value(json_object_get(item, "max_messages")),
                                            .max_bytes = (uint64_t)json_integer_value(json_object_get(item, "max_bytes"))};
    l->consumer_count = json_array_size(l->consumers_json);
    l->conn.pulls = l->consumer_count > 0;
}

static const char *wrong_sum(void) {
    size_t count, sum = 0;
    EACH_LINK(l) if (!l->leaving && are_subscriptions(get(l->conn.settings, "subscriptions"), &count)) sum += count;
    return sum > SUBSCRIPTIONS_MAX ? "all links together ask for more than SUBSCRIPTIONS_MAX subscriptions" : NULL;
}

/* Fills a free slot; `definition` and `settings` now belong to it. */
static void link_fill(struct link *l, json_t *definition, json_t *settings, bool is_handler) {
    *l = (struct link){.used = true, .is_handler = is_handler, .definition = definition};
    links_fresh = MAX(links_fresh, (size_t)(l - links) + 1);
    l->conn.settings = settings;
    l->conn.topic.kind = "link";
    l->conn.write_max = WRITE_MAX;
    (void)snprintf(l->component, ID_MAX, "%s", link_id(definition, is_handler ? "target" : "source_id"));
    (void)snprintf(l->name, ID_MAX, "%s", link_id(definition, "name"));
    char label[300];
    (void)escaped(l->conn.topic.name, sizeof(l->conn.topic.name), link_label(json_object_get(definition, "id"), label), false);
    (void)snprintf(l->subject, sizeof(l->subject), "%s.%s.wrpc.0.0.1.wasmcloud:messaging/handler@0.2.0.handle-message",
                   self.lattice, l->component);
    const char *wrong = *get(definition, "wrong") ? get(definition, "wrong") : wrong_settings(settings) ?: wrong_sum();
    (void)snprintf(l->wrong, sizeof(l->wrong), "%s", wrong ? wrong : "");
    (void)number_of(settings, &numbers[MAX_IN_FLIGHT], &l->max_in_flight);
    (void)number_of(settings, &numbers[HANDLER_TIMEOUT_MS], &l->handler_timeout_ms);
    l->subscribed = is_handler && get(settings, "subscriptions");
    if (!*l->wrong) link_fill_consumers(l);
}

static uint64_t average_us(const struct tally *t) { return t->calls ? t->us / t->calls : 0; }

/* What became of all messages and calls so far: never held back, and whatever the level if somebody asked. */
static void link_report(const struct link *l, bool asked) {
    char words[400];
    size_t at = (size_t)snprintf(words, sizeof(words), "counts: ");
    if (!asked && logger.level < LEVEL_INFO) return;
    for (enum count i = l->is_handler ? RECEIVED : CALLS; i < (l->is_handler ? CALLS : COUNTS); i++)
        at += (size_t)snprintf(words + at, sizeof(words) - at, "%s=%" PRIu64 " ", count_names[i], l->counts[i]);
    (void)snprintf(words + at, sizeof(words) - at, "open=%u", l->calls + l->waiting);
    write_line(&l->conn.topic, LEVEL_INFO, words);
    EACH_FUNCTION(f, l) {
        const struct tally *t = &l->tallies[f];
        (void)snprintf(words, sizeof(words), "%s: calls=%" PRIu64 " errors=%" PRIu64 " average_us=%" PRIu64 " reconnects=%u last_error=%s", function_names[f],
                       t->calls, t->errors, average_us(t), conn_reconnects(&l->conn), t->last_error);
        if (t->calls > 0) write_line(&l->conn.topic, LEVEL_INFO, words);
    }
}

/*
 * ---- 7 calls ---------------------------------------------------------------------------------------------------------
 *
 * A call is one invocation in either direction, and a slot while it lasts. wRPC over NATS, with Rc the caller's inbox and
 * Rs the server's: protocol: wrpc-transport-nats 0.22 to 0.29.
 *
 *     caller ─ parameters, or the first piece of them ─▶ subject of the function        (reply: Rc)
 *     caller ◀─ empty: the handshake ── Rc                                              (reply: Rs)
 *     caller ─ the other pieces, then an empty message ─▶ Rs.params
 *     caller ◀─ the result, in pieces, then an empty message ── Rc.results
 *     caller ◀─ a string: the call failed (hosts of 1.0) ── Rc.error
 *
 * Rc, Rs and the reply subject of a request are inboxes of ours: "{inbox}{slot}{secret}". The secret is the call's own, so that
 * what comes for a call that has ended, or was never made, finds nobody: who was asked once could guess any other.
 *
 * In:  a link that wants a slot. Out: slots, inboxes, answers on the lattice. Touches: slots, and the links' counts.
 */
static struct conn lattice;   /* the connection to the hosts */

enum call_kind {
    CALL_FREE, CALL_HANDLER,  /* to a component: no result yet */
    CALL_KEPT, CALL_UNTOLD,   /* a consumer's message: to be tried (again) when the component can have it; its link must be back to tell its outcome */
    CALL_PARAMS, CALL_HELD,   /* from a component: more parameters are to come; the write buffer of its link is full */
    CALL_OUT, CALL_REQUEST,   /* publish: the kernel has not taken the bytes yet; request: no reply yet */
};

/* The token of a call's inbox: three digits of slot, in base 16 from 'A' on, and a secret. */
enum { SLOT_LEN = 3, TOKEN_LEN = SLOT_LEN + SECRET_LEN };

struct call {
    enum call_kind kind;
    bool is_request;       /* from a component: request, not publish */
    bool shaken;           /* to a component: the handshake was seen */
    bool whole;            /* held: these are all of the parameters */
    uint32_t sent;         /* to a component: bytes of held that went out with the first message */
    char token[TOKEN_LEN]; /* of its inbox; NULs while nobody was told of one */
    struct call *next;     /* in the list of free slots, or of those that a link keeps */
    struct link *link;
    uint64_t deadline_ms;
    uint64_t began_us;     /* when its component called, or was called */
    uint64_t out_at;       /* CALL_OUT: done when the connection has written this many bytes */
    size_t needs;          /* CALL_PARAMS: bytes to have before it is worth another try */
    struct record *held;   /* CALL_PARAMS, CALL_HELD: all so far; CALL_HANDLER: all, or what did not fit into the first piece; or NULL */
    struct consumer *consumer;  /* whose message it is; NULL: a subscription's */
    enum count outcome;         /* CALL_UNTOLD: what became of it */
    uint64_t progress_ms;       /* when JetStream must hear that it is still being worked on */
    uint64_t kept_until_ms;     /* when it is given back; 0: it was not kept yet */

    struct result result;  /* to a component; this and what follows is not cleared when the slot is taken */
    size_t reply_len;
    char reply[INBOX_MAX]; /* where the outcome goes: Rc of a component's call; where a consumer's message is acknowledged */
};

static struct {
    struct call slots[CALLS_MAX];
    struct call *free;     /* those that were used before */
    size_t fresh;          /* slots from this one on were never used */
    unsigned used;
    uint64_t next_due_ms;  /* when one of them must be looked at */
    char nobody[INBOX_MAX];/* an inbox to which nobody listens */
} calls;

/* Where parameters and results are put together. Nothing in it outlives one message. */
static uint8_t scratch[PARAMS_MAX];

struct trace { const char *parent, *state; };  /* W3C trace context headers, or NULL */
enum { TRACE_MAX = 512 };

/* Whether a header is passed on: not if it is longer than it ought to be, or could be read as two. */
static bool is_trace(const char *text) { return text && strlen(text) < TRACE_MAX && !strchr(text, '\r'); }

static struct trace trace_from(const char *parent, const char *state) {
    if (!is_trace(parent)) return (struct trace){0};
    return (struct trace){parent, is_trace(state) ? state : NULL};
}

static struct trace trace_of(natsMsg *msg) {
    struct header h[HEADERS_MAX] = {{"traceparent", NULL}, {"tracestate", NULL}};
    read_headers(msg, h);
    return trace_from(h[0].value, h[1].value);
}

/* Bytes that wait: a message in a backlog, one of a consumer until it is acknowledged, parameters of a call. A block of the
 * arena, counted against its link. */
struct record {
    struct record *next;
    uint32_t len, room;      /* of the parameters */
    uint16_t parent, state;  /* lengths of the trace headers, with their NULs */
    char bytes[];            /* both trace headers, then the parameters */
};

static size_t records_held;  /* bytes of all records */

static size_t record_size(const struct record *r) { return sizeof(*r) + r->parent + r->state + r->room + 16; } /* 16: its block */
static uint8_t *record_params(struct record *r) { return (uint8_t *)r->bytes + r->parent + r->state; }
static struct trace record_trace(struct record *r) { return (struct trace){r->parent ? r->bytes : NULL, r->state ? r->bytes + r->parent : NULL}; }

static void record_free(struct link *l, struct record *r) {
    if (!r) return;
    records_held -= record_size(r);
    l->held -= record_size(r);
    free(r);
}

/* Whether a link may hold so many bytes more; see HELD_MAX. */
static bool may_hold(const struct link *l, size_t size) {
    return records_held + size <= HELD_MAX && l->held + size <= 2 * (HELD_MAX - records_held - size);
}

/* A record of these parameters, with room for more. NULL: no memory, or none of the link's share. */
static struct record *record_make(struct link *l, struct trace t, const uint8_t *params, size_t len, size_t room) {
    struct record head = {.len = (uint32_t)len, .room = (uint32_t)room, .parent = (uint16_t)(t.parent ? strlen(t.parent) + 1 : 0),
                          .state = (uint16_t)(t.state ? strlen(t.state) + 1 : 0)};
    size_t size = record_size(&head);
    struct record *r = room <= HELD_MAX && may_hold(l, size) ? malloc(size) : NULL; /* the first: or the sum may wrap on 32 bit */
    if (!r) return NULL;
    *r = head;
    if (r->parent) memcpy(r->bytes, t.parent, r->parent);
    if (r->state) memcpy(r->bytes + r->parent, t.state, r->state);
    if (len) memcpy(record_params(r), params, len);
    records_held += size;
    l->held += size;
    return r;
}

/* Adds parameters to a record; one that is too small is replaced. False: as record_make(), and the record is as it was. */
static bool record_add(struct link *l, struct record **r, const void *more, size_t len) {
    if ((*r)->len + len > (*r)->room) {
        size_t room = MIN(2 * ((*r)->len + len), PARAMS_MAX);
        struct record *larger = record_make(l, record_trace(*r), record_params(*r), (*r)->len, room);
        if (!larger) return false;
        record_free(l, *r);
        *r = larger;
    }
    memcpy(record_params(*r) + (*r)->len, more, len);
    (*r)->len += (uint32_t)len;
    return true;
}

/* How many more slots a link may take: a few it can always have, and of the rest as many as leave more free than it holds. */
static unsigned calls_spare(const struct link *l) {
    unsigned left = CALLS_MAX - calls.used, own = CALLS_MAX / LINKS_MAX / 4, shared = l->calls + own * LINKS_MAX;
    return MIN(left, MAX(own - MIN(own, l->calls), (left - MIN(left, shared) + 1) / 2));
}

/* A slot, or NULL: none is free, or the link has its share. The caller sets kind and deadline by call_until(). */
static struct call *call_take(struct link *l) {
    if (calls_spare(l) == 0) return NULL;
    struct call *c = calls.free ? calls.free : &calls.slots[calls.fresh++];
    if (calls.free) calls.free = c->next;
    memset(c, 0, offsetof(struct call, result));
    c->link = l;
    c->began_us = now_us;
    calls.used++;
    l->calls++;
    return c;
}

/* Counts a call that has ended; `error`: why without success, or NULL. */
static void tally(struct link *l, enum function f, enum count outcome, uint64_t began_us, const char *error) {
    struct tally *t = &l->tallies[f];
    l->counts[outcome]++;
    t->calls++;
    t->us += now_us - began_us;
    if (!error) return;
    t->errors++;
    (void)escaped(t->last_error, sizeof(t->last_error), error, false);
}

/* When a call must be looked at again. */
static void call_due(const struct call *c) {
    calls.next_due_ms = MIN(calls.next_due_ms, c->consumer ? MIN(c->deadline_ms, c->progress_ms) : c->deadline_ms);
}

static void call_until(struct call *c, enum call_kind kind, uint64_t deadline_ms) {
    c->kind = kind;
    c->deadline_ms = deadline_ms;
    call_due(c);
}

/* Whether a link's component may have another message now. */
static bool may_call(const struct link *l) { return l->with_component < l->max_in_flight && lattice.state == CONN_UP && !lattice.io.broken; }

/* Takes a call out of those that its link keeps. */
static void call_unkeep(struct call *c) {
    struct call **at = &c->link->kept;
    while (*at != c) at = &(*at)->next;
    *at = c->next;
    c->kind = CALL_FREE;
}

static void call_free(struct call *c) {
    if (c->kind == CALL_KEPT) call_unkeep(c);
    c->link->with_component -= c->kind == CALL_HANDLER;
    c->link->unsettled -= c->kind == CALL_OUT || c->kind == CALL_HELD;
    record_free(c->link, c->held);
    if (c->consumer) c->consumer->open--;
    c->link->calls--;
    c->kind = CALL_FREE;
    c->next = calls.free;
    calls.free = c;
    calls.used--;
}

static void token_make(struct call *c) {
    for (size_t i = SLOT_LEN, slot = (size_t)(c - calls.slots); i-- > 0; slot >>= 4) c->token[i] = (char)('A' + (slot & 15));
    secret_make(c->token + SLOT_LEN);
}

static struct span call_inbox(struct call *c, const struct conn *on, char out[INBOX_MAX + TOKEN_LEN]) {
    if (!*c->token) token_make(c);
    *(char *)mempcpy(mempcpy(out, on->inbox, on->inbox_len), c->token, TOKEN_LEN) = 0;
    return (struct span){out, on->inbox_len + TOKEN_LEN};
}

static struct span reply_of(const struct call *c) { return (struct span){c->reply, c->reply_len}; }

/* Whether a stranger's inbox can be answered: a subject, with room for what is put behind it. */
static bool is_inbox(struct span s) { return s.len + TOKEN_LEN < INBOX_MAX && is_subject(s, false); }

/* The call whose inbox a subject is, and what stands behind it ("", ".results", …). NULL: no such call, or no more. */
static struct call *call_of_subject(const struct conn *on, const char *subject, const char **suffix) {
    const char *token = subject + on->inbox_len;
    size_t slot = 0;
    *suffix = "";
    if (strnlen(token, TOKEN_LEN) < TOKEN_LEN) return NULL;
    *suffix = token + TOKEN_LEN;
    for (size_t i = 0; i < SLOT_LEN; i++) slot = slot << 4 | (size_t)((token[i] - 'A') & 15);
    struct call *c = &calls.slots[slot % CALLS_MAX];
    return c->kind != CALL_FREE && memcmp(c->token, token, TOKEN_LEN) == 0 ? c : NULL;
}

/* Sends to an inbox of the other side. What cannot be sent is lost, as if the connection had broken a moment later. */
static bool send_to(struct span inbox, struct span suffix, struct span reply, const void *data, size_t len) {
    char subject[INBOX_MAX + 16];
    memcpy(subject, inbox.at, inbox.len); /* NOLINT(bugprone-not-null-terminated-result): the suffix ends it */
    memcpy(subject + inbox.len, suffix.at, suffix.len + 1);
    enum posted p = post(&lattice, (struct span){subject, inbox.len + suffix.len}, reply, NULL, data, len);
    if (p != POSTED) say(&lattice.topic, LEVEL_WARN, "cannot answer a call: %s", posted_words[p]);
    return p == POSTED;
}

/* Sends bytes in pieces that the lattice's server takes, and then the empty message that ends them. */
static void send_pieces(struct span inbox, struct span suffix, const uint8_t *data, size_t len) {
    size_t piece = lattice.state == CONN_UP ? lattice.io.max_payload : len;
    for (size_t at = 0; at < len; at += piece)
        if (!send_to(inbox, suffix, NOWHERE, data + at, MIN(piece, len - at))) return;
    (void)send_to(inbox, suffix, NOWHERE, NULL, 0);
}

/* Every call gets a handshake, even a failed one. If no more parameters are to come, it names an inbox that nobody listens
 * to: the caller's empty message then ends in the server and wakes nobody. */
static void shake_hands(struct span caller, struct call *more) {
    char inbox[INBOX_MAX + TOKEN_LEN];
    (void)send_to(caller, SPAN(""), more ? call_inbox(more, &lattice, inbox) : span_of(calls.nobody), NULL, 0);
}

/* An error result: words for the component. */
__attribute__((format(printf, 2, 3))) static void answer_error(struct span caller, const char *format, ...) {
    char words[256];
    uint8_t result[sizeof(words) + 8] = {1};
    va_list args;
    va_start(args, format);
    (void)vsnprintf(words, sizeof(words), format, args);
    va_end(args);
    for (struct span s = span_of(words); !is_utf8(s); s = span_of(words)) words[s.len - 1] = 0; /* cut within a character */
    send_pieces(caller, SPAN(".results"), result, 1 + write_bytes(result + 1, span_of(words)));
}

/* A failed call, which traps the component: for hosts of 1.9 a result that ends before it began, for those of 1.0, which
 * would wait for ever, a string on another subject. */
static void answer_failed(struct span caller, const char *words) {
    uint8_t text[256];
    size_t len = write_bytes(text, (struct span){words, MIN(strlen(words), 240)});
    (void)send_to(caller, SPAN(".error"), NOWHERE, text, len);
    (void)send_to(caller, SPAN(".results"), NOWHERE, NULL, 0);
}

/*
 * ---- 8 calls from components -----------------------------------------------------------------------------------------
 *
 * publish:  decode ─▶ check ─▶ give to the link's connection ─▶ when the kernel has the bytes ─▶ answer
 * request:  decode ─▶ check ─▶ give to the link's connection ─▶ when the reply comes ─▶ answer
 *
 * Words for errors are the reference provider's, because components may show them to people.
 *
 * In:  calls, their pieces, replies on a link's inbox. Out: messages on the link, answers on the lattice. Touches: slots.
 */

/* A call while it is looked at: everything points into the message or into its record. */
struct incoming {
    struct link *link;
    struct span caller;
    bool is_request;
    uint32_t timeout_ms;
    struct message message;
    struct trace trace;
    const uint8_t *params;
    size_t params_len;
};

static enum decoded read_incoming(struct incoming *in, size_t *needs_bytes) {
    struct reader r = {.start = in->params, .at = in->params, .end = in->params + in->params_len};
    enum decoded d = in->is_request ? read_request(&r, &in->message, &in->timeout_ms) : read_publish(&r, &in->message);
    *needs_bytes = r.needs;
    return d;
}

static enum function function_called(bool is_request) { return is_request ? REQUEST : PUBLISH; }

static const char *error_prefix(bool is_request) { return is_request ? "nats send error: " : ""; }

/* Gives a message to the link's connection. `c` is the slot that will await the outcome. */
static enum posted pass_on(const struct incoming *in, struct call *c) {
    char subject[SUBJECT_MAX + 1], reply[MAX(SUBJECT_MAX + 1, INBOX_MAX + TOKEN_LEN)];
    const struct message *m = &in->message;
    const struct header headers[] = {{"traceparent", in->trace.parent}, {"tracestate", in->trace.state}, {NULL, NULL}};
    struct span to = text_of(m->subject, subject, sizeof(subject)), from = NOWHERE;
    if (in->is_request) from = call_inbox(c, &in->link->conn, reply);
    else if (m->has_reply) from = text_of(m->reply_to, reply, sizeof(reply));
    bool traced = in->trace.parent && strncmp(subject, "$SYS", 4) != 0; /* nats-server cannot parse headers there */
    return post(&in->link->conn, to, from, traced ? headers : NULL, m->body.at, m->body.len);
}

static const char no_parameters[] = "its parameters do not decode";
static const char too_large[] = "maximum payload exceeded: the body is larger than this provider passes on";

/* Why a message of a component may not go out, or NULL. Subjects are the component's own words: checked before anything. */
static const char *wrong_message(const struct message *m) {
    if (!is_subject(m->subject, false)) return "invalid subject";
    if (m->has_reply && !is_subject(m->reply_to, false)) return "invalid reply-to subject";
    return m->body.len > MESSAGE_MAX ? too_large : NULL;
}

/* nats.c's write buffers grow and never shrink. When memory for one is short, an idle link that has grown connects anew. */
static void make_room(const struct link *wanting) {
    EACH_LINK(l) {
        if (l == wanting || l->is_handler || l->calls > 0 || l->conn.state != CONN_UP || l->conn.io.capacity < MESSAGE_MAX) continue;
        l->conn.io.broken = "idle, and others need the memory of its write buffer";
        return;
    }
}

/* Ends a call of a component with an error result. */
static void end_with_error(struct call *c, const char *prefix, const char *words) {
    answer_error(reply_of(c), "%s%s", prefix, words);
    tally(c->link, function_called(c->is_request), FAILED, c->began_us, words);
    call_free(c);
}

/* The same for a call that got no outcome in time, or cannot get one: the log has it, too. */
static void give_up(struct call *c, const char *words) {
    say(&c->link->conn.topic, LEVEL_WARN, "a call of the component ended without success: %s", words);
    end_with_error(c, error_prefix(c->is_request), words);
}

/* Ends a call of a component whose parameters are no good: it traps. */
static void fail(struct call *c, const char *why) {
    answer_failed(reply_of(c), why);
    say(&c->link->conn.topic, LEVEL_WARN, "a call of the component failed: %s", why);
    tally(c->link, function_called(c->is_request), FAILED, c->began_us, why);
    call_free(c);
}

/* What a component wanted sent is with nats.c: the slot awaits the reply, or that the kernel has the bytes. */
static void await_outcome(struct call *c, uint32_t timeout_ms) {
    struct link *l = c->link;
    record_free(l, c->held);
    c->held = NULL;
    if (c->is_request) return call_until(c, CALL_REQUEST, now + timeout_ms);
    l->unsettled++;
    c->out_at = l->conn.io.given;
    call_until(c, CALL_OUT, now + PUBLISH_TIMEOUT_MS);
}

/* While the connection has no room the call is held: settle() comes back to it. False: no memory for that. */
static bool hold(const struct incoming *in, struct call *c) {
    struct link *l = in->link;
    uint64_t until = c->held ? c->deadline_ms : now + (in->is_request ? MIN(in->timeout_ms, PUBLISH_TIMEOUT_MS) : PUBLISH_TIMEOUT_MS);
    if (!l->conn.io.blocked) make_room(l);
    if (!c->held) c->held = record_make(l, in->trace, in->params, in->params_len, in->params_len);
    if (!c->held) return false;
    l->unsettled++;
    call_until(c, CALL_HELD, until);
    return true;
}

/* Sends what a component wants sent, and leaves the slot in the state that awaits the outcome; or answers what was wrong. */
static void serve(const struct incoming *in, struct call *c) {
    const char *wrong = wrong_message(&in->message);
    enum posted p = wrong ? POST_FAILED : pass_on(in, c);
    in->link->unsettled -= c->kind == CALL_HELD;
    c->kind = CALL_FREE;
    if (p == POSTED) await_outcome(c, in->timeout_ms);
    else if (p != POST_FULL || !hold(in, c)) give_up(c, wrong ? wrong : posted_words[p]);
}

static void refuse(struct span caller, const char *component, const char *name, const char *why) {
    shake_hands(caller, NULL);
    answer_failed(caller, why);
    say(&lattice.topic, LEVEL_WARN, "a call of component %s by link %s failed: %s", component ? component : "?", name, why);
}

static void refuse_malformed(const struct incoming *in) {
    tally(in->link, function_called(in->is_request), FAILED, now_us, no_parameters);
    refuse(in->caller, in->link->component, in->link->name, no_parameters);
}

/* A slot for a call, and a record if more of its parameters are to come; or NULL, and the component has an answer. */
static struct call *accept_call(const struct incoming *in, bool more, size_t needs_bytes) {
    struct call *c = call_take(in->link);
    if (c && more && needs_bytes <= PARAMS_MAX)
        c->held = record_make(in->link, in->trace, in->params, in->params_len, MIN(needs_bytes + SUBJECT_MAX, PARAMS_MAX));
    if (c && (!more || c->held)) {
        c->reply_len = text_of(in->caller, c->reply, sizeof(c->reply)).len;
        c->is_request = in->is_request;
        c->needs = needs_bytes;
        return c;
    }
    const char *why = needs_bytes > PARAMS_MAX ? too_large : "too many calls in flight, or too large";
    shake_hands(in->caller, NULL);
    answer_error(in->caller, "%s%s", error_prefix(in->is_request), why);
    say(&in->link->conn.topic, LEVEL_WARN, "a call of the component was refused: %s", why);
    tally(in->link, function_called(in->is_request), FAILED, now_us, why);
    if (c) call_free(c);
    return NULL;
}

/* A message on the subject of publish or request. */
static void on_call(natsMsg *msg, bool is_request) {
    struct header h[HEADERS_MAX] = {{"source-id", NULL}, {"link-name", NULL}, {"traceparent", NULL}, {"tracestate", NULL}};
    read_headers(msg, h);
    const char *component = h[0].value, *name = h[1].value ? h[1].value : "default"; /* hosts of 1.0 give no name */
    struct incoming in = {.caller = span_of(natsMsg_GetReply(msg)), .is_request = is_request, .trace = trace_from(h[2].value, h[3].value),
                          .params = (const uint8_t *)natsMsg_GetData(msg), .params_len = (size_t)natsMsg_GetDataLength(msg)};
    size_t needs_bytes = 0;
    if (!is_inbox(in.caller)) return say(&lattice.topic, LEVEL_WARN, "a call without a usable reply subject was ignored");
    in.link = component ? link_of(component, name) : NULL;
    if (!in.link) return refuse(in.caller, component, name, "the component is not linked to this provider by that name");
    enum decoded d = read_incoming(&in, &needs_bytes);
    in.link->counts[CALLS]++;
    if (d == MALFORMED) return refuse_malformed(&in);
    struct call *c = accept_call(&in, d == NEEDS_MORE, needs_bytes);
    if (!c) return;
    shake_hands(in.caller, d == NEEDS_MORE ? c : NULL);
    if (d == WHOLE) serve(&in, c);
    else call_until(c, CALL_PARAMS, now + PARAMS_TIMEOUT_MS);
}

static struct incoming incoming_of(struct call *c) {
    return (struct incoming){.link = c->link, .caller = reply_of(c), .is_request = c->is_request, .trace = record_trace(c->held),
                             .params = record_params(c->held), .params_len = c->held->len};
}

/* Another piece of parameters, on Rs.params. */
static void on_params(struct call *c, natsMsg *msg) {
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    if (len == 0) return fail(c, "its parameters ended before they were whole");
    if (c->held->len + len > PARAMS_MAX) return give_up(c, too_large);
    if (!record_add(c->link, &c->held, natsMsg_GetData(msg), len)) return give_up(c, "memory is short");
    if (c->held->len < c->needs) return;
    struct incoming in = incoming_of(c);
    enum decoded d = read_incoming(&in, &c->needs);
    if (d == WHOLE) serve(&in, c);
    else if (d == MALFORMED) fail(c, no_parameters);
    else if (c->needs > PARAMS_MAX) give_up(c, too_large);
}

static struct message message_of(natsMsg *msg) {
    struct span reply = span_of(natsMsg_GetReply(msg)), body = {natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg)};
    return (struct message){span_of(natsMsg_GetSubject(msg)), body, reply, reply.len > 0};
}

static void end_with_success(struct call *c, const uint8_t *result, size_t len) {
    send_pieces(reply_of(c), SPAN(".results"), result, len);
    tally(c->link, function_called(c->is_request), OK, c->began_us, NULL);
    call_free(c);
}

/* The reply to a request, on the link's inbox: result<broker-message, string>. protocol: the subject is the one that the
 * reply was sent to, as in the reference provider. */
static void on_reply(struct call *c, natsMsg *msg) {
    struct message m = message_of(msg);
    m.has_reply &= is_utf8(m.reply_to);
    if (is_no_responders(msg)) return end_with_error(c, error_prefix(true), "no responders: no responders");
    if (1 + message_room(&m) > sizeof(scratch) || !conn_has_room(&lattice, message_room(&m) + 4096))
        return give_up(c, "no room for a reply of this size");
    scratch[0] = 0;
    end_with_success(c, scratch, 1 + write_message(scratch + 1, &m));
}

/* Tries a held call again. False: the connection still has no room. */
static bool serve_held(struct call *c) {
    struct incoming in = incoming_of(c);
    if (read_incoming(&in, &c->needs) == WHOLE) serve(&in, c);
    return c->kind != CALL_HELD;
}

/* Answers the publishes whose bytes the kernel has taken since, and tries again what was held. Called after writing. */
static void settle(struct link *l) {
    static const uint8_t ok[] = {0};
    uint64_t written = l->conn.state == CONN_UP ? l->conn.io.written : 0;
    bool room = !l->conn.io.blocked;
    for (struct call *c = calls.slots; l->unsettled > 0 && c < calls.slots + calls.fresh; c++) {
        if (c->link != l) continue;
        if (c->kind == CALL_OUT && c->out_at <= written) end_with_success(c, ok, sizeof(ok));
        else if (c->kind == CALL_HELD && room) room = serve_held(c);
    }
}

/* Ends the calls of a link's component, or of all, in words. `all`: also those whose parameters are still to come. */
static void end_calls(const struct link *of, const char *why, bool all) {
    for (struct call *c = calls.slots; c < calls.slots + calls.fresh; c++)
        if ((!of || c->link == of) && (c->kind == CALL_OUT || c->kind == CALL_HELD || c->kind == CALL_REQUEST || (all && c->kind == CALL_PARAMS)))
            give_up(c, why);
}

/*
 * ---- 9 JetStream -----------------------------------------------------------------------------------------------------
 *
 * A handler link may also take messages from pull consumers, which deliver a message again until it was acknowledged. Each
 * consumer is asked for no more than its component can have, so that what waits does so in the stream:
 *
 *     UNKNOWN ── CONSUMER.INFO ──▶ ASKED ──▶ READY ── MSG.NEXT: so many, for so long ──▶ messages, heartbeats, a status line
 *        ▲───────────── trouble: in log and health, and a pause ──┘            ◀── again, when slots are free ──┘
 *
 * nats.c's own calls for JetStream wait in place, so this is the wire itself. protocol: NATS, "JetStream wire API reference"
 * and ADR-13; nats-server 2.9 and 2.10, consumer.go.
 *
 * In:  answers and status lines on a link's pull inbox. Out: requests for messages, acknowledgements. Touches: consumers.
 */

/* Sends JetStream a question about a consumer. The answer comes to an inbox with the number of the consumer and the question. */
static void consumer_question(struct consumer *k, const char *what, const char *json, uint64_t patience_ms) {
    struct conn *conn = &k->link->conn;
    char subject[INBOX_MAX + 64], inbox[INBOX_MAX];
    (void)snprintf(subject, sizeof(subject), "$JS.API.CONSUMER.%s.%s.%s", what, k->stream, k->name);
    (void)snprintf(inbox, sizeof(inbox), "%.*sp.%x.%08x", (int)conn->inbox_len - 2, conn->inbox, (unsigned)(k - k->link->consumers), ++k->question);
    (void)post(conn, span_of(subject), span_of(inbox), NULL, json, strlen(json)); /* what is lost is asked again when patience ends */
    k->due_ms = now + patience_ms;
}

static void consumer_trouble(struct consumer *k, const char *why) {
    k->state = CONSUMER_UNKNOWN;
    k->wanted = 0;
    k->due_ms = retry_at(k->failures++);
    (void)snprintf(k->trouble, sizeof(k->trouble), "%s", why);
    say(&k->link->conn.topic, k->failures > 6 ? LEVEL_DEBUG : LEVEL_ERROR, "consumer %s of stream %s: %s; it is asked again in %" PRIu64 " ms",
        k->name, k->stream, k->trouble, k->due_ms - now);
}

/* To be asked anew, without a fault of anybody. */
static void consumer_forget(struct consumer *k) {
    k->state = CONSUMER_UNKNOWN;
    k->wanted = 0;
    k->due_ms = now;
}

static uint64_t config_number(const json_t *config, const char *key) {
    json_int_t n = json_integer_value(json_object_get(config, key));
    return n > 0 ? (uint64_t)n : 0; /* 0, -1 and nothing at all mean no limit */
}

static uint64_t lesser(uint64_t a, uint64_t b) { return a && b ? MIN(a, b) : a ? a : b; } /* of two limits, 0: none */

/* Takes over what the consumer allows. Returns why it is no consumer for us, or NULL. */
static const char *consumer_settle(struct consumer *k, const json_t *config) {
    const char *policy = get(config, "ack_policy");
    size_t i;
    const json_t *step;
    if (!json_is_object(config)) return "JetStream's answer is no consumer's configuration";
    if (get(config, "deliver_subject")) return "it is a push consumer: make a pull consumer, without deliver_subject";
    if (!policy || strcmp(policy, "explicit") != 0) return "its ack_policy is not explicit: messages could not be acknowledged one by one";
    k->ack_wait_ms = config_number(config, "ack_wait") / 1000000;
    json_array_foreach(json_object_get(config, "backoff"), i, step)
        k->ack_wait_ms = lesser(k->ack_wait_ms, (uint64_t)MAX(json_integer_value(step), 0) / 1000000); /* it takes the place of ack_wait */
    k->max_deliver = config_number(config, "max_deliver");
    k->batch = lesser(k->max_messages, config_number(config, "max_batch"));
    k->bytes = lesser(k->max_bytes, config_number(config, "max_bytes"));
    k->expires_ms = lesser(PULL_EXPIRES_MS, config_number(config, "max_expires") / 1000000);
    return NULL;
}

/* JetStream's answer to CONSUMER.INFO. */
static void on_consumer_info(struct consumer *k, natsMsg *msg) {
    if (is_no_responders(msg)) return consumer_trouble(k, "JetStream is not enabled for this account, or not running");
    json_t *info = json_loadb(natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg), 0, NULL);
    const json_t *error = json_object_get(info, "error");
    const char *why = error ? get(error, "description") : consumer_settle(k, json_object_get(info, "config"));
    if (error && !why) why = "JetStream answers with an error without words";
    if (why) {
        consumer_trouble(k, why);
    } else {
        if (*k->trouble || k->question == 1) say(&k->link->conn.topic, LEVEL_INFO, "takes messages from consumer %s of stream %s", k->name, k->stream);
        k->state = CONSUMER_READY;
        k->trouble[0] = 0;
        k->failures = 0;
    }
    json_decref(info);
}

/* Whether a status line is one of three: by its number, or its words. */
static bool says(struct status status, const char *const list[3]) {
    for (size_t i = 0; i < 3; i++)
        if (span_is(status.code, list[i]) || span_is(status.words, list[i])) return true;
    return false;
}

/* A status line: how the request for messages fares. When it has just ended, the next one follows. */
static void on_consumer_status(struct consumer *k, natsMsg *msg) {
    static const char *const ended[] = {"404", "408", "Batch Completed"}, *const moved[] = {"503", "Leadership Change", "Server Shutdown"};
    static const char too_big[] = "Message Size Exceeds MaxBytes";
    struct status status = status_of(msg);
    bool is_too_big = span_is(status.words, too_big);
    char words[sizeof(k->trouble)] = "JetStream refuses the request for messages";
    k->due_ms = now + 2 * PULL_HEARTBEAT_MS;
    if (span_is(status.code, "100")) return; /* a heartbeat */
    k->wanted = 0;
    if (says(status, ended) || (k->brought && is_too_big)) return;
    if (says(status, moved)) return consumer_forget(k);
    if (status.words.len) (void)text_of(status.words, words, sizeof(words));
    consumer_trouble(k, is_too_big ? "its next message is larger than max_bytes, or than MESSAGE_MAX, and is in the way of all others" : words);
}

/* What comes to "{number}.{question}" of a link's pull inbox. */
static void on_consumer(struct link *l, const char *token, natsMsg *msg) {
    char *end = NULL;
    uint64_t number = strtoull(token, &end, 16), question = *end == '.' ? strtoull(end + 1, NULL, 16) : 0;
    struct consumer *k = &l->consumers[MIN(number, CONSUMERS_PER_LINK - 1)];
    if (number >= l->consumer_count || question != k->question) return;
    if (k->state == CONSUMER_ASKED) on_consumer_info(k, msg);
    else if (k->state == CONSUMER_READY) on_consumer_status(k, msg);
}

/* Asks for as many messages as there are free slots, for which there is memory, and which the component may have. */
static void consumer_pull(struct consumer *k) {
    struct link *l = k->link;
    char json[200];
    uint64_t share = MAX(l->max_in_flight / l->consumer_count, 1), bytes = lesser(k->bytes, PULL_BYTES);
    uint64_t batch = MIN(share - MIN(share, k->open), calls_spare(l));
    if (k->batch) batch = MIN(batch, k->batch);
    if (batch == 0 || l->kept || now < l->absent_until_ms || !may_call(l) || !may_hold(l, (size_t)bytes)) return;
    (void)snprintf(json, sizeof(json), "{\"batch\":%" PRIu64 ",\"max_bytes\":%" PRIu64 ",\"expires\":%" PRIu64 ",\"idle_heartbeat\":%" PRIu64 "}",
                   batch, bytes, k->expires_ms * 1000000, MIN(k->expires_ms / 3, PULL_HEARTBEAT_MS) * 1000000);
    k->wanted = (unsigned)batch;
    k->brought = false;
    consumer_question(k, "MSG.NEXT", json, 2 * PULL_HEARTBEAT_MS);
}

/* One step of the state machine above; called on every turn of the loop. */
static void consumer_step(struct consumer *k) {
    bool due = now >= k->due_ms;
    switch (k->state) {
    case CONSUMER_UNKNOWN:
        if (!due) return;
        k->state = CONSUMER_ASKED;
        return consumer_question(k, "INFO", "", PULL_ANSWER_MS);
    case CONSUMER_ASKED:
        if (due) consumer_trouble(k, "JetStream does not answer: may this user publish to $JS.API.CONSUMER.> and $JS.ACK.>?");
        return;
    case CONSUMER_READY:
        if (k->wanted == 0) consumer_pull(k);
        else if (due) consumer_forget(k); /* not even a heartbeat: the request was lost */
    }
}

static void consumers_step(struct link *l) {
    if (l->conn.state != CONN_UP || l->conn.io.broken || l->leaving || self.stopping) return;
    for (size_t i = 0; i < l->consumer_count; i++) consumer_step(&l->consumers[i]);
}

/* What the first consumer in trouble says, or "". */
static const char *consumers_trouble(const struct link *l, char words[400]) {
    for (const struct consumer *k = l->consumers; k < l->consumers + l->consumer_count; k++)
        if (*k->trouble) return (void)snprintf(words, 400, "consumer %s of stream %s: %s", k->name, k->stream, k->trouble), words;
    return "";
}

/* With its connection, a link's requests are gone; its messages are not: they are acknowledged by the next connection. */
static void consumers_down(struct link *l) {
    for (size_t i = 0; i < l->consumer_count; i++) consumer_forget(&l->consumers[i]);
}

/* Where a message is acknowledged, and what that subject says about it. */
struct ack { struct span stream, consumer; uint64_t deliveries, sequence; };

/* protocol: $JS.ACK.{stream}.{consumer}.{deliveries}.{sequence}.{…}.{time}.{pending}, and since 2.11 with a domain and the hash
 * of an account before the stream, and perhaps more at the end (NATS, ADR-15). */
static bool read_ack(const char *subject, struct ack *a) {
    struct span token[13];
    size_t n = 0;
    for (const char *at = subject; n < COUNT_OF(token); at++) {
        token[n] = (struct span){at, strcspn(at, ".")};
        at += token[n++].len;
        if (!*at) break;
    }
    size_t first = n == 9 ? 2 : n == 11 || n == 12 ? 4 : 0;
    if (first == 0 || strncmp(subject, "$JS.ACK.", 8) != 0) return false;
    *a = (struct ack){token[first], token[first + 1], strtoull(token[first + 2].at, NULL, 10), strtoull(token[first + 3].at, NULL, 10)};
    return true;
}

/* The consumer of this link that a message with this reply subject came from, or NULL. protocol: nats-server takes such a
 * reply subject from no client, so nobody can have a message acknowledged that the component never saw (client.go). */
static struct consumer *consumer_of(struct link *l, const char *ack) {
    struct ack a;
    if (l->consumer_count == 0 || !ack || strlen(ack) >= INBOX_MAX || !is_subject(span_of(ack), false) || !read_ack(ack, &a)) return NULL;
    for (struct consumer *k = l->consumers; k < l->consumers + l->consumer_count; k++)
        if (span_is(a.stream, k->stream) && span_is(a.consumer, k->name)) return k;
    return NULL;
}

/* Answers JetStream for a message. What does not get through makes it deliver the message again. */
static void acknowledge(struct link *l, const char *ack, const char *word) {
    enum posted p = post(&l->conn, span_of(ack), NOWHERE, NULL, word, strlen(word));
    if (p != POSTED) say(&l->conn.topic, LEVEL_WARN, "JetStream was not told %.4s of a message, and may deliver it again: %s", word, posted_words[p]);
}

/* What asks JetStream to deliver a message again after a while. */
enum { NAK_LEN = 64 };
static const char *nak(uint64_t delay_ms, char word[NAK_LEN]) {
    (void)snprintf(word, NAK_LEN, "-NAK {\"delay\":%" PRIu64 "}", delay_ms * 1000000);
    return word;
}

/* A message that the component failed on: it comes back later each time, as often as the consumer's max_deliver allows. */
static void refuse_message(const struct consumer *k, const char *ack) {
    char word[NAK_LEN];
    struct ack a = {.deliveries = 1};
    (void)read_ack(ack, &a);
    if (k->max_deliver && a.deliveries >= k->max_deliver)
        say(&k->link->conn.topic, LEVEL_ERROR, "message %" PRIu64 " of stream %s failed in the last of %" PRIu64 " deliveries: consumer %s gives it up",
            a.sequence, k->stream, k->max_deliver, k->name);
    acknowledge(k->link, ack, nak(MIN((uint64_t)NAK_MIN_MS << MIN(MAX(a.deliveries, 1) - 1, 16), NAK_MAX_MS), word));
}

/* Tells JetStream that a message is still being worked on, three times in its ack_wait. */
static void report_progress(struct call *c) {
    if (c->progress_ms > 0 && c->link->conn.state == CONN_UP) acknowledge(c->link, c->reply, "+WPI");
    c->progress_ms = now + MAX((c->consumer->ack_wait_ms ? c->consumer->ack_wait_ms : 30000) / 3, 10);
}

/*
 * ---- 10 calls to components ------------------------------------------------------------------------------------------
 *
 * Here a NATS message becomes a handle-message call:
 *
 *     message of a subscription ─▶ encode ─▶ invoke ─▶ handshake: the rest of the parameters ─▶ result ─▶ finish
 *                                     └──▶ backlog ──▲       whenever a call ends                          │
 *     message of a consumer ─────▶ encode ─▶ invoke ─▶ …                            acknowledge, or refuse ◀┘
 *                                     └──▶ kept ─────▲
 *
 * A component has at most max_in_flight messages of a link at a time. When it has that many, the loop stops reading the
 * link's connection, so that a short burst waits in the kernel and in the server; but only for PAUSE_MS, and not again for
 * PAUSE_EVERY_MS, since nats-server cuts a client that reads slowly. From then on what arrives waits in the backlog, and
 * what does not fit there is dropped, counted and logged. What a consumer delivered is kept until the component can have it
 * (nobody runs it, the lattice is away), and given back after KEPT_MS.
 *
 * In:  messages of links, answers on our lattice inbox. Out: calls on the lattice. Touches: slots, links' backlogs, counts.
 */

/* Sends a call to the component, and leaves the slot in the state that awaits the result. `params` are those in c->held if
 * that is set. If it cannot be sent now, the slot is the caller's to deal with.
 * protocol: the first message, headers included, fits into max_payload; what is left follows the handshake, to Rs.params. */
static enum posted invoke(struct call *c, const uint8_t *params, size_t len, struct trace trace) {
    struct link *l = c->link;
    char inbox[INBOX_MAX + TOKEN_LEN];
    const struct header headers[] = {{"source-id", self.key}, {"target-id", l->component},
                                     {"traceparent", trace.parent}, {"tracestate", trace.state}};
    size_t max = lattice.io.max_payload, head = headers_size(headers);
    size_t first = MIN(len, max > head ? max - head : 0), rest = len - first;
    c->whole = c->held;
    if (rest > 0 && !c->held && !(c->held = record_make(l, (struct trace){0}, params + first, rest, rest))) return POST_FULL;
    c->sent = c->whole ? (uint32_t)first : 0;
    c->began_us = now_us;
    c->shaken = false;
    result_start(&c->result);
    enum posted p = post(&lattice, span_of(l->subject), call_inbox(c, &lattice, inbox), headers, params, first);
    if (p != POSTED) return p;
    if (rest == 0 && !c->consumer) record_free(l, c->held), c->held = NULL;
    l->with_component++;
    call_until(c, CALL_HANDLER, now + l->handler_timeout_ms);
    return POSTED;
}

static void drop(struct link *l, unsigned count, const char *why) {
    say(&l->conn.topic, LEVEL_WARN, "%u message%s dropped: %s", count, count == 1 ? "" : "s", why);
    l->counts[DROPPED] += count;
}

/* Gives a consumer's message back, without the component having failed on it. */
static void give_back(struct call *c, const char *why) {
    char word[NAK_LEN];
    say(&c->link->conn.topic, LEVEL_INFO, "a message of consumer %s was given back: %s", c->consumer->name, why);
    acknowledge(c->link, c->reply, nak(NAK_MIN_MS, word)); /* nats-server 2.9 mistakes the message if it has to send it at once */
    c->link->counts[RETURNED]++;
    call_free(c);
}

/* Keeps a consumer's message for a better moment, behind those that are kept already. */
static void keep(struct call *c) {
    struct call **at = &c->link->kept;
    if (!c->whole) return give_back(c, "there was no memory to keep it");
    if (!c->kept_until_ms) c->kept_until_ms = now + KEPT_MS;
    c->link->with_component -= c->kind == CALL_HANDLER;
    while (*at) at = &(*at)->next;
    *at = c;
    c->next = NULL;
    call_until(c, CALL_KEPT, c->kept_until_ms);
}

/* Starts what is kept and what waits, as far as the component may have it. */
static void work_off(struct link *l) {
    while (l->kept && may_call(l) && now >= l->absent_until_ms) {
        struct call *c = l->kept;
        call_unkeep(c);
        c->token[0] = 0; /* it may have been tried before: what answers that is too late */
        if (invoke(c, record_params(c->held), c->held->len, record_trace(c->held)) != POSTED) return keep(c);
    }
    while (l->waiting > 0 && may_call(l)) {
        struct record *r = l->backlog, *next = r->next;
        struct call *c = call_take(l);
        if (!c) return;
        c->held = r;
        if (invoke(c, record_params(r), r->len, record_trace(r)) != POSTED) {
            c->held = NULL;
            return call_free(c);
        }
        l->backlog = next;
        l->waiting--;
    }
}

static void wait_in_backlog(struct link *l, const uint8_t *params, size_t len, struct trace trace) {
    bool room = records_held + len < HELD_MAX - 2 * PARAMS_MAX; /* the rest is for parameters of calls */
    struct record *r = room ? record_make(l, trace, params, len, len) : NULL;
    if (!r) return drop(l, 1, "the component is too slow, and its backlog is full");
    if (l->waiting++ > 0) l->backlog_last->next = r;
    else l->backlog = r;
    l->backlog_last = r;
}

static void drop_backlog(struct link *l, const char *why) {
    if (l->waiting > 0) drop(l, l->waiting, why);
    for (struct record *r; l->waiting > 0; l->waiting--, l->backlog = r) {
        r = l->backlog->next;
        record_free(l, l->backlog);
    }
}

/* Whether the loop should read a link's connection now. A pause begins with an overload, and no other before that is over.
 * What only consumers bring is never too much. */
static bool may_read(struct link *l) {
    bool overloaded = l->subscribed && (l->with_component >= l->max_in_flight || l->waiting > 0);
    if (overloaded && !l->overloaded && now >= l->next_pause_ms) {
        l->pause_until_ms = now + PAUSE_MS;
        l->next_pause_ms = now + PAUSE_EVERY_MS;
    }
    l->overloaded = overloaded;
    return !overloaded || now >= l->pause_until_ms;
}

/* Why a component cannot be given a message at all, or NULL. */
static const char *unfit(const struct message *m) {
    if (m->body.len > MESSAGE_MAX || message_room(m) > sizeof(scratch)) return "it is larger than MESSAGE_MAX";
    return is_utf8(m->subject) && is_utf8(m->reply_to) ? NULL : "its subject is not UTF-8, which a component cannot be given";
}

/* A message of one of the link's subscriptions. */
static void on_subscribed(struct link *l, natsMsg *msg) {
    struct message m = message_of(msg);
    const char *wrong = unfit(&m);
    struct trace trace = trace_of(msg);
    l->counts[RECEIVED]++;
    if (wrong) return drop(l, 1, wrong);
    size_t len = write_message(scratch, &m);
    struct call *c = l->waiting == 0 && may_call(l) ? call_take(l) : NULL;
    if (c && invoke(c, scratch, len, trace) == POSTED) return;
    if (c) call_free(c);
    wait_in_backlog(l, scratch, len, trace);
}

/* A slot for a message that a consumer delivered, or NULL: it has been given back. */
static struct call *accept_message(struct consumer *k, const char *ack, const char *wrong) {
    struct link *l = k->link;
    struct call *c = wrong ? NULL : call_take(l);
    l->counts[RECEIVED]++;
    l->counts[RETURNED] += !c;
    k->wanted -= k->wanted > 0;
    k->brought = true;
    k->due_ms = now + 2 * PULL_HEARTBEAT_MS;
    if (!c) {
        say(&l->conn.topic, LEVEL_ERROR, "a message of consumer %s was given back: %s", k->name, wrong ? wrong : "too many calls in flight");
        return refuse_message(k, ack), NULL;
    }
    c->reply_len = text_of(span_of(ack), c->reply, sizeof(c->reply)).len;
    c->consumer = k;
    k->open++;
    report_progress(c);
    return c;
}

/* A message that a consumer delivered. Its reply subject is where it is acknowledged, and none that a component may have.
 * protocol: wasmCloud's built-in provider gives none either. */
static void on_pulled(struct consumer *k, natsMsg *msg) {
    struct link *l = k->link;
    struct message m = message_of(msg);
    struct call *c = accept_message(k, natsMsg_GetReply(msg), unfit(&m));
    if (!c) return;
    struct trace trace = trace_of(msg);
    m.has_reply = false;
    size_t len = write_message(scratch, &m);
    c->held = record_make(l, trace, scratch, len, len);
    c->whole = c->held;
    if (l->leaving || self.stopping) give_back(c, "the link takes no more work");
    else if (l->kept || !may_call(l) || invoke(c, scratch, len, trace) != POSTED) keep(c);
}

/* What comes to our inbox on a link: replies to requests. */
static void on_link_inbox(const struct link *l, natsMsg *msg) {
    const char *suffix;
    struct call *c = call_of_subject(&l->conn, natsMsg_GetSubject(msg), &suffix);
    if (c && c->kind == CALL_REQUEST && c->link == l && !*suffix) on_reply(c, msg);
}

/* Not while a link ends: what comes then was on its way when the subscription did. */
static bool takes_messages(const struct link *l) { return l->is_handler && (!l->leaving || l->replaced); }

/* Everything that arrives on a link's connection. */
static void on_link_message(struct conn *conn, natsMsg *msg) {
    struct link *l = (struct link *)(void *)conn;
    const char *subject = natsMsg_GetSubject(msg);
    char kind = inbox_kind(conn, subject);
    if (kind == 'c') return on_link_inbox(l, msg);
    if (kind == 'p') return on_consumer(l, subject + conn->inbox_len, msg);
    struct consumer *k = consumer_of(l, natsMsg_GetReply(msg));
    if (k) on_pulled(k, msg);
    else if (takes_messages(l)) on_subscribed(l, msg);
}

static void end_message(struct call *c, enum count outcome) {
    const char *error = outcome == HANDLED ? NULL : outcome == ERROR ? c->result.words : count_names[outcome];
    tally(c->link, HANDLE_MESSAGE, outcome, c->began_us, error);
    call_free(c);
}

/* Tells JetStream the outcome of a message. While the link is away the slot waits for it to come back: what is not
 * acknowledged is delivered again. */
static void tell(struct call *c, enum count outcome) {
    struct link *l = c->link;
    if (l->conn.state != CONN_UP || l->conn.io.broken) {
        l->with_component -= c->kind == CALL_HANDLER;
        c->outcome = outcome;
        return call_until(c, CALL_UNTOLD, now + KEPT_MS);
    }
    if (outcome == HANDLED) acknowledge(l, c->reply, "+ACK");
    else refuse_message(c->consumer, c->reply);
    end_message(c, outcome);
}

/* A link is back. */
static void tell_all(const struct link *l) {
    for (struct call *c = calls.slots; c < calls.slots + calls.fresh; c++)
        if (c->kind == CALL_UNTOLD && c->link == l) tell(c, c->outcome);
}

/* The outcome of a call to a component: counted, and told to JetStream. `format`, `words`: what to log of it, if anything. */
static void finish(struct call *c, enum count outcome, const char *format, const char *words) {
    struct link *l = c->link;
    if (format) say(&l->conn.topic, LEVEL_WARN, format, words);
    if (c->consumer) tell(c, outcome);
    else end_message(c, outcome);
    work_off(l);
}

/* Nobody runs the component. A consumer's message is kept until somebody does: its deliveries may be numbered. */
static void on_nobody(struct call *c) {
    struct link *l = c->link;
    if (!c->consumer) return finish(c, DROPPED, "1 message dropped: %s", "nobody runs the component");
    if (now >= l->absent_until_ms) {
        say(&l->conn.topic, LEVEL_WARN, "nobody runs the component: what its consumers deliver is kept, and tried again");
        l->absent_until_ms = now + MIN((uint64_t)ABSENT_MIN_MS << MIN(l->absences, 10), ABSENT_MAX_MS);
        l->absences++;
    }
    keep(c);
}

/* The component's host awaits the rest of the parameters. A host of 1.9 serves nobody else for this component until it has
 * them: they go out at once, and the empty message that ends them goes out even to a handshake that comes too late. */
static void on_handshake(struct call *c, natsMsg *msg) {
    struct span rest = span_of(natsMsg_GetReply(msg));
    if (is_no_responders(msg)) {
        if (c) on_nobody(c);
        return;
    }
    if (!is_inbox(rest)) return;
    struct record *held = c ? c->held : NULL; /* and it is kept: hosts of 1.0 may shake hands more than once */
    size_t sent = c ? c->sent : 0;
    send_pieces(rest, SPAN(".params"), held ? record_params(held) + sent : NULL, held ? held->len - sent : 0);
    if (!c) return;
    c->shaken = true;
    c->link->absences = 0;
}

/* Part of the result, or the empty message behind it. */
static void on_result(struct call *c, natsMsg *msg) {
    const uint8_t *bytes = (const uint8_t *)natsMsg_GetData(msg);
    int len = natsMsg_GetDataLength(msg);
    if (!c->shaken) return; /* forged: a host shakes hands first */
    if (len == 0) return finish(c, TRAP, "the component trapped on a message%s", "");
    enum decoded d = read_result(&c->result, bytes, (size_t)len);
    if (d == MALFORMED) return finish(c, TRAP, "the result of handle-message does not decode%s", "");
    if (d == NEEDS_MORE) return;
    if (c->result.is_error) finish(c, ERROR, "the component answered a message with an error: %s", c->result.words);
    else finish(c, HANDLED, NULL, NULL);
}

/* A failed call, from a host of 1.0: a string says why. */
static void on_error(struct call *c, natsMsg *msg) {
    result_start(&c->result);
    c->result.at = AT_LENGTH;
    (void)read_result(&c->result, (const uint8_t *)natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg));
    finish(c, TRAP, "the component trapped on a message: %s", c->result.words);
}

static void on_outcome(struct call *c, const char *suffix, natsMsg *msg) {
    if (strcmp(suffix, ".results") == 0) on_result(c, msg);
    else if (strcmp(suffix, ".error") == 0) on_error(c, msg);
}

/* What comes to our inbox on the lattice. */
static void on_lattice_inbox(natsMsg *msg) {
    const char *suffix;
    struct call *c = call_of_subject(&lattice, natsMsg_GetSubject(msg), &suffix);
    bool to_component = c && c->kind == CALL_HANDLER;
    if (!*suffix) on_handshake(to_component ? c : NULL, msg);
    else if (to_component) on_outcome(c, suffix, msg);
    else if (c && c->kind == CALL_PARAMS && strcmp(suffix, ".params") == 0) on_params(c, msg);
}

/* Ends a call to a component whose result nobody will hear. */
static void abandon(struct call *c, const char *why) {
    struct link *l = c->link;
    if (c->kind == CALL_UNTOLD) return end_message(c, c->outcome);
    if (c->consumer) return give_back(c, why);
    call_free(c);
    drop(l, 1, why);
}

/* The same for all of a link, or of all links. `kept`: only those that the component does not have. */
static void abandon_calls(const struct link *of, const char *why, bool kept) {
    for (struct call *c = calls.slots; c < calls.slots + calls.fresh; c++) {
        if (of && c->link != of) continue;
        if (c->kind == CALL_KEPT || (!kept && (c->kind == CALL_HANDLER || c->kind == CALL_UNTOLD))) abandon(c, why);
    }
}

/* A call whose time is over. */
static void expire_call(struct call *c) {
    char words[32];
    if (c->kind == CALL_HANDLER) {
        (void)snprintf(words, sizeof(words), "%" PRIu64, c->link->handler_timeout_ms);
        finish(c, TIMEOUT, "timed out: the component did not answer a message within %s ms", words);
    } else if (c->kind == CALL_KEPT || c->kind == CALL_UNTOLD) {
        abandon(c, "the component could not have it for too long");
    } else if (c->kind == CALL_REQUEST) {
        end_with_error(c, "", "nats request timed out: deadline has elapsed");
    } else if (c->kind == CALL_PARAMS) {
        fail(c, "its parameters did not come in time");
    } else {
        give_up(c, "the server took no bytes in time");
    }
}

/* Ends the calls whose time is over. Runs over the slots only when something may be due. */
static void expire_calls(void) {
    if (now < calls.next_due_ms) return;
    calls.next_due_ms = UINT64_MAX;
    for (struct call *c = calls.slots; c < calls.slots + calls.fresh; c++) {
        if (c->kind == CALL_FREE) continue;
        if (c->consumer && now >= c->progress_ms) report_progress(c);
        if (now < c->deadline_ms) call_due(c);
        else expire_call(c);
    }
}

/*
 * ---- 11 control ------------------------------------------------------------------------------------------------------
 *
 * What the host says: host data once, on standard input; then link put and delete, config update, health and shutdown, as
 * JSON on the lattice. protocol: wasmCloud, crates/core, host.rs and rpc.rs; crates/provider-sdk, provider.rs. And what anybody
 * on the lattice may ask: NATS's service protocol.
 *
 * In:  messages on the control subjects. Out: links that start and leave, answers. Touches: links, self, stop, service.
 */
enum stop_state { RUNNING, ENDING_CALLS, FLUSHING_LINKS, FLUSHING_LATTICE };

static struct {
    enum stop_state state;
    uint64_t deadline_ms;
    char reply[INBOX_MAX];  /* where the host waits for the answer to its order, or "" */
} stop;

/* A link's connection is gone: what waited for it will not come. */
static void on_link_down(struct conn *conn, const char *why) {
    struct link *l = (struct link *)(void *)conn;
    char words[256];
    (void)snprintf(words, sizeof(words), "connection lost: %s", why);
    end_calls(l, words, false);
    consumers_down(l);
}

static void link_subscribe(struct conn *conn, struct span subject, struct span queue) {
    char s[SUBJECT_MAX + 1], q[SUBJECT_MAX + 1];
    (void)text_of(subject, s, sizeof(s));
    (void)text_of(queue, q, sizeof(q));
    if (conn_subscribe(conn, s, *q ? q : NULL)) say(&conn->topic, LEVEL_DEBUG, "subscribed to %s%s%s", s, *q ? " in queue group " : "", q);
}

static void on_link_up(struct conn *conn) {
    struct span item, subject, queue;
    const char *list = get(conn->settings, "subscriptions");
    tell_all((struct link *)(void *)conn);
    if (((struct link *)(void *)conn)->leaving || self.stopping) return;
    for (size_t n = 0; list && list_item(list, n, &item); n++)
        if (split_subscription(item, &subject, &queue)) link_subscribe(conn, subject, queue);
}

/* The link's slot is given back when its calls have ended: see link_step(). */
static void link_leave(struct link *l, bool replaced) {
    l->leaving = true;
    l->replaced = replaced;
    l->leave_by_ms = now + LEAVE_MS;
    if (l->conn.state == CONN_UP) conn_unsubscribe(&l->conn, false);
    if (replaced) return;
    drop_backlog(l, "the link was deleted");
    abandon_calls(l, "the link was deleted", true);
}

/* Calls, messages, or bytes that must still go out: what JetStream is told of the last messages, say. */
static bool link_is_busy(const struct link *l) {
    return l->calls > 0 || l->waiting > 0 || (l->conn.state == CONN_UP && !l->conn.io.broken && conn_waiting(&l->conn) > 0);
}

/* Gives a leaving link's slot back. */
static void link_release(struct link *l) {
    end_calls(l, "the link was deleted", true);
    abandon_calls(l, "the link was deleted", false);
    drop_backlog(l, "the link is gone");
    link_report(l, false);
    topic_tick(&l->conn.topic, UINT64_MAX);
    if (l->conn.state == CONN_UP) conn_close(&l->conn);
    json_decref(l->conn.settings);
    json_decref(l->definition);
    json_decref(l->consumers_json);
    l->used = false;
}

/* A slot for one more link, or NULL. Leaving links that have nothing left to do make room. */
static struct link *free_slot(void) {
    size_t staying = 0;
    struct link *slot = links_fresh < LINK_SLOTS ? &links[links_fresh] : NULL;
    for (struct link *l = links + links_fresh; l-- > links;) {
        if (l->used && l->leaving && l->conn.state != CONN_CONNECTING && !link_is_busy(l)) link_release(l);
        if (!l->used) slot = l;
        else staying += !l->leaving;
    }
    return staying < LINKS_MAX ? slot : NULL;
}

/* Puts a link into the table and starts to connect. Takes `definition` over. */
static void link_add(json_t *definition, bool is_handler) {
    char label[300];
    struct link *l = free_slot();
    if (!l) {
        (void)snprintf(self.refused, sizeof(self.refused), "link %s: no place, LINKS_MAX is %d; delete one and put it again",
                       link_label(json_object_get(definition, "id"), label), LINKS_MAX);
        say(&self.topic, LEVEL_ERROR, "%s", self.refused);
        return json_decref(definition);
    }
    link_fill(l, definition, merge_settings(definition, is_handler), is_handler);
    l->conn.on_up = on_link_up;
    l->conn.on_message = on_link_message;
    l->conn.on_down = on_link_down;
    if (strstr(self.refused, l->conn.topic.name)) self.refused[0] = 0;
    if (*l->wrong) say(&l->conn.topic, LEVEL_ERROR, "not started: %s", l->wrong);
    else conn_start(&l->conn);
}

/* Starts a link anew, if its settings are not what they were: in another slot, while calls of this one end. Takes
 * `definition` over. If no slot is free, the link goes on as it was until one is. */
static void link_renew(struct link *l, json_t *definition) {
    json_t *settings = merge_settings(definition, l->is_handler);
    bool same = json_equal(settings, l->conn.settings) && !*l->wrong && !*get(definition, "wrong"), is_handler = l->is_handler;
    json_decref(settings);
    l->leaving = l->replaced = !same; /* so that it does not count, and may even make room itself */
    if (!same && free_slot()) {
        say(&l->conn.topic, LEVEL_INFO, "its settings changed: it starts anew");
        if (l->used) link_leave(l, true);
        link_add(definition, is_handler);
        return;
    }
    l->leaving = l->replaced = false;
    l->stale = !same;
    json_decref(l->definition);
    l->definition = definition;
}

static void link_put(const json_t *json) {
    bool is_handler = false;
    const char *why = NULL;
    char label[300];
    json_t *definition = read_definition(json, &is_handler, &why);
    struct link *l = definition ? link_with_id(definition) : NULL;
    if (!definition) say(&self.topic, LEVEL_ERROR, "the link %s was ignored: %s", link_label(json, label), why);
    else if (l) link_renew(l, definition);
    else link_add(definition, is_handler);
}

/* Deletes the links that agree with what the order says. Hosts of 1.0 leave most of the fields out. */
static void link_delete(const json_t *json) {
    EACH_LINK(l) {
        bool match = !l->leaving && get(json, "source_id");
        for (size_t i = 0; match && i < COUNT_OF(link_ids); i++) {
            const char *wanted = get(json, link_ids[i]);
            match = !wanted || strcmp(wanted, link_id(l->definition, link_ids[i])) == 0;
        }
        if (!match) continue;
        say(&l->conn.topic, LEVEL_INFO, "deleted");
        self.refused[0] = 0;
        link_leave(l, false);
    }
}

/* New defaults: links for which they make a difference start anew. */
static void config_update(json_t *config) {
    json_decref(self.config);
    self.config = json_incref(config);
    EACH_LINK(l) if (!l->leaving) link_renew(l, json_incref(l->definition));
}

static void link_step(struct link *l) {
    conn_step(&l->conn);
    if (l->stale && !l->leaving) {
        l->stale = false;
        link_renew(l, json_incref(l->definition));
    } else if (l->leaving && l->conn.state != CONN_CONNECTING && (!link_is_busy(l) || now >= l->leave_by_ms)) {
        link_release(l);
    }
}

/* Why a link does not do all that it should, in words; or "". */
static const char *link_trouble(const struct link *l, char words[400]) {
    struct span first = {0};
    if (*l->wrong) return l->wrong;
    if (l->conn.state == CONN_UP) return l->conn.io.broken ? l->conn.io.broken : consumers_trouble(l, words);
    if (*l->conn.trouble) return l->conn.trouble;
    if (list_item(get(l->conn.settings, "cluster_uris"), 0, &first)) first = url_address(first);
    (void)snprintf(words, 400, "connecting to %.*s", (int)first.len, first.at);
    return words;
}

/* {"healthy":true}, or false and why, link by link. */
static void on_health(natsMsg *msg) {
    char words[1024], trouble[400], safe[1200], json[1300];
    size_t at = (size_t)snprintf(words, sizeof(words), "%s", self.refused);
    EACH_LINK(l) {
        const char *why = l->leaving ? "" : link_trouble(l, trouble);
        if (*why && at < sizeof(words))
            at += (size_t)snprintf(words + at, sizeof(words) - at, "%slink %s: %s (%u reconnects, %" PRIu64 " dropped, %u in flight)", at ? "; " : "",
                                   l->conn.topic.name, why, conn_reconnects(&l->conn), l->counts[DROPPED], l->calls + l->waiting);
    }
    int n = snprintf(json, sizeof(json), *words ? "{\"healthy\":false,\"message\":\"%s\"}" : "{\"healthy\":true}",
                     escaped(safe, sizeof(safe), words, true));
    struct span asker = span_of(natsMsg_GetReply(msg));
    if (is_inbox(asker)) (void)send_to(asker, SPAN(""), NOWHERE, json, (size_t)n);
}

/* Takes no more calls, but for those of components that still work on a message: they may want to publish their answer. */
static void stop_serving(void) {
    if (stop.state != ENDING_CALLS || lattice.state != CONN_UP) return;
    EACH_LINK(l) if (l->with_component > 0) return;
    conn_unsubscribe(&lattice, false);
}

/* Stops taking work. The loop does the rest: see stop_step(). */
static void stop_begin(const char *why) {
    if (stop.state != RUNNING) return;
    stop.state = ENDING_CALLS;
    self.stopping = true;
    stop.deadline_ms = now + SHUTDOWN_MS;
    say(&self.topic, LEVEL_INFO, "stopping: %s", why);
    stop_serving();
    EACH_LINK(l) if (l->conn.state == CONN_UP) conn_unsubscribe(&l->conn, false);
    abandon_calls(NULL, "the provider is stopping", true);
}

static void on_shutdown(natsMsg *msg, const json_t *json) {
    const char *host = get(json, "host_id"), *reply = natsMsg_GetReply(msg);
    if (!host || strcmp(host, self.host_id) != 0) return say(&self.topic, LEVEL_DEBUG, "an order to shut down that names another host was ignored");
    if (is_inbox(span_of(reply))) (void)snprintf(stop.reply, sizeof(stop.reply), "%s", reply);
    stop_begin("the host asked for it");
}

enum subject_kind { SUB_PUBLISH = PUBLISH, SUB_REQUEST, SUB_HEALTH, SUB_SHUTDOWN, SUB_PUT, SUB_PUT_XKEY, SUB_DELETE, SUB_CONFIG, SUB_KINDS };
_Static_assert((int)SUB_REQUEST == (int)REQUEST, "a function and its subject have the same number");

/* The subjects that we listen to on the lattice, and the queue group of the functions; made by subjects_start(). */
static char subjects[SUB_KINDS][3 * ID_MAX], queue_group[2 * ID_MAX];

static void subjects_start(void) {
    static const char function[] = "%s.%s.wrpc.0.0.1.wasmcloud:messaging/consumer@0.2.0.%s", order[] = "wasmbus.rpc.%s.%s.%s";
    static const char *const ends[] = {"publish", "request", "health", "default.shutdown", "linkdefs.put", "linkdefs.put",
                                       "linkdefs.del", "config.update"};
    (void)snprintf(queue_group, sizeof(queue_group), "%s.%s", self.lattice, self.key);
    for (size_t i = 0; i < SUB_KINDS; i++) {
        if (i == SUB_PUT_XKEY && !box.set) continue;
        (void)snprintf(subjects[i], sizeof(subjects[i]), i <= SUB_REQUEST ? function : order, self.lattice,
                       i == SUB_PUT_XKEY ? box.public_key : self.key, ends[i]);
    }
}

/* NATS's own service protocol, by which `nats micro ls`, `info` and `stats` show this provider on the lattice: each function of
 * a link is an endpoint. protocol: NATS, ADR-32; $SRV.{verb}, or with the service's name, or with its name and id. */
static struct { bool off; char id[ID_MAX], started[32]; } service;
static const char *const service_verbs[] = {"PING", "INFO", "STATS"};

/* The id is the host's name for this process, if it gave one; else as random as an inbox. */
static void service_start(const char *instance) {
    json_t *setting = find_setting(NULL, "lattice_service");
    struct timespec t;
    struct tm tm;
    service.off = setting && strcasecmp(json_string_value(setting), "false") == 0;
    json_decref(setting);
    secret_make(service.id);
    if (is_token(instance)) (void)snprintf(service.id, ID_MAX, "%s", instance);
    (void)clock_gettime(CLOCK_REALTIME, &t);
    (void)strftime(service.started, sizeof(service.started), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t.tv_sec, &tm));
}

static void service_subscribe(void) {
    char subject[3 * ID_MAX];
    for (size_t i = 0; !service.off && i < 3 * COUNT_OF(service_verbs); i++) {
        int n = snprintf(subject, sizeof(subject), "$SRV.%s", service_verbs[i / 3]);
        if (i % 3 > 0) n += snprintf(subject + n, sizeof(subject) - (size_t)n, "." PROVIDER_NAME);
        if (i % 3 > 1) (void)snprintf(subject + n, sizeof(subject) - (size_t)n, ".%s", service.id);
        (void)conn_subscribe(&lattice, subject, NULL);
    }
}

/* What belongs to no function: of the link, and of the provider. */
static json_t *endpoint_data(const struct link *l) {
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "dropped", (json_int_t)l->counts[DROPPED], "in_flight", (json_int_t)l->calls + l->waiting,
                     "reconnects", (json_int_t)conn_reconnects(&l->conn), "arena_bytes", (json_int_t)arena.in_use,
                     "arena_peak_bytes", (json_int_t)arena.peak, "log_lines_lost", (json_int_t)logger.lost);
}

static json_t *endpoint(const struct link *l, enum function f, bool stats) {
    const struct tally *t = &l->tallies[f];
    char name[3 * ID_MAX];
    (void)snprintf(name, sizeof(name), "%s-%s-%s", function_names[f], l->component, l->name);
    for (char *c = name; *c; c++) if (!isalnum((unsigned char)*c)) *c = '-';
    json_t *e = json_pack("{s:s, s:s, s:s}", "name", name, "subject", f == HANDLE_MESSAGE ? l->subject : subjects[f],
                          "queue_group", f == HANDLE_MESSAGE ? "" : queue_group);
    json_t *more = !stats ? json_pack("{s:{s:s}}", "metadata", "link", l->conn.topic.name)
        : json_pack("{s:I, s:I, s:s, s:I, s:I, s:o}", "num_requests", (json_int_t)t->calls, "num_errors", (json_int_t)t->errors,
                    "last_error", t->last_error, "processing_time", (json_int_t)t->us * 1000,
                    "average_processing_time", (json_int_t)average_us(t) * 1000, "data", endpoint_data(l));
    json_object_update(e, more);
    json_decref(more);
    return e;
}

static json_t *endpoints(bool stats) {
    json_t *list = json_array();
    EACH_LINK(l) {
        if (l->leaving) continue;
        EACH_FUNCTION(f, l) json_array_append_new(list, endpoint(l, f, stats));
    }
    return list;
}

static json_t *service_answer(const char *verb) {
    json_t *json = json_pack("{s:s, s:s, s:s, s:{}}", "name", PROVIDER_NAME, "id", service.id, "version", PROVIDER_VERSION, "metadata");
    bool stats = *verb == 'S', ping = *verb == 'P';
    json_object_set_new(json, "type", json_sprintf("io.nats.micro.v1.%s_response", stats ? "stats" : ping ? "ping" : "info"));
    if (stats) json_object_set_new(json, "started", json_string(service.started));
    else json_object_set_new(json, "description", json_string("wasmcloud:messaging@0.2.0 over NATS, for lattice and link connections"));
    if (!ping) json_object_set_new(json, "endpoints", endpoints(stats));
    return json;
}

/* A question of somebody's, on "$SRV.{verb}…". */
static void on_service(const char *verb, natsMsg *msg) {
    struct span asker = span_of(natsMsg_GetReply(msg));
    if (!is_inbox(asker)) return;
    json_t *json = service_answer(verb);
    size_t len = json_dumpb(json, (char *)scratch, sizeof(scratch), JSON_COMPACT); /* 0: no memory; or how many it would be */
    if (len > 0 && len <= sizeof(scratch)) (void)send_to(asker, SPAN(""), NOWHERE, scratch, len);
    json_decref(json);
}

static void on_order(enum subject_kind kind, natsMsg *msg) {
    if (self.stopping) return;
    json_t *json = json_loadb(natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg), 0, NULL);
    if (!json_is_object(json)) say(&self.topic, LEVEL_ERROR, "what came on %s is no JSON object and was ignored", subjects[kind]);
    else if (kind == SUB_SHUTDOWN) on_shutdown(msg, json);
    else if (kind == SUB_DELETE) link_delete(json);
    else if (kind == SUB_CONFIG) config_update(json);
    else link_put(json);
    json_decref(json);
}

/* Everything that arrives on the lattice. */
static void on_lattice_message(struct conn *conn, natsMsg *msg) {
    const char *subject = natsMsg_GetSubject(msg);
    if (inbox_kind(conn, subject) == 'c') return on_lattice_inbox(msg);
    if (strcmp(subject, subjects[SUB_PUBLISH]) == 0) return on_call(msg, false);
    if (strcmp(subject, subjects[SUB_REQUEST]) == 0) return on_call(msg, true);
    if (strcmp(subject, subjects[SUB_HEALTH]) == 0) return on_health(msg);
    if (strncmp(subject, "$SRV.", 5) == 0) return on_service(subject + 5, msg);
    for (enum subject_kind kind = SUB_SHUTDOWN; kind < SUB_KINDS; kind++)
        if (strcmp(subject, subjects[kind]) == 0) return on_order(kind, msg);
}

/* Control first, and before anything slower: a link that is put before the server knows these subscriptions is lost. The
 * functions are served in a queue group, so that several instances share the calls. */
static void on_lattice_up(struct conn *conn) {
    static bool links_given;
    if (stop.state != RUNNING) return;
    for (enum subject_kind kind = SUB_KINDS; kind-- > SUB_PUBLISH;)
        if (*subjects[kind]) (void)conn_subscribe(conn, subjects[kind], kind <= SUB_REQUEST ? queue_group : NULL);
    service_subscribe();
    conn_write(conn);
    if (links_given) return;
    links_given = true;
    size_t i;
    json_t *link;
    json_array_foreach(self.links, i, link) link_put(link);
    json_decref(self.links);
    self.links = NULL;
}

static bool links_are_busy(void) {
    EACH_LINK(l) if (link_is_busy(l)) return true;
    return false;
}

/* Whether the server has read all that was written before conn_ask_echo(), or never will. */
static bool is_flushed(const struct conn *c) { return c->state != CONN_UP || c->io.echoed; }

static bool links_are_flushed(void) {
    EACH_LINK(l) if (!is_flushed(&l->conn)) return false;
    return true;
}

static void stop_calls(void) {
    end_calls(NULL, "the provider is stopping", true);
    abandon_calls(NULL, "the provider is stopping", false);
    EACH_LINK(l) {
        drop_backlog(l, "the provider is stopping");
        if (l->conn.state == CONN_UP) conn_ask_echo(&l->conn);
    }
    stop.state = FLUSHING_LINKS;
    stop.deadline_ms = now + 20;
}

static void stop_answer(void) {
    if (*stop.reply) (void)send_to(span_of(stop.reply), SPAN(""), NOWHERE, "shutting down", strlen("shutting down"));
    if (lattice.state == CONN_UP) conn_ask_echo(&lattice);
    stop.state = FLUSHING_LATTICE;
    stop.deadline_ms = now + 250;
}

/* One step of stopping: calls end, links are flushed, the host is answered, the lattice is flushed. Returns true when all is
 * done. The host kills us when it has the answer, so that comes last, with an echo behind it. */
static bool stop_step(void) {
    stop_serving();
    if (stop.state == ENDING_CALLS && (!links_are_busy() || now >= stop.deadline_ms)) stop_calls();
    if (stop.state == FLUSHING_LINKS && (links_are_flushed() || now >= stop.deadline_ms)) stop_answer();
    return stop.state == FLUSHING_LATTICE && (is_flushed(&lattice) || now >= stop.deadline_ms);
}

/*
 * ---- 12 the loop, and main -------------------------------------------------------------------------------------------
 *
 * One turn: sleep until something can be done; read; end what is overdue; write; answer what the writing settled. Nothing
 * in it waits for anything but poll().
 *
 * In:  the command line, host data, signals, and what poll() says of connections. Out: turns for all rooms before; an exit code.
 * Touches: the clock, the blocked flags of connections, and self, before the first turn.
 */
static volatile sig_atomic_t signalled, report_wanted;

static void on_signal(int number) {
    int saved = errno;
    if (number == SIGUSR1) report_wanted = 1;
    else signalled = number;
    wake_loop();
    errno = saved;
}

/* How long to sleep: until the next deadline, and never longer than a tick. */
static int sleep_ms(bool more_input) {
    uint64_t until = MIN(MIN(calls.next_due_ms, now + TICK_MS), conn_next_ms(&lattice));
    if (more_input) return 0;
    if (stop.state != RUNNING) until = MIN(until, stop.deadline_ms);
    EACH_LINK(l) {
        until = MIN(until, conn_next_ms(&l->conn));
        if (l->pause_until_ms > now) until = MIN(until, l->pause_until_ms);
        if (l->kept && l->absent_until_ms > now) until = MIN(until, l->absent_until_ms);
    }
    return until > now ? (int)(until - now) : 0;
}

/* While the lattice's server reads slowly, links are not read: what they bring would only wait. */
static bool lattice_is_full(void) {
    return lattice.state == CONN_UP && lattice.io.blocked && conn_waiting(&lattice) > WRITE_MAX / 2;
}

/* Sleeps until poll has news, or for so long. The first descriptor is what wakes the loop. */
static void wait_for(struct pollfd *fds, nfds_t count, int ms) {
    uint64_t ignored;
    if (poll(fds, count, ms) < 0 && errno != EINTR) die("poll: %s", strerror(errno));
    read_clock();
    if (fds[0].revents && read(fds[0].fd, &ignored, sizeof(ignored)) < 0 && errno != EAGAIN) die("eventfd: %s", strerror(errno));
}

static void conn_attend(struct conn *c, const struct pollfd *p) {
    if (c->state != CONN_UP) return; /* what another said has ended it */
    if (p->revents & (POLLOUT | POLLERR | POLLHUP)) c->io.blocked = false;
    if ((p->revents & (POLLIN | POLLERR | POLLHUP)) || (p->events & POLLIN && c->io.more)) conn_read(c);
}

/* What to wait for on a connection. */
static struct pollfd conn_events(struct conn *c, bool read) {
    if (!read) c->io.heard_ms = now; /* it is we who do not listen */
    return (struct pollfd){.fd = c->fd, .events = (short)((read ? POLLIN : 0) | (atomic_load(&c->wants_write) ? POLLOUT : 0))};
}

static void wait_and_read(void) {
    struct pollfd fds[LINK_SLOTS + 2] = {{.fd = net.wake_fd, .events = POLLIN}};
    struct conn *conns[LINK_SLOTS + 2] = {0};
    nfds_t count = 1;
    bool more = false, full = lattice_is_full();
    for (size_t i = 0; i <= links_fresh; i++) {
        struct conn *c = i < links_fresh ? &links[i].conn : &lattice;
        if (c->state != CONN_UP) continue;
        bool read = c == &lattice || (!full && may_read(&links[i]));
        more |= read && c->io.more;
        conns[count] = c;
        fds[count++] = conn_events(c, read);
    }
    wait_for(fds, count, sleep_ms(more));
    for (nfds_t i = 1; i < count; i++) conn_attend(conns[i], &fds[i]);
}

static void tick(pid_t parent) {
    static uint64_t next_ms;
    if (now < next_ms) return;
    next_ms = now + TICK_MS;
    topic_tick(&self.topic, now);
    topic_tick(&lattice.topic, now);
    EACH_LINK(l) topic_tick(&l->conn.topic, now);
    if (getppid() != parent) stop_begin("the process that started it has ended");
}

/* What happened so far, for SIGUSR1 and at the end. */
static void report(const char *event, bool asked) {
    EACH_LINK(l) link_report(l, asked);
    say(&self.topic, LEVEL_INFO, "%s: %zu kB of the arena in use, at most %zu; %" PRIu64 " blocks taken, %" PRIu64 " log lines lost",
        event, arena.in_use / 1024, arena.peak / 1024, arena.taken, logger.lost);
}

static void run(pid_t parent) {
    do {
        wait_and_read();
        if (report_wanted) report_wanted = 0, report("so far", true);
        if (signalled) stop_begin(signalled == SIGINT ? "SIGINT" : "SIGTERM");
        expire_calls();
        conn_step(&lattice);
        EACH_LINK(l) {
            work_off(l);
            consumers_step(l);
            conn_write(&l->conn);
            if (l->unsettled > 0) read_clock(), settle(l);
            link_step(l);
        }
        conn_write(&lattice);
        tick(parent);
    } while (!stop_step());
}

/* The memory that is reserved, in bytes; and the promise of provider.h, kept by the compiler. */
enum {
    RESERVED_THREADS = THREADS_MAX * THREAD_STACK,
    RESERVED_TABLES = sizeof(links) + sizeof(calls) + sizeof(scratch) + sizeof(net) + sizeof(subjects),
    RESERVED = ARENA_BYTES + RESERVED_TABLES + RESERVED_THREADS,
};
#ifndef SYSTEM_MALLOC
_Static_assert(RESERVED <= RESERVED_MAX, "provider.h reserves more than RESERVED_MAX: lower a limit, or raise it knowingly");
#endif
_Static_assert(HOST_DATA_MAX <= sizeof(scratch), "host data is read into scratch: HOST_DATA_MAX must fit into PARAMS_MAX");
_Static_assert(sizeof(time_t) == 8, "time would end in 2038: compile with -D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64");
_Static_assert(CALLS_MAX <= 1 << (4 * SLOT_LEN), "an inbox has SLOT_LEN digits for the slot");

static const char help[] =
    "usage: " PROVIDER_NAME "               run: a wasmCloud host starts it so, and writes host data to standard input\n"
    "       " PROVIDER_NAME " --check FILE  say what the provider would do with host data or a link (JSON, or base64 of it)\n"
    "       " PROVIDER_NAME " --version     versions of the program and its libraries, and the memory it reserves\n"
    "       " PROVIDER_NAME " --help        this text\n"
    "\n"
    "A wasmCloud capability provider for wasmcloud:messaging@0.2.0 over NATS. Links and configuration come from the host;\n"
    "RUST_LOG (error, warn, info, debug) sets what it logs on standard error.\n"
    "Exit codes: 0 stopped in order, 1 wrong host data or a check that failed, 2 wrong usage.\n";

static void print_version(void) {
    printf(PROVIDER_NAME " " PROVIDER_VERSION "\nnats.c %s, mbedTLS %s, libsodium %s, jansson %s\n"
           "memory reserved: %d kB in all: arena %d, tables %d, thread stacks %d\n"
           "limits: %d links, %d subscriptions, %d calls, messages of up to %d kB\n",
           nats_GetVersion(), tls_version(), sodium_version_string(), JANSSON_VERSION, (int)RESERVED / 1024, ARENA_BYTES / 1024,
           (int)RESERVED_TABLES / 1024, (int)RESERVED_THREADS / 1024, LINKS_MAX, SUBSCRIPTIONS_MAX, CALLS_MAX, MESSAGE_MAX / 1024);
}

/* A string of the host data: missing and null are "". */
static const char *host_text(const json_t *host, const char *key) {
    const json_t *v = json_object_get(host, key);
    if (v && !json_is_string(v) && !json_is_null(v)) die("host data: %s is no string", key);
    return v && json_is_string(v) ? json_string_value(v) : "";
}

/* An object or a list of the host data: missing and null are `empty`, which the caller has made for it. */
static json_t *host_part(const json_t *host, const char *key, json_t *empty) {
    json_t *v = json_object_get(host, key);
    if (!v || json_is_null(v)) return empty;
    if (json_typeof(v) != json_typeof(empty)) die("host data: %s is no %s", key, json_is_array(empty) ? "list" : "object");
    json_decref(empty);
    return json_incref(v);
}

static void host_token(const json_t *host, const char *key, const char *missing, char out[ID_MAX]) {
    const char *text = host_text(host, key);
    if (!*text && missing) text = missing;
    if (!*text) die("host data: %s is missing; is this the line that a wasmCloud host writes?", key);
    if (!is_token(text)) die("host data: %s must be one token of a subject: no dot, space, * or >, fewer than %d bytes", key, ID_MAX);
    (void)snprintf(out, ID_MAX, "%s", text);
}

/* Everything in the host data that outlives it. protocol: wasmCloud, crates/core, host.rs. */
static void read_host(const json_t *host) {
    const char *ours = host_text(host, "provider_xkey_private_key"), *hosts = host_text(host, "host_xkey_public_key"), *rust_log = getenv("RUST_LOG");
    if (!json_is_object(host)) die("host data: the JSON is no object");
    set_level(host_text(host, "log_level"));
    if (rust_log) set_level(rust_log);
    logger.json = json_is_true(json_object_get(host, "structured_logging"));
    host_token(host, "provider_key", NULL, self.key);
    (void)snprintf(self.topic.name, sizeof(self.topic.name), "%s", self.key);
    host_token(host, "lattice_rpc_prefix", "default", self.lattice);
    (void)snprintf(self.host_id, ID_MAX, "%s", host_text(host, "host_id"));
    if (*ours && *hosts && !box_start(span_of(hosts), span_of(ours)))
        die("host data: host_xkey_public_key (X…) and provider_xkey_private_key (SX…) are no pair of X25519 nkeys");
    self.config = host_part(host, "config", json_object());
    self.secrets = host_part(host, "secrets", json_object());
    self.links = host_part(host, "link_definitions", json_array());
}

/* The lattice's settings: URL and user from the host data; the rest as lattice_… from the provider's own configuration. */
static json_t *lattice_settings(const json_t *host) {
    static const char *const keys[] = {"tls_ca", "tls_ca_file", "tls_cert", "tls_key", "tls_first", "ping_interval_sec"};
    const char *url = host_text(host, "lattice_rpc_url"), *jwt = host_text(host, "lattice_rpc_user_jwt"), *seed = host_text(host, "lattice_rpc_user_seed");
    json_t *settings = json_object();
    json_object_set_new(settings, "cluster_uris", json_string(*url ? url : "nats://127.0.0.1:4222"));
    if (*jwt) json_object_set_new(settings, "client_jwt", json_string(jwt));
    if (*seed) json_object_set_new(settings, "client_seed", json_string(seed));
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        char key[64];
        (void)snprintf(key, sizeof(key), "lattice_%s", keys[i]);
        take_setting(settings, keys[i], NULL, key);
    }
    const char *wrong = wrong_settings(settings);
    if (wrong) die("host data: the lattice: %s", wrong);
    return settings;
}

/* Reads what there is, at most `room` bytes. Returns 0 at the end. */
static size_t read_some(int fd, uint8_t *at, size_t room) {
    ssize_t n;
    do n = read(fd, at, room);
    while (n < 0 && errno == EINTR);
    if (n < 0) die("cannot read: %s", strerror(errno));
    return (size_t)n;
}

/* Reads into scratch, to the end of a line or of the file. Returns how many bytes stand before it. */
static size_t read_input(int fd, bool line) {
    const uint8_t *end = NULL;
    size_t have = 0;
    for (size_t n = 1; n > 0 && !end; have += n) {
        if (have == HOST_DATA_MAX) die("host data: longer than HOST_DATA_MAX, %d bytes", HOST_DATA_MAX);
        n = read_some(fd, scratch + have, HOST_DATA_MAX - have);
        if (line) end = memchr(scratch + have, '\n', n);
    }
    if (!line) return have;
    if (have == 0) die("host data: standard input is empty; a wasmCloud host writes one line of base64 to it");
    if (!end) die("host data: the line has no end after %zu bytes; the host must have been cut off", have);
    return (size_t)(end - scratch);
}

/* The JSON in scratch, as it is or in base64. What is wrong is named by its place only, since it may be a secret. */
static json_t *parse_input(size_t len, bool base64) {
    const char *text = (const char *)scratch, *end = NULL;
    json_error_t error;
    const size_t input = len;
    while (len > 0 && isspace(scratch[len - 1])) len--;
    if (len == 0) die("host data: the line is empty");
    if (base64) {
        size_t decoded = 0;
        int failed = sodium_base642bin(scratch, sizeof(scratch), text, len, NULL, &decoded, &end, sodium_base64_VARIANT_ORIGINAL);
        if (failed || end != text + len) die("host data: no base64 at byte %td of %zu", end ? end - text + 1 : 1, len);
        len = decoded;
    }
    json_t *json = json_loadb(text, len, 0, &error);
    sodium_memzero(scratch, input);
    if (!json) die("host data: no JSON: error in line %d, column %d", error.line, error.column);
    return json;
}

static void print_tls(const json_t *s) {
    const char *ca_file = get(s, "tls_ca_file"), *trusted = get(s, "tls_ca") ? "tls_ca" : ca_file ? ca_file : "the system's CAs";
    printf("    TLS           %s, trusting %s%s\n", is_true(s, "tls_first") ? "first of all" : "if the URL or the server asks for it",
           trusted, get(s, "tls_cert") ? ", with tls_cert" : "");
}

static void print_link(const struct link *l) {
    const json_t *s = l->conn.settings;
    const char *uris = get(s, "cluster_uris"), *subscriptions = get(s, "subscriptions");
    const struct consumer *end = l->consumers + l->consumer_count;
    struct span item;
    printf("link %s: %s\n", l->conn.topic.name, l->is_handler ? "calls the component's handle-message" : "serves the component's publish and request");
    for (size_t n = 0; list_item(uris, n, &item); n++) printf("    server        %.*s\n", (int)url_address(item).len, url_address(item).at);
    printf("    credentials   %s\n", get(s, "client_jwt") ? "client_jwt and client_seed" : "none, or in the URL");
    print_tls(s);
    if (!l->is_handler) return;
    for (size_t n = 0; subscriptions && list_item(subscriptions, n, &item); n++) printf("    subscription  %.*s\n", (int)item.len, item.at);
    for (const struct consumer *k = l->consumers; k < end; k++) printf("    consumer      %s of stream %s\n", k->name, k->stream);
    printf("    in flight     %" PRIu64 ", for %" PRIu64 " ms each\n", l->max_in_flight, l->handler_timeout_ms);
}

/* Says what the provider would do with a link. */
static void check_link(const json_t *json) {
    const char *why;
    bool is_handler;
    char label[300];
    struct link *l = free_slot();
    json_t *definition = read_definition(json, &is_handler, &why);
    if (!definition) die("link %s: %s", link_label(json, label), why);
    if (!l) die("more than LINKS_MAX (%d) links", LINKS_MAX);
    link_fill(l, definition, merge_settings(definition, is_handler), is_handler);
    if (*l->wrong) die("link %s: %s", l->conn.topic.name, l->wrong);
    print_link(l);
}

/* Which side of a lone link the provider is on: its interfaces tell. */
static void guess_self(const json_t *link) {
    size_t i;
    const json_t *v;
    const char *key = get(link, "target");
    json_array_foreach(json_object_get(link, "interfaces"), i, v)
        if (json_is_string(v) && strcmp(json_string_value(v), "handler") == 0) key = get(link, "source_id");
    (void)snprintf(self.key, ID_MAX, "%s", key ? key : "");
    (void)snprintf(self.lattice, ID_MAX, "default");
}

static int check(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) die("%s: %s", path, strerror(errno));
    size_t len = read_input(fd, false), i;
    close(fd);
    json_t *json = parse_input(len, scratch[strspn((const char *)scratch, " \t\r\n")] != '{'), *link;
    if (json_object_get(json, "source_id")) {
        guess_self(json);
        check_link(json);
        return json_decref(json), 0;
    }
    read_host(json);
    json_t *settings = lattice_settings(json);
    struct span at = url_address(span_of(get(settings, "cluster_uris")));
    printf("provider %s on lattice %s at %.*s, %s, %zu links\n", self.key, self.lattice, (int)at.len, at.at,
           box.set ? "can open the secrets of links" : "without xkeys", json_array_size(self.links));
    json_array_foreach(self.links, i, link) check_link(link);
    json_decref(settings);
    json_decref(json);
    return 0;
}

static void start_process(void) {
    pthread_attr_t attr;
    /* Of a statically linked glibc, only what is linked in may be asked for names: else it would load modules. */
    __nss_configure_lookup("hosts", "files dns");
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setstacksize(&attr, THREAD_STACK);
    (void)pthread_setattr_default_np(&attr);
    (void)pthread_attr_destroy(&attr);
    net.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (net.wake_fd < 0) die("eventfd: %s", strerror(errno));
    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_signal}, NULL);
    (void)sigaction(SIGINT, &(struct sigaction){.sa_handler = on_signal}, NULL);
    (void)sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal}, NULL);
    if (nats_Open(-1) != NATS_OK) die("nats.c does not start: %s", nats_GetLastError(NULL));
}

static void start_lattice(json_t *settings) {
    (void)inbox_make(calls.nobody, "_INBOX.nobody");
    calls.nobody[strlen(calls.nobody) - 1] = 0; /* no dot at its end */
    lattice.topic.kind = "lattice";
    lattice.settings = settings;
    lattice.write_max = 2 * PARAMS_MAX;
    lattice.vital = true;
    lattice.on_up = on_lattice_up;
    lattice.on_message = on_lattice_message;
    (void)snprintf(lattice.topic.name, sizeof(lattice.topic.name), "%s", self.lattice);
    conn_start(&lattice);
}

#ifndef PROVIDER_WITHOUT_MAIN /* devel/unit.c includes this file */
/* Answers a command line that does not ask for a run. Returns its exit code, or -1. */
static int answer(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--help") == 0) return fputs(help, stdout) < 0;
    if (argc == 2 && strcmp(argv[1], "--version") == 0) return print_version(), 0;
    if (argc == 3 && strcmp(argv[1], "--check") == 0) return check(argv[2]);
    return argc > 1 || isatty(STDIN_FILENO) ? (fputs(help, stderr), 2) : -1;
}

int main(int argc, char **argv) {
    pid_t parent = getppid();
    arena_serves_loop();
    json_set_alloc_funcs(malloc, free_wiped);
    if (sodium_init() < 0) die("libsodium does not start: no source of random bytes");
    int code = answer(argc, argv);
    if (code >= 0) return code;

    json_t *host = parse_input(read_input(STDIN_FILENO, true), true);
    read_host(host);
    json_t *settings = lattice_settings(host);
    service_start(host_text(host, "instance_id"));
    json_decref(host);
    read_clock();
    start_process();
    subjects_start();
    say(&self.topic, LEVEL_INFO, PROVIDER_NAME " " PROVIDER_VERSION " on lattice %s", self.lattice);
    start_lattice(settings);
    run(parent);
    EACH_LINK(l) topic_tick(&l->conn.topic, UINT64_MAX);
    report("stopped", false);
    _exit(0); /* exit() would take nats.c apart while its threads, and those that connect, still use it */
}
#endif
