"""A Hugging Face checkpoint -> the chain of its blocks. Reads the config and the files' headers, never a weight.

Must not know: hosts, plans but for the model's name and dtype.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesplit.errors import ModelError
from edgesplit.model.blocks import EMBEDDING, HEAD, Block, Chain
from edgesplit.values import Value, digest

if TYPE_CHECKING:
    from edgesplit.runner.anatomy import Anatomy

# safetensors' names of element types, and their bytes
ELEMENT = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
           "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_HEADER = 100 * 2**20  # bytes; the limit of the safetensors format itself
INDEX = "model.safetensors.index.json"
COMMON = -1  # the place of weights that every stage holds
# Small files a runner or a person needs beside the weights.
SIDE_FILES = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
              "vocab.*", "merges.txt", "chat_template.*", "*.model")  # fmt: skip


@dataclass(frozen=True)
class TensorAt:
    """Where a tensor's bytes are: [start, start + size) of `file`."""

    key: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the Hugging Face layout. `tensors` by key, `places`: key -> block number or COMMON."""

    folder: Path
    name: str
    config: dict[str, Any]
    tensors: Mapping[str, TensorAt]
    places: Mapping[str, int] = field(repr=False)
    chain: Chain
    tied: bool
    side_files: tuple[Path, ...]


def resolve(source: str, revision: str | None, beside: Path) -> Path:
    """The checkpoint's folder: a folder (relative to `beside`), or a hub id that is downloaded or cached.

    Raises ModelError when neither is to be had.
    """
    folder = (beside / Path(source).expanduser()).resolve()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelError(
            f"no model folder {folder}", "give the path of a checkpoint's folder, or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        wanted = ["*.safetensors", INDEX, *SIDE_FILES]
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:
        hint = "accept its licence on the hub's page, then log in with `hf auth login`"
        raise ModelError(f"model {source} is gated", hint) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"no folder {folder} and no model {source} on the hub", "check the name in the plan"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        hint = "check the network, or give the path of a downloaded folder as `model`"
        raise ModelError(f"model {source} is not in the local cache and the hub is out of reach", hint) from error


class _Known(Value):
    """What a run on the meta device told of a checkpoint, remembered: it takes seconds, and torch."""

    stamp: str
    chain: Chain
    places: dict[str, int]
    tied: bool


def open_checkpoint(folder: Path, name: str, dtype: str, cache: Path | None = None) -> Checkpoint:
    """Read a folder. `cache`: a file that remembers what needed torch to be found out.

    Raises ModelError when the checkpoint is absent, damaged, or no chain that can be cut.
    """
    config = _config(folder)
    tensors = read_headers(folder)
    shapes = [[tensor.key, tensor.dtype, list(tensor.shape)] for tensor in tensors.values()]
    contents = digest(json.dumps([config, shapes]))
    known = _recall(cache, stamp := f"{name} {dtype} {contents}")
    if known is None:
        known = _analyse(folder, name, dtype, tensors, contents, stamp)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(known.to_json())
    side = tuple(sorted({path for pattern in SIDE_FILES for path in folder.glob(pattern) if path.is_file()}))
    return Checkpoint(folder, name, config, tensors, known.places, known.chain, known.tied, side)


def _recall(cache: Path | None, stamp: str) -> _Known | None:
    if cache is None:
        return None
    try:
        known = _Known.model_validate_json(cache.read_text())
    except (OSError, ValueError):
        return None
    return known if known.stamp == stamp else None


def _analyse(folder: Path, name: str, dtype: str, tensors: Mapping[str, TensorAt], contents: str, stamp: str) -> _Known:
    anatomy, probe = _examine(folder, dtype)
    places = {key: _place(key, anatomy) for key in tensors}
    _complete(folder, anatomy, places)
    sizes = _sizes(tensors, places, DTYPE_BYTES[dtype])
    own_head = any(place == anatomy.count + 1 for place in places.values())
    config = _config(folder)
    chain = Chain(
        model=name,
        architecture=str((config.get("architectures") or ["?"])[0]),
        dtype=dtype,
        blocks=_blocks(anatomy, probe, sizes, DTYPE_BYTES[dtype]),
        common_bytes=sizes[COMMON],
        max_context=probe.max_context,
        checkpoint=contents,
    )
    return _Known(stamp=stamp, chain=chain, places=places, tied=probe.tied and not own_head)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json", "is it a Hugging Face checkpoint?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


# --- safetensors headers ---


def read_headers(folder: Path) -> dict[str, TensorAt]:
    """Every tensor of the checkpoint, from the index and the headers, checked against each other and the file sizes.

    Raises ModelError.
    """
    index = folder / INDEX
    if index.exists():
        try:
            files = json.loads(index.read_text())["weight_map"]
            names = sorted({str(name) for name in files.values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is damaged: {error!r}") from error
        if any("/" in name or name.startswith(".") for name in names):
            raise ModelError(f"{index} names files outside its folder")
        tensors = {tensor.key: tensor for name in names for tensor in read_header(folder / name)}
        absent = sorted(set(files) - set(tensors))
        if absent:
            raise ModelError(f"{index} names {len(absent)} tensors that no file holds, first {absent[0]}")
        return {key: tensors[key] for key in files}
    single = folder / "model.safetensors"
    if not single.exists():
        other = next(iter(folder.glob("*.bin")), None)
        hint = "convert it to safetensors first" if other else "is the download complete?"
        raise ModelError(f"{folder} holds no model.safetensors", hint)
    return {tensor.key: tensor for tensor in read_header(single)}


def read_header(file: Path) -> list[TensorAt]:
    """The tensors of one safetensors file: u64 little-endian length, JSON header, data. Raises ModelError."""
    try:
        size = file.stat().st_size
        with file.open("rb") as data:
            start = data.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ModelError(f"{file} is truncated or no safetensors file: {size} bytes, header of {length}")
            header = json.loads(data.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        entries = [_entry(file, key, value, 8 + length) for key, value in header.items() if key != "__metadata__"]
    except FileNotFoundError:
        raise ModelError(f"{file} is named by the index but is not there", "is the download complete?") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{file} is damaged: {error}") from error
    for tensor in entries:
        if tensor.start + tensor.size > size:
            raise ModelError(
                f"{file} is truncated: {tensor.key} ends at byte {tensor.start + tensor.size} of {size}",
                "download the file again",
            )
    return entries


def _entry(file: Path, key: str, value: Any, base: int) -> TensorAt:
    begin, end = (int(offset) for offset in value["data_offsets"])
    dtype, shape = str(value["dtype"]), tuple(int(extent) for extent in value["shape"])
    if dtype not in ELEMENT:
        raise ValueError(f"{key} has elements of unknown type {dtype}")
    if begin < 0 or any(extent < 0 for extent in shape) or end - begin != ELEMENT[dtype] * math.prod(shape):
        raise ValueError(f"{key}: {end - begin} bytes do not hold {dtype} {list(shape)}")
    return TensorAt(key, file, dtype, shape, base + begin, end - begin)


# --- which tensor belongs to which block ---


def _is(key: str, path: str) -> bool:
    """Does a checkpoint's key name a weight of the module at `path`? Only the module's own name is compared: what
    stands before it differs between checkpoints of the bare model and of the model with its head."""
    return re.search(rf"(?:^|\.){re.escape(path.rsplit('.', 1)[-1])}\.[^.]+$", key) is not None


def _place(key: str, anatomy: Anatomy) -> int:
    match = re.search(rf"(?:^|\.){re.escape(anatomy.layers.rsplit('.', 1)[-1])}\.(\d+)\.", key)
    if match:
        return int(match.group(1)) + 1
    if _is(key, anatomy.embedding):
        return 0
    return anatomy.count + 1 if _is(key, anatomy.head) else COMMON


def _complete(folder: Path, anatomy: Anatomy, places: Mapping[str, int]) -> None:
    found = set(places.values())
    absent = [number for number in range(anatomy.count + 1) if number not in found]
    if absent:
        what = "embedding" if absent[0] == 0 else f"layer {absent[0] - 1}"
        raise ModelError(f"{folder} holds no weights of its {what} (of {anatomy.count} layers)", "is it complete?")
    beyond = max(found) - 1
    if beyond > anatomy.count:
        raise ModelError(f"{folder} holds layer {beyond - 1}, but its config says {anatomy.count} layers")


def _sizes(tensors: Mapping[str, TensorAt], places: Mapping[str, int], element: int) -> Counter[int]:
    """Bytes in memory per place, floating weights counted at the plan's dtype."""
    sizes: Counter[int] = Counter()
    for key, tensor in tensors.items():
        floating = tensor.dtype.startswith(("F", "BF"))
        sizes[places[key]] += math.prod(tensor.shape) * (element if floating else ELEMENT[tensor.dtype])
    return sizes


