"""What a watch does while there is nothing to decide, one thing at a time: take stock of what lies on the hosts,
measure hosts that are new, bring weights ahead, measure links.

Must not know: what a decision is, how events are shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.forecast import rate
from edgesplit.broadcast.note import Errand
from edgesplit.broadcast.remote import look_into
from edgesplit.broadcast.standby import Gently, Supply
from edgesplit.errors import HostError
from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.hosts.fanout import survey
from edgesplit.hosts.host import Host
from edgesplit.inventory import Inventory
from edgesplit.orchestrator.chores import Chores, Interrupted
from edgesplit.orchestrator.likely import Standby
from edgesplit.orchestrator.think import Thinker
from edgesplit.orchestrator.verdict import Mind
from edgesplit.profiling.capacity import probed
from edgesplit.profiling.collect import join, meet
from edgesplit.profiling.probes import message_sizes
from edgesplit.split import Split

PROBE_EVERY = 30.0  # seconds between two measurements of links that nothing is sent over, while nobody asks anything
SUPPLY_EVERY = 60.0  # seconds between two looks at what the loss of a host would need
AGAIN = 60.0  # seconds until a host that could not be measured is tried again
GENTLY = 0.25  # of what can be sent to a host, while requests are under way
Blocks = tuple[int, ...]


@dataclass
class View:
    """What the watch knows at the moment; it is replaced as a whole, as other threads read it."""

    cargo: Cargo
    inventory: Inventory
    thinker: Thinker
    running: Split
    mind: Mind
    now: float

    def hears(self, name: str) -> bool:
        return not self.mind.host(name).away(self.now, self.cargo.plan.watch.host_timeout)

    @property
    def busy(self) -> bool:
        """Are requests under way?"""
        entry = self.mind.host(self.running.entry).reading
        return entry is None or entry.running > 0


@dataclass
class Found:
    """What came of a chore: changes of the mind, a fleet that was measured further, and what there is to tell."""

    change: Callable[[Mind], Mind] = lambda mind: mind
    fleet: Fleet | None = None
    text: str = ""


@dataclass
class SpareTime:
    hosts: dict[str, Host]
    began: float
    standby: Standby | None = None
    due: dict[str, float] = field(default_factory=dict)  # host that is not measured -> when to try

    def __post_init__(self) -> None:
        self.chores = Chores()
        self.left: set[str] = set()  # notes of our own whose locks may be left on hosts that fell silent
        self._found: list[Found] = []
        self._probed_at = self._supplied_at = self.began
        self._supplied: int | None = None
        self._stocked = False
        self._pairs = itertools.count()

    def use(self, view: View, *, act: bool) -> list[Found]:
        """A turn in which nothing was decided; what has come of earlier ones. `act`: hosts may be changed."""
        self.view = view
        self.chores.settle()
        if not self.chores.busy:
            self._begin(view, act=act)
        found, self._found = self._found, []
        return found

    def _begin(self, view: View, *, act: bool) -> None:
        fresh = [name for name, due in self.due.items() if due <= view.now]
        if not self._stocked:
            self._stocked = True
            self.chores.begin(lambda: self._take_stock(view.cargo), self._keep)
        elif fresh:
            self.due |= dict.fromkeys(fresh, view.now + AGAIN)
            self.chores.begin(lambda: self._join(view, fresh), self._keep)
        elif act and self._supply_is_due(view):
            self._supplied, self._supplied_at = view.running.epoch, view.now
            self.chores.begin(lambda: self._supply(view), self._keep, heeds=True)
        elif view.now - self._probed_at >= PROBE_EVERY and not view.busy:
            self._probed_at = view.now
            pair = self._pair(view)
            if pair is not None:
                self.chores.begin(lambda: self._meet(view, pair), self._keep)

    def _keep(self, found: Found) -> None:
        self._found.append(found)

    # --- in the chores' thread ---

    def _take_stock(self, cargo: Cargo) -> Found:
        """The blocks on every host's disk; of hosts that do not answer, nothing is known."""
        hosts = dict(self.hosts)
        found, _ = survey(hosts, lambda host: look_into(host, cargo.folder(host.name))[1])
        return Found(partial(_stocked, {host: cargo.blocks_in(files) for host, files in found.items()}))

    def _join(self, view: View, names: Iterable[str]) -> Found:
        cargo = view.cargo
        fleet = join(view.thinker.fleet, names, self.hosts, cargo.plan, view.inventory, cargo.checkpoint)
        here = [name for name in names if name in fleet.hosts]
        for name in here:
            self.due.pop(name, None)
        not_here = [f"{name} cannot be used: {fleet.problems[name]}" for name in names if name not in here]
        return Found(fleet=fleet, text="; ".join([*(f"{name} has been measured" for name in here), *not_here]))

    def _pair(self, view: View) -> tuple[str, str] | None:
        names = sorted(set(view.thinker.fleet.hosts) & set(self.hosts))
        pairs = list(itertools.combinations(names, 2))
        pair = pairs[next(self._pairs) % len(pairs)] if pairs else None
        return pair if pair is not None and all(map(view.hears, pair)) else None

    def _meet(self, view: View, pair: tuple[str, str]) -> Found:
        return Found(partial(_probed, view.thinker.fleet, self.try_link(view, pair, self.hosts), view.now))

    def try_link(
        self, view: View, pair: tuple[str, str], hosts: Mapping[str, Host]
    ) -> dict[tuple[str, str], LinkProfile | str]:
        sizes = message_sizes(view.cargo.plan, view.cargo.checkpoint.chain)
        return meet(hosts, view.cargo.inventory, [pair], sizes)

    # --- weights ahead ---

    def _supply_is_due(self, view: View) -> bool:
        if not view.cargo.plan.watch.standby or len(view.running.hosts) < 2:
            return False
        return self._supplied != view.running.epoch or view.now - self._supplied_at >= SUPPLY_EVERY

    def _supply(self, view: View) -> Found:
        standby = view.thinker.standby(view.mind, view.running, view.now)
        before, there = self.standby, {name for name in standby.blocks if view.hears(name)}
        wanted = {host: blocks for host, blocks in standby.blocks.items() if host in there}
        gently, way_out = Gently(self._rate), self.chores.way_out

        def sent(host: str, size: int) -> None:
            if self.chores.stop.is_set() or way_out.taken:
                raise Interrupted("something else is to be done")
            gently(host, size)

        errand = Errand("standby", ours=frozenset(self.left))
        hosts, share = way_out.hosts(self.hosts), view.cargo.plan.watch.standby
        self.left.add(errand.note)
        shards, errors = Supply(view.cargo, hosts, wanted, share, sent, errand).carry_out() if wanted else ({}, {})
        if not errors:
            self.left.discard(errand.note)
        self.standby = standby
        return Found(partial(_supplied, shards), text="" if before == standby else _told(standby, errors))

    def _rate(self, host: str) -> float | None:
        view = self.view
        return GENTLY * rate(host, view.thinker.fleet, view.cargo.inventory) if view.busy else None


def _stocked(shards: dict[str, Blocks], mind: Mind) -> Mind:
    return mind.model_copy(update={"shards": shards})


def _supplied(shards: dict[str, Blocks], mind: Mind) -> Mind:
    return mind.model_copy(update={"shards": {**mind.shards, **shards}})


def _probed(fleet: Fleet, found: dict[tuple[str, str], LinkProfile | str], now: float, mind: Mind) -> Mind:
    return probed(mind, fleet, found, now)


def _told(standby: Standby, errors: dict[str, HostError]) -> str:
    lost = [host for host, split in standby.ready.items() if not set(errors) & set(split.hosts)]
    texts = [f"ready for the loss of {', '.join(lost)}" if lost else "", *(error.message for error in errors.values())]
    texts += [f"nothing can take the place of {host}: {why}" for host, why in standby.without.items()]
    return "; ".join(filter(None, texts))
