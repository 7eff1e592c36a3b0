/* provider.h - the limits of messaging-nats, and the memory they add up to.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Everything the provider will ever use is reserved at start: one arena for the libraries (nats.c, mbedTLS,
 * jansson, libc) and for what waits, and static tables. Reserved memory that was never touched costs
 * nothing, so a generous limit is cheap until it is needed. Each limit may be changed here, or with make
 * CFLAGS=-DNAME=value; a value out of its range does not compile. `provider --version` prints the sum, and
 * an assertion in provider.c keeps it within RESERVED_MAX.
 */
#ifndef PROVIDER_H
#define PROVIDER_H

#define PROVIDER_NAME "messaging-nats"
#define PROVIDER_VERSION "1.0.0"

/* Links at a time, 1 to 96. Each has a NATS connection of its own, and while it connects a thread with a
 * stack of THREAD_STACK. */
#ifndef LINKS_MAX
#define LINKS_MAX 32
#endif

/* Connections beside one for each link: those that drain, and those that come up to take over. 1 to 96. A
 * link that finds none free waits for one. */
#ifndef LINKS_LEAVING_MAX
#define LINKS_LEAVING_MAX 8
#endif

/* Subscriptions of all links together, 1 to 4096. */
#ifndef SUBSCRIPTIONS_MAX
#define SUBSCRIPTIONS_MAX 128
#endif

/* Pull consumers of JetStream that one link may take messages from, 1 to 255. */
#ifndef CONSUMERS_PER_LINK
#define CONSUMERS_PER_LINK 8
#endif

/* Calls in flight in both directions, of all links together, 4 for each link to 4096; 640 bytes each.
 * A quarter of them is kept so that each link can have its own few at any time; of the rest a link may take
 * a slot while more are free than it holds. */
#ifndef CALLS_MAX
#define CALLS_MAX 1024
#endif

/* The largest body of a message, in bytes, 1024 to 64 MB: nats-server's own default for max_payload. A
 * message over it is refused in words (from a component) or dropped, counted and logged (from NATS). */
#ifndef MESSAGE_MAX
#define MESSAGE_MAX (1024 * 1024)
#endif

/* The longest subject or reply subject that a component or a link may name, in bytes, 256 to 4096. */
#ifndef SUBJECT_MAX
#define SUBJECT_MAX 1024
#endif

/* The longest inbox of ours or of a caller, in bytes with the final NUL, 256 to 1024: a prefix of ID_MAX,
 * and some 40. */
#ifndef INBOX_MAX
#define INBOX_MAX 256
#endif

/* The longest name of a host, a lattice, a component, a link, in bytes with the final NUL, 64 to 192. */
#ifndef ID_MAX
#define ID_MAX 128
#endif

/* The backlog, in MB; make's BACKLOG_MB= sets it, too. It holds at least 4 large messages: queues of slow
 * components, parameters that come in chunks, results that wait. A link may take what it asks for while it
 * holds at most eight times what stays free, and a few kB in any case: one slow component gets some eight
 * ninths, which is a queue of 100,000 messages of 128 bytes. Queues of subscriptions leave two large
 * messages' worth to parameters of calls, and up to a quarter to consumers. A message that waits takes its
 * bytes, its subjects, its trace headers, and at most 48 bytes. */
#ifndef BACKLOG_MB
#define BACKLOG_MB 25
#endif
#ifndef BACKLOG_MAX
#define BACKLOG_MAX (BACKLOG_MB * 1024 * 1024)
#endif

/* The arena: the backlog, and ARENA_LIBRARIES for whatever a library allocates. A link costs about 100 kB
 * with TLS (two buffers of IO_BUFFER, the records of TLS, its certificates), the system's CA certificates
 * 450 kB once, a message of 1 MB in flight 3 MB. */
#ifndef ARENA_LIBRARIES
#define ARENA_LIBRARIES (11 * 1024 * 1024)
#endif
#define ARENA_BYTES (BACKLOG_MAX + ARENA_LIBRARIES)

/* What the arena keeps free for each link that may still come, and for a large message that is being
 * received. */
#ifndef ARENA_PER_LINK
#define ARENA_PER_LINK (80 * 1024)
#endif
#ifndef ARENA_IN_TRANSIT
#define ARENA_IN_TRANSIT (2304 * 1024)
#endif

/* The largest block of it: what nats.c needs for a message of MESSAGE_MAX that comes in chunks, and none of
 * gigabytes. */
#ifndef BLOCK_MAX
#define BLOCK_MAX (3 * PARAMS_MAX)
#endif

