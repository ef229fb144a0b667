"""The entry's OpenAI-compatible HTTP API: /v1/models, /v1/completions, /v1/chat/completions, /healthz.

Runs uvicorn in a thread of its own; hands requests to the worker and takes tokens from it. What it takes from an epoch
(limits, tokenizer, defaults) is a Front, exchanged as a whole when an epoch takes over.
Must not know: the ring, epochs, where the model runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import GenerationConfig

from .anatomy import read_config
from .entry import Entry, Overloaded, Request
from .generation import ignored, refused
from .manifest import Service
from .sampling import Sampler, Sampling, defaults, stop_tokens
from .text import Detokenizer
from .tokens import ChatError, chat_ids, load_tokenizer
from .wishes import BadRequest, Wish, read_wish
from .worker import Worker

PATIENCE = 300.0  # seconds without a token after which a request is given up
MAX_BODY = 4 * 2**20  # bytes
HEALTHY = 10.0  # seconds a health check waits for the worker
GRACE = 2  # seconds answers under way have when the API closes
log = logging.getLogger("runner")


@dataclass(frozen=True)
class Front:
    """What requests are read and answered with. `base`: the checkpoint's sampling; `vocabulary`: ids that exist."""

    service: Service
    tokenizer: Any
    base: Sampling
    stops: frozenset[int]
    vocabulary: int

    @classmethod
    def load(cls, service: Service, folder: Path, *, trusted: bool = False) -> Front:
        """From a folder with the checkpoint's side files. `trusted`: its own code may run.

        Raises OSError, ValueError.
        """
        tokenizer = load_tokenizer(folder, trusted=trusted)
        text = read_config(str(folder), trust_remote_code=trusted).get_text_config(decoder=True)
        vocabulary = int(text.vocab_size)
        base, stops = _rules(folder, tokenizer.eos_token_id, vocabulary)
        return cls(service, tokenizer, base, stops, vocabulary)

    def encoded(self, text: str) -> list[int]:
        """Raises BadRequest."""
        try:
            return list(self.tokenizer(text)["input_ids"])
        except ChatError as error:
            raise BadRequest(str(error), "prompt") from error

    def checked(self, ids: list[int]) -> tuple[int, ...]:
        """Raises BadRequest: an id without an embedding would break the ring."""
        if not ids:
            raise BadRequest("the prompt is empty", "prompt")
        if max(ids) >= self.vocabulary or min(ids) < 0:
            raise BadRequest(f"token ids are 0 to {self.vocabulary - 1}", "prompt")
        return tuple(ids)


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


@dataclass
class Answer:
    """One request on its way: what the worker says arrives in `events`, on the server's loop."""

    front: Front
    wish: Wish
    prompt: tuple[int, ...]
    events: asyncio.Queue[tuple[int | None, str | None, float | None]] = field(default_factory=asyncio.Queue)
    number: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    told: int = 0  # tokens whose log-probabilities were given out
    name: str = ""
    created: int = field(default_factory=lambda: int(time.time()))


