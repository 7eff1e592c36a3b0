#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# devel/example/host/host.sh    builds the host that `./test.sh host` tests with, as build/host/host
#
# Takes some 15 minutes on two cores; what cargo is at stands on its lines. Cargo.lock holds the versions that wasmCloud's release
# 1.9.2 was built of (with the newest ones, rustc stops at a recursion limit) and their checksums, but not the registry: cargo's
# own word for that is what cargo writes into a lock file of its own.
set -euo pipefail
cd "$(dirname "$0")/../../.."
project=build/host/project
mkdir -p $project
cp -r devel/example/host/Cargo.toml devel/example/host/src $project/
if ! [ -e build/host/registry ]; then
  (cd $project && rm -f Cargo.lock && cargo generate-lockfile --quiet)
  sed -n 's/^source = "\(.*\)"$/\1/p' $project/Cargo.lock | sort -u >build/host/registry
fi
sed "s|^source = \"registry\"|source = \"$(cat build/host/registry)\"|" devel/example/host/Cargo.lock >$project/Cargo.lock
(cd $project && cargo build --release --locked --target-dir target)
cp $project/target/release/host build/host/host
