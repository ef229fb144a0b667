"""What loading a stage takes, as the kernel counts it: `python -m loading FOLDER DTYPE RANGES`, a process of its own.

RANGES: JSON list of first and last block, loaded one after the other beside each other. The last line of the answer is
a JSON list: bytes of all weights held, and peaks above an idle runner after loading and after a first forward.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401 - an idle runner has it, by its gate
import torch
from sealed import key
from transformers import LlamaConfig

from edgesplit.runner.hidden import Hidden
from edgesplit.runner.stage import Stage
from edgesplit.runner.weights import SEALED


def measured(folder: Path, dtype: str, *ranges: tuple[int, int]) -> list[dict[str, Any]]:
    words = [sys.executable, "-m", "loading", str(folder), dtype, json.dumps(ranges)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main(folder: Path, dtype: str, ranges: list[tuple[int, int]]) -> None:
    torch.set_num_threads(1)
    sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    run(Stage.random(LlamaConfig(**sizes, num_attention_heads=2), 1, 1, dtype))
    keys = {file.stem: key(file.stem) for file in folder.glob(f"*{SEALED}")}
    idle, stages, answer = resident("VmRSS"), list[Stage](), []
    for first, last in ranges:
        forget_peak()
        stages.append(Stage.load(folder, first, last, dtype, donors=tuple(stages), keys=keys))
        loaded = resident("VmHWM") - idle
        run(stages[-1])
        answer.append({"bytes": held(stages), "loaded": loaded, "run": resident("VmHWM") - idle})
    print(json.dumps(answer))


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """VmHWM counts from here."""
    Path("/proc/self/clear_refs").write_text("5")


def held(stages: list[Stage]) -> int:
    """Each tensor once, whoever holds it; codes and scales are buffers."""
    tensors = [tensor for stage in stages for tensor in (*stage.model.parameters(), *stage.model.buffers())]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def run(stage: Stage) -> None:
    size, dtype = stage.model.config.hidden_size, next(stage.model.parameters()).dtype
    ids = torch.zeros(1, 2, dtype=torch.long) if stage.range.embeds else Hidden((torch.zeros(1, 2, size, dtype=dtype),))
    stage.forward(stage.sequence(), ids)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
