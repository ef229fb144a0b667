"""edgesplit lab: a fleet on this machine, brought up, changed while it runs, and taken down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import Json, Yes

if TYPE_CHECKING:
    from edgesplit.lab.lab import Lab, LabStatus, LaneStatus

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="A fleet on this machine: hosts with sshd, limits and links that can be changed while they run. Needs root.",
    epilog="Example: edgesplit lab up plans/lab/five.yaml",
)
setting = typer.Typer(
    no_args_is_help=True,
    help="Change a link or a host of a running lab.",
    epilog="Example: edgesplit lab set link desk shelf --delay 20ms",
)
app.add_typer(setting, name="set")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The lab file (YAML).", show_default=False)]
Host = Annotated[str, typer.Argument(metavar="HOST", help="A host of the lab.", show_default=False)]
A = Annotated[str, typer.Argument(metavar="A", help="A host of the lab, or `controller`.", show_default=False)]
B = Annotated[str, typer.Argument(metavar="B", help="The other end.", show_default=False)]
Which = Annotated[str | None, typer.Option("--lab", help="Which lab, if there are several.", show_default=False)]


@app.command(epilog="Example: edgesplit lab up plans/lab/five.yaml")
def up(
    file: File,
    name: Annotated[
        str | None, typer.Option("--name", help="Another name than the file's.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring up the hosts and links of a lab file, and write an inventory of them."""
    import time

    from edgesplit.cli.render import out, print_json, talk
    from edgesplit.lab.lab import Lab
    from edgesplit.lab.machine import need_root
    from edgesplit.lab.scenario import load_scenario

    scenario = load_scenario(file, **({} if name is None else {"name": name}))
    need_root()
    start = time.monotonic()
    with talk.status(f"bringing up {len(scenario.hosts)} hosts ..."):
        lab = Lab.up(scenario)
    if as_json:
        print_json(lab.status().model_dump(mode="json"))
        return
    _show(lab.status())
    folder = lab.layout.folder
    out.print(f"\n{len(scenario.hosts)} hosts in {time.monotonic() - start:.1f} s")
    out.print(f"inventory: {lab.inventory}", soft_wrap=True)
    out.print(f"a login:   ssh -F {folder}/ssh_config {next(iter(scenario.hosts))}", soft_wrap=True)


@app.command(epilog="Example: edgesplit lab status --json | jq .links")
def status(lab: Which = None, as_json: Json = False) -> None:
    """What the hosts and links are now, and what went through them."""
    from edgesplit.cli.render import print_json

    found = _find(lab).status()
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _show(found)


@app.command(epilog="Example: edgesplit lab down five")
def down(
    name: Annotated[
        str | None, typer.Argument(metavar="LAB", help="Which, if there are several.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every lab, and whatever is left of one.")] = False,
    yes: Yes = False,
) -> None:
    """Take a lab off this machine, also what a crash left of it. With --all it asks: somebody may be using one."""
    from edgesplit.cli.render import ask, talk
    from edgesplit.errors import InputError
    from edgesplit.lab.down import down as take_down
    from edgesplit.lab.machine import labs, need_root, the_one

    if everything and name is not None:
        raise InputError(f"either {name} or --all", "give one of them")
    need_root()
    chosen = labs() if everything else [the_one(name)]
    if everything and chosen and not yes:
        ask(f"Take down {', '.join(chosen)}?")
    for each in chosen:
        take_down(each)
        talk.print(f"{each} is down")


@setting.command(epilog="Example: edgesplit lab set link desk shelf --rate 10mbit --delay 20ms --loss 1%")
def link(
    a: A,
    b: B,
    rate: Annotated[str | None, typer.Option(help="10Mbit/s, 10mbit, or unlimited.", show_default=False)] = None,
    delay: Annotated[str | None, typer.Option(help="One way, 20ms; half a round trip.", show_default=False)] = None,
    loss: Annotated[str | None, typer.Option(help="Share of frames, 1%; 100% cuts.", show_default=False)] = None,
    one_way: Annotated[bool, typer.Option("--one-way", help="From A to B only.")] = False,
    lab: Which = None,
) -> None:
    """Change a link, from the next frame on. What is not named stays as it is."""
    from edgesplit.errors import InputError

    said = {"rate": rate, "delay": delay, "loss": loss}
    changes = {key: value for key, value in said.items() if value is not None}
    if not changes:
        raise InputError("nothing to change", "give --rate, --delay or --loss")
    _find(lab).set_link(a, b, one_way=one_way, **changes)


