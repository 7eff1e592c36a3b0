# SPDX-License-Identifier: Apache-2.0
"""Faults under load: servers that are killed, paths that go silent, providers and components that go away, certificates and
credentials that end, storage that is full. After each, every message is accounted for, and nothing is lost through JetStream."""
import asyncio
import contextlib
import signal
import time

import nats
import pytest

from lattice import quickest, until
from servers import DEADLINE, SLOW, Accounts, Proxy, nats_server_of, tls_block
from traffic import CALLS, RATE, Site, check

PING = 1  # s, where a silent path is to be noticed quickly


@pytest.fixture
def proxies():
    """Makes paths to ports that can go silent: proxies(port)."""
    made = []

    def make(port):
        made.append(Proxy(port))
        return made[-1]
    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def site(worlds, servers, traffic, proxies):
    """A site on servers of its own, under load. paths: which of "lattice" and "link" the provider reaches by a proxy."""
    async def open(binary=None, link_config="", paths=(), ping=None, storage="1G", stream=None, url=None, load_url=None, **options):
        how = {"binary": binary} if binary else {}
        lattice, link = servers(**how), servers(link_config, jetstream=storage, **how)
        proxied = {name: proxies({"lattice": lattice, "link": link}[name].port) for name in paths}
        urls = {f"{name}_url": proxy.url for name, proxy in proxied.items()}
        if url:
            urls["link_url"] = url.format(link.address)
        one = Site(await worlds(lattice), link, ping=ping, link_urls=load_url and load_url.format(link.address), **urls, **(stream or {}))
        one.lattice, one.paths = lattice, proxied
        return await one.open(traffic, **options)
    return open


# ---------------------------------------------------------------- servers

@pytest.mark.parametrize("which", ["lattice", "link", "both"])
async def test_server_killed(site, which, binary=None):
    """nats-server killed with -9 and started again: all flows come back by themselves."""
    s = await site(binary=binary)
    killed = {"lattice": [s.lattice], "link": [s.server], "both": [s.lattice, s.server]}[which]
    for server in killed:
        server.stop(signal.SIGKILL)
    await s.provider.wait_log("connection lost", count=4 if which == "link" else 1)
    if which == "link":  # while it is down, calls fail at once and in words
        await s.flows["publish"].progress("words")  # what was answered before has come

        async def attempt():
            await s.flows["publish"].tell("mark")
            before = await s.flows["publish"].report()
            after = await s.flows["publish"].progress("words")
            assert after["ok"] == before["ok"], after
            return after["p99_us"] / 1_000_000
        await quickest(1 * SLOW, attempt)
        await s.flows["request"].progress("words")
    for server in killed:
        server.start()
    await s.recovered()
    check(*await s.settle(), link_stood=which == "lattice", lattice_stood=which == "link")


@pytest.mark.long
@pytest.mark.parametrize("version", ["2.9", "2.10"])
@pytest.mark.parametrize("which", ["lattice", "link", "both"])
async def test_server_killed_on_each_version(site, which, version):
    await test_server_killed(site, which, binary=nats_server_of(version))


async def stop_node(s, cluster, node):
    """Stops the node, and starts it again when all that can be expected of the others has come. Done when no node is behind
    in anything: else the next stop can leave the consumer without a leader for over a minute (seen with nats-server 2.9)."""
    node.stop(signal.SIGKILL)
    await s.recovered()
    node.start()

    async def in_step():
        with contextlib.suppress(nats.errors.Error, nats.js.errors.Error):  # while it looks for a leader
            groups = [(await s.js.stream_info("stream")).cluster, (await s.js.consumer_info("stream", "stream")).cluster]
            followers = [r for n in cluster.nodes for r in n.monitored("jsz")["meta_cluster"].get("replicas", ())]
            return (all(g and g.leader and all(r.current and not r.offline for r in g.replicas) for g in groups)
                    and len(followers) == len(cluster.nodes) - 1 and all(r["current"] and not r.get("offline") for r in followers))
    await until(in_step, "JetStream, the stream and the consumer are in step on all nodes", 6 * DEADLINE)


async def cluster_site(worlds, server, cluster, traffic):
    s = await Site(await worlds(server), cluster.nodes[0], link_urls=cluster.urls, replicas=3).open(traffic)
    s.js = (await s.world.client(cluster.nodes[1])).jetstream(timeout=2 * SLOW)
    return s


def connected_to(s):
    """The address that the link of the plain subscriptions was last connected to."""
    return s.provider.log(r"-> plain \(plain\): connected to")[-1].rsplit(" ", 1)[1]


async def test_cluster_node_stopped(worlds, server, cluster, traffic):
    """Of three servers the one that the links use is stopped: they go on with another one of their cluster_uris."""
    s = await cluster_site(worlds, server, cluster, traffic)
    used = connected_to(s)
    await stop_node(s, cluster, next(node for node in cluster.nodes if node.address == used))
    assert connected_to(s) != used
    check(*await s.settle(), link_stood=False)


