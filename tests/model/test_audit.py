"""What activations give away, measured on the demo's model, which has seen such texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import rings  # noqa: F401 - one thread
import torch
from models import make_checkpoint

from edgesplit.errors import InputError
from edgesplit.model.audit import Audit, _crossing, audit, read_texts
from edgesplit.runner.hidden import Hidden

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "plans" / "demo" / "model"


@pytest.fixture(scope="module")
def found() -> Audit:
    return audit(MODEL, "float32", read_texts(ROOT / "docs" / "primer.md"))


def test_there_is_one_per_boundary(found: Audit) -> None:
    assert [exposure.block for exposure in found.exposures] == list(range(9))
    for exposure in found.exposures:
        assert exposure.nearest is not None
        assert 0 <= exposure.nearest <= 1
        assert 0 <= exposure.probe <= 1
    assert 2 < found.taught / found.tried < 4


def test_an_embedding_is_as_good_as_the_token(found: Audit) -> None:
    assert found.exposures[0].nearest is not None
    assert found.exposures[0].nearest > 0.99


def test_depth_limits_the_nearest_embedding_more_than_a_learned_map(found: Audit) -> None:
    first, middle, last = (found.exposures[block] for block in (0, 4, 8))
    assert first.nearest is not None
    assert last.nearest is not None
    assert last.nearest < 0.5 * first.nearest
    assert middle.probe > (middle.nearest or 0)
    assert last.probe < middle.probe < first.probe


def test_what_is_recovered_is_far_above_guessing(found: Audit) -> None:
    """A pin depth is no secret-keeper."""
    assert 0 < found.guess < 0.1
    assert found.exposures[4].probe > 10 * found.guess


def test_it_is_the_same_every_time(found: Audit) -> None:
    assert audit(MODEL, "float32", read_texts(ROOT / "docs" / "primer.md")) == found


def test_blocks_that_share_caches_are_run_together(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    texts = ["hello there", "some other text", "and one more"]
    alone, together = (audit(tmp_path, "float32", texts, glued=glued) for glued in ((), ((0, 1), (1, 3))))
    assert [exposure.block for exposure in together.exposures] == [3, 4]
    assert together.exposures == alone.exposures[3:]


def test_what_is_sent_along_is_seen_too() -> None:
    texts = [Hidden((torch.zeros(1, tokens, 4), None), True, (torch.ones(1, tokens, 2, 3),)) for tokens in (2, 5)]
    assert [each.shape for each in _crossing(texts)] == [(7, 4), (7, 6)]


def test_texts_are_told_apart_by_lines_or_by_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("one\ntwo\n")
    assert read_texts(file) == ["one", "two"]
    file.write_text("one\nmore\n\ntwo\n")
    assert read_texts(file) == ["one\nmore", "two"]
    with pytest.raises(InputError, match=r"absent cannot be read: No such file or directory$"):
        read_texts(tmp_path / "absent")
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_texts(file)
    with pytest.raises(InputError, match="two texts"):
        audit(MODEL, "float32", ["only one"])
