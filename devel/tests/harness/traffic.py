# SPDX-License-Identifier: Apache-2.0
"""One flow of messages through the provider, played by build/traffic, with an account of each message."""
import asyncio
import contextlib
import json

import nats
from nats.js.api import ConsumerConfig

from lattice import TOP, until
from servers import DEADLINE, SLOW

TRAFFIC = TOP / "build/traffic"
RATE = int(500 / SLOW)  # messages a second on each flow


class Traffic:
    """A component (or somebody outside) that sends, and the other end that counts. Options are those of devel/tests/harness/traffic.c."""

    def __init__(self, process):
        self.process = process
        self.turn = asyncio.Lock()

    @classmethod
    async def start(cls, world, flow, component="echo", nice=0, **options):
        assert TRAFFIC.exists(), "build/traffic is missing: make build/traffic"
        told = {"flow": flow, "lattice": world.server.url, "link": world.server.url, "prefix": world.lattice,
                "key": world.host.key, "component": component, "subject": world.s(component)}
        told.update({name.replace("_", "-"): value for name, value in options.items()})
        return cls(await asyncio.create_subprocess_exec(
            "nice", f"-n{nice}", TRAFFIC, *(text for name, value in told.items() for text in (f"--{name}", str(value))),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE))

    async def tell(self, command):
        """A command: "rate N", "handles N", "leave", "join", "mark"."""
        self.process.stdin.write(command.encode() + b"\n")
        await self.process.stdin.drain()

    async def report(self):
        """The account so far; latencies are those since the last mark."""
        async with self.turn:
            await self.tell("report")
            line = await asyncio.wait_for(self.process.stdout.readline(), DEADLINE)
        assert line, f"build/traffic ended with {await self.process.wait()}"
        return json.loads(line)

    async def until(self, condition, what, timeout=DEADLINE):
        """Waits until the account is as condition(report) wants it, and gives it."""
        last = None

        async def met():
            nonlocal last
            last = await self.report()
            return condition(last)
        try:
            await until(met, what, timeout)
        except AssertionError as e:
            raise AssertionError(f"{e}: {last}") from None
        return last

    async def progress(self, field, count=100, timeout=DEADLINE):
        """Waits until so many more are counted under this field; gives the report."""
        before = (await self.report())[field]
        return await self.until(lambda r: r[field] >= before + count, f"{count} more {field}", timeout)

    async def stop(self):
        with contextlib.suppress(Exception):
            self.process.stdin.close()
            await asyncio.wait_for(self.process.wait(), 5)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


async def make_stream(nc, name, subject, *, replicas=1, ack_wait=5, max_deliver=-1, **limits):
    """A JetStream stream over a subject, with a pull consumer of the same name; gives the link's `consumers`."""
    js, said = nc.jetstream(timeout=3 * SLOW), []

    async def made():
        try:
            await js.add_stream(name=name, subjects=[subject], num_replicas=replicas, **limits)
            await js.add_consumer(name, ConsumerConfig(durable_name=name, ack_policy="explicit", ack_wait=ack_wait, max_deliver=max_deliver))
            return True
        except (nats.errors.Error, nats.js.errors.Error) as e:  # a cluster first has to find a leader, and loses what it is asked before
            said[:] = [str(e)]
    try:
        await until(made, f"stream {name}", 120 * SLOW)
    except AssertionError as e:
        raise AssertionError(f"{e}: {said}") from None
    return json.dumps([{"stream": name, "consumer": name}])


CALLS = ("publish", "request")


