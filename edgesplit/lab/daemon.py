"""From a command to a process that stays: the command returns when the process is ready, and fails when it is not.

Must not know: what the process is for.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def detach() -> Callable[[], None]:
    """Go on as a process of its own; whoever started this one waits until it calls what is returned here."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os._exit(0 if os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()
    os.chdir("/")

    def ready() -> None:
        os.write(writer, b"+")
        os.close(writer)

    return ready
