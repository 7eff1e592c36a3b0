# SPDX-License-Identifier: Apache-2.0
"""Secrets: sealed for the provider's xkey, opened, used, and never shown."""
import base64
import json

import pytest

import wire
from lattice import GOLDEN
from servers import Accounts, free_port

VECTOR = json.loads((GOLDEN / "xkey.json").read_text())
NOT_OPENED = "secret.*(open|decrypt|seal|authentic|xkv1|xkey)"


@pytest.fixture(scope="module")
def accounts():
    return Accounts()


@pytest.fixture
def far(servers, accounts):
    """A server that lets only users with a JWT in."""
    return servers(accounts.config)


def use_vector_keys(host):
    """The xkeys of the golden vector, on both sides."""
    host.use_xkeys(wire.XKey(VECTOR["host_seed"]), wire.XKey(VECTOR["provider_xkey_private_key"]))
    assert host.provider_xkey.public == VECTOR["provider_xkey_public_key"]


async def works(world, component="echo"):
    await world.host.healthy()
    call = await (await world.component(component, serve=False)).publish("x", b"y")
    assert call.ok, call


# ---------------------------------------------------------------- the vector

async def test_vector_is_opened(world):
    """The sealed bytes of the golden vector are opened: what is complained about is the seed in them, which is none."""
    use_vector_keys(world.host)
    await world.start(world.host.consumer_link(secrets=VECTOR["as_link_field"]), ready=False)
    words = await world.host.unhealthy("echo")
    assert "client_seed" in words and "SUAM" not in words


@pytest.mark.smoke
async def test_tampered_vector_is_refused(world):
    """One changed bit: log and health name the link, the other links work."""
    use_vector_keys(world.host)
    tampered = list(bytes.fromhex(VECTOR["tampered_hex"]))
    links = world.host.consumer_link("bad", secrets=tampered), world.host.consumer_link("good")
    provider = await world.start(*links, ready=False)
    await provider.wait_log("bad.*" + NOT_OPENED)
    await world.host.unhealthy("bad.*" + NOT_OPENED)
    await world.link_works("good")


def sealed_by_another(host):
    return wire.XKey().seal(host.provider_xkey.public, {"a": "b"})


def sealed_for_another(host):
    return host.xkey.seal(wire.XKey().public, {"a": "b"})


