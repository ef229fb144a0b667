"""Splits found by rule, to compare the best one with: all on the entry, and the entry first, then the fastest hosts.

Must not know: the integer program.
"""

from __future__ import annotations

from edgesplit.revision.cost import violations
from edgesplit.revision.problem import Problem
from edgesplit.split import Split, Stage, split_from_placement


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
