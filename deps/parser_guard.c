/* What stands before the parser of nats.c 3.10.1, which trusts the server (nats.c, parser.c):
 *
 *   - it adds a message's length to an index, so that one near 2^31 makes it read far outside of its
 *     buffer;
 *   - it keeps subject and reply subject of a message that comes in two reads in 4,096 bytes, whatever
 *     their length;
 *   - a message that is larger than memory is asked for all the same, and ends the connection;
 *   - of a large message that is cut off by the end of its connection it forgets the block.
 *
 * So no message gets to it: messages are read here, and handed on as nats.c would have made them. That takes
 * less than half of its instructions, too: it looks at each byte of a line twice, and takes a lock for each
 * message. It gets all other lines, which are few.
 *
 * The linker puts __wrap_natsParser_Parse in the place of the parser (--wrap, in the Makefile), so that
 * each byte passes here. Reading and writing are the loop's, so a guard needs no lock. A message's line is
 * read when it is there as a whole, and so is the line end behind its payload: what there is of either waits
 * in the read buffer, and the next read goes behind it.
 *
 * nats.c trusts the server as well before that, while a connection is being made (conn.c, comsock.c,
 * util.c): see "INFO" and "while connecting" below.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "parser_guard.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "headers.h"

/* nats.c's scratch, and nats-server's own limit for a line (max_control_line) */
enum { LINE_MAX_BYTES = 4096 };

static _Thread_local struct guard *watched;

void guard_watch(struct guard *g) { watched = g; }

/* ---- messages. protocol: NATS, MSG and HMSG
 *
 *     MSG subject sid [reply] bytes⏎ body⏎
 *     HMSG subject sid [reply] bytes-of-headers bytes-of-all⏎ headers body⏎
 */

static bool is_message(char first) { return first == 'm' || first == 'h'; }

/* What a message's line says. */
struct announced {
    struct span subject, reply;
    size_t sid;
    size_t head, all; /* bytes of its headers, and of headers and body */
};

static bool is_digits(struct span word) {
    for (size_t i = 0; i < word.len; i++)
        if (word.at[i] < '0' || word.at[i] > '9') return false;
    return word.len > 0;
}

static bool read_number(struct span word, size_t *number) {
    *number = 0;
    if (word.len > 9 || !is_digits(word)) return false;
    for (size_t i = 0; i < word.len; i++) *number = 10 * *number + (size_t)(word.at[i] - '0');
    return true;
}

/* Takes a message's line apart. False: it is none. */
static bool read_line(const char *at, const char *end, struct announced *m) {
    struct span word[6];
    size_t n = 0;
    while (at < end) {
        const char *space = memchr(at, ' ', (size_t)(end - at));
        if (!space) space = end;
        if (space > at && n == 6) return false;
        if (space > at) word[n++] = (struct span){at, (size_t)(space - at)};
        at = space + 1;
    }
    bool headers = n > 0 && word[0].len == 4;
    size_t least = headers ? 5 : 4; /* words, without a reply subject */
    if (n != least && n != least + 1) return false;
    if (strncasecmp(word[0].at, headers ? "HMSG" : "MSG ", 4) != 0) return false;
    /* one of more digits than nats.c ever gives is 0: none of ours */
    if (!read_number(word[2], &m->sid) && !is_digits(word[2])) return false;
    m->subject = word[1];
    m->reply = n > least ? word[3] : (struct span){0};
    m->head = 0;
    if (headers && !read_number(word[n - 2], &m->head)) return false;
    return read_number(word[n - 1], &m->all) && m->head <= m->all;
}

/* A message that is passed over: somebody is told of it. */
static void skip_message(const struct guard *g, const struct announced *m, const char *why) {
    static char subject[LINE_MAX_BYTES], reply[LINE_MAX_BYTES];
    (void)text_of(m->subject, subject, sizeof(subject));
    (void)text_of(m->reply, reply, sizeof(reply));
    g->skipped(g->user, subject, m->reply.len > 0 ? reply : NULL, m->all, why);
}

static bool has_zero(struct span s) { return s.len > 0 && memchr(s.at, 0, s.len); }

/* A message begins: one without a block for it is passed over; and so is one for "a\0b", to which clients
 * that may not publish to "a" might, and which would be taken for that. Servers let it through. */
