#!/bin/sh
# Fetches the static libraries that the provider is linked from, out of Debian 13, into a private
# sysroot:   deps/sysroot.sh ARCH DIR      ARCH: amd64, arm64, armhf or riscv64 (Debian's names)
#
# The system's own apt does it, with state, cache and sources of its own, so that nothing on the
# system changes and no root is needed. Which archive to ask is read from the system's sources, so
# a mirror, a cache or a proxy that is set up there is used here, too; what comes is checked
# against the Debian archive's key. Needs apt, dpkg and debian-archive-keyring, as every Debian has.
#
# SUITE and PACKAGES in the environment name another Debian and other packages; devel/nats-server.sh uses that.
#
# A finished DIR has a file .complete with the packages and their versions; a second run is instant.
# To fetch anew, remove DIR. Licences are in DIR/usr/share/doc/*/copyright.
set -eu

# Debian 13 by all of its names: in an archive that is being updated, or behind a cache, an index may be out of step under
# one of them and in step under another. (Once "stable" is the next Debian, it is passed over.)
suites=${SUITE:-trixie stable oldstable}
packages="libnats-dev libmbedtls-dev libsodium-dev libjansson-dev libc6-dev libc6"
packages_all="linux-libc-dev"        # Architecture: all since trixie
libraries="nats_static mbedtls mbedx509 mbedcrypto sodium jansson c"
[ -z "${PACKAGES:-}" ] || packages=$PACKAGES packages_all="" libraries=""
keyrings=${SYSROOT_KEYRING:-"/usr/share/keyrings/debian-archive-keyring.pgp
                             /usr/share/keyrings/debian-archive-keyring.gpg"}

say() { printf 'sysroot: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ---- what is there ------------------------------------------------------------------------------

[ $# -eq 2 ] || die "usage: $0 ARCH DIR"
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
[ ! -f "$dir/.complete" ] || exit 0

for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing: this needs Debian's apt and dpkg" \
        "(elsewhere, run it in a Debian 12 or 13 container and copy $dir)"
done
keyring=
for k in $keyrings; do
    [ -n "$keyring" ] || [ ! -r "$k" ] || keyring=$k
done
[ -n "$keyring" ] || die "Debian's archive key is missing: apt-get install debian-archive-keyring"

# ---- which archive ------------------------------------------------------------------------------
# The first entry of the system's sources that is Debian itself: component main, a suite named like
# Debian's without -security and the like, and signed by Debian's key or by apt's default ones.

archive_uri() {
    # One-line entries and deb822 stanzas become lines of: enabled|types|uris|suites|components|key
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
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
    for f in /etc/apt/sources.list.d/*.sources; do
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

choose_uri() {
    archive_uri | awk -F'|' '
        tolower($1) ~ /no|false|off/ { next }
        (" " $2 " ") !~ /[ \t]deb[ \t]/ { next }
        (" " $5 " ") !~ /[ \t]main[ \t]/ { next }
        $6 !~ /^[ \t]*$/ && $6 !~ /debian-archive/ { next }
        {
            n = split($4, suites, /[ \t]+/)
            split($3, uris, /[ \t]+/)
            uri = uris[1] != "" ? uris[1] : uris[2]
            for (i = 1; i <= n; i++)
                if (suites[i] ~ /^(bullseye|bookworm|trixie|forky|sid|oldstable|stable|testing|unstable)$/) {
                    print uri
                    exit
                }
        }'
}

uri=$(choose_uri)
[ -n "$uri" ] || die "no Debian archive in /etc/apt/sources.list or /etc/apt/sources.list.d:" \
    "add one with component main (suite bookworm or trixie)"

# ---- fetch --------------------------------------------------------------------------------------

work=$dir.tmp.$$
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/root" \
    "$work/empty" || die "cannot write $work"
: > "$work/status"
# apt reads the system's apt.conf (a proxy may be set there); everything below overrides it.
# Post-Invoke hooks of the system (Docker images have some) are not ours to run.
cat > "$work/apt.conf" <<END
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$work/sources";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "$work/empty";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "";
APT::Default-Release "";
APT::Get::List-Cleanup "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
END
mkdir "$work/sources"

quiet=-qq
[ ! -t 2 ] || quiet=-q
own_apt() {
    tool=$1
    shift
    (cd "$work/debs" && "$tool" -c "$work/apt.conf" "$@" >&2)
}

# Three times, since an archive in the middle of its update, or a network, recovers in seconds.
attempt() {
    for pause in 2 5 0; do
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
    say "$arch: the index of Debian $suite from $uri"
    own_apt apt-get "$quiet" update || return 1
    [ -n "${SUITE:-}" ] || grep -q '^Codename: trixie$' "$work/state/lists/"*_"${suite}"_*Release
}

suite=${suites%% *}
if ! attempt read_index; then
    for suite in ${suites#"$suite"} none; do
        [ "$suite" != none ] || die "cannot read the index of Debian ${suites%% *} from $uri:" \
            "is it reachable, and does it carry ${suites%% *} for $arch? (It is the first Debian archive in /etc/apt)"
        ! read_index || break
    done
fi

wanted=$packages_all
for p in $packages; do
    wanted="$wanted $p:$arch"
done
say "$arch: $wanted"
# shellcheck disable=SC2086  # a list of words
attempt own_apt apt-get "$quiet" download $wanted ||
    die "cannot download these packages for $arch from $uri: $wanted"

# ---- unpack -------------------------------------------------------------------------------------

for p in $packages_all $packages; do
    deb=$(echo "$work/debs/${p}_"*.deb)
    [ -f "$deb" ] || die "package $p for $arch did not come from $uri"
    dpkg-deb -x "$deb" "$work/root" || die "cannot unpack $deb: is the disk full?"
    [ -s "$work/root/usr/share/doc/$p/copyright" ] || die "package $p has no licence text"
    dpkg-deb -W --showformat '${Package} ${Version} ${Architecture}\n' "$deb" >> "$work/root/.complete"
done
for lib in $libraries; do
    [ -f "$work/root/usr/lib/$triplet/lib$lib.a" ] ||
        die "lib$lib.a is not in Debian $suite's packages for $arch: has the packaging changed?"
done

# A rename makes it whole or not at all; of two runs at once, the first wins.
if [ ! -f "$dir/.complete" ]; then
    rm -rf "$dir"
    mv -T "$work/root" "$dir" 2>/dev/null || [ -f "$dir/.complete" ] || die "cannot write $dir"
fi
say "$arch: $dir is ready"
