"""Caches of the few families that bring a kind of their own: made here, otherwise taken as they are.

Their sequences run alone, are rolled back by a copy, and do not move: elsewhere they are replayed.
Must not know: what is in such a cache.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from .cache import Caches, Mark, Rows, Sequence
from .entries import CacheError, Exported, counting


def minimax(config: PreTrainedConfig, own: range, _like: torch.Tensor) -> Any:
    """Attention layers keep keys and values, the others their state in a list beside."""
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    cache = MiniMaxCache()
    cache.layers = [DynamicLayer() for _ in config.layer_types]
    cache.linear_cache = [None for _ in config.layer_types]
    for index, kind in enumerate(config.layer_types):
        if index not in own and kind == "full_attention":
            counting(cache.layers[index])
    return cache


def rwkv(config: PreTrainedConfig, _own: range, like: torch.Tensor) -> Any:
    """Five states of all layers, as RwkvModel.forward makes them."""
    shape = (1, config.hidden_size, config.num_hidden_layers)
    kinds = [like.dtype, like.dtype, *[torch.float32] * 3]
    state = [torch.zeros(*shape, dtype=kind, device=like.device) for kind in kinds]
    state[4] -= 1e30
    return state


def xlstm(config: PreTrainedConfig, own: range, like: torch.Tensor) -> Any:
    """Three states per layer; those of others have a shape and no content."""
    from transformers.models.xlstm.modeling_xlstm import xLSTMCache

    made: Any = xLSTMCache
    cache = made(config, max_batch_size=1, dtype=like.dtype, device="meta")
    cache.seqlen_offset = torch.zeros(1, dtype=torch.long, device=like.device)
    for layer in own:
        cache.rnn_state[layer] = tuple(torch.zeros_like(state, device=like.device) for state in cache.rnn_state[layer])
    return cache


_MAKERS = {"minimax": minimax, "rwkv": rwkv, "xlstm": xlstm}


class SealedCaches(Caches):
    """`like`: a tensor of the dtype and on the device of the state."""

    def __init__(self, config: PreTrainedConfig, own: range, like: torch.Tensor, maker: str) -> None:
        self._make: Any = partial(_MAKERS[maker], config, own, like)
        super().__init__(config, range(0), like.device, joins=False)

    def _fresh(self, tokens: int) -> Any:
        cache = self._make()
        assert not tokens  # noqa: S101 - such sequences are never put together
        return cache

    def advance(self, rows: Rows, positions: int, padding: Any) -> None:  # noqa: ARG002 - such rows have none
        rows.length += positions
        rows.members[0].tokens += positions
        for entry in rows.cache.layers if isinstance(rows.cache, DynamicCache) else ():
            if hasattr(entry, "advance"):
                entry.advance(positions)

    def mark(self, sequence: Sequence) -> None:
        sequence.marked = Mark(sequence.tokens, {0: {"cache": copy.deepcopy(self.gather([sequence]).cache)}}, {})

    def crop(self, sequence: Sequence, count: int) -> None:
        mark = sequence.marked
        if mark is None or mark.tokens != sequence.tokens - count:
            raise CacheError("this model's state cannot be cut back; mark the place before")
        rows = self.gather([sequence])
        rows.cache = copy.deepcopy(mark.layers[0]["cache"])
        rows.length = sequence.tokens = mark.tokens

    def export(self, sequence: Sequence) -> Exported:  # noqa: ARG002
        raise CacheError("this model's state cannot be moved; replay the sequence")
