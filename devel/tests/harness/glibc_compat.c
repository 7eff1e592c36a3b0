/* Five names of glibc 2.38 for older systems.
 *
 * Debian 13's static libraries were compiled against glibc 2.41, whose headers turn strtol and its
 * kin into the names below (C23: they also take "0b101"). A build that links dynamically against
 * an older system's glibc, as the sanitizers' does on Debian 12, lacks them. Nothing in nats.c,
 * mbedTLS or jansson needs what is new in them, so the old functions will do. Empty where glibc
 * has the names.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* for strtoll and vsscanf under -std=c11, too */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

typedef int glibc_compat_not_empty; /* ISO C wants a declaration in a file */

#if !__GLIBC_PREREQ(2, 38)

long __isoc23_strtol(const char *text, char **end, int base);
unsigned long __isoc23_strtoul(const char *text, char **end, int base);
long long __isoc23_strtoll(const char *text, char **end, int base);
unsigned long long __isoc23_strtoull(const char *text, char **end, int base);
__attribute__((format(scanf, 2, 3))) int __isoc23_sscanf(const char *text, const char *format, ...);

long __isoc23_strtol(const char *text, char **end, int base) { return strtol(text, end, base); }

unsigned long __isoc23_strtoul(const char *text, char **end, int base) { return strtoul(text, end, base); }

long long __isoc23_strtoll(const char *text, char **end, int base) { return strtoll(text, end, base); }

unsigned long long __isoc23_strtoull(const char *text, char **end, int base) {
    return strtoull(text, end, base);
}

int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsscanf(text, format, args);
    va_end(args);
    return n;
}

#endif
