"""A model's own class, hollowed out: what other stages hold is gone, and stand-ins answer in its place.

Layers of other stages keep their place and attributes but lose their weights. In front of our layers they answer with
what arrived from the previous stage; behind them the forward ends.

Must not know: sequences, caches, where weights come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .anatomy import Anatomy, examine, model_class


class Leave(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


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


@dataclass
class Wire:
    """Shared by a stage and the stand-ins inside its model: what arrived, and the embeddings that travel along.

    `parts` and `part` are known once the model is built.
    """

    parts: Anatomy = field(init=False)
    part: Range = field(init=False)
    arrived: Any = None
    carried: dict[str, torch.Tensor] = field(default_factory=dict)


def hollowed(
    config: PreTrainedConfig, blocks: tuple[int, int], dtype: torch.dtype, wire: Wire, lent: Lent | None = None
) -> type[PreTrainedModel]:
    """A subclass of the model's class that cuts itself to these blocks after construction, under the same name.

    The same `__name__` and `__module__`: transformers looks its weight conversions up by them. `lent`: weights that
    need no loading.
    """
    base = model_class(config)

    def init(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        wire.parts = examine(self)
        wire.part = Range(*blocks, wire.parts.count)
        _Cut(self, wire).cut(dtype)
        if lent is not None:
            lent.withhold(self, wire)

    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})


class _StandIn(nn.Module):
    """For an embedding that is not ours: what arrived of it, or zeros of the right shape that nobody reads."""

    def __init__(self, like: nn.Module, width: int, dtype: torch.dtype, arrived: Callable[[], Any]) -> None:
        super().__init__()
        self.width, self.dtype, self.arrived = width, dtype, arrived
        self.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)  # some ask it for its device
        self.padding_idx = getattr(like, "padding_idx", None)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        arrived: torch.Tensor | None = self.arrived()
        if arrived is not None:
            return arrived
        return torch.zeros(*ids.shape, self.width, dtype=self.dtype, device=ids.device)


@dataclass(frozen=True)
class _Cut:
    model: PreTrainedModel
    wire: Wire

    @property
    def parts(self) -> Anatomy:
        return self.wire.parts

    @property
    def part(self) -> Range:
        return self.wire.part

    def cut(self, dtype: torch.dtype) -> None:
        self._layers()
        self._embeddings(dtype)
        if not self.part.heads:
            self.model.set_submodule(self.parts.head, nn.Identity())
        here = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        ties = self.model.all_tied_weights_keys.items()
        self.model.all_tied_weights_keys = {
            target: source for target, source in ties if target in here and source in here
        }

    def _layers(self) -> None:
        layers, own, wire = self.model.get_submodule(self.parts.layers), self.part.own, self.wire
        for index, layer in enumerate(layers):
            if index < own.start:
                _hollow(layer, lambda *_, **__: wire.arrived)
            elif index >= own.stop:
                _hollow(layer, _depart)
        if own and own.start == 0 and not self.part.embeds:
            layers[0].register_forward_pre_hook(_arrive(wire), with_kwargs=True)
        if own and not self.part.heads:
            layers[own.stop - 1].register_forward_hook(_leave_after)

    def _embeddings(self, dtype: torch.dtype) -> None:
        """Those that later layers read too give their output to the wire where they are ours, and take it elsewhere."""
        tied = {*self.model.all_tied_weights_keys, *self.model.all_tied_weights_keys.values()}
        for path in dict.fromkeys((self.parts.embedding, *self.parts.carried)):
            module, travels = self.model.get_submodule(path), path in self.parts.carried
            stays = self.part.embeds or (self.part.heads and f"{path}.weight" in tied)
            if not stays:
                width = module.weight.shape[-1]
                self.model.set_submodule(path, _StandIn(module, width, dtype, partial(self._arrived, path)))
            elif travels:
                module.register_forward_hook(self._record(path) if self.part.embeds else self._replace(path))

    def _arrived(self, path: str) -> torch.Tensor | None:
        return self.wire.carried.get(path)

    def _record(self, path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            self.wire.carried[path] = output

        return hook

    def _replace(self, path: str) -> Any:
        return lambda _module, _args, _output: self.wire.carried[path]


def _hollow(layer: nn.Module, forward: Any) -> None:
    """Take a layer's weights and children, keep its place and attributes, answer with `forward`."""
    layer._modules.clear()
    layer._parameters.clear()
    layer._buffers.clear()
    layer._is_hf_initialized = True  # nothing is left that transformers could initialise
    layer.forward = forward


def _depart(*args: Any, **kwargs: Any) -> Any:
    """The first layer, where nothing but the embedding is ours: its input is our output."""
    raise Leave(args[0] if args else kwargs["hidden_states"])


def _leave_after(_layer: nn.Module, _args: Any, output: Any) -> Any:
    raise Leave(output)


def _arrive(wire: Wire) -> Any:
    def hook(
        _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (wire.arrived, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": wire.arrived}

    return hook


@dataclass
class Lent:
    """Weights that other stages of this process hold already, so that they are shared and not loaded again.

    `donors`: their models and wires; of the same checkpoint, in the same precision.
    """

    donors: list[tuple[PreTrainedModel, Wire]]
    _pairs: list[tuple[nn.Module, nn.Module]] = field(default_factory=list)  # ours, the lender's
    _ties: dict[str, str] = field(default_factory=dict)

    def withhold(self, model: PreTrainedModel, wire: Wire) -> None:
        """Before loading: leave no weight there that transformers would look for or make up."""
        for path, lender in self._lenders(model, wire).items():
            self._pairs += zip(model.get_submodule(path).modules(), lender.modules(), strict=True)
        if not self._pairs:
            return
        for module, _ in self._pairs:
            _empty(module)
        missing = {name for name, weight in _weights(model) if weight is None}
        self._ties = {to: source for to, source in model.all_tied_weights_keys.items() if missing & {to, source}}
        for target in self._ties:
            _empty(model.get_submodule(target.rpartition(".")[0]))
        model.all_tied_weights_keys = {
            to: source for to, source in model.all_tied_weights_keys.items() if to not in self._ties
        }

    def give(self, model: PreTrainedModel) -> None:
        """After loading."""
        for module, lender in self._pairs:
            module._parameters.update(lender._parameters)
            module._buffers.update(lender._buffers)
        for target, source in self._ties.items():
            path, _, name = target.rpartition(".")
            model.get_submodule(path)._parameters[name] = model.get_parameter(source)

    def _lenders(self, model: PreTrainedModel, wire: Wire) -> dict[str, nn.Module]:
        """For each part of ours that a donor holds too, by path, the donor's."""
        found: dict[str, nn.Module] = {}
        for donor, other in self.donors:
            paths = [f"{wire.parts.layers}.{index}" for index in wire.part.own if index in other.part.own]
            paths += [path for path in (wire.parts.embedding, *wire.parts.carried) if _holds(path, model, donor)]
            paths += [wire.parts.head] if wire.part.heads and other.part.heads else []
            found.update((path, donor.get_submodule(path)) for path in paths if path not in found)
        return found


def _holds(path: str, *models: PreTrainedModel) -> bool:
    return not any(isinstance(model.get_submodule(path), _StandIn) for model in models)


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter | None]]:
    for path, module in model.named_modules():
        yield from ((f"{path}.{name}", weight) for name, weight in module._parameters.items())


def _empty(module: nn.Module) -> None:
    for name in module._parameters:
        module._parameters[name] = None
    for name in module._buffers.keys() - module._non_persistent_buffers_set:
        module._buffers[name] = None
    module._is_hf_initialized = True
