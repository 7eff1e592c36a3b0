# SPDX-License-Identifier: Apache-2.0
"""Clusters that tell their clients of themselves: servers that INFO names, and one that says that it will close (lame duck mode)."""
import asyncio
import json
import re
import signal

import pytest
import pytest_asyncio

from lattice import flush, until
from names import ROOT, NameServer, with_files
from peers import Listener, Stuck, greet, hold, info, say
from servers import DEADLINE, SLOW, Cluster, Proxy, Silent, free_port, nats_server_of, tls_block
from traffic import make_stream


@pytest_asyncio.fixture
async def clusters(folder):
    """Starts three servers that know each other: await clusters(config, version)."""
    started = []

    async def start(config="", version="2.9"):
        started.append(Cluster(config, dir=folder, binary=nats_server_of(version)))
        return started[-1].start()
    yield start
    for cluster in started:
        cluster.remove()


versions = pytest.mark.parametrize("version", ["2.9", "2.10"])


def close_soon(node):
    """Tells it to close, as before an upgrade: it says so to its clients, and cuts them off 10 s later."""
    node.process.send_signal(signal.SIGUSR2)


# ---------------------------------------------------------------- servers that INFO names

@pytest.mark.smoke
@versions
async def test_goes_on_with_servers_that_were_named(world, clusters, version):
    """A link to one server of a cluster goes on with the others, as its own user, when that one dies; and so does it there."""
    cluster = await clusters('authorization { user: "a b", password: "p:w@" }', version)
    provider = await world.start(world.host.consumer_link(url=f"nats://a%20b:p%3Aw%40@{cluster.nodes[0].address}"))
    alive = {node.address: node for node in cluster.nodes}
    reached = cluster.nodes[0].address
    for n in (2, 3):
        alive.pop(reached).stop()
        reached = (await provider.wait_log("link .*connected to", count=n)).split()[-1]
        assert reached in alive
    await world.host.healthy()


async def test_lattice_goes_on(worlds, clusters):
    """The lattice's connection does so as well."""
    cluster = await clusters()
    world = await worlds(cluster.nodes[1])
    await world.start(lattice_rpc_url=cluster.nodes[0].url)
    cluster.nodes[0].stop()
    await world.provider.wait_log(f"lattice .*connected to ({cluster.nodes[1].address}|{cluster.nodes[2].address})")
    await world.host.healthy()


async def test_ignore_discovered(worlds, clusters):
    """ignore_discovered=true, and lattice_… for the lattice: servers that were named are not tried."""
    cluster = await clusters()
    world = await worlds(cluster.nodes[1])
    first = cluster.nodes[0]
    link = world.host.consumer_link(url=first.url, ignore_discovered="true")
    provider = await world.start(link, lattice_rpc_url=first.url, config={"lattice_ignore_discovered": "true"})
    first.stop()
    for who in ("link", "lattice"):
        line = await provider.wait_log(f"{who} .*cannot connect to", count=2)
        assert re.findall(r"127\.0\.0\.1:\d+", line) == [first.address], line
    first.start()
    await world.host.healthy(20 * SLOW)
    await provider.wait_log("connected to " + first.address, count=4)


async def test_other_clusters_servers_are_forgotten(world, clusters, servers):
    """Servers that were named belong to the cluster that a link is on: not to the one that it is put on afterwards."""
    cluster, far = await clusters(), servers()
    provider = await world.start(world.host.consumer_link(url=cluster.nodes[0].url))
    await world.host.put(world.host.consumer_link(url=far.url))
    await provider.wait_log(f"connected to {far.address}")
    far.stop()
    line = await provider.wait_log("cannot connect to", count=2)
    assert re.findall(r"127\.0\.0\.1:\d+", line) == [far.address], line


@pytest.mark.parametrize("san", ["DNS:localhost", "IP:127.0.0.1,DNS:localhost"])
async def test_tls_of_a_named_server(world, clusters, authority, san):
    """Where only its address is known, its certificate may be for the name by which the cluster was reached, as in NATS's own clients."""
    cluster = await clusters(tls_block(*authority.issue("named" + san[:2], san)))
    first = cluster.nodes[0]
    provider = await world.start(world.host.consumer_link(url=f"tls://localhost:{first.port}", tls_ca=authority.ca))
    first.stop()
    await provider.wait_log("link .*connected to", count=2)
    await world.host.healthy()


