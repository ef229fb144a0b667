"""Which moves are likely next, and which weights they would need where: each host of the ring lost, one at a time.

Must not know: clocks, hosts, how weights travel.
"""

from __future__ import annotations

from collections.abc import Callable

from edgesplit.errors import InfeasibleError
from edgesplit.orchestrator.moving import blocks_of
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import solve
from edgesplit.split import Split
from edgesplit.values import Value


class Standby(Value):
    """`ready`: for the loss of each host, the split that would take over; `without`: the hosts whose loss has no
    answer. `blocks`: host -> blocks that it would need then and does not hold now."""

    ready: dict[str, Split]
    without: dict[str, str]
    blocks: dict[str, tuple[int, ...]]


def standby(running: Split, problem: Callable[[str], Problem], gap: float = 0.0) -> Standby:
    """`problem`: as it would be without a host; raises InfeasibleError where that cannot be. `gap`: share of Phi by
    which the answers may be worse than the best."""
    ready: dict[str, Split] = {}
    without: dict[str, str] = {running.entry: "it is the entry"}
    for host in running.hosts[1:]:
        try:
            ready[host] = solve(problem(host), gap=gap).split
        except InfeasibleError as error:
            without[host] = error.message
    blocks: dict[str, set[int]] = {}
    for split in ready.values():
        for host in split.hosts:
            blocks.setdefault(host, set()).update(blocks_of(split, host))
    needed = {host: tuple(sorted(held - blocks_of(running, host))) for host, held in sorted(blocks.items())}
    return Standby(ready=ready, without=without, blocks={host: more for host, more in needed.items() if more})
