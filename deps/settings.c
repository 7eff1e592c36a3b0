/* settings - see settings.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "settings.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/param.h>

#include <sodium.h>

#include "dial.h"
#include "host_data.h"
#include "jetstream.h"
#include "json.h"
#include "jwt.h"
#include "log.h"
#include "url.h"
#include "xkey.h"

#include "../provider.h"

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])

const char *text_at(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

bool is_true(const json_t *settings, const char *key) {
    const char *text = text_at(settings, key);
    return text && strcasecmp(text, "true") == 0;
}

static bool is_bool(const char *text) {
    return strcasecmp(text, "true") == 0 || strcasecmp(text, "false") == 0;
}

static bool is_pem(const char *text) { return strstr(text, "-----BEGIN ") && !strstr(text, "\\n"); }

static bool is_path(const char *text) { return !strstr(text, "-----BEGIN "); }

static bool is_user_seed(const char *text) { return nkey_is_user_seed(span_of(text)); }

/* Nothing that could end a line or a JSON string: it stands in nats.c's CONNECT as it is. */
static bool is_jwt(const char *text) {
    for (; *text; text++)
        if ((unsigned char)*text <= ' ' || *text == '"' || *text == '\\') return false;
    return true;
}

static bool is_prefix(const char *text) { return strlen(text) <= ID_MAX && is_subject(span_of(text), false); }

bool split_subscription(struct span item, struct span *subject, struct span *queue) {
    const char *bar = memchr(item.at, '|', item.len), *end = item.at + item.len;
    *subject = trimmed((struct span){item.at, bar ? (size_t)(bar - item.at) : item.len});
    *queue = bar ? trimmed((struct span){bar + 1, (size_t)(end - bar) - 1}) : (struct span){0};
    return is_subject(*subject, true) && is_utf8(*subject) && (!bar || is_subject(*queue, false));
}

size_t count_items(const char *list) {
    struct span item;
    size_t n = 0;
    while (list_next(&list, &item)) n++;
    return n;
}

static const char not_pem[] = "is no PEM text, or its line ends are written as \\n: put real ones";

static const struct key {
    const char *name;
    bool (*fits)(const char *text); /* or NULL: a number, or what settings_error() looks at by itself */
    const char *error;              /* if it does not: the rest of the sentence */
    uint64_t low, high, missing;
    bool delivers; /* only for links that deliver; others do not take it from the defaults */
    bool conn;     /* another value takes another connection */
} link_keys[] = {
    {.name = "cluster_uris", .conn = true},
    {.name = "client_jwt", .fits = is_jwt, .error = "is no JWT, nor the text of a .creds file", .conn = true},
    {.name = "client_seed", .fits = is_user_seed, .error = "is no seed of a user (SU…)", .conn = true},
    {.name = "tls_ca", .fits = is_pem, .error = not_pem, .conn = true},
    {.name = "tls_ca_file",
     .fits = is_path,
     .error = "is a path, and PEM text goes into tls_ca",
     .conn = true},
    {.name = "tls_cert", .fits = is_pem, .error = not_pem, .conn = true},
    {.name = "tls_key", .fits = is_pem, .error = not_pem, .conn = true},
    {.name = "tls_first", .fits = is_bool, .error = "is neither true nor false", .conn = true},
    {.name = "ignore_discovered", .fits = is_bool, .error = "is neither true nor false", .conn = true},
    {.name = "custom_inbox_prefix", .fits = is_prefix, .error = "is no subject", .conn = true},
    {.name = "connect_timeout_sec",
     .low = 1,
     .high = 120,
     .missing = CONNECT_TIMEOUT_S_DEFAULT,
     .conn = true},
    {.name = "ping_interval_sec", .low = 1, .high = 86400, .missing = PING_INTERVAL_S_DEFAULT},
    {.name = "subscriptions", .delivers = true},
    {.name = "consumers", .delivers = true},
    {.name = "js_domain", .fits = is_token, .error = "is no name of a JetStream domain", .delivers = true},
    {.name = "max_in_flight",
     .low = 1,
     .high = CALLS_MAX / 2,
     .missing = MAX_IN_FLIGHT_DEFAULT,
     .delivers = true},
    {.name = "handler_timeout_ms",
     .low = 1,
     .high = 86400000,
     .missing = HANDLER_TIMEOUT_MS_DEFAULT,
     .delivers = true},
};

