"""Turns a new process into a host of the lab: into its control group and namespaces, its own /proc, then sshd.

sshd is the host's first process: when it ends, the kernel ends all that was started through it.
Standard input is a JSON list of hosts. Standard library only.
Must not know: the rest of the fleet, links.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from edgesplit.lab import namespaces
from edgesplit.lab.cgroup import opened

VIEWS = {  # of a host's folder -> what it is laid over
    "stat": "/proc/stat",
    "meminfo": "/proc/meminfo",
    "loadavg": "/proc/loadavg",
    "boot_id": "/proc/sys/kernel/random/boot_id",
    "shadow": "/etc/shadow",  # root may be locked on this machine; on the host it logs in by key
}


def main() -> None:
    for host in json.load(sys.stdin):
        process = os.fork()
        if not process:
            _leave(host)
        os.waitpid(process, 0)


def _leave(host: dict[str, Any]) -> None:
    """In a child: go where the host is, and have the host's first process there. Does not return."""
    try:
        log = os.open(host["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.dup2(log, 2)
        opened(host["group"]).enter(os.getpid())
        namespaces.enter_network(host["network"])
        namespaces.unshare(namespaces.NEWNS | namespaces.NEWUTS | namespaces.NEWIPC | namespaces.NEWPID)
        if not os.fork():
            _become(host)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    finally:  # whatever happened, it must not run on as a second copy of its parent
        os._exit(0)


def _become(host: dict[str, Any]) -> None:
    os.setsid()
    namespaces.set_hostname(host["name"])
    _mount(Path(host["views"]), Path(host["sys"]))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)
    os.chdir("/")
    os.execv(host["command"][0], host["command"])  # noqa: S606 (sshd itself is the first process, not a shell)


def _mount(views: Path, sys_folder: Path) -> None:
    """Its own processes in /proc, its own interfaces in /sys, its own share of the machine in what tells of that."""
    namespaces.mount("", "/", flags=namespaces.PRIVATE | namespaces.RECURSIVE)
    namespaces.mount("proc", "/proc", "proc")
    namespaces.mount("sysfs", sys_folder, "sysfs")
    namespaces.mount("/sys/fs/cgroup", sys_folder / "fs/cgroup", flags=namespaces.BIND | namespaces.RECURSIVE)
    namespaces.mount(sys_folder, "/sys", flags=namespaces.MOVE)
    for name, place in VIEWS.items():
        if Path(place).exists():
            namespaces.mount(views / name, place, flags=namespaces.BIND)


if __name__ == "__main__":
    main()
