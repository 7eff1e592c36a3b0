#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts the lines of the sections of provider.c, and puts the table into README.md, between its two comments.

    devel/doc/sections.py             prints the table
    devel/doc/sections.py --write     puts it into README.md
    devel/doc/sections.py --check     exit code 1 if README.md has another
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BANNER = re.compile(r"^ \* ---- (\d+) (.+?) -+$")
FUNCTION = re.compile(r"^(?:\w|__attribute__).*\) \{")  # at the margin, with parameters
BETWEEN = re.compile(r"(<!-- sections: devel/doc/sections.py --write -->\n).*?(<!-- end of sections -->\n)", re.S)


def count(text):
    """[name, lines, of them code, comment, functions]; what stands before the first section comes first."""
    sections, comment = [["before the sections: what this is, includes", 0, 0, 0, 0]], False
    for line in text.splitlines():
        if m := BANNER.match(line):
            sections[-1][1] -= 1   # the banner's opening line, "/*", which was counted as a comment of the section before
            sections[-1][3] -= 1
            sections.append([f"{m[1]} {m[2]}", 1, 0, 1, 0])
        section, bare = sections[-1], line.strip()
        comment = comment or bare.startswith("/*")
        section[1] += 1
        section[3 if comment else 2] += bool(bare)
        section[4] += bool(FUNCTION.match(line))
        comment = comment and "*/" not in bare
    return sections


def table(sections):
    total = ["all", *(sum(section[i] for section in sections) for i in range(1, 5))]
    rows = ["| section | lines | code | comment | functions |", "|---|---|---|---|---|"]
    rows += [f"| {name} | {lines:,} | {code:,} | {comment:,} | {functions} |" for name, lines, code, comment, functions in [*sections, total]]
    return "\n".join(rows) + "\n"


def main():
    now = table(count((ROOT / "provider.c").read_text()))
    if not sys.argv[1:]:
        return print(now, end="")
    readme = README.read_text()
    wanted = BETWEEN.sub(lambda m: m[1] + now + m[2], readme)
    if sys.argv[1] == "--write":
        README.write_text(wanted)
    elif readme != wanted:
        sys.exit("README.md has another table of sections: devel/doc/sections.py --write puts the right one in")


if __name__ == "__main__":
    main()
