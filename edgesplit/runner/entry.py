"""The entry's sequences: from a prompt to tokens, across epochs.

A sequence keeps its prompt, its answer so far and its sampler here, at the trusted entry; the caches along the ring
are only a shortcut. So when an epoch ends, by plan or by accident, each sequence is replayed into the next one (its
prompt and answer prefilled again) and goes on with the very next token. Runs in the worker's thread.

Must not know: HTTP, text, TLS.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .ring import RECENT, Ring, median
from .sampling import Sampler, Sampling, logprob
from .scheduler import Work
from .stage import Prompt
from .state import State
from .worker import Worker

WAITING = 64  # requests that may queue; the next is told to come back later
log = logging.getLogger("runner")


class Overloaded(RuntimeError):
    """The queue is full."""


@dataclass
class Request:
    """`emit(token, end, logprob)`: called per token with end None, and its log-probability if `logprobs`; then once
    with token None and why it ended: "stop", "length", "error" when its logits gave no token, or "misfit" when its
    `inputs`, what belongs to the prompt's images, do not fit the prompt. `encoded`: takes the last hidden state, of
    shape [T, width], in place of tokens.
    """

    prompt: tuple[int, ...]
    max_new: int
    sampling: Sampling
    stops: frozenset[int]
    emit: Callable[[int | None, str | None, float | None], None]
    logprobs: bool = False
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    encoded: Callable[[torch.Tensor], None] | None = None


@dataclass
class Running:
    number: int
    request: Request
    sampler: Sampler
    answer: list[int] = field(default_factory=list)
    last: float = 0.0  # when the last token came, time.monotonic

    @property
    def tokens(self) -> list[int]:
        return [*self.request.prompt, *self.answer]


class Entry:
    """Admits at most the manifest's `concurrency` sequences; the rest wait in order."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._ring: Ring | None = None
        self._waiting: deque[Running] = deque()
        self._running: dict[int, Running] = {}
        self._count = 0
        self._times: deque[float] = deque(maxlen=RECENT)
        self.tokens = 0
        self.last_token: float | None = None

    def submit(self, request: Request) -> int:
        """Queue a request; returns its sequence number. Raises Overloaded."""
        if len(self._waiting) >= WAITING:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already")
        self._count += 1
        self._waiting.append(Running(self._count, request, Sampler(request.sampling)))
        self._admit()
        return self._count

    def cancel(self, number: int) -> None:
        """The client has gone: forget the sequence wherever it is."""
        self._waiting = deque(running for running in self._waiting if running.number != number)
        if self._running.pop(number, None) is not None and self._ring is not None:
            self._ring.drop(0, number)
        self._admit()

    def attach(self, ring: Ring) -> None:
        """From now on this ring serves; what was running is replayed into it."""
        if self._ring is not None:
            self._ring.sampled = self._ring.refused = None
        self._ring = ring
        ring.sampled, ring.refused = self._sampled, self._refused
        for running in self._running.values():
            self._prefill(running)
        self._admit()

    def _admit(self) -> None:
        ring = self._ring
        if ring is None or ring.state is not State.SERVING:
            return
        while self._waiting and len(self._running) < ring.manifest.service.concurrency:
            running = self._waiting.popleft()
            self._running[running.number] = running
            self._prefill(running)

    def _prefill(self, running: Running) -> None:
        """The prompt, and after a change of epoch the answer so far, in chunks that overlap along the ring.

        A prompt with images is one chunk: some models let all of an image, or of the prompt, see each other.
        """
        ring = self._ring
        assert ring is not None  # noqa: S101 - callers hold a ring
        running.last = 0.0
        request = running.request
        if not request.inputs:
            self._worker.add(*chunks(ring.epoch, running.number, running.tokens, ring.chunk))
            return
        prompt = Prompt(torch.tensor([request.prompt]), request.inputs)
        first = Work(ring.epoch, 0, running.number, 0, prefill=True, sample=not running.answer, payload=prompt)
        rest = chunks(ring.epoch, running.number, running.tokens, ring.chunk, len(request.prompt))
        self._worker.add(first, *rest)

    def _refused(self, work: Work[Any], error: Exception) -> None:
        log.warning("sequence %d does not fit the model: %s", work.sequence, error)
        running = self._running.get(work.sequence)
        if running is not None:
            self._finish(running, "misfit")

    def _sampled(self, work: Work[Any], logits: torch.Tensor) -> None:
        running = self._running.get(work.sequence)
        if running is None:
            return
        if running.request.encoded is not None:
            running.request.encoded(logits[0])
            self._finish(running, "stop")
            return
        try:
            token = running.sampler.pick(logits[0, -1], running.tokens)
        except RuntimeError as error:  # logits that are no numbers: this request's misfortune, not the ring's
            log.warning("sequence %d gave no token: %s", work.sequence, error)
            self._finish(running, "error")
            return
        running.answer.append(token)
        self._clock(running)
        if token in running.request.stops:
            self._finish(running, "stop")
            return
        request = running.request
        request.emit(token, None, logprob(logits[0, -1], token) if request.logprobs else None)
        if len(running.answer) >= request.max_new:
            self._finish(running, "length")
            return
        position = len(request.prompt) + len(running.answer) - 1
        ids = torch.tensor([[token]])
        self._worker.add(Work(work.epoch, 0, work.sequence, position, prefill=False, sample=True, payload=ids))

    def _clock(self, running: Running) -> None:
        now = time.monotonic()
        if running.last:
            self._times.append(now - running.last)
        running.last = self.last_token = now
        self.tokens += 1

    def _finish(self, running: Running, end: str) -> None:
        del self._running[running.number]
        if self._ring is not None:
            self._ring.drop(0, running.number)
        running.request.emit(None, end, None)
        self._admit()

    def report(self) -> dict[str, Any]:
        """May be read from any thread."""
        return {
            "serving": self._ring is not None and self._ring.state is State.SERVING,
            "running": len(self._running),
            "waiting": len(self._waiting),
            "tokens": self.tokens,
            "time_per_token_s": median(self._times),
            "idle_s": None if self.last_token is None else time.monotonic() - self.last_token,
        }


def chunks(epoch: int, sequence: int, tokens: list[int], size: int, begin: int = 0) -> list[Work[torch.Tensor]]:
    """A prompt from a token on as work for stage 0: pieces of `size` tokens, the last of which asks for a sample."""
    starts = range(begin, len(tokens), size)
    return [
        Work(
            epoch,
            stage=0,
            sequence=sequence,
            position=start,
            prefill=True,
            sample=start + size >= len(tokens),
            payload=torch.tensor([tokens[start : start + size]]),
        )
        for start in starts
    ]
