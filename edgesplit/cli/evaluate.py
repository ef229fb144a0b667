"""edgesplit evaluate: scripted scenarios on a lab, static and adaptive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import Json

if TYPE_CHECKING:
    from edgesplit.evaluation.metrics import Figures
    from edgesplit.evaluation.record import Mode, Run
    from edgesplit.evaluation.scenario import Stage


def run(
    scenarios: Annotated[
        list[Path], typer.Argument(metavar="SCENARIO...", help="Scenario files (YAML).", show_default=False)
    ],
    repeat: Annotated[int, typer.Option("--repeat", min=1, max=100, help="Repetitions of each.")] = 1,
    only: Annotated[
        int | None, typer.Option("--only", min=1, help="Only this repetition, of those asked for.", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do again what was done already.")] = False,
    folder: Annotated[Path, typer.Option("--folder", help="Where runs are kept.")] = Path("build/evaluation"),
    report: Annotated[
        Path | None,
        typer.Option("--report", help="A Markdown file whose results are to be written anew.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run scripted scenarios on a lab: the same requests and events, once with a static split, once watched.

    Needs root. What was done already is kept: an evaluation that was broken off is gone on with.
    """
    from edgesplit.cli.render import print_json, talk
    from edgesplit.evaluation.evaluate import Evaluation
    from edgesplit.evaluation.scenario import load_stage
    from edgesplit.lab.machine import need_root

    stages = [load_stage(path) for path in scenarios]
    need_root()
    evaluation = Evaluation(folder, lambda text: talk.print(text, soft_wrap=True))
    for stage in stages if fresh else ():
        evaluation.forget(stage)
    numbers = range(1, repeat + 1) if only is None else [only]
    done = [(stage, run) for number in numbers for stage in stages for run in evaluation.runs(stage, [number])]
    found = [(stage, [run for each, run in done if each is stage]) for stage in stages]
    if as_json:
        print_json([_flat(stage, run) for stage, runs in found for run in runs])
    else:
        for stage, runs in found:
            _show(stage, runs)
    if report is not None:
        _write(report, found)
        talk.print(f"the results in {report} are new", soft_wrap=True)


def _flat(stage: Stage, run: Run) -> dict[str, object]:
    from edgesplit.evaluation.metrics import figures

    told = json.loads(figures(run, stage.plan.service).to_json())  # where there is no figure, null
    return {"scenario": run.name, "mode": run.mode, "repetition": run.repetition, **told}


def _sorted(stage: Stage, runs: list[Run]) -> dict[Mode, list[Figures]]:
    from edgesplit.evaluation.metrics import figures

    found: dict[Mode, list[Figures]] = {"static": [], "adaptive": []}
    for run in runs:
        found[run.mode].append(figures(run, stage.plan.service))
    return found


def _show(stage: Stage, runs: list[Run]) -> None:
    from edgesplit.cli.render import out, show
    from edgesplit.evaluation.report import figures_rows, moves_text, recovery_rows

    found = _sorted(stage, runs)
    show(stage.scenario.title, ["", "static", "adaptive", "paper: static", "adaptive"], figures_rows(found))
    show("\nRecovery", [">at", "event", "static", "adaptive"], recovery_rows(found))
    for run in runs:
        if run.moves or run.trouble:
            out.print(f"\n{run.name} {run.repetition}, {run.mode}\n{moves_text(run)}", soft_wrap=True)
        for trouble in run.trouble:
            out.print(f"could not be done: {trouble}", soft_wrap=True)


def _write(report: Path, found: list[tuple[Stage, list[Run]]]) -> None:
    from edgesplit.errors import EdgesplitError
    from edgesplit.evaluation.charts import chart
    from edgesplit.evaluation.report import merged, section

    pictures, parts = report.with_suffix(""), []
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        for stage, runs in found:
            (pictures / f"{stage.name}.svg").write_text(chart(stage.scenario.title, runs))
            parts.append(section(stage, _sorted(stage, runs), f"{pictures.name}/{stage.name}.svg"))
        text = report.read_text() if report.exists() else ""
        report.write_text(merged(text, "\n\n".join(["", *parts, ""])))
    except OSError as error:
        hint = "the runs are kept: the same again, with another --report, takes no time"
        raise EdgesplitError(f"{error.filename} cannot be written: {error.strerror}", hint) from error
