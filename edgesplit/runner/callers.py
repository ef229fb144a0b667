"""Callers of the HTTP API: those without a key are refused, those that dawdle are hung up on.

Must not know: what is asked and answered, who has a key (apikeys.py does).
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .apikeys import MISSING, Keys
from .seldom import Seldom

PATIENCE = 10.0  # seconds a caller has for a request, and a second more for each SLOWEST bytes of it that came
SLOWEST = 16 * 2**10
WAITING = 128  # connections that may be heard at once; whoever has dawdled longest makes room for the next
FREE = "/healthz"  # answers without a key, in a word


class Guard:
    """Lets through who may ask. `private`: only this machine reaches the API. `refused` is told of others."""

    def __init__(self, app: ASGIApp, keys: Keys, *, private: bool, grumble: Seldom) -> None:
        self._app, self._keys, self._private, self._grumble = app, keys, private, grumble

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = self.refusal(scope)
        if not why or scope["path"] == FREE:
            await self._app(scope, receive, send)
            return
        self._grumble(f"the API refused {_who(scope.get('client'))}: {why}")
        code = None if why == MISSING else "invalid_api_key"
        error = {"message": why, "type": "invalid_request_error", "param": None, "code": code}
        await JSONResponse({"error": error}, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def refusal(self, scope: Scope) -> str:
        """Why this caller may not ask, "" where he may."""
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return self._keys.refusal(shown.decode("latin-1"), private=self._private)


class Hearing:
    """The connections whose request is still awaited, by the time they began to be; one per server."""

    def __init__(self, grumble: Seldom) -> None:
        self._grumble = grumble
        self._heard: dict[Caller, asyncio.TimerHandle] = {}

    def protocol(self, **settings: Any) -> Caller:
        """For uvicorn, in place of a protocol's class."""
        return Caller(self, **settings)

    def begin(self, caller: Caller, seconds: float) -> None:
        if len(self._heard) >= WAITING and caller not in self._heard:
            self._hang_up(next(iter(self._heard)), "others are waiting")
        self._heard[caller] = caller.loop.call_later(seconds, self._look, caller)

    def end(self, caller: Caller) -> None:
        if (timer := self._heard.pop(caller, None)) is not None:
            timer.cancel()

    def _look(self, caller: Caller) -> None:
        left = caller.allowed - caller.loop.time()
        if left > 0:
            self.begin(caller, left)
        else:
            self._hang_up(caller, "its request did not come")

    def _hang_up(self, caller: Caller, why: str) -> None:
        self.end(caller)
        self._grumble(f"the API hung up on {_who(caller.client)}: {why}")
        caller.transport.abort()


class Caller(H11Protocol):
    """A connection. It is heard from its beginning, or the end of an answer, until a request is here, body and all."""

    def __init__(self, hearing: Hearing, **settings: Any) -> None:
        super().__init__(**settings)
        self._hearing, self._heard, self.allowed = hearing, False, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._follow()

    def data_received(self, data: bytes) -> None:
        self.allowed += len(data) / SLOWEST
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._hearing.end(self)

    def _follow(self) -> None:
        cycle = self.cycle
        heard = cycle is None or cycle.response_complete or cycle.more_body
        if heard == self._heard:
            return
        self._heard = heard
        if heard:
            self.allowed = self.loop.time() + PATIENCE
            self._hearing.begin(self, PATIENCE)
        else:
            self._hearing.end(self)


def _who(client: tuple[str, int] | None) -> str:
    return client[0] if client else "a caller"
