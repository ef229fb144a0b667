"""What each block costs: bytes of weights, of cache and across its boundary, and arithmetic, all without weights.

The model is run on the meta device (shapes only). Takes seconds, and torch: checkpoint.py remembers the outcome.

Must not know: files, hosts, which tensor belongs to which block (structure.py does).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from edgesplit.model.blocks import EMBEDDING, HEAD, Block
from edgesplit.model.headers import ELEMENT, TensorAt
from edgesplit.runner.anatomy import Anatomy, AnatomyError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Tensors = Mapping[str, TensorAt]


def sizes(tensors: Tensors, places: Mapping[str, int], element: int) -> Counter[int]:
    """Bytes in memory per place, floating weights counted at the plan's dtype."""
    sizes: Counter[int] = Counter()
    for key, place in places.items():
        dtype = tensors[key].dtype
        floating = dtype.startswith(("F", "BF"))
        sizes[place] += math.prod(tensors[key].shape) * (element if floating else ELEMENT[dtype])
    return sizes


@dataclass(frozen=True)
class Probe:
    """Per layer: KV bytes per token, state bytes per sequence; bytes per token behind the embedding and each layer."""

    kv: tuple[int, ...]
    state: tuple[int, ...]
    boundary: tuple[int, ...]
    max_context: int | None
    active: float  # share of the layers' weights one token uses (mixture of experts: fewer than all)


def probe(model: Any, anatomy: Anatomy, config: Any) -> Probe:
    """Run the model on shapes only."""
    outputs: dict[int, int] = {}

    def watch(number: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            first = output if not isinstance(output, tuple) else output[0]
            outputs[number] = first[:, :1].numel() * first.element_size()

        return hook

    layers = model.get_submodule(anatomy.layers)
    handles = [layer.register_forward_hook(watch(number)) for number, layer in enumerate(layers, start=1)]
    short, long = (_cached(model, config, tokens) for tokens in (8, 9))
    for handle in handles:
        handle.remove()
    if not any(long):
        raise AnatomyError(f"{type(model).__name__} does not keep its state in the cache it is given")
    kv = tuple(after - before for before, after in zip(short, long, strict=True))
    text = config.get_text_config(decoder=True)
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    used = getattr(text, "num_experts_per_tok", None)
    positions = getattr(text, "max_position_embeddings", None)
    return Probe(
        kv=kv,
        state=tuple(before - 8 * each for before, each in zip(short, kv, strict=True)),
        boundary=(outputs[1], *(outputs[number] for number in range(1, anatomy.count + 1))),
        max_context=positions if type(positions) is int else None,
        active=used / experts if experts and used else 1.0,
    )


def _cached(model: Any, config: Any, tokens: int) -> list[int]:
    """Bytes in the cache of each layer after a run of `tokens` tokens, on the meta device."""
    cache = DynamicCache(config=config)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return [sum(map(_meta_bytes, vars(layer).values())) for layer in cache.layers]


def _meta_bytes(value: Any) -> int:
    """Bytes of a cache layer's attribute: a tensor, or tensors by number (states of linear attention), or neither."""
    tensors = value.values() if isinstance(value, dict) else [value]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor) and t.is_meta)


def blocks(anatomy: Anatomy, probe: Probe, sizes: Counter[int], element: int) -> tuple[Block, ...]:
    def flops(weight_bytes: int, active: float) -> int:
        return round(2 * weight_bytes / element * active)

    head = sizes[anatomy.count + 1]
    embedding = Block(name=EMBEDDING, kind="embedding", weight_bytes=sizes[0], kv_bytes_per_token=0, state_bytes=0,
                      flops_per_token=0, output_bytes_per_token=probe.boundary[0])  # fmt: skip
    layers = [
        Block(
            name=f"layers.{number}",
            kind="layer",
            weight_bytes=sizes[number + 1],
            kv_bytes_per_token=probe.kv[number],
            state_bytes=probe.state[number],
            flops_per_token=flops(sizes[number + 1], probe.active),
            output_bytes_per_token=probe.boundary[number + 1],
        )
        for number in range(anatomy.count)
    ]
    last = Block(name=HEAD, kind="head", weight_bytes=head, kv_bytes_per_token=0, state_bytes=0,
                 flops_per_token=flops(head or sizes[0], 1.0), output_bytes_per_token=0)  # fmt: skip
    return (embedding, *layers, last)
