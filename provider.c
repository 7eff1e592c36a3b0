/* messaging-nats - a wasmCloud capability provider for wasmcloud:messaging@0.2.0 over NATS, in one file.
 * SPDX-License-Identifier: Apache-2.0
 *
 * A wasmCloud host runs WebAssembly components. A component that publishes messages, asks questions of a
 * subject, or is called for each message of a subscription is *linked* to a provider: this program. The
 * host starts it, writes one line of *host data* to its standard input, and from then on everything goes
 * over NATS:
 *
 *     component ── publish, request ──▶ lattice ──▶ provider ──▶ the link's server    (calls from components)
 *     component ◀── handle-message ─── lattice ◀── provider ◀── the link's server    (calls to components)
 *
 * The *lattice* is the NATS server that hosts and providers share; calls on it are wRPC. A *link* joins one
 * component to this provider. Each link has a connection of its own, to the server that its configuration
 * names. Read the four structs of section 2 first: conn, link, call and delivery. Everything else is what
 * happens to them. Each section below begins with what it does, and names the functions that the others
 * use.
 *
 *      1 what this is           this page
 *      2 the data               the tables, and the picture of each state machine
 *      3 main, and the loop     start, wait, read, what is due, write
 *      4 the lattice            a table of subjects, and orders of the host
 *      5 publish, request       calls from components
 *      6 handle-message         calls to components, and the queue before them
 *      7 JetStream              pull consumers; may be skipped
 *      8 wRPC                   slots, inboxes, handshakes, answers, and the value codec
 *      9 links                  put, change, delete, and what comes by their connections
 *     10 connections            nats.c in our loop; what servers refuse, and leaving one that will close
 *     11 control                health, shutdown, the service protocol, host data, --check
 *
 * What holds at all times:
 *
 *  1. One thread runs all of this, and nothing in it waits but epoll. An attempt to connect runs on a
 *     thread of its own, which touches what struct conn says and no more.
 *  2. Memory is one arena, under every library, and the tables of section 2. What finds none fails whole,
 *     with an error text for whoever asked; provider.h has the sums, and the compiler checks them.
 *  3. A call is one slot, from call_take() to call_free(). Between the two only call_set() changes its
 *     state, and with it all that is counted. It ends when its outcome was delivered, not when it is known.
 *  4. A message that came for a component is counted once as received, and once as what became of it; what
 *     is neither is in its link's queue, or with the component: `open` in the counts.
 *  5. What JetStream delivered is acknowledged, given back, or reported in progress until it is.
 *  6. Bytes of others are checked before they get into a subject, a header, a log line or JSON.
 *  7. A connection that we end is drained first: what it had promised goes out, what was on its way comes
 *     in.
 *
 * Errors are texts, which reach log, health and component as they are: a function that can fail returns
 * NULL, or why it failed, in words that name the remedy where there is one. Those that return bool say what
 * false means.
 *
 * "protocol:" in a comment points to the public source of a fact about the wire: wasmCloud's host and
 * provider-sdk (1.0.4, 1.9.2), the crate wrpc-transport-nats, the component model's value encoding, NATS.
 */
#define _GNU_SOURCE
#include "provider.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nats/nats.h>
#include <sodium.h>

#include "deps/arena.h"
#include "deps/dial.h"
#include "deps/headers.h"
#include "deps/host_data.h"
#include "deps/jetstream.h"
#include "deps/json.h"
#include "deps/jwt.h"
#include "deps/log.h"
#include "deps/micro.h"
#include "deps/openssl_shim.h"
#include "deps/parser_guard.h"
#include "deps/pem.h"
#include "deps/process.h"
#include "deps/refusals.h"
#include "deps/servers.h"
#include "deps/settings.h"
#include "deps/text.h"
#include "deps/url.h"
#include "deps/xkey.h"

#define BIT(n) (1u << (n))
/* For a large buffer that each call needs: all other variables are zero from where they are declared, see
 * the Makefile. */
#define UNSET __attribute__((uninitialized))

/*
 * ---- 2 the data -----------------------------------------------------------------------------------------
 *
 * - conn: a connection to a NATS server, the lattice's or a link's
 * - link: one component's link to this provider: its settings, its connection, its queue, its counts
 * - delivery: a message for a component, from a subscription or a consumer, until it was handled
 * - call: one invocation over the lattice, in either direction
 *
 * Times end in _ms or _us, and are read from the clock once a turn of the loop. Lengths are in bytes.
 */
static uint64_t now_ms, now_us; /* since some moment in the past; never set back; see read_clock() */

enum {
    LATTICE_CONNS = 2, /* the one that is used, and one that takes over */
    /* the lattice's; each link's; those that take over, or drain */
    CONNS_MAX = LATTICE_CONNS + LINKS_MAX + LINKS_LEAVING_MAX,
    /* all of them may be deleted, and as many be put, before the first has left */
    LINK_SLOTS = 2 * LINKS_MAX,
    SECRET_LEN = 12,                   /* 60 random bits in base32 make an inbox one of a kind */
    SLOT_LEN = 3,                      /* digits of a call's slot, in base 16 from 'A' on */
    TOKEN_LEN = SLOT_LEN + SECRET_LEN, /* of a call's inbox */
    TRACE_MAX = 512,                   /* a trace header that is longer is not passed on */
    ERROR_MAX = 256,                   /* an error text for a component, cut if it is longer */
    CALL_HEAD = 100,                   /* of a message's parameters, kept for log lines about it */
};

/* A connection.
 *
 *             ┌─────────────── conn_lost ───────────────┐
 *             ▼                                         │
 *    FREE   WAITING ── conn_connect ──▶ CONNECTING ──▶ UP ── conn_drain ──▶ DRAINING ── conn_free ──▶ FREE
 *     │       ▲  ▲                       │  ▲   conn_came_up
 *     │       │  └─ the attempt failed ──┘  │
 *     └───────┴───────── conn_start ────────┘
 *
 * WAITING ends after a pause that doubles. CONNECTING ends when the thread has reported; nobody can end it
 * earlier. DRAINING: unsubscribed; it ends when nothing needs it, and the server has read what was written;
 * or when its time is over, and it has no users and takes no bytes, or another needs its place.
 * One that is not wanted any more while it is WAITING or CONNECTING goes on to FREE; so does one whose
 * attempt failed while another with the same settings goes on: that of a server that will close. */
enum conn_state { CONN_FREE, CONN_WAITING, CONN_CONNECTING, CONN_UP, CONN_DRAINING };
enum report { REPORT_NONE, REPORT_UP, REPORT_FAILED };

/* What asks the server for an answer to everything before it: a message to ourselves. */
enum probe { PROBE_NONE, PROBE_SENT, PROBE_BACK };

struct call_list {
    struct call *first, *last;
};

struct conn {
    /* constant while it is not FREE */
    json_t *settings;           /* key to text: deps/settings.h; owned, and never changed */
    char name[2 * ID_MAX + 24]; /* for `nats server report connections`: program, component, link */
    char inbox[INBOX_MAX];      /* what is sent to "{inbox}…" comes back to us; ends with ".c." */
    size_t inbox_len;
    bool is_lattice; /* the lattice's: that which is used, the next, or one that drains */
    bool vital; /* it may use what the arena keeps free: the lattice's, and one that is to give memory back */

    /* the attempt's: the loop leaves them alone until the thread has reported */
    natsConnection *nc;
    natsSock fd;
    char outcome[320];    /* the server that it reached, or why it reached none */
    struct servers named; /* servers that INFO named, of this connection alone: they get its credentials */

    /* written by nats.c's callbacks, on any thread */
    atomic_int report;
    atomic_bool wants_write, closed;

    atomic_bool unwanted; /* set by the loop: no further attempt of the connecting thread is worth while */

    /* the loop's */
    enum conn_state state;
    struct link *link;   /* whose it is; NULL: the lattice's, or of a link that is gone */
    struct topic *topic; /* what its log lines are about */
    char error[320];     /* why it is not UP, or "" */
    uint64_t jwt_ms;     /* when its user's JWT is next looked at */
    uint64_t ping_ms;    /* silence after which it is asked for a sign of life */
    uint64_t due_ms;     /* WAITING: the next attempt; DRAINING: from then on it may have to go */
    unsigned failures;   /* attempts since it last stood for a while */
    unsigned times_up;   /* how often it came up, ever */
    unsigned users;      /* calls that are being written to it or await a reply, deliveries to acknowledge */
    struct call_list writing; /* calls in CALL_WRITING (the lattice's: CALL_SENT), in the order of bytes */
    struct {                  /* of this time that it is up */
        uint64_t up_ms;       /* when it came up */
        uint64_t heard_ms;    /* when it was last heard */
        uint64_t asked_ms;    /* when it was last asked for a sign of life, or the question was on its way */
        uint64_t given;       /* bytes of messages that nats.c got to write */
        uint64_t written;     /* bytes of them that the kernel has taken */
        size_t capacity;      /* what nats.c's write buffer has grown to, about; it never shrinks */
        size_t max_payload;   /* the largest message that the server takes, headers included */
        bool headers;         /* the server takes headers */
        enum probe probe;     /* the last flush probe; see conn_probe() */
        uint64_t probed;      /* `given` behind it */
        uint64_t acked;       /* bytes that the peer's kernel had acknowledged, when it was last looked at */
        uint64_t acked_ms;    /* when they had become more */
        unsigned probes;      /* how many were sent: the number of the last */
        uint64_t probe_ms;    /* when that was */
        bool blocked;         /* the socket takes no more: wait for POLLOUT */
        uint64_t blocked_ms;  /* when it last did so */
        uint32_t watched;     /* what epoll looks for at its socket; 0: it does not know of it yet */
        uint32_t found;       /* what it found there in this turn */
        bool more;            /* there is input that epoll does not see: TLS had read ahead */
        bool hears_lattice;   /* a link's: its server passes the lattice's traffic on to it */
        struct guard guard;   /* reads what the server says */
        size_t pull_sid;      /* a link's: of the subscription to which consumers deliver */
        bool refused;         /* the server refuses some publishes or subscriptions: see on_refused() */
        bool news;            /* and the log does not have all of it yet */
        struct refusals publishes; /* the publishes among them; net.subs knows of subscriptions */
        uint64_t ask_ms;           /* when the subscriptions are tried again; 0: none is to be */
        unsigned asks;             /* how often they were in a row */
        uint64_t move_ms;          /* its server will close: when to try to leave it; 0: it will not */
        bool stays;                /* no other server was there for it */
        uint64_t busy_ms;          /* DRAINING: when it was last seen to be needed */
        const char *error;         /* why the loop wants it closed, or NULL */
    } io;
};

/* What becomes of messages and calls. A link that delivers: received = all others up to returned + open. */
enum count { RECEIVED, HANDLED, ERROR, TRAP, TIMEOUT, DROPPED, RETURNED, CALLS, OK, FAILED, COUNTS };
static const char *const count_names[] = {"received", "handled",  "error", "trap", "timeout",
                                          "dropped",  "returned", "calls", "ok",   "failed"};

enum function { PUBLISH, REQUEST, HANDLE_MESSAGE, FUNCTIONS };
static const char *const function_names[] = {"publish", "request", "handle-message"};

struct tally {
    uint64_t calls, errors, us; /* calls that ended, that ended without success, their time in all */
    char last_error[120];       /* as log_escape() leaves it */
};

/* protocol: broker-message of wasmcloud:messaging/types@0.2.0. The bytes belong to somebody else. */
struct message {
    struct span subject, body, reply_to;
    bool has_reply;
};

/* W3C trace context headers, or NULL. */
struct trace {
    const char *parent, *state;
};

/* A message for a component: a block of the arena, counted in its link's bytes. It is in its link's queue,
 * or in a call of handle-message that needs its bytes still. One of a consumer lives until JetStream was
 * told of it. */
struct delivery {
    struct delivery *next; /* behind it in the queue */
    uint32_t number;       /* in the order of arrival, to find its place again */
    uint32_t params_len;   /* of the encoded broker-message */
    uint16_t trace;        /* length of the trace headers, each with its NUL */
    uint16_t ack; /* length of the subject on which JetStream is told, with its NUL; 0: a subscription's */
    /* here begin trace headers and params of a subscription's; what follows has one of a consumer before */
    uint16_t since_s; /* when it came, in seconds, as far as 16 bits hold */
    uint8_t consumer; /* its place in the link's table */
    uint8_t epoch;    /* of the consumer, when it came */
    uint8_t conn;     /* the place of the connection that it came by; 0: that is gone */
    char bytes[];     /* ack subject, trace headers, params */
};

struct queue {
    struct delivery *first, *last;
};

/* What shows that a consumer's error is over. */
enum proof {
    PROOF_INFO, /* CONSUMER.INFO is answered */
    PROOF_PULL, /* a request for messages brings one, or stands */
    PROOF_ACK,  /* what JetStream is told of a message is not refused */
};

/* A pull consumer of JetStream, from which a link takes messages.
 *
 *     UNUSED ── consumers_apply ──▶ UNKNOWN ── CONSUMER.INFO ──▶ ASKED ── its answer ──▶ READY ⟲ MSG.NEXT
 *                                    ▲  consumer_failed, and a pause │                     │
 *                                    └───────────────────────────────┴─────────────────────┘
 */
enum consumer_state { CONSUMER_UNUSED, CONSUMER_UNKNOWN, CONSUMER_ASKED, CONSUMER_READY };

struct consumer {
    enum consumer_state state;
    struct link *link;
    json_t *entry;                    /* its entry in the link's settings; owned */
    struct js_name name;              /* in the entry */
    const char *group;                /* its priority group, or NULL; in the entry */
    char pin[JS_PIN_MAX];             /* what shows that the group is pinned to us, or "" */
    uint64_t max_messages, max_bytes; /* of one request, as the link wants it; 0: no limit */
    struct js_consumer allowed;       /* what JetStream says of it */
    uint8_t epoch;      /* how often it was made anew, as far as 8 bits hold: it counts messages anew then */
    bool removed;       /* from the settings: nothing more is asked for */
    uint64_t gone_ms;   /* removed: by then its last request has ended */
    bool known;         /* JetStream has said what it allows */
    bool same;          /* on this connection, too: it may be told there of messages that came by another */
    bool moved;         /* this connection took over from one before, and INFO is still to come on it */
    bool other;         /* the consumer on the connection before was another */
    bool large;         /* its next message is larger than what was asked for */
    bool brought;       /* the request under way brought something */
    unsigned wanted;    /* messages that it is still to bring; 0: none is under way */
    struct conn *asked; /* the connection of the last question */
    size_t reserved;    /* bytes of the backlog that are promised to it */
    unsigned open;      /* deliveries in the queue and with the component */
    uint32_t question;  /* number of the last question, in the inbox for its answer */
    uint32_t info;      /* number of the CONSUMER.INFO whose answer is awaited; 0: none is */
    uint32_t pull;      /* number of the request for messages that is under way; 0: none is */
    uint64_t last;      /* number of its last delivery, of those that JetStream counts for it, */
    uint64_t last_time; /* and the time of its message */
    uint64_t due_ms;    /* UNKNOWN: when to ask; else: when to give up waiting for a sign of it */
    uint64_t info_ms;   /* READY: when to ask for CONSUMER.INFO again */
    uint64_t progress_ms; /* when JetStream must hear that its open deliveries are worked on */
    unsigned failures;    /* since a request for messages brought one, or stood */
    enum proof needs;     /* what ends the error */
    /* PROOF_ACK: since the error JetStream was told of a message, and was asked for INFO behind that */
    enum { TOLD_NOTHING, TOLD, ASKED_BEHIND } told;
    char error[200]; /* why it gives no messages, or what is told of them does not get through; or "" */
};

/* A link.
 *
 *     FREE ── link_put ──▶ RUNNING ── link_leave ──▶ LEAVING ── all its calls have ended, link_free ──▶ FREE
 *                 │           ▲
 *                 └──▶ WRONG ─┘ ── link_leave ──▶ LEAVING      (its settings cannot be used as they are)
 */
enum link_state { LINK_FREE, LINK_WRONG, LINK_RUNNING, LINK_LEAVING };

/* Its component takes what comes; has all that it may have; and so has the queue. */
enum load { LOAD_LIGHT, LOAD_BEHIND, LOAD_FULL };

struct link {
    enum link_state state;
    bool delivers; /* it calls the component, for each message; else it serves publish and request */
    bool renew;    /* its settings are to be looked at again: there was no memory, or no place */
    char component[ID_MAX], name[ID_MAX];
    struct topic topic;
    json_t *definition;         /* in one form for all versions of hosts: deps/settings.h */
    json_t *settings;           /* what it runs with, merged with the defaults */
    char error[FAULT_LIST_MAX]; /* why it, or its newest settings, cannot be used, or "" */
    uint64_t leave_by_ms;       /* LEAVING: when its calls are ended in any case */
    struct conn *conn;          /* serves; NULL while none is free */
    struct conn *next;          /* comes up beside it, to take its place; or NULL */

    /* links that deliver */
    char subject[3 * ID_MAX]; /* where the component's host listens for our calls */
    bool subscribed;          /* it has subscriptions */
    bool overhears;           /* one of them has a wildcard: it may match what we send ourselves */
    bool has_consumers;       /* some places in the table below are, or were, in use */
    uint64_t max_in_flight, handler_timeout_ms;
    struct consumer consumers[CONSUMERS_PER_LINK];
    uint64_t copies_until_ms; /* until then a request of the connection before may stand */
    struct queue plain;       /* deliveries of subscriptions that wait for the component */
    struct queue later;  /* those that came by the newest connection, while an older one may bring more */
    struct queue stored; /* deliveries of consumers that do */
    bool stored_turn;    /* which is served next: stored, or plain */
    unsigned queued;     /* how many wait in all three */
    uint32_t arrivals;   /* number of the last delivery */
    enum load load;      /* the heaviest since next_pause_ms was set */
    uint64_t pause_until_ms, next_pause_ms;
    unsigned absences;        /* how often in a row nobody ran the component */
    uint64_t absent_until_ms; /* until then, what consumers delivered is not tried again */

    /* links that serve */
    struct call_list outbox; /* calls that wait for room in the connection, oldest first */
    uint64_t after_ms;       /* until then they wait for what the connection before it still writes, too */

    unsigned calls;     /* slots it holds, but for CALL_ANSWERED and CALL_SENT */
    unsigned in_flight; /* of them, CALL_INVOKED: what max_in_flight bounds */
    size_t bytes;       /* of deliveries and buffers */
    uint64_t counts[COUNTS];
    struct tally tallies[FUNCTIONS];
};

/* Bytes of a call of a component that wait: its parameters and trace headers, or its result. A block of the
 * arena, counted in its link's bytes. */
struct buffer {
    uint32_t len, room;     /* of the parameters, or of the result */
    uint16_t parent, state; /* lengths of the trace headers, with their NULs */
    char bytes[];           /* trace headers, then the rest */
};

/* What has been read of the result of handle-message, result<_, string>. It may come in any number of
 * chunks; nothing is kept but the beginning of its text. */
struct result {
    enum { AT_TAG, AT_LENGTH, AT_TEXT, AT_END } at;
    uint8_t shift, kept; /* of the next byte of the length; bytes of text */
    bool is_error;
    uint64_t len; /* of the text still to come */
    char text[120];
};

/* A call, over NATS. Rc is an inbox of the caller, Rs one of who serves. protocol: wrpc-transport-nats 0.22
 * to 0.29.
 *
 *     caller ─ parameters, or the first chunk of them ─▶ subject of the function        (reply: Rc)
 *     caller ◀─ empty: the handshake ── Rc                                              (reply: Rs)
 *     caller ─ the other chunks, then an empty message ─▶ Rs.params
 *     caller ◀─ the result, in chunks, then an empty message ── Rc.results
 *     caller ◀─ a string: the call failed (hosts of 1.0) ── Rc.error
 *
 * The caller *hears* us when it has registered its inboxes; hosts since 1.4.1 *acknowledge* a handshake by
 * an empty message to Rs.params. A call is a *slot* of a table while it lasts; its states:
 *
 * to a component:    TAKEN ── invoke ──▶ INVOKED ── delivery_end ──▶ FREE
 *                                           └── JetStream cannot be told ──▶ SETTLING ──▶ FREE
 *
 * from a component:  TAKEN ─┬─ more parameters ──▶ PARAMS ─┐
 *                           │         ┌────────────────────┤
 *                           ├─────────┴─ no room ──▶ OUTBOX ┤
 *                           └───────────┬────────────────┬──┘
 *                            publish ──▶ WRITING         └──▶ ASKED ◀── request
 *                                          └───── answer ──────┘
 *              ANSWERED ── the caller hears us, the lattice takes it ──▶ SENT ── written ──▶ FREE
 *                 ▲                                                       │
 *                 └──────────── the lattice's connection broke ───────────┘  (any state may be answered)
 */
enum call_state {
    CALL_FREE,
    CALL_TAKEN,    /* for as long as it takes to find out what becomes of it */
    CALL_INVOKED,  /* the component's host has it: its result is awaited */
    CALL_SETTLING, /* its result is here, and the connection away on which JetStream is to be told */
    CALL_PARAMS,   /* more parameters are to come; from here on: calls of components */
    CALL_OUTBOX,   /* its link's connection has no room */
    CALL_WRITING,  /* publish: the kernel has not taken its bytes yet */
    CALL_ASKED,    /* request: no reply yet */
    CALL_ANSWERED, /* its result waits until the caller hears us, and the lattice takes it */
    CALL_SENT,     /* the kernel has not taken the bytes of its result yet */
    CALL_STATES,
};

struct call {
    enum call_state state;
    bool is_request;    /* from a component: request, not publish */
    bool handshaken;    /* to a component: its host has answered */
    bool heard;         /* from a component: its caller has registered its inboxes */
    bool acknowledges;  /* from a component: its host answers a handshake */
    bool nobody;        /* from a component: nobody listened to its inbox when it was last written to */
    uint8_t absences;   /* how often in a row that was so */
    bool is_end;        /* no call: it tells a component's host that no parameters follow */
    bool unsure;        /* to a component: the lattice's connection broke; what came meanwhile is lost */
    enum count outcome; /* SETTLING: what became of it */
    uint16_t pause_ms;  /* to the next handshake (from a component), or end of the parameters (to one) */
    uint16_t brief_len; /* bytes of `brief` */
    uint32_t first;     /* to a component: bytes of the delivery's parameters that went out already */
    uint32_t sent;      /* bytes of the parameters (to a component), of the result (from one) that went out */
    char token[TOKEN_LEN];      /* of its inbox; NULs while nobody was told of one */
    struct call *next, *before; /* in the list of free slots, an outbox, or what is being written */
    struct link *link;
    struct conn *home;    /* of the lattice: where its inboxes are, or (SENT) which has its result */
    struct conn *conn;    /* WRITING, ASKED: the connection of the link that has it */
    uint64_t deadline_ms; /* of its state */
    uint64_t again_ms;    /* when a handshake, a result or the end of parameters is sent again; 0: never */
    uint64_t began_us;    /* when its component called, or was called */
    uint64_t out_at;      /* WRITING, SENT: done when the connection has written so many bytes */
    size_t needs;         /* PARAMS: bytes to have before it is worth another try to decode them */
    union {
        struct delivery *delivery; /* to a component: whose bytes it still needs; or NULL */
        struct buffer *buffer;     /* from a component: parameters, or a long result; or NULL */
    };
    union { /* this and what follows is not cleared when a slot is taken */
        struct {
            struct result result;    /* to a component */
            uint8_t head_len;        /* bytes of `head` */
            uint8_t head[CALL_HEAD]; /* beginning of its parameters: the subject, for log lines */
        };
        uint8_t brief[256]; /* ANSWERED: a short result, which needs no block */
    };
    size_t reply_len;
    char reply[INBOX_MAX]; /* the other side's inbox: Rc of a caller, Rs of the component's host */
};

static struct conn conns[CONNS_MAX];
static struct conn *lattice = &conns[0]; /* what is sent to hosts goes out there */
static struct conn *lattice_next;        /* comes up to take over from it, or NULL */
static struct link links[LINK_SLOTS];
static size_t conns_fresh = 1, links_fresh; /* from here on never used: their memory is not touched */
static struct link no_link = {.topic = {.kind = "lattice"}}; /* of calls that have none, or outlive theirs */

static struct {
    struct call slots[CALLS_MAX];
    struct call *free;    /* those that were used before */
    size_t fresh;         /* slots from this one on were never used */
    unsigned used;        /* not FREE */
    unsigned answered;    /* of them, ANSWERED */
    uint64_t next_due_ms; /* when one of them must be looked at */
    uint64_t repeated;    /* handshakes */
} calls;

/* What BACKLOG_MAX bounds, in bytes. The sum of `bytes` and `reserved` never exceeds it. */
static struct {
    size_t bytes;    /* of all deliveries and buffers */
    size_t plain;    /* of them, of deliveries of subscriptions: these leave `kept` free */
    size_t reserved; /* promised to what consumers have been asked for */
    size_t kept;     /* what all consumers together may have promised to them at any time */
    size_t share;    /* what one of them may */
} backlog;

/* Of the backlog, what each link may have in any case; and what all may share beyond that. */
enum { BACKLOG_OWN = BACKLOG_MAX / 32 / LINKS_MAX, BACKLOG_SHARED = BACKLOG_MAX - BACKLOG_OWN * LINKS_MAX };

/* Subscriptions that are no entry of `subscriptions`: an inbox, or the lattice's; and the order to shut down,
 * which is listened to until the end. */
enum item { ITEM_NONE = 0, ITEM_SHUTDOWN = 2 };

static struct {
    int epoll_fd;  /* what the loop waits for */
    int wake_fd;   /* an eventfd: other threads and signals wake the loop by writing to it */
    unsigned up;   /* connections that are up */
    bool wanted;   /* a link found no place for a connection: one that drains may have to go */
    natsMsg *kept; /* the message that is being looked at, if it is kept: an order of the host that waits */
    struct {
        natsSubscription *sub;
        struct conn *conn;
        uint64_t item; /* hash of the entry in `subscriptions`, or one of enum item */
        enum { SUB_STANDS, SUB_REFUSED, SUB_ASKED } answer; /* the server's; ASKED: tried again */
        bool told;                                          /* the log has it that it was refused */
        unsigned probe;                                 /* ASKED: the number of the first probe behind it */
    } subs[2 * SUBSCRIPTIONS_MAX + 2 * CONNS_MAX + 40]; /* old and new ones of a link that changes */
} net = {.epoll_fd = -1, .wake_fd = -1};

/* What this provider was started as, from the host data. */
static struct {
    char host_id[ID_MAX], lattice[ID_MAX], key[ID_MAX];
    struct settings_defaults defaults; /* its own configuration, which may be updated, and secrets */
    json_t *links;                     /* of the host data, until the lattice is up and all of them are put */
    size_t links_put;                  /* how many are */
    char refused[400];                 /* the last link that found no place, or "" */
    char nobody[INBOX_MAX];            /* an inbox to which nobody listens */
    struct topic topic;                /* for log lines about no link in particular */
} self = {.topic = {.kind = "provider"}};

/* Stopping: the calls end, then links drain, the host is answered, the rest of the draining is awaited. */
enum stop_state { RUNNING, STOP_CALLS, STOP_LINKS, STOP_LATTICE, STOP_DRAIN };
static struct {
    enum stop_state state;
    uint64_t deadline_ms;  /* of the state */
    bool unsubscribed;     /* from all of the lattice but its inboxes, and a probe was sent behind that */
    char reply[INBOX_MAX]; /* where the host waits for the answer to its order, or "" */
} stop;

/* Where parameters and results are put together. Nothing in it outlives one message. */
static uint8_t scratch[PARAMS_MAX];

static const char no_memory[] = "memory is short";
static const char too_large[] = "maximum payload exceeded: the body is larger than this provider passes on";
static const char no_headers[] = "the lattice's server takes no headers, and components cannot be called "
                                 "without: see no_header_support in its configuration";
static const struct span NOWHERE = {0}; /* a message that wants no reply */

#define EACH_LINK(l) \
    for (struct link *l = links; l < links + links_fresh; l++) \
        if (l->state != LINK_FREE)
#define EACH_CONN(c) \
    for (struct conn *c = conns; c < conns + conns_fresh; c++) \
        if (c->state != CONN_FREE)
#define EACH_CALL(c) \
    for (struct call *c = calls.slots; c < calls.slots + calls.fresh; c++) \
        if (c->state != CALL_FREE)
#define EACH_CONSUMER(k, l) \
    for (struct consumer *k = (l)->consumers; k < (l)->consumers + CONSUMERS_PER_LINK; k++) \
        if (k->state != CONSUMER_UNUSED)

/* The interfaces of the sections, in their order. */
static void read_clock(uint64_t slept_ms);

static bool lattice_change(void);
static void lattice_step(void);
static void lattice_subscribe(struct conn *c);
static void orders_step(void);
static bool orders_wait(void);

static void on_written(struct conn *conn);
static void on_answers_written(struct conn *conn);
static void answer(struct call *c, const uint8_t *result, size_t len);

static void dispatch(struct link *l);
static bool link_takes_work(const struct link *l);
static bool link_may_be_read(struct link *l);
static bool link_waits_for_older(const struct link *l, const struct conn *c);
static struct delivery *delivery_make(struct link *l, natsMsg *msg, struct consumer *k, const char **error);
static void queue_push(struct link *l, struct queue *q, struct delivery *d);
static void queue_join(struct link *l);
static void queue_return(struct link *l, struct delivery *d);

static void consumers_apply(struct link *l);
static void consumers_step(struct link *l);
static void consumers_withdraw(struct link *l);
static uint64_t consumers_next_ms(const struct link *l);
static bool js_settle(struct link *l, const struct delivery *d, enum count outcome);
static bool js_nak(struct link *l, const struct delivery *d, uint64_t delay_ms);

static struct call *call_take(struct link *l);
static unsigned calls_free_for(const struct link *l);
static void call_set(struct call *c, enum call_state to, uint64_t deadline_ms);
static void call_free(struct call *c);
static bool call_has_delivery(const struct call *c);
static size_t buffer_size(const struct buffer *b);
static void calls_step(void);
static void calls_make_room(void);
static void count_call(struct link *l, enum function f, enum count outcome, uint64_t began_us,
                       const char *error);
