"""Ask every host at once, and every pair in turn: the profile before a plan.

Must not know: what the numbers are good for.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from edgesplit.broadcast.archive import runner_archive, with_code
from edgesplit.broadcast.environment import ensure
from edgesplit.errors import CommandFailed, HostError
from edgesplit.fleet import Fleet, HostProfile, LinkProfile
from edgesplit.hosts import commands
from edgesplit.hosts.commands import NO_PROGRAM
from edgesplit.hosts.fanout import survey
from edgesplit.hosts.host import Host
from edgesplit.inventory import Inventory
from edgesplit.model.checkpoint import Checkpoint
from edgesplit.plan import ModelPlan
from edgesplit.profiling import probes
from edgesplit.profiling.probes import NoProfile, Ways
from edgesplit.values import digest

MEASURE_SECONDS = 180.0  # importing torch on a slow board takes a minute
UPLINK_PIECE, UPLINK_MOST = 2**18, 256  # bytes, and how often they are sent at most: 64 MiB
UPLINK_SECONDS = 0.25  # that sending must take: a command alone takes hundredths
Note = Callable[[str], None]
T = TypeVar("T")


def measured_for(checkpoint: Checkpoint, plan: ModelPlan, inventory: Inventory) -> str:
    """Digest of all that a profile's numbers depend on."""
    cores = {name: (host.cores, host.interpreter) for name, host in inventory.hosts.items()}
    precision = plan.dtype, plan.quantization
    return digest(repr([checkpoint.chain.checkpoint, precision, plan.workload, plan.prefill_chunk, plan.entry, cores]))


def profile(
    hosts: Mapping[str, Host], plan: ModelPlan, inventory: Inventory, checkpoint: Checkpoint, now: float, note: Note
) -> Fleet:
    """The fleet as it is. A host that cannot be used is in `problems`, not an exception. One that lacks the runner's
    packages gets them first."""
    profiles, problems = _measured(hosts, plan, inventory, checkpoint, note)
    uplinks, _ = survey({name: hosts[name] for name in profiles}, _uplink)
    sizes = probes.message_sizes(plan, checkpoint.chain)
    links, unreachable = measure_links({name: hosts[name] for name in profiles}, inventory, sizes, note)
    return Fleet(
        hosts=profiles,
        links=links,
        unreachable=unreachable,
        problems=problems,
        uplinks=uplinks,
        measured_at=now,
        plan=measured_for(checkpoint, plan, inventory),
    )


def _of(note: Note, host: Host, text: str) -> None:
    note(f"{host.name}: {text}")


def _measured(
    hosts: Mapping[str, Host], plan: ModelPlan, inventory: Inventory, checkpoint: Checkpoint, note: Note
) -> tuple[dict[str, HostProfile], dict[str, str]]:
    """Hosts alone: what they are like, and why the others cannot be used."""
    progress = _Progress(note, "hosts", len(hosts))
    _, lacking = survey(hosts, lambda host: ensure(host, inventory.hosts[host.name], partial(_of, note, host)))
    able = {name: host for name, host in hosts.items() if name not in lacking}
    found, failures = survey(able, lambda host: progress.step(_measure(host, plan, inventory, checkpoint)))
    profiles = {name: result for name, result in found.items() if isinstance(result, HostProfile)}
    problems = {name: result for name, result in found.items() if isinstance(result, str)}
    problems |= {name: error.message.removeprefix(f"{name}: ") for name, error in {**lacking, **failures}.items()}
    return profiles, problems


def join(
    fleet: Fleet,
    names: Iterable[str],
    hosts: Mapping[str, Host],
    plan: ModelPlan,
    inventory: Inventory,
    checkpoint: Checkpoint,
) -> Fleet:
    """The fleet with further hosts, measured alone and with every host that there is."""
    new = {name: hosts[name] for name in names}
    profiles, problems = _measured(new, plan, inventory, checkpoint, lambda _: None)
    links = {source: dict(row) for source, row in fleet.without(*names).links.items()}
    sizes = probes.message_sizes(plan, checkpoint.chain)
    for name in profiles:
        others = [other for other in links if other in hosts]
        links[name] = {}
        for (source, target), link in meet(hosts, inventory, [(name, other) for other in others], sizes).items():
            if isinstance(link, LinkProfile):
                links[source][target] = link
    old = {name: why for name, why in fleet.problems.items() if name not in profiles}
    return fleet.model_copy(
        update={
            "hosts": {**fleet.without(*names).hosts, **profiles},
            "links": links,
            "problems": {**old, **problems},
            "plan": measured_for(checkpoint, plan, inventory),
        }
    )


