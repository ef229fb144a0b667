"""Looks at the hosts of a lab from outside: what they use of their quota, and what lies on their disks.

Where a block is, is read off their disks: a runner loads what its stage folders link to, and keeps, when an epoch takes
over a stage as it is, what the signed manifest says.
Must not know: what ought to be there.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

    def run(self, over: threading.Event) -> None:
        while not over.wait(EVERY):
            with suppress(OSError, ValueError):  # a host's group is being made anew: it was just killed
                self.look()

    def look(self) -> None:
        now, status = time.monotonic(), self.lab.status()
        if self._before is not None:
            at, before = self._before
            busy = {name: _busy(before, status, name, now - at) for name in status.hosts}
            live = [name for name, host in status.hosts.items() if host.state != "off"]
            manifest = self._manifest()
            blocks = {str(sha256): block for block, sha256 in enumerate(manifest.get("shards", ()))}
            stored = {name: self._found(name, "*.sealed", "shards", blocks) for name in live}
            links = {name: self._found(name, "*/*.sealed", "stages", blocks) for name in live}
            loaded = {name: tuple(sorted({*links[name], *_given(manifest, name)})) for name in live}
            sent = sum(lane.bytes for lane in status.links if lane.source == CONTROLLER)
            self.looks.append(Look(at=now - self.start, busy=busy, loaded=loaded, stored=stored, sent=sent))
        self._before = now, status

    def _found(self, host: str, pattern: str, kind: str, blocks: Mapping[str, int]) -> tuple[int, ...]:
        """Files named by the hash of a block."""
        found: set[int] = set()
        with suppress(OSError):  # it is being changed at the moment
            names = [file.name.removesuffix(".sealed") for file in (self._place(host) / kind).glob(pattern)]
            found = {blocks[name] for name in names if name in blocks}
        return tuple(sorted(found))

    def _manifest(self) -> dict[str, Any]:
        """Of the epoch that serves, as the entry keeps it."""
        with suppress(OSError, ValueError, KeyError):
            signed = json.loads((self._place(self.entry) / "manifest.json").read_text())
            return dict(json.loads(signed["payload"])["manifest"])
        return {}

    def _place(self, host: str) -> Path:
        return Path(self.lab.layout.host_folder(host), "work", self.plan)


def _given(manifest: Mapping[str, Any], host: str) -> Iterator[int]:
    for stage in manifest.get("stages", ()):
        if stage["host"] == host:
            yield from range(stage["first"], stage["last"] + 1)


def _busy(before: LabStatus, now: LabStatus, name: str, seconds: float) -> float:
    """A host that was powered on counts from nothing."""
    old, new = before.hosts[name], now.hosts[name]
    used = new.cpu_seconds - (old.cpu_seconds if new.cpu_seconds >= old.cpu_seconds else 0.0)
    return used / (seconds * new.cores)
