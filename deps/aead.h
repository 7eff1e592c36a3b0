/* The ciphers of TLS for mbedTLS, by OpenSSL's assembler: AES-GCM and ChaCha20-Poly1305.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef AEAD_H
#define AEAD_H

#include <stdbool.h>

/* Whether the processor has instructions for AES-GCM: then it is the faster cipher. */
bool aead_has_aes(void);

#endif
