"""Readings over time -> the paper's C_i(t): what each host and link can do now, smoothed, and how old that is.

There are two views. What serves is judged by how the hosts and links are now; what could serve instead, by their worst
of the last ten minutes: a move must win even if that comes back. So a load or a link that comes and goes costs one
move, not one each time.

Pure: apply what was heard to a state, get the next state. Must not know: clocks, hosts, what trips an alarm.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field

from edgesplit.fleet import Fleet, HostProfile, LinkProfile
from edgesplit.profiling.probes import Reading, StageReading
from edgesplit.split import Split
from edgesplit.values import Value

MIN_STEPS = 4  # decode steps between two readings before their mean time counts ...
LONG = 0.05  # ... or so many seconds spent in them: what takes so long is no matter of a busy moment
FLOOR = 0.05  # share of its cores that a host keeps for us under any load; bounds the slowdown
MEMORY = 600.0  # seconds that the worst is remembered: nothing that comes and goes more often is moved to twice ...
LATELY = 30.0  # ... unless what serves is in trouble and nothing else is left: then who has been well so long will do
APART = 1.25  # factor between two values that are not the same; profiles repeat within 10 %
APART_SECONDS = 0.5e-3  # and for round trips: what a busy kernel adds
ALIKE = 1.05  # factor within which two remembered levels are one


class Belief(Value):
    """A quantity of which more is worse, seen again and again. `value`: what it is taken for before that."""

    value: float
    recent: tuple[float, ...] = ()
    peaks: tuple[tuple[float, float], ...] = ()  # (until when it is remembered, how bad it was), ever less bad

    @property
    def level(self) -> float:
        return statistics.median(self.recent or (self.value,))

    def worst(self, now: float, span: float = MEMORY) -> float:
        """Of so many seconds past."""
        return max([self.level, *(bad for until, bad in self.peaks if until > now + MEMORY - span)])

    def seen(self, value: float, now: float, patience: int) -> Belief:
        """`patience`: so many readings suffice to believe a change, one less does not, whatever it says."""
        window = 2 * patience - 1
        recent = (*(self.recent or (self.value,) * window), value)[-window:]
        level = statistics.median(recent)
        kept = tuple((until, bad) for until, bad in self.peaks if until > now and bad > level * ALIKE)
        return Belief(value=self.value, recent=recent, peaks=(*kept, (now + MEMORY, level)))


@dataclass(frozen=True)
class Heard:
    """What came from a host, and when, by the controller's clock; a str says why nothing does."""

    at: float
    what: Reading | str


class HostState(Value):
    """What is known of one host. `seen`: when it was last heard of, by the controller's clock.

    `pace`: factor on its profiled compute times. `others`: cores that others took between the last two readings.
    """

    seen: float | None = None
    reading: Reading | None = None
    failure: str = ""  # why nothing is heard of it at the moment
    wanting: int = 0  # readings still to come before one that had been silent is counted on again
    pace: Belief = Belief(value=1.0)
    others: float = 0.0
    short_for: int = 0  # consecutive readings short of memory
    mute_for: int = 0  # consecutive readings in which its runner was there, but did not answer

    def away(self, now: float, timeout: float) -> bool:
        """Has nothing been heard of it for so long? It may serve all the same."""
        return self.seen is None or now - self.seen > timeout

    @property
    def bereft(self) -> bool:
        """Does it say itself that its runner is gone?"""
        return self.reading is not None and not self.mute_for and not self.reading.runner


class LinkState(Value):
    """One direction. `rtt` in seconds, `cost` in seconds per byte; `cut`: the two could not meet when last tried."""

    rtt: Belief
    cost: Belief
    cut: bool = False


class Views(Value):
    """The fleet without hosts that cannot be counted on: as it is `now`, and at its `worst` of late."""

    now: Fleet
    worst: Fleet


class Served(Value):
    """What the entry said in a reading before which tokens came: seconds per token, sequences under way, tokens given
    out so far."""

    seconds: float
    load: float
    tokens: int


class State(Value):
    """All hosts and links, and the service as the entry measured it. Times are by the controller's clock."""

    hosts: dict[str, HostState] = Field(default_factory=dict)
    links: dict[str, dict[str, LinkState]] = Field(default_factory=dict)
    late_for: int = 0  # consecutive readings over the service level
    served: tuple[Served, ...] = ()  # of the running epoch, the newest last
    crowd: Belief = Belief(value=0.0)  # sequences under way or waiting
    broken_at: float | None = None  # when the entry first said so of the running epoch
    last_move: float | None = None
    aside: dict[str, float] = Field(default_factory=dict)  # host -> until when it is not used
    thought: Views | None = None  # what the last decision was made for
    answered: tuple[str, ...] = ()  # the alarms it answered ...
    answered_at: float = -math.inf  # ... and when

    def host(self, name: str) -> HostState:
        return self.hosts.get(name, HostState())


class Thresholds(Value):
    """The part of the plan's watch policy and service level that readings are counted against."""

    memory: float
    time_per_token: float | None
    patience: int

    @property
    def window(self) -> int:
        """So many readings say together what is typical."""
        return 2 * self.patience - 1


