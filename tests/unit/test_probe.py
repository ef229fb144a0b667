"""A host read from outside: cgroup files as recorded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from links import no_thread_left

from edgesplit.runner import control, probe

GIB = 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nMemAvailable:    8388608 kB"  # 16 and 8 GiB
NO_LIMIT = str(2**63 - 4096)  # how cgroup v1 says "unlimited"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file tree in place of /proc and /sys/fs/cgroup, four CPUs."""
    monkeypatch.setattr(probe, "PROC", tmp_path / "proc")
    monkeypatch.setattr(probe, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    put(tmp_path / "proc", meminfo=MEMINFO)
    return tmp_path


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")


def groups(host: Path, *lines: str) -> Path:
    put(host / "proc" / "self", cgroup="\n".join(lines))
    return host / "cgroup"


def seen() -> tuple[float, float, float]:
    """(cores, memory in all, memory available), memory in GiB."""
    memory = probe.memory()
    return probe.cores(), memory["memory_total"] / GIB, memory["memory_available"] / GIB


V1 = ("9:memory:/user/job", "4:cpu,cpuacct:/user/job", "1:name=systemd:/init.scope", "0::/init.scope")


def test_without_any_limit_it_is_the_machine(host: Path) -> None:
    assert seen() == (4, 16, 8)
    groups(host, "0::/user.slice/session.scope")
    assert seen() == (4, 16, 8)


def test_cgroup_v2_limits_hold_along_the_whole_path(host: Path) -> None:
    root = groups(host, "0::/system.slice/runner.service")
    put(root, **{"cpu.max": "max 100000"})  # the true root has none; a container's root has
    put(root / "system.slice", **{"cpu.max": "150000 100000", "memory.max": "max", "memory.current": "5"})
    service = root / "system.slice" / "runner.service"
    put(service, **{"cpu.max": "40000 20000", "memory.max": str(4 * GIB), "memory.current": str(GIB)})
    assert seen() == (1.5, 4, 3)


def test_cgroup_v2_in_a_container_sees_its_limits_at_the_root(host: Path) -> None:
    root = groups(host, "0::/")
    put(root, **{"cpu.max": "50000 100000", "memory.max": str(GIB), "memory.current": str(GIB // 4)})
    assert seen() == (0.5, 1, 0.75)


def test_cgroup_v1_limits_and_their_period(host: Path) -> None:
    root = groups(host, *V1)
    put(root / "cpu,cpuacct" / "user" / "job", **{"cpu.cfs_quota_us": "10000", "cpu.cfs_period_us": "20000"})
    put(root / "cpu,cpuacct", **{"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})
    job, top = root / "memory" / "user" / "job", root / "memory"
    put(job, **{"memory.limit_in_bytes": str(2 * GIB), "memory.usage_in_bytes": str(GIB)})
    put(top, **{"memory.limit_in_bytes": NO_LIMIT, "memory.usage_in_bytes": str(9 * GIB)})
    assert seen() == (0.5, 2, 1)


def test_cgroup_v1_mounted_under_the_bare_name(host: Path) -> None:
    root = groups(host, "4:cpu,cpuacct:/")
    put(root / "cpu", **{"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"})
    assert probe.cores() == 3


def test_a_group_whose_path_is_of_another_namespace_is_read_at_the_root(host: Path) -> None:
    root = groups(host, "9:memory:/docker/0123456789")
    put(root / "memory", **{"memory.limit_in_bytes": str(GIB), "memory.usage_in_bytes": "0"})
    assert seen() == (4, 1, 1)


def test_what_siblings_use_of_a_parents_limit_is_gone(host: Path) -> None:
    root = groups(host, "0::/slice/mine")
    put(root / "slice", **{"memory.max": str(2 * GIB), "memory.current": str(GIB + GIB // 2)})
    put(root / "slice" / "mine", **{"memory.max": str(2 * GIB), "memory.current": "0"})
    assert seen() == (4, 2, 0.5)


@pytest.mark.parametrize(
    ("line", "folder", "names", "idle"),
    [
        ("0::/", "", ("memory.max", "memory.current"), "inactive_file"),
        ("9:memory:/", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_file_pages_nobody_uses_are_available(
    host: Path, line: str, folder: str, names: tuple[str, str], idle: str
) -> None:
    root = groups(host, line) / folder
    stat = f"anon 5\n{idle} {GIB}\nactive_file {GIB}"
    put(root, **{names[0]: str(4 * GIB), names[1]: str(3 * GIB), "memory.stat": stat})
    assert seen() == (4, 4, 2)


def test_a_limit_never_makes_more_than_the_machine_has(host: Path) -> None:
    root = groups(host, "0::/")
    put(root, **{"memory.max": str(12 * GIB), "memory.current": "0", "cpu.max": "900000 100000"})
    assert seen() == (4, 12, 8)


def test_busy_seconds_are_those_of_the_allowed_cpus(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    #      user nice system idle iowait irq softirq steal guest guest_nice
    lines = ["cpu  999 9 9 9 9 9 9 9 9 9", "cpu0 100 10 50 5000 70 1 2 7 40 0", "cpu1 200 0 0 5000 0 0 0 0 0 0"]
    put(host / "proc", stat="\n".join([*lines, "cpu10 7 0 0 0 0 0 0 0 0 0", "intr 5"]))
    assert probe.busy_seconds([0]) == pytest.approx(1.70)
    assert probe.busy_seconds([0, 1]) == pytest.approx(3.70)


def test_a_reading_of_this_very_machine() -> None:
    reading = probe.probe({})
    assert 0 < reading["cores"] <= len(os.sched_getaffinity(0))
    assert 0 < reading["memory_available"] <= reading["memory_total"]
    assert reading["busy_s"] > 0


def test_a_reading_tells_whether_a_runner_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    silent = probe.probe({"folder": "."})
    assert (silent["runner"], silent["manifest"]) == (None, False)
    (tmp_path / "manifest.json").write_text("{}")
    with no_thread_left():
        server = control.Server(tmp_path, lambda message: {"ok": {"cpus": [0], "asked": message["verb"]}})
        server.start()
        try:
            reading = probe.probe({"folder": str(tmp_path)})
        finally:
            server.close()
    assert reading["runner"] == {"cpus": [0], "asked": "status"}
    assert reading["manifest"] is True
    assert reading["cores"] <= 1
    assert not (tmp_path / control.SOCKET).exists()


def test_only_the_user_may_open_the_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = control.Server(tmp_path, lambda _: {})
    assert (tmp_path / control.SOCKET).stat().st_mode & 0o777 == 0o600
    server.close()
