# SPDX-License-Identifier: Apache-2.0
"""Hostile bytes on the wire: forged messages to inboxes, values that lie about their length, and components that reach for
what is another's."""
import asyncio
import json

import pytest

import wire
from lattice import OWN_MEMORY, RUN, flush
from servers import DEADLINE, SLOW, raw_publish

MEGABYTE = 1048576
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"  # the first 16 for three digits of slot, all of them for what is secret


def forgeries(inbox):
    """Inboxes beside one that was seen: each digit of its token changed, shorter, longer, other slots, other letters. What
    stands behind the last dot is the token, whatever its length."""
    stem, _, token = inbox.rpartition(".")
    changed = [token[:i] + DIGITS[DIGITS.index(c) ^ bit] + token[i + 1:] for i, c in enumerate(token) for bit in (1, 16)]
    slots = ["".join(DIGITS[slot >> shift & 15] for shift in (8, 4, 0)) + token[3:] for slot in (*range(64), 1023, 1024, 4095)]
    others = [token[:-1], token + "A", "A" + token, token.lower(), "A" * len(token), "7" * len(token), "-" + token[1:], "+" + token[1:],
              "0x" + token[2:], token[:3] + "1" * (len(token) - 3), token[:2], "echo", "9" * 300, "\xff"]
    return [f"{stem}.{other}" for other in (*changed, *slots, *others) if other != token]


async def forge(nc, inbox, *tails, data=(b"", b"\0", b"\1\4evil")):
    for tail in tails:
        for payload in data:
            await nc.publish(inbox + tail, payload, reply="forged.reply")


def grown(provider, before):
    """How much more is resident than before, in kB; 0 if that would not be the provider's own."""
    return provider.status("VmRSS") - before if OWN_MEMORY else 0


# ---------------------------------------------------------------- forged messages to inboxes

async def test_forged_answers_of_components(world):
    """A message to any inbox but that of a call in flight ends no call: neither beside its token nor in its slot before it, nor
    after its end. The log would tell of an end, and with max_in_flight=1 the next message of it."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1"))
    echo = await world.component(by_hand=True)
    await world.nc.publish(world.s("in"), b"1")
    first = await echo.invocation()
    for inbox in forgeries(first.rc):
        await forge(world.nc, inbox, "", ".results", ".error", ".params")
    await world.nc.publish(world.s("in"), b"2")
    await world.host.healthy()
    assert echo.invocations.empty(), "a forged message ended the call"
    await first.handshake()
    await first.params()
    await first.answer()
    second = await echo.invocation()
    assert second.rc != first.rc
    await forge(world.nc, first.rc, "", ".results", ".error", ".params")  # that of a call that has ended, in the same slot or another
    await world.nc.publish(world.s("in"), b"3")
    await world.host.healthy()
    assert echo.invocations.empty(), "a message to an inbox of before ended the call"
    await second.handshake()
    assert (await second.params()).body == b"2"
    await second.answer()
    third = await echo.invocation()
    assert wire.Reader(third.data).message().body == b"3"
    assert not provider.log("WARN|ERROR"), provider.lines[-5:]


async def test_result_before_the_handshake(world):
    """A result from somebody who never shook hands is none; the component's own counts afterwards."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1"))
    echo = await world.component(by_hand=True)
    for body in (b"1", b"2"):
        await world.nc.publish(world.s("in"), body)
    first = await echo.invocation()
    for data in (b"\0", b"\1" + wire.blob("forged"), b"", b"\7"):
        await world.nc.publish(first.rc + ".results", data)
    await world.host.healthy()
    assert echo.invocations.empty() and not provider.log("forged|trap|decode")
    await first.handshake()
    await first.answer("its own words")
    await echo.invocation()
    await provider.wait_log("its own words")


