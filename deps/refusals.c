/* refusals - see refusals.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "refusals.h"

#include <stdio.h>
#include <stdlib.h>

/* Copies what stands in quotes behind `at`, as Go quotes it. Returns what is behind that, or NULL: nothing
 * does. (Control characters, which have escapes of their own, are in no subject.) */
static const char *unquote(const char *at, char *out, size_t size) {
    size_t len = 0;
    at = strchr(at, '"');
    if (!at) return NULL;
    for (at++; *at && *at != '"'; at++) {
        if (*at == '\\' && (at[1] == '"' || at[1] == '\\')) at++;
        if (len < size - 1) out[len++] = *at;
    }
    out[len] = 0;
    return *at ? at + 1 : at;
}

void refusal_read(const char *text, struct refusal *r) {
    char queue[SUBJECT_MAX + 1] = "";
    const char *behind = unquote(text, r->subject, sizeof(r->subject));
    r->subscription = strstr(text, "for Subscription to");
    r->sid = 0;
    if (!behind) (void)snprintf(r->subject, sizeof(r->subject), "%s", text);
    if (behind && strncmp(behind, " using queue ", 13) == 0) (void)unquote(behind, queue, sizeof(queue));
    if (behind && strncmp(behind, " (sid \"", 7) == 0) r->sid = strtoll(behind + 7, NULL, 10);
    (void)snprintf(r->item, sizeof(r->item), "%s%s%s", r->subject, *queue ? "|" : "", queue);
}

static struct refused *find(struct refusals *r, struct span subject) {
    uint64_t hash = hash_of(subject);
    for (struct refused *f = r->of; f < r->of + REFUSALS_MAX; f++)
        if (f->state != REFUSED_NONE && f->hash == hash) return f;
    return NULL;
}

void refusals_add(struct refusals *r, const char *subject, uint64_t now_ms) {
    struct refused *f = find(r, span_of(subject));
    bool is_new = !f;
    for (struct refused *g = r->of; !f && g < r->of + REFUSALS_MAX; g++)
        if (g->state == REFUSED_NONE) f = g;
    if (!f) {
        r->others++;
        r->others_over_ms = now_ms + REFUSAL_KEPT_MS;
        return;
    }
    if (is_new) {
        *f = (struct refused){.hash = hash_of(span_of(subject))};
        (void)text_of(span_of(subject), f->subject, sizeof(f->subject));
    }
    f->state = REFUSED;
    f->over_ms = now_ms + REFUSAL_KEPT_MS;
}

void refusals_try(struct refusals *r, struct span subject) {
    struct refused *f = find(r, subject);
    if (f && f->state == REFUSED) f->state = REFUSED_TRIED;
}

bool refusals_probe(struct refusals *r) {
    bool any = false;
    for (struct refused *f = r->of; f < r->of + REFUSALS_MAX; f++) {
        if (f->state != REFUSED_TRIED) continue;
        f->state = REFUSED_PROBED;
        any = true;
    }
    return any;
}

void refusals_proved(struct refusals *r) {
    for (struct refused *f = r->of; f < r->of + REFUSALS_MAX; f++)
        if (f->state == REFUSED_PROBED) f->state = REFUSED_NONE;
}

void refusals_told(struct refusals *r) {
    r->others_told = r->others > 0;
    for (struct refused *f = r->of; f < r->of + REFUSALS_MAX; f++) f->told = true;
}

bool refusals_step(struct refusals *r, uint64_t now_ms) {
    bool any = false;
    if (now_ms >= r->others_over_ms) r->others = 0;
    r->others_told &= r->others > 0;
    for (struct refused *f = r->of; f < r->of + REFUSALS_MAX; f++) {
        if (now_ms >= f->over_ms) f->state = REFUSED_NONE;
        any |= f->state != REFUSED_NONE;
    }
    return any || r->others > 0;
}

uint64_t refusals_next_ms(const struct refusals *r) {
    uint64_t next_ms = r->others > 0 ? r->others_over_ms : UINT64_MAX;
    for (const struct refused *f = r->of; f < r->of + REFUSALS_MAX; f++)
        if (f->state != REFUSED_NONE && f->over_ms < next_ms) next_ms = f->over_ms;
    return next_ms;
}

enum { OTHERS_LEN = 32 }; /* of what names_end() adds at most */

void names_begin(struct names *n, const char *form, const char *hint) {
    n->at = (size_t)snprintf(n->text, n->size, form, hint);
}

void names_add(struct names *n, const char *kind, const char *name) {
    const char *between = n->count ? ", " : "";
    int cut = 120; /* of a name that would take the place of all others */
    size_t len = strlen(between) + strlen(kind) + strnlen(name, (size_t)cut);
    if (n->at + len + OTHERS_LEN > n->size) {
        n->left_out++;
        return;
    }
    n->count++;
    n->at += (size_t)snprintf(n->text + n->at, n->size - n->at, "%s%s%.*s", between, kind, cut, name);
}

void names_end(struct names *n, unsigned others) {
    others += n->left_out;
    if (others + n->count == 0) n->text[0] = 0;
    if (others == 0) return;
    (void)snprintf(n->text + n->at, n->size - n->at, "%s%u other%s", n->count ? ", and " : "", others,
                   others > 1 ? "s" : "");
}
