#!/bin/sh
# Fetches the static libraries that the provider is linked from, out of Debian 13, into a private
# sysroot:   deps/sysroot.sh [--locked | --update] ARCH DIR
#            ARCH: amd64, arm64, armhf or riscv64 (Debian's names)
#
# deps/sysroot.lock names each package: machine, name, version, SHA-256 of the .deb. What is locked is taken as long as the
# archive has it. Once Debian has only newer ones, these are taken, with a warning: the build goes on, and has other bytes than
# the release. With --locked it ends there instead. An archive that has only older ones, or other bytes under a locked version,
# is refused in any case. --update takes the newest, and writes them into the lock.
#
# The system's own apt does it, with state, cache and sources of its own, so that nothing on the
# system changes and no root is needed. Which archives to ask, Debian's and that of its security updates, is read from the
# system's sources, so a mirror, a cache or a proxy that is set up there is used here, too; what comes is checked
# against the Debian archive's key. Needs apt, dpkg and debian-archive-keyring, as every Debian has.
#
# SUITE and PACKAGES in the environment name another Debian and other packages, which are not locked;
# devel/tests/harness/nats-server.sh uses that. For tests: SYSROOT_LOCK, SYSROOT_KEYRING, SYSROOT_PAUSES.
#
# A finished DIR has a file .complete, with its packages as the lock writes them, and .wanted, with what was asked for: as long
# as that is the same, a second run is instant. Licences are in DIR/usr/share/doc/*/copyright.
#
# SPDX-License-Identifier: Apache-2.0
set -eu

# Debian 13 by all of its names: in an archive that is being updated, or behind a cache, an index may be out of step under
# one of them and in step under another. (Once "stable" is the next Debian, it is passed over.)
suites=${SUITE:-trixie stable oldstable}
packages="libnats-dev libmbedtls-dev libssl-dev libsodium-dev libjansson-dev libc6-dev libc6"
packages_all="linux-libc-dev"        # Architecture: all since trixie
libraries="nats_static mbedtls mbedx509 mbedcrypto crypto sodium jansson c"
lock=${SYSROOT_LOCK:-$(dirname "$0")/sysroot.lock}
[ -z "${PACKAGES:-}" ] || packages=$PACKAGES packages_all="" libraries="" lock=${SYSROOT_LOCK:-/dev/null}
keyrings=${SYSROOT_KEYRING:-"/usr/share/keyrings/debian-archive-keyring.pgp
                             /usr/share/keyrings/debian-archive-keyring.gpg"}

say() { printf 'sysroot: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ---- what is there ------------------------------------------------------------------------------

mode=
case ${1:-} in --locked | --update) mode=$1; shift ;; esac
[ $# -eq 2 ] || die "usage: $0 [--locked | --update] ARCH DIR"
arch=$1
case $arch in
    amd64) triplet=x86_64-linux-gnu ;;
    arm64) triplet=aarch64-linux-gnu ;;
    armhf) triplet=arm-linux-gnueabihf ;;
    riscv64) triplet=riscv64-linux-gnu ;;
    *) die "unknown architecture '$arch': it is amd64, arm64, armhf or riscv64" ;;