/* A whole number of the settings, or the default where the key is missing. False: it is none, or out of its
 * bounds. */
static bool number_read(const json_t *settings, const struct key *key, uint64_t *n) {
    const char *text = text_at(settings, key->name);
    char *end = NULL;
    *n = key->missing;
    if (!text) return true;
    errno = 0;
    *n = strtoull(text, &end, 10);
    return isdigit((unsigned char)*text) && *end == 0 && errno == 0 && *n >= key->low && *n <= key->high;
}

uint64_t number_of(const json_t *settings, const char *name) {
    uint64_t n = 0;
    for (const struct key *k = link_keys; k < link_keys + COUNT_OF(link_keys); k++)
        if (strcmp(k->name, name) == 0) (void)number_read(settings, k, &n);
    return n;
}

/* ---- what is wrong */

static __attribute__((format(printf, 2, 3))) size_t tell(const struct listener *to, const char *format, ...) {
    char text[FAULT_MAX];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    to->tell(to->user, text);
    return 1;
}

static size_t server_faults(const char *list, const struct listener *to) {
    struct span server;
    size_t n = 0, faults = 0;
    for (; list_next(&list, &server); n++) {
        struct url url;
        const char *wrong = server_read(server, &url);
        sodium_memzero(&url, sizeof(url));
        if (wrong)
            faults += tell(to, "cluster_uris is no list of nats:// or tls:// URLs: number %zu %s", n + 1,
                           wrong);
    }
    if (n == 0) faults += tell(to, "cluster_uris is no list of nats:// or tls:// URLs: it is empty");
    return faults;
}

static size_t subscription_faults(const char *list, const struct listener *to) {
    struct span item, subject, queue;
    size_t n = 0, faults = 0;
    for (; list_next(&list, &item); n++)
        if (!split_subscription(item, &subject, &queue))
            faults += tell(to, "subscriptions: number %zu, \"%.*s\", is neither subject nor subject|queue",
                           n + 1, (int)MIN(item.len, (size_t)80), item.at);
    if (n > SUBSCRIPTIONS_MAX)
        faults += tell(to, "subscriptions: %zu are more than the %d that this build takes", n,
                       SUBSCRIPTIONS_MAX);
    return faults;
}

/* A key of an entry of consumers that is to be a name. */
static size_t name_faults(const json_t *entry, size_t number, const char *key, const struct listener *to) {
    const char *name = text_at(entry, key);
    if (!json_object_get(entry, key)) return tell(to, "consumers: entry %zu has no %s", number, key);
    if (!name || !*name) return tell(to, "consumers: entry %zu: its %s is no name", number, key);
    if (is_token(name)) return 0;
    return tell(to, "consumers: entry %zu: its %s has a blank, a dot or a wildcard in it, or is too long",
                number, key);
}

static size_t limit_faults(const json_t *entry, size_t number, const char *key, const struct listener *to) {
    const json_t *limit = json_object_get(entry, key);
    if (!limit || json_integer_value(limit) > 0) return 0;
    return tell(to, "consumers: entry %zu: its %s is no number above 0 (without quotes)", number, key);
}

/* Where the consumer of an entry is, and how it is asked. `left`: bytes that the subjects have for it.
 * protocol: NATS, ADR-42, for the group. */
