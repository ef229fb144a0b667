"""Which weights of a checkpoint are quantised, and their codes and scales, made while it is cut.

The weights are what transformers would load, whatever the checkpoint calls them and however it keeps them. One matrix
at a time is in memory; of a mixture of experts, those of one layer.

Must not know: hosts, plans, shards.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesplit.errors import ModelError
from edgesplit.model.blocks import COMMON
from edgesplit.model.headers import TensorAt
from edgesplit.model.placing import targets
from edgesplit.model.precision import Weight
from edgesplit.model.upstream import load
from edgesplit.runner.anatomy import Anatomy, read_config, skeleton
from edgesplit.runner.kernels import packed
from edgesplit.runner.precision import GROUP, Scheme, stored
from edgesplit.runner.quantised import matrices

# A change here is another `precision.VERSION`.
# int4: shares of a group's range that are tried, and how often scale and zero are fitted to the codes. More of both
# takes 2 % off the error (decision 0014).
RANGES, FITS = (1.0, 0.9), 3
PIECE = 2**18  # weights that are quantised at once: what is made of them on the way stays in the processor's caches
TINY = 1e-12  # a scale is never zero
_KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # fmt: skip

Codes = tuple[torch.Tensor, torch.Tensor]  # codes and scales, as stored


# --- which ---


def find(model: Any, anatomy: Anatomy, tensors: Mapping[str, TensorAt], places: Mapping[str, int]) -> list[Weight]:
    """The weights of the layers and the head that can be quantised. `model`: on the meta device."""
    used = {key: tensors[key] for key in places}
    names = {key: names for key, (names, _) in targets(model, model.state_dict(), used).items()}
    givers: dict[str, list[str]] = defaultdict(list)
    for key, given in names.items():
        for name in given:
            givers[name].append(key)
    found = {matrix.weight: matrix for matrix in matrices(model, anatomy)}
    chosen = {name for name in found if len({places[key] for key in givers[name]} - {COMMON}) == 1}
    if f"{anatomy.head}.weight" in givers:  # one matrix to the model, two to the checkpoint
        chosen.discard(f"{anatomy.embedding}.weight")
    # a tensor that also gives what stays as it is cannot go
    chosen = {name for name in chosen if all(chosen.issuperset(names[key]) for key in givers[name])}
    return [
        Weight(
            name=name,
            place=places[givers[name][0]],
            shape=found[name].shape,
            keys=tuple(givers[name]),
            turned=found[name].turned,
            end=found[name].end,
        )
        for name in found
        if name in chosen
    ]


# --- how ---


def int8(weight: torch.Tensor) -> Codes:
    """Of a matrix in float32: the largest weight of a row becomes 127."""
    scales = (weight.abs().amax(1) / 127).clamp(min=TINY).bfloat16()
    codes = (weight / scales.float()[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales


def int4(weight: torch.Tensor) -> Codes:
    """Of a matrix in float32: per group the scale and zero with the least square error of those tried."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    best: list[torch.Tensor] = []
    for share in RANGES:
        scale = ((high - low) * (share / 15)).clamp_(min=TINY).bfloat16().float()
        zero = ((high + low) / 2 + scale / 2).bfloat16().float()
        for fit in range(FITS + 1):
            codes = ((groups - zero) / scale).round_().clamp_(-8, 7)
            error = (codes * scale).add_(zero).sub_(groups).square_().sum(2, keepdim=True)
            tried = [error, codes, scale, zero]
            better = error < best[0] if best else None
            best = tried if better is None else [torch.where(better, *pair) for pair in zip(tried, best, strict=True)]
            if fit < FITS:
                scale, zero = _fitted(codes, groups)
    _, codes, scale, zero = best
    scales = torch.cat([scale, zero], 2).transpose(0, 1).contiguous().bfloat16()
    return packed(codes.add_(8).to(torch.uint8).flatten(1)), scales


def _fitted(codes: torch.Tensor, groups: torch.Tensor) -> Codes:
    """Scale and zero with the least square error for these codes."""
    middle, mean = codes.mean(2, keepdim=True), groups.mean(2, keepdim=True)
    spread = codes - middle
    scale = (spread * (groups - mean)).sum(2, keepdim=True) / spread.square().sum(2, keepdim=True).clamp_(min=TINY)
    scale = scale.clamp_(min=TINY).bfloat16().float()
    return scale, (mean - scale * middle).bfloat16().float()


