/* unit_arena - deps/arena.c, under other names, so that this program, its libraries and the sanitizers keep the
 * system's malloc.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/param.h>
#include <sys/wait.h>

#include "unit.h"

#define malloc arena_malloc
#define free arena_free
#define calloc arena_calloc
#define realloc arena_realloc
#define malloc_usable_size arena_usable_size
void *arena_malloc(size_t size);
void arena_free(void *p);
void *arena_calloc(size_t count, size_t size);
void *arena_realloc(void *p, size_t size);
#include "../../../deps/arena.c"
#undef malloc
#undef free
#undef calloc
#undef realloc
#undef malloc_usable_size

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])

static struct {
    uint8_t *at, *copy;
    size_t len;
} held[400];

/* Every block lies behind the one before it, knows it, and is in no list or in the right one; no two neighbours are free. */
static bool arena_is_sound(void) {
    struct block *b = (struct block *)(void *)(arena_bytes + HEAD), *end = (struct block *)(void *)(arena_bytes + ARENA_BYTES - HEAD), *before = NULL;
    size_t used = 0;
    for (; b < end; before = b, b = (struct block *)(void *)((uint8_t *)b + HEAD + (b->size & ~(size_t)MARKS))) {
        if (block_before(b) != before || (b->size & (ALIGN - 1 - MARKS)) != HEAD) return false;
        if (!(b->size & FREE)) used += HEAD + (b->size & ~(size_t)MARKS);
        else if (*b->at != b || (b->next && b->next->at != &b->next) || (before && before->size & FREE)) return false;
    }
    return b == end && block_before(b) == before && used == arena_counts.in_use;
}

/* The largest block that can be had. */
static size_t largest(void) {
    size_t low = 0, high = ARENA_BYTES;
    while (low < high) {
        size_t middle = (low + high + 1) / 2;
        void *p = arena_malloc(middle);
        arena_free(p);
        if (p) low = middle;
        else high = middle - 1;
    }
    return low;
}

static bool arena_kept(size_t i) { return memcmp(held[i].at, held[i].copy, held[i].len) == 0; }

static void arena_keep(size_t i, uint8_t *p, size_t len, size_t same) {
    held[i].copy = realloc(held[i].copy, len + 1);
    held[i].at = p;
    held[i].len = len;
    CHECK((uintptr_t)p % 16 == 0 && arena_usable_size(p) >= len && p >= arena_bytes && p + len <= arena_bytes + sizeof(arena_bytes));
    CHECK(memcmp(p, held[i].copy, same) == 0);
    fill(held[i].copy + same, len - same);
    memcpy(p + same, held[i].copy + same, len - same);
}

/* One step of a random program, against a shadow of what it keeps. */
static void arena_step(size_t i, size_t len) {
    static const uint8_t zeros[1 << 20];
    uint8_t *p;
    if (held[i].at && random_below(2)) {
        CHECK(arena_kept(i));
        arena_free(held[i].at);
        held[i].at = NULL;
    } else if (held[i].at) {
        if ((p = arena_realloc(held[i].at, len))) arena_keep(i, p, len, MIN(len, held[i].len));
        else CHECK(arena_kept(i));
    } else if (random_below(4) == 0) {
        if (!(p = arena_calloc(len / 8 + 1, 8))) return;
        CHECK(memcmp(p, zeros, len) == 0);
        arena_keep(i, p, len, 0);
    } else if ((p = arena_malloc(len))) {
        arena_keep(i, p, len, 0);
    }
}

/* A random program, after which all is given back. */
static void arena_program(void) {
    ROUNDS(60000) {
        size_t len = (size_t)random_below(1 << (random_below(100) ? 4 + random_below(9) : 4 + random_below(17)));
        arena_step((size_t)random_below(COUNT_OF(held)), len);
        if (round_ % 1000 == 0) CHECK(arena_is_sound());
    }
    for (size_t i = 0; i < COUNT_OF(held); i++) {
        CHECK(!held[i].at || arena_kept(i));
        arena_free(held[i].at);
        free(held[i].copy);
    }
    memset(held, 0, sizeof(held));
}

/* A full arena, of which a megabyte is given back, a block in its middle first: that is kept as a spare, and is in the way. */
static void test_spare_in_the_way(void) {
    static void *all[ARENA_BYTES / 992];
    size_t n = 0, middle, some = (1 << 20) / (992 + HEAD);
    while (n < COUNT_OF(all) && (all[n] = arena_malloc(992))) n++;
    middle = n / 2;
    arena_free(all[middle]);
    for (size_t i = 1; i <= some / 2; i++) arena_free(all[middle - i]), arena_free(all[middle + i]);
    CHECK(!block_find((some - 1) * (992 + HEAD)));
    void *large = arena_malloc((some - 1) * (992 + HEAD));
    CHECK(large && arena_is_sound());
    arena_free(large);
    for (size_t i = 0; i < n; i++)
        if (i + some / 2 < middle || i > middle + some / 2) arena_free(all[i]);
}

/* What the loop's thread keeps comes back without the lists, and is given up when a block cannot be had otherwise. */
static void test_spares(size_t at_start) {
    arena_serve_loop();
    arena_program();
    CHECK(arena_is_sound() && arena_counts.in_use > 0 && arena_counts.in_use <= SPARES * (SPARES * ALIGN + HEAD));
    spares_release();
    CHECK(arena_counts.in_use == 0 && arena_is_sound());
    void *volatile p = arena_malloc(200), *volatile q = arena_malloc(200);
    uint64_t taken = arena_counts.taken;
    arena_free(p);
    CHECK(arena_malloc(200) == p && arena_malloc(0) != p && arena_counts.taken == taken + 1);
    arena_free(p);
    arena_free(q); /* there is one of its size already: to the lists */
    CHECK(arena_malloc(190) == p && arena_is_sound());
    arena_free(p);
    test_spare_in_the_way();
    spares_release();
    CHECK(largest() == at_start && arena_is_sound());
    keeps_spares = false;
}

