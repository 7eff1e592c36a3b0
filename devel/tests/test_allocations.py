# SPDX-License-Identifier: Apache-2.0
"""Each single allocation fails once, SQLite's way: the first of a run, the second, and so on until a run needs fewer than that.
And the same with all allocations behind it, for a while.

The binary is that of `make FAILING=1`: with sanitizers, on a malloc that fails when it is told to (devel/tests/harness/failing_malloc.c). Whatever
fails, the provider stands, nothing is started with half of its settings (what counts is what the servers see), and when there is
memory again all links are up and calls work. A provider at its start may also end, in words.

Of thousands of allocations ./test.sh takes a slice, another each time (SEED repeats one); ./test.sh long takes all, or with
EVERY=5, as continuous integration does, each fifth.
"""
import asyncio
import contextlib
import ctypes
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

import wire
from lattice import TOP, World, flush, until
from servers import DEADLINE, SLOW, Accounts, nats_server_of, tls_block

FAILING = TOP / "build/failing/provider"
NOWHERE = 10**9     # an allocation that never comes
WORKERS = 6         # providers at a time, each with servers of its own: most of the time goes into their pauses
BODY = b"x" * 20000  # in pieces on a lattice whose messages have at most 16 kB
PASSED_OVER = r"^failing_malloc:.*natsMsg_createWithPadding (\? )*__wrap_natsParser_Parse|was passed over: memory"  # a message without a block; the log tells only of some
libc = ctypes.CDLL(None)
pytestmark = pytest.mark.release  # it brings its own binary


def fail(provider, n):
    """The n-th allocation from now on fails; -n: and all that follow it; 0: none."""
    libc.sigqueue(provider.pid, signal.SIGUSR2, ctypes.c_void_p(n & (2**64 - 1)))


