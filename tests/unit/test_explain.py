"""The sentences that go with a split: what binds, what would help, what else it could be."""

from __future__ import annotations

import pytest
from test_cost import chain_of, host_of, mesh, posed
from test_refusal import fleet_of

from edgesplit.plan import Pin, ServiceLevel, Workload
from edgesplit.revision.alternatives import alternatives
from edgesplit.revision.explain import alternative_words, what_binds, whatif_words
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import solve
from edgesplit.revision.whatif import look

SIX = chain_of([2] * 6, embedding=1, head=1, kv=100)


def said(problem: Problem) -> str:
    return "\n".join(what_binds(solve(problem), problem))


def test_it_says_that_one_host_is_best() -> None:
    problem = fleet_of(50, 50, links=mesh("ab", rtt=1.0))
    assert said(problem).splitlines() == [
        "One host is best: a alone answers a request in 1.32 s, and no split with b is better.",
        "A token takes 120 ms, all of it computing.",
        "embedding and head stay on the entry a.",
    ]


def test_it_says_which_memory_and_which_link_bind() -> None:
    text = said(fleet_of(8, 9))
    assert "Memory binds: no further layer fits on a (6.1 MiB of 8 MiB), b (8.11 MiB of 9 MiB)." in text
    assert "link" not in text  # 3 ms of 50
    text = said(fleet_of(50, 50))
    assert "A token takes 12.1 ms: 6 ms computing and 6.1 ms on 2 hops." in text
    assert "The link a -> b costs 25% of a token's way around the ring." in text


def test_it_says_where_pinned_blocks_are() -> None:
    text = said(fleet_of(50, 50, pins=(Pin(blocks=("layers.0", "layers.1-2")),)))
    assert "layers.0-2: pinned to trusted hosts, on a (layers.0-2)." in text


def test_it_says_who_makes_the_others_wait_and_which_level_is_missed() -> None:
    crowd = Workload(prompt_tokens=10, new_tokens=11, max_context=100, concurrency=8)
    text = said(fleet_of(6, 50, workload=crowd, service=ServiceLevel(time_per_token=0.02)))
    assert "A token takes 56.4 ms: with 8 sequences in flight they wait for b; its way around the ring takes" in text
    assert "Service level missed: time per token is 56.4 ms, over the wished 20 ms." in text


def test_it_says_when_load_binds() -> None:
    rush = Workload(prompt_tokens=10, new_tokens=11, max_context=100, rate=15.0)
    text = said(fleet_of(3, 50, workload=rush))  # b is busy for 66 ms per request
    assert "Load binds: 15 requests per second keep b for 99% of the time busy." in text


def test_what_helps_is_told_with_what_it_saves() -> None:
    problem = fleet_of(8, 9)
    solution = solve(problem)
    outlook = look(solution, problem)
    # b then holds all six, of which a holds two now: 2 x (20 - 1) ms less
    assert [whatif_words(one, solution.costs, problem) for one in outlook.helps] == [
        "3.14 MiB more on b saves 38 ms per token and 38 ms to the first token (Phi -73%)",
        "a link a -> b twice as fast saves 1.5 ms per token and 6 ms to the first token (Phi -4%)",
        "a link b -> a twice as fast saves 1.5 ms per token and 6 ms to the first token (Phi -4%)",
    ]
    assert [whatif_words(one, solution.costs, problem) for one in outlook.losses] == ["without b there is no split"]


def test_each_other_host_is_told_with_its_cost_or_why_not() -> None:
    hosts = {"a": host_of(0.02, 50), "b": host_of(0.001, 50), "c": host_of(0.001, 50), "d": host_of(0.5, 1)}
    problem = posed(SIX, hosts, mesh("abcd"), problems={"e": "no answer"}, pins=(Pin(blocks=("layers.5",), to="b"),))
    solution = solve(problem)
    assert solution.split.placement() == ("a", *"bbbbbb", "a")
    words = [alternative_words(one, solution.costs, problem) for one in alternatives(solution, problem, range(3, 4))]
    too_small = (
        "d: impossible: memory: layers.2 needs 2.09 MiB (weights 2 MiB, KV cache 9.77 KiB, workspace 78.1 KiB) and d "
        "allows 1 MiB, 1.09 MiB too little: d 1 MiB (51 MiB free, less 50 MiB for the runner)"
    )
    assert words == [
        "c: +3.05 ms per token, +12 ms to the first token (Phi +28.2%)",
        "a: +25.1 ms per token, +43.1 ms to the first token (Phi +194.6%)",
        too_small,
        "e: impossible: it cannot be used: no answer",
    ]
    pinned = [alternative_words(one, solution.costs, problem) for one in alternatives(solution, problem, range(6, 7))]
    assert pinned[0] == "a: impossible: the pin of layers.5 to b forbids it"
    ends = [alternative_words(one, solution.costs, problem) for one in alternatives(solution, problem, range(1))]
    assert ends[0] == "b: impossible: embedding must be on the entry a"


def test_an_alternative_that_costs_nothing_is_called_as_good() -> None:
    twins = {"a": host_of(0.02, 50), "b": host_of(0.001, 50), "c": host_of(0.001, 50)}
    problem = posed(SIX, twins, mesh("abc"))
    solution = solve(problem)
    first = alternatives(solution, problem, range(1, 7))[0]
    assert {first.host, solution.split.hosts[1]} == {"b", "c"}
    assert alternative_words(first, solution.costs, problem).startswith(f"{first.host}: as good")
    assert first.costs is not None
    assert first.costs.phi == pytest.approx(solution.costs.phi)


def test_of_an_encoder_it_says_nothing_of_tokens() -> None:
    problem = fleet_of(8, 9, chain=SIX.model_copy(update={"kind": "encoder"}))
    assert problem.workload.new_tokens == 1
    solution = solve(problem)
    outlook = look(solution, problem)
    words = [whatif_words(one, solution.costs, problem) for one in (*outlook.helps, *outlook.losses)]
    assert "saves 38 ms per text" in words[0]
    assert "token" not in "\n".join([*words, *what_binds(solution, problem)])
