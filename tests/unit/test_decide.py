"""The decision: what trips, what wins, what waits. Time is a number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import fleet

from edgesplit.inventory import Inventory
from edgesplit.model.blocks import Block, Chain
from edgesplit.orchestrator.decide import Alarm, Decision, Options, alarms, decide
from edgesplit.plan import ModelPlan, ModelSource, Pin, WatchPolicy, Workload
from edgesplit.profiling.capacity import HostState, State, current
from edgesplit.profiling.probes import Reading
from edgesplit.revision.problem import Problem, pose
from edgesplit.revision.revise import redistribution, running_phi
from edgesplit.revision.solver import solve
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
            "memory_total": 100,
            "memory_available": 50,
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


def problem(now: State) -> Problem:
    return pose(chain(), current(fleet(), now, 100.0, 5.0), PLAN, INVENTORY)


def options(now: State, running: Split = RUNNING) -> Options:
    posed = problem(now)
    return Options(
        running=running_phi(running, posed), redistribution=redistribution(running, posed), resplit=solve(posed)
    )


def decision(tripped: tuple[Alarm, ...], now: State, given: Options, at: float = 100.0) -> Decision:
    return decide(tripped, given, RUNNING, now, POLICY, at)


def test_nothing_trips_on_a_healthy_fleet() -> None:
    assert alarms(state(), RUNNING, POLICY, 101.0) == ()


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (HostState(), "shelf is lost: never answered (no answer)"),
        (
            seen(90.0).model_copy(update={"failure": "timed out"}),
            "shelf is lost: silent for 11 s (timed out)",
        ),
        (seen(runner=False), "shelf is lost: its runner does not answer"),
        (seen(broken="attic: silent for 3 s"), "the ring is broken (attic: silent for 3 s)"),
        (
            seen().model_copy(update={"slow_for": 3, "slowdown": 2.5}),
            "shelf computes 2.5 x slower than profiled (threshold 2)",
        ),
        (seen().model_copy(update={"short_for": 3}), "shelf has only 50 B of memory left"),
    ],
)
def test_what_trips_says_so(host: HostState, text: str) -> None:
    assert [alarm.text for alarm in alarms(state(shelf=host), RUNNING, POLICY, 101.0)] == [text]


def test_a_host_that_answered_last_time_is_not_silent_however_long_the_round_took() -> None:
    assert alarms(state(shelf=seen(90.0)), RUNNING, POLICY, 101.0) == ()


def test_an_entry_that_serves_nothing_trips() -> None:
    assert [alarm.text for alarm in alarms(state(desk=seen(serving=None)), RUNNING, POLICY, 101.0)] == [
        "desk serves no epoch"
    ]


def test_one_slow_reading_is_forgiven() -> None:
    shelf = seen().model_copy(update={"slow_for": 2, "slowdown": 9.0})
    assert alarms(state(shelf=shelf), RUNNING, POLICY, 101.0) == ()


def test_hosts_that_hold_nothing_of_ours_raise_no_alarm() -> None:
    running = split_from_placement(["desk", "desk", "shelf", "shelf", "shelf", "desk"]).at(7)
    assert alarms(state(attic=HostState()), running, POLICY, 101.0) == ()


LOST = (Alarm(kind="lost", host="shelf", text="shelf is lost"),)
SLOW = (Alarm(kind="slow", host="shelf", text="shelf is slow"),)


def test_a_lost_host_is_left_at_once_even_in_the_cooldown() -> None:
    now = state(shelf=HostState()).model_copy(update={"last_move": 99.0})
    made = decision(LOST, now, options(now))
    assert made.action in ("redistribute", "re-split")
    assert made.target is not None
    assert "shelf" not in made.target.hosts
    assert made.gain is None


def test_a_slow_host_waits_for_the_cooldown_and_then_gives_way() -> None:
    now = state(shelf=seen().model_copy(update={"slowdown": 6.0}))
    resting = decision(SLOW, now.model_copy(update={"last_move": 80.0}), options(now))
    assert resting.action == "keep"
    assert "10 s to rest" in resting.because
    rested = decision(SLOW, now.model_copy(update={"last_move": 60.0}), options(now))
    assert rested.target is not None
    assert rested.gain is not None
    assert rested.gain >= POLICY.min_gain


def test_a_small_gain_is_not_worth_a_move() -> None:
    now = state()
    best = options(now)
    assert best.resplit is not None
    made = decision(SLOW, now, best.model_copy(update={"running": best.resplit.costs.phi * 1.05}))
    assert made.action == "keep"
    assert "at least 10%" in made.because


def test_the_best_split_is_kept() -> None:
    now = state()
    best = options(now)
    assert best.resplit is not None
    made = decide(SLOW, best, best.resplit.split, now, POLICY, 100.0)
    assert made.action == "keep"
    assert "still the best" in made.because


def test_nothing_possible_keeps_and_says_why() -> None:
    none = Options(running=None, redistribution=None, resplit=None, impossible="memory is short")
    made = decision(LOST, state(), none)
    assert (made.action, made.because) == ("keep", "shelf is lost; and no split is possible: memory is short")


def test_redistribution_is_preferred_when_it_is_as_good() -> None:
    now = state(shelf=HostState())
    both = options(now)
    assert both.redistribution is not None
    same = both.model_copy(update={"resplit": both.redistribution})
    assert decision(LOST, now, same).action == "redistribute"


@settings(deadline=None)  # how long a plan takes is no matter here
@given(
    lost=st.sets(st.sampled_from(["shelf", "attic"])),
    slow=st.dictionaries(st.sampled_from(["desk", "shelf", "attic"]), st.floats(1, 50)),
)
def test_no_re_plan_ever_moves_a_pinned_block_to_an_untrusted_host(lost: set[str], slow: dict[str, float]) -> None:
    hosts = {name: seen().model_copy(update={"slowdown": slow.get(name, 1.0)}) for name in INVENTORY.hosts}
    now = State(hosts={**hosts, **dict.fromkeys(lost, HostState())})
    made = decision(LOST, now, options(now))
    assert made.target is not None
    placement = made.target.placement()
    assert placement[0] == placement[1] == placement[-1] == "desk"
    assert not lost & set(placement)
