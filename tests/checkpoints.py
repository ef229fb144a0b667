"""Small checkpoints taken apart and put together otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The folder with its weights changed, in a single file."""
    changed = change(weights(folder))
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    save_file({key: tensor.contiguous().clone() for key, tensor in changed.items()}, folder / "model.safetensors")
    return folder


def config(folder: Path, **changes: Any) -> None:
    """Over the config's keys; None takes one away."""
    path = folder / "config.json"
    new = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in new.items() if value is not None}))
