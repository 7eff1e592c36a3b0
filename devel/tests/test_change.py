# SPDX-License-Identifier: Apache-2.0
"""Links that change and leave while they work: what runs goes on until something better does, and nothing of it is lost."""
import asyncio
import json
import re
import signal

import pytest

import wire
from lattice import TooLate, flush, in_time, until, within
from peers import Relay, Stuck
from servers import DEADLINE, SLOW, Proxy, Silent, free_port


def changed(link, **config):
    """The same link with other configuration."""
    side = "source_config" if link["source_config"] else "target_config"
    return {**link, side: {**link[side], **config}}


def connections(world, subject):
    """Which connections have this subscription."""
    return world.server.subscribers(world.s(subject))


@pytest.mark.smoke
@pytest.mark.parametrize("config", [{"ping_interval_sec": "7"}, {"max_in_flight": "3"}, {"handler_timeout_ms": "700"}], ids=str)
async def test_in_place(world, config):
    """A setting that does not concern the connection changes in it."""
    link = world.host.handler_link(subscriptions=world.s("in"))
    provider = await world.start(link)
    before = connections(world, "in")
    await world.host.put(changed(link, **config))
    await world.host.healthy()
    assert connections(world, "in") == before
    component = await world.component(by_hand=True)
    for i in range(5):
        await world.nc.publish(world.s("in"), b"%d" % i)
    for _ in range(int(config.get("max_in_flight", 5))):
        await component.invocation()
    await world.host.healthy()
    assert component.invocations.empty(), "no more than max_in_flight"
    if "handler_timeout_ms" in config:
        await provider.wait_log("did not answer a message within 700 ms")


async def test_shorter_ping_interval(world, servers):
    """It begins when it is put, also on a connection that has been silent for longer."""
    path = Proxy(servers().port)
    link = world.host.consumer_link(url=path.url, ping_interval_sec="30")
    provider = await world.start(link)
    await asyncio.sleep(4)  # silence, behind the first PING of the server
    await world.put(changed(link, ping_interval_sec="1"))
    path.silence()
    await provider.wait_log("connection lost: silent")
    path.close()


async def test_ping_while_it_drains(world, servers):
    """A connection that drains for longer than its ping interval, since a request is out, is asked for a sign of life."""
    server = servers()
    link = world.host.consumer_link(url=server.url, ping_interval_sec="1")
    await world.start(link)
    asked = await world.listen("svc", nc=await world.client(server))
    component = await world.component(serve=False)
    call = await component.start("request", wire.request_params("svc", b"", 60000))
    question = await asked.next_msg(DEADLINE)
    await world.put(changed(link, custom_inbox_prefix="mine"))
    await asyncio.sleep(4)  # several intervals
    await question.respond(b"late")
    await call.finish()
    assert call.ok, call


async def test_subscriptions_in_place(world):
    """Those that are new are added, those that are gone are ended, the others are left alone."""
    link = world.host.handler_link(subscriptions=f"{world.s('stays')},{world.s('goes')}")
    await world.start(link)
    before = connections(world, "stays")
    await world.put(changed(link, subscriptions=f"{world.s('comes')},{world.s('stays')}|group"))
    await until(lambda: not connections(world, "goes"), "it is gone")
    assert len(connections(world, "stays")) == 1 and connections(world, "comes") == before


@pytest.mark.parametrize("config, words", [({"max_in_flight": "many"}, "max_in_flight"), ({"subscriptions": "a..b"}, "subscriptions"),
                                           ({"client_jwt": "x.y.z"}, "client_jwt")], ids=str)
