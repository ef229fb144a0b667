"""Runs of scenarios -> tables in Markdown, beside what the paper projects.

Must not know: files, how figures come about.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from edgesplit.evaluation.metrics import Figures
from edgesplit.evaluation.record import MODES, Mode, Run
from edgesplit.evaluation.scenario import Stage
from edgesplit.units import format_size, format_time

BEGIN, END = "<!-- results -->", "<!-- /results -->"
Found = Mapping[Mode, Sequence[Figures]]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# what it is called, how it is read off, how it is written; what the paper projects (static, adaptive)
ROWS: tuple[tuple[str, Callable[[Figures], float], Callable[[float], str], tuple[str, str]], ...] = (
    ("latency of a request, median", lambda f: f.p50, format_time, ("500-1000 ms", "100-300 ms")),
    ("latency, 95 % under", lambda f: f.p95, format_time, ("", "")),
    ("latency from the first event on, 95 % under", lambda f: f.disturbed, format_time, ("", "")),
    ("requests within the service level", lambda f: f.compliance, _percent, ("60-70 %", "95-99 %")),
    ("tokens that came in time", lambda f: f.tokens_in_time, _percent, ("", "")),
    ("downtime incidents per hour", lambda f: f.incidents_per_hour, lambda v: f"{v:.0f}", ("5-10", "0-2")),
    ("downtime", lambda f: f.downtime, lambda v: f"{v:.1f} s", ("", "")),
    ("lost requests per hour", lambda f: f.lost_per_hour, lambda v: f"{v:.0f}", ("", "")),
    ("lost requests, of all", lambda f: f.lost, lambda v: f"{v:.0f}", ("", "")),
    ("wrong tokens", lambda f: f.wrong, lambda v: f"{v:.0f}", ("", "")),
    ("use of the ring's hosts, of their quota", lambda f: f.load, _percent, ("50-60 %", "80-95 %")),
    ("use of its busiest host, over 5 s", lambda f: f.busiest, _percent, ("", "")),
    ("privacy violations, of all looks", lambda f: f.violations, lambda v: f"{v:.0f}", ("moderate", "high")),
    ("moves", lambda f: f.moves, lambda v: f"{v:.0f}", ("", "")),
    ("moves that failed", lambda f: f.failed_moves, lambda v: f"{v:.0f}", ("", "")),
    ("sent by the controller after deploying", lambda f: f.sent, format_size, ("", "")),
)


def section(stage: Stage, found: Found, picture: str) -> str:
    """One scenario: what it is, its figures, its events. `picture`: where its chart is."""
    repetitions = max(map(len, found.values()))
    service = stage.plan.service
    clients = stage.scenario.demand.clients
    asked = f"{clients} clients at first" if clients else f"{sum(f.requests for f in found['adaptive'])} requests"
    words = (
        f"{stage.scenario.about.strip()}\n\n{stage.scenario.duration:g} s; repetitions of each: {repetitions}; "
        f"{asked}, the same for both. Service level: first token within "
        f"{format_time(service.time_to_first_token or 0)}, then {format_time(service.time_per_token or 0)} per token."
    )
    return "\n\n".join(
        [
            f"### {stage.scenario.title}",
            words,
            table(["", "static", "adaptive", "paper: static", "paper: adaptive"], figures_rows(found)),
            table(["at", "event", "static: recovered after", "adaptive: recovered after"], recovery_rows(found)),
            f"![latency of each request, and where the blocks were]({picture})",
        ]
    )


def figures_rows(found: Found) -> list[list[str]]:
    return [
        [what, *(_spread([read(f) for f in found[mode]], write) for mode in MODES), *paper]
        for what, read, write, paper in ROWS
    ]


def recovery_rows(found: Found) -> list[list[str]]:
    """Seconds from each event until nobody was behind any more, in each repetition."""
    rows = []
    for number, event in enumerate(found["adaptive"][0].recoveries):
        cells = []
        for mode in MODES:
            seen = [f.recoveries[number].seconds for f in found[mode] if number < len(f.recoveries)]
            cells.append(", ".join("not" if each is None else f"{each:.1f} s" for each in seen))
        rows.append([f"{event.at:.0f} s", event.text, *cells])
    return rows


def moves_text(run: Run) -> str:
    """A run's moves, a line each."""
    return "\n".join(
        f"- {move.at:.1f} s: {move.action}, {'' if move.done else 'failed, '}"
        + (f"{move.ended - move.at:.1f} s: " if move.ended is not None else "")
        + move.because
        for move in run.moves
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def merged(text: str, results: str) -> str:
    """A document with new results in it; what people wrote around them stays."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        before, after = text.rstrip() + "\n\n" if text else "", "\n"
    return f"{before}{BEGIN}\n{results}\n{END}{after}"


def _spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    """The median, and where several differ the least and the most."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "none"
    low, middle, high = write(min(known)), write(statistics.median(known)), write(max(known))
    return middle if low == high else f"{middle} ({low} to {high})"
