# SPDX-License-Identifier: Apache-2.0
"""Paths that are slow, late, or stand still for a while, and a provider that does: who takes bytes is alive, and what was answered ok arrives."""
import asyncio
import contextlib
import json
import signal
import ssl

import pytest

import wire
from lattice import TooLate, flush, in_time, until, within
from servers import DEADLINE, SLOW, Proxy, tls_block
from traffic import make_stream

PING = 2  # s; a path that is this process stands still for a moment when the machine is busy
BUSY = 20_000  # bytes a second: little enough that more than two ping intervals pass, and enough that each has signs of life


@pytest.fixture
def proxies():
    """Makes paths: proxies(port, rate=…, delay=…)."""
    made = []

    def make(port, **how):
        made.append(Proxy(port, **how))
        return made[-1]
    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def slow_server(servers):
    """A server that waits for slow clients, and says nothing that would be taken for a sign of life."""
    return servers('write_deadline: "120s"')


async def test_slow_uplink_is_alive(world, slow_server, proxies):
    """A link's path that takes bytes, slowly, is not cut, though its server has nothing to say; and all that was answered ok arrives."""
    path = proxies(slow_server.port, rate=BUSY, buffer=4096)
    provider = await world.start(world.host.consumer_link(url=path.url, ping_interval_sec=str(PING)))
    out = await world.listen("up", nc=await world.client(slow_server))
    component = await world.component(serve=False)
    calls = [await component.start("publish", wire.broker_message("up", b"%d" % i + bytes(BUSY))) for i in range(6)]
    done = [await call.finish(20 * SLOW) for call in calls]
    assert all(call.ok for call in done), done
    for _ in done:
        await out.next_msg(20 * SLOW)
    assert not provider.log("connection lost")
    path.silence()  # and one that takes no more is found
    await provider.wait_log("connection lost: silent", timeout=3 * PING + DEADLINE)


async def test_slow_lattice_is_alive(servers, worlds, proxies):
    """The same of the lattice: what is slow to go to a component comes, over the same connection."""
    server, far = servers('write_deadline: "120s"'), servers()
    world, path = await worlds(server), proxies(server.port, rate=BUSY, buffer=4096)
    await world.component()
    provider = await world.start(world.host.handler_link(subscriptions="in", url=far.url, handler_timeout_ms="60000"), lattice_rpc_url=path.url,
                                 config={"lattice_ping_interval_sec": str(PING)})
    outside = await world.client(far)
    for i in range(2):
        await outside.publish("in", b"%d" % i + bytes(3 * BUSY))
    for _ in range(2):
        await world.components[0].next(20 * SLOW)
    assert not provider.log("connection lost")
    path.silence()
    await provider.wait_log("lattice .*connection lost: silent", timeout=3 * PING + DEADLINE)


async def test_dead_though_its_kernel_takes(world, proxies):
    """Bytes that a kernel takes for a peer that has stopped are no sign of life: it has the question, and owes the answer."""
    path = proxies(world.server.port)
    provider = await world.start(world.host.consumer_link(url=path.url, ping_interval_sec=str(PING)))
    component = await world.component(serve=False)
    path.silence("to server")
    while not provider.log("connection lost: silent"):
        call = await component.publish(world.s("out"), b"x")
        assert call.ok or provider.log("connection lost"), call
        await asyncio.sleep(0.02)  # so that it is not its buffers that end it
    await world.host.unhealthy("silent|connect")


async def frozen(provider, seconds):
    """Stops the provider's process for so long."""
    provider.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)  # that long is what is tested
    provider.process.send_signal(signal.SIGCONT)


async def test_frozen_keeps_its_connections(world):
    """After a time in which the provider was not run, nobody is silent before he was asked."""
    config = {"lattice_ping_interval_sec": str(PING)}
    provider = await world.start(world.host.consumer_link(ping_interval_sec=str(PING)), config=config)
    for _ in range(3):  # in whatever part of a ping interval
        await frozen(provider, 2.3 * PING)
        await world.host.healthy()
    assert not provider.log("connection lost")


