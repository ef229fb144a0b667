"""This host's compute, measured with real layers of the model: what one stage's forward takes here.

Must not know: the controller, checkpoints' weights (made-up weights take the same time).
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import pkgutil
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .probe import cores, memory, probe, quota, write_speed
from .turns import Turns
from .typical import typical

PACKAGES = ("torch", "transformers", "safetensors", "cryptography", "starlette", "uvicorn", "prometheus_client")
CODE = "code"  # beside this module, in the archive: own code of a checkpoint that the plan trusts
ROUNDS = 25  # rounds of forwards timed at most
BUDGET = 5.0  # seconds after which no further round begins, so that a slow host is not held up
PAUSE = 0.01  # seconds after a forward, where it took that long
SMALL, SMALL_COUNT = 2**26, 8  # bytes of a layer, of which so many are quickly run
QUARTERS = 4
SPARE = 0.7  # share of the free memory that measuring may take


def measure(arguments: dict[str, Any]) -> dict[str, Any]:
    """Everything the controller asks of a host, in one answer.

    `arguments`: config (the model's), code (the names of its own files, where it may run), dtype, quantization,
    contexts (tokens, the usual and a smaller one), chunk (tokens of a piece of the prompt), far (tokens before the
    last piece), rows (sequences in a step), layer_bytes, threads (0: as many as there are cores), head (measure it
    too), folder (where weights would be written).
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
        answer.update(_compute(arguments), period=quota()[1], disk_write=write_speed(arguments["folder"]))
    return answer


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _compute(arguments: dict[str, Any]) -> dict[str, Any]:
    turns = Turns()
    with turns.prepare():
        import torch

        from .devices import best_device, device_name, memory_of
        from .limits import arithmetic

        threads, device = arguments["threads"] or thread_count(), best_device()
        torch.set_num_threads(threads)
        runs, many, runtime = _prepared(arguments, device)
    clock = _Clock(device, threads, turns)
    taken = _interleaved(runs, clock)
    answer = {
        "times": _times(
            {name: [clock.held_up * each for each in times] for name, times in taken.items()}, many, arguments
        ),
        "device": device_name(device),
        "runtime_bytes": runtime,
        "threads": threads,
        "limits": arithmetic(arguments["dtype"], device, clock.seconds),
        "ahead": clock.ahead,
    }
    return {**answer, **memory_of(device)}


def _prepared(arguments: dict[str, Any], device: str) -> tuple[dict[str, Run], int, int]:
    """What is to be timed, each done once; how many layers the larger stage has; the memory that a runner takes."""
    config = _config(arguments["config"], arguments["code"])
    layers, arrive = _boundary(config, arguments)
    many = _fitting(layers, arguments["layer_bytes"], memory()["memory_available"])
    few = _Forwards(_random(config, (1, 1), arguments, device), arguments, arrive)
    runtime = few.runtime_bytes()
    runs = {f"few {name}": run for name, run in few.runs(("step", "piece")).items()}
    if many > 1:
        every = _Forwards(_random(config, (1, many), arguments, device), arguments, arrive)
        runs |= {f"many {name}": run for name, run in every.runs().items()}
    else:
        runs |= {f"many {name}": run for name, run in few.runs().items()}
    if arguments["head"]:
        runs |= _head(config, layers, arguments, device, runs["few step"]())
    for run in runs.values():
        run()
    return runs, many, runtime


def thread_count() -> int:
    """The whole cores of what this process may use, one at least: more threads than cores wait for each other."""
    return max(1, int(cores()))


def _fitting(layers: int, size: int, available: int) -> int:
    """How many layers the larger stage has: with the smaller one's, they take no more than SPARE of what is free. Many
    where they are small, as their differences are then small too."""
    counts = (SMALL_COUNT, 3, 2) if size <= SMALL else (3, 2)
    fitting = (count for count in counts if count <= layers and (count + 1) * size <= SPARE * available)
    return next(fitting, 1)


def _config(data: dict[str, Any], code: list[str]) -> Any:
    from .anatomy import read_config

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(data))
        for name in code:
            (Path(folder) / name).write_bytes(pkgutil.get_data(__package__, f"{CODE}/{name}") or b"")
        return read_config(folder, trust_remote_code=bool(code))


def _random(config: Any, blocks: tuple[int, int], arguments: dict[str, Any], device: str) -> Any:
    from .stage import Stage

    return Stage.random(config, *blocks, arguments["dtype"], device, quantization=arguments["quantization"])


Run = Callable[[], Any]
Arrive = Callable[[int, int], Any]


