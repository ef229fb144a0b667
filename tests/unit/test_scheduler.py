"""The order of work: each sequence keeps its own, decode and prefill take turns, what is forgotten never runs."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from edgesplit.runner.scheduler import Scheduler, Work

Piece = Work[int]


def piece(sequence: int, position: int, *, prefill: bool, epoch: int = 1, stage: int = 0) -> Piece:
    return Work(epoch, stage, sequence, position, prefill=prefill, sample=not prefill, payload=position)


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
        order[work.sequence].append(work.position)
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
    kept = [w for w in added if w.epoch != epoch or (place is not None and (w.stage, w.sequence) != place)]
    taken = drain(scheduler)
    assert len(taken) == len(kept)
    assert all(any(work is other for other in kept) for work in taken)


def test_nothing_comes_from_nothing() -> None:
    assert Scheduler[int]().next() is None
