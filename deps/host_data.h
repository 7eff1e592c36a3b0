/* Reads what a host writes: a line of base64 with JSON in it, and the secrets in that.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef HOST_DATA_H
#define HOST_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "../provider.h"

/* Reads JSON, or base64 of it, into `buffer`, and takes it apart: one line of it, or (`line` false) all
 * that there is, where base64 is what does not begin with a brace. What is wrong ends the process with a
 * sentence that names the place only, since what stands there may be a secret. The buffer is wiped. Returns
 * a value that the caller owns. */
json_t *host_data_read(int fd, bool line, uint8_t *buffer, size_t size);

/* A string of the host data: missing and null are "". What is none ends the process, here and below. */
const char *host_text(const json_t *host, const char *key);

/* A string that is one token of a subject. Missing or empty it is `missing`, unless that is NULL. */
void host_token(const json_t *host, const char *key, const char *missing, char out[ID_MAX]);

/* An object or a list of the host data, new: missing and null are `empty`, which the caller has made. */
json_t *host_part(const json_t *host, const char *key, json_t *empty);

/* The sealed secrets of one side of a link, opened: an object, which is empty if there are none, or if they
 * cannot be opened; *why is "", or why they cannot. protocol: wasmCloud, crates/core, link.rs. */
json_t *secrets_open(const json_t *sealed, const char **why);

/* A SecretValue as a string: {"kind":"String","value":"…"}, or {"kind":"Bytes","value":[…]} with UTF-8 in
 * it. A new reference; NULL if it is neither, or memory is short. protocol: wasmCloud's secrets-client,
 * types.rs. */
json_t *secret_text(const json_t *secret);

#endif
