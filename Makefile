# SPDX-License-Identifier: Apache-2.0
# make                 build/$(ARCH)/provider: static, stripped, reproducible
# make ARCH=arm64      the same for another machine (Debian's names: amd64, arm64, armhf, riscv64)
# make par             builds for amd64 and arm64, and packs build/messaging-nats.par.gz, which hosts load (needs zlib1g-dev):
#                      VENDOR=name, REVISION=N, keys from PAR_ISSUER and PAR_SUBJECT, or made once in ~/.config
# make demo            shows the main job on real input, and tells what happens
# make test            unit tests and the main paths, in less than a minute once it is built; ./test.sh is the whole
# make clean           removes build/, not the libraries that were fetched
# SYSROOT=DIR          takes the static libraries from there instead of fetching them
# BACKLOG_MB=8         memory for messages that wait for slow components, in MB (25)
# CFLAGS='…'           more words for the compiler: -DLINKS_MAX=16 and other limits of provider.h
#
# What else there is, for work on the provider itself, is in devel/Makefile: its head names it, and it works from here.
HOST_ARCH := $(shell dpkg --print-architecture 2>/dev/null || uname -m | sed 's/x86_64/amd64/;s/aarch64/arm64/;s/armv7l/armhf/')
ARCH ?= $(HOST_ARCH)
# libraries that are given are taken as they are; those of our own are fetched once
ifdef SYSROOT
LIBRARIES_READY := $(wildcard $(SYSROOT)/usr/lib)
$(if $(LIBRARIES_READY),,$(error SYSROOT=$(SYSROOT) holds no usr/lib: give the root of an unpacked system, or leave SYSROOT out))
else
SYSROOT := deps/sysroot/$(ARCH)
LIBRARIES_READY := $(SYSROOT)/.complete
endif

TRIPLET_amd64 := x86_64-linux-gnu
TRIPLET_arm64 := aarch64-linux-gnu
TRIPLET_armhf := arm-linux-gnueabihf
TRIPLET_riscv64 := riscv64-linux-gnu
TRIPLET := $(TRIPLET_$(ARCH))
ifeq ($(TRIPLET),)
$(error ARCH=$(ARCH) is not supported: amd64, arm64, armhf or riscv64)
endif
CROSS := $(if $(filter $(ARCH),$(HOST_ARCH)),,$(TRIPLET)-)
CC := $(CROSS)gcc
STRIP := $(CROSS)strip
# Debian's package of that compiler
GCC_PACKAGE := gcc$(if $(CROSS),-$(subst _,-,$(TRIPLET)))

SOURCES := provider.c deps/arena.c deps/headers.c deps/log.c deps/text.c deps/xkey.c deps/dial.c deps/host_data.c deps/process.c deps/refusals.c deps/jetstream.c deps/micro.c deps/jwt.c deps/settings.c deps/pem.c deps/openssl_shim.c deps/name_constraints.c deps/aead.c deps/parser_guard.c deps/json.c deps/url.c deps/servers.c deps/nats_memory.c deps/wipe.c \
	deps/omit.c
