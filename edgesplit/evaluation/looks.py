"""Looks at the hosts of a lab from outside: what they use of their quota, and what lies on their disks.

Where a block is, is not asked of anybody: a runner loads what its stage folder links to.
Must not know: what ought to be there.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgesplit.evaluation.record import Look
from edgesplit.lab.lab import Lab, LabStatus
from edgesplit.lab.scenario import CONTROLLER

EVERY = 0.5  # seconds


@dataclass
class Looks:
    lab: Lab
    plan: str  # its name
    entry: str
    start: float
    looks: list[Look] = field(default_factory=list)
    _before: tuple[float, LabStatus] | None = None
    _blocks: dict[str, int] = field(default_factory=dict)  # sha256 of a shard -> its block

    def run(self, over: threading.Event) -> None:
        while not over.wait(EVERY):
            self.look()

    def look(self) -> None:
        now, status = time.monotonic(), self.lab.status()
        if self._before is not None:
            at, before = self._before
            busy = {name: _busy(before, status, name, now - at) for name in status.hosts}
            live = [name for name, host in status.hosts.items() if host.state != "off"]
            loaded, stored = ({name: self._found(name, kind) for name in live} for kind in ("stages", "shards"))
            sent = sum(lane.bytes for lane in status.links if lane.source == CONTROLLER)
            self.looks.append(Look(at=now - self.start, busy=busy, loaded=loaded, stored=stored, sent=sent))
        self._before = now, status

    def _found(self, host: str, kind: str) -> tuple[int, ...]:
        place = self._place(host) / kind
        names = place.glob("*/*.sealed" if kind == "stages" else "*.sealed")
        found = set()
        with suppress(OSError):  # it is being changed at the moment
            found = {self._block(file.name.removesuffix(".sealed")) for file in names}
        return tuple(sorted(found - {-1}))

    def _block(self, sha256: str) -> int:
        """-1: what every stage needs."""
        if not self._blocks:
            with suppress(OSError, ValueError, KeyError):
                signed = json.loads((self._place(self.entry) / "manifest.json").read_text())
                shards: list[str] = json.loads(signed["payload"])["manifest"]["shards"]
                self._blocks = {name: block for block, name in enumerate(shards)}
        return self._blocks.get(sha256, -1)

    def _place(self, host: str) -> Path:
        return Path(self.lab.layout.host_folder(host), "work", self.plan)


def _busy(before: LabStatus, now: LabStatus, name: str, seconds: float) -> float:
    """A host that was powered on counts from nothing."""
    old, new = before.hosts[name], now.hosts[name]
    used = new.cpu_seconds - (old.cpu_seconds if new.cpu_seconds >= old.cpu_seconds else 0.0)
    return used / (seconds * new.cores)
