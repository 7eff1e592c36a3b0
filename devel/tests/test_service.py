# SPDX-License-Identifier: Apache-2.0
"""NATS's service protocol on the lattice (ADR-32): what `nats micro ls`, `info` and `stats` ask for."""
import asyncio
import json
import re

import pytest

from lattice import flush, until
from servers import DEADLINE

NAME = "messaging-nats"


async def ask(world, verb, suffix=""):
    """The answers to a question that goes to every service: those of this world's provider."""
    inbox = await world.nc.subscribe(world.nc.new_inbox())
    await world.nc.publish(f"$SRV.{verb}{suffix}", reply=inbox.subject)
    answers = []
    while True:
        msg = await inbox.next_msg(DEADLINE)
        answers.append(json.loads(msg.data))
        if answers[-1]["id"] == world.host.data["instance_id"]:
            await inbox.unsubscribe()
            return answers[-1]


def endpoints(answer):
    return {endpoint["name"]: endpoint for endpoint in answer["endpoints"]}


@pytest.fixture
def named(world):
    """A world whose host data names this process, so that its answers are told from those of others on the shared server."""
    world.host.data["instance_id"] = f"instance-{world.lattice}"
    return world


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_who_answers(named, verb):
    """To all services, to those of its name, and to it alone; never to another name or id."""
    await named.start(named.host.consumer_link())
    for suffix in ("", f".{NAME}", f".{NAME}.{named.host.data['instance_id']}"):
        answer = await ask(named, verb, suffix)
        assert answer["type"] == f"io.nats.micro.v1.{verb.lower()}_response" and answer["name"] == NAME
        assert re.fullmatch(r"\d+\.\d+\.\d+", answer["version"]) and answer["metadata"] == {}
    for suffix in (".other", f".{NAME}.other", f".other.{named.host.data['instance_id']}"):
        with pytest.raises(Exception, match="no responders"):
            await named.nc.request(f"$SRV.{verb}{suffix}", timeout=DEADLINE)


async def test_info(named):
    """Each function of each link is an endpoint."""
    await named.start(named.host.handler_link(subscriptions=named.s("in")), named.host.consumer_link())
    found = endpoints(await ask(named, "INFO"))
    assert set(found) == {"publish-echo-default", "request-echo-default", "handle-message-echo-default"}
    assert found["publish-echo-default"]["subject"] == f"{named.lattice}.{NAME}.wrpc.0.0.1.wasmcloud:messaging/consumer@0.2.0.publish"
    assert found["publish-echo-default"]["queue_group"] == f"{named.lattice}.{NAME}"
    assert "echo" in found["handle-message-echo-default"]["metadata"]["link"]


async def test_stats(named):
    """Calls, errors, the last error and times of each function; drops, reconnects, what is in flight, and the arena."""
    await named.start(named.host.handler_link(subscriptions=named.s("in")), named.host.consumer_link())
    echo = await named.echo()
    await named.respond(named.s("svc"), lambda data: data)
    for _ in range(3):
        assert (await echo.publish(named.s("out"), b"x")).ok
    assert (await echo.request(named.s("svc"), b"x")).ok
    assert not (await echo.publish("a..b", b"x")).ok
    assert await named.ask(named.s("in"), b"x") == b"x"  # handle-message, which publishes once
    found = endpoints(await ask(named, "STATS"))
    publish, request, handle = (found[f"{function}-echo-default"] for function in ("publish", "request", "handle-message"))
    assert (publish["num_requests"], publish["num_errors"], publish["last_error"]) == (5, 1, "invalid subject")
    assert (request["num_requests"], request["num_errors"], request["last_error"], handle["num_errors"]) == (1, 0, "", 0)
    assert request["average_processing_time"] == request["processing_time"] > 0 and publish["processing_time"] > 0
    assert handle["num_requests"] == 1 or handle["data"]["in_flight"] == 1  # its answer may be on the way
    assert publish["data"]["dropped"] == publish["data"]["reconnects"] == 0