HEADERS := provider.h $(wildcard deps/*.h) deps/omit.ld Makefile $(LIBRARIES_READY)
# gcc 12 calls a function for what is atomic and smaller than a word
LIBRARIES_riscv64 := -latomic
LIBRARIES := -lnats_static -lmbedtls -lmbedx509 -lmbedcrypto -lcrypto -lsodium -ljansson $(LIBRARIES_$(ARCH))
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Werror
# The file's own malloc must not be taken for libc's: gcc would turn its calloc into a call of itself.
STANDARD := -std=gnu11 $(WARNINGS) -fno-builtin-malloc -fno-builtin-calloc -fno-builtin-realloc -fno-builtin-free
# What each of these is for, what it costs, and what cannot be had: deps/README.md; test_hardening.py looks at the binaries.
CONTROL_FLOW_amd64 := -fcf-protection=full
CONTROL_FLOW_arm64 := -mbranch-protection=standard
HARDENED := -fPIE -fstack-protector-strong -fstack-clash-protection -ftrivial-auto-var-init=zero \
	-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -fno-strict-aliasing -fno-strict-overflow \
	-fno-delete-null-pointer-checks $(CONTROL_FLOW_$(ARCH))
# Times and sizes of files have 64 bits everywhere: Debian's libraries are built so, and time goes on in 2038.
DEFINED_armhf := -D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64
# what passes deps/parser_guard.c; nats.c calls them from another of its files than they are in
CONNECTING := -Wl,--wrap=natsSock_ReadLine,--wrap=natsSock_Read,--wrap=natsSock_WaitReady,--wrap=natsConn_processAsyncINFO,--wrap=natsConn_processErr
# certificates of a server, with their name constraints
CERTIFICATES := -Wl,--wrap=mbedtls_x509_crt_parse_der
# what jansson and nats.c do not survive without memory: deps/README.md
SURVIVING := strbuffer_init natsConnection_Connect natsOptions_SetSecure natsOptions_SetExpectedHostname nats_Open nats_doNotUpdateErrStack natsMutex_Create natsHash_Set \
	natsStrHash_SetEx natsStrHashIter_Init
# what nats.c starts with, and does not need here: the same file
UNNEEDED := natsThread_Create nats_postAsyncCbInfo natsNUID_init
GUARDED := $(CONNECTING) $(CERTIFICATES) $(foreach f,$(SURVIVING) $(UNNEEDED),-Wl,--wrap=$f) -Wl,--wrap=natsSock_WriteFully,--wrap=natsParser_Parse
# Left to itself gcc copies and clears a hundred bytes by "rep movs" and "rep stos" on amd64, which take longer to begin.
TUNED_amd64 := -mmemcpy-strategy=unrolled_loop:64:noalign,libcall:-1:noalign -mmemset-strategy=unrolled_loop:256:noalign,libcall:-1:noalign
OPTIMISED := -O2 -ffunction-sections -fdata-sections -ffile-prefix-map=$(CURDIR)=. -g0 $(TUNED_$(ARCH)) $(DEFINED_$(ARCH))
# At any address, where that can be had: Debian's glibc has no start-up code for it on armhf, and the linker of
# Debian 12 crashes on it on riscv64, where that of Debian 13 does not.
STATIC_amd64 := -static-pie -Wl,-z,pack-relative-relocs
STATIC_arm64 := $(STATIC_amd64)
STATIC_armhf := -static
STATIC_riscv64 = $(shell echo 'int main(void) { return 0; }' | \
	$(CC) $(IN_SYSROOT) -fPIE -static-pie -xc - -o /dev/null 2>/dev/null && echo -static-pie || echo -static)
LINKED = $(STATIC_$(ARCH)) -Wl,-z,relro,-z,now,-z,noexecstack,-z,separate-code $(GUARDED) \
	-Wl,--gc-sections,--build-id=none
# A ninth of the file would be tables for unwinding the stack: for C++, debuggers, and threads that are cancelled. Who calls
# for the last finds no such function here. To look at a core, give a debugger build/bench/provider, whose code lies the same.
NO_UNWINDING := -Wl,-T,deps/omit.ld,--no-eh-frame-hdr,--wrap=pthread_exit,--wrap=pthread_cancel
IN_SYSROOT = --sysroot=$(SYSROOT) -B$(SYSROOT)/usr/lib/$(TRIPLET) -L$(SYSROOT)/usr/lib/$(TRIPLET) -isystem $(SYSROOT)/usr/include/$(TRIPLET) -isystem $(SYSROOT)/usr/include

# devel/Makefile builds the variants that tests need: SAN=1, TINY=1, FAILING=1, SMALL=1.
all: build/$(or $(if $(SAN),san),$(if $(TINY),tiny),$(if $(FAILING),failing),$(if $(SMALL),small),$(ARCH))/provider

ifdef BACKLOG_MB
override CFLAGS += -DBACKLOG_MB=$(BACKLOG_MB)
endif
# the words for the compiler, in a file that is newer than the binary if they were others for it
build/%/.words: FORCE
	@mkdir -p $(@D)
	@echo '$(CFLAGS)' | cmp -s - $@ || echo '$(CFLAGS)' >$@
FORCE:

# each time: it sees at once whether all that is needed today is there
deps/sysroot/$(ARCH)/.complete: FORCE
	@deps/sysroot.sh $(ARCH) $(SYSROOT)

# The assertions of provider.c stay in all other builds.
RELEASE = $(CC) $(STANDARD) -DNDEBUG $(HARDENED) $(OPTIMISED) $(CFLAGS) $(IN_SYSROOT) $(SOURCES) $(LINKED) $(LIBRARIES)
build/$(ARCH)/provider: $(SOURCES) $(HEADERS) build/$(ARCH)/.words | $(LIBRARIES_READY)
	@mkdir -p $(@D)
	@command -v $(firstword $(CC)) >/dev/null || { echo "$(CC) is missing: apt-get install $(GCC_PACKAGE)" >&2; exit 1; }
	$(RELEASE) $(NO_UNWINDING) -o $@.tmp
	$(STRIP) -s -R .comment $@.tmp
	deps/licences.sh $(SYSROOT) > $(@D)/LICENCES
	@mv $@.tmp $@
	@ls -l $@ | awk '{print $$NF ": " $$5 " bytes"}'

# The provider archive; the tool that packs it is made in devel/Makefile
export VENDOR ?= messaging-nats
REVISION ?= 1
ARCHIVE := build/messaging-nats.par.gz
par:
	$(if $(filter file,$(origin SYSROOT)),,$(error make par builds for two machines: leave SYSROOT out))
	@[ -e /usr/include/zlib.h ] || { echo "zlib.h is missing: apt-get install zlib1g-dev" >&2; exit 1; }
	$(MAKE) ARCH=$(HOST_ARCH) build/par
	$(MAKE) ARCH=amd64
	$(MAKE) ARCH=arm64
	build/par pack $(ARCHIVE) --name messaging-nats --vendor "$$VENDOR" --revision $(REVISION) \
		--version $(shell sed -n 's/^.define PROVIDER_VERSION "\(.*\)"/\1/p' provider.h) \
		x86_64-linux=build/amd64/provider aarch64-linux=build/arm64/provider
	build/par inspect $(ARCHIVE)

demo:
	./test.sh demo

test:
	./test.sh smoke

clean:
	rm -rf build

.PHONY: all par demo test clean FORCE
.DELETE_ON_ERROR:

-include devel/Makefile
