# SPDX-License-Identifier: Apache-2.0
"""The process: its standard descriptors, who started it, and what others may see of it."""
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lattice import DEADLINE, PROVIDER, RUN, environment, golden_host_data, until
from peers import Peer, greet
from servers import Accounts, tls_block


async def shell(script, *args, stdin=b"", **how):
    """Runs a line of sh in which "$@" is the provider with these arguments. Gives its process, which has read stdin."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", script, "sh", *RUN, PROVIDER, *map(str, args), env=environment({"PATH": os.environ["PATH"]}),
        stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **how)
    process.stdin.write(stdin)
    process.stdin.close()
    return process


def line(data):
    return base64.b64encode(json.dumps(data).encode()) + b"\r\n"


# ---------------------------------------------------------------- descriptors 0 to 2

@pytest.mark.smoke
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "2</dev/null"], ids=["stderr", "both", "stderr read-only"])
async def test_no_log_line_reaches_a_server(world, closed):
    """Whatever is closed when it starts: on a NATS connection there is nothing but NATS."""
    got = bytearray()

    async def script(peer, reader, writer):
        inner = reader.readline

        async def readline():
            text = await inner()
            got.extend(text)
            return text
        reader.readline = readline
        await greet(reader, writer)
        while await readline():
            pass
    peer = await Peer(script).open()
    links = [world.host.consumer_link(url=peer.url)]
    data = {**world.host.data, "link_definitions": links, "log_level": "trace"}
    process = await shell(f'exec "$@" {closed}', stdin=line(data))
    try:
        await world.host.healthy()
        await until(lambda: got.count(b"SUB ") >= 1, "the link has subscribed")
        # lines for the log, once all connections stand
        await world.host.put(world.host.consumer_link("other", url="nats://127.0.0.1:1"))
        await world.host.unhealthy("other")
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), DEADLINE) == 0
        await peer.close()
    words = {text.split(b" ")[0] for text in bytes(got).splitlines()}
    assert words <= {b"CONNECT", b"PING", b"PONG", b"SUB", b"PUB", b"UNSUB", b""}, bytes(got)


@pytest.mark.smoke
async def test_without_standard_input():
    """There is no host data, and it says so."""
    process = await shell('exec "$@" <&-')
    out, err = await process.communicate()
    assert process.returncode == 1 and b"standard input" in err, err


@pytest.mark.parametrize("where", [">&-", ">/dev/full", "</dev/null >&-"])
@pytest.mark.parametrize("asked", ["--help", "--version", "--check"])
async def test_words_that_nobody_gets(tmp_path, asked, where):
    """What was asked for cannot be written: exit code 1, and why on stderr."""
    (tmp_path / "host").write_text(json.dumps(golden_host_data()))
    process = await shell(f'exec "$@" {where}', asked, *([tmp_path / "host"] if asked == "--check" else []))
    _, err = await process.communicate()
    assert process.returncode == 1 and b"standard output" in err, err


# ---------------------------------------------------------------- who started it

@pytest.mark.smoke
async def test_host_that_died_before_the_start(world, tmp_path):
    """The host ended before the program's first instruction: who has adopted it is not taken for the host."""
    os.mkfifo(tmp_path / "go")
    (tmp_path / "line").write_bytes(line(world.host.data))
    # The shell is the host: it ends while its child still waits to become the provider.
    script = f'(read go <{tmp_path}/go; exec "$@" <{tmp_path}/line 2>{tmp_path}/log) >/dev/null & echo $!'
    host = subprocess.run(["sh", "-c", script, "sh", *RUN, PROVIDER], env=environment(), stdout=subprocess.PIPE,
                          check=True, start_new_session=True)
    pidfd = os.pidfd_open(int(host.stdout))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        (tmp_path / "go").write_text("\n")
        await asyncio.wait_for(ended.wait(), DEADLINE)
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        if not ended.is_set():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    assert "the process that started it has ended" in (tmp_path / "log").read_text()


