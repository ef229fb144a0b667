"""A probe is a command and a parser: what is asked of a host, and what its answer means.

Must not know: how a command travels, when it is sent.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from edgesplit.fleet import HostProfile, LinkProfile, StageTimes
from edgesplit.hosts import commands
from edgesplit.hosts.commands import Command
from edgesplit.inventory import HostSpec, Inventory
from edgesplit.model.blocks import Chain
from edgesplit.plan import ModelPlan
from edgesplit.values import Value

FIRST_WINDOW = 10 * 1448  # bytes that TCP sends before the first acknowledgement (RFC 6928)
MEETING = 8.0  # seconds; hosts that have not met by then cannot: starting Python on a slow board takes three
PAIR_SECONDS = 5.0  # a pair takes less, but for the slowest links


class NoProfile(ValueError):
    """The host answered, but it cannot be used; says why."""


def measure(
    spec: HostSpec, plan: ModelPlan, chain: Chain, config: dict[str, Any], code: Iterable[str], *, entry: bool
) -> Command:
    """Everything about one host, in one round trip; standard input is the runner archive, with the files of `code`."""
    workload = plan.workload
    tokens = chain.image_positions or workload.prompt_tokens
    last = tokens if chain.kind == "encoder" else tokens + workload.new_tokens - 1
    chunk = min(plan.prefill_chunk, tokens) if chain.chunked else tokens
    arguments = {
        "config": config,
        "code": [*code],
        "dtype": plan.dtype,
        "quantization": plan.quantization,
        # when the average token is made, half of the answer is there; the other one tells what a position costs
        "contexts": [(tokens + last + 1) // 2, max(1, last // 8)],
        "chunk": chunk,
        "far": (tokens - 1) // chunk * chunk,
        "rows": min(plan.decode_batch, workload.concurrency),
        "layer_bytes": max(block.weight_bytes for block in chain.blocks if block.kind == "layer"),
        "threads": spec.cores or 0,
        "head": entry,
        "folder": spec.work,
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
            memory_total=answer.get("device_total", answer["memory_total"]),
            memory_available=answer.get("device_available", answer["memory_available"]),
            load=answer["load"],
            python=answer["python"],
            packages=answer["packages"],
            device=answer["device"],
            runtime_bytes=answer["runtime_bytes"],
            times=StageTimes(**answer["times"]),
            threads=answer["threads"],
            period=answer["period"],
            ahead=answer.get("ahead"),
            bandwidth=answer["limits"]["bandwidth"],
            flops=answer["limits"]["flops"],
            disk_write=answer["disk_write"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NoProfile(f"its measurement makes no sense: {error!r}") from error


def message_sizes(plan: ModelPlan, chain: Chain) -> tuple[int, int]:
    """Bytes that cross a boundary for a token, and for a piece of the prompt."""
    token = max(block.output_bytes(plan.workload.max_context) for block in chain.blocks[:-1])
    return token, token * (min(plan.prefill_chunk, plan.workload.prompt_tokens) if chain.chunked else 1)


def meet(
    name: str, inventory: Inventory, pairs: Sequence[tuple[str, str]], token: str, sizes: tuple[int, int]
) -> Command:
    """Measure the links of one host's pairs with the others, which do so too; standard input is the runner archive."""
    spec, mine = inventory.hosts[name], [pair for pair in pairs if name in pair]
    peers = sorted({other for pair in mine for other in pair} - {name})
    places = {peer: (inventory.hosts[peer].data_address, _ports(inventory.hosts[peer])) for peer in peers}
    arguments = {
        "me": name,
        "token": token,
        "address": spec.data_address,
        "ports": _ports(spec),
        "peers": places,
        "timeout": MEETING,
        "pairs": mine,
        "message": sizes,
        "patience": patience(pairs),
    }
    return commands.measure(spec.interpreter, "links", arguments)


def patience(pairs: Sequence[tuple[str, str]]) -> float:
    """Seconds within which a host gets to a pair, whatever the others do: no pair before it takes so long."""
    hosts = Counter(name for pair in pairs for name in pair)
    return PAIR_SECONDS * (1 + max(hosts.values(), default=0))


def _ports(spec: HostSpec) -> list[int]:
    """The data port; while a runner serves on it, the one above."""
    return [spec.data.port, spec.data.port % 65535 + 1]


