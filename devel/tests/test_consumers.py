# SPDX-License-Identifier: Apache-2.0
"""Pull consumers under strain: requests that are refused, messages that come twice, or are on their way when something ends."""
import asyncio
import json
import math
import time

import pytest
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from lattice import TooLate, flush, in_time, until, within
from servers import DEADLINE, SLOW, Proxy, raw_publish
from test_change import changed
from test_jetstream import CONSUMER, STREAM, Stream, counts, link, provider_counts, stream  # noqa: F401: a fixture

REQUESTS = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"


async def passed(seconds):
    """The time itself is under test."""
    end = time.monotonic() + seconds
    await until(lambda: time.monotonic() > end, f"{seconds} s have passed", seconds + DEADLINE)


async def taken(call):
    """Lets a call that is answered by hand begin; gives the body."""
    await call.handshake()
    return (await call.params()).body


# ---------------------------------------------------------------- what is refused

class Watch:
    """Asks for health all the time from the first error on, and counts how often the consumer is asked for messages."""

    def __init__(self, world, requests):
        self.world, self.requests, self.began = world, requests, time.monotonic()

    async def backs_off(self, words):
        """Waits for six requests, and 4 s: there are no more than pauses leave that grow, and health never says that all is well."""
        await self.world.host.unhealthy(words)
        while (count := self.requests.pending_msgs) < 6 or time.monotonic() < self.began + 4:
            answer = await self.world.host.health()
            assert not answer["healthy"], f"health flaps after {count} requests"
            await asyncio.sleep(0.01)
        seconds = time.monotonic() - self.began
        assert self.requests.pending_msgs <= 3 + math.log2(seconds / 0.05), f"no back-off: {count} requests in {seconds:.1f} s"  # 50 to 100 ms at first; it doubles


async def test_refused_for_its_size(world, stream):
    """The next message is larger than max_bytes."""
    await stream.consumer()
    await stream.put(b"x" * 5000)
    watch = Watch(world, await world.listen(REQUESTS, nc=stream.js._nc))
    provider = await world.start(link(world, stream, {"stream": STREAM, "consumer": CONSUMER, "max_bytes": 1000}), ready=False)
    component = await world.component()
    await watch.backs_off(f"{CONSUMER} of stream {STREAM}.*larger than max_bytes")
    assert len(provider.log("takes messages")) == 1
    await stream.js.purge_stream(STREAM)
    await stream.put(b"small")
    assert (await component.next(2 * DEADLINE)).body == b"small"
    await world.host.healthy()


async def test_refused_for_others_requests(world, stream):
    """Others have asked for all that max_waiting allows; when they have not, it works again."""
    await stream.consumer(max_waiting=1)
    requests = await world.listen(REQUESTS, nc=stream.js._nc)
    nc = await world.client(stream.server)
    inbox = await nc.subscribe(nc.new_inbox())
    await nc.publish(REQUESTS, json.dumps({"batch": 1, "expires": int(60e9 * SLOW)}).encode(), reply=inbox.subject)
    await requests.next_msg(DEADLINE)
    watch = Watch(world, requests)
    await world.start(link(world, stream), ready=False)
    component = await world.component()
    await watch.backs_off("Exceeded MaxWaiting")
    await inbox.unsubscribe()
    await flush(nc)
    await stream.put(b"x")
    assert (await component.next(2 * DEADLINE)).body == b"x"
    await world.host.healthy()


@pytest.fixture
async def guarded(world, servers, folder):
    """A stream on a server whose user "gateway" may publish all but what was said last to guarded.deny(subject)."""
    store = f'jetstream {{ store_dir: "{folder}/js-{world.lattice}", max_mem: 64M, max_file: 256M }}\n'

    def config(denied, more=""):
        return store + ("authorization { users: [ { user: owner, password: o }, { user: gateway, password: secret, "
                        f'permissions: {{ publish: {{ allow: [">"], deny: ["{denied}"] }}{more} }} }} ] }}')
    server = servers(config("nothing"))
    nc = await world.client(server, user="owner", password="o")
    js = nc.jetstream(timeout=DEADLINE)
    await js.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"]))
    stream = Stream(server, js)
    stream.deny = lambda *how: server.reload(config(*how))
    return stream


def gateway(stream):
    return stream.server.url.replace("//", "//gateway:secret@")


