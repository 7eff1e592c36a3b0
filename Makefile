# make                 build/$(ARCH)/provider: static, stripped, reproducible
# make ARCH=arm64      the same for another machine (Debian's names: amd64, arm64)
# make SAN=1           build/san/provider: AddressSanitizer and UBSan, dynamic, without the arena
# make unit            build/unit: the unit tests
# make demo, make test what test.sh does
# make clean           removes build/, not the libraries that were fetched
# SYSROOT=DIR          takes the static libraries from there instead of fetching them
HOST_ARCH := $(shell dpkg --print-architecture 2>/dev/null || uname -m | sed 's/x86_64/amd64/;s/aarch64/arm64/')
ARCH ?= $(HOST_ARCH)
SYSROOT ?= deps/sysroot/$(ARCH)

TRIPLET_amd64 := x86_64-linux-gnu
TRIPLET_arm64 := aarch64-linux-gnu
TRIPLET := $(TRIPLET_$(ARCH))
ifeq ($(TRIPLET),)
$(error ARCH=$(ARCH) is not supported: amd64 or arm64)
endif
CROSS := $(if $(filter $(ARCH),$(HOST_ARCH)),,$(TRIPLET)-)
CC := $(CROSS)gcc
STRIP := $(CROSS)strip

SOURCES := provider.c deps/tls.c
HEADERS := provider.h deps/tls.h Makefile
LIBRARIES := -lnats_static -lmbedtls -lmbedx509 -lmbedcrypto -lsodium -ljansson -lprotobuf-c
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Werror
# The file's own malloc must not be taken for libc's: gcc would turn its calloc into a call of itself.
STANDARD := -std=gnu11 $(WARNINGS) -fno-builtin-malloc -fno-builtin-calloc -fno-builtin-realloc -fno-builtin-free
HARDENED := -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fno-strict-aliasing
OPTIMISED := -O2 -ffunction-sections -fdata-sections -ffile-prefix-map=$(CURDIR)=. -g0
LINKED := -static-pie -Wl,-z,relro,-z,now,-z,noexecstack,-z,pack-relative-relocs,--gc-sections,--build-id=none
IN_SYSROOT = --sysroot=$(SYSROOT) -B$(SYSROOT)/usr/lib/$(TRIPLET) -L$(SYSROOT)/usr/lib/$(TRIPLET) -isystem $(SYSROOT)/usr/include

ifdef SAN
OUT := build/san
else
OUT := build/$(ARCH)
endif

all: $(OUT)/provider

$(SYSROOT)/.complete:
	deps/sysroot.sh $(ARCH) $(SYSROOT)

build/$(ARCH)/provider: $(SOURCES) $(HEADERS) $(SYSROOT)/.complete
	@mkdir -p $(@D)
	$(CC) $(STANDARD) $(HARDENED) $(OPTIMISED) $(CFLAGS) $(IN_SYSROOT) $(SOURCES) $(LINKED) $(LIBRARIES) -lpthread -o $@.tmp
	$(STRIP) -s -R .comment $@.tmp
	@cat $(SYSROOT)/usr/share/doc/{libnats,libmbedtls,libsodium,libjansson,libprotobuf-c}*-dev/copyright > $(@D)/LICENSES 2>/dev/null || true
	@mv $@.tmp $@
	@ls -l $@ | awk '{print $$NF ": " $$5 " bytes"}'

.PHONY: all clean demo test unit
