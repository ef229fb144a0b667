"""A config and its tensors -> the chain and where each tensor belongs, told by transformers itself.

The model is built on the meta device (shapes, no weights) and run there; a tensor belongs where transformers would
load it, whatever the checkpoint calls it. Takes seconds, and torch: checkpoint.py remembers the outcome.

Must not know: files beyond the config, hosts.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import DynamicCache
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging

from edgesplit.errors import ModelError
from edgesplit.model.blocks import COMMON, EMBEDDING, HEAD, Block, Chain
from edgesplit.model.headers import ELEMENT, TensorAt, some
from edgesplit.runner.anatomy import Anatomy, AnatomyError, examine, read_config, skeleton
from edgesplit.runner.stage import DTYPES

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# What transformers raises on a config that it knows but cannot build: each family checks its own numbers in its own way
_FOREIGN = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError,
                AssertionError, ImportError, StrictDataclassError)  # fmt: skip
_OTHER_MODEL = "config.json and the weights are of different models"

Tensors = Mapping[str, TensorAt]


@dataclass(frozen=True)
class Structure:
    """`places`: key -> block number or COMMON, for every tensor that the model has a use for."""

    chain: Chain
    places: dict[str, int]
    tied: bool


def analyse(folder: Path, name: str, dtype: str, tensors: Tensors, contents: str) -> Structure:
    """`contents`: the digest of the checkpoint. Raises ModelError."""
    model, anatomy, config = _build(folder, dtype, len(tensors))
    places = _places(folder, model, anatomy, tensors)
    with _translated(folder, "run"):
        probe = _probe(model, anatomy, config)
    sizes = _sizes(tensors, places, DTYPE_BYTES[dtype])
    own_head = any(place == anatomy.count + 1 for place in places.values())
    chain = Chain(
        model=name,
        architecture=type(model).__name__,
        dtype=dtype,
        blocks=_blocks(anatomy, probe, sizes, DTYPE_BYTES[dtype]),
        common_bytes=sizes[COMMON],
        max_context=probe.max_context,
        checkpoint=contents,
    )
    return Structure(chain, places, f"{anatomy.head}.weight" in model.all_tied_weights_keys and not own_head)


def _build(folder: Path, dtype: str, tensors: int) -> tuple[Any, Anatomy, Any]:
    """The model without weights, where its parts are, and its config."""
    with _translated(folder, "build"):
        config = read_config(str(folder))
        _check_sane(folder, config, tensors)
        config._experts_implementation = "batched_mm"  # the default, a grouped kernel, has no meta form in float32
        model = skeleton(config, DTYPES[dtype]).eval()
        return model, examine(model), config


@contextlib.contextmanager
def _translated(folder: Path, act: str) -> Iterator[None]:
    """What torch and transformers raise becomes a ModelError; what they mumble is not passed on."""
    loud = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except AnatomyError as error:
        raise ModelError(f"{folder} cannot be split: {error}", "a decoder-only language model is needed") from error
    except _FOREIGN as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{folder} brings its own code, which is never run", "transformers itself must know the model"
            ) from error
        hint = f"is config.json undamaged, and of a model that transformers {transformers.__version__} knows?"
        raise ModelError(f"{folder}: transformers cannot {act} this model: {_first(error)}", hint) from error
    finally:
        logging.set_verbosity(loud)


def _first(error: Exception) -> str:
    """The first sentence of what transformers said; its messages run over pages."""
    lines = " ".join(str(error).split("\n\n")[0].split())
    return f"{type(error).__name__}: {lines[:300]}"


def _check_sane(folder: Path, config: Any, tensors: int) -> None:
    """Before anything is built: a damaged config may ask for layers without end, and quantised weights need kernels
    and packages of their own on every host."""
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if layers > tensors:
        raise ModelError(f"{folder} holds {tensors} tensors, but its config says {layers} layers", _OTHER_MODEL)
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else type(quantised).__name__
        raise ModelError(f"{folder} is quantised ({method})", "take the checkpoint it was made from")


# --- which tensor belongs to which block ---


def _places(folder: Path, model: Any, anatomy: Anatomy, tensors: Tensors) -> dict[str, int]:
    """Raises ModelError where checkpoint and config do not fit each other."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    weights = model.state_dict()
    places: dict[str, int] = {}
    loaded: set[str] = set()
    for key, tensor in tensors.items():
        weight, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, weights)
        if weight not in weights and key in weights:  # as transformers does
            weight, converted = rename_source_key(key, [], [], model.base_model_prefix, weights)
        if weight in weights:
            if converted is None:
                _check_shape(folder, tensor, tuple(weights[weight].shape))
            places[key] = _place(weight, anatomy)
            loaded.add(weight)
        else:
            _check_spare(folder, key, model, anatomy)
    divided = any(len(rule.target_patterns) > 1 and rule.was_used() for rule in converters)  # one tensor, many weights
    _check_complete(folder, anatomy, set(places.values()), set() if divided else _missing(model, weights, loaded))
    return places


