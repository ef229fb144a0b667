"""Is the key that a host shows the one we know it by? The lines of known_hosts files -> a verdict.

One bad line costs only itself: certificate authorities, unknown markers and garbage are passed over.
Must not know: how a key was shown, nor where the lines come from.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Entry:
    patterns: tuple[str, ...]
    kind: str
    blob: bytes
    revoked: bool = False

    def names(self, name: str) -> bool:
        """Whether this line is about `name`; a pattern with ! in front takes a name out again."""
        if any(_matches(pattern[1:], name) for pattern in self.patterns if pattern.startswith("!")):
            return False
        return any(_matches(pattern, name) for pattern in self.patterns)


def place(host: str, port: int) -> str:
    """The name by which known_hosts files list a host."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def parse(lines: Iterable[str]) -> tuple[Entry, ...]:
    return tuple(entry for entry in map(_entry, lines) if entry is not None)


def kinds(entries: Sequence[Entry], name: str) -> list[str]:
    """The kinds of key that a host is known by: the kinds to ask it for."""
    return [entry.kind for entry in entries if not entry.revoked and entry.names(name)]


def judge(entries: Sequence[Entry], name: str, blob: bytes) -> Verdict:
    about = [entry for entry in entries if entry.names(name)]
    if any(entry.revoked and entry.blob == blob for entry in about):
        return Verdict.REVOKED
    known = [entry for entry in about if not entry.revoked]
    if any(entry.blob == blob for entry in known):
        return Verdict.KNOWN
    return Verdict.CHANGED if known else Verdict.UNKNOWN


def _entry(line: str) -> Entry | None:
    words = line.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if marker not in ("", "@revoked") or len(words) < 3 or words[0].startswith("#"):
        return None
    try:
        blob = base64.b64decode(words[2], validate=True)
    except ValueError:
        return None
    return Entry(tuple(words[0].split(",")), words[1], blob, marker == "@revoked")


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("|1|"):
        return _hashed(pattern, name)
    glob = re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(glob, name.lower()) is not None


def _hashed(pattern: str, name: str) -> bool:
    """|1|salt|HMAC-SHA1(salt, name)|, what `HashKnownHosts yes` writes."""
    try:
        salt, want = (base64.b64decode(word, validate=True) for word in pattern.split("|")[2:])
    except ValueError:
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), want)
