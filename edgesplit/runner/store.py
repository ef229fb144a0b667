"""The runner's folder on its host: shards, model files, the manifest it serves.

    shards/<sha256>.safetensors    weights, one block each, never changed
    files/<sha256>                 config, tokenizer and the like
    stages/<epoch>-<stage>/        links to the above, laid out as a Hugging Face checkpoint
    stages/<epoch>-api/            the side files alone, for the API's tokenizer
    manifest.json                  the signed manifest of the epoch that is served
    serial                         the last command honoured, so that no older one is, even after a restart

Must not know: tensors, sockets.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

from .manifest import Manifest, StagePlace

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 * 2**20  # bytes; the limit of the safetensors format itself


class StoreError(RuntimeError):
    """A file of the epoch is absent or not what it should be."""


class Store:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shard(self, sha: str) -> Path:
        return self.folder / "shards" / f"{sha}.safetensors"

    def lay_out(self, manifest: Manifest, number: int) -> Path:
        """The stage's folder, ready for from_pretrained. Raises StoreError naming what is absent."""
        target = self.lay_out_files(manifest, str(number))
        weights: dict[str, str] = {}
        for sha in _needed(manifest, manifest.stages[number]):
            shard = self.shard(sha)
            if not shard.exists():
                raise StoreError(f"shard {sha[:12]} is not on this host")
            (target / shard.name).symlink_to(shard.resolve())
            weights.update(dict.fromkeys(_keys(shard), shard.name))
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
        return target

    def lay_out_files(self, manifest: Manifest, part: str = "api") -> Path:
        """A folder of the epoch with its side files. Raises StoreError naming what is absent."""
        target = self.folder / "stages" / f"{manifest.epoch}-{part}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name, sha in manifest.files.items():
            source = self.folder / "files" / sha
            if not source.exists():
                raise StoreError(f"file {name} is not on this host")
            (target / name).symlink_to(source.resolve())
        return target

    def forget_stages(self, epoch: int) -> None:
        for folder in (self.folder / "stages").glob(f"{epoch}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def write(self, name: str, text: str) -> None:
        """Replace a small file whole: a crash leaves the old one or the new one."""
        part = self.folder / f"{name}.part"
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / name)

    def read(self, name: str) -> str:
        """The file's text, "" when there is none."""
        path = self.folder / name
        return path.read_text() if path.exists() else ""


def _needed(manifest: Manifest, place: StagePlace) -> list[str]:
    """The shards of a stage: its blocks, the common weights, and the embedding where the head is tied to it."""
    blocks = list(range(place.first, place.last + 1))
    if manifest.tied and place.last == len(manifest.shards) - 1 and place.first > 0:
        blocks.insert(0, 0)
    return list(dict.fromkeys([*(manifest.shards[block] for block in blocks), manifest.common]))


def _keys(shard: Path) -> list[str]:
    """Names of the tensors in a safetensors file: u64 little-endian length, then that much JSON. Raises StoreError."""
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            return [key for key in json.loads(file.read(length)) if key != "__metadata__"]
    except (struct.error, ValueError) as error:
        raise StoreError(f"{shard.name} is no safetensors file: {error}") from error
