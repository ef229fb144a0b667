"""One channel per host, kept open, through which readings come by themselves: monitoring while a deployment serves.

Opened again when it breaks. A host that cannot be heard holds up nobody.
Must not know: what readings mean, nor whether a silent host is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

from edgesplit.broadcast.archive import runner_archive
from edgesplit.broadcast.cargo import Cargo
from edgesplit.errors import HostError
from edgesplit.hosts.host import Host
from edgesplit.hosts.lines import Lines
from edgesplit.inventory import Inventory
from edgesplit.profiling import probes
from edgesplit.profiling.capacity import Heard
from edgesplit.profiling.probes import NoProfile, Reading

SILENCES = 3  # intervals without a line after which a channel is given up ...
LEAST_SILENCE = 10.0  # ... but not before so many seconds: a busy board takes some to start Python
AGAIN = 2.0  # seconds before a channel that broke is opened again


class Telemetry:
    """Readings of all hosts; a thread for each waits for its lines. `clock`: seconds since the epoch.

    `watcher`: (host, note): who reads that host's readings claims to be the only one that watches; `rival`: the note of
    another one, who was first."""

    def __init__(
        self,
        hosts: Mapping[str, Host],
        cargo: Cargo,
        watcher: tuple[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._inventory, self._name, self._clock = cargo.inventory, cargo.name, clock
        self._interval, self._watcher = cargo.plan.watch.interval, watcher
        self.rival = ""
        self._come = threading.Condition()
        self._heard: dict[str, Heard] = {}
        self._open: dict[str, Lines] = {}
        self._first = tuple(hosts.values())
        self._threads: dict[str, tuple[threading.Thread, threading.Event]] = {}

    def __enter__(self) -> Telemetry:
        for host in self._first:
            self.follow(host, self._inventory)
        return self

    def follow(self, host: Host, inventory: Inventory) -> None:
        """Hear this host too."""
        self._inventory, over = inventory, threading.Event()
        thread = threading.Thread(target=self._follow, args=(host, over), name=f"telemetry {host.name}", daemon=True)
        self._threads[host.name] = thread, over
        thread.start()

    def forget(self, name: str) -> None:
        """Hear this host no more."""
        _, over = self._threads.pop(name)
        over.set()
        with self._come:
            lines = self._open.pop(name, None)
        if lines is not None:
            lines.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        threads = [thread for thread, _ in self._threads.values()]
        for name in list(self._threads):
            self.forget(name)
        for thread in threads:
            thread.join(AGAIN)  # one that is connecting ends by itself

    def take(self, seconds: float, of: Iterable[str] = ()) -> dict[str, Heard]:
        """The newest of each host since the last time; waits for hosts `of` which nothing has come, for so long."""
        deadline = time.monotonic() + seconds
        wanted = set(of)
        with self._come:
            while not wanted <= set(self._heard) and (left := deadline - time.monotonic()) > 0:
                self._come.wait(left)
            heard, self._heard = self._heard, {}
        return heard

    # --- in a host's thread ---

    def _follow(self, host: Host, over: threading.Event) -> None:
        while not over.is_set():
            try:
                self._listen(host, over)
                why = "its readings ended"
            except (HostError, NoProfile) as error:
                why = str(error).removeprefix(f"{host.name}: ")
            if not over.is_set():
                self._put(host.name, why)
            over.wait(AGAIN)

    def _listen(self, host: Host, over: threading.Event) -> None:
        spec = self._inventory.hosts[host.name]
        claim = self._watcher[1] if self._watcher and self._watcher[0] == host.name else ""
        command = probes.stream(spec, f"{spec.work}/{self._name}", self._interval, claim)
        silence = max(LEAST_SILENCE, SILENCES * self._interval)
        lines = host.stream(command, runner_archive().data, silence)
        with self._come:
            self._open[host.name] = lines
        if over.is_set():
            lines.close()
        for line in lines:
            self.rival = probes.parse_rival(line) or self.rival
            if not self.rival:
                self._put(host.name, probes.parse_reading(line))

    def _put(self, name: str, what: Reading | str) -> None:
        with self._come:
            self._heard[name] = Heard(self._clock(), what)
            self._come.notify_all()