static void call_token(struct call *c, char letter);
static struct span call_inbox(struct call *c, const struct conn *on, char out[INBOX_MAX + TOKEN_LEN]);
static struct span reply_of(const struct call *c);
static struct span client_of(struct span inbox);
static bool is_inbox(struct span s);
static struct call *call_of_subject(const struct conn *on, const char *subject, const char **suffix);
static void on_params(struct call *c, natsMsg *msg);
static void on_params_skipped(struct call *c);
static void on_call_skipped(const char *reply, bool is_request);
static void on_caller_absent(struct call *c, natsMsg *msg);
static void on_handshake(struct call *c, natsMsg *msg);
static void on_outcome(struct call *c, const char *suffix, natsMsg *msg);
static void delivery_doubt(struct call *c);
static bool send_to(struct span inbox, struct span suffix, struct span reply, const void *data, size_t len);
static bool send_chunks(struct span inbox, struct span suffix, const void *data, size_t len, uint32_t *sent);
static void send_padding(struct span inbox);
static bool send_handshake(struct span caller, struct call *c);
static bool send_answer(struct span caller, struct call *c, const uint8_t *result, size_t len);
static void send_early(struct call *c);
static void send_error(struct span caller, const char *text);
static void call_deliver(struct call *c);
static void call_sent(struct call *c);
static struct span call_suffix(const struct call *c);
static void answers_resume(const struct conn *lost);
static void answers_move(void);
static bool is_amid_chunks(void);
static bool has_calls(const struct conn *conn);
static void call_release(struct call *c);
static size_t write_error(uint8_t result[ERROR_MAX + 8], const char *prefix, const char *text);
static struct buffer *buffer_make(struct link *l, struct trace t, const void *bytes, size_t len, size_t room);
static void buffer_free(struct link *l, struct buffer *b);
static uint8_t *buffer_bytes(struct buffer *b);
static bool backlog_has_room(const struct link *l, size_t size);
static void backlog_count(struct link *l, size_t bytes);

/* What became of decoding: whole, more bytes are needed, or it can never become whole. */
enum decoded { WHOLE, NEEDS_MORE, MALFORMED };
struct reader {
    const uint8_t *start, *at, *end;
    size_t needs; /* after NEEDS_MORE: bytes, counted from the start */
};
static enum decoded read_u32(struct reader *r, uint32_t *value);
static enum decoded read_publish(struct reader *r, struct message *m);
static enum decoded read_request(struct reader *r, struct message *m, uint32_t *timeout_ms);
static enum decoded read_result(struct result *r, const uint8_t *bytes, size_t len);
static size_t message_size(const struct message *m);
static size_t write_message(uint8_t *out, const struct message *m);
static void result_start(struct result *r);

static struct link *link_of(const char *component, const char *name);
static void warn_of_slip(void *topic, const char *text);
static bool link_put(const json_t *json);
static bool link_waits(const struct link *l);
static void link_renew(struct link *l);
static void link_step(struct link *l);
static uint64_t link_next_ms(const struct link *l);
static void link_report(const struct link *l, bool asked);
static void link_subscribe(struct link *l, struct conn *c, const json_t *settings);
static uint64_t item_hash(struct span item);
static bool link_move(struct link *l);

enum posted { POSTED, POST_DOWN, POST_FULL, POST_TOO_LARGE, POST_BROKEN, POST_NO_REPLY };
static enum posted post(struct conn *c, struct span subject, struct span reply, const struct header *headers,
                        const void *data, size_t len);
static const char *const posted_text[] = {
    "",
    "the connection to the server is down",
    "the server reads too slowly, or memory is short",
    "maximum payload exceeded: the server takes no message of this size",
    "out of memory",
    "no reply can come: this user may not subscribe to its inbox; custom_inbox_prefix names another",
};
static struct conn *conn_start(struct link *l, json_t *settings);
static void conn_begin(struct conn *c, json_t *settings, struct topic *topic);
static void conn_drain(struct conn *c, uint64_t within_ms);
static void conn_step(struct conn *c);
static uint64_t conn_next_ms(const struct conn *c);
static void conn_read(struct conn *c);
static void conn_write(struct conn *c);
static void conn_probe(struct conn *c);
static bool is_flushed(const struct conn *c);
static bool is_ready(const struct conn *c);
static bool is_overdue(const struct conn *c);
static size_t conn_waiting(const struct conn *c);
static bool conn_has_room(struct conn *c, size_t bytes);
static bool conn_takes(struct conn *c);
static bool conn_subscribe(struct conn *c, const char *subject, const char *queue, uint64_t item);
static void conn_unsubscribe(struct conn *c, bool all);
static bool conn_is_open(const struct conn *c);
static bool conn_is_well(const struct conn *c);
static char inbox_kind(const struct conn *c, const char *subject);
static size_t inbox_make(char out[INBOX_MAX], const char *prefix);
static uint64_t retry_at(unsigned failures);
static bool inbox_is_refused(const struct conn *c, char kind);
static const char *refusals_error(const struct conn *c, char text[400]);

static void on_health(natsMsg *msg);
static bool on_shutdown(natsMsg *msg, const json_t *json);
static void on_service(const char *verb, natsMsg *msg);
static void service_start(const char *instance);
static void service_subscribe(struct conn *c);
static void stop_begin(const char *why);
static bool stop_step(void);
static bool arguments_answer(int argc, char **argv);
static void host_data_apply(const json_t *host);
static json_t *lattice_settings(const json_t *host);
static void help_print(FILE *file);

/*
 * ---- 3 main, and the loop ---------------------------------------------------------------------------------
 *
 * One turn: sleep until something can be done; read; end what is overdue; start what can be; write; answer
 * what the writing settled. Nothing in it waits but epoll.
 *
 * Interface: read_clock, wake_loop (any thread), wake_at (a deadline of a call), is_due (any other).
 */
static void run(pid_t parent);
static void report_counts(const char *event, bool asked);
static void on_signal(int number);
static volatile sig_atomic_t signalled, report_wanted, parent_changed;

#ifndef PROVIDER_WITHOUT_MAIN /* the unit tests include this file */
int main(int argc, char **argv) {
    pid_t parent = process_begin();
    arena_serve_loop();
    json_set_alloc_funcs(json_alloc, json_free);
    if (sodium_init() < 0) die("libsodium does not start: no source of random bytes");
    json_object_seed(randombytes_random()); /* jansson's own is of /dev/urandom, which may not be there */
    if (arguments_answer(argc, argv)) return 0;
    if (argc > 1 || isatty(STDIN_FILENO)) {
        help_print(stderr);
        return 2;
    }
    read_clock(0);
    json_t *host = host_data_read(STDIN_FILENO, true, scratch, sizeof(scratch));
    host_data_apply(host);
    (void)defaults_slips(&self.defaults, &(struct listener){warn_of_slip, &self.topic});
    json_t *settings = lattice_settings(host);
    service_start(host_text(host, "instance_id"));
    json_decref(host);
    net.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    net.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event woken = {.events = EPOLLIN};
    if (epoll_ctl(net.epoll_fd, EPOLL_CTL_ADD, net.wake_fd, &woken) < 0) die("epoll: %s", strerror(errno));
    process_prepare(on_signal, THREAD_STACK);
    natsStatus s = nats_Open(-1);
    if (s != NATS_OK) die("nats.c does not start, perhaps for want of memory: %s", natsStatus_GetText(s));
    say(&self.topic, LEVEL_INFO, PROVIDER_NAME " " PROVIDER_VERSION " on lattice %s", self.lattice);
    (void)snprintf(no_link.topic.name, sizeof(no_link.topic.name), "%s", self.lattice);
    self.nobody[inbox_make(self.nobody, "_INBOX.nobody") - 1] = 0; /* no dot at its end */
    lattice->is_lattice = lattice->vital = true;
    conn_begin(lattice, settings, &no_link.topic);
    run(parent);
    EACH_LINK(l) log_tick(&l->topic, true);
    report_counts("stopped", false);
    _exit(0); /* exit() would take nats.c apart while its threads, and those that connect, still use it */
}
#endif

/* Time in which the process was not run (SIGSTOP, a machine that stands still) does not count: what came
 * meanwhile waits in the sockets, and is to be read before a deadline is over. `slept_ms`: what the loop
 * may have slept since the last call. Of a machine that is suspended the clock stands still by itself. */
static void read_clock(uint64_t slept_ms) {
    static uint64_t lost_us;
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t us = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000 - lost_us;
    uint64_t most = now_us + (slept_ms + STOPPED_MS) * 1000;
    if (now_us > 0 && us > most) {
        lost_us += us - most;
        us = most;
    }
    now_us = us;
    now_ms = now_us / 1000;
}

static void wake_loop(void) {
    uint64_t one = 1;
    if (write(net.wake_fd, &one, sizeof(one)) < 0) return; /* EAGAIN: it is awake already */
}

static void wake_at(uint64_t ms) { calls.next_due_ms = MIN(calls.next_due_ms, ms); }

static void on_signal(int number) {
    int saved = errno;
    if (number == SIGUSR1) report_wanted = 1;
    else if (number == PROCESS_PARENT_CHANGED) parent_changed = 1;
    else signalled = number;
    wake_loop();
    errno = saved;
}

/* What the loop goes by when it sleeps. */
static struct {
    uint64_t from_ms, until_ms; /* the last sleep, as it was meant */
    uint64_t tick_ms;           /* the next tick, if there is one to be */
    bool again;                 /* a connection changed its state: what that lets others do is done at once */
    unsigned idle;              /* turns in a row without a sleep before them, or anything to read */
} loop;

/* Whether a time has come, of which next_due_ms() knows: the loop must not have slept beyond it. */
static bool is_due(uint64_t at_ms) {
    assert(now_ms <= at_ms || at_ms <= loop.from_ms || at_ms >= loop.until_ms);
    return now_ms >= at_ms;
}

/* Whether something waits that no event announces: memory, a slot, bytes that a peer acknowledges. And while
 * there are calls no sleep is long, so that a long time without being run is not taken for one: see
 * read_clock(). */
static bool needs_tick(void) {
    if (calls.used > 0 || (orders_wait() && stop.state == RUNNING)) return true;
    EACH_LINK(l) {
        if (l->queued > 0 || link_waits(l)) return true;
    }
    return false;
}

/* When there is something to do that nobody else wakes the loop for: the first of all deadlines. None is kept
 * here a second time; each is next to what it is for, and who acts on it asks is_due(). */
static uint64_t next_due_ms(void) {
    uint64_t log_ms = MAX(loop.tick_ms, now_ms + log_wait_ms()), due_ms = MIN(calls.next_due_ms, log_ms);
    if (loop.again) return now_ms;
    if (needs_tick()) due_ms = MIN(due_ms, loop.tick_ms);
    if (stop.state != RUNNING) due_ms = MIN(due_ms, stop.deadline_ms);
    EACH_CONN(c) due_ms = MIN(due_ms, conn_next_ms(c));
    EACH_LINK(l) due_ms = MIN(due_ms, link_next_ms(l));
    return MAX(due_ms, now_ms);
}

/* What the loop waits for at a connection, beside errors. The kernel keeps it, so that a turn costs little
 * more with many links than with one: poll() would look at all of them, each time. */
static void conn_watch(struct conn *c, uint32_t events) {
    struct epoll_event e = {.events = events | EPOLLERR, .data.ptr = c};
    int how = c->io.watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (e.events == c->io.watched) return;
    if (epoll_ctl(net.epoll_fd, how, c->fd, &e) < 0) c->io.error = "epoll: the kernel is short of memory";
    c->io.watched = e.events;
}

static void wait_and_read(void) {
    UNSET struct epoll_event events[CONNS_MAX + 1];
    /* While the lattice's server reads slowly, nothing is read: what links bring would only wait, and who
     * calls on the lattice could not be answered. */
    bool blocked = lattice->state == CONN_UP && lattice->io.blocked;
    bool full = blocked && conn_waiting(lattice) > WRITE_MAX / 2, more = false;
    /* The lattice itself is not read already when a quarter of the slots is in use: who is taken in gets an
     * answer, which holds a slot until it is written. Only the writing frees it, and no message that is to be
     * read: so this cannot block itself. */
    bool busy = blocked && calls.used > CALLS_MAX / 4;
    EACH_CONN(c) {
        if (!conn_is_open(c)) continue;
        /* who leaves is read in any case; but a link that has moved pauses on both connections */
        bool pauses = c->link && (c->state == CONN_UP || link_takes_work(c->link)) &&
                      (!link_may_be_read(c->link) || link_waits_for_older(c->link, c));
        bool reads = !full && !(busy && c == lattice) && !pauses;
        /* it is we who do not listen; but a lattice that takes nothing either is dead */
        if (!reads && (c != lattice || conn_takes(c))) c->io.heard_ms = now_ms;
        more |= reads && c->io.more;
        c->io.found = 0;
        conn_watch(c, (reads ? EPOLLIN : 0) | (atomic_load(&c->wants_write) ? EPOLLOUT : 0));
    }
    loop.from_ms = now_ms;
    loop.until_ms = more ? now_ms : next_due_ms(); /* within a day, for JWTs */
    loop.again = false;
    uint64_t sleep_ms = loop.until_ms - now_ms;
    int count = epoll_wait(net.epoll_fd, events, CONNS_MAX + 1, (int)sleep_ms);
    if (count < 0 && errno != EINTR) die("epoll: %s", strerror(errno));
    loop.idle = count == 0 && sleep_ms == 0 ? loop.idle + 1 : 0;
    assert(loop.idle < 10000); /* something is due, and nobody does it */
    read_clock(sleep_ms);
    for (struct epoll_event *e = events; e < events + MAX(count, 0); e++) {
        uint64_t ignored;
        struct conn *c = e->data.ptr; /* NULL: the loop was woken */
        if (c) c->io.found = e->events;
        else if (read(net.wake_fd, &ignored, sizeof(ignored)) < 0 && errno != EAGAIN)
            die("eventfd: %s", strerror(errno));
    }
    EACH_CONN(c) {
        uint32_t found = c->io.found;
        if (!conn_is_open(c)) continue; /* or what another said has ended it */
        if (c->io.blocked) c->io.blocked_ms = now_ms;
        if (found & (EPOLLOUT | EPOLLERR | EPOLLHUP)) c->io.blocked = false;
        bool reads = found & (EPOLLIN | EPOLLERR | EPOLLHUP) || (c->io.watched & EPOLLIN && c->io.more);
        if (reads) conn_read(c);
    }
}

/* What happened so far, for SIGUSR1 and at the end. */
static void report_counts(const char *event, bool asked) {
    EACH_LINK(l) link_report(l, asked);
    say(&self.topic, LEVEL_INFO,
        "%s: %zu kB of the arena in use, at most %zu; %" PRIu64 " blocks taken, %" PRIu64
        " log lines lost, %" PRIu64 " handshakes repeated",
        event, arena_counts.in_use / 1024, arena_counts.peak / 1024, arena_counts.taken, logger.lost,
        calls.repeated);
}

/* What is done once a second, if the loop is awake, as next_due_ms() sees to when it has to be; and at once,
 * when our parent may be another. */
static void tick(pid_t parent) {
    if (!parent_changed && now_ms < loop.tick_ms) return;
    parent_changed = 0;
    loop.tick_ms = now_ms + TICK_MS;
    logger.due_ms = UINT64_MAX;
    log_tick(&self.topic, false);
    log_tick(&no_link.topic, false);
    EACH_LINK(l) log_tick(&l->topic, false);
    if (orders_wait() && stop.state == RUNNING) orders_step();
    EACH_LINK(l) {
        if (link_waits(l)) link_renew(l);
    }
    if (getppid() != parent) stop_begin("the process that started it has ended");
}

static void run(pid_t parent) {
    do {
        arena_wipe(false); /* what an order of the host may have set on */
        wait_and_read();
        if (report_wanted) {
            report_wanted = 0;
            report_counts("so far", true);
        }
        if (signalled) stop_begin(strsignal(signalled));
        tick(parent);
        calls_step();
        calls_make_room();
        conn_step(lattice);
        EACH_LINK(l) {
            dispatch(l);
            consumers_step(l);
        }
        EACH_CONN(c) {
            if (c == lattice) continue;
            conn_write(c);
            if (c->is_lattice) {
                on_answers_written(c);
            } else if (c->writing.first) {
                read_clock(0); /* how long calls took counts the writing */
                on_written(c);
            }
            conn_step(c);
        }
        EACH_LINK(l) link_step(l);
        lattice_step();
        conn_write(lattice);
        on_answers_written(lattice);
    } while (!stop_step());
}

/* The memory that is reserved; and the promises of provider.h, kept by the compiler. */
enum {
    RESERVED_THREADS = THREADS_MAX * THREAD_STACK,
    RESERVED_TABLES = sizeof(links) + sizeof(conns) + sizeof(calls) + sizeof(scratch) + sizeof(net),
    RESERVED = ARENA_BYTES + RESERVED_TABLES + RESERVED_THREADS,
};
#ifndef SYSTEM_MALLOC
_Static_assert(RESERVED <= RESERVED_MAX,
               "more than RESERVED_MAX: lower a limit of provider.h, or raise it knowingly");
#endif
_Static_assert(HOST_DATA_MAX <= sizeof(scratch),
               "host data is read into scratch, which has PARAMS_MAX bytes");
_Static_assert(CALLS_MAX <= 1 << (4 * SLOT_LEN), "an inbox has SLOT_LEN digits for the slot");
_Static_assert(CONNS_MAX <= UINT8_MAX, "a delivery has a byte for its connection");
_Static_assert(sizeof(time_t) == 8, "time ends in 2038: compile with -D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64");

/*
 * ---- 4 the lattice ----------------------------------------------------------------------------------------
 *
 * What comes over the connection to the hosts: calls of components, the host's orders, questions about
 * health, and answers to our own calls. protocol: wasmCloud, crates/core, host.rs and rpc.rs;
 * crates/provider-sdk, provider.rs.
 *
 * To another server its connection changes like a link's: make before break. Inboxes are a connection's, so
 * the calls that began before go on by the old one, which drains until they have ended. An order that comes
 * by both is obeyed twice, and the sequence of the new one last.
 *
 * Interface: lattice_up, lattice_message, lattice_skipped, lattice_change, lattice_subscribe (connections),
 * lattice_step (the loop), orders_step and orders_wait (the loop, health).
 */
static void on_publish(natsMsg *msg);
static void on_request(natsMsg *msg);
static bool on_put(natsMsg *msg, const json_t *json);
static bool on_delete(natsMsg *msg, const json_t *json);
static bool on_config(natsMsg *msg, const json_t *json);
struct subject;
static void on_order(struct conn *by, const struct subject *s, natsMsg *msg);

#define CONSUMER "%s.%s.wrpc.0.0.1.wasmcloud:messaging/consumer@0.2.0."

/* Control first, since a link that is put before the server knows its subject is lost. The functions are
 * served in a queue group, so that several instances of the provider share the calls. */
static struct subject {
    const char *form;           /* with places for the lattice, and for the provider's key */
    void (*take)(natsMsg *msg); /* what comes there */
    bool (*obey)(natsMsg *msg,
                 const json_t *json); /* or an order, as JSON; false: there is no memory for it */
    bool gives_memory;                /* an order that does not wait for memory, since it gives some back */
    bool sealed;                      /* sent to our public xkey in place of the provider's key */
    bool shared;                      /* in the queue group */
    char name[3 * ID_MAX];
} subjects[] = {
    {"wasmbus.rpc.%s.%s.linkdefs.put", .obey = on_put},
    {"wasmbus.rpc.%s.%s.linkdefs.put", .obey = on_put, .sealed = true},
    {"wasmbus.rpc.%s.%s.linkdefs.del", .obey = on_delete, .gives_memory = true},
    {"wasmbus.rpc.%s.%s.config.update", .obey = on_config},
    {"wasmbus.rpc.%s.%s.default.shutdown", .obey = on_shutdown, .gives_memory = true},
    {"wasmbus.rpc.%s.%s.health", .take = on_health},
    {CONSUMER "request", .take = on_request, .shared = true},
    {CONSUMER "publish", .take = on_publish, .shared = true},
};
enum { SUBJECT_REQUEST = COUNT_OF(subjects) - 2, SUBJECT_PUBLISH };
static char queue_group[2 * ID_MAX];

static void lattice_subscribe(struct conn *c) {
    const char *xkey = xkey_public();
    (void)snprintf(queue_group, sizeof(queue_group), "%s.%s", self.lattice, self.key);
    for (struct subject *s = subjects; s < subjects + COUNT_OF(subjects); s++) {
        if (s->sealed && !xkey) continue;
        (void)snprintf(s->name, sizeof(s->name), s->form, self.lattice, s->sealed ? xkey : self.key);
        enum item item = s->obey == on_shutdown ? ITEM_SHUTDOWN : ITEM_NONE;
        (void)conn_subscribe(c, s->name, s->shared ? queue_group : NULL, item);
    }
    service_subscribe(c);
}

/* Orders that came by the lattice's next connection: they are obeyed when it takes over, behind those of the
 * old one, which it has as well. So the last word is what it would be by one connection. */
enum { EARLY_MAX = 16 };
static struct {
    struct {
        const struct subject *subject;
        natsMsg *msg;
    } of[EARLY_MAX];
    size_t count;
} early;

/* The first of them is obeyed, or forgotten, since another connection has it. */
static void early_end_first(bool obey) {
    const struct subject *s = early.of[0].subject;
    natsMsg *msg = early.of[0].msg;
    memmove(early.of, early.of + 1, --early.count * sizeof(early.of[0]));
    arena_wipe(true); /* it may hold passwords */
    if (obey) on_order(lattice, s, msg);
    if (net.kept == msg) net.kept = NULL;
    else natsMsg_free(msg);
}

static void early_end(bool obey) {
    while (early.count > 0) early_end_first(obey);
}

/* The next connection takes over, and the other is drained. */
static void lattice_take_over(void) {
    struct conn *old = lattice;
    lattice = lattice_next;
    lattice_next = NULL;
    if (old->state == CONN_UP) answers_move();
    else answers_resume(NULL);
    conn_drain(old, LEAVE_MS);
    early_end(true);
    orders_step();
}

/* A connection is up: all is subscribed to, and what waited for it goes out. */
static void lattice_up(struct conn *c) {
    if (c == lattice) answers_resume(NULL);
    if (stop.state != RUNNING) return;
    if (c != lattice) early_end(false);
    lattice_subscribe(c);
    conn_write(c); /* before anything slower */
    if (c == lattice) orders_step();
    else if (lattice->state == CONN_UP) conn_probe(c);
    else lattice_take_over();
}

/* Its server will close: a connection to another takes over. False: there is no place for one now. */
static bool lattice_change(void) {
    if (!lattice_next && stop.state == RUNNING)
        lattice_next = conn_start(NULL, json_incref(lattice->settings));
    return lattice_next;
}

/* The next connection takes over when the servers of the cluster know its subscriptions, and no value is
 * under way in pieces, which two ways could bring in another order. */
static void lattice_step(void) {
    struct conn *next = lattice_next;
    if (!next || next->state != CONN_UP) return;
    if (next->io.probe == PROBE_NONE) conn_probe(next);
    if (is_ready(next) && now_ms - next->io.up_ms >= OVERLAP_MS && !is_amid_chunks()) lattice_take_over();
}

/* A message that came over a connection of the lattice. */
static void lattice_message(struct conn *by, natsMsg *msg) {
    const char *subject = natsMsg_GetSubject(msg);
    if (inbox_kind(by, subject) == 'c') { /* of a call; a handshake that comes too late is answered as well */
        const char *suffix;
        struct call *c = call_of_subject(by, subject, &suffix);
        bool to_component = c && c->state == CALL_INVOKED, from_component = c && c->state >= CALL_PARAMS;
        if (!*suffix && from_component) on_caller_absent(c, msg);
        else if (!*suffix) on_handshake(to_component ? c : NULL, msg);
        else if (to_component) on_outcome(c, suffix, msg);
        else if (from_component && strcmp(suffix, ".params") == 0) on_params(c, msg);
        return;
    }
    for (size_t i = COUNT_OF(subjects); i-- > 0;) { /* the functions first */
        if (strcmp(subject, subjects[i].name) != 0) continue;
        if (subjects[i].take) subjects[i].take(msg);
        else on_order(by, &subjects[i], msg);
        return;
    }
    if (strncmp(subject, "$SRV.", 5) == 0) on_service(subject + 5, msg);
}

/* Orders of the host that found no memory, the oldest first. */
enum { ORDERS_MAX = 64 };
static struct {
    struct {
        const struct subject *subject;
        natsMsg *msg;
    } of[ORDERS_MAX];
    size_t count, bytes;
    uint64_t lost_ms; /* when one was lost; 0: none was, or a link was put later */
} orders;

static void order_is_lost(void) { orders.lost_ms = now_ms; }

static bool orders_wait(void) { return orders.count > 0 || (self.links && lattice->times_up > 0); }

static bool on_put(natsMsg *msg, const json_t *json) {
    (void)msg;
    if (!link_put(json)) return false;
    if (now_ms - orders.lost_ms >= LOST_ORDER_MS) orders.lost_ms = 0; /* it may be the link of that order */
    return true;
}

/* Reads an order, and obeys it. False: there is no memory for that. */
static bool order_obey(const struct subject *s, natsMsg *msg) {
    const char *text = natsMsg_GetData(msg);
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    bool done = true;
    json_begin();
    /* what gives memory back must find enough to arrive */
    if (!s->gives_memory && !arena_spares(3 * len + 64, len + 64, 0)) return false;
    json_t *json = json_read(text, len, NULL);
    if (json_is_short() && s->gives_memory) {
        json_begin();
        json = json_read_urgent(text, len);
    }
    if (json_is_short()) return false;
    if (json_is_object(json)) done = s->obey(msg, json);
    else say(&self.topic, LEVEL_ERROR, "what came on %s is no JSON object and was ignored", s->name);
    json_decref(json);
    return done;
}

static bool orders_have_room(size_t len) {
    return orders.count < ORDERS_MAX && orders.bytes + len <= 2 * PARAMS_MAX;
}

/* Loses the newest put that waits, for a delete behind it: its link may be the one that is to go. False: none
 * does. */
static bool orders_drop_put(void) {
    size_t i = orders.count;
    while (i > 0 && orders.of[i - 1].subject->gives_memory) i--;
    if (i-- == 0) return false;
    order_is_lost();
    say(&self.topic, LEVEL_ERROR, "memory is short: what came on %s is lost", orders.of[i].subject->name);
    orders.bytes -= (size_t)natsMsg_GetDataLength(orders.of[i].msg);
    natsMsg_free(orders.of[i].msg);
    memmove(orders.of + i, orders.of + i + 1, (--orders.count - i) * sizeof(orders.of[0]));
    return true;
}

/* An order of the host. What finds no memory waits, and what comes after it waits behind it. A delete and a
 * shutdown are obeyed at once: they give memory back. But a delete waits as well, for the puts before it. */
static void on_order(struct conn *by, const struct subject *s, natsMsg *msg) {
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    bool behind = orders_wait() && s->obey != on_shutdown, done = false;
    if (stop.state != RUNNING && s->obey != on_shutdown) return; /* an order after a signal gets its answer */
    /* by a connection that drains: the one that took over has it, too */
    if (by != lattice && by != lattice_next && s->obey != on_shutdown) return;
    arena_wipe(true); /* URLs have passwords: the message, and what nats.c has read it into */
    by->io.guard.wipe = IO_BUFFER;
    if (by == lattice_next && s->obey != on_shutdown) {
        if (early.count == EARLY_MAX) early_end_first(true); /* sooner, but not behind this one */
        early.of[early.count].subject = s;
        early.of[early.count++].msg = net.kept = msg;
        return;
    }
    if (!behind || s->gives_memory) done = order_obey(s, msg);
    if (stop.state != RUNNING || (done && !behind)) return;
    while (!orders_have_room(len) && s->gives_memory && orders_drop_put()) {}
    if (!orders_have_room(len)) {
        if (done) return; /* no put waits that it would have to be obeyed behind once more */
        order_is_lost();
        say(&self.topic, LEVEL_ERROR, "memory is short: what came on %s is lost", s->name);
        return;
    }
    say(&self.topic, LEVEL_WARN, "memory is short: what came on %s waits", s->name); /* or what came before */
    orders.of[orders.count].subject = s;
    orders.of[orders.count++].msg = net.kept = msg;
    orders.bytes += len;
}

/* A message on the lattice was passed over, since it is too large. */
static void lattice_skipped(const struct conn *by, const char *subject, const char *reply) {
    const char *suffix;
    struct call *c = inbox_kind(by, subject) == 'c' ? call_of_subject(by, subject, &suffix) : NULL;
    if (c) on_params_skipped(c);
    for (size_t i = 0; i < COUNT_OF(subjects); i++) {
        if (strcmp(subject, subjects[i].name) != 0) continue;
        if (subjects[i].shared) on_call_skipped(reply, i == SUBJECT_REQUEST);
        if (subjects[i].obey) order_is_lost();
    }
}

/* What found no memory though half of the arena was free is lost: it would hold up all that comes after. */
static bool order_never_fits(bool idle, const char *from) {
    if (!idle) return false;
    order_is_lost();
    say(&self.topic, LEVEL_ERROR, "what came on %s takes too much memory, and is lost", from);
    return true;
}

/* Tries again what waits: the links of the host data, then orders. */
static void orders_step(void) {
    static unsigned tries; /* of the next link: the list itself may be what fills the arena */
    size_t done = 0;
    if (orders.count > 0) arena_wipe(true); /* they may hold passwords */
    for (; self.links_put < json_array_size(self.links); self.links_put++) {
        bool put = link_put(json_array_get(self.links, self.links_put));
        if (!put && !order_never_fits(arena_is_idle() || ++tries == 60, "the host data")) return;
        tries = 0;
    }
    json_decref(self.links);
    self.links = NULL;
    self.links_put = 0;
    for (; stop.state == RUNNING && done < orders.count; done++) {
        const struct subject *s = orders.of[done].subject;
        bool idle = arena_is_idle();
        if (!order_obey(s, orders.of[done].msg) && !order_never_fits(idle, s->name)) break;
        orders.bytes -= (size_t)natsMsg_GetDataLength(orders.of[done].msg);
        natsMsg_free(orders.of[done].msg);
    }
    orders.count -= done;
    memmove(orders.of, orders.of + done, orders.count * sizeof(orders.of[0]));
}

/*
 * ---- 5 publish, request -----------------------------------------------------------------------------------
 *
 * A component calls publish or request. Its message goes to the link's connection, and the call ends
 *
 *     publish:  when the kernel has taken the bytes, or the connection is gone: as long as that stands, what
 *               it was given goes out
 *     request:  when the reply is here, or its time is over, or its caller is gone
 *
 *     on_call ─▶ decode ─┬─ whole ─────────▶ call_forward ─┬─▶ WRITING ─ on_written ─▶ call_end_ok ─▶ answer
 *                        └─▶ PARAMS ─ on_params ──▲        ├─▶ ASKED ─── on_reply ───▶ call_end_ok
 *                                                          └─▶ OUTBOX ─ outbox_step ─▶ WRITING or ASKED
 *
 * Error texts are the reference provider's, because components may show them to people.
 *
 * Interface: on_call, on_params, on_…_skipped, on_caller_absent (the lattice), on_reply, on_written,
 * on_answers_written, outbox_step (connections and the loop), call_expire (deadlines), link_calls_end
 * (links), answer (ends of parameters).
 */

/* A call while it is looked at: everything points into the message, or into its buffer. */
struct incoming {
    struct link *link;
    const char *component, *name; /* what the caller says that they are; or "?" */
    struct span caller;           /* Rc, see section 8 */
    bool is_request;
    bool acknowledges; /* its host answers the handshake: 1.4.1 and later */
    uint32_t timeout_ms;
    struct message message;
    struct trace trace;
    const uint8_t *params;
    size_t params_len;
};

static const char no_parameters[] = "its parameters do not decode";
static const char caller_gone[] = "nobody waits for it any more";