async def test_kinds_of_inboxes_are_not_mixed_up(world):
    """Parameters to the inbox of a call to a component, results to that of a call from one: nothing happens to either."""
    await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1"), world.host.consumer_link())
    echo = await world.component(by_hand=True)
    await world.nc.publish(world.s("in"), b"1")
    to_component = await echo.invocation()
    out = await world.listen(world.s("out"))
    params = wire.broker_message(world.s("out"), b"whole")
    from_component = await echo.start("publish", params, first=3)
    await from_component.handshake()
    await forge(world.nc, to_component.rc, ".params", ".params.x", ".other", ".results.x")
    await forge(world.nc, from_component.rs, ".results", ".error", "", ".params.x", ".other")
    for inbox in forgeries(from_component.rs):
        await forge(world.nc, inbox, ".params", data=(b"", b"\0"))
    await from_component.send_rest()
    await from_component.result()
    assert from_component.ok and (await out.next_msg(DEADLINE)).data == b"whole"
    await forge(world.nc, from_component.rs, ".params")  # it has ended
    await to_component.handshake()
    assert (await to_component.params()).body == b"1"
    await to_component.answer()
    assert (await echo.publish(world.s("out"), b"good")).ok


async def test_forged_replies_to_requests(world, servers):
    """On a link's server, only the very inbox of a request that is out gets an answer to the component; once, and only there: the
    same token under another link's inbox, or the lattice's, is nobody's."""
    far = servers()
    await world.start(world.host.consumer_link("one", url=far.url), world.host.consumer_link("two"))
    outside = await world.client(far)
    far_asked, asked = await world.listen("svc", nc=outside), await world.listen(world.s("svc"))
    one, two = [await world.component(name, serve=False) for name in ("one", "two")]
    first = await one.start("request", wire.request_params("svc", b"1", 20000))
    second = await two.start("request", wire.request_params(world.s("svc"), b"2", 20000))
    first_inbox, second_inbox = (await far_asked.next_msg(DEADLINE)).reply, (await asked.next_msg(DEADLINE)).reply
    for inbox in forgeries(first_inbox):
        await outside.publish(inbox, b"forged")
    for tail in (".results", ".params", ".error", ".x"):
        await outside.publish(first_inbox + tail, b"forged")
    token, stem = first_inbox.rpartition(".")[2], second_inbox.rpartition(".")[0]
    await world.nc.publish(f"{stem}.{token}", b"forged")
    await outside.publish(second_inbox, b"forged")
    await asyncio.gather(flush(outside), flush(world.nc))
    await world.host.healthy()
    await outside.publish(first_inbox, b"right")
    await outside.publish(first_inbox, b"too late")
    await world.nc.publish(second_inbox, b"right")
    for call in (first, second):
        await call.finish()
        assert call.ok and call.value.body == b"right", call
    third = await one.start("request", wire.request_params("svc", b"3", 20000))
    third_inbox = (await far_asked.next_msg(DEADLINE)).reply
    await outside.publish(first_inbox, b"forged")  # that of a request that has ended
    await outside.publish(third_inbox, b"right")
    assert (await third.finish()).value.body == b"right"


async def test_link_inboxes_are_not_guessed_from_calls(world):
    """Who sees an inbox of one link, or that of a handshake, does not know another's: their stems differ in more than a count."""
    await world.start(world.host.consumer_link("one"), world.host.consumer_link("two"))
    asked, stems = await world.listen(world.s("svc")), set()
    for name in ("one", "two"):
        component = await world.component(name, serve=False)
        call = await component.start("request", wire.request_params(world.s("svc"), b"", 20000))
        msg = await asked.next_msg(DEADLINE)
        await call.handshake()
        stems |= {msg.reply.rpartition(".")[0], call.rs.rpartition(".")[0]}
        await msg.respond(b"")
        await call.send_rest()
        assert (await call.result()).ok
    bare = [stem.removesuffix(".c").rpartition(".")[2] for stem in stems]
    assert all(len(stem) >= 12 for stem in bare) and len({stem[:6] for stem in bare}) == len(stems) >= 3, stems


# ---------------------------------------------------------------- chunks without end

