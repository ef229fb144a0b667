"""LocalHost and SshHost keep the same promises; SshHost names what is wrong; a fan-out answers for every host."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from conftest import LOCALHOST, Sshd, SshdFactory, free_port

from edgesplit.errors import (
    CommandFailed,
    FleetError,
    HostError,
    HostKeyError,
    InputError,
    LoginError,
    Unreachable,
)
from edgesplit.hosts import fanout, ssh_bulk
from edgesplit.hosts.commands import Command
from edgesplit.hosts.fanout import connect, each, survey
from edgesplit.hosts.host import Host, LocalHost
from edgesplit.hosts.ssh import SESSIONS, SshHost
from edgesplit.hosts.ssh_bulk import BATCH, PACKET
from edgesplit.inventory import Inventory, SshTarget

MB = 1_000_000
NO_CONFIG = os.devnull  # in place of the ~/.ssh/config of whoever runs the tests
BODY = os.urandom(MB)
Serve = Callable[[Callable[[socket.socket], None]], int]


def sh(line: str, title: str = "try it") -> Command:
    return Command(title, line)


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.ssh)])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    if request.param == "local":
        yield LocalHost("pi")
    else:
        with closing(SshHost("pi", request.getfixturevalue("sshd")().target())) as host:
            yield host


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that hands its first connection to a function; returns its port."""
    with ThreadPoolExecutor() as pool:
        listeners: list[socket.socket] = []

        def start(talk: Callable[[socket.socket], None]) -> int:
            listener = socket.create_server((LOCALHOST, 0))
            listeners.append(listener)

            def answer() -> None:
                connection, _ = listener.accept()
                with connection:
                    talk(connection)

            pool.submit(answer)
            return int(listener.getsockname()[1])

        yield start
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        body = asked + BODY
        self.send_response(200)
        if self.path != "/until-closed":
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close" if self.path != "/kept" else "keep-alive")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    with http.server.ThreadingHTTPServer((LOCALHOST, 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


# --- both kinds of host -----------------------------------------------------------------------------------------------


def test_run_returns_what_was_printed(host: Host) -> None:
    assert host.run(sh("printf 'häß %s' \"it's $((1 + 1))\"; echo not this >&2")) == "häß it's 2"
    assert host.run(sh("printf '\\377ok'")) == "\ufffdok"
    assert host.run(sh("for i in 1 2; do\necho $i # a comment\ndone")) == "1\n2\n"


def test_stdin(host: Host) -> None:
    assert host.run(sh("cat"), b"bytes") == "bytes"
    assert host.run(sh("cat"), iter([b"", b"a", b"", b"b" * 40_000, b"c"])) == "a" + "b" * 40_000 + "c"
    assert host.run(sh("cat")) == ""


def test_20_mb_both_ways_at_once(host: Host) -> None:
    data = b"0123456789abcdef" * (20 * MB // 16)
    chunks = (data[at : at + MB] for at in range(0, len(data), MB))
    assert host.run(sh("tee /dev/stderr"), chunks) == data.decode()
    assert host.run(sh("sha256sum"), data).startswith(hashlib.sha256(data).hexdigest())


def test_a_failure_has_status_and_stderr(host: Host) -> None:
    with pytest.raises(CommandFailed) as failure:
        host.run(sh("echo out; echo first >&2; echo 'häß full' >&2; exit 28", "write it"))
    assert failure.value.status == 28
    assert failure.value.stderr == "first\nhäß full\n"
    assert str(failure.value) == "pi: write it failed with status 28: häß full"
    assert host.run(sh("echo alive")) == "alive\n"


def test_a_signal_is_a_failure(host: Host) -> None:
    with pytest.raises(CommandFailed) as failure:
        host.run(sh("kill -9 $$"))
    assert failure.value.status in {137, 255}


def test_an_early_end_while_we_send_tells_its_reason(host: Host) -> None:
    with pytest.raises(CommandFailed, match="No space left") as failure:
        host.run(sh("head -c 100000 > /dev/null; echo No space left >&2; exit 1"), (BODY for _ in range(20)))
    assert failure.value.status == 1
    assert host.run(sh("exec 0<&-; echo done"), BODY * 5) == "done\n"


def test_no_answer_in_time(host: Host) -> None:
    host.run(sh("true"))
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"^pi: no answer to 'wait' within 0\.3 s$"):
        host.run(sh("sleep 5", "wait"), timeout=0.3)
    with pytest.raises(Unreachable, match="no answer to 'wait'"):
        host.run(sh("sleep 5", "wait"), (BODY for _ in range(20)), timeout=0.3)
    assert time.monotonic() - began < 2.0
    assert host.run(sh("echo alive")) == "alive\n"


