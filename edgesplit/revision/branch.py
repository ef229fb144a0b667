"""Branch and cut: an integer program solved through its relaxations, with cuts and bounds of our own.

HiGHS solves the relaxations, each from where the last one ended. What is left to do by hand is little, because the
relaxation with its cuts is almost whole: a few dozen nodes, where HiGHS's own search takes ten times as long over its
first one. Depth first until a bound is no longer the least, then from the least one: equal problems, equal answers.
Must not know: what the variables mean, except which of them form a route.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import highspy

from edgesplit.revision.cuts import Hop, unreached
from edgesplit.revision.highs import solved

TOLERANCE = 1e-9  # of the solver, on numbers scaled to about 1
WHOLE = 1e-6  # from a whole number
ROUNDS = 300  # of cuts at the root; elsewhere a round is as good as the next node
STALLED, STALLS = 1e-6, 8  # share of the value that a round must win, and how often it may not
NODES = 3_000  # then the best split so far is the answer, with its gap
Bounds = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Route:
    """The columns of one segment that form a route."""

    first: dict[str, int]
    visit: dict[str, int]
    arc: dict[Hop, int]


@dataclass(frozen=True)
class Shape:
    """What must hold beside the rows. `whole`: columns that must be whole, by importance; `routes`: each must be one
    way from its beginning to its end; `wrong`: of whole values, columns that together break a limit, which a row cannot
    tell from its solver's tolerance."""

    whole: Sequence[Sequence[int]]
    routes: Sequence[Route]
    wrong: Callable[[Sequence[float]], Sequence[int]] = lambda _: ()


@dataclass
class Found:
    """The best values of the columns, and the bound that no others are below. `values` None: there are none."""

    values: list[float] | None = None
    objective: float = math.inf
    bound: float = -math.inf
    nodes: int = 0


@dataclass(order=True)
class _Node:
    bound: float
    number: int
    bounds: Bounds = field(compare=False)


@dataclass(frozen=True)
class Enough:
    """`known`: what does not cost less is not looked for. `gap`: share of the objective and its `constant` by which the
    answer may be worse than the bound. `go_on`: is there time for another node?"""

    known: float = math.inf
    gap: float = 0.0
    constant: float = 0.0
    go_on: Callable[[], bool] = lambda: True

    def below(self, objective: float) -> float:
        """A bound from here on is as good as proven."""
        return objective - max(TOLERANCE, self.gap * (objective + self.constant)) if objective < math.inf else math.inf


