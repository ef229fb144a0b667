"""Wheels of a few lines, made on the spot, and a host that is to be given them."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from edgesplit import packages
from edgesplit.inventory import HostSpec, Packages, SshTarget
from edgesplit.packages import Package

PLAIN = "py3-none-any"
APPLE, PEAR = Package("apple", "1.0", ">=3.8", ("pear-low",)), Package("pear-low", "2.0+big", ">=3.8", ())


def make_wheel(folder: Path, name: str, version: str, source: str = "", tag: str = PLAIN) -> Path:
    info = f"{name}-{version}.dist-info"
    file = folder / f"{name}-{version}-{tag}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", source)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return file


def pretend(monkeypatch: pytest.MonkeyPatch, *here: Package) -> None:
    """These are all that a runner needs, and what this machine has."""
    found = {package.name: package for package in here}
    monkeypatch.setattr(
        packages, "NEEDED", tuple(package.name for package in here if not package.name.endswith("-low"))
    )
    monkeypatch.setattr(packages, "IF_HERE", ())
    monkeypatch.setattr(packages, "installed", lambda: found)
    monkeypatch.setattr("edgesplit.broadcast.wheels.installed", lambda: found)


def bare_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostSpec:
    """A host whose packages are apple and pear, out of a folder here; nobody can ask an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    pretend(monkeypatch, APPLE, PEAR)
    make_wheel(tmp_path / "wheels", "apple", "1.0", "import pear_low")
    make_wheel(tmp_path / "wheels", "pear_low", "2.0")
    sources = Packages(
        python=sys.executable, wheels=str(tmp_path / "wheels"), index="https://ada:secret@index.example/"
    )
    return HostSpec(ssh=SshTarget(host="pi"), work=str(tmp_path / "work"), packages=sources)