class Site:
    """What one provider works on: a lattice, a server that wants TLS, certificates and JWTs, and one with JetStream."""

    def __init__(self, servers, authority, stranger, name):
        accounts = Accounts()
        self.authority, self.stranger, self.name = authority, stranger, name
        cert, key = authority.issue(f"site{name}")
        self.client = {"tls_cert": cert.read_text(), "tls_key": key.read_text()}
        jwt, seed = accounts.user()
        self.user = {"client_jwt": jwt, "client_seed": seed}
        self.lattice = servers("max_payload: 16384", run=False)
        demanding = accounts.config + tls_block(cert, key, authority.ca_file, first=True)
        self.secure = servers(demanding, run=False, binary=nats_server_of("2.10"))
        self.other = servers(tls_block(*stranger.issue(f"other{name}")), run=False)
        self.streams = servers('authorization { user: "me", password: "pass" }', run=False, jetstream="64M")
        self.servers = [self.lattice, self.secure, self.other, self.streams]

    async def open(self):
        for server in self.servers:
            server.start()
        self.world = await World(self.lattice).open()
        self.host = self.world.host
        self.host.make_xkeys()
        self.outside = await self.world.client(self.streams, user="me", password="pass")
        js = self.outside.jetstream()
        await js.add_stream(StreamConfig(name="S", subjects=["s.>"]))
        await js.add_consumer("S", ConsumerConfig(durable_name="c", ack_policy=AckPolicy.EXPLICIT, ack_wait=2))
        await self.world.respond("svc", lambda body: body, nc=self.outside)
        self.publishes = await self.world.component("publisher", serve=False)
        self.handles = await self.world.component("handler")
        return self

    async def close(self):
        await self.world.close()
        for server in self.servers:
            server.remove()

    # links

    def secure_handler(self):
        """Every key of a link. Each byte that is sealed is a value of its own in JSON: the seed alone is enough."""
        keys = {**self.client, "client_jwt": self.user["client_jwt"], "tls_ca": self.authority.ca, "tls_first": "true",
                "subscriptions": "in, work|group", "max_in_flight": "7", "custom_inbox_prefix": "_OURS",
                "ping_interval_sec": "30", "handler_timeout_ms": "5000"}
        return self.host.handler_link("handler", name="secure", url="tls://" + self.secure.address,
                                      secrets={"client_seed": self.user["client_seed"]}, **keys)

    def wrong_ca(self):
        """It trusts another CA than its server's: it must never connect."""
        return self.host.consumer_link("publisher", name="wrong", url="tls://" + self.other.address, tls_ca=self.authority.ca)

    def stream_handler(self):
        consumers = json.dumps([{"stream": "S", "consumer": "c", "max_messages": 5, "max_bytes": 100000}])
        return self.host.handler_link("handler", name="stream", url=f"nats://me:pass@{self.streams.address}", consumers=consumers, subscriptions="in")

    def stream_publisher(self):
        return self.host.consumer_link("publisher", url=f"nats://me:pass@{self.streams.address}")

    async def another_host(self):
        """Starts the component anew. A host that got only a part of a call's parameters waits for the rest, and serves nobody."""
        await self.handles.close()
        self.handles = await self.world.component("handler")

    # what the servers see, and whether it works

    def seen(self, server):
        """The connections of providers: (user, TLS, subscriptions without those to inboxes)."""
        def of(c):
            subs = sorted((s["subject"], s.get("qgroup", "")) for s in c.get("subscriptions_list_detail", []) if not s["subject"].startswith(("_INBOX", "_OURS")))
            inboxes = sorted({s["subject"].split(".")[0] for s in c.get("subscriptions_list_detail", []) if s["subject"].startswith(("_INBOX", "_OURS"))})
            return bool(c.get("authorized_user")), bool(c.get("tls_version")), subs, inboxes
        connections = server.monitored("connz?subs=detail&auth=1&limit=4096")["connections"]
        return sorted(of(c) for c in connections if c.get("name", "").startswith("messaging-nats "))

    async def complete(self, secure=False, streams=False):
        """Waits until the servers see what these links ask for, and nothing else."""
        wanted = {self.secure: [(True, True, [("in", ""), ("work", "group")], ["_OURS"])] if secure else [],
                  self.streams: [(True, False, [], ["_INBOX"]), (True, False, [("in", "")], ["_INBOX"])] if streams else [], self.other: []}
        for server, what in wanted.items():
            await until(lambda: self.seen(server) == what, f"{server} sees {what}, not {self.seen(server)}")

    async def works(self):
        """A call in each direction, whole and in pieces, and a message of JetStream's, through the links to `streams`."""
        for body in b"small", BODY:
            async def publish():
                call = await self.publishes.publish("out", body)
                assert call.ok or re.search("memory|connection|slowly", str(call)), call
                return call.ok
            await until(publish, "a publish")
            call = await self.publishes.request("svc", body)
            assert call.ok and call.value.body == body, call
            await self.handled("in", body)
        await self.handled("s.one", b"stream")

    async def handled(self, subject, body):
        await self.outside.publish(subject, body)
        while (await self.handles.next()).body != body:
            pass  # what an earlier round left

    async def alive(self, provider, said):
        """Healthy; whatever happened, no sanitizer has complained."""
        try:
            await self.host.healthy(30 * SLOW)
        except AssertionError:
            provider.lines.append("not healthy, after: " + " ".join(said))
            raise


# ---------------------------------------------------------------- what is run for each n

