"""edgesplit down: take a deployment off its hosts."""

from __future__ import annotations

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan, Yes


def run(
    plan: Plan, inventory: Inventory = None, yes: Yes = False, accept_new: AcceptNew = False, as_json: Json = False
) -> None:
    """Stop the runners and remove every trace of the deployment from all hosts."""
    from edgesplit.broadcast.note import signature
    from edgesplit.broadcast.teardown import take_down
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
    if as_json:
        print_json({"removed": found, "errors": {host: error.message for host, error in errors.items()}})
    for host, there in found.items():
        talk.print(f"{host}: {'removed' if there else 'nothing was there'}")
    if errors:
        raise FleetError(list(errors.values()))
