/* settings - what a host says of a link, as JSON: read, checked, and put together with the defaults.
 *
 * A *definition* is a host's link in one form for all versions of hosts: {"id": {source_id, target, name,
 * wit_namespace, wit_package}, "config": {…}, "secrets": {…}, "error": why its secrets cannot be opened, or
 * ""}, with the configuration and the secrets of our side. *Settings* are what a link, or a connection, runs
 * with: key to text, but for `consumers`, which is a list. What is returned as new is the caller's. NULL
 * where nothing else is said: memory is short, and nothing may be made of a part of it.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SETTINGS_H
#define SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "text.h"

/* A text of an object, or NULL; and whether it is "true". */
const char *text_at(const json_t *object, const char *key);
bool is_true(const json_t *object, const char *key);

enum { LINK_NAME = 2, LINK_IDS = 5 };
extern const char *const link_ids[LINK_IDS];

/* What a link is identified by, in one form whatever the host's version: the text of key link_ids[i]; the
 * name is "default" if it is left out. */
const char *link_id(const json_t *link, size_t i);

/* The same for people: "source -> target (name)", cut if it is long. */
const char *link_label(const json_t *link, char out[300]);

/* Whether an order to delete means the link with this id: what it leaves out is any, but for the name. */
bool deletes(const json_t *order, const json_t *id);

/* A host's link as a definition, new. NULL, and why: it is no link of this provider (`provider`: its key), or
 * memory is short. protocol: wasmCloud, crates/core, link.rs. */
json_t *read_definition(const json_t *link, const char *provider, bool *delivers, const char **why);

/* The provider's own configuration and secrets, which are defaults for every link. */
struct settings_defaults {
    json_t *config, *secrets;
};

/* Which key of a configuration and secrets takes more memory than a link may have for all of them, as a
 * sentence that stays until the next call; or NULL. */
const char *settings_too_large(const json_t *config, const json_t *secrets);

/* Lets long texts that both definitions have, such as a bundle of CAs, be one text. */
void definition_share(json_t *definition, const json_t *other);

/* The value of a key: a secret comes before configuration, and the link's own (`definition`, or NULL) before
 * the defaults. New, or NULL: there is none. */
json_t *find_setting(const struct settings_defaults *defaults, const json_t *definition, const char *key);

/* Puts the value of key `from` into the settings as `key`, unless it is empty. */
void settings_add(const struct settings_defaults *defaults, const json_t *definition, const char *from,
                  json_t *settings, const char *key);

/* All that a link runs with, new. */
json_t *merge_settings(const struct settings_defaults *defaults, const json_t *definition, bool delivers);

/* Who is told what is wrong, a sentence at a time; each function that tells returns how many there were. */
struct listener {
    void (*tell)(void *user, const char *text);
    void *user;
};
enum { FAULT_MAX = 256, FAULT_LIST_MAX = FAULT_MAX + 32 }; /* a sentence, and several, with a NUL */

/* What makes these settings unusable. */
size_t settings_faults(const json_t *settings, const struct listener *to);

/* The same in one text, as much as fits, which stays until the next call; or NULL. */
const char *settings_error(const json_t *settings);

/* What may be a slip in a link (its definition, and what that comes to with the defaults): a key that does
 * not exist, or is not for such a link, or whose value is ignored; and that no message can come by it. */
size_t settings_slips(const json_t *definition, const json_t *settings, bool delivers,
                      const struct listener *to);

/* The same in the provider's own configuration and secrets. */
size_t defaults_slips(const struct settings_defaults *defaults, const struct listener *to);

/* Says on standard output what the provider would do with a link. */
void settings_print(const json_t *settings, bool delivers, const char *link);

/* Whether a key that is about TLS demands it, as a URL may: else somebody on the way could talk us out of
 * it. */
bool demands_tls(const json_t *settings);

/* A number of the settings, or its default. */
uint64_t number_of(const json_t *settings, const char *name);

/* Whether two settings are for the same connection. */
bool same_connection(const json_t *a, const json_t *b);

/* One of subscriptions, "subject" or "subject|queue". False: it is neither. */
bool split_subscription(struct span item, struct span *subject, struct span *queue);

/* Items of a list with commas; 0 for NULL. */
size_t count_items(const char *list);

#endif
