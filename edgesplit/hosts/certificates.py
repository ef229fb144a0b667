"""OpenSSH certificates (PROTOCOL.certkeys): bytes -> fields, and whether a host's certificate holds for a name now.

Whoever calls verifies `signature` over `signed` with `authority`, and knows whether that authority is believed.
Must not know: who is believed, how signatures are verified, the clock.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from edgesplit.hosts.known_hosts import glob
from edgesplit.units import format_time

SUFFIX = "-cert-v01@openssh.com"
HOST = 2  # SSH_CERT_TYPE_HOST
_FIELDS = {"ssh-ed25519": 1, "ssh-rsa": 2}  # strings that make the public key; the rest are ECDSA: curve, point
_FOREVER = 2**64 - 1
_MAGIC = b"openssh-key-v1\0"  # of a private key file


class Damaged(ValueError):
    """The bytes end too early, or go on too long."""


@dataclass(frozen=True)
class Certificate:
    public: bytes  # the key that it certifies, as known_hosts lists it
    kind: int
    principals: tuple[str, ...]
    after: int  # seconds since 1970
    before: int
    critical: bytes
    authority: bytes  # the key that signed
    signed: bytes
    signature: bytes


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if len(self._data) - self.at < size:
            raise Damaged("it ends too early")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        return self.take(self.number(4))

    def end(self) -> None:
        if self.at != len(self._data):
            raise Damaged("it goes on after its end")


def parse(blob: bytes) -> Certificate | None:
    """None for a key without a certificate. Raises Damaged."""
    reader = _Reader(blob)
    kind = reader.string()
    if not kind.endswith(SUFFIX.encode()):
        return None
    name = kind[: -len(SUFFIX)]
    reader.string()  # nonce
    start = reader.at
    for _ in range(_FIELDS.get(name.decode("ascii", "replace"), 2)):
        reader.string()
    public = len(name).to_bytes(4, "big") + name + blob[start : reader.at]
    reader.number(8)  # serial
    use = reader.number(4)
    reader.string()  # key id
    principals = _strings(reader.string())
    after, before = reader.number(8), reader.number(8)
    critical = reader.string()
    reader.string()  # extensions
    reader.string()  # reserved
    authority = reader.string()
    signed = blob[: reader.at]
    signature = reader.string()
    reader.end()
    return Certificate(public, use, principals, after, before, critical, authority, signed, signature)


def problem(certificate: Certificate, host: str, now: float) -> str:
    """Why this certificate does not make its key the host's; "" when it does (if its signature is good)."""
    faults = (
        (certificate.kind != HOST, "it is a user's, not a host's"),
        (not certificate.principals, "it names no host (sign it with ssh-keygen -n NAME)"),
        (
            not any(glob(name, host) for name in certificate.principals),
            f"it is for {', '.join(certificate.principals)}, not for {host}",
        ),
        (now < certificate.after, f"it begins in {format_time(certificate.after - now)}"),
        (
            certificate.before != _FOREVER and now >= certificate.before,
            f"it ended {format_time(now - certificate.before)} ago",
        ),
        (certificate.critical != b"", "it has critical options, and there are none for hosts"),
    )
    return next((text for wrong, text in faults if wrong), "")


def public_part(text: str) -> bytes | None:
    """The public key that an OpenSSH private key file shows in the clear, even when it has a passphrase."""
    lines = text.strip().splitlines()
    if len(lines) < 3 or "BEGIN OPENSSH PRIVATE KEY" not in lines[0]:
        return None
    try:
        reader = _Reader(_decoded("".join(lines[1:-1])))
        if reader.take(len(_MAGIC)) != _MAGIC:
            return None
        for _ in range(3):  # cipher, key derivation, its options
            reader.string()
        reader.number(4)  # how many keys: always one
        return reader.string()
    except ValueError:
        return None


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _strings(data: bytes) -> tuple[str, ...]:
    reader = _Reader(data)
    found = []
    while reader.at < len(data):
        found.append(reader.string().decode("utf-8", "replace"))
    return tuple(found)
