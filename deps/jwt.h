/* jwt - when the JWT of a NATS user ends, and whose it is. Nothing of it is verified: that is the server's.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef JWT_H
#define JWT_H

#include <stdbool.h>
#include <time.h>

/* Whether it has ended, or ends within a week: then what to say of it. NULL, and what is none, never ends. */
bool jwt_ends_soon(const char *jwt, time_t now, char out[120]);

/* Whether it says that it is for another user than the one with this public key. */
bool jwt_is_of_another(const char *jwt, const char *user);

#endif
