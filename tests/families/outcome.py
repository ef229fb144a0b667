"""What a check found. Must not know: what was checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

CLOSE = 1e-4  # what rows of different lengths in one batch may differ by: other shapes, other order of summation


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`difference`: the largest of any logit, 0 when all are the same bits; None where nothing was compared.

    `refused`: the stage says that it cannot, rather than answering wrongly.
    """

    difference: float | None = None
    note: str = ""
    refused: bool = False

    @property
    def mark(self) -> str:
        if self.difference is None:
            return "refused" if self.refused else "failed" if self.note else "none"
        return "exact" if self.difference == 0 else "close" if self.difference < CLOSE else "differs"


Check = Callable[[Any], Outcome]  # of a Subject