def test_an_exception_of_stdin_is_its_own(host: Host) -> None:
    def broken() -> Iterator[bytes]:
        yield BODY
        raise FileNotFoundError("the shard went away")

    with pytest.raises(FileNotFoundError, match="the shard went away"):
        host.run(sh("cat"), broken())
    assert host.run(sh("echo alive")) == "alive\n"


def test_many_commands_at_once(host: Host) -> None:
    count = 2 * SESSIONS + 1
    with ThreadPoolExecutor(count) as pool:
        said = list(pool.map(lambda i: host.run(sh("cat; echo $?"), str(i).encode() * 10_000), range(count)))
    assert said == [str(i) * 10_000 + "0\n" for i in range(count)]


def test_dial(host: Host, serve: Serve) -> None:
    def echo(connection: socket.socket) -> None:
        while data := connection.recv(1 << 16):
            connection.sendall(data)

    with closing(host.dial(LOCALHOST, serve(echo))) as stream:
        stream.sendall(b"hello")
        with stream.makefile("rb") as file:
            assert file.read(5) == b"hello"
        stream.sendall(b"again")
        assert stream.recv(100) == b"again"
        stream.settimeout(0.05)
        with pytest.raises(TimeoutError):
            stream.recv(1)


@pytest.mark.parametrize("path", ["/kept", "/closed", "/until-closed"])
def test_dial_for_http(host: Host, web: int, path: str) -> None:
    with closing(http.client.HTTPConnection("entry")) as connection:
        connection.sock = host.dial(LOCALHOST, web, 5.0)
        for _ in range(2 if path == "/kept" else 1):
            connection.request("POST", path, b"asked:")
            with connection.getresponse() as response:
                assert response.status == 200
                assert response.read() == b"asked:" + BODY


def test_dial_where_nothing_listens(host: Host) -> None:
    port = free_port()
    with pytest.raises(Unreachable, match=f"^pi: .*{LOCALHOST} port {port}"):
        host.dial(LOCALHOST, port)


@pytest.mark.parametrize("sizes", [[], [0], [10], [PACKET], [PACKET - 1, 1, 1], [3 * BATCH + 5, 0, PACKET, 7]])
def test_what_is_sent_goes_in_whole_packets(sizes: list[int]) -> None:
    chunks = [os.urandom(size) for size in sizes]
    pieces = [bytes(piece) for piece in ssh_bulk.pieces(chunks)]
    assert b"".join(pieces) == b"".join(chunks)
    assert all(len(piece) % PACKET == 0 for piece in pieces[:-1])
    assert all(0 < len(piece) <= BATCH for piece in pieces)


def test_a_local_command_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        LocalHost("pi").run(sh(f"mkfifo {tmp_path}/alive; sleep 5 > {tmp_path}/alive & wait"), timeout=0.3)
    assert stat.S_ISFIFO((tmp_path / "alive").stat().st_mode)
    with pytest.raises(OSError, match="No such device"):  # nobody has the other end open for reading
        os.open(tmp_path / "alive", os.O_WRONLY | os.O_NONBLOCK)


# --- what can be wrong with SSH ---------------------------------------------------------------------------------------


def hear(sshd: Sshd, config: object = NO_CONFIG, **changes: object) -> str:
    with closing(SshHost("pi", sshd.target(config=str(config), **changes), 5.0)) as host:
        return host.run(sh("echo heard"))


