"""What a generation config asks for that is not done here: what would change a greedy answer, and what would not.

Must not know: torch, requests; a generation config is its JSON form here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]


def _above_one(name: str) -> Callable[[Config], bool]:
    return lambda config: isinstance(config.get(name), int | float) and config[name] > 1


def _given(name: str) -> Callable[[Config], bool]:
    return lambda config: bool(config.get(name))


def _contrastive(config: Config) -> bool:
    """As transformers chooses it."""
    return not config.get("do_sample") and _given("penalty_alpha")(config) and _above_one("top_k")(config)


_OTHER_ANSWERS: dict[str, Callable[[Config], bool]] = {
    "num_beams (beam search)": _above_one("num_beams"),
    "num_beam_groups (beam search)": _above_one("num_beam_groups"),
    "constraints (beam search)": _given("constraints"),
    "force_words_ids (beam search)": _given("force_words_ids"),
    "penalty_alpha (contrastive search)": _contrastive,
    "dola_layers (contrastive decoding)": _given("dola_layers"),
    "guidance_scale (two forwards per token)": lambda config: config.get("guidance_scale") not in (None, 1),
    "token_healing": _given("token_healing"),
    "cache_implementation (a quantised cache)": lambda config: config.get("cache_implementation") == "quantized",
}
_SAME_ANSWERS: dict[str, Callable[[Config], bool]] = {
    "prompt_lookup_num_tokens (assisted decoding)": _given("prompt_lookup_num_tokens"),
    "assistant_early_exit (assisted decoding)": _given("assistant_early_exit"),
    "use_mtp (assisted decoding)": _given("use_mtp"),
    "max_time": _given("max_time"),
    "num_return_sequences (a request gets one answer)": _above_one("num_return_sequences"),
}


def refused(config: Config) -> list[str]:
    """What must not be ignored silently: greedy answers would differ from those of `generate`."""
    return [name for name, asks in _OTHER_ANSWERS.items() if asks(config)]


def ignored(config: Config) -> list[str]:
    """What is left out, and changes no token."""
    return [name for name, asks in _SAME_ANSWERS.items() if asks(config)]
