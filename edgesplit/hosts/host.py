"""One narrow door to the world: the Host protocol, and LocalHost, this machine as a host.

Must not know: what a command means, nor SSH.
"""

from __future__ import annotations

import getpass
import io
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable
from typing import IO, Literal, Protocol, cast

from edgesplit.errors import CommandFailed, Unreachable
from edgesplit.hosts.commands import NO_PROGRAM, Command
from edgesplit.hosts.lines import Lines, LocalLines, end

READ_SIZE = 1 << 16  # what a Linux pipe holds
CLOSED = "nothing is asked of it any more"


class Stream(Protocol):
    """What http.client needs of a socket. Like a socket, it raises OSError, and stays open for the files made of it."""

    def sendall(self, data: bytes, /) -> None: ...

    def recv(self, size: int, /) -> bytes: ...

    def makefile(self, mode: Literal["rb"], /) -> io.BufferedReader: ...

    def settimeout(self, seconds: float | None, /) -> None: ...

    def close(self) -> None: ...


class Host(Protocol):
    """Somewhere commands run. Several threads may use one host at once."""

    @property
    def name(self) -> str: ...

    def run(self, command: Command, stdin: bytes | Iterable[bytes] = b"", timeout: float = 60.0) -> str:
        """What the command printed. Raises CommandFailed on a non-zero status, Unreachable on none within `timeout`.

        An exception of the `stdin` iterable ends the command and passes through as it is.
        """

    def stream(self, command: Command, stdin: bytes = b"", silence: float = 60.0) -> Lines:
        """What a command prints, as it comes, until it ends or is closed. Raises Unreachable, then and while it runs
        when it says nothing for `silence` seconds."""

    def dial(self, address: str, port: int, timeout: float = 10.0) -> Stream:
        """A TCP connection made from this host, with `timeout` set on it. Raises Unreachable."""

    def second(self) -> Host:
        """The same host, for what is to run beside and be as fast; over a connection of its own, if there are any."""

    def hang_up(self) -> None:
        """End what is under way here, from another thread, as a lost connection would; what is next begins anew."""

    def close(self) -> None:
        """Hang up, for good: whoever still has the host is told that it is Unreachable."""


def who() -> str:
    """The login on this machine; its number where it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the second from Python 3.13 on
        return str(os.getuid())


def no_answer(command: Command, timeout: float) -> str:
    return f"no answer to '{command.title}' within {timeout:g} s"


# What a command's last words mean, whatever the command: said in C's and Python's own words.
_MEANINGS = {
    "No space left on device": "the disk is full: free some space, or set `work` to a folder on a larger disk",
    "Disk quota exceeded": "the quota is used up: free some space, or set `work` to a folder elsewhere",
    "Permission denied": "give the login of that host the right to do so, or set `work` to a folder of its own",
    "Read-only file system": "nothing can be written there: set `work` to a folder elsewhere",
}


def failed(host: str, command: Command, status: int, stderr: bytes) -> CommandFailed:
    """The error of a command that ended badly, with what to do where its words tell."""
    said = stderr.decode("utf-8", "replace")
    hint = next((hint for words, hint in _MEANINGS.items() if words in said), "")
    if status in NO_PROGRAM and not hint:
        hint = "a program is missing there, or cannot be run; edgesplit check tells which"
    return CommandFailed(host, command.title, status, said, hint)


class LocalHost:
    """This machine: commands run in the folder and with the environment of the controller."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def run(self, command: Command, stdin: bytes | Iterable[bytes] = b"", timeout: float = 60.0) -> str:
        deadline = time.monotonic() + timeout
        pipe = subprocess.PIPE
        shell = ["/bin/sh", "-c", command.line]
        with subprocess.Popen(shell, 0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
            try:
                self._begin(process)
                stdout, stderr = _converse(process, stdin, deadline)
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise Unreachable(self.name, no_answer(command, timeout)) from None
            finally:
                with self._lock:
                    self._running.discard(process)
                end(process)
        if process.returncode != 0:
            status = process.returncode if process.returncode > 0 else 128 - process.returncode  # as sh counts signals
            raise failed(self.name, command, status, bytes(stderr))
        return stdout.decode("utf-8", "replace")

    def _begin(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._closed:
                raise Unreachable(self.name, CLOSED)
            self._running.add(process)

    def stream(self, command: Command, stdin: bytes = b"", silence: float = 60.0) -> Lines:
        return LocalLines(self.name, command, stdin, silence, lambda *end: failed(self.name, command, *end))

    def dial(self, address: str, port: int, timeout: float = 10.0) -> Stream:
        try:
            connection = socket.create_connection((address, port), timeout)
        except OSError as error:
            raise Unreachable(
                self.name, f"cannot connect to {address} port {port}: {error.strerror or error}"
            ) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def second(self) -> LocalHost:
        return self

    def hang_up(self) -> None:
        with self._lock:
            for process in self._running:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)

    def close(self) -> None:
        self._closed = True
        self.hang_up()


class _Feed:
    """Standard input, written as fast as the process reads it and no faster."""

    def __init__(self, pipe: IO[bytes], stdin: bytes | Iterable[bytes]) -> None:
        self.pipe = pipe
        self._chunks = iter([stdin] if isinstance(stdin, bytes) else stdin)
        self._rest = memoryview(b"")
        os.set_blocking(pipe.fileno(), False)

    def write(self) -> bool:
        """Write what the pipe takes; false when there is no more to write, or nobody who reads."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._rest = memoryview(chunk)
        try:
            self._rest = self._rest[os.write(self.pipe.fileno(), self._rest) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        return True


def _read(pipe: IO[bytes], into: bytearray) -> bool:
    data = os.read(pipe.fileno(), READ_SIZE)
    into += data
    return bool(data)


def _converse(
    process: subprocess.Popen[bytes], stdin: bytes | Iterable[bytes], deadline: float
) -> tuple[bytearray, bytearray]:
    """Serve the three pipes from one loop, so that neither side waits for the other for ever."""
    feed = _Feed(cast("IO[bytes]", process.stdin), stdin)
    said = {cast("IO[bytes]", pipe): bytearray() for pipe in (process.stdout, process.stderr)}
    with selectors.DefaultSelector() as waiting:
        waiting.register(feed.pipe, selectors.EVENT_WRITE)
        for pipe in said:
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(process.args, left)
            ready = [cast("IO[bytes]", key.fileobj) for key, _ in waiting.select(left)]
            ended = [pipe for pipe in ready if not (feed.write() if pipe is feed.pipe else _read(pipe, said[pipe]))]
            for pipe in ended:
                waiting.unregister(pipe)
                pipe.close()
    stdout, stderr = said.values()
    return stdout, stderr
