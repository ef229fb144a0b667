"""Does the host prove who it is? By a key that known_hosts files list, or by a certificate of a believed authority.

Strict: an unknown key stops us with the command that accepts it, a changed or revoked one stops us whatever was asked.
Must not know: how the connection was made, what it is for, who logs in.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import UnknownKeyType

from edgesplit.errors import HostKeyError
from edgesplit.hosts import certificates, known_hosts
from edgesplit.hosts.certificates import SUFFIX, Certificate
from edgesplit.hosts.known_hosts import Entry, Marker, Verdict
from edgesplit.hosts.ssh_target import Endpoint

_KRL = b"SSHKRL\n\0"  # a binary list of revoked keys begins so
_writing = threading.Lock()  # of a known_hosts file: many hosts may be met at once


def lines(*files: Path) -> Iterator[str]:
    """The lines of those files that can be read."""
    for file in files:
        with suppress(OSError):
            yield from file.read_text("utf-8", "replace").splitlines()


def known(end: Endpoint) -> tuple[Entry, ...]:
    files = (*end.known_hosts, *end.global_known_hosts)
    return tuple(entry for file in files for entry in known_hosts.parse(lines(file), str(file)))


def wanted(end: Endpoint, entries: tuple[Entry, ...], offered: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of host key to ask for: first those by which we can tell the host.

    `offered`: the plain kinds that can be verified at all, the best first.
    """
    kinds = [*(f"{kind}{SUFFIX}" for kind in offered), *offered]
    allowed = [kind for kind in kinds if not end.host_keys or kind in end.host_keys]
    has_authority = any(known_hosts.about(entries, end.names, Marker.AUTHORITY))
    listed = {entry.kind for entry in known_hosts.about(entries, end.names)}

    def rank(kind: str) -> int:
        if kind.endswith(SUFFIX):
            return 0 if has_authority else 3
        return 1 if ("ssh-rsa" if kind.startswith("rsa-") else kind) in listed else 2

    return tuple(sorted(allowed, key=rank))


def check_key(name: str, end: Endpoint, entries: tuple[Entry, ...], key: paramiko.PKey, *, accept_new: bool) -> None:
    """Raises HostKeyError unless `entries` say that this key is the host's, or it is new and may be accepted."""
    shown = f"{end.place} shows {key.get_name()} {key.fingerprint}"
    certificate = _certificate(name, shown, key)
    blobs = (key.asbytes(), certificate.authority) if certificate else (key.asbytes(),)
    verdict = known_hosts.judge(entries, end.names, *blobs)
    if verdict is Verdict.REVOKED:
        where = _where(known_hosts.about(entries, end.names, Marker.REVOKED))
        raise HostKeyError(name, f"the host key is revoked: {shown}", f"{where} says so; give the host a new key")
    _check_revoked(name, end, key, shown)
    believed = {entry.blob for entry in known_hosts.about(entries, end.names, Marker.AUTHORITY)}
    if certificate and certificate.authority in believed:
        _check_certificate(name, end, certificate, shown)
    elif verdict is Verdict.UNKNOWN and accept_new:
        _accept(name, end, key)
    elif verdict is Verdict.UNKNOWN:
        raise HostKeyError(name, f"the host key is unknown: {shown}{_but(certificate, believed)}", _how(end, key))
    elif verdict is Verdict.CHANGED:
        offending = list(known_hosts.about(entries, end.names[:1]))
        raise HostKeyError(name, f"the host key has CHANGED: {shown}, but is known by another", _mend(end, offending))


# --- new keys ---------------------------------------------------------------------------------------------------------


def _line(end: Endpoint, key: paramiko.PKey) -> str:
    salt = os.urandom(20) if end.hash_names else b""
    return known_hosts.line(end.names[0], key.get_name(), key.asbytes(), salt=salt)


def _how(end: Endpoint, key: paramiko.PKey) -> str:
    compare = (
        "--accept-new-host-keys believes what is shown; to be sure, compare the fingerprint with what ssh-keygen -lf "
        "says of the key in /etc/ssh there; if equal: "
    )
    if not end.known_hosts:
        return f"{compare}name a file for it (UserKnownHostsFile, or known_hosts in the inventory)"
    file = end.known_hosts[0]
    folder = "" if file.parent.is_dir() else f"mkdir -p {shlex.quote(str(file.parent))} && "
    return f"{compare}{folder}echo {shlex.quote(_line(end, key))} >> {shlex.quote(str(file))}"


