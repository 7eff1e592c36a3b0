/* provider.h - the limits of messaging-nats, and the memory they add up to.
 *
 * Everything the provider will ever use is reserved at start: one arena for the libraries (nats.c, mbedTLS,
 * jansson, libc) and for messages that wait, and static tables. Reserved memory that was never touched costs
 * nothing, so a generous limit is cheap until it is needed. Each limit may be changed here or with make CFLAGS=-DNAME=value;
 * `provider --version` prints the sum, and the assertion at the end keeps it honest.
 */
#ifndef PROVIDER_H
#define PROVIDER_H

#define PROVIDER_NAME "messaging-nats"
#define PROVIDER_VERSION "0.1.0"

/* Links at a time. Each has a NATS connection of its own, and while it connects a thread with a stack of THREAD_STACK. */
#ifndef LINKS_MAX
#define LINKS_MAX 32
#endif

/* Links that were deleted or replaced and whose calls still end; they do not count as links. */
#ifndef LINKS_LEAVING_MAX
#define LINKS_LEAVING_MAX 8
#endif

/* Subscriptions of all links together. */
#ifndef SUBSCRIPTIONS_MAX
#define SUBSCRIPTIONS_MAX 128
#endif

/* Pull consumers of JetStream that one link may take messages from. */
#ifndef CONSUMERS_PER_LINK
#define CONSUMERS_PER_LINK 8
#endif

/* Calls in flight in both directions, of all links together; about 0.9 kB each. A quarter of them is kept so that each link
 * can have its own few at any time; of the rest a link may take a slot while more are free than it holds. */
#ifndef CALLS_MAX
#define CALLS_MAX 1024
#endif

/* The largest body of a message, in bytes: nats-server's own default for max_payload. A message over it is refused
 * in words (from a component) or dropped, counted and logged (from NATS). */
#ifndef MESSAGE_MAX
#define MESSAGE_MAX (1024 * 1024)
#endif

/* The longest subject or reply subject that a component or a link may name, in bytes. */
#ifndef SUBJECT_MAX
#define SUBJECT_MAX 1024
#endif

/* The longest reply subject of a call that is kept while the call runs, in bytes with the final NUL. */
#ifndef INBOX_MAX
#define INBOX_MAX 256
#endif

/* Bytes of messages that wait in the arena: the backlogs of slow components, parameters that come in pieces. A link may
 * take what it asks for while it holds at most twice what stays free: one slow component gets two thirds, which is a
 * backlog of about 24,000 messages of 128 bytes. Backlogs leave two large messages' worth to parameters of calls. */
#ifndef HELD_MAX
#define HELD_MAX (6656 * 1024)
#endif

/* The arena: whatever a library allocates, and what waits. A link costs about 100 kB with TLS (two buffers of IO_BUFFER,
 * the records of TLS, its certificates), the system's CA certificates 450 kB once, a message of 1 MB in flight 3 MB. */
#ifndef ARENA_BYTES
#define ARENA_BYTES (17920 * 1024)
#endif

/* What the arena keeps free for each link that may still come, and for a large message that is being received. */
#ifndef ARENA_PER_LINK
#define ARENA_PER_LINK (80 * 1024)
#endif
#ifndef ARENA_IN_TRANSIT
#define ARENA_IN_TRANSIT (2304 * 1024)
#endif

/* The largest block of it: what nats.c needs for a message of MESSAGE_MAX that comes in pieces, and no message of gigabytes. */
#ifndef BLOCK_MAX
#define BLOCK_MAX (3 * PARAMS_MAX)
#endif

/* nats.c's read buffer and (before it grows) write buffer of each connection, in bytes. */
#ifndef IO_BUFFER
#define IO_BUFFER (32 * 1024)
#endif

/* Stack of a thread, in bytes: connecting with TLS and a name look-up takes about 40 kB of it. */
#ifndef THREAD_STACK
#define THREAD_STACK (96 * 1024)
#endif
#define THREADS_MAX (LINKS_MAX + LINKS_LEAVING_MAX + 1 + 3) /* one a link and the lattice, and three of nats.c */

/* The longest line of host data, in bytes of base64. */
#ifndef HOST_DATA_MAX
#define HOST_DATA_MAX (1024 * 1024)
#endif

/* Times, in milliseconds. */
#define CONNECT_TIMEOUT_MS 5000       /* TCP, INFO, CONNECT and PONG of one server; a TLS handshake has TLS_HANDSHAKE_MS */
#define RETRY_MIN_MS 100              /* first pause between two attempts to connect; it doubles, with jitter, up to */
#define RETRY_MAX_MS 30000            /* this one */
#define PING_INTERVAL_S_DEFAULT 20    /* silence on a connection before it is asked for a sign of life */
#define HANDLER_TIMEOUT_MS_DEFAULT 10000 /* a component's time for one message */
#define MAX_IN_FLIGHT_DEFAULT 256     /* messages of one link that its component has at a time */
#define PARAMS_TIMEOUT_MS 10000       /* parameters that come in pieces must be whole by then */
#define PUBLISH_TIMEOUT_MS 10000      /* a server must have taken the bytes of a publish by then */
#define PAUSE_MS 500                  /* the one time a link is not read while its component catches up, and */
#define PAUSE_EVERY_MS 10000          /* the least time between two of them: more, and nats-server cuts the connection */
#define PULL_EXPIRES_MS 30000         /* how long a request for messages stands at a consumer */
#define PULL_HEARTBEAT_MS 5000        /* how often an idle consumer shows that it has not forgotten the request */
#define PULL_ANSWER_MS 5000           /* JetStream must have answered a question by then */
#define NAK_MIN_MS 1000               /* a message that a component failed on comes back after this; it doubles, up to */
#define NAK_MAX_MS 60000              /* this */
#define ABSENT_MIN_MS 250             /* nobody runs the component: messages of consumers are tried again after this; it */
#define ABSENT_MAX_MS 5000            /* doubles, up to this */
#define KEPT_MS 60000                 /* and after this they are given back */
#define LEAVE_MS 30000                /* calls of a deleted link end by then */
#define SHUTDOWN_MS 240               /* calls end by then after an order to shut down; hosts kill after 300 ms */
#define TICK_MS 1000                  /* the longest sleep of the loop: orphans are noticed, held-back log counts written */

/* Sums. PARAMS_MAX: encoded parameters of a call. WRITE_MAX: what may wait in a connection's write buffer. PULL_BYTES: what one
 * request for messages of a stream may bring, if neither link nor consumer says less. */
#define PARAMS_MAX (MESSAGE_MAX + 2 * SUBJECT_MAX + 64)
#define WRITE_MAX (PARAMS_MAX + 192 * 1024)
#define PULL_BYTES (PARAMS_MAX + 64 * 1024)

/* The most that all of it may reserve, in bytes; checked by the compiler. */
#ifndef RESERVED_MAX
#define RESERVED_MAX (24 * 1024 * 1024)
#endif

#endif
