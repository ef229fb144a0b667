"""Two splits side by side: the parts add up to the whole."""

from __future__ import annotations

import pytest
from test_cost import MIB
from test_refusal import fleet_of

from edgesplit.errors import InfeasibleError, InputError
from edgesplit.revision.comparison import compare
from edgesplit.revision.cost import evaluate
from edgesplit.split import split_from_placement

MINE, OTHER = split_from_placement("aabbbbba"), split_from_placement("aaabbaba")


def test_stretches_have_one_host_on_each_side_and_add_up() -> None:
    problem = fleet_of(50, 50)
    found = compare(MINE, OTHER, problem)
    assert [(one.first, one.last, one.here, one.there) for one in found.stretches] == [
        (0, 1, "a", "a"), (2, 2, "b", "a"), (3, 4, "b", "b"), (5, 5, "b", "a"), (6, 6, "b", "b"), (7, 7, "a", "a"),
    ]  # fmt: skip
    for split, computed, rest in (
        (MINE, sum(one.here_token for one in found.stretches), found.here),
        (OTHER, sum(one.there_token for one in found.stretches), found.there),
    ):
        assert computed + rest.overhead.token + rest.wire.token == pytest.approx(evaluate(split, problem).path_seconds)
    assert found.costs == evaluate(OTHER, problem)
    assert found.broken == ()


def test_limits_that_the_other_breaks_are_told() -> None:
    problem = fleet_of(50, 50, caps={"a": 4 * MIB})
    assert compare(MINE, OTHER, problem).broken == ("a: its blocks need 8.1 MiB, it allows 4 MiB",)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="covers 3 blocks, the model has 8"):
        compare(MINE, split_from_placement("aba"), fleet_of(50, 50))
    with pytest.raises(InfeasibleError, match="z holds"):
        compare(MINE, split_from_placement("azzzzzza"), fleet_of(50, 50))
