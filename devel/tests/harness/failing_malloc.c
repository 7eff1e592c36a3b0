/* A malloc that fails, for `make FAILING=1`. The linker puts it in the way (--wrap), so neither the provider
 * nor the libraries know of it. Blocks of any size fail.
 *
 *     FAIL_AT=n in the environment, or SIGUSR2 by sigqueue() with the value n:
 *             the n-th allocation from then on fails (once); -n: it, and all that follow; 0: none does
 *     SIGUSR2 by kill():
 *             from one signal to the next one allocation in FAIL_EVERY fails, at random from FAIL_SEED, of
 *             blocks of FAIL_FROM bytes and more (all three in the environment)
 *
 * CLOCK_JUMPS=n in the environment has the time of day jump by so many seconds, and back, from one question
 * to the next.
 *
 * Of each count the first allocation that fails is told on standard error, with its size and who asked for
 * it.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
char *__wrap_strdup(const char *text);
int __real_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t);

static atomic_bool at_random, for_good;
/* Allocations until one fails, that one included; 0 and less: it has failed, or none is to. */
static atomic_llong left;
static atomic_ullong calls;
static unsigned long long every = 100, seed, from;
static long long jump;
static atomic_uint asked;

static void begin(long long n) {
    atomic_store(&for_good, n < 0);
    atomic_store(&left, n < 0 ? -n : n);
}

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    if (info->si_code == SI_QUEUE) begin(info->si_value.sival_int);
    else atomic_store(&at_random, !atomic_load(&at_random));
}

__attribute__((constructor)) static void start(void) {
    const char *e = getenv("FAIL_EVERY"), *s = getenv("FAIL_SEED"), *f = getenv("FAIL_FROM"),
               *n = getenv("FAIL_AT"), *j = getenv("CLOCK_JUMPS");
    void *frame;
    (void)backtrace(&frame, 1); /* the first call loads what it needs */
    if (e && atoll(e) > 0) every = (unsigned long long)atoll(e);
    if (s) seed = (unsigned long long)atoll(s);
    if (f && atoll(f) > 0) from = (unsigned long long)atoll(f);
    if (n) begin(atoll(n));
    if (j) jump = atoll(j);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_RESTART | SA_SIGINFO};
    (void)sigaction(SIGUSR2, &action, NULL);
}

static void tell(size_t size) {
    void *frames[16];
    char line[1000];
    int n = backtrace(frames, 16), at = snprintf(line, sizeof(line), "failing_malloc: %zu bytes for", size);
    for (int i = 2; i < n && at < 900; i++) { /* behind this function and the wrapper */
        Dl_info info;
        const char *name = dladdr(frames[i], &info) && info.dli_sname ? info.dli_sname : "?";
        at += snprintf(line + at, sizeof(line) - (size_t)at, " %.40s", name);
    }
    line[at++] = '\n';
    (void)!write(STDERR_FILENO, line, (size_t)at);
}

/* splitmix64 of a count, so that threads need no lock. */
static bool fails_at_random(size_t size) {
    if (size < from || !atomic_load(&at_random)) return false;
    unsigned long long z = seed + atomic_fetch_add(&calls, 1) * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (z ^ z >> 31) % every == 0;
}

static bool fails_by_count(size_t size) {
    long long before = atomic_load(&left) > 0 ? atomic_fetch_sub(&left, 1) : 0;
    if (before == 1) tell(size);
    return before == 1 || (before <= 0 && atomic_load(&for_good));
}

static bool fails(size_t size) {
    if (!fails_by_count(size) && !fails_at_random(size)) return false;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size) { return fails(size) ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) {
    return fails(count * size) ? NULL : __real_calloc(count, size);
}
void *__wrap_realloc(void *p, size_t size) { return fails(size) ? NULL : __real_realloc(p, size); }
char *__wrap_strdup(const char *text) { return fails(strlen(text) + 1) ? NULL : __real_strdup(text); }

int __wrap_clock_gettime(clockid_t clock, struct timespec *t) {
    int rc = __real_clock_gettime(clock, t);
    if (clock == CLOCK_REALTIME && atomic_fetch_add(&asked, 1) % 2 == 1) t->tv_sec += jump;
    return rc;
}
