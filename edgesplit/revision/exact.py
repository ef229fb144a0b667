"""The segment program of a problem, built and solved.

Must not know: how a split is judged, or explained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import highspy
import pulp

from edgesplit.errors import EdgesplitError
from edgesplit.revision.blend import blended, near, too_many
from edgesplit.revision.branch import TOLERANCE, Found, Search
from edgesplit.revision.problem import Problem
from edgesplit.revision.program import Program
from edgesplit.revision.segments import Segment, counting_is_exact, cut, every_pair_linked
from edgesplit.split import Split

OPTIONS = {
    "threads": 1,  # with the fixed seed: equal problems, equal answers
    "random_seed": 0,
    "mip_rel_gap": TOLERANCE,
    "mip_abs_gap": TOLERANCE,
    "mip_feasibility_tolerance": TOLERANCE,
    "primal_feasibility_tolerance": TOLERANCE,
    "dual_feasibility_tolerance": TOLERANCE,
}
GAIN = 1e-6  # share of Phi worth another look


class _Highs(highspy.Highs):  # type: ignore[misc] # untyped here
    """HiGHS logs a banner to stdout at the first call that is not about its options, and its constructor makes one."""

    def enableCallbacks(self) -> None:  # noqa: N802 # HiGHS's name
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


class _Solver(pulp.HiGHS):  # type: ignore[misc] # untyped here
    """PuLP's HiGHS, silent, up to the model."""

    def createAndConfigureSolver(self, lp: Any) -> None:  # noqa: N802 # PuLP's name
        lp.solverModel = _Highs()
        for name, value in self.optionsDict.items():
            lp.solverModel.setOptionValue(name, value)

    def model(self, lp: Any) -> Any:
        self.createAndConfigureSolver(lp)
        self.buildSolverModel(lp)
        return lp.solverModel


@dataclass(frozen=True)
class Optimum:
    """The best host of each block; Phi as the program sees it, and the proven lower bound on it.

    `complete`: every split was considered, not only those with one stretch per host and segment.
    """

    placement: tuple[str, ...]
    objective: float
    bound: float
    complete: bool
    nodes: int


def optimise(problem: Problem, fixed_boundaries: Split | None = None, merge: bool = True) -> Optimum | None:
    """None when nothing satisfies all constraints. See solver.solve for the two options."""
    segments = cut(problem, fixed_boundaries, merge)
    if merge and fixed_boundaries is None and too_many(segments):
        found = _roughly(problem)
        if found is not None:
            return found
    complete = counting_is_exact(problem, segments)
    optimum = _solve(problem, segments, complete, reference=not merge)
    if optimum is None and not complete and not every_pair_linked(problem):  # a star's centre has several stretches
        return _solve(problem, cut(problem, None, merge=False), complete=True)
    return optimum


def _roughly(problem: Problem) -> Optimum | None:
    """Layers of many kinds first as if alike, then exactly near the boundaries found, while that makes it better."""
    alike = blended(problem)
    rough = _solve(alike, cut(alike, None, merge=True), complete=False)
    best: Optimum | None = None
    while rough is not None:
        close = near(problem, rough.placement)
        rough = _solve(close, cut(close, None, merge=True), complete=False)
        if best is not None and (rough is None or rough.objective >= best.objective * (1 - GAIN)):
            break
        best = rough
    return best


def _solve(problem: Problem, segments: list[Segment], complete: bool, reference: bool = False) -> Optimum | None:
    """`reference`: by HiGHS's own search, which shares nothing with ours but the rows."""
    if any(not segment.limits for segment in segments):
        return None
    program = Program(problem, segments)
    model = _Solver(msg=False, mip=reference, **OPTIONS).model(program.lp)
    found = _highs(model) if reference else Search(model, program.shape()).run()
    if found.values is None:
        return None
    constant = program.lp.objective.constant
    return Optimum(
        placement=tuple(program.placement(found.values)),
        objective=(found.objective + constant) * program.scale,
        bound=(found.bound + constant) * program.scale,
        complete=complete,
        nodes=found.nodes,
    )


def _highs(model: Any) -> Found:
    model.run()
    status, info = model.getModelStatus(), model.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Found()
    if status != highspy.HighsModelStatus.kOptimal:
        raise EdgesplitError(f"the solver stopped without an answer: {model.modelStatusToString(status)}")
    return Found(
        list(model.getSolution().col_value), info.objective_function_value, info.mip_dual_bound, info.mip_node_count
    )
