# SPDX-License-Identifier: Apache-2.0
"""Memory that is short in every place: errors in words, at most a connection that comes back, and never a byte of a body that
is read as a command. Three binaries: the release, one with a tiny arena (make TINY=1), and one whose malloc fails at random
(make FAILING=1). Between them and their servers stand relays that hold every byte against the protocol."""
import asyncio
import os
import random
import re
import resource
import signal
from pathlib import Path

import pytest
import pytest_asyncio

import wire
from lattice import TOP, flush, promised_kb, until
from peers import Checker, Peer, greet, hold, say
from servers import SLOW, tls_block

BUILD = TOP / "build"
TINY, FAILING = str(BUILD / "tiny/provider"), str(BUILD / "failing/provider")
MEGABYTE, TINY_MAX = 1048576, 131072
EVIL = b"\r\nPUB evil 0\r\n\r\n"
pytestmark = pytest.mark.release  # each test brings its own binary


def evil_body(size, shift=0):
    """A body that is commands, wherever it is cut."""
    text = EVIL * (size // len(EVIL) + 2)
    return text[shift % len(EVIL):][:size]


def own(binary):
    assert Path(binary).exists(), f"{binary} is missing: make {'TINY' if binary == TINY else 'FAILING'}=1"
    return binary


@pytest_asyncio.fixture
async def checked(servers, worlds):
    """A lattice and a link's server, each behind a relay that checks what the provider writes. In both somebody listens on
    `evil`, and must not hear a word."""
    patient = 'max_pending: 1GB\nwrite_deadline: "60s"'  # the relays are slower than the provider
    lattice_server, far = servers(patient), servers(patient)
    world = await worlds(lattice_server)
    world.far, world.relays = far, [await Checker(s.address).open() for s in (lattice_server, far)]
    world.lattice_url, world.far_url = [relay.url for relay in world.relays]
    world.outside = await world.client(far)
    heard = [await world.listen("evil"), await world.listen("evil", nc=world.outside)]
    yield world
    for provider in world.providers:
        await provider.stop()
    for relay in world.relays:
        await relay.close()
        relay.check(["evil"])
    assert not any(h.pending_msgs for h in heard)
    assert all(relay.published() for relay in world.relays), "nothing went through the relays"


async def answered(world, calls, timeout=12 * SLOW):
    """How each of these calls ended: "ok", "failed", or its words. None may be left without an end, unless the lattice's
    connection was lost, and with it an answer."""
    async def end(call):
        try:
            await call.finish(timeout)
        except AssertionError:
            if not any("lattice" in line for line in lost(world.provider)):
                raise
            return "no end"
        return "ok" if call.ok else "failed" if call.failed else call.value
    return await asyncio.gather(*(end(call) for call in calls))


def in_words(outcomes):
    for words in set(outcomes) - {"ok", "failed", "no end"}:
        assert re.search("payload|memory|full|too many|too large|slow|connection|responders|timed out|room|took no bytes", words), words
    return {words: outcomes.count(words) for words in set(outcomes)}


def lost(provider):
    """The connections that were lost, with the times."""
    return [line for line in provider.lines if "connection lost" in line]


# ---------------------------------------------------------------- 256 calls with bodies of 1 MB

@pytest.mark.parametrize("function", ["publish", "request"])
async def test_256_large_calls(checked, function):
    """256 calls in flight with bodies of 1 MB: each is answered, with what it asked for or in words; memory stays within what
    --version says; afterwards every such call works."""
    world = checked
    provider = await world.start(world.host.consumer_link(url=world.far_url), lattice_rpc_url=world.lattice_url)
    await world.respond("svc", lambda data: data, nc=world.outside)
    echo = await world.component(serve=False)

    def params(i):
        body = evil_body(MEGABYTE - 1000, i)
        return wire.broker_message("out", body) if function == "publish" else wire.request_params("svc", body, 30000)
    calls = [await echo.start(function, params(i)) for i in range(256)]
    outcomes = await answered(world, calls)
    print(f"{function}: {in_words(outcomes)}, {provider.status('VmHWM')} kB resident at most, lost: {lost(provider)}")
    assert outcomes.count("ok") >= 1 and "failed" not in outcomes
    assert not lost(provider)
    assert provider.status("VmHWM") < promised_kb()
    for i in range(3):
        await world.host.healthy()
        call = await echo.call(function, params(i))
        assert call.ok, call


async def test_messages_that_stop_in_the_middle(checked):
    """24 servers that each send most of a message of 1 MB, and no more: it costs some of their connections, and never the
    lattice's; large calls over another link are answered, and orders of the host are heard."""
    world = checked
    provider = await world.start(world.host.consumer_link("good", url=world.far_url), lattice_rpc_url=world.lattice_url)
    sent = []

    async def script(peer, reader, writer):
        sid, _ = await greet(reader, writer)
        await say(writer, b"MSG in %s 1000000\r\n" % sid + evil_body(900000))
        sent.append(peer)
        await hold(reader)
    peers = [await Peer(script).open() for _ in range(24)]
    try:
        await world.host.put(*(world.host.handler_link(f"bad{i}", name=f"bad{i}", url=peer.url, subscriptions="in") for i, peer in enumerate(peers)))
        await until(lambda: len(sent) >= 24, "all have sent their part")
        good = await world.component("good", serve=False)
        calls = [await good.start("publish", wire.broker_message("out", evil_body(MEGABYTE - 1000))) for _ in range(8)]
        print(in_words(await answered(world, calls)))
        await world.host.health()
        print("\n".join(lost(provider)))
        assert not any(" lattice " in line for line in lost(provider)), "the lattice was lost"
    finally:
        for peer in peers:
            await peer.close()

    async def publishes():
        return (await good.publish("out", evil_body(MEGABYTE - 1000))).ok
    await until(publishes, "a large publish, now that they are gone", 30 * SLOW)


async def test_messages_cut_off_leave_no_memory(world):
    """30 connections that break in the middle of a message of 1 MB, on three links: what came of it is given back, and large
    calls work as before."""
    provider = await world.start(world.host.consumer_link("good"))
    good = await world.component("good", serve=False)
    assert (await good.publish(world.s("out"), b"x" * (MEGABYTE - 1000))).ok

    async def script(peer, reader, writer):
        sid, _ = await greet(reader, writer)
        if peer.accepted <= 1:
            await say(writer, b"MSG in %s 1000000\r\n" % sid + b"x" * 900000)
        else:
            await hold(reader)
    for i in range(10):
        peers = [await Peer(script).open() for _ in range(3)]
        links = [world.host.handler_link(f"bad{n}", name=f"bad{n}", url=peer.url, subscriptions="in") for n, peer in enumerate(peers)]
        await world.host.put(*links)
        await until(lambda: all(peer.accepted >= 2 for peer in peers), "each came back")
        await world.host.healthy()
        for link in links:
            await world.host.delete(link)
        for peer in peers:
            await peer.close()
    assert (await good.publish(world.s("out"), b"x" * (MEGABYTE - 1000))).ok
    assert provider.status("VmRSS") < 16000, "30 MB came and were cut off"


@pytest.mark.parametrize("order", ["linkdefs.put", "config.update", "linkdefs.del"])
async def test_order_that_no_memory_is_enough_for(world, order):
    """An order that takes more than the arena, as JSON, is lost in words; what comes after it is obeyed."""
    provider = await world.start()
    await world.nc.publish(world.host.control(f"{world.host.key}.{order}"), b'{"junk":[' + b"1," * 510000 + b"1]}")
    await world.host.put(world.host.consumer_link("later"))
    await provider.wait_log("takes too much memory, and is lost")
    await world.link_works("later")


# ---------------------------------------------------------------- what links keep

BUNDLE = 220_000  # bytes of PEM: as many as Debian's bundle has


async def arena_kb(provider):
    """What of the arena is in use."""
    provider.send_signal(signal.SIGUSR1)
    before = len(provider.log("kB of the arena in use"))
    return int(re.search(r"(\d+) kB of the arena", await provider.wait_log("kB of the arena in use", count=before + 1)).group(1))


@pytest.mark.parametrize("form", ["of each link", "as a secret", "of the provider"])
async def test_bundle_of_32_links(world, servers, authority, form):
    """A bundle of CAs that all links name is kept once. All of them come up, and again when their server has been away."""
    bundle = authority.ca * (BUNDLE // len(authority.ca)) + "\n"
    far = servers(tls_block(*authority.issue("bundle")))
    keys = {} if form == "of the provider" else {"tls_ca": bundle}
    if form == "as a secret":
        world.host.make_xkeys()
        keys = {"secrets": {"tls_ca": authority.ca * (BUNDLE // 4 // len(authority.ca))}}  # as JSON each byte has four
    links = [world.host.consumer_link(f"c{i}", url=f"tls://{far.address}", **keys) for i in range(32)]
    provider = await world.start()
    if form == "of the provider":
        await world.host.update_config({"tls_ca": bundle})
    before = await arena_kb(provider)
    await world.host.put(*links)
    await world.host.healthy(60 * SLOW)
    await until(lambda: len(provider.log("connected to")) == 33, "all of them are up", 60 * SLOW)
    for _ in range(2):
        used = await arena_kb(provider) - before
        assert used < 32 * 130 + 3 * len(bundle) // 1024, f"{used} kB"  # a link takes 4 kB more from its server's first PING on, after 2 s
        far.stop()
        await world.host.unhealthy("c0 ")
        far.start()
        await world.host.healthy(90 * SLOW)
    assert not provider.log("memory")
    for link in links:
        await world.host.delete(link)
    await until(lambda: len(provider.log("deleted$")) == 32, "all of them are deleted")


async def test_link_that_wants_to_keep_too_much(world):
    """What a link may keep has a limit; words name what is too large. One that runs goes on as it is."""
    good = world.host.consumer_link("good")
    provider = await world.start(good)
    large = "-----BEGIN CERTIFICATE-----" + "x" * 300_000
    await world.host.put(world.host.consumer_link("bad", tls_ca=large), world.host.consumer_link("many", **{f"k{i}": "" for i in range(5000)}))
    await provider.wait_log("bad -> .*not started: its settings take 29. kB, most of it tls_ca, and more than 256 kB are not kept")
    await provider.wait_log("many -> .*not started: its settings take .* kB, most of it ")
    await world.host.put(world.host.consumer_link("good", tls_ca=large))
    await provider.wait_log("good -> .*its new settings are not used: its settings take 29. kB, most of it tls_ca")
    await world.host.update_config({"tls_ca": large})
    await provider.wait_log("its new configuration is not used: its settings take 29. kB, most of it tls_ca")
    await world.link_works("good")
    for name in "bad", "many":
        await world.host.delete(world.host.consumer_link(name))
    await world.host.put(good)
    await world.host.healthy()
    assert await arena_kb(provider) < 1000


async def test_delete_gets_through(world, servers):
    """However many puts fill the memory, a delete is obeyed, also if its put still waits: nothing is left that was deleted."""
    far = servers()
    links = [world.host.consumer_link(f"c{i}", url=far.url, junk=f"{i}" + "x" * 200_000) for i in range(40)]
    provider = await world.start(world.host.consumer_link("first", url=far.url), binary=own(TINY))
    for link in links:
        await world.host.put(link)
    await provider.wait_log("memory is short: what came on .*linkdefs.put waits")
    for link in links:
        await world.host.delete(link)
    await world.host.delete(world.host.consumer_link("first"))
    await until(lambda: not far.connections(), "no link is left", 30 * SLOW)

    async def put_last():  # which may have to be put once more: see LOST_ORDER_MS
        await world.host.put(world.host.consumer_link("last", url=far.url))
        await asyncio.sleep(0.5)
        return (await world.host.health())["healthy"]
    await until(put_last, "it is healthy", 30 * SLOW)
    assert len(far.connections()) == 1, [c["name"] for c in far.connections()]
    assert not provider.log("linkdefs.del.* is lost")


# ---------------------------------------------------------------- a tiny arena

def big_and_small(rng):
    return rng.choice([0, 100, 4000, 30000, TINY_MAX - 3000, TINY_MAX, TINY_MAX + 1, 3 * TINY_MAX])


async def pressure(world, component, rng, count):
    """Calls of both functions in every size, and messages from outside, all at once. Gives how the calls ended."""
    calls = []
    for i in range(count):
        body = evil_body(big_and_small(rng), i)
        if i % 3 == 0:
            await world.outside.publish("in", body[:2 * TINY_MAX], reply="nobody.listens")
        elif i % 3 == 1:
            calls.append(await component.start("publish", wire.broker_message("out", body)))
        else:
            calls.append(await component.start("request", wire.request_params("svc", body, 3000)))
    return await answered(world, calls)


async def recovers(world, component):
    """Healthy again, and each flow works, with a body of the largest size."""
    await world.host.healthy(60 * SLOW)
    body = evil_body(TINY_MAX - 4000)

    async def publishes():
        call = await component.publish("out", body)
        assert call.ok or in_words([call.value]), call
        return call.ok

    async def requests():
        call = await component.request("svc", body, 3000)
        print(call)
        return call.ok and call.value.body == body
    await until(publishes, "a large publish", 30 * SLOW)
    await until(requests, "a large request", 30 * SLOW)
    await until(lambda: world.far.subscribers("in"), "subscribed", 30 * SLOW)

    async def handles():  # the first may find the backlog full of what came before
        await world.outside.publish("in", b"the last")
        while not component.received.empty():
            if component.received.get_nowait().body == b"the last":
                return True
    await until(handles, "a message handled", 30 * SLOW)


async def start_tiny(world, *links, binary=TINY, **how):
    await world.respond("svc", lambda data: data, nc=world.outside)
    provider = await world.start(world.host.consumer_link(url=world.far_url), world.host.handler_link(name="in", url=world.far_url, subscriptions="in"),
                                 *links, binary=own(binary), lattice_rpc_url=world.lattice_url, **how)
    await until(lambda: world.far.subscribers("in"), "subscribed")
    return provider, await world.component()


async def test_tiny_arena_both_directions(checked):
    """Large bodies from and to a component, in 90 calls at once: every call ends, and no connection is lost."""
    world = checked
    provider, echo = await start_tiny(world)
    for seed in range(3):
        outcomes = await pressure(world, echo, random.Random(seed), 90)
        print(in_words(outcomes))
    await recovers(world, echo)
    print(lost(provider))
    assert len(lost(provider)) <= 3


async def test_tiny_arena_with_a_component_that_does_nothing(checked):
    """A backlog that fills what there is, while others call: messages are dropped in words, calls are answered."""
    world = checked
    provider, echo = await start_tiny(world, world.host.handler_link("stuck", name="stuck", url=world.far_url, subscriptions="stuck", handler_timeout_ms="4000"))
    await world.component("stuck", by_hand=True)
    for i in range(300):
        await world.outside.publish("stuck", evil_body(20000, i))
    await flush(world.outside)
    await provider.wait_log("stuck.*dropped")
    print(in_words(await pressure(world, echo, random.Random(1), 60)))
    await recovers(world, echo)
    assert len(lost(provider)) <= 3, lost(provider)


async def test_tiny_arena_flood_of_small_messages(checked):
    """50,000 small messages, and calls between them."""
    world = checked
    provider, echo = await start_tiny(world)
    for i in range(50):
        for _ in range(1000):
            await world.outside.publish("in", EVIL * 8)
        if i % 10 == 0:
            print(in_words(await pressure(world, echo, random.Random(i), 12)))
    await recovers(world, echo)
    assert not lost(provider), lost(provider)


async def test_tiny_arena_parameters_that_never_come_whole(checked):
    """Beginnings of large calls fill the share of their link; another link's calls go through."""
    world = checked
    provider, echo = await start_tiny(world, world.host.consumer_link("other", url=world.far_url))
    other = await world.component("other", serve=False)
    params = wire.broker_message("out", evil_body(TINY_MAX - 3000))
    halves = [await echo.start("publish", params, first=60000) for _ in range(60)]
    for call in halves:
        await call.handshake()
    assert (await other.publish("out", evil_body(50000))).ok
    print(in_words(await answered(world, halves)))
    await recovers(world, echo)
    assert not lost(provider), lost(provider)


async def test_tiny_arena_links_with_tls(checked, servers, authority):
    """More TLS links than the arena holds: those that find no memory say so, and connect when others go; nobody else suffers."""
    world = checked
    secure = servers(tls_block(*authority.issue("tiny")))
    provider, echo = await start_tiny(world)
    links = [world.host.consumer_link(f"tls{i}", url="tls://" + secure.address, tls_ca=authority.ca * 4) for i in range(14)]
    await world.host.put(*links)
    outcomes = await pressure(world, echo, random.Random(7), 60)
    print(in_words(outcomes))
    words = (await world.host.health()).get("message", "")
    print("health:", words, lost(provider))
    for link in links[3:]:
        await world.host.delete(link)
    await recovers(world, echo)
    for i in range(3):
        call = await (await world.component(f"tls{i}", serve=False)).publish("out", evil_body(30000))
        assert call.ok, call
    for line in provider.log("cannot connect"):
        assert re.search("memory", line, re.I), line


@pytest.mark.long
async def test_tiny_arena_for_long(checked):
    """The same at random, 40 rounds."""
    world = checked
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    print("SEED", seed)
    rng = random.Random(seed)
    provider, echo = await start_tiny(world)
    for _ in range(40):
        print(in_words(await pressure(world, echo, rng, 90)))
    await recovers(world, echo)
    print(lost(provider))


# ---------------------------------------------------------------- a malloc that fails

async def fail_at_random(world, every, seed, rounds, least=512):
    environment = {"FAIL_EVERY": str(every), "FAIL_SEED": str(seed), "FAIL_FROM": str(least)}
    provider, echo = await start_tiny(world, binary=FAILING, env=environment)
    tasks = []
    for round in range(rounds):
        provider.process.send_signal(signal.SIGUSR2)  # from here on it fails
        calls = []
        for i in range(60):
            body = evil_body(random.Random(i).choice([0, 100, 20000, 200000]), i)
            if i % 3 == 0:
                await world.outside.publish("in", body)
            elif i % 3 == 1:
                calls.append(await echo.start("publish", wire.broker_message("out", body)))
            else:
                calls.append(await echo.start("request", wire.request_params("svc", body, 1000)))
        await world.host.put(world.host.consumer_link(f"late{round}", url=world.far_url))
        await flush(world.nc)
        tasks = [asyncio.create_task(call.finish(4 * SLOW)) for call in calls]
        done, _ = await asyncio.wait(tasks, timeout=2 * SLOW)
        provider.process.send_signal(signal.SIGUSR2)  # and now no longer
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        print(f"round {round}: {len(done)} of {len(calls)} ended, {sum(not isinstance(r, BaseException) and bool(r.ok) for r in results)} ok")
        assert provider.running, "\n".join(provider.lines[-60:])
        await world.host.healthy(60 * SLOW)
    await recovers(world, echo)
    return provider


@pytest.mark.parametrize("every, least, rounds", [(1000, 512, 1), (100, 512, 1), (20, 512, 1), (2, 34000, 4)])
async def test_malloc_that_fails(checked, every, least, rounds):
    """One allocation in so many fails: what suffers is a call or a connection, and all is well when memory is there again. The
    last case is that of write buffers that cannot grow between a command and its body."""
    await fail_at_random(checked, every, every, rounds, least)


async def test_no_memory_for_a_message_to_the_component(checked):
    """What goes out to the lattice needs no memory but nats.c's write buffer: once that is large enough, a message with headers gets
    through while no block of its size is to be had."""
    world, body = checked, evil_body(100_000)
    between = len(body) + 220  # what comes in is smaller, what goes out, with headers and longer subjects, larger
    provider, echo = await start_tiny(world, binary=FAILING, env={"FAIL_EVERY": "1", "FAIL_FROM": str(between)})
    await world.outside.publish("in", body)  # from here on nats.c's buffers are large enough
    assert (await echo.next()).body == body
    provider.process.send_signal(signal.SIGUSR2)
    await world.outside.publish("in", body)
    assert (await echo.next()).body == body
    assert (await world.host.health())["healthy"] and not lost(provider), lost(provider)


@pytest.mark.long
@pytest.mark.parametrize("every", [3, 10, 50, 300])
async def test_malloc_that_fails_for_long(checked, every):
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    print("SEED", seed)
    await fail_at_random(checked, every, seed, rounds=4)


# ---------------------------------------------------------------- no descriptors, no stacks

@pytest.mark.parametrize("what, words", [(resource.RLIMIT_NOFILE, "cannot connect"), (resource.RLIMIT_AS, "cannot start a thread")],
                         ids=["descriptors", "stacks"])
async def test_process_has_no_more(world, what, words):
    """Links that get no descriptor, or no stack to connect on, say so and come when there are some; the others serve meanwhile."""
    provider = await world.start(world.host.consumer_link(), world.host.handler_link(name="in", subscriptions=world.s("in")))
    echo = await world.echo()
    limits = resource.prlimit(provider.pid, what)
    used = len(os.listdir(f"/proc/{provider.pid}/fd")) if what == resource.RLIMIT_NOFILE else 1024 * provider.status("VmSize")
    resource.prlimit(provider.pid, what, (used, limits[1]))
    late = [world.host.consumer_link(f"late{i}") for i in range(8)]
    await world.host.put(*late)
    await provider.wait_log(f"late.*{words}")
    assert await world.ask(world.s("in"), b"meanwhile") == b"meanwhile" and (await echo.publish(world.s("out"))).ok
    resource.prlimit(provider.pid, what, limits)
    await world.host.healthy(30 * SLOW)
    assert not lost(provider), lost(provider)
    for link in late:
        await world.link_works(link["source_id"])


async def test_links_have_no_more_slots(world):
    """The link that is one too many is refused in words, until another goes; the others serve."""
    links = [world.host.consumer_link(f"c{i}") for i in range(33)]
    provider = await world.start(*links[:32])
    await world.host.put(links[32])
    await world.host.unhealthy("c32.*no place")
    await world.link_works("c0")
    await world.host.delete(links[0])
    await world.host.put(links[32])
    await world.host.healthy()
    await world.link_works("c32")
    assert not lost(provider), lost(provider)
