"""Files on their way to this host: what is cut off goes on where it stopped, and nothing counts before it is verified.

    <path>.part    the beginning of a file; its bytes are written at their places, so that a sender that was believed
                   dead and still writes does no harm

Must not know: what the files are, who sends them.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from io import RawIOBase
from pathlib import Path
from typing import Any

PIECE = 2**18  # bytes per read
SUFFIX = ".part"
DAMAGED, TROUBLE, CUT = 65, 74, 75  # exit statuses: EX_DATAERR, EX_IOERR, EX_TEMPFAIL of sysexits.h


class _Failed(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def receive(arguments: dict[str, Any], source: RawIOBase) -> int:
    """`arguments`: files, a list of [path, sha256, size, how much of it is here]; the rest of all is in `source`."""
    os.umask(0o077)
    try:
        for path, sha, size, offset in arguments["files"]:
            _one(Path(path), sha, size, offset, source)
    except _Failed as error:
        print(error, file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"{error.filename or path}: {error.strerror}", file=sys.stderr)
        return TROUBLE
    return 0


def _one(target: Path, sha: str, size: int, offset: int, source: RawIOBase) -> None:
    part = target.with_name(target.name + SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher, store = hashlib.sha256(), memoryview(bytearray(PIECE))
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        left = offset
        while left:
            count = file.readinto(store[: min(left, PIECE)])
            if not count:
                raise _Failed(CUT, f"{part} holds less than {offset} bytes")
            hasher.update(store[:count])
            left -= count
        left = size - offset
        while left:
            count = source.readinto(store[: min(left, PIECE)])
            if not count:
                raise _Failed(CUT, f"{target} was cut off {left} bytes before its end")
            hasher.update(store[:count])
            _write(file, store[:count])
            left -= count
        file.truncate(size)
    if hasher.hexdigest() != sha:
        part.unlink()
        raise _Failed(DAMAGED, f"{target}: content hash {hasher.hexdigest()} is not {sha}")
    part.replace(target)


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
