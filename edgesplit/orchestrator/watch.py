"""The paper's loop: measure, decide, revise, broadcast, forever.

Must not know: how events are shown, what a threshold is (decide.py does), how a split is found or pushed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from pydantic import Field

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.push import push
from edgesplit.broadcast.remote import look_into
from edgesplit.broadcast.scene import look, served
from edgesplit.broadcast.transition import Progress
from edgesplit.errors import EdgesplitError, ServingError
from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.hosts.fanout import survey
from edgesplit.hosts.host import Host
from edgesplit.orchestrator.chores import Chores
from edgesplit.orchestrator.decide import FIRST, Decision
from edgesplit.orchestrator.think import Thinker, moved, untried
from edgesplit.orchestrator.verdict import Mind
from edgesplit.profiling.capacity import Heard, probed
from edgesplit.profiling.collect import meet
from edgesplit.profiling.probes import Reading, message_sizes
from edgesplit.profiling.telemetry import Telemetry
from edgesplit.split import Split
from edgesplit.values import Value

URGENT = 0.5  # seconds of a turn while the ring is broken
PROBE_EVERY = 30.0  # seconds between two measurements of links that nothing is sent over, while nobody asks anything


class Event(Value):
    """One thing that happened; `--json` prints one a line."""

    at: float
    event: Literal["reading", "keep", "move", "moved", "failed"]
    text: str
    epoch: int
    readings: dict[str, Reading | str] = Field(default_factory=dict)
    decision: Decision | None = None
    split: Split | None = None
    seconds: float | None = None


@dataclass
class Watch:
    """One controller watching one deployment, from `with` to its end. `clock` gives seconds since the epoch."""

    cargo: Cargo
    fleet: Fleet
    hosts: Mapping[str, Host]
    running: Split
    progress: Progress
    clock: Callable[[], float] = time.time
    state: Mind = field(default_factory=Mind)

    def __post_init__(self) -> None:
        cargo = self.cargo
        self._thinker = Thinker(cargo.checkpoint.chain, self.fleet, cargo.plan, cargo.inventory)
        self._telemetry = Telemetry(self.hosts, cargo.inventory, cargo.plan.name, cargo.plan.watch.interval, self.clock)
        self._resources = ExitStack()
        self._chores = Chores()
        self._pairs = itertools.cycle(list(itertools.combinations(sorted(self.fleet.hosts), 2)) or [("", "")])
        self._sizes = message_sizes(cargo.plan, cargo.checkpoint.chain)
        self._probed_at = self.clock()

    def __enter__(self) -> Watch:
        self._resources.enter_context(self._chores)
        self._resources.enter_context(self._telemetry)
        self._chores.begin(self._take_stock, self._stocked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def round(self, *, dry_run: bool = False) -> Iterator[Event]:
        """One turn of the loop, of at most an interval; the events as they happen. Raises ServingError when the
        deployment is gone."""
        heard = self._measure()
        now = self.clock()
        yield self._event("reading", self._summary(now), readings={name: news.what for name, news in heard.items()})
        before = self.state
        self.state, decision = self._thinker.think(before, self.running, now)
        if decision is not None and decision.target is not None and self._may_wait(decision):
            before = self._try_links(before, decision.target)
            self.state, decision = self._thinker.think(before, self.running, now)
        if decision is None:
            self._idle(now)
            return
        if decision.target is None:
            yield self._event("keep", decision.because, decision=decision)
            return
        yield self._event("move", f"{decision.action}: {decision.because}", decision=decision, split=decision.target)
        if not dry_run:
            yield self._broadcast(decision.target, decision, before)

    # 1 Monitoring & Capacity Profiling

    def _measure(self) -> dict[str, Heard]:
        """What came since the last turn. It takes until the entry is heard of; at first, and of a broken ring, all."""
        if not self.state.hosts:
            heard = self._telemetry.take(FIRST, self.hosts)
        elif self.state.broken_at is None:
            heard = self._telemetry.take(self.cargo.plan.watch.interval, [self.running.entry])
        else:
            heard = self._telemetry.take(URGENT, self.running.hosts)
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

    def _idle(self, now: float) -> None:
        """One pair of links after another, while the ring is idle. Those of the ring tell their round trips."""
        if self._chores.busy:
            self._chores.settle()
            return
        entry = self.state.host(self.running.entry).reading
        if now - self._probed_at < PROBE_EVERY or entry is None or entry.running or len(self.fleet.hosts) < 2:
            return
        timeout = self.cargo.plan.watch.host_timeout
        pair = next(self._pairs)
        if not any(self.state.host(name).away(now, timeout) for name in pair):
            self._chores.begin(lambda: meet(self.hosts, self.cargo.inventory, pair, self._sizes), self._met)

    def _met(self, found: dict[tuple[str, str], LinkProfile | str]) -> None:
        self._probed_at = self.clock()
        self.state = probed(self.state, self.fleet, found, self._probed_at)

    def _take_stock(self) -> dict[str, tuple[int, ...]]:
        """The blocks on every host's disk; of hosts that do not answer, nothing is known."""
        found, _ = survey(self.hosts, lambda host: look_into(host, self.cargo.folder(host.name))[1])
        return {host: self.cargo.blocks_in(files) for host, files in found.items()}

    def _stocked(self, shards: dict[str, tuple[int, ...]]) -> None:
        self.state = self.state.model_copy(update={"shards": shards})

    def _may_wait(self, decision: Decision) -> bool:
        """Does the ring serve meanwhile?"""
        return decision.gain is not None and self.state.broken_at is None

    def _try_links(self, state: Mind, target: Split) -> Mind:
        """Where there is no hurry, links that a move would come to depend on are measured before it."""
        for pair in untried(target, self.running):
            found = meet(self.hosts, self.cargo.inventory, pair, self._sizes)
            state = probed(state, self.fleet, found, self.clock())
        return state

    # 2 Adaptive Orchestrator and 3 Split Revision: think.py

    # 4 Reconfiguration Broadcast

    def _broadcast(self, target: Split, decision: Decision, before: Mind) -> Event:
        start = self.clock()
        timeout = self.cargo.plan.watch.host_timeout
        gone = self.state.thought.now.problems if self.state.thought else {}
        reachable = {
            name: host
            for name, host in self.hosts.items()
            if name in target.hosts or not (name in gone or self.state.host(name).away(start, timeout))
        }
        try:
            scene = look(self.cargo, reachable)
            pushed = push(self.cargo, target, reachable, scene, self.progress, reason=f"watch: {decision.action}")
        except EdgesplitError as error:
            self.state = self.state.model_copy(
                update={"last_move": self.clock(), "thought": before.thought, "answered": before.answered}
            )
            return self._event("failed", error.message, decision=decision, split=target)
        self.state = moved(self.state, decision, self.running, self.clock())
        self.running = pushed.split
        self._telemetry.take(0.0)  # what was said before the move is of no more use
        took = self.clock() - start
        text = "; ".join([f"epoch {self.running.epoch} serves after {took:.1f} s", *pushed.warnings])
        return self._event("moved", text, decision=decision, split=self.running, seconds=took)

    def _event(self, kind: Literal["reading", "keep", "move", "moved", "failed"], text: str, **more: object) -> Event:
        return Event.model_validate(
            {"at": self.clock(), "event": kind, "text": text, "epoch": self.running.epoch, **more}
        )