class _Forwards:
    """The forwards of one stage that are timed."""

    def __init__(self, stage: Any, arguments: dict[str, Any], arrive: Arrive) -> None:
        self._stage, self._arguments, self._arrive = stage, arguments, arrive

    def runtime_bytes(self) -> int:
        """What a runner takes beside weights and caches: this process after a first forward, without its weights."""
        from .core import rss

        self._stage.forward(self._stage.sequence(), self._hidden(1))
        tensors = [*self._stage.model.parameters(), *self._stage.model.buffers()]
        held = sum(tensor.nbytes for tensor in tensors if tensor.device.type == "cpu")
        return max(0, rss() - held)

    def runs(self, names: Iterable[str] = ("step", "early step", "rows", "piece", "short piece", "far piece")) -> Any:
        return {name: run for name in names if (run := getattr(self, f"_{name.replace(' ', '_')}")()) is not None}

    def _hidden(self, tokens: int, rows: int = 1) -> Any:
        return self._arrive(tokens, rows)

    def _run_piece(self, sequences: Any, hidden: Any) -> Any:
        """Of a prompt that is as long as the workload's."""
        return self._run(sequences, hidden, wanted=not self._arguments["far"])

    def _run(self, sequences: Any, hidden: Any, *, wanted: bool = True) -> Any:
        """A forward as a ring does it: from what came over the wire to what goes over it."""
        from .ring import arrived, sendable
        from .wire import Kind, Message

        came = Message(Kind.WORK, 0, tensors=sendable(hidden)[0])
        result = self._stage.forward(sequences, arrived(came, 0), wanted=wanted)
        if hasattr(result, "tensors"):
            sendable(result)
        return result

    def _behind(self, context: int) -> Any:
        """A sequence that has seen so many tokens."""
        sequence = self._stage.sequence()
        self._stage.forward(sequence, self._hidden(context))
        return sequence

    def _step(self) -> Run:
        sequence, hidden = self._behind(self._arguments["contexts"][0]), self._hidden(1)
        return lambda: self._run(sequence, hidden)

    def _early_step(self) -> Run:
        sequence, hidden = self._behind(self._arguments["contexts"][1]), self._hidden(1)
        return lambda: self._run(sequence, hidden)

    def _rows(self) -> Run | None:
        """One step of several sequences; of families whose sequences go one by one, that is what it is."""
        rows = self._arguments["rows"]
        if rows < 2 or self._stage.kind == "encoder":
            return None
        group, hidden = [self._behind(self._arguments["contexts"][0]) for _ in range(rows)], self._hidden(1, rows)
        return lambda: self._run(group, hidden)

    def _piece(self) -> Run:
        hidden = self._hidden(self._arguments["chunk"])
        return lambda: self._run_piece(self._stage.sequence(), hidden)

    def _short_piece(self) -> Run | None:
        short = short_piece(self._arguments["chunk"])
        if short == self._arguments["chunk"]:
            return None
        hidden = self._hidden(short)
        return lambda: self._run_piece(self._stage.sequence(), hidden)

    def _far_piece(self) -> Run | None:
        """A piece of a prompt behind others; taken back afterwards, which costs next to nothing."""
        chunk, far = self._arguments["chunk"], self._arguments["far"]
        if not far or not self._stage.chunks:
            return None
        sequence, hidden = self._behind(far), self._hidden(chunk)
        self._stage.caches.mark(sequence)

        def run() -> None:
            self._run_piece(sequence, hidden)
            self._stage.caches.crop(sequence, chunk)

        return run


