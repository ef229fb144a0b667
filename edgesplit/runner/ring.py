"""One epoch in one runner: its stages, the caches of its sequences, and the links to its neighbours.

Everything here runs in the worker's thread but `receive` and `fault`, which the links call and which only hand over.
Must not know: requests, sampling (entry.py does), nor how an epoch is commanded (core.py does).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from .cache import Sequence
from .hidden import Hidden, Prompt
from .link import Sender
from .manifest import Manifest
from .scheduler import Turn, Work, even_piece
from .stage import Stage
from .state import Event, State, step
from .wire import Flag, Kind, Lap, Message, Row, Tensor
from .worker import Worker

log = logging.getLogger("runner")
_MISFIT = (ValueError, RuntimeError, LookupError, TypeError)  # what models raise on inputs that do not fit each other
RECENT = 64  # forwards remembered per stage; medians over them are the telemetry


class StageClock:
    """Times of one stage's forwards, in seconds: totals since it was loaded, and medians of the recent ones."""

    def __init__(self) -> None:
        self.decode: deque[float] = deque(maxlen=RECENT)
        self.rows: deque[float] = deque(maxlen=RECENT)  # sequences in each decode step
        self.prefill: deque[float] = deque(maxlen=RECENT)  # per token
        self.steps, self.decode_total, self.prefill_total = 0, 0.0, 0.0

    def add(self, seconds: float, tokens: int, rows: int, *, prefill: bool) -> None:
        if prefill:
            self.prefill.append(seconds / tokens)
            self.prefill_total += seconds
        else:
            self.decode.append(seconds)
            self.rows.append(rows)
            self.steps += 1
            self.decode_total += seconds

    def report(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "decode_total_s": self.decode_total,
            "prefill_total_s": self.prefill_total,
            "decode_s": median(self.decode),
            "rows": median(self.rows),
            "prefill_s_per_token": median(self.prefill),
        }


def median(times: deque[float]) -> float | None:
    """Of a copy, made in one go: reports are read while the worker adds to them."""
    taken = list(times)
    return statistics.median(taken) if taken else None


