"""The entry's sequences: from a prompt to tokens, across epochs.

A sequence keeps its prompt, its answer so far and its sampler here, at the trusted entry; the caches along the ring
are only a shortcut. So when an epoch ends, by plan or by accident, each sequence is replayed into the next one (its
prompt and answer prefilled again) and goes on with the very next token. Runs in the worker's thread.

Must not know: HTTP, text, TLS.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from .catchup import CatchUp
from .hidden import Prompt
from .ring import RECENT, Ring, median
from .sampling import Sampler, Sampling, Scored, scored
from .scheduler import Groups, Turn, Work, beyond, depth
from .state import State
from .wire import Lap
from .worker import Worker

TAIL = 1000  # turns remembered for what a hop takes at worst
WAITING = 64  # requests that may queue; the next is told to come back later
log = logging.getLogger("runner")


class Overloaded(RuntimeError):
    """The queue is full; in about `seconds` there is room."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass
class Request:
    """`emit(token, end, scored)`: called per token with end None, and its scores beside so many others as `logprobs`
    says; then once with token None and why it ended: "stop", "length", "error" when its logits gave no token, or
    "misfit" when its `inputs`, what belongs to the prompt's images, do not fit the prompt. `encoded`: takes the last
    hidden state, of shape [T, width], in place of tokens.
    """

    prompt: tuple[int, ...]
    max_new: int
    sampling: Sampling
    stops: frozenset[int]
    emit: Callable[[int | None, str | None, Scored | None], None]
    logprobs: int | None = None
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    encoded: Callable[[torch.Tensor], None] | None = None


@dataclass
class Running:
    number: int
    request: Request
    sampler: Sampler
    answer: list[int] = field(default_factory=list)
    since: float = 0.0  # when it began, time.monotonic
    last: float = 0.0  # when the last token came, time.monotonic
    begun: float = 0.0  # when the step under way began, time.perf_counter
    read: int = 0  # tokens that the ring had before it served; what comes of those is no answer

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
        self._groups = Groups(1)
        self._times: deque[float] = deque(maxlen=RECENT)
        self._lives: deque[float] = deque(maxlen=RECENT)  # of requests, in seconds
        self._laps = Laps(())
        self._next: CatchUp | None = None
        self.turned: Callable[[float, tuple[Lap, ...]], None] | None = None  # told of each turn: seconds, and its laps
        self.tokens = 0
        self.last_token: float | None = None

    def submit(self, *requests: Request) -> list[int]:
        """Queue requests, all or none; returns their sequence numbers. Raises Overloaded."""
        if len(self._waiting) + len(requests) > WAITING + self._room:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already", self._wait())
        queued = [Running(self._count + 1 + place, each, Sampler(each.sampling)) for place, each in enumerate(requests)]
        self._count += len(queued)
        self._waiting.extend(queued)
        self._admit()
        return [running.number for running in queued]

    @property
    def _room(self) -> int:
        """Sequences that can begin at once."""
        serves = self._ring is not None and self._ring.state is State.SERVING
        return max(0, self._ring.manifest.service.concurrency - len(self._running)) if serves and self._ring else 0

    def _wait(self) -> float:
        """Seconds until the first of those that wait begins, as far as the recent ones tell."""
        taken = median(self._lives) or 1.0
        return taken / max(1, len(self._running))

    def cancel(self, number: int) -> None:
        """The client has gone: forget the sequence wherever it is."""
        self._waiting = deque(running for running in self._waiting if running.number != number)
        if self._running.pop(number, None) is not None:
            self._forget(number)
            self._step()
        self._admit()

    def _forget(self, number: int) -> None:
        self._groups.leave(number)
        if self._ring is not None:
            self._ring.drop(0, number)
        if self._next is not None:
            self._next.leave(number)

    def prepare(self, ring: Ring) -> Future[None]:
        """This ring will serve soon: it may read what the sequences have so far. Done when `attach` will be quick."""
        self.unprepare()
        serving = self._ring is not None and self._ring.state is State.SERVING
        readers = {number: running for number, running in self._running.items() if not running.request.inputs}
        self._next = CatchUp(ring, readers if serving and ring.pieces else {})
        return self._next.done

    def unprepare(self) -> None:
        """Nobody need wait any more; what was read counts if `attach` comes."""
        if self._next is not None:
            self._next.stop()

    def attach(self, ring: Ring) -> None:
        """From now on this ring serves; of what was running it gets what it has not read yet."""
        if self._ring is not None:
            self._ring.sampled = self._ring.refused = None
        read = self._next.read if self._next is not None and self._next.ring is ring else {}
        self._ring, self._next = ring, None
        ring.sampled, ring.refused = self._sampled, self._refused
        self._groups = Groups(ring.decode_batch)
        self._laps = Laps(tuple(place.host for place in ring.manifest.stages))
        for running in self._running.values():
            self._prefill(running, read.get(running.number, 0))
        self._admit()

    def _admit(self) -> None:
        ring = self._ring
        if ring is None or ring.state is not State.SERVING:
            return
        while self._waiting and len(self._running) < ring.manifest.service.concurrency:
            running = self._waiting.popleft()
            self._running[running.number] = running
            running.since = time.monotonic()
            self._prefill(running)

    def _prefill(self, running: Running, read: int = 0) -> None:
        """The prompt, and after a change of epoch the answer so far, from token `read` on, in chunks that overlap along
        the ring.

        A prompt with images is one chunk: some models let all of an image, or of the prompt, see each other.
        """
        ring = self._ring
        assert ring is not None  # noqa: S101 - callers hold a ring
        running.last = 0.0
        request = running.request
        running.read = read
        if not request.inputs:
            ring.read(running.number, running.tokens, read)
            return
        prompt = Prompt(torch.tensor([request.prompt]) if request.prompt else None, request.inputs)
        ring.see(running.number, prompt, sample=not running.answer)
        ring.read(running.number, running.tokens, len(request.prompt))

    def _refused(self, work: Work[Any], error: Exception) -> None:
        log.warning("sequence %d does not fit the model: %s", work.sequence, error)
        running = self._running.get(work.sequence)
        if running is not None:
            self._finish(running, "misfit")

    def _sampled(self, work: Work[Any], logits: torch.Tensor) -> None:
        """`logits`: a row per sequence of the work."""
        if not work.prefill:
            self._measure(work)
        going = [turn.sequence for turn in work.turns if self._goes_on(turn, logits[turn.row])]
        if work.prefill:
            for sequence in going:
                self._groups.join(sequence)
        else:
            self._groups.returned(turn.sequence for turn in work.turns)
            self._groups.back(going)
        self._step()

    def _measure(self, work: Work[Any]) -> None:
        begun = [self._running[turn.sequence].begun for turn in work.turns if turn.sequence in self._running]
        if begun:  # else all of them were cancelled
            seconds = time.perf_counter() - begun[0]
            self._laps.add(seconds, work.laps)
            if self.turned is not None:
                self.turned(seconds, work.laps)

    def _step(self) -> None:
        """Send on their next step the groups whose turn it is."""
        ring = self._ring
        assert ring is not None  # noqa: S101 - callers hold a ring
        now = time.perf_counter()
        for group in self._groups.start(self._laps.depth):
            members = [self._running[sequence] for sequence in group]
            for member in members:
                member.begun = now
            turns = tuple(Turn(member.number, len(member.tokens) - 1, row) for row, member in enumerate(members))
            ids = torch.tensor([[member.answer[-1]] for member in members])
            self._worker.add(Work(ring.epoch, 0, turns, prefill=False, sample=True, payload=ids, since=now))

    def _goes_on(self, turn: Turn, logits: torch.Tensor) -> bool:
        """Take the next token of a sequence from its [T, vocabulary]; does it want another?"""
        running = self._running.get(turn.sequence)
        if running is None or turn.position < running.read:
            return False
        request = running.request
        if request.encoded is not None:
            request.encoded(logits)
            return self._finish(running, "stop")
        try:
            token = running.sampler.pick(logits[-1], running.tokens)
        except RuntimeError as error:  # logits that are no numbers: this request's misfortune, not the ring's
            log.warning("sequence %d gave no token: %s", running.number, error)
            return self._finish(running, "error")
        running.answer.append(token)
        self._clock(running)
        if token in request.stops:
            return self._finish(running, "stop")
        count = request.logprobs
        request.emit(token, None, None if count is None else scored(logits[-1], token, count))
        return len(running.answer) < request.max_new or self._finish(running, "length")

    def _clock(self, running: Running) -> None:
        now = time.monotonic()
        if running.last:
            self._times.append(now - running.last)
        running.last = self.last_token = now
        self.tokens += 1

    def _finish(self, running: Running, end: str) -> bool:
        """It is over; it does not go on."""
        del self._running[running.number]
        self._lives.append(time.monotonic() - running.since)
        self._forget(running.number)
        running.request.emit(None, end, None)
        self._admit()
        return False

    def report(self) -> dict[str, Any]:
        """May be read from any thread."""
        return {
            "serving": self._ring is not None and self._ring.state is State.SERVING,
            "running": len(self._running),
            "waiting": len(self._waiting),
            "tokens": self.tokens,
            "time_per_token_s": median(self._times),
            "epoch": self._ring.epoch if self._ring is not None else 0,
            "groups": self._laps.depth,
            "turn": self._laps.report(),
            "idle_s": None if self.last_token is None else time.monotonic() - self.last_token,
        }


