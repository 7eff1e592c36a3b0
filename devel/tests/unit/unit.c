/* unit - tests of what provider.c is made of: codecs, keys, deliveries, slots, links. Built and run by
 * `make unit`.
 *
 * It includes the source, so that static functions are in reach; what nats.c does for subscriptions is
 * noted. The files of deps/ have tests of their own: devel/tests/unit/NAME.c. Says what failed, a line for
 * each group, and "N passed, M failed".
 *
 * SPDX-License-Identifier: Apache-2.0 */
#pragma GCC diagnostic ignored "-Wunused-function" /* what only main needs */
#pragma GCC diagnostic ignored "-Wunused-variable"
#define PROVIDER_WITHOUT_MAIN
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <nats/nats.h>

#include "unit.h"
#include "failing_json.h"

static natsStatus noted_subscribe(natsSubscription **sub, natsConnection *nc, const char *subject);
static natsStatus noted_queue_subscribe(natsSubscription **sub, natsConnection *nc, const char *subject,
                                        const char *queue);
static void noted_destroy(natsSubscription *sub);
#define natsConnection_SubscribeSync noted_subscribe
#define natsConnection_QueueSubscribeSync noted_queue_subscribe
#define natsSubscription_GetSubject(sub) ((const char *)(sub))
#define natsSubscription_GetID(sub) 0
#define natsSubscription_Destroy noted_destroy
#include "../../../provider.c"
#include "../../../deps/settings.c"

/* Text of up to `len` bytes, UTF-8, in memory of exactly its size, so that sanitizers see a step beyond
 * it. */
static struct span random_text(size_t len) {
    static const char *const letters[] = {"a", ".", "Z", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80",
                                          "\n"};
    char *text = malloc(len + 8);
    size_t n = 0;
    while (n < len) n += (size_t)sprintf(text + n, "%s", letters[random_below(COUNT_OF(letters))]);
    return (struct span){realloc(text, n + !n), n};
}

static bool same(struct span a, struct span b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}
#define BYTES(text) ((const uint8_t *)(text)), sizeof(text) - 1

static struct reader reader_of(const uint8_t *bytes, size_t len) {
    return (struct reader){.start = bytes, .at = bytes, .end = bytes + len};
}

/* ---- wire values --------------------------------------------------------------------------------------- */

