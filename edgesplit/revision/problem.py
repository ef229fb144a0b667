"""Chain, fleet, plan and inventory -> Problem: the numbers a split is judged by, each with its unit.

All the modelling is here: what a block costs on a host, what a hop costs, what a host may hold, where a block may be.
Must not know: any split, nor how the best one is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from edgesplit.errors import InfeasibleError, InputError
from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.inventory import Inventory
from edgesplit.model.blocks import Block, Chain, name_blocks
from edgesplit.plan import ModelPlan, Objective, ServiceLevel, Workload
from edgesplit.revision.pace import HostCosts, Pieces, host_costs

TRUSTED = "trusted"

# The activations alive at once inside a layer, in widths of what crosses its boundary: input, residual, queries, keys
# and values, and the MLP's two inner products of about four widths, of which the attention's are already free again.
WORKSPACE_FACTOR = 8


@dataclass(frozen=True)
class Pinned:
    """A pin with its blocks as numbers. `key`: where the plan says so, `pins` or `place`."""

    blocks: tuple[int, ...]
    to: str
    key: str = "pins"


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
    sent: tuple[int, ...]  # per block: bytes per token that cross the boundary behind it, at max_context
    glued: tuple[tuple[int, int], ...]  # runs of blocks, first to last, that stay on one host
    common: int  # bytes per stage
    workspace: int  # bytes per host that holds any block
    depth: tuple[float, ...]  # per block: its share of the privacy penalty P, 0 for embedding and head; sums to 1
    chunks: int  # pieces in which a prompt travels
    chunk_tokens: float  # tokens of one piece
    batch: int  # sequences that share a decode step
    most_batch: int  # the most that the plan allows
    pins: tuple[Pinned, ...]
    max_stages: int | None
    single: frozenset[str]  # hosts that may have one stage only
    workload: Workload
    objective: Objective
    service: ServiceLevel
    generates: bool = True  # an encoder does not: its request is a prompt alone

    @property
    def last(self) -> int:
        """The head's block number."""
        return len(self.blocks) - 1

    @property
    def units(self) -> Iterator[range]:
        """The blocks, those that stay together as one."""
        block = 0
        runs = dict(self.glued)
        while block < len(self.blocks):
            last = runs.get(block, block)
            yield range(block, last + 1)
            block = last + 1

    def allowed(self, block: int) -> tuple[str, ...]:
        """Usable hosts that may hold the block, by name."""
        return tuple(host for host in self.hosts if host in self.legal[block])

    def name(self, *blocks: int) -> str:
        return name_blocks(blocks, len(self.blocks))

    def linked(self, source: str, target: str) -> bool:
        return (source, target) in self.links

    def occupied(self, source: str, target: str, block: int, tokens: float) -> float:
        """Seconds the link is busy with `tokens` tokens of what leaves `block`: the hop without its propagation."""
        link = self.links[source, target]
        return link.overhead + tokens * self.sent[block] / link.bandwidth

    def hop(self, source: str, target: str, block: int, tokens: float) -> float:
        """Seconds until they have arrived: half a round trip more."""
        return self.links[source, target].rtt / 2 + self.occupied(source, target, block, tokens)

    def first_hop(self, source: str, target: str, block: int, tokens: float) -> float:
        """The same for the first chunk of a prompt, for which TCP starts slowly."""
        return self.links[source, target].start + self.hop(source, target, block, tokens)

    @property
    def throttled(self) -> bool:
        return any(host.grace > 0 for host in self.hosts.values())

    @property
    def others_chunks(self) -> int:
        """Chunks of the other sequences' prompts that come between the tokens of one answer: each begins once."""
        return (self.workload.concurrency - 1) * self.chunks if self.workload.new_tokens > 1 else 0

    @property
    def groups(self) -> int:
        """So many decode steps make one token of every concurrent sequence."""
        return -(-self.workload.concurrency // self.batch)

    @property
    def batches(self) -> tuple[int, ...]:
        """Sequences that could share a step: for every number of groups, as many as it takes."""
        sizes = {-(-self.workload.concurrency // groups) for groups in range(1, self.workload.concurrency + 1)}
        return tuple(sorted(size for size in sizes if size <= self.most_batch))

    @property
    def batches_that_matter(self) -> tuple[int, ...]:
        """Those that Phi can tell apart: only answers that wait for each other gain by sharing steps."""
        wish = self.objective
        return self.batches if wish.goal == "weighted" and wish.latency > 0 else (1,)

    def among(self, hosts: Collection[str]) -> Problem:
        """If there were only these hosts; the fastest must be one of them, or `load_unit` changes."""
        links = {pair: link for pair, link in self.links.items() if pair[0] in hosts and pair[1] in hosts}
        return replace(self, hosts={name: one for name, one in self.hosts.items() if name in hosts}, links=links)

    def batched(self, batch: int) -> Problem:
        """With so many sequences in a step."""
        new = replace(self, batch=batch)
        return new.crowded() if self.objective.goal == "weighted" else new  # the other goals are of a request alone

    def crowded(self) -> Problem:
        """The hosts as they are while all groups are under way."""
        hosts = {name: replace(one, groups=self.groups) for name, one in self.hosts.items()}
        return replace(self, hosts=hosts)

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
    pins, legal = _pinned(chain, plan), permitted(chain, plan, inventory)
    avoided = _avoided(plan, inventory)
    usable = sorted(set(fleet.hosts) & set(inventory.hosts) - set(fleet.problems) - avoided)
    problems = {**fleet.problems, **dict.fromkeys(avoided, "the plan avoids it")}
    unusable = {name: problems.get(name, "not measured") for name in inventory.hosts if name not in usable}
    if plan.entry in unusable:
        raise InfeasibleError(
            f"the entry host {plan.entry} cannot be used: {unusable[plan.entry]}",
            "embedding and head are always on the entry: mend it, or name another trusted host as `entry`",
        )
    workload = _workload(chain, plan.workload)
    piece = plan.prefill_chunk if chain.chunked else workload.max_context  # the longest that travels at once
    pieces = Pieces.of(workload, piece)
    caches = tuple(block.cache_bytes_until(workload.max_context) * workload.concurrency for block in chain.blocks)
    sent = tuple(block.output_bytes(workload.max_context) for block in chain.blocks)
    return Problem(
        entry=plan.entry,
        hosts={name: host_costs(chain, fleet, name, inventory.hosts[name].memory, pieces) for name in usable},
        unusable=unusable,
        trusted=inventory.trusted,
        links=_usable_links(fleet, usable),
        blocks=chain.blocks,
        legal=legal,
        caches=caches,
        memory=tuple(map(_block_memory, chain.blocks, caches, [workload.concurrency] * len(caches))),
        sent=sent,
        glued=chain.glued,
        common=chain.common_bytes,
        workspace=piece * WORKSPACE_FACTOR * max(sent[:-1]),
        depth=_depth(chain),
        chunks=pieces.chunks,
        chunk_tokens=pieces.tokens,
        batch=1,
        most_batch=plan.decode_batch if chain.kind == "text" else 1,
        pins=pins,
        max_stages=plan.max_stages,
        single=frozenset(inventory.hosts) - inventory.trusted if plan.one_stage_per_untrusted_host else frozenset(),
        workload=workload,
        objective=plan.objective,
        service=plan.service,
        generates=chain.kind != "encoder",
    )


def _workload(chain: Chain, asked: Workload) -> Workload:
    """What is asked of an encoder is a text, or an image, which has as many positions as the model makes of it."""
    if chain.kind != "encoder":
        return asked
    size = chain.image_positions
    image = {} if size is None else {"prompt_tokens": size, "max_context": size}
    return asked.model_copy(update={"new_tokens": 1, **image})


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


def _avoided(plan: ModelPlan, inventory: Inventory) -> set[str]:
    for name in plan.avoid:
        if name not in inventory.hosts:
            raise InputError(
                f"avoid: no host {name} in the inventory", f"its hosts are {', '.join(sorted(inventory.hosts))}"
            )
        if name == plan.entry:
            raise InputError(f"avoid: {name} is the entry", "name another trusted host as `entry`")
        for key, to in [*(("pins", pin.to) for pin in plan.pins), *(("place", host) for host in plan.place.values())]:
            if to == name:
                raise InputError(f"avoid: {name} is to hold blocks by `{key}`", "one of the two must go")
    return set(plan.avoid)


def permitted(chain: Chain, plan: ModelPlan, inventory: Inventory) -> tuple[frozenset[str], ...]:
    """Per block, the hosts that may hold it (eq. 6 and 10). Raises InputError."""
    return tuple(_together(chain, _legal_hosts(chain, plan.entry, _pinned(chain, plan), inventory)))


def _pinned(chain: Chain, plan: ModelPlan) -> tuple[Pinned, ...]:
    return (
        *(Pinned(_pin_blocks(chain, pin.blocks, "pins"), pin.to) for pin in plan.pins),
        *(Pinned(_pin_blocks(chain, [name], "place"), host, "place") for name, host in plan.place.items()),
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
                    f"{pin.key}: {chain.blocks[block].name} cannot be on {pin.to}: another pin forbids it",
                    f"embedding and head are always on the entry {entry}; "
                    "a block pinned twice must be on a host that both pins allow",
                )
    return legal


def _pin_hosts(pin: Pinned, inventory: Inventory) -> frozenset[str]:
    if pin.to == TRUSTED and pin.key == "pins":
        return inventory.trusted
    if pin.to not in inventory.hosts:
        raise InputError(
            f"{pin.key}: no host {pin.to} in the inventory",
            f"blocks go to {f'{TRUSTED} or ' if pin.key == 'pins' else ''}one of {', '.join(sorted(inventory.hosts))}",
        )
    return frozenset([pin.to])


def _pin_blocks(chain: Chain, names: Iterable[str], key: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({block for name in names for block in chain.select(name)}))
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error


def _together(chain: Chain, legal: list[frozenset[str]]) -> list[frozenset[str]]:
    """Blocks that share a cache may be only where each of them may."""
    for first, last in chain.glued:
        shared = frozenset.intersection(*legal[first : last + 1])
        if not shared:
            raise InputError(
                f"pins: {name_blocks(range(first, last + 1), len(chain.blocks))} share a cache, but no host may hold "
                "all of them",
                "pin them to the same host, or only to trusted ones",
            )
        legal[first : last + 1] = [shared] * (last + 1 - first)
    return legal


def _usable_links(fleet: Fleet, usable: list[str]) -> dict[tuple[str, str], LinkProfile]:
    def link(source: str, target: str) -> LinkProfile:
        found = fleet.links[source][target]
        more = fleet.learned.links.get(source, {}).get(target, 0.0)
        return found.model_copy(update={"overhead": max(0.0, found.overhead + more)})

    return {
        (source, target): link(source, target)
        for source in usable
        for target in usable
        if source != target and target in fleet.links.get(source, {})
    }


def _block_memory(block: Block, cache: int, concurrency: int) -> int:
    """The head also holds the logits of one position for each sequence."""
    logits = block.output_bytes_per_token * concurrency if block.kind == "head" else 0
    return block.weight_bytes + cache + logits


def _depth(chain: Chain) -> tuple[float, ...]:
    """Layer k of n tells 1 - k/n about the input: the nearer to it, the more (the paper's III-D, "layer depth")."""
    total = (chain.layers + 1) / 2  # sum of 1 - k/n over k = 0..n-1
    return (0.0, *((1 - k / chain.layers) / total for k in range(chain.layers)), 0.0)
