"""What a runner does when it is told to: prepare an epoch, link it, try it, commit it, retire it.

Must not know: how commands arrive and are proven genuine (dispatch.py), nor HTTP (api.py).
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from .api import Api
from .apikeys import Keys
from .entry import Entry
from .front import Front
from .identity import Identity
from .link import Call, Listener, Sender, connect
from .manifest import Manifest, StagePlace
from .ring import Ring
from .scheduler import Work
from .stage import Stage
from .state import Event, IllegalEvent, State
from .store import Store
from .wire import Kind, Message
from .worker import Worker

TRIAL = 0  # the sequence number of a trial; requests count from 1
PATIENCE = 60.0  # seconds a command waits for the forward under way
CATCH_UP = 20.0  # seconds that the sequences are given to get into the next ring before it serves all the same
FAREWELL = 2.0  # seconds the end waits for it, and then for the neighbours to be told
T = TypeVar("T")
log = logging.getLogger("runner")


class CoreError(RuntimeError):
    """The command cannot be carried out now; nothing has changed."""


class Core:
    """One runner. Public methods are called from the control thread, one at a time."""

    def __init__(self, host: str, store: Store, device: str) -> None:
        self.host, self.device = host, device
        self.store = store
        self._clients: dict[int, ssl.SSLContext] = {}  # epoch -> how we call in it
        self._worker = Worker(self._execute)
        self._rings: dict[int, Ring] = {}
        self._listener: Listener | None = None
        self._port: tuple[str, int] | None = None
        self._entry: Entry | None = None
        self._api: Api | None = None
        self._keys = Keys(store.folder)
        self._fronts: dict[int, Front] = {}
        self._serving: int | None = None
        self._trials: dict[int, Future[int]] = {}
        self._worker.start()

    # --- commands ---

    def prepare(self, manifest: Manifest, keys: Mapping[str, bytes], identity: Identity) -> dict[str, Any]:
        """Load this host's stages of a new epoch beside the one that serves. What fails leaves nothing behind.

        `keys`: of the shards it needs, by their hash. `identity`: in this epoch's ring.
        """
        if manifest.epoch in self._rings:
            raise CoreError(f"epoch {manifest.epoch} is here already")
        if self._serving is not None and manifest.epoch < self._serving:
            raise CoreError(f"epoch {manifest.epoch} is older than {self._serving}, which serves")
        places = manifest.places(self.host)
        if not places:
            raise CoreError(f"{self.host} has no part in epoch {manifest.epoch}")
        if identity.fingerprint != manifest.peers[self.host].fingerprint:
            raise CoreError(f"the certificate is not that of {self.host} in the manifest")
        start = time.monotonic()
        self.store.keys |= keys
        try:
            self._listen(manifest, identity.context(server=True))
            self._clients[manifest.epoch] = identity.context(server=False)
            if self.host == manifest.entry:
                self._open_api(manifest)
            stages: dict[int, Stage] = {}
            for number, place in places.items():
                stages[number] = self._stage(manifest, number, place, stages.values())
            ring = Ring(manifest, self.host, stages, self._worker)
            ring.sampled = self._trial_over
            ring.broken = lambda: self._broken(ring)
            self._in_worker(lambda: self._welcome(ring))
        except BaseException:
            self._clear(manifest.epoch)
            raise
        return {"seconds": time.monotonic() - start, "rss": rss()}

    def link(self, epoch: int, timeout: float) -> dict[str, Any]:
        """Call the next hosts of the ring; all of them have prepared the epoch."""
        ring = self._ring(epoch)
        deadline = time.monotonic() + timeout
        senders: dict[str, Sender] = {}
        try:
            for target in sorted(ring.manifest.targets(self.host)):
                senders[target] = self._call(ring, target, deadline)
            self._in_worker(lambda: ring.link(senders))
        except BaseException as error:
            for sender in senders.values():
                sender.close()
            if isinstance(error, IllegalEvent):
                raise CoreError(f"{error} {ring.reason}".strip()) from error
            raise
        return {}

    def _call(self, ring: Ring, target: str, deadline: float) -> Sender:
        peer = ring.manifest.peers[target]
        text = {"deployment": ring.manifest.deployment, "source": self.host, "target": target}
        call = Call(peer.address, peer.port, peer.fingerprint, Message(Kind.HELLO, ring.epoch, text=text))
        sock = connect(call, self._clients[ring.epoch], deadline)
        sender = Sender(sock, ring.beat, lambda reason: ring.fault(target, reason))
        sender.start()
        return sender

    def trial(self, epoch: int, timeout: float) -> dict[str, Any]:
        """Entry only: send two tokens around the ring and get an answer, before anybody depends on it."""
        ring = self._ring(epoch)
        future: Future[int] = Future()
        self._trials[epoch] = future
        start = time.monotonic()
        try:
            self._in_worker(lambda: self._try(ring))
            token = future.result(timeout)
        except concurrent.futures.TimeoutError:  # not the builtin TimeoutError before Python 3.11
            raise CoreError(f"the ring of epoch {epoch} gave no token within {timeout:g} s") from None
        finally:
            del self._trials[epoch]
            self._in_worker(lambda: ring.drop(0, TRIAL))
        return {"token": token, "seconds": time.monotonic() - start}

    def commit(self, epoch: int, record: str) -> dict[str, Any]:
        """From now on this epoch serves; `record`, the signed manifest, tells any controller so."""
        ring = self._ring(epoch)
        if self._entry is not None:
            concurrent.futures.wait([self._in_worker(partial(self._entry.prepare, ring))], CATCH_UP)
        self._in_worker(lambda: self._take_over(ring, record))
        return {}

    def retire(self, epoch: int) -> dict[str, Any]:
        """Forget an epoch, whatever it is in; one that is not here is retired already."""
        ring = self._rings.get(epoch)
        if ring is not None:
            self._in_worker(lambda: self._forget(ring))
        self._clear(epoch)
        return {}

    def status(self) -> dict[str, Any]:
        """At any time, from any thread: it does not wait for the forward under way."""
        return {
            "host": self.host,
            "pid": os.getpid(),
            "rss": rss(),
            "serving": self._serving,
            "epochs": {str(epoch): ring.report() for epoch, ring in sorted(self._rings.items())},
            "entry": None if self._entry is None else self._entry.report(),
            "cpus": sorted(os.sched_getaffinity(0)),
            "cpu_s": time.process_time(),
            "threads": torch.get_num_threads(),
            "clock": time.time(),
        }

    def key(self) -> dict[str, Any]:
        """A key to the API, for whoever may open the control socket; it is kept nowhere else."""
        return {"key": self._keys.own}

    def close(self) -> None:
        """Tell the neighbours and end; a forward that takes long is not waited for."""
        senders = [sender for ring in list(self._rings.values()) for sender in ring.senders]
        goodbye = self._worker.call(self._forget_all)
        if self._listener is not None:
            self._listener.close()
        if self._api is not None:
            self._api.close()
        concurrent.futures.wait([goodbye], FAREWELL)
        self._worker.stop()
        deadline = time.monotonic() + FAREWELL
        for thread in (self._worker, *senders):
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- in the worker's thread ---

    def _in_worker(self, act: Callable[[], T]) -> T:
        future = self._worker.call(act)
        try:
            return future.result(PATIENCE)
        except concurrent.futures.TimeoutError:
            if future.cancel():  # so that it will not happen later either
                raise CoreError(f"the forward under way takes longer than {PATIENCE:g} s") from None
            return future.result(PATIENCE)

    def _execute(self, work: Work[Any]) -> None:
        ring = self._rings.get(work.epoch)
        if ring is None:
            return
        try:
            ring.run(work)
        except Exception as error:  # the main loop's: whatever a model raises, the runner lives on
            log.exception("stage %d failed", work.stage)
            ring.fault(self.host, f"stage {work.stage} failed: {error!r}")

    def _try(self, ring: Ring) -> None:
        if ring.state not in (State.LINKED, State.SERVING):
            raise CoreError(f"epoch {ring.epoch} is {ring.state.value} {ring.reason}".strip())
        blank = ring.stages[0].blank()
        if blank is None:
            ring.read(TRIAL, [0, 0], size=1)
        else:
            ring.see(TRIAL, blank, sample=True)

    def _welcome(self, ring: Ring) -> None:
        ring.event(Event.LOADED)
        self._rings[ring.epoch] = ring

    def _take_over(self, ring: Ring, record: str) -> None:
        """Here, so that the ring cannot break between the record and the deed."""
        if ring.state is not State.LINKED:
            raise CoreError(f"epoch {ring.epoch} cannot serve, it is {ring.state.value} {ring.reason}".strip())
        self.store.succeed(ring.manifest, record)
        ring.event(Event.COMMIT)
        self._serving = ring.epoch
        front = self._fronts.get(ring.epoch)
        if self._entry is not None and self._api is not None and front is not None:
            self._api.front = front
            self._entry.attach(ring)

    def _forget(self, ring: Ring) -> None:
        if ring.state is not State.RETIRED:
            ring.retire()
        self._rings.pop(ring.epoch, None)
        if self._serving == ring.epoch:
            self._serving = None

    def _forget_all(self) -> None:
        for ring in list(self._rings.values()):
            self._forget(ring)

    def _trial_over(self, work: Work[Any], logits: torch.Tensor) -> None:
        future = self._trials.get(work.epoch)
        if future is not None and not future.done():
            future.set_result(int(logits[0, -1].argmax()))

    def _broken(self, ring: Ring) -> None:
        if self._entry is not None:
            self._entry.unprepare()
        future = self._trials.get(ring.epoch)
        if future is not None and not future.done():
            future.set_exception(CoreError(f"the ring of epoch {ring.epoch} broke: {ring.reason}"))

    # --- parts ---

    def _ring(self, epoch: int) -> Ring:
        try:
            return self._rings[epoch]
        except KeyError:
            raise CoreError(f"epoch {epoch} was not prepared here") from None

    def _stage(self, manifest: Manifest, number: int, place: StagePlace, fresh: Iterable[Stage]) -> Stage:
        """Load a stage; blocks that stages of the same checkpoint hold here already, of any epoch, are shared."""
        kin = [ring for ring in self._rings.values() if ring.manifest.contents == manifest.contents]
        stages = (*(stage for ring in kin for stage in ring.stages.values()), *fresh)
        for stage in stages:
            if (stage.range.first, stage.range.last) == (place.first, place.last):
                return stage
        folder = self.store.lay_out(manifest, number)
        trusted = manifest.trust_remote_code
        return Stage.load(
            folder, place.first, place.last, manifest.dtype, self.device, stages, trusted=trusted, keys=self.store.keys
        )

    def _listen(self, manifest: Manifest, context: ssl.SSLContext) -> None:
        """From now on with the certificate of this epoch: in the ones before it all links are made."""
        me = manifest.peers[self.host]
        if self._port is not None and self._port != (me.address, me.port):
            raise CoreError(f"the runner listens on {self._port[0]}:{self._port[1]}; take it down to move it")
        if self._listener is not None:
            self._listener.context = context
            return
        try:
            listener = Listener(_bindable(me.address, me.port), context, self._admit)
        except OSError as error:
            raise CoreError(f"data port {me.port} cannot be used: {error.strerror or error}") from error
        listener.start()
        self._listener, self._port = listener, (me.address, me.port)

    def _admit(self, hello: Message, caller: str) -> Ring | str:
        """May this caller feed this epoch? Only a ring neighbour of it, by name and by certificate."""
        ring = self._rings.get(hello.epoch)
        if ring is None or ring.state in (State.BROKEN, State.RETIRED):
            return f"epoch {hello.epoch} is not prepared on {self.host}"
        source = str((hello.text or {}).get("source"))
        if source not in ring.manifest.sources(self.host):
            return f"{source} is not a ring neighbour of {self.host} in epoch {hello.epoch}"
        if ring.manifest.peers[source].fingerprint != caller:
            return f"the certificate is not {source}'s"
        return ring

    def _open_api(self, manifest: Manifest) -> None:
        service = manifest.service
        if self._api is not None and self._api.place != (service.address, service.port):
            raise CoreError(f"the API listens on port {self._api.place[1]}; take it down to move it")
        if not service.private and not self._keys.wanted:
            raise CoreError(f"the API would listen on {service.address} for anybody, as there is no API key")
        try:
            front = Front.load(service, self.store.lay_out_files(manifest), trusted=manifest.trust_remote_code)
        except (OSError, ValueError) as error:
            raise CoreError(f"the API cannot be opened: {error}") from error
        if self._entry is None:
            self._entry = Entry(self._worker)
        if self._api is None:
            api = Api(front, self._entry, self._worker, manifest.deployment, self._keys)
            try:
                api.open()
            except OSError as error:
                raise CoreError(f"API port {service.port} cannot be used: {error.strerror or error}") from error
            self._api = api
        self._fronts[manifest.epoch] = front

    def _clear(self, epoch: int) -> None:
        """What an epoch has beside its ring: its folders, and the API where no other epoch needs it."""
        self.store.forget_stages(epoch)
        needed = {sha for ring in self._rings.values() for sha in ring.manifest.needed(self.host)}
        self.store.keys = {sha: key for sha, key in self.store.keys.items() if sha in needed}
        self._fronts.pop(epoch, None)
        self._clients.pop(epoch, None)
        if self._api is not None and not self._fronts:
            self._api.close()
            self._api = None


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
