#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# devel/example/host/wash.sh    builds wash, with which `./test.sh host --wash` tests, as build/tools/wash
#
# By the lock file of its release; not optimised, which takes half the time, and its commands do little.
set -euo pipefail
cd "$(dirname "$0")/../../.."
project=build/tools/wash.d
CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug wash@0.43.0 --root $project --target-dir $project/target
cp $project/bin/wash build/tools/wash
