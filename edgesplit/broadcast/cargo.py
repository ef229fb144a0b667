"""What a deployment ships: shards, side files and the runner, and the manifest that refers to them.

Must not know: which host has what already, how things travel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from edgesplit.broadcast.archive import Archive, runner_archive
from edgesplit.broadcast.transition import Need
from edgesplit.inventory import Inventory
from edgesplit.model.checkpoint import Checkpoint
from edgesplit.model.shards import Cut
from edgesplit.plan import ModelPlan
from edgesplit.runner.manifest import Manifest, Peer, Service, StagePlace
from edgesplit.split import Split

# Room on the wire beside the hidden states of one chunk: some families send the embeddings and a fourfold stream too.
WIRE_ROWS = 16 * 2**10  # bytes for the names of sequences and for what stages tell of their time
WIRE_SLACK = 8
KEPT = ("shards", "files")  # folders of what is named by content; what a cut left in them is gone on with


@dataclass(frozen=True)
class Thing:
    """One file that may travel: its path in the deployment's folder, its hash and size, and how to read its bytes.

    `sealed`: the host writes it down sealed.
    """

    path: str
    sha256: str
    size: int
    chunks: Callable[[], Iterator[bytes]]
    sealed: bool = False


@dataclass(frozen=True)
class Cargo:
    plan: ModelPlan
    inventory: Inventory
    checkpoint: Checkpoint
    cut: Cut

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def archive(self) -> Archive:
        return runner_archive()

    def folder(self, host: str) -> str:
        return f"{self.inventory.hosts[host].work}/{self.plan.name}"

    @cached_property
    def things(self) -> Mapping[str, Thing]:
        """Everything that may travel, by path."""
        archive = self.archive
        things = [Thing(archive.name, archive.sha256, len(archive.data), lambda: iter([archive.data]))]
        things += [
            Thing(shard_path(s.sha256), s.sha256, s.size, s.chunks, sealed=True) for s in self.cut.all().values()
        ]
        for sha, file in self.cut.files.values():
            data = file.read_bytes()
            things.append(Thing(f"files/{sha}", sha, len(data), partial(_once, data)))
        return {thing.path: thing for thing in things}

    def needs(self, target: Split) -> dict[str, Need]:
        """What each host of a split must have."""
        manifest = self.manifest(target, {})
        return {host: Need({path: self.size(path) for path in self.paths(manifest, host)}) for host in target.hosts}

    def paths(self, manifest: Manifest, host: str) -> set[str]:
        """The files that a host must have for an epoch."""
        files = (f"files/{sha}" for sha in manifest.files.values())
        return {*map(shard_path, manifest.needed(host)), self.archive.name, *files}

    def size(self, path: str) -> int:
        return self.things[path].size

    def stock(self, manifest: Manifest | None, host: str) -> set[str]:
        """The weights and side files that a host needs for an epoch."""
        found = self.paths(manifest, host) if manifest is not None and host in manifest.peers else set()
        return {path for path in found if path.partition("/")[0] in KEPT}

    def blocks_in(self, objects: Collection[str]) -> tuple[int, ...]:
        """The blocks whose weights are among files of a host."""
        return tuple(block for block, shard in enumerate(self.cut.blocks) if shard_path(shard.sha256) in objects)

    def manifest(self, target: Split, fingerprints: Mapping[str, str]) -> Manifest:
        """The manifest of a split whose epoch is set."""
        plan, chain = self.plan, self.checkpoint.chain
        widest = max(block.output_bytes_per_token for block in chain.blocks)
        return Manifest(
            deployment=plan.name,
            epoch=target.epoch,
            dtype=plan.dtype,
            stages=tuple(StagePlace(stage.host, stage.first, stage.last) for stage in target.stages),
            peers={host: self._peer(host, fingerprints.get(host, "")) for host in target.hosts},
            shards=tuple(shard.sha256 for shard in self.cut.blocks),
            common=self.cut.common.sha256,
            files={name: sha for name, (sha, _) in self.cut.files.items()},
            tied=self.checkpoint.tied,
            limit=WIRE_SLACK * max(plan.prefill_chunk, plan.decode_batch) * widest + WIRE_ROWS,
            service=Service(
                address=plan.api.address,
                port=plan.api.port,
                model=plan.name,
                concurrency=plan.workload.concurrency,
                max_context=plan.workload.max_context,
                prefill_chunk=plan.prefill_chunk,
                decode_batch=plan.decode_batch,
                deadline=math.ceil(plan.api.deadline or 0),
            ),
            split=target.model_dump(mode="json"),
            trust_remote_code=plan.model.trust_remote_code,
            quantization=plan.quantization or "",
        )

    def serving(self, count: int | None) -> Cargo:
        """For so many sequences at a time; None: as many as the plan asks for."""
        if count is None:
            return self
        workload = self.plan.workload.model_copy(update={"concurrency": count})
        return replace(self, plan=self.plan.model_copy(update={"workload": workload}))

    def at_once(self, kept: Manifest) -> int | None:
        """So many sequences at a time are served, where they are not as many as the plan asks for."""
        count = kept.service.concurrency
        return count if count != self.plan.workload.concurrency else None

    def matches(self, kept: Manifest) -> bool:
        """Is what serves what this plan, inventory and checkpoint would make of the same split?"""
        fingerprints = {host: peer.fingerprint for host, peer in kept.peers.items()}
        wanted = self.manifest(split_of(kept), fingerprints)
        return replace(wanted, split={}) == replace(kept, split={})  # `split` also says what it was computed from

    def _peer(self, host: str, fingerprint: str) -> Peer:
        spec = self.inventory.hosts[host]
        return Peer(spec.data_address, spec.data.port, fingerprint)


def split_of(kept: Manifest) -> Split:
    """The split that a manifest was made for."""
    return Split.model_validate_json(json.dumps(kept.split))


def shard_path(sha256: str) -> str:
    return f"shards/{sha256}.sealed"


def _once(data: bytes) -> Iterator[bytes]:
    yield data
