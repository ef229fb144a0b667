"""Hops as cheap as any way over relays: what a host's second stretch of like layers could win, and no more.

Counted, a host has one stretch of a run of like layers. A second one is a relay on a way between two others: without
it, its layers join the first stretch (on an untrusted host, the first joins the last, which exposes deeper layers) and
the way becomes a hop. So with every hop as cheap as the cheapest way, relays' overheads included, counting finds a
bound on all splits. Where the best split then takes direct hops only, it is the best of all.
Must not know: the program.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgesplit.revision.problem import Problem

ROUNDING = 1 + 1e-9  # of seconds added in another order
Matrix = NDArray[np.float64]
Seconds = Callable[[str, str, int, float], float]


class Relayed:
    """In place of a problem's links, the same questions with the same answers where no relay pays."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.at = {host: number for number, host in enumerate(problem.hosts)}
        self.found: dict[tuple[int, float, str], Matrix] = {}

    def linked(self, source: str, target: str) -> bool:
        return bool(np.isfinite(self._hops(0, 1)[self.at[source], self.at[target]]))

    def hop(self, source: str, target: str, block: int, tokens: float) -> float:
        return float(self._hops(block, tokens)[self.at[source], self.at[target]])

    def first_hop(self, source: str, target: str, block: int, tokens: float) -> float:
        return float(self._hops(block, tokens, first=True)[self.at[source], self.at[target]])

    def occupied(self, source: str, target: str, block: int, tokens: float) -> float:
        return float(self._occupied(block, tokens)[self.at[source], self.at[target]])

    def direct(self, source: str, target: str, block: int) -> bool:
        """Is the hop itself as good as any way?"""
        return not self._better(block)[self.at[source], self.at[target]]

    @cached_property
    def pays(self) -> bool:
        """Is there any hop that is worse than a way over relays?"""
        blocks = {self.problem.sent[block]: block for block in range(self.problem.last)}
        return any(bool(self._better(block).any()) for block in blocks.values())

    def _better(self, block: int) -> Matrix:
        """Where a way is better, as a matrix of truths."""
        problem, better = self.problem, np.zeros((len(self.at), len(self.at)), dtype=bool)
        crowded = problem.workload.concurrency > 1
        for tokens, first, shared in (
            (1, False, crowded or problem.throttled),
            (problem.batch, False, crowded or problem.throttled),
            (problem.chunk_tokens, True, crowded or problem.chunks > 1),
        ):
            seconds = problem.first_hop if first else problem.hop
            better |= self._plain(block, tokens, seconds) > self._hops(block, tokens, first=first) * ROUNDING
            if shared or problem.objective.goal == "throughput":
                better |= self._plain(block, tokens, problem.occupied) > self._occupied(block, tokens) * ROUNDING
        np.fill_diagonal(better, val=False)
        return better

    def _plain(self, block: int, tokens: float, seconds: Seconds) -> Matrix:
        """Of the direct hops; without a link, infinite."""
        plain = np.full((len(self.at), len(self.at)), np.inf)
        for source, target in self.problem.links:
            plain[self.at[source], self.at[target]] = seconds(source, target, block, tokens)
        return plain

    def _hops(self, block: int, tokens: float, *, first: bool = False) -> Matrix:
        """Of the cheapest ways: their hops, and their relays' overheads (Floyd and Warshall). `first`: of the first
        chunk of a prompt, else of a decode step. A relay whose host has cycles to spare takes the least of it."""
        key = (self.problem.sent[block], tokens, "first" if first else "hop")
        if key not in self.found:
            ways = self._plain(block, tokens, self.problem.first_hop if first else self.problem.hop)
            for host, costs in self.problem.hosts.items():
                overhead = costs.share * (costs.chunk_overhead if first else costs.decode_overhead)
                relay = self.at[host]
                over(ways, relay, overhead)
            self.found[key] = ways
        return self.found[key]

    def _occupied(self, block: int, tokens: float) -> Matrix:
        """Of the ways whose busiest link is the least busy."""
        key = (self.problem.sent[block], tokens, "occupied")
        if key not in self.found:
            ways = self._plain(block, tokens, self.problem.occupied)
            for relay in range(len(self.at)):
                np.minimum(ways, np.maximum(ways[:, [relay]], ways[[relay], :]), out=ways)
            self.found[key] = ways
        return self.found[key]


def over(ways: Matrix, relay: int, overhead: float) -> None:
    """Ways over this relay where they are shorter: Floyd and Warshall's step."""
    np.minimum(ways, ways[:, [relay]] + (ways[[relay], :] + overhead), out=ways)


def bounds_every_split(problem: Problem) -> bool:
    """Does the argument above hold? Where the first stretch joins the last, a hop comes to lie before layers that send
    less than those it lay behind, if what crosses the boundaries shrinks along the chain."""
    sent = problem.sent[:-1]
    return problem.objective.privacy == 0 or all(left <= right for left, right in pairwise(sent))
