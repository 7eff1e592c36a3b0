"""The three flows: publish, request, handle-message, in every size and with everything that goes wrong."""
import asyncio

import pytest

import wire
from lattice import Trap

MEGABYTE = 1048576  # nats-server's max_payload
SIZES = [0, 1, 127, 128, 16384, MEGABYTE - 200, MEGABYTE]


def body_of(size):
    return bytes(i * 7 % 256 for i in range(251)) * (size // 251) + b"x" * (size % 251)


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


@pytest.mark.parametrize("size", SIZES)
async def test_publish_sizes(each_world, size):
    """A body of any size up to max_payload is published as it is, its parameters chunked where needed."""
    world = each_world
    await world.start(world.host.consumer_link())
    echo = await world.component(serve=False)
    out = await world.listen(world.s("out"))
    call = await echo.publish(world.s("out"), body_of(size))
    assert call.ok, call
    assert (await out.next_msg(5)).data == body_of(size)
