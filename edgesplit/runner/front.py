"""What requests are read and answered with: the checkpoint's tokenizer, its eyes for images, its own defaults.

Must not know: HTTP, the ring, sequences.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from .anatomy import Kind, model_class, model_kind, read_config
from .generation import ignored, refused
from .images import Eyes, Images
from .manifest import Service
from .pooling import Pooling
from .sampling import Sampler, Sampling, defaults, stop_tokens
from .tokens import ChatError, NoTokenizer, chat_ids, load_tokenizer
from .wishes import BadRequest

log = logging.getLogger("runner")
Inputs = Mapping[str, torch.Tensor]  # what belongs to the images of a prompt


@dataclass(frozen=True)
class Front:
    """`base`: the checkpoint's sampling; `vocabulary`: ids that exist. `images` reads chats of a model with a vision
    tower; where it cannot, `blind` says why. `pooling` makes a vector of what an encoder gives; `eyes` reads for one
    of images, which takes nothing else."""

    service: Service
    tokenizer: Any
    base: Sampling
    stops: frozenset[int]
    vocabulary: int
    kind: Kind = "text"
    images: Images | None = None
    blind: str = ""
    pooling: Pooling | None = None
    eyes: Eyes | None = None

    @classmethod
    def load(cls, service: Service, folder: Path, *, trusted: bool = False) -> Front:
        """From a folder with the checkpoint's side files. `trusted`: its own code may run.

        Raises OSError, ValueError.
        """
        config = read_config(str(folder), trust_remote_code=trusted)
        kind = model_kind(config)
        if kind == "encoder" and model_class(config).main_input_name == "pixel_values":
            pooling, eyes = Pooling.load(folder), Eyes.load(folder)
            return cls(service, NoTokenizer(), Sampling(), frozenset(), 0, kind, pooling=pooling, eyes=eyes)
        tokenizer = load_tokenizer(folder, trusted=trusted)
        vocabulary = int(config.get_text_config(decoder=True).vocab_size)
        if kind == "encoder":
            pooling = Pooling.load(folder)
            return cls(service, tokenizer, Sampling(), frozenset(), vocabulary, kind, pooling=pooling)
        base, stops = _rules(folder, tokenizer.eos_token_id, vocabulary)
        front = cls(service, tokenizer, base, stops, vocabulary, kind)
        return _seeing(front, folder, config) if kind == "vision" else front

    def check_kind(self, *, encoder: bool) -> None:
        """Raises BadRequest where the model cannot do what the request asks for."""
        if encoder and self.kind != "encoder":
            raise BadRequest("this model generates text; it has no embeddings to give", "model")
        if not encoder and self.kind == "encoder":
            raise BadRequest("this model is an encoder: it answers /v1/embeddings only", "model")

    def encoded(self, text: str) -> list[int]:
        """Raises BadRequest."""
        try:
            return list(self.tokenizer(text)["input_ids"])
        except ChatError as error:
            raise BadRequest(str(error), "prompt") from error

    def chat(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> tuple[list[int], Inputs]:
        """The prompt of a chat. Takes its time where there are images. Raises BadRequest."""
        try:
            if self.blind:
                raise ChatError(self.blind)
            if self.images is not None:
                return self.images.read(messages, tools)
            return chat_ids(self.tokenizer, messages, tools), {}
        except ChatError as error:
            raise BadRequest(str(error), "messages") from error

    def checked(self, ids: list[int], inputs: Inputs | None = None) -> tuple[int, ...]:
        """Raises BadRequest: an id without an embedding would break the ring. The ids that stand for images have
        none in some models."""
        if not ids:
            raise BadRequest("the prompt is empty", "prompt")
        known = ids if not inputs or self.images is None else [token for token in ids if token != self.images.token]
        if known and (max(known) >= self.vocabulary or min(known) < 0):
            raise BadRequest(f"token ids are 0 to {self.vocabulary - 1}", "prompt")
        return tuple(ids)


def _seeing(front: Front, folder: Path, config: Any) -> Front:
    try:
        return replace(front, images=Images.load(folder, config))
    except ChatError as error:  # completions need no processor
        log.warning("chats cannot be read: %s", error)
        return replace(front, blind=f"this entry cannot read chats with images, so it reads none: {error}")


def _rules(folder: Path, end: int | None, vocabulary: int) -> tuple[Sampling, frozenset[int]]:
    """The checkpoint's sampling, and the tokens that end an answer: `end` where it names none.

    Raises ValueError, also where it makes no sense: better now than in somebody's request.
    """
    config = _generation(folder)
    told = config.to_dict()
    if names := refused(told):
        raise ValueError(f"the checkpoint wants to be generated with {', '.join(names)}, which is not done here")
    if names := ignored(told):
        log.warning("left out of the generation config, without effect on tokens: %s", ", ".join(names))
    try:
        config.eos_token_id = sorted(stop_tokens(config) or ([] if end is None else [end])) or None
        base = defaults(config)
        for temperature in (0.0, 1.0):
            Sampler(replace(base, temperature=temperature)).pick(torch.zeros(vocabulary), [0])
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"the checkpoint's generation config makes no sense: {error}") from error
    return base, stop_tokens(config)


def _generation(folder: Path) -> GenerationConfig:
    """As `generate` would find it: in a file of its own, or among the model's config. Raises OSError, ValueError."""
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(folder, "config.json", local_files_only=True, _from_model_config=True)
