"""When what happens: the chunks of a prompt on their way around the ring, each host and link one thing at a time.

A chunk goes on as soon as the host or link it needs is free; who is ready first goes first. The cost model's time to
the first token (cost.py) is a formula for the same: one chunk's way, and the busiest host or hop for each further one.

Must not know: how it is drawn.
"""

from __future__ import annotations

import heapq
from typing import Literal

from edgesplit.revision.cost import Costs
from edgesplit.revision.problem import Problem
from edgesplit.split import Split
from edgesplit.values import Value


class Span(Value):
    """`lane`: the place along the ring, stages and hops in turn, from 0. Seconds since the prompt arrived."""

    lane: int
    kind: Literal["computing", "wire"]
    chunk: int
    start: float
    end: float


def prompt_spans(split: Split, costs: Costs, problem: Problem) -> tuple[Span, ...]:
    """Of every chunk, in the order in which they begin; the last one's head, its first token, included."""
    stages, hops = costs.stages, costs.hops
    last = 2 * len(hops)
    free: dict[str, float] = {}
    waiting = [(0.0, chunk, 0) for chunk in range(problem.chunks)]
    spans = []
    while waiting:
        ready, chunk, lane = heapq.heappop(waiting)
        number, wire = divmod(lane, 2)
        if wire:
            hop, block = hops[number], split.stages[number].last
            who = f"{hop.source} -> {hop.target}"
            busy = problem.occupied(hop.source, hop.target, block, problem.chunk_tokens)
            takes = hop.chunk_seconds
        else:
            who, busy = stages[number].host, stages[number].chunk_seconds
            if lane == last and chunk == problem.chunks - 1:
                busy += problem.hosts[who].head
            takes = busy
        start = max(ready, free.get(who, 0.0))
        free[who] = start + busy
        spans.append(Span(lane=lane, kind="wire" if wire else "computing", chunk=chunk, start=start, end=start + takes))
        if lane < last:
            heapq.heappush(waiting, (start + takes, chunk, lane + 1))
    return tuple(sorted(spans, key=lambda span: (span.start, span.chunk, span.lane)))
