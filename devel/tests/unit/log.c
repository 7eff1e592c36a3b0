/* unit_log - deps/log.c, with a clock that the test sets.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include <jansson.h>

#include "unit.h"

static uint64_t mono_ms;

static int unit_clock(clockid_t clock, struct timespec *t) {
    if (clock != CLOCK_MONOTONIC) return clock_gettime(clock, t);
    *t = (struct timespec){(time_t)(mono_ms / 1000), (long)(mono_ms % 1000) * 1000000};
    return 0;
}

#define clock_gettime unit_clock
#include "../../../deps/log.c"
#undef clock_gettime

static void test_log(void) {
    static const struct { const char *name; enum level level; } levels[] = {
        {"info", LEVEL_INFO}, {"WARN", LEVEL_WARN}, {"Debug", LEVEL_DEBUG}, {"critical", LEVEL_CRITICAL}, {"off", LEVEL_OFF}, {"trace", LEVEL_TRACE},
        {"async_nats=warn,error", LEVEL_ERROR}, {"info,async_nats=trace", LEVEL_INFO}, {"", LEVEL_DEBUG}, {"loud", LEVEL_DEBUG}, {"informed", LEVEL_DEBUG}, {"inf", LEVEL_DEBUG}, {",,x=y,", LEVEL_DEBUG},
    };
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        logger.level = LEVEL_DEBUG;
        log_set_level(levels[i].name);
        VERIFY(logger.level == levels[i].level, levels[i].name);
    }
    logger.level = LEVEL_INFO;
    char out[32];
    CHECK(strcmp(log_escape(out, sizeof(out), "a\"b\\c\n\x7f\xc3\xa9", true), "a\\\"b\\\\c??\xc3\xa9") == 0);
    CHECK(strcmp(log_escape(out, sizeof(out), "a\"b\\c\n\x1b[1m\xc3\xa9\x9b", false), "a\"b\\c??[1m\xc3\xa9?") == 0);
    static const struct { const char *text, *shown; } texts[] = {
        {"gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80, \xe6\x97\xa5\xe6\x9c\xac", "gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80, \xe6\x97\xa5\xe6\x9c\xac"},
        {"\xc2\x9b[1m", "?[1m"}, {"a\xe2\x80\xae""b", "a?b"}, {"a\xc2\xa0\xe2\x80\xa8\xef\xbb\xbf""b", "a???b"}, {"\xee\x80\x80\xf3\xa0\x81\x81", "??"},
        {"cut\xc3", "cut"}, {"cut\xe2\x82", "cut"}, {"cut\xf0\x9f\x98", "cut"}, {"\xe2\x82 in the middle", "? in the middle"}, {"\xc3(", "?("},
        {"\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80", "???"}, {"\xff\xff\x80", "???"}, {"\xf8\x88\x80\x80\x80", "?????"},
    };
    for (size_t i = 0; i < COUNT_OF(texts); i++) VERIFY(strcmp(log_escape(out, sizeof(out), texts[i].text, i % 2), texts[i].shown) == 0, texts[i].text);
    for (size_t size = 6; size < 12; size++) /* cut, but not within a character */
        CHECK(strlen(log_escape(out, size, "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9", false)) % 2 == 0 && strlen(out) < size);
    for (size_t size = 4; size <= sizeof(out); size++) {
        char *exact = malloc(size);
        (void)log_escape(exact, size, "\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"", true);
        CHECK(strlen(exact) % 2 == 0 && strlen(exact) < size); /* no half of an escape */
        free(exact);
    }
    static struct topic topic = {.kind = "link", .name = "a \"b\"\n(default)"};
    char huge[3000];
    memset(huge, '"', sizeof(huge));
    huge[sizeof(huge) - 1] = 0;
    logger.json = true;
    mono_ms = 1000;
    log_begin();
    say(&topic, LEVEL_WARN, "words: %s", huge);
    say(&topic, LEVEL_WARN, "\r\n\1\x7f%s", "two\nlines");
    say(&topic, LEVEL_DEBUG, "not at this level");
    CHECK(log_end() == 2);
    for (char *line = strtok(logged, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *json = json_loads(line, 0, NULL);
        CHECK(json && json_string_value(json_object_get(json, "message")) && json_object_get(json, "timestamp"));
        CHECK(json && strcmp(json_string_value(json_object_get(json, "level")), "WARN") == 0);
        CHECK(json && strcmp(json_string_value(json_object_get(json, "link")), "a \"b\"?(default)") == 0);
        json_decref(json);
    }
    logger.json = false;
}

/* How many lines the log accounts for: those that are written, and those that a line counts. */
static unsigned long accounted(void) {
    unsigned long sum = 0;
    for (char *line = strtok(logged, "\n"), *more; line; line = strtok(NULL, "\n"))
        sum += (more = strstr(line, " more lines")) ? (memset(more, 0, 1), strtoul(strrchr(line, ' ') + 1, NULL, 10)) : 1;
    return sum;
}

static void test_rate_limits(void) {
    static struct topic topic = {.kind = "link", .name = "x"};
    mono_ms = 100000;
    log_begin();
    for (int i = 0; i < 1000; i++) say(&topic, LEVEL_WARN, "again %d", i);
    log_tick(&topic, false);
    CHECK(log_end() == LOG_LINES && strstr(logged, "again 4") && !strstr(logged, "again 5"));
    log_begin();
    mono_ms += LOG_PERIOD_MS;
    log_tick(&topic, false);
    log_tick(&topic, false);
    CHECK(log_end() == 1 && strstr(logged, "995 more") && strstr(logged, "again 999"));
    log_begin();
    for (int i = 0; i < 10; i++) say(&topic, LEVEL_WARN, "again %d", i);
    mono_ms += LOG_PERIOD_MS;
    log_tick(&topic, false);
    (void)log_end();
    CHECK(accounted() == 10);
    log_begin();
    mono_ms += 2 * LOG_PERIOD_MS;
    log_tick(&topic, false);
    say(&topic, LEVEL_WARN, "again %d", 7);
    CHECK(log_end() == 1 && strstr(logged, "again 7")); /* it was quiet: written again */

    static struct topic busy = {.kind = "link", .name = "y"}; /* many kinds of lines in turn: few are written, none is forgotten */
    static char formats[20][64];
    log_begin();
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-security"
    for (size_t i = 0; i < 1000; i++) {
        (void)snprintf(formats[i % 20], 64, "kind %zu", i % 20);
        say(&busy, LEVEL_WARN, formats[i % 20]);
    }
#pragma GCC diagnostic pop
    mono_ms += LOG_PERIOD_MS;
    log_tick(&busy, false);
    CHECK(log_end() <= 20 * LOG_LINES + LOG_LIMITS);
    CHECK(accounted() == 1000);

    log_begin(); /* all that was held back, before its time */
    for (int i = 0; i < 10; i++) say(&topic, LEVEL_WARN, "more %d", i);
    log_tick(&topic, false);
    CHECK(log_end() == LOG_LINES);
    log_begin();
    log_tick(&topic, true);
    log_tick(&topic, true);
    CHECK(log_end() == 1 && strstr(logged, "5 more") && strstr(logged, "more 9"));
}

/* A pipe that is full, and one that nobody reads: the line is counted, nobody waits. */
static void test_lost(void) {
    static struct topic topic = {.kind = "link", .name = "z"};
    static const char block[4096];
    int ends[2], saved = dup(STDERR_FILENO);
    uint64_t lost = logger.lost;
    CHECK(pipe2(ends, O_NONBLOCK) == 0);
    while (write(ends[1], block, sizeof(block)) > 0) continue;
    dup2(ends[1], STDERR_FILENO);
    log_line(&topic, LEVEL_INFO, "full");
    CHECK(logger.lost == lost + 1);
    (void)signal(SIGPIPE, SIG_IGN);
    close(ends[0]);
    log_line(&topic, LEVEL_INFO, "closed");
    dup2(saved, STDERR_FILENO);
    CHECK(logger.lost == lost + 2);
    close(saved);
    close(ends[1]);
}

/* One sentence that is safe for a terminal, and exit code 1. */
static void test_die(void) {
    int status = 0;
    log_begin();
    pid_t child = fork();
    if (child == 0) die("wrong: %s", "\x1b[1m");
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 1);
    CHECK(log_end() == 1 && strcmp(logged, PROVIDER_NAME ": wrong: ?[1m\n") == 0);
}

int main(void) {
    static const struct group groups[] = {
        {"log lines", test_log}, {"repeated lines", test_rate_limits}, {"lost lines", test_lost}, {"die", test_die},
    };
    return run_groups(groups, COUNT_OF(groups));
}
