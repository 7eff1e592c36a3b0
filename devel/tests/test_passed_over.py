# SPDX-License-Identifier: Apache-2.0
"""What comes over a connection and is no message for a component: too large, without headers, our own, or a push consumer's status."""
import asyncio
import json

import pytest
from nats.js.api import ConsumerConfig, StreamConfig

from lattice import until
from peers import greet, hold, say
from servers import DEADLINE, SLOW, Proxy, raw_publish
from test_jetstream import counts, provider_counts

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
LARGE = "max_payload: 8388608\nmax_pending: 67108864"


def bodies(component):
    return [component.received.get_nowait().body for _ in range(component.received.qsize())]


# ---------------------------------------------------------------- without headers

async def test_link_without_headers(world, servers):
    """A link's server takes no headers: a call with a trace publishes, requests, and is called, without it."""
    far = servers("no_header_support: true")
    outside = await world.client(far)
    await world.start(world.host.consumer_link(url=far.url), world.host.handler_link(url=far.url, subscriptions="in"))
    await until(lambda: far.subscribers("in"), "subscribed")
    component = await world.component()
    sub = await world.listen("x", nc=outside)
    assert (await component.publish("x", b"without")).ok
    call = await component.publish("x", b"with", headers=TRACE)
    assert call.ok, call
    assert [(await sub.next_msg(DEADLINE)).data for _ in range(2)] == [b"without", b"with"]
    await world.respond("ask", lambda body: b"re: " + body, nc=outside)
    call = await component.request("ask", b"q", headers=TRACE)
    assert call.ok and call.value.body == b"re: q", call
    await outside.publish("in", b"x")
    assert (await component.next()).body == b"x"
    await world.host.healthy()


async def test_lattice_without_headers(worlds, servers):
    """Nothing can be called over a lattice whose server takes no headers: log and health say so."""
    world = await worlds(servers("no_header_support: true"))
    provider = await world.start(world.host.consumer_link(), ready=False)
    await provider.wait_log("ERROR .*lattice's server takes no headers")
    await world.host.unhealthy("lattice's server takes no headers")
    assert len(provider.log("takes no headers")) == 1


# ---------------------------------------------------------------- too large

@pytest.mark.parametrize("size", [1_500_000, 4_000_000, 8_000_000])
async def test_message_too_large(world, servers, size):
    """A message that is larger than what the provider has room for is dropped, counted and logged; what is behind it comes."""
    far = servers(LARGE)
    provider = await world.start(world.host.handler_link(url=far.url, subscriptions="big.>"))
    await until(lambda: far.subscribers("big.>"), "subscribed")
    component, outside = await world.component(), await world.client(far)
    for body in (b"a", b"b", b"x" * size, b"c", b"y" * size, b"d"):
        await outside.publish("big.one", body)
    assert [(await component.next()).body for _ in range(4)] == [b"a", b"b", b"c", b"d"]
    told = await counts(provider)
    assert (told["received"], told["dropped"]) == (6, 2)
    assert provider.log("1 message dropped: ")
    if size > 3_300_000:
        assert provider.log(f"a message of {size} bytes on big.one was passed over")
    assert not provider.log("connection lost")


async def test_reply_too_large(world, servers):
    """A request whose reply does not fit gets an error at once."""
    far = servers(LARGE)
    provider = await world.start(world.host.consumer_link(url=far.url))
    await world.respond("ask", lambda body: b"x" * 4_000_000, nc=await world.client(far))
    component = await world.component(serve=False)
    call = await component.request("ask", b"q", timeout_ms=600_000)
    assert call.ok is False and "payload" in call.value, call
    assert (await component.publish("x", b"behind")).ok and not provider.log("connection lost")


async def test_passed_over_in_its_turn(world, peers):
    """What stands before it in the same read comes first: the first reply counts, though the second does not fit."""
    async def script(_peer, reader, writer):
        sid, _ = await greet(reader, writer, max_payload=8388608)
        while line := (await reader.readline()).split():
            if line[0] == b"PING":
                await say(writer, b"PONG\r\n")
            if line[0] != b"PUB":
                continue
            await reader.readexactly(int(line[-1]) + 2)
            if line[1] == b"ask":
                replies = b"MSG %s %s 5\r\nfirst\r\nMSG %s %s 4000000\r\n" % (line[2], sid, line[2], sid)
                await say(writer, replies + bytes(4_000_000) + b"\r\n")
    server = await peers(script)
    await world.start(world.host.consumer_link(url=server.url))
    component = await world.component(serve=False)
    for _ in range(5):
        call = await component.request("ask", b"q")
        assert call.ok and call.value.body == b"first", call


