# SPDX-License-Identifier: Apache-2.0
"""The three flows: publish, request, handle-message, in every size and with everything that goes wrong."""
import asyncio

import pytest

import wire
from lattice import Trap, until
from servers import DEADLINE, SLOW, raw_publish

MEGABYTE = 1048576  # nats-server's max_payload
SIZES = [0, 1, 127, 128, 16384, MEGABYTE - 200, MEGABYTE]
TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=x"}
NO_RESPONDERS = "nats send error: no responders: no responders"
TIMED_OUT = "nats request timed out: deadline has elapsed"


def body_of(size):
    return (bytes(i * 7 % 256 for i in range(251)) * (size // 251 + 1))[:size]


# ---------------------------------------------------------------- what works

@pytest.mark.smoke
async def test_echo(each_world):
    """A message from outside reaches the component, and what it publishes reaches the reply subject."""
    world, host = each_world, each_world.host
    await world.start(host.handler_link(subscriptions=world.s(">")), host.consumer_link())
    echo = await world.echo()
    assert await world.ask(world.s("echo"), b"hello") == b"hello"
    message = await echo.next()
    assert (message.subject, message.body) == (world.s("echo"), b"hello")
    assert message.headers["source-id"] == host.key and message.headers["target-id"] == "echo"


@pytest.mark.smoke
@pytest.mark.parametrize("reply_to", [None, "answers.here"])
async def test_publish_reply_to(world, reply_to):
    """The message has the reply subject that the component gave, or none."""
    await world.start(world.host.consumer_link())
    out = await world.listen(world.s("out"))
    call = await (await world.component(serve=False)).publish(world.s("out"), b"x", reply_to)
    assert call.ok
    assert (await out.next_msg(DEADLINE)).reply == (reply_to or "")


@pytest.mark.parametrize("size", SIZES)
async def test_publish_sizes(each_world, size):
    """A body of any size up to max_payload is published as it is, its parameters chunked where needed."""
    world = each_world
    await world.start(world.host.consumer_link())
    out = await world.listen(world.s("out"))
    call = await (await world.component(serve=False)).publish(world.s("out"), body_of(size))
    assert call.ok, call
    assert (await out.next_msg(DEADLINE)).data == body_of(size)


@pytest.mark.parametrize("size", SIZES)
async def test_request_sizes(each_world, size):
    """A request and its reply of any size pass; the result names the subject the reply was sent to."""
    world, seen = each_world, []
    await world.start(world.host.consumer_link())

    async def reverse(msg):
        seen.append(msg.reply)
        await world.nc.publish(msg.reply, msg.data[::-1], reply="further.on")
    await world.nc.subscribe(world.s("svc"), cb=reverse)
    call = await (await world.component(serve=False)).request(world.s("svc"), body_of(size), 10000)
    assert call.ok, call
    assert call.value == wire.Message(seen[0], body_of(size)[::-1], "further.on")


@pytest.mark.smoke
async def test_request_small(world):
    """The shortest request: no reply subject on the reply, a body of a few bytes."""
    await world.start(world.host.consumer_link())
    await world.respond(world.s("upper"), bytes.upper)
    call = await (await world.component(serve=False)).request(world.s("upper"), b"shout")
    assert call.ok and call.value.body == b"SHOUT" and call.value.reply_to is None


@pytest.mark.parametrize("size", SIZES)
async def test_handle_message_sizes(each_world, size):
    """A message of any size reaches the component whole, with its reply subject."""
    world = each_world
    await world.start(world.host.handler_link(subscriptions=world.s("in")))
    echo = await world.component()
    await world.nc.publish(world.s("in"), body_of(size), reply="over.there")
    assert await echo.next() == wire.Message(world.s("in"), body_of(size), "over.there")


@pytest.mark.parametrize("first", [0, 1, 5, -1])
async def test_parameters_cut_anywhere(world, first):
    """Parameters are complete when they decode, wherever the caller cut them."""
    await world.start(world.host.consumer_link())
    out = await world.listen(world.s("out"))
    params = wire.broker_message(world.s("out"), b"body", "reply.to")
    call = await (await world.component(serve=False)).call("publish", params, first=first % len(params))
    assert call.ok
    msg = await out.next_msg(DEADLINE)
    assert (msg.data, msg.reply) == (b"body", "reply.to")


async def test_parameters_byte_by_byte(world):
    """Every byte of the parameters may come in a message of its own."""
    await world.start(world.host.consumer_link())
    out = await world.listen(world.s("out"))
    echo = await world.component(serve=False)
    call = await echo.start("publish", wire.broker_message(world.s("out"), b"body"), first=0)
    await call.handshake()
    for i in range(len(call.rest)):
        await world.nc.publish(call.rs + ".params", call.rest[i:i + 1])
    await call.result()
    assert call.ok and (await out.next_msg(DEADLINE)).data == b"body"


@pytest.mark.parametrize("lattice_max, link_max", [(4096, MEGABYTE), (MEGABYTE, 4096)])
async def test_servers_with_different_max_payload(servers, worlds, lattice_max, link_max):
    """Chunks keep to the lattice's max_payload; a body that the link's server would refuse is refused in words."""
    lattice, far = (servers(f"max_payload: {size}") for size in (lattice_max, link_max))
    world = await worlds(lattice)
    outside = await world.client(far)
    await world.start(world.host.handler_link(url=far.url, subscriptions="in"), world.host.consumer_link(url=far.url))
    await until(lambda: far.subscribers("in"), "subscribed on the link's server")
    echo = await world.component()
    body = body_of(min(100000, link_max))
    await outside.publish("in", body)
    assert (await echo.next()).body == body

    await world.respond("svc", lambda data: data, nc=outside)
    call = await echo.request("svc", body, 10000)
    assert call.ok and call.value.body == body
    assert max(len(data) for _, data in call.frames) <= lattice_max

    if link_max < lattice_max:
        call = await echo.publish("svc", body_of(link_max + 1))
        assert call.ok is False and "payload" in call.value, call


async def test_many_calls_at_once(world):
    """Hundreds of calls of each flow at once, and each gets its own answer."""
    await world.start(world.host.handler_link(subscriptions=world.s("t.*")), world.host.consumer_link())
    echo = await world.echo()
    await world.respond(world.s("upper"), bytes.upper)
    requests = [echo.request(world.s("upper"), b"r%d" % i, 10000) for i in range(200)]
    asks = [world.ask(world.s(f"t.{i}"), b"a%d" % i) for i in range(200)]
    done = await asyncio.gather(*requests, *asks)
    assert [c.value.body for c in done[:200]] == [b"R%d" % i for i in range(200)]
    assert done[200:] == [b"a%d" % i for i in range(200)]


# ---------------------------------------------------------------- headers

async def test_trace_headers_out(world):
    """The trace of a call goes out with the message, and nothing else of the call's headers does."""
    await world.start(world.host.consumer_link())
    seen = asyncio.Queue()

    async def answer(msg):
        seen.put_nowait(dict(msg.headers or {}))
        await msg.respond(b"")
    await world.nc.subscribe(world.s("svc"), cb=answer)
    echo = await world.component(serve=False)
    for call in (echo.publish(world.s("svc"), b"", "x.y", headers=TRACE), echo.request(world.s("svc"), headers=TRACE)):
        assert (await call).ok
        assert await asyncio.wait_for(seen.get(), DEADLINE) == TRACE
    assert (await echo.publish(world.s("svc"), b"", "x.y")).ok
    assert await asyncio.wait_for(seen.get(), DEADLINE) == {}


async def test_trace_headers_in(world):
    """The trace of a message goes to the component with the call; other headers of it do not."""
    await world.start(world.host.handler_link(subscriptions=world.s("in")))
    echo = await world.component()
    await world.nc.publish(world.s("in"), b"", headers={**TRACE, "other": "thing", "source-id": "forged"})
    names = {"source-id": world.host.key, "target-id": "echo"}
    assert (await echo.next()).headers == {**TRACE, **names}
    await world.nc.publish(world.s("in"), b"")
    assert (await echo.next()).headers == names


async def test_no_headers_for_sys_subjects(world):
    """Subjects that begin with $SYS carry no headers: the server cannot parse them there."""
    await world.start(world.host.consumer_link())
    subject = f"$SYS.{world.lattice}"
    out = await world.listen(subject)
    echo = await world.component(serve=False)
    assert (await echo.publish(subject, b"x", headers=TRACE)).ok
    assert not (await out.next_msg(DEADLINE)).headers
    call = await echo.request(subject, b"x", 50, headers=TRACE)
    assert call.value == TIMED_OUT
    assert not (await out.next_msg(DEADLINE)).headers


# ---------------------------------------------------------------- results that are errors

@pytest.mark.smoke
async def test_request_errors_in_the_known_words(each_world):
    """Components may show these words to people, so they are the reference's."""
    world = each_world
    await world.start(world.host.consumer_link())
    echo = await world.component(serve=False)
    call = await echo.request(world.s("nobody"), b"x", 5000)
    assert (call.ok, call.value) == (False, NO_RESPONDERS)
    await world.listen(world.s("silent"))
    call = await echo.request(world.s("silent"), b"x", 100)
    assert (call.ok, call.value) == (False, TIMED_OUT)


async def test_request_without_time(world):
    """A timeout of 0 ms times out at once and leaves nothing behind; one of 2^32-1 ms is no overflow."""
    await world.start(world.host.consumer_link())
    await world.listen(world.s("silent"))
    await world.respond(world.s("upper"), bytes.upper)
    echo = await world.component(serve=False)
    assert (await echo.request(world.s("silent"), b"x", 0)).value == TIMED_OUT
    assert (await echo.request(world.s("upper"), b"x", wire.MAX_U32)).value.body == b"X"


async def test_late_reply_is_nobodys(world):
    """A reply that comes after the timeout does not become the answer to the next request."""
    await world.start(world.host.consumer_link())
    silent = await world.listen(world.s("silent"))
    echo = await world.component(serve=False)
    assert (await echo.request(world.s("silent"), b"1", 50)).value == TIMED_OUT
    late = await silent.next_msg(DEADLINE)
    second = await echo.start("request", wire.request_params(world.s("silent"), b"2", 10000))
    await second.handshake()
    await late.respond(b"late")
    await (await silent.next_msg(DEADLINE)).respond(b"right")
    await second.send_rest()
    assert (await second.result()).value.body == b"right"


@pytest.mark.parametrize("function", ["publish", "request"])
@pytest.mark.parametrize("size, headers", [(MEGABYTE + 1, None), (MEGABYTE, TRACE)], ids=["body", "body and headers"])
async def test_body_over_max_payload(world, function, size, headers):
    """What does not fit the link's server, headers included, is an error in words and does not cost the connection."""
    await world.start(world.host.consumer_link(), world.host.handler_link(subscriptions=world.s("mark")))
    before = world.server.subscribers(world.s("mark"))
    echo = await world.component(serve=False)
    call = await getattr(echo, function)(world.s("out"), body_of(size), headers=headers)
    assert call.ok is False and "payload" in call.value, call
    assert function == "publish" or call.value.startswith("nats send error: ")
    assert (await echo.publish(world.s("out"), b"still there")).ok
    assert world.server.subscribers(world.s("mark")) == before


@pytest.mark.parametrize("function", ["publish", "request"])
async def test_link_that_is_down(world, servers, function):
    """While the link's server is away, calls fail at once with words that say so."""
    far = servers()
    await world.start(world.host.consumer_link(url=far.url))
    far.stop()
    await world.host.unhealthy("echo")
    echo = await world.component(serve=False)
    start = asyncio.get_running_loop().time()
    call = await echo.publish("out", b"x") if function == "publish" else await echo.request("out", b"x", 60_000)
    assert call.ok is False and call.value, call
    assert asyncio.get_running_loop().time() - start < 8  # PUBLISH_TIMEOUT_MS is 10 s


# ---------------------------------------------------------------- failed calls

@pytest.mark.smoke
@pytest.mark.parametrize("function", ["publish", "request"])
async def test_component_without_a_link(each_world, function):
    """A call from a component that is not linked fails, in the form of 1.9 and in that of 1.0."""
    world = each_world
    await world.start(world.host.consumer_link("another"))
    call = await getattr(await world.component("echo", serve=False), function)(world.s("out"), b"x")
    assert await call.failed_in_both_forms(), call


async def test_link_name_that_does_not_exist(world):
    """A call over a link of another name is a call without a link."""
    await world.start(world.host.consumer_link())
    call = await (await world.component(serve=False)).publish(world.s("out"), b"x", link_name="other")
    assert await call.failed_in_both_forms(), call


async def test_call_without_source(world):
    """A call that does not say which component it is from fails."""
    await world.start(world.host.consumer_link())
    echo = await world.component(serve=False)
    call = await echo.call("publish", wire.broker_message(world.s("out")), headers={"source-id": ""})
    assert await call.failed_in_both_forms(), call


# ---------------------------------------------------------------- components that do not do what they should

@pytest.mark.smoke
async def test_error_result_is_logged(each_world):
    """An error result shows in the log, with the component's name and its words."""
    world = each_world

    async def fail(_message):
        return "told to fail"
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in")))
    await world.component(handler=fail)
    await world.nc.publish(world.s("in"), b"x")
    assert "echo" in await provider.wait_log("told to fail")


async def test_trap(each_world):
    """A trap is logged, and the next message is handled."""
    world = each_world

    async def trap_on_boom(message):
        if message.body == b"boom":
            raise Trap("unreachable executed")
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1"))
    echo = await world.component(handler=trap_on_boom)
    for body in (b"boom", b"fine"):
        await world.nc.publish(world.s("in"), body)
        assert (await echo.next()).body == body
    await provider.wait_log("echo.*(trap|fail)" if world.host.version == "1.9" else "unreachable executed")


async def test_component_that_nobody_runs(world):
    """Messages for it fail at once with a log line, and hold no slot: the first that comes when it runs is handled."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1"))
    for i in range(3):
        await world.nc.publish(world.s("in"), b"%d" % i)
    await provider.wait_log("echo")
    await world.host.healthy()
    echo = await world.component()
    await world.nc.publish(world.s("in"), b"now")
    while (await echo.next()).body != b"now":
        pass


async def test_component_that_never_answers(world):
    """handler_timeout_ms ends the call with a log line, and the next message gets the slot."""
    link = world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1", handler_timeout_ms="300")
    provider = await world.start(link)
    echo = await world.component(by_hand=True)
    for i in range(3):
        await world.nc.publish(world.s("in"), b"%d" % i)
    first = await echo.invocation()
    second = await echo.invocation()
    assert (wire.Reader(first.data).message().body, wire.Reader(second.data).message().body) == (b"0", b"1")
    assert "echo" in await provider.wait_log("tim(ed?|e ?out)")
    await second.handshake()  # the call gets this far, and no further
    assert wire.Reader((await echo.invocation()).data).message().body == b"2"


async def test_late_handshake(each_world):
    """A host at its instance limit answers late; large parameters wait for it and arrive whole."""
    world = each_world
    await world.start(world.host.handler_link(subscriptions=world.s("in")))
    gate = asyncio.Event()
    echo = await world.component(gate=gate)
    for body in (b"small", body_of(MEGABYTE)):
        await world.nc.publish(world.s("in"), body)
    await world.host.healthy()
    assert echo.received.empty()
    gate.set()
    assert {len((await echo.next()).body), len((await echo.next()).body)} == {5, MEGABYTE}


async def test_several_hosts_answer_one_call(world):
    """1.0 hosts share no queue group: each handles the call, and repeated handshakes and results do no harm."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="2"))
    echoes = [await world.component(style="1.0", nc=await world.client()) for _ in range(3)]
    for i in range(20):
        await world.nc.publish(world.s("in"), b"%d" % i)
    for echo in echoes:
        assert {(await echo.next()).body for _ in range(20)} == {b"%d" % i for i in range(20)}
    assert not provider.log("ERROR")


@pytest.mark.parametrize("pieces", [lambda r: [r[i:i + 1] for i in range(len(r))], lambda r: [r[:3], r[3:]]], ids=["bytes", "two"])
async def test_result_in_pieces(each_world, pieces):
    """A component's result may come in pieces; it is complete when it decodes."""
    world = each_world
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in")))
    echo = await world.component(by_hand=True)
    await world.nc.publish(world.s("in"), b"x")
    call = await echo.invocation()
    await call.handshake()
    for piece in pieces(b"\1" + wire.blob("said in pieces")):
        await world.nc.publish(call.rc + ".results", piece)
    await provider.wait_log("said in pieces")


async def test_result_larger_than_a_message(world):
    """Words of 1.5 MB are read to their end, and do not flood the log."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1"))

    async def verbose(message):
        return "no end of words " * 100000 if message.body == b"1" else None
    echo = await world.component(handler=verbose)
    for body in (b"1", b"2"):
        await world.nc.publish(world.s("in"), body)
        assert (await echo.next()).body == body
    await world.host.healthy()
    assert max(map(len, provider.lines)) < 20000


# ---------------------------------------------------------------- hostile input

HOSTILE = {
    "command": "a\r\nPUB stolen 1\r\nx", "newline": "a\nb", "space": "a b", "tab": "a\tb", "empty": "", "empty token": "a..b",
    "leading dot": ".a", "trailing dot": "a.", "star": "a.*", "greater": "a.>", "only star": "*", "nul": "a\0b", "escape": "a\x1bb",
    "delete": "a\x7fb", "long": "a" * 5000,
}


@pytest.mark.parametrize("subject", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_subjects(world, subject):
    """A subject that is none is an error in words; nothing of it reaches the server, and the link stays up."""
    await world.start(world.host.consumer_link(), world.host.handler_link(subscriptions=world.s("mark")))
    before = world.server.subscribers(world.s("mark"))
    stolen = await world.listen("stolen")
    out = await world.listen(world.s("out"))
    echo = await world.component(serve=False)
    for call in (await echo.publish(subject, b"1"), await echo.publish(world.s("out"), b"2", subject),
                 await echo.request(subject, b"3", 300)):
        assert call.ok is False and call.value, call
    assert (await echo.publish(world.s("out"), b"good")).ok
    assert (await out.next_msg(DEADLINE)).data == b"good"
    assert world.server.subscribers(world.s("mark")) == before
    assert stolen.pending_msgs == 0


MALFORMED = {
    "subject is not UTF-8": wire.blob(b"a\xff\xfe") + wire.blob(b"") + b"\0",
    "surrogate": wire.blob(b"a\xed\xa0\x80") + wire.blob(b"") + b"\0",
    "reply is not UTF-8": wire.blob("a") + wire.blob(b"") + b"\1" + wire.blob(b"\xc3\x28"),
    "overlong length": b"\x81\x80\x80\x80\x80\x00" + b"a" + wire.blob(b"") + b"\0",
    "length over 32 bits": b"\xff\xff\xff\xff\x7f" + b"a" * 64,
    "length of 2^32-1": b"\xff\xff\xff\xff\x0f" + b"a" * 64,
    "body of 2^32-1": wire.blob("a") + b"\xff\xff\xff\xff\x0f" + b"a" * 64,
    "body of 2^31": wire.blob("a") + b"\x80\x80\x80\x80\x08" + b"a" * 64,
    "option tag 2": wire.blob("a") + wire.blob(b"") + b"\2",
    "truncated length": b"\x80",
    "truncated": wire.blob("a" * 10)[:5],
    "nothing": b"",
}


@pytest.mark.parametrize("params", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_parameters(world, params):
    """Parameters that do not decode, or are closed before they are whole, fail the call; nothing else happens."""
    await world.start(world.host.consumer_link())
    echo = await world.component(serve=False)
    call = await echo.call("publish", params)
    assert call.failed or call.ok is False, call
    out = await world.listen(world.s("out"))
    assert (await echo.publish(world.s("out"), b"good")).ok
    await out.next_msg(DEADLINE)


async def test_parameters_that_never_come_whole(world):
    """Such calls expire as failed, and meanwhile hold up nobody else."""
    await world.start(world.host.consumer_link())
    echo = await world.component(serve=False)
    params = wire.broker_message(world.s("out"), b"body")
    nothing = await echo.start("publish", params, first=4)
    some = await echo.start("publish", params, first=4)
    await some.handshake()
    await world.nc.publish(some.rs + ".params", params[4:8])
    assert (await echo.publish(world.s("out"), b"another")).ok
    for call in (nothing, some):
        await call.handshake()
        await call.result(30 * SLOW)
        assert call.failed or call.ok is False, call


async def test_subject_from_outside_that_is_not_utf8(world):
    """A component could not decode it: it is not passed on, or passed on as UTF-8, and the link goes on."""
    await world.start(world.host.handler_link(subscriptions=world.s(">")))
    echo = await world.component()
    raw_publish(world.server, world.s("").encode() + b"\xff\xfe.x", b"bad")
    raw_publish(world.server, world.s("x").encode(), b"bad reply", reply=b"\xff.\xfe")
    raw_publish(world.server, world.s("x").encode() + b"\0.y", b"for another subject")
    raw_publish(world.server, world.s("x").encode(), b"for another subject", reply=b"a\0b")
    await world.nc.publish(world.s("x"), b"good")
    while (message := await echo.next()).body != b"good":
        assert message.body != b"for another subject", message


async def test_forged_messages_to_inboxes(world):
    """Whatever comes to the provider's reply subjects that no call waits for is dropped."""
    await world.start(world.host.handler_link(subscriptions=world.s("in")), world.host.consumer_link())
    echo = await world.component(by_hand=True)
    await world.nc.publish(world.s("in"), b"x")
    invocation = await echo.invocation()
    publish = await echo.publish(world.s("out"), b"x")
    inboxes = {invocation.rc, publish.rs}
    for inbox in list(inboxes):
        stem, _, last = inbox.rpartition(".")
        inboxes |= {f"{stem}.{token}" for token in ("0", "-1", "x", "4294967296", "9" * 40, last[:-1] or "z", last + "0", last.upper())}
    forged = [b"", b"\0", b"\1", b"\xff" * 6, wire.leb128(2**31), b"x" * 70000]
    headers = [None, {"Status": "503"}, {"a": "b"}]
    for inbox in inboxes:
        for tail in ("", ".params", ".results", ".error", ".0", ".params.0"):
            if inbox + tail in (invocation.rc, invocation.rc + ".results", invocation.rc + ".error"):
                continue
            for data in forged:
                await world.nc.publish(inbox + tail, data, reply="forged.reply", headers=headers[len(data) % 3])
    assert (await echo.publish(world.s("out"), b"good")).ok
    await invocation.handshake()
    await invocation.params()
    assert invocation.message.body == b"x"
    await invocation.answer()
    await world.host.healthy()


async def test_nonsense_from_the_component(world):
    """Nonsense in answer to a call is logged, and costs no more than that call."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), max_in_flight="1", handler_timeout_ms="500"))
    echo = await world.component(by_hand=True)
    for rest, data in (("results", b"\7"), ("results", b"\1\xff\xff\xff\xff\x0f"), ("error", b"\xff"), ("error", b""),
                       ("results", b"\1" + wire.blob(b"\xff\xfe\n\x1b[31m")), ("params", b"\0")):
        await world.nc.publish(world.s("in"), b"x")
        call = await echo.invocation()
        await call.handshake()
        await world.nc.publish(f"{call.rc}.{rest}", data)
        await world.nc.publish(call.rc + ".results", b"")
    await world.nc.publish(world.s("in"), b"last")
    await echo.invocation()
    assert provider.running and not provider.log("\x1b")
