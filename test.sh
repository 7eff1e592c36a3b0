#!/usr/bin/env bash
# ./test.sh            every test: builds, static checks, unit tests, black-box tests, the same with sanitizers, the same on
#                      arm64 under qemu, and the main paths on armhf
# ./test.sh long       what takes minutes: fuzzing, faults and overload, on nats-server 2.9 and 2.10; all on armhf, the main paths
#                      on riscv64
# ./test.sh soak N     N minutes of load and random faults, and a table of what became of each message; a second number is
#                      the seed of an earlier run
# ./test.sh bench …    measures the provider beside others (devel/bench/bench.py, to which the words go); 10 minutes and, the first
#                      time, 4 for cargo to build the reference. `bench growth` measures how the cost of a call grows, with links,
#                      subscriptions, calls in flight, messages that wait, reconnects and bodies (devel/bench/growth.py); 10 minutes
# ./test.sh host       the provider's archive in a real wasmCloud host with a real component: 5 to 15 minutes on two cores, the first
#                      time 15 more for cargo to build the host (devel/example/host/); a second word is the path of another host.
#                      ECHOES=N calls are made to see that none is lost, and LARGE=N of 1 MB. `make build/bench/reference`
#                      before, and what wasmCloud's own provider loses is counted, too. `host --wadm` builds wadm, too (some
#                      10 minutes), and deploys devel/example/wadm.yaml; `host --wash` builds wash (40 minutes
#                      where both cores have other work, too), and types what README.md says; `host --wadm --wash` does both
# ./test.sh smoke      what `make test` does: unit tests, and the main paths on the release binary, in less than a minute
# ./test.sh demo       shows the main job on real input, and tells what happens
# ./test.sh tour       writes build/tour.html: provider.c from top to bottom, beside it its comments and the messages of a run of the demo
# ./test.sh PATTERN…   only these black-box tests; the words go to pytest (test_links.py, -k reconnect, -x …)
# ./test.sh --help     prints this
#
# Works as the first command after a clone on Debian 12 and 13: what is missing is installed (as root; otherwise the
# packages are named), Python packages go into build/venv. The last line sums up; the exit code is 0 if all is well.
#
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")"
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8 PYTHONPYCACHEPREFIX=$PWD/build/pycache PYTHONUNBUFFERED=1

native=$(uname -m | sed 's/x86_64/amd64/;s/aarch64/arm64/')
passed=0 failed=0 skipped=0 failures=

say() { printf '\n== %s\n' "$*"; }
has() { command -v "$1" >/dev/null 2>&1; }

# ---- what has to be installed

# Cross compilers for the machines whose binaries a mode runs under qemu, here on amd64: Debian's name, that of its tools, qemu's.
emulated_machines() {
  case $native-$1 in
    amd64-all) echo arm64 aarch64-linux-gnu qemu-aarch64; echo armhf arm-linux-gnueabihf qemu-arm ;;
    amd64-long) echo armhf arm-linux-gnueabihf qemu-arm; echo riscv64 riscv64-linux-gnu qemu-riscv64 ;;
  esac
}

# Names the packages for what this machine lacks, for a mode: all, long, some, smoke, soak, demo, bench or host.
missing_packages() {
  local tool arch triplet qemu
  has make || echo make
  has gcc || echo gcc
  [ -e /usr/include/stdio.h ] || echo libc6-dev
  has openssl || echo openssl
  has nats-server || echo nats-server
  has python3 || echo python3
  python3 -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
  [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  [ "$1" != bench ] || has perf || echo linux-perf
  case $1 in demo | bench) return 0 ;; esac
  [ "$1" = smoke ] || [ -e /usr/include/zlib.h ] || echo zlib1g-dev
  [ "$1" != host ] || return 0
  has file || echo file
  has gpg || echo gpg
  has ssh-keygen || echo openssh-client
  has nm || echo binutils
  [ "$1" != smoke ] || return 0
  has strace || echo strace
  has valgrind || echo valgrind
  [ "$1" != long ] || has chromium || echo chromium
  [ "$1" != long ] || echo 'int main;' | clang -fsanitize=fuzzer-no-link,address -xc - -o /dev/null 2>/dev/null || echo clang libclang-rt-dev
  for tool in cppcheck clang-tidy; do has $tool || echo $tool; done
  emulated_machines "$1" | while read -r arch triplet qemu; do
    has "$triplet-gcc" || echo "gcc-$triplet"
    has "$qemu-static" || has "$qemu" || echo qemu-user
  done | sort -u
}

