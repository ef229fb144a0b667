"""The order of work: each sequence keeps its own, prompts and answers take turns, the forgotten never runs; groups."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesplit.runner.scheduler import Groups, Scheduler, Turn, Work, beyond, depth, even_piece
from edgesplit.runner.wire import Lap

Piece = Work[int]


def piece(sequence: int, position: int, *, prefill: bool, epoch: int = 1, stage: int = 0, more: int = 0) -> Piece:
    """Of one sequence, or of `more` beside it."""
    turns = tuple(Turn(sequence + 10 * row, position, row) for row in range(more + 1))
    return Work(epoch, stage, turns, prefill=prefill, sample=not prefill, payload=position)


def drain(scheduler: Scheduler[int]) -> list[Piece]:
    taken = []
    while (work := scheduler.next()) is not None:
        taken.append(work)
    assert len(scheduler) == 0
    return taken


works = st.builds(
    piece,
    st.integers(1, 3),
    st.integers(0, 99),
    prefill=st.booleans(),
    epoch=st.integers(1, 2),
    stage=st.integers(0, 2),
    more=st.integers(0, 2),
)


@given(st.lists(works))
@settings(max_examples=25, deadline=None)
def test_everything_comes_out_once_and_each_queue_in_order(added: list[Piece]) -> None:
    scheduler: Scheduler[int] = Scheduler()
    for work in added:
        scheduler.add(work)
    assert len(scheduler) == len(added)
    taken = drain(scheduler)
    for prefill in (True, False):
        assert [work for work in taken if work.prefill is prefill] == [
            work for work in added if work.prefill is prefill
        ]


@given(st.lists(st.integers(1, 4)), st.data())
@settings(max_examples=25, deadline=None)
def test_a_sequence_that_decodes_only_after_its_prompt_keeps_its_order(sizes: list[int], data: st.DataObject) -> None:
    """As in a ring: a sequence's next piece is added once the one before has been taken."""
    scheduler: Scheduler[int] = Scheduler()
    plans = {number: [True] * size + [False] * 3 for number, size in enumerate(sizes)}
    order: dict[int, list[int]] = {number: [] for number in plans}
    for number, plan in plans.items():  # prompts are added whole
        for position in range(sum(plan)):
            scheduler.add(piece(number, position, prefill=True))
    while (work := scheduler.next()) is not None:
        order[work.sequence].append(work.turns[0].position)
        done = len(order[work.sequence])
        plan = plans[work.sequence]
        if sum(plan) <= done < len(plan) and data.draw(st.booleans()):
            scheduler.add(piece(work.sequence, done, prefill=False))
    assert all(positions == list(range(len(positions))) for positions in order.values())


@given(st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_decode_and_prefill_take_turns_while_both_wait(decodes: int, prefills: int) -> None:
    scheduler: Scheduler[int] = Scheduler()
    for number in range(prefills):
        scheduler.add(piece(1, number, prefill=True))
    for number in range(decodes):
        scheduler.add(piece(2, number, prefill=False))
    kinds = [work.prefill for work in drain(scheduler)]
    both = 2 * min(decodes, prefills)
    assert kinds[0] is False
    assert all(left is not right for left, right in pairwise(kinds[:both]))


@given(st.lists(works), st.integers(1, 2), st.none() | st.tuples(st.integers(0, 2), st.integers(1, 3)))
@settings(max_examples=25, deadline=None)
def test_what_is_forgotten_never_runs_and_nothing_else_is(
    added: list[Piece], epoch: int, place: tuple[int, int] | None
) -> None:
    scheduler: Scheduler[int] = Scheduler()
    for work in added:
        scheduler.add(work)
    scheduler.forget(epoch, place)
    stage, sequence = place or (None, None)
    kept = [
        [turn for turn in w.turns if w.epoch != epoch or (place and (w.stage != stage or turn.sequence != sequence))]
        for w in added
    ]
    taken = sorted(w.turns for w in drain(scheduler))
    assert taken == sorted(tuple(turns) for turns in kept if turns)


def test_nothing_comes_from_nothing() -> None:
    assert Scheduler[int]().next() is None


# --- groups ---


class Ring:
    """Groups that come back in the order they went."""

    def __init__(self, largest: int) -> None:
        self.groups, self.under_way, self.alive = Groups(largest), [], set[int]()

    def join(self, sequence: int, depth: int) -> None:
        self.alive.add(sequence)
        self.groups.join(sequence)
        self.start(depth)

    def leave(self, sequence: int) -> None:
        self.alive.discard(sequence)
        self.groups.leave(sequence)

    def start(self, depth: int) -> None:
        self.under_way += self.groups.start(depth)

    def turn(self, depth: int) -> list[int]:
        """The first group comes back and may go on."""
        group = self.under_way.pop(0)
        self.groups.returned(group)
        self.groups.back(sequence for sequence in group if sequence in self.alive)
        self.start(depth)
        return group


events = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 0)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("turn"), st.integers(1, 5)),
)


