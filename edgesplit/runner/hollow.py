"""A model's own class, hollowed out: what other stages hold is gone, and stand-ins answer in its place.

Layers of other stages keep their place and attributes but lose their weights. In front of our layers they answer with
what arrived from the previous stage; behind them the forward ends.

Must not know: sequences, caches, where weights come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .anatomy import Anatomy, examine, model_class
from .families import family
from .told import Told, by_name, gather, restore


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
    """Shared by a stage and the stand-ins inside its model: what arrived, the embeddings that travel along, and what
    the layers are told. `given`: the model was given more than ids. `silent`: nobody wants to hear from the head.

    `parts`, `part` and `heirs` are known once the model is built; `heirs`: weights of ours that are saved under the
    name of one that is not ours.
    """

    parts: Anatomy = field(init=False)
    part: Range = field(init=False)
    heirs: dict[str, str] = field(default_factory=dict)
    arrived: Any = None
    carried: dict[str, torch.Tensor] = field(default_factory=dict)
    told: Told = field(default_factory=dict)
    given: bool = False
    silent: bool = False

    @property
    def carries(self) -> tuple[str, ...]:
        """The names of what arrives in `carried`, in order."""
        parts = self.parts
        return (*parts.carried, *(f"{parts.layers}.{index}" for index in parts.kept if index < self.part.own.start))

    def clear(self) -> None:
        """The forward is over."""
        self.arrived, self.carried, self.told = None, {}, {}
        self.given = self.silent = False


def hollowed(
    config: PreTrainedConfig,
    blocks: tuple[int, int],
    dtype: torch.dtype,
    wire: Wire,
    prepare: Callable[[PreTrainedModel], None] = lambda _: None,
) -> type[PreTrainedModel]:
    """A subclass of the model's class that cuts itself to these blocks after construction, under the same name.

    The same `__name__` and `__module__`: transformers looks its weight conversions up by them. `prepare`: called with
    what is left, still without weights.
    """
    base = model_class(config)

    def init(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        wire.parts = examine(self)
        wire.part = Range(*blocks, wire.parts.count)
        _Cut(self, wire).cut(dtype)
        prepare(self)

    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})


class _NoHead(nn.Module):
    """For a head that is not ours: what comes in goes out. Some models look for its weight."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)
        self.bias = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class _StandIn(nn.Module):
    """For an embedding that is not ours: what arrived of it, or zeros of the right shape that nobody reads."""

    def __init__(self, like: nn.Module, dtype: torch.dtype, arrived: Callable[[], Any]) -> None:
        super().__init__()
        self.rows, self.width = like.weight.shape
        self.dtype, self.arrived = dtype, arrived
        self.register_buffer("here", torch.empty(0), persistent=False)
        self.padding_idx = getattr(like, "padding_idx", None)

    @property
    def weight(self) -> torch.Tensor:
        """Some ask it for its device, or for the vector of padding."""
        table: Any = torch.zeros((), dtype=self.dtype, device=self.here.device).expand(self.rows, self.width)
        table._is_hf_initialized = True
        return table

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
        if self.parts.kind != "encoder":
            self._embeddings(dtype)
        if self.parts.kind != "text":
            self._front()
            self._tell()
        if self.parts.head and not self.part.heads:
            self.model.set_submodule(self.parts.head, _NoHead(dtype))
        elif self.parts.head:
            self.model.get_submodule(self.parts.head).register_forward_pre_hook(self._hush)
        self._ties()

    def _hush(self, _head: nn.Module, _args: Any) -> None:
        if self.wire.silent:
            raise Leave(None)

    def _ties(self) -> None:
        """Where the owner of a shared weight is not ours, the first of those that share it here takes its place."""
        here = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        owners: dict[str, str] = {}
        ties = {}
        for target, source in self.model.all_tied_weights_keys.items():
            if target not in here:
                continue
            owner = source if source in here else owners.setdefault(source, target)
            if owner != target:
                ties[target] = owner
        self.model.all_tied_weights_keys = ties
        self.wire.heirs = {owner: source for source, owner in owners.items()}

    def _layers(self) -> None:
        layers, own, wire = self.model.get_submodule(self.parts.layers), self.part.own, self.wire
        returns = family(self.model.config.get_text_config(decoder=True).model_type).returns
        for index, layer in enumerate(layers):
            kept = f"{self.parts.layers}.{index}" if index in self.parts.kept else ""
            if index < own.start:
                _hollow(layer, partial(_answer, wire, returns, kept))
            elif index >= own.stop:
                _hollow(layer, _depart)
            elif kept:
                layer.register_forward_hook(self._record(kept))
        if own and own.start == 0 and not self.part.embeds:
            layers[0].register_forward_pre_hook(_arrive(wire), with_kwargs=True)
        if own and not self.part.heads:
            leave: Any = _leave_with_state if returns else _leave_after
            layers[own.stop - 1].register_forward_hook(leave, with_kwargs=returns)

    def _embeddings(self, dtype: torch.dtype) -> None:
        """Those that later layers read too give their output to the wire where they are ours, and take it elsewhere."""
        tied = {*self.model.all_tied_weights_keys, *self.model.all_tied_weights_keys.values()}
        for path in dict.fromkeys((self.parts.embedding, *self.parts.carried)):
            module, travels = self.model.get_submodule(path), path in self.parts.carried
            stays = self.part.embeds or (self.part.heads and f"{path}.weight" in tied)
            if not stays:
                self.model.set_submodule(path, _StandIn(module, dtype, partial(self._arrived, path)))
            elif travels:
                module.register_forward_hook(self._record(path) if self.part.embeds else self._replace(path))

    def _front(self) -> None:
        """What runs before the layers, where that is not ours: an encoder's embedding is what arrived, and nobody asks
        a tower without images. What runs behind them and is nobody's: poolers."""
        for path in self.parts.unused:
            _hollow(self.model.get_submodule(path), lambda hidden, *_, **__: hidden)
        if self.part.embeds:
            return
        for path in self.parts.front:
            _hollow(self.model.get_submodule(path), self._first)
        if self.parts.kind == "encoder":
            _hollow(self.model.get_submodule(self.parts.embedding), self._first)
            return
        way = self.parts.inner.split(".")
        for depth in range(len(way)):  # such as the vector that some put behind each row of an image
            _strip(self.model.get_submodule(".".join(way[:depth])))

    def _first(self, *_: Any, **__: Any) -> Any:
        return self.wire.arrived[0] if isinstance(self.wire.arrived, tuple) else self.wire.arrived

    def _tell(self) -> None:
        """Note what the layers are told where their input is made, and tell it elsewhere."""
        wire = self.wire

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            wire.told = gather(by_name(module, args, kwargs), masks=wire.given)

        def tell(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (), {**by_name(module, args, kwargs), **restore(wire.told)}

        inner = self.model.get_submodule(self.parts.inner)
        inner.register_forward_pre_hook(note if self.part.embeds else tell, with_kwargs=True)

    def _arrived(self, path: str) -> torch.Tensor | None:
        return self.wire.carried.get(path)

    def _record(self, path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            self.wire.carried[path] = output

        return hook

    def _replace(self, path: str) -> Any:
        return lambda _module, _args, _output: self.wire.carried[path]


def _hollow(layer: nn.Module, forward: Any) -> None:
    """Take a layer's weights, keep its place, parts and attributes, answer with `forward`.

    Some models reach into their layers when they are made ready: they find empty tensors that nobody saves or loads,
    and short tables as they were.
    """
    for module in layer.modules():
        _strip(module)
    layer.forward = forward


def _strip(module: nn.Module, names: Iterable[str] | None = None) -> None:
    """Of its weights and tables, unless `names` say which."""
    tables = [name for name, table in module._buffers.items() if not _is_short(module, name, table)]
    for name in [*module._parameters, *tables] if names is None else names:
        registry: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
        if name in registry:
            module.__dict__[name] = None if registry.pop(name) is None else torch.empty(0)
    module._is_hf_initialized = True  # nothing is left that transformers could initialise


def _is_short(module: nn.Module, name: str, table: torch.Tensor | None) -> bool:
    return (
        name in module._non_persistent_buffers_set
        and table is not None
        and max(table.shape, default=1) == table.numel()
    )


def _depart(*args: Any, **kwargs: Any) -> Any:
    """The first layer, where nothing but the embedding is ours: its input is our output."""
    raise Leave(args[0] if args else kwargs["hidden_states"])


def _answer(wire: Wire, returns: bool, kept: str, *args: Any, **kwargs: Any) -> Any:
    if kept:
        return wire.carried[kept]
    return (wire.arrived[0], _state(args, kwargs), *wire.arrived[2:]) if returns else wire.arrived


def _state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs["state"] if "state" in kwargs else args[1]


def _leave_with_state(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The model would put the state that is returned into its cache; it does not come to it."""
    for held, new in zip(_state(args, kwargs), output[1], strict=True):
        if held is not new:
            held.copy_(new)
    raise Leave(output)


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
        missing: set[str] = set()
        for path, lender in self._lenders(model, wire).items():
            ours = model.get_submodule(path).named_modules(prefix=path)
            for (name, module), theirs in zip(ours, lender.modules(), strict=True):
                self._pairs.append((module, theirs))
                missing |= {f"{name}.{weight}" for weight in module._parameters}
                _strip(module, [*module._parameters, *(module._buffers.keys() - module._non_persistent_buffers_set)])
        ties = model.all_tied_weights_keys
        self._ties = {to: source for to, source in ties.items() if missing & {to, source}}
        ends = {name for tie in self._ties.items() for name in tie}
        # A tied bias beside such a weight, which transformers would look at to tie it, is tied here too.
        beside = {name.rpartition(".")[0] for name in ends}
        biases = {to: ties[to] for to in ties.keys() - self._ties if to.rpartition(".")[0] in beside}
        for name in (*ends, *biases):
            path, _, weight = name.rpartition(".")
            _strip(model.get_submodule(path), [weight])
        self._ties |= biases
        model.all_tied_weights_keys = {to: ties[to] for to in ties.keys() - self._ties}

    def give(self, model: PreTrainedModel) -> None:
        """After loading."""
        for module, lender in self._pairs:
            for ours, theirs in ((module._parameters, lender._parameters), (module._buffers, lender._buffers)):
                for name, held in theirs.items():
                    module.__dict__.pop(name, None)
                    ours[name] = held
        for tie in self._ties.items():
            ends = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in tie]
            shared = next(held for module, name in ends if (held := module._parameters.get(name)) is not None)
            for module, name in ends:
                module.__dict__.pop(name, None)
                module._parameters[name] = shared

    def _lenders(self, model: PreTrainedModel, wire: Wire) -> dict[str, nn.Module]:
        """For each part of ours that a donor holds too, by path, the donor's."""
        found: dict[str, nn.Module] = {}
        for donor, other in self.donors:
            paths = [f"{wire.parts.layers}.{index}" for index in wire.part.own if index in other.part.own]
            paths += [path for path in (wire.parts.embedding, *wire.parts.carried) if _holds(path, model, donor)]
            paths += wire.parts.front if wire.part.embeds and other.part.embeds else ()
            paths += [wire.parts.head] if wire.part.heads and other.part.heads else []
            found.update((path, donor.get_submodule(path)) for path in paths if path not in found)
        return found


def _holds(path: str, *models: PreTrainedModel) -> bool:
    return not any(isinstance(model.get_submodule(path), _StandIn) for model in models)
