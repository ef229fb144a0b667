"""A change is given up as soon as the ring that serves breaks, however long a dead host keeps it waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

import pytest
from test_decide import RUNNING, seen

from edgesplit.errors import Abandoned, HostError
from edgesplit.hosts.commands import Command
from edgesplit.hosts.host import LocalHost
from edgesplit.hosts.leaving import Exit, firm
from edgesplit.orchestrator.attend import attend
from edgesplit.profiling.capacity import Heard, breaks_down
from edgesplit.profiling.probes import Reading

WAIT = Command("wait", "read never")


class Dead(LocalHost):
    """Answers nobody until it is let go."""

    def __init__(self) -> None:
        super().__init__("mast")
        self.asked, self.over = threading.Event(), threading.Event()

    def run(self, *_: object, **__: object) -> str:
        self.asked.set()
        self.over.wait(30)
        return "too late"


@pytest.fixture
def dead() -> Iterator[Dead]:
    host = Dead()
    yield host
    host.over.set()


def entry(**more: object) -> Reading:
    found = seen(**more).reading
    assert found is not None
    return found


def breaks(news: Mapping[str, Heard]) -> bool:
    return (
        "desk" in news and isinstance(what := news["desk"].what, Reading) and breaks_down(what, RUNNING, broken=False)
    )


def test_the_ring_breaks_while_a_push_waits_for_a_dead_host(dead: Dead) -> None:
    way_out = Exit()
    (host,) = way_out.hosts({"mast": dead}).values()
    told = iter([{}, {"desk": Heard(1, entry())}, {"desk": Heard(2, entry(broken="mast: silent for 3 s"))}])

    def hear() -> dict[str, Heard]:
        assert dead.asked.wait(5)
        return next(told, {})

    start = time.monotonic()
    came, heard = attend(lambda: host.run(WAIT), way_out, hear, breaks)
    assert time.monotonic() - start < 5
    assert isinstance(came, Abandoned)
    assert heard["desk"].at == 2
    with pytest.raises(Abandoned):  # nor is anything else begun
        host.run(WAIT)


def test_what_ends_while_the_ring_serves_is_told() -> None:
    way_out = Exit()
    hosts = way_out.hosts({"desk": LocalHost("desk")})
    came, _ = attend(lambda: hosts["desk"].run(Command("say", "echo well")), way_out, dict, breaks)
    assert came == "well\n"

    def fail() -> None:
        raise HostError("desk", "no")

    came, _ = attend(fail, way_out, dict, breaks)
    assert str(came) == "desk: no"


def test_who_interrupts_waits_for_nobody_either(dead: Dead) -> None:
    way_out = Exit()

    def interrupt() -> dict[str, Heard]:
        assert dead.asked.wait(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attend(lambda: way_out.hosts({"mast": dead})["mast"].run(WAIT), way_out, interrupt, breaks)


def test_a_host_is_itself_where_nothing_may_be_left_half_way(dead: Dead) -> None:
    way_out = Exit()
    assert firm(way_out.hosts({"mast": dead})["mast"]) is dead
    assert firm(dead) is dead


@pytest.mark.parametrize(
    ("told", "before", "after"),
    [
        (entry(), False, False),
        (entry(broken="x"), True, False),
        (entry(runner=False, serving=None), True, False),
        (entry(serving=8), False, False),
        (entry(serving=8, broken="x"), True, True),  # the new one, and it broke as well
    ],
)
def test_a_ring_that_was_broken_before_is_no_reason(told: Reading, *, before: bool, after: bool) -> None:
    """`before`: it served when the change began; `after`: it did not."""
    assert breaks_down(told, RUNNING, broken=False) is before
    assert breaks_down(told, RUNNING, broken=True) is after
