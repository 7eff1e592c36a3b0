#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""seeds.py DIR    writes DIR/TARGET/… for each target of fuzz.c, and DIR/dictionary, from the captures in devel/tests/golden

Certificates and keys for the target "pem" are made by openssl. The forms of the inputs are told in fuzz.c, at each target.
"""
import base64
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "tests" / "golden"
out = Path(sys.argv[1])
count = 0


def seed(target, data):
    global count
    count += 1
    directory = out / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{count:04}").write_bytes(data)


def leb(n):
    digits = bytearray()
    while n > 127:
        digits.append(n & 127 | 128)
        n >>= 7
    return bytes(digits) + bytes([n])


def string(data):
    return leb(len(data)) + data


def short(data):
    """As take_span() of fuzz.c reads it: a length byte, then the bytes."""
    return bytes([min(len(data), 255)]) + data[:255]


def wire_values(lines):
    """Parameters and results, as they went over the wire."""
    for line in lines:
        data = base64.b64decode(line["data"])
        subject = line["subject"]
        if subject.endswith(("handle-message", ".publish")):
            seed("wire", b"\0" + data)
            seed("chunks", b"\x08\1\2\3\5" + data)
        if subject.endswith(".request"):
            seed("wire", b"\1" + data)
            seed("chunks", b"\x09\1\2\3\5" + data)
        if subject.endswith(".results") and data:
            seed("result", b"\0\1\2" + data)
        seed("subjects", subject.encode())
        if line["reply"]:
            seed("subjects", line["reply"].encode())
    for n in 0, 127, 128, 2**16, 2**32 - 1, 2**32, 2**35 - 1, 2**63, 2**64 - 1:
        seed("wire", b"\2" + leb(n))
        seed("wire", b"\3" + leb(n) + b"abc")
        seed("wire", b"\0" + leb(n) + b"abc" + leb(n))
        seed("result", b"\0\0\0\1" + leb(n) + b"words")
        seed("chunks", b"\x06\1\1\1" + leb(n) + b"abc" + leb(n))
    seed("wire", b"\2\x80\x80\x80\x80\0")  # longer than it need be
    seed("wire", b"\0\1a\1b\2")  # neither none nor some
    for text in "é", "€", "😀":
        seed("wire", b"\4" + string(text.encode()))
        seed("wire", b"\4" + string(text.encode()[:-1]))
    for text in b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff":
        seed("wire", b"\4" + string(text))
        seed("subjects", text)
    for text in "a.*|q,b.>", "a..b", "a\r\nPUB x 0\r\n\r\n", ">", "a.>.b", "tls://u:p@[::1]:4222", "nats://a%20b:%22%5c%0d@h.x/y", "[fe80::1%eth0]", "tok%c3%a9n@h:1", "300", "86400", "0", "*", "q.work|workers, t.>":
        seed("subjects", text.encode())


def calls(lines):
    """Short histories of calls: the letters are those of happen() in fuzz.c."""
    def of(end):
        return base64.b64decode(next(line for line in lines if line["subject"].endswith(end))["data"])
    publish, request = of(".publish"), of(".request")
    taken = bytes([11, 0, 11, 1])  # the links' servers take what was written
    handled = bytes([4, 1]) + short(b"t.echo") + short(b"hello")
    shaken = bytes([5, 0]) + short(b"H.rs") + short(b"")
    ok, error, trap = (bytes([16 + 5, 0]) + short(b"") + short(r) for r in (b"\0", b"\1\4fail", b""))
    old_trap = bytes([48 + 5, 0]) + short(b"") + short(string(b"trapped"))
    reply, nobody = bytes([8, 0]) + short(b"SHOUT"), bytes([8, 128]) + short(b"")
    for flags in 0, 1, 4, 3 + 128:
        head = bytes([flags])
        seed("calls", head + bytes([0, 1]) + short(publish) + taken)
        seed("calls", head + bytes([0, 1]) + short(publish[:9]) + bytes([2, 1]) + short(publish[9:]) + taken)
        seed("calls", head + bytes([0, 1]) + short(b"\4a.bc\xf0\xff\x10" + b"x" * 9) + bytes([128 + 2, 1]) * 6)
        large = b"".join(bytes([0, n]) + short(b"\4a.bc" + leb(12000 - 1)) + bytes([128 + 2, n]) for n in (0, 2, 4))
        seed("calls", bytes([flags | 64]) + bytes([64 + 11, 0]) + large + taken)  # what its server is slow to take is held
        seed("calls", head + bytes([64 + 11, 0]) + large + bytes([128 + 10, 255]))
        seed("calls", head + bytes([0, 1]) + short(publish[:9]) + bytes([15, 6, 2, 1]) + short(publish[9:]) + taken + bytes([10, 250, 10, 250]))
        seed("calls", head + handled + bytes([15, 4, 10, 250, 10, 30, 10, 250]))
        seed("calls", head + bytes([1, 1]) + short(request) + bytes([64 + 12, 3]) + short("connexion cassée".encode() + b"\xff"))
        seed("calls", head + bytes([1, 1]) + short(request) + taken + reply)
        seed("calls", head + bytes([1, 1]) + short(request) + taken + nobody)
        for host in 32, 64, 96:  # callers on a host of 1.9: it acknowledges, is late, or its component is not linked
            once, twice = bytes([2, host + 1, 0]), bytes([2, host + 1, 0]) * 2
            seed("calls", head + bytes([0, host + 1]) + short(publish) + taken + bytes([10, 30]) + twice)
            seed("calls", head + bytes([1, host + 1]) + short(request) + once + taken + reply + bytes([10, 30, 10, 50]) + once)
            seed("calls", head + bytes([1, host + 1]) + short(request) + taken + bytes([64 + 8, 0]) + bytes([10, 30]) + twice)
            seed("calls", head + bytes([0, host + 1]) + short(publish[:9]) + bytes([10, 30, 2, host + 1]) + short(publish[9:]) + taken + once)
            seed("calls", head + bytes([0, host + 1]) + short(publish) + taken + bytes([128 + 10, 250]) * 2)
        seed("calls", head + bytes([1, 1]) + short(request) + bytes([128 + 10, 20]))
        seed("calls", head + bytes([11 + 64, 1, 0, 1]) + short(publish) + bytes([0, 3]) + short(publish) + bytes([12, 1, 12, 1, 12, 1]))
        seed("calls", head + bytes([11 + 64, 1, 14 + 128, 3]) + b"".join(bytes([0, n]) + short(publish) for n in (1, 3, 5)) + taken)
        for end in ok, error, trap, old_trap, bytes([5, 128]) + short(b"") + short(b""), bytes([128 + 10, 255]):
            seed("calls", head + handled + shaken + end)
            seed("calls", head + handled * 5 + shaken + end + handled)
        seed("calls", head + bytes([128 + 3, 0]) + short(b"t.big") + shaken + bytes([128 + 13, 0, 13, 0, 13, 0]) + ok)
        seed("calls", head + bytes([15, 3, 15, 0, 9, 1]) + short(b"x.y") + short(b""))
        seed("calls", head + handled + bytes([15, 8, 15, 24, 15, 40]))  # the questions of the service protocol


def orders(lines, host, box):
    """Orders of a host, a line each; and host data."""
    put = [base64.b64decode(line["data"]) for line in lines if line["subject"].endswith("messaging-nats.linkdefs.put")]
    links = [json.loads(p) for p in put]
    handler = next(link for link in links if link["source_id"] == "messaging-nats")
    consumer = next(link for link in links if link["target"] == "messaging-nats")

    def text(value):
        return json.dumps(value, separators=(",", ":")).encode()

    def link(base, side, **config):
        return text({**base, side + "_config": config})

    everything = dict(cluster_uris="nats://u:p@h:1,tls://[::1]:4222", tls_ca="-----BEGIN CERTIFICATE-----", tls_first="true",
                      tls_ca_file="/ca", ping_interval_sec="3", custom_inbox_prefix="_INBOX.x", max_in_flight="1",
                      handler_timeout_ms="500", subscriptions="t.>,q.work|workers")
    seed("links", b"\n".join(b"p" + p for p in put) + b"\nu0\nu1\nu2\nu3\nt\nd" + put[0])
    seed("links", b"p" + link(handler, "source", **everything) + b"\nu0\nc" + text({"cluster_uris": "h:2", "max_in_flight": "9"}) + b"\nu0\nu1\nb0\nt\n")
    seed("links", b"p" + link(consumer, "target", consumers="[]", tls_cert="x", tls_key="y") + b"\np" + put[1] + b"\nd" + text({"source_id": "echo"}))
    seed("links", b"p" + text({**consumer, "target_secrets": box["as_link_field"]}) + b"\ns" + text({"host_id": "NHOST"}))
    seed("links", b"p" + link(handler, "source", client_jwt="a.b", client_seed="SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY") + b"\nb0\nt")
    seed("links", b"\n".join(b"p" + text({**consumer, "name": f"n{n}"}) for n in range(5)) + b"\nu0\nu1\nu2\nu3\nc{}\nc{\"tls_first\":\"true\"}\nu0\nu1\nb0\nb1")
    for uri in "nats://a b", 'nats://a\"b:c@h', "nats://h\r\nPUB", "a\\b", "nats://h,http://h":
        seed("links", b"p" + link(consumer, "target", cluster_uris=uri) + b"\nu0")
    seed("links", b"m" * 9 + b"\np" + put[0] + b"\nu0\nu1\nc{\"tls_first\":\"true\"}\nt\nd" + text({"source_id": "many1", "target": "messaging-nats"}) + b"\nt\nu0\nb1")
    for data in host, {**host, "lattice_rpc_prefix": "a.b"}, {**host, "link_definitions": links, "structured_logging": True}, \
            {**host, "config": {"lattice_tls_first": "true", **everything}, "secrets": {"client_seed": {"kind": "Bytes", "value": [1, 255]}}}, \
            {"provider_key": "messaging-nats"}:
        seed("host", b"j\xff" + text(data))
    for key in host:
        seed("host", b"j\xff" + text({"provider_key": "x", key: 7}))
        seed("host", b"j\xff" + text({"provider_key": "x", key: None}))
    seed("host", b"c\xff" + text(host))
    for link_json in put[:2]:
        seed("host", b"c\xff" + link_json)
    seed("host", b"r\x08" + base64.b64encode(text(host)) + b"\r\n")
    seed("host", b"r\x01not base64\n")
    plain = box["plaintext"].encode()
    for how in range(4):
        seed("secrets", bytes([how, 0, 0]) + plain)
    seed("secrets", bytes([2, 0, 0]) + bytes.fromhex(box["sealed_hex"]))
    seed("secrets", bytes([4, 50, 0]) + plain)
    seed("secrets", bytes([0, 0, 0]) + b"[1]")
    for key in "host_seed", "host_xkey_public_key", "provider_xkey_private_key", "provider_xkey_public_key":
        seed("nkeys", box[key].encode())
    for raw in (b"\xb8", b"\x95\xc0", b"\x95\0"):
        seed("nkeys", raw + bytes(range(34)) + b"7" * 3)


def certificates():
    with tempfile.TemporaryDirectory() as directory:
        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], cwd=directory, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

        def add(name, numbers):
            pem = (Path(directory) / name).read_bytes()
            der = base64.b64decode(b"".join(line for line in pem.splitlines() if not line.startswith(b"-") and b":" not in line))
            for how in (0, 8, 16):
                seed("pem", bytes([how]) + pem)
                for number in numbers:
                    seed("pem", bytes([how | number]) + der)

        many = ",".join(f"DNS:{letter * 40}.example" for letter in "abcd")
        for kind in ["rsa:2048"], ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], ["ed25519"]:
            openssl("req", "-x509", "-newkey", *kind, "-nodes", "-keyout", "key", "-out", "cert", "-days", "9", "-subj", "/O=Test/CN=a\tname",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1,DNS:*.example,email:a@b," + many)
            add("cert", [1])
            add("key", [5])
            if kind[0] == "ec":  # whom the target "connect" trusts
                (out / "ca.pem").write_bytes((Path(directory) / "cert").read_bytes())
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ec")
        add("ec", [4])
        openssl("pkcs8", "-topk8", "-in", "ec", "-out", "locked", "-passout", "pass:x")
        add("locked", [6])
        (Path(directory) / "two").write_bytes((Path(directory) / "cert").read_bytes() * 2)
        seed("pem", b"\x10" + (Path(directory) / "two").read_bytes())
        seed("pem", b"\x10-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n")


def jetstream():
    """Histories of consumers' messages: the letters are those of happen_to_consumers() in fuzz.c, and with 15 of happen()."""
    pulled = bytes([12, 9, 0, 1, 12])  # asked, answered, asked for messages
    infos = bytes([9, 4, 1]), bytes([9, 8, 77]), bytes([9, 0, 0]), bytes([9, 0, 255]), bytes([9, 2]) + short(b'{"config":{"ack_policy":"explicit"}}')
    shaken, nobody = bytes([15, 5, 0]) + short(b"H.rs") + short(b""), bytes([15, 5, 128]) + short(b"") + short(b"")
    ok, error, trap = (bytes([15, 16 + 5, 0]) + short(b"") + short(r) for r in (b"\0", b"\1\4fail", b""))
    link_breaks, lattice_breaks, stops, late = bytes([15, 128 + 12, 0]), bytes([15, 128 + 13, 0]), bytes([15, 15, 4]), bytes([15, 128 + 10, 255])

    def delivered(how, body=b"hello", consumer=0, own=None):
        return bytes([8, how, consumer]) + (b"" if own is None else short(own)) + short(body)
    for link in range(0, 64, 5):
        for how in 0, 1, 2, 3 + 8, 4 + 40, 64, 64 + 32:
            head = bytes([link, link % 4]) + pulled + delivered(how) + delivered(how, b"")
            for end in ok, error, trap, late, late * 3, nobody + late * 4, nobody + bytes([124]) + ok, stops, bytes([11, link]), bytes([27, link + 1]) + ok:
                seed("jetstream", head + shaken + end)
            seed("jetstream", head + shaken + link_breaks + ok + bytes([252]) + bytes([10]) * 2)
            seed("jetstream", head + lattice_breaks + delivered(how) + late * 4)
    for link in 0, 5, 34:  # another server: a new connection takes over while the component has a message, or is given up
        head = bytes([link, 0]) + pulled + delivered(0) + shaken
        moved = head + bytes([27, link + 64]) + bytes([10]) * 2
        seed("jetstream", moved + delivered(0, b"x") + ok + bytes([12, 9, 0, 1]) + delivered(0))
        seed("jetstream", head + link_breaks + bytes([76]) + bytes([27, link + 64]) + bytes([10]) * 2 + ok)
        seed("jetstream", moved + bytes([11, link]) + bytes([252]) + ok)
    for status in 1, 2, 15, 48:  # the request ends while the component has what it brought
        seed("jetstream", bytes([9, 0]) + pulled + delivered(0) + bytes([9, 1, status, 12]) + delivered(0) + shaken + ok)
    again = bytes([15, 16 + 5, 1]) + short(b"") + short(b"\0")  # a host shakes hands and goes; the next result comes without
    seed("jetstream", bytes([12, 0]) + pulled + delivered(0) + shaken + nobody + bytes([156]) + again)
    for own in b"S.c.1.1.1.1.1", b"_.h.S.c.1.1.1.1.1", b"d.h.S.d.2.9.9.9.9.r", b"S.c.1.1", b"S.c..1.1.1.1", b"S.c.*.1.1.1.1", b"S.c.1.1.1.1." + b"9" * 220:
        seed("jetstream", bytes([4, 0]) + pulled + delivered(128, own=own) + shaken + ok)
    for info in infos:
        seed("jetstream", bytes([8, 1]) + bytes([12]) + info + bytes([252, 9, 0, 1]) + delivered(0) + shaken + ok)
    for own in "S.c.1.2.3.4.5", "_.h.S.c.1.2.3.4.5", "_.h.S.c.1.2.3.4.5.r", "S.c.1.2.3.4.5.6", "S.c.1.2.3.4", "S..1.2.3.4.5", "a.b.c.d.e.f.g.h.i.j.k.l":
        seed("acks", b"$JS.ACK." + own.encode())
    entry = {"stream": "S", "consumer": "c", "max_messages": 1, "max_bytes": 100}
    for change in {}, {"stream": "a.b"}, {"consumer": "*"}, {"stream": ""}, {"consumer": "s" * 127}, {"max_messages": 0}, {"max_bytes": 1.5}, {"max_bytes": None}, {"x": 1}:
        seed("acks", json.dumps([{**entry, **change}]).encode())
        seed("acks", json.dumps([entry, {**entry, **change}]).encode())
    seed("acks", json.dumps([{**entry, "consumer": str(n)} for n in range(9)]).encode())
    seed("acks", json.dumps([{"stream": "s" * 64, "consumer": "c" * 63}]).encode())
    for status in range(96):
        seed("jetstream", bytes([8, 1]) + pulled + bytes([9, 1, status, 252, 12]) + delivered(0) + bytes([9, 65, status]) + short(b"words") + shaken + ok)


