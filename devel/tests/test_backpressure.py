# SPDX-License-Identifier: Apache-2.0
"""How much is with a component at once, and where the rest waits."""
import asyncio

import pytest

import wire
from lattice import flush, until
from servers import SLOW


class Crowd:
    """A handler that counts how many messages it has at once."""

    def __init__(self):
        self.now = self.most = 0
        self.order = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, message):
        self.order.append(message.body)
        self.now += 1
        self.most = max(self.most, self.now)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.now -= 1


async def test_one_at_a_time(world):
    """max_in_flight=1: one after the other, in the order in which they came."""
    await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1"))
    crowd = Crowd()
    component = await world.component(handler=crowd)
    bodies = [b"%d" % i for i in range(500)]
    for body in bodies:
        await world.nc.publish(world.s("in"), body)
    await until(lambda: len(crowd.order) == 500, "all handled")
    assert crowd.order == bodies and crowd.most == 1
    assert component.received.qsize() == 500


@pytest.mark.parametrize("limit", [5, None], ids=["5", "default of 256"])
async def test_max_in_flight(world, limit):
    """Exactly so many are with the component; each that it finishes makes room for one more."""
    config = {"max_in_flight": str(limit)} if limit else {}
    limit = limit or 256
    await world.start(world.host.handler_link(subscriptions=world.s("in"), **config))
    component = await world.component(by_hand=True)
    for i in range(limit + 20):
        await world.nc.publish(world.s("in"), b"%d" % i)
    calls = [await component.invocation() for _ in range(limit)]
    await world.host.healthy()
    assert component.invocations.empty()
    await calls[0].handshake()
    await calls[0].answer()
    await component.invocation()
    await world.host.healthy()
    assert component.invocations.empty()


async def test_backlog(world):
    """20,000 messages that wait while the component does nothing are all handled afterwards."""
    count = int(20000 / SLOW)
    link = world.host.handler_link(subscriptions=world.s("in"), max_in_flight="8", handler_timeout_ms="60000")
    provider = await world.start(link)
    crowd = Crowd()
    crowd.gate.clear()
    await world.component(handler=crowd, style="1.0")  # the quicker to play
    outside = await world.client()
    for i in range(count):
        await outside.publish(world.s("in"), b"%0100d" % i)
    await flush(outside)
    await until(lambda: crowd.now == 8, "as many as may be are with the component")
    await world.host.healthy()
    crowd.gate.set()
    await until(lambda: len(crowd.order) >= count, "all handled", 60 * SLOW)
    assert sorted(crowd.order) == [b"%0100d" % i for i in range(count)] and crowd.most == 8
    assert not provider.log("WARN|ERROR")


async def test_full_backlog_drops_and_says_so(world):
    """What does not fit is dropped with a log line, the link's connection lives on, and so do other links."""
    links = [world.host.handler_link("slow", subscriptions=world.s("slow"), max_in_flight="1"),
             world.host.handler_link("echo", name="fast", subscriptions=world.s("fast")), world.host.consumer_link("echo")]
    provider = await world.start(*links)
    before = world.server.subscribers(world.s("slow"))
    slow = await world.component("slow", by_hand=True)
    await world.echo()
    outside = await world.client()
    for i in range(300):
        await outside.publish(world.s("slow"), b"x" * 100000)
        if i % 20 == 0:
            assert await world.ask(world.s("fast")) == b"hello"
    await flush(outside)
    assert "slow" in await provider.wait_log("drop")
    assert await world.ask(world.s("fast")) == b"hello"
    call = await slow.invocation()
    await call.handshake()
    await call.params()
    await call.answer()
    await slow.invocation()
    assert world.server.subscribers(world.s("slow")) == before


async def test_more_calls_than_slots(world):
    """Calls beyond the slots get an answer, error or not, and leave room for another component's."""
    await world.start(world.host.consumer_link("greedy"), world.host.consumer_link("modest"))
    await world.listen(world.s("silent"))
    greedy, modest = [await world.component(name, serve=False) for name in ("greedy", "modest")]
    params = wire.request_params(world.s("silent"), b"x", int(3000 * SLOW))
    calls = [await greedy.start("request", params) for _ in range(2000)]
    assert (await modest.publish(world.s("x"))).ok
    done = await asyncio.gather(*(call.finish(20 * SLOW) for call in calls))
    assert all(call.failed or call.ok is False for call in done)
    # or, where this process is too busy to acknowledge handshakes in time, one that was accepted makes room for another
    accepted = ("nats request timed out: deadline has elapsed", "nobody waits for it any more")
    assert sum(call.value in accepted for call in done if not call.failed) >= 256
    assert (await greedy.publish(world.s("x"))).ok
