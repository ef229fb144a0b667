"""Which tensor of a checkpoint belongs to which block: where transformers loads it, whatever the checkpoint calls it.

transformers itself loads the checkpoint here, on the meta device: tensors that have shapes and no content. What it
would have to make up, or could not use, is refused by name.

Must not know: hosts, what a block costs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from edgesplit.errors import ModelError
from edgesplit.model.blocks import COMMON
from edgesplit.model.headers import TensorAt, some
from edgesplit.model.sidefiles import unquantised
from edgesplit.model.upstream import load
from edgesplit.runner.anatomy import Anatomy

OTHER_MODEL = "config.json and the weights are of different models"
_COMPLETE = "is the download complete?"
# How config.json tells of layers that guess tokens ahead, which transformers does not load.
_AHEAD = ("num_nextn_predict_layers", "num_mtp_layers")
# What quantised checkpoints keep beside a weight; only asked of tensors that the model has no place for.
_SCALES = re.compile(
    r"[._](qweight|qzeros|g_idx|weight_packed|weight_shape|weight_scale(_inv|_2)?|weight_zero_point|input_scale"
    r"|absmax|quant_map|quant_state[.\w]*|SCB|proj_blocks|proj_scales)$"
)
Tensors = Mapping[str, TensorAt]


@dataclass(frozen=True)
class Placing:
    """`places`: key -> block number or COMMON, for every tensor that the model has a use for. `aliases`: keys that
    tensors travel under -> their keys in the files. `tied`: the head has no weights but the embedding's."""

    places: dict[str, int]
    aliases: dict[str, str]
    tied: bool


def place(folder: Path, model: Any, anatomy: Anatomy, tensors: Tensors) -> Placing:
    """`model`: on the meta device; it is loaded there. Raises ModelError where checkpoint and config do not fit."""
    weights = model.state_dict()
    given = targets(model, weights, tensors)
    for key, (names, _) in given.items():
        if weights.keys().isdisjoint(names):
            _check_spare(folder, key, names[0], model, anatomy)
    useless = tuple(f"{path}." for path in anatomy.unused)
    wanted = {name for name in weights if not name.startswith(useless)}
    used = {key: names for key, (names, _) in given.items() if not wanted.isdisjoint(names)}
    _check_shapes(folder, tensors, {key: names for key, names in used.items() if not given[key][1]}, weights)
    told = _load(model, tensors)
    told.missing_keys &= wanted
    _check_loaded(folder, anatomy, weights, told)
    shared = _shared(model, anatomy)
    places = {key: _common({_place(name, anatomy, shared) for name in names}) for key, names in used.items()}
    return _ends(model, anatomy, places, used)


