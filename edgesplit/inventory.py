"""THE HOSTS: what the user has. An inventory file (YAML), ours or Ansible's -> Inventory.

Must not know: any plan, nor how a host is reached; it only says where.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from edgesplit import ansible, packages
from edgesplit.document import load
from edgesplit.values import Name, Place, Port, Size, Value

DATA_PORT = 7431  # unassigned at IANA (November 2026); any free port does


def _option(text: str) -> str:
    keyword, separator, _ = text.partition("=")
    if not separator or not keyword.strip().isalnum():
        raise ValueError("expected an option of ssh_config as Keyword=value")
    return text


Option = Annotated[str, AfterValidator(_option)]


class SshTarget(Value):
    """Where sshd is. `host` may be an alias of ~/.ssh/config; what is left out comes from there, as for `ssh host`."""

    host: str
    user: str | None = None
    port: Port | None = None
    key: str | None = None
    known_hosts: str | None = None
    config: str | None = None  # in place of ~/.ssh/config
    options: tuple[Option, ...] = ()  # Keyword=value, as for `ssh -o`

    @field_validator("options", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value  # `defaults` were laid under it: no longer JSON


class DataPlane(Value):
    """Where the runners reach each other: `address` defaults to the ssh host (127.0.0.1 for a local host)."""

    address: Place | None = None
    port: Port = DATA_PORT


def _address(text: str) -> str:
    if not text.isprintable() or " " in text or "://" not in text:
        raise ValueError("expected an address such as https://...")
    return text


Address = Annotated[str, AfterValidator(_address)]


class Packages(Value):
    """How a host without a `python` of its own gets one with the runner's packages. What is left out: as pip is
    configured there."""

    python: str | None = None  # what the environment is made from; None: the first of python3, python3.14 ... 3.10
    index: Address | None = None  # in place of the one that pip would ask
    extra_index: Address | None = None  # asked too, such as one of torch for CPUs, or for another CUDA
    wheels: str | None = None  # a folder here: the host is sent its packages from it, and asks no index

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in self if value is not None)


class HostSpec(Value):
    """One machine. Every field has a default but the ssh target of an ssh host."""

    connection: Literal["ssh", "local"] = "ssh"
    ssh: SshTarget | None = None
    trusted: bool = False
    memory: Size | None = None  # cap on weights + KV cache + workspace; None: what is free
    cores: Annotated[int, Field(ge=1)] | None = None  # cap on the runner's threads; None: what the host gives
    data: DataPlane = DataPlane()
    python: str | None = None  # None: an environment made for it; of a local host, this very interpreter
    packages: Packages = Packages()
    service: Literal["systemd"] | None = None  # what starts the runner again, also after a reboot
    work: str = "~/.edgesplit"
    labels: dict[str, str] = Field(default_factory=dict)

    @field_validator("ssh", mode="before")
    @classmethod
    def _alias(cls, value: Any) -> Any:
        return {"host": value} if isinstance(value, str) else value

    @field_validator("work")
    @classmethod
    def _anywhere(cls, value: str) -> str:
        if value.startswith(("/", "~/")):
            return value.rstrip("/")
        raise ValueError("expected a path that begins with / or ~/, the same wherever a login starts")

    @model_validator(mode="after")
    def _target(self) -> HostSpec:
        if self.connection == "ssh" and self.ssh is None:
            raise ValueError("an ssh host needs `ssh`: an alias of ~/.ssh/config, or host, user, port and key")
        if self.connection == "local" and self.ssh is not None:
            raise ValueError("a local host has no `ssh`")
        return self

    @property
    def interpreter(self) -> str:
        """The Python that runs the runner; it has the runner's packages."""
        return self.python or (f"{self.environment}/bin/python" if self.environment else sys.executable)

    @property
    def environments(self) -> str:
        """The folder of all environments that were made below `work`. No deployment can be called so."""
        return f"{self.work}/.python"

    @property
    def environment(self) -> str | None:
        """The one that is made for this host; None where it needs none."""
        if self.python is not None or self.connection == "local":
            return None
        return f"{self.environments}/{packages.key(self.packages.sources)}"

    @property
    def data_address(self) -> str:
        if self.data.address is not None:
            return self.data.address
        return "127.0.0.1" if self.ssh is None else self.ssh.host


class Inventory(Value):
    """hosts: name -> HostSpec, in the file's order."""

    DEFAULTS_OF: ClassVar[str] = "hosts"  # the loader reads it

    hosts: Annotated[dict[Name, HostSpec], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """`defaults:` are laid under every host, mapping by mapping."""
        if not isinstance(data, dict) or not isinstance(data.get("defaults", {}), dict | None):
            return data
        rest = {key: value for key, value in data.items() if key != "defaults"}
        if isinstance(data.get("hosts"), dict):
            base = data.get("defaults") or {}
            rest["hosts"] = {name: _over(base, {} if host is None else host) for name, host in data["hosts"].items()}
        return rest

    @model_validator(mode="after")
    def _distinct(self) -> Inventory:
        taken: dict[tuple[str, int], str] = {}
        folders: dict[tuple[SshTarget | None, str], str] = {}
        for name, host in self.hosts.items():
            here = (host.ssh, host.work)
            if here in folders:
                raise ValueError(
                    f"hosts {folders[here]} and {name} share the work folder {host.work}; give each its own"
                )
            folders[here] = name
            place = (host.data_address, host.data.port)
            if place in taken:
                raise ValueError(
                    f"hosts {taken[place]} and {name} share the data-plane address {place[0]}:{place[1]}; "
                    "give each its own data.port or data.address"
                )
            taken[place] = name
        return self

    @property
    def trusted(self) -> frozenset[str]:
        return frozenset(name for name, host in self.hosts.items() if host.trusted)


def _over(base: Any, top: Any) -> Any:
    if isinstance(base, dict) and isinstance(top, dict):
        return {**base, **{key: _over(base.get(key), value) for key, value in top.items()}}
    return base if top is None else top


def load_inventory(path: Path) -> Inventory:
    """Raises InputError listing every mistake with file, line and key."""
    return load(path, Inventory, lambda data: ansible.read(data) if ansible.is_ansible(data) else None)
