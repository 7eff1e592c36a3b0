# SPDX-License-Identifier: Apache-2.0
"""What a provider connects to: nats-server in every form the tests need, certificates, accounts, and dead ends."""
import base64
import contextlib
import fcntl
import itertools
import json
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

SLOW = float(os.environ.get("SLOW", "1"))  # sanitizers and emulation take longer; a deadline is multiplied by this
DEADLINE = 10 * SLOW
NATS_SERVER = os.environ.get("NATS_SERVER", "nats-server")

witnesses = []  # processes of the test that runs, whose last lines are shown if it fails: each has `lines` and `running`


class NatsServer:
    """A nats-server on loopback ports that are free, described by a configuration file.

    start() returns when the server says that it is ready; stop() and start() again use the same ports. jetstream: how much
    it may store, such as "1G"; what is stored is there again after a stop. nice: how far it stands back behind others.
    """

    def __init__(self, config="", *, dir=None, binary=NATS_SERVER, jetstream=None, nice=0):
        self.config, self.binary, self.nice = config, binary, nice
        self.dir = Path(tempfile.mkdtemp(prefix="nats-", dir=dir))
        self.jetstream = jetstream and f'jetstream {{ store_dir: "{self.dir}", max_memory_store: 1M, max_file_store: {jetstream} }}'
        self.port, self.http_port = free_port(), free_port()
        self.process = None
        self.lines = []
        self.news = threading.Condition()
        witnesses.append(self)

    def __str__(self):
        return f"nats-server {self.address}"

    @property
    def running(self):
        return bool(self.process) and self.process.poll() is None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"nats://{self.address}"

    def start(self):
        self._write_config()
        self.lines = []
        self.process = subprocess.Popen(["nice", f"-n{self.nice}", self.binary, "-c", str(self.dir / "nats.conf")],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._collect, args=(self.process,), daemon=True).start()
        self.wait_line("Server is ready")
        return self

    def stop(self, how=signal.SIGKILL):
        """Ends it as a crash does."""
        if self.running:
            self.process.send_signal(how)
            self.process.wait(6 * DEADLINE)  # a disk that is busy keeps even a killed process
        return self

    def remove(self):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def reload(self, config):
        """Puts another configuration into force in the running server."""
        self.config = config
        self._write_config()
        said = len(self.lines)
        self.process.send_signal(signal.SIGHUP)
        self.wait_line("Reloaded server configuration", since=said)

    def connections(self):
        """Its clients, as connz tells them: dictionaries with cid, name, subscriptions_list, …"""
        return self.monitored("connz?subs=1&limit=4096")["connections"]

    def subscribers(self, subject):
        """The cids of the clients that are subscribed to exactly this subject."""
        return [c["cid"] for c in self.connections() if subject in c.get("subscriptions_list", [])]

    def knows(self, subject):
        """Whether a message to this subject finds somebody: a client of its own, or one of another server of its cluster."""
        routes = self.monitored("routez?subs=1")["routes"]
        return any(subject in route.get("subscriptions_list", []) for route in routes) or bool(self.subscribers(subject))

    def slow_consumers(self):
        """How many clients it has cut off because they read too slowly."""
        return self.monitored("varz")["slow_consumers"]

    def info(self):
        """What it says first to a client."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE) as s, s.makefile("rb") as file:
            return json.loads(file.readline().removeprefix(b"INFO "))

    def monitored(self, page):
        """What its monitoring says on a page, such as "varz"."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/{page}", timeout=DEADLINE) as answer:
            return json.load(answer)

    def wait_line(self, pattern, timeout=DEADLINE, since=0):
        end = time.monotonic() + timeout
        with self.news:
            while not any(re.search(pattern, line) for line in self.lines[since:]):
                assert self.process.poll() is None, "nats-server ended: " + "".join(self.lines[-5:])
                left = end - time.monotonic()
                assert left > 0, f"nats-server never said {pattern!r}: " + "".join(self.lines[-5:])
                self.news.wait(min(left, 0.5))

    def _write_config(self):
        text = f"listen: 127.0.0.1:{self.port}\nhttp: 127.0.0.1:{self.http_port}\n{self.config}\n{self.jetstream or ''}\n"
        (self.dir / "nats.conf").write_text(text)

    def _collect(self, process):
        for line in process.stderr:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.news.notify_all()


