"""HiGHS, silent, in one thread: all models of a process share its threads, so all must ask for the same number.

Must not know: what it solves.
"""

from __future__ import annotations

from typing import Any

import highspy

from edgesplit.errors import EdgesplitError


class Highs(highspy.Highs):  # type: ignore[misc] # untyped here
    """HiGHS logs a banner to stdout at the first call that is not about its options, and its constructor makes one."""

    def enableCallbacks(self) -> None:  # noqa: N802 # HiGHS's name
        self.setOptionValue("output_flag", False)
        self.setOptionValue("threads", 1)
        super().enableCallbacks()


def solved(model: Any) -> bool:
    """Runs it. False: nothing satisfies the rows. Raises EdgesplitError where it cannot tell.

    From the basis of the solution before, simplex can lose its way and say so: it is begun anew then.
    """
    model.run()
    if model.getModelStatus() == highspy.HighsModelStatus.kUnknown:
        model.clearSolver()
        model.run()
    status = model.getModelStatus()
    if status == highspy.HighsModelStatus.kOptimal:
        return True
    if status in {highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible}:
        return False
    raise EdgesplitError(f"the solver stopped without an answer: {model.modelStatusToString(status)}")
