"""The paper's loop: measure, decide, revise, broadcast, forever.

Must not know: how events are shown, what a threshold is (decide.py does), how a split is found or pushed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.push import Progress, look, push, served
from edgesplit.errors import EdgesplitError, HostError, InfeasibleError, ServingError
from edgesplit.fleet import Fleet
from edgesplit.hosts.host import Host
from edgesplit.orchestrator.decide import Alarm, Decision, Options, alarms, decide, thresholds
from edgesplit.profiling.capacity import State, current, observe
from edgesplit.profiling.collect import collect
from edgesplit.profiling.probes import Reading
from edgesplit.revision.problem import Problem, pose
from edgesplit.revision.revise import redistribution, running_phi
from edgesplit.revision.solver import solve
from edgesplit.split import Split
from edgesplit.values import Value

ASIDE = 120.0  # seconds a host is not used after its runner died there: time enough to see whether it dies again


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
    """One controller watching one deployment. `clock` gives seconds since the epoch."""

    cargo: Cargo
    fleet: Fleet
    hosts: Mapping[str, Host]
    running: Split
    progress: Progress
    clock: Callable[[], float] = time.time
    state: State = field(default_factory=State)

    def round(self, *, dry_run: bool = False) -> Iterator[Event]:
        """One turn of the loop; the events as they happen. Raises ServingError when the deployment is gone."""
        readings = self._measure()
        now = self.clock()
        yield self._event("reading", _summary(readings), readings=readings)
        self._follow(readings[self.running.entry])
        policy = self.cargo.plan.watch
        tripped = alarms(self.state, self.running, policy, now)
        if not tripped:
            return
        self._set_aside(tripped, now)
        options = self._revise(now)
        decision = decide(tripped, options, self.running, self.state, policy, now)
        if decision.target is None:
            yield self._event("keep", decision.because, decision=decision)
            return
        yield self._event("move", f"{decision.action}: {decision.because}", decision=decision, split=decision.target)
        if not dry_run:
            yield self._broadcast(decision.target, decision)

    def _follow(self, entry: Reading | str) -> None:
        """Somebody else may have deployed another epoch, or taken everything down. Raises ServingError."""
        if isinstance(entry, str):
            return
        name, host = self.cargo.plan.name, self.running.entry
        if not entry.deployed:
            raise ServingError(f"{name} was taken down", "nothing is left to watch")
        if entry.serving is not None and entry.serving != self.running.epoch:
            self.running = served(self.hosts[host], self.cargo.folder(host)) or self.running

    # 1 Monitoring & Capacity Profiling

    def _measure(self) -> dict[str, Reading | str]:
        plan = self.cargo.plan
        found = collect(self.hosts, self.cargo.inventory, plan.name, self.running.hosts)
        readings = {name: _words(name, reading) for name, reading in found.items()}
        limits = thresholds(plan.watch, plan.service)
        self.state = observe(self.state, readings, self.running, self.fleet, limits)
        return readings

    # 2 Adaptive Orchestrator: decide.py

    def _set_aside(self, tripped: tuple[Alarm, ...], now: float) -> None:
        """A host that was lost is not used for a while; but never the entry, without which nothing serves."""
        lost = [alarm.host for alarm in tripped if alarm.kind == "lost" and alarm.host != self.running.entry]
        self.state = self.state.model_copy(
            update={
                "aside": {**self.state.aside, **dict.fromkeys(lost, now + max(ASIDE, self.cargo.plan.watch.cooldown))}
            }
        )

    # 3 Split Revision

    def _revise(self, now: float) -> Options:
        """The running split and its rivals on the state as it is; hosts set aside only where nothing else is left."""
        try:
            return self._options(self.state, now)
        except InfeasibleError as error:
            reachable = self.state.model_copy(update={"aside": {}})
            try:
                return self._options(reachable, now)
            except InfeasibleError:
                return Options(running=None, redistribution=None, resplit=None, impossible=error.message)

    def _options(self, state: State, now: float) -> Options:
        problem = self._problem(state, now)
        return Options(
            running=running_phi(self.running, problem),
            redistribution=redistribution(self.running, problem),
            resplit=solve(problem),
        )

    def _problem(self, state: State, now: float) -> Problem:
        plan = self.cargo.plan
        fleet = current(self.fleet, state, now, plan.watch.host_timeout)
        return pose(self.cargo.checkpoint.chain, fleet, plan, self.cargo.inventory)

    # 4 Reconfiguration Broadcast

    def _broadcast(self, target: Split, decision: Decision) -> Event:
        start = self.clock()
        reachable = {
            name: host
            for name, host in self.hosts.items()
            if (seen := self.state.host(name)).seen is not None and not seen.failure
        }
        try:
            scene = look(self.cargo, reachable)
            pushed = push(self.cargo, target, reachable, scene, self.progress, reason=f"watch: {decision.action}")
        except EdgesplitError as error:
            return self._event("failed", error.message, decision=decision, split=target)
        self.running = pushed.split
        self.state = self.state.model_copy(update={"last_move": self.clock(), "hosts": _rested(self.state)})
        took = self.clock() - start
        text = "; ".join([f"epoch {self.running.epoch} serves after {took:.1f} s", *pushed.warnings])
        return self._event("moved", text, decision=decision, split=self.running, seconds=took)

    def _event(self, kind: Literal["reading", "keep", "move", "moved", "failed"], text: str, **more: object) -> Event:
        return Event.model_validate(
            {"at": self.clock(), "event": kind, "text": text, "epoch": self.running.epoch, **more}
        )


def _rested(state: State) -> dict[str, object]:
    """After a move the counters begin anew; what is known of the hosts stays."""
    return {name: host.model_copy(update={"slow_for": 0, "short_for": 0}) for name, host in state.hosts.items()}


def _words(name: str, reading: Reading | HostError) -> Reading | str:
    return reading if isinstance(reading, Reading) else reading.message.removeprefix(f"{name}: ")


def _summary(readings: Mapping[str, Reading | str]) -> str:
    well = sum(isinstance(reading, Reading) and reading.runner for reading in readings.values())
    return f"{well} of {len(readings)} runners answer"
