"""The one thread that computes and owns a runner's state; everything else hands it work and waits.

Must not know: what a piece of work is made of, nor what a call does.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .scheduler import Scheduler, Work

STALL = 30.0  # seconds a forward may take before anybody doubts it ...
TIMES = 10.0  # ... or so many times as long as the longest so far
T = TypeVar("T")
log = logging.getLogger("runner")


class Worker(threading.Thread):
    """Runs calls first, then pieces of work in the scheduler's order. `execute(work)` must not raise."""

    def __init__(self, execute: Callable[[Work[Any]], None]) -> None:
        super().__init__(name="worker", daemon=True)
        self._execute = execute
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._scheduler: Scheduler[Any] = Scheduler()
        self._lock, self._bell = threading.Lock(), queue.SimpleQueue[None]()  # wakes sooner than a Condition would
        self._stopping = False
        self.done = 0  # pieces of work finished, for the heartbeat
        self._begun: float | None = None  # the piece under way, time.monotonic
        self._longest = 0.0  # seconds

    @property
    def queued(self) -> int:
        return len(self._scheduler)

    @property
    def stalled(self) -> float | None:
        """Seconds that the piece under way has taken, where that is beyond belief."""
        begun = self._begun
        taken = 0.0 if begun is None else time.monotonic() - begun
        return taken if taken > max(STALL, TIMES * self._longest) else None

    def add(self, *works: Work[Any]) -> None:
        with self._lock:
            for work in works:
                self._scheduler.add(work)
        self._bell.put(None)

    def forget(self, epoch: int, place: tuple[int, int] | None = None) -> None:
        with self._lock:
            self._scheduler.forget(epoch, place)

    def call(self, act: Callable[[], T]) -> Future[T]:
        """Run `act` in the worker's thread, before any further work; cancelled when the worker has stopped."""
        future: Future[T] = Future()
        with self._lock:
            if self._stopping:
                future.cancel()
                return future
            self._calls.append((act, future))
        self._bell.put(None)
        return future

    def stop(self) -> None:
        """After the piece of work under way; calls that still wait are cancelled."""
        with self._lock:
            self._stopping = True
            for _, future in self._calls:
                future.cancel()
            self._calls.clear()
        self._bell.put(None)

    def run(self) -> None:
        while not self._stopping:
            with self._lock:
                call = self._calls.popleft() if self._calls else None
                work = None if call else self._scheduler.next()
            if call is not None:
                _answer(*call)
            elif work is not None:
                self._begun = begun = time.monotonic()
                self._execute(work)
                self._longest = max(self._longest, time.monotonic() - begun)
                self._begun = None
                self.done += 1
            else:
                self._bell.get()


def _answer(act: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return  # whoever asked has given up
    try:
        future.set_result(act())
    except Exception as error:  # noqa: BLE001 - the caller gets it, whatever it is
        future.set_exception(error)
        log.debug("a call failed: %r", error)
