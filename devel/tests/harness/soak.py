#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load for as long as it is told, random faults one after the other, and a table of what became of each message.

    ./test.sh soak MINUTES [SEED]      makes everything this needs, and runs it

One lattice, a server with JetStream, TLS and passwords, and a cluster of three; to each of the two links of every kind. The
faults come in rounds of all of them, in an order (and with pauses) that the seed decides. After each, everything has to come
back by itself; then the load rests until no message is under way, and the provider's counts are compared with what was sent
and seen outside. Ends with code 1 if a message was lost through JetStream, or went uncounted though its connection stood, if a
call hung or was answered wrongly, or if memory went beyond what provider.h promises.
"""
import argparse
import asyncio
import contextlib
import logging
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lattice import PROVIDER, World, promised_kb, until
from servers import DEADLINE, Certificates, Cluster, NatsServer, Proxy, nats_server_of, tls_block
from traffic import CALLS, Site, Traffic

PING = 2  # s; with the default of 20 s a silent path alone would take a minute of each round
RATE = 300  # messages a second on each flow
BURST = 50_000
LATTICE_RATE, LINK_RATE = 600_000, 50_000  # bytes a second: less than is wanted; of a link's path for each connection
START = time.monotonic()


def tell(words):
    print(f"{time.monotonic() - START:7.1f}  {words}", flush=True)


class Place:
    """Everything that runs: servers, paths, the provider, and the load."""

    async def open(self, folder):
        self.folder, self.issued = folder, 0
        self.authority = Certificates(folder)
        self.lattice = NatsServer(dir=folder).start()
        # JetStream of 2.9 may not deliver again after a kill, though asked: what it has on its list of open messages, but no more in
        # the stream, stands before all others, and only a new message gets it past one of them
        binary = nats_server_of("2.10")
        self.server = NatsServer(self.server_config(), dir=folder, jetstream="16M", binary=binary).start()
        self.cluster = Cluster(dir=folder, binary=binary).start()
        self.paths = {name: Proxy(server.port, delay=0.0, buffer=65536) for name, server in
                      (("lattice", self.lattice), ("link", self.server), ("other link", self.server))}
        self.world = await World(self.lattice).open()
        self.loads, self.resident, self.peak = [], [], 0
        one = Site(self.world, self.server, tag="one-", ping=PING, link_url=self.link_url("link"),
                   link_urls=f"nats://load:load@{self.server.address}", lattice_url=self.paths["lattice"].url, retention="workqueue")
        three = Site(self.world, self.cluster.nodes[0], tag="three-", ping=PING, link_urls=self.cluster.urls, replicas=3)
        self.sites = {"one": one, "three": three}
        flows = ("plain", "stream", *CALLS)
        await one.make_links(flows, {"user": "load", "password": "load"}, {"tls_ca": self.authority.ca})
        await three.make_links(flows)
        await self.start_provider()
        for site in self.sites.values():
            await site.load(self.load, rate=RATE, error=5, trap=5)
        self.resident.append(self.provider.status("VmRSS"))
        await self.settle()
        return self

    def link_url(self, path):
        return f"tls://link:link@{self.paths[path].url.removeprefix('nats://')}"

    async def change(self, config):
        """Puts all links, with other configuration as config(site) says, and waits until they run so."""
        for site in self.sites.values():
            for link in site.links:
                side = "source_config" if link["source_config"] else "target_config"
                await self.world.host.put({**link, side: {**link[side], **config(site)}})
        await self.world.host.healthy(3 * DEADLINE)

    def server_config(self, users=("load", "link"), **certificate):
        """Of the single server, with a new certificate; its load comes without TLS, the links with it."""
        self.issued += 1
        files = self.authority.issue(f"server{self.issued}", **certificate)
        listed = ", ".join(f"{{user: {user}, password: {user}}}" for user in users)
        return f"allow_non_tls: true\nauthorization {{ users: [{listed}] }}\n{tls_block(*files)}"

    def configure(self, **how):
        self.server.reload(self.server_config(**how))

    async def load(self, *args, **options):
        self.loads.append(await Traffic.start(*args, **options))
        return self.loads[-1]

    async def start_provider(self):
        one, three = self.sites.values()
        links = one.links + three.links
        self.provider = await self.world.start(*links, ready=False, lattice_rpc_url=one.lattice_url, config=one.config)
        one.provider = three.provider = self.provider
        await self.world.host.healthy(3 * DEADLINE)

    async def settle(self):
        """Lets the load rest; self.now: site and flow → (report, counts), when nothing is under way."""
        self.now = {}
        for name, site in self.sites.items():
            reports, counts = await site.settle(12 * DEADLINE)
            self.now.update({(name, flow): (reports[flow], counts[flow]) for flow in reports})
        self.resident.append(self.provider.status("VmRSS"))
        self.peak = max(self.peak, self.provider.status("VmHWM"))

    async def go_on(self):
        for site in self.sites.values():
            for flow in site.flows.values():
                await flow.tell(f"rate {RATE}")
        await self.flowing()

    async def flowing(self):
        await asyncio.gather(*(site.recovered() for site in self.sites.values()))

    async def streams(self):
        """What the servers know of the streams, for a message that did not come."""
        for site, options in ((self.sites["one"], {"user": "load", "password": "load"}), (self.sites["three"], {})):
            js = (await self.world.client(site.server, **options)).jetstream(timeout=DEADLINE)
            name = site.tag + "stream"
            yield f"{name}: {(await js.stream_info(name)).state}"
            yield f"its consumer: {await js.consumer_info(name, name)}"

    async def close(self):
        with contextlib.suppress(Exception):
            await self.world.close()
        for load in self.loads:
            await load.stop()
        for path in self.paths.values():
            path.close()
        for server in (self.lattice, self.server, self.cluster):
            server.remove()


# ---------------------------------------------------------------- faults
# Each is a generator: what it does first is the fault, what it does after its yield ends it. `cuts` says which connections
# of the provider it takes away; where none is, nothing may go uncounted.

FAULTS = {}


def fault(name, cuts=()):
    def named(function):
        FAULTS[name] = (contextlib.asynccontextmanager(function), set(cuts))
        return function
    return named


@fault("lattice server killed", ["lattice"])
async def _(p):
    p.lattice.stop()
    yield
    p.lattice.start()


@fault("link server killed", ["one"])
async def _(p):
    p.server.stop()
    yield
    p.server.start()


@fault("lattice and link server killed", ["lattice", "one"])
async def _(p):
    p.lattice.stop()
    p.server.stop()
    yield
    p.lattice.start()
    p.server.start()


@fault("each node of the cluster stopped in turn", ["three"])
async def _(p):
    for node in p.random.sample(p.cluster.nodes, 3):
        try:
            await until(p.cluster.well, "the cluster's servers are well", 12 * DEADLINE)
        except AssertionError:
            tell("JetStream of the cluster is not well by itself, says /healthz: no further node is stopped")
            break
        node.stop()
        await p.sites["three"].recovered()
        node.start()
        await p.sites["three"].recovered()
    yield


@fault("lattice path silent", ["lattice"])
async def _(p):
    lost = len(p.provider.log("lattice .*connection lost: silent"))
    p.paths["lattice"].silence()
    await p.provider.wait_log("lattice .*connection lost: silent", count=lost + 1)
    yield
    p.paths["lattice"].speak()


@fault("link path silent", ["one"])
async def _(p):
    lost = len(p.provider.log("one-.*connection lost: silent"))
    p.paths["link"].silence()
    await p.provider.wait_log("one-.*connection lost: silent", count=lost + len(p.sites["one"].links))
    yield
    p.paths["link"].speak()


@fault("provider killed", ["provider"])
async def _(p):
    await p.provider.stop(signal.SIGKILL)
    p.world.providers.remove(p.provider)
    yield
    await p.start_provider()


def slow(path, **how):
    """A path that is late (delay), or takes so many bytes a second (rate)."""
    async def hindered(p):
        for name, value in how.items():
            setattr(p.paths[path], name, value)
        yield 5
        p.paths[path].rate, p.paths[path].delay = None, 0.0
    return hindered


fault("lattice path late by 150 ms each way")(slow("lattice", delay=0.15))
fault("link path late by 150 ms each way")(slow("link", delay=0.15))
fault(f"lattice path of {LATTICE_RATE // 1000} kB/s to the server")(slow("lattice", rate=LATTICE_RATE))
fault(f"link path of {LINK_RATE // 1000} kB/s to the server")(slow("link", rate=LINK_RATE))


def stall(path, direction):
    """Nothing passes one way, for a time after which nobody may be called silent yet."""
    async def stalled(p):
        p.paths[path].silence(direction)
        yield 0.75 * PING
        p.paths[path].speak()
    return stalled


for _path in ("lattice", "link"):
    for _direction in ("to server", "to client"):
        fault(f"{_path} path stalled {_direction}")(stall(_path, _direction))


@fault("links changed in place")
async def _(p):
    for i in range(5):
        await p.change(lambda site: {"ping_interval_sec": str(PING + i % 2), "max_in_flight": str(200 + i), "handler_timeout_ms": str(2000 + i)})
    yield
    await p.change(lambda site: {})


@fault("links changed to other connections")
async def _(p):
    for i in range(3):
        await p.change(lambda site: {"custom_inbox_prefix": f"OTHER{i}"})
    other = p.link_url("other link")
    await p.change(lambda site: {"cluster_uris": other} if site is p.sites["one"] else {})
    yield
    await p.change(lambda site: {})


def component(command, back):
    async def away(p):
        for site in p.sites.values():
            for flow in ("plain", "stream"):
                await site.flows[flow].tell(command)
        yield 30
        for site in p.sites.values():
            for flow in ("plain", "stream"):
                await site.flows[flow].tell(back)
    return away


fault("nobody runs the component, for 30 s")(component("leave", "join"))
fault("the component hangs, for 30 s")(component("handles 0", "handles 1000000"))


@fault("certificate replaced")
async def _(p):
    p.configure()
    yield


@fault("certificate expired, server restarted", ["one"])
async def _(p):
    p.server.stop()
    p.server.config = p.server_config(expired=True)
    p.server.start()
    await p.world.host.unhealthy("one-.*expired")
    yield
    p.configure()


@fault("credentials revoked", ["one"])
async def _(p):
    p.configure(users=["load"])
    await p.world.host.unhealthy("one-.*auth")
    yield
    p.configure()


@fault("JetStream storage full")
async def _(p):
    stream = p.sites["one"].flows["stream"]
    await stream.tell("handles 0")
    await stream.tell("rate 1000000")
    await stream.progress("refused", 100, timeout=12 * DEADLINE)
    await stream.tell(f"rate {RATE}")
    yield
    await stream.tell("handles 1000000")
    await stream.progress("acked", RATE, timeout=6 * DEADLINE)


@fault(f"burst of {BURST} messages")
async def _(p):
    plain = p.sites["one"].flows["plain"]
    sent = (await plain.report())["sent"]
    await plain.tell("handles 5000")
    await plain.tell("rate 100000000")
    await plain.until(lambda r: r["sent"] >= sent + BURST, "the burst is sent")
    await plain.tell(f"rate {RATE}")
    yield
    await plain.tell("handles 1000000")


# ---------------------------------------------------------------- the account

SUMS = ("sent", "acknowledged", "handled", "twice", "failed", "dropped", "lost", "uncounted")


class Account:
    """What became of messages, summed up from fault to fault, and what should not have."""

    def __init__(self):
        self.sums = {}   # (site, flow) → {what: messages}
        self.times = {}  # fault → seconds until everything had come back
        self.wrong = []

    def add(self, name, cuts, before, after):
        """The time from one rest to the next, with this fault in between. Gives what it lost in all."""
        lost_now = 0
        for key, (r, c) in after.items():
            (r0, c0), (site, flow) = before[key], key
            d = {field: r[field] - r0[field] for field in r if isinstance(r[field], int)}
            n = {field: c[field] - (0 if "provider" in cuts else c0[field]) for field in c}
            sums = self.sums.setdefault(key, dict.fromkeys(SUMS, 0))
            stood = not cuts & {site, "provider"}
            if flow in CALLS:
                failed = d["words"] + d["trapped"] + d["nobody"] + d["hung"] + d["cut"]
                new = (d["sent"], d["ok"], d["arrived"], 0, failed, 0, d["lost"], d["lost"] if stood else 0)
                if d["wrong"] or (d["hung"] and not cuts & {"lattice", "provider"}):
                    self.wrong.append(f"{name}: {key}: {d['hung']} calls hung, {d['wrong']} were answered wrongly")
            else:
                lost = d["lost"] if flow == "stream" else d["missing"] if "provider" in cuts else d["sent"] - n["received"]
                new = (d["sent"], d["acked"], d["handled"], d["twice"], n["error"] + n["trap"] + n["timeout"], n["dropped"], lost,
                       lost if stood or flow == "stream" else 0)
                if n["received"] != sum(n[x] for x in ("handled", "error", "trap", "timeout", "dropped", "returned")):
                    self.wrong.append(f"{name}: {key}: received is not the sum of the outcomes: {n}")
            for what, value in zip(SUMS, new):
                sums[what] += value
            lost_now += new[6]
            if new[7]:
                self.wrong.append(f"{name}: {key}: {new[7]} messages lost, {d}, {n}")
        return lost_now

    def print(self):
        print("\n| fault | times injected | recovered in, median (s) | at most (s) |\n|---|---|---|---|")
        for name, times in self.times.items():
            print(f"| {name} | {len(times)} | {statistics.median(times):.1f} | {max(times):.1f} |")
        print("\n| flow | sent | acknowledged | handled | handled twice | failed (error, trap, timeout) | dropped (counted) | lost | "
              "of it while connected |\n|---|---|---|---|---|---|---|---|---|")
        where = {"one": "one server", "three": "cluster"}
        for (site, flow), sums in self.sums.items():
            cells = ["–" if flow == "plain" and what == "acknowledged" else f"{n:,}" for what, n in sums.items()]
            print(f"| {flow}, {where[site]} | " + " | ".join(cells) + " |")


async def one_fault(place, account, name):
    """Injects it, ends it, waits for recovery, and settles the account."""
    how, cuts = FAULTS[name]
    before = place.now
    await place.go_on()
    seconds = place.random.uniform(1, 5)
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        hold = await stack.enter_async_context(how(place))
        await asyncio.sleep(hold or seconds)  # how long a fault lasts is what is chosen here
        held = time.monotonic() - began
    ended = time.monotonic()
    await place.flowing()
    took = time.monotonic() - ended
    await place.settle()
    account.times.setdefault(name, []).append(took)
    lost = account.add(name, cuts, before, place.now)
    sent = sum(r["sent"] for r, _ in place.now.values())
    tell(f"{name}: for {held:.1f} s, back {took:.1f} s after; {lost} messages lost with {', '.join(sorted(cuts)) or 'no connection'} cut; "
         f"{sent:,} sent so far; {place.resident[-1]} kB resident")


async def soak(minutes, seed):
    account, place, name = Account(), Place(), "start"
    place.random = random.Random(seed)
    tell(f"seed {seed}, {minutes} minutes, {PROVIDER}")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            await place.open(Path(folder))
            tell("everything runs")
            while time.monotonic() < START + 60 * minutes:
                for name in place.random.sample(list(FAULTS), len(FAULTS)):
                    if time.monotonic() < START + 60 * minutes:
                        await one_fault(place, account, name)
            await place.provider.stop()
        except (AssertionError, OSError) as e:
            account.wrong.append(f"{type(e).__name__} after {name}: {e}")
            if name != "start":
                account.wrong += place.provider.lines[-20:]
            with contextlib.suppress(Exception):  # a server that is down is waited for without end
                async with asyncio.timeout(3 * DEADLINE):
                    async for line in place.streams():
                        account.wrong.append(line)
        finally:
            await place.close()
    account.print()
    arena = re.findall(r"kB of the arena in use, at most (\d+)", "\n".join(place.provider.lines))
    print(f"\nResident: {place.resident[0]:,} kB at the start, {place.peak:,} kB at most, {place.resident[-1]:,} kB at the end; promised: at most "
          f"{promised_kb():,} kB. Arena: {arena[-1] if arena else '?'} kB at most. {(time.monotonic() - START) / 60:.0f} minutes, seed {seed}.")
    if place.peak > promised_kb():
        account.wrong.append(f"{place.peak} kB resident are more than was promised")
    print("\n".join(account.wrong) or "Nothing was lost through JetStream, and nothing uncounted while a connection stood.")
    return 1 if account.wrong else 0


def main():
    parser = argparse.ArgumentParser(description="load and random faults, and a table of what became of each message")
    parser.add_argument("minutes", type=float, nargs="?", default=20)
    parser.add_argument("seed", type=int, nargs="?", default=int.from_bytes(os.urandom(3), "big"))
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # nats-py tells of connections that the faults end
    sys.exit(asyncio.run(soak(args.minutes, args.seed)))


if __name__ == "__main__":
    main()