async def test_leader_of_its_session(world):
    """Who starts it in a session of its own is still its host."""
    provider = await world.start(prefix=("setsid",))
    assert not provider.log("has ended")


# ---------------------------------------------------------------- what others may see of it

@pytest.mark.skipif(bool(RUN), reason="the emulator's process is another")
async def test_nobody_looks_into_it(world):
    """No core dump, no debugger of the same user, no right to gain. In /proc what may be dumped is its user's, else root's."""
    provider = await world.start()
    assert provider.status("NoNewPrivs") == 1
    if os.geteuid() != 0:
        assert os.stat(f"/proc/{provider.pid}/mem").st_uid == 0
    else:
        drop = ("import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
                "os.execv(sys.argv[1], sys.argv[1:])")
        other = await world.start(prefix=(sys.executable, "-c", drop), ready=False)
        await other.wait_log("connected to")
        assert other.status("Uid") == 65534 and os.stat(f"/proc/{other.pid}/mem").st_uid == 0


def found(pid, words):
    """Which of these bytes stand in the memory of a process."""
    text = set()
    with open(f"/proc/{pid}/mem", "rb", 0) as mem, open(f"/proc/{pid}/maps") as maps:
        for area in maps:
            if re.match(r"\S+ r", area) and "[v" not in area:  # the kernel's own pages cannot be read so
                start, end = (int(at, 16) for at in area.split()[0].split("-"))
                mem.seek(start)
                data = mem.read(end - start)
                text |= {name for name, word in words.items() if word in data}
    return text


@pytest.mark.release
@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads another process's memory")
@pytest.mark.parametrize("given", ["at the start", "by put"])
async def test_secrets_are_wiped(worlds, servers, authority, given):
    """Secrets that were used, that a server refused, or that no server got: they are gone from memory with their links."""
    world = await worlds(servers())
    accounts = Accounts()
    jwt, seed = accounts.user()
    certificate, key = authority.issue("wiped")
    by_jwt = servers(accounts.config)
    by_password = servers("authorization { user: joe, password: PASSWORD-THAT-FITS }")
    by_tls = servers(tls_block(certificate, key, authority.ca_file))
    world.host.make_xkeys()

    def with_password(name, password, port):
        return world.host.consumer_link(name, url=f"nats://joe:{password}@127.0.0.1:{port}")
    pem = Path(key).read_text()
    links = [world.host.consumer_link("jwt", url=by_jwt.url, secrets={"client_jwt": jwt, "client_seed": seed}),
             world.host.consumer_link("tls", url=by_tls.url, tls_ca=authority.ca, tls_key=pem,
                                      tls_cert=Path(certificate).read_text()),
             with_password("fits", "PASSWORD-THAT-FITS", by_password.port),
             with_password("wrong", "PASSWORD-REFUSED", by_password.port),
             with_password("absent", "PASSWORD-TOLD-NOBODY", 1)]
    words = {"seed": seed.encode(), "jwt": jwt.split(".")[2].encode(), "key": pem.split("\n")[2].encode(),
             "fits": b"PASSWORD-THAT-FITS", "refused": b"PASSWORD-REFUSED", "absent": b"PASSWORD-TOLD-NOBODY"}
    provider = await world.start(*(links if given == "at the start" else []), ready=False)
    if given == "by put":
        await world.host.health()
        await world.host.put(*links)
    for name in ("jwt", "tls", "fits"):
        await world.link_works(name)
    for name in ("wrong", "absent"):
        await world.host.unhealthy(name)
    assert {"seed", "fits"} <= found(provider.pid, words), "this test finds what is there"
    for link in links:
        await world.host.delete(link)
    await world.host.healthy()
    await until(lambda: provider.status("Threads") == 1, "the connecting threads have ended")
    await until(lambda: not found(provider.pid, words), "no secret is left")
