#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes one HTML page that leads through provider.c in its order: each comment beside the code that it stands before, and
beside the code of the wire the messages of a run of the demo (recorded.py).

    ./test.sh tour                        makes everything this needs, and build/tour.html
    devel/doc/tour.py [PROVIDER [PAGE]]

The page needs neither network nor script. What a comment of provider.c can say belongs there, not here.
"""
import asyncio
import re
import sys
import time
from html import escape
from pathlib import Path

from pygments import format as format_tokens
from pygments.formatters import HtmlFormatter
from pygments.lexers import CLexer
from pygments.token import Comment, Keyword, Literal, Name, Text

DOC = Path(__file__).resolve().parent
ROOT = DOC.parents[1]
sys.path.insert(0, str(DOC))
import recorded  # noqa: E402
import sections  # noqa: E402
from servers import nats_server_version  # noqa: E402

FUNCTION = re.compile(r"^\w[^;{}()=]*?\b(\w+)\([^;{}]*\) \{", re.M)
TAG = re.compile(r"^(?:static )?((?:struct|enum) \w+) \{", re.M)
MACRO = re.compile(r"^#define (\w+)", re.M)
ENUM = re.compile(r"\benum\b[^;{}()]*\{[^}]*\}")
CONSTANT = re.compile(r"\b[A-Z][A-Z0-9_]+\b(?=[ ,}=\n])")
COMMENT = re.compile(r"/\*.*?\*/", re.S)
CALLERS_SHOWN = 8
COLUMNS_BESIDE = 60  # of a picture that fits beside code

# functions of the codec, and what of the conversations they read or write
CODEC = {"read_publish": ("publish", "call"), "read_request": ("request", "call"), "read_result": ("handle-message", "results"),
         "write_message": ("handle-message", "call")}


# ---------------------------------------------------------------- the source

class Chunk:
    """A comment at the margin, and the code behind it; each begins a new one, and so does code behind an empty line."""

    def __init__(self, start, lines):
        end = 1 + next(i for i, line in enumerate(lines) if "*/" in line) if lines[0].startswith("/*") else 0
        self.start = start
        self.comment = [re.sub(r"^(/\*| \*)/? ?| ?\*/$", "", line) for line in lines[:end]]
        self.first, self.code = start + end, lines[end:]
        while self.code and not self.code[-1]:
            self.code.pop()
        self.functions = FUNCTION.findall("\n".join(self.code))
        self.names = TAG.findall("\n".join(self.code)) + self.functions


def chunks_of(lines):
    starts = [0]
    for i, (before, line) in enumerate(zip(lines, lines[1:]), 1):
        if re.match(r"[^\s}]", line) and (not before or line.startswith("/*")):
            starts.append(i)
    return [Chunk(start + 1, lines[start:end]) for start, end in zip(starts, [*starts[1:], len(lines)])]


class Source:
    """provider.c: its chapters, where its names are defined, who uses its functions, and each line as HTML."""

    def __init__(self, text):
        self.text, self.chapters = text, [("1", "what this is", [])]
        for chunk in chunks_of(text.splitlines()):
            if len(chunk.comment) > 1 and (banner := sections.BANNER.match(" * " + chunk.comment[1])):
                self.chapters.append((banner[1], banner[2], []))
                chunk.comment[1] = ""
            self.chapters[-1][2].append(chunk)
        self.functions = {name: chunk for _, _, chunks in self.chapters for chunk in chunks for name in chunk.functions}
        self.names = self.definitions()
        self.users = {name: {} for name in self.functions}  # of each function, in their order
        html = format_tokens(self.tokens(), HtmlFormatter(nowrap=True)).split("\n")
        self.html = ["", *(re.sub(r'<span class="nf">(.+?)</span>', lambda m: self.link(m[1]), line) for line in html)]

    def definitions(self):
        """The line of each function, struct, enum, constant and macro."""
        bare, lines = COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), self.text), {}
        found = [(m[1], m.start(1)) for pattern in (FUNCTION, TAG, MACRO) for m in pattern.finditer(bare)]
        found += [(m[0], enum.start() + m.start()) for enum in ENUM.finditer(bare) for m in CONSTANT.finditer(enum[0])]
        for name, at in found:
            lines.setdefault(name, self.text.count("\n", 0, at) + 1)
        return lines

    def tokens(self):
        """What Pygments finds, for its formatter. A name that is defined elsewhere here is called a function, to become a link; what
        needs no colour gets none."""
        inside = {line: name for name, chunk in self.functions.items()
                  for line in range(self.names[name], chunk.first + len(chunk.code))}
        line, before = 1, ""
        for kind, value in CLexer(stripnl=False).get_tokens(self.text):
            name = f"{before} {value}" if before in ("struct", "enum") else value
            if kind in Name and name in self.names and before not in (".", "->", "}"):  # else a member
                if line == self.names[name]:
                    yield Name.Class, value
                else:
                    yield Name.Function, name
                    if name in self.users and line in inside:
                        self.users[name][inside[line]] = True
            else:
                yield kind if kind in Comment or kind in Keyword or kind in Literal else Text, value
            line += value.count("\n")
            before = value.strip() or before

    def link(self, name, html=None):
        return f'<a href="#L{self.names[name]}">{html or name.split()[-1]}</a>'

    def words(self, text, plain=False):
        """A comment's text as HTML: names are links, and what is emphasised is so. plain: names that are plain words, too."""
        word = r"\w+" if plain else r"(?<=[─▶◀] )\w+"  # in a picture such a name stands behind an arrow
        pattern = (r"`(?P<code>[^`]+)`|\*(?P<em>\w[\w ]*)\*(?!\w)|"
                   rf"(?P<name>(?<![\w…])(?:\w+_\w+|\w+(?=\(\))|(?P<word>{word})))(?P<call>\(\))?")

        def marked(m):
            if m["em"]:
                return f"<em>{m['em']}</em>"
            name = m["name"] or m["code"]
            code = f"<code>{name}{m['call'] or ''}</code>"
            return self.link(name, code) if name in self.names else name if m["word"] else code
        return re.sub(pattern, marked, escape(text, quote=False))

    def prose(self, comment):
        """A comment as HTML: paragraphs, lists, and pictures. The second value: some picture does not fit beside code."""
        out, wide = [], False
        for group in re.split(r"\n *\n", "\n".join(comment)):
            group = group.strip("\n")
            lines = group.split("\n")
            if not group.strip():
                continue
            if re.match(r" ?(-|\d+\.) ", group):
                kind = "ul" if group.lstrip().startswith("-") else "ol"
                items = re.split(r"(?:^|\n) ?(?:-|\d+\.) +", group)[1:]
                out.append(f"<{kind}>" + "".join(f"<li>{self.words(' '.join(item.split()))}" for item in items) + f"</{kind}>")
            elif re.search(r"[─│▶◀]", group) or all(line.startswith("    ") for line in lines):
                indent = min(len(line) - len(line.lstrip()) for line in lines)
                lines = [line[indent:] for line in lines]
                wide |= max(map(len, lines)) > COLUMNS_BESIDE
                out.append(f'<pre class="picture" tabindex="0">{self.words(chr(10).join(lines))}</pre>')
            else:
                out.append(f"<p>{self.words(' '.join(group.split()), plain=group.startswith('Interface:'))}</p>")
        return "".join(out), wide


