"""The orchestrator in simulated worlds: hosts slow down, fall silent and die, links worsen, and time is a number.

EDGESPLIT_HISTORIES=2000 tries that many random histories instead of a few.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profiles import NAMES, fleet
from test_decide import PLAN, chain

from edgesplit.inventory import Inventory
from edgesplit.orchestrator.decide import Decision
from edgesplit.orchestrator.think import Thinker
from edgesplit.plan import Pin, WatchPolicy
from edgesplit.profiling.capacity import MEMORY, Heard
from edgesplit.revision.cost import evaluate, violations
from edgesplit.revision.problem import Problem, pose
from edgesplit.revision.solver import solve
from edgesplit.simulation import world as simulated
from edgesplit.simulation.world import TURN
from edgesplit.split import Split, split_from_placement

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


class World(simulated.World):
    """Three hosts; what is done to them is done at once, and so are moves."""

    def __init__(self) -> None:
        self.hidden: dict[str, float] = {}  # host -> factor on tokens, which nobody sees
        self._tokens: dict[tuple[object, ...], float] = {}
        super().__init__(
            Thinker(chain(), PROFILE, WISH, INVENTORY), simulated.Nature(), room=dict.fromkeys(NAMES, 2**33)
        )

    def memory(self, name: str) -> int:
        return PROFILE.hosts[name].memory_available

    def problem(self, among: Collection[str] = ()) -> Problem:
        """Whatever the plan and inventory have become meanwhile."""
        return pose(chain(), self.fleet(among), WISH, INVENTORY)

    def phi(self, split: Split) -> float:
        return evaluate(split, self.problem()).phi

    def token(self) -> float:
        nature = self.nature
        key = (self.running.stages, *sorted(nature.pace.items()), *sorted(nature.rtt.items()))
        if key not in self._tokens:
            self._tokens[key] = evaluate(self.running, self.problem()).time_per_token_seconds
        return math.prod([self._tokens[key], *(self.hidden.get(host, 1.0) for host in self.running.hosts)])

    def change(self, kind: str, what: str, value: float) -> None:
        nature = self.nature
        if kind == "pace":
            nature.pace[what] = value
        elif kind == "rtt":
            low, high = sorted(what.split())
            nature.rtt[low, high] = value
        elif kind == "hidden":
            self.hidden[what] = value
        elif kind == "room":
            self.room[what] = int(value)
        else:
            told = {"heard": nature.unheard, "alive": nature.stopped}[kind]
            (told.discard if value else told.add)(what)
            self.notice()

    def begin(self, decision: Decision) -> None:
        self.moves.append((self.now, decision))
        self.under_way = (self.now, decision)
        self.end_move()


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
    if not world.nature.stopped | world.nature.unheard and quiet > 60:
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
    for host, split in world.thinker.standby(world.state, world.running, world.now).ready.items():
        assert host not in split.hosts
        assert not violations(split, world.problem(set(NAMES) - {host}))
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
    [
        ("pace", "shelf", (12.0, 1.0)),
        ("pace", "shelf", (1.6, 1.4)),
        ("rtt", "desk shelf", (0.2, 1e-4)),
        ("room", "attic", (1e3, 2.0**33)),
        ("hidden", "shelf", (3.0, 1.0)),
        ("hidden", "attic", (3.0, 1.0)),
    ],
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
    world.run(10)  # until it counts as silent
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


class Roomy(World):
    """Hosts with so many times the memory."""

    def __init__(self, times: int) -> None:
        more = {"memory": times * MEMORY_EACH}
        self.inventory = Inventory.model_construct(
            hosts={name: spec.model_copy(update=more) for name, spec in INVENTORY.hosts.items()}
        )
        super().__init__()
        self.thinker = replace(self.thinker, inventory=self.inventory)
        self.run(20)

    def problem(self, among: Collection[str] = ()) -> Problem:
        return pose(chain(), self.fleet(among), WISH, self.inventory)

    def ask(self, count: int, seconds: float = 40) -> Roomy:
        self.asked = count
        self.run(seconds)
        return self


def test_a_crowd_is_served_more_at_a_time_as_far_as_memory_goes() -> None:
    world = Roomy(3).ask(3)
    assert [made.at_once for _, made in world.moves] == [4]
    assert "3 ask at a time, and 1 are served" in world.moves[0][1].because
    world.ask(200)
    assert [(made.action, made.at_once) for _, made in world.moves[1:]] == [("widen", POLICY.widen)]
    count = len(world.ask(0, MEMORY + 60).moves)
    assert count == 2  # nothing moves because fewer ask ...
    world.change("pace", next(name for name in world.running.hosts if name != "desk"), 15.0)
    world.run(60)
    assert len(world.moves) > count  # ... but the next move is for as many as the plan says again
    assert world.state.at_once is None
    tight = Roomy(1).ask(200)
    assert (tight.moves, tight.state.at_once) == ([], None)


def test_who_waits_when_a_host_is_lost_is_served_together() -> None:
    world = Roomy(40)
    world.running = split_from_placement(["desk", "desk", "shelf", "shelf", "shelf", "desk"]).at(1)
    world.run(4)
    world.change("heard", "shelf", 0)
    world.change("alive", "shelf", 0)
    world.ask(6, 6)
    ((_, made),) = world.moves
    assert made.at_once == POLICY.widen
    assert "shelf is lost" in made.because


def test_overload_that_goes_from_host_to_host_is_followed() -> None:
    """Each of them was the slow one within ten minutes."""
    world = World().run(20)
    for turn in range(6):
        (serves,) = set(world.running.hosts) - {"desk"}
        for name in ("shelf", "attic"):
            world.change("pace", name, 12.0 if name == serves else 1.0)
        world.run(60)
        assert serves not in world.running.hosts, turn
    assert len(world.moves) == 6


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
    assert made.at_once == 1
    assert "only 1 at a time" in made.because
    assert world.broken == ""
    assert not violations(world.running, world.problem())
    assert world.state.at_once == 1
    world.run(200)
    assert len(world.moves) == 1
    world.change("heard", "attic", 1)
    world.run(200)
    assert [decision.at_once for _, decision in world.moves] == [1, None]
    assert set(world.running.hosts) == set(NAMES)
    assert world.state.at_once is None
