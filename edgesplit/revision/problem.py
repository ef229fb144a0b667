"""Chain, fleet, plan and inventory -> Problem: the numbers a split is judged by, each with its unit.

All the modelling is here: what a block costs on a host, what a hop costs, what a host may hold, where a block may be.
Must not know: any split, nor how the best one is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from edgesplit.errors import InfeasibleError, InputError
from edgesplit.fleet import Fleet, HostProfile, LinkProfile
from edgesplit.inventory import Inventory
from edgesplit.model.blocks import Block, Chain, name_blocks
from edgesplit.plan import ModelPlan, Objective, Pin, ServiceLevel, Workload

TRUSTED = "trusted"

# Mutual TLS 1.3 over a blocking socket adds 20 us (4 KB) to 52 us (16 KB) to a hop; measured on loopback.
HOP_SECONDS = 50e-6

# The activations alive at once inside a layer, in widths of what crosses its boundary: input, residual, queries, keys
# and values, and the MLP's two inner products of about four widths, of which the attention's are already free again.
WORKSPACE_FACTOR = 8


@dataclass(frozen=True)
class HostCosts:
    """What one host may hold (bytes) and how long it takes (seconds), per block and per stage, slowdown included."""

    decode: tuple[float, ...]  # seconds per block for one decode step; the head's is its time for one position
    chunk: tuple[float, ...]  # seconds per block for one chunk of the prompt; the head's is 0
    decode_overhead: float  # seconds per stage and decode step
    chunk_overhead: float  # seconds per stage and chunk
    cap: int | None  # bytes of weights, KV cache and workspace that the inventory allows
    available: int  # bytes a process may still take, as measured
    runtime: int  # bytes a runner takes before it holds weights

    @property
    def head(self) -> float:
        """Seconds of final norm and head, for one position."""
        return self.decode[-1]

    @property
    def budget(self) -> int:
        """Bytes for weights, KV cache and workspace: the smaller of both limits (eq. 5's capacity)."""
        free = max(0, self.available - self.runtime)
        return free if self.cap is None else min(self.cap, free)


@dataclass(frozen=True)
class Pinned:
    """A pin with its blocks as numbers."""

    blocks: tuple[int, ...]
    to: str


@dataclass(frozen=True)
class Problem:
    """One instance of the paper's eq. 3 to 7. Block numbers count from 0 = embedding to n-1 = head."""

    entry: str
    hosts: Mapping[str, HostCosts]  # usable hosts, ordered by name
    unusable: Mapping[str, str]  # the inventory's other hosts -> why
    trusted: frozenset[str]
    links: Mapping[tuple[str, str], LinkProfile]  # (source, target); what is absent cannot be used
    blocks: tuple[Block, ...]
    legal: tuple[frozenset[str], ...]  # per block: hosts of the inventory that the pins allow (eq. 6 and 10)
    caches: tuple[int, ...]  # per block: bytes of KV cache and state, at max_context and concurrency
    memory: tuple[int, ...]  # per block: bytes of weights and caches, for the head its logits too
    common: int  # bytes per stage
    workspace: int  # bytes per host that holds any block
    depth: tuple[float, ...]  # per block: its share of the privacy penalty P, 0 for embedding and head; sums to 1
    chunks: int  # pieces in which a prompt travels
    chunk_tokens: float  # tokens of one piece
    pins: tuple[Pinned, ...]
    workload: Workload
    objective: Objective
    service: ServiceLevel

    @property
    def last(self) -> int:
        """The head's block number."""
        return len(self.blocks) - 1

    def allowed(self, block: int) -> tuple[str, ...]:
        """Usable hosts that may hold the block, by name."""
        return tuple(host for host in self.hosts if host in self.legal[block])

    def name(self, *blocks: int) -> str:
        return name_blocks(blocks, len(self.blocks))

    def linked(self, source: str, target: str) -> bool:
        return (source, target) in self.links

    def occupied(self, source: str, target: str, block: int, tokens: float) -> float:
        """Seconds the link is busy with `tokens` tokens of what leaves `block`: the hop without its propagation."""
        return HOP_SECONDS + tokens * self.blocks[block].output_bytes_per_token / self.links[source, target].bandwidth

    def hop(self, source: str, target: str, block: int, tokens: float) -> float:
        """Seconds until they have arrived: half a round trip more."""
        return self.links[source, target].rtt / 2 + self.occupied(source, target, block, tokens)

    def request_seconds(self, chunk: float, decode: float, head: float) -> float:
        """Seconds per request from seconds per chunk and per decode step; `head` for the prompt's last position."""
        return self.chunks * chunk + head + (self.workload.new_tokens - 1) * decode

    def alone_seconds(self, host: str) -> float:
        """Seconds per request if this host did all of it."""
        costs = self.hosts[host]
        chunk = costs.chunk_overhead + sum(costs.chunk)
        return self.request_seconds(chunk, costs.decode_overhead + sum(costs.decode), costs.head)

    @cached_property
    def load_unit(self) -> float:
        """Load U per busy second per request: the rate (1/s) makes it the busy share of the time. Without a rate the
        unit is the fastest host doing everything alone, a constant of the problem."""
        if self.workload.rate > 0:
            return self.workload.rate
        fastest = min(self.alone_seconds(host) for host in self.hosts)
        return 1 / fastest if fastest > 0 else 1.0


def pose(chain: Chain, fleet: Fleet, plan: ModelPlan, inventory: Inventory) -> Problem:
    """Raises InputError for a pin or an entry that makes no sense, InfeasibleError when the entry cannot be used."""
    _check_entry(plan, inventory)
    pins = tuple(Pinned(_pin_blocks(chain, pin), pin.to) for pin in plan.pins)
    legal = tuple(_legal_hosts(chain, plan.entry, pins, inventory))
    usable = sorted(set(fleet.hosts) & set(inventory.hosts) - set(fleet.problems))
    unusable = {name: fleet.problems.get(name, "not measured") for name in inventory.hosts if name not in usable}
    if plan.entry in unusable:
        raise InfeasibleError(
            f"the entry host {plan.entry} cannot be used: {unusable[plan.entry]}",
            "embedding and head are always on the entry: mend it, or name another trusted host as `entry`",
        )
    workload = plan.workload
    chunks = -(-workload.prompt_tokens // plan.prefill_chunk)
    tokens = workload.prompt_tokens / chunks
    caches = tuple(_cache_bytes(block, workload) for block in chain.blocks)
    return Problem(
        entry=plan.entry,
        hosts={name: _host_costs(chain, fleet, name, inventory.hosts[name].memory, tokens) for name in usable},
        unusable=unusable,
        trusted=inventory.trusted,
        links=_usable_links(fleet, usable),
        blocks=chain.blocks,
        legal=legal,
        caches=caches,
        memory=tuple(map(_block_memory, chain.blocks, caches, [workload.concurrency] * len(caches))),
        common=chain.common_bytes,
        workspace=plan.prefill_chunk * WORKSPACE_FACTOR * max(b.output_bytes_per_token for b in chain.blocks[:-1]),
        depth=_depth(chain),
        chunks=chunks,
        chunk_tokens=tokens,
        pins=pins,
        workload=workload,
        objective=plan.objective,
        service=plan.service,
    )


def _check_entry(plan: ModelPlan, inventory: Inventory) -> None:
    if plan.entry not in inventory.hosts:
        raise InputError(
            f"entry: no host {plan.entry} in the inventory", f"its hosts are {', '.join(sorted(inventory.hosts))}"
        )
    if plan.entry not in inventory.trusted:
        raise InputError(
            f"entry: {plan.entry} is not trusted, and the entry sees the raw text",
            f"set `trusted: true` for it, or choose one of {', '.join(sorted(inventory.trusted)) or 'none'}",
        )


def _legal_hosts(chain: Chain, entry: str, pins: tuple[Pinned, ...], inventory: Inventory) -> list[frozenset[str]]:
    """Per block, the hosts its pins leave (eq. 6 and 10). Embedding and head are pinned to the entry by themselves."""
    legal = [frozenset(inventory.hosts)] * len(chain.blocks)
    legal[0] = legal[-1] = frozenset([entry])
    for pin in pins:
        hosts = _pin_hosts(pin, inventory)
        for block in pin.blocks:
            legal[block] &= hosts
            if not legal[block]:
                raise InputError(
                    f"pins: {chain.blocks[block].name} cannot be on {pin.to}: another pin forbids it",
                    f"embedding and head are always on the entry {entry}; "
                    "a block pinned twice must be on a host that both pins allow",
                )
    return legal


def _pin_hosts(pin: Pinned, inventory: Inventory) -> frozenset[str]:
    if pin.to == TRUSTED:
        return inventory.trusted
    if pin.to not in inventory.hosts:
        raise InputError(
            f"pins: no host {pin.to} in the inventory",
            f"a pin's `to` is {TRUSTED} or one of {', '.join(sorted(inventory.hosts))}",
        )
    return frozenset([pin.to])


def _pin_blocks(chain: Chain, pin: Pin) -> tuple[int, ...]:
    try:
        return tuple(sorted({block for name in pin.blocks for block in chain.select(name)}))
    except ValueError as error:
        raise InputError(f"pins: {error}") from error


def _host_costs(chain: Chain, fleet: Fleet, name: str, cap: int | None, tokens: float) -> HostCosts:
    """A layer takes the measured layer's time, scaled by its weight over the median layer's; prefill by its tokens."""
    profile: HostProfile = fleet.hosts[name]
    times, slowdown = profile.times, fleet.slowdown.get(name, 1.0)
    typical = median([block.weight_bytes for block in chain.blocks if block.kind == "layer"] or [0])
    of_typical = [block.weight_bytes / typical if typical else 1.0 for block in chain.blocks]
    layer = [share if block.kind == "layer" else 0.0 for block, share in zip(chain.blocks, of_typical, strict=True)]
    share = tokens / max(1, times.chunk_tokens)
    return HostCosts(
        decode=(*(slowdown * times.decode_layer * factor for factor in layer[:-1]), slowdown * times.head),
        chunk=tuple(slowdown * times.prefill_layer * factor * share for factor in layer),
        decode_overhead=slowdown * times.decode_overhead,
        chunk_overhead=slowdown * times.prefill_overhead,
        cap=cap,
        available=profile.memory_available,
        runtime=profile.runtime_bytes,
    )


def _usable_links(fleet: Fleet, usable: list[str]) -> dict[tuple[str, str], LinkProfile]:
    return {
        (source, target): fleet.links[source][target]
        for source in usable
        for target in usable
        if source != target and target in fleet.links.get(source, {})
    }


def _cache_bytes(block: Block, workload: Workload) -> int:
    return (block.kv_bytes_per_token * workload.max_context + block.state_bytes) * workload.concurrency


def _block_memory(block: Block, cache: int, concurrency: int) -> int:
    """The head also holds the logits of one position for each sequence."""
    logits = block.output_bytes_per_token * concurrency if block.kind == "head" else 0
    return block.weight_bytes + cache + logits


def _depth(chain: Chain) -> tuple[float, ...]:
    """Layer k of n tells 1 - k/n about the input: the nearer to it, the more (the paper's III-D, "layer depth")."""
    total = (chain.layers + 1) / 2  # sum of 1 - k/n over k = 0..n-1
    return (0.0, *((1 - k / chain.layers) / total for k in range(chain.layers)), 0.0)
