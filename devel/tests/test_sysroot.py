# SPDX-License-Identifier: Apache-2.0
"""deps/sysroot.sh takes what Debian has signed, whatever the system's apt.conf and sources allow, and what deps/sysroot.lock
names, as long as it can be had. No root, no network."""
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lattice import TOP

SCRIPT = TOP / "deps/sysroot.sh"
pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(not all(map(shutil.which, ("apt-get", "apt-config", "dpkg-deb"))), reason="no apt here"),
]
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What weakens apt, of the words of apt.conf(5), apt-get(8), apt-secure(8) and apt-transport-https(1)
WEAKER = {
    "Acquire::AllowInsecureRepositories": "true", "Acquire::AllowWeakRepositories": "true",
    "Acquire::AllowDowngradeToInsecureRepositories": "true", "Acquire::Check-Valid-Until": "false",
    "Acquire::Check-Date": "false", "Acquire::Max-FutureTime": "999999999", "Acquire::https::Verify-Peer": "false",
    "Acquire::https::Verify-Host": "false", "Acquire::https::deb.debian.org::Verify-Peer": "false",
    "Acquire::gpgv::Options::": "--ignore-time-conflict", "APT::Get::AllowUnauthenticated": "true",
    "APT::Get::Allow-Downgrades": "true", "APT::Get::Force-Yes": "true", "APT::Hashes::SHA1::Weak": "false",
    "APT::Hashes::MD5Sum::Untrusted": "false", "APT::Key::gpgvcommand": "/bin/true", "Dir::Bin::gpg": "/bin/true",
    "Dir::Bin::apt-key": "/bin/true", "APT::Update::Pre-Invoke::": "touch /tmp/hook",
    "APT::Update::Post-Invoke-Success::": "touch /tmp/hook", "DPkg::Pre-Install-Pkgs::": "touch /tmp/hook",
}
WAY = {"Acquire::http::Proxy": "http://proxy.example:3128", "Acquire::http::Proxy::deb.debian.org": "DIRECT",
       "Acquire::https::CaInfo": "/etc/ssl/own.pem", "Acquire::ForceIPv4": "true"}


def run(tmp_path, sources, settings, path=(), words=(), **env):
    """The script on a system with these sources and settings of apt. Gives its result, and the folder to fill."""
    (tmp_path / "apt").mkdir(exist_ok=True)
    (tmp_path / "apt/sources.list").write_text(sources)
    settings = {**settings, "Dir::Etc::SourceList": tmp_path / "apt/sources.list",
                "Dir::Etc::SourceParts": tmp_path / "apt/parts"}
    (tmp_path / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    out = tmp_path / "out"
    path = os.pathsep.join([*map(str, path), os.environ["PATH"]])
    env = {"PATH": path, "APT_CONFIG": str(tmp_path / "apt.conf"), "SYSROOT_PAUSES": "0", **env}
    return subprocess.run([SCRIPT, *words, "amd64", out], env=env, capture_output=True, text=True, timeout=60), out


def unsigned_archive(at):
    """An archive of one package that nobody signed."""
    write_suite(at, "trixie", [("evil", "1")])


def write_suite(at, suite, packages, more="", text="anything"):
    """The index of a suite with these packages, and the packages; each holds a text. Gives its Release file."""
    index = at / f"dists/{suite}/main/binary-amd64"
    stanzas = []
    for name, version in packages:
        folder = at / f"{suite}-{name}-{version}"
        doc = folder / "usr/share/doc" / name
        for new in (folder / "DEBIAN", doc, at / "pool", index):
            new.mkdir(parents=True, exist_ok=True)
        control = (f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
                   "Maintainer: nobody <n@example.com>\nDescription: for a test\n")
        (folder / "DEBIAN/control").write_text(control)
        (doc / "copyright").write_text(text + "\n")
        deb = at / f"pool/{suite}-{name}_{version}_amd64.deb"
        subprocess.run(["dpkg-deb", "-b", folder, deb], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "SOURCE_DATE_EPOCH": "0"})
        stanzas.append(f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\n"
                       f"SHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n")
    index.mkdir(parents=True, exist_ok=True)
    (index / "Packages").write_text("\n".join(stanzas))
    listed = (index / "Packages").read_bytes()
    release = at / f"dists/{suite}/Release"
    release.write_text(
        f"Codename: {suite}\nSuite: stable\nArchitectures: amd64\nComponents: main\n"
        f"Date: Sat, 01 Jan 2022 00:00:00 UTC\n{more}SHA256:\n"
        f" {hashlib.sha256(listed).hexdigest()} {len(listed)} main/binary-amd64/Packages\n")
    return release