@torch.no_grad()  # type: ignore[untyped-decorator]
def quantised(weight: torch.Tensor, scheme: Scheme) -> Codes:
    """Of [out, in], or of [experts, out, in], in pieces. Raises ValueError where a weight is no number."""
    if weight.dim() == 3:
        each = [quantised(one, scheme) for one in weight]
        return torch.stack([codes for codes, _ in each]), torch.stack([scales for _, scales in each])
    (_, shape), (_, factors) = stored(tuple(weight.shape), scheme).values()
    codes = torch.empty(shape, dtype=torch.int8 if scheme == "int8" else torch.uint8)
    scales = torch.empty(factors, dtype=torch.bfloat16)
    step = max(1, PIECE // weight.shape[1])
    for rows in (slice(at, at + step) for at in range(0, weight.shape[0], step)):
        piece = weight[rows].float()
        if not bool(piece.isfinite().all()):
            raise ValueError("some weights are no numbers")
        if scheme == "int8":
            codes[rows], scales[rows] = int8(piece)
        else:
            codes[rows], scales[:, rows] = int4(piece)
    return codes, scales


# --- of a checkpoint ---


@dataclass(frozen=True)
class Source:
    """A checkpoint's weights one by one, as transformers loads them. `weights`: those to be quantised."""

    model: Any
    tensors: Mapping[str, TensorAt]
    weights: Sequence[Weight]

    @classmethod
    def open(cls, folder: Path, tensors: Mapping[str, TensorAt], weights: Sequence[Weight], *, trusted: bool) -> Source:
        """`weights`: what `find` found. `trusted`: the folder's own code may run."""
        model = skeleton(read_config(str(folder), trust_remote_code=trusted), torch.float32)
        kinds = {_KINDS.get(tensors[key].dtype) for weight in weights for key in weight.keys}
        if len(kinds) == 1 and (kind := kinds.pop()) in (torch.bfloat16, torch.float16):
            model.to(kind)  # spares a copy
        return cls(model, tensors, weights)

    def order(self, place: int) -> list[Weight]:
        """The weights of a block, in the order of their codes."""
        return [weight for group in self._groups(place) for weight in group]

    def codes(
        self, place: int, quantization: Scheme, progress: Callable[[int], None]
    ) -> Iterator[tuple[memoryview, memoryview]]:
        """Codes and scales of a block's weights. `progress` gets the bytes read. Raises ModelError."""
        for group in self._groups(place):
            keys = {key for weight in group for key in weight.keys}
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # each thread would hold memory of its own
            load(self.model, {key: _tensor(self.tensors[key]) for key in keys}, "cpu")
            progress(sum(self.tensors[key].size for key in keys))
            for weight in group:
                codes, scales = self._quantised(weight, quantization)
                yield _bytes(codes), _bytes(scales)

    def _groups(self, place: int) -> list[list[Weight]]:
        """Those made of the same tensors together."""
        groups: list[list[Weight]] = []
        for weight in self.weights:
            if weight.place == place:
                kin = [group for group in groups if any({*weight.keys} & {*other.keys} for other in group)]
                groups = [group for group in groups if group not in kin]
                groups.append([*(other for group in kin for other in group), weight])
        return groups

    def _quantised(self, weight: Weight, quantization: Scheme) -> Codes:
        path, _, name = weight.name.rpartition(".")
        module = self.model.get_submodule(path)
        found = module._parameters[name]
        if found.is_meta:
            raise ModelError(f"{weight.name} cannot be made of {', '.join(weight.keys)}", "is the checkpoint complete?")
        module._parameters[name] = nn.Parameter(found.to("meta"), requires_grad=False)
        try:
            return quantised(found.transpose(-1, -2) if weight.turned else found, weight.scheme(quantization))
        except ValueError as error:
            raise ModelError(f"{weight.name} cannot be quantised: {error}", "download the checkpoint again") from error


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())


def _tensor(at: TensorAt) -> torch.Tensor:
    data = bytearray(at.size)
    try:
        with at.file.open("rb") as file:
            file.seek(at.start)
            if file.readinto(data) != at.size:
                raise ModelError(f"{at.file} became shorter while it was read")
    except OSError as error:
        raise ModelError(f"{at.file} cannot be read: {error.strerror}") from error
    return torch.frombuffer(data, dtype=_KINDS[at.dtype]).reshape(at.shape)
