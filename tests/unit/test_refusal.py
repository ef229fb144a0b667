"""Every reason for "no split", with its numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from test_cost import MIB, chain_of, host_of, mesh, posed
from test_solver import problems, solved

from edgesplit.errors import InfeasibleError
from edgesplit.plan import Pin, Workload
from edgesplit.revision.problem import Problem
from edgesplit.revision.refusal import why_infeasible
from edgesplit.revision.solver import solve
from edgesplit.split import split_from_placement

SIX = chain_of([2] * 6, embedding=1, head=1, kv=100)


def fleet_of(a: int, b: int, *, links: Any = None, chain: Any = SIX, **plan: Any) -> Problem:
    """Memory in MiB; a is slow, b is fast."""
    hosts = {"a": host_of(0.02, a), "b": host_of(0.001, b)}
    return posed(chain, hosts, mesh("ab") if links is None else links, **plan)


def refusal(problem: Problem, **options: Any) -> InfeasibleError:
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, **options)
    return caught.value


def test_the_entry_is_too_small_for_what_only_it_may_hold() -> None:
    error = refusal(fleet_of(1, 50))
    assert error.message == (
        "memory: embedding, head need 2.08 MiB (weights 2 MiB, KV cache 0 B, workspace 78.1 KiB) and a allows 1 MiB, "
        "1.08 MiB too little: a 1 MiB (51 MiB free, less 50 MiB for the runner)"
    )
    assert "workload.max_context" in error.hint


def test_the_hosts_together_are_too_small() -> None:
    error = refusal(fleet_of(6, 5, caps={"b": 4 * MIB}))
    assert error.message.startswith("memory: the model needs 14.2 MiB (weights 14 MiB, KV cache 58.6 KiB, ")
    assert error.message.endswith(
        "the hosts together allow 10 MiB, 4.21 MiB too little: a 6 MiB (56 MiB free, less 50 MiB for the runner), "
        "b 4 MiB (its `memory`)"
    )


def test_pinned_blocks_are_too_large_for_the_trusted_hosts() -> None:
    error = refusal(fleet_of(8, 50, pins=(Pin(blocks=("layers.0-3",)),)))
    assert error.message.startswith("memory: embedding, layers.0-3, head need 10.1 MiB")
    assert error.hint.endswith("or loosen the pin")


def test_layers_cannot_be_halved() -> None:
    error = refusal(fleet_of(8, 7))
    assert error.message == "memory: of the 6 blocks layers.0-5 (2.01 MiB each) only 5 fit: a 2, b 3"


def test_a_pin_to_a_host_that_is_not_there() -> None:
    problem = fleet_of(50, 50, problems={"c": "no answer"}, pins=(Pin(blocks=("layers.2",), to="c"),))
    assert refusal(problem).message == "layers.2 may only be on c (no answer), which cannot be used"


def test_no_link() -> None:
    one_way = {pair: link for pair, link in mesh("ab").items() if pair == ("a", "b")}
    error = refusal(fleet_of(8, 20, links=one_way))
    assert error.message == "links: the hosts could hold the model, but no ring joins them: no link from b to a"
    assert "firewall" in error.hint


def test_the_highest_rate_is_told() -> None:
    rush = Workload(prompt_tokens=10, new_tokens=11, max_context=100, rate=30.0)
    error = refusal(fleet_of(3, 50, workload=rush))
    # b must hold all six layers: 6 ms a chunk and 6 ms a step, eleven of them.
    assert error.message == (
        "load: no split bears 30 requests per second; at best 15.2, when b is busy for 66 ms per request"
    )
    assert "workload.rate" in error.hint


def test_a_running_split_whose_stages_fit_nowhere() -> None:
    problem = fleet_of(8, 9)
    error = refusal(problem, fixed_boundaries=split_from_placement("abbbbbba"))
    assert error.message == "the stage layers.0-5 (12.1 MiB) fits no host that may hold it"
    error = refusal(problem, fixed_boundaries=split_from_placement("abbbccca"))
    assert error.message.startswith("no hosts hold the running split's stages as they are: a 8 MiB")
    assert "split again" in error.hint


@settings(max_examples=60, deadline=None)
@given(problems(most_hosts=3))
def test_every_refusal_has_a_reason_and_a_hint(problem: Problem) -> None:
    if solved(problem) is None:
        error = why_infeasible(problem)
        assert error.message.partition(":")[0] in ("memory", "links", "load", "stages")
        assert error.hint
