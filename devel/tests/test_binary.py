# SPDX-License-Identifier: Apache-2.0
"""The release binary itself: what it is linked from, how large it is, what memory it takes, where it runs."""
import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from lattice import PROVIDER, TOP, Provider, environment, until
from servers import tls_block

pytestmark = pytest.mark.release
CALLS = 10_000


def output(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def test_static():
    """Statically linked, stripped, and at most 2.15 MB."""
    text = output("file", PROVIDER)
    assert re.search("statically linked|static-pie", text), text
    assert "not stripped" not in text
    assert os.path.getsize(PROVIDER) <= 2_150_000


def test_no_openssl():
    """nats.c's TLS is mbedTLS: of OpenSSL nothing but ciphers is in the binary, and they ask no variable of the environment."""
    text = Path(PROVIDER).read_bytes()
    assert b"Mbed TLS" in text or b"mbedtls" in text.lower()
    for trace in (rb"OpenSSL \d\.\d", rb"crypto/(?!modes/gcm128)[a-z0-9_]+/[a-z0-9_]+\.c", rb"ssl/statem", rb"OPENSSL_(ia32|arm)cap"):
        assert not re.search(trace, text), trace


def test_no_paths_of_the_builder():
    """Nothing in it depends on where it was built."""
    assert str(TOP).encode() not in Path(PROVIDER).read_bytes()


# ---------------------------------------------------------------- memory

async def test_idle_memory(world):
    """Idle with two links: at most 2.5 MB resident, and one thread."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in")), world.host.consumer_link())
    await until(lambda: provider.status("Threads") == 1, "the connecting threads have ended")
    print(f"idle with two links: {provider.status('VmRSS')} kB resident, {provider.status('Threads')} threads")
    assert provider.status("VmRSS") <= 2560


async def test_system_calls_of_the_start(world, tmp_path):
    """From exec() until two links are up: no line of a server is read byte by byte, and for addresses no file about names."""
    trace = tmp_path / "trace"
    await world.start(world.host.handler_link(subscriptions=world.s("in")), world.host.consumer_link(), prefix=("strace", "-D", "-f", "-o", trace))
    calls = trace.read_text().splitlines()
    assert len(calls) < 500, len(calls)
    assert not re.search("resolv.conf|nsswitch.conf|urandom", "\n".join(calls))


async def test_large_bodies_are_read_where_they_belong(world, tmp_path):
    """Of a body of 1 MB only what comes with its line passes nats.c's read buffer (IO_BUFFER, 32 kB); the rest is read to its place."""
    provider = await world.start(world.host.consumer_link())
    echo = await world.echo()
    trace, body = tmp_path / "trace", os.urandom(1_000_000)
    strace = await asyncio.create_subprocess_exec("strace", "-f", "-e", "trace=recvfrom", "-o", trace, "-p", str(provider.pid),
                                                  stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    assert b"attached" in await asyncio.wait_for(strace.stderr.readline(), 30)
    answers = await world.nc.subscribe(world.s("out"))
    assert (await echo.publish(world.s("out"), body)).ok
    assert (await answers.next_msg(timeout=30)).data == body
    strace.send_signal(signal.SIGINT)
    await strace.communicate()
    straight = sum(int(n) for room, n in re.findall(r", (\d+), 0, NULL, NULL\) = (\d+)", trace.read_text()) if int(room) != 32768)
    assert straight > 900_000, straight


async def test_idle_memory_with_tls(servers, worlds, authority):
    """The same with TLS to both servers: what the records and certificates of three connections cost."""
    import ssl
    server = servers(tls_block(*authority.issue("memory")))
    world = await worlds(server, tls=ssl.create_default_context(cafile=str(authority.ca_file)))
    ca = {"tls_ca": authority.ca}
    provider = await world.start(world.host.handler_link(subscriptions="in", **ca), world.host.consumer_link(**ca), config={"lattice_tls_ca": authority.ca})
    print(f"idle with two links and TLS: {provider.status('VmRSS')} kB resident")
    assert provider.status("VmRSS") <= 4096


async def call_often(world, echo, count, at_once=50):
    """So many calls of each flow, some at once."""
    async def worker(number):
        for _ in range(number):
            assert (await echo.publish(world.s("out"), b"x" * 100)).ok
            assert (await echo.request(world.s("svc"), b"x" * 100)).ok
            assert await world.ask(world.s("in"), b"x" * 100) == b"x" * 100  # handle-message, and one more publish
    await asyncio.gather(*(worker(count // at_once) for _ in range(at_once)))


async def test_no_system_memory_after_the_start(world, tmp_path):
    """Through 10,000 calls of each flow, the process asks the kernel for no memory: no brk, no mmap."""
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in")), world.host.consumer_link())
    echo = await world.echo()
    await world.respond(world.s("svc"), lambda data: data)
    await call_often(world, echo, 200)
    trace = tmp_path / "trace"
    strace = await asyncio.create_subprocess_exec("strace", "-f", "-e", "trace=brk,mmap,mremap,munmap,madvise", "-o", trace, "-p", str(provider.pid),
                                                  stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    try:
        said = (await asyncio.wait_for(strace.stderr.readline(), 10)).decode()
        if "not permitted" in said or "denied" in said:
            pytest.skip("this machine lets nobody trace: " + said.strip())
        assert "attached" in said, said
        await call_often(world, echo, CALLS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            strace.send_signal(signal.SIGINT)
        await strace.communicate()
    calls = [line for line in trace.read_text().splitlines() if re.search(r"\b(brk|mmap|mremap|munmap|madvise)\(", line)]
    assert not calls, "\n".join(calls[:20])


@pytest.mark.skipif(os.geteuid() != 0, reason="the process lets only root see its descriptors")
async def test_no_leak_in_reconnects(world, servers):
    """A hundred lost connections leave no descriptor behind, and memory settles."""
    far = servers()
    provider = await world.start(world.host.consumer_link(url=far.url))

    def descriptors():
        return len(os.listdir(f"/proc/{provider.pid}/fd"))
    before = descriptors()
    for i in range(20):
        for link in (world.host.consumer_link(url=far.url, note=str(n)) for n in range(5)):
            await world.host.put(link)
            await world.host.healthy()
        if i == 4:
            rss = provider.status("VmRSS")
    await until(lambda: descriptors() <= before, "descriptors are closed")
    assert provider.status("VmRSS") <= rss + 200


# ---------------------------------------------------------------- elsewhere

@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
async def test_empty_chroot(world, tmp_path, authority, servers):
    """In a folder with nothing but /etc/hosts it runs and resolves a name; with a CA bundle beside it, the system's CAs count."""
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost lattice.example\n")
    (tmp_path / "etc/ssl/certs/ca-certificates.crt").write_text(authority.ca)
    shutil.copy(PROVIDER, tmp_path / "provider")
    far = servers(tls_block(*authority.issue("chroot", san="DNS:lattice.example")))
    links = world.host.consumer_link("plain", url=f"nats://lattice.example:{world.server.port}"), world.host.consumer_link("tls", url=f"tls://lattice.example:{far.port}")
    data = {**world.host.data, "lattice_rpc_url": f"nats://lattice.example:{world.server.port}", "link_definitions": list(links)}
    provider = Provider()
    provider.process = await asyncio.create_subprocess_exec(
        "chroot", tmp_path, "/provider", env=environment({"PATH": os.environ["PATH"]}), stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    world.providers.append(provider)
    provider.process.stdin.write(base64.b64encode(json.dumps(data).encode()) + b"\r\n")
    provider.process.stdin.close()
    provider.reader = asyncio.create_task(provider._read())
    await world.host.healthy()
    for name in ("plain", "tls"):
        assert (await (await world.component(name, serve=False)).publish(world.s("x"))).ok


def test_licences():
    """The licences of what is linked ship with it."""
    text = (Path(PROVIDER).parent / "LICENCES").read_text()
    for name in ("nats", "mbedtls", "sodium", "jansson", "libc"):
        assert name in text.lower(), name


@pytest.mark.parametrize("limit", ["INBOX_MAX=128", "LINKS_MAX=0", "LINKS_MAX=97", "CALLS_MAX=100", "MESSAGE_MAX=1023", "ID_MAX=256",
                                   "BACKLOG_MB=1", "THREAD_STACK=4096", "HOST_DATA_MAX=2097152", "ARENA_IN_TRANSIT=1"])
def test_limits_have_ranges(limit):
    """A limit of provider.h that is out of its range does not compile, and the compiler says the range."""
    done = subprocess.run(["gcc", "-fsyntax-only", "-xc", f"-D{limit}", str(TOP / "provider.h")], capture_output=True, text=True)
    assert done.returncode != 0 and limit.split("=")[0].replace("_MB", "_MAX") + " must be from " in done.stderr, done.stderr
    assert subprocess.run(["gcc", "-fsyntax-only", "-xc", str(TOP / "provider.h")]).returncode == 0
