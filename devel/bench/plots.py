# SPDX-License-Identifier: Apache-2.0
"""The plots of bench.py and growth.py, as SVG: written here, because nothing that would draw them is needed for anything else."""
import math

INK, FAINT, PAPER = "#24292f", "#d0d7de", "#ffffff"
COLOURS = {"ours": "#1a7f5a", "floor": "#8c959f", "reference": "#c2541b"}
OTHERS = ["#0969da", "#8250df", "#9a6700", "#bf3989"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 64, 116, 56, 48
INNER_W, INNER_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM


def colour(name, names):
    return COLOURS.get(name) or OTHERS[[n for n in names if n not in COLOURS].index(name) % len(OTHERS)]


def words(x, y, text, size=12, anchor="middle", fill=INK, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" {more}>{text}</text>'


def line(x1, y1, x2, y2, stroke=FAINT):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"/>'


def upright(x, y, text, size=12):
    return words(x, y, text, size, more=f'transform="rotate(-90 {x} {y:.1f})"')


def sheet(title, width, height, left, parts):
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, Helvetica, Arial, sans-serif" role="img">',
            f"<title>{title}</title>", f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>', words(left, 28, title, 15, "start", more='font-weight="600"')]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def page(title, x_label, y_label, parts):
    labels = [words(LEFT + INNER_W / 2, HEIGHT - 10, x_label), upright(18, TOP + INNER_H / 2, y_label)]
    return sheet(title, WIDTH, HEIGHT, LEFT, [*labels, *parts])


def round_step(span):
    """A step of 1, 2 or 5 times a power of ten that divides a span into about five."""
    power = 10 ** math.floor(math.log10(span / 5))
    return next(power * f for f in (1, 2, 5, 10) if span / (power * f) <= 6)


def short(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spaced(places, least):
    """Moves places apart, so that labels do not lie on each other: {name: y}."""
    last, out = -math.inf, {}
    for name, y in sorted(places.items(), key=lambda item: item[1]):
        last = out[name] = max(y, last + least)
    return out


def curves(series):
    """name → [(seconds, MB)]: resident memory through the burst, on a logarithmic scale."""
    end = max(x for points in series.values() for x, _ in points) * 1.02
    top = 10 ** math.ceil(math.log10(max(y for points in series.values() for _, y in points)))

    def at(x, y):
        return LEFT + INNER_W * x / end, TOP + INNER_H * (1 - math.log10(max(y, 1)) / math.log10(top))
    parts, ends = [], {}
    for power in range(round(math.log10(top)) + 1):
        y = at(0, 10 ** power)[1]
        parts += [line(LEFT, y, LEFT + INNER_W, y), words(LEFT - 8, y + 4, f"{10 ** power:,}", anchor="end")]
    step = round_step(end)
    parts += [words(at(i * step, 1)[0], TOP + INNER_H + 18, f"{i * step:g}") for i in range(int(end / step) + 1)]
    for name, points in series.items():
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour(name, series)}" stroke-width="2" stroke-linejoin="round"/>')
        x, y = at(*points[-1])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour(name, series)}"/>')
        ends[name] = max(y for _, y in points)
    places = spaced({name: at(0, series[name][-1][1])[1] for name in series}, 30)
    for name, y in places.items():
        parts += [words(LEFT + INNER_W + 8, y, name, 12, "start", colour(name, series), 'font-weight="600"'),
                  words(LEFT + INNER_W + 8, y + 14, f"at most {short(ends[name])} MB", 11, "start")]
    return page("Resident memory through a burst of 50,000 messages", "seconds since the burst began (each line ends when its last message was handled)",
                "resident memory, MB (logarithmic)", parts)


def bars(groups):
    """flow → name → µs of CPU a call."""
    names = list(next(iter(groups.values())))
    top = max(v for values in groups.values() for v in values.values()) * 1.08
    step = round_step(top)
    parts = []
    for i in range(int(top / step) + 1):
        y = TOP + INNER_H * (1 - i * step / top)
        parts += [line(LEFT, y, LEFT + INNER_W, y), words(LEFT - 8, y + 4, f"{i * step:g}", anchor="end")]
    slot = INNER_W / len(groups)
    width = slot * 0.76 / len(names)
    for g, (flow, values) in enumerate(groups.items()):
        for n, name in enumerate(names):
            x, h = LEFT + slot * (g + 0.12) + n * width, INNER_H * values[name] / top
            parts += [f'<rect x="{x + 1:.1f}" y="{TOP + INNER_H - h:.1f}" width="{width - 2:.1f}" height="{h:.1f}" rx="2" fill="{colour(name, names)}"/>',
                      words(x + width / 2, TOP + INNER_H - h - 5, short(values[name]), 11)]
        parts.append(words(LEFT + slot * (g + 0.5), TOP + INNER_H + 18, flow))
    for n, name in enumerate(names):
        parts += [f'<rect x="{LEFT + INNER_W + 12}" y="{TOP + 20 * n}" width="12" height="12" rx="2" fill="{colour(name, names)}"/>',
                  words(LEFT + INNER_W + 30, TOP + 20 * n + 10, name, anchor="start")]
    return page("CPU time of the provider for a call", "flow (64 in flight, 128 bytes; burst: 50,000 at once)", "CPU, µs a call", parts)


PANEL_W, PANEL_H, PANEL_LEFT, PANEL_TOP, PANEL_COLUMNS = 420, 250, 54, 34, 2  # room for one, what is left and above of its axes
DASHES = {"publish": "", "request": "7 4", "handle": "2 3"}


def size_words(size):
    """1,000 as 1k, 8,192 as 8k, 65,536 as 64k: for an axis with little room."""
    if size < 1000:
        return str(size)
    base = 1024 if size % 1024 == 0 else 1000
    return f"{size // base}k" if size < 1_000_000 else f"{size // 1_000_000}M"


def path_of(points, stroke, dash):
    return (f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" stroke="{stroke}" stroke-width="2" '
            f'stroke-linejoin="round" stroke-dasharray="{dash or "none"}"/>')


def panel(left, top, words_below, sizes, lines, names):
    """lines: (flow, name) → size → µs. The sizes lie evenly apart: they grow by factors."""
    width, height = PANEL_W - PANEL_LEFT - 24, PANEL_H - PANEL_TOP - 44
    values = [v for of in lines.values() for v in of.values()]
    low, high = math.log10(min(values) / 1.15), math.log10(max(values) * 1.15)
    parts = []

    def at(size, value):
        return (left + PANEL_LEFT + width * (sizes.index(size) + 0.3) / (len(sizes) - 0.4),
                top + PANEL_TOP + height * (high - math.log10(value)) / (high - low))
    for tick in (m * 10 ** p for p in range(-1, 6) for m in ((1, 2, 5) if high - low < 2.2 else (1,))):
        if low <= math.log10(tick) <= high:
            y = at(sizes[0], tick)[1]
            parts += [line(left + PANEL_LEFT, y, left + PANEL_LEFT + width, y), words(left + PANEL_LEFT - 6, y + 4, f"{tick:,g}", 11, "end")]
    for size in sizes:
        x = at(size, values[0])[0]
        parts += [line(x, top + PANEL_TOP + height, x, top + PANEL_TOP + height + 4, INK), words(x, top + PANEL_TOP + height + 17, size_words(size), 11)]
    for (flow, name), of in lines.items():
        points = [at(size, value) for size, value in of.items()]
        parts.append(path_of(points, colour(name, names), DASHES[flow]))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour(name, names)}"/>' for x, y in points]
    return [*parts, words(left + PANEL_LEFT + width / 2, top + PANEL_H - 10, words_below)]


def growth(curves, names):
    """(words, sizes, (flow, name) → size → µs of CPU a call) for each curve."""
    rows, top = math.ceil(len(curves) / PANEL_COLUMNS), 74
    parts, x = [], PANEL_LEFT
    for name in names:
        parts += [f'<rect x="{x}" y="42" width="12" height="12" rx="2" fill="{colour(name, names)}"/>', words(x + 18, 52, name, anchor="start")]
        x += 100
    for flow, dash in DASHES.items():
        parts += [path_of([(x, 48), (x + 40, 48)], INK, dash), words(x + 47, 52, flow, anchor="start")]
        x += 110
    for i, (title, sizes, lines) in enumerate(curves):
        column, row = i % PANEL_COLUMNS, i // PANEL_COLUMNS
        parts += panel(18 + column * PANEL_W, top + row * PANEL_H - PANEL_TOP, title, sizes, lines, names)
    parts += [upright(18, top + (row + 0.4) * PANEL_H, "CPU, µs a call") for row in range(rows)]
    return sheet("How the CPU time of a call grows (both axes logarithmic)", 2 * 18 + PANEL_COLUMNS * PANEL_W, top + rows * PANEL_H - 20, PANEL_LEFT, parts)
