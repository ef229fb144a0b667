"""Ask every host at once what it lacks, and let those that can meet on their data ports.

Must not know: what is enough (findings.py).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgesplit.broadcast.archive import runner_archive
from edgesplit.broadcast.environment import Base, find_base
from edgesplit.broadcast.remote import lacks
from edgesplit.errors import CommandFailed, HostError
from edgesplit.hosts import commands, systemd
from edgesplit.hosts.fanout import survey
from edgesplit.hosts.host import Host
from edgesplit.inventory import HostSpec, Inventory
from edgesplit.profiling import findings
from edgesplit.profiling.findings import Finding

PATIENCE = 60.0  # seconds for one question: a slow board takes some to start Python
MEETING = 10.0  # seconds within which hosts that can meet do


def check(hosts: Mapping[str, Host], inventory: Inventory) -> dict[str, tuple[Finding, ...]]:
    """Host -> findings, in the order of findings.SUBJECTS; the first that is not ok may be the last."""
    bases: dict[str, Base] = {}
    found, failures = survey(hosts, lambda host: _examine(host, inventory.hosts[host.name], bases))
    found.update({name: [findings.no_login(error)] for name, error in failures.items()})
    able = {name: hosts[name] for name in hosts if any(one.subject == "memory" for one in found[name])}
    pythons = {name: {"python": base.python} for name, base in bases.items()}
    specs = {name: spec.model_copy(update=pythons.get(name)) for name, spec in inventory.hosts.items()}
    for name, finding in _meet(able, specs).items():
        found[name].append(finding)
    return {name: tuple(found[name]) for name in hosts}


def _installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of these packages on this machine."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _examine(host: Host, spec: HostSpec, bases: dict[str, Base]) -> list[Finding]:
    """Raises HostError when the host cannot be logged in to. `bases` learns what an environment could be made from."""
    host.run(commands.clock(), timeout=PATIENCE)  # connects
    before = time.time()
    clock = findings.clock(float(host.run(commands.clock())), before, time.time())
    found = [findings.login(spec)]
    if spec.service is not None:
        found.append(findings.service(host.run(systemd.look()).strip()))
    if coming := lacks(host, spec):
        return [*found, *_examine_bare(host, spec, coming, bases), clock]
    try:
        found.append(findings.python(spec, host.run(commands.python_version(spec.interpreter)).strip()))
    except CommandFailed as error:
        return [*found, findings.no_python(spec, error), clock]
    if not found[-1].ok:
        return [*found, clock]
    return [*found, *_resources(host, spec), clock]


def _examine_bare(host: Host, spec: HostSpec, coming: str, bases: dict[str, Base]) -> list[Finding]:
    """A host for which an environment will be made."""
    try:
        base = bases[host.name] = find_base(host, spec)
    except HostError as error:
        return [Finding(subject="python", ok=False, found=error.message.removeprefix(f"{host.name}: "), do=error.hint)]
    bare = spec.model_copy(update={"python": base.python})
    rest = [one for one in _resources(host, bare) if one.subject != "packages"]
    packages = findings.to_install(coming, cuda_for_nothing=base.gets_cuda(spec) and not base.marks["gpu"])
    return [findings.python(bare, base.version), packages, *rest]


def _resources(host: Host, spec: HostSpec) -> list[Finding]:
    try:
        answer = _ask(host, spec, "examine", {"work": spec.work})
    except HostError as error:
        told = error.message.removeprefix(f"{host.name}: ")
        return [Finding(subject="disk", ok=False, found=told, do=error.hint)]
    wanted = _installed([*answer["packages"], *answer["missing"]])
    return [*findings.examined(spec, answer, wanted)]


def _meet(hosts: Mapping[str, Host], specs: Mapping[str, HostSpec]) -> dict[str, Finding]:
    places = {name: (specs[name].data_address, specs[name].data.port) for name in hosts}
    token = secrets.token_hex(16)

    def meet(host: Host) -> dict[str, Any]:
        peers = {name: place for name, place in places.items() if name != host.name}
        address, port = places[host.name]
        words = {"me": host.name, "address": address, "port": port, "token": token, "peers": peers, "timeout": MEETING}
        return _ask(host, specs[host.name], "meet", words)

    answers, failures = survey(hosts, meet)
    found = {}
    for name in hosts:
        spec = specs[name]
        if name in failures:
            told = failures[name].message.removeprefix(f"{name}: ")
            found[name] = Finding(subject="data port", ok=False, found=told, do=failures[name].hint)
            continue
        missed = {other: said["missed"][name] for other, said in answers.items() if name in said["missed"]}
        strangers = frozenset(other for other, said in answers.items() if name in said["strangers"])
        found[name] = findings.data_port(spec, answers[name]["taken"], missed, strangers)
    return found


def _ask(host: Host, spec: HostSpec, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """One verb of the runner, which is sent along. Raises HostError."""
    command = commands.measure(spec.interpreter, verb, arguments)
    text = host.run(command, stdin=runner_archive().data, timeout=PATIENCE)
    try:
        return dict(json.loads(text.strip().splitlines()[-1]))
    except (ValueError, IndexError) as error:
        raise HostError(host.name, f"its answer makes no sense: {text[-200:]!r}") from error
