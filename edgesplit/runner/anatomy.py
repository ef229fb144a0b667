"""Where the parts of a Hugging Face causal LM are: its embedding, its decoder layers, its head.

Found by structure, for any architecture, on a model built on the meta device.
Must not know: weights, stages, hosts.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .families import family


class AnatomyError(ValueError):
    """The model is not a chain that can be cut; the message says what was looked for."""


@dataclass(frozen=True)
class Anatomy:
    """Dotted module paths, as in `model.get_submodule(path)`. `layers` is the ModuleList of decoder layers; `carried`
    are the embeddings that later layers read again."""

    embedding: str
    layers: str
    head: str
    count: int
    hidden: int
    carried: tuple[str, ...] = ()


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The causal LM class of a config. Raises AnatomyError when transformers has none."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise AnatomyError(f"{config.model_type!r} has no causal language model in transformers")
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def cache_argument(kind: type[PreTrainedModel]) -> str:
    """What the model's forward calls the cache; families of state alone have their own word for it."""
    takes = inspect.signature(kind.forward).parameters
    return "cache_params" if "cache_params" in takes and "past_key_values" not in takes else "past_key_values"


def skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model without weights, on the meta device."""
    model_class(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def read_config(folder: str) -> PreTrainedConfig:
    """The config of a local folder; code from the checkpoint is never run."""
    return _language(AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))


def _language(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of a config with parts, the part its causal LM is built from, as AutoModelForCausalLM chooses it."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    whole = kind is None or isinstance(kind, tuple) or kind.config_class is not config.sub_configs.get("text_config")
    return config if whole else config.get_text_config()


def examine(model: PreTrainedModel) -> Anatomy:
    """Find the parts. Raises AnatomyError."""
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise AnatomyError(f"{type(model).__name__} has no token embedding or no language-model head")
    count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise AnatomyError(f"{type(model).__name__} has no list of its {count} decoder layers")
    layers = max(lists, key=lambda item: sum(weight.numel() for weight in item[1].parameters()))[0]
    return Anatomy(
        embedding=names[id(embedding)],
        layers=layers,
        head=names[id(head)],
        count=count,
        hidden=int(embedding.weight.shape[-1]),
        carried=_carried(model),
    )


def _carried(model: PreTrainedModel) -> tuple[str, ...]:
    wanted = family(model.config.get_text_config(decoder=True).model_type).carried
    ends = {name.rpartition(".")[2]: name for name, _ in model.named_modules()}
    return tuple(ends[end] for end in wanted if end in ends)
