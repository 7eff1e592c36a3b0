#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# devel/example/host/older.sh VERSION DAY    builds an older host from that version of its crate and from what other crates were on
#                                            that day, as build/host/host-VERSION: ./test.sh host build/host/host-0.24.0
#
# devel/tests/README.md has the pairs. With the crates of today the compiler stops. The day needs nightly's cargo.
set -euo pipefail
cd "$(dirname "$0")/../../.."
project=build/host/older-$1
mkdir -p "$project"
cp -r devel/example/host/src "$project/"
sed "s/^wasmcloud-host = .*/wasmcloud-host = \"=$1\"/" devel/example/host/Cargo.toml >"$project/Cargo.toml"
(cd "$project" && cargo +nightly -Z unstable-options generate-lockfile --publish-time "$2T00:00:00Z" && cargo build --release --locked --target-dir target)
cp "$project/target/release/host" "build/host/host-$1"
