"""Probes: commands as strings, parsers on answers as hosts gave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesplit.fleet import LinkProfile
from edgesplit.profiling.collect import rounds
from edgesplit.profiling.probes import NoProfile, parse_measure, parse_pair, parse_reading

RECORDED = Path(__file__).parent / "recorded"  # answers of real hosts, as they came
SIZES = (4000, 100_000)


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def changed(name: str, **changes: Any) -> str:
    return json.dumps({**json.loads(recorded(name)), **changes})


def test_a_measurement_is_read() -> None:
    profile = parse_measure(recorded("measure-cpu"))
    assert (profile.device, profile.cores, profile.threads, profile.share) == ("cpu", 2.0, 1, 1.0)
    assert 2**30 < profile.memory_available < profile.memory_total
    assert profile.times.chunk_tokens == 64
    assert 0 < profile.times.decode_layer < profile.times.step(415) < profile.times.step(415, rows=3)
    assert profile.times.piece(16) < profile.times.piece(64) < profile.times.piece(64, 320)
    assert min(profile.bandwidth, profile.flops, profile.disk_write) > 1e6


def test_a_quota_gives_a_share_of_a_core() -> None:
    profile = parse_measure(changed("measure-cpu", cores=0.5, period=0.02))
    assert (profile.share, profile.grace) == (0.5, 0.01)
    assert parse_measure(changed("measure-cpu", cores=3.5, period=0.1, threads=3)).share == 1.0


def test_an_accelerators_memory_takes_the_hosts_place() -> None:
    card = {"device": "NVIDIA H100 80GB HBM3 (CUDA)", "device_total": 80 * 2**30, "device_available": 79 * 2**30}
    profile = parse_measure(changed("measure-cpu", **card))
    assert (profile.memory_total, profile.memory_available) == (80 * 2**30, 79 * 2**30)


def test_what_a_login_shell_prints_before_it_is_ignored() -> None:
    assert parse_measure("Welcome to shelf!\n" + recorded("measure-cpu") + "\n").cores == 2.0


def test_missing_packages_are_named() -> None:
    with pytest.raises(NoProfile, match=r"its Python 3\.11\.7 lacks torch, uvicorn"):
        parse_measure(changed("measure-cpu", missing=["torch", "uvicorn"], times=None))


def test_links_have_two_directions() -> None:
    link = {"rtt": 0.002, "up": 12.5e6, "down": 6.25e6, "echo": 0.00416, "both": True, "there": 0.0118, "back": 0.0246}
    link["pair"] = ["a", "b"]
    ways = parse_pair(json.dumps(link), SIZES)
    there, back = ways["a", "b"], ways["b", "a"]
    assert isinstance(there, LinkProfile)
    assert isinstance(back, LinkProfile)
    assert (there.rtt, there.bandwidth, back.bandwidth) == (0.002, 12.5e6, 6.25e6)
    # 4000 bytes take 0.32 and 0.64 ms: of the echo, 1.2 ms are neither way nor wire
    assert there.overhead == back.overhead == pytest.approx(0.0006)
    # 100 kB take 8 ms there, and 16 ms back
    assert (there.start, back.start) == (0.0, pytest.approx(0.0246 - 0.002 - 0.0012 - 0.016 - 0.00032))


def test_a_link_that_is_not_there_says_why() -> None:
    assert parse_pair('{"pair": ["a", "b"], "error": "it broke"}', SIZES) == {("a", "b"): "it broke"}
    assert parse_pair('{"me": "a", "missed": {"b": "timed out"}}', SIZES) == {("a", "b"): "timed out"}


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
            "3": {
                "reason": "",
                "age_s": 90.0,
                "stages": {"1": {"first": 2, "last": 4, "steps": 9, "decode_total_s": 0.4}},
            },
            "2": {"reason": "old", "stages": {}},
        },
    },
}


def test_a_reading_tells_of_the_epoch_that_serves() -> None:
    reading = parse_reading(json.dumps(READING))
    assert (reading.runner, reading.serving, reading.tokens, reading.broken) == (True, 3, 40, "")
    assert reading.age == 90
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
    for parse in (parse_measure, lambda text: parse_pair(text, SIZES), parse_reading):
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
