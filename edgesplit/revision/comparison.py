"""Two splits on the same problem: term by term, and block by block along the chain.

Must not know: which of them is the better one.
"""

from __future__ import annotations

from edgesplit.errors import InputError
from edgesplit.revision.cost import Costs, evaluate, violations
from edgesplit.revision.problem import Problem
from edgesplit.split import Split
from edgesplit.values import Value


class Stretch(Value):
    """Blocks `first`..`last` that have one host here and one there; seconds of their computing, without overheads."""

    first: int
    last: int
    here: str
    there: str
    here_token: float
    there_token: float
    here_chunk: float
    there_chunk: float


class Seconds(Value):
    """Per token and per chunk."""

    token: float
    chunk: float


class Rest(Value):
    """What a split costs beside its blocks."""

    overhead: Seconds
    wire: Seconds


class Comparison(Value):
    """`broken`: the limits the other split breaks; it is costed nevertheless."""

    other: Split
    costs: Costs
    broken: tuple[str, ...]
    stretches: tuple[Stretch, ...]
    here: Rest
    there: Rest


def compare(split: Split, other: Split, problem: Problem) -> Comparison:
    """Raises InputError for a split of another model, InfeasibleError for hosts or links that are not there."""
    if other.blocks != len(problem.blocks):
        raise InputError(f"the split covers {other.blocks} blocks, the model has {len(problem.blocks)}")
    here, there = evaluate(split, problem), evaluate(other, problem)
    ends = sorted({stage.last for one in (split, other) for stage in one.stages})
    firsts = [0, *(end + 1 for end in ends[:-1])]
    return Comparison(
        other=other,
        costs=there,
        broken=tuple(violations(other, problem)),
        stretches=tuple(
            _stretch(first, last, (split.placement()[first], other.placement()[first]), problem)
            for first, last in zip(firsts, ends, strict=True)
        ),
        here=_rest(here, problem),
        there=_rest(there, problem),
    )


def _stretch(first: int, last: int, hosts: tuple[str, str], problem: Problem) -> Stretch:
    here, there = (problem.hosts[host] for host in hosts)
    blocks = slice(first, last + 1)
    return Stretch(
        first=first,
        last=last,
        here=hosts[0],
        there=hosts[1],
        here_token=sum(here.decode[blocks]),
        there_token=sum(there.decode[blocks]),
        here_chunk=sum(here.chunk[blocks]),
        there_chunk=sum(there.chunk[blocks]),
    )


def _rest(costs: Costs, problem: Problem) -> Rest:
    hosts = [problem.hosts[stage.host] for stage in costs.stages]
    return Rest(
        overhead=Seconds(
            token=sum(host.decode_overhead for host in hosts), chunk=sum(host.chunk_overhead for host in hosts)
        ),
        wire=Seconds(
            token=sum(hop.decode_seconds for hop in costs.hops), chunk=sum(hop.chunk_seconds for hop in costs.hops)
        ),
    )
