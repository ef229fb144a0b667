"""Probes: commands as strings, parsers on answers as hosts gave them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesplit.profiling.collect import rounds
from edgesplit.profiling.probes import NoProfile, parse_call, parse_measure, parse_reading

MEASURED = {
    "at": 1795458022.6,
    "cores": 4.0,
    "load": 0.3,
    "busy_s": 12.5,
    "memory_total": 8589934592,
    "memory_available": 6442450944,
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "missing": [],
    "device": "cpu",
    "runtime_bytes": 345907200,
    "times": {
        "decode_layer": 0.001,
        "decode_overhead": 0.0004,
        "prefill_layer": 0.008,
        "prefill_overhead": 0.0007,
        "head": 0.0,
        "chunk_tokens": 32,
        "context": 64,
    },
}


def test_a_measurement_is_read() -> None:
    profile = parse_measure(json.dumps(MEASURED))
    assert profile.cores == 4.0
    assert profile.times.prefill_layer == 0.008


def test_what_a_login_shell_prints_before_it_is_ignored() -> None:
    assert parse_measure("Welcome to shelf!\n" + json.dumps(MEASURED) + "\n").cores == 4.0


def test_missing_packages_are_named() -> None:
    with pytest.raises(NoProfile, match=r"its Python 3\.11\.7 lacks torch, uvicorn"):
        parse_measure(json.dumps({**MEASURED, "missing": ["torch", "uvicorn"], "times": None}))


def test_links_have_two_directions() -> None:
    there, back = parse_call('{"rtt": 0.002, "up": 12500000.0, "down": 6250000.0}')
    assert (there.rtt, there.bandwidth, back.bandwidth) == (0.002, 12.5e6, 6.25e6)
    with pytest.raises(NoProfile, match="nobody listened"):
        parse_call('{"error": "nobody listened"}')


READING = {
    "at": 5.0,
    "cores": 2.0,
    "memory_total": 100,
    "memory_available": 60,
    "busy_s": 3.0,
    "manifest": True,
    "runner": {
        "serving": 3,
        "cpu_s": 1.5,
        "threads": 2,
        "entry": {"tokens": 40, "time_per_token_s": 0.02},
        "epochs": {
            "3": {"reason": "", "stages": {"1": {"first": 2, "last": 4, "steps": 9, "decode_total_s": 0.4}}},
            "2": {"reason": "old", "stages": {}},
        },
    },
}


def test_a_reading_tells_of_the_epoch_that_serves() -> None:
    reading = parse_reading(json.dumps(READING))
    assert (reading.runner, reading.serving, reading.tokens, reading.broken) == (True, 3, 40, "")
    assert (reading.stages[0].stage, reading.stages[0].blocks, reading.stages[0].steps) == (1, (2, 4), 9)


def test_a_host_without_a_runner_gives_a_reading_too() -> None:
    reading = parse_reading(json.dumps({**READING, "runner": None, "absent": "no such file"}))
    assert not reading.runner
    assert reading.serving is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_nonsense_is_refused_in_one_way(answer: object) -> None:
    for parse in (parse_measure, parse_call, parse_reading):
        with pytest.raises(NoProfile):
            parse(json.dumps(answer))


@given(st.integers(2, 11))
def test_a_tournament_meets_every_pair_once_and_no_host_twice_a_round(count: int) -> None:
    names = [f"h{number}" for number in range(count)]
    schedule = rounds(names)
    met = [frozenset(pair) for pairs in schedule for pair in pairs]
    assert len(met) == len(set(met)) == count * (count - 1) // 2
    for pairs in schedule:
        players = [name for pair in pairs for name in pair]
        assert len(players) == len(set(players))
