"""`make models`: every family, two at a time; build/models.json and docs/models.md. Ends with 1 when one is not exact.

    python -m families.run [--family NAME]... [--jobs N]

With --family only the table is shown. Must not know: what is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from families import configs
from families.checks import CLOSE
from families.report import markdown, passed, verdict
from families.worker import Result, Worker, context

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="families.run", description="Every causal LM family, cut and compared.")
    parser.add_argument("--family", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    chosen = parser.parse_args()
    known = list(configs.families())
    if unknown := [name for name in chosen.family if name not in known]:
        parser.error(f"no family {unknown[0]!r} in transformers {transformers.__version__}")
    console = Console(stderr=True)
    with _progress(console) as progress:
        task = progress.add_task("", total=len(chosen.family or known))
        results = []
        for result in _examined(chosen.family or known, chosen.jobs):
            results.append(result)
            progress.update(task, advance=1, description=result.family)
            if not passed(result):
                line = f"{result.family}: {verdict(result)}"
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
    results.sort(key=lambda result: result.family)
    if chosen.family:
        Console().print(_table(results))
    else:
        _write(results)
        console.print(f"{sum(map(passed, results))} of {len(results)} exact; see docs/models.md")
    return 0 if all(passed(result) or result.unable for result in results) else 1


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=console
    )


def _examined(families: Sequence[str], jobs: int) -> Iterator[Result]:
    """Their results, as they come."""
    waiting, running, processes = list(families), [], context()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Worker(processes, waiting.pop(0)))
        for worker in list(running):
            if (result := worker.done()) is not None:
                running.remove(worker)
                yield result


def _table(results: Sequence[Result]) -> Table:
    table = Table("family", "class", "layers", "result")
    for result in results:
        table.add_row(result.family, result.kind, result.layers, verdict(result))
    return table


def _write(results: Sequence[Result]) -> None:
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    found = {**versions, "families": [result.to_dict() for result in results]}
    (build / "models.json").write_text(json.dumps(found, indent=1) + "\n")
    (ROOT / "docs" / "models.md").write_text(markdown(results, versions, CLOSE))


if __name__ == "__main__":
    sys.exit(main())