static void begin_message(struct guard *g, const struct announced *m) {
    natsStatus s = NATS_NO_MEMORY;
    const char *zero = has_zero(m->subject) || has_zero(m->reply) ? "a zero byte in its subject" : NULL;
    g->sid = m->sid;
    if (!zero && (m->all <= GUARD_SMALL || g->takes(g->user, m->all)))
        s = natsMsg_createWithPadding(&g->msg, m->subject.at, (int)m->subject.len, m->reply.at,
                                      (int)m->reply.len, NULL, (int)m->all, 0, (int)m->head);
    if (s != NATS_OK) {
        g->msg = NULL;
        skip_message(g, m, zero);
    }
    g->in_message = true;
    g->head = m->head;
    g->body = m->all - m->head;
}

/* A message's line, which begins here. Returns its length; or 0: its end is still to come, or something is
 * wrong. */
static size_t message_line(struct guard *g, const char *at, size_t len) {
    const char *end = memchr(at, '\n', MIN(len, (size_t)LINE_MAX_BYTES));
    struct announced m;
    if (!end && len < LINE_MAX_BYTES) return 0;
    if (!end) g->wrong = "a line of the server is too long";
    else if (end[-1] != '\r' || !read_line(at, end - 1, &m))
        g->wrong = "a message's line of the server is none";
    else begin_message(g, &m);
    return g->wrong ? 0 : (size_t)(end - at) + 1;
}

/* Where a payload's next byte belongs: the headers end one byte before the data (headers.h). */
static char *payload_place(const struct guard *g) {
    char *data = (char *)natsMsg_GetData(g->msg);
    return g->head > 0 ? data - 1 - g->head : data + natsMsg_GetDataLength(g->msg) - g->body;
}

/* The next bytes of a message's headers, or of its body. Returns how many those were. */
static size_t payload_goes_on(struct guard *g, const char *at, size_t len) {
    size_t *left = g->head > 0 ? &g->head : &g->body, n = MIN(*left, len);
    if (g->msg) memcpy(payload_place(g), at, n);
    *left -= n;
    return n;
}

/* The line end behind a payload: the message is whole. Returns 0 if that is still to come, or wrong. */
static size_t message_ends(struct guard *g, const char *at, size_t len) {
    natsMsg *msg = g->msg;
    if (len < 2) return 0;
    if (memcmp(at, "\r\n", 2) != 0) {
        g->wrong = "a message of the server does not end where it should";
        return 0;
    }
    g->msg = NULL;
    g->in_message = false;
    if (msg) g->message(g->user, msg);
    return 2;
}

/* ---- all other lines */

static bool is_space(char c) { return c == ' ' || c == '\t'; }

/* One byte of such a line. A '\r' within a line is taken by nats.c either for nothing or for the last byte
 * but one: no server sends one. Nor does any send a line whose first word is its only one, where more are
 * wanted: that would go on in the next. */
static const char *line_goes_on(struct guard *g, char c) {
    if (g->line++ == 0) {
        g->first = (char)(c | 0x20);
        g->words = 0;
        g->last = ' ';
    }
    if (g->line > (g->first == 'i' ? GUARD_SMALL : LINE_MAX_BYTES)) return "a line of the server is too long";
    if (c == '\n') {
        g->line = 0;
        bool has_words = g->first == '-' || g->first == 'i';
        return has_words && g->words < 2 ? "a line of the server is too short" : NULL;
    }
    if (g->last == '\r') return "a line of the server has a carriage return in it";
    if (!is_space(c) && c != '\r' && is_space(g->last)) g->words++;
    g->last = c;
    return NULL;
}

/* The rest of a line, or as much of it as is there. Returns its length. */
static size_t other_line(struct guard *g, const char *at, size_t len) {
    size_t n = 0;
    do g->wrong = line_goes_on(g, at[n++]);
    while (!g->wrong && g->line > 0 && n < len);
    return n;
}

/* What waits for more goes to the beginning of the read buffer; what was read is wiped. */
static void keep_held(struct guard *g, char *bytes, size_t len) {
    if (g->held) memmove(bytes, bytes + len - g->held, g->held);
    if (g->wipe > g->held) explicit_bzero(bytes + g->held, g->wipe - g->held);
    g->wipe = 0;
}

