#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what the binaries of a release are made of, as CycloneDX 1.6 in JSON:  sbom.py VERSION MACHINE=BINARY=COMPILER…

A component for each binary; for each Debian package that its sysroot holds, with the hash of the .deb, from what
deps/sysroot.sh wrote down (a package that is linked is "required", one that only the build needs is "excluded"); and for what
the compiler adds of its own. The compilers are the tools of the document. The same input gives the same bytes: its time is
SOURCE_DATE_EPOCH, its number comes from the binaries.
"""
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

# The licence of what is linked of each package. The whole texts, with all holders, are in LICENCES.
LICENCES = {
    "libnats-dev": "Apache-2.0",
    "libmbedtls-dev": "Apache-2.0 OR GPL-2.0-or-later",
    "libssl-dev": "Apache-2.0",
    "libsodium-dev": "ISC",
    "libjansson-dev": "MIT",
    "libc6-dev": "LGPL-2.1-or-later",
    "libc6": "LGPL-2.1-or-later",
    "linux-libc-dev": "GPL-2.0-only WITH Linux-syscall-note",
}
COMPILERS_OWN = "GPL-3.0-or-later WITH GCC-exception-3.1"
BUILD_ONLY = {"libc6", "linux-libc-dev"}  # headers, and what the linker scripts of libc6-dev name


def sha256(path):
    return [{"alg": "SHA-256", "content": hashlib.sha256(Path(path).read_bytes()).hexdigest()}]


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout


def purl(package, version, machine, distribution):
    """protocol: package-url, PURL-TYPES, deb. Debian's versions have + and ~; the first is written as %2B."""
    return f"pkg:deb/debian/{package}@{version.replace('+', '%2B')}?arch={machine}&distro={distribution}"


def component(kind, name, version, licence, ref, **more):
    return {"type": kind, "bom-ref": ref, "name": name, "version": version, "licenses": [{"expression": licence}], **more}


def of_the_sysroot(machine):
    for line in Path("deps/sysroot", machine, ".complete").read_text().splitlines():
        _machine, package, version, digest = line.split()
        where = purl(package, version, "all" if package == "linux-libc-dev" else machine, "trixie")
        yield component("library", package, version, LICENCES[package], f"{machine}:{where}", purl=where,
                        scope="excluded" if package in BUILD_ONLY else "required",
                        hashes=[{"alg": "SHA-256", "content": digest}])


def installed(path):
    """The Debian package that a file of this system is of, its version and its machine."""
    package = output("dpkg", "-S", path).split(": ")[0].split(",")[0]
    return output("dpkg-query", "-W", "-f", "${Package} ${Version} ${Architecture}", package).split()


def of_the_compiler(machine, compiler):
    """libgcc, which the linker takes from beside the compiler and not from the sysroot."""
    file = output(compiler, "-print-libgcc-file-name").strip()
    package, version, built_for = installed(file)
    where = purl(package, version, built_for, output("sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME").strip())
    return component("file", f"{package}: libgcc.a", version, COMPILERS_OWN, f"{machine}:{where}", purl=where, scope="required",
                     hashes=sha256(file))


def tool(compiler):
    path = output("sh", "-c", f"command -v {compiler}").strip()
    return {"type": "application", "name": compiler, "version": output(path, "--version").splitlines()[0]}


def document(version, machines):
    ours = component("application", "messaging-nats", version, "Apache-2.0", "messaging-nats")
    components, dependencies = [], [{"ref": "messaging-nats", "dependsOn": []}]
    for machine, binary, compiler in machines:
        hashes = sha256(binary)
        name = Path(binary).name
        linked = [*of_the_sysroot(machine), of_the_compiler(machine, compiler)]
        components += [component("application", name, version, "Apache-2.0", name, hashes=hashes), *linked]
        dependencies[0]["dependsOn"].append(name)
        dependencies.append({"ref": name, "dependsOn": [one["bom-ref"] for one in linked if one["scope"] == "required"]})
    contents = json.dumps(components)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, contents).urn,
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"]))),
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [tool(compiler) for _machine, _binary, compiler in machines]},
            "component": ours,
        },
        "components": components,
        "dependencies": dependencies,
    }


if __name__ == "__main__":
    if len(sys.argv) < 3 or any(word.count("=") != 2 for word in sys.argv[2:]):
        sys.exit(__doc__)
    json.dump(document(sys.argv[1], [word.split("=") for word in sys.argv[2:]]), sys.stdout, indent=1)
    print()