def targets(model: Any, weights: Mapping[str, Any], tensors: Tensors) -> dict[str, tuple[list[str], bool]]:
    """Key -> the model's weights that it gives, and whether it is converted for them; names as transformers finds
    them, in its order: some rules wait for a key that comes first."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_source = {source: rule for rule in converters for source in rule.source_patterns}
    prefix, found = model.base_model_prefix, {}
    for key in sorted(tensors, key=dot_natural_key):
        weight, source = rename_source_key(key, renamings, converters, prefix, weights)
        if weight not in weights and key in weights:  # as transformers does
            weight, source = rename_source_key(key, [], [], prefix, weights)
        many = by_source[source].target_patterns if source is not None else []
        found[key] = ([weight.replace(many[0], each) for each in many] or [weight], source is not None)
    return found


def _load(model: Any, tensors: Tensors) -> Any:
    """What transformers says of the loading: its LoadStateDictInfo."""
    told = load(model, {key: torch.empty(tensor.shape, device="meta") for key, tensor in tensors.items()}, "meta")
    model.mark_tied_weights_as_initialized(told)
    model.tie_weights(missing_keys=told.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(told)
    return told


# --- which block ---


def _place(weight: str, anatomy: Anatomy, shared: Collection[str]) -> int:
    if weight in shared:
        return COMMON
    layer = re.match(rf"{re.escape(anatomy.layers)}\.(\d+)\.", weight)
    if layer:
        return int(layer.group(1)) + 1
    if any(weight.startswith(f"{path}.") for path in (anatomy.embedding, *anatomy.carried, *anatomy.front)):
        return 0
    return anatomy.count + 1 if weight.startswith(f"{anatomy.head}.") else COMMON


def _common(places: Collection[int]) -> int:
    """A tensor that several blocks need goes to every stage."""
    return next(iter(places)) if len(places) == 1 else COMMON


def _shared(model: Any, anatomy: Anatomy) -> set[str]:
    """Weights that several blocks share, but for head and embedding: any stage may need them."""
    pairs = [pair for pair in model.all_tied_weights_keys.items() if {*pair} != _both(anatomy)]
    return {name for pair in pairs if len({_place(name, anatomy, ()) for name in pair}) > 1 for name in pair}


def _both(anatomy: Anatomy) -> set[str]:
    return {f"{anatomy.head}.weight", f"{anatomy.embedding}.weight"}


def _ends(model: Any, anatomy: Anatomy, places: dict[str, int], used: Mapping[str, list[str]]) -> Placing:
    """Embedding and head, where they are one matrix: it travels as the embedding, whichever the files hold."""
    head, embedding = f"{anatomy.head}.weight", f"{anatomy.embedding}.weight"
    givers = {name: key for key, names in used.items() for name in names}
    ties = [{*pair} for pair in model.all_tied_weights_keys.items()]
    if _both(anatomy) not in ties or embedding in givers:
        return Placing(places, {}, any(head in tie for tie in ties) and head not in givers)
    key = givers[head]
    del places[key]
    return Placing({**places, embedding: 0}, {embedding: key}, tied=True)


# --- what is wrong ---


def _check_spare(folder: Path, key: str, weight: str, model: Any, anatomy: Anatomy) -> None:
    """A tensor that the model has no place for is left out, as transformers does. But a layer too many is a mistake,
    and so is to take quantised weights for plain ones."""
    if any(re.search(pattern, weight) for pattern in model._keys_to_ignore_on_load_unexpected or ()):
        return
    if _SCALES.search(key):
        what = f"{folder} is quantised, though its config does not say so: {some([key])}"
        raise ModelError(what, unquantised(folder))
    stack = anatomy.layers.removeprefix(f"{model.base_model_prefix}.")
    layer = re.match(rf"(?:{re.escape(model.base_model_prefix)}\.)?{re.escape(stack)}\.(\d+)\.", weight)
    text = model.config.get_text_config(decoder=True)
    ahead = max(int(getattr(text, name, None) or 0) for name in _AHEAD)
    if layer and int(layer.group(1)) >= anatomy.count + ahead:
        raise ModelError(
            f"{folder} holds layer {layer.group(1)}, but its config says {anatomy.count} layers", OTHER_MODEL
        )


def _check_shapes(
    folder: Path, tensors: Tensors, plain: Mapping[str, list[str]], weights: Mapping[str, torch.Tensor]
) -> None:
    """Of the tensors that are loaded as they are."""
    for key, (name, *_) in plain.items():
        _check_shape(folder, key, tensors[key].shape, tuple(weights[name].shape))


def _check_shape(folder: Path, key: str, found: Iterable[int], asked: Iterable[int]) -> None:
    if [*found] != [*asked]:
        what = f"{some([key])} has shape {[*found]}, but its config asks for {[*asked]}"
        raise ModelError(f"{folder}: {what}", OTHER_MODEL)


def _check_loaded(folder: Path, anatomy: Anatomy, weights: Collection[str], told: Any) -> None:
    for weight, found, asked in sorted(told.mismatched_keys):
        _check_shape(folder, weight, found, asked)
    if told.conversion_errors:
        what = f"transformers cannot convert its {some(sorted(told.conversion_errors))}"
        raise ModelError(f"{folder}: {what}", OTHER_MODEL)
    for number, part in _parts(anatomy, weights):
        if part and part <= told.missing_keys:
            what = f"layer {number - 1}" if number else "token embedding"
            raise ModelError(f"{folder} holds no weights of its {what} (of {anatomy.count} layers)", _COMPLETE)
    if told.missing_keys:
        raise ModelError(f"{folder} lacks weights of the model: {some(sorted(told.missing_keys))}", _COMPLETE)


def _parts(anatomy: Anatomy, weights: Collection[str]) -> Iterator[tuple[int, set[str]]]:
    """The weights of the embedding, then of each layer, as the model has them."""
    parts: dict[int, set[str]] = {number: set() for number in range(anatomy.count + 1)}
    for weight in weights:
        parts.setdefault(_place(weight, anatomy, ()), set()).add(weight)
    yield from ((number, parts[number]) for number in range(anatomy.count + 1))
