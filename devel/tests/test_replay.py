# SPDX-License-Identifier: Apache-2.0
"""What the provider sends, held against the capture of a real lattice: golden/lattice-1.9.2.jsonl.

The messages of the host and of those outside are published again, in the capture's order; what the provider sent there has to
come from ours. Inboxes have other names in each run, so the names in the capture stand for those that are seen now.
"""
import asyncio
import base64
import json

import pytest

import wire
from lattice import DEADLINE, GOLDEN, flush

CAPTURED_XKEY = "XDHE2MSOOYL64XN2ZE6WW7SAD2MTUDBBB4DMBL5ZVCNYHS76CHFEE4XL"


class Replay:
    """Plays the capture's side of the world, and knows what each captured inbox is called now."""

    def __init__(self, nc, url, xkey):
        self.nc, self.url, self.xkey = nc, url, xkey
        self.names = {}  # captured inbox of the provider: what it is called now
        self.seen = []  # messages of the provider that were not asked for yet
        self.past = set()  # all that came to inboxes: a handshake, and the result behind it, may come again
        self.ours = []  # (subject, data) that we published and the recorder will show
        self.news = asyncio.Event()

    async def record(self, msg):
        data = (msg.subject, bytes(msg.data))
        whole = (msg.subject, msg.reply, bytes(msg.data))
        if data in self.ours:
            self.ours.remove(data)
        elif whole in self.past:
            pass
        else:
            self.seen.append(msg)
            self.news.set()
            if ".results" in msg.subject or msg.reply.startswith("_INBOX."):
                self.past.add(whole)

    def now(self, subject):
        """A captured subject as it is called now."""
        for captured, name in self.names.items():
            if subject == captured or subject.startswith(captured + "."):
                return name + subject[len(captured):]
        return subject.replace(CAPTURED_XKEY, self.xkey)

    async def publish(self, line):
        """A captured message of the host or of somebody outside."""
        data = base64.b64decode(line["data"]).replace(b"127.0.0.1:4222", self.url.removeprefix("nats://").encode())
        subject = self.now(line["subject"])
        self.ours.append((subject, data))
        await self.nc.publish(subject, data, reply=self.now(line["reply"]), headers=line["headers"] or None)
        await flush(self.nc)

    async def expect(self, line):
        """Waits for what the provider sent in the capture. Other calls may have got in front of it, its own may not."""
        subject = self.now(line["subject"])
        try:
            await asyncio.wait_for(self._arrived(subject), DEADLINE)
        except asyncio.TimeoutError:
            raise AssertionError(f"never came: {line}\nbut: {self.seen}") from None
        msg = next(m for m in self.seen if m.subject == subject)
        self.seen.remove(msg)
        assert dict(msg.headers or {}) == line["headers"]
        # an answer that awaits none names an inbox of ours, by which a link that overhears the lattice knows it
        reply = "" if msg.reply.startswith("_INBOX.nobody.") else msg.reply
        assert bool(reply) == bool(line["reply"]), f"{line}: reply subject {msg.reply!r}"
        if line["reply"]:
            self.names[line["reply"]] = msg.reply
        self._compare(bytes(msg.data), base64.b64decode(line["data"]))

    async def _arrived(self, subject):
        while not any(m.subject == subject for m in self.seen):
            self.news.clear()
            await self.news.wait()

    def _compare(self, data, captured):
        """Equal bytes; or two results of request, which hold the subject of an inbox."""
        if data == captured:
            return
        results = []
        for text in (data, captured):
            reader = wire.Reader(text)
            results.append(reader.result(reader.message))
            assert reader.at == len(text)
        (ok, now), (captured_ok, then) = results
        assert ok and captured_ok
        assert now == wire.Message(self.now(then.subject), then.body, then.reply_to)


@pytest.mark.smoke
async def test_replay(servers, worlds):
    """The same subjects, headers, data and order in each call as the reference, and nothing more."""
    server = servers()
    world = await worlds(server)
    lines = acknowledged([json.loads(text) for text in (GOLDEN / "lattice-1.9.2.jsonl").read_text().splitlines()])
    world.host.make_xkeys()
    world.host.data.update(host_id=host_id_of(lines), lattice_rpc_prefix="default")
    world.host.lattice = world.lattice = "default"
    provider = await world.start()

    replay = Replay(world.nc, server.url, world.host.provider_xkey.public)
    recorder = await world.client()
    await recorder.subscribe(">", cb=replay.record)
    await flush(recorder)
    for line in lines:
        if line["from"] == "provider":
            await replay.expect(line)
        else:
            if line["from"] == "outside" or line["subject"].endswith(".health"):
                await world.host.healthy()  # the real host waited longer
            if line["from"] == "outside":
                await world.subscribed({"source_config": {"subscriptions": "t.>,q.work"}})
            await replay.publish(line)
    assert await provider.wait_exit() == 0
    await flush(recorder)
    left = [m for m in replay.seen if not is_of_health(m) and not is_sign_of_life(m)]
    assert [m.subject for m in left] == ["svc.nobody"], left  # the one message that the capture lacks: a request in it


def acknowledged(lines):
    """The capture with the host's answer right behind each handshake of the provider: the reference does not wait for it. To one
    handshake the capture has none, since its host dropped that: the call never ended."""
    answers = {line["subject"]: line for line in lines if line["from"] == "host" and line["subject"].endswith(".params")}
    ordered = []
    for line in lines:
        if line not in answers.values():
            ordered.append(line)
        if line["from"] == "provider" and line["subject"].startswith("_INBOX.") and line["reply"]:
            subject = line["reply"] + ".params"
            ordered.append(answers.get(subject, {"from": "host", "subject": subject, "reply": "", "headers": {}, "data": ""}))
    assert len(ordered) == len(lines) + 1
    return ordered


def is_of_health(msg):
    """Part of the test's own waiting."""
    return msg.subject.endswith(".health") or b"healthy" in msg.data


def is_sign_of_life(msg):
    """An empty message to one's own inbox: that is how the provider, and the test, ask whether a connection lives."""
    return msg.subject.startswith("_INBOX.") and not msg.data and not msg.reply


def host_id_of(lines):
    """The host id in the capture's shutdown."""
    return next(json.loads(base64.b64decode(line["data"]))["host_id"] for line in lines if line["subject"].endswith(".shutdown"))
