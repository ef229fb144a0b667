"""Who does what, and since when: what a lock and an audit line say.

Must not know: what is done.
"""

from __future__ import annotations

import datetime
import getpass
import platform


def signature(reason: str) -> str:
    return f"{getpass.getuser()} on {platform.node()}, {now():%Y-%m-%d %H:%M:%S} UTC: {reason}"


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
