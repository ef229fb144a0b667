"""Phi of a route as sums and maxima, in arrays: what a walk through the hosts, unit by unit, adds up to.

    Phi = the largest of some lines: sum over visits and hops of what the line weighs + sum of its weights x maxima

A visit is a host's stage, from unit p to before unit q. Every unit counts as it is, at its place in the chain: sizes
and times that differ, pins and the depth of privacy need nothing more. The maxima (the pace of chunks, the busiest
step, the load) are of a host's visits together, or of a hop.
Must not know: how the best route is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgesplit.revision.cost import WAIT, queued
from edgesplit.revision.problem import Problem
from edgesplit.revision.relays import over

Array = NDArray[np.float64]
CHUNK, STEP, REQUEST = range(3)  # what a visit takes: seconds for a chunk, for a decode step, for a request
KINDS = 3


@dataclass(frozen=True)
class Line:
    """Weights of a chunk's and a step's elapsed seconds, of a step's seconds in the long run, and of the hops.
    `maxima`: of each maximum."""

    chunk: float
    step: float
    waiting: float
    constant: float
    maxima: tuple[float, ...]


@dataclass(frozen=True)
class Most:
    """The largest over hosts of `weights` x what their visits take, and over hops of `hops`, by unit before it."""

    weights: tuple[float, float, float]
    hops: tuple[Array, ...]


@dataclass(frozen=True)
class Terms:
    """`times`: kind x host x seconds of all units before; `stage`: kind x host, once a visit. `ends`: host x unit,
    where a visit that begins there must end at the latest. `hops`: per line, by unit before it, seconds weighed."""

    hosts: tuple[str, ...]
    entry: int
    units: int
    memory: NDArray[np.int64]  # of all units before
    room: NDArray[np.int64]  # bytes for a host's visits together
    common: int  # bytes once a visit
    ends: NDArray[np.int64]
    times: Array
    stage: Array
    share: Array
    grace: Array
    exposed: Array  # host x weighed privacy of all units before
    lines: tuple[Line, ...]
    hops: tuple[tuple[Array, ...], ...]
    maxima: tuple[Most, ...]
    most_stages: int
    rate: float

    @classmethod
    def of(cls, problem: Problem, *, relayed: bool) -> Terms | None:
        """`relayed`: with hops as cheap as any way over relays. None where sums do not lead: only maxima count."""
        wish = problem.objective
        if wish.goal == "throughput" or (wish.goal == "weighted" and wish.latency == 0):
            return None
        return _Maker(problem, relayed).terms()

    def only(self, kept: Sequence[int]) -> Terms:
        """Of these hosts, the entry among them."""
        rows, grid = list(kept), np.ix_(kept, kept)
        return replace(
            self,
            hosts=tuple(self.hosts[number] for number in rows),
            entry=rows.index(self.entry),
            room=self.room[rows],
            ends=self.ends[rows],
            times=self.times[:, rows],
            stage=self.stage[:, rows],
            share=self.share[rows],
            grace=self.grace[rows],
            exposed=self.exposed[rows],
            hops=tuple(_cut(line, grid) for line in self.hops),
            maxima=tuple(replace(most, hops=_cut(most.hops, grid)) for most in self.maxima),
        )

    def elapsed(self, host: NDArray[np.int64] | int, seconds: Array) -> Array:
        """HostCosts.elapsed."""
        longest: Array = np.maximum(self.share[host] * seconds, seconds - self.grace[host])
        return longest

    @property
    def throttled(self) -> bool:
        return bool((self.share < 1).any())

    def value(self, sums: Sequence[Array], maxima: Sequence[Array]) -> Array:
        """Phi from the lines' sums and the maxima."""
        lines = [
            sums[number] + sum(weight * most for weight, most in zip(line.maxima, maxima, strict=True))
            for number, line in enumerate(self.lines)
        ]
        largest: Array = np.maximum.reduce(lines)
        return largest


