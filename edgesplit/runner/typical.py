"""What many measurements of one thing say together.

Must not know: what was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable


def typical(times: Iterable[float]) -> float:
    """The mean without the tenth at either end: what many take together, but for a disturbance or two."""
    ordered = sorted(times)
    cut = len(ordered) // 10
    return statistics.fmean(ordered[cut : len(ordered) - cut])
