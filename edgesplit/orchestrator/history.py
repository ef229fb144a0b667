"""The log of what a watch decided, from what, and what came of it: on the entry host, where any controller finds it.

Must not know: how a decision is made, how the log is shown.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from pydantic import ValidationError

from edgesplit.errors import HostError
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host
from edgesplit.orchestrator.event import Event

FILE = "history.jsonl"
KEPT = 1000  # lines; each is a few kilobytes at most
WAITING = 200  # lines that are kept here while the entry cannot be reached


class History:
    """Written by a thread of its own: nothing waits for it."""

    def __init__(self, host: Host, folder: str) -> None:
        self._host, self._file = host, f"{folder}/{FILE}"
        self._thread = ThreadPoolExecutor(1, "history")
        self._waiting: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)

    def note(self, event: Event) -> None:
        with self._lock:
            self._waiting = [*self._waiting, event.model_dump_json(exclude_none=True)][-WAITING:]
        self._thread.submit(self._write)

    def _write(self) -> None:
        with self._lock:
            lines, self._waiting = self._waiting, []
        if not lines:
            return
        text = "".join(f"{line}\n" for line in lines)
        try:
            self._host.run(commands.append(self._file, KEPT), text.encode(), timeout=10)
        except HostError:  # with the next one
            with self._lock:
                self._waiting = [*lines, *self._waiting][-WAITING:]


def read(host: Host, folder: str) -> list[Event]:
    """The oldest first; lines that make no sense are left out. Raises HostError."""
    found = []
    for line in host.run(commands.read_if_there(f"{folder}/{FILE}")).splitlines():
        try:
            found.append(Event.model_validate_json(line))
        except ValidationError:
            continue
    return found