async def test_no_password_without_tls(world, servers, peers, authority):
    """A server that was named gets no credentials without TLS, if the URL demands that."""
    heard = []

    async def listens(_peer, reader, writer):
        heard.append(b"")
        await say(writer, info())
        while True:
            heard[-1] += await reader.readexactly(1)
    peer = await peers(listens)
    tls, port = tls_block(*authority.issue("advertises")), free_port()
    far = servers(f"cluster {{ name: test, listen: 127.0.0.1:{port} }}\n{tls}")
    servers(f'client_advertise: "{peer.address}"\n'
            f'cluster {{ name: test, listen: 127.0.0.1:{free_port()}, routes: ["nats://127.0.0.1:{port}"] }}\n{tls}')
    await until(lambda: peer.address in far.info().get("connect_urls", []), "it names the other")
    await world.start(world.host.consumer_link(url=f"tls://user:s3cret@{far.address}", tls_ca=authority.ca))
    far.stop()
    await until(lambda: heard, "the server that was named is tried")
    await world.host.unhealthy(f"{peer.address}: the server does not offer TLS")
    assert not any(heard)


# Nothing of it but the last is a server, and there nobody is.
HOSTILE = ["\x1b[2J\x1b]0;x\x07:1", "u:s3cret@127.0.0.1:1", "nats://127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:4222/../x", "a,b:1", "", ":1",
           "[::1%lo]:1", "a b:1", "\r\nCONNECT {}\r\n", "x" * 300 + ":1", "\u2028:1", 7, None, ["127.0.0.1:1"], {"127.0.0.1": 1}]


@pytest.mark.parametrize("names", ["thousands", "garbage", "silent"])
async def test_hostile_list(world, peers, names):
    """Whatever a server names, the configured one has its turn again soon, and the log stays clean."""
    silent, back = Silent(), asyncio.Event()
    named = {"thousands": [f"127.0.{i // 250}.{i % 250 + 1}:1" for i in range(1300)], "garbage": HOSTILE + ["127.0.0.1:1"],
             "silent": ["127.0.0.1:%s" % silent.url.rsplit(":")[-1]]}[names]

    async def script(peer, reader, writer):
        if peer.accepted == 1:
            await greet(reader, writer, connect_urls=named)
        elif back.is_set():
            await greet(reader, writer)
            await hold(reader)
    peer = await peers(script)
    provider = await world.start(world.host.consumer_link(url=peer.url), ready=False)
    try:
        line = await provider.wait_log("cannot connect to", timeout=20 * SLOW)
        assert len(re.findall(r"127\.0\.", line)) > 1, line
        back.set()
        await world.host.healthy(20 * SLOW)
        assert not any("\x1b" in line or "s3cret" in line for line in provider.lines)
    finally:
        silent.close()


@ROOT
@pytest.mark.long
async def test_named_servers_that_never_resolve(world, peers, folder):
    """Their names take their time, and still a round ends, with the configured server first in the next."""
    dns, back = NameServer(silent=True), asyncio.Event()

    async def script(peer, reader, writer):
        if peer.accepted == 1:
            await greet(reader, writer, connect_urls=[f"nowhere{i}.test:4222" for i in range(16)])
        elif back.is_set():
            await greet(reader, writer)
            await hold(reader)
    peer = await peers(script)
    prefix = with_files(folder, "127.0.0.1 localhost\n", f"nameserver {dns.host}\n")
    provider = await world.start(world.host.consumer_link(url=peer.url), ready=False, prefix=prefix)
    try:
        await provider.wait_log("cannot connect to .*nowhere", timeout=60 * SLOW)
        back.set()
        await world.host.healthy(20 * SLOW)
    finally:
        dns.close()


# ---------------------------------------------------------------- lame duck mode

LENIENT = 'lame_duck_duration: "60s"\nlame_duck_grace_period: "30s"\n'  # its clients, and a test that is slow, have more than 10 s
PATIENT = "max_payload: 65536\n" + LENIENT
FLOWS = {"handle": "in", "publish": "out", "request": "ask", "stream": "jobs"}


async def left(node):
    """Waits until the provider has no connection to this server."""
    await until(lambda: not any(c.get("name", "").startswith("messaging-nats ") for c in node.connections()), "it has left", 2 * DEADLINE)


async def heard_of(world, node):
    """Waits until a node of the cluster has heard of what was subscribed at the world's."""
    subject = world.s("heard-of")
    heard = await world.nc.subscribe(subject)
    await flush(world.nc)
    there = await world.client(node)

    async def reached():
        await there.publish(subject, b"")
        await flush(there)
        return heard.pending_msgs > 0
    await until(reached, "the routes have told of it")


