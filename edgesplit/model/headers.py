"""The headers of a checkpoint's safetensors files: which tensors there are, and where their bytes lie.

Must not know: what a tensor is for. Reads no weight.
"""

from __future__ import annotations

import errno
import json
import math
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from edgesplit.errors import ModelError

# Element types of the safetensors format, and their bytes.
ELEMENT = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
           "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1,
           "F8_E5M2FNUZ": 1, "C64": 8}  # fmt: skip
MAX_HEADER = 100 * 2**20  # bytes; the limit of the format itself
MAX_RANK = 64  # dimensions of a tensor; torch's own limit
MOST = 2**60  # elements of a tensor, and any other number of a header: safetensors counts bits in 64 bits
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_AGAIN = "download the file again"
_COMPLETE = "is the download complete?"
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorAt:
    """Where a tensor's bytes are: [start, start + size) of `file`."""

    key: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_headers(folder: Path, chosen: str | None = None) -> dict[str, TensorAt]:
    """Every tensor of the checkpoint: of the single file, which transformers too prefers, or of the index's files.

    `chosen`: the file or index that the config names instead. Of a key in several files the last file's counts, as in
    transformers. Index, headers and file sizes are checked against each other. Raises ModelError.
    """
    if chosen is not None:
        path = _inside(folder, "config.json", [chosen])[0]
        return _indexed(folder, path) if chosen.endswith(".index.json") else _together([path])
    if (folder / SINGLE).exists():
        return _together([folder / SINGLE])
    if (folder / INDEX).exists():
        return _indexed(folder, folder / INDEX)
    raise _nothing(folder)


def _nothing(folder: Path) -> ModelError:
    for kind in ("bin", "gguf"):
        if any(folder.glob(f"*.{kind}")):
            hint = "convert it to safetensors: load it with transformers and save_pretrained it"
            return ModelError(f"{folder} holds only .{kind} files", hint)
    return ModelError(f"{folder} holds neither {SINGLE} nor {INDEX}", _COMPLETE)


def _together(files: Sequence[Path]) -> dict[str, TensorAt]:
    return {tensor.key: tensor for file in files for tensor in read_header(file)}


def _indexed(folder: Path, index: Path) -> dict[str, TensorAt]:
    try:
        data = json.loads(read_small(index))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{index} is damaged: {_words(error)}", _AGAIN) from error
    keys = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(keys, dict) or not all(isinstance(name, str) for name in keys.values()):
        raise ModelError(f"{index} is damaged: it has no proper weight_map", _AGAIN)
    tensors = _together(_inside(folder, index.name, sorted(set(keys.values()))))
    absent = sorted(key for key in keys if key not in tensors)
    if absent:
        raise ModelError(f"{index} names tensors that no file holds: {some(absent)}", _COMPLETE)
    return tensors


def _inside(folder: Path, who: str, names: Sequence[str]) -> list[Path]:
    """The files of these names. Raises ModelError where a name leads out of the folder."""
    outside = [name for name in names if "\\" in name or "\0" in name or {"..", "/"} & {*PurePosixPath(name).parts}]
    if outside:
        hint = "is this a checkpoint you trust?"
        raise ModelError(f"{folder / who} names files outside its folder: {some(outside)}", hint)
    return [folder / name for name in names]


def renamed(tensors: Mapping[str, TensorAt], aliases: Mapping[str, str]) -> dict[str, TensorAt]:
    """The tensors, and those of `aliases` (new key -> old key) under their new keys too."""
    return {**tensors, **{alias: replace(tensors[key], key=alias) for alias, key in aliases.items()}}


def some(names: Sequence[str]) -> str:
    """The first, and how many more there are."""
    return shown(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def shown(name: str) -> str:
    """A name out of a file that anybody may have written, fit for a terminal."""
    short = name if len(name) <= 200 else f"{name[:200]}..."
    return short if short.isprintable() else ascii(short)


def read_small(path: Path) -> bytes:
    """A small file's bytes. Never waits (for a pipe) and never fills the memory. Raises OSError."""
    if _size(path) > MAX_HEADER:
        raise OSError(errno.EFBIG, f"larger than {MAX_HEADER} bytes", str(path))
    return path.read_bytes()


def _size(path: Path) -> int:
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return found.st_size


def read_header(file: Path) -> list[TensorAt]:
    """The tensors of one file: u64 little-endian length, JSON header, data without gap or overlap.

    As strict as safetensors itself: what it refuses is refused. Raises ModelError.
    """
    try:
        size = _size(file)
        with file.open("rb") as data:
            start = data.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                what = f"it has {size} bytes and claims a header of {length}"
                raise ModelError(f"{file} is truncated or no safetensors file: {what}", _AGAIN)
            header = _strict(data.read(length))
        entries = [_entry(file, key, value, 8 + length) for key, value in header.items()]
    except FileNotFoundError:
        raise ModelError(f"{file} is named by the index but is not there", _COMPLETE) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged: {_words(error)}", _AGAIN) from error
    _gapless(file, entries, 8 + length, size)
    return entries


def _words(error: Exception) -> str:
    """An OSError without its number and path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _strict(data: bytes) -> dict[str, Any]:
    """A header's entries. Python reads more than JSON: other encodings, names twice, NaN. Raises ValueError."""
    header = json.loads(data.decode(), object_pairs_hook=_once, parse_int=_number, parse_constant=_number)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise ValueError("its __metadata__ is not text by name")
    for text in (*header, *notes, *notes.values()):
        text.encode()  # raises UnicodeEncodeError for half a character, which JSON can write
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("its header has a name twice")
    return names


def _number(text: str) -> int:
    if len(text) > 19 or not text.isdecimal() or int(text) >= MOST:
        raise ValueError(f"its header holds the number {text[:30]}")
    return int(text)


def _entry(file: Path, key: str, value: Any, base: int) -> TensorAt:
    entry: dict[str, Any] = value if isinstance(value, dict) and value.keys() == _FIELDS else {}
    dtype, shape, offsets = (entry.get(name, ()) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _whole(shape, MAX_RANK) or not _whole(offsets, 2) or len(offsets) != 2:
        raise ValueError(f"{shown(key)} has no proper dtype, shape and data_offsets")
    if dtype not in ELEMENT:
        raise ValueError(f"{shown(key)} has elements of unknown type {shown(dtype)}")
    if math.prod(max(1, size) for size in shape) >= MOST:
        raise ValueError(f"{shown(key)} has too many elements")
    begin, end = offsets
    if end - begin != ELEMENT[dtype] * math.prod(shape):
        raise ValueError(f"{shown(key)}: {end - begin} bytes do not hold {dtype} {shape}")
    return TensorAt(key, file, dtype, tuple(shape), base + begin, end - begin)


def _whole(value: Any, most: int) -> bool:
    """Is it a list of at most so many whole numbers?"""
    return isinstance(value, list) and len(value) <= most and all(type(item) is int for item in value)


def _gapless(file: Path, entries: list[TensorAt], start: int, size: int) -> None:
    """The format wants every byte behind the header in exactly one tensor. Raises ModelError."""
    for tensor in sorted(entries, key=lambda tensor: (tensor.start, tensor.size)):
        key = shown(tensor.key)
        if tensor.start != start:
            raise ModelError(f"{file} is damaged: {key} begins at byte {tensor.start}, expected {start}", _AGAIN)
        start += tensor.size
        if start > size:
            raise ModelError(f"{file} is truncated: {key} ends at byte {start} of {size}", _AGAIN)
    if start != size:
        raise ModelError(f"{file} is damaged: its tensors end at byte {start} of {size}", _AGAIN)
