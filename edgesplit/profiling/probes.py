"""A probe is a command and a parser: what is asked of a host, and what its answer means.

Must not know: how a command travels, when it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from edgesplit.fleet import HostProfile, LinkProfile, StageTimes
from edgesplit.hosts import commands
from edgesplit.hosts.commands import Command
from edgesplit.inventory import HostSpec
from edgesplit.model.blocks import Chain
from edgesplit.plan import ModelPlan
from edgesplit.values import Value

LINK_SECONDS = 20.0  # a pair that has not met by then cannot


class NoProfile(ValueError):
    """The host answered, but it cannot be used; says why."""


def measure(
    spec: HostSpec, plan: ModelPlan, chain: Chain, config: dict[str, Any], code: Iterable[str], *, entry: bool
) -> Command:
    """Everything about one host, in one round trip; standard input is the runner archive, with the files of `code`."""
    workload = plan.workload
    tokens = chain.image_positions or workload.prompt_tokens
    arguments = {
        "config": config,
        "code": [*code],
        "dtype": plan.dtype,
        "quantization": plan.quantization,
        # half of the answer is there when the average token is made
        "context": tokens if chain.kind == "encoder" else tokens + workload.new_tokens // 2,
        "chunk": min(plan.prefill_chunk, tokens) if chain.chunked else tokens,
        "threads": spec.cores or 0,
        "head": entry,
    }
    return commands.measure(spec.interpreter, "measure", arguments)


def parse_measure(text: str) -> HostProfile:
    """Raises NoProfile."""
    answer = _object(text)
    if answer.get("missing"):
        raise NoProfile(f"its Python {answer.get('python')} lacks {', '.join(answer['missing'])}")
    try:
        return HostProfile(
            cores=answer["cores"],
            memory_total=answer["memory_total"],
            memory_available=answer["memory_available"],
            load=answer["load"],
            python=answer["python"],
            packages=answer["packages"],
            device=answer["device"],
            runtime_bytes=answer["runtime_bytes"],
            times=StageTimes(**answer["times"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NoProfile(f"its measurement makes no sense: {error!r}") from error


def listen(spec: HostSpec, token: str) -> Command:
    """Wait for one link measurement; standard input is the runner archive."""
    place = {"address": spec.data_address, "ports": _ports(spec), "token": token, "timeout": LINK_SECONDS}
    return commands.measure(spec.interpreter, "listen", place)


def call(spec: HostSpec, target: HostSpec, token: str) -> Command:
    """Measure the link from a host to one that listens; standard input is the runner archive."""
    place = {"address": target.data_address, "ports": _ports(target), "token": token, "timeout": LINK_SECONDS}
    return commands.measure(spec.interpreter, "call", place)


def _ports(spec: HostSpec) -> list[int]:
    """The data port; while a runner serves on it, the one above."""
    return [spec.data.port, spec.data.port % 65535 + 1]


def parse_call(text: str) -> tuple[LinkProfile, LinkProfile]:
    """(caller -> listener, listener -> caller). Raises NoProfile."""
    answer = _object(text)
    if "error" in answer:
        raise NoProfile(str(answer["error"]))
    try:
        rtt = float(answer["rtt"])
        up, down = (LinkProfile(rtt=rtt, bandwidth=float(answer[way])) for way in ("up", "down"))
        return up, down
    except (KeyError, TypeError, ValueError) as error:
        raise NoProfile(f"the link's measurement makes no sense: {error!r}") from error


class StageReading(Value):
    """Totals of one stage since it was loaded: decode steps, and seconds spent in them."""

    epoch: int
    stage: int
    blocks: tuple[int, int]  # first, last
    steps: int
    decode_seconds: float


class Reading(Value):
    """One look at one host. Totals only rise; the difference of two readings is what happened between them.

    `deployed`: has it ever served here. `runner`: does it answer. `broken`: why the epoch it serves is broken, "" if
    it is not.
    """

    at: float
    cores: float
    memory_total: int
    memory_available: int
    busy_seconds: float  # of the CPUs the runner may use, by everybody
    deployed: bool
    runner: bool
    runner_seconds: float = 0.0  # CPU time of the runner
    threads: int = 0  # of the runner
    serving: int | None = None
    broken: str = ""
    stages: tuple[StageReading, ...] = ()
    tokens: int = 0  # entry only: tokens given out
    time_per_token: float | None = None  # entry only: median of the recent ones, seconds


def read(spec: HostSpec, folder: str, archive: str) -> Command:
    """Spare capacity and the runner's state; the archive is on the host already."""
    return commands.probe(spec.interpreter, folder, archive)


def read_afar(spec: HostSpec, folder: str) -> Command:
    """The same on a host without the archive, which is standard input."""
    return commands.measure(spec.interpreter, "probe", {"folder": folder})


def parse_reading(text: str) -> Reading:
    """Raises NoProfile."""
    answer = _object(text)
    runner = answer.get("runner") or {}
    try:
        serving = runner.get("serving")
        epoch = runner.get("epochs", {}).get(str(serving), {})
        entry = runner.get("entry") or {}
        return Reading(
            at=answer["at"],
            cores=answer["cores"],
            memory_total=answer["memory_total"],
            memory_available=answer["memory_available"],
            busy_seconds=answer["busy_s"],
            deployed=answer["manifest"],
            runner=bool(runner),
            runner_seconds=runner.get("cpu_s", 0.0),
            threads=runner.get("threads", 0),
            serving=serving,
            broken=epoch.get("reason", ""),
            stages=tuple(
                StageReading(
                    epoch=serving,
                    stage=int(number),
                    blocks=(stage["first"], stage["last"]),
                    steps=stage["steps"],
                    decode_seconds=stage["decode_total_s"],
                )
                for number, stage in epoch.get("stages", {}).items()
                if serving is not None
            ),
            tokens=entry.get("tokens", 0),
            time_per_token=entry.get("time_per_token_s"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoProfile(f"its reading makes no sense: {error!r}") from error


def _object(text: str) -> dict[str, Any]:
    lines = text.strip().splitlines()
    try:
        answer = json.loads(lines[-1] if lines else "")
    except ValueError as error:
        raise NoProfile(f"no measurement in its answer: {text[-200:]!r}") from error
    if not isinstance(answer, dict):
        raise NoProfile(f"no measurement in its answer: {text[-200:]!r}")
    return answer
