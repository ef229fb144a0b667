"""The weights of a checkpoint that are quantised when it is cut, and the bytes of each block at any precision.

Must not know: torch, files, how codes are chosen. quantise.py finds the weights and makes the codes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from edgesplit.errors import ModelError
from edgesplit.model.blocks import Chain
from edgesplit.model.headers import ELEMENT, TensorAt
from edgesplit.runner.precision import GROUP, ROWS, Scheme, scheme, stored_bytes
from edgesplit.values import Value

VERSION = 1  # of the way codes are chosen; shards of another are made anew
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Weight(Value):
    """One of the model's weights that may be quantised: [out, in], of experts [experts, out, in].

    `keys`: the tensors of the checkpoint that it takes the place of. `turned`: the model holds its last two dimensions
    the other way around. `end`: it is the head's, or the one of head and embedding.
    """

    name: str
    place: int
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    turned: bool
    end: bool

    def scheme(self, quantization: Scheme) -> Scheme:
        return scheme(quantization, end=self.end)


def sizes(
    tensors: Mapping[str, TensorAt],
    places: Mapping[str, int],
    dtype: str,
    weights: Sequence[Weight] = (),
    quantization: Scheme | None = None,
) -> Counter[int]:
    """Bytes in memory per place: floating tensors at `dtype`, and `weights` quantised."""
    gone = {key for weight in weights for key in weight.keys} if quantization is not None else set()
    sizes: Counter[int] = Counter()
    for key in places.keys() - gone:
        kind = tensors[key].dtype
        floating = kind.startswith(("F", "BF"))
        sizes[places[key]] += math.prod(tensors[key].shape) * (DTYPE_BYTES[dtype] if floating else ELEMENT[kind])
    if quantization is not None:
        for weight in weights:
            sizes[weight.place] += stored_bytes(weight.shape, weight.scheme(quantization))
    return sizes


def at_precision(
    chain: Chain,
    tensors: Mapping[str, TensorAt],
    places: Mapping[str, int],
    weights: Sequence[Weight],
    quantization: Scheme,
) -> Chain:
    """The chain of the plain weights with these quantised. Raises ModelError where no matrix of the layers can be."""
    if all(weight.end for weight in weights):
        shape = f"none of its layers' matrices has rows in {ROWS}s and columns in {GROUP}s"
        raise ModelError(f"{chain.model} cannot be quantised: {shape}", "take `quantization` out of the plan")
    found = sizes(tensors, places, chain.dtype, weights, quantization)
    blocks = tuple(block.model_copy(update={"weight_bytes": found[at]}) for at, block in enumerate(chain.blocks))
    return chain.model_copy(update={"quantization": quantization, "blocks": blocks})
