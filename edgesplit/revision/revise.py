"""The paper's eq. 8 and 9 on the state as it is now: what the running split costs, and what could replace it.

Must not know: thresholds, clocks, hosts.
"""

from __future__ import annotations

from edgesplit.errors import InfeasibleError
from edgesplit.revision.cost import evaluate, violations
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import Solution, solve
from edgesplit.split import Split


def running_phi(running: Split, problem: Problem) -> float | None:
    """Phi of a split on this problem; None when it breaks a limit or needs a host that is gone."""
    try:
        return None if violations(running, problem) else evaluate(running, problem).phi
    except InfeasibleError:
        return None


def redistribution(running: Split, problem: Problem) -> Solution | None:
    """The best placement of the same stages, or None."""
    try:
        return solve(problem, fixed_boundaries=running)
    except InfeasibleError:
        return None
