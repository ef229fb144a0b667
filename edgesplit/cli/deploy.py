"""edgesplit deploy: bring the planned split up, or change what runs into it."""

from __future__ import annotations

from typing import Annotated

import typer

from edgesplit.cli.options import AcceptNew, DryRun, Inventory, Json, Plan, Yes


def run(
    plan: Plan,
    inventory: Inventory = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="With --dry-run: end with 10 where there is something to do.")
    ] = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Push shards and runners over SSH and bring the planned split up; all hosts change together, or none."""
    from edgesplit.broadcast.scene import look, settled
    from edgesplit.cli.change import Change, Manner
    from edgesplit.cli.render import talk, tell
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import InputError
    from edgesplit.hosts.fanout import connect

    if detailed_exitcode and not dry_run:
        raise InputError("--detailed-exitcode says what --dry-run found", "give both")
    space, manner = Workspace.open(plan, inventory), Manner(yes, dry_run, as_json, detailed_exitcode)
    target = space.split()
    cargo = space.cargo()
    tell(cargo.checkpoint.notes)
    with connect(space.inventory, accept_new=accept_new) as hosts:
        fleet = space.fleet()
        scene = look(cargo, hosts, fleet)
        if settled(cargo, scene, target):
            manner.report({"changed": False, "epoch": scene.running.epoch if scene.running else 0})
            talk.print(f"nothing to do: {space.plan.name} serves this very split")
            return
        Change(cargo, target, "deploy", fleet).carry_out(hosts, scene, manner)
    api = space.plan.api
    encodes = space.checkpoint.chain.kind == "encoder"
    embeddings = f"it answers http://{api.address}:{api.port}/v1/embeddings"
    generate = f"next: {space.command('generate', 'Hello')}"
    talk.print(embeddings if encodes else generate, soft_wrap=True)
