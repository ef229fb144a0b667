"""edgesplit rollback: back to the split that served before."""

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
    """Bring back what served before the present split, weights and all; once more, and the present one is back."""
    from edgesplit.broadcast.recall import recall
    from edgesplit.broadcast.scene import look
    from edgesplit.cli.change import Change, Manner
    from edgesplit.cli.render import talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.hosts.fanout import connect

    space = Workspace.open(plan, inventory)
    cargo = space.cargo()
    with connect(space.inventory, accept_new=accept_new) as hosts:
        scene = look(cargo, hosts)
        before = recall(cargo, hosts, scene)
        stages = ", ".join(f"{stage.host} {len(stage)}" for stage in before.split.stages)
        talk.print(f"back to the split of epoch {before.before.epoch}: blocks {stages}", soft_wrap=True)
        Change(before, before.split, "rollback").carry_out(hosts, scene, Manner(yes, dry_run, as_json))
