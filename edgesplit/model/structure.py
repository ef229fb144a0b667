"""A config and its tensors -> the chain and where each tensor belongs, told by transformers itself.

The model is built on the meta device (shapes, no weights), loaded and run there. Takes seconds, and torch:
checkpoint.py remembers the outcome.

Must not know: files beyond the config, hosts.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError

from edgesplit.errors import ModelError
from edgesplit.model.accounting import probe, weigh
from edgesplit.model.blocks import COMMON, Chain
from edgesplit.model.headers import TensorAt, renamed
from edgesplit.model.placing import OTHER_MODEL, Placing, place
from edgesplit.model.precision import Weight, sizes
from edgesplit.model.quantise import find
from edgesplit.model.upstream import quiet
from edgesplit.runner.anatomy import Anatomy, AnatomyError, examine, read_config, skeleton
from edgesplit.runner.owncode import CodeError
from edgesplit.runner.stage import DTYPES

_TRUST = "read that code; if you trust it: `model: {source: ..., trust_remote_code: true}` in the plan"
# What transformers raises on a config that it knows but cannot build: each family checks its own numbers in its own way
_FOREIGN = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError,
                AssertionError, ImportError, StrictDataclassError)  # fmt: skip

Tensors = Mapping[str, TensorAt]


@dataclass(frozen=True)
class Structure:
    """`weights`: those that may be quantised; the chain is that of the plain ones."""

    chain: Chain
    placing: Placing
    weights: tuple[Weight, ...]


def analyse(
    folder: Path, name: str, dtype: str, tensors: Tensors, contents: str, *, trust_remote_code: bool = False
) -> Structure:
    """`contents`: the digest of the checkpoint. Raises ModelError."""
    model, anatomy, config = _build(folder, dtype, len(tensors), trust_remote_code)
    with _translated(folder, "load"):
        placing = place(folder, model, anatomy, tensors)
        kept = renamed(tensors, placing.aliases)
        quantisable = find(model, anatomy, kept, placing.places)
    with _translated(folder, "run"):
        found = probe(model, anatomy, config)
    weights = sizes(kept, placing.places, dtype)
    chain = Chain(
        model=name,
        architecture=type(model).__name__,
        dtype=dtype,
        blocks=weigh(found, weights),
        common_bytes=weights[COMMON],
        max_context=found.max_context,
        kind=anatomy.kind,
        image_positions=found.image_positions,
        chunked=found.chunked,
        glued=found.glued,
        checkpoint=contents,
    )
    return Structure(chain, placing, tuple(quantisable))


def _build(folder: Path, dtype: str, tensors: int, trusted: bool) -> tuple[Any, Anatomy, Any]:
    """The model without weights, where its parts are, and its config."""
    with _translated(folder, "build"):
        config = read_config(str(folder), trust_remote_code=trusted)
        _check_sane(folder, config, tensors)
        config._experts_implementation = "batched_mm"  # the default, a grouped kernel, has no meta form in float32
        model = skeleton(config, DTYPES[dtype]).eval()
        return model, examine(model), config


@contextlib.contextmanager
def _translated(folder: Path, act: str) -> Iterator[None]:
    """What torch and transformers raise becomes a ModelError; what they mumble is not passed on."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except AnatomyError as error:
        hint = "a language model, also one with a vision tower, or an encoder is needed"
        raise ModelError(f"{folder} cannot be split: {error}", hint) from error
    except CodeError as error:
        raise ModelError(f"{folder}: {error}", "what it imports must be installed, here and on every host") from error
    except _FOREIGN as error:
        if "trust_remote_code" in str(error):
            raise ModelError(f"{folder} needs its own code, which is not run", _TRUST) from error
        hint = f"is config.json undamaged, and of a model that transformers {transformers.__version__} knows?"
        raise ModelError(f"{folder}: transformers cannot {act} this model: {_first(error)}", hint) from error


def _first(error: Exception) -> str:
    """The first sentence of what transformers said; its messages run over pages."""
    lines = " ".join(str(error).split("\n\n")[0].split())
    return f"{type(error).__name__}: {lines[:300]}"


def _check_sane(folder: Path, config: Any, tensors: int) -> None:
    """Before anything is built: a damaged config may ask for layers without end."""
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if layers > tensors:
        raise ModelError(f"{folder} holds {tensors} tensors, but its config says {layers} layers", OTHER_MODEL)
