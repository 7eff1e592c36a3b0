# make                 build/$(ARCH)/provider: static, stripped, reproducible
# make ARCH=arm64      the same for another machine (Debian's names: amd64, arm64, armhf, riscv64)
# make SAN=1           build/san/provider: AddressSanitizer and UBSan, dynamic, without the arena
# make TINY=1          build/tiny/provider: an arena so small that it is often full, for tests of that
# make FAILING=1       build/failing/provider: the sanitizer build on a malloc that fails at random, for tests of that
# make unit            build/unit: the unit tests; build/armhf/unit with ARCH=armhf: for an emulator
# make check           static checks, and the complexity of functions
# make fuzz            fuzzes each target of devel/fuzz for SECONDS=60, or only TARGETS='links host'; needs clang and libclang-rt-dev
# make docs            the table of rooms in README.md, and devel/flow.svg
# make demo, make test what test.sh does
# make soak MINUTES=20 load and random faults for so long, and a table of what became of each message (SEED=N: as it was then)
# make par             builds for amd64 and arm64, and packs build/messaging-nats.par.gz, which hosts load (devel/par.c; needs
#                      zlib1g-dev): VENDOR=name, REVISION=N, keys from PAR_ISSUER and PAR_SUBJECT, or made once in ~/.config
# make bench           measures the provider beside the floor and the reference (devel/bench/), and writes what came out into
#                      devel/bench/RESULTS.md; ROUNDS=5, ONLY='tls burst' some settings, PROVIDERS='name=path …' other binaries
# make clean           removes build/, not the libraries that were fetched
# SYSROOT=DIR          takes the static libraries from there instead of fetching them
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

SOURCES := provider.c deps/tls.c deps/chachapoly.c deps/guard.c deps/left_out.c
HEADERS := provider.h deps/tls.h deps/guard.h deps/left_out.ld Makefile
# gcc 12 calls a function for what is atomic and smaller than a word
LIBRARIES_riscv64 := -latomic
LIBRARIES := -lnats_static -lmbedtls -lmbedx509 -lmbedcrypto -lsodium -ljansson $(LIBRARIES_$(ARCH))
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Werror
# The file's own malloc must not be taken for libc's: gcc would turn its calloc into a call of itself.
STANDARD := -std=gnu11 $(WARNINGS) -fno-builtin-malloc -fno-builtin-calloc -fno-builtin-realloc -fno-builtin-free
HARDENED := -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fno-strict-aliasing
# Times and sizes of files have 64 bits everywhere: Debian's libraries are built so, and time goes on in 2038.
DEFINED_armhf := -D_TIME_BITS=64 -D_FILE_OFFSET_BITS=64
GUARDED := -Wl,--wrap=natsParser_Parse
# Left to itself gcc copies and clears a hundred bytes by "rep movs" and "rep stos" on amd64, which take longer to begin.
TUNED_amd64 := -mmemcpy-strategy=unrolled_loop:64:noalign,libcall:-1:noalign -mmemset-strategy=unrolled_loop:256:noalign,libcall:-1:noalign
OPTIMISED := -O2 -ffunction-sections -fdata-sections -ffile-prefix-map=$(CURDIR)=. -g0 $(TUNED_$(ARCH)) $(DEFINED_$(ARCH))
# At any address, where that can be had: Debian's glibc has no start-up code for it on armhf, and gcc 12 does not link it on riscv64.
STATIC_amd64 := -static-pie -Wl,-z,pack-relative-relocs
STATIC_arm64 := $(STATIC_amd64)
STATIC_armhf := -static
STATIC_riscv64 := -static
LINKED := $(STATIC_$(ARCH)) -Wl,-z,relro,-z,now,-z,noexecstack,--gc-sections,--build-id=none $(GUARDED)
# A ninth of the file would be tables for unwinding the stack: for C++, debuggers, and threads that are cancelled. Who calls
# for the last finds no such function here. To look at a core, give a debugger build/bench/provider, whose code lies the same.
NO_UNWINDING := -Wl,-T,deps/left_out.ld,--no-eh-frame-hdr,--wrap=pthread_exit,--wrap=pthread_cancel
IN_SYSROOT = --sysroot=$(SYSROOT) -B$(SYSROOT)/usr/lib/$(TRIPLET) -L$(SYSROOT)/usr/lib/$(TRIPLET) -isystem $(SYSROOT)/usr/include/$(TRIPLET) -isystem $(SYSROOT)/usr/include

all: build/$(or $(if $(SAN),san),$(if $(TINY),tiny),$(if $(FAILING),failing),$(ARCH))/provider

deps/sysroot/$(ARCH)/.complete:
	deps/sysroot.sh $(ARCH) $(SYSROOT)