/* The names are the linker's: NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
natsStatus __real_natsParser_Parse(natsConnection *nc, char *bytes, int len);
natsStatus __wrap_natsParser_Parse(natsConnection *nc, char *bytes, int len);
void __real_natsConn_processErr(natsConnection *nc, char *at, int len) __attribute__((weak));
void __wrap_natsConn_processErr(natsConnection *nc, char *at, int len);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

natsStatus __wrap_natsParser_Parse(natsConnection *nc, char *bytes, int len) {
    struct guard *g = watched;
    natsStatus s = NATS_OK;
    if (!g || len <= 0) return __real_natsParser_Parse(nc, bytes, len);
    if (g->wrong) return NATS_PROTOCOL_ERROR;
    char *at = bytes, *end = bytes + len;
    while (at < end && s == NATS_OK) {
        size_t left = (size_t)(end - at), n;
        bool other = !g->in_message && (g->line > 0 || !is_message((char)(*at | 0x20)));
        if (g->in_message && g->head + g->body > 0) n = payload_goes_on(g, at, left);
        else if (g->in_message) n = message_ends(g, at, left);
        else if (other) n = other_line(g, at, left);
        else n = message_line(g, at, left);
        if (g->wrong) s = NATS_PROTOCOL_ERROR;
        else if (other) s = __real_natsParser_Parse(nc, at, (int)n);
        if (n == 0) break;
        at += n;
    }
    g->held = s == NATS_OK ? (size_t)(end - at) : 0;
    keep_held(g, bytes, (size_t)len);
    return s;
}

/* nats.c would keep the last text only, and tell of it later, on a thread of its own. The text is in
 * quotes. */
void __wrap_natsConn_processErr(natsConnection *nc, char *at, int len) {
    static char text[LINE_MAX_BYTES];
    size_t left = len > 2 ? (size_t)len - 2 : 0;
    if (left >= sizeof(text)) left = sizeof(text) - 1;
    if (!watched || !watched->refused || !memmem(at, left, "Permissions Violation", 21)) {
        __real_natsConn_processErr(nc, at, len);
        return;
    }
    memcpy(text, at + 1, left);
    text[left] = 0;
    watched->refused(watched->user, text);
}

void guard_end(struct guard *g) {
    natsMsg_free(g->msg);
    g->msg = NULL;
}

/* ==== INFO =================================================================================================
 *
 * nats.c's own reader of JSON (util.c) can't be given what a server writes: a number such as 1e999999999999
 * is worked out by as many multiplications, each object copies all that stands behind its brace twice, what
 * two fields of one name hold is forgotten, and a list of servers is kept whole. So it gets an object with
 * only the fields that it needs, and of them only plain strings, true, false, and whole numbers of up to 19
 * digits. */

static const char *const info_fields[] = {
    "server_id",   "version", "host",      "port",  "auth_required", "tls_required", "tls_available",
    "max_payload", "proto",   "client_id", "nonce", "client_ip",     "ldm",          "headers",
};

static char *skip_space(char *at, const char *end) {
    while (at < end && (is_space(*at) || *at == '\r' || *at == '\n')) at++;
    return at;
}

/* What stands behind the string that begins here, or NULL. */
static char *behind_string(char *at, const char *end) {
    if (at == end || *at != '"') return NULL;
    for (at++; at < end && *at != '"'; at++)
        if (*at == '\\' && ++at == end) return NULL;
    return at < end ? at + 1 : NULL;
}

/* The comma or brace behind the value that begins here, or NULL. */
static char *behind_value(char *at, const char *end) {
    for (size_t depth = 0; at && at < end;) {
        if (depth == 0 && (*at == ',' || *at == '}')) return at;
        if (*at == '"') {
            at = behind_string(at, end);
            continue;
        }
        if (*at == '{' || *at == '[') depth++;
        if ((*at == '}' || *at == ']') && depth > 0) depth--;
        at++;
    }
    return NULL;
}

static bool is_word(const char *at, size_t len, const char *word) {
    return len == strlen(word) && memcmp(at, word, len) == 0;
}

static bool is_plain_value(const char *at, size_t len) {
    size_t digits = 0, sign = len > 0 && *at == '-';
    if (len >= 2 && *at == '"') {
        for (size_t i = 1; i < len - 1; i++)
            if ((unsigned char)at[i] < ' ' || at[i] == '"' || at[i] == '\\') return false;
        return at[len - 1] == '"';
    }
    while (sign + digits < len && isdigit((unsigned char)at[sign + digits])) digits++;
    if (digits > 0) return digits <= 19 && sign + digits == len;
    return is_word(at, len, "true") || is_word(at, len, "false");
}

static const char tls_required[] = "tls_required";
static _Thread_local bool has_tls; /* of the attempt that is under way: TLS came before INFO */

