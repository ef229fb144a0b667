"""The headers of a checkpoint's safetensors files: which tensors there are, and where their bytes lie.

Must not know: what a tensor is for. Reads no weight.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesplit.errors import ModelError

# Element types of the safetensors format, and their bytes.
ELEMENT = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
           "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}  # fmt: skip
MAX_HEADER = 100 * 2**20  # bytes; the limit of the format itself
MAX_RANK = 64  # dimensions of a tensor; torch's own limit
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_AGAIN = "download the file again"
_COMPLETE = "is the download complete?"


@dataclass(frozen=True)
class TensorAt:
    """Where a tensor's bytes are: [start, start + size) of `file`."""

    key: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_headers(folder: Path) -> dict[str, TensorAt]:
    """Every tensor of the checkpoint: of the single file, which transformers too prefers, or of those the index names.

    Index, headers and file sizes are checked against each other. Raises ModelError.
    """
    if (folder / SINGLE).exists():
        return {tensor.key: tensor for tensor in read_header(folder / SINGLE)}
    index = folder / INDEX
    if index.exists():
        return _indexed(folder, index)
    bins = any(folder.glob("*.bin"))
    what = "only .bin files" if bins else f"neither {SINGLE} nor {INDEX}"
    hint = "convert it to safetensors: load it with transformers and save_pretrained it" if bins else _COMPLETE
    raise ModelError(f"{folder} holds {what}", hint)


def _indexed(folder: Path, index: Path) -> dict[str, TensorAt]:
    try:
        data = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{index} is damaged: {_words(error)}", _AGAIN) from error
    files = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{index} is damaged: it has no proper weight_map", _AGAIN)
    names = sorted(set(files.values()))
    outside = [name for name in names if "/" in name or "\\" in name or name.startswith(".")]
    if outside:
        raise ModelError(f"{index} names files outside its folder: {some(outside)}", "is this a checkpoint you trust?")
    tensors = {tensor.key: tensor for name in names for tensor in read_header(folder / name)}
    absent = sorted(key for key in files if key not in tensors)
    if absent:
        raise ModelError(f"{index} names tensors that no file holds: {some(absent)}", _COMPLETE)
    return {key: tensors[key] for key in files}


def some(names: Sequence[str]) -> str:
    """The first, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def read_header(file: Path) -> list[TensorAt]:
    """The tensors of one file: u64 little-endian length, JSON header, data without gap or overlap.

    Raises ModelError.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as data:
            start = data.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                what = f"it has {size} bytes and claims a header of {length}"
                raise ModelError(f"{file} is truncated or no safetensors file: {what}", _AGAIN)
            header = json.loads(data.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        entries = [_entry(file, key, value, 8 + length) for key, value in header.items() if key != "__metadata__"]
    except FileNotFoundError:
        raise ModelError(f"{file} is named by the index but is not there", _COMPLETE) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged: {_words(error)}", _AGAIN) from error
    _gapless(file, entries, 8 + length, size)
    return entries


def _words(error: Exception) -> str:
    """An OSError without its number and path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _entry(file: Path, key: str, value: Any, base: int) -> TensorAt:
    entry: dict[str, Any] = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (entry.get(name, ()) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _whole(shape, MAX_RANK) or not _whole(offsets, 2) or len(offsets) != 2:
        raise ValueError(f"{key} has no proper dtype, shape and data_offsets")
    if dtype not in ELEMENT:
        raise ValueError(f"{key} has elements of unknown type {dtype}")
    begin, end = offsets
    if end - begin != ELEMENT[dtype] * math.prod(shape):
        raise ValueError(f"{key}: {end - begin} bytes do not hold {dtype} {shape}")
    return TensorAt(key, file, dtype, tuple(shape), base + begin, end - begin)


def _whole(value: Any, most: int) -> bool:
    """Is it a list of at most so many whole numbers, none of them negative?"""
    return isinstance(value, list) and len(value) <= most and all(type(item) is int and item >= 0 for item in value)


def _gapless(file: Path, entries: list[TensorAt], start: int, size: int) -> None:
    """The format wants every byte behind the header in exactly one tensor. Raises ModelError."""
    for tensor in sorted(entries, key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != start:
            raise ModelError(f"{file} is damaged: {tensor.key} begins at byte {tensor.start}, expected {start}", _AGAIN)
        start += tensor.size
        if start > size:
            raise ModelError(f"{file} is truncated: {tensor.key} ends at byte {start} of {size}", _AGAIN)
    if start != size:
        raise ModelError(f"{file} is damaged: its tensors end at byte {start} of {size}", _AGAIN)
