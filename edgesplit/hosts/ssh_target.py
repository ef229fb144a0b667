"""An SshTarget of the inventory -> an Endpoint: where `ssh` itself would go, as whom, and with which files.

`ssh -G` is asked, so that ~/.ssh/config means here what it means there; without an ssh binary its defaults are taken.
Must not know: paramiko, sockets.
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgesplit.errors import LoginError, Unreachable
from edgesplit.hosts import known_hosts
from edgesplit.inventory import SshTarget

DEFAULTS = {  # of OpenSSH
    "port": ["22"],
    "identityfile": ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"],
    "userknownhostsfile": ["~/.ssh/known_hosts ~/.ssh/known_hosts2"],
    "globalknownhostsfile": ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"],
}
_JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>.+)@)?(?:\[(?P<v6>[^]]+)]|(?P<host>[^:]+))(?::(?P<port>\d+))?/?")


@dataclass(frozen=True)
class Endpoint:
    """`known_as` is the host's name in known_hosts files; `jumps` are what ProxyJump names, the nearest to us first."""

    host: str
    port: int
    user: str
    keys: tuple[Path, ...]
    known_hosts: tuple[Path, ...]
    known_as: str
    jumps: tuple[str, ...] = ()
    only_keys: bool = False  # IdentitiesOnly: of the agent's keys, only those that `keys` name

    @property
    def place(self) -> str:
        return f"{self.host} port {self.port}"

    @property
    def scannable(self) -> bool:
        """Whether ssh-keyscan reaches it, and lists it by the name that is looked up."""
        return not self.jumps and self.known_as == known_hosts.place(self.host, self.port)


def resolve(name: str, spec: SshTarget, config_file: Path | None = None) -> Endpoint:
    """Raises Unreachable when ssh's configuration cannot be followed, LoginError when the named key is not there."""
    said = DEFAULTS | _ask_ssh(name, spec, config_file)
    one = {keyword: values[0] for keyword, values in said.items()}
    if one.get("proxycommand", "none") != "none":
        raise Unreachable(name, f"ssh's configuration reaches {spec.host} by a ProxyCommand", "use ProxyJump instead")
    host, port = one.get("hostname", spec.host), spec.port or int(one["port"])
    user = spec.user or one.get("user") or getpass.getuser()
    tokens = {"%": "%", "d": str(Path.home()), "h": host, "n": spec.host, "p": str(port), "r": user}
    jump = one.get("proxyjump", "none")
    return Endpoint(
        host,
        port,
        user,
        _keys(name, spec, _paths(said["identityfile"], tokens)),
        _paths([spec.known_hosts] if spec.known_hosts else _known_hosts_of(one), tokens),
        one.get("hostkeyalias") or known_hosts.place(host, port),
        () if jump == "none" else tuple(jump.split(",")),
        one.get("identitiesonly") == "yes",
    )


def jump_target(name: str, text: str) -> SshTarget:
    """[user@]host[:port], as ProxyJump writes it."""
    parts = _JUMP.fullmatch(text)
    if parts is None:
        raise Unreachable(name, f"ProxyJump {text} is not [user@]host[:port]")
    port = parts["port"]
    return SshTarget(host=parts["v6"] or parts["host"], user=parts["user"], port=int(port) if port else None)


def _ask_ssh(name: str, spec: SshTarget, config_file: Path | None) -> dict[str, list[str]]:
    """Keyword -> values, as `ssh -G` prints them; nothing without an ssh binary."""
    binary = shutil.which("ssh")
    if binary is None:
        return {}
    options = {"-F": config_file, "-p": spec.port, "-l": spec.user}
    given = [str(word) for option in options.items() if option[1] is not None for word in option]
    try:
        done = subprocess.run(
            [binary, "-G", *given, "--", spec.host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10.0,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unreachable(name, f"`ssh -G {spec.host}` did not end within 10 s", "look into ~/.ssh/config") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Unreachable(name, f"`ssh -G {spec.host}` failed: {said[0] if said else done.returncode}")
    settings: dict[str, list[str]] = {}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        keyword, _, value = line.partition(" ")
        settings.setdefault(keyword.lower(), []).append(value)
    return settings


def _keys(name: str, spec: SshTarget, configured: tuple[Path, ...]) -> tuple[Path, ...]:
    if spec.key is None:
        return tuple(path for path in configured if path.is_file())
    key = Path(spec.key).expanduser()
    if not key.is_file():
        raise LoginError(
            name, f"the key file {key} is not there", "`key` of the host's `ssh` in the inventory names it"
        )
    return (key,)


def _known_hosts_of(one: dict[str, str]) -> list[str]:
    files = f"{one['userknownhostsfile']} {one['globalknownhostsfile']}".split()
    return [file for file in files if file != "none"]


def _paths(texts: Iterable[str], tokens: dict[str, str]) -> tuple[Path, ...]:
    whole = (re.sub("%(.)", lambda token: tokens.get(token[1], token[0]), text) for text in texts)
    return tuple(Path(text).expanduser() for text in whole)
