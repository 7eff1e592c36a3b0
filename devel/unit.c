/* unit - tests of what provider.c is made of: codecs, keys, log lines, pools, slots. Built and run by `make unit`.
 *
 * It includes the source, so that static functions are in reach. It is compiled twice: with -DSYSTEM_MALLOC, so that
 * sanitizers see every byte, for all that follows; and with -DUNIT_ARENA for the arena alone, whose functions get other
 * names, so that the test itself and the libraries keep the system's malloc. Says what failed, a line for each group,
 * and "N passed, M failed".
 */
#pragma GCC diagnostic ignored "-Wunused-function" /* what only main needs */
#pragma GCC diagnostic ignored "-Wunused-variable"
#define PROVIDER_WITHOUT_MAIN
#define _GNU_SOURCE
#include <stdlib.h>

#ifdef UNIT_ARENA
#define malloc arena_malloc
#define free arena_free
#define calloc arena_calloc
#define realloc arena_realloc
#define malloc_usable_size arena_usable_size
#endif
#include "../provider.c"
#undef malloc
#undef free
#undef calloc
#undef realloc
#undef malloc_usable_size

void verify(bool ok, const char *what, int line);
int random_below(int n);
void fill(void *out, size_t len);
void test_arena(void) __attribute__((weak));
#define CHECK(condition) verify(condition, #condition, __LINE__)
#define ROUNDS(n) for (int round_ = 0; round_ < (n); round_++)

#ifdef UNIT_ARENA
/* ---- the arena ---------------------------------------------------------------------------------------------------- */

static struct {
    uint8_t *at, *copy;
    size_t len;
} held[400];

/* Every block lies behind the one before it, knows it, and is in no list or in the right one; no two neighbours are free. */
static bool arena_is_sound(void) {
    struct block *b = (struct block *)(void *)arena_bytes, *end = (struct block *)(void *)(arena_bytes + ARENA_BYTES), *before = NULL;
    size_t used = 0;
    for (; b < end; before = b, b = (struct block *)(void *)((uint8_t *)b + HEAD + (b->size & ~(size_t)1))) {
        if (b->before != before || (b->size & 14)) return false;
        if (!(b->size & 1)) used += HEAD + b->size;
        else if (*b->at != b || (b->next && b->next->at != &b->next) || (before && before->size & 1)) return false;
    }
    return b == end && b->before == before && used == arena.in_use;
}

/* The largest block that can be had. */
static size_t largest(void) {
    size_t low = 0, high = ARENA_BYTES;
    while (low < high) {
        size_t middle = (low + high + 1) / 2;
        void *p = arena_malloc(middle);
        arena_free(p);
        if (p) low = middle;
        else high = middle - 1;
    }
    return low;
}

static bool arena_kept(size_t i) { return memcmp(held[i].at, held[i].copy, held[i].len) == 0; }

static void arena_keep(size_t i, uint8_t *p, size_t len, size_t same) {
    held[i].copy = realloc(held[i].copy, len + 1);
    held[i].at = p;
    held[i].len = len;
    CHECK((uintptr_t)p % 16 == 0 && arena_usable_size(p) >= len && p >= arena_bytes && p + len <= arena_bytes + sizeof(arena_bytes));
    CHECK(memcmp(p, held[i].copy, same) == 0);
    fill(held[i].copy + same, len - same);
    memcpy(p + same, held[i].copy + same, len - same);
}

/* One step of a random program, against a shadow of what it keeps. */
static void arena_step(size_t i, size_t len) {
    static const uint8_t zeros[1 << 20];
    uint8_t *p;
    if (held[i].at && random_below(2)) {
        CHECK(arena_kept(i));
        arena_free(held[i].at);
        held[i].at = NULL;
    } else if (held[i].at) {
        if ((p = arena_realloc(held[i].at, len))) arena_keep(i, p, len, MIN(len, held[i].len));
        else CHECK(arena_kept(i));
    } else if (random_below(4) == 0) {
        if (!(p = arena_calloc(len / 8 + 1, 8))) return;
        CHECK(memcmp(p, zeros, len) == 0);
        arena_keep(i, p, len, 0);
    } else if ((p = arena_malloc(len))) {
        arena_keep(i, p, len, 0);
    }
}

/* A random program, after which all is given back. */
static void arena_program(void) {
    ROUNDS(60000) {
        size_t len = (size_t)random_below(1 << (random_below(100) ? 4 + random_below(9) : 4 + random_below(17)));
        arena_step((size_t)random_below(COUNT_OF(held)), len);
        if (round_ % 1000 == 0) CHECK(arena_is_sound());
    }
    for (size_t i = 0; i < COUNT_OF(held); i++) {
        CHECK(!held[i].at || arena_kept(i));
        arena_free(held[i].at);
        free(held[i].copy);
    }
    memset(held, 0, sizeof(held));
}

/* A full arena, of which a megabyte is given back, a block in its middle first: that is kept as a spare, and is in the way. */
static void test_spare_in_the_way(void) {
    static void *all[ARENA_BYTES / 992];
    size_t n = 0, middle, some = (1 << 20) / (992 + HEAD);
    while (n < COUNT_OF(all) && (all[n] = arena_malloc(992))) n++;
    middle = n / 2;
    arena_free(all[middle]);
    for (size_t i = 1; i <= some / 2; i++) arena_free(all[middle - i]), arena_free(all[middle + i]);
    CHECK(!block_find((some - 1) * (992 + HEAD)));
    void *large = arena_malloc((some - 1) * (992 + HEAD));
    CHECK(large && arena_is_sound());
    arena_free(large);
    for (size_t i = 0; i < n; i++)
        if (i + some / 2 < middle || i > middle + some / 2) arena_free(all[i]);
}

/* What the loop's thread keeps comes back without the lists, and is given up when a block cannot be had otherwise. */
static void test_spares(size_t at_start) {
    arena_serves_loop();
    arena_program();
    CHECK(arena_is_sound() && arena.in_use > 0 && arena.in_use <= SPARES * (SPARES * ALIGN + HEAD));
    spares_release();
    CHECK(arena.in_use == 0 && arena_is_sound());
    void *volatile p = arena_malloc(200), *volatile q = arena_malloc(200);
    uint64_t taken = arena.taken;
    arena_free(p);
    CHECK(arena_malloc(200) == p && arena_malloc(0) != p && arena.taken == taken + 1);
    arena_free(p);
    arena_free(q); /* there is one of its size already: to the lists */
    CHECK(arena_malloc(190) == p && arena_is_sound());
    arena_free(p);
    test_spare_in_the_way();
    spares_release();
    CHECK(largest() == at_start && arena_is_sound());
    keeps_spares = false;
}

void test_arena(void) {
    size_t at_start = largest(), refused = 0;
    CHECK(at_start > BLOCK_MAX - 64 && at_start <= BLOCK_MAX && arena.in_use == 0);
    arena_program();
    CHECK(arena_is_sound() && arena.in_use == 0 && largest() == at_start);

    for (size_t len = 1; len <= 1 << 20; len *= 32) { /* to the end, and back in another order */
        static void *all[ARENA_BYTES / 48 + 1];
        size_t n = 0, bytes = 0;
        while (n < COUNT_OF(all) && (all[n] = arena_malloc(len))) bytes += arena_usable_size(all[n++]) + HEAD;
        CHECK(n < COUNT_OF(all) && errno == ENOMEM && bytes == arena.in_use && arena_is_sound());
        CHECK(bytes + 2 * len + 128 > ARENA_BYTES - ARENA_BYTES / 16); /* next to nothing is wasted */
        for (size_t i = 0; i < n; i += 2) arena_free(all[i]);
        CHECK(arena_is_sound());
        for (size_t i = 1; i < n; i += 2) arena_free(all[i]);
        CHECK(arena.in_use == 0 && largest() == at_start && arena_is_sound());
    }
    CHECK(!arena_malloc(BLOCK_MAX + 1) && !arena_malloc(SIZE_MAX) && !arena_malloc(SIZE_MAX - 8));
    void *volatile small = arena_malloc(10);
    CHECK(!arena_calloc(SIZE_MAX / 2, 3) && !arena_calloc(SIZE_MAX, SIZE_MAX) && !arena_realloc(small, SIZE_MAX));
    CHECK(arena_usable_size(small) == 32 && arena_realloc(small, 1 << 20) == small); /* grows in place */
    void *big = arena_malloc(BLOCK_MAX - (1 << 20));
    CHECK(big && !arena_realloc(big, BLOCK_MAX + 1) && arena_is_sound());
    CHECK(arena_spares(1000, 1000, 0) && !arena_spares(1000, 1000, 10000) && !arena_spares(ARENA_BYTES, 1, 0) && !arena_spares(SIZE_MAX / 2, 1, 0));
    arena_free(small);
    arena_free(big);
    arena_free(NULL);
    test_spares(at_start);
    small = arena_malloc(0);
    CHECK(small && arena_malloc(0) != small && refused == 0);
}

