"""Readings over time -> what each host can do: counted, smoothed, dated."""

from __future__ import annotations

import pytest
from profiles import fleet

from edgesplit.fleet import Learned
from edgesplit.profiling.capacity import FLOOR, HostState, State, Thresholds, current, observe, slowdown
from edgesplit.profiling.probes import Reading, StageReading
from edgesplit.split import split_from_placement

RUNNING = split_from_placement(["desk", "shelf", "shelf", "desk"]).at(1)
LIMITS = Thresholds(slowdown=2.0, memory=0.9, time_per_token=0.1)
PROFILE = fleet(layer=2e-3).hosts["shelf"]  # a stage of two layers takes 1 ms + 2 x 2 ms


def reading(at: float, steps: int = 0, seconds: float = 0.0, busy: float = 0.0, **more: object) -> Reading:
    stage = StageReading(epoch=1, stage=1, blocks=(1, 2), steps=steps, decode_seconds=seconds)
    values = {
        "at": at,
        "cores": 2.0,
        "memory_total": 1000,
        "memory_available": 500,
        "busy_seconds": busy,
        "deployed": True,
        "runner": True,
        "threads": 2,
        "serving": 1,
        "stages": (stage,),
    }
    return Reading.model_validate({**values, **more})


def test_the_stages_own_steps_tell_the_slowdown() -> None:
    assert slowdown(reading(0, 10, 0.05), reading(2, 20, 0.05 + 10 * 0.015), PROFILE, RUNNING) == pytest.approx(3.0)


def test_totals_before_the_first_reading_do_not_count_twice() -> None:
    later = reading(2, 20, 10 * 0.005)
    assert slowdown(reading(0, 10, 0.0), later, PROFILE, RUNNING) == pytest.approx(1.0)


def test_a_few_steps_say_nothing_but_the_load_does() -> None:
    quiet = slowdown(reading(0, busy=0), reading(10, steps=2, seconds=9.0, busy=1.0), PROFILE, RUNNING)
    assert quiet == pytest.approx(2 / 1.9)
    assert slowdown(reading(0, busy=0), reading(10, busy=15.0), PROFILE, RUNNING) == pytest.approx(4.0)


def test_the_runners_own_load_is_not_held_against_the_host() -> None:
    now = reading(10, busy=20.0, runner_seconds=20.0)
    assert slowdown(reading(0), now, PROFILE, RUNNING) == 1.0


def test_no_load_slows_a_host_without_bound() -> None:
    assert slowdown(reading(0), reading(10, busy=500.0), PROFILE, RUNNING) == pytest.approx(1 / FLOOR)


def test_one_reading_alone_says_nothing() -> None:
    assert slowdown(None, reading(0), PROFILE, RUNNING) is None
    assert slowdown(reading(5), reading(5), PROFILE, RUNNING) is None


def test_thresholds_are_counted_in_consecutive_readings() -> None:
    state, profiled = State(), fleet(layer=2e-3)
    seconds = 0.0
    for turn in range(6):
        seconds += 10 * 0.025  # five times slower
        state = observe(state, {"shelf": reading(turn, 10 * turn, seconds)}, RUNNING, profiled, LIMITS)
    assert state.host("shelf").slow_for == 5  # the first reading has nothing before it
    assert state.host("shelf").slowdown > 4
    for turn in range(6, 9):
        seconds += 10 * 0.005
        state = observe(state, {"shelf": reading(turn, 10 * turn, seconds)}, RUNNING, profiled, LIMITS)
    assert state.host("shelf").slow_for == 0


def test_memory_and_lateness_are_counted_too() -> None:
    state = State()
    for turn in range(3):
        readings = {
            "shelf": reading(turn, memory_available=50),
            "desk": reading(turn, tokens=10 * (turn + 1), time_per_token=0.2),
        }
        state = observe(state, readings, RUNNING, fleet(), LIMITS)
    assert state.host("shelf").short_for == 3
    assert state.late_for == 3
    idle = {"desk": reading(4, tokens=30, time_per_token=0.2)}
    assert observe(state, idle, RUNNING, fleet(), LIMITS).late_for == 0  # no new token: nobody waits


def test_a_silent_host_keeps_its_last_reading_and_says_why() -> None:
    state = observe(State(), {"shelf": reading(7)}, RUNNING, fleet(), LIMITS)
    state = observe(state, {"shelf": "connection refused"}, RUNNING, fleet(), LIMITS)
    assert state.host("shelf").seen == 7
    assert state.host("shelf").failure == "connection refused"


def test_the_current_fleet_leaves_out_who_is_silent_or_set_aside() -> None:
    seen = {name: HostState(seen=100.0, slowdown=1.5) for name in ("desk", "shelf", "attic")}
    state = State(hosts={**seen, "attic": HostState(seen=90.0, failure="timed out")}, aside={"shelf": 150.0})
    now = current(fleet(), state, now=101.0, timeout=5.0)
    assert set(now.hosts) == {"desk"}
    assert now.slowdown["desk"] == 1.5
    assert now.problems == {"shelf": "set aside after a failure", "attic": "timed out"}
    assert set(current(fleet(), state, now=151.0, timeout=100.0).hosts) == {"desk", "shelf", "attic"}


def test_steps_of_several_sequences_and_lessons_are_expected() -> None:
    steady = fleet(layer=2e-3)  # two layers and 1 ms; each further sequence as much as the first, but for the overhead
    three = [reading(at, 10 * at, 10 * at * 0.013) for at in (0, 1)]
    three = [one.model_copy(update={"stages": (one.stages[0].model_copy(update={"rows": 3.0}),)}) for one in three]
    assert slowdown(*three, PROFILE, RUNNING) == pytest.approx(1.0)
    taught = steady.model_copy(update={"learned": Learned(hosts={"shelf": 3.0})})
    state = observe(State(), {"shelf": reading(0)}, RUNNING, taught, LIMITS)
    state = observe(state, {"shelf": reading(1, 10, 10 * 0.015)}, RUNNING, taught, LIMITS)
    assert state.host("shelf").slowdown == pytest.approx(1.0)
