# SPDX-License-Identifier: Apache-2.0
"""What a host orders: links put and deleted, configuration updated, health asked for, shutdown."""
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import time

import pytest
from nats.errors import TimeoutError as NatsTimeout

import lattice
import wire
from lattice import flush, in_time, quickest, until, within
from servers import DEADLINE, SLOW, free_port

pytestmark = pytest.mark.smoke


# ---------------------------------------------------------------- health

async def test_healthy(each_world):
    """Exactly {"healthy": true} while everything is connected."""
    world = each_world
    await world.start(world.host.handler_link(subscriptions=world.s("in")), world.host.consumer_link())
    assert await world.host.health() == {"healthy": True}


async def test_unhealthy_link_is_named(world):
    """Health says which link is not connected, and why."""
    port = free_port()
    await world.start(world.host.consumer_link("good"), world.host.consumer_link("bad", url=f"nats://127.0.0.1:{port}"), ready=False)
    await world.link_works("good")
    words = await world.host.unhealthy(f"bad.*{port}")
    assert "good" not in words
    assert set(await world.host.health()) == {"healthy", "message"}


async def test_healthy_without_links(world):
    """A provider without links is a healthy one."""
    await world.start()
    assert (await world.host.health())["healthy"] is True


# ---------------------------------------------------------------- put

async def test_put(each_world):
    """A link that is put works, and so does the next."""
    world = each_world
    await world.start()
    await world.put(world.host.handler_link(subscriptions=world.s(">")), world.host.consumer_link())
    await world.echo()
    assert await world.ask(world.s("x")) == b"hello"


async def test_put_on_both_subjects(world):
    """With xkeys, links come on the provider's public xkey and, those without secrets, on its key as well."""
    world.host.make_xkeys()
    await world.start()
    await world.put(world.host.consumer_link("one"))
    world.host.put_id = world.host.key
    await world.put(world.host.consumer_link("two"))
    for name in ("one", "two"):
        assert (await (await world.component(name, serve=False)).publish(world.s("x"))).ok


async def test_equal_put_is_ignored(world):
    """The same content, in another order and with other empty fields, leaves the connection alone."""
    link = world.host.handler_link(subscriptions=world.s("in"), custom_inbox_prefix="P")
    await world.start(link)
    before = world.server.subscribers(world.s("in"))
    shuffled = dict(reversed(link.items()), source_config=dict(reversed(link["source_config"].items())), target_secrets=[])
    del shuffled["source_secrets"]
    for again in (link, shuffled, {**link, "unknown": "field"}):
        await world.host.put(again)
    await world.host.healthy()
    assert world.server.subscribers(world.s("in")) == before
    component = await world.component()
    await world.nc.publish(world.s("in"), b"once")
    await component.next()
    await world.host.healthy()
    assert component.received.empty()


async def test_changed_put_replaces(each_world):
    """The same link with other content takes its place: new subscriptions instead of the old."""
    world = each_world
    await world.start(world.host.handler_link(subscriptions=f"{world.s('a')},{world.s('b')}"))
    component = await world.component()
    await world.put(world.host.handler_link(subscriptions=f"{world.s('b')},{world.s('c')}"))
    await world.unsubscribed(world.s("a"))
    await until(lambda: len(world.server.subscribers(world.s("b"))) == 1, "one subscription to b")
    for name in "abc":
        await world.nc.publish(world.s(name), name.encode())
    assert [(await component.next()).body for _ in "bc"] == [b"b", b"c"]
    await world.host.healthy()
    assert component.received.empty()


async def test_change_loses_no_call_in_flight(world):
    """A call that is out when the link changes gets its answer."""
    await world.start(world.host.consumer_link())
    asked = await world.listen(world.s("svc"))
    call = await (await world.component(serve=False)).start("request", wire.request_params(world.s("svc"), b"x", 10000))
    msg = await asked.next_msg(DEADLINE)
    await world.put(world.host.consumer_link(custom_inbox_prefix="OTHER"))
    await msg.respond(b"answer")
    await call.finish()
    assert call.ok and call.value.body == b"answer"


NOT_LINKS = [b"", b"nonsense", b"[]", b"{}", b'{"source_id":1}', b'{"source_id":"a","target":"b"}', b'{"source_id":null,"target":null}',
             b"{" * 5000, json.dumps({"source_id": "x" * 100000, "target": lattice.KEY, "name": "default"}).encode()]


