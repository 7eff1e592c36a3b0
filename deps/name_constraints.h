/* Name constraints of a CA (RFC 5280, 4.2.1.10), which mbedTLS neither checks nor takes where they are
 * critical.
 *
 * Checked are those of host names, addresses and directory names. One of another kind, such as of e-mail
 * addresses, refuses each certificate that has a name of its kind; so does what cannot be read.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef NAME_CONSTRAINTS_H
#define NAME_CONSTRAINTS_H

#include <stdbool.h>
#include <stddef.h>

#include <mbedtls/x509_crt.h>

/* Whether an extension's object identifier is that of name constraints. */
bool is_name_constraints(const mbedtls_x509_buf *oid);

/* Whether the names of a certificate are within the constraints of a CA above it, if that has any. Names it
 * (its beginning) that is not. */
bool name_constraints_hold(const mbedtls_x509_crt *ca, const mbedtls_x509_crt *below, char name[100]);

#endif