static enum decoded incoming_read(struct incoming *in, size_t *needs);
static struct trace trace_from(const char *parent, const char *state);
static struct call *call_accept(struct link *l, const struct incoming *in);
static void call_refuse(const struct incoming *in, bool traps, const char *why);
static void call_forward(struct call *c, const struct incoming *in);
static void call_end_ok(struct call *c, const uint8_t *result, size_t len);
static void call_end_error(struct call *c, const char *error);
static void call_end_trap(struct call *c, const char *error);
static void call_end_unanswered(struct call *c, const char *prefix, const char *error);

/* A message on the subject of publish or request. */
static void on_call(natsMsg *msg, bool is_request) {
    struct header h[HEADERS_MAX] = {
        {"source-id",   NULL},
        {"link-name",   NULL},
        {"traceparent", NULL},
        {"tracestate",  NULL}
    };
    headers_read(msg, h);
    struct incoming in = {
        .component = h[0].value ? h[0].value : "?",
        .name = h[1].value ? h[1].value : "default", /* hosts of 1.0 give no name */
        .caller = span_of(natsMsg_GetReply(msg)),
        .is_request = is_request,
        .acknowledges = h[1].value,
        .trace = trace_from(h[2].value, h[3].value),
        .params = (const uint8_t *)natsMsg_GetData(msg),
        .params_len = (size_t)natsMsg_GetDataLength(msg),
    };
    size_t needs = 0;
    if (!is_inbox(in.caller)) {
        say(&no_link.topic, LEVEL_WARN, "a call without a usable reply subject was ignored");
        return;
    }
    in.link = h[0].value ? link_of(in.component, in.name) : NULL;
    if (!in.link) {
        call_refuse(&in, true, "the component is not linked to this provider by that name");
        return;
    }
    in.link->counts[CALLS]++;
    if (stop.state > STOP_CALLS) { /* it was on its way */
        call_refuse(&in, false, "the provider is stopping");
        return;
    }
    enum decoded d = incoming_read(&in, &needs);
    if (d == MALFORMED || needs > PARAMS_MAX) {
        call_refuse(&in, d == MALFORMED, d == MALFORMED ? no_parameters : too_large);
        return;
    }
    struct call *c = call_accept(in.link, &in);
    if (c && d == NEEDS_MORE) {
        size_t room = MIN(needs + SUBJECT_MAX, PARAMS_MAX);
        c->needs = needs;
        c->buffer = buffer_make(in.link, in.trace, in.params, in.params_len, room);
    }
    if (!c || (d == NEEDS_MORE && !c->buffer)) {
        if (c) call_free(c);
        call_refuse(&in, false, "too many calls in flight, or too large");
        return;
    }
    (void)send_handshake(in.caller, in.acknowledges || d == NEEDS_MORE ? c : NULL);
    if (d == WHOLE) call_forward(c, &in);
    else call_set(c, CALL_PARAMS, now_ms + PARAMS_TIMEOUT_MS);
}

static void on_publish(natsMsg *msg) { on_call(msg, false); }

static void on_request(natsMsg *msg) { on_call(msg, true); }

static enum decoded incoming_read(struct incoming *in, size_t *needs) {
    struct reader r = {.start = in->params, .at = in->params, .end = in->params + in->params_len};
    enum decoded d = in->is_request ? read_request(&r, &in->message, &in->timeout_ms)
                                    : read_publish(&r, &in->message);
    *needs = d == NEEDS_MORE ? r.needs : 0;
    return d;
}

/* The same of a call whose parameters are in its buffer. */
static struct incoming incoming_of(struct call *c) {
    struct buffer *b = c->buffer;
    const char *state = b->state ? b->bytes + b->parent : NULL;
    return (struct incoming){
        .link = c->link,
        .caller = reply_of(c),
        .is_request = c->is_request,
        .trace = {b->parent ? b->bytes : NULL, state},
        .params = buffer_bytes(b),
        .params_len = b->len,
    };
}

static const char *error_prefix(bool is_request) { return is_request ? "nats send error: " : ""; }

static enum function function_of(bool is_request) { return is_request ? REQUEST : PUBLISH; }

/* A slot for a call of a component; NULL: none is free for this link. */
static struct call *call_accept(struct link *l, const struct incoming *in) {
    if (l->conn && calls_free_for(l) == 0) { /* publishes whose bytes the kernel takes now have ended */
        conn_write(l->conn);
        on_written(l->conn);
    }
    if (calls_free_for(l) == 0) { /* nor need requests wait whose callers do not acknowledge: they are gone */
        EACH_CALL(c) {
            if (c->link != l || c->state != CALL_ASKED) continue;
            if (c->absences >= ABSENCES_MAX / 2 || (!c->heard && c->pause_ms >= 16 * HANDSHAKE_PAUSE_MS))
                call_end_unanswered(c, "", caller_gone);
        }
    }
    struct call *c = call_take(l);
    if (!c) return NULL;
    c->reply_len = text_of(in->caller, c->reply, sizeof(c->reply)).len;
    c->is_request = in->is_request;
    c->pause_ms = HANDSHAKE_PAUSE_MS;
    c->acknowledges = in->acknowledges;
    c->heard = !in->acknowledges;
    c->again_ms = c->heard ? 0 : now_ms + HANDSHAKE_PAUSE_MS;
    return c;
}

/* Answers a call that gets no slot of its link: with an error text, or (`traps`) without a result, which
 * fails it. */
static void call_refuse(const struct incoming *in, bool traps, const char *why) {
    uint8_t result[ERROR_MAX + 8];
    size_t len = traps ? 0 : write_error(result, error_prefix(in->is_request), why);
    say(in->link ? &in->link->topic : &no_link.topic, LEVEL_WARN, "a call of component %s by link %s %s: %s",
        in->component, in->name, traps ? "failed" : "was refused", why);
    if (in->link) count_call(in->link, function_of(in->is_request), FAILED, now_us, why);
    struct call *c = call_accept(&no_link, in);
    if (c) (void)send_handshake(in->caller, c);
    if (traps) send_error(in->caller, why);
    if (c) answer(c, result, len);
    else (void)send_answer(in->caller, NULL, result, len);
}

/* Another chunk of parameters, or their end, on Rs.params: either says that the caller has the handshake. */
static void on_params(struct call *c, natsMsg *msg) {
    const uint8_t *bytes = (const uint8_t *)natsMsg_GetData(msg);
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    c->heard = true;
    c->nobody = false;
    c->absences = 0;
    if (c->state == CALL_ANSWERED) {
        call_deliver(c);
        return;
    }
    if (c->again_ms) c->again_ms = now_ms + HANDSHAKE_MS; /* whether it still waits */
    if (c->state != CALL_PARAMS) return;
    if (len == 0) {
        call_end_trap(c, "its parameters ended before they were whole");
        return;
    }
    struct buffer *b = c->buffer;
    if (b->len + len > PARAMS_MAX) {
        call_end_error(c, too_large);
        return;
    }
    if (b->len + len > b->room) { /* a larger one takes its place */
        size_t room = MIN(2 * (b->len + len), PARAMS_MAX);
        struct buffer *larger = buffer_make(c->link, incoming_of(c).trace, buffer_bytes(b), b->len, room);
        if (!larger) {
            call_end_error(c, no_memory);
            return;
        }
        buffer_free(c->link, b);
        c->buffer = b = larger;
    }
    memcpy(buffer_bytes(b) + b->len, bytes, len);
    b->len += (uint32_t)len;
    if (b->len < c->needs) return;
    struct incoming in = incoming_of(c);
    enum decoded d = incoming_read(&in, &c->needs);
    if (d == WHOLE) call_forward(c, &in);
    else if (d == MALFORMED) call_end_trap(c, no_parameters);
    else if (c->needs > PARAMS_MAX) call_end_error(c, too_large);
}

/* A chunk was passed over, since it is too large. (That of a result is not answered: the time of its call
 * will be over.) */
static void on_params_skipped(struct call *c) {
    if (c->state == CALL_PARAMS) call_end_error(c, too_large);
}

/* So was a call, with all that would say whose it is. It is answered like one that has a link. */
static void on_call_skipped(const char *reply, bool is_request) {
    struct incoming in = {.component = "?",
                          .name = "?",
                          .caller = span_of(reply),
                          .is_request = is_request,
                          .acknowledges = true};
    if (is_inbox(in.caller)) call_refuse(&in, false, too_large);
}

/* (503) Nobody listens to a caller's inbox. It is gone, or its host is away from the lattice for a moment: so
 * it is asked again soon, and the answers in a row are counted. Of a client that listens to each inbox by
 * itself it says nothing. */
static void on_caller_absent(struct call *c, natsMsg *msg) {
    if (!is_no_responders(msg) || !c->again_ms || client_of(reply_of(c)).len == 0) return;
    c->nobody = true;
    c->again_ms = MIN(c->again_ms, now_ms + HANDSHAKE_PAUSE_MAX_MS);
    wake_at(c->again_ms);
}

/* Gives a message to the link's connection; replies to a request come to the inbox of its call. */
static enum posted call_post(struct call *c, const struct incoming *in) {
    UNSET char subject[SUBJECT_MAX + 1], reply[MAX(SUBJECT_MAX + 1, INBOX_MAX + TOKEN_LEN)];
    const struct message *m = &in->message;
    struct conn *conn = in->link->conn;
    const struct header headers[] = {
        {"traceparent", in->trace.parent},
        {"tracestate",  in->trace.state },
        {NULL,          NULL            }
    };
    if (!conn) return POST_DOWN;
    if (in->is_request && inbox_is_refused(conn, 'c')) return POST_NO_REPLY;
    struct span to = text_of(m->subject, subject, sizeof(subject)), from = NOWHERE;
    if (in->is_request) from = call_inbox(c, conn, reply);
    else if (m->has_reply) from = text_of(m->reply_to, reply, sizeof(reply));
    bool takes = conn->io.headers && strncmp(subject, "$SYS", 4) != 0; /* nats-server parses none there */
    return post(conn, to, from, in->trace.parent && takes ? headers : NULL, m->body.at, m->body.len);
}

/* How long a call may wait in the outbox. */
static uint32_t outbox_ms(const struct incoming *in) {
    return in->is_request ? MIN(in->timeout_ms, PUBLISH_TIMEOUT_MS) : PUBLISH_TIMEOUT_MS;
}

/* What became of giving the message to the connection: the call awaits its outcome, or ends. */
static void call_posted(struct call *c, const struct incoming *in, enum posted p) {
    struct link *l = c->link;
    if (p != POSTED) {
        bool wrong = !l->conn && *l->error; /* its settings: that says how */
        call_end_error(c, wrong ? l->error : posted_text[p]);
        return;
    }
    buffer_free(l, c->buffer);
    c->buffer = NULL;
    c->conn = l->conn;
    c->out_at = c->conn->io.given;
    /* what it has waited in the outbox is part of a request's time */
    uint64_t since_ms = c->state == CALL_OUTBOX ? c->deadline_ms - outbox_ms(in) : now_ms;
    uint32_t most_ms = c->acknowledges ? UINT32_MAX : REQUEST_MAX_MS; /* others are asked: see call_again() */
    if (c->is_request) call_set(c, CALL_ASKED, since_ms + MIN(in->timeout_ms, most_ms));
    else call_set(c, CALL_WRITING, UINT64_MAX);
}

/* nats.c's write buffers grow and never shrink. When memory for one is short, an idle link whose own has
 * grown connects anew, and the new connection takes over. */
static void make_room(const struct link *wanting) {
    EACH_LINK(l) {
        struct conn *c = l->conn;
        if (l == wanting || l->delivers || l->calls > 0 || l->next || !c || c->state != CONN_UP) continue;
        if (c->io.capacity < MESSAGE_MAX) continue;
        l->next = conn_start(l, json_incref(l->settings));
        return;
    }
}

/* Sends what a component wants sent, or puts the call into the outbox: behind those that wait there
 * already. */
static void call_forward(struct call *c, const struct incoming *in) {
    struct link *l = c->link;
    const struct message *m = &in->message;
    const char *error = NULL;
    /* the reference provider's words; the subject is checked before anything */
    if (!is_subject(m->subject, false)) error = "invalid subject";
    else if (m->has_reply && !is_subject(m->reply_to, false)) error = "invalid reply-to subject";
    else if (m->body.len > MESSAGE_MAX) error = too_large;
    if (error) {
        call_end_error(c, error);
        return;
    }
    bool rests = now_ms < l->after_ms;
    enum posted p = l->outbox.first || rests ? POST_FULL : call_post(c, in);
    if (p != POST_FULL) {
        call_posted(c, in, p);
        return;
    }
    if (!rests && l->conn && !l->conn->io.blocked) make_room(l);
    if (!c->buffer) c->buffer = buffer_make(l, in->trace, in->params, in->params_len, in->params_len);
    if (!c->buffer) {
        call_end_error(c, posted_text[POST_FULL]);
        return;
    }
    call_set(c, CALL_OUTBOX, now_ms + outbox_ms(in));
}

/* Tries again what waits for room, the oldest first. Called after writing. */
static void outbox_step(struct link *l) {
    while (l->outbox.first && now_ms >= l->after_ms && (!l->conn || !l->conn->io.blocked)) {
        struct call *c = l->outbox.first;
        struct incoming in = incoming_of(c);
        (void)incoming_read(&in, &c->needs); /* whole: else it would not be here */
        enum posted p = call_post(c, &in);
        if (p == POST_FULL) return;
        call_posted(c, &in, p);
    }
}

/* A connection has written: the publishes end whose bytes the kernel has taken. */
static void on_written(struct conn *conn) {
    static const uint8_t ok[] = {0};
    while (conn->writing.first && conn->writing.first->out_at <= conn->io.written)
        call_end_ok(conn->writing.first, ok, sizeof(ok));
}

/* The lattice's has: the calls end whose results are out of our hands. While slots are plenty that is when
 * the other side's kernel has them: ours may lose what it has taken, with the connection. */
static void on_answers_written(struct conn *conn) {
    int unsent = 0;
    if (!conn->writing.first || !conn_is_open(conn)) return;
    if (calls.used <= CALLS_MAX / 4) (void)ioctl(conn->fd, SIOCOUTQ, &unsent);
    uint64_t out = conn->io.written - MIN((uint64_t)unsent, conn->io.written);
    while (conn->writing.first && conn->writing.first->out_at <= out) call_free(conn->writing.first);
}

static struct message message_of(natsMsg *msg) {
    struct span reply = span_of(natsMsg_GetReply(msg));
    struct span body = {natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg)};
    return (struct message){span_of(natsMsg_GetSubject(msg)), body, reply, reply.len > 0};
}

/* The reply to a request, on the inbox of its call: result<broker-message, string>. protocol: the subject
 * is the one that the reply was sent to, as in the reference provider. */
static void on_reply(struct call *c, natsMsg *msg) {
    struct message m = message_of(msg);
    if (is_no_responders(msg)) {
        call_end_unanswered(c, error_prefix(true), "no responders: no responders");
        return;
    }
    m.has_reply &= is_utf8(m.reply_to);
    bool room = lattice->state != CONN_UP || conn_has_room(lattice, message_size(&m) + 4096);
    if (!room || 1 + message_size(&m) > sizeof(scratch)) {
        call_end_error(c, "no room for a reply of this size");
        return;
    }
    scratch[0] = 0;
    call_end_ok(c, scratch, 1 + write_message(scratch + 1, &m));
}

static void call_end_ok(struct call *c, const uint8_t *result, size_t len) {
    count_call(c->link, function_of(c->is_request), OK, c->began_us, NULL);
    answer(c, result, len);
}

/* Ends a request that got no reply: an outcome that is the component's to deal with, and not for the log. */
static void call_end_unanswered(struct call *c, const char *prefix, const char *error) {
    uint8_t result[ERROR_MAX + 8];
    count_call(c->link, function_of(c->is_request), FAILED, c->began_us, error);
    answer(c, result, write_error(result, prefix, error));
}

/* Ends a call with an error text for the component. */
static void call_end_error(struct call *c, const char *error) {
    say(&c->link->topic, LEVEL_WARN, "a call of the component ended without success: %s", error);
    call_end_unanswered(c, error_prefix(c->is_request), error);
}

/* Ends a call whose parameters are no good: it fails, and the component traps. */
static void call_end_trap(struct call *c, const char *error) {
    say(&c->link->topic, LEVEL_WARN, "a call of the component failed: %s", error);
    count_call(c->link, function_of(c->is_request), FAILED, c->began_us, error);
    send_error(reply_of(c), error);
    answer(c, NULL, 0);
}

/* The time of a call's state is over. */
static void call_expire(struct call *c) {
    if (c->state == CALL_PARAMS) call_end_trap(c, "its parameters did not come in time");
    else if (c->state == CALL_ASKED)
        call_end_unanswered(c, "", "nats request timed out: deadline has elapsed");
    else call_end_error(c, "the server took no bytes in time");
}

/* A connection of a link is gone (or NULL: the link itself): the calls end that it carried, or that waited
 * for it. */
static void link_calls_end(struct link *l, const struct conn *conn, const char *error) {
    EACH_CALL(c) {
        if (c->link != l) continue;
        bool carried = (c->state == CALL_WRITING || c->state == CALL_ASKED) && (!conn || c->conn == conn);
        bool waited = c->state == CALL_OUTBOX && (!conn || l->conn == conn);
        if (carried || waited || (!conn && c->state == CALL_PARAMS)) call_end_error(c, error);
        if (conn || c->state < CALL_ANSWERED) continue;
        /* it is only to be answered, and outlives its link */
        size_t size = c->buffer ? buffer_size(c->buffer) : 0;
        l->bytes -= size;
        no_link.bytes += size;
        c->link = &no_link;
    }
}

/* A call of a component has a result, or none (`len` 0), which fails it. Either goes out when the caller
 * hears us, and the lattice takes it; until it is written it is kept in place of the parameters, since a
 * connection that breaks takes with it what it had not written. */
static void answer(struct call *c, const uint8_t *result, size_t len) {
    bool brief = len <= sizeof(c->brief);
    struct buffer *b = NULL;
    c->sent = 0;
    bool whole = c->heard && send_chunks(reply_of(c), call_suffix(c), result, len, &c->sent);
    if (!brief) b = buffer_make(c->link, (struct trace){0}, result, len, len);
    if (!brief && !b && !whole && !c->heard && lattice->state == CONN_UP) /* now, or never */
        whole = send_answer(reply_of(c), c, result, len);
    if (!brief && !b && whole) {
        call_free(c);
        return;
    }
    if (!brief && !b) { /* what fits, unless it began otherwise: a call that fails does not hang */
        uint8_t error[ERROR_MAX + 8];
        answer(c, error, c->sent ? 0 : write_error(error, error_prefix(c->is_request), no_memory));
        return;
    }
    buffer_free(c->link, c->buffer);
    c->buffer = b;
    c->brief_len = brief ? (uint16_t)len : 0;
    if (c->brief_len) memcpy(c->brief, result, len);
    if (whole) {
        call_sent(c);
        return;
    }
    if (c->heard) c->again_ms = now_ms + DELIVER_PAUSE_MS;
    call_set(c, CALL_ANSWERED, UINT64_MAX);
    if (!c->heard) send_early(c);
}

/*
 * ---- 6 handle-message -------------------------------------------------------------------------------------
 *
 * A NATS message for a component becomes a delivery. It waits in its link's queue until the component can
 * take it, becomes a call of handle-message, and ends when the component has answered and, if it came from
 * a consumer, JetStream was told.
 *
 *     subscription ── on_message ──┐                     ┌─ on_outcome, delivery_expire ─▶ delivery_end
 *                                  ├─▶ queue ─ dispatch ─┤
 *     consumer ─── js_message ─────┘     ▲               └─ nobody runs the component,
 *                                        └── queue_return ◀── or the lattice takes no more
 *
 * A component has at most max_in_flight messages of a link at a time. What is in the queue holds no slot,
 * only bytes of the backlog. When the component has all that it may have, the loop stops reading the link's
 * connection, so that a short burst waits in the kernel and in the server; and once more when the queue is
 * full. But only for PAUSE_MS and PAUSE_FULL_MS, and not again for PAUSE_EVERY_MS, since nats-server cuts a
 * client that reads slowly. A message that finds no room in the queue then is dropped and counted; a
 * consumer's is not even asked for.
 *
 * Interface: on_message, link_may_be_read, link_waits_for_older (connections), dispatch (the loop; whenever
 * a call ended), on_handshake, on_outcome, delivery_doubt (the lattice), params_send_rest, delivery_expire
 * (deadlines), delivery_…, deliveries_abandon and queue_… (JetStream, links, stopping).
 */
static enum posted invoke(struct call *c);
static void delivery_end(struct call *c, enum count outcome);
static void message_drop(struct link *l, unsigned count, const char *on, const char *why);
static void delivery_drop(struct link *l, struct delivery *d, const char *why);
static void params_abandon(struct call *c);

static struct trace trace_from(const char *parent, const char *state) {
    if (!parent || strlen(parent) >= TRACE_MAX || strchr(parent, '\r')) return (struct trace){0};
    if (state && (strlen(state) >= TRACE_MAX || strchr(state, '\r'))) state = NULL;
    return (struct trace){parent, state};
}

static bool link_takes_work(const struct link *l) {
    return l->state == LINK_RUNNING && stop.state == RUNNING;
}

/* Whether a connection is up that is to take over. */
static bool next_is_up(const struct link *l) { return l->next && l->next->state == CONN_UP; }

/* A message of one of the link's subscriptions; NULL: it was passed over, for this reason. */
static void on_message(struct link *l, const struct conn *by, const char *subject, natsMsg *msg,
                       const char *error) {
    l->counts[RECEIVED]++;
    if (stop.state > STOP_CALLS) error = "the provider is stopping"; /* it was on its way */
    struct delivery *d = msg && stop.state <= STOP_CALLS ? delivery_make(l, msg, NULL, &error) : NULL;
    if (!d) {
        char on[CALL_HEAD + 16];
        (void)snprintf(on, sizeof(on), " (subject %.*s)", CALL_HEAD, subject);
        message_drop(l, 1, on, error);
        return;
    }
    /* one at a time is in order: what comes by the newest connection waits, see later_waits() */
    bool newest = by == l->next || (by == l->conn && l->later.first && !next_is_up(l));
    queue_push(l, newest && l->max_in_flight == 1 ? &l->later : &l->plain, d);
    dispatch(l);
}

/* Whether a link's component may have another message now. */
static bool link_may_call(const struct link *l) {
    return l->in_flight < l->max_in_flight && lattice->state == CONN_UP && conn_is_well(lattice);
}

/* The queue that is served next: each has its turn. What consumers delivered rests while nobody runs the
 * component. */
static struct queue *queue_next(struct link *l) {
    bool stored = l->stored.first && now_ms >= l->absent_until_ms;
    if (stored && (l->stored_turn || !l->plain.first)) {
        l->stored_turn = false;
        return &l->stored;
    }
    l->stored_turn = true;
    return l->plain.first ? &l->plain : NULL;
}

/* Starts what waits, as far as the component may have it and slots allow. */
static void dispatch(struct link *l) {
    while (l->queued > 0 && link_may_call(l)) {
        struct queue *q = queue_next(l);
        struct call *c = q ? call_take(l) : NULL;
        if (!c) return;
        struct delivery *d = c->delivery = q->first;
        q->first = d->next;
        l->queued--;
        enum posted p = invoke(c);
        if (p == POSTED) continue;
        c->delivery = NULL;
        call_free(c);
        if (p == POST_TOO_LARGE) { /* its headers alone exceed the lattice's max_payload */
            delivery_drop(l, d, "the lattice takes no message of this size");
            continue;
        }
        queue_return(l, d); /* the loop comes back here when it has written */
        return;
    }
}

/* Where the trace headers of a delivery begin, in bytes. */
static size_t delivery_head(const struct delivery *d) {
    return d->ack ? offsetof(struct delivery, bytes) + d->ack : offsetof(struct delivery, since_s);
}

static uint8_t *delivery_params(struct delivery *d) { return (uint8_t *)d + delivery_head(d) + d->trace; }

static size_t delivery_size(const struct delivery *d) {
    return arena_block(delivery_head(d) + d->trace + d->params_len);
}

static void delivery_count(struct link *l, const struct delivery *d, size_t bytes) {
    backlog_count(l, bytes);
    if (!d->ack) backlog.plain += bytes;
}

/* Whether so many bytes more may wait for the component, of what subscriptions bring. That leaves two large
 * messages' worth to parameters of calls, and to what goes on to the component at once, and `kept` to
 * consumers. */
static bool queue_has_room(const struct link *l, size_t size) {
    bool own = l->bytes + size <= BACKLOG_OWN;
    bool leaves = backlog.plain + size + 2 * PARAMS_MAX + backlog.kept <= BACKLOG_SHARED;
    return (own || leaves) && backlog_has_room(l, size);
}

static const char queue_full[] = "the component is too slow, and its queue is full";

/* Makes a delivery of a message; of a consumer's, if `k` says so. NULL, and why: it can never be given to a
 * component, or there is no room for it in the link's queue. (*error is no_memory or queue_full only in the
 * second case.) */
static struct delivery *delivery_make(struct link *l, natsMsg *msg, struct consumer *k, const char **error) {
    struct header h[HEADERS_MAX] = {
        {"traceparent", NULL},
        {"tracestate",  NULL}
    };
    struct message m = message_of(msg);
    const char *ack = k ? natsMsg_GetReply(msg) : NULL;
    if (k) m.has_reply = false; /* protocol: wasmCloud's built-in provider gives none either */
    size_t params_len = message_size(&m);
    *error = "its body is larger than this build takes (--version says what that is)";
    if (m.body.len > MESSAGE_MAX || params_len > PARAMS_MAX) return NULL;
    *error = "its subject is not UTF-8, which a component cannot be given";
    if (!is_utf8(m.subject) || (m.has_reply && !is_utf8(m.reply_to))) return NULL;
    headers_read(msg, h);
    struct trace trace = trace_from(h[0].value, h[1].value);
    size_t parent_len = trace.parent ? strlen(trace.parent) + 1 : 0;
    size_t state_len = trace.state ? strlen(trace.state) + 1 : 0;
    struct delivery head = {
        .number = ++l->arrivals,
        .params_len = (uint32_t)params_len,
        .trace = (uint16_t)(parent_len + state_len),
        .ack = (uint16_t)(ack ? strlen(ack) + 1 : 0),
        .since_s = (uint16_t)(now_ms / 1000),
        .consumer = (uint8_t)(k ? k - l->consumers : 0),
        .epoch = k ? k->epoch : 0,
    };
    size_t size = delivery_size(&head), promised = k ? MIN(k->reserved, size) : 0;
    if (k) k->reserved -= promised;
    backlog.reserved -= promised;
    *error = queue_full;
    bool waits = l->queued > 0 || !link_may_call(l);
    bool room = waits ? queue_has_room(l, size) : backlog_has_room(l, size);
    if (promised < size && !room) return NULL;
    *error = no_memory;
    assert(size > ARENA_HEAD);
    struct delivery *d = malloc(size - ARENA_HEAD);
    if (!d) return NULL;
    memcpy(d, &head, delivery_head(&head) - head.ack); /* the block need not hold the whole struct */
    if (ack) memcpy(d->bytes, ack, head.ack);
    char *at = (char *)d + delivery_head(d);
    if (trace.parent) at = mempcpy(at, trace.parent, parent_len);
    if (trace.state) at = mempcpy(at, trace.state, state_len);
    (void)write_message((uint8_t *)at, &m);
    delivery_count(l, d, size);
    return d;
}

static void delivery_free(struct link *l, struct delivery *d) {
    if (d->ack) {
        l->consumers[d->consumer].open--;
        assert(d->conn == 0 || conns[d->conn].users > 0);
        if (d->conn) conns[d->conn].users--;
    }
    delivery_count(l, d, -delivery_size(d));
    free(d);
}

static void queue_push(struct link *l, struct queue *q, struct delivery *d) {
    d->next = NULL;
    if (q->first) q->last->next = d;
    else q->first = d;
    q->last = d;
    l->queued++;
}

/* Puts a delivery back to its place in the order of arrival, which is at the front or close to it. */
static void queue_return(struct link *l, struct delivery *d) {
    struct queue *q = d->ack ? &l->stored : &l->plain;
    struct delivery **at = &q->first;
    while (*at && (int32_t)((*at)->number - d->number) < 0) at = &(*at)->next;
    if (!*at) q->last = d;
    d->next = *at;
    *at = d;
    l->queued++;
}

/* What log lines say of a message to a component: the subject in its parameters, or in the beginning of
 * them; cut if it is long, but not within a character. */
static const char *on_subject(const uint8_t *params, size_t len, char out[CALL_HEAD + 16]) {
    struct reader r = {.start = params, .at = params, .end = params + MIN(len, (size_t)CALL_HEAD)};
    uint32_t subject = 0;
    (void)read_u32(&r, &subject);
    struct span s = {(const char *)r.at, MIN(subject, (size_t)(r.end - r.at))};
    while (!is_utf8(s)) s.len--;
    (void)snprintf(out, CALL_HEAD + 16, " (subject %.*s)", (int)s.len, s.at);
    return out;
}

/* Messages are dropped; `on`: the subject of the only one, in words, or "". */
static void message_drop(struct link *l, unsigned count, const char *on, const char *why) {
    say(&l->topic, LEVEL_WARN, "%u message%s dropped: %s%s", count, count == 1 ? "" : "s", why, on);
    l->counts[DROPPED] += count;
}

/* Ends a delivery that can never be handled: JetStream is told not to deliver it again. */
static void delivery_drop(struct link *l, struct delivery *d, const char *why) {
    char on[CALL_HEAD + 16];
    if (d->ack) (void)js_settle(l, d, DROPPED);
    message_drop(l, 1, on_subject(delivery_params(d), d->params_len, on), why);
    delivery_free(l, d);
}

/* Gives a consumer's delivery back to JetStream, without the component having failed on it. */
static void delivery_give_back(struct link *l, struct delivery *d, const char *why) {
    /* nats-server 2.9 mistakes the message if it has to send it at once */
    bool told = js_nak(l, d, NAK_MIN_MS);
    say(&l->topic, told ? LEVEL_INFO : LEVEL_WARN, "a message of consumer %s %s: %s",
        l->consumers[d->consumer].name.consumer,
        told ? "was given back" : "comes again after ack_wait, since there is no connection to give it back",
        why);
    l->counts[RETURNED]++;
    delivery_free(l, d);
}

/* Empties the queue: what came by subscriptions is dropped, what consumers delivered is given back. */
static void queue_drop(struct link *l, const char *why) {
    unsigned dropped = 0;
    queue_join(l);
    for (struct delivery *d; (d = l->plain.first); dropped++) {
        l->plain.first = d->next;
        delivery_free(l, d);
    }
    for (struct delivery *d; (d = l->stored.first);) {
        l->stored.first = d->next;
        delivery_give_back(l, d, why);
    }
    l->queued = 0;
    if (dropped > 0) message_drop(l, dropped, "", why);
}

