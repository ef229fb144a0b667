"""THE WISH: what a plan may leave out, what it refuses, and that its example and reference page are complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from test_inventory import ROOT, check_example, check_page

from edgesplit.document import WORDS
from edgesplit.errors import InputError
from edgesplit.inventory import load_inventory
from edgesplit.plan import ModelPlan, ModelSource, Pin, WatchPolicy, Workload, load_plan

PLANS = sorted((ROOT / "plans").glob("*.yaml"))


def test_the_example_has_every_key() -> None:
    check_example(ModelPlan, "plans/example.yaml")


def test_the_reference_page_has_every_key_and_its_default() -> None:
    check_page(ModelPlan, "docs/reference/plan.md")


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_a_plan_of_ours_fits_its_inventory(file: Path) -> None:
    plan = load_plan(file)
    assert plan.inventory is not None
    inventory = load_inventory(file.parent / plan.inventory)
    assert plan.entry in inventory.trusted
    assert {pin.to for pin in plan.pins} - {"trusted"} <= set(inventory.hosts)


def test_a_plan_needs_a_name_a_model_and_an_entry(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("name: small\nmodel: org/model\nentry: desk\n")
    plan = load_plan(file)
    assert plan == ModelPlan(name="small", model=ModelSource(source="org/model"), entry="desk")
    assert plan.workload == Workload(prompt_tokens=128, new_tokens=128, max_context=1024, concurrency=1, rate=0.0)
    assert plan.pins == ()


def test_the_demo_plan() -> None:
    plan = load_plan(ROOT / "plans/demo.yaml")
    assert (plan.name, plan.model.source, plan.entry, plan.api.port) == ("demo", "demo/model", "desk", 8099)
    assert plan.pins == (Pin(blocks=("embedding", "head", "layers.0")),)


def test_the_long_form_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("name: a\nmodel: {source: org/model, revision: v1}\nentry: desk\n")
    assert load_plan(file).model == ModelSource(source="org/model", revision="v1")


def test_a_workload_must_fit_its_context() -> None:
    assert Workload(prompt_tokens=1000, new_tokens=24, max_context=1024)
    with pytest.raises(ValidationError, match="prompt_tokens \\+ new_tokens = 1025 exceed max_context = 1024"):
        Workload(prompt_tokens=1001, new_tokens=24, max_context=1024)


def test_a_host_is_heard_of_before_it_counts_as_silent() -> None:
    with pytest.raises(ValidationError, match="host_timeout 6 s is not above interval 10 s"):
        WatchPolicy(interval=10.0)


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_a_plan_survives_its_own_json(file: Path) -> None:
    plan = load_plan(file)
    assert ModelPlan.model_validate_json(plan.to_json()) == plan


def test_several_mistakes_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_text("name: a plan\nmodel: m\napi: {prot: 1, address: 'a:1'}\nservice: {time_per_token: -1}\n")
    with pytest.raises(InputError) as caught:
        load_plan(Path("f"))
    assert caught.value.message.splitlines() == [
        "f:1:1: entry: required, but missing",
        f"f:1:7: name: {WORDS['string_pattern_mismatch']}, found 'a plan'",
        "f:3:7: api.prot: unknown key; did you mean 'port'?",
        "f:3:25: api.address: expected the name or the IP address of a machine, without a port; found 'a:1'",
        'f:4:27: service.time_per_token: expected a time such as "300ms", with a unit of us, ms, s, min, h; found -1',
    ]