async def test_frozen_ends_no_calls(worlds, server):
    """Time in which the provider was not run is nobody's: what was answered meanwhile is read, in all its length, before a call is ended."""
    limit_ms = int(2500 * SLOW)

    async def steps():
        world = await worlds(server)
        links = world.host.consumer_link("asks"), world.host.handler_link(subscriptions=world.s("in"), handler_timeout_ms=str(limit_ms))
        provider = await world.start(*links)
        asks, handles = await world.component("asks", serve=False), await world.component(by_hand=True)
        questions = await world.listen(world.s("questions"))
        with within(limit_ms / 1000 - 0.5):  # till it is frozen
            calls = [await asks.start("request", wire.request_params(world.s("questions"), b"%d" % i, limit_ms)) for i in range(100)]
            for i in range(100):
                await world.nc.publish(world.s("in"), b"%d" % i)
            asked = [await questions.next_msg(DEADLINE) for _ in calls]
            given = [await handles.invocation() for _ in calls]
            for call in calls:
                await call.handshake()
                await call.send_rest()
            for invocation in given:
                await invocation.handshake()
                await invocation.params()
        provider.process.send_signal(signal.SIGSTOP)
        for question in asked:
            await question.respond(bytes(2000))
        for invocation in given:
            await invocation.answer()
        await flush(world.nc)
        await frozen(provider, limit_ms / 1000 + 0.5)
        done = [await call.result() for call in calls]
        assert all(call.ok for call in done), done
        counts = await provider.counts("-> echo .*counts:")
        assert (counts["handled"], counts["timeout"]) == (100, 0), counts
    await in_time(steps)


# ---------------------------------------------------------------- our own close

@pytest.mark.parametrize("how, count", [("delete", 5), ("put", 5), ("shutdown", 8)])
async def test_close_is_a_drain(world, servers, proxies, how, count):
    """What was answered ok arrives over an uplink of 50 kB/s, though the link ends, and the server speaks meanwhile."""
    far = servers('ping_interval: "500ms"\nping_max: 1000\nwrite_deadline: "120s"')
    path = proxies(far.port, rate=50_000, buffer=4096)
    link = world.host.consumer_link(url=path.url)
    await world.start(link)
    out = await world.listen("up", nc=await world.client(far))
    component = await world.component(serve=False)
    for _ in range(count):
        assert (await component.publish("up", bytes(40_000))).ok
    if how == "delete":
        await world.host.delete(link)
    elif how == "put":
        await world.host.put({**link, "target_config": {**link["target_config"], "custom_inbox_prefix": "OTHER"}})
    else:
        await world.host.shutdown()
    for _ in range(count):
        await out.next_msg(count + DEADLINE)


@pytest.mark.long
async def test_close_is_a_long_drain(world, servers, proxies):
    """And as long as it takes, while bytes are taken."""
    await test_close_is_a_drain(world, servers, proxies, "delete", 50)


@pytest.mark.parametrize("how", ["change", "delete", "change and delete"])
async def test_drain_of_what_is_on_its_way(worlds, server, servers, proxies, how, count=1000):
    """What its server has sent to a connection that drains comes, though the path needs longer for it than a lost probe is waited for."""
    async def steps():
        world, far = await worlds(server), servers()
        path = proxies(far.port, down=300_000)
        link = world.host.handler_link(url=path.url, subscriptions="in|group")
        provider = await world.start(link)
        await world.component()
        outside = await world.client(far)
        for n in range(count):
            await outside.publish("in", b"%08d" % n + bytes(1000))
        await flush(outside)

        async def over():
            return path.late > 1 or await handled(provider, count)  # provider.h, PROBE_PATIENCE_MS: what stands still for longer is at its end
        if "change" in how:
            before = far.subscribers("in")
            await world.host.put(world.host.handler_link(url=path.url if how == "change" else far.url, subscriptions="in|group", custom_inbox_prefix="mine"))
            await until(lambda: not set(far.subscribers("in")) & set(before), "the new one has taken over")
        if how == "change":
            await until(over, "all are handled", 3 * DEADLINE)
        else:
            await world.host.delete(link)
            line = await provider.wait_log(r"counts: received=[1-9]", 3 * DEADLINE)
        if path.late > 1:
            raise TooLate
        assert how == "change" or f"received={count} " in line and "open=0" in line, line
    await in_time(steps)


