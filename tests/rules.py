"""Splits as other tools find them, to compare the best one with: shares by number, memory or compute, and EdgeShard's
dynamic program."""

from __future__ import annotations

from collections.abc import Mapping

from edgesplit.revision.cost import violations
from edgesplit.revision.problem import Problem
from edgesplit.split import Split, split_from_placement

Way = tuple[float, tuple[str, ...], dict[str, int]]  # seconds, the host of each block, bytes held


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
