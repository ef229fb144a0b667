"""The manifest of an epoch: everything a runner needs to know of it, as one signed value that all hosts share.

It refers to weights by content hash only; no host learns from it more than names and sizes (the paper, III-D).
Must not know: keys, sockets, files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


class ManifestError(ValueError):
    """The manifest does not hold what it must."""


@dataclass(frozen=True)
class StagePlace:
    """Blocks first..last on a host."""

    host: str
    first: int
    last: int


@dataclass(frozen=True)
class Peer:
    """Where a host's runner listens, and the sha256 of the certificate it must show."""

    address: str
    port: int
    fingerprint: str


@dataclass(frozen=True)
class Service:
    """How the entry serves: API address, limits in tokens, sequences at once."""

    address: str
    port: int
    model: str
    concurrency: int
    max_context: int
    prefill_chunk: int


@dataclass(frozen=True)
class Manifest:
    """`shards`: one sha256 per block; `common`: the shard every stage needs; `files`: name -> sha256.

    `tied`: the head's matrix is the embedding's, so the last stage needs block 0's shard too.
    `limit`: bytes of the largest body on the wire. `split`: the controller's own record, kept for `status`.
    """

    deployment: str
    epoch: int
    dtype: str
    stages: tuple[StagePlace, ...]
    peers: dict[str, Peer]
    shards: tuple[str, ...]
    common: str
    files: dict[str, str]
    tied: bool
    limit: int
    service: Service
    split: dict[str, Any]

    @property
    def entry(self) -> str:
        return self.stages[0].host

    def places(self, host: str) -> dict[int, StagePlace]:
        """Stage number -> place, of one host."""
        return {number: place for number, place in enumerate(self.stages) if place.host == host}

    def blocks(self, host: str) -> frozenset[int]:
        """The blocks whose weights a host holds."""
        held = {block for place in self.places(host).values() for block in range(place.first, place.last + 1)}
        return frozenset(held | {0} if self.tied and len(self.shards) - 1 in held else held)

    def targets(self, host: str) -> frozenset[str]:
        """The hosts it sends to."""
        pairs = zip(self.stages, self.stages[1:], strict=False)
        return frozenset(right.host for left, right in pairs if left.host == host)

    def sources(self, host: str) -> frozenset[str]:
        """The hosts it hears from."""
        return frozenset(other for other in self.peers if host in self.targets(other))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse(data: Mapping[str, Any]) -> Manifest:
    """From its JSON form. Raises ManifestError naming what is wrong."""
    try:
        manifest = Manifest(
            deployment=str(data["deployment"]),
            epoch=int(data["epoch"]),
            dtype=str(data["dtype"]),
            stages=tuple(StagePlace(**stage) for stage in data["stages"]),
            peers={str(name): Peer(**peer) for name, peer in data["peers"].items()},
            shards=tuple(str(shard) for shard in data["shards"]),
            common=str(data["common"]),
            files={str(name): str(sha) for name, sha in data["files"].items()},
            tied=bool(data["tied"]),
            limit=int(data["limit"]),
            service=Service(**data["service"]),
            split=dict(data["split"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"the manifest is incomplete: {error!r}") from error
    if any("/" in name or name.startswith(".") for name in manifest.files):
        raise ManifestError("a file of the model has a path for a name")
    return manifest


def fingerprint(certificate: bytes) -> str:
    """sha256 of a certificate's DER bytes, in hexadecimal."""
    return hashlib.sha256(certificate).hexdigest()
