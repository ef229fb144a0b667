"""One family under test: its checkpoint, the unsplit model, and stages cut from it as a deployment cuts them.

Must not know: what is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from sealed import key, sealed

from edgesplit.model.checkpoint import Checkpoint, open_checkpoint
from edgesplit.model.shards import Cut, cut
from edgesplit.runner.cache import Sequence as Cached
from edgesplit.runner.hidden import Hidden
from edgesplit.runner.manifest import Manifest, Service, StagePlace
from edgesplit.runner.ring import _to_wire, arrived
from edgesplit.runner.stage import Stage
from edgesplit.runner.store import Store
from edgesplit.runner.wire import Decoder, Flag, Kind, Message, Row, encode
from families import upstream
from families.upstream import Answer

DTYPE = "float32"
LIMIT = 2**20  # bytes of a message
PIECE = 1021  # bytes that arrive at once


class Subject:
    """`legal`: the blocks behind which stages may end and did. Answers and stages are made when first asked for."""

    def __init__(self, family: str, folder: Path) -> None:
        """Raises what transformers raises on a family that it cannot build."""
        self.family, self.folder, self.source = family, folder, folder / "model"
        upstream.save(family, self.source)
        self.whole = upstream.load(self.source)
        self.legal: list[int] = []
        self._answers: dict[Any, Answer] = {}
        self._stages: dict[tuple[int, int], Stage] = {}

    def open(self) -> None:
        """Read the checkpoint and cut it, as a deployment does. Raises ModelError."""
        self.checkpoint: Checkpoint = open_checkpoint(self.source, self.family, DTYPE)
        self.cut: Cut = cut(self.checkpoint, self.folder / "hashes.json")
        self.blocks = len(self.checkpoint.chain.blocks)
        self._store = Store(self.folder)
        for sha, shard in self.cut.all().items():
            path = self._store.shard(sha)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(sealed(b"".join(shard.chunks()), sha))
            self._store.keys[sha] = key(sha)
        (self.folder / "files").mkdir()
        for sha, file in self.cut.files.values():
            (self.folder / "files" / sha).write_bytes(file.read_bytes())

    @property
    def allowed(self) -> list[int]:
        """The blocks behind which the chain lets a stage end."""
        glued = self.checkpoint.chain.glued
        return [end for end in range(self.blocks - 1) if not any(first <= end < last for first, last in glued)]

    def unsplit(self, *prompts: Sequence[int], **how: Any) -> Answer:
        key = (tuple(map(tuple, prompts)), tuple(how.items()))
        if key not in self._answers:
            self._answers[key] = upstream.answer(self.whole, prompts, **how)
        return self._answers[key]

    def stage(self, first: int, last: int) -> Stage:
        if (first, last) not in self._stages:
            self._stages[first, last] = self.load(first, last)
        return self._stages[first, last]

    def load(self, first: int, last: int, donors: Iterable[Stage] = ()) -> Stage:
        """From the shards of these blocks, in a folder laid out as on a host. Raises StageError."""
        folder = self._store.lay_out(self._manifest(first, last), 0)
        stage = Stage.load(folder, first, last, DTYPE, donors=donors, keys=self._store.keys)
        upstream.aligned(stage.model)
        return stage

    def _manifest(self, first: int, last: int) -> Manifest:
        return Manifest(
            deployment=self.family,
            epoch=1 + first * self.blocks + last,  # a folder of its own
            dtype=DTYPE,
            stages=(StagePlace("here", first, last),),
            peers={},
            shards=tuple(shard.sha256 for shard in self.cut.blocks),
            common=self.cut.common.sha256,
            files={name: sha for name, (sha, _) in self.cut.files.items()},
            tied=self.checkpoint.tied,
            limit=LIMIT,
            service=Service("", 1, self.family, concurrency=1, max_context=128, prefill_chunk=128, decode_batch=1),
            split={},
        )

    def chain(self, *ends: int) -> Chain:
        """Stages by the last block of each but the last one."""
        firsts, lasts = (0, *(end + 1 for end in ends)), (*ends, self.blocks - 1)
        return Chain(*(self.stage(first, last) for first, last in zip(firsts, lasts, strict=True)))


class WireChanged(AssertionError):
    """What arrived is not what was sent."""


class Chain:
    """Stages in order, with the wire between them."""

    def __init__(self, *stages: Stage) -> None:
        self.stages = stages

    def sequence(self) -> list[Cached]:
        return [stage.sequence() for stage in self.stages]

    def forward(
        self,
        rows: Sequence[list[Cached]],
        ids: torch.Tensor,
        padding: list[int] | None = None,
        *,
        all_logits: bool = False,
    ) -> torch.Tensor:
        value: Any = ids
        for number, stage in enumerate(self.stages):
            sequences = [row[number] for row in rows]
            value = stage.forward(sequences, value, padding, all_logits=all_logits)
            if isinstance(value, Hidden):
                value = travel(value)
        assert all(len({sequence.tokens for sequence in row}) == 1 for row in rows), "stages count differently"
        return value


def travel(hidden: Hidden) -> Hidden:
    """Through bytes and back, which arrive in pieces. Raises WireChanged."""
    sent = (*hidden.tensors, *hidden.carried)
    tensors = tuple(None if tensor is None else _to_wire(tensor) for tensor in sent)
    flags = Flag.TUPLE * hidden.tuple_
    message = Message(Kind.WORK, 1, rows=(Row(0, 0),), flags=flags, tensors=tensors)
    came = arrived(_received(b"".join(encode(message))), len(hidden.carried))
    assert isinstance(came, Hidden)
    pairs = zip(sent, (*came.tensors, *came.carried), strict=True)
    same = all(
        left is right if left is None or right is None else left.dtype == right.dtype and torch.equal(left, right)
        for left, right in pairs
    )
    if not same or came.tuple_ != hidden.tuple_ or len(came.carried) != len(hidden.carried):
        raise WireChanged("what arrives over the wire is not what was sent")
    return came


def _received(data: bytes) -> Message:
    decoder, message = Decoder(LIMIT), None
    while data:
        room = decoder.buffer()
        size = min(len(room), len(data), PIECE)
        room[:size] = data[:size]
        data, message = data[size:], decoder.advance(size)
    assert message is not None
    return message
