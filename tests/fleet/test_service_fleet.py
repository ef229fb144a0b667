"""Runners as services of systemd: a real user manager, in a mount namespace that looks as if systemd had booted it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from deployments import Deployment, Quiet, deployment, inventory

from edgesplit.broadcast.note import Errand
from edgesplit.broadcast.push import push
from edgesplit.broadcast.remote import present
from edgesplit.broadcast.scene import look
from edgesplit.broadcast.transition import Step
from edgesplit.hosts import systemd
from edgesplit.hosts.commands import Command
from edgesplit.hosts.host import LocalHost
from edgesplit.split import split_from_placement

pytestmark = pytest.mark.fleet

MANAGER = "/lib/systemd/systemd"
BOOT = f"""
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system
mkdir -p /var/lib/systemd && mount -t tmpfs tmpfs /var/lib/systemd && mkdir /var/lib/systemd/linger
touch "/var/lib/systemd/linger/$(id -un)"
exec {MANAGER} --user --log-target=console
"""
PLACEMENT = ("desk", "desk", "shelf", "shelf", "shelf", "desk")
PROMPT = [40, 7, 99, 140, 23, 200, 81, 17]


class Machine:
    """It boots into a user manager."""

    def __init__(self, folder: Path) -> None:
        self.home, self._runtime, self._log = folder / "home", folder / "runtime", folder / "systemd.log"
        self._manager: subprocess.Popen[bytes] | None = None
        for made in (self.home, self._runtime):
            made.mkdir()

    @property
    def units(self) -> list[str]:
        return [path.name for path in self.home.rglob("*.service")]

    def boot(self) -> None:
        environment = {**os.environ, "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self._runtime)}
        with self._log.open("ab") as log:
            words = ["unshare", "--mount", "/bin/sh", "-c", BOOT]
            self._manager = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        host, deadline = self.host("pi"), time.monotonic() + 20
        while (lacks := host.run(systemd.look())) and time.monotonic() < deadline:
            time.sleep(0.1)
        if lacks:
            self.off()
            pytest.skip(f"no user manager of systemd here: {lacks.strip()}, {self._log.read_text()[-300:]}")

    def off(self) -> None:
        if self._manager is not None:
            self._manager.kill()
            self._manager.wait()

    def host(self, name: str, *_: Any, **__: Any) -> LocalHost:
        return _Inside(name, self.inside)

    def inside(self, line: str) -> str:
        """The same where the manager is that runs now."""
        assert self._manager is not None
        enter = f"nsenter --mount --target {self._manager.pid} env HOME={self.home} XDG_RUNTIME_DIR={self._runtime}"
        return f"exec {enter} /bin/sh -c {shlex.quote(line)}"


class _Inside(LocalHost):
    def __init__(self, name: str, inside: Callable[[str], str]) -> None:
        super().__init__(name)
        self._inside = inside

    def run(self, command: Command, *rest: Any, **named: Any) -> str:
        return super().run(Command(command.title, self._inside(command.line)), *rest, **named)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid() or not os.path.exists(MANAGER) or shutil.which("nsenter") is None:
        pytest.skip("needs root and systemd")
    made = Machine(tmp_path)
    made.boot()
    yield made
    made.off()


def answers(made: Deployment, host: str) -> dict[str, Any] | None:
    return present(made.hosts[host], made.cargo.folder(host), made.cargo.inventory.hosts[host])[1]


def test_runners_come_back_after_a_reboot_and_nothing_is_sent_again(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgesplit.hosts.fanout.door", machine.host)
    monkeypatch.setattr("deployments.inventory", partial(inventory, service="systemd"))
    sent: dict[str, int] = {}

    class Count(Quiet):
        def sent(self, step: Step, size: int) -> None:
            sent[step.host] = sent.get(step.host, 0) + size

    with deployment(tmp_path) as made:
        made.push(*PLACEMENT)
        expected = made.complete(PROMPT, 8)["token_ids"]
        assert sorted(machine.units) == sorted([f"edgesplit-tiny-{name}.service" for name in ("desk", "shelf")] * 2)
        before = {name: made.pid(name) for name in ("desk", "shelf")}
        machine.off()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        machine.boot()
        deadline = time.monotonic() + 60
        while not all(answers(made, name) for name in before):
            assert time.monotonic() < deadline, "no runner came back"
            time.sleep(0.2)
        assert {name: answers(made, name)["serving"] for name in before} == dict.fromkeys(before)  # type: ignore[index]
        assert all(made.pid(name) != pid for name, pid in before.items())
        push(
            made.cargo, split_from_placement(PLACEMENT), made.hosts, look(made.cargo, made.hosts), Count(), Errand("t")
        )
        assert sent == {}
        assert made.complete(PROMPT, 8)["token_ids"] == expected
    assert machine.units == []
