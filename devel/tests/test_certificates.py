# SPDX-License-Identifier: Apache-2.0
"""Certificates of servers, as companies make them: who may issue what for whom, and words for what is wrong. And ciphers."""
import asyncio
import re
import ssl
import subprocess
from pathlib import Path

import pytest
import pytest_asyncio

from names import ROOT, with_files
from peers import Relay, info
from servers import DEADLINE, SLOW, Accounts, free_port, tls_block

CA = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
SERVER = "keyUsage=digitalSignature\nextendedKeyUsage=serverAuth\n"
LOOPBACK = "subjectAltName=IP:127.0.0.1,DNS:localhost\n"


class Chain:
    """Certificates one below the other, each with the extensions that are given as for openssl."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def issue(self, extensions, issuer=None, subject=None, key_of=("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")):
        """(certificate, key) as paths; without an issuer it is its own."""
        self.count += 1
        name = f"c{self.count}"
        crt, key, cnf = (self.folder / f"{name}.{kind}" for kind in ("pem", "key", "cnf"))
        cnf.write_text(f"[req]\ndistinguished_name=dn\nprompt=no\n[dn]\n[ext]\n{extensions}\n")
        self._openssl("req", "-new", "-newkey", *key_of, "-nodes", "-config", cnf,
                      "-subj", subject if subject is not None else f"/CN={name}", "-keyout", key, "-out", f"{crt}.csr")
        by = ["-CA", issuer[0], "-CAkey", issuer[1], "-CAcreateserial"] if issuer else ["-signkey", key]
        self._openssl("x509", "-req", "-in", f"{crt}.csr", "-days", "30", "-extfile", cnf, "-extensions", "ext", *by, "-out", crt)
        return crt, key

    def bundle(self, *certificates):
        """A file with all of them."""
        self.count += 1
        path = self.folder / f"bundle{self.count}.pem"
        path.write_text("".join(crt.read_text() for crt, _ in certificates))
        return path

    @staticmethod
    def _openssl(*args):
        done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def chain(tmp_path):
    return Chain(tmp_path)


class Terminator(Relay):
    """Ends TLS in front of a server in the clear, as HAProxy or stunnel do; notes the names that it is asked for (SNI)."""

    def __init__(self, address, certificate, key, **how):
        super().__init__(address, **how)
        self.names = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.context.sni_callback = lambda sock, name, context: self.names.append(name)

    async def open(self):
        self.tasks, self.accepted = set(), 0
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**22, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        return self


@pytest_asyncio.fixture
async def terminators():
    """Starts them, and ends them behind the test."""
    opened = []

    async def open(*args, **how):
        opened.append(await Terminator(*args, **how).open())
        return opened[-1]
    yield open
    for one in opened:
        await one.close()


# ---------------------------------------------------------------- name constraints

CONSTRAINTS = {
    "permitted address": ("permitted;IP:127.0.0.0/255.0.0.0", LOOPBACK.replace(",DNS:localhost", ""), True),
    "permitted name": ("permitted;DNS:corp.example", "subjectAltName=IP:127.0.0.1,DNS:a.b.CORP.example", True),
    "permitted name, itself": ("permitted;DNS:corp.example", "subjectAltName=IP:127.0.0.1,DNS:corp.example", True),
    "another address": ("permitted;IP:10.0.0.0/255.0.0.0", LOOPBACK, False),
    "another name": ("permitted;DNS:corp.example", LOOPBACK, False),
    "a name that only ends so": ("permitted;DNS:corp.example", "subjectAltName=IP:127.0.0.1,DNS:evilcorp.example", False),
    "one name of two": ("permitted;DNS:corp.example", "subjectAltName=IP:127.0.0.1,DNS:a.corp.example,DNS:evil.example", False),
    "excluded name": ("excluded;DNS:localhost", LOOPBACK, False),
    "excluded name, by wildcard": ("excluded;DNS:x.corp.example", "subjectAltName=IP:127.0.0.1,DNS:*.corp.example", False),
    "excluded, elsewhere": ("excluded;DNS:x.corp.example", "subjectAltName=IP:127.0.0.1,DNS:y.corp.example", True),
    "excluded address": ("excluded;IP:127.0.0.0/255.0.0.0", LOOPBACK, False),
    "all addresses excluded": ("excluded;IP:0.0.0.0/0.0.0.0", LOOPBACK, False),
    "permitted only IPv6": ("permitted;IP:fd00::/ff00::", LOOPBACK, False),
    "of mail, and no mail there": ("permitted;email:corp.example", LOOPBACK, True),
    "of mail": ("permitted;email:corp.example", "subjectAltName=IP:127.0.0.1,email:me@corp.example", False),
    "permitted directory": ("permitted;dirName:dir", LOOPBACK, True),
    "another directory": ("permitted;dirName:other", LOOPBACK, False),
}
DIRECTORIES = "\n[dir]\nO=Corp\n[other]\nO=Other\n"


@pytest.mark.parametrize("where", ["critical", "not critical", "of an intermediate"])
async def test_name_constraints(world, server, terminators, chain, where):
    """A CA may be constrained to some names (RFC 5280, 4.2.1.10): those it has are taken, others are refused, whether or not it
    says that this is critical."""
    ca, links = chain.issue(CA), {}
    for i, (title, (constraint, names, good)) in enumerate(CONSTRAINTS.items()):
        critical = "" if where == "not critical" else "critical,"
        constrained = CA + f"nameConstraints={critical}{constraint}{DIRECTORIES}"
        issuer = chain.issue(constrained, ca if where == "of an intermediate" else None, subject="/O=Corp/CN=CA")
        leaf = chain.issue(SERVER + names, issuer, subject="/O=Corp/CN=server")
        front = await terminators(server.address, chain.bundle(leaf, issuer), leaf[1])
        root = ca if where == "of an intermediate" else issuer
        links[f"c{i}"] = world.host.consumer_link(f"c{i}", url=f"tls://{front.address}", tls_ca=root[0].read_text(), tls_first="true",
                                               connect_timeout_sec=str(int(5 * SLOW)))  # all of them at once
    provider = await world.start(*links.values(), ready=False)
    for name, (title, (_, _, good)) in zip(links, CONSTRAINTS.items(), strict=True):
        line = await provider.wait_log(f"link {name} -> .*(connected to|SSL handshake error)", 3 * DEADLINE)
        assert ("connected to" in line) == good, (title, line)
        assert good or "name constraints of the CA" in line, (title, line)


# ---------------------------------------------------------------- words for what is wrong

FAULTS = {
    "path length": ([CA.replace("CA:TRUE", "CA:TRUE,pathlen:0"), CA, SERVER + LOOPBACK], "path length"),
    "no CA": (["basicConstraints=CA:FALSE", SERVER + LOOPBACK], "is no CA .basicConstraints"),
    "an intermediate that is no CA": ([CA, "basicConstraints=CA:FALSE", SERVER + LOOPBACK], "is no CA .basicConstraints"),
    "a CA that may not sign": ([CA.replace("keyCertSign,", ""), SERVER + LOOPBACK], "may not sign certificates .keyUsage"),
    "for clients": ([CA, SERVER.replace("serverAuth", "clientAuth") + LOOPBACK], "extendedKeyUsage lacks serverAuth"),
    "for agreements": ([CA, SERVER.replace("digitalSignature", "keyAgreement") + LOOPBACK], "keyUsage lacks digitalSignature"),
    "a common name alone": ([CA, SERVER], "only a common name .*127.0.0.1.* subjectAltName"),
    "another kind of name": ([CA, SERVER + "subjectAltName=email:x@example.com"], "wrong name"),
}


@pytest.mark.parametrize("extensions, words", FAULTS.values(), ids=FAULTS)
async def test_fault_of_a_certificate(world, servers, chain, extensions, words):
    certificates = []
    for one in extensions:
        certificates.append(chain.issue(one, certificates[-1] if certificates else None))
    leaf = certificates[-1]
    far = servers(tls_block(chain.bundle(*certificates[:0:-1]), leaf[1]))
    provider = await world.start(world.host.consumer_link(url=f"tls://{far.address}", tls_ca=certificates[0][0].read_text()), ready=False)
    await provider.wait_log("cannot connect .*" + words)


async def test_common_name_of_a_host(world, servers, chain):
    """A certificate that has the right host, but only as its common name, is refused, as Go does."""
    ca = chain.issue(CA)
    leaf = chain.issue(SERVER, ca, subject="/CN=localhost")
    far = servers(tls_block(*leaf))
    provider = await world.start(world.host.consumer_link(url=f"tls://localhost:{far.port}", tls_ca=ca[0].read_text()), ready=False)
    await provider.wait_log("cannot connect .*only a common name .*localhost.* subjectAltName")


async def test_uri_of_a_host(world, servers, chain):
    """A URI is no name of a host: mbedTLS would take it for one, and so get round the constraints of names."""
    ca = chain.issue(CA + "nameConstraints=critical,permitted;DNS:corp.example,permitted;IP:10.0.0.0/255.0.0.0")
    far = servers(tls_block(*chain.issue(SERVER + "subjectAltName=URI:localhost", ca)))
    provider = await world.start(world.host.consumer_link(url=f"tls://localhost:{far.port}", tls_ca=ca[0].read_text()), ready=False)
    await provider.wait_log("cannot connect .*certificate")


# ---------------------------------------------------------------- TLS that ends in front of NATS

@pytest.mark.parametrize("says", [{}, {"tls_required": False, "tls_available": False}], ids=["nothing", "no TLS"])
async def test_tls_ends_in_front_of_nats(world, servers, terminators, authority, says):
    """With tls_first a server that knows of no TLS may stand behind what ends it, whatever its INFO says of TLS."""
    far = servers()

    def change(data):
        return data.replace(b"INFO {", b"INFO {" + b"".join(b'"%s":false,' % key.encode() for key in says)) if says else data
    front = await terminators(far.address, *authority.issue("front" + str(len(says))), change=change)
    keys = dict(url=f"tls://{front.address}", tls_ca=authority.ca, tls_first="true")
    await world.start(world.host.consumer_link(**keys), world.host.handler_link(**keys, subscriptions="in"))
    component = await world.component("echo")
    outside = await world.client(far)
    out = await world.listen("out", nc=outside)
    assert (await component.publish("out", b"there")).ok
    assert (await out.next_msg(DEADLINE)).data == b"there"
    await outside.publish("in", b"back")
    assert (await component.next()).body == b"back"


async def test_limit_of_a_user(world, servers, authority):
    """A user who may send less is told so behind the first PONG, in the same TLS record: the first publish knows it."""
    accounts = Accounts()
    server = servers(accounts.config + tls_block(*authority.issue("limited")))
    client_jwt, client_seed = accounts.user(payload=1000)
    provider = await world.start(ready=False)
    component = await world.component(serve=False)
    await world.host.healthy()
    await world.host.put(world.host.consumer_link(url=server.url.replace("nats", "tls"), tls_ca=authority.ca,
                                                  client_jwt=client_jwt, client_seed=client_seed))
    await provider.wait_log("link .*connected to")
    assert "maximum payload" in (await component.publish("out", bytes(5000))).value
    assert not provider.log("connection lost")


@ROOT
@pytest.mark.parametrize("name", ["broker.corp.example.", "BROKER.Corp.example", "Broker.corp.example."])
async def test_name_with_a_dot_at_its_end(world, servers, terminators, authority, tmp_path, name):
    """An absolute name is that of the certificate, and SNI, without its dot."""
    certificate = authority.issue("dotted", san="DNS:*.corp.example")
    far, front = servers(tls_block(*certificate)), await terminators(servers().address, *certificate)
    links = [world.host.consumer_link(url=f"tls://{name}:{far.port}", tls_ca=authority.ca),
             world.host.consumer_link("other", url=f"tls://{name}:{front.port}", tls_ca=authority.ca, tls_first="true")]
    await world.start(*links, prefix=with_files(tmp_path, f"127.0.0.1 broker.corp.example {name}\n"))
    assert {one.lower() for one in front.names} == {"broker.corp.example"}


# ---------------------------------------------------------------- mbedTLS's limits

class OpenSsl:
    """`openssl s_server`, whose lines of input go to the client; "k" has it change its keys."""

    def __init__(self, certificate, key, *args):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.arguments = ["-accept", self.address, "-cert", certificate, "-key", key, *args]

    async def start(self):
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec("openssl", "s_server", *map(str, self.arguments), stdin=pipe, stdout=pipe,
                                                            stderr=asyncio.subprocess.STDOUT, limit=2**22)
        await self.wait("ACCEPT")
        return self

    async def wait(self, words):
        """Reads on until a line has these words."""
        while words not in (line := (await asyncio.wait_for(self.process.stdout.readline(), 20 * SLOW)).decode(errors="replace")):
            assert line, "openssl s_server has ended"

    async def write(self, line):
        self.process.stdin.write(line)
        await self.process.stdin.drain()

    async def close(self):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@pytest_asyncio.fixture
async def openssl():
    """Starts them, and ends them behind the test."""
    started = []

    async def start(*args):
        started.append(await OpenSsl(*args).start())
        return started[-1]
    yield start
    for one in started:
        await one.close()


LONG = ",".join(f"DNS:a-name-of-some-length-{i}.gateways.corp.example" for i in range(400))


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("what", ["certificates", "CAs"])
async def test_longer_than_16_kB(world, openssl, chain, what, version):
    """A message of the handshake that mbedTLS does not take: which it is, and what helps."""
    ca = chain.issue(CA)
    leaf = chain.issue(SERVER + (LOOPBACK if what == "CAs" else f"subjectAltName=IP:127.0.0.1,{LONG}"), ca)
    name = "/O=" + "o" * 60 + "/OU=" + "u" * 60 + "/L=" + "l" * 60 + "/CN="
    asks = ["-Verify", "1", "-CAfile", chain.bundle(*(chain.issue(CA, subject=name + str(i)) for i in range(80)))] if what == "CAs" else []
    far = await openssl(*leaf, version, *asks)
    provider = await world.start(world.host.consumer_link(
        url=f"tls://{far.address}", tls_ca=ca[0].read_text(), tls_first="true"), ready=False)
    await provider.wait_log(f"cannot connect .*{what} .*take .* bytes, and mbedTLS takes no more than 16384")


async def test_keys_change(world, openssl, authority):
    """A server that changes its keys (KeyUpdate of TLS 1.3): mbedTLS cannot follow. It is said so, and it connects again."""
    far = await openssl(*authority.issue("keys"), "-tls1_3")
    provider = await world.start(world.host.consumer_link(url=f"tls://{far.address}", tls_ca=authority.ca, tls_first="true"), ready=False)
    for times in 1, 2:
        await far.wait("CIPHER is")  # this connection's handshake is over: what was written before would go to the last one
        await far.write(info() + b"PONG\r\n")  # at once: a piece that begins with P is a command of openssl's
        await provider.wait_log("default.: connected to", count=times)
        if times == 1:
            await far.write(b"k\n")
            await provider.wait_log("connection lost: .*changes its TLS keys .KeyUpdate.")


# ---------------------------------------------------------------- ciphers

@pytest.mark.release
async def test_cipher_of_the_processor(world, servers, authority):
    """AES where the processor has instructions for it, ChaCha20 where not: nats-server follows what is asked for first."""
    far = servers(tls_block(*authority.issue("cipher")))
    await world.start(world.host.consumer_link(url=far.url, tls_ca=authority.ca))
    has = set(re.search(r"^(?:flags|Features)\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    wanted = "AES_128_GCM" if {"aes", "pclmulqdq"} <= has or {"aes", "pmull"} <= has else "CHACHA20_POLY1305"
    assert {wanted in one["tls_cipher_suite"] for one in far.connections()} == {True}


CIPHERS = {"-tls1_3": ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256"),
           "-tls1_2": ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")}
KEYS = {"ECDSA": ("ec", "-pkeyopt", "ec_paramgen_curve:secp384r1"), "RSA": ("rsa:2048",)}


@pytest.mark.parametrize("key_of", KEYS)
@pytest.mark.parametrize("version", CIPHERS)
async def test_each_cipher(world, openssl, chain, version, key_of):
    """A server that has only one cipher: INFO, CONNECT, PING and PONG pass."""
    ca, links = chain.issue(CA, key_of=KEYS[key_of]), []
    leaf = chain.issue(SERVER + LOOPBACK, ca, key_of=KEYS[key_of])
    for i, name in enumerate(CIPHERS[version]):
        only = ["-ciphersuites", "TLS_" + name] if version == "-tls1_3" else ["-cipher", f"ECDHE-{key_of}-{name}"]
        far = await openssl(*leaf, version, *only)
        links.append(world.host.consumer_link(f"c{i}", url=f"tls://{far.address}", tls_ca=ca[0].read_text(), tls_first="true"))
        await far.write(info() + b"PONG\r\n")
    provider = await world.start(*links, ready=False)
    for i in range(len(links)):
        await provider.wait_log(f"link c{i} -> .*connected to")
