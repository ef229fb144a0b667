"""What is found on the hosts before anything is changed.

Must not know: what will be changed, and how.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from edgesplit.broadcast.cargo import Cargo, split_of
from edgesplit.broadcast.remote import manifest, present
from edgesplit.broadcast.transition import Presence
from edgesplit.errors import MovedError
from edgesplit.fleet import Fleet
from edgesplit.hosts.fanout import each
from edgesplit.hosts.host import Host
from edgesplit.runner.manifest import Manifest
from edgesplit.split import Split


@dataclass(frozen=True)
class Scene:
    """What was found before anything is changed."""

    presences: Mapping[str, Presence]
    manifest: Manifest | None  # of the epoch that the entry serves, if it does
    broken: str  # why the running ring is broken; "" when it is not, or there is none
    serial: int  # the newest that any runner has honoured
    ahead: Mapping[str, float] = field(default_factory=dict)  # seconds that runners' clocks are before ours
    fleet: Fleet | None = None  # as profiled: with it, hosts give each other what they have, where that is faster

    @cached_property
    def running(self) -> Split | None:
        return None if self.manifest is None else split_of(self.manifest)

    @property
    def next_epoch(self) -> int:
        held = [epoch for presence in self.presences.values() for epoch in presence.epochs or ()]
        return max([*held, self.running.epoch if self.running else 0]) + 1


def look(cargo: Cargo, hosts: Mapping[str, Host], fleet: Fleet | None = None) -> Scene:
    """Ask every host what it has. Raises HostError, FleetError, MovedError."""
    reports = each(hosts, lambda host: present(host, cargo.folder(host.name), cargo.inventory.hosts[host.name]))
    for name, (presence, state) in reports.items():
        archive = cargo.archive.name
        if state is not None and archive not in presence.objects:
            hint = "take the deployment down (edgesplit down), then deploy it again"
            raise MovedError(f"{name}: a runner of another version of edgesplit is running", hint)
    entry = reports.get(cargo.plan.entry)
    kept, broken = None, ""
    if entry is not None and entry[1] is not None and entry[1].get("serving") is not None:
        kept = manifest(hosts[cargo.plan.entry], cargo.folder(cargo.plan.entry))
        broken = str(entry[1]["epochs"].get(str(entry[1]["serving"]), {}).get("reason", ""))
    serial = max((int(state["serial"]) for _, state in reports.values() if state is not None), default=0)
    clocks = {name: ahead(state) for name, (_, state) in reports.items() if state is not None}
    return Scene({name: presence for name, (presence, _) in reports.items()}, kept, broken, serial, clocks, fleet)


def ahead(state: Mapping[str, Any]) -> float:
    """How far a runner's clock is before ours, less the time its answer took. Boards wake up in another year."""
    return float(state["clock"]) - time.time()


def served(host: Host, folder: str) -> Split | None:
    """The split of the manifest a host keeps."""
    found = manifest(host, folder)
    return None if found is None else split_of(found)


def settled(cargo: Cargo, scene: Scene, target: Split) -> bool:
    """Is this very split of these very weights serving already, as the plan wishes, on runners that are all there?"""
    running, kept = scene.running, scene.manifest
    if running is None or kept is None or scene.broken or not running.same_stages(target) or not cargo.matches(kept):
        return False
    return all(running.epoch in (scene.presences[host].epochs or ()) for host in running.hosts)
