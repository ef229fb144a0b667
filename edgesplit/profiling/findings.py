"""What a host's answers mean for whoever wants to use it: is it enough, and what is there to do.

Must not know: how a host is asked, how findings are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesplit.errors import CommandFailed, HostError
from edgesplit.hosts.commands import NO_PROGRAM
from edgesplit.hosts.systemd import LINGER_HINT
from edgesplit.inventory import HostSpec
from edgesplit.units import format_size, format_time
from edgesplit.values import Value

SUBJECTS = (
    "login",
    "python",
    "packages",
    "disk",
    "memory",
    "clock",
    "data port",
)  # and, where one is wished, "service" after the login
OLDEST = (3, 10)  # Python that the runner is written for
LITTLE = 2**28  # bytes of disk: less holds no block of any useful model
APART = 5.0  # seconds that a clock may be wrong before logs of several hosts cannot be read side by side
TOO_EARLY = 365 * 86400.0  # seconds before which certificates of a deployment are not valid yet (authority.SKEW)


class Finding(Value):
    """`ok`: can the host be used as it is. `do`: what would mend or better it."""

    subject: str
    ok: bool
    found: str
    do: str = ""


def no_login(error: HostError) -> Finding:
    return Finding(subject="login", ok=False, found=error.message.removeprefix(f"{error.host}: "), do=error.hint)


def login(spec: HostSpec) -> Finding:
    return Finding(subject="login", ok=True, found="this machine" if spec.ssh is None else f"ssh {spec.ssh.host}")


def service(lacks: str) -> Finding:
    """`lacks`: why systemd will not start its runner after a reboot; "" if it will."""
    if not lacks:
        return Finding(subject="service", ok=True, found="systemd starts its runner at boot")
    do = LINGER_HINT if "login" in lacks else "leave `service` out: then watch or deploy starts the runner"
    return Finding(subject="service", ok=False, found=lacks, do=do)


def clock(host: float, before: float, after: float) -> Finding:
    """`before`, `after`: our time around the question; the host tells whole seconds."""
    off = min(host + 1 - before, 0.0) + max(host - after, 0.0)
    if abs(off) <= APART:
        return Finding(subject="clock", ok=True, found="right")
    found = f"{format_time(abs(off))} {'ahead' if off > 0 else 'behind'}"
    do = "let it follow a time server (timedatectl set-ntp true)"
    return Finding(subject="clock", ok=off > -TOO_EARLY, found=found, do=do)


def no_python(spec: HostSpec, error: CommandFailed) -> Finding:
    said = error.stderr.strip().splitlines()
    found = "none that can be run" if error.status in NO_PROGRAM or not said else said[-1]
    return Finding(subject="python", ok=False, found=f"{spec.interpreter}: {found}", do=_INSTALL_PYTHON)


_INSTALL_PYTHON = (
    "install Python 3.10 or later (Debian, Ubuntu: apt-get install python3), and name it by `python` in the inventory "
    "if it has the runner's packages"
)


def python(spec: HostSpec, version: str) -> Finding:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST:
        return Finding(subject="python", ok=True, found=version)
    return Finding(subject="python", ok=False, found=f"{spec.interpreter} is {version}", do=_INSTALL_PYTHON)


def examined(spec: HostSpec, answer: Mapping[str, Any], wanted: Mapping[str, str]) -> tuple[Finding, ...]:
    """What the runner's `examine` said. `wanted`: the versions of the packages that are installed here."""
    return (_packages(spec, answer, wanted), _disk(spec, answer), _memory(spec, answer))


def _packages(spec: HostSpec, answer: Mapping[str, Any], wanted: Mapping[str, str]) -> Finding:
    missing: list[str] = answer["missing"]
    found: dict[str, str] = answer["packages"]
    other = [name for name, version in found.items() if _plain(version) != _plain(wanted.get(name, version))]
    odd = [*missing, *other]
    words = [f"{name}=={_plain(wanted[name])}" for name in odd if name in wanted]
    do = _install(spec, words) if words else ""
    if missing:
        return Finding(subject="packages", ok=False, found=f"no {', '.join(missing)}", do=do)
    if other:
        told = ", ".join(f"{name} {found[name]} (here {wanted[name]})" for name in other)
        return Finding(subject="packages", ok=True, found=told, do=f"exactness is tested with equal versions; {do}")
    return Finding(subject="packages", ok=True, found=f"torch {found.get('torch', '?')}")


def _install(spec: HostSpec, words: list[str]) -> str:
    if spec.environment:
        return f"edgesplit down --all removes the environment {spec.environment}, and the next deploy makes it anew"
    packages = " ".join(words)
    return f"on the host: {spec.interpreter} -m pip install {packages}, or leave `python` out: then edgesplit does"


def to_install(coming: str, *, cuda_for_nothing: bool) -> Finding:
    """Packages that the host lacks and will be given."""
    do = f"nothing: profile or deploy installs {coming}"
    if cuda_for_nothing:
        do += "; it has no GPU, but this torch brings CUDA's libraries (5 GiB): `packages.extra_index` can name another"
    return Finding(subject="packages", ok=True, found="none yet", do=do)


def _plain(version: str) -> str:
    """Without what names a build: 2.13.0+cpu."""
    return version.partition("+")[0]


def _disk(spec: HostSpec, answer: Mapping[str, Any]) -> Finding:
    free, most = answer["disk_free"], spec.memory or answer["memory_available"]
    if answer["unwritable"]:
        do = "give the login the right to write there, or set `work` in the inventory"
        return Finding(subject="disk", ok=False, found=f"nothing can be written in {answer['unwritable']}", do=do)
    if free >= most:
        return Finding(subject="disk", ok=True, found=f"{format_size(free)} free")
    do = f"free some, or set `work` to a larger disk: weights may take up to {format_size(most)}"
    return Finding(subject="disk", ok=free >= LITTLE, found=f"{format_size(free)} free", do=do)


def _memory(spec: HostSpec, answer: Mapping[str, Any]) -> Finding:
    free = answer["memory_available"]
    found = f"{format_size(free)} free"
    if spec.memory is None or spec.memory <= free:
        return Finding(subject="memory", ok=True, found=found)
    do = f"end other programs, or lower `memory` in the inventory: it allows {format_size(spec.memory)}"
    return Finding(subject="memory", ok=True, found=found, do=do)


def data_port(spec: HostSpec, taken: str, missed: Mapping[str, str], strangers: frozenset[str]) -> Finding:
    """`missed`: who did not reach this host, and why; `strangers`: whom of those something else answered."""
    place = f"{spec.data_address}:{spec.data.port}"
    behind = {name: why for name, why in missed.items() if not (taken and name in strangers)}
    if behind:
        told = "; ".join(f"not from {name}: {why}" for name, why in behind.items())
        do = f"let TCP port {spec.data.port} in from the other hosts, or set `data.address` or `data.port`"
        return Finding(subject="data port", ok=False, found=f"{place} {told}", do=do)
    if taken == "in use":
        return Finding(subject="data port", ok=True, found=f"{place} open", do=_BUSY)
    if taken:
        do = "set another `data.port`"
        return Finding(subject="data port", ok=False, found=f"{place} cannot be listened on: {taken}", do=do)
    return Finding(subject="data port", ok=True, found=f"{place} open")


_BUSY = "something listens there: if it is no runner of edgesplit, set another `data.port`"
