"""Cut a checkpoint into shards, one per block, named by content. A shard is a safetensors file that is never written
here: it is a header and the places of its bytes, read as it travels.

But for blocks that are quantised: their shards are files beside the cache of names, made once.

Must not know: hosts, splits.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgesplit.errors import ModelError
from edgesplit.model.blocks import COMMON
from edgesplit.model.checkpoint import Checkpoint, remember
from edgesplit.model.headers import ELEMENT, TensorAt, read_header
from edgesplit.model.precision import VERSION, Weight
from edgesplit.runner.precision import CODES, SCALES, Scheme, stored
from edgesplit.values import Value, digest

if TYPE_CHECKING:
    from edgesplit.model.quantise import Source

PIECE = 2**20  # bytes per read
ALIGN = 64  # bytes; the format itself asks for 8
Bytes = bytes | memoryview


@dataclass(frozen=True)
class Shard:
    """`sha256` and `size` of the safetensors file that `chunks()` yields; `file`: where it lies, if it was written."""

    name: str
    sha256: str
    size: int
    header: bytes
    tensors: tuple[TensorAt, ...]
    file: Path | None = None

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
    """Hashes already computed, by shard name, of quantised ones with their precision behind it; valid while the files
    they came from are unchanged (size and mtime)."""

    stamp: str
    hashes: dict[str, str]


def cut(
    checkpoint: Checkpoint,
    cache: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> Cut:
    """Name every block by its content at its chain's precision, reading the weights once; `progress` gets the bytes
    read since its last call.

    `cache`: a file that remembers the hashes; quantised shards lie in a folder beside it. Raises ModelError.
    """
    places = [*range(len(checkpoint.chain.blocks)), COMMON]
    tensors = {place: _tensors(checkpoint, place) for place in places}
    try:
        knife = _Knife(checkpoint, cache, _stamp(tensors, checkpoint.chain.quantization), progress)
        shards = {place: knife.shard(place, tensors[place]) for place in places}
        files = {
            "-".join(path.relative_to(checkpoint.folder).parts): (hashlib.sha256(path.read_bytes()).hexdigest(), path)
            for path in checkpoint.side_files
        }
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}", "is the checkpoint complete?") from error
    knife.tidy(shards.values())
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


def _stamp(tensors: Mapping[int, tuple[TensorAt, ...]], quantization: Scheme | None) -> str:
    """What the hashes depend on: the files, which of their bytes go where and how, and how they are quantised."""
    files = sorted({tensor.file for mine in tensors.values() for tensor in mine})
    states = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    parts = [[[tensor.key, str(tensor.file), tensor.start] for tensor in mine] for mine in tensors.values()]
    contents = digest(json.dumps([ALIGN, states, parts]))
    return contents if quantization is None else f"{contents} {quantization} {VERSION}"


@dataclass
class _Knife:
    checkpoint: Checkpoint
    cache: Path
    stamp: str
    progress: Callable[[int], None]

    @property
    def quantization(self) -> Scheme | None:
        return self.checkpoint.chain.quantization

    @cached_property
    def hashes(self) -> dict[str, str]:
        return _remembered(self.cache, self.stamp)

    @cached_property
    def source(self) -> Source:
        from edgesplit.model.quantise import Source

        trusted = bool(self.checkpoint.own_code)
        return Source.open(self.checkpoint.folder, self.checkpoint.tensors, self.checkpoint.weights, trusted=trusted)

    def shard(self, place: int, tensors: tuple[TensorAt, ...]) -> Shard:
        name = _name(self.checkpoint, place)
        known = name if self.quantization is None else f"{name} {self.quantization}"
        shard: Shard | None
        if self.quantization is None or name in self.hashes:
            shard = _virtual(name, tensors, self.hashes.get(name), self.progress)
        elif (shard := self._kept(name, self.hashes.get(known, ""))) is not None:
            self.progress(sum(tensor.size for tensor in tensors))
            return shard
        elif weights := self.source.order(place):
            shard = self._write(name, weights, tensors)
            name = known
        else:
            shard = _virtual(name, tensors, None, self.progress)
        self.hashes[name] = shard.sha256
        remember(self.cache, HashCache(stamp=self.stamp, hashes=self.hashes))  # so that a cut can be broken off
        return shard

    def _kept(self, name: str, sha: str) -> Shard | None:
        """What an earlier cut wrote, if it is there and whole."""
        with contextlib.suppress(ModelError):
            return _written(name, self._file(sha))
        return None

    def _write(self, name: str, weights: Sequence[Weight], tensors: tuple[TensorAt, ...]) -> Shard:
        part = self._file(name).with_suffix(".part")
        gone = {key for weight in weights for key in weight.keys}
        plain = tuple(tensor for tensor in tensors if tensor.key not in gone)
        assert self.quantization is not None  # noqa: S101 - or nothing is written
        header = _header((*_planned(weights, self.quantization, part), *plain))
        hasher = hashlib.sha256()
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                for piece in itertools.chain([header], self._contents(weights[0].place, plain, self.quantization)):
                    file.write(piece)
                    hasher.update(piece)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            hint = "quantised shards need about as much room as the model has at that precision"
            raise ModelError(f"{part} cannot be written: {error.strerror}", hint) from error
        return _written(name, part.replace(self._file(hasher.hexdigest())))

    def _contents(self, place: int, plain: tuple[TensorAt, ...], quantization: Scheme) -> Iterator[Bytes]:
        later = []
        for codes, scales in self.source.codes(place, quantization, self.progress):
            yield codes
            later.append(scales)
        yield from later
        for piece in _data(plain):
            self.progress(len(piece))
            yield piece

    def tidy(self, shards: Iterable[Shard]) -> None:
        """Remove what earlier cuts left and this one has no use for."""
        used = {self._file(shard.sha256) for shard in shards}
        for file in self._file("").parent.glob("*"):
            if self.quantization is not None and file not in used:
                file.unlink()

    def _file(self, name: str) -> Path:
        return self.cache.parent / "quantised" / f"{name}.safetensors"


def _planned(weights: Sequence[Weight], quantization: Scheme, file: Path) -> list[TensorAt]:
    """What will be in the file: codes first, so that they lie on whole cache lines, then scales."""
    made: dict[str, list[TensorAt]] = {CODES: [], SCALES: []}
    for weight in weights:
        for end, (kind, shape) in stored(weight.shape, weight.scheme(quantization)).items():
            size = ELEMENT[kind] * math.prod(shape)
            made[end].append(TensorAt(f"{weight.name}{end}", file, kind, shape, 0, size))
    return [*made[CODES], *made[SCALES]]


def _written(name: str, file: Path) -> Shard:
    tensors = sorted(read_header(file), key=lambda tensor: tensor.start)
    with file.open("rb") as data:
        header = data.read(tensors[0].start)
    return Shard(name, file.stem, file.stat().st_size, header, tuple(tensors), file.resolve())


def _virtual(name: str, tensors: tuple[TensorAt, ...], sha: str | None, progress: Callable[[int], None]) -> Shard:
    """`sha`: if it is known."""
    header = _header(tensors)
    size = len(header) + sum(tensor.size for tensor in tensors)
    if sha is None:
        hasher = hashlib.sha256(header)
        for piece in _data(tensors):
            hasher.update(piece)
            progress(len(piece))
        sha = hasher.hexdigest()
    else:
        progress(size - len(header))
    return Shard(name, sha, size, header, tensors)


def _header(tensors: Sequence[TensorAt]) -> bytes:
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
