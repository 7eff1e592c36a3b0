# SPDX-License-Identifier: Apache-2.0
"""A lattice in miniature: the provider's process, a host that controls it, and components that speak wRPC with it.

Nothing here knows how the provider works inside; it is driven as a real host drives it, over standard input and NATS.
PROVIDER is the binary under test, PROVIDER_RUN what it is started with (qemu-aarch64-static, say).
"""
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import nats
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

import wire
from servers import DEADLINE, SLOW, witnesses
from wire import Message

TOP = Path(__file__).resolve().parents[3]
GOLDEN = TOP / "devel/tests/golden"
PROVIDER = os.path.abspath(os.environ.get("PROVIDER") or TOP / "build/amd64/provider")
RUN = os.environ.get("PROVIDER_RUN", "").split()
OWN_MEMORY = "/san/" not in PROVIDER and not RUN  # else sanitizers keep what was freed, and an emulator what it translated
REFERENCE = bool(os.environ.get("REFERENCE"))  # wasmCloud's own provider is under test, to check the tests; see README.md

RACE = float(os.environ.get("RACE", 0))  # see Inboxes
LATE = 0.02  # seconds after which a late inbox is registered in any case: far more than a host's loop takes
KEY = "messaging-nats"
HANDLER = "wrpc.0.0.1.wasmcloud:messaging/handler@0.2.0.handle-message"
CONSUMER = "wrpc.0.0.1.wasmcloud:messaging/consumer@0.2.0"


def golden_host_data():
    return json.loads((GOLDEN / "hostdata-1.9.2.json").read_text())


def promised_kb(binary=PROVIDER, itself=True):
    """What provider.h reserves, and the binary itself, in kB."""
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"memory reserved: (\d+) kB", text).group(1)) + itself * (Path(binary).stat().st_size // 1024)


async def until(condition, what, timeout=DEADLINE):
    """Asks until the answer is yes, for states that nothing announces (a server's list of subscriptions)."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout:.0f} s: {what}"
        await asyncio.sleep(0.01)


async def quickest(limit, attempt, rounds=10):
    """Awaits attempt(), which gives how many seconds something took, until one is below the limit: what else the machine does only ever
    makes it longer."""
    took = []
    while not took or took[-1] >= limit:
        assert len(took) < rounds, f"not once within {limit:.2f} s: {took}"
        took.append(await attempt())


class TooLate(Exception):
    """The test itself took longer than the provider waits: what came of it says nothing."""


@contextlib.contextmanager
def within(seconds):
    """For what the provider waits for no longer than a fixed time: TooLate if this side needed more than these seconds of it."""
    end = time.monotonic() + seconds
    try:
        yield
    finally:
        if time.monotonic() > end:
            raise TooLate


async def in_time(steps, rounds=10):
    """Awaits steps(), and again if they came too late: see within()."""
    for _ in range(rounds - 1):
        with contextlib.suppress(TooLate):
            return await steps()
    return await steps()


async def flush(nc):
    """Waits until the server has all that this connection wrote.

    Not nc.flush(): its PING may overtake what nats-py still holds back. A message to oneself keeps its place.
    """
    echo = await nc.subscribe(nc.new_inbox())
    await nc.publish(echo.subject)
    await echo.next_msg(DEADLINE)
    await echo.unsubscribe()


# ---------------------------------------------------------------- the process

class Provider:
    """The provider's process and what it writes on stderr."""

    def __init__(self):
        self.process = self.reader = None
        self.lines = []
        self.news = asyncio.Condition()

    @classmethod
    async def start(cls, host_data, env=None, prefix=(), binary=PROVIDER):
        """Starts it as a host does: one line of base64 with CR LF, the pipe closed at once, an almost empty environment.

        host_data is the JSON value, or bytes to be written as they are.
        """
        self = cls()
        line = host_data if isinstance(host_data, bytes) else base64.b64encode(json.dumps(host_data).encode()) + b"\r\n"
        self.process = await asyncio.create_subprocess_exec(
            *prefix, *RUN, binary, env=environment(env),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, limit=2**22)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.process.stdin.write(line)
            await self.process.stdin.drain()
        self.process.stdin.close()
        self.reader = asyncio.create_task(self._read())
        witnesses.append(self)
        return self

    def __str__(self):
        return f"provider {self.pid}"

    async def _read(self):
        async for line in self.process.stderr:
            async with self.news:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self.news.notify_all()
        async with self.news:
            self.news.notify_all()

    @property
    def pid(self):
        return self.process.pid

    @property
    def running(self):
        return self.process.returncode is None

    def log(self, pattern):
        """The lines so far that match, in upper or lower case."""
        return [line for line in self.lines if re.search(pattern, line, re.I)]

    async def wait_log(self, pattern, timeout=DEADLINE, count=1):
        """Waits until that many lines match, and gives the last of them."""
        async def enough():
            async with self.news:
                await self.news.wait_for(lambda: len(self.log(pattern)) >= count or self.reader.done())
        try:
            await asyncio.wait_for(enough(), timeout)
        except asyncio.TimeoutError:
            pass
        assert len(self.log(pattern)) >= count, f"no line like {pattern!r} in:\n" + "\n".join(self.lines[-30:])
        return self.log(pattern)[-1]

    async def wait_exit(self, timeout=DEADLINE):
        """Waits for the end of the process, and gives its exit code."""
        code = await asyncio.wait_for(self.process.wait(), timeout)
        await self.reader
        return code

    def send_signal(self, how):
        """Sends it a signal, if it still runs. (send_signal() of asyncio may reap a process that has just ended, whose exit code is
        then "255": CPython's Popen.send_signal polls.)"""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, how)

    async def stop(self, how=signal.SIGTERM):
        """Ends it if it still runs; a provider that is asked to end has to, with code 0 and no complaint of a sanitizer."""
        self.send_signal(how)
        try:
            code = await self.wait_exit()
        except asyncio.TimeoutError:
            self.process.kill()
            await self.wait_exit()
            raise AssertionError("the provider did not end after SIGTERM:\n" + "\n".join(self.lines[-30:])) from None
        complaints = self.log(r"Sanitizer|runtime error:")
        assert not complaints, "\n".join(self.lines[self.lines.index(complaints[0]):])
        return code

    async def counts(self, pattern="counts:"):
        """What it answers to SIGUSR1 about the link whose line matches: {"received": 12, …}."""
        before = len(self.log(pattern))
        self.send_signal(signal.SIGUSR1)
        line = await self.wait_log(pattern, count=before + 1)
        return {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", line)}

    def cpu(self):
        """Seconds of a processor that it has had so far."""
        ticks = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def status(self, field):
        """A number of /proc/PID/status, such as VmRSS (kB) or Threads."""
        return int(re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text(), re.M).group(1))


