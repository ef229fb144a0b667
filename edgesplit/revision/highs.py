"""HiGHS, silent.

Must not know: what it solves.
"""

from __future__ import annotations

import highspy


class Highs(highspy.Highs):  # type: ignore[misc] # untyped here
    """HiGHS logs a banner to stdout at the first call that is not about its options, and its constructor makes one."""

    def enableCallbacks(self) -> None:  # noqa: N802 # HiGHS's name
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()
