# SPDX-License-Identifier: Apache-2.0
"""Runs the demo, and keeps what goes over its nats-server: the messages of one publish, one request and one handle-message.
The wire.py of the tests decodes them; it was written from the published protocol. tour.py shows them.
"""
import asyncio
import ssl
import sys
import time
from pathlib import Path
from typing import NamedTuple

DEVEL = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(DEVEL / "example"), str(DEVEL / "tests/harness")]
import demo  # noqa: E402
import wire  # noqa: E402


class Frame(NamedTuple):
    """A message as nats-server passes it on."""
    at: float
    subject: str
    reply: str
    headers: bytes
    data: bytes


class Recorder:
    """A client of NATS that keeps the bytes of all messages on some subjects. (Not on all subjects: who asks where nobody serves
    is not told so while somebody listens, and the demo's host asks for health until it gets an answer.)"""
    SUBJECTS = "*.*.wrpc.>", "_INBOX.>", "demo.>", "svc.>"

    async def open(self, port, context):
        self.frames = []
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        await self.reader.readline()  # INFO, after which the server expects TLS
        await self.writer.start_tls(context)
        self.writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n')
        for sid, subject in enumerate(self.SUBJECTS):
            self.writer.write(f"SUB {subject} {sid}\r\n".encode())
        self.writer.write(b"PING\r\n")
        await self.read()
        self.task = asyncio.create_task(self.read())

    async def read(self):
        """Keeps what comes, until the server answers a PING: it has done and sent all that was before that."""
        while (line := (await self.reader.readline()).decode()) != "PONG\r\n":
            command, *words = line.split() or [""]
            if command in ("", "-ERR"):
                raise AssertionError(f"nats-server ends the recorder's connection: {line}")
            if command == "PING":
                self.writer.write(b"PONG\r\n")
            if command in ("MSG", "HMSG"):  # subject, sid, perhaps a reply subject, and lengths
                head = int(words.pop(-2)) if command == "HMSG" else 0
                data = (await self.reader.readexactly(int(words[-1]) + 2))[:-2]
                self.frames.append(Frame(time.monotonic(), words[0], words[2] if len(words) > 3 else "", data[:head], data[head:]))

    async def close(self):
        self.writer.write(b"PING\r\n")
        await self.task
        self.writer.close()


def record():
    """Runs the demo, and gives what went over its nats-server."""
    recorder = Recorder()

    async def recorded(server, certificates):
        await recorder.open(server.port, ssl.create_default_context(cafile=str(certificates.ca_file)))
        result = await demo.story(server, certificates)
        await recorder.close()
        return result
    demo.main(recorded)
    return recorder.frames


# ---------------------------------------------------------------- what the bytes mean

HOST, PROVIDER, SERVER = "component's host", "provider", "link's server"


class Kind(NamedTuple):
    """A kind of message in a call. The pairs: who sends it, and the function of provider.c that reads or writes it."""
    title: str
    calling: tuple  # if the component calls
    called: tuple   # if it is called
    subject: str    # what these two mean
    reply: str


KINDS = {
    "call": Kind("the call", (HOST, "on_call"), (PROVIDER, "invoke"),
                 "lattice, whose function it is, protocol, interface, function", "Rc, an inbox of who calls"),
    "handshake": Kind("the handshake", (PROVIDER, "send_handshake"), (HOST, "on_handshake"), "Rc", "Rs, an inbox of who serves"),
    "params": Kind("the parameters", (HOST, "on_params"), (PROVIDER, "on_handshake"), "Rs, and what it is", ""),
    "message": Kind("the message", (PROVIDER, "call_post"), (SERVER, "on_message"), "what it is about", "where a reply is to go"),
    "reply": Kind("the reply", (SERVER, "on_reply"), (), "the inbox of the request", ""),
    "results": Kind("the result", (PROVIDER, "answer"), (HOST, "on_outcome"), "Rc, and what it is", ""),
}
BROKER_MESSAGE = ["subject", "body", "reply-to", "reply-to"]  # the option, and what is in it
PARAMS = {"publish": BROKER_MESSAGE, "request": ["subject", "body", "timeout-ms"], "handle-message": BROKER_MESSAGE}
RESULT = {"publish": ["result", "error"], "request": ["result", *BROKER_MESSAGE], "handle-message": ["result", "error"]}
HEADERS = {"source-id": "who calls", "target-id": "who is called", "link-name": "by which of its links"}
TAGS = {"result": ("ok", "error"), "reply-to": ("none", "some")}


