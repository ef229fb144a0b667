"""The privacy penalty P of counted layers, exactly, though they have no positions.

Layer k of a segment weighs less than the one before by the same step, so what a route exposes is what as many layers
would expose at the deep end, and a step for every pair of an untrusted layer and a trusted one behind it:

    P = deepest(untrusted units) + step x sum over trusted hosts of count x before
    before[h]      untrusted units that the route has passed when it comes to h: a flow along it
    level[h,c]     the host has at least c units; count x before = sum of before over its levels

Must not know: what else the program weighs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pulp

from edgesplit.revision.cuts import Hop

Expression = Any  # PuLP's; it is untyped here


@dataclass(frozen=True)
class Walk:
    """A segment's variables, and the depth weight of each of its units."""

    number: int
    last: dict[str, Expression]
    visit: dict[str, Expression]
    count: dict[str, Expression]
    arc: dict[Hop, Expression]
    limits: dict[str, int]
    weights: tuple[float, ...]


class Depth:
    """`variable`: makes one, from a name, keys and its upper bound. `levels`: those that must be whole."""

    def __init__(self, lp: Any, variable: Callable[..., Expression], trusted: frozenset[str]) -> None:
        self.lp = lp
        self.variable = variable
        self.trusted = trusted
        self.levels: list[Expression] = []

    def exposed(self, walk: Walk) -> Expression:
        inside = [host for host in walk.count if host in self.trusted]
        outside = [host for host in walk.count if host not in self.trusted]
        most = min(len(walk.weights), sum(walk.limits[host] for host in outside))
        if not outside:
            return pulp.LpAffineExpression()
        exposed = self._deepest(walk, outside, most)
        if not inside or not walk.arc:
            return exposed
        before = self._before(walk, outside, most)
        step = walk.weights[0] - walk.weights[1]
        return exposed + step * most * pulp.lpSum(self._product(walk, host, before[host]) for host in inside)

    def _deepest(self, walk: Walk, outside: list[str], most: int) -> Expression:
        """Convex in the number of units: the maximum of its tangents."""
        deepest = walk.weights[::-1]
        if len(deepest) == 1:
            return deepest[0] * pulp.lpSum(walk.count[host] for host in outside)
        units = self.variable("outside", walk.number, most=most)
        self.lp += units == pulp.lpSum(walk.count[host] for host in outside)
        exposed = self.variable("exposed", walk.number)
        for number, slope in enumerate(deepest[:most]):
            self.lp += exposed >= sum(deepest[:number]) - number * slope + slope * units
        return exposed

    def _before(self, walk: Walk, outside: list[str], most: int) -> dict[str, Expression]:
        """In units of `most`."""
        passed = {pair: self.variable("passed", walk.number, *pair) for pair in walk.arc}
        for pair, arc in walk.arc.items():
            self.lp += passed[pair] <= arc
            if (host := pair[0]) in outside:  # implied, but not by the relaxation: whoever leaves it passed its units
                missing = walk.limits[host] * walk.visit[host] - walk.count[host]
                self.lp += passed[pair] >= (walk.limits[host] * arc - missing) * (1 / most)
        before = {host: pulp.lpSum(one for pair, one in passed.items() if pair[1] == host) for host in walk.count}
        for host, came in before.items():
            own = walk.count[host] * (1 / most) if host in outside else 0
            onward = pulp.lpSum(one for pair, one in passed.items() if pair[0] == host)
            self.lp += onward + walk.last[host] >= came + own
        return before

    def _product(self, walk: Walk, host: str, before: Expression) -> Expression:
        """count x before, in units of the most untrusted units there may be."""
        levels = [self.variable("level", walk.number, host, level) for level in range(walk.limits[host])]
        self.levels += levels
        self.lp += pulp.lpSum(levels) == walk.count[host]
        return pulp.lpSum(self._above(walk, host, number, (level, before)) for number, level in enumerate(levels))

    def _above(self, walk: Walk, host: str, number: int, factors: tuple[Expression, Expression]) -> Expression:
        level, before = factors
        product = self.variable("product", walk.number, host, number)
        self.lp += product >= before + level - 1
        return product