@pytest.mark.parametrize("size, count", [(1, 20000), (1000, 4000), (100000, 40)])
async def test_parameters_without_end(world, size, count):
    """A body that is longer than it said, or than may be: the call ends in an answer when it has to, and the rest is nobody's."""
    provider = await world.start(world.host.consumer_link())
    echo = await world.component(serve=False)
    await echo.publish(world.s("out"), b"x" * MEGABYTE)  # so much has been in memory before
    before = provider.status("VmRSS")
    said = wire.blob(world.s("out")) + wire.leb128(MEGABYTE - 100)
    call = await echo.start("publish", said, first=len(said))
    await call.handshake()
    for _ in range(count):
        await world.nc.publish(call.rs + ".params", b"x" * size)
    await flush(world.nc)
    await world.nc.publish(call.rs + ".params", b"")
    await call.result()
    assert call.failed or call.ok is False, call
    assert (await echo.publish(world.s("out"), b"good")).ok
    assert grown(provider, before) < 4096


async def test_results_without_end(world):
    """A result of 4 GB that never ends costs its own call, at its timeout, and no memory."""
    link = world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1", handler_timeout_ms=str(int(1000 * SLOW)))
    provider = await world.start(link, world.host.consumer_link())
    echo = await world.component(by_hand=True)
    for body in (b"1", b"2"):
        await world.nc.publish(world.s("in"), body)
    call = await echo.invocation()
    await call.handshake()
    before = provider.status("VmRSS")
    await world.nc.publish(call.rc + ".results", b"\1\xff\xff\xff\xff\x0f")
    for _ in range(40):
        await world.nc.publish(call.rc + ".results", b"no end of words " * 32768)
        await flush(world.nc)
    assert (await echo.publish(world.s("out"), b"good")).ok
    await echo.invocation()
    await provider.wait_log("timed out")
    assert grown(provider, before) < 4096


# ---------------------------------------------------------------- lengths

LENGTHS = {
    "2^31": wire.leb128(2**31), "2^32-1": wire.leb128(2**32 - 1), "2^32": wire.leb128(2**32), "2^35-1": b"\xff\xff\xff\xff\x7f",
    "2^63": wire.leb128(2**63), "2^64-1": wire.leb128(2**64 - 1), "2^64": wire.leb128(2**64), "ten bytes for 1": b"\x81" + b"\x80" * 8 + b"\0",
    "six bytes for 0": b"\x80" * 5 + b"\0", "a hundred bytes": b"\x80" * 99 + b"\1", "no end": b"\xff" * 2000,
    "one over the limit": wire.leb128(MEGABYTE + 1), "2^32-5": wire.leb128(2**32 - 5),
}
PLACES = {
    "publish's subject": ("publish", lambda n: n + b"a.b" + wire.blob(b"") + b"\0"),
    "publish's body": ("publish", lambda n: wire.blob("a.b") + n + b"x" * 50),
    "publish's reply": ("publish", lambda n: wire.blob("a.b") + wire.blob(b"") + b"\1" + n + b"x" * 50),
    "request's subject": ("request", lambda n: n + b"a.b" + wire.blob(b"") + wire.leb128(100)),
    "request's body": ("request", lambda n: wire.blob("a.b") + n + b"x" * 50),
}


@pytest.mark.parametrize("function, place", PLACES.values(), ids=PLACES)
async def test_lengths(world, function, place):
    """A length that is overlong, over 32 bits, or of bytes that never come: the call fails or is answered in words at once, and
    takes no memory."""
    provider = await world.start(world.host.consumer_link())
    echo = await world.component(serve=False)
    before = provider.status("VmRSS")
    for name, length in LENGTHS.items():
        call = await echo.call(function, place(length))
        assert call.failed or call.ok is False, (name, call)
    assert (await echo.publish(world.s("out"), b"good")).ok
    assert grown(provider, before) < 4096


@pytest.mark.parametrize("timeout", [b"\xff\xff\xff\xff\x1f", b"\x80" * 5 + b"\0", b"\xff" * 10 + b"\1", b"\xff" * 20], ids=bytes.hex)
async def test_timeouts_that_are_no_u32(world, timeout):
    await world.start(world.host.consumer_link())
    call = await (await world.component(serve=False)).call("request", wire.blob(world.s("svc")) + wire.blob(b"") + timeout)
    assert call.failed, call


RESULTS = [b"\1" + length + b"w" * 20 for name, length in LENGTHS.items() if name not in ("2^31", "2^32-1", "2^32-5", "one over the limit")]


