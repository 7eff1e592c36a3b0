#!/bin/sh
# Makes build/release/, which is what is given to people:   devel/package/release.sh     (make release)
#
#   messaging-nats-1.0.0.par.gz          the provider archive, for hosts on all four machines
#   messaging-nats-1.0.0-x86_64-linux    the binaries by themselves, named as hosts name their machine
#   messaging-nats-1.0.0.cdx.json        what is in them: CycloneDX 1.6, by sbom.py
#   LICENCES, README.md                  of what is linked; what it does, also on a bad day
#   RELEASE_NOTES.md                     how to check and start it; the version's part of the changelog
#   SHA256SUMS, SHA256SUMS.sig           of all these, signed; allowed_signers has the public key
#
# Each binary is built twice, the second time in another folder, with another umask, language, time zone and age of its sources,
# and must have the same bytes. All but the archive's and the signature's keys comes from this folder and deps/sysroot.lock:
# another machine with the same compilers (the .cdx.json names them) makes the same files. The date is the changelog's.
#
# RELEASE_KEY   the maker's key for ssh-keygen -Y; ~/.config/messaging-nats/release, without a passphrase, is made once if absent.
#               One with a passphrase, or in an agent or a token, does as well
# VENDOR, REVISION, PAR_ISSUER, PAR_SUBJECT    as for make par
# MACHINES      fewer of Debian's names, to try it out: amd64 arm64 armhf riscv64
#
# SPDX-License-Identifier: Apache-2.0
set -eu
cd "$(dirname "$0")/../.."
export LC_ALL=C TZ=UTC
umask 022
unset SYSROOT CFLAGS BACKLOG_MB MAKEFLAGS MFLAGS MAKELEVEL

name=messaging-nats
machines=${MACHINES:-amd64 arm64 armhf riscv64}
native=$(dpkg --print-architecture)
key=${RELEASE_KEY:-${XDG_CONFIG_HOME:-$HOME/.config}/messaging-nats/release}
changelog=devel/doc/CHANGELOG.md

die() { printf 'release: %s\n' "$*" >&2; exit 1; }
say() { printf '== %s\n' "$*"; }

# As std::env::consts of Rust names the machine: hosts choose the binary by that. protocol: wasmcloud-core 0.21.1, src/par.rs
target() {
  case $1 in
    amd64) echo x86_64-linux ;;
    arm64) echo aarch64-linux ;;
    armhf) echo arm-linux ;;
    riscv64) echo riscv64-linux ;;
    *) die "MACHINES: '$1' is not amd64, arm64, armhf or riscv64" ;;
  esac
}

compiler() {
  case $1 in
    "$native") echo gcc ;;
    armhf) echo arm-linux-gnueabihf-gcc ;;
    *) echo "$(target "$1" | cut -d- -f1)-linux-gnu-gcc" ;;
  esac
}

# ---- whether all is there -----------------------------------------------------------------------

version=$(sed -n 's/^.define PROVIDER_VERSION "\(.*\)"/\1/p' provider.h)
date=$(sed -n "s/^## $version, \([0-9]\{4\}-[0-9][0-9]-[0-9][0-9]\)\$/\1/p" $changelog | head -1)
[ -n "$date" ] || die "$changelog has no line '## $version, YEAR-MONTH-DAY' for the version of provider.h: date it"
SOURCE_DATE_EPOCH=$(date -d "$date" +%s)
export SOURCE_DATE_EPOCH

missing=
for machine in $machines; do
  gcc=$(compiler "$machine")
  # Debian's package of the cross compiler: gcc-aarch64-linux-gnu has aarch64-linux-gnu-gcc
  command -v "$gcc" >/dev/null || missing="$missing $(echo "$gcc" | sed 's/\(.*\)-gcc$/gcc-\1/')"
done
command -v ssh-keygen >/dev/null || missing="$missing openssh-client"
command -v python3 >/dev/null || missing="$missing python3"
[ -e /usr/include/zlib.h ] || missing="$missing zlib1g-dev"
[ -z "$missing" ] || die "this needs: apt-get install --no-install-recommends$missing"

# ---- build, twice -------------------------------------------------------------------------------

out=$PWD/build/release.tmp
again=$out.again/in-a-folder-with-another-length
rm -rf "$out" "$out.again"
mkdir -p "$out" "$again/deps"
trap 'rm -rf "$out" "$out.again"' EXIT