async def test_order_over_two_changes(world, servers, proxies, count=120):
    """One at a time stays in order though the link changes twice while a slow path still brings the first: each connection waits for
    those before it."""
    server = servers()
    path = proxies(server.port, down=100_000)
    link = world.host.handler_link(url=path.url, subscriptions="in", max_in_flight="1")
    await world.start(link)
    await until(lambda: server.subscribers("in"), "subscribed")
    component, outside = await world.component(), await world.client(server)

    async def publish(numbers, size):
        for n in numbers:
            await outside.publish("in", b"%08d" % n + bytes(size))
        await flush(outside)

    async def change(prefix):
        before = set(server.subscribers("in"))
        await world.host.put(world.host.handler_link(url=server.url, subscriptions="in", max_in_flight="1", custom_inbox_prefix=prefix))
        await until(lambda: not before & set(server.subscribers("in")), "another has taken over")
    await publish(range(100), 1000)  # a second's worth
    await change("second")
    await publish(range(100, 110), 0)
    await change("third")
    await publish(range(110, count), 0)
    assert [int((await component.next()).body[:8]) for _ in range(count)] == list(range(count))


async def handled(provider, count):
    return (await provider.counts("link.*counts:"))["handled"] == count


@pytest.mark.long
async def test_request_outlives_its_connection(world):
    """A request of 35 s gets its reply though its link has another connection since its first second."""
    link = world.host.consumer_link()
    await world.start(link)
    component = await world.component(serve=False)
    questions = await world.listen(world.s("question"))
    call = await component.start("request", wire.request_params(world.s("question"), b"?", 60_000))
    question = await questions.next_msg(DEADLINE)
    await call.handshake()
    await call.send_rest()
    await world.host.put({**link, "target_config": {**link["target_config"], "custom_inbox_prefix": "OTHER"}})
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(call.result(60), 35)  # it hears a handshake each 30 s
    assert call.ok is None, call
    await question.respond(b"!")
    assert (await call.result()).ok


async def test_order_of_publishes_over_a_change(world, servers, proxies):
    """What a component publishes one after the other arrives so, though the link changes to a path that is faster."""
    far = servers()
    path = proxies(far.port, delay=0.3)
    link = world.host.consumer_link(url=path.url)
    await world.start(link)
    out = await world.listen("out", nc=await world.client(far))
    component, sent = await world.component(serve=False), 0

    async def publish():
        nonlocal sent
        assert (await component.publish("out", b"%d" % sent)).ok
        sent += 1
    await publish()
    await world.host.put({**link, "target_config": {**link["target_config"], "cluster_uris": far.url}})
    while len(far.connections()) > 2 or sent < 50:  # that of the test, and one of the link
        await publish()
    await publish()
    bodies = [(await out.next_msg(DEADLINE)).data for _ in range(sent)]
    assert bodies == [b"%d" % i for i in range(sent)]


# ---------------------------------------------------------------- what waits

@pytest.mark.long
async def test_order_of_publishes_over_two_changes(world, servers, proxies, count=250):
    """It holds though an older connection still drains, for a request that is out, and has written all of its own."""
    far = servers()
    path = proxies(far.port)
    link = world.host.consumer_link(url=path.url, ping_interval_sec="60")

    def changed(prefix):
        return {**link, "target_config": {**link["target_config"], "custom_inbox_prefix": prefix}}
    provider = await world.start(link)
    outside = await world.client(far)
    out, asked = await world.listen("out", nc=outside), await world.listen("svc", nc=outside)
    component = await world.component(serve=False)
    call = await component.start("request", wire.request_params("svc", b"", 60000))
    question = await asked.next_msg(DEADLINE)
    await world.put(changed("second"))
    await provider.wait_log("link .*connected to", count=2)
    await asyncio.sleep(3)  # longer than publishes wait for the older one
    path.rate = 200_000
    assert (await component.publish("out", b"0 " + bytes(150_000))).ok
    await world.host.put(changed("third"))
    for n in range(1, count):
        assert (await component.publish("out", b"%d " % n + bytes(100))).ok
        await asyncio.sleep(0.01)  # its rate
    order = [int((await out.next_msg(DEADLINE)).data.split()[0]) for _ in range(count)]
    await question.respond(b"late")
    await call.finish()
    assert call.ok and order == sorted(order), order


async def test_one_that_cannot_be_sent_blocks_nobody(servers, worlds):
    """A message whose trace headers alone exceed the lattice's max_payload is dropped and counted; those behind it come."""
    small, far = servers("max_payload: 600"), servers()
    world = await worlds(small)
    provider = await world.start(world.host.handler_link(subscriptions="in", url=far.url))
    component, outside = await world.component(), await world.client(far)
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=" + "x" * 500}
    await outside.publish("in", b"too much", headers=trace)
    await outside.publish("in", b"next")
    assert (await component.next()).body == b"next"
    await provider.wait_log("dropped: the lattice takes no message of this size")

    async def counted():  # the result is on its way yet
        counts = await provider.counts()
        return (counts["handled"], counts["dropped"], counts["open"]) == (1, 1, 0)
    await until(counted, "one handled, one dropped")


