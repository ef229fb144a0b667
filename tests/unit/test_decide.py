"""The decision: what trips, what wins, what waits. Time is a number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import fleet

from edgesplit.inventory import Inventory
from edgesplit.model.blocks import Block, Chain
from edgesplit.orchestrator.decide import Alarm, Decision, Findings, Options, Way, alarms, decide, rotation
from edgesplit.orchestrator.moving import Moving
from edgesplit.orchestrator.think import Thinker
from edgesplit.orchestrator.verdict import Mind
from edgesplit.plan import ModelPlan, ModelSource, Pin, WatchPolicy, Workload
from edgesplit.profiling.capacity import Belief, HostState, State
from edgesplit.profiling.probes import Reading
from edgesplit.split import Split, split_from_placement

POLICY = WatchPolicy(host_timeout=5.0, slowdown=2.0, patience=3, cooldown=30.0, min_gain=0.1)
LAYERS = 4
RUNNING = split_from_placement(["desk", "desk", "shelf", "shelf", "attic", "desk"]).at(7)
INVENTORY = Inventory.model_validate(
    {
        "hosts": {
            name: {"connection": "local", "work": f"/w/{name}", "trusted": name == "desk", "data": {"port": port}}
            for name, port in (("desk", 1001), ("shelf", 1002), ("attic", 1003))
        }
    }
)
PLAN = ModelPlan(
    name="p",
    model=ModelSource(source="m"),
    entry="desk",
    workload=Workload(prompt_tokens=16, new_tokens=16, max_context=64),
    pins=(Pin(blocks=("layers.0",)),),
)


def chain() -> Chain:
    def block(name: str, kind: str) -> Block:
        layer = kind == "layer"
        return Block.model_validate(
            {
                "name": name,
                "kind": kind,
                "weight_bytes": 1000,
                "kv_bytes_per_token": 10 if layer else 0,
                "state_bytes": 0,
                "flops_per_token": 100,
                "output_bytes_per_token": 64,
            }
        )

    names = [("embedding", "embedding"), *((f"layers.{k}", "layer") for k in range(LAYERS)), ("head", "head")]
    return Chain(
        model="m",
        architecture="A",
        dtype="float32",
        blocks=tuple(block(*name) for name in names),
        common_bytes=10,
        max_context=128,
        checkpoint="c",
    )


def seen(at: float = 100.0, **more: object) -> HostState:
    reading = Reading.model_validate(
        {
            "at": at,
            "cores": 1.0,
            "memory_total": 2**34,
            "memory_available": 2**33,
            "busy_seconds": 0.0,
            "deployed": True,
            "runner": True,
            "serving": 7,
            **more,
        }
    )
    return HostState(seen=at, reading=reading)


def state(**hosts: HostState) -> State:
    return State(hosts={"desk": seen(), "shelf": seen(), "attic": seen(), **hosts})


def options(now: State, running: Split = RUNNING) -> Options:
    return Thinker(chain(), fleet(), PLAN, INVENTORY)._options(Mind(**dict(now)), running, 100.0)


def decision(tripped: tuple[Alarm, ...], given: Options) -> Decision:
    return decide(tripped, given, RUNNING, POLICY)


def slow(pace: float) -> HostState:
    return seen().model_copy(update={"pace": Belief(value=pace)})


def texts(now: State, at: float = 101.0, changes: tuple[str, ...] = ()) -> list[str]:
    return [alarm.text for alarm in alarms(now, RUNNING, Findings(changes=changes), POLICY, at)]


def test_nothing_trips_on_a_healthy_fleet() -> None:
    assert texts(state()) == []


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (seen(runner=False), "shelf is lost: its runner does not answer"),
        (slow(2.5), "shelf computes 2.5 x slower than profiled (threshold 2)"),
        (
            slow(2.5).model_copy(update={"others": 0.5}),
            "shelf computes 2.5 x slower than profiled (threshold 2); others take 0.5 of its cores",
        ),
        (seen().model_copy(update={"short_for": 3}), "shelf has only 8 GiB of memory left"),
    ],
)
def test_what_trips_says_so(host: HostState, text: str) -> None:
    assert texts(state(shelf=host)) == [text]


@pytest.mark.parametrize(
    "shelf", [HostState(), HostState(failure="no route"), seen(90.0), slow(9.0).model_copy(update={"seen": 90.0})]
)
def test_a_host_that_cannot_be_heard_is_no_loss_while_the_ring_serves(shelf: HostState) -> None:
    assert texts(state(shelf=shelf)) == []
    assert texts(state(shelf=shelf, attic=slow(9.0)), changes=("attic can be used",)) == []  # and nothing else moves


def test_without_the_entry_nothing_is_decided() -> None:
    deaf = state(desk=seen(90.0), shelf=seen(runner=False)).model_copy(update={"broken_at": 95.0})
    assert texts(deaf) == []


def test_a_broken_ring_waits_a_moment_for_the_word_of_its_hosts() -> None:
    desk = seen(broken="shelf: silent for 3 s")
    broken = state(desk=desk, attic=seen(100.5), shelf=seen(99.0)).model_copy(update={"broken_at": 100.0})
    assert texts(broken, at=101.0) == []
    assert texts(broken, at=102.5) == [
        "shelf is lost: silent since the ring broke",
        "the ring is broken (shelf: silent for 3 s)",
    ]
    assert texts(broken.model_copy(update={"hosts": {**broken.hosts, "shelf": seen(100.4)}}), at=101.0) == [
        "the ring is broken (shelf: silent for 3 s)"
    ]
    frozen = {**broken.hosts, "shelf": seen(101.0).model_copy(update={"mute_for": 1})}
    assert texts(broken.model_copy(update={"hosts": frozen}), at=102.5)[0] == "shelf is lost: its runner stands still"


def test_a_host_that_was_silent_for_long_when_the_ring_broke_is_not_waited_for() -> None:
    """Its neighbour has not heard of it for 3 s, and neither has the controller."""
    desk = seen(broken="shelf: silent for 3 s")
    for last, answer in ((97.0, "shelf is lost: silent since the ring broke"), (97.4, None)):
        broken = state(desk=desk, attic=seen(100.1), shelf=seen(last)).model_copy(update={"broken_at": 100.0})
        assert next(iter(texts(broken, at=100.2)), None) == answer


def test_a_host_nobody_has_heard_of_yet_is_given_longer() -> None:
    broken = state(desk=seen(broken="x"), attic=seen(100.5), shelf=HostState()).model_copy(update={"broken_at": 100.0})
    assert texts(broken, at=104.0) == []
    refused = {**broken.hosts, "shelf": HostState(failure="refused")}
    assert (
        texts(broken.model_copy(update={"hosts": refused}), at=104.0)[0]
        == "shelf is lost: silent since the ring broke (refused)"
    )


def test_an_entry_that_stands_still_or_serves_nothing_trips() -> None:
    assert texts(state(desk=seen().model_copy(update={"mute_for": 3}))) == ["desk is lost: its runner stands still"]
    nothing = state(desk=seen(serving=None)).model_copy(update={"broken_at": 100.0})
    ring = {name: seen(100.5) for name in ("shelf", "attic")}
    assert texts(nothing.model_copy(update={"hosts": {**nothing.hosts, **ring}})) == ["desk serves no epoch"]


def test_what_is_not_urgent_rests_after_a_move() -> None:
    resting = state(shelf=slow(9.0)).model_copy(update={"last_move": 80.0})
    assert texts(resting) == []
    assert len(texts(resting.model_copy(update={"last_move": 60.0}))) == 1
    dead = state(shelf=seen(runner=False)).model_copy(update={"last_move": 100.0})
    assert texts(dead) == ["shelf is lost: its runner does not answer"]


def test_what_was_answered_is_not_asked_again_until_something_is_different() -> None:
    answered = state(shelf=slow(9.0)).model_copy(update={"answered": ("slow shelf",), "answered_at": 95.0})
    assert texts(answered) == []
    assert len(texts(answered.model_copy(update={"answered_at": 60.0}))) == 1  # trouble that lasts
    assert texts(answered, changes=("attic can be used",))[-1] == "attic can be used"
    assert len(texts(answered.model_copy(update={"late_for": 3}))) == 2


def test_hosts_that_hold_nothing_of_ours_raise_no_alarm() -> None:
    running = split_from_placement(["desk", "desk", "shelf", "shelf", "shelf", "desk"]).at(7)
    assert alarms(state(attic=HostState()), running, Findings(), POLICY, 101.0) == ()


LOST = (Alarm(kind="lost", host="shelf", text="shelf is lost"),)
SLOW = (Alarm(kind="slow", host="shelf", text="shelf is slow"),)


@pytest.mark.parametrize(
    ("age", "running", "when"), [(86399.0, 0, False), (86400.0, 0, True), (86400.0, 1, False), (7 * 86400.0, 1, True)]
)
def test_old_keys_are_rotated_when_nobody_asks_or_at_last(age: float, running: int, *, when: bool) -> None:
    found = rotation(state(desk=seen(age=age, running=running)), RUNNING, POLICY, 101.0)
    assert (found is not None) == when
    if found is not None:
        assert (found.action, found.target) == ("rotate", RUNNING)
        assert "watch.rotate 24 h" in found.because


def test_keys_are_not_rotated_where_it_could_harm_or_is_not_wished() -> None:
    old = state(desk=seen(age=1e6))
    assert rotation(old, RUNNING, POLICY, 101.0)
    assert not rotation(old, RUNNING, POLICY.model_copy(update={"rotate": 0.0}), 101.0)
    assert not rotation(old, RUNNING, POLICY, 200.0)  # nobody has been heard of lately
    assert not rotation(old.model_copy(update={"last_move": 50.0}), RUNNING, POLICY, 101.0)
    assert not rotation(old.model_copy(update={"broken_at": 99.0}), RUNNING, POLICY, 101.0)
    assert not rotation(state(shelf=HostState()), RUNNING, POLICY, 101.0)


def test_a_lost_host_is_left() -> None:
    made = decision(LOST, options(state(shelf=HostState())))
    assert made.action in ("redistribute", "re-split")
    assert made.target is not None
    assert "shelf" not in made.target.hosts
    assert made.gain is None


def test_a_slow_host_gives_way() -> None:
    made = decision(SLOW, options(state(shelf=slow(6.0))))
    assert made.target is not None
    assert made.gain is not None
    assert made.gain >= POLICY.min_gain


def best_of(given: Options) -> Way:
    return min(given.ways, key=lambda way: way.phi)


def test_a_small_gain_is_not_worth_a_move() -> None:
    given = options(state())
    made = decision(SLOW, given.model_copy(update={"running": best_of(given).phi * 1.05}))
    assert made.action == "keep"
    assert "at least 10%" in made.because


def dear(way: Way, **moving: object) -> Way:
    return way.model_copy(update={"moving": Moving.model_validate(moving)})


@pytest.mark.parametrize(
    ("moving", "why"),
    [
        ({"send": 300.0, "load": 10.0, "replay": 1.0}, "wins only 50%, less"),
        ({"short": "attic would have to take 2 GiB more"}, "no room to move: attic would have to take 2 GiB more"),
    ],
)
def test_a_move_that_costs_more_than_it_brings_is_not_made(moving: dict[str, object], why: str) -> None:
    given = options(state(shelf=slow(6.0)))
    ways = tuple(dear(way, **moving) for way in given.ways)
    phi = 2 * min(way.phi for way in ways)
    made = decision(SLOW, Options(running=phi, ways=ways))
    assert made.action == "keep"
    assert why in made.because
    assert made.moving == ways[0].moving


def test_what_failed_is_not_tried_again_but_something_else_is() -> None:
    given = options(state(shelf=slow(6.0)))
    failed = tuple(way.model_copy(update={"failed": True}) for way in given.ways)
    made = decision(SLOW, given.model_copy(update={"ways": failed}))
    assert (made.action, made.target) == ("keep", None)
    assert "did not bring what was forecast" in made.because
    assert decision(LOST, given.model_copy(update={"ways": failed})).target is not None  # nothing serves: no choice


def test_where_nothing_serves_the_split_that_serves_first_is_taken() -> None:
    given = options(state(shelf=HostState()))
    good = best_of(given)
    ready = dear(good, load=1.0).model_copy(update={"phi": 3 * good.phi, "action": "redistribute"})
    for send, action in ((0.5, good.action), (9.0, "redistribute")):
        ways = (dear(good, send=send, load=1.0), ready)
        assert decision(LOST, Options(running=None, ways=ways)).action == action


def test_what_the_rules_forbid_is_left_at_once() -> None:
    found = Findings(forbidden=("layers.1 may not be on shelf",))
    resting = state(attic=HostState()).model_copy(update={"last_move": 100.0})
    (alarm,) = alarms(resting, RUNNING, found, POLICY, 101.0)
    assert alarm.at_once
    assert not alarm.urgent


def test_the_best_split_is_kept() -> None:
    given = options(state())
    made = decide(SLOW, given, best_of(given).split, POLICY)
    assert made.action == "keep"
    assert "still the best" in made.because


def test_nothing_possible_keeps_and_says_why() -> None:
    none = Options(running=None, ways=(), impossible="memory is short")
    made = decision(LOST, none)
    assert (made.action, made.because) == ("keep", "shelf is lost; and no split is possible: memory is short")


@settings(deadline=None)  # how long a plan takes is no matter here
@given(
    lost=st.sets(st.sampled_from(["shelf", "attic"])),
    paces=st.dictionaries(st.sampled_from(["desk", "shelf", "attic"]), st.floats(1, 50)),
)
def test_no_re_plan_ever_moves_a_pinned_block_to_an_untrusted_host(lost: set[str], paces: dict[str, float]) -> None:
    hosts = {name: seen().model_copy(update={"pace": Belief(value=paces.get(name, 1.0))}) for name in INVENTORY.hosts}
    now = State(hosts={**hosts, **dict.fromkeys(lost, HostState())})
    made = decision(LOST, options(now))
    assert made.target is not None
    placement = made.target.placement()
    assert placement[0] == placement[1] == placement[-1] == "desk"
    assert not lost & set(placement)
