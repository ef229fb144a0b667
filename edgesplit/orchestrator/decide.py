"""(state, running split, policy, now) -> what is wrong; (what is wrong, what could be) -> keep, redistribute, re-split.

Two questions, as in the paper's eq. 8: has a threshold tripped, and does another mapping cost enough less? Hysteresis
is data: how many readings in a row count, how long a move rests, how much a move must win.

Must not know: clocks (the time is given), hosts, how the candidates were found.
"""

from __future__ import annotations

from typing import Literal

from edgesplit.plan import ServiceLevel, WatchPolicy
from edgesplit.profiling.capacity import State, Thresholds
from edgesplit.revision.solver import Solution
from edgesplit.split import Split
from edgesplit.units import format_size, format_time
from edgesplit.values import Value

SAME = 0.02  # a redistribution this close to the best re-split (share of Phi) is preferred: it moves whole stages


class Alarm(Value):
    """A threshold that tripped. `urgent`: the ring does not serve, nothing is waited for."""

    kind: Literal["lost", "broken", "slow", "memory", "late"]
    host: str
    text: str

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
    return Thresholds(slowdown=policy.slowdown, memory=policy.memory, time_per_token=service.time_per_token)


def alarms(state: State, running: Split, policy: WatchPolicy, now: float) -> tuple[Alarm, ...]:
    """Every threshold that has tripped."""
    found = [alarm for host in running.hosts for alarm in _host_alarms(state, running, host, policy, now)]
    if state.late_for >= policy.patience:
        reading = state.host(running.entry).reading
        measured = format_time(reading.time_per_token or 0.0) if reading else "?"
        found.append(
            Alarm(kind="late", host=running.entry, text=f"time per token is {measured}, over the service level")
        )
    return tuple(found)


def _host_alarms(state: State, running: Split, host: str, policy: WatchPolicy, now: float) -> list[Alarm]:
    seen = state.host(host)
    if seen.silent(now, policy.host_timeout):
        silent = "never answered" if seen.seen is None else f"silent for {format_time(now - seen.seen)}"
        return [Alarm(kind="lost", host=host, text=f"{host} is lost: {silent} ({seen.failure or 'no answer'})")]
    reading = seen.reading
    if reading is None:
        return []
    if not reading.runner:
        return [Alarm(kind="lost", host=host, text=f"{host} is lost: its runner does not answer")]
    found = []
    if reading.broken and reading.serving == running.epoch:
        found.append(Alarm(kind="broken", host=host, text=f"the ring is broken ({reading.broken})"))
    if reading.serving is None and host == running.entry:
        found.append(Alarm(kind="broken", host=host, text=f"{host} serves no epoch"))
    if seen.slow_for >= policy.patience:
        text = f"{host} computes {seen.slowdown:.1f} x slower than profiled (threshold {policy.slowdown:g})"
        found.append(Alarm(kind="slow", host=host, text=text))
    if seen.short_for >= policy.patience:
        text = f"{host} has only {format_size(reading.memory_available)} of memory left"
        found.append(Alarm(kind="memory", host=host, text=text))
    return found


def decide(
    tripped: tuple[Alarm, ...], options: Options, running: Split, state: State, policy: WatchPolicy, now: float
) -> Decision:
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
    if state.last_move is not None and now - state.last_move < policy.cooldown:
        rest = format_time(policy.cooldown - (now - state.last_move))
        return Decision(action="keep", because=f"{why}; the last move is recent, {rest} to rest")
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
