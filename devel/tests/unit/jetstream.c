/* unit_jetstream - tests of deps/jetstream.c and deps/micro.c: what JetStream says, and answers of the
 * service protocol.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "unit.h"

#include "../../../deps/headers.h"
#include "../../../deps/jetstream.h"
#include "../../../deps/json.h"
#include "../../../deps/micro.h"

/* A message as nats.c's parser makes it. */
static natsMsg *message_with(const char *headers, const char *data) {
    natsMsg *msg = NULL;
    char all[1000];
    int len = snprintf(all, sizeof(all), "%s%s", headers, data);
    CHECK(natsMsg_createWithPadding(&msg, "s", 1, NULL, 0, all, len, 0, (int)strlen(headers)) == NATS_OK);
    return msg;
}

static bool same(struct span a, const char *text) { return span_is(a, text); }

static void test_acks(void) {
    static const struct {
        const char *subject;
        uint64_t deliveries, sequence;
    } acks[] = {
        {"$JS.ACK.S.c.1.2.3.1700000000000000000.0",   1,          2 }, /* 9 tokens */
        {"$JS.ACK.S.c.18446744073709551615.9.8.7.6",  UINT64_MAX, 9 },
        {"$JS.ACK._.hAsH.S.c.3.40.5.6.7",             3,          40}, /* 11 */
        {"$JS.ACK.hub.hAsH.S.c.3.40.5.6.7.rnd",       3,          40}, /* 12 */
        {"$JS.ACK.hub.hAsH.S.c.3.40.5.6.7.rnd.x",     3,          40}, /* 13: there may be more at the end */
        {"$JS.ACK.hub.hAsH.S.c.3.40.5.6.7.rnd.x.y.z", 3,          40},
        {"$JS.ACK.S.c.x.2.3.4.5",                     0,          2 },
    };
    static const char *const none[] = {
        "",
        ".",
        "$JS.ACK",
        "$JS.ACK.",
        "$JS.ACK.S.c",
        "$JS.ACK.S.c.1.2.3.4",
        "$JS.ACK.S.c.1.2.3.4.5.6", /* 10 */
        "$JS.ACKS.S.c.1.2.3.4.5",
        "$js.ack.S.c.1.2.3.4.5",
        "x.$JS.ACK.S.c.1.2.3.4",
        "a.b.S.c.1.2.3.4.5",
        "$JS.API.S.c.1.2.3.4.5",
        "...........................",
    };
    struct js_ack a;
    for (size_t i = 0; i < COUNT_OF(acks); i++) {
        VERIFY(js_ack_read(acks[i].subject, &a), acks[i].subject);
        VERIFY(same(a.stream, "S") && same(a.consumer, "c"), acks[i].subject);
        VERIFY(a.deliveries == acks[i].deliveries && a.sequence == acks[i].sequence, acks[i].subject);
    }
    CHECK(js_is_same("$JS.ACK.S.c.1.2.3.4.5", "$JS.ACK._.h.S.c.2.2.9.4.0"));
    CHECK(!js_is_same("$JS.ACK.S.c.1.2.3.4.5", "$JS.ACK.S.c.1.3.3.4.5")); /* another */
    CHECK(!js_is_same("$JS.ACK.S.c.1.2.3.4.5", "$JS.ACK.S.c.1.2.3.5.5")); /* of a stream that was made anew */
    CHECK(js_ack_read(acks[0].subject, &a) && a.number == 3 && a.time == 1700000000000000000);
    for (size_t i = 0; i < COUNT_OF(none); i++) VERIFY(!js_ack_read(none[i], &a), none[i]);
}

