"""What was predicted of a ring and what it measured: compared, and learned from."""

from __future__ import annotations

from typing import Any

import pytest
from test_cost import SPLIT, two

from edgesplit.fleet import HOP_SECONDS, Learned
from edgesplit.revision.cost import evaluate
from edgesplit.revision.reality import Reality, compare, learn, seen

HOP = 0.003 + HOP_SECONDS  # 2 ms of way, 1 ms of bytes


def states(a: float = 0.021, b: float = 0.004, last: float = 0.006, **turn: float) -> dict[str, dict[str, Any]]:
    """What the runners of SPLIT report: by default what was predicted, with a round trip as profiled."""

    def epoch(links: dict[str, float], **stages: float) -> dict[str, Any]:
        clocks = {number[1:]: {"steps": 64, "decode_s": time, "rows": 1} for number, time in stages.items()}
        return {"epochs": {"3": {"links": links, "stages": clocks}}}

    told = {"wire_s": 2 * HOP, "whole_s": a + b + last + 2 * HOP, **turn}
    entry = {"time_per_token_s": told.pop("token", told["whole_s"]), "turn": told}
    return {"a": {**epoch({"b": 0.004}, s0=a, s2=last), "entry": entry}, "b": epoch({"a": 0.004}, s1=b)}


def reality(learned: Learned | None = None, **changes: float) -> Reality:
    running = SPLIT.at(3)
    return compare(running, two(learned=learned), seen(running, states(**changes)))


def test_what_came_as_predicted_has_no_error_and_teaches_nothing() -> None:
    found = reality()
    assert [pair.name for pair in (*found.stages, *found.links)] == ["a", "b", "a", "a -> b", "b -> a"]
    assert [pair.error for pair in (*found.stages, *found.links, found.token)] == pytest.approx([0.0] * 6)
    assert learn(Learned(), found).hosts == pytest.approx({"a": 1.0, "b": 1.0})


def test_errors_are_shares_of_what_was_measured() -> None:
    assert reality(b=0.008).stages[1].error == pytest.approx(-0.5)


def test_links_share_what_neither_stages_nor_ways_account_for() -> None:
    links = reality(wire_s=2 * HOP + 0.002).links
    assert [link.measured for link in links] == pytest.approx([HOP + 0.001] * 2)
    slower = states(wire_s=2 * HOP + 0.002)
    slower["a"]["epochs"]["3"]["links"]["b"] = 0.008  # its kernel sees 2 ms of way more
    there, back = compare(SPLIT.at(3), two(), seen(SPLIT.at(3), slower)).links
    assert (there.measured, back.measured) == (pytest.approx(HOP + 0.002), pytest.approx(HOP))


def test_lessons_bring_the_next_prediction_near() -> None:
    learned, truth = Learned(), {"a": 0.042, "last": 0.012, "b": 0.002, "wire_s": 2 * HOP + 0.004, "token": 0.070}
    truth["whole_s"] = 0.056 + 2 * HOP + 0.004
    for _ in range(8):
        learned = learn(learned, reality(learned, **truth))
    assert learned.hosts["b"] == pytest.approx(0.5, rel=0.01)
    token = evaluate(SPLIT, two(learned=learned)).time_per_token_seconds
    assert token == pytest.approx(0.070, rel=0.02)


def test_a_few_steps_teach_nothing_and_no_lesson_is_without_bound() -> None:
    few = states(b=9.0)
    few["b"]["epochs"]["3"]["stages"]["1"]["steps"] = 3
    assert learn(Learned(), compare(SPLIT.at(3), two(), seen(SPLIT.at(3), few))) == Learned()
    assert learn(Learned(), reality(b=9.0)).hosts["b"] == 4.0


def test_a_ring_nobody_asked_yet_compares_to_nothing() -> None:
    found = compare(SPLIT.at(3), two(), seen(SPLIT.at(3), {"a": None}))
    assert [pair.measured for pair in (*found.stages, *found.links, found.token)] == [None] * 6
    assert learn(Learned(), found) == Learned()
