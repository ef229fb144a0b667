"""What each precision would cost: bytes of the weights, whether a split fits, and its times where they were measured.

Must not know: how bytes are found without weights, nor how a terminal shows them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgesplit.errors import InfeasibleError
from edgesplit.fleet import Fleet
from edgesplit.inventory import Inventory
from edgesplit.model.blocks import Chain
from edgesplit.plan import ModelPlan
from edgesplit.revision.problem import Problem, pose
from edgesplit.revision.solver import solve
from edgesplit.values import Value


@dataclass(frozen=True)
class Candidate:
    """The plan at one precision. `fleet`: its times belong to this precision if `measured`, else only its memory
    counts. `chain`: None where the model has no such form, `why` says why not."""

    plan: ModelPlan
    chain: Chain | None
    fleet: Fleet
    measured: bool
    why: str = ""


class Weighed(Value):
    """One precision. `placement`: the host of each block, if a split fits; `why` says why none does.

    The times are those of the best split, and None where `measured` is false: then the bytes alone were known.
    """

    precision: str
    chosen: bool
    measured: bool
    weight_bytes: int | None = None
    cache_bytes: int | None = None
    placement: tuple[str, ...] | None = None
    time_to_first_token_seconds: float | None = None
    time_per_token_seconds: float | None = None
    phi: float | None = None
    why: str = ""


def variants(plan: ModelPlan) -> list[ModelPlan]:
    """The plan at every precision. Quantised ones keep the plan's dtype for the rest."""
    plain = [plan.model_copy(update={"dtype": dtype, "quantization": None}) for dtype in _DTYPES]
    return [*plain, *(plan.model_copy(update={"quantization": scheme}) for scheme in _SCHEMES)]


_DTYPES = "float32", "bfloat16", "float16"
_SCHEMES = "int8", "int4"


def weighed(candidates: Iterable[Candidate], chosen: ModelPlan, inventory: Inventory) -> list[Weighed]:
    """A row for each precision; raises InputError for pins that make no sense, whatever the precision."""
    return [_weighed(candidate, chosen, inventory) for candidate in candidates]


def _weighed(candidate: Candidate, chosen: ModelPlan, inventory: Inventory) -> Weighed:
    plan, chain = candidate.plan, candidate.chain
    row = Weighed(precision=plan.precision, chosen=plan == chosen, measured=candidate.measured)
    if chain is None:
        return row.model_copy(update={"why": candidate.why})
    row = row.model_copy(update={"weight_bytes": chain.weight_bytes})
    try:
        problem = _problem(candidate, chain, inventory)
        row = row.model_copy(update={"cache_bytes": sum(problem.caches)})
        solution = solve(problem)
    except InfeasibleError as error:
        return row.model_copy(update={"why": error.message})
    found = {"placement": solution.split.placement()}
    if not candidate.measured:
        return row.model_copy(update=found)
    costs = solution.costs
    times = {
        "time_to_first_token_seconds": costs.time_to_first_token_seconds,
        "time_per_token_seconds": costs.time_per_token_seconds,
        "phi": costs.phi,
    }
    return row.model_copy(update={**found, **times})


def _problem(candidate: Candidate, chain: Chain, inventory: Inventory) -> Problem:
    """Without times there is no load either: only memory and pins decide."""
    plan = candidate.plan
    if not candidate.measured:
        plan = plan.model_copy(update={"workload": plan.workload.model_copy(update={"rate": 0.0})})
    return pose(chain, candidate.fleet, plan, inventory)
