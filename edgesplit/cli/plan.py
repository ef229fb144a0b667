"""edgesplit plan: the best split, why, and what it will cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgesplit.cli.options import Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.revision.problem import Problem
    from edgesplit.revision.solver import Solution


def run(plan: Plan, inventory: Inventory = None, as_json: Json = False) -> None:
    """Compute the optimal split of the model over the hosts, show it, and save it."""
    from edgesplit.cli.render import out, print_json
    from edgesplit.cli.workspace import Workspace
    from edgesplit.revision.solver import solve

    space = Workspace.open(plan, inventory)
    fleet = space.fleet()
    problem = space.problem(fleet)
    solution = solve(problem)
    split = solution.split.model_copy(update={"digests": space.digests(fleet)})
    path = space.save("split.json", split)
    if as_json:
        print_json({**solution.model_dump(mode="json"), "split": split.model_dump(mode="json")})
        return
    _show(solution, problem)
    out.print(f"\nsaved to {path}; next: edgesplit deploy {plan}", highlight=False)


def _show(solution: Solution, problem: Problem) -> None:
    from edgesplit.cli.render import out, table
    from edgesplit.revision.explain import summarise
    from edgesplit.units import format_size, format_time

    costs = solution.costs
    hops = dict(enumerate(costs.hops))
    rows = []
    for number, stage in enumerate(costs.stages):
        hop = hops.get(number)
        rows.append(
            [
                str(number),
                stage.host,
                problem.name(*range(stage.first, stage.last + 1)),
                "yes" if stage.host in problem.trusted else "no",
                format_time(stage.decode_seconds),
                format_time(hop.decode_seconds) if hop else "",
                format_time(stage.chunk_seconds),
                format_time(hop.chunk_seconds) if hop else "",
            ]
        )
    columns = ["stage", "host", "blocks", "trusted", "token", "hop", "prompt chunk", "hop "]
    out.print(table("Split", columns, rows, {"stage", "token", "hop", "prompt chunk", "hop "}))
    memory = [
        [host.host, format_size(host.memory_bytes), format_size(host.budget_bytes), f"{host.load:.0%}"]
        for host in costs.hosts
    ]
    out.print()
    out.print(table("Memory and load", ["host", "memory", "allowed", "load"], memory, {"memory", "allowed", "load"}))
    out.print()
    out.print(
        f"time to first token {format_time(costs.time_to_first_token_seconds)}, "
        f"time per token {format_time(costs.time_per_token_seconds)} (predicted)",
        highlight=False,
    )
    out.print(
        f"Phi {costs.phi:.4g}: latency {format_time(costs.latency_seconds)}, utilization {costs.utilization:.2f}, "
        f"privacy {costs.privacy:.2f}; {solution.status.lower()}, gap {solution.gap:.2%}",
        highlight=False,
    )
    for sentence in summarise(solution, problem):
        out.print(f"- {sentence}", highlight=False)