/* Of a subscription's delivery only what did not go out is needed. Returns that; NULL: nothing is. */
static struct delivery *delivery_rest(struct link *l, struct delivery *d, size_t sent) {
    if (sent == d->params_len) {
        delivery_free(l, d);
        return NULL;
    }
    size_t size = delivery_size(d);
    memmove(delivery_params(d), delivery_params(d) + sent, d->params_len - sent);
    d->params_len -= (uint32_t)sent;
    delivery_count(l, d, delivery_size(d) - size);
    struct delivery *smaller = realloc(d, delivery_size(d) - ARENA_HEAD);
    if (smaller) d = smaller;
    return d;
}

/* Sends a call to the component: with as much of the parameters as one message takes, headers included. The
 * rest follows the handshake. If it is not POSTED, the call and its delivery are the caller's to deal with.
 * protocol: wrpc-transport-nats, invoke: the first chunk travels with the headers, the others go to
 * Rs.params. */
static enum posted invoke(struct call *c) {
    UNSET char inbox[INBOX_MAX + TOKEN_LEN];
    struct link *l = c->link;
    struct delivery *d = c->delivery;
    const char *parent = d->trace ? (char *)d + delivery_head(d) : NULL;
    const char *state = parent && d->trace > strlen(parent) + 1 ? parent + strlen(parent) + 1 : NULL;
    const struct header headers[] = {
        {"source-id",   self.key    },
        {"target-id",   l->component},
        {"traceparent", parent      },
        {"tracestate",  state       }
    };
    size_t max = lattice->io.max_payload, head = headers_size(headers);
    c->first = (uint32_t)MIN(d->params_len, max > head ? max - head : 0);
    result_start(&c->result);
    call_token(c, c->first < d->params_len ? 'a' : 'A'); /* small letters: more parameters follow */
    struct span rc = call_inbox(c, lattice, inbox);
    enum posted p = post(lattice, span_of(l->subject), rc, headers, delivery_params(d), c->first);
    if (p != POSTED) return p;
    c->head_len = (uint8_t)MIN(d->params_len, sizeof(c->head));
    memcpy(c->head, delivery_params(d), c->head_len);
    if (!d->ack) {
        c->delivery = delivery_rest(l, d, c->first);
        c->first = 0;
    }
    call_set(c, CALL_INVOKED, now_ms + l->handler_timeout_ms);
    return POSTED;
}

/* Nobody runs the component. A consumer's message waits until somebody does: its deliveries may be
 * numbered. */
static void component_absent(struct call *c) {
    struct link *l = c->link;
    struct delivery *d = c->delivery;
    char on[CALL_HEAD + 16];
    if (!d || !d->ack) {
        say(&l->topic, LEVEL_WARN, "1 message dropped: nobody runs the component%s",
            on_subject(c->head, c->head_len, on));
        delivery_end(c, DROPPED);
        return;
    }
    if (now_ms >= l->absent_until_ms) {
        say(&l->topic, LEVEL_WARN,
            "nobody runs the component: what its consumers deliver is kept, and tried again");
        l->absent_until_ms = now_ms + MIN((uint64_t)ABSENT_MIN_MS << MIN(l->absences, 10), ABSENT_MAX_MS);
        l->absences++;
    }
    c->delivery = NULL;
    call_free(c);
    if (link_takes_work(l)) queue_return(l, d);
    else delivery_give_back(l, d, "nobody runs the component, and the link ends");
}

/* Ends the parameters that somebody waits for: `rs` is whose call is over, or never was. The end has a slot
 * of its own until it is written. */
static void params_end(struct span rs) {
    struct call *c = call_take(&no_link);
    send_padding(rs);
    if (!c) {
        (void)send_to(rs, SPAN(".params"), NOWHERE, NULL, 0);
        return;
    }
    c->is_end = c->heard = true;
    c->reply_len = text_of(rs, c->reply, sizeof(c->reply)).len;
    answer(c, NULL, 0);
}

/* The component's host has the call, or (503) nobody has. It serves nobody else for this component until it
 * has the rest of the parameters, or their end (1.9). So a handshake gets an end in any case: `c` is NULL
 * if the call is over. */
static void on_handshake(struct call *c, natsMsg *msg) {
    struct span rs = span_of(natsMsg_GetReply(msg));
    if (is_no_responders(msg)) {
        if (c) component_absent(c);
        return;
    }
    if (!is_inbox(rs)) return;
    if (c) {
        c->handshaken = true;
        c->link->absences = 0;
    }
    struct delivery *d = c ? c->delivery : NULL;
    bool more = c ? d && c->first < d->params_len : natsMsg_GetSubject(msg)[lattice->inbox_len] >= 'a';
    if (!more) { /* who has them whole waits for no end: it is for who reads on */
        (void)send_to(rs, SPAN(".params"), NOWHERE, NULL, 0);
        return;
    }
    if (!c) {
        params_end(rs);
        return;
    }
    uint32_t sent = c->first;
    /* hosts of 1.0 echo the headers of the call, and need no padding; several of them answer the same call */
    if (headers_of(msg).len > 0 && send_chunks(rs, SPAN(".params"), delivery_params(d), d->params_len, &sent))
        return;
    params_abandon(c); /* to another host that has answered, if any */
    c->reply_len = text_of(rs, c->reply, sizeof(c->reply)).len;
    c->sent = sent;
    c->pause_ms = HANDSHAKE_PAUSE_MS;
    /* after a moment, in which the host gets round to registering its inbox: section 8 */
    c->again_ms = now_ms + PARAMS_PAUSE_MS;
    wake_at(c->again_ms);
}

/* Sends what is left of the parameters, and their end; then the end again from time to time until the
 * result comes, since a host that lost it would wait for ever, and the other calls of the component with
 * it. */
static void params_send_rest(struct call *c) {
    struct delivery *d = c->delivery;
    bool all = c->sent == d->params_len, drains = c->home != lattice && conn_is_open(c->home);
    if (c->sent < d->params_len) send_padding(reply_of(c));
    if (!all || !drains) /* the end would overtake what the old connection still has to write */
        (void)send_chunks(reply_of(c), SPAN(".params"), delivery_params(d), d->params_len, &c->sent);
    c->again_ms = now_ms + c->pause_ms;
    c->pause_ms = (uint16_t)MIN(2 * c->pause_ms, HANDSHAKE_PAUSE_MAX_MS);
}

/* Nothing more of the parameters goes out. A host that has not got all of them is told so. */
static void params_abandon(struct call *c) {
    if (c->state != CALL_INVOKED || !c->again_ms) return;
    c->again_ms = 0;
    if (c->sent < c->delivery->params_len) params_end(reply_of(c));
}

/* Why a call without a whole result has none. That parameters in chunks did not get there whole looks to us
 * like a trap: their host ends such a call in the same way. */
static const char *no_result(const struct call *c) {
    bool in_chunks = c->token[0] >= 'a';
    if (c->result.at != AT_TAG) return "only a part of the result of handle-message came";
    if (in_chunks)
        return "no result: the host lost a part of a message in chunks, or the component failed on it";
    return "the component trapped on a message";
}

/* What the component's host sends about a call of ours: to Rc.results part of the result, or the empty
 * message behind it; to Rc.error, if the call failed (1.0), why. */
static void on_outcome(struct call *c, const char *suffix, natsMsg *msg) {
    const uint8_t *bytes = (const uint8_t *)natsMsg_GetData(msg);
    size_t len = (size_t)natsMsg_GetDataLength(msg);
    struct topic *topic = &c->link->topic;
    char on[CALL_HEAD + 16];
    if (strcmp(suffix, ".error") == 0) {
        result_start(&c->result);
        c->result.at = AT_LENGTH; /* a string, as behind the tag of an error */
        (void)read_result(&c->result, bytes, len);
        say(topic, LEVEL_WARN, "the component trapped on a message: %s%s", c->result.text,
            on_subject(c->head, c->head_len, on));
        delivery_end(c, TRAP);
        return;
    }
    if (strcmp(suffix, ".results") != 0 || !c->handshaken) return; /* forged: a host answers first */
    enum decoded d = len == 0 ? MALFORMED : read_result(&c->result, bytes, len);
    if (d == NEEDS_MORE) return;
    const char *error = len == 0 ? no_result(c) : "the result of handle-message does not decode";
    if (d == MALFORMED) say(topic, LEVEL_WARN, "%s%s", error, on_subject(c->head, c->head_len, on));
    else if (c->result.is_error)
        say(topic, LEVEL_WARN, "the component answered a message with an error: %s%s", c->result.text,
            on_subject(c->head, c->head_len, on));
    delivery_end(c, d == MALFORMED ? TRAP : c->result.is_error ? ERROR : HANDLED);
}

/* The last step of every call of handle-message: its outcome is counted. */
static void delivery_done(struct call *c) {
    const char *error = c->outcome == ERROR ? c->result.text : count_names[c->outcome];
    count_call(c->link, HANDLE_MESSAGE, c->outcome, c->began_us, c->outcome == HANDLED ? NULL : error);
    call_free(c);
}

/* A call of handle-message has an outcome. JetStream hears of it first: until then the slot stays. */
static void delivery_end(struct call *c, enum count outcome) {
    struct link *l = c->link;
    params_abandon(c);
    c->outcome = outcome;
    if (c->delivery && c->delivery->ack && !js_settle(l, c->delivery, outcome)) {
        call_set(c, CALL_SETTLING, now_ms + KEPT_MS);
    } else {
        delivery_done(c);
    }
    dispatch(l);
}

/* The time of a call's state is over. */
static void delivery_expire(struct call *c) {
    if (c->state == CALL_SETTLING) { /* JetStream delivers it again */
        delivery_done(c);
        return;
    }
    struct link *l = c->link;
    struct delivery *d = c->delivery;
    char on[CALL_HEAD + 16];
    (void)on_subject(c->head, c->head_len, on);
    if (!c->unsure) {
        say(&l->topic, LEVEL_WARN,
            "timed out: the component did not answer a message within %" PRIu64 " ms%s",
            l->handler_timeout_ms, on);
    } else {
        say(&l->topic, LEVEL_WARN, "the lattice was away, and a message has no result%s", on);
    }
    if (c->unsure && d && d->ack && link_takes_work(l)) {
        params_abandon(c);
        c->delivery = NULL;
        call_free(c);
        queue_return(l, d);
        dispatch(l);
        return;
    }
    delivery_end(c, TIMEOUT);
}

/* The lattice is back. What a component's host sent meanwhile is lost: its handshake, its result. Nobody can
 * be asked for it (protocol: a host's inbox for parameters outlives the call), but a result that is still to
 * come finds its call, since our inboxes are those of before. So it gets as long as the component usually
 * takes, and some more. Then a consumer's message is tried again; any other may have been handled, and
 * is not. */
static void delivery_doubt(struct call *c) {
    const struct tally *t = &c->link->tallies[HANDLE_MESSAGE];
    uint64_t usual_ms = t->us / MAX(t->calls, 1) / 1000;
    c->unsure = c->handshaken = true;
    c->deadline_ms = MIN(c->deadline_ms, now_ms + UNSURE_MS + 2 * usual_ms);
    wake_at(c->deadline_ms);
}

/* Ends the calls of a link whose results nobody will hear. */
static void deliveries_abandon(struct link *l, const char *why) {
    EACH_CALL(c) {
        if (c->link != l) continue;
        if (c->state == CALL_SETTLING) delivery_done(c);
        if (c->state != CALL_INVOKED) continue;
        struct delivery *d = c->delivery;
        bool stored = d && d->ack;
        char on[CALL_HEAD + 16];
        params_abandon(c);
        if (stored) c->delivery = NULL;
        call_free(c);
        if (stored) delivery_give_back(l, d, why);
        else message_drop(l, 1, on_subject(c->head, c->head_len, on), why);
    }
}

/* Whether the loop should read a link's connection now. A pause begins when the component falls behind, and
 * another when the queue is full, in which it is read as there is room for what one read may complete. The
 * next ones come after PAUSE_EVERY_MS, and after a time of light load. What only consumers bring is never
 * too much. */
static bool link_may_be_read(struct link *l) {
    enum load load = LOAD_LIGHT;
    if (!l->subscribed) return true;
    if (l->in_flight >= l->max_in_flight || l->plain.first || l->stored.first)
        load = queue_has_room(l, PARAMS_MAX + 2 * IO_BUFFER) ? LOAD_BEHIND : LOAD_FULL;
    if (load == LOAD_LIGHT && now_ms >= l->next_pause_ms) l->load = LOAD_LIGHT;
    if (load > l->load) {
        if (l->load == LOAD_LIGHT) l->next_pause_ms = now_ms + PAUSE_EVERY_MS;
        l->pause_until_ms = now_ms + (load == LOAD_FULL ? PAUSE_FULL_MS : PAUSE_MS);
        l->load = load;
    }
    return load < l->load || load == LOAD_LIGHT || now_ms >= l->pause_until_ms;
}

/* Whether a connection of the link that another took over from still has bytes on their way, to us or from
 * us: one that came up before this one, or (NULL) any. */
static bool link_drains(const struct link *l, const struct conn *newer) {
    EACH_CONN(c) {
        if (c->link != l || c->state != CONN_DRAINING || is_flushed(c)) continue;
        if (!newer || c->io.up_ms < newer->io.up_ms) return true;
    }
    return false;
}

/* Whether what comes by this connection of the link, which serves, or drains as well, has to wait for what
 * comes by an older one, which keeps messages in their order; of consumers alone where it is strict. Not for
 * longer than for the older one's probe, or than a pause. */
static bool link_waits_for_older(const struct link *l, const struct conn *c) {
    if (now_ms >= MAX(l->after_ms, l->pause_until_ms) || l->next == c) return false;
    bool ordered = l->subscribed || (l->delivers && l->max_in_flight == 1);
    return ordered && link_drains(l, c);
}

/* Whether what came by the newest connection still waits for what comes by those before: until it has taken
 * over, and they have brought all. That is for who wants strict order, and not for longer, either. */
static bool later_waits(const struct link *l) {
    if (l->max_in_flight > 1) return false;
    if (!next_is_up(l)) return l->conn && link_waits_for_older(l, l->conn);
    return now_ms < MAX(l->next->io.up_ms, l->pause_until_ms) + PROBE_PATIENCE_MS;
}

/* What came by the newest connection waits no longer: it is behind all that has come. */
static void queue_join(struct link *l) {
    for (struct delivery *d; (d = l->later.first); l->queued--) {
        l->later.first = d->next;
        d->number = ++l->arrivals;
        queue_push(l, &l->plain, d);
    }
}

/*
 * ---- 7 JetStream ------------------------------------------------------------------------------------------
 *
 * A link may also take messages from pull consumers, which deliver a message again until it was
 * acknowledged. A consumer is asked for no more than its component may have at a time, and for no more
 * bytes than the backlog can promise it: what waits does so in the stream.
 *
 *     UNKNOWN ── CONSUMER.INFO ──▶ ASKED ──▶ READY ── MSG.NEXT: so many, for so long ──▶ messages, a status
 *        ▲────── consumer_failed ────┴───────┘ ▲                                             │
 *                                              └─────────── the request has ended ───────────┘
 *
 * nats.c's own calls for JetStream wait in place, so this is the wire itself. protocol: NATS, "JetStream
 * wire API reference", ADR-13, ADR-42 (priority groups); nats-server from 2.9 on, consumer.go.
 *
 * Interface: js_message, js_answer, js_is_own, js_is_push_status, consumer_of (messages of links), js_settle,
 * js_nak (deliveries), consumers_step (the loop), consumers_apply, consumers_restart, consumers_error
 * (links), consumers_refused (connections).
 */
static void consumer_step(struct consumer *k);
static void consumer_progress(struct consumer *k);
static void requests_share(void);

/* The request for messages has ended: what was promised to it is free. */
static void request_end(struct consumer *k) {
    k->wanted = k->pull = 0;
    backlog.reserved -= k->reserved;
    k->reserved = 0;
}

static void consumer_free(struct consumer *k) {
    request_end(k);
    json_decref(k->entry);
    *k = (struct consumer){.state = CONSUMER_UNUSED,
                           .question = k->question}; /* no answer is for the next one */
    requests_share();
}

static void consumers_step(struct link *l) {
    if (!l->has_consumers) return;
    bool freed = false, up = l->conn && l->conn->state == CONN_UP && conn_is_well(l->conn);
    up = up && !inbox_is_refused(l->conn, 'p');
    EACH_CONSUMER(k, l) {
        if (k->removed && k->open == 0 && (k->wanted == 0 || now_ms >= k->gone_ms)) {
            consumer_free(k);
            freed = true;
            continue;
        }
        if (up && link_takes_work(l)) consumer_step(k);
        if (k->open > 0 && is_due(k->progress_ms)) consumer_progress(k);
    }
    if (freed && link_takes_work(l)) consumers_apply(l); /* a new one may have waited for the place */
}

/* When one of them has something to do. What is over already waits for the connection, which wakes the
 * loop. */
static uint64_t consumers_next_ms(const struct link *l) {
    uint64_t due_ms = UINT64_MAX;
    for (const struct consumer *k = l->consumers; k < l->consumers + CONSUMERS_PER_LINK; k++) {
        bool waits = k->state == CONSUMER_UNKNOWN || k->state == CONSUMER_ASKED || k->wanted > 0;
        if (k->state == CONSUMER_UNUSED) continue;
        if (k->removed && k->open == 0) due_ms = MIN(due_ms, k->wanted > 0 ? k->gone_ms : now_ms);
        if (k->open > 0) due_ms = MIN(due_ms, k->progress_ms);
        if (waits && k->due_ms >= now_ms) due_ms = MIN(due_ms, k->due_ms);
        if (k->state == CONSUMER_READY && k->info_ms >= now_ms) due_ms = MIN(due_ms, k->info_ms);
    }
    return due_ms;
}

static void consumer_ask_anew(struct consumer *k, uint64_t at_ms) {
    request_end(k);
    k->state = CONSUMER_UNKNOWN;
    k->pin[0] = 0;
    k->info = 0;
    k->due_ms = at_ms;
}

/* It gives no messages: it is asked less and less often, until it does. */
static void consumer_failed(struct consumer *k, enum proof needs, const char *error) {
    char label[300];
    consumer_ask_anew(k, retry_at(k->failures++));
    k->needs = MAX(k->needs, needs);
    k->told = TOLD_NOTHING;
    (void)snprintf(k->error, sizeof(k->error), "%s", without_secrets(k->link->settings, error));
    say(&k->link->topic, k->failures > 6 ? LEVEL_DEBUG : LEVEL_ERROR,
        "%s: %s; it is asked again in %" PRIu64 " ms", js_label(&k->name, label), k->error,
        k->due_ms - now_ms);
}

/* Something shows that it works, or did until now. */
static void consumer_proved(struct consumer *k, enum proof proof) {
    char label[300];
    if (proof < k->needs) return;
    if (*k->error || !k->known)
        say(&k->link->topic, LEVEL_INFO, "takes messages from %s", js_label(&k->name, label));
    k->known = true;
    k->error[0] = 0;
    k->needs = PROOF_INFO;
    k->told = TOLD_NOTHING;
    if (proof > PROOF_INFO) k->failures = 0;
}

/* To be asked anew, without a fault of anybody: it may be another by now. */
static void consumer_restart(struct consumer *k) {
    consumer_ask_anew(k, now_ms);
    k->same = false;
    k->last = 0;
}

/* The connection is another: requests are gone with the old one, messages are not. */
static void consumers_restart(struct link *l) {
    EACH_CONSUMER(k, l) {
        k->same = false;
        /* what a removed one was asked for may still come by a connection that drains, and is known by it */
        if (k->removed && k->wanted > 0 && k->asked != l->conn) k->due_ms = k->gone_ms;
        else consumer_restart(k);
        k->needs = MIN(k->needs, PROOF_PULL); /* permissions are a connection's */
    }
}

/* Sends JetStream a question about a consumer, and returns its number. The answer comes to an inbox with
 * the numbers of consumer and question. */
static uint32_t consumer_ask(struct consumer *k, const char *what, const char *json) {
    struct conn *conn = k->link->conn;
    char subject[INBOX_MAX + 64], inbox[INBOX_MAX];
    (void)js_api_subject(&k->name, what, subject, sizeof(subject));
    (void)snprintf(inbox, sizeof(inbox), "%.*sp.%x.%08x", (int)conn->inbox_len - 2, conn->inbox,
                   (unsigned)(k - k->link->consumers), ++k->question);
    (void)post(conn, span_of(subject), span_of(inbox), NULL, json, strlen(json));
    k->asked = conn;
    return k->question;
}

/* Behind the end of the inbox: has JetStream look at its requests, and forget those whose inbox is gone. If
 * one stood while a message that was given back is due, nats-server 2.9 would take that off its list, find
 * nobody, and keep it for ack_wait (consumer.go, loopAndGatherMsgs). */
static void consumers_withdraw(struct link *l) {
    EACH_CONSUMER(k, l) {
        if (k->wanted > 0) (void)consumer_ask(k, "INFO", "");
    }
}

/* Asks what it allows: at first, and again every so often, since its owner may change it. */
static void consumer_ask_info(struct consumer *k) {
    k->info = consumer_ask(k, "INFO", "");
    k->info_ms = now_ms + PULL_EXPIRES_MS;
    if (k->told == TOLD) k->told = ASKED_BEHIND;
}

static void consumer_ask_info_soon(struct consumer *k) {
    if (!k->info) k->info_ms = now_ms;
}

static uint64_t lesser(uint64_t a, uint64_t b) { /* of two limits, 0: none */
    if (a == 0 || b == 0) return MAX(a, b);
    return MIN(a, b);
}

static uint64_t request_bytes_most(const struct consumer *k) {
    return lesser(lesser(k->max_bytes, k->allowed.bytes), PULL_BYTES);
}

/* Computes anew what of the backlog is for requests, when there are more consumers or fewer. A request
 * stands for long, and what it may bring is its alone meanwhile: so all of them together get a quarter. */
static void requests_share(void) {
    size_t consumers = 0;
    EACH_LINK(l) {
        EACH_CONSUMER(k, l) consumers += !k->removed;
    }
    backlog.kept = MIN(consumers * PULL_SHARE_MAX, BACKLOG_MAX / 4);
    backlog.share = backlog.kept / MAX(consumers, 1);
}

/* What the next request may have promised to it. Where queues were full before there was a consumer, each
 * request leaves three quarters of what there is to the next ones. */
static uint64_t request_share(void) {
    return MIN(backlog.share, (BACKLOG_MAX - backlog.bytes - backlog.reserved) / 4);
}

/* Bytes that the next request may bring: most of its share; or, if the next message is larger, what that
 * may have. */
static uint64_t request_bytes(const struct consumer *k) {
    return k->large ? request_bytes_most(k) : MIN(request_share() * 3 / 4, request_bytes_most(k));
}

/* Asks for as many messages as the component may have more, and as there is room for. */
static void consumer_pull(struct consumer *k) {
    const size_t each = sizeof(struct delivery) + INBOX_MAX / 2; /* what a message takes beyond its bytes */
    struct link *l = k->link;
    char json[300], group[80] = "";
    uint64_t consumers = 0;
    if (k->removed || now_ms < l->absent_until_ms || lattice->state != CONN_UP) return;
    EACH_CONSUMER(other, l) consumers += !other->removed;
    uint64_t wanted = MAX(l->max_in_flight / MAX(consumers, 1), 1);
    if (wanted <= k->open) return;
    uint64_t most = lesser(lesser(k->max_messages, k->allowed.batch), MAX(request_share() / 4 / each, 1));
    if (k->needs == PROOF_ACK) most = 1; /* what cannot be acknowledged will come again */
    uint64_t batch = MIN(wanted - k->open, most), bytes = request_bytes(k);
    uint64_t expires_ms = lesser(PULL_EXPIRES_MS, k->allowed.expires_ms);
    size_t reserved = (size_t)(bytes + batch * each);
    if (backlog.bytes + backlog.reserved + reserved > BACKLOG_MAX) return;
    if (k->group && *k->pin)
        (void)snprintf(group, sizeof(group), ",\"group\":\"%s\",\"id\":\"%s\"", k->group, k->pin);
    else if (k->group) (void)snprintf(group, sizeof(group), ",\"group\":\"%s\"", k->group);
    (void)snprintf(json, sizeof(json),
                   "{\"batch\":%" PRIu64 ",\"max_bytes\":%" PRIu64 ",\"expires\":%" PRIu64
                   ",\"idle_heartbeat\":%" PRIu64 "%s}",
                   batch, bytes, expires_ms * 1000000, MIN(expires_ms / 3, PULL_HEARTBEAT_MS) * 1000000,
                   group);
    k->wanted = (unsigned)batch;
    k->reserved = reserved;
    backlog.reserved += reserved;
    k->brought = false;
    k->pull = consumer_ask(k, "MSG.NEXT", json);
    k->due_ms = now_ms + 2 * PULL_HEARTBEAT_MS;
}

static void consumer_unanswered(struct consumer *k, enum proof needs) {
    consumer_failed(
        k, needs,
        k->name.domain || k->name.api_prefix
            ? "JetStream does not answer: is the entry's domain or api_prefix right, and may this "
              "user publish there and to $JS.ACK.>?"
            : "JetStream does not answer: may this user publish to $JS.API.CONSUMER.> and $JS.ACK.>?");
}

/* One step of the state machine above; called on every turn of the loop. */
static void consumer_step(struct consumer *k) {
    switch (k->state) {
    case CONSUMER_UNUSED:
        return;
    case CONSUMER_UNKNOWN:
        if (!is_due(k->due_ms)) return;
        k->state = CONSUMER_ASKED;
        k->due_ms = now_ms + PULL_ANSWER_MS;
        consumer_ask_info(k);
        return;
    case CONSUMER_ASKED:
        if (is_due(k->due_ms)) consumer_unanswered(k, PROOF_INFO);
        return;
    case CONSUMER_READY:
        if (k->wanted > 0 && is_due(k->due_ms)) { /* not even a heartbeat: the request was lost */
            consumer_unanswered(k, PROOF_PULL);
            return;
        }
        if (!k->removed && is_due(k->info_ms)) consumer_ask_info(k);
        if (k->wanted == 0) consumer_pull(k);
        return;
    }
}

/* What the first consumer that fails says, or "". */
static const char *consumers_error(const struct link *l, char text[400]) {
    char label[300];
    for (const struct consumer *k = l->consumers; k < l->consumers + CONSUMERS_PER_LINK; k++) {
        if (k->state == CONSUMER_UNUSED || k->removed || !*k->error) continue;
        (void)snprintf(text, 400, "%s: %s", js_label(&k->name, label), k->error);
        return text;
    }
    return "";
}

/* How often JetStream hears that a message is worked on: three times in its ack_wait. */
static uint64_t progress_period_ms(const struct consumer *k) {
    return MAX((k->allowed.ack_wait_ms ? k->allowed.ack_wait_ms : 30000) / 3, 10);
}

/* JetStream's answer to CONSUMER.INFO. */
static void consumer_informed(struct consumer *k, natsMsg *msg) {
    struct js_consumer allowed;
    struct link *l = k->link;
    k->info = 0;
    json_begin();
    const char *error = js_info_read(msg, &k->name, &allowed);
    if (error) {
        k->same = false;
        consumer_failed(k, PROOF_INFO, error);
        return;
    }
    /* nats-server takes the time once for itself and once, a moment later, for its file, by which it goes
     * after a restart (consumer.go, addConsumer; filestore.go, ConsumerStore) */
    int64_t later_ns = (int64_t)(allowed.created_ns - k->allowed.created_ns);
    bool other = k->allowed.created_ns && llabs(later_ns) > (k->moved ? 0 : CREATED_SLACK_MS * 1000000);
    if (other) k->epoch++;
    if (k->moved) k->other = other;
    k->moved = false;
    k->allowed = allowed;
    k->progress_ms = MIN(k->progress_ms, now_ms + progress_period_ms(k));
    k->same = true;
    k->state = CONSUMER_READY;
    consumer_proved(k, k->told == ASKED_BEHIND ? PROOF_ACK : PROOF_INFO);
    EACH_CALL(c) { /* what became of its messages meanwhile */
        if (c->state == CALL_SETTLING && c->link == l && js_settle(l, c->delivery, c->outcome))
            delivery_done(c);
    }
}

/* A status line: how the request for messages fares. When it has just ended, the next one follows. */
static void consumer_status(struct consumer *k, natsMsg *msg) {
    char text[sizeof(k->error)] = "JetStream refuses the request for messages";
    struct span said = status_of(msg).text;
    enum js_status status = js_status_of(msg);
    k->due_ms = now_ms + 2 * PULL_HEARTBEAT_MS;
    if (status == JS_HEARTBEAT || status == JS_ENDED) consumer_proved(k, PROOF_PULL);
    if (status == JS_HEARTBEAT) return;
    request_end(k);
    if (status == JS_ENDED) {
        k->large = false;
    } else if (status == JS_UNPINNED) {
        k->pin[0] = 0;
    } else if (status == JS_TOO_BIG && k->brought) {
        return;
    } else if (status == JS_MOVED) {
        consumer_restart(k);
        if (k->failures++ > 0) k->due_ms = retry_at(k->failures);
    } else if (status == JS_TOO_BIG && request_bytes(k) < request_bytes_most(k)) {
        k->large = true;
    } else if (status == JS_TOO_BIG) {
        consumer_failed(
            k, PROOF_PULL,
            "its next message is larger than max_bytes, or than this build takes (see --version), and is in "
            "the way of others");
    } else {
        if (said.len) (void)text_of(said, text, sizeof(text));
        consumer_failed(k, PROOF_PULL, text);
    }
}

/* The server refuses a publish on a link's connection. False: it is none of what consumers are asked, or
 * told of messages. */
static bool consumers_refused(struct link *l, const char *subject) {
    static const enum proof needs[] =
        {[JS_INFO] = PROOF_INFO, [JS_NEXT] = PROOF_PULL, [JS_ACKNOWLEDGEMENT] = PROOF_ACK};
    UNSET char text[SUBJECT_MAX + 64];
    bool any = false;
    EACH_CONSUMER(k, l) {
        enum js_subject what = js_subject_of(subject, &k->name);
        if (what == JS_NO_SUBJECT) continue;
        any = true;
        k->told = TOLD_NOTHING;
        (void)snprintf(text, sizeof(text), "Permissions Violation: this user may not publish to %s", subject);
        if (k->state != CONSUMER_UNKNOWN) consumer_failed(k, needs[what], text); /* else it fails already */
    }
    return any;
}

/* What comes to "{number}.{question}" of a link's pull inbox. */
static void js_answer(struct link *l, const char *token, natsMsg *msg) {
    char *end = NULL;
    uint64_t number = strtoull(token, &end, 16), question = *end == '.' ? strtoull(end + 1, NULL, 16) : 0;
    struct consumer *k = &l->consumers[MIN(number, CONSUMERS_PER_LINK - 1)];
    if (number >= CONSUMERS_PER_LINK || question == 0) return;
    if (question == k->info) consumer_informed(k, msg);
    else if (question == k->pull) consumer_status(k, msg);
}

static bool is_same_message(const struct delivery *a, const struct delivery *b) {
    return a->consumer == b->consumer && a->params_len == b->params_len && js_is_same(a->bytes, b->bytes);
}

