"""Carry the steps of a transition out, over the hosts' narrow door: all of them, or none.

Must not know: why this split (revision), how a host is reached (hosts), how progress is shown (cli).
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import hashlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

from edgesplit.broadcast.authority import HostKeys, Secrets, command_key, create, fingerprint, issue
from edgesplit.broadcast.cargo import Cargo, Thing, split_of
from edgesplit.broadcast.remote import NotServing, ask, manifest, present, read_secrets, status
from edgesplit.broadcast.signing import Signer
from edgesplit.broadcast.transition import Phase, Presence, Step, transition
from edgesplit.errors import CommandFailed, DeployError, EdgesplitError, FleetError, HostError, MovedError
from edgesplit.hosts import commands
from edgesplit.hosts.fanout import each, survey
from edgesplit.hosts.host import Host
from edgesplit.runner.manifest import Manifest
from edgesplit.split import Split
from edgesplit.units import format_size

START_SECONDS = 120  # a runner imports torch: 4 to 9 s on a fast machine, ten times that on a small board
LOAD_SECONDS = 1800.0
LINK_SECONDS = 20.0
TRIAL_SECONDS = 60.0


class Progress(Protocol):
    """Told what happens, from several threads."""

    def begin(self, step: Step) -> None: ...

    def sent(self, step: Step, size: int) -> None: ...

    def end(self, step: Step) -> None: ...

    def undo(self) -> None: ...


@dataclass(frozen=True)
class Scene:
    """What was found before anything is changed."""

    presences: Mapping[str, Presence]
    manifest: Manifest | None  # of the epoch that the entry serves, if it does
    broken: str  # why the running ring is broken; "" when it is not, or there is none
    serial: int  # the newest that any runner has honoured

    @cached_property
    def running(self) -> Split | None:
        return None if self.manifest is None else split_of(self.manifest)

    @property
    def next_epoch(self) -> int:
        held = [epoch for presence in self.presences.values() for epoch in presence.epochs or ()]
        return max([*held, self.running.epoch if self.running else 0]) + 1


def look(cargo: Cargo, hosts: Mapping[str, Host]) -> Scene:
    """Ask every host what it has. Raises HostError, FleetError, MovedError."""
    reports = each(hosts, lambda host: present(host, cargo.folder(host.name), cargo.inventory.hosts[host.name]))
    for name, (presence, state) in reports.items():
        archive = cargo.archive.name
        if state is not None and archive not in presence.objects:
            hint = "take the deployment down (edgesplit down), then deploy it again"
            raise MovedError(f"{name}: a runner of another version of edgesplit is running", hint)
    entry = reports.get(cargo.plan.entry)
    kept, broken = None, ""
    if entry is not None and entry[1] is not None and entry[1].get("serving") is not None:
        kept = manifest(hosts[cargo.plan.entry], cargo.folder(cargo.plan.entry))
        broken = str(entry[1]["epochs"].get(str(entry[1]["serving"]), {}).get("reason", ""))
    serial = max((int(state["serial"]) for _, state in reports.values() if state is not None), default=0)
    return Scene({name: presence for name, (presence, _) in reports.items()}, kept, broken, serial)


def served(host: Host, folder: str) -> Split | None:
    """The split of the manifest a host keeps."""
    found = manifest(host, folder)
    return None if found is None else split_of(found)


def settled(cargo: Cargo, scene: Scene, target: Split) -> bool:
    """Is this very split of these very weights serving already, as the plan wishes, on runners that are all there?"""
    running, kept = scene.running, scene.manifest
    if running is None or kept is None or scene.broken or not running.same_stages(target) or not cargo.matches(kept):
        return False
    return all(running.epoch in (scene.presences[host].epochs or ()) for host in running.hosts)


@dataclass(frozen=True)
class Pushed:
    """What serves now, and what went wrong after the moment of change: `warnings` name hosts and reasons."""

    split: Split
    warnings: tuple[str, ...] = ()


def push(
    cargo: Cargo, target: Split, hosts: Mapping[str, Host], scene: Scene, progress: Progress, *, reason: str
) -> Pushed:
    """Bring `target` up as the next epoch.

    On any failure before the entry commits, every host is put back as it was and DeployError tells why. After it the
    new epoch serves, and a host that fails to confirm or to clear up is a warning.
    """
    target = target.at(scene.next_epoch)
    absent = [host for host in target.hosts if host not in hosts]
    if absent:
        raise DeployError(f"{', '.join(absent)} cannot be reached and the split needs it")
    steps = transition(scene.running, target, scene.presences, cargo.needs(target))
    act = _Act(cargo, target, hosts, scene, progress, reason)
    try:
        for phase, group in groupby(steps, key=lambda step: step.phase):
            act.carry_out(phase, list(group))
    except BaseException as error:
        with contextlib.suppress(EdgesplitError):
            act.let_go() if act.committed or act.unknown else act.undo()
        if act.unknown:
            hint = "edgesplit status tells what serves; then deploy again"
            raise DeployError(
                f"{target.entry} did not say whether epoch {target.epoch} serves: {error}", hint
            ) from error
        if isinstance(error, EdgesplitError) and not isinstance(error, MovedError | DeployError):
            raise DeployError(f"{error.message}\nthe hosts are as they were", error.hint) from error
        raise
    return Pushed(target, tuple(act.warnings))


@dataclass
class _Act:
    """One push under way."""

    cargo: Cargo
    target: Split
    hosts: Mapping[str, Host]
    scene: Scene
    progress: Progress
    reason: str
    committed: bool = False
    unknown: bool = False  # the entry was told to commit, and neither confirms nor denies
    warnings: list[str] = field(default_factory=list)
    locked: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    prepared: bool = False
    signer: Signer | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def carry_out(self, phase: Phase, steps: Sequence[Step]) -> None:
        """One phase on all its hosts at once."""
        if phase is Phase.SHIP:
            self._keys()
        if phase is Phase.PREPARE:
            self.prepared = True
        handlers: dict[Phase, Callable[[Host, Step], object]] = {
            Phase.LOCK: self._lock,
            Phase.SHIP: self._ship,
            Phase.START: self._start,
            Phase.PREPARE: self._prepare,
            Phase.LINK: lambda host, _: self._say(host, "link", LINK_SECONDS + 5, timeout=LINK_SECONDS),
            Phase.TRIAL: lambda host, _: self._say(host, "trial", TRIAL_SECONDS + 5, timeout=TRIAL_SECONDS),
            Phase.COMMIT: self._commit,
            Phase.CONFIRM: lambda host, _: self._say(host, "commit", 30),
            Phase.RETIRE: self._retire,
            Phase.STOP: lambda host, _: self._stop(host),
            Phase.UNLOCK: lambda host, _: self._unlock(host),
        }
        by_host: dict[str, list[Step]] = {}
        for step in steps:
            by_host.setdefault(step.host, []).append(step)

        def act(host: Host) -> None:
            for step in by_host[host.name]:
                self.progress.begin(step)
                handlers[phase](host, step)
                self.progress.end(step)

        involved = {name: self.hosts[name] for name in by_host}
        if not self.committed:
            each(involved, act)
            return
        _, errors = survey(involved, act)
        self.warnings.extend(error.message for error in errors.values())

    # --- steps ---

    def _lock(self, host: Host, _: Step) -> None:
        note = signature(self.reason)
        try:
            host.run(commands.lock(self._folder(host), note))
        except CommandFailed as error:
            if error.status != commands.LOCKED:
                raise
            who = error.stderr.strip() or "somebody"
            raise MovedError(f"{host.name} is locked by {who}", commands.LOCK_HINT) from error
        self.locked.add(host.name)
        host.run(commands.audit(self._folder(host), f"epoch {self.target.epoch}: {note}"))

    def _ship(self, host: Host, step: Step) -> None:
        free = int(host.run(commands.free_space(self._folder(host))).strip() or 0)
        if free < step.size:
            raise HostError(
                host.name,
                f"no space: {format_size(step.size)} to store and {format_size(free)} free in {self._folder(host)}",
                "free some, or set `work` to a folder on a larger disk",
            )
        for path in step.objects:
            thing = self.cargo.things[path]
            command = commands.receive(f"{self._folder(host)}/{path}", thing.sha256, "600")
            host.run(command, stdin=self._counted(thing, step), timeout=_patience(thing.size))

    def _counted(self, thing: Thing, step: Step) -> Iterator[bytes]:
        for piece in thing.chunks():
            yield piece
            self.progress.sent(step, len(piece))

    def _start(self, host: Host, _: Step) -> None:
        spec, folder = self.cargo.inventory.hosts[host.name], self._folder(host)
        arguments = ["--host", host.name, "--deployment", self.cargo.name, "--threads", str(spec.cores or 0)]
        self.started.add(host.name)
        self._stop(host)  # one that is there but does not answer
        hint = "its `python` in the inventory names one that has the runner's packages; edgesplit profile tells"
        host.run(commands.start_runner(spec.interpreter, folder, self.cargo.archive.name, arguments))
        try:
            status(host, spec, folder, self.cargo.archive.name, wait=START_SECONDS)
        except CommandFailed as error:
            if error.status not in (126, 127):  # as sh says that a program cannot be run, or is not there
                raise
            raise HostError(host.name, f"there is no Python {spec.interpreter} that can be run", hint) from error
        except NotServing as error:
            log = host.run(commands.log_tail(folder, 1)).strip()
            raise HostError(host.name, f"the runner did not start: {log or error.message}", hint) from error

    def _prepare(self, host: Host, _: Step) -> None:
        manifest = self.cargo.manifest(self.target, self.fingerprints)
        self._say(host, "prepare", LOAD_SECONDS, manifest=manifest.to_dict())

    def _commit(self, host: Host, _: Step) -> None:
        """The moment of change. An answer that is lost on the way is asked for again before anything is undone."""
        try:
            self._say(host, "commit", 30)
        except (HostError, NotServing):
            self.unknown = True
            state = status(host, self.cargo.inventory.hosts[host.name], self._folder(host), self.cargo.archive.name)
            self.unknown = False
            if state["serving"] != self.target.epoch:
                raise
        self.committed = True

    def _retire(self, host: Host, step: Step) -> None:
        self._say(host, "retire", 30, epoch=step.epoch)

    def _stop(self, host: Host) -> None:
        host.run(commands.stop_runner(self._folder(host), host.name, self.cargo.name), timeout=30)

    def _unlock(self, host: Host) -> None:
        host.run(commands.unlock(self._folder(host)))
        self.locked.discard(host.name)

    # --- keys ---

    def _keys(self) -> None:
        """The deployment's secrets from the entry host, made there on the first day; a key pair for each host."""
        entry = self.hosts[self.cargo.plan.entry]
        folder = self._folder(entry)
        secrets = read_secrets(entry, folder)
        if secrets is None:
            secrets = create(self.cargo.name, _now())
            _put(entry, f"{folder}/keys/controller.json", secrets.to_json())
        self.signer = Signer(self.cargo.name, command_key(secrets))
        found = each(
            {name: self.hosts[name] for name in self.target.hosts}, lambda host: self._host_keys(host, secrets)
        )
        self.fingerprints.update(found)

    def _host_keys(self, host: Host, secrets: Secrets) -> str:
        folder = f"{self._folder(host)}/keys"
        authority = host.run(commands.read_if_there(f"{folder}/ca.pem"))
        certificate = host.run(commands.read_if_there(f"{folder}/host.pem"))
        if certificate and authority == secrets.authority:
            return fingerprint(certificate)
        if self.scene.presences[host.name].epochs is not None:
            raise HostError(host.name, "its runner has keys of another authority", "edgesplit down, then deploy again")
        keys = issue(secrets, host.name, _now())
        for name, text in _files(keys):
            _put(host, f"{folder}/{name}", text)
        return keys.fingerprint

    # --- words to the runners ---

    def _say(self, host: Host, verb: str, seconds: float, **fields: Any) -> dict[str, Any]:
        assert self.signer is not None  # noqa: S101 - keys come with SHIP, before any word
        # the clock makes serials rise; a controller whose clock lags goes on from what the runners have seen
        serial = max(time.time_ns(), self.scene.serial + next(self.count))
        envelope = self.signer.seal(verb, serial, **{"epoch": self.target.epoch, **fields})
        spec = self.cargo.inventory.hosts[host.name]
        return ask(host, spec, self._folder(host), self.cargo.archive.name, envelope, seconds)

    def _folder(self, host: Host) -> str:
        return self.cargo.folder(host.name)

    # --- back ---

    def let_go(self) -> None:
        """Give the locks back and change nothing else."""
        survey({name: self.hosts[name] for name in self.locked}, self._unlock)

    def undo(self) -> None:
        """Put every host back as it was found; goes on past hosts that fail. Raises FleetError in the end."""
        self.progress.undo()
        locked = {name: self.hosts[name] for name in self.locked}
        _, errors = survey(locked, self._undo)
        if errors:
            raise FleetError(list(errors.values()))

    def _undo(self, host: Host) -> None:
        presence = self.scene.presences[host.name]
        if host.name in self.started:
            self._stop(host)
        elif self.prepared and host.name in self.target.hosts and presence.epochs is not None:
            self._say(host, "retire", 30)
        if not presence.folder:
            host.run(commands.remove(self._folder(host)))
            host.run(commands.remove_empty(self.cargo.inventory.hosts[host.name].work))
            return
        need = self.cargo.needs(self.target).get(host.name)
        fresh = sorted(set(need.objects) - presence.objects) if need else []
        if host.name in self.started:  # the folders it laid out link to what is removed here
            fresh.append("stages")
        if not presence.keys:
            fresh += ["keys", "serial"]
        host.run(commands.remove(*(f"{self._folder(host)}/{path}" for path in [*fresh, "lock"])))


def _files(keys: HostKeys) -> list[tuple[str, str]]:
    """ca.pem last: with it, the set counts as complete."""
    return [
        ("host.pem", keys.certificate),
        ("host.key", keys.key),
        ("controller.pub", keys.controller),
        ("ca.pem", keys.authority),
    ]


def _put(host: Host, path: str, text: str) -> None:
    data = text.encode()
    host.run(commands.receive(path, hashlib.sha256(data).hexdigest()), stdin=data)


def _patience(size: int) -> float:
    """Seconds a file may take: what 1 Mbit/s needs, and a minute."""
    return 60 + size / 125_000


def signature(reason: str) -> str:
    """Who does what, and since when: what a lock and an audit line say."""
    return f"{getpass.getuser()} on {platform.node()}, {_now():%Y-%m-%d %H:%M:%S} UTC: {reason}"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