async def test_denied_request(world, guarded):
    """The user may not ask for messages: it is named at once; when it may, it works without a restart."""
    await guarded.consumer()
    guarded.deny("$JS.API.CONSUMER.MSG.NEXT.>")
    await world.start(link(world, guarded, url=gateway(guarded)), ready=False)
    component = await world.component()
    began, says = time.monotonic(), []
    await world.host.unhealthy(f"{CONSUMER} of stream {STREAM}.*Permissions Violation.*MSG.NEXT")
    while time.monotonic() < began + 3:
        says.append((await world.host.health())["healthy"])
        await asyncio.sleep(0.01)
    assert not any(says)
    assert len(world.provider.log("the server says")) < 12, "asked less and less often"
    guarded.deny("nothing")
    await guarded.put(b"x")
    assert (await component.next(2 * DEADLINE)).body == b"x"
    await world.host.healthy()


async def test_denied_acknowledgement(world, guarded):
    """The user may not acknowledge: health says so for as long as it is true, and asking backs off."""
    await guarded.consumer(ack_wait=1)
    guarded.deny("$JS.ACK.>")
    await guarded.put(*(b"%d" % i for i in range(20)))
    requests = await world.listen(REQUESTS, nc=guarded.js._nc)
    await world.start(link(world, guarded, url=gateway(guarded)), ready=False)
    await world.component()
    await world.host.unhealthy(f"{CONSUMER} of stream {STREAM}.*Permissions Violation.*JS.ACK")
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert not (await world.host.health())["healthy"]
        await asyncio.sleep(0.01)
    assert requests.pending_msgs < 20, "asked less and less often"
    guarded.deny("nothing")
    await guarded.settled(20, timeout=4 * DEADLINE)
    await world.host.healthy(2 * DEADLINE)


async def test_acknowledgements_are_let_through_again(world, guarded):
    """On a connection that stays, an acknowledgement that gets through shows that it works. (allow_responses lets one answer to
    each message through: the first report that it is in progress, and then not its acknowledgement.)"""
    await guarded.consumer(ack_wait=1)
    guarded.deny("$JS.ACK.>", ", allow_responses: true")
    slow = True

    async def handler(message):
        if slow:
            await passed(1)
    await world.start(link(world, guarded, url=gateway(guarded), handler_timeout_ms="60000"), ready=False)
    await world.component(handler=handler)
    await guarded.put(b"slow")
    await world.host.unhealthy("Permissions Violation.*JS.ACK")
    slow = False
    await guarded.put(b"fast")
    await world.host.healthy(4 * DEADLINE)
    await guarded.settled(2, timeout=4 * DEADLINE)


# ---------------------------------------------------------------- what comes twice

async def test_shorter_ack_wait(world, stream):
    """An owner who makes ack_wait shorter than the time between two reports of progress: the component has the message once, and
    soon JetStream hears often enough."""
    await stream.consumer(ack_wait=30)
    await world.start(link(world, stream, handler_timeout_ms="60000"))
    component = await world.component(by_hand=True)
    await stream.put(b"0", b"1")
    calls = [await component.invocation() for _ in range(2)]
    assert [await taken(call) for call in calls] == [b"0", b"1"]
    await stream.consumer(ack_wait=3)
    await until(lambda: redelivered(stream, 1), "it is delivered again")
    await passed(8)
    assert component.invocations.empty()
    assert (await stream.info()).delivered.consumer_seq <= 2 + 2 * 2, "each was delivered again once, or once more"
    for call in calls:
        await call.answer()
    await stream.settled(2)
    assert (await counts(world.provider))["received"] == 2


async def redelivered(stream, count):
    return (await stream.info()).num_redelivered >= count


async def test_outage_longer_than_ack_wait(world, stream):
    """What waits, or the component still has, when JetStream delivers it again it has once: its outcome is told by the newer
    delivery."""
    path = Proxy(stream.server.port)
    await stream.consumer(ack_wait=3)  # longer than anybody's process stands still
    told = await world.listen("$JS.ACK.>", nc=stream.js._nc)
    provider = await world.start(link(world, stream, url=path.url, max_in_flight="4", subscriptions="plain", handler_timeout_ms="60000"))
    component = await world.component(by_hand=True)
    await until(lambda: stream.server.subscribers("plain"), "subscribed")
    for _ in range(3):
        await stream.js._nc.publish("plain", b"plain")
    plain = [await component.invocation() for _ in range(3)]
    await stream.put(b"good", b"bad")
    good = await component.invocation()
    assert await taken(good) == b"good"
    await until(provider_counts(provider, received=5), "the other waits")
    path.silence()
    await until(lambda: redelivered(stream, 2), "they are delivered again")
    path.speak()
    await passed(1)
    assert component.invocations.empty()
    await good.answer()
    bad = await component.invocation()
    assert await taken(bad) == b"bad"
    await bad.answer("not today")
    again = await component.invocation()
    assert await taken(again) == b"bad"
    for call in plain:
        assert await taken(call) == b"plain"
    for call in (again, *plain):
        await call.answer()
    await stream.settled(2)
    subjects = {m.data[:4]: m.subject for m in [await told.next_msg() for _ in range(told.pending_msgs)]}
    assert subjects[b"-NAK"].split(".")[4] != "1", "the newer delivery is told of"
    await until(provider_counts(provider, received=6, handled=5, error=1), "all is counted once")
    assert component.invocations.empty()
    path.close()