def short_piece(chunk: int) -> int:
    """Tokens of the shorter piece that is timed, to tell what a piece costs from what a token of it costs."""
    return max(1, chunk // 4)


def _head(config: Any, layers: int, arguments: dict[str, Any], device: str, step: Any) -> dict[str, Run]:
    """The head on what a layer returned for one token (some families return a tuple), and choosing a token from it."""
    from .sampling import Sampler, Sampling

    stage = _random(config, (layers + 1, layers + 1), arguments, device)
    sequence, sampler, tokens = stage.sequence(), Sampler(Sampling()), [0] * arguments["contexts"][0]
    carried = (*step.carried, *step.carried[-1:] * stage.carried)[: stage.carried]  # outputs of layers, all alike
    step = replace(step, carried=carried)
    logits = stage.forward(sequence, step)
    return {
        "head": lambda: stage.forward(sequence, step),
        "sample": lambda: sampler.pick(logits[0, -1], tokens),
    }


def _boundary(config: Any, arguments: dict[str, Any]) -> tuple[int, Arrive]:
    """How many layers there are, and what comes to the first of them, for so many tokens and rows: an embedding without
    weights tells its shapes."""
    import torch

    from .hidden import Hidden
    from .stage import Stage

    stage = Stage.random(copy.deepcopy(config), 0, 0, arguments["dtype"], "meta")
    for module in stage.model.modules():  # some look for padding in ids, which have no values on the meta device
        if getattr(getattr(module, "config", None), "pad_token_id", None) is not None:
            module.config.pad_token_id = None

    def made(shape: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)

    def arrive(tokens: int, rows: int) -> Hidden:
        if stage.kind == "encoder":
            width = int(config.get_text_config(decoder=True).hidden_size)
            return Hidden((made((rows, tokens, width), stage.model.dtype),))
        group = [stage.sequence() for _ in range(rows)]
        sent = stage.forward(group, torch.zeros(rows, tokens, dtype=torch.long))
        tensors = (None if tensor is None else made(tensor.shape, tensor.dtype) for tensor in sent.tensors)
        return Hidden(tuple(tensors), sent.tuple_, tuple(made(each.shape, each.dtype) for each in sent.carried))

    return stage.range.layers, arrive


def _interleaved(runs: dict[str, Run], clock: _Clock) -> dict[str, list[float]]:
    """Seconds of each, round by round; they take turns, so that a disturbance hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, act in runs.items():
            times[name].append(clock.seconds(act))
        if clock.passed > BUDGET:
            break
    return times


class _Clock:
    """Times what is done here as it would take without the quota. `passed`: seconds, without waiting for turns.

    One thread is timed by what it computes, so what disturbs it for a moment is not in it; what holds it up all the
    while is a factor. Several threads wait for each other, and an accelerator is waited for: those go by the clock.
    """

    def __init__(self, device: str, threads: int, turns: Turns) -> None:
        available, period = quota()
        self._device, self._threads, self._turns, self.passed = device, threads, turns, 0.0
        self._share, self._period = (min(1.0, available / threads) if period else 1.0), period
        self._computes = device == "cpu" and threads == 1
        self._quota = self._share * period if self._share < 1 else math.inf  # seconds that each thread has in a period
        self._ahead: list[float] = []
        self._ratios: list[float] = []

    def seconds(self, act: Run) -> float:
        """Of one run of it. A pause follows, as in a ring, so that caches are as cold as there; where there is a quota,
        one in which what was used up comes back."""
        from .devices import finish

        with self._turns.turn():
            used, start = time.process_time(), time.perf_counter()
            act()
            finish(self._device)
            took, used = time.perf_counter() - start, (time.process_time() - used) / self._threads
        pause = max(min(took, PAUSE), used / self._share - took)
        time.sleep(pause)
        self.passed += took + pause
        if not (self._computes and used):
            return min(took, self._share * (took + self._period * (1 - self._share)))  # the inverse of fleet's `grace`
        if used > self._quota:
            self._ahead.append(used / self._share - took)
        self._ratios.append(took / used)
        return min(took, used)

    @property
    def held_up(self) -> float:
        """How much longer forwards take because of others on this host, all the while: of three in four at least. A
        quota of less than a core hides it."""
        if self._share < 1 or len(self._ratios) < QUARTERS:
            return 1.0
        return max(1.0, statistics.quantiles(self._ratios, n=QUARTERS)[0])

    @property
    def ahead(self) -> float | None:
        """Seconds by which runs that used up the quota were ahead of what it gives in the long run. The kernel notices
        that it is used up at its ticks only, so it is more than a period's."""
        return max(0.0, statistics.median(self._ahead)) if self._ahead else None


def _times(taken: dict[str, list[float]], many: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """From seconds per forward to seconds per layer, and what a forward takes beside: see fleet.StageTimes."""
    usual, early = arguments["contexts"]
    chunk, short = arguments["chunk"], short_piece(arguments["chunk"])

    def slope(more: str, less: str, units: float) -> float:
        """Seconds per unit by which one forward takes longer than the other. Round by round: what disturbs a host for a
        while is in both."""
        differences = [late - early for late, early in zip(taken[more], taken[less], strict=True)]
        return max(0.0, statistics.median(differences) / units)

    times: dict[str, Any] = {"chunk_tokens": chunk, "context": usual}
    for kind, run in (("decode", "step"), ("prefill", "piece")):
        one = typical(taken[f"few {run}"])
        layer = slope(f"many {run}", f"few {run}", many - 1) if many > 1 else one
        times[f"{kind}_layer"] = layer or typical(taken[f"many {run}"]) / many
        times[f"{kind}_overhead"] = max(0.0, typical(taken[f"many {run}"]) - many * times[f"{kind}_layer"])
    if usual > early:
        times["decode_position"] = slope("many step", "many early step", many * (usual - early))
    if "many rows" in taken:
        times["decode_row"] = slope("many rows", "many step", many * (arguments["rows"] - 1))
    if "many short piece" in taken:
        times["prefill_token"] = slope("many piece", "many short piece", many * (chunk - short))
    if "many far piece" in taken:
        times["prefill_pair"] = slope("many far piece", "many piece", many * chunk * arguments["far"])
    times["head"] = max(0.0, typical(taken["head"]) - times["decode_overhead"]) if "head" in taken else 0.0
    times["sample"] = typical(taken["sample"]) if "sample" in taken else 0.0
    return times
