"""Products with quantised matrices, by torch's own kernels where this device has one that proves itself.

Must not know: modules, files, how codes and scales were chosen.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any, Protocol

import torch
from torch.nn import functional

from .arithmetic import MANY, PIECE, in_bfloat16, widened
from .precision import GROUP, ROWS, Scheme, stored

LAID = 64  # rows of int4 that are laid out at once: the layout goes by 64 at most, and it wants four bytes per code
ALIGNED = 64  # bytes; the kernels for x86 load whole vectors
CLOSE = 0.02  # of the largest output: a kernel that is further off computes something else


class Kernel(Protocol):
    """`take` brings stored codes and scales into the kernel's own form; `multiply` gives x @ weight.T for x of shape
    [rows, in], in x's dtype. No row's result depends on the other rows, nor on how many there are, but for the order
    in which float32 sums are taken from MANY rows on."""

    def take(self, codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def multiply(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor: ...


def restore(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weights, in float32, of what is stored."""
    if codes.dtype == torch.int8:
        return codes.float() * scales.float()[:, None]
    return unpacked(codes).float().sub_(8).mul_(_columns(scales, 0)).add_(_columns(scales, 1))


def unpacked(codes: torch.Tensor) -> torch.Tensor:
    """Codes one to a byte."""
    return torch.stack([codes >> 4, codes & 15], -1).flatten(-2)


def packed(codes: torch.Tensor) -> torch.Tensor:
    """The reverse, of codes in uint8."""
    return codes[..., ::2] << 4 | codes[..., 1::2]


def _columns(scales: torch.Tensor, which: int) -> torch.Tensor:
    """A group's scales or zeros, repeated for each of its columns: [out, in]."""
    return scales[..., which].float().t().repeat_interleave(GROUP, 1)


class Unpacking:
    """For devices without a kernel: unpack some rows of the matrix, multiply, forget them."""

    def take(self, codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return codes.contiguous(), scales.contiguous()

    def multiply(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        if codes.dtype == torch.int8:
            return _int8_in_pieces(x, codes, scales)
        return torch.cat(
            [
                functional.linear(x, restore(piece, scales[:, at : at + PIECE]).to(x.dtype))
                for at, piece in _pieces(codes)
            ],
            1,
        )


def _int8_in_pieces(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The codes are whole numbers that bfloat16 too holds exactly: only the scaling rounds."""
    products = [functional.linear(x, piece.to(x.dtype)) for _, piece in _pieces(codes)]
    return torch.cat(products, 1).mul_(scales.to(x.dtype))


def _pieces(codes: torch.Tensor, rows: int = PIECE) -> list[tuple[int, torch.Tensor]]:
    return [(at, codes[at : at + rows]) for at in range(0, codes.shape[0], rows)]


class Int8:
    """torch's `_weight_int8pack_mm`, which takes the codes as they are stored. `arithmetic`: what it multiplies in.

    It reads the matrix anew for every row or four, so many rows are multiplied by the widened codes: the same products,
    for bfloat16 holds the codes exactly, summed in float32 and rounded once, as the kernel does.
    """

    def __init__(self, arithmetic: torch.dtype) -> None:
        self._arithmetic = arithmetic

    def take(self, codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _aligned(codes.contiguous()), scales.to(self._arithmetic).contiguous()

    def multiply(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ready = _aligned(x.to(self._arithmetic).contiguous())
        if x.shape[0] >= MANY:
            return self._many(ready, codes, scales).to(x.dtype)
        product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(ready, codes, scales)
        return product.to(x.dtype)

    def _many(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        if self._arithmetic is not torch.bfloat16:
            return widened(x, codes).mul_(scales.float()).to(self._arithmetic)
        with in_bfloat16():
            return widened(x, codes).mul_(scales.float()).to(self._arithmetic)


class Int8Cuda(Int8):
    """Its kernel is for few rows too; tensor cores take the others unpacked."""

    def _many(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return _int8_in_pieces(x, codes, scales)


class Int4:
    """torch's `_weight_int4pack_mm_for_cpu`; it has a layout of its own on each kind of processor."""

    def __init__(self, arithmetic: torch.dtype) -> None:
        self._arithmetic = arithmetic

    def take(self, codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made = torch.empty_like(codes, memory_format=torch.contiguous_format)
        for at, piece in _pieces(codes, LAID):
            made[at : at + LAID] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpacked(piece).int(), 1)
        return made, scales.to(self._arithmetic).contiguous()

    def multiply(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ready = x.to(self._arithmetic).contiguous()
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(ready, codes, GROUP, scales)
        return product.to(x.dtype)


class Int4Cuda:
    """torch's `_weight_int4pack_mm`, for tensor cores; only in bfloat16."""

    def take(self, codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inner = next(tiles for tiles in (8, 4, 2) if codes.shape[1] * 2 % (16 * tiles) == 0)
        return torch.ops.aten._convert_weight_to_int4pack(codes.contiguous(), inner), scales.contiguous()

    def multiply(self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ready = x.to(torch.bfloat16).contiguous()
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm(ready, codes, GROUP, scales)
        return product.to(x.dtype)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.data_ptr() % ALIGNED == 0 else tensor.clone()


# --- which one ---


@cache
def kernel(scheme: Scheme, device: torch.device, dtype: torch.dtype) -> Kernel:
    """For matrices on this device, whose inputs are of this dtype."""
    made = _candidate(scheme, device, dtype)
    return made if made is not None and _proves_itself(made, scheme, device, dtype) else Unpacking()


def _candidate(scheme: Scheme, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    if device.type == "cuda":
        return Int8Cuda(dtype) if scheme == "int8" else Int4Cuda()
    if device.type != "cpu":
        return None
    arm = platform.machine() in ("aarch64", "arm64")
    # the kernels for x86 are vectorised in bfloat16 alone, those for ARM in all three
    arithmetic = dtype if arm else torch.bfloat16
    return Int8(arithmetic) if scheme == "int8" else Int4(arithmetic)


def _proves_itself(made: Kernel, scheme: Scheme, device: torch.device, dtype: torch.dtype) -> bool:
    """Does it compute, here and now, what the stored form says? A build or a processor may lack it."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4 * GROUP, generator=source)
    codes, scales = _specimen(scheme, source)
    wanted = x @ restore(codes, scales).t()
    try:
        form = made.take(codes.to(device), scales.to(device))
        found = made.multiply(x.to(device, dtype), *form).float().cpu()
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return bool((found - wanted).abs().max() <= CLOSE * wanted.abs().max())


def _specimen(scheme: Scheme, source: Any) -> tuple[torch.Tensor, torch.Tensor]:
    (_, shape), (_, scales) = stored((4 * ROWS, 4 * GROUP), scheme).values()
    codes = torch.randint(1, 255, shape, generator=source)
    made = (codes - 128).to(torch.int8) if scheme == "int8" else codes.to(torch.uint8)
    return made, torch.rand(scales, generator=source).bfloat16()
