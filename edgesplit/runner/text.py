"""Tokens to text, piece by piece, and the strings that end an answer.

Must not know: where tokens come from, nor HTTP.
"""

from __future__ import annotations

from typing import Any


class Detokenizer:
    """Text as tokens arrive. A piece is held back while it is half a character or may become a stop string."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._ids: list[int] = []
        self._prefix = 0  # decoding restarts here: tokenizers join pieces by what stands before them
        self._read = 0  # tokens whose text is in `_held` or given out already
        self._held = ""
        self.stopped = False

    def _decode(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True))

    def add(self, token: int) -> str:
        """The text that is now certain; "" when none is. After a stop string was met, `stopped` is true."""
        self._ids.append(token)
        before, after = self._decode(self._prefix, self._read), self._decode(self._prefix, len(self._ids))
        if after.endswith("\ufffd"):  # the replacement character: bytes of a character are still to come
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return self._release(after[len(before) :])

    def _release(self, new: str) -> str:
        self._held += new
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            text, self._held = self._held[: min(places)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def end(self) -> str:
        """What was held back, when the answer ends without a stop string."""
        before, after = self._decode(self._prefix, self._read), self._decode(self._prefix, len(self._ids))
        self._prefix = self._read = len(self._ids)
        text = self._release(after[len(before) :])
        rest, self._held = self._held, ""
        return text + rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