def nats_server_version(binary=NATS_SERVER):
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(n) for n in re.search(r"(\d+)\.(\d+)\.(\d+)", text).groups())


def nats_server_of(version):
    """The binary of "2.9", or of "2.10" or later: the system's, or that of the other Debian; or the "newest", which go makes."""
    if version == "newest":
        target, top = "build/nats-server/newest/nats-server", Path(__file__).resolve().parents[3]
        (top / "build").mkdir(exist_ok=True)  # one at a time: several tests may want it at once
        made = subprocess.run(["flock", top / "build/newest.lock", "make", "-s", "-C", top, target], capture_output=True, text=True)
        if made.returncode != 0:
            import pytest  # the demo has none
            pytest.skip("go cannot make the newest nats-server here: " + (made.stderr.strip().splitlines() or ["?"])[-1])
        return str(top / target)
    suite = {"2.9": "bookworm", "2.10": "trixie"}[version]
    if (nats_server_version() >= (2, 10)) == (version == "2.10"):
        return NATS_SERVER
    fetched = subprocess.run([Path(__file__).resolve().parent / "nats-server.sh", suite], capture_output=True, text=True)
    assert fetched.returncode == 0, fetched.stderr
    return fetched.stdout.strip()


class Cluster:
    """Three servers that know each other, with JetStream; a list of their URLs is a link's cluster_uris.

    Each connects to all, which JetStream asks for. Two that do so at once may both give up the other's route, and then one
    never names all of them (2.9.10 on a busy machine); or JetStream takes two for all that there are, and never finds a place for
    three copies (2.10, one time in 25): a cluster that is not whole in its time is started anew.
    """

    def __init__(self, config="", *, dir=None, binary=NATS_SERVER):
        ports = [free_port() for _ in range(3)]
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        self.nodes = [NatsServer(f"server_name: n{i}\ncluster {{ name: test, listen: 127.0.0.1:{port}, routes: [{routes}] }}\n{config}",
                                 dir=dir, binary=binary, jetstream="1G") for i, port in enumerate(ports)]

    def start(self):
        """Returns when each names all of them to its clients, and JetStream knows of all."""
        for _ in range(4):
            for node in self.nodes:
                node.start()
            if all(self._whole(node, time.monotonic() + DEADLINE) for node in self.nodes) and self._counted(time.monotonic() + DEADLINE):
                return self
            for node in self.nodes:
                node.stop()
                shutil.rmtree(node.dir / "jetstream", ignore_errors=True)
        raise AssertionError("three servers did not find each other in four attempts")

    def _whole(self, node, end):
        while len(node.info().get("connect_urls", [])) < len(self.nodes):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)  # nothing outside announces it
        return True

    def _counted(self, end):
        """Whether one leads all the others."""
        while not any(len(node.monitored("jsz").get("meta_cluster", {}).get("replicas", ())) == len(self.nodes) - 1 for node in self.nodes):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def well(self):
        """Whether all of them say that JetStream is: who stops the next before that takes away the majority."""
        with contextlib.suppress(OSError):  # also the status 503
            return all(node.monitored("healthz")["status"] == "ok" for node in self.nodes)
        return False

    @property
    def urls(self):
        return ",".join(node.url for node in self.nodes)

    def remove(self):
        for node in self.nodes:
            node.remove()


# ---------------------------------------------------------------- certificates

