"""What happens to a fleet, drawn from a seed: hosts fail and come back, others' load comes and goes, links drift.

Must not know: deployments, orchestrators.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgesplit.simulation.world import Nature

# per host and hour
FAILURES = 0.5
LOADS = 2.0
DRIFTS = 2.0
# mean seconds until it is over
REPAIR = 300.0
LOAD = 120.0
DRIFT = 180.0
PACES = (1.3, 2.0, 4.0)
FARS = (1.5, 3.0, 10.0)


@dataclass
class Fate:
    """`spared`: hosts that do not fail: without its entry a deployment cannot serve, whoever watches it."""

    names: Sequence[str]
    spared: frozenset[str]
    seed: str
    happened: int = 0
    _over: list[tuple[float, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 - no secret

    def pass_on(self, nature: Nature, now: float, seconds: float) -> None:
        """What happens in so many seconds from now on."""
        ended = [each for each in self._over if each[0] <= now]
        self._over = [each for each in self._over if each[0] > now]
        for _, kind, name in ended:
            _end(nature, kind, name)
        for kind, rate in (("dead", FAILURES), ("pace", LOADS), ("far", DRIFTS)):
            for _ in range(self._count(rate * len(self.names) * seconds / 3600)):
                self._begin(nature, kind, self._dice.choice(self.names), now)

    def _begin(self, nature: Nature, kind: str, name: str, now: float) -> None:
        lasts = {"dead": REPAIR, "pace": LOAD, "far": DRIFT}[kind]
        if any(each[1:] == (kind, name) for each in self._over) or (kind == "dead" and name in self.spared):
            return
        if kind == "dead":
            nature.dead.add(name)
        elif kind == "pace":
            nature.pace[name] = self._dice.choice(PACES)
        else:
            nature.far[name] = self._dice.choice(FARS)
        self.happened += 1
        self._over.append((now + self._dice.expovariate(1 / lasts), kind, name))

    def _count(self, mean: float) -> int:
        """Of a Poisson distribution (Knuth)."""
        product, count, least = self._dice.random(), 0, math.exp(-mean)
        while product > least:
            product *= self._dice.random()
            count += 1
        return count


def _end(nature: Nature, kind: str, name: str) -> None:
    if kind == "dead":
        nature.dead.discard(name)
    else:
        {"pace": nature.pace, "far": nature.far}[kind].pop(name, None)