# --- what was heard ---------------------------------------------------------------------------------------------------


S = TypeVar("S", bound=State)


def observe(state: S, heard: Mapping[str, Heard], running: Split, fleet: Fleet, thresholds: Thresholds) -> S:
    """The state after what has been heard since; hosts of which nothing came are as they were."""
    hosts, links = dict(state.hosts), state.links
    for name, news in heard.items():
        if isinstance(news.what, str):
            update = {"failure": news.what, "wanting": thresholds.patience}
            hosts[name] = state.host(name).model_copy(update=update)
            continue
        hosts[name] = _host(state.host(name), news.at, news.what, (fleet.expected(name), running, thresholds))
        for target, rtt in news.what.links.items():
            links = _passive(links, fleet, (name, target), (rtt, news.at, thresholds.patience))
    updates = {"hosts": hosts, "links": links, **_service(state, heard.get(running.entry), running, thresholds)}
    return state.model_copy(update=updates)


def _service(state: State, heard: Heard | None, running: Split, thresholds: Thresholds) -> dict[str, object]:
    """What the entry says of the ring."""
    if heard is None or isinstance(heard.what, str) or heard.what.mute:
        return {}
    entry, before = heard.what, state.host(running.entry).reading
    came = entry.time_per_token is not None and entry.tokens > (before.tokens if before else 0)
    pace = entry.time_per_token or 0.0
    late = came and thresholds.time_per_token is not None and pace > thresholds.time_per_token
    served = (*state.served, Served(seconds=pace, load=entry.running, tokens=entry.tokens)) if came else state.served
    broken = breaks_down(entry, running, broken=False) and entry.serving in (None, running.epoch)
    began = state.broken_at if state.broken_at is not None else heard.at
    return {
        "late_for": state.late_for + 1 if late else 0,
        "served": served[-thresholds.window :],
        "crowd": state.crowd.seen(float(entry.running), heard.at, thresholds.patience),
        "broken_at": began if broken else None,
    }


def breaks_down(entry: Reading, running: Split, *, broken: bool) -> bool:
    """Does the entry tell of a ring that no longer serves? `broken`: the running one was known not to; then only what
    came after it counts."""
    if entry.mute or (broken and entry.serving in (None, running.epoch)):
        return False
    return not entry.runner or entry.serving is None or bool(entry.broken)


def _host(
    before: HostState, now: float, found: Reading, against: tuple[HostProfile | None, Split, Thresholds]
) -> HostState:
    if found.mute:
        return before.model_copy(update={"seen": now, "failure": "", "mute_for": before.mute_for + 1})
    profile, running, thresholds = against
    measured = None if profile is None else slowdown(before.reading, found, profile, running)
    short = found.memory_available < (1 - thresholds.memory) * found.memory_total
    return HostState(
        seen=now,
        reading=found,
        wanting=max(0, before.wanting - 1),
        pace=before.pace if measured is None else before.pace.seen(measured, now, thresholds.patience),
        others=before.others if before.reading is None else _others(before.reading, found),
        short_for=before.short_for + 1 if short else 0,
    )


def slowdown(before: Reading | None, now: Reading, profile: HostProfile, running: Split) -> float | None:
    """Measured over profiled compute time between two readings; None when nothing can be said.

    While tokens flow, from the stages' own decode steps: this catches whatever slows them. Else from the CPU time that
    others take, and from what the host may use at all: a runner that wants more cores than that leaves it is slower by
    that factor.
    """
    if before is None or now.at <= before.at:
        return None
    return _from_steps(before, now, profile, running) or _from_load(before, now, profile)


def _from_steps(before: Reading, now: Reading, profile: HostProfile, running: Split) -> float | None:
    old = {(stage.epoch, stage.stage): stage for stage in before.stages}
    spent = expected = 0.0
    for stage in now.stages:
        then = old.get((stage.epoch, stage.stage))
        steps = stage.steps - (then.steps if then else 0)
        took = stage.decode_seconds - (then.decode_seconds if then else 0.0)
        if not steps or (steps < MIN_STEPS and took < LONG):
            continue
        spent += took
        expected += steps * _decode_seconds(stage, profile, running.blocks)
    return spent / expected if expected > 0 else None


def _decode_seconds(stage: StageReading, profile: HostProfile, total: int) -> float:
    """Seconds one decode step of a stage takes by the profile, after a pause, with as many sequences as it had."""
    (first, last), times = stage.blocks, profile.times
    layers = min(last, total - 2) - max(first, 1) + 1
    head = times.head if last == total - 1 else 0.0
    taken = times.decode_overhead + max(0, layers) * times.step(times.context, stage.rows) + head
    return max(taken, taken / profile.share - profile.grace)


def _others(before: Reading, now: Reading) -> float:
    """Cores that others than our runner took."""
    span = now.at - before.at
    own = max(0.0, now.runner_seconds - before.runner_seconds)
    return max(0.0, (now.busy_seconds - before.busy_seconds - own) / span) if span > 0 else 0.0


