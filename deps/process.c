/* The process: see process.h.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "process.h"
#include "log.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Takes the place of a standard descriptor that is closed: else a socket would get its number, and log
 * lines would go to a NATS server. Nothing can be read from what is opened here, nor written to it, and "/"
 * is there without /dev, too. */
static void fill_standard_descriptors(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        int opened = fcntl(fd, F_GETFD) < 0 ? open("/", O_PATH) : fd;
        if (opened != fd) _exit(1);
    }
}

/* Who adopts orphans (init, or a subreaper) is in another session than we, who have inherited the host's.
 * That does not tell an orphan from a child if we lead a session, or if the host shares its own with who
 * adopts (a shell as pid 1 that starts hosts again and again). A host that is pid 1 takes us with it; one
 * outside of our pid namespace is 0 here, and getsid(0) is our own session. */
static pid_t started_by(void) {
    pid_t parent = getppid(), session = getsid(0), theirs = getsid(parent);
    return session != getpid() && theirs >= 0 && theirs != session ? -1 : parent;
}

pid_t process_begin(void) {
    pid_t parent = started_by();
    fill_standard_descriptors();
    /* No core dump and no debugger of the same user sees the secrets in memory; no program that is run from
     * here could gain rights. Linux has had both for longer than the kernels that run containers. */
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return parent;
}

void process_prepare(void (*on_signal)(int number), size_t stack) {
    const struct sigaction act = {.sa_handler = on_signal};
    sigset_t none;
    pthread_attr_t attr;
    (void)pthread_attr_init(&attr);
    if (pthread_attr_setstacksize(&attr, stack) != 0)
        die("a stack of %zu kB is too small here", stack / 1024);
    (void)pthread_attr_setguardsize(&attr, 64 * 1024); /* on arm64 gcc touches a large frame every 64 kB */
    (void)pthread_setattr_default_np(&attr);
    (void)pthread_attr_destroy(&attr);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigaction(SIGTERM, &act, NULL);
    (void)sigaction(SIGINT, &act, NULL);
    (void)sigaction(SIGHUP, &act, NULL); /* its terminal is gone: no reason to leave calls unanswered */
    (void)sigaction(SIGUSR1, &act, NULL);
    (void)sigaction(PROCESS_PARENT_CHANGED, &act, NULL);
    (void)sigemptyset(&none); /* who started us may block some */
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    /* A pidfd would tell when the parent itself ends, but wants Linux 5.3, a sandbox that lets it through,
     * and a parent in our own pid namespace. This is sent when the *thread* ends that started us, and again
     * when the one does to which we fell then: prctl(2). So it is a reason to look, and no more. */
    (void)prctl(PR_SET_PDEATHSIG, PROCESS_PARENT_CHANGED, 0, 0, 0);
}