#else
/* ---- reporting, chance --------------------------------------------------------------------------------------------- */

static unsigned passed, failed, shown;

void verify(bool ok, const char *what, int line) {
    if (ok) passed++;
    else if (failed++, shown++ < 10) printf("devel/unit.c:%d: not true: %s\n", line, what);
}

/* The same numbers each time (xorshift). */
static uint64_t chance = 88172645463325252u;
int random_below(int n) {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (int)((chance >> 16) % (unsigned)n);
}
void fill(void *out, size_t len) {
    for (uint8_t *c = out; len--; c++) *c = (uint8_t)random_below(256);
}

/* Text of up to `len` bytes, UTF-8, in memory of exactly its size, so that sanitizers see a step beyond it. */
static struct span random_text(size_t len) {
    static const char *const letters[] = {"a", ".", "Z", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\n"};
    char *text = malloc(len + 8);
    size_t n = 0;
    while (n < len) n += (size_t)sprintf(text + n, "%s", letters[random_below(COUNT_OF(letters))]);
    return (struct span){realloc(text, n + !n), n};
}

static bool same(struct span a, struct span b) { return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0); }
#define BYTES(text) ((const uint8_t *)(text)), sizeof(text) - 1

/* Bytes in memory of exactly their size. */
static uint8_t *exactly(const void *bytes, size_t len) { return memcpy(malloc(len + !len), bytes, len); }

static struct reader reader_of(const uint8_t *bytes, size_t len) { return (struct reader){.start = bytes, .at = bytes, .end = bytes + len}; }

/* ---- wire values ------------------------------------------------------------------------------------------------------- */

static void test_u32(void) {
    static const struct { uint32_t value; const char *bytes; size_t len; } golden[] = {
        {0, "\0", 1}, {1, "\1", 1}, {127, "\x7f", 1}, {128, "\x80\1", 2}, {1500, "\xdc\x0b", 2}, {16383, "\xff\x7f", 2},
        {16384, "\x80\x80\1", 3}, {2097151, "\xff\xff\x7f", 3}, {2097152, "\x80\x80\x80\1", 4}, {268435455, "\xff\xff\xff\x7f", 4},
        {268435456, "\x80\x80\x80\x80\1", 5}, {UINT32_MAX, "\xff\xff\xff\xff\x0f", 5},
    };
    static const struct { const char *bytes; size_t len; } wrong[] = {
        {"\xff\xff\xff\xff\x1f", 5}, {"\x80\x80\x80\x80\x10", 5}, {"\xff\xff\xff\xff\x7f", 5}, /* over 2^32 - 1 */
        {"\x80\x80\x80\x80\x80\0", 6}, {"\xff\xff\xff\xff\xff\1", 6}, {"\x80\x80\x80\x80\x80", 5}, /* six bytes */
    };
    uint8_t out[8];
    uint32_t value = 1;
    for (size_t i = 0; i < COUNT_OF(golden); i++) {
        CHECK(write_u32(out, golden[i].value) == golden[i].len && memcmp(out, golden[i].bytes, golden[i].len) == 0);
        for (size_t cut = 0; cut <= golden[i].len; cut++) {
            uint8_t *bytes = exactly(golden[i].bytes, cut);
            struct reader r = reader_of(bytes, cut);
            enum decoded d = read_u32(&r, &value);
            if (cut == golden[i].len) CHECK(d == WHOLE && value == golden[i].value && r.at == r.end);
            else CHECK(d == NEEDS_MORE && r.needs == cut + 1 && r.at == r.start);
            free(bytes);
        }
    }
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        struct reader r = reader_of((const uint8_t *)wrong[i].bytes, wrong[i].len);
        CHECK(read_u32(&r, &value) == MALFORMED);
    }
    struct reader r = reader_of(BYTES("\x80\x80\x80\x80\0x")); /* longer than it need be, within five bytes */
    CHECK(read_u32(&r, &value) == WHOLE && value == 0 && *r.at == 'x');
}

/* Any number comes back; one of 2^32 or more, in as many bytes as it takes, is refused, also where it is a length. */
static void test_numbers(void) {
    uint8_t out[16];
    for (unsigned bits = 0; bits <= 64; bits++)
        for (uint64_t i = 0; i < 20; i++) {
            uint64_t number = (bits == 64 ? 0 : (uint64_t)1 << bits) + i - (bits < 5 ? 0 : 10); /* about 2^bits */
            uint32_t value = 0;
            size_t len = 0;
            for (uint64_t rest = number; rest || !len; rest >>= 7) out[len++] = (uint8_t)(rest | (rest > 0x7f ? 0x80 : 0));
            struct reader r = reader_of(out, len), of_bytes = r, of_publish = r;
            struct span s;
            struct message m;
            if (number > UINT32_MAX) {
                CHECK(read_u32(&r, &value) == MALFORMED && read_bytes(&of_bytes, &s) == MALFORMED && read_publish(&of_publish, &m) == MALFORMED);
                continue;
            }
            CHECK(read_u32(&r, &value) == WHOLE && value == number && r.at == r.end && write_u32(out, value) == len);
            if (number == 0) continue;
            CHECK(read_bytes(&of_bytes, &s) == NEEDS_MORE && of_bytes.needs == len + MIN(number, 2u * PARAMS_MAX));
            CHECK(read_publish(&of_publish, &m) == NEEDS_MORE && of_publish.needs == of_bytes.needs);
        }
}

