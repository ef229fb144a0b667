"""A change of what serves, as a user meets it: its steps shown, asked about, carried out, told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import typer

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.forecast import shipping
from edgesplit.broadcast.note import Errand
from edgesplit.broadcast.push import Pushed, push, steps_to
from edgesplit.broadcast.scene import Scene
from edgesplit.broadcast.transition import Phase, Step
from edgesplit.cli.render import ask, bars, print_json, talk
from edgesplit.errors import DeployError
from edgesplit.fleet import Fleet
from edgesplit.hosts.host import Host
from edgesplit.split import Split
from edgesplit.units import format_size, format_time

SOMETHING_TO_DO = 10  # exit code of --detailed-exitcode; 0 is nothing to do, and 1 to 8 are errors


@dataclass(frozen=True)
class Change:
    """`fleet`: what the links were measured to carry, where that is known."""

    cargo: Cargo
    target: Split
    reason: str
    fleet: Fleet | None = None

    def carry_out(self, hosts: Mapping[str, Host], scene: Scene, manner: Manner) -> Pushed:
        """Raises DeployError; typer.Exit after a dry run, typer.Abort where somebody said no."""
        cargo, target = self.cargo, self.target.at(scene.next_epoch)
        steps = steps_to(cargo, target, scene)
        forecast = {} if self.fleet is None else shipping(steps, self.fleet, cargo.inventory)
        _announce(steps, forecast, every=manner.dry_run or not manner.yes)
        if manner.dry_run:
            send = {
                step.host: {"bytes": step.size, "seconds": forecast.get(step.host)}
                for step in steps
                if step.size or step.gifts
            }
            manner.report({"changed": False, "steps": [str(step) for step in steps], "send": send})
            raise typer.Exit(SOMETHING_TO_DO if manner.detailed_exitcode else 0)
        if not manner.yes:
            ask("Go ahead?")
        start = time.monotonic()
        try:
            with bars() as progress:
                pushed = push(cargo, target, hosts, scene, progress, Errand(self.reason))
        except DeployError as error:
            raise DeployError(error.message, error.hint or f"mend that, then {self.reason} again") from error
        except KeyboardInterrupt:  # before its commit everything was put back; after it there is nothing to put back
            talk.print("edgesplit status tells what serves")
            raise
        seconds = time.monotonic() - start
        told = {"epoch": pushed.split.epoch, "seconds": seconds, "warnings": list(pushed.warnings)}
        manner.report({"changed": True, **told, "steps": [str(step) for step in steps]})
        for warning in pushed.warnings:
            talk.print(f"warning: {warning}", style="yellow")
        api = cargo.plan.api
        address = f"http://{api.address}:{api.port}/v1 on {cargo.plan.entry}"
        talk.print(f"epoch {pushed.split.epoch} serves after {seconds:.1f} s: {address}", soft_wrap=True)
        return pushed


@dataclass(frozen=True)
class Manner:
    yes: bool
    dry_run: bool
    as_json: bool
    detailed_exitcode: bool = False

    def report(self, data: Mapping[str, object]) -> None:
        if self.as_json:
            print_json(data)


def _announce(steps: tuple[Step, ...], forecast: Mapping[str, float], *, every: bool) -> None:
    """What will be done: `every` step where somebody decides on it, else the bytes only: steps show as they end.

    `forecast`: host -> seconds that sending takes.
    """
    if every:
        talk.print("This will:")
    for step in steps if every else ():
        if step.phase not in (Phase.LOCK, Phase.UNLOCK):
            known = step.phase is Phase.SHIP and step.host in forecast
            takes = f", about {format_time(forecast[step.host])}" if known else ""
            talk.print(f"  {step}{takes}", soft_wrap=True)
    total = sum(step.size for step in steps)
    takes = f", in about {format_time(max(forecast.values()))} by the links as profiled" if forecast else ""
    talk.print(f"{format_size(total)} to send{takes}." if total else "Nothing to send.")
