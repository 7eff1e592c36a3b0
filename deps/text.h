/* text - texts that belong to somebody else: spans, UTF-8, the subjects of NATS, lists with commas.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TEXT_H
#define TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])
#define SPAN(literal) ((struct span){literal, sizeof(literal) - 1})

struct span {
    const char *at;
    size_t len;
}; /* bytes that belong to somebody else */

/* NULL: an empty span at NULL. */
static inline struct span span_of(const char *text) { return (struct span){text, text ? strlen(text) : 0}; }

static inline bool span_is(struct span s, const char *text) {
    return strlen(text) == s.len && (s.len == 0 || memcmp(s.at, text, s.len) == 0);
}

static inline bool span_same(struct span a, struct span b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}

/* Copies a span and puts a NUL behind it, cut if it is longer than `size` allows. Returns the copy,
 * without the NUL. */
struct span text_of(struct span s, char *out, size_t size);

/* A hash, for telling texts apart that nobody makes up to be alike: FNV-1a. */
uint64_t hash_of(struct span s);

/* Whether these bytes are UTF-8: no overlong form, no surrogate, nothing beyond U+10FFFF (RFC 3629). */
bool is_utf8(struct span s);

/* The character of UTF-8 that begins here: how many bytes it has, and its code point. 0: there is none.
 * `left` is at least 1. */
size_t utf8_read(const char *at, size_t left, uint32_t *code);

/* Whether a code point may be shown on a terminal: no control character, nothing that is not seen. */
bool is_printable(uint32_t code);

/* Whether a subject may go into the NATS protocol: a space or a control character in it would begin a
 * command of somebody else's choice. At most SUBJECT_MAX bytes. `wildcards`: `*` and `>` may be tokens.
 * protocol: NATS, "Subject-Based Messaging". */
bool is_subject(struct span s, bool wildcards);

/* Whether there is a subject that both of these match, which may have wildcards. */
bool subjects_overlap(struct span a, struct span b);

/* Whether this is one token of a subject, without wildcards, of less than ID_MAX bytes. NULL is none. */
bool is_token(const char *text);

/* Without the blanks and line ends around it. */
struct span trimmed(struct span s);

/* The next entry of a list with commas, trimmed; *list moves behind it, and may be NULL. Returns false at the
 * end; empty entries are skipped. */
bool list_next(const char **list, struct span *item);

/* Entry number `n`. To walk a list that may be long, take list_next(). */
bool list_item(const char *list, size_t n, struct span *item);

#endif