static size_t place_faults(const json_t *entry, size_t number, size_t left, const struct listener *to) {
    static const char in_group[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/_=-";
    const char *domain = text_at(entry, "domain"), *prefix = text_at(entry, "api_prefix");
    const char *group = text_at(entry, "group");
    size_t faults = 0;
    if (json_object_get(entry, "domain") && json_object_get(entry, "api_prefix"))
        return tell(to, "consumers: entry %zu has domain and api_prefix: domain X means api_prefix $JS.X.API",
                    number);
    if (json_object_get(entry, "domain") && (!is_token(domain) || strlen(domain) >= left))
        faults += tell(to, "consumers: entry %zu: its domain is no name of a JetStream domain", number);
    if (json_object_get(entry, "api_prefix") && (!prefix || !is_prefix(prefix) || strlen(prefix) >= left))
        faults += tell(to, "consumers: entry %zu: its api_prefix is no subject such as $JS.hub.API", number);
    if (json_object_get(entry, "group") &&
        (!group || !*group || group[strspn(group, in_group)] || strlen(group) > 16))
        faults += tell(to,
                       "consumers: entry %zu: its group is no priority group: 1 to 16 letters, digits, /_=-",
                       number);
    return faults;
}

static size_t entry_faults(const json_t *list, size_t at, const struct listener *to) {
    const json_t *entry = json_array_get(list, at);
    size_t number = at + 1, faults = 0;
    if (!json_is_object(entry)) return tell(to, "consumers: entry %zu is no {…}", number);
    faults += name_faults(entry, number, "stream", to) + name_faults(entry, number, "consumer", to);
    faults += limit_faults(entry, number, "max_messages", to) + limit_faults(entry, number, "max_bytes", to);
    if (faults > 0) return faults;
    struct js_name name = js_name_of(entry);
    size_t len = strlen(name.stream) + strlen(name.consumer);
    if (len >= INBOX_MAX / 2) /* all subjects with both fit into INBOX_MAX */
        return tell(to, "consumers: entry %zu: its two names are too long", number);
    for (size_t i = 0; i < at; i++) {
        struct js_name other = js_name_of(json_array_get(list, i));
        if (js_is_named(&name, &other))
            return tell(to, "consumers: entry %zu names the same as entry %zu", number, i + 1);
    }
    return place_faults(entry, number, INBOX_MAX / 2 - len, to);
}

static size_t consumer_faults(const json_t *list, const struct listener *to) {
    size_t faults = 0;
    if (!list) return 0;
    if (!json_is_array(list))
        return tell(to, "consumers is no JSON list like [{\"stream\":\"S\",\"consumer\":\"C\"}]");
    if (json_array_size(list) > CONSUMERS_PER_LINK)
        faults += tell(to, "consumers has %zu entries, and this build takes %d", json_array_size(list),
                       CONSUMERS_PER_LINK);
    for (size_t i = 0; i < json_array_size(list); i++) faults += entry_faults(list, i, to);
    return faults;
}

size_t settings_faults(const json_t *s, const struct listener *to) {
    size_t faults = server_faults(text_at(s, "cluster_uris"), to);
    for (const struct key *k = link_keys; k < link_keys + COUNT_OF(link_keys); k++) {
        const char *text = text_at(s, k->name);
        uint64_t number;
        if (text && k->fits && !k->fits(text)) faults += tell(to, "%s %s", k->name, k->error);
        if (text && k->high && !number_read(s, k, &number))
            faults += tell(to, "%s is no number from %" PRIu64 " to %" PRIu64, k->name, k->low, k->high);
    }
    if (text_at(s, "client_jwt") && !text_at(s, "client_seed"))
        faults +=
            tell(to,
                 "client_jwt comes without client_seed, or without the seed that stands in a .creds file");
    if (!text_at(s, "tls_cert") != !text_at(s, "tls_key"))
        faults += tell(to, "tls_cert and tls_key belong together: give both or neither");
    faults += subscription_faults(text_at(s, "subscriptions"), to);
    return faults + consumer_faults(json_object_get(s, "consumers"), to);
}

/* As many faults as fit, in one text; each of them whole, and how many others there are. */
struct fault_list {
    char *text;
    unsigned others;
};

static void list_fault(void *user, const char *text) {
    struct fault_list *list = user;
    size_t at = strlen(list->text), room = FAULT_MAX - at;
    if (at > 0 && strlen(text) + 2 > room) list->others++;
    else (void)snprintf(list->text + at, room, "%s%s", at ? "; " : "", text);
}

const char *settings_error(const json_t *settings) {
    static char error[FAULT_LIST_MAX];
    struct fault_list list = {.text = error};
    error[0] = 0;
    if (settings_faults(settings, &(struct listener){list_fault, &list}) == 0) return NULL;
    if (list.others > 0)
        (void)snprintf(error + strlen(error), FAULT_LIST_MAX - FAULT_MAX, "; and %u others", list.others);
    return error;
}

const char *const link_ids[LINK_IDS] = {"source_id", "target", "name", "wit_namespace", "wit_package"};
const char *link_id(const json_t *link, size_t i) {
    const char *text = text_at(link, link_ids[i]);
    if (text && *text) return text;
    return i == LINK_NAME ? "default" : "";
}

const char *link_label(const json_t *json, char out[300]) {
    const char *source = text_at(json, "source_id"), *target = text_at(json, "target");
    (void)snprintf(out, 300, "%.80s -> %.80s (%.80s)", source ? source : "?", target ? target : "?",
                   link_id(json, LINK_NAME));
    return out;
}

bool deletes(const json_t *order, const json_t *id) {
    if (strcmp(link_id(order, LINK_NAME), link_id(id, LINK_NAME)) != 0) return false;
    for (size_t i = 0; i < COUNT_OF(link_ids); i++) {
        const char *wanted = text_at(order, link_ids[i]);
        if (wanted && *wanted && strcmp(wanted, link_id(id, i)) != 0) return false;
    }
    return true;
}

/* What a value takes of the memory, about: jansson's own, and its bytes. */
static size_t json_cost(const json_t *value) {
    size_t sum = 64 + json_string_length(value), i;
    const char *key;
    json_t *part;
    json_object_foreach((json_t *)value, key, part) sum += 64 + strlen(key) + json_cost(part);
    json_array_foreach(value, i, part) sum += json_cost(part);
    return sum;
}

const char *settings_too_large(const json_t *config, const json_t *secrets) {
    static char error[200];
    const json_t *const parts[] = {config, secrets};
    const char *key, *largest = "";
    size_t sum = 0, most = 0;
    json_t *value;
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        json_object_foreach((json_t *)parts[i], key, value) {
            size_t cost = 64 + strlen(key) + json_cost(value);
            sum += cost;
            if (cost > most) most = cost, largest = key;
        }
    }
    if (sum <= LINK_SETTINGS_MAX) return NULL;
    (void)snprintf(error, sizeof(error),
                   "its settings take %zu kB, most of it %.60s, and more than %d kB are not kept "
                   "(CA certificates may be in a file: tls_ca_file)",
                   sum / 1024, largest, LINK_SETTINGS_MAX / 1024);
    return error;
}

