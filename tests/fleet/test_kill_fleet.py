"""A controller that dies at any step of a change: what serves goes on serving, and the next deploy finishes the job.

EDGESPLIT_KILLS=all tries every step; CI a few, others each time the list of steps changes.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SshdFarm
from deployments import Deployment, Quiet, deployment, unsplit
from profiles import NAMES

from edgesplit.broadcast.note import Errand
from edgesplit.broadcast.push import push
from edgesplit.broadcast.remote import status
from edgesplit.broadcast.scene import look
from edgesplit.broadcast.teardown import break_locks
from edgesplit.broadcast.transition import Phase, Step
from edgesplit.errors import MovedError
from edgesplit.hosts.fanout import connect
from edgesplit.split import split_from_placement

pytestmark = pytest.mark.fleet

PROMPT = [40, 7, 99, 140, 23, 200, 81, 17]
COUNT = 8
ONE = ("desk", "desk", "shelf", "shelf", "attic", "desk")
OTHER = ("desk", "shelf", "shelf", "attic", "attic", "desk")
FEW = 5  # kills in CI
AFTER = (Phase.CONFIRM, Phase.RETIRE, Phase.STOP, Phase.UNLOCK)  # phases that come when the new epoch serves already


class Deadly(Quiet):
    """Kills this process when it begins the step of that number."""

    def __init__(self, number: int) -> None:
        self._left = number

    def begin(self, step: Step) -> None:  # noqa: ARG002 - whatever it is
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


class Counting(Quiet):
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def begin(self, step: Step) -> None:
        self.steps.append(step)


def change(ring: Deployment, placement: tuple[str, ...], progress: Quiet) -> None:
    scene = look(ring.cargo, ring.hosts)
    push(ring.cargo, split_from_placement(placement), ring.hosts, scene, progress, Errand("test"))


def killed(ring: Deployment, placement: tuple[str, ...], number: int) -> None:
    """The change in a process of its own, with connections of its own, which dies at that step."""
    child = os.fork()
    if child == 0:
        try:
            with connect(ring.cargo.inventory) as doors:
                change(replace(ring, hosts=doors), placement, Deadly(number))
        finally:
            os._exit(1)
    _, how = os.waitpid(child, 0)
    assert os.WIFSIGNALED(how)


def epochs(ring: Deployment) -> dict[str, list[str]]:
    cargo = ring.cargo
    reports = {
        name: status(host, cargo.inventory.hosts[name], cargo.folder(name), cargo.archive.name)
        for name, host in ring.hosts.items()
    }
    return {name: list(report["epochs"]) for name, report in reports.items()}


def left_over(ring: Deployment) -> list[str]:
    """What should be on no host after a change that was finished."""
    found = []
    for host in ring.hosts:
        folder = ring.folder(host)
        found += [str(path) for path in [*folder.rglob("*.part"), folder / "lock"] if path.exists()]
        found += [str(path) for path in (folder / "stages").iterdir() if path.name[0] != epochs(ring)[host][0][0]]
    return found


@pytest.mark.ssh
def test_a_controller_that_dies_at_any_step(tmp_path: Path, sshd: SshdFarm) -> None:
    with deployment(tmp_path, targets={name: sshd().target() for name in NAMES}) as ring:
        expected, _ = unsplit(Path(ring.plan.model.source), PROMPT, COUNT)
        ring.push(*ONE)
        counting = Counting()
        change(ring, OTHER, counting)
        steps = len(counting.steps)
        numbers = range(steps) if os.environ.get("EDGESPLIT_KILLS") == "all" else range(0, steps, -(-steps // FEW))
        now, then = OTHER, ONE
        for number in numbers:
            before = epochs(ring)["desk"][0]
            killed(ring, then, number)
            assert ring.complete(PROMPT, COUNT)["token_ids"] == expected, counting.steps[number]
            if counting.steps[number].phase not in (Phase.LOCK, *AFTER):
                with pytest.raises(MovedError, match="is locked by"):
                    change(ring, then, Quiet())
            if any((ring.folder(host) / "lock").exists() for host in ring.hosts):
                break_locks(ring.plan.name, ring.cargo.inventory, ring.hosts)
            change(ring, then, Quiet())
            assert ring.complete(PROMPT, COUNT)["token_ids"] == expected, counting.steps[number]
            held = epochs(ring)
            assert {len(serving) for serving in held.values()} == {1}, (counting.steps[number], held)
            assert int(held["desk"][0]) > int(before)
            assert left_over(ring) == []
            now, then = then, now