@pytest.mark.parametrize("function", ["publish", "request"])
async def test_call_too_large(worlds, servers, function):
    """A component's call that does not fit gets an error, on a lattice whose server takes it; other calls go on."""
    world = await worlds(servers(LARGE))
    provider = await world.start(world.host.consumer_link())
    component = await world.component(serve=False)
    call = await getattr(component, function)(world.s("x"), b"x" * 4_000_000)
    assert call.ok is False and "larger than this provider passes on" in call.value, call
    assert (await component.publish(world.s("x"), b"behind")).ok
    assert provider.log("a message of 40000.. bytes on .* was passed over") and not provider.log("connection lost")


async def test_order_too_large(worlds, servers):
    """An order of the host that does not fit is lost, and health says so until a link is put later; not with the next one, which is
    another's."""
    world = await worlds(servers(LARGE))
    provider = await world.start(world.host.consumer_link())
    await world.host.put(world.host.consumer_link("other", junk="x" * 4_000_000), world.host.consumer_link("third"))
    await provider.wait_log("link third -> .* connected to")
    await world.host.unhealthy("an order of the host is lost")

    async def put_again():
        await world.host.put(world.host.consumer_link("other"))
        return (await world.host.health())["healthy"]
    await until(put_again, "it is healthy again", 5 + DEADLINE)
    assert not provider.log("connection lost")


async def test_consumers_message_too_large(world, peers):
    """JetStream delivers a message larger than asked for (no nats-server does): it is told never to deliver that again, and
    what is behind it comes."""
    told = []
    config = {"config": {"ack_policy": "explicit"}, "created": "2026-01-01T00:00:00Z"}

    async def script(_peer, reader, writer):
        sid, _inbox = await greet(reader, writer, max_payload=8388608)
        delivered = False
        while line := (await reader.readline()).split():
            if line[0] != b"PUB":
                if line[0] == b"PING":
                    await say(writer, b"PONG\r\n")
                if line[0] == b"SUB" and b".p." in line[1]:
                    pull_sid = line[-1]
                continue
            body = (await reader.readexactly(int(line[-1]) + 2))[:-2]
            if b".INFO." in line[1]:
                answer = json.dumps(config).encode()
                await say(writer, b"MSG %s %s %d\r\n%s\r\n" % (line[2], sid, len(answer), answer))
            elif b".MSG.NEXT." in line[1] and not delivered:
                delivered = True
                large, small = b"$JS.ACK.S.C.1.1.1.1.0", b"$JS.ACK.S.C.1.2.2.2.0"
                await say(writer, b"MSG in %s %s 4000000\r\n%s\r\n" % (pull_sid, large, b"x" * 4_000_000))
                await say(writer, b"MSG in %s %s 5\r\nsmall\r\n" % (pull_sid, small))
            elif line[1].startswith(b"$JS.ACK."):
                told.append((line[1].split(b".")[5], body))
            elif b".probe." in line[1]:
                await say(writer, b"MSG %s %s 0\r\n\r\n" % (line[1], sid))
    server = await peers(script)
    entry = json.dumps([{"stream": "S", "consumer": "C"}])
    provider = await world.start(world.host.handler_link(url=server.url, consumers=entry))
    component = await world.component()
    assert (await component.next()).body == b"small"
    await until(lambda: len(told) >= 2, "both are settled")
    assert told[:2] == [(b"1", b"+TERM"), (b"2", b"+ACK")]
    sum_of = await counts(provider)
    assert (sum_of["received"], sum_of["dropped"], sum_of["handled"]) == (2, 1, 1)


async def test_large_messages_in_pieces(world, peers):
    """The line of a message that is passed over may be cut anywhere; what is behind the message is read."""
    async def script(_peer, reader, writer):
        sid, _ = await greet(reader, writer)
        head = b"MSG in.big %s re.ply 4000000\r\n" % sid
        await say(writer, b"MSG in.a %s 1\r\na\r\n" % sid)
        for cut in range(1, len(head), 5):
            await say(writer, head[:cut])
            await asyncio.sleep(0.002)  # or both parts come in one read, which is as good
            await say(writer, head[cut:] + b"\r\nMSG in.b 1 1\r\n" * 200_000)
            await say(writer, b"x" * (4_000_000 - 16 * 200_000) + b"\r\nMSG in.a %s %d\r\n%d\r\n" % (sid, len(str(cut)), cut))
        await hold(reader)
    bad = await peers(script)
    component = await world.component()
    provider = await world.start(world.host.handler_link(url=bad.url, subscriptions="in.>"))
    wanted = [b"a"] + [b"%d" % cut for cut in range(1, len(b"MSG in.big 1 re.ply 4000000\r\n"), 5)]
    assert [(await component.next(2 * DEADLINE)).body for _ in wanted] == wanted
    told = await counts(provider)
    assert (told["received"], told["dropped"]) == (2 * len(wanted) - 1, len(wanted) - 1)


