"""edgesplit watch as a service of systemd's user manager, on the machine where this is run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from edgesplit.cli.workspace import Workspace


def unit_name(deployment: str) -> str:
    return f"edgesplit-watch-{deployment}.service"


def text(space: Workspace) -> str:
    """The unit: this very edgesplit, these very files."""
    from edgesplit.hosts import systemd

    files = str(space.plan_file.resolve()), "-i", str(space.inventory_file.resolve())
    words = [sys.executable, "-m", "edgesplit", "watch", *files, "--plain"]
    return systemd.watch_unit(space.plan.name, words, str(space.plan_file.resolve().parent))


def install(space: Workspace, *, dry_run: bool) -> None:
    """Raises EdgesplitError where systemd cannot run it."""
    from edgesplit.cli.render import talk
    from edgesplit.errors import CommandFailed, EdgesplitError
    from edgesplit.hosts import systemd
    from edgesplit.hosts.host import LocalHost

    if dry_run:
        typer.echo(text(space), nl=False)
        return
    here = LocalHost("this machine")
    hint = "--install-service --dry-run prints the unit, for a manager of services of your own"
    why = here.run(systemd.look()).strip()
    if why and "login" not in why:  # that is tried to be helped
        raise EdgesplitError(f"systemd cannot run it here: {why}", hint)
    try:
        here.run(systemd.start(unit_name(space.plan.name), text(space)))
    except CommandFailed as error:
        told = error.stderr.strip().rpartition("\n")[2]
        hint = systemd.LINGER_HINT if error.status == systemd.NO_LINGER else hint
        raise EdgesplitError(f"systemd does not start it: {told}", hint) from error
    talk.print(f"{unit_name(space.plan.name)} watches from now on; journalctl --user -u {unit_name(space.plan.name)}",
               soft_wrap=True)  # fmt: skip
    talk.print("it logs in without an agent: the keys of the hosts must need no passphrase")


def remove(space: Workspace) -> None:
    from edgesplit.cli.render import talk
    from edgesplit.hosts import systemd
    from edgesplit.hosts.host import LocalHost

    LocalHost("this machine").run(systemd.stop(unit_name(space.plan.name)))
    talk.print(f"{unit_name(space.plan.name)} is gone; the ring goes on serving, and nobody watches it")
