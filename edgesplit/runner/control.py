"""Commands to a runner, over a Unix socket in its folder that only its user can open: the server and its client.

The client is what the controller runs over SSH. Whether a command is genuine is gate.py's business.
Must not know: what a command does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOCKET = "control.sock"
MAX_COMMAND = 16 * 2**20  # bytes; a manifest of a thousand blocks has about 100 KB
PATIENCE = 10.0  # seconds a request may take to come, however its bytes are spread
log = logging.getLogger("runner")


class Server(threading.Thread):
    """Answers one request per connection, each in a thread of its own."""

    def __init__(self, folder: Path, handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(name="control", daemon=True)
        self._handle = handle
        self._place = folder / SOCKET
        self._place.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            self._socket.bind(SOCKET)  # relative: a Unix socket's path has room for 107 characters only
        finally:
            os.umask(before)
        self._socket.listen(8)

    def run(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=_answer, args=(client, self._handle), name="command", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accept() that the thread sits in; close alone does not
        self._socket.close()
        self._place.unlink(missing_ok=True)


def _answer(client: socket.socket, handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with client:
        try:
            request = json.loads(_everything(client, time.monotonic() + PATIENCE))
            client.settimeout(PATIENCE)
            answer = handle(request) if isinstance(request, dict) else {"error": "a request is a JSON object"}
            client.sendall(json.dumps(answer).encode())
        except (OSError, ValueError, RecursionError) as error:
            log.warning("a control connection failed: %s", error)


def _everything(sock: socket.socket, deadline: float | None = None) -> bytes:
    """Raises OSError, also at the `deadline` (time.monotonic), ValueError."""
    data = bytearray()
    while True:
        if deadline is not None:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
        piece = sock.recv(2**16)
        if not piece:
            break
        data += piece
        if len(data) > MAX_COMMAND:
            raise ValueError(f"a command of more than {MAX_COMMAND} bytes")
    return bytes(data)


def ask(folder: Path, request: bytes, timeout: float) -> bytes:
    """Send one request to the runner of `folder`; its answer. Raises OSError when no runner listens."""
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        sock.connect(SOCKET)
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return _everything(sock)
