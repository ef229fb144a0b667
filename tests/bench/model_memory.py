"""Memory, as the kernel counts it: VmHWM of a process of its own, less what it had before. Pages of mapped files count
like any other, once they are read; so a stage that is mapped takes next to nothing until its first forward.

The checkpoint's files are holes, which read as zeros and take no disk; in memory they are as large as any.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cutting import peaks
from loading import measured
from sparse import LAYERS, make_sparse
from splits import manifest_of, ship

from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.model.unsplit import lay_out
from edgesplit.runner.precision import Scheme

MOST = 1.05
MIB = 2**20
STORED = "bfloat16"
SCHEMES: tuple[Scheme, ...] = ("int8", "int4")
STAGES = {f"layers.0-{LAYERS - 1}": (1, LAYERS), "all, with embedding and head": (0, LAYERS + 1)}
EPOCHS = {"1": (1, 5), "2": (2, 7), "3": (1, 7)}


@dataclass(frozen=True)
class Made:
    """A checkpoint, and folders as stages are loaded from."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.model.glob("*.safetensors"))

    @cache  # noqa: B019 - as long as the folder
    def laid(self, scheme: Scheme | None) -> dict[str, Path]:
        """The whole model in plain files, and sealed as on a host."""
        home = self.folder / str(scheme)
        (home / "plain").mkdir(parents=True)
        checkpoint = open_checkpoint(self.model, "large", STORED, quantization=scheme)
        lay_out(cut(checkpoint, home / "hashes.json"), home / "plain")
        return {"plain": home / "plain", "sealed": ship(checkpoint, home).lay_out(manifest_of(checkpoint, home, ()), 0)}


@contextmanager
def made() -> Iterator[Made]:
    with tempfile.TemporaryDirectory() as place:
        make_sparse(Path(place) / "model")
        yield Made(Path(place))


def stages(checkpoint: Made) -> list[dict[str, Any]]:
    held = [(STORED, None), ("float32", None), ("float16", None), *((STORED, scheme) for scheme in SCHEMES)]
    return [
        {"held as": scheme or dtype, "files": files, "blocks": blocks, **_taken(folder, dtype, ends)}
        for dtype, scheme in held
        for files, folder in checkpoint.laid(scheme).items()
        for blocks, ends in STAGES.items()
    ]


def _taken(folder: Path, dtype: str, ends: tuple[int, int]) -> dict[str, float]:
    (found,) = measured(folder, dtype, ends)
    size = found["bytes"]
    ratios = {"loading / stage": found["loaded"] / size, "with a forward / stage": found["run"] / size}
    return {"stage MiB": size / MIB, "peak MiB": max(found["loaded"], found["run"]) / MIB, **ratios}


def epochs(checkpoint: Made) -> list[dict[str, Any]]:
    """Each new stage: the bytes that no earlier one has, and by how much the peak grew."""
    rows, size, peak = [], 0, 0
    for (name, ends), found in zip(
        EPOCHS.items(), measured(checkpoint.laid(None)["sealed"], STORED, *EPOCHS.values()), strict=True
    ):
        new, grown = found["bytes"] - size, max(found["loaded"], found["run"]) - peak
        size, peak = found["bytes"], peak + max(grown, 0)
        rows.append(
            {
                "epoch": name,
                "blocks": f"layers.{ends[0] - 1}-{ends[1] - 1}",
                "new MiB": new / MIB,
                "peak grew by MiB": grown / MIB,
                "all MiB": size / MIB,
                "peak / all": peak / size,
            }
        )
    return rows


def controller(checkpoint: Made) -> list[dict[str, Any]]:
    rows = []
    for scheme in (None, *SCHEMES):
        with tempfile.TemporaryDirectory() as place:
            found = peaks(checkpoint.model, Path(place) / "hashes.json", scheme)
        largest = 0.0 if scheme is None else _largest(checkpoint) * 1.5  # it in 16 bits, and its codes in 8
        held = {"largest matrix and its codes MiB": largest / MIB}
        rows.append({"cut to": scheme or STORED, **{f"{name} MiB": size / MIB for name, size in found.items()}, **held})
    return rows


def _largest(checkpoint: Made) -> int:
    return max(tensor.size for tensor in open_checkpoint(checkpoint.model, "large", STORED).tensors.values())
