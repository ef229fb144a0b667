"""What a family's blocks cost when they really run, beside what was foretold without a weight: one row per number.

Must not know: how it was foretold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from families.checks import held
from families.subject import Subject
from families.upstream import prompt
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from edgesplit.model.blocks import EMBEDDING
from edgesplit.runner.anatomy import cache_argument, examine
from edgesplit.runner.stage import Hidden

# Tokens of each forward of a sequence: prompts shorter and longer than windows and groups, pieces behind a context, and
# decode steps at several contexts.
SEQUENCES = ((8, 1, 1), (20, 1, 30, 1), (40, 1, 1), (101, 1))


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


def rows(subject: Subject) -> Iterator[Row]:
    yield from weights(subject)
    for steps in SEQUENCES:
        pieces = steps if subject.checkpoint.chain.chunked else [steps[0], *(1 for step in steps[1:] if step == 1)]
        yield from bytes_of(subject, pieces)
        yield from flops(subject, pieces)


def weights(subject: Subject) -> Iterator[Row]:
    """Against the headers of the shards, one per block."""
    chain, cut = subject.checkpoint.chain, subject.cut
    foretold = [*((block.name, block.weight_bytes) for block in chain.blocks), ("common", chain.common_bytes)]
    for (name, size), shard in zip(foretold, (*cut.blocks, cut.common), strict=True):
        yield Row("weights", name, "", size, sum(tensor.size for tensor in shard.tensors))


# --- bytes of a run ---


def bytes_of(subject: Subject, steps: Sequence[int]) -> Iterator[Row]:
    """Of each layer's cache, and of what the stages hand on where the chain is cut at every legal place."""
    chain, blocks = subject.chain(*subject.legal), subject.checkpoint.chain.blocks
    sequence, seen = chain.sequence(), 0
    for tokens in steps:
        value: Any = torch.tensor([prompt(tokens)])
        seen += tokens
        for stage, cached in zip(chain.stages, sequence, strict=True):
            value = stage.forward(cached, value)
            if isinstance(value, Hidden):
                last = blocks[stage.range.last]
                yield Row("sent", last.name, f"{tokens} of {seen}", last.output_bytes(seen) * tokens, sent(value))
        found: Counter[str] = Counter()
        for stage, cached in zip(chain.stages, sequence, strict=True):
            found.update(held(stage, cached))
        if "" in found:  # a cache that does not tell the layers apart, whole in every stage
            continue
        for block in blocks:
            yield Row("cache", block.name, f"{seen}", block.cache_bytes(seen), found[block.name])


def sent(value: Hidden) -> int:
    return sum(tensor.nbytes for tensor in (*value.tensors, *value.carried) if tensor is not None)


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
    for tokens in steps:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
            model(input_ids=torch.tensor([prompt(tokens)]), **{cache_argument(type(model)): cache}, use_cache=True)
        found, rest = counter.get_flop_counts(), counter.get_total_flops()
        when = f"{tokens} behind {seen}"
        for number, block in enumerate(blocks[1:-1]):
            counted = sum(found.get(f"{prefix}.{number}", {}).values())
            rest -= counted
            yield Row("flops", block.name, when, _foretold(block, tokens, seen), counted)
        outside = sum(_foretold(block, tokens, seen) for block in (blocks[0], blocks[-1]))
        yield Row("flops", f"{EMBEDDING} and {blocks[-1].name}", when, outside, rest)
        seen += tokens


def _foretold(block: Any, tokens: int, context: int) -> int:
    one = context and tokens == 1
    return int(block.decode_flops(context) if one else block.prefill_flops(tokens, context))