/* What is published for a consumer. */
static void test_subjects(void) {
    static const char *const none[] = {"",
                                       "x",
                                       "$JS.ACK.S.cc.1.2.3.4.5",
                                       "$JS.ACK.S.c.1",
                                       "$JS.API.CONSUMER.INFO.S.c.d",
                                       "$JS.hub.API.CONSUMER.INFO.S.c",
                                       "a.S.c"};
    static const struct js_name own = {"S", "c", NULL, NULL}, in_hub = {"S", "c", "hub", NULL},
                                imported = {"S", "c", NULL, "from.a"};
    CHECK(js_subject_of("$JS.API.CONSUMER.INFO.S.c", &own) == JS_INFO);
    CHECK(js_subject_of("$JS.API.CONSUMER.MSG.NEXT.S.c", &own) == JS_NEXT);
    CHECK(js_subject_of("$JS.ACK.S.c.1.2.3.4.5", &own) == JS_ACKNOWLEDGEMENT);
    CHECK(js_subject_of("$JS.ACK._.h.S.c.1.2.3.4.5", &own) == JS_ACKNOWLEDGEMENT);
    for (size_t i = 0; i < COUNT_OF(none); i++)
        VERIFY(js_subject_of(none[i], &own) == JS_NO_SUBJECT, none[i]);
    CHECK(js_subject_of("$JS.hub.API.CONSUMER.INFO.S.c", &in_hub) == JS_INFO);
    CHECK(js_subject_of("from.a.CONSUMER.MSG.NEXT.S.c", &imported) == JS_NEXT);
    CHECK(js_subject_of("$JS.ACK.hub.h.S.c.1.2.3.4.5", &in_hub) == JS_ACKNOWLEDGEMENT);
    CHECK(js_subject_of("$JS.ACK.S.c.1.2.3.4.5", &in_hub) == JS_ACKNOWLEDGEMENT);
    CHECK(js_subject_of("$JS.ACK.leaf.h.S.c.1.2.3.4.5", &in_hub) == JS_NO_SUBJECT);
    char label[300];
    CHECK(strcmp(js_label(&own, label), "consumer c of stream S") == 0);
    CHECK(strcmp(js_label(&in_hub, label), "consumer c of stream S in domain hub") == 0);
    CHECK(strcmp(js_label(&imported, label), "consumer c of stream S behind from.a") == 0);
    CHECK(js_is_named(&own, &own) && !js_is_named(&own, &in_hub) && !js_is_named(&in_hub, &imported));
}

/* The answer to CONSUMER.INFO: what a consumer allows, or why it is none for us. */
static void test_info(void) {
    static const struct {
        const char *json, *error;
    } bad[] = {
        {"{\"error\":{\"code\":404,\"description\":\"consumer not found\"}}",    "consumer not found"},
        {"{\"error\":{}}",                                                       "without words"     },
        {"{}",                                                                   "is no consumer's"  },
        {"[",                                                                    "is no consumer's"  },
        {"{\"config\":{}}",                                                      "ack_policy"        },
        {"{\"config\":{\"ack_policy\":\"none\"}}",                               "ack_policy"        },
        {"{\"config\":{\"ack_policy\":\"explicit\",\"deliver_subject\":\"d\"}}", "push consumer"     },
    };
    static const char whole[] = "{\"created\":\"1970-01-02T00:00:01.9Z\",\"config\":"
                                "{\"ack_policy\":\"explicit\",\"ack_wait\":30000000000,"
                                "\"max_deliver\":-1,\"max_batch\":7,\"max_bytes\":0,\"max_expires\":1999999,"
                                "\"backoff\":[5000000000,0,-1,1500000000]}}";
    static const struct js_name name = {"S", "c", NULL, NULL}, in_hub = {"S", "c", "hub", NULL};
    struct js_consumer c;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        natsMsg *msg = message_with("", bad[i].json);
        json_begin();
        const char *error = js_info_read(msg, &name, &c);
        VERIFY(error && strstr(error, bad[i].error), bad[i].json);
        natsMsg_free(msg);
    }
    natsMsg *msg = message_with("NATS/1.0 503\r\n\r\n", "");
    CHECK(strstr(js_info_read(msg, &name, &c), "not enabled"));
    CHECK(strstr(js_info_read(msg, &in_hub, &c), "domain or api_prefix"));
    natsMsg_free(msg);
    msg = message_with("", whole);
    json_begin();
    CHECK(!js_info_read(msg, &name, &c) && c.ack_wait_ms == 1500 && c.max_deliver == 0 && c.batch == 7 &&
          c.bytes == 0);
    CHECK(c.expires_ms == 1 && c.created_ns == 86401900000000);
    natsMsg_free(msg);
}

