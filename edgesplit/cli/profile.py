"""edgesplit profile: measure the hosts and the links between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.fleet import Fleet


def run(plan: Plan, inventory: Inventory = None, accept_new: AcceptNew = False, as_json: Json = False) -> None:
    """Measure the hosts and the links between them, with layers of this model."""
    import time

    from edgesplit.cli.render import out, print_json, talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import FleetError, HostError
    from edgesplit.hosts.fanout import connect
    from edgesplit.profiling.collect import profile

    space = Workspace.open(plan, inventory)
    checkpoint = space.checkpoint
    count = len(space.inventory.hosts)
    with (
        connect(space.inventory, accept_new=accept_new) as hosts,
        talk.status(f"measuring {count} hosts ...") as status,
    ):
        fleet = profile(
            hosts, space.plan, space.inventory, checkpoint, time.time(), lambda what: status.update(f"measured {what}")
        )
    check = f"check `ssh`, `python` and `work` in {space.inventory_file}"
    if not fleet.hosts:
        raise FleetError([HostError(name, problem, check) for name, problem in fleet.problems.items()])
    path = space.save(space.profile_name, fleet)
    if as_json:
        print_json(fleet.model_dump(mode="json"))
    else:
        _show(fleet)
        out.print(f"\nsaved to {path}", soft_wrap=True)
    entry = space.plan.entry
    if entry in fleet.problems:
        raise HostError(entry, f"nothing can be planned without the entry: {fleet.problems[entry]}", check)
    if not as_json:
        out.print(f"next: edgesplit plan {plan}", soft_wrap=True)


def _show(fleet: Fleet) -> None:
    from edgesplit.cli.render import out, show
    from edgesplit.units import format_rate, format_size, format_time

    rows = [
        [
            name,
            f"{host.cores:g}",
            format_size(host.memory_available),
            f"{host.load:.2f}",
            host.device,
            host.packages.get("torch", "?"),
            format_time(host.times.decode_layer),
            format_time(host.times.prefill_layer),
        ]
        for name, host in fleet.hosts.items()
    ]
    columns = ["host", ">cores", ">free", ">load", "device", "torch", ">token", ">chunk"]
    note = "Memory that is free; the load of the last minute; times per layer, for a token and for a chunk of a prompt."
    show("Hosts", columns, rows, note)
    for name, problem in fleet.problems.items():
        out.print(f"{name} cannot be used: {problem}")
    links = [
        [f"{source} -> {target}", format_time(link.rtt), format_rate(link.bandwidth)]
        for source, row in fleet.links.items()
        for target, link in row.items()
    ]
    if links:
        out.print()
        show("Links", ["link", ">round trip", ">bandwidth"], links)
    elif len(fleet.hosts) > 1:
        out.print("No host reaches another: is `data.address` right, and `data.port` open?")