class _Progress:
    """Tells how many of something are done; used from several threads."""

    def __init__(self, note: Note, what: str, total: int) -> None:
        self._note, self._what, self._total = note, what, total
        self._count = itertools.count(1)

    def step(self, result: T) -> T:
        self._note(f"measured {next(self._count)} of {self._total} {self._what}")
        return result


def _measure(host: Host, plan: ModelPlan, inventory: Inventory, checkpoint: Checkpoint) -> HostProfile | str:
    spec = inventory.hosts[host.name]
    code = {file.name: file.read_bytes() for file in checkpoint.own_code}
    command = probes.measure(spec, plan, checkpoint.chain, checkpoint.config, code, entry=host.name == plan.entry)
    try:
        text = host.run(command, stdin=with_code(runner_archive(), code), timeout=MEASURE_SECONDS)
    except CommandFailed as error:
        if error.status not in NO_PROGRAM:
            raise
        return f"there is no Python {spec.interpreter} that can be run"
    try:
        return probes.parse_measure(text)
    except NoProfile as error:
        return str(error)


def _uplink(host: Host) -> float:
    """Bytes per second to it, of more and more of them until it takes long enough to tell. All hosts are asked at once,
    as they are when weights are sent."""
    piece, count = os.urandom(UPLINK_PIECE), 1
    while True:
        start = time.monotonic()
        host.run(commands.swallow(), [piece] * count, MEASURE_SECONDS)
        took = time.monotonic() - start
        if took > UPLINK_SECONDS or count >= UPLINK_MOST:
            return len(piece) * count / took
        count *= 4


# --- links ---


def rounds(names: Iterable[str]) -> list[list[tuple[str, str]]]:
    """A tournament: every pair once, no host in two pairs of the same round (the circle method)."""
    ring: list[str | None] = [*sorted(names)]
    if len(ring) % 2:
        ring.append(None)
    schedule = []
    for _ in range(len(ring) - 1):
        pairs = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        schedule.append([(a, b) for a, b in pairs if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return schedule


Links = dict[str, dict[str, LinkProfile]]
Reasons = dict[str, dict[str, str]]


def measure_links(
    hosts: Mapping[str, Host], inventory: Inventory, sizes: tuple[int, int], note: Note
) -> tuple[Links, Reasons]:
    """The links that there are, and why the others are not."""
    links: Links = {name: {} for name in hosts}
    reasons: Reasons = {}
    pairs = [pair for together in rounds(hosts) for pair in together]
    for (source, target), link in meet(hosts, inventory, pairs, sizes, note).items():
        if isinstance(link, str):
            reasons.setdefault(source, {})[target] = link
        else:
            links[source][target] = link
    return links, reasons


def meet(
    hosts: Mapping[str, Host],
    inventory: Inventory,
    pairs: Sequence[tuple[str, str]],
    sizes: tuple[int, int],
    note: Note = lambda _: None,
) -> Ways:
    """Both directions of each pair, or why they are not there. One process a host takes its pairs in this order; pairs
    that have no host in common are measured at once."""
    token, progress = secrets.token_hex(16), _Progress(note, "pairs", len(pairs))
    taking_part = {name: hosts[name] for name in dict.fromkeys(name for pair in pairs for name in pair)}
    silence = probes.MEETING + probes.patience(pairs)

    def links_of(host: Host) -> Ways:
        found: Ways = {}
        command = probes.meet(host.name, inventory, pairs, token, sizes)
        for line in host.stream(command, runner_archive().data, silence):
            with suppress(NoProfile):  # what a login shell says, or a line cut off: the pair is missing then
                found |= probes.parse_pair(line, sizes)
                if '"pair"' in line:
                    progress.step(line)
        return found

    answers, failures = survey(taking_part, links_of)
    ways: Ways = {}
    for a, b in pairs:
        for way in ((a, b), (b, a)):
            ways[way] = _told(way, answers, failures)
    return ways


def _told(way: tuple[str, str], answers: Mapping[str, Ways], failures: Mapping[str, HostError]) -> LinkProfile | str:
    """Of what the two ends said of a direction, the measurement, else the reason."""
    said = [answers[end][way] for end in way if way in answers.get(end, {})]
    found = next((link for link in said if isinstance(link, LinkProfile)), None)
    why = next((link for link in said if isinstance(link, str)), "")
    silent = next((failures[end].message for end in way if end in failures), "they did not meet")
    return found or why or silent
