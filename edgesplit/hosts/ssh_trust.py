"""Both ends of an SSH connection prove who they are: the host by its key, we by one of ours.

Strict: an unknown host key stops us with the command that accepts it, a changed or revoked one stops us.
Must not know: how the connection was made, nor what it is for.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import UnknownKeyType

from edgesplit.errors import HostKeyError, LoginError
from edgesplit.hosts import known_hosts
from edgesplit.hosts.known_hosts import Verdict
from edgesplit.hosts.ssh_target import Endpoint


def lines(*files: Path) -> Iterator[str]:
    """The lines of those files that can be read."""
    for file in files:
        with suppress(OSError):
            yield from file.read_text("utf-8", "replace").splitlines()


def check_key(name: str, end: Endpoint, known: tuple[known_hosts.Entry, ...], key: paramiko.PKey) -> None:
    """Raises HostKeyError unless `known` says that this key is the host's."""
    shown = f"{end.place} shows {key.get_name()} {key.fingerprint}"
    file = shlex.quote(str(end.known_hosts[0])) if end.known_hosts else "~/.ssh/known_hosts"
    accept = f"ssh-keyscan -p {end.port} {shlex.quote(end.host)} >> {file}"
    if not end.scannable:
        accept = f"reach it once by hand with ssh -o UserKnownHostsFile={file}, and answer yes"
    match known_hosts.judge(known, end.known_as, key.asbytes()):
        case Verdict.UNKNOWN:
            hint = "compare the fingerprint with what ssh-keygen -lf says of the key in /etc/ssh there; if equal: "
            raise HostKeyError(name, f"the host key is unknown: {shown}", hint + accept)
        case Verdict.CHANGED:
            hint = "somebody may stand in between. If the host was set up anew and the fingerprint is its own: "
            forget = f"ssh-keygen -R {shlex.quote(end.known_as)} -f {file}; then {accept}"
            raise HostKeyError(name, f"the host key has CHANGED: {shown}, but is known by another", hint + forget)
        case Verdict.REVOKED:
            raise HostKeyError(name, f"the host key is revoked: {shown}", f"an @revoked line in {file} says so")


# --- logging in -------------------------------------------------------------------------------------------------------

_UNUSABLE = (OSError, ValueError, TypeError, UnsupportedAlgorithm, paramiko.SSHException, UnknownKeyType)


def _candidates(end: Endpoint) -> Iterator[tuple[str, paramiko.PKey | None]]:
    """What to call each key, and the key; None for a file that only the agent can use. The agent's own come last."""
    for path in end.keys:
        try:
            yield str(path), paramiko.PKey.from_path(path)
        except _UNUSABLE:
            yield f"{path} (it cannot be read: if it has a passphrase, give it to the agent with ssh-add)", None
    public = (path if path.suffix == ".pub" else path.with_name(f"{path.name}.pub") for path in end.keys)
    named = {entry.blob for entry in known_hosts.parse(f"named {line}" for line in lines(*public))}
    with closing(paramiko.Agent()) as agent:
        for key in sorted(agent.get_keys(), key=lambda key: key.asbytes() not in named):
            if key.asbytes() in named or not end.only_keys:
                yield f"{key.fingerprint} of the agent", key


def _offer(transport: paramiko.Transport, user: str, key: paramiko.PKey, limit: float) -> str:
    """Log in with a key; "" when that went well, else what the server said."""
    done = threading.Event()
    transport.auth_publickey(user, key, done)
    if not done.wait(limit):
        raise TimeoutError
    if transport.is_authenticated():
        return ""
    refusal = transport.get_exception()
    if not transport.is_active():
        return "and it hung up"
    wanted = getattr(refusal, "allowed_types", [])
    return f"it asks for {', '.join(wanted)}" if wanted else "refused"


def login(name: str, end: Endpoint, transport: paramiko.Transport, limit: float) -> None:
    tried: list[str] = []
    for label, key in _candidates(end):
        said = ""
        if key is not None and transport.is_active():
            said = _offer(transport, end.user, key, limit)
            if not said:
                return
        tried.append(f"{label}: {said}" if said else label)
    raise LoginError(
        name,
        f"{end.place} does not let {end.user} in; keys tried: {'; '.join(tried) or 'none, there is none'}",
        f"put your public key into the authorized_keys of {end.user} there, or name another by `key` in the inventory",
    )
