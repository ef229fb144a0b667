"""What a split costs: the paper's Phi = alpha L + beta U + gamma P (eq. 3), and which limits it breaks (eq. 4-6).

    time to first token = one chunk through all stages and hops + (chunks - 1) x the busiest host's or hop's time for
                          a chunk + the head once
    time per token      = max(one decode step through all stages and hops + half of what other groups keep the busiest
                              host or hop for, groups x the busiest host's or hop's time for a step)
    L = time to first token + (new tokens - 1) x time per token, seconds
    U = the busiest host's busy seconds per request x Problem.load_unit
    P = depth-weighted share of the blocks on untrusted hosts, 0..1

With the goals of a plan's objective other than `weighted`, Phi is in seconds:

    latency             a request that is alone: time to first token + (new tokens - 1) x one step through the ring
    throughput          max(that / concurrency, the busiest host's or hop's time for a request): no ring answers more
                        often (the asymptotic bounds of a closed network of queues)

Where several sequences are in flight, prompts and answers also wait for each other: docs/cost-model.md has it all.
A host that holds two stretches of the chain is busy with both; a hop is busy without its propagation.
Must not know: how a split was found.
"""

from __future__ import annotations

from dataclasses import replace

from edgesplit.errors import InfeasibleError
from edgesplit.revision.problem import Problem
from edgesplit.split import Split, Stage
from edgesplit.units import format_size, format_time
from edgesplit.values import Value

WAIT = 0.5  # of a decode step that is under way when a chunk comes, what is left on the mean
# Of the steps of the other groups at the busiest host, the share a step waits for on its way: none if all took their
# time to the microsecond, all if they came at random. Measured: docs/decisions/0028-prediction.md.
QUEUE = 0.5
LOAD_TOLERANCE = 2e-6  # twice the solver's tolerance: a load of exactly 1 is legal


class StageCost(Value):
    """One stage, for one decode step and one chunk of the prompt. Its memory is without the host's workspace."""

    host: str
    first: int
    last: int
    decode_seconds: float
    chunk_seconds: float
    memory_bytes: int


class HopCost(Value):
    """What leaves one stage for the next."""

    source: str
    target: str
    decode_seconds: float
    chunk_seconds: float


class HostCost(Value):
    """One host over all its stages; `load` is busy seconds per request x Problem.load_unit."""

    host: str
    decode_seconds: float
    chunk_seconds: float
    request_seconds: float
    load: float
    memory_bytes: int
    budget_bytes: int


class Costs(Value):
    """Phi and where it comes from. `path_seconds`: one decode step through the ring; `busiest_seconds`: of the busiest
    host or hop, for one decode step of all concurrent sequences; the larger is the time per token."""

    phi: float
    latency_seconds: float
    alone_seconds: float  # a request that waits for no other
    interval_seconds: float  # from one answer to the next, at least
    utilization: float
    privacy: float
    time_to_first_token_seconds: float
    time_per_token_seconds: float
    batch: int
    path_seconds: float
    busiest_seconds: float
    busiest: str
    stages: tuple[StageCost, ...]
    hops: tuple[HopCost, ...]
    hosts: tuple[HostCost, ...]


def evaluate(split: Split, problem: Problem) -> Costs:
    """With as many sequences in a step as make tokens come soonest, as the entry chooses while it serves.

    Raises InfeasibleError for hosts or links that are not there; other limits are `violations`' business.
    """
    broken = _broken(split, problem)
    if broken:
        raise InfeasibleError("; ".join(broken))
    priced = (price(split, problem.batched(batch)) for batch in problem.batches)
    return min(priced, key=lambda costs: (costs.phi, costs.time_per_token_seconds))


def price(split: Split, problem: Problem) -> Costs:
    """With `problem.batch` sequences in a step."""
    problem = problem.crowded()
    hops = tuple(_hop_cost(*pair, problem) for pair in zip(split.stages, split.stages[1:], strict=False))
    hosts = tuple(_host_cost(host, split, problem) for host in split.hosts)
    work, wish = problem.workload, problem.objective
    steps = work.new_tokens - 1
    first, pace = _first_token(hosts, hops, split, problem)
    path = _path(hosts, hops, problem)
    busiest, busy = _busiest(split, hosts, problem)
    token = max(path + queued(problem.groups) * busy, busy)
    answer = steps * token + problem.others_chunks * pace
    latency = first + answer
    utilization = max(host.load for host in hosts)
    exposed = sum(
        share for host, share in zip(split.placement(), problem.depth, strict=True) if host not in problem.trusted
    )
    alone = _alone(split, problem)
    interval = max(alone / work.concurrency, _busiest_request(split, hosts, problem))
    weighted = wish.latency * latency + wish.utilization * utilization + wish.privacy * exposed
    return Costs(
        phi={"weighted": weighted, "latency": alone, "throughput": interval}[wish.goal],
        latency_seconds=latency,
        alone_seconds=alone,
        interval_seconds=interval,
        utilization=utilization,
        privacy=exposed,
        time_to_first_token_seconds=first,
        time_per_token_seconds=answer / steps if steps else token,
        batch=problem.batch,
        path_seconds=path,
        busiest_seconds=busy,
        busiest=busiest,
        stages=tuple(_stage_cost(stage, problem) for stage in split.stages),
        hops=hops,
        hosts=hosts,
    )


