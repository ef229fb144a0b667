"""edgesplit deploy: bring the planned split up, or change what runs into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan, Yes

if TYPE_CHECKING:
    from edgesplit.broadcast.push import Pushed
    from edgesplit.broadcast.transition import Step
    from edgesplit.cli.workspace import Workspace


SOMETHING_TO_DO = 10  # exit code of --detailed-exitcode; 0 is nothing to do, and 1 to 8 are errors


def run(
    plan: Plan,
    inventory: Inventory = None,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps, do nothing.")] = False,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="With --dry-run: end with 10 where there is something to do.")
    ] = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Push shards and runners over SSH and bring the planned split up; all hosts change together, or none."""
    import time

    from edgesplit.broadcast.forecast import shipping
    from edgesplit.broadcast.push import push, steps_to
    from edgesplit.broadcast.scene import look, settled
    from edgesplit.cli.render import ask, bars, talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import DeployError, InputError
    from edgesplit.hosts.fanout import connect

    if detailed_exitcode and not dry_run:
        raise InputError("--detailed-exitcode says what --dry-run found", "give both")
    space = Workspace.open(plan, inventory)
    target = space.split()
    with talk.status("naming the shards ..."):
        cargo = space.cargo()
    with connect(space.inventory, accept_new=accept_new) as hosts:
        fleet = space.fleet()
        scene = look(cargo, hosts, fleet)
        if settled(cargo, scene, target):
            _report(as_json, {"changed": False, "epoch": scene.running.epoch if scene.running else 0})
            talk.print(f"nothing to do: {space.plan.name} serves this very split")
            return
        steps = steps_to(cargo, target.at(scene.next_epoch), scene)
        forecast = shipping(steps, fleet, space.inventory)
        _announce(steps, forecast, every=dry_run or not yes)
        if dry_run:
            ships = [step for step in steps if step.size or step.gifts]
            send = {step.host: {"bytes": step.size, "seconds": forecast[step.host]} for step in ships}
            _report(as_json, {"changed": False, "steps": [str(step) for step in steps], "send": send})
            raise typer.Exit(SOMETHING_TO_DO if detailed_exitcode else 0)
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
    _conclude(space, pushed, seconds)


def _conclude(space: Workspace, pushed: Pushed, seconds: float) -> None:
    from edgesplit.cli.render import talk

    for warning in pushed.warnings:
        talk.print(f"warning: {warning}", style="yellow")
    address = f"http://{space.plan.api.address}:{space.plan.api.port}/v1"
    talk.print(
        f"epoch {pushed.split.epoch} serves after {seconds:.1f} s: {address} on {space.plan.entry}", soft_wrap=True
    )
    encodes = space.checkpoint.chain.kind == "encoder"
    generate = f"next: edgesplit generate {space.plan_file} 'Hello'"
    talk.print(f"it answers {address}/embeddings" if encodes else generate, soft_wrap=True)


def _announce(steps: tuple[Step, ...], forecast: dict[str, float], *, every: bool) -> None:
    """What will be done: `every` step where somebody decides on it, else the bytes only: steps show as they end.

    `forecast`: host -> seconds that sending takes.
    """
    from edgesplit.broadcast.transition import Phase
    from edgesplit.cli.render import talk
    from edgesplit.units import format_size, format_time

    if every:
        talk.print("This will:")
    for step in steps if every else ():
        if step.phase not in (Phase.LOCK, Phase.UNLOCK):
            takes = (
                f", about {format_time(forecast[step.host])}"
                if step.phase is Phase.SHIP and step.host in forecast
                else ""
            )
            talk.print(f"  {step}{takes}")
    total = sum(step.size for step in steps)
    takes = f", in about {format_time(max(forecast.values()))} by the links as profiled" if forecast else ""
    talk.print(f"{format_size(total)} to send{takes}." if total else "Nothing to send.")


def _report(as_json: bool, data: dict[str, object]) -> None:
    from edgesplit.cli.render import print_json

    if as_json:
        print_json(data)
