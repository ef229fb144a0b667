"""What is done beside the loop makes way, also where that takes it longer than anybody waits."""

from __future__ import annotations

import threading
import time

from edgesplit.orchestrator.chores import Chores, Interrupted


def test_a_chore_that_was_not_waited_for_still_makes_way() -> None:
    looking, ended = threading.Event(), threading.Event()

    def send() -> None:
        looking.wait(5)
        ended.set()
        if chores.stop.is_set():
            raise Interrupted("told to")

    with Chores() as chores:
        chores.begin(send, lambda _: None, heeds=True)
        chores.make_way(0.01)
        assert chores.busy
        looking.set()
        assert ended.wait(5)
        chores.settle(5)
        assert not chores.busy
        assert chores.failure == "told to"
        found: list[int] = []
        chores.begin(lambda: int(chores.stop.is_set()), found.append)
        chores.settle(5)
        assert found == [0]


def test_a_chore_that_waits_for_a_dead_host_is_left() -> None:
    over = threading.Event()

    def ask() -> str:
        return chores.way_out.unless(lambda: str(over.wait(30)))

    start = time.monotonic()
    with Chores() as chores:
        chores.begin(ask, lambda _: None, heeds=True)
        chores.make_way(5)
        assert not chores.busy
        assert chores.failure == "something else is to be done"
    over.set()
    assert time.monotonic() - start < 5
