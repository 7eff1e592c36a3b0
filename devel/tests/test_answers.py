# SPDX-License-Identifier: Apache-2.0
"""Who calls gets an answer: over a lattice that breaks, stalls or ends, from callers that are gone, and behind a slow link."""
import asyncio
import contextlib
import json
import signal
import socket
import time

import pytest

import wire
from lattice import CONSUMER, DEADLINE, SLOW, Trap, flush, in_time, until, within
from servers import Proxy


class Path(Proxy):
    """A path that holds little of what it does not pass on, and that can be cut."""

    def __init__(self, port):
        super().__init__(port)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.refuses = False

    def cut(self):
        """Ends the connections, and lets none through until mend()."""
        self.refuses = True
        for pair in self.pairs:
            for s in pair:
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)
        self.pairs = []

    def mend(self):
        self.refuses = False
        self.speak()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self.socket.accept()[0]
                if self.refuses:
                    client.close()
                    continue
                self.pairs.append((client, socket.create_connection(("127.0.0.1", self.to_port), timeout=DEADLINE)))
                self.pairs[-1][1].settimeout(None)
                self._start(*self.pairs[-1])


@pytest.fixture
def paths():
    opened = []

    def open(server):
        opened.append(Path(server.port))
        return opened[-1]
    yield open
    for path in opened:
        path.close()


class Callers:
    """Many callers on one plain connection, which acknowledge nothing; what comes for each of them is in `got`."""

    async def open(self, world, name="echo"):
        self.world, self.name, self.got, self.pong = world, name, {}, asyncio.Event()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", world.server.port, limit=2**24)
        self.writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _CALLER.> 1\r\nPING\r\n')
        while await self.reader.readline() != b"PONG\r\n":
            pass
        self.task = asyncio.create_task(self._read())
        return self

    def block(self, numbers, function, params):
        """The bytes of calls."""
        headers = b"NATS/1.0\r\nsource-id: %s\r\nlink-name: default\r\n\r\n" % self.name.encode()
        subject = f"{self.world.lattice}.{self.world.host.key}.{CONSUMER}.{function}".encode()
        size = len(headers) + len(params)
        return b"".join(b"HPUB %s _CALLER.%d %d %d\r\n%s%s\r\n" % (subject, i, len(headers), size, headers, params) for i in numbers)

    async def _read(self):
        while line := (await self.reader.readline()).split():
            if line[0] in (b"MSG", b"HMSG"):  # with headers: nobody serves it any more
                body = (await self.reader.readexactly(int(line[-1]) + 2))[:-2]
                token, _, rest = line[1].decode().removeprefix("_CALLER.").partition(".")
                if line[0] == b"MSG":
                    self.got.setdefault(int(token), set()).add((rest, body))
            elif line[0] == b"PING":
                self.writer.write(b"PONG\r\n")
            elif line[0] == b"PONG":
                self.pong.set()

    async def flush(self):
        """Waits for what the server has sent so far."""
        self.pong.clear()
        self.writer.write(b"PING\r\n")
        await asyncio.wait_for(self.pong.wait(), DEADLINE)

    def answered(self, result=b"\0"):
        return sum({("", b""), ("results", result), ("results", b"")} <= got for got in self.got.values())

    async def close(self):
        self.task.cancel()
        self.writer.close()


# ---------------------------------------------------------------- a lattice that breaks

async def acknowledged(world, component, count, size=0):
    """Requests that were acknowledged, and whose replies the test sends."""
    asked = asyncio.Queue()
    await world.nc.subscribe(world.s("svc"), cb=asked.put)
    await flush(world.nc)
    calls = [await component.start("request", wire.request_params(world.s("svc"), b"", 60000)) for _ in range(count)]
    for call in calls:
        await call.handshake()
        await call.send_rest()
    messages = [await asyncio.wait_for(asked.get(), DEADLINE) for _ in calls]
    return calls, messages


async def all_ok(world, count):
    async def ok():
        return (await world.provider.counts("counts: calls="))["ok"] >= count
    await until(ok, f"{count} calls have ended")


async def clog(world, path):
    """The path takes no more of what the provider says: what it says from now on does not arrive."""
    path.silence("to server")
    for _ in range(400):
        await world.nc.publish("$SRV.INFO.messaging-nats", b"", reply="nobody.asks")
    await has_read(world)


async def has_read(world):
    """The provider has read what was sent to it so far."""
    name = f"stranger{len(world.components)}"
    stranger = await world.component(name, serve=False)
    await stranger.start("publish", wire.broker_message("x", b""))
    await world.provider.wait_log(f"component {name} .*not linked")


