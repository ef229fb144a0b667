"""Start a host's runner, and wait until it answers.

Must not know: splits, why it is started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.remote import PYTHON_HINT, NotServing, no_python, status
from edgesplit.errors import CommandFailed, HostError
from edgesplit.hosts import commands, systemd
from edgesplit.hosts.host import Host

LOOK = 4  # seconds of it after which whoever waits may think better of it
START_SECONDS = 120  # a runner imports torch: 4 to 9 s on a fast machine, ten times that on a small board


def start(cargo: Cargo, host: Host, wait: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """What the runner says of itself then; one that is coming up already is waited for. Its archive and keys are there.
    `wait` is called now and then meanwhile, and may raise: the runner comes up all the same. Raises HostError."""
    spec, folder = cargo.inventory.hosts[host.name], cargo.folder(host.name)
    try:
        try:
            return _come_up(cargo, host, wait)
        except NotServing:
            stop(cargo, host)  # one that is there but does not answer
        _launch(cargo, host, ["--host", host.name, "--deployment", cargo.name, "--threads", str(spec.cores or 0)])
        return _come_up(cargo, host, wait)
    except CommandFailed as error:
        if error.status not in commands.NO_PROGRAM:
            raise
        raise no_python(host, spec) from error
    except NotServing as error:
        log = host.run(commands.log_tail(folder, 1)).strip()
        raise HostError(host.name, f"the runner did not start: {log or error.message}", PYTHON_HINT) from error


def _come_up(cargo: Cargo, host: Host, wait: Callable[[], None]) -> dict[str, Any]:
    """Raises NotServing at once where nothing comes up."""
    spec, folder = cargo.inventory.hosts[host.name], cargo.folder(host.name)
    left = START_SECONDS
    while True:
        try:
            return status(host, spec, folder, cargo.archive.name, wait=LOOK)
        except NotServing as error:
            left -= LOOK
            if not error.coming or left <= 0:
                raise
        wait()


def _launch(cargo: Cargo, host: Host, arguments: Sequence[str]) -> None:
    spec = cargo.inventory.hosts[host.name]
    words = spec.interpreter, cargo.folder(host.name), cargo.archive.name, arguments
    if spec.service is None:
        host.run(commands.start_runner(*words))
        return
    try:
        host.run(systemd.start(systemd.unit_name(host.name, cargo.name), systemd.unit(*words)))
    except CommandFailed as error:
        hint = systemd.LINGER_HINT if error.status == systemd.NO_LINGER else "or leave `service` out"
        told = error.stderr.strip().rpartition("\n")[2]
        raise HostError(host.name, f"systemd does not start its runner: {told}", hint) from error


def stop(cargo: Cargo, host: Host) -> None:
    host.run(systemd.stop(systemd.unit_name(host.name, cargo.name)), timeout=30)
    host.run(commands.stop_runner(cargo.folder(host.name), host.name, cargo.name), timeout=30)