@setting.command(epilog="Example: edgesplit lab set host shelf --cores 0.25")
def host(
    name: Host,
    cores: Annotated[float | None, typer.Option(help="Share of the CPUs: 0.25, 2.", show_default=False)] = None,
    memory: Annotated[str | None, typer.Option(help="512MiB, 2GiB.", show_default=False)] = None,
    lab: Which = None,
) -> None:
    """Change what a host may take of the machine."""
    from edgesplit.errors import InputError

    if cores is None and memory is None:
        raise InputError("nothing to change", "give --cores or --memory")
    _find(lab).set_host(name, cores=cores, memory=memory)


@app.command(epilog="Example: edgesplit lab freeze shelf")
def freeze(host: Host, lab: Which = None) -> None:
    """Stop a host's processes where they are; its network card goes on answering."""
    _find(lab).freeze(host)


@app.command(epilog="Example: edgesplit lab unfreeze shelf")
def unfreeze(host: Host, lab: Which = None) -> None:
    """Let a frozen host go on."""
    _find(lab).unfreeze(host)


@app.command(epilog="Example: edgesplit lab kill shelf")
def kill(host: Host, lab: Which = None) -> None:
    """Take a host's power: its processes are gone, nobody is told. Its files stay."""
    _find(lab).kill(host)


@app.command(epilog="Example: edgesplit lab start shelf")
def start(host: Host, lab: Which = None) -> None:
    """Power on a host that was killed."""
    _find(lab).start(host)


@app.command(epilog="Example: edgesplit lab unplug shelf")
def unplug(host: Host, lab: Which = None) -> None:
    """Pull a host's network cable: silence both ways. The host itself goes on."""
    _find(lab).unplug(host)


@app.command(epilog="Example: edgesplit lab plug shelf")
def plug(host: Host, lab: Which = None) -> None:
    """Put a host's network cable back."""
    _find(lab).plug(host)


def _find(name: str | None) -> Lab:
    from edgesplit.lab.lab import Lab

    return Lab.find(name)


def _show(found: LabStatus) -> None:
    from edgesplit.cli.render import out, show
    from edgesplit.units import format_size, format_time

    rows = [
        [
            name,
            host.address,
            host.state if host.plugged or host.state == "off" else f"{host.state}, unplugged",
            f"{host.cores:g}",
            format_time(host.cpu_seconds),
            format_size(host.memory),
            format_size(host.memory_used),
        ]
        for name, host in found.hosts.items()
    ]
    show(f"Lab {found.name}", ["host", "address", "state", ">cores", ">used", ">memory", ">used"], rows)
    out.print()
    if found.switch is None:
        out.print(f"The switch is gone, and with it every link: edgesplit lab down {found.name}, then up.")
        return
    links = [_link_row(name, lanes) for name, lanes in _links(found).items()]
    note = "Delay is one way. Sent: bytes as on a cable; lost: frames, by chance; dropped: frames, the queue was full."
    show("Links", ["link", ">delay", ">rate", ">loss", ">sent", ">lost", ">dropped"], links, note)
    if not found.meter:
        out.print(
            f"The meter is gone: what the hosts read of themselves in /proc is old: edgesplit lab down {found.name}."
        )
    if not found.switch.realtime:
        out.print("The switch has no real-time priority here: links are less exact when the machine is busy.")


def _links(found: LabStatus) -> dict[str, list[LaneStatus]]:
    """Both directions together where they are alike; without links that have no limits and carried nothing."""
    lanes = {(lane.source, lane.target): lane for lane in found.links}
    rows: dict[str, list[LaneStatus]] = {}
    for (a, b), lane in lanes.items():
        back = lanes.get((b, a))
        if back is None or (lane.delay, lane.rate, lane.loss) != (back.delay, back.rate, back.loss):
            rows[f"{a} -> {b}"] = [lane]
        elif a < b:
            rows[f"{a} - {b}"] = [lane, back]
    return {name: ends for name, ends in rows.items() if ends[0].limited or any(lane.frames for lane in ends)}


def _link_row(name: str, lanes: list[LaneStatus]) -> list[str]:
    from edgesplit.units import format_rate, format_size, format_time

    lane = lanes[0]
    return [
        name,
        format_time(lane.delay),
        "unlimited" if lane.rate is None else format_rate(lane.rate),
        f"{lane.loss * 100:.3g}%",
        format_size(sum(each.bytes for each in lanes)),
        str(sum(each.lost for each in lanes)),
        str(sum(each.dropped for each in lanes)),
    ]
