# SPDX-License-Identifier: Apache-2.0
"""What bench.py measured, in words: the targets, the tables, the plots."""
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from plots import bars, curves, growth

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def table(head, rows):
    """A table in Markdown whose columns stand below each other on a terminal, too."""
    rows = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    return "\n".join(lines) + "\n"


def number(value):
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values):
    """The median, and the smallest and the largest."""
    if not values:
        return "–"
    return number(statistics.median(values)) + (f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else "")


def median(reports, field):
    return statistics.median(r[field] for r in reports) if reports else None


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine():
    model = re.search(r"^(?:model name|Model)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    system = re.search(r'^PRETTY_NAME="?(.*?)"?$', Path("/etc/os-release").read_text(), re.M)
    return (f"{model.group(1) if model else platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
            f"{system.group(1) if system else '?'}, {output('nats-server', '--version').replace(': v', ' ')}")


def origin(binaries, command, seconds, rounds):
    """When, from what and where figures are, and of which binaries."""
    return (f"{time.strftime('%Y-%m-%d')}, commit {output('git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD') or '?'}; `{command}`, "
            f"{seconds / 60:.0f} minutes.\n{machine()}; servers, load and binaries all on that machine.\n\n"
            + "".join(f"- {b.name}: {os.path.relpath(b.path, ROOT)}, {b.size:,} bytes, {b.linked}\n" for b in binaries)
            + f"\nA figure is the median of {rounds} rounds (the smallest–the largest). CPU is that of the provider's process, user and system.\n")


TLS_MOST = {128: ("128 B", 0.10), 8192: ("8 kB", 0.35), 65536: ("64 kB", 0.6)}  # body → its words, and the aim


class Report:
    def __init__(self, binaries, result, rounds, seconds):
        self.command = " ".join(["./test.sh bench", *sys.argv[1:]])
        self.binaries, self.result, self.rounds, self.seconds = binaries, result, rounds, seconds
        self.flows = {(s.words, flow): runs for s, flows in result["settings"] for flow, runs in flows.items()}
        self.burst, self.neighbour, self.start = result.get("burst"), result.get("neighbour"), result.get("start")
        self.idle, self.syscalls = result.get("idle"), result.get("syscalls")
        self.base = next((s.words for s, _ in result["settings"] if s.group == "base"), None)

    # targets: (words, ours, the other's, ratio, at most)

    def ratio(self, words, ours, theirs, most, aim=""):
        if ours is None or not theirs:
            return None
        value = ours / theirs
        return words, number(ours), number(theirs), f"{value:.2f} (1/{1 / value:.1f})" if value < 0.7 else f"{value:.2f}", f"{most:.3g}{aim}", value <= most

    def ceiling(self, words, ours, theirs, most, unit):
        if ours is None:
            return None
        return words, f"{number(ours)} {unit}", f"{number(theirs)} {unit}" if theirs is not None else "–", "–", f"{most} {unit}", ours <= most

    def of(self, words, flow, name, field="cpu_us_per_call"):
        return median(self.flows.get((words, flow), {}).get(name), field)

    def of_start(self, name, field):
        values = (self.start or {}).get(name, {}).get(field)
        return statistics.median(values) if values else None

    def of_idle(self, name, field):
        return (self.idle or {}).get(name, {}).get(field)

    def worst(self, name, field):
        reports = (self.burst or {}).get(name)
        return max(r[field] for r in reports) if reports else None

    def size(self, name):
        return next((b.size / 1e6 for b in self.binaries if b.name == name), None)

    def flow_targets(self):
        for flow, most, aim in (("publish", 1 / 5, ", aim 0.17"), ("request", 1 / 5, ", aim 0.17"), ("handle", 1 / 3, ", aim 0.25")):
            yield self.ratio(f"CPU, {flow}", self.of(self.base, flow, "ours"), self.of(self.base, flow, "reference"), most, aim)
        for flow in ("publish", "request", "handle"):
            for field, words, most in (("p50_us", "p50", 0.5), ("p99_us", "p99", 0.7)):
                yield self.ratio(f"{words}, {flow}", self.of(self.base, flow, "ours", field), self.of(self.base, flow, "reference", field), most)
        for flow in ("publish", "request", "handle"):
            yield self.ratio(f"CPU against the floor, {flow}", self.of(self.base, flow, "ours"), self.of(self.base, flow, "floor"), 1.12)

    def other_targets(self):
        for s, flows in self.result["settings"]:
            if s.subjects == 100:
                yield self.ratio("CPU with 100 subscriptions against 1, handle", self.of(s.words, "handle", "ours"),
                                 self.of(self.base, "handle", "ours"), 1.2)
            if s.tls:
                for flow in flows:
                    yield self.ratio(f"CPU with TLS, {TLS_MOST[s.body][0]}, {flow}", self.of(s.words, flow, "ours"),
                                     self.of(s.words, flow, "reference"), TLS_MOST[s.body][1])
        if self.burst:
            ours, theirs = self.burst.get("ours"), self.burst.get("reference")
            yield self.ratio("CPU, a message of the burst", median(ours, "cpu_us_per_call"), median(theirs, "cpu_us_per_call"), 1 / 12)
            peaks = [None if peak is None else peak / 1000 for peak in (self.worst("ours", "vmhwm_kb"), self.worst("reference", "vmhwm_kb"))]
            yield self.ceiling("resident at most in the burst", *peaks, 8, "MB")
            yield self.ceiling("lost in the burst", self.worst("ours", "lost"), self.worst("reference", "lost"), 0, "messages")
        if self.neighbour:
            beside, alone = (median(self.neighbour.get("ours", {}).get(when), "p99_us") for when in ("beside", "alone"))
            yield self.ratio("p99 of a link beside a burst, against alone", beside, alone, 2)
        idle = [None if kb is None else kb / 1000 for kb in (self.of_start("ours", "idle_kb"), self.of_start("reference", "idle_kb"))]
        yield self.ceiling("resident, idle with two links", *idle, 2.5, "MB")
        for field, words, most, unit in (("wakes", "wake-ups a minute, idle with two links", 8, "times"), ("cpu_ms", "CPU a minute, idle with two links", 0.7, "ms")):
            yield self.ceiling(words, self.of_idle("ours", field), self.of_idle("reference", field), most, unit)
        yield self.ratio("start to the first answer about health", self.of_start("ours", "start"), self.of_start("reference", "start"), 0.17)
        yield self.ratio("start, against the floor's first handshake", self.of_start("ours", "start"), self.of_start("floor", "start"), 1.5)
        yield self.ceiling("size of the binary", self.size("ours"), self.size("reference"), 2.15, "MB")

    def targets(self):
        return [t for t in (*self.flow_targets(), *self.other_targets()) if t]

    # tables

    def rows(self, flows):
        for flow, runs in flows.items():
            for name, reports in runs.items():
                def column(field, reports=reports):
                    return spread([r[field] for r in reports])
                wrong = sum(r["errors"] + r["lost"] for r in reports)
                yield (flow, name, column("calls_per_second"), column("cpu_us_per_call"), column("p50_us"), column("p99_us"), column("p999_us"),
                       column("context_switches_per_call"), column("load_cpu_us_per_call"), max(r["threads"] for r in reports), f"**{wrong:,}**" if wrong else 0)

    def setting_tables(self):
        head = ["flow", "binary", "calls a second", "CPU µs a call", "p50 µs", "p99 µs", "p99.9 µs", "context switches a call", "load's CPU µs", "threads",
                "failed or lost"]
        for setting, flows in self.result["settings"]:
            missing = "" if setting.floor else " (The floor knows one link, and no TLS: it is left out.)"
            yield f"### {setting.words}\n\n{setting.calls:,} calls a round.{missing}\n\n" + table(head, self.rows(flows))

    def burst_table(self):
        rows = [(name, *(spread([r[f] for r in reports]) for f in ("calls_per_second", "cpu_us_per_call")),
                 spread([r["vmhwm_kb"] / 1000 for r in reports]), spread([r["later_kb"] / 1000 for r in reports]),
                 spread([r["load_cpu_us_per_call"] for r in reports]), sum(r["lost"] for r in reports), sum(r["errors"] for r in reports))
                for name, reports in self.burst.items()]
        calls = next(iter(self.burst.values()))[0]["calls"]
        return (f"### Burst: {calls:,} messages of 128 B at once, a fresh process each time\n\n" +
                table(["binary", "messages a second", "CPU µs a message", "resident at most, MB", "1 s later, MB", "load's CPU µs", "lost, all rounds", "errors"], rows))

    def neighbour_table(self):
        rows = [(name, when, *(spread([r[f] for r in reports]) for f in ("p50_us", "p99_us", "p999_us")))
                for name, of in self.neighbour.items() for when, reports in of.items()]
        return ("### Beside a burst\n\nA link with one call of handle-message in flight: alone, and while another link gets 50,000 messages at once.\n\n" +
                table(["binary", "", "p50 µs", "p99 µs", "p99.9 µs"], rows))

    def start_table(self):
        rows = [(b.name, spread(self.start[b.name]["start"]), spread([kb / 1000 for kb in self.start[b.name]["idle_kb"]]), self.start[b.name]["threads"],
                 f"{b.size / 1e6:.2f}", b.linked) for b in self.binaries]
        return ("### Start, idle memory, size\n\nWith two plain links. The floor answers no question about its health: its start is to the handshake of its first call.\n\n" +
                table(["binary", "start to answer, ms", "resident, MB", "threads", "binary, MB", "linked"], rows))

    def idle_table(self):
        rows = [(name, number(of["wakes"]), f"{of['cpu_ms']:.2f}") for name, of in self.idle.items()]
        return "### A minute in which nothing happens\n\nWith two plain links; keep-alive included.\n\n" + table(["binary", "wake-ups", "CPU, ms"], rows)

    def syscalls_table(self):
        if isinstance(self.syscalls, str):
            return f"### System calls a call\n\nNot measured: {self.syscalls}.\n"
        rows = [(flow, *(f"{counts[b.name]:.3f}" for b in self.binaries)) for flow, counts in self.syscalls.items()]
        return "### System calls a call\n\n64 in flight, 128 B; a pass of its own, because counting them costs time.\n\n" + \
            table(["flow", *(b.name for b in self.binaries)], rows)

    def size_table(self):
        script = HERE / "size.py"
        return ["## Binary size\n\n" + output(sys.executable, str(script)) + "\n"] if script.exists() and self.is_whole() else []

    def is_whole(self):
        return bool(self.base and self.burst and self.start)

    def text(self):
        parts = ["# What `make bench` measured\n", origin(self.binaries, self.command, self.seconds, self.rounds)]
        parts += [note + "\n" for note in self.notes()]
        targets = self.targets()
        if targets:
            parts.append("## Targets\n\nAt 64 in flight and 128 B unless said; against the reference unless said. CPU in µs a call, latency in µs, start in ms.\n\n" +
                         table(["target", "ours", "other", "ratio", "at most", "met"], [(*t[:5], "yes" if t[5] else "**no**") for t in targets]))
        parts.append("## All figures\n")
        parts += self.setting_tables()
        parts += [self.burst_table()] if self.burst else []
        parts += [self.neighbour_table()] if self.neighbour else []
        parts += [self.start_table()] if self.start else []
        parts += [self.idle_table()] if self.idle else []
        parts += [self.syscalls_table()] if self.syscalls else []
        return "\n".join(parts + self.size_table())

    def notes(self):
        """What somebody who reads the figures has to know."""
        wrong = sorted(self.failures())
        names = [b.name for b in self.binaries]
        if "ours" in names and "reference" not in names:
            yield "The reference is left out: there was no cargo to build it with."
        if wrong:
            yield f"Calls of {', '.join(wrong)} failed or were lost outside the burst; the figures are those of the calls that succeeded."

    def failures(self):
        """Calls that failed or were lost outside the burst, and the binaries whose they were."""
        return {name for runs in self.flows.values() for name, reports in runs.items() for r in reports if r["errors"] or r["lost"]}

    def plots(self):
        names = [b.name for b in self.binaries]
        if self.burst:
            middle = {name: sorted(self.burst[name], key=lambda r: r["vmhwm_kb"])[len(self.burst[name]) // 2] for name in names}
            yield "burst.svg", curves({name: [(ms / 1000, kb / 1000) for ms, kb in r["trace_ms_kb"] if ms <= 1000 * r["seconds"]] for name, r in middle.items()})
        if self.base and self.burst:
            groups = {flow: {n: self.of(self.base, flow, n) for n in names} for flow in ("publish", "request", "handle")}
            groups["burst"] = {n: median(self.burst[n], "cpu_us_per_call") for n in names}
            yield "cpu.svg", bars(groups)


GROWTH = "## How cost grows"
GROWTH_MOST = 1.1  # of the first point, where that is the aim


class GrowthReport:
    """What growth.py measured."""

    def __init__(self, binaries, curves_of, rounds, seconds):
        self.binaries, self.curves, self.rounds, self.seconds = binaries, curves_of, rounds, seconds
        self.command = " ".join(["./test.sh bench growth", *sys.argv[1:]])

    def lines(self, curve):
        """(flow, name) → size → median"""
        return {(flow, name): {size: statistics.median(values) for size, values in of.items()}
                for flow, names in curve.cost.items() for name, of in names.items()}

    def rows(self, curve):
        for (flow, name), of in self.lines(curve).items():
            grown = max(of.values()) / of[curve.sizes[0]]
            met = "–" if not curve.flat or name != "ours" else "yes" if grown <= GROWTH_MOST else "**no**"
            yield flow, name, *(number(of[size]) if size in of else "–" for size in curve.sizes), number(grown), met

    def table(self, curve):
        head = ["flow", "binary", *(f"{size:,}" for size in curve.sizes), "most to first", f"at most {GROWTH_MOST:g}"]
        return f"### {curve.words[0].upper() + curve.words[1:]}\n\n{curve.note}\n\n" + table(head, self.rows(curve))

    def text(self):
        parts = [GROWTH + "\n", origin(self.binaries, self.command, self.seconds, self.rounds),
                 "µs of CPU a call, publish, request or handle-message, of 128 B and 64 in flight unless said.\n\n![How the CPU time of a call grows](growth.svg)\n"]
        wrong = sorted({name for curve in self.curves for name, count in curve.wrong.items() if count})
        parts += [f"Calls of {', '.join(wrong)} failed or were lost; the figures are those of the calls that succeeded.\n"] if wrong else []
        return "\n".join(parts + [self.table(curve) for curve in self.curves])

    def plot(self):
        return growth([(curve.words, curve.sizes, self.lines(curve)) for curve in self.curves], [b.name for b in self.binaries])


def write_results(whole=None, growth_part=None):
    """Writes RESULTS.md anew: what bench.py measured, what growth.py did, or both. The other stays as it was."""
    path = HERE / "RESULTS.md"
    before, mark, grown = path.read_text().partition("\n" + GROWTH)
    path.write_text((whole or before) + ("\n" + growth_part if growth_part else mark + grown))