@pytest.mark.parametrize("when, size", [("away", 10), ("away", 10_000), ("before", 10), ("before", 10_000)])
async def test_lattice_cut_while_replies_come(world, paths, when, size):
    """Replies that come while the lattice is away, or that were written and did not arrive: each caller has its answer afterwards."""
    path = paths(world.server)
    provider = await world.start(world.host.consumer_link(), lattice_rpc_url=path.url)
    component = await world.component(serve=False, race=0)
    calls, messages = await acknowledged(world, component, 20)
    if when == "before":
        await clog(world, path)
    else:
        path.cut()
        await provider.wait_log("lattice.*connection lost")
    for message in messages:
        await message.respond(bytes(size))
    await all_ok(world, len(calls))
    path.cut()
    await provider.wait_log("lattice.*connection lost")
    path.mend()
    answers = await asyncio.gather(*(call.result() for call in calls))
    assert all(call.ok and call.value.body == bytes(size) for call in answers), answers


async def test_lattice_restarts_before_the_callers_are_back(servers, worlds):
    """The server of the lattice is away for a moment, and the caller's host is back later than the provider."""
    async def steps():
        lattice, far = servers(), servers()
        world = await worlds(lattice)
        await world.start(world.host.consumer_link(url=far.url))
        component = await world.component(serve=False, race=0, nc=await world.client(lattice, reconnect_time_wait=1.0))
        outside, asked = await world.client(far), asyncio.Queue()
        await outside.subscribe("svc", cb=asked.put)
        await flush(outside)
        call = await component.start("request", wire.request_params("svc", b"", 60000))
        await call.handshake()
        await call.send_rest()
        message = await asyncio.wait_for(asked.get(), DEADLINE)
        lattice.stop()
        await world.provider.wait_log("lattice.*connection lost")
        await message.respond(b"late")
        await flush(outside)
        with within(2.5):  # provider.h, ABSENCES_MAX: a caller who is away for 3 s is gone
            lattice.start()
            await flush(component.nc)
        assert (await call.result()).ok
    await in_time(steps)


@pytest.mark.parametrize("kind", ["plain", "stored"])
async def test_link_works_after_a_break(servers, worlds, paths, kind):
    """Results that are lost with the lattice's connection do not block a link for its handler_timeout_ms. A consumer's message is
    tried again; of any other nobody knows whether it was handled."""
    async def steps():
        server = servers(jetstream="64M")
        world = await worlds(server)
        path = paths(server)
        config = {"subscriptions": "in"}
        if kind == "stored":
            js = world.nc.jetstream(timeout=DEADLINE)
            await js.add_stream(name="S", subjects=["in"])
            await js.add_consumer("S", durable_name="C", ack_policy="explicit", max_deliver=1)
            config = {"consumers": json.dumps([{"stream": "S", "consumer": "C"}])}
        link = world.host.handler_link(max_in_flight="4", handler_timeout_ms="40000", **config)
        provider = await world.start(link, lattice_rpc_url=path.url)
        component = await world.component(by_hand=True)
        for i in range(4):
            await world.nc.publish("in", b"%d" % i)
        first = [await component.invocation() for _ in range(4)]
        for call in first[:3]:
            await call.handshake()
            await call.params()
        path.cut()
        await provider.wait_log("lattice.*connection lost")
        for call in first[:2]:
            await call.answer()
        await first[3].handshake()
        await flush(world.nc)
        with within(1.7):  # provider.h, UNSURE_MS
            path.mend()
            await world.host.healthy()
            start = time.monotonic()
            await first[2].answer()  # in time: its call is still there
            await first[3].answer()  # though its handshake is lost
            await world.nc.publish("in", b"next")
            await flush(world.nc)
        again = 2 if kind == "stored" else 0
        for _ in range(again + 1):
            call = await component.invocation()
            await call.handshake()
            await call.params()
            await call.answer()
        assert time.monotonic() - start < 20  # the half of handler_timeout_ms

        async def counted():
            counts = await provider.counts("counts: received=")
            return (counts["handled"], counts["timeout"], counts["open"]) == (3 + again, 2 - again, 0)
        await until(counted, "all are handled, or timed out")
    await in_time(steps)


# ---------------------------------------------------------------- a lattice that stalls

async def test_lattice_stalls_while_calls_come(world, paths):
    """The path to the lattice takes nothing while thousands call: each gets its handshake and its result, and none is refused."""
    path = paths(world.server)
    provider = await world.start(world.host.consumer_link(), lattice_rpc_url=path.url)
    callers = await Callers().open(world)
    await clog(world, path)
    count = int(80 / SLOW) * 500
    params = wire.broker_message(world.s("out"), bytes(100))
    for at in range(0, count, 500):
        callers.writer.write(callers.block(range(at, at + 500), "publish", params))
        await callers.writer.drain()
    await asyncio.sleep(1)
    path.speak()
    await until(lambda: callers.answered() == count, "each is answered", DEADLINE + 20 * SLOW)
    assert not provider.log("refused|cannot answer")
    await callers.close()


