"""The deployment's lasting keys on its hosts: found there, or made and put there on the first day.

Must not know: splits, steps, what the keys are used for.
"""

from __future__ import annotations

import hashlib

from edgesplit.broadcast.authority import Secrets, controller_key, create
from edgesplit.broadcast.remote import CONTROLLER, read_secrets
from edgesplit.errors import HostError
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host


def secrets_of(entry: Host, folder: str) -> Secrets:
    """The deployment's secrets, from the entry host. Raises HostError, DeployError."""
    secrets = read_secrets(entry, folder)
    if secrets is None:
        secrets = create()
        _put(entry, f"{folder}/keys/controller.json", secrets.to_json())
    return secrets


def introduce(host: Host, folder: str, secrets: Secrets, *, running: bool) -> None:
    """The host knows whose commands its runner obeys. Raises HostError where one runs that obeys somebody else."""
    there, ours = host.run(commands.read_if_there(f"{folder}/{CONTROLLER}")), controller_key(secrets)
    if there == ours:
        return
    if running:
        raise HostError(host.name, "its runner obeys another key", "edgesplit down, then deploy again")
    _put(host, f"{folder}/{CONTROLLER}", ours)


def _put(host: Host, path: str, text: str) -> None:
    data = text.encode()
    host.run(commands.receive(path, hashlib.sha256(data).hexdigest()), stdin=data)