install_missing() {
  local packages
  packages=$(missing_packages "$1" | tr '\n' ' ')
  [ -n "$packages" ] || return 0
  if [ "$(id -u)" != 0 ] || ! has apt-get; then
    echo "These packages are missing: $packages" >&2
    echo "Install them and run this again:  apt-get install --no-install-recommends $packages" >&2
    exit 1
  fi
  say "installing $packages"
  # Debian starts a service that it installs, and nats-server is one. The tests start their own.
  local no_services=/usr/sbin/policy-rc.d
  if [ -e $no_services ]; then no_services=; else printf '#!/bin/sh\nexit 101\n' >$no_services; chmod +x $no_services; fi
  local log status=0
  log=$(mktemp)
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages; } </dev/null 2>&1 |
    tee "$log" | grep --line-buffered '^Setting up' || status=$?
  [ -z "$no_services" ] || rm -f "$no_services"
  [ -z "$(missing_packages "$1")" ] || status=1
  [ "$status" = 0 ] || { tail -20 "$log" >&2; echo "apt-get could not install: $(missing_packages "$1" | tr '\n' ' ')" >&2; rm -f "$log"; exit 1; }
  rm -f "$log"
}

# Makes build/venv with the pinned packages; the demo needs nats-py alone, the tour one more.
python_packages() {
  local wanted stamp
  wanted=$(grep '==' devel/tests/requirements.txt)
  case $1 in
    demo) wanted=$(grep '^nats-py==' <<<"$wanted") ;;
    tour) wanted=$(grep -E '^(nats-py|pygments)==' <<<"$wanted") ;;
  esac
  stamp=build/venv/$(cksum <<<"$wanted $(python3 --version)" | cut -d' ' -f1)
  [ ! -e "$stamp" ] || return 0
  say "Python packages into build/venv: $(tr '\n' ' ' <<<"$wanted")"
  mkdir -p build
  [ -x build/venv/bin/pip ] || python3 -m venv --clear build/venv
  build/venv/bin/python -m pip install -q --disable-pip-version-check $wanted
  touch "$stamp"
}

build() { say "make $*"; make "$@"; }

# What the bench compares with, if it can be built; binaries that are named on the command line are compared instead.
reference() {
  case " $* " in *=*) return 0 ;; esac
  if has cargo; then build build/bench/reference || echo "the reference could not be built"
  elif [ ! -e build/bench/reference ]; then echo "there is no cargo to build the reference with"; fi
}

# ---- suites

# add NAME STATUS PASSED FAILED SKIPPED LOG   adds up a suite: one that failed counts at least one failure, one that ran nothing
# is a failure. LOG has lines that begin with FAIL; they, and what is indented below, are shown again at the end of a long output.
add() {
  local name=$1 status=$2 p=$3 f=$4 s=$5 log=$6
  [ "$status" = 0 ] || [ "$f" -gt 0 ] || f=1
  [ "$((p + f))" -gt 0 ] || { echo "$name: no test ran"; f=1; }
  [ "$f" = 0 ] || failures+=$(echo "== failed: $name"; awk '/^[^ ]/ { on = /^FAIL / } on' "$log" | cut -c1-300 | head -40 || true)$'\n'
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  rm -f "$log"
}