def environment(extra=None):
    """What a host passes on: nothing but RUST_LOG. Sanitizers, if any, are told to end the process at the first error."""
    told = {name: os.environ[name] for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS") if name in os.environ}
    return {**told, **(extra or {})}


async def run_provider(*args, stdin=b"", env=None, timeout=DEADLINE):
    """Runs it to its end, and gives (exit code, stdout, stderr)."""
    process = await asyncio.create_subprocess_exec(
        *RUN, PROVIDER, *map(str, args), env=environment(env),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin), timeout)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        raise AssertionError(f"the provider still runs after {timeout} s") from None
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


# ---------------------------------------------------------------- the host

class Host:
    """Controls one provider as a wasmCloud host does. version is "1.9" or "1.0": the older one knows no xkeys, no config
    update, and writes less into a delete."""

    def __init__(self, nc, lattice, url, version="1.9", key=KEY):
        self.nc, self.lattice, self.url, self.version, self.key = nc, lattice, url, version, key
        self.data = golden_host_data()
        self.data.update(lattice_rpc_prefix=lattice, lattice_rpc_url=url, provider_key=key, link_definitions=[])
        self.put_id = key
        self.xkey = self.provider_xkey = None
        if version == "1.0":
            for name in ("host_xkey_public_key", "provider_xkey_private_key", "secrets", "otel_config"):
                del self.data[name]

    def make_xkeys(self):
        """Fresh xkeys for both sides; links are then put on the provider's public xkey."""
        self.use_xkeys(wire.XKey(), wire.XKey())

    def use_xkeys(self, host, provider):
        self.xkey, self.provider_xkey = host, provider
        self.put_id = provider.public
        self.data.update(host_xkey_public_key=host.public, provider_xkey_private_key=provider.seed)

    def seal(self, secrets):
        return self.xkey.seal(self.provider_xkey.public, secrets)

    # links

    def handler_link(self, component="echo", name="default", secrets=None, url=None, **config):
        """A link by which the provider invokes a component; keyword arguments are its configuration."""
        return self._link(self.key, component, name, "source", ["handler"], config, secrets, url)

    def consumer_link(self, component="echo", name="default", secrets=None, url=None, **config):
        """A link by which a component calls the provider."""
        return self._link(component, self.key, name, "target", ["consumer"], config, secrets, url)

    def _link(self, source, target, name, side, interfaces, config, secrets, url):
        if url != "":  # "" leaves the key to the defaults
            config.setdefault("cluster_uris", url or self.url)
        link = {"source_id": source, "target": target, "name": name, "wit_namespace": "wasmcloud", "wit_package": "messaging",
                "interfaces": interfaces, "source_config": {}, "target_config": {}, "source_secrets": None, "target_secrets": None}
        link[side + "_config"] = config
        link[side + "_secrets"] = self.seal(secrets) if isinstance(secrets, dict) else secrets
        return link

    # control

    def control(self, what):
        return f"wasmbus.rpc.{self.lattice}.{what}"

    async def put(self, *links):
        for link in links:
            await self.nc.publish(self.control(f"{self.put_id}.linkdefs.put"), json.dumps(link).encode())
        await flush(self.nc)

    async def delete(self, link):
        names = (["source_id", "wit_namespace", "wit_package"] if self.version == "1.0" else
                 ["source_id", "target", "name", "wit_namespace", "wit_package", "interfaces"])
        short = {name: link[name] for name in names}
        if self.version != "1.0":
            short.update(source_config={}, target_config={}, source_secrets=None, target_secrets=None)
        elif link["name"] != "default":
            short["name"] = link["name"]
        await self.nc.publish(self.control(f"{self.key}.linkdefs.del"), json.dumps(short).encode())
        await flush(self.nc)

    async def update_config(self, config):
        await self.nc.publish(self.control(f"{self.key}.config.update"), json.dumps(config).encode())
        await flush(self.nc)

    async def health(self, timeout=None):
        """The provider's answer, {"healthy": …}; waits for a provider that is still starting."""
        end = time.monotonic() + (timeout or DEADLINE)
        while True:
            try:
                reply = await self.nc.request(self.control(f"{self.key}.health"), b"", timeout=2 * SLOW)
                return json.loads(reply.data)
            except (NoRespondersError, NatsTimeout):
                assert time.monotonic() < end, "the provider does not answer when asked for its health"
                await asyncio.sleep(0.01)

    async def healthy(self, timeout=DEADLINE):
        """Waits until the provider says that the lattice and every link are connected."""
        answer, end = None, time.monotonic() + timeout
        while not (answer := await self.health(timeout))["healthy"]:
            assert time.monotonic() < end, f"not healthy: {answer.get('message')}"
            await asyncio.sleep(0.01)
        if REFERENCE:  # it says so at once, whatever its links do
            await asyncio.sleep(0.2)

    async def unhealthy(self, pattern, timeout=DEADLINE):
        """Waits until the provider says that it is not healthy, in words that match; gives them."""
        end = time.monotonic() + timeout
        while True:
            answer = await self.health()
            words = answer.get("message") or ""
            if not answer["healthy"] and re.search(pattern, words, re.I):
                return words
            assert time.monotonic() < end, f"health should say {pattern!r}, and it says {answer}"
            await asyncio.sleep(0.01)

    async def shutdown(self, host_id=None, timeout=DEADLINE):
        """Orders the provider to end, and gives its answer."""
        order = json.dumps({"host_id": host_id or self.data["host_id"]}).encode()
        return (await self.nc.request(self.control(f"{self.key}.default.shutdown"), order, timeout=timeout)).data


