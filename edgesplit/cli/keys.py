"""edgesplit keys: who may ask the deployment's API."""

from __future__ import annotations

from typing import Annotated

import typer

from edgesplit.cli.options import AcceptNew, Inventory, Json, Plan

app = typer.Typer(
    no_args_is_help=True,
    help="Keys to the API. From the first one on, whoever asks needs one; edgesplit itself comes by SSH instead.",
    epilog="Example: edgesplit keys add plans/demo.yaml phone",
)
Who = Annotated[str, typer.Argument(metavar="NAME", help="Whose key, or what for.", show_default=False)]


@app.command(epilog="Example: KEY=$(edgesplit keys add plans/demo.yaml phone)")
def add(plan: Plan, name: Who, inventory: Inventory = None, accept_new: AcceptNew = False) -> None:
    """Make a key and print it, this once: the entry host keeps its hash only."""
    from pydantic import TypeAdapter, ValidationError

    from edgesplit.broadcast import access
    from edgesplit.broadcast.note import now
    from edgesplit.cli.render import talk
    from edgesplit.cli.workspace import at_entry
    from edgesplit.errors import InputError
    from edgesplit.values import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise InputError(f"a key cannot be called {name!r}", "letters, digits, `_`, `.` and `-`") from None
    with at_entry(plan, inventory, accept_new=accept_new) as (space, entry):
        key = access.add(entry, space.folder(entry.name), name, now())
    talk.print(f"the key of {name}, shown this once:")
    typer.echo(key)


@app.command("list", epilog="Example: edgesplit keys list plans/demo.yaml")
def show(plan: Plan, inventory: Inventory = None, accept_new: AcceptNew = False, as_json: Json = False) -> None:
    """Whose keys there are, and since when."""
    from edgesplit.broadcast.access import api_keys
    from edgesplit.cli import render
    from edgesplit.cli.workspace import at_entry

    with at_entry(plan, inventory, accept_new=accept_new) as (space, entry):
        known = api_keys(entry, space.folder(entry.name))
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
    from edgesplit.cli.workspace import at_entry

    with at_entry(plan, inventory, accept_new=accept_new) as (space, entry):
        folder = space.folder(entry.name)
        access.revoke(entry, folder, name)
        left = access.api_keys(entry, folder)
    talk.print(f"the key of {name} counts no more")
    if not left:
        talk.print("there is no other: until one is made, only edgesplit itself can ask")
