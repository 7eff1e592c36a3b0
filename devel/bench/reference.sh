#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# devel/bench/reference.sh    builds wasmCloud's own provider, what `make bench` compares with, as build/bench/reference
#
# Takes about three minutes. Cargo.lock names every version and its checksum, but not the registry: cargo's own word for that is
# what cargo writes into a lock file of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
project=build/bench/reference.d
mkdir -p $project
cp -r devel/bench/reference/Cargo.toml devel/bench/reference/src $project/
(cd $project && rm -f Cargo.lock && cargo generate-lockfile --quiet)
registry=$(sed -n 's/^source = "\(.*\)"$/\1/p' $project/Cargo.lock | sort -u)
sed "s|^source = \"registry\"|source = \"$registry\"|" devel/bench/reference/Cargo.lock >$project/Cargo.lock
(cd $project && cargo build --release --locked --target-dir target)
cp $project/target/release/reference build/bench/reference
