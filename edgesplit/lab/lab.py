"""A running lab: its hosts and links changed, disturbed and looked at.

What is so now is asked of Linux and of the switch, never remembered: any process can go on where another stopped.
Must not know: how a lab is put together (up.py) or taken apart (down.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from edgesplit.errors import EdgesplitError, InputError
from edgesplit.lab import machine, up
from edgesplit.lab.cgroup import Group, end, hierarchies
from edgesplit.lab.control import Act, SwitchClient, SwitchGone
from edgesplit.lab.down import down
from edgesplit.lab.layout import Layout
from edgesplit.lab.scenario import LabHost, LinkSpec, Scenario, mistakes
from edgesplit.values import Value


class HostStatus(Value):
    """`off`: without power. Seconds and bytes since it was powered on."""

    address: str
    state: Literal["on", "frozen", "off"]
    plugged: bool
    cores: float
    memory: int
    memory_used: int
    cpu_seconds: float
    throttled_seconds: float


class LaneStatus(LinkSpec):
    """One direction of a link, and what went through it."""

    source: str
    target: str
    frames: int
    bytes: int
    lost: int
    dropped: int

    @property
    def limited(self) -> bool:
        return bool(self.delay or self.rate or self.loss)


class SwitchStatus(Value):
    """`realtime`: it goes before ordinary processes; without that, links are less exact on a busy machine."""

    pid: int
    realtime: bool
    cpu_seconds: float


class LabStatus(Value):
    name: str
    folder: str
    inventory: str
    network: str
    hosts: dict[str, HostStatus]
    links: tuple[LaneStatus, ...]
    switch: SwitchStatus | None  # None: it is gone, and with it every link
    meter: bool  # what keeps the hosts' /proc true; without it they read what was so when it ended


class Lab:
    """One lab that is up."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        tree = hierarchies().found(layout.group)
        if not tree:
            raise EdgesplitError(f"the lab {layout.name} is not up", f"edgesplit lab down {layout.name}")
        self._tree = tree

    @classmethod
    def up(cls, scenario: Scenario) -> Lab:
        """Raises EdgesplitError; then nothing is left."""
        return cls(up.up(scenario))

    @classmethod
    def find(cls, name: str | None = None) -> Lab:
        """The lab of this name, or the only one there is. Raises InputError."""
        machine.need_root()
        chosen = machine.the_one(name)
        layout = machine.read_layout(chosen)
        if layout is None:
            raise EdgesplitError(f"of the lab {chosen}, only leftovers are there", f"edgesplit lab down {chosen}")
        return cls(layout)

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def inventory(self) -> Path:
        return Path(self.layout.inventory_file)

    def down(self) -> None:
        down(self.name)

    # --- links ---

    def set_link(self, a: str, b: str, *, one_way: bool = False, **changes: Any) -> None:
        """`delay`, `rate`, `loss`: values or texts such as "20ms"; what is not named stays. From the next frame on."""
        try:
            self.layout.scenario.check_pair(a, b)
            LinkSpec.model_validate(changes)
            with self._switch() as switch:
                now = _links(switch)
                pairs = [(a, b)] if one_way else [(a, b), (b, a)]
                specs = {pair: LinkSpec.model_validate({**now.get(pair, {}), **changes}) for pair in pairs}
                switch.ask([_link(*pair, spec) for pair, spec in specs.items()])
        except ValidationError as error:
            raise InputError(mistakes(error)) from error
        except ValueError as error:
            raise InputError(str(error)) from error

    def unplug(self, host: str) -> None:
        """Pull its cable: silence in both directions, to the controller too."""
        self._plug(host, plugged=False)

    def plug(self, host: str) -> None:
        self._plug(host, plugged=True)

    def _plug(self, host: str, *, plugged: bool) -> None:
        self._need(host, on=True)
        with self._switch() as switch:
            switch.ask([{"act": "plug", "port": host, "plugged": plugged}])

    # --- hosts ---

    def set_host(self, host: str, *, cores: float | None = None, memory: int | str | None = None) -> None:
        """From now on. Raises EdgesplitError where more memory than that is in use; then nothing has changed."""
        group = self._group(host)
        try:
            wanted = LabHost.model_validate(
                {key: value for key, value in {"cores": cores, "memory": memory}.items() if value is not None}
            )
        except ValidationError as error:
            raise InputError(mistakes(error)) from error
        machine.check_cores(host, wanted)
        if memory is not None:  # first what may be refused
            group.limit_memory(wanted.memory)
        if cores is not None:
            group.limit_cores(wanted.cores)

    def freeze(self, host: str) -> None:
        """Its processes stand still; its kernel goes on answering for them, as that of a hung machine does."""
        self._need(host, on=True).freeze(frozen=True)

    def unfreeze(self, host: str) -> None:
        self._need(host, on=True).freeze(frozen=False)

    def kill(self, host: str) -> None:
        """Power loss: no process says goodbye, no connection is closed. Its files stay."""
        self._power_off(host, self._need(host, on=True))

    def start(self, host: str) -> None:
        """Power on again, with the limits and links it had; return when it listens."""
        group, place = self._need(host, on=False), self.layout.hosts[host]
        if place.network in machine.networks(str(place.network)):  # its first process ended by itself
            self._power_off(host, group)
        machine.ip("netns", "add", str(place.network))
        with self._switch() as switch:
            switch.ask([up.attach(place)])
        up.set_up_interface(self.layout, place)
        up.boot(self.layout, [host], {host: group})

    def _power_off(self, host: str, group: Group) -> None:
        """The network goes first: the kernel says goodbye for processes that are killed."""
        with self._switch() as switch:
            switch.ask([{"act": "detach", "port": host}])
        cores, memory = group.cores(), group.memory()
        end([group])
        group.remove()
        up.make_group(group, cores, memory)  # anew, so that it counts from nothing, as a machine does
        machine.ip("netns", "del", str(self.layout.hosts[host].network))

    # --- a look ---

    def status(self) -> LabStatus:
        state: dict[str, Any] = {"ports": {}, "lanes": []}
        switch: SwitchStatus | None = None
        try:
            with self._switch() as client:
                (state,) = client.ask([{"act": "state"}])
            switch = SwitchStatus.model_validate({key: state[key] for key in SwitchStatus.model_fields})
        except SwitchGone:
            pass
        return LabStatus(
            name=self.name,
            folder=self.layout.folder,
            inventory=self.layout.inventory_file,
            network=self.layout.network,
            hosts={name: self._host_status(name, state["ports"]) for name in self.layout.hosts},
            links=tuple(LaneStatus.model_validate(lane) for lane in state["lanes"]),
            switch=switch,
            meter=self._metered(switch),
        )

    def _metered(self, switch: SwitchStatus | None) -> bool:
        """Beside the switch, only the meter is in the lab's own group."""
        return bool(set(self._inner(up.DAEMONS).processes()) - {switch.pid if switch else None})

    def _host_status(self, name: str, ports: Mapping[str, bool]) -> HostStatus:
        group = self._group(name)
        usage = group.usage()
        return HostStatus(
            address=self.layout.hosts[name].address,
            state="off" if not group.processes() else "frozen" if group.frozen() else "on",
            plugged=ports.get(name, False),
            cores=group.cores(),
            memory=group.memory(),
            memory_used=usage.memory,
            cpu_seconds=sum(usage.cpu),
            throttled_seconds=usage.throttled,
        )

    # --- the parts ---

    def _switch(self) -> SwitchClient:
        return SwitchClient(up.socket_of(self.layout))

    def _group(self, host: str) -> Group:
        if host not in self.layout.hosts:
            raise InputError(
                f"there is no host {host} in the lab {self.name}", f"it has {', '.join(self.layout.hosts)}"
            )
        return self._inner(up.group_name(host))

    def _inner(self, name: str) -> Group:
        """A group of the lab's own, below its top one."""
        return type(self._tree[0])({key: path / name for each in self._tree for key, path in each.folders.items()})

    def _need(self, host: str, *, on: bool) -> Group:
        group = self._group(host)
        if bool(group.processes()) == on:
            return group
        if on:
            raise InputError(f"{host} is off", f"edgesplit lab start {host}")
        raise InputError(f"{host} is on already", f"edgesplit lab kill {host}")


def _links(switch: SwitchClient) -> dict[tuple[str, str], dict[str, Any]]:
    (state,) = switch.ask([{"act": "state"}])
    fields = LinkSpec.model_fields
    return {(lane["source"], lane["target"]): {key: lane[key] for key in fields} for lane in state["lanes"]}


def _link(source: str, target: str, spec: LinkSpec) -> Act:
    return {"act": "link", "source": source, "target": target, "link": spec.model_dump()}