# black_box NAME PROVIDER [PYTEST-ARGUMENT…]   PROVIDER_RUN and SLOW from the environment
black_box() {
  local name=$1 provider=$2 status=0 totals p=0 f=0 s=0
  shift 2
  say "$name"
  totals=$(mktemp)
  (cd devel/tests && PROVIDER=$provider TOTALS=$totals exec ../../build/venv/bin/python -m pytest ${CI:+-q --color=no} "$@") || status=$?
  read -r p f s <"$totals" || true
  add "$name" "$status" "$p" "$f" "$s" "$totals"
}

# unit_tests NAME COMMAND…
unit_tests() {
  local name=$1 status=0 log p f
  shift
  say "$name"
  log=$(mktemp)
  "$@" 2>&1 | tee "$log" || status=$?
  p=$(grep -oE '[0-9]+ passed' "$log" | tail -1 | cut -d' ' -f1 || true)
  f=$(grep -oE '[0-9]+ failed' "$log" | tail -1 | cut -d' ' -f1 || true)
  add "$name" "$status" "${p:-0}" "${f:-0}" 0 "$log"
}

# lines NAME COMMAND…   a suite that prints a line that begins with ok or FAIL for each thing that it looks at
lines() {
  local name=$1 status=0 log
  shift
  say "$name"
  log=$(mktemp)
  "$@" 2>&1 | tee "$log" || status=$?
  add "$name" "$status" "$(grep -c '^ok ' "$log")" "$(grep -c '^FAIL ' "$log")" 0 "$log"
}

# emulated ARCH QEMU MARKERS   black-box tests of another machine's binary; those that measure the release binary are about ours
emulated() {
  local emulator
  emulator=$(command -v "$2-static" || command -v "$2")
  build "ARCH=$1"
  PROVIDER_RUN=$emulator SLOW=5 black_box "black-box tests of $1 under ${emulator##*/}" "$PWD/build/$1/provider" -n 2 -m "not release and $3"
}

# has_libraries ARCH   whether its static libraries can be had. An archive's index for the rarer machines is at times out of step
# with its packages: that is no fault of ours, and they are left out.
has_libraries() {
  make -s "ARCH=$1" "deps/sysroot/$1/.complete" && return 0
  echo "$1 is left out: its libraries cannot be fetched from this archive now"
  skipped=$((skipped + 1))
  return 1
}

# The unit tests on 32 bit, with UBSan; and on arm64 those of what is in assembler
emulated_unit_tests() {
  local emulator
  emulator=$(command -v qemu-arm-static || command -v qemu-arm)
  build ARCH=armhf emulated-units
  RUN=$emulator unit_tests "unit tests of armhf under ${emulator##*/}" devel/tests/unit/run.sh build/armhf/unit*
  emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64)
  build ARCH=arm64 build/arm64/unit_aead
  RUN=$emulator unit_tests "unit tests of arm64 under ${emulator##*/}" devel/tests/unit/run.sh build/arm64/unit_aead
}

binaries() {
  build
  build build/load build/traffic build/bench/floor build/par build/san/par
  build TINY=1
  build FAILING=1
  build SMALL=1
}

everything() {
  binaries
  lines "static checks" make -s check
  unit_tests "unit tests" make unit
  black_box "black-box tests" "$PWD/build/$native/provider" -n 4 -m "not long and not alone"
  black_box "black-box tests that measure" "$PWD/build/$native/provider" -m "alone and not long"
  build SAN=1
  export ASAN_OPTIONS=exitcode=99 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
  RACE=0.03 SLOW=3 black_box "black-box tests with sanitizers, and hosts that drop 3 % of what comes early" "$PWD/build/san/provider" -n 4
  [ "$native" = amd64 ] || return 0
  emulated arm64 qemu-aarch64 "not long and not alone"
  has_libraries armhf || return 0
  emulated_unit_tests
  emulated armhf qemu-arm smoke
}

# What a change is tried with first: nothing that takes long, and the release binary alone.
smoke() {
  build
  unit_tests "unit tests" make -s unit
  black_box "main paths" "$PWD/build/$native/provider" -q -n 2 -m "smoke and not alone"
}

