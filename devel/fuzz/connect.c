/* The server of the target "connect" of fuzz.c: on a thread of its own it takes one connection after the other on a loopback port,
 * and says to each what the input tells it to, as it is, but for three bytes:
 *
 *     01   wait until the client has said something (no longer than it takes to see that it will not)
 *     02   what the client said last, 400 bytes of it at most
 *     03   a pause, so that what follows comes in a read of its own
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MUST(condition) ((condition) ? (void)0 : abort())

int connect_serve(const uint8_t *data, size_t len);
void connect_served(void);

enum { WAIT_MS = 5, PAUSE_NS = 200000 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t news;
    int listener, port;
    const uint8_t *data;   /* NULL: nothing to say */
    size_t len, connections;
    bool busy;
} server = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, -1, 0, NULL, 0, 0, false};

static void serve(int fd, const uint8_t *data, size_t len) {
    char heard[400];
    ssize_t said = 0;
    for (size_t i = 0, n; i < len; i += n) {
        struct pollfd p = {fd, POLLIN, 0};
        for (n = 0; i + n < len && (data[i + n] == 0 || data[i + n] > 3); n++) continue;
        if (n > 0 && send(fd, data + i, n, MSG_NOSIGNAL) < 0) return;
        if (n > 0) continue;
        n = 1;
        if (data[i] == 1 && poll(&p, 1, WAIT_MS) == 1) said = recv(fd, heard, sizeof(heard), 0);
        if (said < 0 || (data[i] == 2 && said > 0 && send(fd, heard, (size_t)said, MSG_NOSIGNAL) < 0)) return;
        if (data[i] == 3) (void)nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
    }
    (void)shutdown(fd, SHUT_WR);
    while (recv(fd, heard, sizeof(heard), 0) > 0) continue;
}

static void *accept_all(void *unused) {
    (void)unused;
    for (;;) {
        int fd = accept4(server.listener, NULL, NULL, SOCK_CLOEXEC);
        MUST(fd >= 0);
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)); /* no port is kept in TIME_WAIT */
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        pthread_mutex_lock(&server.lock);
        server.busy = true;
        server.connections++;
        pthread_mutex_unlock(&server.lock);
        serve(fd, server.data, server.len);
        close(fd);
        pthread_mutex_lock(&server.lock);
        server.busy = false;
        pthread_cond_signal(&server.news);
        pthread_mutex_unlock(&server.lock);
    }
    return NULL;
}

/* From now on this is what the server says. Returns its port. */
int connect_serve(const uint8_t *data, size_t len) {
    if (server.listener < 0) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof(at);
        pthread_t thread;
        server.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        MUST(bind(server.listener, (struct sockaddr *)&at, size) == 0 && listen(server.listener, 8) == 0);
        MUST(getsockname(server.listener, (struct sockaddr *)&at, &size) == 0);
        server.port = ntohs(at.sin_port);
        MUST(pthread_create(&thread, NULL, accept_all, NULL) == 0);
    }
    server.data = data;
    server.len = len;
    server.connections = 0;
    return server.port;
}

/* Waits until it has done with the one connection that was made. */
void connect_served(void) {
    pthread_mutex_lock(&server.lock);
    while (server.connections < 1 || server.busy) pthread_cond_wait(&server.news, &server.lock);
    pthread_mutex_unlock(&server.lock);
}
