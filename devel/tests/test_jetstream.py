# SPDX-License-Identifier: Apache-2.0
"""Pull consumers of JetStream: at least once, no faster than the component, and in words when something is wrong."""
import asyncio
import json

import nats.errors
import nats.js.errors
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from lattice import OWN_MEMORY, Trap, flush, in_time, run_provider, until, within
from servers import DEADLINE, SLOW

STREAM, CONSUMER = "ORDERS", "worker"


class Stream:
    """A stream on a server of its own, and its consumers, as their owner sees them."""

    def __init__(self, server, js):
        self.server, self.js = server, js

    async def consumer(self, name=CONSUMER, **config):
        config.setdefault("ack_policy", AckPolicy.EXPLICIT)
        await self.js.add_consumer(STREAM, ConsumerConfig(durable_name=name, **config))

    async def put(self, *bodies, subject="orders.new", headers=None):
        for body in bodies:
            await self.js.publish(subject, body, headers=headers)

    async def info(self, name=CONSUMER):
        return await self.js.consumer_info(STREAM, name)

    async def settled(self, count, name=CONSUMER, timeout=DEADLINE):
        """Waits until so many messages are acknowledged, and none is open."""
        impatient = self.js._nc.jetstream(timeout=2 * SLOW)  # what a server that goes away takes with it is asked for again

        async def done():
            try:
                info = await impatient.consumer_info(STREAM, name)
            except (nats.errors.Error, nats.js.errors.Error):
                return False  # the server is away
            return info.ack_floor.stream_seq >= count and info.num_ack_pending == 0
        await until(done, f"{count} messages acknowledged", timeout)


@pytest.fixture
async def stream(world, servers, folder):
    server = servers('jetstream { store_dir: "%s", max_mem: 64M, max_file: 256M }' % (folder / f"js-{world.lattice}"))
    nc = await world.client(server)
    js = nc.jetstream(timeout=DEADLINE)
    await js.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"]))
    return Stream(server, js)


def link(world, stream, *consumers, component="echo", url=None, **config):
    """A handler link that takes messages from consumers, names or whole entries."""
    entries = [c if isinstance(c, dict) else {"stream": STREAM, "consumer": c} for c in consumers or [CONSUMER]]
    return world.host.handler_link(component, url=url or stream.server.url, consumers=json.dumps(entries), **config)


async def counts(provider):
    """The provider's own counts of its only handler link, asked for by SIGUSR1."""
    return await provider.counts("received=")


# ---------------------------------------------------------------- the main path

