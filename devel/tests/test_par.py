# SPDX-License-Identifier: Apache-2.0
"""The provider archive: what build/par packs, read by other means; what it says of archives that are not as they should be; and
the manifest that starts one, devel/example/wadm.yaml."""
import base64
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
import tarfile
import time

import nacl.signing
import nkeys
import pytest
import yaml

from lattice import TOP, golden_host_data, run_provider
from servers import DEADLINE, Accounts

pytestmark = pytest.mark.release
BINARIES = {"x86_64-linux": bytes(range(256)) * 700, "aarch64-linux": b"\x7fELF and so on"}
ABOUT = {"name": "messaging-nats", "vendor": "somebody é", "version": "1.2.3", "revision": "7"}


@pytest.fixture(params=["build/par", "build/san/par"], ids=["par", "sanitized"])
def par(request, tmp_path):
    """Runs the tool in a home of its own: par(words…, variable=value…) gives exit code, stdout, stderr."""
    def run(*words, **environment):
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "halt_on_error=1:exitcode=99"}
        done = subprocess.run([TOP / request.param, *map(str, words)], env={**env, **environment}, capture_output=True, timeout=DEADLINE)
        return done.returncode, done.stdout.decode(), done.stderr.decode()
    return run


@pytest.fixture
def pack(par, tmp_path):
    """Packs BINARIES, and gives the path."""
    def run(name="it.par.gz", about=ABOUT, **environment):
        words = [f"--{key}={value}" for key, value in about.items()]
        for target, content in BINARIES.items():
            (tmp_path / target).write_bytes(content)
            words.append(f"{target}={tmp_path / target}")
        code, out, err = par("pack", tmp_path / name, *words, **environment)
        assert (code, err) == (0, ""), err
        run.out = out
        return tmp_path / name
    return run


# ---------------------------------------------------------------- what the format says, written once more

