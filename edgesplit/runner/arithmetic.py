"""What this processor multiplies quickly, and products in float32 of matrices that are held in fewer bits.

A processor without units for a 16-bit type multiplies many rows in it several times slower than in float32 (decision
0015). There such a matrix is widened in pieces and multiplied in float32: the sums are those of the 16-bit product,
which are in float32 too, but for their order.

Must not know: stages, caches, which layers a model has.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

PIECE = 1024  # rows of a matrix that are widened at once: a few MB, whatever the matrix
MANY = 32  # rows of input from which widening pays; measured in decisions 0014 and 0015
LARGE = 2**19  # elements of a matrix from which oneDNN's 15 us per call are made up for (decision 0038)
X86 = ("x86_64", "AMD64")


@cache
def has_units(dtype: torch.dtype) -> bool:
    """Does this processor multiply matrices of this type at least as fast as of float32?"""
    has = torch.cpu.get_capabilities()
    bfloat = dtype is torch.bfloat16
    if platform.machine() not in X86:
        return bool(has.get("bf16" if bfloat else "fp16_arith"))
    kind = "bf16" if bfloat else "fp16"
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"  # what torch itself may use
    return wide and bool(has.get(f"avx512_{kind}") or has.get(f"amx_{kind}"))


@dataclass
class Manner:
    """How a model's matrices are multiplied at the moment. `piece`: what comes is a piece of a longer prompt, which
    rounds otherwise than the prompt at once whoever multiplies it, as attention to what came before is summed anew."""

    piece: bool = False


def quicken(model: nn.Module) -> Manner:
    """Let its linear layers go the faster way: many rows of 16 bits in float32; and by oneDNN one token of each of
    several sequences (decision 0038), and the pieces of a long prompt (decision 0043). And its attention from one
    token (decision 0052)."""
    AttentionInterface.register("sdpa", _attend)
    manner = Manner()
    for module in model.modules():
        if type(module) not in (nn.Linear, Conv1D) or "forward" in vars(module):  # which stands in for another stage's
            continue
        weight: Any = module.weight
        if type(module) is nn.Linear and _gains_by_onednn(weight):
            module.forward = partial(_by_onednn, manner, weight, module.bias)
        elif weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16):
            module.forward = partial(_widely, module)
    return manner


def _by_onednn(manner: Manner, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Or, where it must be transformers' own product to the bit, by MKL, which has a slow way for few rows."""
    if x.dim() == 3 and (x.shape[0] > 1 if x.shape[1] == 1 else manner.piece):
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)


def _widely(module: Any, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight if type(module) is nn.Linear else module.weight.t()
    if x.numel() < MANY * x.shape[-1] or has_units(weight.dtype):
        return type(module).forward(module, x)
    product = widened(x.reshape(-1, x.shape[-1]), weight)
    if module.bias is not None:
        product += module.bias.float()
    return product.to(x.dtype).view(*x.shape[:-1], -1)


def _gains_by_onednn(weight: torch.Tensor) -> bool:
    return weight.numel() >= LARGE and weight.is_contiguous() and _onednn(weight.dtype, weight.device.type)


@cache
def _onednn(dtype: torch.dtype, device: str) -> bool:
    here = device == "cpu" and platform.machine() in X86 and torch.backends.mkldnn.is_available()
    return here and dtype is torch.float32


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **more: Any) -> Any:
    """transformers' own, with a mask that hides nothing where one token looks back in 16 bits: so heads that share keys
    become the rows of one product, for which torch is 7 to 13 times as fast as for a product of each."""
    narrow = key.device.type == "cpu" and key.dtype in (torch.bfloat16, torch.float16)
    if attention_mask is None and narrow and query.shape[2] == 1:
        attention_mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **more)


def widened(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight.T in float32."""
    wide = x.float()
    return torch.cat([functional.linear(wide, piece.float()) for piece in weight.split(PIECE)], 1)


@contextmanager
def in_bfloat16() -> Iterator[None]:
    """Within, float32 matrices that hold no more than bfloat16 can are multiplied by its units, where there are any:
    the products are the same, and still summed in float32."""
    if not has_units(torch.bfloat16):
        yield
        return
    flags: Any = torch.backends.mkldnn.matmul
    before = flags.fp32_precision
    flags.fp32_precision = "bf16"
    try:
        yield
    finally:
        flags.fp32_precision = before
