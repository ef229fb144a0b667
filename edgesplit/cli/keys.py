"""edgesplit keys: who may ask the deployment's API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from edgesplit.hosts.host import Host

app = typer.Typer(
    no_args_is_help=True,
    help="Keys to the API. From the first one on, whoever asks needs one; edgesplit itself comes by SSH instead.",
)
Who = Annotated[str, typer.Argument(metavar="NAME", help="Whose key, or what for.", show_default=False)]


@app.command(epilog="Example: KEY=$(edgesplit keys add plans/demo.yaml phone)")
def add(plan: Plan, name: Who, inventory: Inventory = None, accept_new: AcceptNew = False) -> None:
    """Make a key and print it, this once: the entry host keeps its hash only."""
    from pydantic import TypeAdapter, ValidationError

    from edgesplit.broadcast import access
    from edgesplit.broadcast.note import now
    from edgesplit.cli.render import talk
    from edgesplit.errors import InputError
    from edgesplit.values import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise InputError(f"a key cannot be called {name!r}", "letters, digits, `_`, `.` and `-`") from None
    with _entry(plan, inventory, accept_new=accept_new) as (host, folder):
        key = access.add(host, folder, name, now())
    talk.print(f"the key of {name}, shown this once:")
    typer.echo(key)


@app.command("list", epilog="Example: edgesplit keys list plans/demo.yaml")
def show(plan: Plan, inventory: Inventory = None, accept_new: AcceptNew = False, as_json: Json = False) -> None:
    """Whose keys there are, and since when."""
    from edgesplit.broadcast.access import api_keys
    from edgesplit.cli import render

    with _entry(plan, inventory, accept_new=accept_new) as (host, folder):
        known = api_keys(host, folder)
    if as_json:
        render.print_json({"keys": [{"name": key.name, "created": key.created} for key in known]})
    elif known:
        render.show("Keys", ["name", "made"], [[key.name, key.created] for key in known])
    else:
        render.talk.print("there are no keys")


@app.command(epilog="Example: edgesplit keys revoke plans/demo.yaml phone")
def revoke(plan: Plan, name: Who, inventory: Inventory = None, accept_new: AcceptNew = False) -> None:
    """Make a key worthless, from the next request on."""
    from edgesplit.broadcast import access
    from edgesplit.cli.render import talk

    with _entry(plan, inventory, accept_new=accept_new) as (host, folder):
        access.revoke(host, folder, name)
        left = access.api_keys(host, folder)
    talk.print(f"the key of {name} counts no more")
    if not left:
        talk.print("there is no other: until one is made, only edgesplit itself can ask")


@contextmanager
def _entry(plan: Path, inventory: Path | None, *, accept_new: bool) -> Iterator[tuple[Host, str]]:
    """The entry host, and the deployment's folder there."""
    from edgesplit.cli.workspace import Workspace
    from edgesplit.hosts.fanout import connect

    space = Workspace.open(plan, inventory)
    entry = space.plan.entry
    with connect(space.inventory, [entry], accept_new=accept_new) as hosts:
        yield hosts[entry], f"{space.inventory.hosts[entry].work}/{space.plan.name}"
