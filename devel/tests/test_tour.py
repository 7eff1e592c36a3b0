# SPDX-License-Identifier: Apache-2.0
"""The tour (devel/doc/tour.py): all of provider.c is on the page, the bytes on it were recorded and decode, and a browser shows it
as it is meant, on a phone and on a desk."""
import html
import json
import re
import shutil
import subprocess
import sys

import pytest

from lattice import PROVIDER, TOP
from wire import Incomplete, Reader

sys.path.insert(0, str(TOP / "devel/doc"))
import recorded  # noqa: E402

pytestmark = pytest.mark.release
SOURCE = (TOP / "provider.c").read_text()
MARGIN_COMMENT = re.compile(r"^/\*.*?\*/$", re.M | re.S)


@pytest.fixture(scope="module")
def file(folder):
    """The page, made from a run of the demo."""
    file = folder / "tour.html"
    made = subprocess.run([sys.executable, TOP / "devel/doc/tour.py", PROVIDER, file], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return file


@pytest.fixture(scope="module")
def page(file):
    return file.read_text()


def text_of(markup):
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def words_of(text):
    """The words of a comment without what only marks them: stars, backticks, the dashes and numbers of lists, a section's banner."""
    text = re.sub(r"^ \* ---- .*$", "", text, flags=re.M)
    return [word for word in re.sub(r"/\*|\*/|[*`]", "", text).split() if not re.fullmatch(r"-|\d+\.", word)]


def test_each_section_of_provider_c_is_a_chapter(page):
    titles = re.findall(r"^ \* ---- (\d+ .+?) -+$", SOURCE, re.M)
    assert ["1 what this is", *titles] == [text_of(title) for title in re.findall(r"<h2>(<a.*?)</h2>", page)]
    assert len(titles) == 10


def test_each_line_of_code_stands_beside_its_number(page):
    shown = {int(number): text_of(line) for number, line in re.findall(r'<a id="L(\d+)" href="#L\1">\1</a>(.*)', page)}
    code = MARGIN_COMMENT.sub(lambda m: "\n" * m[0].count("\n"), SOURCE).split("\n")
    wanted = {number: line for number, line in enumerate(code, 1) if line}
    assert {number: line for number, line in shown.items() if line} == wanted


def test_each_comment_at_the_margin_is_prose(page):
    prose = re.sub(r"<(/?(?:p|li|pre|div|h3|ol|ul)\b)", r" <\1", page)
    shown = " ".join(words_of(text_of(prose[prose.index("<main>"):])))
    missing = [comment for comment in MARGIN_COMMENT.findall(SOURCE) if " ".join(words_of(comment)) not in shown]
    assert not missing, missing[0]


def messages_of(page, function):
    """The messages of a conversation on the page: their bytes without the headers, by what they are."""
    boxes = re.findall(rf'<aside class="wire" id="{function}-\d+"><h4><a.*?</a> (.*?)</h4>(.*?)</aside>', page)
    assert len(boxes) == len(re.findall(rf'<li>.*?href="#{function}-\d+"', page)) > 5
    rows = {title: "".join(re.findall(r"<tr><td><code>([0-9a-f ]+)</code>", rest)) for title, rest in boxes}
    return {title: bytes.fromhex(row).rpartition(b"\r\n\r\n")[2] for title, row in rows.items()}


def test_the_bytes_of_the_run_decode(page):
    publish, request, handled = (messages_of(page, function) for function in ("publish", "request", "handle-message"))
    message = Reader(handled["the call"]).message()
    assert (message.subject, message.body) == ("demo.weather", handled["the message"]) == ("demo.weather", b"Bergen")
    reader = Reader(request["the call"])
    assert (reader.string(), reader.blob()) == ("svc.weather", request["the message"]) and reader.leb128() > 0
    reader = Reader(request["the result"])
    ok, reply = reader.result(reader.message)
    assert ok and reply.body == request["the reply"] == b"rain in Bergen"
    answer = Reader(publish["the call"]).message()
    assert (answer.subject, answer.body) == (message.reply_to, publish["the message"]) == (message.reply_to, b"rain in Bergen")
    assert publish["the result"] == handled["the result"] == b"\0"


def test_bytes_that_do_not_decode_make_no_page():
    whole = b"\x01a\x02bc\x00"
    assert [row[2] for row in recorded.decode("publish", "call", whole)[0]] == [
        "length of subject", "subject", "length of body", "body", "reply-to"]
    with pytest.raises(Incomplete):
        recorded.decode("publish", "call", whole[:-1])
    with pytest.raises(AssertionError):
        recorded.decode("publish", "call", whole + b"\0")


def test_links_lead_somewhere_and_nothing_is_fetched(page):
    anchors = re.findall(r'\bid="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="([^"]*)"', page)) <= {"#" + anchor for anchor in anchors}
    assert not re.search(r"<(script|link|img|iframe)\b|\bsrc=|@import|url\(", page)
    assert len(page.encode()) < 2_000_000


