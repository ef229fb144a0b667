"""A request that is being answered: its choices, and the objects of the OpenAI API that tell of them.

Must not know: HTTP, the worker, where tokens come from.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .front import Front, Inputs
from .sampling import Sampling, Scored
from .text import Detokenizer
from .wishes import Wish


@dataclass
class Choice:
    """One sequence. `end`: why it ended; `number`: its name at the entry."""

    index: int
    prompt: tuple[int, ...]
    sampling: Sampling
    text: Detokenizer
    number: int = 0
    tokens: list[int] = field(default_factory=list)
    scores: list[Scored | None] = field(default_factory=list)
    end: str | None = None
    told: int = 0  # tokens whose scores were given out
    begun: bool = False  # its role was told

    def add(self, token: int, scored: Scored | None) -> str:
        """The text that is certain now."""
        self.tokens.append(token)
        self.scores.append(scored)
        text = self.text.add(token)
        if self.text.stopped:
            self.end = "stop"
        return text

    def finish(self, end: str) -> str:
        """The text that was held back."""
        text = self.text.end()
        self.end = "stop" if self.text.stopped else end
        return text


@dataclass
class Answer:
    front: Front
    wish: Wish
    inputs: Inputs
    choices: list[Choice]
    name: str
    created: int

    @classmethod
    def to(cls, front: Front, wish: Wish, prompts: list[tuple[int, ...]], inputs: Inputs) -> Answer:
        """`wish.n` choices for each prompt; with a seed each has its own, the first the one that was asked for."""
        choices = [
            Choice(index, prompt, _seeded(wish.sampling, place), Detokenizer(front.tokenizer, wish.stop))
            for index, (prompt, place) in enumerate((prompt, place) for prompt in prompts for place in range(wish.n))
        ]
        name = f"{'chat' if wish.chat else ''}cmpl-{uuid.uuid4().hex}"
        return cls(front, wish, inputs, choices, name, int(time.time()))

    def whole(self, texts: Mapping[int, str]) -> dict[str, Any]:
        """The answer at once; the text of each choice by its index."""
        choices = [self._choice(choice, texts[choice.index], whole=True) for choice in self.choices]
        return {**self._frame(whole=True), "choices": choices, "usage": self.usage()}

    def chunk(self, choice: Choice, text: str) -> dict[str, Any]:
        """What is new of a choice."""
        return {**self._frame(whole=False), "choices": [self._choice(choice, text, whole=False)]}

    def last(self) -> dict[str, Any]:
        """The chunk that tells what it took."""
        return {**self._frame(whole=False), "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        prompt = sum(len(choice.prompt) for choice in self.choices[:: self.wish.n])
        new = sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _frame(self, *, whole: bool) -> dict[str, Any]:
        kind = ("chat.completion" if whole else "chat.completion.chunk") if self.wish.chat else "text_completion"
        return {"id": self.name, "object": kind, "created": self.created, "model": self.front.service.model}

    def _choice(self, choice: Choice, text: str, *, whole: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"index": choice.index, "finish_reason": choice.end, "logprobs": self._scores(choice)}
        if self.wish.chat:
            role = {} if choice.begun else {"role": "assistant"}
            said["message" if whole else "delta"] = {**role, "content": text}
            choice.begun = True
        else:
            said["text"] = text
        if self.wish.return_token_ids and choice.end is not None:
            said["token_ids"] = choice.tokens
            said["prompt_token_ids"] = list(choice.prompt)
        return said

    def _scores(self, choice: Choice) -> dict[str, Any] | None:
        """Of the tokens since it was last asked, in the form of either API."""
        if self.wish.logprobs is None:
            return None
        new = list(zip(choice.tokens, choice.scores, strict=True))[choice.told :]
        choice.told = len(choice.tokens)
        scored = [(token, score) for token, score in new if score is not None]
        if self.wish.chat:
            tops = [[self._of(*one) for one in score.top] for _, score in scored]
            pairs = zip(scored, tops, strict=True)
            return {
                "content": [{**self._of(token, score.logprob), "top_logprobs": top} for (token, score), top in pairs]
            }
        return {
            "tokens": [self._word(token) for token, _ in scored],
            "token_logprobs": [score.logprob for _, score in scored],
            "top_logprobs": [{self._word(token): value for token, value in score.top} for _, score in scored],
        }

    def _of(self, token: int, logprob: float) -> dict[str, Any]:
        word = self._word(token)
        return {"token": word, "logprob": logprob, "bytes": list(word.encode())}

    def _word(self, token: int) -> str:
        """The token's text, or its name where it is a part of a character."""
        word = str(self.front.tokenizer.decode([token]))
        return str(self.front.tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in word else word


def _seeded(sampling: Sampling, place: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + place) % 2**63)
