# SPDX-License-Identifier: Apache-2.0
"""While a connection is being made: names and their addresses, users and passwords, what demands TLS, and what never gets into log or
health, whatever server or file is at the other end."""
import asyncio
import json
import os
import re
import socket
import time
import urllib.parse
from pathlib import Path

import pytest

from lattice import DEADLINE, OWN_MEMORY, TOP, Host, Provider, until
from names import ROOT, NameServer, with_files
from peers import greet, hold, info, say
from servers import SLOW, Certificates, Proxy, Silent, free_port, tls_block

SECRET = "Tr0ub4dor&3"


@pytest.fixture
def name_servers():
    started = []

    def start(*args, **how):
        started.append(NameServer(*args, **how))
        return started[-1]
    yield start
    for one in started:
        one.close()


async def publishes(world, component="echo"):
    assert (await (await world.component(component, serve=False)).publish(world.s("x"), b"y")).ok


# ---------------------------------------------------------------- names

@ROOT
@pytest.mark.parametrize("count", [1, 63, 64, 65, 100, 1000])
async def test_name_with_many_addresses(world, servers, tmp_path, count):
    """However many a name has, and all but one refuse: it is found, and nothing breaks."""
    far = servers()
    dead = [f"127.1.{i // 250}.{i % 250 + 1}" for i in range(count - 1)]
    hosts = "".join(f"{address} broker.test\n" for address in [*dead, "127.0.0.1"])
    await world.start(world.host.consumer_link(url=f"nats://broker.test:{far.port}"), prefix=with_files(tmp_path, hosts))
    await publishes(world)


@ROOT
@pytest.mark.parametrize("count", [100, 4000])
async def test_answer_with_many_addresses(world, servers, tmp_path, name_servers, count):
    """The same from a name server, whose answer is as long as a datagram can be. All but one are refused: it takes a few rounds."""
    far = servers()
    good = name_servers([f"127.1.{i // 250}.{i % 250 + 1}" for i in range(count - 1)] + ["127.0.0.1"])
    provider = await world.start(world.host.consumer_link(url=f"nats://broker.example:{far.port}"), ready=False,
                                 prefix=with_files(tmp_path, resolv=f"nameserver {good.host}\n"))
    await provider.wait_log("connected to broker.example:", 60 * SLOW)
    assert good.asked
    await publishes(world)


@ROOT
async def test_address_that_is_silent(world, servers, tmp_path):
    """An address that takes a connection and says nothing is left after the connect timeout, for another one."""
    far, silent = servers(), socket.create_server(("127.1.1.1", 0))
    relay = await asyncio.start_server(lambda r, w: None, "127.1.1.2", silent.getsockname()[1])
    hosts = "127.1.1.1 broker.test\n127.1.1.2 broker.test\n"
    provider = await world.start(world.host.consumer_link("two", url=f"nats://broker.test:{silent.getsockname()[1]},{far.url}"),
                                 prefix=with_files(tmp_path, hosts), ready=False)
    await provider.wait_log(f"link two .*connected to {far.address}", 25 * SLOW)
    relay.close()
    silent.close()


@pytest.mark.release  # it brings its own binary
@pytest.mark.parametrize("jump", [3600, -3600, -10**9])
async def test_clock_jumps(world, servers, authority, tmp_path, jump):
    """The time of day jumps, and back, each time that it is asked: attempts take their time, and no more, with TLS and without."""
    patient = tls_block(*authority.issue(f"clock{jump}")).replace("timeout: ", "timeout: 3") + "authorization { timeout: 30 }\n"
    far, silent = servers(patient), Silent()
    path = Proxy(far.port, delay=0.2)
    links = [world.host.consumer_link("echo", url=path.url.replace("nats", "tls"), tls_ca=authority.ca),
             world.host.consumer_link("plain"), world.host.consumer_link("silent", url=silent.url, connect_timeout_sec="2")]
    provider = await world.start(*links, binary=str(TOP / "build/failing/provider"), env={"CLOCK_JUMPS": str(jump)}, ready=False)
    try:
        for name in "plain", "echo":
            await provider.wait_log(f"link {name} -> .*connected to", 20 * SLOW)
            await publishes(world, name)
        started = time.monotonic()
        tries = len(provider.log("link silent -> .*cannot connect"))
        await provider.wait_log("link silent -> .*cannot connect", 40 * SLOW, count=tries + 2)
        assert 2 <= time.monotonic() - started < 10 * SLOW  # two attempts, of which the first may have begun before
        assert not provider.log("link (plain|echo) -> .*cannot connect"), provider.lines
    finally:
        silent.close()
        path.close()


