"""The table of precisions in `edgesplit plan`: what each would cost, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console

from edgesplit.cli.render import out, print_json, show, talk
from edgesplit.cli.workspace import Workspace
from edgesplit.errors import InfeasibleError, ModelError, MovedError
from edgesplit.fleet import Fleet
from edgesplit.plan import ModelPlan
from edgesplit.revision.precisions import Candidate, Weighed, variants, weighed
from edgesplit.units import format_size, format_time

NOTE = (
    "Weights as they are stored; caches for the plan's workload. Times are predicted where `edgesplit profile` "
    "measured that precision. Elsewhere nothing but bytes is known: a split fits if it fits the memory."
)


@contextmanager
def shown_if_infeasible(space: Workspace, fleet: Fleet, *, as_json: bool) -> Iterator[None]:
    """Where the chosen precision has no split, another may."""
    try:
        yield
    except InfeasibleError as error:
        rows = weigh_up(space, fleet)
        if as_json:
            print_json({"split": None, "precisions": [row.model_dump(mode="json") for row in rows]})
        else:
            show_precisions(rows, talk)
        others = [row.precision for row in rows if row.placement is not None and not row.chosen]
        way_out = f"a split fits at {', '.join(others)}: `dtype` and `quantization` in the plan" if others else ""
        raise InfeasibleError(error.message, "\n".join(filter(None, [error.hint, way_out]))) from error


def weigh_up(space: Workspace, fleet: Fleet) -> list[Weighed]:
    """Reads headers only; a dtype that is looked at for the first time takes seconds."""
    with talk.status("weighing up precisions ..."):
        candidates = [_candidate(space, plan, fleet) for plan in variants(space.plan)]
        return weighed(candidates, space.plan, space.inventory)


def _candidate(space: Workspace, plan: ModelPlan, fleet: Fleet) -> Candidate:
    other = replace(space, plan=plan)
    try:
        chain = other.checkpoint.chain
    except ModelError as error:
        return Candidate(plan, None, fleet, measured=False, why=error.message)
    if plan == space.plan:
        return Candidate(plan, chain, fleet, measured=True)
    try:
        return Candidate(plan, chain, other.fleet(), measured=True)
    except MovedError:
        return Candidate(plan, chain, fleet, measured=False)


def show_precisions(rows: Sequence[Weighed], on: Console = out) -> None:
    if not rows:
        return
    shown = [
        [
            f"{row.precision} (chosen)" if row.chosen else row.precision,
            "" if row.weight_bytes is None else format_size(row.weight_bytes),
            "" if row.cache_bytes is None else format_size(row.cache_bytes),
            "no" if row.placement is None else "yes",
            "" if row.placement is None else " ".join(dict.fromkeys(row.placement)),
            _time(row, row.time_to_first_token_seconds),
            _time(row, row.time_per_token_seconds),
        ]
        for row in rows
    ]
    show("Precisions", ["precision", ">weights", ">caches", "fits", "on", ">first token", ">token"], shown, NOTE, on)
    for row in rows:
        if row.why:
            on.print(f"- {row.precision}: {row.why}")
    on.print()


def _time(row: Weighed, seconds: float | None) -> str:
    if row.placement is None:
        return ""
    return "not measured" if seconds is None else format_time(seconds)