# ---------------------------------------------------------------- components

class Trap(Exception):
    """Raised by a handler: the component's instance ends without a result."""


class Inboxes:
    """Reply subjects under one wildcard subscription, as wRPC has them.

    With a race (a chance; RACE in the environment is that of all tests) as many new inboxes are late: what comes to one before it is
    registered is dropped. As in hosts of 1.4.1 to 1.9 (wrpc-transport-nats, Client::new), a coin decides for each message, of this call or
    to no inbox, whether the registration comes before it. (There each call has a client of its own.)
    """

    def __init__(self, nc, race=None):
        self.nc, self.prefix, self.count, self.queues = nc, nc.new_inbox(), 0, {}
        self.race = RACE if race is None else race
        self.late, self.dropped = set(), 0

    async def open(self):
        await self.nc.subscribe(self.prefix + ".>", cb=self._route)

    def new(self):
        """A fresh reply subject, and the queue that gets (what follows in the subject, message)."""
        self.count += 1
        queue = self.queues[str(self.count)] = asyncio.Queue()
        if random.random() < self.race:
            self.late.add(str(self.count))
            asyncio.get_running_loop().call_later(LATE, self.late.discard, str(self.count))
        return f"{self.prefix}.{self.count}", queue

    def register(self, subject):
        self.late.discard(subject.rsplit(".", 1)[1])

    def drop(self, subject):
        self.queues.pop(subject.rsplit(".", 1)[1], None)

    async def _route(self, msg):
        token, _, rest = msg.subject[len(self.prefix) + 1:].partition(".")
        if self.late and token not in self.queues and random.random() < 0.5:
            self.late.clear()
        if token in self.late and random.random() < 0.5:
            self.late.discard(token)
        if token in self.late:
            self.dropped += 1
        elif token in self.queues:
            self.queues[token].put_nowait((rest, msg))


