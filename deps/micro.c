/* NATS's service protocol: see micro.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include "micro.h"

#include <ctype.h>
#include <stdio.h>

json_t *micro_answer(char verb, const char *name, const char *id, const char *version,
                     const char *description, const char *started, json_t *endpoints) {
    bool stats = verb == 'S', ping = verb == 'P';
    const char *kind = stats ? "stats" : ping ? "ping" : "info";
    json_t *json = json_pack("{s:s, s:s, s:s, s:{}}", "name", name, "id", id, "version", version, "metadata");
    json_object_set_new(json, "type", json_sprintf("io.nats.micro.v1.%s_response", kind));
    if (stats) json_object_set_new(json, "started", json_string(started));
    else json_object_set_new(json, "description", json_string(description));
    if (!ping) json_object_set(json, "endpoints", endpoints);
    json_decref(endpoints);
    return json;
}

json_t *micro_endpoint(const char *name, const char *subject, const char *queue_group) {
    char plain[400];
    (void)snprintf(plain, sizeof(plain), "%s", name);
    for (char *c = plain; *c; c++)
        if (!isalnum((unsigned char)*c)) *c = '-';
    return json_pack("{s:s, s:s, s:s}", "name", plain, "subject", subject, "queue_group", queue_group);
}

void micro_add_stats(json_t *endpoint, uint64_t calls, uint64_t errors, uint64_t us, const char *last_error,
                     json_t *data) {
    json_t *stats = json_pack("{s:I, s:I, s:s, s:I, s:I, s:o}", "num_requests", (json_int_t)calls,
                              "num_errors", (json_int_t)errors, "last_error", last_error, "processing_time",
                              (json_int_t)us * 1000, "average_processing_time",
                              (json_int_t)(calls ? us / calls * 1000 : 0), "data", data);
    json_object_update(endpoint, stats);
    json_decref(stats);
}
