"""`make bench-plan`: how long the best split takes to find and prove, and how much worse simple rules are on the same
instances. Prints a table, writes build/bench/plan.json. One thread is used; where the
machine is busy, the processor's seconds tell more than the clock's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from instances import Shape, instance
from rich.console import Console
from rich.table import Table
from rules import by_compute, by_memory, edgeshard, even

from edgesplit.errors import EdgesplitError, InfeasibleError
from edgesplit.revision.baseline import greedy
from edgesplit.revision.cost import evaluate
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import solve

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "bench" / "plan.json"
RULES = {"even": even, "memory": by_memory, "compute": by_compute, "greedy": greedy, "EdgeShard": edgeshard}
MANY = 100  # hosts from which on EdgeShard's program, layers x hosts x hosts in Python, would take minutes
SEEDS = 3
SHAPES = {
    "126 x 8": Shape(126, 8),
    "126 x 16": Shape(126, 16),
    "126 x 32": Shape(126, 32),
    "126 x 32, one wire": Shape(126, 32, lan=True),
    "126 x 64": Shape(126, 64),
    "126 x 1000": Shape(126, 1000, need=0.03),
    "32 x 30, few needed": Shape(32, 30, need=0.1),
    "32 x 100, few needed": Shape(32, 100, need=0.03),
    "32 x 300, few needed": Shape(32, 300, need=0.01),
    "32 x 1000, few needed": Shape(32, 1000, need=0.003),
    "126 x 100, few needed": Shape(126, 100, need=0.05),
    "126 x 16, pins": Shape(126, 16, pins=2),
    "126 x 16, 8 at a time": Shape(126, 16, concurrency=8),
    "126 x 16, a rate": Shape(126, 16, rate=0.15),
    "126 x 16, utilization": Shape(126, 16, utilization=20.0),
    "126 x 16, some privacy": Shape(126, 16, privacy=10.0),
    "126 x 16, much privacy": Shape(126, 16, privacy=50.0),
    "48 x 8, two kinds of layers": Shape(48, 8, kinds=2),
    "48 x 8, three kinds": Shape(48, 8, kinds=3),
    "32 x 6, mixed precision": Shape(32, 6, quantised=True),
}

say = Console(highlight=False, width=150)
Row = dict[str, Any]


def main(only: str = "") -> int:
    rows = []
    for name, shape in SHAPES.items():
        for seed in range(1, SEEDS + 1):
            if only in name:
                rows.append(measured(name, instance(shape, seed), seed))
                say.print(f"  {rows[-1]}", style="dim")
    show(rows)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=2) + "\n")
    say.print(f"\nwritten to {OUTPUT.relative_to(ROOT)}")
    return 0


def measured(name: str, problem: Problem, seed: int) -> Row:
    begun, used = time.perf_counter(), time.process_time()
    row: Row = {"instance": name, "seed": seed}
    try:
        solution = solve(problem)
    except InfeasibleError as error:
        return {
            **row,
            "seconds": time.perf_counter() - begun,
            "cpu": time.process_time() - used,
            "status": "Infeasible",
            "why": error.message,
        }
    except EdgesplitError as error:
        return {
            **row,
            "seconds": time.perf_counter() - begun,
            "cpu": time.process_time() - used,
            "status": "failed",
            "why": error.message,
        }
    row |= {
        "seconds": time.perf_counter() - begun,
        "cpu": time.process_time() - used,
        "status": solution.status.value,
        "gap": solution.gap,
    }
    row |= {"phi": solution.costs.phi, "stages": len(solution.split.stages), "complete": solution.complete}
    rules = {rule: make for rule, make in RULES.items() if make is not edgeshard or len(problem.hosts) <= MANY}
    found = {rule: split for rule, make in rules.items() if (split := make(problem)) is not None}
    worse = {rule: evaluate(split, problem).phi / solution.costs.phi - 1 for rule, split in found.items()}
    return {**row, "worse": worse}


def show(rows: list[Row]) -> None:
    table = Table("layers x hosts", "proven", box=None, pad_edge=False)
    for column in ("median s", "most s", "cpu s", "gap", *RULES):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(row["instance"] for row in rows):
        own = [row for row in rows if row["instance"] == name]
        proven = sum(row["status"] in {"Optimal", "Infeasible"} for row in own)
        seconds = [row["seconds"] for row in own]
        gap = max((row["gap"] for row in own if "gap" in row), default=0.0)
        times = [f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}", f"{max(row['cpu'] for row in own):.2f}"]
        times.append(f"{gap:.2%}" if gap > 1e-6 else "0")
        table.add_row(name, f"{proven} of {len(own)}", *times, *(_worse(own, rule) for rule in RULES))
    say.print(table)
    say.print(
        "cpu: the processor's seconds of the slowest. By rule: how much more Phi than the best split's, median; "
        "none: it found no split."
    )


def _worse(rows: list[Row], rule: str) -> str:
    found = [row["worse"][rule] for row in rows if rule in row.get("worse", {})]
    short = f" ({len(found)} of {len(rows)})" if 0 < len(found) < len(rows) else ""
    return f"+{statistics.median(found):.0%}{short}" if found else "none"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