static void test_u32(void) {
    static const struct {
        uint32_t value;
        const char *bytes;
        size_t len;
    } golden[] = {
        {0,          "\0",                   1},
        {1,          "\1",                   1},
        {127,        "\x7f",                 1},
        {128,        "\x80\1",               2},
        {1500,       "\xdc\x0b",             2},
        {16383,      "\xff\x7f",             2},
        {16384,      "\x80\x80\1",           3},
        {2097151,    "\xff\xff\x7f",         3},
        {2097152,    "\x80\x80\x80\1",       4},
        {268435455,  "\xff\xff\xff\x7f",     4},
        {268435456,  "\x80\x80\x80\x80\1",   5},
        {UINT32_MAX, "\xff\xff\xff\xff\x0f", 5},
    };
    static const struct {
        const char *bytes;
        size_t len;
    } wrong[] = {
        {"\xff\xff\xff\xff\x1f",   5},
        {"\x80\x80\x80\x80\x10",   5},
        {"\xff\xff\xff\xff\x7f",   5}, /* over 2^32 - 1 */
        {"\x80\x80\x80\x80\x80\0", 6},
        {"\xff\xff\xff\xff\xff\1", 6},
        {"\x80\x80\x80\x80\x80",   5}, /* six bytes */
    };
    uint8_t out[8];
    uint32_t value = 1;
    for (size_t i = 0; i < COUNT_OF(golden); i++) {
        CHECK(write_u32(out, golden[i].value) == golden[i].len &&
              memcmp(out, golden[i].bytes, golden[i].len) == 0);
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

/* Any number comes back; one of 2^32 or more, in as many bytes as it takes, is refused, also where it is a
 * length. */
static void test_numbers(void) {
    uint8_t out[16];
    for (unsigned bits = 0; bits <= 64; bits++)
        for (uint64_t i = 0; i < 20; i++) {
            uint64_t number = (bits == 64 ? 0 : (uint64_t)1 << bits) + i -
                              (bits < 5 ? 0 : 10); /* about 2^bits */
            uint32_t value = 0;
            size_t len = 0;
            for (uint64_t rest = number; rest || !len; rest >>= 7)
                out[len++] = (uint8_t)(rest | (rest > 0x7f ? 0x80 : 0));
            struct reader r = reader_of(out, len), of_bytes = r, of_publish = r;
            struct span s;
            struct message m;
            if (number > UINT32_MAX) {
                CHECK(read_u32(&r, &value) == MALFORMED && read_bytes(&of_bytes, &s) == MALFORMED &&
                      read_publish(&of_publish, &m) == MALFORMED);
                continue;
            }
            CHECK(read_u32(&r, &value) == WHOLE && value == number && r.at == r.end &&
                  write_u32(out, value) == len);
            if (number == 0) continue;
            CHECK(read_bytes(&of_bytes, &s) == NEEDS_MORE &&
                  of_bytes.needs == len + MIN(number, 2u * PARAMS_MAX));
            CHECK(read_publish(&of_publish, &m) == NEEDS_MORE && of_publish.needs == of_bytes.needs);
        }
}

static void test_strings(void) {
    static const char *const good[] = {"",
                                       "a",
                                       "\x7f",
                                       "\xc2\x80",
                                       "\xdf\xbf",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xef\xbf\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       "gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80!"};
    static const char *const bad[] = {"\x80",
                                      "\xbf",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xc2"
                                      "a",
                                      "\xe0\x80\x80",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xed\xbf\xbf",
                                      "\xe2\x82",
                                      "\xe2\x82"
                                      "a",
                                      "\xf0\x80\x80\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xf0\x9f\x98",
                                      "\xf0\x9f"
                                      "aa",
                                      "\xfe",
                                      "\xff",
                                      "ok\xff",
                                      "\xc3\xa9\xa9"};
    for (size_t i = 0; i < COUNT_OF(good) + COUNT_OF(bad); i++) {
        const char *text = i < COUNT_OF(good) ? good[i] : bad[i - COUNT_OF(good)];
        size_t n = strlen(text);
        uint8_t *bytes = malloc(n + 1);
        bytes[0] = (uint8_t)n;
        memcpy(bytes + 1, text, n);
        struct reader r = reader_of(bytes, n + 1);
        struct span s;
        VERIFY(is_utf8((struct span){(char *)bytes + 1, n}) == (i < COUNT_OF(good)), text);
        CHECK(read_string(&r, &s) == (i < COUNT_OF(good) ? WHOLE : MALFORMED));
        r.at = bytes;
        CHECK(read_bytes(&r, &s) == WHOLE && s.len == n); /* a list of bytes may be anything */
        free(bytes);
    }
    struct span s;
    struct reader r = reader_of(BYTES("\xff\xff\xff\xff\x0f"
                                      "abc"));
    CHECK(read_bytes(&r, &s) == NEEDS_MORE && r.needs == 5 + 2u * PARAMS_MAX);
    CHECK(is_utf8((struct span){"a\0b", 3}) && is_utf8((struct span){NULL, 0}));
}

enum kind { OF_PUBLISH, OF_REQUEST };

/* Decodes bytes that lie in memory of exactly their size. `m` points into *kept, which the caller frees. */
static enum decoded decode(enum kind kind, const void *bytes, size_t len, struct message *m,
                           uint32_t *timeout, size_t *needed, uint8_t **kept) {
    *kept = exactly(bytes, len);
    struct reader r = reader_of(*kept, len);
    *m = (struct message){0};
    enum decoded d = kind == OF_PUBLISH ? read_publish(&r, m) : read_request(&r, m, timeout);
    if (d == WHOLE) CHECK(r.at <= r.end);
    *needed = d == WHOLE ? (size_t)(r.at - r.start) : r.needs;
    return d;
}

/* Every beginning of a valid encoding needs more, no more than there is to come; every changed byte is
 * taken calmly. */
static void torment(enum kind kind, const uint8_t *bytes, size_t len) {
    struct message m;
    uint32_t timeout;
    size_t needed;
    uint8_t *kept, *changed = exactly(bytes, len);
    for (size_t cut = 0; cut < len; cut++) {
        CHECK(decode(kind, bytes, cut, &m, &timeout, &needed, &kept) == NEEDS_MORE && needed > cut &&
              needed <= len);
        free(kept);
    }
    for (size_t i = 0; i < len; i++)
        for (int value = 0; value < 256; value += len < 100 ? 1 : 1 + random_below(60)) {
            changed[i] = (uint8_t)value;
            enum decoded d = decode(kind, changed, len, &m, &timeout, &needed, &kept);
            if (d == WHOLE)
                CHECK(is_utf8(m.subject) && is_utf8(m.reply_to) &&
                      m.subject.len + m.body.len + m.reply_to.len < len && needed <= len);
            if (d == NEEDS_MORE) CHECK(needed > len);
            changed[i] = bytes[i];
            free(kept);
        }
    free(changed);
}

#define VECTOR(text) text, sizeof(text) - 1
#define INBOX "_INBOX.d38wZo1FoVU9VBFCPUeb6X.seZhYZam"

static void test_golden(void) { /* of devel/tests/golden/lattice-1.9.2.jsonl */
    static const struct {
        enum kind kind;
        const char *bytes;
        size_t len;
        const char *subject, *body, *reply;
        uint32_t timeout;
    } golden[] = {
        /* clang-format off */
        {OF_PUBLISH, VECTOR("\6t.echo\5hello\1&" INBOX), "t.echo", "hello", INBOX, 0},
        {OF_PUBLISH, VECTOR("&" INBOX "\5hello\0"), INBOX, "hello", NULL, 0},
        {OF_PUBLISH, VECTOR("\6t.fail\4boom\0"), "t.fail", "boom", NULL, 0},
        {OF_PUBLISH, VECTOR("\6q.work\6queued\1\10t3.reply"), "q.work", "queued", "t3.reply", 0},
        {OF_REQUEST, VECTOR("\tsvc.upper\5shout\xdc\x0b"), "svc.upper", "shout", NULL, 1500},
        {OF_REQUEST, VECTOR("\nsvc.nobody\5shout\xdc\x0b"), "svc.nobody", "shout", NULL, 1500},
        /* clang-format on */
    };
    for (size_t i = 0; i < COUNT_OF(golden); i++) {
        struct message m;
        uint32_t timeout = 0;
        size_t needed;
        uint8_t *kept, out[128];
        CHECK(decode(golden[i].kind, golden[i].bytes, golden[i].len, &m, &timeout, &needed, &kept) == WHOLE &&
              needed == golden[i].len);
        CHECK(same(m.subject, span_of(golden[i].subject)) && same(m.body, span_of(golden[i].body)) &&
              timeout == golden[i].timeout);
        CHECK(m.has_reply == !!golden[i].reply && same(m.reply_to, span_of(golden[i].reply)));
        if (golden[i].kind == OF_PUBLISH)
            CHECK(write_message(out, &m) == golden[i].len &&
                  memcmp(out, golden[i].bytes, golden[i].len) == 0);
        free(kept);
        torment(golden[i].kind, (const uint8_t *)golden[i].bytes, golden[i].len);
    }
    /* what the provider answers to a request, behind the tag */
    struct message m = {.subject = span_of("_INBOX.Ksu8nptpZnquWAAFgtK88e.Ksu8nptpZnquWAAFgtK87H"),
                        .body = span_of("SHOUT")};
    static const char reply[] = "4_INBOX.Ksu8nptpZnquWAAFgtK88e.Ksu8nptpZnquWAAFgtK87H\5SHOUT\0";
    uint8_t out[128];
    CHECK(write_message(out, &m) == sizeof(reply) - 1 && memcmp(out, reply, sizeof(reply) - 1) == 0);
    size_t needed;
    uint8_t *kept;
    CHECK(decode(OF_PUBLISH, "\1a\1b\2", 5, &m, NULL, &needed, &kept) == MALFORMED); /* an option is 0 or 1 */
    free(kept);
    CHECK(decode(OF_PUBLISH, "\1\xff\1b\0", 5, &m, NULL, &needed, &kept) == MALFORMED);
    free(kept);
    CHECK(decode(OF_PUBLISH, "\0\0\1\0", 4, &m, NULL, &needed, &kept) == WHOLE && m.has_reply &&
          m.reply_to.len == 0);
    free(kept);
}

static void test_random_messages(void) {
    ROUNDS(400) {
        uint32_t timeout = (uint32_t)random_below(INT32_MAX) >> random_below(31), got = 0;
        int size = round_ % 40 ? 300 : 40000;
        struct message m =
                           {
                               .subject = random_text((size_t)random_below(200)),
                               .body = {malloc((size_t)size), (size_t)random_below(size)},
                               .has_reply = random_below(2)
        },
                       back;
        fill((char *)(uintptr_t)m.body.at, m.body.len);
        if (m.has_reply) m.reply_to = random_text((size_t)random_below(200));
        uint8_t *out = malloc(message_size(&m)), *kept;
        size_t len = write_message(out, &m), needed;
        CHECK(len == message_size(&m));
        CHECK(decode(OF_PUBLISH, out, len, &back, NULL, &needed, &kept) == WHOLE && needed == len &&
              same(back.subject, m.subject) && same(back.body, m.body) && back.has_reply == m.has_reply &&
              same(back.reply_to, m.reply_to));
        free(kept);
        if (size == 300 && round_ < 60) torment(OF_PUBLISH, out, len);
        free(out);
        out = malloc(bytes_size(m.subject.len) + bytes_size(m.body.len) + 5);
        len = write_bytes(out, m.subject);
        len += write_bytes(out + len, m.body);
        len += write_u32(out + len, timeout);
        CHECK(decode(OF_REQUEST, out, len, &back, &got, &needed, &kept) == WHOLE && needed == len &&
              got == timeout && same(back.body, m.body));
        free(kept);
        if (size == 300 && round_ < 60) torment(OF_REQUEST, out, len);
        free(out);
        free((void *)(uintptr_t)m.subject.at);
        free((void *)(uintptr_t)m.body.at);
        free((void *)(uintptr_t)m.reply_to.at);
    }
}

/* What is going to be written is known before, also where a length takes another byte. */
static void test_sizes(void) {
    static const size_t edges[] = {0, 1, 127, 128, 16383, 16384, 2097151, 2097152};
    uint8_t *out = malloc(2097152 + 200000), *some = calloc(1, 2097152);
    for (size_t i = 0; i < COUNT_OF(edges); i++) {
        struct span s = {(const char *)some, edges[i]};
        CHECK(bytes_size(s.len) == write_bytes(out, s));
        for (size_t k = 0; k < 6; k++) {
            size_t other = edges[(i + k) % 6];
            struct message m = {
                .subject = {s.at, other},
                  .body = s, .has_reply = k % 2
            };
            if (m.has_reply) m.reply_to = (struct span){s.at, edges[k]};
            CHECK(message_size(&m) == write_message(out, &m));
        }
    }
    free(out);
    free(some);
}

/* An error text is cut where a character ends. */
static void test_error_texts(void) {
    uint8_t result[ERROR_MAX + 8];
    char text[2 * ERROR_MAX];
    for (size_t len = 0; len + 4 < sizeof(text); len++) {
        struct span s;
        memset(text, 'a', len);
        strcpy(text + len, "\xe2\x82\xac");
        size_t n = write_error(result, "nats send error: ", text);
        struct reader r = reader_of(result, n);
        CHECK(*r.at++ == 1 && read_string(&r, &s) == WHOLE && r.at == r.end && s.len < ERROR_MAX);
        CHECK(s.len + 3 >= MIN(ERROR_MAX - 1, 17 + strlen(text)) &&
              memcmp(s.at, "nats send error: ", 17) == 0);
    }
}

struct known_result {
    const char *bytes;
    size_t len;
    enum decoded how;
    const char *text;
};

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
    if (d == WHOLE) CHECK(r.is_error == !!known->text && strcmp(r.text, known->text ? known->text : "") == 0);
}

/* A result in two pieces, each in memory of its size, and then the same in one. */
static void result_in_two(const uint8_t *bytes, size_t len, size_t cut) {
    uint8_t *first = exactly(bytes, cut), *second = exactly(bytes + cut, len - cut);
    struct result whole = {0}, r = {0};
    enum decoded d = read_result(&whole, bytes, len), p = read_result(&r, first, cut);
    if (p == NEEDS_MORE) p = read_result(&r, second, len - cut);
    CHECK(p == d && memcmp(&whole, &r, sizeof(r)) == 0 && whole.kept < sizeof(whole.text));
    free(first);
    free(second);
}

/* Every byte changed to every other: an error or another result, the same in one piece and in two. */
static void test_changed_results(void) {
    static const char *const results[] = {"\1\x0ctold to fail", "\1\x8c\x80\x80\x80\x01told", "\1\1x",
                                          "\1\xff\xff\xff\xff\x0fxyz"};
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
        {VECTOR("\0"),                               WHOLE,      NULL          },
        {VECTOR("\1\x0ctold to fail"),               WHOLE,      "told to fail"},
        {VECTOR("\1\0"),                             WHOLE,      ""            },
        {VECTOR("\1\x8c\0told to fail"),             WHOLE,      "told to fail"},
        {VECTOR("\1\x8c\x80\x80\x80\0told to fail"), WHOLE,      "told to fail"},
        {VECTOR("\2"),                               MALFORMED,  NULL          },
        {VECTOR("\xff"),                             MALFORMED,  NULL          },
        {VECTOR("\1\xff\xff\xff\xff\xff\1"),         MALFORMED,  NULL          },
        {VECTOR("\1\xff\xff\xff\xff\x1f"),           MALFORMED,  NULL          },
        {VECTOR("\1\x80\x80\x80\x80\x80"),           MALFORMED,  NULL          },
        {VECTOR("\1\5abcd"),                         NEEDS_MORE, NULL          },
        {VECTOR("\1"),                               NEEDS_MORE, NULL          },
        {VECTOR(""),                                 NEEDS_MORE, NULL          },
        {VECTOR("\1\xff\xff\xff\xff\x0fxyz"),        NEEDS_MORE, NULL          },
        {VECTOR("\0trailing"),                       WHOLE,      NULL          },
    };
    for (size_t i = 0; i < COUNT_OF(results); i++)
        for (size_t a = 0; a <= results[i].len; a++)
            for (size_t b = a; b <= results[i].len; b++) result_in_pieces(&results[i], a, b);
    struct result r = {0};
    CHECK(read_result(&r, BYTES("\1\xe8\7")) == NEEDS_MORE);
    for (int i = 0; i < 1000; i++)
        CHECK(read_result(&r, (const uint8_t *)"x", 1) == (i < 999 ? NEEDS_MORE : WHOLE));
    CHECK(strlen(r.text) == sizeof(r.text) - 1); /* of a long text the beginning is kept */
}

