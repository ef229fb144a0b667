"""This host read from outside torch: spare capacity, and the links to other hosts. Standard library only.

Must not know: the model, the controller.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .claim import claim
from .control import ask

RUNNER_SECONDS = 3.0  # a runner answers in milliseconds; one that is frozen never does
LOOK = 0.5  # seconds between two looks at the runner; a look costs it a millisecond
ECHOES = 20  # round trips timed per link
BURST = 0.3  # seconds a bandwidth burst lasts after its warm-up; 0.2 s came within 2.5 % on shaped links
PIECE = 2**18  # bytes per read or write
BACK, CALLED_BACK = 2.0, 10.0  # seconds to reach the caller from the other side, and to wait for that
PARTNER = 15.0  # seconds for the caller's further connections: it has something to import before
STRANGER = 2.0  # seconds a caller has to show the token
DISK_PIECE, DISK_MOST, DISK_SECONDS = 2**22, 2**26, 1.5  # bytes at once and in all, seconds until the last write
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


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
            answer = json.loads(ask(folder, b'{"verb": "status"}', timeout=RUNNER_SECONDS))
            reading["runner"] = answer.get("ok")
            allowed = (reading["runner"] or {}).get("cpus", cpus)
            reading["busy_s"], reading["cores"] = busy_seconds(allowed), min(cores(), len(allowed))
        except (OSError, ValueError) as error:
            reading["runner"] = None
            reading["absent"] = str(error)
            reading["mute"] = isinstance(error, TimeoutError)  # it is there, but does not answer
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


# --- links ---


def listen(arguments: dict[str, Any]) -> dict[str, Any]:
    """Answer one measurement that knows `token`, on the first of `ports` that is free; give up after `timeout`.

    `caller`: its address and ports, to see whether it can be reached from here.
    """
    token = arguments["token"].encode()
    deadline = time.monotonic() + arguments["timeout"]
    with first_free(arguments["address"], arguments["ports"]) as server:
        while time.monotonic() < deadline:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                sock, _ = server.accept()
            except TimeoutError:
                break
            with sock:
                if _is_ours(sock, token):
                    _be_measured(sock)
                    _call_back(sock, token, arguments["caller"])
                    return _be_a_hop(server, token, arguments["message"])
    return {"error": "nobody called"}


def _call_back(sock: socket.socket, token: bytes, caller: dict[str, Any]) -> None:
    """Once the caller listens: say "+" if it is reached from here, else "-". With another token, as on one machine its
    second port may be our first."""
    _exactly(sock, 1)
    found = _find(caller["address"], caller["ports"], token[::-1], time.monotonic() + BACK)
    if not isinstance(found, str):
        found[0].close()
    sock.sendall(b"-" if isinstance(found, str) else b"+")


def _be_called_back(sock: socket.socket, token: bytes, place: dict[str, Any]) -> bool:
    try:
        server = first_free(place["address"], place["ports"])
    except OSError:
        return False
    with server:
        sock.sendall(b".")
        while True:
            ready, _, _ = select.select([server, sock], [], [], CALLED_BACK)
            if sock in ready or not ready:
                return bool(ready) and _exactly(sock, 1) == b"+"
            with server.accept()[0] as stranger:
                _is_ours(stranger, token[::-1])


def _be_a_hop(server: socket.socket, token: bytes, sizes: list[int]) -> dict[str, Any]:
    """The second part, over two more connections of the same caller: one in, one out."""
    from .hop import answer

    server.settimeout(PARTNER)
    with contextlib.ExitStack() as stack:
        socks: list[socket.socket] = []
        while len(socks) < 2:
            sock = stack.enter_context(server.accept()[0])  # empty once TLS has taken it over
            if _is_ours(sock, token):
                socks.append(sock)
        answer(socks[0], socks[1], max(sizes))
    return {"ok": True}


def _is_ours(sock: socket.socket, token: bytes) -> bool:
    """Greet a caller; a stranger does not end the waiting."""
    try:
        sock.settimeout(STRANGER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _exactly(sock, len(token)) != token:
            return False
        sock.settimeout(10)
        sock.sendall(b"+")
    except OSError:
        return False
    return True


def first_free(address: str, ports: Iterable[int]) -> socket.socket:
    failure: OSError | None = None
    for port in ports:
        for place in (address, ""):
            try:
                return socket.create_server((place, port))
            except OSError as error:
                failure = error
    raise OSError(f"no port to measure on: {failure}")


def _be_measured(sock: socket.socket) -> None:
    for _ in range(ECHOES):
        sock.sendall(_exactly(sock, 1))
    warm = float(_exactly(sock, 16))
    rate = _receive_burst(sock, warm)
    sock.sendall(f"{rate:<32.3f}".encode())
    _send_burst(sock, warm)
    _exactly(sock, 1)


def call(arguments: dict[str, Any]) -> dict[str, Any]:
    """Measure to a host that listens: {"rtt": s, "up": bytes/s, "down": bytes/s, "both": is this host reached from
    there, at its own place `caller`; "echo", "there", "back": as hop.ask has them for `message`, (bytes of a small and
    a large one)}, or {"error"}."""
    deadline, token = time.monotonic() + arguments["timeout"], arguments["token"].encode()
    found = _find(arguments["address"], arguments["ports"], token, deadline)
    if isinstance(found, str):
        return {"error": found}
    sock, place = found
    try:
        with sock:
            link = _measure(sock)
            link["both"] = _be_called_back(sock, token, arguments["caller"])
        return {**link, **_hop(place, token, arguments["message"])}
    except OSError as error:
        return {"error": f"the measurement broke off: {error}"}


def _find(address: str, ports: list[int], token: bytes, deadline: float) -> tuple[socket.socket, tuple[str, int]] | str:
    """A connection to who listens with this token, and where; or why there is none."""
    failure = "nobody listened"
    while time.monotonic() < deadline:
        for port in ports:
            try:
                return _greeted((address, port), token, 2.0), (address, port)
            except OSError as error:
                failure = str(error)
        time.sleep(0.05)
    return failure


def _greeted(place: tuple[str, int], token: bytes, timeout: float) -> socket.socket:
    sock = socket.create_connection(place, timeout=timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(token)
        if _exactly(sock, 1) != b"+":
            raise OSError("somebody else listens there")
    except BaseException:
        sock.close()
        raise
    return sock


def _hop(place: tuple[str, int], token: bytes, sizes: list[int]) -> dict[str, float]:
    from .hop import ask

    with _greeted(place, token, PARTNER) as out, _greeted(place, token, PARTNER) as back:
        return ask(out, back, (min(sizes), max(sizes)))


def _measure(sock: socket.socket) -> dict[str, Any]:
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
    store[0] = 1
    while store[0]:
        filled = 0
        while filled < PIECE:
            got = sock.recv_into(memoryview(store)[filled:])
            if not got:
                raise OSError("the other end went")
            filled += got
            now = time.perf_counter()
            if since is None and now - start > warm:
                since, count = now, -got  # what has just arrived is where counting begins
            count += got
    return count / max(now - (since or start), 1e-6)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise OSError("the other end went")
        data += piece
    return data
