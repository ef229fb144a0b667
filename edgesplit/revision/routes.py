"""The best route where few of many hosts are needed, or every layer is its own: by a bound from walks, and labels.

By turns: prices rise, a beam finds a route, hosts that no better route can visit are left out. When what is left is
little, labels look at all of it. Everything is limited by numbers of tables and labels, never by time.
Must not know: segments, the integer program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edgesplit.revision.climb import Climb
from edgesplit.revision.labels import Labels
from edgesplit.revision.problem import Problem
from edgesplit.revision.terms import Terms
from edgesplit.revision.walks import Visit, Walks

PLAIN, TABLES, TURNS = 60, 30, 5  # tables before anything is remembered, and in each turn
WIDTH = 20  # labels of a beam
LABELS = 2000  # that are looked at after a turn, twice as many after each
CLOSE = 0.06  # share of Phi between route and bound from which labels are looked at


@dataclass(frozen=True)
class Found:
    """`placement`: none where nothing below the cost given was found; `bound`: no route is cheaper."""

    placement: tuple[str, ...]
    cost: float
    bound: float

    @property
    def possible(self) -> bool:
        return bool(self.placement) or math.isfinite(self.bound)


def best_route(
    problem: Problem,
    terms: Terms,
    cost: float = math.inf,
    slack: float = 0.0,
    go_on: Callable[[], bool] = lambda: True,
) -> Found:
    """Cheaper than `cost`; `slack`: the share of Phi that another one may be cheaper by; `go_on`: is there time?"""
    climb = Climb(Walks(terms))
    possible = climb.rise(PLAIN, cost, learn=False)
    placement: tuple[str, ...] = ()
    bound = climb.bound
    for turn in range(TURNS):
        possible = possible and climb.rise(TABLES, cost, learn=True)
        if not possible:
            return Found(placement, cost, cost)
        bound = max(bound, climb.bound)
        beam = Labels(climb.walks, climb.table, cost)
        beam.beam(WIDTH)
        if beam.route:
            cost, placement = beam.cost, _placed(problem, climb.walks.terms, beam.route)
        if bound >= cost * (1 - slack) or not go_on():
            break
        _leave_out(climb, cost * (1 - slack))
        if math.isinf(cost) or (bound < cost * (1 - CLOSE) and turn < TURNS - 1):
            continue
        labels = Labels(climb.walks, climb.table, cost, slack)
        whole = labels.search(LABELS << turn, go_on)
        if labels.route:
            cost, placement = labels.cost, _placed(problem, climb.walks.terms, labels.route)
        bound = max(bound, min(labels.bound, cost))
        if whole:
            break
    return Found(placement, cost, min(bound, cost))


def _leave_out(climb: Climb, cost: float) -> None:
    terms = climb.walks.terms
    least = climb.walks.through(climb.table)
    kept = [host for host, one in enumerate(least) if one < cost or host == terms.entry]
    if len(kept) < len(terms.hosts):
        climb.only(kept)


def _placed(problem: Problem, terms: Terms, route: tuple[Visit, ...]) -> tuple[str, ...]:
    units = list(problem.units)
    return tuple(terms.hosts[host] for host, begin, end in route for unit in units[begin:end] for _ in unit)
