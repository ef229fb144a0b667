"""What a family's blocks cost when they really run, against what was foretold without a weight.

Bytes to the byte: weights, caches, and what crosses each boundary. Arithmetic within TOLERANCE.
Must not know: how it was foretold.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedConfig

from edgesplit.model.blocks import EMBEDDING, Block
from edgesplit.runner.anatomy import cache_argument, examine
from edgesplit.runner.cache import Sequence as Cached
from edgesplit.runner.hidden import Hidden
from edgesplit.runner.sealed import SealedCaches
from edgesplit.runner.stage import Stage
from families.outcome import Outcome
from families.subject import Chain, Subject
from families.upstream import prompt

# Tokens of each forward of a sequence: prompts shorter and longer than windows and groups, pieces behind a context, and
# decode steps at several contexts.
SEQUENCES = ((8, 1, 1), (20, 1, 30, 1), (40, 1, 1), (101, 1))
TOLERANCE = 0.02  # of a block's arithmetic in one forward


@dataclass(frozen=True)
class Row:
    """`kind`: weights, cache, sent or flops."""

    kind: str
    block: str
    when: str
    foretold: int
    counted: int

    @property
    def error(self) -> float:
        """Relative; of nothing counted, nothing may be foretold."""
        return abs(self.foretold - self.counted) / self.counted if self.counted else float(self.foretold != 0)

    def __str__(self) -> str:
        return f"{self.kind} of {self.block}{self.when and ', '}{self.when}: {self.counted}, not {self.foretold}"


def in_bytes(subject: Subject) -> Outcome:
    """Weights per block, caches per layer, and what leaves each boundary."""
    return _judged([*every_byte(subject)], 0)


def in_flops(subject: Subject) -> Outcome:
    """Of each block, in prompts, pieces and decode steps."""
    return _judged([*every_flop(subject)], TOLERANCE)


def every_byte(subject: Subject) -> Iterator[Row]:
    yield from weights(subject)
    for chain in (subject.chain(), subject.chain(*subject.legal)):
        for steps in _sequences(subject):
            yield from bytes_of(subject, chain, steps)


def every_flop(subject: Subject) -> Iterator[Row]:
    for steps in _sequences(subject):
        yield from flops(subject, steps)


def _judged(rows: Sequence[Row], tolerance: float) -> Outcome:
    wrong = [row for row in rows if row.error > tolerance]
    more = f", and {len(wrong) - 1} more of {len(rows)}" if len(wrong) > 1 else ""
    return Outcome(None, f"{max(wrong, key=lambda row: row.error)}{more}") if wrong else Outcome(0.0)


def _sequences(subject: Subject) -> Iterator[Sequence[int]]:
    for steps in SEQUENCES:
        pieces = subject.checkpoint.chain.chunked
        yield steps if pieces else [steps[0], *(1 for step in steps[1:] if step == 1)]


def weights(subject: Subject) -> Iterator[Row]:
    """Against what safetensors finds in the shards, one per block."""
    chain, cut = subject.checkpoint.chain, subject.cut
    foretold = [*((block.name, block.weight_bytes) for block in chain.blocks), ("common", chain.common_bytes)]
    for (name, size), shard in zip(foretold, (*cut.blocks, cut.common), strict=True):
        found = load(b"".join(shard.chunks()))
        yield Row("weights", name, "", size, sum(tensor.nbytes for tensor in found.values()))


# --- bytes of a run ---


def bytes_of(subject: Subject, chain: Chain, steps: Sequence[int]) -> Iterator[Row]:
    """Of each layer's cache, and of what the stages hand on."""
    blocks, sequence, seen = subject.checkpoint.chain.blocks, chain.sequence(), 0
    for tokens in steps:
        value: Any = torch.tensor([prompt(tokens)])
        seen += tokens
        for stage, cached in zip(chain.stages, sequence, strict=True):
            value = stage.forward(cached, value)
            if isinstance(value, Hidden):
                last = blocks[stage.range.last]
                yield Row("sent", last.name, f"{tokens} of {seen}", last.output_bytes(seen) * tokens, sent(value))
        yield from _cached(blocks, chain, sequence, seen)


