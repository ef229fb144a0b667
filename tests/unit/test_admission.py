"""An inventory that changes while a deployment is watched."""

from __future__ import annotations

from pathlib import Path

import pytest
from profiles import NAMES

from edgesplit.cli.workspace import Workspace
from edgesplit.errors import InputError
from edgesplit.inventory import Inventory
from edgesplit.orchestrator.admission import changes, together
from edgesplit.split import split_from_placement

RUNNING = split_from_placement(["desk", "shelf", "shelf", "desk"]).at(3)


def inventory(*names: str, **more: dict[str, object]) -> Inventory:
    """`more`: what is different of a host."""
    hosts = {
        name: {"connection": "local", "work": f"/w/{name}", "trusted": name == "desk", "data": {"port": port}}
        for port, name in enumerate(NAMES, start=1001)
        if name in names
    }
    return Inventory.model_validate({"hosts": {name: {**spec, **more.get(name, {})} for name, spec in hosts.items()}})


def test_what_is_different_is_told() -> None:
    old = inventory("desk", "shelf", shelf={"trusted": True})
    found = changes(old, inventory(*NAMES, shelf={"memory": 100}), RUNNING)
    assert found.texts == ("shelf is no longer trusted", "shelf allows another amount of memory", "attic is new")
    assert (found.fresh, found.gone) == (("attic",), ())


def test_a_host_that_does_not_serve_may_go_or_be_another() -> None:
    old = inventory(*NAMES)
    assert changes(old, inventory("desk", "shelf"), RUNNING).gone == ("attic",)
    other = changes(old, inventory(*NAMES, attic={"work": "/elsewhere"}), RUNNING)
    assert (other.fresh, other.gone) == (("attic",), ("attic",))


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (inventory("shelf", "attic", shelf={"trusted": True}), "the entry desk is no longer trusted"),
        (inventory(*NAMES, desk={"trusted": False}), "the entry desk is no longer trusted"),
        (inventory(*NAMES, shelf={"work": "/elsewhere"}), "shelf serves, and where or how it is reached has changed"),
    ],
)
def test_what_needs_another_deployment_is_refused(new: Inventory, why: str) -> None:
    with pytest.raises(InputError, match=why):
        changes(inventory(*NAMES), new, RUNNING)


def test_a_host_of_the_ring_that_is_gone_has_still_to_be_told_to_end() -> None:
    old, new = inventory(*NAMES), inventory("desk", "attic")
    assert set(together(new, old, RUNNING).hosts) == set(NAMES)
    assert together(new, old, split_from_placement(["desk", "attic", "desk"])) is new


def test_the_file_is_read_again_when_it_is_another_and_a_mistake_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("name: p\nmodel: m\nentry: desk\ninventory: inventory.yaml\n")
    file = tmp_path / "inventory.yaml"
    text = "hosts:\n  desk: {connection: local, trusted: true}\n"
    file.write_text(text)
    reread = Workspace.open(tmp_path / "plan.yaml", None).rereader()
    assert reread() is None
    file.write_text(text + "  shelf: {ssh: shelf}\n")
    found = reread()
    assert found is not None
    assert set(found.hosts) == {"desk", "shelf"}
    assert reread() is None
    file.write_text(text + "  shelf: {trusted: maybe}\n")
    with pytest.raises(InputError):
        reread()
    assert reread() is None
