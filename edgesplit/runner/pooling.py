"""One vector of a text, from an encoder's last hidden state: as the checkpoint's sentence-transformers files say.

Must not know: HTTP, tokens, how the hidden state came about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MODULES = "modules.json"  # the steps from text to vector, where a checkpoint is one of sentence-transformers
_SETTINGS = "1_Pooling-config.json"  # 1_Pooling/config.json: a file that travels has no folder
_MODES = {"mean", "cls", "max", "lasttoken"}
# How older checkpoints say it: a flag for each.
_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
          "pooling_mode_lasttoken": "lasttoken", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
          "pooling_mode_weightedmean_tokens": "weightedmean"}  # fmt: skip


class PoolingError(ValueError):
    """The checkpoint wants a vector made in a way that is not known here."""


@dataclass(frozen=True)
class Pooling:
    """A checkpoint that says nothing means the mean of its positions, not normalised."""

    mode: str = "mean"
    normalised: bool = False

    @classmethod
    def load(cls, folder: Path) -> Pooling:
        """From a folder with the checkpoint's side files. Raises PoolingError."""
        if not (folder / MODULES).exists():
            return cls()
        steps = [str(step.get("type")).rpartition(".")[2] for step in _json(folder / MODULES) if isinstance(step, dict)]
        if steps[:2] != ["Transformer", "Pooling"] or steps[2:] not in ([], ["Normalize"]):
            raise PoolingError(f"{MODULES} asks for {', '.join(steps)}; known are Transformer, Pooling and Normalize")
        told = _json(folder / _SETTINGS)
        flagged = [mode for flag, mode in _FLAGS.items() if told.get(flag)]
        modes = [str(told["pooling_mode"])] if "pooling_mode" in told else flagged
        if len(modes) != 1 or modes[0] not in _MODES:
            known = ", ".join(sorted(_MODES))
            raise PoolingError(f"{_SETTINGS} asks for {', '.join(modes) or 'nothing'}; one of {known} is known")
        return cls(modes[0], "Normalize" in steps)

    def vector(self, hidden: torch.Tensor) -> list[float]:
        """Of a hidden state of shape [T, width]."""
        states = hidden.float()
        pooled = {"cls": states[0], "lasttoken": states[-1]}.get(self.mode)
        if pooled is None:
            pooled = states.mean(0) if self.mode == "mean" else states.max(0).values
        if self.normalised:
            pooled = torch.nn.functional.normalize(pooled, dim=0)
        return [float(value) for value in pooled]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PoolingError(f"{path.name} cannot be read: {error}") from error
