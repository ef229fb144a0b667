"""`make models`: every family, two at a time; docs/models.md. Ends with 1 when one is not exact.

    python -m families.run [--family NAME]... [--jobs N] [--resume]

With --family only the table is shown. Results are kept in build/models.jsonl as they come; --resume goes on with them.
Must not know: what is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from families import configs
from families.outcome import CLOSE
from families.report import markdown, passed, verdict
from families.worker import Result, Worker, context

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "models.jsonl"
DOCUMENT = ROOT / "docs" / "models.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="families.run", description="Every causal LM family, cut and compared.")
    parser.add_argument("--family", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run found")
    chosen = parser.parse_args()
    known = list(configs.families())
    if unknown := [name for name in chosen.family if name not in known]:
        parser.error(f"no family {unknown[0]!r} in transformers {transformers.__version__}")
    if chosen.family:
        results = _examined(chosen.family, chosen.jobs, [])
        Console().print(_table(results))
    else:
        results = _all(known, chosen.jobs, resume=chosen.resume)
    return 0 if all(passed(result) or result.unable for result in results) else 1


def _all(known: Sequence[str], jobs: int, *, resume: bool) -> list[Result]:
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.touch() if resume else KEPT.write_text("")
    found = [Result.from_dict(json.loads(line)) for line in KEPT.read_text().splitlines()]
    with KEPT.open("a") as kept:
        results = _examined(known, jobs, found, kept)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    DOCUMENT.write_text(markdown(results, versions, CLOSE))
    print(f"{sum(map(passed, results))} of {len(results)} exact; see docs/models.md", file=sys.stderr)
    return results


def _examined(families: Sequence[str], jobs: int, found: Iterable[Result], kept: TextIO | None = None) -> list[Result]:
    """Their results, by name; those found before are not asked for again."""
    results, console = {result.family: result for result in found}, Console(stderr=True)
    with _progress(console) as progress:
        task = progress.add_task("", total=len(families), completed=len(results))
        for result in _as_they_come([name for name in families if name not in results], jobs):
            results[result.family] = result
            progress.update(task, advance=1, description=result.family)
            if kept is not None:
                print(json.dumps(result.to_dict()), file=kept, flush=True)
            if not passed(result):
                line = f"{result.family}: {verdict(result)}"
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
    return [results[name] for name in sorted(results)]


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=console
    )


def _as_they_come(families: Sequence[str], jobs: int) -> Iterator[Result]:
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


if __name__ == "__main__":
    sys.exit(main())
