/* pem - what is wrong with the certificates and keys of a link, found out without a connection.
 *
 * It reads files, and computes with keys: for --check, not for the loop. A connecting thread says the same
 * of what it cannot read, since both use deps/openssl_shim.c.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef PEM_H
#define PEM_H

#include <stddef.h>

#include <jansson.h>

#include "settings.h"

/* What of tls_ca, tls_ca_file, tls_cert and tls_key cannot be read, does not belong together, or has
 * expired. Returns how much of it was told. */
size_t pem_faults(const json_t *settings, const struct listener *to);

#endif