@pytest.mark.skipif(not Path(KEY).exists(), reason="no debian-archive-keyring here")
def test_unsigned_packages_are_refused(tmp_path):
    """Sources that are trusted without a signature, and an apt.conf that takes everything."""
    unsigned_archive(tmp_path / "archive")
    settings = {**WEAKER, "Acquire::Retries": "0"}
    sources = f"deb [trusted=yes] file:{tmp_path}/archive trixie main\n"
    done, out = run(tmp_path, sources, settings, SUITE="trixie", PACKAGES="evil", SYSROOT_KEYRING=KEY)
    assert done.returncode == 1 and "is not signed" in done.stderr, done.stderr
    assert not out.exists()


def test_only_the_way_is_taken_over(tmp_path):
    """What apt-get is started with: how the system reaches an archive, and nothing that weakens it."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/apt-get"
    fake.write_text(f'#!/bin/sh\napt-config dump > {tmp_path}/dump\nkill $PPID\n')
    fake.chmod(0o755)
    run(tmp_path, "deb http://deb.example/debian trixie main\n", {**WEAKER, **WAY}, [tmp_path / "bin"])
    dump = (tmp_path / "dump").read_text()
    for name, value in WEAKER.items():
        assert f'{name} "{value}"' not in dump, name
    for name, value in WAY.items():
        assert f'{name} "{value}"' in dump, name
    assert not re.search(r'^Dir::Etc::(Main|Parts) "(apt\.conf|/etc)', dump, re.M), "the system's apt.conf is read"


# ---- what is locked

EXPIRED = "Valid-Until: Sun, 02 Jan 2022 00:00:00 UTC\n"


@pytest.fixture(scope="module")
def gpg(tmp_path_factory):
    """Runs gpg with a key of its own, whose public half is in the keyring that it names."""
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)

    def run_gpg(*words):
        return subprocess.run(["gpg", "--homedir", home, "--batch", "--yes", "--passphrase", "", *words], check=True, capture_output=True)
    run_gpg("--quick-gen-key", "archive@example.com", "ed25519", "sign", "never")
    run_gpg.keyring = home / "archive.gpg"
    run_gpg("--output", run_gpg.keyring, "--export")
    yield run_gpg
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)


class Debian:
    """A signed archive, and one of its security updates, that hold the packages tool and lib."""

    def __init__(self, folder, gpg):
        self.folder, self.gpg = folder, gpg
        self.lock = folder / "lock"
        self.publish("trixie", "1")
        self.publish("trixie-security")

    def publish(self, suite, *versions, **how):
        """From now on the suite has these versions of both packages."""
        at = self.folder / ("security" if "security" in suite else "debian")
        release = write_suite(at, suite, [(name, version) for name in ("tool", "lib") for version in versions], **how)
        self.gpg("--clearsign", "--output", release.with_name("InRelease"), release)

    def fetch(self, *words, security=True, packages="tool lib"):
        """What deps/sysroot.sh says, after its exit code."""
        sources = f"deb file:{self.folder}/debian trixie main\n"
        if security:
            sources += f"deb file:{self.folder}/security trixie-security main\n"
        done, self.out = run(self.folder, sources, {}, words=words, PACKAGES=packages, SYSROOT_KEYRING=str(self.gpg.keyring),
                             SYSROOT_LOCK=str(self.lock))
        return done.returncode, done.stderr

    def versions(self):
        """Of tool and lib, as fetched last, and as locked."""
        return [re.findall(r"^amd64 \S+ (\S+) [0-9a-f]{64}$", path.read_text(), re.M) for path in (self.out / ".complete", self.lock)]

    def forget(self):
        shutil.rmtree(self.out)


@pytest.fixture
def debian(tmp_path, gpg):
    """Debian with version 1, which is locked and was fetched, and is forgotten again."""
    debian = Debian(tmp_path, gpg)
    debian.lock.write_text("arm64 tool 0.5 00\namd64 tool 0.5 00\n")
    code, text = debian.fetch("--update")
    assert code == 0, text
    assert debian.versions() == [["1", "1"]] * 2 and "arm64 tool 0.5 00" in debian.lock.read_text()
    debian.forget()
    return debian


def test_locked_versions_are_taken(debian):
    """As long as the archive has them, beside newer ones; it is said that there are newer ones."""
    debian.publish("trixie-security", "2")
    code, text = debian.fetch()
    assert code == 0 and "Debian has lib 2, locked is 1: make sysroot-update" in text, text
    assert debian.versions() == [["1", "1"]] * 2
    assert debian.fetch("--locked") == (0, "")


def test_lock_moves_to_security_updates(debian):
    """--update takes what the archive of security updates has; the lines of other machines stay. Without that archive it refuses."""
    debian.publish("trixie-security", "2")
    code, text = debian.fetch("--update", security=False)
    assert code == 1 and "no archive of Debian's security updates" in text, text
    code, text = debian.fetch("--update")
    assert code == 0, text
    assert debian.versions() == [["2", "2"]] * 2 and "arm64 tool 0.5 00" in debian.lock.read_text()


def test_debian_moved_on(debian):
    """Once only newer versions can be had they are taken, with a warning at each build that names them; a release refuses them."""
    debian.publish("trixie", "2")
    for attempt in range(2):
        code, text = debian.fetch()
        assert code == 0 and "NOT WHAT WAS RELEASED" in text and "make sysroot-update" in text, text
        assert re.search(r"locked +tool 1\n +locked +lib 1\n +instead +tool 2\n +instead +lib 2\n", text), text
        assert ("the index" in text) == (attempt == 0), "it is fetched once"
    code, text = debian.fetch("--locked")
    assert code == 1 and "a release is made of what is locked" in text, text
    assert debian.fetch("--update")[0] == 0
    assert debian.fetch("--locked") == (0, "")


def test_another_lock_is_fetched_anew(debian):
    """A sysroot that is there does not outlive its lock."""
    assert debian.fetch()[0] == 0
    debian.publish("trixie-security", "2")
    before = debian.lock.read_text()
    assert debian.fetch("--update")[0] == 0
    debian.lock.write_text(before)
    assert debian.fetch()[0] == 0
    assert debian.versions() == [["1", "1"]] * 2


def test_one_of_fewer_packages_is_fetched_anew(debian):
    """What was finished when a package was not needed yet is not taken for finished."""
    assert debian.fetch(packages="tool")[0] == 0
    assert debian.fetch()[0] == 0
    assert debian.versions() == [["1", "1"]] * 2


def test_other_bytes_of_a_locked_version_are_refused(debian):
    """Signed or not."""
    debian.publish("trixie", "1", text="something else")
    code, text = debian.fetch()
    assert code == 1 and "tool 1 for amd64" in text and "other bytes, same version" in text, text
    assert not debian.out.exists()


def test_frozen_mirrors_are_refused(debian):
    """One with older versions than those that are locked; one whose index has expired, of Debian or of its security updates."""
    debian.publish("trixie", "0.9")
    code, text = debian.fetch()
    assert code == 1 and "tool for amd64 is locked to 1" in text and "older: is the mirror frozen" in text, text
    debian.publish("trixie", "1", more=EXPIRED)
    code, text = debian.fetch()
    assert code == 1 and "is expired" in text and not debian.out.exists(), text
    debian.publish("trixie", "1")
    debian.publish("trixie-security", "2", more=EXPIRED)
    code, text = debian.fetch("--update")
    assert code == 1 and "is expired" in text and "cannot read the index" in text, text
    code, text = debian.fetch()  # what is locked is not among what has expired
    assert code == 0 and "trying without the security updates" in text, text
    assert debian.versions() == [["1", "1"]] * 2