# ---------------------------------------------------------------- the page

def anchor(message):
    return f"{message.function}-{message.number}"


def message_html(m):
    """A message of the run: line by line its bytes, their value and their meaning."""
    rows = [f'<tr><td colspan="3">subject <code>{escape(m.frame.subject)}</code> <i>{m.subject}</i>']
    if m.frame.reply:
        rows.append(f'<tr><td colspan="3">reply subject <code>{escape(m.frame.reply)}</code> <i>{m.reply}</i>')
    if not m.rows:
        rows.append('<tr><td colspan="3"><i>no bytes: the message is empty</i>')
    rows += [f'<tr><td><code>{data.hex(" ")}</code><td><code>{escape(value)}</code><td><i>{meaning}</i>' for data, value, meaning in m.rows]
    return (f'<aside class="wire" id="{anchor(m)}"><h4><a href="#{m.function}">{m.function} {m.number}</a> {m.title}</h4>'
            f'<p><i>{m.sender} → {m.receiver}</i></p><table><col class="hex"><col><col>{"".join(rows)}</table></aside>')


def conversation_html(function, messages):
    def line(m):
        size = len(m.frame.headers) + len(m.frame.data)
        return (f'<li><span>{m.sender} → {m.receiver}</span> <a href="#{anchor(m)}">{m.title}</a> '
                f'<small>{f"{size} bytes" if size else "empty"}, after {m.ms:.1f} ms</small>')
    return (f'<aside class="talk" id="{function}"><h3>One <code>{function}</code> of the run</h3>'
            f'<ol>{"".join(map(line, messages))}</ol></aside>')


