"""Rings within one process: keys, manifests and cores as a controller would provide them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from conftest import LOCALHOST, free_port

from edgesplit.broadcast.authority import create, issue
from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import Cut, cut
from edgesplit.runner.core import Core
from edgesplit.runner.entry import Entry, Request
from edgesplit.runner.link import Identity
from edgesplit.runner.manifest import Manifest, Peer, Service, StagePlace
from edgesplit.runner.sampling import Sampling
from edgesplit.runner.store import Store

T = TypeVar("T")
torch.set_num_threads(1)  # the barriers of two threads spin: tests would crawl whenever another process has a core
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
        "service": Service(LOCALHOST, 8000, "tiny", concurrency=2, max_context=256, prefill_chunk=4),
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


@dataclasses.dataclass(frozen=True)
class Cargo:
    """A checkpoint as it lies on the hosts: folders `shards` and `files`."""

    folder: Path
    cut: Cut


def ship(model: Path, folder: Path) -> Cargo:
    made = cut(open_checkpoint(model, str(model), "float32"), folder / "hashes.json")
    (folder / "shards").mkdir()
    (folder / "files").mkdir()
    for sha, shard in made.all().items():
        (folder / "shards" / f"{sha}.safetensors").write_bytes(b"".join(shard.chunks()))
    for sha, file in made.files.values():
        (folder / "files" / sha).write_bytes(file.read_bytes())
    return Cargo(folder, made)


class Rig:
    """Runners of some hosts in this process, with everything a checkpoint needs in their folders."""

    def __init__(self, folder: Path, cargo: Cargo, *hosts: str) -> None:
        self.cut = cargo.cut
        self.api = free_port()
        self.peers: dict[str, Peer] = {}
        self.cores: dict[str, Core] = {}
        for host, (identity, fingerprint) in identities(folder, *hosts).items():
            place = folder / host
            place.mkdir()
            for name in ("shards", "files"):
                (place / name).symlink_to(cargo.folder / name)
            self.peers[host] = Peer(LOCALHOST, free_port(), fingerprint)
            self.cores[host] = Core(host, Store(place), identity, "cpu")

    def manifest(self, epoch: int, *placement: str, **service: Any) -> Manifest:
        limits = {"concurrency": 2, "max_context": 256, "prefill_chunk": 4, **service}
        return manifest(
            *placement,
            epoch=epoch,
            peers={host: self.peers[host] for host in placement},
            shards=tuple(shard.sha256 for shard in self.cut.blocks),
            common=self.cut.common.sha256,
            files={name: sha for name, (sha, _) in self.cut.files.items()},
            service=Service(LOCALHOST, self.api, "tiny", **limits),
        )

    def up(self, epoch: int, *placement: str, **service: Any) -> None:
        """As a controller would: prepare all, link all, try, commit, retire what was before."""
        wanted = self.manifest(epoch, *placement, **service)
        hosts = [self.cores[host] for host in dict.fromkeys(placement)]
        for core in hosts:
            core.prepare(wanted)
        for core in hosts:
            core.link(epoch, 5.0)
        hosts[0].trial(epoch, 5.0)
        for core in hosts:
            core.commit(epoch, f"the manifest of epoch {epoch}")
        for core in self.cores.values():
            for old in core.status()["epochs"]:
                if int(old) != epoch:
                    core.retire(int(old))

    @property
    def entry(self) -> Entry:
        entry = self.cores["desk"]._entry
        assert entry is not None
        return entry

    def in_worker(self, act: Callable[[], T], host: str = "desk") -> T:
        return self.cores[host]._worker.call(act).result(10)

    def submit(self, prompt: Sequence[int], count: int, sampling: Sampling | None = None) -> Answer:
        answer = Answer()
        request = Request(tuple(prompt), count, sampling or Sampling(), frozenset(), answer.emit)
        answer.number = self.in_worker(lambda: self.entry.submit(request))
        return answer

    def state(self, host: str, epoch: int) -> str:
        return str(self.cores[host].status()["epochs"].get(str(epoch), {}).get("state"))

    def sequences(self, epoch: int) -> list[int]:
        """How many each host of the ring holds caches of."""
        reports = [core.status()["epochs"].get(str(epoch)) for core in self.cores.values()]
        return [report["sequences"] for report in reports if report is not None]

    def close(self) -> None:
        for core in self.cores.values():
            core.close()


class Answer:
    """What the entry emits for one request."""

    def __init__(self) -> None:
        self.number = 0
        self.tokens: list[int] = []
        self.end: str | None = None

    def emit(self, token: int | None, end: str | None, _logprob: float | None) -> None:
        if token is not None:
            self.tokens.append(token)
        self.end = end

    def whole(self) -> list[int]:
        eventually(lambda: self.end)
        return self.tokens


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
