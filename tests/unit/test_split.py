"""THE ANSWER: what every Split holds, whoever made it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgesplit.split import Digests, Split, Stage, split_from_placement


def split(*stages: tuple[str, int, int]) -> Split:
    return Split(stages=tuple(Stage(host=host, first=first, last=last) for host, first, last in stages))


RING = (("desk", 0, 2), ("pi", 3, 5), ("desk", 6, 9), ("cloud", 10, 10), ("desk", 11, 11))


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ((), "a split begins at block 0"),
        ((("desk", 1, 4),), "a split begins at block 0"),
        ((("desk", 0, 3), ("pi", 4, 3), ("desk", 4, 5)), "stage 4..3 on pi is empty"),
        ((("desk", 0, 3), ("pi", 5, 6), ("desk", 7, 7)), "stages 0..3 and 5..6 do not meet"),
        ((("desk", 0, 3), ("pi", 3, 6), ("desk", 7, 7)), "stages 0..3 and 3..6 do not meet"),
        ((("desk", 0, 3), ("desk", 4, 6)), "neighbouring stages on desk are one stage"),
        ((("desk", 0, 3), ("pi", 4, 6)), "the ring must end where it begins, at the entry host"),
    ],
)
def test_stages_that_are_no_ring(stages: tuple[tuple[str, int, int], ...], said: str) -> None:
    with pytest.raises(ValidationError, match=f"Value error, {re.escape(said)} "):
        split(*stages)


def test_a_ring_answers_for_itself() -> None:
    ring = split(*RING)
    assert ring.entry == "desk"
    assert ring.blocks == 12
    assert ring.hosts == ("desk", "pi", "cloud")
    assert [(stage.first, stage.last) for stage in ring.of("desk")] == [(0, 2), (6, 9), (11, 11)]
    assert ring.of("nobody") == ()
    assert ring.placement() == ("desk",) * 3 + ("pi",) * 3 + ("desk",) * 4 + ("cloud", "desk")
    assert [len(stage) for stage in ring.stages] == [3, 3, 4, 1, 1]


def test_no_split_is_a_split() -> None:
    whole = split_from_placement(["desk"] * 5)
    assert whole == split(("desk", 0, 4))
    assert (whole.entry, whole.hosts) == ("desk", ("desk",))


def test_an_epoch_is_another_version_of_the_same_stages() -> None:
    ring = split(*RING)
    later = ring.at(3)
    assert (ring.epoch, later.epoch) == (0, 3)
    assert later != ring
    assert later.same_stages(ring)
    assert not ring.same_stages(split(("desk", 0, 11)))


def test_nothing_can_be_placed_nowhere() -> None:
    with pytest.raises(ValidationError, match="a split begins at block 0"):
        split_from_placement([])


HOSTS = st.sampled_from(["desk", "pi", "cloud", "jetson"])
PLACEMENTS = st.tuples(HOSTS, st.lists(HOSTS, max_size=40)).map(lambda drawn: (drawn[0], *drawn[1], drawn[0]))


@given(PLACEMENTS)
def test_a_placement_becomes_a_ring_and_back(placement: tuple[str, ...]) -> None:
    ring = split_from_placement(placement)
    assert ring.placement() == placement
    assert split_from_placement(ring.placement()) == ring
    assert ring.blocks == len(placement) == sum(map(len, ring.stages))
    assert ring.hosts == tuple(dict.fromkeys(placement))
    assert all(placement[block] != placement[block + 1] for block in (stage.last for stage in ring.stages[:-1]))
    assert sorted(stage.first for host in ring.hosts for stage in ring.of(host)) == [s.first for s in ring.stages]


@given(st.lists(HOSTS, min_size=2, max_size=20).filter(lambda hosts: hosts[0] != hosts[-1]))
def test_a_placement_that_does_not_return_to_the_entry_is_refused(placement: list[str]) -> None:
    with pytest.raises(ValidationError, match="the ring must end where it begins"):
        split_from_placement(placement)


@given(PLACEMENTS, st.integers(0, 2**40), st.booleans())
def test_a_split_survives_its_own_json(placement: tuple[str, ...], epoch: int, computed: bool) -> None:
    digests = Digests(inventory="a", plan="b", profile="c", checkpoint="d") if computed else None
    ring = split_from_placement(placement).model_copy(update={"epoch": epoch, "digests": digests})
    assert Split.model_validate_json(ring.to_json()) == ring
