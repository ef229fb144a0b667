"""The paper's loop: measure, decide, revise, broadcast, forever.

Must not know: how events are shown, what a threshold is (decide.py does), how a split is found or pushed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TypeVar

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.note import Errand, signature
from edgesplit.broadcast.push import Pushed, push
from edgesplit.broadcast.scene import look, served
from edgesplit.broadcast.transition import Progress
from edgesplit.errors import EdgesplitError, InfeasibleError, InputError, MovedError, ServingError
from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.hosts.fanout import door
from edgesplit.hosts.host import Host
from edgesplit.hosts.leaving import Exit
from edgesplit.inventory import HostSpec, Inventory
from edgesplit.orchestrator.admission import changes, together
from edgesplit.orchestrator.attend import attend
from edgesplit.orchestrator.decide import FIRST, Decision
from edgesplit.orchestrator.event import Event, Kind, inputs
from edgesplit.orchestrator.history import History
from edgesplit.orchestrator.spare import SpareTime, View
from edgesplit.orchestrator.think import Thinker, moved, untried
from edgesplit.orchestrator.verdict import Mind
from edgesplit.profiling.capacity import Heard, breaks_down, probed
from edgesplit.profiling.probes import Reading
from edgesplit.profiling.telemetry import Telemetry
from edgesplit.revision.problem import pose
from edgesplit.split import Split

ATTENTION = 0.1  # seconds between two looks at a change that is under way
T = TypeVar("T")
URGENT = 0.5  # seconds of a turn while the ring is broken
MAKE_WAY = 5.0  # seconds given to what holds a lock in spare time, before a move


@dataclass(frozen=True)
class Surroundings:
    """What may change while we watch. `reread`: the inventory, where its file is another; raises InputError, once.
    `door`: to a host; `keep`: the fleet, measured further."""

    reread: Callable[[], Inventory | None] = lambda: None
    door: Callable[[str, HostSpec], Host] = door
    keep: Callable[[Fleet], None] = lambda _: None


@dataclass
class Watch:
    """One controller watching one deployment, from `with` to its end. `clock` gives seconds since the epoch."""

    cargo: Cargo
    fleet: Fleet
    hosts: dict[str, Host]
    running: Split
    progress: Progress
    around: Surroundings = Surroundings()
    claim: bool = True  # be the only one that watches
    clock: Callable[[], float] = time.time
    state: Mind = field(default_factory=Mind)

    def __post_init__(self) -> None:
        cargo = self.cargo
        self._inventory = cargo.inventory
        watcher = (cargo.plan.entry, signature(f"watch, process {os.getpid()}")) if self.claim else None
        self._telemetry = Telemetry(self.hosts, cargo, watcher, self.clock)
        self._history = History(self.hosts[cargo.plan.entry], cargo.folder(cargo.plan.entry))
        self._resources = ExitStack()
        unknown = set(self.hosts) - set(self.fleet.hosts)
        self._spare = SpareTime(self.hosts, self.clock(), due=dict.fromkeys(unknown, self.clock()))
        self._know(self.fleet)

    def _know(self, fleet: Fleet) -> None:
        """What is thought with from now on."""
        self.fleet = fleet
        self._thinker = Thinker(self.cargo.checkpoint.chain, fleet, self.cargo.plan, self._inventory)

    def __enter__(self) -> Watch:
        self._resources.enter_context(self._history)
        self._resources.enter_context(self._spare.chores)
        self._resources.enter_context(self._telemetry)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def round(self, *, dry_run: bool = False) -> Iterator[Event]:
        """One turn of the loop, of at most an interval; the events as they happen. Raises ServingError when the
        deployment is gone, MovedError when somebody else watches it."""
        for event in self._turn(dry_run=dry_run):
            if event.event != "reading" and not dry_run:
                self._history.note(event)
            yield event

    def _turn(self, *, dry_run: bool) -> Iterator[Event]:
        yield from self._reread()
        heard = self._measure()
        now = self.clock()
        yield self._event("reading", self._summary(now), readings={name: news.what for name, news in heard.items()})
        before = self.state
        self.state, decision = self._thinker.think(before, self.running, now)
        if decision is not None and decision.target is not None and self._may_wait(decision):
            before = self._try_links(before, decision.target)
            self.state, decision = self._thinker.think(before, self.running, now)
        known = inputs(self.state, self.running)
        if decision is not None and decision.target is None:
            yield self._event("keep", decision.because, decision=decision, inputs=known)
        moves = decision is not None and decision.target is not None
        move = decision if moves else self._thinker.rotation(self.state, self.running, now)
        if move is not None and move.target is not None:
            text = f"{move.action}: {move.because}"
            yield self._event("move", text, decision=move, split=move.target, inputs=known)
            if not dry_run:
                yield self._broadcast(move.target, move, before)
        elif decision is None:
            yield from self._idle(act=not dry_run)

    # the inventory, as its file is now

    def _reread(self) -> Iterator[Event]:
        try:
            new = self.around.reread()
            if new is None:
                return
            found = changes(self._inventory, new, self.running)
            pose(self.cargo.checkpoint.chain, self.fleet, self.cargo.plan, new)
        except (InputError, InfeasibleError) as error:
            yield self._event("failed", f"the inventory is not gone by: {error.message}")
            return
        self._inventory = new
        self.cargo = replace(self.cargo, inventory=together(new, self.cargo.inventory, self.running))
        self._leave(found.gone)
        for name in found.fresh:
            self.hosts[name] = self.around.door(name, new.hosts[name])
            self._telemetry.follow(self.hosts[name], self.cargo.inventory)
            self._spare.due[name] = self.clock()
        self._know(self.fleet)
        yield self._event("inventory", "; ".join(found.texts) or "nothing of it is different here")

    def _leave(self, gone: Iterable[str]) -> None:
        """Have no more to do with hosts that are not in the ring either."""
        for name in gone:
            if name in self.hosts and name not in self.running.hosts:
                self._telemetry.forget(name)
                self.hosts.pop(name).close()
                self._spare.due.pop(name, None)
                self._know(self.fleet.without(name))

    # 1 Monitoring & Capacity Profiling

    def _measure(self) -> dict[str, Heard]:
        """What came since the last turn. It takes until the entry is heard of; at first, and of a broken ring, all."""
        if not self.state.hosts:
            heard = self._telemetry.take(FIRST, self.hosts)
        elif self.state.broken_at is None:
            heard = self._telemetry.take(self.cargo.plan.watch.interval, [self.running.entry])
        else:
            heard = self._telemetry.take(URGENT, self.running.hosts)
        if self._telemetry.rival:
            hint = "that one goes on; if its machine is gone: edgesplit unlock"
            raise MovedError(f"{self.cargo.name} is watched by {self._telemetry.rival}", hint)
        entry = heard.get(self.running.entry)
        if entry is not None:
            self._follow(entry.what)
        self.state = self._thinker.heed(self.state, heard, self.running)
        return heard

    def _follow(self, entry: Reading | str) -> None:
        """Somebody else may have deployed another epoch, or taken everything down. Raises ServingError."""
        if isinstance(entry, str):
            return
        name, host = self.cargo.plan.name, self.running.entry
        if not entry.deployed:
            raise ServingError(f"{name} was taken down", "nothing is left to watch")
        if entry.serving is not None and entry.serving > self.running.epoch:
            self.running = served(self.hosts[host], self.cargo.folder(host)) or self.running

    def _summary(self, now: float) -> str:
        plan = self.cargo.plan
        well = [name for name in self.hosts if (reading := self.state.host(name).reading) and reading.runner]
        away = [name for name in self.running.hosts if self.state.host(name).away(now, plan.watch.host_timeout)]
        silent = f"; {', '.join(away)} cannot be heard" if away else ""
        return f"{len(well)} of {len(self.hosts)} runners answer{silent}"

    def _idle(self, *, act: bool) -> Iterator[Event]:
        for found in self._spare.use(self._view(), act=act):
            self.state = found.change(self.state)
            if found.fleet is not None:
                self._know(found.fleet)
                self.around.keep(found.fleet)
            if found.text:
                yield self._event("standby" if found.fleet is None else "inventory", found.text)

    def _view(self) -> View:
        return View(self.cargo, self._inventory, self._thinker, self.running, self.state, self.clock())

    def _may_wait(self, decision: Decision) -> bool:
        """Does the ring serve meanwhile, and well?"""
        return decision.gain is not None and not decision.pressing and self.state.broken_at is None

    def _try_links(self, state: Mind, target: Split) -> Mind:
        """Where there is no hurry, links that a move would come to depend on are measured before it."""
        way_out, view = Exit(), self._view()
        hosts = way_out.hosts(self.hosts)

        def act() -> list[dict[tuple[str, str], LinkProfile | str]]:
            return [self._spare.try_link(view, pair, hosts) for pair in untried(target, self.running)]

        found, heard = self._listening(act, way_out)
        state = self._thinker.heed(state, heard, self.running)
        for links in () if isinstance(found, EdgesplitError) else found:
            state = probed(state, self.fleet, links, self.clock())
        return state

    # 2 Adaptive Orchestrator and 3 Split Revision: think.py

    # 4 Reconfiguration Broadcast

    def _broadcast(self, target: Split, decision: Decision, before: Mind) -> Event:
        start = self.clock()
        self._spare.chores.make_way(MAKE_WAY)
        errand = Errand(f"watch: {decision.action}", self._warm(), frozenset(self._spare.left))
        pushed, heard = self._attended(target, decision, errand)
        if isinstance(pushed, EdgesplitError):
            self._spare.left.add(errand.note)
            self.state = self._thinker.heed(self.state, heard, self.running).model_copy(
                update={"last_move": self.clock(), "thought": before.thought, "answered": before.answered}
            )
            return self._event("failed", pushed.message, decision=decision, split=target)
        if pushed.warnings:
            self._spare.left.add(errand.note)
        self.state = moved(self.state, decision, self.running, self.clock())
        self.running = pushed.split
        self._leave([name for name in self.hosts if name not in self._inventory.hosts])
        self._telemetry.take(0.0)  # what was said before the move is of no more use
        took = self.clock() - start
        text = "; ".join([f"epoch {self.running.epoch} serves after {took:.1f} s", *pushed.warnings])
        return self._event("moved", text, decision=decision, split=self.running, seconds=took)

    def _attended(
        self, target: Split, decision: Decision, errand: Errand
    ) -> tuple[Pushed | EdgesplitError, dict[str, Heard]]:
        """What came of the push, and what was heard during it; of no more use once another epoch serves."""
        timeout, now = self.cargo.plan.watch.host_timeout, self.clock()
        gone = self.state.thought.now.problems if self.state.thought else {}
        reachable = {
            name: host
            for name, host in self.hosts.items()
            if name in target.hosts or not (name in gone or self.state.host(name).away(now, timeout))
        }
        way_out, cargo = Exit(), self.cargo.serving(decision.at_once)
        hosts = way_out.hosts(reachable)

        def act() -> Pushed:
            return push(cargo, target, hosts, look(cargo, hosts, self.fleet), self.progress, errand)

        return self._listening(act, way_out)

    def _listening(self, act: Callable[[], T], way_out: Exit) -> tuple[T | EdgesplitError, dict[str, Heard]]:
        """What comes of an act, given up when the ring breaks; and what was heard meanwhile. Of a ring that lost a
        runner it is no news that it breaks."""
        running = self.running
        broken = self.state.broken_at is not None or any(self.state.host(name).bereft for name in running.hosts)

        def breaks(news: Mapping[str, Heard]) -> bool:
            entry = news.get(running.entry)
            return (
                entry is not None
                and not isinstance(entry.what, str)
                and breaks_down(entry.what, running, broken=broken)
            )

        came, heard = attend(act, way_out, lambda: self._telemetry.take(ATTENTION, [running.entry]), breaks)
        if isinstance(came, Exception) and not isinstance(came, EdgesplitError):
            raise came
        return came, heard

    def _warm(self) -> frozenset[str]:
        """Hosts that may keep a runner though the split leaves them: it takes long to start where others compute."""
        if not self.cargo.plan.watch.standby:
            return frozenset()
        return frozenset(name for name in self._inventory.hosts if not self.state.host(name).short_for)

    def _event(self, kind: Kind, text: str, **more: object) -> Event:
        return Event.model_validate(
            {"at": self.clock(), "event": kind, "text": text, "epoch": self.running.epoch, **more}
        )
