"""Let one host give another sealed files over the data plane. What does not arrive is the sender's to send.

Must not know: why this host gives, what the files are for.
"""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from edgesplit.broadcast.cargo import Thing
from edgesplit.broadcast.remote import look_into
from edgesplit.broadcast.ship import AT_ONCE
from edgesplit.errors import HostError
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host
from edgesplit.inventory import HostSpec
from edgesplit.runner.sealing import SEGMENT, content_begun
from edgesplit.units import format_size

MEET = 30.0  # seconds the giver waits to be called: the other one starts Python first
STILL = 60.0  # seconds without a word after which it is given up; both ends do so sooner


@dataclass(frozen=True)
class End:
    """A host, and where the deployment's files are on it."""

    host: Host
    spec: HostSpec
    folder: str
    archive: str


def hand_over(
    things: Sequence[Thing], giver: End, taker: End, key: Callable[[str], bytes], note: Callable[[str], None]
) -> None:
    """Raises HostError; what has arrived by then stays, whole or in part."""
    _, _, parts = look_into(taker.host, taker.folder)
    for at in range(0, len(things), AT_ONCE):
        some = things[at : at + AT_ONCE]
        begun = [min(content_begun(parts.get(thing.path, 0)), thing.size) for thing in some]
        token = secrets.token_bytes(32).hex()
        lines = _giving(giver, [(thing.path, part // SEGMENT) for thing, part in zip(some, begun, strict=True)], token)
        try:
            port = _said(giver, next(lines, "{}"), "port")
            files = [(thing.path, thing.sha256, thing.size, part) for thing, part in zip(some, begun, strict=True)]
            keys = {thing.path: key(thing.sha256).hex() for thing in some}
            _take(giver, taker, port, files, _words(keys, token), note)
        finally:
            lines.close()


def _giving(giver: End, files: list[tuple[str, int]], token: str) -> Generator[str, None, None]:
    address, port = giver.spec.data_address, giver.spec.data.port
    words = {"address": address, "ports": [port, port % 65535 + 1], "files": files, "timeout": MEET}
    command = commands.give(giver.spec.interpreter, giver.folder, giver.archive, words)
    yield from giver.host.stream(command, f"{token}\n".encode(), STILL + MEET)


def _take(
    giver: End, taker: End, port: int, files: Sequence[object], given: bytes, note: Callable[[str], None]
) -> None:
    words = {"address": giver.spec.data_address, "port": port, "files": files}
    command = commands.take(taker.spec.interpreter, taker.folder, taker.archive, words)
    for line in taker.host.stream(command, given, STILL):
        note(f"{format_size(_said(taker, line, 'got'))} from {giver.host.name}")


def _words(keys: dict[str, str], token: str) -> bytes:
    data = json.dumps(keys).encode()
    return struct.pack("!I", len(data)) + data + token.encode()


def _said(end: End, line: str, what: str) -> int:
    try:
        return int(json.loads(line)[what])
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(end.host.name, f"its answer makes no sense: {line[:200]!r}") from error
