/* Where nats.c 3.10.1 does not survive that memory is short: found by devel/tests/test_allocations.py,
 * which fails each allocation. The linker puts these functions in the place of nats.c's own (--wrap in the
 * Makefile), where one of its files calls another.
 *
 * - A connection that gets no memory for its lock is released, and so locked, before it has one
 *   (natsConn_create); so is the TLS context of options (_createSSLCtx), and the library itself ends the
 *   process (_doInitOnce). So the locks that they begin with are in hand before they are made.
 * - A table that has taken an entry, but could not grow, reports that as if it had not taken it: a
 *   subscription is then released twice (natsConn_subscribeImpl). A full table works as well, if more
 *   slowly.
 * - A close that finds no memory for the thread's record of errors, which it would leave as it is
 *   meanwhile, ends the process (nats_doNotUpdateErrStack). Nobody reads that record after a close: it may
 *   change.
 * - JSON whose table of fields finds no memory is taken apart as if it had one (nats_JSONDestroy): an INFO
 *   of the server.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <nats/nats.h>

/* nats.c's own, as in its hash.h and mutex.h; and the linker's names.
 * NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
struct __natsHash;
struct __natsStrHash;
struct __natsStrHashIter {
    struct __natsStrHash *hash;
    void *current, *next;
    int current_bucket;
    bool started;
};
typedef pthread_mutex_t natsMutex;
void *natsHash_Get(struct __natsHash *hash, int64_t key);
void *natsStrHash_GetEx(struct __natsStrHash *hash, char *key, int len);
void natsMutex_Destroy(natsMutex *mutex);

natsStatus __real_natsConnection_Connect(natsConnection **nc, natsOptions *opts);
natsStatus __real_natsOptions_SetSecure(natsOptions *opts, bool secure);
natsStatus __real_natsOptions_SetExpectedHostname(natsOptions *opts, const char *name);
natsStatus __real_nats_Open(int64_t spins);
natsStatus __real_natsHash_Set(struct __natsHash *hash, int64_t key, void *data, void **old);
natsStatus __real_natsStrHash_SetEx(struct __natsStrHash *hash, char *key, bool copy, bool own, void *data,
                                    void **old);
void __real_natsStrHashIter_Init(struct __natsStrHashIter *iter, struct __natsStrHash *hash);
natsStatus __wrap_natsMutex_Create(natsMutex **mutex);
natsStatus __wrap_natsConnection_Connect(natsConnection **nc, natsOptions *opts);
natsStatus __wrap_natsOptions_SetSecure(natsOptions *opts, bool secure);
natsStatus __wrap_natsOptions_SetExpectedHostname(natsOptions *opts, const char *name);
natsStatus __wrap_nats_Open(int64_t spins);
natsStatus __wrap_natsHash_Set(struct __natsHash *hash, int64_t key, void *data, void **old);
natsStatus __wrap_natsStrHash_SetEx(struct __natsStrHash *hash, char *key, bool copy, bool own, void *data,
                                    void **old);
void __wrap_natsStrHashIter_Init(struct __natsStrHashIter *iter, struct __natsStrHash *hash);
void __wrap_nats_doNotUpdateErrStack(bool skip);
natsStatus __wrap_natsThread_Create(void **thread, void (*run)(void *), void *arg);
natsStatus __wrap_nats_postAsyncCbInfo(void *info);
natsStatus __wrap_natsNUID_init(void);

/* LOCKS: of the copied options, and three of the connection. */
enum { LOCKS = 4 };
static _Thread_local natsMutex *locks[LOCKS]; /* in hand */
static _Thread_local size_t lock_count;
static _Thread_local bool has_locks;

/* As nats.c makes its locks. Not by its own function, which opens the library when it finds no memory. */
static natsMutex *lock_make(void) {
    natsMutex *lock = calloc(1, sizeof(*lock));
    pthread_mutexattr_t attr;
    if (!lock) return NULL;
    (void)pthread_mutexattr_init(&attr); /* glibc's three cannot fail */
    (void)pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    (void)pthread_mutex_init(lock, &attr);
    return lock;
}

