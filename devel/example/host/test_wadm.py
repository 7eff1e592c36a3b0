# SPDX-License-Identifier: Apache-2.0
"""What wadm.yaml says, with wadm and a real host: ./test.sh host --wadm.

WADM is its binary, and gets the requests that `wash app deploy` would make. Host and component are those of test_host.py. wadm asks
JetStream for what is new in nats-server 2.10.
"""
import asyncio
import contextlib
import json
import os

import pytest
import pytest_asyncio
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from lattice import TOP, until
from servers import SLOW, NatsServer, nats_server_of
from test_host import ARCHIVE, COMPONENT, PATIENCE, empty_host, registry  # noqa: F401

APPLICATION = "messaging"  # the name in wadm.yaml
WADM = os.environ.get("WADM")
pytestmark = pytest.mark.skipif(not WADM, reason="WADM names no program: ./test.sh host --wadm builds it")


@pytest.fixture(scope="module")
def server(folder):
    server = NatsServer(dir=folder, jetstream="1G", binary=nats_server_of("2.10")).start()
    yield server
    server.remove()


@pytest_asyncio.fixture
async def wadm(world):
    """wadm, at work for the lattice, and what `wash app deploy` asks of it: await wadm(manifest)."""
    api = f"wadm.api.{world.lattice}.model"
    process = await asyncio.create_subprocess_exec(WADM, "--nats-server", world.server.address, stdin=asyncio.subprocess.DEVNULL,
                                                   stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)

    async def listens():
        try:
            return await world.nc.request(f"{api}.list", b"", timeout=PATIENCE)
        except NoRespondersError:
            return False

    async def deploy(manifest):
        for what in "put", f"deploy.{APPLICATION}":
            reply = await world.nc.request(f"{api}.{what}", manifest.encode() if what == "put" else b"{}", timeout=PATIENCE)
            assert json.loads(reply.data)["result"] not in ("error", "notfound"), reply.data
    try:
        await until(listens, "wadm listens", PATIENCE)
        yield deploy
    finally:
        process.terminate()
        await process.wait()


async def answers(world, subject):
    """The component answers on the subject, once it, the provider and both links are there, in whatever order they came."""
    async def answered():
        with contextlib.suppress(NatsTimeout, NoRespondersError):
            return await world.ask(subject, b"echo hello", 2 * SLOW) == b"hello"
    await until(answered, f"an answer on {subject}", 2 * PATIENCE)


def adapted(world):
    """wadm.yaml as it is, but for addresses."""
    text = (TOP / "devel/example/wadm.yaml").read_text()
    for placeholder, actual in (("file:///path/messaging-nats.par.gz", f"file://{ARCHIVE}"), ("file:///path/echo.wasm", f"file://{COMPONENT}"),
                                ("nats://127.0.0.1:4222", world.server.url)):
        assert placeholder in text
        text = text.replace(placeholder, actual)
    return text


async def test_manifest(world, empty_host, wadm):
    """wadm.yaml is deployed as it is, but for addresses; a running link changes as it says, by a configuration of another name."""
    text = adapted(world)
    await wadm(text)
    await answers(world, "orders.new")
    await wadm(text.replace("name: echo-source", "name: echo-source-2").replace("v0.1.0", "v0.2.0").replace("orders.>", "bills.>"))
    await answers(world, "bills.new")