async def test_wrong_settings_leave_what_runs(world, config, words):
    """They are named in log and health; a right put heals it."""
    link = world.host.handler_link(subscriptions=world.s("in"))
    provider = await world.start(link)
    component, before = await world.component(), connections(world, "in")
    await world.host.put(changed(link, **config))
    await world.host.unhealthy(f"echo.*its new settings are not used: {words}")
    await provider.wait_log(f"its new settings are not used: {words}")
    await world.nc.publish(world.s("in"), b"goes on")
    assert (await component.next()).body == b"goes on" and connections(world, "in") == before
    await world.host.put(link)
    await world.host.healthy()
    assert connections(world, "in") == before


async def test_absent_server_leaves_what_runs(world, servers):
    """The old connection serves until the new one is there: calls, messages, and the order to go back."""
    far = servers(run=False)
    far.port = free_port()
    handler, consumer = world.host.handler_link(subscriptions=world.s("in")), world.host.consumer_link()
    await world.start(handler, consumer)
    await world.echo()
    for link in (handler, consumer):
        await world.host.put(changed(link, cluster_uris=far.url))
    await world.host.unhealthy(f"its new settings are not used yet: .*{far.port}")
    assert await world.ask(world.s("in"), b"still here") == b"still here"
    await world.host.put(handler)
    far.start()
    await world.host.healthy(20 * SLOW)
    outside = await world.client(far)
    out = await world.listen("out", nc=outside)

    async def arrived():
        echo = await world.component("echo", serve=False)
        assert (await echo.publish("out", b"over there")).ok
        return out.pending_msgs > 0
    await until(arrived, "the consumer link has moved", 20 * SLOW)
    assert connections(world, "in"), "the other is back where it was"


async def test_stuck_server_leaves_what_runs(world, servers):
    """The new server connects, and then reads no more: the old connection serves until it does, and health says what is missing."""
    far = servers()
    path = await Stuck(far.address).open()
    link = world.host.handler_link(subscriptions=world.s("in"))
    provider = await world.start(link)
    component = await world.component()
    await world.host.put(changed(link, cluster_uris=path.url))
    await provider.wait_log("link .*connected to", count=2)
    for n in range(35):  # longer than it takes nats-server to say something by itself
        await world.nc.publish(world.s("in"), b"%d" % n)
        assert (await component.next()).body == b"%d" % n
        await asyncio.sleep(0.1)
    await world.host.unhealthy("its new settings are not used yet: the server has not answered")
    path.goes_on.set()
    await world.unsubscribed(world.s("in"))
    await (await world.client(far)).publish(world.s("in"), b"over there")
    assert (await component.next()).body == b"over there"
    await world.host.healthy()
    await path.close()


@pytest.mark.parametrize("config", [{"custom_inbox_prefix": "OTHER{i}"}, {"ping_interval_sec": "1{i}"}], ids=["connection", "in place"])
async def test_nothing_is_lost_while_it_changes(world, config):
    """A queue group's messages are handled once each, and no publish fails, however often the links change."""
    handler, consumer = world.host.handler_link(subscriptions=world.s("in") + "|group"), world.host.consumer_link()
    await world.start(handler, consumer)
    component = await world.component()
    running, failed, done = True, [], 0

    async def publishing():
        nonlocal done
        while running:
            call = await component.publish(world.s("out"), b"x")
            done += 1
            if not call.ok:
                failed.append(call.value)
    task = asyncio.create_task(publishing())
    outside, sent = await world.client(), 0
    for i in range(1, 9):
        for link in (handler, consumer):
            await world.host.put(changed(link, **{name: value.format(i=i) for name, value in config.items()}))
        for _ in range(int(300 / SLOW)):
            await outside.publish(world.s("in"), b"%d" % sent)
            sent += 1
        await flush(outside)
        count = done
        await until(lambda: done > count + 3, "publishes go on")
    bodies = [(await component.next()).body for _ in range(sent)]
    running = False
    await task
    assert sorted(bodies, key=int) == [b"%d" % i for i in range(sent)] and not failed
    await world.host.healthy()
    assert component.received.empty()


