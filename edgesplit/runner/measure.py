"""This host's compute, measured with real layers of the model: what one stage's forward takes here.

Must not know: the controller, checkpoints' weights (made-up weights take the same time).
"""

from __future__ import annotations

import importlib.metadata
import json
import pkgutil
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .probe import probe

PACKAGES = ("torch", "transformers", "safetensors", "cryptography", "starlette", "uvicorn", "prometheus_client")
CODE = "code"  # beside this module, in the archive: own code of a checkpoint that the plan trusts
ROUNDS = 25  # rounds of forwards timed at most; the medians count
BUDGET = 4.0  # seconds after which no further round begins, so that a slow host is not held up


def measure(arguments: dict[str, Any]) -> dict[str, Any]:
    """Everything the controller asks of a host, in one answer.

    `arguments`: config (the model's), code (the names of its own files, where it may run), dtype, quantization,
    context, chunk (tokens), threads (0: all), head (measure it too).
    `missing` names the packages a runner needs and does not find; then `times` is None.
    """
    found = {name: version for name in PACKAGES if (version := _version(name))}
    answer: dict[str, Any] = {
        **probe({}),
        "python": platform.python_version(),
        "packages": found,
        "missing": [name for name in PACKAGES if name not in found],
        "times": None,
    }
    if not answer["missing"] and "config" in arguments:
        answer.update(_compute(arguments))
    return answer


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _compute(arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    from .core import rss
    from .stage import examine_count

    if arguments["threads"]:
        torch.set_num_threads(arguments["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runtime = rss()
    config = _config(arguments["config"], arguments["code"])
    layers = examine_count(config)
    few, many = (1, 3) if layers >= 3 else (1, layers)
    runs = {**_forwards(config, few, "few", arguments, device), **_forwards(config, many, "many", arguments, device)}
    if arguments["head"]:
        runs["head"] = _head(config, layers, arguments, device, runs["decode few"]())
    taken = _interleaved(runs, device)
    times: dict[str, Any] = {"chunk_tokens": arguments["chunk"], "context": arguments["context"]}
    for kind in ("decode", "prefill"):
        layer = (taken[f"{kind} many"] - taken[f"{kind} few"]) / (many - few) if many > few else taken[f"{kind} few"]
        times[f"{kind}_layer"] = max(0.0, layer)
        times[f"{kind}_overhead"] = max(0.0, taken[f"{kind} few"] - few * times[f"{kind}_layer"])
    times["head"] = max(0.0, taken["head"] - times["decode_overhead"]) if arguments["head"] else 0.0
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"times": times, "device": name, "runtime_bytes": runtime}


def _config(data: dict[str, Any], code: list[str]) -> Any:
    from .anatomy import read_config

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(data))
        for name in code:
            (Path(folder) / name).write_bytes(pkgutil.get_data(__package__, f"{CODE}/{name}") or b"")
        return read_config(folder, trust_remote_code=bool(code))


Run = Callable[[], Any]


def _forwards(config: Any, count: int, name: str, arguments: dict[str, Any], device: str) -> dict[str, Run]:
    """One decode step, and one prefill chunk, through `count` layers."""
    from .stage import Stage

    stage = Stage.random(config, 1, count, arguments["dtype"], device, quantization=arguments["quantization"])
    chunk, step = (_hidden(config, tokens, arguments, device) for tokens in (arguments["chunk"], 1))
    sequence = stage.sequence()
    stage.forward(sequence, _hidden(config, arguments["context"], arguments, device))
    return {
        f"decode {name}": lambda: stage.forward(sequence, step),
        f"prefill {name}": lambda: stage.forward(stage.sequence(), chunk),
    }


def _head(config: Any, layers: int, arguments: dict[str, Any], device: str, step: Any) -> Run:
    """`step`: what a layer returned for one token; some families return a tuple."""
    from .stage import Stage

    last, quantization = layers + 1, arguments["quantization"]
    stage = Stage.random(config, last, last, arguments["dtype"], device, quantization=quantization)
    sequence = stage.sequence()
    return lambda: stage.forward(sequence, step)


def _hidden(config: Any, tokens: int, arguments: dict[str, Any], device: str) -> Any:
    import torch

    from .stage import DTYPES, Hidden

    width = int(config.get_text_config(decoder=True).hidden_size)
    return Hidden((torch.randn(1, tokens, width).to(device, DTYPES[arguments["dtype"]]),))


def _interleaved(runs: dict[str, Run], device: str) -> dict[str, float]:
    """Median seconds of each; the runs take turns, so that a disturbance hits all alike. The first round warms up."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + BUDGET
    for number in range(ROUNDS + 1):
        for name, act in runs.items():
            start = time.perf_counter()
            act()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
        if number and time.perf_counter() > end:
            break
    return {name: statistics.median(taken) for name, taken in times.items()}
