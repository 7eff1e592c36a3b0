# SPDX-License-Identifier: Apache-2.0
"""What `make release` makes: the same bytes whatever the folder, umask, language and time; files that their receiver can check."""
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from lattice import PROVIDER, TOP

MACHINE = Path(PROVIDER).parent.name
SYSROOT = TOP / "deps/sysroot" / MACHINE
TARGET = os.uname().machine + "-linux"
pytestmark = pytest.mark.release


def clone(folder):
    """The project as a clone has it, its libraries fetched, its version released on a day of 2020."""
    shutil.copytree(TOP, folder, ignore=shutil.ignore_patterns("build", "sysroot", ".git", "__pycache__"), symlinks=True)
    (folder / "deps/sysroot").mkdir()
    (folder / "deps/sysroot" / MACHINE).symlink_to(SYSROOT)
    version = re.search(r'PROVIDER_VERSION "(.*)"', (folder / "provider.h").read_text())[1]
    changelog = folder / "devel/doc/CHANGELOG.md"
    changelog.write_text(re.sub(rf"^## {version}, .*$", f"## {version}, 2020-02-02", changelog.read_text(), flags=re.M))
    return version


def make(folder, **env):
    words = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "MACHINES": MACHINE, **env}
    return subprocess.run(["make", "release"], cwd=folder, env=words, capture_output=True, text=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The folder that `make release` fills, for this machine alone, and the version."""
    if subprocess.run([TOP / "deps/sysroot.sh", "--locked", MACHINE, SYSROOT], capture_output=True).returncode:
        pytest.skip("Debian has moved on from deps/sysroot.lock: make sysroot-update")
    folder = tmp_path_factory.mktemp("release") / "clone"
    version = clone(folder)
    done = make(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build/release", version


@pytest.fixture
def received(release, tmp_path):
    """A copy of it, and how its notes say that it is checked: received() gives exit code and text."""
    out = tmp_path / "received"
    shutil.copytree(release[0], out)
    command = re.search(r"^    (ssh-keygen -Y verify .*)$", (out / "RELEASE_NOTES.md").read_text(), re.M)[1]

    def check():
        done = subprocess.run(command, shell=True, cwd=out, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr
    check.folder = out
    return check


def test_reproducible(release):
    """The binary of a clone is that of this folder; `make release` itself builds it a second time, and compares."""
    folder, version = release
    assert (folder / f"messaging-nats-{version}-{TARGET}").read_bytes() == Path(PROVIDER).read_bytes()


def test_difference_is_seen(tmp_path):
    """A binary that depends on its folder does not become a release."""
    folder = tmp_path / "clone"
    clone(folder)
    (folder / "provider.c").write_text("const char *where = __FILE__;\nint main(void) { return where[0]; }\n")
    makefile = folder / "Makefile"
    makefile.write_text(re.sub(r"^RELEASE = .*$", "RELEASE = $(CC) $(CURDIR)/provider.c", makefile.read_text(), flags=re.M)
                        .replace("$(NO_UNWINDING)", ""))
    done = make(folder)
    assert done.returncode and f"{MACHINE}: another folder gave other bytes" in done.stderr, done.stdout + done.stderr
    assert not (folder / "build/release").exists()


def test_undated_version_is_refused(tmp_path):
    """What is not yet released, by the changelog, is not released."""
    folder = tmp_path / "clone"
    version = clone(folder)
    changelog = folder / "devel/doc/CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("2020-02-02", "not released yet"))
    done = make(folder)
    assert done.returncode and f"no line '## {version}, YEAR-MONTH-DAY'" in done.stderr, done.stderr


def test_receiver_can_check(received):
    """All files, by the line in the notes; a receiver may have fewer of them."""
    code, text = received()
    assert code == 0 and 'Good "file" signature for messaging-nats' in text, text
    hashed = [line.split()[1] for line in (received.folder / "SHA256SUMS").read_text().splitlines()]
    assert sorted(hashed) == sorted({path.name for path in received.folder.iterdir()} - {"SHA256SUMS", "SHA256SUMS.sig"})
    (received.folder / "LICENCES").unlink()
    assert received()[0] == 0


def test_notes_say_how_to_start(release):
    """The lines of README.md, with the archive that is beside them."""
    folder, version = release
    lines = re.findall(r"^    (wash .*)$", (folder / "RELEASE_NOTES.md").read_text(), re.M)
    assert [line.split()[1] for line in lines] == ["start", "config", "link", "link"]
    assert f"file://$PWD/messaging-nats-{version}.par.gz messaging-nats" in lines[0] and (folder / f"messaging-nats-{version}.par.gz").exists()


@pytest.mark.parametrize("name", ["LICENCES", "SHA256SUMS", "SHA256SUMS.sig", "allowed_signers"])
def test_changes_are_seen(received, name):
    """Of a file, of the hashes, of the signature; and another key's."""
    path = received.folder / name
    text = path.read_text()
    at = len(text) // 2
    path.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1:])
    code, text = received()
    assert code != 0, text


def test_archive(release):
    """It holds the binary under the name by which hosts look for it, with the version and the day of the changelog."""
    folder, version = release
    done = subprocess.run([TOP / "build/par", "inspect", folder / f"messaging-nats-{version}.par.gz"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(rf'^version +"{version}"$', done.stdout, re.M) and "2020-02-02 00:00:00 UTC" in done.stdout
    assert re.search(rf"^holds +{TARGET}, ", done.stdout, re.M), done.stdout


def test_bill_of_materials(release):
    """It is CycloneDX, and names each package of the sysroot as it is locked, and the compiler's own library."""
    folder, version = release
    text = (folder / f"messaging-nats-{version}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    named = {(one["name"], one["version"], one["hashes"][0]["content"]): one for one in bill["components"]}
    locked = [tuple(line.split()[1:]) for line in (TOP / "deps/sysroot.lock").read_text().splitlines() if line.startswith(MACHINE + " ")]
    assert len(locked) >= 7 and set(locked) <= set(named)
    assert any(re.fullmatch(r"libgcc-\d+-dev: libgcc.a", one["name"]) for one in bill["components"])
    binary = next(one for one in bill["dependencies"] if one["ref"] == f"messaging-nats-{version}-{TARGET}")
    linked = {named[package]["bom-ref"] for package in locked if package[0] not in ("libc6", "linux-libc-dev")}
    assert linked < set(binary["dependsOn"])
