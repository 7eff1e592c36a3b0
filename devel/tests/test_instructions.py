# SPDX-License-Identifier: Apache-2.0
"""Instructions that the provider's process executes for one call, counted by valgrind: a ceiling for each flow, and a ratio to the floor
(devel/bench/floor.c), the least that a program on nats.c can do.

Unlike time they do not depend on the machine or on what else it does: ten runs lie within 0.6 %, idle or with three busy
loops beside them. With one call in flight they lie within 1.4 %, since then a turn of the loop has one message or two as
it happens. A processor without AVX2 adds 3 %, in glibc's functions on strings. The start does not count: it is the same in
both runs, whose difference is taken. What the kernel does is not seen. Which functions they are: devel/bench/NOTES.md.
"""
import asyncio
import platform
import re
import shutil

import pytest

from lattice import HANDLER, until
from test_bench import Floor
from test_load import load, start

CEILINGS = {"publish": 8_200, "request": 10_200, "handle": 9_250}  # 6 % above what was measured; lower them with the counts
TO_THE_FLOOR = 0.65  # messages are read and written past nats.c: deps/parser_guard.c, message_write()
FEW, MANY, BODY, IN_FLIGHT = 1_000, 6_000, 128, 64
WAITING = 10_000  # messages, in test_instructions_do_not_grow
pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the ceilings are counts of amd64's instructions"),
]


def valgrind(log):
    return [shutil.which("valgrind"), "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", f"--log-file={log}"]


def counted(log):
    return int(re.search(r"I +refs: +([\d,]+)", log.read_text()).group(1).replace(",", ""))


async def instructions(world, flow, calls, log, floor):
    """What a process executes from its start to its end, with so many calls between: a provider's, or the floor's."""
    if floor:
        world.provider = provider = await Floor.start(world, *[world.s("load")] * (flow == "handle"), prefix=valgrind(log))
    else:
        provider = await start(world, flow, prefix=valgrind(log))
    code, report = await load(world, flow, calls=calls, body=BODY, in_flight=IN_FLIGHT)
    assert code == 0 and report["done"] == calls, report
    assert await provider.stop() == (None if floor else 0), "\n".join(provider.lines[-10:])
    return counted(log)


@pytest.mark.parametrize("flow", CEILINGS)
async def test_instructions(worlds, server, tmp_path, flow):
    """Calls of 128 bytes, 64 in flight."""
    async def of_a_call(floor):
        few, many = [await instructions(await worlds(server), flow, calls, tmp_path / f"{calls}", floor) for calls in (FEW, MANY)]
        return (many - few) / (MANY - FEW)
    ours, floor = await of_a_call(False), await of_a_call(True)
    print(f"{flow}: {ours:.0f} instructions a call, at most {CEILINGS[flow]}; the floor {floor:.0f}, {ours / floor:.2f} of it")
    assert ours <= CEILINGS[flow]
    assert ours <= TO_THE_FLOOR * floor


async def instructions_beside(world, calls, log):
    """The same, with so many calls of publish and of handle-message, in a provider that has 32 links and 127 subscriptions, and a queue of
    messages for a component that does not answer."""
    subjects = [world.s("load"), *(world.s(f"more{i}") for i in range(96))]
    others = [world.host.handler_link(f"other{i}", f"other{i}", subscriptions=world.s(f"other{i}"), max_in_flight="1", handler_timeout_ms="1000")
              for i in range(30)]
    provider = await world.start(world.host.handler_link(subscriptions=",".join(subjects)), world.host.consumer_link(), *others, prefix=valgrind(log))
    await world.nc.subscribe(f"{world.lattice}.other0.{HANDLER}")
    for _ in range(WAITING):
        await world.nc.publish(world.s("other0"), bytes(BODY))
    await until(lambda: waiting(provider), "the messages wait")
    for flow, subject in (("publish", "out"), ("handle", "load")):
        code, report = await load(world, flow, "--subject", world.s(subject), calls=calls, body=BODY, in_flight=IN_FLIGHT)
        assert code == 0 and report["done"] == calls, report
    assert await provider.stop() == 0, "\n".join(provider.lines[-10:])
    return counted(log)


async def waiting(provider):
    """Whether the queue holds all but the few that the component had. Seldom asked: each answer is a line for each link, and counts."""
    await asyncio.sleep(0.2)
    return (await provider.counts("other0 .*counts:"))["open"] > WAITING - 100


async def test_instructions_do_not_grow(worlds, server, tmp_path):
    """The ceilings hold beside 31 links, with 127 subscriptions, and 10,000 messages that wait on another link: a call costs at most a tenth
    more than was measured without them (the ceilings are 6 % above that)."""
    few, many = [await instructions_beside(await worlds(server), calls, tmp_path / f"{calls}") for calls in (FEW, MANY)]
    each, most = (many - few) / (MANY - FEW), 1.1 / 1.06 * (CEILINGS["publish"] + CEILINGS["handle"])
    print(f"a publish and a handle-message: {each:.0f} instructions, at most {most:.0f}")
    assert each <= most
