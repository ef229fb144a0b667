"""Where the parts of a Hugging Face model are: its embedding, its layers, its head, and what stands before them.

Causal language models, the same with a vision tower, and encoders. Found by structure, for any architecture, on a
model built on the meta device.
Must not know: weights, stages, hosts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    MODEL_MAPPING,
)

from .families import family
from .owncode import own_class

# Classes that generate text, and those whose base model is an encoder with a task's head on it.
_GENERATING = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
_ENCODING = (MODEL_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_PRETRAINING_MAPPING,
             MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)  # fmt: skip

_POOLERS = ("pooler", "head")

Kind = Literal["text", "vision", "encoder"]


class AnatomyError(ValueError):
    """The model is not a chain that can be cut; the message says what was looked for."""


@dataclass(frozen=True)
class Anatomy:
    """Dotted module paths, as in `model.get_submodule(path)`.

    `layers` is the ModuleList of layers; `front` are modules that run before them and belong to the first block, such
    as a vision tower; `carried` the embeddings that later layers read again, `kept` the indices of the layers whose
    output they do. An encoder's `head` is ""; `unused` is what it has behind its last hidden state, its answer.
    """

    embedding: str
    layers: str
    head: str
    count: int
    hidden: int
    carried: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()
    front: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    kind: Kind = "text"

    @property
    def inner(self) -> str:
        """The module whose forward runs the layers; "" is the model itself."""
        return self.layers.rpartition(".")[0]


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class a checkpoint runs as: the one its config names where that generates text; the base model where it
    names an encoder; else a causal LM. Raises AnatomyError when transformers has none."""
    own: type[PreTrainedModel] | None = getattr(type(config), "own_model_class", None)
    if own is not None:
        return own
    named = getattr(transformers, (config.architectures or [""])[0], None)
    generating = [*_classes(config, _GENERATING)]
    if named in generating:
        return named
    if (not generating or named in [*_classes(config, _ENCODING)]) and not config.is_encoder_decoder:
        base = next(_classes(config, (MODEL_MAPPING,)), None)
        if base is not None:
            return base
    if generating:
        return generating[0]
    raise AnatomyError(f"{config.model_type!r} has no causal language model and no encoder in transformers")


def model_kind(config: PreTrainedConfig) -> Kind:
    """Raises AnatomyError for what is none of these."""
    return _kind_of(model_class(config), config)


def _kind_of(kind: type[PreTrainedModel], config: PreTrainedConfig) -> Kind:
    single = config.get_text_config(decoder=True) is config
    if kind.can_generate():
        return "text" if single else "vision"
    if not single:
        raise AnatomyError(f"{kind.__name__} is several models in one, and generates nothing")
    return "encoder"


def _classes(config: PreTrainedConfig, tables: tuple[Any, ...]) -> Iterator[type[PreTrainedModel]]:
    for table in tables:
        if type(config) in table:
            found = table[type(config)]
            yield from found if isinstance(found, tuple) else (found,)


def cache_argument(kind: type[PreTrainedModel]) -> str:
    """What the model's forward calls the cache; families of state alone have their own word for it."""
    takes = inspect.signature(kind.forward).parameters
    return next((name for name in ("past_key_values", "cache_params", "state") if name in takes), "past_key_values")


def skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model without weights, on the meta device."""
    kind = model_class(config)
    with torch.device("meta"):
        return kind._from_config(config, dtype=dtype)


def read_config(folder: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a local folder. The checkpoint's own code runs only where it is trusted. Raises CodeError."""
    own = partial(own_class, Path(folder), "config.json") if trust_remote_code else lambda _: None
    kind, model = own("AutoConfig"), own("AutoModelForCausalLM")
    if kind is None:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    else:
        kind.register_for_auto_class()
        config = kind.from_pretrained(folder, local_files_only=True)
    if model is None:
        return _language(config)
    model.register_for_auto_class("AutoModelForCausalLM")
    kind = type(config)  # by its class, which no JSON can name
    own_model = {"own_model_class": add_generation_mixin_to_remote_model(model), "__module__": kind.__module__}
    config.__class__ = type(kind.__name__, (kind,), own_model)
    return config


