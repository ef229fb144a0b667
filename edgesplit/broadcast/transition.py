"""Two splits -> the ordered steps from one to the other: prepare all, commit together, retire the old.

Deploying is reconfiguring from nothing: `running` is None then. A step is a value with a one-line text; a dry run
prints the steps, push.py carries them out phase by phase, each phase on all its hosts at once.

Must not know: hosts' addresses, files, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from edgesplit.model.blocks import name_blocks
from edgesplit.split import Split
from edgesplit.units import format_size


class Phase(str, Enum):
    """In this order. Until COMMIT everything can be undone; COMMIT on the entry host is the moment of change."""

    LOCK = "lock"
    INSTALL = "install"
    SHIP = "ship"
    START = "start"
    PREPARE = "prepare"
    LINK = "link"
    TRIAL = "trial"
    COMMIT = "commit"
    CONFIRM = "confirm"
    RETIRE = "retire"
    STOP = "stop"
    UNLOCK = "unlock"


@dataclass(frozen=True)
class Presence:
    """What a host has of this deployment. `objects`: the files in its folder, by path; weights and side files are named
    by content. `epochs`: what its runner holds, None when no runner answers. `parts`: how many bytes are there of files
    that did not arrive whole. `lacks`: what must be installed before its runner can run, in words; "" if nothing."""

    folder: bool
    objects: frozenset[str]
    epochs: tuple[int, ...] | None
    keys: bool = False
    parts: Mapping[str, int] = field(default_factory=dict)
    lacks: str = ""

    def missing(self, need: Need) -> dict[str, int]:
        """Path -> bytes that are still to be sent of it."""
        absent = sorted(set(need.objects) - self.objects)
        return {path: need.objects[path] - self.begun(path, need.objects[path]) for path in absent}

    def begun(self, path: str, size: int) -> int:
        """Bytes that are there of a file of this size; more than that is not its beginning."""
        there = self.parts.get(path, 0)
        return there if there <= size else 0


@dataclass(frozen=True)
class Need:
    """What a host must have: path below its folder -> bytes."""

    objects: Mapping[str, int]


SEALED = "shards/"  # what lies there is sealed alike on all hosts of a deployment


@dataclass(frozen=True)
class Gift:
    """What a peer gives a host."""

    peer: str
    objects: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Step:
    phase: Phase
    host: str
    epoch: int
    objects: tuple[str, ...] = ()  # SHIP: what is missing, and no peer gives
    size: int = 0  # SHIP: bytes of it
    detail: str = ""
    gifts: tuple[Gift, ...] = ()  # SHIP: what peers give

    def __str__(self) -> str:
        return f"{self.phase.value:8} {self.host}: {self.detail}"


class Progress(Protocol):
    """Told what happens, from several threads."""

    def begin(self, step: Step) -> None: ...

    def sent(self, step: Step, size: int) -> None: ...

    def note(self, step: Step, text: str) -> None: ...

    def end(self, step: Step) -> None: ...

    def undo(self) -> None: ...


NOBODY: Mapping[str, Mapping[str, str]] = MappingProxyType({})


def transition(
    running: Split | None,
    target: Split,
    presences: Mapping[str, Presence],
    needs: Mapping[str, Need],
    givers: Mapping[str, Mapping[str, str]] = NOBODY,
) -> tuple[Step, ...]:
    """The steps to `target` (whose epoch is set) from `running`. Hosts that cannot be reached are not in `presences`
    and get no step; a host of `target` must be there. Epochs that no split explains are retired, and their runner is
    stopped; one that holds none stands by, and is left alone."""
    epoch = target.epoch
    steps: list[Step] = []
    known = set(target.hosts) | set(running.hosts if running else ())
    affected = [host for host, presence in presences.items() if host in known or presence.epochs]

    def add(phase: Phase, hosts: list[str] | tuple[str, ...], detail: str) -> None:
        steps.extend(Step(phase, host, epoch, detail=detail) for host in hosts)

    add(Phase.LOCK, affected, "take the lock")
    bare = [host for host in target.hosts if presences[host].lacks]
    steps.extend(Step(Phase.INSTALL, host, epoch, detail=f"install {presences[host].lacks}") for host in bare)
    steps.extend(_ship(host, epoch, presences[host], needs[host], givers.get(host, {})) for host in target.hosts)
    add(Phase.START, [host for host in target.hosts if presences[host].epochs is None], "start the runner")
    steps.extend(Step(Phase.PREPARE, host, epoch, detail=_blocks(target, host)) for host in target.hosts)
    add(Phase.LINK, target.hosts, f"link epoch {epoch} to its neighbours")
    add(Phase.TRIAL, [target.entry], f"send a token around the ring of epoch {epoch}")
    add(Phase.COMMIT, [target.entry], f"epoch {epoch} serves from now on")
    add(Phase.CONFIRM, [host for host in target.hosts if host != target.entry], f"epoch {epoch} serves")
    for host in affected:
        old = sorted(set(presences[host].epochs or ()) - {epoch})
        steps.extend(Step(Phase.RETIRE, host, number, detail=f"forget epoch {number}") for number in old)
    leaving = [host for host in affected if host not in target.hosts and presences[host].epochs is not None]
    add(Phase.STOP, leaving, "stop the runner; its shards stay")
    add(Phase.UNLOCK, affected, "give the lock back")
    return tuple(steps)


def _ship(host: str, epoch: int, presence: Presence, need: Need, givers: Mapping[str, str]) -> Step:
    missing = presence.missing(need)
    ours = [path for path in missing if path not in givers]
    size = sum(missing[path] for path in ours)
    gifts = []
    for peer in sorted(set(givers.values())):
        paths = tuple(path for path in missing if givers.get(path) == peer)
        gifts.append(Gift(peer, paths, sum(missing[path] for path in paths)))
    keys = "" if presence.keys else " and the controller's key"
    more = "".join(f"; {gift.peer} gives it {len(gift.objects)}, {format_size(gift.size)}" for gift in gifts)
    detail = f"send {len(ours)} of {len(need.objects)} objects, {format_size(size)}{keys}{more}"
    return Step(Phase.SHIP, host, epoch, tuple(ours), size, detail, tuple(gifts))


def _blocks(target: Split, host: str) -> str:
    held = [block for stage in target.of(host) for block in range(stage.first, stage.last + 1)]
    return f"load {name_blocks(held, target.blocks)} for epoch {target.epoch}"
