#!/usr/bin/env python3
"""Counts the lines of the rooms of provider.c, and puts the table into README.md, between its two comments.

    devel/rooms.py             prints the table
    devel/rooms.py --write     puts it into README.md
    devel/rooms.py --check     exit code 1 if README.md has another
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BANNER = re.compile(r"^ \* ---- (\d+) (.+?) -+$")
FUNCTION = re.compile(r"^(?:\w|__attribute__).*\) \{")  # at the margin, with parameters
BETWEEN = re.compile(r"(<!-- rooms: devel/rooms.py --write -->\n).*?(<!-- end of rooms -->\n)", re.S)


def count(text):
    """[name, lines, of them code, comment, functions]; what stands before the first room comes first."""
    rooms, comment = [["before the rooms: what this is, includes", 0, 0, 0, 0]], False
    for line in text.splitlines():
        if m := BANNER.match(line):
            rooms[-1][1] -= 1   # the banner's opening line, "/*", which was counted as a comment of the room before
            rooms[-1][3] -= 1
            rooms.append([f"{m[1]} {m[2]}", 1, 0, 1, 0])
        room, bare = rooms[-1], line.strip()
        comment = comment or bare.startswith("/*")
        room[1] += 1
        room[3 if comment else 2] += bool(bare)
        room[4] += bool(FUNCTION.match(line))
        comment = comment and "*/" not in bare
    return rooms


def table(rooms):
    total = ["all", *(sum(room[i] for room in rooms) for i in range(1, 5))]
    rows = ["| room | lines | code | comment | functions |", "|---|---|---|---|---|"]
    rows += [f"| {name} | {lines:,} | {code:,} | {comment:,} | {functions} |" for name, lines, code, comment, functions in [*rooms, total]]
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
        sys.exit("README.md has another table of rooms: devel/rooms.py --write puts the right one in")


if __name__ == "__main__":
    main()
