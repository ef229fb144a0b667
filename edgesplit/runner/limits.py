"""What this host's processor and memory give at best: the limits that the times of layers are shown beside.

Must not know: the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

STREAM = 2**27  # bytes read to time memory: more than caches hold
SIDE = {"cpu": 768}  # of the square matrices multiplied to time arithmetic
ACCELERATOR_SIDE = 4096
TRIES = 4  # the best counts: it is a limit


def arithmetic(dtype: str, device: str, seconds: Callable[[Callable[[], Any]], float]) -> dict[str, float]:
    """{"bandwidth": bytes per second read from memory, "flops": operations per second of a product of matrices}.

    `seconds` runs something and says how long it took, as for the layers' times that these are shown beside.
    """
    kind: torch.dtype = getattr(torch, dtype)
    vector = torch.ones(STREAM // 4, dtype=torch.float32, device=device)
    side = SIDE.get(device, ACCELERATOR_SIDE)
    matrix = torch.ones(side, side, dtype=kind, device=device)

    def best(act: Callable[[], Any]) -> float:
        """The least of several; the first warms up."""
        return min([seconds(act) for _ in range(TRIES + 1)][1:])

    with torch.inference_mode():
        read, multiplied = best(vector.sum), best(lambda: matrix @ matrix)
    return {"bandwidth": STREAM / read, "flops": 2 * side**3 / multiplied}