def _from_load(before: Reading, now: Reading, profile: HostProfile) -> float:
    cores = max(now.cores, profile.cores)
    wanted = min(now.threads or cores, cores)
    free = max(now.cores - _others(before, now), FLOOR * cores)
    return max(1.0, wanted / free)


# --- links ---

Links = dict[str, dict[str, LinkState]]


def _passive(links: Links, fleet: Fleet, pair: tuple[str, str], seen: tuple[float, float, int]) -> Links:
    """What the kernel of a sender says of a link of the ring. A round trip is of both directions."""
    rtt, now, patience = seen
    for source, target in (pair, pair[::-1]):
        known = _known(links, fleet, source, target)
        if known is not None:
            found = known.model_copy(update={"rtt": known.rtt.seen(rtt, now, patience), "cut": False})
            links = {**links, source: {**links.get(source, {}), target: found}}
    return links


def probed(state: S, fleet: Fleet, found: Mapping[tuple[str, str], LinkProfile | str], now: float) -> S:
    """The state after links have been measured, which is believed at once; a str says why there is none."""
    links = state.links
    for (source, target), link in found.items():
        known = _known(links, fleet, source, target)
        if known is None:
            continue
        if isinstance(link, str):
            new = known.model_copy(update={"cut": True})
        else:
            new = LinkState(rtt=known.rtt.seen(link.rtt, now, 1), cost=known.cost.seen(1 / link.bandwidth, now, 1))
        links = {**links, source: {**links.get(source, {}), target: new}}
    return state.model_copy(update={"links": links})


def _known(links: Links, fleet: Fleet, source: str, target: str) -> LinkState | None:
    profile = fleet.links.get(source, {}).get(target)
    if profile is None:
        return None
    fresh = LinkState(rtt=Belief(value=profile.rtt), cost=Belief(value=1 / profile.bandwidth))
    return links.get(source, {}).get(target, fresh)


# --- the fleet as it is -----------------------------------------------------------------------------------------------


def views(fleet: Fleet, state: State, running: Split, now: float, timeout: float, span: float = MEMORY) -> Views:
    """The profile with what has been seen since; the worst is that of so many seconds."""
    gone = {name: why for name in fleet.hosts if (why := _missing(state, running, name, now, timeout))}
    left = fleet.without(*gone).model_copy(update={"problems": {**fleet.problems, **gone}})
    return Views(
        now=_seen(left, state, running, lambda belief: belief.level),
        worst=_seen(left, state, running, lambda belief: belief.worst(now, span)),
    )


Judge = Callable[[Belief], float]


def _seen(fleet: Fleet, state: State, running: Split, judge: Judge) -> Fleet:
    hosts = {
        name: _spare(profile, state.host(name), serves=name in running.hosts) for name, profile in fleet.hosts.items()
    }
    links = {
        source: dict(_links(row, known, judge)) if (known := state.links.get(source)) else row
        for source, row in fleet.links.items()
    }
    slowdown = {name: judge(state.host(name).pace) for name in fleet.hosts}
    return fleet.model_copy(update={"hosts": hosts, "links": links, "slowdown": slowdown})


def _missing(state: State, running: Split, name: str, now: float, timeout: float) -> str:
    host = state.host(name)
    if state.aside.get(name, now) > now:
        return "set aside after a failure"
    if host.away(now, timeout):
        return host.failure or "not heard of"
    if state.broken_at is not None and name in running.hosts and name != running.entry and lost(state, name):
        return "not heard of since the ring broke"
    return "not heard of for long enough yet" if host.wanting and name not in running.hosts else ""


def lost(state: State, name: str) -> bool:
    """Of a host of a broken ring: is it gone too, as far as can be told?"""
    host = state.host(name)
    return host.seen is None or host.mute_for > 0 or (state.broken_at is not None and host.seen <= state.broken_at)


def _spare(profile: HostProfile, host: HostState, *, serves: bool) -> HostProfile:
    """Others may have taken memory since; of a host that serves, part of what is taken is ours."""
    reading = host.reading
    if serves or reading is None or reading.runner:
        return profile
    return profile.model_copy(update={"memory_available": min(profile.memory_available, reading.memory_available)})


def _links(
    row: Mapping[str, LinkProfile], known: Mapping[str, LinkState], judge: Judge
) -> Iterator[tuple[str, LinkProfile]]:
    """The links from one host; what is as profiled stays exactly so."""
    for target, profile in row.items():
        link = known.get(target)
        if link is None:
            yield target, profile
        elif not link.cut:
            rtt, bandwidth = judge(link.rtt), 1 / judge(link.cost)
            update = {
                "rtt": rtt if apart(rtt, profile.rtt, APART_SECONDS) else profile.rtt,
                "bandwidth": bandwidth if apart(bandwidth, profile.bandwidth) else profile.bandwidth,
            }
            yield target, profile.model_copy(update=update)


def apart(a: float, b: float, least: float = 0.0, factor: float = 0.0) -> bool:
    """Are two quantities different enough to think again?"""
    return max(a, b) > (factor or APART) * min(a, b) and abs(a - b) > least
