# SPDX-License-Identifier: Apache-2.0
"""The lines of README.md and of devel/package/README.md that begin with wash, typed in a shell, with a real host: ./test.sh host --wash.

WASH is its binary. Host and component are those of test_host.py. What wash does with wadm needs that, too: ./test.sh host --wash --wadm.
"""
import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import pytest_asyncio
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from lattice import KEY, PROVIDER, TOP, until
from servers import SLOW
from test_host import ARCHIVE, COMPONENT, ECHO, HOST, ORAS, PAR, PATIENCE, REGISTRY, SECRETS, Host, empty_host, gone, registry  # noqa: F401
from test_wadm import WADM, adapted, server, wadm  # noqa: F401

WASH = os.environ.get("WASH")
QUIET = 2 * SLOW  # in which what should not come would have come
pytestmark = pytest.mark.skipif(not WASH, reason="WASH names no program: ./test.sh host --wash builds it")
needs_registry = pytest.mark.skipif(not (REGISTRY and ORAS), reason="REGISTRY and ORAS name no programs: test.sh builds them where there is go")
needs_wadm = pytest.mark.skipif(not WADM, reason="WADM names no program: ./test.sh host --wadm builds it")


class Shell:
    """Somebody who types commands with wash, in a home of their own, on the world's lattice."""

    def __init__(self, world, home):
        self.home = home
        (home / "bin").mkdir()
        (home / "bin/wash").symlink_to(WASH)
        self.env = {"PATH": f"{home}/bin:{os.environ['PATH']}", "HOME": str(home), "WASMCLOUD_CTL_HOST": "127.0.0.1",
                    "WASMCLOUD_CTL_PORT": str(world.server.port), "WASMCLOUD_LATTICE": world.lattice,
                    "WASMCLOUD_CTL_TIMEOUT_MS": str(int(PATIENCE * 1000))}  # 2 s by default

    async def run(self, line, **env):
        """Types the line; its exit code and what it wrote."""
        process = await asyncio.create_subprocess_exec("bash", "-c", line, env={**self.env, **env}, cwd=self.home, start_new_session=True,
                                                       stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                                                       stderr=asyncio.subprocess.STDOUT)
        try:
            said, _ = await asyncio.wait_for(process.communicate(), 2 * PATIENCE)
        except asyncio.TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"no end of: {line}") from None
        return process.returncode, said.decode()

    async def __call__(self, line, **env):
        """Types the line, which has to succeed, and gives what it wrote."""
        code, said = await self.run(line, **env)
        assert code == 0, f"{line}\n{said}"
        return said

    async def fails(self, line):
        """Types the line, which has to fail, and gives what it wrote."""
        code, said = await self.run(line)
        assert code != 0, f"{line}\n{said}"
        return said


@pytest.fixture
def wash(world, tmp_path):
    return Shell(world, tmp_path)


@pytest_asyncio.fixture
async def host(world, empty_host, wash):
    """A host that runs the component, started by wash, and neither provider nor links yet."""
    await wash(f"wash start component file://{COMPONENT} {ECHO} --max-instances 10")
    return empty_host


def lines(world):
    """The lines of README.md: start, config, link, link; but for the archive, the server's address and the subjects."""
    found = re.findall(r"^    (wash .*)$", (TOP / "README.md").read_text(), re.M)
    assert [line.split()[1] for line in found] == ["start", "config", "link", "link"]
    text = "\n".join(found)
    for words, instead in (("$PWD/build/messaging-nats.par.gz", str(ARCHIVE)), ("nats://10.0.0.1:4222", world.server.url),
                           ("orders.>", f"{world.s('orders')}.>"), ("jobs", world.s("jobs"))):
        assert words in text
        text = text.replace(words, instead)
    return text.splitlines()


def config(world, name, **values):
    """wash config put, of a link's configuration."""
    return f"wash config put {name} " + " ".join(shlex.quote(f"{key}={value}") for key, value in
                                                 {"cluster_uris": world.server.url, **values}.items())


def handler(name="nats"):
    return f"wash link put {KEY} {ECHO} wasmcloud messaging --interface handler --source-config {name}"


def consumer(name="nats"):
    return f"wash link put {ECHO} {KEY} wasmcloud messaging --interface consumer --target-config {name}"


