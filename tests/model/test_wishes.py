"""What a request may ask for, what it gets when it asks for nothing, and which parameter is blamed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from links import manifest

from edgesplit.runner.sampling import Sampling
from edgesplit.runner.wishes import DEFAULT_MAX_TOKENS, BadRequest, Wish, read_wish

SERVICE = manifest().service  # max_context 256
BASE = Sampling(temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.1)


def wish(prompt: int = 10, *, chat: bool = False, **body: Any) -> Wish:
    return read_wish(body, BASE, SERVICE, prompt, chat=chat)


def test_an_empty_request_gets_the_checkpoints_defaults() -> None:
    assert wish() == Wish(
        chat=False,
        n=1,
        stream=False,
        include_usage=False,
        max_tokens=DEFAULT_MAX_TOKENS,
        stop=(),
        sampling=replace(BASE, max_new=DEFAULT_MAX_TOKENS),
        logprobs=None,
        return_token_ids=False,
        ignore_eos=False,
    )


def test_nulls_are_as_good_as_nothing() -> None:
    numbers = ["max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "n", "logprobs"]
    names = [*numbers, "stop", "stream", "stream_options"]
    assert wish(**dict.fromkeys(names)) == wish()


def test_everything_can_be_asked_for() -> None:
    asked = wish(
        chat=True,
        model="tiny",
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=5,
        max_tokens=7,
        stop=["a", "b"],
        temperature=0,
        top_p=0.5,
        top_k=3,
        repetition_penalty=1,
        seed=-1,
        logprobs=True,
        n=3,
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={"7": -100},
        return_token_ids=True,
        ignore_eos=True,
    )
    assert (asked.chat, asked.stream, asked.include_usage, asked.max_tokens) == (True, True, True, 5)
    assert (asked.stop, asked.logprobs, asked.return_token_ids, asked.ignore_eos) == (("a", "b"), 0, True, True)
    assert asked.n == 3
    assert asked.sampling == Sampling(
        0.0, 0.5, 3, 1.0, seed=2**63 - 1, max_new=5, presence_penalty=0.5, frequency_penalty=-1, logit_bias=((7, -100),)
    )


def test_max_tokens_fills_the_context_but_no_more() -> None:
    assert wish(246, max_tokens=10).max_tokens == 10
    assert wish(246).max_tokens == 10
    with pytest.raises(BadRequest, match="246 prompt tokens and max_tokens 11 exceed the plan's max_context of 256"):
        wish(246, max_tokens=11)
    with pytest.raises(BadRequest, match="the prompt has 256 tokens"):
        wish(256)


@pytest.mark.parametrize(("stop", "expected"), [("x", ("x",)), (["x"] * 4, ("x",) * 4), ([], ())])
def test_stop_strings(stop: Any, expected: tuple[str, ...]) -> None:
    assert wish(stop=stop).stop == expected


@pytest.mark.parametrize(("logprobs", "expected"), [(0, 0), (5, 5), (True, 0), (False, None), (None, None)])
def test_logprobs(logprobs: Any, expected: int | None) -> None:
    assert wish(logprobs=logprobs).logprobs == expected
    assert wish(chat=True, logprobs=True, top_logprobs=3).logprobs == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "other"),
        ("n", 65),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", [1]),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "5"),
        ("stop", ""),
        ("stop", [""]),
        ("stop", ["a"] * 5),
        ("stop", 7),
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0),
        ("seed", 1.5),
        ("seed", True),
        ("stream", "yes"),
        ("stream", 1),
        ("ignore_eos", 0),
        ("return_token_ids", "no"),
        ("logprobs", 21),
        ("logprobs", "yes"),
    ],
)
def test_the_parameter_at_fault_is_named(name: str, value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        wish(**{name: value})
    assert caught.value.param == name


def test_alternatives_are_those_of_something() -> None:
    with pytest.raises(BadRequest, match="top_logprobs needs logprobs"):
        wish(chat=True, top_logprobs=3)
