"""edgesplit history: what watches decided, from what, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.orchestrator.event import Event


def run(
    plan: Plan,
    inventory: Inventory = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="So many lines, the newest last.")] = 20,
    moves: Annotated[bool, typer.Option("--moves", help="Without what was kept as it was.")] = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Show what was decided while this deployment was watched, by whomever: the log is on the entry host."""
    from edgesplit.cli.render import out, show
    from edgesplit.cli.workspace import at_entry
    from edgesplit.orchestrator.history import read

    with at_entry(plan, inventory, accept_new=accept_new) as (space, entry):
        found = read(entry, space.folder(entry.name))
    found = [event for event in found if event.event != "keep" or not moves][-last:]
    if as_json:
        for event in found:
            typer.echo(event.model_dump_json(exclude_none=True))
    elif found:
        show(f"History of {space.plan.name}", ["when", ">epoch", "what", ">gain", ">net", "why, and what came of it"],
             [_row(event) for event in found])  # fmt: skip
    else:
        out.print(f"nothing was decided yet; {space.command('watch')}", soft_wrap=True)


def _row(event: Event) -> list[str]:
    import datetime

    made = event.decision
    when = datetime.datetime.fromtimestamp(event.at).strftime("%m-%d %H:%M:%S")
    gain, net = (None, None) if made is None or event.event not in ("keep", "move") else (made.gain, made.net)
    moving = f" ({made.moving})" if made is not None and made.moving is not None and event.event == "move" else ""
    return [when, str(event.epoch), event.event, *map(_share, (gain, net)), f"{event.text}{moving}"]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