void definition_share(json_t *definition, const json_t *other) {
    const char *key;
    json_t *value;
    json_object_foreach(definition, key, value) {
        json_t *its = json_object_get(other, key);
        if (json_is_object(value)) definition_share(value, its);
        else if (json_string_length(value) > 1024 && value != its && json_equal(value, its))
            (void)json_object_set(definition, key,
                                  its); /* takes the place of an equal one: no memory is needed */
    }
}

json_t *read_definition(const json_t *link, const char *provider, bool *delivers, const char **why) {
    const char *source = text_at(link, "source_id"), *target = text_at(link, "target"),
               *name = text_at(link, "name");
    *delivers = source && strcmp(source, provider) == 0;
    json_begin();
    *why = "neither its source_id nor its target is this provider";
    if (!*delivers && (!target || strcmp(target, provider) != 0)) return NULL;
    *why = "its component or its name does not fit into a subject";
    if (!is_token(*delivers ? target : source) || (name && strlen(name) >= ID_MAX)) return NULL;
    const json_t *config = json_object_get(link, *delivers ? "source_config" : "target_config");
    json_t *secrets = secrets_open(json_object_get(link, *delivers ? "source_secrets" : "target_secrets"),
                                   why);
    json_t *own = json_is_object(config) ? json_copy((json_t *)config) : json_object(), *id = json_object();
    const char *most = settings_too_large(own, secrets);
    if (most) {
        *why = most;
        json_object_clear(own);
        json_object_clear(secrets);
    }
    for (size_t i = 0; i < COUNT_OF(link_ids); i++)
        json_object_set_new(id, link_ids[i], json_string(link_id(link, i)));
    json_t *definition = json_pack("{s:o, s:s, s:o, s:o}", "id", id, "error", *why, "config", own, "secrets",
                                   secrets);
    *why = "memory is short";
    return json_whole(definition);
}

