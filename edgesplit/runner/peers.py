"""Sealed files straight from one host to another, over the data plane, as they lie on the disk: whoever carries or sees
them cannot read them, and the giver needs no key either.

    give    waits for one caller who knows the token, and sends
    take    calls, and keeps what comes as if the controller had sent it: opened, hashed, and sealed again

    giver -> taker   nonce (16 bytes)
    taker -> giver   HMAC-SHA256 of it, with the token (32 bytes)
    giver -> taker   of each file, the rest of its bytes

Must not know: which files, why these hosts.
"""

from __future__ import annotations

import hmac
import io
import json
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any

from .arrivals import CUT, DAMAGED, keys_of, store
from .meeting import listening
from .sealing import MAGIC, SEGMENT, TAG, Opener, SealError, place

NONCE, MAC = 16, 32
GREETING = 2.0  # seconds a caller has to say that it knows the token
STILL = 30.0  # seconds without a byte after which a transfer is given up
TOLD = 0.5  # seconds between two lines about it


def give(arguments: dict[str, Any]) -> None:
    """`arguments`: address, ports, files (a list of [path, segments that are there already]), timeout. The token is
    the first line of standard input. Prints the port, and then what was given."""
    token = bytes.fromhex(sys.stdin.readline())
    deadline = time.monotonic() + arguments["timeout"]
    server, why = listening(arguments["address"], arguments["ports"])
    if server is None:
        raise OSError(f"no port to give on: {why}")
    with server:
        _tell(port=server.getsockname()[1])
        while (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                caller, _ = server.accept()
            except TimeoutError:
                break
            with caller:
                if _knows(caller, token):
                    _tell(given=sum(_send(caller, Path(path), segments) for path, segments in arguments["files"]))
                    return
    _tell(error="nobody called")


def _knows(caller: socket.socket, token: bytes) -> bool:
    nonce = secrets.token_bytes(NONCE)
    try:
        caller.settimeout(GREETING)
        caller.sendall(nonce)
        said = bytearray(MAC)
        return _fill(caller, memoryview(said)) and hmac.compare_digest(said, hmac.digest(token, nonce, "sha256"))
    except OSError:
        return False


def _send(caller: socket.socket, path: Path, segments: int) -> int:
    caller.settimeout(STILL)
    with path.open("rb") as file:
        return caller.sendfile(file, place(segments) if segments else 0)


def take(arguments: dict[str, Any]) -> int:
    """`arguments`: address, port, files (as `receive` has them). In standard input are the keys, as of `receive`, and
    then the token. An exit status."""
    with open(0, "rb", buffering=0, closefd=False) as given:
        keys = {path: bytes.fromhex(key) for path, key in keys_of(given).items()}
        token = bytes.fromhex(given.read().decode())
    try:
        with socket.create_connection((arguments["address"], arguments["port"]), GREETING) as sock:
            nonce = bytearray(NONCE)
            if not _fill(sock, memoryview(nonce)):
                raise OSError("the giver hung up")
            sock.sendall(hmac.digest(token, nonce, "sha256"))
            sock.settimeout(STILL)
            return store(arguments["files"], keys, _Opened(sock, arguments["files"], keys))
    except SealError as error:
        print(error, file=sys.stderr)
        return DAMAGED
    except OSError as error:
        print(f"the way from its peer: {error.strerror or error}", file=sys.stderr)
        return CUT


class _Opened(io.RawIOBase):
    """The content of sealed files that come one after the other, each from its first missing segment on."""

    def __init__(self, sock: socket.socket, files: list[Any], keys: dict[str, bytes]) -> None:
        self._sock, self._files, self._keys = sock, iter(files), keys
        self._room, self._here = memoryview(bytearray(SEGMENT)), memoryview(b"")
        self._segment, self._left, self._got, self._told = 0, 0, 0, 0.0
        self._opener: Opener | None = None

    def readinto(self, room: Any) -> int:
        """0 where the giver sends no more."""
        view = memoryview(room)
        if not self._here and not self._next():
            return 0
        count = min(len(view), len(self._here))
        view[:count], self._here = self._here[:count], self._here[count:]
        return count

    def _next(self) -> bool:
        """The next segment. Raises SealError."""
        while not self._left:
            path, _, size, offset = next(self._files)
            self._opener, self._segment, self._left = Opener(-1, self._keys[path]), offset // SEGMENT, size - offset
        if not self._segment and not _fill(self._sock, memoryview(bytearray(len(MAGIC)))):
            return False
        whole = min(SEGMENT, self._left)
        sealed = bytearray(whole + TAG)
        if not _fill(self._sock, memoryview(sealed)):
            return False
        assert self._opener is not None  # noqa: S101 - there is one for every file
        self._here = self._room[:whole]
        self._opener.unseal(self._segment, sealed, self._here, last=whole == self._left)
        self._segment, self._left, self._got = self._segment + 1, self._left - whole, self._got + whole
        if time.monotonic() - self._told > TOLD:
            self._told = time.monotonic()
            _tell(got=self._got)
        return True


def _fill(sock: socket.socket, room: memoryview) -> bool:
    while room:
        count = sock.recv_into(room)
        if not count:
            return False
        room = room[count:]
    return True


def _tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)