@ROOT
async def test_first_name_server_dead(world, servers, tmp_path, name_servers):
    """The time for a connection begins when the name is known: a second name server that answers is enough."""
    far = servers()
    dead, good = name_servers(silent=True), name_servers(["127.0.0.1"])
    provider = await world.start(world.host.consumer_link(url=f"nats://broker.example:{far.port}"), ready=False,
                                 prefix=with_files(tmp_path, resolv=f"nameserver {dead.host}\nnameserver {good.host}\n"))
    await provider.wait_log("connected to broker.example:", 30 * SLOW)
    assert good.asked
    await publishes(world)


@ROOT
@pytest.mark.parametrize("old", [0, 1, 2, 4, 5], ids=["silent", "FORMERR", "SERVFAIL", "NOTIMP", "REFUSED"])
async def test_name_server_without_edns(world, servers, tmp_path, name_servers, old):
    """A name server, or a firewall before it, that does not know EDNS is asked without it."""
    far = servers()
    asked = name_servers(["127.0.0.1"], old=old)
    provider = await world.start(world.host.consumer_link(url=f"nats://broker.example:{far.port}"), ready=False,
                                 prefix=with_files(tmp_path, resolv=f"nameserver {asked.host}\n"))
    await provider.wait_log("connected to broker.example:", 30 * SLOW)
    await publishes(world)


async def test_words_with_a_short_password(world, servers):
    """A password that stands in each word by chance does not hide why the server refuses."""
    far = servers("authorization { user: u, password: other }")
    await world.start(world.host.consumer_link(url=f"nats://u:a@{far.address}"), ready=False)
    await world.host.unhealthy("Authorization Violation")


@ROOT
async def test_name_server_that_cuts_its_answer(world, servers, tmp_path, name_servers):
    """Nobody waits for the rest of an answer at a name server that takes a connection and says nothing."""
    far = servers()
    cuts = name_servers(["127.0.0.1", "127.0.0.1"], cut=True)
    await world.start(world.host.consumer_link(url=f"nats://broker.example:{far.port}"),
                      prefix=with_files(tmp_path, resolv=f"nameserver {cuts.host}\n"))
    await publishes(world)


@ROOT
async def test_name_with_many_servers_that_refuse(world, servers, tmp_path):
    """Servers that answer, and do not let the link in, are not asked at thousands of addresses one after the other."""
    far = servers('authorization { user: "me", password: "word" }')
    hosts = "".join(f"127.0.0.1 broker.test # {i}\n" for i in range(500))
    provider = await world.start(world.host.consumer_link(url=f"nats://me:other@broker.test:{far.port}"), ready=False,
                                 prefix=with_files(tmp_path, hosts))
    await provider.wait_log("cannot connect to broker.test:.*authoriz")
    assert len([line for line in far.lines if "authentication error" in line]) < 20


async def test_name_that_nobody_has(world):
    """Log and health say that it is the name."""
    provider = await world.start(world.host.consumer_link(url="nats://no-such-host.invalid:4222"), ready=False)
    await provider.wait_log("cannot connect to no-such-host.invalid:4222: .*(name|resolution)", 30 * SLOW)


async def test_deleted_while_it_connects(world):
    """A link with a long list of servers that say nothing is at no other than the first when it was deleted."""
    silent = [Silent() for _ in range(4)]
    link = world.host.consumer_link(url=",".join(one.url for one in silent))
    provider = await world.start()
    await world.host.put(link)
    assert await asyncio.to_thread(silent[0].asked.wait, DEADLINE)
    during = provider.status("Threads")
    await world.host.delete(link)
    await until(lambda: provider.status("Threads") < during, "the connecting thread has ended", 12 * SLOW)
    assert not silent[1].asked.is_set()
    for one in silent:
        one.close()


# ---------------------------------------------------------------- what a server says first

@pytest.mark.parametrize("pieces", [[info()[:-1], info()[-1:]], [info()[:5], info()[5:]], [bytes([byte]) for byte in info()]],
                         ids=["between CR and LF", "behind the word", "everywhere"])