@pytest.mark.ssh
def test_an_unknown_host_key_comes_with_the_command_that_accepts_it(sshd: SshdFactory) -> None:
    server = sshd()
    server.known_hosts.unlink()
    with pytest.raises(HostKeyError) as failure:
        hear(server)
    words = ["ssh-keygen", "-l", "-f", str(server.host_key)]
    fingerprint = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[1]
    assert f"pi: the host key is unknown: {LOCALHOST} port {server.port} shows ssh-ed25519 {fingerprint}" in str(
        failure.value
    )
    _, _, accept = failure.value.hint.partition("; if equal: ")
    subprocess.run(accept, shell=True, check=True, capture_output=True)  # noqa: S602 - the hint is a shell line
    assert server.known_hosts.read_text() == server.host_line
    assert hear(server) == "heard\n"


@pytest.mark.ssh
def test_a_changed_host_key_is_fatal(sshd: SshdFactory) -> None:
    server = sshd()
    server.known_hosts.write_text(server.host_line.replace("ssh-ed25519 AAAA", "ssh-ed25519 AAAB"))
    with pytest.raises(HostKeyError, match="the host key has CHANGED") as failure:
        hear(server)
    assert "ssh-keygen -R" in failure.value.hint


@pytest.mark.ssh
def test_a_revoked_host_key_is_fatal(sshd: SshdFactory) -> None:
    server = sshd()
    _, kind, blob = server.host_line.split()
    server.known_hosts.write_text(f"{server.host_line}@revoked * {kind} {blob}\n")
    with pytest.raises(HostKeyError, match="the host key is revoked"):
        hear(server)


@pytest.mark.ssh
@pytest.mark.parametrize("hashed", [False, True])
def test_known_hosts_with_garbage_and_certificate_lines(sshd: SshdFactory, hashed: bool) -> None:
    server = sshd()
    if hashed:
        subprocess.run(["ssh-keygen", "-H", "-f", str(server.known_hosts)], check=True, capture_output=True)
        assert LOCALHOST not in server.known_hosts.read_text()
    _, kind, blob = server.host_line.split()
    garbage = f"\xff\xfe garbage\n@cert-authority *.lan {kind} {blob}\n@revoked broken\nx ssh-rsa !\n".encode("latin-1")
    server.known_hosts.write_bytes(garbage + server.known_hosts.read_bytes())
    assert hear(server) == "heard\n"


@pytest.mark.ssh
def test_the_kind_of_key_that_is_known_is_asked_for(sshd: SshdFactory) -> None:
    rsa = sshd.keys.pair("host", "rsa")
    server = sshd(HostKey=f"{sshd.keys.pair('host')}\nHostKey {rsa}")
    kind, blob, *_ = rsa.with_suffix(".pub").read_text().split()
    server.known_hosts.write_text(f"[{LOCALHOST}]:{server.port} {kind} {blob}\n")
    assert hear(server) == "heard\n"


@pytest.mark.ssh
@pytest.mark.parametrize("ciphers", ["aes128-gcm@openssh.com", "aes256-ctr"])
def test_new_keys_are_agreed_on_in_mid_stream(sshd: SshdFactory, monkeypatch: pytest.MonkeyPatch, ciphers: str) -> None:
    monkeypatch.setattr(ssh_bulk.Sealer, "REKEY_BYTES", MB)
    with closing(SshHost("pi", sshd(Ciphers=ciphers).target())) as host:
        host.run(sh("true"))
        assert host._transport is not None
        before = host._transport.packetizer._Packetizer__block_engine_out  # type: ignore[attr-defined]
        assert host.run(sh("sha256sum"), BODY * 5).startswith(hashlib.sha256(BODY * 5).hexdigest())
        assert host._transport.packetizer._Packetizer__block_engine_out is not before  # type: ignore[attr-defined]


@pytest.mark.ssh
def test_a_server_without_our_favourite_cipher(sshd: SshdFactory) -> None:
    assert hear(sshd(Ciphers="aes256-ctr")) == "heard\n"
    with pytest.raises(Unreachable, match=r"SSH with .* failed"):
        hear(sshd(Ciphers="chacha20-poly1305@openssh.com"))


