"""Control groups of both versions, as folders of files; the real ones are in tests/lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesplit.errors import EdgesplitError
from edgesplit.lab.cgroup import GroupV1, GroupV2, described, hierarchies, opened, quota_of

V1_MOUNTS = """cgroup {root}/cpu cgroup rw,relatime,cpu,cpuacct 0 0
cgroup {root}/memory cgroup rw,relatime,memory 0 0
cgroup {root}/freezer cgroup rw,relatime,freezer 0 0
cgroup2 {root}/unified cgroup2 rw,relatime 0 0
"""
V1_OWN = "4:memory:/user/me\n3:freezer:/\n1:cpu,cpuacct:/gone\n0::/\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for folder in ("proc/self", "cpu", "memory/user/me", "freezer", "unified"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(V1_OWN)
    (tmp_path / "unified/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return tmp_path


def test_version_1_is_used_where_it_is_whole_below_the_group_we_are_in(machine: Path) -> None:
    (machine / "proc/mounts").write_text(V1_MOUNTS.format(root=machine))
    tree = hierarchies(machine / "proc")
    assert tree.version == 1
    assert tree.homes["memory"] == machine / "memory/user/me"
    assert tree.homes["cpu"] == tree.homes["cpuacct"] == machine / "cpu"  # /gone is not to be seen from here
    assert tree.group("lab", "a").folders["freezer"] == machine / "freezer/lab/a"
    assert set(tree.tracking("lab").folders) == {"freezer"}


def test_version_2_is_used_where_version_1_is_not_whole(machine: Path) -> None:
    lines = [line for line in V1_MOUNTS.format(root=machine).splitlines() if "freezer" not in line]
    (machine / "proc/mounts").write_text("\n".join(lines))
    tree = hierarchies(machine / "proc")
    assert tree.version == 2
    assert tree.group("lab", "a").folders == {"": machine / "unified/lab/a"}


def test_a_machine_with_neither_is_refused(machine: Path) -> None:
    (machine / "unified/cgroup.controllers").write_text("pids\n")
    (machine / "proc/mounts").write_text(f"cgroup2 {machine}/unified cgroup2 rw 0 0\n")
    with pytest.raises(EdgesplitError, match="no control groups for cpu and memory"):
        hierarchies(machine / "proc")


def test_groups_are_found_by_name_wherever_they_are(machine: Path) -> None:
    (machine / "proc/mounts").write_text(V1_MOUNTS.format(root=machine))
    for folder in ("memory/user/me/eslab-a/host-x", "memory/eslab-ab", "freezer/other/eslab-a"):
        (machine / folder).mkdir(parents=True)
    tree = hierarchies(machine / "proc")
    assert tree.named("eslab-") == ["eslab-a", "eslab-ab"]
    found = [folder for group in tree.found("eslab-a") for folder in group.folders.values()]
    assert sorted(found) == [machine / "freezer/other/eslab-a", machine / "memory/user/me/eslab-a"]


@pytest.mark.parametrize(
    ("cores", "quota"),
    [(1.0, (20_000, 20_000)), (2.5, (50_000, 20_000)), (0.25, (5_000, 20_000)), (0.05, (1_000, 20_000))],
)
def test_a_quota_has_a_short_period(cores: float, quota: tuple[int, int]) -> None:
    assert quota_of(cores) == quota


@pytest.mark.parametrize("cores", [0.01, 0.02, 0.049])
def test_a_small_quota_is_one_the_kernel_takes(cores: float) -> None:
    quota, period = quota_of(cores)
    assert 1_000 <= quota <= period <= 1_000_000
    assert quota / period == pytest.approx(cores, rel=0.01)


def write(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_version_1_files(tmp_path: Path) -> None:
    group = GroupV1({name: tmp_path / name / "g" for name in ("cpu", "cpuacct", "memory", "freezer")})
    (tmp_path / "cpu").mkdir()
    for name in ("cpuacct", "memory", "freezer"):
        (tmp_path / name).mkdir()
    group.make()
    group.limit_cores(0.5)
    group.limit_memory(2**30)
    group.freeze(frozen=True)
    write(tmp_path / "cpu/g", cpu__stat="nr_periods 5\nnr_throttled 2\nthrottled_time 1500000000\n")
    write(tmp_path / "cpuacct/g", cpuacct__usage_percpu="1000000000 500000000 \n")
    stat = "cache 1\ntotal_cache 4096\ntotal_inactive_file 1024\n"
    write(tmp_path / "memory/g", memory__usage_in_bytes="8192\n", memory__stat=stat)
    assert group.cores() == 0.5
    assert group.memory() == 2**30
    assert group.frozen()
    usage = group.usage()
    assert (usage.cpu, usage.throttled, usage.memory, usage.cached, usage.idle) == ((1.0, 0.5), 1.5, 8192, 4096, 1024)


def test_version_2_files(tmp_path: Path) -> None:
    folder = tmp_path / "lab" / "g"
    write(tmp_path / "lab", cgroup__subtree_control="")
    write(tmp_path, cgroup__subtree_control="cpu memory pids\n")
    top, group = GroupV2({"": tmp_path / "lab"}), GroupV2({"": folder})
    top.hand_down()
    assert (tmp_path / "lab/cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "cpu memory pids\n"  # had them already
    group.make()
    group.limit_cores(0.5)
    group.limit_memory(2**30)
    group.freeze(frozen=True)
    assert (folder / "cpu.max").read_text() == "10000 20000"
    write(folder, cpu__stat="usage_usec 4000000\nthrottled_usec 1500000\n", memory__current="8192\n")
    write(folder, memory__stat="anon 4096\nfile 4096\ninactive_file 1024\n")
    assert group.cores() == 0.5
    assert group.memory() == 2**30
    assert group.frozen()
    usage = group.usage()
    assert sum(usage.cpu) == pytest.approx(4.0)
    assert (usage.throttled, usage.memory, usage.cached, usage.idle) == (1.5, 8192, 4096, 1024)


def test_a_group_can_be_told_to_another_process(tmp_path: Path) -> None:
    group = GroupV1({"cpu": tmp_path / "a"})
    again = opened(described(group))
    assert isinstance(again, GroupV1)
    assert again.folders == group.folders
