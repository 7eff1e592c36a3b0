#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How the cost of a call grows: with links, subscriptions, calls in flight, messages that wait, reconnects, and the size of bodies.

    ./test.sh bench growth [--rounds 3] [--only links queued] [--write] [NAME=PATH …]

By default ours and the reference (wasmCloud's own provider). Of a curve all processes run at the same time, those of its first point and
those of its last, and have their turns in an order that rotates; a figure is the median of the rounds. A whole run writes growth.svg, and
its part of RESULTS.md.
"""
import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from pathlib import Path

import bench
from bench import FLOWS, HERE, Place, Setting, tell, turns
from lattice import HANDLER, until
from report import GrowthReport, write_results

CALLS = 12_000  # a round, of each curve but that of bodies
WAIT_S = 60  # for what is done before the calls


class Curve:
    """What grows, and to which sizes. `setting(size)` is what runs; `prepare(run, size)` is done to it before it is measured; `both`: one
    process has links for all flows; `flat`: a call is to cost no more at any size than at the first. Sizes beyond `most` of a flow are left
    out."""

    def __init__(self, group, words, note, sizes, setting, flows=FLOWS, prepare=None, both=False, flat=True, most=None):
        self.group, self.words, self.note, self.sizes, self.setting, self.flows = group, words, note, sizes, setting, flows
        self.prepare, self.both, self.flat, self.most = prepare, both, flat, most or {}
        self.cost = {}  # flow → name → size → [µs of CPU a call]
        self.wrong = {}  # name → calls that failed or were lost

    async def measure(self, place, rounds):
        for handler in (True,) if self.both else (False, True):
            flows = [flow for flow in self.flows if self.both or (flow == "handle") == handler]
            async with contextlib.AsyncExitStack() as stack:
                runs = [(size, await stack.enter_async_context(place.running(b, self.setting(size), handler, self.both)))
                        for size in self.sizes for b in place.binaries if flows]
                for size, run in runs if self.prepare else ():
                    await self.prepare(run, size)
                for flow in flows:
                    await self.measure_flow(flow, [(size, run) for size, run in runs if size <= self.most.get(flow, size)], rounds)

    async def measure_flow(self, flow, runs, rounds):
        cost = self.cost[flow] = {}
        for size, run in runs:
            cost.setdefault(run.binary.name, {})[size] = []
        for r, order in turns(runs, rounds):
            for size, run in order:
                times = 1 if run.binary.name == "reference" else 4  # a call of which takes longer: both are measured for as long
                report = await run.load(flow, calls=times * run.setting.calls)
                cost[run.binary.name][size].append(report["cpu_us_per_call"])
                self.wrong[run.binary.name] = self.wrong.get(run.binary.name, 0) + report["errors"] + report["lost"]
            tell(f"{self.words}, {flow}, round {r + 1}: " +
                 "; ".join(f"{name} " + " ".join(f"{x[-1]:.2f}" for x in of.values()) for name, of in cost.items()) + " µs a call")


async def reconnect(run, connections):
    """Takes its two links away and puts them again, until they had so many connections. (One that is cut again and again waits for up to 30 s
    before the next attempt: a thousand times would be a night.)"""
    host, links = run.world.host, run.links()

    async def connected(newest):
        """Whether both are, in half a second."""
        for _ in range(50):
            if max(c["cid"] for c in run.server.connections()) >= newest:
                return True
            await asyncio.sleep(0.01)
    for _ in range(connections // len(links)):
        newest = max(c["cid"] for c in run.server.connections()) + len(links)
        while True:  # the reference takes no put while it has the link, and listens to the two orders apart: at times in another order
            for link in links:
                await host.delete(link)
            await host.health()
            for link in links:
                await host.put(link)
            if await connected(newest):
                break
    await run.ready()


async def fill(run, messages):
    """Messages for a component that takes them and never answers."""
    async def ignore(_message):
        pass
    await run.world.nc.subscribe(f"{run.world.lattice}.silent.{HANDLER}", cb=ignore)
    if messages:
        await run.load("handle", "--burst", calls=messages, warm=0, component="nobody", subject=run.world.s("silent"), wait=1)
    await until(lambda: not any(c["pending_bytes"] for c in run.server.connections()), "it has read all messages", WAIT_S)


def bodies(tls):
    def setting(size):
        in_flight = 64 if size < 65536 else 16 if size < 1_000_000 else 2
        return Setting("bodies", "", max(80, min(CALLS, 60_000_000 // size)), body=size, in_flight=in_flight, tls=tls)
    return setting


BODIES = [16, 128, 1024, 8192, 65536, 262144, 1_000_000]
LINKS = [1, 2, 4, 8, 16, 32]
CURVES = [
    Curve("links", "links, calls on one of them", "Nothing is called on the others.", LINKS, lambda n: Setting("", "", CALLS, beside=n - 1)),
    Curve("links", "links, calls on each in turn", "Each link has a connection: the more there are, the fewer messages share a read, a write "
          "and a turn of the loop.", LINKS, lambda n: Setting("", "", CALLS, links=n), flat=False),
    Curve("subscriptions", "subscriptions of a link", "Messages come to each in turn.", [1, 4, 16, 64, 128],
          lambda n: Setting("", "", CALLS, subjects=n), flows=("handle",)),
    Curve("in-flight", "calls in flight", "One link of ours has at most 384 requests in flight (CALLS_MAX in provider.h).", [1, 4, 16, 64, 256, 512],
          lambda n: Setting("", "", 3_000 if n == 1 else CALLS, in_flight=n), most={"request": 256}),
    Curve("queued", "messages that wait on another link", "Its component takes them and never answers.", [0, 1_000, 10_000, 100_000],
          lambda n: Setting("", "", CALLS, silent=True), prepare=fill, both=True),
    Curve("reconnects", "connections before", "Its two links were deleted and put, until they had so many connections.", [0, 10, 100, 1_000],
          lambda n: Setting("", "", CALLS), prepare=reconnect, both=True),
    Curve("bodies", "bytes of a body, plain", "64 in flight, 16 from 64 kB on, 2 of 1 MB.", BODIES, bodies(False), flat=False),
    Curve("bodies", "bytes of a body, TLS", "The same, with TLS to the lattice and to the link.", BODIES, bodies(True), flat=False),
]


def main():
    groups = list(dict.fromkeys(c.group for c in CURVES))
    parser = argparse.ArgumentParser(description="measures how the cost of a call grows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="CURVE", default=[], choices=groups, help=", ".join(groups))
    parser.add_argument("--write", action="store_true", help="writes RESULTS.md and growth.svg even if the run is not a whole one")
    parser.add_argument("binaries", nargs="*", metavar="NAME=PATH")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed, it still ends what it started
    binaries = [b for b in bench.choose(args) if not b.is_floor]  # which has one link, and no TLS
    curves = [c for c in CURVES if not args.only or c.group in args.only]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        place = Place(binaries, Path(folder))
        try:
            for curve in curves:
                asyncio.run(curve.measure(place, args.rounds))
        finally:
            place.close()
    report = GrowthReport(binaries, curves, args.rounds, time.monotonic() - bench.START)
    print("\n" + report.text())
    if args.write or (args.rounds >= 3 and not args.only and not args.binaries):
        write_results(growth_part=report.text())
        (HERE / "growth.svg").write_text(report.plot())
        tell("written: devel/bench/RESULTS.md, growth.svg")
    sys.exit(1 if any(c.wrong.get("ours") for c in curves) else 0)


if __name__ == "__main__":
    main()
