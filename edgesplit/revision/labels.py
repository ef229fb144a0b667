"""The best route, visit by visit: what begins like a better one is gone on with, the rest is left.

A label is the beginning of a route: which hosts it visited, what it costs so far, and what it costs at least in the
end, by the table of walks. Of two that end with the same unit on the same host, one that costs no more and visited no
other hosts leaves the second no reason to be. The entry alone may be visited again.
Must not know: how the table came about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesplit.revision.terms import CHUNK, KINDS, REQUEST, STEP, Array
from edgesplit.revision.walks import Table, Visit, Walks

SLIGHT = 1e-9  # share of Phi: no better
FULL = 1e-9  # of the load
RIVALS = 60  # that a label is compared with; the cheapest dominate most
SKETCHY = 8  # labels that are dominated or too dear are as much work as one that is gone on with


@dataclass(frozen=True, eq=False)
class Label:
    """`floor`: what it costs at walks' prices; `least`: and in the end at least. `held`, `taken`: of the entry."""

    least: float
    floor: float
    sums: tuple[float, ...]
    maxima: tuple[float, ...]
    host: int
    end: int
    visited: int  # a bit for each host but the entry
    held: int
    taken: tuple[float, ...]
    stages: int
    before: Label | None

    def dominates(self, other: Label) -> bool:
        return (
            not self.visited & ~other.visited
            and self.held <= other.held
            and self.stages <= other.stages
            and all(map(_no_more, self.sums, other.sums))
            and all(map(_no_more, self.maxima, other.maxima))
            and all(map(_no_more, self.taken, other.taken))
        )

    def visits(self) -> Iterator[Visit]:
        if self.before is not None:
            yield from self.before.visits()
            yield self.host, self.before.end, self.end


def _no_more(one: float, other: float) -> bool:
    return one <= other


