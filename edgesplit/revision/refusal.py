"""Why no split is possible: the limit that stands in the way, and by how much.

Must not know: how a terminal shows it; what would have to give (conflict finds out).
"""

from __future__ import annotations

from dataclasses import replace

from edgesplit.errors import InfeasibleError
from edgesplit.plan import Objective
from edgesplit.revision.cost import evaluate
from edgesplit.revision.exact import optimise
from edgesplit.revision.limits import budget, meshed, pairs
from edgesplit.revision.problem import Problem
from edgesplit.revision.segments import cut
from edgesplit.split import Split, split_from_placement
from edgesplit.units import format_size, format_time

MEMORY_HINT = "allow a host more memory, lower workload.max_context or workload.concurrency, or add a host"


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
        f"{format_size(need - allowed)} too little: {', '.join(budget(problem, host) for host in hosts)}"
    )
    pinned = len(hosts) < len(problem.hosts) and any(0 < block < problem.last for block in blocks)
    return InfeasibleError(message, MEMORY_HINT + (", or loosen the pin" if pinned else ""))


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
                f"{', '.join(budget(problem, host) for host in problem.allowed(segment.first))}",
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
    free = replace(problem, max_stages=None, single=frozenset())
    if free != problem and (found := _best(free, fixed)) is not None:
        return _stages_too_few(problem, found)
    idle = replace(free, workload=problem.workload.model_copy(update={"rate": 0.0}))
    if problem.workload.rate > 0 and _best(idle, fixed) is not None:
        return _load_too_high(problem, idle, fixed)
    missing = [f"{source} to {target}" for source, target in pairs(problem) if not problem.linked(source, target)]
    if missing and _best(meshed(idle), fixed) is not None:
        return InfeasibleError(
            f"links: the hosts could hold the model, but no ring joins them: no link from {', '.join(missing)}",
            "let the hosts reach each other's data address and port (firewall, data.address, data.port)",
        )
    budgets = ", ".join(budget(problem, host) for host in problem.hosts)
    if fixed is not None:
        return InfeasibleError(
            f"no hosts hold the running split's stages as they are: {budgets}", "let the boundaries move: split again"
        )
    return InfeasibleError(
        f"memory: the bytes would fit all hosts together, but whole blocks in stages do not: {budgets}",
        MEMORY_HINT + ", or loosen a pin",
    )


def _stages_too_few(problem: Problem, found: Split) -> InfeasibleError:
    rules = [f"at most {problem.max_stages} stages"] if problem.max_stages is not None else []
    rules += ["one stage per untrusted host"] if problem.single else []
    return InfeasibleError(
        f"stages: no split keeps to {' and '.join(rules)}; without that, the best one has {len(found.stages)}",
        "raise max_stages, or drop one_stage_per_untrusted_host",
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
