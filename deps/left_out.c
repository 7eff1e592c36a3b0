/* Parts of the libraries that nothing here can reach, left out of the binary.
 *
 * A static library is linked object by object, and one call takes an object with all that it calls
 * in its turn. Each function below is called by an object that is needed, and is the way into others
 * that are not. Since it is defined here the linker does not look for it there; should a later
 * version of a library need more of such an object, there would be two definitions and no binary.
 * devel/bench/NOTES.md says how much each part takes. */
#include <mbedtls/ssl.h>
#include <nats/nats.h>

/* The libraries' functions have parameters that mean nothing here. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* NATS Streaming, and protobuf-c with it: asynccb.c counts references of a connection of its kind,
 * which is always NULL. */
void stanConn_retain(void *sc) { }
void stanConn_release(void *sc) { }

/* nats.c's JetStream, since room 9 of provider.c speaks that protocol itself: conn.c, sub.c and
 * dispatch.c call these for subscriptions that js.c has made, and the first for NULL as well. */
void jsSub_free(void *jsi) { }
void jsSub_deleteConsumerAfterDrain(natsSubscription *sub) { }
natsStatus jsSub_deleteConsumer(natsSubscription *sub) { return NATS_ERR; }
natsStatus jsSub_trackSequences(void *jsi, const char *reply) { return NATS_ERR; }
natsStatus jsSub_processSequenceMismatch(natsSubscription *sub, natsMsg *msg, bool *mismatch)
{
    return NATS_ERR;
}
natsStatus jsSub_checkOrderedMsg(natsSubscription *sub, natsMsg *msg, bool *replaced)
{
    return NATS_ERR;
}
natsStatus jsSub_resetOrderedConsumer(natsSubscription *sub, uint64_t sequence) { return NATS_ERR; }
natsStatus jsSub_scheduleFlowControlResponse(void *jsi, const char *reply) { return NATS_ERR; }
char *jsSub_checkForFlowControlResponse(natsSubscription *sub) { return NULL; }
bool natsMsg_isJSCtrl(natsMsg *msg, int *kind) { return false; }
natsStatus js_checkFetchedMsg(natsSubscription *sub, natsMsg *msg, uint64_t fetch, bool check,
                              bool *user)
{
    return NATS_ERR;
}
natsStatus js_maybeFetchMore(natsSubscription *sub, void *fetch) { return NATS_ERR; }

/* The server's side of TLS: mbedtls_ssl_handshake() takes it for an endpoint that is a server. */
int mbedtls_ssl_handshake_server_step(mbedtls_ssl_context *tls)
{
    return MBEDTLS_ERR_SSL_FEATURE_UNAVAILABLE;
}
int mbedtls_ssl_tls13_handshake_server_step(mbedtls_ssl_context *tls)
{
    return MBEDTLS_ERR_SSL_FEATURE_UNAVAILABLE;
}

/* libsodium's passwords: sodium_init() looks for the fastest way to hash them. */
int _crypto_pwhash_argon2_pick_best_implementation(void) /* NOLINT(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): theirs */
{
    return 0;
}
