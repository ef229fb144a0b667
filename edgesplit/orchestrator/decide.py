"""(state, running split, policy, now) -> what is wrong; (what is wrong, what could be) -> keep, redistribute, re-split.

Two questions, as in the paper's eq. 8: has a threshold tripped, and does another mapping win more than moving costs?
Hysteresis is data: how many readings in a row count, how long a move rests, how much it must win over a horizon, and
that what does not serve is judged by its worst of late (capacity.py).

Must not know: clocks (the time is given), hosts, how the candidates were found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from edgesplit.orchestrator.moving import Moving
from edgesplit.orchestrator.verdict import Forecast
from edgesplit.plan import ServiceLevel, WatchPolicy
from edgesplit.profiling.capacity import LATELY, HostState, State, Thresholds, lost
from edgesplit.split import Split
from edgesplit.units import format_size, format_time
from edgesplit.values import Value

SETTLE = 2.0  # seconds after the ring broke in which its hosts that live tell of it: they do within half a second
MISSED = 1.5  # intervals: who has been silent for longer by then, and for SETTLE, is not waited for
FIRST = 15.0  # seconds given to a host that this controller has not heard of yet
OTHERS = 0.1  # cores taken by others that are worth telling
MENTIONED = 3  # changes told in full
AGAIN = 600.0  # seconds until what did not work is tried again, where nothing depends on it
OVERDUE = 7.0  # times its period, and a rotation no longer waits until nobody asks anything
SOONER = 1.0  # seconds by which a split must serve sooner than a better one, where nothing serves meanwhile


class Alarm(Value):
    """A threshold that tripped. `urgent`: the ring does not serve. `at_once`: nothing is waited for, nor weighed."""

    kind: Literal["lost", "broken", "forbidden", "slow", "memory", "late", "crowded", "changed"]
    host: str
    text: str

    @property
    def key(self) -> str:
        return f"{self.kind} {self.host}"

    @property
    def urgent(self) -> bool:
        return self.kind in ("lost", "broken")

    @property
    def at_once(self) -> bool:
        return self.urgent or self.kind == "forbidden"

    @property
    def trouble(self) -> bool:
        """Do those who ask feel it?"""
        return self.kind in ("slow", "memory", "late")


Move = Literal["redistribute", "re-split"]


class Way(Value):
    """A split that could serve instead, and what it takes to get there. `failed`: it was tried, and did not bring what
    was forecast."""

    action: Move
    split: Split
    phi: float
    moving: Moving
    failed: bool = False


class Options(Value):
    """What could be done now. `running`: Phi of the running split on the new state, None when it cannot run there.
    `at_once`: the ways are for so many sequences at a time; None: for as many as the plan asks for."""

    running: float | None
    ways: tuple[Way, ...]
    impossible: str = ""  # why there is no split at all, or none for all that the plan asks for
    at_once: int | None = None


class Decision(Value):
    """`gain`: share of the running split's Phi that the move wins, None when that cannot run at all; `net`: what is
    left of it over the horizon, moving subtracted. `forecast`: what the move will be judged by."""

    action: Literal["keep", "redistribute", "re-split", "widen", "roll back", "rotate"]
    because: str
    target: Split | None = None
    gain: float | None = None
    net: float | None = None
    moving: Moving | None = None
    forecast: Forecast | None = None
    pressing: bool = False  # those who ask feel what it is made for: nothing is measured before it
    at_once: int | None = None  # sequences served at a time from then on; None: as many as the plan asks for


def thresholds(policy: WatchPolicy, service: ServiceLevel) -> Thresholds:
    return Thresholds(memory=policy.memory, time_per_token=service.time_per_token, patience=policy.patience)


class Findings(Value):
    """What else is known of the running split. `changes`: what is different since the last decision; `forbidden`: where
    it breaks the rules of plan or inventory; `crowded`: more ask than are served at a time."""

    changes: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    crowded: str = ""


def alarms(state: State, running: Split, found: Findings, policy: WatchPolicy, now: float) -> tuple[Alarm, ...]:
    """Everything that asks for a decision now.

    A host that cannot be heard is no loss while the ring serves: only the ring's own word counts, or a runner that its
    own host says is gone. What is not urgent waits while a host of the ring cannot be told what to do, and rests after
    a move; what has been answered is not asked again until something is different, or trouble has lasted for a while.
    """
    entry = state.host(running.entry)
    if entry.away(now, policy.host_timeout):
        return ()  # nobody can tell whether the ring serves, nor tell it anything
    urgent = [*_gone(state, running, policy, now), *_broken(state, running, policy, now)]
    if urgent or state.broken_at is not None:
        return tuple(urgent)
    if found.forbidden:
        return tuple(Alarm(kind="forbidden", host="", text=text) for text in found.forbidden)
    deaf = any(state.host(name).away(now, policy.host_timeout) for name in running.hosts)
    resting = state.last_move is not None and now - state.last_move < policy.cooldown
    return () if deaf or resting else tuple(_unhurried(state, running, found, policy, now))


def _unhurried(state: State, running: Split, found: Findings, policy: WatchPolicy, now: float) -> Iterator[Alarm]:
    changes = found.changes
    tripped = [alarm for host in running.hosts for alarm in _host_alarms(state, host, policy)]
    if state.late_for >= policy.patience:
        entry = state.host(running.entry).reading
        measured = format_time(entry.time_per_token or 0.0) if entry else "?"
        tripped.append(
            Alarm(kind="late", host=running.entry, text=f"time per token is {measured}, over the service level")
        )
    if found.crowded:
        tripped.append(Alarm(kind="crowded", host=running.entry, text=found.crowded))
    again = now - state.answered_at >= LATELY and any(alarm.trouble for alarm in tripped)
    if not changes and not again and {alarm.key for alarm in tripped} <= set(state.answered):
        return
    yield from tripped
    if changes:
        text = "; ".join(changes[:MENTIONED]) + (" ..." if len(changes) > MENTIONED else "")
        yield Alarm(kind="changed", host="", text=text)


def _gone(state: State, running: Split, policy: WatchPolicy, now: float) -> Iterator[Alarm]:
    """Runners that their own hosts say are not there; and an entry that is there, but stands still."""
    for name in running.hosts:
        host = state.host(name)
        if host.reading is None or host.away(now, policy.host_timeout):
            continue
        if host.mute_for >= policy.patience and name == running.entry:
            yield Alarm(kind="lost", host=name, text=f"{name} is lost: its runner stands still")
        elif host.bereft:
            yield Alarm(kind="lost", host=name, text=f"{name} is lost: its runner does not answer")


def _broken(state: State, running: Split, policy: WatchPolicy, now: float) -> Iterator[Alarm]:
    """The ring's own word; and which of its hosts went silent with it, once those that live have had time to speak."""
    if state.broken_at is None:
        return
    silent = [name for name in running.hosts if name != running.entry and lost(state, name)]
    late = max(SETTLE, MISSED * policy.interval)
    if any(now - state.broken_at < _settle(state.host(name), now, late) for name in silent):
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


