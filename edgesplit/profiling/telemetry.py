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
    """Readings of all hosts; a thread for each waits for its lines. `clock`: seconds since the epoch."""

    def __init__(
        self,
        hosts: Mapping[str, Host],
        inventory: Inventory,
        name: str,
        interval: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._inventory, self._name, self._interval, self._clock = inventory, name, interval, clock
        self._over = threading.Event()
        self._come = threading.Condition()
        self._heard: dict[str, Heard] = {}
        self._open: dict[str, Lines] = {}
        self._threads = [
            threading.Thread(target=self._follow, args=(host,), name=f"telemetry {host.name}", daemon=True)
            for host in hosts.values()
        ]

    def __enter__(self) -> Telemetry:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with self._come:
            channels = list(self._open.values())
        for lines in channels:
            lines.close()
        for thread in self._threads:
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

    def _follow(self, host: Host) -> None:
        while not self._over.is_set():
            try:
                self._listen(host)
                why = "its readings ended"
            except (HostError, NoProfile) as error:
                why = str(error).removeprefix(f"{host.name}: ")
            self._put(host.name, why)
            self._over.wait(AGAIN)

    def _listen(self, host: Host) -> None:
        spec = self._inventory.hosts[host.name]
        command = probes.stream(spec, f"{spec.work}/{self._name}", self._interval)
        silence = max(LEAST_SILENCE, SILENCES * self._interval)
        lines = host.stream(command, runner_archive().data, silence)
        with self._come:
            self._open[host.name] = lines
        if self._over.is_set():
            lines.close()
        for line in lines:
            self._put(host.name, probes.parse_reading(line))

    def _put(self, name: str, what: Reading | str) -> None:
        with self._come:
            self._heard[name] = Heard(self._clock(), what)
            self._come.notify_all()
