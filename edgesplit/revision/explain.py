"""Why this split; why none is possible. Sentences with the hosts, the numbers and the limits in them.

Must not know: how a terminal shows them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgesplit.errors import InfeasibleError
from edgesplit.fleet import LinkProfile
from edgesplit.model.blocks import EMBEDDING, HEAD
from edgesplit.plan import Objective
from edgesplit.revision.baseline import greedy, single_host
from edgesplit.revision.blend import too_many
from edgesplit.revision.cost import Costs, evaluate, service_notes, violations
from edgesplit.revision.exact import optimise
from edgesplit.revision.problem import TRUSTED, Problem
from edgesplit.revision.segments import cut
from edgesplit.split import Split, Stage, split_from_placement
from edgesplit.units import format_size, format_time

if TYPE_CHECKING:
    from edgesplit.revision.solver import Solution

MEMORY_HINT = "allow a host more memory, lower workload.max_context or workload.concurrency, or add a host"
ANY_LINK = LinkProfile(rtt=0.0, bandwidth=1e12)  # for "what if every link were there"


# Why none is possible


def why_infeasible(problem: Problem, fixed_boundaries: Split | None = None) -> InfeasibleError:
    """Which limit stands in the way, and by how much. The problem must be infeasible."""
    found = _no_host(problem) or _memory_short(problem)
    if found is None and fixed_boundaries is not None:
        found = _stage_too_large(problem, fixed_boundaries)
    return found or _whole_blocks(problem) or _by_relaxing(problem, fixed_boundaries)


def _no_host(problem: Problem) -> InfeasibleError | None:
    """Pins that name only hosts that cannot be used."""
    for legal in dict.fromkeys(problem.legal):
        if not any(host in problem.hosts for host in legal):
            blocks = [block for block, hosts in enumerate(problem.legal) if hosts == legal]
            reasons = ", ".join(f"{host} ({problem.unusable.get(host, 'not measured')})" for host in sorted(legal))
            return InfeasibleError(
                f"{problem.name(*blocks)} may only be on {reasons or 'no host'}, which cannot be used",
                "mend the host, or loosen the pin",
            )
    return None


def _memory_short(problem: Problem) -> InfeasibleError | None:
    """Blocks that may be only on some hosts, from one host up to all, and that these together cannot hold."""
    groups = sorted({frozenset(problem.allowed(block)) for block in range(len(problem.blocks))}, key=_by_size)
    groups.append(frozenset(problem.hosts))
    for group in groups:
        blocks = [block for block in range(len(problem.blocks)) if group.issuperset(problem.allowed(block))]
        need = sum(problem.memory[block] for block in blocks) + problem.common
        room = sum(max(0, problem.hosts[host].budget - problem.workspace) for host in group)
        if need > room:
            return _short(problem, blocks, sorted(group))
    return None


def _by_size(group: frozenset[str]) -> tuple[int, list[str]]:
    return len(group), sorted(group)


def _short(problem: Problem, blocks: list[int], hosts: list[str]) -> InfeasibleError:
    useful = [host for host in hosts if problem.hosts[host].budget > problem.workspace] or hosts
    workspace = problem.workspace * len(useful)
    need = sum(problem.memory[block] for block in blocks) + problem.common + workspace
    allowed = sum(problem.hosts[host].budget for host in useful)
    caches = sum(problem.caches[block] for block in blocks)
    what = "the model" if len(blocks) == len(problem.blocks) else problem.name(*blocks)
    verb = "need" if 1 < len(blocks) < len(problem.blocks) else "needs"
    where = (
        hosts[0]
        if len(hosts) == 1
        else "the hosts that may hold it"
        if len(hosts) < len(problem.hosts)
        else "the hosts"
    )
    message = (
        f"memory: {what} {verb} {format_size(need)} (weights {format_size(need - caches - workspace)}, "
        f"KV cache {format_size(caches)}, workspace {format_size(workspace)}) and {where} "
        f"{'allows' if len(hosts) == 1 else 'together allow'} {format_size(allowed)}, "
        f"{format_size(need - allowed)} too little: {', '.join(_budget(problem, host) for host in hosts)}"
    )
    pinned = len(hosts) < len(problem.hosts) and any(0 < block < problem.last for block in blocks)
    return InfeasibleError(message, MEMORY_HINT + (", or loosen the pin" if pinned else ""))


def _budget(problem: Problem, host: str) -> str:
    """A host's budget and which of its two limits sets it."""
    costs = problem.hosts[host]
    if costs.cap is not None and costs.budget == costs.cap:
        return f"{host} {format_size(costs.cap)} (its `memory`)"
    return (
        f"{host} {format_size(costs.budget)} ({format_size(costs.available)} free, "
        f"less {format_size(costs.runtime)} for the runner)"
    )