def _mend(end: Endpoint, offending: list[Entry]) -> str:
    forget = dict.fromkeys(entry.where.rpartition(":")[0] for entry in offending)
    words = [f"ssh-keygen -R {shlex.quote(end.names[0])} -f {shlex.quote(file)}" for file in forget]
    lines = f"remove {_where(iter(offending))} ({' ; '.join(words)})" if offending else "remove the key that is listed"
    return (
        "somebody may stand in between. Only if the host was set up anew and the fingerprint is its own: "
        f"{lines}, and try again"
    )


def _accept(name: str, end: Endpoint, key: paramiko.PKey) -> None:
    if not end.known_hosts:
        raise HostKeyError(name, f"no known_hosts file to remember {end.place} in", _how(end, key))
    file = end.known_hosts[0]
    try:
        with _writing:
            again = known_hosts.judge(known_hosts.parse(lines(file)), end.names, key.asbytes())
            if again is Verdict.KNOWN:  # it was met twice at once, as a jump is
                return
            if again is Verdict.CHANGED:
                raise HostKeyError(name, f"{end.place} shows two different keys at once", _mend(end, []))
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            whole = not file.is_file() or file.read_bytes()[-1:] in (b"\n", b"")
            with file.open("a") as opened:
                opened.write(("" if whole else "\n") + _line(end, key) + "\n")
    except OSError as error:
        raise HostKeyError(name, f"{file} cannot be written: {error.strerror}", _how(end, key)) from error


def _where(entries: Iterator[Entry]) -> str:
    return "line " + ", ".join(entry.where for entry in entries)


def _but(certificate: Certificate | None, believed: set[bytes]) -> str:
    if believed and certificate is None:
        return "; a @cert-authority is known for it, but it shows no certificate"
    return "; it shows a certificate, but of no @cert-authority that is known for it" if certificate else ""


# --- certificates and lists of revoked keys ---------------------------------------------------------------------------


def _certificate(name: str, shown: str, key: paramiko.PKey) -> Certificate | None:
    blob = key.public_blob
    try:
        found = certificates.parse(blob.key_blob) if blob else None
    except certificates.Damaged as error:
        raise HostKeyError(name, f"the host certificate is damaged: {shown}: {error}") from error
    if found and found.public != key.asbytes():
        raise HostKeyError(name, f"the host certificate is damaged: {shown}, and certifies another key")
    return found


def _check_certificate(name: str, end: Endpoint, certificate: Certificate, shown: str) -> None:
    """The authority is believed; is the certificate its own, and good for this host, now?"""
    wrong = "its signature is not that of the authority"
    if _signed(certificate):
        wrong = certificates.problem(certificate, end.names[-1], time.time())
    if wrong:
        hint = "have the authority sign the host's key anew (ssh-keygen -h -s CA -I ID -n NAMES KEY.pub)"
        raise HostKeyError(name, f"the host certificate does not hold: {wrong}; {shown}", hint)


def _signed(certificate: Certificate) -> bool:
    """SHA-1 is refused, as by OpenSSH: paramiko knows no such signature."""
    kind = certificate.authority[4 : 4 + int.from_bytes(certificate.authority[:4], "big")].decode("ascii", "replace")
    try:
        authority = paramiko.PKey.from_type_string(kind, certificate.authority)
        return bool(authority.verify_ssh_sig(certificate.signed, paramiko.Message(certificate.signature)))
    except (ValueError, TypeError, UnsupportedAlgorithm, paramiko.SSHException, UnknownKeyType):
        return False


def _check_revoked(name: str, end: Endpoint, key: paramiko.PKey, shown: str) -> None:
    """RevokedHostKeys: one that cannot be read revokes every key, as for OpenSSH."""
    for file in end.revoked:
        try:
            listed = _in_list(file, key)
        except OSError as error:
            hint = "ssh's configuration names it as RevokedHostKeys"
            raise HostKeyError(name, f"{file} cannot be read: {error.strerror}", hint) from error
        if listed:
            raise HostKeyError(name, f"the host key is revoked: {shown}", f"{file} says so; give the host a new key")


def _in_list(file: Path, key: paramiko.PKey) -> bool:
    data = file.read_bytes()
    if not data.startswith(_KRL):
        entries = known_hosts.parse(f"* {text}" for text in data.decode("utf-8", "replace").splitlines())
        return any(entry.blob == key.asbytes() for entry in entries)
    with tempfile.NamedTemporaryFile("w", suffix=".pub") as public:
        public.write(f"{key.get_name()} {key.get_base64()}\n")
        public.flush()
        words = ["ssh-keygen", "-Q", "-f", str(file), public.name]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode != 0
