"""A model run without its weights: what each of its layers then keeps, sends on and computes.

On the meta device, where tensors have shapes and no values. A model that looks at values (how many tokens go to this
expert?) is run on the CPU instead, its weights a single zero each and the products of matrices not worked out.
Must not know: files, blocks, what is made of the numbers (accounting.py does).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from edgesplit.runner.anatomy import Anatomy, AnatomyError, cache_argument
from edgesplit.runner.cache import Sequence
from edgesplit.runner.hidden import Hidden
from edgesplit.runner.hollow import Range, Wire
from edgesplit.runner.stage import Stage

Kept = Mapping[str, torch.Tensor]  # what a layer holds for a sequence, by name


@dataclass(frozen=True)
class Forward:
    """`tokens` at once, `before` others. `flops` of embedding, layers and head; `sent` bytes behind the embedding and
    each layer; `logits` in bytes; `kept` by each layer afterwards."""

    tokens: int
    before: int
    flops: tuple[int, ...]
    sent: tuple[int, ...]
    logits: int
    kept: tuple[Kept, ...]

    @property
    def seen(self) -> int:
        """Positions in the sequence afterwards."""
        return self.before + self.tokens


class Rehearsal:
    """One model; `chunked`: may a prompt come in pieces?"""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self.model, self.anatomy = model, anatomy
        model.set_attn_implementation("eager")  # as many operations as any other, and it asks for no value
        self.layers = model.get_submodule(anatomy.layers)
        self._wire = Wire()
        self._wire.parts, self._wire.part = anatomy, Range(0, anatomy.count + 1, anatomy.count)
        self._values = False
        self._stage = Stage(model, self._wire)

    @property
    def chunked(self) -> bool:
        return bool(self._stage.chunks)

    def entries(self) -> list[list[Any]]:
        """A fresh cache's, per layer."""
        cache = self._stage.caches.gather([self._stage.sequence()]).cache
        return [_entries(cache, layer, self.anatomy.count) for layer in range(self.anatomy.count)]

    def sequence(self, *steps: int) -> list[Forward]:
        """The forwards of one sequence, by their numbers of tokens."""
        if not self._values:
            try:
                return self._sequence(steps)
            except RuntimeError:  # what the meta device answers when it is asked for a value
                _give_values(self.model)
                self._values, self._stage = True, Stage(self.model, self._wire)
        with _NoProducts():
            return self._sequence(steps)

    def _sequence(self, steps: tuple[int, ...]) -> list[Forward]:
        sequence = self._stage.sequence()
        return [self._forward(sequence, tokens) for tokens in steps]

    def _forward(self, sequence: Sequence, tokens: int) -> Forward:
        caches, before = self._stage.caches, sequence.tokens
        rows = caches.gather([sequence])
        caches.enter(rows)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, _Watch(self, counter) as watch:
            output = self.model(**self._inputs(tokens, rows.cache), return_dict=True)
            watch.mark()
        caches.leave(rows)
        caches.advance(rows, tokens, None)
        tokens = watch.positions or tokens
        kept = tuple(self._kept(rows.cache, rows.kept))
        return Forward(tokens, before, watch.flops, watch.sent, _logits(output), kept)

    def _inputs(self, tokens: int, cache: Any) -> dict[str, Any]:
        device = self._stage.device
        if self.model.main_input_name == "pixel_values":
            config = self.model.config
            size = config.image_size
            height, width = size if isinstance(size, list | tuple) else (size, size)
            return {"pixel_values": torch.zeros(1, config.num_channels, height, width, device=device)}
        ids = {"input_ids": torch.zeros(1, tokens, dtype=torch.long, device=device)}
        if self._stage.kind == "encoder":
            return ids
        last = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(self.model).forward).parameters else {}
        )
        return {**ids, **last, cache_argument(type(self.model)): cache, "use_cache": True}

    def _kept(self, cache: Any, beside: Mapping[str, Any]) -> Iterator[Kept]:
        """Per layer, of its entries in the cache, of what the cache has beside them, and of its modules."""
        count = self.anatomy.count
        rest = vars(cache) if hasattr(cache, "__dict__") else dict(enumerate(cache))
        rest = {name: value for name, value in rest.items() if name != "layers"}
        for layer in range(count):
            found: dict[str, Any] = {str(n): vars(entry) for n, entry in enumerate(_entries(cache, layer, count))}
            found |= {str(name): _part(value, layer, count) for name, value in rest.items()}
            path = re.compile(rf"(?:.*\.)?{re.escape(self.anatomy.layers)}\.{layer}\.")
            found |= {name: value for name, value in beside.items() if path.match(name)}
            yield dict(_tensors("", found, set()))


