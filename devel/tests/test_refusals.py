# SPDX-License-Identifier: Apache-2.0
"""What a server does not let the user do, and says so some time later: kept, named by health and log, over when it works."""
import asyncio
import time

import pytest
from nats.js.api import ConsumerConfig, StreamConfig

import wire
from lattice import until
from servers import DEADLINE, SLOW
from test_hostile_servers import bad_url, greet, hold, once, others_work, say, started  # noqa: F401: a fixture


@pytest.fixture
async def guarded(world, servers):
    """A server whose user "gateway" has the permissions that were said last to guarded.permit(…)."""
    def config(permissions):
        return f"authorization {{ users: [ {{ user: owner, password: owner }}, {{ user: gateway, password: gw, permissions: {{ {permissions} }} }} ] }}"
    server = servers(config('publish: ">", subscribe: ">"'))
    server.gateway = server.url.replace("//", "//gateway:gw@")
    server.permit = lambda permissions: server.reload(config(permissions))
    server.owner = await world.client(server, user="owner", password="owner")
    return server


async def names(world, *subjects):
    """Waits until health names all of these; gives its words."""
    return await world.host.unhealthy("".join(f"(?=.*{s})" for s in subjects))


async def test_subscriptions(world, guarded):
    """Each subscription that is denied is named, until the server allows it: without a restart, and on the same connection."""
    guarded.permit('publish: ">", subscribe: ["_INBOX.>", "ok"]')
    provider = await world.start(world.host.handler_link(url=guarded.gateway, subscriptions='ok,secret.a,secret.*.c|workers,"b\\"'), ready=False)
    component = await world.component()
    denied = [r"secret\.a\b", r"secret\.\*\.c", r'"b\\+"']
    await names(world, "Permissions Violation", *denied)
    await guarded.owner.publish("ok", b"1")
    assert (await component.next()).body == b"1"  # the others work
    for subject in denied:
        assert len([line for line in provider.log(subject) if "ERROR" in line]) == 1, provider.lines
    guarded.permit('publish: ">", subscribe: ">"')
    await world.host.healthy(40 * SLOW)
    for subject in "secret.a", "secret.b.c", '"b\\"':
        await guarded.owner.publish(subject, b"x")
        assert (await component.next()).subject == subject
    assert len(provider.log("connected to " + guarded.address)) == 1


async def test_subscription_is_taken_away(world, guarded):
    """A change of the permissions ends a subscription, and not the one beside it."""
    provider = await world.start(world.host.handler_link(url=guarded.gateway, subscriptions="a|group,b|group"))
    await world.component()
    guarded.permit('publish: ">", subscribe: {allow: ">", deny: "a"}')
    assert (await names(world, "subscription to a")).count("subscription to") == 1
    guarded.permit('publish: ">", subscribe: ">"')
    await world.host.healthy(40 * SLOW)
    assert len(provider.log("connected to " + guarded.address)) == 1


async def test_publishes(world, guarded):
    """A publish that is denied has been answered ok by then; health and log name its subject until a later one is taken."""
    guarded.permit('publish: {allow: ">", deny: "out.*"}, subscribe: ">"')
    provider = await world.start(world.host.consumer_link(url=guarded.gateway))
    component = await world.component(serve=False)
    heard = await world.listen("out.>", nc=guarded.owner)
    for i in range(30):
        assert (await component.publish(f"out.{i % 3}", b"x")).ok
    await names(world, r"publish to out\.0", r"publish to out\.1", r"publish to out\.2")
    for i in range(3):
        assert len(provider.log(rf"out\.{i}\b")) == 1, provider.lines
    guarded.permit('publish: ">", subscribe: ">"')
    assert (await component.publish("out.0")).ok and (await component.publish("out.1")).ok
    await until(lambda: world.host.unhealthy(r"Violation: publish to out\.2 \("), "only what was not published again is left")
    assert (await component.publish("out.2")).ok
    await world.host.healthy()
    assert [(await heard.next_msg(DEADLINE)).subject for _ in range(3)] == ["out.0", "out.1", "out.2"]


