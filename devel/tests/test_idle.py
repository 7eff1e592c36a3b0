# SPDX-License-Identifier: Apache-2.0
"""An idle provider sleeps: nothing wakes it but what is due, and what is due does."""
import asyncio
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from lattice import DEADLINE, PROVIDER, RUN, SLOW, TOP, environment, quickest, until
from test_process import line

sys.path.append(str(TOP / "devel/bench"))
from idle import activity  # noqa: E402

PING = 2


@pytest.mark.release
async def test_what_is_due_wakes_it(world):
    """Four idle connections that came up at different times: a ping interval wakes it once, and each answer may do so, and nothing else."""
    ping = {"ping_interval_sec": str(PING)}
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in"), **ping), config={"lattice_ping_interval_sec": str(PING)})
    for name in "one", "two":
        await asyncio.sleep(PING / 5)  # at different times
        await world.put(world.host.consumer_link(name, **ping))
    await until(lambda: provider.status("Threads") == 1, "the connecting threads have ended")
    await asyncio.sleep(3)  # the server pings each new connection, after 2 s
    before, began = activity(provider.pid)[0], time.monotonic()
    await asyncio.sleep(2.4 * PING)  # that it sleeps is what is tested
    woken = activity(provider.pid)[0] - before
    assert woken <= math.ceil((time.monotonic() - began) / PING) * (1 + 4)


async def test_lines_held_back_are_counted(world):
    """How many lines were held back is in the log when their time is over, though nothing else happens."""
    async def fail(_message):
        return "no such order"
    provider = await world.start(world.host.handler_link(subscriptions=world.s("in")))
    await world.component(handler=fail)
    for _ in range(9):
        await world.nc.publish(world.s("in"), b"x")
    await provider.wait_log("4 more lines like this in 5 s: .*no such order", timeout=min(6 + DEADLINE, 25))  # a keep-alive comes after 30 s


HOST = """
import signal, subprocess, sys, threading
def start():
    global child
    child = subprocess.Popen(sys.argv[1:], stdin=sys.stdin, stdout=subprocess.DEVNULL)
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(child.pid, flush=True)
signal.sigwait({signal.SIGTERM})
"""


async def test_host_that_ends(world, tmp_path):
    """The host is a process, not the thread that started us; though all signals are blocked by it, its end is noticed at once."""
    await quickest(1.5 * SLOW, lambda: seconds_without_host(world, tmp_path))  # before the server asks for its first PONG, which wakes it, too


async def seconds_without_host(world, tmp_path):
    (tmp_path / "line").write_bytes(line(world.host.data))
    with open(tmp_path / "line") as given, open(tmp_path / "log", "w") as log:
        host = await asyncio.create_subprocess_exec(sys.executable, "-c", HOST, *RUN, PROVIDER, env=environment(), stdin=given,
                                                    stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    pidfd = os.pidfd_open(int(await host.stdout.readline()))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await world.host.healthy()
        assert not ended.is_set(), "the thread that started it has ended, not the host"
        await world.host.healthy()
        host.kill()
        began = time.monotonic()
        await asyncio.wait_for(ended.wait(), DEADLINE)
        took = time.monotonic() - began
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        if not ended.is_set():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        await host.wait()
    assert "the process that started it has ended" in (tmp_path / "log").read_text()
    return took
