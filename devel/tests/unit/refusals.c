/* unit_refusals - tests of deps/refusals.c: what a server says that it refuses, and what is kept of it.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "unit.h"

#include "../../../deps/refusals.c"

#define PUBLISH "Permissions Violation for Publish to "
#define SUBSCRIPTION "Permissions Violation for Subscription to "

static void test_words(void) {
    static const struct {
        const char *text, *subject, *item;
        bool subscription;
        int64_t sid;
    } texts[] = {
        {PUBLISH "\"a.b\"",                      "a.b",       "a.b",       false, 0 },
        {SUBSCRIPTION "\"a.>\"",                 "a.>",       "a.>",       true,  0 },
        {SUBSCRIPTION "\"a\" using queue \"q\"", "a",         "a|q",       true,  0 },
        {SUBSCRIPTION "\"a\" (sid \"17\")",      "a",         "a",         true,  17},
        {SUBSCRIPTION "\"a\" (sid \"",           "a",         "a",         true,  0 },
        {SUBSCRIPTION "\"a\" using queue",       "a",         "a",         true,  0 },
        {PUBLISH "\"a\\\"b\\\\c\"",              "a\"b\\c",   "a\"b\\c",   false, 0 },
        {"Publish with Reply of \"$JS.ACK.x\"",  "$JS.ACK.x", "$JS.ACK.x", false, 0 },
        {PUBLISH "\"a",                          "a",         "a",         false, 0 },
        {PUBLISH "\"a\\",                        "a\\",       "a\\",       false, 0 },
        {PUBLISH "\"\"",                         "",          "",          false, 0 },
        {"Violation",                            "Violation", "Violation", false, 0 },
    };
    static struct refusal r;
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        refusal_read(texts[i].text, &r);
        VERIFY(strcmp(r.subject, texts[i].subject) == 0 && strcmp(r.item, texts[i].item) == 0, texts[i].text);
        VERIFY(r.subscription == texts[i].subscription && r.sid == texts[i].sid, texts[i].text);
    }
    static char longest[4097] = "Permissions Violation for Subscription to \"";
    memset(longest + strlen(longest), 'x', sizeof(longest) - 1 - strlen(longest));
    refusal_read(longest, &r);
    CHECK(strlen(r.subject) == SUBJECT_MAX && strlen(r.item) == SUBJECT_MAX);
}

static void test_kept(void) {
    static struct refusals r;
    char subject[200];
    CHECK(!refusals_step(&r, 1));
    refusals_add(&r, "a", 1000);
    CHECK(refusals_step(&r, 1000) && !refusals_probe(&r));
    refusals_proved(&r); /* of a probe that was sent before */
    refusals_try(&r, SPAN("b"));
    CHECK(!refusals_probe(&r) && refusals_step(&r, 1000));
    refusals_try(&r, SPAN("a"));
    refusals_proved(&r); /* it was tried behind the probe */
    CHECK(refusals_step(&r, 1000) && refusals_probe(&r) && !refusals_probe(&r));
    refusals_add(&r, "a", 2000); /* refused again */
    refusals_proved(&r);
    CHECK(refusals_step(&r, 2000));
    refusals_try(&r, SPAN("a"));
    CHECK(refusals_probe(&r));
    refusals_try(&r, SPAN("a")); /* one behind the probe takes nothing away */
    refusals_proved(&r);
    CHECK(!refusals_step(&r, 2000));
    refusals_add(&r, "a", 3000);
    CHECK(refusals_step(&r, 3000 + REFUSAL_KEPT_MS - 1) && !refusals_step(&r, 3000 + REFUSAL_KEPT_MS));
    for (int i = 0; i < 100000; i++) {
        (void)snprintf(subject, sizeof(subject), "%d.%0150d", i, i);
        refusals_add(&r, subject, 1000);
    }
    CHECK(r.others == 100000 - REFUSALS_MAX && strlen(r.of[0].subject) == sizeof(r.of[0].subject) - 1);
    CHECK(refusals_step(&r, 1000) && !refusals_step(&r, 1000 + REFUSAL_KEPT_MS) && r.others == 0);
}

static const char *listed(size_t size, unsigned others, const char *const *names) {
    static char text[400];
    struct names n = {.text = text, .size = size};
    names_begin(&n, "so%s: ", "");
    for (; *names; names++) names_add(&n, "to ", *names);
    names_end(&n, others);
    return text;
}

static void test_names(void) {
    static const char *const none[] = {NULL}, *const two[] = {"a", "b", NULL},
                             *const many[] = {"0123456789", "0123456789", "0123456789", "x", NULL};
    CHECK(strcmp(listed(400, 0, none), "") == 0);
    CHECK(strcmp(listed(400, 0, two), "so: to a, to b") == 0);
    CHECK(strcmp(listed(400, 1, two), "so: to a, to b, and 1 other") == 0);
    CHECK(strcmp(listed(400, 4000000000, none), "so: 4000000000 others") == 0);
    CHECK(strcmp(listed(50, 0, many), "so: to 0123456789, and 3 others") == 0);
    for (size_t size = 45; size < 100; size++) CHECK(strlen(listed(size, 4000000000, many)) < size);
}

int main(void) {
    static const struct group groups[] = {
        {"words of a server", test_words},
        {"what is kept",      test_kept },
        {"lists of names",    test_names},
    };
    return run_groups(groups, COUNT_OF(groups));
}
