"""A push that fails, at whatever step, leaves every host as it was; the old epoch serves on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployments import Deployment, Quiet, deployment
from models import make_checkpoint

from edgesplit.broadcast.cargo import Cargo, shard_path
from edgesplit.broadcast.note import Errand
from edgesplit.broadcast.push import push
from edgesplit.broadcast.recall import recall
from edgesplit.broadcast.remote import ask
from edgesplit.broadcast.scene import look, settled
from edgesplit.broadcast.transition import Phase, Step, transition
from edgesplit.errors import Abandoned, DeployError, HostError, MovedError, Unreachable
from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host, LocalHost
from edgesplit.hosts.leaving import Exit
from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.split import split_from_placement

pytestmark = pytest.mark.fleet

PROMPT = [40, 7, 99, 140, 23, 200, 81, 17]
FIRST = ("desk", "desk", "shelf", "shelf", "shelf", "desk")
SECOND = ("desk", "desk", "attic", "attic", "shelf", "desk")
BEFORE_COMMIT = [Phase.LOCK, Phase.SHIP, Phase.START, Phase.PREPARE, Phase.LINK, Phase.TRIAL, Phase.COMMIT]


class Saboteur(Quiet):
    """Fails as a step of this phase begins; `wanted` remembers whether it came to that."""

    def __init__(self, phase: Phase, host: str, error: BaseException) -> None:
        self._phase, self._host, self._error = phase, host, error
        self.struck = False

    def begin(self, step: Step) -> None:
        if step.phase is self._phase and step.host == self._host:
            self.struck = True
            raise self._error


def sabotaged(made: Deployment, placement: tuple[str, ...], phase: Phase, error: BaseException) -> None:
    host = {Phase.START: "attic"}.get(phase, "desk")
    saboteur = Saboteur(phase, host, error)
    scene = look(made.cargo, made.hosts)
    with pytest.raises((DeployError, KeyboardInterrupt)):
        push(made.cargo, split_from_placement(placement), made.hosts, scene, saboteur, Errand("test"))
    assert saboteur.struck


def files(made: Deployment) -> dict[str, set[str]]:
    """What lies on each host, but for logs."""
    return {
        host: {str(file.relative_to(folder)) for file in folder.rglob("*") if file.name not in ("runner.log", "serial")}
        for host in made.hosts
        for folder in [made.folder(host)]
    }


def test_a_first_deploy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        for phase in (Phase.LOCK, Phase.SHIP, Phase.START, Phase.LINK, Phase.COMMIT):
            sabotaged(made, SECOND, phase, HostError("desk", "struck by lightning"))
            assert not list((tmp_path / "work").rglob("*"))


def test_a_move_that_fails_leaves_the_old_epoch_serving(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        made.push(*FIRST)
        expected = made.complete(PROMPT, 8)["token_ids"]
        before = files(made)
        for phase in BEFORE_COMMIT:
            sabotaged(made, SECOND, phase, HostError("desk", "struck by lightning"))
            assert files(made) == before, phase
            assert made.complete(PROMPT, 8)["token_ids"] == expected, phase
        sabotaged(made, SECOND, Phase.TRIAL, KeyboardInterrupt())
        assert files(made) == before
        scene = look(made.cargo, made.hosts)
        assert scene.running is not None
        assert scene.running.epoch == 1
        assert settled(made.cargo, scene, split_from_placement(FIRST))


class Hanging(LocalHost):
    """Hears its lock and the command that is its last; never answers that one, nor any after it."""

    def __init__(self, host: Host, last: bytes) -> None:
        super().__init__(host.name)
        self._last = last
        self.hung, self.over = threading.Event(), threading.Event()

    def run(self, command: commands.Command, stdin: bytes | Iterable[bytes] = b"", timeout: float = 60.0) -> str:
        if isinstance(stdin, bytes) and self._last in stdin:
            self.hung.set()
        if self.hung.is_set():
            self.over.wait(60)
            raise Unreachable(self.name, "no answer")
        return super().run(command, stdin, timeout)


def test_a_push_that_is_given_up_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        made.push(*FIRST)
        expected = made.complete(PROMPT, 8)["token_ids"]
        dead = Hanging(made.hosts["attic"], rb"\"verb\": \"link\"")
        way_out, errand = Exit(), Errand("test")
        hosts = way_out.hosts({**made.hosts, "attic": dead})
        threading.Thread(target=lambda: dead.hung.wait(60) and way_out.take("the ring broke"), daemon=True).start()
        with pytest.raises(Abandoned):
            push(made.cargo, split_from_placement(SECOND), hosts, look(made.cargo, made.hosts), Quiet(), errand)
        assert (made.folder("attic") / "lock").exists()  # it could not be told
        assert not (made.folder("shelf") / "lock").exists()
        assert made.complete(PROMPT, 8)["token_ids"] == expected
        again = Errand("test again", ours=frozenset([errand.note]))
        dead.over.set()
        pushed = push(
            made.cargo, split_from_placement(SECOND), made.hosts, look(made.cargo, made.hosts), Quiet(), again
        )
        assert not pushed.warnings
        assert made.complete(PROMPT, 8)["token_ids"] == expected
        presences = look(made.cargo, made.hosts).presences
        assert {epoch for each in presences.values() for epoch in each.epochs or ()} == {pushed.split.epoch}


def test_a_commit_whose_answer_is_lost_is_asked_for_not_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = []

    def deaf(host: Host, *rest: Any) -> dict[str, Any]:
        answer = ask(host, *rest)
        if b'\\"verb\\": \\"commit\\"' in rest[3] and host.name == "desk" and not lost:
            lost.append(host.name)
            raise Unreachable(host.name, "no answer")
        return answer

    with deployment(tmp_path) as made:
        made.push(*FIRST)
        monkeypatch.setattr("edgesplit.broadcast.words.ask", deaf)
        assert made.push(*SECOND).epoch == 2
        assert lost == ["desk"]
        assert settled(made.cargo, look(made.cargo, made.hosts), split_from_placement(SECOND))


def test_a_rollback_brings_back_what_served_before_and_sends_nothing(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        made.push(*FIRST)
        with pytest.raises(DeployError, match="no split to go back to"):
            recall(made.cargo, made.hosts, look(made.cargo, made.hosts))
        expected = made.complete(PROMPT, 8)["token_ids"]
        again = made.push(*FIRST)  # the same split once more is nothing to go back to
        with pytest.raises(DeployError, match="no split to go back to"):
            recall(made.cargo, made.hosts, look(made.cargo, made.hosts))
        smaller = quantised(made, tmp_path)
        scene = look(smaller, made.hosts)
        push(smaller, split_from_placement(SECOND), made.hosts, scene, Quiet(), Errand("test"))
        other = made.complete(PROMPT, 8)["token_ids"]
        for answer in (expected, other, expected):  # there and back: the plan is another one half of the time
            scene = look(smaller, made.hosts)
            before = recall(smaller, made.hosts, scene)
            steps = transition(scene.running, before.split.at(9), scene.presences, before.needs(before.split.at(9)))
            assert not any(step.size for step in steps)
            assert not push(before, before.split, made.hosts, scene, Quiet(), Errand("rollback")).warnings
            assert made.complete(PROMPT, 8)["token_ids"] == answer
        running = look(made.cargo, made.hosts).running
        assert running is not None
        assert running.same_stages(again)
        for shard in (made.folder("shelf") / "shards").iterdir():
            if shard.stem in {shard.sha256 for shard in smaller.cut.blocks}:
                shard.unlink()
        with pytest.raises(DeployError, match=r"removed since: .*shelf lacks 1"):
            recall(made.cargo, made.hosts, look(made.cargo, made.hosts))


def quantised(made: Deployment, folder: Path) -> Cargo:
    """The same plan, but for its precision."""
    wish = made.plan.model_copy(update={"quantization": "int8"})
    checkpoint = open_checkpoint(folder / "model", str(folder / "model"), wish.dtype, quantization="int8")
    return Cargo(wish, made.cargo.inventory, checkpoint, cut(checkpoint, folder / "hashes-int8.json"))


def test_a_locked_host_is_left_alone_and_says_who_holds_it(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        made.push(*FIRST)
        host = made.hosts["shelf"]
        host.run(commands.lock(str(made.folder("shelf")), "ada on notebook, 2026-11-23: deploy"))
        with pytest.raises(MovedError, match="shelf is locked by ada on notebook, 2026-11-23: deploy"):
            made.push(*SECOND)
        assert not made.folder("attic").exists()
        assert not (made.folder("desk") / "lock").exists()
        host.run(commands.unlock(str(made.folder("shelf"))))


def test_a_move_sends_only_what_the_hosts_do_not_have(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        made.push(*FIRST)
        sent: dict[str, int] = {}

        class Count(Quiet):
            def sent(self, step: Step, size: int) -> None:
                sent[step.host] = sent.get(step.host, 0) + size

        scene = look(made.cargo, made.hosts)
        target = split_from_placement(("desk", "desk", "desk", "desk", "shelf", "desk"))
        push(made.cargo, target, made.hosts, scene, Count(), Errand("test"))
        assert sent == {"desk": sum(block.size for block in made.cargo.cut.blocks[2:4])}  # and nothing else
        old = time.time() - 2 * 86400
        for shard in (made.folder("shelf") / "shards").iterdir():  # as if none had been in use since
            os.utime(shard, (old, old))
        back = split_from_placement(("desk", "desk", "desk", "shelf", "shelf", "desk"))
        sent.clear()
        push(made.cargo, back, made.hosts, look(made.cargo, made.hosts), Count(), Errand("test"))
        assert sent == {}
        needed = {made.cargo.cut.blocks[number].sha256 for number in (3, 4)} | {made.cargo.cut.common.sha256}
        assert {shard.stem for shard in (made.folder("shelf") / "shards").iterdir()} == needed


def test_hosts_give_each_other_weights_where_the_way_from_here_is_slow(tmp_path: Path) -> None:
    sent: dict[str, int] = {}
    said: list[str] = []

    class Count(Quiet):
        def sent(self, step: Step, size: int) -> None:
            sent[step.host] = sent.get(step.host, 0) + size

        def note(self, step: Step, text: str) -> None:
            said.append(f"{step.host}: {text}")

    names = ("desk", "shelf", "attic")
    links = {one: {other: LinkProfile(rtt=0.001, bandwidth=1e9) for other in names if other != one} for one in names}
    fleet = Fleet(hosts={}, links=links, uplinks=dict.fromkeys(names, 1000.0), measured_at=0.0, plan="")

    def move(*placement: str) -> None:
        scene = look(made.cargo, made.hosts, fleet)
        sent.clear()
        said.clear()
        push(made.cargo, split_from_placement(placement), made.hosts, scene, Count(), Errand("test"))
        assert made.complete(PROMPT, 8)["token_ids"] == expected

    with deployment(tmp_path) as made:
        made.push(*FIRST)
        expected = made.complete(PROMPT, 8)["token_ids"]
        things = made.cargo.things.values()
        move(*SECOND)
        assert sent == {"attic": sum(thing.size for thing in things if not thing.sealed)}  # no byte of any weights
        assert [text for text in said if "from shelf" in text] == said != []
        moved = made.cargo.cut.blocks[2]
        gift = made.folder("attic") / shard_path(moved.sha256)
        gift.write_bytes(gift.read_bytes()[:-1] + b"x")
        (made.folder("shelf") / shard_path(moved.sha256)).unlink()
        move("desk", "desk", "desk", "attic", "shelf", "desk")
        assert sent == {"desk": moved.size}
        assert said[-1].startswith("desk: not from attic: ")


def test_other_limits_or_weights_are_not_what_serves(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        made.push(*FIRST)
        scene = look(made.cargo, made.hosts)
        assert settled(made.cargo, scene, split_from_placement(FIRST))
        workload = made.plan.workload.model_copy(update={"max_context": 128})
        narrower = replace(made.cargo, plan=made.plan.model_copy(update={"workload": workload}))
        other = make_checkpoint(tmp_path / "other", seed=1)
        checkpoint = open_checkpoint(other, str(other), "float32")
        retrained = replace(made.cargo, checkpoint=checkpoint, cut=cut(checkpoint, tmp_path / "others.json"))
        for changed in (narrower, retrained):
            assert not settled(changed, scene, split_from_placement(FIRST))
