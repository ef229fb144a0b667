"""The orchestrator in simulated worlds: hosts slow down, fall silent and die, links worsen, and time is a number.

EDGESPLIT_HISTORIES=2000 tries that many random histories instead of a few.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profiles import NAMES, fleet
from test_decide import PLAN, chain

from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.inventory import Inventory
from edgesplit.orchestrator.decide import Decision
from edgesplit.orchestrator.think import Thinker, moved, untried
from edgesplit.orchestrator.verdict import Mind
from edgesplit.plan import Pin, WatchPolicy
from edgesplit.profiling.capacity import MEMORY, Heard, probed
from edgesplit.profiling.probes import Reading, StageReading
from edgesplit.revision.cost import evaluate, violations
from edgesplit.revision.problem import Problem, pose
from edgesplit.revision.solver import solve
from edgesplit.split import Split, Stage, split_from_placement

TURN = 2.0  # seconds between two readings
PROBES = 30.0  # and between two measurements of a link
MEMORY_EACH = 128 * 2**10 + 5500  # bytes: workspace, and what no host can hold the whole model in, but two can
POLICY = WatchPolicy()
INVENTORY = Inventory.model_validate(
    {
        "hosts": {
            name: {
                "connection": "local",
                "work": f"/w/{name}",
                "trusted": name == "desk",
                "data": {"port": port},
                "memory": MEMORY_EACH,
            }
            for port, name in enumerate(NAMES, start=1001)
        }
    }
)
WISH = PLAN.model_copy(update={"watch": POLICY})
PROFILE = fleet()
PAIRS = [(a, b) for a in NAMES for b in NAMES if a < b]
HISTORIES = int(os.environ.get("EDGESPLIT_HISTORIES", "12"))
# ("pace" or "hidden", host, factor), ("rtt", "a b", seconds), ("room", host, bytes), ("heard" or "alive", host, 0 or 1)
Change = tuple[str, str, float]


@dataclass
class World:
    """A fleet that is as it is, the orchestrator that watches it, and every move it made."""

    pace: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 1.0))
    rtt: dict[tuple[str, str], float] = field(default_factory=dict)
    unheard: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    hidden: dict[str, float] = field(default_factory=dict)  # host -> factor on tokens, which nobody sees
    room: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 2**33))  # bytes of memory that are free
    now: float = 0.0
    state: Mind = field(default_factory=Mind)
    moves: list[tuple[float, Decision]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thinker = Thinker(chain(), PROFILE, WISH, INVENTORY)
        self.running = solve(self.problem()).split.at(1)
        self.busy = dict.fromkeys(NAMES, 0.0)
        self.spent: dict[tuple[int, int], float] = {}
        self.turns = 0
        self.tokens: dict[tuple[object, ...], float] = {}
        self.broken = ""
        self.probes = iter(PAIRS)

    # --- as it is ---

    def fleet(self) -> Fleet:
        def link(a: str, b: str) -> LinkProfile:
            low, high = sorted((a, b))
            return LinkProfile(rtt=self.rtt.get((low, high), PROFILE.links[a][b].rtt), bandwidth=1e9)

        links = {a: {b: link(a, b) for b in NAMES if b != a} for a in NAMES}
        return PROFILE.model_copy(update={"links": links, "slowdown": self.pace})

    def problem(self, without: set[str] = frozenset()) -> Problem:
        return pose(chain(), self.fleet().without(*without), WISH, INVENTORY)

    def phi(self, split: Split) -> float:
        return evaluate(split, self.problem()).phi

    def change(self, kind: str, what: str, value: float) -> None:
        if kind == "pace":
            self.pace[what] = value
        elif kind == "rtt":
            low, high = sorted(what.split())
            self.rtt[low, high] = value
        elif kind == "hidden":
            self.hidden[what] = value
        elif kind == "room":
            self.room[what] = int(value)
        elif kind == "heard":
            (self.unheard.discard if value else self.unheard.add)(what)
        elif value:
            self.dead.discard(what)
        else:
            self.dead.add(what)
            if what in self.running.hosts:
                self.broken = f"{what}: the connection was closed"

    # --- as it is told ---

    def reading(self, name: str) -> Reading:
        serves = name in self.running.hosts and name not in self.dead
        stages = tuple(
            StageReading(
                epoch=self.running.epoch,
                stage=number,
                blocks=(stage.first, stage.last),
                steps=10 * self.turns,
                decode_seconds=self._spent(number, stage),
            )
            for number, stage in enumerate(self.running.stages)
            if stage.host == name and serves
        )
        hops = [(a.host, b.host) for a, b in zip(self.running.stages, self.running.stages[1:], strict=False)]
        self.busy[name] += TURN * (1 - 1 / self.pace[name])  # what others take of its one core
        return Reading(
            at=self.now + 1e6,
            cores=1.0,
            memory_total=2**34,
            memory_available=self.room[name],
            busy_seconds=self.busy[name],
            deployed=True,
            runner=serves,
            threads=1,
            serving=self.running.epoch if serves else None,
            broken=self.broken if serves else "",
            stages=stages,
            tokens=100 * self.turns * serves,
            time_per_token=self.token() if name == self.running.entry and serves and not self.broken else None,
            links={b: self.fleet().links[a][b].rtt for a, b in hops if a == name and serves},
        )

    def token(self) -> float:
        """Seconds per token as they are, not as a model would have them."""
        key = (self.running.stages, *self.pace.values(), *sorted(self.rtt.items()))
        if key not in self.tokens:
            problem = pose(chain(), self.fleet(), WISH, INVENTORY)
            self.tokens[key] = evaluate(self.running, problem).time_per_token_seconds
        return math.prod([self.tokens[key], *(self.hidden.get(host, 1.0) for host in self.running.hosts)])

    def _spent(self, number: int, stage: Stage) -> float:
        """Ten steps more, as long as they take now."""
        times = PROFILE.hosts[stage.host].times
        layers = min(stage.last, self.running.blocks - 2) - max(stage.first, 1) + 1
        head = times.head * (stage.last == self.running.blocks - 1)
        key = (self.running.epoch, number)
        step = self.pace[stage.host] * (times.decode_overhead + max(0, layers) * times.decode_layer + head)
        self.spent[key] = self.spent.get(key, 0.0) + 10 * step
        return self.spent[key]

    def turn(self) -> None:
        self.now += TURN
        self.turns += 1
        heard = {name: Heard(self.now, self.reading(name)) for name in NAMES if name not in self.unheard}
        self.state = self.thinker.heed(self.state, heard, self.running)
        before = self.state
        self.state, decision = self.thinker.think(before, self.running, self.now)
        if decision is not None and decision.target is not None and decision.gain is not None and not self.broken:
            for pair in untried(decision.target, self.running):
                before = self.tried(before, pair)
            self.state, decision = self.thinker.think(before, self.running, self.now)
        if decision is not None and decision.target is not None:
            self.move(decision)
        elif self.now % PROBES < TURN:
            self.probe()

    def probe(self) -> None:
        pair = next(self.probes, None)
        if pair is None:
            self.probes = iter(PAIRS)
        elif not self.dead & set(pair) and not self.unheard & set(pair):
            self.state = self.tried(self.state, pair)

    def tried(self, state: Mind, pair: tuple[str, str]) -> Mind:
        links = self.fleet().links
        return probed(state, PROFILE, {(a, b): links[a][b] for a, b in (pair, pair[::-1])}, self.now)

    def move(self, decision: Decision) -> None:
        target = decision.target
        assert target is not None
        self.moves.append((self.now, decision))
        if not self.unheard & set(target.hosts):
            self.dead -= set(target.hosts)  # a runner that is not there is started
            self.state = moved(self.state, decision, self.running, self.now)
            self.running, self.broken = target.at(self.running.epoch + 1), ""

    def run(self, seconds: float) -> World:
        end = self.now + seconds
        while self.now < end:
            self.turn()
        return self


# --- what must never happen ---


def check(world: World, before: Split, decision: Decision, quiet: float) -> None:
    """`quiet`: seconds since anything changed."""
    target = decision.target
    assert target is not None
    placement = target.placement()
    assert placement[0] == placement[1] == placement[-1] == "desk"
    assert not violations(target, world.problem())
    if decision.gain is None or decision.net is None:
        return
    assert decision.gain >= decision.net >= POLICY.min_gain
    assert decision.moving is not None
    for host, extra in decision.moving.extra.items():  # while both are loaded
        assert extra <= world.room[host]
    assert not world.state.trial or world.state.trial.origin == before
    if not world.dead | world.unheard and quiet > 60:
        assert world.phi(target) < world.phi(before)


changes = st.one_of(
    st.tuples(st.just("pace"), st.sampled_from(NAMES), st.sampled_from([1.0, 1.3, 2.0, 6.0, 15.0])),
    st.tuples(st.just("rtt"), st.sampled_from([" ".join(pair) for pair in PAIRS]), st.sampled_from([1e-4, 5e-3, 0.1])),
    st.tuples(st.just("heard"), st.sampled_from(NAMES), st.sampled_from([0.0, 1.0])),
    st.tuples(st.just("alive"), st.sampled_from(["shelf", "attic"]), st.sampled_from([0.0, 1.0])),
    st.tuples(st.just("room"), st.sampled_from(NAMES), st.sampled_from([1e3, 2.0**33])),
    st.tuples(st.just("hidden"), st.sampled_from(["shelf", "attic"]), st.sampled_from([1.0, 3.0])),
)
histories = st.lists(st.tuples(st.floats(2, 200), changes), max_size=8)


@settings(deadline=None, max_examples=HISTORIES, suppress_health_check=list(HealthCheck))
@given(histories)
def test_whatever_happens_pins_and_memory_hold_moves_win_and_it_settles(history: list[tuple[float, Change]]) -> None:
    world = World().run(20)
    for pause, change in history:
        world.change(*change)
        end = world.now + pause
        while world.now < end:
            before, count = world.running, len(world.moves)
            world.turn()
            if len(world.moves) > count:
                check(world, before, world.moves[-1][1], world.now - end + pause)
    for name in NAMES:
        world.change("heard", name, 1)
        world.change("alive", name, 1)
        world.change("room", name, 2**33)
    world.run(MEMORY + 400)
    count = len(world.moves)
    world.run(MEMORY)
    assert len(world.moves) == count
    assert world.broken == ""
    if world.state.failures:
        return  # what it believes to be best was tried
    best = solve(world.problem()).costs.phi
    assert world.phi(world.running) * (1 - POLICY.min_gain) <= best * 1.02


def square(kind: str, what: str, levels: tuple[float, float], period: float) -> Iterator[World]:
    """Ten minutes of something that comes and goes."""
    world = World().run(20)
    turn = 0
    while world.now < 620:
        world.change(kind, what, levels[turn % 2])
        world.run(period / 2)
        turn += 1
    yield world


@pytest.mark.parametrize("period", [20.0, 90.0, 400.0])
@pytest.mark.parametrize(
    ("kind", "what", "levels"),
    [("pace", "shelf", (12.0, 1.0)), ("pace", "shelf", (1.6, 1.4)), ("rtt", "desk shelf", (0.2, 1e-4))],
)
def test_what_comes_and_goes_costs_two_moves_at_most(
    kind: str, what: str, levels: tuple[float, float], period: float
) -> None:
    (world,) = square(kind, what, levels, period)
    assert len(world.moves) <= 2, [(at, made.because) for at, made in world.moves]


# --- what must happen ---


def test_a_controller_that_hears_nobody_does_nothing() -> None:
    world = World().run(20)
    for name in NAMES:
        world.change("heard", name, 0)
    assert world.run(600).moves == []


def test_a_host_of_the_ring_that_cannot_be_heard_is_left_in_peace() -> None:
    world = World().run(20)
    (quiet, *_) = [name for name in world.running.hosts if name != "desk"] or ["shelf"]
    world.change("heard", quiet, 0)
    world.change("pace", "desk", 15.0)
    assert world.run(300).moves == []


def test_a_move_that_does_not_bring_its_forecast_is_taken_back_once() -> None:
    world = World().run(20)
    first = world.running
    (other,) = {"shelf", "attic"} - set(world.running.hosts)
    world.change("hidden", other, 10.0)
    (slow,) = set(world.running.hosts) - {"desk"}
    world.change("pace", slow, 3.0)
    world.run(900)
    made = [decision.action for _, decision in world.moves]
    assert made[0] in ("redistribute", "re-split")
    assert made[1:] == ["roll back"], [(at, move.because) for at, move in world.moves]
    assert world.running.stages == first.stages
    assert f"the move to epoch {first.epoch + 1} brought" in world.moves[1][1].because
    world.change("pace", slow, 15.0)  # far worse than when it failed: worth another try
    world.run(200)
    assert [decision.action for _, decision in world.moves[2:]][:1] in (["redistribute"], ["re-split"])


def test_what_serves_without_hidden_troubles_is_not_taken_back() -> None:
    world = World().run(20)
    (slow,) = set(world.running.hosts) - {"desk"}
    world.change("pace", slow, 6.0)
    world.run(900)
    assert [decision.action for _, decision in world.moves] != []
    assert "roll back" not in [decision.action for _, decision in world.moves]


def test_memory_that_comes_free_is_used_when_it_is_worth_it() -> None:
    world = World().run(20)
    (serves,) = set(world.running.hosts) - {"desk"}
    (other,) = {"shelf", "attic"} - {serves}
    world.change("room", other, 1e3)
    world.run(20)
    world.change("pace", serves, 1.4)  # below every threshold, but worth a move
    assert world.run(100).moves == []
    world.change("room", other, 2**33)
    world.run(MEMORY)
    assert other in world.running.hosts


@pytest.mark.parametrize("kind", ["alive", "heard"])
def test_a_host_that_comes_back_is_used_when_it_is_worth_it(kind: str) -> None:
    world = World().run(20)
    first = world.running
    (serves,) = set(first.hosts) - {"desk"}
    (other,) = {"shelf", "attic"} - {serves}
    if kind == "alive":
        world.running = split_from_placement(["desk", "desk", other, other, other, "desk"]).at(2)
    world.change(kind, other, 0)
    world.run(20)
    assert other not in world.running.hosts
    world.change("pace", serves, 4.0)
    world.run(60)
    assert other not in world.running.hosts
    world.change(kind, other, 1)
    world.run(200)
    assert other in world.running.hosts


def with_inventory(world: World, **trusted: bool) -> None:
    hosts = {name: spec.model_copy(update={"trusted": trusted.get(name, spec.trusted)})
             for name, spec in INVENTORY.hosts.items()}  # fmt: skip
    world.thinker = replace(world.thinker, inventory=Inventory.model_construct(hosts=hosts))


def test_blocks_leave_a_host_that_is_no_longer_trusted_at_once() -> None:
    world = World().run(20)
    with_inventory(world, shelf=True)
    pinned = WISH.model_copy(update={"pins": (Pin(blocks=("layers.0-3",)),)})
    world.running = split_from_placement(["desk", "desk", "shelf", "shelf", "shelf", "desk"]).at(1)
    world.thinker = replace(world.thinker, plan=pinned)
    assert world.run(100).moves == []  # as good as any that is allowed
    with_inventory(world, shelf=False, attic=True)
    began = world.now
    world.run(2 * TURN)
    ((at, made),) = world.moves
    assert at - began <= TURN
    assert "may not be on shelf" in made.because
    assert set(world.running.hosts) == {"desk", "attic"}


def test_a_new_host_is_used_when_it_is_worth_it() -> None:
    world = World()
    world.thinker = replace(world.thinker, fleet=PROFILE.without("attic"))
    world.running = split_from_placement(["desk", "desk", "shelf", "shelf", "shelf", "desk"]).at(1)
    world.run(20)
    world.change("pace", "shelf", 4.0)
    world.run(100)
    assert "attic" not in world.running.hosts
    world.thinker = replace(world.thinker, fleet=PROFILE)  # it has been measured
    world.run(60)
    assert "attic" in world.running.hosts
    assert "attic can be used" in world.moves[-1][1].because


def test_where_no_split_is_possible_what_serves_goes_on_and_it_is_said_once() -> None:
    world = World().run(20)
    with_inventory(world)
    tight = WISH.model_copy(update={"pins": (Pin(blocks=("layers.0-3",)),)})
    world.thinker = replace(world.thinker, plan=tight)  # desk alone is trusted, and too small
    told = []
    for _ in range(50):
        world.now += TURN
        world.turns += 1
        heard = {name: Heard(world.now, world.reading(name)) for name in NAMES}
        world.state = world.thinker.heed(world.state, heard, world.running)
        world.state, decision = world.thinker.think(world.state, world.running, world.now)
        told += [decision] if decision else []
    assert [decision.action for decision in told] == ["keep"]
    assert "no split is possible: memory" in told[0].because


def test_what_cannot_be_served_in_full_is_shed_until_it_can() -> None:
    world = World()
    crowd = WISH.model_copy(update={"workload": WISH.workload.model_copy(update={"concurrency": 2})})
    world.thinker = replace(world.thinker, plan=crowd)
    world.running = solve(pose(chain(), PROFILE, crowd, INVENTORY)).split.at(1)
    assert set(world.running.hosts) == set(NAMES)  # the caches of two sequences take all there is
    world.run(20)
    world.change("heard", "attic", 0)
    world.change("alive", "attic", 0)
    world.run(20)
    ((_, made),) = world.moves
    assert made.shed == 1
    assert "only 1 at a time" in made.because
    assert world.broken == ""
    assert not violations(world.running, world.problem())
    assert world.state.shed == 1
    world.run(200)
    assert len(world.moves) == 1
    world.change("heard", "attic", 1)
    world.run(200)
    assert [decision.shed for _, decision in world.moves] == [1, None]
    assert set(world.running.hosts) == set(NAMES)
    assert world.state.shed is None