def _stage_too_large(problem: Problem, fixed: Split) -> InfeasibleError | None:
    for segment in cut(problem, fixed, merge=False):
        if not segment.limits:
            need = sum(problem.memory[segment.unit]) + problem.common + problem.workspace
            return InfeasibleError(
                f"the stage {problem.name(*segment.blocks)} ({format_size(need)}) fits no host that may hold it",
                "keep its boundaries no longer: split again",
            )
    return None


def _whole_blocks(problem: Problem) -> InfeasibleError | None:
    """The bytes would do, but blocks cannot be divided."""
    for segment in cut(problem, None, merge=True):
        if segment.width > 1 and not segment.limits:
            need = sum(problem.memory[segment.unit]) + problem.common + problem.workspace
            return InfeasibleError(
                f"memory: {problem.name(*segment.blocks)} share a cache, so they stay together; they need "
                f"{format_size(need)}, and no host that may hold them allows so much: "
                f"{', '.join(_budget(problem, host) for host in problem.allowed(segment.first))}",
                MEMORY_HINT,
            )
        if sum(segment.limits.values()) < segment.count:
            fits = ", ".join(f"{host} {limit}" for host, limit in segment.limits.items()) or "no host has room for one"
            each = format_size(problem.memory[segment.first])
            return InfeasibleError(
                f"memory: of the {segment.count} blocks {problem.name(*segment.blocks)} ({each} each) "
                f"only {sum(segment.limits.values())} fit: {fits}",
                MEMORY_HINT,
            )
    return None


def _by_relaxing(problem: Problem, fixed: Split | None) -> InfeasibleError:
    """What remains is found by asking what would do if one limit were not there."""
    idle = replace(problem, workload=problem.workload.model_copy(update={"rate": 0.0}))
    if problem.workload.rate > 0 and _best(idle, fixed) is not None:
        return _load_too_high(problem, idle, fixed)
    pairs = [(source, target) for source in problem.hosts for target in problem.hosts if source != target]
    missing = [f"{source} to {target}" for source, target in pairs if not problem.linked(source, target)]
    meshed = replace(idle, links={pair: problem.links.get(pair, ANY_LINK) for pair in pairs})
    if missing and _best(meshed, fixed) is not None:
        return InfeasibleError(
            f"links: the hosts could hold the model, but no ring joins them: no link from {', '.join(missing)}",
            "let the hosts reach each other's data address and port (firewall, data.address, data.port)",
        )
    budgets = ", ".join(_budget(problem, host) for host in problem.hosts)
    if fixed is not None:
        return InfeasibleError(
            f"no hosts hold the running split's stages as they are: {budgets}", "let the boundaries move: split again"
        )
    return InfeasibleError(
        f"memory: the bytes would fit all hosts together, but whole blocks in stages do not: {budgets}",
        MEMORY_HINT + ", or loosen a pin",
    )


def _best(problem: Problem, fixed: Split | None) -> Split | None:
    optimum = optimise(problem, fixed)
    return None if optimum is None else split_from_placement(optimum.placement)


def _load_too_high(problem: Problem, idle: Problem, fixed: Split | None) -> InfeasibleError:
    """The most even split tells the highest rate there is."""
    even = _best(replace(idle, objective=Objective(latency=0.0, utilization=1.0, privacy=0.0)), fixed)
    message = f"load: no split bears {problem.workload.rate:g} requests per second"
    if even is not None:
        busiest = max(evaluate(even, idle).hosts, key=lambda host: host.request_seconds)
        message += (
            f"; at best {1 / busiest.request_seconds:.3g}, when {busiest.host} is busy for "
            f"{format_time(busiest.request_seconds)} per request"
        )
    return InfeasibleError(message, "lower workload.rate or the tokens per request, or add a host")


# Why this split


