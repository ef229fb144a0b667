"""A folder's safetensors files as tensors that are read when they are used, never more of them in memory than needed.

A tensor that stays in its element type is mapped: its pages come in on first use and the kernel may drop them again.
One that is cast is read past the page mapping, so that its old form is gone as soon as the new one is there.

Must not know: what a tensor is for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATING = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def lazy_tensors(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Slices by key, as transformers takes them for a state dict; `dtype` is what floating weights will be cast to.

    Raises OSError, ValueError, KeyError or SafetensorError where files are absent or damaged.
    """
    tensors: dict[str, Any] = {}
    for file in _files(folder):
        mapped: Any = safe_open(file, framework="pt", backend="mmap")
        read: Any = safe_open(file, framework="pt", backend="pread")
        for key in mapped.keys():  # noqa: SIM118 - not a dict
            found = mapped.get_slice(key)
            cast = _FLOATING.get(found.get_dtype(), dtype) != dtype
            tensors[key] = read.get_slice(key) if cast else found
    return tensors


def _files(folder: Path) -> list[Path]:
    if not (folder / INDEX).exists():
        return [folder / SINGLE]
    names = json.loads((folder / INDEX).read_text())["weight_map"].values()
    return [folder / name for name in dict.fromkeys(names)]