@pytest.mark.long
async def test_cluster_nodes_stopped_in_turn(worlds, server, cluster, traffic):
    """Each node twice."""
    s = await cluster_site(worlds, server, cluster, traffic)
    for node in 2 * cluster.nodes:
        await stop_node(s, cluster, node)
    check(*await s.settle(), link_stood=False)


# ---------------------------------------------------------------- paths that go silent

async def goes_silent(s, path, ping, directions, pattern, count):
    """Silences a path; gives the seconds until the provider has given up all its connections over it."""
    start = time.monotonic()
    lost = len(s.provider.log(pattern))
    s.paths[path].silence(*directions)
    await s.provider.wait_log(pattern, count=lost + count, timeout=3 * ping + DEADLINE)
    return time.monotonic() - start


@pytest.mark.parametrize("directions", [(), ("to client",), ("to server",)], ids=["both ways", "to the provider", "from the provider"])
async def test_silent_link(site, directions, ping=PING):
    """A link's path that goes silent without closing is noticed within two ping intervals; calls end in words."""
    flows = CALLS if directions == ("to server",) else ("plain", "stream", *CALLS)  # else there is something to hear
    s = await site(paths=["link"], ping=ping, flows=flows)

    async def attempt():
        seconds = await goes_silent(s, "link", ping, directions, "connection lost: silent", len(flows))
        await s.world.host.unhealthy("silent|connect")
        await asyncio.gather(*(s.flows[flow].progress("words", 1) for flow in CALLS))
        s.paths["link"].speak()
        await s.recovered()
        return seconds
    first_ping = 2 if directions == ("to server",) else 0  # of nats-server, so long after connecting: a sign of life
    await quickest(2 * ping + first_ping + 0.7 * SLOW, attempt)
    check(*await s.settle(), link_stood=False)


@pytest.mark.parametrize("directions", [(), ("to client",)], ids=["both ways", "to the provider"])
async def test_silent_lattice(site, directions, ping=PING):
    """The lattice's path is watched in the same way; what its component did not answer meanwhile is counted."""
    s = await site(paths=["lattice"], ping=ping)

    async def attempt():
        seconds = await goes_silent(s, "lattice", ping, directions, "lattice .*connection lost: silent", 1)
        s.paths["lattice"].speak()
        await s.recovered()
        return seconds
    await quickest(2 * ping + 0.7 * SLOW, attempt)
    check(*await s.settle(), lattice_stood=False)


@pytest.mark.parametrize("path", ["lattice", "link"])
async def test_silence_without_load(site, path):
    """Nothing wakes the provider, and it notices as soon."""
    s = await site(paths=["lattice", "link"], ping=PING, flows=CALLS)
    for flow in s.flows.values():
        await flow.tell("rate 0")
    await s.settle()

    async def attempt():
        seconds = await goes_silent(s, path, PING, (), "connection lost: silent", 1)
        s.paths[path].speak()
        await s.world.host.healthy(6 * DEADLINE)
        return seconds
    await quickest(2 * PING + 0.7 * SLOW, attempt)


@pytest.mark.long
@pytest.mark.parametrize("path", ["lattice", "link"])
async def test_silent_for_the_default_time(site, path):
    """Without any setting, 60 s."""
    s = await site(paths=["lattice", "link"], hang=20)
    link = path == "link"
    seconds = await goes_silent(s, path, 30, (), "connection lost: silent", 4 if link else 1)
    assert 30 < seconds <= 64, seconds
    s.paths[path].speak()
    await s.recovered()
    check(*await s.settle(), link_stood=not link, lattice_stood=link)


# ---------------------------------------------------------------- the provider and the component

async def test_provider_killed(site):
    """The provider killed with -9, and started again by its host with the same host data."""
    s = await site(hang=int(2 * SLOW))  # whoever calls a provider that is killed waits in vain
    for _ in range(2):
        before = await s.flows["stream"].report()
        await s.provider.stop(signal.SIGKILL)
        await s.flows["publish"].progress("nobody", 10)  # the lattice tells the component's host at once
        s.world.providers.remove(s.provider)
        await s.start()
        await s.recovered()
        assert (await s.flows["stream"].report())["handled"] > before["handled"]
    check(*await s.settle(), link_stood=False, lattice_stood=False)


async def component_away(site, seconds, leave):
    """`seconds` without the component; leave: nobody runs it; else it is called, and does nothing."""
    # nobody there to fail on them: messages do not use up their deliveries
    s = await site(flows=("plain", "stream", "publish"), stream={"max_deliver": 2 if leave else -1})
    for flow in ("plain", "stream"):
        await s.flows[flow].tell("leave" if leave else "handles 0")
    end = time.monotonic() + seconds
    while time.monotonic() < end:  # the time without a component is what is tested
        await s.flows["publish"].progress("ok", 50)
    fate = "dropped" if leave else "timeout"

    async def noticed():
        return (await s.provider.counts(s.counts_line("plain")))[fate]
    await until(noticed, f"messages are counted: {fate}")
    for flow in ("plain", "stream"):
        await s.flows[flow].tell("join" if leave else "handles 1000000")
    await s.recovered()
    check(*await s.settle(6 * DEADLINE + 3 * seconds))


