"""The ring as lines of text: a bar per stage and per hop, along the time of a token and of a chunk, to scale.

Must not know: terminals, colours; what the times depend on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgesplit.revision.cost import Costs
from edgesplit.revision.problem import Problem
from edgesplit.units import format_time

LABEL = 22  # columns at most for a stage's number and host
SHARE = 5  # columns of "100% "
GAP = 2


@dataclass(frozen=True)
class Marks:
    """What is drawn with. One column each, told apart without colour."""

    computing: str
    wire: str
    down: str
    cut: str  # in place of the rest of a name


UNICODE = Marks(computing="█", wire="░", down="↓", cut="…")
ASCII = Marks(computing="#", wire=".", down="v", cut="~")


def marks_for(encoding: str) -> Marks:
    """Those a terminal of this encoding can show."""
    try:
        "".join((UNICODE.computing, UNICODE.wire, UNICODE.down, UNICODE.cut)).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def ring(costs: Costs, problem: Problem, marks: Marks = UNICODE, width: int = 80) -> list[str]:
    """A line of headings, then a line per stage and hop, in ring order; no line is wider than `width`.

    Each bar begins where the one before ends; what takes any time has at least one column.
    """
    rows = list(_rows(costs, marks))
    label = max(len(row.label) for row in rows)
    chunk = f"a chunk of {problem.chunk_tokens:.0f}" if problem.generates else "a text"
    panels = {"a token": [row.token for row in rows]} if problem.generates else {}
    panels[chunk] = [row.chunk for row in rows]
    bar = (width - label) // len(panels) - GAP - SHARE
    drawn = [_panel(seconds, rows, bar) for seconds in panels.values()]
    titles = (f"{what}, {format_time(sum(seconds))}" for what, seconds in panels.items())
    head = " " * label + "".join(" " * GAP + title.ljust(SHARE + bar) for title in titles)
    lines = [head]
    for row, *cells in zip(rows, *drawn, strict=True):
        lines.append(row.label.ljust(label) + "".join(" " * GAP + cell.ljust(SHARE + bar) for cell in cells))
    return [line.rstrip() for line in lines]


def legend(marks: Marks) -> str:
    return f"{marks.computing} computing, {marks.wire} on the wire; each with its share of the time."


@dataclass(frozen=True)
class _Row:
    label: str
    mark: str
    token: float
    chunk: float


def _rows(costs: Costs, marks: Marks) -> Iterator[_Row]:
    for number, stage in enumerate(costs.stages):
        label = f"{number}  {stage.host}"
        if len(label) > LABEL:
            label = label[: LABEL - 1] + marks.cut
        yield _Row(label, marks.computing, stage.decode_seconds, stage.chunk_seconds)
        for hop in costs.hops[number : number + 1]:
            yield _Row(f"   {marks.down}", marks.wire, hop.decode_seconds, hop.chunk_seconds)


def _panel(seconds: Sequence[float], rows: Sequence[_Row], width: int) -> list[str]:
    total, begun, cells = sum(seconds), 0.0, []
    for one, row in zip(seconds, rows, strict=True):
        share = one / total if total > 0 else 0.0
        start = min(round(width * begun), width - 1)
        length = max(1, round(width * (begun + share)) - start) if one > 0 else 0
        cells.append(f"{share:>4.0%} ".rjust(SHARE) + " " * start + row.mark * min(length, width - start))
        begun += share
    return cells
