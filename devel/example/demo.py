#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The main job on real input: a host starts the provider, links a component, messages flow, the host ends it.

    ./test.sh demo        makes everything this needs, and runs it
    devel/example/demo.py [PROVIDER]

nats-server is a real one, with TLS and a certificate made on the spot. The host and the component are played by the
harness of the tests, which speaks with the provider as a wasmCloud 1.9 host does. Ends with code 0 if every step worked.
"""
import asyncio
import logging
import os
import ssl
import sys
import tempfile
import time
from pathlib import Path

if len(sys.argv) > 1:
    os.environ["PROVIDER"] = os.path.abspath(sys.argv[1])
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/harness"))
from lattice import PROVIDER, World  # noqa: E402
from servers import Certificates, NatsServer, tls_block  # noqa: E402

START = time.monotonic()


def tell(who, words):
    """One line of the story."""
    print(f"{time.monotonic() - START:6.3f}  {who:<9} {words}", flush=True)


def expect(condition, words):
    """Ends the demo if a step did not do what it should."""
    if not condition:
        raise AssertionError(words)


async def component_named_echo(world):
    """Answers messages to demo.upper itself, asks svc.weather for those to demo.weather, and refuses the rest."""
    async def handle(message):
        tell("component", f"handle-message({message.subject!r}, {message.body!r})")
        body = message.body.upper()
        if message.subject == "demo.weather":
            call = await echo.request("svc.weather", message.body)
            expect(call.ok, f"request failed: {call}")
            body = call.value.body
            tell("component", f"request('svc.weather', {message.body!r}) gave {body!r}")
        elif message.subject != "demo.upper":
            return f"nothing to do for {message.subject}"
        tell("component", f"publish(the reply subject, {body!r})")
        call = await echo.publish(message.reply_to, body)
        expect(call.ok, f"publish failed: {call}")

    echo = await world.component("echo", handle)
    return echo


async def story(server, certificates):
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    world = await World(server, tls=context).open()
    try:
        host = world.host
        tell("host", f"starts {os.path.relpath(PROVIDER)}: host data on standard input, the lattice at {server.url}")
        provider = await world.start(config={"lattice_tls_ca": certificates.ca, "tls_ca": certificates.ca})
        tell("provider", f"process {provider.pid} answers: health {await host.health()}")

        links = host.handler_link("echo", subscriptions="demo.>"), host.consumer_link("echo")
        await world.put(*links)
        tell("host", "puts two links: demo.> is for the component 'echo', and it may publish and request")
        tell("provider", f"both are connected with TLS: health {await host.health()}")

        await component_named_echo(world)
        await world.respond("svc.weather", lambda place: b"rain in " + place)
        for subject, body, wanted in (("demo.upper", b"hello", b"HELLO"), ("demo.weather", b"Bergen", b"rain in Bergen")):
            tell("outside", f"asks {subject!r}: {body!r}")
            answer = await world.ask(subject, body)
            expect(answer == wanted, f"the answer is {answer!r}, not {wanted!r}")
            tell("outside", f"has the answer {answer!r}")

        tell("outside", "publishes to 'demo.other', which the component refuses")
        await world.nc.publish("demo.other", b"please")
        line = await provider.wait_log("nothing to do for demo.other")
        tell("provider", f"logs: {line}")

        rss, threads = provider.status("VmRSS"), provider.status("Threads")
        tell("host", "orders shutdown")
        tell("provider", f"answers {(await host.shutdown()).decode()!r}")
        code = await provider.wait_exit()
        tell("host", f"sees it end with exit code {code}")
        expect(code == 0, "the exit code should be 0")
        return rss, threads
    finally:
        await world.close()


def main(story=story):
    """Runs this story, or another that begins with it, on a nats-server of its own."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it comments on how nats-py closes TLS
    with tempfile.TemporaryDirectory(prefix="provider-demo-") as folder:
        certificates = Certificates(folder)
        server = NatsServer(tls_block(*certificates.issue("server")), dir=folder)
        try:
            server.start()
            tell("nats", f"nats-server on {server.address}, TLS required, certificate made just now")
            rss, threads = asyncio.run(story(server, certificates))
        finally:
            server.remove()
    print(f"\nThe provider used {rss} kB of resident memory and {threads} threads; "
          f"its binary has {os.path.getsize(PROVIDER)} bytes. Every step worked.")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, OSError, asyncio.TimeoutError) as e:
        sys.exit(f"the demo failed: {e or type(e).__name__}")
