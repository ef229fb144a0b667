"""The chain of blocks: embedding, decoder layers, head. What each costs, and how people name them.

Must not know: files, hosts, PyTorch. What is measured of a checkpoint is only a value here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Literal

from edgesplit.values import Value

EMBEDDING = "embedding"
HEAD = "head"
VISION = "vision"  # the embedding's other name, where a vision tower is in it
COMMON = -1  # in place of a block number: weights that every stage holds
_LAYERS = re.compile(r"^layers\.(\d+)(?:-(\d+))?$")


class Flops(Value):
    """The arithmetic of one forward; a multiplication and an addition count two.

    A forward of q tokens that sees k positions, its own among them, and e condensed entries takes
    fixed + token q + position k + pair q k + entry q e + group n + groups n^2, where q tokens begin n groups of
    `group_tokens` (linear attention and state-space layers pad a prompt to whole groups).
    """

    fixed: int = 0
    token: int = 0
    position: int = 0
    pair: int = 0
    entry: int = 0
    group: int = 0
    groups: int = 0
    group_tokens: int = 1

    def of(self, tokens: int, positions: int, entries: int) -> int:
        """q tokens that see k `positions` and e `entries`."""
        begun = -(-tokens // self.group_tokens)
        alone = self.fixed + self.token * tokens + self.group * begun + self.groups * begun**2
        return alone + positions * (self.position + self.pair * tokens) + self.entry * tokens * entries


class Condensed(Value):
    """What a layer makes of the tokens that it does not keep as they are: an entry for every `every` of them; the rest
    waits."""

    every: int
    entry_bytes: int
    rest_bytes: int  # per token that waits

    def bytes_of(self, tokens: int) -> int:
        """Held once so many tokens are seen."""
        return tokens // self.every * self.entry_bytes + tokens % self.every * self.rest_bytes

    def bytes_until(self, tokens: int) -> int:
        """At least as many as at any time until so many tokens are seen."""
        return tokens // self.every * self.entry_bytes + min(tokens, self.every - 1) * self.rest_bytes


class Block(Value):
    """The smallest piece that moves. Sizes are bytes in memory at the plan's precision; caches are per sequence.

    `kv_tokens_max`: of so many tokens at most, the last ones, the layer keeps and sees keys and values (a sliding
    window); None: of all. The decode step's arithmetic is of one token.
    """

    name: str  # "embedding", "layers.0", ..., "head"
    kind: Literal["embedding", "layer", "head"]
    weight_bytes: int
    kv_bytes_per_token: int
    kv_tokens_max: int | None = None
    state_bytes: int  # of constant size
    condensed: tuple[Condensed, ...] = ()
    flops_per_token: int  # a decode step's, whatever the context
    flops_per_position: int = 0  # a decode step's, per position it sees
    flops_per_entry: int = 0  # a decode step's, per condensed entry
    prefill: Flops = Flops()  # of a prompt, or its first piece
    further: Flops | None = None  # of its other pieces; None where a prompt comes whole
    output_bytes_per_token: int  # what crosses the boundary behind this block; behind the head, the logits
    output_bytes_per_position: int = 0  # beside that, per position a token sees: which of them the next layers look at
    output_positions_max: int | None = None

    def cache_bytes(self, tokens: int) -> int:
        """Held for a sequence of so many tokens."""
        return self._kept(tokens) + sum(part.bytes_of(tokens) for part in self.condensed)

    def cache_bytes_until(self, tokens: int) -> int:
        """The most that a sequence holds on its way to so many tokens."""
        return self._kept(tokens) + sum(part.bytes_until(tokens) for part in self.condensed)

    def _kept(self, tokens: int) -> int:
        return self.kv_bytes_per_token * _capped(tokens, self.kv_tokens_max) + self.state_bytes

    def output_bytes(self, positions: int) -> int:
        """What crosses the boundary for one token that sees so many positions."""
        seen = _capped(positions, self.output_positions_max)
        return self.output_bytes_per_token + self.output_bytes_per_position * seen

    def decode_flops(self, context: int) -> int:
        """Of one token behind a context of so many."""
        seen = self.flops_per_position * (_capped(context, self.kv_tokens_max) + 1)
        return self.flops_per_token + seen + self.flops_per_entry * self._entries(context + 1)

    def prefill_flops(self, tokens: int, context: int = 0) -> int:
        """Of so many tokens of a prompt at once, behind a context."""
        seen = _capped(context, self.kv_tokens_max) + tokens
        flops = self.further if context and self.further is not None else self.prefill
        return flops.of(tokens, seen, self._entries(context + tokens))

    def _entries(self, tokens: int) -> int:
        return sum(tokens // part.every for part in self.condensed if part.every > 1)


def _capped(tokens: int, most: int | None) -> int:
    return tokens if most is None else min(tokens, most)


class Chain(Value):
    """embedding, layers.0 .. layers.n-1, head.

    `kind`: text models generate; so do vision models, whose tower is part of the embedding; encoders do not.
    `image_positions`: of an encoder of images, how many it makes of one; None of any other model.
    `common_bytes`: small weights (norms, rotary tables) that every stage holds. The head of a model with tied
    embeddings weighs nothing: the entry host, which holds both, holds the matrix once.
    """

    model: str  # as the plan names it
    architecture: str
    dtype: str
    quantization: Literal["int8", "int4"] | None = None
    blocks: tuple[Block, ...]
    common_bytes: int
    max_context: int | None
    kind: Literal["text", "vision", "encoder"] = "text"
    image_positions: int | None = None
    chunked: bool = True  # may a prompt come in pieces?
    glued: tuple[tuple[int, int], ...] = ()  # runs of blocks, first and last, that stay together: they share caches
    checkpoint: str  # digest of the config and of every file's header

    @property
    def layers(self) -> int:
        return len(self.blocks) - 2

    @property
    def weight_bytes(self) -> int:
        """Of the whole model, each weight once."""
        return sum(block.weight_bytes for block in self.blocks) + self.common_bytes

    def select(self, name: str) -> range:
        """Block numbers of a name or a range such as "layers.0-4". Raises ValueError saying what is legal."""
        if name == EMBEDDING or (name == VISION and self.kind == "vision"):
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