natsStatus __wrap_natsMutex_Create(natsMutex **mutex) {
    natsMutex *lock = lock_make();
    if (!lock && lock_count > 0) lock = locks[--lock_count];
    if (!lock) return NATS_NO_MEMORY;
    *mutex = lock;
    return NATS_OK;
}

/* False: not all are to be had. */
static bool take_locks(void) {
    has_locks = true;
    while (lock_count < LOCKS && (locks[lock_count] = lock_make())) lock_count++;
    return lock_count == LOCKS;
}

/* Gives back what was not used. */
static natsStatus drop_locks(natsStatus s) {
    while (lock_count > 0) natsMutex_Destroy(locks[--lock_count]);
    has_locks = false;
    return s;
}

natsStatus __wrap_natsConnection_Connect(natsConnection **nc, natsOptions *opts) {
    return drop_locks(take_locks() ? __real_natsConnection_Connect(nc, opts) : NATS_NO_MEMORY);
}

/* Either may be the first that needs a TLS context. */
natsStatus __wrap_natsOptions_SetSecure(natsOptions *opts, bool secure) {
    return drop_locks(take_locks() ? __real_natsOptions_SetSecure(opts, secure) : NATS_NO_MEMORY);
}

natsStatus __wrap_natsOptions_SetExpectedHostname(natsOptions *opts, const char *name) {
    return drop_locks(take_locks() ? __real_natsOptions_SetExpectedHostname(opts, name) : NATS_NO_MEMORY);
}

/* nats.c calls this itself at times, to be sure that it is open: then it needs none. */
natsStatus __wrap_nats_Open(int64_t spins) {
    static atomic_bool is_open;
    if (has_locks || atomic_load(&is_open)) return __real_nats_Open(spins);
    natsStatus s = drop_locks(take_locks() ? __real_nats_Open(spins) : NATS_NO_MEMORY);
    if (s == NATS_OK) atomic_store(&is_open, true);
    return s;
}

natsStatus __wrap_natsHash_Set(struct __natsHash *hash, int64_t key, void *data, void **old) {
    natsStatus s = __real_natsHash_Set(hash, key, data, old);
    return s == NATS_NO_MEMORY && natsHash_Get(hash, key) == data ? NATS_OK : s;
}

natsStatus __wrap_natsStrHash_SetEx(struct __natsStrHash *hash, char *key, bool copy, bool own, void *data,
                                    void **old) {
    natsStatus s = __real_natsStrHash_SetEx(hash, key, copy, own, data, old);
    if (s != NATS_NO_MEMORY) return s;
    int len = 0;
    while (key[len]) len++;
    return natsStrHash_GetEx(hash, key, len) == data ? NATS_OK : s;
}

void __wrap_natsStrHashIter_Init(struct __natsStrHashIter *iter, struct __natsStrHash *hash) {
    *iter = (struct __natsStrHashIter){.started = true}; /* at its end */
    if (hash) __real_natsStrHashIter_Init(iter, hash);
}

void __wrap_nats_doNotUpdateErrStack(bool skip) { (void)skip; }

/* ---- what nats.c starts with, for parts of it that are not used here */

/* Threads for timers, for callbacks, and for messages that are freed later: with a loop of our own, no pings
 * of its own and no asynchronous subscriptions, none of them ever gets anything to do. */
natsStatus __wrap_natsThread_Create(void **thread, void (*run)(void *), void *arg) {
    (void)run, (void)arg;
    *thread = NULL;
    return NATS_OK;
}

/* What would be for the second of them is freed by who made it: errors, which are told otherwise, too. */
natsStatus __wrap_nats_postAsyncCbInfo(void *info) {
    (void)info;
    return NATS_NOT_INITIALIZED;
}

/* Random numbers for inboxes that it would make, 8,194 of rand(): ours have names of our own. */
natsStatus __wrap_natsNUID_init(void) { return NATS_OK; }
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
