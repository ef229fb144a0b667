"""(state, running split, policy, now) -> what is wrong; (what is wrong, what could be) -> keep, redistribute, re-split.

Two questions, as in the paper's eq. 8: has a threshold tripped, and does another mapping cost enough less? Hysteresis
is data: how many readings in a row count, how long a move rests, how much a move must win, and that what does not serve
is judged by its worst of late (capacity.py).

Must not know: clocks (the time is given), hosts, how the candidates were found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from edgesplit.plan import ServiceLevel, WatchPolicy
from edgesplit.profiling.capacity import HostState, State, Thresholds, lost
from edgesplit.revision.solver import Solution
from edgesplit.split import Split
from edgesplit.units import format_size, format_time
from edgesplit.values import Value

SETTLE = 2.0  # seconds after the ring broke in which its hosts that live tell of it: they do within half a second
FIRST = 15.0  # seconds given to a host that this controller has not heard of yet
OTHERS = 0.1  # cores taken by others that are worth telling
MENTIONED = 3  # changes told in full
SAME = 0.02  # a redistribution this close to the best re-split (share of Phi) is preferred: it moves whole stages


class Alarm(Value):
    """A threshold that tripped. `urgent`: the ring does not serve, nothing is waited for."""

    kind: Literal["lost", "broken", "slow", "memory", "late", "changed"]
    host: str
    text: str

    @property
    def key(self) -> str:
        return f"{self.kind} {self.host}"

    @property
    def urgent(self) -> bool:
        return self.kind in ("lost", "broken")


class Options(Value):
    """What could be done now. `running`: Phi of the running split on the new state, None when it cannot run there."""

    running: float | None
    redistribution: Solution | None
    resplit: Solution | None
    impossible: str = ""  # why there is no split at all


class Decision(Value):
    """`gain`: share of the running split's Phi that the move wins, None when that cannot run at all."""

    action: Literal["keep", "redistribute", "re-split"]
    because: str
    target: Split | None = None
    gain: float | None = None


def thresholds(policy: WatchPolicy, service: ServiceLevel) -> Thresholds:
    return Thresholds(memory=policy.memory, time_per_token=service.time_per_token, patience=policy.patience)


def alarms(
    state: State, running: Split, changes: tuple[str, ...], policy: WatchPolicy, now: float
) -> tuple[Alarm, ...]:
    """Everything that asks for a decision now; `changes`: what is different since the last one (capacity.news).

    A host that cannot be heard is no loss while the ring serves: only the ring's own word counts, or a runner that its
    own host says is gone. What is not urgent waits while a host of the ring cannot be told what to do, and rests after
    a move; what has been answered is not asked again until something is different.
    """
    entry = state.host(running.entry)
    if entry.away(now, policy.host_timeout):
        return ()  # nobody can tell whether the ring serves, nor tell it anything
    urgent = [*_gone(state, running, policy, now), *_broken(state, running, now)]
    if urgent or state.broken_at is not None:
        return tuple(urgent)
    if any(state.host(name).away(now, policy.host_timeout) for name in running.hosts):
        return ()
    if state.last_move is not None and now - state.last_move < policy.cooldown:
        return ()
    found = [alarm for host in running.hosts for alarm in _host_alarms(state, host, policy)]
    if state.late_for >= policy.patience:
        measured = format_time(entry.reading.time_per_token or 0.0) if entry.reading else "?"
        found.append(
            Alarm(kind="late", host=running.entry, text=f"time per token is {measured}, over the service level")
        )
    if not changes and {alarm.key for alarm in found} <= set(state.answered):
        return ()
    if changes:
        text = "; ".join(changes[:MENTIONED]) + (" ..." if len(changes) > MENTIONED else "")
        found.append(Alarm(kind="changed", host="", text=text))
    return tuple(found)


def _gone(state: State, running: Split, policy: WatchPolicy, now: float) -> Iterator[Alarm]:
    """Runners that their own hosts say are not there; and an entry that is there, but stands still."""
    for name in running.hosts:
        host = state.host(name)
        if host.reading is None or host.away(now, policy.host_timeout):
            continue
        if host.mute_for >= policy.patience and name == running.entry:
            yield Alarm(kind="lost", host=name, text=f"{name} is lost: its runner stands still")
        elif not host.mute_for and not host.reading.runner:
            yield Alarm(kind="lost", host=name, text=f"{name} is lost: its runner does not answer")


def _broken(state: State, running: Split, now: float) -> Iterator[Alarm]:
    """The ring's own word; and which of its hosts went silent with it, once the others have had time to speak."""
    if state.broken_at is None:
        return
    silent = [name for name in running.hosts if name != running.entry and lost(state, name)]
    if any(now - state.broken_at < _settle(state.host(name)) for name in silent):
        return
    for name in silent:
        why = "its runner stands still" if state.host(name).mute_for else "silent since the ring broke"
        failure = state.host(name).failure
        text = f"{name} is lost: {why}" + (f" ({failure})" if failure else "")
        yield Alarm(kind="lost", host=name, text=text)
    reading = state.host(running.entry).reading
    if reading is not None and reading.runner:
        text = f"the ring is broken ({reading.broken})" if reading.broken else f"{running.entry} serves no epoch"
        yield Alarm(kind="broken", host=running.entry, text=text)


def _settle(host: HostState) -> float:
    return FIRST if host.seen is None and not host.failure else SETTLE


def _host_alarms(state: State, name: str, policy: WatchPolicy) -> Iterator[Alarm]:
    host = state.host(name)
    if host.pace.level > policy.slowdown:
        others = f"; others take {host.others:.1f} of its cores" if host.others >= OTHERS else ""
        text = f"{name} computes {host.pace.level:.1f} x slower than profiled (threshold {policy.slowdown:g}){others}"
        yield Alarm(kind="slow", host=name, text=text)
    if host.short_for >= policy.patience and host.reading is not None:
        text = f"{name} has only {format_size(host.reading.memory_available)} of memory left"
        yield Alarm(kind="memory", host=name, text=text)


def decide(tripped: tuple[Alarm, ...], options: Options, running: Split, policy: WatchPolicy) -> Decision:
    """Keep, redistribute or re-split, because ..."""
    why = "; ".join(dict.fromkeys(alarm.text for alarm in tripped))
    urgent = any(alarm.urgent for alarm in tripped)
    best = _best(options)
    if best is None:
        return Decision(action="keep", because=f"{why}; and no split is possible: {options.impossible}")
    action: Literal["redistribute", "re-split"] = "redistribute" if best is options.redistribution else "re-split"
    gain = None if options.running is None else 1 - best.costs.phi / options.running
    if urgent:
        return Decision(action=action, because=why, target=best.split, gain=gain)
    if best.split.same_stages(running):
        return Decision(action="keep", because=f"{why}; but the running split is still the best one")
    if gain is not None and gain < policy.min_gain:
        return Decision(
            action="keep", because=f"{why}; the best move wins only {gain:.0%} (at least {policy.min_gain:.0%})"
        )
    return Decision(action=action, because=why, target=best.split, gain=gain)


def _best(options: Options) -> Solution | None:
    moved, cut = options.redistribution, options.resplit
    if moved is None or cut is None:
        return moved or cut
    return moved if moved.costs.phi <= cut.costs.phi * (1 + SAME) else cut