class Ring:
    """`sampled(work, logits)`, `refused(work, error)` and `broken()` are the entry's; elsewhere nobody calls them.
    `report` may be read from any thread."""

    def __init__(self, manifest: Manifest, host: str, stages: Mapping[int, Stage], worker: Worker) -> None:
        self.manifest, self.host, self.stages = manifest, host, dict(stages)
        self.epoch = manifest.epoch
        self.chunk, self.limit = manifest.service.prefill_chunk, manifest.limit
        if not all(stage.chunks and stage.kind == "text" for stage in stages.values()):  # prompts may travel whole then
            self.limit *= -(-manifest.service.max_context // self.chunk)
        self.pieces = all(stage.chunks for stage in stages.values())  # may what a sequence has come in pieces?
        if not self.pieces:
            self.chunk = manifest.service.max_context
        plain = all(stage.kind == "text" for stage in stages.values())
        self.decode_batch = manifest.service.decode_batch if plain else 1  # what images tell layers is told row by row
        self.state = State.LOADING
        self.reason = ""
        self._made = time.monotonic()
        self.clocks = {number: StageClock() for number in stages}
        self.heard: dict[str, tuple[float, dict[str, Any]]] = {}  # source -> when its last beat came, and what it said
        self.sampled: Callable[[Work[Any], torch.Tensor], None] | None = None
        self.refused: Callable[[Work[Any], Exception], None] | None = None
        self.broken: Callable[[], None] | None = None
        self._worker = worker
        self._sequences: dict[tuple[int, int], Sequence] = {}
        self._senders: dict[str, Sender] = {}

    # --- life ---

    def event(self, event: Event) -> None:
        """Raises state.IllegalEvent."""
        before, self.state = self.state, step(self.state, event)
        log.info("epoch %d: %s -> %s %s", self.epoch, before.value, self.state.value, self.reason)

    def link(self, senders: Mapping[str, Sender]) -> None:
        """The next hosts have answered. Raises state.IllegalEvent; then the senders stay the caller's."""
        self.event(Event.LINK)
        self._senders.update(senders)

    @property
    def senders(self) -> tuple[Sender, ...]:
        return tuple(self._senders.values())

    def retire(self) -> None:
        self.event(Event.RETIRE)
        self._close(Message(Kind.BYE, self.epoch))
        self._worker.forget(self.epoch)
        self._sequences.clear()
        self.stages.clear()

    def _close(self, last: Message) -> None:
        for sender in self._senders.values():
            sender.send(last)
            sender.close()
        self._senders.clear()

    def beat(self) -> Message:
        """Said where there is nothing else to say: that this runner lives, or that its worker does not get on."""
        if (seconds := self._worker.stalled) is not None:
            reason = f"a forward has taken {seconds:.0f} s so far"
            return Message(Kind.FAULT, self.epoch, text={"host": self.host, "reason": reason})
        return Message(Kind.BEAT, self.epoch, text={"done": self._worker.done, "queued": self._worker.queued})

    # --- called from the links' threads ---

    def receive(self, source: str, message: Message) -> None:
        if message.epoch != self.epoch:
            return  # of another time; nobody waits for it
        if message.kind is Kind.WORK:
            self._worker.add(_work(message))
        elif message.kind is Kind.DROP:
            self._worker.call(lambda: self.drop(message.stage, *(row.sequence for row in message.rows)))
        elif message.kind is Kind.FAULT:
            text = message.text or {}
            self.fault(str(text.get("host", source)), str(text.get("reason", "unknown")))
        elif message.kind is Kind.BEAT:
            self.heard[source] = (time.monotonic(), message.text or {})

    def fault(self, host: str, reason: str) -> None:
        self._worker.call(lambda: self._break(host, reason))

    def _break(self, host: str, reason: str) -> None:
        if self.state in (State.BROKEN, State.RETIRED):
            return
        self.reason = f"{host}: {reason}"
        self.event(Event.FAULT)
        self._close(Message(Kind.FAULT, self.epoch, text={"host": host, "reason": reason}))
        self._worker.forget(self.epoch)
        self._sequences.clear()
        if self.broken is not None:
            self.broken()

    # --- work ---

    def read(self, sequence: int, tokens: list[int], begin: int = 0, size: int | None = None) -> None:
        """Send tokens of a sequence, from place `begin` on, around the ring in pieces; the last asks for a sample."""
        size = size or even_piece(len(tokens) - begin, self.chunk)
        starts = range(begin, len(tokens), size)
        self._worker.add(
            *(
                Work(
                    self.epoch,
                    stage=0,
                    turns=(Turn(sequence, start, 0),),
                    prefill=True,
                    sample=start + size >= len(tokens),
                    payload=torch.tensor([tokens[start : start + size]]),
                    since=time.perf_counter(),
                )
                for start in starts
            )
        )

    def see(self, sequence: int, prompt: Prompt, *, sample: bool) -> None:
        """Send a whole prompt, with what belongs to it, around the ring in one piece."""
        turn, now = Turn(sequence, 0, 0), time.perf_counter()
        self._worker.add(Work(self.epoch, 0, (turn,), prefill=True, sample=sample, payload=prompt, since=now))

    def run(self, work: Work[Any]) -> None:
        """One forward; the result goes on to the next stage, or to the entry's sampler."""
        if self.state not in (State.LINKED, State.SERVING):
            return
        begin = time.perf_counter()
        stage = self.stages[work.stage]
        if stray := next(
            (turn for turn in work.turns if self._sequence(work.stage, turn).tokens != turn.position), None
        ):
            found = self._sequences[work.stage, stray.sequence].tokens
            self._break(self.host, f"sequence {stray.sequence} is at {found}, not at {stray.position}")
            return
        group = [self._sequences[work.stage, turn.sequence] for turn in work.turns]
        inputs = _rows(arrived(work.payload, stage.carried), work.turns)
        start = time.perf_counter()
        try:
            result = stage.forward(group, inputs, wanted=work.sample)
        except _MISFIT as error:
            if self.refused is None or not isinstance(work.payload, Prompt):
                raise
            self.refused(work, error)  # images that do not fit their text are this request's misfortune, not the ring's
            return
        end = time.perf_counter()
        positions = group[0].tokens - work.turns[0].position
        self.clocks[work.stage].add(end - start, positions, len(group), prefill=work.prefill)
        turns = tuple(Turn(turn.sequence, turn.position, row) for row, turn in enumerate(work.turns))
        done = replace(work, turns=turns, payload=None)
        if work.stage + 1 < len(self.manifest.stages):
            tensors, told = sendable(result)
            self._send(replace(done, laps=(*work.laps, _lap(work, begin, start, end))), result, tensors, told)
        elif work.sample and self.sampled is not None:
            self.sampled(replace(done, laps=(*work.laps, _lap(work, begin, start, end))), result)

    def _sequence(self, number: int, turn: Turn) -> Sequence:
        key = (number, turn.sequence)
        if key not in self._sequences:
            self._sequences[key] = self.stages[number].sequence()
        return self._sequences[key]

    def _send(
        self, work: Work[Any], hidden: Hidden, tensors: tuple[Tensor | None, ...], told: dict[str, Tensor | None]
    ) -> None:
        flags = Flag.TUPLE * hidden.tuple_ | Flag.SAMPLE * work.sample | Flag.PREFILL * work.prefill
        number = work.stage + 1
        rows = tuple(Row(turn.sequence, turn.position) for turn in work.turns)
        message = Message(Kind.WORK, self.epoch, number, rows, flags, tensors, named=told, laps=work.laps)
        self._senders[self.manifest.stages[number].host].send(message)

    def drop(self, number: int, *sequences: int) -> None:
        """Forget sequences in stage `number`, and tell the stages behind it.

        Not in the other stages of this host: work for them may still be on its way, and must find its cache.
        """
        for sequence in sequences:
            self._worker.forget(self.epoch, (number, sequence))
            dropped = self._sequences.pop((number, sequence), None)
            if dropped is not None and number in self.stages:
                self.stages[number].caches.drop(dropped)
        behind = number + 1
        if behind < len(self.manifest.stages) and self.state in (State.LINKED, State.SERVING):
            sender = self._senders.get(self.manifest.stages[behind].host)
            if sender is not None:
                rows = tuple(Row(sequence, 0) for sequence in sequences)
                sender.send(Message(Kind.DROP, self.epoch, behind, rows))

    def report(self) -> dict[str, Any]:
        return {
            "state": self.state.value,
            "reason": self.reason,
            "age_s": time.monotonic() - self._made,
            "sequences": len({sequence for _, sequence in list(self._sequences)}),  # a copy, as in median()
            "heard": {host: {**beat, "ago_s": time.monotonic() - at} for host, (at, beat) in list(self.heard.items())},
            "links": {target: sender.round_trip() for target, sender in list(self._senders.items())},
            "stages": {
                str(number): {**clock.report(), "first": place.first, "last": place.last}
                for number, clock in self.clocks.items()
                for place in [self.manifest.stages[number]]
            },
        }


def _work(message: Message) -> Work[Any]:
    return Work(
        epoch=message.epoch,
        stage=message.stage,
        turns=tuple(Turn(row.sequence, row.position, index) for index, row in enumerate(message.rows)),
        prefill=bool(message.flags & Flag.PREFILL),
        sample=bool(message.flags & Flag.SAMPLE),
        payload=message,
        since=time.perf_counter(),
        laps=message.laps,
    )


def _lap(work: Work[Any], begin: float, start: float, end: float) -> Lap:
    """Of a forward from `start` to `end`, whose work was begun at `begin`; until now its result was packed."""
    parts = (begin - work.since, start - begin, end - start, time.perf_counter() - end)
    return Lap(*(min(max(0, round(part * 1e6)), 2**32 - 1) for part in parts))


def arrived(payload: torch.Tensor | Prompt | Message, carried: int) -> torch.Tensor | Prompt | Hidden:
    """Token ids as they are; what came over the wire as tensors again, of which the last `carried` are embeddings."""
    if not isinstance(payload, Message):
        return payload
    tensors = [None if tensor is None else _from_wire(tensor) for tensor in payload.tensors]
    kept = len(tensors) - carried
    embeddings = tuple(tensor for tensor in tensors[kept:] if tensor is not None)
    told = {name: None if tensor is None else _from_wire(tensor) for name, tensor in payload.named.items()}
    return Hidden(tuple(tensors[:kept]), bool(payload.flags & Flag.TUPLE), embeddings, told)


def _rows(came: torch.Tensor | Prompt | Hidden, turns: tuple[Turn, ...]) -> torch.Tensor | Prompt | Hidden:
    """Of what arrived, the rows of these turns. Raises IndexError where there are none such."""
    if came.shape[0] == len(turns) or isinstance(came, Prompt):
        return came
    rows = [turn.row for turn in turns]
    return came.rows(rows) if isinstance(came, Hidden) else came[rows]


def sendable(hidden: Hidden) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor | None]]:
    tensors = tuple(None if tensor is None else _to_wire(tensor) for tensor in (*hidden.tensors, *hidden.carried))
    told = {name: None if tensor is None else _to_wire(tensor) for name, tensor in hidden.told.items()}
    return tensors, told


def _from_wire(tensor: Tensor) -> torch.Tensor:
    """The tensor over the received bytes themselves; nothing is copied but truth values, which any byte may claim."""
    kind: torch.dtype = getattr(torch, tensor.dtype)  # wire.py knows no other names
    if 0 in tensor.shape:
        return torch.empty(tensor.shape, dtype=kind)
    if kind is torch.bool:
        return torch.frombuffer(tensor.data, dtype=torch.uint8).reshape(tensor.shape) != 0
    return torch.frombuffer(tensor.data, dtype=kind).reshape(tensor.shape)


def _to_wire(tensor: torch.Tensor) -> Tensor:
    flat = tensor.detach().cpu().contiguous()
    data = memoryview(flat.view(torch.uint8).reshape(-1).numpy()) if flat.numel() else b""
    return Tensor(str(flat.dtype).removeprefix("torch."), tuple(flat.shape), data)
