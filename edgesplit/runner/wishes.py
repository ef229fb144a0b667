"""What a request of the OpenAI API asks for, checked and completed with the checkpoint's defaults.

Must not know: HTTP, tokenizers, where the answer comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .manifest import Service
from .sampling import Sampling

# Tokens of an answer where neither the request nor the checkpoint says; OpenAI's own 16 surprises everybody.
DEFAULT_MAX_TOKENS = 128
# What OpenAI's API has and this one has not, and the values that ask for nothing.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
}


class BadRequest(ValueError):
    """The request is wrong; `param` names the parameter."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Wish:
    chat: bool
    stream: bool
    include_usage: bool
    max_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    logprobs: bool  # of the tokens chosen
    return_token_ids: bool  # an extension, as vLLM has it
    ignore_eos: bool  # likewise


def read_wish(body: Mapping[str, Any], base: Sampling, service: Service, prompt: int, *, chat: bool) -> Wish:
    """`prompt`: its length in tokens. Raises BadRequest naming the parameter."""
    model = body.get("model", service.model)
    if model != service.model:
        raise BadRequest(f"no model {model!r} here; it is {service.model!r}", "model")
    for name, nothing in _ABSENT.items():
        if body.get(name) not in nothing:
            raise BadRequest(f"{name} can only be {nothing[-1]!r} here", name)
    room = service.max_context - prompt
    if room < 1:
        raise BadRequest(
            f"the prompt has {prompt} tokens and the plan's max_context is {service.max_context}", "prompt"
        )
    asked = body.get("max_completion_tokens", body.get("max_tokens"))
    if asked is not None and (type(asked) is not int or asked < 1):
        raise BadRequest("max_tokens must be a whole number of at least 1", "max_tokens")
    if asked is not None and asked > room:
        raise BadRequest(
            f"{prompt} prompt tokens and max_tokens {asked} exceed the plan's max_context of {service.max_context}",
            "max_tokens",
        )
    options = body.get("stream_options") or {}
    max_tokens = asked or min(_usual(base, prompt), room)
    return Wish(
        chat=chat,
        stream=_flag(body, "stream"),
        include_usage=isinstance(options, Mapping) and bool(options.get("include_usage")),
        max_tokens=max_tokens,
        stop=_stops(_usual_stops(base) if body.get("stop") is None else body["stop"]),
        sampling=replace(_sampling(body, base), max_new=max_tokens),
        logprobs=_logprobs(body),
        return_token_ids=_flag(body, "return_token_ids"),
        ignore_eos=_flag(body, "ignore_eos"),
    )


def _usual(base: Sampling, prompt: int) -> int:
    """Tokens of an answer where the request does not say."""
    most = getattr(base.rest, "max_length", None)
    new = getattr(base.rest, "max_new_tokens", None) or (most - prompt if most and most > prompt else None)
    return int(new or DEFAULT_MAX_TOKENS)


def _usual_stops(base: Sampling) -> Any:
    return getattr(base.rest, "stop_strings", None)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false", name)
    return bool(value)


def _logprobs(body: Mapping[str, Any]) -> bool:
    """Completions ask with a number of alternatives (0 and 1 are answered alike), chats with true."""
    value = body.get("logprobs")
    if value not in (None, False, True, 0, 1) or body.get("top_logprobs") not in (None, 0):
        raise BadRequest("logprobs are given of the chosen token only: true, 0 or 1, without top_logprobs", "logprobs")
    return value is not None and value is not False


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest("stop must be a string or a list of up to 4 strings", "stop")
    return tuple(stops)


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{name} must be a number from {low:g} to {high:g}", name)
    return float(value)


def _whole(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not 0 <= value <= 1_000_000:
        raise BadRequest(f"{name} must be a whole number from 0 to 1000000", name)
    return value


def _sampling(body: Mapping[str, Any], base: Sampling) -> Sampling:
    seed = body.get("seed")
    if seed is not None and type(seed) is not int:
        raise BadRequest("seed must be a whole number", "seed")
    return replace(
        base,
        temperature=_number(body, "temperature", base.temperature, 0, 2),
        top_p=_number(body, "top_p", base.top_p, 0.000001, 1),
        top_k=_whole(body, "top_k", base.top_k),
        repetition_penalty=_number(body, "repetition_penalty", base.repetition_penalty, 0.01, 100),
        min_p=_number(body, "min_p", base.min_p, 0, 1),
        typical_p=_number(body, "typical_p", base.typical_p, 0.000001, 1),
        no_repeat_ngram_size=_whole(body, "no_repeat_ngram_size", base.no_repeat_ngram_size),
        min_new_tokens=_whole(body, "min_tokens", base.min_new_tokens),
        seed=None if seed is None else seed % 2**63,
    )
