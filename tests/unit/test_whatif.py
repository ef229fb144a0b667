"""Each what-if is the answer to a problem posed anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from test_cost import MIB, mesh
from test_refusal import fleet_of
from test_solver import phi, problems, solved

from edgesplit.fleet import LinkProfile
from edgesplit.plan import Pin
from edgesplit.revision.limits import limits, without
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import solve
from edgesplit.revision.whatif import Outlook, look


def outlook_of(problem: Problem) -> Outlook:
    return look(solve(problem), problem)


def test_more_memory_is_told_as_far_as_it_is_used() -> None:
    outlook = outlook_of(fleet_of(8, 9))
    (more,) = [found for found in outlook.helps if found.change.endswith("more on b")]
    assert more.costs is not None
    assert more.costs.phi == phi(solved(fleet_of(8, 1000)))
    used = next(host.memory_bytes for host in more.costs.hosts if host.host == "b")
    assert float(more.change.split(" MiB")[0]) * MIB == pytest.approx(used - 9 * MIB, abs=0.01 * MIB)
    assert float(more.change.split(" MiB")[0]) * MIB >= used - 9 * MIB


def test_a_faster_link() -> None:
    links = mesh("ab", rtt=0.05)
    (faster, *_) = [found for found in outlook_of(fleet_of(50, 50, links=links)).helps if "a -> b" in found.change]
    slow = links["a", "b"]
    links["a", "b"] = LinkProfile(rtt=slow.rtt / 2, bandwidth=slow.bandwidth * 2)
    assert faster.costs is not None
    assert faster.costs.phi == phi(solved(fleet_of(50, 50, links=links)))


def test_a_pin_less() -> None:
    pinned = fleet_of(50, 50, pins=(Pin(blocks=("layers.0-3", "embedding")),))
    (free,) = [found for found in outlook_of(pinned).helps if "not pinned" in found.change]
    assert free.change == "layers.0-3 not pinned to trusted"
    assert free.costs is not None
    assert free.costs.phi == phi(solved(fleet_of(50, 50)))


def test_only_what_matters_is_told_the_best_first() -> None:
    outlook = outlook_of(fleet_of(50, 50))
    gains = [found.costs.phi for found in outlook.helps if found.costs is not None]
    assert gains == sorted(gains)
    assert [found.change for found in outlook.helps if "more on" in found.change] == []
    (alone,) = outlook.losses
    assert alone.costs is not None
    assert alone.split is not None
    assert alone.split.hosts == ("a",)


def counted(number: int) -> Callable[[], bool]:
    answers = iter([True] * number)
    return lambda: next(answers, False)


def test_it_stops_when_told_and_says_how_much_is_left() -> None:
    problem = fleet_of(8, 9, pins=(Pin(blocks=("layers.0",)),))
    solution = solve(problem)
    whole = look(solution, problem)
    assert whole.untried == 0
    assert look(solution, problem) == whole
    assert look(solution, problem, counted(2)).untried == 4  # 2 hops, 2 memories, 1 pin, 1 loss
    assert look(solution, problem, counted(0)) == Outlook(helps=(), losses=(), untried=6)


@settings(max_examples=12, deadline=None)
@given(problems(most_hosts=3))
def test_without_a_limit_nothing_gets_worse(problem: Problem) -> None:
    before = solved(problem, merge=False)
    for limit in limits(problem):
        after = solved(without(problem, [limit]), merge=False)
        if before is not None:
            assert after is not None
            assert after.costs.phi <= before.costs.phi * (1 + 1e-7) + 1e-9 or limit.kind == "load"
