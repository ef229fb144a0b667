"""Hosts that can be walked away from: once it is said, whoever waits for one of them waits no longer.

A host that lost its power answers nothing, and a command for it waits until its connection is given up. What was sent
before may still be carried out over there.
Must not know: what a command does, why one walks away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

from edgesplit.errors import Abandoned
from edgesplit.hosts.commands import Command
from edgesplit.hosts.host import Host, Stream
from edgesplit.hosts.lines import Lines

LEAVING = 2.0  # seconds given to hosts that still answer, to clear up behind what was given up
T = TypeVar("T")


class Exit:
    """A way out, shared by all that is done on some hosts. Any thread may take it, once and for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self._why = ""

    @property
    def taken(self) -> bool:
        return bool(self._why)

    def take(self, why: str) -> None:
        with self._lock:
            self._why, left = self._why or why, self._waiting
            self._waiting = set()
        for future in left:
            _settle(future, Abandoned(self._why))

    def unless(self, act: Callable[[], T]) -> T:
        """Do it, or raise Abandoned as soon as the exit is taken; then it goes on in a thread that nobody waits for."""
        future: Future[T] = Future()
        with self._lock:
            if self._why:
                raise Abandoned(self._why)
            self._waiting.add(future)
        threading.Thread(target=_carry_out, args=(act, future), daemon=True).start()
        try:
            return future.result()
        finally:
            with self._lock:
                self._waiting.discard(future)

    def hosts(self, hosts: Mapping[str, Host]) -> dict[str, Host]:
        return {name: Leaving(host, self) for name, host in hosts.items()}


def _carry_out(act: Callable[[], T], future: Future[T]) -> None:
    try:
        result = act()
    except BaseException as error:  # noqa: BLE001 - it is whoever waits that it is for
        _settle(future, error)
        return
    with suppress(InvalidStateError):  # nobody waits any more
        future.set_result(result)


def _settle(future: Future[Any], error: BaseException) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)


def firm(host: Host) -> Host:
    """The host without a way out: for what must not be left half-way."""
    return host.host if isinstance(host, Leaving) else host


class Leaving:
    def __init__(self, host: Host, way_out: Exit) -> None:
        self.name, self.host, self._exit = host.name, host, way_out

    def run(self, command: Command, stdin: bytes | Iterable[bytes] = b"", timeout: float = 60.0) -> str:
        return self._exit.unless(lambda: self.host.run(command, stdin, timeout))

    def stream(self, command: Command, stdin: bytes = b"", silence: float = 60.0) -> Lines:
        return self._exit.unless(lambda: self.host.stream(command, stdin, silence))

    def dial(self, address: str, port: int, timeout: float = 10.0) -> Stream:
        return self._exit.unless(lambda: self.host.dial(address, port, timeout))

    def second(self) -> Host:
        return Leaving(self.host.second(), self._exit)

    def hang_up(self) -> None:
        self.host.hang_up()

    def close(self) -> None:
        self.host.close()
