"""Signed commands to the runners of a deployment, and their answers.

Must not know: why something is said, and when.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgesplit.broadcast.cargo import Cargo
from edgesplit.broadcast.remote import ask
from edgesplit.broadcast.scene import Scene, ahead
from edgesplit.broadcast.signing import NOTHING, Signer
from edgesplit.hosts.host import Host

ON_THE_WAY = 60.0  # seconds a command may take to a runner and still be honoured


class Words:
    """Said from several threads. `scene` tells what the runners have seen so far, and what their clocks say."""

    def __init__(self, cargo: Cargo, key: Ed25519PrivateKey, scene: Scene) -> None:
        self._cargo, self._signer, self._scene = cargo, Signer(cargo.name, key), scene
        self._count = itertools.count(1)
        self._ahead = dict(scene.ahead)

    def heard(self, host: str, state: Mapping[str, Any]) -> None:
        """What a runner that was not there before says of itself."""
        self._ahead[host] = ahead(state)

    def clocks(self, hosts: Iterable[str]) -> list[float]:
        """Seconds that the clocks of these are before ours, as far as their runners have told."""
        return [self._ahead[host] for host in hosts if host in self._ahead]

    def say(
        self, host: Host, verb: str, seconds: float, beside: Mapping[str, Any] = NOTHING, **fields: Any
    ) -> dict[str, Any]:
        """The runner gets `seconds` to answer. Raises HostError with its own words, NotServing."""
        # the clock makes serials rise; a controller whose clock lags goes on from what the runners have seen
        serial = max(time.time_ns(), self._scene.serial + next(self._count))
        expires = time.time() + self._ahead.get(host.name, 0.0) + seconds + ON_THE_WAY
        envelope = self._signer.seal(verb, host.name, serial, expires, beside, **fields)
        spec, folder = self._cargo.inventory.hosts[host.name], self._cargo.folder(host.name)
        return ask(host, spec, folder, self._cargo.archive.name, envelope, seconds)
