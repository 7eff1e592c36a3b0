#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures provider binaries side by side: calls a second, latency, CPU, memory, context switches and system calls.

    make bench [ROUNDS=5] [ONLY='tls burst'] [PROVIDERS='name=path …'] [WRITE=1]     makes everything this needs, and runs it

By default the binaries are `ours`, `floor` (floor.c: the least that it can cost) and `reference` (wasmCloud's own provider).
Each setting departs from the base in one thing. In each round each binary has its turn, in an order that rotates, so that what
else the machine does hits all of them; a figure is the median of the rounds, with the smallest and the largest. What a call
costs is the CPU time of the provider's process, which the kernel counts in nanoseconds. A whole run writes RESULTS.md and the
two plots; one with --only, with fewer than five rounds, or with other binaries does so only if --write is given.
"""
import argparse
import asyncio
import base64
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests/harness")]
from idle import measure_idle  # noqa: E402
from lattice import CONSUMER, KEY, World, environment  # noqa: E402
from report import Report, write_results  # noqa: E402
from servers import DEADLINE, Certificates, NatsServer, tls_block  # noqa: E402
from wire import broker_message  # noqa: E402

LOAD = ROOT / "build/load"
FLOWS = ("publish", "request", "handle")
BURST = 50_000
STARTS = 6  # a round
START = time.monotonic()


def tell(words):
    print(f"{time.monotonic() - START:7.1f}  {words}", flush=True)


class Setting:
    """One setting of the load: what differs from 64 in flight, 128 bytes, plain, one subscription, one link. `beside`: links that
    nothing is called on; `silent`: one more link, whose component takes messages and never answers."""

    def __init__(self, group, words, calls, flows=FLOWS, in_flight=64, body=128, tls=False, subjects=1, links=1, beside=0, silent=False,
                 floor=True):
        self.group, self.words, self.calls, self.flows = group, words, calls, flows
        self.in_flight, self.body, self.tls, self.subjects, self.links, self.floor = in_flight, body, tls, subjects, links, floor
        self.beside, self.silent = beside, silent

    def targets(self, prefix):
        count = max(self.subjects, self.links)
        return [prefix + (str(i) if count > 1 else "") for i in range(count)]


BASE = Setting("base", "64 in flight, 128 B, plain, 1 subscription, 1 link", 50_000)
SETTINGS = [
    BASE,
    Setting("in-flight", "1 in flight", 6_000, in_flight=1),
    Setting("in-flight", "256 in flight", 40_000, in_flight=256),
    Setting("bodies", "bodies of 16 B", 30_000, body=16),
    Setting("bodies", "bodies of 4 kB (4,096 B)", 15_000, body=4096),
    Setting("bodies", "bodies of 64 kB (65,536 B)", 1_500, body=65536),
    Setting("bodies", "bodies of 1 MB (1,000,000 B), 4 in flight", 150, body=1_000_000, in_flight=4),
    Setting("tls", "TLS to the lattice and to the link, 128 B", 30_000, tls=True, floor=False),
    Setting("tls", "TLS to the lattice and to the link, bodies of 8 kB", 6_000, tls=True, body=8192, floor=False),
    Setting("tls", "TLS to the lattice and to the link, bodies of 64 kB", 1_500, tls=True, body=65536, floor=False),
    Setting("subscriptions", "10 subscriptions", 30_000, ("handle",), subjects=10),
    Setting("subscriptions", "100 subscriptions", 30_000, ("handle",), subjects=100),
    Setting("links", "16 links", 30_000, links=16, floor=False),
]
GROUPS = list(dict.fromkeys(s.group for s in SETTINGS)) + ["burst", "neighbour", "start", "idle", "syscalls"]


# ---------------------------------------------------------------- binaries that run

class Binary:
    def __init__(self, text):
        self.name, _, path = text.partition("=")
        self.path = Path(path).resolve()
        self.is_floor = self.name == "floor"
        if not os.access(self.path, os.X_OK):
            sys.exit(f"bench: {text} is not NAME=PATH of a program")
        self.size = self.path.stat().st_size
        self.linked = "dynamic" if b"/ld-linux" in self.path.read_bytes()[:4096] else "static"


class Place:
    """The two servers, and the binaries."""

    def __init__(self, binaries, folder):
        self.binaries = binaries
        self.authority = Certificates(folder)
        files = self.authority.issue("server")
        self.plain = NatsServer(dir=folder).start()
        self.tls = NatsServer(f"allow_non_tls: true\n{tls_block(*files)}", dir=folder).start()  # for the load, which comes without

    def close(self):
        self.plain.remove()
        self.tls.remove()

    def those_for(self, setting):
        return [b for b in self.binaries if setting.floor or not b.is_floor]

    @contextlib.asynccontextmanager
    async def running(self, binary, setting, handler, consumer=False):
        """A process of this binary with its links (those that call a component, that serve one, or both), all connected."""
        server = self.tls if setting.tls else self.plain
        world = await World(server).open()
        world.host.make_xkeys()  # the reference has links put on the public one
        run = Run(binary, setting, server, world, self.authority, handler, consumer)
        try:
            await run.start()
            yield run
        finally:
            await run.stop()
            await world.close()


class Run:
    """One process, started as a host does it."""

    def __init__(self, binary, setting, server, world, authority, handler, consumer):
        self.binary, self.setting, self.server, self.world, self.authority = binary, setting, server, world, authority
        self.handler, self.consumer, self.process = handler, consumer or not handler, None
        self.url = server.url.replace("nats:", "tls:") if setting.tls else server.url
        self.subjects = setting.targets(world.s("in")) if handler else []

    def links(self):
        """Host data's links, in the order of the components' numbers."""
        config = {"cluster_uris": self.url, **({"tls_ca": self.authority.ca} if self.setting.tls else {})}
        components = self.setting.targets("echo") if self.setting.links > 1 else ["echo"]
        lists = [[s] for s in self.subjects] if self.setting.links > 1 else [self.subjects]
        links = []
        for i, component in enumerate(components):
            if self.handler:  # each needs a name of its own
                links.append(self.world.host.handler_link(component, f"in{i}", subscriptions=",".join(lists[i]), **config))
            if self.consumer:
                links.append(self.world.host.consumer_link(component, **config))
        for i in range(self.setting.beside):
            name = f"beside{i}"
            links.append(self.world.host.handler_link(name, name, subscriptions=self.world.s(name), **config) if self.handler else
                         self.world.host.consumer_link(name, **config))
        if self.setting.silent:
            links.append(self.world.host.handler_link("silent", "silent", subscriptions=self.world.s("silent"), **config))
        return links

    def command(self):
        """The program, its environment, and the line that it reads."""
        if self.binary.is_floor:
            return [self.binary.path, self.url, self.url, self.world.lattice, KEY, "echo", *self.subjects], None, b""
        data = {**self.world.host.data, "lattice_rpc_url": self.url, "link_definitions": self.links()}
        if self.setting.tls:  # each has its own way to be told whom to trust on the lattice
            data["config"] = {"lattice_tls_ca": self.authority.ca}
        return ([self.binary.path], environment({"RUST_LOG": "error", "SSL_CERT_FILE": str(self.authority.ca_file)}),
                base64.b64encode(json.dumps(data).encode()) + b"\r\n")

    async def start(self):
        newest = max(c["cid"] for c in self.server.connections())  # others may be on their way out
        self.spawn()
        await self.ready(newest)

    async def ready(self, newest=0):
        """Waits until its links are connected, of the connections that came after the newest of before."""
        connections = 1 + (1 if self.binary.is_floor else len(self.links()))
        function = f"{self.world.lattice}.{KEY}.{CONSUMER}." + ("*" if self.binary.is_floor else "publish")
        wanted = {*self.subjects, *([function] if self.consumer else [])}
        end = time.monotonic() + DEADLINE
        while True:
            now = [c for c in self.server.connections() if c["cid"] > newest]
            if len(now) >= connections and wanted <= {s for c in now for s in c.get("subscriptions_list", [])}:
                return
            assert self.process.poll() is None and time.monotonic() < end, f"{self.binary.name} does not start"
            await asyncio.sleep(0.02)

    def spawn(self):
        """Starts the process, gives it its line, and returns when that was: right after exec()."""
        command, env, line = self.command()
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = time.perf_counter()
        self.process.stdin.write(line)
        self.process.stdin.close()
        return began

    async def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def status(self, field):
        return int(re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text(), re.M).group(1))

    async def load(self, flow, *options, calls=None, warm=None, prefix=(), **others):
        """One run of build/load: its report. `others`: other arguments than the setting's."""
        s, calls = self.setting, calls or self.setting.calls
        arguments = {"flow": flow, "calls": calls, "warm": calls // 10 if warm is None else warm, "in-flight": s.in_flight, "body": s.body,
                     "lattice": self.server.url, "link": self.server.url, "prefix": self.world.lattice, "key": KEY, "component": "echo",
                     "subject": self.world.s("in" if flow == "handle" else "out"), "links": s.links, "subjects": s.subjects,
                     "pid": self.process.pid, "wait": 1, **others}
        process = await asyncio.create_subprocess_exec(
            *prefix, str(LOAD), *(text for name, value in arguments.items() for text in (f"--{name}", str(value))), *options,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        out, err = await process.communicate()
        assert out, f"build/load: {err.decode()}"
        if err:
            tell(f"{self.binary.name}, {flow}: {err.decode().strip()}")
        return json.loads(out)


# ---------------------------------------------------------------- what is measured

def turns(things, rounds):
    """(round, things in an order that rotates)"""
    for r in range(rounds):
        yield r, things[r % len(things):] + things[:r % len(things)]


async def measure(place, setting, rounds):
    """flow → name → reports"""
    result = {}
    for handler in (False, True):
        flows = [flow for flow in setting.flows if (flow == "handle") == handler]
        async with contextlib.AsyncExitStack() as stack:
            runs = [await stack.enter_async_context(place.running(b, setting, handler)) for b in place.those_for(setting) if flows]
            for flow in flows:
                reports = result[flow] = {run.binary.name: [] for run in runs}
                for r, order in turns(runs, rounds):
                    for run in order:
                        reports[run.binary.name].append(await run.load(flow))
                    tell(f"{setting.words}, {flow}, round {r + 1}: " + ", ".join(f"{name} {x[-1]['cpu_us_per_call']:.2f}"
                                                                              for name, x in reports.items()) + " µs a call")
    return result


async def measure_burst(place, rounds):
    """name → reports, each of a fresh process; with what it has resident a second later."""
    result = {b.name: [] for b in place.binaries}
    for r, order in turns(place.binaries, rounds):
        for binary in order:
            async with place.running(binary, BASE, True) as run:
                report = await run.load("handle", "--burst", "--trace", "4", "--wait", "2", calls=BURST, warm=0)
                await asyncio.sleep(1)
                report["later_kb"] = run.status("VmRSS")
                result[binary.name].append(report)
            tell(f"burst, round {r + 1}, {binary.name}: {report['vmhwm_kb']} kB at most, {report['cpu_us_per_call']:.2f} µs a message, "
                 f"{report['lost']} lost")
    return result


async def measure_neighbour(place, rounds):
    """name → {"alone": reports, "beside": reports} of a link with one call in flight: alone, and while another link gets a burst."""
    binaries = [b for b in place.binaries if not b.is_floor]  # which has one link
    result = {b.name: {"alone": [], "beside": []} for b in binaries}
    async with contextlib.AsyncExitStack() as stack:
        runs = [await stack.enter_async_context(place.running(b, Setting("", "", 3_000, in_flight=1, beside=1), True)) for b in binaries]
        for r, order in turns(runs, rounds):
            for run in order:
                of = result[run.binary.name]
                of["alone"].append(await run.load("handle", wait=10))
                burst = run.load("handle", "--burst", calls=BURST, warm=0, component="beside0", subject=run.world.s("beside0"))
                of["beside"].append((await asyncio.gather(run.load("handle", wait=10), burst))[0])
            tell(f"beside a burst, round {r + 1}: " + ", ".join(f"{name} {of['alone'][-1]['p99_us']} and {of['beside'][-1]['p99_us']}"
                                                                for name, of in result.items()) + " µs (p99)")
    return result


def ask(server, subject, payload, expected, every=0.0002):
    """Asks until somebody answers as expected, and returns when that was. nats-py would take longer for a question than a provider to start."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB answer 1\r\n')
        yield  # connected
        while True:
            s.sendall(b"PUB %s answer %d\r\n%s\r\n" % (subject.encode(), len(payload), payload))
            if expected in s.recv(65536):
                break
            time.sleep(every)
        yield time.perf_counter()


async def start_to_answer(place, binary):
    """Milliseconds from exec() to the first answer to "are you well?", of a fresh process with two links. The floor knows no such question:
    to the handshake of its first call."""
    world = await World(place.plain).open()
    run = Run(binary, BASE, place.plain, world, place.authority, True, True)
    if binary.is_floor:
        answer = ask(place.plain, f"{world.lattice}.{KEY}.{CONSUMER}.publish", broker_message(world.s("out")), b"_INBOX.")
    else:
        answer = ask(place.plain, world.host.control(f"{KEY}.health"), b"", b"healthy")
    try:
        next(answer)
        began = run.spawn()
        return 1000 * (next(answer) - began)
    finally:
        answer.close()
        await run.stop()
        await world.close()


async def measure_start(place, rounds):
    """name → {"start": [ms], "idle_kb": [kB]}, with two links"""
    result = {b.name: {"start": [], "idle_kb": []} for b in place.binaries}
    for r, order in turns(place.binaries, rounds):
        for binary in order:
            async with place.running(binary, BASE, True, True) as run:
                await asyncio.sleep(0.3)
                result[binary.name]["idle_kb"].append(run.status("VmRSS"))
                result[binary.name]["threads"] = run.status("Threads")
            result[binary.name]["start"] += [await start_to_answer(place, binary) for _ in range(STARTS)]
        tell(f"start and idle memory, round {r + 1}")
    return result


async def measure_syscalls(place):
    """(flow → name → system calls a call), or why not. A pass of its own: counting them costs time."""
    result = {flow: {} for flow in FLOWS}
    perf = shutil.which("perf")
    if not perf:
        return "perf is not installed"
    for flow in FLOWS:
        for binary in place.binaries:
            async with place.running(binary, BASE, flow == "handle") as run:
                with tempfile.NamedTemporaryFile("r") as counted:
                    prefix = (perf, "stat", "-x,", "-o", counted.name, "-e", "raw_syscalls:sys_enter", "-p", str(run.process.pid), "--")
                    try:
                        report = await run.load(flow, warm=0, prefix=prefix)
                        count = int(re.search(r"^(\d+),", counted.read(), re.M).group(1))
                    except (AssertionError, AttributeError, ValueError) as e:
                        return f"perf cannot count them here ({str(e).strip().splitlines()[-1] if str(e).strip() else 'no count'})"
                    result[flow][binary.name] = count / report["done"]
        tell(f"system calls, {flow}")
    return result


async def measure_all(place, rounds, only):
    """Everything that was asked for, and how long that took."""
    def wanted(group):
        return not only or group in only
    result = {"settings": [(s, await measure(place, s, rounds)) for s in SETTINGS if wanted(s.group)]}
    if wanted("burst"):
        result["burst"] = await measure_burst(place, rounds)
    if wanted("neighbour"):
        result["neighbour"] = await measure_neighbour(place, rounds)
    if wanted("start"):
        result["start"] = await measure_start(place, rounds)
    if wanted("idle"):
        tell("a minute in which nothing happens")
        result["idle"] = await measure_idle(place, BASE)
    if wanted("syscalls"):
        result["syscalls"] = await measure_syscalls(place)
    return result


def choose(args):
    """The binaries: those that were named, or ours, the floor, and the reference if it could be built."""
    native = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    reference = ROOT / "build/bench/reference"
    binaries = args.binaries or [f"ours={ROOT}/build/{native}/provider", f"floor={ROOT}/build/bench/floor"]
    if not args.binaries and reference.exists():
        binaries.append(f"reference={reference}")
    elif not args.binaries:
        tell("the reference is left out: it takes cargo to build build/bench/reference")
    return [Binary(text) for text in binaries]


def main():
    parser = argparse.ArgumentParser(description="measures provider binaries side by side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="SETTING", default=[], choices=GROUPS, help=", ".join(GROUPS))
    parser.add_argument("--write", action="store_true", help="writes RESULTS.md and the plots even if the run is not a whole one")
    parser.add_argument("binaries", nargs="*", metavar="NAME=PATH")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed, it still ends what it started
    binaries = choose(args)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        place = Place(binaries, Path(folder))
        try:
            result = asyncio.run(measure_all(place, args.rounds, args.only))
        finally:
            place.close()
    report = Report(binaries, result, args.rounds, time.monotonic() - START)
    print("\n" + report.text())
    if args.write or (args.rounds >= 5 and not args.only and not args.binaries):
        write_results(whole=report.text())
        for name, svg in report.plots():
            (HERE / name).write_text(svg)
        tell(f"written: {HERE.relative_to(ROOT)}/RESULTS.md")
    else:
        tell("RESULTS.md stays as it was: not a whole run of at least five rounds (--write writes it all the same)")
    sys.exit(1 if report.failures() - {"reference"} else 0)


if __name__ == "__main__":
    main()
