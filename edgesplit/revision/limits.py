"""The limits of a problem by name: what each says, in words and numbers, and the problem without it.

Must not know: which of them stands in the way (conflict finds out), nor what a split would gain (whatif does).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from edgesplit.fleet import LinkProfile
from edgesplit.revision.problem import TRUSTED, Pinned, Problem
from edgesplit.units import format_size

Kind = Literal["memory", "pin", "load", "links", "stages", "single"]
ANY_LINK = LinkProfile(rtt=0.0, bandwidth=1e12)  # for "what if every link were there"


@dataclass(frozen=True)
class Limit:
    """`about`: the host of a memory limit, the number of a pin."""

    kind: Kind
    about: str
    says: str


def limits(problem: Problem) -> tuple[Limit, ...]:
    """Every limit that may be loosened. Embedding and head stay on the entry: that one is not negotiable."""
    found = [Limit("memory", host, f"memory of {budget(problem, host)}") for host in problem.hosts]
    found += [Limit("pin", str(number), pin_words(problem, pin)) for number, pin in enumerate(problem.pins)]
    if problem.workload.rate > 0:
        found.append(Limit("load", "", f"a rate of {problem.workload.rate:g} requests per second"))
    if problem.max_stages is not None:
        found.append(Limit("stages", "", f"max_stages {problem.max_stages}"))
    if problem.single:
        found.append(Limit("single", "", "one_stage_per_untrusted_host"))
    missing = [f"{source} -> {target}" for source, target in pairs(problem) if not problem.linked(source, target)]
    if missing:
        found.append(Limit("links", "", f"no link {', '.join(missing)}"))
    return tuple(found)


def pairs(problem: Problem) -> list[tuple[str, str]]:
    return [(source, target) for source in problem.hosts for target in problem.hosts if source != target]


def budget(problem: Problem, host: str) -> str:
    """A host's budget and which of its two limits sets it."""
    costs = problem.hosts[host]
    if costs.cap is not None and costs.budget == costs.cap:
        return f"{host} {format_size(costs.cap)} (its `memory`)"
    return (
        f"{host} {format_size(costs.budget)} ({format_size(costs.available)} free, "
        f"less {format_size(costs.runtime)} for the runner)"
    )


def pin_words(problem: Problem, pin: Pinned) -> str:
    what = "pin" if pin.key == "pins" else "place"
    return f"the {what} of {problem.name(*pin.blocks)} to {'trusted hosts' if pin.to == TRUSTED else pin.to}"


def without(problem: Problem, dropped: Iterable[Limit]) -> Problem:
    """The problem if these limits were not there."""
    dropped = tuple(dropped)
    for limit in dropped:
        if limit.kind == "memory":
            problem = with_memory(problem, limit.about, endless(problem))
        elif limit.kind == "load":
            problem = replace(problem, workload=problem.workload.model_copy(update={"rate": 0.0}))
        elif limit.kind == "links":
            problem = meshed(problem)
        elif limit.kind == "stages":
            problem = replace(problem, max_stages=None)
        elif limit.kind == "single":
            problem = replace(problem, single=frozenset())
    loose = {int(limit.about) for limit in dropped if limit.kind == "pin"}
    return unpinned(problem, loose) if loose else problem


def endless(problem: Problem) -> int:
    """Bytes that are enough for any split on one host."""
    return sum(problem.memory) + problem.common * len(problem.blocks) + problem.workspace


def with_memory(problem: Problem, host: str, size: int) -> Problem:
    """The host allows exactly so many bytes."""
    costs = replace(problem.hosts[host], cap=size, available=size, runtime=0)
    return replace(problem, hosts={**problem.hosts, host: costs})


def meshed(problem: Problem) -> Problem:
    return replace(problem, links={pair: problem.links.get(pair, ANY_LINK) for pair in pairs(problem)})


def unpinned(problem: Problem, loose: Iterable[int]) -> Problem:
    """Without the pins of these numbers. The blocks they bound may be wherever the other pins allow; what shares a
    cache stays together."""
    loose = set(loose)
    kept = tuple(pin for number, pin in enumerate(problem.pins) if number not in loose)
    everywhere = frozenset(problem.hosts) | frozenset(problem.unusable)
    legal = list(problem.legal)
    for block in sorted({block for number in loose for block in problem.pins[number].blocks} - {0, problem.last}):
        legal[block] = everywhere
        for pin in kept:
            if block in pin.blocks:
                legal[block] &= problem.trusted if pin.to == TRUSTED else {pin.to}
    for first, last in problem.glued:
        shared = frozenset.intersection(*legal[first : last + 1])
        legal[first : last + 1] = [shared] * (last + 1 - first)
    return replace(problem, legal=tuple(legal), pins=kept)