class Labels:
    """`route`: the best one so far, cheaper than `cost` was; `bound`: no other is cheaper, after `search`."""

    def __init__(self, walks: Walks, table: Table, cost: float, slack: float = 0.0) -> None:
        self.walks, self.table, self.terms = walks, table, walks.terms
        self.cost, self.slack = cost, max(slack, SLIGHT)
        self.route: tuple[Visit, ...] = ()
        self.bound = -math.inf
        self.begins = np.where(np.arange(len(self.terms.hosts)) == self.terms.entry, 0.0, np.inf)
        self.bits = [0 if host == self.terms.entry else 1 << host for host in range(len(self.terms.hosts))]

    @property
    def enough(self) -> float:
        """What is no cheaper is not looked at."""
        return self.cost * (1 - self.slack) if math.isfinite(self.cost) else math.inf

    def beam(self, width: int) -> None:
        """A route, most likely a good one: of all that end with the same unit, the most promising."""
        waiting = self._begun()
        for unit in range(self.terms.units):
            promising = sorted(waiting[unit], key=lambda label: label.least)[:width]
            for label in _undominated(promising):
                self._go_on(label, waiting, width)

    def search(self, labels: int, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Every route that may be cheaper; False if there are more labels than these, or no time for them."""
        waiting = self._begun()
        for unit in range(self.terms.units):
            open_ = [label for label in waiting[unit] if label.least < self.enough]
            waiting[unit] = _undominated(sorted(open_, key=lambda label: label.least))
            labels -= max(len(waiting[unit]), len(open_) // SKETCHY)
            if labels < 0 or not go_on():
                left = [label.least for later in waiting[unit:] for label in later]
                self.bound = min([*left, self.enough])
                return False
            for label in waiting[unit]:
                self._go_on(label, waiting)
            waiting[unit] = []
        self.bound = self.enough
        return True

    def _begun(self) -> list[list[Label]]:
        lines = self.terms.lines
        first = Label(
            least=-math.inf,
            floor=self.table.constant,
            sums=tuple(line.constant for line in lines),
            maxima=(0.0,) * len(self.terms.maxima),
            host=self.terms.entry,
            end=0,
            visited=0,
            held=0,
            taken=(0.0,) * KINDS,
            stages=0,
            before=None,
        )
        return [[first], *([] for _ in range(self.terms.units))]

    def _go_on(self, label: Label, waiting: list[list[Label]], width: int = 0) -> None:
        """Every visit that may come next."""
        least = self._least(label)
        if not least.size:
            return
        lengths, hosts = np.nonzero(least < self.enough)
        if width and len(hosts) > width:
            best = np.argsort(least[lengths, hosts], kind="stable")[:width]
            lengths, hosts = lengths[best], hosts[best]
        if not len(hosts):
            return
        ends = label.end + 1 + lengths
        sums, maxima, taken = self._added(label, hosts, ends)
        cost = self.terms.value(sums, maxima)
        hops = self.terms.hops[0][label.end - 1][label.host, hosts] if label.end else 0.0
        spent = hops + self.table.visits[label.end][lengths, hosts]
        for number in np.nonzero(cost < self.enough)[0].tolist():
            host, end = int(hosts[number]), int(ends[number])
            on_entry = host == self.terms.entry
            more = int(self.terms.memory[end] - self.terms.memory[label.end]) + self.terms.common
            following = Label(
                least=float(least[lengths[number], host]),
                floor=label.floor + float(spent[number]),
                sums=tuple(float(one[number]) for one in sums),
                maxima=tuple(float(one[number]) for one in maxima),
                host=host,
                end=end,
                visited=label.visited | self.bits[host],
                held=label.held + more if on_entry else label.held,
                taken=tuple(float(one) for one in taken[:, number]) if on_entry else label.taken,
                stages=label.stages + 1,
                before=label,
            )
            if end == self.terms.units:
                if cost[number] < self.enough:
                    self.cost, self.route = float(cost[number]), tuple(following.visits())
            else:
                waiting[end].append(following)

    def _least(self, label: Label) -> Array:
        """Length - 1 x host: what a route costs at least that goes on so; infinite where it may not."""
        terms, table, begin = self.terms, self.table, label.end
        visited = [host for host, bit in enumerate(self.bits) if bit & label.visited]
        memory = self.walks.bit[:, visited].sum(axis=1)
        cost = table.visits[begin]
        onward = table.end[begin + 1 : begin + 1 + len(cost), np.arange(len(terms.hosts)), memory]
        hops = terms.hops[0][begin - 1][label.host] if begin else self.begins
        least: Array = label.floor + cost + onward + hops
        least[:, visited] = np.inf
        entry, ends = terms.entry, np.arange(begin + 1, begin + 1 + len(cost))
        held = label.held + terms.memory[ends] - terms.memory[begin] + terms.common
        least[held > terms.room[entry], entry] = np.inf
        if terms.rate > 0:
            request = terms.times[REQUEST, entry, ends] - terms.times[REQUEST, entry, begin]
            request = label.taken[REQUEST] + request + terms.stage[REQUEST, entry]
            least[terms.rate * request > 1 + FULL, entry] = np.inf
        if label.stages + 1 >= terms.most_stages:
            least[ends < terms.units] = np.inf
        return least

    def _added(
        self, label: Label, hosts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[list[Array], list[Array], Array]:
        """The lines' sums and the maxima after each of these visits; what their hosts take in all."""
        terms, begin = self.terms, label.end
        own = terms.times[:, hosts, ends] - terms.times[:, hosts, begin] + terms.stage[:, hosts]
        before = np.where(hosts == terms.entry, np.array(label.taken)[:, None], 0.0)
        taken: Array = own + before
        chunk, step = (terms.elapsed(hosts, taken[kind]) - terms.elapsed(hosts, before[kind]) for kind in (CHUNK, STEP))
        exposed = terms.exposed[hosts, ends] - terms.exposed[hosts, begin]
        sums = [
            label.sums[number] + line.chunk * chunk + line.step * step + line.waiting * own[STEP] + exposed
            for number, line in enumerate(terms.lines)
        ]
        maxima = [
            np.maximum(label.maxima[number], np.array(most.weights) @ taken) for number, most in enumerate(terms.maxima)
        ]
        if begin:
            sums = [one + terms.hops[number][begin - 1][label.host, hosts] for number, one in enumerate(sums)]
            maxima = [
                np.maximum(one, terms.maxima[number].hops[begin - 1][label.host, hosts])
                for number, one in enumerate(maxima)
            ]
        return sums, maxima, taken


def _undominated(labels: list[Label]) -> list[Label]:
    """By `least`, so that what may dominate comes first."""
    by_host: dict[int, list[Label]] = {}
    kept = []
    for label in labels:
        others = by_host.setdefault(label.host, [])
        if not any(other.dominates(label) for other in others[:RIVALS]):
            others.append(label)
            kept.append(label)
    return kept
