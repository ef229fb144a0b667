"""Which piece of work a runner computes next.

Decode steps and prefill chunks wait in two queues that take turns, so that a long prompt does not stall the sequences
that are already answering, nor they the prompt. Within a queue, first come first served: the pieces of one sequence
keep their order, as a decode step exists only after its prompt is through.

Must not know: tensors, stages, threads.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Work(Generic[T]):
    """One forward of one sequence on one stage: `position` is its first position, `payload` what arrived."""

    epoch: int
    stage: int
    sequence: int
    position: int
    prefill: bool
    sample: bool
    payload: T


class Scheduler(Generic[T]):
    def __init__(self) -> None:
        self._decode: deque[Work[T]] = deque()
        self._prefill: deque[Work[T]] = deque()
        self._prefill_turn = False

    def __len__(self) -> int:
        return len(self._decode) + len(self._prefill)

    def add(self, work: Work[T]) -> None:
        (self._prefill if work.prefill else self._decode).append(work)

    def next(self) -> Work[T] | None:
        """The next piece, or None. Decode and prefill alternate while both wait."""
        if not self:
            return None
        prefill = bool(self._prefill) and (self._prefill_turn or not self._decode)
        self._prefill_turn = not prefill
        return (self._prefill if prefill else self._decode).popleft()

    def forget(self, epoch: int, place: tuple[int, int] | None = None) -> None:
        """Throw away what waits of an epoch, or only of one (stage, sequence) of it."""
        for queue in (self._decode, self._prefill):
            keep = [work for work in queue if work.epoch != epoch or place not in (None, (work.stage, work.sequence))]
            queue.clear()
            queue.extend(keep)