async def test_stream_made_anew(world, servers, folder):
    """A stream in memory is lost with its server and made anew: what became of the old message 1 says nothing of the new one."""
    server = servers(f'jetstream {{ store_dir: "{folder}/js-{world.lattice}", max_mem: 64M, max_file: 256M }}')

    async def make():
        nc = await world.client(server)
        js = nc.jetstream(timeout=DEADLINE)
        await js.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"], storage=StorageType.MEMORY))
        await js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT))
        return Stream(server, js)
    stream = await make()
    provider = await world.start(link(world, stream, handler_timeout_ms="60000"))
    component = await world.component(by_hand=True)
    await stream.put(b"old")
    old = await component.invocation()
    assert await taken(old) == b"old"
    server.stop()
    await provider.wait_log("connection lost")
    server.start()
    stream = await make()
    await stream.put(b"new")
    new = await component.invocation(2 * DEADLINE)
    assert await taken(new) == b"new"
    await old.answer()
    await provider.wait_log("was not told .*ACK")
    await new.answer("not today")
    again = await component.invocation(2 * DEADLINE)
    assert await taken(again) == b"new"
    await again.answer()
    await stream.settled(1)


async def test_subscription_to_everything(world, stream):
    """`>` gets what anybody publishes, but nothing of the provider's own; and what the consumer delivers comes once."""
    await stream.consumer()
    component = await world.component()
    provider = await world.start(link(world, stream, subscriptions=">"))
    await stream.put(*(b"%d" % i for i in range(50)))
    await stream.settled(50)
    await until(provider_counts(provider, open=0), "all is handled")
    got = [await component.next() for _ in range(component.received.qsize())]
    assert sorted(int(m.body) for m in got if m.subject == "orders.new" and not m.reply_to) == list(range(50))
    assert sorted(int(m.body) for m in got if m.subject == "orders.new" and m.reply_to) == list(range(50)), "as they were published"
    assert not [m.subject for m in got if m.subject.startswith(("$JS.ACK.", REQUESTS))]
    assert not provider.log(" (WARN|ERROR) ")
    await world.host.healthy()


# ---------------------------------------------------------------- what is promised, and what is on its way

async def test_each_request_has_its_room(world, stream):
    """Four links with all settings at their defaults, whose requests stand: each gets what it has asked for, to the last message,
    though the components take nothing meanwhile."""
    go, got, names = asyncio.Event(), {}, "ABCD"
    for name in names:
        await stream.consumer(name, filter_subject=f"orders.{name}", max_deliver=1)
        bodies = got[name] = set()

        async def handler(message, bodies=bodies):
            await go.wait()
            bodies.add(message.body)
        await world.component(name, handler)
    provider = await world.start(*(link(world, stream, name, component=name, name=name) for name in names))
    await provider.wait_log("takes messages", count=4)
    for name in names:
        await asyncio.gather(*(stream.put(b"%d" % i, subject=f"orders.{name}") for i in range(256)))
        await until(lambda: delivered(stream, name, 256), f"all of {name} are delivered")
    go.set()
    await until(lambda: all(len(bodies) == 256 for bodies in got.values()), "all are handled", 2 * DEADLINE)
    assert not provider.log("was given back")


async def delivered(stream, name, count):
    return (await stream.info(name)).delivered.consumer_seq >= count


