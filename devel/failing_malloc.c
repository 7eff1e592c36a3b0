/* A malloc that fails now and then, for `make FAILING=1`: of the calls of the provider and of its libraries one in
 * FAIL_EVERY (environment) fails, at random from FAIL_SEED, between one SIGUSR2 and the next. The linker puts it in
 * their way (--wrap), so neither the provider nor the libraries know of it.
 *
 * Blocks below FAIL_FROM bytes (environment; at least 512) never fail, since nats.c 3.10.1 ends the process when a new connection gets no memory
 * for its mutexes (natsConn_create) or a new subscription none for itself (natsConn_subscribeImpl): each releases what it
 * has not got. An arena that is short refuses large blocks first. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);

static atomic_bool failing;
static atomic_ullong calls;
static unsigned long long every = 100, seed, from = 512;

static void on_signal(int number)
{
    (void) number;
    atomic_store(&failing, !atomic_load(&failing));
}

__attribute__((constructor)) static void start(void)
{
    const char *e = getenv("FAIL_EVERY"), *s = getenv("FAIL_SEED"), *f = getenv("FAIL_FROM");
    if (e && atoll(e) > 0) every = (unsigned long long) atoll(e);
    if (s) seed = (unsigned long long) atoll(s);
    if (f && atoll(f) > 512) from = (unsigned long long) atoll(f);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    (void) sigaction(SIGUSR2, &action, NULL);
}

/* splitmix64 of a count, so that threads need no lock. */
static bool fails(size_t size)
{
    if (size < from || !atomic_load(&failing)) return false;
    unsigned long long z = seed + atomic_fetch_add(&calls, 1) * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    if ((z ^ z >> 31) % every != 0) return false;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size) { return fails(size) ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return fails(count * size) ? NULL : __real_calloc(count, size); }
void *__wrap_realloc(void *p, size_t size) { return fails(size) ? NULL : __real_realloc(p, size); }
