"""Who may ask the API: whoever shows a key whose hash is here.

    api-keys/<sha256 of the key>    a note: the key's name, and since when it counts

One file per key, made and removed over SSH; looked for in each request, so that a key counts from the next one on, and
a revoked one no longer. Where no key was ever made, anybody may ask who reaches an API that only this machine reaches.
Must not know: HTTP, what is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

FOLDER = "api-keys"
MISSING = "no API key was given: it belongs into the header, as Authorization: Bearer KEY"
UNKNOWN = "this API key is not known here, or was revoked"


def fresh() -> str:
    """A key nobody guesses; its hash needs no salt."""
    return f"es-{secrets.token_urlsafe(32)}"


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


class Keys:
    """`own`: a key in memory only, for whoever may command this runner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self.own = fresh()

    @property
    def wanted(self) -> bool:
        """Was a key ever made? Then one is asked for, even where the last one was revoked."""
        return self._folder.is_dir()

    def refusal(self, shown: str, *, private: bool) -> str:
        """Why a request with this Authorization header is refused, "" where it is not. `private`: only this machine
        reaches the API."""
        if private and not self.wanted:
            return ""
        scheme, _, key = shown.strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return MISSING
        known = hmac.compare_digest(hashed(key.strip()), hashed(self.own))
        return "" if known or (self._folder / hashed(key.strip())).is_file() else UNKNOWN
