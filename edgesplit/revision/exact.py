"""The segment program of a problem, built and solved.

Must not know: how a split is judged, or explained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pulp

from edgesplit.revision.baseline import single_host
from edgesplit.revision.blend import blended, near, too_many
from edgesplit.revision.branch import NODES, TOLERANCE, Found, Search
from edgesplit.revision.cost import evaluate
from edgesplit.revision.fluid import Fluid
from edgesplit.revision.highs import Highs, solved
from edgesplit.revision.problem import Problem
from edgesplit.revision.program import Program
from edgesplit.revision.relays import Relayed, bounds_every_split
from edgesplit.revision.segments import Segment, cut
from edgesplit.split import Split

OPTIONS = {
    "random_seed": 0,  # equal problems, equal answers
    "mip_rel_gap": TOLERANCE,
    "mip_abs_gap": TOLERANCE,
    "mip_feasibility_tolerance": TOLERANCE,
    "primal_feasibility_tolerance": TOLERANCE,
    "dual_feasibility_tolerance": TOLERANCE,
}
WIDE = 96  # hosts from which on a bound over all and the best split over some is the answer
FEW = 48  # hosts of that split
ROUNDS, TIMES = 60, 10  # of cuts for the bound, between two looks for such a split, and how many
CLOSE = 0.0199  # share of Phi, a bound that is close enough
ROUGH = 1  # nodes that tell how far a rough split may be from the best
GAIN = 1e-6  # share of Phi worth another look


class _Solver(pulp.HiGHS):  # type: ignore[misc] # untyped here
    """PuLP's HiGHS, silent, up to the model."""

    def createAndConfigureSolver(self, lp: Any) -> None:  # noqa: N802 # PuLP's name
        lp.solverModel = Highs()
        for name, value in self.optionsDict.items():
            lp.solverModel.setOptionValue(name, value)

    def model(self, lp: Any) -> Any:
        self.createAndConfigureSolver(lp)
        self.buildSolverModel(lp)
        return lp.solverModel


@dataclass(frozen=True)
class Optimum:
    """The best host of each block; Phi as the program sees it, and a lower bound on Phi.

    `complete`: the bound is proven for every split, not only for those with one stretch per host and segment.
    """

    placement: tuple[str, ...]
    objective: float
    bound: float
    complete: bool = True
    nodes: int = 0


def optimise(problem: Problem, fixed_boundaries: Split | None = None, merge: bool = True) -> Optimum | None:
    """None when nothing satisfies all constraints. See solver.solve for the two options."""
    if merge and fixed_boundaries is None and len(problem.hosts) > WIDE:
        return _wide(problem)
    segments = cut(problem, fixed_boundaries, merge)
    if not merge:
        return _solve(problem, segments, reference=True)
    if fixed_boundaries is not None or all(segment.count == 1 for segment in segments):
        return _solve(problem, segments)
    if too_many(segments) and (rough := _roughly(problem)) is not None:
        least = _solve(problem, segments, nodes=ROUGH)
        return rough if least is None else replace(rough, bound=min(least.bound, rough.objective))
    return _counted(problem, segments)


def _wide(problem: Problem) -> Optimum | None:
    """A bound over all hosts, and the best split over those that the bound's flow fills most; by turns, until
    they are close."""
    alone, flow = single_host(problem), Fluid(problem)
    whole = math.inf if alone is None else evaluate(alone, problem).phi
    best: Optimum | None = None
    for _ in range(TIMES):
        enough = math.inf if best is None else best.objective * (1 - CLOSE)
        before = flow.bound
        if not flow.go_on(ROUNDS, enough):
            return None if alone is None else Optimum(alone.placement(), whole, whole)
        found = _over_some(problem, flow.share)
        best = min((one for one in (best, found) if one is not None), key=lambda one: one.objective, default=None)
        if flow.bound == before or (best is not None and flow.bound >= best.objective * (1 - CLOSE)):
            break
    bound = min(flow.bound, whole)
    if best is None:
        return Optimum((), math.inf, bound)
    return replace(best, bound=min(bound, best.objective), complete=True)


def _over_some(problem: Problem, share: Mapping[str, float]) -> Optimum | None:
    fastest = min(problem.hosts, key=lambda host: (problem.alone_seconds(host), host))
    order = sorted(problem.hosts, key=lambda host: (-share[host], problem.alone_seconds(host), host))
    for count in (FEW, WIDE - 2):
        found = optimise(problem.among({*order[:count], problem.entry, fastest}))
        if found is not None:
            return found
    return None


def _counted(problem: Problem, segments: list[Segment]) -> Optimum | None:
    """First with hops as cheap as ways over relays: that bounds every split, and mostly finds the best one."""
    complete = bounds_every_split(problem)
    ways = Relayed(problem)
    if not ways.pays:
        found = _solve(problem, segments)
        return found and replace(found, complete=complete)
    least = _solve(problem, segments, ways)
    if least is None or _direct(least.placement, ways):
        return least and replace(least, complete=complete)
    found = _solve(problem, segments)
    if found is None:  # a star's centre has several stretches
        return _solve(problem, cut(problem, None, merge=False))
    return replace(found, bound=min(least.bound, found.objective), complete=complete)


def _direct(placement: Sequence[str], ways: Relayed) -> bool:
    hops = enumerate(pairwise(placement))
    return all(source == target or ways.direct(source, target, block) for block, (source, target) in hops)


def _roughly(problem: Problem) -> Optimum | None:
    """Layers of many kinds first as if alike, then exactly near the boundaries found, while that makes it better."""
    alike = blended(problem)
    rough = _solve(alike, cut(alike, None, merge=True))
    best: Optimum | None = None
    while rough is not None:
        close = near(problem, rough.placement)
        rough = _solve(close, cut(close, None, merge=True))
        if best is not None and (rough is None or rough.objective >= best.objective * (1 - GAIN)):
            break
        best = rough
    return best


def _solve(
    problem: Problem,
    segments: list[Segment],
    wires: Relayed | None = None,
    nodes: int = NODES,
    reference: bool = False,
) -> Optimum | None:
    """`reference`: by HiGHS's own search, which shares nothing with ours but the rows."""
    if any(not segment.limits for segment in segments):
        return None
    program = Program(problem, segments, wires)
    model = _Solver(msg=False, mip=reference, **OPTIONS).model(program.lp)
    found = _highs(model) if reference else Search(model, program.shape()).run(nodes)
    constant = program.lp.objective.constant
    bound = (found.bound + constant) * program.scale
    if found.values is None:
        return None if math.isinf(found.bound) else Optimum((), math.inf, bound, nodes=found.nodes)
    return Optimum(
        placement=tuple(program.placement(found.values)),
        objective=(found.objective + constant) * program.scale,
        bound=bound,
        nodes=found.nodes,
    )


def _highs(model: Any) -> Found:
    if not solved(model):
        return Found(bound=math.inf)
    info = model.getInfo()
    return Found(
        list(model.getSolution().col_value), info.objective_function_value, info.mip_dual_bound, info.mip_node_count
    )
