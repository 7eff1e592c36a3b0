# SPDX-License-Identifier: Apache-2.0
"""The race of hosts of 1.4.1 to 1.9: what comes to an inbox before its client has registered it is dropped (Inboxes in lattice.py).

No call may hang for that, whatever becomes of it. Here nearly every inbox is late; RACE=0.03 ./test.sh … is the whole suite with it.
"""
import asyncio
import contextlib
import os
import socket

import pytest

import wire
from lattice import CONSUMER, DEADLINE, TOP, Call, flush, in_time, until, within
from peers import Relay

TINY = TOP / "build/tiny/provider"
MANY = 300


async def in_turns(calls, at_once=8):
    """Awaits coroutines, so many at a time: all at once would keep this side too busy to lose anything."""
    done, waiting = [], list(calls)
    while waiting:
        done += await asyncio.gather(*waiting[:at_once])
        del waiting[:at_once]
    return done


async def both_links(world, **how):
    await world.start(world.host.handler_link(subscriptions=world.s("in.*")), world.host.consumer_link(), **how)


@pytest.mark.smoke
async def test_calls_of_a_component(world):
    """The handshake is repeated until the component's host has it; the result comes once it has, whatever its size."""
    await both_links(world)
    component = await world.component(serve=False, race=1)
    await world.respond(world.s("svc"), bytes.upper)
    heard = await world.listen(world.s("out"))
    bodies = [b"%d" % i for i in range(MANY)]
    calls = await asyncio.gather(*(component.publish(world.s("out"), body) for body in bodies))
    assert all(call.ok for call in calls), calls
    assert sorted([(await heard.next_msg(DEADLINE)).data for _ in bodies]) == sorted(bodies), "each is published once"
    calls = await asyncio.gather(*(component.request(world.s("svc"), b"x%d" % i, 10000) for i in range(MANY)))
    assert [call.value.body for call in calls] == [b"X%d" % i for i in range(MANY)]
    for size in (255, 256, 1000, 300_000, world.nc.max_payload - 300):
        body = os.urandom(size)
        await world.respond(world.s(f"big{size}"), lambda _, body=body: body)
        for _ in range(20):
            assert (await component.request(world.s(f"big{size}"), b"", 10000)).value.body == body
    assert component.inboxes.dropped > MANY / 20, "the race was there"
    assert (await world.provider.counts("counts: calls="))["open"] == 0


@pytest.mark.smoke
async def test_parameters_in_chunks(world):
    """Both ways: to the provider, whose handshake may be lost, and to a component, whose host may lose a chunk or their end."""
    await both_links(world)
    component = await world.component(race=1)
    heard = await world.listen(world.s("out"))
    for i in range(30):
        body = os.urandom(world.nc.max_payload - i)
        assert (await component.publish(world.s("out"), body)).ok
        assert (await heard.next_msg(DEADLINE)).data == body
        await world.nc.publish(world.s("in.x"), body)
        assert (await component.next()).body == body

    async def handled():
        counts = await world.provider.counts("counts: received=")
        return (counts["handled"], counts["open"]) == (30, 0)
    await until(handled, "all are handled")


async def test_refused_calls(world):
    """Those for which there is no slot, no link, or which do not decode: each is answered."""
    await both_links(world)
    component = await world.component(serve=False, race=1)
    await world.listen(world.s("silent"))

    async def acknowledged():  # at once: who takes 0.3 s for it is taken to be gone when slots are short
        call = await component.start("request", wire.request_params(world.s("silent"), b"", 60000))
        await call.handshake()
        await call.send_rest()
        return call
    pending = await in_turns(acknowledged() for _ in range(400))
    refused = await in_turns(component.publish(world.s("out"), b"x") for _ in range(MANY))
    assert {call.value for call in refused} == {"too many calls in flight, or too large"}
    stranger = await world.component("nobody", serve=False, race=1)
    calls = await in_turns(stranger.publish(world.s("out"), b"x") for _ in range(MANY))
    assert all(call.failed for call in calls)
    calls = [Call(component, "publish", b"\x01a\x01b\x07") for _ in range(MANY)]
    for call in calls:
        await call.start()
    assert all([(await call.finish()).failed for call in calls])
    assert component.inboxes.dropped and stranger.inboxes.dropped, "the race was there"
    assert all(call.ok is None for call in pending[:300])


async def unacknowledged(world, component, function, params):
    """Calls whose callers take no notice of the handshake yet."""
    return [await component.start(function, params) for _ in range(100)]


