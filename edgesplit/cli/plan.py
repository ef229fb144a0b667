"""edgesplit plan: the best split, why, what it will cost and what would help."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.cli.report import Report
    from edgesplit.cli.workspace import Workspace
    from edgesplit.model.audit import Audit
    from edgesplit.revision.problem import Problem
    from edgesplit.revision.solver import Solution
    from edgesplit.split import Split

Explain = Annotated[
    str | None,
    typer.Option(
        "--explain",
        metavar="BLOCK",
        help="Say why this block (or a range such as layers.2-4) is where it is: what every other host would cost.",
        show_default=False,
    ),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="SPLIT",
        help="Compare with another split, such as an earlier .edgesplit/NAME/split.json, on the same numbers.",
        show_default=False,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write everything as one HTML page.", show_default=False),
]
AuditPrivacy = Annotated[
    Path | None,
    typer.Option(
        "--audit-privacy",
        metavar="TEXTS",
        help="Measure on these texts (one per line, or with empty lines between) how many of their tokens can be "
        "recovered from the activations at each boundary.",
        show_default=False,
    ),
]
WhatIfs = Annotated[
    float,
    typer.Option(
        "--what-ifs",
        metavar="SECONDS",
        min=0,
        help="Spend at most so long on what would help; without a split, on what must give.",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        min=0,
        help="Search no longer than about so long, and say how much better another split could be. Without it, the "
        "answer is the same on every machine.",
        show_default=False,
    ),
]
Gap = Annotated[
    float,
    typer.Option(
        "--gap",
        metavar="SHARE",
        min=0,
        max=1,
        help="Be content with a split that is proven to be at most this share of Phi from the best: 0.01 for 1 %.",
    ),
]
Precisions = Annotated[
    bool, typer.Option("--precisions", help="Also show what each precision would cost, and whether it fits.")
]


def run(
    plan: Plan,
    inventory: Inventory = None,
    explain: Explain = None,
    compare: Compare = None,
    html: Html = None,
    audit_privacy: AuditPrivacy = None,
    what_ifs: WhatIfs = 5.0,
    time_limit: TimeLimit = None,
    gap: Gap = 0.0,
    precisions: Precisions = False,
    as_json: Json = False,
) -> None:
    """Compute the optimal split of the model over the hosts, show it, and save it."""
    from edgesplit.cli.plan_text import show_report
    from edgesplit.cli.precisions import show_precisions, shown_if_infeasible, weigh_up
    from edgesplit.cli.render import out, print_json, tell
    from edgesplit.cli.report import Asked, Posed, gather
    from edgesplit.cli.workspace import Workspace

    space = Workspace.open(plan, inventory)
    fleet = space.fleet()
    tell(space.checkpoint.notes)
    problem = space.problem(fleet)
    asked = Asked(
        blocks=_blocks(space, explain) if explain is not None else range(0),
        other=_read(compare) if compare is not None else None,
        outlook=as_json or html is not None or (explain is None and compare is None),
        audit=_audit(space, audit_privacy) if audit_privacy is not None else None,
    )
    with shown_if_infeasible(space, fleet, as_json=as_json):
        found = _solve(problem, gap, _within(time_limit), _within(what_ifs))
    split = found.split.model_copy(update={"digests": space.digests(fleet)})
    path = space.save("split.json", split)
    solution = found.model_copy(update={"split": split})
    report = gather(Posed(space.plan, fleet, problem), solution, asked, _within(what_ifs))
    rows = weigh_up(space, fleet) if precisions else []
    if html is not None:
        _write(html, report)
    if as_json:
        print_json({**report.to_json(), "precisions": [row.model_dump(mode="json") for row in rows]})
        return
    show_report(report)
    show_precisions(rows)
    if html is not None:
        out.print(f"page: {html}", soft_wrap=True)
    out.print(f"saved to {path}", soft_wrap=True)
    out.print(f"next: {space.command('deploy')}", soft_wrap=True)


def _within(seconds: float | None) -> Callable[[], bool]:
    end = math.inf if seconds is None else time.monotonic() + seconds
    return lambda: time.monotonic() < end


def _solve(problem: Problem, gap: float, search_on: Callable[[], bool], go_on: Callable[[], bool]) -> Solution:
    """Raises InfeasibleError with everything that can be said of it."""
    from edgesplit.errors import InfeasibleError
    from edgesplit.revision.conflict import conflict
    from edgesplit.revision.explain import conflict_words
    from edgesplit.revision.solver import solve

    try:
        return solve(problem, gap=gap, go_on=search_on)
    except InfeasibleError as error:
        found = conflict(problem, go_on)
        if found is None:
            raise
        raise InfeasibleError("\n".join([error.message, *conflict_words(found)]), error.hint) from None


def _blocks(space: Workspace, name: str) -> range:
    from edgesplit.errors import InputError

    try:
        return space.checkpoint.chain.select(name)
    except ValueError as error:
        raise InputError(f"--explain: {error}") from error


def _read(file: Path) -> Split:
    from edgesplit.errors import InputError
    from edgesplit.split import Split

    try:
        return Split.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is no split", "`edgesplit plan` saves one as split.json") from error


def _write(file: Path, report: Report) -> None:
    from edgesplit.cli.page import page
    from edgesplit.errors import EdgesplitError

    try:
        file.write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise EdgesplitError(f"{file} cannot be written: {error.strerror}", "give --html another place") from error


def _audit(space: Workspace, texts: Path) -> Audit:
    from rich.progress import Progress

    from edgesplit.cli.render import talk
    from edgesplit.model.audit import audit, read_texts

    checkpoint = space.checkpoint
    samples = read_texts(texts)
    with Progress(console=talk, transient=True) as progress:
        task = progress.add_task("auditing", total=checkpoint.chain.layers + 1)
        return audit(
            checkpoint.folder,
            space.plan.dtype,
            samples,
            lambda block: progress.update(task, completed=block + 1),
            glued=checkpoint.chain.glued,
            trusted=bool(checkpoint.own_code),
        )
