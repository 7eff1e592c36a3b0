"""More messages than a component takes: memory is bounded, other links are as quick as before, and each message is accounted for."""
import re
import subprocess
import time
from pathlib import Path

import pytest

from lattice import PROVIDER, until
from servers import DEADLINE, nats_server_of
from traffic import Site, Traffic, check

pytestmark = [pytest.mark.release, pytest.mark.alone]
PUBLISHED_IN = 120  # s; the bursts themselves take 0.2 and 3 s, beside much else that the machine does a minute
SLOW_COUNTS = "-> slow .*counts:"
UNNOTICED_US = 2000  # measured: 1.1 to 1.6 ms beside a flood, about twice what the machine alone makes of it; a queue would be tens
OTHERS = 19  # niceness of what floods: on two cores it would otherwise be the scheduler that is measured


def promised_kb():
    """What provider.h reserves, and the binary itself, in kB."""
    text = subprocess.run([PROVIDER, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"memory reserved: (\d+) kB", text).group(1)) + Path(PROVIDER).stat().st_size // 1024


class Flood:
    """A link whose component is too slow, on a server of its own, beside a calm link on the lattice's server. A second provider
    has a slow link alone: what a flood through that costs the calm link is what it costs the machine."""

    def __init__(self, world, server, other=None, **link):
        self.world, self.server, self.other = world, server, other
        self.slow = [w.host.handler_link("slow", "slow", url=server.url, subscriptions=w.s("slow"), **link) for w in (world, other) if w]
        self.calm = world.host.handler_link("calm", "calm", subscriptions=world.s("calm"))

    async def open(self, traffic):
        self.provider = await self.world.start(self.slow[0], self.calm)
        if self.other:
            await self.other.start(self.slow[1])
        for world in filter(None, (self.world, self.other)):
            await until(lambda: self.server.subscribers(world.s("slow")), "subscribed")
        self.calm_load = await traffic(self.world, "handle", "calm", rate=500)
        await self.calm_load.progress("handled", 500)
        return self

    async def burst(self, world, count, handles, silence=0):
        """Sends so many at once; gives (the load's report, the provider's counts) when all is over, and the calm link's p99."""
        await self.calm_load.tell("mark")
        load = await Traffic.start(world, "handle", "slow", nice=OTHERS, link=self.server.url, count=count, rate=10**8,
                                   handles=0 if silence else handles, error=5, trap=5, mute=1)
        began, total = time.monotonic(), (await world.provider.counts(SLOW_COUNTS))["received"] + count
        try:
            await load.until(lambda r: r["sent"] == count, "all sent", PUBLISHED_IN)
            p99 = (await self.calm_load.progress("handled", 500))["p99_us"]
            while time.monotonic() < began + silence:  # what is tested is a component that is silent for a time
                await self.calm_load.progress("handled", 100)
            await load.tell(f"handles {handles}")
            counts = await world.provider.counts(SLOW_COUNTS)
            while counts["open"] or counts["received"] < total:
                assert time.monotonic() < began + silence + PUBLISHED_IN + 3 * DEADLINE, counts
                await self.calm_load.progress("handled", 100)
                counts = await world.provider.counts(SLOW_COUNTS)
            return await load.report(), counts, p99
        finally:
            await load.stop()


