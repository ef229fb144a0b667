"""Keys to a deployment's API: made here, kept by their owner, only their hashes on the entry host.

Must not know: what is asked with a key, how its name is told.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from edgesplit.broadcast.note import signature
from edgesplit.errors import DeployError, InputError
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host
from edgesplit.runner.apikeys import FOLDER, fresh, hashed
from edgesplit.runner.manifest import Service

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ApiKey:
    """What a host knows of a key."""

    name: str
    created: str
    sha256: str


def api_keys(host: Host, folder: str) -> list[ApiKey]:
    """Those that count, the oldest first. Raises HostError."""
    lines = [line.partition(" ") for line in host.run(commands.notes(f"{folder}/{FOLDER}")).splitlines()]
    return sorted((_key(name, note) for name, _, note in lines if _HASH.fullmatch(name)), key=lambda key: key.created)


def add(host: Host, folder: str, name: str, now: datetime.datetime) -> str:
    """A new key of that name. Raises InputError where there is one already, HostError."""
    if any(key.name == name for key in api_keys(host, folder)):
        raise InputError(f"there is a key called {name} already", "take another name, or revoke that one first")
    key = fresh()
    note = json.dumps({"name": name, "created": f"{now:%Y-%m-%d %H:%M:%S} UTC"}).encode() + b"\n"
    path = f"{folder}/{FOLDER}/{hashed(key)}"
    host.run(commands.receive(path, hashlib.sha256(note).hexdigest()), stdin=note)
    host.run(commands.audit(folder, signature(f"API key {name} made")))
    return key


def revoke(host: Host, folder: str, name: str) -> None:
    """From the next request on it counts no more. Raises InputError where there is none, HostError."""
    known = api_keys(host, folder)
    found = [key for key in known if key.name == name]
    if not found:
        raise InputError(
            f"there is no key called {name}", f"there are {', '.join(key.name for key in known) or 'none'}"
        )
    host.run(commands.remove(*(f"{folder}/{FOLDER}/{key.sha256}" for key in found)))
    host.run(commands.audit(folder, signature(f"API key {name} revoked")))


def check_closed(service: Service, files: Iterable[str]) -> None:
    """An API that others reach takes keys, which is better said before anything is sent. `files`: on the entry host.

    Raises DeployError.
    """
    if not service.private and not any(path.startswith(f"{FOLDER}/") for path in files):
        reason = f"api.address is {service.address}, and whoever reaches it could use the model: there is no API key"
        raise DeployError(reason, "make one (edgesplit keys add), or leave the API on loopback")


def _key(sha256: str, note: str) -> ApiKey:
    """A damaged note opens the API all the same, so it is shown, under a name that can be revoked."""
    try:
        told = json.loads(note)
        return ApiKey(str(told["name"]), str(told["created"]), sha256)
    except (ValueError, LookupError, TypeError):
        return ApiKey(sha256[:12], "", sha256)
