#!/usr/bin/env bash
# devel/tests/unit/run.sh PROGRAM…    runs unit tests (under $RUN, an emulator, if that is set), and sums up what they say
#
# SPDX-License-Identifier: Apache-2.0
set -uo pipefail

status=0 passed=0 failed=0
for program in "$@"; do
  output=$(${RUN:-} "$program" 2>&1) || status=1
  printf '%s:\n%s\n' "${program##*/}" "$output"
  read -r p f < <(sed -nE 's/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' <<<"$output" | tail -1)
  [ -n "$p" ] || { echo "FAIL ${program##*/}: it did not come to its end"; p=0 f=1; }
  passed=$((passed + p)) failed=$((failed + f))
done
printf 'all: %d passed, %d failed\n' "$passed" "$failed"
[ "$status" = 0 ] && [ "$failed" = 0 ]