class Component:
    """A component and the host it runs on, as far as the provider can see them.

    style "1.9": after the parameters comes an empty message, and one call's parameters are read to that end before the next
    handshake is answered. style "1.0": no empty messages, traps are told on Rc.error, handshakes echo the headers.
    """

    def __init__(self, nc, lattice, name="echo", key=KEY, style="1.9", race=None):
        self.nc, self.lattice, self.name, self.key, self.style = nc, lattice, name, key, style
        self.inboxes = Inboxes(nc, race if style == "1.9" else 0)
        self.received = asyncio.Queue()  # every Message handled
        self.invocations = asyncio.Queue()  # with serve(by_hand=True): what nobody has answered yet
        self.tasks = set()
        self.subscription = None

    async def open(self):
        await self.inboxes.open()
        await flush(self.nc)
        return self

    # calls to the component

    @property
    def subject(self):
        return f"{self.lattice}.{self.name}.{HANDLER}"

    async def serve(self, handler=None, by_hand=False, gate=None):
        """Handles messages with handler(message), which returns None or the words of an error result, or raises Trap.

        by_hand: calls wait in .invocations for the test to answer. gate: an event that handshakes wait for.
        """
        self.handler, self.by_hand, self.gate = handler, by_hand, gate
        group = f"{self.lattice}.{self.name}" if self.style == "1.9" else ""
        self.subscription = await self.nc.subscribe(self.subject, queue=group, cb=self._invoked)
        await flush(self.nc)
        return self

    async def close(self):
        """Nobody runs the component any more."""
        await self.subscription.unsubscribe()
        await flush(self.nc)

    async def next(self, timeout=DEADLINE):
        """The next message handled."""
        try:
            return await asyncio.wait_for(self.received.get(), timeout)
        except asyncio.TimeoutError:
            raise AssertionError(f"no message came to {self.name}") from None

    async def invocation(self, timeout=DEADLINE):
        """The next call that the test has to answer by hand."""
        try:
            return await asyncio.wait_for(self.invocations.get(), timeout)
        except asyncio.TimeoutError:
            raise AssertionError(f"{self.name} was not called") from None

    async def _invoked(self, msg):
        call = Invocation(self, msg)
        if self.by_hand:
            self.invocations.put_nowait(call)
        elif self.style == "1.9":
            if self.gate:
                await self.gate.wait()
            await call.handshake()
            await call.params()
            self._spawn(self._handle(call))
        else:
            self._spawn(self._accept_and_handle(call))

    async def _accept_and_handle(self, call):
        if self.gate:
            await self.gate.wait()
        await call.handshake()
        await call.params()
        await self._handle(call)

    async def _handle(self, call):
        self.received.put_nowait(call.message)
        try:
            words = await self.handler(call.message) if self.handler else None
        except Trap as trap:
            await call.trap(str(trap))
        else:
            await call.answer(words)

    def _spawn(self, work):
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # calls of the component

    async def call(self, function, params, **how):
        """Calls the provider; see Call.start for how. Gives the Call, ended."""
        call = await self.start(function, params, **how)
        await call.finish()
        return call

    async def start(self, function, params, **how):
        """Calls the provider, and gives the Call in flight."""
        call = Call(self, function, params)
        await call.start(**how)
        return call

    async def publish(self, subject, body=b"", reply_to=None, **how):
        return await self.call("publish", wire.broker_message(subject, body, reply_to), **how)

    async def request(self, subject, body=b"", timeout_ms=2000, **how):
        return await self.call("request", wire.request_params(subject, body, timeout_ms), **how)


