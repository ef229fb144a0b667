"""What a lab's host reads in /proc is what the runner's own probe understands."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesplit.lab import meter, views
from edgesplit.runner import probe

MACHINE = "cpu  1 2 3 4\nintr 5\nbtime 1700000000\nprocesses 9\n"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(probe, "PROC", tmp_path)
    return tmp_path


def test_the_probe_reads_the_hosts_own_processor_time(proc: Path) -> None:
    (proc / "stat").write_text(views.stat([1.5, 0.25], 10.0, MACHINE))
    assert probe.busy_seconds([0, 1]) == pytest.approx(1.75)
    assert probe.busy_seconds([1]) == pytest.approx(0.25)


def test_a_host_is_idle_when_it_is_not_busy() -> None:
    rows = [line.split() for line in views.stat([1.5, 0.25], 10.0, MACHINE).splitlines()]
    assert rows[0][:5] == ["cpu", "175", "0", "0", "1825"]
    assert rows[1][:5] == ["cpu0", "150", "0", "0", "850"]
    assert ["btime", "1700000000"] in rows  # the kernel dates processes from it


def test_the_probe_reads_the_hosts_own_memory(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (proc / "meminfo").write_text(views.meminfo(limit=2**30, used=2**28, cached=2**27, idle=2**20))
    monkeypatch.setattr(probe, "_groups", lambda _: iter(()))
    assert probe.memory() == {"memory_total": 2**30, "memory_available": 2**30 - 2**28 + 2**20}


def test_more_used_than_allowed_leaves_nothing(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (proc / "meminfo").write_text(views.meminfo(limit=2**20, used=2**21, cached=0, idle=0))
    monkeypatch.setattr(probe, "_groups", lambda _: iter(()))
    assert probe.memory()["memory_available"] == 0


def test_loads_go_where_the_kernels_go() -> None:
    loads: tuple[float, ...] = (0.0, 0.0, 0.0)
    for _ in range(12):  # a minute
        loads = views.next_loads(loads, 2)
    assert loads[0] == pytest.approx(2 * (1 - 2.718281828**-1), rel=1e-3)
    assert loads[0] > loads[1] > loads[2] > 0
    words = views.loadavg(loads, 2, 5).split()
    assert words == [f"{load:.2f}" for load in loads] + ["2/5", "0"]


def test_a_shorter_load_text_hides_a_longer_one() -> None:
    assert len(views.loadavg((0.0, 0.0, 0.0), 0, 0)) == len(views.loadavg((100.0, 99.9, 88.8), 123, 4567))


class MadeAnew:
    """A host whose control group has no limit yet, which version 2 writes as `max`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, 0

    def refresh(self, _: float) -> None:
        self.asked += 1
        if self.asked == 2:
            self.folder.rmdir()
        int("max")


def test_the_meter_outlives_a_host_that_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "EVERY", 0.0)
    host = MadeAnew(tmp_path / "lab")
    host.folder.mkdir()
    meter.serve(host.folder, [host])  # type: ignore[list-item]
    assert host.asked == 2
