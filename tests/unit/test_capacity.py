"""Readings over time -> what each host can do: counted, smoothed, dated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from profiles import fleet

from edgesplit.fleet import Learned, LinkProfile
from edgesplit.profiling.capacity import (
    FLOOR,
    MEMORY,
    Belief,
    Heard,
    HostState,
    State,
    Thresholds,
    Views,
    observe,
    probed,
    slowdown,
    views,
)
from edgesplit.profiling.news import news, remembered
from edgesplit.profiling.probes import Reading, StageReading
from edgesplit.split import split_from_placement

RUNNING = split_from_placement(["desk", "shelf", "shelf", "desk"]).at(1)
LIMITS = Thresholds(memory=0.9, time_per_token=0.1, patience=3)
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
    quiet = slowdown(reading(0, busy=0), reading(10, steps=2, seconds=0.04, busy=1.0), PROFILE, RUNNING)
    assert quiet == pytest.approx(2 / 1.9)
    assert slowdown(reading(0, busy=0), reading(10, busy=15.0), PROFILE, RUNNING) == pytest.approx(4.0)


def test_a_few_steps_that_take_long_say_enough() -> None:
    assert slowdown(reading(0), reading(0.5, steps=2, seconds=0.1), PROFILE, RUNNING) == pytest.approx(10.0)


def test_a_host_that_may_use_less_than_when_it_was_profiled_is_slower_by_that() -> None:
    profile = PROFILE.model_copy(update={"cores": 0.5})
    now = reading(10, busy=0.1, cores=0.1, runner_seconds=0.1, threads=1)
    assert slowdown(reading(0, cores=0.5), now, profile, RUNNING) == pytest.approx(5.0)


def test_a_runner_that_starts_is_no_load_of_others() -> None:
    starting = reading(10, busy=8.0, runner=False, runner_seconds=8.0, threads=0, stages=())
    assert slowdown(reading(0, runner=False), starting, PROFILE, RUNNING) == 1.0


def test_the_runners_own_load_is_not_held_against_the_host() -> None:
    now = reading(10, busy=20.0, runner_seconds=20.0)
    assert slowdown(reading(0), now, PROFILE, RUNNING) == 1.0


def test_no_load_slows_a_host_without_bound() -> None:
    assert slowdown(reading(0), reading(10, busy=500.0), PROFILE, RUNNING) == pytest.approx(1 / FLOOR)


def test_one_reading_alone_says_nothing() -> None:
    assert slowdown(None, reading(0), PROFILE, RUNNING) is None
    assert slowdown(reading(5), reading(5), PROFILE, RUNNING) is None


def heard(at: float, **found: Reading | str) -> dict[str, Heard]:
    return {name: Heard(at, what) for name, what in found.items()}


def told(state: State, at: float, **found: Reading | str) -> State:
    return observe(state, heard(at, **found), RUNNING, fleet(layer=2e-3), LIMITS)


# --- hosts ---


def beliefs(*values: float) -> Iterator[Belief]:
    belief = Belief(value=1.0)
    for turn, value in enumerate(values):
        belief = belief.seen(value, turn, patience=3)
        yield belief


def test_a_change_is_believed_when_it_has_lasted() -> None:
    assert [belief.level for belief in beliefs(5, 5, 5, 5, 1, 1, 1)] == [1, 1, 5, 5, 5, 5, 1]
    assert {belief.worst(0) for belief in beliefs(*[1, 1, 100] * 9)} == {1}  # spikes are not remembered either


def test_the_worst_is_remembered_for_a_while() -> None:
    length = int(MEMORY)
    for turn, belief in enumerate(beliefs(*[5.0] * 5, *[1.0] * (length + 20))):
        assert (belief.worst(turn) == 5) == (2 <= turn < length + 6)
        assert len(belief.peaks) <= 2


def test_much_that_is_remembered_is_little() -> None:
    assert max(len(belief.peaks) for belief in beliefs(*(20.0 - turn / 25 for turn in range(450)))) < 80


def test_the_pace_of_a_host_follows_its_steps() -> None:
    state, seconds = State(), 0.0
    for turn in range(8):
        seconds += 10 * 0.025  # five times slower
        state = told(state, turn, shelf=reading(turn, 10 * turn, seconds))
    assert state.host("shelf").pace.level > 4
    for turn in range(8, 11):
        seconds += 10 * 0.005
        state = told(state, turn, shelf=reading(turn, 10 * turn, seconds))
    assert state.host("shelf").pace.level < 2


def test_what_others_take_is_told_from_the_runners_own_load() -> None:
    state = told(State(), 0, shelf=reading(0))
    busy = told(state, 10, shelf=reading(10, busy=15.0, runner_seconds=12.0))
    assert busy.host("shelf").others == pytest.approx(0.3)
    assert busy.host("shelf").pace.recent[-1] == pytest.approx(2 / 1.7)


def test_memory_and_lateness_are_counted_too() -> None:
    state = State()
    for turn in range(3):
        desk = reading(turn, tokens=10 * (turn + 1), time_per_token=0.2)
        state = told(state, turn, shelf=reading(turn, memory_available=50), desk=desk)
    assert state.host("shelf").short_for == 3
    assert state.late_for == 3
    assert told(state, 4, shelf=reading(4)).late_for == 3  # nothing was heard of the entry
    idle = reading(5, tokens=30, time_per_token=0.2)
    assert told(state, 5, desk=idle).late_for == 0  # no new token: nobody waits


def test_a_silent_host_keeps_its_last_reading_and_says_why() -> None:
    state = told(State(), 7, shelf=reading(1_000))  # its clock is its own
    state = told(state, 9, shelf="connection refused")
    assert (state.host("shelf").seen, state.host("shelf").failure) == (7, "connection refused")
    assert not state.host("shelf").away(12, timeout=5)
    assert state.host("shelf").away(13, timeout=5)


def test_a_runner_that_is_there_but_does_not_answer_is_not_one_that_is_gone() -> None:
    state = told(State(), 1, shelf=reading(1))
    state = told(state, 2, shelf=reading(2, runner=False, mute=True))
    assert state.host("shelf").mute_for == 1
    assert state.host("shelf").reading == reading(1)


def test_the_ring_is_broken_when_its_entry_says_so_of_this_epoch() -> None:
    well = told(State(), 1, desk=reading(1))
    assert well.broken_at is None
    assert told(well, 2, shelf=reading(2, broken="x")).broken_at is None
    assert told(well, 2, desk=reading(2, broken="x", serving=9)).broken_at is None
    broken = told(well, 2, desk=reading(2, broken="shelf: silent"))
    assert told(broken, 3, desk=reading(3, broken="shelf: silent")).broken_at == 2
    assert told(broken, 3, desk=reading(3)).broken_at is None


# --- links ---


def test_the_rings_own_round_trips_are_believed_when_they_last_and_matter() -> None:
    state = State()
    for turn in range(6):
        state = told(state, turn, desk=reading(turn, links={"shelf": 0.040}))
    now = views(fleet(), everybody(state, 6), RUNNING, 6, 5).now
    assert now.links["desk"]["shelf"].rtt > 0.03
    assert now.links["shelf"]["desk"].rtt == now.links["desk"]["shelf"].rtt
    assert now.links["desk"]["attic"] == fleet().links["desk"]["attic"]
    noise = told(State(), 0, desk=reading(0, links={"shelf": 0.0004}))
    assert views(fleet(), everybody(noise, 1), RUNNING, 1, 5).now.links == fleet().links


def test_a_measured_link_is_believed_at_once_and_its_worst_remembered() -> None:
    bad = LinkProfile(rtt=0.1, bandwidth=1e6)
    state = probed(everybody(State(), 0), fleet(), {("desk", "attic"): bad, ("attic", "desk"): bad}, 0)
    assert views(fleet(), state, RUNNING, 1, 5).now.links["attic"]["desk"] == bad
    good = fleet().links["desk"]["attic"]
    state = probed(state, fleet(), {("desk", "attic"): good}, 2)
    seen = views(fleet(), state, RUNNING, 3, 5)
    assert seen.now.links["desk"]["attic"] == good
    assert seen.worst.links["desk"]["attic"].rtt == 0.1
    cut = views(fleet(), probed(state, fleet(), {("desk", "attic"): "timed out"}, 4), RUNNING, 4, 5).now
    assert "attic" not in cut.links["desk"]
    assert "desk" in cut.links["attic"]


# --- the fleet as it is ---


def everybody(state: State, at: float) -> State:
    hosts = {name: state.host(name).model_copy(update={"seen": at}) for name in ("desk", "shelf", "attic")}
    return state.model_copy(update={"hosts": hosts})


def test_the_views_leave_out_who_is_silent_or_set_aside() -> None:
    seen = {name: HostState(seen=100.0) for name in ("desk", "shelf", "attic")}
    state = State(hosts={**seen, "attic": HostState(seen=90.0, failure="timed out")}, aside={"shelf": 150.0})
    found = views(fleet(), state, RUNNING, 101.0, 5.0).now
    assert set(found.hosts) == {"desk"}
    assert found.problems == {"shelf": "set aside after a failure", "attic": "timed out"}
    assert set(views(fleet(), state, RUNNING, 151.0, 100.0).now.hosts) == {"desk", "shelf", "attic"}


def test_a_host_that_was_silent_must_be_heard_a_few_times_again() -> None:
    state = told(everybody(State(), 0), 1, attic="timed out")
    for turn in range(2, 6):
        state = everybody(told(state, turn, attic=reading(turn)), turn)
        assert ("attic" in views(fleet(), state, RUNNING, turn, 5).now.hosts) == (turn >= 4)


def test_others_memory_is_not_counted_on() -> None:
    attic = reading(1, memory_available=7, runner=False)
    state = everybody(told(State(), 1, attic=attic), 1)
    assert views(fleet(), state, RUNNING, 1, 5).now.hosts["attic"].memory_available == 7


def test_news_is_what_could_make_a_difference() -> None:
    base = Views(now=fleet(), worst=fleet())
    assert news(base, base) == ()
    slow = fleet().model_copy(update={"slowdown": {"shelf": 2.0}})
    assert news(base, Views(now=slow, worst=slow)) == ("shelf takes 2.0 x its profiled time (it was 1.0 x)",)
    assert news(base, Views(now=fleet().model_copy(update={"slowdown": {"shelf": 1.2}}), worst=fleet())) == ()
    gone = Views(now=fleet().without("attic"), worst=fleet().without("attic"))
    assert news(base, gone) == ()
    assert "attic can be used" in news(remembered(base, gone), base)


def test_steps_of_several_sequences_and_lessons_are_expected() -> None:
    steady = fleet(layer=2e-3)  # two layers and 1 ms; each further sequence as much as the first, but for the overhead
    three = [reading(at, 10 * at, 10 * at * 0.013) for at in (0, 1)]
    three = [one.model_copy(update={"stages": (one.stages[0].model_copy(update={"rows": 3.0}),)}) for one in three]
    assert slowdown(*three, PROFILE, RUNNING) == pytest.approx(1.0)
    taught = steady.model_copy(update={"learned": Learned(hosts={"shelf": 3.0})})
    state = observe(State(), heard(0, shelf=reading(0)), RUNNING, taught, LIMITS)
    state = observe(state, heard(1, shelf=reading(1, 10, 10 * 0.015)), RUNNING, taught, LIMITS)
    assert state.host("shelf").pace.recent[-1] == pytest.approx(1.0)
