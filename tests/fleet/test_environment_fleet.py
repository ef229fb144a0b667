"""A host that has nothing but Python gets an environment: whole or not at all, and once."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import venv
from pathlib import Path
from typing import Any

import pytest
from conftest import LOCALHOST, SshdFactory, free_port
from deployments import deployment, inventory, unsplit
from wheels import bare_host, make_wheel

from edgesplit.broadcast.environment import ensure
from edgesplit.broadcast.remote import lacks
from edgesplit.errors import HostError
from edgesplit.hosts.commands import Command
from edgesplit.hosts.fanout import connect
from edgesplit.hosts.host import LocalHost
from edgesplit.inventory import DataPlane, HostSpec, Inventory, Packages
from edgesplit.profiling.checkup import check

pytestmark = pytest.mark.fleet


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostSpec:
    return bare_host(tmp_path, monkeypatch)


class Recorder(LocalHost):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__("pi")
        self.lines: list[str] = []

    def run(self, command: Command, *rest: Any, **named: Any) -> str:
        self.lines.append(command.line)
        return super().run(command, *rest, **named)

    def stream(self, command: Command, *rest: Any, **named: Any) -> Any:
        self.lines.append(command.line)
        return super().stream(command, *rest, **named)


def silent(_: str) -> None:
    """Nobody listens."""


def left(spec: HostSpec) -> set[str]:
    return {path.name for path in Path(spec.environments).iterdir()}


def test_it_is_made_once_however_many_want_it(spec: HostSpec) -> None:
    """Two come at the same time, and one when all has been sent: they wait for the one that has the lock."""
    host, told, making = Recorder(), list[str](), threading.Event()

    def hear(text: str) -> None:
        told.append(text)
        if text == "making an environment":
            making.set()

    threads = [threading.Thread(target=ensure, args=(host, spec, hear)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert making.wait(60)
    ensure(host, spec, hear)
    for thread in threads:
        thread.join()
    assert subprocess.run([spec.interpreter, "-c", "import apple, pear_low"]).returncode == 0
    assert left(spec) == {"lock", Path(spec.environment or "").name}
    assert [text for text in told if "waiting for another installation" in text]
    assert [text for text in told if text.startswith("trying")] == ["trying apple"]
    assert not [line for line in host.lines if "secret" in line]  # the words of a command are for all to see
    host.lines.clear()
    ensure(host, spec, told.append)
    assert len(host.lines) == 1


def test_who_dies_with_the_lock_lets_the_next_one_in(spec: HostSpec) -> None:
    child = os.fork()
    if child == 0:
        try:
            ensure(LocalHost("pi"), spec, lambda text: os.kill(os.getpid(), 9) if "sending" in text else None)
        finally:
            os._exit(1)
    _, how = os.waitpid(child, 0)
    assert os.WIFSIGNALED(how)
    ensure(LocalHost("pi"), spec, silent)
    assert not lacks(LocalHost("pi"), spec)


def test_who_is_gone_half_way_has_left_nothing_that_counts(spec: HostSpec) -> None:
    class Gone(Exception):
        pass

    def leave(text: str) -> None:
        if text.startswith("processing"):
            raise Gone

    with pytest.raises(Gone):
        ensure(LocalHost("pi"), spec, leave)
    assert lacks(LocalHost("pi"), spec)
    ensure(LocalHost("pi"), spec, silent)
    assert not lacks(LocalHost("pi"), spec)
    assert left(spec) == {"lock", Path(spec.environment or "").name}


def test_one_that_does_not_work_there_is_not_kept(spec: HostSpec, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "apple", "1.0", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    with pytest.raises(HostError, match=r"apple is installed, but does not work here \(signal 4\)"):
        ensure(LocalHost("pi"), spec, silent)
    assert lacks(LocalHost("pi"), spec)


def test_one_whose_python_went_is_made_anew_and_one_of_no_more_use_goes(spec: HostSpec) -> None:
    here, long_ago = Path(spec.environments), time.time() - 30 * 86400
    dead, idle, busy = Path(spec.environment or ""), here / "idle", here / "busy"
    for folder in (dead, idle, busy):
        venv.create(folder)
        for used in (folder / "pyvenv.cfg", folder):
            os.utime(used, (long_ago, long_ago))
    (dead / "bin" / "python").unlink()
    (dead / "bin" / "python").symlink_to("/nowhere/python3")
    with subprocess.Popen([busy / "bin" / "python", "-c", "input()"], stdin=subprocess.PIPE) as running:
        ensure(LocalHost("pi"), spec, silent)
        running.communicate(b"\n")
    assert not lacks(LocalHost("pi"), spec)
    assert left(spec) == {"lock", dead.name, busy.name}


# --- over SSH ---------------------------------------------------------------------------------------------------------


@pytest.mark.ssh
def test_a_doctor_tells_what_would_come_and_over_ssh_it_comes(
    sshd: SshdFactory, spec: HostSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgesplit.profiling.checkup.MEETING", 2.0)
    data = DataPlane(address=LOCALHOST, port=free_port())
    inventory = Inventory(hosts={"pi": spec.model_copy(update={"ssh": sshd().target(), "data": data})})
    with connect(inventory) as hosts:
        found = {finding.subject: finding for finding in check(hosts, inventory)["pi"]}
        assert all(finding.ok for finding in found.values()), found
        assert found["packages"].found == "none yet"
        assert "installs apple 1.0 from wheels in" in found["packages"].do
        assert not Path(spec.environments).exists()
        ensure(hosts["pi"], inventory.hosts["pi"], silent)
        assert not lacks(hosts["pi"], inventory.hosts["pi"])


@pytest.mark.ssh
@pytest.mark.skipif("EDGESPLIT_BARE" not in os.environ, reason="installs torch twice; EDGESPLIT_BARE names a Python")
@pytest.mark.timeout(1800)
def test_a_fleet_of_bare_hosts_gives_the_tokens_of_the_unsplit_model(
    sshd: SshdFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One asks an index as its pip is configured, the other is sent wheels; EDGESPLIT_WHEELS keeps those."""
    python = os.environ["EDGESPLIT_BARE"]
    folder = os.environ.get("EDGESPLIT_WHEELS", str(tmp_path / "wheels"))
    sources = {"shelf": Packages(python=python), "attic": Packages(python=python, wheels=folder)}
    targets = {name: sshd().target() for name in ("desk", "shelf", "attic")}

    def bare(*words: Any, **named: Any) -> Inventory:
        made = inventory(*words, **named).hosts
        changes = {name: {"python": None, "packages": packages} for name, packages in sources.items()}
        return Inventory(hosts={name: host.model_copy(update=changes.get(name)) for name, host in made.items()})

    monkeypatch.setattr("deployments.inventory", bare)
    with deployment(tmp_path, targets=targets) as made:
        made.push("desk", "desk", "shelf", "attic", "attic", "desk")
        prompt = [40, 7, 99, 140, 23, 200, 81, 17]
        expected, _ = unsplit(tmp_path / "model", prompt, 24)
        assert made.complete(prompt, 24)["token_ids"] == expected
        for name in sources:
            program = Path(f"/proc/{made.pid(name)}/cmdline").read_bytes().split(b"\0")[0].decode()
            assert program == made.cargo.inventory.hosts[name].interpreter
