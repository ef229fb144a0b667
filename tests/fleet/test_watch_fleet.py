"""The watch loop on real runners: hosts die, freeze and slow down in mid-answer; the answers stay what they were."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SshdFarm
from deployments import Deployment, Quiet, deployment
from profiles import NAMES

from edgesplit.fleet import Fleet
from edgesplit.inventory import Inventory
from edgesplit.orchestrator.event import Event
from edgesplit.orchestrator.moving import blocks_of
from edgesplit.orchestrator.watch import Surroundings, Watch
from edgesplit.plan import Pin
from edgesplit.profiling import capacity
from edgesplit.profiling.collect import profile

pytestmark = pytest.mark.fleet

PROMPT = [40, 7, 99, 140, 23, 200, 81, 17]
COUNT = 200
AS_IT_IS = Surroundings()
START = ("desk", "desk", "shelf", "shelf", "shelf", "desk")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else this machine does is no reason to think again."""
    monkeypatch.setattr(capacity, "_from_load", lambda *_: 1.0)
    monkeypatch.setattr(capacity, "APART", 1e9)


PROFILES: dict[tuple[int, tuple[str, ...]], Fleet] = {}


def profiled(made: Deployment) -> Fleet:
    """A true profile of this machine, as `edgesplit profile` would have made it; measured once for the same blocks."""
    cargo = made.cargo
    key = len(cargo.checkpoint.chain.blocks), tuple(made.hosts)
    if key not in PROFILES:
        fleet = profile(made.hosts, made.plan, cargo.inventory, cargo.checkpoint, time.time(), lambda _: None)
        assert not fleet.problems
        PROFILES[key] = fleet
    return PROFILES[key]


@contextmanager
def watch_of(made: Deployment, around: Surroundings = AS_IT_IS) -> Iterator[Watch]:
    fleet = profiled(made)
    assert made.running is not None
    with Watch(made.cargo, fleet, made.hosts, made.running, Quiet(), around) as watch:
        yield watch


def turn_until(watch: Watch, kind: str, seconds: float = 60) -> list[Event]:
    """Turns of the loop until an event of this kind, all events."""
    deadline, events = time.monotonic() + seconds, []
    while time.monotonic() < deadline:
        for event in watch.round():
            events.append(event)
            if event.event == kind:
                return events
    pytest.fail(f"no {kind!r} within {seconds} s: {[f'{e.event}: {e.text}' for e in events[-8:]]}")


class Answer(threading.Thread):
    """A streamed answer, collected in the background; `tokens` is the final list of ids."""

    def __init__(self, made: Deployment) -> None:
        super().__init__()
        self._made = made
        self.pieces: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            for choice in self._made.stream(PROMPT, COUNT):
                self.pieces.append(choice)
        except Exception as error:  # noqa: BLE001 - shown by the test
            self.failure = error

    @property
    def tokens(self) -> list[int]:
        self.join(timeout=60)
        assert self.failure is None, self.failure
        assert not self.is_alive(), f"the stream hangs after {len(self.pieces)} pieces"
        assert self.pieces[-1]["finish_reason"] == "length"
        return self.pieces[-1]["token_ids"]


def in_mid_answer(made: Deployment) -> Answer:
    answer = Answer(made)
    answer.start()
    deadline = time.monotonic() + 30
    while len(answer.pieces) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert 10 <= len(answer.pieces) < COUNT, answer.failure
    return answer


@contextmanager
def slowed(pid: int, share: float) -> Iterator[None]:
    """Let a process run only this share of the time, as an overloaded host would."""
    over = threading.Event()

    def throttle() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.02 * (1 - share))
            os.kill(pid, signal.SIGCONT)
            over.wait(0.02 * share)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


@contextmanager
def steady_requests(made: Deployment) -> Iterator[list[list[int]]]:
    """One request after another; yields the answers so far."""
    over, answers = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            answers.append(made.complete(PROMPT, 40)["token_ids"])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join(timeout=60)


def killed(made: Deployment) -> None:
    os.kill(made.pid("shelf"), signal.SIGKILL)


def loses_shelf_in_mid_answer(made: Deployment, harm: Callable[[Deployment], None]) -> list[Event]:
    made.push(*START)
    undisturbed = made.complete(PROMPT, COUNT)["token_ids"]
    with watch_of(made) as watch:
        turn_until(watch, "reading")
        answer = in_mid_answer(made)
        harm(made)
        events = turn_until(watch, "moved")
    assert answer.tokens == undisturbed
    assert events[-1].epoch == 2
    assert "shelf" not in watch.running.hosts
    assert watch.running.placement()[1] == "desk"
    return events