def guarded():
    """Input of a NATS server: raw bytes, and choices of valid lines."""
    pieces = bytes([255] * 4), bytes([0, 5, 2, 9]), bytes([19, 127, 200, 3])
    texts = (b'INFO {"a":1}\r\nPING\r\n+OK\r\nMSG a 1 5\r\nhello\r\nPONG\r\n', b"HMSG a.b 12 r.s 12 17\r\nNATS/1.0\r\n\r\nhello\r\nPING\r\n",
             b"-ERR 'Stale Connection'\r\n", b"MSG a 1 7000\r\n\xc6\r\nMSG b 1 99999999\r\n", b"MSG a 1 7000\r\n\xb0", b"MSG a 1 0\r\n\r\nmsg\ta\t1 r 3 \r\nabc\r\n",
             b"MSG a 1 2147483600\r\n", b"MSG \na 1 5\r\nhello\r\n", b"MSG a 1 5 9999999999\r\n", b"MSG " + b"s" * 4100 + b" 1 5\r\n")
    for cuts in pieces:
        for text in texts:
            seed("guard", b"\1" + cuts + text)
        seed("guard", b"\0" + cuts + bytes(range(24)))
        seed("guard", b"\0" + cuts + bytes([6, 0, 180, 7, 255, 187, 0, 0, 0, 5, 0, 16, 13, 1, 16]))