/* Whether nats.c gets a field; its name is in quotes. */
static bool is_wanted(const char *name, size_t name_len, const char *value, size_t value_len) {
    if (has_tls && is_word(name + 1, name_len - 2, tls_required)) return false; /* see natsSock_ReadLine */
    for (size_t i = 0; i < sizeof(info_fields) / sizeof(*info_fields); i++)
        if (is_word(name + 1, name_len - 2, info_fields[i])) return is_plain_value(value, value_len);
    return false;
}

size_t guard_info(char *json, size_t len, struct servers *said) {
    char *end = json + len, *out = json, *at = skip_space(json, end);
    if (at == end || *at++ != '{') return 0;
    *out++ = '{';
    for (;;) {
        at = skip_space(at, end);
        if (at < end && *at == '}') break;
        char *name = at, *name_end = behind_string(at, end);
        at = name_end ? skip_space(name_end, end) : end;
        if (at == end || *at++ != ':') return 0;
        char *value = skip_space(at, end), *value_end = behind_value(value, end);
        if (!value_end) return 0;
        at = *value_end == ',' ? value_end + 1 : value_end;
        while (value_end > value && (is_space(value_end[-1]) || value_end[-1] == '\r')) value_end--;
        size_t name_len = (size_t)(name_end - name), value_len = (size_t)(value_end - value);
        servers_read(said, (struct span){name, name_len}, (struct span){value, value_len});
        if (!is_wanted(name, name_len, value, value_len)) continue;
        if (out[-1] != '{') *out++ = ',';
        memmove(out, name, name_len);
        out += name_len;
        *out++ = ':';
        memmove(out, value, value_len);
        out += value_len;
    }
    *out++ = '}';
    return (size_t)(out - json);
}

/* ==== while connecting =====================================================================================
 *
 * nats.c reads INFO and the answer to CONNECT on the connecting thread, byte after byte without a limit,
 * and looks at its deadline only when none has come; that deadline is by the time of day, which may be set
 * back. Here a line has an end, and the attempt a deadline that no byte puts off. While no attempt is under
 * way on the thread, which is so on the loop's at any time, all of it goes straight through. */

static _Thread_local int64_t deadline_ms;         /* of the attempt that is under way; 0: none is */
static _Thread_local size_t line_left;            /* bytes that the line may still have */
static _Thread_local bool introduced;             /* the server has said its INFO */
static _Thread_local const char *stopped;         /* why nothing more was read, or NULL */
static _Thread_local char no_info[41];            /* the server's first line, if it is another */
static _Thread_local struct servers *told;        /* what INFO says of servers */
static _Thread_local const atomic_bool *unwanted; /* the attempt is to end */

static int64_t now_ms(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void guard_connecting(unsigned ms, bool tls_first, struct servers *said, const atomic_bool *nobody_waits) {
    told = said;
    unwanted = nobody_waits;
    deadline_ms = now_ms() + ms;
    has_tls = tls_first;
    line_left = GUARD_SMALL;
    introduced = false;
    stopped = NULL;
    no_info[0] = 0;
}

const char *guard_connected(const char **line) {
    deadline_ms = 0;
    has_tls = false;
    *line = no_info;
    return stopped;
}

static natsStatus stop(natsStatus s, const char *why) {
    stopped = why;
    return s;
}

/* A program that is linked without the --wrap of these has no use for them, and no such function of
 * nats.c's. */
#define WEAK __attribute__((weak))
/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): nats.c's comsock.h and conn.h,
 * whose natsSockCtx begins with the descriptor */
natsStatus __real_natsSock_WaitReady(int mode, void *ctx) WEAK;
natsStatus __wrap_natsSock_WaitReady(int mode, void *ctx);
natsStatus __real_natsSock_Read(void *ctx, char *out, size_t room, int *n) WEAK;
natsStatus __wrap_natsSock_Read(void *ctx, char *out, size_t room, int *n);
natsStatus __real_natsSock_ReadLine(void *ctx, char *line, size_t room) WEAK;
natsStatus __wrap_natsSock_ReadLine(void *ctx, char *line, size_t room);
void __real_natsConn_processAsyncINFO(natsConnection *nc, char *json, int len) WEAK;
void __wrap_natsConn_processAsyncINFO(natsConnection *nc, char *json, int len);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

