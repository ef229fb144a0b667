"""Many sequences on one stage: in one batch, joining and leaving, rolled back, moved elsewhere; shared weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import rings  # noqa: F401 - one thread
import torch
from models import config as small
from models import tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    JambaConfig,
    MambaConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from edgesplit.runner.cache import CacheError, Exported
from edgesplit.runner.stage import Stage

LAYERS = 4
CLOSE = 1e-4
PROMPTS = [[40, 7, 99, 140, 23], [200, 81], [17, 64, 5, 9, 33, 121, 8, 90, 2, 77, 31], [12]]
_SIZES: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def made(family: str) -> PreTrainedConfig:
    """gemma3: windows of 6 tokens that slide; jamba, qwen3_next: state and attention; mamba: state alone."""
    match family:
        case "gemma3":
            kinds = ["sliding_attention", "full_attention"] * 2
            return Gemma3TextConfig(**_SIZES, sliding_window=6, layer_types=kinds)
        case "jamba":
            return JambaConfig(
                **_SIZES, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8, mamba_dt_rank=4
            )
        case "qwen3_next":
            heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
            widths = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "moe_intermediate_size": 16}
            kinds = ["linear_attention", "full_attention"] * 2
            experts = {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16}
            return Qwen3NextConfig(**_SIZES, **heads, **widths, **experts, layer_types=kinds)
        case "mamba":
            return MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=LAYERS, state_size=8, eos_token_id=1)
        case _:
            return small(family, LAYERS)


FAMILIES = ("llama", "gpt2", "mixtral", "gemma3", "jamba", "qwen3_next", "mamba")


def checkpoint(folder: Path, family: str) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(made(family)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2) if weight.dim() > 1 else None
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer().save_pretrained(folder)
    return folder


Chain = tuple[Stage, Stage]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def chain(folder: Path) -> Chain:
    return Stage.load(folder, 0, 2, "float32"), Stage.load(folder, 3, LAYERS + 1, "float32")


class Rider:
    """A sequence on both stages, and what it has produced."""

    def __init__(self, chain: Chain, prompt: Sequence[int]) -> None:
        self.chain, self.tokens = chain, list(prompt)
        self.caches = tuple(stage.sequence() for stage in chain)
        self.logits: list[torch.Tensor] = []
        self._fed = 0

    def feed(self) -> None:
        together([self])


def together(riders: list[Rider]) -> None:
    """Feed each what it was not fed yet, as one batch; pick each its next token."""
    pieces = [rider.tokens[rider._fed :] for rider in riders]
    width = max(map(len, pieces))
    padding = [width - len(piece) for piece in pieces]
    value: Any = torch.tensor([[0] * pad + piece for pad, piece in zip(padding, pieces, strict=True)])
    for number, stage in enumerate(riders[0].chain):
        value = stage.forward([rider.caches[number] for rider in riders], value, padding if any(padding) else None)
    for row, rider in enumerate(riders):
        rider._fed = len(rider.tokens)
        assert all(cache.tokens == rider._fed for cache in rider.caches)
        rider.logits.append(value[row, -1])
        rider.tokens.append(int(value[row, -1].argmax()))


def alone(chain: Chain, prompt: Sequence[int], steps: int) -> Rider:
    rider = Rider(chain, prompt)
    for _ in range(steps):
        rider.feed()
    return rider


def same(left: Rider, right: Rider) -> None:
    assert left.tokens == right.tokens
    for mine, other in zip(left.logits, right.logits, strict=True):
        assert (mine - other).abs().max() < CLOSE


def test_prompts_of_different_lengths_in_one_batch(chain: Chain) -> None:
    riders = [Rider(chain, prompt) for prompt in PROMPTS]
    for _ in range(6):
        together(riders)
    for rider, prompt in zip(riders, PROMPTS, strict=True):
        same(rider, alone(chain, prompt, 6))


def test_sequences_join_and_leave_between_steps(chain: Chain) -> None:
    riders = [Rider(chain, prompt) for prompt in PROMPTS]
    for rider in riders:  # prompts one by one, as they come
        rider.feed()
    groups = [[0, 1], [0, 1, 2], [2, 0, 1], [0, 1, 2, 3], [3, 1], [1, 3], [0, 2], [0, 1, 2, 3], [2]]
    for group in groups:
        together([riders[number] for number in group])
    for number, (rider, prompt) in enumerate(zip(riders, PROMPTS, strict=True)):
        steps = 1 + sum(number in group for group in groups)
        same(rider, alone(chain, prompt, steps))


def test_one_that_is_dropped_leaves_the_others_alone(chain: Chain) -> None:
    riders = [Rider(chain, prompt) for prompt in PROMPTS]
    for _ in range(3):
        together(riders)
    for stage, cache in zip(chain, riders[2].caches, strict=True):
        stage.caches.drop(cache)
    rest = [riders[0], riders[1], riders[3]]
    for _ in range(3):
        together(rest)
    for rider, number in zip(rest, (0, 1, 3), strict=True):
        same(rider, alone(chain, PROMPTS[number], 6))


@pytest.mark.parametrize("company", [[], [1, 2]])
def test_tokens_are_taken_back_to_a_mark(chain: Chain, company: list[int]) -> None:
    """As a rejected guess is, alone or out of a batch."""
    riders = [Rider(chain, PROMPTS[number]) for number in (0, *company)]
    for _ in range(4):
        together(riders)
    rider = riders[0]
    for stage, cache in zip(chain, rider.caches, strict=True):
        stage.caches.mark(cache)
    kept, held = list(rider.tokens), list(rider.logits)
    for wrong in (3, 4):
        for guess in (wrong, 222, 111):
            rider.tokens[-1] = guess
            rider.feed()
        for stage, cache in zip(chain, rider.caches, strict=True):
            stage.caches.crop(cache, 3)
        rider.tokens, rider.logits, rider._fed = list(kept), list(held), len(kept) - 1
    for _ in range(3):
        together(riders)
    same(rider, alone(chain, PROMPTS[0], 7))
    for other, number in zip(riders[1:], company, strict=True):
        same(other, alone(chain, PROMPTS[number], 7))


def test_a_mark_holds_when_a_window_slides_after_it(chain: Chain) -> None:
    rider, prompt = Rider(chain, [7, 40]), [7, 40]
    rider.feed()
    for stage, cache in zip(chain, rider.caches, strict=True):
        stage.caches.mark(cache)
    kept, held = list(rider.tokens), list(rider.logits)
    for _ in range(6):
        rider.feed()
    for stage, cache in zip(chain, rider.caches, strict=True):
        stage.caches.crop(cache, 6)
    rider.tokens, rider.logits, rider._fed = kept, held, len(kept) - 1
    for _ in range(7):
        rider.feed()
    same(rider, alone(chain, prompt, 8))


def test_without_a_mark_only_what_can_be_cut_is_cut(chain: Chain) -> None:
    rider = alone(chain, PROMPTS[2], 3)
    tokens = [cache.tokens for cache in rider.caches]
    plain = chain[0].model.config.model_type in ("llama", "gpt2", "mixtral")
    if not plain:
        with pytest.raises(CacheError, match="mark"):
            chain[0].caches.crop(rider.caches[0], 2)
        assert [cache.tokens for cache in rider.caches] == tokens
        return
    for stage, cache in zip(chain, rider.caches, strict=True):
        stage.caches.crop(cache, 2)
    rider._fed -= 2
    del rider.tokens[-1]
    rider.feed()
    assert (rider.logits[-1] - alone(chain, PROMPTS[2], 3).logits[-1]).abs().max() < CLOSE
    with pytest.raises(CacheError, match="cannot be taken back"):
        chain[0].caches.crop(rider.caches[0], 99)


@pytest.mark.parametrize("boundary", [1, 2, 3, 4])
def test_a_sequence_moves_to_stages_that_are_cut_elsewhere(folder: Path, chain: Chain, boundary: int) -> None:
    """What both stages exported, through bytes, fills stages of any other cut; the sequence goes on exactly."""
    riders = [Rider(chain, PROMPTS[0]), Rider(chain, PROMPTS[2])]
    for _ in range(4):
        together(riders)
    stayed, moved = riders[0], riders[1]
    other = (Stage.load(folder, 0, boundary, "float32"), Stage.load(folder, boundary + 1, LAYERS + 1, "float32"))
    exported = [stage.caches.export(cache) for stage, cache in zip(chain, moved.caches, strict=True)]
    whole = Exported.from_bytes((exported[0] | exported[1]).to_bytes())
    moved.chain = other
    moved.caches = tuple(stage.caches.adopt(whole) for stage in other)
    for _ in range(4):
        moved.feed()
        stayed.feed()
    same(moved, alone(chain, PROMPTS[2], 8))
    same(stayed, alone(chain, PROMPTS[0], 8))


def test_what_is_no_exported_cache_is_refused(chain: Chain) -> None:
    for data in (b"", b"\0" * 8, b"\x05\0\0\0\0\0\0\0hello", b"x" * 100):
        with pytest.raises(CacheError, match="not an exported cache"):
            Exported.from_bytes(data)
    rider = alone(chain, PROMPTS[0], 2)
    with pytest.raises(CacheError, match="lacks layer"):
        chain[1].caches.adopt(chain[0].caches.export(rider.caches[0]))


# --- weights that stages of one process share ---


def places(stage: Stage) -> dict[str, int]:
    """Where each weight of a stage lies."""
    return {name: weight.data_ptr() for name, weight in stage.model.named_parameters(remove_duplicate=False)}


def test_stages_share_the_blocks_they_have_in_common(folder: Path) -> None:
    """Layers, embedding and head, tied or not; what a donor has not is loaded; the answers stay the same."""
    donors = Stage.load(folder, 0, 3, "float32"), Stage.load(folder, LAYERS, LAYERS + 1, "float32")
    held = {place for donor in donors for place in places(donor).values()}
    fresh = Stage.load(folder, 0, LAYERS + 1, "float32")
    common = set(places(Stage.load(folder, 1, 1, "float32"))) - {name for name in places(fresh) if ".0." in name}
    for first, last in [(0, 2), (2, 3), (1, LAYERS + 1), (LAYERS, LAYERS + 1), (0, LAYERS + 1)]:
        stage = Stage.load(folder, first, last, "float32", donors=donors)
        mine = {name: place for name, place in places(stage).items() if name not in common}
        assert mine
        assert set(mine.values()) <= held
    partly = Stage.load(folder, 0, LAYERS + 1, "float32", donors=donors[:1])
    assert len(set(places(partly).values()) & held) < len(set(places(partly).values()))
    for stage in (partly, Stage.load(folder, 0, LAYERS + 1, "float32", donors=donors)):
        answers = [each.forward(each.sequence(), torch.tensor([PROMPTS[2]])) for each in (stage, fresh)]
        assert torch.equal(*answers)
