"""What activations give away, measured on the demo's model, which has seen such texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import rings  # noqa: F401 - one thread
from encoders import LAYERS, save_bert

from edgesplit.errors import InputError
from edgesplit.model.audit import Exposure, audit, read_texts

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "plans" / "demo" / "model"


@pytest.fixture(scope="module")
def exposures() -> list[Exposure]:
    return audit(MODEL, "float32", read_texts(ROOT / "docs" / "primer.md"))


def test_there_is_one_per_boundary(exposures: list[Exposure]) -> None:
    assert [exposure.block for exposure in exposures] == list(range(9))
    for exposure in exposures:
        assert 0 <= exposure.nearest <= 1
        assert 0 <= exposure.probe <= 1


def test_an_embedding_is_as_good_as_the_token(exposures: list[Exposure]) -> None:
    assert exposures[0].nearest > 0.99


def test_depth_limits_the_nearest_embedding_more_than_a_learned_map(exposures: list[Exposure]) -> None:
    assert exposures[-1].nearest < 0.5 * exposures[0].nearest
    assert exposures[4].probe > exposures[4].nearest
    assert exposures[4].probe > 0.3  # far above guessing: the pin depth is no secret-keeper


def test_it_is_the_same_every_time(exposures: list[Exposure]) -> None:
    assert audit(MODEL, "float32", read_texts(ROOT / "docs" / "primer.md")) == exposures


def test_an_encoder_is_audited_too(tmp_path: Path) -> None:
    found = audit(save_bert(tmp_path / "model"), "float32", [f"this is text {number}" for number in range(4)])
    assert [exposure.block for exposure in found] == [*range(LAYERS + 1)]
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        audit(tmp_path / "model", "float32", ["one", "two"])


def test_texts_are_told_apart_by_lines_or_by_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("one\ntwo\n")
    assert read_texts(file) == ["one", "two"]
    file.write_text("one\nmore\n\ntwo\n")
    assert read_texts(file) == ["one\nmore", "two"]
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(tmp_path / "absent")
    with pytest.raises(InputError, match="two texts"):
        audit(MODEL, "float32", ["only one"])