class Invocation:
    """One call of handle-message, from the component's side."""

    def __init__(self, component, msg):
        self.component, self.nc = component, component.nc
        self.rc, self.headers, self.data = msg.reply, dict(msg.headers or {}), bytes(msg.data)
        self.message = None
        self.rs, self.queue = component.inboxes.new()
        self.chunks = []  # what came to Rs.params, the closing empty message included

    async def handshake(self):
        echoed = self.headers if self.component.style == "1.0" else None
        await self.nc.publish(self.rc, b"", reply=self.rs, headers=echoed)

    async def params(self, timeout=DEADLINE):
        """Reads the parameters to their end, which on a 1.9 host is the closing empty message. (A real one reads on only until they
        are whole: wrpc-transport, serve_values. So does one with a race, which may drop the end.)"""
        while True:
            try:
                self.message = wire.Reader(self.data).message()
                self.message.headers = self.headers
                if self.component.style == "1.0" or self.component.inboxes.race or self.chunks and not self.chunks[-1]:
                    return self.message
            except wire.Incomplete:
                assert not self.chunks or self.chunks[-1], "the parameters were closed before they were whole"
            rest, msg = await asyncio.wait_for(self.queue.get(), timeout)
            assert rest == "params", rest
            self.chunks.append(bytes(msg.data))
            self.data += msg.data

    async def answer(self, words=None):
        """Sends the result: ok, or an error in words."""
        await self.send(b"\0" if words is None else b"\1" + wire.blob(words))

    async def send(self, data):
        """Sends these bytes as the result, in chunks, and the closing empty message that 1.0 leaves out."""
        size = self.nc.max_payload
        for at in range(0, len(data), size):
            await self.nc.publish(self.rc + ".results", data[at:at + size])
        if self.component.style == "1.9":
            await self.nc.publish(self.rc + ".results", b"")
        self.component.inboxes.drop(self.rs)

    async def trap(self, words="unreachable"):
        if self.component.style == "1.9":
            await self.nc.publish(self.rc + ".results", b"")
        else:
            await self.nc.publish(self.rc + ".error", wire.blob(words))
        self.component.inboxes.drop(self.rs)