/* ---- subjects, lists ----------------------------------------------------------------------------------- */

static void tell_nobody(void *user, const char *text) { (void)user, (void)text; }

static bool is_list(const char *subscriptions) {
    return subscription_faults(subscriptions, &(struct listener){tell_nobody, NULL}) == 0;
}

static void test_lists(void) {
    static const struct {
        const char *list;
        size_t count;
        bool ok;
    } lists[] = {
        {"",              0, true },
        {",",             0, true },
        {" , ,, ",        0, true },
        {"a",             1, true },
        {"a,b",           2, true },
        {" a , b\t",      2, true },
        {"a|q",           1, true },
        {"a.*|q,b.>,>|q", 3, true },
        {"a,,b,",         2, true },
        {"a|",            1, false},
        {"|q",            1, false},
        {"|",             1, false},
        {"a|q|r",         1, true },
        {"a|q r",         1, false},
        {"a b",           1, false},
        {"a..b",          1, false},
        {"a,b.>.c",       2, false},
        {"a|*",           1, false},
        {"\xff",          1, false},
        {"a\r\nb",        1, false},
    };
    for (size_t i = 0; i < COUNT_OF(lists); i++) {
        VERIFY(is_list(lists[i].list) == lists[i].ok, lists[i].list);
        VERIFY(count_items(lists[i].list) == lists[i].count, lists[i].list);
    }
    char many[4 * SUBSCRIPTIONS_MAX + 8] = "";
    for (int i = 0; i < SUBSCRIPTIONS_MAX; i++) strcat(many, "a,");
    CHECK(is_list(many) && count_items(many) == SUBSCRIPTIONS_MAX && count_items(NULL) == 0);
    strcat(many, "a");
    CHECK(!is_list(many));
    struct span subject, queue;
    CHECK(split_subscription(span_of("q.work|workers"), &subject, &queue) &&
          same(subject, span_of("q.work")) && same(queue, span_of("workers")));
}

/* ---- INFO: what is left of it for nats.c --------------------------------------------------------------- */

static void test_info(void) {
    static const char *const infos[][2] = {
        /* clang-format off */
        {"{}", "{}"},
        {" {\t} x", "{}"},
        {"{\"port\":4222}", "{\"port\":4222}"},
        {"{ \"port\" : -1 , \"headers\" : true }\r", "{\"port\":-1,\"headers\":true}"},
        {"{\"server_id\":\"a, b}\",\"x\":1,\"nonce\":\"\"}", "{\"server_id\":\"a, b}\",\"nonce\":\"\"}"},
        {"{\"connect_urls\":[\"a\",\"b\"],\"proto\":1}", "{\"proto\":1}"},
        {"{\"a\":{\"port\":1,\"b\":[{}]},\"port\":2}", "{\"port\":2}"},
        {"{\"port\":1e999999999999,\"proto\":1.5,\"client_id\":12345678901234567890}", "{}"},
        {"{\"port\":{},\"host\":[],\"version\":null,\"nonce\":\"\\u0041\",\"ldm\":tru,"
         "\"headers\":\"x\"\"y\"}",
         "{}"},
        {"{\"port\":1,\"port\":2,}", "{\"port\":1,\"port\":2}"},
        {"{\"max_payload\":9223372036854775807,\"ldm\":false}",
         "{\"max_payload\":9223372036854775807,\"ldm\":false}"},
        {"{\"a\\\"b\":1,\"host\":\"a\tb\"}", "{}"},
        {"", ""},
        {"[1]", ""},
        {"{", ""},
        {"{\"", ""},
        {"{\"port", ""},
        {"{\"port\"", ""},
        {"{\"port\":", ""},
        {"{\"port\":1", ""},
        {"{\"port\":\"1}", ""},
        {"{\"port\":[1}", ""},
        {"{port:1}", ""},
        {"{\"a\\", ""},
        {"{\"port\" 1}", ""},
        {"{,}", ""},
        /* clang-format on */
    };
    for (size_t i = 0; i < COUNT_OF(infos); i++) {
        char *json = (char *)exactly(infos[i][0], strlen(infos[i][0]));
        struct servers said = {0};
        size_t left = guard_info(json, strlen(infos[i][0]), &said);
        VERIFY(same((struct span){json, left}, span_of(infos[i][1])), infos[i][0]);
        free(json);
    }
}

/* ---- JetStream: lists of consumers --------------------------------------------------------------------- */

/* The settings of a link with this value of a key, besides servers. */
static json_t *settings_with(const char *key, const char *value) {
    json_t *definition = json_pack("{s:{s:s}, s:{}}", "config", "cluster_uris", "h", "secrets");
    json_object_set_new(json_object_get(definition, "config"), key,
                        json_stringn_nocheck(value, strlen(value)));
    json_t *settings = merge_settings(&self.defaults, definition, true);
    json_decref(definition);
    CHECK(settings);
    return settings;
}

/* What is wrong with them, or NULL. */
static const char *key_error(const char *key, const char *value) {
    json_t *settings = settings_with(key, value);
    const char *error = settings_error(settings);
    json_decref(settings);
    return error;
}

static const char *wrong_list(const char *list) { return key_error("consumers", list); }

#define NAME_32 "0123456789abcdef0123456789abcdef"
#define NAME_64 NAME_32 NAME_32
#define ENTRY(stream, consumer) "{\"stream\":\"" stream "\",\"consumer\":\"" consumer "\"}"
#define ENTRY_IN(stream, consumer, domain) \
    "{\"stream\":\"" stream "\",\"consumer\":\"" consumer "\",\"domain\":\"" domain "\"}"
#define LIMITED(more) "[{\"stream\":\"S\",\"consumer\":\"c\"," more "}]"

static void test_consumers(void) {
    static const char *const good[] = {
        "[]",
        "[" ENTRY("S", "c") "]",
        " [ " ENTRY("S", "c") " , " ENTRY("S", "d") " ] ",
        "[" ENTRY("S", "c") "," ENTRY("c", "S") "]",
        "[" ENTRY("\u00e9", "$x-_1") "]",
        LIMITED("\"max_messages\":1"),
        LIMITED("\"max_messages\":9223372036854775807,\"max_bytes\":1"),
        LIMITED("\"other\":0"),
        LIMITED("\"domain\":\"hub\""),
        LIMITED("\"api_prefix\":\"from.other.account\",\"group\":\"jobs/A_=-\""),
        "[" ENTRY("S", "c") "," ENTRY_IN("S", "c", "hub") "," ENTRY_IN("S", "c", "leaf") "]",
        "[" ENTRY("S", "0") "," ENTRY("S", "1") "," ENTRY("S", "2") "," ENTRY("S", "3") "," ENTRY(
            "S", "4") "," ENTRY("S", "5") "," ENTRY("S", "6") "," ENTRY("S", "7") "]",
    };
    static const char *const bad[] = {
        "S",
        "{}",
        "null",
        "\"S\"",
        "[",
        "[]x",
        "[1]",
        "[[]]",
        "[null]",
        "[{}]",
        "[{\"stream\":\"S\"}]",
        "[{\"consumer\":\"c\"}]",
        "[{\"stream\":\"S\",\"consumer\":1}]",
        ENTRY("S", "c"),
        "[" ENTRY("", "c") "]",
        "[" ENTRY("S", "") "]",
        "[" ENTRY("a.b", "c") "]",
        "[" ENTRY("S", "a.b") "]",
        "[" ENTRY("*", "c") "]",
        "[" ENTRY("S", ">") "]",
        "[" ENTRY("S", "a b") "]",
        "[" ENTRY("S\\r\\nPUB", "c") "]",
        "[" ENTRY("S\\u0000", "c") "]",
        "[" ENTRY("S", "c") "," ENTRY("S", "c") "]",
        LIMITED("\"max_messages\":0"),
        LIMITED("\"max_messages\":-1"),
        LIMITED("\"max_messages\":1.5"),
        LIMITED("\"max_messages\":\"1\""),
        LIMITED("\"max_messages\":null"),
        LIMITED("\"max_messages\":9223372036854775808"),
        LIMITED("\"max_bytes\":0"),
        LIMITED("\"max_bytes\":[]"),
        LIMITED("\"domain\":\"a.b\""),
        LIMITED("\"domain\":\"\""),
        LIMITED("\"domain\":null"),
        LIMITED("\"domain\":\"" NAME_64 NAME_64 "\""),
        LIMITED("\"api_prefix\":\"a.\""),
        LIMITED("\"api_prefix\":\"a.>\""),
        LIMITED("\"api_prefix\":1"),
        LIMITED("\"api_prefix\":\"" NAME_64 "." NAME_64 "\""),
        LIMITED("\"domain\":\"hub\",\"api_prefix\":\"a\""),
        LIMITED("\"group\":\"\""),
        LIMITED("\"group\":\"a b\""),
        LIMITED("\"group\":\"a\\\"b\""),
        LIMITED("\"group\":\"0123456789abcdef0\""),
        LIMITED("\"group\":1"),
        "[" ENTRY_IN("S", "c", "hub") "," ENTRY_IN("S", "c", "hub") "]",
        "[" ENTRY(NAME_64, NAME_64) "]",
        "[" ENTRY("S", "0") "," ENTRY("S", "1") "," ENTRY("S", "2") "," ENTRY("S", "3") "," ENTRY(
            "S", "4") "," ENTRY("S", "5") "," ENTRY("S", "6") "," ENTRY("S", "7") "," ENTRY("S", "8") "]",
    };
    for (size_t i = 0; i < COUNT_OF(good); i++) VERIFY(!wrong_list(good[i]), good[i]);
    for (size_t i = 0; i < COUNT_OF(bad); i++) VERIFY(wrong_list(bad[i]), bad[i]);
    CHECK(!wrong_list("") && !wrong_list(" ")); /* as if it were left out */
}

