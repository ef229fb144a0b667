"""The screen of `edgesplit watch`, at the size of a desk and of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from edgesplit.broadcast.transition import Phase, Step
from edgesplit.cli.live import Doing, Steps
from edgesplit.cli.live_page import HostRow, Line, LinkRow, Picture, StageRow, page
from edgesplit.profiling.probes import Reading, StageReading

STAGES = (
    StageRow("desk", "embedding, layers.0-4", 3.1e-3, 1.1e-3, 1e-3),
    StageRow("shelf", "layers.5-11", 8e-3, 30e-3, 1e-3),
    StageRow("attic", "layers.12-23", None, 1e-3, 1e-3),
    StageRow("desk", "head", 1e-3, None, None),
)
HOSTS = (
    HostRow("desk", "serves", 0.4, 1.1, 0.2, 4, 2**33, 2**34),
    HostRow("shelf", "serves", 1.2, 2.6, 1.4, 2, 2**31, 2**32),
    HostRow("attic", "silent", 44.0, 1.0, 0.0, None, None, None),
    HostRow("cellar", "stands by", 0.1, 1.0, 0.0, 1, 2**31, 2**32),
    HostRow("a-host-with-quite-a-long-name.example", "idle", None, 1.0, 0.0, 1, 2**31, 2**32),
)
LINES = tuple(
    Line(f"12:0{number}:00", number, kind, "shelf computes 2.6 x slower than profiled (threshold 1.5); " * 2)
    for number, kind in enumerate(["keep", "move", "moved", "failed", "inventory", "standby", "keep", "keep"])
)
PICTURE = Picture(
    name="demo", clock="12:09:03", epoch=7, broken="", token=0.0123, wished=0.05, running=3, concurrency=4,
    at_once=None, slow=1.5,
    standby="ready for the loss of shelf, attic", doing="", stages=STAGES, hosts=HOSTS,
    links=(LinkRow("desk - shelf", 60e-3, 2e-3),), lines=LINES,
)  # fmt: skip


def lines(picture: Picture, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    with console.capture() as shown:
        console.print(page(picture, width, height))
    return shown.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (100, 40), (120, 30), (200, 60)])
def test_it_fits_and_names_every_host_and_stage(width: int, height: int) -> None:
    shown = lines(PICTURE, width, height)
    assert len(shown) <= height
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    for what in ("demo", "epoch 7 serves", "3 under way", "12.3 ms per token (within 50 ms)", "12:09:03",
                 "desk", "shelf", "attic", "cellar", "layers.12-23", "2.6 x", "silent", "stands by", "1.4 of 2",
                 "44 s ago", "Decisions", "ready for the loss of shelf"):  # fmt: skip
        assert what in text, what


def test_on_a_desk_the_hosts_stand_beside_the_ring() -> None:
    assert any("Ring" in line and "Hosts" in line for line in lines(PICTURE, 160, 40))
    assert not any("Ring" in line and "Hosts" in line for line in lines(PICTURE, 80, 40))


def test_the_newest_decisions_are_shown_whole_as_many_as_there_is_room_for() -> None:
    few, many = (lines(PICTURE, 80, height) for height in (24, 60))
    assert sum("epoch" in line and line.startswith("12:0") for line in few) >= 1
    assert sum("epoch" in line and line.startswith("12:0") for line in many) == len(LINES)
    assert "12:07:00  epoch 7" in "\n".join(few)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"broken": "shelf: silent for 3 s"}, "epoch 7 is broken: shelf: silent for 3 s"),
        ({"token": 0.09}, "90 ms per token (OVER 50 ms)"),
        ({"token": None}, "no tokens measured yet"),
        ({"wished": None}, "12.3 ms per token"),
        ({"doing": "sending: 3 MiB left to attic"}, "sending: 3 MiB left to attic"),
        ({"at_once": 2}, "3 under way, only 2 at a time"),
        ({"at_once": 8}, "3 under way, 8 at a time"),
        ({"lines": ()}, "nothing had to be decided yet"),
    ],
)
def test_what_matters_is_told(change: dict[str, object], told: str) -> None:
    assert told in "\n".join(lines(replace(PICTURE, **change), 80, 24))


def test_a_stage_takes_what_its_last_steps_took() -> None:
    def reading(steps: int, seconds: float) -> Reading:
        stage = StageReading(epoch=3, stage=1, blocks=(1, 2), steps=steps, decode_seconds=seconds)
        return Reading(at=0, cores=1, memory_total=1, memory_available=1, busy_seconds=0, deployed=True, runner=True,
                       stages=(stage,))  # fmt: skip

    steps = Steps()
    for look in (reading(100, 1.0), reading(100, 1.0), reading(110, 1.5)):
        steps.feed("shelf", look)
    assert steps.seconds == {(3, 1): pytest.approx(0.05)}


def test_a_push_is_told_in_a_few_words() -> None:
    doing, ship = Doing(), Step(Phase.SHIP, "attic", 2, ("a",), 3 * 2**20, "send 1 of 1 objects")
    doing.begin(ship)
    doing.sent(ship, 2**20)
    assert doing.text == "sending: 2 MiB left to attic"
    doing.end(Step(Phase.UNLOCK, "attic", 2))
    assert doing.text == ""
