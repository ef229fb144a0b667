"""Hosts that are one machine in truth (a lab's, containers over one disk) take turns where time is measured.

Each host's forwards are timed alone while a ring works for one sequence, but all hosts are measured at once. So whoever
gets ready to measure on a machine, which is much work, does so beside others; then each forward waits until nobody else
gets ready or is timed. The lock is on a file that such hosts share and that is there anyway: torch's own.

Must not know: what is measured.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager


class Turns:
    """Where the file cannot be locked, nobody waits."""

    def __init__(self, path: str | None = None) -> None:
        spec = importlib.util.find_spec("torch")
        self.path = path or (spec and spec.origin) or ""
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(self.path, os.O_RDONLY)

    def prepare(self) -> AbstractContextManager[None]:
        """Beside others who do, and between two turns."""
        return self._held(fcntl.LOCK_SH)

    def turn(self) -> AbstractContextManager[None]:
        """Alone."""
        return self._held(fcntl.LOCK_EX)

    @contextlib.contextmanager
    def _held(self, how: int) -> Iterator[None]:
        """A process that dies lets go."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                fcntl.flock(self._file, how)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if self._file is not None:
                    fcntl.flock(self._file, fcntl.LOCK_UN)
