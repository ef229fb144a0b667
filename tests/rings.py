"""Rings within one process: keys, manifests and cores as a controller would provide them."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from conftest import LOCALHOST, free_port
from links import eventually, identities, manifest
from sealed import known, sealed

from edgesplit.model.checkpoint import open_checkpoint
from edgesplit.model.shards import Cut, cut
from edgesplit.runner.core import Core
from edgesplit.runner.entry import Entry, Request
from edgesplit.runner.identity import Identity
from edgesplit.runner.manifest import Manifest, Peer, Service
from edgesplit.runner.sampling import Sampling
from edgesplit.runner.store import Store

T = TypeVar("T")
EVERYBODY: Mapping[str, int] = MappingProxyType({})
torch.set_num_threads(1)  # the barriers of two threads spin: tests would crawl whenever another process has a core


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
        (folder / "shards" / f"{sha}.sealed").write_bytes(sealed(b"".join(shard.chunks()), sha))
    for sha, file in made.files.values():
        (folder / "files" / sha).write_bytes(file.read_bytes())
    return Cargo(folder, made)


class Rig:
    """Runners of some hosts in this process, with everything a checkpoint needs in their folders."""

    def __init__(self, folder: Path, cargo: Cargo, *hosts: str) -> None:
        self.cut = cargo.cut
        self.api = free_port()
        self.ports = {host: free_port() for host in hosts}
        self.cores: dict[str, Core] = {}
        for host in hosts:
            place = folder / host
            place.mkdir()
            for name in ("shards", "files"):
                (place / name).symlink_to(cargo.folder / name)
            self.cores[host] = Core(host, Store(place), "cpu")

    @cache  # noqa: B019 - it lives as long as a test
    def identities(self, epoch: int) -> dict[str, Identity]:  # noqa: ARG002 - each has its own
        return identities(*self.cores)

    def peer(self, host: str, epoch: int) -> Peer:
        return Peer(LOCALHOST, self.ports[host], self.identities(epoch)[host].fingerprint)

    def manifest(self, epoch: int, *placement: str, **service: Any) -> Manifest:
        limits = {"concurrency": 2, "max_context": 256, "prefill_chunk": 4, "decode_batch": 8, **service}
        return manifest(
            *placement,
            epoch=epoch,
            peers={host: self.peer(host, epoch) for host in placement},
            shards=tuple(shard.sha256 for shard in self.cut.blocks),
            common=self.cut.common.sha256,
            files={name: sha for name, (sha, _) in self.cut.files.items()},
            service=Service(LOCALHOST, self.api, "tiny", **limits),
        )

    def up(self, epoch: int, *placement: str, astray: Mapping[str, int] = EVERYBODY, **service: Any) -> None:
        """As a controller would: prepare all, link all, try, commit, retire what was before. `astray`: host -> the port
        at which the entry thinks it is."""
        wanted = self.manifest(epoch, *placement, **service)
        hosts = [self.cores[host] for host in dict.fromkeys(placement)]
        led = {host: dataclasses.replace(wanted.peers[host], port=port) for host, port in astray.items()}
        for core in hosts:
            told = wanted.peers | led if core is hosts[0] else wanted.peers
            self.prepare(core, dataclasses.replace(wanted, peers=told))
        for core in hosts:
            core.link(epoch, 5.0)
        hosts[0].trial(epoch, 5.0)
        for core in hosts:
            core.commit(epoch, f"the manifest of epoch {epoch}")
        for core in self.cores.values():
            for old in core.status()["epochs"]:
                if int(old) != epoch:
                    core.retire(int(old))

    def prepare(self, core: Core, wanted: Manifest) -> dict[str, Any]:
        return core.prepare(*known(wanted), self.identities(wanted.epoch)[core.host])

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
        (answer.number,) = self.in_worker(lambda: self.entry.submit(request))
        return answer

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """To the API. Nothing is left open whatever happens: a socket would be blamed on the test that is running when
        the garbage collector finds it."""
        connection = http.client.HTTPConnection(LOCALHOST, self.api, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body))
            with connection.getresponse() as response:
                return response.status, json.loads(response.read())

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
