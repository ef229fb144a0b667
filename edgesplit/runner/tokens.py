"""The checkpoint's tokenizer, or why there is none; and a chat as the prompt that its template makes of it.

Must not know: HTTP, sequences, weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .owncode import own_class

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "tekken.json", "*.tiktoken")
_SETTINGS = "tokenizer_config.json"


class TokenizerError(ValueError):
    def __init__(self, why: str) -> None:
        super().__init__(f"the checkpoint's tokenizer cannot be used: {why}")


class ChatError(ValueError):
    """No prompt can be made of these messages."""


class NoTokenizer:
    """Of a checkpoint that came without: token ids in, token ids out, and no text."""

    chat_template = None
    eos_token_id = None

    def __call__(self, _: str, **__: Any) -> Any:
        raise ChatError("this model came without a tokenizer; give the prompt as a list of token ids")

    def decode(self, _: Any, **__: Any) -> str:
        return ""


def load_tokenizer(folder: Path, *, trusted: bool) -> Any:
    """From the checkpoint's side files. `trusted`: its own code may run. Raises TokenizerError, CodeError."""
    files = [path.name for pattern in _VOCABULARIES for path in folder.glob(pattern)]
    if not files and not (folder / _SETTINGS).exists():
        return NoTokenizer()
    own = own_class(folder, _SETTINGS, "AutoTokenizer") if trusted else None
    if own is not None:
        own.register_for_auto_class()
    elif [*files] and all(name.endswith(".model") for name in files) and find_spec("sentencepiece") is None:
        what = f"{files[0]} is read by the package sentencepiece, which is not installed on this host"
        raise TokenizerError(f"{what}; with a tokenizer.json beside it nothing is needed")
    try:
        tokenizer = _load(folder, own)
    except Exception as error:  # each kind of tokenizer reads its files in its own way
        if "trust_remote_code" in str(error):
            raise TokenizerError("it is code of the checkpoint's own, which the plan does not trust") from error
        raise TokenizerError(f"{type(error).__name__}: {_first(error)}") from error
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise TokenizerError("it knows special tokens only; is the download of the checkpoint complete?")
    return tokenizer


def _load(folder: Path, own: Any) -> Any:
    if own is not None:
        return own.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def chat_ids(tokenizer: Any, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> list[int]:
    """The prompt of a chat. With `tools`, a checkpoint's template of that name is used. Raises ChatError."""
    if not tokenizer.chat_template:
        raise ChatError("this model has no chat template; use /v1/completions")
    told = [
        {**message, "content": _text(message["content"])} if "content" in message else message for message in messages
    ]
    try:
        text = tokenizer.apply_chat_template(told, tools=tools, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the checkpoint and may raise anything
        raise ChatError(f"the chat template refuses these messages: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _text(content: Any) -> Any:
    """Text that came in parts, in one; anything else as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    parts = [part.get("text") for part in content if part.get("type") == "text"]
    if len(parts) < len(content) or not all(isinstance(part, str) for part in parts):
        raise ChatError("the parts of a message's content must be text")
    return "".join(map(str, parts))
