# SPDX-License-Identifier: Apache-2.0
"""Consumers that are not where the link's server is: in another JetStream domain, behind another account's prefix; and priority groups."""
import json
import shutil

import pytest
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from lattice import run_provider, until
from servers import DEADLINE, SLOW, NatsServer, free_port, nats_server_of

NEWEST = pytest.param("newest", marks=pytest.mark.skipif(not shutil.which("go"), reason="there is no go to make it with"))
VERSIONS = pytest.mark.parametrize("version", ["2.9", "2.10", NEWEST])


async def stream_with(nc, subjects, consumer="C", stream="S", **config):
    js = nc.jetstream(timeout=DEADLINE)
    await js.add_stream(StreamConfig(name=stream, subjects=[subjects]))
    await js.add_consumer(stream, ConsumerConfig(durable_name=consumer, ack_policy=AckPolicy.EXPLICIT, **config))
    return js


async def settled(js, count, stream="S", consumer="C"):
    async def done():
        info = await js.consumer_info(stream, consumer)
        return info.ack_floor.stream_seq >= count and info.num_ack_pending == 0
    await until(done, f"{count} messages acknowledged", 2 * DEADLINE)


class Edge:
    """A hub with JetStream in the domain "hub", and a leaf node, with JetStream in the domain "leaf" or without."""

    def __init__(self, folder, version, leaf_has_jetstream=True):
        port, binary = free_port(), nats_server_of(version)
        self.hub = NatsServer(f"server_name: hub\nleafnodes {{ listen: 127.0.0.1:{port} }}", dir=folder, binary=binary)
        self.leaf = NatsServer(f'server_name: leaf\nleafnodes {{ remotes = [{{url: "nats://127.0.0.1:{port}"}}] }}', dir=folder, binary=binary)
        for server, has in (self.hub, True), (self.leaf, leaf_has_jetstream):
            name = "hub" if server is self.hub else "leaf"
            server.jetstream = has and f'jetstream {{ store_dir: "{server.dir}", domain: {name}, max_mem: 64M, max_file: 256M }}'
        self.hub.start()
        self.leaf.start()

    async def reached(self, nc):
        """Waits until the leaf's clients reach the hub's JetStream."""
        async def answered():
            try:
                return b'"domain":"hub"' in (await nc.request("$JS.hub.API.INFO", timeout=1)).data
            except Exception:
                return False
        await until(answered, "the leaf node is connected to the hub", 2 * DEADLINE)


@pytest.fixture
def edges(folder):
    """Starts a hub and a leaf node: edges(version)."""
    started = []

    def start(*args):
        started.append(Edge(folder, *args))
        return started[-1]
    yield start
    for edge in started:
        edge.leaf.remove()
        edge.hub.remove()


@VERSIONS
@pytest.mark.parametrize("leaf_has_jetstream", [True, False], ids=["leaf with JetStream", "leaf without"])
@pytest.mark.parametrize("key", ["domain", "js_domain"])
async def test_domain(world, edges, version, leaf_has_jetstream, key):
    """A link at a leaf node takes messages of the hub's stream, and acknowledges them there."""
    edge = edges(version, leaf_has_jetstream)
    hub, leaf = await world.client(edge.hub), await world.client(edge.leaf)
    js = await stream_with(hub, "s.>")
    await edge.reached(leaf)
    entry, config = {"stream": "S", "consumer": "C"}, {"js_domain": "hub"}
    if key == "domain":
        entry, config = {**entry, "domain": "hub"}, {"js_domain": "another"}  # which the entry's own comes before
    await world.start(world.host.handler_link(url=edge.leaf.url, consumers=json.dumps([entry]), **config))
    component = await world.component()
    for i in range(300):
        await js.publish("s.x", b"%d" % i)
    assert [int((await component.next()).body) for _ in range(300)] == list(range(300))
    await settled(js, 300)
    await world.host.healthy()


@VERSIONS
async def test_namesakes(world, edges, version):
    """A stream and a consumer of the same names in two domains: each gets what is its own, and the error of one names its domain."""
    edge = edges(version)
    hub, leaf = await world.client(edge.hub), await world.client(edge.leaf)
    in_hub, in_leaf = await stream_with(hub, "s.>"), await stream_with(leaf, "t.>")
    await edge.reached(leaf)
    entries = [{"stream": "S", "consumer": "C", "domain": domain} for domain in ("hub", "leaf")]
    await world.start(world.host.handler_link(url=edge.leaf.url, consumers=json.dumps(entries)))
    component = await world.component()
    for i in range(20):
        await in_hub.publish(f"s.{i}", b"")
        await in_leaf.publish(f"t.{i}", b"")
    got = [(await component.next()).subject for _ in range(40)]
    assert sorted(got) == sorted([f"s.{i}" for i in range(20)] + [f"t.{i}" for i in range(20)])
    await settled(in_hub, 20)
    await settled(in_leaf, 20)
    await in_leaf.delete_consumer("S", "C")
    await world.host.unhealthy("consumer C of stream S in domain leaf: ", 6 * DEADLINE)
    await in_hub.publish("s.more", b"")
    assert (await component.next()).subject == "s.more"


