# SPDX-License-Identifier: Apache-2.0
"""NATS servers that say hostile things: their link is refused or comes back, in words, and no other link notices."""
import asyncio

import pytest
import pytest_asyncio

from lattice import until
from peers import greet, hold, info, say
from servers import SLOW

PASSWORD = "PASSWORDPASSWORD"


def once(hostile):
    """The first connection gets this script, every later one an honest server's silence."""
    async def script(peer, reader, writer):
        if peer.accepted == 1:
            await hostile(reader, writer)
        else:
            await greet(reader, writer)
        await hold(reader)
    return script


def bad_url(peer):
    return f"nats://user:{PASSWORD}@{peer.address}"


def check_log(provider):
    """No secret and no control character in any line, and no line of megabytes."""
    for line in provider.lines:
        assert PASSWORD not in line and line.isprintable() and len(line) < 2000, repr(line)


async def others_work(world):
    """A call over the good link and one to its component."""
    good = world.good
    assert (await good.publish(world.s("out"), b"x")).ok
    await world.nc.publish(world.s("in"), b"x")
    assert (await good.next()).body == b"x"


@pytest_asyncio.fixture
async def started(world):
    """A provider with links of a component "good" that works."""
    await world.start(world.host.consumer_link("good"), world.host.handler_link("good", name="in", subscriptions=world.s("in")))
    world.good = await world.component("good")
    yield world


# ---------------------------------------------------------------- before the connection stands

FIRST_WORDS = {
    "nothing at all": b"",
    "garbage": bytes(range(256)) * 8,
    "another protocol": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "an empty line": b"\r\n",
    "only INFO": b"INFO\r\n",
    "INFO that is no JSON": b"INFO {\"server_id\":\r\n",
    "INFO cut in a string": b'INFO {"server_id":"x\r\n',
    "INFO with a list": b"INFO [1,2,3]\r\n",
    "INFO with wrong types": b'INFO {"server_id":7,"max_payload":"x","headers":"y","port":"z"}\r\n',
    "INFO nested deeply": b"INFO " + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\r\n",
    "INFO with a number without end": b'INFO {"max_payload":' + b"9" * 5000 + b"}\r\n",
    "INFO with control characters": b'INFO {"server_id":"\x1b[31m\x07"}\x00\x1b]0;x\x07\r\n',
    "INFO of megabytes": b"INFO {\"server_id\":\"" + b"x" * 4000000 + b"\"}\r\n",
    "megabytes without a line end": b"x" * 4000000,
    "an error": b"-ERR 'go away \x1b[31m\x07'\r\n",
    "INFO and an error": info() + b"-ERR '\x1b[31m go \x07 away'\r\n",
    "INFO and garbage": info() + b"\xff\x00\x1b" * 100 + b"\r\n",
    "INFO and an endless line": info() + b"y" * 300000,
    "INFO and a message in place of the PONG": info() + b"MSG x 1 1\r\nx\r\nPONG\r\n",
    "INFO that asks for TLS, then no TLS": info(tls_required=True) + b"PONG\r\n" * 10,
}


@pytest.mark.parametrize("words", FIRST_WORDS.values(), ids=FIRST_WORDS)
async def test_first_words(started, peers, words):
    """Whatever a server begins with: the link is not connected, health and log name it and say why; a server that behaves is taken."""
    world, provider = started, started.provider

    async def hostile(reader, writer):
        await say(writer, words)
        writer.write_eof()
    bad = await peers(once(hostile))
    await world.host.put(world.host.consumer_link("bad", url=bad_url(bad)))
    line = await provider.wait_log(f"link bad -> .*cannot connect to {bad.address}: .{{4,}}; next try")
    assert "no reason known" not in line
    await others_work(world)
    await world.host.healthy(20 * SLOW)
    check_log(provider)


async def test_first_words_that_never_end(started, peers):
    """A byte now and then, or no more than INFO: nobody waits longer than the deadline, and other links do not wait at all."""
    world, provider = started, started.provider

    async def only_info(peer, reader, writer):
        await say(writer, info())
        await hold(reader)

    async def drips(peer, reader, writer):
        for byte in info() * 1000:
            await say(writer, bytes([byte]))
            await asyncio.sleep(0.1)
    silent, slow = await peers(only_info), await peers(drips)
    await world.host.put(world.host.consumer_link("silent", url=bad_url(silent)), world.host.consumer_link("slow", url=bad_url(slow)))
    await until(lambda: silent.accepted and slow.accepted, "both are being connected to")
    await others_work(world)
    for name in ("silent", "slow"):
        await provider.wait_log(f"link {name} -> .*cannot connect.*(time|timeout)", 15 * SLOW)
    check_log(provider)


