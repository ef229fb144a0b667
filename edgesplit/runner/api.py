"""The entry's OpenAI-compatible HTTP API: /v1/models, /v1/completions, /v1/chat/completions, /v1/embeddings, /healthz.

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
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .embeddings import CUT_SHORT, encode, read_input, reply
from .entry import Entry, Overloaded, Request
from .front import Front, Inputs
from .text import Detokenizer
from .wishes import BadRequest, Wish, read_wish
from .worker import Worker

PATIENCE = 300.0  # seconds without a token after which a request is given up
MAX_BODY = 4 * 2**20  # bytes
MAX_BODY_IMAGES = 32 * 2**20  # with images in it, which base64 makes a third longer
HEALTHY = 10.0  # seconds a health check waits for the worker
GRACE = 2  # seconds answers under way have when the API closes
log = logging.getLogger("runner")


@dataclass
class Answer:
    """One request on its way: what the worker says arrives in `events`, on the server's loop."""

    front: Front
    wish: Wish
    prompt: tuple[int, ...]
    inputs: Inputs
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
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
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
        front.check_kind(encoder=False)
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            ids = front.encoded(prompt)
        elif isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            ids = prompt
        else:
            raise BadRequest("prompt must be a string or a list of token ids (one prompt per request)", "prompt")
        return await self._respond(http, _answer(front, body, ids, {}, chat=False))

    async def _chat(self, http: HttpRequest) -> Response:
        front = self.front
        body = await _body(http, images=front.images is not None)
        front.check_kind(encoder=False)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
            raise BadRequest("messages must be a list of {role, content}", "messages")
        tools = body.get("tools")
        if tools is not None and (not isinstance(tools, list) or not all(isinstance(item, dict) for item in tools)):
            raise BadRequest("tools must be a list of objects", "tools")
        if front.images is None:
            ids, inputs = front.chat(messages, tools)
        else:  # images take their time, and others wait for their tokens
            ids, inputs = await asyncio.to_thread(front.chat, messages, tools)
        return await self._respond(http, _answer(front, body, ids, inputs, chat=True))

    async def _embeddings(self, http: HttpRequest) -> Response:
        front = self.front
        body = await _body(http, images=front.eyes is not None)
        front.check_kind(encoder=True)
        if front.eyes is None:
            given = read_input(body, front)
        else:  # images take their time, and others wait for their vectors
            given = await asyncio.to_thread(read_input, body, front)
        try:
            hidden = await asyncio.wait_for(encode(given, front, self._entry, self._worker), PATIENCE)
        except asyncio.TimeoutError:  # not the builtin TimeoutError before Python 3.11
            return _error(CUT_SHORT, "server_error", 504)
        return JSONResponse(reply(body, front, hidden))

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
        request = Request(answer.prompt, wish.max_tokens, wish.sampling, stops, emit, wish.logprobs, answer.inputs)
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
        if end == "misfit":
            return _error("the images do not fit the text around them", "invalid_request_error", 400, "messages")
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


def _answer(front: Front, body: dict[str, Any], ids: list[int], inputs: Inputs, *, chat: bool) -> Answer:
    """What the request will get. Raises BadRequest."""
    wish = read_wish(body, front.base, front.service, len(ids), chat=chat)
    name = f"{'chat' if chat else ''}cmpl-{uuid.uuid4().hex}"
    return Answer(front, wish, front.checked(ids, inputs), inputs, name=name)


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


async def _body(http: HttpRequest, *, images: bool = False) -> dict[str, Any]:
    data, limit = bytearray(), MAX_BODY_IMAGES if images else MAX_BODY
    async for piece in http.stream():
        data += piece
        if len(data) > limit:
            raise BadRequest(f"a body of more than {limit} bytes", None)
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