def _place(weight: str, anatomy: Anatomy) -> int:
    layer = re.match(rf"{re.escape(anatomy.layers)}\.(\d+)\.", weight)
    if layer:
        return int(layer.group(1)) + 1
    if weight.startswith(f"{anatomy.embedding}."):
        return 0
    return anatomy.count + 1 if weight.startswith(f"{anatomy.head}.") else COMMON


def _check_shape(folder: Path, tensor: TensorAt, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ModelError(
            f"{folder}: {tensor.key} has shape {list(tensor.shape)}, but its config asks for {list(shape)}",
            _OTHER_MODEL,
        )


def _check_spare(folder: Path, key: str, model: Any, anatomy: Anatomy) -> None:
    """A tensor that the model has no place for is left out, as transformers does; a layer too many is a mistake."""
    stack = anatomy.layers.removeprefix(f"{model.base_model_prefix}.")
    layer = re.match(rf"(?:{re.escape(model.base_model_prefix)}\.)?{re.escape(stack)}\.(\d+)\.", key)
    expected = any(re.search(pattern, key) for pattern in model._keys_to_ignore_on_load_unexpected or ())
    if layer and int(layer.group(1)) >= anatomy.count and not expected:
        raise ModelError(
            f"{folder} holds layer {layer.group(1)}, but its config says {anatomy.count} layers",
            _OTHER_MODEL,
        )


def _missing(model: Any, weights: Mapping[str, Any], loaded: set[str]) -> set[str]:
    """The weights that no tensor gives: neither themselves, nor by a tie."""
    ties = model.all_tied_weights_keys.items()
    tied = {name for tie in ties if not loaded.isdisjoint(tie) for name in tie}
    optional = model._keys_to_ignore_on_load_missing or ()
    absent = (name for name in weights if name not in loaded and name not in tied)
    return {name for name in absent if not any(re.search(pattern, name) for pattern in optional)}


def _check_complete(folder: Path, anatomy: Anatomy, found: Collection[int], missing: Collection[str]) -> None:
    hint = "is the download complete?"
    for number in range(anatomy.count + 1):
        if number not in found:
            what = f"layer {number - 1}" if number else "token embedding"
            raise ModelError(f"{folder} holds no weights of its {what} (of {anatomy.count} layers)", hint)
    if missing:
        raise ModelError(f"{folder} lacks weights of the model: {some(sorted(missing))}", hint)


# --- sizes ---


def _sizes(tensors: Tensors, places: Mapping[str, int], element: int) -> Counter[int]:
    """Bytes in memory per place, floating weights counted at the plan's dtype."""
    sizes: Counter[int] = Counter()
    for key, place in places.items():
        dtype = tensors[key].dtype
        floating = dtype.startswith(("F", "BF"))
        sizes[place] += math.prod(tensors[key].shape) * (element if floating else ELEMENT[dtype])
    return sizes


@dataclass(frozen=True)
class _Probe:
    """Per layer: KV bytes per token, state bytes per sequence; bytes per token behind the embedding and each layer."""

    kv: tuple[int, ...]
    state: tuple[int, ...]
    boundary: tuple[int, ...]
    max_context: int | None
    active: float  # share of the layers' weights one token uses (mixture of experts: fewer than all)


def _probe(model: Any, anatomy: Anatomy, config: Any) -> _Probe:
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
    return _Probe(
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


def _blocks(anatomy: Anatomy, probe: _Probe, sizes: Counter[int], element: int) -> tuple[Block, ...]:
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
