"""An inventory that was changed while a deployment is watched: what is different, and whether it can be gone by.

Must not know: files, hosts but by name, what is done about it.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgesplit.errors import InputError
from edgesplit.inventory import HostSpec, Inventory
from edgesplit.split import Split
from edgesplit.values import Value


class Changes(Value):
    """`fresh`: hosts to be measured before they can be used; `gone`: hosts that are to be used no more."""

    texts: tuple[str, ...]
    fresh: tuple[str, ...]
    gone: tuple[str, ...]


def changes(old: Inventory, new: Inventory, running: Split) -> Changes:
    """Raises InputError for what needs another deployment."""
    if not new.hosts.get(running.entry, HostSpec(connection="local")).trusted:
        raise InputError(
            f"the entry {running.entry} is no longer trusted, and the text is there",
            "edgesplit down ends it; another trusted host may be the plan's entry",
        )
    other = [name for name in old.hosts if name in new.hosts and _place(old.hosts[name]) != _place(new.hosts[name])]
    for name in other:
        if name in running.hosts:
            raise InputError(
                f"{name} serves, and where or how it is reached has changed",
                "only `trusted`, `memory` and `labels` of a host that serves may change meanwhile",
            )
    gone = [name for name in old.hosts if name not in new.hosts]
    fresh = [name for name in new.hosts if name not in old.hosts]
    return Changes(
        texts=(*_told(old, new), *(f"{name} is gone" for name in gone), *(f"{name} is new" for name in fresh),
               *(f"{name} is another" for name in other)),
        fresh=(*fresh, *other),
        gone=(*gone, *other),
    )  # fmt: skip


def _place(spec: HostSpec) -> HostSpec:
    """All of a host that its runner, its profile or the way to it depend on."""
    return spec.model_copy(update={"trusted": False, "memory": None, "labels": {}})


def _told(old: Inventory, new: Inventory) -> Iterator[str]:
    for name, spec in new.hosts.items():
        before = old.hosts.get(name)
        if before is None:
            continue
        if before.trusted != spec.trusted:
            yield f"{name} is {'trusted' if spec.trusted else 'no longer trusted'}"
        if before.memory != spec.memory:
            yield f"{name} allows another amount of memory"


def together(new: Inventory, old: Inventory, running: Split) -> Inventory:
    """The new inventory, and hosts of the ring that it no longer names: they have still to be told to end."""
    left = {name: old.hosts[name] for name in running.hosts if name not in new.hosts}
    return Inventory.model_construct(hosts={**new.hosts, **left}) if left else new