@pytest.mark.ssh
def test_a_refused_login(sshd: SshdFactory) -> None:
    server, stranger = sshd(KbdInteractiveAuthentication="no"), sshd.keys.pair("stranger")
    with pytest.raises(LoginError, match=f"in; it takes publickey; keys tried: {stranger}: refused") as failure:
        hear(server, key=str(stranger))
    assert "authorized_keys" in failure.value.hint
    with pytest.raises(LoginError, match=r"it asks for (password|keyboard-interactive)"):
        hear(sshd(PubkeyAuthentication="no", PasswordAuthentication="yes"))


@pytest.mark.ssh
def test_a_missing_key_file(sshd: SshdFactory, tmp_path: Path) -> None:
    with pytest.raises(LoginError, match=f"the key file {tmp_path}/absent is not there"):
        hear(sshd(), key=str(tmp_path / "absent"))


@pytest.mark.ssh
def test_a_key_with_a_passphrase_needs_the_agent(
    sshd: SshdFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = sshd.keys.pair("locked", passphrase="secret")
    server = sshd()
    (server.home / "authorized_keys").write_bytes(locked.with_suffix(".pub").read_bytes())
    with pytest.raises(LoginError, match=f"{locked}: it has a passphrase, and no agent is reached") as failure:
        hear(server, key=str(locked))
    assert failure.value.hint == f'eval "$(ssh-agent)" && ssh-add {locked}'
    with ssh_agent(tmp_path, monkeypatch):
        with pytest.raises(LoginError, match="it has a passphrase, and the agent does not hold it") as failure:
            hear(server, key=str(locked))
        assert failure.value.hint == f"ssh-add {locked}"
        (tmp_path / "ask").write_text("#!/bin/sh\necho secret\n")
        (tmp_path / "ask").chmod(0o700)
        monkeypatch.setenv("SSH_ASKPASS", str(tmp_path / "ask"))
        monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
        for key in (sshd.keys.pair("stranger"), locked):
            subprocess.run(["ssh-add", "-q", str(key)], check=True, capture_output=True)
        assert hear(server, key=str(locked)) == "heard\n"


@contextmanager
def ssh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as agent:
        try:
            while not path.exists():
                time.sleep(0.01)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
            yield
        finally:
            agent.terminate()


def test_a_refused_connection() -> None:
    port = free_port()
    with (
        closing(SshHost("pi", SshTarget(host=LOCALHOST, port=port, config=NO_CONFIG))) as host,
        pytest.raises(Unreachable, match=f"^pi: {LOCALHOST} port {port} refused the connection$"),
    ):
        host.run(sh("true"))


def test_a_name_that_cannot_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with (
        closing(SshHost("pi", SshTarget(host="nowhere.invalid", port=22, config=NO_CONFIG))) as host,
        pytest.raises(Unreachable, match=r"name of nowhere\.invalid port 22 cannot be looked up: Name or"),
    ):
        host.run(sh("true"))


@pytest.mark.parametrize("name", ["a..b", "x" * 70 + ".lan"])
def test_a_name_that_is_none(name: str) -> None:
    with closing(SshHost("pi", SshTarget(host=name, config=NO_CONFIG))) as host, pytest.raises(Unreachable, match=name):
        host.run(sh("true"))


def test_a_silent_port() -> None:
    with socket.create_server((LOCALHOST, 0)) as listener:
        port = listener.getsockname()[1]
        with (
            closing(SshHost("pi", SshTarget(host=LOCALHOST, port=port, config=NO_CONFIG), connect_timeout=0.3)) as host,
            pytest.raises(Unreachable, match=rf"no answer from {LOCALHOST} port {port} within 0\.3 s"),
        ):
            host.run(sh("true"))


def test_a_port_that_speaks_something_else(serve: Serve) -> None:
    port = serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200))
    with (
        closing(SshHost("pi", SshTarget(host=LOCALHOST, port=port, config=NO_CONFIG), connect_timeout=2.0)) as host,
        pytest.raises(Unreachable, match=f"{LOCALHOST} port {port}"),
    ):
        host.run(sh("true"))


