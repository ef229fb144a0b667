"""The limits in conflict are in conflict, none can be left out, and what is said to be enough is enough."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from instances import Shape, instance
from test_cost import MIB
from test_refusal import fleet_of
from test_solver import every_split, problems, solved

from edgesplit.plan import Pin, Workload
from edgesplit.revision.conflict import PRECISE, conflict, core_of, least_memory
from edgesplit.revision.cost import violations
from edgesplit.revision.explain import conflict_words
from edgesplit.revision.limits import limits, with_memory, without
from edgesplit.revision.problem import Problem


@settings(max_examples=20, deadline=None)
@given(problems(most_hosts=3))
def test_the_set_is_irreducible(problem: Problem) -> None:
    if solved(problem) is not None:
        return
    core = core_of(problem)
    rest = [limit for limit in limits(problem) if limit not in core]
    assert core
    assert solved(without(problem, rest)) is None
    for limit in core:
        assert solved(without(problem, [*rest, limit])) is not None


@settings(max_examples=12, deadline=None)
@given(problems(most_hosts=3))
def test_the_least_memory_is_enough_and_less_is_not(problem: Problem) -> None:
    if solved(problem) is not None:
        return
    for host in problem.hosts:
        need = least_memory(problem, host)
        if need is not None:
            assert solved(with_memory(problem, host, need)) is not None
            less = with_memory(problem, host, need - PRECISE)
            assert all(violations(split, less) for split in every_split(less))


def test_the_halving_ends_where_memory_is_in_gigabytes() -> None:
    """Beyond some GiB a byte is within the solver's tolerance."""
    problem = instance(Shape(32, 4, pins=1), 1)
    for host, costs in problem.hosts.items():
        problem = with_memory(problem, host, costs.budget // 2)
    need = least_memory(problem, "h0001")
    assert need is not None
    assert solved(with_memory(problem, "h0001", need)) is not None
    assert solved(with_memory(problem, "h0001", need - MIB)) is None


def test_memory_and_a_pin() -> None:
    problem = fleet_of(8, 50, pins=(Pin(blocks=("layers.0-3",)),))
    found = conflict(problem)
    assert found is not None
    assert conflict_words(found) == [
        "in conflict (none of these can be left out):",
        "  memory of a 8 MiB (58 MiB free, less 50 MiB for the runner)",
        "  the pin of layers.0-3 to trusted hosts",
        "any one of these is enough:",
        "  2.12 MiB more memory on a: 10.2 MiB",
        "  to do without the pin of layers.0-3 to trusted hosts",
    ]


def test_caches_that_are_too_many_or_too_long() -> None:
    crowd = Workload(prompt_tokens=10, new_tokens=10, max_context=1000, concurrency=50)  # 4.77 MiB of cache a layer
    problem = fleet_of(20, 20, workload=crowd, caps={"b": 10 * MIB})
    found = conflict(problem)
    assert found is not None
    assert [words for words in found.relaxations if words.startswith("workload")] == [
        "workload.concurrency 26",
        "workload.max_context 520",
    ]
    for name, value in (("concurrency", 26), ("max_context", 520)):
        for number, possible in ((value, True), (value + 1, False)):
            changed = fleet_of(20, 20, workload=crowd.model_copy(update={name: number}), caps={"b": 10 * MIB})
            assert (solved(changed) is not None) is possible


def test_too_many_requests() -> None:
    rush = Workload(prompt_tokens=10, new_tokens=11, max_context=100, rate=30.0)
    found = conflict(fleet_of(3, 50, workload=rush))
    assert found is not None
    assert found.limits == ("a rate of 30 requests per second",)  # no memory would help
    assert found.relaxations == ("to do without a rate of 30 requests per second",)


def test_what_nothing_can_loosen_is_left_to_the_reason() -> None:
    gone = fleet_of(50, 50, problems={"c": "no answer"})
    nowhere = replace(gone, legal=(*gone.legal[:3], frozenset("c"), *gone.legal[4:]))
    assert conflict(nowhere) is None


def test_without_time_it_says_so() -> None:
    found = conflict(fleet_of(6, 5), lambda: False)
    assert found is not None
    assert not found.complete
    assert "no time" in conflict_words(found)[0]
