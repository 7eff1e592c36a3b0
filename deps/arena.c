/* arena - see arena.h: blocks of one static array.
 *
 * Free blocks hang in lists by size, two for each power of two, and a bit map says which lists are not
 * empty: taking and giving back cost the same few instructions however long the program has run.
 * Neighbours that are free are joined.
 *
 * nats.c takes and gives back a block or two for each message, always of the same few sizes. So the loop's
 * thread keeps the last block of each small size that it gave back, its spare blocks, and takes it again
 * without the lock.
 *
 * A block that is freed twice, or written beyond its end, ends the program: see arena_die().
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "arena.h"

#include "../provider.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sodium.h>

struct arena_counts arena_counts;

#ifndef SYSTEM_MALLOC

/* A block begins 8 bytes before a multiple of 16: its payload can hold anything (C11, max_align_t). */
struct block {
    uint32_t before;          /* bytes from the block before to this one; 0: it is the first */
    uint32_t size;            /* of the payload, in bytes, and one of the marks below */
    struct block *next, **at; /* in the payload, while it is free: the next in its list; what points to it */
};

static struct {
    pthread_mutex_t lock; /* of arena_counts, too */
    bool ready;
    uint64_t some; /* bit n: list n is not empty */
    struct block *list[64];
} arena = {.lock = PTHREAD_MUTEX_INITIALIZER};

enum { SPARES = 64 }; /* sizes of up to 1,016 bytes, in steps of ALIGN */
/* One of each size, for the loop's thread alone; they count as in use. */
static struct block *spares[SPARES];
static _Thread_local bool keeps_spares;
static _Thread_local bool wipes = true; /* what this thread gives back */

enum { FREE = 1, SPARE = 2, MARKS = FREE | SPARE }; /* in a list; a spare block, below */
enum {
    ALIGN = 16,
    HEAD = offsetof(struct block, next),
    LEAST = ARENA_LEAST - HEAD
}; /* LEAST: of a payload */
_Static_assert((int)HEAD == (int)ARENA_HEAD && sizeof(struct block) <= ARENA_LEAST, "arena.h has them, too");

static _Alignas(4096) uint8_t arena_bytes[ARENA_BYTES + sizeof(struct block)];

static void *payload(struct block *b) { return (uint8_t *)b + HEAD; }

/* The asm hides from gcc where the pointer came from: before what malloc() returns it expects no memory of
 * ours. */
static struct block *block_of(void *p) {
    __asm__("" : "+r"(p));
    return (struct block *)(void *)((uint8_t *)p - HEAD);
}

static struct block *block_after(struct block *b) {
    return (struct block *)(void *)((uint8_t *)b + HEAD + b->size);
}

static struct block *block_before(struct block *b) {
    return b->before ? (struct block *)(void *)((uint8_t *)b - b->before) : NULL;
}

/* The payload of a block for so many bytes. */
static size_t rounded(size_t size) { return arena_block(size) - HEAD; }

/* What no program survives that is not told of it: a block that is freed twice, or written behind its end.
 * */
__attribute__((noreturn, cold)) static void arena_die(const char *how) {
    char line[160];
    int n = snprintf(line, sizeof(line), PROVIDER_NAME ": the arena is broken: %s\n", how);
    (void)!write(STDERR_FILENO, line, (size_t)n);
    abort();
}

/* The block of a pointer that somebody gives back. */
static struct block *block_given(void *p) {
    struct block *b = block_of(p);
    size_t at = (size_t)((uint8_t *)b - arena_bytes);
    if (at >= ARENA_BYTES || at % ALIGN != HEAD) arena_die("what was given back is no block of it");
    if (b->size & (FREE | SPARE)) arena_die("a block was given back twice");
    if (b->size > ARENA_BYTES - HEAD - at || b->size % ALIGN != HEAD ||
        block_after(b)->before != HEAD + b->size)
        arena_die("a block was given back twice, or was written beyond its end");
    return b;
}

static unsigned list_for(size_t size) {
    unsigned top = 31 - (unsigned)__builtin_clz((unsigned)size);
    return 2 * top + (size >> (top - 1) & 1);
}

static void block_list(struct block *b) {
    unsigned list = list_for(b->size);
    b->at = &arena.list[list];
    b->next = *b->at;
    if (b->next) b->next->at = &b->next;
    *b->at = b;
    b->size |= FREE;
    arena.some |= 1ull << list;
}

static void block_unlist(struct block *b) {
    if (*b->at != b || (b->next && b->next->at != &b->next)) arena_die("a free block was written to");
    b->size &= ~(uint32_t)FREE;
    *b->at = b->next;
    if (b->next) b->next->at = b->at;
    if (!arena.list[list_for(b->size)]) arena.some &= ~(1ull << list_for(b->size));
}

/* A free block of at least this size, or NULL: the first of its own list if that fits, else one of a list
 * where each does. */
static struct block *block_find(size_t size) {
    unsigned list = list_for(size);
    if (arena.list[list] && arena.list[list]->size >= size) return arena.list[list];
    uint64_t larger = arena.some & ~((2ull << list) - 1);
    return larger ? arena.list[__builtin_ctzll(larger)] : NULL;
}

/* Puts a block that is in no list back, joined with its neighbours if they are free. */
static void block_release(struct block *b) {
    struct block *after = block_after(b), *before = block_before(b);
    if (after->size & FREE) {
        block_unlist(after);
        b->size += HEAD + after->size;
    }
    if (before && before->size & FREE) {
        block_unlist(before);
        if (block_after(before) != b) arena_die("a free block was written to");
        before->size += HEAD + b->size;
        b = before;
    }
    block_after(b)->before = HEAD + b->size;
    block_list(b);
}

