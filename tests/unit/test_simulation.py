"""Simulated fleets: what happens follows from the seed, and the orchestrator answers it."""

from __future__ import annotations

from edgesplit.simulation.fate import Fate
from edgesplit.simulation.simulate import simulate
from edgesplit.simulation.world import Nature

CLOCKS = {"wall", "turn", "decision"}


def test_the_same_seed_the_same_story() -> None:
    first, again = (simulate(12, 2, 240, 3).model_dump(exclude=CLOCKS) for _ in range(2))
    assert first == again
    assert first["happened"] > 0
    assert simulate(12, 1, 20, 4).model_dump(exclude=CLOCKS) != first


def test_what_happens_ends_and_entries_do_not_fail() -> None:
    nature, names = Nature(), [f"h{number}" for number in range(20)]
    fate = Fate(names, frozenset(names[:10]), "1")
    died: set[str] = set()
    for turn in range(1800):
        fate.pass_on(nature, 2.0 * turn, 2.0)
        died |= nature.dead
    assert died
    assert not died & set(names[:10])
    assert len(died) > len(nature.dead)
