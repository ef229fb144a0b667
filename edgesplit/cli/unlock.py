"""edgesplit unlock: break the lock of a controller that is gone."""

from __future__ import annotations

from edgesplit.cli.options import AcceptNew, Inventory, Plan, Yes


def run(plan: Plan, inventory: Inventory = None, yes: Yes = False, accept_new: AcceptNew = False) -> None:
    """Break the deployment's lock on all hosts; only when the controller that took it is gone."""
    from edgesplit.broadcast.teardown import break_locks
    from edgesplit.cli.render import ask, talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.hosts.fanout import connect

    space = Workspace.open(plan, inventory)
    if not yes:
        ask("Is the controller that holds the lock really gone?")
    with connect(space.inventory, accept_new=accept_new) as hosts:
        for host, note in break_locks(space.plan.name, space.inventory, hosts).items():
            talk.print(f"{host}: unlocked; it was held by {note}")