def sent(value: Hidden) -> int:
    return sum(tensor.nbytes for tensor in (*value.tensors, *value.carried) if tensor is not None)


def _cached(blocks: Sequence[Block], chain: Chain, sequence: Sequence[Cached], seen: int) -> Iterator[Row]:
    found, when = Counter[str](), f"{seen} tokens"
    for stage, cached in zip(chain.stages, sequence, strict=True):
        found.update(held(stage, cached))
    if "" not in found:
        for block in blocks:
            yield Row("cache", block.name, when, block.cache_bytes(seen), found[block.name])
    elif len(chain.stages) == 1:
        yield Row("cache", "all layers", when, sum(block.cache_bytes(seen) for block in blocks), found[""])


def held(stage: Stage, sequence: Cached) -> dict[str, int]:
    """Bytes of a sequence's cache by block, or by "" where the cache does not tell layers apart."""
    rows = sequence.rows
    assert rows is not None
    if isinstance(stage.caches, SealedCaches):
        return {"": _bytes(rows.cache)}
    found: Counter[str] = Counter()
    entries = rows.cache.layers
    for number, entry in enumerate(entries):  # a layer of some families has several
        found[f"layers.{number * stage.range.layers // len(entries)}"] += _bytes(entry)
    for path, value in rows.kept.items():
        if layer := re.search(r"\.(\d+)\.", path):
            found[f"layers.{layer[1]}"] += _bytes(value)
    return found


def _bytes(value: Any) -> int:
    """Of the tensors in it, each counted once; a single number is none."""
    tensors = {(each.data_ptr(), each.shape): each.nbytes for each in _tensors(value) if each.numel() > 1}
    return sum(tensors.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)
    elif hasattr(value, "__dict__") and not isinstance(value, PreTrainedConfig):
        yield from _tensors(vars(value))


# --- arithmetic ---


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _grouped(tokens: Any, experts: Any, *_: Any, **__: Any) -> int:
    return int(2 * tokens[0] * tokens[1] * experts[-1])


# Kernels that torch's counter does not know: the CPU's attention, and experts' products.
UNKNOWN = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._grouped_mm: _grouped,
    torch.ops.transformers.grouped_mm_fallback: _grouped,
}


def flops(subject: Subject, steps: Sequence[int]) -> Iterator[Row]:
    """Of the unsplit model with its weights, by torch's counter; what is outside the layers, together."""
    model, blocks = subject.whole.requires_grad_(False), subject.checkpoint.chain.blocks
    prefix = f"{type(model).__name__}.{examine(model).layers}"
    stage = subject.stage(0, subject.blocks - 1)
    cache, seen = stage.caches.gather([stage.sequence()]).cache, 0
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    for tokens in steps:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
            model(
                input_ids=torch.tensor([prompt(tokens)]), **last, **{cache_argument(type(model)): cache}, use_cache=True
            )
        found, rest = counter.get_flop_counts(), counter.get_total_flops()
        when = f"{tokens} behind {seen}"
        for number, block in enumerate(blocks[1:-1]):
            counted = sum(found.get(f"{prefix}.{number}", {}).values())
            rest -= counted
            yield Row("flops", block.name, when, _foretold(block, tokens, seen), counted)
        outside = sum(_foretold(block, tokens, seen) for block in (blocks[0], blocks[-1]))
        yield Row("flops", f"{EMBEDDING} and {blocks[-1].name}", when, outside, rest)
        seen += tokens


def _foretold(block: Block, tokens: int, context: int) -> int:
    one = context > 0 and tokens == 1
    return block.decode_flops(context) if one else block.prefill_flops(tokens, context)