@pytest.mark.parametrize("limit", [0, -1, 1, 2**31, 2**32, 2**63 - 1, 2**64, None], ids=str)
async def test_max_payload(started, peers, limit):
    """A limit of nothing, or beyond every number: calls end in an answer, and what goes out is what was allowed."""
    world, seen = started, []

    async def script(peer, reader, writer):
        await greet(reader, writer, max_payload=limit)
        while line := await reader.readline():
            seen.append(line)
            if line.startswith(b"PUB "):
                await reader.readexactly(int(line.split()[-1]) + 2)
    bad = await peers(script)
    await world.host.put(world.host.consumer_link("bad", url=bad_url(bad)))
    await world.provider.wait_log("link bad .*connected to")
    component = await world.component("bad", serve=False)
    for body in (b"", b"x", b"x" * 1000000):
        call = await component.publish("out", body)
        assert call.ok is not None, call
        assert call.ok or "connection" in call.value or "payload" in call.value, call
        assert call.ok or limit not in (2**31, 2**32, 2**63 - 1), call
    await others_work(world)
    check_log(world.provider)


# ---------------------------------------------------------------- in mid-stream

def message(subject, sid, rest):
    return b"MSG %s %s %s\r\n" % (subject, sid, rest)


def ARENA(make):
    """Only the arena of the release binary refuses a block of so many bytes; the sanitizers' malloc gives it."""
    return pytest.param(make, marks=pytest.mark.release)


MIDSTREAM = {
    "garbage": lambda sid, inbox: bytes(range(256)) * 8,
    "a length of 2^31-1": lambda sid, inbox: message(b"in", sid, b"2147483647") + b"x" * 100000,
    "a length of 2^31-1, and a long subject": lambda sid, inbox: message(b"in." + b"s" * 2000, sid, b"2147483647") + b"x" * 100000,
    "a length of 2^31": lambda sid, inbox: message(b"in", sid, b"2147483648") + b"x" * 1000,
    "a length of 2^32+2^31": lambda sid, inbox: message(b"in", sid, b"6442450944") + b"x" * 1000,
    "a length of 2^63-1": lambda sid, inbox: message(b"in", sid, b"9223372036854775807") + b"x" * 1000,
    "a length of 2^64+1": lambda sid, inbox: message(b"in", sid, b"18446744073709551617") + b"x" * 1000,
    "a length of a thousand digits": lambda sid, inbox: message(b"in", sid, b"9" * 1000) + b"x" * 1000,
    "a negative length": lambda sid, inbox: message(b"in", sid, b"-1") + b"x" * 1000,
    "a length in hex": lambda sid, inbox: message(b"in", sid, b"0x10") + b"x" * 1000,
    "a length before a carriage return": lambda sid, inbox: b"MSG in %s 2147483600\rx\n" % sid + b"x" * 1000,
    "a length behind a line feed": lambda sid, inbox: b"MSG in %s 0\r\n\nMSG in %s 99\r\nMSG in %s 2147483600\r\n" % (sid, sid, sid) + b"x" * 1000,
    "no length": lambda sid, inbox: message(b"in", sid, b"") + b"x" * 1000,
    "too many words": lambda sid, inbox: message(b"in", sid, b"a b c d 1") + b"x" * 1000,
    "no words": lambda sid, inbox: b"MSG \r\nMSG  \r\n" * 10,
    "a negative sid": lambda sid, inbox: message(b"in", b"-1", b"1") + b"x\r\n",
    "headers longer than the message": lambda sid, inbox: b"HMSG in %s 100 1\r\nx\r\n" % sid,
    "headers of 2^31-1": lambda sid, inbox: b"HMSG in %s 2147483647 2147483647\r\n" % sid + b"x" * 100000,
    "a control line without end": ARENA(lambda sid, inbox: b"MSG " + b"s" * 8000000),
    "an error without end": ARENA(lambda sid, inbox: b"-ERR '" + b"s" * 8000000),
    "an error with control characters": lambda sid, inbox: b"-ERR '\x1b[31m\x07go\x00away\x7f'\r\n",
    "errors that say nothing": lambda sid, inbox: b"-ERR \r\n-ERR ''\r\n-ERR '\r\n",
}


@pytest.mark.parametrize("make", MIDSTREAM.values(), ids=MIDSTREAM)
async def test_midstream(started, peers, make):
    """What is no NATS costs the connection that it came on, in words, and that comes back; nothing else."""
    world, provider = started, started.provider

    async def hostile(reader, writer):
        sid, inbox = await greet(reader, writer)
        await asyncio.gather(say(writer, make(sid, inbox)), hold(reader))
    bad = await peers(once(hostile))
    await world.host.put(world.host.handler_link("bad", url=bad_url(bad), subscriptions="in"))
    await provider.wait_log("link .* -> bad .*connection lost: .+")
    await others_work(world)
    await until(lambda: bad.accepted == 2, "it is connected to again")
    await world.host.healthy()
    check_log(provider)