/* nats.c's read buffer and (before it grows) write buffer of each connection, in bytes, 4 kB to 1 MB. A turn
 * of the loop reads each connection once, so this is also a link's share of a turn: some 190 messages of 128
 * bytes, 0.3 ms, for which its neighbours wait; of a larger body, which goes past this buffer, four times as
 * much. */
#ifndef IO_BUFFER
#define IO_BUFFER (32 * 1024)
#endif

/* Stack of a thread, in bytes, 64 kB to 8 MB: connecting with TLS and a name look-up takes about 40 kB of
 * it. glibc takes no less than 128 kB on arm64 (PTHREAD_STACK_MIN). */
#ifndef THREAD_STACK
#ifdef __aarch64__
#define THREAD_STACK (128 * 1024)
#else
#define THREAD_STACK (96 * 1024)
#endif
#endif
#define THREADS_MAX (LINKS_MAX + LINKS_LEAVING_MAX + 2) /* one a connection */

/* What the configuration and secrets of one link may take of the arena, 4 kB to an eighth of it. Debian's
 * bundle of CAs has 220 kB as text, which links that name the same share; parsed it has twice that, while one
 * of them connects. */
#ifndef LINK_SETTINGS_MAX
#define LINK_SETTINGS_MAX (256 * 1024)
#endif

/* The longest line of host data, in bytes of base64, 4 kB to MESSAGE_MAX. */
#ifndef HOST_DATA_MAX
#define HOST_DATA_MAX (1024 * 1024)
#endif

/* Times, in milliseconds, if the name does not end otherwise. They are fixed: each was chosen together with
 * what a host or a server does. */
enum {
    CONNECT_TIMEOUT_S_DEFAULT = 5, /* TCP, TLS, INFO, CONNECT and PONG of one address */
    ADDRESSES_ANSWERED = 4, /* no more of a server in a round where somebody answers, and does not take us */
    RETRY_MIN_MS = 100,     /* first pause between attempts to connect; it doubles, with jitter, */
    RETRY_MAX_MS = 30000,   /* up to this one */
    PING_INTERVAL_S_DEFAULT = 30,       /* silence of a connection before it is asked for a sign of life */
    HANDLER_TIMEOUT_MS_DEFAULT = 10000, /* a component's time for one message */
    MAX_IN_FLIGHT_DEFAULT = 256,        /* messages of one link that its component has at a time */
    PARAMS_TIMEOUT_MS = 10000,          /* parameters that come in chunks must be whole by then */
    PUBLISH_TIMEOUT_MS = 10000,         /* a link's connection must have room for a call by then */
    REQUEST_MAX_MS = 600000,            /* callers of 1.0 wait no longer: a component's time in its host */
    HANDSHAKE_PAUSE_MS = 20,            /* to the first repetition of a handshake; it doubles, */
    HANDSHAKE_PAUSE_MAX_MS = 1000,      /* up to this, */
    HANDSHAKE_MS = 30000,               /* and for so long; then to ask whether the caller is there */
    UNSURE_MS = 2000,                   /* for a result, after the lattice was away */
    BEHIND_MS = 100,                    /* so long a lattice is slow that took no more */
    DELIVER_PAUSE_MS = 10,              /* to the next try of a result that the lattice has no room for */
    PARAMS_PAUSE_MS = 2,                /* from a host's handshake to the rest of the parameters */
    PAUSE_MS = 500,                     /* so long a link is not read while its component catches up; */
    PAUSE_FULL_MS = 2000,     /* and so long only as there is room, when its queue is full: see below; */
    PAUSE_EVERY_MS = 10000,   /* each once in so long */
    PULL_EXPIRES_MS = 30000,  /* how long a request for messages stands at a consumer */
    PULL_HEARTBEAT_MS = 5000, /* how often an idle consumer shows that it remembers the request */
    CREATED_SLACK_MS = 10,    /* a consumer's time of creation may move by this when its server restarts */
    PULL_ANSWER_MS = 5000,    /* JetStream must have answered a question by then */
    MOVE_MIN_MS = 500,        /* from the word of a server that it will close to the attempt to leave it: */
    MOVE_MAX_MS = 4000,       /* its clients have 10 s, and should not all come to the others at once */
    MOVE_AGAIN_MS = 5000,     /* between attempts to leave it */
    LOST_ORDER_MS = 1000,     /* a link that is put so long after an order was lost may be that order's */
    OVERLAP_MS = 500,         /* a cluster's servers tell each other of subscriptions in less */
    LATE_MS = 100, /* what comes behind a probe though it was meant to come before, does so within; */
    STAY_MS = 500, /* or within this, on a busy machine: so long the connection stays, if there is a place */
    PROBE_PATIENCE_MS = 2000, /* a probe should be back by then: see is_flushed() */
    NAK_MIN_MS = 1000,        /* to the next delivery of a message that failed; it doubles, */
    NAK_MAX_MS = 60000,       /* up to this */
    ABSENT_MIN_MS = 250,      /* nobody runs the component: to the next try; it doubles, */
    ABSENT_MAX_MS = 5000,     /* up to this */
    KEPT_MS = 60000,          /* then what waits is given back, if its deliveries are not numbered */
    LEAVE_MS = 30000,         /* calls of a deleted link end, and a connection is drained, by then, */
    STOP_DRAIN_MS = 5000,     /* or by then when the provider stops; or later, while its peer takes bytes */
    SHUTDOWN_MS = 240,        /* calls end by then after an order; hosts kill after 300 ms */
    DAY_MS = 86400000,        /* JWTs are looked at so often */
    TICK_MS = 1000,           /* between looks at what waits, and what no event announces */
    STOPPED_MS = 250,         /* of a longer time without a turn of the loop, no more than this counts */
};

