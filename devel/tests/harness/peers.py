# SPDX-License-Identifier: Apache-2.0
"""Peers that misbehave where nats-server cannot: servers of our own, and relays that cut, hold, change or check what passes."""
import asyncio
import contextlib
import json
import re

INFO = {"server_id": "PEER", "server_name": "peer", "version": "2.9.10", "proto": 1, "host": "127.0.0.1", "port": 4222,
        "headers": True, "max_payload": 1048576, "client_id": 1, "client_ip": "127.0.0.1"}


def info(**changes):
    """An INFO line; a value of None leaves the field out."""
    fields = {name: value for name, value in {**INFO, **changes}.items() if value is not None}
    return b"INFO " + json.dumps(fields).encode() + b"\r\n"


class Listener:
    """Accepts connections on a free loopback port; serve(reader, writer) is what a subclass does with each."""

    async def open(self):
        self.tasks, self.accepted = set(), 0
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**22)
        self.address = "127.0.0.1:%d" % self.server.sockets[0].getsockname()[1]
        self.url = "nats://" + self.address
        return self

    async def _accept(self, reader, writer):
        self.accepted += 1
        self.tasks.add(asyncio.current_task())
        try:
            await self.serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError, OSError):
            pass  # the other side has had enough of us
        except asyncio.CancelledError:
            pass  # close()
        finally:
            writer.close()
            self.tasks.discard(asyncio.current_task())

    async def close(self):
        self.server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Peer(Listener):
    """A server that follows a script: script(peer, reader, writer) for each connection."""

    def __init__(self, script):
        self.script = script

    async def serve(self, reader, writer):
        await self.script(self, reader, writer)


async def say(writer, data):
    writer.write(data)
    await writer.drain()


async def hold(reader):
    """Reads on and says nothing, until the other side closes. Gives what it read."""
    data = b""
    while chunk := await reader.read(65536):
        data = (data + chunk)[-65536:]
    return data


async def greet(reader, writer, **changes):
    """The part of an honest NATS server until the connection stands; gives the sid of the client's inbox, and its subject."""
    await say(writer, info(**changes))
    while not (await reader.readline()).startswith(b"PING"):
        pass
    await say(writer, b"PONG\r\n")
    while True:
        line = (await reader.readline()).split()
        if not line:
            raise ConnectionError
        if line[0] == b"SUB":
            return line[-1], line[1].removesuffix(b">")


# ---------------------------------------------------------------- relays

class Relay(Listener):
    """Stands before a server, and passes on what the server says through `change(data)`, which may give less, or None for
    an end of the connection. `towards` does the same with what the client says."""

    def __init__(self, address, change=lambda data: data, towards=lambda data: data):
        self.upstream, self.change, self.towards = address, change, towards

    async def serve(self, reader, writer):
        host, port = self.upstream.rsplit(":", 1)
        up_reader, up_writer = await asyncio.open_connection(host, int(port), limit=2**22)
        try:
            done, rest = await asyncio.wait([asyncio.create_task(self._pump(reader, up_writer, self.towards)),
                                             asyncio.create_task(self._pump(up_reader, writer, self.change))],
                                            return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.gather(*done, *rest, return_exceptions=True)
        finally:
            up_writer.close()

    async def _pump(self, reader, writer, change):
        while data := await reader.read(65536):
            data = change(data)
            if data is None:
                return
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()


class Stuck(Relay):
    """A path by which nothing goes to the server, from the first subscription on until `goes_on`."""

    def __init__(self, address):
        super().__init__(address)
        self.goes_on = asyncio.Event()

    async def _pump(self, reader, writer, change):
        while data := await reader.read(65536):
            if change is self.towards and b"SUB " in data:
                await self.goes_on.wait()
            writer.write(data)


# ---------------------------------------------------------------- the protocol, checked byte by byte

SUBJECT = rb"[^\s.\x00-\x20\x7f]+(?:\.[^\s.\x00-\x20\x7f]+)*"
LINES = re.compile(rb"(?:CONNECT \{.*\}|PING|PONG|SUB " + SUBJECT + rb"(?: [^\s]+)? +\d+|UNSUB \d+ ?\d*)\r\n")
PUBLISH = re.compile(rb"(?:PUB (" + SUBJECT + rb") (?:(" + SUBJECT + rb") )?(\d+)|HPUB (" + SUBJECT + rb") (?:(" + SUBJECT + rb") )?(\d+) (\d+))\r\n")


class Protocol:
    """Reads what a client writes, as strictly as it is specified. `broken` says where it stopped being NATS; `subjects`
    counts what was published. A command that is not whole at the end of a connection is no fault."""

    def __init__(self):
        self.data, self.skip, self.broken, self.subjects = b"", 0, None, {}

    def feed(self, data):
        self.data += data
        while self.data and not self.broken:
            if self.skip:  # of a payload and its line end
                if len(self.data) < self.skip:
                    return
                if self.data[self.skip - 2:self.skip] != b"\r\n":
                    self.broken = f"a payload does not end where it should: {self.data[self.skip - 20:self.skip + 20]!r}"
                    return
                self.data, self.skip = self.data[self.skip:], 0
                continue
            end = self.data.find(b"\n")
            if end < 0:
                if len(self.data) > 8192:
                    self.broken = f"a line without end: {self.data[:80]!r}"
                return
            line, self.data = self.data[:end + 1], self.data[end + 1:]
            published = PUBLISH.fullmatch(line)
            if published:
                subject = (published[1] or published[4]).decode()
                self.subjects[subject] = self.subjects.get(subject, 0) + 1
                self.skip = int(published[3] or published[7]) + 2
            elif not LINES.fullmatch(line):
                self.broken = f"no command: {line[:80]!r}"


class Checker(Relay):
    """A relay that holds every byte of its clients against the protocol."""

    def __init__(self, address):
        super().__init__(address)
        self.seen = []

    async def serve(self, reader, writer):
        protocol = Protocol()
        self.seen.append(protocol)
        relay = Relay(self.upstream, towards=lambda data: (protocol.feed(data), data)[1])
        await relay.serve(reader, writer)

    def check(self, forbidden=()):
        for number, protocol in enumerate(self.seen):
            assert not protocol.broken, f"connection {number} of {len(self.seen)}: {protocol.broken}"
            assert not protocol.subjects.keys() & set(forbidden), f"connection {number}: {forbidden} was published"

    def published(self):
        return sum(sum(protocol.subjects.values()) for protocol in self.seen)
