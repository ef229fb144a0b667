"""Take a deployment off its hosts, from nothing but their names and its own: runner, shards, keys, everything.

Must not know: the model, splits.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgesplit.errors import CommandFailed, FleetError, HostError, MovedError
from edgesplit.hosts import commands, systemd
from edgesplit.hosts.fanout import survey
from edgesplit.hosts.host import Host
from edgesplit.inventory import Inventory


def take_down(
    name: str, inventory: Inventory, hosts: Mapping[str, Host], note: str
) -> tuple[dict[str, bool], dict[str, HostError]]:
    """(host -> was anything there, host -> why it could not be cleared). Raises MovedError when a lock is held.

    Whoever is interrupted leaves no lock behind.
    """
    there: dict[str, bool] = {}

    def folder(host: Host) -> str:
        return f"{inventory.hosts[host.name].work}/{name}"

    def lock(host: Host) -> None:
        found = bool(host.run(commands.survey(folder(host))))
        host.run(commands.lock(folder(host), note))
        there[host.name] = found

    def clear(host: Host) -> None:
        host.run(systemd.stop(systemd.unit_name(host.name, name)), timeout=60)
        host.run(commands.stop_runner(folder(host), host.name, name), timeout=60)
        host.run(commands.remove(folder(host)))
        host.run(commands.remove_empty(inventory.hosts[host.name].work))

    def give_back(host: Host) -> None:
        host.run(commands.unlock(folder(host)) if there[host.name] else commands.remove(folder(host)))
        host.run(commands.remove_empty(inventory.hosts[host.name].work))

    # every lock first: a watcher that is just moving blocks would bring the deployment back behind our back
    try:
        _, errors = survey(hosts, lock)
        for error in errors.values():
            if isinstance(error, CommandFailed) and error.status == commands.LOCKED:
                raise MovedError(f"{error.host} is locked by {error.stderr.strip()}", commands.LOCK_HINT)
        _, more = survey({host: hosts[host] for host in hosts if host in there}, clear)
    except BaseException:
        survey({host: hosts[host] for host in there}, give_back)
        raise
    return {host: there[host] for host in hosts if host in there}, {**errors, **more}


def remove_environments(inventory: Inventory, hosts: Mapping[str, Host]) -> tuple[dict[str, str], dict[str, HostError]]:
    """(host -> the deployments for which its environments stay, host -> why they could not be removed)."""

    def remove(host: Host) -> str:
        spec = inventory.hosts[host.name]
        left = host.run(commands.remove_environments(spec.work, spec.environments), timeout=300)
        host.run(commands.remove_empty(spec.work))
        return ", ".join(left.split())

    return survey(hosts, remove)


def break_locks(name: str, inventory: Inventory, hosts: Mapping[str, Host]) -> dict[str, str]:
    """Remove the deployment's lock wherever it is, and end a watch; host -> who had it.

    Raises MovedError when none is held, FleetError when none is found and some host does not answer.
    """

    def open_up(host: Host) -> str:
        folder = f"{inventory.hosts[host.name].work}/{name}"
        watcher = host.run(commands.oust(folder)).strip()
        try:
            note = host.run(commands.read(f"{folder}/lock/note")).strip()
        except CommandFailed:
            return watcher
        host.run(commands.audited(folder, f"lock broken: it was held by {note}", commands.unlock(folder)))
        return note

    found, errors = survey(hosts, open_up)
    broken = {host: note for host, note in found.items() if note}
    if errors and not broken:
        raise FleetError(list(errors.values()))
    if not broken:
        raise MovedError(f"no host holds a lock of {name}", "there is nothing to unlock")
    return broken
