"""This host read from outside torch: its spare capacity. Standard library only.

Must not know: the model, the controller.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .claim import claim
from .knock import ask, spent

RUNNER_SECONDS = 3.0  # a runner answers in milliseconds; one that is frozen never does
LOOK = 0.5  # seconds between two looks at the runner; a look costs it a millisecond
DISK_PIECE, DISK_MOST, DISK_SECONDS = 2**22, 2**26, 1.5  # bytes at once and in all, seconds until the last write
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def probe(arguments: dict[str, Any]) -> dict[str, Any]:
    """Counters and levels of this moment; with {"folder"}, the state of the runner there as well.

    `busy_s`: CPU seconds used on this host's allowed CPUs since boot, by everybody.
    """
    cpus = sorted(os.sched_getaffinity(0))
    reading: dict[str, Any] = {
        "at": time.time(),
        "cores": cores(),
        "load": os.getloadavg()[0],
        "busy_s": busy_seconds(cpus),
        **memory(),
    }
    if "folder" in arguments:
        folder = Path(os.path.expanduser(arguments["folder"]))
        try:
            answer = json.loads(ask(folder, b'{"verb": "status"}', timeout=RUNNER_SECONDS))
            reading["runner"] = answer.get("ok")
            allowed = (reading["runner"] or {}).get("cpus", cpus)
            reading["busy_s"], reading["cores"] = busy_seconds(allowed), min(cores(), len(allowed))
        except (OSError, ValueError) as error:
            reading["runner"] = None
            reading["absent"] = str(error)
            reading["mute"] = isinstance(error, TimeoutError)  # it is there, but does not answer
            reading["starting_s"] = spent(folder)
        manifest = folder / "manifest.json"
        reading["manifest"] = manifest.exists()
    return reading


def stream(arguments: dict[str, Any]) -> None:
    """A reading a line: every `interval` seconds, and at once when the runner's epochs change; until nobody reads.
    With {"watcher"}, only while nobody else watches."""
    due, told = 0.0, ""
    if rival := claim(arguments):
        print(json.dumps({"watched": rival}), flush=True)
        return
    while True:
        reading = probe(arguments)
        news = _news(reading)
        if news != told or time.monotonic() >= due:
            due, told = time.monotonic() + arguments["interval"], news
            try:
                os.write(1, json.dumps(reading).encode() + b"\n")
            except OSError:
                return
        time.sleep(min(LOOK, arguments["interval"]))


def _news(reading: dict[str, Any]) -> str:
    """What is worth a line of its own: a runner that came or went, an epoch that serves or broke."""
    runner = reading.get("runner") or {}
    states = {epoch: ring["state"] for epoch, ring in runner.get("epochs", {}).items()}
    return json.dumps([bool(runner), reading.get("manifest"), runner.get("serving"), states])


def busy_seconds(cpus: Iterable[int]) -> float:
    """CPU time spent not idle on these CPUs since boot, seconds (/proc/stat: columns 4 and 5 are idle, iowait)."""
    wanted = {f"cpu{number}" for number in cpus}
    total = 0
    for line in (PROC / "stat").read_text().splitlines():
        name, *columns = line.split()
        if name in wanted:
            values = [int(column) for column in columns[:8]]
            total += sum(values) - values[3] - values[4]
    return total / os.sysconf("SC_CLK_TCK")


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """(folder, cgroup version) of every group whose limits hold for this process, from its own up to the root."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:  # a kernel without cgroups
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [CGROUP / controllers, CGROUP / controller] if controllers else [CGROUP]
        root = next((place for place in roots if place.exists()), roots[-1])
        here = root / group.lstrip("/")
        for folder in (here, *here.parents):
            if folder == root or root in folder.parents:
                yield folder, 1 if controllers else 2


def _read(file: Path) -> str:
    """A file's text, "" where it is not there."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def cores() -> float:
    """Cores this process may use: affinity, and CPU quotas of cgroup v1 and v2."""
    return quota()[0]


def quota() -> tuple[float, float]:
    """(cores, period): where a quota is the limit, its processes stand still once they have used cores x period seconds
    within a period; 0 where there is none."""
    limit, period = float(len(os.sched_getaffinity(0))), 0.0
    for folder, version in _groups("cpu"):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = " ".join(_read(folder / name) for name in names).split()
        if len(words) == 2 and words[0] not in ("max", "-1") and int(words[0]) / int(words[1]) < limit:
            limit, period = int(words[0]) / int(words[1]), int(words[1]) / 1e6
    return limit, period


def memory() -> dict[str, int]:
    """Bytes: what the host has, and what a new process may still take (cgroup limits respected)."""
    fields = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
    total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    machine = total
    for folder, version in _groups("memory"):
        if version == 2:
            names = ("memory.max", "memory.current", "inactive_file")
        else:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, usage = (_read(folder / name) for name in names[:2])
        if limit in ("", "max") or not usage or int(limit) >= machine:
            continue  # v1 says "unlimited" with a number larger than any memory
        # file pages nobody uses count as used until they are needed for something else
        idle = dict(line.split() for line in _read(folder / "memory.stat").splitlines()).get(names[2], 0)
        total = min(total, int(limit))
        free = min(free, max(0, int(limit) - int(usage) + int(idle)))
    return {"memory_total": total, "memory_available": free}


def write_speed(folder: str) -> float:
    """Bytes per second to the disk that `folder` is or will be on; the file has no name and ends with this process.
    0 where nothing can be written, or there is little room."""
    place = Path(os.path.expanduser(folder))
    place = next(here for here in (place, *place.parents) if here.is_dir())
    piece, written, start = os.urandom(DISK_PIECE), 0, time.perf_counter()
    try:
        if shutil.disk_usage(place).free < 4 * DISK_MOST:
            return 0.0
        with tempfile.TemporaryFile(dir=place) as file:
            while written < DISK_MOST and time.perf_counter() - start < DISK_SECONDS:
                written += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return 0.0
    return written / (time.perf_counter() - start)