@pytest.mark.parametrize("how", ["shutdown", "delete", "slots"])
async def test_answered_without_acknowledgement(world, how):
    """The outcome of a call goes out whole before the provider ends, its link is gone, or its slot is needed by another."""
    await both_links(world)
    component = await world.component(serve=False)
    heard = await world.listen(world.s("out"))
    calls = await unacknowledged(world, component, "publish", wire.broker_message(world.s("out"), b"x"))
    for _ in calls:
        await heard.next_msg(DEADLINE)
    if how == "shutdown":
        await world.host.shutdown(timeout=DEADLINE)
    elif how == "delete":
        await world.host.delete(world.host.consumer_link())
        await world.provider.wait_log("deleted")
        await world.host.shutdown(timeout=DEADLINE)
    else:
        assert all([(await component.publish(world.s("out"), b"x")).ok for _ in range(MANY)])
    for call in calls:
        assert (await call.finish()).ok


@pytest.mark.release
async def test_result_without_memory(worlds, servers):
    """A long result that finds no memory to wait in goes out at once, behind what makes its host ready for it."""
    world = await worlds(servers())
    await both_links(world, binary=TINY)
    component = await world.component(serve=False, race=1)
    body = os.urandom(60_000)
    await world.respond(world.s("big"), lambda _: body)
    calls = [await component.start("request", wire.request_params(world.s("big"), b"", 10000)) for _ in range(60)]
    await flush(world.nc)
    answers = await asyncio.gather(*(call.finish() for call in calls))
    good = [call for call in answers if call.ok]
    assert len(good) > 30 and all(call.value.body == body for call in good), answers
    assert {call.value for call in answers if not call.ok} <= {"nats send error: no room for a reply of this size", "nats send error: memory is short"}


async def test_handshake_is_repeated_until_acknowledged(world):
    """With pauses that double, and no more once something has come to Rs.params."""
    await both_links(world)
    component = await world.component(serve=False, race=0)  # what is lost would leave a gap
    call = await component.start("publish", wire.broker_message(world.s("out"), b"x"))
    await call.handshake()
    await until(lambda: call.queue.qsize() >= 7, "three handshakes more, each with the result behind it")
    seen = [call.queue.get_nowait() for _ in range(7)]
    assert [(rest, bytes(msg.data)) for rest, msg in seen] == [("results", b"\0")] + [("", b""), ("results", b"\0")] * 3
    assert all(msg.reply == call.rs for rest, msg in seen if not rest)
    call.results = b"\0"
    assert (await call.finish()).ok
    counts = await world.provider.counts("counts: calls=")
    assert counts["open"] == 0


# ---------------------------------------------------------------- slow lattices, and callers that never acknowledge

class SlowRelay(Relay):
    """Passes on what the provider says at `rate` bytes a second, or drops it (0). Little of it fits into its socket."""
    rate = None

    async def open(self):
        await super().open()
        for s in self.server.sockets:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return self

    async def _pump(self, reader, writer, change):
        slow = change is self.towards
        while data := await reader.read(65536):
            if slow and self.rate:
                await asyncio.sleep(len(data) / self.rate)
            if not slow or self.rate != 0:
                writer.write(data)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()


def relay_before(world):
    return SlowRelay(world.server.address, towards=lambda data: data).open()


async def all_answered(world, count):
    async def answered():
        return (await world.provider.counts("counts: calls="))["ok"] >= count
    await until(answered, f"{count} calls are answered")


async def test_long_results_through_a_slow_lattice(world):
    """Results in chunks, acknowledged together, while other results keep the lattice's connection busy."""
    relay = await relay_before(world)
    await world.start(world.host.consumer_link(), lattice_rpc_url=relay.url)
    component = await world.component(serve=False, race=0)
    body, late = os.urandom(world.nc.max_payload), asyncio.Event()
    await world.respond(world.s("big"), lambda _: body)

    async def answer_late(msg):
        await late.wait()
        await msg.respond(body[:900_000])
    await world.nc.subscribe(world.s("late"), cb=answer_late)
    await flush(world.nc)
    calls = [await component.start("request", wire.request_params(world.s("big"), b"", 60000)) for _ in range(4)]
    others = [await component.start("request", wire.request_params(world.s("late"), b"", 60000)) for _ in range(12)]
    for call in calls + others:
        await call.handshake()
    for call in others:
        await call.send_rest()
    await all_answered(world, 4)
    relay.rate = 2e6
    late.set()
    await asyncio.sleep(0.7)
    for call in calls:
        await call.send_rest()
    answers = await asyncio.gather(*(call.result(2 * DEADLINE) for call in calls), return_exceptions=True)
    await relay.close()
    assert all(isinstance(call, Call) for call in answers), answers