/* Cuts a block in use down to this size, and releases the rest if that is worth a block. */
static void block_trim(struct block *b, size_t size) {
    size_t rest = b->size - size;
    if (rest < ARENA_LEAST) return;
    b->size = (uint32_t)size;
    struct block *cut = block_after(b);
    cut->before = HEAD + b->size;
    cut->size = (uint32_t)rest - HEAD;
    block_release(cut);
}

/* Joins a block in use with the free one behind it, if that makes it large enough. */
static void block_grow(struct block *b, size_t size) {
    struct block *after = block_after(b);
    if (b->size >= size || !(after->size & FREE) || b->size + HEAD + after->size <= size) return;
    block_unlist(after);
    b->size += HEAD + after->size;
    block_after(b)->before = HEAD + b->size;
}

static void count_in(const struct block *b) {
    arena_counts.taken++;
    arena_counts.in_use += b->size + HEAD;
    if (arena_counts.in_use > arena_counts.peak) arena_counts.peak = arena_counts.in_use;
}

/* Gives the spare blocks back, which may lie between two free ones. */
static void spares_release(void) {
    for (size_t i = 0; keeps_spares && i < SPARES; i++) {
        if (!spares[i]) continue;
        spares[i]->size &= ~(uint32_t)SPARE;
        arena_counts.in_use -= spares[i]->size + HEAD;
        block_release(spares[i]);
        spares[i] = NULL;
    }
}

/* As block_find(); but before it finds none, the spare blocks are given up. */
static struct block *block_find_hard(size_t size) {
    struct block *b = block_find(size);
    if (b) return b;
    spares_release();
    return block_find(size);
}

/* One free block over the whole arena; behind it a block in use without payload, so that each has a
 * neighbour. */
static void arena_start(void) {
    struct block *all = (struct block *)(void *)(arena_bytes + HEAD);
    all->size = ARENA_BYTES - ALIGN - HEAD;
    block_after(all)->before = HEAD + all->size;
    block_list(all);
    arena.ready = true;
}

void arena_serve_loop(void) {
    keeps_spares = true;
    wipes = false;
}

void arena_wipe(bool on) { wipes = on; }

/* Takes a spare block of this size, or of one so little larger that block_trim() would leave it so; or
 * NULL. */
static struct block *spare_take(size_t size) {
    for (size_t i = size / ALIGN; keeps_spares && i < SPARES && i * ALIGN + HEAD < size + ARENA_LEAST; i++) {
        struct block *b = spares[i];
        spares[i] = NULL;
        if (!b) continue;
        b->size &= ~(uint32_t)SPARE;
        return b;
    }
    return NULL;
}

static bool spare_keep(struct block *b) {
    size_t i = b->size / ALIGN;
    if (!keeps_spares || i >= SPARES || spares[i]) return false;
    b->size |= SPARE;
    spares[i] = b;
    return true;
}

static void *malloc_from_lists(size_t size) {
    pthread_mutex_lock(&arena.lock);
    if (!arena.ready) arena_start();
    struct block *b = block_find_hard(size);
    if (b) {
        block_unlist(b);
        block_trim(b, size);
        count_in(b);
    }
    pthread_mutex_unlock(&arena.lock);
    if (b) return payload(b);
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t size) {
    if (size > BLOCK_MAX) {
        errno = ENOMEM;
        return NULL;
    }
    struct block *b = spare_take(rounded(size));
    return b ? payload(b) : malloc_from_lists(rounded(size));
}

void free(void *p) {
    if (!p) return;
    struct block *b = block_given(p);
    if (wipes) sodium_memzero(p, b->size); /* nats.c's copies of passwords, JWTs, signatures */
    if (spare_keep(b)) return;
    pthread_mutex_lock(&arena.lock);
    arena_counts.in_use -= b->size + HEAD;
    block_release(b);
    pthread_mutex_unlock(&arena.lock);
}

void *calloc(size_t count, size_t size) {
    size_t bytes;
    void *p = __builtin_mul_overflow(count, size, &bytes) ? NULL : malloc(bytes);
    return p ? memset(p, 0, bytes) : p;
}

/* Grows in place where the neighbour is free and large enough: nats.c's write buffers grow by tenths of a
 * megabyte. */
void *realloc(void *p, size_t size) {
    if (!p || size > BLOCK_MAX) return p ? NULL : malloc(size);
    struct block *b = block_given(p);
    size_t old = b->size;
    pthread_mutex_lock(&arena.lock);
    block_grow(b, rounded(size));
    bool done = b->size >= rounded(size);
    if (done) {
        block_trim(b, rounded(size));
        arena_counts.in_use -= old + HEAD;
        count_in(b);
    }
    pthread_mutex_unlock(&arena.lock);
    void *moved = done ? p : malloc(size);
    if (!done && moved) {
        memcpy(moved, p, old);
        free(p);
    }
    return moved;
}

size_t malloc_usable_size(void *p) { return p ? block_of(p)->size : 0; }

bool arena_spares(size_t bytes, size_t block, size_t keep_free) {
    pthread_mutex_lock(&arena.lock);
    size_t wanted = arena_counts.in_use + bytes + ARENA_IN_TRANSIT + keep_free;
    bool enough = wanted <= ARENA_BYTES && block_find_hard(block);
    pthread_mutex_unlock(&arena.lock);
    return enough;
}

bool arena_is_idle(void) { return arena_counts.in_use <= ARENA_BYTES / 2; }

#else

void arena_serve_loop(void) {}
void arena_wipe(bool on) { (void)on; }
bool arena_is_idle(void) { return false; }

bool arena_spares(size_t bytes, size_t block, size_t keep_free) {
    (void)bytes;
    (void)block;
    (void)keep_free;
    return true;
}

#endif
