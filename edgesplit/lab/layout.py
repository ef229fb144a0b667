"""What each thing of a lab is called, where it is, and the texts of its files. All of it follows from the scenario.

Must not know: how to write a file or make a namespace.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from edgesplit.lab.scenario import CONTROLLER, Scenario
from edgesplit.values import Value

PREFIX = "eslab-"  # of control groups and network namespaces: by it, leftovers are found
INTERFACE = "es-"  # of the machine's own interface; Linux allows 15 characters
INSIDE = "eth0"  # a host's interface
CANDIDATES = [f"10.77.{number}.0/24" for number in range(256)]
SSH_PORT = 22


class Place(Value):
    """One port of the switch: a host's, or the controller's."""

    name: str
    address: str
    mac: str
    network: str | None  # the namespace; None: the machine's own
    interface: str


class Layout(Value):
    scenario: Scenario
    network: str
    folder: str

    def to_json(self) -> str:
        """Without what was left out: a link that leaves its delay out has the lab's."""
        return self.model_dump_json(indent=2, exclude_unset=True)

    @property
    def name(self) -> str:
        return self.scenario.name

    @property
    def group(self) -> str:
        return PREFIX + self.name

    @property
    def controller(self) -> Place:
        return self._place(CONTROLLER, 1, None, INTERFACE + self.name)

    @property
    def hosts(self) -> dict[str, Place]:
        return {
            name: self._place(name, number, f"{PREFIX}{self.name}-{name}", INSIDE)
            for number, name in enumerate(self.scenario.hosts, start=2)
        }

    @property
    def places(self) -> dict[str, Place]:
        return {CONTROLLER: self.controller, **self.hosts}

    def _place(self, name: str, number: int, network: str | None, interface: str) -> Place:
        address = ipaddress.IPv4Network(self.network)[number]
        mac = ":".join(f"{byte:02x}" for byte in (0x02, 0xE5, *address.packed))  # 02: made up, nobody's
        return Place(name=name, address=str(address), mac=mac, network=network, interface=interface)

    # --- files ---

    def host_folder(self, name: str) -> str:
        return f"{self.folder}/hosts/{name}"

    @property
    def key(self) -> str:
        return f"{self.folder}/key"

    @property
    def known_hosts(self) -> str:
        return f"{self.folder}/known_hosts"

    def interface_commands(self, place: Place) -> str:
        """For `ip -batch`. Everybody's address is known beforehand: a cut link is silence, not a failed ARP request."""
        device, length = place.interface, ipaddress.IPv4Network(self.network).prefixlen
        lines = [
            *(["link set lo up"] if place.network else []),
            f"link set {device} address {place.mac} addrgenmode none",
            f"link set {device} up",
            f"addr add {place.address}/{length} dev {device}",
        ]
        for other in self.places.values():
            if other != place:
                lines.append(f"neigh add {other.address} lladdr {other.mac} nud permanent dev {device}")
        return "\n".join(lines) + "\n"

    def sshd_config(self, name: str) -> str:
        """Nothing of the machine's own sshd takes part: no PAM, which may move a login out of its control group."""
        folder = self.host_folder(name)
        settings = {
            "Port": SSH_PORT,
            "ListenAddress": self.hosts[name].address,
            "HostKey": f"{folder}/host_key",
            "AuthorizedKeysFile": f"{self.key}.pub",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "UseDNS": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "PermitUserRC": "no",
            "MaxStartups": 100,
            "MaxSessions": 100,
            "Subsystem": "sftp internal-sftp",
            "SetEnv": f"HOME={folder}/home",
        }
        return "".join(f"{key} {value}\n" for key, value in settings.items())

    def known_hosts_text(self, host_keys: Mapping[str, str]) -> str:
        return "".join(f"{self.hosts[name].address} {key}\n" for name, key in host_keys.items())

    def ssh_config(self) -> str:
        """For people: `ssh -F FILE NAME`."""
        common = (
            f"  User root\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n"
        )
        return "".join(f"Host {name}\n  HostName {place.address}\n{common}" for name, place in self.hosts.items())

    @property
    def inventory_file(self) -> str:
        return f"{self.folder}/inventory.yaml"

    def inventory(self, python: str) -> dict[str, object]:
        """The inventory as a user would write it."""
        return {"hosts": {name: self._listed(name, python) for name in self.scenario.hosts}}

    def _listed(self, name: str, python: str) -> dict[str, object]:
        host = self.scenario.hosts[name]
        listed = host.inventory
        spec: dict[str, object] = {
            "ssh": {
                "host": self.hosts[name].address,
                "user": "root",
                "port": SSH_PORT,
                "key": self.key,
                "known_hosts": self.known_hosts,
            },
            "trusted": listed.trusted,
            "cores": listed.cores or max(1, int(host.cores)),
            "data": {"port": listed.port},
            "python": python,
            "work": f"{self.host_folder(name)}/work",
            "labels": listed.labels,
        }
        return spec if listed.memory is None else {**spec, "memory": listed.memory}


def choose_network(wanted: str | None, taken: Iterable[str]) -> str | None:
    """The network asked for, or the first candidate, if no taken one overlaps it; None where there is none."""
    used = [ipaddress.IPv4Network(text, strict=False) for text in taken]
    for text in [wanted] if wanted else CANDIDATES:
        if not any(ipaddress.IPv4Network(text).overlaps(network) for network in used):
            return text
    return None


def routes(text: str) -> list[str]:
    """The networks of /proc/net/route, without the default route. Its numbers are little-endian hex."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        target, mask = (ipaddress.IPv4Address(bytes.fromhex(words[column])[::-1]) for column in (1, 7))
        if int(mask):
            found.append(f"{target}/{mask}")
    return found
