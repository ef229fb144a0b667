"""A command that goes on, on a channel of an SSH connection: what it prints, as it comes.

Must not know: how the connection was made, what its errors mean (`border` does).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from edgesplit.hosts.lines import GOODBYE, Lines

if TYPE_CHECKING:
    import paramiko


class Exchange(Protocol):
    """A command under way; ssh.py has it."""

    def finish(self) -> int: ...

    def close(self) -> None: ...


class SshLines(Lines):
    """A command that goes on, on a channel that is its own."""

    def __init__(
        self,
        channel: paramiko.Channel,
        exchange: Exchange,
        border: Callable[[], AbstractContextManager[None]],
        failed: Callable[[int, bytes], Exception],
    ) -> None:
        super().__init__()
        self._channel, self._exchange, self._border, self._failed = channel, exchange, border, failed

    def close(self) -> None:
        super().close()
        self._exchange.close()

    def _read(self) -> bytes:
        with self._border():
            return self._channel.recv(1 << 16)

    def _end(self, *, judge: bool) -> None:
        try:
            if judge:
                with self._border():
                    if not self._channel.status_event.wait(GOODBYE):
                        raise TimeoutError
                    status = self._exchange.finish()
                if status:
                    raise self._failed(status, self._channel.recv_stderr(1 << 16))
        finally:
            self.close()