@pytest.mark.parametrize("length", [3000, 4096, 5000, 20000])
async def test_split_message_with_a_long_subject(started, peers, length):
    """A subject longer than nats.c's own room for it, with a body that comes later, is not read from beyond that room: the
    component gets that subject, or nothing and the connection is given up."""
    world, provider = started, started.provider
    half, subject = asyncio.Event(), "s" * length

    async def hostile(reader, writer):
        sid, _ = await greet(reader, writer)
        await say(writer, b"MSG %s %s reply.%s 8\r\nhalf" % (subject.encode(), sid, b"r" * 100))
        await half.wait()
        await say(writer, b"half\r\n" + message(b"last", sid, b"0") + b"\r\n")
        await hold(reader)
    bad = await peers(once(hostile))
    component = await world.component("bad")
    await world.host.put(world.host.handler_link("bad", url=bad_url(bad), subscriptions="in,last"))
    await provider.wait_log("link .* -> bad .*connected")
    await others_work(world)  # the loop has been round: the first half is read
    half.set()
    lost = asyncio.create_task(provider.wait_log("link .* -> bad .*connection lost"))
    first = asyncio.create_task(component.next())
    done, rest = await asyncio.wait([lost, first], return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    if first in done:
        assert first.result().subject == subject and first.result().reply_to == "reply." + "r" * 100
    await others_work(world)


HARMLESS = {
    "a sid that never was": lambda sid, inbox: message(b"in", b"4711", b"1") + b"x\r\n" + message(b"in", b"9223372036854775807", b"1") + b"x\r\n",
    "a subject that nobody asked for": lambda sid, inbox: message(b"other", sid, b"1") + b"x\r\n",
    "a subject of no length": lambda sid, inbox: message(inbox[:-1], sid, b"0") + b"\r\n",
    "its own inbox": lambda sid, inbox: b"".join(message(inbox + t, sid, b"1") + b"x\r\n" for t in (b"echo", b"0", b"f" * 12, b"0" * 20, b">", b"*")),
    "a subject of 3,000 bytes": lambda sid, inbox: message(b"s" * 3000, sid, b"1") + b"x\r\n",
    "a subject of 3,000 tokens": lambda sid, inbox: message(b"s" + b".s" * 1500, sid, b"1") + b"x\r\n",
    "a subject that is not UTF-8": lambda sid, inbox: message(b"\xff\xfe", sid, b"1") + b"x\r\n",
    "headers that are none": lambda sid, inbox: b"".join(b"HMSG in %s %d %d\r\n%s\r\n" % (sid, len(h), len(h), h) for h in (
        b"x", b"NATS/1.0", b"NATS/1.0\r\n", b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\n:\r\n\r\n", b"NATS/1.0\r\na\r\n\r\n",
        b"NATS/1.0\r\ntraceparent: \x1b\x00\r\n\r\n", b"NATS/1.0\r\na: b", b"\xff" * 50)),
    "a message of 8 MB": lambda sid, inbox: message(b"in", sid, b"8000000") + b"\r\nMSG in 1 4\r\nlast\r\n" * 400000 + b"\r\n",
    "INFO again, with nothing in it": lambda sid, inbox: b"INFO {}\r\n",
    "INFO again, that is no JSON": lambda sid, inbox: b"INFO nonsense\r\nINFO {\"max_payload\":\r\n",
    "INFO again, with other limits": lambda sid, inbox: b"".join(info(max_payload=n, headers=h) for n in (0, -1, 2**63 - 1, 10) for h in (False, None)),
    "INFO again, that names other servers": lambda sid, inbox: info(connect_urls=["127.0.0.1:1", "evil.example:4222", "\x1b[31m"] * 100, ldm=True),
    "INFO again, a thousand times": lambda sid, inbox: info(server_id="x" * 300) * 1000,
    "PING without end": lambda sid, inbox: b"PING\r\n" * 200000,
    "PONG and OK without end": lambda sid, inbox: b"PONG\r\n+OK\r\n" * 100000,
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
async def test_midstream_that_is_borne(started, peers, make):
    """What is odd, but NATS, is passed over: the link stands, and what comes behind it is read."""
    world, provider = started, started.provider

    async def hostile(reader, writer):
        sid, inbox = await greet(reader, writer)
        flood = asyncio.create_task(say(writer, make(sid, inbox) + message(b"last", sid, b"4") + b"last\r\n"))
        await asyncio.gather(hold(reader), flood)
    bad = await peers(once(hostile))
    component = await world.component("bad")
    await world.host.put(world.host.handler_link("bad", url=bad_url(bad), subscriptions="in,last"))
    while (await component.next(20 * SLOW)).body != b"last":
        pass
    await others_work(world)
    await world.host.healthy()
    assert provider.running and not provider.log("link .* -> bad .*connection lost")
    assert bad.accepted == 1 or provider.log("link .* -> bad .*will close .lame duck mode")  # then it looks around after 0.5 s
    check_log(provider)
