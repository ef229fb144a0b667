"""Tokens to text: pieces join to the whole, no half characters, and stop strings end it wherever tokens split them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tokenizer

from edgesplit.runner.text import Detokenizer

BYTES = tokenizer()  # one token per byte: every character beyond ASCII is split


class Words:
    """A tokenizer whose tokens are given: each id is a piece of text."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self._pieces[number] for number in ids)


def ids(text: str) -> list[int]:
    return list(BYTES(text)["input_ids"])


def pieces(text: str, *stops: str) -> tuple[list[str], bool]:
    """What is given out token by token, and at the end; was a stop string met?"""
    made, out = Detokenizer(BYTES, stops), []
    for token in ids(text):
        out.append(made.add(token))
        if made.stopped:
            return out, True
    return [*out, made.end()], made.stopped


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=20))
@settings(deadline=None, max_examples=60)
def test_the_pieces_join_to_the_text_and_none_is_half_a_character(text: str) -> None:
    out, stopped = pieces(text)
    assert "".join(out) == text
    assert not stopped
    assert not any("\ufffd" in piece for piece in out)


def test_a_character_comes_with_its_last_byte() -> None:
    assert pieces("é€😀")[0] == ["", "é", "", "", "€", "", "", "", "😀", ""]


def test_what_is_left_of_a_broken_character_comes_at_the_end() -> None:
    made = Detokenizer(BYTES)
    assert [made.add(token) for token in ids("a€")[:-1]] == ["a", "", ""]
    assert made.end() == "\ufffd"
    assert made.end() == ""


def test_special_tokens_are_no_text() -> None:
    made = Detokenizer(BYTES)
    assert [made.add(token) for token in [0, *ids("x"), 1]] == ["", "x", ""]


@given(
    st.text("abé", max_size=12),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=150)
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    out, stopped = pieces(text, *stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stopped is bool(ends)
    if not ends:
        assert "".join(out) == text
        return
    seen = text[: min(ends)]  # the first stop string to be complete ends it
    assert "".join(out) == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_a_beginning_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    made = Detokenizer(Words("one E", "N", "D of ", "EN", "T", "E"), ("END",))
    assert [made.add(token) for token in (0, 1, 3, 4, 5)] == ["one ", "", "EN", "ENT", ""]
    assert made.end() == "E"


def test_a_stop_string_in_the_midst_of_a_token_cuts_it() -> None:
    made = Detokenizer(Words("say END not", "x"), ("END",))
    assert made.add(0) == "say "
    assert made.stopped


def test_a_stop_string_in_what_was_held_back_at_the_end() -> None:
    made = Detokenizer(Words("ok", "STOP\ufffd"), ("STOP",))
    assert [made.add(0), made.add(1)] == ["ok", ""]
    assert made.end() == ""
    assert made.stopped


@pytest.mark.parametrize("stop", ["€", "x€", "€y"])
def test_stop_strings_may_have_characters_of_several_tokens(stop: str) -> None:
    out, stopped = pieces("ax€yb", stop)
    assert stopped
    assert "".join(out) == "ax€yb"[: "ax€yb".find(stop)]