def queued(groups: int) -> float:
    """What a step waits for others at the busiest host or hop, in steps of all groups there."""
    return QUEUE * (groups - 1) / groups


def _alone(split: Split, problem: Problem) -> float:
    """Seconds of a request that waits for no other."""
    single = replace(problem, workload=problem.workload.model_copy(update={"concurrency": 1})).batched(1).crowded()
    hops = tuple(_hop_cost(*pair, single) for pair in zip(split.stages, split.stages[1:], strict=False))
    hosts = tuple(_host_cost(host, split, single) for host in split.hosts)
    first, _ = _first_token(hosts, hops, split, single)
    step = max(_path(hosts, hops, single), _busiest(split, hosts, single)[1])
    return first + (problem.workload.new_tokens - 1) * step


def _path(hosts: tuple[HostCost, ...], hops: tuple[HopCost, ...], problem: Problem) -> float:
    """A decode step through all stages and hops."""
    elapsed = sum(problem.hosts[host.host].elapsed(host.decode_seconds) for host in hosts)
    return elapsed + sum(hop.decode_seconds for hop in hops)


def _first_token(
    hosts: tuple[HostCost, ...], hops: tuple[HopCost, ...], split: Split, problem: Problem
) -> tuple[float, float]:
    """Seconds until it is there, and at what pace chunks follow each other. A host that answers others meanwhile has a
    decode step under way when a chunk comes, and does one between two chunks."""
    first = sum(problem.hosts[host.host].elapsed(host.chunk_seconds) for host in hosts)
    first += sum(hop.chunk_seconds for hop in hops) + problem.hosts[split.entry].head
    wires = [seconds for _, seconds in _occupied(split, problem, problem.chunk_tokens)]
    if problem.workload.concurrency == 1:
        pace = max([host.chunk_seconds for host in hosts] + wires)
    else:
        first += WAIT * sum(host.decode_seconds for host in hosts)
        pace = max([host.chunk_seconds + host.decode_seconds for host in hosts] + wires)
    return first + (problem.chunks - 1) * pace, pace


def _stage_cost(stage: Stage, problem: Problem) -> StageCost:
    costs = problem.hosts[stage.host]
    return StageCost(
        host=stage.host,
        first=stage.first,
        last=stage.last,
        decode_seconds=costs.elapsed(_decode(stage, problem)),
        chunk_seconds=costs.elapsed(_chunk(stage, problem)),
        memory_bytes=problem.common + sum(problem.memory[stage.first : stage.last + 1]),
    )


def _decode(stage: Stage, problem: Problem, batch: int | None = None) -> float:
    costs = problem.hosts[stage.host]
    blocks = costs.step(problem.batch if batch is None else batch)
    return costs.decode_overhead + sum(blocks[stage.first : stage.last + 1])


def _chunk(stage: Stage, problem: Problem) -> float:
    costs = problem.hosts[stage.host]
    return costs.chunk_overhead + sum(costs.chunk[stage.first : stage.last + 1])


def _hop_cost(left: Stage, right: Stage, problem: Problem) -> HopCost:
    return HopCost(
        source=left.host,
        target=right.host,
        decode_seconds=problem.hop(left.host, right.host, left.last, problem.batch),
        chunk_seconds=problem.first_hop(left.host, right.host, left.last, problem.chunk_tokens),
    )


def _host_cost(host: str, split: Split, problem: Problem) -> HostCost:
    stages = split.of(host)
    chunk = sum(_chunk(stage, problem) for stage in stages)
    head = problem.hosts[host].head if host == split.entry else 0.0
    request = problem.request_seconds(chunk, sum(_decode(stage, problem, 1) for stage in stages), head)
    return HostCost(
        host=host,
        decode_seconds=sum(_decode(stage, problem) for stage in stages),
        chunk_seconds=chunk,
        request_seconds=request,
        load=request * problem.load_unit,
        memory_bytes=held(host, split, problem),
        budget_bytes=problem.hosts[host].budget,
    )


def held(host: str, split: Split, problem: Problem) -> int:
    """Bytes of all its stages, and its workspace."""
    return problem.workspace + sum(
        problem.common + sum(problem.memory[stage.first : stage.last + 1]) for stage in split.of(host)
    )


def _occupied(split: Split, problem: Problem, tokens: float) -> list[tuple[str, float]]:
    """Each hop's name and the seconds its link is busy."""
    return [
        (f"{left.host} -> {right.host}", problem.occupied(left.host, right.host, left.last, tokens))
        for left, right in zip(split.stages, split.stages[1:], strict=False)
    ]


