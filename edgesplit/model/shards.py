"""Cut a checkpoint into shards, one per block, named by content. A shard is a safetensors file that is never written
here: it is a header and the places of its bytes, read as it travels.

Must not know: hosts, splits.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgesplit.errors import ModelError
from edgesplit.model.blocks import COMMON
from edgesplit.model.checkpoint import Checkpoint, remember
from edgesplit.model.headers import TensorAt
from edgesplit.values import Value, digest

PIECE = 2**20  # bytes per read
ALIGN = 64  # bytes; the format itself asks for 8


@dataclass(frozen=True)
class Shard:
    """`sha256` and `size` of the safetensors file that `chunks()` yields."""

    name: str
    sha256: str
    size: int
    header: bytes
    tensors: tuple[TensorAt, ...]

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes. Raises ModelError when the checkpoint shrank meanwhile."""
        yield self.header
        yield from _data(self.tensors)


@dataclass(frozen=True)
class Cut:
    """A checkpoint as shards: `blocks[k]` holds block k; `common` what every stage needs; `files` the side files."""

    blocks: tuple[Shard, ...]
    common: Shard
    files: dict[str, tuple[str, Path]]  # name -> (sha256, where it is)

    def all(self) -> dict[str, Shard]:
        """By content hash."""
        return {shard.sha256: shard for shard in (*self.blocks, self.common)}


class HashCache(Value):
    """Hashes already computed, by shard name; valid while the files they came from are unchanged (size and mtime)."""

    stamp: str
    hashes: dict[str, str]


def cut(checkpoint: Checkpoint, cache: Path, progress: Callable[[int], None] = lambda _: None) -> Cut:
    """Name every block by its content, reading the weights once; `progress` gets the bytes read since its last call.

    `cache`: a file that remembers the hashes. Raises ModelError.
    """
    places = [*range(len(checkpoint.chain.blocks)), COMMON]
    tensors = {place: _tensors(checkpoint, place) for place in places}
    try:
        known = _remembered(cache, stamp := _stamp(tensors))
        shards = {place: _shard(_name(checkpoint, place), tensors[place], known, progress) for place in places}
        files = {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in checkpoint.side_files}
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}", "is the checkpoint complete?") from error
    remember(cache, HashCache(stamp=stamp, hashes={shard.name: shard.sha256 for shard in shards.values()}))
    common = shards.pop(COMMON)
    return Cut(tuple(shards.values()), common, files)


def _tensors(checkpoint: Checkpoint, place: int) -> tuple[TensorAt, ...]:
    mine = (tensor for key, tensor in checkpoint.tensors.items() if checkpoint.places.get(key) == place)
    return tuple(sorted(mine, key=lambda tensor: tensor.key))


def _name(checkpoint: Checkpoint, place: int) -> str:
    return "common" if place == COMMON else checkpoint.chain.blocks[place].name


def _remembered(cache: Path, stamp: str) -> dict[str, str]:
    try:
        known = HashCache.model_validate_json(cache.read_text())
    except (OSError, ValueError):
        return {}
    return known.hashes if known.stamp == stamp else {}


def _stamp(tensors: Mapping[int, tuple[TensorAt, ...]]) -> str:
    """Digest of what the hashes depend on: the files, and which of their bytes go where."""
    files = sorted({tensor.file for mine in tensors.values() for tensor in mine})
    states = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    parts = [[[tensor.key, str(tensor.file), tensor.start] for tensor in mine] for mine in tensors.values()]
    return digest(json.dumps([states, parts]))


def _shard(name: str, tensors: tuple[TensorAt, ...], known: dict[str, str], progress: Callable[[int], None]) -> Shard:
    header = _header(tensors)
    size = len(header) + sum(tensor.size for tensor in tensors)
    sha = known.get(name)
    if sha is None:
        hasher = hashlib.sha256(header)
        for piece in _data(tensors):
            hasher.update(piece)
            progress(len(piece))
        sha = hasher.hexdigest()
    else:
        progress(size - len(header))
    return Shard(name, sha, size, header, tensors)


def _header(tensors: tuple[TensorAt, ...]) -> bytes:
    """The safetensors header of these tensors laid end to end.

    Padded so that the weights begin at a multiple of 64 bytes, a cache line: mapped elsewhere, a bfloat16 layer decodes
    15 % slower on a CPU with AVX-512.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        entries[tensor.key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + tensor.size]}
        at += tensor.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    return struct.pack("<Q", len(text)) + text


def _data(tensors: tuple[TensorAt, ...]) -> Iterator[bytes]:
    for tensor in tensors:
        try:
            with tensor.file.open("rb") as file:
                yield from _piecewise(file, tensor)
        except OSError as error:
            raise ModelError(f"{tensor.file} cannot be read: {error.strerror}") from error


def _piecewise(file: IO[bytes], tensor: TensorAt) -> Iterator[bytes]:
    file.seek(tensor.start)
    left = tensor.size
    while left:
        piece = file.read(min(PIECE, left))
        if not piece:
            raise ModelError(f"{tensor.file} became shorter while it was read")
        left -= len(piece)
        yield piece
