# SPDX-License-Identifier: Apache-2.0
"""What a process does while nobody asks anything of it: how often it wakes, and its CPU time."""
import asyncio
import contextlib
import re
from pathlib import Path

SECONDS = 60
SETTLE = 4  # connecting threads have ended, and the server has asked each new connection for a PONG, after 2 s


def activity(pid):
    """(how often its threads have gone to sleep so far, their CPU time in ms), as the kernel counts them."""
    switches, ns = 0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        switches += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.M).group(1))
        ns += int((task / "schedstat").read_text().split()[0])
    return switches, ns / 1e6


async def measure_idle(place, setting, seconds=SECONDS):
    """name → {"wakes", "cpu_ms"} of so many seconds with two idle links, keep-alive included; of all binaries at a time."""
    async with contextlib.AsyncExitStack() as stack:
        runs = [await stack.enter_async_context(place.running(binary, setting, True, True)) for binary in place.binaries]
        await asyncio.sleep(SETTLE)
        before = [activity(run.process.pid) for run in runs]
        await asyncio.sleep(seconds)
        after = [activity(run.process.pid) for run in runs]
    return {run.binary.name: {"wakes": b[0] - a[0], "cpu_ms": b[1] - a[1]} for run, a, b in zip(runs, before, after)}
