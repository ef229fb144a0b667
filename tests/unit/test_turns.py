"""Who measures on one machine: all get ready at once, each is timed alone."""

from __future__ import annotations

import threading
from pathlib import Path

from edgesplit.runner.turns import Turns

PROMPT = 0.2  # seconds within which a thread would have gone on


def waits(for_: Turns, what: str) -> bool:
    """Does somebody else wait while this one is held?"""
    other, gone_on = Turns(for_.path), threading.Event()

    def act() -> None:
        with getattr(other, what)():
            gone_on.set()

    thread = threading.Thread(target=act)
    thread.start()
    waited = not gone_on.wait(PROMPT)
    waiting.append(thread)
    return waited


waiting: list[threading.Thread] = []


def test_all_get_ready_at_once_and_each_is_timed_alone(tmp_path: Path) -> None:
    (tmp_path / "shared").touch()
    mine = Turns(str(tmp_path / "shared"))
    with mine.prepare():
        assert not waits(mine, "prepare")
        assert waits(mine, "turn")
    with mine.turn():
        assert waits(mine, "turn")
        assert waits(mine, "prepare")
    for thread in waiting:
        thread.join(5)
        assert not thread.is_alive()


def test_where_nothing_can_be_locked_nobody_waits(tmp_path: Path) -> None:
    alone = Turns(str(tmp_path / "not there"))
    with alone.turn():
        assert not waits(alone, "turn")