@pytest.mark.parametrize("kind", ["subscription", "consumer"])
async def test_what_is_refused_keeps_its_place(servers, worlds, proxies, kind, count=20):
    """What the lattice does not take now goes out before what came later: A, B, C, not B, C, A."""
    server, far = servers('write_deadline: "120s"'), servers(jetstream="64M")
    world = await worlds(server)
    outside, path = await world.client(far), proxies(server.port, buffer=4096)
    source = {"subscriptions": "in"} if kind == "subscription" else {"consumers": await make_stream(outside, "in", "in", ack_wait=60)}
    provider = await world.start(world.host.handler_link(url=far.url, handler_timeout_ms="60000", **source), lattice_rpc_url=path.url)
    component = await world.component()
    path.silence("to server")
    for i in range(count):
        await outside.publish("in", b"%d" % i + bytes(200_000))
    await flush(outside)

    async def refused():
        found = await provider.counts()
        return found["open"] > 2  # half of the write buffer is full: links are not read, either
    await until(refused, "some of them wait")
    path.speak()
    bodies = [(await component.next(20 * SLOW)).body for _ in range(count)]
    assert [int(body.rstrip(b"\0")) for body in bodies] == list(range(count))


async def test_order_while_nobody_runs_the_component(world, servers):
    """What was refused, since nobody runs the component, is the first that is tried again: A, B, C, not B, C, A."""
    far = servers(jetstream="64M")
    nc = await world.client(far)
    consumers = [json.loads(await make_stream(nc, name, name, ack_wait=30))[0] for name in "ABC"]
    provider = await world.start(world.host.handler_link(url=far.url, consumers=json.dumps(consumers), max_in_flight="1"))
    for i, name in enumerate("ABC"):
        await nc.jetstream(timeout=DEADLINE).publish(name, name.encode())

        async def received():
            return (await provider.counts())["received"] == i + 1
        await until(received, f"{name} is with the provider")
    tried = len(provider.log("nobody runs"))
    await provider.wait_log("nobody runs", count=tried + 1)
    component = await world.component()
    assert [(await component.next()).body for _ in "ABC"] == [b"A", b"B", b"C"]


async def test_round_trip_of_2_s(world, servers, authority, proxies):
    """A path that takes a second each way, with TLS: connect_timeout_sec is the time for it, and what stands on it works: calls, the
    keep-alive, a change that drains, JetStream. Five seconds, which are the default, do not do."""
    far = servers(tls_block(*authority.issue("far-away")).replace("timeout: ", "timeout: 3") + "authorization { timeout: 30 }\n", jetstream="64M")
    path = proxies(far.port, delay=1.0)
    keys = dict(url=path.url.replace("nats", "tls"), tls_ca=authority.ca, ping_interval_sec="5")
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    outside = await world.client(far, tls=context)
    consumers = await make_stream(outside, "S", "stored")
    provider = await world.start(
        world.host.consumer_link("slow", **keys), world.host.consumer_link("echo", **keys, connect_timeout_sec="30"),
        world.host.handler_link("echo", **keys, connect_timeout_sec="30", subscriptions="in",
                                consumers=consumers), ready=False)
    await provider.wait_log("slow -> .*cannot connect to .*(timeout|connect_timeout_sec)", 20 * SLOW)
    component = await world.component("echo")
    await until(lambda: len(provider.log("echo.*connected to")) == 2 and far.subscribers("in"), "connected", 30 * SLOW)
    out = await world.listen("out", nc=outside)
    for body in b"one", b"two":
        assert (await component.publish("out", body)).ok
        assert (await out.next_msg(20 * SLOW)).data == body
        await outside.publish("in", body)
        assert (await component.next(20 * SLOW)).body == body
        await outside.publish("stored", b"stored " + body)
        assert (await component.next(30 * SLOW)).body == b"stored " + body
        await world.host.put(world.host.consumer_link("echo", **keys, connect_timeout_sec="30", custom_inbox_prefix="OTHER"))
    await until(lambda: len(provider.log("echo -> .*connected to")) == 2, "connected anew", 30 * SLOW)
    counts = await provider.counts("-> echo .*counts:")
    assert counts["received"] == counts["handled"] == 4
    await asyncio.sleep(11)  # twice as long as it takes to be asked for a sign of life
    assert not provider.log("echo.*(connection lost|no answer|gives no)")