async def test_info_in_pieces(world, peers, pieces):
    """Where TCP cuts an INFO does not matter."""
    async def script(peer, reader, writer):
        for piece in pieces:
            await say(writer, piece)
            await asyncio.sleep(0.005)  # or they go out together
        while not (await reader.readline()).startswith(b"PING"):
            pass
        await say(writer, b"PO")
        await asyncio.sleep(0.005)
        await say(writer, b"NG\r\n")
        await hold(reader)
    peer = await peers(script)
    await world.start(world.host.consumer_link(url=peer.url))
    assert peer.accepted == 1


ENDLESS = {"INFO": (b"", b"INFO {\"server_id\":\""), "the answer to CONNECT": (info(), b""), "a text of JSON": (b"", b"INFO {" + b'"a":1,' * 10)}


@pytest.mark.parametrize("before, begin", ENDLESS.values(), ids=ENDLESS)
async def test_line_without_end(world, peers, before, begin):
    """A server that never ends its line is left soon, though bytes always come; 16 such links cost little, and others work."""
    async def script(peer, reader, writer):
        await say(writer, before + begin)
        while True:
            await say(writer, b"A" * 65536)
    bad = await peers(script)
    provider = await world.start(world.host.consumer_link("good"))
    await world.host.put(*(world.host.consumer_link(f"bad{i}", url=bad.url) for i in range(16)))
    for i in range(16):
        await provider.wait_log(f"link bad{i} .*cannot connect to {bad.address}: a line of the server is too long")
    await publishes(world, "good")
    if OWN_MEMORY:
        assert provider.status("VmHWM") < 12000


HOSTILE_JSON = {
    "a number of that many digits": b'{"a":1e999999999999999999}', "of less than none": b'{"a":1e-999999999999999999}',
    "in a field that counts": b'{"max_payload":1e9999999999999}', "objects in a list": b'{"a":[' + b"{}," * 10000 + b"{}]}",
    "objects in objects": b'{"a":' * 90 + b'"' + b"x" * 30000 + b'"' + b"}" * 90,
    "the same field again": b"{" + b'"a":[[1],[1]],' * 2000 + b'"b":1}', "a list of servers": b'{"connect_urls":[' + b'"",' * 10000 + b'""]}',
}