class Api:
    """`front` may be exchanged at any time; a request is answered with the one it began with."""

    def __init__(self, front: Front, entry: Entry, worker: Worker, deployment: str) -> None:
        self.front = front
        self.place = (front.service.address, front.service.port)
        self._entry, self._worker, self._deployment = entry, worker, deployment
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Bind now (OSError when the port is taken), serve in a thread."""
        sock = socket.create_server(self.place)
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/healthz", self._health),
        ]
        app = Starlette(routes=routes, exception_handlers={BadRequest: _bad, Overloaded: _overloaded})
        config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=GRACE)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([sock],), name="api", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """When it returns, the port is free again."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=2 * GRACE)

    # --- routes ---

    async def _models(self, _: HttpRequest) -> Response:
        model = {"id": self.front.service.model, "object": "model", "created": 0, "owned_by": self._deployment}
        return JSONResponse({"object": "list", "data": [model]})

    async def _health(self, _: HttpRequest) -> Response:
        try:  # through the worker: one that is stuck is not healthy
            report = await asyncio.wait_for(asyncio.wrap_future(self._worker.call(self._entry.report)), HEALTHY)
        except asyncio.TimeoutError:
            return JSONResponse({"status": "stuck", **self._entry.report(), "serving": False}, 503)
        serving = bool(report["serving"])
        return JSONResponse({"status": "ok" if serving else "waiting", **report}, 200 if serving else 503)

    async def _completions(self, http: HttpRequest) -> Response:
        body, front = await _body(http), self.front
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            ids = front.encoded(prompt)
        elif isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            ids = prompt
        else:
            raise BadRequest("prompt must be a string or a list of token ids (one prompt per request)", "prompt")
        return await self._respond(http, _answer(front, body, ids, chat=False))

    async def _chat(self, http: HttpRequest) -> Response:
        body, front = await _body(http), self.front
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
            raise BadRequest("messages must be a list of {role, content}", "messages")
        tools = body.get("tools")
        if tools is not None and (not isinstance(tools, list) or not all(isinstance(item, dict) for item in tools)):
            raise BadRequest("tools must be a list of objects", "tools")
        try:
            ids = chat_ids(front.tokenizer, messages, tools)
        except ChatError as error:
            raise BadRequest(str(error), "messages") from error
        return await self._respond(http, _answer(front, body, ids, chat=True))

    async def _respond(self, http: HttpRequest, answer: Answer) -> Response:
        await self._submit(answer)
        if answer.wish.stream:
            return StreamingResponse(self._stream(answer), media_type="text/event-stream")
        return await self._whole(http, answer)

    # --- a request ---

    async def _submit(self, answer: Answer) -> None:
        loop = asyncio.get_running_loop()

        def emit(token: int | None, end: str | None, logprob: float | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server's loop has closed
                loop.call_soon_threadsafe(answer.events.put_nowait, (token, end, logprob))

        wish = answer.wish
        stops = frozenset() if wish.ignore_eos else answer.front.stops
        request = Request(answer.prompt, wish.max_tokens, wish.sampling, stops, emit, wish.logprobs)
        future: Future[int] = self._worker.call(lambda: self._entry.submit(request))
        answer.number = await asyncio.wrap_future(future)

    async def _pieces(self, answer: Answer) -> AsyncGenerator[tuple[str, str | None], None]:
        """(text, None) as it becomes certain, then ("", why it ended). Leaving early cancels the sequence."""
        text = Detokenizer(answer.front.tokenizer, answer.wish.stop)
        done = False
        try:
            while not done:
                token, end, logprob = await asyncio.wait_for(answer.events.get(), PATIENCE)
                if token is None:
                    done = True
                    yield text.end(), None
                    yield "", "stop" if text.stopped else end
                    return
                answer.tokens.append(token)
                answer.logprobs.append(logprob)
                yield text.add(token), None
                if text.stopped:
                    yield "", "stop"
                    return
        except asyncio.TimeoutError:  # not the builtin TimeoutError before Python 3.11
            yield "", "timeout"
        finally:
            if not done:
                self._worker.call(lambda: self._entry.cancel(answer.number))

    async def _whole(self, http: HttpRequest, answer: Answer) -> Response:
        parts: list[str] = []
        end = None
        async with contextlib.aclosing(self._pieces(answer)) as pieces:
            async for text, why in pieces:
                parts.append(text)
                end = why
                if await http.is_disconnected():
                    return Response(status_code=499)  # nginx's code for a client that went
        if end == "timeout":
            return _error(f"no token for {PATIENCE:g} s; the ring is down", "server_error", 504)
        if end == "error":
            return _error("the model's logits are no numbers", "server_error", 500)
        return JSONResponse(self._object(answer, "".join(parts), end, whole=True))

    async def _stream(self, answer: Answer) -> AsyncIterator[str]:
        async with contextlib.aclosing(self._pieces(answer)) as pieces:
            async for text, end in pieces:
                if text or end or answer.wish.return_token_ids:
                    yield f"data: {json.dumps(self._object(answer, text, end, whole=False))}\n\n"
        if answer.wish.include_usage:
            usage = {**self._object(answer, "", None, whole=False), "choices": [], "usage": self._usage(answer)}
            yield f"data: {json.dumps(usage)}\n\n"
        yield "data: [DONE]\n\n"

    def _usage(self, answer: Answer) -> dict[str, int]:
        prompt, new = len(answer.prompt), len(answer.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _object(self, answer: Answer, text: str, end: str | None, *, whole: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": end, "logprobs": _logprobs(answer)}
        if answer.wish.chat:
            choice["message" if whole else "delta"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if answer.wish.return_token_ids and (whole or end is not None):
            choice["token_ids"] = answer.tokens
            choice["prompt_token_ids"] = list(answer.prompt)
        kind = ("chat.completion" if whole else "chat.completion.chunk") if answer.wish.chat else "text_completion"
        reply = {"id": answer.name, "object": kind, "created": answer.created, "model": answer.front.service.model}
        reply["choices"] = [choice]
        return {**reply, "usage": self._usage(answer)} if whole else reply


def _answer(front: Front, body: dict[str, Any], ids: list[int], *, chat: bool) -> Answer:
    """What the request will get. Raises BadRequest."""
    wish = read_wish(body, front.base, front.service, len(ids), chat=chat)
    return Answer(front, wish, front.checked(ids), name=f"{'chat' if chat else ''}cmpl-{uuid.uuid4().hex}")


def _logprobs(answer: Answer) -> dict[str, Any] | None:
    """Of the tokens since it was last asked, in the form of either API."""
    if not answer.wish.logprobs:
        return None
    new = list(zip(answer.tokens, answer.logprobs, strict=True))[answer.told :]
    answer.told = len(answer.tokens)
    texts = [answer.front.tokenizer.decode([token]) for token, _ in new]
    values = [value for _, value in new]
    if not answer.wish.chat:
        return {"tokens": texts, "token_logprobs": values}
    pairs = zip(texts, values, strict=True)
    return {"content": [{"token": text, "logprob": value, "top_logprobs": []} for text, value in pairs]}


async def _body(http: HttpRequest) -> dict[str, Any]:
    data = bytearray()
    async for piece in http.stream():
        data += piece
        if len(data) > MAX_BODY:
            raise BadRequest(f"a body of more than {MAX_BODY} bytes", None)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON", None) from None
    if not isinstance(body, dict):
        raise BadRequest("the body is not a JSON object", None)
    return body


def _error(message: str, kind: str, status: int, param: str | None = None) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 429 else None
    body = {"error": {"message": message, "type": kind, "param": param, "code": None}}
    return JSONResponse(body, status, headers=headers)


async def _bad(_: HttpRequest, error: Exception) -> Response:
    return _error(str(error), "invalid_request_error", 400, getattr(error, "param", None))


async def _overloaded(_: HttpRequest, error: Exception) -> Response:
    return _error(str(error), "rate_limit_error", 429)
