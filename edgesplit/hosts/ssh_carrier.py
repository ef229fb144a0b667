"""What an SSH connection runs over: TCP from here, a channel through a jump host, or a command (ProxyCommand).

All have the manners of a socket, its exceptions included.
Must not know: host keys, logins, what the connection is for.
"""

from __future__ import annotations

import io
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

import paramiko

from edgesplit.hosts.lines import end
from edgesplit.hosts.ssh_target import Endpoint

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_DEAD_PEER = {"TCP_USER_TIMEOUT": 10_000, "TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5}  # ms, s, s; what the system has of it


def tcp(end: Endpoint, limit: float) -> socket.socket:
    """A socket that sends at once and notices a dead peer, be it while sending or while waiting. Raises OSError."""
    connection = _connect(end, limit)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _DEAD_PEER.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def _connect(end: Endpoint, limit: float) -> socket.socket:
    """To the first of the name's addresses that answers; each gets its share of the time that is left."""
    deadline = time.monotonic() + limit
    places = socket.getaddrinfo(end.host, end.port, end.family, socket.SOCK_STREAM)
    failure: OSError = TimeoutError()
    for left, (family, kind, protocol, _, address) in zip(range(len(places), 0, -1), places, strict=True):
        connection = socket.socket(family, kind, protocol)
        try:
            if end.bind:
                connection.bind((end.bind, 0))
            connection.settimeout(max(0.01, (deadline - time.monotonic()) / left))
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


class Tunnel:
    """A channel: a file made of it keeps it open, and its errors are OSErrors."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._closed = False
        self._files = 0

    def send(self, data: bytes, /) -> int:
        with _as_socket():
            return self._channel.send(data)

    def sendall(self, data: bytes, /) -> None:
        with _as_socket():
            self._channel.sendall(data)

    def recv(self, size: int, /) -> bytes:
        with _as_socket():
            return self._channel.recv(size)

    def makefile(self, mode: Literal["rb"], /) -> io.BufferedReader:  # noqa: ARG002 - a socket's signature
        self._files += 1
        return io.BufferedReader(_TunnelFile(self))

    def settimeout(self, seconds: float | None, /) -> None:
        self._channel.settimeout(seconds)

    def close(self) -> None:
        self._closed = True
        self.release(0)

    def release(self, files: int = 1) -> None:
        self._files -= files
        if self._closed and self._files == 0:
            with suppress(OSError, EOFError, paramiko.SSHException):
                self._channel.close()


class _TunnelFile(io.RawIOBase):
    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._tunnel.recv(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._tunnel.release()


@contextmanager
def _as_socket() -> Iterator[None]:
    try:
        yield
    except (paramiko.SSHException, EOFError) as error:
        raise ConnectionResetError(str(error)) from error


class Piped:
    """A socket whose far end is a command's standard input and output; the command ends with it."""

    def __init__(self, line: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._closing, self._words = threading.Lock(), b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the socket
        with theirs:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {line}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                start_new_session=True,
            )
        self._closed = False  # paramiko looks at it, as at a socket's
        self.send, self.recv, self.settimeout = self._socket.send, self._socket.recv, self._socket.settimeout

    def said(self) -> str:
        """The last thing the command had to say; "" if it did not complain. It has ended then."""
        self.close()
        lines = self._words.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """paramiko calls it too, from its own thread."""
        with self._closing:
            self._closed = True
            self._socket.close()
            end(self._process)
            if not self._errors.closed:
                self._errors.seek(0)
                self._words = self._errors.read()
                self._errors.close()


Carrier = socket.socket | Tunnel | Piped
