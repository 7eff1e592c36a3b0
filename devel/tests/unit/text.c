/* unit_text - deps/text.c and deps/url.c: UTF-8, subjects, lists, the URLs of servers.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "unit.h"

#include "../../../provider.h"
#include "../../../deps/text.h"
#include "../../../deps/url.h"

static void test_spans(void) {
    char out[4];
    CHECK(!span_of(NULL).at && span_of(NULL).len == 0 && span_of("").at && span_of("abc").len == 3);
    CHECK(SPAN("abc").len == 3 && span_is(SPAN("abc"), "abc"));
    CHECK(!span_is(SPAN("abc"), "ab") && !span_is(SPAN("ab"), "abc") && !span_is(SPAN("a\0b"), "a"));
    CHECK(span_is(span_of(NULL), "") && !span_is(span_of(NULL), "a"));
    CHECK(span_is(text_of(SPAN("abc"), out, sizeof(out)), "abc") && strcmp(out, "abc") == 0);
    CHECK(span_is(text_of(SPAN("abcd"), out, sizeof(out)), "abc") && strcmp(out, "abc") == 0);
    CHECK(text_of(span_of(NULL), out, sizeof(out)).len == 0 && !*out);
}

/* Whether a subject without wildcards matches a pattern: token by token. */
static bool matches(const char *pattern, const char *subject) {
    for (;;) {
        size_t p = strcspn(pattern, "."), n = strcspn(subject, ".");
        if (*pattern == '>') return true;
        if (*pattern != '*' && (p != n || memcmp(pattern, subject, n) != 0)) return false;
        if (!pattern[p] || !subject[n]) return !pattern[p] && !subject[n];
        pattern += p + 1;
        subject += n + 1;
    }
}

/* Subject number n of up to so many of these tokens; false: there are no more. */
static bool nth_subject(size_t n, size_t most, const char *tokens, char out[16]) {
    size_t count = 1, kinds = strlen(tokens), of_length = kinds;
    for (; n >= of_length; count++, of_length *= kinds) n -= of_length;
    for (size_t i = 0; i < count; i++, n /= kinds) {
        out[2 * i] = tokens[n % kinds];
        out[2 * i + 1] = i + 1 < count ? '.' : 0;
    }
    return count <= most;
}

/* Two patterns overlap if and only if there is a subject that matches both. */
static void test_overlap(void) {
    char a[16], b[16], subject[16];
    for (size_t i = 0; nth_subject(i, 3, "ab*>", a); i++)
        for (size_t j = 0; nth_subject(j, 3, "ab*>", b); j++) {
            bool both = false;
            if (!is_subject(span_of(a), true) || !is_subject(span_of(b), true)) continue;
            for (size_t k = 0; nth_subject(k, 4, "ab", subject); k++)
                both |= matches(a, subject) && matches(b, subject);
            VERIFY(subjects_overlap(span_of(a), span_of(b)) == both, a);
        }
}

/* Writes a code point in so many bytes, whether or not they are the fewest. */
static struct span encoded(uint32_t code, size_t len, uint8_t out[4]) {
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = len; i-- > 0; code >>= 6) out[i] = (uint8_t)(i > 0 ? 0x80 | (code & 0x3f) : lead[len] | code);
    return (struct span){(const char *)out, len};
}

static void test_utf8(void) {
    static const char *const bad[] = {
        "\x80", "\xbf", "\xc2", "\xc2" "a", "\xe2\x82", "\xe2\x82" "a", "\xf0\x9f\x98", "\xf0\x9f" "aa",
        "\xfe", "\xff", "ok\xff", "\xf8\x88\x80\x80\x80", "\xc3\xa9\xa9",
    };
    static const uint32_t past[] = {0, 0x80, 0x800, 0x10000, 0x200000}; /* what so many bytes can hold */
    uint8_t bytes[4];
    bool all = true;
    for (size_t i = 0; i < COUNT_OF(bad); i++) VERIFY(!is_utf8(span_of(bad[i])), bad[i]);
    for (size_t len = 1; len <= 4; len++)
        for (uint32_t code = 0; code < past[len]; code++) {
            bool good = code >= past[len - 1] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
            all &= is_utf8(encoded(code, len, bytes)) == good;
        }
    CHECK(all);
    CHECK(is_utf8(SPAN("a\0b")) && is_utf8(span_of(NULL)));
    CHECK(is_utf8(span_of("gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80!")));
}

static void test_subjects(void) {
    static const char *const good[] = {"a", "a.b", "$SYS.x", "_INBOX.a.b", "a*", "*a.b", "a.b>", ">>", "a.**", "\xc3\xa9.x", "a-b_c:/@#"};
    static const char *const wild[] = {"*", ">", "a.*", "a.>", "*.*.>", "*.a"};
    static const char *const bad[] = {"", ".", "a.", ".a", "a..b", "a b", " a", "a ", "a\tb", "a\r\nPUB x 0\r\n\r\n", "a\n", "\x7f", "a.\x7f.b", "\1", ">.a", "a.>.b", "a.>.>"};
    for (size_t i = 0; i < COUNT_OF(good); i++) VERIFY(is_subject(span_of(good[i]), false) && is_subject(span_of(good[i]), true), good[i]);
    for (size_t i = 0; i < COUNT_OF(wild); i++) VERIFY(!is_subject(span_of(wild[i]), false) && is_subject(span_of(wild[i]), true), wild[i]);
    for (size_t i = 0; i < COUNT_OF(bad); i++) VERIFY(!is_subject(span_of(bad[i]), false) && !is_subject(span_of(bad[i]), true), bad[i]);
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
    static const struct { const char *list; size_t count; const char *last; } lists[] = {
        {"", 0, ""}, {",", 0, ""}, {" , ,, ", 0, ""}, {"a", 1, "a"}, {"a,b", 2, "b"}, {" a , b\t", 2, "b"},
        {"a,,b c,", 2, "b c"}, {"\r\na\r\n,\nb\n", 2, "b"},
    };
    for (size_t i = 0; i < COUNT_OF(lists); i++) {
        struct span item = {0};
        size_t count = 0;
        while (list_item(lists[i].list, count, &item)) count++;
        VERIFY(count == lists[i].count, lists[i].list);
        if (count == 0) continue;
        VERIFY(list_item(lists[i].list, count - 1, &item) && span_is(item, lists[i].last), lists[i].list);
    }
}