Ways = dict[tuple[str, str], LinkProfile | str]  # a str says why there is none


def parse_pair(line: str, sizes: tuple[int, int]) -> Ways:
    """What a line says of a pair, for messages of these sizes: both directions, the second as a str where the caller
    cannot be reached. The last line says whom the host does not reach. Raises NoProfile."""
    answer = _object(line)
    try:
        if "missed" in answer:
            return {(str(answer["me"]), str(peer)): str(why) for peer, why in answer["missed"].items()}
        caller, peer = map(str, answer["pair"])
        if "error" in answer:
            return {(caller, peer): str(answer["error"])}
        there, back = _directions(answer, sizes)
        return {
            (caller, peer): there,
            (peer, caller): back if answer["both"] else f"{caller} is not reached from {peer}",
        }
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise NoProfile(f"the link's measurement makes no sense: {error!r}") from error


def _directions(answer: Mapping[str, Any], sizes: tuple[int, int]) -> tuple[LinkProfile, LinkProfile]:
    rtt, (up, down) = float(answer["rtt"]), [float(answer[way]) for way in ("up", "down")]
    token, piece = sizes
    overhead = max(0.0, (float(answer["echo"]) - rtt - token / up - token / down) / 2)
    both = rtt + 2 * overhead
    return (
        _link(rtt, up, overhead, float(answer["there"]) - both - piece / up - token / down, piece),
        _link(rtt, down, overhead, float(answer["back"]) - both - piece / down - token / up, piece),
    )


def _link(rtt: float, bandwidth: float, overhead: float, start: float, piece: int) -> LinkProfile:
    """A slow start doubles what is under way with each round trip, so it cannot cost more of them than that takes."""
    most = rtt * math.log2(1 + piece / FIRST_WINDOW)
    return LinkProfile(rtt=rtt, bandwidth=bandwidth, overhead=overhead, start=min(max(0.0, start), most))


class StageReading(Value):
    """Totals of one stage since it was loaded: decode steps of one sequence, and seconds spent in them."""

    epoch: int
    stage: int
    blocks: tuple[int, int]  # first, last
    steps: int
    decode_seconds: float
    rows: float = 1.0  # sequences in a recent step


class Reading(Value):
    """One look at one host. Totals only rise; the difference of two readings is what happened between them.

    `deployed`: has it ever served here. `runner`: does it answer; `mute`: it does not, but it is there. `broken`: why
    the epoch it serves is broken, "" if it is not. `links`: the round trip to each next host, seconds.
    """

    at: float
    cores: float
    memory_total: int
    memory_available: int
    busy_seconds: float  # of the CPUs the runner may use, by everybody
    deployed: bool
    runner: bool
    mute: bool = False
    runner_seconds: float = 0.0  # CPU time of the runner, also before it answers
    threads: int = 0  # of the runner
    serving: int | None = None
    broken: str = ""
    stages: tuple[StageReading, ...] = ()
    links: dict[str, float] = Field(default_factory=dict)
    age: float = 0.0  # seconds since the epoch that it serves was loaded there, and got its keys
    running: int = 0  # entry only: sequences under way or waiting
    tokens: int = 0  # entry only: tokens given out
    time_per_token: float | None = None  # entry only: median of the recent ones, seconds


def stream(spec: HostSpec, folder: str, interval: float, watcher: str = "") -> Command:
    """Readings of the host and of the runner in this folder, a line each, for ever; standard input is the archive.
    `watcher`: who reads them claims the deployment for itself."""
    claim = {"watcher": watcher} if watcher else {}
    return commands.measure(spec.interpreter, "stream", {"folder": folder, "interval": interval, **claim})


def parse_rival(text: str) -> str:
    """Who watches already, "" in any other line."""
    return str(_object(text).get("watched", "")) if '"watched"' in text else ""


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
            mute=answer.get("mute", False),
            runner_seconds=runner.get("cpu_s", answer.get("starting_s", 0.0)),
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
                    rows=stage.get("rows") or 1.0,
                )
                for number, stage in epoch.get("stages", {}).items()
                if serving is not None
            ),
            links={host: rtt for host, rtt in epoch.get("links", {}).items() if rtt is not None},
            age=epoch.get("age_s", 0.0),
            running=entry.get("running", 0) + entry.get("waiting", 0),
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
