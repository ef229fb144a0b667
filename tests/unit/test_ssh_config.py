"""ssh's configuration is followed as ssh follows it: where it leads, through what, as whom and with which keys."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import LOCALHOST, Sshd, SshdFactory

from edgesplit.errors import LoginError, Unreachable
from edgesplit.hosts.commands import Command
from edgesplit.hosts.ssh import SshHost
from edgesplit.hosts.ssh_config import aliases
from edgesplit.inventory import SshTarget

pytestmark = pytest.mark.ssh
V6 = "::1"


def block(server: Sshd, alias: str, *more: str) -> str:
    settings = (f"HostName {server.host}", f"Port {server.port}", f"User {server.user}", f"IdentityFile {server.key}")
    lines = (*settings, f"UserKnownHostsFile {server.known_hosts}", *more)
    return f"Host {alias}\n" + "".join(f"  {line}\n" for line in lines)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config"


def hear(host: str, config: Path, *options: str, **changes: object) -> str:
    fields = {"host": host, "config": str(config), "options": options, **changes}
    with closing(SshHost("pi", SshTarget.model_validate(fields), 5.0)) as reached:
        return reached.run(Command("try it", "echo heard"))


def heard(host: str, config: Path, *options: str, **changes: object) -> bool:
    return hear(host, config, *options, **changes) == "heard\n"


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


@contextmanager
def agent(path: Path, *keys: Path) -> Iterator[None]:
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as process:
        try:
            while not _listens(path):
                time.sleep(0.01)
            for key in keys:
                words, environment = ["ssh-add", "-q", str(key)], {**os.environ, "SSH_AUTH_SOCK": str(path)}
                subprocess.run(words, check=True, capture_output=True, env=environment)
            yield
        finally:
            process.terminate()


# --- where to ---------------------------------------------------------------------------------------------------------


def test_match_and_include(sshd: SshdFactory, config: Path, tmp_path: Path) -> None:
    server = sshd()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1").write_text(f"Match host pi exec true\n  HostName {LOCALHOST}\n  Port {server.port}\n")
    (tmp_path / "d" / "2").write_text(f"Match final host {LOCALHOST}\n  UserKnownHostsFile {server.known_hosts}\n")
    never, always = "Match host pi exec false\n  Port 1\n", f"Match all\n  IdentityFile {server.key}\n"
    config.write_text(f"{never}{always}Include {tmp_path}/d/*\n")
    assert heard("pi", config)


def test_the_options_of_the_inventory_come_first(sshd: SshdFactory, config: Path) -> None:
    server = sshd()
    config.write_text(block(server, "pi") + "Host *\n  ConnectTimeout 3\n")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 port 1 refused the connection"):
        hear("pi", config, "Port=1")
    assert heard("pi", config, "Port=1", port=server.port)
    with pytest.raises(Unreachable, match=r"`ssh -G pi` failed: .*[Nn]onsense"):
        hear("pi", config, "Nonsense=1")
    with pytest.raises(ValueError, match="expected an option of ssh_config as Keyword=value"):
        SshTarget(host="pi", options=("-v",))


def test_another_configuration_file(sshd: SshdFactory, config: Path, tmp_path: Path) -> None:
    server = sshd()
    config.write_text(block(server, "pi"))
    assert heard("pi", config)
    with pytest.raises(Unreachable, match=r"`ssh -G pi` failed: .*absent"):
        hear("pi", tmp_path / "absent")


def test_ipv6_literals(sshd: SshdFactory, config: Path) -> None:
    server = sshd(ListenAddress=V6)
    assert server.host_line.startswith(f"[{V6}]:")
    config.write_text(block(server, "pi").replace(f"  HostName {V6}\n", ""))
    with closing(SshHost("pi", server.target())) as host:
        assert host.run(Command("try it", "echo heard")) == "heard\n"
    config.write_text(block(server, "pi"))
    assert heard("pi", config)
    with pytest.raises(Unreachable, match=f"{V6} port 1 refused"):
        hear("pi", config, "Port=1")


def test_address_family_and_bind_address(sshd: SshdFactory, config: Path) -> None:
    server = sshd()
    config.write_text(block(server, "pi"))
    with pytest.raises(Unreachable, match="cannot be looked up"):
        hear("pi", config, "AddressFamily=inet6")
    assert heard("pi", config, "AddressFamily=inet", "BindAddress=127.0.0.9")
    assert "Connection from 127.0.0.9" in server.log or "127.0.0.9" in server.log
    with pytest.raises(Unreachable, match="cannot reach"):
        hear("pi", config, "BindAddress=192.0.2.1")


def test_a_name_with_a_dead_address_first(sshd: SshdFactory, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = sshd()
    config.write_text(block(server, "pi"))
    true = socket.getaddrinfo(LOCALHOST, server.port, type=socket.SOCK_STREAM)
    dead = socket.getaddrinfo("192.0.2.1", server.port, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [*dead, *true])
    assert heard("pi", config)


def test_connect_timeout(config: Path) -> None:
    with socket.create_server((LOCALHOST, 0)) as silent:
        port = silent.getsockname()[1]
        config.write_text(f"Host pi\n  HostName {LOCALHOST}\n  Port {port}\n  ConnectTimeout 1\n")
        target = SshTarget(host="pi", config=str(config))
        with closing(SshHost("pi", target)) as host, pytest.raises(Unreachable, match="within 1 s"):
            host.run(Command("try it", "true"))


def test_only_the_algorithms_that_ssh_may_use(sshd: SshdFactory, config: Path) -> None:
    config.write_text(block(sshd(Ciphers="aes256-ctr,aes128-gcm@openssh.com"), "pi"))
    assert heard("pi", config, "Ciphers=aes256-ctr", "MACs=hmac-sha2-512", "KexAlgorithms=ecdh-sha2-nistp256")
    with pytest.raises(Unreachable, match="failed: Incompatible"):
        hear("pi", config, "Ciphers=aes192-ctr")
    with pytest.raises(Unreachable, match="none of the ciphers that ssh's configuration allows can be used") as failure:
        hear("pi", config, "Ciphers=chacha20-poly1305@openssh.com")
    assert "aes128-gcm" in failure.value.hint
    with pytest.raises(Unreachable, match="no acceptable host key"):
        hear("pi", config, "HostKeyAlgorithms=rsa-sha2-512")


# --- through what -----------------------------------------------------------------------------------------------------


def test_three_jumps_of_which_one_has_an_ipv6_literal(sshd: SshdFactory, config: Path) -> None:
    first, second, third, last = sshd(), sshd(ListenAddress=V6), sshd(), sshd()
    anywhere = f"Host *\n  IdentityFile {first.key}\n  UserKnownHostsFile {config}.known\n"
    Path(f"{config}.known").write_text("".join(server.host_line for server in (first, second, third, last)))
    hops = f"ssh://{first.user}@{LOCALHOST}:{first.port},{second.user}@[{V6}]:{second.port},third"
    config.write_text(block(third, "third") + block(last, "last", f"ProxyJump {hops}") + anywhere)
    assert heard("last", config)
    assert all("Accepted publickey" in server.log for server in (first, second, third, last))


def test_jumps_that_lead_to_jumps(sshd: SshdFactory, config: Path) -> None:
    first, second, last = sshd(), sshd(), sshd()
    chain = block(first, "first") + block(second, "second", "ProxyJump first") + block(last, "last", "ProxyJump second")
    config.write_text(chain)
    assert heard("last", config)
    assert all("Accepted publickey" in server.log for server in (first, second, last))
    assert heard("last", config, "ProxyJump=none")


def test_the_trouble_of_a_jump_names_the_jump(sshd: SshdFactory, config: Path) -> None:
    first, last = sshd(), sshd()
    config.write_text(block(first, "first", "Port 1") + block(last, "last", "ProxyJump first"))
    first.known_hosts.unlink()
    with pytest.raises(Exception, match=f"pi: the host key is unknown: {LOCALHOST} port {first.port}"):
        hear("last", config)
    first.known_hosts.write_text(first.host_line)
    with pytest.raises(Unreachable, match=rf"pi: no channel to {LOCALHOST} port 1: "):
        hear("last", config, "Port=1")


def test_a_proxy_command(sshd: SshdFactory, config: Path, tmp_path: Path) -> None:
    server = sshd()
    jump = f"ssh -F {config} -W %h:%p -- jump"
    config.write_text(block(server, "pi") + block(sshd(), "jump"))
    assert heard("pi", config, f"ProxyCommand={jump}")
    script = f"sh -c 'echo \"$*\" > {tmp_path}/said; exec {jump}' - %n %h %p %r %%"
    assert heard("pi", config, f"ProxyCommand={script}")
    assert (tmp_path / "said").read_text().split() == ["pi", LOCALHOST, str(server.port), server.user, "%"]


def test_a_proxy_command_that_fails(sshd: SshdFactory, config: Path) -> None:
    config.write_text(block(sshd(), "pi"))
    for command, said in (("sh -c 'echo no way >&2'", "no way"), ("absent_tool %h", "absent_tool")):
        with pytest.raises(Unreachable, match=f"cannot reach .*: its ProxyCommand says: .*{said}"):
            hear("pi", config, f"ProxyCommand={command}")
    began = time.monotonic()
    with (
        closing(SshHost("pi", SshTarget(host="pi", config=str(config), options=("ProxyCommand=sleep 30",)), 0.5)) as pi,
        pytest.raises(Unreachable, match=r"no answer from .* within 0\.5 s"),
    ):
        pi.run(Command("try it", "true"))
    assert time.monotonic() - began < 5


def test_a_proxy_command_ends_with_its_connection(sshd: SshdFactory, config: Path, tmp_path: Path) -> None:
    config.write_text(block(sshd(), "pi") + block(sshd(), "jump"))
    script = f"sh -c 'echo $$ > {tmp_path}/pid; exec ssh -F {config} -W %h:%p -- jump'"
    assert heard("pi", config, f"ProxyCommand={script}")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_what_cannot_be_followed(sshd: SshdFactory, config: Path) -> None:
    config.write_text(block(sshd(), "pi", "ProxyUseFdpass yes", "ProxyCommand true"))
    with pytest.raises(Unreachable, match="ProxyUseFdpass") as failure:
        hear("pi", config)
    assert "ProxyJump" in failure.value.hint


# --- as whom ----------------------------------------------------------------------------------------------------------


def test_a_key_file_by_tokens_and_variables(
    sshd: SshdFactory, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = sshd()
    file = tmp_path / f"{LOCALHOST}-{server.user}-{server.port}-%"
    file.write_bytes(server.key.read_bytes())
    monkeypatch.setenv("WHERE", str(tmp_path))
    config.write_text(block(server, "pi").replace(str(server.key), "${WHERE}/%h-%r-%p-%%"))
    assert heard("pi", config)


def test_a_key_that_is_missing_or_unusable_is_named(sshd: SshdFactory, config: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_text("no key")
    config.write_text(block(sshd(), "pi", f"IdentityFile {tmp_path}/absent", f"IdentityFile {garbage}"))
    with pytest.raises(LoginError) as failure:
        hear("pi", config, f"IdentityFile={sshd.keys.pair('stranger')}", user="nobody-here")
    assert "does not let nobody-here in; it takes publickey" in str(failure.value)
    assert f"{tmp_path}/absent: it is not there" in str(failure.value)
    assert f"{sshd.keys.pair('stranger')}: refused" in str(failure.value)
    assert f"{garbage}: it is no private key" in str(failure.value)


def test_no_key_at_all(sshd: SshdFactory, config: Path, tmp_path: Path) -> None:
    server = sshd()
    config.write_text(block(server, "pi").replace(str(server.key), f"{tmp_path}/absent"))
    with pytest.raises(LoginError, match=f"keys tried: {tmp_path}/absent: it is not there$") as failure:
        hear("pi", config)
    assert f"ssh-keygen -t ed25519 -f {tmp_path}/absent" in failure.value.hint
    assert f"ssh-copy-id -p {server.port} {server.user}@{LOCALHOST}" in failure.value.hint


def test_identity_agent(sshd: SshdFactory, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = sshd()
    plain = block(server, "pi").replace(f"  IdentityFile {server.key}\n", "")
    with agent(tmp_path / "one", server.key), agent(tmp_path / "two", sshd.keys.pair("stranger")):
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "two"))
        monkeypatch.setenv("ONE", str(tmp_path / "one"))
        for where in (f"{tmp_path}/one", "$ONE", "${ONE}"):
            config.write_text(f"{plain}  IdentityAgent {where}\n")
            assert heard("pi", config)
        for where in ("none", "SSH_AUTH_SOCK", f"{tmp_path}/absent"):
            config.write_text(f"{plain}  IdentityAgent {where}\n")
            with pytest.raises(LoginError):
                hear("pi", config)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "one"))
        config.write_text(plain)
        assert heard("pi", config)


def test_of_the_agent_s_keys_only_the_named_one(sshd: SshdFactory, config: Path, tmp_path: Path) -> None:
    """A locked key file shows its public half, so the agent's copy is found without the .pub beside it."""
    server, locked = sshd(MaxAuthTries="2"), tmp_path / "locked"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(locked)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    locked.with_suffix(".pub").rename(server.home / "authorized_keys")
    strangers = [sshd.keys.pair(f"stranger{number}") for number in range(4)]
    with agent(tmp_path / "agent", *strangers, locked):
        words = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(locked)]
        subprocess.run(words, check=True, capture_output=True)
        config.write_text(block(server, "pi", f"IdentityAgent {tmp_path}/agent").replace(str(server.key), str(locked)))
        assert heard("pi", config, "IdentitiesOnly=yes")
        assert heard("pi", config)  # it comes before the strangers: only two may be tried


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
@pytest.mark.parametrize("by_agent", [False, True])
def test_a_user_certificate(sshd: SshdFactory, config: Path, tmp_path: Path, kind: str, by_agent: bool) -> None:
    authority, key = sshd.keys.pair("authority"), tmp_path / "me"
    for suffix in ("", ".pub"):
        Path(f"{key}{suffix}").write_bytes(Path(f"{sshd.keys.pair('me', kind)}{suffix}").read_bytes())
    key.chmod(0o600)
    server = sshd(TrustedUserCAKeys=str(authority.with_suffix(".pub")), AuthorizedKeysFile="none")
    words = ["ssh-keygen", "-q", "-s", str(authority), "-I", "me", "-n", server.user, f"{key}.pub"]
    subprocess.run(words, check=True, capture_output=True)
    certificate = Path(f"{key}-cert.pub").rename(tmp_path / "elsewhere-cert.pub")
    plain = block(server, "pi").replace(f"  IdentityFile {server.key}\n", "")
    with agent(tmp_path / "agent", key):
        if by_agent:
            config.write_text(f"{plain}  IdentityAgent {tmp_path}/agent\n  CertificateFile {certificate}\n")
        else:
            config.write_text(f"{plain}  IdentityFile {key}\n  CertificateFile {certificate}\n")
        assert heard("pi", config)
        config.write_text(config.read_text().replace("CertificateFile", "# CertificateFile"))
        with pytest.raises(LoginError, match="refused"):
            hear("pi", config)
        certificate.rename(f"{key}-cert.pub")  # beside the key it is found unnamed
        assert by_agent or heard("pi", config)


# --- without an ssh program -------------------------------------------------------------------------------------------


def test_plain_blocks_are_read_without_an_ssh_program(
    sshd: SshdFactory, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    config.write_text(block(sshd(), "pi"))
    assert heard("pi", config)
    with pytest.raises(Unreachable, match="port 1 refused"):
        hear("pi", config, "Port=1")
    for line in ("Include x", "Match all"):
        config.write_text(block(sshd(), "pi") + line)
        with pytest.raises(Unreachable, match=rf"{config}:7: {line.split()[0]} is not read without an ssh") as failure:
            hear("pi", config)
        assert "OpenSSH" in failure.value.hint


# --- names to choose from ---------------------------------------------------------------------------------------------


def test_aliases_are_what_host_lines_spell_out(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text('Host = shelf "attic"\nHost pi # mine\n')
    (tmp_path / "b.conf").write_text(f"Include {tmp_path}/b.conf\nHOST cellar\n")
    config = tmp_path / "config"
    config.write_text(f"Host *.lan !x pi?\nHost desk shelf\n  Port 1\nMatch host y\nInclude {tmp_path}/*.conf\n")
    assert aliases(config) == ["desk", "shelf", "attic", "pi", "cellar"]
    assert aliases(tmp_path / "absent") == []
