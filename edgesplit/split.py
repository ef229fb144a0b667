"""THE ANSWER: which host runs which blocks.

Must not know: why (revision does), nor how it comes to be (broadcast does).
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import model_validator

from edgesplit.values import Name, Value


class Stage(Value):
    """Consecutive blocks `first`..`last` (inclusive, counted from 0 = embedding) on one host."""

    host: Name
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


class Digests(Value):
    """What a split was computed from; `deploy` refuses when one of them has changed since."""

    inventory: str
    plan: str
    profile: str
    checkpoint: str


class Split(Value):
    """All stages of the ring, in the order of the chain. Epoch 0: not deployed yet.

    Invariants: the stages cover the blocks 0..n-1 without gap or overlap; neighbours are on different hosts; the
    first and the last stage are on the same host, the entry (one stage is both).
    """

    stages: tuple[Stage, ...]
    epoch: int = 0
    digests: Digests | None = None

    @model_validator(mode="after")
    def _chain(self) -> Split:
        if not self.stages or self.stages[0].first != 0:
            raise ValueError("a split begins at block 0")
        for stage in self.stages:
            if stage.last < stage.first:
                raise ValueError(f"stage {stage.first}..{stage.last} on {stage.host} is empty")
        for left, right in zip(self.stages, self.stages[1:], strict=False):
            if right.first != left.last + 1:
                raise ValueError(f"stages {left.first}..{left.last} and {right.first}..{right.last} do not meet")
            if right.host == left.host:
                raise ValueError(f"neighbouring stages on {left.host} are one stage")
        if self.stages[0].host != self.stages[-1].host:
            raise ValueError("the ring must end where it begins, at the entry host")
        return self

    @property
    def entry(self) -> str:
        return self.stages[0].host

    @property
    def blocks(self) -> int:
        return self.stages[-1].last + 1

    @property
    def hosts(self) -> tuple[str, ...]:
        """Each host once, in ring order."""
        return tuple(dict.fromkeys(stage.host for stage in self.stages))

    def of(self, host: str) -> tuple[Stage, ...]:
        """The stages on a host, in ring order."""
        return tuple(stage for stage in self.stages if stage.host == host)

    def placement(self) -> tuple[str, ...]:
        """The host of each block."""
        return tuple(stage.host for stage in self.stages for _ in range(len(stage)))

    def same_stages(self, other: Split) -> bool:
        return self.stages == other.stages

    def at(self, epoch: int) -> Split:
        return self.model_copy(update={"epoch": epoch})


def split_from_placement(hosts: Iterable[str]) -> Split:
    """The split that puts block k on the k-th host named."""
    stages: list[Stage] = []
    for block, host in enumerate(hosts):
        if stages and stages[-1].host == host:
            stages[-1] = Stage(host=host, first=stages[-1].first, last=block)
        else:
            stages.append(Stage(host=host, first=block, last=block))
    return Split(stages=tuple(stages))
