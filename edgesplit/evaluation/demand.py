"""The requests of a scenario: when they come, how long they are. The same seed, the same requests.

Must not know: how a request is made.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

from edgesplit.evaluation.scenario import Demand, Scenario
from edgesplit.values import Value

PROMPTS = 12  # different ones: each is run through the unsplit model once
FIRST_TOKEN = 2  # of the vocabulary, behind its special ones


class Ask(Value):
    """`at`: None for a client that asks whenever it was answered."""

    at: float | None
    prompt: int
    wanted: int


def prompts(scenario: Scenario, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """Token ids."""
    draw = random.Random(scenario.seed)  # noqa: S311 - no secret
    low, high = scenario.demand.prompt_tokens
    return tuple(
        tuple(draw.randrange(FIRST_TOKEN, vocabulary) for _ in range(draw.randint(low, high))) for _ in range(PROMPTS)
    )


def phases(scenario: Scenario) -> list[tuple[float, float]]:
    """(from when, how much): requests per second, or clients."""
    changed = [
        (event.at, float(act.settings["amount"]))
        for event in scenario.events
        for act in event.do
        if act.verb == "demand"
    ]
    return [(0.0, scenario.demand.amount), *changed]


def asks(scenario: Scenario, repetition: int) -> Iterator[Ask]:
    """An open loop: exponential pauses, by the rate of the moment."""
    draw = random.Random(f"{scenario.seed} {repetition}")  # noqa: S311
    steps = [*phases(scenario), (scenario.duration, 0.0)]
    for (begin, rate), (end, _) in pairwise(steps):
        at = begin + (draw.expovariate(rate) if rate else scenario.duration)
        while at < end:
            yield _one(draw, scenario.demand, at)
            at += draw.expovariate(rate)


def turns(scenario: Scenario, repetition: int, client: int) -> Iterator[Ask]:
    """What one client of a closed loop asks, one after another, for ever."""
    draw = random.Random(f"{scenario.seed} {repetition} {client}")  # noqa: S311
    while True:
        yield _one(draw, scenario.demand, None)


def _one(draw: random.Random, demand: Demand, at: float | None) -> Ask:
    return Ask(at=at, prompt=draw.randrange(PROMPTS), wanted=draw.randint(*demand.new_tokens))
