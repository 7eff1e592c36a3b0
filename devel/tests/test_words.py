# SPDX-License-Identifier: Apache-2.0
"""What a person at a terminal gets to read: connection names, health of many links, log lines of messages, and one text for each cause of
a connection that does not come about."""
import json
import os
import re
import resource

import pytest

from peers import hold, info, say
from servers import SLOW, Accounts, free_port, nats_server_of, tls_block

pytestmark = pytest.mark.smoke


async def test_connection_names(world, servers):
    """`nats server report connections` tells links apart: program, component, link; names of others break no CONNECT."""
    far = servers()
    odd = 'two "words"\\\n\u00e9'
    await world.start(world.host.handler_link("echo", url=far.url, subscriptions="in"), world.host.consumer_link('a"b', name=odd, url=far.url))
    assert sorted(c["name"] for c in far.connections()) == [f'messaging-nats a"b {odd}', "messaging-nats echo default"]
    assert f"messaging-nats {world.lattice} lattice" in [c.get("name") for c in world.server.connections()]


# ---------------------------------------------------------------- what people write

async def test_utf8_is_shown(world):
    """What others say in their own script stands so in log and health; what could move a terminal's cursor, or hide, does not."""
    async def fail(_message):
        return "gr\u00fc\u00dfe \u65e5\u672c \U0001f600 \x9b31m\u202egnp\u2066"
    provider = await world.start(world.host.handler_link(name="\u00e9t\u00e9", subscriptions=world.s("in")))
    await world.component(handler=fail)
    await world.nc.publish(world.s("in"), b"x")
    line = await provider.wait_log("gr\u00fc\u00dfe \u65e5\u672c \U0001f600")
    assert "(\u00e9t\u00e9)" in line and line.isprintable()
    await world.host.put(world.host.handler_link(name="\u00e9t\u00e9", subscriptions=world.s("in"), max_in_flight="viele"))
    await world.host.unhealthy("\u00e9t\u00e9.*max_in_flight")


async def test_blanks_around_values(world, servers):
    """Blanks and line ends around values, and around what stands in lists, do not count."""
    far = servers('authorization { user: "me", password: "word" }')
    await world.start(world.host.handler_link(url=f" \n\tnats://me:word@{far.address} \r\n,\n nats://me:word@{far.address}\n", subscriptions="\n a.> ,\r\n b | group \n",
                                              max_in_flight=" 7\n", tls_first=" false ", custom_inbox_prefix="\tOURS\n"))
    subs = {(s["subject"], s.get("qgroup", "")) for c in far.monitored("connz?subs=detail")["connections"] for s in c["subscriptions_list_detail"]}
    assert {("a.>", ""), ("b", "group")} <= subs and any(subject.startswith("OURS.") for subject, _ in subs)


