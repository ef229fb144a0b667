"""One thought of the orchestrator: alarms, the split's rivals on the fleet as it is, a decision, and what to remember.

Must not know: clocks (the time is given), hosts, how readings come, how a split is pushed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from edgesplit.errors import InfeasibleError
from edgesplit.fleet import Fleet
from edgesplit.inventory import Inventory
from edgesplit.model.blocks import Chain
from edgesplit.orchestrator.decide import Alarm, Decision, Options, alarms, decide, thresholds
from edgesplit.plan import ModelPlan
from edgesplit.profiling.capacity import Heard, State, Views, news, observe, remembered, views
from edgesplit.revision.problem import Problem, pose
from edgesplit.revision.revise import redistribution, running_phi
from edgesplit.revision.solver import solve
from edgesplit.split import Split

ASIDE = 120.0  # seconds a host is not used after its runner died there: time enough to see whether it dies again


@dataclass(frozen=True)
class Thinker:
    """`fleet`: as profiled."""

    chain: Chain
    fleet: Fleet
    plan: ModelPlan
    inventory: Inventory

    def heed(self, state: State, heard: dict[str, Heard], running: Split) -> State:
        return observe(state, heard, running, self.fleet, thresholds(self.plan.watch, self.plan.service))

    def think(self, state: State, running: Split, now: float) -> tuple[State, Decision | None]:
        """None: there is nothing to decide."""
        policy = self.plan.watch
        seen = views(self.fleet, state, running, now, policy.host_timeout)
        # a new controller asks whether the profile still holds
        thought = remembered(state.thought or Views(now=self.fleet, worst=self.fleet), seen)
        state = state.model_copy(update={"thought": thought})
        tripped = alarms(state, running, news(thought, seen), policy, now)
        if not tripped:
            return state, None
        state = self._set_aside(state, tripped, running, now)
        decision = decide(tripped, self._revise(state, running, now), running, policy)
        update = {"thought": seen, "answered": tuple(alarm.key for alarm in tripped)}
        return state.model_copy(update=update), decision

    def _set_aside(self, state: State, tripped: tuple[Alarm, ...], running: Split, now: float) -> State:
        """A host that was lost is not used for a while; but never the entry, without which nothing serves."""
        lost = [alarm.host for alarm in tripped if alarm.kind == "lost" and alarm.host != running.entry]
        until = now + max(ASIDE, self.plan.watch.cooldown)
        return state.model_copy(update={"aside": {**state.aside, **dict.fromkeys(lost, until)}})

    def _revise(self, state: State, running: Split, now: float) -> Options:
        """The running split and its rivals on the state as it is; hosts set aside only where nothing else is left."""
        try:
            return self._options(state, running, now)
        except InfeasibleError as error:
            reachable = state.model_copy(update={"aside": {}})
            try:
                return self._options(reachable, running, now)
            except InfeasibleError:
                return Options(running=None, redistribution=None, resplit=None, impossible=error.message)

    def _options(self, state: State, running: Split, now: float) -> Options:
        seen = views(self.fleet, state, running, now, self.plan.watch.host_timeout)
        problem = self._problem(seen.worst)
        return Options(
            running=running_phi(running, self._problem(seen.now)),
            redistribution=redistribution(running, problem),
            resplit=solve(problem),
        )

    def _problem(self, fleet: Fleet) -> Problem:
        return pose(self.chain, fleet, self.plan, self.inventory)


def untried(target: Split, running: Split) -> tuple[tuple[str, str], ...]:
    """Pairs of hosts that a target sends between and the running split does not: nobody has seen their links lately."""
    hops, known = ({tuple(sorted((a.host, b.host))) for a, b in pairwise(split.stages)} for split in (target, running))
    return tuple((a, b) for a, b in sorted(hops - known))


def moved(state: State, now: float) -> State:
    """After a move: it rests, and what was heard of the old epoch is over."""
    hosts = {name: host.model_copy(update={"reading": None, "mute_for": 0}) for name, host in state.hosts.items()}
    update = {"hosts": hosts, "last_move": now, "broken_at": None, "late_for": 0, "answered": ()}
    return state.model_copy(update=update)