async def left_without_loss(world, first, provider, load):
    """The first of a cluster's servers closes soon, and is left before: no message and no call is lost, nor handled twice."""
    close_soon(first)
    await left(first)
    assert first.running and not provider.log("connection lost"), "it still serves its clients"
    await asyncio.gather(*(flow.progress("sent", 300, 2 * DEADLINE) for flow in load.values()))  # in the time that is left
    for flow in load.values():
        await flow.tell("rate 0")
    await load["handle"].until(lambda r: r["handled"] == r["sent"] and r["twice"] == 0, "each message was handled once")
    for flow in ("publish", "request"):
        await load[flow].until(lambda r: r["ok"] == r["sent"] == r["arrived"], "each call was answered ok")
    await world.host.healthy()


@pytest.mark.parametrize("version, source", [("2.9", 0), ("2.10", 1)], ids=["published there", "published elsewhere"])
async def test_leaves_before_its_server_closes(world, clusters, traffic, version, source):
    """500 messages a second into a queue group, from a stream, publishes and requests: none is lost, and in the group none comes twice."""
    cluster = await clusters(LENIENT, version)
    first, outside = cluster.nodes[0], cluster.nodes[source]
    await until(lambda: outside.monitored("jsz").get("meta_cluster", {}).get("leader"), "JetStream has a leader")
    consumers = await make_stream(await world.client(outside), "jobs", "jobs", replicas=3)
    provider = await world.start(world.host.handler_link("handle", name="handle", url=first.url, subscriptions="in|workers"),
                                 world.host.handler_link("stream", name="stream", url=first.url, consumers=consumers),
                                 *(world.host.consumer_link(name, url=first.url) for name in ("publish", "request")))
    load = {flow: await traffic(world, flow, flow, link=outside.url, subject=subject, rate=0, hang=int((3 if flow == "stream" else 30) * SLOW))
            for flow, subject in FLOWS.items()}  # what a stream is sent while it has no leader is never acknowledged
    for node in cluster.nodes:
        for subject in ("in", "out", "ask"):
            await until(lambda: node.knows(subject), f"somebody is subscribed to {subject}")
    for flow in load.values():
        await flow.tell(f"rate {int(500 / SLOW)}")
        await flow.progress("sent", 300)
    await left_without_loss(world, first, provider, load)
    await load["stream"].until(lambda r: r["lost"] == 0 and r["handled"] >= r["acked"], "each message of the stream at least once")
    assert len(provider.log("link .* connected to")) == 8 and len(provider.log("will close .lame duck mode")) == 4


@versions
async def test_lattice_leaves_before_its_server_closes(worlds, clusters, server, traffic, version):
    """The lattice's connection does so as well: each call gets its result, each message is handled once."""
    cluster = await clusters(LENIENT, version)
    first, world = cluster.nodes[0], await worlds(cluster.nodes[1])
    links = [world.host.handler_link("handle", name="handle", url=server.url, subscriptions=world.s("handle") + "|workers"),
             *(world.host.consumer_link(name, url=server.url) for name in ("publish", "request"))]
    provider = await world.start(*links, lattice_rpc_url=first.url)
    load = {name: await traffic(world, name, name, link=server.url, rate=0) for name in ("handle", "publish", "request")}
    await heard_of(world, first)  # the component would not be there for the first messages
    for flow in load.values():
        await flow.tell(f"rate {int(500 / SLOW)}")
        await flow.progress("sent", 300)
    await left_without_loss(world, first, provider, load)
    assert len(provider.log("lattice .* connected to")) == 2


async def lattice_moved(provider, times=1):
    return await provider.wait_log("lattice .*connected to", count=1 + times, timeout=2 * DEADLINE)


async def test_chunks_arrive_by_the_old_lattice(worlds, clusters, server):
    """The parameters of a call are all written, and on their way over a slow path, when the lattice moves: their end does not overtake
    them by the new one."""
    cluster = await clusters(PATIENT)
    first, world = cluster.nodes[0], await worlds(cluster.nodes[1])
    path = Proxy(first.port, rate=150_000, buffer=8192)
    link = world.host.handler_link(url=server.url, subscriptions=world.s("in"), handler_timeout_ms="60000")
    provider = await world.start(link, lattice_rpc_url=path.url)
    component = await world.component(by_hand=True)
    outside = await world.client(server)
    close_soon(first)
    await outside.publish(world.s("in"), bytes(900_000))
    call = await component.invocation(3 * DEADLINE)
    await call.handshake()
    assert len((await call.params(3 * DEADLINE)).body) == 900_000
    await lattice_moved(provider)
    await call.answer()
    await until(lambda: handled(provider, 1), "it is handled")
    path.close()


