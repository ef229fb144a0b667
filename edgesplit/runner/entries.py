"""What the cache of one layer is made of: tensors with a row per sequence, and sizes. Joined, copied, cut, written out.

Must not know: sequences, stages, which layers are whose.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

# The dimension along which a tensor of a cache entry grows with the tokens, and which one the rows are in.
_GROWS = {"keys": -2, "values": -2, "indexer_keys": 1, "indexer_position_ids": -1}
_ROWS = {"indexer_position_ids": 1}  # elsewhere dimension 0
# The kinds of entry that are no more than such tensors and sizes, so that their rows can be joined ...
JOINED = {DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, LinearAttentionLayer, DummyLayer,
           LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer}  # fmt: skip
# ... and those whose last tokens can be cut off, a sliding window as long as it has not begun to slide.
_CROPPED = {DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer}
_PASSING = ("dtype", "device")  # told by the tensors themselves


class CacheError(RuntimeError):
    """The cache cannot do what is asked of it; it is as it was."""


@dataclass(frozen=True)
class Exported:
    """A sequence's cache as plain values: `tensors` by "layer/attribute" or "layer/attribute/key", `plain` likewise.

    Those of two stages together (`a | b`) fill any stage whose layers they cover.
    """

    tokens: int
    tensors: dict[str, torch.Tensor]
    plain: dict[str, Any]

    def __or__(self, other: Exported) -> Exported:
        if other.tokens != self.tokens:
            raise CacheError(f"one cache holds {self.tokens} tokens, the other {other.tokens}")
        return Exported(self.tokens, {**self.tensors, **other.tensors}, {**self.plain, **other.plain})

    def to_bytes(self) -> bytes:
        """A safetensors file: no code in it."""
        about = json.dumps({"tokens": self.tokens, "plain": self.plain})
        return bytes(pack({name: tensor.contiguous() for name, tensor in self.tensors.items()}, {"cache": about}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Exported:
        """Raises CacheError when these are not such bytes."""
        try:
            length = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["cache"])
            return cls(int(about["tokens"]), unpack(data), dict(about["plain"]))
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CacheError(f"not an exported cache: {error!r}") from error


def counting(entry: Any) -> Any:
    """Make a cache entry one that holds nothing and counts."""
    base = type(entry)

    def length(self: Any) -> int:
        return int(self.tokens)

    def advance(self: Any, tokens: int) -> None:
        self.tokens += tokens
        if hasattr(self, "cumulative_length"):
            self.cumulative_length = self.tokens
        if hasattr(self, "has_previous_state"):
            self.has_previous_state = dict.fromkeys(self.has_previous_state, self.tokens > 0)

    # _layer_type None: a subclass that names one would register itself as the cache of that kind of layer
    members = {"_layer_type": None, "tokens": 0, "get_seq_length": length, "advance": advance}
    entry.__class__ = type(f"Counting{base.__name__}", (base,), members)
    return entry


def can_crop(entry: Any) -> bool:
    slid = isinstance(entry, DynamicSlidingWindowLayer) and entry.cumulative_length >= entry.sliding_window
    return type(entry) in _CROPPED and not slid


def stays_croppable(entry: Any) -> bool:
    """Whatever comes after: a window that has room now may slide."""
    return type(entry) in _CROPPED and not isinstance(entry, DynamicSlidingWindowLayer)


@dataclass(frozen=True)
class Row:
    """One row of a cache entry, without the padding in front of its `tokens`."""

    entry: Any
    row: int
    tokens: int

    def piece(self, name: str, key: Any) -> torch.Tensor:
        tensor: torch.Tensor = getattr(self.entry, name) if key is None else getattr(self.entry, name)[key]
        tensor = tensor.narrow(_ROWS.get(name, 0), self.row, 1)
        if name not in _GROWS:
            return tensor
        width = tensor.shape[_GROWS[name]]
        kept = min(self.tokens, width)
        return tensor.narrow(_GROWS[name], width - kept, kept)


def _pieces(entry: Any) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """(attribute, key or None, tensor) of every tensor with rows."""
    for name, value in vars(entry).items():
        items = value.items() if isinstance(value, dict) else [(None, value)]
        yield from ((name, key, item) for key, item in items if isinstance(item, torch.Tensor) and item.dim() > 1)


def fill(target: Any, parts: Many[Row], length: int) -> None:
    """Make `target` these rows one below the other, shorter ones padded in front."""
    first = parts[0].entry
    for name, value in vars(first).items():
        setattr(target, name, dict(value) if isinstance(value, dict) else value)
    if isinstance(getattr(target, "cumulative_length", None), int):
        target.cumulative_length = length
    for name, key, _ in list(_pieces(first)):
        joined = _cat([part.piece(name, key) for part in parts], name)
        if key is None:
            setattr(target, name, joined)
        else:
            getattr(target, name)[key] = joined


def _cat(tensors: list[torch.Tensor], name: str) -> torch.Tensor:
    if name in _GROWS:
        dimension = _GROWS[name]
        width = max(tensor.shape[dimension] for tensor in tensors)
        tensors = [_padded(tensor, dimension, width) for tensor in tensors]
    return torch.cat(tensors, _ROWS.get(name, 0))  # a copy also of a single one: rows may not share storage


def _padded(tensor: torch.Tensor, dimension: int, width: int) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[dimension] = width - shape[dimension]
    return torch.cat([tensor.new_zeros(shape), tensor], dimension) if shape[dimension] else tensor


def copied(entry: Any) -> dict[str, Any]:
    return {name: copy.deepcopy(value) for name, value in vars(entry).items()}


def write(exported: Exported, name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        if value.dim():
            exported.tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    elif isinstance(value, dict):
        exported.plain[name] = [[key, item] for key, item in value.items() if not isinstance(item, torch.Tensor)]
        for key, item in value.items():
            if isinstance(item, torch.Tensor):
                write(exported, f"{name}/{key}", item)
    elif not name.endswith(_PASSING) and isinstance(value, str | int | float | bool | None):
        exported.plain[name] = value


def read(exported: Exported, name: str, holder: Any, attribute: str, device: Any) -> None:
    """The reverse of _write."""
    if name in exported.tensors:
        setattr(holder, attribute, exported.tensors[name].to(device))
        return
    if name not in exported.plain:
        return
    value = exported.plain[name]
    if isinstance(value, list):
        value = {key: item for key, item in value}  # noqa: C416 - pairs, of which JSON makes lists
        prefix = f"{name}/"
        for other, tensor in exported.tensors.items():
            if other.startswith(prefix):
                key = other.removeprefix(prefix)
                value[int(key) if key.isdigit() else key] = tensor.to(device)
    setattr(holder, attribute, value)


def settle(entry: Any) -> None:
    """dtype and device, as the entry itself would have noted them."""
    tensors = [tensor for _, _, tensor in _pieces(entry)]
    if tensors and hasattr(entry, "is_initialized"):
        entry.dtype, entry.device = tensors[0].dtype, tensors[0].device
