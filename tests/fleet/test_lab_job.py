"""The example of docs/lab.md, as it stands: the whole job over real SSH on five hosts, one of which loses its power."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from labs import left_of, need_lab

from edgesplit.lab.down import down

pytestmark = [pytest.mark.fleet, pytest.mark.ssh, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NAME = f"t{os.getpid()}job"  # in place of `five`: somebody may have that


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The plans, as a user has them, with a lab of our own."""
    need_lab()
    shutil.copytree(ROOT / "plans", tmp_path / "plans", ignore=shutil.ignore_patterns(".edgesplit"))
    for file in (tmp_path / "plans" / "lab").iterdir():
        file.write_text(re.sub(r"^network:.*", "", own(file.read_text()), flags=re.MULTILINE))
    try:
        yield tmp_path
    finally:
        down(NAME)


def own(text: str) -> str:
    return re.sub(r"\bfive\b(?!\.yaml)", NAME, text)


def lines() -> list[list[str]]:
    text = (ROOT / "docs" / "lab.md").read_text()
    return [shlex.split(own(line)) for line in re.findall(r"^\$ (.*)", text, re.MULTILINE)]


def test_the_documented_job_on_five_hosts(folder: Path) -> None:
    watching: subprocess.Popen[str] | None = None
    outputs = {}
    for words in lines():
        command = [sys.executable, "-m", *words]
        if words[-1] == "&":
            watching = subprocess.Popen(command[:-1], cwd=folder, stdout=subprocess.PIPE, text=True)
        elif words[0] == "kill":
            assert watching is not None
            watching.send_signal(signal.SIGINT)
            events = [json.loads(line) for line in watching.communicate(timeout=60)[0].splitlines()]
        else:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
            outputs[" ".join(words[1:3])] = done.stdout
    moves = [event for event in events if event["event"] == "moved"]
    assert moves, events
    assert "shelf" not in [stage["host"] for stage in moves[0]["split"]["stages"]]
    assert f"epoch {moves[-1]['epoch']}" in outputs["status plans/lab/demo.yaml"]
    assert left_of(NAME) == []
