"""What a deployment says of itself, read from its hosts: presence, runner status, manifest, secrets.

Must not know: plans, splits, how anything is changed.
"""

from __future__ import annotations

import json
import re
from typing import Any

from edgesplit.broadcast.authority import Secrets
from edgesplit.broadcast.transition import Presence
from edgesplit.errors import CommandFailed, DeployError, EdgesplitError, HostError
from edgesplit.hosts import commands
from edgesplit.hosts.host import Host
from edgesplit.inventory import HostSpec
from edgesplit.packages import wanted
from edgesplit.runner.manifest import Manifest, ManifestError, recorded

CONTROLLER = "keys/controller.pub"  # whose commands the runner there obeys
_STATUS = b'{"verb": "status"}'
_PASSWORD = re.compile(r"//[^/@]*@")  # and name, of an address
_BEGUN = re.compile(r"\.part +\d+$")
STATUS_SECONDS = 5.0  # a runner answers in milliseconds; one that is frozen never does
SLACK = 20.0  # seconds an answer may spend on its way


class NotServing(EdgesplitError):
    """No runner answers in that folder. `coming`: one that was started may yet."""

    def __init__(self, message: str, *, coming: bool = False) -> None:
        super().__init__(message)
        self.coming = coming


def ask(host: Host, spec: HostSpec, folder: str, archive: str, request: bytes, seconds: float) -> dict[str, Any]:
    """One control message to the runner, which gets `seconds`. Raises HostError with its own words, NotServing."""
    command = commands.control(spec.interpreter, folder, archive, seconds)
    return _answer(host, host.run(command, stdin=request, timeout=seconds + SLACK))


def status(host: Host, spec: HostSpec, folder: str, archive: str, wait: int = 0) -> dict[str, Any]:
    """The runner's report; `wait`: seconds it is given to come up. Raises NotServing, HostError."""
    command = commands.control(spec.interpreter, folder, archive, STATUS_SECONDS, wait)
    return _answer(host, host.run(command, stdin=_STATUS, timeout=wait + STATUS_SECONDS + SLACK))


def api_key(host: Host, spec: HostSpec, folder: str) -> str:
    """The key to the API that a runner gives to whoever may log in as its user. Raises NotServing, HostError."""
    archive = _archive(look_into(host, folder)[1])
    if archive is None:
        raise NotServing(f"{host.name}: no runner was ever started there")
    command = commands.control(spec.interpreter, folder, archive, STATUS_SECONDS)
    return str(_answer(host, host.run(command, stdin=b'{"verb": "key"}', timeout=STATUS_SECONDS + SLACK))["key"])


def _archive(files: frozenset[str]) -> str | None:
    return next((name for name in sorted(files) if name.startswith("runner-") and name.endswith(".pyz")), None)


def _answer(host: Host, text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise HostError(host.name, f"its runner's answer makes no sense: {text[:200]!r}") from error
    if "absent" in answer:
        raise NotServing(f"{host.name}: {answer['absent']}", coming=answer.get("coming", False))
    if "error" in answer:
        taken = "port" in str(answer["error"]) and "cannot be used" in str(answer["error"])
        hint = "another program has it: end that, or set another (`data.port`, `api.port`)" if taken else ""
        raise HostError(host.name, str(answer["error"]), hint)
    return dict(answer["ok"])


PYTHON_HINT = "its `python` in the inventory names one that has the runner's packages; edgesplit check tells"


def no_python(host: Host, spec: HostSpec) -> HostError:
    return HostError(host.name, f"there is no Python {spec.interpreter} that can be run", PYTHON_HINT)


def lacks_packages(error: CommandFailed, spec: HostSpec) -> HostError | None:
    """What its Python said, where that means a package of the runner is missing."""
    said = error.stderr.strip().rpartition("\n")[2]
    if "No module named" not in said:
        return None
    return HostError(error.host, f"{spec.interpreter} lacks the runner's packages: {said}", PYTHON_HINT)


def present(host: Host, folder: str, spec: HostSpec) -> tuple[Presence, dict[str, Any] | None]:
    """What is in the deployment's folder, and its runner's status (None when none answers)."""
    there, files, parts = look_into(host, folder)
    archive = _archive(files)
    state, lacking = None, lacks(host, spec)
    if archive is not None and "runner.pid" in files and not lacking:
        try:
            state = status(host, spec, folder, archive)
        except NotServing:
            state = None
    epochs = None if state is None else tuple(int(epoch) for epoch in state["epochs"])
    return Presence(there, files, epochs, CONTROLLER in files, parts, lacking), state


def lacks(host: Host, spec: HostSpec) -> str:
    """What must be installed before this host can run anything of ours, in words; "" if nothing."""
    if spec.environment is None or host.run(commands.environment_there(spec.environment)).strip() == "yes":
        return ""
    names = ", ".join(f"{package.name} {package.release}" for package in wanted())
    ours = spec.packages
    index = _PASSWORD.sub("//", ours.index or "its package index")
    source = f"wheels in {ours.wheels}" if ours.wheels else index
    return f"{names} from {source} into {spec.environment}"


def look_into(host: Host, folder: str) -> tuple[bool, frozenset[str], dict[str, int]]:
    """Is the folder there; its files; path -> bytes that are there of files that did not arrive whole."""
    lines = host.run(commands.survey(folder)).splitlines()
    begun = [line.rpartition(" ") for line in lines if _BEGUN.search(line)]
    files = frozenset(line for line in lines if not _BEGUN.search(line)) - {"."}
    return bool(lines), files, {name.removesuffix(".part"): int(size) for name, _, size in begun}


def manifest(host: Host, folder: str, name: str = "manifest.json") -> Manifest | None:
    """The signed manifest a host keeps of the epoch it serves; None when it never served. Raises DeployError.

    `previous.json`: of the last one before it with another split.
    """
    text = host.run(commands.read_if_there(f"{folder}/{name}"))
    if not text:
        return None
    try:
        return recorded(text)
    except ManifestError as error:
        raise DeployError(f"{host.name}: its {name} is damaged: {error}", "deploy again") from error


def read_secrets(host: Host, folder: str) -> Secrets | None:
    """The deployment's keys, from the entry host; None before the first deploy. Raises DeployError."""
    text = host.run(commands.read_if_there(f"{folder}/keys/controller.json"))
    if not text:
        return None
    try:
        return Secrets.model_validate_json(text)
    except ValueError:
        raise DeployError(f"{host.name}: the deployment's keys are damaged", "edgesplit down, then deploy") from None