def chunk_html(source, chunk, messages):
    """Comment, users and recorded messages on one side, the code on the other."""
    prose, wide = source.prose(chunk.comment)
    beside = [f"<h3>{name}</h3>" for name in chunk.names] + [prose]
    for name in chunk.functions:
        users = [source.link(user, f"<code>{user}</code>") for user in source.users[name]]
        more = f" and {len(users) - CALLERS_SHOWN} more" if len(users) > CALLERS_SHOWN else ""
        beside += [f'<p class="by">from {", ".join(users[:CALLERS_SHOWN])}{more}</p>'] if users else []
        beside += [f'<p class="by">on the wire: <a href="#{anchor(m)}">{m.function} {m.number}</a></p>' for m in messages
                   if CODEC.get(name) == (m.function, m.kind) and m.frame.data]
        beside += [message_html(m) for m in messages if m.place == name]
    place = f' id="L{chunk.start}"' if chunk.comment else ""
    numbers = range(chunk.first, chunk.first + len(chunk.code))
    code = "".join(f'<a id="L{n}" href="#L{n}">{n}</a>{source.html[n]}\n' for n in numbers)
    code = f'<pre class="code" tabindex="0">{code}</pre>' if code else ""
    return f'<div class="row{" wide" if wide or not code else ""}"><div class="prose"{place}>{"".join(beside)}</div>{code}</div>'


def flow_html(source):
    """The picture, with its functions as links: they begin what an arrow says, or stand behind a comma."""
    def linked(m):
        return source.link(m[0]) if m[0] in source.functions else m[0]
    return re.sub(r"(?:(?<=>)|(?<=, ))\w+(?=[,:(<])|\w+_\w+", linked, (DOC / "flow.svg").read_text())


def style():
    light, dark = (HtmlFormatter(style=name).get_style_defs(".code") for name in ("xcode", "lightbulb"))
    return f"{(DOC / 'tour.css').read_text()}{light}@media screen and (prefers-color-scheme: dark) {{ {dark} }}"


def page(text, conversations, about):
    source = Source(text)
    messages = [m for conversation in conversations.values() for m in conversation]
    for name in [*CODEC, *(m.place for m in messages)]:
        assert name in source.functions, f"provider.c has no function {name} any more: devel/doc/ must name another"
    contents, chapters = [], []
    for (number, title, chunks), (_, lines, _, _, functions) in zip(source.chapters, sections.count(text), strict=True):
        names = " ".join(source.link(name, name) for chunk in chunks for name in chunk.names)
        head = f'<a href="#s{number}">{number} {title}</a> <small>{lines} lines, {functions} functions</small>'
        contents.append(f"<li><details><summary>{head}</summary>{names}</details>" if names else f"<li>{head}")
        parts = [chunk_html(source, chunk, messages) for chunk in chunks]
        talks = [conversation_html(f, talk) for f, talk in conversations.items() if f in title.split(", ")]
        parts.insert(1, f'<div class="talks">{"".join(talks)}</div>' if talks else "")
        chapters.append(f'<section id="s{number}"><h2><a href="#contents" title="to the contents">{number}</a> {title}</h2>{"".join(parts)}</section>')
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>A tour of provider.c</title><style>{style()}</style></head><body>
<div class="front"><div><header><h1>A tour of <code>provider.c</code></h1>
<p>On one side stands what the comments of the source say, on the other the code that they stand before, in the order of the file and
with its line numbers. Names are links to where they are defined; “from” names the functions that use one.</p>
<p>Beside the code that reads or writes them stand the bytes of a run: {escape(about)}. There a component is called by
<a href="#handle-message">handle-message</a>, asks another service by <a href="#request">request</a>, and answers by
<a href="#publish">publish</a>. Messages stand in the order in which the server passed them on: those of two connections, the lattice's
and a link's, may pass each other.</p></header>
<nav id="contents"><h2>Contents</h2><ol>{"".join(contents)}</ol></nav></div>
<figure tabindex="0">{flow_html(source)}</figure></div>
<main>{"".join(chapters)}</main></body></html>
"""


def main():
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "build/tour.html"
    conversations = recorded.conversations(recorded.record())
    version = re.search(r'^#define PROVIDER_VERSION "(.*)"', (ROOT / "provider.h").read_text(), re.M)[1]
    about = (f"devel/example/demo.py with messaging-nats {version} and nats-server "
             f"{'.'.join(map(str, nats_server_version()))}, {time.strftime('%Y-%m-%d %H:%M')}")
    html = page((ROOT / "provider.c").read_text(), conversations, about)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html)
    print(f"\n{target}: {len(html.encode()):,} bytes")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, OSError, asyncio.TimeoutError, recorded.wire.Incomplete) as e:
        sys.exit(f"no tour: {e or type(e).__name__}")