/* Where the open delivery is that has the same message: in the queue, or with the component. Or NULL. */
static struct delivery **delivery_again(struct consumer *k, const struct delivery *d) {
    for (struct delivery **at = &k->link->stored.first; *at; at = &(*at)->next)
        if (is_same_message(*at, d)) return at;
    EACH_CALL(c) {
        bool own = c->link == k->link && call_has_delivery(c) && c->delivery->ack;
        if (own && is_same_message(c->delivery, d)) return &c->delivery;
    }
    return NULL;
}

/* A message that is open was delivered again: the newer delivery takes the place of the older, and its
 * outcome will be told of it. */
static void delivery_replace(struct link *l, struct delivery **at, struct delivery *d) {
    struct delivery *old = *at;
    d->number = old->number;
    d->since_s = old->since_s;
    d->next = old->next;
    if (l->stored.last == old) l->stored.last = d;
    *at = d;
    delivery_free(l, old);
}

/* A message that a consumer delivered, to be acknowledged on `ack`; NULL: it was passed over, for this
 * reason. */
static void js_message(struct consumer *k, struct conn *conn, const char *ack, natsMsg *msg,
                       const char *error, const struct js_ack *a) {
    struct link *l = k->link;
    bool late = conn != l->conn; /* by a connection that drains: of a request that another has followed */
    if (a->number == k->last && a->time == k->last_time)
        return; /* the same once more, by a subscription that has our inbox in it */
    k->last = a->number;
    k->last_time = a->time;
    if (k->group && msg) js_pin_read(msg, k->pin);
    k->brought = true;
    if (k->failures > 0) consumer_proved(k, PROOF_PULL);
    if (k->state == CONSUMER_READY) k->due_ms = now_ms + 2 * PULL_HEARTBEAT_MS;
    struct delivery *d = msg ? delivery_make(l, msg, k, &error) : NULL, **open = NULL;
    if (d && a->deliveries > 1) open = delivery_again(k, d);
    if (!late && k->wanted > 0 && --k->wanted == 0) request_end(k);
    if (!open) l->counts[RECEIVED]++;
    if (!d) {
        bool never = error != queue_full && error != no_memory;
        const char *word = never ? "+TERM" : "-NAK {\"delay\":1000000000}";
        (void)post(conn, span_of(ack), NOWHERE, NULL, word, strlen(word));
        say(&l->topic, LEVEL_ERROR, "a message of consumer %s was %s: %s", k->name.consumer,
            never ? "dropped" : "given back", error);
        l->counts[never ? DROPPED : RETURNED]++;
        return;
    }
    d->conn = (uint8_t)(conn - conns);
    if (late && k->other) d->epoch--; /* and of the consumer there */
    conn->users++;
    if (k->open++ == 0) k->progress_ms = now_ms + progress_period_ms(k);
    if (open) { /* ack_wait is over: we were away for long, or its owner made it shorter */
        delivery_replace(l, open, d);
        consumer_ask_info_soon(k);
        return;
    }
    if (!link_takes_work(l)) {
        delivery_give_back(l, d, "the link takes no more work");
        return;
    }
    queue_push(l, &l->stored, d);
    dispatch(l);
}

/* The consumer of this link that a message with this reply subject came from, or NULL. protocol:
 * nats-server takes such a reply subject from no client, so nobody can have a message acknowledged that the
 * component never saw (client.go). */
static struct consumer *consumer_of(struct link *l, const char *ack, struct js_ack *a) {
    if (!ack || strncmp(ack, "$JS.", 4) != 0 || strlen(ack) > SUBJECT_MAX || !is_subject(span_of(ack), false))
        return NULL;
    if (!js_ack_read(ack, a)) return NULL;
    struct consumer *found = NULL;
    EACH_CONSUMER(k, l) {
        if (!js_ack_is_of(a, &k->name)) continue;
        if (a->domain.len ? k->name.domain != NULL : k->wanted > 0) return k; /* rather than a namesake */
        if (!found) found = k;
    }
    return found;
}

/* Whether a subject is one on which we answer JetStream, on any link. */
static bool js_is_own(const char *subject) {
    struct js_ack a;
    EACH_LINK(l) {
        if (consumer_of(l, subject, &a)) return true;
    }
    return strncmp(subject, "$JS.FC.", 7) == 0;
}

/* Whether a message is none, but what a push consumer says beside its messages: that it is there, or that it
 * wants to know whether we are. Its owner wants it answered, or it delivers nothing more. protocol: NATS,
 * ADR-15; nats-server, consumer.go. */
static bool js_is_push_status(struct conn *c, natsMsg *msg) {
    const char *wanted;
    if (natsMsg_GetDataLength(msg) > 0 || !js_push_status(msg, &wanted)) return false;
    if (wanted && strncmp(wanted, "$JS.FC.", 7) == 0 && is_subject(span_of(wanted), false))
        (void)post(c, span_of(wanted), NOWHERE, NULL, NULL, 0);
    return true;
}

/* The connection on which JetStream is told of a delivery: the link's, once JetStream has said there that
 * the consumer still is the same; else the one that it came by, while that drains. NULL: none now. */
static struct conn *js_conn(struct link *l, const struct delivery *d) {
    const struct consumer *k = &l->consumers[d->consumer];
    struct conn *from = &conns[d->conn];
    bool up = l->conn && conn_is_open(l->conn) && conn_is_well(l->conn) && (k->same || !link_takes_work(l));
    if (up && k->same && d->epoch == k->epoch) return l->conn;
    if (d->conn && from->link == l && from->state == CONN_DRAINING && conn_is_well(from)) return from;
    return up ? l->conn : NULL;
}

/* Tells JetStream about a message. What does not get through makes it deliver the message again. */
static void js_post(struct link *l, struct conn *conn, const struct delivery *d, const char *word) {
    bool by_its_own = conn == &conns[d->conn] && conn->state == CONN_DRAINING;
    struct consumer *k = &l->consumers[d->consumer];
    if (!by_its_own && d->epoch != k->epoch) { /* one made anew has no such message, or another */
        say(&l->topic, LEVEL_INFO,
            "JetStream was not told %.4s of a message: its consumer may be another now", word);
        return;
    }
    struct span ack = {d->bytes, d->ack - 1u};
    enum posted p = post(conn, ack, NOWHERE, NULL, word, strlen(word));
    if (p == POSTED && k->needs == PROOF_ACK && k->told == TOLD_NOTHING) {
        k->told = TOLD;
        consumer_ask_info_soon(k);
    }
    if (p == POSTED) return;
    say(&l->topic, LEVEL_WARN, "JetStream was not told %.4s of a message, and may deliver it again: %s", word,
        posted_text[p]);
}

static void js_in_progress(struct link *l, const struct delivery *d) {
    struct conn *conn = js_conn(l, d);
    if (conn) js_post(l, conn, d, "+WPI");
}

/* Asks JetStream to deliver a message again after a while. False: there is no connection to do so on. */
static bool js_nak(struct link *l, const struct delivery *d, uint64_t delay_ms) {
    char word[64];
    struct conn *conn = js_conn(l, d);
    (void)snprintf(word, sizeof(word), "-NAK {\"delay\":%" PRIu64 "}", delay_ms * 1000000);
    if (conn) js_post(l, conn, d, word);
    return conn;
}

/* Tells JetStream the outcome of a delivery. A message that the component failed on comes back later each
 * time, as often as the consumer's max_deliver allows. False: there is no connection to tell it on; it is
 * told later. */
static bool js_settle(struct link *l, const struct delivery *d, enum count outcome) {
    const struct consumer *k = &l->consumers[d->consumer];
    struct conn *conn = js_conn(l, d);
    struct js_ack a = {.deliveries = 1};
    if (!conn) return false;
    if (outcome == HANDLED || outcome == DROPPED) {
        js_post(l, conn, d, outcome == HANDLED ? "+ACK" : "+TERM");
        return true;
    }
    (void)js_ack_read(d->bytes, &a);
    if (k->allowed.max_deliver && a.deliveries >= k->allowed.max_deliver)
        say(&l->topic, LEVEL_ERROR,
            "message %" PRIu64 " of stream %s failed in the last of %" PRIu64
            " deliveries: consumer %s gives it up",
            a.sequence, k->name.stream, k->allowed.max_deliver, k->name.consumer);
    (void)js_nak(l, d, MIN((uint64_t)NAK_MIN_MS << MIN(MAX(a.deliveries, 1) - 1, 16), NAK_MAX_MS));
    return true;
}

/* Tells JetStream that the open deliveries of a consumer are still being worked on, three times in its
 * ack_wait. What has waited for too long is given back, for another gateway to handle; unless its
 * deliveries are numbered. */
static void consumer_progress(struct consumer *k) {
    struct link *l = k->link;
    uint8_t place = (uint8_t)(k - l->consumers);
    k->progress_ms = now_ms + progress_period_ms(k);
    EACH_CALL(c) {
        const struct delivery *d = call_has_delivery(c) ? c->delivery : NULL;
        if (d && c->link == l && d->ack && d->consumer == place) js_in_progress(l, d);
    }
    for (struct delivery **at = &l->stored.first, *d; (d = *at);) {
        uint16_t waited_s = (uint16_t)(now_ms / 1000 - d->since_s);
        if (d->consumer != place || k->allowed.max_deliver > 0 || waited_s < KEPT_MS / 1000) {
            if (d->consumer == place) js_in_progress(l, d);
            if (d->consumer == place && waited_s >= KEPT_MS / 1000)
                say(&l->topic, LEVEL_INFO,
                    "a message of consumer %s has waited for %u s; it is kept, not given back, since "
                    "max_deliver is limited",
                    k->name.consumer, waited_s);
            l->stored.last = d;
            at = &d->next;
            continue;
        }
        *at = d->next;
        l->queued--;
        delivery_give_back(l, d, "the component could not have it for too long");
    }
}

/* Makes the table of consumers that of the link's settings. One that is gone from them stays until its
 * deliveries have ended; one that is new takes a free place, or waits for one. */
static void consumers_apply(struct link *l) {
    size_t i;
    json_t *entry, *list = json_object_get(l->settings, "consumers");
    EACH_CONSUMER(k, l) {
        if (!k->removed) k->gone_ms = now_ms + PULL_EXPIRES_MS;
        k->removed = true;
    }
    json_array_foreach(list, i, entry) {
        struct js_name name = js_name_of(entry);
        struct consumer *place = NULL, *free_place = NULL;
        for (struct consumer *k = l->consumers; k < l->consumers + CONSUMERS_PER_LINK; k++) {
            if (k->state == CONSUMER_UNUSED && !free_place) free_place = k;
            if (k->state != CONSUMER_UNUSED && js_is_named(&k->name, &name)) place = k;
        }
        if (!place && !free_place) continue; /* consumers_step() comes back to it */
        if (!place) {
            place = free_place;
            l->has_consumers = true;
            *place = (struct consumer){.state = CONSUMER_UNKNOWN,
                                       .link = l,
                                       .question = place->question,
                                       .due_ms = now_ms};
        }
        json_decref(place->entry);
        place->entry = json_incref(entry);
        place->name = name;
        place->group = text_at(entry, "group");
        place->max_messages = (uint64_t)json_integer_value(json_object_get(entry, "max_messages"));
        place->max_bytes = (uint64_t)json_integer_value(json_object_get(entry, "max_bytes"));
        if (place->removed && place->asked != l->conn) consumer_restart(place); /* its request has gone */
        place->removed = false;
    }
    requests_share();
}

/*
 * ---- 8 wRPC -----------------------------------------------------------------------------------------------
 *
 * The messages of a call are shown at struct call, in section 2.
 *
 * Hosts of 1.4.1 to 1.9 have a race: a client of theirs drops what comes before its loop has registered the
 * inboxes of the call. It takes messages and registrations in random order, and the registration is in its
 * queue before the call, or the handshake, goes out (protocol: wrpc-transport-nats 0.27 to 0.30,
 * Client::new and invoke; since 0.31 registrations come first). So
 *
 *  - a component's call has a real Rs, and its handshake is repeated until something has come to Rs.params:
 *    then the caller has registered all of its inboxes, and hears us. Until then the result waits in the
 *    slot; a short one goes out early, too;
 *  - what cannot wait follows *padding*: messages to an inbox that the client does not register. For each
 *    of them the loop takes the registration first with one half; behind HANDSHAKE_PADDING of them it has
 *    done so but for once in 2^HANDSHAKE_PADDING.
 *
 * Rc, Rs and the reply subject of a request are inboxes of ours: "{inbox}{slot}{secret}". The secret is the
 * call's own, so that what comes for a call that has ended, or was never made, is nobody's: who was asked
 * once could guess others.
 *
 * Interface: call_take, call_set, call_free, count_call; calls_step, calls_make_room (the loop); call_inbox,
 * call_of_subject; send_…; call_deliver, call_release; answers_resume, answers_move, is_amid_chunks,
 * has_calls (a lattice that moves); read_…, write_…; buffer_…, backlog_…
 */
static void call_again(struct call *c);
static void release_some(unsigned most);

/* How many more slots a link may take: a few it can always have, and of the rest as many as leave more free
 * than it holds. Those that are only to be answered count for none. */
static unsigned calls_free_for(const struct link *l) {
    unsigned left = CALLS_MAX - calls.used + calls.answered, own = CALLS_MAX / LINKS_MAX / 4;
    unsigned shared = l->calls + own * LINKS_MAX;
    return MIN(left, MAX(own - MIN(own, l->calls), (left - MIN(left, shared) + 1) / 2));
}

/* A slot, or NULL: none is free, or the link has its share. */
static struct call *call_take(struct link *l) {
    if (calls.used == CALLS_MAX) release_some(RELEASED_AT_ONCE);
    if (calls.used == CALLS_MAX || calls_free_for(l) == 0) return NULL;
    struct call *c = calls.free;
    if (c) calls.free = c->next;
    else c = &calls.slots[calls.fresh++];
    memset(c, 0, offsetof(struct call, result));
    calls.used++;
    c->link = l;
    c->home = lattice;
    c->began_us = now_us;
    c->deadline_ms = UINT64_MAX;
    c->state = CALL_TAKEN;
    l->calls++;
    return c;
}

static const unsigned call_may_become[CALL_STATES] __attribute__((unused)) = {
    [CALL_TAKEN] = BIT(CALL_FREE) | BIT(CALL_INVOKED) | BIT(CALL_PARAMS) | BIT(CALL_OUTBOX) |
                   BIT(CALL_WRITING) | BIT(CALL_ASKED) | BIT(CALL_ANSWERED) | BIT(CALL_SENT),
    [CALL_INVOKED] = BIT(CALL_FREE) | BIT(CALL_SETTLING),
    [CALL_SETTLING] = BIT(CALL_FREE),
    [CALL_PARAMS] = BIT(CALL_FREE) | BIT(CALL_OUTBOX) | BIT(CALL_WRITING) | BIT(CALL_ASKED) |
                    BIT(CALL_ANSWERED) | BIT(CALL_SENT),
    [CALL_OUTBOX] = BIT(CALL_FREE) | BIT(CALL_WRITING) | BIT(CALL_ASKED) | BIT(CALL_ANSWERED) |
                    BIT(CALL_SENT),
    [CALL_WRITING] = BIT(CALL_FREE) | BIT(CALL_ANSWERED) | BIT(CALL_SENT),
    [CALL_ASKED] = BIT(CALL_FREE) | BIT(CALL_ANSWERED) | BIT(CALL_SENT),
    [CALL_ANSWERED] = BIT(CALL_FREE) | BIT(CALL_SENT),
    [CALL_SENT] = BIT(CALL_FREE) | BIT(CALL_ANSWERED),
};

/* Counts a call where its state belongs, or (-1) no more; some states have a list, in the order of
 * arrival. */
static void call_count(struct call *c, int by) {
    struct link *l = c->link;
    struct call_list *list = NULL;
    if (c->state == CALL_OUTBOX) list = &l->outbox;
    if (c->state == CALL_WRITING) list = &c->conn->writing;
    if (c->state == CALL_SENT) list = &c->home->writing;
    if (c->state == CALL_ANSWERED) calls.answered += (unsigned)by;
    if (c->state < CALL_ANSWERED) l->calls += (unsigned)by;
    if (c->state == CALL_INVOKED) l->in_flight += (unsigned)by;
    if (c->state == CALL_WRITING || c->state == CALL_ASKED) c->conn->users += (unsigned)by;
    if (!list) return;
    if (by > 0) {
        c->next = NULL;
        c->before = list->last;
        *(list->last ? &list->last->next : &list->first) = c;
        list->last = c;
    } else {
        *(c->before ? &c->before->next : &list->first) = c->next;
        *(c->next ? &c->next->before : &list->last) = c->before;
    }
}

/* The only place where a call changes its state: the counters cannot drift from it. */
static void call_set(struct call *c, enum call_state to, uint64_t deadline_ms) {
    assert(call_may_become[c->state] & BIT(to));
    call_count(c, -1);
    c->state = to;
    if (to != CALL_FREE) call_count(c, 1);
    c->deadline_ms = deadline_ms;
    if (to != CALL_FREE) wake_at(c->again_ms ? MIN(deadline_ms, c->again_ms) : deadline_ms);
}

/* Whether it is one of handle-message that holds a delivery. */
static bool call_has_delivery(const struct call *c) {
    return (c->state == CALL_INVOKED || c->state == CALL_SETTLING) && c->delivery;
}

static size_t buffer_size(const struct buffer *b) {
    return arena_block(sizeof(*b) + b->parent + b->state + b->room);
}

/* Gives a slot back, and what it holds. */
static void call_free(struct call *c) {
    if (call_has_delivery(c)) delivery_free(c->link, c->delivery);
    else buffer_free(c->link, c->buffer);
    call_set(c, CALL_FREE, 0);
    c->next = calls.free;
    calls.free = c;
    if (--calls.used == 0) calls.next_due_ms = UINT64_MAX;
}

/* Does what is due: ends calls whose time is over, repeats what is to be repeated. Runs over the slots only
 * when something may be due. */
static void calls_step(void) {
    if (now_ms < calls.next_due_ms) return;
    calls.next_due_ms = UINT64_MAX;
    EACH_CALL(c) {
        if (now_ms >= c->deadline_ms) {
            if (c->state == CALL_INVOKED || c->state == CALL_SETTLING) delivery_expire(c);
            else call_expire(c);
        }
        if (c->state != CALL_FREE && c->again_ms && now_ms >= c->again_ms) call_again(c);
        if (c->state != CALL_FREE) wake_at(c->again_ms ? MIN(c->deadline_ms, c->again_ms) : c->deadline_ms);
    }
}

/* Counts a call that has ended; `error`: why without success, or NULL. */
static void count_call(struct link *l, enum function f, enum count outcome, uint64_t began_us,
                       const char *error) {
    struct tally *t = &l->tallies[f];
    l->counts[outcome]++;
    t->calls++;
    t->us += now_us - began_us;
    if (!error) return;
    t->errors++;
    (void)log_escape(t->last_error, sizeof(t->last_error), error, false);
}

static uint8_t *buffer_bytes(struct buffer *b) { return (uint8_t *)b->bytes + b->parent + b->state; }

/* Whether a link may keep so many bytes more, beside what is promised to consumers. A few it can always
 * have; of the rest one slow link gets eight ninths, and the next one as much of what it left. */
static bool backlog_has_room(const struct link *l, size_t size) {
    size_t used = backlog.bytes + size, has = l->bytes + size;
    if (size > BACKLOG_MAX || used + backlog.reserved > BACKLOG_MAX) return false;
    return has <= BACKLOG_OWN || (used <= BACKLOG_SHARED && has / 8 <= BACKLOG_SHARED - used);
}

/* Counts bytes of a link that there are more, or (a negative number) fewer. */
static void backlog_count(struct link *l, size_t bytes) {
    backlog.bytes += bytes;
    l->bytes += bytes;
}

/* A buffer with these bytes, and room for more. NULL: no memory, or none of the link's share. */
static struct buffer *buffer_make(struct link *l, struct trace t, const void *bytes, size_t len,
                                  size_t room) {
    uint16_t parent = (uint16_t)(t.parent ? strlen(t.parent) + 1 : 0);
    uint16_t state = (uint16_t)(t.state ? strlen(t.state) + 1 : 0);
    struct buffer head = {.len = (uint32_t)len, .room = (uint32_t)room, .parent = parent, .state = state};
    size_t size = buffer_size(&head);
    struct buffer *b = room <= BACKLOG_MAX && backlog_has_room(l, size) ? malloc(size - ARENA_HEAD) : NULL;
    if (!b) return NULL;
    *b = head;
    if (parent) memcpy(b->bytes, t.parent, parent);
    if (state) memcpy(b->bytes + parent, t.state, state);
    if (len) memcpy(buffer_bytes(b), bytes, len);
    backlog_count(l, size);
    return b;
}

static void buffer_free(struct link *l, struct buffer *b) {
    if (!b) return;
    backlog_count(l, -buffer_size(b));
    free(b);
}

/* Makes the token of a call's inbox, with the digits of its slot from this letter on. */
static void call_token(struct call *c, char letter) {
    size_t slot = (size_t)(c - calls.slots);
    for (size_t i = SLOT_LEN; i-- > 0; slot >>= 4) c->token[i] = (char)(letter + (char)(slot & 15));
    nkey_random(c->token + SLOT_LEN, SECRET_LEN);
}

/* The subject of a call's inbox on a connection; `out` is where it is written. */
static struct span call_inbox(struct call *c, const struct conn *on, char out[INBOX_MAX + TOKEN_LEN]) {
    if (!*c->token) call_token(c, 'A');
    *(char *)mempcpy(mempcpy(out, on->inbox, on->inbox_len), c->token, TOKEN_LEN) = 0;
    return (struct span){out, on->inbox_len + TOKEN_LEN};
}

/* The call whose inbox a subject is, and what stands behind it ("", ".results", …). NULL: no such call, or
 * no more. */
static struct call *call_of_subject(const struct conn *on, const char *subject, const char **suffix) {
    const char *token = subject + on->inbox_len;
    size_t slot = 0;
    *suffix = "";
    if (strnlen(token, TOKEN_LEN) < TOKEN_LEN) return NULL;
    *suffix = token + TOKEN_LEN;
    for (size_t i = 0; i < SLOT_LEN; i++) slot = slot << 4 | (size_t)((token[i] - 'A') & 15);
    struct call *c = &calls.slots[slot % CALLS_MAX];
    return c->state != CALL_FREE && memcmp(c->token, token, TOKEN_LEN) == 0 ? c : NULL;
}

/* What follows the other side's inbox in the subject of an answer. */
static struct span call_suffix(const struct call *c) {
    return c->is_end ? SPAN(".params") : SPAN(".results");
}

static struct span reply_of(const struct call *c) { return (struct span){c->reply, c->reply_len}; }

/* Whether somebody's inbox can be answered: a subject, with room for what is put behind it. */
static bool is_inbox(struct span s) { return s.len + TOKEN_LEN < INBOX_MAX && is_subject(s, false); }

/* Sends to an inbox of the other side. False: the lattice does not take it now. */
static bool send_to(struct span inbox, struct span suffix, struct span reply, const void *data, size_t len) {
    UNSET char subject[INBOX_MAX + 16];
    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): the suffix ends it */
    memcpy(subject, inbox.at, inbox.len);
    memcpy(subject + inbox.len, suffix.at, suffix.len + 1);
    enum posted p = post(lattice, (struct span){subject, inbox.len + suffix.len}, reply, NULL, data, len);
    if (p != POSTED) say(&no_link.topic, LEVEL_WARN, "cannot answer a call: %s", posted_text[p]);
    return p == POSTED;
}

/* Sends bytes in chunks that the lattice's server takes, from *sent on, and the empty message that ends
 * them. False: it does not take all of that now; *sent says how far it got. */
static bool send_chunks(struct span inbox, struct span suffix, const void *data, size_t len, uint32_t *sent) {
    size_t most = lattice->state == CONN_UP ? lattice->io.max_payload : len;
    while (*sent < len) {
        size_t chunk = MIN(most, len - *sent);
        if (!send_to(inbox, suffix, NOWHERE, (const char *)data + *sent, chunk)) return false;
        *sent += (uint32_t)chunk;
    }
    return send_to(inbox, suffix, NOWHERE, NULL, 0);
}

/* Whether the lattice is slow: what is only sent to be on the safe side is left out then. While it takes
 * nothing it is not read, so a moment later counts as well. */
static bool lattice_is_behind(void) {
    if (lattice->state == CONN_UP && conn_waiting(lattice) > IO_BUFFER) conn_write(lattice);
    return lattice->state != CONN_UP || conn_waiting(lattice) > IO_BUFFER ||
           now_ms - lattice->io.blocked_ms < BEHIND_MS;
}

/* What a host's client subscribes to as a whole, without its last token: since wrpc-transport-nats 0.27
 * (hosts of 1.4.1) its inboxes are tokens behind one prefix of two. Before that each inbox was subscribed to
 * by itself, and that of the handshake only until it had come: none. */
static struct span client_of(struct span inbox) {
    const char *last = memrchr(inbox.at, '.', inbox.len);
    size_t len = last ? (size_t)(last - inbox.at) : 0;
    return memchr(inbox.at, '.', len) ? (struct span){inbox.at, len} : NOWHERE;
}

/* Lets the other side's client get round to registering the call's inboxes: see the race above. "pad" is none
 * of them. */
static void send_padding(struct span inbox) {
    struct span client = client_of(inbox);
    for (int i = 0; client.len > 0 && i < HANDSHAKE_PADDING; i++)
        if (!send_to(client, SPAN(".pad"), NOWHERE, NULL, 0)) return;
}

/* Every call gets a handshake, even one that is refused. NULL: it names an inbox that nobody listens to. */
static bool send_handshake(struct span caller, struct call *c) {
    char inbox[INBOX_MAX + TOKEN_LEN];
    struct span rs = c ? call_inbox(c, lattice, inbox) : span_of(self.nobody);
    return send_to(caller, SPAN(""), rs, NULL, 0);
}

/* The whole result at once, to a caller that may not hear us yet. `c`: its call; or NULL, which many may be
 * at a time. False: the lattice does not take it. */
static bool send_answer(struct span caller, struct call *c, const uint8_t *result, size_t len) {
    uint32_t sent = 0;
    if (c || !lattice_is_behind()) send_padding(caller);
    return send_handshake(caller, c) &&
           send_chunks(caller, SPAN(".results"), result, len, c ? &c->sent : &sent);
}

/* Why a call failed, for hosts of 1.0, which would wait for ever for a result. */
static void send_error(struct span caller, const char *text) {
    uint8_t bytes[256] = {(uint8_t)MIN(strlen(text), 120)};
    memcpy(bytes + 1, text, bytes[0]);
    (void)send_to(caller, SPAN(".error"), NOWHERE, bytes, 1u + bytes[0]);
}

/* The result that waits in a call. */
static struct span result_of(const struct call *c) {
    if (!c->buffer) return (struct span){(const char *)c->brief, c->brief_len};
    return (struct span){(const char *)buffer_bytes(c->buffer), c->buffer->len};
}

/* Sends the result before the caller is known to hear us, if one message holds it, and without its end: a
 * caller reads no further than it must, so it may get the same twice. (Of no result the end is all there
 * is.) */
static void send_early(struct call *c) {
    struct span result = result_of(c);
    c->sent = 0;
    if (lattice_is_behind() || result.len > lattice->io.max_payload) return;
    if (send_to(reply_of(c), SPAN(".results"), NOWHERE, result.at, result.len))
        c->sent = (uint32_t)result.len;
}

/* The lattice's connection has the whole answer. */
static void call_sent(struct call *c) {
    c->home = lattice;
    c->out_at = lattice->io.given;
    c->again_ms = 0;
    call_set(c, CALL_SENT, UINT64_MAX);
}

/* The caller hears us: the rest of the result goes out; or as much of it as the lattice takes now. */
static void call_deliver(struct call *c) {
    struct span result = result_of(c);
    c->heard = true;
    c->again_ms = c->deadline_ms; /* while the lattice is away: it comes back to answers_resume() */
    if (lattice->state != CONN_UP) return;
    if (send_chunks(reply_of(c), call_suffix(c), result.at, result.len, &c->sent)) {
        call_sent(c);
        return;
    }
    c->again_ms = now_ms + DELIVER_PAUSE_MS;
    wake_at(c->again_ms);
}

/* A result can wait for its caller's acknowledgement no longer: it goes out behind padding. */
static void call_release(struct call *c) {
    if (!c->heard) {
        if (!lattice_is_behind()) send_padding(reply_of(c));
        (void)send_handshake(reply_of(c), c);
        c->sent = 0;
    }
    call_deliver(c);
}

/* What is repeated, or goes on, in a call: parameters, a result, or a handshake after which nothing has
 * come to Rs.params yet. The last time, padding makes sure that the caller hears us. A request goes on with
 * handshakes, which do its caller no harm, to see whether that is still there. */
static void call_again(struct call *c) {
    if (c->state == CALL_INVOKED) {
        params_send_rest(c);
        return;
    }
    if (c->heard && c->state == CALL_ANSWERED) {
        call_deliver(c);
        return;
    }
    c->again_ms = lattice->state == CONN_UP ? now_ms + c->pause_ms : c->deadline_ms;
    if (lattice_is_behind()) return;
    c->absences = c->nobody ? (uint8_t)MIN(c->absences + 1, ABSENCES_MAX) : 0;
    c->nobody = false;
    if (c->state == CALL_ASKED && c->absences == ABSENCES_MAX) {
        call_end_unanswered(c, "", caller_gone);
        return;
    }
    bool last = c->state == CALL_ANSWERED ? c->pause_ms == HANDSHAKE_PAUSE_MAX_MS
                                          : now_us - c->began_us >= HANDSHAKE_MS * 1000ull;
    calls.repeated++;
    if (last && c->state == CALL_ANSWERED) {
        call_release(c);
        return;
    }
    c->pause_ms = (uint16_t)MIN(2 * c->pause_ms, HANDSHAKE_PAUSE_MAX_MS);
    c->again_ms = now_ms + (c->heard || last ? HANDSHAKE_MS : c->pause_ms);
    if (last && !c->heard) send_padding(reply_of(c));
    c->heard |= last;
    (void)send_handshake(reply_of(c), c);
    c->sent = 0; /* what went out early may have been lost, like the handshake before */
    if (c->state == CALL_ANSWERED && !c->buffer) send_early(c);
}

/* Slots are short: of the calls whose callers do not acknowledge, some end that were told twice, or else
 * once. */
static void release_some(unsigned most) {
    unsigned left = most;
    for (unsigned told = 2; told > 0 && left == most; told--) {
        EACH_CALL(c) {
            if (left == 0 || c->state != CALL_ANSWERED || c->heard || c->pause_ms < told * HANDSHAKE_PAUSE_MS)
                continue;
            left--;
            call_release(c);
        }
    }
    conn_write(lattice);
    on_answers_written(lattice);
}

/* Once a turn: what the next reading brings finds slots free, though answers hold theirs until they are
 * written. */
static void calls_make_room(void) {
    if (calls.used > CALLS_MAX / 4 * 3 && calls.answered > 0 && !lattice->io.blocked)
        release_some(calls.used - CALLS_MAX / 4 * 3);
}