async def test_many_publishes(world, guarded):
    """Of many subjects the first are named, and the others counted."""
    guarded.permit('publish: {allow: ">", deny: "out.>"}, subscribe: ">"')
    provider = await world.start(world.host.consumer_link(url=guarded.gateway))
    component = await world.component(serve=False)
    for i in range(40):
        assert (await component.publish(f"out.{i}.{'x' * 30}")).ok
    await names(world, r"publish to out\.0", r"publish to out\.1", r"and \d+ others")
    assert len(provider.log(r"Violation")) < 12, provider.lines


async def test_inbox(world, guarded):
    """Without its inbox a request fails at once, also one that is under way, and says what helps."""
    guarded.permit('publish: ">", subscribe: "mine.>"')
    await world.start(world.host.consumer_link(url=guarded.gateway), ready=False)
    component = await world.component(serve=False)
    await world.respond("svc", lambda body: b"answer", nc=guarded.owner)
    await names(world, "subscription to _INBOX", "custom_inbox_prefix")
    began = time.monotonic()
    call = await component.request("svc", timeout_ms=int(60000 * SLOW))
    assert not call.ok and "custom_inbox_prefix" in str(call) and time.monotonic() < began + DEADLINE
    assert (await component.publish("svc")).ok
    await world.host.put(world.host.consumer_link(url=guarded.gateway, custom_inbox_prefix="mine"))
    await world.host.healthy()
    assert (await component.request("svc")).ok


async def test_inbox_is_taken_away(world, guarded):
    """A request under way fails when the inbox for its reply is gone; when the user may have it again, requests work."""
    provider = await world.start(world.host.consumer_link(url=guarded.gateway))
    component = await world.component(serve=False)
    asked = await world.listen("svc", nc=guarded.owner)
    call = await component.start("request", wire.request_params("svc", b"", int(60000 * SLOW)))
    await asked.next_msg(DEADLINE)
    guarded.permit('publish: ">", subscribe: "other"')
    await call.finish()
    assert not call.ok and "custom_inbox_prefix" in str(call)
    guarded.permit('publish: ">", subscribe: ">"')
    await world.host.healthy(40 * SLOW)
    await world.respond("svc", lambda body: b"answer", nc=guarded.owner)
    assert (await component.request("svc")).ok
    assert len(provider.log("connected to " + guarded.address)) == 1


async def test_inbox_of_consumers(world, servers):
    """Without an inbox JetStream's answers cannot come: that is said, and not that it does not answer; until it may have one."""
    def config(permissions):
        return f"authorization {{ users: [ {{ user: owner, password: owner }}, {{ user: gateway, password: gw, permissions: {{ {permissions} }} }} ] }}"
    server = servers(config('publish: ">", subscribe: "mine"'), jetstream="64M")
    js = (await world.client(server, user="owner", password="owner")).jetstream(timeout=DEADLINE)
    await js.add_stream(StreamConfig(name="S", subjects=["s.>"]))
    await js.add_consumer("S", ConsumerConfig(durable_name="C", ack_policy="explicit"))
    await world.start(world.host.handler_link(url=server.url.replace("//", "//gateway:gw@"), consumers='[{"stream":"S","consumer":"C"}]'), ready=False)
    component = await world.component()
    await js.publish("s.x", b"1")
    words = await names(world, r"subscription to _INBOX\.\w+\.c\.>", r"subscription to _INBOX\.\w+\.p\.>", "custom_inbox_prefix")
    assert "does not answer" not in words
    server.reload(config('publish: ">", subscribe: ">"'))
    assert (await component.next(40 * SLOW)).body == b"1"
    await world.host.healthy(40 * SLOW)


