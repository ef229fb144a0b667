"""What the entry counts and times, in the form that Prometheus reads.

Must not know: HTTP, what a request is about, how an epoch changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from .scheduler import beyond
from .wire import Lap

# Seconds: from a hop on a loopback to a prompt on a small board.
_FINE = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
_HOP = (0.0001, 0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1)
_COARSE = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_GAUGES = {
    "serving": "1 where a ring serves, else 0",
    "running": "sequences that are answered",
    "waiting": "sequences that wait for their turn",
    "epoch": "of the split that serves; 0 for none",
    "groups": "groups of sequences that the ring is given to work on at once",
}


class Meter:
    """`report`: the entry's, for what is so at the moment of asking."""

    def __init__(self, report: Callable[[], dict[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._report = report
        self._registry.register(self)
        self._requests = self._counter("requests", "by how they ended", "outcome")
        self._tokens = self._counter("tokens", "of prompts and of answers", "of")
        self._first = self._histogram("time_to_first_token_seconds", "from the request on", _COARSE)
        self._next = self._histogram("time_per_token_seconds", "between two tokens of one choice", _FINE)
        self._life = self._histogram("request_seconds", "from the request to its end", _COARSE)
        self._turn = self._histogram("turn_seconds", "of one step around the ring", _FINE)
        self._wire = self._histogram("wire_seconds", "of one step, what no stage accounts for: links and TLS", _FINE)
        self._hop = self._histogram("hop_seconds", "of one step, what is not computing, per hop", _HOP)
        self._stage = self._histogram("stage_seconds", "of one step at one stage", _FINE, "stage", "part")

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"edgesplit_{name}", words, labels, registry=self._registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"edgesplit_{name}", words, labels, registry=self._registry, buckets=buckets)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        report = self._report()
        for name, words in _GAUGES.items():
            yield GaugeMetricFamily(f"edgesplit_{name}", words, value=float(report.get(name) or 0))

    def text(self) -> bytes:
        return bytes(generate_latest(self._registry))

    def turned(self, seconds: float, laps: tuple[Lap, ...]) -> None:
        """One step is back."""
        self._turn.observe(seconds)
        self._wire.observe(max(0.0, seconds - sum(map(sum, laps)) / 1e6))
        if len(laps) > 1:
            self._hop.observe(beyond(seconds, laps))
        for stage, lap in enumerate(laps):
            for part, micros in lap._asdict().items():
                self._stage.labels(str(stage), part).observe(micros / 1e6)

    def refused(self, outcome: str) -> None:
        self._requests.labels(outcome).inc()

    def request(self) -> Observed:
        return Observed(self)

    def ended(self, outcome: str, seconds: float, prompt: int, answer: int) -> None:
        self._requests.labels(outcome).inc()
        self._life.observe(seconds)
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("answer").inc(answer)

    def token(self, seconds: float, *, first: bool) -> None:
        (self._first if first else self._next).observe(seconds)


class Observed:
    """One request. As a context: it ends as `outcome` says, as `failed` by an error of ours, else its client left."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._begun = meter, time.monotonic()
        self._last: dict[int, float] = {}
        self._prompt = self._answer = 0
        self.outcome = "left"

    def token(self, choice: int) -> None:
        now = time.monotonic()
        last = self._last.get(choice)
        self._meter.token(now - (self._begun if last is None else last), first=last is None)
        self._last[choice] = now
        self._answer += 1

    def answered(self, prompt: int) -> None:
        """All of it, to a prompt of so many tokens."""
        self.outcome, self._prompt = "answered", prompt

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(error, RuntimeError):
            self.outcome = "failed"
        self._meter.ended(self.outcome, time.monotonic() - self._begun, self._prompt, self._answer)
