# SPDX-License-Identifier: Apache-2.0
"""Fixtures: shared servers, a world for each test, and the line of totals that test.sh sums up."""
import os
import signal
import tempfile
from pathlib import Path

import pytest
import pytest_asyncio

import lattice
from lattice import PROVIDER, RUN, World
from peers import Peer
from servers import Certificates, Cluster, NatsServer, witnesses
from traffic import Traffic

SANITIZED = "/san/" in PROVIDER
EMULATED = bool(RUN)


def pytest_configure(config):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed by a time limit, it still ends what it started
    config.addinivalue_line("markers", "smoke: the main paths, also run by the binaries of other machines under emulation")
    config.addinivalue_line("markers", "long: takes minutes; run by ./test.sh long alone")
    config.addinivalue_line("markers", "alone: measures time, so nothing runs beside it")
    config.addinivalue_line("markers", "release: measures the release binary itself; no sanitizers, no emulation")


def pytest_collection_modifyitems(items):
    if SANITIZED or EMULATED or lattice.REFERENCE:
        skip = pytest.mark.skip(reason="about the release binary itself")
        for item in items:
            if item.get_closest_marker("release"):
                item.add_marker(skip)


def pytest_runtest_setup():
    witnesses[:] = [one for one in witnesses if one.running]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A test that failed shows what the processes beside it said last."""
    report = yield
    if report.failed:
        report.sections += [(str(one), "\n".join(line.rstrip("\n") for line in one.lines[-30:])) for one in witnesses]
    return report


def pytest_sessionfinish(session):
    """Writes "passed failed skipped", and a line for each test that failed, to the file named by TOTALS."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and os.environ.get("TOTALS"):
        passed, skipped = (len(reporter.stats.get(name, [])) for name in ("passed", "skipped"))
        failed = [f"FAIL {report.nodeid}\n" for name in ("failed", "error") for report in reporter.stats.get(name, [])]
        Path(os.environ["TOTALS"]).write_text(f"{passed} {len(failed)} {skipped}\n" + "".join(failed))


@pytest.fixture(scope="session")
def folder():
    with tempfile.TemporaryDirectory(prefix="provider-tests-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def server(folder):
    """The plain nats-server that most tests share."""
    server = NatsServer(dir=folder).start()
    yield server
    server.remove()


@pytest.fixture
def servers(folder):
    """Starts servers of a test's own: servers(config) gives one that runs."""
    started = []

    def start(config="", run=True, **how):
        server = NatsServer(config, dir=folder, **how)
        started.append(server)
        return server.start() if run else server
    yield start
    for server in started:
        server.remove()


@pytest.fixture
def cluster(folder):
    """Three servers that run."""
    cluster = Cluster(dir=folder).start()
    yield cluster
    cluster.remove()


@pytest_asyncio.fixture
async def peers():
    """Starts servers that follow a script: await peers(script)."""
    opened = []

    async def open(script):
        opened.append(await Peer(script).open())
        return opened[-1]
    yield open
    for peer in opened:
        await peer.close()


@pytest_asyncio.fixture
async def traffic():
    """Starts build/traffic for a world: await traffic(world, flow, component, …)."""
    started = []

    async def start(*args, **options):
        started.append(await Traffic.start(*args, **options))
        return started[-1]
    yield start
    for one in started:
        await one.stop()


@pytest.fixture(scope="session")
def authority(folder):
    """The certificate authority that the tests trust."""
    return Certificates(folder)


@pytest.fixture(scope="session")
def stranger(folder):
    """A certificate authority that nobody trusts."""
    return Certificates(folder, "stranger")


@pytest_asyncio.fixture
async def world(server):
    """A lattice on the shared server."""
    world = await World(server).open()
    yield world
    await world.close()


@pytest_asyncio.fixture(params=["1.9", "1.0"])
async def each_world(server, request):
    """A lattice on the shared server, once with a 1.9 host and once with a 1.0 host."""
    world = await World(server).open(request.param)
    yield world
    await world.close()


@pytest_asyncio.fixture
async def worlds():
    """Lattices on servers of the test's own: await worlds(server, …)."""
    opened = []

    async def open(server, version="1.9", **connect):
        world = await World(server, **connect).open(version)
        opened.append(world)
        return world
    yield open
    for world in opened:
        await world.close()
