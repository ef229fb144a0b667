"""The chunks of a prompt on their way: nobody does two things at once, nobody overtakes, nobody waits for nothing."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from test_cost import chain_of, host_of, mesh, posed
from test_solver import problems, solved

from edgesplit.plan import Workload
from edgesplit.revision.cost import evaluate
from edgesplit.revision.problem import Problem
from edgesplit.revision.timeline import Span, prompt_spans
from edgesplit.split import Split, split_from_placement

LONG = Workload(prompt_tokens=50, new_tokens=11, max_context=100)  # five chunks


def spans_of(split: Split, problem: Problem) -> tuple[Span, ...]:
    return prompt_spans(split, evaluate(split, problem), problem)


def test_the_busiest_host_never_waits() -> None:
    """b takes 40 ms for a chunk, each hop less: five chunks are through when b has done five, and the way is done."""
    hosts = {"a": host_of(0.01, 50), "b": host_of(0.01, 50)}
    problem = posed(chain_of([2] * 6), hosts, mesh("ab"), workload=LONG)
    split = split_from_placement("aabbbbaa")
    end = max(span.end for span in spans_of(split, problem))
    assert end == pytest.approx(evaluate(split, problem).time_to_first_token_seconds)


def test_a_host_with_two_stages_takes_what_is_ready_first() -> None:
    hosts = {"a": host_of(0.01, 50), "b": host_of(0.001, 50)}
    problem = posed(chain_of([2] * 3), hosts, mesh("ab", rtt=0.0), workload=LONG)
    spans = spans_of(split_from_placement("aabaa"), problem)
    order = [(span.lane, span.chunk) for span in spans if span.lane in (0, 4)]
    assert order[:4] == [(0, 0), (0, 1), (0, 2), (0, 3)]  # all chunks are there at the start
    assert order[5:] == [(4, chunk) for chunk in range(5)]


@settings(max_examples=25, deadline=None)
@given(problems(most_hosts=3))
def test_the_laws_of_time(problem: Problem) -> None:
    solution = solved(problem)
    if solution is None:
        return
    split, costs = solution.split, solution.costs
    spans = spans_of(split, problem)
    assert len(spans) == problem.chunks * (2 * len(costs.hops) + 1)
    for chunk in range(problem.chunks):
        own = sorted((span for span in spans if span.chunk == chunk), key=lambda span: span.lane)
        for before, after in pairwise(own):
            assert after.start >= before.end - 1e-12
    computing = sorted((span for span in spans if span.kind == "computing"), key=lambda span: _host(span, split))
    for _, group in groupby(computing, key=lambda span: _host(span, split)):
        own = sorted(group, key=lambda span: (span.start, span.end))
        for before, after in pairwise(own):
            assert after.start >= before.end - 1e-12
    alone = sum(one.chunk_seconds for one in (*costs.stages, *costs.hops)) + problem.hosts[problem.entry].head
    assert max(span.end for span in spans) >= alone - 1e-12


def _host(span: Span, split: Split) -> str:
    return split.stages[span.lane // 2].host
