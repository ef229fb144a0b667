"""What a host may take of the machine, as control groups of Linux: version 1 where it is mounted whole, else version 2.

All that a host runs is in its group, so a group is also how a host is frozen, how its processes are found and ended.
Standard library only. Must not know: what a host is, who is in a group.
"""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edgesplit.errors import EdgesplitError

NEEDED = ("cpu", "cpuacct", "memory", "freezer")  # of version 1; version 2 needs cpu and memory, and freezes by itself
PERIOD = 20_000  # us; stalls of a host at its quota are five times as short as with the kernel's 100 ms
LEAST_QUOTA = 1_000  # us, the kernel's least; a smaller share needs a longer period
LONG_PERIOD = 1_000_000  # us, the kernel's longest
WEIGHT = 10  # a group's processes before others, as at nice -10: a machine of its own would not wait for this one
SECONDS_TO_DIE = 10.0  # given to killed processes; one that writes to a slow disk takes a while

Folders = Mapping[str, Path]  # controller -> folder; of version 2 there is one, named ""


@dataclass(frozen=True)
class Usage:
    """What a group has used, and holds. `cpu`: busy seconds of each CPU; the rest are bytes, but `throttled`."""

    cpu: tuple[float, ...]
    throttled: float  # seconds its processes waited because the quota was used up
    memory: int
    cached: int  # file pages among them
    idle: int  # and of these, what can be had back at once


class Group(ABC):
    """One control group; of version 1, a folder in each controller's tree. Whatever is asked of one that is not there
    raises OSError."""

    version: ClassVar[int]

    def __init__(self, folders: Folders) -> None:
        self.folders = dict(folders)
        self._each = list(dict.fromkeys(self.folders.values()))  # cpu and cpuacct may be one

    @abstractmethod
    def limit_cores(self, cores: float) -> None:
        """CPU seconds per second at most, of all its processes together."""

    @abstractmethod
    def weigh(self, cores: float) -> None:
        """Go before the machine's other processes, as long as the machine has that many cores for it."""

    @abstractmethod
    def limit_memory(self, size: int) -> None:
        """Bytes at most. Raises EdgesplitError where more than that is in use."""

    @abstractmethod
    def cores(self) -> float:
        """The limit."""

    @abstractmethod
    def memory(self) -> int:
        """The limit, in bytes."""

    @abstractmethod
    def freeze(self, *, frozen: bool) -> None:
        """Its processes stand still, or go on."""

    @abstractmethod
    def frozen(self) -> bool: ...

    @abstractmethod
    def usage(self) -> Usage: ...

    def make(self) -> None:
        for folder in self._each:
            folder.mkdir()

    def enter(self, process: int) -> None:
        for folder in self._each:
            (folder / "cgroup.procs").write_text(str(process))

    def processes(self) -> list[int]:
        """Their numbers; none where there is no such group."""
        return sorted({number for folder in self._each for number in _processes(folder)})

    def strike(self) -> None:
        """Kill what is in it now; frozen meanwhile, so that nothing forks away."""
        self.freeze(frozen=True)
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.freeze(frozen=False)

    @abstractmethod
    def hand_down(self) -> None:
        """Let groups below it limit cpu and memory."""

    def below(self) -> list[Group]:
        names = {path.name for folder in self._each if folder.exists() for path in folder.iterdir() if path.is_dir()}
        inner = [{key: folder / name for key, folder in self.folders.items()} for name in sorted(names)]
        return [type(self)(folders) for folders in inner]

    def remove(self) -> None:
        """The group and all below, which are empty."""
        for group in self.below():
            group.remove()
        for folder in self._each:
            _remove(folder)