async def test_one_at_a_time_while_it_changes(world):
    """max_in_flight 1: the order stays, and the component never has two, though the connection is another."""
    link = world.host.handler_link(subscriptions=world.s("in") + "|group", max_in_flight="1")
    provider = await world.start(link)
    component = await world.component(by_hand=True)
    for i in range(4):
        await world.nc.publish(world.s("in"), b"%d" % i)
    call = await component.invocation()
    before = connections(world, "in")
    await world.host.put(changed(link, custom_inbox_prefix="OTHER"))
    await until(lambda: connections(world, "in") not in (before, []) and len(connections(world, "in")) == 1, "the other has taken over")
    for i in range(4, 8):
        await world.nc.publish(world.s("in"), b"%d" % i)

    async def all_there():
        return (await provider.counts())["received"] == 8
    await until(all_there, "the provider has all")
    for i in range(8):
        assert component.invocations.empty()
        await call.handshake()
        assert (await call.params()).body == b"%d" % i
        await call.answer()
        call = await component.invocation() if i < 7 else None


@pytest.mark.parametrize("taken_over", [True, False], ids=["taken over", "both are subscribed"])
async def test_order_while_the_queue_is_full(world, servers, taken_over, count=212, late=20):
    """One at a time stays in order though the queue is all but full as the connection changes: who comes later by the new one waits for the old."""
    far = servers('write_deadline: "60s"')
    link = world.host.handler_link(url=far.url, subscriptions="in", max_in_flight="1", handler_timeout_ms="60000")
    provider = await world.start(link)
    before = far.subscribers("in")
    order, begun, go = [], asyncio.Event(), asyncio.Event()

    async def handler(message):
        number = int(message.body[:8])
        if number not in order:  # what comes while both are subscribed comes twice
            order.append(number)
        begun.set()
        await go.wait()
    await world.component(handler=handler)
    outside = await world.client(far)
    for n in range(count):
        await outside.publish("in", b"%08d" % n + bytes(100_000))
    await flush(outside)
    await begun.wait()
    await world.host.put(changed(link, custom_inbox_prefix="mine"))
    await until(lambda: not set(far.subscribers("in")) <= set(before), "the new one is subscribed")
    if taken_over:
        await until(lambda: not set(far.subscribers("in")) & set(before), "it has taken over")
        while (await provider.counts())["received"] < count / 3:
            pass  # the queue fills
    for n in range(count, count + late):
        await outside.publish("in", b"%08d" % n)
    await flush(outside)
    go.set()
    await until(lambda: len(order) >= count + late, "all are handled", 3 * DEADLINE)
    assert order == list(range(count + late)), order


async def test_stop_while_another_is_to_take_over(worlds, server, servers):
    """On a stop, what comes to a queue group goes to its other members at once: neither connection stays subscribed."""
    async def steps():
        world, far = await worlds(server), servers()
        link = world.host.handler_link(url=far.url, subscriptions="in|group", max_in_flight="1", handler_timeout_ms="60000")
        provider = await world.start(link)
        component = await world.component(by_hand=True)
        outside = await world.client(far)
        with within(0.45):  # from the first message on the link pauses (provider.h, PAUSE_MS); then the new one takes over
            for n in range(3):
                await outside.publish("in", b"%d" % n)
            await flush(outside)
            await component.invocation()
            await world.host.put(changed(link, custom_inbox_prefix="mine"))
            await provider.wait_log("link .*connected to", count=2)
            await until(lambda: len(far.subscribers("in")) == 2, "both are subscribed", 1)
            other = await outside.subscribe("in", queue="group")
            await flush(outside)
            provider.send_signal(signal.SIGTERM)
            await provider.wait_log("stopping")
        with within(0.15):  # SHUTDOWN_MS: so long it does not end, and only its word ends a subscription
            await until(lambda: len(far.subscribers("in")) == 1, "the provider is not subscribed", 1)
        count = 0
        while provider.running:
            await outside.publish("in", b"new")
            await flush(outside)
            count += 1
        await provider.wait_exit()
        await until(lambda: other.pending_msgs == count, "all came to the other")
    await in_time(steps)