async def test_lengths_in_results(world):
    """In what a component answers, too: it is logged as no result, and the next message is handled."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1"))
    echo = await world.component(by_hand=True)
    for result in RESULTS:
        await world.nc.publish(world.s("in"), b"x")
        call = await echo.invocation()
        await call.handshake()
        await world.nc.publish(call.rc + ".results", result)
    await world.nc.publish(world.s("in"), b"last")
    assert wire.Reader((await echo.invocation()).data).message().body == b"last"
    await provider.wait_log("decode")


# ---------------------------------------------------------------- text

NOT_UTF8 = {"overlong slash": b"a\xc0\xaf", "overlong in three": b"a\xe0\x80\xaf", "overlong in four": b"a\xf0\x80\x80\xaf", "surrogate": b"a\xed\xbf\xbf",
            "beyond Unicode": b"a\xf4\x90\x80\x80", "five bytes": b"a\xf8\x88\x80\x80\x80", "cut": b"a\xe2\x82", "lone tail": b"a\x80", "FF": b"a\xff"}


async def test_text_that_is_not_utf8(world):
    """In each place for text of each call."""
    await world.start(world.host.consumer_link())
    echo = await world.component(serve=False)
    for name, text in NOT_UTF8.items():
        for function, params in (("publish", wire.broker_message(text)), ("publish", wire.broker_message("a.b", b"", text)),
                                 ("request", wire.request_params(text, b"", 100))):
            assert (await echo.call(function, params)).failed, (name, params)
    assert (await echo.publish(world.s("out"), b"good")).ok


HOSTILE_HEADERS = [b"00-a\nEvil: x", b"00-a\rEvil: x", b"00-a\0b", b"\xff\xfe", b"x" * 511, b"x" * 512, b"x" * 4000, b":", b"", b" ", b"\t\t"]


@pytest.mark.parametrize("value", HOSTILE_HEADERS, ids=lambda v: repr(v[:12]) + str(len(v)))
async def test_hostile_trace_headers(world, value):
    """What a component or somebody outside puts into a header ends no line of ours: the message goes out whole, with that trace
    or none, and the connections stand."""
    await world.start(world.host.consumer_link(), world.host.handler_link(subscriptions=world.s("in")))
    before = world.server.subscribers(world.s("in"))
    out = await world.listen(world.s("out"))
    echo = await world.component()
    params = wire.broker_message(world.s("out"), b"body")
    block = b"NATS/1.0\r\nsource-id: echo\r\nlink-name: default\r\ntraceparent: %s\r\ntracestate: %s\r\n\r\n" % (value, value)
    subject = f"{world.lattice}.{world.host.key}.wrpc.0.0.1.wasmcloud:messaging/consumer@0.2.0.publish".encode()
    raw_publish(world.server, subject, params, b"some.inbox", headers=block)
    raw_publish(world.server, world.s("in").encode(), b"body", headers=b"NATS/1.0\r\ntraceparent: %s\r\n\r\n" % value)
    msg = await out.next_msg(DEADLINE)
    assert msg.data == b"body" and set(msg.headers or {}) <= {"traceparent", "tracestate"}, msg.headers
    message = await echo.next()
    assert message.body == b"body" and set(message.headers) <= {"traceparent", "source-id", "target-id"}, message.headers
    assert (await echo.publish(world.s("out"), b"good")).ok
    assert world.server.subscribers(world.s("in")) == before


# ---------------------------------------------------------------- reaching for another's link

REACHING = [("on", "default"), ("one.", "default"), ("One", "default"), ("*", "default"), (">", "default"), ("", "default"),
            ("one\0", "default"), ("one -> x", "default"), ("two", "private"), ("one", "*"), ("one", ">"), ("one", ""), ("one", "PRIVATE"),
            ("three", "private"), ("one" * 100, "private"), ("one", "private" * 100), ("messaging-nats", "private"), ("messaging-nats", "default")]


@pytest.mark.parametrize("function", ["publish", "request"])
async def test_reaching_for_the_link_of_another(world, servers, function):
    """Whoever is not the component of a link, by that very name, does not get through to its server."""
    far = servers()
    await world.start(world.host.consumer_link("one", name="private", url=far.url), world.host.consumer_link("two"))
    reached = await world.listen("*", nc=await world.client(far))
    for source, link_name in REACHING:
        component = await world.component("two", serve=False)
        params = wire.broker_message("out", b"x") if function == "publish" else wire.request_params("out", b"x", 100)
        call = await component.call(function, params, link_name=link_name, headers={"source-id": source})
        assert call.failed, (source, link_name, call)
    two = await world.component("two", serve=False)
    assert (await two.publish("out", b"x")).ok
    one = await world.component("one", serve=False)
    assert (await one.publish("mine", b"x", link_name="private")).ok
    assert (await reached.next_msg(DEADLINE)).subject == "mine"
    assert reached.pending_msgs == 0


async def test_two_headers_of_one_name(world, servers):
    """A call that names two sources, or two links, is one of the first or of none; never a way to a link between them."""
    far = servers()
    await world.start(world.host.consumer_link("one", url=far.url), world.host.consumer_link("two"))
    reached = await world.listen("*", nc=await world.client(far))
    block = b"NATS/1.0\r\nsource-id: two\r\nsource-id: one\r\nlink-name: default\r\n\r\n"
    subject = f"{world.lattice}.{world.host.key}.wrpc.0.0.1.wasmcloud:messaging/consumer@0.2.0.publish".encode()
    raw_publish(world.server, subject, wire.broker_message("out", b"x"), b"some.inbox", headers=block)
    one = await world.component("one", serve=False)
    assert (await one.publish("mine", b"x")).ok
    assert (await reached.next_msg(DEADLINE)).subject == "mine" and reached.pending_msgs == 0


# ---------------------------------------------------------------- the control subjects

HOSTILE_LINKS = {
    "component with a dot": dict(source_id="a.b"), "component that is a wildcard": dict(source_id=">"), "component with a line end": dict(source_id="a\r\nPUB x 0"),
    "component of no length": dict(source_id=""), "component that is long": dict(source_id="a" * 1000), "name that is long": dict(name="a" * 1000),
    "component with a NUL": dict(source_id="a\0b"), "component that is a number": dict(source_id=7), "configuration that is a list": dict(target_config=[1, 2]),
    "server with a line end": dict(target_config={"cluster_uris": "nats://x:y\r\nPUB@127.0.0.1:1"}),
    "user with a quote": dict(target_config={"cluster_uris": 'nats://x","y:z@127.0.0.1:1'}),
    "JWT with a line end": dict(target_config={"client_jwt": 'a"}\r\nPUB x 0\r\n\r\n', "client_seed": "SU"}),
    "inbox with a line end": dict(target_config={"custom_inbox_prefix": "a\r\nSUB > 1"}), "inbox that is a wildcard": dict(target_config={"custom_inbox_prefix": ">"}),
    "inbox with an empty token": dict(target_config={"custom_inbox_prefix": "a..b"}), "inbox that is long": dict(target_config={"custom_inbox_prefix": "a" * 2000}),
    "secrets of 200,000 zeros": dict(target_secrets=[0] * 200000), "secrets that are floats": dict(target_secrets=[1.5, 2e300]),
    "secrets that are huge": dict(target_secrets=[2**63 - 1, -2**63]), "secrets in secrets": dict(target_secrets=[[[120]]]),
}
HOSTILE_SUBSCRIPTIONS = ["a b", "a\r\nPUB x 0\r\n", "a\nb", "a..b", ".a", "a.", ">.a", "a|", "a|b c", "a|*", "a|b\r\nSUB > 9", "a" * 2000, "|q", "a|b|c d"]


@pytest.mark.parametrize("changes", HOSTILE_LINKS.values(), ids=HOSTILE_LINKS)
async def test_hostile_links(world, changes):
    """A link that is none is refused in words, in a log line that is one; the others work."""
    provider = await world.start(world.host.handler_link("good", name="mark", subscriptions=world.s("mark")), world.host.consumer_link("good"))
    before = world.server.subscribers(world.s("mark"))
    said = len(provider.log("WARN|ERROR"))
    await world.host.put({**world.host.consumer_link("bad"), **changes})
    await provider.wait_log("ERROR|WARN", count=said + 1)
    assert (await (await world.component("good", serve=False)).publish(world.s("x"))).ok
    assert world.server.subscribers(world.s("mark")) == before
    assert all(line.isprintable() for line in provider.lines)


async def test_hostile_subscriptions(world):
    """A list with anything in it that is no subject is refused whole, and nothing of it reaches the server."""
    provider = await world.start(world.host.consumer_link("good"))
    for i, item in enumerate(HOSTILE_SUBSCRIPTIONS):
        await world.host.put(world.host.handler_link(f"bad{i}", name=f"n{i}", subscriptions=f"{world.s('fine')}{i},{item}"))
        await provider.wait_log(f"bad{i} .*subscriptions")
    assert (await (await world.component("good", serve=False)).publish(world.s("x"))).ok
    assert not any(world.s("fine") in s for c in world.server.connections() for s in c.get("subscriptions_list", []))


PART = 1 if not RUN else 10  # an emulator takes 10 s for what follows, and nats-server cuts who does not read for so long
HOSTILE_ORDERS = [b"", b"\0", b"null", b"[]", b"7", b'"x"', b"{", b"{" * 3000, b'{"a":' * 3000, b"[" * 100000, b"{}" * 2, b'{"host_id":null}', b'{"host_id":["N"]}',
                  b'{"host_id":"' + b"N" * 100000 + b'"}', b'{"a":1,"a":2}', b'{"a":"\\u0000"}', b'{"a":"\\ud800"}', b'{"a":1e999}', b'{"a":' + b"9" * 1000 + b"}",
                  b"\xef\xbb\xbf{}", b'{"\xff":1}', json.dumps({"k%d" % i: "v" * 50 for i in range(10000 // PART)}).encode(), b" " * (900000 // PART)]


@pytest.mark.parametrize("order", ["health", "default.shutdown", "linkdefs.put", "linkdefs.del"])
async def test_hostile_orders(world, order):
    """Whatever comes on a control subject: the provider goes on, in the same memory."""
    provider = await world.start(world.host.consumer_link())
    subject = world.host.control(f"{world.host.key}.{order}")
    for data in HOSTILE_ORDERS:
        await world.nc.publish(subject, data)
    await world.host.healthy()
    before = provider.status("VmRSS")
    for _ in range(3):
        for data in HOSTILE_ORDERS:
            await world.nc.publish(subject, data, reply="x.y")
    for reply in (b"a.*", b">", b"a..b", b".", b"a" * 3000):
        raw_publish(world.server, subject.encode(), b"", reply)
    await world.host.healthy()
    assert (await (await world.component(serve=False)).publish(world.s("x"))).ok
    assert grown(provider, before) < 1024


async def test_calls_with_replies_that_are_no_inboxes(world):
    """A call whose reply subject is a wildcard or no subject gets no answer there, and does nothing."""
    provider = await world.start(world.host.consumer_link())
    out, heard = await world.listen(world.s("out")), await world.listen("a.>")
    subject = f"{world.lattice}.{world.host.key}.wrpc.0.0.1.wasmcloud:messaging/consumer@0.2.0.publish".encode()
    headers = b"NATS/1.0\r\nsource-id: echo\r\n\r\n"
    for reply in (b"a.*", b"a.>", b"a..b", b"a.", b"a." + b"x" * 300, b""):
        raw_publish(world.server, subject, wire.broker_message(world.s("out"), b"x"), reply, headers=headers)
    await provider.wait_log("without a usable reply", count=5)
    assert (await (await world.component(serve=False)).publish(world.s("out"), b"good")).ok
    assert (await out.next_msg(DEADLINE)).data == b"good"
    assert heard.pending_msgs == 0


async def test_refused_host_data_and_links_hold_nothing(world):
    """A thousand links that are refused, each of another name, leave the provider as it was."""
    provider = await world.start(world.host.consumer_link("good"))

    async def refuse(count):
        for i in range(count):
            await world.host.nc.publish(world.host.control(f"{world.host.put_id}.linkdefs.put"),
                                        json.dumps({**world.host.consumer_link(f"bad{i}"), "source_id": f"bad.{i}"}).encode())
        await flush(world.nc)
        await world.host.healthy()
    await refuse(200)
    before = provider.status("VmRSS")
    await refuse(1000)
    assert grown(provider, before) < 256
