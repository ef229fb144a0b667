"""Carry the steps of a transition out, over the hosts' narrow door: all of them, or none.

Must not know: why this split (revision), how a host is reached (hosts), how progress is shown (cli).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from edgesplit.broadcast.access import check_closed
from edgesplit.broadcast.authority import HostKeys, Secrets, command_key, issue, shard_key, validity
from edgesplit.broadcast.cargo import KEPT, Cargo
from edgesplit.broadcast.environment import ensure
from edgesplit.broadcast.forecast import from_peers
from edgesplit.broadcast.gifts import End, hand_over
from edgesplit.broadcast.keyring import introduce, secrets_of
from edgesplit.broadcast.note import Errand, now
from edgesplit.broadcast.remote import NotServing, look_into, status
from edgesplit.broadcast.scene import Scene
from edgesplit.broadcast.ship import Shipment
from edgesplit.broadcast.signing import NOTHING
from edgesplit.broadcast.starting import start, stop
from edgesplit.broadcast.transition import Gift, Phase, Progress, Step, transition
from edgesplit.broadcast.words import Words
from edgesplit.errors import (
    Abandoned,
    CommandFailed,
    DeployError,
    EdgesplitError,
    FleetError,
    HostError,
    MovedError,
    Unreachable,
)
from edgesplit.hosts import commands
from edgesplit.hosts.fanout import each, survey
from edgesplit.hosts.host import Host
from edgesplit.hosts.leaving import LEAVING, Exit, firm
from edgesplit.split import Split
from edgesplit.units import format_size

LOAD_SECONDS = 1800.0
LINK_SECONDS = 20.0
TRIAL_SECONDS = 60.0
KEEP_SECONDS = 86400.0  # weights that fell out of use stay a day: whoever left because of trouble may come back
OURS = {Phase.INSTALL, Phase.SHIP, Phase.START, Phase.STOP}  # steps of which no runner leaves a line in the audit log
AS_BEFORE = "the hosts are as they were"
CUT_OFF = "what serves is as it was; the next deploy sends only the rest (edgesplit down removes what has arrived)"


@dataclass(frozen=True)
class Pushed:
    """What serves now, and what went wrong after the moment of change: `warnings` name hosts and reasons."""

    split: Split
    warnings: tuple[str, ...] = ()


def steps_to(cargo: Cargo, target: Split, scene: Scene, warm: Collection[str] = ()) -> tuple[Step, ...]:
    """What will be done to bring up `target`, whose epoch is set."""
    needs, fleet = cargo.needs(target), scene.fleet
    givers = {} if fleet is None else from_peers(scene.presences, needs, fleet, cargo.archive.name)
    steps = transition(scene.running, target, scene.presences, needs, givers)
    return tuple(step for step in steps if step.phase is not Phase.STOP or step.host not in warm)


def push(
    cargo: Cargo, target: Split, hosts: Mapping[str, Host], scene: Scene, progress: Progress, errand: Errand
) -> Pushed:
    """Bring `target` up as the next epoch.

    On any failure before the entry commits, every host is put back as it was and DeployError tells why; but weights
    that have arrived stay, whole or in part, when the way to a host was cut. After the commit the new epoch serves, and
    a host that fails to confirm or to clear up is a warning. Who gives up (`hosts` may have an exit) leaves what has
    arrived where it is; the next epoch goes past whatever could not be cleared up within moments.
    """
    target = target.at(scene.next_epoch)
    absent = [host for host in target.hosts if host not in hosts]
    if absent:
        raise DeployError(f"{', '.join(absent)} cannot be reached and the split needs it")
    steps = steps_to(cargo, target, scene, errand.warm)
    check_closed(cargo.manifest(target, {}).service, scene.presences[target.entry].objects)
    act = _Act(cargo, target, hosts, scene, progress, errand)
    try:
        for phase, group in groupby(steps, key=lambda step: step.phase):
            act.carry_out(phase, list(group))
    except Abandoned as error:
        with contextlib.suppress(EdgesplitError):
            act.leave()
        if not act.committed:
            raise
        act.warnings.append(error.message)
    except BaseException as error:
        act.cut = act.shipping and _is_cut(error)
        with contextlib.suppress(EdgesplitError):
            act.let_go() if act.committed or act.unknown else act.undo()
        if act.unknown:
            hint = "edgesplit status tells what serves; then deploy again"
            raise DeployError(
                f"{target.entry} did not say whether epoch {target.epoch} serves: {error}", hint
            ) from error
        if isinstance(error, EdgesplitError) and not isinstance(error, MovedError | DeployError):
            raise DeployError(f"{error.message}\n{CUT_OFF if act.cut else AS_BEFORE}", error.hint) from error
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
    errand: Errand
    committed: bool = False
    unknown: bool = False  # the entry was told to commit, and neither confirms nor denies
    warnings: list[str] = field(default_factory=list)
    locked: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    shipping: bool = False
    cut: bool = False  # the way to a host was lost while things were shipped
    prepared: bool = False
    secrets: Secrets | None = None
    ring_keys: Mapping[str, HostKeys] = field(default_factory=dict)
    words: Words | None = None
    giving: dict[str, threading.Lock] = field(default_factory=dict)  # a host gives to one other at a time

    def carry_out(self, phase: Phase, steps: Sequence[Step]) -> None:
        """One phase on all its hosts at once."""
        if phase is Phase.SHIP:
            sizes = {step.host: step.size + sum(gift.size for gift in step.gifts) for step in steps}
            self.giving = {gift.peer: threading.Lock() for step in steps for gift in step.gifts}
            each({name: self.hosts[name] for name in sizes}, lambda host: self._room(host, sizes[host.name]))
            self._keys()
        self.shipping = phase is Phase.SHIP
        if phase is Phase.PREPARE:
            self.prepared = True
            self._certify()
        handlers: dict[Phase, Callable[[Host, Step], object]] = {
            Phase.LOCK: self._lock,
            Phase.INSTALL: self._install,
            Phase.SHIP: self._ship,
            Phase.START: self._start,
            Phase.PREPARE: self._prepare,
            Phase.LINK: lambda host, _: self._say(host, "link", LINK_SECONDS + 5, timeout=LINK_SECONDS),
            Phase.TRIAL: lambda host, _: self._say(host, "trial", TRIAL_SECONDS + 5, timeout=TRIAL_SECONDS),
            Phase.COMMIT: self._commit,
            Phase.CONFIRM: lambda host, _: self._say(host, "commit", 30),
            Phase.RETIRE: self._retire,
            Phase.STOP: lambda host, _: stop(self.cargo, host),
            Phase.UNLOCK: lambda host, _: self._unlock(host),
        }
        by_host: dict[str, list[Step]] = {}
        for step in steps:
            by_host.setdefault(step.host, []).append(step)

        def act(host: Host) -> None:
            for step in by_host[host.name]:
                self.progress.begin(step)
                if phase in OURS and not self._idle(step):
                    host.run(commands.audit(self._folder(host), f"epoch {step.epoch}: {phase.value}, {step.detail}"))
                handlers[phase](host, step)
                self.progress.end(step)

        if phase is Phase.UNLOCK:
            self._collect_garbage()
        involved = {name: self.hosts[name] for name in by_host}
        if not self.committed:
            each(involved, act)
            return
        _, errors = survey(involved, act)
        self.warnings.extend(error.message for error in errors.values())

    def _idle(self, step: Step) -> bool:
        """Is it a step that has nothing to do?"""
        there = self.scene.presences[step.host].keys
        return step.phase is Phase.SHIP and there and not step.objects and not step.gifts

    # --- steps ---

    def _lock(self, host: Host, _: Step) -> None:
        note = self.errand.note
        try:
            host.run(commands.lock(self._folder(host), note, self.errand.ours))
        except CommandFailed as error:
            if error.status != commands.LOCKED:
                raise
            who = error.stderr.strip() or "somebody"
            raise MovedError(f"{host.name} is locked by {who}", commands.LOCK_HINT) from error
        self.locked.add(host.name)
        host.run(commands.audit(self._folder(host), f"epoch {self.target.epoch}: {note}"))

    def _install(self, host: Host, step: Step) -> None:
        """It stays whatever becomes of this push: other deployments share it."""
        ensure(host, self.cargo.inventory.hosts[host.name], partial(self.progress.note, step))

    def _room(self, host: Host, size: int) -> None:
        """Is there room for what will be sent? Where it is short, what is of no use any more makes way."""
        free = self._free(host)
        if free < size:
            self._tidy(host, age=0)
            free = self._free(host)
        if free < size:
            raise HostError(
                host.name,
                f"no space: {format_size(size)} to store and {format_size(free)} free in {self._folder(host)}",
                "free some, or set `work` to a folder on a larger disk",
            )

    def _free(self, host: Host) -> int:
        return int(host.run(commands.free_space(self._folder(host))).strip() or 0)

    def _ship(self, host: Host, step: Step) -> None:
        self._send(host, step, step.objects, self.scene.presences[host.name].parts)
        for gift in step.gifts:
            self._let_give(host, step, gift)

    def _send(self, host: Host, step: Step, objects: Iterable[str], parts: Mapping[str, int]) -> None:
        Shipment(
            host,
            self.cargo.inventory.hosts[host.name],
            self._folder(host),
            self.cargo.archive.name,
            [self.cargo.things[path] for path in objects],
            lambda size: self.progress.sent(step, size),
            partial(shard_key, self._known),
            dict(parts),
        ).carry_out()

    def _let_give(self, host: Host, step: Step, gift: Gift) -> None:
        """A peer's gift; what of it does not arrive is sent from here."""
        note = partial(self.progress.note, step)
        giver = self.hosts[gift.peer]
        try:
            with self.giving[gift.peer]:
                things = [self.cargo.things[path] for path in gift.objects]
                hand_over(things, self._end(giver), self._end(host), partial(shard_key, self._known), note)
        except HostError as error:
            note(f"not from {gift.peer}: {error.message}")
            _, there, parts = look_into(host, self._folder(host))
            self._send(host, step, set(gift.objects) - there, parts)

    def _end(self, host: Host) -> End:
        return End(host, self.cargo.inventory.hosts[host.name], self._folder(host), self.cargo.archive.name)

    def _collect_garbage(self) -> None:
        """On every host that has something of this deployment, used by the split or not; the entry's lock is held."""
        there = {name: host for name, host in self.hosts.items() if self.scene.presences[name].folder}
        _, errors = survey(there, lambda host: self._tidy(host, KEEP_SECONDS))
        self.warnings.extend(error.message for error in errors.values())

    def _tidy(self, host: Host, age: float) -> None:
        """Remove weights and files that no split needs any more, and that have not been in use for `age` seconds."""
        archive, presence = self.cargo.archive.name, self.scene.presences[host.name]
        if archive not in presence.objects and not (self.committed and host.name in self.target.hosts):
            return
        used = self.cargo.stock(self.scene.manifest, host.name) & presence.objects
        keep = self.cargo.stock(self.cargo.manifest(self.target, {}), host.name) | (set() if self.committed else used)
        keep |= {f"{path}.part" for path in keep}
        words = {"folders": ["shards", "files"], "keep": sorted(keep), "used": sorted(used - keep), "age": age}
        spec = self.cargo.inventory.hosts[host.name]
        host.run(commands.tidy(spec.interpreter, self._folder(host), archive, words))

    def _start(self, host: Host, _: Step) -> None:
        self.started.add(host.name)
        self._words.heard(host.name, start(self.cargo, host))

    def _prepare(self, host: Host, _: Step) -> None:
        manifest = self.cargo.manifest(self.target, {name: keys.fingerprint for name, keys in self.ring_keys.items()})
        keys = {sha: shard_key(self._known, sha).hex() for sha in manifest.needed(host.name)}
        beside = {"keys": keys, "identity": self.ring_keys[host.name].told()}
        self._say(host, "prepare", LOAD_SECONDS, beside, manifest=manifest.to_dict())

    def _commit(self, host: Host, _: Step) -> None:
        """The moment of change, from which nobody turns away. An answer that is lost on the way is asked for again
        before anything is undone."""
        host = firm(host)
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

    def _unlock(self, host: Host) -> None:
        folder, line = self._folder(host), f"epoch {self.target.epoch}: the lock is given back"
        host.run(commands.audited(folder, line, commands.unlock(folder)))
        self.locked.discard(host.name)

    # --- keys ---

    def _keys(self) -> None:
        """The deployment's secrets from the entry host, made there on the first day; who commands, told to each."""
        entry = self.hosts[self.cargo.plan.entry]
        secrets = self.secrets = secrets_of(entry, self._folder(entry))
        self.words = Words(self.cargo, command_key(secrets), self.scene)

        def tell(host: Host) -> None:
            running = self.scene.presences[host.name].epochs is not None
            introduce(host, self._folder(host), secrets, running=running)

        each({name: self.hosts[name] for name in self.target.hosts}, tell)

    def _certify(self) -> None:
        """All runners are up, so that their clocks are known."""
        valid = validity(now(), self._words.clocks(self.target.hosts))
        self.ring_keys = issue(self.cargo.name, self.target.hosts, valid)

    @property
    def _known(self) -> Secrets:
        assert self.secrets is not None  # noqa: S101 - they come with SHIP, before any shard and any word
        return self.secrets

    def _say(self, host: Host, verb: str, seconds: float, beside: Mapping[str, Any] = NOTHING, **fields: Any) -> None:
        self._words.say(host, verb, seconds, beside, **{"epoch": self.target.epoch, **fields})

    @property
    def _words(self) -> Words:
        assert self.words is not None  # noqa: S101 - they come with the keys
        return self.words

    def _folder(self, host: Host) -> str:
        return self.cargo.folder(host.name)

    # --- back ---

    def leave(self) -> None:
        """Give locks back and have the new epoch forgotten where that takes no time; shards stay, runners stay up."""
        self.progress.undo()
        soon = Exit()
        timer = threading.Timer(LEAVING, soon.take, ["some hosts do not answer"])
        timer.start()
        try:
            survey(soon.hosts({name: firm(self.hosts[name]) for name in self.locked}), self._leave)
        finally:
            timer.cancel()

    def _leave(self, host: Host) -> None:
        host.run(commands.unlock(self._folder(host)))
        if self.prepared and not self.committed and host.name in self.target.hosts:
            self._say(host, "retire", 30)

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
            stop(self.cargo, host)
        elif self.prepared and host.name in self.target.hosts and presence.epochs is not None:
            self._say(host, "retire", LOAD_SECONDS)  # comes after a load that is under way
        folder, stay = self._folder(host), KEPT if self.cut else ()
        if not presence.folder:
            host.run(commands.clear(folder, stay))
            for empty in (*(f"{folder}/{name}" for name in stay), folder, self.cargo.inventory.hosts[host.name].work):
                host.run(commands.remove_empty(empty))
            return
        need = self.cargo.needs(self.target).get(host.name)
        fresh = [path for path in presence.missing(need) if path.partition("/")[0] not in stay] if need else []
        fresh += [f"{path}.part" for path in fresh if path not in presence.parts]
        if host.name in self.started:  # the folders it laid out link to what is removed here
            fresh.append("stages")
        if not presence.keys:
            fresh += ["keys", "serial"]
        line = f"epoch {self.target.epoch}: given up, this host is put back as it was"
        host.run(commands.audited(folder, line, commands.remove(*(f"{folder}/{path}" for path in [*fresh, "lock"]))))


def _is_cut(error: BaseException) -> bool:
    """Was the way to a host lost, or did somebody interrupt us?"""
    if isinstance(error, FleetError):
        return any(_is_cut(one) for one in error.errors)
    return isinstance(error, Unreachable) or not isinstance(error, EdgesplitError)
