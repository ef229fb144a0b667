"""What this host lacks, and which other hosts it reaches on their data ports. Standard library only.

Must not know: what is enough (the controller judges), the model.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from .measure import measure

PATIENCE = 2.0  # seconds for one call, and for a caller to say who it is
PAUSE = 0.1  # between two calls: the other host may not listen yet


def examine(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`: work, the folder that a deployment's folder is made in."""
    work = Path(os.path.expanduser(arguments["work"]))
    nearest = next(folder for folder in (work, *work.parents) if folder.exists())
    return {**measure({}), "disk_free": shutil.disk_usage(nearest).free, "unwritable": _unwritable(nearest)}


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there; "" when it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"edgesplit")
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return ""


class _Meeting:
    """All hosts listen on their data ports and call each other, at once; it ends when all have met, or in time."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.me, self.token = arguments["me"], arguments["token"]
        self.peers: dict[str, tuple[str, int]] = arguments["peers"]
        self.deadline = time.monotonic() + arguments["timeout"]
        self.missed = dict.fromkeys(self.peers, "not called")
        self.strangers: list[str] = []  # peers behind whose port something else answers, or nothing
        self._greeted: set[str] = set()
        self._done = threading.Condition()

    def hold(self, server: socket.socket | None) -> None:
        threads = [threading.Thread(target=self._call, args=(peer,), daemon=True) for peer in self.peers]
        if server is None:
            self._greeted.update(self.peers)  # nobody can be waited for
        else:
            threading.Thread(target=self._listen, args=(server,), daemon=True).start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._done:
            self._done.wait_for(lambda: self._greeted >= set(self.peers), max(0.0, self.deadline - time.monotonic()))

    def _listen(self, server: socket.socket) -> None:
        while True:
            caller, _ = server.accept()
            threading.Thread(target=self._greet, args=(caller,), daemon=True).start()

    def _greet(self, caller: socket.socket) -> None:
        with caller:
            try:
                caller.settimeout(PATIENCE)
                words = _line(caller).split()
                if len(words) == 2 and words[0] == self.token:
                    caller.sendall(f"{self.me}\n".encode())
                    with self._done:
                        self._greeted.add(words[1])
                        self._done.notify_all()
            except OSError:
                return

    def _call(self, peer: str) -> None:
        while self.missed[peer] and time.monotonic() < self.deadline:
            self.missed[peer] = self._try(peer)
            if self.missed[peer]:
                time.sleep(PAUSE)

    def _try(self, peer: str) -> str:
        address, port = self.peers[peer]
        try:
            with socket.create_connection((address, port), PATIENCE) as sock:
                sock.settimeout(PATIENCE)
                sock.sendall(f"{self.token} {self.me}\n".encode())
                said = _answer(sock)
        except OSError as error:
            return str(error.strerror or error)
        if said == peer:
            return ""
        if said in self.peers or said == self.me:
            return f"{said} answers there"
        if peer not in self.strangers:
            self.strangers.append(peer)
        return "something else answers there"


def _line(sock: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n") and len(data) < 1000:
        piece = sock.recv(1000)
        if not piece:
            break
        data += piece
    return data.decode("utf-8", "replace").strip()


def _answer(sock: socket.socket) -> str:
    try:
        return _line(sock)
    except OSError:  # it took the connection, and does not know our greeting
        return ""


def meet(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`: me, address, port, token, peers (name -> address, port), timeout.

    `missed`: peer -> why it was not reached; `strangers`: those whose port is open, but held by something else;
    `taken`: why this host's own port could not be listened on, "" if it could.
    """
    meeting = _Meeting(arguments)
    server, taken = None, ""
    for address in (arguments["address"], ""):  # behind a NAT its address is none of its own
        try:
            server, taken = socket.create_server((address, arguments["port"])), ""
            break
        except OSError as error:
            taken = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
    meeting.hold(server)
    missed = {peer: why for peer, why in meeting.missed.items() if why}
    return {"taken": taken, "missed": missed, "strangers": meeting.strangers}
