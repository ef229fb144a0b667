"""Wheels for a host without a network: from a folder on this machine, which is filled by pip where it lacks some.

Must not know: how they travel, how they are installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from edgesplit.errors import HostError
from edgesplit.inventory import Packages
from edgesplit.packages import Package, installed, wanted

Marks = Mapping[str, str]
_OLDEST_GLIBC = 5  # of manylinux: 2.5


def requirements(packages: Packages, marks: Marks) -> str:
    """What pip is told to install: the packages in our versions, where these run on that Python."""
    lines = [f"--index-url {packages.index}"] if packages.index else []
    lines += [f"--extra-index-url {packages.extra_index}"] if packages.extra_index else []
    return "\n".join([*lines, *(_pin(package, marks) for package in wanted())]) + "\n"


def constraints(marks: Marks) -> str:
    """The versions of whatever else may come along."""
    return "".join(f"{_pin(package, marks)}\n" for package in installed().values() if _fits(package, marks))


def all_of(marks: Marks) -> list[Package]:
    """Every package that is needed on that host, those that we need and those that these need."""
    found: dict[str, Package] = {}
    waiting = [package.name for package in wanted()]
    while waiting:
        package = installed().get(canonicalize_name(waiting.pop()))
        if package is not None and package.name not in found:
            found[package.name] = package
            waiting += package.needs_on(marks)
    return list(found.values())


def _pin(package: Package, marks: Marks) -> str:
    return f"{package.name}=={package.release}" if _fits(package, marks) else package.name


def _fits(package: Package, marks: Marks) -> bool:
    return package.runs_on(marks["python_full_version"])


def wheels_of(host: str, folder: Path, packages: Packages, marks: Marks) -> list[Path]:
    """One wheel of every package, out of `folder`; pip brings those that are not there. Raises HostError."""
    needed = all_of(marks)
    found = choose(folder, needed, marks)
    lacking = [package for package in needed if package.name not in found]
    if lacking:
        _fetch(host, folder, packages, marks, lacking)
        found = choose(folder, needed, marks)
    absent = [_pin(package, marks) for package in needed if package.name not in found]
    if absent:
        raise HostError(host, f"{folder} has no wheel for it of {', '.join(absent)}", _by_hand(folder, marks))
    return sorted(found.values())


def choose(folder: Path, needed: list[Package], marks: Marks) -> dict[str, Path]:
    """The best wheel there is of each, by name."""
    order = {tag: place for place, tag in enumerate(tags(marks))}
    wanted_ones = {package.name: package for package in needed}
    best: dict[str, tuple[tuple[str, int], Path]] = {}
    for file in folder.glob("*.whl"):
        try:
            name, version, _, fits = parse_wheel_filename(file.name)
        except InvalidWheelFilename:
            continue
        package, places = wanted_ones.get(name), [order[tag] for tag in fits if tag in order]
        if package is None or not places or (_fits(package, marks) and version.public != package.release):
            continue
        rank = (str(version), -min(places))
        if name not in best or rank > best[name][0]:
            best[name] = rank, file
    return {name: file for name, (_, file) in best.items()}


def tags(marks: Marks) -> list[Tag]:
    """What wheels may be for, the best first."""
    python = tuple(int(part) for part in marks["python_version"].split("."))
    platforms = platforms_of(marks)
    return [
        *cpython_tags(python, platforms=platforms),
        *compatible_tags(python, f"cp{python[0]}{python[1]}", platforms),
    ]


def platforms_of(marks: Marks) -> list[str]:
    machine = marks["platform_machine"]
    glibc = re.match(r"glibc 2\.(\d+)", marks["libc"])
    newest = int(glibc[1]) if glibc else 0
    named = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    many = [
        platform
        for minor in range(newest, _OLDEST_GLIBC - 1, -1)
        for platform in (f"manylinux_2_{minor}", *([named[minor]] if minor in named else []))
    ]
    return [f"{platform}_{machine}" for platform in [*many, "linux"]]


def _fetch(host: str, folder: Path, packages: Packages, marks: Marks, lacking: list[Package]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    python = marks["python_version"]
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    words += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--find-links", str(folder)]
    words += ["--implementation", "cp", "--python-version", python, "--abi", f"cp{python.replace('.', '')}"]
    words += ["--abi", "abi3", "--abi", "none"]
    words += [word for platform in platforms_of(marks) for word in ("--platform", platform)]
    lines = [line for line in requirements(packages, marks).splitlines() if line.startswith("--")]
    text = "\n".join([*lines, *(_pin(package, marks) for package in lacking)])
    done = subprocess.run(
        [*words, "--requirement", "/dev/stdin"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise HostError(
            host, f"pip cannot fetch its wheels: {said[-1] if said else 'it said nothing'}", _by_hand(folder, marks)
        )


def _by_hand(folder: Path, marks: Marks) -> str:
    kind = f"Python {marks['python_version']} on {marks['platform_machine']} ({marks['libc']})"
    return f"put wheels for {kind} into {folder}, or let this machine reach an index"


def unpacked(wheels: list[Path]) -> int:
    """Bytes of what is in them."""
    size = 0
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            size += sum(entry.file_size for entry in archive.infolist())
    return size