async def test_delete_drains(world):
    """What was answered ok before a delete arrives, and what the component has is finished."""
    link = world.host.consumer_link()
    await world.start(link)
    out = await world.listen(world.s("out"), nc=await world.client())
    echo = await world.component(serve=False)
    calls = [await echo.start("publish", wire.broker_message(world.s("out"), b"x" * 50000)) for _ in range(100)]
    done = [await call.finish() for call in calls]
    await world.host.delete(link)
    for _ in range(sum(call.ok for call in done)):
        await out.next_msg(DEADLINE)


async def test_delete_without_a_name(world):
    """It means the name "default", and no other."""
    links = [world.host.handler_link(name=name, subscriptions=world.s(name)) for name in ("default", "second")]
    await world.start(*links)
    order = {"source_id": world.host.key, "target": "echo", "wit_namespace": "wasmcloud", "wit_package": "messaging"}
    await world.nc.publish(world.host.control(f"{world.host.key}.linkdefs.del"), json.dumps(order).encode())
    await world.unsubscribed(world.s("default"))
    await world.host.healthy()
    assert connections(world, "second")


async def test_room_again(world):
    """A link that found no room for its subscriptions is looked at again when another one leaves."""
    large = [world.host.handler_link(name, name=name, subscriptions=",".join(f"{name}.{i}" for i in range(100))) for name in ("one", "two")]
    await world.start(large[0])
    await world.host.put(large[1])
    await world.host.unhealthy("two.*this build takes 128")
    small = world.host.handler_link("small", name="small", subscriptions=world.s("small"))
    await world.host.put(small)
    await until(lambda: connections(world, "small"), "what does not run counts for nothing")
    await world.host.delete(large[0])
    await until(lambda: world.server.subscribers("two.99"), "it has the room")
    await world.host.healthy()


async def test_links_that_hang_in_connecting(world):
    """All of them are deleted, and as many good ones put: each of these runs, as soon as an attempt to connect is over."""
    silent = Silent()
    try:
        hang, good = ([world.host.consumer_link(f"{kind}{i}", url=url) for i in range(32)] for kind, url in (("hangs", silent.url), ("runs", None)))
        provider = await world.start(*hang, ready=False)
        await until(lambda: len(silent.held) >= 32, "all of them hang")
        for link in hang:
            await world.host.delete(link)
        await world.host.put(*good)
        await world.host.healthy(3 * DEADLINE)
        for link in good[::8]:
            await world.link_works(link["source_id"])
        assert not provider.log("no place")
    finally:
        silent.close()


async def test_room_for_large_bodies(world):
    """20 links publish 1 MB each in turn: the buffers that this takes go from link to link, and no connection that is well is cut."""
    provider = await world.start(*(world.host.consumer_link(f"c{i}") for i in range(20)))
    components = [await world.component(f"c{i}", serve=False) for i in range(20)]
    for _ in range(3):
        done = [await component.publish(world.s("out"), bytes(1_000_000)) for component in components]
        assert all(call.ok for call in done), done
    assert not provider.log("connection lost")


async def test_running_links_survive_a_refused_one(world):
    """A link that asks for too many subscriptions does not run, and a config update takes nothing away from those that do."""
    link = world.host.handler_link("a", name="a", subscriptions=",".join(world.s(f"a.{i}") for i in range(60)))
    await world.start(link)
    await world.host.put(world.host.handler_link("b", name="b", subscriptions=",".join(world.s(f"b.{i}") for i in range(100))))
    await world.host.unhealthy("this build takes 128")
    await world.host.update_config({"ping_interval_sec": "19"})
    last = world.host.handler_link("c", name="c", subscriptions=world.s("c"))
    await world.host.put(last)
    await world.subscribed(last)
    assert "a -> " not in (words := await world.host.unhealthy("b.*this build takes 128")), words
    assert len(connections(world, "a.59")) == 1


