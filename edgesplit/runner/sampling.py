"""From logits to a token, with transformers' own logits processors, chosen and ordered as `generate` does.

Must not know: requests, streams, epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.logits_process import LogitsProcessorList

COLDEST = 1e-4  # a temperature below it is greedy: dividing by it may leave float32
TOP_K = 50  # of `generate`, where neither request nor checkpoint says


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. What a request leaves out comes from the checkpoint's generation config; `rest` is
    whatever else that asks for. `max_new`: how long the answer may become."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_new: int = 0
    rest: GenerationConfig | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST

    def processors(self, prompt: list[int], vocabulary: int) -> LogitsProcessorList:
        """What `generate` would do to the scores of each token after this prompt. Raises ValueError and the like for
        numbers that make no sense."""
        rules = copy.deepcopy(self.rest) if self.rest is not None else GenerationConfig()
        rules.update(
            do_sample=not self.greedy,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            min_p=self.min_p or None,
            typical_p=self.typical_p,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            min_new_tokens=self.min_new_tokens or None,
            max_length=len(prompt) + self.max_new,
        )
        rules.update(**rules._get_default_generation_params(), defaults_only=True)
        ends = sorted(stop_tokens(rules))
        rules._eos_token_tensor = torch.tensor(ends) if ends else None
        text = SimpleNamespace(vocab_size=vocabulary)
        stub: Any = _Choice(SimpleNamespace(is_encoder_decoder=False, get_text_config=lambda: text))
        ids = torch.tensor([prompt])
        made: LogitsProcessorList = stub._get_logits_processor(rules, len(prompt), ids, device="cpu", model_kwargs={})
        return made


class _Choice(GenerationMixin):
    """`generate`'s own choice of processors, without its model."""

    def __init__(self, config: Any) -> None:
        self.config = config


def defaults(config: GenerationConfig) -> Sampling:
    """The checkpoint's own; greedy unless it asks to sample, as in `generate`."""

    def of(name: str, default: float) -> Any:
        value = getattr(config, name)
        return default if value is None else value

    return Sampling(
        temperature=float(of("temperature", 1.0)) if config.do_sample else 0.0,
        top_p=float(of("top_p", 1.0)),
        top_k=int(of("top_k", TOP_K)),
        repetition_penalty=float(of("repetition_penalty", 1.0)),
        min_p=float(of("min_p", 0.0)),
        typical_p=float(of("typical_p", 1.0)),
        no_repeat_ngram_size=int(of("no_repeat_ngram_size", 0)),
        min_new_tokens=int(of("min_new_tokens", 0)),
        rest=config,
    )


def stop_tokens(config: GenerationConfig) -> frozenset[int]:
    ends = config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(map(int, ends if isinstance(ends, Iterable) else [ends]))


class Scored(NamedTuple):
    """The model's own log-probability of a token, before any sampling, and of the likeliest ones: (token, it)."""

    logprob: float
    top: tuple[tuple[int, float], ...]


def scored(logits: torch.Tensor, token: int, count: int) -> Scored:
    values = logits.detach().cpu().to(torch.float32).log_softmax(-1)
    best = values.topk(min(count, values.shape[0]))
    return Scored(float(values[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


class Sampler:
    """The state of one request's sampling: it goes on after a replay as if nothing had happened."""

    def __init__(self, sampling: Sampling) -> None:
        self.greedy = sampling.greedy
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._steps: LogitsProcessorList | None = None
        self._prompt = 0

    def pick(self, logits: torch.Tensor, tokens: list[int]) -> int:
        """`logits`: [vocabulary]; `tokens`: all ids so far, the first time the prompt alone, later with the answer.

        Raises RuntimeError where they give no token: they are no numbers, or a rule cannot be applied to them.
        """
        scores = logits.detach().cpu().to(torch.float32).unsqueeze(0)
        try:
            if self._steps is None:
                self._prompt = len(tokens)
                self._steps = self._sampling.processors(tokens, scores.shape[-1])
            scores = self._biased(scores, tokens[self._prompt :])
            if self._steps:
                scores = self._steps(torch.tensor([tokens]), scores.clone())
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        if self.greedy:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))

    def _biased(self, scores: torch.Tensor, answer: list[int]) -> torch.Tensor:
        """What OpenAI's API knows and `generate` does not: https://platform.openai.com/docs/api-reference (penalties on
        what was answered so far, and a bias per token), before all else."""
        rules = self._sampling
        if answer and (rules.presence_penalty or rules.frequency_penalty):
            counts = torch.bincount(torch.tensor(answer), minlength=scores.shape[-1])
            scores = scores - rules.presence_penalty * (counts > 0) - rules.frequency_penalty * counts
        if rules.logit_bias:
            tokens, bias = zip(*rules.logit_bias, strict=True)
            scores = scores.index_add(1, torch.tensor(tokens), torch.tensor([bias]))
        return scores