async def test_no_such_domain(world, edges):
    """A domain that does not exist is named, with what may be wrong."""
    edge = edges("2.10")
    await world.start(world.host.handler_link(url=edge.leaf.url, consumers='[{"stream":"S","consumer":"C","domain":"nowhere"}]'), ready=False)
    await world.host.unhealthy("consumer C of stream S in domain nowhere: .*domain or api_prefix")


@VERSIONS
async def test_imported(world, servers, version):
    """The JetStream of another account, imported with a prefix of its own; what it refuses is told of the right consumer."""
    def config(denied):
        return f"""accounts {{
            A {{ jetstream: enabled, users: [{{ user: a, password: aa }}],
                 exports: [{{ service: "$JS.API.>", response: stream }}, {{ service: "$JS.ACK.>" }}] }}
            B {{ users: [{{ user: b, password: bb, permissions: {{ publish: {{ allow: ">", deny: "{denied}" }} }} }}],
                 imports: [{{ service: {{ account: A, subject: "$JS.API.>" }}, to: "from.a.>" }},
                           {{ service: {{ account: A, subject: "$JS.ACK.>" }} }}] }} }}"""
    server = servers(config("nothing"), binary=nats_server_of(version), jetstream="64M")
    js = await stream_with(await world.client(server, user="a", password="aa"), "s.>")
    await world.start(world.host.handler_link(url=server.url.replace("//", "//b:bb@"),
                                              consumers='[{"stream":"S","consumer":"C","api_prefix":"from.a"}]'))
    component = await world.component()
    for i in range(50):
        await js.publish("s.x", b"%d" % i)
    assert [int((await component.next()).body) for _ in range(50)] == list(range(50))
    await settled(js, 50)
    server.reload(config("from.a.CONSUMER.MSG.NEXT.>"))
    for _ in range(2):  # so that a request ends, and the next one is made
        await js.publish("s.x", b"x" * 300000)
    await world.host.unhealthy(r"consumer C of stream S behind from\.a: Permissions Violation.*from\.a\.CONSUMER\.MSG\.NEXT\.S\.C", 8 * DEADLINE)
    server.reload(config("nothing"))
    await world.host.healthy(40 * SLOW)


@pytest.mark.skipif(not shutil.which("go"), reason="there is no go to make a nats-server with that has them")
@pytest.mark.parametrize("policy", ["overflow", "prioritized", "pinned_client"])
async def test_group(world, servers, policy):
    """A consumer with priority groups gives its messages to a link that names one; a pinned one to the same link, request after request."""
    server = servers(binary=nats_server_of("newest"), jetstream="64M")
    nc = await world.client(server)
    js = nc.jetstream(timeout=DEADLINE)
    await js.add_stream(StreamConfig(name="S", subjects=["s.>"]))
    config = {"durable_name": "C", "name": "C", "ack_policy": "explicit", "priority_groups": ["jobs"], "priority_policy": policy}
    made = json.loads((await nc.request("$JS.API.CONSUMER.CREATE.S.C", json.dumps({"stream_name": "S", "config": config}).encode(), timeout=DEADLINE)).data)
    assert not made.get("error"), made
    requests = await world.listen("$JS.API.CONSUMER.MSG.NEXT.S.C", nc=nc)
    link = world.host.handler_link(url=server.url, max_in_flight="3", consumers='[{"stream":"S","consumer":"C"}]')
    await world.start(link, ready=False)
    component = await world.component()
    await world.host.unhealthy("Priority Group missing")
    link["source_config"]["consumers"] = '[{"stream":"S","consumer":"C","group":"jobs"}]'
    await world.host.put(link)
    for i in range(30):
        await js.publish("s.x", b"%d" % i)
    assert [int((await component.next()).body) for _ in range(30)] == list(range(30))
    await settled(js, 30)
    await world.host.healthy()
    named = [json.loads(m.data) for m in [await requests.next_msg() for _ in range(requests.pending_msgs)] if b"group" in m.data]
    assert named and all(r["group"] == "jobs" for r in named)
    assert policy != "pinned_client" or any(r.get("id") for r in named)


@pytest.mark.parametrize("more, words", {
    '"domain":"hub","api_prefix":"a"': "has domain and api_prefix",
    '"domain":"a.b"': "its domain is no name",
    '"api_prefix":"a.>"': "its api_prefix is no subject",
    '"group":"a b"': "its group is no priority group",
}.items(), ids=str)
async def test_wrong_entries(world, tmp_path, more, words):
    """What cannot be is said by --check, too."""
    path = tmp_path / "link.json"
    entry = '[{"stream":"S","consumer":"C",%s}]'
    path.write_text(json.dumps(world.host.handler_link(consumers=entry % more)))
    code, out, err = await run_provider("--check", path)
    assert code == 1 and words in out + err, (code, out, err)
    path.write_text(json.dumps(world.host.handler_link(consumers=entry % '"domain":"hub","group":"jobs"')))
    code, out, err = await run_provider("--check", path)
    assert code == 0 and "consumer      C of stream S in domain hub" in out, (code, out, err)
