"""Readings over time -> the paper's C_i(t): what each host can do now, smoothed, with the age of what is known.

Pure: apply a round of readings to a state, get the next state. Must not know: clocks, hosts, thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from edgesplit.fleet import Fleet, HostProfile
from edgesplit.profiling.probes import Reading, StageReading
from edgesplit.split import Split
from edgesplit.values import Value

SMOOTHING = 0.5  # weight of the newest reading: two readings suffice to believe a change, one does not
MIN_STEPS = 4  # decode steps between two readings before their mean time counts
FLOOR = 0.05  # share of its cores that a host keeps for us under any load; bounds the slowdown


class HostState(Value):
    """What is known of one host. `seen`: when it last answered; `slowdown`: factor on its profiled compute times."""

    seen: float | None = None
    reading: Reading | None = None
    failure: str = ""
    slowdown: float = 1.0
    slow_for: int = 0  # consecutive readings with a slowdown over the policy's threshold
    short_for: int = 0  # the same for memory

    def silent(self, now: float, timeout: float) -> bool:
        """Has it failed to answer for longer than `timeout`? One that answered the last time has not."""
        return self.seen is None or (self.failure != "" and now - self.seen > timeout)


class State(Value):
    """All hosts, and the service as the entry measured it. `late_for`: consecutive readings over the service level."""

    hosts: dict[str, HostState] = Field(default_factory=dict)
    late_for: int = 0
    last_move: float | None = None
    aside: dict[str, float] = Field(default_factory=dict)  # host -> until when it is not used (seconds since the epoch)

    def host(self, name: str) -> HostState:
        return self.hosts.get(name, HostState())


class Thresholds(Value):
    """The part of the plan's watch policy and service level that readings are counted against."""

    slowdown: float
    memory: float
    time_per_token: float | None


def observe(
    state: State,
    readings: Mapping[str, Reading | str],
    running: Split,
    fleet: Fleet,
    thresholds: Thresholds,
) -> State:
    """The state after one round; a reading that is a str says why there is none."""
    hosts = {
        name: _host(state.host(name), found, fleet.expected(name), running, thresholds)
        for name, found in readings.items()
    }
    entry = readings.get(running.entry)
    late = (
        isinstance(entry, Reading)
        and thresholds.time_per_token is not None
        and entry.time_per_token is not None
        and entry.time_per_token > thresholds.time_per_token
        and entry.tokens > _tokens(state, running.entry)
    )
    return state.model_copy(update={"hosts": {**state.hosts, **hosts}, "late_for": state.late_for + 1 if late else 0})


def _tokens(state: State, entry: str) -> int:
    reading = state.host(entry).reading
    return 0 if reading is None else reading.tokens


def _host(
    before: HostState, found: Reading | str, profile: HostProfile | None, running: Split, thresholds: Thresholds
) -> HostState:
    if isinstance(found, str):
        return before.model_copy(update={"failure": found})
    measured = None if profile is None else slowdown(before.reading, found, profile, running)
    smooth = before.slowdown if measured is None else (1 - SMOOTHING) * before.slowdown + SMOOTHING * measured
    short = found.memory_available < (1 - thresholds.memory) * found.memory_total
    return HostState(
        seen=found.at,
        reading=found,
        slowdown=smooth,
        slow_for=before.slow_for + 1 if smooth > thresholds.slowdown else 0,
        short_for=before.short_for + 1 if short else 0,
    )


def slowdown(before: Reading | None, now: Reading, profile: HostProfile, running: Split) -> float | None:
    """Measured over profiled compute time between two readings; None when nothing can be said.

    While tokens flow, from the stages' own decode steps: this catches whatever slows them. Else from the CPU time that
    others take: a runner that wants more cores than they leave free is slower by that factor.
    """
    if before is None or now.at <= before.at:
        return None
    return _from_steps(before, now, profile, running) or _from_load(before, now)


def _from_steps(before: Reading, now: Reading, profile: HostProfile, running: Split) -> float | None:
    old = {(stage.epoch, stage.stage): stage for stage in before.stages}
    spent = expected = 0.0
    for stage in now.stages:
        then = old.get((stage.epoch, stage.stage))
        steps = stage.steps - (then.steps if then else 0)
        if steps < MIN_STEPS:
            continue
        spent += stage.decode_seconds - (then.decode_seconds if then else 0.0)
        expected += steps * _decode_seconds(stage, profile, running.blocks)
    return spent / expected if expected > 0 else None


def _decode_seconds(stage: StageReading, profile: HostProfile, total: int) -> float:
    """Seconds one decode step of a stage takes by the profile, after a pause, with as many sequences as it had."""
    (first, last), times = stage.blocks, profile.times
    layers = min(last, total - 2) - max(first, 1) + 1
    head = times.head if last == total - 1 else 0.0
    taken = times.decode_overhead + max(0, layers) * times.step(times.context, stage.rows) + head
    return max(taken, taken / profile.share - profile.grace)


def _from_load(before: Reading, now: Reading) -> float:
    span = now.at - before.at
    own = max(0.0, now.runner_seconds - before.runner_seconds)
    others = max(0.0, (now.busy_seconds - before.busy_seconds - own) / span)
    wanted = min(now.threads or now.cores, now.cores)
    free = max(now.cores - others, FLOOR * now.cores)
    return max(1.0, wanted / free)


def current(fleet: Fleet, state: State, now: float, timeout: float) -> Fleet:
    """The profile with what has been seen since: slower hosts; without those set aside or silent for `timeout`."""
    gone = {name: "set aside after a failure" for name, until in state.aside.items() if until > now}
    for name, host in state.hosts.items():
        if host.silent(now, timeout):
            gone[name] = host.failure or "does not answer"
    slow = {name: state.host(name).slowdown for name in fleet.hosts if name in state.hosts}
    return fleet.without(*gone).model_copy(update={"slowdown": slow, "problems": {**fleet.problems, **gone}})
