"""One thought of the orchestrator: alarms, the split's rivals on the fleet as it is, a decision, and what to remember.

Must not know: clocks (the time is given), hosts, how readings come, how a split is pushed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from edgesplit.broadcast.forecast import rate
from edgesplit.errors import InfeasibleError
from edgesplit.fleet import Fleet
from edgesplit.inventory import Inventory
from edgesplit.model.blocks import Chain
from edgesplit.orchestrator.decide import (
    Alarm,
    Decision,
    Findings,
    Move,
    Options,
    Way,
    alarms,
    decide,
    first,
    rotation,
    thresholds,
    widened,
)
from edgesplit.orchestrator.likely import Standby, standby
from edgesplit.orchestrator.moving import Stock, blocks_of, moving
from edgesplit.orchestrator.verdict import (
    REMEMBERED,
    WATCHED,
    Failure,
    Forecast,
    Mind,
    Trial,
    barred,
    judge,
    route,
    typical,
)
from edgesplit.plan import ModelPlan
from edgesplit.profiling.capacity import LATELY, MEMORY, Heard, Thresholds, Views, observe, views
from edgesplit.profiling.news import news, remembered, roomier
from edgesplit.revision.cost import evaluate, forbidden
from edgesplit.revision.problem import Problem, pose
from edgesplit.revision.revise import redistribution, running_phi
from edgesplit.revision.solver import Solution, solve
from edgesplit.split import Split

GAP = 0.02  # share of Phi: to prove that nothing is better by less takes most of the time on a hundred hosts
ASIDE = 120.0  # seconds a host is not used after its runner died there: time enough to see whether it dies again


@dataclass(frozen=True)
class Thinker:
    """`fleet`: as profiled."""

    chain: Chain
    fleet: Fleet
    plan: ModelPlan
    inventory: Inventory

    @property
    def thresholds(self) -> Thresholds:
        return thresholds(self.plan.watch, self.plan.service)

    def heed(self, mind: Mind, heard: dict[str, Heard], running: Split) -> Mind:
        return observe(mind, heard, running, self.fleet, self.thresholds)

    def think(self, mind: Mind, running: Split, now: float) -> tuple[Mind, Decision | None]:
        """None: there is nothing to decide."""
        policy, seen = self.plan.watch, self._views(mind, running, now)
        # a new controller asks whether the profile still holds
        thought = remembered(mind.thought or Views(now=self.fleet, worst=self.fleet), seen)
        mind = mind.model_copy(update={"thought": thought})
        different = (*news(thought, seen), *roomier(thought, seen, running))
        found = Findings(changes=different, forbidden=self._forbidden(running), crowded=self._crowded(mind))
        tripped = alarms(mind, running, found, policy, now)
        asked = tuple(alarm.key for alarm in tripped)
        if any(alarm.at_once for alarm in tripped):
            if mind.hopeless and not found.changes and set(asked) <= set(mind.answered):
                return mind, None
        else:
            mind, verdict = self._judge(mind, running, seen, now)
            if verdict is not None or not tripped:
                return mind, verdict
        mind = self._set_aside(mind, tripped, running, now)
        decision, possible = self._decide(mind, running, now, tripped)
        pressing = any(alarm.trouble for alarm in tripped)
        if decision.target is not None and not any(alarm.at_once for alarm in tripped):
            told = self._forecast(mind, running, decision.target, seen)
            decision = decision.model_copy(update={"forecast": told, "pressing": pressing})
        update = {"thought": seen, "answered": asked, "answered_at": now, "hopeless": not possible}
        return mind.model_copy(update=update), decision

    def _decide(self, mind: Mind, running: Split, now: float, tripped: tuple[Alarm, ...]) -> tuple[Decision, bool]:
        """Keep, or what instead; and could any split serve?"""
        policy = self.plan.watch
        if any(alarm.at_once for alarm in tripped):
            options = self._at_once(mind, running, now)
            return decide(tripped, options, running, policy), bool(options.ways)
        if any(alarm.kind == "crowded" for alarm in tripped):
            wider = self._wider(mind, running, now)
            if wider is not None:
                return widened(tripped, wider, running, policy), True
        options = self._for(self._served(mind, now), mind, running, now)
        fewer = mind.at_once is not None and mind.at_once < self.plan.workload.concurrency
        if fewer and options.ways:  # all that the plan asks for fits again
            options = options.model_copy(update={"running": None})
        decision = decide(tripped, options, running, policy)
        if decision.target is None and options.ways and any(alarm.trouble for alarm in tripped):
            decision = self._nowhere_else(mind, running, now, tripped) or decision
        return decision, bool(options.ways)

    def rotation(self, mind: Mind, running: Split, now: float) -> Decision | None:
        """Where nothing is to be moved: is it time for other keys?"""
        found = None if mind.trial else rotation(mind, running, self.plan.watch, now)
        return found and found.model_copy(update={"at_once": mind.at_once})

    def _forbidden(self, running: Split) -> tuple[str, ...]:
        return tuple(forbidden(running, self._rules)) if self._rules is not None else ()

    @cached_property
    def _rules(self) -> Problem | None:
        """What plan and inventory allow, whatever the hosts are like; None where the entry was never measured."""
        try:
            return self._problem(self.fleet)
        except InfeasibleError:
            return None

    def _set_aside(self, mind: Mind, tripped: tuple[Alarm, ...], running: Split, now: float) -> Mind:
        """A host that was lost is not used for a while; but never the entry, without which nothing serves."""
        lost = [alarm.host for alarm in tripped if alarm.kind == "lost" and alarm.host != running.entry]
        until = now + max(ASIDE, self.plan.watch.cooldown)
        return mind.model_copy(update={"aside": {**mind.aside, **dict.fromkeys(lost, until)}})

    # --- what could be ---

    def _revise(self, mind: Mind, running: Split, now: float, span: float = MEMORY) -> Options:
        """The running split on the state as it is and its rivals at the worst of `span` seconds; hosts set aside only
        where nothing else is left."""
        try:
            return self._options(mind, running, now, span)
        except InfeasibleError as error:
            reachable = mind.model_copy(update={"aside": {}})
            try:
                return self._options(reachable, running, now, span)
            except InfeasibleError:
                return Options(running=None, ways=(), impossible=error.message)

    # --- for how many at a time ---

    def _crowded(self, mind: Mind) -> str:
        count = mind.at_once or self.plan.workload.concurrency
        asked = mind.crowd.level
        return f"{asked:.0f} ask at a time, and {count} are served" if count < min(asked, self._most) else ""

    @property
    def _most(self) -> int:
        return self.plan.watch.widen * self.plan.workload.concurrency

    def _asked(self, mind: Mind, now: float, running: int = 0) -> int:
        """As many as the plan says, or the double, fourfold ... of it where so many have come of late."""
        count, most = self.plan.workload.concurrency, max(mind.crowd.worst(now), running)
        while count < min(most, self._most):
            count = min(2 * count, self._most)
        return count

    def _served(self, mind: Mind, now: float) -> int:
        """As now, unless the crowd is gone; never less than the plan says."""
        count = self.plan.workload.concurrency
        return max(count, min(mind.at_once or count, self._asked(mind, now)))

    def _for(self, count: int, mind: Mind, running: Split, now: float, span: float = MEMORY) -> Options:
        """What could be, for so many sequences at a time; fewer than the plan says come at whatever rate."""
        options = self._with(count)._revise(mind, running, now, span)
        return options.model_copy(update={"at_once": None if count == self.plan.workload.concurrency else count})

    def _with(self, count: int) -> Thinker:
        work = self.plan.workload
        rate = work.rate if count >= work.concurrency else 0.0
        workload = work.model_copy(update={"concurrency": count, "rate": rate})
        return replace(self, plan=self.plan.model_copy(update={"workload": workload}))

    def _in_time(self, count: int, split: Split, view: Fleet) -> bool:
        """Does it hold so many at a time, and would they still get their tokens at the wished pace?"""
        limit, token = self.plan.service.time_per_token, self._with(count)._token(split, view)
        return token is not None and (limit is None or token <= limit)

    def _at_once(self, mind: Mind, running: Split, now: float) -> Options:
        """Where nothing serves: what serves first for as many as the plan says, and then for as many more who wait by
        now as it holds; if there is nothing, for fewer: their caches are what can be done without."""
        entry = mind.host(running.entry).reading
        count, wide = self.plan.workload.concurrency, self._asked(mind, now, entry.running if entry else 0)
        options = self._for(count, mind, running, now)
        if options.ways:
            way, seen = first(options.ways), self._views(mind, running, now).worst
            while wide > count and not self._in_time(wide, way.split, seen):
                wide //= 2
            more = wide if wide > count else None
            return options.model_copy(update={"ways": (way,), "at_once": more})
        impossible = options.impossible
        while count := count // 2:
            found = self._for(count, mind, running, now)
            if found.ways:
                return found.model_copy(update={"running": None, "impossible": impossible})
        return options

    def _wider(self, mind: Mind, running: Split, now: float) -> Options | None:
        """For as many as ask, or the most that the running split can serve too; None: no more than now."""
        served, count = mind.at_once or self.plan.workload.concurrency, self._asked(mind, now)
        view = self._views(mind, running, now).now
        while count > served and not self._in_time(count, running, view):
            count //= 2
        options = self._for(count, mind, running, now) if count > served else None
        return None if options is None or options.running is None else options

    def _nowhere_else(self, mind: Mind, running: Split, now: float, tripped: tuple[Alarm, ...]) -> Decision | None:
        """A way to hosts that were not well within ten minutes, but have been for a while."""
        options = self._for(self._served(mind, now), mind, running, now, LATELY)
        decision = decide(tripped, options, running, self.plan.watch)
        return None if decision.target is None else decision

    def _options(self, mind: Mind, running: Split, now: float, span: float = MEMORY) -> Options:
        seen = self._views(mind, running, now, span)
        problem, stock = self._problem(seen.worst), self.stock(mind)
        phi = running_phi(running, self._problem(seen.now))
        found: list[tuple[Move, Solution | None]] = [
            ("redistribute", redistribution(running, problem)),
            ("re-split", solve(problem, gap=self._gap)),
        ]
        if phi is None:
            found.append(("re-split", _ready(running, problem, stock, self._gap)))
        ways = tuple(
            Way(
                action=action,
                split=solution.split,
                phi=solution.costs.phi,
                moving=moving(running, solution.split, solution.costs, problem, stock),
                failed=barred(solution.split, mind.failures, seen),
            )
            for action, solution in found
            if solution is not None
        )
        return Options(running=phi, ways=ways)

    def stock(self, mind: Mind) -> Stock:
        """What the hosts have already, as far as is known here."""
        readings = {name: host.reading for name, host in mind.hosts.items() if host.reading is not None}
        return Stock(
            shards={host: frozenset(blocks) for host, blocks in mind.shards.items()},
            warm=frozenset(name for name, reading in readings.items() if reading.runner),
            room={
                name: reading.memory_available
                for name, reading in readings.items()
                if name in self.fleet.hosts and self.fleet.hosts[name].device == "cpu"
            },
            rates={name: rate(name, self.fleet, self.inventory) for name in self.fleet.hosts},
            paces={name: host.pace.level for name, host in mind.hosts.items()},
        )

    @property
    def _gap(self) -> float:
        """Share of Phi by which a rival may be worse than the best there is: far less than a move must win."""
        return min(GAP, self.plan.watch.min_gain / 5)

    def _views(self, mind: Mind, running: Split, now: float, span: float = MEMORY) -> Views:
        return views(self.fleet, mind, running, now, self.plan.watch.host_timeout, span)

    def _problem(self, fleet: Fleet) -> Problem:
        return pose(self.chain, fleet, self.plan, self.inventory)

    def standby(self, mind: Mind, running: Split, now: float) -> Standby:
        """What would be needed if one host of the ring were lost."""
        seen = self._views(mind, running, now)
        return standby(running, lambda host: self._problem(seen.worst.without(host)), self._gap)

    # --- what came of it ---

    def _forecast(self, mind: Mind, running: Split, target: Split, seen: Views) -> Forecast | None:
        """What the move will be judged by; None where nobody measured, or tokens are not what it wins."""
        now, worst = (self._token(split, view) for split, view in ((running, seen.now), (target, seen.worst)))
        measured = typical(mind.served, self.thresholds.window)
        if measured is None or now is None or worst is None or worst > now * (1 - self.plan.watch.min_gain):
            return None
        return Forecast(measured=measured.seconds, model=now, target=worst, load=measured.load)

    def _token(self, split: Split, view: Fleet) -> float | None:
        """Seconds per token by the model; None where that cannot run."""
        try:
            return evaluate(split, self._problem(view)).time_per_token_seconds
        except InfeasibleError:
            return None

    def _judge(self, mind: Mind, running: Split, seen: Views, now: float) -> tuple[Mind, Decision | None]:
        """A move that did not bring what was forecast is taken back, where what was before can serve again."""
        trial = mind.trial
        if trial is None or mind.broken_at is not None:
            return mind, None
        found = judge(mind, self.thresholds.window, lambda split: self._token(split, seen.now), running)
        if found is None and now - trial.since < WATCHED:
            return mind, None
        mind = mind.model_copy(update={"trial": None})
        if found is None or not found.failed:
            return mind, Decision(action="keep", because=found.text) if found and found.text else None
        failure = Failure(route=route(running), views=seen)
        mind = mind.model_copy(update={"failures": (*mind.failures, failure)[-REMEMBERED:]})
        heard = all(not mind.host(name).away(now, self.plan.watch.host_timeout) for name in trial.origin.hosts)
        if not heard or not found.back or running_phi(trial.origin, self._problem(seen.now)) is None:
            return mind, Decision(action="keep", because=f"{found.text}; there is no way back")
        return mind, Decision(action="roll back", because=found.text, target=trial.origin, at_once=mind.at_once)


def _ready(running: Split, problem: Problem, stock: Stock, gap: float) -> Solution | None:
    """The best split for which nothing need be sent."""
    has = {host: stock.has(host, running) for host in problem.hosts}
    legal = tuple(frozenset(h for h in hosts if block in has.get(h, ())) for block, hosts in enumerate(problem.legal))
    try:
        return solve(replace(problem, legal=legal), gap=gap)
    except InfeasibleError:
        return None


def untried(target: Split, running: Split) -> tuple[tuple[str, str], ...]:
    """Pairs of hosts that a target sends between and the running split does not: nobody has seen their links lately."""
    hops, known = ({tuple(sorted((a.host, b.host))) for a, b in pairwise(split.stages)} for split in (target, running))
    return tuple((a, b) for a, b in sorted(hops - known))


def moved(mind: Mind, decision: Decision, origin: Split, now: float) -> Mind:
    """After a move away from `origin`: it rests, what was heard of the old epoch is over, and it will be judged."""
    target, forecast = decision.target, decision.forecast
    assert target is not None  # noqa: S101 - it was moved to
    entry = mind.host(origin.entry).reading
    trial = None
    if forecast is not None and entry is not None:
        trial = Trial(since=now, tokens=entry.tokens, origin=origin, forecast=forecast)
    hosts = {name: host.model_copy(update={"reading": None, "mute_for": 0}) for name, host in mind.hosts.items()}
    update = {
        "hosts": hosts,
        "last_move": now,
        "broken_at": None,
        "late_for": 0,
        "answered": (),
        "served": (),
        "at_once": decision.at_once,
    }
    return supplied(mind, target).model_copy(update={**update, "trial": trial})


def supplied(mind: Mind, target: Split) -> Mind:
    """After the weights of a split have come to its hosts."""
    more = {host: sorted({*mind.shards.get(host, ()), *blocks_of(target, host)}) for host in target.hosts}
    return mind.model_copy(update={"shards": {**mind.shards, **{host: tuple(held) for host, held in more.items()}}})