def _cut(hops: tuple[Array, ...], grid: tuple[NDArray[np.int64], ...]) -> tuple[Array, ...]:
    """Equal matrices stay one."""
    smaller = {id(matrix): matrix[grid] for matrix in hops}
    return tuple(smaller[id(matrix)] for matrix in hops)


class _Maker:
    def __init__(self, problem: Problem, relayed: bool) -> None:
        self.problem = problem
        self.relayed = relayed
        self.units = list(problem.units)
        self.costs = list(problem.hosts.values())
        self.crowded = problem.objective.goal == "weighted" and problem.workload.concurrency > 1
        self.batch = problem.batch if self.crowded else 1
        self.groups = problem.groups if self.crowded else 1
        self.steps = problem.workload.new_tokens - 1
        self.links = self._links()
        self.found: dict[tuple[int, str], Array] = {}

    def terms(self) -> Terms:
        problem = self.problem
        hosts = tuple(problem.hosts)
        sizes = [sum(problem.memory[unit.start : unit.stop]) for unit in self.units]
        memory = np.array([0, *np.cumsum(np.array(sizes, dtype=np.int64))], dtype=np.int64)
        times, stage = self._times()
        lines, maxima = self._phi()
        throttled = np.array([costs.grace > 0 for costs in self.costs])
        return Terms(
            hosts=hosts,
            entry=hosts.index(problem.entry),
            units=len(self.units),
            memory=memory,
            room=np.array([costs.budget - problem.workspace for costs in self.costs], dtype=np.int64),
            common=problem.common,
            ends=self._ends(memory, times, stage),
            times=times,
            stage=stage,
            share=np.where(throttled, [costs.share for costs in self.costs], 1.0),
            grace=np.array([costs.grace for costs in self.costs]),
            exposed=self._exposed(),
            lines=lines,
            hops=tuple(self._weighed(line) for line in lines),
            maxima=maxima,
            most_stages=problem.max_stages or len(self.units),
            rate=problem.workload.rate,
        )

    def _before(self, rows: Sequence[Sequence[float]]) -> Array:
        """Sums of all units before, from seconds per block."""
        seconds = np.array(rows)
        each = np.stack([seconds[:, unit.start : unit.stop].sum(axis=1) for unit in self.units], axis=1)
        return np.concatenate([np.zeros((len(rows), 1)), np.cumsum(each, axis=1)], axis=1)

    def _times(self) -> tuple[Array, Array]:
        chunks, steps = self.problem.chunks, self.steps
        chunk = self._before([costs.chunk for costs in self.costs])
        step = self._before([costs.step(self.batch) for costs in self.costs])
        request = chunks * chunk + steps * self._before([costs.decode for costs in self.costs])
        request[:, -1] += [costs.head for costs in self.costs]
        one_chunk = np.array([costs.chunk_overhead for costs in self.costs])
        one_step = np.array([costs.decode_overhead for costs in self.costs])
        return np.stack([chunk, step, request]), np.stack([one_chunk, one_step, chunks * one_chunk + steps * one_step])

    def _ends(self, memory: NDArray[np.int64], times: Array, stage: Array) -> NDArray[np.int64]:
        problem, count = self.problem, len(self.units)
        rate = problem.workload.rate
        ends = np.zeros((len(self.costs), count), dtype=np.int64)
        for number, (name, costs) in enumerate(problem.hosts.items()):
            room = costs.budget - problem.workspace - problem.common
            legal = [all(name in problem.legal[block] for block in unit) for unit in self.units]
            until = 0
            for begin in range(count):
                until = max(until, begin)
                while until < count and legal[until] and memory[until + 1] - memory[begin] <= room:
                    busy = stage[REQUEST, number] + times[REQUEST, number, until + 1] - times[REQUEST, number, begin]
                    if rate * busy > 1:
                        break
                    until += 1
                ends[number, begin] = until
        return ends

    def _exposed(self) -> Array:
        problem = self.problem
        weight = problem.objective.privacy if problem.objective.goal == "weighted" else 0.0
        return self._before(
            [[weight * depth * (host not in problem.trusted) for depth in problem.depth] for host in problem.hosts]
        )

    # Phi (see cost.py)

    def _phi(self) -> tuple[tuple[Line, ...], tuple[Most, ...]]:
        problem, wish = self.problem, self.problem.objective
        weighted = wish.goal == "weighted"
        alpha = wish.latency if weighted else 1.0
        pace = alpha * (problem.chunks - 1 + (problem.others_chunks if self.crowded else 0))
        waiting = alpha * WAIT if self.crowded else 0.0
        busy = alpha * self.steps if self.groups > 1 or problem.throttled else 0.0
        load = wish.utilization if weighted else 0.0
        first = Line(alpha, alpha * self.steps, waiting, alpha * self._head, (pace, busy * queued(self.groups), load))
        lines = [first, replace(first, step=0.0, maxima=(pace, busy, load))] if busy else [first]
        maxima = (
            Most((1.0, float(self.crowded), 0.0), self._each("occupied chunk")),
            Most((0.0, float(self.groups), 0.0), self._each("occupied step", self.groups)),
            Most((0.0, 0.0, problem.load_unit), self._each("none")),
        )
        kept = [number for number in range(KINDS) if any(line.maxima[number] for line in lines)]
        chosen = (replace(line, maxima=tuple(line.maxima[number] for number in kept)) for line in lines)
        return tuple(chosen), tuple(maxima[number] for number in kept)

    @property
    def _head(self) -> float:
        return self.problem.hosts[self.problem.entry].head

    def _weighed(self, line: Line) -> tuple[Array, ...]:
        chunk, step = self._each("chunk"), self._each("step")
        sums: dict[int, Array] = {}
        for one, other in zip(chunk, step, strict=True):
            sums.setdefault(id(one), line.chunk * one + (line.step * other if line.step else 0.0))
        return tuple(sums[id(one)] for one in chunk)

    # Hops

    def _links(self) -> dict[str, Array]:
        problem, count = self.problem, len(self.costs)
        at = {host: number for number, host in enumerate(problem.hosts)}
        found = {name: np.full((count, count), np.inf) for name in ("way", "start", "overhead", "byte")}
        for (source, target), link in problem.links.items():
            pair = at[source], at[target]
            found["way"][pair], found["start"][pair] = link.rtt / 2, link.start
            found["overhead"][pair], found["byte"][pair] = link.overhead, 1 / link.bandwidth
        return found

    def _each(self, what: str, factor: float = 1.0) -> tuple[Array, ...]:
        """By unit before the hop; one matrix where as much is sent."""
        sizes = [self.problem.sent[unit.stop - 1] for unit in self.units[:-1]]
        return tuple(self._hop(what, size, factor) for size in sizes)

    def _hop(self, what: str, size: int, factor: float) -> Array:
        key = (size, f"{what} {factor}")
        if key not in self.found:
            self.found[key] = self._made(what, size, factor)
        return self.found[key]

    def _made(self, what: str, size: int, factor: float) -> Array:
        links = self.links
        if what == "none":
            return np.zeros_like(links["way"])
        tokens = self.problem.chunk_tokens if "chunk" in what else float(self.batch)
        hops: Array = links["overhead"] + tokens * size * links["byte"]
        if "occupied" in what:
            for relay in range(len(hops) if self.relayed else 0):
                np.minimum(hops, np.maximum(hops[:, [relay]], hops[[relay], :]), out=hops)
            return factor * hops
        hops = hops + links["way"] + (links["start"] if what == "chunk" else 0.0)
        for relay, costs in enumerate(self.costs if self.relayed else ()):
            over(hops, relay, costs.share * (costs.chunk_overhead if what == "chunk" else costs.decode_overhead))
        np.fill_diagonal(hops, np.inf)
        return hops
