#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# devel/example/component/build.sh    builds component.wasm, which is checked in: only needed when handler.c or component.wit changes
#
# Needs clang, lld and wasi-libc of Debian, and from cargo:
#   cargo install wit-bindgen-cli --no-default-features --features c
#   cargo install wasm-tools --no-default-features --features component
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=devel/example/component out=build/component
for tool in clang wasm-ld wit-bindgen wasm-tools; do
  command -v $tool >/dev/null || { echo "there is no $tool; the head of $0 says what this needs" >&2; exit 1; }
done
rm -rf $out
mkdir -p $out/wit/deps
cp $here/component.wit $out/wit/
cp -r wit/deps/* $out/wit/deps/
wit-bindgen c $out/wit --out-dir $out
clang --target=wasm32-wasi -mexec-model=reactor -nostartfiles -nodefaultlibs -Os -Wall -Wextra -Werror -Wl,--no-entry,--gc-sections,--strip-all \
  -I $out $here/handler.c $out/component.c $out/component_component_type.o -lc -o $out/core.wasm
wasm-tools component new $out/core.wasm -o $here/component.wasm
wasm-tools component wit $here/component.wasm
ls -l $here/component.wasm