async def test_puts_that_are_no_links(world):
    """They are logged and ignored; the provider goes on."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in")))
    for payload in NOT_LINKS:
        await world.nc.publish(world.host.control(f"{world.host.key}.linkdefs.put"), payload)
        await world.nc.publish(world.host.control(f"{world.host.key}.linkdefs.del"), payload)
        await world.nc.publish(world.host.control(f"{world.host.key}.config.update"), payload if payload != b"{}" else b"")
    await world.host.healthy()
    assert provider.log("WARN|ERROR")
    component = await world.component()
    await world.nc.publish(world.s("in"), b"x")
    await component.next()


async def test_link_of_somebody_else(world):
    """A link that does not have the provider at either end is ignored."""
    await world.start()
    link = {**world.host.handler_link(subscriptions=world.s("in")), "source_id": "another", "target": "third"}
    await world.host.put(link)
    await world.host.healthy()
    assert not world.server.subscribers(world.s("in"))


@pytest.mark.parametrize("config, word", [
    ({"consumers": '[{"stream":"S"}]'}, "consumers"), ({"subscriptions": "a..b"}, "subscriptions"),
    ({"client_jwt": "x.y.z"}, "client_seed"), ({"max_in_flight": "0"}, "max_in_flight"), ({"tls_ca": "nonsense"}, "tls_ca"),
    ({"cluster_uris": "nats://"}, "cluster_uris")], ids=str)
async def test_wrong_configuration(world, config, word):
    """Health and log name the link and the key that is wrong; the others work, and a correct put heals it."""
    provider = await world.start(world.host.consumer_link("good"))
    await world.host.put(world.host.handler_link("echo", **{"subscriptions": world.s("in"), **config}))
    assert word in await world.host.unhealthy("echo")
    await provider.wait_log(f"echo.*{word}")
    assert (await (await world.component("good", serve=False)).publish(world.s("x"))).ok
    await world.put(world.host.handler_link("echo", subscriptions=world.s("in")))


# ---------------------------------------------------------------- delete

async def test_delete(each_world):
    """A delete stops the subscriptions and the calls of that link, and of no other. 1.0 hosts write fewer fields into it."""
    world, host = each_world, each_world.host
    handler, consumer = host.handler_link(subscriptions=world.s("in")), host.consumer_link()
    await world.start(handler, consumer, host.consumer_link("other"))
    echo, other = await world.component(serve=False), await world.component("other", serve=False)
    await host.delete(handler)
    await world.unsubscribed(world.s("in"))
    assert (await echo.publish(world.s("x"))).ok
    await host.delete(consumer)
    await host.healthy()
    assert await (await echo.publish(world.s("x"))).failed_in_both_forms()
    assert (await other.publish(world.s("x"))).ok
    await host.delete(consumer)  # again: nothing is there
    await world.put(consumer, handler)
    assert (await echo.publish(world.s("x"))).ok


async def test_delete_by_name(each_world):
    """Of two links of one component, the one that is named goes."""
    world, host = each_world, each_world.host
    links = [host.handler_link(name=name, subscriptions=world.s(name)) for name in ("default", "second")]
    await world.start(*links)
    await host.delete(links[1])
    await world.unsubscribed(world.s("second"))
    assert world.server.subscribers(world.s("default"))


async def test_delete_lets_requests_end(world):
    """A request that is out when its link goes still gets its answer."""
    link = world.host.consumer_link()
    await world.start(link)
    asked = await world.listen(world.s("svc"))
    call = await (await world.component(serve=False)).start("request", wire.request_params(world.s("svc"), b"x", 10000))
    msg = await asked.next_msg(DEADLINE)
    await world.host.delete(link)
    await world.host.healthy()
    await msg.respond(b"answer")
    await call.finish()
    assert call.ok and call.value.body == b"answer"


async def test_delete_lets_messages_end(world):
    """A message that the component has when its link goes is handled to its end: large parameters still come, the result is read."""
    link = world.host.handler_link(subscriptions=world.s("in"))
    provider = await world.start(link)
    component = await world.component(by_hand=True)
    await world.nc.publish(world.s("in"), b"x" * 1048576)
    call = await component.invocation()
    await world.host.delete(link)
    await world.unsubscribed(world.s("in"))
    await call.handshake()
    assert len((await call.params()).body) == 1048576
    await call.answer("told after the delete")
    await provider.wait_log("told after the delete")


# ---------------------------------------------------------------- config update

async def test_config_update(world):
    """Links that use the defaults that change are applied again; others are left alone."""
    host = world.host
    own, defaults = host.handler_link("own", subscriptions=world.s("own")), host.handler_link("defaults", url="")
    await world.start(own, defaults, config={"cluster_uris": world.server.url, "subscriptions": world.s("old")})
    await until(lambda: world.server.subscribers(world.s("old")), "the default subscription")
    before = world.server.subscribers(world.s("own"))
    await host.update_config({"cluster_uris": world.server.url, "subscriptions": world.s("new")})
    await until(lambda: world.server.subscribers(world.s("new")), "the new default subscription")
    await world.unsubscribed(world.s("old"))
    assert world.server.subscribers(world.s("own")) == before
    component = await world.component("defaults")
    await world.nc.publish(world.s("new"), b"x")
    assert (await component.next()).body == b"x"


async def test_config_update_that_changes_nothing(world):
    """A host repeats the configuration at every start; nothing is connected anew."""
    config = {"subscriptions": world.s("in"), "cluster_uris": world.server.url}
    await world.start(world.host.handler_link(url=""), config=config)
    await until(lambda: world.server.subscribers(world.s("in")), "the default subscription")
    before = world.server.subscribers(world.s("in"))
    await world.host.update_config(dict(reversed(config.items())))
    await world.host.healthy()
    assert world.server.subscribers(world.s("in")) == before


async def test_consumer_links_inherit_no_subscriptions(world):
    """The provider's default subscriptions are for handler links."""
    await world.start(world.host.consumer_link(), config={"subscriptions": world.s("in")})
    assert not world.server.subscribers(world.s("in"))