/* Why the pauses of a link are no longer: nats-server cuts a client for which more than max_pending (64 MB)
 * waits, or that takes longer than write_deadline (10 s) for what waited when the writing began. From 32 MB
 * on (2.9), or 48, it holds up publishers: since 2.10 each to 64 kB in 10 ms. One that never ends has 16 MB
 * more there in 2.5 s; several may get the link cut in either pause. protocol: nats-server, client.go:
 * queueOutbound, flushOutbound, stalledWait. */

/* Messages that go before an answer which cannot wait for an acknowledgement, or before parameters in
 * chunks: a host drops one that comes too early, and does so no more with a chance of one in 2^32 behind so
 * many (provider.c, section 8). */
#define HANDSHAKE_PADDING 32

/* How often in a row nobody listens to a caller's inbox until it is gone; half of that if slots are short. */
#define ABSENCES_MAX 8

/* Calls that end unacknowledged at a time when all slots are in use. */
#define RELEASED_AT_ONCE 32

/* Sums. PARAMS_MAX: encoded parameters of a call. WRITE_MAX: what may wait in a connection's write buffer.
 * PULL_BYTES: what one request for messages of a stream may bring, if neither link nor consumer says less;
 * PULL_SHARE_MAX: and one whose next message is not known to be large. */
#define PARAMS_MAX (MESSAGE_MAX + 2 * SUBJECT_MAX + 64)
#define WRITE_MAX (PARAMS_MAX + 192 * 1024)
#define PULL_BYTES (PARAMS_MAX + 64 * 1024)
#define PULL_SHARE_MAX (320 * 1024)

/* The most that all of it may reserve, in bytes; checked by the compiler. */
#ifndef RESERVED_MAX
#define RESERVED_MAX (BACKLOG_MAX + 19 * 1024 * 1024)
#endif

#define IN_RANGE(limit, low, high) \
    _Static_assert((limit) >= (low) && (limit) <= (high), #limit " must be from " #low " to " #high)
IN_RANGE(BACKLOG_MB, 1, 1024);
IN_RANGE(LINKS_MAX, 1, 96);
IN_RANGE(LINKS_LEAVING_MAX, 1, 96);
IN_RANGE(SUBSCRIPTIONS_MAX, 1, 4096);
IN_RANGE(CONSUMERS_PER_LINK, 1, 255);
IN_RANGE(CALLS_MAX, 4 * LINKS_MAX, 4096);
IN_RANGE(MESSAGE_MAX, 1024, 64 * 1024 * 1024);
IN_RANGE(SUBJECT_MAX, 256, 4096);
IN_RANGE(ID_MAX, 64, 192);
IN_RANGE(INBOX_MAX, ID_MAX + 64, 1024);
IN_RANGE(INBOX_MAX, 256, 1024);
IN_RANGE(BACKLOG_MAX, 4 * PARAMS_MAX, 1024 * 1024 * 1024);
IN_RANGE(ARENA_LIBRARIES, ARENA_IN_TRANSIT + LINKS_MAX * ARENA_PER_LINK, 1024 * 1024 * 1024);
IN_RANGE(ARENA_IN_TRANSIT, 2 * MESSAGE_MAX, ARENA_BYTES / 4);
IN_RANGE(ARENA_PER_LINK, 2 * IO_BUFFER, ARENA_BYTES / 8);
IN_RANGE(BLOCK_MAX, 3 * PARAMS_MAX, ARENA_BYTES);
IN_RANGE(IO_BUFFER, 4096, 1024 * 1024);
IN_RANGE(THREAD_STACK, 64 * 1024, 8 * 1024 * 1024);
IN_RANGE(LINK_SETTINGS_MAX, 4096, ARENA_BYTES / 8);
IN_RANGE(HOST_DATA_MAX, 4096, MESSAGE_MAX);

#endif
