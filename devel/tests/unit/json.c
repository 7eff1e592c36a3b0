/* unit_json - deps/json.c where memory is short. See failing_json.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "unit.h"
#include "failing_json.h"

#include "../../../deps/text.h"

/* Where jansson's lexer wrote beyond its blocks: strings, numbers and words that are longer than its buffer. */
static void test_short_json(void) {
    char text[3000];
    static const char *const texts[] = {
        "[]", "{\"a\":{\"b\":[1,2.5,\"c\",null,true,{}]}}", "[\"0123456789abcdef0123456789abcdef\",\"\\u00e9\\ud83d\\ude00\\n\"]",
        "[123456789012345678,-0.123456789012345678901234567890e-10]",
    };
    for (size_t i = 0; i < COUNT_OF(texts); i++) all_or_nothing(build_text, texts[i]);
    (void)snprintf(text, sizeof(text), "{\"%0*d\":\"%0*d\"}", 700, 1, 2000, 2);
    all_or_nothing(build_text, text);
    json_set_alloc_funcs(json_alloc, few_give);
    const char *wrong[] = {"nullnullnullnullnullnullnull", "[truetruetruetruetruetruetrue", "\"no end of it, however long it is", "[-", "[1e", "\"\\u12"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++)
        for (size_t n = 1; n < 20; n++) {
            few.at = n;
            CHECK(!build_text(wrong[i]));
        }
    few.at = 0;
    json_set_alloc_funcs(malloc, free);
}

/* An order that must not wait has its own memory, as much as such an order takes; another has not. */
static void test_urgent_json(void) {
    char order[1500];
    (void)snprintf(order, sizeof(order), "{\"source_id\":\"%0*d\",\"target\":\"t\",\"name\":\"n\",\"wit_namespace\":\"w\",\"wit_package\":\"m\",\"interfaces\":"
                   "[\"consumer\"],\"source_config\":{},\"target_config\":{},\"source_secrets\":null,\"target_secrets\":null}", 900, 1);
    json_set_alloc_funcs(json_alloc, few_give);
    json_t *expected = build_text(order);
    for (size_t n = 1; n < 60; n++) {
        few.at = n;
        few.for_good = true;
        json_t *ordinary = build_text(order);
        few.at = n;
        json_begin();
        json_t *urgent = json_read_urgent(order, strlen(order));
        CHECK((!ordinary || n > 30) && json_equal(urgent, expected) && json_memory.used < JSON_RESERVE / 4);
        json_decref(ordinary);
        json_decref(urgent);
    }
    few.at = 0;
    few.for_good = true;
    char *large = calloc(1, JSON_RESERVE);
    memset(large, '[', JSON_RESERVE - 1);
    json_begin();
    CHECK(!json_read_urgent(large, JSON_RESERVE - 1) && json_is_short()); /* one that is too large has none */
    few.for_good = false;
    free(large);
    json_decref(expected);
    json_set_alloc_funcs(malloc, free);
}

int main(void) {
    static const struct group groups[] = {{"JSON without memory", test_short_json}, {"urgent orders", test_urgent_json}};
    return run_groups(groups, COUNT_OF(groups));
}
