"""What the lab's switch does with a frame: which port it goes to, when, and whether it arrives. No I/O in it.

A lane is one direction between two ports: a queue that is emptied at the lane's rate, then a way of `delay` seconds.
Must not know: TAP devices, sockets, clocks; the time and the dice are given to it.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

HEADER = struct.Struct("=BBHHHH")  # struct virtio_net_hdr: flags, gso type, header length, gso size, checksum place
MAC = 6  # bytes of an Ethernet address; a frame begins with the one it goes to
FRAMING = 24  # bytes an Ethernet frame takes beyond what a TAP hands over: preamble 8, checksum 4, gap 12
QUEUE_SECONDS = 0.1  # what a lane holds back at most, as a small router does ...
QUEUE_BYTES = 2**17  # ... but never less than two of the largest frames


@dataclass(frozen=True)
class Link:
    """One direction: seconds of delay, bytes per second (None: no limit), share of frames lost."""

    delay: float = 0.0
    rate: float | None = None
    loss: float = 0.0


@dataclass
class Lane:
    link: Link = Link()
    free: float = 0.0  # when the last bit of what was accepted has been sent
    last: float = 0.0  # when the last frame arrives; a later one never overtakes it
    frames: int = 0
    bytes: int = 0
    lost: int = 0  # by the dice
    dropped: int = 0  # for want of room in the queue


@dataclass
class Port:
    mac: bytes
    plugged: bool = True


_Waiting = tuple[
    float, int, str, str, bytes
]  # due, serial (so that nothing further is compared), source, target, frame


def wire_bytes(frame: bytes) -> int:
    """Bytes on an Ethernet cable. A large TCP frame is many, each with headers of its own."""
    fields: tuple[int, ...] = HEADER.unpack_from(frame)
    _, kind, _, size, start, _ = fields
    length = len(frame) - HEADER.size
    if not kind or not size:
        return length + FRAMING
    head = start + (frame[HEADER.size + start + 12] >> 4) * 4  # TCP says in its 13th byte how many words it begins with
    segments = -(-(length - head) // size)
    return length + (segments - 1) * head + segments * FRAMING


class Core:
    """Frames in, frames out when they are due."""

    def __init__(self, dice: Callable[[], float]) -> None:
        self._dice = dice
        self._ports: dict[str, Port] = {}
        self._names: dict[bytes, str] = {}
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._waiting: list[_Waiting] = []
        self._serial = 0

    # --- what can be changed ---

    def attach(self, name: str, mac: bytes) -> None:
        """A port, plugged in; frames for that address go to it."""
        self._ports[name] = Port(mac)
        self._names[mac] = name

    def detach(self, name: str) -> None:
        """The port is gone; its links are kept for the day it comes back."""
        self._forget(name)
        del self._names[self._ports.pop(name).mac]

    def plug(self, name: str, *, in_: bool) -> None:
        """Pull a port's cable, or put it back. What was on its way when the cable went never arrives."""
        self._ports[name].plugged = in_
        if not in_:
            self._forget(name)

    def set_link(self, source: str, target: str, link: Link) -> None:
        """From the next frame on; what is on its way arrives as it would have."""
        self._lane(source, target).link = link

    def _forget(self, name: str) -> None:
        self._waiting = [waiting for waiting in self._waiting if name not in waiting[2:4]]
        heapq.heapify(self._waiting)
        for pair, lane in self._lanes.items():
            if name in pair:
                lane.free = 0.0

    def _lane(self, source: str, target: str) -> Lane:
        return self._lanes.setdefault((source, target), Lane())

    # --- frames ---

    def accept(self, now: float, source: str, frame: bytes) -> None:
        """A frame has left `source`. One for an address that no port has goes nowhere."""
        target = self._names.get(frame[HEADER.size : HEADER.size + MAC])
        if target is None or not (self._ports[source].plugged and self._ports[target].plugged):
            return
        lane = self._lane(source, target)
        if lane.link.loss and self._dice() < lane.link.loss:
            lane.lost += 1
            return
        sent = self._sent(lane, now, wire_bytes(frame))
        if sent is None:
            lane.dropped += 1
            return
        lane.frames += 1
        lane.last = max(lane.last, sent + lane.link.delay)
        self._serial += 1
        heapq.heappush(self._waiting, (lane.last, self._serial, source, target, frame))

    def _sent(self, lane: Lane, now: float, size: int) -> float | None:
        """When the last bit has left; None where the queue is full."""
        if lane.link.rate is None:
            lane.free = now
        else:
            queued = (max(lane.free, now) - now) * lane.link.rate
            if queued + size > max(QUEUE_BYTES, QUEUE_SECONDS * lane.link.rate):
                return None
            lane.free = max(lane.free, now) + size / lane.link.rate
        lane.bytes += size
        return lane.free

    def due(self, now: float) -> Iterator[tuple[str, bytes]]:
        """(port, frame) of everything that has arrived by now, in its order."""
        while self._waiting and self._waiting[0][0] <= now:
            _, _, _, target, frame = heapq.heappop(self._waiting)
            yield target, frame

    def wait(self, now: float) -> float | None:
        """Seconds until the next frame is due; None while none is on its way."""
        return max(0.0, self._waiting[0][0] - now) if self._waiting else None

    # --- what there is to tell ---

    def lossy(self, source: str) -> bool:
        """Does it lose some frames on a way out? Then it must not send large ones: they would be lost as a whole."""
        return any(0 < lane.link.loss < 1 for (start, _), lane in self._lanes.items() if start == source)

    def state(self) -> dict[str, Any]:
        """ports: is each plugged; lanes: link and counters of each direction that was named or carried something."""
        lanes = [
            {"source": source, "target": target, **asdict(lane.link), **_counters(lane)}
            for (source, target), lane in sorted(self._lanes.items())
        ]
        return {"ports": {name: port.plugged for name, port in self._ports.items()}, "lanes": lanes}


def _counters(lane: Lane) -> dict[str, int]:
    return {"frames": lane.frames, "bytes": lane.bytes, "lost": lane.lost, "dropped": lane.dropped}
