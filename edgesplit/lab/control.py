"""The client of the switch's socket.

Must not know: what the acts mean.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edgesplit.errors import EdgesplitError

SECONDS = 10.0  # the switch answers within a millisecond; one that is frozen never does
MESSAGE = 2**20  # bytes of a message at most
SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>: room for one message; the usual limit is a fifth of it

Act = dict[str, Any]


class SwitchGone(EdgesplitError):
    pass


class SwitchClient:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, MESSAGE)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise _gone(error) from error

    def ask(self, acts: Sequence[Act]) -> list[Any]:
        """Carried out one after another, before another frame is passed on. Raises EdgesplitError."""
        try:
            self._socket.send(json.dumps(acts).encode())
            answer = json.loads(self._socket.recv(MESSAGE) or "{}")
        except (OSError, ValueError) as error:
            raise _gone(error) from error
        if isinstance(answer, list):
            return answer
        if "error" in answer:
            raise EdgesplitError(f"the lab's switch: {answer['error']}")
        raise _gone(ConnectionError("it hung up"))

    def __enter__(self) -> SwitchClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def _gone(error: Exception) -> SwitchGone:
    return SwitchGone(
        f"the lab's switch does not answer: {error}", "its hosts cannot be reached: edgesplit lab down, then up"
    )
