"""The deployment's keys on its hosts: found there, or made and put there on the first day.

Must not know: splits, steps, what the keys are used for.
"""

from __future__ import annotations

import datetime
import hashlib

from edgesplit.broadcast.authority import Secrets, create, fingerprint, issue
from edgesplit.broadcast.remote import read_secrets
from edgesplit.errors import HostError
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host


def secrets_of(deployment: str, entry: Host, folder: str, now: datetime.datetime) -> Secrets:
    """The deployment's secrets, from the entry host. Raises HostError, DeployError."""
    secrets = read_secrets(entry, folder)
    if secrets is None:
        secrets = create(deployment, now)
        _put(entry, f"{folder}/keys/controller.json", secrets.to_json())
    return secrets


def host_keys(host: Host, folder: str, secrets: Secrets, now: datetime.datetime, *, running: bool) -> str:
    """The fingerprint of the host's certificate. Raises HostError where a runner has keys of another authority."""
    authority = host.run(commands.read_if_there(f"{folder}/keys/ca.pem"))
    certificate = host.run(commands.read_if_there(f"{folder}/keys/host.pem"))
    if certificate and authority == secrets.authority:
        return fingerprint(certificate)
    if running:
        raise HostError(host.name, "its runner has keys of another authority", "edgesplit down, then deploy again")
    keys = issue(secrets, host.name, now)
    files = (  # ca.pem last: with it, the set counts as complete
        ("host.pem", keys.certificate),
        ("host.key", keys.key),
        ("controller.pub", keys.controller),
        ("ca.pem", keys.authority),
    )
    for name, text in files:
        _put(host, f"{folder}/keys/{name}", text)
    return keys.fingerprint


def _put(host: Host, path: str, text: str) -> None:
    data = text.encode()
    host.run(commands.receive(path, hashlib.sha256(data).hexdigest()), stdin=data)