@pytest.mark.parametrize("order, pause", [("put", 0), ("delete", 0), ("delete", 1.5), ("shutdown", 0), ("shutdown", 1.5)])
async def test_on_its_way_when_it_ends(worlds, server, stream, order, pause):
    """What was asked for, and is on its way when the link changes or ends, is handled or given back: nobody waits for ack_wait. That
    goes, too, if the next one asks only after the pause that JetStream was told to make, while no request should stand."""
    async def steps():
        world, path = await worlds(server), Proxy(stream.server.port)
        await stream.consumer(ack_wait=600)
        handler = link(world, stream, url=path.url)
        provider = await world.start(handler)
        component = await world.component()
        try:
            await until(lambda: waits(stream), "its request stands")
            path.silence("to client")
            await stream.put(*(b"%d" % i for i in range(100)))
            await until(lambda: delivered(stream, CONSUMER, 100), "they are on their way")
            with within(1.7):  # provider.h, PROBE_PATIENCE_MS: so long a path may stand still
                if order == "shutdown":
                    asked = asyncio.create_task(world.host.shutdown())
                    await provider.wait_log("stopping")
                elif order == "delete":
                    await world.host.delete(handler)
                    await provider.wait_log("deleted")
                else:
                    await world.host.put(changed(handler, custom_inbox_prefix="OTHER"))
                    await provider.wait_log("connects anew")
                path.speak()
        except TooLate:
            path.speak()
            await provider.stop()
            await stream.js.delete_consumer(STREAM, CONSUMER)
            await stream.js.purge_stream(STREAM)
            raise
        if order == "shutdown":
            await asked
            assert await provider.wait_exit() == 0
            world.providers.remove(provider)
            await asyncio.sleep(pause)
            await world.start(link(world, stream))
        elif order == "delete":
            await provider.wait_log("counts: .*open=0")
            await asyncio.sleep(pause)
            await world.put(link(world, stream))
        bodies = set()
        while len(bodies) < 100:
            bodies.add((await component.next()).body)
        await stream.settled((await stream.js.stream_info(STREAM)).state.last_seq)
        path.close()
    await in_time(steps)


async def test_order_over_a_change(world, stream):
    """One at a time stays in order though what was asked for by the old connection is on its way, and the new one's is quicker."""
    path = Proxy(stream.server.port)
    await stream.consumer()
    handler = link(world, stream, url=path.url, max_in_flight="1")
    provider = await world.start(handler)
    component = await world.component()
    await until(lambda: waits(stream), "its request stands")
    path.silence("to client")
    await stream.put(b"1", b"2", b"3")
    await until(lambda: delivered(stream, CONSUMER, 1), "the first is on its way")
    await world.host.put(changed(handler, cluster_uris=stream.server.url))
    await provider.wait_log("link .*connected to", count=2)
    await asyncio.sleep(0.3)  # in which the others could come
    path.speak()
    assert [(await component.next()).body for _ in range(3)] == [b"1", b"2", b"3"]
    await stream.settled(3)
    path.close()


async def test_told_by_the_connection_that_works(world, stream):
    """The link changes since its path takes nothing any more: what the component had then is acknowledged by the new connection."""
    path = Proxy(stream.server.port)
    await stream.consumer(ack_wait=600)
    await world.start(link(world, stream, url=path.url, handler_timeout_ms="60000"))
    component = await world.component(by_hand=True)
    await stream.put(b"x")
    call = await component.invocation()
    assert await taken(call) == b"x"
    path.silence("to server")
    await world.host.put(link(world, stream, handler_timeout_ms="60000"))
    await until(lambda: on_its_own_server(stream), "the new connection asks")
    await call.answer()
    await stream.settled(1)
    path.close()


async def on_its_own_server(stream):
    return (await stream.info()).num_waiting > 1


async def test_what_another_took_from_the_consumer(world, stream):
    """A link that is subscribed to everything hears what somebody else takes from its consumer: that is not its own to handle, or to
    acknowledge."""
    await stream.consumer()
    await world.start(link(world, stream, subscriptions=">", max_in_flight="1", handler_timeout_ms="60000"), ready=False)
    await until(lambda: waits(stream), "its request stands")
    component = await world.component(by_hand=True)
    await stream.put(b"ours")  # all that it asks for at a time
    call = await component.invocation()
    other = await stream.js.pull_subscribe("", durable=CONSUMER, stream=STREAM)
    await stream.put(b"the other's")
    [theirs] = await other.fetch(1, timeout=DEADLINE)
    assert theirs.data == b"the other's"
    await stream.js._nc.publish("last", b"last")
    handled = []
    while b"last" not in handled:
        await call.handshake()
        message = await call.params()
        if message.subject in ("orders.new", "last") and not message.reply_to:
            handled.append(message.body)  # else as it was published, or what JetStream and those that ask it say
        await call.answer()
        call = await component.invocation() if b"last" not in handled else None
    assert (await stream.info()).num_ack_pending >= 1 and sorted(handled) == [b"last", b"ours"], handled
    await theirs.ack_sync()
    await stream.settled(2)


