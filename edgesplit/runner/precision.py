"""How a quantised matrix is stored, the same for every kind of host: types and shapes, and the keys in a shard.

For the weight `x.y.weight` of a model a shard holds `x.y.weight:codes` and `x.y.weight:scales`. A weight is
[out, in], of experts [experts, out, in]:

    int8   codes I8 [out, in], scales BF16 [out]; weight = code * scale, code -127 .. 127
    int4   codes U8 [out, in / 2], two to a byte, the even column in the high half; scales BF16 [in / GROUP, out, 2],
           a scale and a zero for GROUP columns of a row; weight = (code - 8) * scale + zero, code 0 .. 15

Must not know: tensors, models, how codes and scales are chosen.
"""

from __future__ import annotations

import math
from typing import Literal

Scheme = Literal["int8", "int4"]

GROUP = 32
ROWS = 16  # the int4 kernels take so many rows at a time
CODES, SCALES = ":codes", ":scales"
_BYTES = {"I8": 1, "U8": 1, "BF16": 2}


def fits(shape: tuple[int, ...], scheme: Scheme) -> bool:
    """Can a weight of this shape be quantised so?"""
    return shape[-1] % GROUP == 0 and (scheme == "int8" or shape[-2] % ROWS == 0)


def scheme(quantization: Scheme, *, end: bool) -> Scheme:
    """Each token's choice hangs on the head, the end of the model: its matrix is never coarser than int8."""
    return "int8" if end else quantization


def is_quantised(key: str) -> bool:
    return key.endswith((CODES, SCALES))


def stored(shape: tuple[int, ...], scheme: Scheme) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Element type and shape of codes and scales, by the end of their keys."""
    *many, rows, columns = shape
    if scheme == "int8":
        return {CODES: ("I8", (*many, rows, columns)), SCALES: ("BF16", (*many, rows))}
    return {CODES: ("U8", (*many, rows, columns // 2)), SCALES: ("BF16", (*many, columns // GROUP, rows, 2))}


def stored_bytes(shape: tuple[int, ...], scheme: Scheme) -> int:
    return sum(_BYTES[kind] * math.prod(size) for kind, size in stored(shape, scheme).values())
