"""The acceptance test: real runners give the unsplit model's tokens, at every boundary, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from deployments import deployment, unsplit
from models import FAMILIES

pytestmark = pytest.mark.fleet

PROMPT = [40, 7, 99, 140, 23, 200, 81, 17, 64, 5, 120, 33]
COUNT = 12
LAYERS = 4  # blocks: embedding, 4 layers, head


def placements() -> list[tuple[str, ...]]:
    """Every boundary, with one remote stage before or behind it, and stages on three hosts."""
    two = [("desk",) * k + ("shelf",) * (LAYERS + 1 - k) + ("desk",) for k in range(2, LAYERS + 1)]
    early = ("desk", "shelf", *("desk",) * LAYERS)
    three = [
        ("desk", "shelf", "shelf", "attic", "attic", "desk"),
        ("desk", "shelf", "desk", "attic", "shelf", "desk"),  # hosts that hold two stretches
    ]
    return [("desk",) * (LAYERS + 2), *two, early, *three]


@pytest.mark.parametrize("family", FAMILIES)
def test_real_runners_give_the_unsplit_models_tokens_at_every_boundary(family: str, tmp_path: Path) -> None:
    with deployment(tmp_path, family, LAYERS) as made:
        expected, logits = unsplit(tmp_path / "model", PROMPT, COUNT)
        surprises = (-logits.log_softmax(-1)).tolist()
        for placement in placements():
            made.push(*placement)
            choice = made.complete(PROMPT, COUNT, logprobs=1)
            assert choice["token_ids"] == expected, placement
            for place, (token, logprob) in enumerate(zip(expected, choice["logprobs"]["token_logprobs"], strict=True)):
                assert logprob == pytest.approx(-surprises[len(PROMPT) - 1 + place][token], abs=1e-4), placement


def test_several_requests_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    prompts = [PROMPT[: 3 + 2 * k] for k in range(5)]
    with deployment(tmp_path) as made:
        made.push("desk", "desk", "shelf", "attic", "attic", "desk")
        expected = [unsplit(tmp_path / "model", prompt, COUNT)[0] for prompt in prompts]
        with ThreadPoolExecutor(5) as pool:  # more than the plan's concurrency of 2: the rest waits its turn
            answers = list(pool.map(lambda prompt: made.complete(prompt, COUNT)["token_ids"], prompts))
        assert answers == expected


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantised_model_is_as_exact_split_as_whole(scheme: Literal["int8", "int4"], tmp_path: Path) -> None:
    from edgesplit.model.unsplit import greedy

    with deployment(tmp_path, "qwen2", LAYERS, quantization=scheme) as made:
        cargo = made.cargo
        expected = greedy(cargo.checkpoint, lambda: cargo.cut, PROMPT, COUNT, past_end=True)
        for placement in (("desk", "shelf", "shelf", "attic", "attic", "desk"), ("desk",) * (LAYERS + 2)):
            made.push(*placement)
            assert made.complete(PROMPT, COUNT)["token_ids"] == expected, placement
        held = sum(file.stat().st_size for file in (made.folder("shelf") / "shards").iterdir())
        assert held < 0.7 * sum(
            cargo.checkpoint.tensors[key].size for key, at in cargo.checkpoint.places.items() if at in (1, 2)
        )
