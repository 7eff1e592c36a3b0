/* The answers of NATS's service protocol, by which `nats micro ls`, `info` and `stats` show a program.
 * protocol: NATS, ADR-32. All values are JSON that the caller owns, or NULL where memory is short:
 * json_whole() tells.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef MICRO_H
#define MICRO_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

/* PING, INFO or STATS, by its first letter. Takes `endpoints` over, a list; PING has none. */
json_t *micro_answer(char verb, const char *name, const char *id, const char *version,
                     const char *description, const char *started, json_t *endpoints);

/* One endpoint; its name gets '-' for what a name must not have. */
json_t *micro_endpoint(const char *name, const char *subject, const char *queue_group);

/* Adds to an endpoint how its calls went; takes `data` over. */
void micro_add_stats(json_t *endpoint, uint64_t calls, uint64_t errors, uint64_t us, const char *last_error,
                     json_t *data);

#endif
