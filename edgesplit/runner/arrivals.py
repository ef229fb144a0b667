"""Files on their way to this host: what is cut off goes on where it stopped, and nothing counts before it is verified.
Those with a key are never on its disk but sealed.

    <path>.part    the beginning of a file; its bytes are written at their places, so that a sender that was believed
                   dead and still writes does no harm

Must not know: what the files are, who sends them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

from .sealing import SEGMENT, Opener, Sealer, SealError, place, sealed_size

MAX_KEYS = 2**20  # bytes; of a thousand files 150 KB
SUFFIX = ".part"
DAMAGED, TROUBLE, CUT = 65, 74, 75  # exit statuses: EX_DATAERR, EX_IOERR, EX_TEMPFAIL of sysexits.h


class _Failed(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def receive(arguments: dict[str, Any], source: RawIOBase) -> int:
    """`arguments`: files, a list of [path, sha256, size, how much of its content is here]. In `source` are the keys of
    those that are to be sealed (u32 length, JSON: path -> hexadecimal), and then the rest of all."""
    try:
        keys = keys_of(source)
    except _Failed as error:
        print(error, file=sys.stderr)
        return error.status
    return store(arguments["files"], {path: bytes.fromhex(key) for path, key in keys.items()}, source)


def keys_of(source: RawIOBase) -> dict[str, str]:
    """Path -> key in hexadecimal, from the beginning of what comes."""
    keys: dict[str, str] = json.loads(_exactly(source, struct.unpack("!I", _exactly(source, 4))[0]))
    return keys


def store(files: list[Any], keys: Mapping[str, bytes], source: RawIOBase) -> int:
    """An exit status. `source`: what is missing of these files, one after the other."""
    os.umask(0o077)
    path = ""
    try:
        for path, sha, size, offset in files:
            _one(Path(path), sha, size, offset, source, keys.get(path))
    except _Failed as error:
        print(error, file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"{error.filename or path}: {error.strerror or error}", file=sys.stderr)
        return TROUBLE
    return 0


def _one(target: Path, sha: str, size: int, offset: int, source: RawIOBase, key: bytes | None) -> None:
    part = target.with_name(target.name + SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher = hashlib.sha256()
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        store = _Plain(file) if key is None else _Sealed(file, key)
        try:
            for piece in store.begun(offset, size):
                hasher.update(piece)
        except (_Short, SealError):
            part.unlink()
            raise _Failed(CUT, f"{part} does not begin with {offset} bytes of it") from None
        left = size - offset
        while left:
            room = store.room(left)
            count = source.readinto(room)
            if not count:
                raise _Failed(CUT, f"{target} was cut off {left} bytes before its end")
            hasher.update(room[:count])
            left -= count
            store.put(count, last=not left)
        file.truncate(size if key is None else sealed_size(size))
    if hasher.hexdigest() != sha:
        part.unlink()
        raise _Failed(DAMAGED, f"{target}: content hash {hasher.hexdigest()} is not {sha}")
    part.replace(target)


class _Short(Exception):
    """Less is there than was said."""


class _Plain:
    """Bytes as they come."""

    def __init__(self, file: Any) -> None:
        self._file, self._room = file, memoryview(bytearray(SEGMENT))

    def begun(self, offset: int, _: int) -> Iterator[memoryview]:
        """The content that is there, of which the next bytes are the continuation."""
        while offset:
            count = self._file.readinto(self.room(offset))
            if not count:
                raise _Short
            offset -= count
            yield self._room[:count]

    def room(self, left: int) -> memoryview:
        """Where the next bytes may be put, of so many that are still to come."""
        return self._room[: min(left, SEGMENT)]

    def put(self, count: int, *, last: bool) -> None:  # noqa: ARG002 - as of what is sealed
        """So many were put there."""
        _write(self._file, self._room[:count])


class _Sealed:
    """Whole segments, sealed."""

    def __init__(self, file: Any, key: bytes) -> None:
        self._file, self._key = file, key
        self._sealer = Sealer(key)
        self._room, self._filled = memoryview(bytearray(SEGMENT)), 0

    def begun(self, offset: int, size: int) -> Iterator[memoryview]:
        opener = Opener(self._file.fileno(), self._key)
        for segment in range(offset // SEGMENT):
            opener.open(segment, self._room, last=(segment + 1) * SEGMENT == size)
            yield self._room
        self._sealer = Sealer(self._key, offset // SEGMENT)
        self._file.seek(place(offset // SEGMENT) if offset else 0)

    def room(self, left: int) -> memoryview:
        return self._room[self._filled : min(self._filled + left, SEGMENT)]

    def put(self, count: int, *, last: bool) -> None:
        self._filled += count
        if self._filled == SEGMENT or last:
            _write(self._file, self._sealer.seal(self._room[: self._filled], last=last))
            self._filled = 0


def _exactly(source: RawIOBase, size: int) -> bytes:
    data = bytearray(min(size, MAX_KEYS))
    if size > MAX_KEYS or not _fill(source, memoryview(data)):
        raise _Failed(CUT, "no keys came")
    return bytes(data)


def _fill(source: RawIOBase, room: memoryview) -> bool:
    while room:
        count = source.readinto(room)
        if not count:
            return False
        room = room[count:]
    return True


def _write(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def tidy(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove what lies in `folders` and is of no more use: not in `keep`, and not `used` for `age` seconds.

    `used` is what has been in use until now, and is no more: it stays for another `age`.
    """
    for path in arguments["used"]:
        if os.path.exists(path):
            os.utime(path)
    limit, freed = time.time() - arguments["age"], 0
    for folder in arguments["folders"]:
        for file in Path(folder).glob("*"):
            found = file.lstat()
            if str(file) not in arguments["keep"] and found.st_mtime <= limit:
                file.unlink()
                freed += found.st_size
    return {"freed": freed}
