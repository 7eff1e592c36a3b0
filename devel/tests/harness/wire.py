# SPDX-License-Identifier: Apache-2.0
"""The wire as a host speaks it: wRPC values, sealed secrets and the X25519 nkeys they need.

Written from the published protocol, not from the provider, so that both have to be right for a test to pass.
"""
import base64
import binascii
import json
import os
from dataclasses import dataclass, field

MAX_U32 = 2**32 - 1


# ---------------------------------------------------------------- values

def leb128(n):
    """An unsigned integer as LEB128."""
    out = bytearray()
    while True:
        low, n = n & 0x7F, n >> 7
        out.append(low | (0x80 if n else 0))
        if not n:
            return bytes(out)


def blob(data):
    """A string or list<u8>: the length, then the bytes."""
    data = data.encode() if isinstance(data, str) else bytes(data)
    return leb128(len(data)) + data


def option(data):
    return b"\0" if data is None else b"\1" + blob(data)


def broker_message(subject, body=b"", reply_to=None):
    return blob(subject) + blob(body) + option(reply_to)


def request_params(subject, body, timeout_ms):
    return blob(subject) + blob(body) + leb128(timeout_ms)


class Incomplete(Exception):
    """The bytes so far are the beginning of a value."""


class Reader:
    """Decodes values from bytes that may still be on their way."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if self.at + n > len(self.data):
            raise Incomplete
        self.at += n
        return self.data[self.at - n:self.at]

    def leb128(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def blob(self):
        return bytes(self.take(self.leb128()))

    def string(self):
        return self.blob().decode("utf-8")

    def option(self):
        return self.string() if self.tag() else None

    def tag(self):
        tag = self.take(1)[0]
        assert tag in (0, 1), f"tag {tag} of an option or result"
        return tag

    def message(self):
        return Message(self.string(), self.blob(), self.option())

    def result(self, ok):
        """result<ok, string>, as (True, value) or (False, words)."""
        return (False, self.string()) if self.tag() else (True, ok())


@dataclass
class Message:
    """A broker-message; `headers` are those of the call that carried it."""
    subject: str
    body: bytes
    reply_to: str | None = None
    headers: dict = field(default_factory=dict, compare=False)


# ---------------------------------------------------------------- xkeys

PUBLIC, SEED = b"\xb8", b"\x95\xc0"


def nkey(prefix, raw):
    """Base32 of prefix, key and CRC-16/XMODEM, without padding."""
    data = prefix + raw
    crc = binascii.crc_hqx(data, 0)
    return base64.b32encode(data + crc.to_bytes(2, "little")).decode().rstrip("=")


def raw_key(text):
    """The 32 bytes in an nkey, public or seed."""
    data = base64.b32decode(text + "=" * (-len(text) % 8))
    body, crc = data[:-2], int.from_bytes(data[-2:], "little")
    assert binascii.crc_hqx(body, 0) == crc, "checksum of " + text[:4]
    return body[-32:]


class XKey:
    """An X25519 key pair; the curve comes from PyNaCl, which only sealing needs."""

    def __init__(self, seed=None):
        from nacl.public import PrivateKey
        self.key = PrivateKey(raw_key(seed) if seed else os.urandom(32))
        self.seed = seed or nkey(SEED, bytes(self.key))
        self.public = nkey(PUBLIC, bytes(self.key.public_key))

    def seal(self, public, secrets):
        """What a host puts into source_secrets or target_secrets, for the owner of the public xkey."""
        return list(self.seal_bytes(public, json.dumps(secret_values(secrets)).encode()))

    def seal_bytes(self, public, plain):
        """Bytes for the owner of the public xkey."""
        from nacl.public import Box, PublicKey
        return b"xkv1" + bytes(Box(self.key, PublicKey(raw_key(public))).encrypt(plain, os.urandom(24)))


def secret_values(secrets):
    """{name: SecretValue} of {name: str or bytes}."""
    return {name: {"kind": "String", "value": value} if isinstance(value, str)
            else {"kind": "Bytes", "value": list(value)} for name, value in secrets.items()}
