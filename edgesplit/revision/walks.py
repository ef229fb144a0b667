"""A bound on every route, from walks: ways through the hosts that forget some of those they came by.

    walk      visits of hosts one after another, until all units are placed; what a host holds fits each visit
    prices    of a host's memory, of what makes it the busiest, of a stage: a walk that uses too much pays for it,
              and no route pays more than it costs in truth (Lagrange)
    memory    a host remembers which hosts of its neighbourhood a walk has visited since it came near them; none of
              these is visited again (the ng-routes of Baldacci, Mingozzi and Roberti)

The cheapest walk is a matter of a table: unit by unit backwards, the least that is still to come. Prices climb along
what the cheapest walks use too much of; neighbourhoods grow by the cycles that these walks contain.
Must not know: how routes are searched for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesplit.revision.terms import CHUNK, KINDS, STEP, Array, Terms

Bits = NDArray[np.int64]
Visit = tuple[int, int, int]  # host, the first unit, the unit after the last
CELLS = 20_000_000  # that a table may look at: hosts x hosts x units x what a host remembers
MOST_REMEMBERED = 8


@dataclass
class Prices:
    memory: Array  # per byte
    maxima: list[Array]  # per maximum and host; they sum to its weight
    stage: float

    def copy(self) -> Prices:
        return Prices(self.memory.copy(), [one.copy() for one in self.maxima], self.stage)


@dataclass(frozen=True)
class Table:
    """`begin`: unit x host x memory, the least from a visit that begins there; `end`: from a visit that ended there.
    `visits`: by the first unit, length - 1 x host, what a visit costs, infinite where it may not be so long.
    `constant`: what every walk costs besides."""

    begin: Array
    end: Array
    visits: list[Array]
    constant: float

    def least(self, entry: int) -> float:
        return float(self.begin[0, entry, 0]) + self.constant


class Walks:
    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        count = len(terms.hosts)
        weights = terms.lines[0].maxima
        self.prices = Prices(np.zeros(count), [np.full(count, weight / count) for weight in weights], 0.0)
        self.near: list[list[int]] = [[] for _ in range(count)]
        self.extra = self._throttled() if terms.throttled else None
        self._index()

    @property
    def remembered(self) -> int:
        """Hosts that one host may remember."""
        count = len(self.terms.hosts)
        cells = CELLS / (count * count * self.terms.units)
        return max(0, min(MOST_REMEMBERED, count - 1, int(np.log2(max(1.0, cells)))))

    def only(self, kept: Sequence[int]) -> Walks:
        """Of these hosts, with prices and neighbourhoods as they are."""
        walks = Walks(self.terms.only(kept))
        rows, at = list(kept), {host: number for number, host in enumerate(kept)}
        lost = [float(one.sum() - one[rows].sum()) for one in self.prices.maxima]
        walks.prices = Prices(
            self.prices.memory[rows],
            [one[rows] + more / len(rows) for one, more in zip(self.prices.maxima, lost, strict=True)],
            self.prices.stage,
        )
        walks.near = [[at[host] for host in self.near[number] if host in at] for number in rows]
        walks._index()
        return walks

    # What is remembered

    def _index(self) -> None:
        """`bit`: host x remembered host -> its bit; `to`: host x memory x next host -> cell of the next one's memory,
        `banned`: or it may not be visited."""
        count = len(self.terms.hosts)
        width = max(map(len, self.near))
        self.bit: Bits = np.zeros((count, count), dtype=np.int64)
        for host, others in enumerate(self.near):
            for place, other in enumerate(others):
                self.bit[host, other] = 1 << place
        memories = np.arange(1 << width)
        to = np.zeros((count, len(memories), count), dtype=np.int64)
        self.banned = np.zeros(to.shape, dtype=bool)
        for host, others in enumerate(self.near):
            for place, other in enumerate(others):
                has = (memories >> place & 1).astype(bool)
                to[host, has] |= self.bit[:, other]
                self.banned[host, has, other] = True
            if host != self.terms.entry:
                to[host] |= self.bit[:, host]
        self.to = to + np.arange(count) * len(memories)
        self.width = len(memories)

    def learn(self, walk: Sequence[Visit]) -> bool:
        """Hosts that a cycle comes by remember where it began, where they may; did any?"""
        hosts, most = [host for host, _, _ in walk], self.remembered
        more = False
        for place, host in enumerate(hosts):
            if host == self.terms.entry or host not in hosts[place + 1 :]:
                continue
            between = hosts[place + 1 : hosts.index(host, place + 1)]
            if all(host in self.near[other] or len(self.near[other]) < most for other in between):
                for other in between:
                    if host not in self.near[other]:
                        self.near[other].append(host)
                        more = True
        if more:
            self._index()
        return more

    # The table

    def _throttled(self) -> list[Array]:
        """By the first unit: length x host, what a visit takes longer than a share of its cores says."""
        terms, line, found = self.terms, self.terms.lines[0], []
        for begin in range(terms.units):
            longest = int((terms.ends[:, begin] - begin).max())
            more = np.zeros((longest, len(terms.hosts)))
            for kind, weight in ((CHUNK, line.chunk), (STEP, line.step)):
                taken = terms.times[kind][:, begin + 1 : begin + longest + 1] - terms.times[kind][:, [begin]]
                taken = taken.T + terms.stage[kind]
                more += weight * np.maximum(0, taken - terms.grace - terms.share * taken)
            found.append(more)
        return found

    def _priced(self) -> tuple[Array, Array]:
        """Of a visit: once, and of all units before."""
        terms, prices, line = self.terms, self.prices, self.terms.lines[0]
        weights = np.zeros((KINDS, len(terms.hosts)))
        weights[CHUNK] += line.chunk * terms.share
        weights[STEP] += line.step * terms.share + line.waiting
        for most, price in zip(terms.maxima, prices.maxima, strict=True):
            weights += np.outer(most.weights, price)
        once = (weights * terms.stage).sum(axis=0) + prices.memory * terms.common + prices.stage
        units = (weights[:, :, None] * terms.times).sum(axis=0) + terms.exposed
        return once, units + prices.memory[:, None] * terms.memory

    def table(self) -> Table:
        terms = self.terms
        once, units = self._priced()
        shape = (terms.units + 1, len(terms.hosts), self.width)
        begin, end = np.full(shape, np.inf), np.full(shape, np.inf)
        end[terms.units, terms.entry] = 0.0
        visits = [self._visits(unit, units) + once for unit in range(terms.units)]
        for unit in range(terms.units - 1, -1, -1):
            if len(visits[unit]):
                ahead = end[unit + 1 : unit + 1 + len(visits[unit])]
                begin[unit] = (ahead + visits[unit][:, :, None]).min(axis=0)
            if unit > 0:
                onward = begin[unit].ravel()[self.to] + terms.hops[0][unit - 1][:, None, :]
                onward[self.banned] = np.inf
                end[unit] = onward.min(axis=2)
        paid = self.prices.memory @ terms.room + self.prices.stage * terms.most_stages
        return Table(begin, end, visits, terms.lines[0].constant - float(paid))

    def _visits(self, begin: int, units: Array) -> Array:
        ends = self.terms.ends[:, begin]
        longest = int((ends - begin).max())
        cost: Array = units[:, begin + 1 : begin + longest + 1].T - units[:, begin]
        if self.extra is not None:
            cost = cost + self.extra[begin]
        return np.where(np.arange(begin + 1, begin + longest + 1)[:, None] <= ends, cost, np.inf)

    def cheapest(self, table: Table) -> list[Visit]:
        terms = self.terms
        host, begin, memory = terms.entry, 0, 0
        walk: list[Visit] = []
        while True:
            cost = table.visits[begin][:, host]
            end = begin + 1 + int(np.argmin(table.end[begin + 1 : begin + 1 + len(cost), host, memory] + cost))
            walk.append((host, begin, end))
            if end == terms.units:
                return walk
            onward = table.begin[end].ravel()[self.to[host, memory]] + terms.hops[0][end - 1][host]
            onward[self.banned[host, memory]] = np.inf
            target = int(np.argmin(onward))
            memory = int(self.to[host, memory, target]) % self.width
            host, begin = target, end

    def through(self, table: Table) -> Array:
        """By host: no walk that visits it is cheaper. What comes before a visit remembers nothing here."""
        terms = self.terms
        begin = np.full((terms.units, len(terms.hosts)), np.inf)
        end = np.full((terms.units + 1, len(terms.hosts)), np.inf)
        begin[0, terms.entry] = 0.0
        for unit in range(terms.units):
            if unit > 0:
                begin[unit] = (end[unit][:, None] + terms.hops[0][unit - 1]).min(axis=0)
            cost = table.visits[unit]
            ahead = end[unit + 1 : unit + 1 + len(cost)]
            np.minimum(ahead, begin[unit] + cost, out=ahead)
        least: Array = (begin + table.begin[:-1].min(axis=2)).min(axis=0) + table.constant
        return least


def used(terms: Terms, walk: Sequence[Visit]) -> tuple[Array, list[Array]]:
    """Bytes a host holds, and by maximum what keeps it busy."""
    held = np.zeros(len(terms.hosts))
    taken = np.zeros((KINDS, len(terms.hosts)))
    for host, begin, end in walk:
        held[host] += terms.memory[end] - terms.memory[begin] + terms.common
        taken[:, host] += terms.times[:, host, end] - terms.times[:, host, begin] + terms.stage[:, host]
    return held, [np.array(most.weights) @ taken for most in terms.maxima]
