"""The life of one epoch in one runner, as a table; docs/architecture.md draws its picture from it.

Must not know: what is done on the way from one state to the next.
"""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    LOADING = "loading"  # shards are being read
    READY = "ready"  # stages in memory; neighbours may call
    LINKED = "linked"  # the next stage answered
    SERVING = "serving"  # committed: requests run here
    BROKEN = "broken"  # a neighbour was lost; sequences wait for the next epoch
    RETIRED = "retired"  # over


class Event(str, Enum):
    LOADED = "loaded"
    LINK = "link"
    COMMIT = "commit"
    FAULT = "fault"
    RETIRE = "retire"


TABLE: dict[tuple[State, Event], State] = {
    (State.LOADING, Event.LOADED): State.READY,
    (State.READY, Event.LINK): State.LINKED,
    (State.LINKED, Event.COMMIT): State.SERVING,
    (State.READY, Event.FAULT): State.BROKEN,
    (State.LINKED, Event.FAULT): State.BROKEN,
    (State.SERVING, Event.FAULT): State.BROKEN,
    (State.LOADING, Event.RETIRE): State.RETIRED,
    (State.READY, Event.RETIRE): State.RETIRED,
    (State.LINKED, Event.RETIRE): State.RETIRED,
    (State.SERVING, Event.RETIRE): State.RETIRED,
    (State.BROKEN, Event.RETIRE): State.RETIRED,
}


class IllegalEvent(RuntimeError):
    """The event has no place in the table; the state is untouched."""


def step(state: State, event: Event) -> State:
    """The next state. Raises IllegalEvent."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise IllegalEvent(f"an epoch that is {state.value} cannot {event.value}") from None
