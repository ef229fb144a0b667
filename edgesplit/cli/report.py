"""What `plan` found out, gathered once: the terminal, the page and the JSON show the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgesplit.fleet import Fleet
from edgesplit.plan import ModelPlan
from edgesplit.revision.alternatives import Alternative, alternatives
from edgesplit.revision.baseline import Rival, rivals
from edgesplit.revision.comparison import Comparison, compare
from edgesplit.revision.exposure import Sight, who_sees_what
from edgesplit.revision.problem import Problem
from edgesplit.revision.solver import Solution
from edgesplit.revision.whatif import Outlook, look
from edgesplit.split import Split

if TYPE_CHECKING:  # it imports torch
    from edgesplit.model.audit import Audit


@dataclass(frozen=True)
class Posed:
    """The problem and what it was made from."""

    plan: ModelPlan
    fleet: Fleet
    problem: Problem


@dataclass(frozen=True)
class Asked:
    """What is wanted beside the split: why these blocks are there, how another split compares, what would help; and
    what activations give away, which is measured elsewhere."""

    blocks: range
    other: Split | None
    outlook: bool
    audit: Audit | None


@dataclass(frozen=True)
class Report:
    plan: ModelPlan
    fleet: Fleet
    problem: Problem
    solution: Solution
    sights: tuple[Sight, ...]
    rivals: tuple[Rival, ...]
    outlook: Outlook | None
    explained: range
    alternatives: tuple[Alternative, ...]
    comparison: Comparison | None
    audit: Audit | None

    def to_json(self) -> dict[str, Any]:
        """The solution's keys, and one for each thing that was found beside it."""
        lists = {
            "who_sees_what": self.sights,
            "rivals": self.rivals,
            "alternatives": self.alternatives,
        }
        values = {"outlook": self.outlook, "comparison": self.comparison, "audit": self.audit}
        return {
            **self.solution.model_dump(mode="json"),
            **{name: [one.model_dump(mode="json") for one in found] for name, found in lists.items()},
            **{name: value.model_dump(mode="json") if value else None for name, value in values.items()},
        }


def gather(posed: Posed, solution: Solution, asked: Asked, go_on: Callable[[], bool]) -> Report:
    """`go_on` bounds what would help. Raises InputError and InfeasibleError for another split that does not belong."""
    problem = posed.problem
    return Report(
        plan=posed.plan,
        fleet=posed.fleet,
        problem=problem,
        solution=solution,
        sights=who_sees_what(solution.split, problem.trusted),
        rivals=rivals(problem),
        outlook=look(solution, problem, go_on) if asked.outlook else None,
        explained=asked.blocks,
        alternatives=alternatives(solution, problem, asked.blocks) if asked.blocks else (),
        comparison=compare(solution.split, asked.other, problem) if asked.other is not None else None,
        audit=asked.audit,
    )
