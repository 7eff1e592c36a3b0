# SPDX-License-Identifier: Apache-2.0
"""Links and the connections they ask for: names, addresses, credentials, TLS, and servers that come and go."""
import asyncio
import json
import re
import signal
import ssl

import pytest

import wire
from lattice import Host, Provider, World, run_provider, until
from servers import DEADLINE, SLOW, Accounts, free_port, nats_server_version, tls_block


async def passes(world, far, component="echo", link_name="default", **options):
    """A publish of this component over this link arrives at that server."""
    outside = await world.client(far, **options)
    out = await world.listen("check", nc=outside)
    call = await (await world.component(component, serve=False)).publish("check", b"x", link_name=link_name)
    assert call.ok, call
    assert (await out.next_msg(DEADLINE)).data == b"x"


# ---------------------------------------------------------------- names

@pytest.mark.smoke
async def test_consumer_links_by_name(world, servers):
    """A component with several links chooses one by the link-name of its call; none means default."""
    one, two = servers(), servers()
    await world.start(world.host.consumer_link(url=one.url), world.host.consumer_link(name="second", url=two.url))
    await passes(world, one)
    await passes(world, two, link_name="second")
    await passes(world, one, link_name=None)


async def test_handler_links_by_name(world, servers):
    """Two handler links of one component: both feed it, each from its server."""
    one, two = servers(), servers()
    await world.start(world.host.handler_link(url=one.url, subscriptions="in"), world.host.handler_link(name="second", url=two.url, subscriptions="in"))
    component = await world.component()
    for far, body in ((one, b"1"), (two, b"2")):
        await until(lambda: far.subscribers("in"), "subscribed")
        await (await world.client(far)).publish("in", body)
        assert (await component.next()).body == body


async def test_several_components(world):
    """Each component gets its own messages."""
    names = ["a", "b-c", "d_e"]
    await world.start(*(world.host.handler_link(name, name=f"link-{name}", subscriptions=world.s(name)) for name in names))
    components = [await world.component(name) for name in names]
    for component in components:
        await world.nc.publish(world.s(component.name), component.name.encode())
        assert (await component.next()).body == component.name.encode()


async def test_as_many_links_as_promised(world):
    """32 links with 128 subscriptions between them."""
    links = [world.host.handler_link(f"c{i}", name=f"n{i}", subscriptions=",".join(world.s(f"{i}.{j}") for j in range(4))) for i in range(32)]
    await world.start(*links)
    for i in (0, 31):
        component = await world.component(f"c{i}")
        await world.nc.publish(world.s(f"{i}.3"), b"x")
        await component.next()


async def test_more_links_than_there_is_room_for(world):
    """They are refused in a log line that names them; the first ones work."""
    provider = await world.start(*(world.host.consumer_link(f"c{i}") for i in range(60)), ready=False)
    await provider.wait_log("(WARN|ERROR).*c59")
    await world.link_works("c0")


# ---------------------------------------------------------------- subscriptions

async def test_queue_group(world, worlds):
    """Two providers that share a queue group share the work: each message is handled once, and both get some."""
    second = await worlds(world.server)
    subject = world.s("work")
    components = []
    for w in (world, second):
        await w.start(w.host.handler_link(subscriptions=f"{subject}|workers"))
        components.append(await w.component())
    await until(lambda: len(world.server.subscribers(subject)) == 2, "both subscribed")
    for i in range(200):
        await world.nc.publish(subject, b"%d" % i)
    await until(lambda: sum(c.received.qsize() for c in components) >= 200, "all handled")
    for w in (world, second):
        await w.host.healthy()
    counts = [c.received.qsize() for c in components]
    assert sum(counts) == 200 and min(counts) > 0


async def test_subscription_list(world):
    """Spaces and empty items in the list do not matter; wildcards are subjects too."""
    subjects = [world.s("a"), world.s("b.*"), world.s("c.>")]
    await world.start(world.host.handler_link(subscriptions=f" {subjects[0]} ,,{subjects[1]}|q , {subjects[2]},"))
    component = await world.component()
    for name in ("a", "b.x", "c.x.y"):
        await until(lambda: all(world.server.subscribers(s) for s in subjects), "subscribed")
        await world.nc.publish(world.s(name), b"")
        assert (await component.next()).subject == world.s(name)


