"""We prove who we are: by a key file, a user certificate, or the agent; or by nothing, where the host asks for nothing.

Must not know: how the connection was made, what it is for, whom we trust.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.agent import AgentSSH
from paramiko.pkey import UnknownKeyType

from edgesplit.errors import LoginError
from edgesplit.hosts import certificates, known_hosts
from edgesplit.hosts.ssh_target import Endpoint
from edgesplit.hosts.ssh_trust import lines

_UNUSABLE = (ValueError, UnsupportedAlgorithm, paramiko.SSHException, UnknownKeyType)
_LOCKED = "it has a passphrase"


@dataclass(frozen=True)
class _Candidate:
    """One way to log in: what to call it, and a key; or why there is none."""

    label: str
    key: paramiko.PKey | None = None
    problem: str = ""


class _Agent(AgentSSH):
    """The agent at a socket; without one, an agent that holds nothing."""

    def __init__(self, path: str) -> None:
        super().__init__()
        connection = socket.socket(socket.AF_UNIX)
        self.reached = False
        try:
            connection.connect(path)
            self._connect(connection)  # type: ignore[attr-defined]
            self.reached = True
        except (OSError, paramiko.SSHException):
            connection.close()

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def login(name: str, end: Endpoint, transport: paramiko.Transport, limit: float) -> None:
    """Raises LoginError that lists what was tried, TimeoutError."""
    accepted = _methods(transport, end.user, limit)
    if transport.is_authenticated():
        return
    tried: list[_Candidate] = []
    with closing(_Agent(end.agent)) as agent:
        for candidate in _candidates(end, agent):
            said = candidate.problem
            if candidate.key is not None and transport.is_active():
                said = _offer(transport, end.user, candidate.key, limit)
                if not said:
                    return
            tried.append(_Candidate(candidate.label, candidate.key, said))
        reached = agent.reached
    listed = "; ".join(f"{one.label}: {one.problem}" if one.problem else one.label for one in tried)
    raise LoginError(
        name,
        f"{end.place} does not let {end.user} in; it takes {accepted}; keys tried: {listed or 'none, there is none'}",
        _advice(end, tried, reached=reached),
    )


def _advice(end: Endpoint, tried: list[_Candidate], *, reached: bool) -> str:
    locked = [one.label for one in tried if one.problem.startswith(_LOCKED)]
    if locked:
        start = "" if reached else 'eval "$(ssh-agent)" && '
        return f"{start}ssh-add {' '.join(locked)}"
    if all(one.key is None for one in tried):
        where = f" -f {end.missing_keys[0]}" if end.missing_keys else ""
        return f"make a key (ssh-keygen -t ed25519{where}), then: ssh-copy-id -p {end.port} {end.user}@{end.host}"
    return (
        f"put your public key into the authorized_keys of {end.user} there (ssh-copy-id), or name another key by `key` "
        "in the inventory or by IdentityFile in ssh's configuration"
    )


def _methods(transport: paramiko.Transport, user: str, limit: float) -> str:
    """Ask to be let in as we are; what the host wants to see instead."""
    transport.auth_timeout = limit
    try:
        transport.auth_none(user)
    except paramiko.BadAuthenticationType as error:
        return ", ".join(error.allowed_types)
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error).lower():
            raise TimeoutError from error
        return "nothing that it names"
    return "anybody"


def _candidates(end: Endpoint, agent: _Agent) -> Iterator[_Candidate]:
    """Every key that is worth trying; the agent's come last, those that are configured first among them."""
    signed = _certificates(end)
    held = {key.asbytes(): key for key in agent.get_keys()}
    for path in end.missing_keys:
        yield _Candidate(str(path), problem="it is not there")
    named: set[bytes] = set()
    for path in end.keys:
        public = _public(path)
        named |= {public} if public else set()
        candidate = _from_file(path, held=public in held, reached=agent.reached)
        yield from _with_certificates(candidate, signed)
    for blob, key in sorted(held.items(), key=lambda item: item[0] not in named):
        if blob in named or not end.only_keys:
            yield from _with_certificates(_Candidate(f"{key.fingerprint} of the agent", key), signed)


def _from_file(path: Path, *, held: bool, reached: bool) -> _Candidate:
    try:
        key = paramiko.PKey.from_path(path)
        key.public_blob = None  # a certificate beside it is a candidate of its own
        return _Candidate(str(path), key)
    except (TypeError, paramiko.PasswordRequiredException):  # the first is cryptography's word for a locked key
        where = "the agent holds it" if held else "the agent does not hold it" if reached else "no agent is reached"
        return _Candidate(str(path), problem=f"{_LOCKED}, and {where}" if not held else where)
    except PermissionError:
        return _Candidate(str(path), problem="you may not read it")
    except OSError as error:
        return _Candidate(str(path), problem=f"it cannot be read: {error.strerror}")
    except _UNUSABLE:
        return _Candidate(str(path), problem="it is no private key that can be used without the agent")


def _with_certificates(candidate: _Candidate, signed: dict[bytes, list[Path]]) -> Iterator[_Candidate]:
    """The key with each certificate that is configured for it, then the key as it is."""
    key = candidate.key
    if key is not None:
        for path in signed.get(key.asbytes(), []):
            with suppress(OSError, ValueError):
                key.load_certificate(str(path))
                yield _Candidate(f"{candidate.label} with {path}", key)
            key.public_blob = None
    yield candidate


def _certificates(end: Endpoint) -> dict[bytes, list[Path]]:
    """Public key -> the files that certify it: CertificateFile, and what lies beside a key."""
    found: dict[bytes, list[Path]] = {}
    beside = (path.with_name(f"{path.name}-cert.pub") for path in end.keys)
    for path in dict.fromkeys((*end.certificates, *beside)):
        for entry in known_hosts.parse(f"any {text}" for text in lines(path)):
            with suppress(certificates.Damaged):
                certificate = certificates.parse(entry.blob)
                if certificate is not None:
                    found.setdefault(certificate.public, []).append(path)
    return found


def _public(path: Path) -> bytes | None:
    """The public half of a key file: from the file beside it, or from the part of it that is never encrypted."""
    beside = path if path.suffix == ".pub" else path.with_name(f"{path.name}.pub")
    for entry in known_hosts.parse(f"any {text}" for text in lines(beside)):
        return entry.blob
    return certificates.public_part("\n".join(lines(path)))


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
