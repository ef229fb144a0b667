"""Who does what, and since when: what a lock and an audit line say.

Must not know: what is done.
"""

from __future__ import annotations

import datetime
import platform

from edgesplit.hosts.host import who


def signature(reason: str) -> str:
    return f"{who()} on {platform.node()}, {now():%Y-%m-%d %H:%M:%S} UTC: {reason}"


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