class Run:
    """One thing that a provider does again and again; a subclass says what. prepare(): once, before; order(): what the host says, and
    act(): all that happens, while an allocation fails; check(): afterwards, with memory; restore(): so that it can be done again."""

    def __init__(self, site):
        self.site, self.world, self.host = site, site.world, site.host

    async def prepare(self):
        self.provider = await self.world.start(binary=str(FAILING), env={"FAIL_AT": str(NOWHERE)})

    async def order(self):
        pass

    async def act(self):
        await self.order()
        await self.heard()

    async def check(self):
        pass

    async def restore(self):
        pass

    async def put_again(self):
        """What health asks for when an order was lost."""
        await self.order()

    async def alive(self, said):
        """Healthy; an order that was lost is given again."""
        end = time.monotonic() + 30 * SLOW
        while not (answer := await self.host.health())["healthy"]:
            assert time.monotonic() < end, (answer, said)
            if "an order of the host is lost" in answer["message"]:
                await asyncio.sleep(1)  # provider.h, LOST_ORDER_MS: what is put sooner may be the order itself
                await self.put_again()
            await asyncio.sleep(0.01)

    def lattice_lost(self):
        """How often the lattice's connection was lost, or a message."""
        return len(self.provider.log(f"lattice .*connection lost|{PASSED_OVER}"))

    def any_lost(self):
        return len(self.provider.log(f"connection lost|{PASSED_OVER}"))

    def told(self):
        return self.provider.log("^failing_malloc:")

    async def heard(self):
        """Waits until the provider has looked at what came before: it answers, or what found no memory cost the connection."""
        try:
            await self.world.nc.request(self.host.control(f"{self.host.key}.health"), b"", timeout=0.3 * SLOW)
        except (NatsTimeout, NoRespondersError):
            await until(self.told, "an allocation failed")

    async def once(self, n):
        """Fails the n-th allocation, or for a negative n all from there on for a while. Returns whether there were as many."""
        before, lost = len(self.told()), self.lattice_lost()
        fail(self.provider, n)
        await self.act()
        if n < 0:
            await asyncio.sleep(0.1)  # how long memory is away
            fail(self.provider, 0)
        await self.alive(self.told()[before:])
        fail(self.provider, 0)
        for _ in range(2):  # what failed between that answer and the order shows in the log before these
            await self.alive(self.told()[before:])
        said = self.told()[before:]
        if self.lattice_lost() > lost:  # a message that finds no memory is lost, and so is what comes while there is no connection
            await self.site.another_host()
            await self.order()
            await self.alive(said)
        await self.check()
        await self.restore()
        assert self.provider.running and not self.provider.log("Sanitizer|runtime error"), said
        return bool(said)

    async def close(self):
        if self.provider.running:
            await self.provider.stop()
        self.world.providers.clear()
        self.world.provider = None


class Links(Run):
    """A link with every key, connected and deleted again."""

    async def order(self):
        await self.host.put(self.site.secure_handler())

    async def check(self):
        await self.site.complete(secure=True)

    async def restore(self):
        await self.host.delete(self.site.secure_handler())
        await self.site.complete()


class WrongCA(Run):
    """A link that must not connect, whatever fails."""

    async def once(self, n):
        before, lost = len(self.told()), self.lattice_lost()
        fail(self.provider, n)
        await self.host.put(self.site.wrong_ca())
        await self.heard()
        if n < 0:
            await asyncio.sleep(0.1)  # how long memory is away
            fail(self.provider, 0)

        async def refused():
            if self.lattice_lost() > lost:
                return True
            return re.search(r"\(wrong\): (?!connecting)", (await self.host.health()).get("message", ""))
        await until(refused, "the link says that it cannot connect")
        fail(self.provider, 0)
        if self.lattice_lost() > lost:  # after many in a row it would be away for up to 30 s
            assert not self.provider.log("wrong.*: connected to")
            await self.close()
            await self.prepare()
            return True
        await self.host.delete(self.site.wrong_ca())
        await self.host.healthy()
        assert not self.provider.log("wrong.*: connected to") and not self.site.seen(self.site.other)
        await until(lambda: len(self.provider.log("wrong.*: deleted")) == len(self.provider.log("wrong.*counts:")), "gone")
        return len(self.told()) > before


class Streams(Run):
    """A link with a consumer: JetStream is asked, messages are pulled, handled and acknowledged."""

    async def prepare(self):
        await super().prepare()
        await self.world.put(self.site.stream_publisher())

    async def order(self):
        await self.host.put(self.site.stream_handler())

    async def act(self):
        await self.order()
        await self.site.outside.publish("s.one", b"armed")
        await self.heard()

    async def check(self):
        await self.site.complete(streams=True)
        await self.site.handled("s.one", b"checked")

    async def restore(self):
        await self.host.delete(self.site.stream_handler())
        await until(lambda: len(self.site.seen(self.site.streams)) == 1, "deleted")


