"""How long it will take to send what is missing, and what hosts had better give each other: from links as profiled.

Must not know: hosts' state, how anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgesplit.broadcast.transition import SEALED, Need, Phase, Presence, Step
from edgesplit.fleet import Fleet
from edgesplit.inventory import Inventory

SSH_RATE = 150e6  # bytes per second that a core of a small machine encrypts, hashes and writes (decision 0020)


PEER_RATE = 200e6  # bytes per second that a core opens, hashes, seals again and writes: assumed, on the careful side
WORTH = 1.0  # seconds that must be gained by asking a peer: to begin with, two programs start


def shipping(steps: Iterable[Step], fleet: Fleet, inventory: Inventory) -> dict[str, float]:
    """Host -> seconds until it has what it is sent, if all the link is ours. Hosts are sent to side by side."""
    return {
        step.host: step.size / rate(step.host, fleet, inventory)
        + sum(gift.size / _between(gift.peer, step.host, fleet) for gift in step.gifts)
        for step in steps
        if step.phase is Phase.SHIP and (step.size or step.gifts)
    }


def from_peers(
    presences: Mapping[str, Presence], needs: Mapping[str, Need], fleet: Fleet, runner: str
) -> dict[str, dict[str, str]]:
    """Host -> weights it lacks -> which peer gives them: one that has them, and the runner, where the way from there is
    so much faster than ours that it is worth it. Of a host to which our own way was not measured, nothing."""
    able = [peer for peer, presence in presences.items() if runner in presence.objects]
    found = {}
    for host, need in needs.items():
        missing = {path: size for path, size in presences[host].missing(need).items() if path.startswith(SEALED)}
        ours = min(SSH_RATE, fleet.uplinks.get(host, 0.0))
        if not ours or not missing:
            continue
        given: dict[str, dict[str, int]] = {}
        for path, size in missing.items():
            peers = {peer: _between(peer, host, fleet) for peer in able if path in presences[peer].objects}
            if peers:
                given.setdefault(max(peers, key=lambda peer: (peers[peer], peer)), {})[path] = size
        found[host] = {
            path: peer
            for peer, paths in given.items()
            if (way := _between(peer, host, fleet)) and sum(paths.values()) * (1 / ours - 1 / way) > WORTH
            for path in paths
        }
    return found


def _between(peer: str, host: str, fleet: Fleet) -> float:
    """Bytes per second; 0 where there is no way."""
    link = fleet.links.get(peer, {}).get(host)
    return min(PEER_RATE, link.bandwidth) if link is not None else 0.0


def rate(host: str, fleet: Fleet, inventory: Inventory) -> float:
    """Bytes per second from here: as measured, else the link of a host that is this very machine, else the best that is
    known of it."""
    into = {source: row[host].bandwidth for source, row in fleet.links.items() if host in row}
    here = [rate for source, rate in into.items() if _is_here(source, inventory)]
    return min(SSH_RATE, fleet.uplinks.get(host) or max(here or into.values(), default=SSH_RATE))


def _is_here(host: str, inventory: Inventory) -> bool:
    return host in inventory.hosts and inventory.hosts[host].connection == "local"
