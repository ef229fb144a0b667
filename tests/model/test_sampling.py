"""Greedy is what transformers' `generate` calls greedy; a seed makes sampling repeat; no wish breaks the sampler."""

from __future__ import annotations

import collections
import math
from pathlib import Path

import pytest
import rings  # noqa: F401 - one thread
import torch
from models import make_checkpoint
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from edgesplit.runner.sampling import COLDEST, TOP_K, Sampler, Sampling, defaults, scored, stop_tokens

PROMPT = [40, 7, 99, 140, 23, 99]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("model"), "llama", 2)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def ours(model: PreTrainedModel, sampling: Sampling, count: int) -> list[int]:
    sampler, tokens = Sampler(sampling), list(PROMPT)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(sampler.pick(model(torch.tensor([tokens])).logits[0, -1], tokens))
    return tokens[len(PROMPT) :]


def theirs(model: PreTrainedModel, config: GenerationConfig, count: int) -> list[int]:
    ids = torch.tensor([PROMPT])
    config.update(max_new_tokens=count, pad_token_id=1)
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("penalty", [None, 1.0, 1.3, 0.8])
def test_greedy_is_what_generate_calls_greedy(model: PreTrainedModel, penalty: float | None) -> None:
    config = GenerationConfig(do_sample=False, repetition_penalty=penalty)
    assert ours(model, defaults(config), 12) == theirs(model, config, 12)


def test_a_penalty_changes_the_answer(model: PreTrainedModel) -> None:
    assert ours(model, Sampling(repetition_penalty=1.3), 12) != ours(model, Sampling(), 12)


def test_defaults_are_greedy_unless_the_checkpoint_samples() -> None:
    silent = GenerationConfig()
    assert defaults(silent) == Sampling(0.0, 1.0, TOP_K, 1.0, rest=silent)
    loud = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=40, repetition_penalty=1.1)
    assert defaults(loud) == Sampling(0.6, 0.9, 40, 1.1, rest=loud)


@pytest.mark.parametrize(("ends", "expected"), [(None, []), (5, [5]), ([5, 6], [5, 6])])
def test_stop_tokens(ends: int | list[int] | None, expected: list[int]) -> None:
    assert stop_tokens(GenerationConfig(eos_token_id=ends)) == frozenset(expected)


def draws(sampling: Sampling, logits: torch.Tensor, count: int = 30) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.pick(logits, [0]) for _ in range(count)]


def test_a_seed_repeats_and_another_does_not() -> None:
    logits = torch.zeros(1000)
    assert draws(Sampling(1.0, seed=5), logits) == draws(Sampling(1.0, seed=5), logits)
    assert draws(Sampling(1.0, seed=5), logits) != draws(Sampling(1.0, seed=6), logits)
    assert draws(Sampling(1.0), logits) != draws(Sampling(1.0), logits)


def test_draws_follow_the_models_probabilities() -> None:
    counted = collections.Counter(draws(Sampling(1.0, seed=1), torch.tensor([0.0, math.log(3)]), 2000))
    assert counted[1] / 2000 == pytest.approx(0.75, abs=0.03)


def test_top_k_top_p_and_temperature_narrow_the_choice() -> None:
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert set(draws(Sampling(2.0, top_k=2, seed=1), logits, 100)) == {0, 1}
    assert set(draws(Sampling(1.0, top_p=0.5, seed=1), logits, 50)) == {0}
    assert set(draws(Sampling(0.01, seed=1), logits, 50)) == {0}


@pytest.mark.parametrize("temperature", [0.0, 1e-300, COLDEST / 2, COLDEST])
def test_however_cold_it_is_a_token_comes(temperature: float) -> None:
    assert draws(Sampling(temperature, seed=1), torch.tensor([-3e4, 3e4, 1.0]), 3) == [1, 1, 1]


def test_sampling_from_no_numbers_is_an_error_that_can_be_caught() -> None:
    with pytest.raises(RuntimeError):
        Sampler(Sampling(1.0)).pick(torch.tensor([float("nan"), 1.0]), [0])


def test_logits_may_come_in_any_precision() -> None:
    assert draws(Sampling(), torch.tensor([0.0, 2.0], dtype=torch.bfloat16), 1) == [1]


def test_scores_are_the_models_own() -> None:
    logits = torch.tensor([0.0, math.log(3)])
    found = scored(logits, 1, 2)
    assert found.logprob == pytest.approx(math.log(0.75))
    assert [token for token, _ in found.top] == logits.argsort(descending=True)[:2].tolist()
    assert scored(logits, 1, 0).top == ()
