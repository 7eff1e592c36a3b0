/* arena - malloc() for the whole program, over one static array.
 *
 * There is no brk and no mmap: what the program may ever use is reserved when it starts (ARENA_BYTES and
 * BLOCK_MAX of provider.h). arena.c defines malloc, free, calloc, realloc and malloc_usable_size, so every
 * library uses it, too. Any thread may. With -DSYSTEM_MALLOC, for sanitizers, malloc is the system's, and
 * what is here does nothing.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef ARENA_H
#define ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* For statistics: read them without a lock. */
extern struct arena_counts {
    size_t in_use, peak; /* bytes, with what each block has before it */
    uint64_t taken;      /* how often a block was asked for, ever */
} arena_counts;

/* From now on this thread, which is the only one that may call this, keeps the last block of each small
 * size that it freed, and takes it again without the lock. What it frees is no longer wiped: see
 * arena_wipe(). */
void arena_serve_loop(void);

/* Whether this thread wipes what it frees. Other threads than that of arena_serve_loop() always do. */
void arena_wipe(bool on);

/* Whether a library may take so many bytes, the largest block of them so large: whether ARENA_IN_TRANSIT
 * and `keep_free` bytes stay free. */
bool arena_spares(size_t bytes, size_t block, size_t keep_free);

/* Whether half of it is free: what finds no memory then never will. */
bool arena_is_idle(void);

/* Bytes of a block that malloc() returned: as many as were asked for, or a few more. 0 for NULL. */
size_t malloc_usable_size(void *p);

/* What a block takes beyond its bytes, before all is rounded up to 16; and the least that one takes. */
enum { ARENA_HEAD = 8, ARENA_LEAST = 32 };

/* What a block of so many bytes takes of the arena. Of the system's malloc no more than the bytes are asked,
 * so that sanitizers see one that is written beyond them. */
static inline size_t arena_block(size_t bytes) {
#ifdef SYSTEM_MALLOC
    return bytes + ARENA_HEAD;
#else
    size_t all = (bytes + ARENA_HEAD + 15) & ~(size_t)15;
    return all < ARENA_LEAST ? ARENA_LEAST : all;
#endif
}

#endif
