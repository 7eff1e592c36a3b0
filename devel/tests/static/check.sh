#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# devel/tests/static/check.sh    static checks of the code that is shipped, and of the C in devel/: one line a tool,
#     what it found above that line, exit code 1 if it found anything. `make check` calls it; so does ./test.sh.
#
# clang-format has the version that devel/tests/requirements.txt pins, in build/venv, where ./test.sh puts it; `make format`
# breaks lines as it wants them. cppcheck and clang-tidy look for faults. What README.md says of the sections is as provider.c is: `make docs` writes it anew.
# To silence a finding, write NOLINT(check) or cppcheck-suppress and the reason on the line.
set -uo pipefail
cd "$(dirname "$0")/../../.."
export LC_ALL=C.UTF-8

shipped=(provider.c deps/*.c)
others=(devel/package/par.c devel/tests/harness/load.c devel/tests/harness/traffic.c devel/tests/harness/glibc_compat.c devel/bench/floor.c)
# not yet in this style: the other fuzzers and unit tests
formatted=(provider.[ch] deps/*.[ch] devel/fuzz/fuzz.c devel/tests/unit/{unit.[ch],dial.c,host_data.c,jetstream.c,refusals.c} devel/tests/harness/*.[ch] devel/package/*.c devel/bench/*.c devel/example/component/*.c)
passed=0 failed=0

# report TOOL WHAT FINDINGS   no findings: the tool passed
report() {
  if [ -z "$3" ]; then
    passed=$((passed + 1))
    echo "ok   $1: $2"
  else
    failed=$((failed + 1))
    printf '%s\nFAIL %s: not so: %s\n' "$3" "$1" "$2"
  fi
}

# All of cppcheck but: const wherever it is possible (callbacks have nats.c's types, and a struct is not constant because
# one function only reads it), and the smallest scope for each variable (buffers stand at the top of their function).
# The macros that are set are those of our mbedTLS, and they make it look at this one configuration.
run_cppcheck() {
  cppcheck --quiet --std=c11 --enable=warning,style,performance,portability --inline-suppr --error-exitcode=1 \
    --library=posix,gnu,devel/tests/static/cppcheck.cfg -I. -DMBEDTLS_THREADING_C -DMBEDTLS_SSL_PROTO_TLS1_3 \
    --suppress=constParameter --suppress=constParameterPointer --suppress=constParameterCallback \
    --suppress=constVariablePointer --suppress=variableScope --suppress=normalCheckLevelMaxBranches \
    --template='{file}:{line}: {message} [{id}]' "${shipped[@]}" "${others[@]}" 2>&1
}

# One file at a time: clang-tidy 14 takes state from one to the next. On standard error it only counts what it left out.
run_clang_tidy() {
  local file
  for file in "${shipped[@]}"; do
    clang-tidy --quiet --config-file=devel/tests/static/clang-tidy.yml --warnings-as-errors='*' "$file" \
      -- -std=gnu11 -I. -isystem build/include 2>build/clang-tidy.log || cat build/clang-tidy.log
  done
}

# What is not as .clang-format wants it: the first lines of each file that would change.
run_clang_format() {
  local tool=build/venv/bin/clang-format pinned file
  pinned=$(sed -n 's/^clang-format==//p' devel/tests/requirements.txt)
  if [ "$($tool --version 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -1)" != "$pinned" ]; then
    echo "there is no clang-format $pinned in build/venv: ./test.sh smoke puts it there"
    return
  fi
  for file in "$@"; do
    $tool "$file" | diff -u --label "$file" --label "$file, formatted" "$file" - | head -12
  done
}

make -s build/include || exit 1
report clang-format "${formatted[*]} are as .clang-format says" "$(run_clang_format "${formatted[@]}")"
report columns "no line over 110 in ${formatted[*]}" "$(grep -nHE '^.{111,}' "${formatted[@]}" | cut -c1-160 | head -20)"
report cppcheck "no finding in ${shipped[*]} ${others[*]}" "$(run_cppcheck)"
report clang-tidy "no finding in ${shipped[*]}" "$(run_clang_tidy)"
report sections.py "the table of sections in README.md is that of provider.c" "$(devel/doc/sections.py --check 2>&1)"
report picture.py "devel/doc/flow.svg is the picture of devel/doc/flow.txt" "$(devel/doc/picture.py <devel/doc/flow.txt | cmp - devel/doc/flow.svg 2>&1)"
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
