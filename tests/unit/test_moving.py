"""What a move costs, and whether it brought what was forecast. Nothing here has a clock or a host."""

from __future__ import annotations

import pytest
from profiles import NAMES, fleet
from test_decide import INVENTORY, PLAN, chain

from edgesplit.orchestrator.likely import standby
from edgesplit.orchestrator.moving import BEGIN, CHANGE, DISTURBED, OPEN, Moving, Stock, blocks_of, moving
from edgesplit.orchestrator.verdict import FLUSHED, Failure, Forecast, Mind, Trial, Verdict, barred, judge, route
from edgesplit.profiling.capacity import Served, Views
from edgesplit.revision.cost import evaluate
from edgesplit.revision.problem import Problem, pose
from edgesplit.split import Split, split_from_placement

HERE = split_from_placement(["desk", "desk", "shelf", "shelf", "attic", "desk"]).at(7)
THERE = split_from_placement(["desk", "desk", "shelf", "attic", "attic", "desk"])
PROBLEM = pose(chain(), fleet(), PLAN, INVENTORY)
LAYER = PROBLEM.blocks[3].weight_bytes
RATES = dict.fromkeys(NAMES, 500.0)
RING = frozenset(NAMES)


def cost(target: Split, shards: dict[str, frozenset[int]] | None = None, warm: frozenset[str] = RING) -> Moving:
    stock = Stock(shards=shards or {}, warm=warm, room={}, rates=RATES)
    return moving(HERE, target, evaluate(target, PROBLEM), PROBLEM, stock)


def test_only_blocks_that_come_anew_are_sent_and_loaded() -> None:
    found = cost(THERE)
    assert found.sizes == {"attic": LAYER}
    assert found.send == LAYER / RATES["attic"]
    assert found.load == pytest.approx(CHANGE + LAYER / OPEN)


def test_what_lies_on_a_disk_already_is_loaded_only() -> None:
    found = cost(THERE, {"attic": frozenset([3])})
    assert (found.sizes, found.send) == ({}, 0.0)
    assert found.load == pytest.approx(CHANGE + LAYER / OPEN)


def test_a_host_without_a_runner_has_to_start_one() -> None:
    assert cost(THERE, warm=RING - {"attic"}).load == pytest.approx(CHANGE + BEGIN + LAYER / OPEN)


def test_while_both_are_loaded_caches_are_there_twice_and_shared_weights_once() -> None:
    share = (16 + 8) / 64  # of the longest context, what sequences have on the mean
    caches = {host: sum(PROBLEM.caches[block] for block in blocks_of(THERE, host)) for host in NAMES}
    extra = cost(THERE).extra
    assert extra["desk"] == round(share * caches["desk"])  # its stages are the same
    assert extra["attic"] == round(share * caches["attic"]) + LAYER + PROBLEM.common + PROBLEM.workspace


def test_no_room_for_both_is_told() -> None:
    stock = Stock(shards={}, warm=RING, room={"attic": 100, "shelf": 2**30, "desk": 2**30}, rates=RATES)
    found = moving(HERE, THERE, evaluate(THERE, PROBLEM), PROBLEM, stock)
    assert found.short.startswith("attic would have to take ")


def test_what_is_left_of_a_gain_over_the_horizon() -> None:
    dear = Moving(send=40.0, load=10.0, replay=10.0)
    assert dear.net(0.5, 600.0) == pytest.approx(0.5 * (1 - 60 / 600) - (DISTURBED * 50 + 10) / 600)
    assert Moving().net(0.5, 600.0) == 0.5
    assert dear.net(0.5, 60.0) < 0  # over before it pays


def test_what_sequences_have_is_read_by_the_busiest_host() -> None:
    costs = evaluate(THERE, PROBLEM)
    pieces = (16 + 8) / PROBLEM.chunk_tokens
    assert cost(THERE).replay == pytest.approx(pieces * max(host.chunk_seconds for host in costs.hosts))


# --- verdicts ---

FORECAST = Forecast(measured=0.1, model=0.08, target=0.04, load=2)  # it halves the time of a token


def tried(seconds: float, *, tokens: int = 1000 + FLUSHED, load: float = 2, count: int = 5) -> Mind:
    served = tuple(Served(seconds=seconds, load=load, tokens=tokens + each) for each in range(count))
    return Mind(served=served, trial=Trial(since=0, tokens=1000, origin=HERE, forecast=FORECAST))


@pytest.mark.parametrize("seconds", [0.04, 0.05, 0.074])
def test_half_of_the_forecast_gain_is_enough(seconds: float) -> None:
    found = judge(tried(seconds), 5, lambda split: 0.04 if split.epoch == 8 else 0.08, THERE.at(8))
    assert found is not None
    assert not found.failed
    assert "50 ms were forecast; epoch 7 would give 100 ms" in found.text


