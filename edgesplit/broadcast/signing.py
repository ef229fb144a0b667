"""Signed, epoch-numbered commands (the paper, III-D): what only this deployment's controller can say to its runners.

Must not know: where keys are kept, how a command travels, what time it is (the serial is given).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Signer:
    """Seals commands of one deployment to one of its hosts. `serial`s must rise from command to command; runners refuse
    any other, and those that come after they `expire`, by the host's own clock."""

    def __init__(self, deployment: str, key: Ed25519PrivateKey) -> None:
        self._deployment, self._key = deployment, key

    def seal(
        self, verb: str, host: str, serial: int, expires: float, beside: Mapping[str, Any] = NOTHING, **fields: Any
    ) -> bytes:
        """The envelope, ready to be sent; `beside` travels with it, unsigned, and is not kept with it."""
        whom = {"deployment": self._deployment, "host": host, "serial": serial, "expires": expires}
        payload = json.dumps({**whom, "verb": verb, **fields}, sort_keys=True)
        signature = base64.b64encode(self._key.sign(payload.encode())).decode()
        return json.dumps({**beside, "payload": payload, "signature": signature}).encode()
