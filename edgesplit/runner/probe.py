"""This host read from outside torch: spare capacity, and the links to other hosts. Standard library only.

Must not know: the model, the controller.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .control import ask

ECHOES = 20  # round trips timed per link
BURST = 0.3  # seconds a bandwidth burst lasts after its warm-up; 0.2 s came within 2.5 % on shaped links
PIECE = 2**18  # bytes per read or write


# --- capacity ---


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
            answer = json.loads(ask(folder, b'{"verb": "status"}', timeout=5))
            reading["runner"] = answer.get("ok")
            allowed = (reading["runner"] or {}).get("cpus", cpus)
            reading["busy_s"], reading["cores"] = busy_seconds(allowed), min(cores(), len(allowed))
        except (OSError, ValueError) as error:
            reading["runner"] = None
            reading["absent"] = str(error)
        manifest = folder / "manifest.json"
        reading["manifest"] = manifest.exists()
    return reading


def busy_seconds(cpus: Iterable[int]) -> float:
    """CPU time spent not idle on these CPUs since boot, seconds (/proc/stat: columns 4 and 5 are idle, iowait)."""
    wanted = {f"cpu{number}" for number in cpus}
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *columns = line.split()
        if name in wanted:
            values = [int(column) for column in columns[:8]]
            total += sum(values) - values[3] - values[4]
    return total / os.sysconf("SC_CLK_TCK")


def _cgroup_values(name_v2: str, controller: str, name_v1: str) -> list[str]:
    """The contents of a limit's file in every cgroup this process is in, from its own up to the root."""
    values = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = Path("/sys/fs/cgroup"), name_v2
        elif controller in controllers.split(","):
            root, name = Path("/sys/fs/cgroup") / controllers, name_v1
            root = root if root.exists() else Path("/sys/fs/cgroup") / controller
        else:
            continue
        here = root / group.lstrip("/")
        for folder in [here, *here.parents]:
            if root not in [folder, *folder.parents]:
                break
            if (folder / name).is_file():
                values.append((folder / name).read_text().strip())
    return values


def cores() -> float:
    """Cores this process may use: affinity, and CPU quotas of cgroup v1 and v2."""
    limit = float(len(os.sched_getaffinity(0)))
    for value in _cgroup_values("cpu.max", "cpu", "cpu.cfs_quota_us"):
        words = value.split()
        if words[0] in ("max", "-1"):
            continue
        period = words[1] if len(words) > 1 else 100_000  # v1 keeps the period in another file; 100 ms is its default
        limit = min(limit, int(words[0]) / float(period))
    return limit


def memory() -> dict[str, int]:
    """Bytes: what the host has, and what a new process may still take (cgroup limits respected)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limits = _cgroup_values("memory.max", "memory", "memory.limit_in_bytes")
    used = _cgroup_values("memory.current", "memory", "memory.usage_in_bytes")
    for limit, usage in zip(limits, used, strict=False):
        if limit != "max" and int(limit) < total:
            total = int(limit)
            free = min(free, max(0, int(limit) - int(usage)))
    return {"memory_total": total, "memory_available": free}


# --- links ---


def listen(arguments: dict[str, Any]) -> dict[str, Any]:
    """Answer one measurement that knows `token`, on the first of `ports` that is free; give up after `timeout`."""
    token = arguments["token"].encode()
    deadline = time.monotonic() + arguments["timeout"]
    with _first_free(arguments["address"], arguments["ports"]) as server:
        while time.monotonic() < deadline:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                sock, _ = server.accept()
            except TimeoutError:
                break
            with sock:
                sock.settimeout(10)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if _exactly(sock, len(token)) == token:
                    sock.sendall(b"+")
                    return _be_measured(sock)
    return {"error": "nobody called"}


def _first_free(address: str, ports: Iterable[int]) -> socket.socket:
    failure: OSError | None = None
    for port in ports:
        for place in (address, ""):
            try:
                return socket.create_server((place, port))
            except OSError as error:
                failure = error
    raise OSError(f"no port to measure on: {failure}")


def _be_measured(sock: socket.socket) -> dict[str, Any]:
    for _ in range(ECHOES):
        sock.sendall(_exactly(sock, 1))
    warm = float(_exactly(sock, 16))
    rate = _receive_burst(sock, warm)
    sock.sendall(f"{rate:<32.3f}".encode())
    _send_burst(sock, warm)
    _exactly(sock, 1)
    return {"ok": True}


def call(arguments: dict[str, Any]) -> dict[str, Any]:
    """Measure to a host that listens: {"rtt": s, "up": bytes/s, "down": bytes/s}, or {"error"}."""
    deadline = time.monotonic() + arguments["timeout"]
    failure = "nobody listened"
    while time.monotonic() < deadline:
        for port in arguments["ports"]:
            try:
                with socket.create_connection((arguments["address"], port), timeout=2) as sock:
                    return _measure(sock, arguments["token"].encode())
            except OSError as error:
                failure = str(error)
        time.sleep(0.05)
    return {"error": failure}


def _measure(sock: socket.socket, token: bytes) -> dict[str, Any]:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(token)
    if _exactly(sock, 1) != b"+":
        raise OSError("somebody else listens there")
    sock.settimeout(10)
    times = []
    for _ in range(ECHOES):
        start = time.perf_counter()
        sock.sendall(b".")
        _exactly(sock, 1)
        times.append(time.perf_counter() - start)
    rtt = statistics.median(times)
    warm = max(0.05, 10 * rtt)  # slow start is over after ten round trips
    sock.sendall(f"{warm:<16.6f}".encode())
    _send_burst(sock, warm)
    up = float(_exactly(sock, 32))
    down = _receive_burst(sock, warm)
    sock.sendall(b".")
    return {"rtt": rtt, "up": up, "down": down}


def _send_burst(sock: socket.socket, warm: float) -> None:
    """Send for warm + BURST seconds; each piece says whether another follows, so that the stream can end."""
    end = time.perf_counter() + warm + BURST
    more, last = b"\1" + bytes(PIECE - 1), b"\0" + bytes(PIECE - 1)
    while time.perf_counter() < end:
        sock.sendall(more)
    sock.sendall(last)


def _receive_burst(sock: socket.socket, warm: float) -> float:
    """Bytes per second over what arrives after the warm-up."""
    store = bytearray(PIECE)
    start, since, count = time.perf_counter(), None, 0
    while True:
        filled, first = 0, -1
        while filled < PIECE:
            got = sock.recv_into(memoryview(store)[filled:])
            if not got:
                raise OSError("the other end went")
            filled += got
            now = time.perf_counter()
            if since is None and now - start > warm:
                since, count = now, -got
            count += got
        first = store[0]
        if first == 0:
            return count / max(now - (since or start), 1e-6)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise OSError("the other end went")
        data += piece
    return data
