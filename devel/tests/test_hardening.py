# SPDX-License-Identifier: Apache-2.0
"""What makes a fault in the code hard to use, in the binaries of all machines: the table of deps/README.md."""
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from lattice import PROVIDER, RUN, TOP

TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf",
            "riscv64": "riscv64-linux-gnu"}
OURS = Path(PROVIDER).parent.name
# An emulated run looks at its own binary; that of the release at all that are there.
MACHINES = [OURS] if RUN else list(TRIPLETS)
pytestmark = pytest.mark.skipif(OURS not in TRIPLETS, reason="about release binaries")

FLAGS = ["-fPIE", "-fstack-protector-strong", "-fstack-clash-protection", "-ftrivial-auto-var-init=zero",
         "-D_FORTIFY_SOURCE=3", "-fno-strict-aliasing", "-fno-strict-overflow", "-fno-delete-null-pointer-checks"]
MORE_FLAGS = {"amd64": ["-fcf-protection=full"], "arm64": ["-mbranch-protection=standard"]}
EXEC, DYN = 2, 3
LOAD, DYNAMIC, INTERP, STACK, RELRO = 1, 2, 3, 0x6474e551, 0x6474e552
X, W, R = 1, 2, 4


def elf(path):
    """The headers of an ELF file (elf(5)): type, segments, sections by name, dynamic entries by tag."""
    data = Path(path).read_bytes()
    assert data[:4] == b"\x7fELF" and data[5] == 1
    wide = data[4] == 2
    kind, at_segments, at_sections = struct.unpack_from("<H14xQQ" if wide else "<H10xII", data, 16)
    size_p, count_p, size_s, count_s, names = struct.unpack_from("<HHHHH", data, 54 if wide else 42)
    segments, sections, dynamic = [], {}, {}
    for i in range(count_p):
        values = struct.unpack_from("<IIQQQQQQ" if wide else "<IIIIIIII", data, at_segments + i * size_p)
        order = ("type", "flags", "offset", "address", "_", "in_file", "size", "align") if wide else \
                ("type", "offset", "address", "_", "in_file", "size", "flags", "align")
        segments.append(SimpleNamespace(**dict(zip(order, values))))
    for i in range(count_s):
        values = struct.unpack_from("<IIQQQQ" if wide else "<IIIIII", data, at_sections + i * size_s)
        order = ("name", "type", "flags", "address", "offset", "size")
        sections[i] = SimpleNamespace(**dict(zip(order, values)))
    start = sections[names].offset
    sections = {data[start + s.name:data.index(b"\0", start + s.name)].decode(): s for s in sections.values()}
    for segment in segments:
        if segment.type == DYNAMIC:
            entries = data[segment.offset:segment.offset + segment.in_file]
            dynamic = dict(struct.iter_unpack("<qQ" if wide else "<iI", entries))
    return SimpleNamespace(data=data, kind=kind, segments=segments, sections=sections, dynamic=dynamic)


@pytest.fixture(params=MACHINES)
def binary(request):
    """A machine, and the headers of its binary; that of another machine if it is as new as its sources."""
    machine, path = request.param, TOP / "build" / request.param / "provider"
    if machine == OURS:
        path = PROVIDER
    elif not path.exists() or subprocess.run(["make", "-sq", f"ARCH={machine}"], cwd=TOP, capture_output=True).returncode:
        pytest.skip(f"build/{machine}/provider is not there, or is old: make ARCH={machine}")
    return machine, elf(path)


def tool(machine, name, *args):
    """What a tool for this machine says, or None if it is not there."""
    native = os.uname().machine == {"amd64": "x86_64", "arm64": "aarch64"}.get(machine)
    name = name if native else f"{TRIPLETS[machine]}-{name}"
    if not shutil.which(name):
        return None
    return subprocess.run([name, *args], capture_output=True, text=True).stdout


def old_riscv64(machine):
    """Whether this is riscv64, and the linker that of Debian 12."""
    return machine == "riscv64" and " 2.40" in (tool(machine, "ld", "--version") or " 2.40").splitlines()[0]


