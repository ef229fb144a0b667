"""What happens in a watch, one thing at a time: shown, printed as JSON, and kept.

Must not know: how it came about, who looks.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgesplit.orchestrator.decide import Decision
from edgesplit.profiling.capacity import State
from edgesplit.profiling.probes import Reading
from edgesplit.split import Split
from edgesplit.values import Value

Kind = Literal["reading", "keep", "move", "moved", "failed", "inventory", "standby"]


class Inputs(Value):
    """What a decision was made from. `pace`: factor on the profiled compute times; `others`: cores that others take;
    `links`: round trips in seconds, by "source -> target"; `token`: seconds per token, as the entry measured."""

    pace: dict[str, float] = Field(default_factory=dict)
    others: dict[str, float] = Field(default_factory=dict)
    links: dict[str, float] = Field(default_factory=dict)
    token: float | None = None
    running: int = 0  # sequences under way or waiting
    broken: str = ""


class Event(Value):
    """One thing that happened; `--json` prints one a line."""

    at: float
    event: Kind
    text: str
    epoch: int
    readings: dict[str, Reading | str] = Field(default_factory=dict)
    inputs: Inputs | None = None
    decision: Decision | None = None
    split: Split | None = None
    seconds: float | None = None


def inputs(state: State, running: Split) -> Inputs:
    entry = state.host(running.entry).reading
    return Inputs(
        pace={name: round(host.pace.level, 3) for name, host in state.hosts.items()},
        others={name: round(host.others, 3) for name, host in state.hosts.items()},
        links={f"{a} -> {b}": link.rtt.level for a, row in state.links.items() for b, link in row.items()},
        token=entry.time_per_token if entry else None,
        running=entry.running if entry else 0,
        broken=entry.broken if entry else "",
    )
