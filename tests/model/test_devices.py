"""Where torch computes, as it would say on hosts with accelerators; no such host took part in these tests."""

from __future__ import annotations

import pytest
import torch

from edgesplit.runner.devices import best_device, device_name, finish, memory_of

GIB = 2**30


def test_this_host_computes_on_its_cpu() -> None:
    if best_device() != "cpu":
        pytest.skip("it has an accelerator")
    finish("cpu")
    assert (device_name("cpu"), memory_of("cpu")) == ("cpu", {})


@pytest.mark.parametrize(("hip", "kind"), [(None, "CUDA"), ("6.4", "ROCm")])
def test_a_card_is_used_by_its_name_and_its_own_memory(
    hip: str | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card 24GB")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: GIB)
    assert (best_device(), device_name("cuda")) == ("cuda", f"Some Card 24GB ({kind})")
    assert memory_of("cuda") == {"device_total": 24 * GIB, "device_available": 21 * GIB}


def test_an_apple_gpu_may_take_what_metal_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: GIB)
    assert (best_device(), device_name("mps")) == ("mps", "Apple GPU (MPS)")
    assert memory_of("mps") == {"device_total": 10 * GIB, "device_available": 9 * GIB}
