"""edgesplit plan: the best split, why, and what it will cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.cli.workspace import Workspace
    from edgesplit.model.audit import Exposure
    from edgesplit.revision.cost import Costs
    from edgesplit.revision.exposure import Sight
    from edgesplit.revision.problem import Problem
    from edgesplit.revision.solver import Solution
    from edgesplit.split import Split


def run(
    plan: Plan,
    inventory: Inventory = None,
    audit_privacy: Annotated[
        Path | None,
        typer.Option(
            "--audit-privacy",
            metavar="TEXTS",
            help="Measure on these texts (one per line, or with empty lines between) how many of their tokens can be "
            "recovered from the activations at each boundary.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute the optimal split of the model over the hosts, show it, and save it."""
    from edgesplit.cli.render import out, print_json
    from edgesplit.cli.workspace import Workspace
    from edgesplit.revision.exposure import who_sees_what
    from edgesplit.revision.solver import solve

    space = Workspace.open(plan, inventory)
    fleet = space.fleet()
    problem = space.problem(fleet)
    solution = solve(problem)
    split = solution.split.model_copy(update={"digests": space.digests(fleet)})
    path = space.save("split.json", split)
    sights = who_sees_what(split, problem.trusted)
    exposures = _audit(space, audit_privacy) if audit_privacy is not None else []
    if as_json:
        print_json(
            {
                **solution.model_dump(mode="json"),
                "split": split.model_dump(mode="json"),
                "who_sees_what": [sight.model_dump(mode="json") for sight in sights],
                "exposures": [exposure.model_dump(mode="json") for exposure in exposures],
            }
        )
        return
    _show(solution, problem)
    out.print()
    _sights(sights)
    if exposures:
        out.print()
        _exposures(exposures, split, problem)
    out.print(f"\nsaved to {path}", soft_wrap=True)
    out.print(f"next: edgesplit deploy {plan}", soft_wrap=True)


def _show(solution: Solution, problem: Problem) -> None:
    from edgesplit.cli.render import out
    from edgesplit.revision.explain import summarise
    from edgesplit.units import format_time

    costs = solution.costs
    _stages(costs, problem)
    out.print()
    _hosts(costs, problem)
    out.print()
    first, token = format_time(costs.time_to_first_token_seconds), format_time(costs.time_per_token_seconds)
    what = f"time to first token {first}, time per token {token}" if problem.generates else f"a text takes {first}"
    out.print(f"predicted: {what}")
    out.print(
        f"Phi {costs.phi:.4g}: latency {format_time(costs.latency_seconds)}, utilization {costs.utilization:.2f}, "
        f"privacy {costs.privacy:.2f}; {solution.status.lower()}, gap {solution.gap:.2%}"
    )
    for sentence in summarise(solution, problem):
        out.print(f"- {sentence}")


def _stages(costs: Costs, problem: Problem) -> None:
    from edgesplit.cli.render import show
    from edgesplit.units import format_time

    tokens, hops = problem.generates, dict(enumerate(costs.hops))
    rows = []
    for number, stage in enumerate(costs.stages):
        hop = hops.get(number)
        rows.append(
            [
                str(number),
                stage.host,
                problem.name(*range(stage.first, stage.last + 1)),
                "yes" if stage.host in problem.trusted else "no",
                *([format_time(stage.decode_seconds), format_time(hop.decode_seconds) if hop else ""] * tokens),
                format_time(stage.chunk_seconds),
                format_time(hop.chunk_seconds) if hop else "",
            ]
        )
    columns = [
        ">#",
        "host",
        "blocks",
        "trusted",
        *([">token", ">hop"] * tokens),
        ">chunk" if tokens else ">text",
        ">hop",
    ]
    times = "per token and per chunk of the prompt" if tokens else "per text"
    note = f"Times {times}: of the stage, and of the hop to the next one."
    show("Split", columns, rows, note)


def _hosts(costs: Costs, problem: Problem) -> None:
    """Without a rate there is no load, only the busy time of a host against that of the fastest alone."""
    from edgesplit.cli.render import show
    from edgesplit.units import format_size

    rows = [
        [host.host, format_size(host.memory_bytes), format_size(host.budget_bytes), f"{host.load:.0%}"]
        for host in costs.hosts
    ]
    if problem.workload.rate > 0:
        show("Hosts", ["host", ">memory", ">allowed", ">load"], rows)
    else:
        show("Hosts", ["host", ">memory", ">allowed"], [row[:3] for row in rows])


def _sights(sights: Sequence[Sight]) -> None:
    from edgesplit.cli.render import show

    rows = [
        [
            sight.host,
            "yes" if sight.trusted else "no",
            sight.blocks,
            sight.sees,
            "" if sight.depth is None else str(sight.depth),
        ]
        for sight in sights
    ]
    show("Who sees what", ["host", "trusted", "weights of", "of requests", ">depth"], rows)


def _audit(space: Workspace, texts: Path) -> list[Exposure]:
    from rich.progress import Progress

    from edgesplit.cli.render import talk
    from edgesplit.model.audit import audit, read_texts

    checkpoint = space.checkpoint
    samples = read_texts(texts)
    with Progress(console=talk, transient=True) as progress:
        task = progress.add_task("auditing", total=checkpoint.chain.layers + 1)
        return audit(checkpoint.folder, space.plan.dtype, samples, lambda _: progress.advance(task))


def _exposures(exposures: Sequence[Exposure], split: Split, problem: Problem) -> None:
    from edgesplit.cli.render import show

    placed = split.placement()
    rows = [
        [
            f"behind {problem.name(exposure.block)}",
            f"{exposure.nearest:.0%}",
            f"{exposure.probe:.0%}",
            host if (host := placed[exposure.block + 1]) not in problem.trusted else "",
        ]
        for exposure in exposures
    ]
    note = (
        "Share of the texts' tokens that are recovered from the activations there: by the nearest embedding, and by a "
        "linear map learned on other texts. A better attacker recovers more: a low share limits exposure."
    )
    show("What activations give away", ["boundary", ">nearest", ">learned", "seen by untrusted"], rows, note)
