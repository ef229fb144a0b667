"""Throwaway SSH servers: real ones, each with its own configuration, port and keys, in the test's own folder. And no
test of models is at the mercy of what another one left behind."""

from __future__ import annotations

import dataclasses
import gc
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from edgesplit.inventory import SshTarget

LOCALHOST = "127.0.0.1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C; in the background it would be ignored


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Profiling and audits take as many threads as cores are idle, and several threads sum in another order."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a module leaves open is blamed on it, not on the test that runs when the collector comes by."""
    if "torch" in sys.modules and (nextitem is None or nextitem.path != item.path):
        gc.collect()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOCALHOST, 0))
        return int(listener.getsockname()[1])


@dataclasses.dataclass(frozen=True)
class Sshd:
    """A running server: everything a client must know to reach it. `home` holds its files."""

    host: str
    port: int
    user: str
    key: Path
    host_key: Path
    known_hosts: Path
    home: Path
    pid: int

    def target(self, **changes: object) -> SshTarget:
        fields = {"host": self.host, "user": self.user, "port": self.port, "key": str(self.key)}
        alone = {"known_hosts": str(self.known_hosts), "config": os.devnull}  # no file of the user takes part
        return SshTarget.model_validate({**fields, **alone, **changes})

    @property
    def host_line(self) -> str:
        """The host's line in known_hosts."""
        kind, blob, *_ = self.host_key.with_suffix(".pub").read_text().split()
        return f"[{self.host}]:{self.port} {kind} {blob}\n"

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()


class SshKeys:
    """Key pairs, made once per session and name."""

    def __init__(self, folder: Path, ssh_keygen: str) -> None:
        self._folder = folder
        self._ssh_keygen = ssh_keygen

    def pair(self, name: str, kind: str = "ed25519", passphrase: str = "") -> Path:
        path = self._folder / f"{name}_{kind}"
        if not path.exists():
            words = [self._ssh_keygen, "-q", "-t", kind, "-N", passphrase, "-C", "edgesplit-test", "-f", str(path)]
            words += ["-b", "2048"] if kind == "rsa" else []  # found in a fraction of the time of the default
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        return path


class SshdFarm:
    """Calling it starts a server; keyword arguments are lines of its sshd_config."""

    def __init__(self, folder: Path, binary: str, keys: SshKeys) -> None:
        self.keys = keys
        self._folder = folder
        self._binary = binary
        self._running: list[subprocess.Popen[bytes]] = []

    def __call__(self, **options: str) -> Sshd:
        home = self._folder / f"sshd{len(self._running)}"
        home.mkdir()
        key, host_key = self.keys.pair("user"), self.keys.pair("host")
        shutil.copy(key.with_suffix(".pub"), home / "authorized_keys")
        host, port = options.get("ListenAddress", LOCALHOST), free_port()
        server = Sshd(host, port, getpass.getuser(), key, host_key, home / "known_hosts", home, 0)
        server.known_hosts.write_text(server.host_line)
        settings = {
            "Port": str(port),
            "ListenAddress": LOCALHOST,
            "HostKey": str(host_key),
            "AuthorizedKeysFile": str(home / "authorized_keys"),
            "PidFile": str(home / "pid"),
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "yes",
            "MaxStartups": "100",
            "SetEnv": f"HOME={home}",  # no rc file of the user runs, no file of the user is touched
            **options,
        }
        (home / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        return dataclasses.replace(server, pid=self._start(home))

    def _start(self, home: Path) -> int:
        with (home / "log").open("wb") as log:
            words = [self._binary, "-D", "-e", "-f", str(home / "sshd_config")]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log)
        self._running.append(process)
        deadline = time.monotonic() + 10.0
        while b"Server listening" not in (home / "log").read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"sshd did not start: {(home / 'log').read_text()}")
            time.sleep(0.01)
        return process.pid

    def stop(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.terminate()  # the connections it serves end when their clients hang up
            process.wait(10.0)


class SshdFactory(Protocol):
    keys: SshKeys

    def __call__(self, **options: str) -> Sshd: ...


def _tool(name: str) -> str:
    """The absolute path of an OpenSSH tool; without it the test is skipped, or fails where ssh is required."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        message = f"{name} is not installed (Debian: apt-get install openssh-server openssh-client)"
        if os.environ.get("EDGESPLIT_REQUIRE_SSH") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return os.path.abspath(found)


@pytest.fixture(scope="session")
def ssh_keys(tmp_path_factory: pytest.TempPathFactory) -> SshKeys:
    return SshKeys(tmp_path_factory.mktemp("keys"), _tool("ssh-keygen"))


@pytest.fixture
def sshd(tmp_path: Path, ssh_keys: SshKeys, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshdFarm]:
    """A factory of servers, which end with the test. No agent of the user takes part."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    binary = _tool("sshd")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd, as root, separates its privileges
    farm = SshdFarm(tmp_path, binary, ssh_keys)
    try:
        yield farm
    finally:
        farm.stop()
