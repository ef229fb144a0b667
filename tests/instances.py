"""Planning problems made by a seed, of any size: heterogeneous hosts at several sites, or on one wire; none holds the
model alone. For the solver's benchmark and its random checks.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from edgesplit.fleet import Fleet, HostProfile, LinkProfile, StageTimes
from edgesplit.inventory import HostSpec, Inventory, SshTarget
from edgesplit.model.blocks import Block, Chain, Flops
from edgesplit.plan import ModelPlan, ModelSource, Objective, Pin, Workload
from edgesplit.revision.problem import Problem, pose

MIB = 2**20
LAYER = 800 * MIB
HIDDEN = 16384  # bytes per token across a boundary
FLOPS = 2 * LAYER // 2
SITES_EVERY = 4  # hosts to a site, on the mean
WIDTHS = (12.5e6, 62.5e6, 125e6, 1.25e9)  # bytes per second: 100 Mbit/s to 10 Gbit/s


@dataclass(frozen=True)
class Shape:
    """What kind of instance. `need`: the share of all hosts' memory that the model takes, None: 60 to 80 %."""

    layers: int
    hosts: int
    need: float | None = None
    lan: bool = False
    kinds: int = 1  # kinds of layers in turn: full and sliding attention, say
    pins: int = 0  # first and last layers that must be on trusted hosts
    privacy: float = 0.0
    utilization: float = 0.0
    concurrency: int = 1
    rate: float = 0.0  # share of what all hosts together could bear if layers could be divided
    quantised: bool = False  # every third layer at half the size, as a mixture of precisions makes them


def instance(shape: Shape, seed: int) -> Problem:
    dice = random.Random(f"{shape} {seed}")  # noqa: S311 # not for secrets
    names = [f"h{number:04d}" for number in range(shape.hosts)]
    blocks = _blocks(shape)
    chain = Chain(
        model="made", architecture="made", dtype="float16", blocks=blocks, common_bytes=MIB, max_context=None,
        checkpoint="0",
    )  # fmt: skip
    hosts = _hosts(shape, names, sum(block.weight_bytes for block in blocks), dice)
    trusted = {names[0], *names[:: max(2, shape.hosts // 6)]}
    inventory = Inventory(hosts={name: HostSpec(ssh=SshTarget(host=name), trusted=name in trusted) for name in names})
    ends = [f"layers.{number}" for k in range(shape.pins) for number in (k, shape.layers - 1 - k)]
    plan = ModelPlan(
        name="p",
        model=ModelSource(source="m"),
        entry=names[0],
        workload=Workload(prompt_tokens=512, new_tokens=128, max_context=2048, concurrency=shape.concurrency),
        pins=(Pin(blocks=tuple(ends)),) if ends else (),
        objective=Objective(latency=1.0, utilization=shape.utilization, privacy=shape.privacy),
    )
    fleet = Fleet(hosts=hosts, links={}, measured_at=0.0, plan="0")
    problem = replace(pose(chain, fleet, plan, inventory), links=_links(shape, names, dice))
    if shape.rate:
        most = sum(1 / problem.alone_seconds(host) for host in problem.hosts)
        problem = replace(problem, workload=problem.workload.model_copy(update={"rate": shape.rate * most}))
    return problem


def _blocks(shape: Shape) -> tuple[Block, ...]:
    return (
        _block("embedding", "embedding", LAYER // 2, HIDDEN, 0),
        *(_layer(shape, number) for number in range(shape.layers)),
        _block("head", "head", LAYER // 2, 2 * HIDDEN, 0),
    )


def _layer(shape: Shape, number: int) -> Block:
    """A window for all but every sixth layer, and a third kind for every eighth: so the kinds come in turn."""
    kind = 0 if shape.kinds == 1 else (number % 6 == 5) + (shape.kinds == 3 and number % 8 == 7)
    size = LAYER // 2 if shape.quantised and number % 3 == 2 else LAYER
    return _block(f"layers.{number}", "layer", size + kind * 60 * MIB, HIDDEN, 4096 * (1 + 3 * kind))


def _block(name: str, kind: object, size: int, out: int, kv: int) -> Block:
    return Block.model_validate(
        {
            "name": name, "kind": kind, "weight_bytes": size, "kv_bytes_per_token": kv, "state_bytes": 0,
            "flops_per_token": size, "prefill": Flops(token=size), "output_bytes_per_token": out,
        }
    )  # fmt: skip


def _hosts(shape: Shape, names: list[str], model: int, dice: random.Random) -> dict[str, HostProfile]:
    need = shape.need or dice.uniform(0.6, 0.8)
    weights = [min(4.0, math.exp(dice.gauss(0, 0.6))) for _ in names]
    total, beside = sum(weights), 300 * MIB
    rooms = [int(min(0.9 * model, model / need * weight / total)) + beside for weight in weights]
    rooms[0] = max(rooms[0], LAYER + LAYER // 2 + 2 * beside + 2 * shape.pins * LAYER // 2)
    return {name: _host(room, dice) for name, room in zip(names, rooms, strict=True)}


def _host(room: int, dice: random.Random) -> HostProfile:
    decode = 0.004 * math.exp(dice.gauss(0, 0.7))
    times = StageTimes(
        decode_layer=decode,
        decode_overhead=decode * dice.uniform(0.1, 0.5),
        prefill_layer=decode * dice.uniform(3, 15),
        prefill_overhead=decode * dice.uniform(0.2, 1.0),
        head=decode * dice.uniform(0.5, 2),
        chunk_tokens=256,
        context=600,
    )
    return HostProfile(
        cores=4, memory_total=2 * room, memory_available=room + 500 * MIB, load=0, python="3.11", packages={},
        device="cpu", runtime_bytes=500 * MIB, times=times,
    )  # fmt: skip


def _links(shape: Shape, names: list[str], dice: random.Random) -> dict[tuple[str, str], LinkProfile]:
    if shape.lan:
        return {
            (source, target): LinkProfile(rtt=2e-4 * dice.uniform(0.7, 1.3), bandwidth=117e6 * dice.uniform(0.97, 1.0))
            for source in names
            for target in names
            if source != target
        }
    sites = [(dice.uniform(0, 0.03), dice.uniform(0, 0.03)) for _ in range(max(2, len(names) // SITES_EVERY))]
    at = {name: dice.choice(sites) for name in names}
    width = {name: dice.choice(WIDTHS) for name in names}
    return {
        (source, target): LinkProfile(
            rtt=(3e-4 + math.dist(at[source], at[target])) * dice.uniform(1.0, 1.1),
            bandwidth=min(width[source], width[target]),
        )
        for source in names
        for target in names
        if source != target
    }