RELEASE = $(CC) $(STANDARD) $(HARDENED) $(OPTIMISED) $(CFLAGS) $(IN_SYSROOT) $(SOURCES) $(LINKED) $(LIBRARIES)
build/$(ARCH)/provider: $(SOURCES) $(HEADERS) | $(LIBRARIES_READY)
	@mkdir -p $(@D)
	$(RELEASE) $(NO_UNWINDING) -o $@.tmp
	$(STRIP) -s -R .comment $@.tmp
	deps/licences.sh $(SYSROOT) > $(@D)/LICENCES
	@mv $@.tmp $@
	@ls -l $@ | awk '{print $$NF ": " $$5 " bytes"}'

# The same with its symbols and unwind tables, and the linker's map: for devel/bench/size.py, debuggers and profilers
build/bench/provider: $(SOURCES) $(HEADERS) | $(LIBRARIES_READY)
	@mkdir -p $(@D)
	$(RELEASE) -Wl,-Map=$@.map -o $@

# The system's glibc and malloc, the sysroot's other libraries. Larger stacks: sanitizers need them.
SANITIZED := -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer \
	-DSYSTEM_MALLOC -DTHREAD_STACK=2097152
SAN_LIBRARIES = $(addprefix $(SYSROOT)/usr/lib/$(TRIPLET)/,libnats_static.a libmbedtls.a libmbedx509.a libmbedcrypto.a \
	libsodium.a libjansson.a)
# only the libraries' own headers: the system's libc has its own
build/include: | $(LIBRARIES_READY)
	@mkdir -p $@
	@for h in nats mbedtls psa sodium sodium.h jansson.h jansson_config.h; do \
	  for d in usr/include usr/include/$(TRIPLET); do \
	    if [ -e $(SYSROOT)/$$d/$$h ]; then ln -sfn $(abspath $(SYSROOT))/$$d/$$h $@/$$h; fi; done; done

build/san/provider: $(SOURCES) $(HEADERS) devel/glibc_compat.c | build/include
	@mkdir -p $(@D)
	$(CC) $(STANDARD) $(SANITIZED) $(CFLAGS) -isystem build/include $(SOURCES) devel/glibc_compat.c $(GUARDED) $(SAN_LIBRARIES) -lpthread -o $@

# Limits in proportion to the arena, which is full long before all of them are reached.
TINY_LIMITS := -DARENA_BYTES=2621440 -DMESSAGE_MAX=131072 -DHOST_DATA_MAX=131072 -DHELD_MAX=917504 -DARENA_IN_TRANSIT=294912 \
	-DLINKS_MAX=16 -DCALLS_MAX=512 -DARENA_PER_LINK=40960 -DIO_BUFFER=16384
build/tiny/provider: $(SOURCES) $(HEADERS) | $(LIBRARIES_READY)
	@mkdir -p $(@D)
	$(CC) $(STANDARD) $(HARDENED) $(OPTIMISED) $(TINY_LIMITS) $(CFLAGS) $(IN_SYSROOT) $(SOURCES) $(LINKED) $(LIBRARIES) -o $@

build/failing/provider: $(SOURCES) $(HEADERS) devel/glibc_compat.c devel/failing_malloc.c | build/include
	@mkdir -p $(@D)
	$(CC) $(STANDARD) $(SANITIZED) $(CFLAGS) -isystem build/include $(SOURCES) devel/glibc_compat.c devel/failing_malloc.c \
		$(GUARDED),--wrap=malloc,--wrap=calloc,--wrap=realloc $(SAN_LIBRARIES) -lpthread -o $@

# compiled twice: on the system's malloc for the sanitizers, and once more for the arena alone, under other names
UNIT = $(CC) $(STANDARD) -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined $(CFLAGS) -I. -isystem build/include
build/unit: devel/unit.c $(SOURCES) $(HEADERS) devel/glibc_compat.c | build/include
	$(UNIT) -DUNIT_ARENA -c devel/unit.c -o $@.arena.o
	$(UNIT) -DSYSTEM_MALLOC devel/unit.c $@.arena.o $(filter deps/%,$(SOURCES)) devel/glibc_compat.c $(GUARDED) $(SAN_LIBRARIES) -lpthread -o $@

unit: build/unit
	build/unit

# what is made from sources in README.md and devel/
docs:
	devel/rooms.py --write
	devel/picture.py <devel/flow.txt >devel/flow.svg

