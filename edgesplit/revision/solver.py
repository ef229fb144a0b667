"""The best split of a problem, proven: eq. 7 and 9, or with the running split's boundaries eq. 4-6 alone.

Must not know: what the answer is used for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

from edgesplit.errors import EdgesplitError
from edgesplit.revision.cost import Costs, evaluate, violations
from edgesplit.revision.exact import Aim, Optimum, optimise
from edgesplit.revision.problem import Problem
from edgesplit.revision.refusal import why_infeasible
from edgesplit.split import Split, split_from_placement
from edgesplit.values import Value

OPTIMAL = 1e-6  # a gap that is none: that of the solver's arithmetic


class Status(str, Enum):
    """What is proven of a split: nothing is better, or nothing is better by more than the gap."""

    OPTIMAL = "Optimal"
    FEASIBLE = "Feasible"


class Solution(Value):
    """The best split. `bound`: no split has a smaller Phi; `gap` = (Phi - bound) / Phi.

    `complete`: the bound is of every split. If not, of those in which a host has one stretch of each run of identical
    layers, or no host but the entry two stages: a host with two relays between others, and how good that can be is not
    known where layers differ, or what crosses the boundaries shrinks along the chain.
    """

    split: Split
    costs: Costs
    status: Status
    bound: float
    gap: float
    complete: bool


def solve(
    problem: Problem,
    *,
    fixed_boundaries: Split | None = None,
    merge: bool = True,
    gap: float = 0.0,
    go_on: Callable[[], bool] = lambda: True,
) -> Solution:
    """Raises InfeasibleError, from refusal.why_infeasible.

    merge            runs of identical layers are counted, not named (re-split, eq. 7 and 9): a second or two for a
                     hundred layers on thirty hosts. Many short runs are counted as if alike first, see blend
    merge=False      every block has its own x_ij (eq. 4), by HiGHS's own search: the reference, slow
    fixed_boundaries every stage of that split goes to a host as a whole (redistribute, eq. 8); stages that meet on
                     one host are one stage of the answer
    gap              the share of Phi by which the answer may be worse than the best; less work
    go_on            is there time for more? If not, the answer is the best split so far, with its gap. Without it, work
                     is limited by numbers of nodes, tables and labels alone: equal problems, equal answers
    """
    optima: list[Optimum] = []
    for batch in problem.batches_that_matter:
        known = min((one.objective for one in optima), default=math.inf)
        optimum = optimise(problem.batched(batch), fixed_boundaries, merge, Aim(known, gap, go_on))
        optima += [optimum] if optimum is not None else []
    if not optima:
        raise why_infeasible(problem, fixed_boundaries)
    optimum = min(optima, key=lambda one: (not one.placement, one.objective))
    if not optimum.placement:
        raise EdgesplitError(f"no split found among {optimum.nodes} nodes of the search, nor proof that there is none")
    split = split_from_placement(optimum.placement)
    broken = violations(split, problem)
    if broken:
        raise EdgesplitError(f"the solver's split breaks a limit, which is an error in edgesplit: {'; '.join(broken)}")
    costs, bound = evaluate(split, problem), min(one.bound for one in optima)
    gap = max(0.0, costs.phi - bound) / costs.phi if costs.phi > 0 else 0.0
    return Solution(
        split=split,
        costs=costs,
        status=Status.OPTIMAL if gap <= OPTIMAL else Status.FEASIBLE,
        bound=bound,
        gap=gap,
        complete=all(one.complete for one in optima),
    )
