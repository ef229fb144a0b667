"""edgesplit check: can these hosts be used, and what would each need?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import AcceptNew, Json

if TYPE_CHECKING:
    from edgesplit.inventory import Inventory
    from edgesplit.profiling.findings import Finding

File = Annotated[
    Path, typer.Argument(metavar="PLAN|INVENTORY", help="A plan or an inventory (YAML).", show_default=False)
]


def run(file: File, accept_new: AcceptNew = False, as_json: Json = False) -> None:
    """Ask every host at once what it lacks: login, Python, packages, disk, memory, clock, data port; change nothing."""
    from edgesplit.cli.render import print_json, talk
    from edgesplit.errors import FleetError, HostError
    from edgesplit.hosts.fanout import connect
    from edgesplit.profiling.checkup import check

    inventory = _inventory(file)
    with (
        connect(inventory, accept_new=accept_new) as hosts,
        talk.status(f"asking {len(inventory.hosts)} hosts ..."),
    ):
        found = check(hosts, inventory)
    if as_json:
        print_json({name: [finding.model_dump() for finding in one] for name, one in found.items()})
    else:
        _show(found)
    failed = [(name, finding) for name, one in found.items() for finding in one if not finding.ok]
    if failed:
        raise FleetError([HostError(name, f"{one.subject}: {one.found}") for name, one in failed])


def _inventory(file: Path) -> Inventory:
    from edgesplit.cli.workspace import Workspace
    from edgesplit.document import read
    from edgesplit.inventory import load_inventory

    if {"entry", "model"} & set(read(file)):
        return Workspace.open(file, None).inventory
    return load_inventory(file)


def _show(found: Mapping[str, tuple[Finding, ...]]) -> None:
    from edgesplit.cli.render import out, show

    rows = [
        [name, finding.subject, "yes" if finding.ok else "NO", finding.found, finding.do]
        for name, one in found.items()
        for finding in one
    ]
    show("Hosts", ["host", "what", "good", "found", "what to do"], rows)
    if all(finding.ok for one in found.values() for finding in one):
        out.print("all hosts can be used")
