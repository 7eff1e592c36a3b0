#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What each library adds to the release binary: a table in Markdown, of bytes in the file, which add up to its size.

    make all build/bench/provider && devel/bench/size.py
    devel/bench/size.py --objects nats.c                  the objects of one of them, largest first

The numbers are those of the linker's map (build/bench/provider.map), which lists what came from which object file. That
binary is the release with its symbols and its unwind tables, which do not count here.
"""
import os
import platform
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
MAP = TOP / "build/bench/provider.map"
OWNERS = {"libnats_static.a": "nats.c", "libmbedtls.a": "mbedTLS", "libmbedx509.a": "mbedTLS", "libmbedcrypto.a": "mbedTLS",
          "libcrypto.a": "libcrypto", "libsodium.a": "libsodium", "libjansson.a": "jansson", "libc.a": "glibc",
          "libgcc.a": "libgcc", "libgcc_eh.a": "libgcc"}
KINDS = {".text": "code", ".rodata": "constants", ".data": "data", ".tdata": "data"}


def owner_of(file):
    """Who supplied an object file: a library, this project, or the compiler's start-up files."""
    archive = re.search(r"([^/]+\.a)\(", file)
    if archive:
        return OWNERS[archive.group(1)]
    return "glibc" if "crt" in file.rsplit("/", 1)[-1] else "provider.c, deps/*.c"


def kind_of(section):
    return next((kind for name, kind in KINDS.items() if section == name or section.startswith(name + ".")), None)


def contributions():
    """(kind, object file, bytes) of each input section that the file holds."""
    text = MAP.read_text().split("Linker script and memory map", 1)[1]
    text = re.sub(r"\n ([.\w$-]+)\n +0x", r"\n \1 0x", text)  # long names have a line of their own
    section = ""
    for line in text.splitlines():
        output = re.match(r"([.\w]+)", line)
        section = output.group(1) if output else section
        part = re.match(r" [.\w$-]+ +0x[0-9a-f]+ +0x([0-9a-f]+) (\S.*)", line)
        if part and kind_of(section) and not part.group(2).startswith("linker "):
            yield kind_of(section), part.group(2), int(part.group(1), 16)


def sections(binary):
    """Bytes in the file by section; .bss has none."""
    text = subprocess.run(["readelf", "-SW", binary], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"\] (\S+) +(\S+) +[0-9a-f]+ +[0-9a-f]+ ([0-9a-f]+)", text)
    return {name: int(size, 16) for name, kind, size in rows if kind != "NOBITS"}


def print_table(size, found, held):
    kinds = list(dict.fromkeys(KINDS.values()))
    of = defaultdict(Counter)
    for kind, file, count in found:
        of[owner_of(file)][kind] += count
    print("| from | " + " | ".join(kinds) + " | bytes | share |\n" + "|---" * (len(kinds) + 3) + "|")
    for owner, parts in sorted(of.items(), key=lambda item: -item[1].total()):
        print(f"| {owner} | " + " | ".join(f"{parts[k]:,}" for k in kinds) + f" | {parts.total():,} | {parts.total() / size:.1%} |")
    known = sum((parts for parts in of.values()), Counter())
    rest = {"between the objects: alignment, strings merged": sum(held[s] for s in held if kind_of(s)) - known.total(),
            "relocations, PLT and GOT": sum(held.get(s, 0) for s in (".rela.dyn", ".rela.plt", ".relr.dyn", ".plt", ".plt.got", ".got"))}
    rest["headers, other sections, alignment of segments"] = size - known.total() - sum(rest.values())
    for name, count in rest.items():
        print(f"| {name} |" + " |" * len(kinds) + f" {count:,} | {count / size:.1%} |")
    print(f"| **all of it** | " + " | ".join(f"{known[k]:,}" for k in kinds) + f" | {size:,} | 100.0% |")


def print_objects(found, owner):
    sizes = Counter()
    for _, file, count in found:
        if owner_of(file) == owner:
            sizes[re.sub(r".*\((.*)\)", r"\1", file)] += count
    for name, count in sizes.most_common():
        print(f"{count:9,}  {name}")


if __name__ == "__main__":
    assert MAP.exists(), "the linker's map is missing: make build/bench/provider"
    if sys.argv[1:2] == ["--objects"]:
        print_objects(contributions(), sys.argv[2])
    else:
        release = TOP / "build" / {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()] / "provider"
        print_table(os.path.getsize(release), list(contributions()), sections(release))
