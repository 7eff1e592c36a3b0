/* json - jansson where memory may be short.
 *
 * A value that finds no memory is NULL, and jansson's functions take NULL for a value that is missing: what
 * was built would lack something, and nobody would know. So after the first allocation that fails all
 * others fail as well, until json_begin(); and who has built something asks json_whole() for it. What is
 * wrong with its lexer, and the cure, is in json.c.
 *
 * All of it is for one thread, and for json_set_alloc_funcs(json_alloc, json_free).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

void json_begin(void);

/* Whether an allocation has failed since json_begin(). */
bool json_is_short(void);

/* jansson's malloc; also for bytes of our own that go into a value, so that they count. */
void *json_alloc(size_t size);

/* jansson's free, which wipes: configuration holds secrets, and all of it passes here. */
void json_free(void *p);

/* What was built since json_begin(); or NULL, and it is gone, if anything of it has found no memory. */
json_t *json_whole(json_t *value);

/* The value of a text, or NULL: json_is_short() tells whether the text is wrong or memory is short. */
json_t *json_read(const char *text, size_t len, json_error_t *error);

/* The same for an order that must not wait, with a reserve of memory of its own. The value is to be gone
 * before the next such call. */
json_t *json_read_urgent(const char *text, size_t len);

#endif