class Call:
    """One call of consumer.publish or consumer.request, from the component's side."""

    def __init__(self, component, function, params):
        self.component, self.nc, self.function, self.params = component, component.nc, function, params
        self.rc, self.queue = component.inboxes.new()
        self.rs = None  # the provider's side, known from its handshake
        self.results = b""
        self.repeated = 0  # handshakes
        self.frames = []  # what the provider sent: (what follows Rc, data)
        self.ok = None  # True: an ok result, its value in .value; False: an error result, its words in .value
        self.failed = False  # the call failed: no result at all
        self.error = None  # the words on Rc.error

    async def start(self, link_name="default", headers=None, first=None):
        """Publishes the call with as many bytes of the parameters as fit, or with `first`."""
        all_headers = {"source-id": self.component.name, **(headers or {})}
        if self.component.style == "1.9" and link_name is not None:
            all_headers["link-name"] = link_name
        else:
            self.component.inboxes.register(self.rc)  # hosts that have the race give a name
        if first is None:
            block = 12 + sum(len(k) + len(v) + 4 for k, v in all_headers.items())
            first = self.nc.max_payload - len(self.rc) - block
        self.rest = self.params[first:]
        await self.nc.publish(f"{self.component.lattice}.{self.component.key}.{CONSUMER}.{self.function}",
                              self.params[:first], reply=self.rc, headers=all_headers)

    async def handshake(self, timeout=DEADLINE):
        """Waits for the provider's empty message with its reply subject, without which a caller goes no further."""
        held = []
        while not self.rs:
            rest, msg = await self._next("a handshake", timeout)
            if rest:
                held.append((rest, msg))  # the result came first
                continue
            status = (msg.headers or {}).get("Status")
            assert not status, f"status {status}: nobody serves this call"
            assert msg.reply and not msg.data, f"a handshake is empty and has a reply subject: {msg}"
            self.rs = msg.reply
            self.frames.append(("", b""))
        for item in held:
            self.queue.put_nowait(item)

    async def send_rest(self, closing=True):
        """Sends what is left of the parameters, and the empty message of a 1.9 host."""
        size = self.nc.max_payload
        for at in range(0, len(self.rest), size):
            await self.nc.publish(self.rs + ".params", self.rest[at:at + size])
        if closing and self.component.style == "1.9":
            await self.nc.publish(self.rs + ".params", b"")

    async def result(self, timeout=DEADLINE):
        """Reads to the end of the result: a closing empty message on 1.9; what decodes or Rc.error on 1.0."""
        while True:
            rest, msg = await self._next("a result", timeout)
            data = bytes(msg.data)
            if not rest and not data and msg.reply == self.rs:
                self.repeated += 1
                continue
            if rest == "results" and data and data == self.results:
                continue  # it follows each handshake; a host reads no further than it must
            self.frames.append((rest, data))
            if rest == "results":
                self.results += data
                if self.component.style == "1.9":
                    if not data:
                        break
                elif self._decode():
                    break
            elif rest == "error":
                self.error = wire.Reader(data).string()
                if self.component.style == "1.0":
                    self.failed = True
                    break
            else:
                raise AssertionError(f"unexpected {rest!r} {data[:40]!r}")
        self.failed = self.failed or not self.results
        if not self.failed:
            assert self._decode(), f"the result was closed before it was whole: {self.results[:40]!r}"
            self.component.inboxes.drop(self.rc)
        return self

    async def failed_in_both_forms(self, timeout=DEADLINE):
        """True when the call failed as 1.9 hosts (an empty result) and as 1.0 hosts (words on Rc.error) understand it."""
        def forms():
            return {rest for rest, data in self.frames if rest == "error" or rest == "results" and not data}
        while self.failed and not self.component.inboxes.race and forms() != {"error", "results"}:  # with a race, the words may be lost
            rest, msg = await self._next("the other form of a failed call", timeout)
            self.frames.append((rest, bytes(msg.data)))
        return self.failed

    async def finish(self, timeout=DEADLINE):
        await self.handshake(timeout)
        await self.send_rest()
        return await self.result(timeout)

    def _decode(self):
        reader = wire.Reader(self.results)
        try:
            self.ok, self.value = reader.result(reader.message if self.function == "request" else lambda: None)
        except wire.Incomplete:
            return False
        assert reader.at == len(self.results), "bytes after the result"
        return True

    async def _next(self, what, timeout):
        try:
            return await asyncio.wait_for(self.queue.get(), timeout)
        except asyncio.TimeoutError:
            raise AssertionError(f"{self.function}: {what} never came") from None

    def __repr__(self):
        return f"<{self.function}: " + ("failed" if self.failed else "no result" if self.ok is None else
                                        f"{'ok' if self.ok else 'error'} {str(self.value)[:200]!r}") + ">"


# ---------------------------------------------------------------- all of it together