async def test_component_away(site, seconds=3):
    """Nobody runs the component: plain messages are dropped and counted, those of JetStream are kept."""
    await component_away(site, seconds, leave=True)


async def test_component_hangs(site, seconds=3):
    """The component is called and does not answer."""
    await component_away(site, seconds, leave=False)


@pytest.mark.long
@pytest.mark.parametrize("leave", [True, False], ids=["nobody runs it", "it hangs"])
async def test_component_away_for_30_s(site, leave):
    await component_away(site, 30, leave)


# ---------------------------------------------------------------- certificates and credentials

EXPIRES_IN = 4 + SLOW  # s; long enough to be up and under load before


def beside_tls(cert, key):
    """A server with TLS for the links, to which the load connects without."""
    return "allow_non_tls: true\n" + tls_block(cert, key)


async def test_certificate_expires_and_is_replaced(site, authority):
    """A connection stands when the server's certificate expires; the next one is refused in words, and works as soon as the
    certificate is replaced."""
    end = time.time() + EXPIRES_IN
    s = await site(link_config=beside_tls(*authority.issue("expires", seconds=EXPIRES_IN)), url="tls://{}", link={"tls_ca": authority.ca})
    assert time.time() < end, "too slow: the certificate has expired before the test began"
    while time.time() < end + 1:
        await s.flowing()
    reports, counts = await s.settle()
    check(reports, counts)
    s.server.stop().start()
    for flow in s.flows.values():
        await flow.tell(f"rate {RATE}")
    assert "expired" in await s.world.host.unhealthy("certificate")
    await asyncio.gather(*(s.flows[flow].progress("words", 1) for flow in CALLS))
    s.server.reload(beside_tls(*authority.issue("replaced")))
    await s.recovered()
    check(*await s.settle(), link_stood=False)


async def test_certificate_is_replaced_in_time(site, authority):
    """A certificate that is replaced before it expires costs nothing."""
    s = await site(link_config=beside_tls(*authority.issue("first")), url="tls://{}", link={"tls_ca": authority.ca})
    s.server.reload(beside_tls(*authority.issue("second")))
    await s.flowing()
    check(*await s.settle())
    assert not s.provider.log("connection lost")


def users(*names):
    return "authorization { users: [" + ", ".join(f"{{user: {name}, password: {name}}}" for name in ("load", *names)) + "] }"


async def refused_in_words(s, revoke, restore):
    """Credentials that end: health and each call say so in words; when they are good again, the links come back."""
    revoke()
    await s.world.host.unhealthy("auth")
    await asyncio.gather(*(s.flows[flow].progress("words", 1) for flow in CALLS))
    restore()
    await s.recovered()
    check(*await s.settle(), link_stood=False)


async def test_password_revoked(site):
    """The links' user is taken out of the server's configuration, and put back."""
    s = await site(link_config=users("link"), url="nats://link:link@{}", load_url="nats://load:load@{}", nc_options={"user": "load", "password": "load"})
    await refused_in_words(s, lambda: s.server.reload(users()), lambda: s.server.reload(users("link")))


async def test_jwt_revoked(worlds, servers, server, traffic, tmp_path):
    """The links' JWT is revoked in its account, and the revocation is taken back."""
    accounts = Accounts()
    (jwt, seed), load = accounts.user(), accounts.user()
    credentials = tmp_path / "load.creds"
    credentials.write_text(accounts.credentials(*load))
    link = servers(accounts.config)
    s = await Site(await worlds(server), link).open(traffic, flows=("plain", *CALLS), creds=credentials,
                                                    link={"client_jwt": jwt, "client_seed": seed})
    await refused_in_words(s, lambda: link.reload(accounts.configuration(revoked=[jwt])), lambda: link.reload(accounts.config))


# ---------------------------------------------------------------- storage

async def test_storage_full(site, binary=None):
    """A stream takes nothing any more while its component is silent, and all that it took is handled afterwards."""
    s = await site(binary=binary, storage="1M", stream={"retention": "workqueue"}, flows=("plain", "stream", "publish"))
    stream = s.flows["stream"]
    await stream.tell("handles 0")
    await stream.tell("rate 20000")
    await stream.progress("refused", 10, timeout=6 * DEADLINE)
    await stream.tell(f"rate {RATE}")
    await stream.tell("handles 1000000")
    await stream.progress("acked", 500, timeout=6 * DEADLINE)
    check(*await s.settle())


@pytest.mark.long
@pytest.mark.parametrize("version", ["2.9", "2.10"])
async def test_storage_full_on_each_version(site, version):
    await test_storage_full(site, binary=nats_server_of(version))
