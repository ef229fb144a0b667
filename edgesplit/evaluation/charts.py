"""A scenario's runs as one SVG: latency of each request over time, and which host held how many blocks.

Must not know: files, where the records come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from edgesplit.evaluation.record import Look, Run

WIDTH, LEFT, RIGHT = 860, 64, 12
SCATTER, LANE, GAP = 220, 22, 34  # heights, pixels
HEAD = 40
COLOURS = {"static": "#c2410c", "adaptive": "#1d4ed8"}
GRID, TEXT = "#d4d4d8", "#3f3f46"
FONT = 'font-family="system-ui, sans-serif" font-size="12"'
LOWEST = 0.05  # seconds, of the logarithmic axis


def chart(title: str, runs: Sequence[Run]) -> str:
    """`runs`: of one repetition or several; where blocks were is drawn of the first adaptive one."""
    seconds = max(run.seconds for run in runs)
    slowest = max([1.0, *(answer.ended - answer.asked for run in runs for answer in run.answers)])
    axes = _Axes(seconds, slowest)
    adaptive = next((run for run in runs if run.mode == "adaptive"), None)
    hosts = sorted(adaptive.looks[0].busy) if adaptive and adaptive.looks else []
    height = HEAD + SCATTER + GAP + (len(hosts) * LANE + GAP if hosts else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 16, title, weight="bold"),
        *_legend(),
        *_grid(axes),
        *_events(runs, axes, height - GAP),
        *_points(runs, axes),
        *(_lanes(adaptive.looks, hosts, axes) if adaptive and hosts else ()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Axes:
    def __init__(self, seconds: float, slowest: float) -> None:
        self.seconds, self.slowest = seconds, slowest

    def x(self, at: float) -> float:
        share = min(1.0, max(0.0, at / self.seconds))
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, latency: float) -> float:
        share = math.log(max(latency, LOWEST) / LOWEST) / math.log(self.slowest / LOWEST)
        return round(HEAD + SCATTER * (1 - share), 1)


def _legend() -> Iterator[str]:
    for number, (mode, colour) in enumerate(COLOURS.items()):
        x = WIDTH - 250 + 80 * number
        yield f'<circle cx="{x}" cy="12" r="4" fill="{colour}"/>'
        yield _text(x + 9, 16, mode)
    yield f'<path d="M{WIDTH - 84} 8 l8 8 m0 -8 l-8 8" stroke="{TEXT}" stroke-width="1.5"/>'
    yield _text(WIDTH - 70, 16, "no answer")


def _grid(axes: _Axes) -> Iterator[str]:
    for latency in (0.1, 0.3, 1, 3, 10, 30):
        if latency <= axes.slowest:
            y = axes.y(latency)
            yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{GRID}"/>'
            yield _text(LEFT - 6, y + 4, f"{latency:g} s", anchor="end")
    step = 10 if axes.seconds <= 120 else 60
    for at in range(0, int(axes.seconds) + 1, step):
        yield _text(axes.x(at), HEAD + SCATTER + 16, f"{at}", anchor="middle")
    yield _text(LEFT - 6, HEAD + SCATTER + 16, "s", anchor="end")


def _events(runs: Sequence[Run], axes: _Axes, bottom: float) -> Iterator[str]:
    for number, change in enumerate(runs[0].changes):
        x = axes.x(change.at)
        yield f'<line x1="{x}" x2="{x}" y1="{HEAD - 6}" y2="{bottom}" stroke="{TEXT}" stroke-dasharray="3 3"/>'
        yield _text(x + 3, HEAD + 4 + 13 * (number % 3), change.text)


def _points(runs: Sequence[Run], axes: _Axes) -> Iterator[str]:
    for run in runs:
        colour = COLOURS[run.mode]
        for answer in run.answers:
            x, y = axes.x(answer.asked), axes.y(answer.ended - answer.asked)
            if answer.whole:
                yield f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}" fill-opacity="0.6"/>'
            else:
                yield f'<path d="M{x - 3} {y - 3} l6 6 m0 -6 l-6 6" stroke="{colour}" stroke-width="1.5"/>'


def _lanes(looks: Sequence[Look], hosts: Sequence[str], axes: _Axes) -> Iterator[str]:
    """Per host a row: bars while it holds blocks, as strong as it holds many."""
    top = HEAD + SCATTER + GAP
    blocks = 1 + max((block for look in looks for held in look.loaded.values() for block in held), default=0)
    yield _text(LEFT, top - 4, "adaptive: blocks that each host holds")
    for row, host in enumerate(hosts):
        y = top + row * LANE + 4
        yield _text(LEFT - 6, y + 13, host, anchor="end")
        for begin, end, count in _stretches(looks, host):
            x, width = axes.x(begin), max(0.5, axes.x(end) - axes.x(begin))
            strength = 0.15 + 0.85 * count / blocks
            yield (
                f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{LANE - 6}" fill="{COLOURS["adaptive"]}" '
                f'fill-opacity="{strength:.2f}"/>'
            )
            if width > 14:
                yield _text(x + 3, y + 12, str(count), fill="white" if strength > 0.5 else TEXT)


def _stretches(looks: Sequence[Look], host: str) -> Iterator[tuple[float, float, int]]:
    """(from, to, blocks) as long as their number stays."""
    counts = [(look.at, len(look.loaded.get(host, ()))) for look in looks]
    counts.append((looks[-1].at, -1))
    begin, held = counts[0]
    for at, count in counts[1:]:
        if count != held:
            if held:
                yield begin, at, held
            begin, held = at, count


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = TEXT, weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" {FONT} fill="{fill}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