async def test_inbox_of_consumers_while_idle(world, servers):
    """Once the server lets it have the inbox, it asks the consumer at once, though nothing else happens."""
    def config(denied):
        return ('authorization { users: [ { user: owner, password: owner }, { user: gateway, password: gw, permissions: '
                f'{{ publish: ">", subscribe: {{ allow: ">", deny: "{denied}" }} }} }} ] }}')
    server = servers(config("_INBOX.*.p.>"), jetstream="64M")
    js = (await world.client(server, user="owner", password="owner")).jetstream(timeout=DEADLINE)
    await js.add_stream(StreamConfig(name="S", subjects=["s.>"]))
    await js.add_consumer("S", ConsumerConfig(durable_name="C", ack_policy="explicit"))
    provider = await world.start(world.host.handler_link(url=server.url.replace("//", "//gateway:gw@"), consumers='[{"stream":"S","consumer":"C"}]'), ready=False)
    await world.component()
    await provider.wait_log("Permissions Violation")
    await asyncio.sleep(3)  # the first PING of the server, which would wake it, is over
    server.reload(config("nothing"))
    await provider.wait_log("lets it subscribe to", 40 * SLOW)
    await provider.wait_log("takes messages from")  # health is not asked: that would wake it, too


async def test_refused_subscription_leaves(world, guarded):
    """One that was refused is no more in the settings, and later another is refused: the old one's next attempt is not due."""
    guarded.permit('publish: ">", subscribe: {allow: ">", deny: "secret"}')
    link = world.host.handler_link(url=guarded.gateway, subscriptions="a,secret")
    await world.start(link, ready=False)
    await names(world, "secret")
    await asyncio.sleep(3.3)  # it is tried again after 0.1, 0.2, … 1.6 s, and then after 3.2 s
    await world.host.put({**link, "source_config": {**link["source_config"], "subscriptions": "a"}})
    await world.host.healthy()
    await asyncio.sleep(4)  # that would have been in this silence
    guarded.permit('publish: ">", subscribe: {allow: ">", deny: "a"}')
    await names(world, "subscription to a")
    guarded.permit('publish: ">", subscribe: ">"')
    await world.host.healthy(40 * SLOW)


async def test_inbox_and_life(world, guarded):
    """A link whose inbox is denied hears of no keep-alive that it sends to itself, and is no dead connection for that."""
    guarded.permit('publish: ">", subscribe: "other"')
    provider = await world.start(world.host.consumer_link(url=guarded.gateway, ping_interval_sec="1"), ready=False)
    await names(world, "subscription to _INBOX")
    asked = len(guarded.lines)
    end = time.monotonic() + 5  # the time itself is under test
    await until(lambda: time.monotonic() > end, "five keep-alives", 5 + DEADLINE)
    assert len(provider.log("connected to " + guarded.address)) == 1, provider.lines
    assert asked < len(guarded.lines) < asked + 60


async def test_keep_alive_is_refused(world, guarded):
    """A user that may not publish to its own inbox needs nothing else: that is no error."""
    guarded.permit('publish: "out", subscribe: ">"')
    provider = await world.start(world.host.handler_link(url=guarded.gateway, subscriptions="a", ping_interval_sec="1"),
                                 world.host.consumer_link(url=guarded.gateway, ping_interval_sec="1"))
    component = await world.component(serve=False)
    assert (await component.publish("out")).ok
    await until(lambda: any("Publish Violation" in line for line in guarded.lines), "a keep-alive was refused")
    await world.host.healthy()
    assert not provider.log("Violation"), provider.lines


@pytest.fixture
async def fenced(servers, worlds):
    """A world whose provider has a user of its own on the lattice, with the permissions said to fenced.permit(…)."""
    def config(permissions):
        return f"authorization {{ users: [ {{ user: t, password: t }}, {{ user: gateway, password: gw, permissions: {{ {permissions} }} }} ] }}"
    server = servers(config('publish: ">", subscribe: ">"'))
    world = await worlds(server, user="t", password="t")
    world.permit = lambda permissions: server.reload(config(permissions))
    world.host.data["lattice_rpc_url"] = server.url.replace("//", "//gateway:gw@")
    world.own = server.url.replace("//", "//t:t@")
    world.link = world.host.consumer_link(url=world.own)
    return world