class Calls(Run):
    """Calls in both directions, whole and in pieces, over links that stand."""

    async def prepare(self):
        await super().prepare()
        await self.world.put(self.site.stream_publisher(), self.site.stream_handler())

    async def act(self):
        site, before = self.site, self.any_lost()
        calls = [await site.publishes.start(f, params) for body in (b"small", BODY)
                 for f, params in (("publish", wire.broker_message("out", body)), ("request", wire.request_params("svc", body, 500)))]
        for subject in "in", "s.one":
            await site.outside.publish(subject, b"armed")
            await site.outside.publish(subject, BODY)
        tasks = [asyncio.create_task(call.finish()) for call in calls]
        await until(lambda: all(t.done() for t in tasks) or self.any_lost() > before, "calls end", 3 * DEADLINE)
        for task in tasks:
            task.cancel()  # with its connection, an answer may be lost
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert not isinstance(result, AssertionError) or self.any_lost() > before, result

    async def check(self):
        await self.site.complete(streams=True)
        await self.site.works()


class Config(Run):
    """The provider's configuration changes, and with it a link that has most of its settings from there."""
    prefixes = "_A", "_B"

    async def prepare(self):
        self.count = 0
        await super().prepare()
        await self.host.update_config(self.config())
        await self.host.put(self.link())
        await self.host.healthy()

    def config(self):
        return {"cluster_uris": f"nats://me:pass@{self.site.streams.address}", "custom_inbox_prefix": self.prefixes[self.count % 2],
                "subscriptions": "other", "max_in_flight": "9"}

    def link(self):
        return self.host.handler_link("handler", url="", subscriptions="in")

    async def order(self):
        await self.host.update_config(self.config())

    async def put_again(self):
        await self.host.put(self.link())

    async def act(self):
        self.count += 1
        await super().act()

    async def check(self):
        def changed():
            connections = self.site.streams.monitored("connz?subs=1&auth=1&limit=4096")["connections"]
            subs = [c.get("subscriptions_list", []) for c in connections if c.get("name", "").startswith("messaging-nats ") and c.get("authorized_user")]
            return len(subs) == 1 and "in" in subs[0] and any(s.startswith(self.prefixes[self.count % 2]) for s in subs[0])
        await until(changed, "the link has the new configuration")


class Questions(Run):
    """Health and the service protocol."""

    async def prepare(self):
        await super().prepare()
        await self.world.put(self.site.stream_publisher(), self.site.stream_handler())

    async def act(self):
        before = len(self.told())
        for verb in "PING", "INFO", "STATS":
            async def answered():
                with contextlib.suppress(NatsTimeout, NoRespondersError):
                    answer = json.loads((await self.world.nc.request(f"$SRV.{verb}.messaging-nats", b"", timeout=0.3 * SLOW)).data)
                    assert answer["id"] and (verb == "PING" or len(answer["endpoints"]) == 3), answer
                    return True
                return len(self.told()) > before
            await until(answered, "an answer, or an allocation failed")
        await self.heard()


class Delete(Run):
    """A delete gets through whatever fails, unless the message itself is lost."""

    async def act(self):
        pass

    async def put_again(self):
        await self.host.put(self.site.stream_publisher())

    async def once(self, n):
        await self.world.put(self.site.stream_publisher())
        before, lost, deleted = len(self.told()), self.any_lost(), len(self.provider.log("deleted"))
        fail(self.provider, n)
        await self.host.delete(self.site.stream_publisher())
        await until(lambda: len(self.provider.log("deleted")) > deleted or self.any_lost() > lost, "deleted")
        fail(self.provider, 0)
        if len(self.provider.log("deleted")) == deleted:
            await self.alive(self.told()[before:])
            await self.host.delete(self.site.stream_publisher())
        await until(lambda: not self.site.seen(self.site.streams), "gone")
        assert self.provider.running
        return len(self.told()) > before