# ---------------------------------------------------------------- our own

async def overhears(world, url, subscription, subject, known=None):
    """Once that is `known` to the server: a link with such a subscription hears one message, and what its component publishes then; nothing of the lattice's."""
    async def handler(message):
        if message.body == b"first":
            call = await component.publish("the.answer.to", b"second")
            return None if call.ok else str(call)
    component = await world.component(handler=handler)
    provider = await world.start(world.host.handler_link(url=url, subscriptions=subscription), world.host.consumer_link(url=url))
    if known:
        await until(known, "the subscription is known")
    for body in (b"first", b"large " * 174_700, b"last"):  # the second goes to the component in chunks
        await world.nc.publish(subject, body)
    got = []
    while b"last" not in got:
        got.append((await component.next()).body[:6])
    await world.host.healthy()
    assert b"messaging-nats" in (await world.nc.request("$SRV.PING.messaging-nats", b"", timeout=DEADLINE)).data
    await world.nc.publish(subject, b"end")
    while b"end" not in got:
        got.append((await component.next()).body[:6])
    await until(lambda: b"second" in got or got.extend(bodies(component)), "what it published")
    assert sorted(got + bodies(component)) == [b"end", b"first", b"large ", b"last", b"second"]
    await until(provider_counts(provider, open=0), "all is handled")
    assert (await counts(provider))["received"] == 5
    return provider


@pytest.mark.parametrize("version", ["1.9", "1.0"])
@pytest.mark.parametrize("subscription, subject", [(">", "a"), ("*.*.>", "a.b.c"), (">|group", "a.b.c")], ids=str)
async def test_subscription_to_the_lattice(worlds, servers, version, subscription, subject):
    """A link's server is the lattice's own, and the link is subscribed to all of it: a message is handled once, and makes no more."""
    server = servers()
    world = await worlds(server, version)
    provider = await overhears(world, server.url, subscription, subject)
    assert len(provider.log("its subscriptions match the lattice's traffic")) == 1


async def test_subscription_to_the_lattice_by_another_server(worlds, cluster):
    """The same, by another server of the lattice's cluster."""
    here, there = cluster.nodes[:2]

    def known():
        return any(">" in route.get("subscriptions_list", []) for route in here.monitored("routez?subs=1")["routes"])
    await overhears(await worlds(here), there.url, ">", "a", known)


async def test_two_that_are_subscribed_to_the_lattice(worlds, servers):
    """Two providers, each subscribed to everything: neither is called for what the other does."""
    world = await worlds(servers())
    components = [await world.component("one"), await world.component("two")]
    first = await world.start(world.host.handler_link("one", subscriptions=">"))
    second = await world.start(ready=False, provider_key="another")
    put = world.host.control("another.linkdefs.put")
    await until(lambda: world.server.subscribers(put), "the second hears the host")
    link = world.host.handler_link("two", subscriptions=">")
    link["source_id"] = "another"
    await world.nc.publish(put, json.dumps(link).encode())
    await until(lambda: len(world.server.subscribers(">")) == 2, "both are subscribed")
    seen = {"one": [], "two": []}
    for i in range(20):
        await world.nc.publish("in", b"%d" % i)
        for component in components:
            while b"%d" % i not in seen[component.name]:
                seen[component.name].append((await component.next()).body)
    for name, provider in (("one", first), ("two", second)):
        received = (await counts(provider))["received"]
        assert received <= 20 + 8, f"{name}: {received}"  # what another did before this one had heard the lattice


async def test_own_probe_by_a_slow_path(world, servers):
    """A link that is subscribed to everything changes to a slow path, which brings the old connection's probe when that is closed: it is
    no message."""
    far = servers()
    path = Proxy(far.port, delay=0.3)
    link = world.host.handler_link(url=far.url, subscriptions=">")
    provider = await world.start(link)
    component, outside = await world.component(), await world.client(far)
    await until(lambda: far.subscribers(">"), "subscribed")
    before = set(far.subscribers(">"))
    await world.host.put(world.host.handler_link(url=path.url, subscriptions=">"))
    await until(lambda: not before & {c["cid"] for c in far.connections()}, "the old one is closed", 2 * DEADLINE)
    await outside.publish("in", b"x")
    assert (await component.next()).subject == "in"
    assert (await counts(provider))["received"] == 1
    path.close()


