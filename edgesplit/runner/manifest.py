"""The manifest of an epoch: everything a runner needs to know of it, as one signed value that all hosts share.

It refers to weights by content hash only; no host learns from it more than names and sizes (the paper, III-D).
Must not know: keys, sockets, files.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, TypeVar

T = TypeVar("T")

_SHA = re.compile(r"[0-9a-f]{64}")


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
    """How the entry serves: API address, limits in tokens, sequences at once, and of these in one forward."""

    address: str
    port: int
    model: str
    concurrency: int
    max_context: int
    prefill_chunk: int
    decode_batch: int
    deadline: int = 0  # seconds a request may take; 0: as long as it likes

    @property
    def private(self) -> bool:
        """Does the API listen where only its own host reaches it?"""
        if self.address == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class Manifest:
    """`shards`: one sha256 per block; `common`: the shard every stage needs; `files`: name -> sha256.

    `tied`: the head's matrix is the embedding's, so the last stage needs block 0's shard too.
    `quantization`: of the matrices in the shards, "" for none; the shards themselves say which.
    `limit`: bytes of the largest body on the wire. `split`: the controller's own record, kept for `status`.
    `trust_remote_code`: the checkpoint's own code, which is among `files` then, may run.
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
    trust_remote_code: bool = False
    quantization: str = ""

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

    def needed(self, host: str) -> frozenset[str]:
        """The shards that a host needs, by their hash."""
        return frozenset({*(self.shards[block] for block in self.blocks(host)), self.common})

    def targets(self, host: str) -> frozenset[str]:
        """The hosts it sends to."""
        return frozenset(right.host for left, right in pairwise(self.stages) if left.host == host)

    def sources(self, host: str) -> frozenset[str]:
        """The hosts it hears from."""
        return frozenset(other for other in self.peers if host in self.targets(other))

    @property
    def contents(self) -> tuple[Any, ...]:
        """Two manifests with the same have the same weights in the same form."""
        return (self.dtype, self.shards, self.common, self.files)

    def same_split(self, other: Manifest) -> bool:
        """The same blocks of the same weights on the same hosts."""
        return (self.stages, self.contents) == (other.stages, other.contents)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse(data: Mapping[str, Any]) -> Manifest:
    """From its JSON form. Raises ManifestError naming what is wrong."""
    try:
        manifest = Manifest(
            deployment=str(data["deployment"]),
            epoch=int(data["epoch"]),
            dtype=str(data["dtype"]),
            stages=tuple(_fields(StagePlace, stage) for stage in data["stages"]),
            peers={str(name): _fields(Peer, peer) for name, peer in data["peers"].items()},
            shards=tuple(str(shard) for shard in data["shards"]),
            common=str(data["common"]),
            files={str(name): str(sha) for name, sha in data["files"].items()},
            tied=bool(data["tied"]),
            limit=int(data["limit"]),
            service=_fields(Service, data["service"]),
            split=dict(data["split"]),
            trust_remote_code=data["trust_remote_code"] is True,
            quantization=str(data["quantization"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"the manifest is incomplete: {error!r}") from error
    _check(manifest)
    return manifest


def recorded(record: str) -> Manifest:
    """From the signed command it came with, as hosts keep it. Raises ManifestError."""
    try:
        data = json.loads(json.loads(record)["payload"])["manifest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"no record of a manifest: {error!r}") from error
    return parse(data)


def _fields(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass whose fields are all str or int. Raises KeyError, TypeError, ValueError."""
    casts: dict[Any, Callable[[Any], Any]] = {"int": int, "str": str}
    return kind(**{field.name: casts[field.type](data[field.name]) for field in fields(kind)})  # type: ignore[arg-type]


def _check(manifest: Manifest) -> None:
    """Raises ManifestError where the parts do not fit together, or a name could leave the runner's folder."""
    stages, blocks = manifest.stages, len(manifest.shards)
    covered = [block for stage in stages for block in range(stage.first, stage.last + 1)]
    if not stages or covered != list(range(blocks)) or any(stage.last < stage.first for stage in stages):
        raise ManifestError(f"the stages do not cover blocks 0 to {blocks - 1} in order")
    if stages[0].host != stages[-1].host:
        raise ManifestError("the ring does not end where it begins")
    if any(left.host == right.host for left, right in pairwise(stages)):
        raise ManifestError("neighbouring stages of one host are one stage")
    if strangers := {stage.host for stage in stages} - set(manifest.peers):
        raise ManifestError(f"no address of {', '.join(sorted(strangers))}")
    if any("/" in name or name.startswith(".") for name in manifest.files):
        raise ManifestError("a file of the model has a path for a name")
    if not manifest.trust_remote_code and any(name.endswith(".py") for name in manifest.files):
        raise ManifestError("a file of the model is code, which nobody trusts")
    if not all(_SHA.fullmatch(sha) for sha in (*manifest.shards, manifest.common, *manifest.files.values())):
        raise ManifestError("a content hash is no sha256")
    service = manifest.service
    if min(service.concurrency, service.max_context, service.prefill_chunk, service.decode_batch) < 1:
        raise ManifestError("a limit of the service is below 1")


def fingerprint(certificate: bytes) -> str:
    """sha256 of a certificate's DER bytes, in hexadecimal."""
    return hashlib.sha256(certificate).hexdigest()
