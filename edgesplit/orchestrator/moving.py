"""What a move costs beside what it brings: bytes to send, seconds until it serves, memory for two splits at once, and
what sequences have so far, read again. docs/cost-model.md has the formulas.

Must not know: clocks, hosts, how a split is found, whether the move is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field

from edgesplit.revision.cost import Costs
from edgesplit.revision.problem import Problem
from edgesplit.split import Split
from edgesplit.units import format_size, format_time
from edgesplit.values import Value

OPEN = 400e6  # bytes per second in which weights are read, opened and made tensors, by one core
BEGIN = 6.0  # seconds until a runner that is started answers: torch is imported
CHANGE = 1.0  # seconds for all that a change of epoch takes beside: locks, keys, links, trial, commit
DISTURBED = 0.5  # of its pace the ring may lose while weights are sent and loaded beside it


class Moving(Value):
    """`sizes`: host -> bytes it is sent; `extra`: host -> bytes of memory it takes until the old split is retired.

    Seconds: `send` until the slowest host has its weights; `load` until the new ring serves, both splits in memory;
    `replay` of the new ring's work to read what sequences have so far. `short`: why there is no room for both, "" if
    there is.
    """

    sizes: dict[str, int] = Field(default_factory=dict)
    extra: dict[str, int] = Field(default_factory=dict)
    send: float = 0.0
    load: float = 0.0
    replay: float = 0.0
    short: str = ""

    @property
    def seconds(self) -> float:
        return self.send + self.load + self.replay

    def net(self, gain: float, horizon: float) -> float:
        """What is left of a gain (a share of Phi) over a horizon, if all stays as it is."""
        comes = max(0.0, 1 - self.seconds / horizon)
        return gain * comes - (DISTURBED * (self.send + self.load) + self.replay) / horizon

    def __str__(self) -> str:
        sent = sum(self.sizes.values())
        parts = [f"{format_size(sent)} to send in {format_time(self.send)}" if sent else "nothing to send"]
        parts.append(f"{format_time(self.load)} to load")
        if self.extra:
            parts.append(f"{format_size(sum(self.extra.values()))} more in memory meanwhile")
        return ", ".join([*parts, f"{format_time(self.replay)} to read again"])


@dataclass(frozen=True)
class Stock:
    """What hosts have already: `shards`, host -> blocks on its disk; `warm`: a runner is up; `room`: bytes of memory
    free now; `rates`: bytes per second that can be sent to it; `paces`: factor on its times as profiled."""

    shards: Mapping[str, frozenset[int]]
    warm: frozenset[str]
    room: Mapping[str, int]
    rates: Mapping[str, float]
    paces: Mapping[str, float] = field(default_factory=dict)

    def pace(self, host: str) -> float:
        return max(1.0, self.paces.get(host, 1.0))

    def has(self, host: str, running: Split) -> frozenset[int]:
        return self.shards.get(host, frozenset()) | blocks_of(running, host)


def blocks_of(split: Split, host: str) -> frozenset[int]:
    return frozenset(block for stage in split.of(host) for block in range(stage.first, stage.last + 1))


def moving(running: Split, target: Split, costs: Costs, problem: Problem, stock: Stock) -> Moving:
    """`costs`: of the target."""
    fresh = {host: blocks_of(target, host) - blocks_of(running, host) for host in target.hosts}
    sizes = {host: _weights(fresh[host] - stock.has(host, running), problem) for host in target.hosts}
    for host in target.hosts:
        if host not in stock.shards and host not in running.hosts:
            sizes[host] += problem.common
    starts = {host: 0.0 if host in stock.warm else BEGIN for host in target.hosts}
    loads = [stock.pace(host) * (starts[host] + _weights(fresh[host], problem) / OPEN) for host in target.hosts]
    extra = {host: size for host in target.hosts if (size := _extra(running, target, host, problem))}
    room = {host: stock.room.get(host, problem.hosts[host].available) for host in extra}
    short = [
        f"{host} would have to take {format_size(extra[host])} more while both are loaded, and has "
        f"{format_size(room[host])}"
        for host in sorted(extra)
        if extra[host] + (0 if host in stock.warm else problem.hosts[host].runtime) > room[host]
    ]
    return Moving(
        sizes={host: size for host, size in sizes.items() if size},
        extra=extra,
        send=max((size / stock.rates[host] for host, size in sizes.items() if size), default=0.0),
        load=CHANGE + max(loads),
        replay=_replay(costs, problem),
        short="; ".join(short),
    )


def _weights(blocks: frozenset[int], problem: Problem) -> int:
    return sum(problem.blocks[block].weight_bytes for block in blocks)


def _extra(running: Split, target: Split, host: str, problem: Problem) -> int:
    """Of the new split on a host that it does not hold already: weights are shared, caches are not. They are as long
    as sequences are on the mean."""
    held, mine, work = blocks_of(running, host), blocks_of(target, host), problem.workload
    stages, share = len(target.of(host)), (work.prompt_tokens + work.new_tokens / 2) / work.max_context
    caches = round(share * sum(problem.caches[block] for block in mine))
    same = running.of(host) == target.of(host)
    return caches + (0 if same else _weights(mine - held, problem) + stages * problem.common + problem.workspace)


def _replay(costs: Costs, problem: Problem) -> float:
    """Seconds in which the busiest host reads prompt and half an answer of every sequence, in pieces."""
    work = problem.workload
    pieces = (work.prompt_tokens + work.new_tokens / 2) / max(1.0, problem.chunk_tokens)
    return work.concurrency * pieces * max(host.chunk_seconds for host in costs.hosts)
