"""On a processor without units for 16-bit types many rows are multiplied in float32, with the same results."""

from __future__ import annotations

import itertools
import platform
from pathlib import Path
from typing import Any

import pytest
import rings  # noqa: F401 - one thread
import torch
from models import make_checkpoint
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from edgesplit.runner import arithmetic
from edgesplit.runner.arithmetic import LARGE, MANY, in_bfloat16, quicken, widened
from edgesplit.runner.stage import Stage

PROMPT = [(7 * place) % 250 + 2 for place in range(MANY + 9)]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def _without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "has_units", lambda _: False)


@DTYPES
@pytest.mark.parametrize("kind", [torch.nn.Linear, Conv1D])
def test_many_rows_are_multiplied_in_float32_and_few_as_before(dtype: torch.dtype, kind: type) -> None:
    torch.manual_seed(0)
    layer = (kind(96, 1100) if kind is torch.nn.Linear else kind(1100, 96)).to(dtype)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, MANY, 96, dtype=dtype)
    with torch.no_grad():
        usual, few = layer(x), layer(x[:1, :3])
        quicken(layer)
        found = layer(x)
        assert (found.dtype, found.shape) == (dtype, usual.shape)
        assert (found == usual).float().mean() > 0.98
        assert torch.equal(layer(x[:1, :3]), few)
        weight = layer.weight if kind is torch.nn.Linear else layer.weight.t()
        exact = widened(x.flatten(0, 1), weight) + layer.bias.float()
    assert torch.equal(found.flatten(0, 1), exact.to(dtype))


@pytest.mark.skipif(platform.machine() not in arithmetic.X86, reason="oneDNN is measured on x86 only")
@pytest.mark.parametrize("bias", [True, False])
def test_tokens_of_several_sequences_and_pieces_go_through_onednn_and_all_else_as_before(*, bias: bool) -> None:
    torch.manual_seed(0)
    layer, small = torch.nn.Linear(1024, LARGE // 1024, bias=bias), torch.nn.Linear(1024, 8, bias=bias)
    manner = quicken(torch.nn.ModuleList([layer, small]))
    shapes = ((1, 1), (2, 1), (3, 1), (8, 1), (1, 8), (2, 3))
    for kept, manner.piece in itertools.product((layer, small), (False, True)):
        for shape in shapes:
            x = torch.randn(*shape, 1024)
            with torch.inference_mode(), torch.profiler.profile() as profile:
                found, plain = kept(x), torch.nn.Linear.forward(kept, x)
            fast = kept is layer and (shape[0] > 1 if shape[1] == 1 else manner.piece)
            assert any("mkldnn" in event.key for event in profile.key_averages()) == fast
            torch.testing.assert_close(found, plain) if fast else torch.testing.assert_close(
                found, plain, rtol=0, atol=0
            )


@DTYPES
def test_split_and_unsplit_give_the_same_tokens(dtype: torch.dtype, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    folder = make_checkpoint(tmp_path / "model")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    quicken(whole)
    ids = torch.tensor([PROMPT])
    wanted = whole.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    stages = [Stage.load(folder, first, last, name) for first, last in ((0, 1), (2, 3), (4, 5))]
    sequences, answer, new = [stage.sequence() for stage in stages], [*PROMPT], [*PROMPT]
    for _ in range(8):
        value = torch.tensor([new])
        for stage, sequence in zip(stages, sequences, strict=True):
            value = stage.forward(sequence, value)
        new = [int(value[0, -1].argmax())]
        answer += new
    assert answer == wanted[0].tolist()


def test_units_are_asked_for_and_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = torch.backends.mkldnn.matmul
    before = flags.fp32_precision
    with in_bfloat16():
        assert flags.fp32_precision == before
    monkeypatch.setattr(arithmetic, "has_units", lambda _: True)
    with in_bfloat16():
        assert flags.fp32_precision == "bf16"
    assert flags.fp32_precision == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_that_share_keys_are_rows_of_one_product_in_16_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str
) -> None:
    """Within rounding of what transformers asks torch for otherwise; in float32 it is asked as ever."""
    stage = Stage.load(make_checkpoint(tmp_path, "llama", layers=2), 0, 3, dtype)
    seen: list[tuple[int, bool]] = []
    torchs = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, *given: torch.Tensor, **more: Any) -> torch.Tensor:
        seen.append((query.shape[1], more.get("enable_gqa", False)))
        return torchs(query, *given, **more)

    sequence = stage.sequence()
    stage.forward(sequence, torch.tensor([[5, 7, 9]]))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    found = stage.forward(sequence, torch.tensor([[11]]))
    assert seen == [(2, False) if dtype == "bfloat16" else (4, True)] * 2
    whole = stage.forward(stage.sequence(), torch.tensor([[5, 7, 9, 11]]))
    torch.testing.assert_close(found, whole, rtol=0.05, atol=0.05)
