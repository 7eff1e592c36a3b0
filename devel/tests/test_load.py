# SPDX-License-Identifier: Apache-2.0
"""Many calls: none fails, none is lost, and the provider's memory does not grow. Driven by build/load, since Python is too slow."""
import asyncio
import json
import re
import signal

import pytest

from lattice import TOP
from servers import DEADLINE

LOAD = TOP / "build/load"
CALLS = 50_000
PAGES = 32  # kB: a moment that needs one block more than any before touches a page; seen: one page, once in some runs
BUFFERS = 128  # kB by which the write buffers of nats.c may have grown meanwhile, for a batch that was larger than all before
pytestmark = [pytest.mark.release, pytest.mark.alone]


async def load(world, flow, *options, calls=CALLS, body=128, in_flight=64):
    """Runs build/load against the world's provider, and gives (exit code, its report)."""
    assert LOAD.exists(), "build/load is missing: make build/load"
    arguments = {"flow": flow, "calls": calls, "in-flight": in_flight, "body": body, "lattice": world.server.url,
                 "link": world.server.url, "prefix": world.lattice, "key": world.host.key, "component": "echo",
                 "subject": world.s("load"), "pid": world.provider.pid}
    process = await asyncio.create_subprocess_exec(
        LOAD, *(text for name, value in arguments.items() for text in (f"--{name}", str(value))), *options,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        out, err = await asyncio.wait_for(process.communicate(), max(120, calls / 2_000))
    finally:
        if process.returncode is None:
            process.kill()
    assert out, f"exit code {process.returncode}: {err.decode()}"
    print(out.decode().strip(), err.decode().strip())
    return process.returncode, json.loads(out)


async def start(world, flow, **how):
    link = world.host.handler_link(subscriptions=world.s("load")) if flow == "handle" else world.host.consumer_link()
    return await world.start(link, **how)


@pytest.mark.parametrize("flow", ["publish", "request", "handle"])
async def test_many_calls(world, flow):
    """50,000 calls with 64 in flight: no error, none lost, and no growth of resident memory from the 10,000th on (a byte a call would show)."""
    await start(world, flow)
    code, report = await load(world, flow)
    assert code == 0 and report["done"] == CALLS and not report["errors"] and not report["lost"], report
    settled, *later = report["rss_kb"][1:]
    assert len(later) == 4 and max(later) <= settled + PAGES, report["rss_kb"]


async def arena(provider):
    """What the provider answers to SIGUSR1 about its memory: (kB of the arena in use, at most so far, log lines lost)."""
    pattern = r"so far: (\d+) kB of the arena in use, at most (\d+); \d+ blocks taken, (\d+) log lines lost"
    before = len(provider.log(pattern))
    provider.process.send_signal(signal.SIGUSR1)
    return tuple(map(int, re.search(pattern, await provider.wait_log(pattern, count=before + 1)).groups()))


@pytest.mark.long
@pytest.mark.parametrize("flow", ["publish", "request", "handle"])
async def test_a_million_calls(world, flow):
    """1,000,000 calls with 64 in flight: no error, none lost, and from the 10,000th to the last neither resident memory nor the arena grows (48 bytes in
    a thousand calls would show in what is in use of it)."""
    provider = await start(world, flow)
    assert (await load(world, flow, calls=10_000))[0] == 0
    before = await arena(provider)
    code, report = await load(world, flow, calls=1_000_000)
    after = await arena(provider)
    print(f"{flow}: kB of the arena in use, at most, log lines lost: {before} before, {after} after")
    assert code == 0 and report["done"] == 1_000_000 and not report["errors"] and not report["lost"], report
    assert after[0] <= before[0] + PAGES and after[1] <= before[1] + BUFFERS and after[2] == 0
    # what a busier moment touches for the first time is resident then: buffers, and slots of calls, of which there are 1,024
    assert max(report["rss_kb"]) <= report["rss_kb"][1] + BUFFERS and len(report["rss_kb"]) == 101, report["rss_kb"]


@pytest.mark.parametrize("flow", ["publish", "request", "handle"])
async def test_large_bodies(world, flow):
    """Bodies of half a megabyte, a few at a time."""
    await start(world, flow)
    code, report = await load(world, flow, calls=200, body=2**19, in_flight=4)
    assert code == 0 and report["done"] == 200, report


async def blocks_taken(world, flow, calls):
    """Blocks that were taken from the arena through so many calls, start and stop included: the provider's last line says it."""
    provider = await start(world, flow)
    await load(world, flow, calls=calls)
    assert await provider.stop() == 0
    return int(re.search(r"(\d+) blocks taken", provider.lines[-1]).group(1))


@pytest.mark.parametrize("flow", ["publish", "request", "handle"])
async def test_allocations(worlds, server, flow):
    """A call takes no block from the arena's lists: what nats.c wants for a message is among the loop's spare blocks."""
    few, many = [await blocks_taken(await worlds(server), flow, calls) for calls in (1_000, 11_000)]
    print(f"{flow}: {(many - few) / 10_000:.3f} blocks of the arena a call")
    assert (many - few) / 10_000 < 0.01


def dropped(provider):
    """Messages that the log says were dropped: the first few line by line, the rest as a count when some seconds are over."""
    told = [re.search(r"(?:(\d+) more lines like this.*: )?(\d+) messages? dropped", line) for line in provider.lines]
    return sum(int(found.group(1) or 1) * int(found.group(2)) for found in told if found)


async def test_burst(world):
    """50,000 small messages at once: each is handled, or counted in the log as dropped."""
    provider = await start(world, "handle")
    idle = provider.status("VmRSS")
    _, report = await load(world, "handle", "--burst", "--wait", "3")
    assert not report["errors"], report
    try:
        async with asyncio.timeout(DEADLINE):
            while report["done"] + dropped(provider) < CALLS:
                async with provider.news:
                    await provider.news.wait()
    except TimeoutError:
        pass
    print(f"{report['done']} handled, {dropped(provider)} dropped; resident: idle {idle} kB, at most {provider.status('VmHWM')} kB")
    assert report["done"] + dropped(provider) == CALLS, "\n".join(provider.lines[-10:])
