/* Parts of the libraries that nothing here can reach, left out of the binary.
 *
 * A static library is linked object by object, and one call takes an object with all that it calls
 * in its turn. Each function below is called by an object that is needed, and is the way into others
 * that are not. Since it is defined here the linker does not look for it there; should a later
 * version of a library need more of such an object, there would be two definitions and no binary.
 * devel/bench/NOTES.md says how much each part takes.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>

#include <nats/nats.h>

/* The libraries' functions have parameters that mean nothing here. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

/* NATS Streaming, and protobuf-c with it: asynccb.c counts references of a connection of its kind,
 * which is always NULL. */
void stanConn_retain(void *sc) {}
void stanConn_release(void *sc) {}

/* nats.c's JetStream, since section 7 of provider.c speaks that protocol itself: conn.c, sub.c and
 * dispatch.c call these for subscriptions that js.c has made, and the first for NULL as well. */
void jsSub_free(void *jsi) {}
void jsSub_deleteConsumerAfterDrain(natsSubscription *sub) {}
natsStatus jsSub_deleteConsumer(natsSubscription *sub) { return NATS_ERR; }
natsStatus jsSub_trackSequences(void *jsi, const char *reply) { return NATS_ERR; }
natsStatus jsSub_processSequenceMismatch(natsSubscription *sub, natsMsg *msg, bool *mismatch) {
    return NATS_ERR;
}
natsStatus jsSub_checkOrderedMsg(natsSubscription *sub, natsMsg *msg, bool *replaced) { return NATS_ERR; }
natsStatus jsSub_resetOrderedConsumer(natsSubscription *sub, uint64_t sequence) { return NATS_ERR; }
natsStatus jsSub_scheduleFlowControlResponse(void *jsi, const char *reply) { return NATS_ERR; }
char *jsSub_checkForFlowControlResponse(natsSubscription *sub) { return NULL; }
bool natsMsg_isJSCtrl(natsMsg *msg, int *kind) { return false; }
natsStatus js_checkFetchedMsg(natsSubscription *sub, natsMsg *msg, uint64_t fetch, bool check, bool *user) {
    return NATS_ERR;
}
natsStatus js_maybeFetchMore(natsSubscription *sub, void *fetch) { return NATS_ERR; }

/* mbedTLS's parts stand in its tables and switches beside what is needed. None is ever called: builds with
 * assertions would end there. */
static int left_out(void) {
    assert(!"a part of a library that was left out");
    return -0x7080; /* MBEDTLS_ERR_SSL_FEATURE_UNAVAILABLE, and no psa_status_t that means success */
}
#define LEFT_OUT(name) int name(void) __attribute__((alias("left_out")));

/* the server's side of TLS */
LEFT_OUT(mbedtls_ssl_handshake_server_step)
LEFT_OUT(mbedtls_ssl_tls13_handshake_server_step)

/* private keys with a pass phrase, which are refused */
LEFT_OUT(mbedtls_pkcs5_pbes2_ext)
LEFT_OUT(mbedtls_pkcs12_pbe_ext)
LEFT_OUT(mbedtls_des_init)
LEFT_OUT(mbedtls_des_free)
LEFT_OUT(mbedtls_des_setkey_dec)
LEFT_OUT(mbedtls_des_crypt_cbc)
LEFT_OUT(mbedtls_des3_init)
LEFT_OUT(mbedtls_des3_free)
LEFT_OUT(mbedtls_des3_set3key_dec)
LEFT_OUT(mbedtls_des3_crypt_cbc)
LEFT_OUT(mbedtls_des_key_set_parity)

/* ciphers of PSA, and those in CBC mode: TLS has its own, in aead.c */
LEFT_OUT(mbedtls_cipher_crypt)
LEFT_OUT(mbedtls_cipher_set_padding_mode)
LEFT_OUT(mbedtls_cipher_cmac_starts)
LEFT_OUT(mbedtls_cipher_cmac_update)
LEFT_OUT(mbedtls_cipher_cmac_finish)
LEFT_OUT(mbedtls_cipher_info_from_psa)
LEFT_OUT(mbedtls_psa_cipher_encrypt)
LEFT_OUT(mbedtls_psa_cipher_decrypt)
LEFT_OUT(mbedtls_psa_cipher_encrypt_setup)
LEFT_OUT(mbedtls_psa_cipher_decrypt_setup)
LEFT_OUT(mbedtls_psa_cipher_set_iv)
LEFT_OUT(mbedtls_psa_cipher_update)
LEFT_OUT(mbedtls_psa_cipher_finish)
LEFT_OUT(mbedtls_psa_cipher_abort)
LEFT_OUT(mbedtls_psa_aead_encrypt)
LEFT_OUT(mbedtls_psa_aead_decrypt)
LEFT_OUT(mbedtls_psa_aead_encrypt_setup)
LEFT_OUT(mbedtls_psa_aead_decrypt_setup)
LEFT_OUT(mbedtls_psa_aead_set_nonce)
LEFT_OUT(mbedtls_psa_aead_set_lengths)
LEFT_OUT(mbedtls_psa_aead_update_ad)
LEFT_OUT(mbedtls_psa_aead_update)
LEFT_OUT(mbedtls_psa_aead_finish)
LEFT_OUT(mbedtls_psa_aead_abort)

/* agreement on a key by a password (J-PAKE) */
LEFT_OUT(mbedtls_psa_pake_setup)
LEFT_OUT(mbedtls_psa_pake_input)
LEFT_OUT(mbedtls_psa_pake_output)
LEFT_OUT(mbedtls_psa_pake_get_implicit_key)
LEFT_OUT(mbedtls_psa_pake_abort)

/* what mbedTLS says while it is debugged: these are called, at each step, for nothing */
static void nothing(void) {}
#define SILENT(name) void name(void) __attribute__((alias("nothing")));
SILENT(mbedtls_debug_print_buf)
SILENT(mbedtls_debug_print_crt)
SILENT(mbedtls_debug_print_mpi)
SILENT(mbedtls_debug_print_msg)
SILENT(mbedtls_debug_print_ret)
SILENT(mbedtls_debug_printf_ecdh)
const char *mbedtls_ssl_named_group_to_str(unsigned short group) { return ""; }
const char *mbedtls_ssl_sig_alg_to_str(unsigned short algorithm) { return ""; }
const char *mbedtls_ssl_states_str(int state) { return ""; }

/* libsodium's passwords, and its generic hash: sodium_init() looks for the fastest way to compute them. */
/* The names are theirs: NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
int _crypto_pwhash_argon2_pick_best_implementation(void) { return 0; }
int _crypto_generichash_blake2b_pick_best_implementation(void) { return 0; }
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
