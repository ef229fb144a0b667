"""Every reason for "no split", with its numbers; and the sentences that go with a split."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from test_cost import MIB, chain_of, host_of, mesh, posed
from test_solver import problems, solved

from edgesplit.errors import InfeasibleError
from edgesplit.plan import Pin, ServiceLevel, Workload
from edgesplit.revision.explain import summarise, why_infeasible
from edgesplit.revision.problem import Problem
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
        assert error.message.partition(":")[0] in ("memory", "links", "load")
        assert error.hint


def said(problem: Problem) -> str:
    return "\n".join(summarise(solve(problem), problem))


def test_it_says_that_one_host_is_best() -> None:
    problem = fleet_of(50, 50, links=mesh("ab", rtt=1.0))
    assert said(problem).splitlines() == [
        "One host is best: a alone answers a request in 1.32 s, and no split with b is better.",
        "A token takes 120 ms, all of it computing.",
        "embedding and head stay on the entry a.",
    ]


def test_it_says_why_one_host_is_not_enough_and_what_binds() -> None:
    text = said(fleet_of(8, 9))
    assert "One host is not enough (a: its blocks need 14.1 MiB, it allows 8 MiB); split, a request takes" in text
    assert "Memory binds: no further layer fits on a (6.1 MiB of 8 MiB), b (8.11 MiB of 9 MiB)." in text


def test_it_says_what_the_split_gains_over_one_host() -> None:
    text = said(fleet_of(50, 50))
    assert text.startswith("a alone could do it, in 1.32 s per request (Phi 1.32); split, a request takes ")
    assert "A token takes 12.1 ms: 6 ms computing and 6.1 ms on 2 hops." in text


def test_it_says_where_pinned_blocks_are() -> None:
    text = said(fleet_of(50, 50, pins=(Pin(blocks=("layers.0", "layers.1-2")),)))
    assert "layers.0-2: pinned to trusted hosts, on a (layers.0-2)." in text


def test_it_says_who_makes_the_others_wait_and_which_level_is_missed() -> None:
    crowd = Workload(prompt_tokens=10, new_tokens=11, max_context=100, concurrency=8)
    text = said(fleet_of(6, 50, workload=crowd, service=ServiceLevel(time_per_token=0.02)))
    assert "with 8 sequences in flight they wait for b." in text
    assert "Service level missed: time per token is 48 ms, over the wished 20 ms." in text


def test_it_compares_with_the_rule() -> None:
    assert "The simple rule (entry first, then the fastest hosts) would cost " in said(fleet_of(8, 50))


def test_it_says_when_the_rule_finds_nothing() -> None:
    hosts = {"a": host_of(0.02, 3), "b": host_of(0.001, 5), "c": host_of(0.01, 50)}
    no_way_on = {pair: link for pair, link in mesh("abc").items() if pair != ("b", "c")}  # b is faster, and too small
    assert "finds no split here" in said(posed(SIX, hosts, no_way_on))


def test_of_an_encoder_it_says_nothing_of_tokens() -> None:
    problem = fleet_of(50, 50, chain=SIX.model_copy(update={"kind": "encoder"}))
    assert problem.workload.new_tokens == 1
    assert "token" not in said(problem)
