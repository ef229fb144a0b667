"""edgesplit rotate: new keys for the ring that serves."""

from __future__ import annotations

from edgesplit.cli.options import AcceptNew, DryRun, Inventory, Json, Plan, Yes


def run(
    plan: Plan,
    inventory: Inventory = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Give every host of the ring a new key and certificate, under a new authority; requests under way go on.

    The same split comes up as the next epoch. Nothing is sent or loaded again, whatever the plan says by now.
    """
    from edgesplit.broadcast.recall import repeat
    from edgesplit.broadcast.scene import look
    from edgesplit.cli.change import Change, Manner
    from edgesplit.cli.workspace import Workspace
    from edgesplit.hosts.fanout import connect

    space = Workspace.open(plan, inventory)
    cargo = space.cargo()
    with connect(space.inventory, accept_new=accept_new) as hosts:
        scene = look(cargo, hosts)
        again = repeat(cargo, scene)
        Change(again, again.split, "rotate").carry_out(hosts, scene, Manner(yes, dry_run, as_json))
