"""Layers of several kinds in turn (full and sliding attention, attention and state-space): planned first as if
they were alike, then exactly, near the boundaries found.

Counted, layers of one kind are a matter of a second; placed one by one, half a hundred of two kinds take minutes.
Must not know: the program itself.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from statistics import fmean

from edgesplit.revision.problem import Problem
from edgesplit.revision.segments import Segment

# Segments up to which a program is solved as it is: 8 hosts and 12 segments took 5 s.
MANY = 12
# Blocks to both sides of a boundary that may still change hosts: as many as kinds take to come again in most families
# (gemma3: five sliding layers and a full one).
NEAR = 6


def too_many(segments: list[Segment]) -> bool:
    return len(segments) > MANY


def blended(problem: Problem) -> Problem:
    """Each run of layers that differ only in size and time with the run's mean for every one."""
    memory, hosts = list(problem.memory), dict(problem.hosts)
    for run in _runs(problem):
        memory[run.start : run.stop] = [-(-sum(problem.memory[run.start : run.stop]) // len(run))] * len(run)
        for name, costs in hosts.items():
            decode, rows, chunk = (_levelled(times, run) for times in (costs.decode, costs.rows, costs.chunk))
            hosts[name] = replace(costs, decode=decode, rows=rows, chunk=chunk)
    return replace(problem, memory=tuple(memory), hosts=hosts)


def _levelled(times: tuple[float, ...], run: range) -> tuple[float, ...]:
    mean = fmean(times[run.start : run.stop])
    return (*times[: run.start], *[mean] * len(run), *times[run.stop :])


def _runs(problem: Problem) -> list[range]:
    units = [unit for unit in problem.units if len(unit) == 1 and problem.blocks[unit.start].kind == "layer"]
    runs = []
    for _, group in groupby(enumerate(units), key=lambda one: (_alike(problem, one[1].start), one[1].start - one[0])):
        found = [unit.start for _, unit in group]
        runs.append(range(found[0], found[-1] + 1))
    return runs


def _alike(problem: Problem, number: int) -> tuple[object, ...]:
    return problem.legal[number], problem.sent[number]


def near(problem: Problem, placement: tuple[str, ...]) -> Problem:
    """The same problem, but every block only on hosts that hold one close to it in this placement."""
    legal = list(problem.legal)
    for unit in problem.units:
        close = frozenset(placement[max(0, unit.start - NEAR) : unit.stop + NEAR])
        for block in unit:
            legal[block] &= close
    return replace(problem, legal=tuple(legal))
