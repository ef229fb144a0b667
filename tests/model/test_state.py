"""The table of an epoch's life: what is in it happens, anything else raises and changes nothing."""

from __future__ import annotations

from itertools import product

import pytest
from links import manifest

from edgesplit.runner.ring import Ring
from edgesplit.runner.state import TABLE, Event, IllegalEvent, State, step
from edgesplit.runner.worker import Worker

PAIRS = list(product(State, Event))


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda part: part.value)
def test_every_pair_moves_as_the_table_says_or_raises(state: State, event: Event) -> None:
    if (state, event) in TABLE:
        assert step(state, event) is TABLE[state, event]
        return
    with pytest.raises(IllegalEvent, match=f"{state.value} cannot {event.value}"):
        step(state, event)


def test_an_illegal_event_leaves_a_ring_as_it_was() -> None:
    ring = Ring(manifest(), "desk", {}, Worker(lambda _: None))
    for event in (Event.COMMIT, Event.LINK, Event.FAULT):
        with pytest.raises(IllegalEvent):
            ring.event(event)
        assert ring.state is State.LOADING


def test_the_straight_way_through_life() -> None:
    state = State.LOADING
    for event in (Event.LOADED, Event.LINK, Event.COMMIT, Event.FAULT, Event.RETIRE):
        state = step(state, event)
    assert state is State.RETIRED


def test_every_state_can_be_reached_and_only_retired_is_final() -> None:
    assert {State.LOADING, *TABLE.values()} == set(State)
    assert {state for state, _ in TABLE} == set(State) - {State.RETIRED}
    assert all((state, Event.RETIRE) in TABLE for state in set(State) - {State.RETIRED})
