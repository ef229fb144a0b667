"""What a command that goes on prints, line by line, as it comes; and such a command on this machine.

Must not know: SSH, nor what a line means.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress

from edgesplit.errors import Unreachable
from edgesplit.hosts.commands import Command

LONGEST = 2**20  # bytes of a line; whoever sends no end of one is not listened to
LOOK = 0.2  # seconds between two looks whether a local command is still wanted
GOODBYE = 3.0  # seconds a command has to end when its output has, or to notice that nobody reads
GRACE = 1.0  # seconds a command on this machine has to end when it is told to


def end(process: subprocess.Popen[bytes]) -> int:
    """Have a command that leads a group of its own end, if it has not; its status."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:  # not waited for, so its group still exists
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    return process.wait()


class Lines(ABC):
    """Iterated once, by one thread; `close` may be called from any, and ends it."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def __iter__(self) -> Iterator[str]:
        """Raises CommandFailed when the command ends badly, Unreachable when nothing is heard of it."""
        rest, ended = b"", False
        try:
            while data := self._read():
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
                if len(rest) > LONGEST:
                    return
            ended = not self._over.is_set()
        finally:
            self._end(judge=ended)

    def close(self) -> None:
        self._over.set()

    @abstractmethod
    def _read(self) -> bytes:
        """The next bytes; b"" when there are no more, or it is over."""

    @abstractmethod
    def _end(self, *, judge: bool) -> None:
        """Let go of everything; `judge`: raise if the command ended badly."""


class LocalLines(Lines):
    """A command on this machine. `failed(status, stderr)` makes the error of one that ended badly."""

    def __init__(
        self, host: str, command: Command, stdin: bytes, silence: float, failed: Callable[[int, bytes], Exception]
    ) -> None:
        super().__init__()
        self._silent = Unreachable(host, f"'{command.title}' has said nothing for {silence:g} s")
        self._silence, self._failed = silence, failed
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the command
        with tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", command.line],
                bufsize=0,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
            )

    def _read(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        deadline = time.monotonic() + self._silence
        while not self._over.is_set():
            if select.select([self._process.stdout], (), (), LOOK)[0]:
                return os.read(self._process.stdout.fileno(), 2**16)
            if time.monotonic() > deadline:
                raise self._silent
        return b""

    def _end(self, *, judge: bool) -> None:
        """A command that goes on is given the time to notice that nobody reads."""
        with self._stderr, self._process:
            assert self._process.stdout is not None  # noqa: S101 - asked for above
            self._process.stdout.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GOODBYE)
            status = end(self._process)
            self._stderr.seek(0)
            if judge and status:
                raise self._failed(status, self._stderr.read())
