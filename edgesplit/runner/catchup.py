"""A planned change of epoch: the next ring reads what the sequences have so far while the present one still answers.

So the change costs a sequence the few tokens that came in the meantime, in one piece, instead of a replay of all.
Runs in the worker's thread.

Must not know: sampling, requests, when the change is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Protocol

import torch

from .ring import Ring
from .scheduler import Work

CLOSE = 4  # tokens a sequence may be behind when the change is made: they cost about as much as one


class Answering(Protocol):
    """A sequence that may get longer at any time."""

    @property
    def tokens(self) -> list[int]: ...


class CatchUp:
    """`done` is set when all sequences that were there at the beginning are close or over, or nobody waits for them.

    `read`: how many tokens of each the next ring has been sent.
    """

    def __init__(self, ring: Ring, sequences: Mapping[int, Answering]) -> None:
        self.ring, self.done, self.read = ring, Future[None](), dict.fromkeys(sequences, 0)
        self._sequences = dict(sequences)
        ring.sampled = self._has_read
        for number in list(self.read):
            self._next(number)
        self._look()

    def leave(self, number: int) -> None:
        """The sequence has ended."""
        if self.read.pop(number, None) is not None:
            self.ring.drop(0, number)
        self._sequences.pop(number, None)
        self._look()

    def stop(self) -> None:
        """Nobody waits any more: one of the rings broke."""
        if not self.done.done():
            self.done.set_result(None)

    def _next(self, number: int) -> None:
        """Send what came since; the last token stays behind, as it belongs to the next step."""
        tokens, begin = self._sequences[number].tokens[:-1], self.read[number]
        if len(tokens) - begin <= (CLOSE if begin else 0):
            del self._sequences[number]
            return
        self.read[number] = len(tokens)
        self.ring.read(number, tokens, begin)

    def _has_read(self, work: Work[Any], _: torch.Tensor) -> None:
        if work.sequence in self._sequences:
            self._next(work.sequence)
            self._look()

    def _look(self) -> None:
        if not self._sequences:
            self.stop()
