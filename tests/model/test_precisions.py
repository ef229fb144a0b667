"""`edgesplit plan` weighs up precisions: bytes from headers alone, times only where they were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models import make_checkpoint
from workspaces import Desk, lay

from edgesplit.model import shards
from edgesplit.units import parse_size

NAMES = ["float32", "bfloat16", "float16", "int8", "int4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("precisions") / "model", "llama", 4)


@pytest.fixture
def desk(model: Path, tmp_path: Path) -> Desk:
    return lay(tmp_path / "desk", model)


def rows(desk: Desk, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    done = desk.run("plan", "--json", *words)
    assert done.code == code, done.err
    return {row["precision"]: row for row in json.loads(done.out)["precisions"]}


def test_precisions_are_told_when_the_chosen_one_does_not_fit(desk: Desk) -> None:
    for host in ("desk", "shelf"):
        desk.change_host(host, memory=120_000)
    desk.profile()
    found = rows(desk, code=5)
    assert [*found] == NAMES
    assert [name for name, row in found.items() if row["placement"]] == ["bfloat16", "float16", "int8", "int4"]
    assert [name for name, row in found.items() if row["chosen"]] == ["float32"]
    assert found["float32"]["why"].startswith("memory: ")
    weights = [found[name]["weight_bytes"] for name in NAMES]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == 2 * weights[1] == 2 * weights[2]
    shown = desk.run("plan")
    assert shown.code == 5
    assert "float32 (chosen)" in shown.err
    assert "not measured" in shown.err
    assert "a split fits at bfloat16, float16, int8, int4" in shown.hint


def test_times_are_told_of_what_was_measured(desk: Desk) -> None:
    desk.change_plan(quantization="int8")
    desk.profile(desk=5e-3, shelf=5e-3)
    desk.change_plan(quantization=None)
    desk.profile()
    found = rows(desk, "--precisions")
    assert {name for name, row in found.items() if row["measured"]} == {"float32", "int8"}
    assert found["int8"]["time_per_token_seconds"] > found["float32"]["time_per_token_seconds"] > 0
    assert found["bfloat16"]["time_per_token_seconds"] is None
    assert rows(desk) == {}


def test_the_bytes_are_those_of_the_shards(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no weight is read for them."""
    desk.profile()
    monkeypatch.setattr(shards, "_piecewise", None)
    told = rows(desk, "--precisions")
    monkeypatch.undo()
    for scheme in ("int8", "int4"):
        desk.change_plan(quantization=scheme)
        desk.planned()
        done = desk.run("deploy", "--dry-run", "--json")
        assert done.code == 0, done.err
        cut = [file.stat().st_size for file in (desk.cache / "quantised").iterdir()]
        assert len(cut) == 5  # the layers and the head
        assert sum(cut) < told[scheme]["weight_bytes"] + 5 * 4096
        assert told[scheme]["weight_bytes"] - sum(cut) < parse_size("40KiB")  # the embedding is plain


def test_a_model_that_cannot_be_quantised(tmp_path: Path) -> None:
    import torch
    from models import config
    from transformers import AutoModelForCausalLM

    made = config("llama", 2)
    made.hidden_size, made.head_dim = 24, 6
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path / "model")
    desk = lay(tmp_path / "desk", tmp_path / "model")
    desk.profile()
    found = rows(desk, "--precisions")
    assert "cannot be quantised" in found["int8"]["why"]
    assert found["int8"]["weight_bytes"] is None
    desk.change_plan(quantization="int4")
    done = desk.run("profile")
    assert (done.code, done.hint) == (3, "take `quantization` out of the plan")
