/* name_constraints - see name_constraints.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "name_constraints.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include <mbedtls/asn1.h>

/* The kinds of names: the tags of GeneralName, RFC 5280, 4.2.1.6. */
enum { HOST = 2, DIRECTORY = 4, ADDRESS = 7, KIND = MBEDTLS_ASN1_TAG_VALUE_MASK };
enum { SEQUENCE = MBEDTLS_ASN1_CONSTRUCTED | MBEDTLS_ASN1_SEQUENCE };

/* What is left of DER. */
struct der {
    const unsigned char *at, *end;
};

/* Takes the next element with this tag. False: it is another, or none. */
static bool der_take(struct der *d, int tag, struct der *content) {
    unsigned char *at = (unsigned char *)d->at;
    size_t len;
    if (mbedtls_asn1_get_tag(&at, d->end, &len, tag) != 0) return false;
    d->at = at + len;
    *content = (struct der){at, at + len}; /* which may be *d */
    return true;
}

static size_t der_len(struct der d) { return (size_t)(d.end - d.at); }

bool is_name_constraints(const mbedtls_x509_buf *oid) {
    return oid->len == 3 && memcmp(oid->p, "\x55\x1d\x1e", 3) == 0; /* 2.5.29.30 */
}

/* The next extension of the list that is name constraints: its value. False: there is none. (mbedTLS has
 * parsed the list before.) */
static bool next_constraints(struct der *list, struct der *value) {
    struct der extension, oid, critical;
    while (der_take(list, SEQUENCE, &extension) && der_take(&extension, MBEDTLS_ASN1_OID, &oid)) {
        mbedtls_x509_buf id = {.p = (unsigned char *)oid.at, .len = der_len(oid)};
        (void)der_take(&extension, MBEDTLS_ASN1_BOOLEAN, &critical);
        if (is_name_constraints(&id)) return der_take(&extension, MBEDTLS_ASN1_OCTET_STRING, value);
    }
    return false;
}

static bool same_letters(const unsigned char *a, const unsigned char *b, size_t len) {
    return strncasecmp((const char *)a, (const char *)b, len) == 0;
}

/* A host name is in a subtree if it is that, or ends in a dot and that; ".example.com" leaves example.com
 * itself out. "*" is a label like any other. */
static bool host_within(struct der name, struct der base) {
    size_t len = der_len(name), tail = der_len(base);
    if (tail > len || !same_letters(name.end - tail, base.at, tail)) return false;
    return tail == 0 || tail == len || base.at[0] == '.' || name.end[-(ptrdiff_t)tail - 1] == '.';
}

/* Whether a name with "*" is also that of a host in the subtree, though others are not in it. */
static bool wildcard_reaches(struct der name, struct der base) {
    if (der_len(name) < 2 || name.at[0] != '*') return false;
    const unsigned char *dot = memchr(base.at, '.', der_len(base));
    return dot && base.end - dot == name.end - name.at - 1 &&
           same_letters(dot, name.at + 1, der_len(name) - 1);
}

/* An address and a mask, of as many bytes as the address. */
static bool address_within(struct der name, struct der base) {
    size_t len = der_len(name);
    if (der_len(base) != 2 * len) return false;
    for (size_t i = 0; i < len; i++)
        if ((name.at[i] ^ base.at[i]) & base.at[len + i]) return false;
    return true;
}

/* A directory name begins with the other, byte for byte, which is stricter than the standard. */
static bool directory_within(struct der name, struct der base) {
    return der_len(name) >= der_len(base) && memcmp(name.at, base.at, der_len(base)) == 0;
}

/* Whether a name is left alone by a list of subtrees. `excluded`: no subtree may have it; else one must, if
 * there is any of its kind. */
static bool subtrees_allow(struct der subtrees, bool excluded, int kind, struct der name) {
    bool of_its_kind = false, within = false;
    while (subtrees.at < subtrees.end) {
        struct der subtree, base;
        if (!der_take(&subtrees, SEQUENCE, &subtree) || subtree.at == subtree.end) return false;
        int tag = *subtree.at;
        if (!der_take(&subtree, tag, &base) || subtree.at < subtree.end) return false; /* with a minimum */
        if ((tag & KIND) != kind) continue;
        of_its_kind = true;
        if (kind == HOST) within |= host_within(name, base) || (excluded && wildcard_reaches(name, base));
        else if (kind == ADDRESS && (der_len(base) == 8 || der_len(base) == 32))
            within |= address_within(name, base);
        else if (kind == DIRECTORY && !excluded && der_take(&base, SEQUENCE, &base))
            within |= directory_within(name, base);
        else return false; /* it cannot be compared here, or is damaged */
    }
    return excluded ? !within : within || !of_its_kind;
}

/* Whether the constraints allow a name. */
static bool allowed(struct der constraints, int kind, struct der name) {
    enum { LIST = MBEDTLS_ASN1_CONTEXT_SPECIFIC | MBEDTLS_ASN1_CONSTRUCTED };
    struct der all, list;
    if (!der_take(&constraints, SEQUENCE, &all)) return false;
    if (der_take(&all, LIST, &list) && !subtrees_allow(list, false, kind, name)) return false;
    if (der_take(&all, LIST | 1, &list) && !subtrees_allow(list, true, kind, name)) return false;
    return all.at == all.end;
}

static void show(char out[100], int kind, struct der name) {
    if (kind == HOST) (void)snprintf(out, 100, "%.*s", (int)der_len(name), (const char *)name.at);
    else if (kind == ADDRESS && der_len(name) == 4)
        (void)snprintf(out, 100, "%d.%d.%d.%d", name.at[0], name.at[1], name.at[2], name.at[3]);
    else (void)snprintf(out, 100, kind == ADDRESS ? "its IPv6 address" : "a name that is no host's");
}

/* Whether the constraints allow all names of a certificate. */
static bool allows(struct der constraints, const mbedtls_x509_crt *below, char name[100]) {
    struct der subject = {below->subject_raw.p, below->subject_raw.p + below->subject_raw.len};
    for (const mbedtls_x509_sequence *n = &below->subject_alt_names; n && n->buf.p; n = n->next) {
        struct der one = {n->buf.p, n->buf.p + n->buf.len};
        int kind = n->buf.tag & KIND;
        if (allowed(constraints, kind, one)) continue;
        show(name, kind, one);
        return false;
    }
    (void)snprintf(name, 100, "its subject");
    return !der_take(&subject, SEQUENCE, &subject) || der_len(subject) == 0 ||
           allowed(constraints, DIRECTORY, subject);
}

bool name_constraints_hold(const mbedtls_x509_crt *ca, const mbedtls_x509_crt *below, char name[100]) {
    if (!ca->v3_ext.p) return true;
    struct der list = {ca->v3_ext.p, ca->v3_ext.p + ca->v3_ext.len}, constraints;
    if (!der_take(&list, SEQUENCE, &list)) return true;
    while (next_constraints(&list, &constraints))
        if (!allows(constraints, below, name)) return false;
    return true;
}