/* What a process must not survive: the arena says so in one line, and ends it. */
static void dies(void (*act)(void), const char *words) {
    int out[2], status = 0;
    char line[200] = "";
    CHECK(pipe(out) == 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(out[1], STDERR_FILENO);
        act();
        _exit(0);
    }
    close(out[1]);
    ssize_t n = read(out[0], line, sizeof(line) - 1);
    close(out[0]);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK(n > 0 && line[n - 1] == '\n' && strstr(line, "messaging-nats: the arena is broken: ") == line && strstr(line, words));
}

static void free_twice(void) { void *volatile p = arena_malloc(5000), *volatile q = arena_malloc(100); (void)q; arena_free(p); arena_free(p); }
static void free_joined(void) { void *volatile p = arena_malloc(5000), *volatile q = arena_malloc(5000); arena_free(p); arena_free(q); arena_free(q); }
static void free_spare_twice(void) { arena_serve_loop(); void *volatile p = arena_malloc(200); arena_free(p); arena_free(p); }
static void *free_it(void *p) { return arena_free(p), NULL; }
static void free_spare_elsewhere(void) {
    pthread_t thread;
    arena_serve_loop();
    void *volatile p = arena_malloc(200);
    arena_free(p);
    if (pthread_create(&thread, NULL, free_it, p) == 0) (void)pthread_join(thread, NULL);
}
static void free_foreign(void) { static _Alignas(16) char bytes[64]; void *volatile p = bytes + 16; arena_free(p); }
static void free_inside(void) { uint8_t *volatile p = arena_malloc(5000); memset(p, 0, 5000); arena_free(p + 64); }
static void write_beyond(void) { uint8_t *volatile p = arena_malloc(64), *volatile q = arena_malloc(64); memset(p, 'x', 64 + ARENA_HEAD + HEAD); arena_free(q); }
static void grow_beyond(void) { uint8_t *volatile p = arena_malloc(64), *volatile q = arena_malloc(64); memset(p, 'x', 64 + ARENA_HEAD + HEAD); p = arena_realloc(p, 5000); (void)q; }
static void write_freed(void) {
    void *volatile p = arena_malloc(64), *volatile q = arena_malloc(64);
    struct block *b = block_of(p);
    (void)q;
    arena_free(p);
    b->next = (void *)arena_bytes; /* in the payload, or on 32 bit before it */
    b->at = (void *)arena_bytes;
    p = arena_malloc(64);
}

static void test_broken_arenas(void) {
    dies(free_twice, "given back twice");
    dies(free_joined, "given back twice");
    dies(free_spare_twice, "given back twice");
    dies(free_spare_elsewhere, "given back twice");
    dies(free_foreign, "no block of it");
    dies(free_inside, "beyond its end");
    dies(write_beyond, "beyond its end");
    dies(grow_beyond, "beyond its end");
    dies(write_freed, "a free block was written to");
}

static void test_arena(void) {
    size_t at_start = largest();
    CHECK(at_start > BLOCK_MAX - 64 && at_start <= BLOCK_MAX && arena_counts.in_use == 0);
    arena_program();
    CHECK(arena_is_sound() && arena_counts.in_use == 0 && largest() == at_start);

    for (size_t len = 1; len <= 1 << 20; len *= 32) { /* to the end, and back in another order */
        static void *all[ARENA_BYTES / ARENA_LEAST + 1];
        size_t n = 0, bytes = 0;
        while (n < COUNT_OF(all) && (all[n] = arena_malloc(len))) bytes += arena_usable_size(all[n++]) + HEAD;
        CHECK(n < COUNT_OF(all) && errno == ENOMEM && bytes == arena_counts.in_use && arena_is_sound());
        CHECK(bytes + 2 * len + 128 > ARENA_BYTES - ARENA_BYTES / 16); /* next to nothing is wasted */
        for (size_t i = 0; i < n; i += 2) arena_free(all[i]);
        CHECK(arena_is_sound());
        for (size_t i = 1; i < n; i += 2) arena_free(all[i]);
        CHECK(arena_counts.in_use == 0 && largest() == at_start && arena_is_sound());
    }
    CHECK(!arena_malloc(BLOCK_MAX + 1) && !arena_malloc(SIZE_MAX) && !arena_malloc(SIZE_MAX - 8));
    void *volatile small = arena_malloc(10);
    CHECK(!arena_calloc(SIZE_MAX / 2, 3) && !arena_calloc(SIZE_MAX, SIZE_MAX) && !arena_realloc(small, SIZE_MAX));
    CHECK(arena_usable_size(small) == 24 && arena_realloc(small, 1 << 20) == small); /* grows in place */
    void *big = arena_malloc(BLOCK_MAX - (1 << 20));
    CHECK(big && !arena_realloc(big, BLOCK_MAX + 1) && arena_is_sound());
    CHECK(arena_spares(1000, 1000, 0) && !arena_spares(1000, 1000, ARENA_BYTES) && !arena_spares(ARENA_BYTES, 1, 0) && !arena_spares(SIZE_MAX / 2, 1, 0));
    arena_free(small);
    arena_free(big);
    arena_free(NULL);
    test_spares(at_start);
    small = arena_malloc(0);
    CHECK(small && arena_malloc(0) != small);
}

int main(void) {
    static const struct group groups[] = {{"arena", test_arena}, {"broken arenas", test_broken_arenas}};
    return run_groups(groups, COUNT_OF(groups));
}
