"""Routes by walks and labels against brute force, and against the integer program."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import Shape, instance
from scale import SCALE
from test_solver import every_split, near, problems

from edgesplit.revision import exact
from edgesplit.revision.baseline import greedy
from edgesplit.revision.climb import Climb
from edgesplit.revision.cost import price, violations
from edgesplit.revision.exact import optimise
from edgesplit.revision.labels import Labels
from edgesplit.revision.problem import Problem
from edgesplit.revision.routes import best_route
from edgesplit.revision.solver import Status, solve
from edgesplit.revision.terms import Terms
from edgesplit.revision.walks import Walks
from edgesplit.split import Split, split_from_placement


def once(problem: Problem) -> Iterator[Split]:
    """Splits in which no host but the entry has two stages."""
    for split in every_split(problem):
        if all(len(split.of(host)) == 1 for host in split.hosts if host != problem.entry):
            yield split


def least(problem: Problem) -> float | None:
    return min((price(split, problem).phi for split in once(problem) if not violations(split, problem)), default=None)


@settings(max_examples=40 * SCALE, deadline=None)
@given(problems(), st.data())
def test_the_best_route_equals_brute_force(problem: Problem, data: st.DataObject) -> None:
    problem = problem.batched(data.draw(st.sampled_from(problem.batches)))
    terms = Terms.of(problem, relayed=False)
    if terms is None:
        return
    found, best = best_route(problem, terms), least(problem)
    if best is None:
        assert not found.placement
        return
    split = split_from_placement(found.placement)
    assert violations(split, problem) == []
    assert price(split, problem).phi == pytest.approx(found.cost, rel=1e-9, abs=1e-12)
    assert found.cost == near(best)
    assert found.bound <= best * (1 + 1e-7) + 1e-9
    assert found.bound >= best * (1 - 1e-7) - 1e-9


@settings(max_examples=40 * SCALE, deadline=None)
@given(problems(), st.data())
def test_no_route_is_below_the_bound_of_walks(problem: Problem, data: st.DataObject) -> None:
    """Also while prices and neighbourhoods are as good as arbitrary."""
    problem = problem.batched(1)
    terms = Terms.of(problem, relayed=False)
    best = least(problem)
    if terms is None or best is None:
        return
    climb = Climb(Walks(terms))
    for _ in range(3):
        assert climb.rise(data.draw(st.integers(1, 6)), math.inf, learn=data.draw(st.booleans()))
        assert climb.bound <= best * (1 + 1e-9) + 1e-12
        assert climb.walks.through(climb.table).min() <= best * (1 + 1e-9) + 1e-12
        labels = Labels(climb.walks, climb.table, math.inf)
        assert labels.search(100_000)
        assert labels.cost == near(best)


@settings(max_examples=15 * SCALE, deadline=None)
@given(st.booleans().flatmap(problems), st.sampled_from([0.0, 0.05]))
def test_where_few_of_many_are_needed_it_is_proven_all_the_same(problem: Problem, gap: float) -> None:
    """The ways that large fleets and unlike layers take, taken by small ones."""
    problem = problem.batched(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "SMALL", 0)
        patch.setattr(exact, "SPARE", 0)
        found = optimise(problem, aim=exact.Aim(gap=gap))
    best = min(
        (price(split, problem).phi for split in every_split(problem) if not violations(split, problem)), default=None
    )
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert found.objective >= best * (1 - 1e-7) - 1e-9
        assert not found.complete or found.bound <= best * (1 + 1e-7) + 1e-9


@pytest.mark.parametrize(
    "shape",
    [Shape(12, 30, need=0.15), Shape(16, 26, need=0.1, privacy=20.0, pins=1), Shape(12, 28, need=0.12, concurrency=6)],
    ids=str,
)
def test_it_finds_what_the_integer_program_finds(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = instance(shape, 1)
    routed = solve(problem)
    monkeypatch.setattr(exact, "SMALL", 96)
    counted = solve(problem)
    assert routed.status is counted.status is Status.OPTIMAL
    assert routed.costs.phi == pytest.approx(counted.costs.phi, rel=1e-6)


def renamed(problem: Problem, order: list[str]) -> Problem:
    """The same fleet by other names."""
    new = dict(zip(problem.hosts, order, strict=True))
    return replace(
        problem,
        entry=new[problem.entry],
        hosts={new[host]: problem.hosts[host] for host in sorted(new, key=new.__getitem__)},
        links={(new[a], new[b]): link for (a, b), link in problem.links.items()},
        trusted=frozenset(new.get(host, host) for host in problem.trusted),
        legal=tuple(frozenset(new.get(host, host) for host in hosts) for hosts in problem.legal),
    )


@pytest.mark.parametrize("shape", [Shape(16, 40, need=0.1), Shape(24, 5, kinds=2)], ids=str)
def test_names_do_not_matter(shape: Shape) -> None:
    problem = instance(shape, 2)
    names = list(problem.hosts)
    found = [solve(each) for each in (problem, renamed(problem, names[::-1]), renamed(problem, names[3:] + names[:3]))]
    assert {one.status for one in found} == {Status.OPTIMAL}
    assert found[1].costs.phi == pytest.approx(found[0].costs.phi, rel=1e-9)
    assert found[2].costs.phi == pytest.approx(found[0].costs.phi, rel=1e-9)
    assert found[0].split.placement() == solve(problem).split.placement()


def test_layers_of_many_kinds_are_proven() -> None:
    """Before, planned as if alike and with a bound 5 to 22 % away."""
    solution = solve(instance(Shape(24, 5, kinds=2), 1))
    assert solution.status is Status.OPTIMAL
    simple = greedy(instance(Shape(24, 5, kinds=2), 1))
    assert simple is None or price(simple, instance(Shape(24, 5, kinds=2), 1)).phi >= solution.costs.phi


@pytest.mark.parametrize("shape", [Shape(16, 40, need=0.1), Shape(16, 12), Shape(14, 6, kinds=3)], ids=str)
def test_it_ends_when_told_to_and_says_how_far_it_is(shape: Shape) -> None:
    problem = instance(shape, 3)
    best, hasty, content = solve(problem), solve(problem, go_on=lambda: False), solve(problem, gap=0.1)
    assert best.status is Status.OPTIMAL
    for found in (hasty, content):
        assert found.bound <= best.costs.phi * (1 + 1e-7)
        assert found.costs.phi >= best.costs.phi * (1 - 1e-7)
    assert content.costs.phi * (1 - 0.1) <= best.costs.phi


def test_every_process_finds_the_same_split() -> None:
    """Whatever order it visits sets in: along routes, by the program, by both."""
    told = (
        "from instances import Shape, instance; from edgesplit.revision.solver import solve\n"
        "for shape in (Shape(12, 30, need=0.1), Shape(20, 12), Shape(24, 5, kinds=2)):\n"
        "    print(solve(instance(shape, 4)).model_dump_json())"
    )
    tests = str(Path(__file__).parents[1])
    found = {
        subprocess.run(
            [sys.executable, "-c", told],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": tests},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
