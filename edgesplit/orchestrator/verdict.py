"""Did a move bring what was forecast? By what the entry measured before and after, on the state as it is now.

    was      = measured before x model(old split, now) / model(old split, then)    what the old split would give now
    said     = measured before x model(new split, now) / model(old split, then)    what the new one should give now,
               but no less than model(new split, now)
    a move fails when  was - measured now < ENOUGH (was - said)

So what has changed since is in both numbers, and no move is blamed for it. What was measured before is a median of the
last tokens: where a host has just become slow, it lags behind the model, and the ratio alone would promise too much.
Must not know: clocks, hosts, how the model prices a split.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from pydantic import Field

from edgesplit.profiling.capacity import Served, State, Views
from edgesplit.profiling.news import news
from edgesplit.split import Split
from edgesplit.units import format_time
from edgesplit.values import Value

ENOUGH = 0.5  # of the gain that was forecast
FLUSHED = 64  # tokens after which the entry's median holds none from before the move (runner/ring.py: RECENT)
WATCHED = 180.0  # seconds in which a move is judged; later, other things are the reason
BUSIER = 1.25  # factor on the sequences under way above which before and after are not alike
DIFFERENT = 2.0  # factor by which something must differ before what failed is tried again
REMEMBERED = 8  # failures; older ones are forgotten


class Forecast(Value):
    """Seconds per token: as measured before, and by the model for the split that ran and for the target."""

    measured: float
    model: float
    target: float
    load: float  # sequences under way


class Trial(Value):
    """A move that is being judged. `tokens`: what the entry had given out when it was made."""

    since: float
    tokens: int
    origin: Split
    forecast: Forecast


class Failure(Value):
    """A route around the hosts that did not bring what was forecast, in that state of the fleet."""

    route: tuple[str, ...]
    views: Views


class Mind(State):
    """What the orchestrator remembers beside the state of hosts and links. `shards`: host -> blocks on its disk;
    `hopeless`: for what was asked last, no split was possible; `at_once`: so many sequences at a time are served, None:
    as many as the plan asks for."""

    shards: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    hopeless: bool = False
    at_once: int | None = None
    trial: Trial | None = None
    failures: tuple[Failure, ...] = ()


def route(split: Split) -> tuple[str, ...]:
    return tuple(stage.host for stage in split.stages)


def barred(split: Split, failures: Sequence[Failure], views: Views) -> bool:
    """Has this way around the hosts failed while all was nearly as it is?"""
    return any(failure.route == route(split) and not news(failure.views, views, DIFFERENT) for failure in failures)


def typical(served: Sequence[Served], window: int) -> Served | None:
    """Of the last readings between which tokens came; None while they are too few."""
    recent = served[-window:]
    if len(recent) < window:
        return None
    return Served(
        seconds=statistics.median(one.seconds for one in recent),
        load=statistics.median(one.load for one in recent),
        tokens=recent[-1].tokens,
    )


class Verdict(Value):
    """`text`: what was measured, beside what was forecast; "" where the two cannot be compared. `back`: what served
    before would be better than what is measured now, by what it gave then and by the model."""

    failed: bool = False
    back: bool = False
    text: str = ""


def judge(mind: Mind, window: int, price: Callable[[Split], float | None], running: Split) -> Verdict | None:
    """None: too early to tell."""
    trial = mind.trial
    if trial is None:
        return Verdict()
    fresh = [one for one in mind.served if one.tokens >= trial.tokens + FLUSHED]
    found, told = typical(fresh, window), trial.forecast
    if found is None:
        return None
    old, new = price(trial.origin), price(running)
    if old is None or new is None or found.load > BUSIER * told.load:
        return Verdict()
    was, said = (told.measured * each / told.model for each in (old, new))
    said = max(said, new)
    failed = said < was and was - found.seconds < ENOUGH * (was - said)
    text = (
        f"the move to epoch {running.epoch} brought {format_time(found.seconds)} per token, "
        f"{'not ' if failed else ''}{format_time(said)} {'as ' if failed else 'were '}forecast; "
        f"epoch {trial.origin.epoch} would give {format_time(was)}"
    )
    return Verdict(failed=failed, back=failed and max(was, old) < found.seconds, text=text)