@pytest.mark.parametrize("key", ["client_jwt", "client_seed"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\\n"], ids=repr)
async def test_creds_in_either_key(world, servers, key, end):
    """All of a .creds file, in the key that somebody thought of, with line ends as a tool has left them."""
    accounts = Accounts()
    jwt, seed = accounts.user()
    far = servers(accounts.config)
    await world.start(world.host.consumer_link(url=far.url, **{key: Accounts.credentials(jwt, seed).replace("\n", end)}))


async def test_nkey_seed_file(world, servers):
    """What stands in a file with the seed of an nkey user, alone."""
    user = Accounts.pair("USER")
    seed = bytes(user.seed).decode()
    far = servers(f"authorization {{ users: [{{ nkey: {user.public_key.decode()} }}] }}")
    text = f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    await world.start(world.host.consumer_link("a", url=far.url, client_seed=text), world.host.consumer_link("b", url=far.url, client_seed=f" {seed}\n"))


# ---------------------------------------------------------------- messages

@pytest.mark.parametrize("style", ["1.9", "1.0"])
async def test_failed_message_says_its_subject(world, style):
    """Error, trap, timeout, drop: the log names the subject that the message came on, cut if it is long."""
    link = world.host.handler_link(subscriptions=world.s(">"), handler_timeout_ms="60000")
    provider = await world.start(link)
    component = await world.component(style=style, by_hand=True)

    async def goes_wrong(subject, how, pattern):
        await world.nc.publish(world.s(subject), b"x" * 300)
        call = await component.invocation()
        await call.handshake()
        await how(call)
        await provider.wait_log(f"{pattern}.*subject {world.s(subject)[:40]}")

    async def nothing(_call):
        pass
    await goes_wrong("an.error", lambda call: call.answer("no such order"), "answered a message with an error: no such order")
    await goes_wrong("a.trap", lambda call: call.trap("unreachable"), "trapped on a message")
    await goes_wrong("nonsense", lambda call: call.send(b"\x07"), "does not decode")
    await goes_wrong("long." + "\u00e9" * 200, lambda call: call.answer("long"), "answered a message with an error: long")
    await world.host.put({**link, "source_config": {**link["source_config"], "handler_timeout_ms": "300"}})
    await goes_wrong("a.timeout", nothing, "timed out")
    await component.close()
    await world.nc.publish(world.s("to.nobody"), b"x")
    await provider.wait_log(f"dropped: nobody runs the component .*subject {world.s('to.nobody')}")


async def test_failed_message_of_a_consumer_says_its_subject(worlds, servers):
    """The same of what JetStream delivered."""
    world = await worlds(servers(jetstream="10M"))
    js = world.nc.jetstream()
    await js.add_stream(name="S", subjects=["orders.>"])
    await js.add_consumer("S", durable_name="c", ack_policy="explicit")
    provider = await world.start(world.host.handler_link(consumers='[{"stream":"S","consumer":"c"}]'))

    async def fail(_message):
        return "no such order"
    await world.component(handler=fail)
    await js.publish("orders.new", b"x")
    await provider.wait_log(r"no such order \(subject orders\.new\)")


async def test_lost_chunk_is_no_trap(world):
    """A host that ends the call of a message in chunks without a result may have lost one of them; of a short message it is a trap."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s(">")))
    component = await world.component(by_hand=True)
    await world.nc.publish(world.s("large"), b"x" * world.nc.max_payload)
    call = await component.invocation()
    await call.handshake()
    await call.trap()
    line = await provider.wait_log(f"subject {world.s('large')}")
    assert "lost a part" in line and "trapped" not in line
    await world.nc.publish(world.s("half"), b"x")
    call = await component.invocation()
    await call.handshake()
    await call.send(b"\1\x20half")
    assert "only a part of the result" in await provider.wait_log(f"subject {world.s('half')}")
    await world.nc.publish(world.s("small"), b"x")
    call = await component.invocation()
    await call.handshake()
    await call.trap()
    assert "trapped" in await provider.wait_log(f"subject {world.s('small')}")


# ---------------------------------------------------------------- health

async def test_health_of_many_links(world):
    """With 30 of 32 links down health says so, with the reasons of some, as many names as there is room for, and how many others."""
    await world.start()
    host = world.host
    down = [f"component-with-a-long-name-{i}" for i in range(30)]
    links = [host.consumer_link(name, name="orders-of-the-north-west", url="nats://127.0.0.1:1") for name in down]
    await host.put(*links, host.consumer_link("good-1"), host.consumer_link("good-2"))
    words = await host.unhealthy("^30 of 32 links are not well: link component-with-a-long-name-0 .*127.0.0.1:1.*refused")
    assert "good" not in words
    named = re.findall(r"link (component-with-a-long-name-\d+) -> messaging-nats \(orders-of-the-north-west\)", words)
    others = re.search(r"; and (\d+) others$", words)
    assert len(named) == len(set(named)) > 15 and len(named) + int(others.group(1)) == 30, words
    for link in links[1:]:
        await host.delete(link)
    words = await host.unhealthy("^link component-with-a-long-name-0 ")
    assert "others" not in words and "links" not in words


async def test_health_of_a_link_without_subscriptions(world):
    """A link that calls the component, and that nothing can come by, is no fault, since it may be configured later; but health says it."""
    await world.start(world.host.handler_link("idle"), world.host.handler_link("busy", subscriptions=world.s("in")))
    answer = await world.host.health()
    assert answer["healthy"] is True and re.fullmatch(r"link messaging-nats -> idle \(default\): .*neither subscriptions nor consumers.*", answer["message"])
    await world.put(world.host.handler_link("idle", subscriptions=world.s("in")))
    assert await world.host.health() == {"healthy": True}


async def test_no_names_of_the_source(world):
    """Limits are said in words and numbers."""
    provider = await world.start(log_level="debug")
    links = [world.host.handler_link(f"c{i}", subscriptions=",".join(world.s(f"{i}.{n}") for n in range(65))) for i in range(2)]
    await world.host.put(*links)
    await world.host.unhealthy("130 subscriptions, and this build takes 128")
    await world.host.put(*(world.host.consumer_link(f"d{i}") for i in range(31)))
    await world.host.unhealthy("there are 32 links, the most that this build takes")
    assert not provider.log(r"[A-Z]+_MAX")


# ---------------------------------------------------------------- why a connection does not come about

def every_port(**ports):
    return f"""server_name: n1
cluster {{ name: C, listen: 127.0.0.1:{ports['route']}, routes: ["nats://127.0.0.1:{free_port()}"] }}
leafnodes {{ listen: 127.0.0.1:{ports['leaf']} }}
gateway {{ name: C, listen: 127.0.0.1:{ports['gateway']} }}
websocket {{ listen: "127.0.0.1:{ports['websocket']}", no_tls: true }}
accounts {{ SYS {{ users: [{{user: sys, password: x}}] }} }}
system_account: SYS
no_auth_user: sys
mqtt {{ listen: "127.0.0.1:{ports['mqtt']}" }}"""


WRONG_PORTS = {
    "route": "port of the server is for routes", "leaf": "port of the server is for leaf nodes", "gateway": "port of the server is for gateways",
    "websocket": "port for WebSocket", "mqtt": "(timeout|closes the connection) before its INFO.*is the port NATS's for clients", "monitor": "(port for WebSocket or monitoring|closes the connection before its INFO)",
}


@pytest.mark.parametrize("version", ["2.9", "2.10"])
async def test_wrong_port_of_a_server(world, servers, version):
    """Each port of a nats-server that is none for clients is told by what it is for."""
    ports = {name: free_port() for name in WRONG_PORTS if name != "monitor"}
    far = servers(every_port(**ports), jetstream="10M", binary=nats_server_of(version))
    ports["monitor"] = far.http_port
    provider = await world.start(*(world.host.consumer_link(name, url=f"nats://127.0.0.1:{port}") for name, port in ports.items()), ready=False)
    for name, words in WRONG_PORTS.items():
        await provider.wait_log(f"link {name} .*cannot connect to 127.0.0.1:{ports[name]}: .*{words}", 15 * SLOW)


@pytest.mark.parametrize("first, words", [
    (b"SSH-2.0-OpenSSH_9.2\r\n", 'no NATS server is there, but one that says "SSH-2.0-OpenSSH_9.2"'), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "an HTTP server is there"),
    (b"-ERR 'maximum connections exceeded'\r\n", "maximum connections exceeded"), (b"", "closes the connection before its INFO"),
    (info(), "closes the connection, and does not answer to CONNECT")], ids=["ssh", "http", "refusal", "nothing", "info alone"])
async def test_what_is_no_nats_server(world, peers, first, words):
    """Who greets with something else, or hangs up, is told by that."""
    async def script(peer, reader, writer):
        await say(writer, first)
        if first == info():
            await reader.readline()
    peer = await peers(script)
    provider = await world.start(world.host.consumer_link(url=peer.url), ready=False)
    await provider.wait_log(f"cannot connect to {peer.address}: .*{words}")


async def test_first_line_repeats_the_password(world, peers):
    """A server that heard the password at one attempt greets with it at the next: neither log nor health has it."""
    heard = []

    async def script(peer, reader, writer):
        if heard:
            await say(writer, b"-ERR 's3cretword is wrong'\r\n")
        else:
            await say(writer, info())
            heard.append(await reader.readline())
    peer = await peers(script)
    provider = await world.start(world.host.consumer_link(url=f"nats://user:s3cretword@{peer.address}"), ready=False)
    await provider.wait_log(f"cannot connect to {peer.address}: the server says .*a piece of a secret", 15 * SLOW)
    assert b"s3cretword" in heard[0]
    assert "s3cretword" not in json.dumps(await world.host.health()) and not provider.log("s3cretword")


async def test_refused_and_unreachable(world):
    """Nobody listens; no route; a name that nobody has: each has words of its own, in log and health."""
    urls = {"refused": f"nats://127.0.0.1:{free_port()}", "unreachable": "nats://[fe80::1%25nosuch]:4222", "name": "nats://no-such-host.invalid:4222", "net": "nats://255.255.255.255:4222"}
    provider = await world.start(*(world.host.consumer_link(name, url=url) for name, url in urls.items()), ready=False)
    await provider.wait_log("link refused .*connection refused: nothing listens on that port")
    await provider.wait_log("link name .*(no such name|no name server)", 30 * SLOW)
    await provider.wait_log("link net .*(unreachable|Permission|denied)")


async def test_no_descriptors(world):
    """A limit that is too low is named by what raises it."""
    provider = await world.start(world.host.consumer_link("one"))
    used = len(os.listdir(f"/proc/{provider.pid}/fd"))
    resource.prlimit(provider.pid, resource.RLIMIT_NOFILE, (used, 1024))
    await world.host.put(world.host.consumer_link("two"), world.host.consumer_link("three", url=f"nats://localhost:{world.server.port}"))
    await world.host.unhealthy("link two .*ulimit -n")
    await world.host.unhealthy("link three .*ulimit -n")
    resource.prlimit(provider.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    await world.host.healthy(20 * SLOW)


async def test_timeouts_say_where(world, peers):
    """A server that stops half way: before INFO, or after CONNECT."""
    async def silent(peer, reader, writer):
        await hold(reader)

    async def half(peer, reader, writer):
        await say(writer, info())
        await hold(reader)
    one, two = await peers(silent), await peers(half)
    provider = await world.start(world.host.consumer_link("silent", url=one.url), world.host.consumer_link("half", url=two.url), ready=False)
    await provider.wait_log("link silent .*timeout before its INFO", 15 * SLOW)
    await provider.wait_log("link half .*does not answer to CONNECT: timeout", 15 * SLOW)


async def test_tls_first_is_hinted(world, servers, authority):
    """A server that begins with TLS says nothing before, and closes when its time for that is over: the words name the key."""
    config = tls_block(*authority.issue("first"), first=True).replace(f"timeout: {2 * SLOW}", "timeout: 2")  # sooner than we give up
    far = servers(config, binary=nats_server_of("2.10"))
    provider = await world.start(world.host.consumer_link(url=far.url), ready=False)
    await provider.wait_log("cannot connect.*tls_first=true", 15 * SLOW)


async def test_refusals_say_which_key(world, servers, worlds):
    """Wrong credentials are told by the key that holds them; a full server and a full account are no matter of credentials."""
    accounts = Accounts()
    jwt, seed = accounts.user()
    stranger = Accounts().user()
    far, nkeys, plain = servers(accounts.config), servers(f"authorization {{ users: [{{ nkey: {Accounts.pair('USER').public_key.decode()} }}] }}"), servers("authorization { user: u, password: p }")
    token, full = servers("authorization { token: t }"), servers("max_connections: 1")
    nc = await world.client(full)
    links = {
        "jwt": (dict(url=far.url, client_jwt=stranger[0], client_seed=stranger[1]), "client_jwt"), "nkey": (dict(url=nkeys.url, client_seed=seed), "nkey of client_seed"),
        "password": (dict(url=f"nats://u:wrong1@{plain.address}"), "user and password in the URL"), "token": (dict(url=f"nats://wrong2@{token.address}"), "token in the URL"),
        "nothing": (dict(url=plain.url), "it wants client_jwt"), "full": (dict(url=full.url), "the server is full"),
    }
    provider = await world.start(*(world.host.consumer_link(name, **how) for name, (how, _) in links.items()), ready=False)
    for name, (_, words) in links.items():
        await provider.wait_log(f"link {name} .*cannot connect.*{words}")
    assert nc.is_connected


async def test_long_lists(world):
    """A list that is far too long is refused, and nobody waits for that."""
    provider = await world.start(world.host.consumer_link())
    before = provider.cpu()
    await world.host.put(world.host.handler_link("many", name="many", subscriptions=",".join(f"s{i:05d}" for i in range(20000))))
    await world.host.put(world.host.consumer_link("urls", cluster_uris=",".join(["nats://x:0"] * 10000)))
    await provider.wait_log("link messaging-nats -> many .*20000 are more than the")
    await provider.wait_log("link urls -> messaging-nats .*cluster_uris")
    assert provider.cpu() - before < 2 * SLOW
    await world.host.unhealthy("20000 are more than")