def _entries(cache: Any, layer: int, count: int) -> list[Any]:
    """A layer's entries in a cache; a few families have two for each layer, or a cache without any."""
    entries = getattr(cache, "layers", [])
    each = len(entries) // count
    return list(entries[layer * each : (layer + 1) * each])


def _part(value: Any, layer: int, count: int) -> Any:
    """A layer's part of what a cache holds for all: by the layer's number, or along the last dimension."""
    if isinstance(value, torch.Tensor):
        return value[..., layer] if value.shape[-1:] == (count,) else None
    if isinstance(value, Mapping):
        return value.get(layer)
    return value[layer] if isinstance(value, list) and layer < len(value) else None


def _tensors(name: str, value: Any, met: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a container, once; single numbers are not counted."""
    if isinstance(value, torch.Tensor):
        if value.dim() and id(value) not in met:
            met.add(id(value))
            yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _tensors(f"{name}.{key}" if name else str(key), item, met)


def _logits(output: Any) -> int:
    """Bytes of one position's."""
    logits = getattr(output, "logits", None)
    return 0 if logits is None else logits.shape[-1] * logits.element_size()


class _Watch:
    """During a forward: the operations counted up to each layer, and what leaves each."""

    def __init__(self, rehearsal: Rehearsal, counter: FlopCounterMode) -> None:
        self._counter, self._wire, self._anatomy = counter, rehearsal._wire, rehearsal.anatomy
        self._model, self._layers = rehearsal.model, rehearsal.layers
        self._sent = [0] * (self._anatomy.count + 1)
        self.positions = 0  # where an encoder makes them of an image
        self._flops = [0] * (self._anatomy.count + 2)
        self._at, self._done = 0, 0
        self._handles: list[Any] = []

    @property
    def flops(self) -> tuple[int, ...]:
        return tuple(self._flops)

    @property
    def sent(self) -> tuple[int, ...]:
        """With the embeddings and outputs that travel on; a layer that does not run lets pass what comes."""
        for number in range(1, len(self._sent)):
            self._sent[number] = self._sent[number] or self._sent[number - 1]
        carried = sum(tensor.nbytes for tensor in self._carried.values())
        kept = [sum(self._sent[index + 1] for index in self._anatomy.kept if index < n) for n in range(len(self._sent))]
        return tuple(sent + carried + more for sent, more in zip(self._sent, kept, strict=True))

    def __enter__(self) -> _Watch:
        self._carried: dict[str, torch.Tensor] = {}
        for path in self._anatomy.carried:
            self._handles.append(self._model.get_submodule(path).register_forward_hook(self._carry(path)))
        for number, layer in enumerate(self._layers, start=1):
            self._handles.append(layer.register_forward_pre_hook(self._enter_layer(number), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._leave_layer(number)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def mark(self) -> None:
        """What was counted since the last mark belongs where we are."""
        total = self._counter.get_total_flops()
        self._flops[self._at] += total - self._done
        self._done = total

    def _carry(self, path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            self._carried[path] = output

        return hook

    def _enter_layer(self, number: int) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.mark()
            if self._at >= number:
                raise AnatomyError(f"{type(self._model).__name__} does not run its layers once each, in their order")
            if number == 1:
                value = args[0] if args else kwargs["hidden_states"]
                self._sent[0] = self._bytes(value)
                self.positions = value.shape[1] if self._model.main_input_name == "pixel_values" else 0
            self._at = number

        return hook

    def _leave_layer(self, number: int) -> Any:
        def hook(_layer: nn.Module, _args: Any, output: Any) -> None:
            self._sent[number] = self._bytes(output)
            if number == self._anatomy.count:
                self.mark()
                self._at = number + 1

        return hook

    def _bytes(self, value: Any) -> int:
        return sum(tensor.nbytes for tensor in Hidden.of(value).tensors if tensor is not None)


# --- where values are asked for ---


class _NoProducts(TorchDispatchMode):
    """What the counter counts is answered with zeros of the right shape."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket not in flop_registry:
            return func(*args, **(kwargs or {}))
        bare, named = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs or {}))
        result = func(*bare, **named)
        return tree_map_only(torch.Tensor, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), result)


def _give_values(model: Any) -> None:
    """From the meta device to the CPU, each tensor a single number seen as often as its shape asks: 0, or 1 where it is
    a whole number of the checkpoint's, which may be a divisor."""
    model.set_experts_implementation("eager")  # the one that copies no weight
    for module in model.modules():
        for group in (module._parameters, module._buffers):
            for name, tensor in group.items():
                if tensor is not None and tensor.is_meta:
                    brought = not tensor.is_floating_point() and name not in module._non_persistent_buffers_set
                    seen = torch.full((), int(brought), dtype=tensor.dtype).expand(tensor.shape)
                    group[name] = nn.Parameter(seen, False) if isinstance(tensor, nn.Parameter) else seen
