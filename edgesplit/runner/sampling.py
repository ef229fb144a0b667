"""From logits to a token, with transformers' own logits processors, so that greedy means what `generate` means.

Must not know: requests, streams, epochs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

COLDEST = 1e-4  # a temperature below it is greedy: dividing by it may leave float32


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. What a request leaves out comes from the checkpoint's generation config."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


def defaults(config: GenerationConfig) -> Sampling:
    """The checkpoint's own defaults; greedy unless it asks to sample, as `generate` does."""
    sampled = bool(config.do_sample)
    return Sampling(
        temperature=float(config.temperature or 1.0) if sampled else 0.0,
        top_p=float(config.top_p or 1.0),
        top_k=int(config.top_k or 0) if sampled else 0,
        repetition_penalty=float(config.repetition_penalty or 1.0),
    )


def stop_tokens(config: GenerationConfig) -> frozenset[int]:
    ends = config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, Iterable) else [ends])


def logprob(logits: torch.Tensor, token: int) -> float:
    """The model's own log-probability of a token, before any sampling."""
    return float(logits.detach().cpu().to(torch.float32).log_softmax(-1)[token])


class Sampler:
    """The state of one request's sampling: it goes on after a replay as if nothing had happened."""

    def __init__(self, sampling: Sampling) -> None:
        self.greedy = sampling.temperature < COLDEST
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._steps = LogitsProcessorList()
        if sampling.repetition_penalty != 1.0:
            self._steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if self.greedy:
            return
        if sampling.temperature != 1.0:
            self._steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            self._steps.append(TopPLogitsWarper(sampling.top_p))

    def pick(self, logits: torch.Tensor, tokens: list[int]) -> int:
        """`logits`: [vocabulary]; `tokens`: all ids so far, prompt and answer. Raises RuntimeError on NaN logits."""
        scores = logits.detach().cpu().to(torch.float32).unsqueeze(0)
        if self._steps:
            scores = self._steps(torch.tensor([tokens]), scores)
        if self.greedy:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
