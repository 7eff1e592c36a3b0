# SPDX-License-Identifier: Apache-2.0
"""Names as the provider finds them: /etc/hosts and /etc/resolv.conf of its own, and name servers that answer, are cut short, or are
dead. As root: it gets a mount name space, and name servers have a port below 1024."""
import contextlib
import errno
import os
import random
import socket
import struct
import threading

import pytest

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="a mount name space and port 53 need root")


def with_files(folder, hosts="", resolv=""):
    """What to start a program with, so that it finds these texts in /etc."""
    text = []
    for name, content in (("hosts", hosts), ("resolv.conf", resolv)):
        (folder / name).write_text(content)
        text.append(f'mount --bind {folder / name} "$(realpath /etc/{name})"')
    return "unshare", "-m", "--propagation", "private", "sh", "-c", " && ".join(text) + ' && exec "$0" "$@"'


class NameServer:
    """Answers on port 53 of a loopback address of its own, `host`, with these addresses. silent: not at all. cut: over UDP only with the first of them,
    and the rest is to be had over TCP, where it takes connections and says nothing. old: a question that may be answered in more
    than 512 bytes (EDNS) gets this code of an error, or none."""

    def __init__(self, addresses=(), *, silent=False, cut=False, old=None):
        self.addresses, self.silent, self.cut, self.old = addresses, silent, cut, old
        self.asked = 0
        while not self._bind():
            pass  # another test has this one
        threading.Thread(target=self._serve, daemon=True).start()

    def _bind(self):
        self.host = f"127.{random.randrange(8, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.udp.bind((self.host, 53))
            self.tcp = socket.create_server((self.host, 53))
        except OSError as e:
            self.udp.close()
            if e.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    def _serve(self):
        with contextlib.suppress(OSError):
            while query := (got := self.udp.recvfrom(4096))[0]:
                peer = got[1]
                self.asked += 1
                if not self.silent and not (self.old == 0 and query[11]):
                    self.udp.sendto(self._answer(query), peer)

    def _answer(self, query):
        end = query.index(b"\0", 12) + 5
        if self.old and query[11]:
            return query[:2] + struct.pack(">HHHHH", 0x8180 | self.old, 1, 0, 0, 0) + query[12:end]
        is_a = struct.unpack(">H", query[end - 4:end - 2])[0] == 1
        addresses = self.addresses[:1 if self.cut else None] if is_a else []
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(a) for a in addresses)
        flags = 0x8380 if self.cut and is_a else 0x8180
        return query[:2] + struct.pack(">HHHHH", flags, 1, len(addresses), 0, 0) + query[12:end] + records

    def close(self):
        with contextlib.suppress(OSError):
            self.udp.shutdown(socket.SHUT_RDWR)
        self.udp.close()
        self.tcp.close()