async def test_nobody_to_give_it_back_to(world, stream):
    """The connection is away when the link is deleted: the log says of what waits that it comes again later, not that it was given back."""
    path = Proxy(stream.server.port)
    for name in ("one", "two"):
        await stream.consumer(name, filter_subject=f"orders.{name}")
    handler = link(world, stream, "one", "two", url=path.url, max_in_flight="1", handler_timeout_ms="60000")
    provider = await world.start(handler)
    component = await world.component(by_hand=True)
    await stream.put(b"one", subject="orders.one")
    await component.invocation()
    await stream.put(b"two", subject="orders.two")
    await until(provider_counts(provider, received=2), "it waits behind the first")
    path.close()
    await provider.wait_log("connection lost")
    await world.host.delete(handler)
    await provider.wait_log("WARN .*a message of consumer two comes again after ack_wait")
    assert not provider.log("was given back") and (await stream.info("two")).num_ack_pending == 1


async def test_another_server(world, stream, servers, folder):
    """The link moves to a server with a stream and a consumer of the same names: each server hears of its own messages."""
    server = servers(f'jetstream {{ store_dir: "{folder}/other-{world.lattice}", max_mem: 64M, max_file: 256M }}')
    other = Stream(server, (await world.client(server)).jetstream(timeout=DEADLINE))
    await other.js.add_stream(StreamConfig(name=STREAM, subjects=["orders.>"]))
    for one, body in ((stream, b"here"), (other, b"there")):
        await one.consumer()
        await one.put(body)
    await world.start(link(world, stream, handler_timeout_ms="60000"))
    component = await world.component(by_hand=True)
    here = await component.invocation()
    assert await taken(here) == b"here"
    await world.host.put(link(world, other, handler_timeout_ms="60000"))
    there = await component.invocation()
    assert await taken(there) == b"there"
    await here.answer()
    await stream.settled(1)
    assert (await other.info()).num_ack_pending == 1
    await there.answer()
    await other.settled(1)


async def waits(stream):
    return (await stream.info()).num_waiting > 0


async def test_message_for_no_component(world, stream):
    """One whose subject is not UTF-8 is ended, counted and logged, though it is the only one that may be open."""
    await stream.consumer(max_ack_pending=1)
    raw_publish(stream.server, b"orders.\xff", b"bad")
    await stream.put(b"good")
    provider = await world.start(link(world, stream))
    component = await world.component()
    assert (await component.next()).body == b"good"
    await stream.settled(2)
    assert len(provider.log("ERROR .*dropped: its subject is not UTF-8")) == 1
    told = await counts(provider)
    assert (told["received"], told["dropped"], told["handled"]) == (2, 1, 1)


async def test_plain_messages_leave_a_share(world, stream):
    """A subscription that brings more than the component can do: what the consumer delivers has its turn, every other time."""
    await stream.consumer()
    provider = await world.start(link(world, stream, subscriptions="plain", max_in_flight="1"))
    component = await world.component(by_hand=True)
    for i in range(60):
        await stream.js._nc.publish("plain", b"%d" % i)
    call = await component.invocation()
    await stream.put(*(b"stored" for _ in range(10)))
    await until(provider_counts(provider, received=61), "all wait, and the first that the consumer delivered")
    stored = 0
    for _ in range(22):
        if await taken(call) == b"stored":
            stored += 1
            await call.answer()
            await until(provider_counts(provider, received=60 + min(stored + 1, 10)), "the next one is there")
        else:
            await call.answer()
        call = await component.invocation()
    assert stored == 10
    assert not provider.log(" WARN ")


# ---------------------------------------------------------------- what waits for long

@pytest.mark.long
async def test_kept_while_nobody_runs_the_component(world, stream):
    """With a limited max_deliver a message waits for as long as it takes: its deliveries are not used up."""
    await stream.consumer(max_deliver=1, ack_wait=30)
    await stream.put(*(b"%d" % i for i in range(5)))
    provider = await world.start(link(world, stream))
    await provider.wait_log("nobody runs")
    await passed(65)
    component = await world.component()
    assert {(await component.next()).body for _ in range(5)} == {b"%d" % i for i in range(5)}
    await stream.settled(5)
    assert not provider.log("was given back")


@pytest.mark.long
async def test_kept_while_the_component_works(world, stream):
    """One at a time, two consumers, a component that takes more than a minute: what waits behind it is not given back."""
    for name in ("one", "two"):
        await stream.consumer(name, filter_subject=f"orders.{name}", max_deliver=1, ack_wait=30)
    provider = await world.start(link(world, stream, "one", "two", max_in_flight="1", handler_timeout_ms="200000"))
    component = await world.component(by_hand=True)
    await stream.put(b"one", subject="orders.one")
    call = await component.invocation()
    await stream.put(b"two", subject="orders.two")
    assert await taken(call) == b"one"
    await passed(65)
    await call.answer()
    call = await component.invocation()
    assert await taken(call) == b"two"
    await call.answer()
    await stream.settled(2, "two")
    assert not provider.log("was given back")