/* The lattice is back; or the connection is lost (else NULL) by which calls still went on that began before
 * another took over. Of what went out last nobody knows what arrived, and the caller's host may come back
 * later than we: a handshake goes out again, and a result in one message, as if nothing had been acknowledged
 * so far. (Hosts of 1.0 acknowledge nothing.) A result in chunks cannot be resumed, and is ended, if it had
 * begun. */
static void answers_resume(const struct conn *lost) {
    EACH_CALL(c) {
        bool drains = c->home != lattice && conn_is_open(c->home);
        if (lost ? c->home != lost : drains && c->state < CALL_ANSWERED) continue;
        if (c->state == CALL_SENT) call_set(c, CALL_ANSWERED, UINT64_MAX);
        c->home = lattice;
        if (c->state == CALL_INVOKED) delivery_doubt(c);
        if (c->state < CALL_PARAMS) continue;
        size_t len = c->state == CALL_ANSWERED ? result_of(c).len : 0;
        c->sent = len <= lattice->io.max_payload || c->sent == 0 ? 0 : (uint32_t)len;
        c->heard = !c->acknowledges || c->sent > 0;
        c->nobody = false;
        c->pause_ms = HANDSHAKE_PAUSE_MS;
        if (!c->acknowledges && !c->is_end)
            (void)send_handshake(reply_of(c), c->state == CALL_PARAMS ? c : NULL);
        if (!c->heard && c->buffer && c->state == CALL_ANSWERED) send_early(c);
        if (c->acknowledges || c->state == CALL_ANSWERED) c->again_ms = now_ms;
        wake_at(now_ms);
    }
}

/* The lattice's connection is another, and the old one still there. A result that went out early does so once
 * more, before its end: that might overtake it else. */
static void answers_move(void) {
    EACH_CALL(c) {
        if (c->state == CALL_ANSWERED) c->sent = 0;
    }
}

/* Whether part of a result, or of parameters, went out, and the rest did not. */
static bool is_amid_chunks(void) {
    EACH_CALL(c) {
        if (c->state == CALL_ANSWERED && c->sent > 0 && (c->heard || c->sent < result_of(c).len)) return true;
        if (c->state == CALL_INVOKED && c->again_ms && c->sent < c->delivery->params_len) return true;
    }
    return false;
}

/* Whether this connection of the lattice has the inboxes of a call, or its result. */
static bool has_calls(const struct conn *conn) {
    EACH_CALL(c) {
        if (c->home == conn) return true;
    }
    return false;
}

/*
 * wRPC writes values as the component model does (protocol: its value encoding; wrpc-transport):
 *
 *     u32               unsigned LEB128, at most 5 bytes
 *     string, list<u8>  length as u32, then the bytes; strings are UTF-8
 *     option<T>         00, or 01 and T
 *     result<T, E>      00 and T, or 01 and E
 *     record, params    the fields in order, nothing between
 *
 * Nothing is framed: parameters that come in chunks are whole when they decode. So decoding has three
 * outcomes, and says how many bytes it takes at least before another try is worth while.
 */
static enum decoded needs_more(struct reader *r, size_t bytes) {
    r->needs = (size_t)(r->at - r->start) + bytes;
    return NEEDS_MORE;
}

static enum decoded read_u32(struct reader *r, uint32_t *value) {
    uint64_t v = 0;
    for (size_t i = 0; i < 5; i++) {
        if (i >= (size_t)(r->end - r->at)) return needs_more(r, i + 1);
        v |= (uint64_t)(r->at[i] & 0x7f) << (7 * i);
        if (r->at[i] & 0x80) continue;
        r->at += i + 1;
        *value = (uint32_t)v;
        return v > UINT32_MAX ? MALFORMED : WHOLE;
    }
    return MALFORMED;
}

static enum decoded read_bytes(struct reader *r, struct span *s) {
    uint32_t len = 0;
    enum decoded d = read_u32(r, &len);
    if (d != WHOLE) return d;
    if (len > (size_t)(r->end - r->at))
        return needs_more(r, MIN(len, 2u * PARAMS_MAX)); /* no sum of somebody's may wrap */
    *s = (struct span){(const char *)r->at, len};
    r->at += len;
    return WHOLE;
}

static enum decoded read_string(struct reader *r, struct span *s) {
    enum decoded d = read_bytes(r, s);
    return d == WHOLE && !is_utf8(*s) ? MALFORMED : d;
}

/* The parameters of publish: (broker-message). */
static enum decoded read_publish(struct reader *r, struct message *m) {
    enum decoded d = read_string(r, &m->subject);
    if (d == WHOLE) d = read_bytes(r, &m->body);
    if (d != WHOLE) return d;
    if (r->at == r->end) return needs_more(r, 1);
    if (*r->at > 1) return MALFORMED;
    m->has_reply = *r->at++;
    return m->has_reply ? read_string(r, &m->reply_to) : WHOLE;
}

/* The parameters of request: (subject, body, timeout-ms). */
static enum decoded read_request(struct reader *r, struct message *m, uint32_t *timeout_ms) {
    enum decoded d = read_string(r, &m->subject);
    if (d == WHOLE) d = read_bytes(r, &m->body);
    return d == WHOLE ? read_u32(r, timeout_ms) : d;
}

static void result_start(struct result *r) {
    memset(r, 0, offsetof(struct result, text));
    r->text[0] = 0;
}

/* The next bytes of the result of handle-message: result<_, string>. */
static enum decoded read_result(struct result *r, const uint8_t *bytes, size_t len) {
    for (const uint8_t *end = bytes + len; bytes < end && r->at != AT_END; bytes++) {
        uint8_t byte = *bytes;
        switch (r->at) {
        case AT_TAG:
            if (byte > 1) return MALFORMED;
            r->is_error = byte;
            r->at = byte ? AT_LENGTH : AT_END;
            break;
        case AT_LENGTH:
            r->len |= (uint64_t)(byte & 0x7f) << r->shift;
            r->shift = (uint8_t)(r->shift + 7);
            if (r->shift > 35 || r->len > UINT32_MAX || (byte & 0x80 && r->shift == 35)) return MALFORMED;
            if (!(byte & 0x80)) r->at = r->len ? AT_TEXT : AT_END;
            break;
        default: /* AT_TEXT */
            if (r->kept < sizeof(r->text) - 1) {
                r->text[r->kept++] = (char)byte;
                r->text[r->kept] = 0;
            }
            if (--r->len == 0) r->at = AT_END;
        }
    }
    return r->at == AT_END ? WHOLE : NEEDS_MORE;
}

static size_t write_u32(uint8_t *out, uint32_t value) {
    size_t n = 0;
    for (; value > 0x7f; value >>= 7) out[n++] = (uint8_t)(value | 0x80);
    out[n++] = (uint8_t)value;
    return n;
}

static size_t write_bytes(uint8_t *out, struct span s) {
    size_t n = write_u32(out, (uint32_t)s.len);
    if (s.len) memcpy(out + n, s.at, s.len);
    return n + s.len;
}

/* What write_bytes() writes for so many. */
static size_t bytes_size(size_t len) {
    size_t n = 1;
    for (size_t rest = len >> 7; rest > 0; rest >>= 7) n++;
    return n + len;
}

/* What write_message() writes. */
static size_t message_size(const struct message *m) {
    return bytes_size(m->subject.len) + bytes_size(m->body.len) + 1 +
           (m->has_reply ? bytes_size(m->reply_to.len) : 0);
}

static size_t write_message(uint8_t *out, const struct message *m) {
    size_t n = write_bytes(out, m->subject);
    n += write_bytes(out + n, m->body);
    out[n++] = m->has_reply;
    return m->has_reply ? n + write_bytes(out + n, m->reply_to) : n;
}

/* An error result: a text for the component. */
static size_t write_error(uint8_t result[ERROR_MAX + 8], const char *prefix, const char *text) {
    char whole[ERROR_MAX];
    (void)snprintf(whole, sizeof(whole), "%s%s", prefix, text);
    for (struct span s = span_of(whole); !is_utf8(s); s = span_of(whole))
        whole[s.len - 1] = 0; /* cut within a character */
    result[0] = 1;
    return 1 + write_bytes(result + 1, span_of(whole));
}

/*
 * ---- 9 links ----------------------------------------------------------------------------------------------
 *
 * A link joins one component to this provider under a name. If the provider is its *source*, the
 * component's handle-message is called for each message of its subscriptions and consumers: it delivers. If
 * the provider is its *target*, the component publishes and requests: it serves. What it leaves out in its
 * configuration and secrets stands in the provider's. Changing one is make before break: a setting that
 * does not concern the connection is changed in place; for another the new connection comes up beside the
 * old one, which serves until then (for a round trip both are subscribed: a queue group's message comes
 * once, any other may come twice). Settings that are wrong leave what runs alone. A server that will close
 * is left in the same way.
 *
 * Interface: link_put, on_delete, on_config (orders), link_of (calls), link_step, link_renew (the loop),
 * link_up, link_lost, link_message, link_move, link_subscribe (connections), link_error, link_hint,
 * link_report (control).
 */
static void link_change(struct link *l, json_t *settings);
static void link_apply(struct link *l, json_t *settings);

/* The link that serves a component's calls. */
static struct link *link_of(const char *component, const char *name) {
    EACH_LINK(l) {
        if (l->state == LINK_LEAVING || l->delivers || strcmp(l->component, component) != 0) continue;
        if (strcmp(l->name, name) == 0) return l;
    }
    return NULL;
}

static struct link *link_with_id(const json_t *definition) {
    const json_t *id = json_object_get(definition, "id");
    EACH_LINK(l) {
        if (l->state != LINK_LEAVING && json_equal(json_object_get(l->definition, "id"), id)) return l;
    }
    return NULL;
}

/* A free slot for a link, or NULL: there are LINKS_MAX of them, or too many still leave. */
static struct link *link_take(void) {
    size_t staying = 0;
    struct link *slot = links_fresh < LINK_SLOTS ? &links[links_fresh] : NULL;
    for (struct link *l = links + links_fresh; l-- > links;) {
        if (l->state == LINK_FREE) slot = l;
        else staying += l->state != LINK_LEAVING;
    }
    if (staying >= LINKS_MAX || !slot) return NULL;
    links_fresh = MAX(links_fresh, (size_t)(slot - links) + 1);
    return slot;
}

/* Gives a link its names; it runs when link_change() finds its settings right. Takes `definition` over. */
static void link_fill(struct link *l, json_t *definition, bool delivers) {
    const json_t *id = json_object_get(definition, "id");
    char label[300];
    *l = (struct link){.state = LINK_WRONG,
                       .delivers = delivers,
                       .definition = definition,
                       .topic.kind = "link"};
    (void)snprintf(l->component, ID_MAX, "%s", text_at(id, delivers ? "target" : "source_id"));
    (void)snprintf(l->name, ID_MAX, "%s", text_at(id, "name"));
    (void)log_escape(l->topic.name, sizeof(l->topic.name), link_label(id, label), false);
    (void)snprintf(l->subject, sizeof(l->subject),
                   "%s.%s.wrpc.0.0.1.wasmcloud:messaging/handler@0.2.0.handle-message", self.lattice,
                   l->component);
}

/* A slip in the configuration, for the log. */
static void warn_of_slip(void *topic, const char *text) { say(topic, LEVEL_WARN, "%s", text); }

/* Puts a link, or changes it. False: there is no memory for it. */
static bool link_put(const json_t *json) {
    bool delivers = false;
    const char *why = NULL;
    char label[300];
    json_t *definition = read_definition(json, self.key, &delivers, &why);
    if (!definition && json_is_short()) return false;
    if (!definition) {
        say(&self.topic, LEVEL_ERROR, "the link %s was ignored: %s", link_label(json, label), why);
        return true;
    }
    EACH_LINK(other) {
        definition_share(definition, other->definition);
    }
    struct link *l = link_with_id(definition);
    json_t *settings = merge_settings(&self.defaults, definition, delivers);
    if (l) {
        bool same = json_equal(l->definition, definition);
        json_decref(l->definition);
        l->definition = definition;
        if (!same && settings)
            (void)settings_slips(definition, settings, delivers, &(struct listener){warn_of_slip, &l->topic});
        link_change(l, settings);
        return true;
    }
    l = settings ? link_take() : NULL;
    if (l) {
        link_fill(l, definition, delivers);
        (void)settings_slips(definition, settings, delivers, &(struct listener){warn_of_slip, &l->topic});
        if (strstr(self.refused, l->topic.name)) self.refused[0] = 0;
        link_change(l, settings);
        return true;
    }
    if (settings) {
        (void)link_label(json_object_get(definition, "id"), label);
        (void)
            snprintf(self.refused, sizeof(self.refused),
                     "link %s: no place: there are %d links, the most that this build takes; delete one and "
                     "put it again",
                     label, LINKS_MAX);
        say(&self.topic, LEVEL_ERROR, "%s", self.refused);
    }
    bool had_memory = settings;
    json_decref(definition);
    json_decref(settings);
    return had_memory;
}

/* Why a link's settings cannot be used, or NULL: on their own, or beside the links that run. */
static const char *link_settings_error(const struct link *l, const json_t *settings) {
    static char text[128];
    const char *error = text_at(l->definition, "error");
    if (*error) return error;
    error = settings_error(settings);
    size_t sum = count_items(text_at(settings, "subscriptions"));
    EACH_LINK(other) {
        if (other == l || other->state != LINK_RUNNING) continue;
        size_t present = count_items(text_at(other->settings, "subscriptions"));
        size_t next = other->next ? count_items(text_at(other->next->settings, "subscriptions")) : 0;
        sum += MAX(present, next);
    }
    if (error || sum <= SUBSCRIPTIONS_MAX) return error;
    (void)snprintf(text, sizeof(text),
                   "all links together ask for %zu subscriptions, and this build takes %d", sum,
                   SUBSCRIPTIONS_MAX);
    return text;
}

/* A connection that comes up beside another is not wanted any more. */
static void next_drop(struct link *l) {
    if (l->next) conn_drain(l->next, LEAVE_MS);
    l->next = NULL;
}

/* Lets a link have these settings: it was put, or put anew, the defaults have changed, or there is room
 * now. What runs goes on until the new settings do. Takes `settings` over; NULL: there was no memory for
 * them. */
static void link_change(struct link *l, json_t *settings) {
    l->renew = !settings;
    if (!settings) {
        say(&l->topic, LEVEL_WARN, "its settings are looked at again when there is memory");
        return;
    }
    const char *error = link_settings_error(l, settings);
    bool again = error && strcmp(l->error, error) == 0;
    (void)snprintf(l->error, sizeof(l->error), "%s", error ? error : "");
    if (error) {
        if (!again)
            say(&l->topic, LEVEL_ERROR,
                l->state == LINK_WRONG ? "not started: %s" : "its new settings are not used: %s", error);
        json_decref(settings);
        return;
    }
    if (l->next && json_equal(settings, l->next->settings)) {
        json_decref(settings); /* it comes up already */
        return;
    }
    next_drop(l);
    if (l->state == LINK_WRONG || same_connection(settings, l->settings)) {
        l->state = LINK_RUNNING;
        if (!json_equal(settings, l->settings)) link_apply(l, json_incref(settings));
    } else if (l->conn && l->conn->state == CONN_UP) {
        say(&l->topic, LEVEL_INFO, "its settings changed: it connects anew, and goes on as it is until then");
        l->next = conn_start(l, json_incref(settings));
        l->renew = !l->next;
    } else { /* nothing runs that could go on */
        if (l->conn) conn_drain(l->conn, 0);
        l->conn = NULL;
        l->copies_until_ms = now_ms + PULL_EXPIRES_MS;
        link_apply(l, json_incref(settings));
    }
    json_decref(settings);
    if (!l->conn) l->conn = conn_start(l, json_incref(l->settings));
}

/* Whether a link is to be looked at again, when there may be memory, or a place. */
static bool link_waits(const struct link *l) {
    bool moves = l->next && l->next->settings == l->settings;
    return l->renew && !moves && l->state != LINK_LEAVING && stop.state == RUNNING;
}

/* Looks at a link's settings again, as they are now. */
static void link_renew(struct link *l) {
    link_change(l, merge_settings(&self.defaults, l->definition, l->delivers));
}

/* Of an entry of `subscriptions`: odd, and so none of enum item. */
static uint64_t item_hash(struct span item) { return hash_of(item) | 1; }

/* Makes the subscriptions of a connection those of the settings: what is new first, then what is gone. */
static void link_subscribe(struct link *l, struct conn *c, const json_t *settings) {
    struct span item, subject, queue;
    const char *list = text_at(settings, "subscriptions");
    bool wanted[COUNT_OF(net.subs)] = {false};
    if (json_object_get(settings, "consumers")) {
        char inbox[INBOX_MAX];
        (void)snprintf(inbox, sizeof(inbox), "%.*sp.>", (int)c->inbox_len - 2, c->inbox);
        (void)conn_subscribe(c, inbox, NULL, ITEM_NONE);
    }
    for (size_t n = 0; list && list_item(list, n, &item); n++) {
        char s[SUBJECT_MAX + 1], q[SUBJECT_MAX + 1];
        uint64_t hash = item_hash(item);
        bool there = false;
        for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
            if (net.subs[i].conn != c || net.subs[i].item != hash) continue;
            wanted[i] = true;
            there = net.subs[i].answer != SUB_REFUSED;
        }
        if (there || !split_subscription(item, &subject, &queue)) continue;
        (void)text_of(subject, s, sizeof(s));
        (void)text_of(queue, q, sizeof(q));
        if (!conn_subscribe(c, s, *q ? q : NULL, hash)) return;
        say(&l->topic, LEVEL_DEBUG, "subscribed to %s%s%s", s, *q ? " in queue group " : "", q);
        for (size_t i = 0; i < COUNT_OF(net.subs); i++)
            if (net.subs[i].conn == c && net.subs[i].item == hash) wanted[i] = true;
    }
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (net.subs[i].conn != c || net.subs[i].item == 0 || wanted[i]) continue;
        natsSubscription_Destroy(net.subs[i].sub);
        net.subs[i].conn = NULL;
    }
}

/* Links whose settings could not be used may have room now. */
static void links_look_again(void) {
    EACH_LINK(l) l->renew |= l->state != LINK_LEAVING && *l->error;
}

/* Lets a link run with these settings, which it takes over. Its connection is the right one. */
static void link_apply(struct link *l, json_t *settings) {
    json_t *before = l->settings;
    l->settings = settings;
    l->max_in_flight = number_of(settings, "max_in_flight");
    l->handler_timeout_ms = number_of(settings, "handler_timeout_ms");
    l->subscribed = l->delivers && text_at(settings, "subscriptions");
    l->overhears = l->subscribed && strpbrk(text_at(settings, "subscriptions"), "*>");
    if (l->delivers) consumers_apply(l);
    uint64_t ping_ms = number_of(settings, "ping_interval_sec") * 1000;
    if (l->conn && l->conn->ping_ms != ping_ms) {
        l->conn->ping_ms = ping_ms;
        l->conn->io.heard_ms = now_ms; /* the new interval begins now */
    }
    if (l->conn && l->conn->state == CONN_UP && link_takes_work(l)) link_subscribe(l, l->conn, settings);
    if (count_items(text_at(settings, "subscriptions")) < count_items(text_at(before, "subscriptions")))
        links_look_again();
    json_decref(before);
}

/* Whether the old connection's server knows what the new one has subscribed to. Another server of a cluster
 * hears of it a moment later than the new one's own: before that, a message would find nobody there. */
static bool next_is_known(const struct link *l) {
    char id[2][128] = {"", ""}; /* not its address: behind one there may be several */
    if (!l->conn || l->conn->state != CONN_UP || now_ms - l->next->io.up_ms >= OVERLAP_MS) return true;
    (void)natsConnection_GetConnectedServerId(l->conn->nc, id[0], sizeof(id[0]));
    (void)natsConnection_GetConnectedServerId(l->next->nc, id[1], sizeof(id[1]));
    return *id[0] && strcmp(id[0], id[1]) == 0;
}

/* The connection that came up beside the other takes over, and the other is drained. */
static void link_take_over(struct link *l) {
    struct conn *old = l->conn;
    l->conn = l->next;
    l->next = NULL;
    l->copies_until_ms = now_ms + PULL_EXPIRES_MS;
    if (old) conn_drain(old, LEAVE_MS);
    if (old && old->state == CONN_DRAINING) l->after_ms = now_ms + PROBE_PATIENCE_MS;
    link_apply(l, json_incref(l->conn->settings));
    consumers_restart(l);
    EACH_CONSUMER(k, l) k->moved = true; /* another server may have consumers of the same names */
}

/* Its server will close: a connection to another takes over, as when settings change. False: there is no
 * place for one now. */
static bool link_move(struct link *l) {
    if (l->next && l->next->settings != l->settings && l->next->state != CONN_UP) {
        next_drop(l); /* new settings that nobody answers to: first away from here */
        l->renew = true;
    }
    if (!l->next && link_takes_work(l)) l->next = conn_start(l, json_incref(l->settings));
    return l->next;
}

/* A connection of a link is up. One that is to take over does so when its server has the subscriptions. */
static void link_up(struct conn *c) {
    struct link *l = c->link;
    if (!link_takes_work(l)) return;
    if (c == l->next && l->conn && l->conn->state == CONN_UP) {
        link_subscribe(l, c, c->settings);
        conn_probe(c);
    } else if (c == l->next) {
        link_take_over(l);
    } else {
        link_subscribe(l, c, l->settings);
        consumers_restart(l);
    }
}

static void link_lost(struct conn *c, const char *error) {
    struct link *l = c->link;
    char text[256];
    (void)snprintf(text, sizeof(text), "connection lost: %s", error);
    link_calls_end(l, c, text);
    if (c == l->conn) consumers_restart(l);
    else if (!link_drains(l, NULL)) l->after_ms = 0;
}

/* Whether a message is traffic of wRPC on this lattice, of anybody's: what a call sends has a subject of the
 * lattice, or that of an inbox. */
static bool is_wrpc(const char *subject, const char *reply) {
    static const char *const suffixes[] = {".params", ".results", ".error", ".pad"};
    size_t len = strlen(self.lattice);
    const char *last = strrchr(subject, '.');
    if (strncmp(subject, self.lattice, len) == 0 && subject[len] == '.') return strstr(subject, ".wrpc.");
    if (strncmp(subject, "_INBOX.", 7) != 0) return false;
    for (size_t i = 0; i < COUNT_OF(suffixes); i++)
        if (strcmp(last, suffixes[i]) == 0) return true;
    return reply && strncmp(reply, "_INBOX.", 7) == 0; /* a handshake */
}

/* Whether a message that a subscription with a wildcard has matched is part of what providers do: a component
 * that was called for it would bring forth the next one, for ever. What has one of our inboxes in it, or is
 * for us, is so on any server. A connection that hears our own calls has the lattice behind it: there wRPC
 * of others is passed over as well, who may hear ours. */
static bool is_overheard(struct conn *c, const char *subject, const char *reply) {
    bool own = false, lattices = reply && strcmp(reply, self.nobody) == 0;
    /* also one that is closed, until its place is taken: a slow path brings later what it had heard */
    for (const struct conn *other = conns; other < conns + conns_fresh; other++) {
        if (other->inbox_len == 0) continue; /* its place was never used */
        bool is_own = inbox_kind(other, subject);
        char kind = reply ? inbox_kind(other, reply) : 0;
        own |= is_own || kind == 'p'; /* or a question to JetStream */
        lattices |= other->is_lattice && (is_own || kind);
    }
    if (lattices && !c->io.hears_lattice) {
        c->io.hears_lattice = true;
        say(c->topic, LEVEL_INFO, "its subscriptions match the lattice's traffic, which no component gets");
    }
    for (size_t i = 0; i < COUNT_OF(subjects); i++)
        own |= *subject == *subjects[i].name && strcmp(subject, subjects[i].name) == 0;
    if (*subject == '$') own |= js_is_own(subject);
    if (!c->io.hears_lattice) return own;
    return lattices || own || is_wrpc(subject, reply) || strncmp(subject, "$SRV.", 5) == 0;
}

/* Whether a copy of what a consumer delivered is ours to handle: not if it came by our inbox as well, or if
 * another had asked for it, who is to acknowledge it. But the subscription that brings it also makes the
 * server believe that the inbox of a connection before this one is still there, for as long as the last
 * request of that stands. */
static bool copy_is_wanted(const struct consumer *k, const struct conn *c, const struct js_ack *a) {
    return c == k->link->conn && now_ms < k->link->copies_until_ms && a->number > k->last;
}

/* Everything that arrives on a link's connection. `msg` is NULL if it was passed over, for this reason. */
static void link_message(struct conn *c, const char *subject, const char *reply, natsMsg *msg,
                         const char *why) {
    struct link *l = c->link;
    assert(l->state == LINK_RUNNING || l->state == LINK_LEAVING);
    char kind = inbox_kind(c, subject);
    if (kind == 'c') {
        const char *suffix;
        struct call *call = call_of_subject(c, subject, &suffix);
        if (!call || call->state != CALL_ASKED || call->conn != c || *suffix) return;
        if (msg) on_reply(call, msg);
        else call_end_error(call, why);
    } else if (kind == 'p') {
        if (msg) js_answer(l, subject + c->inbox_len, msg);
    } else if (l->delivers) {
        /* the server delivers what a consumer was asked for under its own subject, with the reply subject
         * on which it is acknowledged. What a subscription with a wildcard brings of that is a copy */
        struct js_ack a;
        struct consumer *k = consumer_of(l, reply, &a);
        if (k && c->io.guard.sid != c->io.pull_sid && !copy_is_wanted(k, c, &a)) return;
        if (k) js_message(k, c, reply, msg, why, &a);
        else if (!(l->overhears && is_overheard(c, subject, reply)) && !(msg && js_is_push_status(c, msg)))
            on_message(l, c, subject, msg, why);
    }
}

/* No new work; what is under way ends, and the connection is drained. */
static void link_leave(struct link *l) {
    l->state = LINK_LEAVING;
    l->leave_by_ms = now_ms + LEAVE_MS;
    next_drop(l);
    queue_drop(l, "the link was deleted");
    /* longer than the link, which at its end gives back what the component still has, and ends it */
    if (l->conn) conn_drain(l->conn, 2 * LEAVE_MS);
    EACH_CALL(c) { /* what could not be told to JetStream so far: by the connection that drains, or never */
        if (c->state != CALL_SETTLING || c->link != l) continue;
        (void)js_settle(l, c->delivery, c->outcome);
        delivery_done(c);
    }
}

/* An order to delete the links that agree with what it says. Hosts of 1.0 leave most of the fields out. */
static bool on_delete(natsMsg *msg, const json_t *json) {
    (void)msg;
    if (!text_at(json, "source_id")) return true;
    for (size_t i = json_array_size(self.links); i-- > self.links_put;) /* it waits for memory */
        if (deletes(json, json_array_get(self.links, i))) json_array_remove(self.links, i);
    EACH_LINK(l) {
        if (l->state == LINK_LEAVING || !deletes(json, json_object_get(l->definition, "id"))) continue;
        say(&l->topic, LEVEL_INFO, "deleted");
        self.refused[0] = 0;
        link_leave(l);
    }
    return true;
}

/* New defaults: links for which they make a difference change. */
static bool on_config(natsMsg *msg, const json_t *json) {
    const char *error = settings_too_large(json, NULL);
    (void)msg;
    if (error) {
        say(&self.topic, LEVEL_ERROR, "its new configuration is not used: %s", error);
        return true;
    }
    json_decref(self.defaults.config);
    self.defaults.config = json_incref((json_t *)json);
    EACH_LINK(l) {
        if (l->state != LINK_LEAVING) link_renew(l);
    }
    return true;
}

/* Calls, messages, or bytes that must still go out: what JetStream is told of the last messages, say. */
static bool link_is_busy(const struct link *l) {
    bool writes = l->conn && conn_is_open(l->conn) && conn_is_well(l->conn) && conn_waiting(l->conn) > 0;
    return l->calls > 0 || l->queued > 0 || writes;
}

/* Whether a connection of the link is open still: its last, or one that another took over from. */
static bool link_is_open(const struct link *l) {
    EACH_CONN(c) {
        if (c->link == l && conn_is_open(c)) return true;
    }
    return false;
}

/* Gives a leaving link's slot back. Who waited for room may have it now. */
static void link_free(struct link *l) {
    queue_drop(l, "the link was deleted");
    deliveries_abandon(l, "the link was deleted");
    link_calls_end(l, NULL, "the link was deleted");
    link_report(l, false);
    log_tick(&l->topic, true);
    EACH_CONN(c) {
        if (c->link != l) continue;
        conn_drain(c, 0);
        if (c->state == CONN_FREE) continue;
        c->link = NULL;
        c->topic = &self.topic;
        c->users = 0;
    }
    EACH_CONSUMER(k, l) consumer_free(k);
    json_decref(l->settings);
    json_decref(l->definition);
    l->state = LINK_FREE;
    links_look_again();
}

/* What is due for a link; called on every turn of the loop. */
static void link_step(struct link *l) {
    outbox_step(l);
    if (next_is_up(l) && l->next->io.probe == PROBE_NONE) conn_probe(l->next);
    if (l->next && is_ready(l->next) && next_is_known(l)) link_take_over(l);
    if (l->later.first && !later_waits(l)) {
        queue_join(l);
        dispatch(l);
    }
    if (l->state == LINK_RUNNING && !l->conn && stop.state == RUNNING)
        l->conn = conn_start(l, json_incref(l->settings));
    if (l->state == LINK_LEAVING) {
        bool done = l->calls == 0 && l->queued == 0 && !link_is_open(l);
        if (done || is_due(l->leave_by_ms)) link_free(l);
    }
}

/* When a link has something to do by itself: to leave, to be read again after a pause, to try again. */
static uint64_t link_next_ms(const struct link *l) {
    uint64_t due_ms = l->state == LINK_LEAVING ? l->leave_by_ms : UINT64_MAX;
    if (l->pause_until_ms > now_ms) due_ms = MIN(due_ms, l->pause_until_ms);
    if (l->absent_until_ms > now_ms) due_ms = MIN(due_ms, l->absent_until_ms);
    if (l->outbox.first && l->after_ms > now_ms) due_ms = MIN(due_ms, l->after_ms);
    return l->has_consumers ? MIN(due_ms, consumers_next_ms(l)) : due_ms;
}

/* Why a link does not do all that it should, or "". */
static const char *link_error(const struct link *l, char text[400]) {
    const struct conn *c = l->conn;
    struct span first = {0};
    char address[URL_ADDRESS_MAX] = "";
    const char *not_used = l->state == LINK_WRONG ? "" : "its new settings are not used: ";
    if (*l->error) {
        (void)snprintf(text, 400, "%s%s", not_used, l->error);
        return text;
    }
    if (l->next && l->next->settings != l->settings && (*l->next->error || is_overdue(l->next))) {
        const char *why = *l->next->error ? l->next->error : "the server has not answered since it connected";
        (void)snprintf(text, 400, "its new settings are not used yet: %s", why);
        return text;
    }
    if (l->renew && !l->next && c && c->state == CONN_UP)
        return "its new settings wait for memory, or for a free connection";
    if (c && c->state == CONN_UP && c->io.error) return c->io.error;
    if (c && c->state == CONN_UP) return *refusals_error(c, text) ? text : consumers_error(l, text);
    if (c && *c->error) return c->error;
    if (!c) return "it waits for a free connection: others are being made, or drained";
    if (list_item(text_at(l->settings, "cluster_uris"), 0, &first)) (void)server_address(first, address);
    (void)snprintf(text, 400, "connecting to %s", address);
    return text;
}

