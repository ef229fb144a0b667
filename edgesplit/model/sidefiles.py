"""The small files of a checkpoint: which travel with it, and what they say that it cannot be served with.

Everything here is read as JSON; no code of the checkpoint runs and torch is not needed.
Must not know: tensors, hosts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgesplit.errors import ModelError
from edgesplit.model.headers import read_small, shown
from edgesplit.runner.families import family
from edgesplit.runner.generation import ignored, refused

# Small files a runner or a person needs beside the weights.
SIDE_FILES = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
              "vocab.*", "merges.txt", "tekken.json", "*.tiktoken", "chat_template.*", "*.model",
              "processor_config.json", "preprocessor_config.json", "modules.json", "1_Pooling/config.json")  # fmt: skip
CODE = "*.py"
_AGAIN = "download the file again"
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "tekken.json", "*.tiktoken", "tokenizer_config.json")
_NAME = re.compile(r"base_model:\s*(?:-\s*)?[\"']?([\w.-]+/[\w.-]+)")


def read_config(folder: Path) -> dict[str, Any]:
    """Raises ModelError, also for a checkpoint in a form that cannot be served."""
    config = _json(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder} has no config.json", "is it a Hugging Face checkpoint?")
    for part in (config, config.get("text_config")):
        quantised = part.get("quantization_config") if isinstance(part, dict) else None
        if quantised:
            method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?"
            raise ModelError(f"{folder} is quantised ({shown(str(method))})", unquantised(folder))
    if (folder / "adapter_config.json").exists():
        hint = "merge it into its base model (peft: merge_and_unload), or remove adapter_config.json"
        raise ModelError(f"{folder} holds an adapter, which would be left out", hint)
    if not isinstance(config.get("transformers_weights", ""), str):
        raise ModelError(f"{folder / 'config.json'}: transformers_weights is no file's name", _AGAIN)
    return config


def unquantised(folder: Path) -> str:
    """The way out for a quantised checkpoint; its README may name what it was made from."""
    try:
        found = _NAME.search(read_small(folder / "README.md")[:4096].decode(errors="replace"))
    except OSError:
        found = None
    original = f"the checkpoint that it was made from{f', {found.group(1)}' if found else ''}"
    return f"take {original}; the plan's `quantization` can quantise it while it is cut"


def side_files(folder: Path, *, trusted: bool) -> tuple[Path, ...]:
    """`trusted`: with the checkpoint's own code."""
    patterns = (*SIDE_FILES, CODE) if trusted else SIDE_FILES
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted(path for path in found if trusted or path.suffix != ".py"))


def own_code(folder: Path) -> dict[str, str]:
    """The hashes of a trusted checkpoint's code, by file. Raises ModelError where it takes code from elsewhere."""
    for name in ("config.json", "tokenizer_config.json"):
        for reference in _references((_json(folder / name) or {}).get("auto_map")):
            if "--" in reference:
                hint = "read that code, copy it into this folder, and take the part up to -- out of auto_map"
                raise ModelError(f"{folder / name} takes code from elsewhere: {shown(reference)}", hint)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(CODE))}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _references(each)


def notes(folder: Path) -> tuple[str, ...]:
    """What somebody who serves it should know. Raises ModelError for a generation config that cannot be honoured."""
    said = []
    config = _json(folder / "generation_config.json") or {}
    if names := refused(config):
        hint = f"take it out of {folder / 'generation_config.json'} to be served without"
        raise ModelError(f"{folder} wants to be generated with {', '.join(names)}, which is not done here", hint)
    if names := ignored(config):
        said.append(f"generation_config.json: left out, without effect on tokens: {', '.join(names)}")
    config = _json(folder / "config.json") or {}
    files = [path for pattern in _VOCABULARIES for path in folder.glob(pattern) if path.is_file()]
    if not files and not _sees_only(config):
        said.append("no tokenizer: the API takes and gives token ids only")
    kinds = [part.get("model_type") for part in (config, config.get("text_config")) if isinstance(part, dict)]
    if family(*(kind for kind in kinds if isinstance(kind, str))).carried:
        said.append("its later layers read the embeddings again, so these go to every host: whoever holds a stage can "
                    "tell the tokens, whatever is pinned")  # fmt: skip
    return tuple(said)


def _sees_only(config: dict[str, Any]) -> bool:
    """Is it an encoder of images, which needs no tokenizer?"""
    return "image_size" in config and not {"vocab_size", "text_config"} & config.keys()


def _json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file. Raises ModelError."""
    try:
        value = json.loads(read_small(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "may you read it?") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", _AGAIN) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", _AGAIN)
    return value
