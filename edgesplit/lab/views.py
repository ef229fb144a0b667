"""The files of /proc that tell a host of the whole machine, written for its own share of it instead.

Must not know: where the numbers come from, nor where the texts go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TICKS = 100  # per second: the unit of /proc/stat, the same on every Linux in use
LOAD_EVERY = 5.0  # seconds between two looks at what runs, as in the kernel
LOAD_SPANS = (60.0, 300.0, 900.0)  # seconds: the three load averages


def stat(busy: Sequence[float], up: float, machine: str) -> str:
    """/proc/stat. `busy`: seconds of each CPU that the host used; `up`: seconds it runs; `machine`: the real text.

    The boot time stays the machine's: the kernel counts the start of processes from it.
    """
    rows = [(round(used * TICKS), max(0, round((up - used) * TICKS))) for used in busy]
    total = (sum(used for used, _ in rows), sum(idle for _, idle in rows))
    btime = next((line for line in machine.splitlines() if line.startswith("btime")), "btime 0")
    lines = [f"{name} {used:>15} 0 0 {idle:>15} 0 0 0 0 0 0" for name, (used, idle) in _named(total, rows)]
    return "\n".join([*lines, "intr 0", "ctxt 0", btime, "processes 0", "procs_running 1", ""])


def _named(total: tuple[int, int], rows: Sequence[tuple[int, int]]) -> list[tuple[str, tuple[int, int]]]:
    return [("cpu ", total), *((f"cpu{number}", row) for number, row in enumerate(rows))]


def meminfo(limit: int, used: int, cached: int, idle: int) -> str:
    """/proc/meminfo, from bytes. What is idle can be had at once."""
    free = max(0, limit - used)
    rows = {
        "MemTotal": limit,
        "MemFree": free,
        "MemAvailable": min(limit, free + idle),
        "Buffers": 0,
        "Cached": cached,
        "SwapCached": 0,
        "Active": max(0, used - idle),
        "Inactive": idle,
        "SwapTotal": 0,
        "SwapFree": 0,
        "Shmem": 0,
    }
    return "".join(f"{name + ':':<16}{size // 1024:>15} kB\n" for name, size in rows.items())


def loadavg(loads: Sequence[float], running: int, processes: int) -> str:
    """/proc/loadavg; of one width, so that a shorter text never leaves the end of a longer one."""
    return " ".join([*(f"{load:.2f}" for load in loads), f"{running}/{processes} 0"]).ljust(48) + "\n"


def next_loads(loads: Sequence[float], running: int) -> tuple[float, ...]:
    """The load averages LOAD_EVERY later, when so many were running or waiting for the disk."""
    factors = [math.exp(-LOAD_EVERY / span) for span in LOAD_SPANS]
    return tuple(load * factor + running * (1 - factor) for load, factor in zip(loads, factors, strict=True))
