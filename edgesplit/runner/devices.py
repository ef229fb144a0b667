"""Where torch computes on this host: an accelerator that it sees (CUDA, ROCm, MPS), else the CPU.

Must not know: what is computed.
"""

from __future__ import annotations

import torch


def best_device() -> str:
    """torch calls ROCm "cuda" too."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def finish(device: str) -> None:
    """Wait until what was asked of an accelerator is done; a CPU is done already."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def device_name(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()} ({'ROCm' if torch.version.hip else 'CUDA'})"
    return {"mps": "Apple GPU (MPS)"}.get(device, "cpu")


def memory_of(device: str) -> dict[str, int]:
    """An accelerator's own memory, bytes: it holds weights and caches, so it takes the place of the host's. What this
    process holds there already is the runtime's, and weights that are gone by the time a runner starts."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return {"device_total": total, "device_available": free + torch.cuda.memory_reserved()}
    if device == "mps":
        total = torch.mps.recommended_max_memory()
        return {"device_total": total, "device_available": max(0, total - torch.mps.driver_allocated_memory())}
    return {}
