"""A simulated world: a fleet that is as it is, and the orchestrator that watches it. Time is a number.

The orchestrator is the real one (orchestrator/think.py): it is told readings as hosts would give them, and its moves
take the time it says they take.
Must not know: clocks, chance, what is made to happen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import combinations, cycle, pairwise

from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.orchestrator.decide import Decision
from edgesplit.orchestrator.think import GAP, Thinker, moved, untried
from edgesplit.orchestrator.verdict import Mind
from edgesplit.profiling.capacity import Heard, probed
from edgesplit.profiling.probes import Reading, StageReading
from edgesplit.revision.cost import evaluate, violations
from edgesplit.revision.problem import Problem, pose
from edgesplit.revision.solver import solve
from edgesplit.split import Stage

TURN = 2.0  # seconds between two readings
PROBES = 30.0  # and between two measurements of a link
STEPS = 10  # decode steps of a turn
TOKENS = 100  # given out in a turn


@dataclass
class Nature:
    """How the hosts and links are; several worlds may share it. What is not named is as profiled.

    `pace`: factor on compute times. `far`: factor on the round trips of a host's links, and on what a byte takes.
    `rtt`: the round trip of a pair, in order of name.
    """

    pace: dict[str, float] = field(default_factory=dict)
    far: dict[str, float] = field(default_factory=dict)
    rtt: dict[tuple[str, str], float] = field(default_factory=dict)
    unheard: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)  # hosts whose runner died; the next move starts it
    dead: set[str] = field(default_factory=set)  # hosts without power

    def link(self, a: str, b: str, profile: LinkProfile) -> LinkProfile:
        low, high = sorted((a, b))
        far = max(self.far.get(a, 1.0), self.far.get(b, 1.0))
        rtt = self.rtt.get((low, high), profile.rtt) * far
        return LinkProfile(rtt=rtt, bandwidth=profile.bandwidth / far)


@dataclass
class World:
    """One deployment in it. Of others: `crowd`, the factor on a host's times; `room`, the memory they leave."""

    thinker: Thinker
    nature: Nature
    crowd: dict[str, float] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)
    now: float = 0.0
    asked: int = 0  # sequences under way or waiting
    state: Mind = field(default_factory=Mind)
    moves: list[tuple[float, Decision]] = field(default_factory=list)  # those that failed are among them
    decisions: int = 0
    failed: int = 0
    broken: str = ""

    def __post_init__(self) -> None:
        self.profile = self.thinker.fleet
        self.names = tuple(self.profile.hosts)
        self.running = solve(self.problem(), gap=GAP).split.at(1)
        self.busy = dict.fromkeys(self.names, 0.0)
        self.spent: dict[tuple[int, int], float] = {}
        self.turns = 0
        self.under_way: tuple[float, Decision] | None = None
        self._pairs: Iterator[tuple[str, str]] = cycle(combinations(self.names, 2))

    # --- as it is ---

    def pace(self, name: str) -> float:
        return self.nature.pace.get(name, 1.0) * self.crowd.get(name, 1.0)

    def free(self, name: str) -> int:
        """Bytes of memory, as the host tells."""
        return min(self.profile.hosts[name].memory_available, self.room.get(name, 2**62))

    def link(self, a: str, b: str) -> LinkProfile:
        return self.nature.link(a, b, self.profile.links[a][b])

    def fleet(self, among: Collection[str] = ()) -> Fleet:
        """As it is: these hosts of it, or all."""
        names = among or self.names
        rows = self.profile.links
        return self.profile.model_copy(
            update={
                "hosts": {
                    name: self.profile.hosts[name].model_copy(update={"memory_available": self.free(name)})
                    for name in names
                },
                "links": {a: {b: self.link(a, b) for b in names if b != a and b in rows[a]} for a in names},
                "slowdown": {name: self.pace(name) for name in names},
            }
        )

    def problem(self, among: Collection[str] = ()) -> Problem:
        return pose(self.thinker.chain, self.fleet(among), self.thinker.plan, self.thinker.inventory)

    def token(self) -> float:
        """Seconds per token as they are."""
        return evaluate(self.running, self.problem(self.running.hosts)).time_per_token_seconds

    @property
    def serves(self) -> bool:
        return not self.broken

    def notice(self) -> None:
        """A ring one of whose hosts is gone is broken."""
        gone = [name for name in self.running.hosts if name in self.nature.dead | self.nature.stopped]
        if gone and not self.broken:
            self.broken = f"{gone[0]}: the connection was closed"

    # --- as it is told ---

    def reading(self, name: str) -> Reading:
        serves = name in self.running.hosts and name not in self.nature.dead | self.nature.stopped
        profile = self.profile.hosts[name]
        hops = [b.host for a, b in pairwise(self.running.stages) if a.host == name]
        self.busy[name] += TURN * profile.cores * (1 - 1 / self.pace(name))  # what others take of its cores
        return Reading(
            at=self.now + 1e6,
            cores=profile.cores,
            memory_total=profile.memory_total,
            memory_available=self.free(name),
            busy_seconds=self.busy[name],
            deployed=True,
            runner=serves,
            threads=profile.threads,
            serving=self.running.epoch if serves else None,
            broken=self.broken if serves else "",
            stages=tuple(self._stages(name)) if serves else (),
            running=self.asked,
            links={target: self.link(name, target).rtt for target in hops} if serves else {},
            tokens=TOKENS * self.turns * serves,
            time_per_token=self.token() if name == self.running.entry and serves and self.serves else None,
        )

    def _stages(self, name: str) -> Iterator[StageReading]:
        for number, stage in enumerate(self.running.stages):
            if stage.host == name:
                yield StageReading(
                    epoch=self.running.epoch,
                    stage=number,
                    blocks=(stage.first, stage.last),
                    steps=STEPS * self.turns,
                    decode_seconds=self._spent(number, stage),
                )

    def _spent(self, number: int, stage: Stage) -> float:
        """Some steps more, as long as they take now."""
        times = self.profile.hosts[stage.host].times
        layers = min(stage.last, self.running.blocks - 2) - max(stage.first, 1) + 1
        head = times.head * (stage.last == self.running.blocks - 1)
        key = (self.running.epoch, number)
        step = self.pace(stage.host) * (times.decode_overhead + max(0, layers) * times.decode_layer + head)
        self.spent[key] = self.spent.get(key, 0.0) + STEPS * step
        return self.spent[key]

    # --- a turn of the watch loop ---

    def turn(self) -> None:
        self.now += TURN
        self.turns += 1
        self.notice()
        if self.under_way is not None:
            self.end_move()
            return
        silent = self.nature.unheard | self.nature.dead
        heard = {name: Heard(self.now, self.reading(name)) for name in self.names if name not in silent}
        self.state = self.thinker.heed(self.state, heard, self.running)
        decision = self._decide()
        if decision is not None and decision.target is not None:
            self.begin(decision)
        elif self.now % PROBES < TURN:
            self._try(next(self._pairs, ("", "")))

    def begin(self, decision: Decision) -> None:
        """A move, which takes as long as it says."""
        self.moves.append((self.now, decision))
        takes = decision.moving.seconds if decision.moving is not None else TURN
        self.under_way = (self.now + max(1.0, takes), decision)

    def run(self, seconds: float) -> World:
        end = self.now + seconds
        while self.now < end:
            self.turn()
        return self

    def _decide(self) -> Decision | None:
        before = self.state
        self.state, decision = self.thinker.think(before, self.running, self.now)
        waits = decision is not None and decision.gain is not None and not decision.pressing and self.serves
        if waits and decision is not None and decision.target is not None:
            self.state = before
            for pair in untried(decision.target, self.running):
                self._try(pair)
            self.state, decision = self.thinker.think(self.state, self.running, self.now)
        self.decisions += decision is not None
        return decision

    def _try(self, pair: tuple[str, str]) -> None:
        """A link is measured."""
        away = self.nature.dead | self.nature.stopped | self.nature.unheard
        if set(pair) <= set(self.names) and not away & set(pair):
            found: dict[tuple[str, str], LinkProfile | str] = {
                (a, b): self.link(a, b) for a, b in (pair, pair[::-1]) if b in self.profile.links[a]
            }
            self.state = probed(self.state, self.profile, found, self.now)

    def end_move(self) -> None:
        """All of it or nothing, once its time is over."""
        assert self.under_way is not None  # noqa: S101 - asked before
        until, decision = self.under_way
        target = decision.target
        if self.now < until or target is None:
            return
        self.under_way = None
        gone = (self.nature.dead | self.nature.unheard) & set(target.hosts)
        if gone or violations(target, self.problem(target.hosts)):
            self.failed += 1
            self.state = self.state.model_copy(update={"last_move": self.now})
            return
        self.nature.stopped -= set(target.hosts)
        self.state = moved(self.state, decision, self.running, self.now)
        self.running, self.broken = target.at(self.running.epoch + 1), ""
