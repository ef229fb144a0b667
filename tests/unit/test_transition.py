"""From one split to the next, as text: what a dry run prints is what is done."""

from __future__ import annotations

from dataclasses import replace

from edgesplit.broadcast.forecast import SSH_RATE, shipping
from edgesplit.broadcast.transition import Need, Phase, Presence, transition
from edgesplit.fleet import Fleet, LinkProfile
from edgesplit.inventory import HostSpec, Inventory, SshTarget
from edgesplit.split import Split, split_from_placement

NOTHING = Presence(folder=False, objects=frozenset(), epochs=None)
NEEDS = {
    "desk": Need({"runner.pyz": 10, "shards/a": 100}),
    "shelf": Need({"runner.pyz": 10, "shards/b": 200}),
    "attic": Need({"runner.pyz": 10, "shards/b": 200}),
}


def test_how_long_sending_will_take() -> None:
    steps = transition(None, split("desk", "shelf", "desk"), {"desk": NOTHING, "shelf": NOTHING}, NEEDS)
    hosts = {
        "desk": HostSpec(connection="local", trusted=True),
        "shelf": HostSpec(ssh=SshTarget(host="shelf")),
        "attic": HostSpec(ssh=SshTarget(host="attic")),
    }
    slow, fast = LinkProfile(rtt=0.001, bandwidth=100.0), LinkProfile(rtt=0.001, bandwidth=1000.0)
    fleet = Fleet(hosts={}, links={"desk": {"shelf": slow}, "attic": {"shelf": fast}}, measured_at=0.0, plan="")
    assert shipping(steps, fleet, Inventory(hosts=hosts)) == {"desk": 110 / SSH_RATE, "shelf": 2.1}
    afar = {**hosts, "desk": HostSpec(ssh=SshTarget(host="desk"), trusted=True)}
    assert shipping(steps, fleet, Inventory(hosts=afar))["shelf"] == 0.21


def test_a_begun_file_counts_for_what_is_missing_of_it() -> None:
    need = Need({"shards/a": 100, "shards/b": 50, "shards/c": 7})
    begun = Presence(True, frozenset({"shards/c"}), None, parts={"shards/a": 60, "shards/b": 51})
    assert begun.missing(need) == {"shards/a": 40, "shards/b": 50}


def split(*hosts: str, epoch: int = 1) -> Split:
    return split_from_placement(hosts).at(epoch)


def serving(*epochs: int, objects: tuple[str, ...] = ()) -> Presence:
    return Presence(folder=True, objects=frozenset(objects), epochs=epochs, keys=True)


def test_deploying_is_reconfiguring_from_nothing() -> None:
    steps = transition(None, split("desk", "shelf", "desk"), {"desk": NOTHING, "shelf": NOTHING}, NEEDS)
    assert [str(step) for step in steps] == [
        "lock     desk: take the lock",
        "lock     shelf: take the lock",
        "ship     desk: send 2 of 2 objects, 110 B and the controller's key",
        "ship     shelf: send 2 of 2 objects, 210 B and the controller's key",
        "start    desk: start the runner",
        "start    shelf: start the runner",
        "prepare  desk: load embedding, head for epoch 1",
        "prepare  shelf: load layers.0 for epoch 1",
        "link     desk: link epoch 1 to its neighbours",
        "link     shelf: link epoch 1 to its neighbours",
        "trial    desk: send a token around the ring of epoch 1",
        "commit   desk: epoch 1 serves from now on",
        "confirm  shelf: epoch 1 serves",
        "unlock   desk: give the lock back",
        "unlock   shelf: give the lock back",
    ]


def test_a_host_without_packages_gets_them_first() -> None:
    presences = {
        "desk": NOTHING,
        "shelf": replace(NOTHING, lacks="torch 2.13.0 from its package index into ~/w/.python/1"),
    }
    steps = transition(None, split("desk", "shelf", "desk"), presences, NEEDS)
    assert [str(step) for step in steps[2:4]] == [
        "install  shelf: install torch 2.13.0 from its package index into ~/w/.python/1",
        "ship     desk: send 2 of 2 objects, 110 B and the controller's key",
    ]


def test_a_move_ships_what_is_missing_and_retires_the_old_epoch_last() -> None:
    running, target = split("desk", "shelf", "desk"), split("desk", "attic", "desk", epoch=2)
    presences = {
        "desk": serving(1, objects=("runner.pyz", "shards/a")),
        "shelf": serving(1, objects=("runner.pyz", "shards/b")),
        "attic": NOTHING,
    }
    steps = transition(running, target, presences, NEEDS)
    lines = [str(step) for step in steps if step.phase not in (Phase.LOCK, Phase.UNLOCK)]
    assert lines == [
        "ship     desk: send 0 of 2 objects, 0 B",
        "ship     attic: send 2 of 2 objects, 210 B and the controller's key",
        "start    attic: start the runner",
        "prepare  desk: load embedding, head for epoch 2",
        "prepare  attic: load layers.0 for epoch 2",
        "link     desk: link epoch 2 to its neighbours",
        "link     attic: link epoch 2 to its neighbours",
        "trial    desk: send a token around the ring of epoch 2",
        "commit   desk: epoch 2 serves from now on",
        "confirm  attic: epoch 2 serves",
        "retire   desk: forget epoch 1",
        "retire   shelf: forget epoch 1",
        "stop     shelf: stop the runner; its shards stay",
    ]


def test_a_host_that_is_gone_gets_no_step() -> None:
    running, target = split("desk", "shelf", "desk"), split("desk", "desk", "desk", epoch=2)
    steps = transition(running, target, {"desk": serving(1)}, NEEDS)
    assert {step.host for step in steps} == {"desk"}


def test_the_phases_come_in_their_order() -> None:
    steps = transition(None, split("desk", "shelf", "desk"), {"desk": NOTHING, "shelf": NOTHING}, NEEDS)
    order = [list(Phase).index(step.phase) for step in steps]
    assert order == sorted(order)
