"""A host that has nothing but Python gets an environment: whole or not at all, once, from wheels sent to it."""

from __future__ import annotations

import os
import time
import venv
from dataclasses import replace
from pathlib import Path

import pytest
from wheels import APPLE, PEAR, bare_host, pretend

from edgesplit.broadcast import wheels
from edgesplit.broadcast.environment import ensure
from edgesplit.broadcast.remote import lacks
from edgesplit.broadcast.teardown import remove_environments
from edgesplit.errors import HostError
from edgesplit.hosts.host import LocalHost
from edgesplit.installer import build
from edgesplit.inventory import HostSpec, Inventory, Packages

MARKS = {
    "python_version": "3.11",
    "python_full_version": "3.11.7",
    "platform_machine": "aarch64",
    "libc": "glibc 2.31",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
}


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostSpec:
    return bare_host(tmp_path, monkeypatch)


def silent(_: str) -> None:
    """Nobody listens."""


def test_no_room_is_said_before_anything_is_sent(spec: HostSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesplit.broadcast.environment.unpacked", lambda _: 2**60)
    with pytest.raises(HostError, match="no space: its packages take"):
        ensure(LocalHost("pi"), spec, silent)
    assert not Path(spec.environments).exists()


def test_what_nothing_ran_from_for_a_week_makes_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    now, long_ago = time.time(), time.time() - 8 * 86400
    for name, started in (("idle", long_ago), ("used", now), ("half.part", now)):
        Path(name).mkdir()
        Path(name, "pyvenv.cfg").write_text("")
        os.utime(Path(name, "pyvenv.cfg"), (started, long_ago))
    Path("of-somebody").mkdir()
    for folder in tmp_path.iterdir():
        os.utime(folder, (long_ago, long_ago))
    build._tidy("new", "sent-1")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["of-somebody", "used"]


def test_a_wheel_that_is_nowhere_is_named(spec: HostSpec) -> None:
    (Path(spec.packages.wheels or "") / "apple-1.0-py3-none-any.whl").unlink()
    with pytest.raises(HostError, match=r"pip cannot fetch its wheels: .*apple==1.0") as failure:
        ensure(LocalHost("pi"), spec, silent)
    assert "put wheels for Python" in failure.value.hint


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false"])
def test_a_host_without_python(spec: HostSpec, python: str) -> None:
    bare = spec.model_copy(update={"packages": Packages(python=python)})
    with pytest.raises(HostError, match=r"there is no Python 3\.10 or later"):
        ensure(LocalHost("pi"), bare, silent)


def test_the_last_deployment_takes_it_along(spec: HostSpec) -> None:
    venv.create(spec.environment or "")
    inventory, hosts = Inventory(hosts={"pi": spec}), {"pi": LocalHost("pi")}
    other = Path(spec.work, "other")
    other.mkdir()
    assert remove_environments(inventory, hosts) == ({"pi": "other"}, {})
    assert not lacks(LocalHost("pi"), spec)
    other.rmdir()
    assert remove_environments(inventory, hosts) == ({"pi": ""}, {})
    assert not Path(spec.work).exists()


# --- which wheels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["pear_low-2.0-py3-none-any"], "pear_low-2.0-py3-none-any"),
        (["pear_low-1.0-py3-none-any", "pear_low-3.0-py3-none-any"], None),
        (["pear_low-2.0-cp310-cp310-linux_aarch64", "pear_low-2.0-cp311-cp311-manylinux_2_34_aarch64"], None),
        (["pear_low-2.0-cp311-cp311-linux_x86_64"], None),
        (
            ["pear_low-2.0-py3-none-any", "pear_low-2.0-cp311-cp311-manylinux_2_28_aarch64"],
            "pear_low-2.0-cp311-cp311-manylinux_2_28_aarch64",
        ),
        (["pear_low-2.0-py3-none-any", "pear_low-2.0+cpu-py3-none-any"], "pear_low-2.0+cpu-py3-none-any"),
        (["pear_low-2.0-cp39-abi3-manylinux2014_aarch64", "x"], "pear_low-2.0-cp39-abi3-manylinux2014_aarch64"),
    ],
)
def test_the_wheel_that_fits_the_host_best(tmp_path: Path, names: list[str], best: str | None) -> None:
    for name in names:
        (tmp_path / f"{name}.whl").touch()
    found = wheels.choose(tmp_path, [PEAR], MARKS)
    assert found.get("pear-low") == (tmp_path / f"{best}.whl" if best else None)


def test_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    only_new = replace(PEAR, python=">=3.12")
    pretend(monkeypatch, replace(APPLE, needs=('pear-low; sys_platform == "win32"',)), only_new)
    packages = Packages(extra_index="https://cpu.example/")
    assert wheels.requirements(packages, MARKS) == "--extra-index-url https://cpu.example/\napple==1.0\n"
    assert wheels.constraints(MARKS) == "apple==1.0\n"
    assert [package.name for package in wheels.all_of(MARKS)] == ["apple"]
    assert [package.name for package in wheels.all_of({**MARKS, "sys_platform": "win32"})] == ["apple", "pear-low"]


def test_the_password_of_an_index_is_told_nobody(spec: HostSpec) -> None:
    packages = spec.packages.model_copy(update={"wheels": None})
    told = lacks(LocalHost("pi"), spec.model_copy(update={"packages": packages}))
    assert "from https://index.example/ into" in told