/* A server as it was taken apart: "tls|host:port|user|password", with - for what is not there; or "" if it is wrong. */
static const char *taken_apart(struct span server) {
    static char text[2 * URL_MAX + 300];
    struct url url;
    char address[URL_ADDRESS_MAX];
    const char *wrong = url_parse(&url, server.at, server.len);
    url_address(&url, address);
    (void)snprintf(text, sizeof(text), "%s|%s|%s|%s", url.tls ? "tls" : "nats", address, url.has_user ? url.user : "-", url.has_password ? url.password : "-");
    CHECK(!wrong || (strlen(wrong) > 7 && !strstr(wrong, "s3cret")));
    return wrong ? "" : text;
}

static void test_urls(void) {
    static const struct { const char *server, *parts; } servers[] = {
        {"nats://h", "nats|h:4222|-|-"}, {"tls://h:1", "tls|h:1|-|-"}, {"h", "nats|h:4222|-|-"}, {"h:", "nats|h:4222|-|-"}, {":1", "nats|localhost:1|-|-"},
        {"nats://u:p@h:4222", "nats|h:4222|u|p"}, {"NATS://[::1]:65535", "nats|[::1]:65535|-|-"}, {"[::1]", "nats|[::1]:4222|-|-"},
        {"TLS://t@h/", "tls|h:4222|t|-"}, {"nats://u:@h", "nats|h:4222|u|"}, {"nats://:p@h", "nats|h:4222||p"}, {"nats://@h", "nats|h:4222|-|-"},
        {"nats://u:p@ss@h:1", "nats|h:1|u|p@ss"}, {"nats://u:p:q/r@h:1/x", "nats|h:1|u|p:q/r"}, {"u:p#?@h", "nats|h:4222|u|p#?"},
        {"nats://a%20b:%22%5c%25%2C@h", "nats|h:4222|a b|\"\\%,"}, {"nats://%0d%0A:%c3%a9@h", "nats|h:4222|\r\n|\xc3\xa9"}, {"nats://\"\\@h", "nats|h:4222|\"\\|-"},
        {"[fe80::1%eth0]:1", "nats|[fe80::1%eth0]:1|-|-"}, {"[::ffff:1.2.3.4]", "nats|[::ffff:1.2.3.4]:4222|-|-"}, {"nats://a_b-c.example.:1", "nats|a_b-c.example.:1|-|-"},
        /* and what is none */
        {"", ""}, {"nats://", ""}, {"nats://u:s3cret@", ""}, {"u:s3cret@/x", ""}, {"http://h", ""}, {"ws://u:s3cret@h", ""}, {"nats://a b", ""}, {"nats://u:s3cret @h", ""}, {"h\r\nPUB", ""}, {"h\x7f", ""}, {"h:0", ""}, {"h:65536", ""},
        {"h:s3cret", ""}, {"h:123456", ""}, {"h:-1", ""}, {"u:s3cret:1", ""}, {"::1", ""}, {"[::1", ""}, {"[::1]s3cret", ""}, {"[h]", ""}, {"[]", ""}, {"[::1%]:x", ""},
        {"nats://u:s3cret%h", ""}, {"nats://u:s3cret%@h", ""}, {"nats://u:s3cret%4@h", ""}, {"nats://u:%4gs3cret@h", ""}, {"nats://u%:s3cret@h", ""}, {"nats://u:s3cret%00@h", ""},
        {"nats://u:p@h%31", ""}, {"nats://u:p@\xc3\xa9", ""}, {"nats://u:s3cret\"h", ""},
        {"u:s3cret://h", ""},
    };
    for (size_t i = 0; i < COUNT_OF(servers); i++) {
        struct span server = {(const char *)exactly(servers[i].server, strlen(servers[i].server)), strlen(servers[i].server)};
        VERIFY(strcmp(taken_apart(server), servers[i].parts) == 0, servers[i].server);
        free((void *)server.at);
    }
    char text[URL_MAX + 2], host[300], escaped_text[URL_ESCAPED(10) + 1];
    memset(text, 'x', sizeof(text));
    memcpy(text, "u:", 2);
    memcpy(text + URL_MAX - 1, "@h", 2);
    CHECK(!*taken_apart((struct span){text, URL_MAX + 1}) && *taken_apart((struct span){text + 1, URL_MAX}));
    memset(host, 'h', sizeof(host));
    CHECK(*taken_apart((struct span){host, URL_HOST_MAX - 1}) && !*taken_apart((struct span){host, URL_HOST_MAX}));
    CHECK(url_json_escape(escaped_text, "a\"b\\c\n\x01\xc3\xa9/") == 22 && strcmp(escaped_text, "a\\\"b\\\\c\\u000a\\u0001\xc3\xa9/") == 0);
    CHECK(url_json_escape(escaped_text, "") == 0 && !*escaped_text);
}

int main(void) {
    static const struct group groups[] = {
        {"spans", test_spans}, {"UTF-8", test_utf8}, {"subjects", test_subjects}, {"overlap", test_overlap}, {"lists", test_lists},
        {"URLs", test_urls},
    };
    return run_groups(groups, COUNT_OF(groups));
}