def connecting():
    """What a server says before the connection stands; the first byte chooses the settings, 1 to 3 are as in connect.c."""
    def info(**fields):
        return b"INFO " + json.dumps({"server_id": "X", "version": "2.9.10", "proto": 1, "host": "127.0.0.1", "port": 4222, "headers": True,
                                      "max_payload": 1048576, "client_id": 1, "nonce": "abc", **fields}).encode() + b"\r\n"
    hello = bytes.fromhex("160303002a02000026" "0303") + b"r" * 32 + bytes.fromhex("0013030000")  # a ServerHello, without extensions
    answers = (b"PONG\r\n", b"+OK\r\nPONG\r\n", b"-ERR 'Authorization Violation'\r\n", b"-ERR '\2'\r\n", b"-ERR\r\n", b"P\3O\3NG\r\n", b"\2\r\n", b"x" * 4200)
    for choice in range(16):
        for answer in answers:
            seed("connect", bytes([choice]) + info() + b"\1" + answer)
        for flags in {"tls_required": True}, {"tls_available": True}, {"auth_required": True}, {"connect_urls": ["a:1", "[::1]:2"]}, {"x": {"y": [1, {}]}}:
            seed("connect", bytes([choice]) + info(**flags) + b"\1" + hello + b"\1PONG\r\n")
        seed("connect", bytes([choice]) + hello + hello)
    for text in (b"", b"\r\n", b"INFO\r\n", b"INFO [1]\r\n", b'INFO {"a":1e99999999999}\r\n', b'INFO {"a":[' + b"{}," * 500 + b"{}]}\r\n", info()[:-1] + b"\3\n", b"INFO " + b"x" * 8000,
                 b'INFO {"server_id":"a\\u0041","max_payload":-1}\r\n', b"HTTP/1.1 400 Bad Request\r\n\r\n", b"info {}\r\n", b'INFO {"port":"x"}\r\n'):
        seed("connect", b"\1" + text + b"\1PONG\r\n")


def dictionary(host):
    """Words of the source and of the captures, which a fuzzer would be long in finding."""
    source = (HERE.parent.parent / "provider.c").read_text()
    words = set(re.findall(r'"([a-z][a-z_0-9.-]{2,24})"', source + json.dumps(host)))
    words |= {"nats://", "tls://", "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----", "\\u0000", "\\ud800", "true", "null", ".>", "|",
              "$JS.ACK.", "deliver_subject", "ack_policy", "explicit", "MSG ", "HMSG ", "INFO ", "-ERR ", "+OK", "PING", " 2147483600", " 7000"}
    (out / "dictionary").write_text("".join('"' + word.replace("\\", "\\\\") + '"\n' for word in sorted(words)))


capture = [json.loads(line) for line in (GOLDEN / "lattice-1.9.2.jsonl").read_text().splitlines()]
host_data = json.loads((GOLDEN / "hostdata-1.9.2.json").read_text())
wire_values(capture)
calls(capture)
orders(capture, host_data, json.loads((GOLDEN / "xkey.json").read_text()))
certificates()
jetstream()
guarded()
connecting()
dictionary(host_data)