async def handled(provider, count):
    return (await provider.counts("link.*counts:"))["handled"] == count


async def call_that_lasts(worlds, clusters, server, config):
    """The component works on a message when the lattice moves away from the first of a cluster's servers."""
    cluster = await clusters(config)
    first, world = cluster.nodes[0], await worlds(cluster.nodes[1])
    link = world.host.handler_link(url=server.url, subscriptions=world.s("in"), handler_timeout_ms="120000")
    provider = await world.start(link, lattice_rpc_url=f"{first.url},{cluster.nodes[2].url}")
    component = await world.component(by_hand=True)
    await (await world.client(server)).publish(world.s("in"), b"x")
    call = await component.invocation()
    await call.handshake()
    await call.params()
    close_soon(first)
    moved = await lattice_moved(provider)
    await until(lambda: not first.subscribers(world.host.control(f"{world.host.key}.health")), "it has taken over")
    return cluster, provider, call, moved


async def test_next_lattice_is_lost_as_well(worlds, clusters, server):
    """What goes on by the old connection does so though the new one breaks."""
    cluster, provider, call, moved = await call_that_lasts(worlds, clusters, server, PATIENT)
    assert cluster.nodes[2].address in moved
    cluster.nodes[2].stop()
    await lattice_moved(provider, 2)
    await asyncio.sleep(4)  # longer than a call in doubt is given
    await call.answer()
    await until(lambda: handled(provider, 1), "it is handled")


@pytest.mark.long
async def test_call_that_lasts_longer_than_a_drain(worlds, clusters, server):
    """As long as the old server stands, a call that began by it has its time."""
    _, provider, call, _ = await call_that_lasts(worlds, clusters, server, 'lame_duck_duration: "300s"\nlame_duck_grace_period: "120s"\n')
    await asyncio.sleep(36)  # longer than LEAVE_MS
    await call.answer()
    await until(lambda: handled(provider, 1), "it is handled")


async def test_leaves_though_new_settings_wait(world, clusters, traffic):
    """A link was put with a server where nobody answers: it leaves its own all the same, and the new settings go on waiting."""
    cluster = await clusters(LENIENT)
    first = cluster.nodes[0]
    link = world.host.handler_link("handle", name="handle", url=first.url, subscriptions="in|workers")
    await world.start(link)
    load = await traffic(world, "handle", "handle", link=cluster.nodes[1].url, subject="in", rate=int(500 / SLOW))
    await load.progress("sent", 100)
    await world.host.put(world.host.handler_link("handle", name="handle", url=f"nats://127.0.0.1:{free_port()}", subscriptions="in|workers"))
    await world.host.unhealthy("its new settings are not used yet")
    close_soon(first)
    await left(first)
    await load.progress("sent", 100)
    await load.tell("rate 0")
    await load.until(lambda r: r["handled"] == r["sent"] and r["twice"] == 0, "each message was handled once")
    await world.host.unhealthy("its new settings are not used yet")


class Lagging(Listener):
    """A path whose way to the client takes 0.3 s; `hooks` are awaited before and after the client's first UNSUB passes."""

    def __init__(self, server):
        self.port, self.hooks = server.port, []

    async def serve(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)

        async def to_server():
            while data := await reader.read(65536):
                before, after = self.hooks if b"UNSUB" in data and self.hooks else (None, None)
                if before:
                    self.hooks = []
                    await before()
                far_writer.write(data)
                if after:
                    await after()
            far_writer.close()
        task = asyncio.create_task(to_server())
        while data := await far_reader.read(65536):
            asyncio.get_running_loop().call_later(0.3, writer.write, data)
        task.cancel()


async def test_orders_while_the_lattice_moves(worlds, clusters, server):
    """The host deletes a link and puts another while the connection changes, and the old one brings only the first of that, late."""
    cluster = await clusters(LENIENT)
    first, world = cluster.nodes[0], await worlds(cluster.nodes[1])
    path, done = await Lagging(first).open(), asyncio.Event()
    provider = await world.start(world.host.handler_link(url=server.url, subscriptions=world.s("in")), lattice_rpc_url=path.url)

    async def delete():
        await world.host.delete(world.host.handler_link(url=server.url, subscriptions=world.s("in")))
        await world.nc.publish(world.s("witness"))
        await witness.next_msg(DEADLINE)  # the first server has passed on both

    async def put():
        subject = world.host.control(f"{world.host.key}.linkdefs.put")
        await until(lambda: len(first.subscribers(subject)) == 0, "the old connection does not hear it")
        await world.host.put(world.host.handler_link(url=server.url, subscriptions=world.s("other")))
        done.set()
    witness = await world.listen(world.s("witness"), nc=await world.client(first))
    path.hooks = [delete, put]
    close_soon(first)
    await asyncio.wait_for(done.wait(), 2 * DEADLINE)
    await lattice_moved(provider)
    await until(lambda: server.subscribers(world.s("other")), "the link that was put last is there")
    await left(first)
    assert server.subscribers(world.s("other")) and not server.subscribers(world.s("in"))
    await world.host.healthy()
    await path.close()


