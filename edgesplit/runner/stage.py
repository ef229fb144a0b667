"""A stage: blocks [first, last] of any Hugging Face causal LM, exactly as the whole model would run them.

The stage is the model's own class under its own full config. Layers of other stages keep their place and attributes
but lose their weights; in front of our layers they answer with what arrived from the previous stage, behind them the
forward ends. So positions, masks, rotary tables and scalings stay the model's business, and no family needs code.

Must not know: sockets, requests, epochs, which other stages exist.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from .anatomy import Anatomy, examine, model_class, read_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StageError(RuntimeError):
    """The stage could not be loaded from its shards."""


@dataclass(frozen=True)
class Hidden:
    """What crosses a boundary: what the last layer returned. `tuple_` when that was a tuple; absent entries are None.

    Of a tuple, the first tensor travels, and others that also hold a value per position (attention weights do not).
    """

    tensors: tuple[torch.Tensor | None, ...]
    tuple_: bool = False

    @classmethod
    def of(cls, value: Any) -> Hidden:
        if isinstance(value, torch.Tensor):
            return cls((value,))
        kept = [
            item if isinstance(item, torch.Tensor) and item.shape[:2] == value[0].shape[:2] else None for item in value
        ]
        return cls(tuple(kept), tuple_=True)

    def value(self) -> Any:
        return self.tensors if self.tuple_ else self.tensors[0]

    def to(self, device: torch.device | str) -> Hidden:
        return Hidden(tuple(None if tensor is None else tensor.to(device) for tensor in self.tensors), self.tuple_)


class _Leave(Exception):  # not an error: it carries the boundary's value out of the model's forward
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


@dataclass
class _Wire:
    """Shared by a stage and the stand-ins inside its model: what arrived, what leaves."""

    arrived: Any = None


class _NoEmbedding(nn.Module):
    """Stands in for the token embedding where it is not ours: zeros of the right shape, read by nobody."""

    def __init__(self, like: nn.Module, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.hidden, self.dtype = hidden, dtype
        self.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)  # some ask it for its device
        self.padding_idx = getattr(like, "padding_idx", None)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, self.hidden, dtype=self.dtype, device=ids.device)


def _hollow(layer: nn.Module, forward: Any) -> None:
    """Take a layer's weights and children, keep its place and attributes, answer with `forward`."""
    layer._modules.clear()
    layer._parameters.clear()
    layer._buffers.clear()
    layer._is_hf_initialized = True  # nothing is left that transformers could initialise
    layer.forward = forward


@dataclass(frozen=True)
class Range:
    """Blocks first..last of a chain with `layers` decoder layers (block 0 embedding, block layers + 1 head)."""

    first: int
    last: int
    layers: int

    @property
    def embeds(self) -> bool:
        return self.first == 0

    @property
    def heads(self) -> bool:
        return self.last == self.layers + 1

    @property
    def own(self) -> range:
        """Indices of the decoder layers that are ours."""
        return range(max(self.first - 1, 0), min(self.last, self.layers))


def _cut(model: PreTrainedModel, part: Range, parts: Anatomy, wire: _Wire, dtype: torch.dtype) -> None:
    """Hollow out of a freshly built model what other stages hold."""
    layers = model.get_submodule(parts.layers)
    own = part.own
    for index, layer in enumerate(layers):
        if index < own.start:
            _hollow(layer, lambda *_, **__: wire.arrived)
        elif index >= own.stop:
            _hollow(layer, _depart)
    if own and own.start == 0 and not part.embeds:
        layers[0].register_forward_pre_hook(_arrive(wire), with_kwargs=True)
    if own and not part.heads:
        layers[own.stop - 1].register_forward_hook(_leave_after)
    tied = set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())
    keeps_embedding = part.embeds or (part.heads and f"{parts.embedding}.weight" in tied)
    if not keeps_embedding:
        stand_in = _NoEmbedding(model.get_submodule(parts.embedding), parts.hidden, dtype)
        model.set_submodule(parts.embedding, stand_in)
    if not part.heads:
        model.set_submodule(parts.head, nn.Identity())
    here = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.all_tied_weights_keys = {
        target: source for target, source in model.all_tied_weights_keys.items() if target in here and source in here
    }


def _depart(*args: Any, **kwargs: Any) -> Any:
    """The first layer, where nothing but the embedding is ours: its input is our output."""
    raise _Leave(args[0] if args else kwargs["hidden_states"])


def _leave_after(_layer: nn.Module, _args: Any, output: Any) -> Any:
    raise _Leave(output)