BROKEN = {
    "by another host": sealed_by_another, "for another provider": sealed_for_another, "not sealed": lambda host: list(b'{"a":"b"}'),
    "other version": lambda host: list(b"xkv2") + host.seal({"a": "b"})[4:], "too short": lambda host: list(b"xkv1" + b"x" * 30),
    "only the version": lambda host: list(b"xkv1"), "not bytes": lambda host: [120, 107, 118, 49, 256, -1], "a string": lambda host: "xkv1",
    "words in an array": lambda host: ["x"],
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
async def test_broken_secrets(world, make):
    """Whatever cannot be opened keeps the link from being used, in words that name it."""
    world.host.make_xkeys()
    link = world.host.consumer_link("bad")
    link["target_secrets"] = make(world.host)
    provider = await world.start(world.host.consumer_link("good"))
    await world.host.put(link)
    await provider.wait_log("bad.*secret")
    await world.host.unhealthy("bad.*secret")
    assert (await (await world.component("good", serve=False)).publish(world.s("x"))).ok


async def test_secrets_without_xkeys(world):
    """A host without xkeys cannot have sealed anything."""
    world.host.data.update(host_xkey_public_key="", provider_xkey_private_key="")
    await world.start(world.host.consumer_link("bad", secrets=VECTOR["as_link_field"]), ready=False)
    await world.host.unhealthy("bad.*(secret|xkey)")


# ---------------------------------------------------------------- where they may stand

@pytest.mark.smoke
async def test_link_secrets(world, far, accounts):
    """client_jwt and client_seed as secrets of the link, in the host data and in a put."""
    world.host.make_xkeys()
    jwt, seed = accounts.user()
    secrets = {"client_jwt": jwt, "client_seed": seed}
    await world.start(world.host.consumer_link("one", url=far.url, secrets=secrets))
    await world.put(world.host.handler_link("two", url=far.url, secrets=secrets, subscriptions="in"))
    await works(world, "one")


async def test_secret_before_configuration(world, far, accounts):
    """A secret comes before a configuration value of the same name."""
    world.host.make_xkeys()
    jwt, seed = accounts.user()
    await world.start(world.host.consumer_link(url=far.url, secrets={"client_jwt": jwt, "client_seed": seed}, client_jwt="old", client_seed="old"))
    await works(world)


async def test_secrets_without_configuration(world, far, accounts):
    """The secrets of a link without configuration count; the server's address is the provider's default."""
    world.host.make_xkeys()
    jwt, seed = accounts.user()
    link = world.host.consumer_link(url="", secrets={"client_jwt": jwt, "client_seed": seed})
    assert link["target_config"] == {}
    await world.start(link, config={"cluster_uris": far.url})
    await works(world)


@pytest.mark.parametrize("kind", ["String", "Bytes"])
async def test_provider_secrets(world, far, accounts, kind):
    """The secrets of the host data are defaults for every link. They come in the clear, as text or as bytes."""
    jwt, seed = accounts.user()
    secrets = wire.secret_values({name: value if kind == "String" else value.encode() for name, value in (("client_jwt", jwt), ("client_seed", seed))})
    await world.start(world.host.consumer_link(url=far.url), secrets=secrets)
    await works(world)


async def test_configuration_as_text(world, far, accounts):
    """jwt and seed in the link's configuration, and in the provider's."""
    jwt, seed = accounts.user()
    await world.start(world.host.consumer_link(url=far.url, client_jwt=jwt, client_seed=seed), world.host.consumer_link("other", url=far.url),
                      config={"client_jwt": jwt, "client_seed": seed})
    await works(world)
    await works(world, "other")


async def test_jwt_without_a_seed(world, far, accounts):
    """It is an error that says so. (A seed without a JWT is an nkey user: test_links.py.)"""
    await world.start(world.host.consumer_link(url=far.url, client_jwt=accounts.user()[0]), ready=False)
    await world.host.unhealthy("echo.*client_seed")


async def test_same_secrets_sealed_again(world):
    """Each sealing has another nonce: what counts is what is inside."""
    world.host.make_xkeys()

    def link(note):
        return world.host.handler_link(subscriptions=world.s("in"), secrets={"note": note})
    await world.start(link("a"))
    before = world.server.subscribers(world.s("in"))
    await world.host.put(link("a"))
    await world.host.healthy()
    assert world.server.subscribers(world.s("in")) == before
    await world.put(link("b"))


# ---------------------------------------------------------------- what the log shows

@pytest.mark.parametrize("structured", [False, True], ids=["text", "JSON"])
async def test_secrets_never_reach_the_log(world, far, accounts, structured):
    """At the finest level, with links that work, that fail, and that are refused."""
    world.host.make_xkeys()
    jwt, seed = accounts.user()
    links = [world.host.consumer_link("works", url=far.url, secrets={"client_jwt": jwt, "client_seed": seed}),
             world.host.consumer_link("fails", url=f"nats://user:PASSWORDPASSWORD@127.0.0.1:{free_port()}", client_seed=seed, client_jwt=jwt),
             world.host.consumer_link("wrong", url=f"nats://user:PASSWORDPASSWORD@127.0.0.1:{free_port()},not a URL:PASSWORDPASSWORD@x"),
             world.host.consumer_link("half", url=far.url, client_seed=seed), world.host.consumer_link("refused", url=far.url, client_jwt=jwt + "x", client_seed=seed)]
    provider = await world.start(*links, ready=False, env={"RUST_LOG": "trace"}, log_level="trace", structured_logging=structured)
    words = await world.host.unhealthy("fails")
    for component in ("half", "refused", "fails"):
        await provider.wait_log(component)
    text = "\n".join(provider.lines) + words
    for secret in (seed, jwt, jwt.split(".")[2], "PASSWORD", world.host.provider_xkey.seed, base64.b64encode(seed.encode()).decode()[:20]):
        assert secret not in text
