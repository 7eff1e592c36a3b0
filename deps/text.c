/* text - see text.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "text.h"

#include <ctype.h>
#include <stdint.h>
#include <sys/param.h>

#include "../provider.h"

struct span text_of(struct span s, char *out, size_t size) {
    size_t len = MIN(s.len, size - 1);
    if (len) memcpy(out, s.at, len);
    out[len] = 0;
    return (struct span){out, len};
}

uint64_t hash_of(struct span s) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < s.len; i++) hash = (hash ^ (unsigned char)s.at[i]) * 1099511628211u;
    return hash;
}

size_t utf8_read(const char *at, size_t left, uint32_t *code) {
    static const uint32_t first[] = {0, 0xc0, 0xe0, 0xf0}; /* by the number of bytes that follow */
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    const uint8_t *c = (const uint8_t *)at;
    size_t more = *c < 0x80 ? 0 : 1 + (size_t)(*c > 0xdf) + (*c > 0xef);
    *code = *c - first[more]; /* of a byte that begins nothing: beyond everything */
    if (left <= more) return 0;
    for (size_t i = 1; i <= more; i++) {
        if ((c[i] & 0xc0) != 0x80) return 0;
        *code = *code << 6 | (c[i] & 0x3f);
    }
    if (*code < least[more] || *code > 0x10ffff || *code >> 11 == 0xd800 >> 11) return 0;
    return 1 + more;
}

bool is_utf8(struct span s) {
    uint32_t code;
    for (size_t i = 0, n; i < s.len; i += n) {
        n = 1;
        if ((uint8_t)s.at[i] >= 0x80 && (n = utf8_read(s.at + i, s.len - i, &code)) == 0) return false;
    }
    return true;
}

/* Blanks but U+0020, marks without a width of their own, those that change the direction of what follows,
 * and code points that are nobody's: they would make a line read as something else than it says. */
static const struct {
    uint32_t first, last;
} unseen[] = {
    {0,       0x1f   },
    {0x7f,    0xa0   },
    {0xad,    0xad   },
    {0x600,   0x605  },
    {0x61c,   0x61c  },
    {0x6dd,   0x6dd  },
    {0x70f,   0x70f  },
    {0x890,   0x891  },
    {0x8e2,   0x8e2  },
    {0x1680,  0x1680 },
    {0x180e,  0x180e },
    {0x2000,  0x200f },
    {0x2028,  0x202f },
    {0x205f,  0x206f },
    {0x3000,  0x3000 },
    {0xe000,  0xf8ff },
    {0xfdd0,  0xfdef },
    {0xfeff,  0xfeff },
    {0xfff0,  0xfffb },
    {0xfffe,  0xffff },
    {0x110bd, 0x110cd},
    {0x13430, 0x1345f},
    {0x1bca0, 0x1bca3},
    {0x1d173, 0x1d17a},
    {0xe0000, ~0u    },
};

bool is_printable(uint32_t code) {
    for (size_t i = 0; i < COUNT_OF(unseen) && code >= unseen[i].first; i++)
        if (code <= unseen[i].last) return false;
    return true;
}

/* Whether a token may begin with the character at `i`. A `*` or `>` that is not alone in its token is no
 * wildcard. */
static bool may_begin_token(struct span s, size_t i, bool wildcards) {
    char c = s.at[i];
    bool last = i + 1 == s.len, alone = last || s.at[i + 1] == '.';
    if (!alone || (c != '*' && c != '>')) return c != '.';
    return wildcards && (last || c == '*');
}

bool is_subject(struct span s, bool wildcards) {
    unsigned char before = '.', c;
    for (size_t i = 0; i < s.len; i++, before = c) {
        c = (unsigned char)s.at[i];
        if (c <= ' ' || c == 0x7f || (before == '.' && !may_begin_token(s, i, wildcards))) return false;
    }
    return before != '.' && s.len <= SUBJECT_MAX;
}

/* Takes the first token, with a dot behind it if there is one, off a subject. */
static struct span token_of(struct span *subject) {
    const char *dot = memchr(subject->at, '.', subject->len);
    struct span token = {subject->at, dot ? (size_t)(dot - subject->at) : subject->len};
    size_t taken = token.len + (dot != NULL);
    *subject = (struct span){subject->at + taken, subject->len - taken};
    return token;
}

bool subjects_overlap(struct span a, struct span b) {
    while (a.len > 0 && b.len > 0) {
        struct span x = token_of(&a), y = token_of(&b);
        if (span_is(x, ">") || span_is(y, ">")) return true;
        if (!span_same(x, y) && !span_is(x, "*") && !span_is(y, "*")) return false;
    }
    return a.len == 0 && b.len == 0;
}

bool is_token(const char *text) {
    return text && strlen(text) < ID_MAX && is_subject(span_of(text), false) && !strpbrk(text, ".*>");
}

struct span trimmed(struct span s) {
    while (s.len && isspace((unsigned char)s.at[s.len - 1])) s.len--;
    for (; s.len && isspace((unsigned char)*s.at); s.len--) s.at++;
    return s;
}

bool list_next(const char **list, struct span *item) {
    while (*list && **list) {
        *list += strspn(*list, ",");
        size_t len = strcspn(*list, ",");
        *item = trimmed((struct span){*list, len});
        *list += len;
        if (item->len) return true;
    }
    return false;
}

bool list_item(const char *list, size_t n, struct span *item) {
    while (list_next(&list, item))
        if (n-- == 0) return true;
    return false;
}
