"""The verbs of the lab, as far as they go without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgesplit.cli.app import app
from edgesplit.lab import machine

EXAMPLE = str(Path(__file__).parents[2] / "plans" / "lab" / "five.yaml")


@pytest.mark.parametrize(
    "words",
    [("up", EXAMPLE), ("status",), ("down",), ("down", "--all"), ("set", "link", "a", "b", "--loss", "1%"),
     ("set", "host", "a", "--cores", "1"), ("freeze", "a"), ("unfreeze", "a"), ("kill", "a"), ("start", "a"),
     ("unplug", "a"), ("plug", "a")],
)  # fmt: skip
def test_every_verb_says_that_it_needs_root(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(app, ["lab", *words])
    assert done.exit_code == 1
    assert "the lab needs root" in done.stderr
    assert "sudo" in done.stderr


@pytest.mark.parametrize("words", [("set", "link", "a", "b"), ("set", "host", "a")])
def test_a_change_of_nothing_is_a_mistake(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["lab", *words])
    assert done.exit_code == 2
    assert "nothing to change" in done.stderr


def test_down_of_all_asks_first_and_takes_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine, "labs", lambda: ["mine", "hers"])
    monkeypatch.setattr("edgesplit.lab.down.down", gone.append)
    asked = CliRunner().invoke(app, ["lab", "down", "--all"], input="n\n")
    assert (asked.exit_code, gone) == (1, [])
    assert "Take down mine, hers?" in asked.stderr
    assert CliRunner().invoke(app, ["lab", "down", "mine", "--all", "--yes"]).exit_code == 2
    assert CliRunner().invoke(app, ["lab", "down", "--all", "--yes"]).exit_code == 0
    assert gone == ["mine", "hers"]


def test_a_wrong_file_is_told_before_anything_is_asked_of_the_machine(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("name: Lab!\nhosts: {a: {}}\n")
    done = CliRunner().invoke(app, ["lab", "up", str(file)])
    assert done.exit_code == 2
    assert "lab.yaml:1:7: name: expected at most 12 small letters" in done.stderr


def test_a_wrong_name_is_told_as_one_in_the_file() -> None:
    done = CliRunner().invoke(app, ["lab", "up", EXAMPLE, "--name", "Lab!"])
    assert done.exit_code == 2
    assert "name: expected at most 12 small letters" in done.stderr


def test_a_tool_that_is_not_there_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    why = machine.obstacle()
    assert why is not None
    assert "`ip`" in why
    assert "iproute2" in why
