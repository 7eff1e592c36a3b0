/* headers - the header block of a nats.c message, read and written as bytes.
 *
 * nats.c's own functions would make a hash table of each block: 5 blocks of memory, and a fifth of all
 * instructions of a publish. nats.c keeps all of a message in one block, in which the headers stand before
 * the data with a NUL between (msg.c of 3.10.1); so they can be read, and written, where they are.
 * protocol: NATS, ADR-4.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef HEADERS_H
#define HEADERS_H

#include <stdbool.h>
#include <stddef.h>

#include <nats/nats.h>

#include "text.h"

/* Exported by libnats from 3.10 to today's main, though not in nats.h. natsMsg_free frees at once;
 * natsMsg_Destroy would trouble nats.c's garbage thread. The next two know a message's header block as
 * bytes; it and the body are left as they are if there is nothing to copy from (NULL). The last two put
 * bytes into the write buffer, and ask the loop to write it. nats.c calls them with its lock, against threads
 * that it does not have in a loop of somebody else. */
void natsMsg_free(void *msg);
natsStatus natsMsg_createWithPadding(natsMsg **msg, const char *subject, int subject_len, const char *reply,
                                     int reply_len, const char *headers_and_data, int len, int padding,
                                     int headers_len);
int natsMsgHeader_encodedLen(natsMsg *msg);
natsStatus natsConn_bufferWrite(natsConnection *nc, const char *bytes, int len);
natsStatus natsConn_bufferFlush(natsConnection *nc);

struct header {
    const char *key;
    const char *value; /* NULL: there is none */
};
enum { HEADERS_MAX = 4 }; /* an array of fewer ends with the key NULL */

/* The header block of a message, as it goes over the wire: NATS/1.0, a status perhaps, and "key: value"
 * lines; or nothing. */
struct span headers_of(natsMsg *msg);

/* Fills in the values of the headers that are asked for. Marks their ends in the message, which must be
 * ours; they are gone with it. */
void headers_read(natsMsg *msg, struct header wanted[HEADERS_MAX]);

/* What the server itself says in place of a message, such as "503" without a text; both are empty in a
 * message of anybody else. */
struct status {
    struct span code, text;
};
struct status status_of(natsMsg *msg);

/* Whether nobody listens to the subject that a message of ours was sent to. */
bool is_no_responders(natsMsg *msg);

/* Bytes of the header block with these headers; 0: there is none. */
size_t headers_size(const struct header *headers);

/* The bytes of a message in the protocol, from the lengths of its parts. protocol: NATS, PUB and HPUB. */
size_t wire_size(size_t subject, size_t reply, size_t head, size_t len);

/* Puts a message into the write buffer of an open connection, as natsConnection_Publish() does, without its
 * lock, its copies, and most of its instructions. There may be no reply and no headers (NULL). Only for the
 * thread that reads and writes. False: there is no memory, and half of it may be in the buffer; or it has
 * more than MESSAGE_HEAD_MAX bytes before the body. */
enum { MESSAGE_HEAD_MAX = 12 * 1024 };
bool message_write(natsConnection *nc, struct span subject, struct span reply, const struct header *headers,
                   const void *data, size_t len);

#endif
