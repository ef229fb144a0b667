"""A config and its tensors -> the chain and where each tensor belongs, told by transformers itself.

The model is built on the meta device (shapes, no weights) and run there; a tensor belongs where transformers would
load it, whatever the checkpoint calls it. Takes seconds, and torch: checkpoint.py remembers the outcome.

Must not know: files beyond the config, hosts.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging

from edgesplit.errors import ModelError
from edgesplit.model.accounting import DTYPE_BYTES, blocks, probe, sizes
from edgesplit.model.blocks import COMMON, Chain
from edgesplit.model.headers import TensorAt, some
from edgesplit.runner.anatomy import Anatomy, AnatomyError, examine, read_config, skeleton
from edgesplit.runner.stage import DTYPES

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
        found = probe(model, anatomy, config)
    weights = sizes(tensors, places, DTYPE_BYTES[dtype])
    own_head = any(place == anatomy.count + 1 for place in places.values())
    chain = Chain(
        model=name,
        architecture=type(model).__name__,
        dtype=dtype,
        blocks=blocks(anatomy, found, weights, DTYPE_BYTES[dtype]),
        common_bytes=weights[COMMON],
        max_context=found.max_context,
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
    if any(weight.startswith(f"{path}.") for path in (anatomy.embedding, *anatomy.carried)):
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
