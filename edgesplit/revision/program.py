"""The integer program of Split Revision (eq. 3-7 and 9), in PuLP.

The chain is cut into segments of `count` identical units. Within a segment a host has at most one stretch; which hosts
have one, in which order and how long, is a route:

    first[h], last[h]   the segment begins, ends on h                       one of each
    arc[h,g]            g's stretch follows h's                             in-degree = out-degree = visit[h]
    count[h]            units on h                                          visit <= count <= limit x visit
    joint[h,g]          the segment ends on h and the next begins on g      free when h = g: the same stage goes on

That no cycle stands alone is not in the rows: the search cuts cycles off (cuts.py). A segment of one unit needs only
`first`: that is the paper's x_ij (eq. 4). Memory and load are eq. 5; pins (eq. 6 and 10) are variables that are absent.
The maxima in L and U are variables above their arguments; P: depth.py. Times are divided by Problem-sized constants, so
that the solver's absolute tolerances are relative ones; memory by what the host allows, with half a byte to spare. What
is finer than the solver's tolerance is counted in bytes when a solution is whole (`wrong` of its shape).
Must not know: plans, or how a result is explained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pulp

from edgesplit.revision.branch import Route, Shape
from edgesplit.revision.cost import WAIT, held, queued
from edgesplit.revision.cuts import Hop
from edgesplit.revision.depth import Depth, Walk
from edgesplit.revision.problem import Problem
from edgesplit.revision.relays import Relayed
from edgesplit.revision.segments import Segment
from edgesplit.split import split_from_placement

Expression = Any  # PuLP's; it is untyped here


@dataclass
class _Piece:
    """The variables of one segment; with one unit, the first four are the same ones and there are no arcs."""

    segment: Segment
    first: dict[str, Expression]
    last: dict[str, Expression]
    visit: dict[str, Expression]
    count: dict[str, Expression]
    arc: dict[Hop, Expression]


class Program:
    """`lp`: PuLP's; `objective` is Phi / `scale`."""

    def __init__(self, problem: Problem, segments: list[Segment], wires: Problem | Relayed | None = None) -> None:
        self.problem = problem
        self.wires = wires or problem
        self.lp = pulp.LpProblem("split_revision", pulp.LpMinimize)
        self.depth = Depth(self.lp, self._number, problem.trusted)
        self.number = {host: str(number) for number, host in enumerate(problem.hosts)}
        self.pieces = [self._piece(number, segment) for number, segment in enumerate(segments)]
        self.joints = [
            self._joint(number, *pair) for number, pair in enumerate(zip(self.pieces, self.pieces[1:], strict=False))
        ]
        self.stages = [self._new_stages(number, piece) for number, piece in enumerate(self.pieces)]
        self.hosts = [host for host in problem.hosts if any(host in segment.limits for segment in segments)]
        self._limit_memory()
        self._limit_units()
        self._limit_stages()
        self.load = {host: self._request_seconds(host) for host in self.hosts}
        self._limit_load()
        self.scale = self._scale()
        self.lp += self._objective() * (1 / self.scale)

    # Variables

    def _number(self, name: str, *keys: object, kind: str = pulp.LpContinuous, most: float | None = 1) -> Expression:
        words = [name, *(self.number.get(key, str(key)) if isinstance(key, str) else str(key) for key in keys)]
        return self.lp.add_variable("_".join(words), 0, most, kind)

    def _piece(self, number: int, segment: Segment) -> _Piece:
        hosts = segment.limits
        first = {host: self._number("first", number, host, kind=pulp.LpBinary) for host in hosts}
        self.lp += pulp.lpSum(first.values()) == 1
        if segment.count == 1:
            return _Piece(segment, first, first, first, first, {})
        pairs = [(left, right) for left in hosts for right in hosts if self.wires.linked(left, right)]
        piece = _Piece(
            segment,
            first,
            last={host: self._number("last", number, host, kind=pulp.LpBinary) for host in hosts},
            visit={host: self._number("visit", number, host) for host in hosts},
            count={host: self._number("count", number, host, kind=pulp.LpInteger, most=hosts[host]) for host in hosts},
            arc={pair: self._number("arc", number, *pair, kind=pulp.LpBinary) for pair in pairs},
        )
        self._route(piece)
        return piece

    def _route(self, piece: _Piece) -> None:
        lp, total = self.lp, piece.segment.count
        lp += pulp.lpSum(piece.last.values()) == 1
        lp += pulp.lpSum(piece.count.values()) == total
        for host, limit in piece.segment.limits.items():
            lp += piece.first[host] + _into(piece.arc, host) == piece.visit[host]
            lp += piece.last[host] + _out_of(piece.arc, host) == piece.visit[host]
            lp += piece.count[host] >= piece.visit[host]
            lp += piece.count[host] <= limit * piece.visit[host]

    def _joint(self, number: int, left: _Piece, right: _Piece) -> dict[Hop, Expression]:
        """Determined by `last` and `first`, so it need not be declared binary."""
        joint = {
            (source, target): self._number("joint", number, source, target)
            for source in left.last
            for target in right.first
            if source == target or self.wires.linked(source, target)
        }
        for host, last in left.last.items():
            self.lp += _out_of(joint, host) == last
        for host, first in right.first.items():
            self.lp += _into(joint, host) == first
        return joint

    def _new_stages(self, number: int, piece: _Piece) -> dict[str, Expression]:
        """Per host: does a stage begin in this segment? Not where the one before goes on."""
        before = self.joints[number - 1] if number else {}
        return {host: visit - before.get((host, host), 0) for host, visit in piece.visit.items()}

    # Constraints

    def _per_host(self, host: str, units: list[float], stage: float) -> Expression:
        """`units`: what one unit of each segment costs on this host; `stage`: what a stage costs."""
        terms = []
        for piece, starts, unit in zip(self.pieces, self.stages, units, strict=True):
            if host in piece.count:
                terms += [unit * piece.count[host], stage * starts[host]]
        return pulp.lpSum(terms)

    def _limit_memory(self) -> None:
        problem = self.problem
        units = [sum(problem.memory[piece.segment.unit]) for piece in self.pieces]
        for host in self.hosts:
            used = self._number("used", host)
            for piece in self.pieces:
                if host in piece.visit:
                    self.lp += used >= piece.visit[host]
            room = problem.hosts[host].budget + 0.5
            held = self._per_host(host, [unit / room for unit in units], problem.common / room)
            self.lp += held + problem.workspace / room * used <= 1

    def _limit_units(self) -> None:
        """Implied by the memory, but not by its relaxation: units at least as large as the smallest of some segments
        fit a host in whole numbers only."""
        problem = self.problem
        sizes = [sum(problem.memory[piece.segment.unit]) for piece in self.pieces]
        bound = {number: piece for number, piece in enumerate(self.pieces) if len(piece.segment.limits) > 1}
        for least in sorted({sizes[number] for number in bound} - {0}):
            for host in self.hosts:
                own = [n for n, piece in bound.items() if sizes[n] >= least and host in piece.count]
                forced = sum(sizes[n] for n, piece in enumerate(self.pieces) if n not in bound and host in piece.count)
                room = problem.hosts[host].budget - problem.workspace - problem.common - forced
                if sum(self.pieces[n].segment.count for n in own) * least > room and len(own) > 1:
                    self.lp += pulp.lpSum(self.pieces[n].count[host] for n in own) <= max(0, room // least)

    def _limit_stages(self) -> None:
        problem = self.problem
        if problem.max_stages is not None:
            self.lp += pulp.lpSum(one for starts in self.stages for one in starts.values()) <= problem.max_stages
        for host in self.hosts:
            if host in problem.single:
                self.lp += pulp.lpSum(starts[host] for starts in self.stages if host in starts) <= 1

    def _busy(self, host: str, per_block: tuple[float, ...], overhead: float) -> Expression:
        return self._per_host(host, [sum(per_block[piece.segment.unit]) for piece in self.pieces], overhead)

    def _decode(self, host: str, batch: int) -> Expression:
        costs = self.problem.hosts[host]
        return self._busy(host, costs.step(batch), costs.decode_overhead)

    def _chunk(self, host: str) -> Expression:
        costs = self.problem.hosts[host]
        return self._busy(host, costs.chunk, costs.chunk_overhead)

    def _head(self, host: str) -> Expression:
        return self.problem.hosts[host].head * self.pieces[-1].last.get(host, 0)

    def _request_seconds(self, host: str) -> Expression:
        problem = self.problem
        steps = problem.workload.new_tokens - 1
        return problem.chunks * self._chunk(host) + self._head(host) + steps * self._decode(host, 1)

    def _limit_load(self) -> None:
        if self.problem.workload.rate > 0:
            for load in self.load.values():
                self.lp += self.problem.workload.rate * load <= 1

    # Objective (eq. 3)

    def _scale(self) -> float:
        wish = self.problem.objective
        alone = min(self.problem.alone_seconds(host) for host in self.problem.hosts)
        if wish.goal != "weighted":
            return alone or 1.0
        return wish.latency * alone + wish.utilization * alone * self.problem.load_unit + wish.privacy or 1.0

    def _objective(self) -> Expression:
        wish = self.problem.objective
        if wish.goal != "weighted":
            return self._alone() if wish.goal == "latency" else self._interval()
        phi = pulp.LpAffineExpression()
        if wish.latency > 0:
            phi += wish.latency * self._latency()
        if wish.utilization > 0:
            loads = [self.problem.load_unit * load for load in self.load.values()]
            phi += wish.utilization * self._most("utilization", loads)
        if wish.privacy > 0:
            phi += wish.privacy * pulp.lpSum(self._exposure(number) for number in range(len(self.pieces)))
        return phi

    def _token(self, batch: int, groups: int) -> Expression:
        """Between two tokens of an answer, with `groups` steps of `batch` sequences under way."""
        decode = {host: self._decode(host, batch) for host in self.hosts}
        path = self._elapsed("step", decode) + pulp.lpSum(self._hops(self.wires.hop, batch))
        if groups == 1 and not self.problem.throttled:  # one step alone never waits
            return path
        busy = groups * self._most("busiest_step", [*decode.values(), *self._hops(self.wires.occupied, batch)])
        return self._most("token", [path + queued(groups) * busy, busy])

    def _first_token(self, *, alone: bool) -> Expression:
        """Alone, or while others answer: they are in the way of its chunks, and begin while it answers."""
        problem = self.problem
        chunk = {host: self._chunk(host) for host in self.hosts}
        first = self._elapsed("chunk", chunk) + pulp.lpSum(self._hops(self.wires.first_hop, problem.chunk_tokens))
        first += pulp.lpSum(self._head(host) for host in self.hosts)
        following = problem.chunks - 1
        if not alone:
            decode = {host: self._decode(host, problem.batch) for host in self.hosts}
            first += WAIT * pulp.lpSum(decode.values())
            chunk = {host: taken + decode[host] for host, taken in chunk.items()}
            following += problem.others_chunks
        if following:
            wires = self._hops(self.wires.occupied, problem.chunk_tokens)
            first += following * self._most("busiest_chunk", [*chunk.values(), *wires])
        return first

    def _elapsed(self, name: str, seconds: dict[str, Expression]) -> Expression:
        """HostCosts.elapsed of all hosts together."""
        total = pulp.LpAffineExpression()
        for host, taken in seconds.items():
            costs = self.problem.hosts[host]
            if costs.grace > 0:
                total += self._most(f"{name}_{self.number[host]}", [costs.share * taken, taken - costs.grace])
            else:
                total += taken
        return total

    def _alone(self) -> Expression:
        return self._first_token(alone=True) + (self.problem.workload.new_tokens - 1) * self._token(1, 1)

    def _latency(self) -> Expression:
        problem, work = self.problem, self.problem.workload
        if work.concurrency == 1:
            return self._alone()
        token = self._token(problem.batch, problem.groups)
        return self._first_token(alone=False) + (work.new_tokens - 1) * token

    def _interval(self) -> Expression:
        problem = self.problem
        chunks, steps = self._hops(self.wires.occupied, problem.chunk_tokens), self._hops(self.wires.occupied, 1)
        wires = [problem.request_seconds(*pair, 0.0) for pair in zip(chunks, steps, strict=True)]
        alone = self._alone() * (1 / problem.workload.concurrency)
        return self._most("interval", [alone, *self.load.values(), *wires])

    def _most(self, name: str, values: Iterable[Expression]) -> Expression:
        """A variable that is at least each value, in units of the largest coefficient, so that it is about 1."""
        values = list(values)
        unit = max((abs(factor) for value in values for factor in value.values()), default=0.0) or 1.0
        most = self._number(name, most=None)
        for value in values:
            self.lp += most >= value * (1 / unit)
        return unit * most

    def _hops(self, seconds: Any, tokens: float) -> list[Expression]:
        """The hops' seconds, as few expressions as possible: of those summed in one, at most one hop is taken."""
        wires = []
        for piece in self.pieces:
            block = piece.segment.blocks[-1]
            for host in piece.visit:
                leaving = [(pair, arc) for pair, arc in piece.arc.items() if pair[0] == host]
                wires.append(pulp.lpSum(seconds(*pair, block, tokens) * arc for pair, arc in leaving))
        for piece, joint in zip(self.pieces, self.joints, strict=False):
            block = piece.segment.blocks[-1]
            moves = [(pair, taken) for pair, taken in joint.items() if pair[0] != pair[1]]
            wires.append(pulp.lpSum(seconds(*pair, block, tokens) * taken for pair, taken in moves))
        return [wire for wire in wires if len(wire)]

    def _exposure(self, number: int) -> Expression:
        piece = self.pieces[number]
        segment = piece.segment
        weights = self.problem.depth[segment.first : segment.blocks[-1] + 1]
        if segment.count == 1:
            weights = (sum(weights),)
        return self.depth.exposed(
            Walk(number, piece.last, piece.visit, piece.count, piece.arc, segment.limits, weights)
        )

    # Answer

    def shape(self) -> Shape:
        """What the search must know beside the rows; variables by their place in `lp.variables()`."""
        routed = [piece for piece in self.pieces if piece.arc]
        kinds = (
            [piece.visit for piece in routed],
            [piece.first for piece in self.pieces] + [piece.last for piece in routed],
            [piece.arc for piece in routed],
            [piece.count for piece in routed],
        )
        whole = [[one.index for variables in kind for one in variables.values()] for kind in kinds]
        return Shape(
            whole=[*whole, [one.index for one in self.depth.levels]],
            routes=[Route(*(_columns(each) for each in (one.first, one.visit, one.arc))) for one in routed],
            wrong=self._overfull,
        )

    def _overfull(self, values: Sequence[float]) -> list[int]:
        """The columns that say what is on a host with a byte more than it allows; none if there is no such host."""
        split = split_from_placement(self.placement(values))
        for host in split.hosts:
            if held(host, split, self.problem) > self.problem.hosts[host].budget:
                own = (each for piece in self.pieces for each in (piece.count, piece.first, piece.last, piece.visit))
                return list(dict.fromkeys(each[host].index for each in own if host in each))
        return []

    def placement(self, values: Sequence[float]) -> Iterable[str]:
        """The host of each block, along the routes."""
        for piece in self.pieces:
            host = max(piece.first, key=lambda one: values[piece.first[one].index])
            for _ in piece.visit:
                units = round(values[piece.count[host].index])
                yield from [host] * (units * piece.segment.width)
                onward = [pair for pair, arc in piece.arc.items() if pair[0] == host and values[arc.index] > 0.5]
                if not onward:
                    break
                host = onward[0][1]


def _columns(variables: dict[Any, Expression]) -> dict[Any, int]:
    return {key: variable.index for key, variable in variables.items()}


def _into(pairs: dict[Hop, Expression], host: str) -> Expression:
    return pulp.lpSum(value for pair, value in pairs.items() if pair[1] == host)


def _out_of(pairs: dict[Hop, Expression], host: str) -> Expression:
    return pulp.lpSum(value for pair, value in pairs.items() if pair[0] == host)
