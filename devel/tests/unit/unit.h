/* unit - what the unit tests share: checks, numbers that are the same each time, the log in a file. Each
 * program of them (devel/tests/unit/NAME.c) includes this once; `make unit` builds and runs them all.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef UNIT_H
#define UNIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition) verify(condition, #condition, __FILE__, __LINE__)
#define VERIFY(condition, what) verify(condition, what, __FILE__, __LINE__)
#define ROUNDS(n) for (int round_ = 0; round_ < (n); round_++)
#define UNUSED __attribute__((unused)) /* not each program needs everything */

struct group {
    const char *name;
    void (*test)(void);
};

static struct {
    unsigned passed, failed, shown;
} checks; /* shown: failures of this group */

static void verify(bool ok, const char *what, const char *file, int line) {
    if (ok) {
        checks.passed++;
        return;
    }
    checks.failed++;
    if (checks.shown++ < 10) printf("%s:%d: not true: %s\n", file, line, what);
}

/* Runs groups of tests: a line for each, and "N passed, M failed". Returns main's. */
static int run_groups(const struct group *groups, size_t count) {
    for (const struct group *g = groups; g < groups + count; g++) {
        unsigned passed = checks.passed, failed = checks.failed;
        checks.shown = 0;
        g->test();
        passed = checks.passed - passed;
        failed = checks.failed - failed;
        printf("%s %s: %u checks\n", failed > 0 ? "FAIL" : "ok  ", g->name, passed + failed);
        fflush(stdout);
    }
    printf("%u passed, %u failed\n", checks.passed, checks.failed);
    return checks.failed > 0;
}

/* The same numbers each time (xorshift). */
static uint64_t chance = 88172645463325252u;

UNUSED static int random_below(int n) {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (int)((chance >> 16) % (unsigned)n);
}

UNUSED static void fill(void *out, size_t len) {
    for (uint8_t *c = out; len > 0; len--) *c++ = (uint8_t)random_below(256);
}

/* Bytes in memory of exactly their size, so that sanitizers see a step beyond it. */
UNUSED static uint8_t *exactly(const void *bytes, size_t len) {
    return memcpy(malloc(len + !len), bytes, len);
}

/* ---- the log: standard error goes to a file meanwhile -------------------------------------------------- */

static char logged[65536];
static int real_stderr, log_file;

UNUSED static void log_begin(void) {
    fflush(stderr);
    real_stderr = dup(STDERR_FILENO);
    log_file = fileno(tmpfile());
    dup2(log_file, STDERR_FILENO);
}

/* Returns how many lines came; they are in `logged`. */
UNUSED static unsigned log_end(void) {
    unsigned lines = 0;
    ssize_t n = pread(log_file, logged, sizeof(logged) - 1, 0);
    logged[n > 0 ? n : 0] = 0;
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    for (const char *c = logged; *c; c++) lines += *c == '\n';
    return lines;
}

#endif
