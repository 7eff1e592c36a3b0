/* What the provider may ask of the TLS that lies under nats.c (deps/tls.c). */
#ifndef TLS_H
#define TLS_H

#include <stdbool.h>

/* How long a server may take for the whole TLS handshake, in milliseconds. nats.c knows no
 * deadline here: without one, a server that accepts and says nothing holds its thread for ever. */
#ifndef TLS_HANDSHAKE_MS
#define TLS_HANDSHAKE_MS 5000
#endif

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
