"""One act on many hosts at once -> one result: an answer for every host, then one failure that names every failure.

Must not know: what the act is, nor how a host is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from edgesplit.errors import FleetError, HostError, InputError
from edgesplit.hosts.host import Host, LocalHost
from edgesplit.inventory import HostSpec, Inventory

H = TypeVar("H", bound=Host)
T = TypeVar("T")
NEARLY = 2.0  # seconds for what is nearly done when somebody presses Ctrl-C


def survey(hosts: Mapping[str, H], act: Callable[[H], T]) -> tuple[dict[str, T], dict[str, HostError]]:
    """The answers, and the failures of the hosts that gave none, both in host order. Returns when all have ended."""
    with ThreadPoolExecutor(max(1, len(hosts)), "host") as pool:
        futures = {name: pool.submit(act, host) for name, host in hosts.items()}
        settle(futures.values(), hosts.values())
    answers: dict[str, T] = {}
    failures: dict[str, HostError] = {}
    for name, future in futures.items():
        error = future.exception()
        if error is None:
            answers[name] = future.result()
        elif isinstance(error, HostError):
            failures[name] = error
        else:
            raise error
    return answers, failures


def settle(acts: Collection[Future[Any]], hosts: Collection[Host]) -> None:
    """Wait until all have ended. Ctrl-C does not wait for what may take hours, yet leaves nobody at work on a host: who
    puts the hosts back as they were has them alone."""
    try:
        wait(acts)
    except BaseException:
        while wait(acts, NEARLY).not_done:
            for host in hosts:
                host.hang_up()
        raise


def each(hosts: Mapping[str, H], act: Callable[[H], T]) -> dict[str, T]:
    """An answer of every host; raises the HostError of the one that failed, or a FleetError of the several."""
    answers, failures = survey(hosts, act)
    if len(failures) > 1:
        raise FleetError(tuple(failures.values()))
    for failure in failures.values():
        raise failure
    return answers


@contextmanager
def connect(
    inventory: Inventory, names: Iterable[str] | None = None, *, accept_new: bool = False
) -> Iterator[dict[str, Host]]:
    """The named hosts of the inventory, by default all; each connects at its first use, all close at the end.

    `accept_new`: host keys that nobody knows yet are written into known_hosts; a changed one is refused all the same.
    """
    wanted = list(inventory.hosts) if names is None else list(names)
    for name in wanted:
        if name not in inventory.hosts:
            raise InputError(f"no host {name} in the inventory", f"its hosts are {', '.join(inventory.hosts)}")
    hosts = {name: door(name, inventory.hosts[name], accept_new=accept_new) for name in wanted}
    try:
        yield hosts
    finally:
        survey(hosts, lambda host: host.close())


def door(name: str, spec: HostSpec, *, accept_new: bool = False) -> Host:
    """One host; it connects at its first use."""
    if spec.ssh is None:
        return LocalHost(name)
    from edgesplit.hosts.ssh import SshHost  # 0.4 s: only where an ssh host exists

    return SshHost(name, spec.ssh, accept_new=accept_new)
