"""What runners are told and given, without runners: keys, manifests; and waiting for threads."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from conftest import LOCALHOST

from edgesplit.broadcast.authority import create, issue
from edgesplit.runner.link import Identity
from edgesplit.runner.manifest import Manifest, Peer, Service, StagePlace

T = TypeVar("T")
NOW = datetime.datetime.now(datetime.timezone.utc)
SHAS = tuple(f"{number:064x}" for number in range(6))


def identities(folder: Path, *hosts: str, deployment: str = "tiny") -> dict[str, tuple[Identity, str]]:
    """host -> (its PEM files, the fingerprint of its certificate), all under one fresh authority."""
    secrets = create(deployment, NOW)
    made = {}
    for host in hosts:
        keys, place = issue(secrets, host, NOW), folder / "keys" / f"{deployment}-{host}"
        place.mkdir(parents=True)
        identity = Identity(place / "ca.pem", place / "host.pem", place / "host.key")
        identity.authority.write_text(keys.authority)
        identity.certificate.write_text(keys.certificate)
        identity.key.write_text(keys.key)
        made[host] = (identity, keys.fingerprint)
    return made


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
