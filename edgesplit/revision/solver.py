"""The best split of a problem, proven: eq. 7 and 9, or with the running split's boundaries eq. 4-6 alone.

Must not know: what the answer is used for.
"""

from __future__ import annotations

from edgesplit.errors import EdgesplitError
from edgesplit.revision.cost import Costs, evaluate, violations
from edgesplit.revision.exact import optimise
from edgesplit.revision.problem import Problem
from edgesplit.revision.refusal import why_infeasible
from edgesplit.split import Split, split_from_placement
from edgesplit.values import Value


class Solution(Value):
    """The best split. `bound`: no split considered has a smaller Phi; `gap` = (Phi - bound) / Phi.

    `complete`: every split was considered. If not, either layers were counted although some relay over a third host
    beats a direct link, and the splits left out are those in which a host has two stretches of one run of identical
    layers; or the layers are of several kinds in turn, and those left out are far from the best one of like layers.
    """

    split: Split
    costs: Costs
    status: str
    bound: float
    gap: float
    complete: bool


def solve(problem: Problem, *, fixed_boundaries: Split | None = None, merge: bool = True) -> Solution:
    """Raises InfeasibleError, from refusal.why_infeasible.

    merge            runs of identical layers are counted, not named (re-split, eq. 7 and 9): seconds for a hundred
                     layers on sixteen hosts. The privacy term stays exact, see program._exposure. Many short runs are
                     counted as if alike first, see blend
    merge=False      every block has its own x_ij (eq. 4): any chain, any links, but slow
    fixed_boundaries every stage of that split goes to a host as a whole (redistribute, eq. 8); stages that meet on
                     one host are one stage of the answer
    """
    optimum = optimise(problem, fixed_boundaries, merge)
    if optimum is None:
        raise why_infeasible(problem, fixed_boundaries)
    split = split_from_placement(optimum.placement)
    broken = violations(split, problem)
    if broken:
        raise EdgesplitError(f"the solver's split breaks a limit, which is an error in edgesplit: {'; '.join(broken)}")
    costs = evaluate(split, problem)
    return Solution(
        split=split,
        costs=costs,
        status="Optimal",
        bound=optimum.bound,
        gap=max(0.0, costs.phi - optimum.bound) / costs.phi if costs.phi > 0 else 0.0,
        complete=optimum.complete,
    )