def _settle(host: HostState, now: float, late: float) -> float:
    """Seconds that its word is waited for. A host that speaks every interval, and has not for long, died with the ring:
    two have missed it, the controller and its neighbour."""
    if host.seen is None:
        return SETTLE if host.failure else FIRST
    return SETTLE if now - host.seen < late else 0.0


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
    if not options.ways:
        return Decision(action="keep", because=f"{why}; and no split is possible: {options.impossible}")
    if options.running is None or any(alarm.at_once for alarm in tripped):
        way = first(options.ways)
        if options.impossible:
            why += f"; {options.impossible}, so only {options.at_once} at a time"
        return Decision(action=way.action, because=why, target=way.split, moving=way.moving, at_once=options.at_once)
    made = _weigh(why, options.ways, options.running, running, policy)
    return made.model_copy(update={"at_once": options.at_once})


def widened(tripped: tuple[Alarm, ...], options: Options, running: Split, policy: WatchPolicy) -> Decision:
    """The options are for more sequences at a time, which the running split can serve too: by itself, or better so."""
    made = decide(tripped, options, running, policy)
    if made.target is not None:
        return made
    because = f"{'; '.join(alarm.text for alarm in tripped)}; {options.at_once} will be"
    return Decision(action="widen", because=because, target=running, at_once=options.at_once)


def first(ways: tuple[Way, ...]) -> Way:
    """What serves first; of several about as soon, the best."""
    least = min(way.moving.seconds for way in ways)
    return min((way for way in ways if way.moving.seconds <= least + SOONER), key=lambda way: way.phi)


def _weigh(why: str, ways: tuple[Way, ...], phi: float, running: Split, policy: WatchPolicy) -> Decision:
    """Is a move worth what it costs?"""
    others = [way for way in ways if not way.split.same_stages(running)]
    if len(others) < len(ways) and all(way.phi >= _same(ways, running).phi for way in others):
        return Decision(action="keep", because=f"{why}; but the running split is still the best one")
    worth = {id(way): way.moving.net(1 - way.phi / phi, policy.horizon) for way in others}
    ways_left = [way for way in others if not way.failed and not way.moving.short]
    best = max(ways_left or others, key=lambda way: worth[id(way)])
    gain, net = 1 - best.phi / phi, worth[id(best)]
    if gain <= 0:
        said = "nothing that could be reached is better"
    elif net < policy.min_gain:
        said = f"the best move wins only {gain:.0%}, less {gain - net:.1%} for moving (at least {policy.min_gain:.0%})"
    elif best.failed:
        said = "the best move was tried, and did not bring what was forecast"
    elif best.moving.short:
        said = f"no room to move: {best.moving.short}"
    else:
        return Decision(action=best.action, because=why, target=best.split, gain=gain, net=net, moving=best.moving)
    return Decision(action="keep", because=f"{why}; {said}", gain=gain, net=net, moving=best.moving)


def rotation(state: State, running: Split, policy: WatchPolicy, now: float) -> Decision | None:
    """The same split with other keys, where its own have served long enough; while nobody asks anything, if that can
    be waited for."""
    if not policy.rotate or state.broken_at is not None:
        return None
    if any(state.host(name).away(now, policy.host_timeout) for name in running.hosts):
        return None
    entry = state.host(running.entry).reading
    resting = state.last_move is not None and now - state.last_move < max(AGAIN, policy.cooldown)
    if entry is None or resting or entry.age < policy.rotate * (OVERDUE if entry.running else 1.0):
        return None
    because = f"the ring's keys are {format_time(entry.age)} old (watch.rotate {format_time(policy.rotate)})"
    return Decision(action="rotate", because=because, target=running)


def _same(ways: tuple[Way, ...], running: Split) -> Way:
    return next(way for way in ways if way.split.same_stages(running))