class Annotated(wire.Reader):
    """Notes what each byte means while wire.py decodes it: rows of (bytes, value, meaning)."""

    def __init__(self, data, names):
        super().__init__(data)
        self.names, self.counted, self.rows = iter(names), "", []

    def leb128(self):
        start, value = self.at, super().leb128()
        self.rows.append((self.data[start:self.at], f"{value:,}", self.counted or next(self.names)))
        return value

    def blob(self):
        name = next(self.names)
        self.counted = f"length of {name}"
        value = super().blob()
        self.counted = ""
        self.rows.append((value, value.decode(errors="replace"), name))
        return value

    def tag(self):
        name, value = next(self.names), super().tag()
        self.rows.append((bytes([value]), TAGS[name][value], name))
        return value


def decode(function, kind, data):
    """What a message of a call holds: rows, and the value. Fails if these bytes do not decode."""
    if kind in ("message", "reply"):
        return [(data, data.decode(errors="replace"), "body")], data
    reader = Annotated(data, (PARAMS if kind == "call" else RESULT)[function])
    value = None
    if kind == "call":
        value = wire.Message(reader.string(), reader.blob(), reader.leb128()) if function == "request" else reader.message()
    elif kind == "results" and data:
        value = reader.result(reader.message if function == "request" else lambda: None)
    assert reader.at == len(data), f"{function}: no part of {KINDS[kind].title}: {data[reader.at:]!r}"
    return reader.rows, value


def header_rows(block):
    """The same of the headers, line by line."""
    for line in block.splitlines(keepends=True):
        name, colon, _ = line.decode().strip().partition(":")
        yield line, line.decode().strip(), HEADERS.get(name, "header") if colon else "headers begin" if name else "headers end"


class Message:
    """A message of a conversation."""

    def __init__(self, function, number, kind, frame, began):
        self.function, self.number, self.kind, self.frame = function, number, kind, frame
        about = KINDS[kind]
        self.title, self.subject, self.reply = about.title, about.subject, about.reply
        if not frame.data and kind in ("params", "results"):
            self.title = f"the end of {about.title}"
        self.sender, self.place = about.called if function == "handle-message" else about.calling
        self.receiver = PROVIDER if self.sender != PROVIDER else SERVER if kind == "message" else HOST
        self.ms = (frame.at - began) * 1000
        self.rows = [*header_rows(frame.headers), *decode(function, kind, frame.data)[0]]


def conversation(frames, function, subject):
    """The messages of the first call of this function with this subject, and its parameters."""
    for start, call in enumerate(frames):
        if not call.subject.endswith("@0.2.0." + function):
            continue
        params = decode(function, "call", call.data)[1]
        if params.subject == subject:
            break
    else:
        raise AssertionError(f"the demo made no call of {function} with {subject}, or nats-server did not pass it on to the recorder")
    wanted, found = {call.reply: "handshake", call.reply + ".results": "results"}, [("call", call)]
    itself = [f for f in frames if (f.subject, f.data) == (params.subject, params.body)]
    if function == "handle-message":
        found.insert(0, ("message", itself[0]))
    for frame in frames[start + 1:]:
        kind = wanted.get(frame.subject)
        if kind == "handshake":
            wanted[frame.reply + ".params"] = "params"
        if function != "handle-message" and frame in itself:
            kind = "message"
            if function == "request":
                wanted[frame.reply] = "reply"
        if kind:
            found.append((kind, frame))
    missing = KINDS.keys() - {kind for kind, _ in found} - ({"reply"} if function != "request" else set())
    assert not missing, f"{function}: the recorder has not got {', '.join(missing)}"
    return [Message(function, number, kind, frame, found[0][1].at) for number, (kind, frame) in enumerate(found, 1)], params


def conversations(frames):
    """What the demo does with demo.weather: the component is called, requests, and publishes the answer."""
    handled, message = conversation(frames, "handle-message", "demo.weather")
    return {"publish": conversation(frames, "publish", message.reply_to)[0],
            "request": conversation(frames, "request", "svc.weather")[0], "handle-message": handled}
