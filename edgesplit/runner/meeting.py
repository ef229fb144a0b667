"""Hosts that listen on their data ports and call each other, all at once: who is reached from here, and who came.

A caller says a token, its name and what for, and hears the name of whom it reached. Standard library only.
Must not know: what is done with a connection.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterable, Mapping

PATIENCE = 2.0  # seconds for one call, and for a caller to say who it is
PAUSE = 0.1  # between two calls: the other host may not listen yet
HELLO = "hello"  # what for, where it is only to meet
Place = tuple[str, int]


def listening(address: str, ports: Iterable[int]) -> tuple[socket.socket | None, str]:
    """A server on the first port that is free; else why there is none. Behind a NAT its address is none of its own."""
    why = ""
    for port in ports:
        for place in (address, ""):
            try:
                return socket.create_server((place, port)), ""
            except OSError as error:
                why = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
    return None, why


class Meeting:
    """`peers`: the ports at which each may be found. `server`: where this host listens; None: nobody can come."""

    def __init__(
        self, me: str, token: str, peers: Mapping[str, tuple[str, Iterable[int]]], server: socket.socket | None
    ) -> None:
        self.missed = dict.fromkeys(peers, "not called")  # peer -> why it is not reached; "" if it is
        self.strangers: list[str] = []  # peers behind whose port something else answers, or nothing
        self.greeted: set[str] = set()  # peers that reached this host
        self._me, self._token, self._server = me, token, server
        self._peers = {peer: [(address, port) for port in ports] for peer, (address, ports) in peers.items()}
        self._found: dict[str, Place] = {}
        self._came: dict[tuple[str, str], list[socket.socket]] = {}  # by peer and purpose
        self._changed = threading.Condition()

    def hold(self, timeout: float) -> None:
        """Ends when all have met, or in time; callers are heard further on."""
        deadline = time.monotonic() + timeout
        threads = [threading.Thread(target=self._reach, args=(peer, deadline), daemon=True) for peer in self._peers]
        if self._server is not None:
            threading.Thread(target=self._listen, args=(self._server,), daemon=True).start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._changed:
            awaited = set(self._peers) if self._server is not None else set()
            self._changed.wait_for(lambda: self.greeted >= awaited, max(0.0, deadline - time.monotonic()))

    def call(self, peer: str, purpose: str) -> socket.socket:
        """A connection to one that was reached. Raises OSError."""
        sock, said = self._greet(self._found[peer], purpose)
        if said == peer:
            return sock
        sock.close()
        raise OSError(f"{said or 'something else'} answers there")

    def expect(self, peer: str, purpose: str, seconds: float) -> socket.socket:
        """The next connection of a peer for this purpose. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._came.get((peer, purpose)), seconds):
                raise TimeoutError(f"{peer} did not call within {seconds:g} s")
            return self._came[peer, purpose].pop(0)

    def close(self) -> None:
        """Nobody is heard any more; connections that were not asked for end."""
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)  # wakes who waits for callers
            self._server.close()
        with self._changed:
            for waiting in self._came.values():
                for sock in waiting:
                    sock.close()

    # --- those who come ---

    def _listen(self, server: socket.socket) -> None:
        while True:
            try:
                caller, _ = server.accept()
            except OSError:  # it was closed
                return
            threading.Thread(target=self._welcome, args=(caller,), daemon=True).start()

    def _welcome(self, caller: socket.socket) -> None:
        """A stranger ends nothing."""
        try:
            caller.settimeout(PATIENCE)
            words = _line(caller).split()
            if len(words) == 3 and words[0] == self._token:
                caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                caller.sendall(f"{self._me}\n".encode())
                with self._changed:
                    self._changed.notify_all()
                    if words[2] != HELLO:
                        self._came.setdefault((words[1], words[2]), []).append(caller)
                        return
                    self.greeted.add(words[1])
        except OSError:
            pass
        caller.close()

    # --- those who are called ---

    def _reach(self, peer: str, deadline: float) -> None:
        while self.missed[peer] and time.monotonic() < deadline:
            for place in self._peers[peer]:
                self.missed[peer] = self._try(peer, place)
                if not self.missed[peer]:
                    self._found[peer] = place
                    return
            time.sleep(PAUSE)

    def _try(self, peer: str, place: Place) -> str:
        try:
            sock, said = self._greet(place, HELLO)
        except OSError as error:
            return str(error.strerror or error)
        sock.close()
        if said == peer:
            return ""
        if said in self._peers or said == self._me:
            return f"{said} answers there"
        if peer not in self.strangers:
            self.strangers.append(peer)
        return "something else answers there"

    def _greet(self, place: Place, purpose: str) -> tuple[socket.socket, str]:
        """The connection, and the name of who answers, "" where what it says is none. Raises OSError."""
        sock = socket.create_connection(place, PATIENCE)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(f"{self._token} {self._me} {purpose}\n".encode())
            return sock, _answer(sock)
        except BaseException:
            sock.close()
            raise


def _line(sock: socket.socket) -> str:
    """Byte by byte: what follows the line belongs to whoever gets the connection."""
    data = b""
    while not data.endswith(b"\n") and len(data) < 1000:
        piece = sock.recv(1)
        if not piece:
            break
        data += piece
    return data.decode("utf-8", "replace").strip()


def _answer(sock: socket.socket) -> str:
    try:
        return _line(sock)
    except OSError:  # it took the connection, and does not know our greeting
        return ""
