"""What runners are told and given, without runners: keys, manifests; and waiting for threads."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from conftest import LOCALHOST

from edgesplit.broadcast.authority import Validity, issue, validity
from edgesplit.runner.identity import Identity, identity_of
from edgesplit.runner.manifest import Manifest, Peer, Service, StagePlace

T = TypeVar("T")
NOW = datetime.datetime.now(datetime.timezone.utc)
SHAS = tuple(f"{number:064x}" for number in range(6))


def identities(*hosts: str, valid: Validity | None = None) -> dict[str, Identity]:
    """Of hosts of one epoch, under one fresh authority."""
    keys = issue("tiny", hosts, valid or validity(NOW, ()))
    return {host: identity_of(one.told()) for host, one in keys.items()}


def manifest(*placement: str, **changes: Any) -> Manifest:
    """`placement`: the host of each of six blocks."""
    placement = placement or ("desk", "desk", "shelf", "shelf", "attic", "desk")
    hosts = dict.fromkeys(placement)
    values: dict[str, Any] = {
        "deployment": "tiny",
        "epoch": 1,
        "dtype": "float32",
        "stages": places(placement),
        "peers": {host: Peer(LOCALHOST, 7000 + number, SHAS[number]) for number, host in enumerate(hosts)},
        "shards": SHAS,
        "common": SHAS[-1],
        "files": {"config.json": SHAS[0]},
        "tied": False,
        "limit": 2**20,
        "service": Service(LOCALHOST, 8000, "tiny", concurrency=2, max_context=256, prefill_chunk=4, decode_batch=8),
        "split": {},
    }
    return Manifest(**{**values, **changes})


def places(placement: Sequence[str]) -> tuple[StagePlace, ...]:
    stages: list[StagePlace] = []
    for block, host in enumerate(placement):
        if stages and stages[-1].host == host:
            stages[-1] = dataclasses.replace(stages[-1], last=block)
        else:
            stages.append(StagePlace(host, block, block))
    return tuple(stages)


@contextlib.contextmanager
def changing(port: int) -> Iterator[tuple[int, threading.Event]]:
    """Whoever calls this port is passed on to that one; once the event is set, with a bit changed in what he says."""
    change = threading.Event()

    def carry(source: socket.socket, target: socket.socket, *, forth: bool) -> None:
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(2**16)):
                data[-1] ^= forth and change.is_set()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server((LOCALHOST, 0)))
        threads: list[threading.Thread] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near = stack.enter_context(server.accept()[0])
                    far = stack.enter_context(socket.create_connection((LOCALHOST, port)))
                    for source, target in ((near, far), (far, near)):
                        thread = threading.Thread(target=carry, args=(source, target), kwargs={"forth": source is near})
                        threads.append(thread)
                        thread.start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield server.getsockname()[1], change
        finally:
            server.shutdown(socket.SHUT_RDWR)
            accepting.join(5)
    for thread in threads:
        thread.join(5)


def eventually(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for a condition, briefly and often; its value."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
    return value


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """Whatever runs inside must have ended its threads soon after."""
    before = set(threading.enumerate())
    yield
    eventually(lambda: set(threading.enumerate()) <= before)