@pytest.mark.parametrize("json_text", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
async def test_hostile_info(world, peers, json_text):
    """INFO's JSON is not worked out beyond what is needed of it: neither while connecting, nor afterwards, and nothing is left of it."""
    again = asyncio.Event()

    async def script(peer, reader, writer):
        await say(writer, b"INFO " + json_text + b"\r\n")
        while not (await reader.readline()).startswith(b"PING"):
            pass
        await say(writer, b"PONG\r\n")
        while not (await reader.readline()).startswith(b"SUB"):
            pass
        await say(writer, (b"INFO " + json_text + b"\r\n") * 100 + b"PING\r\n")
        while not (await reader.readline()).startswith(b"PONG"):
            pass
        again.set()
        await hold(reader)
    bad = await peers(script)
    provider = await world.start(world.host.consumer_link("good"), world.host.consumer_link("bad", url=bad.url))
    await asyncio.wait_for(again.wait(), 20 * SLOW)
    await publishes(world, "good")
    assert bad.accepted == 1
    if OWN_MEMORY:
        assert provider.status("VmHWM") < 8000


# ---------------------------------------------------------------- users and passwords

PASSWORDS = ["a\"b", "back\\slash", "100%", "a:b@c/d?e#f", "with space", "tab\tand\nnewline", "é€😀", "\\\"", "{}[],", "\x7f\x01"]


def quoted(text):
    return urllib.parse.quote(text, safe="")


@pytest.mark.parametrize("password", PASSWORDS, ids=range(len(PASSWORDS)))
async def test_any_password(world, servers, password):
    """A password that works with other clients works in a URL, percent-encoded; so does a user, and a token."""
    far = servers(f"authorization {{ user: {json.dumps(password + 'u', ensure_ascii=False)}, password: {json.dumps(password, ensure_ascii=False)} }}"
                  if not re.search(r"[\x01\x7f]", password) else 'authorization { user: "\\x01u", password: "\\x7f\\x01" }')
    user = password + "u" if "\x7f" not in password else "\x01u"
    await world.start(world.host.consumer_link(url=f"nats://{quoted(user)}:{quoted(password)}@{far.address}"))
    await publishes(world)


async def test_token(world, servers):
    """A user without a password is a token; and an empty password is a password."""
    token = servers('authorization { token: "a\\"b%" }')
    empty = servers('authorization { users: [{user: "me", password: ""}] }')
    await world.start(world.host.consumer_link("token", url=f"nats://a%22b%25@{token.address}"),
                      world.host.consumer_link("empty", url=f"nats://me:@{empty.address}"))
    await publishes(world, "token")


async def test_password_that_is_a_command(world, peers):
    """What is decoded is no protocol: one line goes out, and it is JSON with that very password."""
    lines = []

    async def script(peer, reader, writer):
        await say(writer, info())
        lines.extend([await reader.readline(), await reader.readline()])
        await say(writer, b"PONG\r\n")
        await hold(reader)
    peer = await peers(script)
    password = '"}\r\nPUB evil 2\r\nhi\r\n'
    await world.start(world.host.consumer_link(url=f"nats://alice:{quoted(password)}@{peer.address}"))
    assert lines[0].startswith(b"CONNECT {") and lines[1] == b"PING\r\n"
    told = json.loads(lines[0][8:])
    assert (told["user"], told["pass"]) == ("alice", password)


def malformed(port):
    s = SECRET
    return {
        "a bare %": f"nats://alice:{s}%sure@127.0.0.1:{port}", "a % at its end": f"nats://alice:{s}%@127.0.0.1:{port}",
        "no @": f"nats://alice:{s}127.0.0.1:{port}", "no @, and a port": f"nats://alice:{s}:{port}", "no host": f"nats://alice:{s}@",
        "NUL": f"nats://alice:{s}%00@127.0.0.1:{port}", "no UTF-8": f"nats://alice:{s}%ff@127.0.0.1:{port}", "a space": f"nats://alice: {s}@127.0.0.1:{port}",
        "a bad port": f"nats://127.0.0.1:{s}", "a bracket": f"nats://[{s}", "another scheme": f"http://alice:{s}@127.0.0.1:{port}",
        "the scheme": f"{s}://127.0.0.1:{port}", "a host with a quote": f"nats://x\"{s}", "the second of two": f"nats://127.0.0.1:{port},nats://u:{s}%@h",
    }


@pytest.mark.parametrize("case", malformed(0))
async def test_malformed_url_is_not_repeated(world, case):
    """What is wrong with a URL is said by its place in the list, and no part of it gets into log or health; the lattice's neither."""
    url = malformed(free_port())[case]
    provider = await world.start(world.host.consumer_link("bad", url=url), ready=False, env={"RUST_LOG": "trace"})
    words = await world.host.unhealthy("bad.*")
    assert re.search("cluster_uris.*number [12] ", words), words
    await provider.wait_log("link bad ")
    assert not provider.log(re.escape(SECRET)) and SECRET not in words
    if "," in url:
        return
    other = await Provider.start({**Host(None, "L", url).data})
    assert await other.wait_exit() == 1
    assert other.log("the lattice: ") and not other.log(re.escape(SECRET))


@pytest.mark.parametrize("when", ["connecting", "connected"])
async def test_server_that_repeats_what_it_was_told(world, peers, accounts_user, when):
    """A server whose error text holds what was in CONNECT: neither password nor token nor JWT gets into log or health."""
    jwt, seed = accounts_user

    async def script(peer, reader, writer):
        await say(writer, info(nonce="x"))
        told = await reader.readline()
        if when == "connected":
            await say(writer, b"PONG\r\n")
        for part in [told, told[60:], told[200:], told[-120:]] + re.findall(rb'"(?:pass|auth_token|jwt|sig)":"[^"]*"', told):
            await say(writer, b"-ERR 'Unknown Protocol Operation: " + part.strip()[:150] + b"'\r\n")
        if when == "connected":
            await asyncio.sleep(0.05)
    peer = await peers(script)
    provider = await world.start(world.host.consumer_link("password", url=f"nats://alice:{quoted(SECRET)}@{peer.address}"),
                                 world.host.consumer_link("token", url=f"nats://{quoted(SECRET)}@{peer.address}"),
                                 world.host.consumer_link("jwt", url=peer.url, client_jwt=jwt, client_seed=seed), ready=False)
    for name in ("password", "token", "jwt"):
        await provider.wait_log(f"link {name} .*(cannot connect|connection lost|server says)", count=2)
        words = await world.host.unhealthy(f"link {name}")
        for text in [words, *provider.lines]:
            assert SECRET not in text and SECRET[:9] not in text and jwt[40:60] not in text and jwt[-40:-20] not in text, text


@pytest.fixture
def accounts_user():
    from servers import Accounts
    return Accounts().user()


@pytest.mark.release
async def test_password_is_wiped(world, servers):
    """When its link is gone, a URL's password that came sealed is nowhere in memory that was given back."""
    far = servers(f'authorization {{ user: "me", password: "{SECRET * 3}" }}')
    world.host.make_xkeys()
    link = world.host.consumer_link("one", url="", secrets={"cluster_uris": f"nats://me:{quoted(SECRET * 3)}@{far.address},nats://me:{quoted(SECRET * 3)}@127.0.0.1:{free_port()}"})
    provider = await world.start(link)
    await publishes(world, "one")
    assert in_memory(provider.pid, (SECRET * 3).encode()) > 0  # else nothing is shown here
    far.stop()
    await provider.wait_log("link one .*cannot connect", count=2)  # attempts that failed have left nothing either
    await world.host.delete(link)
    await provider.wait_log("link one .*deleted")
    await until(lambda: in_memory(provider.pid, (SECRET * 3).encode()) + in_memory(provider.pid, quoted(SECRET * 3).encode()) == 0, "wiped")


def in_memory(pid, text):
    """How often a text stands in what a process may write."""
    count = 0
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            begin, end = (int(n, 16) for n in line.split()[0].split("-"))
            if "w" in line.split()[1] and "[vvar" not in line:
                memory.seek(begin)
                count += memory.read(end - begin).count(text)
    return count


# ---------------------------------------------------------------- what demands TLS

def tls_keys(authority):
    certificate, key = authority.issue("demand")
    return {"tls_ca": {"tls_ca": authority.ca}, "tls_ca_file": {"tls_ca_file": str(authority.ca_file)}, "tls_first": {"tls_first": "true"},
            "tls_cert": {"tls_cert": certificate.read_text(), "tls_key": key.read_text()}}


@pytest.mark.parametrize("where", ["link", "default", "lattice"])
@pytest.mark.parametrize("key", ["tls_ca", "tls_ca_file", "tls_cert", "tls_first"])
async def test_any_tls_key_demands_tls(world, peers, authority, where, key):
    """Nothing is said to a server that does not ask for TLS: no user, no password, no token."""
    heard = []

    async def script(peer, reader, writer):
        await say(writer, info())
        heard.append(await reader.read(65536))
        await say(writer, b"PONG\r\n")
    peer = await peers(script)
    url, keys = f"nats://alice:{SECRET}@{peer.address}", tls_keys(authority)[key]
    if where == "lattice":
        provider = await Provider.start({**Host(None, "L", url).data, "config": {"lattice_" + name: value for name, value in keys.items()}})
    else:
        config = keys if where == "default" else {}
        provider = await world.start(world.host.consumer_link("bad", url=url, **({} if config else keys)), config=config, ready=False)
    try:
        line = await provider.wait_log(f"{'lattice' if where == 'lattice' else 'link bad'} .*cannot connect to {peer.address}", count=2)
        assert "TLS" in line
        assert not any(b"CONNECT" in data or SECRET.encode() in data for data in heard), heard
    finally:
        await provider.stop()


@pytest.mark.parametrize("url", ["nats", "tls"])
async def test_certificate_is_for_the_name(world, servers, authority, url):
    """The name of the URL is what a certificate is for, not the address that it was found at; whoever asked for TLS."""
    far = servers(tls_block(*authority.issue("by-name", san="DNS:localhost")))
    await world.start(world.host.consumer_link(url=f"{url}://localhost:{far.port}"), env={"SSL_CERT_FILE": str(authority.ca_file)})
    await publishes(world)
    provider = await world.start(world.host.consumer_link("other", url=f"{url}://127.0.0.1:{far.port}"), ready=False,
                                 env={"SSL_CERT_FILE": str(authority.ca_file)})
    await provider.wait_log("link other .*not for '127.0.0.1' but for localhost")


# ---------------------------------------------------------------- files

def revocations(authority):
    """A CRL of an authority, as PEM."""
    (authority.dir / "crl.cnf").write_text("[ca]\ndefault_ca=it\n[it]\ndatabase=crl.db\ncrlnumber=crl.number\ndefault_md=sha256\ndefault_crl_days=30\n")
    (authority.dir / "crl.db").write_text("")
    (authority.dir / "crl.number").write_text("01")
    authority._run("ca", "-gencrl", "-config", "crl.cnf", "-cert", f"{authority.name}.pem", "-keyfile", f"{authority.name}.key", "-out", "crl.pem")
    return (authority.dir / "crl.pem").read_text()


@pytest.mark.parametrize("key", ["tls_ca", "tls_ca_file", "tls_cert", "tls_key"])
async def test_revocation_list(world, servers, tmp_path, key):
    """A CRL is refused in words wherever it stands: nobody is to believe that it counts."""
    authority = Certificates(tmp_path)
    certificate, its_key = authority.issue("server")
    far, crl = servers(tls_block(certificate, its_key)), revocations(authority)
    (tmp_path / "both.pem").write_text(authority.ca + crl)
    config = {"tls_ca": authority.ca, "tls_cert": certificate.read_text(), "tls_key": its_key.read_text()}
    config = {"tls_ca_file": str(tmp_path / "both.pem")} if key == "tls_ca_file" else {**config, key: config[key] + crl}
    provider = await world.start(world.host.consumer_link(url="tls://" + far.address, **config), ready=False)
    await provider.wait_log("cannot connect.*revocation lists are not supported")


def strange_files(folder):
    os.mkfifo(folder / "fifo")
    (folder / "empty").write_text("")
    with open(folder / "huge", "wb") as file:
        file.truncate(2**40)
    return {"fifo": "no regular file", "": "no regular file", "/dev/zero": "no regular file", "/dev/tty": "(No such device|no regular file)", "/proc/kmsg": ".",
            "huge": "longer than", "empty": "no BEGIN CERTIFICATE", "missing": "No such file", "/proc/self/mem": "."}


@pytest.mark.parametrize("name", ["fifo", "", "/dev/zero", "/dev/tty", "/proc/kmsg", "huge", "empty", "missing", "/proc/self/mem"])
@pytest.mark.parametrize("where", ["tls_ca_file", "SSL_CERT_FILE"])
async def test_strange_file(world, servers, authority, tmp_path, where, name):
    """A path to what is no file holds no thread and no slot: said in words, tried again, and gone when its link is deleted."""
    words, path = strange_files(tmp_path)[name], str(tmp_path / name)
    far = servers(tls_block(*authority.issue("strange")))
    link = world.host.consumer_link("bad", url="tls://" + far.address, **({"tls_ca_file": path} if where == "tls_ca_file" else {}))
    provider = await world.start(world.host.consumer_link("good"), env={} if where == "tls_ca_file" else {"SSL_CERT_FILE": path})
    await world.host.put(link)
    line = await provider.wait_log("link bad .*cannot connect to ", count=2)
    assert re.search(words if where == "tls_ca_file" else "no CA certificates in SSL_CERT_FILE", line), line
    await world.host.delete(link)
    await world.put(world.host.consumer_link("bad", url="tls://" + far.address, tls_ca=authority.ca))
    await publishes(world, "good")


async def test_text_for_a_path(world, authority):
    """PEM text where a path belongs is said to be that, and not repeated."""
    provider = await world.start(world.host.consumer_link(tls_ca_file=authority.ca), ready=False)
    await world.host.unhealthy("tls_ca_file is a path")
    assert not provider.log("BEGIN CERT")


async def test_each_refusal_is_logged(world, servers):
    """Subscriptions that the user may not have: the log names each of them, though the server refuses them in one breath."""
    server = servers('authorization { users = [{user: u, password: secret, permissions: {subscribe: {deny: "no.>"}}}] }')
    url = server.url.replace("//", "//u:secret@")
    provider = await world.start(world.host.handler_link(url=url, subscriptions="no.one,no.two,no.three"), ready=False)
    for name in ("one", "two", "three"):
        await provider.wait_log(f'Permissions Violation: .*subscription to no.{name}')
