#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fetches the nats-server of a Debian that this machine is not, for tests on both 2.9 and 2.10, and prints where it is:
#     devel/tests/harness/nats-server.sh SUITE     bookworm has 2.9, trixie has 2.10
# Nothing is installed: deps/sysroot.sh unpacks the package into build/.
set -eu
cd "$(dirname "$0")/../../.."
dir=build/nats-server/$1
SUITE=$1 PACKAGES=nats-server deps/sysroot.sh "$(dpkg --print-architecture)" "$dir"
echo "$PWD/$dir/usr/sbin/nats-server"