def _busiest(split: Split, hosts: tuple[HostCost, ...], problem: Problem) -> tuple[str, float]:
    """The host or hop that bounds how many tokens per second leave the ring: its name, and seconds per token and
    sequence while `concurrency` sequences are in flight."""
    busy = [(host.host, host.decode_seconds) for host in hosts] + _occupied(split, problem, problem.batch)
    name, seconds = max(busy, key=lambda one: one[1])
    return name, seconds * problem.groups


def _busiest_request(split: Split, hosts: tuple[HostCost, ...], problem: Problem) -> float:
    """Seconds of one request on the busiest host or hop."""
    chunks = [seconds for _, seconds in _occupied(split, problem, problem.chunk_tokens)]
    steps = [seconds for _, seconds in _occupied(split, problem, 1)]
    wires = [problem.request_seconds(chunk, step, 0.0) for chunk, step in zip(chunks, steps, strict=True)]
    return max([host.request_seconds for host in hosts] + wires)


def violations(split: Split, problem: Problem) -> list[str]:
    """Every limit the split breaks (eq. 4-6), with the numbers; empty if it may be deployed."""
    broken = _broken(split, problem)
    if split.blocks != len(problem.blocks):
        return broken
    rules = (_pins_broken, _glue_broken, _stages_broken, _limits_broken)
    return broken + [found for rule in rules for found in rule(split, problem)]


def forbidden(split: Split, problem: Problem) -> list[str]:
    """Where a split breaks what plan and inventory forbid, whatever the hosts and links are like."""
    return [*_pins_broken(split, problem), *_stages_broken(split, problem)]


def _broken(split: Split, problem: Problem) -> list[str]:
    """What keeps a split from being evaluated at all."""
    if split.blocks != len(problem.blocks):
        return [f"the split covers {split.blocks} blocks, the model has {len(problem.blocks)}"]
    found = [
        f"{stage.host} holds {problem.name(*range(stage.first, stage.last + 1))} but cannot be used: "
        f"{problem.unusable.get(stage.host, 'not in the inventory')}"
        for stage in split.stages
        if stage.host not in problem.hosts
    ]
    hops = {(left.host, right.host) for left, right in zip(split.stages, split.stages[1:], strict=False)}
    usable = [hop for hop in sorted(hops) if hop[0] in problem.hosts and hop[1] in problem.hosts]
    return found + [f"no link from {hop[0]} to {hop[1]}" for hop in usable if not problem.linked(*hop)]


def _pins_broken(split: Split, problem: Problem) -> list[str]:
    found = []
    for stage in split.stages:
        wrong = [block for block in range(stage.first, stage.last + 1) if stage.host not in problem.legal[block]]
        if wrong:
            found.append(f"{problem.name(*wrong)} may not be on {stage.host}")
    return found


def _glue_broken(split: Split, problem: Problem) -> list[str]:
    """Runs of blocks that stay together, and do not in this split."""
    cuts = {stage.first for stage in split.stages}
    return [
        f"{problem.name(*range(first, last + 1))} share a cache and may not be cut apart"
        for first, last in problem.glued
        if any(first < cut <= last for cut in cuts)
    ]


def _stages_broken(split: Split, problem: Problem) -> list[str]:
    found = []
    if problem.max_stages is not None and len(split.stages) > problem.max_stages:
        found.append(f"{len(split.stages)} stages, at most {problem.max_stages} are allowed")
    for host in split.hosts:
        if host in problem.single and len(split.of(host)) > 1:
            found.append(f"{host} has {len(split.of(host))} stages; untrusted, it may have one")
    return found


def _limits_broken(split: Split, problem: Problem) -> list[str]:
    found = []
    for host in (host for host in split.hosts if host in problem.hosts):
        cost = _host_cost(host, split, problem)
        if cost.memory_bytes > cost.budget_bytes:
            found.append(
                f"{host}: its blocks need {format_size(cost.memory_bytes)}, it allows {format_size(cost.budget_bytes)}"
            )
        if problem.workload.rate > 0 and cost.load > 1 + LOAD_TOLERANCE:
            found.append(
                f"{host}: a request keeps it busy for {format_time(cost.request_seconds)}, "
                f"so {problem.workload.rate:g} requests per second load it to {cost.load:.0%}"
            )
    return found


def service_notes(costs: Costs, problem: Problem) -> list[str]:
    """The service levels that are missed. They are reported, not enforced: a slow answer may be better than none."""
    levels = (
        ("time to first token", costs.time_to_first_token_seconds, problem.service.time_to_first_token),
        ("time per token", costs.time_per_token_seconds, problem.service.time_per_token),
    )
    return [
        f"{name} is {format_time(value)}, over the wished {format_time(limit)}"
        for name, value, limit in levels
        if limit is not None and value > limit
    ]
