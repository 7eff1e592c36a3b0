/* What the provider may ask of the TLS that lies under nats.c (deps/openssl_shim.c).
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef OPENSSL_SHIM_H
#define OPENSSL_SHIM_H

#include <stdatomic.h>
#include <stdbool.h>

/* From now on, this thread's handshakes come to their end within so many milliseconds, or when *unwanted is
 * set. nats.c knows no deadline here: without one, a server that accepts and says nothing holds its thread
 * for ever. */
void tls_connecting(unsigned ms, const atomic_bool *unwanted);

/* Bytes read from the socket at a time, one buffer for each TLS connection. mbedTLS by itself
 * reads the 5 bytes of a record's header, then its body: two system calls for a small record.
 * A connection's other memory is mbedTLS's two record buffers, 34 KB together. */
#ifndef TLS_READ_AHEAD
#define TLS_READ_AHEAD 16384
#endif

/* The version of mbedTLS, for --version and the log. */
const char *tls_version(void);

/* Does the TLS connection on this descriptor hold bytes that poll knows nothing of? It does after
 * a read that filled nats.c's buffer: call natsConnection_ProcessReadEvent again without waiting.
 * Ask for each connection before every (level-triggered) poll; false for a plain connection. */
bool tls_has_input(int fd);

#endif
