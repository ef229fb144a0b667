"""Complaints about callers, in the log, but not as often as callers please.

Must not know: what is complained of.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

EVERY = 1.0  # seconds from one line to the next; what comes between is counted
log = logging.getLogger("runner")


class Seldom:
    """Called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._next, self._left_out = -1.0, 0

    def __call__(self, text: str) -> None:
        with self._lock:
            now = self._clock()
            if now < self._next:
                self._left_out += 1
                return
            more, self._left_out, self._next = self._left_out, 0, now + EVERY
        log.warning("%s%s", text, f" (and {more} more before)" if more else "")
