"""A lab for real: hosts that are hosts, links as asked for, and a machine that is as before when it is down."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from labs import LabFactory, lab, left_of, make_scenario, need_lab, on, start_words

from edgesplit.errors import EdgesplitError, InputError
from edgesplit.hosts.commands import Command
from edgesplit.hosts.fanout import connect
from edgesplit.inventory import load_inventory
from edgesplit.lab import machine
from edgesplit.lab.down import down
from edgesplit.lab.lab import Lab

__all__ = ["lab"]  # the fixture
pytestmark = [pytest.mark.fleet, pytest.mark.ssh]

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "tests" / "bench" / "lab_agent.py"


def python(*words: str) -> str:
    return shlex.join([sys.executable, "-S", *words])


# --- hosts ---


def test_edgesplit_logs_in_as_on_any_ssh_host_and_knows_the_hosts_by_their_keys(lab: LabFactory) -> None:
    fleet = lab(hosts=["a", "b"])
    with connect(load_inventory(fleet.inventory)) as hosts:
        names = {name: host.run(Command("its name", "hostname"), timeout=10).strip() for name, host in hosts.items()}
    assert names == {"a": "a", "b": "b"}
    known = Path(fleet.layout.known_hosts)
    known.write_text(known.read_text().replace(fleet.layout.hosts["a"].address, "10.0.0.1"))
    with connect(load_inventory(fleet.inventory)) as hosts, pytest.raises(EdgesplitError, match="host key"):
        hosts["a"].run(Command("its name", "hostname"), timeout=10)


def test_a_host_sees_its_own_limits_processes_and_interfaces(lab: LabFactory) -> None:
    fleet = lab(hosts={"a": {"cores": 0.5, "memory": "200MiB"}, "b": {}})
    words = python("-c", "from edgesplit.runner.probe import probe; import json; print(json.dumps(probe({})))")
    reading = on(fleet, "a", f"PYTHONPATH={ROOT} {words}")
    assert '"cores": 0.5' in reading.stdout, reading.stderr
    assert f'"memory_total": {200 * 2**20}' in reading.stdout
    assert on(fleet, "a", "cat /proc/meminfo").stdout.split()[:2] == ["MemTotal:", str(200 * 1024)]
    seen = on(fleet, "a", "ls /sys/class/net; ps -e | wc -l; echo $HOME").stdout.split()
    assert seen[:2] == ["eth0", "lo"]
    assert int(seen[2]) < 10
    assert seen[3] == f"{fleet.layout.host_folder('a')}/home"


def test_other_hosts_work_is_not_seen_as_ones_own(lab: LabFactory) -> None:
    fleet = lab(hosts=["a", "b"])
    on(fleet, "a", python(str(AGENT), "burn", "1"))
    time.sleep(0.3)  # /proc/stat is written anew ten times a second
    busy = {name: on(fleet, name, "head -1 /proc/stat").stdout.split()[1] for name in ("a", "b")}
    assert int(busy["a"]) > 70  # hundredths of a second
    assert int(busy["b"]) < 40


def test_a_quota_holds_and_can_be_changed_while_the_host_runs(lab: LabFactory) -> None:
    fleet = lab(hosts={"a": {"cores": 0.5, "memory": "128MiB"}})

    def share() -> float:
        used, wall = eval(on(fleet, "a", python(str(AGENT), "burn", "2")).stdout)  # noqa: S307 (two numbers)
        return float(used / wall)

    assert share() == pytest.approx(0.5, rel=0.1)
    fleet.set_host("a", cores=0.1)
    assert share() == pytest.approx(0.1, rel=0.15)
    assert fleet.status().hosts["a"].cores == pytest.approx(0.1)


def test_who_takes_more_memory_than_the_host_has_is_ended_and_nobody_else(lab: LabFactory) -> None:
    fleet = lab(hosts={"a": {"memory": "64MiB"}, "b": {"memory": "64MiB"}})
    assert on(fleet, "a", python("-c", "'x' * 10**9") + "; echo $?").stdout == "137\n"
    assert on(fleet, "a", "hostname").stdout == "a\n"
    assert on(fleet, "b", python("-c", "'x' * 10**7")).returncode == 0
    with pytest.raises(InputError, match="16"):
        fleet.set_host("a", memory="1MiB")


# --- links ---


def round_trip(fleet: Lab, source: str, target: str) -> float:
    """Median seconds."""
    address = fleet.layout.hosts[target].address
    with subprocess.Popen(
        start_words(fleet, target, python(str(AGENT), "serve", address)), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        answer = on(fleet, source, python(str(AGENT), "echo", address, "50"))
    return statistics.median(eval(answer.stdout))  # noqa: S307 (numbers)


def test_a_delay_is_what_a_round_trip_takes_and_can_be_changed_and_is_of_one_pair(lab: LabFactory) -> None:
    fleet = lab(hosts=["a", "b", "c"], link={"delay": "5ms"}, links=[{"between": ["a", "c"], "delay": "0s"}])
    assert round_trip(fleet, "a", "b") == pytest.approx(0.010, abs=0.002)
    assert round_trip(fleet, "a", "c") < 0.003
    fleet.set_link("a", "b", delay="20ms", one_way=True)
    assert round_trip(fleet, "a", "b") == pytest.approx(0.025, abs=0.002)


@pytest.mark.parametrize("loss", ["0%", "0.1%"])  # with loss, large frames are not allowed
def test_a_rate_is_what_a_transfer_gets(lab: LabFactory, loss: str) -> None:
    fleet = lab(hosts=["a", "b"])
    fleet.set_link("a", "b", rate="20mbit", loss=loss)
    size = 5_000_000
    address = fleet.layout.hosts["b"].address
    receive = "import socket,time; s=socket.create_server(('', 9001)); print('ready', flush=True); c,_=s.accept(); "
    receive += "t=time.time(); n=0\nwhile d:=c.recv(65536): n+=len(d)\nprint(n/(time.time()-t)*8/1e6)"
    send = f"import socket; c=socket.create_connection(({address!r}, 9001)); c.sendall(bytes({size}))"
    with subprocess.Popen(start_words(fleet, "b", python("-c", receive)), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        on(fleet, "a", python("-c", send))
        rate = float(server.stdout.readline())
    assert rate == pytest.approx(20 * 1448 / 1538, rel=0.1)
    lanes = {(lane.source, lane.target): lane for lane in fleet.status().links}
    assert bool(lanes["a", "b"].lost) == (loss != "0%")


def test_a_pulled_cable_is_silence_and_a_put_back_one_is_not(lab: LabFactory) -> None:
    fleet = lab(hosts=["a", "b"])
    fleet.unplug("a")
    assert fleet.status().hosts["a"].plugged is False
    with pytest.raises(TimeoutError):
        socket.create_connection((fleet.layout.hosts["a"].address, 22), timeout=0.5)
    assert on(fleet, "b", "hostname").stdout == "b\n"
    fleet.plug("a")
    assert on(fleet, "a", "hostname").stdout == "a\n"


def test_the_way_to_the_controller_alone_can_be_cut(lab: LabFactory) -> None:
    fleet = lab(hosts=["a", "b"])
    fleet.set_link("controller", "a", loss="100%")
    assert on(fleet, "a", "hostname").returncode == 255
    assert round_trip_from_b_works(fleet)


def round_trip_from_b_works(fleet: Lab) -> bool:
    code = f"import socket; print(socket.create_connection(({fleet.layout.hosts['a'].address!r}, 22), 3).recv(7))"
    return "SSH-2.0" in on(fleet, "b", python("-c", code)).stdout


# --- what befalls a host ---


def test_a_frozen_host_stands_still_and_goes_on_where_it_was(lab: LabFactory) -> None:
    fleet = lab(hosts=["a"])
    with subprocess.Popen(
        start_words(fleet, "a", "while :; do date +%s%N; sleep 0.05; done"), stdout=subprocess.PIPE
    ) as talk:
        assert talk.stdout is not None
        talk.stdout.readline()
        fleet.freeze("a")
        frozen = time.time()
        assert fleet.status().hosts["a"].state == "frozen"
        with socket.create_connection((fleet.layout.hosts["a"].address, 22), timeout=1) as sock:  # its kernel answers
            sock.settimeout(0.7)
            with pytest.raises(TimeoutError):
                sock.recv(1)
        freed = time.time()
        fleet.unfreeze("a")
        times = list(itertools.takewhile(lambda at: at < freed + 1, (int(line) / 1e9 for line in talk.stdout)))
        talk.kill()
    assert not [at for at in times if frozen + 0.1 < at < freed]
    assert [at for at in times if at >= freed]


def test_a_killed_host_says_nothing_to_anybody_and_forgets_all_but_its_files(lab: LabFactory) -> None:
    fleet = lab(hosts={"a": {"cores": 0.5, "memory": "128MiB"}, "ab": {}})
    boot = on(fleet, "a", "echo kept > ~/note; cat /proc/sys/kernel/random/boot_id").stdout
    on(fleet, "a", "setsid nohup sleep 1000 > /dev/null 2>&1 &")
    with socket.create_connection((fleet.layout.hosts["a"].address, 22), timeout=2) as sock:
        sock.recv(100)
        fleet.kill("a")
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):  # neither FIN nor RST
            sock.recv(100)
    assert fleet.status().hosts["a"].state == "off"
    with pytest.raises(InputError, match="a is off"):
        fleet.kill("a")
    fleet.start("a")  # though there is a network whose name begins like its own
    after = fleet.status().hosts["a"]
    assert (after.state, after.cores, after.memory) == ("on", 0.5, 128 * 2**20)
    assert on(fleet, "a", "cat ~/note; ps -e | grep -c sleep").stdout.split() == ["kept", "0"]
    assert on(fleet, "a", "cat /proc/sys/kernel/random/boot_id").stdout != boot
    with pytest.raises(InputError, match="on already"):
        fleet.start("a")


def test_a_start_that_was_broken_off_can_be_made_again(lab: LabFactory) -> None:
    fleet = lab(hosts=["a"])
    fleet.kill("a")
    machine.ip("netns", "add", str(fleet.layout.hosts["a"].network))  # so far it came
    fleet.start("a")
    assert on(fleet, "a", "hostname").stdout == "a\n"


def test_a_host_whose_sshd_ended_is_off_and_can_be_started(lab: LabFactory) -> None:
    fleet = lab(hosts=["a"])
    on(fleet, "a", "kill 1")
    deadline = time.monotonic() + 5
    while fleet.status().hosts["a"].state != "off":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    fleet.start("a")
    assert on(fleet, "a", "hostname").stdout == "a\n"


# --- the machine afterwards ---


def test_two_labs_do_not_meet(lab: LabFactory) -> None:
    one, two = lab(hosts=["a", "b"]), lab(hosts=["a"])
    assert one.layout.network != two.layout.network
    code = f"import socket; socket.create_connection(({two.layout.hosts['a'].address!r}, 22), 1)"
    assert "unreachable" in on(one, "a", python("-c", code)).stderr
    with pytest.raises(InputError, match="there are"):
        Lab.find()
    assert Lab.find(two.name).layout == two.layout
    one.down()
    assert left_of(one.name) == []
    assert on(two, "a", "hostname").stdout == "a\n"


def test_a_lab_of_the_same_name_or_network_is_refused(lab: LabFactory) -> None:
    fleet = lab(hosts=["a"])
    with pytest.raises(EdgesplitError, match="already"):
        Lab.up(make_scenario(fleet.name, hosts=["a"]))
    with pytest.raises(EdgesplitError, match="in use"):
        Lab.up(make_scenario("tother", hosts=["a"], network=fleet.layout.network))
    assert on(fleet, "a", "hostname").stdout == "a\n"


def test_a_lab_that_cannot_come_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need_lab()
    broken = tmp_path / "sshd"
    broken.write_text("#!/bin/sh\necho no such luck >&2; exit 1\n")
    broken.chmod(0o700)
    real = machine.tool
    monkeypatch.setattr(machine, "tool", lambda name: str(broken) if name == "sshd" else real(name))
    with pytest.raises(EdgesplitError, match="did not come up: no such luck"):
        Lab.up(make_scenario("tbroken", hosts=["a", "b"]))
    assert left_of("tbroken") == []


def test_hosts_that_are_not_booted_are_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    need_lab()
    real, fails = machine.python, ([sys.executable, "-c", "raise SystemExit('no process left')"], {})
    monkeypatch.setattr(machine, "python", lambda name, *words: fails if name == "boot" else real(name, *words))
    with pytest.raises(EdgesplitError, match="not booted: no process left"):
        Lab.up(make_scenario("tnoboot", hosts=["a"]))
    assert left_of("tnoboot") == []


def test_a_full_disk_is_said_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need_lab()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", tmp_path], check=True)
    try:
        monkeypatch.setattr(machine, "BASE", tmp_path)
        with pytest.raises(EdgesplitError, match=r"tfull did not come up: .*No space left"):
            Lab.up(make_scenario("tfull", hosts=["a", "b", "c", "d"]))
        assert left_of("tfull") == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_of_two_ups_at_once_one_comes_up_and_downs_at_once_are_no_error() -> None:
    with abused("tboth"):

        def one(_: int) -> str:
            try:
                return Lab.up(make_scenario("tboth", hosts=["a"])).name
            except EdgesplitError as error:
                return error.message

        with ThreadPoolExecutor(3) as pool:
            answers = sorted(pool.map(one, range(3)))
            list(pool.map(down, ["tboth"] * 3))
        assert answers[0] == "tboth"
        assert all("already" in answer for answer in answers[1:])
        assert left_of("tboth") == []


@contextlib.contextmanager
def abused(name: str) -> Iterator[None]:
    need_lab()
    try:
        yield
    finally:
        down(name)


@pytest.mark.parametrize("after", [0.15, 0.35, 0.45, 0.55, 0.65, 0.8])
def test_down_clears_up_after_an_up_that_was_killed(tmp_path: Path, after: float) -> None:
    """Seconds after the start of the command; how far it comes depends on the machine."""
    file = tmp_path / "lab.yaml"
    file.write_text("name: tkilled\nhosts: {a: {memory: 64MiB}, b: {memory: 64MiB}, c: {memory: 64MiB}}\n")
    with abused("tkilled"):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgesplit", "lab", "up", str(file)], stdout=subprocess.DEVNULL
        )
        time.sleep(after)
        process.kill()
        process.wait()
        time.sleep(0.2)  # what was just being started may come up
        down("tkilled")
        assert left_of("tkilled") == []


def test_a_switch_that_was_killed_is_told_and_cleared_up(lab: LabFactory) -> None:
    fleet = lab(hosts=["a", "b"])
    switch = fleet.status().switch
    assert switch is not None
    os.kill(switch.pid, signal.SIGKILL)
    assert fleet.status().switch is None
    assert fleet.status().meter
    with pytest.raises(EdgesplitError, match="switch does not answer"):
        fleet.set_link("a", "b", delay=1)


def test_a_meter_that_was_killed_is_told(lab: LabFactory) -> None:
    fleet = lab(hosts=["a"])
    assert fleet.status().meter
    (meter,) = [int(line.split()[0]) for line in left_of(fleet.name) if "edgesplit.lab.meter" in line]
    os.kill(meter, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while fleet.status().meter:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert on(fleet, "a", "hostname").stdout == "a\n"


def test_a_lab_whose_folder_was_removed_by_hand_is_cleared_up(lab: LabFactory) -> None:
    fleet = lab(hosts=["a", "b"])
    shutil.rmtree(fleet.layout.folder)
    assert fleet.name in machine.labs()
    with pytest.raises(EdgesplitError, match="only leftovers"):
        Lab.find(fleet.name)
    deadline = time.monotonic() + 5
    while Path(f"/sys/class/net/es-{fleet.name}").exists():  # the switch has seen that nobody needs it
        assert time.monotonic() < deadline
        time.sleep(0.05)
    fleet.down()
    assert left_of(fleet.name) == []


def test_down_ends_a_lab_in_whatever_state_its_hosts_are(lab: LabFactory) -> None:
    fleet = lab(hosts=["frozen", "off", "unplugged", "busy"])
    fleet.freeze("frozen")
    fleet.kill("off")
    fleet.unplug("unplugged")
    on(fleet, "busy", "for i in 1 2 3 4; do (trap '' TERM HUP INT; while :; do :; done) > /dev/null 2>&1 & done")
    start = time.monotonic()
    fleet.down()
    assert time.monotonic() - start < 5
    assert left_of(fleet.name) == []