class Certificates:
    """A certificate authority in a folder; openssl does the work."""

    def __init__(self, dir, name="ca"):
        self.dir, self.name = Path(dir), name
        self._run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
                  "-subj", f"/CN=test {name}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                  "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self.ca_file = self.dir / f"{name}.pem"
        self.ca = self.ca_file.read_text()

    def issue(self, name, san="IP:127.0.0.1,DNS:localhost", expired=False, seconds=None):
        """A certificate and key, as the paths name.pem and name.key; seconds: it expires so soon."""
        name = f"{self.name}-{name}"
        self._run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
                  "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self.dir / f"{name}.cnf").write_text(
            f"[ca]\ndefault_ca=it\n[it]\ndatabase={name}.db\nnew_certs_dir=.\nserial={name}.serial\ndefault_md=sha256\n"
            f"policy=any\n[any]\ncommonName=supplied\n[ext]\nsubjectAltName={san}\nkeyUsage=digitalSignature\n"
            "extendedKeyUsage=serverAuth,clientAuth\n")
        (self.dir / f"{name}.db").write_text("")
        (self.dir / f"{name}.serial").write_text(os.urandom(8).hex())
        end = "20200201000000Z" if expired else "20500101000000Z"
        if seconds:
            end = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + seconds))
        dates = ["-startdate", "20200101000000Z", "-enddate", end]
        self._run("ca", "-batch", "-notext", "-config", f"{name}.cnf", "-extensions", "ext", *dates,
                  "-cert", f"{self.name}.pem", "-keyfile", f"{self.name}.key", "-in", f"{name}.csr", "-out", f"{name}.pem")
        return self.dir / f"{name}.pem", self.dir / f"{name}.key"

    def _run(self, *args):
        done = subprocess.run(["openssl", *args], cwd=self.dir, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def tls_block(cert, key, ca=None, *, first=False):
    """The tls { } of a nats-server configuration; with a CA, clients have to show a certificate."""
    lines = [f'cert_file: "{cert}"', f'key_file: "{key}"', f"timeout: {2 * SLOW}"]  # under emulation a handshake takes its time
    if ca:
        lines += [f'ca_file: "{ca}"', "verify: true"]
    if first:
        lines += ["handshake_first: true"]
    return "tls {\n" + "\n".join(lines) + "\n}\n"


# ---------------------------------------------------------------- accounts by JWT

class Accounts:
    """An operator with one account, and users of it: what nats-server wants for `client_jwt` and `client_seed`."""

    def __init__(self):
        self.operator, self.account = self.pair("OPERATOR"), self.pair("ACCOUNT")
        self.operator_jwt = self._jwt(self.operator, self.operator, "operator", {})
        self.config = self.configuration()

    def configuration(self, revoked=()):
        """For nats-server, with the JWTs of users that are revoked from now on."""
        limits = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": True}
        subjects = [json.loads(base64.urlsafe_b64decode(jwt.split(".")[1] + "==="))["sub"] for jwt in revoked]
        nats = {"limits": limits, "revocations": {subject: int(time.time()) for subject in subjects}}
        account_jwt = self._jwt(self.operator, self.account, "account", nats)
        public = self.account.public_key.decode()
        return f"operator: {self.operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {public}: {account_jwt} }}\n"

    def user(self, expires=None, payload=-1):
        """(jwt, seed) of a new user; expires: in so many seconds; payload: bytes of its largest message."""
        user, claims = self.pair("USER"), {"exp": int(time.time() + expires)} if expires else {}
        return self._jwt(self.account, user, "user", {"subs": -1, "data": -1, "payload": payload}, claims), bytes(user.seed).decode()

    @staticmethod
    def credentials(jwt, seed):
        """What a credentials file of NATS holds."""
        return (f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
                f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n")

    @staticmethod
    def pair(kind):
        import nkeys
        seed = nkeys.encode_seed(os.urandom(32), getattr(nkeys, "PREFIX_BYTE_" + kind))
        return nkeys.from_seed(bytearray(seed))

    @staticmethod
    def _jwt(signer, subject, kind, nats, more=None):
        import hashlib

        def part(value):
            return base64.urlsafe_b64encode(value).rstrip(b"=")

        claims = {"iat": int(time.time()), "iss": signer.public_key.decode(), "sub": subject.public_key.decode(),
                  "name": kind, "nats": {**nats, "type": kind, "version": 2}, **(more or {})}
        claims["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
        text = part(b'{"typ":"JWT","alg":"ed25519-nkey"}') + b"." + part(json.dumps(claims).encode())
        return (text + b"." + part(signer.sign(text))).decode()


# ---------------------------------------------------------------- addresses that do not work

def ports_of_this_process():
    """All that Linux gives to nobody who asks for any (/proc/sys/net/ipv4/ip_local_port_range), in 24 parts: each process that starts
    servers has one of them for itself while it runs, beside other workers and other runs of the tests."""
    for part in random.sample(range(24), 24):
        lock = open(f"/tmp/provider-tests-{os.getuid()}-ports-{part}", "w")  # closed with this process
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
    yield from itertools.cycle(range(10_000 + 915 * part, 10_000 + 915 * (part + 1)))


PORTS = ports_of_this_process()


def free_port():
    """A port that nobody listens on, for a server that is away or comes later: until then nobody else gets it."""
    for port in PORTS:
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


class Silent:
    """A listener that accepts connections and never says a word."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = "nats://127.0.0.1:%d" % self.socket.getsockname()[1]
        self.held, self.asked = [], threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        try:
            while True:
                self.held.append(self.socket.accept()[0])
                self.asked.set()
        except OSError:
            pass

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        for s in [self.socket, *self.held]:
            s.close()


class BlackHole:
    """An address where SYN packets get lost: a listener whose queue is full and that never accepts."""

    def __init__(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(0)
        self.url = "nats://127.0.0.1:%d" % self.socket.getsockname()[1]
        self.held = []
        for _ in range(4):
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex(self.socket.getsockname())
            self.held.append(s)

    def close(self):
        for s in [self.socket, *self.held]:
            s.close()


class Proxy:
    """A TCP path to a port, which can go silent without closing, in either direction or both, and speak again.

    rate: so many bytes a second go to the server; down: and so many to the client. delay: seconds each way (None: it never has any). Both may change while it works.
    buffer: what the kernel takes in advance from the client, about; a slow path wants it small. late: by how many seconds a delay, or the
    time that the rate takes, was exceeded at most, since the machine did something else.
    """
    late = 0

    def __init__(self, port, rate=None, delay=None, buffer=None, down=None):
        self.to_port, self.rate, self.down, self.delay = port, rate, down, delay
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(64)
        self.url = "nats://127.0.0.1:%d" % self.socket.getsockname()[1]
        self.open = {"to server": threading.Event(), "to client": threading.Event()}
        self.pairs = []
        self.speak()
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self, *directions):
        """From now on nothing passes: "to server", "to client", or both if none is named."""
        for direction in directions or self.open:
            self.open[direction].clear()

    def speak(self):
        for gate in self.open.values():
            gate.set()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self.socket.accept()[0]
                try:
                    server = socket.create_connection(("127.0.0.1", self.to_port), timeout=DEADLINE)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self.pairs.append((client, server))
                self._start(client, server)

    def _start(self, client, server):
        threading.Thread(target=self._pump, args=(client, server, "to server"), daemon=True).start()
        threading.Thread(target=self._pump, args=(server, client, "to client"), daemon=True).start()

    def _pump(self, source, target, direction):
        deliver, line = target.sendall, None
        if self.delay is not None:
            line = queue.Queue(256)
            threading.Thread(target=self._deliver, args=(line, source, target), daemon=True).start()
            deliver = lambda data: line.put((time.monotonic() + self.delay, data))  # noqa: E731
        with contextlib.suppress(OSError):
            while data := source.recv(self._at_once(direction)):
                if self._at_once(direction) < 65536:
                    began, pause = time.monotonic(), len(data) / self._rate(direction)
                    time.sleep(pause)  # this is the rate
                    self.late = max(self.late, time.monotonic() - began - pause)
                self.open[direction].wait()
                deliver(data)
        self.open[direction].wait()  # an end is no louder than the rest
        if line:
            line.put((time.monotonic() + self.delay, None))
        else:
            self._end(source, target)

    def _rate(self, direction):
        return self.rate if direction == "to server" else self.down

    def _at_once(self, direction):
        rate = self._rate(direction)
        return min(65535, max(512, rate // 20)) if rate else 65536

    def _deliver(self, line, source, target):
        while (due := line.get())[1]:
            time.sleep(max(0, due[0] - time.monotonic()))
            self.late = max(self.late, time.monotonic() - due[0])
            with contextlib.suppress(OSError):
                target.sendall(due[1])
        self._end(source, target)

    @staticmethod
    def _end(*sockets):
        for s in sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.speak()
        for pair in self.pairs:
            for s in pair:
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)
                s.close()


def raw_publish(server, subject, payload=b"", reply=b"", headers=b""):
    """Publishes with subjects and header blocks that no client library would let through."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as s:
        file = s.makefile("rwb")
        file.readline()
        lengths = [len(headers), len(headers + payload)] if headers else [len(payload)]
        head = b" ".join(part for part in (b"HPUB" if headers else b"PUB", subject, reply, *(str(n).encode() for n in lengths)) if part)
        file.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n' + head + b"\r\n" + headers + payload + b"\r\nPING\r\n")
        file.flush()
        assert file.readline().startswith(b"PONG"), "the server did not like the raw message"
