"""From a scenario to a running lab; all of it, or nothing. And one of its hosts powered on again.

Must not know: how a running lab is changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from edgesplit.errors import EdgesplitError
from edgesplit.lab import machine
from edgesplit.lab.boot import VIEWS
from edgesplit.lab.cgroup import Group, described, hierarchies
from edgesplit.lab.control import Act, SwitchClient
from edgesplit.lab.down import down
from edgesplit.lab.keys import make_key
from edgesplit.lab.layout import Layout, Place, choose_network, routes
from edgesplit.lab.meter import first_texts
from edgesplit.lab.scenario import Scenario

SSHD_SECONDS = 30.0  # a host of a hundredth of a core takes five
SHADOW = "root:*:::::::\n"  # a password that fits nothing, but not locked
READY = b"Server listening"
DAEMONS = "daemons"  # the group of the lab's own processes: switch and meter


def up(scenario: Scenario) -> Layout:
    """Raises EdgesplitError; then nothing is left."""
    machine.check(scenario)
    try:
        layout = _claim(scenario)
        try:
            _build(layout)
        except BaseException:
            down(layout.name)
            raise
    except OSError as error:
        raise EdgesplitError(f"the lab {scenario.name} did not come up: {error}") from error
    return layout


def _claim(scenario: Scenario) -> Layout:
    """A name, a network and a folder nobody else has."""
    with machine.alone():
        if scenario.name in machine.labs():
            text = f"there is a lab {scenario.name} already, or something left of it"
            raise EdgesplitError(text, f"edgesplit lab down {scenario.name}")
        others = [layout.network for name in machine.folders() if (layout := machine.read_layout(name))]
        network = choose_network(scenario.network, [*others, *routes(Path("/proc/net/route").read_text())])
        if network is None:
            text = f"the network {scenario.network or '10.77.0.0/16'} is in use on this machine"
            raise EdgesplitError(text, "give the lab another one: `network: 10.78.0.0/24`")
        folder = machine.BASE / scenario.name
        layout = Layout(scenario=scenario, network=network, folder=str(folder))
        folder.mkdir(mode=0o700)
        try:
            (folder / machine.LAYOUT).write_text(layout.to_json())
        except OSError:
            shutil.rmtree(folder)
            raise
    return layout


def _build(layout: Layout) -> None:
    groups = _make_groups(layout)
    _write_files(layout, groups)
    machine.ip("-batch", "-", lines="".join(f"netns add {place.network}\n" for place in layout.hosts.values()))
    tracked = described(groups[""])
    _start(layout, "switch", {"socket": str(socket_of(layout)), "group": tracked})
    with SwitchClient(socket_of(layout)) as switch:
        links = [
            {"act": "link", "source": source, "target": target, "link": link.model_dump()}
            for source, target, link in layout.scenario.directions()
        ]
        switch.ask([*links, *(attach(place) for place in layout.places.values())])
    for place in layout.places.values():
        set_up_interface(layout, place)
    hosts = [{"views": _views(layout, name), "group": described(groups[name])} for name in layout.hosts]
    _start(layout, "meter", {"folder": layout.folder, "group": tracked, "hosts": hosts})
    boot(layout, layout.hosts, groups)


def _make_groups(layout: Layout) -> dict[str, Group]:
    """By host; under "" that of the lab's own processes."""
    tree = hierarchies()
    top = tree.group(layout.group)
    top.make()
    top.hand_down()
    top.weigh(os.cpu_count() or 1)
    groups = {name: tree.group(layout.group, group_name(name)) for name in layout.hosts}
    for name, group in groups.items():
        host = layout.scenario.hosts[name]
        make_group(group, host.cores, host.memory)
    daemons = tree.tracking(layout.group, DAEMONS)
    daemons.make()
    return {**groups, "": daemons}


def group_name(host: str) -> str:
    return f"host-{host}"


def make_group(group: Group, cores: float, memory: int) -> None:
    group.make()
    group.limit_cores(cores)
    group.limit_memory(memory)


def _write_files(layout: Layout, groups: dict[str, Group]) -> None:
    make_key(Path(layout.key))
    host_keys = {}
    for name in layout.hosts:
        folder = Path(layout.host_folder(name))
        for inner in ("home", "work", "views", "sys"):
            (folder / inner).mkdir(mode=0o700, parents=True)
        host_keys[name] = make_key(folder / "host_key")
        (folder / "sshd_config").write_text(layout.sshd_config(name))
        first = first_texts(groups[name].usage(), groups[name].memory())
        for view, text in {**dict.fromkeys(VIEWS, ""), **first, "shadow": SHADOW}.items():
            (folder / "views" / view).write_text(text)
    Path(layout.known_hosts).write_text(layout.known_hosts_text(host_keys))
    Path(layout.folder, "ssh_config").write_text(layout.ssh_config())
    Path(layout.inventory_file).write_text(yaml.safe_dump(layout.inventory(sys.executable), sort_keys=False))


def _start(layout: Layout, module: str, told: dict[str, Any]) -> None:
    """A process of the lab's own; it is ready when this returns."""
    log = Path(layout.folder, f"{module}.log")
    command, environment = machine.python(module, json.dumps(told))
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, check=False
        )
    if done.returncode:
        raise EdgesplitError(f"the lab's {module} did not start: {_end_of(log)}")


def socket_of(layout: Layout) -> Path:
    return Path(layout.folder, "switch.sock")


def attach(place: Place) -> Act:
    """For the switch: take the other end of its cable."""
    fields = {"port": place.name, "mac": place.mac, "network": place.network, "interface": place.interface}
    return {"act": "attach", **fields}


def set_up_interface(layout: Layout, place: Place) -> None:
    where = ["-n", place.network] if place.network else []
    machine.ip(*where, "-batch", "-", lines=layout.interface_commands(place))


def boot(layout: Layout, names: Iterable[str], groups: dict[str, Group]) -> None:
    """Power on; return when every one listens."""
    names = list(names)
    for name in names:
        Path(_views(layout, name), "boot_id").write_text(f"{uuid.uuid4()}\n")
    command, environment = machine.python("boot")
    hosts = [_to_boot(layout, name, groups[name]) for name in names]
    done = subprocess.run(
        command, input=json.dumps(hosts), env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise EdgesplitError(f"the hosts were not booted: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    deadline = time.monotonic() + SSHD_SECONDS
    for name in names:
        _wait_for_sshd(layout, name, groups[name], deadline)


def _to_boot(layout: Layout, name: str, group: Group) -> dict[str, Any]:
    folder = layout.host_folder(name)
    return {
        "name": name,
        "group": described(group),
        "network": layout.hosts[name].network,
        "views": _views(layout, name),
        "sys": f"{folder}/sys",
        "log": _log(layout, name),
        "command": [machine.tool("sshd"), "-D", "-e", "-f", f"{folder}/sshd_config"],
    }


def _wait_for_sshd(layout: Layout, name: str, group: Group, deadline: float) -> None:
    log = Path(_log(layout, name))
    while READY not in log.read_bytes():
        if not group.processes():
            raise EdgesplitError(f"{name}: the host did not come up: {_end_of(log)}")
        if time.monotonic() > deadline:
            raise EdgesplitError(f"{name}: sshd does not listen after {SSHD_SECONDS:g} s: {_end_of(log)}")
        time.sleep(0.005)


def _views(layout: Layout, name: str) -> str:
    return f"{layout.host_folder(name)}/views"


def _log(layout: Layout, name: str) -> str:
    return f"{layout.host_folder(name)}/sshd.log"


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    return lines[-1]
