"""The clients of a run: a process in the entry's network, which asks the API and notes when each token comes.

It reads one JSON object from standard input, and writes a line of JSON per request as it ends.
Must not know: the hosts, what is done to them, the right answers.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgesplit.evaluation.demand import Ask
from edgesplit.evaluation.record import Answer
from edgesplit.lab.namespaces import enter_network
from edgesplit.values import Value

PRIORITY = -10  # as the hosts of the lab: a client of its own machine would not wait for this one's work
SLACK = 0.05  # seconds between two looks of a client that is not wanted at the moment


class Task(Value):
    """`start`: the run's first moment, by this machine's monotonic clock. `asks`: of an open loop; `turns`: of a closed
    one, by client; `phases`: from when, how many of these clients ask."""

    network: str
    address: str
    port: int
    start: float
    seconds: float
    patience: float
    prompts: tuple[tuple[int, ...], ...]
    asks: tuple[Ask, ...]
    turns: tuple[tuple[Ask, ...], ...] = ()
    phases: tuple[tuple[float, float], ...] = ()


@dataclass
class Clients:
    task: Task
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        return time.monotonic() - self.task.start

    def run(self) -> None:
        for thread in [*self._open(), *self._closed()]:
            thread.join()

    def _open(self) -> list[threading.Thread]:
        threads = []
        for ask in self.task.asks:
            time.sleep(max(0.0, (ask.at or 0.0) - self.now()))
            threads.append(_thread(self._ask, ask))
        return threads

    def _closed(self) -> list[threading.Thread]:
        time.sleep(max(0.0, -self.now()))
        return [_thread(self._client, number) for number in range(len(self.task.turns))]

    def _client(self, number: int) -> None:
        for ask in itertools.cycle(self.task.turns[number]):
            while self.now() < self.task.seconds and number >= self._wanted():
                time.sleep(SLACK)
            if self.now() >= self.task.seconds:
                return
            self._ask(ask)

    def _wanted(self) -> float:
        return [amount for begin, amount in self.task.phases if begin <= self.now()][-1]

    def _ask(self, ask: Ask) -> None:
        asked = self.now()
        times: list[float] = []
        tokens: list[int] = []
        outcome = "the answer broke off"
        try:
            for choice in self._stream(ask, time.monotonic() + self.task.patience):
                times.append(self.now())
                if choice["finish_reason"]:
                    tokens, outcome = choice["token_ids"], ""
        except TimeoutError:
            outcome = "the client gave up"
        except (OSError, http.client.HTTPException, Refused) as error:
            outcome = f"{error or type(error).__name__}"
        except (ValueError, LookupError, TypeError) as error:
            outcome = f"no answer of an API: {error!r}"
        if len(times) == len(tokens) + 1:  # the end may come in a line of its own
            times.pop()
        answer = Answer(
            asked=asked, prompt=ask.prompt, wanted=ask.wanted, times=tuple(times), tokens=tuple(tokens),
            outcome=outcome, ended=self.now(),
        )  # fmt: skip
        with self._lock:
            print(answer.model_dump_json(), flush=True)

    def _stream(self, ask: Ask, deadline: float) -> Iterator[dict[str, Any]]:
        """Raises Refused, TimeoutError and what http.client raises."""
        body = {"prompt": self.task.prompts[ask.prompt], "max_tokens": ask.wanted, "temperature": 0, "stream": True,
                "ignore_eos": True, "return_token_ids": True}  # fmt: skip
        connection = http.client.HTTPConnection(self.task.address, self.task.port, timeout=_left(deadline))
        with contextlib.closing(connection):
            connection.connect()
            sock: socket.socket = connection.sock
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                if response.status != 200:
                    raise Refused(f"refused with {response.status}")
                for line in response:
                    data = line.decode().removeprefix("data: ").strip()
                    if data and data != "[DONE]":
                        yield _choice(json.loads(data))
                    sock.settimeout(_left(deadline))


class Refused(RuntimeError):
    """The API answered, but not with what was asked."""


def _choice(event: dict[str, Any]) -> dict[str, Any]:
    if "error" in event:
        raise Refused(str(event["error"]["message"]))
    return dict(event["choices"][0])


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _thread(target: Any, argument: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=(argument,), daemon=True)
    thread.start()
    return thread


def main() -> None:
    task = Task.model_validate_json(sys.stdin.readline())
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    enter_network(task.network)
    Clients(task).run()


if __name__ == "__main__":
    main()
