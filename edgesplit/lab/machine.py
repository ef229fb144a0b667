"""What a lab needs of the machine, and where labs are kept on it.

Must not know: what is done with it all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import edgesplit
from edgesplit.errors import EdgesplitError, InputError
from edgesplit.lab.cgroup import hierarchies
from edgesplit.lab.layout import PREFIX, Layout
from edgesplit.lab.namespaces import NAMED, TUN
from edgesplit.lab.scenario import LabHost, Scenario

BASE = Path("/var/lib/edgesplit-lab")  # a folder per lab; its hosts' disks are in there
LAYOUT = "lab.json"
TOOLS = {"ip": "iproute2", "sshd": "openssh-server"}  # program -> package of Debian and Ubuntu
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def need_root() -> None:
    """Raises EdgesplitError."""
    if os.geteuid() != 0:
        raise EdgesplitError(
            "the lab needs root: it makes network namespaces, interfaces and control groups",
            f"sudo {sys.executable} -m edgesplit lab ...",
        )


def obstacle() -> str | None:
    """Why there can be no lab here, if there cannot."""
    try:
        need_root()
        tool("ip")
        tool("sshd")
        if not TUN.exists():
            raise EdgesplitError(f"the lab needs {TUN}", "modprobe tun; in a container: --device /dev/net/tun")
        hierarchies()
    except EdgesplitError as error:
        return f"{error.message} ({error.hint})"
    return None


def check(scenario: Scenario) -> None:
    """Raises EdgesplitError where this machine cannot be such a fleet."""
    if why := obstacle():
        raise EdgesplitError(why)
    for name, host in scenario.hosts.items():
        check_cores(name, host)


def check_cores(name: str, host: LabHost) -> None:
    """A quota cannot make more of them. Raises InputError."""
    count = len(os.sched_getaffinity(0))
    if host.cores > count:
        raise InputError(f"host {name}: {host.cores:g} cores are more than this machine's {count}", "lower `cores`")


def tool(name: str) -> str:
    """Its absolute path: sshd starts itself again by it."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise EdgesplitError(
            f"the lab needs `{name}`, which is not installed", f"Debian: apt-get install {TOOLS[name]}"
        )
    return os.path.abspath(found)


def ip(*words: str, lines: str | None = None) -> None:
    """iproute2's `ip`; `lines`: what it reads. Raises EdgesplitError with what it said."""
    done = subprocess.run([tool("ip"), *words], input=lines, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise EdgesplitError(f"ip {' '.join(words)}: {said[0]}")


def python(module: str, *words: str) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of a process of the lab's own. -S: it needs no packages, and starts in half the time."""
    environment = {
        "PATH": _PATH,
        "PYTHONPATH": str(Path(edgesplit.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return [sys.executable, "-S", "-m", f"edgesplit.lab.{module}", *words], environment


# --- which labs there are ---


def labs() -> list[str]:
    """Every lab of which something is left, if only a namespace."""
    return sorted({*folders(), *(name.removeprefix(PREFIX) for name in hierarchies().named(PREFIX)), *_networks()})


def the_one(name: str | None) -> str:
    """The lab of this name, or the only one there is. Raises InputError."""
    there = labs()
    if name is None and len(there) == 1:
        return there[0]
    if name in there and name is not None:
        return name
    listed = ", ".join(there)
    if name is not None:
        raise InputError(f"there is no lab {name}", f"there is {listed}" if there else "edgesplit lab up FILE")
    if not there:
        raise InputError("there is no lab", "edgesplit lab up FILE")
    raise InputError(f"there are {len(there)} labs: {listed}", "say which one")


def folders() -> list[str]:
    return [path.name for path in BASE.iterdir() if path.is_dir()] if BASE.exists() else []


def _networks() -> list[str]:
    return [network.removeprefix(PREFIX).partition("-")[0] for network in networks(PREFIX)]


def networks(prefix: str) -> list[str]:
    """The named network namespaces whose names begin like this."""
    return sorted(path.name for path in NAMED.glob(f"{prefix}*"))


def read_layout(name: str) -> Layout | None:
    """None where `up` was broken off before it wrote it."""
    try:
        return Layout.model_validate_json((BASE / name / LAYOUT).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def alone() -> Iterator[None]:
    """One at a time chooses names and networks."""
    BASE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (BASE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
