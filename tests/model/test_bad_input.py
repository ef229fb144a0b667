"""Bad input through the real command line: the exit code of errors.py, what is wrong, what to do, nothing changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from checkpoints import config
from models import make_checkpoint
from transformers.utils import logging
from workspaces import Desk, edgesplit, lay


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable_progress_bar()
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def desk(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lay(tmp_path / "desk", model)


# --- files that make no sense


class Case(NamedTuple):
    """What is done to a desk, the verb, and what the CLI must say: exit code, parts of the error, parts of the hint."""

    spoil: Callable[[Desk], object]
    verb: str
    code: int
    error: tuple[str, ...]
    hint: tuple[str, ...]


def text(change: Callable[[str], str]) -> Callable[[Desk], object]:
    return lambda desk: desk.plan.write_text(change(desk.plan.read_text()))


def plan(**changes: object) -> Callable[[Desk], object]:
    return lambda desk: desk.change_plan(**changes)


def profiled(change: Callable[[Desk], object]) -> Callable[[Desk], object]:
    """The change, then a profile that knows of it."""
    return lambda desk: (change(desk), desk.profile())


def split(change: Callable[[Desk], object]) -> Callable[[Desk], object]:
    """Profile and split, then a change they do not know of."""
    return lambda desk: (desk.planned(), change(desk))


def truncated(desk: Desk) -> None:
    folder = shutil.copytree(desk.read(desk.plan)["model"], desk.folder / "model")
    file = folder / "model-00002-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    desk.change_plan(model="model")


def of_another_kind(desk: Desk) -> None:
    config(shutil.copytree(desk.read(desk.plan)["model"], desk.folder / "model"), model_type="clip")
    desk.change_plan(model="model")


def no_folder_for_the_cache(desk: Desk) -> None:
    desk.profile()
    desk.change_plan(name="other")  # its cache is another folder ...
    shutil.copytree(desk.folder / ".edgesplit" / "tiny", desk.cache)
    (desk.cache / "split.json").mkdir()  # ... in which a file cannot be written


WORKLOAD = {"prompt_tokens": 20, "new_tokens": 16, "max_context": 128}
CASES = {
    # files
    "unknown key": Case(text(lambda s: s.replace('"entry"', '"entrie"')), "plan", 2, (
        "plan.yaml:1:1: entry: required", "entrie: unknown key; did you mean 'entry'?"), ("example.yaml",)),
    "wrong type": Case(plan(api={"port": "http"}), "plan", 2, (
        "plan.yaml:1:", "api.port: expected a whole number, found 'http'"), ("example.yaml",)),
    "duplicate key": Case(text(lambda s: s.replace("{", '{"name": "a", ', 1)), "plan", 2, (
        "name: given twice, first on line 1",), ("example.yaml",)),
    "no YAML": Case(text(lambda _: "name: [\n"), "plan", 2, (
        "plan.yaml:2:1: not YAML: a value is missing here",), ("bracket",)),
    "binary": Case(lambda desk: desk.plan.write_bytes(b"\x00\xff"), "plan", 2, ("not UTF-8 text",), ("UTF-8",)),
    "absent plan": Case(lambda desk: desk.plan.unlink(), "plan", 2, ("plan.yaml: No such file",), ("path of a YAML",)),
    "absent inventory": Case(plan(inventory="no.yaml"), "plan", 2, ("no.yaml: No such file",), ("path of a YAML",)),
    "no inventory": Case(plan(inventory=None), "plan", 2, ("names no inventory",), ("-i FILE",)),
    "entry unknown": Case(plan(entry="attic"), "plan", 2, ("no host attic in",), ("desk, shelf",)),
    "entry untrusted": Case(plan(entry="shelf"), "plan", 2, ("shelf is not trusted",), ("trusted: true",)),
    "port taken twice": Case(lambda desk: [desk.change_host(host, data={"port": 7000}) for host in ("desk", "shelf")],
        "plan", 2, ("hosts desk and shelf share", "127.0.0.1:7000"), ("example.yaml",)),
    # models
    "absent model": Case(plan(model="nowhere"), "profile", 3, ("no model folder", "nowhere"), ("hub id",)),
    "hub out of reach": Case(plan(model="nobody/nothing"), "profile", 3, (
        "nobody/nothing is not in the local cache", "hub is out of reach"), ("network",)),
    "truncated weights": Case(truncated, "profile", 3, (
        "model-00002-of-00004.safetensors is truncated", "1000 bytes"), ("download",)),
    "no language model": Case(of_another_kind, "profile", 3, ("several models in one",), ("",)),
    "context too long": Case(plan(workload={"max_context": 4096}), "profile", 2, (
        "workload.max_context is 4096", "512 positions"), ("at most 512",)),
    # wishes nobody can fulfil
    "pin of no block": Case(profiled(plan(pins=[{"blocks": ["layers.9"]}])), "plan", 2, (
        "plan.yaml: pins: no block 'layers.9'", "layers.0 to layers.3"), ("example.yaml",)),
    "pin to no host, not measured": Case(plan(pins=[{"blocks": ["head"], "to": "attic"}]), "profile", 2, (
        "pins: no host attic",), ("desk, shelf",)),
    "pin to no host": Case(profiled(plan(pins=[{"blocks": ["head"], "to": "attic"}])), "plan", 2, (
        "pins: no host attic",), ("desk, shelf",)),
    "pin of the head elsewhere": Case(profiled(plan(pins=[{"blocks": ["head"], "to": "shelf"}])), "plan", 2, (
        "head cannot be on shelf",), ("always on the entry desk",)),
    "pins that clash": Case(profiled(plan(pins=[{"blocks": ["layers.1"], "to": "shelf"}, {"blocks": ["layers.0-1"]}])),
        "plan", 2, ("layers.1 cannot be on trusted",), ("both pins allow",)),
    "too little memory": Case(
        profiled(lambda desk: [desk.change_host(host, memory="90KiB") for host in ("desk", "shelf")]), "plan", 5, (
        "memory: the model needs", "180 KiB", "desk 90 KiB (its `memory`)"), ("allow a host more memory",)),
    "too little memory at the entry": Case(profiled(lambda desk: desk.change_host("desk", memory=1024)), "plan", 5, (
        "embedding, head need ", "desk allows 1 KiB"), ("allow a host more memory",)),
    "a load nobody bears": Case(profiled(plan(workload={**WORKLOAD, "rate": 1000})), "plan", 5, ("load",), ("",)),
    # verbs out of order
    "no profile": Case(lambda _: None, "plan", 6, ("not measured yet",), ("edgesplit profile ",)),
    "no profile to deploy": Case(lambda _: None, "deploy", 6, ("not measured yet",), ("edgesplit profile ",)),
    "no split": Case(Desk.profile, "deploy", 6, ("no split was planned yet",), ("edgesplit plan ",)),
    "plan changed": Case(split(plan(objective={"latency": 2})), "deploy", 6, (
        "the plan changed",), ("edgesplit plan ",)),
    "inventory changed": Case(split(lambda desk: desk.change_host("shelf", memory=10**9)), "deploy", 6, (
        "the inventory changed",), ("edgesplit plan ",)),
    "measured again": Case(split(lambda desk: desk.profile(shelf=0.002)), "deploy", 6, (
        "the profile changed",), ("edgesplit plan ",)),
    "another workload": Case(split(plan(workload=WORKLOAD)), "plan", 6, (
        "the profile was measured for another model, precision, workload",), ("edgesplit profile ",)),
    "another interpreter": Case(split(lambda desk: desk.change_host("desk", python="python3")), "deploy", 6, (
        "the profile was measured for another",), ("edgesplit profile ",)),
    "damaged profile": Case(split(lambda desk: (desk.cache / "profile-float32.json").write_text("{")), "plan", 6, (
        "profile-float32.json is damaged",), ("edgesplit profile ",)),
    "damaged split": Case(split(lambda desk: (desk.cache / "split.json").write_text("[]")), "deploy", 6, (
        "split.json is damaged",), ("edgesplit plan ",)),
    "no room for notes": Case(no_folder_for_the_cache, "plan", 1, (
        "split.json cannot be written: Is a directory",), ("put the plan where you may write",)),
    # nothing there
    "status of nothing": Case(lambda _: None, "status", 8, ("tiny does not serve",), ("edgesplit deploy ",)),
    "watch nothing": Case(split(lambda _: None), "watch", 8, ("tiny is not deployed",), ("edgesplit deploy ",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake(desk: Desk, name: str) -> None:
    case = CASES[name]
    case.spoil(desk)
    with desk.unchanged():
        done = desk.run(case.verb, *(["--yes"] if case.verb == "deploy" else []))
    assert (done.code, done.out) == (case.code, "")
    assert [part for part in case.error if part not in done.error] == []
    assert [part for part in case.hint if part not in done.hint] == []
    assert done.hint
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["plna", "x"], "No such command 'plna'. Did you mean 'plan'?", "edgesplit --help"),
        (["plan"], "Missing argument 'PLAN'.", "edgesplit plan --help"),
        (["plan", "x", "--jsno"], "No such option: --jsno (Possible options: --json)", "edgesplit plan --help"),
        (["--nope"], "No such option: --nope", "edgesplit --help"),
        (["generate", "x"], "Missing argument 'PROMPT'.", "edgesplit generate --help"),
        (["generate", "x", "y", "-n", "0"], "Input should be greater than or equal to 1", "edgesplit generate --help"),
    ],
)
def test_a_command_line_that_makes_no_sense(words: list[str], error: str, hint: str) -> None:
    done = edgesplit(*words)
    assert (done.code, done.out) == (2, "")
    assert error in done.error
    assert hint in done.hint
