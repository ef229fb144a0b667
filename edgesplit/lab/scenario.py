"""A LAB: which hosts to imitate, and the links between them. A lab file (YAML) -> Scenario.

Must not know: how Linux does it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from edgesplit.document import load, worded
from edgesplit.errors import InputError
from edgesplit.units import parse_rate
from edgesplit.values import Name, Port, Size, Time, Value

CONTROLLER = "controller"  # the machine itself, as one end of a link
MOST_HOSTS = 32  # a link has two directions: a thousand of them then
LEAST_MEMORY = 16 * 2**20  # sshd and a login take this much
LEAST_CORES = 0.01  # a login then takes seconds
HINT = "the annotated plans/lab/five.yaml shows every key"

_TC_RATE = re.compile(r"\s*([0-9.]+)\s*([kmg]?)bit\s*", re.IGNORECASE)
_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*%\s*")


def link_rate(text: object) -> float | None:
    """Bytes per second from "10Mbit/s", or "10mbit" as `tc` has it; None from "unlimited". Raises ValueError."""
    if text is None or text == "unlimited":
        return None
    if isinstance(text, str) and (match := _TC_RATE.fullmatch(text)):
        text = f"{match[1]}{'k' if match[2].lower() == 'k' else match[2].upper()}bit/s"
    rate = parse_rate(text)
    if rate <= 0:
        raise ValueError('expected a rate above 0; --loss 100% cuts a link, "unlimited" frees it')
    return rate


def share(text: object) -> float:
    """0.01 from "1%", or from 0.01. Raises ValueError."""
    if isinstance(text, str) and (match := _PERCENT.fullmatch(text)):
        text = float(match[1]) / 100
    if isinstance(text, int | float) and not isinstance(text, bool) and 0 <= text <= 1:
        return float(text)
    raise ValueError('expected a share such as "1%", from 0% to 100%')


Rate = Annotated[float | None, BeforeValidator(link_rate)]
Share = Annotated[float, BeforeValidator(share)]


class LinkSpec(Value):
    """One direction of a link: how long a bit is under way, how many leave per second, how many frames are lost."""

    delay: Time = 0.0
    rate: Rate = None
    loss: Share = 0.0


class LinkBetween(LinkSpec):
    """A link that differs from the lab's own `link`; what is left out is as there."""

    between: Annotated[tuple[str, ...], Field(min_length=2, max_length=2)]
    one_way: bool = False  # from the first to the second only


class Listed(Value):
    """What the inventory says of a host, beside where it is and how to log in: those are the lab's."""

    trusted: bool = False
    memory: Size | None = None
    cores: Annotated[int, Field(ge=1)] | None = None  # None: the whole cores of its quota, one at least
    port: Port = 7431
    labels: dict[str, str] = Field(default_factory=dict)


class LabHost(Value):
    """One host: what its processes may take together."""

    cores: Annotated[float, Field(ge=LEAST_CORES)] = 1.0
    memory: Annotated[Size, Field(ge=LEAST_MEMORY)] = 2**30
    inventory: Listed = Listed()


class Scenario(Value):
    """A fleet in a box."""

    name: Annotated[str, Field(max_length=12)]
    network: str | None = None  # None: the first of 10.77.0.0/24, 10.77.1.0/24 ... that is free
    hosts: Annotated[dict[Name, LabHost], Field(min_length=1, max_length=MOST_HOSTS)]
    link: LinkSpec = LinkSpec()
    links: tuple[LinkBetween, ...] = ()

    @field_validator("name")
    @classmethod
    def _short(cls, value: str) -> str:
        if re.fullmatch(r"[a-z][a-z0-9]{0,11}", value):  # `es-NAME` is an interface: Linux takes 15 characters
            return value
        raise ValueError("expected at most 12 small letters and digits, a letter first")

    @field_validator("network")
    @classmethod
    def _network(cls, value: str | None) -> str | None:
        if value is not None:
            network = ipaddress.IPv4Network(value)
            if not network.is_private or network.num_addresses < MOST_HOSTS + 3:
                raise ValueError('expected a private network with room for the hosts, such as "10.77.0.0/24"')
        return value

    @model_validator(mode="after")
    def _known(self) -> Scenario:
        if CONTROLLER in self.hosts:
            raise ValueError(f"a host cannot be called {CONTROLLER}: that is this machine")
        seen: set[tuple[str, str]] = set()
        for link in self.links:
            self.check_pair(*link.between)
            for pair in _directions(link):
                if pair in seen:
                    raise ValueError(f"the link {pair[0]} - {pair[1]} is given twice")
                seen.add(pair)
        return self

    def check_pair(self, source: str, target: str) -> None:
        """Raises ValueError."""
        for name in (source, target):
            if name not in self.hosts and name != CONTROLLER:
                raise ValueError(f"there is no host {name}; the lab has {', '.join(self.hosts)}, and {CONTROLLER}")
        if source == target:
            raise ValueError(f"a link needs two ends, not {source} twice")

    def directions(self) -> Iterator[tuple[str, str, LinkSpec]]:
        """(source, target, link) of every direction that is not as fast as the machine allows."""
        base = self.link.model_dump()
        found = {(a, b): base for a in self.hosts for b in self.hosts if a != b}
        for link in self.links:
            said = link.model_dump(include=link.model_fields_set & set(LinkSpec.model_fields))
            for pair in _directions(link):
                found[pair] = {**found.get(pair, {}), **said}
        for (source, target), values in found.items():
            yield source, target, LinkSpec.model_validate(values)


def _directions(link: LinkBetween) -> list[tuple[str, str]]:
    a, b = link.between
    return [(a, b)] if link.one_way else [(a, b), (b, a)]


def load_scenario(path: Path, **changes: Any) -> Scenario:
    """Raises InputError listing every mistake with file, line and key. `changes` go before what the file says."""
    try:
        scenario = load(path, Scenario)
    except InputError as error:
        raise InputError(error.message, HINT if "example.yaml" in error.hint else error.hint) from error
    if not changes:
        return scenario
    try:
        return Scenario.model_validate({**scenario.model_dump(exclude_unset=True), **changes})
    except ValidationError as error:
        raise InputError(mistakes(error)) from error


def mistakes(error: ValidationError) -> str:
    """Of values that were given one by one, not in a file."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {worded(each)}" for each in error.errors())
