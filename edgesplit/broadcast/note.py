"""Who does what, and since when: what a lock and an audit line say.

Must not know: what is done.
"""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass
from functools import cached_property

from edgesplit.hosts.host import who


@dataclass(frozen=True)
class Errand:
    """What a push is for. `warm`: hosts whose runner stays up though the split leaves them; `ours`: notes of earlier
    errands of our own, whose locks may still be on hosts that could not be reached in the end."""

    reason: str
    warm: frozenset[str] = frozenset()
    ours: frozenset[str] = frozenset()

    @cached_property
    def note(self) -> str:
        return signature(self.reason)


def signature(reason: str) -> str:
    return f"{who()} on {platform.node()}, {now():%Y-%m-%d %H:%M:%S} UTC: {reason}"


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
