#!/bin/sh
# Prints the licences of what is linked into the provider, from the sysroot's packages:  deps/licences.sh SYSROOT
#
# SPDX-License-Identifier: Apache-2.0
set -eu
for package in libnats-dev libmbedtls-dev libssl-dev libsodium-dev libjansson-dev libc6-dev libc6; do
  file=$1/usr/share/doc/$package/copyright
  [ -e "$file" ] || continue
  printf '======== %s ========\n\n' "$package"
  cat "$file"
  printf '\n'
done
