# SPDX-License-Identifier: Apache-2.0
"""The log on stderr: its two formats, its levels, and that it does not run away."""
import json
import re

import pytest

from servers import free_port

LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (CRITICAL|CRIT |ERROR|WARN |INFO |DEBUG|TRACE) (\S.*)$")


async def eventful(world, **how):
    """A provider that has something to say: a link that works, one that cannot, and an error result."""
    async def fail(_message):
        return "told to fail\nin two lines \x1b[31m\u2028 and \"quotes\""
    links = world.host.handler_link("echo", subscriptions=world.s("in")), world.host.consumer_link("away", url=f"nats://127.0.0.1:{free_port()}")
    provider = await world.start(*links, ready=False, **how)
    await world.subscribed(*links)
    await world.component(handler=fail)
    await world.nc.publish(world.s("in"), b"x")
    return provider


@pytest.mark.smoke
async def test_text(world):
    """Time, level, what it is about, words; what others wrote cannot start a line of its own."""
    provider = await eventful(world)
    await provider.wait_log("told to fail")
    await provider.wait_log("away")
    for line in provider.lines:
        assert LINE.match(line), line
        assert line.isprintable(), repr(line)
    assert provider.log(r"link messaging-nats -> echo \(default\): ")
    assert provider.log(r"link away -> messaging-nats \(default\): ")


@pytest.mark.smoke
async def test_json(world):
    """One object a line: timestamp, level, message, and the link or component it is about."""
    provider = await eventful(world, structured_logging=True)
    await provider.wait_log("told to fail")
    await provider.wait_log("away")
    entries = [json.loads(line) for line in provider.lines]
    for entry in entries:
        assert {"timestamp", "level", "message"} <= set(entry), entry
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$", entry["timestamp"])
        assert entry["level"].lower() in ("critical", "error", "warn", "info", "debug", "trace")
    said = next(e for e in entries if "told to fail" in e["message"])
    assert "echo" in said.get("link", "") + said.get("component", "")


LEVELS = ["critical", "error", "warn", "info", "debug", "trace"]


@pytest.mark.parametrize("level", LEVELS)
async def test_level_of_the_host_data(world, level):
    """Nothing finer than the level is written."""
    provider = await eventful(world, log_level=level)
    await world.host.unhealthy("away")
    if LEVELS.index(level) >= 2:
        await provider.wait_log("told to fail")
    await provider.stop()
    allowed = {name[:4].upper() for name in LEVELS[:LEVELS.index(level) + 1]}
    for line in provider.lines:
        assert LINE.match(line).group(1)[:4] in allowed, line


async def test_level_of_rust_log(world):
    """RUST_LOG, which a host passes through, comes before the host data."""
    provider = await eventful(world, log_level="trace", env={"RUST_LOG": "error"})
    await world.host.unhealthy("away")
    await provider.stop()
    assert not provider.log(r"Z (INFO|DEBUG|TRACE|WARN) ")


@pytest.mark.parametrize("filter", ["info,async_nats=trace,wasmcloud=debug", "nonsense=", "", ",,", "x" * 10000])
async def test_rust_log_of_other_programs(world, filter):
    """A filter written for the reference does no harm."""
    await world.start(env={"RUST_LOG": filter})


async def test_no_flood(world):
    """A line that would repeat thousands of times is counted instead."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in")))
    for i in range(3000):
        await world.nc.publish(world.s("in"), b"%d" % i)
    await provider.wait_log("echo")
    await world.host.healthy()
    line = await provider.wait_log(r"\b\d{3,} (more|times|lines|message)")
    assert len(provider.lines) < 200, f"{len(provider.lines)} lines, the last: {line}"
