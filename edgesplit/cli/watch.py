"""edgesplit watch: the paper's loop in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from edgesplit.cli.workspace import Workspace
    from edgesplit.fleet import Fleet
    from edgesplit.hosts.host import Host
    from edgesplit.orchestrator.event import Event
    from edgesplit.orchestrator.watch import Watch

PROFILE = "profile.json"  # in the deployment's folder on the entry: whoever watches next need not measure


def run(
    plan: Plan,
    inventory: Inventory = None,
    once: Annotated[bool, typer.Option("--once", help="One turn of the loop, then stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, but change nothing.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a screen, as where there is none.")] = False,
    install_service: Annotated[
        bool, typer.Option("--install-service", help="Watch from here as a service of systemd, also after a reboot.")
    ] = False,
    remove_service: Annotated[bool, typer.Option("--remove-service", help="End that service.")] = False,
    accept_new: AcceptNew = False,
    as_json: Json = False,
) -> None:
    """Keep measuring; when thresholds trip, keep, redistribute or re-split, and redeploy without losing a request.

    Ctrl-C stops watching; the ring goes on serving.
    """
    import signal
    from contextlib import ExitStack

    from edgesplit.cli import service
    from edgesplit.cli.workspace import Workspace
    from edgesplit.hosts.fanout import connect

    space = Workspace.open(plan, inventory)
    if install_service or remove_service:
        service.remove(space) if remove_service else service.install(space, dry_run=dry_run)
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us in the background without SIGINT
        signal.signal(number, signal.default_int_handler)
    with connect(space.inventory, accept_new=accept_new) as hosts, ExitStack() as resources:
        watch, tell = _open(space, hosts, resources, _How(not (as_json or once or plain), as_json, dry_run, accept_new))
        try:
            while True:
                for event in watch.round(dry_run=dry_run):
                    tell(event)
                if once:
                    return
        except KeyboardInterrupt:
            resources.close()
            serves = "goes on serving" if watch.state.broken_at is None else "is broken, and nobody mends it"
            _say(f"no longer watching; {space.plan.name} {serves}")


class _How:
    """How it is shown and done."""

    def __init__(self, screen: bool, as_json: bool, dry_run: bool, accept_new: bool) -> None:
        self.screen, self.as_json, self.dry_run, self.accept_new = screen, as_json, dry_run, accept_new


def _open(
    space: Workspace, hosts: dict[str, Host], resources: ExitStack, how: _How
) -> tuple[Watch, Callable[[Event], None]]:
    """The watch that was begun, and who is told what happens."""
    import time
    from functools import partial

    from edgesplit.broadcast.cargo import split_of
    from edgesplit.broadcast.remote import manifest
    from edgesplit.cli.live import Doing, Screen, live
    from edgesplit.cli.render import out
    from edgesplit.errors import MovedError, ServingError
    from edgesplit.hosts.fanout import door
    from edgesplit.orchestrator.verdict import Mind
    from edgesplit.orchestrator.watch import Surroundings, Watch

    entry, cargo = hosts[space.plan.entry], space.cargo()
    kept = manifest(entry, cargo.folder(entry.name))
    if kept is None:
        raise ServingError(f"{space.plan.name} is not deployed", space.command("deploy"))
    at_once = cargo.at_once(kept)
    if not cargo.serving(at_once).matches(kept):
        raise MovedError(
            "the plan, the inventory or the checkpoint is not the one that is deployed",
            f"{space.command('plan')} && {space.command('deploy')}",
        )
    fleet = _fleet(space, entry, cargo.folder(entry.name))
    around = Surroundings(space.rereader(), partial(door, accept_new=how.accept_new), space.keep)
    doing = Doing()
    mind = Mind(at_once=at_once)
    watch = Watch(cargo, fleet, hosts, split_of(kept), doing, around, claim=not how.dry_run, state=mind)
    resources.enter_context(watch)
    if how.screen and out.is_terminal:
        screen = Screen(watch, doing, out, time.time)
        resources.enter_context(live(screen, out))
        return watch, screen.feed
    _say(f"watching epoch {kept.epoch} of {space.plan.name}; Ctrl-C stops watching")
    return watch, partial(_show, as_json=how.as_json)


def _fleet(space: Workspace, entry: Host, folder: str) -> Fleet:
    """The profile of here; or, where there is none, that of who watched before. It is left for who comes next."""
    import hashlib

    from edgesplit.errors import MovedError
    from edgesplit.fleet import Fleet
    from edgesplit.hosts import commands

    try:
        fleet = space.fleet()
    except MovedError:
        text = entry.run(commands.read_if_there(f"{folder}/{PROFILE}"))
        if not text:
            raise
        space.keep(Fleet.model_validate_json(text))
        return space.fleet()
    data = fleet.to_json().encode()
    entry.run(commands.receive(f"{folder}/{PROFILE}", hashlib.sha256(data).hexdigest()), data)
    return fleet


def _say(text: str) -> None:
    from edgesplit.cli.render import talk

    talk.print(text)


def _show(event: Event, *, as_json: bool) -> None:
    import datetime

    from edgesplit.cli.render import out

    if as_json:
        typer.echo(event.model_dump_json(exclude_none=True))
        return
    if event.event == "reading":
        return
    clock = datetime.datetime.fromtimestamp(event.at).strftime("%H:%M:%S")
    out.print(f"{clock}  epoch {event.epoch}  {event.event:<9}  {event.text}", soft_wrap=True)