def part(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def unpadded(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def public_key(text, prefix):
    """The Ed25519 key in an nkey with this prefix byte."""
    raw = base64.b32decode(text)
    assert len(raw) == 35 and raw[0] == prefix and nkeys.crc16(raw[:33]) == int.from_bytes(raw[33:], "little"), text
    return raw[1:33]


def seed(kind):
    """(seed, key pair) of a new nkey."""
    text = nkeys.encode_seed(os.urandom(32), kind).decode().rstrip("=")
    return text, nkeys.from_seed(bytearray(text.encode()))


SERVICE = 21 << 3  # "V", of which the package nkeys has no name


def service_seed():
    """A seed of a provider, SV…"""
    raw = bytes([18 << 3 | SERVICE >> 5, (SERVICE & 31) << 3]) + os.urandom(32)
    return base64.b32encode(raw + nkeys.crc16(raw).to_bytes(2, "little")).decode().rstrip("="), nacl.signing.SigningKey(raw[2:])


def opened(content):
    """[(name, content)…] of an archive."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz" if content[:2] == b"\x1f\x8b" else "r:") as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]


def closed(files, format=tarfile.USTAR_FORMAT):
    """The archive of such a list, not compressed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


ISSUER = nacl.signing.SigningKey.generate()


def nkey_of(key, prefix):
    raw = bytes([prefix]) + bytes(key.verify_key)
    return base64.b32encode(raw + nkeys.crc16(raw).to_bytes(2, "little")).decode().rstrip("=")


def some_claims():
    """Claims about BINARIES, as wash would write them."""
    return {"jti": "any", "iat": 1_700_000_000, "iss": nkey_of(ISSUER, 0), "sub": nkey_of(nacl.signing.SigningKey.generate(), SERVICE), "wascap_revision": 3,
            "wascap": {"name": "n", "vendor": "v", "rev": 1, "ver": "0.1.0",
                       "target_hashes": {target: hashlib.sha256(content).hexdigest().upper() for target, content in BINARIES.items()}}}


def signed(claims, head='{"typ":"jwt","alg":"Ed25519"}'):
    text = f"{unpadded(head.encode())}.{unpadded(claims if isinstance(claims, bytes) else json.dumps(claims).encode())}"
    return f"{text}.{unpadded(ISSUER.sign(text.encode()).signature)}".encode()


def files(claims=None, **how):
    """The files of a good archive, or of one with these claims."""
    return [("claims.jwt", signed(claims or some_claims(), **how)), *((f"{target}.bin", content) for target, content in BINARIES.items())]


# ---------------------------------------------------------------- pack

@pytest.mark.parametrize("name", ["it.par", "it.par.gz"])
def test_archive(pack, par, name):
    """Claims first, then the binaries; the hashes are theirs, and the signature is the account's."""
    began = int(time.time())
    path = pack(name)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    (first, jwt), *binaries = opened(path.read_bytes())
    assert first == "claims.jwt"
    assert dict(binaries) == {f"{target}.bin": content for target, content in BINARIES.items()}
    head, claims, signature = jwt.decode().split(".")
    assert json.loads(part(head)) == {"typ": "jwt", "alg": "Ed25519"}
    claims = json.loads(part(claims))
    nacl.signing.VerifyKey(public_key(claims["iss"], 0)).verify(jwt.rsplit(b".", 1)[0], part(signature))
    public_key(claims["sub"], SERVICE)
    assert claims["iss"][0] == "A" and claims["sub"][0] == "V" and claims["wascap_revision"] == 3
    assert began <= claims["iat"] <= time.time() and len(claims["jti"]) > 20
    hashes = {target: hashlib.sha256(content).hexdigest().upper() for target, content in BINARIES.items()}
    assert claims["wascap"] == {"name": ABOUT["name"], "vendor": ABOUT["vendor"], "ver": "1.2.3", "rev": 7, "target_hashes": hashes}


def test_inspect(pack, par):
    """Everything in words: whose, what, when, and that it is right."""
    path = pack()
    claims = json.loads(part(opened(path.read_bytes())[0][1].decode().split(".")[1]))
    code, out, err = par("inspect", path)
    assert (code, err) == (0, "")
    for words in ('name +"messaging-nats"', 'version +"1.2.3"', "revision +7", f"provider +{claims['sub']}", f"signed by +{claims['iss']}", "signature +right",
                  time.strftime("signed at +%Y-%m-%d %H:%M:%S UTC", time.gmtime(claims["iat"]))):
        assert re.search(words, out), (words, out)
    for target, content in BINARIES.items():
        assert re.search(f"{target}, {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest().upper()}: as claimed", out), out


def test_archives_of_others(par, tmp_path):
    """What wash makes is right as well: GNU's headers, a world.wasm, a schema; compressed or not."""
    claims = some_claims()
    claims["wascap"]["config_schema"] = {"type": "object"}
    claims["wascap"]["target_hashes"]["world.wasm"] = hashlib.sha256(b"wit").hexdigest().upper()
    content = closed([*files(claims), ("world.wasm", b"wit")], tarfile.GNU_FORMAT)
    for name, written in ("plain", content), ("gzip", gzip.compress(content)):
        (tmp_path / name).write_bytes(written)
        code, out, err = par("inspect", tmp_path / name)
        assert (code, err) == (0, "") and "world.wasm, 3 bytes" in out


def test_reproducible(pack):
    """The same bytes for the same time; another time changes jti, iat, and the time in the tar's headers alone."""
    one, two, later = (pack(name, SOURCE_DATE_EPOCH=at).read_bytes() for name, at in (("1.gz", "1700000000"), ("2.gz", "1700000000"), ("3.gz", "1700000001")))
    assert one == two != later
    about = [json.loads(part(opened(content)[0][1].decode().split(".")[1])) for content in (one, later)]
    assert about[0]["iat"] == 1_700_000_000 and about[1]["iat"] == 1_700_000_001 and about[0]["jti"] != about[1]["jti"]
    assert [{**claims, "iat": 0, "jti": ""} for claims in about] == [{**about[0], "iat": 0, "jti": ""}] * 2
    assert opened(one)[1:] == opened(later)[1:]


@pytest.mark.parametrize("words", [
    [], ["nonsense"], ["inspect"], ["inspect", "a", "b"], ["pack"], ["pack", "out.par", "--name=n", "--vendor=v", "--version=1", "--revision=1"],
    ["pack", "out.par", "--name=n", "--vendor=v", "--version=1", "x86_64-linux=/bin/sh"],
    ["pack", "out.par", "--name=n", "--vendor=v", "--version=1", "--revision=-1", "x86_64-linux=/bin/sh"],
    ["pack", "out.par", "--name=n", "--vendor=v", "--version=1", "--revision=1", "claims=/bin/sh"],
    ["pack", "out.par", "--name=n", "--vendor=v", "--version=1", "--revision=1", "../x-linux=/bin/sh"],
    ["pack", "out.par", "--name=n", "--vendor=v", "--version=1", "--revision=1", "a-b=/bin/sh", "a-b=/bin/sh"], ["pack", "--bogus"]], ids=str)
def test_wrong_usage(par, words):
    """Exit code 2, and why."""
    code, out, err = par(*words)
    assert code == 2 and out == "" and err


def test_help(par):
    code, out, err = par("--help")
    assert (code, err) == (0, "") and "PAR_ISSUER" in out and "inspect" in out


def test_nothing_to_pack(par, pack, tmp_path):
    """A binary that is missing is a sentence that names it; what was at OUTPUT before stays, and nothing half done beside it."""
    path = pack()
    before, names = path.read_bytes(), set(os.listdir(tmp_path))
    code, _, err = par("pack", path, *(f"--{k}={v}" for k, v in ABOUT.items()), f"x86_64-linux={tmp_path}/absent")
    assert code == 1 and "/absent: No such file" in err and path.read_bytes() == before and set(os.listdir(tmp_path)) == names
    assert par("pack", tmp_path, *(f"--{k}={v}" for k, v in ABOUT.items()), f"x86_64-linux={tmp_path}/x86_64-linux")[0] == 1
    assert not os.path.exists(f"{tmp_path}.unfinished")
    assert par("pack", "/dev/full/it.par", *(f"--{k}={v}" for k, v in ABOUT.items()), f"x86_64-linux={tmp_path}/x86_64-linux")[0] == 1


# ---------------------------------------------------------------- keys

def whose(path):
    claims = json.loads(part(opened(path.read_bytes())[0][1].decode().split(".")[1]))
    return claims["iss"], claims["sub"]


@pytest.mark.parametrize("config", ["HOME", "XDG_CONFIG_HOME"])
def test_keys_are_made_once(pack, tmp_path, config):
    """Made where it is said, for the user's eyes only, and used again."""
    environment = {} if config == "HOME" else {config: str(tmp_path / "xdg" / "deep")}
    folder = (tmp_path / ".config" if config == "HOME" else tmp_path / "xdg" / "deep") / "messaging-nats"
    first = whose(pack(**environment))
    assert str(folder / "account.nk") in pack.out and str(folder / "provider.nk") in pack.out
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(os.listdir(folder)) == ["account.nk", "provider.nk"]
    for name, begins in ("account.nk", "SA"), ("provider.nk", "SV"):
        text = (folder / name).read_text()
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600 and text.startswith(begins) and len(text) == 59
        assert text.strip() not in pack.out
    assert nkeys.from_seed(bytearray((folder / "account.nk").read_bytes().strip())).public_key.decode().rstrip("=") == first[0]
    assert whose(pack(**environment)) == first and "made the key" not in pack.out


def test_keys_given(pack, tmp_path):
    """As seeds, and as files with or without a line's end; no file is made of them."""
    issuer, pair = seed(nkeys.PREFIX_BYTE_ACCOUNT)
    subject, key = service_seed()
    expected = pair.public_key.decode().rstrip("="), nkey_of(key, SERVICE)
    (tmp_path / "issuer").write_text(issuer)
    (tmp_path / "subject").write_text(subject + "\n")
    assert whose(pack(PAR_ISSUER=issuer, PAR_SUBJECT=subject)) == expected
    assert whose(pack(PAR_ISSUER=str(tmp_path / "issuer"), PAR_SUBJECT=str(tmp_path / "subject"))) == expected
    assert not (tmp_path / ".config").exists()


@pytest.mark.parametrize("variable", ["PAR_ISSUER", "PAR_SUBJECT"])
@pytest.mark.parametrize("spoil", [lambda own, other: other, lambda own, other: own[:-1] + ("A" if own[-1] != "A" else "E"), lambda own, other: own[:-1],
                                   lambda own, other: "/nowhere"], ids=["the other sort", "typing error", "cut", "no file"])
def test_keys_refused(par, tmp_path, variable, spoil):
    """One sentence that names the variable, and does not show what is in it."""
    issuer, subject = seed(nkeys.PREFIX_BYTE_ACCOUNT)[0], service_seed()[0]
    value = spoil(*(issuer, subject) if variable == "PAR_ISSUER" else (subject, issuer))
    environment = {"PAR_ISSUER": issuer, "PAR_SUBJECT": subject, variable: value}
    code, out, err = par("pack", tmp_path / "x.par", *(f"--{k}={v}" for k, v in ABOUT.items()), "x86_64-linux=/bin/sh", **environment)
    assert code == 1 and variable in err and value not in out + err and not (tmp_path / "x.par").exists()


def test_kept_key_is_damaged(par, pack, tmp_path):
    """A key that was made and is no longer one is not silently replaced: it would be another provider."""
    pack()
    path = tmp_path / ".config/messaging-nats/provider.nk"
    path.write_text("nonsense\n")
    code, _, err = par("pack", tmp_path / "x.par", *(f"--{k}={v}" for k, v in ABOUT.items()), "x86_64-linux=/bin/sh")
    assert code == 1 and str(path) in err and path.read_text() == "nonsense\n"


# ---------------------------------------------------------------- archives that are not as they should be

def with_claims(change):
    claims = some_claims()
    change(claims)
    return files(claims)


def renamed(old, new):
    return [(new if name == old else name, content) for name, content in files()]


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]


def forged():
    """Claims that were changed, and still are good JSON."""
    jwt = files()[0][1].decode().split(".")
    jwt[1] = unpadded(part(jwt[1]).replace(b'"vendor": "v"', b'"vendor": "w"'))
    return [("claims.jwt", ".".join(jwt).encode()), *files()[1:]]


def by_another():
    """Signed with a key that is not the issuer's."""
    claims = some_claims()
    claims["iss"] = nkey_of(nacl.signing.SigningKey.generate(), 0)
    return files(claims)


def jwt_spoiled(number, change):
    parts = files()[0][1].decode().split(".")
    parts[number] = change(parts[number])
    return [("claims.jwt", ".".join(parts).encode()), *files()[1:]]


def damaged_header():
    content = closed(files())
    return flipped(content, content.index(b"aarch64-linux.bin") + 3)


def header_with(at, field):
    """The second binary's header has other bytes there, and a checksum that fits."""
    content = bytearray(closed(files()))
    head = content.index(b"aarch64-linux.bin")
    content[head + at:head + at + len(field)] = field
    content[head + 148:head + 156] = b" " * 8
    content[head + 148:head + 156] = b"%06o\0 " % sum(content[head:head + 512])
    return bytes(content)


def half_an_end():
    """One block of zeros where there should be two."""
    content = closed(files())
    return content[:content.rindex(b"and so on") // 512 * 512 + 1024]


SIGNATURE, CLAIMED = "the signature is not that of A", "is not the file that was signed"
FAULTS = {
    "binary flipped": (lambda: [(n, flipped(c, 3)) if n == "x86_64-linux.bin" else (n, c) for n, c in files()], "x86_64-linux " + CLAIMED),
    "binary empty": (lambda: [(n, c if n == "claims.jwt" else b"") for n, c in files()], CLAIMED),
    "claims forged": (forged, SIGNATURE), "signed by another": (by_another, SIGNATURE),
    "signature flipped": (lambda: jwt_spoiled(2, lambda s: ("B" if s[0] == "A" else "A") + s[1:]), SIGNATURE),
    "signature short": (lambda: jwt_spoiled(2, lambda s: s[:20]), SIGNATURE), "signature empty": (lambda: jwt_spoiled(2, lambda s: ""), SIGNATURE),
    "signature no base64": (lambda: jwt_spoiled(2, lambda s: "*" + s[1:]), SIGNATURE),
    "claims no base64": (lambda: jwt_spoiled(1, lambda s: "*" + s[1:]), "no JSON in base64url"),
    "claims no JSON": (lambda: files(b"{nonsense}"), "no JSON in base64url"), "claims a list": (lambda: files(b"[1]"), "not those of a provider"),
    "claims padded": (lambda: jwt_spoiled(1, lambda s: s + "="), "no JSON in base64url"),
    "claims with a NUL": (lambda: [("claims.jwt", files()[0][1] + b"\0x"), *files()[1:]], "no text"),
    "two parts": (lambda: [("claims.jwt", b"a.b"), *files()[1:]], "three parts"), "four parts": (lambda: [("claims.jwt", b"a.b.c.d"), *files()[1:]], "three parts"),
    "no signature": (lambda: files(head='{"typ":"jwt","alg":"none"}'), "Ed25519"), "no claims": (lambda: files()[1:], "no claims.jwt"),
    "claims twice": (lambda: [*files(), files()[0]], "claims.jwt twice"), "claims last": (lambda: files()[::-1], "not the first"),
    "no binary": (lambda: files()[:1], "no binary"), "binary missing": (lambda: files()[:2], "a target that it does not hold"),
    "binary not named": (lambda: [*files(), ("riscv64-linux.bin", b"x")], "no hash for riscv64-linux"),
    "binary twice": (lambda: [*files(), files()[1]], "twice"), "world not named": (lambda: [*files(), ("world.wasm", b"x")], "no hash for world.wasm"),
    "in a folder": (lambda: renamed("x86_64-linux.bin", "a/x86_64-linux.bin"), "neither claims.jwt nor"), "claims.txt": (lambda: [*files(), ("claims.txt", b"x")], "neither"),
    "escapes": (lambda: renamed("x86_64-linux.bin", "\x1b[2J.bin"), "neither"), "too many": (lambda: [*files(), *((f"a{i}-b.bin", b"x") for i in range(40))], "too many files"),
    "issuer no key": (lambda: with_claims(lambda c: c.update(iss="\x1b[2J")), "issuer is no public key"),
    "issuer a provider": (lambda: with_claims(lambda c: c.update(iss=c["sub"])), "issuer is no public key"),
    "subject an account": (lambda: with_claims(lambda c: c.update(sub=c["iss"])), "subject is no public key"),
    "subject no string": (lambda: with_claims(lambda c: c.update(sub=7)), "not those of a provider"), "no wascap": (lambda: with_claims(lambda c: c.pop("wascap")), "wascap"),
    "no hashes": (lambda: with_claims(lambda c: c["wascap"].pop("target_hashes")), "target_hashes"),
    "hashes a list": (lambda: with_claims(lambda c: c["wascap"].update(target_hashes=[1])), "no hash for"),
    "hash no string": (lambda: with_claims(lambda c: c["wascap"]["target_hashes"].update({"x86_64-linux": 1})), "no hash for x86_64-linux"),
    "hash in lower case": (lambda: with_claims(lambda c: c["wascap"].update(target_hashes={k: v.lower() for k, v in c["wascap"]["target_hashes"].items()})), CLAIMED),
    "revision too large": (lambda: with_claims(lambda c: c["wascap"].update(rev=2**40)), "revision"),
    "expired": (lambda: with_claims(lambda c: c.update(exp=1_700_000_000)), "no longer valid"), "not yet": (lambda: with_claims(lambda c: c.update(nbf=2**33)), "not yet valid"),
    "header damaged": (damaged_header, "header in it is damaged"), "a link": (lambda: header_with(156, b"2"), "no plain file"), "a long name": (lambda: header_with(0, b"a" * 100), "short name"),
    "8 GB": (lambda: header_with(124, b"77777777777\0"), "impossible size"), "size no number": (lambda: header_with(124, b"\x80\0\0\x01"), "impossible size"),
    "claims too large": (lambda: [("claims.jwt", b"a" * (2 << 20)), *files()[1:]], "claims.jwt is too large"), "no tar": (lambda: b"x" * 4096, "no tar"),
    "empty": (lambda: b"", "cut short"), "no end": (lambda: closed(files())[:-tarfile.RECORDSIZE], "cut short"),
    "half an end": (half_an_end, "it has no end"),
    "goes on": (lambda: closed(files()) + b"x" * 512, "goes on after its end"), "a bomb": (lambda: gzip.compress(closed(files()) + bytes(1 << 22)), "goes on"),
    "gzip cut": (lambda: gzip.compress(closed(files()))[:-1], "cut short"), "gzip cut early": (lambda: gzip.compress(closed(files()))[:700], "cut short"),
    "gzip checksum": (lambda: (lambda c: flipped(c, len(c) - 6))(gzip.compress(closed(files()))), "damaged or cut|cannot be read"),
}


def content_of(make):
    made = make()
    return made if isinstance(made, bytes) else closed(made)


@pytest.mark.parametrize("make, words", FAULTS.values(), ids=FAULTS)
def test_faults_are_found(par, tmp_path, make, words):
    """Exit code 1 and a sentence that says what is wrong, with nothing of the archive in it that could harm a terminal."""
    (tmp_path / "it").write_bytes(content_of(make))
    code, out, err = par("inspect", tmp_path / "it")
    assert code == 1 and re.search(words, err), (code, out, err)
    assert all(line.startswith(f"par: {tmp_path}/it: ") for line in err.splitlines()), err
    assert "\x1b" not in out + err


def test_the_good_one(par, tmp_path):
    """What the faults above are made from is right, so each of them is found for what it is."""
    (tmp_path / "it").write_bytes(closed(files()))
    code, _, err = par("inspect", tmp_path / "it")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_every_cut_is_found(par, tmp_path, compressed):
    """Cut anywhere before its end, an archive is wrong."""
    content = closed(files())
    content = gzip.compress(content) if compressed else content[:content.rindex(b"and so on") + 1024]
    for at in sorted(random.Random(1).sample(range(len(content)), 30)):
        (tmp_path / "it").write_bytes(content[:at])
        code, _, err = par("inspect", tmp_path / "it")
        assert code == 1 and err, at


def test_random_damage(par, tmp_path):
    """Claims with random damage, signed anew or not, and headers with it: never a crash, and what is accepted is still true."""
    dice = random.Random(os.environ.get("SEED", 20261124))
    good = closed(files())
    heads = [at for at in range(0, len(good), 512) if good[at + 257:at + 262] == b"ustar"]
    for _ in range(60):
        claims = bytearray(json.dumps(some_claims()).encode())
        content = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            claims[dice.randrange(len(claims))] = dice.choice(b'"{}[],:\\0a\x00\xff')
            content[dice.choice(heads) + dice.randrange(512)] = dice.randrange(256)
        for made in closed(files(bytes(claims))), bytes(content):
            (tmp_path / "it").write_bytes(made)
            code, out, err = par("inspect", tmp_path / "it")
            assert code in (0, 1) and (code == 0) == (err == ""), (code, err)


# ---------------------------------------------------------------- make par

@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-gcc"), reason="no compiler for arm64: ./test.sh without words installs one, on amd64")
def test_make_par(tmp_path):
    """The archive of the provider itself: both binaries as they were built, each for its machine, and the version of provider.h."""
    done = subprocess.run(["make", "-C", TOP, "par", "VENDOR=it's me", "REVISION=5"], capture_output=True, text=True, timeout=900,
                          env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert re.search("signature +right", done.stdout)
    (_, jwt), *binaries = opened((TOP / "build/messaging-nats.par.gz").read_bytes())
    about = json.loads(part(jwt.decode().split(".")[1]))["wascap"]
    version = re.search('PROVIDER_VERSION "(.*)"', (TOP / "provider.h").read_text())[1]
    assert (about["name"], about["ver"], about["vendor"], about["rev"]) == ("messaging-nats", version, "it's me", 5)
    assert dict(binaries) == {"x86_64-linux.bin": (TOP / "build/amd64/provider").read_bytes(), "aarch64-linux.bin": (TOP / "build/arm64/provider").read_bytes()}
    machine = {name: int.from_bytes(content[18:20], "little") for name, content in binaries}
    assert machine == {"x86_64-linux.bin": 62, "aarch64-linux.bin": 183}  # EM_X86_64, EM_AARCH64


# ---------------------------------------------------------------- the manifest

MANIFEST = (TOP / "devel/example/wadm.yaml").read_text()
PLAIN, FULL = yaml.safe_load(MANIFEST), yaml.safe_load(re.sub(r"(?m)^( +)#(?! \S)", r"\1", MANIFEST))  # FULL: with what it only shows


def parts(manifest):
    """The provider, the component, and the settings and secrets of the provider, the handler link and the consumer link."""
    provider, component = manifest["spec"]["components"]
    (handler,), (consumer,) = ([trait["properties"] for trait in one["traits"] if trait["type"] == "link"] for one in (provider, component))

    def settings(holder):
        return {key: value for named in holder.get("config", []) for key, value in named["properties"].items()}, [one["name"] for one in holder.get("secrets", [])]
    return provider, component, handler, consumer, *map(settings, (provider["properties"], handler["source"], consumer["target"]))


@pytest.mark.parametrize("manifest", [PLAIN, FULL], ids=["as it is", "with all it shows"])
def test_manifest(manifest):
    """Links that go both ways between the provider and the component, of the interfaces that wasmCloud knows; all settings strings."""
    provider, component, handler, consumer, *all_settings = parts(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("core.oam.dev/v1beta1", "Application")
    assert set(manifest["metadata"]) == {"name", "annotations"}
    assert (provider["type"], component["type"]) == ("capability", "component")
    assert [trait["type"] for one in (provider, component) for trait in one["traits"]] == ["spreadscaler", "link"] * 2
    for link, interface, target in (handler, "handler", component), (consumer, "consumer", provider):
        assert (link["namespace"], link["package"], link["interfaces"], link["target"]["name"]) == ("wasmcloud", "messaging", [interface], target["name"])
    assert all(isinstance(value, str) for settings, _ in all_settings for value in settings.values())


def test_manifest_explains_every_key():
    """Each key of README's table of link keys stands in the manifest, and no other; above each there is an explanation."""
    table = (TOP / "README.md").read_text().split("## Keys of a link")[1].split("\n## ")[0]
    documented = {key for row in re.findall(r"(?m)^\| (`.*?) \|", table) for key in re.findall("`([a-z_]+)`", row)}
    shown = {key for settings, secrets in parts(FULL)[4:] for key in [*settings, *secrets]}
    assert {key for key in shown if not key.startswith("lattice_")} == documented and len(documented) > 10
    lines = MANIFEST.splitlines()
    for key in documented - {"tls_ca_file", "client_seed", "tls_key"}:  # explained with the one before
        at = next(i for i, line in enumerate(lines) if re.match(rf" +#?(  - name: )?{key}\b", line))
        assert any(re.match(" +# [A-Z]", line) for line in lines[at - 4:at]), key


@pytest.mark.parametrize("manifest", [PLAIN, FULL], ids=["as it is", "with all it shows"])
async def test_manifest_works(manifest, authority, tmp_path):
    """The provider takes every setting of it as it stands there, but for certificates, keys and the user, which cannot stand in an example."""
    provider, component, _, _, (defaults, secrets), (source, _), (target, _) = parts(manifest)
    cert, key = authority.issue("manifest")
    jwt, user_seed = Accounts().user()
    real = {"tls_ca": authority.ca, "tls_cert": cert.read_text(), "tls_ca_file": str(authority.ca_file), "lattice_tls_ca_file": str(authority.ca_file)}
    secret = {"client_jwt": jwt, "client_seed": user_seed, "tls_key": key.read_text()}
    ids = {"provider": provider["properties"]["id"], "component": component["properties"]["id"]}
    link = {"name": "default", "wit_namespace": "wasmcloud", "wit_package": "messaging"}
    links = [{**link, "source_id": ids["provider"], "target": ids["component"], "interfaces": ["handler"], "source_config": source, "target_config": {}},
             {**link, "source_id": ids["component"], "target": ids["provider"], "interfaces": ["consumer"], "source_config": {}, "target_config": target}]
    data = {**golden_host_data(), "provider_key": ids["provider"], "link_definitions": links,
            "config": {key: real.get(key, value) for key, value in defaults.items()},
            "secrets": {name: {"kind": "String", "value": secret[name]} for name in secrets}}
    (tmp_path / "data").write_text(json.dumps(data))
    code, out, err = await run_provider("--check", tmp_path / "data")
    assert (code, err) == (0, ""), err
    for words in ("orders.>", "jobs", *(["ORDERS", "gateway"] if manifest is FULL else [])):
        assert words in out, out
