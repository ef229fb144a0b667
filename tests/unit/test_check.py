"""The doctor: what it makes of answers, and what it finds on hosts that lack something."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import LOCALHOST, SshdFactory, free_port
from typer.testing import CliRunner

from edgesplit.cli.app import app
from edgesplit.errors import CommandFailed
from edgesplit.hosts.fanout import connect
from edgesplit.inventory import DataPlane, HostSpec, Inventory
from edgesplit.profiling import findings
from edgesplit.profiling.checkup import check
from edgesplit.profiling.findings import Finding
from edgesplit.runner import doctor
from edgesplit.runner import meeting as runner_meeting

GIB = 2**30
HERE = HostSpec(connection="local", python=sys.executable, memory=4 * GIB)
ANSWER = {
    "packages": {"torch": "2.13.0+cpu", "uvicorn": "0.54.0"},
    "missing": [],
    "disk_free": 90 * GIB,
    "memory_available": 8 * GIB,
    "unwritable": "",
}
WANTED = {"torch": "2.13.0", "uvicorn": "0.54.0", "starlette": "1.10.0"}


def test_whoever_is_told_to_end_ends_at_once(tmp_path: Path) -> None:
    """Although the host computes for ever."""
    begun, python, fleet = tmp_path / "begun", tmp_path / "python", tmp_path / "fleet.yaml"
    python.write_text(f"#!/bin/sh\ntouch {begun}\nexec sleep 1234\n")
    python.chmod(0o700)
    fleet.write_text(f"hosts: {{desk: {{connection: local, python: {python}}}}}\n")
    words = [sys.executable, "-m", "edgesplit", "check", str(fleet)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        while not begun.exists():
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
        told = run.communicate(timeout=20)[1]
    assert (run.returncode, told) == (130, "error: interrupted\n")


def examined(subject: str, **changes: Any) -> Finding:
    found = findings.examined(HERE, {**ANSWER, **changes}, WANTED)
    return next(one for one in found if one.subject == subject)


def test_a_host_that_has_everything_needs_nothing() -> None:
    found = findings.examined(HERE, ANSWER, WANTED)
    assert [(one.ok, one.do) for one in found] == [(True, "")] * 3


@pytest.mark.parametrize(
    ("subject", "changes", "ok", "found", "do"),
    [
        ("packages", {"missing": ["starlette", "x"]}, False, "no starlette, x", "install starlette==1.10.0"),
        ("packages", {"packages": {"torch": "2.9.1"}}, True, "torch 2.9.1 (here 2.13.0)", "install torch==2.13.0"),
        ("disk", {"disk_free": GIB}, True, "1 GiB free", "up to 4 GiB"),
        ("disk", {"disk_free": 2**20}, False, "1 MiB free", "larger disk"),
        ("disk", {"unwritable": "/x: Permission denied"}, False, "written in /x: Permission denied", "`work`"),
        ("memory", {"memory_available": GIB}, True, "1 GiB free", "it allows 4 GiB"),
    ],
)
def test_what_a_host_lacks(subject: str, changes: dict[str, Any], ok: bool, found: str, do: str) -> None:
    finding = examined(subject, **changes)
    assert (finding.ok, finding.found) == (ok, finding.found)
    assert found in finding.found
    assert do in finding.do


def test_python() -> None:
    assert findings.python(HERE, "3.10.0").ok
    assert not findings.python(HERE, "3.9.20").ok
    assert not findings.python(HERE, "what?").ok
    assert "none that can be run" in findings.no_python(HERE, CommandFailed("pi", "run", 127, "sh: not found")).found


@pytest.mark.parametrize(
    ("off", "ok", "found"),
    [
        (0, True, "right"),
        (-0.9, True, "right"),
        (4, True, "right"),
        (60, True, "ahead"),
        (-60, True, "behind"),
        (-1e9, False, "behind"),
    ],
)
def test_clock(off: float, ok: bool, found: str) -> None:
    finding = findings.clock(1e9 + off, 1e9, 1e9 + 0.3)
    assert (finding.ok, finding.do == "") == (ok, found == "right")
    assert found in finding.found


def test_a_data_port_that_is_held_by_something_else_is_open_all_the_same() -> None:
    why = {"desk": "something else answers there"}
    assert findings.data_port(HERE, "in use", why, frozenset({"desk"})).ok
    assert not findings.data_port(HERE, "", why, frozenset({"desk"})).ok
    assert not findings.data_port(HERE, "in use", {"desk": "Connection refused"}, frozenset()).ok
    assert not findings.data_port(HERE, "Permission denied", {}, frozenset()).ok


def meeting(me: str, port: int, peers: dict[str, int], timeout: float = 5.0) -> dict[str, Any]:
    places = {name: (LOCALHOST, port) for name, port in peers.items()}
    return doctor.meet(
        {"me": me, "address": LOCALHOST, "port": port, "token": "t", "peers": places, "timeout": timeout}
    )


def test_hosts_meet_only_whom_they_mean() -> None:
    ports = {"a": free_port(), "b": free_port()}
    said: dict[str, dict[str, Any]] = {}
    other = threading.Thread(target=lambda: said.update(b=meeting("b", ports["b"], {"a": ports["a"]})))
    other.start()
    said["a"] = meeting("a", ports["a"], {"b": ports["b"]})
    other.join()
    nothing = {"taken": "", "missed": {}, "strangers": []}
    assert said == {"a": nothing, "b": nothing}


def test_a_host_that_calls_itself_by_another_s_name_has_missed_it() -> None:
    port = free_port()
    assert meeting("a", port, {"b": port}, 0.3)["missed"] == {"b": "a answers there"}


def test_a_port_where_something_else_answers_and_one_where_nobody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_meeting, "PATIENCE", 0.2)
    with socket.create_server((LOCALHOST, 0)) as server:
        said = meeting("a", free_port(), {"b": server.getsockname()[1], "c": free_port()}, 0.5)
        assert said["strangers"] == ["b"]
        assert said["missed"] == {"b": "something else answers there", "c": "Connection refused"}
        assert meeting("d", server.getsockname()[1], {}, 0.1)["taken"] == "in use"


def inventory(**hosts: HostSpec) -> Inventory:
    return Inventory(hosts=hosts)


@pytest.mark.ssh
def test_every_host_is_asked_and_each_says_what_it_lacks(
    sshd: SshdFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def host(name: str, **changes: Any) -> dict[str, Any]:
        ssh = sshd().target(**changes.pop("ssh", {})).model_dump(mode="json")
        data = {"address": LOCALHOST, "port": free_port()}
        return {"ssh": ssh, "data": data, "python": sys.executable, "work": str(tmp_path / name), **changes}

    monkeypatch.setattr("edgesplit.profiling.checkup.MEETING", 2.0)
    hosts = {
        "good": host("good"),
        "other": host("other"),
        "bare": host("bare", python="/nowhere/python3"),
        "stranger": host("stranger", ssh={"key": str(sshd.keys.pair("stranger"))}),
        "gone": host("gone", ssh={"port": free_port()}),
        "nowrite": host("nowrite", work="/proc/edgesplit", data={"address": "192.0.2.1", "port": 7431}),
    }
    file = tmp_path / "inventory.yaml"
    file.write_text(json.dumps({"hosts": hosts}))
    done = CliRunner().invoke(app, ["check", str(file), "--json"])
    assert done.exit_code == 4
    found = {name: {one["subject"]: one for one in listed} for name, listed in json.loads(done.stdout).items()}
    bad = {name: [subject for subject, one in found[name].items() if not one["ok"]] for name in hosts}
    assert bad == {
        "good": [],
        "other": [],
        "bare": ["python"],
        "stranger": ["login"],
        "gone": ["login"],
        "nowrite": ["disk", "data port"],
    }
    told = {line.removeprefix("error:").strip().partition(":")[0] for line in done.stderr.splitlines()}
    assert told == {"bare", "stranger", "gone", "nowrite"}
    assert "does not let" in found["stranger"]["login"]["found"]
    assert "refused" in found["gone"]["login"]["found"]
    assert all(one["do"] for listed in found.values() for one in listed.values() if not one["ok"])


def test_a_fleet_that_lacks_nothing(tmp_path: Path) -> None:
    specs = {
        name: HostSpec(connection="local", data=DataPlane(port=free_port()), work=str(tmp_path / name))
        for name in ("desk", "shelf")
    }
    hosts = inventory(**specs)
    with connect(hosts) as doors:
        found = check(doors, hosts)
    assert {one.subject for one in found["desk"]} == set(findings.SUBJECTS)
    assert all(one.ok for listed in found.values() for one in listed)
    assert not list(tmp_path.iterdir())