@pytest.mark.ssh
def test_forwarding_that_sshd_forbids(sshd: SshdFactory, web: int) -> None:
    with (
        closing(SshHost("pi", sshd(AllowTcpForwarding="no").target())) as host,
        pytest.raises(Unreachable, match="Administratively prohibited") as failure,
    ):
        host.dial(LOCALHOST, web)
    assert "AllowTcpForwarding" in failure.value.hint


@pytest.mark.ssh
def test_a_broken_connection_is_told_and_then_made_anew(sshd: SshdFactory) -> None:
    with closing(SshHost("pi", sshd().target())) as host:
        with pytest.raises(Unreachable, match="the connection broke while the command ran"):
            host.run(sh("sleep 0.2; kill -9 $PPID; sleep 1"))  # so late that the command is known to have begun
        assert host.run(sh("echo alive")) == "alive\n"
        with pytest.raises(Unreachable):
            host.run(sh("kill -9 $PPID; sleep 1"), (BODY for _ in range(20)))
        assert host.run(sh("echo alive")) == "alive\n"


@pytest.mark.ssh
def test_a_frozen_and_then_dead_server(sshd: SshdFactory) -> None:
    with closing(SshHost("pi", sshd().target())) as host:
        serving = int(host.run(sh("echo $PPID")))

        def freeze_it() -> Iterator[bytes]:
            yield BODY
            os.kill(serving, signal.SIGSTOP)
            for _ in range(20):
                yield BODY

        try:
            for stdin in (freeze_it(), b""):
                with pytest.raises(Unreachable, match="no answer to 'try it' within"):
                    host.run(sh("cat > /dev/null"), stdin, timeout=0.4)
        finally:
            os.kill(serving, signal.SIGKILL)
        assert host.run(sh("echo alive")) == "alive\n"


@pytest.mark.ssh
def test_a_connection_full_of_commands_that_do_not_end(sshd: SshdFactory) -> None:
    with closing(SshHost("pi", sshd(MaxSessions="2").target())) as host:
        for _ in range(3):
            with pytest.raises(Unreachable, match="no answer"):
                host.run(sh("sleep 3"), timeout=0.2)
        assert host.run(sh("echo alive")) == "alive\n"


# --- ssh's own configuration ------------------------------------------------------------------------------------------


def config_for(server: Sshd, alias: str, *more: str) -> str:
    settings = (f"HostName {server.host}", f"Port {server.port}", f"User {server.user}", f"IdentityFile {server.key}")
    lines = (*settings, f"UserKnownHostsFile {server.known_hosts}", *more)
    return f"Host {alias}\n" + "".join(f"  {line}\n" for line in lines)


@pytest.mark.ssh
def test_an_alias(sshd: SshdFactory, tmp_path: Path) -> None:
    server = sshd()
    config = tmp_path / "config"
    (tmp_path / "included").write_text(config_for(server, "pi-*"))
    config.write_text(f"Include {tmp_path}/included\nHost pi-2\n  HostName nowhere.invalid\n")
    with closing(SshHost("pi", SshTarget(host="pi-2", config=str(config)))) as host:
        assert host.run(sh("echo heard")) == "heard\n"
    config.write_text(config_for(server, "pi", "HostKeyAlias the-pi"))
    with closing(SshHost("pi", SshTarget(host="pi", config=str(config)))) as host:
        with pytest.raises(HostKeyError, match="unknown") as failure:
            host.run(sh("echo heard"))
        assert "echo 'the-pi ssh-ed25519 " in failure.value.hint
        server.known_hosts.write_text("the-pi " + server.host_line.split(maxsplit=1)[1])
        assert host.run(sh("echo heard")) == "heard\n"


@pytest.mark.ssh
def test_the_inventory_comes_before_the_configuration(sshd: SshdFactory, tmp_path: Path) -> None:
    server = sshd()
    config = tmp_path / "config"
    config.write_text("Host *\n  Port 1\n  User nobody\n  IdentityFile /absent\n  UserKnownHostsFile /absent\n")
    assert hear(server, config) == "heard\n"