# The same for an emulator, which has no runtime of the sanitizers: what UBSan finds there is a trap, and a signal ends it.
TRAPPING := -g -O1 -fsanitize=undefined -fsanitize-undefined-trap-on-error $(DEFINED_$(ARCH))
build/$(ARCH)/unit: devel/unit.c $(SOURCES) $(HEADERS) | $(LIBRARIES_READY)
	@mkdir -p $(@D)
	$(CC) $(STANDARD) $(TRAPPING) $(CFLAGS) $(IN_SYSROOT) -I. -DUNIT_ARENA -c devel/unit.c -o $@.arena.o
	$(CC) $(STANDARD) $(TRAPPING) $(CFLAGS) $(IN_SYSROOT) -I. -DSYSTEM_MALLOC devel/unit.c $@.arena.o $(filter deps/%,$(SOURCES)) \
		$(LINKED) $(LIBRARIES) -o $@

check: | build/include
	devel/check.sh

# The load generators of devel/, on the system's glibc
build/load build/traffic: build/%: devel/%.c deps/tls.c deps/left_out.c devel/glibc_compat.c | build/include
	$(CC) $(STANDARD) -g -O2 -isystem build/include -I. $^ $(SAN_LIBRARIES) -lpthread -o $@

# The provider archive, and the tool that packs and checks it, on the system's glibc and zlib
PAR_SOURCES := devel/par.c devel/glibc_compat.c
PAR_LIBRARIES = $(filter %/libsodium.a %/libjansson.a,$(SAN_LIBRARIES)) -lz
build/par: $(PAR_SOURCES) Makefile | build/include
	$(CC) $(STANDARD) -g -O2 $(CFLAGS) -isystem build/include $(PAR_SOURCES) $(PAR_LIBRARIES) -lpthread -o $@

build/san/par: $(PAR_SOURCES) Makefile | build/include
	@mkdir -p $(@D)
	$(CC) $(STANDARD) $(SANITIZED) $(CFLAGS) -isystem build/include $(PAR_SOURCES) $(PAR_LIBRARIES) -lpthread -o $@

export VENDOR ?= messaging-nats
REVISION ?= 1
ARCHIVE := build/messaging-nats.par.gz
par:
	$(if $(filter file,$(origin SYSROOT)),,$(error make par builds for two machines: leave SYSROOT out))
	$(MAKE) ARCH=$(HOST_ARCH) build/par
	$(MAKE) ARCH=amd64
	$(MAKE) ARCH=arm64
	build/par pack $(ARCHIVE) --name messaging-nats --vendor "$$VENDOR" --revision $(REVISION) \
		--version $(shell sed -n 's/^.define PROVIDER_VERSION "\(.*\)"/\1/p' provider.h) \
		x86_64-linux=build/amd64/provider aarch64-linux=build/arm64/provider
	build/par inspect $(ARCHIVE)

# What `make bench` compares with: the least that it can cost, and wasmCloud's own provider
build/bench/floor: devel/bench/floor.c $(filter deps/%,$(SOURCES)) $(HEADERS) | $(LIBRARIES_READY)
	@mkdir -p $(@D)
	$(CC) $(STANDARD) $(HARDENED) $(OPTIMISED) $(CFLAGS) $(IN_SYSROOT) -I. $(filter-out deps/guard.c,$(filter %.c,$^)) \
		$(filter-out $(GUARDED),$(LINKED)) $(LIBRARIES) -o $@
	$(STRIP) -s -R .comment $@

build/bench/reference: devel/bench/reference.sh devel/bench/reference/Cargo.toml devel/bench/reference/Cargo.lock devel/bench/reference/src/main.rs
	devel/bench/reference.sh

# The wasmCloud host that `./test.sh host` tests with
build/host/host: devel/host/host.sh devel/host/Cargo.toml devel/host/Cargo.lock devel/host/src/main.rs
	devel/host/host.sh

build/fuzz/fuzz: devel/fuzz/fuzz.c devel/fuzz/pem.c devel/fuzz/guard.c $(SOURCES) $(HEADERS) devel/glibc_compat.c | build/include
	@mkdir -p $(@D)
	clang $(filter-out -Wshadow -Wconversion,$(STANDARD)) $(SANITIZED) -fsanitize=fuzzer -isystem build/include $(filter devel/% deps/left_out.c,$^) $(SAN_LIBRARIES) -lpthread -o $@

fuzz: build/fuzz/fuzz
	devel/fuzz/run.sh $(or $(SECONDS),60) $(TARGETS)

demo test:
	./test.sh $(filter demo,$@)

MINUTES ?= 20
soak:
	./test.sh soak $(MINUTES) $(SEED)

ROUNDS ?= 5
bench:
	./test.sh bench $(PROVIDERS) --rounds $(ROUNDS) $(if $(WRITE),--write) $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf build

.PHONY: all par unit docs check fuzz demo test soak bench clean
.DELETE_ON_ERROR:
