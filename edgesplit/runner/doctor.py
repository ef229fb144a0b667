"""What this host lacks, and which other hosts it reaches on their data ports. Standard library only.

Must not know: what is enough (the controller judges), the model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from .measure import measure
from .meeting import Meeting, listening


def examine(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`: work, the folder that a deployment's folder is made in."""
    work = Path(os.path.expanduser(arguments["work"]))
    nearest = next(folder for folder in (work, *work.parents) if folder.exists())
    return {**measure({}), "disk_free": shutil.disk_usage(nearest).free, "unwritable": _unwritable(nearest)}


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there; "" when it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"edgesplit")
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return ""


def meet(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments`: me, address, port, token, peers (name -> address, port), timeout.

    `missed`: peer -> why it was not reached; `strangers`: those whose port is open, but held by something else;
    `taken`: why this host's own port could not be listened on, "" if it could.
    """
    server, taken = listening(arguments["address"], [arguments["port"]])
    peers = {name: (address, [port]) for name, (address, port) in arguments["peers"].items()}
    with closing(Meeting(arguments["me"], arguments["token"], peers, server)) as meeting:
        meeting.hold(arguments["timeout"])
    missed = {peer: why for peer, why in meeting.missed.items() if why}
    return {"taken": taken, "missed": missed, "strangers": meeting.strangers}
