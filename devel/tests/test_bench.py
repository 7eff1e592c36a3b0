# SPDX-License-Identifier: Apache-2.0
"""What `make bench` rests on: the floor does the provider's work to the byte, and build/load does what it is told."""
import asyncio
import json
import re
import sys
import urllib.request

import pytest

from lattice import CONSUMER, TOP, until
from servers import DEADLINE
from test_load import LOAD, load
from test_race import in_turns

FLOOR = TOP / "build/bench/floor"
CALLS = 2_000
pytestmark = [pytest.mark.release]


def traffic_of(server):
    """Messages and bytes that this server has received and sent so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/varz", timeout=DEADLINE) as page:
        report = json.load(page)
    return [report[name] for name in ("in_msgs", "out_msgs", "in_bytes", "out_bytes")]


async def settled(server):
    """The same, when it is no more: nats-server sums up a connection's figures now and then."""
    last, now = None, traffic_of(server)
    while now != last:
        await asyncio.sleep(0.2)
        last, now = now, traffic_of(server)
    return now


async def cost_of(world, flow):
    before = await settled(world.server)
    code, report = await load(world, flow, calls=CALLS)
    assert code == 0 and report["done"] == CALLS, report
    return [after - b for after, b in zip(await settled(world.server), before)]


class Floor:
    """The floor's process, where the world expects a provider."""

    @classmethod
    async def start(cls, world, *subjects, prefix=()):
        self = cls()
        self.process = await asyncio.create_subprocess_exec(*prefix, FLOOR, world.server.url, world.server.url, world.lattice, world.host.key,
                                                            "echo", *subjects)
        self.pid = self.process.pid
        for subject in (f"{world.lattice}.{world.host.key}.{CONSUMER}.*", *subjects):
            await until(lambda s=subject: world.server.subscribers(s), f"the floor is subscribed to {subject}")
        return self

    async def stop(self):
        self.process.terminate()
        await self.process.wait()


@pytest.mark.parametrize("flow", ["publish", "request", "handle"])
async def test_floor(worlds, servers, flow):
    """The server sees as many messages and bytes from the floor as from the provider. What either repeats, since the other side was slow,
    comes on top: the least of some rounds counts."""
    world, other = await worlds(servers()), await worlds(servers())
    subjects = [world.s("load")] if flow == "handle" else []
    link = world.host.handler_link(subscriptions=subjects[0]) if subjects else world.host.consumer_link()
    await world.start(link)
    other.lattice = other.host.lattice = world.lattice  # names of one length
    other.provider = await Floor.start(other, *subjects)
    found = []
    try:
        while not found or found[-1][0] != found[-1][1]:
            assert len(found) < 8, found
            both = await cost_of(world, flow), await cost_of(other, flow)
            both = [[round(n / CALLS) for n in one] for one in both]
            found.append([[min(pair) for pair in zip(*pairs)] for pairs in zip(both, found[-1])] if found else both)  # of each the least so far
    finally:
        await other.provider.stop()


async def test_floor_repeats(world):
    """The floor repeats its handshake, and the result, to a host that drops what comes early (test_race.py), as the provider does."""
    world.provider = await Floor.start(world)
    component = await world.component(serve=False, race=1)
    await world.respond(world.s("svc"), bytes.upper)
    bodies = [b"x%d" % i for i in range(100)]
    calls = await in_turns(component.publish(world.s("out"), body) for body in bodies)
    assert all(call.ok for call in calls), calls
    calls = await in_turns(component.request(world.s("svc"), body, 10000) for body in bodies)
    assert [call.value.body for call in calls] == [body.upper() for body in bodies]
    assert component.inboxes.dropped > 0, "the race was there"


async def start_links(world, flow, count):
    host, numbers = world.host, range(count)
    if flow == "handle":
        links = [host.handler_link(f"echo{i}", f"link{i}", subscriptions=world.s(f"load{i}")) for i in numbers]
    else:
        links = [host.consumer_link(f"echo{i}") for i in numbers]
    return await world.start(*links)


@pytest.mark.parametrize("flow", ["publish", "request", "handle"])
async def test_links_in_turn(world, flow):
    """--links: each link gets its share of the calls, those of the warm-up as well."""
    provider = await start_links(world, flow, 4)
    code, report = await load(world, flow, "--links", "4", "--warm", "400", calls=CALLS)
    assert code == 0 and report["done"] == CALLS, report
    counts = [await provider.counts(rf"echo{i} .*counts:") for i in range(4)]
    assert [c["received" if flow == "handle" else "calls"] for c in counts] == [(CALLS + 400) // 4] * 4, counts


async def test_subjects_in_turn(world):
    """--subjects: one link with many subscriptions, each of which gets its messages."""
    subjects = [world.s(f"load{i}") for i in range(5)]
    await world.start(world.host.handler_link(subscriptions=",".join(subjects)))
    heard = [await world.listen(subject) for subject in subjects]
    code, report = await load(world, "handle", "--subjects", "5", calls=CALLS)
    assert code == 0 and report["done"] == CALLS, report
    await until(lambda: all(s.pending_msgs == CALLS // 5 for s in heard), "each subject had its share")


async def test_report(world):
    """What it says of the process: its CPU time and switches are of the calls alone, its own CPU time beside them."""
    provider = await world.start(world.host.consumer_link())
    _, report = await load(world, "publish", "--trace", "1", calls=20_000)
    assert 0.2 < report["cpu_us_per_call"] < 100 and 0.2 < report["load_cpu_us_per_call"] < 100, report
    assert 0 < report["context_switches_per_call"] < 4 and report["p50_us"] <= report["p99_us"] <= report["p999_us"], report
    times, sizes = zip(*report["trace_ms_kb"])
    assert len(times) > 10 and sorted(times) == list(times) and max(sizes) <= provider.status("VmHWM"), report
    assert LOAD.exists()


@pytest.mark.parametrize("args", [["3", "--stood", "0", "--away", "1"], ["--paper", "100"]], ids=["in truth", "on paper"])
async def test_fleet(args):
    """`make fleet`: all come back, and it is said when; on paper as well."""
    process = await asyncio.create_subprocess_exec(sys.executable, TOP / "devel/bench/fleet.py", *args, stdout=asyncio.subprocess.PIPE)
    out = (await asyncio.wait_for(process.communicate(), 6 * DEADLINE))[0].decode()
    assert process.returncode == 0
    assert re.search(r"gateways, server away for .* back after [\d.]+ s in the median, [\d.]+ s the last; in the busiest second \d+ gateways", out), out
    assert "--paper" in args or re.search(r"resident memory of each, in the median: \d+ kB before, \d+ kB after", out), out
