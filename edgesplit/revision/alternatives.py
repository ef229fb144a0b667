"""Why blocks are where they are: the same problem with them forced to each other host, solved again.

Must not know: how a terminal shows it.
"""

from __future__ import annotations

from dataclasses import replace

from edgesplit.errors import InfeasibleError
from edgesplit.revision.cost import Costs
from edgesplit.revision.limits import pin_words
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import Solution, solve
from edgesplit.split import Split
from edgesplit.values import Value


class Alternative(Value):
    """All of the blocks on this host: the best split then and its costs, or why there is none."""

    host: str
    split: Split | None
    costs: Costs | None
    why: str


def alternatives(solution: Solution, problem: Problem, blocks: range) -> tuple[Alternative, ...]:
    """One per host of the inventory but where the blocks are; the cheapest first, then what is impossible, by name."""
    placed = solution.split.placement()
    here = {placed[block] for block in blocks}
    others = sorted({*problem.hosts, *problem.unusable} - (here if len(here) == 1 else set()))
    found = [_on(host, problem, blocks) for host in others]
    return tuple(sorted(found, key=lambda one: (one.costs is None, one.costs.phi if one.costs else 0.0, one.host)))


def _on(host: str, problem: Problem, blocks: range) -> Alternative:
    why = _forbidden(host, problem, blocks)
    if why:
        return Alternative(host=host, split=None, costs=None, why=why)
    legal = [hosts & {host} if block in blocks else hosts for block, hosts in enumerate(problem.legal)]
    for first, last in problem.glued:
        shared = frozenset.intersection(*legal[first : last + 1])
        legal[first : last + 1] = [shared] * (last + 1 - first)
    try:
        solution = solve(replace(problem, legal=tuple(legal)))
    except InfeasibleError as error:
        return Alternative(host=host, split=None, costs=None, why=error.message)
    return Alternative(host=host, split=solution.split, costs=solution.costs, why="")


def _forbidden(host: str, problem: Problem, blocks: range) -> str:
    """What forbids it before anything is solved, or ""."""
    if host not in problem.hosts:
        return f"it cannot be used: {problem.unusable[host]}"
    ends = {0, problem.last} & set(blocks)
    if ends and host != problem.entry:
        return f"{problem.name(*ends)} must be on the entry {problem.entry}"
    wrong = [block for block in blocks if host not in problem.legal[block]]
    pins = [pin_words(problem, pin) for pin in problem.pins if set(pin.blocks) & set(wrong)]
    return f"{' and '.join(pins) or 'what shares a cache with it'} forbids it" if wrong else ""
