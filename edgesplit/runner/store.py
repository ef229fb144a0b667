"""The runner's folder on its host: shards, model files, the manifest it serves.

    shards/<sha256>.sealed         weights, one block each, named by their content, never changed
    files/<sha256>                 config, tokenizer and the like
    stages/<epoch>-<stage>/        links to the above, laid out as a Hugging Face checkpoint
    stages/<epoch>-api/            the side files alone, for the API's tokenizer
    manifest.json                  the signed manifest of the epoch that is served
    previous.json                  that of the last epoch before it with another split
    serial                         the last command honoured, so that no older one is, even after a restart

Must not know: tensors, sockets.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
from pathlib import Path

from .manifest import Manifest, ManifestError, StagePlace, recorded
from .weights import INDEX, SEALED, sealed_slices

log = logging.getLogger("runner")


class StoreError(RuntimeError):
    """A file of the epoch is absent or not what it should be."""


class Store:
    """`keys`: those of the shards that are served here, in memory only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys: dict[str, bytes] = {}

    def shard(self, sha: str) -> Path:
        return self.folder / "shards" / f"{sha}{SEALED}"

    def lay_out(self, manifest: Manifest, number: int) -> Path:
        """The stage's folder, ready for from_pretrained. Raises StoreError naming what is absent."""
        target = self.lay_out_files(manifest, str(number))
        weights: dict[str, str] = {}
        for sha in _needed(manifest, manifest.stages[number]):
            shard = self.shard(sha)
            if not shard.exists():
                raise StoreError(f"shard {sha[:12]} is not on this host")
            (target / shard.name).symlink_to(shard.resolve())
            weights.update(dict.fromkeys(self._tensors(shard), shard.name))
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
        return target

    def _tensors(self, shard: Path) -> list[str]:
        """Their names in a shard. Raises StoreError."""
        try:
            return [*sealed_slices(shard, self.keys)]
        except (struct.error, ValueError, LookupError, TypeError) as error:
            raise StoreError(f"shard {shard.stem[:12]}: {error}") from error

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

    def succeed(self, manifest: Manifest, record: str) -> None:
        """This one serves from now on; one before it with another split is kept to go back to."""
        before = self.read("manifest.json")
        try:
            if before and not recorded(before).same_split(manifest):
                self.write("previous.json", before)
        except ManifestError as error:
            log.warning("what served before is not kept: %s", error)
        self.write("manifest.json", record)

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
