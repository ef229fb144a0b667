"""edgesplit simulate: the planner and the orchestrator on fleets that are only numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import Json

if TYPE_CHECKING:
    from edgesplit.simulation.simulate import Simulated

MOST = 2000  # hosts: their links are four million


def run(
    hosts: Annotated[str, typer.Option("--hosts", help="Sizes of fleets, with commas between.")] = "10,30",
    deployments: Annotated[int, typer.Option("--deployments", min=1, max=50, help="Models on each fleet.")] = 3,
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, max=1440, help="Simulated time.")] = 10.0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same fates and decisions.")] = 1,
    as_json: Json = False,
) -> None:
    """Run the planner and the orchestrator on simulated fleets: hosts fail, loads come and go, links drift.

    Tells what was decided, how long there was no service, and how long the orchestrator thought.
    """
    from edgesplit.cli.render import print_json, talk
    from edgesplit.simulation.simulate import simulate

    found = []
    for count in _counts(hosts):
        with talk.status(f"{count} hosts ..."):
            found.append(simulate(count, deployments, 60 * minutes, seed))
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
    else:
        _show(found)


def _counts(text: str) -> list[int]:
    from edgesplit.errors import InputError

    counts = [int(word) for word in text.split(",") if word.strip().isdecimal()]
    if len(counts) != len(text.split(",")) or not all(5 <= count <= MOST for count in counts):
        raise InputError(f"--hosts {text}: expected numbers from 5 to {MOST}, such as 10,100,1000")
    return counts


def _show(found: list[Simulated]) -> None:
    from edgesplit.cli.render import show
    from edgesplit.units import format_time

    fates = [
        [
            str(each.hosts),
            str(each.deployments),
            str(each.happened),
            str(each.decisions),
            str(each.moves),
            f"{each.redistributed}/{each.split_again}/{each.rolled_back}",
            str(each.failed),
            f"{100 * each.late:.1f}%",
            f"{100 * each.broken:.1f}%",
        ]
        for each in found
    ]
    columns = [">hosts", ">models", ">events", ">decisions", ">moves", ">kinds", ">failed", ">late", ">broken"]
    note = (
        "Kinds of moves: redistributed, split again, rolled back. Late: of the time, over 1.5 x the time per token "
        "at first; broken: without service."
    )
    show(f"What happened in {format_time(found[0].seconds)}, by the seed", columns, fates, note)
    times = [
        [
            str(each.hosts),
            format_time(each.turn.median),
            format_time(each.turn.most),
            format_time(each.decision.median) if each.decision.count else "none",
            format_time(each.decision.most) if each.decision.count else "none",
            format_time(each.wall),
            f"{each.speed:.1f} x",
        ]
        for each in found
    ]
    columns = [">hosts", ">turn", ">at most", ">decision", ">at most", ">took", ">real time"]
    show("\nHow long the orchestrator of one model thought", columns, times)
