#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A fleet of gateways whose server goes away and comes back: `make fleet N=150`, or on paper `make fleet PAPER=10000`.

Starts so many providers against one nats-server, each with a lattice of its own and one link; stops the server for --away
seconds; and prints when they are back (both connections), how many came back in the busiest second, and the memory of each.
On paper the same is computed from the pauses of provider.h, for a server that takes everybody at once: retry_at() of provider.c.
"""
import argparse
import asyncio
import os
import random
import re
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests/harness"))
from lattice import Host, Provider  # noqa: E402
from servers import DEADLINE, NatsServer  # noqa: E402

CONNECTED = re.compile(r"^(\S+)Z INFO +(?:lattice|link) .*: connected to ")


def busiest_second(times):
    """The most of these moments within any one second."""
    times, end, most = sorted(times), 0, 0
    for at, t in enumerate(times):
        while end < len(times) and times[end] < t + 1:
            end += 1
        most = max(most, end - at)
    return most


def tell(what, gateways, connections):
    print(f"{what}: back after {statistics.median(gateways):.1f} s in the median, {max(gateways):.1f} s the last; in the busiest second "
          f"{busiest_second(gateways)} gateways, {busiest_second(connections)} connections")


# ---------------------------------------------------------------- on paper

def pauses():
    text = (HERE.parents[1] / "provider.h").read_text()
    return [int(re.search(rf"{name} = (\d+)", text).group(1)) / 1000 for name in ("RETRY_MIN_MS", "RETRY_MAX_MS")]


def back(away, least, most):
    """When a connection is back that was lost as the server went away for so long; each attempt before fails at once."""
    t = failures = 0
    while t < away:
        pause = min(least * 2**min(failures, 10), most)
        t += pause / 2 + random.uniform(0, pause / 2)
        failures += 1
    return t - away


def paper(count):
    least, most = pauses()
    for away in (15, 60, 600):
        gateways = [[back(away, least, most) for _ in range(2)] for _ in range(count)]
        tell(f"on paper, {count} gateways, server away for {away} s", [max(g) for g in gateways], [t for g in gateways for t in g])


# ---------------------------------------------------------------- in truth

def moments(provider, since):
    """When its connections came up, in seconds after that moment."""
    found = [CONNECTED.match(line) for line in provider.lines]
    times = [datetime.fromisoformat(m.group(1) + "+00:00").timestamp() - since for m in found if m]
    return [t for t in times if t > 0]


async def until_connected(fleet, since, timeout):
    """Waits until each has both of its connections; gives when they had, of each."""
    end = time.monotonic() + timeout
    while not all(len(moments(p, since)) >= 2 for p in fleet):
        assert time.monotonic() < end, f"{sum(len(moments(p, since)) < 2 for p in fleet)} of {len(fleet)} are not connected"
        await asyncio.sleep(0.2)
    return [moments(p, since)[:2] for p in fleet]


def memory(fleet):
    return statistics.median(p.status("VmRSS") for p in fleet)


async def fleet_of(count, stood, away, folder):
    server, fleet = NatsServer(dir=folder).start(), []
    try:
        began = time.time() - 1
        for i in range(count):
            host = Host(None, f"fleet{i}", server.url)
            fleet.append(await Provider.start({**host.data, "link_definitions": [host.handler_link(subscriptions=f"in.{i}")]}))
        await until_connected(fleet, began, DEADLINE + count)
        before = memory(fleet)
        await asyncio.sleep(stood)
        server.stop()
        await asyncio.sleep(away)
        server.start()
        since = time.time()
        came = await until_connected(fleet, since, 60 + count)
        tell(f"{count} gateways, server away for {away} s", [max(times) for times in came], [t for times in came for t in times])
        print(f"resident memory of each, in the median: {before:.0f} kB before, {memory(fleet):.0f} kB after")
    finally:
        for provider in fleet:
            provider.process.kill()
        await asyncio.gather(*(provider.wait_exit() for provider in fleet))
        server.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=150, help="providers")
    parser.add_argument("--away", type=float, default=15, help="seconds without a server")
    parser.add_argument("--stood", type=float, default=12, help="before, with it: after a third of RETRY_MAX_MS pauses begin anew")
    parser.add_argument("--paper", type=int, help="compute it for so many, and start none")
    options = parser.parse_args()
    random.seed(int(os.environ.get("SEED", 1)))
    if options.paper:
        paper(options.paper)
        return
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        asyncio.run(fleet_of(options.count, options.stood, options.away, folder))


if __name__ == "__main__":
    main()
