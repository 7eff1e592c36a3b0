/* headers - see headers.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "headers.h"

#include <string.h>

struct span headers_of(natsMsg *msg) {
    size_t len = (size_t)natsMsgHeader_encodedLen(msg);
    return (struct span){natsMsg_GetData(msg) - 1 - len, len};
}

/* The value in a header's line if it has this key, or NULL. */
static char *value_in(char *line, const char *key) {
    while (*key && *line == *key) {
        line++;
        key++;
    }
    if (*key || *line++ != ':') return NULL;
    while (*line == ' ' || *line == '\t') line++;
    return line;
}

void headers_read(natsMsg *msg, struct header wanted[HEADERS_MAX]) {
    struct span block = headers_of(msg);
    char *line = (char *)block.at, *past = line + block.len, *end;
    for (; line < past && *line != '\r'; line = end + 1) {
        end = memchr(line, '\n', (size_t)(past - line));
        if (!end) return;
        for (struct header *h = wanted; h < wanted + HEADERS_MAX && h->key; h++) {
            char *value = h->value ? NULL : value_in(line, h->key);
            if (!value) continue;
            end[-(end[-1] == '\r')] = 0;
            h->value = value;
        }
    }
}

struct status status_of(natsMsg *msg) {
    struct span block = headers_of(msg);
    const char *code = block.at + strlen("NATS/1.0 "), *end = memchr(block.at, '\r', block.len);
    if (!end || end < code + 3 || strncmp(block.at, "NATS/1.0 ", 9) != 0) return (struct status){0};
    const char *text = code + 3 + (code[3] == ' ');
    struct status status;
    status.code = (struct span){code, 3};
    status.text = (struct span){text, (size_t)(end - text)};
    return status;
}

bool is_no_responders(natsMsg *msg) {
    return natsMsg_GetDataLength(msg) == 0 && span_is(status_of(msg).code, "503");
}

size_t headers_size(const struct header *headers) {
    size_t n = 0;
    for (size_t i = 0; headers && i < HEADERS_MAX && headers[i].key; i++)
        if (headers[i].value) n += strlen(headers[i].key) + strlen(headers[i].value) + 4;
    return n ? n + 12 : 0; /* NATS/1.0\r\n … \r\n */
}

/* Writes headers_size() bytes; returns what is behind them. */
static char *headers_write(char *at, const struct header *headers) {
    at = mempcpy(at, "NATS/1.0\r\n", 10);
    for (size_t i = 0; i < HEADERS_MAX && headers[i].key; i++) {
        if (!headers[i].value) continue;
        at = mempcpy(at, headers[i].key, strlen(headers[i].key));
        at = mempcpy(at, ": ", 2);
        at = mempcpy(at, headers[i].value, strlen(headers[i].value));
        at = mempcpy(at, "\r\n", 2);
    }
    return mempcpy(at, "\r\n", 2);
}

static size_t digits_of(size_t n) {
    size_t digits = 1;
    for (size_t limit = 10; n >= limit; limit *= 10) digits++;
    return digits;
}

size_t wire_size(size_t subject, size_t reply, size_t head, size_t len) {
    size_t line = strlen("PUB ") + subject + 1 + (reply ? reply + 1 : 0) + digits_of(head + len) + 2;
    return line + (head ? 1 + digits_of(head) + 1 : 0) + head + len + 2;
}

static char *number_write(char *at, size_t n) {
    size_t digits = digits_of(n);
    for (size_t i = digits; i > 0; i--, n /= 10) at[i - 1] = (char)('0' + n % 10);
    return at + digits;
}

bool message_write(natsConnection *nc, struct span subject, struct span reply, const struct header *headers,
                   const void *data, size_t len) {
    static char line[MESSAGE_HEAD_MAX];
    size_t head = headers_size(headers);
    if (wire_size(subject.len, reply.len, head, 0) > sizeof(line)) return false;
    char *at = mempcpy(line, head ? "HPUB " : "PUB ", head ? 5 : 4);
    at = mempcpy(at, subject.at, subject.len);
    *at++ = ' ';
    if (reply.len) {
        at = mempcpy(at, reply.at, reply.len);
        *at++ = ' ';
    }
    if (head) {
        at = number_write(at, head);
        *at++ = ' ';
    }
    at = number_write(at, head + len);
    at = mempcpy(at, "\r\n", 2);
    if (head) at = headers_write(at, headers);
    return natsConn_bufferWrite(nc, line, (int)(at - line)) == NATS_OK &&
           natsConn_bufferWrite(nc, data, (int)len) == NATS_OK &&
           natsConn_bufferWrite(nc, "\r\n", 2) == NATS_OK &&
           natsConn_bufferFlush(nc) == NATS_OK; /* has the loop asked to write */
}
