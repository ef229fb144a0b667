"""Times as bars of HTML: lanes along the ring, to scale. Every number in them is also said as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgesplit.cli.markup import Markup, el
from edgesplit.revision.cost import Costs
from edgesplit.revision.timeline import Span
from edgesplit.units import format_time

MOST = 16  # chunks that are drawn: more are stripes


def lanes(costs: Costs) -> list[str]:
    """The places along the ring, stages and hops in turn."""
    names = []
    for number, stage in enumerate(costs.stages):
        names.append(f"{number} {stage.host}")
        names += [f"to {hop.target}" for hop in costs.hops[number : number + 1]]
    return names


def way(title: str, names: Sequence[str], seconds: Sequence[float]) -> Markup:
    """One thing on its way around the ring: each bar begins where the one before ends."""
    total, begun, rows = sum(seconds), 0.0, []
    for lane, (name, one) in enumerate(zip(names, seconds, strict=True)):
        bars = [_bar(begun, one, total, "wire" if lane % 2 else "")] if one > 0 else []
        share = f"{one / total:.0%}" if total > 0 else ""
        rows.append(_lane(name, bars, f"{format_time(one)} {share}"))
        begun += one
    return _figure(f"{title}: {format_time(total)}", rows)


def chunks(title: str, names: Sequence[str], spans: Iterable[Span]) -> Markup:
    """Many on their way: a lane per stage and hop, a bar per chunk."""
    shown = [span for span in spans if span.chunk < MOST]
    end = max(span.end for span in shown)
    rows = []
    for lane, name in enumerate(names):
        own = [span for span in shown if span.lane == lane]
        bars = [
            _bar(span.start, span.end - span.start, end, _kind(span), f"chunk {span.chunk + 1}")
            for span in own
            if span.end > span.start
        ]
        rows.append(_lane(name, bars, format_time(max(span.end for span in own))))
    return _figure(title, rows)


def _kind(span: Span) -> str:
    if span.kind == "wire":
        return "wire"
    return "odd" if span.chunk % 2 else ""


def _bar(start: float, length: float, whole: float, kind: str, title: str = "") -> Markup:
    left = min(start / whole * 100, 100)
    return el(
        "i", style=f"left:{left:.2f}%;width:{min(length / whole * 100, 100 - left):.2f}%", class_=kind, title=title
    )


def _lane(name: str, bars: Sequence[Markup], figure: str) -> Markup:
    track = el("div", *bars, class_="track", aria_hidden="true")
    return el("div", el("span", name), track, el("span", figure, class_="figure"), class_="lane")


def _figure(caption: str, rows: Sequence[Markup]) -> Markup:
    return el("figure", el("figcaption", caption), *rows)


def key() -> Markup:
    marks = (("", "computing"), ("odd", "every second chunk"), ("wire", "on the wire"))
    parts: list[str] = []
    for kind, words in marks:
        parts += [el("i", class_=kind, aria_hidden="true"), words]
    return el("p", el("span", *parts, class_="track key"))