# ---------------------------------------------------------------- shutdown

@pytest.mark.parametrize("version", ["1.9", "1.0"])
async def test_shutdown(worlds, server, version):
    """The right order is answered in time, and the process ends with code 0."""
    async def attempt():
        world = await worlds(server, version)
        provider = await world.start(world.host.handler_link(subscriptions=world.s("in")), world.host.consumer_link())
        start = time.monotonic()
        assert await world.host.shutdown() == b"shutting down"
        took = time.monotonic() - start
        assert await provider.wait_exit() == 0
        return took
    await quickest(0.3 * SLOW, attempt)


@pytest.mark.parametrize("host_id", ["NOTHERHOST", ""])
async def test_shutdown_of_another_host(world, host_id):
    """An order that names another host gets no reply, and changes nothing."""
    await world.start()
    order = json.dumps({"host_id": host_id}).encode()
    for payload in (order, b"", b"{}", b"nonsense"):
        with pytest.raises(NatsTimeout):
            await world.nc.request(world.host.control(f"{world.host.key}.default.shutdown"), payload, timeout=0.15)
    await world.host.healthy()


WAITS = 0.2  # s; a provider that is to end waits a little longer for what is under way: provider.h, SHUTDOWN_MS


async def test_shutdown_waits_for_what_is_in_flight(worlds, server):
    """A request that is out is answered first; then comes the reply to the host."""
    async def steps():
        world = await worlds(server)
        provider = await world.start(world.host.consumer_link(), world.host.handler_link(subscriptions=world.s("in")))
        asked = await world.listen(world.s("svc"))
        call = await (await world.component(serve=False)).start("request", wire.request_params(world.s("svc"), b"x", 10000))
        msg = await asked.next_msg(DEADLINE)
        await call.handshake()
        with within(WAITS):
            order = asyncio.create_task(world.host.shutdown())
            await world.unsubscribed(world.s("in"))  # the order has come, and no more work is taken
            answered = order.done()
            await msg.respond(b"in time")
            await call.send_rest()
            await flush(world.nc)
        assert not answered
        assert (await call.result()).value.body == b"in time"
        assert await order == b"shutting down"
        assert await provider.wait_exit() == 0
    await in_time(steps)


async def test_shutdown_lets_a_component_finish(worlds, server):
    """A component that has a message when the order comes may still publish for it, and then its answer counts."""
    async def steps():
        world = await worlds(server)
        provider = await world.start(world.host.consumer_link(), world.host.handler_link(subscriptions=world.s("in")))
        component = await world.component(serve=False)
        await component.serve(by_hand=True)
        heard = await world.listen(world.s("out"))
        await world.nc.publish(world.s("in"), b"x")
        invocation = await component.invocation()
        await invocation.handshake()
        with within(WAITS):
            order = asyncio.create_task(world.host.shutdown())
            await world.unsubscribed(world.s("in"))  # the order has come, and no more work is taken
            call = await component.publish(world.s("out"), b"for it")
            await invocation.answer()
            await flush(world.nc)
        assert call.ok and (await heard.next_msg(DEADLINE)).data == b"for it"
        assert await order == b"shutting down" and await provider.wait_exit() == 0
        assert provider.log("counts: received=1 handled=1 .* open=0"), provider.lines
    await in_time(steps)