static void test_statuses(void) {
    static const struct {
        const char *line;
        enum js_status status;
    } lines[] = {
        {"100 Idle Heartbeat",                JS_HEARTBEAT},
        {"404 No Messages",                   JS_ENDED    },
        {"408 Request Timeout",               JS_ENDED    },
        {"409 Batch Completed",               JS_ENDED    },
        {"423 Nats-Wrong-Pin-Id",             JS_UNPINNED },
        {"503",                               JS_MOVED    },
        {"409 Leadership Change",             JS_MOVED    },
        {"409 Server Shutdown",               JS_MOVED    },
        {"409 Message Size Exceeds MaxBytes", JS_TOO_BIG  },
        {"409 Consumer Deleted",              JS_MOVED    },
        {"409 Exceeded MaxWaiting",           JS_REFUSED  },
        {"409",                               JS_REFUSED  },
        {"400 Bad Request",                   JS_REFUSED  },
    };
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        char headers[100];
        (void)snprintf(headers, sizeof(headers), "NATS/1.0 %s\r\n\r\n", lines[i].line);
        natsMsg *msg = message_with(headers, "");
        VERIFY(js_status_of(msg) == lines[i].status, lines[i].line);
        natsMsg_free(msg);
    }
    natsMsg *msg = message_with("", "404");
    CHECK(js_status_of(msg) == JS_REFUSED); /* no status at all */
    natsMsg_free(msg);
}

static const char *text_at(const json_t *json, const char *key) {
    return json_string_value(json_object_get(json, key));
}

static void test_micro(void) {
    json_t *e = micro_endpoint("publish-a.b c", "s.u", "q");
    CHECK(strcmp(text_at(e, "name"), "publish-a-b-c") == 0 && strcmp(text_at(e, "subject"), "s.u") == 0);
    micro_add_stats(e, 4, 1, 10, "words", json_pack("{s:i}", "dropped", 3));
    CHECK(json_integer_value(json_object_get(e, "num_requests")) == 4);
    CHECK(json_integer_value(json_object_get(e, "processing_time")) == 10000);
    CHECK(json_integer_value(json_object_get(e, "average_processing_time")) == 2000);
    json_t *list = json_pack("[o]", e);
    json_t *stats = micro_answer('S', "n", "id", "1.0.0", "what it is", "now", json_incref(list));
    CHECK(strcmp(text_at(stats, "type"), "io.nats.micro.v1.stats_response") == 0 &&
          text_at(stats, "started"));
    CHECK(json_array_size(json_object_get(stats, "endpoints")) == 1 && !text_at(stats, "description"));
    json_t *info = micro_answer('I', "n", "id", "1.0.0", "what it is", "now", json_incref(list));
    CHECK(strcmp(text_at(info, "type"), "io.nats.micro.v1.info_response") == 0 &&
          text_at(info, "description"));
    json_t *ping = micro_answer('P', "n", "id", "1.0.0", "what it is", "now", list);
    CHECK(strcmp(text_at(ping, "type"), "io.nats.micro.v1.ping_response") == 0 &&
          strcmp(text_at(ping, "id"), "id") == 0);
    CHECK(!json_object_get(ping, "endpoints") && json_is_object(json_object_get(ping, "metadata")));
    json_decref(stats);
    json_decref(info);
    json_decref(ping);
}

int main(void) {
    static const struct group groups[] = {
        {"acknowledgements",         test_acks    },
        {"published subjects",       test_subjects},
        {"answers to CONSUMER.INFO", test_info    },
        {"status lines",             test_statuses},
        {"the service protocol",     test_micro   },
    };
    json_set_alloc_funcs(json_alloc, json_free);
    return run_groups(groups, COUNT_OF(groups));
}
