/* url - the URL of a NATS server, taken apart, so that what is checked is what is used.
 *
 * nats.c splits and decodes URLs as well, but what it decodes it writes into CONNECT as it is, and what it
 * cannot decode it writes into its error text, password and all (url.c and conn.c of 3.10.1). So it never
 * gets to see one: here they are taken apart, decoded, and then checked.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef URL_H
#define URL_H

#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>

enum {
    URL_MAX = 1000,     /* the longest URL, in bytes */
    URL_HOST_MAX = 254, /* the longest host, with a NUL: 253 bytes are the most that DNS knows */
    URL_ADDRESS_MAX = URL_HOST_MAX + 10,
    URL_DNS_S = 2, /* a name server's time for an answer, if resolv.conf leaves it at 5 s */
};

struct url {
    bool tls;                                      /* the scheme is tls:// */
    bool has_user, has_password;                   /* a user without a password is a token */
    char host[URL_HOST_MAX];                       /* an IPv6 address stands without its brackets */
    char name[URL_HOST_MAX];                       /* what its certificate is to be for: the host */
    char port[6];                                  /* a number from 1 to 65535 */
    char user[URL_MAX + 1], password[URL_MAX + 1]; /* percent-decoded; no NUL in them */
};

/* Takes a URL apart: [nats://|tls://][USER[:PASSWORD]@]HOST[:PORT][/…]. USER ends at the first colon,
 * PASSWORD at the last @, as nats.c has it. Returns NULL; or what is wrong with it, as the rest of a
 * sentence, which holds nothing of the URL. The caller wipes *url, in either case. */
const char *url_parse(struct url *url, const char *text, size_t len);

/* HOST:PORT, which is no secret. */
void url_address(const struct url *url, char out[URL_ADDRESS_MAX]);

/* Writes a text as it stands between the quotes of a JSON string, with a NUL behind it: at most
 * URL_ESCAPED(strlen(text)) + 1 bytes. Returns how many, without the NUL. */
#define URL_ESCAPED(len) (6 * (len))
size_t url_json_escape(char *out, const char *text);

/* The addresses of its host, for freeaddrinfo(); or why there are none. It waits for name servers as
 * resolv.conf says (URL_DNS_S, each of three twice), but never for a connection to one. */
const char *url_look_up(const struct url *url, struct addrinfo **all);

#endif
