"""`make bench-explain`: what the reasons of `edgesplit plan` cost, beside the split itself, on made fleets.

Prints a table, writes build/bench/explain.json. Each fleet once as it is, and once with so little memory that no split
is possible.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from instances import Shape, instance
from rich.console import Console
from rich.table import Table

from edgesplit.errors import InfeasibleError
from edgesplit.revision.baseline import rivals
from edgesplit.revision.conflict import conflict
from edgesplit.revision.limits import with_memory
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import solve
from edgesplit.revision.whatif import look

OUTPUT = Path(__file__).parents[2] / "build" / "bench" / "explain.json"
SHAPES = {
    "4 hosts, 32 layers": Shape(32, 4, pins=1),
    "8 hosts, 32 layers": Shape(32, 8, pins=1),
    "16 hosts, 80 layers": Shape(80, 16, pins=1),
    "8 hosts, 32 layers, Phi of all terms": Shape(32, 8, pins=1, privacy=1.0, utilization=1.0),
}
SEEDS = range(2)
SCARCE = 0.5  # of each host's memory
Row = dict[str, float]
T = TypeVar("T")


def main() -> None:
    table = Table("fleet", "split s", "others s", "what-ifs", "s", "conflict: limits", "enough", "s", box=None)
    found = {}
    for name, shape in SHAPES.items():
        rows = [measured(instance(shape, seed)) for seed in SEEDS]
        row = found[name] = {key: statistics.median(one[key] for one in rows) for key in rows[0]}
        figures = [f"{row[key]:.2f}" if key.endswith("_s") else f"{row[key]:.0f}" for key in row]
        table.add_row(name, *figures)
    console = Console(highlight=False)
    console.print(f"Medians of {len(SEEDS)} fleets each; seconds of one run on this machine as it is")
    console.print(table)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(found, indent=2))


def measured(problem: Problem) -> Row:
    solution, split_s = timed(lambda: solve(problem))
    _, rivals_s = timed(lambda: rivals(problem))
    asked = []
    _, whatifs_s = timed(lambda: look(solution, problem, lambda: not asked.append(None)))
    scarce = problem
    for host, costs in problem.hosts.items():
        scarce = with_memory(scarce, host, round(costs.budget * SCARCE))
    scarce = replace(scarce, objective=problem.objective)
    why, conflict_s = timed(lambda: refused(scarce))
    return {
        "split_s": split_s,
        "rivals_s": rivals_s,
        "whatifs": len(asked),
        "whatifs_s": whatifs_s,
        "limits": why[0],
        "enough": why[1],
        "conflict_s": conflict_s,
    }


def refused(problem: Problem) -> tuple[int, int]:
    try:
        solve(problem)
    except InfeasibleError:
        found = conflict(problem)
        return (len(found.limits), len(found.relaxations)) if found else (0, 0)
    raise AssertionError("a split was found")


def timed(act: Callable[[], T]) -> tuple[T, float]:
    begun = time.perf_counter()
    return act(), time.perf_counter() - begun


if __name__ == "__main__":
    main()
