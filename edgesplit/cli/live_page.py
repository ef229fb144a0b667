"""The screen of edgesplit watch: the ring with its times, hosts, links, what was decided. From values to lines.

Must not know: terminals but by their size, clocks, where the values come from.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from edgesplit.units import format_size, format_time

GAP = 4  # columns between the ring and the hosts, where both have room
NAME = 22  # columns of a host's name or its blocks at most
BAR = 12  # columns of the longest bar
FIXED = 4  # lines of heading, blank and what is done now
TITLE = "bold"
DIM = "dim"
STYLES = {"move": "bold", "moved": "green", "failed": "red", "keep": "", "inventory": "cyan", "standby": DIM}
MARKS = {"serves": "green", "stands by": "cyan", "idle": "", "silent": "yellow", "gone": "red"}


@dataclass(frozen=True)
class StageRow:
    host: str
    blocks: str
    seconds: float | None  # of a decode step, measured
    hop: float | None  # half a round trip to the next host
    expected_hop: float | None


@dataclass(frozen=True)
class HostRow:
    name: str
    state: str  # a key of MARKS
    since: float | None  # seconds since it was heard of
    pace: float
    others: float
    cores: float | None
    free: int | None
    total: int | None


@dataclass(frozen=True)
class LinkRow:
    name: str
    rtt: float
    expected: float


@dataclass(frozen=True)
class Line:
    """One thing that was decided or done."""

    when: str
    epoch: int
    kind: str
    text: str


@dataclass(frozen=True)
class Picture:
    name: str
    clock: str
    epoch: int
    broken: str
    token: float | None
    wished: float | None
    running: int
    concurrency: int  # sequences at a time, by the plan
    at_once: int | None  # ... and as they are served, if not by it
    slow: float  # pace from which a host counts as slow
    standby: str
    doing: str
    stages: Sequence[StageRow] = ()
    hosts: Sequence[HostRow] = ()
    links: Sequence[LinkRow] = ()
    lines: Sequence[Line] = field(default_factory=tuple)


def page(picture: Picture, width: int, height: int) -> RenderableType:
    """All of it, in so many columns and lines."""
    ring, hosts, links = _ring(picture), _hosts(picture), _links(picture.links)
    if _columns(ring) + GAP + _columns(hosts) <= width:
        grid = Table.grid(padding=(0, GAP))
        grid.add_row(Group(ring, Text(), links) if picture.links else ring, hosts)
        top: list[RenderableType] = [grid]
        used = max(len(picture.stages) + 2 + (len(picture.links) + 3 if picture.links else 0), len(picture.hosts) + 2)
    else:
        top = [ring, Text(), hosts]
        used = len(picture.stages) + len(picture.hosts) + 5
        room = height - FIXED - used - len(picture.links) - 3
        if picture.links and room >= 6:
            top += [Text(), links]
            used += len(picture.links) + 3
    rest = max(3, height - FIXED - used - 3)
    return Group(_heading(picture, width), Text(), *top, Text(), *_decided(picture, width, rest), _doing(picture))


def _columns(table: Table) -> int:
    return Console(width=1000, file=io.StringIO()).measure(table).maximum


def _heading(picture: Picture, width: int) -> Text:
    left = Text(f"{picture.name}  ", TITLE)
    if picture.broken:
        left.append(f"epoch {picture.epoch} is broken: {picture.broken}", "bold red")
    else:
        left.append(f"epoch {picture.epoch} serves", "green")
        left.append(f"  {picture.running} under way")
        if picture.at_once is not None:
            fewer = picture.at_once < picture.concurrency
            left.append(f", {'only ' * fewer}{picture.at_once} at a time", "red" if fewer else "")
        left.append(*_service(picture))
    left.truncate(max(0, width - len(picture.clock) - 2), overflow="ellipsis")
    left.pad_right(max(0, width - left.cell_len - len(picture.clock)))
    return left.append(picture.clock, DIM)


def _service(picture: Picture) -> tuple[str, str]:
    """Against the service level, if there is one."""
    if picture.token is None:
        return "  no tokens measured yet", DIM
    told = f"  {format_time(picture.token)} per token"
    if picture.wished is None:
        return told, ""
    kept = picture.token <= picture.wished
    return f"{told} ({'within' if kept else 'OVER'} {format_time(picture.wished)})", "" if kept else "red"


def _table(title: str, *columns: str) -> Table:
    """A column called ">name" holds numbers."""
    table = Table(title=title, title_justify="left", title_style=TITLE, header_style=DIM, box=None, pad_edge=False,
                  show_edge=False)  # fmt: skip
    for column in columns:
        name = column.removeprefix(">")
        justify: JustifyMethod = "right" if name != column else "left"
        table.add_column(name, justify=justify, no_wrap=True, max_width=NAME if name in ("host", "blocks") else None)
    return table


def _ring(picture: Picture) -> Table:
    table = _table("Ring", "host", "blocks", ">step", "", ">hop")
    longest = max((stage.seconds or 0.0 for stage in picture.stages), default=0.0)
    for stage in picture.stages:
        bar = "█" * round(BAR * (stage.seconds or 0.0) / longest) if longest else ""
        hop = "" if stage.hop is None else f"↓ {format_time(stage.hop)}"
        table.add_row(stage.host, stage.blocks, _time(stage.seconds), Text(bar, DIM),
                      Text(hop, _worse(stage.hop, stage.expected_hop)))  # fmt: skip
    return table


def _hosts(picture: Picture) -> Table:
    table = _table("Hosts", "host", "does", ">pace", ">others", ">free memory", ">heard")
    for host in picture.hosts:
        heard = "never" if host.since is None else f"{host.since:.0f} s ago" if host.since >= 1 else "now"
        cores = "" if host.cores is None else f"{host.others:.1f} of {host.cores:g}"
        memory = "" if host.free is None or host.total is None else f"{format_size(host.free)}"
        pace = Text(f"{host.pace:.1f} x", "red" if host.pace > picture.slow else "")
        table.add_row(host.name, Text(host.state, MARKS[host.state]), pace, cores, memory, Text(heard, DIM))
    return table


def _links(links: Iterable[LinkRow]) -> Table:
    table = _table("Links beside their profile", "link", ">round trip", ">profiled")
    for link in links:
        table.add_row(
            link.name, Text(format_time(link.rtt), _worse(link.rtt, link.expected)), format_time(link.expected)
        )
    return table


def _decided(picture: Picture, width: int, room: int) -> Iterable[RenderableType]:
    """The newest last, whole, as many as there is room for."""
    yield Text("Decisions", TITLE)
    shown: list[Text] = []
    for line in reversed(picture.lines):
        text = Text(f"{line.when}  epoch {line.epoch}  {line.kind:<9} {line.text}", STYLES.get(line.kind, ""))
        rows = -(-text.cell_len // max(1, width))
        if rows > room and not shown:
            text.truncate(width * room, overflow="ellipsis")
            rows = room
        if rows > room:
            break
        room -= rows
        shown.append(text)
    yield from reversed(shown) if shown else [Text("nothing had to be decided yet", DIM)]


def _doing(picture: Picture) -> Text:
    return Text(picture.doing, "bold yellow") if picture.doing else Text(picture.standby, DIM, no_wrap=True)


def _worse(seen: float | None, expected: float | None) -> str:
    """Coloured from twice of what was expected, if that is more than a busy machine adds."""
    bad = seen is not None and expected is not None and seen > 2 * expected and seen - expected > 1e-3
    return "yellow" if bad else ""


def _time(seconds: float | None) -> str:
    return "" if seconds is None else format_time(seconds)