def test_less_than_that_is_told_with_its_numbers() -> None:
    said = judge(tried(0.09), 5, lambda split: 0.04 if split.epoch == 8 else 0.08, THERE.at(8))
    assert said is not None
    assert said.failed
    assert said.text == "the move to epoch 8 brought 90 ms per token, not 50 ms as forecast; epoch 7 would give 100 ms"


def test_no_more_is_promised_than_the_model_says_of_the_target() -> None:
    """What was measured before the move lagged: its host had just become slow."""
    lagging = Forecast(measured=0.0235, model=0.116, target=0.026, load=FORECAST.load)
    mind = tried(0.025).model_copy(update={"trial": Trial(since=0, tokens=1000, origin=HERE, forecast=lagging)})
    found = judge(mind, 5, lambda split: 0.026 if split.epoch == 8 else 0.116, THERE.at(8))
    assert found is not None
    assert not found.failed


def test_there_is_no_way_back_to_what_would_be_no_better() -> None:
    """By what it gave then, nor by the model: a host became slow a moment before it was left, say."""
    lagging = Forecast(measured=0.0235, model=0.116, target=0.02, load=FORECAST.load)
    for forecast, seconds, old, back in ((FORECAST, 0.12, 0.08, True), (FORECAST, 0.09, 0.08, False),
                                         (lagging, 0.03, 0.116, False)):  # fmt: skip
        mind = tried(seconds).model_copy(update={"trial": Trial(since=0, tokens=1000, origin=HERE, forecast=forecast)})
        found = judge(mind, 5, lambda split, old=old: 0.02 if split.epoch == 8 else old, THERE.at(8))
        assert found is not None
        assert (found.failed, found.back) == (True, back)


def test_a_move_is_not_blamed_for_what_changed_since() -> None:
    worse = {7: 0.24, 8: 0.12}  # all has become three times as slow
    useless = {7: 0.08, 8: 0.09}  # the model itself has turned: thresholds and gains decide
    for mind, prices in ((tried(0.15), worse), (tried(0.2), useless)):
        found = judge(mind, 5, lambda split, prices=prices: prices[split.epoch], THERE.at(8))
        assert found is not None
        assert not found.failed


@pytest.mark.parametrize(
    ("mind", "answer"),
    [
        (tried(0.2, count=4), None),
        (tried(0.2, tokens=1000), None),  # the entry's median still holds tokens of the old epoch
        (tried(0.2, load=3), Verdict()),  # more is asked: before and after are not alike
        (Mind(), Verdict()),
    ],
)
def test_it_is_judged_once_there_is_enough_that_is_alike(mind: Mind, answer: Verdict | None) -> None:
    assert judge(mind, 5, lambda split: 0.04 if split.epoch == 8 else 0.08, THERE.at(8)) == answer


def test_what_failed_is_barred_until_the_state_differs_by_a_factor() -> None:
    then = Views(now=fleet(), worst=fleet())
    failures = (Failure(route=route(THERE), views=then),)
    for pace, still in ((1.5, True), (2.5, False)):
        slower = fleet().model_copy(update={"slowdown": {"shelf": pace}})
        assert barred(THERE, failures, Views(now=slower, worst=slower)) is still
    elsewhere = split_from_placement(["desk", "desk", "attic", "attic", "attic", "desk"])
    assert not barred(elsewhere, failures, then)


# --- what is likely next ---


def without(host: str) -> Problem:
    return pose(chain(), fleet().without(host), PLAN, INVENTORY)


def test_for_the_loss_of_each_host_the_weights_it_would_need_are_known() -> None:
    found = standby(HERE, without)
    assert set(found.ready) == {"shelf", "attic"}
    assert set(found.without) == {"desk"}
    for lost, split in found.ready.items():
        assert lost not in split.hosts
        for host in split.hosts:  # all that is needed is there or sent ahead
            assert blocks_of(split, host) <= blocks_of(HERE, host) | set(found.blocks.get(host, ()))
    for host, blocks in found.blocks.items():
        assert not set(blocks) & blocks_of(HERE, host)


def test_a_loss_that_nothing_can_answer_is_told() -> None:
    pinned = PLAN.model_copy(update={"place": {"layers.3": "attic"}})
    found = standby(HERE, lambda host: pose(chain(), fleet().without(host), pinned, INVENTORY))
    assert set(found.without) == {"desk", "attic"}
    assert "attic" in found.without["attic"]
