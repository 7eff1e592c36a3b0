/* A component for the test with a real host. It does with each message what the message's body says:
 *
 *     echo TEXT               publishes TEXT to the message's reply subject
 *     publish SUBJECT TEXT    publishes TEXT to SUBJECT
 *     request SUBJECT TEXT    requests of SUBJECT with TEXT, and publishes the answer, or the words of the
 *                             error, to the reply subject
 *     error TEXT              returns an error result with these words
 *     trap                    ends without a result
 *
 * Words are divided by one space; the rest of the body is TEXT. build.sh makes component.wasm of it;
 * component.h is wit-bindgen's, and so are the long names.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdlib.h>
#include <string.h>
#include "component.h"

#define REQUEST_TIMEOUT_MS 2000

#define PAGE 65536

/* A host makes a new instance for each message, so memory is only handed out. */
void *malloc(size_t size) {
    extern uint8_t __heap_base;
    static uintptr_t top = (uintptr_t)&__heap_base;
    uintptr_t begin = (top + 15) & ~(uintptr_t)15, end = begin + size,
              has = __builtin_wasm_memory_size(0) * PAGE;
    if (end < begin || (end > has && __builtin_wasm_memory_grow(0, (end - has - 1) / PAGE + 1) == SIZE_MAX))
        abort();
    top = end;
    return (void *)begin;
}

void *realloc(void *old, size_t size) {
    if (old) abort(); /* wit-bindgen asks for new blocks alone */
    return malloc(size);
}

void free(void *block) { (void)block; }

typedef component_list_u8_t bytes;
typedef exports_wasmcloud_messaging_handler_broker_message_t message;

/* Takes the first word off what is left of a body. */
static bytes word(bytes *rest) {
    uint8_t *space = memchr(rest->ptr, ' ', rest->len);
    size_t length = space ? (size_t)(space - rest->ptr) : rest->len;
    bytes first = {rest->ptr, length};
    size_t taken = space ? length + 1 : length;
    rest->ptr += taken;
    rest->len -= taken;
    return first;
}

static bool is(bytes word, const char *name) {
    return word.len == strlen(name) && !memcmp(word.ptr, name, word.len);
}

static component_string_t as_string(bytes text) { return (component_string_t){text.ptr, text.len}; }

static bool publish(component_string_t subject, bytes text, component_string_t *error) {
    wasmcloud_messaging_consumer_broker_message_t out = {.subject = subject, .body = text};
    return wasmcloud_messaging_consumer_publish(&out, error);
}

static bool reply(const message *to, bytes text, component_string_t *error) {
    if (!to->reply_to.is_some) {
        component_string_dup(error, "the message has no reply subject");
        return false;
    }
    return publish(to->reply_to.val, text, error);
}

static bool request(const message *msg, bytes subject, bytes text, component_string_t *error) {
    component_string_t of = as_string(subject), words;
    wasmcloud_messaging_consumer_broker_message_t answer;
    if (wasmcloud_messaging_consumer_request(&of, &text, REQUEST_TIMEOUT_MS, &answer, &words))
        return reply(msg, answer.body, error);
    return reply(msg, (bytes){words.ptr, words.len}, error);
}

/* The world's export: true is an ok result, false an error result with these words. */
bool exports_wasmcloud_messaging_handler_handle_message(message *msg, component_string_t *error) {
    bytes text = msg->body;
    bytes order = word(&text);
    if (is(order, "echo")) return reply(msg, text, error);
    if (is(order, "publish")) return publish(as_string(word(&text)), text, error);
    if (is(order, "request")) return request(msg, word(&text), text, error);
    if (is(order, "trap")) __builtin_trap();
    if (is(order, "error")) *error = as_string(text);
    else component_string_dup(error, "no such order");
    return false;
}
