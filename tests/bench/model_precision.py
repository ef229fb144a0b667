"""Precisions: what they take on a Qwen2.5-0.5B-shaped block, and what they do to the answers of a trained model.

Time is CPU time of one thread, which others on the machine disturb least; each precision in turns, medians.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config

from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import cut
from edgesplit.model.unsplit import lay_out
from edgesplit.runner.hidden import Hidden
from edgesplit.runner.stage import Stage

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "plans" / "demo" / "model"  # small, but trained: on the texts beside it
TEXT = ROOT / "docs" / "primer.md"
LAYERS = 3
CONTEXT, PROMPT = 128, 128
SECONDS = 20.0
POSITIONS, WINDOW = 1024, 256  # that answers are compared at, and how many belong together
PRECISIONS = {"float32": None, "bfloat16": None, "int8": "int8", "int4": "int4"}
SHAPE = {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864}


def main() -> None:
    torch.set_num_threads(1)
    times, answers = timed(), compared()
    base = times["float32"]
    rows = [
        {
            "precision": name,
            "decode": taken[0],
            "to float32": taken[0] / base[0],
            "prefill": taken[1],
            "to float32 ": taken[1] / base[1],
            **answers[name],
        }
        for name, taken in times.items()
    ]
    print(json.dumps(rows))


def dtype_of(name: str) -> str:
    """Quantised matrices stand in a float32 model here: what else a bfloat16 model loses is told by its own row."""
    return name if PRECISIONS[name] is None else "float32"


def timed() -> dict[str, tuple[float, float]]:
    """ms per token and layer: of a decode step, and of a prompt."""
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    config = Qwen2Config(vocab_size=64, num_hidden_layers=LAYERS, **SHAPE)
    for name, scheme in PRECISIONS.items():
        stage = Stage.random(config, 1, LAYERS, dtype_of(name), quantization=scheme)
        step, chunk, context = (hidden(name, count) for count in (1, PROMPT, CONTEXT))
        sequence = stage.sequence()
        stage.forward(sequence, context)
        runs[name, "decode"] = lambda s=stage, q=sequence, x=step: s.forward(q, x)
        runs[name, "prefill"] = lambda s=stage, x=chunk: s.forward(s.sequence(), x)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    end = time.monotonic() + SECONDS
    for act in runs.values():
        act()
    while time.monotonic() < end:
        for key, act in runs.items():
            start = time.thread_time()
            act()
            taken[key].append(time.thread_time() - start)
    middle = {key: statistics.median(values) * 1e3 / LAYERS for key, values in taken.items()}
    return {name: (middle[name, "decode"], middle[name, "prefill"] / PROMPT) for name in PRECISIONS}


def hidden(name: str, tokens: int) -> Hidden:
    return Hidden((torch.randn(1, tokens, SHAPE["hidden_size"]).to(getattr(torch, dtype_of(name))),))


def compared() -> dict[str, dict[str, float]]:
    """Relative error of the logits against float32, and the share of positions with the same most likely token."""
    ids = AutoTokenizer.from_pretrained(MODEL)(TEXT.read_text())["input_ids"][:POSITIONS]
    windows = [ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW)]
    logits = {name: logits_of(name, windows) for name in PRECISIONS}
    base = logits["float32"]
    return {
        name: {
            "error of logits": float((found - base).norm() / base.norm()),
            "same tokens": float((found.argmax(-1) == base.argmax(-1)).float().mean()),
        }
        for name, found in logits.items()
    }


def logits_of(name: str, windows: list[list[int]]) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "laid"
        folder.mkdir()
        checkpoint = open_checkpoint(MODEL, "demo", dtype_of(name), quantization=PRECISIONS[name])
        lay_out(cut(checkpoint, Path(place) / "hashes.json"), folder)
        stage = Stage.load(folder, 0, len(checkpoint.chain.blocks) - 1, dtype_of(name))
        each = [stage.forward(stage.sequence(), torch.tensor([ids]), all_logits=True)[0] for ids in windows]
        return torch.cat(each).float()


if __name__ == "__main__":
    main()