class Site:
    """A provider with a link of each kind to one server (or cluster), load on all of them, and what has to come out of it.

    plain: a handler link with subscriptions, in a queue group; stream: one with a JetStream consumer; publish, request: consumer links. Each has
    a component of its own, whose name is the flow's with `tag` before it. The provider may reach the lattice and the server
    over other URLs than the load does.
    """

    def __init__(self, world, server, link_url=None, lattice_url=None, link_urls=None, ping=None, tag="", replicas=1, **stream):
        self.world, self.server, self.tag, self.stream = world, server, tag, {"replicas": replicas, **stream}
        self.direct = link_urls or server.url
        self.url, self.lattice_url = link_url or self.direct, lattice_url or world.server.url
        self.settings = {"ping_interval_sec": str(ping)} if ping else {}
        self.config = {"lattice_ping_interval_sec": str(ping)} if ping else {}
        self.flows = {}

    async def open(self, traffic, flows=("plain", "stream", *CALLS), link=None, nc_options=None, **options):
        """Starts the provider and the load; ready when all of it flows. link: settings of the links; options: of build/traffic."""
        await self.make_links(flows, nc_options, link)
        await self.start()
        await self.load(traffic, **options)
        return self

    async def make_links(self, flows, nc_options=None, link=None):
        settings = {**self.settings, **(link or {})}
        handled, self.links = {"handler_timeout_ms": "2000", **settings}, []
        for flow in flows:
            name = self.tag + flow
            if flow in CALLS:
                self.links.append(self.world.host.consumer_link(name, url=self.url, **settings))
                continue
            if flow == "stream":
                nc = await self.world.client(self.server, **(nc_options or {}))
                source = {"consumers": await make_stream(nc, name, self.world.s(name), **self.stream)}
            else:
                source = {"subscriptions": f"{self.world.s(name)}|{name}"}  # else a link that changes has some messages twice
            self.links.append(self.world.host.handler_link(name, name, url=self.url, **source, **handled))

    async def start(self):
        self.provider = await self.world.start(*self.links, ready=False, lattice_rpc_url=self.lattice_url, config=self.config)
        await self.world.host.healthy(3 * DEADLINE)

    async def load(self, traffic, rate=RATE, **options):
        for link in self.links:
            name = next(end for end in (link["source_id"], link["target"]) if end != self.world.host.key)
            flow = name.removeprefix(self.tag)
            self.flows[flow] = await traffic(self.world, {"plain": "handle"}.get(flow, flow), name,
                                             **{"link": self.direct, "rate": rate, "hang": int(6 * SLOW), **options})
        await self.flowing()

    async def flowing(self, *flows, timeout=3 * DEADLINE):
        """Waits until messages come through, on each flow or on these."""
        await asyncio.gather(*(self.flows[flow].progress("ok" if flow in CALLS else "handled", timeout=timeout)
                               for flow in flows or self.flows))

    async def recovered(self):
        await self.world.host.healthy(6 * DEADLINE)
        await self.flowing(timeout=6 * DEADLINE)

    def counts_line(self, flow):
        """The beginning of a line that tells the counts of a flow's link, as a pattern."""
        name = self.tag + flow
        return rf"link {name} -> .*counts:" if flow in CALLS else rf"link .* -> {name} .*counts:"

    async def settle(self, timeout=6 * DEADLINE):
        """Stops the load, waits until nothing is open, and gives (reports, counts of the provider), flow by flow."""
        reports, counts = {}, {}
        for traffic in self.flows.values():
            await traffic.tell("rate 0")
            await traffic.tell("handles 1000000")
        for flow, traffic in self.flows.items():
            await traffic.until(lambda r: not r["open"] and (r["flow"] != "stream" or not r["lost"]),
                                f"{flow}: every message has its outcome", timeout)

        for flow in self.flows:
            async def nothing_open():
                counts[flow] = await self.provider.counts(self.counts_line(flow))
                return not counts[flow]["open"]
            await until(nothing_open, f"{flow}: nothing open with the provider", timeout)
        for flow, traffic in self.flows.items():
            reports[flow] = await traffic.report()
        return reports, counts


def check(reports, counts, link_stood=True, lattice_stood=True):
    """What holds after any fault; and what holds besides if the connections of the links, or of the lattice, stood."""
    for flow, r in reports.items():
        c = counts[flow]
        print(f"{flow}: {r['sent']} sent, " + ", ".join(f"{n} {name}" for name, n in r.items() if isinstance(n, int) and n and name != "sent"))
        print(f"    the provider: {c}, {r.get('error_words', '')}")
        if flow in CALLS:
            assert c["calls"] == c["ok"] + c["failed"], (flow, c)
            assert not r["wrong"], (flow, r)
            if link_stood:
                assert not r["lost"], (flow, r)
            if lattice_stood:
                assert not r["hung"] and not r["trapped"] and not r["nobody"] and not r["cut"], (flow, r)
                assert (r["ok"], r["words"]) == (c["ok"], c["failed"]), (flow, r, c)
            continue
        outcomes = c["handled"] + c["error"] + c["trap"] + c["timeout"] + c["dropped"] + c["returned"]
        assert c["received"] == outcomes, (flow, c)
        assert not r["overrun"], (flow, r)
        if flow == "stream":
            assert not r["lost"] and r["acked"], (flow, r)
            assert not c["dropped"], (flow, c)
        elif link_stood:
            assert c["received"] == r["sent"], (flow, r, c)
        if lattice_stood:
            assert c["handled"] <= r["handled"] + r["twice"] <= c["handled"] + c["timeout"] or flow == "stream", (flow, r, c)
