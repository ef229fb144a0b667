"""edgesplit profile: measure the hosts and the links between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from edgesplit.cli.workspace import Workspace
    from edgesplit.fleet import Fleet, HostProfile
    from edgesplit.model.blocks import Chain


def run(
    plan: Plan,
    inventory: Inventory = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure anew, although it was done a while ago.")] = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Measure the hosts and the links between them, with layers of this model."""
    import time

    from edgesplit.cli.render import out, print_json
    from edgesplit.cli.workspace import Workspace
    from edgesplit.errors import FleetError, HostError
    from edgesplit.units import format_time

    space, start = Workspace.open(plan, inventory), time.time()
    kept = None if refresh else space.fresh_fleet(start)
    fleet = kept or _measure(space, accept_new=accept_new)
    check = f"check `ssh`, `python` and `work` in {space.inventory_file}"
    if not fleet.hosts:
        raise FleetError([HostError(name, problem, check) for name, problem in fleet.problems.items()])
    path = space.save(space.profile_name, fleet) if kept is None else space.cache / space.profile_name
    if as_json:
        print_json({**fleet.model_dump(mode="json"), "age_s": time.time() - fleet.measured_at})
    else:
        _show(fleet, space.checkpoint.chain)
        age = format_time(max(0.01, start - fleet.measured_at))
        took = (
            f"measured {age} ago; --refresh measures anew"
            if kept
            else f"measured in {format_time(time.time() - start)}"
        )
        out.print(f"\n{took}; saved in {path}", soft_wrap=True)
    entry = space.plan.entry
    if entry in fleet.problems:
        raise HostError(entry, f"nothing can be planned without the entry: {fleet.problems[entry]}", check)
    if not as_json:
        out.print(f"next: {space.command('plan')}", soft_wrap=True)


def _measure(space: Workspace, *, accept_new: bool) -> Fleet:
    import time

    from edgesplit.cli.render import talk
    from edgesplit.hosts.fanout import connect
    from edgesplit.profiling.collect import profile

    checkpoint = space.checkpoint
    space.check_pins()
    space.check_cache()
    with (
        connect(space.inventory, accept_new=accept_new) as hosts,
        talk.status(f"measuring {len(space.inventory.hosts)} hosts ...") as status,
    ):
        return profile(hosts, space.plan, space.inventory, checkpoint, time.time(), status.update)


def _show(fleet: Fleet, chain: Chain) -> None:
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
            f"{format_size(host.disk_write)}/s" if host.disk_write else "?",
        ]
        for name, host in fleet.hosts.items()
    ]
    columns = ["host", ">cores", ">free", ">load", "device", "torch", ">disk"]
    show("Hosts", columns, rows, "Memory that is free; the load of the last minute; how fast the disk is written.")
    for name, problem in fleet.problems.items():
        out.print(f"{name} cannot be used: {problem}")
    out.print()
    times = [[name, *_achieved(host, chain)] for name, host in fleet.hosts.items()]
    columns = ["host", ">token", ">reads", ">at best", ">chunk", ">computes", ">at best"]
    note = (
        "Times of a layer, for a token and for a chunk of a prompt; the weights it reads and the arithmetic it does in "
        "them, and what the host can do."
    )
    show("Layers", columns, times, note)
    links = [
        [f"{source} -> {target}", format_time(link.rtt), format_rate(link.bandwidth), format_time(link.overhead)]
        for source, row in fleet.links.items()
        for target, link in row.items()
    ]
    out.print()
    if links:
        note = "Overhead: of a message, beside its bytes and its way; threads, frames and TLS of both ends."
        show("Links", ["link", ">round trip", ">bandwidth", ">overhead"], links, note)
    elif len(fleet.hosts) > 1:
        out.print("No host reaches another: is `data.address` right, and `data.port` open?")
    for source, reasons in fleet.unreachable.items():
        for target, reason in reasons.items():
            out.print(f"no link {source} -> {target}: {reason}")


def _achieved(host: HostProfile, chain: Chain) -> list[str]:
    """A layer's times, and what they mean beside the limits of the host."""
    from edgesplit.revision.pace import measured_layer
    from edgesplit.units import format_size, format_time

    times, layer = host.times, measured_layer(chain)
    flops = layer.prefill_flops(times.chunk_tokens)
    read, best = (_rate(layer.weight_bytes, times.decode_layer), host.bandwidth)
    return [
        format_time(times.decode_layer),
        f"{format_size(read)}/s",
        f"{format_size(best)}/s",
        format_time(times.prefill_layer),
        f"{_rate(flops, times.prefill_layer) / 1e9:.3g} GFLOP/s",
        f"{host.flops / 1e9:.3g} GFLOP/s",
    ]


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0
