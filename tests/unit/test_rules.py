"""What a plan may demand of a split beside pins: placed blocks, avoided hosts, few stages; and its goals."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import ValidationError
from test_cost import chain_of, host_of, mesh, posed

from edgesplit.errors import InfeasibleError, InputError
from edgesplit.plan import ModelPlan, Objective, Pin, Workload
from edgesplit.revision.cost import evaluate, violations
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import solve
from edgesplit.split import split_from_placement

SIX = chain_of([2] * 6, embedding=1, head=1)
GOALS: tuple[Literal["latency", "throughput"], ...] = ("latency", "throughput")
HOSTS = {"a": host_of(0.02, 8), "b": host_of(0.001, 9), "c": host_of(0.002, 9), "d": host_of(0.003, 9)}


def of(**plan: Any) -> Problem:
    return posed(SIX, HOSTS, mesh("abcd"), **plan)


def ring(**plan: Any) -> list[str]:
    return [stage.host for stage in solve(of(**plan)).split.stages]


def test_without_rules_the_fastest_hosts_serve() -> None:
    assert ring() == ["a", "b", "c", "a"]


def test_placed_blocks_are_where_the_plan_says() -> None:
    split = solve(of(place={"layers.1-2": "d", "layers.5": "c"})).split
    assert (split.placement()[2], split.placement()[3], split.placement()[6]) == ("d", "d", "c")


def test_avoided_hosts_hold_nothing() -> None:
    assert ring(avoid=("b",)) == ["a", "c", "d", "a"]
    assert of(avoid=("b",)).unusable == {"b": "the plan avoids it"}


def test_few_stages() -> None:
    assert ring(max_stages=3) == ["a", "b", "a"]
    with pytest.raises(InfeasibleError, match="no split keeps to at most 2 stages; without that, the best one has 4"):
        solve(of(max_stages=2))
    assert violations(split_from_placement("aabbcdaa"), of(max_stages=4)) == ["5 stages, at most 4 are allowed"]


def test_an_untrusted_host_has_one_stage() -> None:
    """Layers 1 and 4 must be on c, which is slow: what is between them is better elsewhere, but for the rule."""
    hosts = {**HOSTS, "c": host_of(0.05, 9)}
    free, bound = (
        solve(
            posed(SIX, hosts, mesh("abcd"), place={"layers.1": "c", "layers.4": "c"}, one_stage_per_untrusted_host=one)
        )
        for one in (False, True)
    )
    assert [len(free.split.of(host)) for host in "bc"] == [3, 2]
    assert [len(bound.split.of(host)) for host in bound.split.hosts if host != "a"] == [1] * (
        len(bound.split.hosts) - 1
    )
    with pytest.raises(InfeasibleError, match="no split keeps to one stage per untrusted host"):
        solve(of(place={"layers.1": "b", "layers.2": "c", "layers.3": "b"}, one_stage_per_untrusted_host=True))
    broken = violations(split_from_placement("abbcbbba"), of(one_stage_per_untrusted_host=True))
    assert broken[0] == "b has 2 stages; untrusted, it may have one"


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"avoid": ("x",)}, "avoid: no host x in the inventory"),
        ({"avoid": ("a",)}, "avoid: a is the entry"),
        ({"avoid": ("b",), "place": {"layers.0": "b"}}, "avoid: b is to hold blocks by `place`"),
        ({"avoid": ("b",), "pins": (Pin(blocks=("layers.0",), to="b"),)}, "avoid: b is to hold blocks by `pins`"),
        ({"place": {"layers.0": "x"}}, "place: no host x in the inventory"),
        ({"place": {"layers.9": "b"}}, "place: "),
        ({"place": {"head": "b"}}, "place: head cannot be on b: another pin forbids it"),
        ({"place": {"layers.0": "b"}, "pins": (Pin(blocks=("layers.0",)),)}, "place: layers.0 cannot be on b"),
    ],
)
def test_wishes_that_make_no_sense(plan: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        of(**plan)


def test_a_goal_alone_has_no_weights() -> None:
    plan = ModelPlan.model_validate({"name": "p", "model": "m", "entry": "a", "objective": "throughput"})
    assert plan.objective.goal == "throughput"
    with pytest.raises(ValidationError, match="goal latency has no weights, but privacy is given"):
        Objective.model_validate({"goal": "latency", "privacy": 1.0})


def test_latency_is_of_a_request_alone_and_throughput_of_many() -> None:
    many = Workload(prompt_tokens=10, new_tokens=11, max_context=100, concurrency=8)
    hosts = {**HOSTS, "b": host_of(0.001, 14)}
    alone, often = (
        solve(posed(SIX, hosts, mesh("abcd"), workload=many, objective=Objective(goal=goal))) for goal in GOALS
    )
    assert [sorted(solution.split.hosts) for solution in (alone, often)] == [["a", "b"], ["a", "b", "c"]]
    assert alone.costs.phi == alone.costs.alone_seconds < often.costs.alone_seconds
    assert often.costs.phi == often.costs.interval_seconds < alone.costs.interval_seconds
    costs = evaluate(split_from_placement("aaabbbca"), of(workload=many))
    # a: 2 layers, a chunk and 10 steps of 20 ms each; its share is the largest, eight requests in flight.
    assert costs.interval_seconds == pytest.approx(11 * 2 * 0.02)
    assert costs.interval_seconds > costs.alone_seconds / 8
