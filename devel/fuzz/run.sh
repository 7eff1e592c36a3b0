#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# devel/fuzz/run.sh SECONDS [TARGET…]   fuzzes each target (or these) for so long, two at a time; `make fuzz` builds and runs
#
# First it replays what was found before (found/TARGET). What grows from the seeds stays in build/fuzz/corpus, so that the
# next run goes on from there. A target that finds something leaves the input in build/fuzz/TARGET-crash-… (or -leak-,
# -timeout-, -oom-), its words in build/fuzz/TARGET.log; `build/fuzz/TARGET FILE` replays it. Mend the code, and move the
# input to devel/fuzz/found/TARGET. Exit code 1 if anything was found.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=$1 fuzz=$PWD/build/fuzz
shift
# a small quarantine: calls allocate and free a million times a minute
export ASAN_OPTIONS=quarantine_size_mb=16:malloc_context_size=6:detect_leaks=1 LC_ALL=C

fuzz_one() {
  local target=$1 dir=$PWD log status=0 started=$SECONDS
  log=$fuzz/$target.log
  mkdir -p "$fuzz/corpus/$target"
  ln -sf fuzz "$fuzz/$target"
  cd "$fuzz"
  rm -f "$target"-{crash,leak,timeout,oom}-*
  local found=("$dir/devel/fuzz/found/$target"/*)
  [ ! -e "${found[0]}" ] || "./$target" "${found[@]}" >"$log" 2>&1 || status=1
  [ "$status" != 0 ] || "./$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -max_len=4096 -dict=seeds/dictionary \
    -print_final_stats=1 -artifact_prefix="$target-" "corpus/$target" "seeds/$target" >"$log" 2>&1 || status=1
  local stats executed covered
  executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  covered=$(grep -aoE 'cov: [0-9]+' "$log" | tail -1 || true)
  stats="${executed:-0} executions, ${covered:-cov: 0} branches, $((SECONDS - started)) s"
  [ "${executed:-0}" -gt 0 ] || status=1
  if [ "$status" = 0 ]; then echo "ok   $target: $stats, nothing found"; return 0; fi
  echo "FAIL $target: $stats; see ${log#"$dir"/}"
  grep -aE 'not true|runtime error|ERROR: |Test unit written' "$log" | head -5 | sed 's/^/     /'
  return 1
}
export -f fuzz_one
export fuzz seconds

rm -rf "$fuzz/seeds"
python3 devel/fuzz/seeds.py "$fuzz/seeds"
[ $# -gt 0 ] || set -- $("$fuzz/fuzz")
echo "fuzzing $# targets for $seconds s each, two at a time: about $((($# + 1) / 2 * seconds)) s"
if printf '%s\n' "$@" | xargs -P 2 -I '{}' bash -c 'set -euo pipefail; fuzz_one {}'; then
  echo "$# targets fuzzed, nothing found"
else
  echo "$# targets fuzzed, something was found: see FAIL above"
  exit 1
fi
