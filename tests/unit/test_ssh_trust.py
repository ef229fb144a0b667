"""Whom we believe to be a host, against real servers: new, changed and revoked keys, certificates, and their traps."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import paramiko
import pytest
from conftest import LOCALHOST, Sshd, SshdFactory

from edgesplit.errors import HostKeyError
from edgesplit.hosts import known_hosts
from edgesplit.hosts.certificates import Damaged, parse, problem
from edgesplit.hosts.commands import Command
from edgesplit.hosts.known_hosts import glob
from edgesplit.hosts.ssh import SshHost
from edgesplit.hosts.ssh_target import Endpoint
from edgesplit.hosts.ssh_trust import check_key

pytestmark = pytest.mark.ssh
Sign = Callable[..., Path]


def hear(server: Sshd, *options: str, accept_new: bool = False, **changes: object) -> str:
    target = server.target(options=options, **changes)
    with closing(SshHost("pi", target, 5.0, accept_new=accept_new)) as host:
        return host.run(Command("try it", "echo heard"))


def refused(server: Sshd, *options: str, accept_new: bool = False, **changes: object) -> HostKeyError:
    with pytest.raises(HostKeyError) as failure:
        hear(server, *options, accept_new=accept_new, **changes)
    return failure.value


def fingerprint(key: Path) -> str:
    words = ["ssh-keygen", "-l", "-f", str(key)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[1]


def public(key: Path) -> str:
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


# --- new and changed keys ---------------------------------------------------------------------------------------------


def test_a_new_key_is_accepted_when_asked_for_and_then_known(sshd: SshdFactory) -> None:
    server = sshd()
    server.known_hosts.write_text("other.lan ssh-ed25519 AAAA")  # no end of line
    assert fingerprint(server.host_key) in str(refused(server))
    assert hear(server, accept_new=True) == "heard\n"
    assert server.known_hosts.read_text() == f"other.lan ssh-ed25519 AAAA\n{server.host_line}"
    assert hear(server, accept_new=True) == "heard\n"
    assert server.known_hosts.read_text().count("\n") == 2
    assert hear(server) == "heard\n"


def test_the_file_of_new_keys_is_made(sshd: SshdFactory) -> None:
    server = sshd()
    file = server.home / "new folder" / "known_hosts"
    assert f"mkdir -p '{file.parent}' && echo " in refused(server, known_hosts=str(file)).hint
    assert hear(server, accept_new=True, known_hosts=str(file)) == "heard\n"
    assert file.read_text() == server.host_line
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_new_keys_are_hashed_where_ssh_hashes_them(sshd: SshdFactory) -> None:
    server = sshd()
    server.known_hosts.unlink()
    assert hear(server, "HashKnownHosts=yes", accept_new=True) == "heard\n"
    assert server.known_hosts.read_text().startswith("|1|")
    words = ["ssh-keygen", "-F", f"[{LOCALHOST}]:{server.port}", "-f", str(server.known_hosts)]
    assert subprocess.run(words, check=True, capture_output=True).stdout
    assert hear(server) == "heard\n"


def test_accept_new_of_ssh_s_configuration_counts_but_no_does_not(sshd: SshdFactory) -> None:
    server = sshd()
    server.known_hosts.unlink()
    refused(server, "StrictHostKeyChecking=no")
    assert hear(server, "StrictHostKeyChecking=accept-new") == "heard\n"


def test_a_changed_key_is_fatal_whatever_was_asked(sshd: SshdFactory) -> None:
    server, other = sshd(), sshd.keys.pair("other_host")
    before = f"# mine\n[{LOCALHOST}]:{server.port} {public(other)}\n"
    server.known_hosts.write_text(before)
    for options in ((), ("StrictHostKeyChecking=accept-new",), ("StrictHostKeyChecking=no",)):
        error = refused(server, *options, accept_new=True)
        assert "the host key has CHANGED" in str(error)
        assert f"remove line {server.known_hosts}:2 (ssh-keygen -R '[{LOCALHOST}]:{server.port}'" in error.hint
    assert server.known_hosts.read_text() == before


def test_a_key_of_another_kind_is_a_change_too(sshd: SshdFactory) -> None:
    """Else whoever stands in between need only claim to have no key of the kind that is known."""
    server = sshd()
    server.known_hosts.write_text(f"[{LOCALHOST}]:{server.port} {public(sshd.keys.pair('other_host', 'rsa'))}\n")
    assert "CHANGED" in str(refused(server, accept_new=True))


@pytest.mark.parametrize("pattern", ["*", f"[{LOCALHOST}]:*", "[127.0.?.1]:*,other", LOCALHOST])
def test_names_with_wildcards_and_without_port(sshd: SshdFactory, pattern: str) -> None:
    server = sshd()
    server.known_hosts.write_text(f"{pattern} {public(server.host_key)}\n")
    assert hear(server) == "heard\n"
    server.known_hosts.write_text(f"{pattern},!*{LOCALHOST}* {public(server.host_key)}\n")
    assert "unknown" in str(refused(server))


def test_several_files(sshd: SshdFactory, tmp_path: Path) -> None:
    server = sshd()
    mine, ours, absent = tmp_path / "m ine", tmp_path / "ours", tmp_path / "absent"
    ours.write_text(server.host_line)
    options = (f'UserKnownHostsFile={absent} "{mine}"', f"GlobalKnownHostsFile={tmp_path}/x {ours}")
    assert hear(server, *options, known_hosts=None) == "heard\n"
    ours.unlink()
    mine.write_text(server.host_line)
    assert hear(server, *options, known_hosts=None) == "heard\n"
    mine.unlink()
    assert hear(server, *options, known_hosts=None, accept_new=True) == "heard\n"
    assert absent.read_text() == server.host_line
    nowhere = ("UserKnownHostsFile=none", f"GlobalKnownHostsFile={ours}")
    assert "name a file" in refused(server, *nowhere, known_hosts=None, accept_new=True).hint


# --- revoked keys -----------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_fatal_whatever_was_asked(sshd: SshdFactory) -> None:
    server = sshd()
    for known in ("", server.host_line):
        server.known_hosts.write_text(f"{known}@revoked * {public(server.host_key)}\n")
        assert "revoked" in str(refused(server, accept_new=True))


@pytest.mark.parametrize("binary", [False, True])
def test_revoked_host_keys_of_ssh_s_configuration(sshd: SshdFactory, tmp_path: Path, binary: bool) -> None:
    server, other, revoked = sshd(), sshd.keys.pair("other_host"), tmp_path / "revoked"
    assert "cannot be read" in str(refused(server, f"RevokedHostKeys={revoked}"))
    for key, expected in ((other, "heard\n"), (server.host_key, "")):
        if binary:
            words = ["ssh-keygen", "-q", "-k", "-f", str(revoked), str(key.with_suffix(".pub"))]
            subprocess.run(words, check=True, capture_output=True)
        else:
            revoked.write_text(f"# old\n{public(key)} of the old board\n")
        if expected:
            assert hear(server, f"RevokedHostKeys={revoked}") == expected
        else:
            assert f"{revoked} says so" in refused(server, f"RevokedHostKeys={revoked}").hint


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sign(sshd: SshdFactory, tmp_path: Path) -> Sign:
    """Signs a new host key with an authority; returns the key, its certificate beside it."""

    def make(kind: str = "ed25519", *words: str, authority: Path | None = None, names: str = LOCALHOST) -> Path:
        key = tmp_path / f"certified_{kind}"
        if not key.exists():
            key.write_bytes(sshd.keys.pair("certified", kind).read_bytes())
            key.chmod(0o600)
            key.with_suffix(".pub").write_bytes(sshd.keys.pair("certified", kind).with_suffix(".pub").read_bytes())
        signer = authority or sshd.keys.pair("authority")
        order = ["ssh-keygen", "-q", "-s", str(signer), "-I", "pi", *(["-n", names] if names else [])]
        subprocess.run([*order, *(words or ["-h"]), str(key.with_suffix(".pub"))], check=True, capture_output=True)
        return key

    return make


def certified(sshd: SshdFactory, key: Path) -> Sshd:
    """A server with a certificate, known by nothing but its authority."""
    server = sshd(HostKey=f"{key}\nHostCertificate {key}-cert.pub")
    believe(server, sshd.keys.pair("authority"))
    return server


def believe(server: Sshd, authority: Path, pattern: str = f"*{LOCALHOST}*") -> None:
    server.known_hosts.write_text(f"@cert-authority {pattern} {public(authority)}\n")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("signer", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_of_a_believed_authority(sshd: SshdFactory, sign: Sign, kind: str, signer: str) -> None:
    authority = sshd.keys.pair("authority", signer)
    server = certified(sshd, sign(kind, authority=authority))
    believe(server, authority)
    assert hear(server) == "heard\n"
    believe(server, authority, LOCALHOST)  # authorities are listed without ports
    assert hear(server) == "heard\n"


@pytest.mark.parametrize(
    ("words", "names", "wrong"),
    [
        (["-h"], "other.lan,127.0.0.2", "it is for other.lan, 127.0.0.2, not for 127.0.0.1"),
        (["-h"], "", "it names no host"),
        (["-h", "-V", "20200101:20210101"], LOCALHOST, "it ended"),
        (["-h", "-V", "20900101:20910101"], LOCALHOST, "it begins in"),
        (["-V", "+1h"], LOCALHOST, "it is a user's, not a host's"),
    ],
)
def test_a_certificate_that_does_not_hold(
    sshd: SshdFactory, sign: Sign, words: list[str], names: str, wrong: str
) -> None:
    key = sign("ed25519", *words, names=names)
    if "-h" not in words:  # sshd itself refuses to show a user's certificate
        blob = parse(_blob(key))
        assert blob is not None
        assert problem(blob, LOCALHOST, 0.0) == wrong
        return
    server = certified(sshd, key)
    error = refused(server, accept_new=True)
    assert f"the host certificate does not hold: {wrong}" in str(error)
    assert "ssh-keygen -h -s" in error.hint


def test_a_certificate_of_a_stranger_proves_nothing(sshd: SshdFactory, sign: Sign) -> None:
    key = sign("ed25519", authority=sshd.keys.pair("stranger"))
    server = certified(sshd, key)
    assert "a certificate, but of no @cert-authority that is known" in str(refused(server))
    with server.known_hosts.open("a") as known:
        known.write(f"[{LOCALHOST}]:{server.port} {public(key)}\n")
    assert hear(server) == "heard\n"  # by the key itself


def test_an_authority_that_is_believed_and_a_host_without_certificate(sshd: SshdFactory) -> None:
    server = sshd()
    believe(server, sshd.keys.pair("authority"))
    assert "it shows no certificate" in str(refused(server))


def test_a_revoked_authority_is_fatal_whatever_else_is_known(sshd: SshdFactory, sign: Sign) -> None:
    key, authority = sign(), sshd.keys.pair("authority")
    server = certified(sshd, key)
    for revoked in (authority, key):
        believe(server, authority)
        with server.known_hosts.open("a") as known:
            known.write(f"@revoked * {public(revoked)}\n")
        assert "revoked" in str(refused(server, accept_new=True))


def test_an_authority_signs_with_sha1(sshd: SshdFactory, sign: Sign) -> None:
    authority = sshd.keys.pair("authority", "rsa")
    server = certified(sshd, sign("ed25519", "-h", "-t", "ssh-rsa", authority=authority))
    believe(server, authority)
    assert "its signature is not that of the authority" in str(refused(server, accept_new=True))


def test_the_name_in_the_certificate_is_host_key_alias_where_there_is_one(sshd: SshdFactory, sign: Sign) -> None:
    server = certified(sshd, sign("ed25519", names="shelf,*.lan"))
    believe(server, sshd.keys.pair("authority"), "*")
    for alias, fine in (("shelf", True), ("pi.LAN", True), ("pi.lan.org", False)):
        if fine:
            assert hear(server, f"HostKeyAlias={alias}") == "heard\n"
        else:
            assert "not for pi.lan.org" in str(refused(server, f"HostKeyAlias={alias}"))


def _blob(key: Path) -> bytes:
    return base64.b64decode(Path(f"{key}-cert.pub").read_text().split()[1])


def test_a_certificate_cut_or_extended_anywhere_is_damaged(sign: Sign) -> None:
    blob = _blob(sign())
    found = parse(blob)
    assert found is not None
    assert problem(found, LOCALHOST, 0.0) == ""
    for end in range(len(blob)):
        with pytest.raises(Damaged):
            parse(blob[:end])
    with pytest.raises(Damaged):
        parse(blob + b"\0")


def test_a_forged_certificate_is_refused_wherever_it_was_changed(sshd: SshdFactory, sign: Sign) -> None:
    blob = _blob(sign())
    authority = known_hosts.parse([f"@cert-authority * {public(sshd.keys.pair('authority'))}"])
    end = Endpoint(LOCALHOST, 22, "me", (), (), (LOCALHOST,))

    def check(data: bytes) -> None:
        check_key("pi", end, authority, paramiko.Ed25519Key(data=data), accept_new=False)

    check(blob)
    for at in range(60, len(blob), 7):  # behind kind and nonce; of these, only an end of the key's own kind would show
        forged = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        with pytest.raises((HostKeyError, paramiko.SSHException, ValueError)):
            check(forged)


def test_random_bytes_are_damaged_or_no_certificate(sign: Sign) -> None:
    blob = _blob(sign())
    for at in range(40, len(blob), 3):
        with suppress(Damaged):
            parse(blob[:at] + os.urandom(1) + blob[at + 1 :])


def test_globs() -> None:
    assert glob("*.Lan", "pi.LAN")
    assert glob("p?.lan", "pi.lan")
    assert not glob("*.lan", "pi.lan.org")
    assert not glob("p[i].lan", "pi.lan")