@pytest.mark.ssh
def test_configurations_that_cannot_be_followed(sshd: SshdFactory, tmp_path: Path) -> None:
    server, config = sshd(), tmp_path / "config"
    config.write_text("Nonsense yes\n")
    with pytest.raises(Unreachable, match=r"`ssh -G .*` failed: .*Nonsense|nonsense"):
        hear(server, config)


@pytest.mark.ssh
def test_jumps(sshd: SshdFactory, tmp_path: Path) -> None:
    first, second, last = sshd(), sshd(), sshd()
    config = tmp_path / "config"
    hops = config_for(first, "first") + config_for(second, "second", "ProxyJump none")
    config.write_text(hops + config_for(last, "last", "ProxyJump first,second"))
    with closing(SshHost("pi", SshTarget(host="last", config=str(config)))) as host:
        for _ in range(2):
            assert host.run(sh("echo heard")) == "heard\n"
            with pytest.raises(Unreachable):
                host.run(sh("kill -9 $PPID; sleep 1"))
    assert all("Accepted publickey" in server.log for server in (first, second, last))
    config.write_text(hops + config_for(last, "last") + "Host *\n  ProxyJump first\n")
    with closing(SshHost("pi", SshTarget(host="last", config=str(config)))) as host:
        assert host.run(sh("echo heard")) == "heard\n"
    config.write_text(config_for(first, "first", "ProxyJump last") + config_for(last, "last", "ProxyJump first"))
    with (
        closing(SshHost("pi", SshTarget(host="last", config=str(config)))) as host,
        pytest.raises(Unreachable, match="more than 8"),
    ):
        host.run(sh("true"))


