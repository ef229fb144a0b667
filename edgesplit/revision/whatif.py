"""What would help most, and what would hurt: the problem with one thing changed, solved again for real.

Must not know: clocks (it is told when to stop), how a change is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

from edgesplit.revision.cost import Costs, evaluate
from edgesplit.revision.exact import optimise
from edgesplit.revision.limits import unpinned, with_memory
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import Solution
from edgesplit.split import Split, split_from_placement
from edgesplit.units import enough_size
from edgesplit.values import Value

STEP = 2**30  # bytes by which a host's memory is raised, at least a layer: what a person adds or frees
FASTER = 2  # times as fast a link becomes
MATTERS = 0.01  # share of Phi below which a change is not worth a word


class WhatIf(Value):
    """The best split and its costs after a change; neither where there is no split then."""

    change: str
    split: Split | None
    costs: Costs | None


class Outlook(Value):
    """`helps`: changes that make Phi smaller by MATTERS or more, the best first. `losses`: hosts of the split gone, the
    worst first. `untried`: how many changes there was no time for."""

    helps: tuple[WhatIf, ...]
    losses: tuple[WhatIf, ...]
    untried: int


@dataclass(frozen=True)
class _Change:
    """`more_on`: the host that is given more memory, of which the new split tells how much it takes."""

    words: str
    problem: Problem
    more_on: str | None = None
    loss: bool = False


def look(solution: Solution, problem: Problem, go_on: Callable[[], bool] = lambda: True) -> Outlook:
    """Every change by itself, in a fixed order; `go_on` is asked before each."""
    kinds = (_faster_links(solution, problem), _more_memory(problem), _fewer_pins(problem), _losses(solution, problem))
    changes = [change for round_ in zip_longest(*kinds) for change in round_ if change is not None]
    helps, losses, tried = [], [], 0
    for change in changes:
        if not go_on():
            break
        tried += 1
        found = _solved(change, problem)
        if change.loss:
            losses.append(found)
        elif found.costs is not None and found.costs.phi <= solution.costs.phi * (1 - MATTERS):
            helps.append(found)
    return Outlook(
        helps=tuple(sorted(helps, key=_phi)),
        losses=tuple(sorted(losses, key=_phi, reverse=True)),
        untried=len(changes) - tried,
    )


def _phi(found: WhatIf) -> float:
    return float("inf") if found.costs is None else found.costs.phi


def _solved(change: _Change, before: Problem) -> WhatIf:
    optimum = optimise(change.problem)
    if optimum is None:
        return WhatIf(change=change.words, split=None, costs=None)
    split = split_from_placement(optimum.placement)
    costs = evaluate(split, change.problem)
    words = change.words
    if change.more_on in split.hosts:
        taken = next(host.memory_bytes for host in costs.hosts if host.host == change.more_on)
        words = f"{enough_size(max(0, taken - before.hosts[change.more_on].budget))} {words}"
    return WhatIf(change=words, split=split, costs=costs)


def _more_memory(problem: Problem) -> Iterator[_Change]:
    """The fastest hosts first."""
    step = max(STEP, *problem.memory)
    for host in sorted(problem.hosts, key=lambda host: (problem.alone_seconds(host), host)):
        raised = with_memory(problem, host, problem.hosts[host].budget + step)
        yield _Change(f"more on {host}", raised, more_on=host)


def _faster_links(solution: Solution, problem: Problem) -> Iterator[_Change]:
    """Of the split, the slowest first."""
    hops = sorted(solution.costs.hops, key=lambda hop: (-hop.decode_seconds, hop.source, hop.target))
    for pair in dict.fromkeys((hop.source, hop.target) for hop in hops):
        link = problem.links[pair]
        better = link.model_copy(update={"rtt": link.rtt / FASTER, "bandwidth": link.bandwidth * FASTER})
        words = f"a link {pair[0]} -> {pair[1]} twice as fast"
        yield _Change(words, replace(problem, links={**problem.links, pair: better}))


def _fewer_pins(problem: Problem) -> Iterator[_Change]:
    for number, pin in enumerate(problem.pins):
        free = sorted(set(pin.blocks) - {0, problem.last})
        if free:
            yield _Change(f"{problem.name(*free)} not pinned to {pin.to}", unpinned(problem, {number}))


def _losses(solution: Solution, problem: Problem) -> Iterator[_Change]:
    """Hosts that the split uses; the entry cannot be missed."""
    for host in solution.split.hosts:
        if host != problem.entry:
            legal = tuple(hosts - {host} for hosts in problem.legal)
            yield _Change(f"without {host}", replace(problem, legal=legal), loss=True)