class Laps:
    """Where the time of the recent steps around the ring went, in seconds, and how many can be under way at once."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        self._hosts = hosts
        self._recent: deque[tuple[float, tuple[Lap, ...]]] = deque(maxlen=RECENT)
        self._beyond: deque[float] = deque(maxlen=TAIL)
        self.depth = max(1, len(set(hosts)))

    def add(self, seconds: float, laps: tuple[Lap, ...]) -> None:
        """One step, from its beginning to its return."""
        self._recent.append((seconds, laps))
        if len(laps) > 1:
            self._beyond.append(beyond(seconds, laps))
        recent = list(self._recent)[-16:]
        self.depth = round(statistics.median(depth(laps, self._hosts, whole) for whole, laps in recent))

    def report(self) -> dict[str, Any] | None:
        """Medians, in seconds; `wire` is what no stage accounts for, `hop` all but computing, per hop. May be read from
        any thread."""
        recent = list(self._recent)
        if not recent:
            return None
        stages = [
            {
                f"{name}_s": statistics.median(times) / 1e6
                for name, times in zip(Lap._fields, zip(*laps, strict=True), strict=True)
            }
            for laps in zip(*(laps for _, laps in recent), strict=True)
        ]
        return {
            "whole_s": statistics.median(whole for whole, _ in recent),
            "wire_s": statistics.median(whole - sum(map(sum, laps)) / 1e6 for whole, laps in recent),
            "stages": stages,
            "hop": spread(list(self._beyond)),
        }


def spread(times: list[float]) -> dict[str, float] | None:
    """Their median and what 99 of 100 stay below."""
    if not times:
        return None
    ordered = sorted(times)
    return {"median_s": statistics.median(ordered), "p99_s": ordered[-1 - len(ordered) // 100]}
