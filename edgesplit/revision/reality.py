"""Predicted against measured, per stage and per link; and what is learned from it for the next plan (R13).

Must not know: who measured, nor where the lessons are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from edgesplit.fleet import Learned
from edgesplit.revision.cost import price
from edgesplit.revision.problem import Problem
from edgesplit.split import Split
from edgesplit.values import Value

FEWEST = 16  # decode steps a stage must have done before its times teach anything
TRUST = 0.5  # how far a correction goes towards what was measured: one odd look does half the harm
MOST = 4.0  # a host that differs from its profile by a larger factor is not corrected further: measure it again


class Seen(Value):
    """What a ring says of itself, in seconds: medians of recent decode steps, None where there was none.

    `rows`: sequences in a step. `stages`: of each stage's forward; `round_trips`: of each link, as its sender's kernel
    sees it; `whole`: of a turn around the ring, of which no stage accounts for `wire`; `token`: between two tokens of
    an answer.
    """

    steps: int = 0
    rows: int = 1
    stages: tuple[float | None, ...]
    round_trips: tuple[float | None, ...]
    wire: float | None = None
    whole: float | None = None
    token: float | None = None


def seen(split: Split, states: Mapping[str, Mapping[str, Any] | None]) -> Seen:
    """From the reports of the runners, by host; None, or no entry, where there is none."""
    epochs = {host: ((state or {}).get("epochs") or {}).get(str(split.epoch)) or {} for host, state in states.items()}
    clocks = [
        (epochs.get(stage.host, {}).get("stages") or {}).get(str(number)) or {}
        for number, stage in enumerate(split.stages)
    ]
    trips = [(epochs.get(left.host, {}).get("links") or {}).get(right.host) for left, right in pairwise(split.stages)]
    entry = (states.get(split.entry) or {}).get("entry") or {}
    turn = entry.get("turn") or {}
    return Seen(
        steps=min((clock.get("steps", 0) for clock in clocks), default=0),
        rows=max(1, round(clocks[0].get("rows") or 1)),
        stages=tuple(clock.get("decode_s") for clock in clocks),
        round_trips=tuple(trips),
        wire=turn.get("wire_s"),
        whole=turn.get("whole_s"),
        token=entry.get("time_per_token_s"),
    )


class Pair(Value):
    """One thing that was predicted, and measured; seconds. `name`: the stage's host, or the link's two."""

    name: str
    predicted: float
    measured: float | None

    @property
    def error(self) -> float | None:
        """Of the prediction, as a share of what was measured."""
        return None if not self.measured else self.predicted / self.measured - 1


class Reality(Value):
    """For decode steps of as many sequences as there were. `entry`: what a token takes beside its turn."""

    steps: int
    rows: int
    stages: tuple[Pair, ...]
    links: tuple[Pair, ...]
    entry: Pair
    token: Pair


def compare(split: Split, problem: Problem, seen: Seen) -> Reality:
    """A link's share of what no stage accounts for: its own round trip and bytes, and an equal part of the rest."""
    costs = price(split, problem.batched(max(1, seen.rows)))
    choice = problem.hosts[split.entry].choice * max(1, seen.rows)
    taken = [stage.decode_seconds for stage in costs.stages]
    taken[-1] = max(0.0, taken[-1] - choice)
    stages = [Pair(name=stage.host, predicted=time, measured=at)
              for stage, time, at in zip(split.stages, taken, seen.stages, strict=True)]  # fmt: skip
    beside = None if seen.token is None or seen.whole is None else max(0.0, seen.token - seen.whole)
    return Reality(
        steps=seen.steps,
        rows=seen.rows,
        stages=tuple(stages),
        links=tuple(_links(split, problem, seen, [hop.decode_seconds for hop in costs.hops])),
        entry=Pair(name=split.entry, predicted=choice, measured=beside),
        token=Pair(name="token", predicted=sum(taken) + choice + sum(hop.decode_seconds for hop in costs.hops),
                   measured=seen.token),
    )  # fmt: skip


def _links(split: Split, problem: Problem, seen: Seen, predicted: Sequence[float]) -> list[Pair]:
    hops = list(pairwise(split.stages))
    ways = []
    for (left, right), trip in zip(hops, seen.round_trips, strict=True):
        link = problem.links[left.host, right.host]
        bytes_ = seen.rows * problem.sent[left.last]
        ways.append((link.rtt if trip is None else trip) / 2 + bytes_ / link.bandwidth)
    rest = None if seen.wire is None or not hops else max(0.0, seen.wire - sum(ways)) / len(hops)
    return [
        Pair(name=f"{left.host} -> {right.host}", predicted=time, measured=None if rest is None else way + rest)
        for (left, right), way, time in zip(hops, ways, predicted, strict=True)
    ]


def learn(before: Learned, reality: Reality) -> Learned:
    """The corrections with which the next prediction is nearer to what was measured."""
    if reality.steps < FEWEST:
        return before
    hosts = {**before.hosts, **_factors(before.hosts, reality.stages)}
    links = {source: dict(row) for source, row in before.links.items()}
    for pair in reality.links:
        if pair.measured is not None:
            source, target = pair.name.split(" -> ")
            row = links.setdefault(source, {})
            row[target] = row.get(target, 0.0) + TRUST * (pair.measured - pair.predicted)
    entry = before.entry
    if reality.entry.measured is not None:
        entry = max(0.0, entry + TRUST * (reality.entry.measured - reality.entry.predicted) / max(1, reality.rows))
    return Learned(hosts=hosts, links=links, entry=entry)


def _factors(before: Mapping[str, float], stages: Sequence[Pair]) -> dict[str, float]:
    """Per host, over all its stages."""
    found = {}
    for host in {stage.name for stage in stages}:
        mine = [stage for stage in stages if stage.name == host and stage.measured is not None]
        predicted, measured = sum(one.predicted for one in mine), sum(one.measured or 0.0 for one in mine)
        if predicted > 0 and measured > 0:
            factor = before.get(host, 1.0) * (measured / predicted) ** TRUST
            found[host] = min(MOST, max(1 / MOST, factor))
    return found