@pytest.mark.smoke
async def test_handled_and_acknowledged(world, stream):
    """What is in the stream already and what comes later: each message once, with its subject and no reply-to, then acknowledged."""
    await stream.consumer()
    await stream.put(*(b"%d" % i for i in range(600)))
    component = await world.component()
    provider = await world.start(link(world, stream))
    messages = [await component.next() for _ in range(600)]
    assert sorted(int(m.body) for m in messages) == list(range(600))
    assert {(m.subject, m.reply_to) for m in messages} == {("orders.new", None)}
    await stream.settled(600)
    await stream.put(b"later", subject="orders.late", headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    late = await component.next()
    assert (late.subject, late.body) == ("orders.late", b"later") and late.headers["traceparent"].startswith("00-0af7")
    await stream.settled(601)
    told = await counts(provider)
    assert told["received"] == told["handled"] == 601 and told["open"] == 0
    assert not provider.log(" (WARN|ERROR) ")


async def test_order_with_one_at_a_time(world, stream):
    await stream.consumer()
    bodies = [b"%d" % i for i in range(200)]
    await stream.put(*bodies)
    await world.start(link(world, stream, max_in_flight="1"))
    component = await world.component()
    assert [(await component.next()).body for _ in bodies] == bodies
    await stream.settled(200)


async def test_acknowledged_only_after_ok(world, stream):
    """While the component works nothing is acknowledged, and no more is asked for than it may have."""
    await stream.consumer()
    await stream.put(*(b"%d" % i for i in range(20)))
    await world.start(link(world, stream, max_in_flight="5"))
    component = await world.component(by_hand=True)
    calls = [await component.invocation() for _ in range(5)]
    info = await stream.info()
    assert (info.num_ack_pending, info.ack_floor.stream_seq, info.num_pending) == (5, 0, 15)
    assert component.invocations.empty()
    await calls[0].handshake()
    await calls[0].params()
    await calls[0].answer()
    await component.invocation()
    assert (await stream.info()).num_ack_pending == 5


@pytest.mark.parametrize("style", ["1.9", "1.0"])
@pytest.mark.parametrize("failure, count", [("error", "error"), ("trap", "trap"), ("timeout", "timeout")])
async def test_failures_come_back(world, stream, failure, count, style):
    """An error, a trap, no answer in time: delivered again, later each time, until it succeeds."""
    await stream.consumer()
    tries = []

    async def handler(message):
        tries.append(asyncio.get_running_loop().time())
        if len(tries) >= 3:
            return None
        if failure == "error":
            return "not today"
        if failure == "trap":
            raise Trap
        await asyncio.sleep(1000)
    # long enough that no call is over before the handler has noted its time
    provider = await world.start(link(world, stream, handler_timeout_ms=str(int(1500 * SLOW))))
    await world.component(handler=handler, style=style)
    await stream.put(b"x")
    await stream.settled(1, timeout=20 * SLOW)
    first, second = tries[1] - tries[0], tries[2] - tries[1]
    assert first >= 0.9 and second >= 1.9, "pauses of 1 and 2 s"
    told = await counts(provider)
    assert told[count] == 2 and told["handled"] == 1 and told["received"] == 3


async def test_progress(world, stream):
    """A component that takes longer than ack_wait keeps its message: it is delivered once."""
    await stream.consumer(ack_wait=3)
    await world.start(link(world, stream, handler_timeout_ms="60000"))
    component = await world.component(by_hand=True)
    await stream.put(b"slow")
    call = await component.invocation()
    await call.handshake()
    await call.params()
    end = asyncio.get_running_loop().time() + 7  # the time itself is under test: more than twice ack_wait
    await until(lambda: asyncio.get_running_loop().time() > end, "7 s have passed")
    info = await stream.info()
    assert component.invocations.empty() and info.num_ack_pending == 1 and info.num_redelivered == 0
    await call.answer()
    await stream.settled(1)


async def test_max_deliver(world, stream):
    """A message that fails as often as max_deliver allows is given up, and the log says which."""
    await stream.consumer(max_deliver=2)
    tries = []

    async def handler(message):
        tries.append(message.body)
        return "never" if message.body == b"bad" else None
    provider = await world.start(link(world, stream))
    await world.component(handler=handler)
    await stream.put(b"bad", b"good")
    assert "message 1 of stream ORDERS" in await provider.wait_log("ERROR.*last of 2 deliveries")
    await until(lambda: tries.count(b"bad") == 2 and b"good" in tries, "tried twice")
    assert (await stream.js.get_msg(STREAM, 1)).data == b"bad", "it stays in the stream"


async def test_nobody_runs_the_component(world, stream):
    """While nobody runs it, messages are kept: not one of two deliveries is used up, and all are handled in the end."""
    await stream.consumer(max_deliver=2)
    await stream.put(*(b"%d" % i for i in range(50)))
    provider = await world.start(link(world, stream))
    await provider.wait_log("nobody runs", count=3)
    component = await world.component()
    bodies = {(await component.next()).body for _ in range(50)}
    assert len(bodies) == 50
    await stream.settled(50)
    assert (await stream.info()).num_redelivered == 0


async def test_several_consumers(world, stream):
    """An idle consumer keeps no slot from a busy one; each has its own messages."""
    await stream.consumer("idle", filter_subject="orders.idle")
    await stream.consumer("busy", filter_subject="orders.busy")
    await world.start(link(world, stream, "idle", "busy", max_in_flight="2"))
    component = await world.component()
    await stream.put(*(b"%d" % i for i in range(100)), subject="orders.busy")
    assert sorted([int((await component.next()).body) for _ in range(100)]) == list(range(100))
    await stream.put(b"last", subject="orders.idle")
    assert (await component.next()).body == b"last"


async def test_beside_subscriptions(world, stream):
    """A link may have both; plain messages keep their reply subject and are not acknowledged."""
    await stream.consumer()
    provider = await world.start(link(world, stream, subscriptions="plain"))
    await until(lambda: stream.server.subscribers("plain"), "subscribed")
    component = await world.component()
    await stream.put(b"stored")
    await stream.js._nc.publish("plain", b"plain", reply="somewhere")
    got = sorted([await component.next() for _ in range(2)], key=lambda m: m.body)
    assert [(m.body, m.subject, m.reply_to) for m in got] == [(b"plain", "plain", "somewhere"), (b"stored", "orders.new", None)]
    await stream.settled(1)
    await until(provider_counts(provider, handled=2), "both handled")


def provider_counts(provider, **wanted):
    async def reached():
        told = await counts(provider)
        return all(told[name] == value for name, value in wanted.items())
    return reached


async def test_nobody_acknowledges_for_us(world, stream):
    """A message that somebody publishes with the reply subject of an acknowledgement is refused by the server itself: what the
    component still has stays unacknowledged. (provider.c relies on it: see consumer_of.)"""
    await stream.consumer()
    provider = await world.start(link(world, stream, subscriptions="plain"))
    await until(lambda: stream.server.subscribers("plain"), "subscribed")
    component = await world.component(by_hand=True)
    await stream.put(b"stored")
    await component.invocation()
    nc = stream.js._nc
    await nc.publish("plain", b"forged", reply=f"$JS.ACK.{STREAM}.{CONSUMER}.1.1.1.1700000000000000000.0")
    await nc.publish("plain", b"after")
    call = await component.invocation()
    await call.handshake()
    assert (await call.params()).body == b"after"
    assert (await stream.info()).num_ack_pending == 1 and (await counts(provider))["received"] == 2


@pytest.mark.parametrize("limit", [{"max_messages": 3}, {"max_bytes": 2000}], ids=str)
async def test_limits_of_a_request(world, stream, limit):
    """max_messages and max_bytes bound what one request brings; everything still comes."""
    await stream.consumer()
    asked = await world.listen(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}", nc=stream.js._nc)
    await stream.put(*(b"%0500d" % i for i in range(50)))
    await world.start(link(world, stream, {"stream": STREAM, "consumer": CONSUMER, **limit}))
    component = await world.component()
    for _ in range(50):
        await component.next()
    await stream.settled(50)
    first = json.loads((await asked.next_msg(DEADLINE)).data)
    key = {"max_messages": "batch"}.get(*limit, *limit)
    assert first[key] == limit[next(iter(limit))] and first["expires"] > 2 * first["idle_heartbeat"] > 0


async def test_large_messages(world, stream):
    """Bodies of nearly max_payload, more of them than memory has room for at once."""
    await stream.consumer()
    bodies = [bytes([i]) * 1_000_000 for i in range(16)]
    await stream.put(*bodies)
    provider = await world.start(link(world, stream, handler_timeout_ms="60000"))
    component = await world.component()
    assert {(await component.next(30 * SLOW)).body for _ in bodies} == set(bodies)
    await stream.settled(16, timeout=30 * SLOW)
    if OWN_MEMORY:
        assert provider.status("VmHWM") < 24 * 1024


# ---------------------------------------------------------------- what goes wrong

async def test_missing_consumer(world, stream):
    """Log and health name it; when somebody makes it, it is used."""
    provider = await world.start(link(world, stream), ready=False)
    await world.host.unhealthy(f"echo.*{CONSUMER}.*{STREAM}.*consumer not found")
    await provider.wait_log(f"ERROR.*{CONSUMER}.*{STREAM}.*consumer not found")
    await stream.consumer()
    component = await world.component()
    await stream.put(b"x")
    await component.next()
    await world.host.healthy()


async def test_deleted_consumer(world, stream):
    """One that is deleted while it is in use is told, and used again when it is back."""
    await stream.consumer()
    await world.start(link(world, stream))
    component = await world.component()
    await stream.put(b"before")
    await component.next()
    await stream.js.delete_consumer(STREAM, CONSUMER)
    await world.host.unhealthy(f"{CONSUMER}.*(deleted|not found)")
    await stream.consumer()
    assert (await component.next()).body == b"before", "the new consumer begins at the beginning"
    await world.host.healthy()


@pytest.mark.parametrize("config, words", [(dict(ack_policy=AckPolicy.ALL), "ack_policy"), (dict(deliver_subject="push.here"), "push")], ids=str)
async def test_consumer_that_cannot_be_used(world, stream, config, words):
    await stream.consumer(**config)
    await world.start(link(world, stream), ready=False)
    await world.host.unhealthy(f"{CONSUMER}.*{words}")


async def test_server_without_jetstream(world):
    await world.start(world.host.handler_link(consumers='[{"stream":"S","consumer":"C"}]'), ready=False)
    await world.host.unhealthy("consumer C of stream S.*not enabled")


async def test_message_larger_than_max_bytes(world, stream):
    """It blocks the consumer, and that is said."""
    await stream.consumer()
    await stream.put(b"x" * 5000)
    await world.start(link(world, stream, {"stream": STREAM, "consumer": CONSUMER, "max_bytes": 1000}), ready=False)
    await world.component()
    await world.host.unhealthy("larger than max_bytes")


async def test_check(world, tmp_path):
    """--check names the consumers of a link."""
    path = tmp_path / "link.json"
    path.write_text(json.dumps(world.host.handler_link(consumers='[{"stream":"S","consumer":"C"}]')))
    code, out, _ = await run_provider("--check", path)
    assert code == 0 and "consumer      C of stream S" in out


@pytest.mark.parametrize("text", ["nonsense", "{}", "[1]", '[{"stream":"S"}]', '[{"stream":"S.x","consumer":"C"}]', '[{"stream":"S","consumer":"*"}]',
                                  '[{"stream":"S","consumer":"C","max_messages":0}]', '[{"stream":"S","consumer":"C","max_bytes":"1"}]',
                                  '[{"stream":"S","consumer":"C"},{"stream":"S","consumer":"C"}]', json.dumps([{"stream": "S", "consumer": f"C{i}"} for i in range(9)])])
async def test_wrong_entries(world, text):
    await world.start(world.host.handler_link(consumers=text), ready=False)
    await world.host.unhealthy("echo.*consumers")


# ---------------------------------------------------------------- coming and going

async def test_stopping_gives_back(worlds, server, stream):
    """An order to shut down: what the component has is finished and acknowledged, the rest is free for others at once."""
    await stream.consumer(ack_wait=600)
    await stream.put(*(b"%d" % i for i in range(10)))

    async def steps():
        world = await worlds(server)
        provider = await world.start(link(world, stream, max_in_flight="1"))
        component = await world.component(by_hand=True)
        call = await component.invocation()
        await call.handshake()
        await call.params()
        before = (await stream.info()).ack_floor.stream_seq
        with within(0.2):  # provider.h, SHUTDOWN_MS
            order = asyncio.create_task(world.host.shutdown())
            await provider.wait_log("stopping")
            await call.answer()
            await flush(world.nc)
        assert await order == b"shutting down"
        assert await provider.wait_exit() == 0
        info = await stream.info()
        assert info.ack_floor.stream_seq == before + 1 and info.num_ack_pending == 0
    await in_time(steps)


async def test_deleted_link_gives_back(world, stream):
    """A link that is deleted while nobody runs its component returns what it kept."""
    await stream.consumer(ack_wait=600)
    await stream.put(*(b"%d" % i for i in range(10)))
    handler = link(world, stream)
    provider = await world.start(handler)
    await provider.wait_log("nobody runs")
    await world.host.delete(handler)
    await provider.wait_log("counts: .*returned=10 .*open=0")
    await world.put(link(world, stream))
    component = await world.component()
    assert len({(await component.next()).body for _ in range(10)}) == 10
    await stream.settled(10)


async def test_server_restarts(world, stream):
    """nats-server ends with -9 while messages are in work: in the end, each is handled and acknowledged."""
    await stream.consumer(ack_wait=2)
    await stream.put(*(b"%d" % i for i in range(300)))
    await world.start(link(world, stream, max_in_flight="20"))
    bodies = set()

    async def handler(message):
        bodies.add(message.body)
        await asyncio.sleep(0.01)
    await world.component(handler=handler)
    await until(lambda: len(bodies) > 60, "some are handled")
    stream.server.stop().start()
    await stream.settled(300, timeout=40 * SLOW)
    assert len(bodies) == 300


async def test_outcome_waits_for_the_link(world, stream):
    """The connection breaks while the component works: what it did is told by the next connection, and nothing comes twice."""
    await stream.consumer()
    await stream.put(b"good", b"bad")
    provider = await world.start(link(world, stream))
    component = await world.component(by_hand=True)
    calls = {}
    for _ in range(2):
        call = await component.invocation()
        await call.handshake()
        calls[(await call.params()).body] = call
    stream.server.stop()
    await provider.wait_log("connection lost")
    await calls[b"good"].answer()
    await calls[b"bad"].answer("not today")
    await until(lambda: provider.log("answered a message with an error"), "the results are here")
    assert (await counts(provider))["open"] == 2
    stream.server.start()
    again = await component.invocation(20 * SLOW)
    await again.handshake()
    assert (await again.params()).body == b"bad"
    await again.answer()
    await stream.settled(2)
    told = await counts(provider)
    assert (told["received"], told["handled"], told["error"], told["open"]) == (3, 2, 1, 0) and component.invocations.empty()


async def test_provider_is_killed(world, stream):
    """What it had when it was killed comes to the next one after ack_wait."""
    await stream.consumer(ack_wait=1)
    await stream.put(*(b"%d" % i for i in range(20)))
    provider = await world.start(link(world, stream))
    component = await world.component(by_hand=True)
    for _ in range(20):
        await component.invocation()
    await provider.stop(9)
    world.providers.remove(provider)
    await component.close()
    await world.start(link(world, stream))
    again = await world.component()
    bodies = set()
    while len(bodies) < 20:  # one may come twice: on a busy machine, ack_wait is over before its acknowledgement is there
        bodies.add((await again.next()).body)
    await stream.settled(20)