def test_a_frozen_host_in_mid_answer_costs_a_pause_only(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        loses_shelf_in_mid_answer(made, lambda made: os.kill(made.pid("shelf"), signal.SIGSTOP))


@pytest.mark.ssh
def test_so_does_a_dead_one_behind_ssh(tmp_path: Path, sshd: SshdFarm) -> None:
    with deployment(tmp_path, targets={name: sshd().target() for name in NAMES}) as made:
        events = loses_shelf_in_mid_answer(made, killed)
    assert not [event.text for event in events if event.event == "failed"]  # that the ring breaks then is no news


@pytest.mark.ssh
def test_an_overloaded_host_gives_layers_away(tmp_path: Path, sshd: SshdFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "APART", 1e9)  # what else this machine does is no reason to think again
    with deployment(tmp_path, targets={name: sshd().target() for name in NAMES}) as made:
        made.push(*START)
        expected = made.complete(PROMPT, 40)["token_ids"]
        with watch_of(made) as watch, steady_requests(made) as answers, slowed(made.pid("shelf"), 0.1):
            events = turn_until(watch, "moved")
        move = next(event for event in events if event.event == "move")
        assert "shelf computes" in move.text
        assert watch.running.placement().count("shelf") < 3
        assert answers
        assert all(answer == expected for answer in answers)


@pytest.mark.usefixtures("alone")
def test_what_the_loss_of_a_host_would_need_is_there_before(tmp_path: Path) -> None:
    with deployment(
        tmp_path, layers=12, pins=(Pin(blocks=("layers.0",)), Pin(blocks=("layers.1",), to="attic"))
    ) as made:
        made.push("desk", "desk", "attic", *["shelf"] * 9, "shelf", "desk")
        undisturbed = made.complete(PROMPT, COUNT)["token_ids"]
        with watch_of(made) as watch:
            told = turn_until(watch, "standby")[-1].text
            assert "ready for the loss of shelf" in told
            assert "nothing can take the place of attic" in told
            ahead = watch.state.shards
            answer = in_mid_answer(made)
            killed(made)
            events = turn_until(watch, "moved")
        move = next(event for event in events if event.event == "move")
        assert move.decision is not None
        assert move.decision.moving is not None
        assert move.decision.moving.sizes == {}
        assert {host: set(blocks_of(watch.running, host)) - set(ahead[host]) for host in watch.running.hosts} == {
            "desk": set(),
            "attic": set(),
        }
        assert answer.tokens == undisturbed


@pytest.mark.usefixtures("alone")
def test_an_inventory_that_changes_is_gone_by_at_once(tmp_path: Path) -> None:
    with deployment(tmp_path, pins=(Pin(blocks=("layers.0-1",)),)) as made:
        whole = made.cargo.inventory

        def inventory(*names: str, trusted: bool) -> Inventory:
            hosts = {name: whole.hosts[name] for name in names}
            return Inventory(hosts={**hosts, "shelf": hosts["shelf"].model_copy(update={"trusted": trusted})})

        made.cargo = replace(made.cargo, inventory=inventory("desk", "shelf", trusted=True))
        attic = made.hosts.pop("attic")
        made.push("desk", "desk", "shelf", "shelf", "shelf", "desk")
        files: list[Inventory] = []
        kept: list[Fleet] = []
        around = Surroundings(lambda: files.pop() if files else None, lambda *_: attic, kept.append)
        with watch_of(made, around) as watch:
            turn_until(watch, "reading")
            answer = in_mid_answer(made)
            files.append(inventory(*NAMES, trusted=True))
            assert turn_until(watch, "inventory")[-1].text == "attic is new"
            assert turn_until(watch, "inventory", 120)[-1].text == "attic has been measured"
            assert set(kept[0].links["attic"]) == {"desk", "shelf"}
            files.append(inventory(*NAMES, trusted=False))
            events = turn_until(watch, "moved")
        assert [event.event for event in events if event.event in ("inventory", "move")] == ["inventory", "move"]
        assert any("layers.1 may not be on shelf" in event.text for event in events)
        assert watch.running.placement()[2] == "desk"
        assert len(answer.tokens) == COUNT


@pytest.mark.usefixtures("alone")
def test_an_overloaded_trusted_host_keeps_what_is_pinned_to_it(tmp_path: Path) -> None:
    with deployment(tmp_path, layers=12) as made:  # so many that a slow host costs more than another hop
        made.push(*["desk"] * 12, "shelf", "desk")
        expected = made.complete(PROMPT, 40)["token_ids"]
        with watch_of(made) as watch, steady_requests(made) as answers, slowed(made.pid("desk"), 0.1):
            turn_until(watch, "moved")
        placement = watch.running.placement()
        assert placement.count("desk") < 13
        assert placement[0] == placement[1] == placement[-1] == "desk"  # embedding, layers.0, head
        assert all(answer == expected for answer in answers)