async def test_many_orders_while_the_lattice_moves(worlds, clusters, server):
    """20 links are put and deleted while two connections hear it: the last word holds, however many there are."""
    cluster = await clusters()
    first, world = cluster.nodes[0], await worlds(cluster.nodes[1])
    provider = await world.start(lattice_rpc_url=first.url)
    links = [world.host.consumer_link(f"c{n}", name=f"c{n}", url=server.url) for n in range(20)]
    subject = world.host.control(f"{world.host.key}.linkdefs.put")
    close_soon(first)
    await until(lambda: any(node.subscribers(subject) for node in cluster.nodes[1:]), "both are subscribed", 2 * DEADLINE)
    await world.host.put(*links)
    for link in links:
        await world.host.delete(link)
    await until(lambda: not first.subscribers(subject), "it has taken over")
    await world.host.put(links[0])
    await until(lambda: link_names(server) == {"c0"}, "that which was put last is there, and no other")


def link_names(server):
    """Components that have a link's connection there."""
    names = [c.get("name", "").split() for c in server.connections()]
    return {name[1] for name in names if name[:1] == ["messaging-nats"] and name[1] in {f"c{n}" for n in range(20)}}


async def test_lattice_stays_while_the_next_is_stuck(worlds, clusters):
    """The only other server connects, and then reads no more: the old one serves until it does, or closes."""
    cluster = await clusters('lame_duck_duration: "60s"\nlame_duck_grace_period: "30s"\n')
    first, world = cluster.nodes[0], await worlds(cluster.nodes[1])
    path = await Stuck(cluster.nodes[1].address).open()
    provider = await world.start(lattice_rpc_url=f"{first.url},{path.url}", config={"lattice_ignore_discovered": "true"})
    close_soon(first)
    await lattice_moved(provider)
    for _ in range(35):  # longer than it takes nats-server to say something by itself
        await world.nc.request(world.host.control(f"{world.host.key}.health"), b"", timeout=DEADLINE)
        await asyncio.sleep(0.1)
    path.goes_on.set()
    await left(first)
    await world.host.healthy()
    await path.close()


async def test_no_other_server(world, servers):
    """It says so once, and stays: the link works until the server closes, and is healthy."""
    far = servers(LENIENT)
    provider = await world.start(world.host.handler_link(url=far.url, subscriptions="in"))
    component, outside = await world.component(), await world.client(far)
    close_soon(far)
    await provider.wait_log(f"no connection but that to {far.address} comes up, and it stays there: {far.address}: connection refused")
    await outside.publish("in", b"still")
    assert (await component.next()).body == b"still"
    await world.host.healthy()
    assert not provider.log("cannot connect")


async def test_not_to_the_server_that_closes(world, peers, servers):
    """One that still takes connections, and says that it will close, gets no credentials; nor does it get the link."""
    far, heard = servers(), []

    async def closes(peer, reader, writer):
        if peer.accepted == 1:
            await greet(reader, writer)
            await say(writer, info(ldm=True, connect_urls=[far.address]))
            await hold(reader)
        await say(writer, info(ldm=True))
        heard.append(b"")
        while True:
            heard[-1] += await reader.readexactly(1)
    peer = await peers(closes)
    provider = await world.start(world.host.consumer_link(url=peer.url))
    await provider.wait_log(f"connected to {far.address}")
    assert heard == [b""], "it was tried, and nothing was said to it"


async def test_all_links_leave(world, clusters):
    """32 links find places for the connections that take over, in the 10 s that their server gives them."""
    cluster = await clusters()
    links = [world.host.handler_link(f"c{i}", name=f"c{i}", url=cluster.nodes[0].url, subscriptions=f"in.{i}") for i in range(32)]
    provider = await world.start(*links)
    close_soon(cluster.nodes[0])
    await left(cluster.nodes[0])
    assert cluster.nodes[0].running and not provider.log("connection lost")
    await world.host.healthy()
    assert all(any(node.subscribers(f"in.{i}") for node in cluster.nodes[1:]) for i in range(32))
