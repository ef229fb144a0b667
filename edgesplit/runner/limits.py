"""What this host's processor and memory give at best: the limits that the times of layers are shown beside.

Must not know: the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .devices import finish

STREAM = 2**27  # bytes read to time memory: more than caches hold
SIDE = {"cpu": 768}  # of the square matrices multiplied to time arithmetic
ACCELERATOR_SIDE = 4096
TRIES = 4  # the best counts: it is a limit


def arithmetic(dtype: str, device: str) -> dict[str, float]:
    """{"bandwidth": bytes per second read from memory, "flops": operations per second of a product of matrices}."""
    kind: torch.dtype = getattr(torch, dtype)
    vector = torch.ones(STREAM // 4, dtype=torch.float32, device=device)
    side = SIDE.get(device, ACCELERATOR_SIDE)
    matrix = torch.ones(side, side, dtype=kind, device=device)
    with torch.inference_mode():
        read = _best(vector.sum, device)
        multiplied = _best(lambda: matrix @ matrix, device)
    return {"bandwidth": STREAM / read, "flops": 2 * side**3 / multiplied}


def _best(act: Callable[[], Any], device: str) -> float:
    """Seconds, the least of several; the first warms up."""
    times = []
    for _ in range(TRIES + 1):
        start = time.perf_counter()
        act()
        finish(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
