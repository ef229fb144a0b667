"""Labs for tests: `from labs import lab`. A test that takes `lab` brings fleets up by calling it; they end with it.

Without root, sshd, ip or /dev/net/tun such a test is skipped, or fails where EDGESPLIT_REQUIRE_LAB=1.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from edgesplit.lab import machine
from edgesplit.lab.cgroup import hierarchies
from edgesplit.lab.down import down
from edgesplit.lab.lab import Lab
from edgesplit.lab.layout import INTERFACE, PREFIX
from edgesplit.lab.scenario import Scenario

SMALL = {"memory": "128MiB"}  # a host that runs no more than a shell


class LabFactory(Protocol):
    def __call__(self, **scenario: Any) -> Lab:
        """Keywords are keys of a lab file; `hosts` may be names only: then they are SMALL."""


def make_scenario(name: str, **keys: Any) -> Scenario:
    if not isinstance(keys["hosts"], dict):
        keys["hosts"] = dict.fromkeys(keys["hosts"], SMALL)
    return Scenario.model_validate_json(json.dumps({"name": name, **keys}))


def need_lab() -> None:
    """Skip the test where there can be no lab."""
    if why := machine.obstacle():
        if os.environ.get("EDGESPLIT_REQUIRE_LAB") == "1":
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture
def lab() -> Iterator[LabFactory]:
    need_lab()
    names: list[str] = []

    def make(**keys: Any) -> Lab:
        names.append(f"t{os.getpid()}x{len(names)}")  # workers of one test run do not meet
        return Lab.up(make_scenario(names[-1], **keys))

    try:
        yield make
    finally:
        for name in names:
            down(name)
            assert left_of(name) == []


def left_of(name: str) -> list[str]:
    """Whatever this machine still has of a lab."""
    groups = [str(folder) for group in hierarchies().found(PREFIX + name) for folder in group.folders.values()]
    files = [Path("/sys/class/net", INTERFACE + name), machine.BASE / name]
    running = [
        line
        for line in subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True).stdout.splitlines()
        if str(machine.BASE / name) + "/" in line
    ]
    return [*groups, *machine.networks(f"{PREFIX}{name}-"), *(str(file) for file in files if file.exists()), *running]


def on(lab: Lab, host: str, line: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    """Run a shell line on a host, as a person would."""
    return subprocess.run(start_words(lab, host, line), capture_output=True, text=True, timeout=timeout)


def start_words(lab: Lab, host: str, line: str) -> list[str]:
    patience = [
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=2",
        "-o",
        "ServerAliveInterval=1",
        "-o",
        "ServerAliveCountMax=2",
    ]
    return ["ssh", "-F", f"{lab.layout.folder}/ssh_config", *patience, host, line]