/* Which consumer a message came from: one of this link's, even with the longest names and numbers. */
static void test_consumer_of(void) {
    static struct link l;
    struct js_ack a;
    l.settings = settings_with("consumers", "[" ENTRY("S", "c") "," ENTRY("S", "d") "," ENTRY(
                                                NAME_64, NAME_32 "0123456789abcdef0123456789abcde") "]");
    CHECK(!settings_error(l.settings) && !consumer_of(&l, "$JS.ACK.S.c.1.2.3.4.5", &a)); /* it has none yet */
    consumers_apply(&l);
    CHECK(l.consumers[2].state == CONSUMER_UNKNOWN && l.consumers[3].state == CONSUMER_UNUSED);
    CHECK(consumer_of(&l, "$JS.ACK.S.c.1.2.3.4.5", &a) == &l.consumers[0] &&
          consumer_of(&l, "$JS.ACK._.h.S.d.1.2.3.4.5", &a) == &l.consumers[1]);
    char longest[INBOX_MAX];
    (void)snprintf(longest, sizeof(longest), "$JS.ACK.%s.%s.%s.%s.%s.%s.%s", l.consumers[2].name.stream,
                   l.consumers[2].name.consumer, "18446744073709551615", "18446744073709551615",
                   "18446744073709551615", "18446744073709551615", "18446744073709551615");
    CHECK(strlen(longest) == 241 && consumer_of(&l, longest, &a) == &l.consumers[2]);
    static const char *const none[] = {"r.eply",
                                       "$JS.ACK.S.e.1.2.3.4.5",
                                       "$JS.ACK.Sc.d.1.2.3.4.5",
                                       "$JS.ACK.s.c.1.2.3.4.5",
                                       "$JS.ACK.S.cc.1.2.3.4.5",
                                       "$JS.ACK.S.c.1.2.3.*.5",
                                       "$JS.ACK.S.c.1.2.3.4.5 0\r\nPUB x"};
    for (size_t i = 0; i < COUNT_OF(none); i++) VERIFY(!consumer_of(&l, none[i], &a), none[i]);
    CHECK(!consumer_of(&l, NULL, &a));
    EACH_CONSUMER(k, &l) consumer_free(k);
    json_decref(l.settings);
}

/* Consumers of the same names in two domains: a subject that names its domain belongs to that one's; else to
 * the one that has been asked for messages. */
static void test_namesakes(void) {
    static struct link l;
    struct js_ack a;
    l.settings = settings_with("consumers",
                               "[" ENTRY("S", "c") "," ENTRY_IN("S", "c", "hub") "," ENTRY_IN("S", "c",
                                                                                              "leaf") "]");
    consumers_apply(&l);
    CHECK(consumer_of(&l, "$JS.ACK.hub.h.S.c.1.2.3.4.5", &a) == &l.consumers[1]);
    CHECK(consumer_of(&l, "$JS.ACK.leaf.h.S.c.1.2.3.4.5.x", &a) == &l.consumers[2]);
    CHECK(consumer_of(&l, "$JS.ACK._.h.S.c.1.2.3.4.5.x", &a) == &l.consumers[0]);
    for (int i = 0; i < 3; i++) {
        l.consumers[i].wanted = 1;
        CHECK(consumer_of(&l, "$JS.ACK.S.c.1.2.3.4.5", &a) == &l.consumers[i]);
        l.consumers[i].wanted = 0;
    }
    CHECK(consumer_of(&l, "$JS.ACK.S.c.1.2.3.4.5", &a)); /* whichever: its acknowledgement is the same */
    l.consumers[1].open = 1;
    json_decref(l.settings);
    l.settings = settings_with("consumers", "[" ENTRY_IN("S", "c", "leaf") "]");
    consumers_apply(&l);
    CHECK(l.consumers[0].removed && l.consumers[1].removed && !l.consumers[2].removed);
    EACH_CONSUMER(k, &l) consumer_free(k);
    json_decref(l.settings);
}

/* Another list of consumers: what stays keeps its place and its deliveries, what is gone stays until they
 * have ended, and what is new waits for a place if there is none. */
static void test_other_consumers(void) {
    static struct link l;
    char list[1000] = "[", entry[100];
    for (int i = 0; i < CONSUMERS_PER_LINK; i++) {
        (void)snprintf(entry, sizeof(entry), "%s{\"stream\":\"S\",\"consumer\":\"%d\"}", i ? "," : "", i);
        strcat(list, entry);
    }
    l.settings = settings_with("consumers", strcat(list, "]"));
    consumers_apply(&l);
    for (int i = 0; i < CONSUMERS_PER_LINK; i++)
        CHECK(*l.consumers[i].name.consumer == '0' + i && !l.consumers[i].removed);
    l.consumers[1].open = 1;
    l.consumers[2].open = 1;
    json_decref(l.settings);
    l.settings = settings_with("consumers", "[" ENTRY("S", "2") "," ENTRY("T", "2") "]");
    consumers_apply(&l);
    CHECK(!l.consumers[2].removed && l.consumers[2].open == 1 && *l.consumers[2].name.consumer == '2');
    CHECK(l.consumers[1].removed && l.consumers[1].open == 1 &&
          l.consumers[0].removed); /* no place for the other yet */
    consumer_free(&l.consumers[0]);
    consumers_apply(&l);
    CHECK(!l.consumers[0].removed && *l.consumers[0].name.stream == 'T' && l.consumers[1].removed);
    EACH_CONSUMER(k, &l) consumer_free(k);
    json_decref(l.settings);
}

/* ---- keys, and subscriptions --------------------------------------------------------------------------- */

#define USER_SEED "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
#define PEM "-----BEGIN X-----"

/* Each key of a link: what it takes, and what is said of something else. */
static void test_keys(void) {
    static const struct {
        const char *key, *good, *bad, *error;
    } keys[] = {
        {"cluster_uris",        "tls://u:p@[::1],h:1", "h,u:s3cret@[,x", "number 2 "                        },
        {"client_jwt",          "a.b.c",               "a b",            "client_jwt is no JWT"             },
        {"client_seed",         USER_SEED,             "SU",             "is no seed of a user"             },
        {"tls_ca",              PEM,                   "/ca.pem",        "tls_ca is no PEM text"            },
        {"tls_ca_file",         "/ca.pem",             PEM,              "tls_ca_file is a path, and"       },
        {"tls_cert",            PEM,                   "cert",           "tls_cert is no PEM text"          },
        {"tls_key",             PEM,                   "key",            "tls_key is no PEM text"           },
        {"tls_first",           "TRUE",                "yes",            "is neither true nor false"        },
        {"ignore_discovered",   "true",                "on",             "is neither true nor false"        },
        {"custom_inbox_prefix", "_INBOX.x",            "a.*",            "custom_inbox_prefix is no subject"},
        {"connect_timeout_sec", "120",                 "121",            "is no number from 1 to 120"       },
        {"ping_interval_sec",   "86400",               "86401",          "is no number from 1 to 86400"     },
        {"subscriptions",       "a.>,b|q",             "a..b",           "subscriptions: number 1, "        },
        {"consumers",           "[]",                  "{}",             "consumers is no JSON list"        },
        {"js_domain",           "hub",                 "a.b",            "is no name of a JetStream domain" },
        {"max_in_flight",       "1",                   "0",              "is no number from 1 to "          },
        {"handler_timeout_ms",  "86400000",            "1.5",            "is no number from 1 to 86400000"  },
    };
    static const char *const no_numbers[] = {"x",   "-1", "+1", "1x", "0x1", "0", "18446744073709551617",
                                             "1 2", ","};
    CHECK(COUNT_OF(keys) == COUNT_OF(link_keys));
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        bool of_jwt = strcmp(keys[i].key, "client_jwt") == 0;
        bool of_tls = strcmp(keys[i].key, "tls_cert") == 0 || strcmp(keys[i].key, "tls_key") == 0;
        const char *good = key_error(keys[i].key, keys[i].good);
        if (of_jwt || of_tls)
            VERIFY(good && strstr(good, of_jwt ? "without client_seed" : "belong together"), keys[i].key);
        else VERIFY(!good, keys[i].key);
        const char *bad = key_error(keys[i].key, keys[i].bad);
        VERIFY(bad && strstr(bad, keys[i].error) && !strstr(bad, "s3cret"), keys[i].key);
        VERIFY(strcmp(keys[i].key, link_keys[i].name) == 0, keys[i].key);
        for (size_t k = 0; link_keys[i].high && k < COUNT_OF(no_numbers); k++)
            VERIFY(key_error(keys[i].key, no_numbers[k]), no_numbers[k]);
    }
    for (const struct key *k = link_keys; k < link_keys + COUNT_OF(link_keys); k++) {
        char text[32];
        if (!k->high) continue;
        for (int above = 0; above < 2; above++) {
            (void)snprintf(text, sizeof(text), "%" PRIu64, k->high + (uint64_t)above);
            VERIFY(!key_error(k->name, text) == !above, text);
            (void)snprintf(text, sizeof(text), "%" PRIu64 "\n",
                           k->low - (uint64_t)above); /* secrets end so */
            VERIFY(!key_error(k->name, text) == !above, text);
        }
        json_t *settings = settings_with(k->name, "7");
        VERIFY(number_of(settings, k->name) == 7, k->name);
        json_object_del(settings, k->name);
        VERIFY(number_of(settings, k->name) == k->missing, k->name);
        json_decref(settings);
    }
    CHECK(strstr(key_error("cluster_uris", " , "), "it is empty"));
}

