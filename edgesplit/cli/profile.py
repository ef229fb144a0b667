"""edgesplit profile: measure the hosts and the links between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgesplit.cli.options import Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.fleet import Fleet


def run(plan: Plan, inventory: Inventory = None, as_json: Json = False) -> None:
    """Measure the hosts and the links between them, with layers of this model."""
    import time

    from edgesplit.cli.render import out, print_json, talk
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import EdgesplitError, FleetError, Unreachable
    from edgesplit.hosts.fanout import connect
    from edgesplit.profiling.collect import profile

    space = Workspace.open(plan, inventory)
    checkpoint = space.checkpoint
    count = len(space.inventory.hosts)
    with connect(space.inventory) as hosts, talk.status(f"measuring {count} hosts ...") as status:
        fleet = profile(
            hosts, space.plan, space.inventory, checkpoint, time.time(), lambda what: status.update(f"measured {what}")
        )
    if not fleet.hosts:
        raise FleetError([Unreachable(name, problem) for name, problem in fleet.problems.items()])
    path = space.save("profile.json", fleet)
    if as_json:
        print_json(fleet.model_dump(mode="json"))
    else:
        _show(fleet)
        out.print(f"\nsaved to {path}", highlight=False)
    if space.plan.entry in fleet.problems:
        raise EdgesplitError(
            f"the entry host cannot be used: {space.plan.entry}: {fleet.problems[space.plan.entry]}",
            "nothing can be planned without it",
        )


def _show(fleet: Fleet) -> None:
    from edgesplit.cli.render import out, table
    from edgesplit.units import format_rate, format_size, format_time

    rows = [
        [
            name,
            f"{host.cores:g}",
            f"{format_size(host.memory_available)} of {format_size(host.memory_total)}",
            f"{host.load:.2f}",
            host.device,
            f"torch {host.packages.get('torch', '?')}",
            format_time(host.times.decode_layer),
            format_time(host.times.prefill_layer),
        ]
        for name, host in fleet.hosts.items()
    ]
    rows += [[name, "", "", "", "", problem, "", ""] for name, problem in fleet.problems.items()]
    numbers = {"cores", "load", "decode/layer", "prefill/layer"}
    columns = ["host", "cores", "memory free", "load", "device", "software", "decode/layer", "prefill/layer"]
    out.print(table("Hosts", columns, rows, numbers))
    links = [
        [f"{source} -> {target}", format_time(link.rtt), format_rate(link.bandwidth)]
        for source, row in fleet.links.items()
        for target, link in row.items()
    ]
    out.print()
    out.print(table("Links", ["link", "round trip", "bandwidth"], links, {"round trip", "bandwidth"}))
