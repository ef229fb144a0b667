"""Splits found by rule, to compare the best one with: one host, equal shares, the entry first and then the fastest.

Must not know: the integer program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import permutations

from edgesplit.revision.cost import Costs, evaluate, violations
from edgesplit.revision.problem import Problem
from edgesplit.split import Split, Stage, split_from_placement
from edgesplit.values import Value

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