/* Why a connection did not come about. */
static const char *connect_words(int error) {
    switch (error) {
    case ECONNREFUSED:
        return "connection refused: nothing listens on that port";
    case ENETUNREACH:
    case EHOSTUNREACH:
        return "unreachable: there is no route to that address, or the host is down";
    case ETIMEDOUT:
        return "nobody answers there: timeout (the host is down, or a firewall drops what is sent)";
    case EMFILE:
    case ENFILE:
        return "no file descriptor is left: raise ulimit -n";
    default:
        return strerror(error);
    }
}

const char *guard_cannot_connect(const struct addrinfo *at) {
    int fd = socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), error = 0;
    if (fd < 0 || connect(fd, at->ai_addr, at->ai_addrlen) < 0) error = errno;
    if (fd >= 0) (void)close(fd);
    return error && error != EINPROGRESS ? connect_words(error) : NULL;
}

/* Who says nothing is asked for a page, since a server of another protocol may wait for its client's first
 * word. The connection is given up in any case. */
static const char *silent_words(int fd) {
    static const char question[] = "GET / HTTP/1.0\r\n\r\n";
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char answer[5] = "";
    if (send(fd, question, strlen(question), MSG_DONTWAIT | MSG_NOSIGNAL) > 0 &&
        poll(&p, 1, GUARD_ASK_MS) > 0)
        (void)recv(fd, answer, sizeof(answer), MSG_DONTWAIT);
    if (memcmp(answer, "HTTP/", 5) == 0)
        return "an HTTP server is there, or NATS's port for WebSocket or monitoring: clients need another, "
               "4222 by default";
    if (memcmp(answer, "\x15\x03", 2) == 0)
        return "the server wants TLS before it says anything: set tls_first=true, if it is a NATS server";
    return "the server does not answer: timeout before its INFO (is the port NATS's for clients, 4222?)";
}

natsStatus __wrap_natsSock_WaitReady(int mode, void *ctx) {
    enum { WAIT_FOR_READ, WAIT_FOR_WRITE, WAIT_FOR_CONNECT };
    if (!deadline_ms) return __real_natsSock_WaitReady(mode, ctx);
    struct pollfd p = {.fd = *(const natsSock *)ctx, .events = mode == WAIT_FOR_READ ? POLLIN : POLLOUT};
    int error = 0;
    for (int64_t left; (left = deadline_ms - now_ms()) > 0;) {
        if (atomic_load(unwanted)) return stop(NATS_TIMEOUT, "it is not wanted any more");
        int n = poll(&p, 1, left < GUARD_LOOK_MS ? (int)left : GUARD_LOOK_MS);
        if (n > 0 && mode == WAIT_FOR_CONNECT)
            (void)getsockopt(p.fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof(error)});
        if (error) return stop(NATS_NO_SERVER, connect_words(error));
        if (n > 0) return NATS_OK;
        if (n < 0 && errno != EINTR) return stop(NATS_IO_ERROR, strerror(errno));
    }
    if (mode == WAIT_FOR_CONNECT) return stop(NATS_TIMEOUT, connect_words(ETIMEDOUT));
    if (introduced) return stop(NATS_TIMEOUT, "the server does not answer to CONNECT: timeout");
    return stop(NATS_TIMEOUT, silent_words(p.fd));
}

/* Bytes of the line that have come without TLS, in at most `room`: one system call for all of them, in place
 * of one for each; 1 if none has. What follows the line stays where it is. */
static size_t line_part(void *ctx, char *out, size_t room) {
    ssize_t n = recv(*(const natsSock *)ctx, out, room, MSG_PEEK | MSG_DONTWAIT);
    const char *end = n > 0 ? memchr(out, '\n', (size_t)n) : NULL;
    if (end) return (size_t)(end - out) + 1;
    return n > 0 ? (size_t)n : 1;
}

/* Reads up to `len` bytes of a line; *n says how many they were. */
static natsStatus read_part(void *ctx, char *out, size_t len, int *n) {
    if (line_left == 0) return stop(NATS_PROTOCOL_ERROR, "a line of the server is too long");
    if (now_ms() >= deadline_ms) return stop(NATS_TIMEOUT, "the server does not come to an end: timeout");
    natsStatus s = __real_natsSock_Read(ctx, out, len, n);
    if (s == NATS_OK) line_left -= (size_t)*n;
    if (s != NATS_CONNECTION_CLOSED) return s;
    if (introduced) return stop(s, "the server closes the connection, and does not answer to CONNECT");
    return stop(s, "the server closes the connection before its INFO: is the port NATS's for clients, 4222? "
                   "Or does it want tls_first=true?");
}

