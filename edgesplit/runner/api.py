"""The entry's OpenAI-compatible HTTP API: /v1/models, /v1/completions, /v1/chat/completions, /v1/embeddings; /healthz,
and /metrics for Prometheus.

Runs uvicorn in a thread of its own; hands requests to the worker and takes tokens from it. What it takes from an epoch
(limits, tokenizer, defaults) is a Front, exchanged as a whole when an epoch takes over.
Must not know: the ring, epochs, where the model runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .answers import Answer, Choice
from .apikeys import Keys
from .callers import Guard, Hearing
from .embeddings import CUT_SHORT, encode, read_input, reply
from .entry import Entry, Overloaded, Request
from .front import Front
from .metrics import Meter, Observed
from .sampling import Scored
from .seldom import Seldom
from .wishes import MAX_CHOICES, BadRequest, read_wish, several
from .worker import Worker

PATIENCE = 300.0  # seconds without a token after which a request is given up
MAX_BODY = 4 * 2**20  # bytes
MAX_BODY_IMAGES = 32 * 2**20  # with images in it, which base64 makes a third longer
STALLED = 30.0  # seconds without a token, though sequences run, after which the entry is not ready
HEALTHY = 10.0  # seconds a health check waits for the worker
GRACE = 2  # seconds answers under way have when the API closes
log = logging.getLogger("runner")
Events = asyncio.Queue[tuple[int, int | None, str | None, Scored | None]]  # index of the choice, and what emit() gets


class Failed(RuntimeError):
    """The answer ends here, with an HTTP status and an error of OpenAI's kind."""

    def __init__(self, message: str, status: int, kind: str = "server_error", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


_FAILED = {  # why a sequence ended that gave no answer
    "error": Failed("the model's logits are no numbers", 500),
    "misfit": Failed("the images do not fit the text around them", 400, "invalid_request_error", "messages"),
}


class Api:
    """`front` may be exchanged at any time; a request is answered with the one it began with."""

    def __init__(self, front: Front, entry: Entry, worker: Worker, deployment: str, keys: Keys) -> None:
        self.front = front
        self.place = (front.service.address, front.service.port)
        self._entry, self._worker, self._deployment, self._keys = entry, worker, deployment, keys
        self._meter = Meter(entry.report)
        entry.turned = self._meter.turned
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
            Route("/metrics", self._metrics),
        ]
        handlers: Any = {BadRequest: self._bad, Overloaded: self._overloaded, Failed: self._failed}
        app, grumble = Starlette(routes=routes, exception_handlers=handlers), Seldom()
        self._guard = Guard(app, self._keys, private=self.front.service.private, grumble=grumble)
        more: Any = {"http": Hearing(grumble).protocol, "ws": "none", "log_config": None, "access_log": False}
        config = uvicorn.Config(self._guard, lifespan="off", timeout_graceful_shutdown=GRACE, **more)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([sock],), name="api", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """When it returns, the port is free again."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=2 * GRACE)

    # --- errors ---

    async def _bad(self, _: HttpRequest, error: BadRequest) -> Response:
        self._meter.refused("refused")
        return JSONResponse(_object(error, "invalid_request_error", error.param), 400)

    async def _overloaded(self, _: HttpRequest, error: Overloaded) -> Response:
        self._meter.refused("overloaded")
        wait = str(max(1, math.ceil(error.seconds)))
        return JSONResponse(_object(error, "rate_limit_error"), 429, headers={"Retry-After": wait})

    async def _failed(self, _: HttpRequest, error: Failed) -> Response:
        return JSONResponse(_object(error, error.kind, error.param), error.status)

    # --- routes ---

    async def _metrics(self, _: HttpRequest) -> Response:
        return Response(self._meter.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, _: HttpRequest) -> Response:
        model = {"id": self.front.service.model, "object": "model", "created": 0, "owned_by": self._deployment}
        return JSONResponse({"object": "list", "data": [model]})

    async def _health(self, http: HttpRequest) -> Response:
        status, report = await self._state()
        told = {} if self._guard.refusal(http.scope) else report
        return JSONResponse({"status": status, **told}, 200 if status == "ok" else 503)

    async def _state(self) -> tuple[str, dict[str, Any]]:
        """In a word, and in figures."""
        try:  # through the worker: one that is stuck is not healthy
            report = await asyncio.wait_for(asyncio.wrap_future(self._worker.call(self._entry.report)), HEALTHY)
        except asyncio.TimeoutError:
            return "stuck", {**self._entry.report(), "serving": False}
        if not report["serving"]:
            return "waiting", report
        return "stalled" if report["running"] and (report["idle_s"] or 0) > STALLED else "ok", report

    async def _completions(self, http: HttpRequest) -> Response:
        body, front = await _body(http), self.front
        front.check_kind(encoder=False)
        prompts = several(body.get("prompt"), "prompt")
        read = [front.checked(front.encoded(text) if isinstance(text, str) else text) for text in prompts]
        wish = read_wish(body, front.base, front.service, max(map(len, read)), chat=False)
        if len(read) * wish.n > MAX_CHOICES:
            raise BadRequest(f"{len(read)} prompts with {wish.n} choices each are more than {MAX_CHOICES}", "prompt")
        return await self._respond(http, Answer.to(front, wish, read, {}))

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
        wish = read_wish(body, front.base, front.service, len(ids), chat=True)
        return await self._respond(http, Answer.to(front, wish, [front.checked(ids, inputs)], inputs))

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
            raise Failed(CUT_SHORT, 504) from None
        return JSONResponse(reply(body, front, hidden))

    async def _respond(self, http: HttpRequest, answer: Answer) -> Response:
        observed = self._meter.request()
        events = await self._submit(answer)
        if answer.wish.stream:
            return StreamingResponse(self._stream(answer, events, observed), media_type="text/event-stream")
        return await self._whole(http, answer, events, observed)

    # --- a request ---

    async def _submit(self, answer: Answer) -> Events:
        loop, events = asyncio.get_running_loop(), Events()
        wish = answer.wish
        stops = frozenset() if wish.ignore_eos else answer.front.stops

        def emit(index: int, token: int | None, end: str | None, scores: Scored | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server's loop has closed
                loop.call_soon_threadsafe(events.put_nowait, (index, token, end, scores))

        requests = [
            Request(
                choice.prompt, wish.max_tokens, choice.sampling, stops, partial(emit, choice.index), wish.logprobs,
                answer.inputs,
            )
            for choice in answer.choices
        ]  # fmt: skip
        numbers = await asyncio.wrap_future(self._worker.call(lambda: self._entry.submit(*requests)))
        for choice, number in zip(answer.choices, numbers, strict=True):
            choice.number = number
        return events

    async def _pieces(
        self, answer: Answer, events: Events, observed: Observed
    ) -> AsyncGenerator[tuple[Choice, str], None]:
        """(choice, text) as it becomes certain. Leaving early cancels what is under way. Raises Failed."""
        left = {choice.index: choice for choice in answer.choices}
        seconds = answer.front.service.deadline or math.inf
        deadline = time.monotonic() + seconds
        try:
            while left:
                patience = min(PATIENCE, deadline - time.monotonic())
                index, token, end, scores = await asyncio.wait_for(events.get(), patience)
                choice = left.get(index)
                if choice is None:
                    continue  # tokens behind a stop string
                if token is not None:
                    observed.token(index)
                if end in _FAILED:
                    raise _FAILED[end]
                yield choice, choice.finish(end or "stop") if token is None else choice.add(token, scores)
                if choice.end is not None:
                    del left[index]
                    self._worker.call(partial(self._entry.cancel, choice.number))
        except asyncio.TimeoutError:  # not the builtin TimeoutError before Python 3.11
            if time.monotonic() >= deadline:
                raise Failed(f"not done within {seconds:g} s, the plan's api.deadline", 504) from None
            raise Failed(f"no token for {PATIENCE:g} s; the ring is down", 504) from None
        finally:
            for choice in left.values():
                self._worker.call(partial(self._entry.cancel, choice.number))

    async def _whole(self, http: HttpRequest, answer: Answer, events: Events, observed: Observed) -> Response:
        texts = dict.fromkeys(range(len(answer.choices)), "")
        with observed:
            async with contextlib.aclosing(self._pieces(answer, events, observed)) as pieces:
                async for choice, text in pieces:
                    texts[choice.index] += text
                    if await http.is_disconnected():
                        return Response(status_code=499)  # nginx's code for a client that went
            observed.answered(answer.usage()["prompt_tokens"])
        return JSONResponse(answer.whole(texts))

    async def _stream(self, answer: Answer, events: Events, observed: Observed) -> AsyncIterator[str]:
        with observed:
            try:
                async with contextlib.aclosing(self._pieces(answer, events, observed)) as pieces:
                    async for choice, text in pieces:
                        if text or choice.end or answer.wish.return_token_ids:
                            yield _event(answer.chunk(choice, text))
            except Failed as error:
                observed.outcome = "failed"
                yield _event(_object(error, error.kind, error.param))
                return
            if answer.wish.include_usage:
                yield _event(answer.last())
            observed.answered(answer.usage()["prompt_tokens"])
            yield "data: [DONE]\n\n"


async def _body(http: HttpRequest, *, images: bool = False) -> dict[str, Any]:
    data, limit = bytearray(), MAX_BODY_IMAGES if images else MAX_BODY
    async for piece in http.stream():
        data += piece
        if len(data) > limit:
            raise BadRequest(f"a body of more than {limit} bytes", None)
    try:
        body = json.loads(data)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("the text has half a surrogate pair, which is no character: leave it out", None) from None
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON", None) from None
    if not isinstance(body, dict):
        raise BadRequest("the body is not a JSON object", None)
    return body


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _object(error: Exception, kind: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": kind, "param": param, "code": None}}