async def test_to_another_node_of_a_cluster(worlds, server, servers, traffic):
    """The servers of a cluster hear of each other's subscriptions late: a message that comes meanwhile finds the old connection."""
    async def steps():
        world, port, cluster = await worlds(server), free_port(), "cluster {{ name: test, no_advertise: true, listen: 127.0.0.1:{}, routes: [{}] }}"
        first = servers(cluster.format(port, ""))
        path = Proxy(port, delay=0.1)
        second = servers(cluster.format(free_port(), f'"{path.url}"'))
        await until(lambda: first.monitored("routez")["num_routes"] > 0, "the servers know each other")
        provider = await world.start(world.host.handler_link(url=first.url, subscriptions="in|workers"))
        load = await traffic(world, "handle", "echo", link=first.url, subject="in", rate=int(2000 / SLOW))
        await load.progress("sent", 500)
        await world.host.put(world.host.handler_link(url=second.url, subscriptions="in|workers"))
        await provider.wait_log(f"connected to {second.address}")
        await until(lambda: not first.subscribers("in"), "the old connection has left")
        await load.progress("sent", 1000)
        await load.tell("rate 0")
        if path.late > 0.2:  # provider.h, OVERLAP_MS: servers tell each other sooner
            raise TooLate
        await load.until(lambda r: r["missing"] == 0, "each message was given to the component")
        path.close()
    await in_time(steps)


async def test_order_while_both_are_subscribed(world, cluster):
    """One at a time stays in order though the new connection, to another server, brings what it gets sooner than the old one does."""
    old, new = cluster.nodes[:2]
    path = Proxy(old.port, delay=0.15)
    link = world.host.handler_link(url=path.url, subscriptions="in", max_in_flight="1", ignore_discovered="true")
    await world.start(link)
    await until(lambda: old.subscribers("in") and new.knows("in"), "subscribed")
    component, outside = await world.component(), await world.client(new)
    sent, got, taken_over = 0, [], False
    async with asyncio.timeout(3 * DEADLINE):
        while not taken_over or len(got) < sent:
            if not taken_over:
                await outside.publish("in", b"%d" % sent)
                sent += 1
            if sent == 30:
                await world.host.put(changed(link, cluster_uris=new.url))
            taken_over = taken_over or sent > 30 and not old.subscribers("in")
            await asyncio.sleep(0.01)  # the rate
            while not component.received.empty():
                number = int((await component.next()).body)
                if number not in got:  # what comes while both are subscribed comes twice
                    got.append(number)
    assert got == list(range(sent)), got
    path.close()


@pytest.mark.parametrize("how", ["change", "delete"])
async def test_message_behind_the_probe(world, how):
    """nats-server may give a client a message for a subscription a moment after it has answered what came behind the end of that."""
    class Late(Relay):
        sid = ended = None

        async def _pump(self, reader, writer, change):
            while data := await reader.read(65536):
                if change is self.towards:
                    self.sid = re.search(rb"SUB in workers +(\d+)", data) or self.sid
                    self.ended = self.ended or self.sid and b"UNSUB %s" % self.sid[1] in data
                writer.write(data)
                if change is self.change and self.ended and b".c.probe." in data:
                    await asyncio.sleep(0.2)  # so late it may be on a busy machine: provider.h, STAY_MS
                    writer.write(b"MSG in %s 4\r\nlate\r\n" % self.sid[1])
                    self.ended = None
    relay = await Late(world.server.address).open()
    link = world.host.handler_link(url=relay.url, subscriptions="in|workers")
    await world.start(link)
    component = await world.component()
    if how == "change":
        await world.host.put(changed(link, custom_inbox_prefix="OTHER"))
    else:
        await world.host.delete(link)
    assert (await component.next()).body == b"late"
    await relay.close()
