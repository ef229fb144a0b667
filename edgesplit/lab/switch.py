"""The lab's switch: one process that holds the other end of every host's cable, and passes on what comes, when due.

Told what to do through a Unix socket: one message is a JSON list of acts, its answer a list of what they returned, or
{"error"}. It ends when its socket is taken away. Its argument is a JSON object: socket, its own group.
Standard library only.
Must not know: hosts, YAML; a port is a name with a cable.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

from edgesplit.lab.cgroup import opened
from edgesplit.lab.control import MESSAGE, SO_SNDBUFFORCE
from edgesplit.lab.daemon import detach
from edgesplit.lab.namespaces import allow_large, open_tap
from edgesplit.lab.switching import Core, Link

LARGEST = 2**16 + 64  # bytes of a frame with its header
BATCH = 32  # frames taken from one port before the others have their turn
EARLY = 30e-6  # seconds; to be woken and to write takes about as long
PRIORITY = 20  # of SCHED_FIFO, 1 to 99: before any ordinary process, behind the kernel's own threads
STILL_THERE = 1.0  # seconds between two looks whether the socket is still there


class Switch:
    def __init__(self, path: Path) -> None:
        self._core = Core(random.random)
        self._taps: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._path = path
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.bind(str(path))
        self._server.listen()
        self._server.setblocking(False)
        self._clients: dict[int, socket.socket] = {}
        self._buffer = bytearray(LARGEST)
        self._first = memoryview(self._buffer)
        self.realtime = _first_in_line()

    # --- frames ---

    def serve(self) -> None:
        look = 0.0
        while True:
            now = time.monotonic()
            if now > look:
                if not self._path.exists():
                    return
                look = now + STILL_THERE
            self._deliver(now)
            wait = self._core.wait(now)
            ready, _, _ = select.select(self._watched(), (), (), STILL_THERE if wait is None else max(0, wait - EARLY))
            for descriptor in ready:
                if descriptor in self._names:
                    self._take(descriptor)
                else:
                    self._listen(descriptor)

    def _watched(self) -> list[int]:
        return [*self._names, *self._clients, self._server.fileno()]

    def _take(self, tap: int) -> None:
        source = self._names[tap]
        for _ in range(BATCH):
            try:
                size = os.readv(tap, [self._buffer])
            except OSError:  # nothing more, or the interface is down
                break
            self._core.accept(time.monotonic(), source, bytes(self._first[:size]))
        self._deliver(time.monotonic())

    def _deliver(self, now: float) -> None:
        for target, frame in self._core.due(now + EARLY):
            try:
                os.write(self._taps[target], frame)
            except OSError:  # the interface is down, or full: then a frame is lost, as on any wire
                continue

    # --- what it is told ---

    def _listen(self, descriptor: int) -> None:
        if descriptor == self._server.fileno():
            client, _ = self._server.accept()
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, MESSAGE)
            self._clients[client.fileno()] = client
            return
        client = self._clients[descriptor]
        try:
            message = client.recv(MESSAGE)
            if message:
                client.send(json.dumps(self._answer(message)).encode())
                return
        except OSError:  # it went without waiting for its answer
            pass
        del self._clients[descriptor]
        client.close()

    def _answer(self, message: bytes) -> Any:
        try:
            return [self._act(**act) for act in json.loads(message)]
        except (OSError, KeyError, TypeError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _act(self, act: str, **arguments: Any) -> Any:
        return getattr(self, f"act_{act}")(**arguments)

    def act_attach(self, port: str, mac: str, network: str | None, interface: str) -> None:
        tap = open_tap(network, interface)
        self._taps[port], self._names[tap] = tap, port
        self._core.attach(port, bytes.fromhex(mac.replace(":", "")))
        allow_large(tap, large=not self._core.lossy(port))

    def act_detach(self, port: str) -> None:
        tap = self._taps.pop(port, None)
        if tap is None:  # a start was broken off before it came to that
            return
        del self._names[tap]
        self._core.detach(port)
        os.close(tap)

    def act_plug(self, port: str, plugged: bool) -> None:
        self._core.plug(port, in_=plugged)

    def act_link(self, source: str, target: str, link: dict[str, Any]) -> None:
        self._core.set_link(source, target, Link(**link))
        if source in self._taps:
            allow_large(self._taps[source], large=not self._core.lossy(source))

    def act_state(self) -> dict[str, Any]:
        used = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
        return {**self._core.state(), "pid": os.getpid(), "realtime": self.realtime, "cpu_seconds": used}


def _first_in_line() -> bool:
    """Without it, the 2 ms round trip of a busy machine is 5 ms at its 95th percentile."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:  # a kernel that keeps real time from the group this process is in
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        return False
    return True


def main() -> None:
    told = json.loads(sys.argv[1])
    ready = detach()
    opened(told["group"]).enter(os.getpid())
    switch = Switch(Path(told["socket"]))
    ready()
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing here makes circles, and a collection would hold up frames
    switch.serve()


if __name__ == "__main__":
    main()