async def test_lattice(fenced):
    """What is denied on the lattice is named by health and log; nothing is said of $SRV; when it is allowed, calls come."""
    fenced.permit('publish: ">", subscribe: {deny: ["*.*.wrpc.>", "$SRV.>"]}')
    provider = await fenced.start(fenced.link, ready=False)
    await names(fenced, "the lattice", "consumer@0.2.0.request", "consumer@0.2.0.publish")
    for function in "request", "publish":
        assert len(provider.log(f"ERROR lattice.*subscription to [^,]*consumer@0.2.0.{function}")) == 1
    assert not provider.log(r"\$SRV")
    fenced.permit('publish: ">", subscribe: ">"')
    await fenced.host.healthy(40 * SLOW)
    assert (await (await fenced.component(serve=False)).publish("x")).ok


async def test_lattice_publish(fenced):
    """A host of a component that may not be called: the subject is named, until a call goes through."""
    fenced.permit('publish: {deny: "*.echo.wrpc.>"}, subscribe: ">"')
    await fenced.start(fenced.host.handler_link(url=fenced.own, subscriptions=fenced.s("in"), handler_timeout_ms="500"))
    component = await fenced.component()
    await fenced.nc.publish(fenced.s("in"), b"1")
    await names(fenced, "the lattice", r"publish to .*\.echo\.wrpc.*handle-message")
    fenced.permit('publish: ">", subscribe: ">"')
    await fenced.nc.publish(fenced.s("in"), b"2")
    await component.next()
    await fenced.host.healthy()


async def test_lattice_health(fenced):
    """Whose own health cannot be asked for says so in the log, as an error."""
    fenced.permit('publish: ">", subscribe: {deny: "wasmbus.rpc.*.*.health"}')
    provider = await fenced.start(fenced.link, ready=False)
    await provider.wait_log(r"ERROR lattice.*Permissions Violation.*subscription to wasmbus\.rpc\..*\.health")


ENDLESS = {
    "publishes": lambda i: b"-ERR 'Permissions Violation for Publish to \"out.%d\"'\r\n" % i,
    "subscriptions": lambda i: b"-ERR 'Permissions Violation for Subscription to \"in.%d\" using queue \"q\"'\r\n" % i,
    "those that we have": lambda i: b"-ERR 'Permissions Violation for Subscription to \"in\"'\r\n",
    "without an end": lambda i: b"-ERR 'Permissions Violation for Subscription to \"in.%d\\'\r\n" % i,
    "without a subject": lambda i: b"-ERR 'Permissions Violation %d'\r\n" % i,
    "of sids": lambda i: b"-ERR 'Permissions Violation for Subscription to \"in\" (sid \"%d\")'\r\n" % i,
    "in quotes": lambda i: b"-ERR 'Permissions Violation for Publish to \"" + b"\\" * (i % 4000) + b"\"'\r\n",
    "with terminal sequences": lambda i: b"-ERR 'Permissions Violation for Publish to \"\x1b[31m\x07%d\"'\r\n" % i,
}


@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
async def test_endless(started, peers, make):
    """A server that refuses without end, each time something else, fills neither memory nor log, and others are served."""
    world, provider = started, started.provider
    done = asyncio.Event()

    async def hostile(reader, writer):
        await greet(reader, writer)
        drain = asyncio.create_task(hold(reader))
        for i in range(0, 20000, 100):
            await say(writer, b"".join(make(i + j) for j in range(100)))
        done.set()
        await drain
    bad = await peers(once(hostile))
    lines = len(provider.lines)
    await world.host.put(world.host.handler_link("bad", url=bad_url(bad), subscriptions="in"))
    await asyncio.wait_for(done.wait(), 3 * DEADLINE)
    await others_work(world)
    assert len(provider.lines) - lines < 60, provider.lines[-20:]
    assert not any("\x1b" in line for line in provider.lines)
