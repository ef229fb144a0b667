"""What layers are told beside the hidden state: positions, masks, features of an image.

A vision-language model works these out from ids and images before its text layers run, an encoder from the padding of
its batch, and only the first stage sees those. So whatever the module that runs the layers is called with there
travels along, and on later stages takes the place of what it is called with.

Must not know: families, stages, what the values mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

Told = dict[str, torch.Tensor | None]

# What crosses as the hidden state itself, or must not leave the first stage.
_OWN = {"hidden_states", "inputs_embeds", "input_ids", "pixel_values"}
# Made from the padding and the cache alone where nothing but ids was given: every stage makes its own.
_MASK = "attention_mask"


class ToldError(ValueError):
    """What arrived is nothing that these layers could be told."""


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a module's forward, all by name."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def gather(arguments: Mapping[str, Any], *, masks: bool) -> Told:
    """Every tensor that travels, by its name, or its name, a dot and its key or number. `masks`: those too."""
    told: Told = {}
    for name, value in arguments.items():
        if name in _OWN or (name == _MASK and not masks):
            continue
        if isinstance(value, torch.Tensor):
            told[name] = value
        elif isinstance(value, Mapping | list | tuple):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            told.update((f"{name}.{key}", item) for key, item in items if item is None or _is_tensor(item))
    return told


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def restore(told: Told) -> dict[str, Any]:
    """The reverse of `gather`. Raises ToldError."""
    arguments: dict[str, Any] = {}
    for path, value in told.items():
        name, dot, key = path.partition(".")
        if name in _OWN or (name in arguments and not isinstance(arguments[name], dict)):
            raise ToldError(f"layers cannot be told {path!r}")
        if dot:
            arguments.setdefault(name, {})[key] = value
        else:
            arguments[name] = value
    return {name: _in_order(value) if isinstance(value, dict) else value for name, value in arguments.items()}


def _in_order(items: dict[str, Any]) -> Any:
    """A list again, if the keys are numbers from 0."""
    numbers = [str(number) for number in range(len(items))]
    return [items[number] for number in numbers] if items.keys() == set(numbers) else items