static char told[2000]; /* what was told of settings, a line each */

static void note_told(void *user, const char *text) {
    (void)user;
    (void)snprintf(told + strlen(told), sizeof(told) - strlen(told), "%s\n", text);
}

static const char *slips_of(const json_t *definition, const json_t *settings, bool delivers) {
    told[0] = 0;
    (void)settings_slips(definition, settings, delivers, &(struct listener){note_told, NULL});
    return told;
}

/* A .creds file in client_jwt, whole or not; and keys that may be slips. */
static void test_creds_and_slips(void) {
#define BEGIN_JWT "-----BEGIN NATS USER JWT-----"
#define BEGIN_SEED "-----BEGIN USER NKEY SEED-----"
    static const char *const broken[] = {BEGIN_JWT, BEGIN_JWT "\na.b.c", BEGIN_JWT "\n--",
                                         BEGIN_SEED "\nSU\n--",
                                         BEGIN_JWT "\na.b.c\n------\n" BEGIN_SEED "\nSU"};
    json_t *s = settings_with("client_jwt",
                              BEGIN_JWT "\n a.b.c\n------END\n\n" BEGIN_SEED "\n" USER_SEED "\n------END");
    CHECK(strcmp(text_at(s, "client_jwt"), "a.b.c") == 0 &&
          strcmp(text_at(s, "client_seed"), USER_SEED) == 0);
    CHECK(!settings_error(s));
    json_decref(s);
    static const char *const forms[] = {BEGIN_JWT
                                        "\\na.b.c\\n------END NATS USER JWT------\\n\\n***\\n" BEGIN_SEED
                                        "\\n" USER_SEED "\\n------END",
                                        BEGIN_JWT " a.b.c ------END " BEGIN_SEED " " USER_SEED " ------END",
                                        BEGIN_JWT "\r\na.b.c\r\n------END\r\n" BEGIN_SEED "\r\n" USER_SEED
                                                  "\r\n------END\r\n"};
    for (size_t i = 0; i < COUNT_OF(forms);
         i++) { /* with line ends as tools make them, and in the other key */
        s = settings_with("client_seed", forms[i]);
        VERIFY(!settings_error(s) && strcmp(text_at(s, "client_jwt"), "a.b.c") == 0, forms[i]);
        json_decref(s);
    }
    s = settings_with("client_seed", BEGIN_SEED "\n" USER_SEED "\n------END USER NKEY SEED------\n");
    CHECK(!settings_error(s) && !text_at(s, "client_jwt") &&
          strcmp(text_at(s, "client_seed"), USER_SEED) == 0);
    json_decref(s);
    for (size_t i = 0; i < COUNT_OF(broken); i++) VERIFY(key_error("client_jwt", broken[i]), broken[i]);
    json_t *d = json_pack("{s:{s:s, s:i, s:s, s:s}, s:{s:{s:s}, s:s}}", "config", "subjects", "x",
                          "tls_first", 1, "max_in_flight", "1", "", "", "secrets", "client_sed", "value", "x",
                          "tls_ca", "x");
    json_t *with = settings_with("subscriptions", "x"), *without = settings_with("tls_first", "true");
    CHECK(strcmp(slips_of(d, with, true),
                 "there is no key subjects\ntls_first is no string, and is ignored\n"
                 "there is no key \nthere is no key client_sed; did you mean client_seed?\n"
                 "tls_ca is no string, and is ignored\n") == 0);
    CHECK(strstr(slips_of(d, with, false), "max_in_flight is for links that call"));
    CHECK(strstr(slips_of(d, without, true), "no message will come") &&
          !strstr(slips_of(d, without, false), "no message"));
    json_decref(without);
    without = settings_with("consumers", LIMITED("\"durable\":true"));
    CHECK(strstr(slips_of(d, without, true), "consumers: entry 1: there is no key durable\n"));
    json_decref(with);
    json_decref(without);
    json_decref(d);
    struct settings_defaults defaults = {json_pack("{s:s, s:s, s:s, s:s}", "cluster_uris", "h",
                                                   "lattice_tls_first", "true", "lattice_service", "false",
                                                   "lattice_tls_fist", "x"),
                                         json_object()};
    told[0] = 0;
    CHECK(defaults_slips(&defaults, &(struct listener){note_told, NULL}) == 1);
    CHECK(strcmp(told, "there is no key lattice_tls_fist; did you mean lattice_tls_first?\n") == 0);
    json_decref(defaults.config);
    json_decref(defaults.secrets);
    /* of many faults one text has as many as fit, whole, and how many others */
    with = settings_with("consumers", "[{},{},{},{},{},{},{},{}]");
    const char *error = settings_error(with), *others = strstr(error, "; and ");
    CHECK(others && strlen(error) < FAULT_LIST_MAX && strtoul(others + 6, NULL, 10) >= 8);
    CHECK(strstr(error, "consumers: entry 1 has no stream; consumers: entry 1 has no consumer; "));
    json_decref(with);
    CHECK(difference("", "abc") == 3 && difference("kitten", "sitting") == 3 && difference("a", "a") == 0);
}

/* What nats.c was asked for, in its order: "+subject|queue" and "-subject". */
static char noted[2000];
static const char *noted_refused; /* a subject that it cannot subscribe to */

static natsStatus noted_queue_subscribe(natsSubscription **sub, natsConnection *nc, const char *subject,
                                        const char *queue) {
    (void)nc;
    if (noted_refused && strcmp(subject, noted_refused) == 0) return NATS_NO_MEMORY;
    *sub = (natsSubscription *)(void *)strdup(subject);
    (void)snprintf(noted + strlen(noted), sizeof(noted) - strlen(noted), "+%s%s%s ", subject,
                   queue ? "|" : "", queue ? queue : "");
    return NATS_OK;
}

static natsStatus noted_subscribe(natsSubscription **sub, natsConnection *nc, const char *subject) {
    return noted_queue_subscribe(sub, nc, subject, NULL);
}

static void noted_destroy(natsSubscription *sub) {
    (void)snprintf(noted + strlen(noted), sizeof(noted) - strlen(noted), "-%s ", (const char *)sub);
    free(sub);
}

/* The subscriptions of a connection become those of other settings: what is new first, then what is gone,
 * and what stays is left alone. */
static void test_subscriptions(void) {
    static struct link l;
    static struct conn c, other;
    static const struct {
        const char *list, *done;
    } steps[] = {
        {"a,b|q,c",   "+a +b|q +c "      },
        {"c , a,b|q", ""                 },
        {"b|q,c,d",   "+d -a "           },
        {"b,c,d",     "+b -b "           },
        {"b|r,c,d,b", "+b|r "            },
        {"e.*,e.*",   "+e.* -b -b -c -d "},
        {"",          "-e.* "            },
    };
    enum level before = logger.level;
    logger.level = LEVEL_OFF;
    c.topic = other.topic = &l.topic;
    CHECK(conn_subscribe(&c, "_INBOX.x.c.>", NULL, 0) &&
          conn_subscribe(&other, "a", NULL, item_hash(span_of("a"))));
    for (size_t i = 0; i < COUNT_OF(steps); i++) {
        json_t *settings = settings_with("subscriptions", steps[i].list);
        noted[0] = 0;
        link_subscribe(&l, &c, settings);
        VERIFY(strcmp(noted, steps[i].done) == 0, noted);
        json_decref(settings);
    }
    json_t *settings = settings_with("subscriptions", "x,y");
    noted_refused = "y"; /* what there is stays, and the connection is closed */
    noted[0] = 0;
    link_subscribe(&l, &c, settings);
    CHECK(strcmp(noted, "+x ") == 0 && c.io.error);
    noted_refused = NULL;
    c.io.error = NULL;
    json_decref(settings);
    settings = settings_with("consumers", "[" ENTRY("S", "c") "]");
    c.inbox_len = (size_t)snprintf(c.inbox, sizeof(c.inbox), "_INBOX.x.c.");
    noted[0] = 0;
    link_subscribe(&l, &c, settings);
    link_subscribe(&l, &c, settings); /* JetStream's inbox only once */
    CHECK(strcmp(noted, "+_INBOX.x.p.> -x ") == 0);
    noted[0] = 0;
    conn_unsubscribe(&c, false); /* all but the inbox of calls */
    CHECK(strcmp(noted, "-_INBOX.x.p.> ") == 0);
    conn_unsubscribe(&c, true);
    conn_unsubscribe(&other, true);
    CHECK(strcmp(noted, "-_INBOX.x.p.> -_INBOX.x.c.> -a ") == 0);
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) CHECK(!net.subs[i].conn);
    json_decref(settings);
    logger.level = before;
}

/* ---- buffers, deliveries, queues ----------------------------------------------------------------------- */