async def answers(world, subject):
    """The component answers on the subject, at last: the order is agreed to before the host and the provider have the link."""
    subject = world.s(subject)

    async def answered():
        with contextlib.suppress(NatsTimeout, NoRespondersError):
            return await world.ask(subject, b"echo hello", 2 * SLOW) == b"hello"
    await until(answered, f"an answer on {subject}", PATIENCE)


async def started(wash, world, **values):
    """Provider and links as wash starts them, with the subject s("in") if nothing else is said."""
    await wash(f"wash start provider file://{ARCHIVE} {KEY}")
    await wash(config(world, "nats", **(values or {"subscriptions": world.s("in")})))
    await wash(handler())
    await wash(consumer())
    await answers(world, "in")


def push(image):
    """Not by `wash push`, which wants a Location where this registry sends none, after the last bytes (distribution's does)."""
    subprocess.run([ORAS, "push", "--plain-http", image, f"{ARCHIVE.name}:{PAR}"], cwd=ARCHIVE.parent, stdout=subprocess.DEVNULL, check=True)


# ---------------------------------------------------------------- without a host

async def test_manifest_is_valid(wash):
    """wadm.yaml, for wash."""
    assert "manifest is valid" in await wash(f"wash app validate {TOP}/devel/example/wadm.yaml")


async def test_archives(wash):
    """wash reads what build/par packs, and the other way round."""
    said = await wash(f"wash inspect {ARCHIVE}")
    assert "NATS messaging" in said and f"{os.uname().machine}-linux" in said
    await wash(f"wash par create --vendor test --name other --version 1.0.0 --revision 1 --binary {PROVIDER} --destination other.par.gz --compress")
    assert "signature    right" in await wash(f"{TOP}/build/par inspect other.par.gz")


# ---------------------------------------------------------------- README.md

async def test_readme(world, host, wash):
    """Its lines, typed one after the other, and the component answers; wash shows what runs, and ends it."""
    for line in lines(world):
        await wash(line)
    await answers(world, "orders.new")
    await answers(world, "jobs")
    assert [len(world.server.subscribers(world.s(subject))) for subject in ("orders.>", "jobs")] == [1, 1]
    [inventory] = json.loads(await wash("wash get inventory --output json"))["inventories"]
    assert [(one["id"], one["image_ref"].removeprefix("file://")) for one in inventory["providers"]] == [(KEY, str(ARCHIVE))]
    assert len(json.loads(await wash("wash get links --output json"))["links"]) == 2
    pid = host.provider()
    await wash(f"wash stop provider {KEY}")
    await until(lambda: gone(pid), "the provider has ended")


async def test_readme_in_one_go(world, host, wash):
    """The same as a script: no link is put too early for a provider that has only just started."""
    await wash("set -e\n" + "\n".join(lines(world)))
    await answers(world, "orders.new")


async def test_wash_up(world, tmp_path, wash):
    """The host of `wash up` loads files."""
    await wash(f"wash up --detached --disable-wadm --multi-local --host-path {HOST} --wasmcloud-version 1.9.2", TMPDIR=str(tmp_path),
               WASMCLOUD_NATS_HOST="127.0.0.1", WASMCLOUD_NATS_PORT=str(world.server.port), WASMCLOUD_SECRETS_TOPIC=SECRETS,
               WASMCLOUD_OCI_ALLOWED_INSECURE="none")
    [file] = tmp_path.rglob("*.pid")
    pid = json.loads(file.read_text())["pid"]

    async def listens():
        return (await wash.run("wash get inventory"))[0] == 0
    try:
        await until(listens, "the host listens", PATIENCE)
        await wash(f"wash start provider file://{ARCHIVE} {KEY}")
        await wash("wash down --all")
        await until(lambda: gone(pid), "the host has ended")
    finally:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


async def test_file_load_is_refused(world, tmp_path, wash):
    """Other hosts load files only if they are told so."""
    host = await Host(world).begin(tmp_path, ALLOW_FILE_LOAD="false")
    try:
        said = await wash.fails(f"wash start provider file://{ARCHIVE} {KEY}")
        assert "unable to start provider from file" in said
        assert host.provider() is None
    finally:
        await host.stop()


# ---------------------------------------------------------------- the table in devel/package/README.md