class World:
    """One lattice of its own on a nats-server, with a host, a provider, components and somebody outside.

    Tests share servers, so a world has a lattice prefix of its own, and s("x") makes subjects of its own.
    """
    count = 0

    def __init__(self, server, **connect):
        World.count += 1
        self.server, self.lattice = server, f"L{os.getpid()}x{World.count}"
        self.connect_options = connect
        self.providers, self.clients, self.components = [], [], []
        self.host = self.nc = self.provider = None

    async def open(self, version="1.9"):
        self.nc = await self.client(self.server, **self.connect_options)
        self.host = Host(self.nc, self.lattice, self.server.url, version)
        return self

    async def client(self, server=None, **options):
        """A connection to a server, closed with the world."""
        server = server or self.server
        options.setdefault("max_reconnect_attempts", -1)
        options.setdefault("reconnect_time_wait", 0.05)
        options.setdefault("pending_size", 2**26)
        nc = await nats.connect(server.url, error_cb=_quiet, **options)
        self.clients.append(nc)
        return nc

    async def start(self, *links, env=None, ready=True, prefix=(), binary=PROVIDER, **host_data):
        """Starts a provider with these links in its host data; ready: and waits until all of them are connected."""
        data = {**self.host.data, "link_definitions": list(links), **host_data}
        provider = await Provider.start(data, env, prefix, binary)
        self.providers.append(provider)
        self.provider = self.provider or provider
        if ready:
            await self.host.healthy()
            await self.subscribed(*links)
        return provider

    async def put(self, *links):
        """Puts links, and waits until they are connected."""
        await self.host.put(*links)
        await self.host.healthy()
        await self.subscribed(*links)

    async def subscribed(self, *links):
        """Waits until this server has the subscriptions of these links."""
        for link in links:
            config = link["source_config"]
            if config.get("cluster_uris", self.server.url) == self.server.url:
                for subject in filter(None, config.get("subscriptions", "").split(",")):
                    await until(lambda: self.server.subscribers(subject.split("|")[0].strip()), f"subscribed to {subject}")

    async def unsubscribed(self, subject):
        await until(lambda: not self.server.subscribers(subject), f"nobody subscribed to {subject}")

    async def component(self, name="echo", handler=None, style=None, serve=True, nc=None, race=None, **how):
        style = style or self.host.version
        component = await Component(nc or self.nc, self.lattice, name, self.host.key, style, race).open()
        if serve:
            await component.serve(handler, **how)
        self.components.append(component)
        return component

    async def echo(self, name="echo", style=None):
        """A component that publishes each message to its reply subject."""
        async def handler(message):
            if message.reply_to:
                call = await component.publish(message.reply_to, message.body)
                return None if call.ok else str(call)
        component = await self.component(name, handler, style)
        return component

    async def ask(self, subject, body=b"hello", timeout=DEADLINE, nc=None):
        """A request from outside; gives the reply's body."""
        return bytes((await (nc or self.nc).request(subject, body, timeout=timeout)).data)

    async def link_works(self, component):
        """Waits until this component can publish over its link, whatever the other links do."""
        await self.host.health()
        component = await self.component(component, serve=False)

        async def publishes():
            return (await component.publish(self.s("check"))).ok
        await until(publishes, f"{component.name} can publish")

    async def listen(self, subject, nc=None):
        """Subscribes somebody outside; next_msg(timeout) gives what comes."""
        nc = nc or self.nc
        subscription = await nc.subscribe(subject)
        await flush(nc)
        return subscription

    async def respond(self, subject, answer, nc=None):
        """Somebody outside answers requests with answer(body), or with the message that it returns."""
        async def reply(msg):
            await msg.respond(answer(msg.data))
        await (nc or self.nc).subscribe(subject, cb=reply)
        await flush(nc or self.nc)

    def s(self, name):
        return f"{self.lattice}s.{name}"

    async def close(self):
        """Ends everything; a provider that does not end properly fails the test."""
        problems = []
        for provider in self.providers:
            try:
                code = await provider.stop()
                if code and not REFERENCE:
                    problems.append(f"exit code {code}:\n" + "\n".join(provider.lines[-30:]))
            except AssertionError as e:
                problems.append(str(e))
        for component in self.components:
            for task in list(component.tasks):
                task.cancel()
        for nc in self.clients:
            with contextlib.suppress(Exception, asyncio.CancelledError):  # nats-py's own, when its server has gone
                await asyncio.wait_for(nc.close(), 5)
        assert not problems, "\n".join(problems)


async def _quiet(_error):
    """Errors of the harness's own connections show in what does not come."""