static const char trace_parent[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                  trace_state[] = "vendor=x";

static void test_buffers(void) {
    static struct link l;
    ROUNDS(300) {
        struct trace t = {random_below(3) ? trace_parent : NULL, NULL};
        if (t.parent && random_below(2)) t.state = trace_state;
        size_t room = 1 + (size_t)random_below(round_ % 20 ? 3000 : 100000),
               len = (size_t)random_below((int)room + 1);
        uint8_t *bytes = exactly(trace_parent, 0);
        bytes = realloc(bytes, len + !len);
        fill(bytes, len);
        struct buffer *b = buffer_make(&l, t, bytes, len, room);
        CHECK(b && b->len == len && b->room == room && memcmp(buffer_bytes(b), bytes, len) == 0);
        CHECK(l.bytes == backlog.bytes && l.bytes >= room);
        fill(buffer_bytes(b), room); /* all of it is there */
        struct call c = {.link = &l, .state = CALL_PARAMS, .buffer = b};
        struct incoming in = incoming_of(&c);
        CHECK(same(span_of(in.trace.parent), span_of(t.parent)) &&
              same(span_of(in.trace.state), span_of(t.state)));
        CHECK(in.params == buffer_bytes(b) && in.params_len == len);
        buffer_free(&l, b);
        free(bytes);
        CHECK(l.bytes == 0 && backlog.bytes == 0);
    }
    buffer_free(&l, NULL);
}

/* A message as nats.c's parser makes it. */
static natsMsg *message_with(const char *headers, const char *reply, const void *bytes, size_t len) {
    natsMsg *msg = NULL;
    size_t head = strlen(headers);
    char *all = malloc(head + len + 1);
    memcpy(mempcpy(all, headers, head), len ? bytes : "", len);
    CHECK(natsMsg_createWithPadding(&msg, "s", 1, reply, reply ? (int)strlen(reply) : 0, all,
                                    (int)(head + len), 0, (int)head) == NATS_OK);
    free(all);
    return msg;
}

/* A message becomes a delivery: all of it, and nothing twice in the sums. */
static void test_deliveries(void) {
    static struct link l;
    const char *error;
    l.consumers[3] = (struct consumer){.state = CONSUMER_READY, .link = &l, .epoch = 7, .reserved = 50};
    ROUNDS(300) {
        struct consumer *k = random_below(2) ? &l.consumers[3] : NULL;
        const char *reply = k ? "$JS.ACK.S.c.1.2.3.4.5" : random_below(2) ? "r.eply" : NULL;
        size_t len = (size_t)random_below(round_ % 20 ? 3000 : 100000), needed;
        bool traced = random_below(2);
        uint8_t *body = malloc(len + 1), *kept;
        fill(body, len);
        const char *headers = traced ? "NATS/1.0\r\ntraceparent: 00-1-2-00\r\ntracestate: v=1\r\n\r\n" : "";
        natsMsg *msg = message_with(headers, reply, body, len);
        uint32_t number = l.arrivals;
        backlog.reserved = l.consumers[3].reserved = 50; /* what it was promised is used up first */
        struct delivery *d = delivery_make(&l, msg, k, &error);
        CHECK(d && d->number == number + 1 && l.bytes == delivery_size(d) && backlog.bytes == l.bytes);
        CHECK(backlog.reserved == (k ? 0 : 50) && l.consumers[3].reserved == backlog.reserved);
        struct message m;
        CHECK(decode(OF_PUBLISH, delivery_params(d), d->params_len, &m, NULL, &needed, &kept) == WHOLE);
        CHECK(needed == d->params_len && same(m.subject, span_of("s")) &&
              same(m.body, (struct span){(char *)body, len}));
        CHECK(m.has_reply == (!k && reply) && (!m.has_reply || same(m.reply_to, span_of(reply))));
        CHECK(!d->ack == !k && (!k || (strcmp(d->bytes, reply) == 0 && d->consumer == 3 && d->epoch == 7)));
        const char *parent = d->trace ? (char *)d + delivery_head(d) : NULL;
        const char *state = parent && d->trace > strlen(parent) + 1 ? parent + strlen(parent) + 1 : NULL;
        CHECK(same(span_of(parent), span_of(traced ? "00-1-2-00" : NULL)));
        CHECK(same(span_of(state), span_of(traced ? "v=1" : NULL)));
        if (k) k->open++;
        delivery_free(&l, d);
        natsMsg_free(msg);
        free(body);
        free(kept);
        CHECK(l.bytes == 0 && backlog.bytes == 0 && l.consumers[3].open == 0);
    }
    backlog.reserved = 0;
    uint8_t *large = calloc(1, MESSAGE_MAX + 1);
    natsMsg *msg = message_with("", NULL, large, MESSAGE_MAX + 1);
    CHECK(!delivery_make(&l, msg, NULL, &error) && strstr(error, "larger than this build takes"));
    natsMsg_free(msg);
    msg = message_with("", "\xff", large, 1);
    CHECK(!delivery_make(&l, msg, NULL, &error) && strstr(error, "UTF-8"));
    natsMsg_free(msg);
    msg = message_with("", NULL, large, MESSAGE_MAX);
    backlog.bytes = BACKLOG_MAX - MESSAGE_MAX;
    CHECK(!delivery_make(&l, msg, NULL, &error) && error == queue_full && l.bytes == 0);
    natsMsg_free(msg);
    backlog.bytes = 0;
    free(large);
}

/* Takes buffers of this size until there is no more for the link; gives how many bytes it has then. */
static size_t fill_share(struct link *l, size_t len, struct buffer **all, size_t *count) {
    static uint8_t some[65536];
    for (struct buffer *b; (b = buffer_make(l, (struct trace){0}, some, len, len)); all[(*count)++] = b)
        continue;
    return l->bytes;
}

static void test_shares(void) {
    static struct link owners[6];
    static struct buffer *all[6][BACKLOG_MAX / 100];
    size_t counts[6] = {0}, sum = 0;
    CHECK(!buffer_make(&owners[0], (struct trace){0}, NULL, 0, BACKLOG_MAX));
    CHECK(!buffer_make(&owners[0], (struct trace){0}, NULL, 0, UINT32_MAX));
    size_t first = fill_share(&owners[0], 1000, all[0], &counts[0]);
    size_t most = BACKLOG_MAX / 32 * 31 / 9 * 8; /* for one, and a few always for each */
    CHECK(first > most - 2000 && first <= most + 2000);
    CHECK(!buffer_make(&owners[0], (struct trace){0}, NULL, 0, 10000) && owners[0].bytes == first);
    for (size_t i = 1; i < COUNT_OF(owners); i++) /* something for everybody */
        CHECK(fill_share(&owners[i], 100, all[i], &counts[i]) > BACKLOG_MAX / 32 / LINKS_MAX - 500);
    for (size_t i = 0; i < COUNT_OF(owners); i++) sum += owners[i].bytes;
    CHECK(sum == backlog.bytes && sum <= BACKLOG_MAX && sum > BACKLOG_MAX * 9 / 10);
    for (size_t i = 0; i < COUNT_OF(owners); i++) {
        while (counts[i] > 0) buffer_free(&owners[i], all[i][--counts[i]]);
        CHECK(owners[i].bytes == 0);
    }
    CHECK(backlog.bytes == 0);
    backlog.reserved = BACKLOG_MAX - 10000; /* what is promised to consumers is nobody's */
    CHECK(fill_share(&owners[0], 100, all[0], &counts[0]) < 10000);
    while (counts[0] > 0) buffer_free(&owners[0], all[0][--counts[0]]);
    backlog.reserved = 0;
    CHECK(backlog.bytes == 0);
}

/* A delivery without bytes. */
static struct delivery *delivery_numbered(struct link *l, uint32_t number, bool stored) {
    struct delivery *d = calloc(1, sizeof(*d) + 1);
    d->number = number;
    d->ack = stored;
    size_t size = delivery_size(d);
    l->bytes += size;
    backlog.bytes += size;
    l->consumers[0].open += stored;
    return d;
}

/* The queues of a link hold so many deliveries, each in the order of arrival, and the last is the last. */
static bool queues_are_sound(const struct link *l) {
    const struct queue *const queues[] = {&l->plain, &l->stored};
    unsigned count = 0;
    bool ok = true;
    for (size_t i = 0; i < 2; i++)
        for (const struct delivery *d = queues[i]->first; d; d = d->next, count++) {
            ok &= !d->ack == (i == 0) && (d->next || queues[i]->last == d);
            ok &= !d->next || (int32_t)(d->next->number - d->number) > 0;
        }
    return ok && count == l->queued;
}

static void push(struct link *l, struct delivery *d) { queue_push(l, d->ack ? &l->stored : &l->plain, d); }

/* What was taken comes back in any order, also where the numbers wrap: the queues are in the order of
 * arrival. */
static void test_queues(void) {
    static struct link l;
    struct delivery *taken[20];
    ROUNDS(500) {
        uint32_t number = round_ % 2 ? (uint32_t)-10 : 1;
        size_t count = 1 + (size_t)random_below(20), away = 0;
        for (size_t i = 0; i < count; i++) push(&l, delivery_numbered(&l, number++, random_below(2)));
        CHECK(queues_are_sound(&l) && l.queued == count);
        for (size_t i = (size_t)random_below((int)count + 1); i > 0; i--) { /* as dispatch() does */
            struct queue *q = queue_next(&l);
            taken[away++] = q->first;
            q->first = q->first->next;
            l.queued--;
        }
        for (size_t i = (size_t)random_below(3); i > 0; i--) push(&l, delivery_numbered(&l, number++, i % 2));
        while (away > 0) {
            size_t i = (size_t)random_below((int)away--);
            queue_return(&l, taken[i]);
            taken[i] = taken[away];
            CHECK(queues_are_sound(&l));
        }
        push(&l, delivery_numbered(&l, number, random_below(2))); /* behind whatever is the last now */
        CHECK(queues_are_sound(&l));
        struct queue *const queues[] = {&l.plain, &l.stored};
        for (size_t i = 0; i < 2; i++)
            for (struct delivery *d; (d = queues[i]->first); l.queued--) {
                queues[i]->first = d->next;
                delivery_free(&l, d);
            }
        CHECK(l.queued == 0 && l.bytes == 0 && backlog.bytes == 0 && l.consumers[0].open == 0);
    }
    push(&l, delivery_numbered(&l, 1, false));
    push(&l, delivery_numbered(&l, 2, true));
    queue_push(&l, &l.later, delivery_numbered(&l, 3, false));
    queue_join(&l); /* behind what came before */
    CHECK(l.plain.last->number == l.arrivals && l.plain.first->next == l.plain.last && !l.later.first);
    queue_push(&l, &l.later, delivery_numbered(&l, 4, false)); /* and is dropped with the others */
    l.absent_until_ms = now_ms +
                        1; /* nobody runs the component: what is stored rests, what is not is tried */
    CHECK(queue_next(&l) == &l.plain && queue_next(&l) == &l.plain);
    l.absent_until_ms = now_ms;
    CHECK(queue_next(&l) == &l.stored && queue_next(&l) == &l.plain &&
          queue_next(&l) == &l.stored); /* in turn */
    logger.level = LEVEL_OFF;
    queue_drop(&l, "the test is over");
    logger.level = LEVEL_INFO;
    CHECK(l.queued == 0 && l.counts[DROPPED] == 3 && l.counts[RETURNED] == 1 && backlog.bytes == 0);
    CHECK(!l.plain.first && !l.later.first && !l.stored.first && l.consumers[0].open == 0);
}

/* ---- slots, and their states --------------------------------------------------------------------------- */

/* In a process of its own, which tells whether it came to its end: an assertion ends it. */
static int outcome_of(void (*test)(const void *), const void *with) {
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(nowhere, STDERR_FILENO);
        checks.failed = 0;
        test(with);
        _exit(checks.failed > 0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

struct edge {
    enum call_state from, to;
};

/* A second time, from the picture above enum call_state. */
static bool edge_is_in_the_picture(struct edge e) {
    enum call_state from = e.from, to = e.to;
    bool of_component = from == CALL_PARAMS || from == CALL_OUTBOX || from == CALL_WRITING ||
                        from == CALL_ASKED;
    if (from == CALL_FREE) return false;
    if (to == CALL_FREE) return true;
    if (to == CALL_INVOKED) return from == CALL_TAKEN;
    if (to == CALL_SETTLING) return from == CALL_INVOKED;
    if (to == CALL_PARAMS) return from == CALL_TAKEN;
    if (to == CALL_OUTBOX) return from == CALL_TAKEN || from == CALL_PARAMS;
    if (to == CALL_WRITING || to == CALL_ASKED)
        return from == CALL_TAKEN || from == CALL_PARAMS || from == CALL_OUTBOX;
    if (from == CALL_SENT) return to == CALL_ANSWERED; /* the connection broke */
    if (from == CALL_ANSWERED) return to == CALL_SENT;
    return (to == CALL_ANSWERED || to == CALL_SENT) && (from == CALL_TAKEN || of_component);
}

/* Brings a call into a state, then into another; everything that is counted is counted where it belongs. */
static void walk_edge(const void *with) {
    static struct link l;
    static struct conn on;
    const struct edge *e = with;
    struct call *c = call_take(&l);
    c->conn = &on;
    if (e->from == CALL_SETTLING) call_set(c, CALL_INVOKED, 5);
    if (e->from == CALL_FREE) call_free(c);
    else if (e->from != CALL_TAKEN) call_set(c, e->from, 5);
    if (e->to == CALL_FREE) call_free(c);
    else call_set(c, e->to, 7);
    CHECK(c->state == e->to && calls.used == (e->to != CALL_FREE));
    CHECK(l.calls == (e->to != CALL_FREE && e->to < CALL_ANSWERED) &&
          calls.answered == (e->to == CALL_ANSWERED));
    CHECK(l.in_flight == (e->to == CALL_INVOKED) &&
          on.users == (e->to == CALL_WRITING || e->to == CALL_ASKED));
    CHECK(l.outbox.first == (e->to == CALL_OUTBOX ? c : NULL) && l.outbox.first == l.outbox.last);
    CHECK(on.writing.first == (e->to == CALL_WRITING ? c : NULL) && on.writing.first == on.writing.last);
    CHECK(lattice->writing.first == (e->to == CALL_SENT ? c : NULL));
    CHECK(e->to == CALL_FREE || (c->deadline_ms == 7 && calls.next_due_ms <= 7));
}

static void test_states(void) {
    for (struct edge e = {0, 0}; e.from < CALL_STATES; e.from++)
        for (e.to = 0; e.to < CALL_STATES; e.to++) {
            char text[40];
            (void)snprintf(text, sizeof(text), "from state %d to %d", (int)e.from, (int)e.to);
            VERIFY(outcome_of(walk_edge, &e) == (edge_is_in_the_picture(e) ? 0 : -SIGABRT), text);
        }
}

static void walk_conn_edge(const void *with) {
    const int *states = with;
    struct conn c = {.state = (enum conn_state)states[0]};
    conn_set(&c, (enum conn_state)states[1]);
    CHECK((int)c.state == states[1]);
}

/* A connection that is up does not begin to connect, one that drains only ends, and nothing starts in the
 * middle. */
static void test_conn_states(void) {
    static const char *const picture[] = {[CONN_FREE] = ".wc..",
                                          [CONN_WAITING] = "fwc..",
                                          [CONN_CONNECTING] = "fw.u.",
                                          [CONN_UP] = ".w..d",
                                          [CONN_DRAINING] = "f...."};
    for (int from = CONN_FREE; from <= CONN_DRAINING; from++)
        for (int to = CONN_FREE; to <= CONN_DRAINING; to++) {
            int wanted = picture[from][to] == '.' ? -SIGABRT : 0;
            CHECK(outcome_of(walk_conn_edge, (const int[]){from, to}) == wanted);
        }
}

/* The outbox is in the order in which calls came, whichever of them leaves. */
static void test_call_lists(void) {
    static struct link l;
    struct call *in_order[20];
    ROUNDS(200) {
        size_t count = 1 + (size_t)random_below(20);
        for (size_t i = 0; i < count; i++) {
            in_order[i] = call_take(&l);
            call_set(in_order[i], CALL_OUTBOX, 5);
        }
        while (count > 0) {
            size_t i = 0;
            struct call *before = NULL;
            for (struct call *c = l.outbox.first; c; before = c, c = c->next, i++)
                CHECK(i < count && c == in_order[i] && c->before == before);
            CHECK(i == count && l.outbox.last == before);
            i = (size_t)random_below((int)count--);
            call_free(in_order[i]);
            memmove(in_order + i, in_order + i + 1, (count - i) * sizeof(*in_order));
        }
        CHECK(!l.outbox.first && !l.outbox.last && l.calls == 0);
    }
}

static void test_slots(void) {
    static struct link a, b;
    static struct conn connection;
    static struct call *of_a[CALLS_MAX];
    struct conn *on = &connection;
    char inbox[INBOX_MAX + TOKEN_LEN + 16], stale[sizeof(inbox)];
    const char *suffix;
    on->inbox_len = (size_t)snprintf(on->inbox, sizeof(on->inbox), "_INBOX.abc.c.");
    size_t n = 0;
    for (struct call *c; (c = call_take(&a));) {
        c->conn = on;
        call_set(c, CALL_ASKED, 5);
        of_a[n++] = c;
    }
    CHECK(n == (CALLS_MAX - CALLS_MAX / 4) / 2 && a.calls == n &&
          calls.used == n); /* half of what is not kept for all */
    CHECK(on->users == n);
    size_t m = n;
    while (m < CALLS_MAX && (of_a[m] = call_take(&b))) m++;
    CHECK(m - n == (CALLS_MAX - n - CALLS_MAX / 4) / 2 && b.calls == m - n); /* and half of the rest */
    while (m > n) call_free(of_a[--m]);
    for (size_t i = 0; i < n; i++) {
        call_inbox(of_a[i], on, inbox);
        CHECK(is_subject(span_of(inbox), false) && strlen(inbox) == on->inbox_len + TOKEN_LEN);
        CHECK(inbox_kind(on, inbox) == 'c');
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
    again->conn = on;
    call_set(again, CALL_ASKED, 5);
    CHECK(again == of_a[3] &&
          !call_of_subject(on, stale, &suffix)); /* the same slot, and yet not that call */
    call_inbox(again, on, inbox);
    CHECK(strcmp(inbox, stale) != 0 && call_of_subject(on, inbox, &suffix) == again);
    for (size_t i = 0; i < n; i++) call_free(of_a[i]);
    CHECK(a.calls == 0 && calls.used == 0 && on->users == 0 && !call_of_subject(on, inbox, &suffix));
}

/* ---- links, and calls whose parameters come in pieces: no server is there, and nothing may be left ----- */

#define COMPONENT "echo"
static const char golden_link[] = /* of devel/tests/golden, with all sorts of settings */
    "{\"source_id\":\"messaging-nats\",\"target\":\"" COMPONENT
    "\",\"name\":\"default\",\"wit_namespace\":\"wasmcloud\",\"wit_package\":\"messaging\","
    "\"source_config\":{\"cluster_uris\":\"nats://u:p@127.0.0.1:4222,tls://[::1]\","
    "\"subscriptions\":\"t.>,q.work|workers\",\"max_in_flight\":\"9\","
    "\"custom_inbox_prefix\":\"_INBOX.x\",\"ping_interval_sec\":\"3\"},\"source_secrets\":[]}";

/* Servers of a link that may start can be taken apart. */
static void served_by(const char *list) {
    struct span server;
    char address[URL_ADDRESS_MAX];
    for (size_t n = 0; list_item(list, n, &server); n++) CHECK(*server_address(server, address));
}

/* A link with this definition, as --check makes one: it connects to nowhere. Takes `definition` over. */
static struct link *link_with(json_t *definition, bool delivers) {
    struct link *l = link_take();
    json_t *settings = merge_settings(&self.defaults, definition, delivers);
    link_fill(l, definition, delivers);
    const char *error = link_settings_error(l, settings);
    (void)snprintf(l->error, sizeof(l->error), "%s", error ? error : "");
    if (!error) {
        l->state = LINK_RUNNING;
        link_apply(l, json_incref(settings));
    }
    json_decref(settings);
    return l;
}

/* Every byte changed, each cut: no JSON, no link of ours, a link that is said to be wrong, or one that can
 * be served. */
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
        bool delivers;
        const char *why = NULL;
        json_t *json = json_loadb(text, i % 16 ? len : at, 0, NULL);
        json_t *definition = json ? read_definition(json, self.key, &delivers, &why) : NULL;
        read += json != NULL;
        if (json) CHECK(definition || strlen(why) > 10);
        if (definition) {
            struct link *l = link_with(definition, delivers);
            served += l->state == LINK_RUNNING;
            CHECK(link_with_id(definition) == l && is_subject(span_of(l->subject), false) &&
                  is_token(l->component));
            CHECK((l->state == LINK_RUNNING) == !*l->error);
            CHECK(*l->error || !delivers || (l->max_in_flight > 0 && l->max_in_flight <= CALLS_MAX / 2));
            if (!*l->error) served_by(text_at(l->settings, "cluster_uris"));
            link_free(l);
        }
        json_decref(json);
        free(text);
    }
    logger.level = before;
    CHECK(served > 1000 && read > served + 100);
}

static struct link *consumer_link(void);

/* ---- JSON where memory is short ------------------------------------------------------------------------ */

static json_t *build_link(const void *text) {
    bool delivers;
    const char *why;
    json_t *link = build_text(text),
           *definition = link ? read_definition(link, self.key, &delivers, &why) : NULL;
    json_t *settings = definition ? merge_settings(&self.defaults, definition, delivers) : NULL;
    json_decref(link);
    if (!settings) json_decref(definition);
    return settings ? json_pack("{s:o, s:o}", "definition", definition, "settings", settings) : NULL;
}

static json_t *build_answer(const void *verb) {
    json_begin();
    json_t *list = json_array();
    EACH_LINK(l) json_array_append_new(list, endpoint(l, PUBLISH, *(const char *)verb == 'S'));
    return json_whole(micro_answer(*(const char *)verb, "name", "id", "0", "words", "now", list));
}

/* Links, and answers of the service protocol, are whole or are not. */
static void test_short_links(void) {
    (void)strcpy(self.key, "messaging-nats");
    (void)strcpy(self.lattice, "default");
    all_or_nothing(build_link, golden_link);
    all_or_nothing(build_link, "{\"source_id\":\"messaging-nats\",\"target\":\"c\",\"source_config\":"
                               "{\"tls_ca\":\"-----BEGIN x\",\"tls_first\":\"true\","
                               "\"subscriptions\":\"a.b\","
                               "\"consumers\":\"[{\\\"stream\\\":\\\"S\\\",\\\"consumer\\\":\\\"c\\\"}]\"}}");
    struct link *l = consumer_link();
    all_or_nothing(build_answer, "PING");
    all_or_nothing(build_answer, "STATS");
    all_or_nothing(build_answer, "INFO");
    log_begin(); /* its counts */
    link_free(l);
    CHECK(log_end() == 1);
}

/* A link that serves the component's calls, without a connection. */
static struct link *consumer_link(void) {
    return link_with(json_pack("{s:{s:s,s:s}, s:s, s:{}, s:{}}", "id", "source_id", COMPONENT, "name",
                               "default", "error", "", "config", "secrets"),
                     false);
}

/* Outcomes that wait for the lattice, which is down here. */
static void forget_answers(void) {
    EACH_CALL(c) {
        if (c->state == CALL_ANSWERED) call_free(c);
    }
}

/* A piece of a call's parameters: the first, or another for the call that waits for one. */
static void piece(bool first, const void *bytes, size_t len) {
    uint8_t *exact = exactly(bytes, len);
    natsMsg *msg = message_with("NATS/1.0\r\nsource-id: " COMPONENT "\r\n\r\n",
                                first ? "_INBOX.caller" : NULL, exact, len);
    if (first) on_call(msg, false);
    EACH_CALL(c) {
        if (!first && c->state == CALL_PARAMS) on_params(c, msg);
    }
    natsMsg_free(msg);
    free(exact);
}

#define NINES "\xff\xff\xff\xff\xff\xff\xff\xff\xff"

/* Chunks that never end, or would never fit: each call ends, and what it held is given back. */
static void test_endless_chunks(void) {
    static const uint8_t block[65536] = {[0] = 'a'};
    static const struct {
        const char *first;
        size_t len;
        bool taken;
    } starts[] = {
        {VECTOR("\1a\x80\x80\x40"),         true }, /* a body of 1 MB, and all of it comes */
        {VECTOR("\x80\x80\x40"),            true }, /* a subject of 1 MB, and an endless body */
        {VECTOR("\1a\xff\xff\xff\xff\x0f"), false}, /* 2^32 - 1 bytes: refused at once */
        {VECTOR("\1a" NINES "\1"),          false}, /* 2^64 - 1 */
        {VECTOR("\xff\xff\xff"),            true }, /* a length that goes on and on */
        {VECTOR(""),                        true },
    };
    struct link *l = consumer_link();
    log_begin();
    for (size_t i = 0; i < COUNT_OF(starts); i++)
        for (size_t k = 0; k < 3; k++) {
            size_t pieces = 0, size = k == 0 ? 1 : k == 1 ? 4000 : sizeof(block);
            piece(true, starts[i].first, starts[i].len);
            CHECK((l->calls == 1) == starts[i].taken && calls.used - calls.answered == l->calls);
            if (size == 1 && i < 2) piece(false, block, 60000), piece(false, block, 60000);
            for (; l->calls > 0 && pieces < 2000000 / size; pieces++) {
                piece(false, size > 1 ? block : (const uint8_t *)"\xff", size);
                CHECK(l->bytes == backlog.bytes && l->bytes < PARAMS_MAX + 1000);
                if (size > 1 || pieces < 500) continue;
                piece(false, "", 0); /* enough of that: an end before its time */
                CHECK(l->calls == 0);
            }
            forget_answers();
            CHECK(l->calls == 0 && calls.used == 0 && l->bytes == 0 && backlog.bytes == 0);
        }
    piece(true, VECTOR("\1a\xff"));
    CHECK(l->calls == 1);
    piece(false, VECTOR("\xff\xff\xff\x0f")); /* a piece says how long it is going to be: over at once */
    forget_answers();
    CHECK(l->calls == 0 && calls.used == 0 && backlog.bytes == 0);
    link_free(l);
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
            forget_answers();
            CHECK(l->calls == 0 && calls.used == 0 && backlog.bytes == 0);
        }
    link_free(l);
    CHECK(log_end() > 0);
}

int main(void) {
    static const struct group groups[] = {
        {"u32",                       test_u32            },
        {"numbers and lengths",       test_numbers        },
        {"strings",                   test_strings        },
        {"golden parameters",         test_golden         },
        {"random messages",           test_random_messages},
        {"sizes before writing",      test_sizes          },
        {"error texts",               test_error_texts    },
        {"results in pieces",         test_results        },
        {"changed results",           test_changed_results},
        {"lists",                     test_lists          },
        {"INFO",                      test_info           },
        {"lists of consumers",        test_consumers      },
        {"consumers of messages",     test_consumer_of    },
        {"namesakes",                 test_namesakes      },
        {"other consumers",           test_other_consumers},
        {"keys of links",             test_keys           },
        {"creds and slips",           test_creds_and_slips},
        {"subscriptions that change", test_subscriptions  },
        {"buffers",                   test_buffers        },
        {"deliveries",                test_deliveries     },
        {"shares of the backlog",     test_shares         },
        {"queues",                    test_queues         },
        {"states of calls",           test_states         },
        {"states of connections",     test_conn_states    },
        {"lists of calls",            test_call_lists     },
        {"call slots",                test_slots          },
        {"changed links",             test_changed_links  },
        {"links without memory",      test_short_links    },
        {"endless chunks",            test_endless_chunks },
        {"parameters in pieces",      test_pieces         },
    };
    if (sodium_init() < 0) return 1;
    return run_groups(groups, COUNT_OF(groups));
}
