"""Only one watches a deployment: who holds the lock of a file in its folder, for as long as this process lives.

Must not know: what is watched, and what for.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any


def claim(arguments: dict[str, Any]) -> str:
    """Who watches already; "" where nobody does, or an earlier channel of ours, and where nothing is claimed."""
    folder = os.path.expanduser(arguments.get("folder", ""))
    if "watcher" not in arguments or not os.path.isdir(folder):
        return ""
    file = os.open(f"{folder}/watcher", os.O_RDWR | os.O_CREAT, 0o600)  # closed by the end of the process
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        rival = os.read(file, 1000).decode().partition("\n")[0]
        return "" if rival == arguments["watcher"] else rival or "somebody"
    os.ftruncate(file, 0)
    os.write(file, f"{arguments['watcher']}\n{os.getpid()}\n".encode())
    return ""
