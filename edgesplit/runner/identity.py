"""Who this host is in the ring of one epoch: certificate, key, and the authority whose certificates it takes.

They come with PREPARE, over SSH, and are kept in memory only; the next epoch brings others.
Must not know: epochs, sockets, who calls whom.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .manifest import fingerprint


@dataclass(frozen=True)
class Identity:
    """PEM texts."""

    authority: str
    certificate: str
    key: str = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Raises ValueError where there is no certificate."""
        return fingerprint(ssl.PEM_cert_to_DER_cert(self.certificate))

    def context(self, *, server: bool) -> ssl.SSLContext:
        """TLS 1.3 only, the peer's certificate required. Names are not checked: fingerprints are. Raises OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.authority)
        file = os.memfd_create("identity")  # OpenSSL is given a key as a file only
        try:
            os.write(file, f"{self.certificate}{self.key}".encode())
            context.load_cert_chain(f"/proc/self/fd/{file}")
        finally:
            os.close(file)
        if server:
            context.num_tickets = 0  # nobody resumes: a link lives as long as its epoch
        return context


def identity_of(told: Mapping[str, Any]) -> Identity:
    """As it came. Raises ValueError where a part is missing."""
    try:
        return Identity(*(str(told[name]) for name in ("authority", "certificate", "key")))
    except KeyError as error:
        raise ValueError(f"the epoch's identity has no {error}") from None
