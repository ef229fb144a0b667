"""Take a lab off the machine: what runs, what is mounted, its folder; also what a crash left of it.

Nothing is believed but names: every group and namespace of the lab bears its name; its processes are in its groups.
The machine's own interface goes with the switch.
Must not know: what the lab was like.
"""

from __future__ import annotations

import shutil

from edgesplit.lab import machine
from edgesplit.lab.cgroup import end, hierarchies
from edgesplit.lab.layout import PREFIX


def down(name: str) -> None:
    """Whatever there is of that name; nothing is no error. Two at once are one after the other."""
    with machine.alone():
        _down(name)


def _down(name: str) -> None:
    folder = machine.BASE / name
    groups = hierarchies().found(PREFIX + name)
    networks = machine.networks(f"{PREFIX}{name}-")
    end(groups)
    for group in groups:
        group.remove()
    if networks:
        machine.ip("-batch", "-", lines="".join(f"netns del {network}\n" for network in networks))
    if folder.exists():
        shutil.rmtree(folder)