async def overload(worlds, lattice, server, traffic, count, handles, silence=0, rounds=5):
    """Bursts until the best of them has left the calm link alone: what else the machine does only ever makes it slower. The rest
    holds always."""
    flood = await Flood(await worlds(lattice), server, await worlds(lattice), handler_timeout_ms="2000").open(traffic)
    sent, beside, within = 0, [], []
    told = dict.fromkeys(("handled", "error", "trap"), 0)
    for _ in range(rounds):
        beside.append((await flood.burst(flood.other, count, handles))[2])
        report, counts, p99 = await flood.burst(flood.world, count, handles, silence)
        within.append(p99)
        sent += count
        for name in told:
            told[name] += report[name]
        resident = flood.provider.status("VmHWM")
        print(f"{count} messages, {handles} a second{f' after {silence} s of silence' if silence else ''}: "
              f"{report['handled']} handled; all bursts {counts}; at most {resident} kB resident; "
              f"p99 of the calm link: {within[-1]} µs, with the flood in another provider {beside[-1]} µs")
        assert sent == counts["received"] == sum(counts[name] for name in ("handled", "error", "trap", "timeout", "dropped")), counts
        assert counts["handled"] <= told["handled"] <= counts["handled"] + counts["timeout"], (counts, told)
        assert counts["error"] <= told["error"] and counts["trap"] <= told["trap"], (counts, told)
        assert resident <= promised_kb()
        assert server.slow_consumers() == 0 and not flood.provider.log("connection lost"), flood.provider.log("connection")
        if min(within) <= max(2 * min(beside), UNNOTICED_US):
            break
    else:
        pytest.fail("the calm link became slower by more than twice")
    await flood.calm_load.tell("rate 0")
    await flood.calm_load.until(lambda r: r["handled"] == r["sent"], "the calm link lost nothing")


PACES = pytest.mark.parametrize("handles, silence", [(300_000, 0), (5_000, 0), (300_000, 3)],
                                ids=["300000 a second", "5000 a second", "3 s of silence"])
LONG_PACES = pytest.mark.parametrize("handles, silence", [(300_000, 0), (5_000, 0), (300_000, 30)],
                                     ids=["300000 a second", "5000 a second", "30 s of silence"])


@PACES
async def test_burst(worlds, server, servers, traffic, handles, silence):
    """50,000 at once."""
    await overload(worlds, server, servers(nice=OTHERS), traffic, 50_000, handles, silence)


@pytest.mark.long
@pytest.mark.parametrize("version", ["2.9", "2.10"])
@LONG_PACES
@pytest.mark.parametrize("count", [50_000, 1_000_000])
async def test_every_burst(worlds, servers, traffic, version, handles, silence, count):
    """The same with more, for longer, on both versions of nats-server."""
    binary = nats_server_of(version)
    await overload(worlds, servers(binary=binary), servers(binary=binary, nice=OTHERS), traffic, count, handles, silence)


async def test_backlog_within_the_limits(world, servers, traffic):
    """20,000 messages of 128 bytes that come while the component does nothing: none is lost."""
    flood = await Flood(world, servers(), handler_timeout_ms="60000").open(traffic)
    load = await traffic(world, "handle", "slow", link=flood.server.url, count=20_000, rate=10**8, handles=0)
    await load.until(lambda r: r["sent"] == 20_000 and r["waiting"] == 256, "all sent, and as many as may be are with the component")

    async def all_there():
        return (await flood.provider.counts(SLOW_COUNTS))["open"] == 20_000
    await until(all_there, "all wait with the provider or the component")
    await load.tell("handles 300000")
    await load.until(lambda r: r["handled"] == 20_000, "all handled", 3 * DEADLINE)

    async def all_ended():
        return (await flood.provider.counts(SLOW_COUNTS))["open"] == 0
    await until(all_ended, "the last results have arrived")
    counts = await flood.provider.counts(SLOW_COUNTS)
    assert counts["handled"] == counts["received"] == 20_000 and not counts["dropped"], counts


async def test_stream_backlog(worlds, servers, server, traffic):
    """More messages in a stream than would fit into the provider, for a slow component: nothing is lost or dropped, since no more
    are asked for than the component can have."""
    site = await Site(await worlds(server), servers(jetstream="1G")).open(traffic, flows=("stream",))
    idle, stream = site.provider.status("VmRSS"), site.flows["stream"]
    await stream.tell("handles 5000")
    await stream.tell("rate 100000000")
    await stream.until(lambda r: r["acked"] > 50_000, "50,000 messages are in the stream", PUBLISHED_IN)
    await stream.tell("rate 0")
    await stream.until(lambda r: not r["open"] and not r["lost"], "all handled", PUBLISHED_IN)
    check(*await site.settle())
    resident = site.provider.status("VmHWM")
    print(f"{idle} kB resident before, {resident} kB at most")
    assert resident < idle + 1024
