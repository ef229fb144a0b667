"""A Hugging Face checkpoint -> the chain of its blocks. Reads the config and the files' headers, never a weight.

Must not know: hosts, plans but for the model's name and dtype. Imports torch only for a checkpoint it sees first.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgesplit.errors import ModelError
from edgesplit.model.blocks import Chain
from edgesplit.model.headers import INDEX, TensorAt, read_headers
from edgesplit.values import Value, digest

# Small files a runner or a person needs beside the weights.
SIDE_FILES = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
              "vocab.*", "merges.txt", "chat_template.*", "*.model")  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the Hugging Face layout. `tensors` by key; `places`: key -> block number or COMMON, for every tensor
    that the model has a use for."""

    folder: Path
    name: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorAt]
    places: Mapping[str, int] = field(repr=False)
    chain: Chain
    tied: bool
    side_files: tuple[Path, ...]


def resolve(source: str, revision: str | None, beside: Path) -> Path:
    """The checkpoint's folder: a folder (relative to `beside`), or a hub id that is downloaded or cached.

    Raises ModelError when neither is to be had.
    """
    try:
        folder = (beside / Path(source).expanduser()).resolve()
        found = folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~nobody
        raise ModelError(f"no model folder {source!r}: {error}") from error
    if found:
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelError(
            f"no model folder {folder}", "give the path of a checkpoint's folder, or a hub id (owner/name)"
        )
    return _download(source, revision, folder)


def _download(source: str, revision: str | None, folder: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted, other = ["*.safetensors", INDEX, *SIDE_FILES], ["*/*", "consolidated*"]  # a second copy some owners add
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted, ignore_patterns=other))
    except GatedRepoError as error:
        hint = "accept its licence on the hub's page, then log in with `hf auth login`"
        raise ModelError(f"model {source} is gated", hint) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model {source} has no revision {revision}", "check `model.revision` in the plan") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        hint = "check the name in the plan; for a private model, log in with `hf auth login`"
        raise ModelError(f"no folder {folder} and no model {source} on the hub", hint) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        hint = "check the network, or give the path of a downloaded folder as `model`"
        raise ModelError(f"model {source} is not in the local cache and the hub is out of reach", hint) from error


class _Known(Value):
    """What a run on the meta device told of a checkpoint, remembered: it takes seconds, and torch."""

    stamp: str
    chain: Chain
    places: dict[str, int]
    tied: bool


def open_checkpoint(folder: Path, name: str, dtype: str, cache: Path | None = None) -> Checkpoint:
    """Read a folder. `cache`: a file that remembers what needed torch to be found out.

    Raises ModelError when the checkpoint is absent, damaged, or no chain that can be cut.
    """
    config = _config(folder)
    tensors = read_headers(folder)
    shapes = sorted([tensor.key, tensor.dtype, list(tensor.shape)] for tensor in tensors.values())
    contents = digest(json.dumps([config, shapes]))
    known = _recall(cache, stamp := f"{name} {dtype} {contents}")
    if known is None:
        from edgesplit.model.structure import analyse

        found = analyse(folder, name, dtype, tensors, contents)
        known = _Known(stamp=stamp, chain=found.chain, places=found.places, tied=found.tied)
        remember(cache, known)
    side = tuple(sorted({path for pattern in SIDE_FILES for path in folder.glob(pattern) if path.is_file()}))
    return Checkpoint(folder, name, config, tensors, known.places, known.chain, known.tied, side)


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


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json", "is it a Hugging Face checkpoint?") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "may you read it?") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", "download the file again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object", "download the file again")
    return config