/* What the loop reads, in a turn of it. The rest of a body that is larger than nats.c's buffer goes straight
 * to its place, up to STRAIGHT buffers of it. What follows goes to the buffer, behind what is held there:
 * nobody else writes into it. */
static natsStatus read_watched(struct guard *g, void *ctx, char *out, size_t room, int *n) {
    enum { STRAIGHT = 4 };
    natsStatus s;
    if (g->msg && g->head == 0 && g->body >= room) {
        int got = 0;
        s = __real_natsSock_Read(ctx, payload_place(g), MIN(g->body, STRAIGHT * room), &got);
        g->body -= (size_t)got;
        *n = 0;
        if (s != NATS_OK || g->body > 0) return s;
    }
    s = __real_natsSock_Read(ctx, out + g->held, room - g->held, n);
    if (s != NATS_OK || *n <= 0) return s;
    *n += (int)g->held;
    g->held = 0;
    return s;
}

natsStatus __wrap_natsSock_Read(void *ctx, char *out, size_t room, int *n) {
    if (!deadline_ms && watched) return read_watched(watched, ctx, out, room, n);
    if (!deadline_ms) return __real_natsSock_Read(ctx, out, room, n);
    int read = 0;
    natsStatus s = read_part(ctx, out, 1, &read); /* nats.c, too, asks for one at a time */
    if (n) *n = read;
    return s;
}

/* What a port of a NATS server is for that is none for clients, or NULL. protocol: nats-server 2.9 to 2.12,
 * struct Info of server.go: who has these fields. */
static const char *other_port(const char *info) {
    if (strstr(info, "\"gateway_urls\":"))
        return "this port of the server is for gateways: clients need another, 4222 by default";
    if (strstr(info, "\"lnoc\":"))
        return "this port of the server is for routes of its cluster: clients need another, 4222 by default";
    if (strstr(info, "\"info_on_connect\":"))
        return "this port of the server is for leaf nodes: clients need another, 4222 by default";
    return NULL;
}

/* The first line of what is no NATS server, or of one that refuses. */
static natsStatus stop_other(const char *line) {
    const char *who = "no NATS server is there, but one that says";
    if (strncmp(line, "HTTP/", 5) == 0) who = "an HTTP server is there, not NATS: it says";
    if (strncmp(line, "-ERR ", 5) == 0) who = "the server says";
    (void)snprintf(no_info, sizeof(no_info), "%s", line);
    return stop(NATS_PROTOCOL_ERROR, who);
}

/* The first line of the server, without its end. Behind TLS that came first it asks for TLS, whatever it
 * said: nats.c would take it for a server without, which it may be, behind one that ends TLS for it. */
natsStatus __wrap_natsSock_ReadLine(void *ctx, char *line, size_t room) {
    if (!deadline_ms) return __real_natsSock_ReadLine(ctx, line, room);
    size_t len = 0, head = strlen("INFO ");
    if (line_left >= room) line_left = room - 1;
    do {
        int n = 0;
        natsStatus s = read_part(ctx, line + len, has_tls ? 1 : line_part(ctx, line + len, line_left), &n);
        if (s != NATS_OK) return s;
        len += (size_t)n;
    } while (line[len - 1] != '\n');
    line_left = LINE_MAX_BYTES; /* for the answer to CONNECT */
    len -= len > 1 && line[len - 2] == '\r' ? 2 : 1;
    line[len] = 0;
    if (strncmp(line, "INFO ", head) != 0) return stop_other(line);
    introduced = true;
    const char *other = other_port(line);
    if (other) return stop(NATS_PROTOCOL_ERROR, other);
    size_t left = guard_info(line + head, len - head, told);
    line[head + left] = 0;
    if (has_tls && left && left + sizeof(tls_required) + 10 < room - head)
        (void)sprintf(line + head + left - 1, "%s\"%s\":true}", left > 2 ? "," : "", tls_required);
    if (!left) return stop(NATS_PROTOCOL_ERROR, "the server's INFO is no JSON object");
    return told->lame_duck ? stop(NATS_IO_ERROR, "the server will close (lame duck mode)") : NATS_OK;
}

/* An INFO of later. One that is no JSON changes nothing. */
void __wrap_natsConn_processAsyncINFO(natsConnection *nc, char *json, int len) {
    struct servers said = {0};
    size_t left = guard_info(json, len > 0 ? (size_t)len : 0, &said);
    if (!left) return;
    if (watched && watched->named) servers_take(watched->named, &said);
    __real_natsConn_processAsyncINFO(nc, json, (int)left);
}