# ---------------------------------------------------------------- handshakes that come late

async def late(world, size, count):
    """Calls that time out before anybody answers them."""
    for _ in range(count):
        await world.nc.publish(world.s("in"), bytes(size))
    component = world.components[0]
    calls = [await component.invocation() for _ in range(count)]

    async def over():
        return (await world.provider.counts("counts: received="))["timeout"] == count
    await until(over, f"{count} calls time out")
    return calls


@pytest.mark.parametrize("size, padding", [(100, 0), (1_048_540, 32)])
async def test_late_handshake_of_whole_parameters(world, size, padding):
    """Who has the parameters whole gets their end, and nothing before; else padding, since the host waits for the end."""
    await world.start(world.host.handler_link(subscriptions=world.s("in"), handler_timeout_ms="100"))
    component = await world.component(by_hand=True)
    pad = await world.listen(component.inboxes.prefix + ".pad")
    calls = await late(world, size, 4)
    for call in calls:
        await call.handshake()
    for call in calls:
        assert (await asyncio.wait_for(call.queue.get(), DEADLINE))[0] == "params"
    await flush(world.nc)
    assert pad.pending_msgs == padding * len(calls)


async def test_late_handshake_while_the_lattice_breaks(world, paths):
    """The end of parameters in chunks is written and lost with the connection: it is sent again, or the host would wait for ever."""
    path = paths(world.server)
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), handler_timeout_ms="100"),
                                 world.host.consumer_link(), lattice_rpc_url=path.url)
    await world.component(by_hand=True)
    call, = await late(world, world.nc.max_payload - 36, 1)
    await clog(world, path)
    await call.handshake()
    await has_read(world)
    path.cut()
    await provider.wait_log("lattice.*connection lost")
    path.mend()
    rest, msg = await asyncio.wait_for(call.queue.get(), DEADLINE)
    assert (rest, msg.data) == ("params", b"")


# ---------------------------------------------------------------- a lattice that ends

@pytest.mark.parametrize("how", ["order", "signal"])
async def test_calls_around_the_order_to_shut_down(world, how):
    """Calls come before and behind the order: each one that gets a handshake gets its answer, and then comes that to
    the order."""
    provider = await world.start(world.host.consumer_link())
    callers = await Callers().open(world)
    order = json.dumps({"host_id": world.host.data["host_id"]}).encode()
    subject = world.host.control(f"{world.host.key}.default.shutdown").encode()
    params = wire.broker_message(world.s("out"), b"x")
    for i in range(1000):
        if i == 150 and how == "order":
            callers.writer.write(b"PUB %s _CALLER.9999 %d\r\n%s\r\n" % (subject, len(order), order))
        elif i == 150:
            provider.send_signal(signal.SIGTERM)
        callers.writer.write(callers.block([i], "publish", params))
        await callers.writer.drain()
        await asyncio.sleep(0)
    assert await provider.wait_exit() == 0
    await callers.flush()
    handshaken = {i for i, got in callers.got.items() if ("", b"") in got}
    answered = {i for i, got in callers.got.items() if any(rest == "results" for rest, _ in got)}
    assert handshaken <= answered, sorted(handshaken - answered)
    if how == "order":
        assert callers.got[9999] == {("", b"shutting down")} and len(handshaken) >= 150
    await callers.close()


async def test_order_to_shut_down_after_a_signal(worlds, server):
    """The host orders what a signal has begun: it gets its answer."""
    async def steps():
        world = await worlds(server)
        provider = await world.start(world.host.handler_link(subscriptions=world.s("in")))
        component = await world.component(by_hand=True)
        await world.nc.publish(world.s("in"), b"x")
        call = await component.invocation()
        await call.handshake()
        await call.params()
        with within(0.2):  # provider.h, SHUTDOWN_MS
            provider.send_signal(signal.SIGTERM)
            await provider.wait_log("provider .*stopping: ")
            order = asyncio.create_task(world.host.shutdown())
            await asyncio.sleep(0)  # it is on its way
            await call.answer()
            await flush(world.nc)
        assert await order == b"shutting down"
    await in_time(steps)


# ---------------------------------------------------------------- callers that are gone

