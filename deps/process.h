/* What a long-running process on a gateway owes itself: standard descriptors that are there, memory that
 * nobody else looks into, signals that only set a flag, threads with small stacks, and knowing that its
 * parent has ended.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef PROCESS_H
#define PROCESS_H

#include <signal.h>
#include <sys/types.h>

/* For the first lines of main(). Returns the process that started us, or -1 if it has ended already. */
pid_t process_begin(void);

/* The signal by which the kernel says that a thread of our parent has ended, and perhaps the parent. It does
 * no harm from anybody else, nor before there is a handler for it. */
#define PROCESS_PARENT_CHANGED SIGCHLD

/* Before threads start: SIGTERM, SIGINT, SIGHUP, SIGUSR1 and PROCESS_PARENT_CHANGED call `on_signal`, SIGPIPE
 * nothing; each thread gets `stack` bytes, or the program ends. */
void process_prepare(void (*on_signal)(int number), size_t stack);

#endif
