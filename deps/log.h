/* log - one line an event on standard error, as text or JSON, each written whole by one write(2).
 *
 * The host reads the other end of the pipe. If it stops reading, lines are dropped and counted: nobody
 * waits here. All of it is for one thread.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef LOG_H
#define LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum level { LEVEL_OFF, LEVEL_CRITICAL, LEVEL_ERROR, LEVEL_WARN, LEVEL_INFO, LEVEL_DEBUG, LEVEL_TRACE };

/* The first LOG_LINES lines of a format within LOG_PERIOD_MS are written, of the others only their count
 * when that time is over. */
enum { LOG_LIMITS = 8, LOG_LINES = 5, LOG_PERIOD_MS = 5000 };

/* What a line is about, and which of its lines came lately. */
struct topic {
    const char *kind; /* "link", "lattice", "provider" */
    char name[256];
    struct rate_limit {
        const char *format; /* tells one line from another, by its address */
        uint64_t until_ms;  /* of CLOCK_MONOTONIC */
        unsigned lines, held_back;
        char last[96];
    } limits[LOG_LIMITS];
};

extern struct log {
    enum level level; /* lines above it are not written; LEVEL_INFO at first */
    bool json;
    uint64_t lost;   /* lines that nobody read */
    uint64_t due_ms; /* of CLOCK_MONOTONIC: when log_tick() has something to write; UINT64_MAX: never */
} logger;

/* Writes a line, unless too many of this format came lately. */
__attribute__((format(printf, 3, 4))) void say(struct topic *topic, enum level level, const char *format,
                                               ...);

/* Writes a line in any case. */
void log_line(const struct topic *topic, enum level level, const char *text);

/* In how many milliseconds log_tick() has something to write; UINT32_MAX: no line is held back. */
uint32_t log_wait_ms(void);

/* Writes how many lines were held back, of each format whose time is over, or of all. Who calls it for each
 * topic sets logger.due_ms to UINT64_MAX before: it is computed anew. */
void log_tick(struct topic *topic, bool all);

/* A level by its name, or what RUST_LOG may hold, as "info,async_nats=warn": the part without "=" counts.
 * What names no level changes nothing. */
void log_set_level(const char *text);

/* Copies text for a terminal, or for a JSON string: as UTF-8 that can be seen, with a ? for what is not (it
 * may be hostile); cut at `size`, and not within a character. Returns `out`. */
const char *log_escape(char *out, size_t size, const char *text, bool json);

/* Ends the program with exit code 1 and one sentence about what the command line or the host got wrong. */
__attribute__((format(printf, 1, 2), noreturn)) void die(const char *format, ...);

#endif
