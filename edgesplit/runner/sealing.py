"""Sealed files: weights as they lie on a host's disk, of use only to who has the key.

    file = magic "ESSEAL1\\n" | segment | segment ...

A segment is a MiB of the content, the last one what is left, sealed with ChaCha20-Poly1305 (RFC 8439): 16 bytes longer,
its nonce its number, and whether it is the last one bound to it, so that nothing can be exchanged or cut off. A key
seals one content only, so no nonce is ever used twice for different bytes, and a file that was cut off on its way can
be gone on with. ChaCha20, because small boards have no instructions for AES.

Must not know: what is in the file, where keys come from.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

MAGIC = b"ESSEAL1\n"
SEGMENT = 2**20  # bytes of the content
TAG = 16


class SealError(ValueError):
    """The file is not what was sealed with this key."""


def sealed_size(size: int) -> int:
    """Of a file whose content has `size` bytes, at least one."""
    return len(MAGIC) + size + TAG * -(-size // SEGMENT)


def content_begun(size: int) -> int:
    """How much of its content the beginning of a sealed file holds, in whole segments."""
    return max(0, size - len(MAGIC)) // (SEGMENT + TAG) * SEGMENT


def place(segment: int) -> int:
    """Where a segment begins in the file."""
    return len(MAGIC) + segment * (SEGMENT + TAG)


class Sealer:
    """Seals one segment after the other."""

    def __init__(self, key: bytes, segment: int = 0) -> None:
        self._cipher, self._segment = _cipher(key), segment
        self._room = memoryview(bytearray(len(MAGIC) + SEGMENT + TAG))
        self._room[: len(MAGIC)] = MAGIC

    def seal(self, content: bytes | memoryview, *, last: bool) -> memoryview:
        """The next segment, behind the magic of the file if it is the first; good until the next call."""
        begin, end = len(MAGIC), len(MAGIC) + len(content) + TAG
        self._cipher.encrypt_into(_nonce(self._segment), content, _bound(last), self._room[begin:end])
        sealed = self._room[begin if self._segment else 0 : end]
        self._segment += 1
        return sealed


class Opener:
    """Opens segments of a sealed file, given by its descriptor."""

    def __init__(self, file: int, key: bytes) -> None:
        self._file, self._cipher = file, _cipher(key)

    def open(self, segment: int, room: memoryview, *, last: bool) -> None:
        """A whole segment into `room`, which is as long as its content. Raises SealError."""
        sealed = os.pread(self._file, len(room) + TAG, place(segment))
        if len(sealed) != len(room) + TAG:
            raise SealError("a sealed file ends too early")
        self.unseal(segment, sealed, room, last=last)

    def unseal(self, segment: int, sealed: bytes | bytearray, room: memoryview, *, last: bool) -> None:
        """The same of one that was read already."""
        from cryptography.exceptions import InvalidTag

        try:
            self._cipher.decrypt_into(_nonce(segment), sealed, _bound(last), room)
        except InvalidTag:
            raise SealError("a sealed file is damaged, or sealed with another key") from None


class SealedFile:
    """The content of a sealed file, read wherever one likes. `size`: of the content."""

    def __init__(self, path: Path, key: bytes) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, file)
        inner = os.fstat(file).st_size - len(MAGIC)
        self._segments = -(-inner // (SEGMENT + TAG))
        self.size = inner - TAG * self._segments
        if self.size <= 0 or os.pread(file, len(MAGIC), 0) != MAGIC:
            raise SealError(f"{path.name} is no sealed file")
        self._opener = Opener(file, key)

    def read(self, start: int, size: int) -> bytearray:
        """Raises SealError, also where the file ends before."""
        found = bytearray(size)
        self.read_into(start, memoryview(found))
        return found

    def read_into(self, start: int, view: memoryview) -> None:
        """Fill `view` from `start` on. Raises SealError, also where the file ends before."""
        if not 0 <= start <= start + len(view) <= self.size:
            raise SealError(f"a sealed file holds {self.size} bytes, not {len(view)} from {start} on")
        at = 0
        while at < len(view):
            segment, begin = divmod(start + at, SEGMENT)
            whole = min(SEGMENT, self.size - segment * SEGMENT)
            last, count = segment == self._segments - 1, min(whole - begin, len(view) - at)
            if count == whole:
                self._opener.open(segment, view[at : at + count], last=last)
            else:
                content = memoryview(bytearray(whole))
                self._opener.open(segment, content, last=last)
                view[at : at + count] = content[begin : begin + count]
            at += count


def _cipher(key: bytes) -> Any:
    """Imported here: a host that is only just sent its packages receives files, too."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key)


def _nonce(segment: int) -> bytes:
    return segment.to_bytes(12, "little")


def _bound(last: bool) -> bytes:
    return b"last" if last else b"more"