/* What is no error of a link, but why nothing comes of it; or "". */
static const char *link_hint(const struct link *l) {
    bool idle = l->state == LINK_RUNNING && l->delivers && !l->subscribed;
    if (!idle || json_array_size(json_object_get(l->settings, "consumers")) > 0) return "";
    return "no message will come, since it has neither subscriptions nor consumers";
}

static unsigned link_reconnects(const struct link *l) {
    return l->conn && l->conn->times_up ? l->conn->times_up - 1 : 0;
}

/* What became of all messages and calls so far: never held back, and whatever the level if somebody asked. */
static void link_report(const struct link *l, bool asked) {
    char text[400];
    size_t at = (size_t)snprintf(text, sizeof(text), "counts: ");
    if (!asked && logger.level < LEVEL_INFO) return;
    for (enum count i = l->delivers ? RECEIVED : CALLS; i < (l->delivers ? CALLS : COUNTS); i++)
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%s=%" PRIu64 " ", count_names[i], l->counts[i]);
    (void)snprintf(text + at, sizeof(text) - at, "open=%u", l->calls + l->queued);
    log_line(&l->topic, LEVEL_INFO, text);
    for (enum function f = PUBLISH; f < FUNCTIONS; f++) {
        const struct tally *t = &l->tallies[f];
        if (t->calls == 0) continue;
        (void)snprintf(text, sizeof(text),
                       "%s: calls=%" PRIu64 " errors=%" PRIu64 " average_us=%" PRIu64
                       " reconnects=%u last_error=%s",
                       function_names[f], t->calls, t->errors, t->us / t->calls, link_reconnects(l),
                       t->last_error);
        log_line(&l->topic, LEVEL_INFO, text);
    }
}

/*
 * ---- 10 connections ---------------------------------------------------------------------------------------
 *
 * One connection to a NATS server: the lattice's, or a link's. nats.c does the protocol; the loop and the
 * reconnecting are ours. nats.c's own reconnect is off: with an event loop it is unsafe (its parser is not
 * reset), and it holds a lock while it resolves and connects. So every attempt makes a new natsConnection,
 * on a thread of its own, for the loop to take over. Of struct conn such a thread touches the constant
 * part, and the attempt's; no more.
 *
 * Interface: conn_start, conn_begin (the lattice's), conn_drain; conn_step, conn_next_ms, conn_read,
 * conn_write (the loop); post; conn_subscribe, conn_unsubscribe; conn_probe, is_flushed, is_ready; conn_is_…,
 * conn_has_room; inbox_make, inbox_kind, inbox_is_refused; refusals_error.
 */
static void conn_connect(struct conn *c);
static void inbox_subscribe(struct conn *c);
static bool subscription_refused(struct conn *c, const struct refusal *r);
static bool is_probe(const struct conn *c, const char *token);
static void conn_free(struct conn *c);
static void *connect_thread(void *arg);
static void on_arrived(void *user, natsMsg *msg);

static const unsigned conn_may_become[] __attribute__((unused)) = {
    [CONN_FREE] = BIT(CONN_WAITING) | BIT(CONN_CONNECTING),
    [CONN_WAITING] = BIT(CONN_WAITING) | BIT(CONN_CONNECTING) | BIT(CONN_FREE),
    [CONN_CONNECTING] = BIT(CONN_WAITING) | BIT(CONN_UP) | BIT(CONN_FREE),
    [CONN_UP] = BIT(CONN_WAITING) | BIT(CONN_DRAINING),
    [CONN_DRAINING] = BIT(CONN_FREE),
};

static void conn_set(struct conn *c, enum conn_state to) {
    assert(conn_may_become[c->state] & BIT(to));
    c->state = to;
    loop.again = true;
}

static bool conn_is_open(const struct conn *c) { return c->state == CONN_UP || c->state == CONN_DRAINING; }

/* Whether an open connection can still be used, as far as is known. */
static bool conn_is_well(const struct conn *c) { return !c->io.error && !atomic_load(&c->closed); }

/* ---- starting, and ending */

/* Begins to connect, for good, with settings that now belong to the connection. */
static void conn_begin(struct conn *c, json_t *settings, struct topic *topic) {
    const char *prefix = text_at(settings, "custom_inbox_prefix");
    (void)snprintf(c->name, sizeof(c->name), PROVIDER_NAME " %s %s",
                   c->link ? c->link->component : self.lattice, c->link ? c->link->name : "lattice");
    c->settings = settings;
    c->topic = topic;
    c->inbox_len = inbox_make(c->inbox, prefix ? prefix : "_INBOX");
    c->ping_ms = number_of(settings, "ping_interval_sec") * 1000;
    conn_connect(c);
}

/* A connection for a link, or (NULL) the lattice; it takes `settings` over. NULL: none is free now. One that
 * was to take over from another, and that could not connect so far, waits its turn. The first places are only
 * for the lattice. */
static struct conn *conn_start(struct link *l, json_t *settings) {
    struct conn *c = conns + (l ? LATTICE_CONNS : 0);
    while (c < conns + CONNS_MAX && c->state != CONN_FREE) c++;
    if (c == conns + CONNS_MAX) {
        for (c = conns + LATTICE_CONNS; c < conns + CONNS_MAX; c++)
            if (c->state == CONN_WAITING && c->link && c->link->next == c) break;
        if (c < conns + CONNS_MAX) {
            c->link->renew = true;
            conn_free(c);
        }
    }
    net.wanted = c == conns + CONNS_MAX;
    if (net.wanted) {
        json_decref(settings);
        return NULL;
    }
    conns_fresh = MAX(conns_fresh, (size_t)(c - conns) + 1);
    struct conn *beside = l ? l->conn : lattice;
    bool gives_memory = l && beside && beside->io.capacity >= MESSAGE_MAX; /* of its write buffer */
    *c = (struct conn){.link = l, .is_lattice = !l, .vital = !l || gives_memory};
    if (beside && beside->state == CONN_UP && same_connection(settings, beside->settings))
        c->named = beside->named;
    conn_begin(c, settings, l ? &l->topic : &no_link.topic);
    return c;
}

/* Ends its life: what still refers to it does so no more. */
static void conn_free(struct conn *c) {
    struct link *l = c->link;
    uint8_t place = (uint8_t)(c - conns);
    if (l && l->conn == c) l->conn = NULL;
    if (l && l->next == c) l->next = NULL;
    if (lattice_next == c) lattice_next = NULL;
    EACH_LINK(other) { /* of one that was given up while it connected, the link is not known any more */
        for (struct delivery *d = c->users ? other->stored.first : NULL; d; d = d->next)
            if (d->conn == place) d->conn = 0;
    }
    EACH_CALL(call) {
        if (c->users && call_has_delivery(call) && call->delivery->conn == place) call->delivery->conn = 0;
    }
    c->users = 0;
    json_decref(c->settings);
    conn_set(c, CONN_FREE);
}

/* Ends a connection that we do not want any more: unsubscribed, it goes on until nothing needs it and the
 * server has read all that was written, but for no longer than this. One that is not up ends at once, or
 * when its attempt does. */
static void conn_drain(struct conn *c, uint64_t within_ms) {
    if (c->state == CONN_UP) {
        conn_unsubscribe(c, false);
        conn_set(c, CONN_DRAINING);
        c->io.probe = PROBE_NONE;
        c->due_ms = now_ms + within_ms;
    } else if (c->state == CONN_DRAINING) {
        c->due_ms = MIN(c->due_ms, now_ms + within_ms);
    } else if (c->state == CONN_CONNECTING) {
        atomic_store(&c->unwanted, true);
        if (c->link && c->link->conn == c) c->link->conn = NULL;
        if (c->link && c->link->next == c) c->link->next = NULL;
        if (lattice_next == c) lattice_next = NULL;
        c->link = NULL;
        c->topic = &self.topic;
    } else if (c->state == CONN_WAITING) {
        conn_free(c);
    }
}

/* When to try again after so many failures in a row: the pause doubles, and is between half of that and all
 * of it, so that 10,000 gateways do not come back at once. */
static uint64_t retry_at(unsigned failures) {
    uint32_t pause = MIN((uint32_t)RETRY_MIN_MS << MIN(failures, 10), (uint32_t)RETRY_MAX_MS);
    return now_ms + pause / 2 + randombytes_uniform(pause / 2 + 1);
}

static void conn_wait(struct conn *c) {
    conn_set(c, CONN_WAITING);
    c->due_ms = retry_at(c->failures++);
}

static void conn_connect(struct conn *c) {
    pthread_t thread;
    /* an attempt that finds no memory half-way is for nothing, and takes some from others meanwhile */
    if (!c->vital && !arena_spares(ARENA_PER_LINK, ARENA_PER_LINK / 2, 0)) {
        (void)snprintf(c->error, sizeof(c->error), "%s", no_memory);
        conn_wait(c);
        say(c->topic, LEVEL_WARN, "not connected yet: %s", c->error);
        return;
    }
    c->nc = NULL;
    c->fd = -1;
    atomic_store(&c->report, REPORT_NONE);
    atomic_store(&c->closed, false);
    atomic_store(&c->wants_write, false);
    conn_set(c, CONN_CONNECTING);
    int e = pthread_create(&thread, NULL, connect_thread, c);
    if (e) {
        say(c->topic, LEVEL_ERROR, "cannot start a thread to connect: %s", strerror(e));
        conn_wait(c);
        return;
    }
    pthread_detach(thread);
}

/* Whether a large message may come; see deps/parser_guard.h. Those of the lattice go before. */
static bool takes_message(void *user, size_t bytes) {
    return bytes <= BLOCK_MAX && (((struct conn *)user)->vital || arena_spares(2 * bytes, bytes, 0));
}

/* A message is too large, there is no memory for it now, or `why`. Its bytes are passed over, and it ends
 * like any other: who waits for it hears of that. */
static void on_skipped(void *user, const char *subject, const char *reply, size_t bytes, const char *why) {
    struct conn *c = user;
    if (!why) why = bytes > BLOCK_MAX ? too_large : no_memory;
    say(c->topic, LEVEL_WARN, "a message of %zu bytes on %s was passed over: %s", bytes, subject, why);
    if (c->io.error) return;
    if (c->is_lattice) lattice_skipped(c, subject, reply);
    else if (c->link) link_message(c, subject, reply, NULL, why);
}

/* The server refuses something, in these words, and the connection stands: permissions. What it refuses is
 * kept, and told, until it works. The log has each subject once for each connection. */
static void on_refused(void *user, const char *text) {
    struct conn *c = user;
    UNSET struct refusal r;
    refusal_read(text, &r);
    if (r.subscription && c->is_lattice && strncmp(r.subject, "$SRV.", 5) == 0) return; /* a convenience */
    if (!r.subscription && inbox_kind(c, r.subject) == 'c') { /* as good an answer as its return */
        if (is_probe(c, r.subject + c->inbox_len)) c->io.probe = PROBE_BACK;
        return;
    }
    c->io.refused = c->io.news = true;
    if (r.subscription && !subscription_refused(c, &r))
        say(c->topic, LEVEL_WARN, "the server says: %s", without_secrets(c->settings, text));
    if (r.subscription) return;
    if (!c->link || !consumers_refused(c->link, r.subject))
        refusals_add(&c->io.publishes, without_secrets(c->settings, r.subject), now_ms);
}

/* What an INFO of the server may have changed. (One that takes 0 bytes takes none.) */
static void conn_learn(struct conn *c) {
    c->io.max_payload = (size_t)MIN(MAX(natsConnection_GetMaxPayload(c->nc), 1), INT32_MAX);
}

static void conn_came_up(struct conn *c) {
    conn_set(c, CONN_UP);
    c->times_up++;
    memset(&c->io, 0, sizeof(c->io));
    c->io.up_ms = c->io.heard_ms = now_ms;
    c->io.capacity = IO_BUFFER;
    conn_learn(c);
    c->io.headers = natsConnection_HasHeaderSupport(c->nc) == NATS_OK;
    c->io.guard = (struct guard){.message = on_arrived,
                                 .takes = takes_message,
                                 .skipped = on_skipped,
                                 .refused = on_refused,
                                 .named = &c->named,
                                 .user = c};
    c->error[0] = 0;
    net.up++;
    say(c->topic, LEVEL_INFO, "connected to %s", c->outcome);
    if (c->is_lattice && !c->io.headers) say(c->topic, LEVEL_ERROR, "%s", no_headers);
    /* in the TLS record of the first PONG there may be an INFO, which says what it takes */
    if (tls_has_input(c->fd)) conn_read(c);
    inbox_subscribe(c);
    if (c->is_lattice) {
        lattice_up(c);
        return;
    }
    c->vital = false;
    link_up(c);
}

/* Closes without waiting: nats.c would flush for up to 500 ms, so the socket is shut down, and it finds
 * that out. */
static void conn_close(struct conn *c) {
    (void)shutdown(c->fd, SHUT_RDWR);
    if (natsConnection_Buffered(c->nc) > 0) natsConnection_ProcessWriteEvent(c->nc);
    natsConnection_Close(c->nc);
    if (!c->io.error) c->io.error = "closed"; /* no message counts from here on */
    conn_unsubscribe(c, true);
    arena_wipe(true);
    guard_end(&c->io.guard);
    natsConnection_Destroy(c->nc);
    natsConnection_ProcessCloseEvent(&c->fd);
    c->nc = NULL;
    net.up--;
}

/* An open connection has ended, or has to: it connects again, unless it was draining. */
static void conn_lost(struct conn *c) {
    bool draining = c->state == CONN_DRAINING;
    const char *text = NULL, *error = c->io.error;
    (void)natsConnection_GetLastError(c->nc, &text);
    text = without_secrets(c->settings, text);
    /* or conn_read() has said it */
    if (!error && !*c->error) error = text && *text ? text : "the server closed it";
    if (error) (void)snprintf(c->error, sizeof(c->error), "%s", error);
    conn_close(c);
    if (now_ms - c->io.up_ms >= RETRY_MAX_MS / 3) c->failures = 0;
    say(c->topic, LEVEL_WARN, "connection lost: %s", c->error);
    if (!draining) conn_wait(c);
    if (c->link) link_lost(c, c->error);
    if (draining && c->is_lattice) answers_resume(c);
    if (draining) conn_free(c);
}

/* ---- nats.c's callbacks for event loops. Called under the lock of the natsConnection, perhaps on a thread
 * of nats.c's: so a flag and a wake-up, nothing more. The conn came in by natsOptions_SetEventLoop. */

static natsStatus on_attach(void **user, void *c, natsConnection *nc, natsSock fd) {
    (void)nc;
    ((struct conn *)c)->fd = fd;
    /* nats.c sets a linger time of 0, with which the last bytes before an exit would be thrown away */
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){0}, sizeof(struct linger));
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    /* what the kernel has and cannot send is lost with the connection: no more than this, so that we know */
    if (((struct conn *)c)->is_lattice)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &(int){IO_BUFFER}, sizeof(int));
    *user = c;
    return NATS_OK;
}

static natsStatus on_read_wanted(void *user, bool add) {
    if (add) return NATS_OK;
    atomic_store(&((struct conn *)user)->closed, true);
    wake_loop();
    return NATS_OK;
}

static natsStatus on_write_wanted(void *user, bool add) {
    atomic_store(&((struct conn *)user)->wants_write, add);
    return NATS_OK;
}

static natsStatus on_detach(void *user) {
    (void)user;
    return NATS_OK;
}

/* Errors that end the connection, which conn_lost() tells of. (Without this nats.c would write them to
 * standard error.) */
static void on_server_error(natsConnection *nc, natsSubscription *sub, natsStatus err, void *user) {
    (void)nc, (void)sub, (void)err, (void)user;
}

/* ---- the connecting thread */

#define SET(call) s = s == NATS_OK ? (call) : s

/* What is neither about the server nor about its user, for dial(). */
static natsStatus set_options(natsOptions *o, void *user) {
    struct conn *c = user;
    natsStatus s = NATS_OK;
    SET(natsOptions_SetEventLoop(o, c, on_attach, on_read_wanted, on_write_wanted, on_detach));
    SET(natsOptions_SetAllowReconnect(o, false));
    SET(natsOptions_SetIgnoreDiscoveredServers(o, true));
    SET(natsOptions_SetPingInterval(o, 0)); /* conn_check_life() asks instead */
    SET(natsOptions_SetSendAsap(o, true));
    SET(natsOptions_SetIOBufSize(o, IO_BUFFER));
    SET(natsOptions_SetErrorHandler(o, on_server_error, c));
    return s;
}

static void *connect_thread(void *user) {
    struct conn *c = user;
    c->nc = dial(&(struct dial){.settings = c->settings,
                                .name = c->name,
                                .named = &c->named,
                                .unwanted = &c->unwanted,
                                .options = set_options,
                                .user = c,
                                .outcome = c->outcome,
                                .outcome_size = sizeof(c->outcome)});
    nats_ReleaseThreadMemory();
    sodium_stackzero(THREAD_STACK / 2); /* the next thread may get this stack, with what is left on it */
    atomic_store(&c->report, c->nc ? REPORT_UP : REPORT_FAILED);
    wake_loop();
    return NULL;
}

/* ---- reading and writing */

/* Whether this is the last probe that was sent: one before it says nothing of what was written since. */
static bool is_probe(const struct conn *c, const char *token) {
    return strncmp(token, "probe.", 6) == 0 && strtoul(token + 6, NULL, 10) == c->io.probes;
}

/* Every message of a connection comes through here, and is gone when this returns. */
static void on_arrived(void *user, natsMsg *msg) {
    struct conn *c = user;
    const char *subject = natsMsg_GetSubject(msg);
    if (inbox_kind(c, subject) == 'c' && is_probe(c, subject + c->inbox_len)) c->io.probe = PROBE_BACK;
    else if (c->io.error) c->io.heard_ms = now_ms;
    else if (c->is_lattice) lattice_message(c, msg);
    else if (c->link) link_message(c, subject, natsMsg_GetReply(msg), msg, NULL);
    if (net.kept == msg) net.kept = NULL;
    else natsMsg_free(msg);
}

/* Reads what has come. If the connection ends so, what nats.c says of it on this thread tells more than
 * what it keeps. */
static void conn_read(struct conn *c) {
    natsStatus s = NATS_OK;
    const char *text = NULL;
    guard_watch(&c->io.guard);
    natsConnection_ProcessReadEvent(c->nc);
    guard_watch(NULL);
    conn_learn(c);
    if (c->io.guard.wrong) c->io.error = c->io.guard.wrong;
    c->io.heard_ms = now_ms;
    c->io.more = !atomic_load(&c->closed) && tls_has_input(c->fd);
    if (!atomic_load(&c->closed) || natsConnection_GetLastError(c->nc, &text) != NATS_IO_ERROR) return;
    text = without_secrets(c->settings, without_place(nats_GetLastError(&s)));
    if (s == NATS_IO_ERROR && text) (void)snprintf(c->error, sizeof(c->error), "%s", text);
}

/* Bytes of messages that wait in nats.c's write buffer. To ask nats.c would take a lock each time. */
static size_t conn_waiting(const struct conn *c) { return (size_t)(c->io.given - c->io.written); }

/* Writes what waits, as much as the socket takes. Asks the flag first: with nothing to write, nats.c would
 * send 0 bytes and take the result for the end of the connection. In a loop that is not nats.c's, nothing
 * else writes. */
static void conn_write(struct conn *c) {
    if (!conn_is_open(c) || c->io.blocked || c->io.error || !atomic_load(&c->wants_write)) return;
    natsConnection_ProcessWriteEvent(c->nc);
    if (atomic_load(&c->closed)) return; /* what became of the bytes, nobody knows */
    c->io.blocked = atomic_load(&c->wants_write);
    /* what nats.c wrote by itself is in it, too */
    uint64_t left = c->io.blocked ? (uint64_t)natsConnection_Buffered(c->nc) : 0;
    uint64_t written = c->io.given - MIN(left, c->io.given);
    c->io.written = MAX(c->io.written, written);
}

/* Whether the peer's kernel has acknowledged bytes since the last look, in this turn or before. Of TLS and
 * of nats.c's own lines SIOCOUTQ counts more than we do: so it is at least so many. */
static bool conn_takes(struct conn *c) {
    int unacked = 0;
    (void)ioctl(c->fd, SIOCOUTQ, &unacked); /* without it, what our kernel takes has to do */
    uint64_t acked = c->io.written - MIN((uint64_t)unacked, c->io.written);
    if (acked > c->io.acked) c->io.acked_ms = now_ms;
    c->io.acked = acked;
    return c->io.acked_ms == now_ms;
}

/* Whether nats.c's write buffer, which grows and never shrinks, may take this many bytes more. */
static bool conn_has_room(struct conn *c, size_t bytes) {
    size_t most = c->is_lattice ? 2 * PARAMS_MAX : WRITE_MAX, wanted = conn_waiting(c) + bytes;
    if (bytes < 4096) most += 64 * 1024; /* small answers get through for longer */
    if (wanted > most) return false;
    if (wanted <= c->io.capacity) return true;
    size_t to_come = net.up > LINKS_MAX ? 0 : LINKS_MAX + 1 - net.up;
    if (!arena_spares(wanted + wanted / 8, wanted + wanted / 8, to_come * ARENA_PER_LINK)) return false;
    c->io.capacity = wanted + wanted / 10;
    return true;
}

/* Gives a message to nats.c, which writes it when the loop says so. Subjects were checked, and have a NUL
 * behind them; there may be no reply and no headers. For what finds no memory the connection is POST_FULL,
 * and stands: nats.c has none of it. */
static enum posted post(struct conn *c, struct span subject, struct span reply, const struct header *headers,
                        const void *data, size_t len) {
    size_t head = headers_size(headers), all = wire_size(subject.len, reply.len, head, len);
    if (!conn_is_open(c) || !conn_is_well(c) || (head && !c->io.headers)) return POST_DOWN;
    if (head + len > c->io.max_payload) return POST_TOO_LARGE;
    if (!conn_has_room(c, all)) {
        conn_write(c); /* the socket may take what is in the way */
        if (!conn_has_room(c, all)) return POST_FULL;
    }
    if (message_write(c->nc, subject, reply, headers, data, len)) {
        c->io.given += all;
        if (c->io.refused) refusals_try(&c->io.publishes, subject);
        return POSTED;
    }
    /* nats.c may have buffered half of a message, and the next bytes would be read as part of it: nothing
     * of this connection may be written any more */
    c->io.error = "out of memory in the middle of a message";
    return POST_BROKEN;
}

/* Sends a message to ourselves: when it has come back, the server has read all that was written before, and
 * we have read all that it had sent before. */
static void conn_probe(struct conn *c) {
    char subject[INBOX_MAX + 24];
    if (inbox_is_refused(c, 'c')) inbox_subscribe(c); /* which has an answer, good or bad */
    c->io.probe = PROBE_NONE;
    (void)snprintf(subject, sizeof(subject), "%sprobe.%u", c->inbox, ++c->io.probes);
    if (post(c, span_of(subject), NOWHERE, NULL, NULL, 0) != POSTED) return;
    c->io.probe = PROBE_SENT;
    c->io.probed = c->io.given;
    c->io.probe_ms = now_ms;
}

/* Whether the server has read all that was written before the last probe. A user that may not publish to
 * its own inbox never hears of it: then, after a while, that the server's kernel has taken every byte has
 * to do; and of a connection that drains, that nothing more comes. */
static bool is_flushed(const struct conn *c) {
    int unsent = 0;
    uint64_t since_ms = c->state == CONN_DRAINING ? MAX(c->io.probe_ms, c->io.heard_ms) : c->io.probe_ms;
    if (c->io.probe != PROBE_SENT) return c->io.probe == PROBE_BACK;
    if (now_ms - since_ms < PROBE_PATIENCE_MS || conn_waiting(c) > 0) return false;
    return ioctl(c->fd, SIOCOUTQ, &unsent) < 0 || unsent == 0;
}

/* Whether a connection may take over: its server says that it has read what was subscribed to. (What its
 * kernel alone has taken, it may never read.) */
static bool is_ready(const struct conn *c) { return c->state == CONN_UP && c->io.probe == PROBE_BACK; }

/* Whether it should be so by now. */
static bool is_overdue(const struct conn *c) {
    return c->state == CONN_UP && !is_ready(c) && now_ms - c->io.up_ms >= PROBE_PATIENCE_MS;
}

/* ---- subscriptions and inboxes */

/* The subject of a subscription, or "": it ended with its connection. */
static const char *sub_subject(size_t i) {
    const char *subject = natsSubscription_GetSubject(net.subs[i].sub);
    return subject ? subject : "";
}

/* Whether a subscription is this connection's, to this subject. */
static bool is_sub(size_t i, const struct conn *c, const char *subject) {
    return net.subs[i].conn == c && strcmp(sub_subject(i), subject) == 0;
}

/* `item`: hash of the entry in `subscriptions` that it is for; 0: an inbox, or the lattice's. What stands
 * already is left as it is, and what was refused is tried again. False: the connection cannot be used, and
 * will be closed. */
static bool conn_subscribe(struct conn *c, const char *subject, const char *queue, uint64_t item) {
    size_t i = 0, free_place = 0;
    while (i < COUNT_OF(net.subs) && !(net.subs[i].item == item && is_sub(i, c, subject))) i++;
    while (free_place < COUNT_OF(net.subs) && net.subs[free_place].conn) free_place++;
    bool again = i < COUNT_OF(net.subs), told = again && net.subs[i].told;
    if (again && net.subs[i].answer != SUB_REFUSED) return true;
    if (again) natsSubscription_Destroy(net.subs[i].sub);
    else i = free_place;
    if (i == COUNT_OF(net.subs)) {
        c->io.error = "there are too many subscriptions";
        return false;
    }
    net.subs[i].conn = NULL;
    natsStatus s = queue ? natsConnection_QueueSubscribeSync(&net.subs[i].sub, c->nc, subject, queue)
                         : natsConnection_SubscribeSync(&net.subs[i].sub, c->nc, subject);
    if (s != NATS_OK) {
        say(c->topic, LEVEL_ERROR, "cannot subscribe to %s: %s", subject, natsStatus_GetText(s));
        c->io.error = "it could not subscribe"; /* else it would stand, and hear nothing for ever */
        return false;
    }
    net.subs[i].conn = c;
    net.subs[i].item = item;
    net.subs[i].answer = again ? SUB_ASKED : SUB_STANDS;
    net.subs[i].told = told;
    net.subs[i].probe = c->io.probes + 1;
    if (inbox_kind(c, subject) == 'p') c->io.pull_sid = (size_t)natsSubscription_GetID(net.subs[i].sub);
    if (again) c->io.probe = PROBE_NONE; /* the next one tells */
    return true;
}

/* The inbox for replies to what is sent by this connection. */
static void inbox_subscribe(struct conn *c) {
    char inbox[INBOX_MAX + 2];
    (void)snprintf(inbox, sizeof(inbox), "%s>", c->inbox);
    (void)conn_subscribe(c, inbox, NULL, ITEM_NONE);
}

/* Whether the server refuses the subscription to an inbox of ours: no reply can come. */
static bool inbox_is_refused(const struct conn *c, char kind) {
    if (!c->io.refused) return false;
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (net.subs[i].conn != c || net.subs[i].answer == SUB_STANDS) continue;
        if (inbox_kind(c, sub_subject(i)) == kind) return true;
    }
    return false;
}

/* ---- what the server refuses */

/* A subscription is refused, or was ended by a change of permissions. It is tried again, less and less
 * often: whoever mends the permissions in a running server is not to have to think of us. */
static bool subscription_refused(struct conn *c, const struct refusal *r) {
    bool any = false;
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (!is_sub(i, c, r->subject)) continue;
        bool same_item = net.subs[i].item <= ITEM_SHUTDOWN || net.subs[i].item == item_hash(span_of(r->item));
        if (r->sid ? r->sid != natsSubscription_GetID(net.subs[i].sub) : !same_item) continue;
        any = true;
        bool answered = net.subs[i].answer == SUB_ASKED && !r->sid && net.subs[i].probe == c->io.probes;
        net.subs[i].answer = SUB_REFUSED;
        if (c->io.ask_ms == 0) c->io.ask_ms = retry_at(c->io.asks++);
        char kind = inbox_kind(c, r->subject);
        if (kind == 'p' && c->link && c == c->link->conn) consumers_restart(c->link);
        if (kind != 'c') continue;
        /* conn_probe() asks for it directly before the probe: all that was written before has been read */
        if (answered && c->io.probe == PROBE_SENT) c->io.probe = PROBE_BACK;
        EACH_CALL(call) {
            if (call->state == CALL_ASKED && call->conn == c)
                call_end_error(call, posted_text[POST_NO_REPLY]);
        }
    }
    return any;
}

/* What the server refuses, with as many names as fit, or "". `news`: only what the log does not have yet. */
static const char *refusals_list(const struct conn *c, bool news, char text[400]) {
    struct names n = {.text = text, .size = 400};
    const struct refusals *p = &c->io.publishes;
    const char *hint = "";
    text[0] = 0;
    if (!c->io.refused) return text;
    if (inbox_is_refused(c, 'c') || inbox_is_refused(c, 'p'))
        hint = c->is_lattice
                   ? " (no answer can come: its user needs _INBOX.>)"
                   : " (no reply can come: set custom_inbox_prefix to what this user may subscribe to)";
    names_begin(&n, "Permissions Violation%s: ", hint);
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (net.subs[i].conn != c || net.subs[i].answer == SUB_STANDS || (news && net.subs[i].told)) continue;
        names_add(&n, "subscription to ", sub_subject(i));
    }
    for (const struct refused *f = p->of; f < p->of + REFUSALS_MAX; f++)
        if (f->state != REFUSED_NONE && !(news && f->told)) names_add(&n, "publish to ", f->subject);
    names_end(&n, news && p->others_told ? 0 : p->others);
    return text;
}

static const char *refusals_error(const struct conn *c, char text[400]) {
    return refusals_list(c, false, text);
}

/* Writes to the log what was refused since, once for each subject. */
static void refusals_tell(struct conn *c) {
    char text[400];
    if (*refusals_list(c, true, text)) say(c->topic, LEVEL_ERROR, "%s", text);
    refusals_told(&c->io.publishes);
    c->io.news = false;
    for (size_t i = 0; i < COUNT_OF(net.subs); i++)
        if (net.subs[i].conn == c && net.subs[i].answer == SUB_REFUSED) net.subs[i].told = true;
}

