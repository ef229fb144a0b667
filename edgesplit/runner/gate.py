"""Only the deployment's controller commands a runner (the paper, III-D).

Reconfiguration commands come in an envelope {"payload": JSON text, "signature": base64}, signed with the deployment's
Ed25519 key. They name the deployment, the host, a serial and when they expire, and are honoured once: the serial must
be newer than the last.
Must not know: sockets, what a command does.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

ENVELOPE = ("payload", "signature")


class Refused(RuntimeError):
    """The command is forged, replayed, expired, for somebody else, or no command at all."""


class Gate:
    """Lets through what the deployment's key has signed for this host, once. `clock`: as the host tells it."""

    def __init__(
        self,
        whom: tuple[str, str],
        key: Path,
        load: Callable[[], str],
        save: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deployment, self._host = whom
        self._clock = clock
        public = load_pem_public_key(key.read_bytes())
        if not isinstance(public, Ed25519PublicKey):
            raise ValueError(f"{key.name} is no Ed25519 key")
        self._key = public
        self._save = save
        self.serial = int(load() or 0)  # of the last command honoured

    def open(self, envelope: Mapping[str, Any]) -> dict[str, Any]:
        """The command inside. Raises Refused."""
        try:
            payload, signature = str(envelope["payload"]), base64.b64decode(envelope["signature"], validate=True)
            self._key.verify(signature, payload.encode())
            command = json.loads(payload)
            deployment, host = str(command["deployment"]), str(command["host"])
            serial, expires = int(command["serial"]), float(command["expires"])
        except InvalidSignature:
            raise Refused("the signature is not the deployment's") from None
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, binascii.Error) as error:
            raise Refused(f"not a signed command: {error!r}") from error
        if deployment != self._deployment:
            raise Refused(f"the command is for deployment {deployment}")
        if host != self._host:
            raise Refused(f"the command is for {host}")
        if not self._clock() < expires:
            raise Refused("the command has expired")
        if serial <= self.serial:
            raise Refused(f"serial {serial} is not newer than {self.serial}: a replayed or older command")
        self.serial = serial
        self._save(str(serial))
        return dict(command)
