"""A bound on every split over a thousand hosts: which layers a host holds is forgotten, and what is whole may be parts.

    layers[h]   on h: at most what it has room for, each as quick and small as the host's quickest and smallest one
    visit[h]    is there a stage on h? layers / most <= visit <= layers
    arc[h,g]    hops from h to g: in-degree = out-degree = visit; from the entry's first stage to its last one

with cuts: a set has no more hops inside than visits but one host's, so it is entered as often as that one is visited.
Hops are as cheap as any way over relays, so a host's second stage can join its first (see relays.py; here all layers
are alike). So every split of two stages or more is no cheaper in truth than such a flow. Hops are added as they are
needed: at the end, none that is absent would make it cheaper.
Must not know: how the best split is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import highspy
import numpy as np
from numpy.typing import NDArray

from edgesplit.revision.cost import WAIT, queued
from edgesplit.revision.cuts import VIOLATED, unreached
from edgesplit.revision.highs import Highs, solved
from edgesplit.revision.problem import Problem
from edgesplit.revision.relays import over

NEAR = 4  # hops from and to each host to begin with, the cheapest
MORE = 4  # hops from each host that are added at once
STALLED, STALLS = 1e-6, 40  # share of the bound that a round must win, and how often it may not
FADE = 0.2  # of the mean, what a new solution takes
FREE = 1e-9  # of a hop's reduced cost
ONE = -1  # in place of a column, for what is constant
FIRST, LAST = " first", " last"  # the entry's two ends; no host has such a name
Array = NDArray[np.float64]


class Fluid:
    """`bound`: no split of two stages or more has a smaller Phi. `share`: of each host, how much the flow fills."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.layers = range(1, problem.last)
        self.names = [*problem.hosts, FIRST, LAST]
        self.at = {name: number for number, name in enumerate(self.names)}
        self.most = {host: self._fitting(host) for host in problem.hosts}
        self.model = Highs()
        self.columns = 0
        self.bound, self.share = -math.inf, dict.fromkeys(problem.hosts, 0.0)
        self.mean = np.zeros(0)
        self.known: set[tuple[str, frozenset[str]]] = set()
        self.cuts: list[tuple[int, frozenset[str]]] = []
        self.arcs: dict[tuple[str, str], int] = {}
        crowded = problem.objective.goal == "weighted" and problem.workload.concurrency > 1
        self.batch = problem.batch if crowded else 1
        self.step, self.chunk = self._hops()
        self._build()

    # What it is made of

    def _fitting(self, host: str) -> int:
        problem = self.problem
        legal = [block for block in self.layers if host in problem.legal[block]]
        ends = problem.memory[0] + problem.memory[-1] + problem.common if host == problem.entry else 0
        room = problem.hosts[host].budget - problem.workspace - problem.common - ends
        smallest = min((problem.memory[block] for block in legal), default=1)
        return max(0, min(len(legal), room // max(1, smallest)))

    def _least(self, host: str, times: Sequence[float]) -> float:
        return min((times[block] for block in self.layers if host in self.problem.legal[block]), default=0.0)

    def _hops(self) -> tuple[Array, Array]:
        """Seconds from each place to each other, for a decode step and for the first chunk, where the least crosses a
        boundary; infinite where no link is."""
        problem, count, at = self.problem, len(self.problem.hosts), self.at
        sent = min(problem.sent[:-1])
        step, chunk = np.full((2, count + 2, count + 2), np.inf)
        for (source, target), link in problem.links.items():
            pair = at[source], at[target]
            once, each = link.rtt / 2 + link.overhead, sent / link.bandwidth
            step[pair] = once + self.batch * each
            chunk[pair] = once + link.start + problem.chunk_tokens * each
        for host, costs in problem.hosts.items():
            over(step, at[host], costs.share * costs.decode_overhead)
            over(chunk, at[host], costs.share * costs.chunk_overhead)
        entry = at[problem.entry]
        for hops in (step, chunk):
            np.fill_diagonal(hops, np.inf)
            hops[at[FIRST], :count], hops[:count, at[LAST]] = hops[entry, :count], hops[:count, entry]
        return step, chunk

    def _column(self, cost: float, most: float, rows: Sequence[int] = (), factors: Sequence[float] = ()) -> int:
        self.model.addCol(cost, 0.0, most, len(rows), list(rows), list(factors))
        self.columns += 1
        return self.columns - 1

    def _row(self, least: float, most: float, terms: dict[int, float]) -> int:
        self.model.addRow(least, most, len(terms), list(terms), list(terms.values()))
        return int(self.model.getNumRow()) - 1

    def _build(self) -> None:
        problem, endless = self.problem, highspy.kHighsInf
        self.held = {name: self._column(0.0, self._most(name)) for name in self.names}
        self.visit = {host: self._column(0.0, float(host != problem.entry)) for host in problem.hosts}
        self.wires = (self._column(0.0, endless), self._column(0.0, endless))
        self._row(len(self.layers), len(self.layers), dict.fromkeys(self.held.values(), 1.0))
        ends = [self.held[name] for name in (problem.entry, FIRST, LAST)]
        self._row(-endless, self.most[problem.entry], dict.fromkeys(ends, 1.0))
        for host, visit in self.visit.items():
            self._row(0.0, endless, {self.held[host]: 1.0, visit: -1.0})
            self._row(-endless, 0.0, {self.held[host]: 1.0, visit: -float(self.most[host])})
        if problem.max_stages is not None:
            self._row(-endless, problem.max_stages - 2.0, dict.fromkeys(self.visit.values(), 1.0))
        self.onto = {name: self._row(0.0, 0.0, {self.visit[name]: -1.0}) for name in problem.hosts} | {
            LAST: self._row(1.0, 1.0, {})
        }
        self.out = {name: self._row(0.0, 0.0, {self.visit[name]: -1.0}) for name in problem.hosts} | {
            FIRST: self._row(1.0, 1.0, {})
        }
        self.sums = tuple(self._row(0.0, 0.0, {wire: -1.0}) for wire in self.wires)
        self._phi()
        weight = self.chunk + max(1, problem.workload.new_tokens - 1) * self.step
        for number, (out, onto) in enumerate(zip(np.argsort(weight), np.argsort(weight.T), strict=True)):
            for other in out[:NEAR]:
                self._arc(number, int(other))
            for other in onto[:NEAR]:
                self._arc(int(other), number)
        for number in range(len(problem.hosts)):
            self._arc(self.at[FIRST], number)
            self._arc(number, self.at[LAST])

    def _most(self, name: str) -> float:
        return float(self.most[name if name in self.most else self.problem.entry])

    def _arc(self, source: int, target: int) -> None:
        pair = (self.names[source], self.names[target])
        if pair in self.arcs or not np.isfinite(self.step[source, target]):
            return
        rows = [self.out[pair[0]], self.onto[pair[1]], *self.sums]
        factors = [1.0, 1.0, float(self.step[source, target]), float(self.chunk[source, target])]
        for row, inside in self.cuts:
            if pair[0] in inside and pair[1] in inside:
                rows.append(row)
                factors.append(-1.0)
        self.arcs[pair] = self._column(0.0, highspy.kHighsInf, rows, factors)

    # Phi (see cost.py), its terms or less

    def _phi(self) -> None:
        problem, wish = self.problem, self.problem.objective
        steps = problem.workload.new_tokens - 1
        if wish.goal == "throughput":
            alone, interval = self._column(0.0, highspy.kHighsInf), self._column(1.0, highspy.kHighsInf)
            self._above(alone, _sum(self._chunks(), _times(self._path(), steps)))
            self._above(interval, {alone: 1 / problem.workload.concurrency})
            for host in problem.hosts:
                self._above(interval, self._request(host))
        elif wish.goal == "latency" or problem.workload.concurrency == 1:
            alpha = 1.0 if wish.goal == "latency" else wish.latency
            self._waits(alpha, alpha * steps, crowded=False)
        else:
            self._waits(wish.latency, wish.latency * steps, crowded=True)
        if wish.goal == "weighted":
            self._utilization(wish.utilization)
            self._privacy(wish.privacy)

    def _waits(self, first: float, token: float, *, crowded: bool) -> None:
        """For the first token and for the others, weighed so; `crowded`: while others are in flight."""
        problem, endless = self.problem, highspy.kHighsInf
        begun, took = self._column(first, endless), self._column(token, endless)
        chunks, path = self._chunks(), self._path()
        following = problem.chunks - 1
        if crowded:
            following += problem.others_chunks
            chunks = _sum(chunks, *(_times(self._decode(host), WAIT) for host in problem.hosts))
            busy = self._column(0.0, endless)
            for host in problem.hosts:
                self._above(busy, _times(self._decode(host), problem.groups))
            self._above(took, {busy: 1.0})
            path = _sum(path, {busy: queued(problem.groups)})
        self._above(begun, chunks)
        self._above(took, path)
        if following:
            pace = self._column(first * following, endless)
            for host in problem.hosts:
                self._above(pace, _sum(self._chunk(host), self._decode(host) if crowded else {}))

    def _utilization(self, beta: float) -> None:
        load = self._column(beta, highspy.kHighsInf)
        for host in self.problem.hosts if beta > 0 or self.problem.workload.rate > 0 else ():
            self._above(load, _times(self._request(host), self.problem.load_unit))
        if self.problem.workload.rate > 0:
            self.model.changeColBounds(load, 0.0, 1.0)

    def _privacy(self, gamma: float) -> None:
        """What as many layers on untrusted hosts would expose at the deep end."""
        problem = self.problem
        outside = [self.held[host] for host in problem.hosts if host not in problem.trusted]
        deepest = [problem.depth[block] for block in reversed(self.layers)]
        exposed = self._column(gamma, highspy.kHighsInf)
        for number, slope in enumerate(deepest) if gamma > 0 else ():
            constant = sum(deepest[:number]) - number * slope
            self._above(exposed, dict.fromkeys(outside, slope), constant)

    def _above(self, column: int, terms: dict[int, float], constant: float = 0.0) -> None:
        constant += terms.get(ONE, 0.0)
        rest = {term: -factor for term, factor in terms.items() if term >= 0}
        self._row(constant, highspy.kHighsInf, {column: 1.0, **rest})

    def _stage(self, host: str, layer: float, stage: float, end: float) -> dict[int, float]:
        """Of all the host's stages, `end` for the head."""
        terms = {self.held[host]: layer, self.visit[host]: stage}
        if host == self.problem.entry:
            terms |= {self.held[FIRST]: layer, self.held[LAST]: layer, ONE: 2 * stage + end}
        return terms

    def _decode(self, host: str, batch: int | None = None) -> dict[int, float]:
        costs = self.problem.hosts[host]
        times = costs.step(self.batch if batch is None else batch)
        return self._stage(host, self._least(host, times), costs.decode_overhead, times[-1])

    def _chunk(self, host: str) -> dict[int, float]:
        costs = self.problem.hosts[host]
        return self._stage(host, self._least(host, costs.chunk), costs.chunk_overhead, 0.0)

    def _elapsed(self, host: str, terms: dict[int, float]) -> dict[int, float]:
        costs = self.problem.hosts[host]
        return _times(terms, costs.share if costs.grace > 0 else 1.0)

    def _request(self, host: str) -> dict[int, float]:
        problem = self.problem
        head = {ONE: problem.hosts[host].head} if host == problem.entry else {}
        steps = _times(self._decode(host, 1), problem.workload.new_tokens - 1)
        return _sum(_times(self._chunk(host), problem.chunks), head, steps)

    def _path(self) -> dict[int, float]:
        own = (self._elapsed(host, self._decode(host)) for host in self.problem.hosts)
        return _sum({self.wires[0]: 1.0}, *own)

    def _chunks(self) -> dict[int, float]:
        own = (self._elapsed(host, self._chunk(host)) for host in self.problem.hosts)
        return _sum({self.wires[1]: 1.0}, {ONE: self.problem.hosts[self.problem.entry].head}, *own)

    # Solving

    def go_on(self, rounds: int, enough: float = math.inf) -> bool:
        """Rounds of cuts and hops, until the bound is `enough` or none helps. False: there is no such flow."""
        last, stalls = -math.inf, 0
        for _ in range(rounds):
            if not solved(self.model):
                if not self._complete():
                    return False
                continue
            value = self.model.getInfo().objective_function_value
            stalls = stalls + 1 if abs(value - last) <= STALLED * abs(value) else 0
            last = value
            values = self.model.getSolution().col_value
            self.share = {host: values[self.held[host]] / max(1, self.most[host]) for host in self.problem.hosts}
            least, added = self._price()
            missing = min(0.0, least) * (len(self.layers) + 1)  # as many hops as there may be, each so much cheaper
            self.bound = max(self.bound, value + missing)
            if added:
                continue
            if self.bound >= enough or stalls >= STALLS or not self._cut(np.array(values)):
                break
        return True

    def _complete(self) -> bool:
        """Every hop there is, where the nearest ones do not suffice. False: they were there already."""
        before = len(self.arcs)
        for source, target in zip(*np.nonzero(np.isfinite(self.step)), strict=True):
            self._arc(int(source), int(target))
        return len(self.arcs) > before

    def _price(self) -> tuple[float, bool]:
        """The least reduced cost of absent hops; were any added?"""
        dual = np.array(self.model.getSolution().row_dual)
        there = np.isfinite(self.step)
        cost = np.full(self.step.shape, np.inf)
        cost[there] = -(dual[self.sums[0]] * self.step[there] + dual[self.sums[1]] * self.chunk[there])
        cost -= np.array([dual[self.out[name]] if name in self.out else 0.0 for name in self.names])[:, None]
        cost -= np.array([dual[self.onto[name]] if name in self.onto else 0.0 for name in self.names])[None, :]
        for row, inside in self.cuts:
            if dual[row] > 0:
                within = [self.at[name] for name in inside]
                cost[np.ix_(within, within)] += dual[row]
        for pair in self.arcs:
            cost[self.at[pair[0]], self.at[pair[1]]] = np.inf
        least, before = float(cost.min()), len(self.arcs)
        if least < -FREE:
            for source in np.nonzero(cost.min(axis=1) < -FREE)[0]:
                for target in np.argsort(cost[source])[:MORE]:
                    if cost[source, target] < -FREE:
                        self._arc(int(source), int(target))
        return least, len(self.arcs) > before

    def _cut(self, values: Array) -> bool:
        """Also where the mean of the last solutions is cut: it shows more cycles at once than any of them."""
        self.mean.resize(len(values), refcheck=False)
        self.mean = (1 - FADE) * self.mean + FADE * values
        both = [self._cut_at(point) for point in (values, (values + self.mean) / 2)]
        return any(both)

    def _cut_at(self, values: Array) -> bool:
        first = {host: values[self.arcs[FIRST, host]] for host in self.problem.hosts if (FIRST, host) in self.arcs}
        inner = {pair: column for pair, column in self.arcs.items() if pair[0] != FIRST and pair[1] != LAST}
        arcs = {pair: values[column] for pair, column in inner.items()}
        visits = {host: values[column] for host, column in self.visit.items()}
        taken = {pair: value for pair, value in arcs.items() if value > VIOLATED}
        found = [cut for pair in taken if (cut := _pair(pair, taken, visits))]
        found += unreached(first, taken, visits)
        found = [cut for cut in dict.fromkeys(found) if cut not in self.known]
        self.known.update(found)
        for host, inside in found:
            visited = {self.visit[each]: 1.0 for each in sorted(inside - {host})}
            within = {self.arcs[s, t]: -1.0 for s in inside for t in inside if (s, t) in self.arcs}
            self.cuts.append((self._row(0.0, highspy.kHighsInf, {**visited, **within}), inside))
        return bool(found)


def _pair(
    pair: tuple[str, str], taken: dict[tuple[str, str], float], visits: dict[str, float]
) -> tuple[str, frozenset[str]] | None:
    """Two hosts that send more to each other than one of them is visited: the commonest cycle."""
    source, target = pair
    back = taken.get((target, source), 0.0)
    if source > target and back:  # looked at the other way round
        return None
    host = max(pair, key=lambda one: (visits[one], one))
    return (host, frozenset(pair)) if taken[pair] + back > min(visits[source], visits[target]) + VIOLATED else None


def _times(terms: dict[int, float], factor: float) -> dict[int, float]:
    return {column: factor * value for column, value in terms.items()}


def _sum(*parts: dict[int, float]) -> dict[int, float]:
    total: dict[int, float] = {}
    for part in parts:
        for column, value in part.items():
            total[column] = total.get(column, 0.0) + value
    return total