/* What was tried again before the last probe, and not refused before that was back, works. */
static void refusals_end(struct conn *c) {
    refusals_proved(&c->io.publishes);
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (net.subs[i].conn != c || net.subs[i].answer != SUB_ASKED) continue;
        net.subs[i].answer = SUB_STANDS;
        net.subs[i].told = false;
        loop.again = true; /* a consumer may have waited for its inbox */
        say(c->topic, LEVEL_INFO, "the server lets it subscribe to %s now", sub_subject(i));
    }
}

/* What is due about refusals, on each turn of the loop. */
static void refusals_due(struct conn *c) {
    bool asked = false, refused = false;
    if (!c->io.refused || c->state != CONN_UP || stop.state != RUNNING) return;
    if (c->io.news) refusals_tell(c);
    if (is_flushed(c)) refusals_end(c);
    if (c->io.ask_ms && is_due(c->io.ask_ms)) {
        c->io.ask_ms = 0;
        if (c->is_lattice) lattice_subscribe(c);
        else if (c->link && c == c->link->conn) link_subscribe(c->link, c, c->link->settings);
        conn_probe(c); /* and to the inbox */
    }
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (net.subs[i].conn != c) continue;
        asked |= net.subs[i].answer == SUB_ASKED;
        refused |= net.subs[i].answer != SUB_STANDS;
    }
    if (!refused) {
        c->io.asks = 0;
        c->io.ask_ms = 0;
    }
    bool tried = (c->io.probe != PROBE_SENT || is_flushed(c)) && refusals_probe(&c->io.publishes);
    if (tried || (asked && c->io.probe == PROBE_NONE)) conn_probe(c);
    c->io.refused = refusals_step(&c->io.publishes, now_ms) || refused;
}

/* Ends subscriptions: all, or all but those to the inbox of calls and to shutdown, which means no new work
 * while answers still come. What was on its way comes all the same: the guard gives it to on_arrived(). */
static void conn_unsubscribe(struct conn *c, bool all) {
    for (size_t i = 0; i < COUNT_OF(net.subs); i++) {
        if (net.subs[i].conn != c) continue;
        const char *subject = sub_subject(i);
        if (!all && (!*subject || inbox_kind(c, subject) == 'c' || net.subs[i].item == ITEM_SHUTDOWN))
            continue;
        natsSubscription_Destroy(net.subs[i].sub);
        net.subs[i].conn = NULL;
    }
    if (!all && c->link && c->link->conn == c) consumers_withdraw(c->link);
}

/* An inbox that nobody else has. Returns its length. Inboxes are short, because nats.c, each server on the
 * way and the host look at every byte of them in every message. */
static size_t inbox_make(char out[INBOX_MAX], const char *prefix) {
    char secret[SECRET_LEN];
    nkey_random(secret, SECRET_LEN);
    return (size_t)snprintf(out, INBOX_MAX, "%s.%.*s.c.", prefix, SECRET_LEN, secret);
}

/* The kind of inbox of ours that a subject is in: 'c' for calls, 'p' for JetStream; or 0. */
static char inbox_kind(const struct conn *c, const char *subject) {
    if (strncmp(subject, c->inbox, c->inbox_len - 2) != 0) return 0;
    char kind = subject[c->inbox_len - 2];
    return kind && subject[c->inbox_len - 1] == '.' ? kind : 0;
}

/* ---- what is due */

static bool conn_is_asked(const struct conn *c) { return c->io.asked_ms > c->io.heard_ms; }

static void conn_ask(struct conn *c) {
    conn_probe(c);
    conn_write(c); /* and not a turn later */
    c->io.asked_ms = now_ms;
}

/* When a connection from which nothing comes is to be given up. */
static uint64_t conn_ends_ms(const struct conn *c) {
    return MAX(c->io.asked_ms, c->io.heard_ms + c->ping_ms) + c->ping_ms;
}

/* After ping_ms of silence asks for a sign of life; after as much again gives the connection up. Any byte
 * counts, so a connection that is busy is never asked. Not before it was asked: the silence may have been
 * ours. And while the question is behind others' bytes, each of them that the peer takes is a sign, too. Who
 * would be asked soon is asked with the others: so all of them wake the process once. */
static void conn_check_life(struct conn *c) {
    if (!conn_is_asked(c)) {
        if (!is_due(c->io.heard_ms + c->ping_ms)) return;
        EACH_CONN(other) {
            bool soon = other->state == CONN_UP && now_ms - other->io.heard_ms >= other->ping_ms / 2;
            if (other == c || (soon && !conn_is_asked(other))) conn_ask(other);
        }
        return;
    }
    bool on_its_way = c->io.probe == PROBE_NONE || c->io.acked < c->io.probed, takes = conn_takes(c);
    if (c->io.probe == PROBE_NONE) conn_probe(c); /* there was no room for it */
    if (on_its_way && takes) c->io.asked_ms = now_ms;
    else if (now_ms >= conn_ends_ms(c))
        c->io.error = "silent for two ping intervals, though it was asked for a sign of life";
}

/* Leaves a server that has said that it will close: make before break, after a pause that differs from
 * gateway to gateway, and again after another if no other server took it. */
static void conn_leave_server(struct conn *c) {
    bool moves = false;
    if (!c->named.lame_duck) return;
    if (!c->io.move_ms) {
        c->io.move_ms = now_ms + MOVE_MIN_MS + randombytes_uniform(MOVE_MAX_MS - MOVE_MIN_MS);
        say(c->topic, LEVEL_INFO, "%s will close (lame duck mode): it goes to another server before",
            c->outcome);
    }
    if (!is_due(c->io.move_ms)) return;
    if (c == lattice) moves = lattice_change();
    else if (c->link && c->link->conn == c) moves = link_move(c->link);
    c->io.move_ms = now_ms + (moves ? MOVE_AGAIN_MS : RETRY_MIN_MS);
}

static void conn_step_up(struct conn *c) {
    conn_check_life(c);
    refusals_due(c);
    if (!conn_is_well(c)) conn_lost(c);
}

static void conn_step_draining(struct conn *c) {
    bool needed = c->users > 0 || (c->link && c->link->conn == c && c->link->outbox.first) ||
                  (c->is_lattice && has_calls(c));
    conn_step_up(c);
    if (c->state != CONN_DRAINING) return;
    bool flushed = is_flushed(c), all = c->io.probed == c->io.given;
    bool busy = needed || conn_takes(c) || now_ms - c->io.acked_ms < STOP_DRAIN_MS ||
                (!flushed && stop.state == RUNNING && now_ms - c->io.heard_ms < STOP_DRAIN_MS &&
                 now_ms < c->due_ms + LEAVE_MS); /* not for ever, if its server never answers the probe */
    bool delivers = c->is_lattice ? c != lattice : c->link && c->link->delivers;
    bool done = flushed && all && !needed;
    /* what the server was giving to a subscription as that ended may come behind the probe */
    uint64_t late_ms = net.wanted ? LATE_MS : STAY_MS;
    if (!delivers || stop.state != RUNNING) late_ms = 0;
    if (flushed && c->link && c->link->conn != c && !link_drains(c->link, NULL)) c->link->after_ms = 0;
    if (!done) c->io.busy_ms = now_ms;
    if ((done && now_ms - c->io.busy_ms >= late_ms) || (now_ms >= c->due_ms && (!busy || net.wanted))) {
        net.wanted = false;
        conn_close(c);
        if (c->link) link_lost(c, "closed");
        if (c->is_lattice) answers_resume(c);
        conn_free(c);
    } else if (c->io.probe == PROBE_NONE || (flushed && !all && !needed)) {
        conn_probe(c); /* again: more was written since */
    }
}

/* The connection that another was to take over from with the same settings, which goes on by itself; or
 * NULL. */
static struct conn *conn_before(const struct conn *c) {
    if (c == lattice_next) return lattice;
    return c->link && c->link->next == c && c->link->settings == c->settings ? c->link->conn : NULL;
}

static void conn_step_connecting(struct conn *c) {
    int report = atomic_load(&c->report);
    if (report == REPORT_NONE) return;
    struct conn *before = conn_before(c);
    if (atomic_load(&c->unwanted)) {
        if (report == REPORT_UP) {
            memset(&c->io, 0, sizeof(c->io));
            net.up++;
            conn_close(c);
        }
        conn_free(c);
    } else if (report == REPORT_UP) {
        conn_came_up(c);
    } else if (before) {
        if (before->state == CONN_UP)
            say(c->topic, before->io.stays ? LEVEL_DEBUG : LEVEL_WARN,
                "no connection but that to %s comes up, and it stays there: %s", before->outcome, c->outcome);
        before->io.stays = true;
        conn_free(c);
    } else {
        memcpy(c->error, c->outcome, sizeof(c->error));
        conn_wait(c);
        say(c->topic, c->failures > 6 ? LEVEL_DEBUG : LEVEL_WARN,
            "cannot connect to %s; next try in %" PRIu64 " ms", c->error, c->due_ms - now_ms);
    }
}

/* Warns once a day of a JWT that ends soon: the server would close the connection then. */
static void conn_check_jwt(struct conn *c) {
    char soon[120];
    if (!is_due(c->jwt_ms)) return;
    c->jwt_ms = now_ms + DAY_MS;
    if (jwt_ends_soon(text_at(c->settings, "client_jwt"), time(NULL), soon))
        say(c->topic, LEVEL_WARN, "%s", soon);
}

/* One step of the state machine; called on every turn of the loop. */
static void conn_step(struct conn *c) {
    if (c->state != CONN_FREE) conn_check_jwt(c);
    switch (c->state) {
    case CONN_FREE:
        return;
    case CONN_WAITING:
        if (is_due(c->due_ms)) conn_connect(c);
        return;
    case CONN_CONNECTING:
        conn_step_connecting(c);
        return;
    case CONN_UP:
        conn_leave_server(c);
        conn_step_up(c);
        return;
    case CONN_DRAINING:
        conn_step_draining(c);
        return;
    }
}

/* When conn_step() has something to do by itself: to try again, to ask for a sign of life, to give up. What a
 * peer takes, nobody announces: while that counts, it is looked at. */
static uint64_t conn_next_ms(const struct conn *c) {
    uint64_t due_ms = c->jwt_ms;
    if (c->state == CONN_WAITING) return MIN(due_ms, c->due_ms);
    if (!conn_is_open(c)) return due_ms;
    if (!conn_is_well(c)) return now_ms;
    due_ms = MIN(due_ms, conn_is_asked(c) ? MIN(conn_ends_ms(c), now_ms + c->ping_ms / 16)
                                          : c->io.heard_ms + c->ping_ms);
    if (c->state == CONN_DRAINING) {
        /* its users end by themselves; what its server's kernel has, is asked for */
        uint64_t probe_ms = c->io.probe == PROBE_BACK ? 0 : c->io.probe_ms + PROBE_PATIENCE_MS;
        uint64_t look_ms = MIN(due_ms, MAX(probe_ms, now_ms + LATE_MS));
        return now_ms < c->due_ms ? MIN(c->due_ms, look_ms) : look_ms;
    }
    bool takes_over = c == lattice_next || (c->link && c->link->next == c);
    if (takes_over) due_ms = MIN(due_ms, now_ms + LATE_MS);
    if (c->named.lame_duck) due_ms = MIN(due_ms, c->io.move_ms);
    if (c->io.refused && stop.state == RUNNING) {
        due_ms = MIN(due_ms, refusals_next_ms(&c->io.publishes));
        if (c->io.ask_ms) due_ms = MIN(due_ms, c->io.ask_ms);
        if (c->io.probe != PROBE_BACK) due_ms = MIN(due_ms, now_ms + TICK_MS);
    }
    return due_ms;
}

/*
 * ---- 11 control -------------------------------------------------------------------------------------------
 *
 * What is asked about the whole of it: health and shutdown, by the host; NATS's service protocol, by
 * anybody on the lattice; the command line. And the host data, with which it begins.
 *
 * Interface: on_health, on_shutdown, on_service, service_… (the lattice), stop_… (the loop), host_data_…,
 * lattice_settings, arguments_answer (main).
 */

/* Answers a question. No answer to that is awaited, but by this reply subject is_overheard() knows it. */
static void send_reply(struct span asker, const void *data, size_t len) {
    (void)send_to(asker, SPAN(""), span_of(self.nobody), data, len);
}

/* {"healthy":true}, or false and why: link by link, then only their names, then how many others. A link that
 * nothing can come by is healthy, since it may be put first and configured later; the message says so.
 * protocol: wasmCloud, crates/core, rpc.rs. */
static void on_health(natsMsg *msg) {
    enum { IN_FULL = 1000, OTHERS = 32 };
    char text[2048], error[400], own[420], safe[2 * sizeof(text)], json[sizeof(safe) + 64];
    unsigned all = 0, unwell = 0, told = 0, others = 0;
    const char *first = self.refused;
    if (lattice->state == CONN_UP && !lattice->io.headers) first = no_headers;
    if (orders_wait()) first = "memory is short: orders of the host wait";
    if (orders.lost_ms) first = "memory was short: an order of the host is lost, put its link again";
    if (!*first && lattice->state == CONN_UP && *refusals_error(lattice, error)) {
        (void)snprintf(own, sizeof(own), "the lattice: %s", error);
        first = own;
    }
    EACH_LINK(l) {
        all += l->state != LINK_LEAVING;
        unwell += l->state != LINK_LEAVING && *link_error(l, error);
    }
    bool healthy = !*first && unwell == 0;
    size_t at = (size_t)snprintf(text, sizeof(text), "%s%s", first, *first && unwell > 0 ? "; " : "");
    if (unwell > 1)
        at += (size_t)snprintf(text + at, sizeof(text) - at, "%u of %u links are not well: ", unwell, all);
    EACH_LINK(l) {
        const char *why = healthy ? link_hint(l) : link_error(l, error), *behind = told ? "; " : "";
        if (l->state == LINK_LEAVING || !*why) continue;
        char queued[32] = "";
        size_t before = at;
        if (l->queued > 0) (void)snprintf(queued, sizeof(queued), ", %u queued", l->queued);
        if (at >= IN_FULL) at += (size_t)snprintf(text + at, sizeof(text) - at, "; link %s", l->topic.name);
        else
            at += (size_t)snprintf(text + at, sizeof(text) - at,
                                   "%slink %s: %s (%u reconnects, %" PRIu64 " dropped, %u in flight%s)",
                                   behind, l->topic.name, why, link_reconnects(l), l->counts[DROPPED],
                                   l->calls, queued);
        bool fits = at < sizeof(text) - OTHERS;
        if (!fits) text[at = before] = 0;
        told += fits;
        others += !fits;
    }
    if (others > 0) (void)snprintf(text + at, sizeof(text) - at, "; and %u others", others);
    const char *form = *text ? "{\"healthy\":%s,\"message\":\"%s\"}" : "{\"healthy\":%s}";
    int n = snprintf(json, sizeof(json), form, healthy ? "true" : "false",
                     log_escape(safe, sizeof(safe), text, true));
    struct span asker = span_of(natsMsg_GetReply(msg));
    if (is_inbox(asker)) send_reply(asker, json, (size_t)n);
}

/* ---- stopping */

/* Takes no more calls, but for those of components that still work on a message: they may want to publish
 * their answer. What the server had sent before comes before the probe, and is served. */
static void stop_serving(void) {
    if (stop.state != STOP_CALLS || lattice->state != CONN_UP || stop.unsubscribed) return;
    EACH_LINK(l) {
        if (l->in_flight > 0 && now_ms < stop.deadline_ms) return;
    }
    stop.unsubscribed = true;
    conn_unsubscribe(lattice, false);
    conn_probe(lattice);
}

/* Stops taking work. The loop does the rest: see stop_step(). */
static void stop_begin(const char *why) {
    if (stop.state != RUNNING) return;
    stop.state = STOP_CALLS;
    stop.deadline_ms = now_ms + SHUTDOWN_MS;
    say(&self.topic, LEVEL_INFO, "stopping: %s", why);
    if (lattice_next) conn_drain(lattice_next, STOP_DRAIN_MS);
    lattice_next = NULL;
    stop_serving();
    EACH_LINK(l) {
        next_drop(l);
        if (l->conn && l->conn->state == CONN_UP) conn_unsubscribe(l->conn, false);
        for (struct delivery *d; (d = l->stored.first); l->queued--) {
            l->stored.first = d->next;
            delivery_give_back(l, d, "the provider is stopping");
        }
    }
}

static void stop_answer(void);

static bool on_shutdown(natsMsg *msg, const json_t *json) {
    const char *host = text_at(json, "host_id"), *reply = natsMsg_GetReply(msg);
    if (!host || strcmp(host, self.host_id) != 0) {
        say(&self.topic, LEVEL_DEBUG, "an order to shut down that names another host was ignored");
        return true;
    }
    if (is_inbox(span_of(reply))) (void)snprintf(stop.reply, sizeof(stop.reply), "%s", reply);
    if (stop.state > STOP_LINKS) stop_answer();
    stop_begin("the host asked for it");
    return true;
}

static bool links_are_drained(void) {
    EACH_CONN(c) {
        if (c != lattice && conn_is_open(c)) return false;
    }
    return true;
}

/* The last words on the lattice: to callers, and to the host; and a probe behind them. */
static void stop_answer(void) {
    EACH_CALL(c) {
        if (c->state == CALL_ANSWERED) call_release(c);
    }
    if (*stop.reply) send_reply(span_of(stop.reply), "shutting down", strlen("shutting down"));
    stop.reply[0] = 0;
    if (lattice->state == CONN_UP) conn_probe(lattice);
}

/* One step of stopping: calls end, links are drained, the host is answered, the lattice is drained. Returns
 * true when all is done. The host kills us soon after it has the answer, so that comes last, with a probe
 * behind it; but what a slow link still has to take, it gets, as long as nobody ends us. */
static bool stop_step(void) {
    bool over = now_ms >= stop.deadline_ms, busy = false;
    stop_serving();
    EACH_LINK(l) busy |= link_is_busy(l);
    if (lattice->state == CONN_UP) busy |= !stop.unsubscribed || !is_flushed(lattice);
    if (stop.state == STOP_CALLS && (!busy || over)) {
        EACH_LINK(l) {
            link_calls_end(l, NULL, "the provider is stopping");
            deliveries_abandon(l, "the provider is stopping");
            queue_drop(l, "the provider is stopping");
        }
        EACH_CONN(c) {
            if (c != lattice) conn_drain(c, STOP_DRAIN_MS);
        }
        stop.state = STOP_LINKS;
        stop.deadline_ms = now_ms + 20;
    } else if (stop.state == STOP_LINKS && (links_are_drained() || over)) {
        stop_answer();
        stop.state = STOP_LATTICE;
        stop.deadline_ms = now_ms + 250;
    } else if (stop.state == STOP_LATTICE) {
        if (is_flushed(lattice) && lattice->io.probed != lattice->io.given) stop_answer();
        if (lattice->state == CONN_UP && !is_flushed(lattice) && !over) return false;
        stop.state = STOP_DRAIN;
        stop.deadline_ms = now_ms + LEAVE_MS;
    }
    return stop.state == STOP_DRAIN && (links_are_drained() || now_ms >= stop.deadline_ms);
}

/* ---- NATS's own service protocol: each function of a link is an endpoint. protocol: NATS, ADR-32;
 * $SRV.{verb}, or with the service's name, or with its name and id. */

static struct {
    bool off;
    char id[ID_MAX], started[32];
} service;

/* The id is the host's name for this process, if it gave one; else as random as an inbox. */
static void service_start(const char *instance) {
    json_begin();
    json_t *setting = find_setting(&self.defaults, NULL, "lattice_service");
    struct timespec t;
    struct tm tm;
    if (json_is_short()) die(no_memory);
    service.off = setting && strcasecmp(json_string_value(setting), "false") == 0;
    json_decref(setting);
    nkey_random(service.id, SECRET_LEN);
    if (is_token(instance)) (void)snprintf(service.id, ID_MAX, "%s", instance);
    (void)clock_gettime(CLOCK_REALTIME, &t);
    (void)strftime(service.started, sizeof(service.started), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t.tv_sec, &tm));
}

static void service_subscribe(struct conn *c) {
    char own[2 * ID_MAX];
    if (service.off) return;
    (void)snprintf(own, sizeof(own), "$SRV.*." PROVIDER_NAME ".%s", service.id);
    (void)conn_subscribe(c, "$SRV.*", NULL, ITEM_NONE);
    (void)conn_subscribe(c, "$SRV.*." PROVIDER_NAME, NULL, ITEM_NONE);
    (void)conn_subscribe(c, own, NULL, ITEM_NONE);
}

static json_t *endpoint(const struct link *l, enum function f, bool stats) {
    const struct tally *t = &l->tallies[f];
    bool handles = f == HANDLE_MESSAGE;
    char name[3 * ID_MAX];
    (void)snprintf(name, sizeof(name), "%s-%s-%s", function_names[f], l->component, l->name);
    const char *subject = subjects[f == REQUEST ? SUBJECT_REQUEST : SUBJECT_PUBLISH].name;
    json_t *e = micro_endpoint(name, handles ? l->subject : subject, handles ? "" : queue_group);
    if (!stats) {
        json_object_set_new(e, "metadata", json_pack("{s:s}", "link", l->topic.name));
        return e;
    }
    json_t *data = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "dropped", (json_int_t)l->counts[DROPPED],
                             "in_flight", (json_int_t)l->calls, "queued", (json_int_t)l->queued, "reconnects",
                             (json_int_t)link_reconnects(l), "arena_bytes", (json_int_t)arena_counts.in_use,
                             "arena_peak_bytes", (json_int_t)arena_counts.peak, "log_lines_lost",
                             (json_int_t)logger.lost);
    micro_add_stats(e, t->calls, t->errors, t->us, t->last_error, data);
    return e;
}

/* A question of somebody's, on "$SRV.{verb}…". */
static void on_service(const char *verb, natsMsg *msg) {
    struct span asker = span_of(natsMsg_GetReply(msg)), word = {verb, strcspn(verb, ".")};
    if (!is_inbox(asker) || !(span_is(word, "PING") || span_is(word, "INFO") || span_is(word, "STATS")))
        return;
    json_begin();
    json_t *list = json_array();
    EACH_LINK(l) {
        for (enum function f = PUBLISH; l->state != LINK_LEAVING && f < FUNCTIONS; f++)
            if ((f == HANDLE_MESSAGE) == l->delivers)
                json_array_append_new(list, endpoint(l, f, *verb == 'S'));
    }
    static const char description[] = "wasmcloud:messaging@0.2.0 over NATS, for lattice and link connections";
    json_t *json = json_whole(micro_answer(*verb, PROVIDER_NAME, service.id, PROVIDER_VERSION, description,
                                           service.started, list));
    if (!json) {
        say(&self.topic, LEVEL_WARN, "memory is short: a question about the service has no answer");
        return;
    }
    /* 0: no memory; or how many it would be */
    size_t len = json_dumpb(json, (char *)scratch, sizeof(scratch), JSON_COMPACT);
    if (len > 0 && len <= sizeof(scratch)) send_reply(asker, scratch, len);
    json_decref(json);
}

/* ---- host data */

/* Everything in the host data that outlives it. protocol: wasmCloud, crates/core, host.rs. */
static void host_data_apply(const json_t *host) {
    const char *ours = host_text(host, "provider_xkey_private_key"),
               *hosts = host_text(host, "host_xkey_public_key");
    const char *rust_log = getenv("RUST_LOG");
    if (!json_is_object(host)) die("host data: the JSON is no object");
    log_set_level(host_text(host, "log_level"));
    if (rust_log) log_set_level(rust_log);
    logger.json = json_is_true(json_object_get(host, "structured_logging"));
    host_token(host, "provider_key", NULL, self.key);
    (void)snprintf(self.topic.name, sizeof(self.topic.name), "%s", self.key);
    host_token(host, "lattice_rpc_prefix", "default", self.lattice);
    (void)snprintf(self.host_id, ID_MAX, "%s", host_text(host, "host_id"));
    if (*ours && *hosts && !xkey_start(span_of(hosts), span_of(ours)))
        die("host data: host_xkey_public_key (X…) and provider_xkey_private_key (SX…) are no X25519 nkeys");
    self.defaults.config = host_part(host, "config", json_object());
    self.defaults.secrets = host_part(host, "secrets", json_object());
    self.links = host_part(host, "link_definitions", json_array());
}

/* The lattice's settings: URL and user from the host data; the rest as lattice_… from the provider's
 * configuration. */
static json_t *lattice_settings(const json_t *host) {
    static const char *const keys[] =
        {"tls_ca",    "tls_ca_file",       "tls_cert",          "tls_key",
         "tls_first", "ping_interval_sec", "ignore_discovered", "connect_timeout_sec"};
    const char *url = host_text(host, "lattice_rpc_url"), *jwt = host_text(host, "lattice_rpc_user_jwt");
    const char *seed = host_text(host, "lattice_rpc_user_seed");
    json_begin();
    json_t *settings = json_object();
    json_object_set_new(settings, "cluster_uris", json_string(*url ? url : "nats://127.0.0.1:4222"));
    if (*jwt) json_object_set_new(settings, "client_jwt", json_string(jwt));
    if (*seed) json_object_set_new(settings, "client_seed", json_string(seed));
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        char key[64];
        (void)snprintf(key, sizeof(key), "lattice_%s", keys[i]);
        settings_add(&self.defaults, NULL, key, settings, keys[i]);
    }
    if (json_is_short()) die(no_memory);
    const char *error = settings_error(settings);
    if (error) die("host data: the lattice: %s", error);
    return settings;
}

/* ---- the command line */

static void print_fault(void *what, const char *text) {
    char safe[2 * FAULT_MAX];
    printf("    %-13s %s\n", (const char *)what, log_escape(safe, sizeof(safe), text, false));
}

/* Tells of a user's JWT that ends soon. */
static bool print_jwt(const json_t *settings) {
    char soon[120];
    bool ends = jwt_ends_soon(text_at(settings, "client_jwt"), time(NULL), soon);
    if (ends) print_fault("look here", soon);
    return ends;
}

/* Says what the provider would do with a link. Returns how much of it is wrong, or may be a slip. */
static size_t check_link(const json_t *json) {
    static const struct listener faults = {print_fault, "wrong"}, slips = {print_fault, "look here"};
    const char *why;
    bool delivers;
    char label[300], safe[300];
    json_t *definition = read_definition(json, self.key, &delivers, &why);
    struct link *l = definition ? link_take() : NULL;
    if (!l) {
        printf("link %s\n", log_escape(safe, sizeof(safe), link_label(json, label), false));
        print_fault("wrong", definition ? "there are more links than this build takes (see --version)" : why);
        json_decref(definition);
        return 1;
    }
    link_fill(l, definition, delivers);
    json_t *settings = merge_settings(&self.defaults, definition, delivers);
    if (!settings) die(no_memory);
    const char *error = link_settings_error(l, settings);
    if (!error) {
        l->state = LINK_RUNNING;
        link_apply(l, json_incref(settings));
        settings_print(settings, delivers, l->topic.name);
    } else {
        printf("link %s\n", l->topic.name);
        if (settings_faults(settings, &faults) == 0) print_fault("wrong", error);
    }
    size_t found = settings_slips(definition, settings, delivers, &slips) + pem_faults(settings, &slips);
    found += print_jwt(settings);
    json_decref(settings);
    return found + (error != NULL);
}

/* --check: says what the provider would do with host data, or with one link. */
static void check(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) die("%s: %s", path, strerror(errno));
    json_t *json = host_data_read(fd, false, scratch, sizeof(scratch)), *v;
    size_t i;
    close(fd);
    if (text_at(json, "source_id")) { /* which side of a lone link the provider is on, its interfaces tell */
        const char *key = text_at(json, "target");
        json_array_foreach(json_object_get(json, "interfaces"), i, v)
            if (json_is_string(v) && strcmp(json_string_value(v), "handler") == 0)
                key = text_at(json, "source_id");
        (void)snprintf(self.key, ID_MAX, "%s", key ? key : "");
        (void)snprintf(self.lattice, ID_MAX, "default");
        if (check_link(json) > 0) die("something of the link is wrong, or may be a slip: see above");
        json_decref(json);
        return;
    }
    if (!json_object_get(json, "provider_key"))
        die("%s has no provider_key, as host data has, and is no link, such as {\"source_id\":\"echo\","
            "\"target\":\"messaging-nats\",\"interfaces\":[\"handler\"],"
            "\"source_config\":{\"subscriptions\":\"orders.>\"}}",
            path);
    host_data_apply(json);
    json_t *settings = lattice_settings(json);
    struct span first = {0};
    char address[URL_ADDRESS_MAX];
    (void)list_item(text_at(settings, "cluster_uris"), 0, &first);
    printf("provider %s on lattice %s at %s, %s, %zu links\n", self.key, self.lattice,
           server_address(first, address), xkey_public() ? "can open the secrets of links" : "without xkeys",
           json_array_size(self.links));
    size_t found = print_jwt(settings);
    found += defaults_slips(&self.defaults, &(struct listener){print_fault, "look here"});
    json_array_foreach(self.links, i, v) found += check_link(v);
    if (found > 0) die("something is wrong, or may be a slip: see above");
    json_decref(settings);
    json_decref(json);
}

static void print_version(void) {
    printf(PROVIDER_NAME " " PROVIDER_VERSION "\nnats.c %s, mbedTLS %s, libsodium %s, jansson %s\n"
                         "memory reserved: %d kB in all: arena %d, tables %d, thread stacks %d\n"
                         "limits: %d links, %d subscriptions, %d consumers a link, %d calls, messages of "
                         "up to %d kB\n",
           nats_GetVersion(), tls_version(), sodium_version_string(), JANSSON_VERSION, (int)RESERVED / 1024,
           ARENA_BYTES / 1024, (int)RESERVED_TABLES / 1024, (int)RESERVED_THREADS / 1024, LINKS_MAX,
           SUBSCRIPTIONS_MAX, CONSUMERS_PER_LINK, CALLS_MAX, MESSAGE_MAX / 1024);
}

static void help_print(FILE *file) {
    (void)fputs(
        "usage: " PROVIDER_NAME
        "               run: a wasmCloud host starts it so, and writes host data to standard input\n"
        "       " PROVIDER_NAME
        " --check FILE  say what the provider would do with host data or a link (JSON, or base64 of it)\n"
        "       " PROVIDER_NAME
        " --version     versions of the program and its libraries, and the memory it reserves\n"
        "       " PROVIDER_NAME " --help        this text\n"
        "\n"
        "A wasmCloud capability provider for wasmcloud:messaging@0.2.0 over NATS. Links and "
        "configuration come from the host;\n"
        "RUST_LOG (error, warn, info, debug) sets what it logs on standard error.\n"
        "Exit codes: 0 stopped in order, 1 wrong host data or a check that failed, 2 wrong usage.\n",
        file);
}

/* Answers a command line that does not ask for a run. Returns false if it asks for one. */
static bool arguments_answer(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--help") == 0) help_print(stdout);
    else if (argc == 2 && strcmp(argv[1], "--version") == 0) print_version();
    else if (argc == 3 && strcmp(argv[1], "--check") == 0) check(argv[2]);
    else return false;
    if (fflush(stdout) != 0 || ferror(stdout))
        die("cannot write to standard output: is it closed, or its disk full?");
    return true;
}
