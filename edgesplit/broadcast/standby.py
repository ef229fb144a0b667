"""Bring weights ahead to hosts that may need them next, and have a runner up there: a failover then only loads.

Nothing of it is in the way of anything: a host whose lock is held is left alone, and whoever wants to act interrupts.
Must not know: which moves are likely, what serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from edgesplit.broadcast.authority import Secrets, shard_key
from edgesplit.broadcast.cargo import Cargo, shard_path
from edgesplit.broadcast.environment import ensure
from edgesplit.broadcast.keyring import introduce, secrets_of
from edgesplit.broadcast.note import Errand, signature
from edgesplit.broadcast.remote import present
from edgesplit.broadcast.ship import Shipment
from edgesplit.broadcast.starting import start
from edgesplit.broadcast.transition import Need
from edgesplit.errors import CommandFailed, HostError
from edgesplit.hosts import commands
from edgesplit.hosts.fanout import survey
from edgesplit.hosts.host import Host
from edgesplit.hosts.leaving import LEAVING, firm
from edgesplit.units import format_size

Blocks = tuple[int, ...]


@dataclass(frozen=True)
class Supply:
    """`wanted`: host -> blocks that are to lie there. `share`: of a host's free disk, what may be taken. `sent` is told
    the host and how many bytes have just left; it may wait, and may raise to interrupt. `hosts` may have an exit."""

    cargo: Cargo
    hosts: Mapping[str, Host]
    wanted: Mapping[str, Blocks]
    share: float
    sent: Callable[[str, int], None]
    errand: Errand

    def carry_out(self) -> tuple[dict[str, Blocks], dict[str, HostError]]:
        """(host -> the blocks that are there now, host -> what went wrong). Raises HostError of the entry."""
        entry = self.hosts[self.cargo.plan.entry]
        secrets = secrets_of(entry, self.cargo.folder(entry.name))
        there = {name: self.hosts[name] for name in self.wanted if name in self.hosts}
        return survey(there, lambda host: self._host(host, secrets))

    def _need(self, host: str) -> Need:
        cargo = self.cargo
        shards = {cargo.cut.common.sha256, *(cargo.cut.blocks[block].sha256 for block in self.wanted[host])}
        files = {f"files/{sha}" for sha, _ in cargo.cut.files.values()}
        paths = {cargo.archive.name, *map(shard_path, shards), *files}
        return Need({path: cargo.things[path].size for path in paths})

    def _host(self, host: Host, secrets: Secrets) -> Blocks:
        cargo, folder, spec = self.cargo, self.cargo.folder(host.name), self.cargo.inventory.hosts[host.name]
        presence, state = present(host, folder, spec)
        missing = presence.missing(self._need(host.name))
        if not missing and state is not None:
            return cargo.blocks_in(presence.objects)
        free = int(host.run(commands.free_space(folder)).strip() or 0)
        size = sum(missing.values())
        if size > self.share * free:
            told = f"no room to bring weights ahead: {format_size(size)}, and {self.share:.0%} of the "
            hint = f"free some in {folder}, or set `watch.standby` higher"
            raise HostError(host.name, f"{told}{format_size(free)} free may be taken", hint)
        try:
            host.run(commands.lock(folder, self.errand.note, self.errand.ours))
        except CommandFailed as error:
            if error.status == commands.LOCKED:
                return cargo.blocks_in(presence.objects)
            raise
        try:
            host.run(commands.audit(folder, signature(f"standby: {len(missing)} objects, {format_size(size)}")))
            ensure(host, spec, lambda _: None)
            introduce(host, folder, secrets, running=state is not None)
            things = [cargo.things[path] for path in missing]
            Shipment(
                host,
                spec,
                folder,
                cargo.archive.name,
                things,
                partial(self.sent, host.name),
                partial(shard_key, secrets),
                dict(presence.parts),
            ).carry_out()
            if state is None:
                start(cargo, host, lambda: self.sent(host.name, 0))
        finally:
            firm(host).run(commands.unlock(folder), timeout=LEAVING)
        return cargo.blocks_in({*presence.objects, *missing})


class Gently:
    """Waits so long that no more than a rate (bytes per second, per host) is sent, as long as there is one."""

    def __init__(self, rate: Callable[[str], float | None]) -> None:
        self._rate = rate
        self._last: dict[str, float] = {}

    def __call__(self, host: str, size: int) -> None:
        rate, now = self._rate(host), time.monotonic()
        if rate is not None:
            time.sleep(max(0.0, size / rate - (now - self._last.get(host, now))))
        self._last[host] = time.monotonic()
