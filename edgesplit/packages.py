"""WHAT A RUNNER NEEDS of a Python: the packages it imports, in the versions that this machine has.

A split is exact where all hosts have equal versions, so this very installation is what hosts are given.
Must not know: hosts, how anything is installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

NEEDED = ("torch", "transformers", "safetensors", "cryptography", "starlette", "uvicorn", "prometheus-client")
IF_HERE = ("pillow",)  # the entry of a model that takes images


@dataclass(frozen=True)
class Package:
    """`python`: the versions of Python it runs on. `needs`: what else, as its metadata says it."""

    name: str
    version: str
    python: str
    needs: tuple[str, ...]

    @property
    def release(self) -> str:
        """The version without what names a build, such as +cpu: a host may have another."""
        return self.version.partition("+")[0]

    def runs_on(self, python: str) -> bool:
        return SpecifierSet(self.python).contains(python, prereleases=True)

    def needs_on(self, marks: Mapping[str, str]) -> list[str]:
        """Names of the packages it needs there. `marks`: what PEP 508 calls the environment."""
        wishes = map(Requirement, self.needs)
        fit = (wish for wish in wishes if wish.marker is None or wish.marker.evaluate({**marks, "extra": ""}))
        return [canonicalize_name(wish.name) for wish in fit]


@cache
def installed() -> Mapping[str, Package]:
    """The packages that a runner imports, and whatever these may need on some host, by name."""
    found: dict[str, Package] = {}
    waiting = [*NEEDED, *IF_HERE]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found and (package := _package(name)) is not None:
            found[name] = package
            waiting += [Requirement(wish).name for wish in package.needs]
    return found


def _package(name: str) -> Package | None:
    try:
        told = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    needs = (wish for wish in told.requires or () if "extra ==" not in wish.replace('"', "").replace("'", ""))
    return Package(name, told.version, told.metadata["Requires-Python"] or "", tuple(needs))


def wanted() -> list[Package]:
    """Those that a runner imports itself."""
    return [installed()[name] for name in (*NEEDED, *IF_HERE) if name in installed()]


def imports() -> list[str]:
    """What must work where they are installed."""
    return [name.replace("-", "_") for name in NEEDED]


def key(sources: Iterable[str]) -> str:
    """What tells one environment from another: its packages, and where they came from."""
    pins = sorted(f"{package.name}=={package.release}" for package in installed().values())
    return hashlib.sha256("\n".join([*pins, *sources]).encode()).hexdigest()[:12]