async def test_custom_inbox_prefix(world):
    """Requests take their reply subjects from under it."""
    await world.start(world.host.consumer_link(custom_inbox_prefix=world.s("inbox")))
    seen = []

    async def answer(msg):
        seen.append(msg.reply)
        await msg.respond(b"ok")
    await world.nc.subscribe(world.s("svc"), cb=answer)
    call = await (await world.component(serve=False)).request(world.s("svc"))
    assert call.ok and call.value.subject == seen[0]
    assert seen[0].startswith(world.s("inbox") + ".")


# ---------------------------------------------------------------- addresses and credentials

@pytest.mark.parametrize("form", ["{address}", "nats://{address}", " nats://{address} ", "nats://127.0.0.1:{dead},{address}",
                                  "nats://127.0.0.1:{dead},nats://no-such-host.invalid:4222,nats://{address}", "nats://localhost:{port}"])
async def test_cluster_uris(world, servers, form):
    """Every address of the list is tried."""
    far = servers()
    await world.start(world.host.consumer_link(url=form.format(address=far.address, port=far.port, dead=free_port())))
    await passes(world, far)


async def test_next_server_of_the_list(world, servers):
    """When a server goes away, the link moves on to the next."""
    one, two = servers(), servers()
    await world.start(world.host.consumer_link(url=f"{one.url},{two.url}"))
    await passes(world, one)
    one.stop()
    await world.link_works("echo")
    await passes(world, two)


async def test_user_and_password(world, servers):
    """user:password in the URL, also where another address of the list has none."""
    far = servers('authorization { user: "me", password: "pass-word" }')
    await world.start(world.host.consumer_link(url=f"nats://127.0.0.1:{free_port()},nats://me:pass-word@{far.address}"))
    await passes(world, far, user="me", password="pass-word")


async def test_lattice_with_jwt(servers, worlds):
    """The lattice's user JWT and seed come in the host data."""
    accounts = Accounts()
    jwt, seed = accounts.user()

    def credentials():
        return bytearray(jwt.encode())

    def sign(nonce):
        import base64
        import nkeys
        return base64.b64encode(nkeys.from_seed(bytearray(seed.encode())).sign(nonce.encode()))
    server = servers(accounts.config)
    world = await worlds(server, user_jwt_cb=credentials, signature_cb=sign)
    await world.start(lattice_rpc_user_jwt=jwt, lattice_rpc_user_seed=seed)
    await world.put(world.host.consumer_link(client_jwt=jwt, client_seed=seed))
    assert (await (await world.component(serve=False)).publish("x")).ok


@pytest.mark.parametrize("written", [lambda text: text, lambda text: "  \r\n" + text.replace("\n", "\r\n")], ids=["as nsc writes it", "with CR LF and blanks"])
async def test_whole_creds_file(world, servers, written):
    """client_jwt takes what stands in a .creds file, as people have it."""
    accounts = Accounts()
    far = servers(accounts.config)
    jwt, seed = accounts.user()
    await world.start(world.host.consumer_link(url=far.url, client_jwt=written(Accounts.credentials(jwt, seed))))
    assert (await (await world.component(serve=False)).publish("x")).ok


DAY = 86400  # s


@pytest.mark.parametrize("expires, words", [(None, None), (30 * DAY, None), (3.5 * DAY, "expires on 20.* in 3 days: give it a new one"),
                                            (-DAY, "has expired, on 20.*: give it a new one")], ids=str)
async def test_jwt_that_ends_soon(world, servers, tmp_path, expires, words):
    """A user's JWT that ends within a week, or has ended, is worth a warning: of a link, also by --check, and of the lattice."""
    accounts = Accounts()
    far = servers(accounts.config)
    jwt, seed = accounts.user(expires)
    link = world.host.consumer_link(url=far.url, client_jwt=Accounts.credentials(jwt, seed))
    data = {**world.host.data, "lattice_rpc_url": far.url, "lattice_rpc_user_jwt": jwt, "lattice_rpc_user_seed": seed}
    lattice = await Provider.start(data)
    provider = await world.start(link, ready=False)
    await provider.wait_log(r"default.: (connected|cannot connect)")
    await lattice.wait_log(r"lattice .*(connected|cannot connect)")
    for one, whose in (provider, "link"), (lattice, "lattice"):
        assert len(one.log(f"WARN +{whose} .*the JWT of its user {words}")) == (1 if words else 0), one.lines
    await lattice.stop()
    for value in link, data:
        (tmp_path / "it").write_text(json.dumps(value))
        code, out, err = await run_provider("--check", tmp_path / "it")
        assert code == (1 if words else 0), out + err
        assert bool(re.search(f"the JWT of its user {words}", out)) == bool(words), out