async def test_request_of_a_host_that_hears_one_handshake(world):
    """Hosts of 1.1 to 1.4.0 end the subscription to the handshake when it has come (wrpc-transport-nats 0.22 to 0.26, invoke): that
    nobody listens there says nothing of the caller."""
    await world.start(world.host.consumer_link())
    asked = await world.listen(world.s("slow"))
    nc = await world.client()
    rc = f"_INBOX.{world.lattice}"
    handshake, results = await nc.subscribe(rc), await nc.subscribe(rc + ".results")
    await handshake.unsubscribe(1)
    await flush(nc)
    await nc.publish(f"{world.lattice}.{world.host.key}.{CONSUMER}.request", wire.request_params(world.s("slow"), b"", 20_000), reply=rc,
                     headers={"source-id": "echo", "link-name": "default"})
    question = await asked.next_msg(DEADLINE)
    end = time.monotonic() + 6  # eight more handshakes, to nobody, take 3 s: the time is what is tested
    while time.monotonic() < end:
        await world.host.health()
        await asyncio.sleep(0.2)
    await question.respond(b"late")
    assert b"late" in (await results.next_msg(DEADLINE)).data


@pytest.mark.parametrize("acknowledged", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_requests_that_nobody_awaits(world, acknowledged):
    """Requests without a limit of time whose callers are gone leave their slots to others: soon, if they never acknowledged, else
    within a minute."""
    await world.start(world.host.consumer_link())
    await world.listen(world.s("silent"))
    gone = await world.component("echo", serve=False, race=0, nc=await world.client())
    calls = [await gone.start("request", wire.request_params(world.s("silent"), b"", wire.MAX_U32)) for _ in range(384)]
    if acknowledged:
        for call in calls:
            await call.handshake()
            await call.send_rest()
        await flush(gone.nc)
    component = await world.component("echo", serve=False, race=0)
    assert not (acknowledged and (await component.publish(world.s("out"), b"")).ok)
    await gone.nc.close()

    async def publishes():
        return (await component.publish(world.s("out"), b"")).ok
    await until(publishes, "there is room for a publish", 60 * SLOW if acknowledged else 5 * SLOW)


# ---------------------------------------------------------------- a link that is slow

async def slow_link(world, paths):
    path = paths(world.server)
    await world.start(world.host.consumer_link(url=path.url))
    return path, await world.component(serve=False)


async def fill(world, path, component, count=6):
    """The link's path stands still, and its connection has no room: these publishes of 1 MB wait."""
    path.silence("to server")
    calls = [await component.start("publish", wire.broker_message(world.s("out"), bytes(1_000_000))) for _ in range(count)]
    for call in calls:
        await call.handshake()
        await call.send_rest()
    return calls


async def test_publishes_wait_in_the_order_of_their_calls(world, paths):
    """Small and large ones, after slots were used in any order."""
    path, component = await slow_link(world, paths)
    heard = await world.listen(world.s("out"))
    await asyncio.gather(*(component.publish(world.s("x"), b"") for _ in range(100)))
    calls = await fill(world, path, component, 4)
    for i in range(60):
        calls.append(await component.start("publish", wire.broker_message(world.s("out"), b"%d" % i)))
        if i % 20 == 10:
            calls.append(await component.start("publish", wire.broker_message(world.s("out"), b"%d" % i + bytes(100_000))))
    for call in calls[4:]:
        await call.handshake()
        await call.send_rest()
    path.speak()
    answers = await asyncio.gather(*(call.result() for call in calls))
    assert all(call.ok for call in answers), answers
    bodies = [(await heard.next_msg(DEADLINE)).data.rstrip(b"\0") for _ in calls][4:]
    assert bodies == sorted(bodies, key=int)


async def test_request_in_chunks_waits_no_longer_than_it_says(world, paths):
    """Its link has no room: a request whose parameters come in chunks ends after its own time."""
    path, component = await slow_link(world, paths)
    filling = await fill(world, path, component)
    call = await component.call("request", wire.request_params(world.s("svc"), bytes(300_000), 500), first=100_000)
    others = [rest for rest, _ in filling[-1].queue._queue]
    assert call.ok is False and "results" not in others, (call, others)  # which come after PUBLISH_TIMEOUT_MS
    path.speak()
    assert all([(await call.result()).ok for call in filling])


async def test_publish_that_is_being_written_is_not_given_up(world, paths):
    """Its bytes are with the connection, and go out as long as that stands: what is answered is what becomes of it."""
    path, component = await slow_link(world, paths)
    heard = await world.listen(world.s("out"))
    calls = await fill(world, path, component, 4)
    await asyncio.sleep(10.5)  # PUBLISH_TIMEOUT_MS
    path.speak()
    answers = await asyncio.gather(*(call.result() for call in calls))
    ok = sum(call.ok for call in answers)
    for _ in range(ok):
        await heard.next_msg(DEADLINE)
    await component.publish(world.s("out"), b"last")
    assert (await heard.next_msg(DEADLINE)).data == b"last", "what was answered with an error is not delivered"
