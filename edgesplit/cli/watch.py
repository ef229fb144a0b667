"""edgesplit watch: the paper's loop in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.orchestrator.event import Event


def run(
    plan: Plan,
    inventory: Inventory = None,
    once: Annotated[bool, typer.Option("--once", help="One turn of the loop, then stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, but change nothing.")] = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Keep measuring; when thresholds trip, keep, redistribute or re-split, and redeploy without losing a request.

    Ctrl-C stops watching; the ring goes on serving.
    """
    import signal
    from contextlib import ExitStack

    from edgesplit.broadcast.cargo import split_of
    from edgesplit.broadcast.remote import manifest
    from edgesplit.cli.render import Quiet, talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import MovedError, ServingError
    from edgesplit.hosts.fanout import connect, door
    from edgesplit.orchestrator.watch import Surroundings, Watch

    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us in the background without SIGINT
        signal.signal(number, signal.default_int_handler)
    space = Workspace.open(plan, inventory)
    fleet, cargo = space.fleet(), space.cargo()
    with connect(space.inventory, accept_new=accept_new) as hosts, ExitStack() as resources:
        kept = manifest(hosts[space.plan.entry], cargo.folder(space.plan.entry))
        if kept is None:
            raise ServingError(f"{space.plan.name} is not deployed", f"edgesplit deploy {plan}")
        if not cargo.matches(kept):
            raise MovedError(
                "the plan, the inventory or the checkpoint is not the one that is deployed",
                f"run: edgesplit plan {plan} and edgesplit deploy {plan}",
            )
        around = Surroundings(
            space.rereader(),
            lambda name, spec: door(name, spec, accept_new=accept_new),
            space.keep,
        )
        watch = resources.enter_context(Watch(cargo, fleet, hosts, split_of(kept), Quiet(), around, claim=not dry_run))
        talk.print(f"watching epoch {kept.epoch} of {space.plan.name}; Ctrl-C stops watching")
        try:
            while True:
                for event in watch.round(dry_run=dry_run):
                    _show(event, as_json)
                if once:
                    return
        except KeyboardInterrupt:
            talk.print(f"no longer watching; epoch {watch.running.epoch} goes on serving")


def _show(event: Event, as_json: bool) -> None:
    import datetime

    from edgesplit.cli.render import out

    if as_json:
        typer.echo(event.model_dump_json(exclude_none=True))
        return
    if event.event == "reading":
        return
    clock = datetime.datetime.fromtimestamp(event.at).strftime("%H:%M:%S")
    out.print(f"{clock}  epoch {event.epoch}  {event.event:6}  {event.text}")
