"""Splits found by rule, to compare the best one with: one host, equal shares, shares by memory or compute, the entry
first and then the fastest, and EdgeShard's dynamic program.

Must not know: the integer program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import permutations

from edgesplit.revision.cost import Costs, evaluate, violations
from edgesplit.revision.problem import Problem
from edgesplit.split import Split, Stage, split_from_placement
from edgesplit.values import Value

Way = tuple[float, tuple[str, ...], dict[str, int]]  # seconds, the host of each block, bytes held
SHARERS = 5  # hosts beside the entry, the fastest, that are tried for equal shares, in every choice and order


class Rival(Value):
    """A split by rule with its costs, or why there is none."""

    rule: str
    split: Split | None
    costs: Costs | None
    why: str


def rivals(problem: Problem) -> tuple[Rival, ...]:
    """The best of each rule: all on the entry, all layers on one other host, equal shares, the simple rule."""
    everything = Split(stages=(Stage(host=problem.entry, first=0, last=problem.last),))
    return (
        _rival(f"all on {problem.entry}", [everything], problem, "; ".join(violations(everything, problem))),
        _rival("one other host", _on_one(problem), problem, "none holds all that may be elsewhere"),
        _rival("equal shares", _even(problem), problem, "no equal shares keep the limits"),
        _rival("the simple rule", filter(None, [greedy(problem)]), problem, "it finds no split"),
    )


def _rival(rule: str, splits: Iterable[Split], problem: Problem, otherwise: str) -> Rival:
    legal = [split for split in splits if not violations(split, problem)]
    costed = [(evaluate(split, problem), split) for split in legal]
    if not costed:
        return Rival(rule=rule, split=None, costs=None, why=otherwise)
    costs, split = min(costed, key=lambda one: one[0].phi)
    return Rival(rule=rule, split=split, costs=costs, why="")


def _on_one(problem: Problem) -> Iterator[Split]:
    """Everything that may be there on one host, the rest on the entry."""
    for host in problem.hosts:
        placement = [host if host in legal else problem.entry for legal in problem.legal]
        if host != problem.entry and host in placement:
            yield split_from_placement(placement)


def _even(problem: Problem) -> Iterator[Split]:
    """Layers in equal shares over two hosts and more, the entry among them or with its pinned ends only."""
    others = sorted(
        (host for host in problem.hosts if host != problem.entry), key=lambda host: (problem.alone_seconds(host), host)
    )[:SHARERS]
    layers = problem.last - 1
    for count in range(1, len(others) + 1):
        for chosen in permutations(others, count):
            for hosts in ((problem.entry, *chosen), chosen):
                if 1 < len(hosts) <= layers:
                    shares = [layers // len(hosts) + (place < layers % len(hosts)) for place in range(len(hosts))]
                    inner = [host for host, share in zip(hosts, shares, strict=True) for _ in range(share)]
                    yield split_from_placement([problem.entry, *inner, problem.entry])


def even(problem: Problem) -> Split | None:
    """Layers in equal numbers on all hosts."""
    return _by_shares(problem, dict.fromkeys(problem.hosts, 1.0))


def by_memory(problem: Problem) -> Split | None:
    """Layers in proportion to what the hosts allow."""
    return _by_shares(problem, {host: float(_layers_that_fit(problem, host)) for host in problem.hosts})


def by_compute(problem: Problem) -> Split | None:
    """Layers in proportion to how fast the hosts are at a request."""
    return _by_shares(problem, {host: 1 / max(problem.alone_seconds(host), 1e-9) for host in problem.hosts})


def _by_shares(problem: Problem, shares: Mapping[str, float]) -> Split | None:
    """Whole layers by the largest remainder; what a host has no room for goes to the others by the same shares. In
    order of name, the entry first. None where a limit is broken."""
    rooms = {host: _layers_that_fit(problem, host) for host in problem.hosts}
    held = dict.fromkeys(problem.hosts, 0)
    for _ in range(problem.last - 1):
        open_ = [host for host in problem.hosts if held[host] < rooms[host] and shares[host] > 0]
        if not open_:
            return None
        held[min(open_, key=lambda host: ((held[host] + 0.5) / shares[host], host))] += 1
    order = [problem.entry, *(host for host in problem.hosts if host != problem.entry)]
    split = split_from_placement([problem.entry, *(host for host in order for _ in range(held[host])), problem.entry])
    return None if violations(split, problem) else split


def _layers_that_fit(problem: Problem, host: str) -> int:
    """Of the largest kind, beside embedding and head on the entry."""
    ends = problem.memory[0] + problem.memory[-1] + problem.common if host == problem.entry else 0
    room = problem.hosts[host].budget - problem.workspace - problem.common - ends
    return max(0, room // max(1, *problem.memory[1:-1]))


def edgeshard(problem: Problem) -> Split | None:
    """The dynamic program of EdgeShard (Zhang et al., arXiv 2405.14371) for latency: the best way to have a layer on a
    host extends the best way to have the one before on any, if the host has room left on that way. Memory is no part
    of its state, so it may miss the best split, or any."""
    ways: dict[str, Way] = {problem.entry: (0.0, (problem.entry,), {problem.entry: _held(problem, problem.entry)})}
    for block in range(1, problem.last + 1):
        ways = {
            host: min((_onward(problem, way, host, block) for way in rooms), key=lambda one: one[:2])
            for host in problem.allowed(block)
            if (rooms := [way for way in ways.values() if _goes(problem, way, host, block)])
        }
    if problem.entry not in ways:
        return None
    split = split_from_placement(ways[problem.entry][1])
    return None if violations(split, problem) else split


def _held(problem: Problem, host: str) -> int:
    """Of a host before its first layer: the entry keeps room for the head."""
    return problem.workspace + (problem.memory[-1] + problem.common if host == problem.entry else 0)


def _goes(problem: Problem, way: Way, host: str, block: int) -> bool:
    here = way[1][-1]
    if host != here and not problem.linked(here, host):
        return False
    more = (0 if block == problem.last else problem.memory[block]) + (0 if host == here else problem.common)
    return way[2].get(host, _held(problem, host)) + more <= problem.hosts[host].budget


def _onward(problem: Problem, way: Way, host: str, block: int) -> Way:
    seconds, placed, held = way
    costs, here = problem.hosts[host], placed[-1]
    chunk, step = costs.chunk[block], costs.decode[block]
    if host != here:
        chunk += costs.chunk_overhead + problem.first_hop(here, host, block - 1, problem.chunk_tokens)
        step += costs.decode_overhead + problem.hop(here, host, block - 1, 1)
    more = problem.memory[block] + (0 if host == here else problem.common)
    took = seconds + chunk + (problem.workload.new_tokens - 1) * step
    return took, (*placed, host), {**held, host: held.get(host, _held(problem, host)) + more}


def single_host(problem: Problem) -> Split | None:
    """Everything on the entry, if it may and can hold it."""
    split = Split(stages=(Stage(host=problem.entry, first=0, last=problem.last),))
    return None if violations(split, problem) else split


def greedy(problem: Problem) -> Split | None:
    """The rule (R13): stay on a host while its memory and load last, then go to the fastest that can take the block.

    It never goes back but to the entry, and it takes no step back: None where that leads nowhere.
    """
    placement = [problem.entry]
    for unit in list(problem.units)[1:]:
        host = _next(problem, placement, unit)
        if host is None:
            return None
        placement += [host] * len(unit)
    split = split_from_placement(placement)
    return None if violations(split, problem) else split


def _next(problem: Problem, placement: list[str], unit: range) -> str | None:
    """The host for the blocks that come next, which stay together."""
    here = placement[-1]
    speeds = sorted(problem.hosts, key=lambda host: (problem.hosts[host].decode[1], host))
    for host in [here, *(other for other in speeds if other != here)]:
        if host not in problem.legal[unit.start] or not (host == here or problem.linked(here, host)):
            continue
        if _has_room(problem, [*placement, *[host] * len(unit)], host):
            return host
    return None


def _has_room(problem: Problem, placement: list[str], host: str) -> bool:
    """Does the host bear its blocks so far and those that can be nowhere else?"""
    mine = {block for block, holder in enumerate(placement) if holder == host}
    mine |= {block for block, legal in enumerate(problem.legal) if legal == {host}}
    stages = sum(1 for block in mine if block - 1 not in mine)
    held = sum(problem.memory[block] for block in mine) + stages * problem.common + problem.workspace
    costs, chunk, decode = problem.hosts[host], 0.0, 0.0
    chunk = stages * costs.chunk_overhead + sum(costs.chunk[block] for block in mine)
    decode = stages * costs.decode_overhead + sum(costs.decode[block] for block in mine)
    busy = problem.request_seconds(chunk, decode, costs.head if problem.last in mine else 0.0)
    return held <= costs.budget and problem.workload.rate * busy <= 1