async def test_nkey_user(world, servers):
    """client_seed alone is a user that the server knows by an nkey."""
    user = Accounts.pair("USER")
    far = servers(f'authorization {{ users: [ {{ nkey: {user.public_key.decode()} }} ] }}')
    await world.start(world.host.consumer_link(url=far.url, client_seed=bytes(user.seed).decode()))
    assert (await (await world.component(serve=False)).publish("x")).ok


async def test_lattice_with_user_and_password(servers, worlds):
    """Credentials in lattice_rpc_url."""
    server = servers('authorization { user: "me", password: "word" }')
    world = await worlds(server, user="me", password="word")
    await world.start(lattice_rpc_url=f"nats://me:word@{server.address}")


async def test_refused_credentials_are_tried_again(world, servers):
    """Health and log say that the server refused them; when it lets them in, the link comes up."""
    far = servers('authorization { user: "me", password: "other" }')
    provider = await world.start(world.host.consumer_link(url=f"nats://me:word@{far.address}"), ready=False)
    await world.host.unhealthy("echo.*authoriz")
    await provider.wait_log("echo.*authoriz")
    far.reload('authorization { user: "me", password: "word" }')
    await world.host.healthy(20 * SLOW)
    await passes(world, far, user="me", password="word")


async def test_credentials_revoked(world, servers):
    """A server that throws the link's user out is tried again as well."""
    far = servers('authorization { user: "me", password: "word" }')
    await world.start(world.host.consumer_link(url=f"nats://me:word@{far.address}"))
    far.reload('authorization { user: "me", password: "other" }')
    await world.host.unhealthy("echo.*authoriz")
    far.reload('authorization { user: "me", password: "word" }')
    await world.host.healthy(20 * SLOW)


# ---------------------------------------------------------------- TLS

@pytest.fixture
def context(authority):
    """How the harness trusts the servers."""
    return ssl.create_default_context(cafile=str(authority.ca_file))


@pytest.fixture(scope="session")
def server_certificate(authority):
    return authority.issue("server")


TLS_FORMS = {
    "tls URL": lambda far, a, s: dict(url="tls://" + far.address, tls_ca=a.ca),
    "nats URL": lambda far, a, s: dict(url="nats://" + far.address, tls_ca=a.ca),
    "by name": lambda far, a, s: dict(url=f"tls://localhost:{far.port}", tls_ca=a.ca),
    "two CAs": lambda far, a, s: dict(url=far.url, tls_ca=s.ca + a.ca),
    "file": lambda far, a, s: dict(url=far.url, tls_ca_file=str(a.ca_file)),
    "words around the certificate": lambda far, a, s: dict(url=far.url, tls_ca="subject: test\r\n" + a.ca.replace("\n", "\r\n")),
}


@pytest.mark.smoke
@pytest.mark.parametrize("form", TLS_FORMS.values(), ids=TLS_FORMS)
async def test_tls(world, servers, authority, stranger, server_certificate, context, form):
    """A server that requires TLS, whatever the URL's scheme says; the CAs from the configuration."""
    far = servers(tls_block(*server_certificate))
    await world.start(world.host.consumer_link(**form(far, authority, stranger)))
    await passes(world, far, tls=context, tls_hostname="localhost")


async def test_tls_large_bodies(world, servers, authority, server_certificate, context):
    """Bodies up to max_payload both ways over TLS, several at once."""
    far = servers(tls_block(*server_certificate))
    outside = await world.client(far, tls=context)
    await world.start(world.host.consumer_link(url=far.url, tls_ca=authority.ca),
                      world.host.handler_link(url=far.url, tls_ca=authority.ca, subscriptions="in"))
    await until(lambda: far.subscribers("in"), "subscribed")
    await world.respond("svc", lambda data: data[::-1], nc=outside)
    echo = await world.component()
    bodies = [bytes([i]) * size for i, size in enumerate((0, 1, 16384, 16385, 300000, 1048576))]
    calls = await asyncio.gather(*(echo.request("svc", body, 20000) for body in bodies))
    assert [call.value.body for call in calls] == bodies
    for body in bodies:
        await outside.publish("in", body)
    assert {(await echo.next()).body for _ in bodies} == set(bodies)


