"""The log of decisions, and the claim of the one that watches: on this machine as the entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from test_decide import RUNNING

from edgesplit.broadcast.archive import runner_archive
from edgesplit.hosts import commands
from edgesplit.hosts.host import LocalHost
from edgesplit.orchestrator.decide import Decision
from edgesplit.orchestrator.event import Event, inputs
from edgesplit.orchestrator.history import FILE, History, read
from edgesplit.orchestrator.moving import Moving
from edgesplit.profiling.capacity import State

DESK = LocalHost("desk")
MADE = Decision(action="keep", because="shelf is slow", gain=0.2, net=0.1, moving=Moving(send=2.0))
EVENT = Event(at=1.0, event="keep", text="shelf is slow", epoch=7, decision=MADE, inputs=inputs(State(), RUNNING))


def test_what_was_decided_is_read_again_the_oldest_first(tmp_path: Path) -> None:
    with History(DESK, str(tmp_path)) as history:
        history.note(EVENT)
        history.note(EVENT.model_copy(update={"at": 2.0}))
    with (tmp_path / FILE).open("a") as log:
        log.write("no event\n")
    assert read(DESK, str(tmp_path)) == [EVENT, EVENT.model_copy(update={"at": 2.0})]


def test_the_log_keeps_its_last_lines(tmp_path: Path) -> None:
    for number in range(40):
        DESK.run(commands.append(str(tmp_path / "log"), 10), f"{number}\n".encode())
    lines = (tmp_path / "log").read_text().split()
    assert 10 <= len(lines) <= 11
    assert lines[-1] == "39"


def test_what_cannot_be_written_is_written_with_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    with History(DESK, str(folder)) as history:
        history.note(EVENT)
        history._thread.submit(lambda: None).result()  # it has been tried
        folder.mkdir()
        history.note(EVENT)
    assert len(read(DESK, str(folder))) == 2


def stream(folder: Path, watcher: str) -> subprocess.Popen[str]:
    file = folder / runner_archive().name
    file.write_bytes(runner_archive().data)
    arguments = json.dumps({"folder": str(folder), "interval": 0.1, "watcher": watcher})
    return subprocess.Popen([sys.executable, "-I", file, "stream", arguments], stdout=subprocess.PIPE, text=True)


def first_line(reading: subprocess.Popen[str]) -> dict[str, object]:
    assert reading.stdout is not None
    return dict(json.loads(reading.stdout.readline()))


def test_only_one_watches_and_when_it_is_killed_the_next_may(tmp_path: Path) -> None:
    one = stream(tmp_path, "ann")
    assert "cores" in first_line(one)
    with stream(tmp_path, "bob") as other:
        assert first_line(other) == {"watched": "ann"}
    with stream(tmp_path, "ann") as again:  # an earlier channel of ours, that we could not close
        assert "cores" in first_line(again)
        again.kill()
    one.kill()
    one.communicate()
    with stream(tmp_path, "bob") as other:
        assert "cores" in first_line(other)
        assert DESK.run(commands.oust(str(tmp_path))).strip() == "bob"  # edgesplit unlock
        assert other.wait(10) != 0
    assert DESK.run(commands.oust(str(tmp_path))) == ""
