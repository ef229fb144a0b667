"""Some deployments on one fleet, for some simulated minutes: what was decided, how the service was, how long the
orchestrator thought.

All but the times it took (`wall`, `turn`, `decision`) follows from the seed.
Must not know: how results are shown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgesplit.errors import InfeasibleError
from edgesplit.model.blocks import Chain
from edgesplit.orchestrator.decide import Decision
from edgesplit.orchestrator.think import Thinker
from edgesplit.orchestrator.verdict import Mind
from edgesplit.simulation import fleets
from edgesplit.simulation.fate import Fate
from edgesplit.simulation.world import TURN, Nature, World
from edgesplit.split import Split
from edgesplit.values import Value

SLACK = 1.5  # times the seconds per token at first: the service level


class Spread(Value):
    """Seconds."""

    count: int
    median: float
    most: float


class Simulated(Value):
    """`deployments` are those for which there was a split at all. `late`, `broken`: share of the time over the service
    level, and without service. `wall`: seconds it took. `turn`: thoughts without a decision; `decision`: with one."""

    hosts: int
    deployments: int
    refused: int
    seconds: float
    happened: int
    decisions: int
    moves: int
    redistributed: int
    split_again: int
    rolled_back: int
    failed: int
    late: float
    broken: float
    wall: float
    turn: Spread
    decision: Spread

    @property
    def speed(self) -> float:
        """Simulated seconds per second."""
        return self.seconds / self.wall


@dataclass(frozen=True)
class Timed(Thinker):
    """Notes how long it thinks."""

    thoughts: list[tuple[float, bool]] = field(default_factory=list)

    def think(self, mind: Mind, running: Split, now: float) -> tuple[Mind, Decision | None]:
        begun = time.perf_counter()
        mind, decision = super().think(mind, running, now)
        self.thoughts.append((time.perf_counter() - begun, decision is not None))
        return mind, decision


def simulate(count: int, deployments: int, seconds: float, seed: int) -> Simulated:
    """`count` hosts. Raises InfeasibleError where not even one deployment has a split."""
    begun = time.perf_counter()
    nature = Nature()
    worlds = _deployed(count, deployments, seed, nature)
    entries = frozenset(world.running.entry for world in worlds)
    fate = Fate(worlds[0].names, entries, f"fate {count} {seed}")
    late = broken = turns = 0
    for turn in range(1, round(seconds / TURN) + 1):
        fate.pass_on(nature, turn * TURN, TURN)
        for world in worlds:
            _share(world, worlds)
            world.turn()
            level = world.thinker.plan.service.time_per_token or 0.0
            broken += not world.serves
            late += world.serves and world.token() > level
            turns += 1
    thoughts = [each for world in worlds for each in _thoughts(world)]
    moves = [decision.action for world in worlds for _, decision in world.moves]
    return Simulated(
        hosts=count, deployments=len(worlds), refused=deployments - len(worlds), seconds=seconds,
        happened=fate.happened, decisions=sum(world.decisions for world in worlds), moves=len(moves),
        redistributed=moves.count("redistribute"), split_again=moves.count("re-split"),
        rolled_back=moves.count("roll back"), failed=sum(world.failed for world in worlds), late=late / turns,
        broken=broken / turns, wall=time.perf_counter() - begun,
        turn=_spread([took for took, decided in thoughts if not decided]),
        decision=_spread([took for took, decided in thoughts if decided]),
    )  # fmt: skip


def _deployed(count: int, deployments: int, seed: int, nature: Nature) -> list[World]:
    """One after another, each in what those before left."""
    chain, fleet = fleets.chain(), fleets.fleet(count, seed)
    names = tuple(fleet.hosts)
    entries = [names[number * count // deployments] for number in range(deployments)]
    inventory = fleets.inventory(names, entries)
    worlds: list[World] = []
    for number, entry in enumerate(entries):
        timed = Timed(chain, fleet, fleets.plan(number, entry), inventory)
        try:
            world = World(timed, nature, room=_room(names, _memory(timed), worlds))
        except InfeasibleError:
            if not worlds and number == deployments - 1:
                raise
            continue
        level = fleets.plan(number, entry, SLACK * world.token())
        world.thinker = replace(timed, plan=level)
        worlds.append(world)
    return worlds


def _memory(thinker: Thinker) -> dict[str, int]:
    return {name: host.memory_available for name, host in thinker.fleet.hosts.items()}


def _share(world: World, worlds: Sequence[World]) -> None:
    """What the others leave it, and how much slower they make it."""
    others = [each for each in worlds if each is not world]
    world.room = _room(world.names, _memory(world.thinker), others)
    crowd: dict[str, float] = {}
    for each in others:
        crowd.update({name: crowd.get(name, 1.0) + 1.0 for name in each.running.hosts})
    world.crowd = crowd


def _room(names: Sequence[str], memory: dict[str, int], others: Sequence[World]) -> dict[str, int]:
    room: dict[str, int] = {}
    for each in others:
        for name, taken in _taken(each.thinker.chain, each.running).items():
            room[name] = room.get(name, memory[name]) - taken
    return {name: max(0, left) for name, left in room.items() if name in names}


def _taken(chain: Chain, split: Split) -> dict[str, int]:
    """Bytes of weights, and of the runtime."""
    taken: dict[str, int] = {}
    for stage in split.stages:
        size = sum(block.weight_bytes for block in chain.blocks[stage.first : stage.last + 1])
        taken[stage.host] = taken.get(stage.host, fleets.RUNTIME) + size
    return taken


def _thoughts(world: World) -> list[tuple[float, bool]]:
    assert isinstance(world.thinker, Timed)  # noqa: S101 - _deployed made it
    return world.thinker.thoughts


def _spread(seconds: Sequence[float]) -> Spread:
    return Spread(count=len(seconds), median=statistics.median(seconds or [0.0]), most=max(seconds, default=0.0))
