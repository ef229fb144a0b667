"""A host measured with layers of the model: every number the planner needs, for families of either kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import rings  # noqa: F401 - one thread
import torch
from models import config
from transformers import BloomConfig, PreTrainedConfig

from edgesplit.runner import measure
from edgesplit.runner.stage import Stage
from edgesplit.runner.turns import Turns

PADDED = config("gpt2", 2)
PADDED.pad_token_id = 1


def measured(model: PreTrainedConfig, monkeypatch: pytest.MonkeyPatch, **more: Any) -> dict[str, Any]:
    monkeypatch.setattr(measure, "BUDGET", 0.0)
    arguments = {"dtype": "float32", "quantization": None, "contexts": [8, 2], "chunk": 4, "far": 4, "rows": 3}
    arguments |= {"layer_bytes": 2**16, "threads": 0, "head": True, "code": [], "folder": ".", **more}
    return measure.measure({"config": model.to_dict(), **arguments})


@pytest.mark.parametrize(
    "model",
    [config("llama"), PADDED, BloomConfig(vocab_size=99, hidden_size=32, n_layer=3, n_head=4)],
    ids=["llama", "two layers only, and it looks for padding", "layers that return tuples"],
)
def test_times_of_layers_and_head(model: PreTrainedConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = measured(model, monkeypatch)
    times = answer["times"]
    assert (times["chunk_tokens"], times["context"]) == (4, 8)
    fitted = ("decode_position", "decode_row", "prefill_token", "prefill_pair", "sample")
    for name in ("decode_layer", "decode_overhead", "prefill_layer", "prefill_overhead", "head", *fitted):
        assert 0 <= times[name] < 5, name
    assert times["decode_layer"] + times["decode_overhead"] > 0
    assert answer["runtime_bytes"] > 2**20
    assert min(answer["limits"].values()) > 1e6
    assert answer["missing"] == []
    assert answer["cores"] > 0


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_quantised_layers_and_head_are_measured_as_such(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's matrix is a parameter no more, also where it is the embedding's."""
    made = config(family)
    made.intermediate_size = 64
    stages: list[Any] = []
    real = Stage.random

    def random(*words: Any, **more: Any) -> Stage:
        stages.append(real(*words, **more))
        return stages[-1]

    monkeypatch.setattr(Stage, "random", random)
    assert measured(made, monkeypatch, quantization="int4")["times"]["head"] >= 0
    stages.pop(0)  # that of the shapes in front of the first layer
    assert len(stages) == 3
    assert [name for stage in stages for name, weight in stage.model.named_parameters() if weight.dim() > 1] == []
    kinds = [{buffer.dtype for name, buffer in stage.model.named_buffers() if "codes" in name} for stage in stages]
    assert kinds == [{torch.uint8}, {torch.uint8}, {torch.int8}]


def test_a_head_is_measured_only_where_one_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(config("llama"), monkeypatch, head=False)["times"]["head"] == 0


def test_missing_packages_are_named_instead_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PACKAGES", ("torch", "a-package-nobody-has"))
    answer = measured(config("llama"), monkeypatch)
    assert (answer["missing"], answer["times"]) == (["a-package-nobody-has"], None)


def clock_of(monkeypatch: pytest.MonkeyPatch, cores: float, *runs: tuple[float, float], threads: int = 1) -> Any:
    """One whose runs take so long, and so much of the processor."""
    monkeypatch.setattr(measure, "quota", lambda: (cores, 0.02))
    wall = iter([at for number, (took, _) in enumerate(runs) for at in (number, number + took)])
    own = iter([at for number, (_, used) in enumerate(runs) for at in (number, number + used)])
    monkeypatch.setattr(measure, "time", SimpleNamespace(
        sleep=lambda _: None, perf_counter=lambda: next(wall), process_time=lambda: next(own)))  # fmt: skip
    return measure._Clock("cpu", threads, Turns("none"))


def test_what_a_quota_took_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a core, in periods of 20 ms: of 70 ms, 30 were waited for; in the long run it would have been 80."""
    clock = clock_of(monkeypatch, 0.5, (0.070, 0.040), (0.005, 0.005))
    assert [clock.seconds(lambda: None) for _ in range(2)] == pytest.approx([0.040, 0.005])
    assert clock.ahead == pytest.approx(0.010)
    assert clock.held_up == 1


def test_threads_that_wait_for_each_other_are_timed_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, of which one has little to do; and two that share a core."""
    clock = clock_of(monkeypatch, 2.0, *[(0.010, 0.012)] * 8, threads=2)
    assert [clock.seconds(lambda: None) for _ in range(8)] == pytest.approx([0.010] * 8)
    assert (clock.held_up, clock.ahead) == (1, None)
    clock = clock_of(monkeypatch, 1.0, (0.070, 0.060), threads=2)
    assert clock.seconds(lambda: None) == pytest.approx(0.040)


def test_what_holds_it_up_now_and_then_is_not_in_it_and_what_always_does_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clock_of(monkeypatch, 1.0, *[(0.01, 0.01)] * 6, *[(0.05, 0.01)] * 4)
    assert [clock.seconds(lambda: None) for _ in range(10)] == pytest.approx([0.01] * 10)
    assert clock.held_up == pytest.approx(1.0)
    clock = clock_of(monkeypatch, 1.0, *[(0.02, 0.01)] * 8)
    assert [clock.seconds(lambda: None) for _ in range(8)] == pytest.approx([0.01] * 8)
    assert clock.held_up == pytest.approx(2.0)


def test_measuring_takes_no_more_than_the_host_can_spare() -> None:
    assert [measure._fitting(9, 100, available) for available in (1300, 600, 500, 300, 10)] == [8, 3, 2, 1, 1]
    assert measure._fitting(2, 100, 10**6) == 2
    assert measure._fitting(80, 10**9, 10**12) == 3
