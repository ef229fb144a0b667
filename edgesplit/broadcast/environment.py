"""A Python with the runner's packages on a host that has none: what there is, what would come, and bringing it.

Must not know: deployments, splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgesplit.broadcast.archive import Archive, installer_archive, runner_archive
from edgesplit.broadcast.cargo import Thing
from edgesplit.broadcast.note import signature
from edgesplit.broadcast.remote import lacks, look_into
from edgesplit.broadcast.ship import Shipment
from edgesplit.broadcast.wheels import Marks, constraints, requirements, unpacked, wheels_of
from edgesplit.errors import CommandFailed, HostError
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host
from edgesplit.inventory import HostSpec
from edgesplit.packages import imports
from edgesplit.units import format_size

SILENCE = 300.0  # seconds without a sign of life: a board that swaps is slow
PIECE = 2**20
# Measured (decision 0035): what the packages take on disk, with what pip keeps meanwhile.
CPU_BYTES, CUDA_BYTES = 2 * 2**30, 9 * 2**30
COMPILED = 1.3  # of the size of what is in the wheels: Python keeps compiled code beside it

Note = Callable[[str], None]


@dataclass(frozen=True)
class Base:
    """The Python an environment can be made from."""

    marks: Marks

    @property
    def python(self) -> str:
        return self.marks["executable"]

    @property
    def version(self) -> str:
        return self.marks["python_full_version"]

    def gets_cuda(self, spec: HostSpec) -> bool:
        """Will its torch bring CUDA's libraries along, needed or not? The usual index's does, on x86-64."""
        named = spec.packages.index or spec.packages.extra_index or spec.packages.wheels
        return bool(self.marks["gpu"]) or (self.marks["platform_machine"] == "x86_64" and not named)


def find_base(host: Host, spec: HostSpec) -> Base:
    """Raises HostError where there is no Python that will do."""
    try:
        marks = json.loads(host.run(commands.find_python(spec.packages.python)))
        return Base(marks)
    except CommandFailed as error:
        if error.status not in commands.NO_PROGRAM:
            raise
        named = spec.packages.python or "python3"
        raise HostError(
            host.name,
            f"there is no Python 3.10 or later ({named}) that can be run",
            "install one (Debian, Ubuntu: apt-get install python3), or name it: `packages: {python: ...}`",
        ) from error


def ensure(host: Host, spec: HostSpec, note: Note) -> None:
    """The environment is there when this returns. `note` is told what happens. Raises HostError."""
    if not lacks(host, spec):
        return
    try:
        _bring(host, spec, note)
    except HostError:
        if lacks(host, spec):  # another controller may have been quicker, and tidied up
            raise


def _bring(host: Host, spec: HostSpec, note: Note) -> None:
    base = find_base(host, spec)
    wheels: list[Path] = []
    if spec.packages.wheels is not None:
        note("finding its wheels")
        wheels = wheels_of(host.name, Path(spec.packages.wheels).expanduser(), spec.packages, base.marks)
    space = int(unpacked(wheels) * COMPILED) if wheels else CUDA_BYTES if base.gets_cuda(spec) else CPU_BYTES
    _room(host, spec, space + sum(wheel.stat().st_size for wheel in wheels))
    with closing(_alone(host, spec, base, note)) as alone:
        next(alone)
        if not lacks(host, spec):  # whoever was here first has made it
            return
        sent = _send(host, spec, base, wheels, note)
    arguments = {
        "name": str(spec.environment).rpartition("/")[2],
        "sent": sent,
        "wheels": bool(wheels),
        "imports": imports(),
        "bytes": space,
    }
    command = commands.install(base.python, spec.environments, f"{sent}/{installer_archive().name}", arguments)
    try:
        for line in host.stream(command, silence=SILENCE):
            note(_told(json.loads(line)))
    except CommandFailed as error:
        raise HostError(host.name, error.stderr.strip().rpartition("\n")[2] or error.message, _hint(error)) from error


def _alone(host: Host, spec: HostSpec, base: Base, note: Note) -> Generator[None, None, None]:
    """Once it yields, nobody else sends or installs there, until it is closed. Raises HostError."""
    lines = host.stream(commands.hold(base.python, spec.environments, signature("packages")), silence=SILENCE)
    for line in lines:
        if line == commands.HELD:
            yield
            return
        note(f"waiting for another installation on this host, by {line}")
    raise HostError(host.name, f"its folder of environments cannot be locked: {spec.environments}")


def _told(event: dict[str, Any]) -> str:
    if not event["of"]:
        return str(event["doing"])
    return f"{event['doing']}, {format_size(event['done'])} of {format_size(event['of'])}"


def _hint(error: CommandFailed) -> str:
    said = error.stderr
    if "No space left" in said:
        return "free some space, or set `work` to a folder on a larger disk"
    if "No module named venv" in said or "no module venv" in said:
        return "install all of Python (Debian, Ubuntu: apt-get install python3)"
    if any(word in said for word in ("Could not find a version", "Connection", "Temporary failure", "retries")):
        return "if it reaches no index: `packages: {wheels: FOLDER}` sends it wheels from here"
    return "or name a Python that has the packages: `python` in the inventory"


def _room(host: Host, spec: HostSpec, need: int) -> None:
    free = int(host.run(commands.free_space(spec.environments)).strip() or 0)
    if free < need:
        told = f"no space: its packages take {format_size(need)}, and {format_size(free)} are free in {spec.work}"
        raise HostError(host.name, told, "free some, or set `work` to a folder on a larger disk")


def _send(host: Host, spec: HostSpec, base: Base, wheels: list[Path], note: Note) -> str:
    """All that is needed to install; only what is not there yet. The name of the folder it is in."""
    limits = "--constraint constraints.txt\n"
    things = [
        *map(_archive, (runner_archive(), installer_archive())),
        _text("requirements.txt", "" if wheels else limits + requirements(spec.packages, base.marks)),
        _text("constraints.txt", constraints(base.marks)),
        *(_file(f"wheels/{wheel.name}", wheel) for wheel in wheels),
    ]
    sent = f"sent-{hashlib.sha256(''.join(thing.sha256 for thing in things).encode()).hexdigest()[:12]}"
    folder = f"{spec.environments}/{sent}"
    _, there, parts = look_into(host, folder)
    missing = [thing for thing in things if thing.path not in there]
    total, done = sum(thing.size for thing in missing), 0

    def counted(size: int) -> None:
        nonlocal done
        done += size
        note(f"sending {format_size(done)} of {format_size(total)}")

    bare = spec.model_copy(update={"python": base.python})
    try:
        Shipment(host, bare, folder, runner_archive().name, missing, counted, bytes.fromhex, parts).carry_out()
    except HostError:
        if not lacks(host, spec):  # another controller was quicker, and removed the folder under our hands
            host.run(commands.remove(folder))
        raise
    return sent


def _archive(archive: Archive) -> Thing:
    return Thing(archive.name, archive.sha256, len(archive.data), lambda: iter([archive.data]))


def _text(path: str, text: str) -> Thing:
    data = text.encode()
    return Thing(path, hashlib.sha256(data).hexdigest(), len(data), lambda: iter([data]))


def _file(path: str, file: Path) -> Thing:
    with file.open("rb") as opened:
        sha = hashlib.sha256()
        for piece in iter(partial(opened.read, PIECE), b""):
            sha.update(piece)
    return Thing(path, sha.hexdigest(), file.stat().st_size, partial(_pieces, file))


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        yield from iter(partial(opened.read, PIECE), b"")
