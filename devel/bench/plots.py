"""The two plots of bench.py, as SVG: written here, because nothing that would draw them is needed for anything else."""
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


def page(title, x_label, y_label, parts):
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, Helvetica, Arial, sans-serif" role="img">',
            f"<title>{title}</title>", f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{PAPER}"/>', words(LEFT, 28, title, 15, "start", more='font-weight="600"'),
            words(LEFT + INNER_W / 2, HEIGHT - 10, x_label),
            words(18, TOP + INNER_H / 2, y_label, more=f'transform="rotate(-90 18 {TOP + INNER_H / 2:.1f})"')]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


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
