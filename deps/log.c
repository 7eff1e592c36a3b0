/* log - see log.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "log.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "../provider.h"
#include "text.h"

struct log logger = {.level = LEVEL_INFO, .due_ms = UINT64_MAX};

static const char *const level_names[] = {"OFF", "CRITICAL", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"};

static uint64_t now_ms(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Bytes of what is no character: the first one, and of those that follow as many as it asks for. 0: the end
 * of the text has cut a character off. */
static size_t spoilt_bytes(const char *text) {
    unsigned char first = (unsigned char)*text;
    size_t n = 1, whole = first < 0xc0 || first > 0xf7 ? 1 : 2 + (size_t)(first > 0xdf) + (first > 0xef);
    while (n < whole && (text[n] & 0xc0) == 0x80) n++;
    return n < whole && !text[n] ? 0 : n;
}

const char *log_escape(char *out, size_t size, const char *text, bool json) {
    size_t n = 0, bytes;
    uint32_t code;
    for (; *text && n + 4 < size; text += bytes) {
        bytes = utf8_read(text, strnlen(text, 4), &code);
        bool seen = bytes > 0 && is_printable(code);
        if (bytes == 0 && (bytes = spoilt_bytes(text)) == 0) break;
        if (json && (*text == '"' || *text == '\\')) out[n++] = '\\';
        if (seen) memcpy(out + n, text, bytes);
        else out[n] = '?';
        n += seen ? bytes : 1;
    }
    out[n] = 0;
    return out;
}

void die(const char *format, ...) {
    char text[512], safe[512];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    (void)fprintf(stderr, PROVIDER_NAME ": %s\n", log_escape(safe, sizeof(safe), text, false));
    exit(1);
}

void log_line(const struct topic *topic, enum level level, const char *text) {
    static const char plain_form[] = "%s %-5s %s %s: %s\n";
    static const char json_form[] =
        "{\"timestamp\":\"%s\",\"level\":\"%s\",\"%s\":\"%s\",\"message\":\"%s\"}\n";
    char safe[1200], who[300], when[32], line[1800];
    struct timespec t;
    struct tm tm;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    (void)strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", gmtime_r(&t.tv_sec, &tm));
    (void)snprintf(when + strlen(when), 8, ".%03dZ", (int)(t.tv_nsec / 1000000));
    (void)log_escape(safe, sizeof(safe), text, logger.json);
    (void)log_escape(who, sizeof(who), topic->name, logger.json);
    int n = snprintf(line, sizeof(line), logger.json ? json_form : plain_form, when, level_names[level],
                     topic->kind, who, safe);
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    bool ready = poll(&out, 1, 0) == 1 && out.revents & POLLOUT;
    if (!ready || write(STDERR_FILENO, line, (size_t)n) < 0) logger.lost++;
}

static void due_at(uint64_t ms) {
    if (ms < logger.due_ms) logger.due_ms = ms;
}

uint32_t log_wait_ms(void) {
    if (logger.due_ms == UINT64_MAX) return UINT32_MAX;
    uint64_t now = now_ms();
    return now < logger.due_ms ? (uint32_t)(logger.due_ms - now) : 0;
}

void log_tick(struct topic *topic, bool all) {
    uint64_t now = now_ms();
    for (struct rate_limit *r = topic->limits; r < topic->limits + LOG_LIMITS; r++) {
        char text[160];
        if (!r->held_back) continue;
        if (!all && now < r->until_ms) {
            due_at(r->until_ms);
            continue;
        }
        (void)snprintf(text, sizeof(text), "%u more lines like this in %d s: %s", r->held_back,
                       LOG_PERIOD_MS / 1000, r->last);
        log_line(topic, LEVEL_WARN, text);
        r->until_ms = now + LOG_PERIOD_MS;
        r->held_back = 0;
    }
}

/* The limit of a line: the one that had it last, or else one that is idle; if none is, the last one is
 * shared. */
static struct rate_limit *limit_for(struct topic *topic, const char *format, uint64_t now) {
    struct rate_limit *idle = topic->limits + LOG_LIMITS - 1;
    for (struct rate_limit *r = topic->limits; r < topic->limits + LOG_LIMITS; r++) {
        if (r->format == format) return r;
        if (now >= r->until_ms && !r->held_back) idle = r;
    }
    return idle;
}

void say(struct topic *topic, enum level level, const char *format, ...) {
    char text[1024];
    va_list args;
    if (level > logger.level) return;
    uint64_t now = now_ms();
    struct rate_limit *r = limit_for(topic, format, now);
    if (now >= r->until_ms && !r->held_back)
        *r = (struct rate_limit){.format = format, .until_ms = now + LOG_PERIOD_MS};
    va_start(args, format);
    (void)vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    (void)snprintf(r->last, sizeof(r->last), "%.95s", text);
    if (r->lines++ < LOG_LINES) {
        log_line(topic, level, text);
    } else {
        r->held_back++;
        due_at(r->until_ms);
    }
}

void log_set_level(const char *text) {
    for (size_t n; *text; text += n + (text[n] == ',')) {
        n = strcspn(text, ",");
        for (size_t i = 0; i < COUNT_OF(level_names); i++)
            if (strlen(level_names[i]) == n && strncasecmp(text, level_names[i], n) == 0)
                logger.level = (enum level)i;
    }
}