# --- what a run on the meta device tells ---


@dataclass(frozen=True)
class _Probe:
    """Per layer: KV bytes per token, state bytes per sequence; bytes per token behind the embedding and each layer."""

    kv: tuple[int, ...]
    state: tuple[int, ...]
    boundary: tuple[int, ...]
    tied: bool
    max_context: int | None
    active: float  # share of the layers' weights one token uses (mixture of experts: fewer than all)


def _examine(folder: Path, dtype: str) -> tuple[Anatomy, _Probe]:
    """Build the model without weights and run it on shapes only."""
    from edgesplit.runner.anatomy import AnatomyError, examine, read_config, skeleton
    from edgesplit.runner.stage import DTYPES

    try:
        config = read_config(str(folder))
        config._experts_implementation = "batched_mm"  # the default, a grouped kernel, has no meta form in float32
        model = skeleton(config, DTYPES[dtype]).eval()
        anatomy = examine(model)
        return anatomy, _shapes(model, anatomy, config)
    except AnatomyError as error:
        raise ModelError(f"{folder} cannot be split: {error}") from error
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, TypeError) as error:
        raise ModelError(f"{folder}: transformers cannot build this model: {error}") from error


def _shapes(model: Any, anatomy: Anatomy, config: Any) -> _Probe:
    outputs: dict[int, int] = {}

    def watch(number: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            first = output if not isinstance(output, tuple) else output[0]
            outputs[number] = first[:, :1].numel() * first.element_size()

        return hook

    handles = [
        layer.register_forward_hook(watch(number))
        for number, layer in enumerate(model.get_submodule(anatomy.layers), start=1)
    ]
    short, long = (_cached(model, config, tokens) for tokens in (8, 9))
    for handle in handles:
        handle.remove()
    kv = tuple(after - before for before, after in zip(short, long, strict=True))
    text = config.get_text_config(decoder=True)
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    used = getattr(text, "num_experts_per_tok", None)
    return _Probe(
        kv=kv,
        state=tuple(before - 8 * each for before, each in zip(short, kv, strict=True)),
        boundary=(outputs[1], *(outputs[number] for number in range(1, anatomy.count + 1))),
        tied=f"{anatomy.head}.weight" in model.all_tied_weights_keys,
        max_context=getattr(text, "max_position_embeddings", None),
        active=used / experts if experts and used else 1.0,
    )


def _cached(model: Any, config: Any, tokens: int) -> list[int]:
    """Bytes in the cache of each layer after a run of `tokens` tokens, on the meta device."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return [
        sum(
            value.numel() * value.element_size()
            for value in vars(layer).values()
            if isinstance(value, torch.Tensor) and value.is_meta
        )
        for layer in cache.layers
    ]


def _blocks(anatomy: Anatomy, probe: _Probe, sizes: Counter[int], element: int) -> tuple[Block, ...]:
    def flops(weight_bytes: int, active: float) -> int:
        return round(2 * weight_bytes / element * active)

    head = sizes[anatomy.count + 1]
    embedding = Block(name=EMBEDDING, kind="embedding", weight_bytes=sizes[0], kv_bytes_per_token=0, state_bytes=0,
                      flops_per_token=0, output_bytes_per_token=probe.boundary[0])  # fmt: skip
    layers = [
        Block(
            name=f"layers.{number}",
            kind="layer",
            weight_bytes=sizes[number + 1],
            kv_bytes_per_token=probe.kv[number],
            state_bytes=probe.state[number],
            flops_per_token=flops(sizes[number + 1], probe.active),
            output_bytes_per_token=probe.boundary[number + 1],
        )
        for number in range(anatomy.count)
    ]
    last = Block(name=HEAD, kind="head", weight_bytes=head, kv_bytes_per_token=0, state_bytes=0,
                 flops_per_token=flops(head or sizes[0], 1.0), output_bytes_per_token=0)  # fmt: skip
    return (embedding, *layers, last)
