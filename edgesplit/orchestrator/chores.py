"""What is done beside the loop, one thing at a time, in a thread of its own; what comes of it is applied by the loop.

Must not know: what the chores are.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from edgesplit.errors import EdgesplitError
from edgesplit.hosts.leaving import Exit

MOMENT = 0.5  # seconds for a chore to end by itself; a piece of what is sent takes that long
FAREWELL = 5.0  # seconds given to what is under way in the end
T = TypeVar("T")


class Interrupted(Exception):
    """The chore was told to make way."""


class Chores:
    """`stop`: set while a chore shall make way; one that takes long looks at it. `way_out`: of the one under way; taken
    when it does not look for a moment, so that hosts which no longer answer hold up nobody."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.way_out = Exit()
        self._thread = ThreadPoolExecutor(1, "chores")
        self._future: Future[Any] | None = None
        self._heeds = False
        self._then: Callable[[Any], None] = lambda _: None
        self.failure = ""  # of the last one, "" when it went well

    def __enter__(self) -> Chores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.make_way(FAREWELL)
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> bool:
        return self._future is not None

    def begin(self, act: Callable[[], T], then: Callable[[T], None], *, heeds: bool = False) -> None:
        """Nothing else is under way. `heeds`: it looks at `stop`, and is better not overtaken."""
        self._then, self._heeds = then, heeds
        self.stop.clear()
        self.way_out = Exit()
        self._future = self._thread.submit(act)

    def settle(self, seconds: float = 0.0) -> None:
        """Apply what has been done; wait for it so long."""
        if self._future is None:
            return
        try:
            result = self._future.result(seconds)
        except concurrent.futures.TimeoutError:  # not the builtin TimeoutError before Python 3.11
            return
        except (EdgesplitError, Interrupted) as error:
            self.failure = str(error)
        else:
            self.failure = ""
            self._then(result)
        self._future = None

    def make_way(self, seconds: float) -> None:
        """End what is under way, if it heeds that, and wait for it so long; one that takes longer still makes way."""
        self.stop.set()
        self.settle(min(MOMENT, seconds) if self._heeds else 0.0)
        if self._heeds and self.busy:
            self.way_out.take("something else is to be done")
            self.settle(seconds)
