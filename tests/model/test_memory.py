"""What loading takes, as the kernel counts it, each in a process of its own; a checkpoint of more than 1 GB."""

from __future__ import annotations

from pathlib import Path

import pytest
from cutting import peaks
from loading import measured
from sparse import LAYERS, make_sparse
from splits import manifest_of, ship

from edgesplit.model.checkpoint import open_checkpoint

MOST = 1.05  # of the stage's bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_sparse(tmp_path_factory.mktemp("large") / "model")
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) > 10**9
    return folder


def test_a_stage_is_loaded_in_its_own_memory(folder: Path) -> None:
    (taken,) = measured(folder, "bfloat16", (1, LAYERS))
    assert taken["bytes"] > 9 * 10**8
    assert taken["loaded"] < 0.05 * taken["bytes"]  # mapped, not read
    assert 0.9 * taken["bytes"] < taken["run"] < MOST * taken["bytes"]  # and then every page is there


def test_so_is_one_whose_weights_are_sealed_and_widened(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder, "large", "float32")
    laid = ship(checkpoint, tmp_path).lay_out(manifest_of(checkpoint, tmp_path, ()), 0)
    (taken,) = measured(laid, "float32", (3, LAYERS))
    assert taken["bytes"] > 10**9
    assert taken["loaded"] < MOST * taken["bytes"]
    assert taken["run"] < MOST * taken["bytes"]


def test_two_epochs_hold_what_they_share_once(folder: Path) -> None:
    """The second stage has two blocks of its own; the third none."""
    few, more, none = measured(folder, "float32", (1, 5), (2, 7), (1, 7))
    assert more["bytes"] - few["bytes"] < 0.5 * few["bytes"]
    assert none["bytes"] - more["bytes"] < 0.01 * few["bytes"]  # what every stage has, such as the last norm
    for taken in (few, more, none):
        assert taken["run"] < MOST * taken["bytes"]


def test_the_controller_never_holds_weights(folder: Path, tmp_path: Path) -> None:
    taken = peaks(folder, tmp_path / "hashes.json")
    assert max(taken.values()) < 40 * 2**20


def test_quantising_holds_one_matrix_at_a_time(tmp_path: Path) -> None:
    """The largest, of embedding and head, and its codes: 188 MiB of 461."""
    taken = peaks(make_sparse(tmp_path / "model", layers=4), tmp_path / "hashes.json", "int8")
    assert taken["planned"] < 40 * 2**20
    assert taken["cut"] < 230 * 2**20
