"""Cuts on routes worked out by hand; the search against HiGHS's own."""

from __future__ import annotations

import highspy
import pytest
from instances import Shape, instance

from edgesplit.revision.cuts import unreached
from edgesplit.revision.exact import optimise
from edgesplit.revision.highs import solved

ONE = {"a": 1.0}


def test_a_cycle_beside_the_route_is_found() -> None:
    visits = dict.fromkeys("abcd", 1.0)
    arcs = {("a", "b"): 1.0, ("c", "d"): 1.0, ("d", "c"): 1.0}
    assert unreached(ONE, arcs, visits) == [("c", frozenset("cd"))]


def test_half_a_way_is_no_way() -> None:
    """b and c are entered by half, and visited whole by going round."""
    arcs = {("a", "b"): 0.5, ("b", "c"): 1.0, ("c", "b"): 0.5}
    assert unreached(ONE, arcs, {"a": 1.0, "b": 1.0, "c": 1.0}) == [("b", frozenset("bc"))]
    assert unreached(ONE, arcs, {"a": 1.0, "b": 0.5, "c": 0.5}) == []


def test_a_route_is_not_cut() -> None:
    arcs = {("a", "b"): 0.5, ("a", "c"): 0.5, ("b", "c"): 0.5, ("c", "b"): 0.5}
    assert unreached(ONE, arcs, dict.fromkeys("abc", 1.0)) == []


@pytest.mark.parametrize(
    "shape",
    [
        Shape(7, 4),
        Shape(6, 4, lan=True, concurrency=4),
        Shape(7, 4, privacy=20.0),
        Shape(6, 4, utilization=20.0, pins=1),
    ],
    ids=str,
)
def test_it_finds_what_highs_finds_block_by_block(shape: Shape) -> None:
    for seed in range(2):
        problem = instance(shape, seed)
        ours, reference = optimise(problem), optimise(problem, merge=False)
        assert ours is not None
        assert reference is not None
        assert ours.complete
        assert ours.bound <= reference.objective * (1 + 1e-7)
        assert ours.objective >= reference.objective * (1 - 1e-7)
        if ours.bound == pytest.approx(ours.objective):
            assert ours.objective == pytest.approx(reference.objective, rel=1e-7)


class _Lost:
    """A model whose simplex loses its way from the basis it begins with."""

    def __init__(self) -> None:
        self.begun_anew = False

    def run(self) -> None:
        pass

    def clearSolver(self) -> None:  # noqa: N802 # HiGHS's name
        self.begun_anew = True

    def getModelStatus(self) -> highspy.HighsModelStatus:  # noqa: N802 # HiGHS's name
        return highspy.HighsModelStatus.kInfeasible if self.begun_anew else highspy.HighsModelStatus.kUnknown


def test_a_simplex_that_lost_its_way_begins_anew() -> None:
    """Seen on four hosts and fourteen layers, behind a branch that nothing satisfies."""
    assert not solved(_Lost())
