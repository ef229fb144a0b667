"""An SshTarget of the inventory -> an Endpoint: where `ssh` itself would go, as whom, and with which files.

Must not know: paramiko, sockets, how the configuration is read.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgesplit.errors import LoginError, Unreachable
from edgesplit.hosts import known_hosts
from edgesplit.hosts.host import who
from edgesplit.hosts.ssh_config import Settings, ask
from edgesplit.inventory import SshTarget

DEFAULTS: Settings = {  # of OpenSSH
    "port": ["22"],
    "identityfile": [
        f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa")
    ],
    "userknownhostsfile": ["~/.ssh/known_hosts ~/.ssh/known_hosts2"],
    "globalknownhostsfile": ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"],
}
ALGORITHMS = {"ciphers": "ciphers", "macs": "digests", "kexalgorithms": "kex"}  # ssh's word -> paramiko's

_JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>.+)@)?(?:\[(?P<v6>[^]]+)]|(?P<host>[^:]+))(?::(?P<port>\d+))?/?")
_FILES = re.compile(r" (?=[/~])")  # between two file names; one of them may hold a space


@dataclass(frozen=True)
class Endpoint:
    """`names`: what known_hosts files may call the host, its own name first. `jumps`: the nearest to us first."""

    host: str
    port: int
    user: str
    keys: tuple[Path, ...]
    known_hosts: tuple[Path, ...]  # the user's files: what is accepted goes into the first
    names: tuple[str, ...]
    global_known_hosts: tuple[Path, ...] = ()
    missing_keys: tuple[Path, ...] = ()  # configured, but not there
    only_keys: bool = False  # IdentitiesOnly: of the agent's keys, only those that `keys` name
    certificates: tuple[Path, ...] = ()
    agent: str = ""  # its socket; "" for none
    jumps: tuple[str, ...] = ()
    proxy: str = ""  # ProxyCommand, as sh runs it
    family: socket.AddressFamily = socket.AF_UNSPEC
    bind: str = ""
    accept_new: bool = False
    hash_names: bool = False
    revoked: tuple[Path, ...] = ()
    host_keys: tuple[str, ...] = ()  # HostKeyAlgorithms; empty: any
    algorithms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what may be used, where it is limited
    patience: float | None = None  # ConnectTimeout

    @property
    def place(self) -> str:
        return f"{self.host} port {self.port}"


def resolve(name: str, spec: SshTarget) -> Endpoint:
    """Raises Unreachable when ssh's configuration cannot be followed, LoginError when the named key is not there."""
    said = DEFAULTS | ask(name, spec)
    one = {keyword: values[0] for keyword, values in said.items()}
    if one.get("proxyusefdpass") == "yes":
        raise Unreachable(name, f"ssh's configuration says ProxyUseFdpass for {spec.host}", "use ProxyJump instead")
    host, port = one.get("hostname", spec.host), spec.port or int(one["port"])
    user = spec.user or one.get("user") or who()
    tokens = _tokens(spec.host, host, port, user)
    keys = _paths([spec.key] if spec.key else said["identityfile"], tokens)
    _check_key(name, spec)
    standard = _paths(DEFAULTS["identityfile"], {})
    jump, alias = one.get("proxyjump", "none"), one.get("hostkeyalias", "")
    own = known_hosts.place(host, port)
    return Endpoint(
        host,
        port,
        user,
        tuple(path for path in keys if path.is_file()),
        _files(spec.known_hosts or one["userknownhostsfile"], tokens),
        (alias,) if alias else tuple(dict.fromkeys((own, host.lower()))),
        global_known_hosts=() if spec.known_hosts else _files(one["globalknownhostsfile"], tokens),
        missing_keys=tuple(path for path in keys if path not in standard and not path.is_file()),
        only_keys=one.get("identitiesonly") == "yes",
        certificates=_paths(said.get("certificatefile", []), tokens),
        agent=_agent(one.get("identityagent", "SSH_AUTH_SOCK"), tokens),
        jumps=() if jump == "none" else tuple(jump.split(",")),
        proxy=_proxy(one.get("proxycommand", "none"), tokens),
        family={"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(one.get("addressfamily", ""), socket.AF_UNSPEC),
        bind=one.get("bindaddress", ""),
        accept_new=one.get("stricthostkeychecking") == "accept-new",
        hash_names=one.get("hashknownhosts") == "yes",
        revoked=_files(one.get("revokedhostkeys", "none"), tokens),
        host_keys=tuple(one["hostkeyalgorithms"].split(",")) if "hostkeyalgorithms" in one else (),
        algorithms={ours: tuple(one[theirs].split(",")) for theirs, ours in ALGORITHMS.items() if theirs in one},
        patience=_seconds(one.get("connecttimeout", "none")),
    )


def jump_target(name: str, text: str, spec: SshTarget) -> SshTarget:
    """[user@]host[:port], as ProxyJump writes it; it is looked up in the same configuration as `spec`."""
    parts = _JUMP.fullmatch(text)
    if parts is None:
        raise Unreachable(name, f"ProxyJump {text} is not [user@]host[:port]")
    port = parts["port"]
    return SshTarget(
        host=parts["v6"] or parts["host"], user=parts["user"], port=int(port) if port else None, config=spec.config
    )


def _check_key(name: str, spec: SshTarget) -> None:
    if spec.key is not None and not Path(spec.key).expanduser().is_file():
        hint = "`key` of the host's `ssh` in the inventory names it"
        raise LoginError(name, f"the key file {Path(spec.key).expanduser()} is not there", hint)


def _tokens(alias: str, host: str, port: int, user: str) -> dict[str, str]:
    """What % and a letter stand for in file names and commands; see TOKENS in ssh_config(5)."""
    here = socket.gethostname()
    return {
        "%": "%", "d": str(Path.home()), "h": host, "n": alias, "k": alias, "p": str(port), "r": user,
        "u": who(), "i": str(os.getuid()), "l": here, "L": here.partition(".")[0],
    }  # fmt: skip


def _expand(text: str, tokens: Mapping[str, str]) -> str:
    return re.sub("%(.)", lambda token: tokens.get(token[1], token[0]), text)


def _paths(texts: Iterable[str], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    plain = (re.sub(r"\$\{(\w+)}", lambda name: os.environ.get(name[1], name[0]), text) for text in texts)
    return tuple(Path(_expand(text.strip('"'), tokens)).expanduser() for text in plain)


def _files(text: str, tokens: Mapping[str, str]) -> tuple[Path, ...]:
    return () if text == "none" else _paths(_FILES.split(text), tokens)


def _agent(text: str, tokens: Mapping[str, str]) -> str:
    if text == "none":
        return ""
    if text == "SSH_AUTH_SOCK" or text.startswith("$"):
        return os.environ.get(text.removeprefix("$"), "")
    return str(_paths([text], tokens)[0])


def _proxy(text: str, tokens: Mapping[str, str]) -> str:
    return "" if text == "none" else _expand(text, tokens)


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() and int(text) > 0 else None