json_t *find_setting(const struct settings_defaults *defaults, const json_t *definition, const char *key) {
    const json_t *secrets[] = {json_object_get(definition, "secrets"), defaults->secrets};
    const json_t *configs[] = {json_object_get(definition, "config"), defaults->config};
    for (size_t i = 0; i < 2; i++) {
        json_t *value = secret_text(json_object_get(secrets[i], key));
        if (value) return value;
        value = json_object_get(configs[i], key);
        if (json_is_string(value)) return json_incref(value);
    }
    return NULL;
}

void settings_add(const struct settings_defaults *defaults, const json_t *definition, const char *from,
                  json_t *settings, const char *key) {
    json_t *value = find_setting(defaults, definition, from);
    struct span whole = {json_string_value(value), json_string_length(value)};
    struct span text =
        trimmed(whole); /* secrets often end with a newline; PEM may, and is not copied for that */
    bool as_it_is = text.len == whole.len || (text.len > 0 && is_pem(text.at));
    if (text.len > 0)
        json_object_set_new(settings, key, as_it_is ? json_incref(value) : json_stringn(text.at, text.len));
    json_decref(value);
}

/* What stands in a .creds file behind "-----BEGIN {what}-----". Of its line ends some tools make blanks, or a
 * backslash and an n. */
static struct span creds_part(const char *text, const char *what) {
    const char *at = strstr(text, what);
    if (!at) return (struct span){0};
    at += strlen(what);
    at += strspn(at, "- \t\r\n\\n");
    return (struct span){at, strcspn(at, " \t\r\n\\")};
}

/* All of a .creds file may stand in client_jwt, or in client_seed: its parts go where they belong. What does
 * not look like one stays, and is no JWT. protocol: the file that nsc and nk write. */
static void creds_split(json_t *settings) {
    static const char *const keys[] = {"client_jwt", "client_seed"};
    static const char *const names[] = {"BEGIN NATS USER JWT", "BEGIN USER NKEY SEED"};
    const char *values[] = {text_at(settings, keys[0]), text_at(settings, keys[1])};
    const char *creds = values[0] && strstr(values[0], "-----BEGIN ") ? values[0] : values[1];
    json_t *parts[2] = {NULL, NULL};
    bool replaced[2];
    for (size_t i = 0; i < 2; i++) {
        struct span part = creds ? creds_part(creds, names[i]) : (struct span){0};
        replaced[i] = part.len && (!values[i] || strstr(values[i], "-----BEGIN "));
        if (replaced[i]) parts[i] = json_stringn(part.at, part.len);
    }
    for (size_t i = 0; i < 2; i++)
        if (replaced[i]) json_object_set_new(settings, keys[i], parts[i]);
}

json_t *merge_settings(const struct settings_defaults *defaults, const json_t *definition, bool delivers) {
    const json_t *config = json_object_get(definition, "config"),
                 *secrets = json_object_get(definition, "secrets");
    json_begin();
    json_t *settings = json_object();
    for (const struct key *k = link_keys; k < link_keys + COUNT_OF(link_keys); k++)
        if (delivers || !k->delivers) settings_add(defaults, definition, k->name, settings, k->name);
    creds_split(settings);
    if (json_object_get(config, "tls_ca_file") && !json_object_get(config, "tls_ca") &&
        !json_object_get(secrets, "tls_ca"))
        json_object_del(settings, "tls_ca"); /* the link's own file, not the text that others use */
    if (!text_at(settings, "cluster_uris"))
        json_object_set_new(settings, "cluster_uris", json_string("nats://127.0.0.1:4222"));
    const char *text = text_at(settings, "consumers"); /* becomes a list now: its use must need no memory */
    const char *domain = text_at(settings, "js_domain");
    json_t *list = text ? json_read(text, strlen(text), NULL) : NULL, *entry;
    size_t i;
    json_array_foreach(list, i, entry) {
        bool has_place = json_object_get(entry, "domain") || json_object_get(entry, "api_prefix");
        if (domain && !has_place) json_object_set_new(entry, "domain", json_string(domain));
    }
    if (list) json_object_set_new(settings, "consumers", list);
    return json_whole(settings);
}

