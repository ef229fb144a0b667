"""Why this split: sentences with the hosts, the numbers and the limits in them.

Must not know: how a terminal shows them; how the numbers in them were found.
"""

from __future__ import annotations

from edgesplit.model.blocks import EMBEDDING, HEAD
from edgesplit.revision.alternatives import Alternative
from edgesplit.revision.conflict import Conflict
from edgesplit.revision.cost import Costs, service_notes
from edgesplit.revision.problem import TRUSTED, Problem
from edgesplit.revision.solver import Solution
from edgesplit.revision.whatif import WhatIf
from edgesplit.split import Split
from edgesplit.units import format_size, format_time

COSTLY = 0.1  # share of a token's way above which a link is named
BUSY = 0.9  # load above which a host is named
SAME = 1e-6  # share of Phi, or seconds over seconds, that is no difference


# What binds


def what_binds(solution: Solution, problem: Problem) -> list[str]:
    """A sentence each: what a token waits for, which memory, load and pins leave no choice, what was not considered."""
    costs, split = solution.costs, solution.split
    said = [
        *_one_host(solution, problem),
        *_token(costs, problem),
        *_link(costs, problem),
        *_memory(costs, problem),
        *_load(costs, problem),
        *_stages(split, problem),
        *_pins(split, problem),
        *_glue(split, problem),
    ]
    said += _unproven(solution)
    return said + [f"Service level missed: {note}." for note in service_notes(costs, problem)]


def _one_host(solution: Solution, problem: Problem) -> list[str]:
    entry = problem.entry
    if len(solution.split.stages) > 1:
        return []
    others = ", ".join(host for host in problem.hosts if host != entry)
    best = f"One host is best: {entry} alone answers a request in {format_time(solution.costs.latency_seconds)}"
    return [best + (f", and no split with {others} is better." if others else ".")]


def _unproven(solution: Solution) -> list[str]:
    said = []
    if solution.gap > 0.5e-4:  # what would be shown as more than nothing
        said.append(f"A better split may exist, by {solution.gap:.1%} of Phi at most: no bound closer to it was found.")
    if not solution.complete:
        said.append(
            f"This holds for splits in which no host but {solution.split.entry} has two stages. Of others nothing is "
            "proven: where layers differ, or send less and less, such a relay could pay."
        )
    return said


def _token(costs: Costs, problem: Problem) -> list[str]:
    if not problem.generates:
        return []
    token = format_time(costs.time_per_token_seconds)
    if costs.busiest_seconds > costs.path_seconds:
        waiting = f"with {problem.workload.concurrency} sequences in flight they wait for {costs.busiest}"
        return [f"A token takes {token}: {waiting}; its way around the ring takes {format_time(costs.path_seconds)}."]
    wires = sum(hop.decode_seconds for hop in costs.hops)
    if not costs.hops:
        return [f"A token takes {token}, all of it computing."]
    computing = format_time(costs.path_seconds - wires)
    return [f"A token takes {token}: {computing} computing and {format_time(wires)} on {len(costs.hops)} hops."]


def _link(costs: Costs, problem: Problem) -> list[str]:
    """The hop that costs most, if it costs much: of a token's way or, where there are no tokens, of a text's."""
    what = "token" if problem.generates else "text"
    hops, stages = (
        [one.decode_seconds if problem.generates else one.chunk_seconds for one in ones]
        for ones in (costs.hops, costs.stages)
    )
    whole, most = sum(hops) + sum(stages), max(hops, default=0.0)
    if whole == 0 or most / whole < COSTLY:
        return []
    hop = costs.hops[hops.index(most)]
    return [f"The link {hop.source} -> {hop.target} costs {most / whole:.0%} of a {what}'s way around the ring."]


def _memory(costs: Costs, problem: Problem) -> list[str]:
    """Hosts whose memory has no room for a further layer."""
    layer = min(problem.memory[1:-1], default=0)
    full = [host for host in costs.hosts if host.budget_bytes - host.memory_bytes < layer]
    if not full or len(costs.stages) == 1:
        return []
    numbers = [f"{one.host} ({format_size(one.memory_bytes)} of {format_size(one.budget_bytes)})" for one in full]
    return [f"Memory binds: no further layer fits on {', '.join(numbers)}."]


def _load(costs: Costs, problem: Problem) -> list[str]:
    if problem.workload.rate == 0:
        return []
    busy = [f"{host.host} for {host.load:.0%} of the time" for host in costs.hosts if host.load >= BUSY]
    rate = f"{problem.workload.rate:g} requests per second"
    return [f"Load binds: {rate} keep {', '.join(busy)} busy."] if busy else []


def _stages(split: Split, problem: Problem) -> list[str]:
    said = []
    if len(split.stages) == problem.max_stages:
        said.append(f"max_stages binds: the split has {problem.max_stages}, as many as the plan allows.")
    alone = [host for host in split.hosts if host in problem.single]
    if alone:
        said.append(f"{', '.join(alone)}: untrusted, so one stage each.")
    return said


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


# What would help, and what would hurt


def times(costs: Costs, problem: Problem) -> dict[str, float]:
    """What a person waits for, in seconds: tokens, or of an encoder whole texts."""
    if not problem.generates:
        return {"per text": costs.time_to_first_token_seconds}
    return {"per token": costs.time_per_token_seconds, "to the first token": costs.time_to_first_token_seconds}


def whatif_words(found: WhatIf, costs: Costs, problem: Problem) -> str:
    """What a change saves, or costs, of a request."""
    if found.costs is None:
        return f"{found.change} there is no split"
    before, after = times(costs, problem), times(found.costs, problem)
    phi = f"Phi {found.costs.phi / costs.phi - 1:+.0%}"
    saved = [
        f"{format_time(seconds - after[what])} {what}"
        for what, seconds in before.items()
        if seconds - after[what] > seconds * SAME
    ]
    if found.costs.phi < costs.phi and saved:
        return f"{found.change} saves {' and '.join(saved)} ({phi})"
    what, seconds = next(iter(after.items()))
    return f"{found.change} it is {format_time(seconds)} {what} ({phi})"


def alternative_words(found: Alternative, costs: Costs, problem: Problem) -> str:
    """What it would cost to have the blocks there, or why they cannot be there."""
    if found.costs is None:
        return f"{found.host}: impossible: {found.why}"
    phi = found.costs.phi - costs.phi
    if abs(phi) <= costs.phi * SAME:
        return f"{found.host}: as good; of equals the solver takes one and always the same"
    before, after = times(costs, problem), times(found.costs, problem)
    changes = [
        f"{signed_time(after[what] - seconds)} {what}"
        for what, seconds in before.items()
        if abs(after[what] - seconds) > seconds * SAME
    ]
    return f"{found.host}: {', '.join(changes) or 'as fast'} (Phi {phi / costs.phi:+.1%})"


def signed_time(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{format_time(abs(seconds))}"


# Why there is none


def conflict_words(found: Conflict) -> list[str]:
    """The set of limits, then what would be enough."""
    proof = "none of these can be left out" if found.complete else "there was no time to see what can be left out"
    said = [f"in conflict ({proof}):", *(f"  {limit}" for limit in found.limits)]
    if found.relaxations:
        said += ["any one of these is enough:", *(f"  {relaxation}" for relaxation in found.relaxations)]
    elif found.complete:
        said.append("no one of them is enough if it alone gives way")
    return said
