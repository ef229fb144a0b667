"""The bound over many hosts against the best split of few."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from instances import Shape, instance
from scale import SCALE
from test_solver import problems

from edgesplit.revision import exact
from edgesplit.revision.baseline import single_host
from edgesplit.revision.exact import optimise
from edgesplit.revision.fluid import Fluid
from edgesplit.revision.problem import Problem


@settings(max_examples=60 * SCALE, deadline=None)
@given(problems())
def test_no_split_of_several_stages_is_below_the_bound(problem: Problem) -> None:
    for batch in problem.batches_that_matter:
        posed = problem.batched(batch)
        best, flow = optimise(posed, merge=False), Fluid(posed)
        possible = flow.go_on(50)
        if best is not None and len(set(best.placement)) > 1:
            assert possible
            assert flow.bound <= best.objective * (1 + 1e-7) + 1e-9
        if not possible and single_host(posed) is None:
            assert best is None


@pytest.mark.parametrize("seed", range(2))
def test_many_hosts_are_bounded_and_few_are_chosen(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = instance(Shape(24, 24, need=0.2), seed)
    best = optimise(problem)
    monkeypatch.setattr(exact, "WIDE", 20)
    monkeypatch.setattr(exact, "FEW", 10)
    wide = optimise(problem)
    assert best is not None
    assert wide is not None
    assert wide.bound <= best.objective * (1 + 1e-9)
    assert best.objective <= wide.objective * (1 + 1e-9)
    assert wide.objective <= best.objective * 1.02
    assert math.isfinite(wide.bound)
    assert wide.bound >= best.objective * 0.9