bool same_connection(const json_t *a, const json_t *b) {
    for (const struct key *k = link_keys; k < link_keys + COUNT_OF(link_keys); k++) {
        const json_t *x = json_object_get(a, k->name), *y = json_object_get(b, k->name);
        if (k->conn && x != y && !json_equal(x, y)) return false;
    }
    return true;
}

/* ---- what may be a slip */

/* How many letters differ: inserted, left out, or others (Levenshtein). For words up to 31 letters; more
 * differ in all. */
static size_t difference(const char *a, const char *b) {
    size_t row[32], len = strlen(b);
    if (len > 31 || strlen(a) > 31) return 32;
    for (size_t j = 0; j <= len; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t before = row[0]++;
        for (size_t j = 0; j < len; j++) {
            size_t other = before + (a[i] != b[j]), fewer = 1 + (row[j] < row[j + 1] ? row[j] : row[j + 1]);
            before = row[j + 1];
            row[j + 1] = other < fewer ? other : fewer;
        }
    }
    return row[len];
}

/* Whether it is a key of a link; or else which one is meant, perhaps. */
static const struct key *key_of(const char *name, const struct key **near) {
    *near = NULL;
    for (const struct key *k = link_keys; k < link_keys + COUNT_OF(link_keys); k++) {
        if (strcmp(name, k->name) == 0) return k;
        if (difference(name, k->name) <= 2) *near = k;
    }
    return NULL;
}

/* Whether two subscriptions of a list match the same messages, which then come twice; of one queue group the
 * server gives each to one member, whichever subject has matched (nats-server, sublist.go). */
static size_t overlap_slips(const char *list, const struct listener *to) {
    struct span item, subject, queue, other, other_subject, other_queue;
    if (count_items(list) > SUBSCRIPTIONS_MAX)
        return 0; /* an error by itself, and each is compared with each */
    for (size_t n = 1; list && list_item(list, n, &item); n++) {
        bool good = split_subscription(item, &subject, &queue);
        for (size_t i = 0; good && i < n && list_item(list, i, &other); i++) {
            if (!split_subscription(other, &other_subject, &other_queue) || span_same(item, other)) continue;
            if (queue.len > 0 && span_same(queue, other_queue)) continue;
            if (!subjects_overlap(subject, other_subject)) continue;
            return tell(to, "subscriptions %.*s and %.*s overlap: what matches both comes twice",
                        (int)MIN(other.len, (size_t)60), other.at, (int)MIN(item.len, (size_t)60), item.at);
        }
    }
    return 0;
}

/* What is odd about a key of a link, or of the defaults. */
static size_t key_slips(const char *name, const json_t *value, bool secret, const bool *delivers,
                        const struct listener *to) {
    static const char of_lattice[] = "lattice_";
    const struct key *near, *k = key_of(name, &near);
    json_t *text = secret ? secret_text(value) : NULL;
    bool is_text = text || (!secret && json_is_string(value));
    json_decref(text);
    if (!k && !delivers && strncmp(name, of_lattice, strlen(of_lattice)) == 0) {
        if (strcmp(name, "lattice_service") == 0) return 0;
        k = key_of(name + strlen(of_lattice), &near);
    }
    if (!k && near)
        return tell(to, "there is no key %.60s; did you mean %s%s?", name,
                    strncmp(name, of_lattice, strlen(of_lattice)) == 0 ? of_lattice : "", near->name);
    if (!k) return tell(to, "there is no key %.60s", name);
    if (!is_text) return tell(to, "%s is no string, and is ignored", name);
    if (delivers && !*delivers && k->delivers)
        return tell(to, "%s is for links that call the component, and is ignored", name);
    return 0;
}

static size_t keys_slips(const json_t *config, const json_t *secrets, const bool *delivers,
                         const struct listener *to) {
    const char *name;
    json_t *value;
    size_t slips = 0;
    json_object_foreach((json_t *)config, name, value) slips += key_slips(name, value, false, delivers, to);
    json_object_foreach((json_t *)secrets, name, value) slips += key_slips(name, value, true, delivers, to);
    return slips;
}