@pytest.mark.release  # under an emulator the provider is no match for the flood
@pytest.mark.parametrize("kind", ["never whole", "not linked"])
async def test_refused_calls_by_the_thousand(world, kind):
    """Somebody calls without end, and acknowledges nothing: calls of other components still end. (Before padding they did so in 40 ms.)"""
    relay = await relay_before(world)
    await world.start(world.host.consumer_link(), world.host.consumer_link("good"), lattice_rpc_url=relay.url)
    relay.rate = 4e6
    good = await world.component("good", serve=False, race=0, nc=await world.client())
    host, port = world.server.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    params = b"\x07" if kind == "never whole" else wire.broker_message(world.s("out"), b"x")
    headers = b"NATS/1.0\r\nsource-id: %s\r\nlink-name: default\r\n\r\n" % (b"echo" if kind == "never whole" else b"nobody")
    subject = f"{world.lattice}.{world.host.key}.{CONSUMER}.publish".encode()
    calls = b"".join(b"HPUB %s _INBOX.flood.%d %d %d\r\n%s%s\r\n" % (subject, i, len(headers), len(headers + params), headers, params)
                     for i in range(200))
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    end = asyncio.get_running_loop().time() + 6

    async def flood():
        while True:
            writer.write(calls)
            await writer.drain()
            await asyncio.sleep(0.02)

    async def work():
        while asyncio.get_running_loop().time() < end:
            assert (await good.publish(world.s("out"), b"x")).ok
    flooding = asyncio.create_task(flood())
    try:
        await asyncio.gather(*(work() for _ in range(16)))
    finally:
        flooding.cancel()
        writer.close()
        await relay.close()


async def test_components_that_never_acknowledge(world):
    """Their calls have ended; the slots in which the outcomes wait are there for calls that have not."""
    bad = [f"bad{i}" for i in range(7)]
    await world.start(*map(world.host.consumer_link, ["good", *bad]))
    for name in bad:
        component = await world.component(name, serve=False, race=0)
        for _ in range(500):
            await component.start("publish", wire.broker_message(world.s("out"), b"x"))
    await world.listen(world.s("silent"))
    good = await world.component("good", serve=False, race=0)
    for _ in range(100):
        await good.start("request", wire.request_params(world.s("silent"), b"", 60000))
    await world.host.health()
    assert (await world.provider.counts("good.*counts: calls="))["open"] == 100


async def test_counts_add_up(world):
    await both_links(world)
    component = await world.component(serve=False)
    await unacknowledged(world, component, "publish", wire.broker_message(world.s("out"), b"x"))
    await all_answered(world, 100)
    counts = await world.provider.counts("counts: calls=")
    assert counts["calls"] == counts["ok"] + counts["failed"] + counts["open"], counts


async def test_large_result_is_not_repeated_for_ever(world):
    await both_links(world)
    component = await world.component(serve=False, race=0)
    await world.respond(world.s("big"), lambda _: bytes(1_000_000))
    call = await component.start("request", wire.request_params(world.s("big"), b"", 60000))
    await call.handshake()
    await until(lambda: call.queue.qsize() >= 9, "four handshakes more, or five results and more")
    frames = [call.queue.get_nowait() for _ in range(call.queue.qsize())]
    assert sum(len(msg.data) for _, msg in frames) < 3_000_000


async def test_result_lost_with_the_lattice_is_sent_again(worlds, server):
    """The handshake arrived, the result did not, and then the connection broke: the provider still has the result."""
    async def steps():
        world = await worlds(server)
        relay = await relay_before(world)
        await world.start(world.host.consumer_link(), lattice_rpc_url=relay.url)
        component = await world.component(serve=False, race=0)
        asked = asyncio.Queue()

        async def answer(msg):
            asked.put_nowait(msg)
        await world.nc.subscribe(world.s("svc"), cb=answer)
        await flush(world.nc)
        with within(2):  # after 2.26 s comes the last handshake: what is written behind it is taken for heard
            calls = [await component.start("request", wire.request_params(world.s("svc"), b"", 60000)) for _ in range(20)]
            for call in calls:
                await call.handshake()
            relay.rate = 0
            for _ in calls:
                await (await asked.get()).respond(b"good")
            await all_answered(world, len(calls))
            await asyncio.sleep(0.7)  # handshakes are lost, and results behind them
            for task in list(relay.tasks):
                task.cancel()
        relay.rate = None
        await world.provider.wait_log("lattice.*: connected", count=2)
        for call in calls:
            await call.send_rest()
        answers = await asyncio.gather(*(call.result() for call in calls))
        await relay.close()
        assert all(call.ok for call in answers), answers
    await in_time(steps)