static void test_strings(void) {
    static const char *const good[] = {"", "a", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80!"};
    static const char *const bad[] = {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2" "a", "\xe0\x80\x80", "\xe0\x9f\xbf",
        "\xed\xa0\x80", "\xed\xbf\xbf", "\xe2\x82", "\xe2\x82" "a", "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80", "\xf0\x9f\x98", "\xf0\x9f" "aa", "\xfe", "\xff", "ok\xff", "\xc3\xa9\xa9"};
    for (size_t i = 0; i < COUNT_OF(good) + COUNT_OF(bad); i++) {
        const char *text = i < COUNT_OF(good) ? good[i] : bad[i - COUNT_OF(good)];
        size_t n = strlen(text);
        uint8_t *bytes = malloc(n + 1);
        bytes[0] = (uint8_t)n;
        memcpy(bytes + 1, text, n);
        struct reader r = reader_of(bytes, n + 1);
        struct span s;
        verify(is_utf8((struct span){(char *)bytes + 1, n}) == (i < COUNT_OF(good)), text, __LINE__);
        CHECK(read_string(&r, &s) == (i < COUNT_OF(good) ? WHOLE : MALFORMED));
        r.at = bytes;
        CHECK(read_bytes(&r, &s) == WHOLE && s.len == n); /* a list of bytes may be anything */
        free(bytes);
    }
    struct span s;
    struct reader r = reader_of(BYTES("\xff\xff\xff\xff\x0f" "abc"));
    CHECK(read_bytes(&r, &s) == NEEDS_MORE && r.needs == 5 + 2u * PARAMS_MAX);
    CHECK(is_utf8((struct span){"a\0b", 3}) && is_utf8((struct span){NULL, 0}));
}

enum kind { OF_PUBLISH, OF_REQUEST };

/* Decodes bytes that lie in memory of exactly their size. `m` points into *kept, which the caller frees. */
static enum decoded decode(enum kind kind, const void *bytes, size_t len, struct message *m, uint32_t *timeout, size_t *needed, uint8_t **kept) {
    *kept = exactly(bytes, len);
    struct reader r = reader_of(*kept, len);
    *m = (struct message){0};
    enum decoded d = kind == OF_PUBLISH ? read_publish(&r, m) : read_request(&r, m, timeout);
    if (d == WHOLE) CHECK(r.at <= r.end);
    *needed = d == WHOLE ? (size_t)(r.at - r.start) : r.needs;
    return d;
}

/* Every beginning of a valid encoding needs more, no more than there is to come; every changed byte is taken calmly. */
static void torment(enum kind kind, const uint8_t *bytes, size_t len) {
    struct message m;
    uint32_t timeout;
    size_t needed;
    uint8_t *kept, *changed = exactly(bytes, len);
    for (size_t cut = 0; cut < len; cut++) {
        CHECK(decode(kind, bytes, cut, &m, &timeout, &needed, &kept) == NEEDS_MORE && needed > cut && needed <= len);
        free(kept);
    }
    for (size_t i = 0; i < len; i++)
        for (int value = 0; value < 256; value += len < 100 ? 1 : 1 + random_below(60)) {
            changed[i] = (uint8_t)value;
            enum decoded d = decode(kind, changed, len, &m, &timeout, &needed, &kept);
            if (d == WHOLE) CHECK(is_utf8(m.subject) && is_utf8(m.reply_to) && m.subject.len + m.body.len + m.reply_to.len < len && needed <= len);
            if (d == NEEDS_MORE) CHECK(needed > len);
            changed[i] = bytes[i];
            free(kept);
        }
    free(changed);
}

static void test_golden(void) { /* of devel/tests/golden/lattice-1.9.2.jsonl */
    static const struct { enum kind kind; const char *bytes; size_t len; const char *subject, *body, *reply; uint32_t timeout; } golden[] = {
#define VECTOR(text) text, sizeof(text) - 1
        {OF_PUBLISH, VECTOR("\6t.echo\5hello\1&_INBOX.d38wZo1FoVU9VBFCPUeb6X.seZhYZam"), "t.echo", "hello", "_INBOX.d38wZo1FoVU9VBFCPUeb6X.seZhYZam", 0},
        {OF_PUBLISH, VECTOR("&_INBOX.d38wZo1FoVU9VBFCPUeb6X.seZhYZam\5hello\0"), "_INBOX.d38wZo1FoVU9VBFCPUeb6X.seZhYZam", "hello", NULL, 0},
        {OF_PUBLISH, VECTOR("\6t.fail\4boom\0"), "t.fail", "boom", NULL, 0},
        {OF_PUBLISH, VECTOR("\6q.work\6queued\1\10t3.reply"), "q.work", "queued", "t3.reply", 0},
        {OF_REQUEST, VECTOR("\tsvc.upper\5shout\xdc\x0b"), "svc.upper", "shout", NULL, 1500},
        {OF_REQUEST, VECTOR("\nsvc.nobody\5shout\xdc\x0b"), "svc.nobody", "shout", NULL, 1500},
    };
    for (size_t i = 0; i < COUNT_OF(golden); i++) {
        struct message m;
        uint32_t timeout = 0;
        size_t needed;
        uint8_t *kept, out[128];
        CHECK(decode(golden[i].kind, golden[i].bytes, golden[i].len, &m, &timeout, &needed, &kept) == WHOLE && needed == golden[i].len);
        CHECK(same(m.subject, span_of(golden[i].subject)) && same(m.body, span_of(golden[i].body)) && timeout == golden[i].timeout);
        CHECK(m.has_reply == !!golden[i].reply && same(m.reply_to, span_of(golden[i].reply)));
        if (golden[i].kind == OF_PUBLISH) CHECK(write_message(out, &m) == golden[i].len && memcmp(out, golden[i].bytes, golden[i].len) == 0);
        free(kept);
        torment(golden[i].kind, (const uint8_t *)golden[i].bytes, golden[i].len);
    }
    /* what the provider answers to a request, behind the tag */
    struct message m = {.subject = span_of("_INBOX.Ksu8nptpZnquWAAFgtK88e.Ksu8nptpZnquWAAFgtK87H"), .body = span_of("SHOUT")};
    static const char reply[] = "4_INBOX.Ksu8nptpZnquWAAFgtK88e.Ksu8nptpZnquWAAFgtK87H\5SHOUT\0";
    uint8_t out[128];
    CHECK(write_message(out, &m) == sizeof(reply) - 1 && memcmp(out, reply, sizeof(reply) - 1) == 0);
    size_t needed;
    uint8_t *kept;
    CHECK(decode(OF_PUBLISH, "\1a\1b\2", 5, &m, NULL, &needed, &kept) == MALFORMED); /* an option is 0 or 1 */
    free(kept);
    CHECK(decode(OF_PUBLISH, "\1\xff\1b\0", 5, &m, NULL, &needed, &kept) == MALFORMED);
    free(kept);
    CHECK(decode(OF_PUBLISH, "\0\0\1\0", 4, &m, NULL, &needed, &kept) == WHOLE && m.has_reply && m.reply_to.len == 0);
    free(kept);
}

static void test_random_messages(void) {
    ROUNDS(400) {
        uint32_t timeout = (uint32_t)random_below(INT32_MAX) >> random_below(31), got = 0;
        int size = round_ % 40 ? 300 : 40000;
        struct message m = {.subject = random_text((size_t)random_below(200)), .body = {malloc((size_t)size), (size_t)random_below(size)},
                            .has_reply = random_below(2)}, back;
        fill((char *)(uintptr_t)m.body.at, m.body.len);
        if (m.has_reply) m.reply_to = random_text((size_t)random_below(200));
        uint8_t *out = malloc(message_room(&m)), *kept;
        size_t len = write_message(out, &m), needed;
        CHECK(len <= message_room(&m));
        CHECK(decode(OF_PUBLISH, out, len, &back, NULL, &needed, &kept) == WHOLE && needed == len && same(back.subject, m.subject) &&
              same(back.body, m.body) && back.has_reply == m.has_reply && same(back.reply_to, m.reply_to));
        free(kept);
        if (size == 300 && round_ < 60) torment(OF_PUBLISH, out, len);
        len = write_bytes(out, m.subject);
        len += write_bytes(out + len, m.body);
        len += write_u32(out + len, timeout);
        CHECK(decode(OF_REQUEST, out, len, &back, &got, &needed, &kept) == WHOLE && needed == len && got == timeout && same(back.body, m.body));
        free(kept);
        if (size == 300 && round_ < 60) torment(OF_REQUEST, out, len);
        free(out);
        free((void *)(uintptr_t)m.subject.at);
        free((void *)(uintptr_t)m.body.at);
        free((void *)(uintptr_t)m.reply_to.at);
    }
}

struct known_result { const char *bytes; size_t len; enum decoded how; const char *words; };

/* Reads it in three pieces, cut at these two places. */
static void result_in_pieces(const struct known_result *known, size_t a, size_t b) {
    const uint8_t *bytes = (const uint8_t *)known->bytes;
    const size_t cuts[] = {0, a, b, known->len};
    struct result r = {0};
    enum decoded d = NEEDS_MORE;
    for (int piece = 0; piece < 3 && d == NEEDS_MORE; piece++) {
        uint8_t *part = exactly(bytes + cuts[piece], cuts[piece + 1] - cuts[piece]);
        d = read_result(&r, part, cuts[piece + 1] - cuts[piece]);
        free(part);
    }
    CHECK(d == known->how);
    if (d == WHOLE) CHECK(r.is_error == !!known->words && strcmp(r.words, known->words ? known->words : "") == 0);
}

/* A result in two pieces, each in memory of its size, and then the same in one. */
static void result_in_two(const uint8_t *bytes, size_t len, size_t cut) {
    uint8_t *first = exactly(bytes, cut), *second = exactly(bytes + cut, len - cut);
    struct result whole = {0}, r = {0};
    enum decoded d = read_result(&whole, bytes, len), p = read_result(&r, first, cut);
    if (p == NEEDS_MORE) p = read_result(&r, second, len - cut);
    CHECK(p == d && memcmp(&whole, &r, sizeof(r)) == 0 && whole.kept < sizeof(whole.words));
    free(first);
    free(second);
}

/* Every byte changed to every other: an error or another result, the same in one piece and in two. */
static void test_changed_results(void) {
    static const char *const results[] = {"\1\x0ctold to fail", "\1\x8c\x80\x80\x80\x01told", "\1\1x", "\1\xff\xff\xff\xff\x0fxyz"};
    for (size_t i = 0; i < COUNT_OF(results); i++)
        for (size_t at = 0, len = strlen(results[i]); at < len; at++)
            for (int value = 0; value < 256; value++) {
                uint8_t *changed = exactly(results[i], len);
                changed[at] = (uint8_t)value;
                result_in_two(changed, len, (size_t)random_below((int)len + 1));
                free(changed);
            }
}

static void test_results(void) {
    static const struct known_result results[] = {
        {VECTOR("\0"), WHOLE, NULL}, {VECTOR("\1\x0ctold to fail"), WHOLE, "told to fail"}, {VECTOR("\1\0"), WHOLE, ""},
        {VECTOR("\1\x8c\0told to fail"), WHOLE, "told to fail"}, {VECTOR("\1\x8c\x80\x80\x80\0told to fail"), WHOLE, "told to fail"},
        {VECTOR("\2"), MALFORMED, NULL}, {VECTOR("\xff"), MALFORMED, NULL}, {VECTOR("\1\xff\xff\xff\xff\xff\1"), MALFORMED, NULL},
        {VECTOR("\1\xff\xff\xff\xff\x1f"), MALFORMED, NULL}, {VECTOR("\1\x80\x80\x80\x80\x80"), MALFORMED, NULL},
        {VECTOR("\1\5abcd"), NEEDS_MORE, NULL}, {VECTOR("\1"), NEEDS_MORE, NULL}, {VECTOR(""), NEEDS_MORE, NULL},
        {VECTOR("\1\xff\xff\xff\xff\x0fxyz"), NEEDS_MORE, NULL}, {VECTOR("\0trailing"), WHOLE, NULL},
    };
    for (size_t i = 0; i < COUNT_OF(results); i++)
        for (size_t a = 0; a <= results[i].len; a++)
            for (size_t b = a; b <= results[i].len; b++) result_in_pieces(&results[i], a, b);
    struct result r = {0};
    CHECK(read_result(&r, BYTES("\1\xe8\7")) == NEEDS_MORE);
    for (int i = 0; i < 1000; i++) CHECK(read_result(&r, (const uint8_t *)"x", 1) == (i < 999 ? NEEDS_MORE : WHOLE));
    CHECK(strlen(r.words) == sizeof(r.words) - 1); /* of long words the beginning is kept */
}

/* ---- subjects, lists ------------------------------------------------------------------------------------------------------ */

static void test_subjects(void) {
    static const char *const good[] = {"a", "a.b", "$SYS.x", "_INBOX.a.b", "a*", "*a.b", "a.b>", ">>", "a.**", "\xc3\xa9.x", "a-b_c:/@#"};
    static const char *const wild[] = {"*", ">", "a.*", "a.>", "*.*.>", "*.a"};
    static const char *const bad[] = {"", ".", "a.", ".a", "a..b", "a b", " a", "a ", "a\tb", "a\r\nPUB x 0\r\n\r\n", "a\n", "\x7f", "a.\x7f.b", "\1", ">.a", "a.>.b", "a.>.>"};
    for (size_t i = 0; i < COUNT_OF(good); i++) verify(is_subject(span_of(good[i]), false) && is_subject(span_of(good[i]), true), good[i], __LINE__);
    for (size_t i = 0; i < COUNT_OF(wild); i++) verify(!is_subject(span_of(wild[i]), false) && is_subject(span_of(wild[i]), true), wild[i], __LINE__);
    for (size_t i = 0; i < COUNT_OF(bad); i++) verify(!is_subject(span_of(bad[i]), false) && !is_subject(span_of(bad[i]), true), bad[i], __LINE__);
    for (int c = 0; c < 256; c++) {
        char text[] = {'a', (char)c, 'b'};
        CHECK(is_subject((struct span){text, 3}, false) == (c > ' ' && c != 0x7f));
    }
    char text[SUBJECT_MAX + 1];
    memset(text, 'a', sizeof(text));
    CHECK(is_subject((struct span){text, SUBJECT_MAX}, false) && !is_subject((struct span){text, SUBJECT_MAX + 1}, false));
    CHECK(!is_subject((struct span){NULL, 0}, true) && !is_subject((struct span){"a\0b", 3}, true));
    CHECK(is_token("messaging-nats") && is_token("NABC") && !is_token("") && !is_token(NULL) && !is_token("a.b") && !is_token("*") && !is_token(">") && !is_token("a b"));
}

static void test_lists(void) {
    static const struct { const char *list; size_t count; bool ok; } lists[] = {
        {"", 0, true}, {",", 0, true}, {" , ,, ", 0, true}, {"a", 1, true}, {"a,b", 2, true}, {" a , b\t", 2, true}, {"a|q", 1, true},
        {"a.*|q,b.>,>|q", 3, true}, {"a,,b,", 2, true}, {"a|", 0, false}, {"|q", 0, false}, {"|", 0, false}, {"a|q|r", 1, true},
        {"a|q r", 0, false}, {"a b", 0, false}, {"a..b", 0, false}, {"a,b.>.c", 1, false}, {"a|*", 0, false}, {"\xff", 0, false}, {"a\r\nb", 0, false},
    };
    for (size_t i = 0; i < COUNT_OF(lists); i++) {
        size_t count = 99;
        bool ok = are_subscriptions(lists[i].list, &count);
        verify(ok == lists[i].ok && (!ok || count == lists[i].count), lists[i].list, __LINE__);
    }
    char many[4 * SUBSCRIPTIONS_MAX + 8] = "";
    for (int i = 0; i < SUBSCRIPTIONS_MAX; i++) strcat(many, "a,");
    size_t count;
    CHECK(are_subscriptions(many, &count) && count == SUBSCRIPTIONS_MAX && are_subscriptions(NULL, &count) && count == 0);
    strcat(many, "a");
    CHECK(!are_subscriptions(many, &count));
    struct span subject, queue;
    CHECK(split_subscription(span_of("q.work|workers"), &subject, &queue) && same(subject, span_of("q.work")) && same(queue, span_of("workers")));
}

static void test_servers(void) {
    static const char *const servers[] = {"nats://h", "tls://h:4222", "h", "h:1", "nats://u:p@h:4222", "NATS://[::1]:4222", "[::1]"};
    static const char *const no_servers[] = {"", "http://h", "ws://h", "nats://", "nats://u:p@", "nats://a b", "nats://a\"b", "a\\b", "h:65536", "nats://h\r\nPUB"};
    for (size_t i = 0; i < COUNT_OF(servers); i++) verify(is_server(span_of(servers[i])), servers[i], __LINE__);
    for (size_t i = 0; i < COUNT_OF(no_servers); i++) verify(!is_server(span_of(no_servers[i])), no_servers[i], __LINE__);
    CHECK(same(url_address(span_of("nats://user:p@ss@host:1")), span_of("host:1")));
}

/* ---- JetStream: reply subjects, lists of consumers ------------------------------------------------------------------------------ */

static void test_acks(void) {
    static const struct { const char *subject; uint64_t deliveries, sequence; } acks[] = {
        {"$JS.ACK.S.c.1.2.3.1700000000000000000.0", 1, 2}, {"$JS.ACK.S.c.18446744073709551615.9.8.7.6", UINT64_MAX, 9},
        {"$JS.ACK._.hAsH.S.c.3.40.5.6.7", 3, 40}, {"$JS.ACK.hub.hAsH.S.c.3.40.5.6.7.rnd", 3, 40}, {"$JS.ACK.S.c.x.2.3.4.5", 0, 2},
    };
    static const char *const none[] = {
        "", ".", "$JS.ACK", "$JS.ACK.", "$JS.ACK.S.c", "$JS.ACK.S.c.1.2.3.4", "$JS.ACK.S.c.1.2.3.4.5.6", "$JS.ACK.a.b.S.c.1.2.3.4.5.6.7",
        "$JS.ACKS.S.c.1.2.3.4.5", "$js.ack.S.c.1.2.3.4.5", "x.$JS.ACK.S.c.1.2.3.4", "a.b.S.c.1.2.3.4.5", "$JS.API.S.c.1.2.3.4.5", "...........................",
    };
    struct ack a;
    for (size_t i = 0; i < COUNT_OF(acks); i++)
        verify(read_ack(acks[i].subject, &a) && same(a.stream, span_of("S")) && same(a.consumer, span_of("c")) &&
               a.deliveries == acks[i].deliveries && a.sequence == acks[i].sequence, acks[i].subject, __LINE__);
    for (size_t i = 0; i < COUNT_OF(none); i++) verify(!read_ack(none[i], &a), none[i], __LINE__);
}

/* Settings with this list. Returns what is wrong with it, or NULL. */
static const char *wrong_list(const char *list) {
    json_t *settings = json_object();
    json_object_set_new(settings, "consumers", json_string(list));
    json_t *consumers = read_consumers(settings);
    const char *wrong = wrong_consumers(consumers);
    json_decref(consumers);
    json_decref(settings);
    return wrong;
}

#define NAME_32 "0123456789abcdef0123456789abcdef"
#define NAME_64 NAME_32 NAME_32
#define ENTRY(stream, consumer) "{\"stream\":\"" stream "\",\"consumer\":\"" consumer "\"}"
#define LIMITED(more) "[{\"stream\":\"S\",\"consumer\":\"c\"," more "}]"

static void test_consumers(void) {
    static const char *const good[] = {
        "[]", "[" ENTRY("S", "c") "]", " [ " ENTRY("S", "c") " , " ENTRY("S", "d") " ] ", "[" ENTRY("S", "c") "," ENTRY("c", "S") "]", "[" ENTRY("\u00e9", "$x-_1") "]",
        LIMITED("\"max_messages\":1"), LIMITED("\"max_messages\":9223372036854775807,\"max_bytes\":1"), LIMITED("\"other\":0"),
        "[" ENTRY("S", "0") "," ENTRY("S", "1") "," ENTRY("S", "2") "," ENTRY("S", "3") "," ENTRY("S", "4") "," ENTRY("S", "5") "," ENTRY("S", "6") "," ENTRY("S", "7") "]",
    };
    static const char *const bad[] = {
        "", "S", "{}", "null", "\"S\"", "[", "[]x", "[1]", "[[]]", "[null]", "[{}]", "[{\"stream\":\"S\"}]", "[{\"consumer\":\"c\"}]", "[{\"stream\":\"S\",\"consumer\":1}]",
        ENTRY("S", "c"), "[" ENTRY("", "c") "]", "[" ENTRY("S", "") "]", "[" ENTRY("a.b", "c") "]", "[" ENTRY("S", "a.b") "]", "[" ENTRY("*", "c") "]", "[" ENTRY("S", ">") "]",
        "[" ENTRY("S", "a b") "]", "[" ENTRY("S\\r\\nPUB", "c") "]", "[" ENTRY("S\\u0000", "c") "]", "[" ENTRY("S", "c") "," ENTRY("S", "c") "]",
        LIMITED("\"max_messages\":0"), LIMITED("\"max_messages\":-1"), LIMITED("\"max_messages\":1.5"), LIMITED("\"max_messages\":\"1\""), LIMITED("\"max_messages\":null"),
        LIMITED("\"max_messages\":9223372036854775808"), LIMITED("\"max_bytes\":0"), LIMITED("\"max_bytes\":[]"),
        "[" ENTRY(NAME_64, NAME_64) "]",
        "[" ENTRY("S", "0") "," ENTRY("S", "1") "," ENTRY("S", "2") "," ENTRY("S", "3") "," ENTRY("S", "4") "," ENTRY("S", "5") "," ENTRY("S", "6") "," ENTRY("S", "7") "," ENTRY("S", "8") "]",
    };
    for (size_t i = 0; i < COUNT_OF(good); i++) verify(!wrong_list(good[i]), good[i], __LINE__);
    for (size_t i = 0; i < COUNT_OF(bad); i++) verify(wrong_list(bad[i]), bad[i], __LINE__);
    json_t *nothing = json_object(), *none = read_consumers(nothing);
    CHECK(json_is_array(none) && json_array_size(none) == 0 && !wrong_consumers(none));
    json_decref(none);
    json_decref(nothing);
}

/* Which consumer a message came from: one of this link's, even with the longest names and numbers. */
static void test_consumer_of(void) {
    static struct link l;
    l.conn.settings = json_object();
    json_object_set_new(l.conn.settings, "consumers", json_string("[" ENTRY("S", "c") "," ENTRY("S", "d") "," ENTRY(NAME_64, NAME_32 "0123456789abcdef0123456789abcde") "]"));
    CHECK(!consumer_of(&l, "$JS.ACK.S.c.1.2.3.4.5")); /* it has none yet */
    link_fill_consumers(&l);
    CHECK(l.consumer_count == 3 && l.conn.pulls);
    CHECK(consumer_of(&l, "$JS.ACK.S.c.1.2.3.4.5") == &l.consumers[0] && consumer_of(&l, "$JS.ACK._.h.S.d.1.2.3.4.5") == &l.consumers[1]);
    char longest[INBOX_MAX];
    (void)snprintf(longest, sizeof(longest), "$JS.ACK.%s.%s.%s.%s.%s.%s.%s", l.consumers[2].stream, l.consumers[2].name,
                   "18446744073709551615", "18446744073709551615", "18446744073709551615", "18446744073709551615", "18446744073709551615");
    CHECK(strlen(longest) == 241 && consumer_of(&l, longest) == &l.consumers[2]);
    static const char *const none[] = {"r.eply", "$JS.ACK.S.e.1.2.3.4.5", "$JS.ACK.Sc.d.1.2.3.4.5", "$JS.ACK.s.c.1.2.3.4.5", "$JS.ACK.S.cc.1.2.3.4.5", "$JS.ACK.S.c.1.2.3.*.5",
                                       "$JS.ACK.S.c.1.2.3.4.5 0\r\nPUB x"};
    for (size_t i = 0; i < COUNT_OF(none); i++) verify(!consumer_of(&l, none[i]), none[i], __LINE__);
    CHECK(!consumer_of(&l, NULL));
    json_decref(l.consumers_json);
    json_decref(l.conn.settings);
}

/* ---- keys and secrets: devel/tests/golden/xkey.json --------------------------------------------------------------------------- */

#define HOST_PUBLIC "XBND6ABUQHDG37XISQTBABPVNLOHOC7224HYWKP3Q3BFUMM2WNZSH7WC"
#define OUR_SEED "SXAJORPMTGH7KQXYR5Z6YKJFJGNEFFFEOMTD2MHPTQCBBWLGNHBTP6SH7Y"
#define OUR_PUBLIC "XAFGP65BMZFKOOPQ23SLE24I66J2D5KOR3R7GQTGFX22CA2RQJDG3XGQ"
static const char sealed_hex[] =
    "786b7631e16db43042bc4f6716b906e596780f35d1fb1013bfe2ba31448b2da31202295c7ac037d6dad7b43ae98721779a6b976fdcfbce099948df5cea12"
    "edef3bff055f89c575812f4ed5425a8f1b6ede5ec27744befb8bf3a1dc2ec8b107862b0fbdc224366e27fcfaee92f993aae3d8ef51f9d77d338ec4f01109"
    "44f6b5793d9226d3fbceac27cd575692415922c30d7d750fe503304d8be9c5c32c85d880e7c7a3bf6c843c25c9cd3750d94c88d64a427855c6c354dd4c23"
    "6b11248bb4fd3d69fea8625202d638f8";

static void test_keys(void) {
    uint8_t raw[36], again[36];
    char text[64];
    CHECK(nkey_decode(span_of(HOST_PUBLIC), raw, 35) && raw[0] == X_PUBLIC && nkey_decode(span_of(OUR_SEED), again, 36));
    nkey_x_encode(raw + 1, text);
    CHECK(strcmp(text, HOST_PUBLIC) == 0);
    CHECK(!nkey_decode(span_of(""), raw, 35) && !nkey_decode(span_of(OUR_SEED), raw, 35) && !nkey_decode(span_of(OUR_PUBLIC), raw, 36));
    for (size_t i = 0; i < NKEY_PUBLIC_LEN; i++)
        for (const char *c = "AQ7x0=\xff "; *c; c++) {
            strcpy(text, OUR_PUBLIC);
            if (text[i] == *c) continue;
            text[i] = *c;
            CHECK(!nkey_decode(span_of(text), raw, 35)); /* the CRC, or no digit */
        }
    ROUNDS(200) {
        uint8_t key[32];
        fill(key, sizeof(key));
        nkey_x_encode(key, text);
        CHECK(strlen(text) == 56 && text[0] == 'X' && nkey_decode(span_of(text), raw, 35) && memcmp(raw + 1, key, 32) == 0);
    }
    uint8_t secret[32];
    CHECK(nkey_seed(span_of(OUR_SEED), SEED_OF_X, secret) && !nkey_seed(span_of(OUR_SEED), SEED_OF_USER, secret) && !nkey_seed(span_of(OUR_PUBLIC), SEED_OF_X, secret));
    CHECK(!nkey_seed(span_of(OUR_SEED), SEED_OF_USER, NULL) && !nkey_seed(span_of(""), SEED_OF_USER, NULL));
    CHECK(nkey_seed(span_of("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"), SEED_OF_USER, NULL));
    CHECK(crc16(BYTES("123456789")) == 0x31c3);
}

static const char *text_at(const json_t *secrets, const char *key) {
    static char text[128];
    json_t *value = secret_text(json_object_get(secrets, key));
    (void)snprintf(text, sizeof(text), "%s", value ? json_string_value(value) : "(none)");
    json_decref(value);
    return text;
}

static void test_secrets(void) {
    uint8_t sealed[256];
    size_t len;
    const char *why = NULL;
    sodium_hex2bin(sealed, sizeof(sealed), sealed_hex, sizeof(sealed_hex) - 1, NULL, &len, NULL);
    CHECK(!box_open(sealed, len, &why) && strstr(why, "no xkeys"));
    CHECK(!box_start(span_of(""), span_of("")) && !box_start(span_of(OUR_SEED), span_of(HOST_PUBLIC)) && !box_start(span_of(HOST_PUBLIC), span_of(HOST_PUBLIC)));
    CHECK(box_start(span_of(HOST_PUBLIC), span_of(OUR_SEED)) && strcmp(box.public_key, OUR_PUBLIC) == 0);
    json_t *secrets = box_open(sealed, len, &why);
    CHECK(json_object_size(secrets) == 3 && strcmp(text_at(secrets, "client_jwt"), "eyJ0eXAiOiJKV1QifQ.x.y") == 0);
    CHECK(strcmp(text_at(secrets, "client_seed"), "SUAM") == 0 && strcmp(text_at(secrets, "blob"), "(none)") == 0); /* no UTF-8 */
    json_decref(secrets);
    for (size_t i = 0; i < len; i++) {
        uint8_t *changed = exactly(sealed, len);
        changed[i] ^= (uint8_t)(1 << random_below(8));
        CHECK(!box_open(changed, len, &why) && why && *why);
        free(changed);
        uint8_t *cut = exactly(sealed, i);
        CHECK(!box_open(cut, i, &why));
        free(cut);
    }
    sealed[len - 1] = 0xf9; /* the tampered vector */
    CHECK(!box_open(sealed, len, &why) && strstr(why, "changed on the way"));
    box.set = false;

    json_t *values = json_pack("{s:{s:s,s:s}, s:{s:s,s:[i,i]}, s:{s:s,s:[i]}, s:{s:s,s:i}, s:s, s:{}}", "string", "kind", "String", "value", "v",
                               "bytes", "kind", "Bytes", "value", 104, 105, "wrong", "kind", "Bytes", "value", 256, "number", "kind", "Bytes", "value", 1, "bare", "v", "empty");
    CHECK(strcmp(text_at(values, "string"), "v") == 0 && strcmp(text_at(values, "bytes"), "hi") == 0 && strcmp(text_at(values, "wrong"), "(none)") == 0);
    CHECK(strcmp(text_at(values, "number"), "(none)") == 0 && strcmp(text_at(values, "bare"), "(none)") == 0 && strcmp(text_at(values, "empty"), "(none)") == 0);
    json_decref(values);
}

/* ---- log: stderr goes to a file meanwhile ---------------------------------------------------------------------------------- */

static char logged[65536];
static int real_stderr, log_file;

static void log_begin(void) {
    fflush(stderr);
    real_stderr = dup(STDERR_FILENO);
    log_file = fileno(tmpfile());
    dup2(log_file, STDERR_FILENO);
}

static unsigned log_end(void) {
    unsigned lines = 0;
    ssize_t n = pread(log_file, logged, sizeof(logged) - 1, 0);
    logged[n > 0 ? n : 0] = 0;
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    for (const char *c = logged; *c; c++) lines += *c == '\n';
    return lines;
}

static void test_log(void) {
    static const struct { const char *name; enum level level; } levels[] = {
        {"info", LEVEL_INFO}, {"WARN", LEVEL_WARN}, {"Debug", LEVEL_DEBUG}, {"critical", LEVEL_CRITICAL}, {"off", LEVEL_OFF}, {"trace", LEVEL_TRACE},
        {"async_nats=warn,error", LEVEL_ERROR}, {"info,async_nats=trace", LEVEL_INFO}, {"", LEVEL_DEBUG}, {"loud", LEVEL_DEBUG}, {"informed", LEVEL_DEBUG}, {"inf", LEVEL_DEBUG}, {",,x=y,", LEVEL_DEBUG},
    };
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        logger.level = LEVEL_DEBUG;
        set_level(levels[i].name);
        verify(logger.level == levels[i].level, levels[i].name, __LINE__);
    }
    logger.level = LEVEL_INFO;
    char out[32];
    CHECK(strcmp(escaped(out, sizeof(out), "a\"b\\c\n\x7f\xc3\xa9", true), "a\\\"b\\\\c????") == 0);
    CHECK(strcmp(escaped(out, sizeof(out), "a\"b\\c\n\x1b[1m\xc3\xa9\x9b", false), "a\"b\\c??[1m???") == 0);
    for (size_t size = 4; size <= sizeof(out); size++) {
        char *exact = malloc(size);
        (void)escaped(exact, size, "\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"", true);
        CHECK(strlen(exact) % 2 == 0 && strlen(exact) < size); /* no half of an escape */
        free(exact);
    }
    static struct topic topic = {.kind = "link", .name = "a \"b\"\n(default)"};
    char huge[3000];
    memset(huge, '"', sizeof(huge));
    huge[sizeof(huge) - 1] = 0;
    logger.json = true;
    now = 1000;
    log_begin();
    say(&topic, LEVEL_WARN, "words: %s", huge);
    say(&topic, LEVEL_WARN, "\r\n\1\x7f%s", "two\nlines");
    say(&topic, LEVEL_DEBUG, "not at this level");
    CHECK(log_end() == 2);
    for (char *line = strtok(logged, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *json = json_loads(line, 0, NULL);
        CHECK(json && json_string_value(json_object_get(json, "message")) && json_object_get(json, "timestamp"));
        CHECK(json && strcmp(json_string_value(json_object_get(json, "level")), "WARN") == 0);
        CHECK(json && strcmp(json_string_value(json_object_get(json, "link")), "a \"b\"?(default)") == 0);
        json_decref(json);
    }
    logger.json = false;
}

/* How many lines the log accounts for: those that are written, and those that a line counts. */
static unsigned long accounted(void) {
    unsigned long sum = 0;
    for (char *line = strtok(logged, "\n"), *more; line; line = strtok(NULL, "\n"))
        sum += (more = strstr(line, " more lines")) ? (memset(more, 0, 1), strtoul(strrchr(line, ' ') + 1, NULL, 10)) : 1;
    return sum;
}

static void test_gates(void) {
    static struct topic topic = {.kind = "link", .name = "x"};
    now = 100000;
    log_begin();
    for (int i = 0; i < 1000; i++) say(&topic, LEVEL_WARN, "again %d", i);
    topic_tick(&topic, now);
    CHECK(log_end() == GATE_LINES && strstr(logged, "again 4") && !strstr(logged, "again 5"));
    log_begin();
    now += GATE_MS;
    topic_tick(&topic, now);
    topic_tick(&topic, now);
    CHECK(log_end() == 1 && strstr(logged, "995 more") && strstr(logged, "again 999"));
    log_begin();
    for (int i = 0; i < 10; i++) say(&topic, LEVEL_WARN, "again %d", i);
    now += GATE_MS;
    topic_tick(&topic, now);
    (void)log_end();
    CHECK(accounted() == 10);
    log_begin();
    now += 2 * GATE_MS;
    topic_tick(&topic, now);
    say(&topic, LEVEL_WARN, "again %d", 7);
    CHECK(log_end() == 1 && strstr(logged, "again 7")); /* it was quiet: written again */

    static struct topic busy = {.kind = "link", .name = "y"}; /* many kinds of lines in turn: few are written, none is forgotten */
    static char formats[20][64];
    log_begin();
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-security"
    for (size_t i = 0; i < 1000; i++) {
        (void)snprintf(formats[i % 20], 64, "kind %zu", i % 20);
        say(&busy, LEVEL_WARN, formats[i % 20]);
    }
#pragma GCC diagnostic pop
    now += GATE_MS;
    topic_tick(&busy, now);
    CHECK(log_end() <= 20 * GATE_LINES + GATES);
    CHECK(accounted() == 1000);
}

/* ---- records and slots ------------------------------------------------------------------------------------------------------ */

/* A record and its parameters as they have to be, which come in pieces. */
static void test_records(void) {
    static const char parent[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", state[] = "vendor=x";
    static struct link l;
    ROUNDS(300) {
        struct trace t = {random_below(3) ? parent : NULL, NULL};
        if (t.parent && random_below(2)) t.state = state;
        size_t whole = 1 + (size_t)random_below(round_ % 20 ? 3000 : 100000), at = (size_t)random_below((int)whole);
        uint8_t *params = malloc(whole);
        fill(params, whole);
        struct record *r = record_make(&l, t, params, at, random_below(2) ? whole : at);
        for (size_t n; r && at < whole; at += n) {
            uint8_t *piece = exactly(params + at, n = 1 + (size_t)random_below((int)MIN(whole - at, 40000)));
            bool added = record_add(&l, &r, piece, n);
            CHECK(added && r->len == at + n && r->len <= r->room);
            free(piece);
        }
        CHECK(r && r->len == whole && memcmp(record_params(r), params, whole) == 0 && l.held == records_held && l.held >= whole);
        struct trace back = record_trace(r);
        CHECK(same(span_of(back.parent), span_of(t.parent)) && same(span_of(back.state), span_of(t.state)));
        record_free(&l, r);
        free(params);
        CHECK(l.held == 0 && records_held == 0);
    }
    record_free(&l, NULL);
}

/* Takes records of this size until there is no more for the link; gives how many bytes it has then. */
static size_t fill_share(struct link *l, size_t len, struct record **all) {
    static uint8_t some[65536];
    for (struct record *r; (r = record_make(l, (struct trace){0}, some, len, len)); *all = r) r->next = *all;
    return l->held;
}

static void test_shares(void) {
    static struct link owners[6];
    struct record *all[6] = {0};
    size_t sum = 0;
    CHECK(!record_make(&owners[0], (struct trace){0}, NULL, 0, HELD_MAX) && !record_make(&owners[0], (struct trace){0}, NULL, 0, UINT32_MAX));
    size_t first = fill_share(&owners[0], 1000, &all[0]);
    CHECK(first > HELD_MAX * 2 / 3 - 2000 && first <= HELD_MAX * 2 / 3 + 2000); /* two thirds for one */
    uint8_t *more = calloc(1, 5000);
    struct record *before = all[0];
    CHECK(!record_add(&owners[0], &all[0], more, 5000) && all[0] == before && before->len == 1000 && owners[0].held == first);
    free(more);
    for (size_t i = 1; i < COUNT_OF(owners); i++) CHECK(fill_share(&owners[i], 100, &all[i]) > 2000); /* something for everybody */
    for (size_t i = 0; i < COUNT_OF(owners); i++) {
        sum += owners[i].held;
        for (struct record *r; (r = all[i]);) {
            all[i] = r->next;
            record_free(&owners[i], r);
        }
        CHECK(owners[i].held == 0);
    }
    CHECK(sum <= HELD_MAX && sum > HELD_MAX * 9 / 10 && records_held == 0);
}

static void test_slots(void) {
    static struct link a, b;
    static struct call *of_a[CALLS_MAX];
    struct conn *on = &a.conn;
    char inbox[INBOX_MAX + TOKEN_LEN + 16], stale[sizeof(inbox)];
    const char *suffix;
    on->inbox_len = (size_t)snprintf(on->inbox, sizeof(on->inbox), "_INBOX.abc.");
    size_t n = 0;
    for (struct call *c; (c = call_take(&a));) {
        call_until(c, CALL_REQUEST, 5);
        of_a[n++] = c;
    }
    CHECK(n == (CALLS_MAX - CALLS_MAX / 4) / 2 && a.calls == n && calls.used == n); /* half of what is not kept for all */
    size_t m = n;
    while (m < CALLS_MAX && (of_a[m] = call_take(&b))) m++;
    CHECK(m - n == (CALLS_MAX - n - CALLS_MAX / 4) / 2 && b.calls == m - n); /* and half of the rest */
    while (m > n) call_free(of_a[--m]);
    for (size_t i = 0; i < n; i++) {
        call_inbox(of_a[i], on, inbox);
        CHECK(is_subject(span_of(inbox), false) && strlen(inbox) == on->inbox_len + TOKEN_LEN);
        strcat(inbox, ".params");
        CHECK(call_of_subject(on, inbox, &suffix) == of_a[i] && strcmp(suffix, ".params") == 0);
    }
    call_inbox(of_a[3], on, stale);
    CHECK(call_of_subject(on, stale, &suffix) == of_a[3] && *suffix == 0);
    for (size_t i = 0; i < TOKEN_LEN; i++) {
        strcpy(inbox, stale);
        inbox[on->inbox_len + i] = 0;
        char *exact = (char *)exactly(inbox, on->inbox_len + i + 1);
        CHECK(!call_of_subject(on, exact, &suffix)); /* too short */
        free(exact);
        for (const char *c = "a1.*\xff"; *c; c++) {
            strcpy(inbox, stale);
            inbox[on->inbox_len + i] = *c;
            CHECK(!call_of_subject(on, inbox, &suffix));
        }
        strcpy(inbox, stale);
        inbox[on->inbox_len + i] = stale[on->inbox_len + i] == 'B' ? 'C' : 'B';
        CHECK(call_of_subject(on, inbox, &suffix) != of_a[3]); /* another slot or secret, or none */
    }
    call_free(of_a[3]);
    CHECK(!call_of_subject(on, stale, &suffix));
    struct call *again = call_take(&a);
    call_until(again, CALL_REQUEST, 5);
    CHECK(again == of_a[3] && !call_of_subject(on, stale, &suffix)); /* the same slot, and yet not that call */
    call_inbox(again, on, inbox);
    CHECK(strcmp(inbox, stale) != 0 && call_of_subject(on, inbox, &suffix) == again);
    for (size_t i = 0; i < n; i++) call_free(of_a[i]);
    CHECK(a.calls == 0 && calls.used == 0 && !call_of_subject(on, inbox, &suffix));
}

/* ---- links, and calls whose parameters come in pieces: no server is there, and nothing may be left --------------------- */

#define COMPONENT "echo"
static const char golden_link[] = /* of devel/tests/golden, with all sorts of settings */
    "{\"source_id\":\"messaging-nats\",\"target\":\"" COMPONENT "\",\"name\":\"default\",\"wit_namespace\":\"wasmcloud\",\"wit_package\":\"messaging\","
    "\"source_config\":{\"cluster_uris\":\"nats://u:p@127.0.0.1:4222,tls://[::1]\",\"subscriptions\":\"t.>,q.work|workers\",\"max_in_flight\":\"9\","
    "\"custom_inbox_prefix\":\"_INBOX.x\",\"ping_interval_sec\":\"3\"},\"source_secrets\":[]}";

/* Servers of a link that may start are named by nats://, tls://, or without a scheme. */
static void served_by(const char *list) {
    struct span server;
    for (size_t n = 0; list_item(list, n, &server); n++) {
        const char *end = memmem(server.at, server.len, "://", 3);
        CHECK(!end || (end >= server.at + 4 && strncasecmp(end - 4, "nats", 4) == 0) || (end >= server.at + 3 && strncasecmp(end - 3, "tls", 3) == 0));
    }
}

/* Every byte changed, each cut: no JSON, no link of ours, a link that is said to be wrong, or one that can be served. */
static void test_changed_links(void) {
    unsigned read = 0, served = 0;
    enum level before = logger.level;
    logger.level = LEVEL_OFF;
    (void)strcpy(self.key, "messaging-nats");
    (void)strcpy(self.lattice, "default");
    for (size_t i = 0; i < 2 * (sizeof(golden_link) - 1) * 8; i++) {
        size_t len = sizeof(golden_link) - 1, at = i / 16;
        char *text = (char *)exactly(golden_link, len);
        if (i % 16) text[at] = (char)random_below(256);
        bool is_handler;
        const char *why = NULL;
        json_t *json = json_loadb(text, i % 16 ? len : at, 0, NULL), *definition = json ? read_definition(json, &is_handler, &why) : NULL;
        if (json) read++, CHECK(definition || strlen(why) > 10);
        if (definition) {
            link_fill(&links[0], definition, merge_settings(definition, is_handler), is_handler);
            struct link *l = &links[0];
            served += !*l->wrong;
            CHECK(link_with_id(definition) == l && is_subject(span_of(l->subject), false));
            CHECK(*l->wrong || (l->max_in_flight > 0 && l->max_in_flight <= CALLS_MAX / 2 && is_token(l->component)));
            if (!*l->wrong) served_by(get(l->conn.settings, "cluster_uris"));
            link_release(l);
        }
        json_decref(json);
        free(text);
    }
    logger.level = before;
    CHECK(served > 1000 && read > served + 100);
}

static struct link *consumer_link(void) {
    json_t *definition = json_pack("{s:{s:s,s:s}, s:s, s:{}, s:{}}", "id", "source_id", COMPONENT, "name", "default", "wrong", "", "config", "secrets");
    link_fill(&links[0], definition, merge_settings(definition, false), false);
    return &links[0];
}

/* A message as nats.c's parser makes it. */
static natsMsg *message_with(const char *headers, const char *reply, const void *bytes, size_t len) {
    natsMsg *msg = NULL;
    size_t head = strlen(headers);
    char *all = malloc(head + len + 1);
    memcpy(mempcpy(all, headers, head), len ? bytes : "", len);
    CHECK(natsMsg_createWithPadding(&msg, "s", 1, reply, reply ? (int)strlen(reply) : 0, all, (int)(head + len), 0, (int)head) == NATS_OK);
    free(all);
    return msg;
}

static bool same_text(const char *a, const char *b) { return a && b ? strcmp(a, b) == 0 : a == b; }

static bool has_status(natsMsg *msg, const char *code, const char *words) {
    return span_is(status_of(msg).code, code) && span_is(status_of(msg).words, words);
}

static bool has_trace(natsMsg *msg, const char *parent, const char *state) {
    struct header h[HEADERS_MAX] = {{"tracestate", NULL}, {"traceparent", NULL}};
    read_headers(msg, h);
    return same_text(h[1].value, parent) && same_text(h[0].value, state);
}

static bool says_nobody(const char *headers, const char *data) {
    natsMsg *msg = message_with(headers, NULL, data, strlen(data));
    bool nobody = is_no_responders(msg);
    natsMsg_free(msg);
    return nobody;
}

static const struct { const char *headers, *parent, *state, *code, *words; } blocks[] = {
    {"", NULL, NULL, "", ""},
    {"NATS/1.0\r\n\r\n", NULL, NULL, "", ""},
    {"NATS/1.0\r\ntraceparent: a\r\ntracestate: b=c,d=e\r\n\r\n", "a", "b=c,d=e", "", ""},
    {"NATS/1.0\r\ntracestate:b\r\ntraceparent:\t a b\r\n\r\n", "a b", "b", "", ""},
    {"NATS/1.0\r\ntraceparent: first\r\ntraceparent: second\r\n\r\n", "first", NULL, "", ""},
    {"NATS/1.0\r\nx-traceparent: a\r\ntraceparents: b\r\nTraceparent: c\r\n\r\n", NULL, NULL, "", ""},
    {"NATS/1.0\r\ntraceparent:\r\ntracestate\r\n\r\n", "", NULL, "", ""},
    {"NATS/1.0\r\ntraceparent: a\rtracestate: b\r\n\r\n", "a\rtracestate: b", NULL, "", ""},
    {"NATS/1.0\r\ntraceparent: no end", NULL, NULL, "", ""},
    {"NATS/1.0\r\ntraceparent", NULL, NULL, "", ""},
    {"NATS/1.0 503\r\n\r\n", NULL, NULL, "503", ""},
    {"NATS/1.0 100 Idle Heartbeat\r\ntraceparent: a\r\n\r\n", "a", NULL, "100", "Idle Heartbeat"},
    {"NATS/1.0 409 \r\n\r\n", NULL, NULL, "409", ""},
    {"NATS/1.0 50\r\n\r\n", NULL, NULL, "", ""},
    {"NATS/1.0 503", NULL, NULL, "", ""},
    {"HTTP/1.1 503\r\n\r\n", NULL, NULL, "", ""},
    {"\r\n", NULL, NULL, "", ""},
    {"x", NULL, NULL, "", ""},
};

/* Headers and status lines, as they come and as they should not. Each is looked up twice, since looking changes the message. */
static void test_headers(void) {
    for (size_t i = 0; i < COUNT_OF(blocks); i++) {
        natsMsg *msg = message_with(blocks[i].headers, NULL, "data", 4);
        ROUNDS(2) {
            CHECK(has_status(msg, blocks[i].code, blocks[i].words));
            CHECK(has_trace(msg, blocks[i].parent, blocks[i].state));
        }
        CHECK(same_text(natsMsg_GetData(msg), "data"));
        natsMsg_free(msg);
        CHECK(!says_nobody(blocks[i].headers, "data"));
        CHECK(says_nobody(blocks[i].headers, "") == same_text(blocks[i].code, "503"));
    }
}

/* What headers_write() writes is as long as headers_size() says, and nats.c reads the same in it. */
static void test_written_headers(void) {
    const struct header some[] = {{"source-id", "messaging-nats"}, {"left-out", NULL}, {"traceparent", "00-1"}, {NULL, NULL}};
    const struct header four[] = {{"a", "1"}, {"b", "2"}, {"c", "3"}, {"d", "4"}}, none[] = {{"a", NULL}, {NULL, NULL}};
    const char *value = NULL;
    natsMsg *msg = NULL;
    CHECK(headers_size(none) == 0 && headers_size(NULL) == 0);
    CHECK(headers_size(four) == strlen("NATS/1.0\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n\r\n"));
    int head = (int)headers_size(some);
    CHECK(natsMsg_createWithPadding(&msg, "s", 1, NULL, 0, NULL, head, 0, head) == NATS_OK);
    headers_write((char *)headers_of(msg).at, some);
    CHECK(headers_of(msg).len == (size_t)head && memcmp(headers_of(msg).at + head - 4, "\r\n\r\n", 5) == 0);
    CHECK(natsMsgHeader_Get(msg, "source-id", &value) == NATS_OK && strcmp(value, "messaging-nats") == 0);
    CHECK(natsMsgHeader_Get(msg, "traceparent", &value) == NATS_OK && strcmp(value, "00-1") == 0);
    CHECK(natsMsgHeader_Get(msg, "left-out", &value) == NATS_NOT_FOUND);
    natsMsg_free(msg);
}

/* A piece of a call's parameters: the first, or another for the call that waits for one. */
static void piece(bool first, const void *bytes, size_t len) {
    uint8_t *exact = exactly(bytes, len);
    natsMsg *msg = message_with("NATS/1.0\r\nsource-id: " COMPONENT "\r\n\r\n", first ? "_INBOX.caller" : NULL, exact, len);
    if (first) on_call(msg, false);
    for (struct call *c = calls.slots; !first && c < calls.slots + calls.fresh; c++)
        if (c->kind == CALL_PARAMS) on_params(c, msg);
    natsMsg_free(msg);
    free(exact);
}

/* Chunks that never end, or would never fit: each call ends, and what it held is given back. */
static void test_endless_chunks(void) {
    static const uint8_t block[65536] = {[0] = 'a'};
    static const struct { const char *first; size_t len; bool taken; } starts[] = {
        {VECTOR("\1a\x80\x80\x40"), true},                   /* a body of 1 MB: it comes to its end */
        {VECTOR("\x80\x80\x40"), true},                       /* a subject of 1 MB, and no end of the body behind it */
        {VECTOR("\1a\xff\xff\xff\xff\x0f"), false},        /* 2^32 - 1 bytes: refused at once */
        {VECTOR("\1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\1"), false}, /* 2^64 - 1 */
        {VECTOR("\xff\xff\xff"), true},                       /* a length that goes on and on */
        {VECTOR(""), true},
    };
    struct link *l = consumer_link();
    lattice.topic.kind = "lattice";
    log_begin();
    for (size_t i = 0; i < COUNT_OF(starts); i++)
        for (size_t k = 0; k < 3; k++) {
            size_t pieces = 0, size = k == 0 ? 1 : k == 1 ? 4000 : sizeof(block);
            piece(true, starts[i].first, starts[i].len);
            CHECK((l->calls == 1) == starts[i].taken && calls.used == l->calls);
            if (size == 1 && i < 2) piece(false, block, 60000), piece(false, block, 60000);
            for (; l->calls > 0 && pieces < 2000000 / size; pieces++) {
                piece(false, size > 1 ? block : (const uint8_t *)"\xff", size);
                CHECK(l->held == records_held && l->held < 2 * PARAMS_MAX + 1000);
                if (size > 1 || pieces < 500) continue;
                piece(false, "", 0); /* enough of that: an end before its time */
                CHECK(l->calls == 0);
            }
            CHECK(l->calls == 0 && calls.used == 0 && l->held == 0 && records_held == 0);
        }
    piece(true, VECTOR("\1a\xff"));
    CHECK(l->calls == 1);
    piece(false, VECTOR("\xff\xff\xff\x0f")); /* a piece says how long it is going to be: over at once */
    CHECK(l->calls == 0 && calls.used == 0 && records_held == 0);
    link_release(l);
    CHECK(log_end() > 0);
}

/* Parameters cut at two places: the call ends with the piece that makes them whole, not before. */
static void test_pieces(void) {
    static const char params[] = "\6t.echo\5hello\1\7r.eply1";
    const size_t len = sizeof(params) - 1;
    struct link *l = consumer_link();
    log_begin();
    for (size_t a = 0; a <= len; a++)
        for (size_t b = a + 1; b <= len; b++) {
            piece(true, params, a);
            CHECK((l->calls == 1) == (a < len));
            piece(false, params + a, b - a);
            CHECK((l->calls == 1) == (b < len));
            if (b < len) piece(false, params + b, len - b);
            CHECK(l->calls == 0 && calls.used == 0 && records_held == 0);
        }
    link_release(l);
    CHECK(log_end() > 0);
}

int main(void) {
    static const struct { const char *name; void (*test)(void); } groups[] = {
        {"u32", test_u32}, {"numbers and lengths", test_numbers}, {"strings", test_strings}, {"golden parameters", test_golden},
        {"random messages", test_random_messages}, {"results in pieces", test_results}, {"changed results", test_changed_results},
        {"subjects", test_subjects}, {"headers", test_headers}, {"written headers", test_written_headers}, {"lists", test_lists}, {"servers", test_servers}, {"acknowledgements", test_acks},
        {"lists of consumers", test_consumers}, {"consumers of messages", test_consumer_of}, {"nkeys", test_keys},
        {"secrets", test_secrets}, {"log lines", test_log}, {"repeated lines", test_gates}, {"records", test_records},
        {"shares of records", test_shares}, {"call slots", test_slots}, {"changed links", test_changed_links},
        {"endless chunks", test_endless_chunks}, {"parameters in pieces", test_pieces}, {"arena", test_arena},
    };
    if (sodium_init() < 0) return 1;
    for (size_t i = 0; i < COUNT_OF(groups); i++) {
        unsigned before = passed + failed, failed_before = failed;
        shown = 0;
        if (groups[i].test) groups[i].test();
        printf("%s %s: %u checks\n", failed > failed_before ? "FAIL" : groups[i].test ? "ok  " : "left out,", groups[i].name, passed + failed - before);
        fflush(stdout);
    }
    printf("%u passed, %u failed\n", passed, failed);
    return failed > 0;
}
#endif
