"""How long it will take to send what is missing: a forecast, from links as they were profiled.

Must not know: hosts' state, how anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgesplit.broadcast.transition import Phase, Step
from edgesplit.fleet import Fleet
from edgesplit.inventory import Inventory

SSH_RATE = 150e6  # bytes per second that a core of a small machine encrypts, hashes and writes (decision 0020)


def shipping(steps: Iterable[Step], fleet: Fleet, inventory: Inventory) -> dict[str, float]:
    """Host -> seconds until it has what it is sent, if all the link is ours. Hosts are sent to side by side."""
    return {
        step.host: step.size / rate(step.host, fleet, inventory)
        for step in steps
        if step.phase is Phase.SHIP and step.size
    }


def rate(host: str, fleet: Fleet, inventory: Inventory) -> float:
    """Bytes per second from here: the link of a host that is this very machine, else the best that is known of it."""
    into = {source: row[host].bandwidth for source, row in fleet.links.items() if host in row}
    here = [rate for source, rate in into.items() if _is_here(source, inventory)]
    return min(SSH_RATE, max(here or into.values(), default=SSH_RATE))


def _is_here(host: str, inventory: Inventory) -> bool:
    return host in inventory.hosts and inventory.hosts[host].connection == "local"
