"""What loading takes, as the kernel counts it, each in a process of its own; a checkpoint of more than 1 GB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from loading import measured
from sparse import LAYERS, make_sparse

MOST = 1.05  # of the stage's bytes

CONTROLLER = """
import sys
from pathlib import Path
from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.model.unsplit import lay_out
import edgesplit.model.structure, transformers.models.llama.modeling_llama

def resident(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
idle = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
scheme = sys.argv[3] if len(sys.argv) > 3 else None
shards = cut(open_checkpoint(folder, "large", "bfloat16", quantization=scheme), cache)
for shard in shards.all().values():
    for piece in shard.chunks():
        pass
print(resident("VmHWM") - idle)
if scheme:
    Path(sys.argv[4]).mkdir()
    lay_out(shards, Path(sys.argv[4]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_sparse(tmp_path_factory.mktemp("large") / "model")
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) > 10**9
    return folder


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


def test_quantising_holds_one_matrix_at_a_time(folder: Path, tmp_path: Path) -> None:
    """On the controller, while it cuts: the largest, of embedding and head, and its codes."""
    words = [sys.executable, "-c", CONTROLLER, str(folder), str(tmp_path / "hashes.json"), "int8"]
    done = subprocess.run([*words, str(tmp_path / "laid")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 250 * 2**20


def test_two_epochs_hold_what_they_share_once(folder: Path) -> None:
    """The second stage has two blocks of its own; the third none."""
    few, more, none = measured(folder, "float32", (1, 5), (2, 7), (1, 7))
    assert more["bytes"] - few["bytes"] < 0.5 * few["bytes"]
    assert none["bytes"] - more["bytes"] < 0.01 * few["bytes"]  # what every stage has, such as the last norm
    for taken in (few, more, none):
        assert taken["run"] < MOST * taken["bytes"]


def test_the_controller_never_holds_weights(folder: Path, tmp_path: Path) -> None:
    """Planning, cutting and reading all shards, as a push does."""
    words = [sys.executable, "-c", CONTROLLER, str(folder), str(tmp_path / "hashes.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 100 * 2**20
