# SPDX-License-Identifier: Apache-2.0
"""Start: what comes on standard input, and what a person who starts the provider by hand gets to see."""
import asyncio
import base64
import json
import os
import re
import subprocess

import pytest

from lattice import GOLDEN, PROVIDER, RUN, Provider, environment, golden_host_data, run_provider
from servers import Accounts

SECRET = "SUADEADBEEFSECRET"


def line(value):
    """A line of host data as hosts write it."""
    return base64.b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\r\n"


def changed(**fields):
    return {**golden_host_data(), **fields}


def without(*names):
    data = golden_host_data()
    for name in names:
        del data[name]
    return data


# ---------------------------------------------------------------- what is accepted

OPTIONAL = ["link_name", "lattice_rpc_user_jwt", "lattice_rpc_user_seed", "env_values", "instance_id", "cluster_issuers", "config",
            "secrets", "host_xkey_public_key", "provider_xkey_private_key", "default_rpc_timeout_ms", "structured_logging",
            "log_level", "otel_config", "link_definitions"]


async def starts_with(world, data, ending=b"\r\n"):
    """A provider with this host data, on the world's lattice, says that it is healthy."""
    data = {**data, "lattice_rpc_url": world.server.url, "lattice_rpc_prefix": world.lattice}
    text = json.dumps(data).replace("127.0.0.1:4222", world.server.address)
    provider = await Provider.start(base64.b64encode(text.encode()) + ending)
    world.providers.append(provider)
    await world.host.healthy()


@pytest.mark.smoke
async def test_golden(world):
    """The host data of a real 1.9.2 host, both of its links included."""
    await starts_with(world, golden_host_data())


@pytest.mark.parametrize("missing", [[name] for name in OPTIONAL] + [OPTIONAL], ids=lambda names: names[0] if len(names) == 1 else "all")
async def test_missing_fields(world, missing):
    """Older hosts leave fields out; only what cannot be guessed is needed."""
    await starts_with(world, without(*missing))


async def test_unknown_fields(world):
    """Newer hosts add fields, of any type."""
    await starts_with(world, changed(something={"new": [1, None, True]}, another=1.5))


@pytest.mark.parametrize("fields", [
    {"host_xkey_public_key": "", "provider_xkey_private_key": ""}, {"secrets": None}, {"link_definitions": None}, {"otel_config": None},
    {"log_level": None}, {"lattice_rpc_user_jwt": None, "lattice_rpc_user_seed": None}, {"config": None}], ids=str)
async def test_empty_fields(world, fields):
    """Empty and null are what missing is."""
    await starts_with(world, changed(**fields))


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r\nmore lines\r\n"], ids=repr)
async def test_line_endings(world, ending):
    """One line is read: it may end in LF or CR LF, and what follows means nothing."""
    await starts_with(world, golden_host_data(), ending)


