"""A representative few of the families that `make models` puts through the same checks; and the checks themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from families import checks, configs, costs
from families.outcome import Outcome
from families.report import everywhere, exact, markdown, passed, verdict
from families.subject import Subject, WireChanged, travel
from families.worker import Result, examine

from edgesplit.model.blocks import Chain
from edgesplit.runner.hidden import Hidden

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns of its own configs


@pytest.mark.parametrize("family", configs.FEW)
def test_exact_wherever_it_is_cut(family: str) -> None:
    result = examine(family)
    assert set(result.outcomes) == set(checks.CHECKS), verdict(result)
    assert passed(result), verdict(result)


# --- the checks themselves ---


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    subject = Subject("mistral", tmp_path_factory.mktemp("mistral"))
    subject.open()
    checks.boundaries(subject)
    yield subject  # noqa: PT022 - a fixture that lives as long as its folder


def test_one_bit_of_one_weight_is_noticed(mistral: Subject) -> None:
    assert checks.in_turns(mistral) == Outcome(0.0)
    stage = checks.middle(mistral).stages[0]
    weight = next(weight for name, weight in stage.model.named_parameters() if "o_proj" in name)
    before = weight.data.clone()
    weight.data[0, 0] *= 1 + 2**-20
    outcome = checks.in_turns(mistral)
    weight.data.copy_(before)
    assert outcome.difference
    assert outcome.mark in ("close", "differs")


def test_windows_are_shorter_than_what_is_fed(mistral: Subject) -> None:
    assert mistral.whole.config.sliding_window == configs.WINDOW < checks.LONG
    sequence = mistral.stage(0, mistral.blocks - 1).sequence()
    mistral.stage(0, mistral.blocks - 1).forward(sequence, torch.tensor([checks.prompt(checks.LONG)]))
    assert sequence.rows is not None
    assert {entry.keys.shape[-2] for entry in sequence.rows.cache.layers} == {configs.WINDOW - 1}


def with_layer(subject: Subject, **other: int) -> Chain:
    """Its chain, but for a number of the first layer."""
    blocks = subject.checkpoint.chain.blocks
    return subject.checkpoint.chain.model_copy(
        update={"blocks": (blocks[0], blocks[1].model_copy(update=other), *blocks[2:])}
    )


def test_a_wrong_account_is_noticed(mistral: Subject) -> None:
    right = mistral.checkpoint
    flops = right.chain.blocks[1].flops_per_token
    assert costs.in_bytes(mistral) == costs.in_flops(mistral) == Outcome(0.0)
    mistral.checkpoint = replace(right, chain=with_layer(mistral, kv_bytes_per_token=1))
    assert "cache of layers.0, " in costs.in_bytes(mistral).note
    mistral.checkpoint = replace(right, chain=with_layer(mistral, flops_per_token=round(1.05 * flops)))
    outcome = costs.in_flops(mistral)
    mistral.checkpoint = right
    assert outcome.mark == "failed"
    assert "flops of layers.0, 1 behind " in outcome.note


def test_the_wire_keeps_every_kind_of_value() -> None:
    hidden = Hidden((torch.randn(2, 3, 8), None, torch.randint(9, (2, 3, 4))), tuple_=True, carried=(torch.ones(2, 3),))
    assert travel(hidden).tuple_
    with pytest.raises(WireChanged):
        travel(Hidden((torch.tensor([[float("nan")]]),)))  # equal to nothing, itself included


def test_what_a_family_raises_is_its_outcome(mistral: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_subject: Subject) -> Outcome:
        raise KeyError("sliding_attention")

    monkeypatch.setattr(checks, "CHECKS", {"turns": broken, "logits": checks.all_logits})
    outcomes = checks.run(mistral)
    assert outcomes["turns"].mark == "failed"
    assert "KeyError: 'sliding_attention' (test_families.py:" in outcomes["turns"].note
    assert outcomes["logits"].mark == "exact"


# --- the report ---

GOOD = Result("alpha", "AlphaForCausalLM", "4 full", outcomes={"cuts": Outcome(0.0), "joined": Outcome(1e-6)})
GLUED = Result("beta", "BetaForCausalLM", "4 full", outcomes={"cuts": Outcome(0.0, "blocks 1 to 2 stay together")})
BAD = Result("gamma", "GammaForCausalLM", "4 full", outcomes={"cuts": Outcome(0.0), "turns": Outcome(1e-6)})
OFF = Result("eta", "EtaForCausalLM", "4 full", outcomes={"cuts": Outcome(0.0), "flops": Outcome(None, "7, not 6")})
UNABLE = Result("delta", "DeltaForCausalLM", unable="no cache")


def test_verdicts() -> None:
    assert [passed(each) for each in (GOOD, GLUED, BAD, UNABLE)] == [True, True, False, False]
    assert [everywhere(each) for each in (GOOD, GLUED)] == [True, False]
    assert verdict(GOOD) == "exact"
    assert verdict(GLUED) == "exact; cuts: blocks 1 to 2 stay together"
    assert verdict(BAD) == "not exact; turns differs by 1e-06"
    assert (exact(OFF), passed(OFF), verdict(OFF)) == (True, False, "exact; the account is off: 7, not 6")
    assert verdict(UNABLE) == "transformers: no cache"


def test_a_family_without_outcome_has_not_passed() -> None:
    assert not passed(Result("epsilon", "EpsilonForCausalLM", refused="too many layers"))
    assert not passed(Result("zeta", "ZetaForCausalLM", outcomes={"all": Outcome(None, "not finished within 120 s")}))


def test_the_document_counts_and_sorts_by_outcome() -> None:
    refused = Result("theta", "ThetaForCausalLM", refused="loops")
    text = markdown([GOOD, GLUED, BAD, OFF, UNABLE, refused], {"transformers": "5", "torch": "2"}, checks.CLOSE)
    assert "**3 of 5 families are exact**, 1 of them with a restriction and 1 with an account that is off" in text
    assert "1 are refused, 1 answer otherwise" in text
    order = ["## Not exact", "`gamma`", "`theta`", "## Exact, but the account is off", "`eta`", "## Exact\n", "`alpha`"]
    order += ["`beta`", "## What transformers cannot do alone", "`delta`"]
    assert [*order] == sorted(order, key=text.index)
    assert all(f"*{name}*" in text for name in checks.CHECKS)
