"""The unsplit model of a family: its checkpoint, its answers, and whether it can be a reference at all.

Must not know: edgesplit.
"""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from families.configs import EOS, PAD, VOCABULARY, tiny

LONG, MIDDLE, SHORT = 11, 7, 3  # tokens of the prompts: longer and shorter than a window
STEPS = 8  # so that the short one passes the window while decoding
LARGEST = 10**7  # parameters
FILES = 4  # of a checkpoint, at least
DISTINCT = 4  # of the tokens of an answer, or other weights are tried
ATTEMPTS = 6
SAME = 1e-2  # what the cached and the uncached answer of one model may differ by, at most


class Upstream(RuntimeError):
    """transformers alone cannot do it; the message says what."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """`logits`: one tensor [rows, vocabulary] per step. `tokens`: per row."""

    logits: tuple[torch.Tensor, ...]
    tokens: tuple[tuple[int, ...], ...]


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(max(PAD, EOS) + 1, VOCABULARY, (length,), generator=generator).tolist()


def first_line(error: BaseException) -> str:
    """What it says, on one line, without the page that may follow."""
    return " ".join(str(error).split("\n\n")[0].split())[:200] or type(error).__name__


# --- making ---

_KINDS = {
    "DynamicLayer": "full",
    "DynamicSlidingWindowLayer": "sliding",
    "DynamicIndexedLayer": "indexed",
    "LinearAttentionLayer": "linear",
    "LinearAttentionAndFullAttentionLayer": "linear and full",
    "LinearAttentionAndSlidingWindowAttentionLayer": "linear and sliding",
    "DummyLayer": "without cache",
}


def layers(model: PreTrainedModel) -> str:
    """How many of which kind, by what they keep; what else is special."""
    text = model.config.get_text_config(decoder=True)
    cache = _generate(model, [prompt(SHORT)]).past_key_values or DynamicCache(config=text)
    entries = getattr(cache, "layers", None) or ["a state"] * text.num_hidden_layers
    words = [f"{count} {kind}" for kind, count in Counter(map(_kind, entries)).items()]
    words += ["experts"] * any("expert" in name for name, _ in model.named_parameters())
    head = model.get_output_embeddings()
    words += ["tied head"] * (head is not None and head.weight is model.get_input_embeddings().weight)
    return ", ".join(words)


def _kind(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    own = getattr(entry, "_layer_type", None) or type(entry).__name__
    return _KINDS.get(type(entry).__name__, own.removesuffix("_attention").replace("_", " "))


def save(family: str, folder: Path) -> None:
    """A checkpoint of the family, its weights in several files with an index. Raises what transformers raises."""
    config = tiny(family)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in _build(config).parameters())
    if size > LARGEST:
        raise Upstream(f"{size} parameters in what should be a tiny form: its config needs a line in configs.py")
    for attempt in range(ATTEMPTS):
        torch.manual_seed(zlib.crc32(family.encode()) + attempt)
        model = _build(config).eval()
        _scatter(model, spread=0.2 * 1.5**attempt)
        if len({*answer(model, [prompt(LONG)]).tokens[0]}) >= DISTINCT:
            break
    model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder, max_shard_size=4 * size // FILES)


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model as its checkpoints hold it: of a language model that is part of a larger one, the larger one."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if kind.config_class is config.sub_configs.get("text_config"):
        return AutoModelForImageTextToText.from_config(config)
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def _scatter(model: PreTrainedModel, spread: float) -> None:
    """Weights so large that greedy answers vary from token to token; embeddings that do not drown the layers."""
    embedding = model.get_input_embeddings().weight
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dim() > 1:
            weight.normal_(std=0.2 if weight is embedding else spread)
        elif weight.is_floating_point():
            weight.add_(torch.randn_like(weight), alpha=0.1)


def load(folder: Path) -> PreTrainedModel:
    """Raises Upstream when transformers does not find the weights that it saved."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise Upstream(f"{type(model).__name__} does not find {missing[0]} in the checkpoint transformers wrote")
    return aligned(model.eval())


def aligned(model: PreTrainedModel) -> PreTrainedModel:
    """Its weights in memory of their own. Mapped from a file they lie where the file has them, and the last bit of a
    product on a CPU depends on where in a cache line its factors begin."""
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()
    return model


# --- answering ---


def answer(model: PreTrainedModel, prompts: Sequence[Sequence[int]], **how: Any) -> Answer:
    """What the unsplit model generates, greedily, for a batch of prompts padded on the left."""
    found = _generate(model, prompts, **how)
    tokens = found.sequences[:, -STEPS:].tolist()
    return Answer(tuple(found.logits), tuple(map(tuple, tokens)))


@torch.no_grad()
def _generate(model: PreTrainedModel, prompts: Sequence[Sequence[int]], **how: Any) -> Any:
    ids, mask = padded(prompts)
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
        output_logits=True,
        return_dict_in_generate=True,
        **how,
    )


def padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(each)) + [*each] for each in prompts])
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
    return ids, mask


@torch.no_grad()
def check(model: PreTrainedModel) -> str:
    """Can it decode with a cache, token by token? A remark where its cached answer is not its uncached one.

    Raises Upstream when it cannot.
    """
    widths: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _model, args, given: widths.append((args[0] if args else given["input_ids"]).shape[1]), with_kwargs=True
    )
    found = answer(model, [prompt(LONG)])
    handle.remove()
    if {*widths[1:]} != {1}:
        raise Upstream("no cache that suffices: `generate` feeds it the whole text at every step")
    text = torch.tensor([[*prompt(LONG), *found.tokens[0][:-1]]])
    apart = (torch.cat(found.logits) - every_logit(model, text, cached=False)[0, LONG - 1 :]).abs().max().item()
    return "" if apart < SAME else "its own cached answer is not its uncached one"


@torch.no_grad()
def every_logit(model: PreTrainedModel, ids: torch.Tensor, cached: bool) -> torch.Tensor:
    """The logits of every position."""
    given: dict[str, Any] = {"use_cache": cached}
    if "position_ids" in inspect.signature(model.forward).parameters:  # as generate does
        given["position_ids"] = torch.arange(ids.shape[1])[None]
    return model(ids, **given).logits
