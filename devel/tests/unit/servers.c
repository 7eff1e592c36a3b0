/* unit_servers - deps/servers.c: what an INFO names, and what becomes of it.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "unit.h"

#include "../../../deps/servers.h"

/* The list that is read from a field connect_urls. */
static const char *list_of(const char *json) {
    static struct servers said;
    memset(&said, 0, sizeof(said));
    servers_read(&said, SPAN("\"connect_urls\""), span_of(json));
    return said.list;
}

/* Hosts and ports are taken, in one form and once each; nothing else is. */
static void test_lists(void) {
    static const char *const lists[][2] = {
        {"[\"10.0.0.1:4222\",\"h-1.a_b:1\", \"[fe80::1]:65535\"]", "10.0.0.1:4222,h-1.a_b:1,[fe80::1]:65535"},
        {"[\"h\",\"H:4222\",\"h:04222\"]", "h:4222,h:04222"},
        {"[]", ""},
        {"\"h:1\"", ""},
        {"{\"h:1\":1}", ""},
        {"[[\"h:1\"],{\"i:2\":[\"j:3\"]},null]", "h:1,i:2,j:3"}, /* no server's, and as harmless */
        {"[\"u:s3cret@h:1\",\"u@h\",\"tls://h:1\",\"h:1/x\",\"h:1?\",\"a,b:1\",\"a b:1\",\":1\",\"\"]", ""},
        {"[\"h:0\",\"h:65536\",\"h:x\",\"h:1:2\",\"[::1\",\"::1\",\"[::1%lo]:1\",\"h%41:1\"]", ""},
        {"[\"\x1b[2J:1\",\"\xc3\xa9:1\",\"\\u0041:1\",\"a\\\\\",\"h:1\"]", "h:1"},
        {"[\"a\\\"b:1\",\"a\\\"]", ""},
        {"[\"h:1", ""},
        {"[\"", ""},
        {"[", ""},
    };
    for (size_t i = 0; i < COUNT_OF(lists); i++)
        VERIFY(strcmp(list_of(lists[i][0]), lists[i][1]) == 0, lists[i][0]);
}

/* Thousands of them, and long ones: a few are kept. */
static void test_limits(void) {
    static char json[40000];
    struct span item;
    for (size_t host = 1; host < 300; host++) {
        size_t at = 0, n = 0;
        json[at++] = '[';
        for (int i = 0; i < 1000 && at + host + 20 < sizeof(json); i++)
            at += (size_t)sprintf(json + at, "%s\"%0*d:1\"", i ? "," : "", (int)host, i);
        json[at++] = ']';
        json[at] = 0;
        const char *list = list_of(json);
        while (list_item(list, n, &item)) n++;
        CHECK(n <= SERVERS_MAX && strlen(list) < SERVERS_BYTES);
        VERIFY((n == 0) == (host >= URL_HOST_MAX) && (host > 60 || host < 3 || n == SERVERS_MAX), json);
    }
}

/* Whose credentials they get, and that a server which names nobody takes nothing back. */
static void test_take(void) {
    struct servers s = {.reached = 2}, said = {.list = "a:1", .tls = true};
    servers_take(&s, &said);
    CHECK(strcmp(s.list, "a:1") == 0 && s.tls && s.from == 2 && !s.lame_duck);
    s.reached = 1;
    servers_take(&s, &(struct servers){.lame_duck = true});
    CHECK(strcmp(s.list, "a:1") == 0 && s.tls && s.from == 2 && s.lame_duck);
    servers_take(&s, &(struct servers){.list = "b:1"});
    CHECK(strcmp(s.list, "b:1") == 0 && !s.tls && s.from == 1 && s.lame_duck);
    memset(&said, 0, sizeof(said));
    servers_read(&said, SPAN("\"ldm\""), SPAN("false"));
    servers_read(&said, SPAN("\"tls_required\""), SPAN("1"));
    CHECK(!said.lame_duck && !said.tls);
    servers_read(&said, SPAN("\"ldm\""), SPAN("true"));
    servers_read(&said, SPAN("\"tls_required\""), SPAN("true"));
    servers_read(&said, SPAN("\"connect_urls\""), ((struct span){0}));
    servers_read(&said, SPAN("\"ws_connect_urls\""), SPAN("[\"h:1\"]"));
    CHECK(said.lame_duck && said.tls && !*said.list);
}

/* User, TLS, and for which name the certificate has to be. */
static void test_urls(void) {
    static const struct {
        const char *configured, *named, *host, *port, *name;
        bool tls;
    } urls[] = {
        {"tls://u:p@n.test:1", "10.0.0.1:2",    "10.0.0.1", "2",    "n.test",   true },
        {"tls://u:p@n.test:1", "[::1]:2",       "::1",      "2",    "n.test",   true },
        {"tls://u:p@n.test:1", "m.test:2",      "m.test",   "2",    "m.test",   true },
        {"nats://u:p@1.2.3.4", "10.0.0.1:4222", "10.0.0.1", "4222", "10.0.0.1", false},
        {"nats://u:p@1.2.3.4", "m.test:4222",   "m.test",   "4222", "m.test",   false},
    };
    struct servers s = {0};
    struct url url;
    for (size_t i = 0; i < COUNT_OF(urls); i++) {
        CHECK(!url_parse(&url, urls[i].configured, strlen(urls[i].configured)));
        s.tls = false;
        CHECK(servers_url(&s, span_of(urls[i].named), &url) && url.tls == urls[i].tls);
        VERIFY(strcmp(url.host, urls[i].host) == 0 && strcmp(url.port, urls[i].port) == 0, urls[i].named);
        VERIFY(strcmp(url.name, urls[i].name) == 0 && strcmp(url.user, "u") == 0, urls[i].named);
        s.tls = true;
        CHECK(servers_url(&s, span_of(urls[i].named), &url) && url.tls);
    }
    CHECK(!servers_url(&s, SPAN("u@h:1"), &url) && !servers_url(&s, SPAN(""), &url));
}

int main(void) {
    static const struct group groups[] = {
        {"lists of servers", test_lists},
        {"their limits", test_limits},
        {"what is taken over", test_take},
        {"their URLs", test_urls},
    };
    return run_groups(groups, COUNT_OF(groups));
}
