"""No split is possible: the smallest set of limits that stand against each other, and the least that must give.

The set comes from a deletion filter: limit by limit is left out, for good if there is still no split without it. What
stays is irreducible: if the others were not there and any one of these were not either, there would be a split.

Must not know: clocks (it is told when to stop); the sentences for the commonest causes (explain says those first).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from edgesplit.plan import Objective
from edgesplit.revision.cost import evaluate, violations
from edgesplit.revision.exact import optimise
from edgesplit.revision.limits import Limit, endless, limits, with_memory, without
from edgesplit.revision.problem import Problem
from edgesplit.split import Split, split_from_placement
from edgesplit.units import enough_size
from edgesplit.values import Value

ANY = Objective(latency=0.0, utilization=0.0, privacy=0.0)  # any split that keeps the limits will do
PRECISE = 1024  # bytes; far above what the solver takes for equal, far below any block
GoOn = Callable[[], bool]


class Conflict(Value):
    """`limits`: each in words and numbers. `relaxations`: what would be enough by itself, the cheapest first.
    `complete`: there was time for all of it."""

    limits: tuple[str, ...]
    relaxations: tuple[str, ...]
    complete: bool


def conflict(problem: Problem, go_on: GoOn = lambda: True) -> Conflict | None:
    """The problem must be infeasible; None where it is so even without every limit, as with a pin to a host that is
    gone."""
    core = core_of(problem, go_on)
    if not core:
        return None
    relaxations = tuple(_relaxations(replace(problem, objective=ANY), core, go_on))
    return Conflict(limits=tuple(limit.says for limit in core), relaxations=relaxations, complete=go_on())


def core_of(problem: Problem, go_on: GoOn = lambda: True) -> list[Limit]:
    """The limits of the irreducible set; none where the problem is infeasible even without every limit."""
    problem = replace(problem, objective=ANY)
    every = limits(problem)
    if _possible(without(problem, every)) is None:
        return []
    dropped: list[Limit] = []
    for limit in every:
        if go_on() and _possible(without(problem, [*dropped, limit])) is None:
            dropped.append(limit)
    return [limit for limit in every if limit not in dropped]


def _possible(problem: Problem) -> Split | None:
    """A budget a few bytes short is within the solver's tolerance, so what it finds is counted again."""
    optimum = optimise(problem)
    split = None if optimum is None else split_from_placement(optimum.placement)
    return None if split is None or violations(split, problem) else split


def _relaxations(problem: Problem, core: Sequence[Limit], go_on: GoOn) -> Iterator[str]:
    """Only limits of the core can help: without another one, the core still stands."""
    hosts = [limit.about for limit in core if limit.kind == "memory"]
    needs = {host: need for host in hosts if go_on() and (need := least_memory(problem, host)) is not None}
    for host in sorted(needs, key=lambda host: (needs[host] - problem.hosts[host].budget, host)):
        more = needs[host] - problem.hosts[host].budget
        yield f"{enough_size(more)} more memory on {host}: {enough_size(needs[host])}"
    if hosts:
        yield from _smaller(problem, go_on)
    for limit in core:
        if limit.kind != "memory" and go_on() and _possible(without(problem, [limit])) is not None:
            yield f"to do without {limit.says}"


def least_memory(problem: Problem, host: str) -> int | None:
    """The fewest bytes, to within PRECISE, that this host must allow for any split to be possible; None where no number
    is enough."""
    low, split = problem.hosts[host].budget, _possible(with_memory(problem, host, endless(problem)))
    while split is not None:
        high = next((one.memory_bytes for one in evaluate(split, problem).hosts if one.host == host), 0)
        split = _possible(with_memory(problem, host, high - PRECISE))
        if split is None:
            return high
        middle = (low + high) // 2
        halved = _possible(with_memory(problem, host, middle))
        low, split = (middle, split) if halved is None else (low, halved)
    return None


def _smaller(problem: Problem, go_on: GoOn) -> Iterator[str]:
    """A smaller workload whose caches fit."""
    work = problem.workload
    fewer = _largest(1, work.concurrency - 1, lambda count: _with_caches(problem, count, work.max_context), go_on)
    if fewer is not None:
        yield f"workload.concurrency {fewer}"
    least = work.prompt_tokens + work.new_tokens
    shorter = _largest(
        least, work.max_context - 1, lambda length: _with_caches(problem, work.concurrency, length), go_on
    )
    if shorter is not None:
        yield f"workload.max_context {shorter}"


def _with_caches(problem: Problem, sequences: int, tokens: int) -> Problem:
    caches = tuple(block.cache_bytes_until(tokens) * sequences for block in problem.blocks)
    memory = tuple(held - cache + new for held, cache, new in zip(problem.memory, problem.caches, caches, strict=True))
    return replace(problem, caches=caches, memory=memory)


def _largest(low: int, high: int, changed: Callable[[int], Problem], go_on: GoOn) -> int | None:
    """The largest number from low to high with which a split is possible, if any is; more never helps."""
    if low > high or not go_on() or _possible(changed(low)) is None:
        return None
    while low < high and go_on():
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if _possible(changed(middle)) is None else (middle, high)
    return low
