#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws devel/doc/flow.txt as an SVG on standard output: lanes, and what goes from one to the other, from top to bottom.

    devel/doc/picture.py < devel/doc/flow.txt > devel/doc/flow.svg        (make docs does it)
"""
import re
import sys
from html import escape

INK, FAINT, PAPER, OURS, THEIRS, PART = "#24292f", "#d0d7de", "#ffffff", "#ddf4e7", "#eaeef2", "#57606a"
STEP, LANE, LEFT, HEAD, STRANGERS = 24, 112, 64, 64, ("host", "nats")


def read(lines):
    """(lanes: key → title, events: (kind, from, to, words))"""
    lanes, events = {}, []
    for line in lines:
        line = line.partition("#")[0].strip()
        if m := re.fullmatch(r"lane (\w+): (.+)", line):
            lanes[m[1]] = [part.strip() for part in m[2].split("/")]
        elif m := re.fullmatch(r"part: (.+)", line):
            events.append(("part", None, None, m[1]))
        elif m := re.fullmatch(r"(\w+) > (\w+): (.+)", line):
            events.append(("goes", m[1], m[2], m[3]))
        elif m := re.fullmatch(r"(\w+): (.+)", line):
            events.append(("does", m[1], m[1], m[2]))
        elif line:
            sys.exit(f"flow.txt: what is this? {line}")
    return lanes, events


def text(x, y, words, size=11, anchor="middle", fill=INK, weight=400):
    return (f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}" '
            f'paint-order="stroke" stroke="{PAPER}" stroke-width="3">{escape(words)}</text>')


def arrow(x1, x2, y):
    tip = -6 if x2 > x1 else 6
    return (f'<line x1="{x1}" y1="{y}" x2="{x2 + tip}" y2="{y}" stroke="{INK}"/>'
            f'<path d="M{x2} {y} l{tip} -3.5 v7 z" fill="{INK}"/>')


def draw(lanes, events):
    place = {key: LEFT + LANE * i for i, key in enumerate(lanes)}
    width, y, parts = 2 * LEFT + LANE * (len(lanes) - 1), HEAD + 8, []
    for kind, source, target, words in events:
        y += STEP * (1.5 if kind == "part" else 1)
        if kind == "part":
            parts.append(f'<rect x="8" y="{y - 15}" width="{width - 16}" height="21" fill="{PAPER}"/>')
            parts.append(text(12, y, words, 13, "start", PART, 600))
        elif kind == "does":
            parts.append(f'<circle cx="{place[source]}" cy="{y - 4}" r="3.5" fill="{INK}"/>')
            parts.append(text(place[source] + 8, y, words, anchor="start"))
        else:
            parts.append(arrow(place[source], place[target], y))
            parts.append(text((place[source] + place[target]) / 2, y - 5, words))
    height = y + 24
    frame = []
    for key, title in lanes.items():
        fill = THEIRS if key in STRANGERS else OURS
        frame.append(f'<line x1="{place[key]}" y1="56" x2="{place[key]}" y2="{height - 12}" stroke="{FAINT}" stroke-width="1.5"/>')
        frame.append(f'<rect x="{place[key] - 50}" y="16" width="100" height="40" rx="5" fill="{fill}" stroke="{FAINT}"/>')
        frame += [f'<text x="{place[key]}" y="{33 + 15 * i}" font-size="12" text-anchor="middle" fill="{INK}">{escape(words)}</text>' for i, words in enumerate(title)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, Helvetica, Arial, sans-serif" role="img">',
        "<title>How a message flows through the sections of provider.c</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>', *frame, *parts, "</svg>"])


if __name__ == "__main__":
    print(draw(*read(sys.stdin)))
