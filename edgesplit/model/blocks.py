"""The chain of blocks (the paper's S_1..S_n, eq. 2) and what each costs.

Must not know: torch, files, hosts. checkpoint.py reads a chain off a checkpoint; here it is only a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Literal

from edgesplit.values import Value

EMBEDDING = "embedding"
HEAD = "head"
COMMON = -1  # in place of a block number: weights that every stage holds
_LAYERS = re.compile(r"^layers\.(\d+)(?:-(\d+))?$")


class Block(Value):
    """The smallest piece that moves. Sizes are bytes in memory at the plan's dtype."""

    name: str  # "embedding", "layers.0", ..., "head"
    kind: Literal["embedding", "layer", "head"]
    weight_bytes: int
    kv_bytes_per_token: int  # KV cache, per token of context and sequence
    state_bytes: int  # state of constant size, per sequence
    flops_per_token: int  # multiply-adds count two; attention over the context not included
    output_bytes_per_token: int  # what crosses the boundary behind this block


class Chain(Value):
    """embedding, layers.0 .. layers.n-1, head.

    `common_bytes`: small weights (norms, rotary tables) that every stage holds. The head of a model with tied
    embeddings weighs nothing: the entry host, which holds both, holds the matrix once.
    """

    model: str  # as the plan names it
    architecture: str
    dtype: str
    blocks: tuple[Block, ...]
    common_bytes: int
    max_context: int | None
    checkpoint: str  # digest of the config and of every file's header

    @property
    def layers(self) -> int:
        return len(self.blocks) - 2

    @property
    def weight_bytes(self) -> int:
        return sum(block.weight_bytes for block in self.blocks) + self.common_bytes

    def select(self, name: str) -> range:
        """Block numbers of a name or a range such as "layers.0-4". Raises ValueError saying what is legal."""
        if name == EMBEDDING:
            return range(1)
        if name == HEAD:
            return range(len(self.blocks) - 1, len(self.blocks))
        match = _LAYERS.match(name)
        if match is not None:
            first = int(match.group(1))
            last = int(match.group(2) or first)
            if first <= last < self.layers:
                return range(first + 1, last + 2)
        raise ValueError(
            f"no block {name!r} in this model; it has {EMBEDDING}, layers.0 to layers.{self.layers - 1} and {HEAD} "
            "(ranges as layers.0-3)"
        )


def name_blocks(numbers: Iterable[int], total: int) -> str:
    """Block numbers as people read them: 0,1,2 of 10 -> "embedding, layers.0-1"."""
    chosen = sorted(set(numbers))
    layers = [number - 1 for number in chosen if 0 < number < total - 1]
    words = [EMBEDDING] if 0 in chosen else []
    for _, neighbours in groupby(enumerate(layers), key=lambda place: place[1] - place[0]):  # constant along a run
        run = [layer for _, layer in neighbours]
        words.append(f"layers.{run[0]}" + (f"-{run[-1]}" if len(run) > 1 else ""))
    return ", ".join([*words, *([HEAD] if total - 1 in chosen else [])])