@pytest.mark.parametrize("how", ["order", "signal"])
async def test_shutdown_counts_what_was_not_read(world, servers, how, count=3000):
    """What waited in the socket while the link paused is dropped and counted, and the component is not called any more."""
    server = servers()
    provider = await world.start(world.host.handler_link(url=server.url, subscriptions="in", max_in_flight="5"))
    component = await world.component(by_hand=True)
    outside = await world.client(server)
    for _ in range(count):
        await outside.publish("in", bytes(500))
    await flush(outside)
    for _ in range(5):
        await component.invocation()
    if how == "order":
        await world.host.shutdown(timeout=20 * SLOW)
    else:
        provider.send_signal(signal.SIGTERM)
    await provider.wait_exit()
    counts = {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", provider.log("-> echo .*counts:")[-1])}
    assert counts["received"] == counts["dropped"] >= 5 and counts["open"] == 0, counts
    assert component.invocations.empty()


async def test_shutdown_does_not_wait_for_ever(worlds, server):
    """A component that never answers holds it up for 250 ms and no longer: a host kills after 300 ms."""
    async def attempt():
        world = await worlds(server)
        provider = await world.start(world.host.handler_link(subscriptions=world.s("in")))
        component = await world.component(by_hand=True)
        await world.nc.publish(world.s("in"), b"x")
        await (await component.invocation()).handshake()
        start = time.monotonic()
        assert await world.host.shutdown() == b"shutting down"
        took = time.monotonic() - start
        assert took > 0.1 and await provider.wait_exit() == 0
        return took
    await quickest(0.3 * SLOW, attempt)


async def test_shutdown_flushes_first(world):
    """All that was published before is with the server when the reply comes: the host kills at that moment."""
    provider = await world.start(world.host.consumer_link())
    out = await world.listen(world.s("out"), nc=await world.client())
    echo = await world.component(serve=False)
    calls = [await echo.start("publish", wire.broker_message(world.s("out"), b"x" * 50000)) for _ in range(200)]
    assert await world.host.shutdown() == b"shutting down"
    if provider.running:
        provider.process.kill()
    await provider.wait_exit()
    world.providers.remove(provider)  # its exit code is of no interest
    for call in calls:
        try:
            await call.finish(0.2)
        except AssertionError:
            break  # taken after the order, or cut off by the limit of 250 ms: nobody was told that it went out
        if call.ok:
            await out.next_msg(DEADLINE)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name)
async def test_signals(worlds, server, how):
    """Each ends it as an order does: what is in flight gets its time, exit code 0."""
    async def steps():
        world = await worlds(server)
        provider = await world.start(world.host.consumer_link(), world.host.handler_link(subscriptions=world.s("in")))
        asked = await world.listen(world.s("svc"))
        call = await (await world.component(serve=False)).start("request", wire.request_params(world.s("svc"), b"x", 10000))
        msg = await asked.next_msg(DEADLINE)
        await call.handshake()
        with within(WAITS):
            provider.process.send_signal(how)
            await world.unsubscribed(world.s("in"))
            await msg.respond(b"in time")
            await call.send_rest()
            await flush(world.nc)
        assert (await call.result()).value.body == b"in time"
        assert await provider.wait_exit() == 0
    await in_time(steps)


async def test_end_of_the_parent(world, tmp_path):
    """Within 2 s of the end of the process that started it, it ends: an orphan would take the next provider's calls."""
    await quickest(2.5 * SLOW, lambda: seconds_without_parent(world, tmp_path))


async def seconds_without_parent(world, tmp_path):
    data = {**world.host.data, "link_definitions": [world.host.consumer_link()]}
    (tmp_path / "host-data").write_bytes(base64.b64encode(json.dumps(data).encode()) + b"\r\n")
    script = '"$@" <"$FILE" 2>/dev/null & echo $!; read wait'
    parent = subprocess.Popen(["bash", "-c", script, "host", *lattice.RUN, lattice.PROVIDER], text=True, bufsize=1,
                              env={"FILE": str(tmp_path / "host-data"), **lattice.environment()},
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    ended = asyncio.Event()
    try:
        await world.host.healthy()
        parent.kill()
        parent.wait()
        start = time.monotonic()
        asyncio.get_running_loop().add_reader(pidfd, ended.set)
        await asyncio.wait_for(ended.wait(), DEADLINE)
        return time.monotonic() - start
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        if not ended.is_set():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        parent.stdin.close()
        parent.stdout.close()