@given(st.integers(1, 4), st.lists(events, max_size=40), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_whatever_joins_and_leaves_all_step_and_none_twice(
    largest: int, happened: list[tuple[str, int]], last: int
) -> None:
    ring, number = Ring(largest), 0
    for event, choice in happened:
        if event == "join":
            number += 1
            ring.join(number, last)
        elif event == "leave" and ring.alive:
            ring.leave(sorted(ring.alive)[choice % len(ring.alive)])
        elif event == "turn" and ring.under_way:
            ring.turn(choice)
        moving = [sequence for group in ring.under_way for sequence in group]
        assert len(moving) == len(set(moving))
        assert all(1 <= len(group) <= largest for group in ring.under_way)
    for _ in range(4 * len(ring.under_way) + 4):  # whoever lives comes round, again and again
        if ring.under_way:
            ring.turn(last)
    moving = [sequence for group in ring.under_way for sequence in group]
    waiting = ring.alive - set(moving)
    stepped = {sequence for _ in range(2 * len(ring.under_way)) for sequence in ring.turn(last)}
    assert stepped >= ring.alive
    assert len(waiting) <= len(ring.alive) // 2


def test_groups_are_as_many_as_the_ring_works_on_and_stay_together() -> None:
    ring = Ring(8)
    for number in range(8):
        ring.join(number, 3)
    for _ in range(9):
        ring.turn(3)
    assert sorted(len(group) for group in ring.under_way) == [2, 3, 3]
    before = sorted(ring.under_way)
    for _ in range(6):
        ring.turn(3)
    assert sorted(ring.under_way) == before
    ring.join(8, 3)
    for _ in range(3):
        ring.turn(3)
    assert sorted(len(group) for group in ring.under_way) == [3, 3, 3]


def test_the_depth_of_a_ring_is_one_turn_over_the_busiest_hosts_share() -> None:
    def laps(*computed: int) -> list[Lap]:
        return [Lap(500, 4, each - 10, 6) for each in computed]

    equal = laps(10_000, 10_000, 10_000)
    assert depth(equal, ["a", "b", "c"], 0.0315) == 3  # of which 1.5 ms were spent waiting
    assert depth(equal, ["a", "b", "a"], 0.0315) == 2  # a is busy for 20 of 30 ms
    assert depth(equal, ["a", "b", "c"], 0.1115) == 11  # 80 ms on the way
    assert depth(laps(10_000), ["a"], 0.0105) == 1
    assert depth([Lap(0, 0, 0, 0)] * 2, ["a", "b"], 0.1) == 2


@given(st.integers(1, 2000), st.integers(1, 300))
def test_pieces_are_few_and_equal(tokens: int, most: int) -> None:
    length = even_piece(tokens, most)
    pieces = [min(length, tokens - start) for start in range(0, tokens, length)]
    assert max(pieces) <= most
    assert len(pieces) == -(-tokens // most)
    assert max(pieces) == -(-tokens // len(pieces))


def test_what_a_hop_takes_beyond_computing() -> None:
    assert beyond(0.1, (Lap(500, 4, 40_000, 6), Lap(0, 0, 50_000, 0), Lap(0, 0, 0, 0))) == pytest.approx(0.005)
