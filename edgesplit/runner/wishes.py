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
MAX_CHOICES = 64  # of one request
MAX_TOP = 20  # alternatives whose log-probabilities are told, as OpenAI has it
# What OpenAI's API has and this one has not, and the values that ask for nothing.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "response_format": (None, {"type": "text"}),
}


class BadRequest(ValueError):
    """The request is wrong; `param` names the parameter."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Wish:
    """`n`: choices per prompt. `logprobs`: None, or how many alternatives to the token chosen are told."""

    chat: bool
    n: int
    stream: bool
    include_usage: bool
    max_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    logprobs: int | None
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
        n=_count(body, "n", 1, 1, MAX_CHOICES),
        stream=_flag(body, "stream"),
        include_usage=isinstance(options, Mapping) and bool(options.get("include_usage")),
        max_tokens=max_tokens,
        stop=_stops(_usual_stops(base) if body.get("stop") is None else body["stop"]),
        sampling=replace(_sampling(body, base), max_new=max_tokens),
        logprobs=_logprobs(body, chat=chat),
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


def _logprobs(body: Mapping[str, Any], *, chat: bool) -> int | None:
    """Completions ask with a number of alternatives, chats with true and a number beside it."""
    if not chat and type(body.get("logprobs")) is int:
        return _count(body, "logprobs", 0, 0, MAX_TOP)
    if not _flag(body, "logprobs"):
        if body.get("top_logprobs"):
            raise BadRequest("top_logprobs needs logprobs", "top_logprobs")
        return None
    return _count(body, "top_logprobs", 0, 0, MAX_TOP)


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


def _count(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number from {low} to {high}", name)
    return value


def _bias(body: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    value = body.get("logit_bias") or {}
    try:
        pairs = [(int(token), float(bias)) for token, bias in value.items()]
    except (AttributeError, TypeError, ValueError):
        pairs = [(-1, 0.0)]
    if not all(token >= 0 and -100 <= bias <= 100 for token, bias in pairs):
        raise BadRequest("logit_bias must map token ids to numbers from -100 to 100", "logit_bias")
    return tuple(pairs)


def _sampling(body: Mapping[str, Any], base: Sampling) -> Sampling:
    seed = body.get("seed")
    if seed is not None and type(seed) is not int:
        raise BadRequest("seed must be a whole number", "seed")
    return replace(
        base,
        temperature=_number(body, "temperature", base.temperature, 0, 2),
        top_p=_number(body, "top_p", base.top_p, 0.000001, 1),
        top_k=_count(body, "top_k", base.top_k, 0, 1_000_000),
        repetition_penalty=_number(body, "repetition_penalty", base.repetition_penalty, 0.01, 100),
        min_p=_number(body, "min_p", base.min_p, 0, 1),
        typical_p=_number(body, "typical_p", base.typical_p, 0.000001, 1),
        no_repeat_ngram_size=_count(body, "no_repeat_ngram_size", base.no_repeat_ngram_size, 0, 1_000_000),
        min_new_tokens=_count(body, "min_tokens", base.min_new_tokens, 0, 1_000_000),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2, 2),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2, 2),
        logit_bias=_bias(body),
        seed=None if seed is None else seed % 2**63,
    )


def several(value: Any, name: str) -> list[Any]:
    """One text or several, each a string or a list of token ids."""
    if isinstance(value, str) or _is_ids(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(text, str) or _is_ids(text) for text in value):
        return value
    raise BadRequest(f"{name} must be a string, a list of token ids, or a list of these", name)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