async def test_what_looks_like_the_lattices(world, servers):
    """On another server subjects like the lattice's, or an inbox's, are somebody's own: they are delivered."""
    far = servers()
    provider = await world.start(world.host.handler_link(url=far.url, subscriptions=">"))
    await until(lambda: far.subscribers(">"), "subscribed")
    component, outside = await world.component(), await world.client(far)
    subjects = ["_INBOX.abc.results", "_INBOX.abc.params", f"{world.lattice}.echo.wrpc.0.0.1.x", "$SRV.PING", "_INBOX.a.c.b", "wasmbus.rpc.x"]
    for subject in subjects:
        await outside.publish(subject, b"x", reply="_INBOX.re.ply")
    assert [(await component.next()).subject for _ in subjects] == subjects
    assert not provider.log("match the lattice's traffic")


async def test_questions_to_jetstream(world, servers):
    """What a link asks JetStream, by whatever prefix, is not what its subscription to everything brings."""
    far = servers()
    entry = '[{"stream":"S","consumer":"C","api_prefix":"from.a"}]'
    await world.start(world.host.handler_link(url=far.url, subscriptions=">", consumers=entry), ready=False)
    asked = await world.listen("from.a.>", nc=await world.client(far))
    component = await world.component()
    await world.host.unhealthy("consumer C of stream S")
    await asked.next_msg(DEADLINE)
    await asked._conn.publish("in", b"x")
    assert (await component.next()).subject == "in"


# ---------------------------------------------------------------- a push consumer's

@pytest.fixture
async def pushed(world, servers, folder):
    """A stream's server, and a link with plain subscriptions to where push consumers deliver."""
    server = servers('jetstream { store_dir: "%s", max_mem: 64M, max_file: 256M }' % (folder / f"push-{world.lattice}"))
    js = (await world.client(server)).jetstream(timeout=DEADLINE)
    await js.add_stream(StreamConfig(name="S", subjects=["orders.>"]))
    return server, js


async def test_push_consumer(world, pushed):
    """Its heartbeats and flow control come to no component, and are answered: it goes on delivering. A user's status does."""
    server, js = pushed
    component = await world.component()
    provider = await world.start(world.host.handler_link(url=server.url, subscriptions="push"))
    await until(lambda: server.subscribers("push"), "subscribed")
    outside = await world.listen("push", nc=js._nc)
    await js.add_consumer("S", ConsumerConfig(durable_name="P", deliver_subject="push", ack_policy="none", flow_control=True, idle_heartbeat=0.2 * SLOW))
    for i in range(60):
        await js.publish("orders.new", b"%d " % i + b"x" * 100_000)
    assert [int((await component.next()).body.split()[0]) for _ in range(60)] == list(range(60))
    seen = set()
    while not {"Idle Heartbeat", "FlowControl Request"} <= seen:
        seen.add(((await outside.next_msg(DEADLINE)).headers or {}).get("Description"))
    raw_publish(server, b"push", reply=b"re.ply", headers=b"NATS/1.0 100 Of Mine\r\n\r\n")
    assert (await component.next()).reply_to == "re.ply"
    assert (await counts(provider))["received"] == 61


# ---------------------------------------------------------------- overlapping subscriptions

@pytest.mark.parametrize("subscriptions, times", [
    ("t.>,t.b", 2), ("t.b,t.b|q", 2), ("t.b|p,t.*|q", 2), ("t.>|q,t.b|q", 1), ("t.b,t.b", 1), ("*.b,t.*,>", 3), ("t.c,t.b,t.*.x,t.c.y", 1)], ids=str)
async def test_overlapping_subscriptions(world, servers, subscriptions, times):
    """A message comes as often as subscriptions of a link match it, but once to a queue group; the log warns if it may come twice."""
    far = servers()
    component = await world.component()
    provider = await world.start(world.host.handler_link(url=far.url, subscriptions=subscriptions))
    await until(lambda: far.subscribers(subscriptions.split(",")[-1].split("|")[0]), "subscribed")
    outside = await world.client(far)
    await outside.publish("t.b", b"x")
    for _ in range(times):
        assert (await component.next()).body == b"x"
    await outside.publish("t.b", b"last")
    assert (await component.next()).body == b"last"
    assert len(provider.log("overlap: what matches both comes twice")) == (times > 1)
