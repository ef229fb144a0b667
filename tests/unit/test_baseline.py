"""Splits by rule, on fleets small enough to see what the rule does."""

from __future__ import annotations

from rules import by_compute, by_memory, edgeshard, even
from test_cost import chain_of, host_of, mesh, posed

from edgesplit.split import Split

SIX = chain_of([2] * 6, embedding=1, head=1)


def layers(split: Split | None) -> str:
    assert split is not None
    return "".join(split.placement()[1:-1])


def test_shares() -> None:
    """a has room for two layers beside embedding and head, b for four, c for six; b is twice as fast as the others."""
    hosts = {"a": host_of(0.02, 7), "b": host_of(0.01, 9), "c": host_of(0.02, 13)}
    problem = posed(SIX, hosts, mesh("abc"))
    assert layers(even(problem)) == "aabbcc"
    assert layers(by_memory(problem)) == "abbccc"
    assert layers(by_compute(problem)) == "aabbbc"
    assert even(posed(SIX, {"a": host_of(0.02, 7), "b": host_of(0.01, 5)}, mesh("ab"))) is None


def test_what_has_no_room_goes_to_the_others() -> None:
    hosts = {"a": host_of(0.02, 5), "b": host_of(0.01, 13), "c": host_of(0.02, 3)}
    assert layers(even(posed(SIX, hosts, mesh("abc")))) == "abbbbc"


def test_edgeshard_fills_the_fastest() -> None:
    hosts = {"a": host_of(0.02, 9), "b": host_of(0.001, 9), "c": host_of(0.002, 9)}
    assert layers(edgeshard(posed(SIX, hosts, mesh("abc")))) in {"bbbbcc", "ccbbbb"}
    assert edgeshard(posed(SIX, {"a": host_of(0.02, 3), "b": host_of(0.001, 5)}, mesh("ab"))) is None
