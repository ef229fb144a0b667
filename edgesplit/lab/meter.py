"""Keeps what each host of the lab reads of itself in /proc true: its own processor time and memory, not the machine's.

One process for all hosts, beside them, so that it costs them nothing. It ends when the lab's folder is taken away.
Its argument is a JSON object: folder of the lab, its own group, hosts. Standard library only.
Must not know: links, sshd.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgesplit.lab import views
from edgesplit.lab.cgroup import Group, Usage, opened
from edgesplit.lab.daemon import detach

MACHINE = Path("/proc/stat")
EVERY = 0.1  # seconds: what a reading of /proc/stat is old at most


class Host:
    def __init__(self, group: Group, folder: Path) -> None:
        self._group = group
        self._files = {
            name: os.open(folder / name, os.O_WRONLY | os.O_CLOEXEC) for name in ("stat", "meminfo", "loadavg")
        }
        self._booted: float | None = None
        self._loads: tuple[float, ...] = (0.0, 0.0, 0.0)

    def refresh(self, now: float) -> None:
        usage = self._group.usage()
        self._booted = self._booted or now
        self._write("stat", views.stat(usage.cpu, now - self._booted, MACHINE.read_text()))
        self._write("meminfo", views.meminfo(self._group.memory(), usage.memory, usage.cached, usage.idle))

    def count(self) -> None:
        processes = self._group.processes()
        if not processes:
            self._booted, self._loads = None, (0.0, 0.0, 0.0)
        running = sum(_running(process) for process in processes)
        self._loads = views.next_loads(self._loads, running)
        self._write("loadavg", views.loadavg(self._loads, running, len(processes)))

    def _write(self, name: str, text: str) -> None:
        data = text.encode()
        os.pwrite(self._files[name], data, 0)
        os.ftruncate(self._files[name], len(data))


def _running(process: int) -> int:
    """Threads of a process that run, wait for a CPU or for a disk."""
    found = 0
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{process}/task").iterdir():
            found += (task / "stat").read_text().rpartition(") ")[2][0] in "RD"
    return found


def first_texts(usage: Usage, limit: int) -> dict[str, str]:
    """What the files say before the first look."""
    return {
        "stat": views.stat([0.0] * len(usage.cpu), 0.0, MACHINE.read_text()),
        "meminfo": views.meminfo(limit, usage.memory, usage.cached, usage.idle),
        "loadavg": views.loadavg((0.0, 0.0, 0.0), 0, 0),
    }


def serve(folder: Path, hosts: list[Host]) -> None:
    count_at = time.monotonic()
    while folder.exists():
        if counting := time.monotonic() >= count_at:
            count_at += views.LOAD_EVERY
        for host in hosts:
            with suppress(OSError, ValueError):  # its group is being made anew (no limit yet), or the disk is full
                host.refresh(time.monotonic())
                if counting:
                    host.count()
        time.sleep(EVERY)


def main() -> None:
    told: dict[str, Any] = json.loads(sys.argv[1])
    ready = detach()
    opened(told["group"]).enter(os.getpid())
    os.setpriority(os.PRIO_PROCESS, 0, -5)  # on a busy machine, too, readings are of now
    hosts = [Host(opened(host["group"]), Path(host["views"])) for host in told["hosts"]]
    ready()
    serve(Path(told["folder"]), hosts)


if __name__ == "__main__":
    main()
