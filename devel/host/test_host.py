"""The provider in a real wasmCloud 1.9 host, with a real component: ./test.sh host.

HOST is the host's binary (src/main.rs, or wasmCloud's own), ARCHIVE the provider archive that it loads; the component is
devel/component/. Everything is ordered over the control interface, as wash and wadm do it.
"""
import asyncio
import contextlib
import json
import os
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest
import pytest_asyncio
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

import wire
from lattice import KEY, Provider, flush, until
from servers import DEADLINE, SLOW, Accounts, NatsServer

HOST = os.environ["HOST"]
ARCHIVE = Path(os.environ["ARCHIVE"]).resolve()
COMPONENT = Path(__file__).resolve().parents[1] / "component/component.wasm"
ECHO = "echo"
SECRETS = "wasmcloud.secrets"  # where hosts ask for secrets
PATIENCE = 6 * DEADLINE  # a host compiles the component, and may wait 5 s before it starts a provider again


class Host(Provider):
    """A host's process, on whose stderr its provider's lines come out as well, and its control interface."""

    def __init__(self, world):
        super().__init__()
        self.world, self.nc, self.lattice = world, world.nc, world.lattice
        self.events = defaultdict(asyncio.Queue)
        self.configs = 0
        self.id = None

    async def begin(self, folder):
        """Starts the host; it unpacks archives into the folder."""
        await self.nc.subscribe(f"wasmbus.evt.{self.lattice}.*", cb=self._happened)
        await flush(self.nc)
        settings = {"NATS_HOST": "127.0.0.1", "NATS_PORT": self.world.server.port, "LATTICE": self.lattice, "ALLOW_FILE_LOAD": "true",
                    "SECRETS_TOPIC": SECRETS, "PROV_SHUTDOWN_DELAY_MS": 10000}  # 300 ms by default: a busy machine must not fail a test
        env = {f"WASMCLOUD_{name}": str(value) for name, value in settings.items()}
        self.process = await asyncio.create_subprocess_exec(
            HOST, env={**env, "TMPDIR": str(folder)}, limit=2**22,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
        self.reader = asyncio.create_task(self._read())
        self.id = (await self.event("host_started"))["source"]
        return self

    async def _happened(self, msg):
        self.events[msg.subject.rpartition(".")[2]].put_nowait(json.loads(msg.data))

    async def event(self, name):
        """The next event of this name that the host published."""
        try:
            return await asyncio.wait_for(self.events[name].get(), PATIENCE)
        except asyncio.TimeoutError:
            raise AssertionError(f"no event {name} of the host, which wrote:\n" + "\n".join(self.lines[-30:])) from None

    async def order(self, what, **words):
        """Orders something, and expects the host to agree."""
        reply = await self.nc.request(f"wasmbus.ctl.v1.{self.lattice}.{what}", json.dumps(words).encode(), timeout=PATIENCE)
        answer = json.loads(reply.data)
        assert answer["success"], f"{what}: {answer}"

    # the component and the provider

    async def start_component(self):
        await self.order(f"component.scale.{self.id}", component_ref=f"file://{COMPONENT}", component_id=ECHO, count=16, host_id=self.id)
        await self.event("component_scaled")

    async def start_provider(self, *configs):
        """Starts the provider with these named configurations of its own, and gives its process id."""
        await self.order(f"provider.start.{self.id}", provider_ref=f"file://{ARCHIVE}", provider_id=KEY, host_id=self.id, config=configs)
        await self.event("provider_started")
        await self.world.host.health(PATIENCE)  # links that are put before it listens are lost: hosts put them once
        return self.provider()

    async def stop_provider(self):
        await self.order(f"provider.stop.{self.id}", provider_id=KEY, host_id=self.id)
        await self.event("provider_stopped")

    def provider(self):
        """The process id of the provider, the host's only child; None while there is none."""
        children = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
                children += (task / "children").read_text().split()
        assert len(children) < 2, f"the host has {len(children)} children"
        return int(children[0]) if children else None

    async def counted(self, **expected):
        """Waits until the provider says that the handler link's counts are these."""
        end = time.monotonic() + PATIENCE
        while True:
            before = len(self.log("counts: received="))
            os.kill(self.provider(), signal.SIGUSR1)
            line = await self.wait_log("counts: received=", PATIENCE, before + 1)
            if all(f"{name}={n}" in line.split() for name, n in expected.items()):
                return
            assert time.monotonic() < end, f"not {expected}: {line}"

    # links

    async def config(self, known_as=None, /, **values):
        """Puts a configuration, and gives the name that it is known as."""
        self.configs += 1
        known_as = known_as or f"config{self.configs}"
        await self.order(f"config.put.{known_as}", **values)
        return known_as

    async def secret(self, name, value):
        """Puts a reference to a secret, which a store keeps that knows no other, and gives the reference's name."""
        key = wire.XKey()

        async def tell(msg):
            if msg.subject.endswith(".server_xkey"):
                await msg.respond(key.public.encode())
                return
            secret = {"secret": {"version": "1", "string_secret": value, "binary_secret": None}}
            sealed = key.seal_bytes(msg.headers["WasmCloud-Host-Xkey"], json.dumps(secret).encode())
            await self.nc.publish(msg.reply, sealed, headers={"Server-Response-Xkey": key.public})
        await self.nc.subscribe(f"{SECRETS}.v1alpha1.{name}.*", cb=tell)
        policy = {"type": "properties.secret.wasmcloud.dev/v1alpha1", "properties": {}}
        return await self.config(f"SECRET_{name}", name=name, backend=name, key=name, type="secret.wasmcloud.dev/v1alpha1",
                                 policy=json.dumps(policy))

    async def put(self, interface, secrets=(), **config):
        """Puts the handler or the consumer link between the provider and the component."""
        config.setdefault("cluster_uris", self.world.server.url)
        source, target = (KEY, ECHO) if interface == "handler" else (ECHO, KEY)
        configs = {"source_config": [], "target_config": []}
        configs["source_config" if interface == "handler" else "target_config"] = [await self.config(**config), *secrets]
        await self.order("link.put", source_id=source, target=target, name="default", wit_namespace="wasmcloud",
                         wit_package="messaging", interfaces=[interface], **configs)
        await self.event("linkdef_set")

    async def delete(self, interface):
        source = KEY if interface == "handler" else ECHO
        await self.order("link.del", source_id=source, name="default", wit_namespace="wasmcloud", wit_package="messaging")
        await self.event("linkdef_deleted")

    async def put_both(self, **config):
        """Both links, with the subject s("in") if nothing else is said; the provider may run or not."""
        await self.put("handler", **(config or {"subscriptions": self.world.s("in")}))
        await self.put("consumer")

    async def answers(self, text, subject="in", server=None, nc=None):
        """Asks the component from outside for this text, once the provider is subscribed, and gets it."""
        subject = self.world.s(subject)
        await until(lambda: (server or self.world.server).subscribers(subject), f"subscribed to {subject}", PATIENCE)
        assert await self.world.ask(subject, b"echo " + text, PATIENCE, nc) == text


    async def answers_at_last(self, text):
        """The same, where a link has just been put: the order is agreed to before the host and the provider have the link."""
        async def answered():
            with contextlib.suppress(NatsTimeout):
                return await self.world.ask(self.world.s("in"), b"echo " + text, 2 * SLOW) == text
        await until(answered, f"the component answers {text}", PATIENCE)


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def server(folder):
    """A nats-server with JetStream, in which hosts keep links and configurations."""
    server = NatsServer(dir=folder, jetstream="1G").start()
    yield server
    server.remove()


@pytest_asyncio.fixture
async def host(world, folder):
    """A host that runs the component, and neither provider nor links yet; its end is that of its provider."""
    host = await Host(world).begin(folder)
    await host.start_component()
    yield host
    pid = host.provider()
    await host.stop()
    await until(lambda: gone(pid), "the provider ends with its host")


# ---------------------------------------------------------------- messages

async def test_handled_published_requested(world, host):
    """Messages from outside reach the component, which publishes and requests through the provider."""
    await host.put_both()
    await host.start_provider()
    await host.answers(b"hello")
    heard = await world.listen(world.s("out"))
    await world.nc.publish(world.s("in"), f"publish {world.s('out')} to whom it may concern".encode())
    msg = await heard.next_msg(PATIENCE)
    assert msg.data == b"to whom it may concern" and not msg.reply
    await world.respond(world.s("svc"), bytes.upper)
    assert await world.ask(world.s("in"), f"request {world.s('svc')} so it is".encode(), PATIENCE) == b"SO IT IS"
    words = await world.ask(world.s("in"), f"request {world.s('nobody')} are you there".encode(), PATIENCE)
    assert words == b"nats send error: no responders: no responders"
    await host.counted(received=4, handled=4, open=0)


async def test_large_messages(world, host):
    """A message as large as the server allows comes in pieces to the component and back."""
    await host.put_both()
    await host.start_provider()
    for size in (0, 1, 500_000, world.nc.max_payload - len("echo ")):
        await host.answers(os.urandom(size))


async def test_many_at_once(world, host):
    """More messages at once than the host has instances of the component: each gets its own answer.

    How many are handled in the end is not asked: a busy host loses about one call of 6,000, from wasmCloud's own provider too. Its
    wRPC client (wrpc-transport-nats 0.29.0, the select! in Client::new) drops a handshake that comes before it has got round to
    expecting it, and then waits for it.
    """
    await host.put_both()
    await host.start_provider()
    await host.answers(b"first")
    texts = [b"number %d" % i for i in range(500)]
    assert await asyncio.gather(*(world.ask(world.s("in"), b"echo " + text, PATIENCE) for text in texts)) == texts
    await host.counted(received=501, error=0, trap=0, dropped=0)


async def test_errors_and_traps(world, host):
    """They are logged and counted as what they are, and the next message is handled."""
    await host.put_both()
    await host.start_provider()
    await host.answers(b"before")
    await world.nc.publish(world.s("in"), b"error not today")
    await host.wait_log("answered a message with an error: not today", PATIENCE)
    await world.nc.publish(world.s("in"), b"trap")
    await host.wait_log("the component trapped on a message", PATIENCE)
    await host.answers(b"after")
    await host.counted(received=4, handled=2, error=1, trap=1, open=0)


async def test_consumer_link_is_missing(world, host):
    """A component without a consumer link traps when it publishes; the link, put while both run, mends that."""
    await host.put("handler", subscriptions=world.s("in"))
    await host.start_provider()
    await until(lambda: world.server.subscribers(world.s("in")), "subscribed", PATIENCE)
    await world.nc.publish(world.s("in"), f"publish {world.s('out')} x".encode())
    await host.wait_log("the component trapped on a message", PATIENCE)
    await host.put("consumer")
    await host.answers_at_last(b"now")


async def test_jetstream(world, host):
    """A stream's messages are handled and acknowledged; one that the component refuses comes again."""
    js = world.nc.jetstream()
    stream = world.lattice
    await js.add_stream(StreamConfig(name=stream, subjects=[world.s("orders.>")]))
    await js.add_consumer(stream, ConsumerConfig(durable_name="worker", ack_policy=AckPolicy.EXPLICIT))
    heard = await world.listen(world.s("out"))
    for i in range(100):
        await js.publish(world.s("orders.new"), f"publish {world.s('out')} {i}".encode())
    await js.publish(world.s("orders.new"), b"error not today")
    await host.put_both(consumers=json.dumps([{"stream": stream, "consumer": "worker"}]))
    await host.start_provider()
    assert sorted([int((await heard.next_msg(PATIENCE)).data) for _ in range(100)]) == list(range(100))
    await host.wait_log("answered a message with an error: not today", PATIENCE, count=2)

    async def acknowledged():
        info = await js.consumer_info(stream, "worker")
        return info.num_pending == 0 and info.num_ack_pending == 1 and info.num_redelivered == 1
    await until(acknowledged, "100 messages acknowledged, one delivered again", PATIENCE)


# ---------------------------------------------------------------- the host's control of the provider

async def test_healthy(host):
    """The host asks for health 5 s after the start, and understands the answer."""
    await host.put_both()
    await host.start_provider()
    assert (await host.event("health_check_passed"))["data"]["provider_id"] == KEY


async def test_stopped_and_started(world, host):
    """The provider ends when the host says so, and a new one has the links."""
    await host.put_both()
    pid = await host.start_provider()
    await host.answers(b"one")
    await host.stop_provider()
    await until(lambda: gone(pid), "the provider has ended")
    assert not host.log("did not gracefully shut down"), "the host had to kill it"
    assert not world.server.subscribers(world.s("in"))
    assert await host.start_provider() != pid
    await host.answers(b"two")


async def test_stopped_with_work_in_flight(world, host):
    """What the component is busy with when the order comes is finished first, with the calls that it makes for that."""
    await host.put_both()
    await host.start_provider()
    await host.answers(b"before")
    asked = await world.listen(world.s("svc"))
    reply = asyncio.create_task(world.ask(world.s("in"), f"request {world.s('svc')} wait".encode(), PATIENCE))
    question = await asked.next_msg(PATIENCE)
    stopping = asyncio.create_task(host.stop_provider())
    await host.wait_log("stopping: the host asked for it", PATIENCE)
    await question.respond(b"it was worth it")
    assert await reply == b"it was worth it"
    await stopping
    assert not host.log("did not gracefully shut down"), "the host had to kill it"


async def test_killed_and_restarted(world, host):
    """A provider that is killed is started again by the host, twice, with its links and without being told."""
    await host.put_both()
    await host.start_provider()
    await host.answers(b"one")
    for life in (b"two", b"three"):
        killed, connection = host.provider(), world.server.subscribers(world.s("in"))
        os.kill(killed, signal.SIGKILL)
        await until(lambda: world.server.subscribers(world.s("in")) not in ([], connection), "another is subscribed", PATIENCE)
        await host.answers(life)
        assert host.provider() not in (None, killed)
    assert len(host.log("restarting provider that exited")) == 2


async def test_links_while_it_runs(world, host):
    """Links that are put, changed, deleted and put again take effect in the provider that runs."""
    pid = await host.start_provider()
    await host.put_both()
    await until(lambda: world.server.subscribers(world.s("in")), "subscribed", PATIENCE)
    await host.answers_at_last(b"put")
    await host.put("handler", subscriptions=f"{world.s('other')},{world.s('more.*')}|group")
    await host.answers(b"changed", "other")
    await world.unsubscribed(world.s("in"))
    assert await world.ask(world.s("more.x"), b"echo of a wildcard", PATIENCE) == b"of a wildcard"
    await host.delete("handler")
    await world.unsubscribed(world.s("other"))
    await host.put("handler", subscriptions=world.s("in"))
    await host.answers(b"again")
    await host.delete("consumer")
    await world.nc.publish(world.s("in"), f"publish {world.s('out')} x".encode())
    await host.wait_log("the component trapped on a message", PATIENCE)
    await host.put("consumer")
    await host.answers_at_last(b"and again")
    assert host.provider() == pid


async def test_secrets(world, host, servers):
    """A link's secrets are sealed by the host, while the provider runs and when it starts again."""
    accounts = Accounts()
    far, (jwt, seed) = servers(accounts.config), accounts.user()
    (world.server.dir / "outside.creds").write_text(accounts.credentials(*accounts.user()))
    outside = await world.client(far, user_credentials=str(world.server.dir / "outside.creds"))
    secret = await host.secret("client_seed", seed)
    await host.start_provider()
    await host.put("handler", [secret], subscriptions=world.s("in"), cluster_uris=far.url, client_jwt=jwt)
    await host.put("consumer", [secret], cluster_uris=far.url, client_jwt=jwt)
    await until(lambda: len(far.connections()) == 3, "both links are connected", PATIENCE)
    await host.answers(b"put", server=far, nc=outside)
    await host.stop_provider()
    await host.start_provider()
    await host.answers(b"in the host data", server=far, nc=outside)
    assert not host.log(seed)


async def test_config_update(world, host):
    """The provider's own configuration, changed in the lattice, moves the links that have their defaults from it."""
    name = await host.config(subscriptions=world.s("in"))
    await host.put("handler")
    await host.put("consumer")
    await host.start_provider(name)
    await host.answers(b"one")
    await host.config(name, subscriptions=world.s("other"))
    await host.answers(b"two", "other")
    await world.unsubscribed(world.s("in"))