size_t defaults_slips(const struct settings_defaults *defaults, const struct listener *to) {
    return keys_slips(defaults->config, defaults->secrets, NULL, to);
}

/* Keys of an entry of consumers. */
static size_t entry_slips(const json_t *list, const struct listener *to) {
    static const char *const known[] = {"stream", "consumer",   "max_messages", "max_bytes",
                                        "domain", "api_prefix", "group"};
    size_t slips = 0, i;
    json_t *entry, *value;
    const char *name;
    json_array_foreach(list, i, entry) {
        json_object_foreach(entry, name, value) {
            bool is_known = false;
            for (size_t k = 0; k < COUNT_OF(known); k++) is_known |= strcmp(name, known[k]) == 0;
            if (!is_known) slips += tell(to, "consumers: entry %zu: there is no key %.60s", i + 1, name);
        }
    }
    return slips;
}

size_t settings_slips(const json_t *definition, const json_t *settings, bool delivers,
                      const struct listener *to) {
    size_t slips = keys_slips(json_object_get(definition, "config"), json_object_get(definition, "secrets"),
                              &delivers, to);
    const json_t *consumers = json_object_get(settings, "consumers");
    if (delivers && !text_at(settings, "subscriptions") && !consumers)
        slips += tell(to, "it has neither subscriptions nor consumers: no message will come");
    char user[NKEY_PUBLIC_LEN + 1];
    const char *jwt = text_at(settings, "client_jwt"), *seed = text_at(settings, "client_seed");
    if (jwt && seed && nkey_user_public(span_of(seed), user) && jwt_is_of_another(jwt, user))
        slips += tell(to, "client_jwt is of another user than client_seed");
    if (delivers) slips += overlap_slips(text_at(settings, "subscriptions"), to);
    return slips + entry_slips(consumers, to);
}

/* ---- what comes of it */

bool demands_tls(const json_t *settings) {
    static const char *const keys[] = {"tls_ca", "tls_ca_file", "tls_cert"};
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        if (text_at(settings, keys[i])) return true;
    return is_true(settings, "tls_first");
}

/* For a terminal: what stands in a file may be anybody's. */
static const char *shown(struct span s, char out[400]) {
    char text[400];
    (void)text_of(s, text, sizeof(text));
    return log_escape(out, 400, text, false);
}

void settings_print(const json_t *s, bool delivers, const char *link) {
    const char *uris = text_at(s, "cluster_uris"), *subscriptions = text_at(s, "subscriptions");
    const char *ca_file = text_at(s, "tls_ca_file");
    const char *trusted = text_at(s, "tls_ca") ? "tls_ca" : ca_file ? ca_file : "the system's CAs";
    const char *when = demands_tls(s) ? "demanded" : "if the URL or the server asks for it";
    const json_t *entry;
    struct span item;
    char address[URL_ADDRESS_MAX], safe[400];
    size_t i;
    if (is_true(s, "tls_first")) when = "first of all";
    printf("link %s: %s\n", link,
           delivers ? "calls the component's handle-message" : "serves the component's publish and request");
    while (list_next(&uris, &item)) printf("    server        %s\n", server_address(item, address));
    printf("    credentials   %s\n", text_at(s, "client_jwt")    ? "client_jwt and client_seed"
                                     : text_at(s, "client_seed") ? "the nkey of client_seed"
                                                                 : "none, or in the URL");
    printf("    TLS           %s, trusting %s%s\n", when, shown(span_of(trusted), safe),
           text_at(s, "tls_cert") ? ", with tls_cert" : "");
    if (!delivers) return;
    while (list_next(&subscriptions, &item)) printf("    subscription  %s\n", shown(item, safe));
    json_array_foreach(json_object_get(s, "consumers"), i, entry) {
        struct js_name name = js_name_of(entry);
        char label[300];
        (void)js_label(&name, label);
        printf("    %.8s      %s\n", label, shown(span_of(label + 9), safe));
    }
    printf("    in flight     %" PRIu64 ", for %" PRIu64 " ms each\n", number_of(s, "max_in_flight"),
           number_of(s, "handler_timeout_ms"));
}
