"""edgesplit deploy: bring the planned split up, or change what runs into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan, Yes

if TYPE_CHECKING:
    from edgesplit.broadcast.transition import Step


def run(
    plan: Plan,
    inventory: Inventory = None,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps, do nothing.")] = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Push shards and runners over SSH and bring the planned split up; all hosts change together, or none."""
    import time

    from edgesplit.broadcast.push import look, push, settled
    from edgesplit.broadcast.transition import transition
    from edgesplit.cli.render import ask, bars, talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import DeployError
    from edgesplit.hosts.fanout import connect

    space = Workspace.open(plan, inventory)
    target = space.split()
    with talk.status("naming the shards ..."):
        cargo = space.cargo()
    with connect(space.inventory, accept_new=accept_new) as hosts:
        scene = look(cargo, hosts)
        if settled(cargo, scene, target):
            _report(as_json, {"changed": False, "epoch": scene.running.epoch if scene.running else 0})
            talk.print(f"nothing to do: {space.plan.name} serves this very split")
            return
        steps = transition(scene.running, target.at(scene.next_epoch), scene.presences, cargo.needs(target))
        _announce(steps, every=dry_run or not yes)
        if dry_run:
            _report(as_json, {"changed": False, "steps": [str(step) for step in steps]})
            return
        if not yes:
            ask("Go ahead?")
        start = time.monotonic()
        try:
            with bars() as progress:
                pushed = push(cargo, target, hosts, scene, progress, reason="deploy")
        except DeployError as error:
            raise DeployError(error.message, error.hint or "mend that, then deploy again") from error
    seconds = time.monotonic() - start
    told = {"epoch": pushed.split.epoch, "seconds": seconds, "warnings": list(pushed.warnings)}
    _report(as_json, {"changed": True, **told, "steps": [str(step) for step in steps]})
    for warning in pushed.warnings:
        talk.print(f"warning: {warning}", style="yellow")
    address = f"http://{space.plan.api.address}:{space.plan.api.port}/v1"
    talk.print(
        f"epoch {pushed.split.epoch} serves after {seconds:.1f} s: {address} on {space.plan.entry}", soft_wrap=True
    )
    encodes = space.checkpoint.chain.kind == "encoder"
    talk.print(
        f"it answers {address}/embeddings" if encodes else f"next: edgesplit generate {plan} 'Hello'", soft_wrap=True
    )


def _announce(steps: tuple[Step, ...], *, every: bool) -> None:
    """What will be done: `every` step where somebody decides on it, else the bytes only: steps show as they end."""
    from edgesplit.broadcast.transition import Phase
    from edgesplit.cli.render import talk
    from edgesplit.units import format_size

    if every:
        talk.print("This will:")
    for step in steps if every else ():
        if step.phase not in (Phase.LOCK, Phase.UNLOCK):
            talk.print(f"  {step}")
    total = sum(step.size for step in steps)
    talk.print(f"{format_size(total)} to send." if total else "Nothing to send.")


def _report(as_json: bool, data: dict[str, object]) -> None:
    from edgesplit.cli.render import print_json

    if as_json:
        print_json(data)
