# SPDX-License-Identifier: Apache-2.0
"""The provider in a real wasmCloud 1.9 host, with a real component: ./test.sh host.

HOST is the host's binary (src/main.rs, or wasmCloud's own), ARCHIVE the provider archive that it loads; the component is
devel/example/component/. Everything is ordered over the control interface, as wash and wadm do it. Where REGISTRY, a registry's
binary, and ORAS, what pushes to it, are named, the archive is also loaded from a registry.
"""
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import pytest
import pytest_asyncio
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

import wire
from lattice import HANDLER, KEY, Provider, flush, until
from servers import DEADLINE, SLOW, Accounts, NatsServer

HOST = os.environ["HOST"]
ARCHIVE = Path(os.environ["ARCHIVE"]).resolve()
REFERENCE = os.environ.get("REFERENCE_ARCHIVE")  # that of wasmCloud's own provider, to count what it loses
REGISTRY, ORAS = os.environ.get("REGISTRY"), os.environ.get("ORAS")
PAR = "application/vnd.wasmcloud.provider.archive.layer.v1+par"  # the media type of an archive that was pushed
ECHOES, LARGE = int(os.environ.get("ECHOES", 100_000)), int(os.environ.get("LARGE", 3_000))
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

    async def begin(self, folder, registry=None, **others):
        """Starts the host, which may load from the registry without TLS; it unpacks archives into the folder."""
        await self.nc.subscribe(f"wasmbus.evt.{self.lattice}.*", cb=self._happened)
        await flush(self.nc)
        settings = {"NATS_HOST": "127.0.0.1", "NATS_PORT": self.world.server.port, "LATTICE": self.lattice, "ALLOW_FILE_LOAD": "true",
                    "SECRETS_TOPIC": SECRETS, **({"OCI_ALLOWED_INSECURE": registry} if registry else {}),
                    "PROV_SHUTDOWN_DELAY_MS": 10000, **others}  # 300 ms by default: a busy machine must not fail a test
        env = {f"WASMCLOUD_{name}": str(value) for name, value in settings.items()}
        self.process = await asyncio.create_subprocess_exec(
            HOST, env={**env, "TMPDIR": str(folder)}, limit=2**22,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
        self.reader = asyncio.create_task(self._read())
        started = await self.event("host_started")
        self.id, self.version = started["source"], tuple(int(n) for n in re.findall(r"\d+", started["data"]["version"])[:2])
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

    async def start_component(self, instances=16):
        await self.order(f"component.scale.{self.id}", component_ref=f"file://{COMPONENT}", component_id=ECHO, count=instances, host_id=self.id)
        await self.event("component_scaled")

    async def start_provider(self, *configs, image=f"file://{ARCHIVE}"):
        """Starts the provider with these named configurations of its own, and gives its process id."""
        await self.order(f"provider.start.{self.id}", provider_ref=image, provider_id=KEY, host_id=self.id, config=configs)
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

    @property
    def hides_traps(self):
        """Hosts of 1.1 to 1.3 publish nothing when a component traps, so that the call ends by its timeout."""
        return self.version == (0, 20)

    async def trapped(self):
        """Waits until the component has trapped, as far as the provider can know."""
        await self.wait_log("the component did not answer" if self.hides_traps else "the component trapped on a message", PATIENCE)

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
        await self.put_link(interface, [await self.config(**config), *secrets])

    async def put_link(self, interface, names):
        """The same, of configurations and secrets that were put before."""
        source, target = (KEY, ECHO) if interface == "handler" else (ECHO, KEY)
        configs = {"source_config": [], "target_config": []}
        configs["source_config" if interface == "handler" else "target_config"] = names
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

    async def watch(self):
        """Begins to watch what becomes of the component's calls."""
        return await Watch(self).begin()

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


class Watch:
    """Somebody who listens to the lattice: every call of handle-message, and whether its result came. It believes no provider."""

    def __init__(self, host):
        self.host, self.began, self.ended = host, set(), set()
        self.news = asyncio.Event()

    async def begin(self):
        self.nc = await self.host.world.client()
        for subject, heard in ((f"{self.host.lattice}.{ECHO}.{HANDLER}", self._began), ("_INBOX.*.c.*.results", self._ended),
                               ("_INBOX.*.*.results", self._ended)):
            await self.nc.subscribe(subject, cb=heard, pending_msgs_limit=10**7, pending_bytes_limit=2**31)
        await flush(self.nc)
        return self

    async def _began(self, msg):
        self.began.add(msg.reply)

    async def _ended(self, msg):
        self.ended.add(msg.subject.removesuffix(".results"))
        self.news.set()

    async def hung(self, calls):
        """How many of so many calls do not end, after all others have: none is counted before nothing has ended for a while."""
        while len(self.began) < calls or self.began - self.ended:
            self.news.clear()
            try:
                await asyncio.wait_for(self.news.wait(), 2 * SLOW)
            except asyncio.TimeoutError:
                break
        return calls - len(self.began & self.ended)


def gone(pid):
    """Whether a process has ended; one that nobody waits for stays in the table (the init of a container may never do so)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="module")
def server(folder):
    """A nats-server with JetStream, in which hosts keep links and configurations."""
    server = NatsServer(dir=folder, jetstream="1G").start()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def registry():
    """The address of a registry without TLS, which forgets at its end what was pushed; None if there is none."""
    if not REGISTRY:
        yield None
        return
    with subprocess.Popen([REGISTRY, "-port", "0"], stderr=subprocess.PIPE, text=True) as process:
        yield f"127.0.0.1:{process.stderr.readline().split()[-1]}"  # … serving on port 42123
        process.terminate()


@pytest_asyncio.fixture
async def empty_host(world, folder, registry):
    """A host that runs nothing yet; its end is that of its provider."""
    host = await Host(world).begin(folder, registry)
    yield host
    pid = host.provider()
    await host.stop()
    await until(lambda: gone(pid), "the provider ends with its host")


@pytest_asyncio.fixture
async def host(empty_host, instances):
    """A host that runs the component, and neither provider nor links yet."""
    await empty_host.start_component(instances)
    return empty_host


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


# ---------------------------------------------------------------- no call is lost

async def echoes(world, count, in_flight, body=b""):
    """Asks the component so often, so many at a time; each question has to get its own answer."""
    numbers = iter(range(count))

    async def ask():
        for i in numbers:
            text = b"%d " % i + body
            assert await world.ask(world.s("in"), b"echo " + text, PATIENCE) == text
    await asyncio.gather(*(ask() for _ in range(in_flight)))


async def count_hung(world, host, count, in_flight, body=b"", **image):
    """How many of so many calls of handle-message, each of which publishes its answer, never end."""
    await host.put_both()
    await host.start_provider(**image)
    await host.answers(b"first")
    watch = await host.watch()
    began = time.monotonic()
    await echoes(world, count, in_flight, body)
    hung = await watch.hung(count)
    print(f"{count} echoes, {in_flight} in flight: {hung} calls hung, in {time.monotonic() - began:.0f} s")
    return hung


@pytest.fixture
def instances():
    """How many instances of the component the host runs."""
    return 16


@pytest.mark.parametrize("instances", [1, 10, 50])
@pytest.mark.parametrize("in_flight", [1, 4, 32])
async def test_no_call_hangs(world, host, instances, in_flight):
    """A host's client drops what comes before it has registered a call's inboxes: that must cost no call."""
    count = ECHOES // 50
    assert await count_hung(world, host, count, in_flight) == 0
    await host.counted(received=count + 1, handled=count + 1, open=0)


@pytest.mark.parametrize("instances, count", [(10, ECHOES), (50, ECHOES // 2)])
async def test_no_call_hangs_of_many(world, host, instances, count):
    assert await count_hung(world, host, count, 32) == 0
    await host.counted(received=count + 1, handled=count + 1, open=0)


@pytest.mark.parametrize("instances", [10])
async def test_no_large_call_hangs(world, host, instances):
    """Its parameters and results come in chunks, of which the host drops none."""
    body = os.urandom(world.nc.max_payload - len("echo 123456 "))
    assert await count_hung(world, host, LARGE, 4, body) == 0
    await host.counted(received=LARGE + 1, handled=LARGE + 1, open=0)


@pytest.mark.skipif(not REFERENCE, reason="REFERENCE_ARCHIVE names no archive: test.sh packs one where build/bench/reference is built")
@pytest.mark.parametrize("instances, count", [(10, ECHOES), (50, ECHOES // 2)])
async def test_what_the_reference_loses(world, host, instances, count):
    """Nothing is asked of it: the figure stands beside ours in README.md."""
    await count_hung(world, host, count, 32, image=f"file://{REFERENCE}")


async def test_errors_and_traps(world, host):
    """They are logged and counted as what they are, and the next message is handled."""
    await host.put_both()
    await host.start_provider()
    await host.answers(b"before")
    await world.nc.publish(world.s("in"), b"error not today")
    await host.wait_log("answered a message with an error: not today", PATIENCE)
    await world.nc.publish(world.s("in"), b"trap")
    await host.trapped()
    await host.answers(b"after")
    await host.counted(received=4, handled=2, error=1, **({"timeout": 1} if host.hides_traps else {"trap": 1}), open=0)


async def test_consumer_link_is_missing(world, host):
    """A component without a consumer link traps when it publishes; the link, put while both run, mends that."""
    await host.put("handler", subscriptions=world.s("in"))
    await host.start_provider()
    await until(lambda: world.server.subscribers(world.s("in")), "subscribed", PATIENCE)
    await world.nc.publish(world.s("in"), f"publish {world.s('out')} x".encode())
    await host.trapped()
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


@pytest.mark.skipif(not (REGISTRY and ORAS), reason="REGISTRY and ORAS name no programs: test.sh builds them where there is go")
async def test_pulled(world, host, registry):
    """What was pushed to a registry starts from there."""
    image = f"{registry}/messaging-nats:1.0.0"
    subprocess.run([ORAS, "push", "--plain-http", image, f"{ARCHIVE.name}:{PAR}"], cwd=ARCHIVE.parent, stdout=subprocess.DEVNULL, check=True)
    await host.put_both()
    await host.start_provider(image=image)
    await host.answers(b"from a registry")


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
    if host.version < (0, 25) or (1, 0) <= host.version < (1, 7):  # the crate's number or the program's
        pytest.skip("hosts before 1.7 start no provider again")
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
    await host.trapped()
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


async def test_config_of_a_link(world, host):
    """A configuration that is changed reaches a running link when the link is put again, as devel/package/README.md says."""
    async def put(subject):
        await host.config("nats", cluster_uris=world.server.url, subscriptions=world.s(subject))
        await host.put_link("handler", ["nats"])
    await host.put("consumer")
    await host.start_provider()
    await put("in")
    await host.answers(b"one")
    await put("other")
    await host.answers(b"two", "other")
    await world.unsubscribed(world.s("in"))
