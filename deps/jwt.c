/* jwt - see jwt.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "jwt.h"

#include <stdio.h>
#include <string.h>

#include <jansson.h>
#include <sodium.h>

#include "json.h"

enum { PAYLOAD_MOST = 64 * 1024, DAY_S = 86400, SOON_S = 7 * DAY_S };
static const json_int_t year_10000 = 253402300800;

/* What it says, new; or NULL. protocol: RFC 7519: three parts in base64url, dots between, of which the second
 * is JSON. */
static json_t *claims_of(const char *jwt) {
    const char *payload = jwt ? strchr(jwt, '.') : NULL;
    size_t len = payload ? strcspn(++payload, ".") : 0, text_len = 0;
    json_begin();
    unsigned char *text = len > 0 && len <= PAYLOAD_MOST ? json_alloc(len) : NULL;
    if (!text) return NULL;
    int e = sodium_base642bin(text, len, payload, len, "=", &text_len, NULL,
                              sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    json_t *claims = e == 0 ? json_read((const char *)text, text_len, NULL) : NULL;
    json_free(text);
    return claims;
}

bool jwt_ends_soon(const char *jwt, time_t now, char out[120]) {
    json_t *claims = claims_of(jwt);
    json_int_t at = json_integer_value(json_object_get(claims, "exp")); /* in seconds since 1970 */
    json_decref(claims);
    if (at <= 0 || at >= year_10000 || at - now > SOON_S) return false;
    char day[24];
    struct tm tm;
    time_t t = (time_t)at;
    (void)strftime(day, sizeof(day), "%Y-%m-%d %H:%M UTC", gmtime_r(&t, &tm));
    if (t <= now) (void)snprintf(out, 120, "the JWT of its user has expired, on %s: give it a new one", day);
    else
        (void)snprintf(out, 120, "the JWT of its user expires on %s, in %d days: give it a new one", day,
                       (int)((t - now) / DAY_S));
    return true;
}

bool jwt_is_of_another(const char *jwt, const char *user) {
    json_t *claims = claims_of(jwt);
    const char *subject = json_string_value(json_object_get(claims, "sub"));
    bool other = subject && strcmp(subject, user) != 0;
    json_decref(claims);
    return other;
}