class Start(Run):
    """A provider's start with host data that has links."""

    async def prepare(self):
        self.provider = None

    async def once(self, n):
        site = self.site
        links = [site.stream_publisher(), site.stream_handler()]
        config = {"custom_inbox_prefix": "_INBOX"}
        self.provider = provider = await self.world.start(*links, config=config, ready=False, binary=str(FAILING), env={"FAIL_AT": str(n)})
        if n < 0:
            await until(lambda: self.told() or provider.reader.done() or provider.log("publisher.*connected to"), "started")
            await asyncio.sleep(0.1)
            if provider.running:
                fail(provider, 0)
        await until(lambda: provider.reader.done() or provider.log("lattice.*: connected to"), "started or ended")
        if provider.reader.done():
            assert await provider.wait_exit() == 1 and re.search("memory", provider.lines[-1], re.I), provider.lines
        else:
            await site.alive(provider, self.told())
            fail(provider, 0)
            if self.lattice_lost():
                await site.another_host()
            await site.complete(streams=True)
            await site.works()
        reached = bool(self.told())
        await self.close()
        return reached

    async def close(self):
        if self.provider and self.provider.running:
            await self.provider.stop()
        self.world.providers.clear()
        self.world.provider = None


class Shutdown(Start):
    """An order to shut down, with a link that stands."""

    async def once(self, n):
        self.provider = provider = await self.world.start(self.site.stream_publisher(), binary=str(FAILING), env={"FAIL_AT": str(NOWHERE)})
        fail(provider, n)
        await self.host.nc.publish(self.host.control(f"{self.host.key}.default.shutdown"), json.dumps({"host_id": self.host.data["host_id"]}).encode())
        await flush(self.host.nc)
        # a message that finds no memory is lost
        lost = "connection lost|passed over"
        await until(lambda: provider.reader.done() or provider.log(lost + "|stopping"), "heard")
        if n < 0:
            fail(provider, 0)
        if not provider.log(lost) or provider.log("stopping"):
            assert await provider.wait_exit() == 0, provider.lines
        reached = bool(self.told())
        await self.close()
        return reached


# ---------------------------------------------------------------- all of them

async def all_of(run_class, servers, authority, stranger, numbers):
    """Runs for each number of an endless, growing row, until one is behind the last allocation. Several providers share them."""
    end, done, missed = [NOWHERE], [], []

    async def worker(i):
        site = await Site(servers, authority, stranger, f"{run_class.__name__}{i}").open()
        try:
            run = run_class(site)
            await run.prepare()
            for n in numbers:
                if abs(n) >= end[0]:
                    break
                try:
                    if not await run.once(n):
                        missed.append(abs(n))
                    if len(missed) > WORKERS:  # one may be missed since threads differ, or since a line comes late
                        end[0] = min(end[0], abs(n))
                    done.append(n)
                except Exception as e:
                    told = run.told()[-1:] if run.provider else []
                    lines = run.provider.lines if run.provider else []
                    at = next((i for i, line in enumerate(lines) if "ERROR: AddressSanitizer" in line or "runtime error" in line), len(lines) - 25)
                    raise AssertionError(f"{run_class.__name__}, n = {n}, {told}: {e!r}\n" + "\n".join(lines[max(at - 4, 0):][:40])) from e
            await run.close()
        finally:
            end[0] = min(end[0], 0) if not done else end[0]
            await site.close()
    tasks = [asyncio.create_task(worker(i)) for i in range(WORKERS)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(f"{run_class.__name__}: {len(done)} runs, {min(map(abs, done))} to {max(map(abs, done))}, the last allocation before {end[0]}")


def row(first, step, sign=1):
    while True:
        yield sign * first
        first += step


RUNS = [Start, Links, WrongCA, Streams, Calls, Config, Questions, Delete, Shutdown]


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from_there_on"])
@pytest.mark.parametrize("run, step", list(zip(RUNS, [60, 250, 100, 40, 12, 15, 12, 8, 8])))
async def test_some(servers, authority, stranger, run, step, for_good):
    """Each so many-th, from a random one on."""
    assert Path(FAILING).exists(), "make FAILING=1"
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    step *= 4 if for_good else 1
    first = random.Random(seed).randrange(1, step + 1)
    print(f"SEED {seed}: {first} and each {step}th behind it")
    await all_of(run, servers, authority, stranger, row(first, step, -1 if for_good else 1))


@pytest.mark.long
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from_there_on"])
@pytest.mark.parametrize("run", RUNS)
async def test_each(servers, authority, stranger, run, for_good):
    """All of them; of those from which on everything fails, each third."""
    step = int(os.environ.get("EVERY", 1)) * (3 if for_good else 1)
    await all_of(run, servers, authority, stranger, row(1, step, -1 if for_good else 1))
