"""Bring files to one host: only what is missing, from the byte where the last attempt was cut, verified on arrival.

Must not know: what the files are for, other hosts, when this happens.
"""

from __future__ import annotations

import itertools
import json
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from edgesplit.broadcast.cargo import Thing
from edgesplit.broadcast.remote import lacks_packages, look_into, no_python
from edgesplit.errors import CommandFailed, HostError, LoginError, Unreachable
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host
from edgesplit.inventory import HostSpec
from edgesplit.runner.sealing import content_begun

PAUSES = (0.5, 1.0, 2.0)  # seconds before another attempt, while none brings anything over; then it is given up
AT_ONCE = 200  # files per command: their names are words of it, and Linux takes 128 KiB of those
TWO_LANES = 32 * 2**20  # bytes for which a second connection pays
SLOWEST = 125_000  # bytes per second that are borne: 1 Mbit/s


@dataclass
class Shipment:
    """What one host is to be sent, and how far it got. `sent` is told how many bytes have just left."""

    host: Host
    spec: HostSpec
    folder: str
    archive: str  # the runner's, which receives the others
    things: Sequence[Thing]
    sent: Callable[[int], None]
    key: Callable[[str], bytes]  # of what is sealed there, by its hash
    parts: dict[str, int] = field(default_factory=dict)  # path -> bytes that are there already, as they lie there

    def __post_init__(self) -> None:
        self._one_lane = False
        self._counting = threading.Lock()

    def carry_out(self) -> None:
        """Raises HostError."""
        pauses = iter(PAUSES)
        while True:
            try:
                self._send()
                return
            except (Unreachable, CommandFailed) as error:
                before = self._there()
                pause = next(pauses, None)
                if pause is None or not self._may_pass(error):
                    raise
                time.sleep(pause)
            if self._look() > before:
                pauses = iter(PAUSES)

    def _may_pass(self, error: HostError) -> bool:
        if not isinstance(error, CommandFailed):
            return True
        begun = any(map(self._begun, self.things))
        return error.status == commands.CUT or (error.status == commands.DAMAGED and begun)

    def _there(self) -> int:
        return sum(self._begun(thing) - thing.size for thing in self.things)

    def _begun(self, thing: Thing) -> int:
        """How much of its content is there."""
        part = self.parts.get(thing.path, 0)
        return min(content_begun(part) if thing.sealed else part, thing.size)

    def _look(self) -> int:
        """What is still to be sent, as the host sees it now. A host that cannot be asked has got nothing more."""
        try:
            _, files, self.parts = look_into(self.host, self.folder)
        except Unreachable:
            return self._there()
        self.things = [thing for thing in self.things if thing.path not in files]
        return self._there()

    def _send(self) -> None:
        for thing in self.things:
            if thing.path == self.archive:
                command = commands.receive(f"{self.folder}/{thing.path}", thing.sha256)
                self.host.run(command, self._counted(thing.chunks()), _patience(thing.size))
        rest = [thing for thing in self.things if thing.path != self.archive]
        left = sum(thing.size - self._begun(thing) for thing in rest)
        if left < TWO_LANES or self._one_lane:
            self._send_lane(self.host, rest, _patience(left))
        else:
            self._send_both(*self._lanes(rest), _patience(left))

    def _send_both(self, first: Sequence[Thing], second: Sequence[Thing], patience: float) -> None:
        """Where a second connection is not to be had, or breaks, all goes over the first."""
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(self._send_lane, self.host.second(), second, patience)
            self._send_lane(self.host, first, patience)
        try:
            beside.result()
        except (Unreachable, LoginError):
            self._one_lane = True
            self._look()
            self._send()

    def _lanes(self, things: Iterable[Thing]) -> tuple[list[Thing], list[Thing]]:
        """About as much in each."""
        lanes: tuple[list[Thing], list[Thing]] = ([], [])
        for thing in sorted(things, key=lambda thing: self._begun(thing) - thing.size):
            min(lanes, key=lambda lane: sum(one.size - self._begun(one) for one in lane)).append(thing)
        return lanes

    def _send_lane(self, host: Host, things: Sequence[Thing], patience: float) -> None:
        for at in range(0, len(things), AT_ONCE):
            self._send_all(host, things[at : at + AT_ONCE], patience)

    def _send_all(self, host: Host, things: Sequence[Thing], patience: float) -> None:
        begun = [self._begun(thing) for thing in things]
        files = [(thing.path, thing.sha256, thing.size, part) for thing, part in zip(things, begun, strict=True)]
        command = commands.receive_all(self.spec.interpreter, self.folder, self.archive, files)
        chunks = (chunk for thing, part in zip(things, begun, strict=True) for chunk in _from(part, thing.chunks()))
        try:
            host.run(command, itertools.chain([self._keys(things)], self._counted(chunks)), patience)
        except CommandFailed as error:
            if error.status in commands.NO_PROGRAM:
                raise no_python(self.host, self.spec) from error
            raise lacks_packages(error, self.spec) or error from error

    def _keys(self, things: Sequence[Thing]) -> bytes:
        """What the receiver reads first: length and JSON, path -> key in hexadecimal. Not among the words of the
        command, which every user of the host may see."""
        keys = json.dumps({thing.path: self.key(thing.sha256).hex() for thing in things if thing.sealed}).encode()
        return struct.pack("!I", len(keys)) + keys

    def _counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            with self._counting:
                self.sent(len(chunk))


def _from(offset: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes without the first `offset`."""
    for chunk in chunks:
        if offset < len(chunk):
            yield chunk[offset:] if offset else chunk
        offset = max(0, offset - len(chunk))


def _patience(size: int) -> float:
    """Seconds that so many bytes may take."""
    return 60 + size / SLOWEST
