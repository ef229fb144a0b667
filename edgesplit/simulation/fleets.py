"""Fleets, models and plans made by a seed: hosts of unlike strength at several sites, and deployments that share them.

Must not know: what happens to them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from edgesplit.fleet import Fleet, HostProfile, LinkProfile, StageTimes
from edgesplit.inventory import HostSpec, Inventory, SshTarget
from edgesplit.model.blocks import Block, Chain, Flops
from edgesplit.plan import ModelPlan, ModelSource, Pin, ServiceLevel, Workload

MIB = 2**20
LAYERS = 32
LAYER = 400 * MIB  # a model of seven thousand million parameters, in 16 bits
HIDDEN = 8192  # bytes per token across a boundary
RUNTIME = 500 * MIB
SITE = 5  # hosts to a site
WIDTHS = (12.5e6, 62.5e6, 125e6)  # bytes per second out of a site


def chain() -> Chain:
    def block(name: str, kind: str, size: int, kv: int) -> Block:
        return Block.model_validate(
            {"name": name, "kind": kind, "weight_bytes": size, "kv_bytes_per_token": kv, "state_bytes": 0,
             "flops_per_token": size, "prefill": Flops(token=size), "output_bytes_per_token": HIDDEN}
        )  # fmt: skip

    layers = (block(f"layers.{number}", "layer", LAYER, 4096) for number in range(LAYERS))
    blocks = (block("embedding", "embedding", LAYER, 0), *layers, block("head", "head", LAYER, 0))
    return Chain(model="made", architecture="made", dtype="float16", blocks=blocks, common_bytes=MIB, max_context=None,
                 checkpoint="0")  # fmt: skip


def fleet(count: int, seed: int) -> Fleet:
    """A host holds 4 to 12 layers."""
    dice = random.Random(f"fleet {count} {seed}")  # noqa: S311 - no secret
    names = [f"h{number:04d}" for number in range(count)]
    hosts = {name: _host(dice) for name in names}
    sites = [(dice.uniform(0, 0.03), dice.uniform(0, 0.03), dice.choice(WIDTHS)) for _ in range(-(-count // SITE))]
    inside = LinkProfile(rtt=3e-4, bandwidth=1.25e8)
    between = {
        (a, b): LinkProfile(rtt=1e-3 + math.dist(sites[a][:2], sites[b][:2]), bandwidth=min(sites[a][2], sites[b][2]))
        for a in range(len(sites))
        for b in range(len(sites))
        if a != b
    }
    links = {
        source: {
            target: inside if at // SITE == to // SITE else between[at // SITE, to // SITE]
            for to, target in enumerate(names)
            if to != at
        }
        for at, source in enumerate(names)
    }
    return Fleet(hosts=hosts, links=links, measured_at=0.0, plan="0")


def _host(dice: random.Random) -> HostProfile:
    decode = 0.004 * math.exp(dice.gauss(0, 0.5))
    room = dice.randint(4, 12) * (LAYER + 20 * MIB) + 300 * MIB + RUNTIME
    times = StageTimes(
        decode_layer=decode, decode_overhead=decode * 0.3, prefill_layer=decode * 8, prefill_overhead=decode * 0.5,
        head=decode, chunk_tokens=256, context=600,
    )  # fmt: skip
    return HostProfile(
        cores=4, memory_total=2 * room, memory_available=room, load=0, python="3.11", packages={}, device="cpu",
        runtime_bytes=RUNTIME, times=times, threads=4,
    )  # fmt: skip


def inventory(names: Sequence[str], entries: Sequence[str]) -> Inventory:
    return Inventory(hosts={name: HostSpec(ssh=SshTarget(host=name), trusted=name in entries) for name in names})


def plan(number: int, entry: str, level: float | None = None) -> ModelPlan:
    """`level`: seconds per token that are to be held."""
    return ModelPlan(
        name=f"model-{number}",
        model=ModelSource(source="made"),
        entry=entry,
        workload=Workload(prompt_tokens=256, new_tokens=128, max_context=1024, concurrency=2),
        pins=(Pin(blocks=("layers.0",)),),
        service=ServiceLevel(time_per_token=level),
    )
