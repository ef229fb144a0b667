"""Which piece of work a runner computes next, and which sequences step together.

Decode steps and prefill chunks wait in two queues that take turns, so that a long prompt does not stall the sequences
that are already answering, nor they the prompt. Within a queue, first come first served: the pieces of one sequence
keep their order, as a decode step exists only after its prompt is through.

Sequences that answer step in groups, each one forward per stage. One group alone would leave all stages idle but one;
as many groups as sequences would read every weight once per token. Between the two, the entry keeps as many groups on
their way as the ring can work on at once, of equal size.

Must not know: tensors, stages, threads, clocks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from .wire import Lap

T = TypeVar("T")


class Turn(NamedTuple):
    """One sequence of a forward: `position` is its first position in it, `row` its row of the payload."""

    sequence: int
    position: int
    row: int


@dataclass(frozen=True)
class Work(Generic[T]):
    """One forward of some sequences on one stage; `payload` is what arrived, `since` when (time.perf_counter), and
    `laps` where its time has gone so far."""

    epoch: int
    stage: int
    turns: tuple[Turn, ...]
    prefill: bool
    sample: bool
    payload: T
    since: float = 0.0
    laps: tuple[Lap, ...] = ()

    @property
    def sequence(self) -> int:
        """Of a forward of one sequence."""
        return self.turns[0].sequence

    def without(self, sequence: int) -> Work[T]:
        return replace(self, turns=tuple(turn for turn in self.turns if turn.sequence != sequence))


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
            kept = [work if work.epoch != epoch else _rest(work, place) for work in queue]
            queue.clear()
            queue.extend(work for work in kept if work is not None)


def _rest(work: Work[T], place: tuple[int, int] | None) -> Work[T] | None:
    if place is None:
        return None
    stage, sequence = place
    rest = work.without(sequence) if work.stage == stage else work
    return rest if rest.turns else None


class Groups:
    """The sequences that answer, in groups that step together.

    `largest`: sequences in one forward at most. A group stays together from step to step, as regrouping copies caches;
    whoever joins waits for a group with room.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._ready: deque[int] = deque()  # sequences between two steps
        self._under_way: dict[int, int] = {}  # sequence -> its group
        self._count = 0

    @property
    def under_way(self) -> int:
        """Groups between their start and their return."""
        return len(set(self._under_way.values()))

    def join(self, sequence: int) -> None:
        """It has its first token, or is back in a new ring, and is ready for the next step."""
        self._ready.append(sequence)

    def back(self, sequences: Iterable[int]) -> None:
        """Of a group that returned, those that go on; they come first in the next one."""
        self._ready.extendleft(reversed(list(sequences)))

    def leave(self, sequence: int) -> None:
        self._under_way.pop(sequence, None)
        if sequence in self._ready:
            self._ready.remove(sequence)

    def returned(self, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            self._under_way.pop(sequence, None)

    def clear(self) -> None:
        self._ready.clear()
        self._under_way.clear()

    def start(self, depth: int) -> list[list[int]]:
        """The groups that step now, where `depth` may be under way at once; more, where they would be too large."""
        begun = []
        some = len(self._ready) + len(self._under_way)
        depth = max(depth, math.ceil(some / self._largest))
        while self._ready and self.under_way < depth:
            group = [self._ready.popleft() for _ in range(min(math.ceil(some / depth), len(self._ready)))]
            self._count += 1
            self._under_way.update(dict.fromkeys(group, self._count))
            begun.append(group)
        return begun


def even_piece(tokens: int, most: int) -> int:
    """The length of pieces of at most `most` tokens, as few as possible and as equal: the longest one is waited for at
    every stage."""
    return math.ceil(tokens / math.ceil(tokens / most)) if tokens else most


def beyond(whole: float, laps: tuple[Lap, ...]) -> float:
    """Seconds per hop of a turn of `whole` seconds in which nobody computed for it."""
    return (whole - sum(lap.computed for lap in laps) / 1e6) / (len(laps) - 1)


def depth(laps: Iterable[Lap], hosts: Iterable[str], whole: float) -> int:
    """How many groups the ring can work on at once: the time of one turn around it without waiting, over the time its
    busiest host works on it. `whole`: of the turn, in seconds; `hosts`: of the stages, in the order of `laps`."""
    busy: dict[str, int] = {}
    waited = 0
    for lap, host in zip(laps, hosts, strict=True):
        busy[host] = busy.get(host, 0) + sum(lap) - lap.queued
        waited += lap.queued
    most = max(busy.values(), default=0)
    return max(1, round((whole * 1e6 - waited) / most)) if most else len(busy) or 1
