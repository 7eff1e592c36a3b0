#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# devel/example/host/wadm.sh    builds wadm, with which `./test.sh host --wadm` tests, as build/tools/wadm
#
# The crate is a library, and brings the lock file of its release; wadm/ is the program around it.
set -euo pipefail
cd "$(dirname "$0")/../../.."
project=build/tools/wadm.d
mkdir -p $project
cp -r devel/example/host/wadm/. $project/
cd $project
rm -f Cargo.lock
crate=$(cargo metadata --format-version 1 --quiet | grep -o '[^"]*/wadm-[0-9.]*/Cargo.toml' | head -1)
cp "${crate%.toml}.lock" Cargo.lock
cargo build --release --target-dir target
cp target/release/wadm-server ../wadm