async def test_config_put_alone(world, host, wash):
    """A running link keeps what it had until it is put again; and a new name does it as well."""
    await started(wash, world)
    await wash(config(world, "nats", subscriptions=world.s("other")))
    await asyncio.sleep(QUIET)
    assert world.server.subscribers(world.s("in")) and not world.server.subscribers(world.s("other"))
    await wash(handler())
    await answers(world, "other")
    await world.unsubscribed(world.s("in"))
    await wash(config(world, "nats-2", subscriptions=world.s("third")))
    await wash(handler("nats-2"))
    await answers(world, "third")
    await world.unsubscribed(world.s("other"))


async def test_own_config(world, host, wash):
    """A new value in the provider's own configuration reaches it at once, and the links that have their defaults from there."""
    await wash(config(world, "nats-defaults", subscriptions=world.s("in")))
    await wash(f"wash start provider file://{ARCHIVE} {KEY} --config nats-defaults")
    await wash(handler().partition(" --source-config")[0])
    await wash(consumer().partition(" --target-config")[0])
    await answers(world, "in")
    await wash(config(world, "nats-defaults", subscriptions=world.s("other")))
    await answers(world, "other")
    await world.unsubscribed(world.s("in"))


async def test_second_from_the_same_file(world, host, wash, tmp_path):
    """It is refused, as Text file busy, and the first goes on; from a copy of the file it starts."""
    await started(wash, world)
    pid = host.provider()
    assert "Text file busy" in await wash.fails(f"wash start provider file://{ARCHIVE} second")
    assert host.provider() == pid
    await answers(world, "in")
    copy = shutil.copy(ARCHIVE, tmp_path / "copy.par.gz")
    await wash(f"wash start provider file://{copy} second")
    await wash("wash stop provider second")
    await answers(world, "in")
    assert host.provider() == pid


@needs_registry
async def test_registry(world, host, wash, registry):
    """What was pushed starts by its name without a scheme. With oci:// it starts as well, but wash waits on, and fails."""
    image = f"{registry}/messaging-nats:1.0.0"
    push(image)
    began = time.monotonic()
    said = await wash.fails(f"wash start provider oci://{image} {KEY} --timeout-ms 8000")
    assert time.monotonic() - began > 8 and "Timed out waiting for" in said
    assert host.provider()
    await wash(f"wash stop provider {KEY}")
    assert not host.provider()
    began = time.monotonic()
    await wash(f"wash start provider {image} {KEY}")
    print(f"wash start provider took {time.monotonic() - began:.1f} s")
    await wash(config(world, "nats", subscriptions=world.s("in")))
    await wash(handler())
    await wash(consumer())
    await answers(world, "in")


@needs_registry
async def test_registry_without_tls(world, tmp_path, wash, registry):
    """A host that was not told so wants TLS of a registry."""
    host = await Host(world).begin(tmp_path)
    try:
        image = f"{registry}/messaging-nats:1.0.0"
        push(image)
        said = await wash.fails(f"wash start provider {image} {KEY}")
        assert f"https://{registry}" in said
        assert host.provider() is None
    finally:
        await host.stop()


@needs_registry
async def test_latest(world, host, wash, registry):
    """Hosts refuse this tag."""
    image = f"{registry}/messaging-nats:latest"
    push(image)
    assert "latest" in await wash.fails(f"wash start provider {image} {KEY}")
    assert host.provider() is None


# ---------------------------------------------------------------- with wadm

@needs_wadm
async def test_app_deploy(world, empty_host, wadm, wash, tmp_path):
    """wadm.yaml is deployed by wash. Its link changes by a configuration of another name, not by that of the same name."""
    manifest, text = tmp_path / "wadm.yaml", adapted(world)

    async def deploy(version, subject, name="echo-source"):
        manifest.write_text(text.replace("v0.1.0", version).replace("orders.>", f"{subject}.>").replace("name: echo-source", f"name: {name}"))
        await wash(f"wash app deploy {manifest}")
    await deploy("v0.1.0", world.s("orders"))
    await answers(world, "orders.new")
    await deploy("v0.2.0", world.s("bills"))
    await asyncio.sleep(10 * SLOW)
    assert world.server.subscribers(world.s("orders.>")) and not world.server.subscribers(world.s("bills.>"))
    await deploy("v0.3.0", world.s("bills"), "echo-source-2")
    await answers(world, "bills.new")