async def test_input_that_stays_open(world):
    """The provider starts at the end of the line, not at the end of the file."""
    read, write = os.pipe()
    os.write(write, line(world.host.data))
    provider = Provider()
    provider.process = await asyncio.create_subprocess_exec(*RUN, PROVIDER, env=environment(), stdin=read,
                                                            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    provider.reader = asyncio.create_task(provider._read())
    world.providers.append(provider)
    os.close(read)
    try:
        await world.host.healthy()
    finally:
        os.close(write)


async def test_large_host_data(world):
    """Host data of several hundred kilobytes, more than a pipe holds."""
    await starts_with(world, changed(link_definitions=[], config={"note": "x" * 300000}))


# ---------------------------------------------------------------- what is refused

REFUSED = {
    "empty": (b"", "(?i)host data|empty|input"),
    "only a line end": (b"\r\n", "(?i)host data|empty"),
    "not base64": (b"this is not base64!\r\n", "(?i)base64"),
    "base64 with a hole": (base64.b64encode(b'{"provider_key":"x"}')[:8] + b"*" + b"AAAA\r\n", "(?i)base64"),
    "base64 cut short": (line(golden_host_data())[:-7] + b"\r\n", "(?i)base64|json"),
    "padding in the middle": (b"AA==AAAA\r\n", "(?i)base64"),
    "no end of line": (line(golden_host_data()).rstrip(), "(?i)line|end"),
    "not JSON": (line(b"{nonsense"), "(?i)json"),
    "JSON cut short": (line(json.dumps(golden_host_data()).encode()[:-1]), "(?i)json"),
    "JSON and more": (line(b"{} {}"), "(?i)json|provider_key"),
    "not UTF-8": (line(b'{"provider_key":"\xff"}'), "(?i)json|utf-?8"),
    "not an object": (line([1, 2]), "(?i)object"),
    "a string": (line("x"), "(?i)object|json"),
    "deep": (line(b"[" * 100000), "(?i)json|object"),
    "no provider key": (line(without("provider_key")), "provider_key"),
    "empty provider key": (line(changed(provider_key="")), "provider_key"),
    "provider key is a number": (line(changed(provider_key=7)), "provider_key"),
    "provider key with a dot": (line(changed(provider_key="a.b")), "provider_key"),
    "provider key with a space": (line(changed(provider_key="a b")), "provider_key"),
    "provider key with a wildcard": (line(changed(provider_key="a*")), "provider_key"),
    "provider key that is a wildcard": (line(changed(provider_key=">")), "provider_key"),
    "provider key with a line end": (line(changed(provider_key="a\r\nb")), "provider_key"),
    "lattice prefix with a space": (line(changed(lattice_rpc_prefix="a b")), "lattice_rpc_prefix"),
    "lattice prefix with a wildcard": (line(changed(lattice_rpc_prefix=">")), "lattice_rpc_prefix"),
    "config is a list": (line(changed(config=[1])), "config"),
    "links are an object": (line(changed(link_definitions={"a": 1})), "link_definitions"),
    "xkey with a wrong checksum": (line(changed(provider_xkey_private_key="SX" + "A" * 56)), "provider_xkey_private_key"),
    "overlong line": (b"A" * (3 * 2**20) + b"\r\n", "(?i)long|large|limit"),
}


@pytest.mark.smoke
@pytest.mark.parametrize("text, pattern", REFUSED.values(), ids=REFUSED)
async def test_refused(text, pattern):
    """Wrong host data: one clear sentence that names what is wrong, exit code 1."""
    code, out, err = await run_provider(stdin=text)
    assert code == 1 and out == ""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert re.search(pattern, err), err
    assert len(err) < 500


SECRETS = {
    "xkey seed": changed(provider_xkey_private_key=SECRET, provider_key=""),
    "provider secret": changed(secrets={"client_seed": {"kind": "String", "value": SECRET}}, provider_key="a b"),
    "user seed": changed(lattice_rpc_user_seed=SECRET, lattice_rpc_user_jwt="", provider_key=""),
    "password in the URL": changed(lattice_rpc_url=f"nats://user:{SECRET}@127.0.0.1:4222", provider_key=""),
    "config": changed(config={"client_seed": SECRET}, provider_key=7),
    "secret of the wrong kind": changed(secrets=SECRET),
    "xkey seed in the wrong place": changed(provider_xkey_private_key="X" + SECRET),
}


@pytest.mark.parametrize("data", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("cut", [0, 3], ids=["whole", "cut short"])
async def test_refused_without_echoing_secrets(data, cut):
    """What is refused is not printed: it holds private keys."""
    text = line(json.dumps(data).encode()[:-cut] if cut else data)
    code, out, err = await run_provider(stdin=text)
    assert code == 1 and err.count("\n") == 1
    for secret in (SECRET, base64.b64encode(SECRET.encode()).decode()[:16], golden_host_data()["provider_xkey_private_key"]):
        assert secret not in err + out


# ---------------------------------------------------------------- started by a person

@pytest.mark.smoke
async def test_help():
    code, out, err = await run_provider("--help")
    assert (code, err) == (0, "")
    for word in ("--help", "--version", "--check", "host"):
        assert word in out


@pytest.mark.smoke
async def test_version():
    """Name and version, the libraries with theirs, and how much memory is reserved."""
    code, out, err = await run_provider("--version")
    assert (code, err) == (0, "")
    for pattern in (r"messaging-nats \d+\.\d+\.\d+", r"(?i)nats\.c \d+\.\d+", r"(?i)mbed ?TLS \d+\.\d+", r"(?i)libsodium \d+\.\d+",
                    r"(?i)jansson \d+\.\d+", r"\d[\d.,]* ?[kM]i?B"):
        assert re.search(pattern, out), f"{pattern} in {out}"


@pytest.mark.parametrize("args", [["--no-such-option"], ["--check"], ["something"], ["-x"]], ids=str)
async def test_wrong_usage(args):
    """Exit code 2, and a hint where to look."""
    code, out, err = await run_provider(*args)
    assert code == 2 and out == ""
    assert "--help" in err


async def test_terminal():
    """Started from a terminal it explains itself instead of waiting for a line."""
    leader, follower = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(*RUN, PROVIDER, env=environment(), stdin=follower,
                                                       stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        try:
            out, err = await asyncio.wait_for(process.communicate(), 10)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError("it waits for input from a terminal") from None
    finally:
        os.close(leader)
        os.close(follower)
    assert b"--check" in out + err or b"--help" in out + err


# ---------------------------------------------------------------- --check

def written(tmp_path, value):
    path = tmp_path / "file"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


@pytest.mark.parametrize("form", ["JSON", "a line as a host writes it"])
async def test_check_host_data(tmp_path, form):
    """It says what the provider would do: connect where, under which name, with which links; and prints no key."""
    data = (GOLDEN / "hostdata-1.9.2.json").read_bytes()
    code, out, err = await run_provider("--check", written(tmp_path, data if form == "JSON" else line(data)))
    assert (code, err) == (0, "")
    for words in ("127.0.0.1:4222", "messaging-nats", "echo", "t.>", "q.work"):
        assert words in out, out
    assert golden_host_data()["provider_xkey_private_key"] not in out


async def test_check_link(tmp_path):
    """A link alone can be checked as well."""
    link = golden_host_data()["link_definitions"][0]
    code, out, err = await run_provider("--check", written(tmp_path, link))
    assert (code, err) == (0, "")
    assert "echo" in out and "t.>" in out


@pytest.mark.parametrize("value, pattern", [
    (b"nonsense", "(?i)json|base64"), (without("provider_key"), "provider_key"), (changed(provider_key="a b"), "provider_key"), (b"", "(?i)empty|host data|json"),
    ({"subscriptions": "a"}, 'no link, such as {"source_id"')],
    ids=["nonsense", "no provider key", "bad provider key", "empty", "a link's configuration alone"])
async def test_check_refuses(tmp_path, value, pattern):
    """Exit code 1 and one clear sentence."""
    code, out, err = await run_provider("--check", written(tmp_path, value))
    assert code == 1
    assert re.search(pattern, out + err) and (out + err).count("\n") == 1, out + err


def link_with(**config):
    link = golden_host_data()["link_definitions"][0]
    return {**link, "source_config": {**link["source_config"], **config}}


@pytest.mark.parametrize("config, pattern", [
    ({"subscriptions": "a..b"}, "subscriptions"), ({"subscriptions": "a b"}, "subscriptions"), ({"max_in_flight": "0"}, "max_in_flight"),
    ({"max_in_flight": "many"}, "max_in_flight"), ({"handler_timeout_ms": "-1"}, "handler_timeout_ms"), ({"client_jwt": "x.y.z"}, "client_seed"),
    ({"cluster_uris": "nats://host:99999"}, "cluster_uris"), ({"tls_ca": "no PEM"}, "tls_ca"), ({"custom_inbox_prefix": "a b"}, "custom_inbox_prefix"),
    ({"ping_interval_sec": "soon"}, "ping_interval_sec")], ids=str)
async def test_check_refuses_configuration(tmp_path, config, pattern):
    """A link that could not work is refused with the key that is wrong."""
    code, out, err = await run_provider("--check", written(tmp_path, link_with(**config)))
    assert code == 1
    assert pattern in out + err


SLIPS = pytest.mark.parametrize("config, words", [
    ({"subscription": "a"}, "there is no key subscription; did you mean subscriptions?"), ({"cluster_uri": "nats://h"}, "did you mean cluster_uris?"),
    ({"max_in_flight": 5}, "max_in_flight is no string, and is ignored"), ({"colour": "red"}, "there is no key colour"),
    ({"subscriptions": "s.>,x,s.b|q"}, "subscriptions s.> and s.b|q overlap: what matches both comes twice")], ids=str)


@SLIPS
async def test_check_finds_slips(tmp_path, config, words):
    """What the provider would take no notice of is named, and the exit code is 1."""
    code, out, err = await run_provider("--check", written(tmp_path, link_with(**config)))
    assert code == 1 and words in out and "slip" in err, out + err


@SLIPS
async def test_put_warns_of_slips(world, config, words):
    """The same, once, in the log of a provider that runs."""
    link = world.host.handler_link(subscriptions=world.s("in"))
    link["source_config"].update(config)
    provider = await world.start(link)
    await provider.wait_log(re.escape(words))
    await world.host.put(link)
    await world.host.put(world.host.consumer_link("other"))
    await world.link_works("other")
    assert len(provider.log(re.escape(words))) == 1


# what --check says of a link, each in a line of its own
FAULTS = {
    "each server": ({"cluster_uris": "http://h,ws://h,nats://h:99999,nats://,nats://a b,h"}, [
        "number 1 does not begin with nats://", "number 2 does not begin with nats://", "number 3 has a port", "number 4 has no host", "number 5 has a space"]),
    "each consumer": ({"consumers": json.dumps([{"stream": "S", "consumer": "c"}, {"consumer": "c"}, {"stream": "a.b", "consumer": "c"}, 7, {"stream": "S", "consumer": "c"},
                                                {"stream": "S", "consumer": "d", "max_bytes": "10"}, {"stream": "S", "consumer": "e", "durable": True}])}, [
        "consumers: entry 2 has no stream", "consumers: entry 3: its stream has", "consumers: entry 4 is no", "consumers: entry 5 names the same as entry 1",
        "consumers: entry 6: its max_bytes is no number", "consumers: entry 7: there is no key durable"]),
    "a list in JSON that is none": ({"consumers": "[{'stream':'S','consumer':'c'}]"}, ["consumers is no JSON list like"]),
    "subscriptions": ({"subscriptions": "a,b c,d..e,f|g h"}, ['number 2, "b c"', 'number 3, "d..e"', 'number 4, "f|g h"']),
    "several keys": ({"tls_first": "yes", "max_in_flight": "0", "subscription": "a", "ping_interval_sec": 5}, [
        "tls_first is neither true nor false", "max_in_flight is no number", "did you mean subscriptions?", "ping_interval_sec is no string"]),
    "escaped line ends": ({"tls_ca": "-----BEGIN CERTIFICATE-----\\nMIIB\\n-----END CERTIFICATE-----\\n"}, [r"tls_ca is no PEM text, or its line ends are written as \n"]),
    "damaged PEM": ({"tls_ca": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"}, ["tls_ca: its certificate cannot be used: it is damaged"]),
    "a file that is not there": ({"tls_ca_file": "/no/such.pem"}, ["tls_ca_file: No such file or directory"]),
    "a file that is none": ({"tls_ca_file": "/dev/null"}, ["tls_ca_file: it is no regular file"]),
    "nothing to do": ({"subscriptions": ""}, ["neither subscriptions nor consumers: no message will come"]),
}


@pytest.mark.parametrize("config, words", FAULTS.values(), ids=FAULTS)
async def test_check_tells_all_faults(tmp_path, config, words):
    """Not only the first: all that is wrong with a link, each in a line, and exit code 1; a good link beside it is still described."""
    data = changed(link_definitions=[link_with(**config), golden_host_data()["link_definitions"][1]])
    code, out, err = await run_provider("--check", written(tmp_path, data))
    assert code == 1 and "serves the component's publish and request" in out
    told = [line for line in out.splitlines() if re.match("    (wrong|look here) ", line)]
    assert len(told) == len(words), out + err
    for line, said in zip(told, words):
        assert said in line, out + err


async def test_check_tells_of_certificates(tmp_path, authority, stranger):
    """A client certificate that has expired, a key of another, a key with a pass phrase, Ed25519; a CA that has expired. A good one passes."""
    cert, key = (path.read_text() for path in authority.issue("check"))
    expired = authority.issue("check-expired", expired=True)
    run = lambda *args: subprocess.run(["openssl", *args], cwd=tmp_path, check=True, capture_output=True)
    run("ec", "-in", str(authority.dir / f"{authority.name}-check.key"), "-aes128", "-passout", "pass:word", "-out", "locked.key")
    run("req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=ed", "-keyout", "ed.key", "-out", "ed.pem")
    read = lambda name: (tmp_path / name).read_text()
    other = stranger.issue("check")[1].read_text()
    cases = [({"tls_cert": cert, "tls_key": key, "tls_ca": authority.ca}, None), ({"tls_cert": cert, "tls_key": other}, "tls_key: .*does not belong to the certificate"),
             ({"tls_cert": expired[0].read_text(), "tls_key": expired[1].read_text()}, "tls_cert: .*expired on 2020-02-01"), ({"tls_ca": expired[0].read_text()}, "tls_ca: .*expired on 2020-02-01"),
             ({"tls_cert": cert, "tls_key": read("locked.key")}, "tls_key: .*encrypted"), ({"tls_cert": read("ed.pem"), "tls_key": read("ed.key")}, "tls_(cert|key): ."),
             ({"tls_ca_file": str(expired[0])}, "tls_ca_file: .*expired on 2020-02-01"), ({"tls_cert": cert}, "belong together")]
    for config, pattern in cases:
        code, out, err = await run_provider("--check", written(tmp_path, link_with(**config)))
        told = re.findall("(?m)^    (?:wrong|look here) +(.*)$", out)
        assert code == bool(pattern) and len(told) == bool(pattern) and all(re.search(pattern, line) for line in told), out + err


async def test_check_tells_of_a_foreign_seed(tmp_path):
    """A JWT and the seed of another user."""
    accounts = Accounts()
    jwt, seed = accounts.user()
    for other, said in ((seed, 0), (accounts.user()[1], 1)):
        code, out, err = await run_provider("--check", written(tmp_path, link_with(client_jwt=jwt, client_seed=other)))
        assert code == said and out.count("client_jwt is of another user than client_seed") == said, out + err


async def test_slips_of_the_defaults(world, tmp_path):
    """What is no key in the provider's own configuration is named as well: by --check, and by one that starts."""
    config = {"cluster_urls": "nats://h", "lattice_tls_fist": "true", "lattice_service": "false", "lattice_ping_interval_sec": "5"}
    code, out, err = await run_provider("--check", written(tmp_path, changed(config=config)))
    assert code == 1 and "did you mean cluster_uris?" in out and "did you mean lattice_tls_first?" in out and out.count("look here") == 2, out + err
    provider = await world.start(config=config)
    assert len(provider.log("provider .*did you mean")) == 2


async def test_put_tells_several_faults(world):
    """Health and log of a provider that runs name as many as fit, and how many others; and what is only odd, once."""
    provider = await world.start(world.host.handler_link("idle"))
    await world.host.put(world.host.handler_link("echo", subscriptions="a..b", max_in_flight="0", tls_first="yes", consumers=json.dumps([{}] * 8)))
    words = await world.host.unhealthy("echo.*tls_first is neither.*; max_in_flight is no number.*; and [0-9]+ others")
    assert len(provider.log("not started: ")) == 1, words
    assert len(provider.log("link messaging-nats -> idle .*no message will come")) == 1


async def test_check_of_no_file(tmp_path):
    code, out, err = await run_provider("--check", tmp_path / "absent")
    assert code == 1 and "absent" in out + err
