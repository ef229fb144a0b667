"""Take a deployment off its hosts, from nothing but their names and its own: runner, shards, keys, everything.

Must not know: the model, splits.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgesplit.errors import CommandFailed, HostError, MovedError
from edgesplit.hosts import commands
from edgesplit.hosts.fanout import survey
from edgesplit.hosts.host import Host
from edgesplit.inventory import Inventory


def take_down(
    name: str, inventory: Inventory, hosts: Mapping[str, Host]
) -> tuple[dict[str, bool], dict[str, HostError]]:
    """(host -> was anything there, host -> why it could not be cleared)."""

    def clear(host: Host) -> bool:
        spec = inventory.hosts[host.name]
        folder = f"{spec.work}/{name}"
        found = host.run(commands.survey(folder)).splitlines()
        if not found:
            return False
        if "lock/note" in found:
            note = host.run(commands.read_if_there(f"{folder}/lock/note")).strip()
            raise HostError(host.name, f"locked by {note}", "wait for it, or if that controller is gone: edgesplit unlock")
        host.run(commands.stop_runner(folder, host.name, name), timeout=60)
        host.run(commands.remove(folder))
        host.run(commands.remove_empty(spec.work))
        return True

    return survey(hosts, clear)


def break_locks(name: str, inventory: Inventory, hosts: Mapping[str, Host]) -> dict[str, str]:
    """Remove the deployment's lock wherever it is; host -> the note it held. Raises MovedError when none is held."""

    def open_up(host: Host) -> str:
        folder = f"{inventory.hosts[host.name].work}/{name}"
        try:
            note = host.run(commands.read(f"{folder}/lock/note")).strip()
        except CommandFailed:
            return ""
        host.run(commands.unlock(folder))
        host.run(commands.audit(folder, f"lock broken: it was held by {note}"))
        return note

    found, _ = survey(hosts, open_up)
    broken = {host: note for host, note in found.items() if note}
    if not broken:
        raise MovedError(f"no host holds a lock of {name}")
    return broken
