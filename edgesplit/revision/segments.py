"""The chain cut into segments for the integer program: what is counted, and what is placed one by one.

Must not know: the program itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from edgesplit.errors import InputError
from edgesplit.revision.problem import Problem
from edgesplit.split import Split


@dataclass(frozen=True)
class Segment:
    """`count` identical units of `width` blocks each, from block `first` on; one of both is 1. Where blocks stay
    together, they are one unit.

    `limits`: host -> units of this segment that fit its memory, for every host that may hold one.
    """

    first: int
    count: int
    width: int
    limits: dict[str, int]

    @property
    def blocks(self) -> range:
        return range(self.first, self.first + self.count * self.width)

    @property
    def unit(self) -> slice:
        return slice(self.first, self.first + self.width)


def cut(problem: Problem, fixed_boundaries: Split | None, merge: bool) -> list[Segment]:
    """The running split's stages, or runs of identical blocks if `merge`, or every block for itself; blocks that stay
    together always as one."""
    if fixed_boundaries is not None:
        if fixed_boundaries.blocks != len(problem.blocks):
            raise InputError(f"the split covers {fixed_boundaries.blocks} blocks, the model has {len(problem.blocks)}")
        return [_segment(problem, stage.start, 1, len(stage)) for stage in _stages(problem, fixed_boundaries)]
    units = list(problem.units)
    if not merge:
        return [_segment(problem, unit.start, 1, len(unit)) for unit in units]
    units = [range(run[0].start, run[-1].stop) for run in _grouped(units, lambda unit: _only_host(problem, unit))]
    runs = _grouped(units, lambda unit: _kind(problem, unit))
    return [_segment(problem, run[0].start, len(run), len(run[0])) for run in runs]


def _grouped(units: list[range], key: Callable[[range], object]) -> list[list[range]]:
    return [list(run) for _, run in groupby(units, key=key)]


def _only_host(problem: Problem, unit: range) -> object:
    """Equal for units that may be on one host only, the same; otherwise each its own."""
    allowed = problem.allowed(unit.start)
    return allowed if len(allowed) == 1 else unit


def _stages(problem: Problem, split: Split) -> list[range]:
    """A split's stages; those that would cut apart what stays together are one."""
    stages: list[range] = []
    for stage in split.stages:
        inside = any(first < stage.first <= last for first, last in problem.glued)
        first = stages.pop().start if inside else stage.first
        stages.append(range(first, stage.last + 1))
    return stages


def _kind(problem: Problem, unit: range) -> tuple[object, ...]:
    """Equal for single blocks that differ in nothing but their place in the chain."""
    number = unit.start
    if len(unit) > 1:
        return (number,)
    sizes = (problem.memory[number], problem.sent[number])
    times = tuple((host.decode[number], host.rows[number], host.chunk[number]) for host in problem.hosts.values())
    return (problem.blocks[number].kind, sizes, times, problem.legal[number])


def _segment(problem: Problem, first: int, count: int, width: int) -> Segment:
    blocks = range(first, first + count * width)
    hosts = [host for host in problem.hosts if all(host in problem.legal[block] for block in blocks)]
    limits = {host: min(count, _fitting(problem, host, blocks, width)) for host in hosts}
    return Segment(first, count, width, {host: limit for host, limit in limits.items() if limit > 0})


def _fitting(problem: Problem, host: str, blocks: range, width: int) -> int:
    """Units of a segment that fit beside what can be nowhere else."""
    elsewhere = [block for block in range(len(problem.blocks)) if block not in blocks]
    bound = sum(problem.memory[block] for block in elsewhere if problem.legal[block] == {host})
    room = problem.hosts[host].budget - problem.workspace - problem.common - bound
    unit = sum(problem.memory[blocks.start : blocks.start + width])
    if unit == 0:
        return len(blocks) if room >= 0 else 0
    return max(0, room // unit)
