/* json - see json.h; and the buffer of jansson's lexer.
 *
 * The lexer (jansson 2.14, load.c) collects the bytes of a token in a buffer that grows, and does not look
 * whether it could: lex_save() ignores what strbuffer_append_byte() returns. A string then has no quote at
 * its end, and lex_scan_string() copies on behind the buffer, and behind the block that it copies to, until
 * there is one; of a long number the last digit is not the one that lex_unget_unsave() asserts. So the
 * buffer begins as large as the text, and never has to grow. The linker puts __wrap_strbuffer_init in the
 * place of jansson's function (--wrap in the Makefile).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <stdint.h>
#include <stdlib.h>

#include <sodium.h>

#include "arena.h"

/* Bytes of the reserve for orders that must not wait. One of 900 bytes takes 5 kB. */
enum { JSON_RESERVE = 32 * 1024 };

static struct {
    bool is_short;   /* an allocation has failed since json_begin() */
    bool urgent;     /* the reserve may be used */
    size_t text_len; /* bytes of the text that jansson parses */
    size_t used;     /* bytes of the reserve */
    _Alignas(16) uint8_t reserve[JSON_RESERVE];
} json_memory;

void json_begin(void) { json_memory.is_short = false; }

bool json_is_short(void) { return json_memory.is_short; }

void *json_alloc(size_t size) {
    void *p = json_memory.is_short ? NULL : malloc(size);
    if (!p && !json_memory.is_short && json_memory.urgent && size <= JSON_RESERVE - json_memory.used) {
        p = json_memory.reserve + json_memory.used;
        json_memory.used += (size + 15) & ~(size_t)15;
    }
    json_memory.is_short = !p;
    return p;
}

/* Whether a block is of the reserve, and not malloc's to free. */
static bool json_is_reserve(const void *p) {
    return (uintptr_t)p - (uintptr_t)json_memory.reserve < JSON_RESERVE;
}

void json_free(void *p) {
    if (json_is_reserve(p)) return;
    if (p) sodium_memzero(p, malloc_usable_size(p));
    free(p);
}

json_t *json_whole(json_t *value) {
    if (value && !json_memory.is_short) return value;
    json_decref(value);
    return NULL;
}

json_t *json_read(const char *text, size_t len, json_error_t *error) {
    json_memory.text_len = len;
    return json_whole(json_loadb(text, len, 0, error));
}

json_t *json_read_urgent(const char *text, size_t len) {
    sodium_memzero(json_memory.reserve, json_memory.used);
    json_memory.used = 0;
    json_memory.urgent = true;
    json_t *value = json_read(text, len, NULL);
    json_memory.urgent = false;
    return value;
}

/* As jansson's strbuffer.h has it. */
struct strbuffer {
    char *value;
    size_t length, size;
};

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): the linker's name */
int __wrap_strbuffer_init(struct strbuffer *buffer);
int __wrap_strbuffer_init(struct strbuffer *buffer) {
    /* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
    json_malloc_t take = NULL;
    json_get_alloc_funcs(&take, NULL);
    buffer->length = 0;
    buffer->size = json_memory.text_len + 2; /* a NUL, and strbuffer_append_bytes() wants one to spare */
    buffer->value = take(buffer->size);
    if (!buffer->value) return -1;
    buffer->value[0] = 0;
    return 0;
}