def _language(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of a config with parts, the part its class is built from, as AutoModelForCausalLM chooses it."""
    part = config.sub_configs.get("text_config")
    return config.get_text_config() if part is not None and model_class(config).config_class is part else config


def examine(model: PreTrainedModel) -> Anatomy:
    """Find the parts. Raises AnatomyError."""
    names = {id(module): name for name, module in model.named_modules()}
    text, kind = model.config.get_text_config(decoder=True), _kind_of(type(model), model.config)
    try:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError as error:
        raise AnatomyError(f"{type(model).__name__} does not tell its embedding") from error
    if embedding is None or (head is None) != (kind == "encoder"):
        raise AnatomyError(f"{type(model).__name__} has no token embedding or no language-model head")
    at = names[id(embedding)]
    layers = _layers(model, int(text.num_hidden_layers), at)
    parts = Anatomy(
        embedding=at,
        layers=layers,
        head="" if head is None else names[id(head)],
        count=len(model.get_submodule(layers)),
        hidden=int(text.hidden_size if kind == "encoder" else embedding.weight.shape[-1]),
        carried=_carried(model),
        kept=_kept(model.config),
        kind=kind,
    )
    if kind == "encoder":
        return _encoder(model, parts)
    return replace(parts, front=_tower(model, parts)) if kind == "vision" else parts


def _layers(model: PreTrainedModel, count: int, embedding: str) -> str:
    """The list of that many layers nearest to the embedding (other towers have lists too), least deep, heaviest.

    Some families count an attention and a network as two layers, so the list may be a whole part as long.
    """

    def rank(item: tuple[str, nn.ModuleList]) -> tuple[int, int, bool, int]:
        name, module = item
        weights = sum(weight.numel() for weight in module.parameters())
        return _in_common(name, embedding), -name.count("."), len(module) == count, weights

    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and count % len(module) == 0
    ]
    if not lists:
        raise AnatomyError(f"{type(model).__name__} has no list of its {count} layers")
    return max(lists, key=rank)[0]


def _in_common(one: str, other: str) -> int:
    """How many names two paths begin with alike."""
    pairs = list(zip(one.split("."), other.split("."), strict=False))
    return next((number for number, (left, right) in enumerate(pairs) if left != right), len(pairs))


def _encoder(model: PreTrainedModel, parts: Anatomy) -> Anatomy:
    """Its embedding is a module of tables, norms and the like; what follows it under a name that begins so, too."""
    depth = _in_common(parts.embedding, parts.layers)
    names = parts.embedding.split(".")[: depth + 1]
    beside = model.get_submodule(".".join(names[:-1])).named_children()
    front = [".".join([*names[:-1], name]) for name, _ in beside if name.startswith(names[-1]) and name != names[-1]]
    unused = tuple(name for name, _ in model.named_children() if name in _POOLERS)
    return replace(parts, embedding=".".join(names), front=tuple(front), unused=unused)


def _tower(model: PreTrainedModel, parts: Anatomy) -> tuple[str, ...]:
    """What holds weights beside the way from the model down to its text layers."""
    way = parts.inner.split(".")
    found = []
    for depth, step in enumerate(way):
        above = way[:depth]
        for name, child in model.get_submodule(".".join(above)).named_children():
            path = ".".join([*above, name])
            if (
                name != step
                and not f"{parts.head}.".startswith(f"{path}.")
                and next(child.parameters(), None) is not None
            ):
                found.append(path)
    return tuple(found)


def _kept(config: PreTrainedConfig) -> tuple[int, ...]:
    text = config.get_text_config(decoder=True)
    every = getattr(text, family(config.model_type, text.model_type).every or "_", None)
    return tuple(range(every - 1, text.num_hidden_layers - 1, every)) if every else ()


def _carried(model: PreTrainedModel) -> tuple[str, ...]:
    wanted = family(model.config.model_type, model.config.get_text_config(decoder=True).model_type).carried
    ends = {name.rpartition(".")[2]: name for name, _ in model.named_modules()}
    return tuple(ends[end] for end in wanted if end in ends)