def summarise(solution: Solution, problem: Problem) -> list[str]:
    """A sentence each: is one host enough, what bounds the split, what is pinned where, what a simple rule would do."""
    costs = solution.costs
    said = [
        _one_host(solution, problem),
        *_token(costs, problem),
        *_full(costs, problem),
        *_pins(solution.split, problem),
        *_glue(solution.split, problem),
    ]
    said += _rule(costs, problem)
    if not solution.complete:
        said.append(_left_out(problem))
    return said + [f"Service level missed: {note}." for note in service_notes(costs, problem)]


def _left_out(problem: Problem) -> str:
    if too_many(cut(problem, None, merge=True)):
        return (
            "The model has layers of several kinds in turn; splits whose boundaries are far from those that would be "
            "best if its layers were alike were not considered."
        )
    return (
        "Over some links a relay beats the direct way; splits in which a host has two stretches of like layers "
        "for that reason were not considered."
    )


def _one_host(solution: Solution, problem: Problem) -> str:
    costs, entry = solution.costs, problem.entry
    request = format_time(costs.latency_seconds)
    if len(solution.split.stages) == 1:
        others = ", ".join(host for host in problem.hosts if host != entry)
        return f"One host is best: {entry} alone answers a request in {request}" + (
            f", and no split with {others} is better." if others else "."
        )
    alone = single_host(problem)
    if alone is None:
        whole = Split(stages=(Stage(host=entry, first=0, last=problem.last),))
        return f"One host is not enough ({'; '.join(violations(whole, problem))}); split, a request takes {request}."
    one = evaluate(alone, problem)
    return (
        f"{entry} alone could do it, in {format_time(one.latency_seconds)} per request (Phi {one.phi:.4g}); "
        f"split, a request takes {request} (Phi {costs.phi:.4g})."
    )


def _token(costs: Costs, problem: Problem) -> list[str]:
    if not problem.generates:
        return []
    token = format_time(costs.time_per_token_seconds)
    if costs.busiest_seconds > costs.path_seconds:
        waiting = f"with {problem.workload.concurrency} sequences in flight they wait for {costs.busiest}"
        return [f"A token takes {token}: {waiting}."]
    wires = sum(hop.decode_seconds for hop in costs.hops)
    if not costs.hops:
        return [f"A token takes {token}, all of it computing."]
    computing = format_time(costs.path_seconds - wires)
    return [f"A token takes {token}: {computing} computing and {format_time(wires)} on {len(costs.hops)} hops."]


def _full(costs: Costs, problem: Problem) -> list[str]:
    """Hosts whose memory has no room for a further layer."""
    layer = min(problem.memory[1:-1], default=0)
    full = [host for host in costs.hosts if host.budget_bytes - host.memory_bytes < layer]
    if not full or len(costs.stages) == 1:
        return []
    numbers = [f"{one.host} ({format_size(one.memory_bytes)} of {format_size(one.budget_bytes)})" for one in full]
    return [f"Memory binds: no further layer fits on {', '.join(numbers)}."]


def _pins(split: Split, problem: Problem) -> list[str]:
    said = [f"{EMBEDDING} and {HEAD} stay on the entry {problem.entry}."]
    placement = split.placement()
    for pin in problem.pins:
        to = "trusted hosts" if pin.to == TRUSTED else pin.to
        holders = {
            placement[block]: [b for b in pin.blocks if placement[b] == placement[block]] for block in pin.blocks
        }
        where = ", ".join(f"{host} ({problem.name(*blocks)})" for host, blocks in holders.items())
        said.append(f"{problem.name(*pin.blocks)}: pinned to {to}, on {where}.")
    return said


def _glue(split: Split, problem: Problem) -> list[str]:
    placement = split.placement()
    return [
        f"{problem.name(*range(first, last + 1))} share a cache, so they stay together, on {placement[first]}."
        for first, last in problem.glued
    ]


def _rule(costs: Costs, problem: Problem) -> list[str]:
    split = greedy(problem)
    if split is None:
        return ["The simple rule (entry first, then the fastest hosts) finds no split here."]
    phi = evaluate(split, problem).phi
    if phi <= costs.phi * (1 + 1e-9):
        return []
    return [f"The simple rule (entry first, then the fastest hosts) would cost {phi / costs.phi - 1:.0%} more."]