long() {
  binaries
  build build/fuzz/fuzz
  lines "fuzzing" make -s fuzz
  black_box "long tests" "$PWD/build/$native/provider" -m long
  [ "$native" = amd64 ] || return 0
  ! has_libraries armhf || emulated armhf qemu-arm "not long and not alone"
  ! has_libraries riscv64 || emulated riscv64 qemu-riscv64 smoke
}

pack_for_host() {
  XDG_CONFIG_HOME=$PWD/build/host build/par pack "$1" --name "NATS messaging" --vendor test --version 0.0.0 --revision 0 "$2"
}

# real_host [--wadm] [--wash] [PATH]   the tests of devel/example/host, with the host at PATH or the one that cargo builds
real_host() {
  local tools= tool host archive=$PWD/build/host/messaging-nats.par.gz machine
  while [[ ${1:-} = --wadm || ${1:-} = --wash ]]; do tools+=" build/tools/${1#--}"; shift; done
  host=${1:-build/host/host}
  if [ $# = 0 ] && ! has cargo; then
    echo "There is no cargo to build a host with: install today's stable Rust by rustup (Debian's is too old), or name a host: ./test.sh host PATH" >&2
    exit 1
  fi
  [ $# = 0 ] || [ -x "$host" ] || { echo "$host is no program" >&2; exit 1; }
  build
  build build/par
  [ $# != 0 ] || build build/host/host
  if has go && build build/tools/registry build/tools/oras; then
    export REGISTRY=$PWD/build/tools/registry ORAS=$PWD/build/tools/oras
  else
    echo "no registry: there is no go to build it with, or it does not build"
  fi
  for tool in $tools; do build "$tool"; done
  [ ! -e build/tools/wadm ] || export WADM=$PWD/build/tools/wadm
  [ ! -e build/tools/wash ] || export WASH=$PWD/build/tools/wash
  machine=$(uname -m)
  mkdir -p build/host
  pack_for_host "$archive" "$machine-linux=build/$native/provider"
  if [ -e build/bench/reference ]; then
    export REFERENCE_ARCHIVE=$PWD/build/host/reference.par.gz
    pack_for_host "$REFERENCE_ARCHIVE" "$machine-linux=build/bench/reference"
  fi
  PYTHONPATH=harness HOST=$(realpath "$host") ARCHIVE=$archive black_box "in a real host" "$PWD/build/$native/provider" -c pytest.ini -p conftest ../example/host/test_host.py ../example/host/test_wadm.py ../example/host/test_wash.py -rP
}

case ${1:-} in
  -h | --help) sed -n '2,24s/^# \{0,1\}//p' "$0"; exit 0 ;;
  demo)
    install_missing demo
    python_packages demo
    build
    say demo
    exec build/venv/bin/python devel/example/demo.py "build/$native/provider" ;;
  tour)
    install_missing demo
    python_packages tour
    build
    say tour
    exec build/venv/bin/python devel/doc/tour.py "build/$native/provider" ;;
  soak)
    install_missing soak
    python_packages all
    binaries
    say soak
    PROVIDER=$PWD/build/$native/provider exec build/venv/bin/python devel/tests/harness/soak.py "${@:2}" ;;
  bench)
    install_missing bench
    python_packages all
    build
    build build/load build/bench/floor
    reference "${@:2}"
    say bench
    [ "${2:-}" != growth ] || exec build/venv/bin/python devel/bench/growth.py "${@:3}"
    exec build/venv/bin/python devel/bench/bench.py "${@:2}" ;;
esac

mode=all
[ $# = 0 ] || mode=some
case "$*" in long | smoke | host | "host "*) mode=$1 ;; esac
install_missing $mode
python_packages all
if [ $mode = long ]; then
  long
elif [ $mode = smoke ]; then
  smoke
elif [ $mode = host ]; then
  real_host "${@:2}"
elif [ $mode = some ]; then
  binaries
  black_box "black-box tests: $*" "$PWD/build/$native/provider" "$@"
else
  everything
fi
[ -z "$failures" ] || printf '\n%s' "$failures"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