# ---------------------------------------------------------------- in a browser

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

# Frames of these widths hold the page; what is wrong in them is written where --dump-dom shows it.
FRAMES = """<!doctype html><meta charset="utf-8"><body><script>
function luminance(color) {
  const part = color.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
}
function contrast(a, b) {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}
function look(frame) {
  const d = frame.contentDocument, root = d.documentElement, style = e => d.defaultView.getComputedStyle(e), pale = new Set();
  const walker = d.createTreeWalker(d.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim()) continue;
    let paper = e, svg = e.closest("svg");
    while (!svg && style(paper).backgroundColor == "rgba(0, 0, 0, 0)") paper = paper.parentElement;
    const ink = svg ? style(e).fill : style(e).color, behind = svg ? "rgb(255, 255, 255)" : style(paper).backgroundColor;
    if (contrast(ink, behind) < 4.5) pale.add(`${e.className || e.localName} ${ink} on ${behind}`);
  }
  const rows = [...d.querySelectorAll(".row:not(.wide)")].map(row => [...row.children].map(e => e.getBoundingClientRect()));
  return {width: root.clientWidth, overflow: root.scrollWidth - root.clientWidth, pale: [...pale], dark: matchMedia("(prefers-color-scheme: dark)").matches,
    beside: rows.filter(([text, code]) => text.right <= code.left).length, rows: rows.length,
    scrolls: [...d.querySelectorAll("pre.code")].filter(e => e.scrollWidth > e.clientWidth).length};
}
const seen = [];
function loaded(frame) {
  seen.push(look(frame));
  if (seen.length == document.querySelectorAll("iframe").length) document.title = JSON.stringify(seen);
}
</script>"""


def looked_at(file, folder, *widths, dark=False):
    """What a browser makes of the page in frames of these widths."""
    wrapper = folder / "frames.html"
    wrapper.write_text(FRAMES + "".join(f'<iframe src="{file}" width="{width}" height="900" style="border: 0" onload="loaded(this)"></iframe>'
                                        for width in widths))
    run = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
                          f"--user-data-dir={folder}/browser", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                          "--virtual-time-budget=60000", "--dump-dom", f"file://{wrapper}"], capture_output=True, text=True, timeout=300)
    title = re.search(r"<title>(.*?)</title>", run.stdout)
    assert title, run.stderr[-2000:] or run.stdout[-2000:]
    return sorted(json.loads(html.unescape(title[1])), key=lambda frame: frame["width"])


@pytest.mark.long
@pytest.mark.skipif(not BROWSER, reason="there is no chromium here: apt-get install chromium, or ./test.sh long")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_at_400_and_1400_pixels(file, tmp_path, dark):
    phone, desk = looked_at(file, tmp_path, 400, 1400, dark=dark)
    assert (phone["width"], desk["width"]) == (400, 1400)
    for frame in phone, desk:
        assert frame["dark"] == dark and frame["overflow"] == 0 and frame["pale"] == [] and frame["rows"] > 250
    assert phone["beside"] == 0  # one column
    assert desk["beside"] == desk["rows"] and desk["scrolls"] == 0  # two, and all of the code fits
