"""The segment program of a problem, built and solved.

Must not know: how a split is judged, or explained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pulp

from edgesplit.revision.baseline import single_host
from edgesplit.revision.blend import blended, near, too_many
from edgesplit.revision.branch import NODES, TOLERANCE, Enough, Found, Search
from edgesplit.revision.cost import evaluate, price
from edgesplit.revision.fluid import Fluid
from edgesplit.revision.highs import Highs, solved
from edgesplit.revision.problem import Problem
from edgesplit.revision.program import Program
from edgesplit.revision.relays import Relayed, bounds_every_split
from edgesplit.revision.routes import best_route
from edgesplit.revision.segments import Segment, cut
from edgesplit.revision.terms import Terms
from edgesplit.split import Split, split_from_placement

OPTIONS = {
    "random_seed": 0,  # equal problems, equal answers
    "mip_rel_gap": TOLERANCE,
    "mip_abs_gap": TOLERANCE,
    "mip_feasibility_tolerance": TOLERANCE,
    "primal_feasibility_tolerance": TOLERANCE,
    "dual_feasibility_tolerance": TOLERANCE,
}
SMALL = 24  # hosts from which on the best route is found by walks, if so few of them are needed:
FEWEST, SPARE = 6, 3  # by the largest rooms at most so many, and a third of them; routes are about twice as long
TABLE = 50_000_000  # hosts x hosts x units up to which walks are a matter of a minute
SEVERAL = 8  # segments up to which layers count as alike: ends, pinned ones, and one or two runs
PROOF = 300  # nodes that may prove the best route to be the best split
SLIGHT, NEARLY = 1e-7, 0.01  # share of Phi that is no gap, and one that no other way is tried for
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
class Aim:
    """What is enough: `known`, a split that costs so much is there already, and only better ones are of interest;
    `gap`, the share of Phi by which the answer may be worse than the best; `go_on`, is there time for more?"""

    known: float = math.inf
    gap: float = 0.0
    go_on: Callable[[], bool] = lambda: True


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

    def proven(self, aim: Aim, nearly: float = 0.0) -> bool:
        return self.bound >= min(self.objective, aim.known) * (1 - max(aim.gap, SLIGHT, nearly))


def optimise(
    problem: Problem, fixed_boundaries: Split | None = None, merge: bool = True, aim: Aim = Aim()
) -> Optimum | None:
    """None when nothing satisfies all constraints. See solver.solve for the options."""
    segments = cut(problem, fixed_boundaries, merge)
    if not merge or fixed_boundaries is not None or all(segment.count == 1 for segment in segments):
        return _solve(problem, segments, reference=not merge, aim=aim)
    return _free(problem, segments, aim) if all(segment.limits for segment in segments) else None


def _free(problem: Problem, segments: list[Segment], aim: Aim) -> Optimum | None:
    """With boundaries where they are best, by what suits the fleet and the layers."""
    fewest, hosts = _fewest(segments), len(problem.hosts)
    few = fewest <= FEWEST and fewest * SPARE <= hosts and hosts**2 * len(problem.blocks) <= TABLE
    if len(segments) > SEVERAL:
        return _of_unlike_layers(problem, segments, aim, routes=few or hosts <= SMALL)
    if few and hosts > SMALL:
        return _routed(problem, segments, aim) or _by_program(problem, segments, aim)
    found = _by_program(problem, segments, aim)
    if found is None or found.proven(aim, NEARLY) or hosts > SMALL or not _one_run(problem, segments):
        return found
    return _better(found, _routed(problem, segments, replace(aim, known=min(aim.known, found.objective))))


def _of_unlike_layers(problem: Problem, segments: list[Segment], aim: Aim, *, routes: bool) -> Optimum | None:
    """On a route every layer is its own. The program, which also knows of hosts with two stretches, may prove more."""
    routed = _routed(problem, segments, aim) if routes else None
    aim = aim if routed is None else replace(aim, known=min(aim.known, routed.objective))
    if not too_many(segments):
        counted = _counted(problem, segments, aim, NODES if routed is None else PROOF)
        return counted if routed is None else _better(routed, counted)
    if routed is not None and (routed.placement or routed.proven(aim)):
        return routed
    rough, least = _roughly(problem), _solve(problem, segments, nodes=ROUGH)
    if rough is not None and least is not None:
        rough = replace(rough, bound=min(least.bound, rough.objective))
    if routed is None:
        return rough or _counted(problem, segments, aim)
    return _better(routed, rough)


def _by_program(problem: Problem, segments: list[Segment], aim: Aim) -> Optimum | None:
    return _wide(problem, aim) if len(problem.hosts) > WIDE else _counted(problem, segments, aim)


def _better(one: Optimum, other: Optimum | None) -> Optimum:
    """The better split of both, with the better bound; that of every split, where it is good enough."""
    if other is None:
        return one
    best = min(one, other, key=lambda each: (not each.placement, each.objective))
    bound = max(
        one, other, key=lambda each: (each.complete and each.bound >= best.objective * (1 - SLIGHT), each.bound)
    )
    return replace(best, bound=min(bound.bound, best.objective), complete=bound.complete)


def _fewest(segments: list[Segment]) -> int:
    """So many hosts at least share the layers."""
    rooms: dict[str, int] = {}
    for segment in segments:
        for host, limit in segment.limits.items():
            rooms[host] = rooms.get(host, 0) + limit
    needed, hosts = sum(segment.count for segment in segments), 0
    for room in sorted(rooms.values(), reverse=True):
        if needed <= 0:
            break
        needed, hosts = needed - room, hosts + 1
    return max(1, hosts)


def _routed(problem: Problem, segments: list[Segment], aim: Aim) -> Optimum | None:
    """By walks and labels; None where they do not apply, or found nothing. Hops first as cheap as ways over relays,
    where that bounds every split."""
    whole = _one_run(problem, segments)
    terms = Terms.of(problem, relayed=whole)
    if terms is None:
        return None
    least = best_route(problem, terms, aim.known, aim.gap, aim.go_on)
    if not whole or not least.placement or _costs(problem, least.placement) <= least.cost * (1 + GAIN):
        found = least
    else:
        direct = Terms.of(problem, relayed=False)
        assert direct is not None  # noqa: S101 - it was not before
        found = best_route(problem, direct, aim.known, aim.gap, aim.go_on)
    if not found.placement and math.isinf(found.cost):
        return None
    cost = found.cost if found.placement else math.inf
    return Optimum(found.placement, cost, min(least.bound, found.cost), whole)


def _one_run(problem: Problem, segments: list[Segment]) -> bool:
    """Can a host's second stretch always join its first, or the other way round (see relays.py)? Layers are alike, but
    for one beside them that may be on other hosts: to that one it joins. All else is on the entry."""
    free = [number for number, segment in enumerate(segments) if set(segment.limits) != {problem.entry}]
    if len(free) < 2:
        return bounds_every_split(problem)
    before, after = segments[free[0]], segments[free[-1]]
    if len(free) > 2 or free[1] != free[0] + 1:
        return False
    private = problem.objective.privacy > 0  # to join must not expose layers that lie less deep
    joins = before.count == 1 and (not private or problem.trusted.issuperset(before.limits))
    return (joins or (after.count == 1 and not private)) and bounds_every_split(problem)


def _costs(problem: Problem, placement: Sequence[str]) -> float:
    try:
        return price(split_from_placement(placement), problem).phi
    except KeyError:  # a hop that is a way over relays only
        return math.inf


def _wide(problem: Problem, aim: Aim) -> Optimum | None:
    """A bound over all hosts, and the best split over those that the bound's flow fills most; by turns, until
    they are close."""
    alone, flow = single_host(problem), Fluid(problem)
    whole = math.inf if alone is None else evaluate(alone, problem).phi
    close = max(CLOSE, aim.gap)
    best: Optimum | None = None
    for turn in range(TIMES):
        if turn and not aim.go_on():
            break
        enough = min(aim.known, math.inf if best is None else best.objective) * (1 - close)
        before = flow.bound
        if not flow.go_on(ROUNDS, enough):
            return None if alone is None else Optimum(alone.placement(), whole, whole)
        if flow.bound >= aim.known:
            return Optimum((), math.inf, min(flow.bound, whole))
        found = _over_some(problem, flow.share, aim)
        best = min((one for one in (best, found) if one is not None), key=lambda one: one.objective, default=None)
        if flow.bound == before or (best is not None and flow.bound >= best.objective * (1 - close)):
            break
    bound = min(flow.bound, whole)
    if best is None:
        return Optimum((), math.inf, bound)
    return replace(best, bound=min(bound, best.objective), complete=True)


def _over_some(problem: Problem, share: Mapping[str, float], aim: Aim) -> Optimum | None:
    fastest = min(problem.hosts, key=lambda host: (problem.alone_seconds(host), host))
    order = sorted(problem.hosts, key=lambda host: (-share[host], problem.alone_seconds(host), host))
    for count in (FEW, WIDE - 2):
        found = optimise(problem.among({*order[:count], problem.entry, fastest}), aim=replace(aim, known=math.inf))
        if found is not None:
            return found
    return None


def _counted(problem: Problem, segments: list[Segment], aim: Aim, nodes: int = NODES) -> Optimum | None:
    """First with hops as cheap as ways over relays: that bounds every split, and mostly finds the best one."""
    complete = bounds_every_split(problem)
    ways = Relayed(problem)
    if not ways.pays:
        found = _solve(problem, segments, nodes=nodes, aim=aim)
        return found and replace(found, complete=complete)
    least = _solve(problem, segments, ways, nodes, aim=aim)
    if least is None or not least.placement or _direct(least.placement, ways):
        return least and replace(least, complete=complete)
    found = _solve(problem, segments, nodes=nodes, aim=aim)
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
    aim: Aim = Aim(),
) -> Optimum | None:
    """`reference`: by HiGHS's own search, which shares nothing with ours but the rows."""
    if any(not segment.limits for segment in segments):
        return None
    program = Program(problem, segments, wires)
    model = _Solver(msg=False, mip=reference, **OPTIONS).model(program.lp)
    constant = program.lp.objective.constant
    enough = Enough(aim.known / program.scale - constant, aim.gap, constant, aim.go_on)
    found = _highs(model) if reference else Search(model, program.shape(), enough).run(nodes)
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
