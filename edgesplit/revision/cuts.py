"""Cuts that a relaxed route breaks: sets of hosts that it visits without coming there.

Must not know: what the route is for; a solver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

Hop = tuple[str, str]
Flow = dict[str, dict[str, float]]
START = ""  # before the first host; no host has this name
VIOLATED = 1e-4  # what a relaxed route must break before a cut is worth its row
TINY = 1e-9
NESTED = 6  # cuts of one host, at most
OPEN = 2.0  # room on hops into a set whose cut is known: more than any host is visited


def unreached(
    first: Mapping[str, float], arcs: Mapping[Hop, float], visits: Mapping[str, float]
) -> list[tuple[str, frozenset[str]]]:
    """A host and a set around it that is entered less than the host is visited: each pair is a violated inequality

    sum of `first` and of the arcs into the set >= visit of the host.
    """
    found: dict[frozenset[str], str] = {}
    for host in sorted(visits, key=lambda one: (-visits[one], one)):
        if visits[host] > VIOLATED:
            for inside in _cuts(_graph(first, arcs), host, visits[host]):
                found.setdefault(inside, host)
    return [(host, inside) for inside, host in found.items()]


def _cuts(graph: Flow, sink: str, wanted: float) -> list[frozenset[str]]:
    """Sets around the sink that are entered less than wanted, one in another: each is opened before the next is looked
    for."""
    cuts: list[frozenset[str]] = []
    total = 0.0
    while len(cuts) < NESTED:
        more, inside = _cut(graph, sink, wanted - total)
        total += more
        if total >= wanted - VIOLATED or inside in cuts:  # no hop leads there
            break
        cuts.append(inside)
        for source, onward in graph.items():
            if source not in inside:
                onward.update(dict.fromkeys(onward.keys() & inside, OPEN))
    return cuts


def _graph(first: Mapping[str, float], arcs: Mapping[Hop, float]) -> Flow:
    """Capacities, and room for the way back."""
    graph: Flow = {START: {}}
    for (source, target), value in [*(((START, host), value) for host, value in first.items()), *arcs.items()]:
        if value > TINY:
            row = graph.setdefault(source, {})
            row[target] = row.get(target, 0.0) + value
            graph.setdefault(target, {}).setdefault(source, 0.0)
    return graph


def _cut(graph: Flow, sink: str, enough: float) -> tuple[float, frozenset[str]]:
    """The largest flow from the start to the sink, up to `enough`, and the sink's side of the smallest cut."""
    if sink not in graph:
        return 0.0, frozenset([sink])
    total = 0.0
    while total < enough - TINY:
        came = _path(graph, sink)
        if sink not in came:
            return total, _before(graph, sink)
        hops = []
        target = sink
        while target != START:
            hops.append((came[target], target))
            target = came[target]
        step = min(graph[source][target] for source, target in hops)
        for source, target in hops:
            graph[source][target] -= step
            graph[target][source] += step
        total += step
    return total, frozenset()


def _before(graph: Flow, sink: str) -> frozenset[str]:
    """Whence the sink can be reached with room: the smallest of the smallest cuts, so that hosts have cuts of their
    own."""
    inside, queue = {sink}, deque([sink])
    while queue:
        target = queue.popleft()
        for source in graph[target]:
            if source not in inside and graph[source][target] > TINY:
                inside.add(source)
                queue.append(source)
    return frozenset(inside)


def _path(graph: Flow, sink: str) -> dict[str, str]:
    """Where the shortest way with room came from, for every host that one reaches."""
    came, queue = {START: START}, deque([START])
    while queue and sink not in came:
        source = queue.popleft()
        for target, room in graph[source].items():
            if room > TINY and target not in came:
                came[target] = source
                queue.append(target)
    return came
