"""A folder's weights as tensors that are read when they are used, never more of them in memory than needed.

Of a safetensors file, a tensor that stays in its element type is mapped: its pages come in on first use and the kernel
may drop them again. One that is cast is read past the page mapping, so that its old form is gone as soon as the new one
is there. Of a sealed file each tensor is opened when it is read.

Must not know: what a tensor is for.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open

from .sealing import SealedFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SEALED = ".sealed"
MAX_HEADER = 100 * 2**20  # bytes; the limit of the safetensors format itself
_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip

Keys = Mapping[str, bytes]  # of sealed files, by the name of the file without its ending
NO_KEYS: Keys = MappingProxyType({})


def lazy_tensors(folder: Path, dtype: torch.dtype, keys: Keys = NO_KEYS) -> dict[str, Any]:
    """Slices by key, as transformers takes them for a state dict; `dtype` is what floating weights will be cast to.

    Raises OSError, ValueError, KeyError or SafetensorError where files are absent or damaged.
    """
    return {key: read if cast(mapped, dtype) else mapped for key, mapped, read in slices(folder, keys)}


def cast(found: Any, dtype: torch.dtype) -> bool:
    kind = _KINDS.get(found.get_dtype(), dtype)
    return kind.is_floating_point and kind != dtype


def slices(folder: Path, keys: Keys = NO_KEYS) -> Iterator[tuple[str, Any, Any]]:
    """Of each tensor its key, and it twice: mapped, and read past the mapping. Raises as lazy_tensors."""
    for file in _files(folder):
        if file.suffix == SEALED:
            for key, found in sealed_slices(file, keys).items():
                yield key, found, found
            continue
        mapped: Any = safe_open(file, framework="pt", backend="mmap")
        read: Any = safe_open(file, framework="pt", backend="pread")
        for key in mapped.keys():  # noqa: SIM118 - not a dict
            yield key, mapped.get_slice(key), read.get_slice(key)


class Slice:
    """A tensor of a sealed file, as safetensors' own slices are. Whenever it is read, it is opened: whole, or only the
    rows asked for, which are what the first index chooses."""

    def __init__(self, file: SealedFile, kind: str, shape: tuple[int, ...], start: int) -> None:
        self._file, self._kind, self._shape, self._start = file, kind, shape, start

    def get_dtype(self) -> str:
        return self._kind

    def get_shape(self) -> list[int]:
        return list(self._shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        rows = range(self._shape[0]) if self._shape else range(1)
        if self._shape and isinstance(index, int):
            return self._rows(rows[index], 1)[0]
        if self._shape and isinstance(index, slice) and rows[index].step == 1:
            return self._rows(rows[index].start, len(rows[index]))
        return self._rows(0, len(rows)).reshape(self._shape)[index]

    def _rows(self, first: int, count: int) -> torch.Tensor:
        dtype, shape = _KINDS[self._kind], (count, *self._shape[1:])
        row = math.prod(self._shape[1:]) * dtype.itemsize
        if not count * row:
            return torch.empty(shape, dtype=dtype)
        data = torch.empty(count * row, dtype=torch.uint8)  # aligned as kernels like it
        self._file.read_into(self._start + first * row, memoryview(data.numpy()))
        return data.view(dtype).reshape(shape)


def sealed_slices(file: Path, keys: Keys) -> dict[str, Slice]:
    """Of a sealed safetensors file: u64 little-endian length, then that much JSON, then the tensors' bytes.

    Raises OSError, SealError, ValueError.
    """
    if file.stem not in keys:
        raise ValueError(f"{file.name} cannot be opened without its key")
    content = SealedFile(file, keys[file.stem])
    (length,) = struct.unpack("<Q", content.read(0, 8))
    if length > MAX_HEADER:
        raise ValueError(f"{file.name} has a header of {length} bytes")
    header = json.loads(content.read(8, length))
    return {
        key: Slice(content, about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0])
        for key, about in header.items()
        if key != "__metadata__"
    }


def _files(folder: Path) -> list[Path]:
    if not (folder / INDEX).exists():
        return [folder / SINGLE]
    names = json.loads((folder / INDEX).read_text())["weight_map"].values()
    return [folder / name for name in dict.fromkeys(names)]
