/* failing_json - deps/json.c on a malloc that fails when it is told to, for tests of what is built without memory.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef FAILING_JSON_H
#define FAILING_JSON_H

#include <stdlib.h>

#include <jansson.h>
#include <sodium.h>

#include "unit.h"

static void *few_malloc(size_t size);
#define malloc few_malloc
#include "../../../deps/json.c"
#undef malloc

static struct {
    size_t at;      /* the allocation that fails, counted down; 0: none */
    size_t open;    /* blocks that are not given back */
    bool for_good;  /* all others after it fail, too */
} few;

static void *few_malloc(size_t size) {
    bool fails = few.at > 0 ? --few.at == 0 : few.for_good;
    void *p = fails ? NULL : malloc(size);
    few.open += p != NULL;
    return p;
}

static void few_give(void *p) {
    few.open -= p && !json_is_reserve(p);
    json_free(p);
}

/* Builds with the n-th allocation failing (once, or that and all others) for all n. Whatever fails, it is all or
 * nothing: the same as with memory, or NULL; and nothing is left behind. */
static void all_or_nothing(json_t *(*build)(const void *), const void *from) {
    json_set_alloc_funcs(json_alloc, few_give);
    json_t *whole = build(from);
    unsigned runs = 0;
    size_t open = few.open;
    for (int for_good = 0; for_good < 2; for_good++) {
        bool reached = true;
        for (size_t n = 1; reached; n++, runs++) {
            few.at = n;
            few.for_good = for_good;
            json_t *built = build(from);
            reached = few.at == 0;
            few.at = 0;
            few.for_good = false;
            CHECK(reached ? !built && json_is_short() : json_equal(built, whole));
            json_decref(built);
            CHECK(few.open == open);
        }
    }
    CHECK(runs > 6 && whole);
    json_decref(whole);
    json_set_alloc_funcs(malloc, free);
}

static json_t *build_text(const void *text) {
    json_begin();
    return json_read(text, strlen(text), NULL);
}

#endif
