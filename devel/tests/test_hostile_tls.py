# SPDX-License-Identifier: Apache-2.0
"""TLS with peers that break it: each is refused, or the connection given up, in words; and what mends itself comes back."""
import asyncio
import os
import re
import ssl

import nats
import pytest
import pytest_asyncio

from lattice import until
from peers import Peer, Relay, hold, info, say
from servers import SLOW, Certificates, NatsServer, tls_block


@pytest.fixture(scope="session")
def far(folder, authority):
    """A nats-server that requires TLS."""
    server = NatsServer(tls_block(*authority.issue("hostile")), dir=folder).start()
    yield server
    server.remove()


@pytest_asyncio.fixture
async def opened():
    """Opens listeners, and closes them behind the test: await opened(Peer(…))."""
    listeners = []

    async def open(listener):
        listeners.append(await listener.open())
        return listener
    yield open
    for listener in listeners:
        await listener.close()


async def others_work(world):
    assert (await (await world.component("good", serve=False)).publish(world.s("out"), b"x")).ok


# ---------------------------------------------------------------- what is no handshake

def record(kind, body, version=b"\3\3"):
    return bytes([kind]) + version + len(body).to_bytes(2, "big") + body


def server_hello(version=b"\3\3", suite=b"\xc0\x2b", extensions=b"", random=b"r" * 32, length=None):
    body = version + random + b"\0" + suite + b"\0" + len(extensions).to_bytes(2, "big") + extensions
    return b"\2" + (length or len(body)).to_bytes(3, "big") + body


ALERT, HANDSHAKE, DATA = 21, 22, 23
NOT_TLS = "not TLS|broke the TLS protocol|does not take TLS|in common|closed the connection|cannot be read|refused with TLS alert"
HELLOS = {
    "TLS 1.1": (record(HANDSHAKE, server_hello(b"\3\2"), b"\3\2"), "TLS 1.2 or 1.3"),
    "TLS 1.0": (record(HANDSHAKE, server_hello(b"\3\1"), b"\3\1"), "TLS 1.2 or 1.3"),
    "SSL 3": (record(HANDSHAKE, server_hello(b"\3\0"), b"\3\0"), "TLS 1.2 or 1.3"),
    "an alert that it takes no such version": (record(ALERT, b"\2\x46", b"\3\1"), "alert 70, protocol version.*TLS 1.2 or 1.3"),
    "an alert that nobody knows": (record(ALERT, b"\2\xfa"), "alert 250"),
    "an alert cut short": (record(ALERT, b"\2"), NOT_TLS),
    "warnings, 500 of them": (record(ALERT, b"\1\x5a") * 500, NOT_TLS),
    "plain text": (b"+OK\r\nPONG\r\n" * 10, "not TLS"),
    "zeros": (b"\0" * 5000, NOT_TLS),
    "random bytes": (bytes(i * 167 % 251 for i in range(5000)), NOT_TLS),
    "a record of 65,535 bytes": (b"\x16\3\3\xff\xff" + b"x" * 65535, NOT_TLS),
    "a record of no bytes": (record(HANDSHAKE, b"") * 100, NOT_TLS),
    "data before the handshake": (record(DATA, b"x" * 100), NOT_TLS),
    "a hello of 16 MB": (record(HANDSHAKE, server_hello(length=2**24 - 1) + b"x" * 10000), NOT_TLS),
    "a hello cut short": (record(HANDSHAKE, server_hello()[:20]), NOT_TLS),
    "a hello longer than its record": (record(HANDSHAKE, server_hello(length=60)), NOT_TLS),
    "extensions beyond the hello": (record(HANDSHAKE, server_hello()[:-2] + b"\xff\xff"), NOT_TLS),
    "a cipher that nobody offered": (record(HANDSHAKE, server_hello(suite=b"\0\0")), NOT_TLS),
    "a key share of no bytes": (record(HANDSHAKE, server_hello(suite=b"\x13\1", extensions=b"\0\x2b\0\2\3\4\0\x33\0\0")), NOT_TLS),
    "retry requests without end": (record(HANDSHAKE, server_hello(suite=b"\x13\1", extensions=b"\0\x2b\0\2\3\4\0\x33\0\2\0\x17", random=bytes.fromhex(
        "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"))) * 5, NOT_TLS),
}


@pytest.mark.parametrize("first", [False, True], ids=["after INFO", "tls_first"])
async def test_no_handshake(world, opened, first):
    """What answers the client's hello with something else is refused, and says what it was; all at once, and nobody else notices."""
    provider = await world.start(world.host.consumer_link("good"))

    def answer(data):
        async def script(peer, reader, writer):
            if not first:
                await say(writer, info(tls_required=True))
            await reader.read(65536)  # the client's hello
            await asyncio.gather(say(writer, data), hold(reader), return_exceptions=True)
        return script
    peers = {name: await opened(Peer(answer(data))) for name, (data, _) in HELLOS.items()}
    cases = {f"case{i}": name for i, name in enumerate(HELLOS)}
    await world.host.put(*(world.host.consumer_link(case, url="tls://" + peers[name].address, tls_first=str(first).lower())
                           for case, name in cases.items()))
    told = {}
    for case, name in cases.items():
        line = await provider.wait_log(rf"link {case} -> .*cannot connect to ", 20 * SLOW)
        told[name] = line.split("cannot connect to ")[1]
        assert line.isprintable()
    print("\n".join(f"{name}: {words}" for name, words in told.items()))
    for name, (_, pattern) in HELLOS.items():
        assert re.search(pattern, told[name]) or "did not finish" in told[name] and pattern == NOT_TLS, (name, told[name])
    await others_work(world)


