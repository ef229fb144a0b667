"""What loading takes, as the kernel counts it, each in a process of its own; a checkpoint of more than 1 GB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sparse import LAYERS, make_sparse

MOST = 1.05  # of the stage's bytes

SCRIPT = """
import json, sys
import torch
from transformers import LlamaForCausalLM
from edgesplit.runner.hidden import Hidden
from edgesplit.runner.stage import Stage
from pathlib import Path

def resident(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

def held(*stages):
    weights = {w.data_ptr(): w.numel() * w.element_size() for stage in stages for w in stage.model.parameters()}
    return sum(weights.values())

def run(stage):
    size = stage.model.config.hidden_size
    dtype = next(stage.model.parameters()).dtype
    ids = torch.zeros(1, 2, dtype=torch.long) if stage.range.embeds else Hidden((torch.zeros(1, 2, size, dtype=dtype),))
    stage.forward(stage.sequence(), ids)

torch.set_num_threads(1)
folder, dtype, ranges = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
warm = Stage.random(LlamaForCausalLM.config_class(vocab_size=8, hidden_size=32, intermediate_size=32,
    num_hidden_layers=1, num_attention_heads=2), 1, 1, dtype)
run(warm)
idle, stages, answer = resident("VmRSS"), [], []
for first, last in ranges:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    stages.append(Stage.load(folder, first, last, dtype, donors=tuple(stages)))
    loaded = resident("VmHWM") - idle
    run(stages[-1])
    answer.append({"bytes": held(*stages), "loaded": loaded, "run": resident("VmHWM") - idle})
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_sparse(tmp_path_factory.mktemp("large") / "model")
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) > 10**9
    return folder


def measured(folder: Path, dtype: str, *ranges: tuple[int, int]) -> list[dict[str, Any]]:
    words = [sys.executable, "-c", SCRIPT, str(folder), dtype, json.dumps(ranges)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_stage_is_loaded_in_its_own_memory(folder: Path) -> None:
    (taken,) = measured(folder, "bfloat16", (1, LAYERS))
    assert taken["bytes"] > 9 * 10**8
    assert taken["loaded"] < 0.05 * taken["bytes"]  # mapped, not read
    assert 0.9 * taken["bytes"] < taken["run"] < MOST * taken["bytes"]  # and then every page is there


def test_so_is_one_whose_weights_are_widened(folder: Path) -> None:
    (taken,) = measured(folder, "float32", (3, LAYERS))
    assert taken["bytes"] > 10**9
    assert taken["loaded"] < MOST * taken["bytes"]
    assert taken["run"] < MOST * taken["bytes"]


def test_two_epochs_hold_what_they_share_once(folder: Path) -> None:
    """The second stage has two blocks of its own; the third none."""
    few, more, none = measured(folder, "float32", (1, 5), (2, 7), (1, 7))
    assert more["bytes"] - few["bytes"] < 0.5 * few["bytes"]
    assert none["bytes"] - more["bytes"] < 0.01 * few["bytes"]  # what every stage has, such as the last norm
    for taken in (few, more, none):
        assert taken["run"] < MOST * taken["bytes"]


CONTROLLER = """
import sys
from pathlib import Path
from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
import edgesplit.model.structure, transformers.models.llama.modeling_llama

def resident(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
idle = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
shards = cut(open_checkpoint(folder, "large", "bfloat16"), cache)
for shard in shards.all().values():
    for piece in shard.chunks():
        pass
print(resident("VmHWM") - idle)
"""


def test_the_controller_never_holds_weights(folder: Path, tmp_path: Path) -> None:
    """Planning, cutting and reading all shards, as a push does."""
    words = [sys.executable, "-c", CONTROLLER, str(folder), str(tmp_path / "hashes.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 100 * 2**20