# A second clone, older than the first. The libraries are linked, not copied: there are thousands of files.
(umask 077 && tar -c --exclude=deps/sysroot Makefile provider.c provider.h deps | tar -x -m --no-same-permissions -C "$again")
find "$again" -exec touch -d 2001-02-03 {} +
build_again() {
  cp -al --parents "deps/sysroot/$1" "$again"
  (umask 077 && cd "$again" && LC_ALL=C.UTF-8 TZ=Asia/Kathmandu SOURCE_DATE_EPOCH=1 make -s "ARCH=$1" >/dev/null 2>"$out.again/said") ||
    { cat "$out.again/said" >&2; die "$1 could not be built in $again"; }
}

targets=
for machine in $machines; do
  say "$machine"
  deps/sysroot.sh --locked "$machine" "deps/sysroot/$machine"
  make -s "ARCH=$machine"
  build_again "$machine"
  cmp "build/$machine/provider" "$again/build/$machine/provider" || die "$machine: another folder gave other bytes"
  cmp "build/$machine/LICENCES" "$again/build/$machine/LICENCES" || die "$machine: another folder gave other licences"
  binary=$name-$version-$(target "$machine")
  install -m 755 "build/$machine/provider" "$out/$binary"
  targets="$targets $(target "$machine")=$out/$binary"
  [ -e "$out/LICENCES" ] || cp "build/$machine/LICENCES" "$out/LICENCES"
  cmp "build/$machine/LICENCES" "$out/LICENCES" || die "$machine is linked from libraries with other licences"
done

# ---- pack, describe, sign -----------------------------------------------------------------------

say "archive, and what is in it"
make -s build/par
# shellcheck disable=SC2086  # a list of words
build/par pack "$out/$name-$version.par.gz" --name $name --vendor "${VENDOR:-$name}" --version "$version" --revision "${REVISION:-1}" $targets
build/par inspect "$out/$name-$version.par.gz"
# shellcheck disable=SC2086
devel/package/sbom.py "$version" $(for machine in $machines; do echo "$machine=$out/$name-$version-$(target "$machine")=$(compiler "$machine")"; done) \
  >"$out/$name-$version.cdx.json"
cp LICENSE README.md "$out"

public=${key%.pub}.pub
if [ ! -e "$public" ]; then
  mkdir -p "$(dirname "$key")"
  ssh-keygen -q -t ed25519 -N '' -C "$name, releases" -f "$key" || die "cannot make the key $key: RELEASE_KEY names another one"
  say "made the key of your releases: $key. Keep it: whoever knows its public half takes releases by no other"
fi
printf '%s namespaces="file" %s\n' "$name" "$(cut -d' ' -f1,2 "$public")" >"$out/allowed_signers"
check="ssh-keygen -Y verify -f allowed_signers -I $name -n file -s SHA256SUMS.sig <SHA256SUMS && sha256sum -c --ignore-missing SHA256SUMS"
{
  printf '# %s %s, %s\n' "$name" "$version" "$date"
  printf '\n## How to check\n\nBy the key with the fingerprint `%s`, if that is the one that you know as ours:\n\n    %s\n' \
    "$(ssh-keygen -lf "$public" | cut -d' ' -f2)" "$check"
  printf '\n## How to start\n\nOn a host that runs and may load files (`--allow-file-load`), for a component `echo`; README.md says more:\n\n'
  sed -n "s|^    wash start provider .* |    wash start provider file://\$PWD/$name-$version.par.gz |p; /^    wash [cl]/p" README.md
  printf '\n## What is new\n'
  awk -v "head=## $version," 'index($0, "## ") == 1 { on = index($0, head) == 1; next } on' $changelog
} >"$out/RELEASE_NOTES.md"
(cd "$out" && sha256sum -- * >../SHA256SUMS.tmp && mv ../SHA256SUMS.tmp SHA256SUMS)
ssh-keygen -q -Y sign -f "$key" -n file "$out/SHA256SUMS" || die "cannot sign with $key"

say "as its receiver checks it"
(cd "$out" && sh -c "$check") || die "the release does not pass its own check"
rm -rf build/release
mv "$out" build/release
printf '\nbuild/release/ is ready, signed by %s. To check it, there:\n\n    %s\n' "$(ssh-keygen -lf "$public")" "$check"
