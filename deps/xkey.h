/* xkey - nkeys of X25519, and the sealed boxes in which a host hands over the secrets of links.
 *
 * nkeys are base32 of prefix bytes, 32 key bytes and a CRC. Two sorts are of use here: the X25519 keys
 * ("X…", seed "SX…") with which a host seals secrets for this provider, and the seeds of NATS users
 * ("SU…"). There is one pair of keys in a program. protocol: the crate nkeys; wasmCloud's secrets-client
 * and provider-sdk.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef XKEY_H
#define XKEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text.h"

/* Writes random digits of base32, 5 bits each; at most 1,536. For one thread. */
void nkey_random(char *out, size_t len);

bool nkey_is_user_seed(struct span text);

/* The public key of a NATS user with this seed ("U…"). False: it is none. */
enum { NKEY_PUBLIC_LEN = 56 };
bool nkey_user_public(struct span seed, char text[NKEY_PUBLIC_LEN + 1]);

/* Takes the host's public key and our seed. Returns false if either is none; then nothing can be opened. */
bool xkey_start(struct span host_public, struct span our_seed);

/* Our public key, as text; or NULL before xkey_start(), or if that failed. */
const char *xkey_public(void);

/* Opens what was sealed: "xkv1", a nonce, a NaCl box. `plain` has room for `len` bytes, and is for the
 * caller to wipe. Returns NULL, or why it cannot be opened. protocol: the crate nkeys, xkeys.rs. */
const char *xkey_open(const uint8_t *sealed, size_t len, uint8_t *plain, size_t *plain_len);

#endif
