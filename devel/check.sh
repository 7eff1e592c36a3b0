#!/usr/bin/env bash
# devel/check.sh    static checks of the code that is shipped, and of the C in devel/: one line a tool, what it found
#                   above that line, exit code 1 if it found anything. `make check` calls it; so does ./test.sh.
#
# cppcheck and clang-tidy look for faults. Functions stay small: under 10 as GNU complexity counts (lines, and more for
# those that are nested), and under 10 as McCabe did (ways through), which pmccabe counts. What README.md says of the rooms
# is as provider.c is: `make docs` writes it anew.
# To silence a finding, write NOLINT(check) or cppcheck-suppress and the reason on the line.
set -uo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

shipped=(provider.c deps/tls.c deps/chachapoly.c deps/guard.c deps/left_out.c)
others=(devel/par.c devel/load.c devel/traffic.c devel/glibc_compat.c devel/unit.c devel/bench/floor.c)
below=10
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
    --library=posix,gnu,devel/cppcheck.cfg -I. -DMBEDTLS_THREADING_C -DMBEDTLS_SSL_PROTO_TLS1_3 \
    --suppress=constParameter --suppress=constParameterPointer --suppress=constParameterCallback \
    --suppress=constVariablePointer --suppress=variableScope --suppress=normalCheckLevelMaxBranches \
    --template='{file}:{line}: {message} [{id}]' "${shipped[@]}" devel/par.c devel/load.c devel/traffic.c devel/glibc_compat.c devel/bench/floor.c 2>&1
}

# One file at a time: clang-tidy 14 takes state from one to the next. On standard error it only counts what it left out.
run_clang_tidy() {
  local file
  for file in "${shipped[@]}"; do
    clang-tidy --quiet --config-file=devel/clang-tidy.yml --warnings-as-errors='*' "$file" \
      -- -std=gnu11 -I. -isystem build/include 2>build/clang-tidy.log || cat build/clang-tidy.log
  done
}

# complexity takes the braces of `(struct span){at, len}` for a block, and then scores nothing: it reads copies with ( ).
scores() {
  local file
  rm -rf build/complexity && mkdir -p build/complexity/deps build/complexity/devel/bench
  for file in "${shipped[@]}" "${others[@]}"; do
    perl -0pe '1 while s/(\((?:struct )?\w+(?: \*|\[\])*\))\{([^{};]*)\}/$1($2)/g' "$file" >"build/complexity/$file"
  done
  (cd build/complexity && complexity --scores --no-header --threshold=0 "${shipped[@]}" "${others[@]}" 2>&1)
}

run_complexity() {
  scores | awk -v below=$below '/^unscored|end of|invalid/ || ($1 ~ /^[0-9]+$/ && ++n && $1 >= below); END { if (!n) print "nothing was scored" }'
}

run_pmccabe() {
  pmccabe "${shipped[@]}" | awk -v below=$below '$1 >= below { print $6 " " $7 ": " $1 } END { if (!NR) print "nothing was counted" }'
}

make -s build/include || exit 1
report cppcheck "no finding in ${shipped[*]} devel/par.c devel/load.c devel/traffic.c devel/glibc_compat.c devel/bench/floor.c" "$(run_cppcheck)"
report clang-tidy "no finding in ${shipped[*]}" "$(run_clang_tidy)"
report complexity "every function of ${shipped[*]} ${others[*]} scores under $below" "$(run_complexity)"
report pmccabe "every function of ${shipped[*]} is under $below as McCabe counts" "$(run_pmccabe)"
report rooms.py "the table of rooms in README.md is that of provider.c" "$(devel/rooms.py --check 2>&1)"
report picture.py "devel/flow.svg is the picture of devel/flow.txt" "$(devel/picture.py <devel/flow.txt | cmp - devel/flow.svg 2>&1)"
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
