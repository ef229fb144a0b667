"""Commands to a runner, over a Unix socket in its folder that only its user can open: the server. knock.py is a client.

Whether a command is genuine is gate.py's business.
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

from .knock import SOCKET, everything

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
            request = json.loads(everything(client, time.monotonic() + PATIENCE))
            client.settimeout(PATIENCE)
            answer = handle(request) if isinstance(request, dict) else {"error": "a request is a JSON object"}
            client.sendall(json.dumps(answer).encode())
        except (OSError, ValueError, RecursionError) as error:
            log.warning("a control connection failed: %s", error)
