"""Prices of walks raised until no walk is much cheaper than the best route known.

A step goes along what the cheapest walk uses too much of, as long as the distance to the best route allows (Polyak);
where the bound does not rise any more, steps become shorter.
Must not know: how a table is made; how routes are found.
"""

from __future__ import annotations

import math

import numpy as np

from edgesplit.revision.terms import Array
from edgesplit.revision.walks import Table, Walks, used

STALLED, STALLS = 2e-4, 6  # share of the bound that tables must win, and how often they may not
SHORTER, SHORTEST = 0.5, 0.01  # of a step


class Climb:
    """`bound`: no route is cheaper. `table`: the one that says so."""

    def __init__(self, walks: Walks) -> None:
        self.walks = walks
        self.bound, self.best = -math.inf, walks.prices.copy()
        self.step, self.stalls = SHORTER, 0
        self.table: Table = walks.table()

    def only(self, kept: list[int]) -> None:
        """Other hosts cannot be part of a better route."""
        self.walks.prices = self.best
        self.walks = self.walks.only(kept)
        self.best, self.table = self.walks.prices.copy(), self.walks.table()

    def rise(self, tables: int, route: float, *, learn: bool) -> bool:
        """At most so many tables more; `route`: what the best one known costs. False: no route is left."""
        walks, terms = self.walks, self.walks.terms
        self.step, self.stalls = SHORTER, 0
        for _ in range(tables):
            table = walks.table()
            value = table.least(terms.entry)
            if math.isinf(value):
                return False
            self._keep(value)
            walk = walks.cheapest(table)
            if self.bound >= route:
                break
            if learn and walks.learn(walk):
                self.stalls = 0
                continue
            if self.stalls >= STALLS:
                self.step, self.stalls = self.step * SHORTER, 0
                walks.prices = self.best.copy()
                if self.step < SHORTEST:
                    break
            aim = route if math.isfinite(route) else value + abs(value) / 2
            self._along(*used(terms, walk), len(walk), self.step * (aim - value))
        walks.prices = self.best.copy()
        self.table = walks.table()
        return True

    def _keep(self, value: float) -> None:
        self.stalls = 0 if value > self.bound + STALLED * abs(value) else self.stalls + 1
        if value > self.bound:
            self.bound, self.best = value, self.walks.prices.copy()

    def _along(self, held: Array, busy: list[Array], stages: int, rise: float) -> None:
        terms, prices = self.walks.terms, self.walks.prices
        unit = float(np.diff(terms.memory).max())  # so that memory and stages are of a size
        over = (held - terms.room) / unit
        over[(prices.memory <= 0) & (over < 0)] = 0.0
        more = stages - terms.most_stages if prices.stage > 0 or stages > terms.most_stages else 0
        length = float(over @ over) + more * more
        if length > 0:
            prices.memory = np.maximum(0.0, prices.memory + rise / length * over / unit)
            prices.stage = max(0.0, prices.stage + rise / length * more)
        for number, (own, weight) in enumerate(zip(busy, terms.lines[0].maxima, strict=True)):
            ahead = own - own.mean()
            most, square = float(np.abs(ahead).max()), float(ahead @ ahead)
            if weight > 0 and most > 0:
                far = min(0.1 * self.step * weight / most, rise / square)
                prices.maxima[number] = _shared(prices.maxima[number] + far * own, weight)


def _shared(values: Array, total: float) -> Array:
    """The nearest point whose coordinates are not negative and sum to the total."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(values) + 1)
    last = int(np.nonzero(falling > excess)[0][-1])
    nearest: Array = np.maximum(0.0, values - excess[last])
    return nearest