async def test_self_signed(world, folder, opened, servers):
    """A certificate that is its own CA is refused as that, and taken when it is given as tls_ca."""
    own = Certificates(folder, "self-signed")
    far = servers(tls_block(own.ca_file, own.dir / "self-signed.key"))
    provider = await world.start(world.host.consumer_link("good"))
    await world.host.put(world.host.consumer_link("bad", url="tls://" + far.address))
    await provider.wait_log("link bad -> .*self-signed certificate.*give it as tls_ca")
    await world.host.unhealthy("bad.*self-signed")
    await others_work(world)


# ---------------------------------------------------------------- handshakes that stop

class Cut(Relay):
    """Passes on so many bytes of the server's side, and then closes or falls silent; after `heal` it is honest."""

    def __init__(self, address, after, silent=False):
        self.after, self.silent, self.healed, self.passed = after, silent, False, 0
        super().__init__(address)

    async def serve(self, reader, writer):
        left = self.after

        def change(data):
            nonlocal left
            if self.healed:
                return data
            if left <= 0:
                return b"" if self.silent else None
            data, left = data[:left], left - len(data)
            return data if left > 0 or self.silent else data if data and left == 0 else data
        relay = Relay(self.upstream, change)
        if not self.healed and self.after == 0:
            if self.silent:
                await hold(reader)
            return
        await relay.serve(reader, writer)


async def length_of_the_handshake(far, authority):
    """Bytes of a whole exchange with the server, from INFO to PONG."""
    count = 0

    def counted(data):
        nonlocal count
        count += len(data)
        return data
    relay = await Relay(far.address, counted).open()
    nc = await nats.connect(relay.url, tls=ssl.create_default_context(cafile=str(authority.ca_file)))
    await nc.close()
    await relay.close()
    return count


@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
async def test_handshake_cut(world, opened, far, authority, silent):
    """A server that stops after any number of bytes: refused in words within the deadline, whatever the number, and taken when
    it has come to its senses."""
    provider = await world.start(world.host.consumer_link("good"))
    whole = await length_of_the_handshake(far, authority)
    cuts = [whole * i // 28 + i % 7 for i in range(28)]
    relays = [await opened(Cut(far.address, n, silent)) for n in cuts]
    await world.host.put(*(world.host.consumer_link(f"cut{i}", url="tls://" + relay.address, tls_ca=authority.ca)
                           for i, relay in enumerate(relays)))
    for i, n in enumerate(cuts):
        line = await provider.wait_log(rf"link cut{i} -> .*cannot connect to {relays[i].address}: .{{4,}}; next try", 20 * SLOW)
        assert "no reason known" not in line, (n, line)
    await others_work(world)
    for relay in relays:
        relay.healed = True
    await world.host.healthy(40 * SLOW)


# ---------------------------------------------------------------- connections that break

class Records(Relay):
    """Passes on TLS records; `spoil(record)` may change the server's, one by one, once it is set. What is no record yet passes."""

    spoil = None

    async def serve(self, reader, writer):
        pending = b""

        def change(data):
            nonlocal pending
            if not self.spoil:
                return data
            pending += data
            out = b""
            while len(pending) >= 5 and len(pending) >= 5 + int.from_bytes(pending[3:5], "big"):
                end = 5 + int.from_bytes(pending[3:5], "big")
                out, pending = out + self.spoil(pending[:end]), pending[end:]
            return out
        await Relay(self.upstream, change).serve(reader, writer)


def cut_after(length):
    """Spoils by passing so many bytes of the first record, and nothing from then on."""
    def make():
        records = []

        def spoil(r):
            records.append(r)
            return r[:length] if len(records) == 1 else b""
        return spoil
    return make


SPOILT = {
    "a byte is changed": (lambda: lambda r: r[:-1] + bytes([r[-1] ^ 1]), "TLS"),
    "the version is changed": (lambda: lambda r: b"\x17\7\7" + r[3:], "TLS"),
    "the length is too large": (lambda: lambda r: r[:3] + b"\xff\xff" + r[5:], "TLS"),
    "the kind is changed": (lambda: lambda r: b"\x99" + r[1:], "TLS"),
    "an alert in the clear": (lambda: lambda r: record(ALERT, b"\2\x14"), "TLS"),
    "a hello in the clear": (lambda: lambda r: record(HANDSHAKE, server_hello()), "TLS"),
    "it comes twice": (lambda: lambda r: r + r, "TLS"),
    "plain text": (lambda: lambda r: b"MSG x 1 1\r\nx\r\n", "TLS"),
    "half of it, and no more": (cut_after(500), "silent for two ping intervals"),
    "only its header": (cut_after(5), "silent for two ping intervals"),
}


@pytest.mark.parametrize("make, pattern", SPOILT.values(), ids=SPOILT)
async def test_record_spoilt(world, opened, far, authority, make, pattern):
    """After the handshake: a record that is changed or never ends costs the connection, in words; and it comes back."""
    relay = await opened(Records(far.address))
    provider = await world.start(world.host.consumer_link("good"), world.host.handler_link(
        "bad", url="tls://" + relay.address, tls_ca=authority.ca, subscriptions="in", ping_interval_sec="30" if pattern == "TLS" else "1"))
    await until(lambda: far.subscribers("in"), "subscribed")
    relay.spoil = make()
    outside = await world.client(far, tls=ssl.create_default_context(cafile=str(authority.ca_file)))
    await outside.publish("in", os.urandom(1000))
    await outside.flush()
    await provider.wait_log("link .* -> bad .*connection lost: .*(" + pattern + ")")
    await others_work(world)
    relay.spoil = None
    await world.host.healthy(20 * SLOW)
    component = await world.component("bad")
    await until(lambda: far.subscribers("in"), "subscribed again")
    await outside.publish("in", b"whole")
    while (await component.next()).body != b"whole":
        pass