def _arrive(wire: _Wire) -> Any:
    def hook(
        _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (wire.arrived, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": wire.arrived}

    return hook


def _build(config: PreTrainedConfig, part: tuple[int, int], dtype: torch.dtype, wire: _Wire) -> type[PreTrainedModel]:
    """A subclass of the model's class that cuts itself after construction, under the same name.

    The same `__name__` and `__module__`: transformers looks its weight conversions up by them.
    """
    base = model_class(config)

    def init(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        parts = examine(self)
        _cut(self, Range(part[0], part[1], parts.count), parts, wire, dtype)

    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})


def _counting(layer: Any) -> Any:
    """A cache entry of a layer that is not ours: it holds nothing and counts tokens, as masks and positions ask it."""
    base = type(layer)

    def length(self: Any) -> int:
        return int(self.tokens)

    def advance(self: Any, tokens: int) -> None:
        self.tokens += tokens
        if hasattr(self, "cumulative_length"):
            self.cumulative_length = self.tokens
        if hasattr(self, "has_previous_state"):
            self.has_previous_state = dict.fromkeys(self.has_previous_state, True)

    # _layer_type None: a subclass that names one would register itself as the cache of that kind of layer
    members = {"_layer_type": None, "tokens": 0, "get_seq_length": length, "advance": advance}
    layer.__class__ = type(f"Counting{base.__name__}", (base,), members)
    return layer


@dataclass
class Sequence:
    """One request's cache on one stage. `tokens`: how many positions it has seen."""

    cache: DynamicCache
    tokens: int = 0
    foreign: list[Any] = field(default_factory=list)


class Stage:
    """Blocks first..last, ready to run; one forward at a time."""

    def __init__(self, model: PreTrainedModel, wire: _Wire, part: Range) -> None:
        self.model, self.range = model, part
        self._wire = wire
        self.device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        # May a prompt come in pieces? Most recurrent families begin with a blank state at each (mamba, jamba, bamba).
        self.chunks = not getattr(type(model), "_is_stateful", False)

    @classmethod
    def load(cls, folder: Path, first: int, last: int, dtype: str, device: str = "cpu") -> Stage:
        """Read the blocks from a folder in the Hugging Face layout that holds at least their weights.

        Raises StageError when weights are missing or of the wrong shape, AnatomyError when the model is no chain.
        """
        config, wire = read_config(str(folder)), _Wire()
        kind = _build(config, (first, last), DTYPES[dtype], wire)
        try:
            with _quiet():
                model, info = kind.from_pretrained(
                    folder,
                    config=config,
                    dtype=DTYPES[dtype],
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # they are told below, by name
                    output_loading_info=True,
                )
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise StageError(f"blocks {first}..{last} cannot be loaded: {error}") from error
        if missing := sorted(info["missing_keys"]):
            raise StageError(f"blocks {first}..{last} lack {len(missing)} weights, first {missing[0]}")
        if other := sorted(info["mismatched_keys"]):
            name, found, wanted = other[0]
            raise StageError(f"{len(other)} weights have another shape, first {name}: {[*found]}, not {[*wanted]}")
        return cls(model.to(device).eval(), wire, Range(first, last, examine_count(config)))

    @classmethod
    def random(cls, config: PreTrainedConfig, first: int, last: int, dtype: str, device: str = "cpu") -> Stage:
        """The same stage with made-up weights, for measuring."""
        wire = _Wire()
        with torch.device("meta"):
            model = _build(config, (first, last), DTYPES[dtype], wire)._from_config(config, dtype=DTYPES[dtype])
        model.to_empty(device=device)
        with torch.no_grad():
            for weight in model.parameters():
                weight.uniform_(-0.02, 0.02) if weight.is_floating_point() else weight.zero_()
        _renew_buffers(model, config, device)
        return cls(model.eval(), wire, Range(first, last, examine_count(config)))

    def sequence(self) -> Sequence:
        """An empty cache for one request."""
        cache = DynamicCache(config=self.model.config)
        own = self.range.own
        foreign = [_counting(layer) for index, layer in enumerate(cache.layers) if index not in own]
        return Sequence(cache, 0, foreign)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forward(self, sequence: Sequence, arrived: torch.Tensor | Hidden, all_logits: bool = False) -> Any:
        """Run `T` new positions of one sequence.

        `arrived`: token ids of shape [1, T] where the stage embeds, else the Hidden of the boundary before it.
        Returns Hidden, or logits of shape [1, 1, vocabulary] (the last position; all T with `all_logits`), on the CPU.
        """
        if isinstance(arrived, Hidden):
            self._wire.arrived = arrived.to(self.device).value()
            count = next(tensor for tensor in arrived.tensors if tensor is not None).shape[1]
            ids = torch.zeros(1, count, dtype=torch.long, device=self.device)
        else:
            ids = arrived.to(self.device)
        keep = 0 if all_logits else 1
        try:
            output = self.model(
                input_ids=ids, past_key_values=sequence.cache, use_cache=True, logits_to_keep=keep, return_dict=True
            )
            result: Any = output.logits.cpu()
        except _Leave as leave:
            result = Hidden.of(leave.value).to("cpu")
        finally:
            self._wire.arrived = None
        sequence.tokens += ids.shape[1]
        for layer in sequence.foreign:
            layer.advance(ids.shape[1])
        return result


def examine_count(config: PreTrainedConfig) -> int:
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def _renew_buffers(model: PreTrainedModel, config: PreTrainedConfig, device: str) -> None:
    """Tables computed at construction (rotary frequencies) are lost by `to_empty`; compute them again."""
    for module in model.modules():
        if hasattr(module, "inv_freq") and hasattr(module, "config"):
            fresh = type(module)(config=copy.deepcopy(config)).to(device)
            module.load_state_dict(fresh.state_dict(), strict=False)
            for name, buffer in fresh.named_buffers(recurse=False):
                setattr(module, name, buffer)


class _quiet:  # noqa: N801 - reads as a statement
    """transformers reports every foreign key of a shard as unexpected; here they are expected."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("transformers")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)