class GroupV1(Group):
    version = 1

    def hand_down(self) -> None: ...  # every controller has a tree of its own, and they always may

    def limit_cores(self, cores: float) -> None:
        quota, period = quota_of(cores)
        folder = self.folders["cpu"]
        (folder / "cpu.cfs_quota_us").write_text("-1")  # so that no step between the two numbers is refused
        (folder / "cpu.cfs_period_us").write_text(str(period))
        (folder / "cpu.cfs_quota_us").write_text(str(quota))
        self.weigh(cores)

    def weigh(self, cores: float) -> None:
        (self.folders["cpu"] / "cpu.shares").write_text(str(max(2, round(1024 * WEIGHT * cores))))

    def limit_memory(self, size: int) -> None:
        _limit(self.folders["memory"] / "memory.limit_in_bytes", size)

    def cores(self) -> float:
        folder = self.folders["cpu"]
        return int(_text(folder / "cpu.cfs_quota_us")) / int(_text(folder / "cpu.cfs_period_us"))

    def memory(self) -> int:
        return int(_text(self.folders["memory"] / "memory.limit_in_bytes"))

    def freeze(self, *, frozen: bool) -> None:
        if "freezer" in self.folders:
            with suppress(FileNotFoundError):
                (self.folders["freezer"] / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def frozen(self) -> bool:
        return _text(self.folders["freezer"] / "freezer.state").strip() != "THAWED"

    def usage(self) -> Usage:
        memory = _pairs(self.folders["memory"] / "memory.stat")
        return Usage(
            cpu=tuple(int(word) / 1e9 for word in _text(self.folders["cpuacct"] / "cpuacct.usage_percpu").split()),
            throttled=_pairs(self.folders["cpu"] / "cpu.stat")["throttled_time"] / 1e9,
            memory=int(_text(self.folders["memory"] / "memory.usage_in_bytes")),
            cached=memory["total_cache"],
            idle=memory["total_inactive_file"],
        )


class GroupV2(Group):
    version = 2

    @property
    def _folder(self) -> Path:
        return self._each[0]

    def hand_down(self) -> None:
        for folder in (self._folder.parent, self._folder):
            _hand_down(folder)

    def limit_cores(self, cores: float) -> None:
        quota, period = quota_of(cores)
        (self._folder / "cpu.max").write_text(f"{quota} {period}")
        self.weigh(cores)

    def weigh(self, cores: float) -> None:
        (self._folder / "cpu.weight").write_text(str(min(10_000, max(1, round(100 * WEIGHT * cores)))))

    def limit_memory(self, size: int) -> None:
        _limit(self._folder / "memory.max", size)
        with suppress(FileNotFoundError):  # a kernel without swap
            (self._folder / "memory.swap.max").write_text("0")

    def cores(self) -> float:
        quota, period = _text(self._folder / "cpu.max").split()
        return int(quota) / int(period)

    def memory(self) -> int:
        return int(_text(self._folder / "memory.max"))

    def freeze(self, *, frozen: bool) -> None:
        with suppress(FileNotFoundError):
            (self._folder / "cgroup.freeze").write_text(str(int(frozen)))

    def frozen(self) -> bool:
        return _text(self._folder / "cgroup.freeze").strip() == "1"

    def usage(self) -> Usage:
        cpu, memory = _pairs(self._folder / "cpu.stat"), _pairs(self._folder / "memory.stat")
        count = os.cpu_count() or 1  # version 2 does not tell the CPUs apart
        return Usage(
            cpu=(cpu["usage_usec"] / 1e6 / count,) * count,
            throttled=cpu.get("throttled_usec", 0) / 1e6,
            memory=int(_text(self._folder / "memory.current")),
            cached=memory["file"],
            idle=memory["inactive_file"],
        )


_KINDS: dict[int, type[Group]] = {1: GroupV1, 2: GroupV2}


def end(groups: Iterable[Group]) -> None:
    """End every process in these groups and below them, also frozen ones."""
    every = [inner for group in groups for inner in (group, *group.below())]
    deadline = time.monotonic() + SECONDS_TO_DIE
    while alive := [process for group in every for process in group.processes()]:
        if time.monotonic() > deadline:
            raise EdgesplitError(f"killed {SECONDS_TO_DIE:g} s ago, but not gone: process {alive[0]}", "try again")
        for group in every:
            group.strike()
        time.sleep(0.002)


def quota_of(cores: float) -> tuple[int, int]:
    """(quota, period) in microseconds."""
    if cores * PERIOD >= LEAST_QUOTA:
        return round(cores * PERIOD), PERIOD
    period = min(LONG_PERIOD, round(LEAST_QUOTA / cores))
    return max(LEAST_QUOTA, round(cores * period)), period


def described(group: Group) -> dict[str, Any]:
    """For another process: `opened` makes it a group again."""
    return {"version": group.version, "folders": {key: str(folder) for key, folder in group.folders.items()}}


def opened(description: Mapping[str, Any]) -> Group:
    """What `described` described."""
    return _KINDS[description["version"]]({key: Path(folder) for key, folder in description["folders"].items()})


# --- where groups are ---


@dataclass(frozen=True)
class Hierarchies:
    """`roots`: where each hierarchy is mounted; `homes`: in it, where this process may make groups."""

    version: int
    roots: Folders
    homes: Folders

    def group(self, *names: str) -> Group:
        return self._kind({key: home.joinpath(*names) for key, home in self.homes.items()})

    def tracking(self, *names: str) -> Group:
        """A group that limits nothing: only to find again what is in it."""
        keys = ("freezer",) if self.version == 1 else ("",)
        return self._kind({key: self.homes[key].joinpath(*names) for key in keys})

    def _kind(self, folders: Folders) -> Group:
        return _KINDS[self.version](folders)

    def named(self, prefix: str) -> list[str]:
        """The names of groups, wherever they are, that begin like this."""
        return sorted({path.name for root in self.roots.values() for path in _folders(root, prefix)})

    def found(self, name: str) -> list[Group]:
        """Every group of this name, wherever it is: whoever made it may have been in another group than we are."""
        paths = ((key, path) for key, root in self.roots.items() for path in _folders(root, name))
        return [self._kind({key: path}) for key, path in paths if path.name == name]


def _folders(root: Path, prefix: str) -> Iterator[Path]:
    """Other groups may come and go meanwhile."""
    for folder, inner, _ in os.walk(root):
        mine = [name for name in inner if name.startswith(prefix)]
        yield from (Path(folder, name) for name in mine)
        inner[:] = [name for name in inner if name not in mine]


def hierarchies(proc: Path = Path("/proc")) -> Hierarchies:
    """Raises EdgesplitError where neither version can do what is needed."""
    mounts: dict[str, Path] = {}
    unified: Path | None = None
    for line in _text(proc / "mounts").splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup":
            mounts.update({name: Path(place) for name in options.split(",") if name in NEEDED})
        elif kind == "cgroup2":
            unified = unified or Path(place)
    if set(mounts) == set(NEEDED):
        own = _own_groups(proc)
        homes = {name: mounts[name] / own[name].lstrip("/") for name in NEEDED}
        return Hierarchies(1, mounts, {name: home if home.exists() else mounts[name] for name, home in homes.items()})
    if unified is not None and {"cpu", "memory"} <= set(_text(unified / "cgroup.controllers").split()):
        return Hierarchies(2, {"": unified}, {"": unified})
    raise EdgesplitError(
        "this machine offers no control groups for cpu and memory",
        "the lab needs cgroup v2 with the controllers cpu and memory, or cgroup v1 with " + ", ".join(NEEDED),
    )


def _own_groups(proc: Path) -> dict[str, str]:
    rows = [line.split(":", 2) for line in _text(proc / "self/cgroup").splitlines()]
    return {controller: group for _, controllers, group in rows for controller in controllers.split(",")}


# --- files ---


def _text(file: Path) -> str:
    return file.read_text()


def _pairs(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in _text(file).splitlines())}


def _processes(folder: Path) -> list[int]:
    try:
        return [int(word) for word in _text(folder / "cgroup.procs").split()]
    except FileNotFoundError:
        return []


def _limit(file: Path, size: int) -> None:
    try:
        file.write_text(str(size))
    except OSError as error:  # EBUSY: more than that is in use
        raise EdgesplitError(
            f"{file.parent.name}: the memory limit cannot be {size} bytes: {error.strerror}"
        ) from error


def _hand_down(folder: Path) -> None:
    """Groups below may limit cpu and memory."""
    control = folder / "cgroup.subtree_control"
    if {"cpu", "memory"} <= set(_text(control).split()):
        return
    try:
        control.write_text("+cpu +memory")
    except OSError as error:
        raise EdgesplitError(
            f"{folder}: groups below it cannot limit cpu and memory: {error.strerror}",
            "in a container, let the lab's machine be the host, or give the container a control group of its own",
        ) from error


def _remove(folder: Path) -> None:
    """A group whose last process has just ended may be busy for a moment."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