@pytest.mark.parametrize("as_secret", [False, True], ids=["configuration", "secret"])
async def test_client_certificate(world, servers, authority, server_certificate, context, as_secret):
    """A server that wants one gets tls_cert and tls_key; the key may be a secret."""
    certificate, key = authority.issue("client")
    far = servers(tls_block(*server_certificate, authority.ca_file))
    context.load_cert_chain(certificate, key)
    world.host.make_xkeys()
    pem = {"tls_key": key.read_text()}
    await world.start(world.host.consumer_link(url=far.url, tls_ca=authority.ca, tls_cert=certificate.read_text(),
                                               **({"secrets": pem} if as_secret else pem)))
    await passes(world, far, tls=context)


async def test_client_certificate_missing(world, servers, authority, server_certificate):
    """Without one, the server refuses, and health says that TLS is why."""
    far = servers(tls_block(*server_certificate, authority.ca_file))
    await world.start(world.host.consumer_link(url=far.url, tls_ca=authority.ca), ready=False)
    await world.host.unhealthy("echo.*(certificate|tls|handshake)")


@pytest.mark.skipif(nats_server_version() < (2, 10), reason="nats-server before 2.10 cannot begin with the TLS handshake")
async def test_tls_first(world, servers, authority, server_certificate, context):
    """tls_first: the handshake comes before the server's first word."""
    far = servers(tls_block(*server_certificate, first=True))
    await world.start(world.host.consumer_link(url=far.url, tls_ca=authority.ca, tls_first="true"))
    await passes(world, far, tls=context, tls_handshake_first=True)


REFUSED = {
    "unknown CA": (dict(by="stranger"), "(not trusted|untrusted|unknown|CA)"),
    "system's CAs do not know it": (dict(ca=False), "(not trusted|untrusted|unknown|CA)"),
    "wrong name": (dict(san="DNS:elsewhere.example"), "(name|host|127.0.0.1)"),
    "wrong address": (dict(san="IP:127.0.0.2"), "(name|host|address|127.0.0.1)"),
    "expired": (dict(expired=True), "expired"),
}


@pytest.mark.smoke
@pytest.mark.parametrize("case, pattern", REFUSED.values(), ids=REFUSED)
async def test_certificate_refused(world, servers, authority, stranger, case, pattern):
    """A certificate that does not hold is refused; log and health say in words why."""
    case = dict(case)
    issuer = stranger if case.pop("by", None) else authority
    ca = {} if case.pop("ca", None) is False else {"tls_ca": authority.ca}
    far = servers(tls_block(*issuer.issue("bad" + str(len(case)) + "".join(case), **case)))
    provider = await world.start(world.host.consumer_link(url="tls://" + far.address, **ca), ready=False)
    await world.host.unhealthy("echo.*" + pattern)
    await provider.wait_log("echo.*" + pattern)


async def test_tls_url_of_a_server_without(world, servers):
    """tls:// is a demand: a server in the clear is refused."""
    far = servers()
    await world.start(world.host.consumer_link(url="tls://" + far.address), ready=False)
    await world.host.unhealthy("echo.*(tls|secure)")


@pytest.mark.parametrize("client_certificate", [False, True])
async def test_lattice_tls(servers, worlds, authority, server_certificate, context, client_certificate):
    """The lattice's server may require TLS, and client certificates; the keys are in the provider's config, prefixed lattice_."""
    config = {"lattice_tls_ca": authority.ca}
    if client_certificate:
        certificate, key = authority.issue("lattice-client")
        context.load_cert_chain(certificate, key)
        config.update(lattice_tls_cert=certificate.read_text(), lattice_tls_key=key.read_text())
    server = servers(tls_block(*server_certificate, authority.ca_file if client_certificate else None))
    world = await worlds(server, tls=context)
    await world.start(config=config)
    plain = servers()
    await world.put(world.host.consumer_link(url=plain.url))
    await passes(world, plain)


async def test_lattice_tls_refused(servers, stranger, server_certificate):
    """A lattice that cannot be trusted is said in words, and not connected to."""
    server = servers(tls_block(*server_certificate))
    provider = await Provider.start({**Host(None, "L", server.url).data, "config": {"lattice_tls_ca": stranger.ca}})
    try:
        await provider.wait_log("lattice.*(trust|CA|certificate)")
    finally:
        await provider.stop()


