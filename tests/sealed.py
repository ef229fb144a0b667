"""Shards as they lie on a host, with keys that tests can work out."""

from __future__ import annotations

import hashlib

from edgesplit.runner.manifest import Manifest
from edgesplit.runner.sealing import SEGMENT, Sealer


def key(sha256: str) -> bytes:
    return hashlib.sha256(sha256.encode()).digest()


def sealed(data: bytes, sha256: str) -> bytes:
    sealer, ends = Sealer(key(sha256)), range(0, len(data), SEGMENT)
    return b"".join(bytes(sealer.seal(data[at : at + SEGMENT], last=at + SEGMENT >= len(data))) for at in ends)


def known(manifest: Manifest) -> tuple[Manifest, dict[str, bytes]]:
    """What a runner is told to prepare."""
    return manifest, {sha: key(sha) for sha in (*manifest.shards, manifest.common)}
