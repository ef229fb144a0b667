"""From one split to the next, as text: what a dry run prints is what is done."""

from __future__ import annotations

from edgesplit.broadcast.transition import Need, Phase, Presence, transition
from edgesplit.split import Split, split_from_placement

NOTHING = Presence(folder=False, objects=frozenset(), epochs=None)
NEEDS = {
    "desk": Need({"runner.pyz": 10, "shards/a": 100}),
    "shelf": Need({"runner.pyz": 10, "shards/b": 200}),
    "attic": Need({"runner.pyz": 10, "shards/b": 200}),
}


def split(*hosts: str, epoch: int = 1) -> Split:
    return split_from_placement(hosts).at(epoch)


def serving(*epochs: int, objects: tuple[str, ...] = ()) -> Presence:
    return Presence(folder=True, objects=frozenset(objects), epochs=epochs, keys=True)


def test_deploying_is_reconfiguring_from_nothing() -> None:
    steps = transition(None, split("desk", "shelf", "desk"), {"desk": NOTHING, "shelf": NOTHING}, NEEDS)
    assert [str(step) for step in steps] == [
        "lock     desk: take the lock",
        "lock     shelf: take the lock",
        "ship     desk: send 2 of 2 objects, 110 bytes and its keys",
        "ship     shelf: send 2 of 2 objects, 210 bytes and its keys",
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
        "ship     desk: send 0 of 2 objects, 0 bytes",
        "ship     attic: send 2 of 2 objects, 210 bytes and its keys",
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
