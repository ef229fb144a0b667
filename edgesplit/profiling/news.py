"""What is different from what the last decision was made for. What went is no reason to move: what comes back is.

Must not know: clocks, hosts, what a difference leads to.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.profiling.capacity import APART, APART_SECONDS, Views, apart
from edgesplit.split import Split
from edgesplit.units import format_size, format_time


def news(thought: Views, views: Views, factor: float = 0.0) -> tuple[str, ...]:
    """What is different, by more than a factor (APART unless told otherwise), from what the last decision was made for;
    hosts and links that went are no reason to move."""
    pairs = ((thought.now, views.now), (thought.worst, views.worst))
    return tuple(dict.fromkeys(text for pair in pairs for text in _news(*pair, factor)))


def _news(thought: Fleet, now: Fleet, factor: float) -> Iterator[str]:
    yield from (f"{name} can be used" for name in now.hosts if name not in thought.hosts)
    for name, pace in now.slowdown.items():
        before = thought.slowdown.get(name, 1.0)
        if name in thought.hosts and apart(pace, before, factor=factor):
            yield f"{name} takes {pace:.1f} x its profiled time (it was {before:.1f} x)"
    for source, row in now.links.items():
        for target, link in row.items():
            old = thought.links[source].get(target) if source in thought.hosts else link
            if old is not link and target in thought.hosts:  # of a thousand hosts nearly all links are as they were
                yield from _changes(f"{source} -> {target}", old, link, factor)


def roomier(thought: Views, views: Views, running: Split) -> tuple[str, ...]:
    """Hosts beside the ring that have come to have more memory free."""
    before, now = thought.now.hosts, views.now.hosts
    return tuple(
        f"{name} has {format_size(host.memory_available)} of memory free"
        for name, host in now.items()
        if name in before
        and name not in running.hosts
        and host.memory_available > APART * before[name].memory_available
    )


def _changes(name: str, old: LinkProfile | None, link: LinkProfile, factor: float) -> Iterator[str]:
    if old is None:
        yield f"{name} can be used again"
        return
    if apart(link.rtt, old.rtt, APART_SECONDS, factor):
        yield f"the round trip {name} is {format_time(link.rtt)} (it was {format_time(old.rtt)})"
    if apart(link.bandwidth, old.bandwidth, factor=factor):
        yield f"the bandwidth {name} is {link.bandwidth / old.bandwidth:.2f} x what it was"


def remembered(thought: Views, views: Views) -> Views:
    """Without what went: should it come back, that is news."""
    return Views(now=_common(thought.now, views.now), worst=_common(thought.worst, views.worst))


def _common(thought: Fleet, now: Fleet) -> Fleet:
    left = thought.without(*(name for name in thought.hosts if name not in now.hosts))
    links = {
        source: row
        if row.keys() <= now.links[source].keys()
        else {target: link for target, link in row.items() if target in now.links[source]}
        for source, row in left.links.items()
    }
    return left.model_copy(update={"links": links})