@pytest.mark.ssh
def test_without_an_ssh_binary(sshd: SshdFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    server = sshd()
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert hear(server) == "heard\n"
    assert hear(server, user=None) == "heard\n"


# --- many hosts -------------------------------------------------------------------------------------------------------


class RefusedError(HostError):
    pass


def refuse(host: str) -> str:
    if host != "fine":
        raise RefusedError(host, "no", f"ask {host}")
    return "yes"


def test_each_acts_on_all_at_once() -> None:
    together = threading.Barrier(5, timeout=5.0)
    names = ["e", "a", "d", "b", "c"]
    answers = each({name: name for name in names}, lambda host: (together.wait(), host.upper())[1])
    assert list(answers.items()) == [(name, name.upper()) for name in names]
    assert each({}, refuse) == {}


def test_each_raises_what_one_host_raised() -> None:
    with pytest.raises(RefusedError, match=r"^pi: no$"):
        each({"a": "fine", "b": "pi"}, refuse)


def test_each_names_all_that_failed_in_host_order() -> None:
    with pytest.raises(FleetError) as failure:
        each({"c": "slow", "a": "fine", "b": "pi"}, refuse)
    assert [error.host for error in failure.value.errors] == ["slow", "pi"]
    assert str(failure.value) == "slow: no\npi: no"


def test_a_mistake_of_ours_comes_after_all_have_ended() -> None:
    ended = []

    def act(host: str) -> None:
        if host == "bad":
            raise ZeroDivisionError
        time.sleep(0.05)
        ended.append(host)

    with pytest.raises(ZeroDivisionError):
        each({name: name for name in ("bad", "a", "b")}, act)
    assert sorted(ended) == ["a", "b"]


def test_survey_never_raises_for_a_host() -> None:
    answers, failures = survey({"c": "slow", "a": "fine", "b": "pi"}, refuse)
    assert answers == {"a": "yes"}
    assert [(name, error.host) for name, error in failures.items()] == [("c", "slow"), ("b", "pi")]


def test_ctrl_c_ends_what_is_under_way(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within seconds, with nobody left at work; whoever puts things back can use the host at once."""
    monkeypatch.setattr(fanout, "NEARLY", 0.1)
    begun, over = tmp_path / "begun", []

    def act(host: Host) -> None:
        try:
            host.run(sh(f"touch {begun}; sleep 50"), bytes(10 * MB))  # more than anybody buffers
        finally:
            over.append(host.name)

    def press() -> None:
        while not begun.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    start = time.monotonic()
    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        survey({"pi": host}, act)
    assert over == ["pi"]
    assert time.monotonic() - start < 10
    assert host.run(sh("echo well"), timeout=10) == "well\n"


def test_a_closed_host_stays_closed(host: Host) -> None:
    """Also for a thread that still had it."""
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(host.run, sh("echo; sleep 50"))
        time.sleep(0.5)
        host.close()
        with pytest.raises(HostError):
            under_way.result(10)
    with pytest.raises(Unreachable, match="nothing is asked of it any more"):
        host.run(sh("true"))


@pytest.mark.ssh
def test_connect(sshd: SshdFactory) -> None:
    ssh = sshd().target().model_dump()
    local = {"connection": "local", "data": {"port": 7001}}
    inventory = Inventory.model_validate({"hosts": {"pi": {"ssh": ssh}, "here": local, "off": {"ssh": "off"}}})
    with connect(inventory, ["here", "pi"]) as hosts:
        assert each(hosts, lambda host: host.run(sh(f"echo {host.name}"))) == {"here": "here\n", "pi": "pi\n"}
    with connect(inventory) as hosts:
        assert list(hosts) == ["pi", "here", "off"]
    with pytest.raises(InputError, match="no host typo in the inventory"), connect(inventory, ["typo"]):
        pass


def test_a_local_inventory_does_not_load_paramiko() -> None:
    code = (
        "import sys\nfrom edgesplit.hosts.fanout import connect\nfrom edgesplit.inventory import Inventory\n"
        "with connect(Inventory.model_validate({'hosts': {'here': {'connection': 'local'}}})):\n"
        "    sys.exit('paramiko' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- commands that go on ----------------------------------------------------------------------------------------------

COUNTING = Command("count", "cat > /dev/null; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done")


def test_a_stream_comes_line_by_line_until_it_is_closed(host: Host) -> None:
    lines = host.stream(COUNTING, b"x" * 200_000, silence=10)
    found = []
    for line in lines:
        found.append(line)
        if len(found) == 3:
            assert host.run(Command("beside it", "echo well"), timeout=10) == "well\n"
            threading.Timer(0.1, lines.close).start()
    assert found[:3] == ["line 1", "line 2", "line 3"]
    assert len(found) < 60


def test_a_stream_that_ends_badly_says_why(host: Host) -> None:
    lines = host.stream(Command("fail", "echo one; echo why >&2; exit 3"), silence=10)
    found = []
    with pytest.raises(CommandFailed, match="why") as caught:
        found.extend(lines)
    assert found == ["one"]
    assert caught.value.status == 3


@pytest.mark.parametrize(
    "line", ["head -c 3000000 /dev/zero; sleep 50", "exec >&- 2>&-; sleep 50"], ids=["no end", "no exit"]
)
def test_whoever_means_ill_holds_nobody_up(host: Host, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that does not end, and a command that closes its output and goes on."""
    monkeypatch.setattr("edgesplit.hosts.lines.GOODBYE", 0.5)
    monkeypatch.setattr("edgesplit.hosts.ssh_lines.GOODBYE", 0.5)
    start = time.monotonic()
    with suppress(HostError):
        assert list(host.stream(Command("mean ill", line), silence=20)) == []
    assert time.monotonic() - start < 10


def test_a_stream_that_falls_silent_is_unreachable(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesplit.hosts.lines.GOODBYE", 0.1)
    found = []
    with pytest.raises(Unreachable, match="'doze' has said nothing for 1 s"):
        found.extend(host.stream(Command("doze", "echo one; sleep 60"), silence=1))
    assert found == ["one"]


def test_a_stream_ends_with_its_host(host: Host) -> None:
    """Whoever reads is woken, whatever it is told."""
    lines = host.stream(COUNTING, silence=10)
    numbers = iter(lines)
    assert next(numbers) == "line 1"
    lines.close()
    host.close()
    assert len(list(numbers)) < 10