@pytest.mark.release
async def test_memory_in_stats(named):
    """The arena's use, which the sanitizer build has not."""
    await named.start(named.host.consumer_link())
    data = endpoints(await ask(named, "STATS"))["publish-echo-default"]["data"]
    assert 0 < data["arena_bytes"] <= data["arena_peak_bytes"] < 24 * 2**20


async def test_slow_calls_take_time(named):
    """The average is that of the calls, from the component's call to its answer."""
    await named.start(named.host.consumer_link())
    component = await named.component("echo", serve=False)
    asked = await named.listen(named.s("svc"))
    call = asyncio.ensure_future(component.request(named.s("svc"), b"x", timeout_ms=5000))
    msg = await asked.next_msg(DEADLINE)
    loop = asyncio.get_running_loop()
    since = loop.time()
    in_flight = endpoints(await ask(named, "STATS"))["request-echo-default"]["data"]["in_flight"]
    held = loop.time() - since
    await msg.respond(b"y")
    assert (await call).ok and in_flight == 1
    assert endpoints(await ask(named, "STATS"))["request-echo-default"]["processing_time"] >= held * 1e9 * 0.9


async def test_reconnects_are_counted(named, servers):
    """After the link's server came back; and health says the numbers while it is away."""
    far = servers()
    await named.start(named.host.consumer_link(url=far.url))
    far.stop()
    why = await named.host.unhealthy("connection|refused|answers")
    assert re.search(r"\(0 reconnects, 0 dropped, 0 in flight\)", why), why
    far.start()
    await named.host.healthy()
    assert endpoints(await ask(named, "STATS"))["publish-echo-default"]["data"]["reconnects"] == 1


async def test_links_come_and_go(named):
    """A deleted link is no endpoint any more."""
    link = named.host.consumer_link("other")
    await named.start(named.host.consumer_link(), link)
    assert "publish-other-default" in endpoints(await ask(named, "INFO"))
    await named.host.delete(link)

    async def gone():
        return "publish-other-default" not in endpoints(await ask(named, "INFO"))
    await until(gone, "the deleted link is no endpoint")


async def test_off(named):
    """With lattice_service=false nobody answers."""
    await named.start(named.host.consumer_link(), config={"lattice_service": "false"})
    with pytest.raises(Exception, match="no responders"):
        await named.nc.request(f"$SRV.PING.{NAME}.{named.host.data['instance_id']}", timeout=DEADLINE)


async def test_forbidden(servers, worlds):
    """Where the user may not subscribe to $SRV.>, nothing is said of it, and all else works."""
    server = servers('authorization { users = [{user: u, password: p, permissions: {subscribe: {deny: "$SRV.>"}}}, {user: t, password: t}] }')
    world = await worlds(server, user="t", password="t")
    provider = await world.start(world.host.consumer_link(url=server.url.replace("nats://", "nats://u:p@")),
                                 lattice_rpc_url=server.url.replace("nats://", "nats://u:p@"))
    assert (await (await world.echo()).publish(world.s("out"), b"x")).ok
    await flush(world.nc)
    assert not provider.log("SRV|violation"), provider.lines


async def test_report_on_signal(named):
    """SIGUSR1 writes the same numbers into the log."""
    import signal
    provider = await named.start(named.host.consumer_link())
    echo = await named.echo()
    assert (await echo.publish(named.s("out"), b"x")).ok
    assert not (await echo.publish("a..b", b"x")).ok
    provider.process.send_signal(signal.SIGUSR1)
    line = await provider.wait_log(r"publish: calls=2 errors=1 average_us=\d+ reconnects=0 last_error=invalid subject")
    assert "link echo" in line


async def test_questions_without_a_reply(named):
    """A question that nobody waits for is ignored, and so is one whose reply subject cannot be answered."""
    await named.start(named.host.consumer_link())
    await named.nc.publish("$SRV.STATS")
    await named.nc.publish("$SRV.STATS", reply="a" * 300)
    assert (await ask(named, "PING"))["name"] == NAME