@pytest.mark.smoke
def test_position_independent(binary):
    """At any address: not on armhf, nor on riscv64 with the linker of Debian 12."""
    machine, file = binary
    assert file.kind == (EXEC if machine == "armhf" or old_riscv64(machine) else DYN)
    assert not any(s.type == INTERP for s in file.segments), "a loader, and libraries from elsewhere"
    assert not {15, 29, 22} & file.dynamic.keys(), "a search path, or relocations in the code"


@pytest.mark.smoke
def test_memory_has_one_use(binary):
    """Each page is for code, constants, or data, the stack for data; what the start has filled in is read-only."""
    machine, file = binary
    loads = [s for s in file.segments if s.type == LOAD]
    assert sorted({s.flags for s in loads}) == [R, R | X, R | W]
    code, = (s for s in loads if s.flags & X)
    page, last = code.address // code.align, (code.address + code.size - 1) // code.align
    for s in loads:
        beside = s.address // code.align > last or (s.address + s.size - 1) // code.align < page
        assert s is code or beside, "a page of code has something else in it"
    strange = [name for name, s in file.sections.items()
               if s.flags & 2 and not s.flags & 4 and code.address <= s.address < code.address + code.size]
    assert not strange, f"no code, and executable: {strange}"
    assert [s.flags for s in file.segments if s.type == STACK] == [R | W]
    relro, = (s for s in file.segments if s.type == RELRO)
    for name in (".data.rel.ro", ".init_array", ".fini_array", ".dynamic", ".got"):
        s = file.sections.get(name)
        if s and not (name == ".got" and old_riscv64(machine)):
            assert relro.address <= s.address, f"{name} stays writable"
            assert s.address + s.size <= relro.address + relro.size, f"{name} stays writable"
    assert not file.dynamic or file.dynamic.get(0x6ffffffb, 0) & 1, "bound at the start"


@pytest.mark.smoke
def test_nothing_to_help(binary):
    """No symbols; and the checks of the stack and of buffers are in it."""
    machine, file = binary
    assert ".symtab" not in file.sections and ".comment" not in file.sections
    assert b"stack smashing detected" in file.data and b"buffer overflow detected" in file.data


@pytest.mark.smoke
def test_branch_protection(binary):
    """On arm64 the processor checks where branches lead, if the compiler's own parts are made for it: from Debian 13."""
    machine, file = binary
    if machine != "arm64":
        pytest.skip("glibc is not made for it on this machine")
    start = (tool(machine, "gcc", "-print-file-name=crtbeginS.o") or "").strip()
    made = tool(machine, "readelf", "-nW", start) or ""
    note = file.sections.get(".note.gnu.property")
    properties = file.data[note.offset:note.offset + note.size] if note else b""
    features = re.search(re.escape(struct.pack("<II", 0xc0000000, 4)) + b"(.)", properties, re.S)
    assert bool(features and features[1][0] & 1) == ("BTI" in made)


@pytest.mark.smoke
@pytest.mark.parametrize("machine", MACHINES)
def test_flags(machine):
    """What does not show in headers: make says what the compiler is called with, and the table has it."""
    if not (TOP / "deps/sysroot" / machine / ".complete").exists():
        pytest.skip(f"no libraries for {machine} here")
    command = ["make", "-n", "-B", f"ARCH={machine}", f"build/{machine}/provider"]
    called = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True).stdout
    table = (TOP / "deps/README.md").read_text()
    for flag in FLAGS + MORE_FLAGS.get(machine, []):
        assert f" {flag} " in called, flag
        assert f"`{flag}`" in table, f"{flag} is not in deps/README.md"


@pytest.mark.release
@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the memory map")
async def test_memory_map(world):
    """In the running process: nothing can be both written and executed, and the program lies elsewhere each time."""
    places = set()
    for _ in range(2):
        provider = await world.start(ready=False)
        await provider.wait_log("connected to")
        areas = [line.split() for line in Path(f"/proc/{provider.pid}/maps").read_text().splitlines()]
        program = [(area[0], area[1]) for area in areas if area[-1] == os.path.realpath(PROVIDER)]
        assert not [area for area in areas if "w" in area[1] and "x" in area[1]]
        # headers, code, constants, what the start has filled in, data
        assert [rights for _, rights in program] == ["r--p", "r-xp", "r--p", "r--p", "rw-p"], program
        places.add(program[0][0])
        await provider.stop()
    assert len(places) == 2