class Search:
    def __init__(self, model: Any, shape: Shape, enough: Enough | None = None) -> None:
        self.model = model
        self.shape = shape
        self.enough = enough or Enough()
        program = model.getLp()
        self.limits = list(zip(program.col_lower_, program.col_upper_, strict=True))
        self.rows = model.getNumRow()
        self.set: Bounds = {}
        self.found = Found(objective=self.enough.known)
        self.root, self.costs = -math.inf, [0.0] * len(self.limits)

    def run(self, nodes: int = NODES) -> Found:
        found, waiting, number = self.found, [_Node(-math.inf, 0, {})], 0
        while waiting:
            node = heapq.heappop(waiting)
            found.bound = min(node.bound, found.objective)
            if self._settled(node.bound) or self._ended(nodes):
                return found
            bounds: Bounds | None = node.bounds
            while bounds is not None:
                if found.values is not None and self._ended(nodes):  # no child is below the node that was taken
                    return found
                bounds, other = self._visit(bounds)
                if other is not None:
                    number += 1
                    heapq.heappush(waiting, _Node(other[0], number, other[1]))
        found.bound = found.objective if self.enough.gap == 0 else self.enough.below(found.objective)
        return found

    def _ended(self, nodes: int) -> bool:
        return self.found.nodes >= nodes or (self.found.nodes > 0 and not self.enough.go_on())

    def _settled(self, bound: float) -> bool:
        return bound >= self.enough.below(self.found.objective)

    def _visit(self, bounds: Bounds) -> tuple[Bounds | None, tuple[float, Bounds] | None]:
        """One node: the child to go on with, and the other one with its bound."""
        first = self.found.nodes == 0
        self.found.nodes += 1
        self._apply(bounds)
        values = self._relax(ROUNDS if first else 1)
        if values is None:
            return None, None
        bound = self._value()
        if first:
            self._remember(bound)
        if self._settled(bound):
            return None, None
        wrong = () if self._fractional(values) else self.shape.wrong(values)
        halves = self._around(values, bounds, wrong) if wrong else self._halves(values, bounds)
        if halves is None:
            if not wrong:
                self._keep(values, bound)
            return None, None
        return halves[0], (bound, halves[1])

    # Relaxations

    def _apply(self, bounds: Bounds) -> None:
        for column in self.set.keys() | bounds.keys():
            self.model.changeColBounds(column, *bounds.get(column, self.limits[column]))
        self.set = bounds

    def _value(self) -> float:
        return float(self.model.getInfo().objective_function_value)

    def _relax(self, rounds: int) -> list[float] | None:
        """Cuts until none is violated, or none helps; a whole solution breaks none. None: nothing is left."""
        stalls, last = 0, -math.inf
        while True:
            if not solved(self.model):
                return None
            value = self._value()
            if self._settled(value):
                return []
            values = list(self.model.getSolution().col_value)
            stalls = stalls + 1 if value - last <= STALLED * abs(value) else 0
            last, rounds = value, rounds - 1
            enough = rounds < 0 or stalls == STALLS
            if enough and self._fractional(values):
                return values
            cuts = [self._cut(route, values) for route in self.shape.routes]
            if not any(cuts):
                return values

    def _cut(self, route: Route, values: list[float]) -> bool:
        first = {host: values[column] for host, column in route.first.items()}
        arcs = {hop: values[column] for hop, column in route.arc.items()}
        visits = {host: values[column] for host, column in route.visit.items()}
        found = unreached(first, arcs, visits)
        for host, inside in found:
            entering = [route.first[each] for each in sorted(inside) if each in route.first]
            entering += [arc for hop, arc in route.arc.items() if hop[1] in inside and hop[0] not in inside]
            columns = [*entering, route.visit[host]]
            self.model.addRow(0.0, highspy.kHighsInf, len(columns), columns, [*[1.0] * len(entering), -1.0])
        return bool(found)

    # Bounds that hold everywhere

    def _remember(self, bound: float) -> None:
        """The root's value and reduced costs; its cuts that do not bind any more are dropped."""
        self.root, self.costs = bound, list(self.model.getSolution().col_dual)
        values = self.model.getSolution().row_value
        lower = self.model.getLp().row_lower_
        idle = [row for row in range(self.rows, len(values)) if values[row] > lower[row] + WHOLE]
        if idle:
            self.model.deleteRows(len(idle), idle)
        self._fix(self.found.objective)

    def _keep(self, values: list[float], value: float) -> None:
        self.found.values, self.found.objective = values, value
        self._fix(value)

    def _fix(self, value: float) -> None:
        """A whole column that costs more than the distance of the best solution from the root stays at its least value
        in every better one."""
        for column in (column for columns in self.shape.whole for column in columns):
            least, most = self.limits[column]
            if self.costs[column] > value - self.root + WHOLE and most > least:
                self.limits[column] = (least, least)
                self.model.changeColBounds(column, least, least)

    # Branching

    def _fractional(self, values: list[float]) -> list[int]:
        """Columns that must be whole and are not: of the most important kind that has any, most fractional first."""
        for columns in self.shape.whole:
            broken = [column for column in columns if _off(values[column]) > WHOLE]
            if broken:
                return sorted(broken, key=lambda column: (-round(_off(values[column]), 6), column))
        return []

    def _halves(self, values: list[float], bounds: Bounds) -> tuple[Bounds, Bounds] | None:
        """Two sets of bounds that part the node, the more promising one first; None if it is whole."""
        broken = self._fractional(values)
        if broken:
            column = broken[0]
            least, most = bounds.get(column, self.limits[column])
            floor = math.floor(values[column])
            down, up = {**bounds, column: (least, floor)}, {**bounds, column: (floor + 1.0, most)}
            return (up, down) if values[column] - floor >= 0.5 else (down, up)
        return None

    def _around(self, values: list[float], bounds: Bounds, wrong: Sequence[int]) -> tuple[Bounds, Bounds] | None:
        """Below and above what is wrong, or what is wrong itself with less else around it; None where nothing is."""
        for column in wrong:
            least, most = bounds.get(column, self.limits[column])
            value = float(round(values[column]))
            if least < value:
                return {**bounds, column: (least, value - 1)}, {**bounds, column: (value, most)}
            if value < most:
                return {**bounds, column: (value + 1, most)}, {**bounds, column: (least, value)}
        return None


def _off(value: float) -> float:
    return abs(value - round(value))
