"""Images in a request: from a client's data URLs to what the model takes; in a chat, token ids with it.

The checkpoint's own processor does it, its part for images alone: what it would need for videos is not asked for.
Nothing is ever fetched: an image is in the request, or the request is refused.

Must not know: HTTP, the ring.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from .anatomy import model_class
from .tokens import ChatError

MAX_IMAGES = 16  # of one request
MAX_PIXELS = 2**25  # of all images of one request, 100 MB once they are decoded
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # of the API this one is modelled on; every decoder more is one more to trust
_NOT_INPUTS = {"input_ids", "attention_mask", "labels"}  # ids go their own way, and nothing is padded
_UNLOADABLE = (ImportError, OSError, ValueError, TypeError, AttributeError, KeyError)  # what processors raise then
_EVERY_STEP = {"cross_attention_mask"}  # of models whose layers look at the image itself


class ImageError(ChatError):
    """The images, or messages with images, cannot be read; the message says why."""


@dataclass(frozen=True)
class Eyes:
    """Reads the images of an encoder of images."""

    processor: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)  # images are large

    @classmethod
    def load(cls, folder: Path) -> Eyes:
        """From a folder with the checkpoint's side files. Raises ImageError."""
        try:
            found = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        except _UNLOADABLE as error:
            raise ImageError(f"its image processor cannot be used here: {' '.join(str(error).split())}") from error
        return cls(found)

    def read(self, parts: list[Any]) -> list[dict[str, torch.Tensor]]:
        """Of parts {type: image_url, image_url: {url}}, what the model takes of each. Raises ImageError."""
        budget = _Budget(MAX_IMAGES, MAX_PIXELS)
        with self._lock:
            return [self._pixels(budget.decode(part.get("image_url"))) for part in parts]

    def _pixels(self, image: Any) -> dict[str, torch.Tensor]:
        try:
            return {"pixel_values": self.processor(image, return_tensors="pt")["pixel_values"]}
        except Exception as error:  # a processor is set up by the checkpoint and may raise anything
            raise ImageError(f"an image cannot be made ready for the model: {error}") from error


@dataclass(frozen=True)
class Images:
    """Reads chats for one model. `inputs`: what its class takes beside ids; `token`: the id that stands for images."""

    processor: Any
    inputs: frozenset[str]
    token: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)  # tokenizers are of one thread; and images are large

    @classmethod
    def load(cls, folder: Path, config: PreTrainedConfig) -> Images:
        """From a folder with the checkpoint's side files. Raises ImageError."""
        if type(config) not in PROCESSOR_MAPPING:
            raise ImageError(f"transformers has no processor for {config.model_type}")
        takes = frozenset(inspect.signature(model_class(config).forward).parameters)
        if again := sorted(takes & _EVERY_STEP):
            raise ImageError(f"{config.model_type} wants {again[0]} with every token, and gets it with the prompt only")
        kind = _without_videos(PROCESSOR_MAPPING[type(config)])
        try:
            processor = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except _UNLOADABLE as error:
            raise ImageError(f"{kind.__name__} cannot be used here: {' '.join(str(error).split())}") from error
        return cls(processor, takes - _NOT_INPUTS, getattr(config, "image_token_id", None))

    def read(self, messages: list[Any], tools: list[Any] | None) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The prompt's ids, and what belongs to its images, nothing without images. Raises ImageError."""
        template = self.processor.chat_template or self.processor.tokenizer.chat_template
        if not template:
            raise ImageError("this model has no chat template")
        with self._lock:
            chat = list(_chat(messages))
            try:
                read = self.processor.apply_chat_template(
                    chat, template, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True,
                    return_tensors="pt",
                )  # fmt: skip
            except Exception as error:  # a template is a program of the checkpoint and may raise anything
                raise ImageError(f"the chat template refuses these messages: {error}") from error
        some = any(part["type"] == "image" for message in chat for part in message["content"])
        inputs = {name: value for name, value in read.items() if name in self.inputs} if some else {}
        if odd := [name for name, value in inputs.items() if not isinstance(value, torch.Tensor)]:
            raise ImageError(f"the images have no common {odd[0]}")
        return read["input_ids"][0].tolist(), inputs


def _without_videos(kind: type[Any]) -> type[Any]:
    """The same processor, which takes no part for videos: that needs packages of its own."""
    parts = [part for part in kind.get_attributes() if part != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: parts), "__module__": kind.__module__})


# --- messages ---


def _chat(messages: list[Any]) -> Iterator[dict[str, Any]]:
    """Messages as transformers takes them, their images decoded. Raises ImageError."""
    budget = _Budget(MAX_IMAGES, MAX_PIXELS)
    for message in messages:
        parts = []
        for part in _parts(message.get("content")):
            if part.get("type") == "image_url":
                parts.append({"type": "image", "image": budget.decode(part.get("image_url"))})
            elif part.get("type") == "text" and isinstance(part.get("text"), str):
                parts.append({"type": "text", "text": part["text"]})
            else:
                raise ImageError("a part of a message is {type: text, text} or {type: image_url, image_url: {url}}")
        yield {**message, "content": parts}


def _parts(content: Any) -> list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return content
    raise ImageError("the content of a message is a string or a list of parts")


@dataclass
class _Budget:
    """What one request may still bring."""

    images: int
    pixels: int

    def decode(self, place: Any) -> Any:
        if not self.images:
            raise ImageError(f"more than {MAX_IMAGES} images")
        image = _decode(place, self.pixels)
        self.images -= 1
        self.pixels -= image.width * image.height
        return image


def _decode(place: Any, pixels: int) -> Any:
    """The image of a data URL, of at most so many pixels, upright, in red, green and blue."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    url = place.get("url") if isinstance(place, dict) else place
    if not isinstance(url, str) or not url.startswith("data:"):
        raise ImageError("an image is given as a data URL (data:image/png;base64,...); nothing is fetched for a client")
    head, _, data = url.partition(",")
    if not head.endswith(";base64"):
        raise ImageError("the data URL of an image must be base64")
    try:
        file = io.BytesIO(base64.b64decode(data, validate=True))
    except binascii.Error as error:
        raise ImageError(f"the data of an image is not base64: {error}") from error
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > pixels:  # known from its header, before anything is decoded
                raise ImageError(f"the images of one request have more than {MAX_PIXELS} pixels")
            return ImageOps.exif_transpose(image).convert("RGB")
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"an image cannot be read: it is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # what a decoder raises on damaged data is not documented
        raise ImageError(f"an image cannot be read ({', '.join(FORMATS)}): {error}") from error
