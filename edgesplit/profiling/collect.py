"""Ask every host at once, and every pair in turn: the profile before a plan, the readings while it serves.

Must not know: what the numbers are good for.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from edgesplit.broadcast.archive import runner_archive, with_code
from edgesplit.errors import CommandFailed, HostError
from edgesplit.fleet import Fleet, HostProfile, LinkProfile
from edgesplit.hosts.commands import NO_PROGRAM
from edgesplit.hosts.fanout import survey
from edgesplit.hosts.host import Host
from edgesplit.inventory import HostSpec, Inventory
from edgesplit.model.checkpoint import Checkpoint
from edgesplit.plan import ModelPlan
from edgesplit.profiling import probes
from edgesplit.profiling.probes import NoProfile, Reading
from edgesplit.values import digest

MEASURE_SECONDS = 180.0  # importing torch on a slow board takes a minute
READ_SECONDS = 10.0
Note = Callable[[str], None]


def measured_for(checkpoint: Checkpoint, plan: ModelPlan, inventory: Inventory) -> str:
    """Digest of all that a profile's numbers depend on."""
    cores = {name: (host.cores, host.interpreter) for name, host in inventory.hosts.items()}
    precision = plan.dtype, plan.quantization
    return digest(repr([checkpoint.chain.checkpoint, precision, plan.workload, plan.prefill_chunk, plan.entry, cores]))


def profile(
    hosts: Mapping[str, Host], plan: ModelPlan, inventory: Inventory, checkpoint: Checkpoint, now: float, note: Note
) -> Fleet:
    """The fleet as it is. A host that cannot be used is in `problems`, not an exception."""
    found, failures = survey(hosts, lambda host: _measure(host, plan, inventory, checkpoint, note))
    profiles = {name: result for name, result in found.items() if isinstance(result, HostProfile)}
    problems = {name: result for name, result in found.items() if isinstance(result, str)}
    problems |= {name: error.message.removeprefix(f"{name}: ") for name, error in failures.items()}
    links = _links({name: hosts[name] for name in profiles}, inventory, note)
    return Fleet(
        hosts=profiles,
        links=links,
        problems=problems,
        measured_at=now,
        plan=measured_for(checkpoint, plan, inventory),
    )


def _measure(
    host: Host, plan: ModelPlan, inventory: Inventory, checkpoint: Checkpoint, note: Note
) -> HostProfile | str:
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
        result: HostProfile | str = probes.parse_measure(text)
    except NoProfile as error:
        result = str(error)
    note(host.name)
    return result


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


def _links(hosts: Mapping[str, Host], inventory: Inventory, note: Note) -> dict[str, dict[str, LinkProfile]]:
    links: dict[str, dict[str, LinkProfile]] = {name: {} for name in hosts}
    for pairs in rounds(hosts):
        with ThreadPoolExecutor(max(1, len(pairs))) as pool:
            for (a, b), found in zip(pairs, pool.map(lambda p: _link(hosts, inventory, p), pairs), strict=True):
                note(f"{a} - {b}")
                if found is not None:
                    links[a][b], links[b][a] = found
    return links


def _link(
    hosts: Mapping[str, Host], inventory: Inventory, pair: tuple[str, str]
) -> tuple[LinkProfile, LinkProfile] | None:
    """One pair, both directions; None when they cannot reach each other."""
    a, b = pair
    token, archive = secrets.token_hex(16), runner_archive().data
    patience = probes.LINK_SECONDS + 20
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hosts[b].run, probes.listen(inventory.hosts[b], token), archive, patience)
        try:
            command = probes.call(inventory.hosts[a], inventory.hosts[b], token)
            return probes.parse_call(hosts[a].run(command, archive, patience))
        except (HostError, NoProfile):
            return None
        finally:
            waiting.exception()


# --- readings ---


def collect(
    hosts: Mapping[str, Host], inventory: Inventory, name: str, deployed: Collection[str]
) -> dict[str, Reading | HostError]:
    """One reading of every host, or why there is none, within READ_SECONDS; `deployed` have the archive already."""
    archive = runner_archive()

    def read(host: Host) -> Reading:
        spec = inventory.hosts[host.name]
        folder = f"{spec.work}/{name}"
        try:
            return probes.parse_reading(_reading(host, spec, folder, here=host.name in deployed))
        except NoProfile as error:
            raise HostError(host.name, str(error)) from error

    def _reading(host: Host, spec: HostSpec, folder: str, *, here: bool) -> str:
        if here:
            try:
                return host.run(probes.read(spec, folder, archive.name), timeout=READ_SECONDS)
            except CommandFailed:  # the folder was removed: that is a reading too
                pass
        return host.run(probes.read_afar(spec, folder), stdin=archive.data, timeout=READ_SECONDS)

    found, failures = survey(hosts, read)
    return {**found, **failures}
