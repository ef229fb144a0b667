"""edgesplit down: take a deployment off its hosts."""

from __future__ import annotations

from typing import Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan, Yes


def run(
    plan: Plan,
    inventory: Inventory = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove the Python environments too, where no other deployment is left.")
    ] = False,
    yes: Yes = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Stop the runners and remove every trace of the deployment from all hosts."""
    from edgesplit.broadcast.note import signature
    from edgesplit.broadcast.teardown import remove_environments, take_down
    from edgesplit.cli.render import ask, print_json, talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import FleetError
    from edgesplit.hosts.fanout import connect

    space = Workspace.open(plan, inventory)
    names = ", ".join(space.inventory.hosts)
    if not yes:
        ask(f"Take {space.plan.name} off {names}?")
    with connect(space.inventory, accept_new=accept_new) as hosts:
        found, errors = take_down(space.plan.name, space.inventory, hosts, signature("down"))
        kept: dict[str, str] = {}
        if everything:
            gone = {name: hosts[name] for name in found if name not in errors}
            kept, more = remove_environments(space.inventory, gone)
            errors = {**errors, **more}
    if as_json:
        print_json({"removed": found, "errors": {host: error.message for host, error in errors.items()}})
    for host, there in found.items():
        talk.print(f"{host}: {'removed' if there else 'nothing was there'}")
    for host, others in kept.items():
        if others:
            talk.print(f"{host}: its Python environment stays, for {others}")
    if errors:
        raise FleetError(list(errors.values()))
