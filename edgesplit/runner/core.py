"""What a runner does when it is told to: prepare an epoch, link it, try it, commit it, retire it.

Must not know: how commands arrive and are proven genuine (control.py), nor HTTP (api.py).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import socket
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from .api import Api
from .entry import Entry, chunks
from .link import Call, Identity, Listener, Sender, connect
from .manifest import Manifest, StagePlace
from .ring import Ring
from .scheduler import Work
from .stage import Stage
from .state import Event, State
from .store import Store
from .wire import Kind, Message
from .worker import Worker

TRIAL = 0  # the sequence number of a trial; requests count from 1
log = logging.getLogger("runner")


class CoreError(RuntimeError):
    """The command cannot be carried out now; nothing has changed."""


class Core:
    """One runner. Public methods are called from the control thread, one at a time."""

    def __init__(self, host: str, store: Store, identity: Identity, device: str) -> None:
        self.host, self.device = host, device
        self.store, self._identity = store, identity
        self._client = identity.context(server=False)
        self._worker = Worker(self._execute)
        self._rings: dict[int, Ring] = {}
        self._listener: Listener | None = None
        self._port: tuple[str, int] | None = None
        self._entry: Entry | None = None
        self._api: Api | None = None
        self._serving: int | None = None
        self._trials: dict[int, Future[int]] = {}
        self._worker.start()

    # --- commands ---

    def prepare(self, manifest: Manifest) -> dict[str, Any]:
        """Load this host's stages of a new epoch beside the one that serves."""
        if manifest.epoch in self._rings:
            raise CoreError(f"epoch {manifest.epoch} is here already")
        places = manifest.places(self.host)
        if not places:
            raise CoreError(f"{self.host} has no part in epoch {manifest.epoch}")
        self._listen(manifest)
        if self.host == manifest.entry:
            self._open_api(manifest)
        start = time.monotonic()
        try:
            stages = {number: self._stage(manifest, number, place) for number, place in places.items()}
        except BaseException:
            self.store.forget_stages(manifest.epoch)
            self._close_unused_api()
            raise
        ring = Ring(manifest, self.host, stages, self._worker)
        ring.sampled = self._trial_over
        ring.broken = lambda: self._trial_broken(ring)
        self._in_worker(lambda: self._welcome(ring))
        return {"seconds": time.monotonic() - start, "rss": rss()}

    def link(self, epoch: int, timeout: float) -> dict[str, Any]:
        """Call the next hosts of the ring; they are READY, or will be before the timeout."""
        ring = self._ring(epoch)
        deadline = time.monotonic() + timeout
        for target in sorted(ring.manifest.targets(self.host)):
            peer = ring.manifest.peers[target]
            text = {"deployment": ring.manifest.deployment, "source": self.host, "target": target}
            call = Call(peer.address, peer.port, peer.fingerprint, Message(Kind.HELLO, epoch, text=text))
            sock = connect(call, self._client, deadline)

            def lost(reason: str, target: str = target) -> None:
                ring.fault(target, reason)

            sender = Sender(sock, ring.beat, lost)
            sender.start()
            ring.attach(target, sender)
        self._in_worker(lambda: ring.event(Event.LINK))
        return {}

    def trial(self, epoch: int, timeout: float) -> dict[str, Any]:
        """Entry only: send two tokens around the ring and get an answer, before anybody depends on it."""
        ring = self._ring(epoch)
        future: Future[int] = Future()
        self._trials[epoch] = future
        start = time.monotonic()
        self._worker.add(*chunks(epoch, TRIAL, [0, 0], 1))
        try:
            token = future.result(timeout)
        except TimeoutError:
            raise CoreError(f"the ring of epoch {epoch} gave no token within {timeout:g} s") from None
        finally:
            del self._trials[epoch]
            self._in_worker(lambda: ring.drop(0, TRIAL))
        return {"token": token, "seconds": time.monotonic() - start}

    def commit(self, epoch: int, record: str) -> dict[str, Any]:
        """From now on this epoch serves, also after a restart: `record` is the signed manifest."""
        ring = self._ring(epoch)
        self.store.write("manifest.json", record)
        self._in_worker(lambda: self._take_over(ring))
        return {}

    def retire(self, epoch: int) -> dict[str, Any]:
        """Forget an epoch, whatever it is in; one that is not here is retired already."""
        ring = self._rings.get(epoch)
        if ring is not None:
            self._in_worker(lambda: self._forget(ring))
            self.store.forget_stages(epoch)
        if self._serving is None:
            self._close_unused_api()
        return {}

    def status(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "pid": os.getpid(),
            "rss": rss(),
            "serving": self._serving,
            "epochs": {str(epoch): ring.report() for epoch, ring in sorted(self._rings.items())},
            "entry": None if self._entry is None else self._in_worker(self._entry.report),
            "cpus": sorted(os.sched_getaffinity(0)),
            "cpu_s": time.process_time(),
            "threads": torch.get_num_threads(),
        }

    def close(self) -> None:
        for ring in list(self._rings.values()):
            self._in_worker(lambda ring=ring: self._forget(ring))
        if self._api is not None:
            self._api.close()
        if self._listener is not None:
            self._listener.close()
        self._worker.stop()
        self._worker.join(timeout=5)

    # --- in the worker's thread ---

    def _in_worker(self, act: Any) -> Any:
        return self._worker.call(act).result(timeout=60)

    def _execute(self, work: Work[Any]) -> None:
        ring = self._rings.get(work.epoch)
        if ring is None:
            return
        try:
            ring.run(work)
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
            log.exception("stage %d failed", work.stage)
            ring.fault(self.host, f"stage {work.stage} failed: {error}")

    def _welcome(self, ring: Ring) -> None:
        ring.event(Event.LOADED)
        self._rings[ring.epoch] = ring

    def _take_over(self, ring: Ring) -> None:
        ring.event(Event.COMMIT)
        self._serving = ring.epoch
        if self._entry is not None:
            self._entry.attach(ring)

    def _forget(self, ring: Ring) -> None:
        if ring.state is not State.RETIRED:
            ring.retire()
        self._rings.pop(ring.epoch, None)
        if self._serving == ring.epoch:
            self._serving = None

    def _trial_over(self, work: Work[Any], logits: torch.Tensor) -> None:
        future = self._trials.get(work.epoch)
        if future is not None and not future.done():
            future.set_result(int(logits[0, -1].argmax()))

    def _trial_broken(self, ring: Ring) -> None:
        future = self._trials.get(ring.epoch)
        if future is not None and not future.done():
            future.set_exception(CoreError(f"the ring of epoch {ring.epoch} broke: {ring.reason}"))

    # --- parts ---

    def _ring(self, epoch: int) -> Ring:
        try:
            return self._rings[epoch]
        except KeyError:
            raise CoreError(f"epoch {epoch} was not prepared here") from None

    def _stage(self, manifest: Manifest, number: int, place: StagePlace) -> Stage:
        """Load a stage, or take it from another epoch that holds the same blocks of the same checkpoint."""
        wanted = _contents(manifest, place)
        for ring in self._rings.values():
            for other, stage in ring.stages.items():
                if _contents(ring.manifest, ring.manifest.stages[other]) == wanted:
                    return stage
        folder = self.store.lay_out(manifest, number)
        return Stage.load(folder, place.first, place.last, manifest.dtype, self.device)

    def _listen(self, manifest: Manifest) -> None:
        me = manifest.peers[self.host]
        if self._port == (me.address, me.port):
            return
        if self._port is not None:
            raise CoreError(f"the runner listens on {self._port[0]}:{self._port[1]}; take it down to move it")
        try:
            listener = Listener(_bindable(me.address, me.port), self._identity.context(server=True), self._admit)
        except OSError as error:
            raise CoreError(f"data port {me.port} cannot be used: {error.strerror or error}") from error
        listener.start()
        self._listener, self._port = listener, (me.address, me.port)

    def _admit(self, hello: Message, caller: str) -> Ring | str:
        """May this caller feed this epoch? Only a ring neighbour of it, by name and by certificate."""
        ring = self._rings.get(hello.epoch)
        if ring is None:
            return f"epoch {hello.epoch} is not prepared on {self.host}"
        source = str((hello.text or {}).get("source"))
        if source not in ring.manifest.sources(self.host):
            return f"{source} is not a ring neighbour of {self.host} in epoch {hello.epoch}"
        if ring.manifest.peers[source].fingerprint != caller:
            return f"the certificate is not {source}'s"
        return ring

    def _open_api(self, manifest: Manifest) -> None:
        if self._entry is None:
            self._entry = Entry(self._worker)
        service = dataclasses.replace(manifest.service)
        if self._api is not None and (self._api.service.address, self._api.service.port) != (
            service.address,
            service.port,
        ):
            raise CoreError(f"the API listens on port {self._api.service.port}; take it down to move it")
        if self._api is None:
            folder = self.store.folder / "stages" / "tokenizer"
            if not folder.exists():
                self.store.lay_out_files(manifest, folder)
            self._api = Api(service, folder, self._entry, self._worker, manifest.deployment)
            try:
                self._api.open()
            except OSError as error:
                self._api = None
                raise CoreError(f"API port {service.port} cannot be used: {error.strerror or error}") from error

    def _close_unused_api(self) -> None:
        if self._api is not None and self._serving is None:
            self._api.close()
            self._api = None


def _contents(manifest: Manifest, place: StagePlace) -> tuple[Any, ...]:
    return (place.first, place.last, manifest.dtype, manifest.shards, manifest.common)


def rss() -> int:
    """Resident memory of this process, bytes (its peak where /proc is not there)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _bindable(address: str, port: int) -> tuple[str, int]:
    """The address itself where it is this host's own, else every interface (behind a NAT, a name, an alias)."""
    try:
        with socket.create_server((address, 0)):
            return (address, port)
    except OSError:
        return ("", port)