# ---------------------------------------------------------------- servers that come and go

@pytest.mark.smoke
async def test_server_away_at_first(world, servers):
    """A link whose server is away comes up when the server does."""
    far = servers(run=False)
    far.port = free_port()
    await world.start(world.host.consumer_link(url=far.url), ready=False)
    await world.host.unhealthy("echo")
    far.start()
    await world.host.healthy(20 * SLOW)
    await passes(world, far)


async def test_server_restarts(world, servers):
    """A link comes back, and its subscriptions with it, as often as its server goes."""
    far = servers()
    await world.start(world.host.handler_link(url=far.url, subscriptions="in"))
    component = await world.component()
    for _ in range(3):
        far.stop()
        await world.host.unhealthy("echo")
        far.start()
        await world.host.healthy(20 * SLOW)
        await until(lambda: far.subscribers("in"), "subscribed again")
        await (await world.client(far)).publish("in", b"x")
        await component.next()


async def test_server_restarts_under_load(world, servers):
    """What is under way when the server goes ends in an answer, and afterwards every call works again."""
    far = servers()
    await world.start(world.host.consumer_link(url=far.url))
    echo = await world.component(serve=False)
    outside = await world.client(far)
    await world.respond("svc", bytes.upper, nc=outside)
    running, outcomes = True, []

    async def load():
        while running:
            call = await echo.request("svc", b"x" * 3000, 500)
            outcomes.append(call.ok)
            assert call.ok or call.value, call
    tasks = [asyncio.create_task(load()) for _ in range(16)]
    await until(lambda: outcomes.count(True) > 200, "calls work")
    far.stop()
    await until(lambda: outcomes.count(False) > 20, "calls fail")
    far.start()
    await world.host.healthy(20 * SLOW)
    count = len(outcomes)
    await until(lambda: outcomes[count:].count(True) > 200, "calls work again")
    running = False
    await asyncio.gather(*tasks)


async def test_lattice_restarts(servers, worlds):
    """The provider comes back to a lattice that went away, and its links go on meanwhile."""
    server, far = servers(), servers()
    world = await worlds(server)
    await world.start(world.host.handler_link(url=far.url, subscriptions="in"), world.host.consumer_link(url=far.url))
    await until(lambda: far.subscribers("in"), "subscribed")
    outside = await world.client(far)
    before = far.subscribers("in")
    await world.echo()
    assert await world.ask("in", nc=outside) == b"hello"
    server.stop()
    server.start()
    await until(lambda: world.nc.is_connected, "the harness is connected again")
    await world.host.healthy(20 * SLOW)
    assert await world.ask("in", nc=outside) == b"hello"
    assert far.subscribers("in") == before
    await world.put(world.host.consumer_link("later"))


async def test_lattice_absent_at_start(servers):
    """An absent lattice is awaited; the links of the host data do not wait for it."""
    far, server = servers(), servers(run=False)
    server.port = free_port()
    world = World(server)
    data = Host(None, world.lattice, server.url).data
    link = Host(None, world.lattice, server.url).handler_link(url=far.url, subscriptions="in")
    provider = await Provider.start({**data, "link_definitions": [link]})
    world.providers.append(provider)
    try:
        await provider.wait_log("lattice")
        server.start()
        await world.open()
        await world.host.healthy(20 * SLOW)
    finally:
        await world.close()


async def test_server_that_falls_silent(world, servers):
    """A server that is stopped in its tracks is noticed by pings, and the link comes back when it goes on."""
    far = servers()
    await world.start(world.host.consumer_link(url=far.url, ping_interval_sec="1"))
    far.process.send_signal(signal.SIGSTOP)
    try:
        await world.host.unhealthy("echo")
    finally:
        far.process.send_signal(signal.SIGCONT)
    await world.host.healthy(20 * SLOW)
    await passes(world, far)


async def test_lattice_that_falls_silent_is_left(servers, worlds):
    """Deleting a link whose server is away, and putting it again elsewhere, works at once."""
    server = servers()
    world = await worlds(server)
    dead = world.host.consumer_link(url=f"nats://127.0.0.1:{free_port()}")
    await world.start(dead, ready=False)
    await world.host.unhealthy("echo")
    await world.host.delete(dead)
    await world.host.healthy()
    await world.put(world.host.consumer_link())
    call = await (await world.component(serve=False)).call("publish", wire.broker_message("x"))
    assert call.ok
