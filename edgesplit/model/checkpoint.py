"""A Hugging Face checkpoint -> the chain of its blocks. Reads the config and the files' headers, never a weight.

Must not know: hosts, plans but for the model's name and dtype. Imports torch only for a checkpoint it sees first.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgesplit.errors import ModelError
from edgesplit.model import sidefiles
from edgesplit.model.blocks import Chain
from edgesplit.model.headers import TensorAt, read_headers, renamed
from edgesplit.model.precision import Weight, at_precision
from edgesplit.runner.precision import Scheme
from edgesplit.values import Value, digest


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the Hugging Face layout. `tensors` by key, as they travel; `places`: key -> block number or COMMON,
    for every tensor that the model has a use for. `weights`: those that may be quantised. `notes`: what somebody who
    serves it should know."""

    folder: Path
    name: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorAt]
    places: Mapping[str, int] = field(repr=False)
    weights: tuple[Weight, ...] = field(repr=False)
    chain: Chain
    tied: bool
    side_files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def own_code(self) -> tuple[Path, ...]:
        """Its own code, where the plan trusts it."""
        return tuple(file for file in self.side_files if file.suffix == ".py")

    @property
    def commit(self) -> str | None:
        """Of the hub's repository; None for a folder of the user's own."""
        from edgesplit.model.hub import commit

        return commit(self.folder)


def resolve(source: str, revision: str | None, beside: Path) -> Path:
    """The checkpoint's folder: a folder (relative to `beside`), or a hub id that is downloaded or cached.

    Raises ModelError when neither is to be had.
    """
    try:
        folder = (beside / Path(source).expanduser()).resolve()
        found = folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~nobody, a loop of links
        raise ModelError(f"no model folder {source!r}: {error}") from error
    if found and revision is None:
        return folder
    if found:
        hint = "take `revision` out of the plan, or name the model on the hub"
        raise ModelError(f"{folder} is a folder; it has no revision {revision}", hint)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelError(
            f"no model folder {folder}", "give the path of a checkpoint's folder, or a hub id (owner/name)"
        )
    from edgesplit.model.hub import download

    return download(source, revision, sidefiles.read_config)


class _Known(Value):
    """What a run on the meta device told of a checkpoint, remembered: it takes seconds, and torch."""

    stamp: str
    chain: Chain
    weights: tuple[Weight, ...]
    places: dict[str, int]
    aliases: dict[str, str]
    tied: bool


def open_checkpoint(
    folder: Path,
    name: str,
    dtype: str,
    cache: Path | None = None,
    *,
    quantization: Scheme | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Read a folder. `cache`: a file that remembers what needed torch to be found out, at any quantization.

    `trust_remote_code`: the checkpoint's own code may run, here and on its hosts.
    Raises ModelError when the checkpoint is absent, damaged, or no chain that can be cut.
    """
    config, notes = sidefiles.read_config(folder), sidefiles.notes(folder)
    code = sidefiles.own_code(folder) if trust_remote_code else {}
    tensors = read_headers(folder, config.get("transformers_weights"))
    shapes = sorted([tensor.key, tensor.dtype, list(tensor.shape)] for tensor in tensors.values())
    contents = digest(json.dumps([config, shapes, code]))
    told_by = f"transformers {version('transformers')}"  # another one may load and compute in another way
    known = _recall(cache, stamp := f"{name} {dtype} {'own code, ' * trust_remote_code}{told_by} {contents}")
    if known is None:
        from edgesplit.model.structure import analyse

        found = analyse(folder, name, dtype, tensors, contents, trust_remote_code=trust_remote_code)
        placing = found.placing
        known = _Known(
            stamp=stamp,
            chain=found.chain,
            weights=found.weights,
            places=placing.places,
            aliases=placing.aliases,
            tied=placing.tied,
        )
        remember(cache, known)
    side = sidefiles.side_files(folder, trusted=trust_remote_code)
    tensors = renamed(tensors, known.aliases)
    chain = known.chain
    if quantization is not None:
        chain = at_precision(chain, tensors, known.places, known.weights, quantization)
    return Checkpoint(folder, name, config, tensors, known.places, known.weights, chain, known.tied, side, notes)


def _recall(cache: Path | None, stamp: str) -> _Known | None:
    if cache is None:
        return None
    try:
        known = _Known.model_validate_json(cache.read_text())
    except (OSError, ValueError):
        return None
    return known if known.stamp == stamp else None


def remember(cache: Path | None, value: Value) -> None:
    """Where it cannot be written, it is found out again the next time."""
    if cache is not None:
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(value.to_json())
