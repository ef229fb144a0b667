"""/v1/embeddings: texts or images in, a vector of each out. Every one is a sequence of its own in the ring.

Must not know: HTTP, where the model runs, how a vector is made of hidden states (pooling.py does).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
from collections.abc import Mapping
from typing import Any

import torch

from .entry import Entry, Request
from .front import Front, Inputs
from .images import Eyes
from .sampling import Sampling
from .tokens import ChatError
from .wishes import BadRequest, several
from .worker import Worker

MAX_TEXTS = 2048  # of one request, as OpenAI has it
CUT_SHORT = "no vector in time; the ring is down"
_FORMATS = ("float", "base64")

Given = list[tuple[tuple[int, ...], Inputs]]  # token ids of a text; or none, and what the model takes of an image


def read_input(body: Mapping[str, Any], front: Front) -> Given:
    """Takes its time where there are images. Raises BadRequest."""
    model = body.get("model", front.service.model)
    if model != front.service.model:
        raise BadRequest(f"no model {model!r} here; it is {front.service.model!r}", "model")
    if body.get("dimensions") is not None:
        raise BadRequest("vectors have the model's own number of dimensions", "dimensions")
    if body.get("encoding_format", "float") not in _FORMATS:
        raise BadRequest(f"encoding_format is one of {', '.join(_FORMATS)}", "encoding_format")
    if front.eyes is not None:
        return _images(body.get("input"), front.eyes)
    texts = several(body.get("input"), "input")
    if len(texts) > MAX_TEXTS:
        raise BadRequest(f"more than {MAX_TEXTS} texts", "input")
    read = [front.checked(front.encoded(text) if isinstance(text, str) else text) for text in texts]
    most = front.service.max_context
    if long := next((len(ids) for ids in read if len(ids) > most), 0):
        raise BadRequest(f"a text has {long} tokens and the plan's max_context is {most}", "input")
    return [(ids, {}) for ids in read]


def _images(value: Any, eyes: Eyes) -> Given:
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, dict) and part.get("type") == "image_url" for part in parts):
        raise BadRequest("this model takes images: {type: image_url, image_url: {url}}, or a list of these", "input")
    try:
        return [((), inputs) for inputs in eyes.read(parts)]
    except ChatError as error:
        raise BadRequest(str(error), "input") from error


async def encode(given: Given, front: Front, entry: Entry, worker: Worker) -> list[torch.Tensor]:
    """The last hidden state of each, as many at once as the plan has sequences. Raises Overloaded, BadRequest."""
    turn = asyncio.Semaphore(front.service.concurrency)

    async def one(ids: tuple[int, ...], inputs: Inputs) -> torch.Tensor:
        async with turn:
            return await _encode(ids, inputs, entry, worker)

    tasks = [asyncio.ensure_future(one(*each)) for each in given]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _encode(ids: tuple[int, ...], inputs: Inputs, entry: Entry, worker: Worker) -> torch.Tensor:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[torch.Tensor] = loop.create_future()

    def give(result: torch.Tensor | BadRequest) -> None:
        with contextlib.suppress(RuntimeError):  # the server's loop has closed
            loop.call_soon_threadsafe(_give, done, result)

    def ended(_token: int | None, end: str | None, _: object) -> None:
        if end == "misfit":
            give(BadRequest("the image does not fit the model", "input"))

    request = Request(ids, 0, Sampling(), frozenset(), ended, inputs=inputs, encoded=give)
    (number,) = await asyncio.wrap_future(worker.call(lambda: entry.submit(request)))
    try:
        return await done
    finally:
        if not done.done() or done.cancelled():
            worker.call(lambda: entry.cancel(number))


def _give(done: asyncio.Future[torch.Tensor], result: torch.Tensor | BadRequest) -> None:
    if done.done():  # nobody waits any more
        return
    if isinstance(result, BadRequest):
        done.set_exception(result)
    else:
        done.set_result(result)


def reply(body: Mapping[str, Any], front: Front, hidden: list[torch.Tensor]) -> dict[str, Any]:
    pooling, tokens = front.pooling, sum(map(len, hidden))  # an image too is as many as it has positions
    assert pooling is not None  # noqa: S101 - the front of an encoder has one
    vectors = [pooling.vector(states) for states in hidden]
    packed = body.get("encoding_format") == "base64"
    return {
        "object": "list",
        "model": front.service.model,
        "data": [
            {"object": "embedding", "index": number, "embedding": _pack(vector) if packed else vector}
            for number, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _pack(vector: list[float]) -> str:
    """Little-endian float32, as OpenAI's clients ask for it by default."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
