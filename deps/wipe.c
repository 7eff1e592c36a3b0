/* What a connecting thread sends is CONNECT, with password, JWT and signature, and it would stay in
 * nats.c's write buffer as long as the connection stands. The linker puts this function in the place of
 * nats.c's (--wrap, in the Makefile; declared in comsock.h of nats.c 3.10.1). Once the loop has taken
 * over, nats.c writes through another (natsSock_Write), so this costs a call nothing.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <nats/nats.h>
#include <sodium.h>

/* The names are the linker's: NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
natsStatus __real_natsSock_WriteFully(void *socket, char *data, int len);
natsStatus __wrap_natsSock_WriteFully(void *socket, char *data, int len);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

natsStatus __wrap_natsSock_WriteFully(void *socket, char *data, int len) {
    natsStatus s = __real_natsSock_WriteFully(socket, data, len);
    sodium_memzero(data, (size_t)len);
    return s;
}