esac
mkdir -p "$(dirname "$2")" || die "cannot make the directory of $2"
dir=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
case $dir in *[[:space:]\"\;{}]*) die "apt cannot work in '$dir': choose a path without spaces" ;; esac

wanted=$(grep -s "^$arch " "$lock" || true)
# Whether DIR was fetched for these packages and what the lock says now; a warning if Debian had something else
is_there() {
    [ -f "$dir/.complete" ] && [ "$packages $wanted" = "$(cat "$dir/.wanted" 2>/dev/null)" ] || return 1
    [ "$lock" != /dev/null ] && [ "$wanted" != "$(cat "$dir/.complete")" ] || return 0
    say "$arch: NOT WHAT WAS RELEASED: Debian no longer has all of deps/sysroot.lock, and this is linked from what it has now:"
    printf '%s\n' "$wanted" | diff - "$dir/.complete" | sed -n 's/^< [^ ]* \([^ ]* [^ ]*\) .*/  locked   \1/p
        s/^> [^ ]* \([^ ]* [^ ]*\) .*/  instead  \1/p' >&2
    say "the provider works, but may have other bytes than the release. To lock what Debian has now: make sysroot-update"
    [ "$mode" != --locked ] || die "a release is made of what is locked, or not at all"
}
if [ "$mode" != --update ] && is_there; then exit 0; fi

for tool in apt-get apt-config dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing: this needs Debian's apt and dpkg" \
        "(elsewhere, run it in a Debian 12 or 13 container and copy $dir)"
done
keyring=
for k in $keyrings; do
    [ -n "$keyring" ] || [ ! -r "$k" ] || keyring=$k
done
[ -n "$keyring" ] || die "Debian's archive key is missing: apt-get install debian-archive-keyring"

# ---- which archives -----------------------------------------------------------------------------
# The first entry of the system's sources that is Debian itself: component main, a suite named like
# Debian's without -updates and the like, and signed by Debian's key or by apt's default ones. And the first one like it
# whose suite is that of the security updates.

eval "$(apt-config shell list Dir::Etc::SourceList/f parts Dir::Etc::SourceParts/d)"

archive_uri() {
    # One-line entries and deb822 stanzas become lines of: enabled|types|uris|suites|components|key
    for f in "$list" "$parts"/*.list; do
        [ ! -r "$f" ] || sed -n 's/^[[:space:]]*deb[[:space:]]/deb /p' "$f"
    done | awk '{
        key = ""
        if (match($0, /\[[^]]*\]/)) {
            o = substr($0, RSTART + 1, RLENGTH - 2)
            $0 = substr($0, 1, RSTART - 1) " " substr($0, RSTART + RLENGTH)
            n = split(o, a, /[ \t]+/)
            for (i = 1; i <= n; i++) if (sub(/^signed-by=/, "", a[i])) key = a[i]
        }
        sub(/#.*/, "")
        parts = ""
        for (i = 4; i <= NF; i++) parts = parts " " $i
        print "yes|deb|" $2 "|" $3 "|" parts "|" key
    }'
    for f in "$parts"/*.sources; do
        [ ! -r "$f" ] || { cat "$f"; echo; }
    done | awk '
        function flush() {
            if (v["uris"] != "")
                print (v["enabled"] == "" ? "yes" : v["enabled"]) "|" v["types"] "|" v["uris"] "|" \
                      v["suites"] "|" v["components"] "|" v["signed-by"]
            split("", v); field = ""
        }
        /^#/ { next }
        /^[ \t]*$/ { flush(); next }
        /^[ \t]/ { v[field] = v[field] " " $0; next }
        { i = index($0, ":"); field = tolower(substr($0, 1, i - 1)); v[field] = substr($0, i + 1) }
        END { flush() }'
}

# choose_uri ENDING   of a suite's name
choose_uri() {
    archive_uri | awk -F'|' -v suite="^(bullseye|bookworm|trixie|forky|sid|oldstable|stable|testing|unstable)$1"'$' '
        tolower($1) ~ /no|false|off/ { next }
        (" " $2 " ") !~ /[ \t]deb[ \t]/ { next }
        (" " $5 " ") !~ /[ \t]main[ \t]/ { next }
        $6 !~ /^[ \t]*$/ && $6 !~ /debian-archive/ { next }
        {
            n = split($4, suites, /[ \t]+/)
            split($3, uris, /[ \t]+/)
            uri = uris[1] != "" ? uris[1] : uris[2]
            for (i = 1; i <= n; i++)
                if (suites[i] ~ suite) {
                    print uri
                    exit
                }
        }'
}

uri=$(choose_uri "")
security_uri=$(choose_uri -security)
[ -z "${SUITE:-}" ] || security_uri=
[ -n "$uri" ] || die "no Debian archive in $list or $parts:" \
    "add one with component main (suite bookworm or trixie)"
[ -n "$security_uri$mode${SUITE:-}" ] || say "$arch: no archive of Debian's security updates in $list or $parts is asked"
[ -n "$security_uri" ] || [ "$mode" != --update ] ||
    die "no archive of Debian's security updates in $list or $parts: add one (suite bookworm-security or trixie-security)," \
        "so that the lock gets what has been mended"

# ---- fetch --------------------------------------------------------------------------------------

work=$dir.tmp.$$
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/root" \
    "$work/empty" || die "cannot write $work"
: > "$work/status"
# Of the system's apt.conf only how to reach the network is taken over. Everything else stays as apt has it built in:
# what switches signatures, digests or dates off, names another gpgv or other keys, and hooks (Docker images have some).
way='Proxy(-?Auto-?Detect)?(::.+)?|CaInfo|CaPath|SslCert|SslKey|Pipeline-Depth|No-Cache'
apt-config dump | grep -iE "^Acquire::([a-z+]+::(.+::)?($way)|ForceIPv[46]|BrokenProxy) " > "$work/apt.conf" ||
    [ $? -eq 1 ] || die "apt-config fails"
cat >> "$work/apt.conf" <<END
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "$work/empty";
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$work/sources";
Dir::Etc::Preferences "$work/preferences";
Dir::Etc::PreferencesParts "$work/empty";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "";
APT::Get::List-Cleanup "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
END
mkdir "$work/sources"
# Headers of the kernel have nothing to be mended, and come anew with each kernel: those of Debian's own archive will do.
cat > "$work/preferences" <<END
Package: linux-libc-dev
Pin: release n=trixie
Pin-Priority: 990
END

quiet=-qq
[ ! -t 2 ] || quiet=-q
own_apt() {
    tool=$1
    shift
    (cd "$work/debs" && APT_CONFIG="$work/apt.conf" "$tool" "$@")
}

# Three times, since an archive in the middle of its update, or a network, recovers in seconds.
attempt() {
    for pause in ${SYSROOT_PAUSES:-2 5 0}; do
        if "$@"; then return 0; fi
        if [ "$pause" -gt 0 ]; then
            say "that failed; trying again in $pause s"
            sleep "$pause"
        fi
    done
    return 1
}

read_index() {
    cat > "$work/sources/debian.sources" <<END
Types: deb
URIs: $uri
Suites: $suite
Components: main
Architectures: $arch
Signed-By: $keyring
END
    [ -z "$security_uri" ] || cat >> "$work/sources/debian.sources" <<END

Types: deb
URIs: $security_uri
Suites: $suite-security
Components: main
Architectures: $arch
Signed-By: $keyring
END
    say "$arch: the index of Debian $suite from $uri${security_uri:+, and of $suite-security from $security_uri}"
    own_apt apt-get "$quiet" update >&2 || return 1
    [ -n "${SUITE:-}" ] || grep -q '^Codename: trixie$' "$work/state/lists/"*_"${suite}"_*Release
}

read_index_of_any_suite() {
    suite=${suites%% *}
    ! attempt read_index || return 0
    for suite in ${suites#"$suite"}; do
        ! read_index || return 0
    done
    return 1
}

if ! read_index_of_any_suite; then
    # What is locked is in Debian's own archive, or nowhere that can be read now.
    if [ -n "$security_uri" ] && [ "$mode" != --update ]; then
        say "$arch: trying without the security updates of $security_uri"
        security_uri=
        ! read_index_of_any_suite || uri_works=yes
    fi
    [ -n "${uri_works:-}" ] || die "cannot read the index of Debian ${suites%% *} from $uri${security_uri:+, or that of $security_uri}:" \
        "is it reachable, and does it carry ${suites%% *} for $arch? (It is the first Debian archive in /etc/apt)"
fi

# ---- choose versions, and download --------------------------------------------------------------

# What the archives have: name, version, hash
available() {
    # shellcheck disable=SC2086  # a list of words
    own_apt apt-cache show "$1" $packages $packages_all | awk '/^Package:/ { name = $2 } /^Version:/ { version = $2 }
        /^SHA256:/ { print name, version, $2 }'
}
available --all-versions > "$work/available"
available --no-all-versions > "$work/newest"

names=
for p in $packages $packages_all; do
    newest=$(awk -v "p=$p" '$1 == p { print $2 }' "$work/newest")
    [ -n "$newest" ] || die "$p for $arch is not in the index of $uri: is the mirror whole?"
    locked=$(printf '%s\n' "$wanted" | awk -v "p=$p" '$2 == p { print $3, $4 }')
    version=${locked% *}
    if [ -z "$locked" ] || [ "$mode" = --update ]; then
        version=$newest
    elif grep -qF "$p $version " "$work/available"; then
        grep -qxF "$p $locked" "$work/available" ||
            die "$p $version for $arch from $uri is not the one of deps/sysroot.lock: other bytes, same version. Do not use it"
        [ "$version" = "$newest" ] || say "$arch: Debian has $p $newest, locked is $version: make sysroot-update"
    elif dpkg --compare-versions "$newest" lt "$version"; then
        die "$p for $arch is locked to $version, and $uri has only $newest, which is older: is the mirror frozen or behind," \
            "or is there no archive of security updates in $list or $parts?"
    else
        version=$newest
    fi
    names="$names $p=$version"
done
say "$arch:$names"
# shellcheck disable=SC2086  # a list of words
attempt own_apt apt-get "$quiet" download $names >&2 ||
    die "cannot download these packages for $arch from $uri:$names"

# ---- unpack -------------------------------------------------------------------------------------

for p in $packages $packages_all; do
    deb=$(echo "$work/debs/${p}_"*.deb)
    [ -f "$deb" ] || die "package $p for $arch did not come from $uri"
    dpkg-deb -x "$deb" "$work/root" || die "cannot unpack $deb: is the disk full?"
    [ -s "$work/root/usr/share/doc/$p/copyright" ] || die "package $p has no licence text"
    dpkg-deb -W --showformat "$arch "'${Package} ${Version} ' "$deb" >> "$work/root/.complete"
    sha256sum < "$deb" | cut -d' ' -f1 >> "$work/root/.complete"
done
for lib in $libraries; do
    [ -f "$work/root/usr/lib/$triplet/lib$lib.a" ] ||
        die "lib$lib.a is not in Debian $suite's packages for $arch: has the packaging changed?"
done

if [ "$mode" = --update ]; then
    { grep -sv "^$arch " "$lock" || true; cat "$work/root/.complete"; } > "$work/lock"
    wanted=$(cat "$work/root/.complete")
fi
printf '%s\n' "$packages $wanted" > "$work/root/.wanted"

# A rename makes it whole or not at all; of two runs at once, the first wins.
if [ "$mode" = --update ] || ! is_there 2>/dev/null; then
    rm -rf "$dir"
    mv -T "$work/root" "$dir" 2>/dev/null || [ -f "$dir/.complete" ] || die "cannot write $dir"
fi
[ "$mode" != --update ] || mv "$work/lock" "$lock"
is_there
say "$arch: $dir is ready"
